//! Tests of the writer, the readers and the database file.

use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;

use futures::FutureExt;
use tokio::sync::oneshot;

use super::*;
use lucid_types::transient::TransientFailure;

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
    assert!(groups < 30 && writes == 101, "{groups} transactions");
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
async fn what_follows_a_write_is_done_after_its_commit_even_if_nobody_waits_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let held = tokio::spawn({
        let store = store.clone();
        async move { store.write(move |_| Ok(wait.recv().is_ok())).await }
    });
    tokio::task::yield_now().await;
    let (told, followed) = mpsc::channel();
    let tell = |number: i64| {
        let told = told.clone();
        move || told.send(number).unwrap()
    };
    let abandoned = store.write_then(
        QueueKey::Host,
        TIMEOUT,
        |connection| add(connection, 1),
        tell(1),
    );
    let waited = tokio::time::timeout(Duration::from_millis(50), abandoned).await;
    assert!(waited.is_err());
    let fails = |connection: &Connection| {
        add(connection, 2)?;
        add(connection, 1)
    };
    let fails = store.write_then(QueueKey::Host, TIMEOUT, fails, tell(2));
    let release = async { go.send(()).unwrap() };
    let (failed, ()) = tokio::join!(fails, release);
    assert!(failed.is_err() && held.await.unwrap().unwrap());
    assert_eq!(followed.try_iter().collect::<Vec<_>>(), [1]);
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

#[tokio::test]
async fn every_write_of_a_group_that_is_not_committed_hears_why_and_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    store.fill_disk(true);
    let writes = (0..50).map(|entry| store.write(move |connection| add(connection, entry)));
    for outcome in futures::future::join_all(writes).await {
        assert_eq!(
            outcome.unwrap_err().transient(),
            Some(TransientFailure::DiskFull),
            "not one is told that the store is closed"
        );
    }
    assert_eq!(store.health().failure(), Some(TransientFailure::DiskFull));
    store.fill_disk(false);
    store.write(|connection| add(connection, 1)).await.unwrap();
    assert_eq!(store.health().failure(), None);
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[tokio::test]
async fn a_write_that_finds_no_room_fails_its_whole_group_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let held = store.write(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let small = store.write(|connection| {
        // SQLite itself finds the database full, and rolls back the transaction.
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        connection.pragma_update(None, "max_page_count", pages)?;
        add(connection, 0)
    });
    let large = store.write(|connection| {
        let text = "x".repeat(1 << 20);
        connection.execute("INSERT INTO transcript VALUES ('s', 1, ?1)", [text])?;
        Ok(())
    });
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.send(()).unwrap();
    };
    let (held, small, large, ()) = tokio::join!(held, small, large, release);
    held.unwrap();
    let full = Some(TransientFailure::DiskFull);
    assert_eq!(large.unwrap_err().transient(), full);
    // It was committed before if the machine was so busy that the group was over.
    if let Err(cause) = small {
        assert_eq!(cause.transient(), full);
        assert_eq!(store.read(count).await.unwrap(), 0);
    }
    assert_eq!(store.health().failure(), full);
    let unlimit = |connection: &Connection| {
        let most = i64::from(u32::MAX - 1);
        Ok(connection.pragma_update(None, "max_page_count", most)?)
    };
    store.write(unlimit).await.unwrap();
    store.write(|connection| add(connection, 3)).await.unwrap();
    assert_eq!(store.health().failure(), None);
}

#[tokio::test]
async fn another_process_that_locks_the_database_is_waited_for_as_long_as_each_caller_likes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let other = Connection::open(folder.path().join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let patient = store.write(|connection| add(connection, 1));
    let impatient = store.write_within(Duration::ZERO, |connection| add(connection, 2));
    let release = async {
        let refused = impatient.await.unwrap_err();
        assert_eq!(refused.transient(), Some(TransientFailure::Locked));
        other.execute_batch("ROLLBACK").unwrap();
    };
    let (patient, ()) = tokio::join!(patient, release);
    patient.unwrap();
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[tokio::test]
async fn nothing_of_the_database_needs_a_folder_for_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let kept = |connection: &Connection| {
        Ok(connection.query_row("PRAGMA temp_store", [], |row| row.get::<_, i64>(0))?)
    };
    let (writer, reader) = (store.write(kept).await, store.read(kept).await);
    assert_eq!((writer.unwrap(), reader.unwrap()), (2, 2));
}

#[tokio::test]
async fn a_read_that_can_open_no_connection_takes_the_next_that_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (entered, inside) = mpsc::channel::<()>();
    let (go, wait) = mpsc::channel::<()>();
    let first = tokio::spawn({
        let store = store.clone();
        async move {
            let read = move |connection: &Connection| {
                entered.send(()).unwrap();
                let _ = wait.recv();
                count(connection)
            };
            store.read(read).await
        }
    });
    tokio::task::spawn_blocking(move || inside.recv())
        .await
        .unwrap()
        .unwrap();
    // Nobody can open it by its name any more.
    let name = folder.path().join(DATABASE);
    std::fs::rename(&name, folder.path().join("elsewhere")).unwrap();
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.send(()).unwrap();
    };
    let (second, ()) = tokio::join!(store.read(count), release);
    assert_eq!(second.unwrap(), 0);
    assert_eq!(first.await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_user_with_many_reads_keeps_no_other_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let flood: Vec<_> = (0..50)
        .map(|_| {
            let (store, wait) = (store.clone(), wait.clone());
            tokio::spawn(async move {
                let read = move |connection: &Connection| {
                    let _ = wait.lock().unwrap().recv();
                    count(connection)
                };
                store.read_for(QueueKey::User("flood".into()), read).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    for user in ["one", "other", "one"] {
        let key = QueueKey::User(user.into());
        let read = tokio::time::timeout(Duration::from_secs(30), store.read_for(key, count));
        assert_eq!(read.await.expect("it waits for the others").unwrap(), 0);
    }
    drop(go);
    for read in flood {
        assert_eq!(read.await.unwrap().unwrap(), 0);
    }
}

#[tokio::test]
async fn a_user_with_many_writes_keeps_no_other_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let held = store.write(move |_| {
        let _ = wait.recv();
        Ok(())
    });
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let write = |user: &'static str| {
        let order = order.clone();
        store.write_for(QueueKey::User(user.into()), move |_| {
            order.lock().unwrap().push(user);
            Ok(())
        })
    };
    let flood = futures::future::join_all((0..200).map(|_| write("flood")));
    let others = futures::future::join_all([write("one"), write("other"), write("one")]);
    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.send(()).unwrap();
    };
    let (_, flooded, written, ()) = tokio::join!(held, flood, others, release);
    assert!(
        flooded
            .into_iter()
            .chain(written)
            .all(|outcome| outcome.is_ok())
    );
    let order = order.lock().unwrap();
    assert_eq!(order[..5], ["flood", "one", "other", "flood", "one"]);
    assert_eq!(order.len(), 203);
}

#[tokio::test]
async fn a_user_who_has_all_of_their_places_in_the_queue_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let (begun, has_begun) = oneshot::channel();
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            let hold = move |_: &Connection| {
                begun.send(()).unwrap();
                let _ = wait.recv();
                Ok(())
            };
            store.write(hold).await
        }
    });
    has_begun.await.unwrap();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let write = |user: &'static str| {
        let order = order.clone();
        store.write_for(QueueKey::User(user.into()), move |_| {
            order.lock().unwrap().push(user);
            Ok(())
        })
    };
    // More than there are places in all.
    let mut flood: Vec<_> = (0..20_000).map(|_| Box::pin(write("flood"))).collect();
    for one in &mut flood {
        assert!(one.now_or_never().is_none());
    }
    // Those that give up leave their places to others.
    flood.truncate(3000);
    let mut other = Box::pin(write("other"));
    assert!((&mut other).now_or_never().is_none());
    go.send(()).unwrap();
    other.await.unwrap();
    for one in flood {
        one.await.unwrap();
    }
    writing.await.unwrap().unwrap();
    let order = order.lock().unwrap();
    assert!(order[..2].contains(&"other"), "it waited for the flood");
    assert_eq!(order.len(), 3001, "none is lost");
}

#[tokio::test]
async fn a_read_ends_with_whoever_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let user = || QueueKey::User("u".into());
    let endless = |connection: &Connection| {
        let sql =
            "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        Ok(connection.query_row(sql, [], |row| row.get::<_, i64>(0))?)
    };
    for _ in 0..3 {
        let reads = (0..5).map(|_| store.read_for(user(), endless));
        let reads = futures::future::join_all(reads);
        let late = tokio::time::timeout(Duration::from_millis(50), reads).await;
        assert!(late.is_err());
    }
    let next = tokio::time::timeout(Duration::from_secs(30), store.read_for(user(), count));
    assert_eq!(next.await.expect("the reads went on").unwrap(), 0);
}

#[tokio::test]
async fn a_read_that_panics_is_told_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for _ in 0..10 {
        let panics =
            |_: &Connection| -> Result<(), StoreError> { panic!("a test panics on purpose") };
        assert!(matches!(store.read(panics).await, Err(StoreError::Closed)));
    }
    assert_eq!(store.read(count).await.unwrap(), 0);
}

async fn fill(store: &Store, mib: i64) {
    let fill = move |connection: &Connection| {
        for entry in 0..mib {
            connection.execute(
                "INSERT INTO transcript VALUES ('s', ?1, zeroblob(1048576))",
                [entry],
            )?;
        }
        Ok(())
    };
    store.write(fill).await.unwrap();
}

#[tokio::test]
async fn what_is_deleted_gives_its_space_back_while_nobody_writes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    fill(&store, 40).await;
    let file = folder.path().join(DATABASE);
    let size = || file.metadata().unwrap().len();
    let delete = |connection: &Connection| Ok(connection.execute("DELETE FROM transcript", [])?);
    store.erase(delete).await.unwrap();
    // Some free pages stay for what is written next.
    let shrunk = async {
        while size() > 6 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let shrunk = tokio::time::timeout(Duration::from_secs(60), shrunk).await;
    assert!(shrunk.is_ok(), "the file still has {} bytes", size());
    assert_eq!(
        store.write(|connection| add(connection, 1)).await.unwrap(),
        ()
    );
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[tokio::test]
async fn a_small_file_of_an_older_build_is_made_to_shrink_and_a_large_one_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let as_older_builds_did = |mib| {
        let store = Store::open(folder.path()).unwrap();
        async move {
            fill(&store, mib).await;
            drop(store);
        }
    };
    let file = folder.path().join(DATABASE);
    let rewrite = |mode: &str| {
        let connection = Connection::open(&file).unwrap();
        let sql = format!("PRAGMA auto_vacuum = {mode}; VACUUM;");
        connection.execute_batch(&sql).unwrap();
    };
    let stays = || size_that_stays(&open_read_only(folder.path()).unwrap()).unwrap();
    as_older_builds_did(1).await;
    rewrite("none");
    assert!(stays().is_some_and(|size| size > 1 << 20));
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(stays(), None);
    assert_eq!(store.read(count).await.unwrap(), 1);
    let delete = |connection: &Connection| Ok(connection.execute("DELETE FROM transcript", [])?);
    store.write(delete).await.unwrap();
    drop(store);

    as_older_builds_did(70).await;
    rewrite("none");
    let store = Store::open(folder.path()).unwrap();
    assert!(stays().is_some_and(|size| size > 70 << 20));
    assert_eq!(store.read(count).await.unwrap(), 70);
}
