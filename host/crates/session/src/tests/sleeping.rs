//! Sessions that wait with nobody there, of which only an entry stays in memory.

use super::*;

fn user() -> UserId {
    UserId::from("u")
}

fn ask() -> Command {
    Command::Ask(Question {
        effect: "q".to_owned(),
        title: "And now?".to_owned(),
        detail: "{}".to_owned(),
    })
}

fn timer(effect: &str, delay_ms: u64) -> Command {
    Command::SetTimer(Timer {
        effect: effect.to_owned(),
        delay_ms,
    })
}

/// Asks again after each answer, unless that says to wait so many milliseconds, or that it is done.
fn asks(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(ask()),
            Input::Answered(answer) => match answer.text.split_once(' ') {
                Some(("wait", millis)) => {
                    commands.push(timer("late", 3_600_000));
                    commands.push(timer("t", millis.parse().unwrap()));
                }
                Some(("both", millis)) => {
                    commands.push(timer("t", millis.parse().unwrap()));
                    commands.push(ask());
                }
                _ if answer.text == "done" => commands.push(finish("finished")),
                _ => {
                    commands.push(say(&format!("heard {}", answer.text)));
                    commands.push(ask());
                }
            },
            Input::TimerFired(timer) => {
                commands.push(say(&format!("fired {timer}")));
                commands.push(finish("waited"));
            }
            Input::UserMessage(said) => commands.push(say(&format!("heard {said:?}"))),
            _ => {}
        }
    }
    Ok(commands)
}

/// A host without sandboxes, whose sessions sleep soon.
fn host(folder: &Path, change: fn(&mut SessionLimits)) -> Host {
    let world = World::new(asks);
    world.sandbox.store(false, Ordering::SeqCst);
    with_limits(opened(folder), &world, change)
}

/// A session that has asked its question, and whose user has left.
async fn asleep(host: &Host) -> SessionId {
    let session = host.create(new("u")).await.unwrap();
    host.start(&session);
    until(&mut session.subscribe(0), "And now?").await;
    let id = *session.id();
    drop(session);
    sleeps(host).await;
    id
}

async fn sleeps(host: &Host) {
    eventually("the session sleeps", || host.count_asleep() == 1).await;
}

/// Tells a session something, and waits for what comes of it.
async fn told(host: &Host, id: &SessionId, text: &str, shown: &str) -> Vec<(u64, String)> {
    let session = host.get(id, &user()).await.unwrap();
    session.message(text).await.unwrap();
    until(&mut session.subscribe(0), shown).await
}

async fn end_reason(host: &Host, id: &SessionId) -> String {
    eventually("the session ends", || host.count() == 0).await;
    let details = host.details(id, &user()).await.unwrap();
    details.end_reason.unwrap()
}

async fn replays(host: &Host, id: SessionId) {
    let replay = host.replay(id).await.unwrap();
    assert_eq!(replay.different, None, "a replay comes to something else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_with_nobody_there_sleeps_and_goes_on_when_it_is_told_something() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |_| {});
    let id = asleep(&host).await;
    for round in 0..5 {
        let seen = told(&host, &id, &format!("r{round}"), &format!("heard r{round}")).await;
        assert_dense(&seen);
        sleeps(&host).await;
    }
    let seen = told(&host, &id, "done", "finished").await;
    assert_dense(&seen);
    replays(&host, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_in_memory_while_anyone_holds_it_or_may_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |_| {});
    let id = asleep(&host).await;
    let a_while = || tokio::time::sleep(Duration::from_millis(100));
    let session = host.get(&id, &user()).await.unwrap();
    a_while().await;
    assert_eq!(host.count_asleep(), 0, "its handle is held");
    let mut frames = session.subscribe(0);
    drop(session);
    a_while().await;
    assert_eq!(host.count_asleep(), 0, "it has a subscriber");
    until(&mut frames, "And now?").await;
    let guard = host.get(&id, &user()).await.unwrap().attach();
    drop(frames);
    a_while().await;
    assert_eq!(host.count_asleep(), 0, "a client is attached");
    drop(guard);
    sleeps(&host).await;

    let session = host.get(&id, &user()).await.unwrap();
    let position = session.open_position(Features::default(), 0);
    session.close_position(&position, Some(ConnectionLoss::Broken));
    drop(session);
    a_while().await;
    assert_eq!(host.count_asleep(), 0, "a client may come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timer_wakes_its_session_once_and_the_others_run_on() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |limits| {
        limits.task_time = Duration::from_secs(60);
    });
    let id = asleep(&host).await;
    drop(told(&host, &id, "wait 400", "").await);
    sleeps(&host).await;
    eventually("the timer wakes it", || host.count_asleep() == 0).await;
    sleeps(&host).await;
    let session = host.get(&id, &user()).await.unwrap();
    let seen = until(&mut session.subscribe(0), "waited").await;
    assert_dense(&seen);
    let fired = seen.iter().filter(|(_, frame)| frame.contains("fired t"));
    assert_eq!(fired.count(), 1, "{seen:?}");
    replays(&host, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_a_task_sleeps_without_a_question_is_the_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |limits| {
        limits.task_time = Duration::from_millis(900);
    });
    let id = asleep(&host).await;
    // Longer than the task may take, but its question is open.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(told(&host, &id, "wait 60000", "").await);
    sleeps(&host).await;
    // Woken in between, it has not used less.
    drop(host.get(&id, &user()).await.unwrap());
    sleeps(&host).await;
    let reason = end_reason(&host, &id).await;
    assert!(reason.starts_with("The task took longer than"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sleeps_is_listed_counted_and_found_by_its_work_and_by_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |limits| limits.sessions_per_user = 1);
    let id = asleep(&host).await;
    let listed = host.list(&user()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].session_id, &*listed[0].task), (id, "do it"));
    assert!(listed[0].is_alive && host.list(&"v".into()).await.unwrap().is_empty());
    assert_eq!((host.count(), host.count_asleep()), (1, 1));
    let by_plugins: Vec<_> = host.count_by_plugins().into_values().collect();
    assert_eq!(by_plugins, [1]);
    assert!(matches!(
        host.create(new("u")).await,
        Err(CreateError::TooManySessions(1))
    ));
    assert!(matches!(
        host.get(&id, &"v".into()).await,
        Err(GetSessionError::Lookup(LookupError::NotYours))
    ));
    assert!(!host.has_workspace(&id, &user()).await.unwrap());
    assert_eq!(host.count_asleep(), 1, "nothing of this wakes it");
    let same = host.find_or_create(new("u")).await.unwrap();
    assert_eq!(*same.id(), id);
    assert_eq!((host.count(), host.count_asleep()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sleeps_is_left_asleep_by_a_restart_and_goes_on_after_it_and_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let first = host(folder.path(), |_| {});
    let id = asleep(&first).await;
    assert_eq!(first.shutdown().await.sessions, 1);
    drop(first);

    let second = host(folder.path(), |_| {});
    assert_eq!(second.recover().await.unwrap(), 1);
    assert_eq!(second.count_asleep(), 1, "it need not run for that");
    drop(told(&second, &id, "one", "heard one").await);
    sleeps(&second).await;
    second.store.crash_after(0);
    second.shutdown().await;
    drop(second);

    let third = host(folder.path(), |_| {});
    assert_eq!(third.recover().await.unwrap(), 1);
    let seen = told(&third, &id, "done", "finished").await;
    assert_dense(&seen);
    replays(&third, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timer_wakes_who_sleeps_also_where_it_runs_on_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let first = host(folder.path(), |_| {});
    let id = asleep(&first).await;
    drop(told(&first, &id, "both 1200", "").await);
    sleeps(&first).await;
    first.shutdown().await;
    drop(first);

    let second = host(folder.path(), |_| {});
    assert_eq!(second.recover().await.unwrap(), 1);
    assert_eq!(second.count_asleep(), 1);
    eventually("the timer wakes it", || second.count_asleep() == 0).await;
    let session = second.get(&id, &user()).await.unwrap();
    let seen = until(&mut session.subscribe(0), "waited").await;
    assert_dense(&seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_a_task_slept_before_a_restart_is_the_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let first = host(folder.path(), |_| {});
    let id = asleep(&first).await;
    drop(told(&first, &id, "wait 60000", "").await);
    sleeps(&first).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    first.shutdown().await;
    drop(first);

    let second = host(folder.path(), |limits| {
        limits.task_time = Duration::from_secs(1);
    });
    assert_eq!(second.recover().await.unwrap(), 1);
    assert_eq!(
        end_reason(&second, &id).await,
        "The task took longer than 1 second, and was ended."
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_held_is_woken_by_no_timer_and_its_time_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let first = host(folder.path(), |_| {});
    let id = asleep(&first).await;
    drop(told(&first, &id, "wait 1300", "").await);
    sleeps(&first).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    first.shutdown().await;
    drop(first);

    let second = host(folder.path(), |limits| {
        limits.task_time = Duration::from_secs(2);
    });
    second.recover_held().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!((second.count_held(), second.count_asleep()), (1, 1));
    let session = second.get(&id, &user()).await.unwrap();
    second.start(&session);
    let seen = until(&mut session.subscribe(0), "waited").await;
    assert_dense(&seen);
    drop(session);

    // Of its two seconds it has used one, and nothing while it was held.
    second.shutdown().await;
    drop(second);
    let replayed = host(folder.path(), |_| {});
    replays(&replayed, id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sleeps_can_be_stopped_and_with_nothing_to_do_ends_after_the_grace_time() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |limits| {
        limits.grace = Duration::from_millis(500);
    });
    let id = asleep(&host).await;
    assert!(host.stop(&id).await);
    assert_eq!(end_reason(&host, &id).await, "Stopping the session.");

    let id = asleep(&host).await;
    drop(told(&host, &id, "done", "finished").await);
    sleeps(&host).await;
    let reason = end_reason(&host, &id).await;
    assert!(reason.starts_with("Nobody was connected"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_gives_its_sandbox_back_before_it_sleeps_and_keeps_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let host = with_limits(opened(folder.path()), &world, |limits| {
        limits.grace = Duration::from_millis(200);
    });
    let id = asleep(&host).await;
    assert_eq!((world.done("close"), world.done("wipe")), (1, 0));
    assert!(host.has_workspace(&id, &user()).await.unwrap());
    assert_eq!((host.count_asleep(), host.count_with_workspace()), (1, 1));
    let session = host.get(&id, &user()).await.unwrap();
    assert!(session.has_workspace());
    let seen = until(&mut session.subscribe(0), "was given back").await;
    assert_dense(&seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_repository_is_to_be_cloned_again_stays_awake_until_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let host = with_limits(opened(folder.path()), &world, |limits| {
        limits.grace = Duration::from_millis(50);
    });
    let id = asleep(&host).await;
    world.lost.store(true, Ordering::SeqCst);
    drop(told(&host, &id, "more", "heard more").await);
    world.lost.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(host.count_asleep(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_be_woken_sleeps_on_and_its_user_may_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |_| {});
    let id = asleep(&host).await;
    let spoil = |policy: &'static str| {
        host.store.write(move |connection| {
            Ok(connection.execute("UPDATE sessions SET policy = ?1", [policy])?)
        })
    };
    let policy = host.details(&id, &user()).await.unwrap().policy;
    assert_eq!(spoil("gone").await.unwrap(), 1);
    assert!(matches!(
        host.get(&id, &user()).await,
        Err(GetSessionError::Wake(WakeError::Resume(_)))
    ));
    assert!(!host.stop(&id).await);
    assert_eq!(host.count_asleep(), 1);
    let other = host.find_or_create(new("u")).await.unwrap();
    assert_ne!(*other.id(), id);

    let policy: &'static str = policy.leak();
    assert_eq!(spoil(policy).await.unwrap(), 2);
    drop(told(&host, &id, "done", "finished").await);
}

/// Many things are said to one session, at any moment of its falling asleep and waking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_said_is_lost_between_sleeping_and_waking() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), |limits| limits.sleep_after = Duration::ZERO);
    let id = asleep(&host).await;
    let (mut said, mut slept) = (Vec::new(), 0);
    for round in 0..200_u64 {
        let text = format!("m{round};");
        let session = host.get(&id, &user()).await.unwrap();
        session.message(text.clone()).await.unwrap();
        drop(session);
        said.push(text);
        // Sooner, later, and in the middle of it.
        tokio::time::sleep(Duration::from_micros(round % 17 * 500)).await;
        slept += usize::from(host.count_asleep() == 1);
    }
    assert!(slept > 5, "it slept {slept} times only");
    let session = host.get(&id, &user()).await.unwrap();
    let seen = until(&mut session.subscribe(0), "m199;").await;
    let all: String = seen.into_iter().map(|(_, frame)| frame).collect();
    for text in said {
        assert!(all.contains(&text), "{text} was lost");
    }
    replays(&host, id).await;
}
