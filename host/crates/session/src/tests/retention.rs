//! What remains of a session that ended without its user's request.

use super::*;

fn impatient(limits: &mut SessionLimits) {
    limits.grace = Duration::from_millis(50);
}

/// A session that ends because nobody is attached.
async fn left_alone(host: &Host, task: &str) -> SessionId {
    let wanted = NewSession {
        task: task.to_owned(),
        ..new("u")
    };
    let session = host.create(wanted).await.unwrap();
    let mut frames = session.subscribe(0);
    host.start(&session);
    until(&mut frames, "never").await;
    let SubscriptionItem::Ended(reason) = frames.next().await else {
        panic!("it goes on")
    };
    assert!(
        reason
            .reason
            .ends_with("Its files can be read for another 1 hour."),
        "{reason:?}"
    );
    let details = host.details(session.id(), session.user()).await.unwrap();
    let recorded = details.end_reason.unwrap();
    assert!(
        recorded.ends_with("Its files can be read for another 1 hour, while the disk has room."),
        "{recorded}"
    );
    *session.id()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_leaves_that_nobody_stopped_stays_over_a_restart_and_then_goes() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = with_limits(opened(folder.path()), &world, impatient);
    let id = left_alone(&first, "do it").await;
    assert_eq!(
        (
            world.done("close"),
            world.done("release"),
            world.done("wipe")
        ),
        (1, 1, 0)
    );
    first.shutdown().await;
    drop(first);

    let second = with_limits(opened(folder.path()), &world, |limits| {
        limits.retention = Duration::from_millis(50);
    });
    assert_eq!(second.recover().await.unwrap(), 0);
    eventually("its files go", || world.done("wipe") == 1).await;
    let retained = async || {
        let count = |connection: &rusqlite::Connection| {
            let retained = "SELECT count(*) FROM retained_workspaces";
            Ok(connection.query_row(retained, [], |row| row.get::<_, i64>(0))?)
        };
        second.store.read(count).await.unwrap()
    };
    // The row is deleted after the files.
    let forgotten = async {
        while retained().await > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), forgotten).await;
    assert!(waited.is_ok(), "it is kept in the log");
    let user = UserId::from("u");
    assert!(
        !second.discard(&id, &user).await.unwrap(),
        "nothing is left to discard"
    );
    assert_eq!(world.done("wipe"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_took_too_long_leaves_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.hold.store(true, Ordering::SeqCst);
    let host = with_limits(opened(folder.path()), &world, |limits| {
        limits.task_time = Duration::from_millis(50);
    });
    let session = host.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    host.start(&session);
    let seen = until(&mut frames, "longer than").await;
    assert!(
        seen.last()
            .unwrap()
            .1
            .contains("can be read for another 1 hour"),
        "{seen:?}"
    );
    eventually("the session ends", || host.count() == 0).await;
    assert_eq!((world.done("release"), world.done("wipe")), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_user_has_what_is_kept_removed_at_once_and_nobody_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let host = with_limits(opened(folder.path()), &world, impatient);
    let id = left_alone(&host, "do it").await;
    let (ann, bob) = (UserId::from("u"), UserId::from("bob"));
    let not_his = host.discard(&id, &bob).await;
    assert!(matches!(
        not_his,
        Err(WorkspaceLookupError::Lookup(LookupError::NotYours))
    ));
    let not_his = host.has_workspace(&id, &bob).await;
    assert!(matches!(
        not_his,
        Err(WorkspaceLookupError::Lookup(LookupError::NotYours))
    ));
    assert_eq!(world.done("wipe"), 0);
    assert!(host.discard(&id, &ann).await.unwrap());
    assert_eq!(world.done("wipe"), 1);
    assert!(!host.discard(&id, &ann).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_disk_is_short_the_oldest_files_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let host = with_limits(opened(folder.path()), &world, impatient);
    let mut ids = Vec::new();
    for task in ["one", "two"] {
        ids.push(left_alone(&host, task).await);
    }
    assert_eq!(world.done("wipe"), 0);
    world.short.store(true, Ordering::SeqCst);
    eventually("all files go", || world.done("wipe") == 2).await;
    assert_eq!(*world.wiped.lock(), ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_removed_now_are_tried_again_later_and_stay_readable() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.stuck.store(true, Ordering::SeqCst);
    let host = with_limits(opened(folder.path()), &world, impatient);
    let id = left_alone(&host, "do it").await;
    let user = UserId::from("u");
    let stuck = host.discard(&id, &user).await;
    assert!(matches!(stuck, Err(WorkspaceLookupError::NotRemoved)));
    world.stuck.store(false, Ordering::SeqCst);
    assert!(host.discard(&id, &user).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_removed_is_put_off_also_where_its_chat_was_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let host = with_limits(opened(folder.path()), &world, impatient);
    left_alone(&host, "do it").await;
    world.stuck.store(true, Ordering::SeqCst);
    let store = &host.store;
    // As the deletion of its chat leaves it.
    let overdue = |connection: &rusqlite::Connection| {
        Ok(connection.execute("UPDATE retained_workspaces SET uptime_ms = 0", [])?)
    };
    assert_eq!(store.write(overdue).await.unwrap(), 1);
    let is_overdue = async || {
        let before = store.uptime() - 3_600_000;
        !store.retained_before(before).await.unwrap().is_empty()
    };
    let put_off = async {
        while is_overdue().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let put_off = tokio::time::timeout(Duration::from_secs(10), put_off).await;
    put_off.expect("it is tried again and again, and others wait behind it");
}
