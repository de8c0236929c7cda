//! Tests of the writer, the readers, and what the file is.

use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

use super::*;

fn count(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("SELECT count(*) FROM transcript", [], |row| row.get(0))?)
}

fn add(connection: &Connection, entry: i64) -> Result<(), StoreError> {
    connection.execute("INSERT INTO transcript VALUES ('s', ?1, 'm')", [entry])?;
    Ok(())
}

#[tokio::test]
async fn writes_that_wait_together_are_committed_together() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let held = store.write(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let others = futures::future::join_all(
        (0..100).map(|entry| store.write(move |connection| add(connection, entry))),
    );
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.send(()).unwrap();
    };
    let (_, written, ()) = tokio::join!(held, others, release);
    assert!(written.into_iter().all(|outcome| outcome.is_ok()));
    let (groups, writes) = store.written();
    assert!(groups <= 2 && writes == 101, "{groups} transactions");
    assert_eq!(store.read(count).await.unwrap(), 100);
}

#[tokio::test]
async fn a_write_that_fails_undoes_itself_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let held = store.write(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let good = store.write(|connection| add(connection, 1));
    let bad = store.write(|connection| {
        add(connection, 2)?;
        add(connection, 1)
    });
    let panics = store.write(|connection| -> Result<(), StoreError> {
        add(connection, 3)?;
        panic!("a test panics on purpose")
    });
    let after = store.write(|connection| add(connection, 4));
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.send(()).unwrap();
    };
    let (_, good, bad, panics, after, ()) = tokio::join!(held, good, bad, panics, after, release);
    assert!(good.is_ok() && after.is_ok());
    assert!(
        matches!(bad, Err(StoreError::Database(_))) && matches!(panics, Err(StoreError::Closed))
    );
    assert!(store.written().0 <= 2);
    assert_eq!(store.read(count).await.unwrap(), 2);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_store_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.write(|connection| add(connection, 1)).await.unwrap();
    store.crash_after(0);
    assert!(matches!(
        store.write(|connection| add(connection, 2)).await,
        Err(StoreError::Closed)
    ));
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[test]
fn the_folder_is_the_owners_alone_and_in_use_once() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("storage");
    let store = Store::open(&folder).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&folder), mode(&folder.join(DATABASE))),
        (0o700, 0o600)
    );
    assert!(matches!(Store::open(&folder), Err(StoreError::InUse(_))));
    drop(store);
    Store::open(&folder).unwrap();
}

#[test]
fn a_newer_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path()).unwrap());
    let connection = Connection::open(folder.path().join(DATABASE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(
        Store::open(folder.path()),
        Err(StoreError::TooNew { found: 99, .. })
    ));
}

#[test]
fn a_text_is_cut_on_a_characters_boundary() {
    assert_eq!(
        (cut("añb", 2), cut("añb", 3), cut("añb", 9), cut("", 0)),
        ("añ", "añb", "añb", "")
    );
}
