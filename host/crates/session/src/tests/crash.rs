//! Recovery from a crash of the host after each single write.

use super::*;

/// The number of writes that one session of `worker` takes, from its creation to `completed`.
const WRITES: u64 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_after_a_crash_at_any_write_and_runs_no_effect_twice() {
    for writes in 1..=WRITES {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(worker);
        let first = sessions(folder.path(), &world);
        first.store.crash_after(writes);
        let session = first.create(new("u")).await.unwrap();
        let id = *session.id();
        let mut frames = session.subscribe(0);
        first.start(&session);
        let before = until(&mut frames, "completed").await;
        first.shutdown().await;
        drop((frames, session, first));

        let second = sessions(folder.path(), &world);
        assert_eq!(second.recover().await.unwrap(), 1, "after {writes} writes");
        let session = second.get(&id, &UserId::from("u")).await.unwrap();
        second.start(&session);
        let mut frames = session.subscribe(0);
        let seen = until(&mut frames, "completed").await;
        assert_dense(&seen);
        assert_eq!(
            seen[..before.len()],
            before,
            "after {writes} writes: what was shown is what is written"
        );
        assert_eq!(
            names(&seen)
                .iter()
                .filter(|name| *name == "completed")
                .count(),
            1
        );
        for effect in ["model m m", "tool a", "tool b"] {
            assert!(world.done(effect) <= 1, "{effect} after {writes} writes");
        }
        let row = second.store.find(id, None).await.unwrap().unwrap();
        let key = row.fixed.api_key.unwrap();
        assert!(!key.windows(6).any(|part| part == b"sk-key"));
        let replay = second.replay(id).await.unwrap();
        assert_eq!(replay.different, None);
        second.stop(&id).await;
        assert_eq!(second.recover().await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_effect_is_never_run_again_and_its_policy_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    world.hold.store(true, Ordering::SeqCst);
    first.start(&session);
    while world.done("model m m") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    first.shutdown().await;
    drop((session, first));
    world.hold.store(false, Ordering::SeqCst);

    let second = sessions(folder.path(), &world);
    second.recover().await.unwrap();
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert_eq!(
        names(&seen),
        [
            "initializing",
            "ready",
            "task_start",
            "AgentErrorObservation",
            "completed"
        ]
    );
    assert_eq!(
        (
            world.done("model m m"),
            world.done("provision 5"),
            world.done("reopen")
        ),
        (1, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_was_ending_ends_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    until(&mut session.subscribe(0), "completed").await;
    // The round that says `stopping` is written, the one that says `ended` is not.
    first.store.crash_after(1);
    first.stop(&id).await;
    assert_eq!(world.done("wipe"), 1);
    first.shutdown().await;
    drop((session, first));

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    second.stop(&id).await;
    assert_eq!((world.done("wipe"), second.count()), (2, 0));
    assert_eq!(second.recover().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_place_was_being_made_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    // The creation and the start are written, the first step is not.
    first.store.crash_after(2);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    let mut frames = session.subscribe(0);
    first.start(&session);
    until(&mut frames, "completed").await;
    first.shutdown().await;
    drop((frames, session, first));

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert!(
        names(&seen).contains(&"completed".to_owned()),
        "nobody started it again: {:?}",
        names(&seen)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_the_host_was_down_is_not_the_tasks_and_what_it_used_before_is() {
    for (used_before, ends) in [(1_000_i64, false), (20_000, true)] {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(worker);
        let first = sessions(folder.path(), &world);
        let session = first.create(new("u")).await.unwrap();
        let id = *session.id();
        world.hold.store(true, Ordering::SeqCst);
        first.start(&session);
        eventually("the model is asked", || world.done("model m m") == 1).await;
        first.shutdown().await;
        drop((session, first));
        world.hold.store(false, Ordering::SeqCst);

        let second = sessions(folder.path(), &world);
        // A day passed, by the wall clock.
        let a_day_ago = second.store.write(move |connection| {
            let moved = "UPDATE sessions SET updated_at = updated_at - 86400000,
                task_started_at = task_started_at - 86400000, task_used_ms = task_used_ms + ?1";
            Ok(connection.execute(moved, [used_before])?)
        });
        assert_eq!(a_day_ago.await.unwrap(), 1);
        second.recover().await.unwrap();
        if ends {
            // It may be over before anybody could look at it.
            eventually("it ends", || second.count() == 0).await;
            let read = second.store.frames_after(id, &"u".into(), 0, usize::MAX);
            let frames = read.await.unwrap().frames;
            let last = frames.last().map(|(_, frame)| frame.to_string());
            assert!(
                last.is_some_and(|last| last.contains("longer than 20 seconds")),
                "{frames:?}"
            );
        } else {
            let session = second.get(&id, &UserId::from("u")).await.unwrap();
            let seen = until(&mut session.subscribe(0), "completed").await;
            assert!(!names(&seen).contains(&"error".to_owned()), "{seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_task_used_is_written_when_the_host_stops() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    world.hold.store(true, Ordering::SeqCst);
    first.start(&session);
    eventually("the model is asked", || world.done("model m m") == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = first.store.uptime();
    first.shutdown().await;
    drop((session, first));
    let store = opened(folder.path());
    let used = store.read(|connection| {
        let used = "SELECT task_used_ms FROM sessions";
        Ok(connection.query_row(used, [], |row| row.get::<_, i64>(0))?)
    });
    let used = used.await.unwrap();
    assert!((300..20_000).contains(&used), "{used} ms");
    assert!(store.uptime() >= before, "the host's uptime went back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_stays_when_the_end_of_its_session_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    until(&mut session.subscribe(0), "completed").await;
    first.store.crash_after(0);
    first.stop(&id).await;
    assert_eq!(
        world.done("wipe"),
        0,
        "the log calls the session alive, and its files are gone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_step_has_taken_yet_is_taken_once_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    world.hold_fetch.store(true, Ordering::SeqCst);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    while world.done("fetch") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The repository is being cloned, so nothing processes the message yet.
    session.message("and one thing more").await.unwrap();
    first.shutdown().await;
    drop((session, first));
    world.hold_fetch.store(false, Ordering::SeqCst);

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    until(&mut session.subscribe(0), "completed").await;
    second.shutdown().await;
    drop((session, second));

    let third = sessions(folder.path(), &world);
    assert_eq!(third.recover().await.unwrap(), 1);
    let steps = third.store.steps_from(id, None, 0).await.unwrap();
    let inputs: String = steps.into_iter().map(|step| step.inputs).collect();
    assert_eq!(
        inputs.matches("and one thing more").count(),
        1,
        "how often the policy was told: {inputs}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_this_host_cannot_go_on_with_is_left_for_one_that_can() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    until(&mut session.subscribe(0), "completed").await;
    first.shutdown().await;
    drop((session, first));

    let other_key = with_key(folder.path(), &world, "another key");
    assert_eq!(other_key.recover().await.unwrap(), 0);
    assert_eq!(world.done("wipe"), 0, "its files are gone");
    other_key.shutdown().await;
    drop(other_key);

    let third = sessions(folder.path(), &world);
    assert_eq!(third.recover().await.unwrap(), 1);
    let session = third.get(&id, &UserId::from("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    until(&mut frames, "completed").await;
    session.message("go on").await.unwrap();
    until(&mut frames, "completed").await;
}

/// Returns a model's text, calls a tool, and ends with the same text and more.
fn repeats_itself(
    _: &Context,
    _: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    Ok(match inputs.last() {
        Some(Input::Started(_)) => vec![ask_model("m")],
        Some(Input::ModelReplied(_)) => vec![run("a")],
        Some(Input::EffectLost(_)) => vec![finish("hello\n\nNot pushed: 1 commit.")],
        other => panic!("{other:?}"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_said_before_a_restart_is_not_told_again_at_its_tasks_end() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(repeats_itself);
    let first = sessions(folder.path(), &world);
    world.hold_tools.store(true, Ordering::SeqCst);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    eventually("the tool begins", || world.done("tool a") == 1).await;
    first.shutdown().await;
    drop((session, first));

    let second = sessions(folder.path(), &world);
    second.recover().await.unwrap();
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    let shown = |text: &str| {
        let holds = |(_, frame): &&(u64, String)| frame.contains(text);
        seen.iter().filter(holds).count()
    };
    assert_eq!(shown("hello"), 1, "{seen:#?}");
    assert_eq!(shown("Not pushed: 1 commit."), 1, "{seen:#?}");
}

/// Waits twice, the second time for long.
fn dawdles(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let timer = |effect: &str, delay_ms| {
        Command::SetTimer(Timer {
            effect: effect.to_owned(),
            delay_ms,
        })
    };
    let commands = inputs.iter().filter_map(|input| match input {
        Input::Started(_) => Some(timer("short", 1)),
        Input::TimerFired(_) => Some(timer("long", 3_600_000)),
        _ => None,
    });
    Ok(commands.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_round_leaves_pending_is_put_in_its_place_soon_though_no_round_follows() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(dawdles);
    let host = sessions(folder.path(), &world);
    let session = host.create(new("u")).await.unwrap();
    host.start(&session);
    let pending = async || {
        let count = "SELECT count(*) FROM steps JOIN sessions ON sessions.id = session_id
            WHERE pending IS NOT NULL AND row >= sessions.next_row AND row > 1";
        let read = |connection: &rusqlite::Connection| {
            Ok(connection.query_row(count, [], |row| row.get::<_, i64>(0))?)
        };
        host.store.read(read).await.unwrap()
    };
    for (what, wanted) in [("left pending", 1), ("put in its place", 0)] {
        let wait = async {
            while pending().await != wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "the second round is not {what}");
    }
    host.shutdown().await;
}
