//! Periods in which the log cannot be written.

use super::*;

/// Reads until a notice or a frame contains a text. Returns everything that came, with notices
/// numbered 0.
async fn noticed(subscription: &mut Subscription, text: &str) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    let read = async {
        loop {
            match subscription.next().await {
                SubscriptionItem::Frames(frames) => seen.extend(
                    frames
                        .into_iter()
                        .map(|(seq, frame)| (seq, frame.to_string())),
                ),
                SubscriptionItem::Notice(frame) => seen.push((0, frame.to_string())),
                SubscriptionItem::Delta(_) => {}
                end => panic!("{end:?} before {text}: {seen:?}"),
            }
            if seen.iter().any(|(_, frame)| frame.contains(text)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("in time");
    seen
}

fn numbered(seen: Vec<(u64, String)>) -> Vec<(u64, String)> {
    seen.into_iter().filter(|(seq, _)| *seq > 0).collect()
}

/// A session whose model has not answered, on a disk that is now full.
async fn on_a_full_disk(folder: &Path, world: &World) -> (Host, Arc<SessionHandle>) {
    let sessions = sessions(folder, world);
    world.hold.store(true, Ordering::SeqCst);
    let session = sessions.create(new("u")).await.unwrap();
    sessions.start(&session);
    eventually("the model to be asked", || world.done("model m m") == 1).await;
    sessions.store.fill_disk(true);
    world.hold.store(false, Ordering::SeqCst);
    (sessions, session)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_waits_while_its_log_cannot_be_written_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let (sessions, session) = on_a_full_disk(folder.path(), &world).await;
    let mut frames = session.subscribe(0);
    let mut deltas = session.subscribe(0).with_deltas();
    let mut before = noticed(&mut frames, "paused").await;
    noticed(&mut deltas, "paused").await;
    assert!(before.last().unwrap().1.contains("the disk is full"));
    // A later client is told as well.
    noticed(&mut session.subscribe(0), "paused").await;
    assert!(sessions.log_failure().is_some());
    assert_eq!(world.any("tool"), 0, "nothing begins that is not written");
    assert!(!before.iter().any(|(_, frame)| frame.contains("hello")));
    assert_eq!(
        session.message("more").await,
        Err(MessageRejected::Unwritten),
        "nothing is acknowledged meanwhile"
    );
    assert!(matches!(
        sessions.create(new("v")).await.map(drop),
        Err(CreateError::Paused(TransientFailure::DiskFull))
    ));

    sessions.store.fill_disk(false);
    before.extend(noticed(&mut frames, "completed").await);
    if !before.iter().any(|(_, frame)| frame.contains("resumed")) {
        // Who reads late is shown what there is first.
        before.extend(noticed(&mut frames, "resumed").await);
    }
    let shown = numbered(before);
    assert_dense(&shown);
    for effect in ["model m m", "tool a", "tool b"] {
        assert_eq!(world.done(effect), 1, "{effect}");
    }
    eventually("the store to be well", || sessions.log_failure().is_none()).await;
    noticed(&mut deltas, "completed").await;
    let replay = sessions.replay(*session.id()).await.unwrap();
    assert_eq!(replay.different, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_stopped_while_it_waits_works_no_more_and_ends_when_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let (sessions, session) = on_a_full_disk(folder.path(), &world).await;
    let mut frames = session.subscribe(0);
    noticed(&mut frames, "paused").await;
    let id = *session.id();
    let stopping = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.stop(&id).await }
    });
    eventually("the sandbox to be closed", || world.any("close") > 0).await;
    assert!(!stopping.is_finished(), "it is not written that it ended");
    assert_eq!(world.done("wipe"), 0);

    sessions.store.fill_disk(false);
    stopping.await.unwrap();
    assert_eq!((world.any("tool"), world.done("wipe")), (0, 1));
    assert_eq!(sessions.count(), 0);
    drop((frames, session));
    assert_eq!(sessions.recover().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_goes_down_does_not_wait_for_its_disk_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let (first, session) = on_a_full_disk(folder.path(), &world).await;
    let id = *session.id();
    let mut frames = session.subscribe(0);
    let shown = numbered(noticed(&mut frames, "paused").await);
    tokio::time::timeout(Duration::from_secs(10), first.shutdown())
        .await
        .expect("a shutdown that does not wait");
    drop((frames, session, first));

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert_eq!(seen[..shown.len()], shown);
    assert_dense(&seen);
    assert_eq!(world.done("model m m"), 1, "it is lost, and not run again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_waits_where_its_place_cannot_be_made_now_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.no_room.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    sessions.start(&session);
    let mut frames = session.subscribe(0);
    let told = noticed(&mut frames, "paused").await;
    assert!(
        told.last()
            .unwrap()
            .1
            .contains("no file descriptor is left")
    );
    eventually("it to be tried again", || world.any("provision") > 1).await;
    // A session that is stopped during the pause does not wait.
    let other = sessions.create(new("v")).await.unwrap();
    sessions.start(&other);
    noticed(&mut other.subscribe(0), "paused").await;
    sessions.stop(other.id()).await;
    assert_eq!(sessions.count(), 1);

    world.no_room.store(false, Ordering::SeqCst);
    noticed(&mut frames, "resumed").await;
    let seen = noticed(&mut frames, "completed").await;
    assert!(
        !seen
            .iter()
            .any(|(_, frame)| frame.contains(r#""type":"error""#)),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_that_a_session_was_stopped_when_the_host_goes_down_before_that_is_written()
{
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let (first, session) = on_a_full_disk(folder.path(), &world).await;
    let id = *session.id();
    let mut frames = session.subscribe(0);
    noticed(&mut frames, "paused").await;
    let stopping = tokio::spawn({
        let first = first.clone();
        async move { first.stop(&id).await }
    });
    eventually("the sandbox to be closed", || world.any("close") > 0).await;
    first.shutdown().await;
    assert!(!stopping.await.unwrap(), "it is not written that it ended");
    let end = loop {
        match frames.next().await {
            SubscriptionItem::Ended(reason) => break reason,
            SubscriptionItem::Frames(_)
            | SubscriptionItem::Notice(_)
            | SubscriptionItem::Delta(_) => {}
            gap @ SubscriptionItem::Gap(..) => panic!("{gap:?}"),
        }
    };
    assert!(end.is_restart(), "{end:?}");
    let user = UserId::from("u");
    assert!(
        first.get(&id, &user).await.is_err(),
        "it lives here no more"
    );
    assert!(first.is_resumable(&id, &user).await, "and is not over");
    assert!(!first.is_resumable(&id, &UserId::from("v")).await);
    drop((frames, session, first));

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    assert!(second.stop(&id).await);
    assert!(!second.is_resumable(&id, &user).await);
    assert_eq!(world.done("wipe"), 1);
    assert_eq!(second.recover().await.unwrap(), 0);
}
