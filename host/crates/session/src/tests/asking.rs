//! Sessions that wait for their user's answer.

use super::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn question() -> Command {
    Command::Ask(Question {
        effect: "q".to_owned(),
        title: "Which one?".to_owned(),
        detail: "{}".to_owned(),
    })
}

/// Asks a question, then does what the answer says.
fn asks(ctx: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(question()),
            Input::Answered(answer) if answer.text == "think" => commands.push(ask_model("m")),
            Input::Answered(answer) if answer.text == "work" => commands.push(run("a")),
            Input::Answered(_) => {
                commands.push(finish(&format!("left: {}", ctx.millis_left.unwrap())));
            }
            Input::ToolReplied(_) => commands.push(finish("worked")),
            _ => {}
        }
    }
    Ok(commands)
}

fn left(frames: &[(u64, String)]) -> u64 {
    let (_, last) = frames.last().unwrap();
    let frame: serde_json::Value = serde_json::from_str(last).unwrap();
    let text = frame["message"].as_str().unwrap();
    text.strip_prefix("left: ").unwrap().parse().unwrap()
}

#[tokio::test]
async fn while_a_question_is_open_the_tasks_time_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.task_time = Duration::from_secs(2)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "Which one?").await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    // Something to write in between, which is not an answer.
    world.grow(1);
    until(&mut frames, "g0").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    session.message("this one").await.unwrap();
    let seen = until(&mut frames, "left: ").await;
    let left = left(&seen);
    assert!(
        (1..=2_000).contains(&left),
        "the policy was told that {left} ms are left"
    );
    assert!(session.is_alive());
}

#[tokio::test]
async fn after_the_answer_the_tasks_time_runs_again() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    world.hold.store(true, Ordering::SeqCst);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.task_time = Duration::from_secs(2)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "Which one?").await;
    session.message("think").await.unwrap();
    let seen = until(&mut frames, "longer than").await;
    assert_eq!(names(&seen).last().unwrap(), "error", "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_days_that_a_question_waits_are_not_the_tasks_also_over_restarts_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let mut host = sessions(folder.path(), &world);
    let mut session = host.create(new("u")).await.unwrap();
    let id = *session.id();
    host.start(&session);
    until(&mut session.subscribe(0), "Which one?").await;
    for _ in 0..2 {
        host.shutdown().await;
        drop((session, host));
        host = sessions(folder.path(), &world);
        let back = host.store.write(|connection| {
            let moved = "UPDATE sessions SET uptime_ms = uptime_ms - ?1";
            Ok(connection.execute(moved, [i64::try_from(DAY_MS).unwrap()])?)
        });
        assert_eq!(back.await.unwrap(), 1);
        assert_eq!(host.recover().await.unwrap(), 1);
        session = host.get(&id, &UserId::from("u")).await.unwrap();
    }
    let mut frames = session.subscribe(0);
    until(&mut frames, "Which one?").await;
    session.message("this one").await.unwrap();
    let seen = until(&mut frames, "left: ").await;
    let left = left(&seen);
    assert!(
        (1..=20_000).contains(&left),
        "of 20 s the policy was told that {left} ms are left"
    );
}

#[tokio::test]
async fn a_session_that_waits_for_an_answer_gives_its_sandbox_back_and_goes_on_when_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.grace = Duration::from_millis(50)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let guard = session.attach();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "Which one?").await;
    drop(guard);
    eventually("the sandbox is given back", || world.done("close") == 1).await;
    let seen = until(&mut frames, "was given back").await;
    assert!(session.is_alive(), "{seen:?}");
    assert_eq!((world.done("wipe"), world.done("reopen")), (0, 0));

    let guard = session.attach();
    session.message("work").await.unwrap();
    let seen = until(&mut frames, "worked").await;
    assert!(
        names(&seen).contains(&"CmdOutputObservation".to_owned()),
        "{seen:?}"
    );
    assert_eq!((world.done("reopen"), world.done("tool a")), (1, 1));
    // The sandbox that came with the answer is subscribed to like the first.
    world.grow(7);
    until(&mut frames, "g6").await;

    // It no longer waits, so it ends after the grace period.
    drop(guard);
    eventually("the session ends", || sessions.count() == 0).await;
    assert_eq!((world.done("close"), world.done("wipe")), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_nobody_answers_for_a_week_ends_its_session_also_after_a_restart() {
    for (days, ends) in [(6, false), (8, true)] {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(asks);
        let first = sessions(folder.path(), &world);
        let session = first.create(new("u")).await.unwrap();
        let id = *session.id();
        first.start(&session);
        until(&mut session.subscribe(0), "Which one?").await;
        first.shutdown().await;
        drop((session, first));

        let store = opened(folder.path());
        let second = with_limits(store, &world, |limits| {
            limits.grace = Duration::from_millis(300)
        });
        let back = i64::try_from(days * DAY_MS).unwrap();
        let moved = second.store.write(move |connection| {
            let moved = "UPDATE sessions SET uptime_ms = uptime_ms - ?1";
            Ok(connection.execute(moved, [back])?)
        });
        assert_eq!(moved.await.unwrap(), 1);
        assert_eq!(second.recover().await.unwrap(), 1);
        let session = second.get(&id, &UserId::from("u")).await.unwrap();
        if ends {
            eventually("the session ends", || second.count() == 0).await;
            assert_eq!((world.done("release"), world.done("wipe")), (1, 0));
        } else {
            // The sweep has run several times.
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            assert!(session.is_alive(), "it ended after {days} days");
        }
    }
}

/// Asks a question, and continues by itself after a moment.
fn is_impatient(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = asks(context, state, inputs)?;
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(Command::SetTimer(Timer {
                effect: "t".to_owned(),
                delay_ms: 1_500,
            })),
            Input::TimerFired(_) => commands.push(ask_model("m")),
            _ => {}
        }
    }
    Ok(commands)
}

#[tokio::test]
async fn a_session_that_stops_waiting_by_itself_works_on_with_nobody_there_to_its_own_limits() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(is_impatient);
    world.hold.store(true, Ordering::SeqCst);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.grace = Duration::from_millis(100);
        limits.task_time = Duration::from_secs(2);
    });
    let session = sessions.create(new("u")).await.unwrap();
    let guard = session.attach();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "Which one?").await;
    drop(guard);
    eventually("the sandbox is given back", || world.done("close") == 1).await;
    eventually("the model is asked", || world.done("model m m") == 1).await;
    let seen = until(&mut frames, "longer than").await;
    assert_eq!(names(&seen).last().unwrap(), "error", "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_lived_on_over_a_restart_is_given_back_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(asks);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    until(&mut session.subscribe(0), "Which one?").await;
    first.shutdown().await;
    drop((session, first));
    assert_eq!(world.done("close"), 1);

    world.lives.store(true, Ordering::SeqCst);
    let store = opened(folder.path());
    let second = with_limits(store, &world, |limits| {
        limits.grace = Duration::from_millis(300)
    });
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    eventually("the sandbox is listened to", || world.done("reopen") == 1).await;
    eventually("it is given back", || world.done("close") == 2).await;
    assert!(session.is_alive());
}
