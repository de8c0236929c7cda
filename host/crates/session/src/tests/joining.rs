//! Rounds that lead to one another at once, and are written together.

use super::world::Script;
use super::*;

/// The number of rounds in which `hops` waits for nothing.
const HOPS: usize = 5;

fn at_once(effect: String) -> Command {
    Command::SetTimer(Timer {
        effect,
        delay_ms: 0,
    })
}

/// Steps five times with nothing to wait for, calls a tool, and does the same again.
fn hops(_: &Context, state: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let steps = state.map_or(0, |state| state.bytes.len());
    let say = say(&format!("step {steps}"));
    Ok(match steps {
        HOPS => vec![say, run("a")],
        steps if steps > 2 * HOPS => vec![say, finish("done")],
        _ => {
            assert_eq!(inputs.len(), 1, "{inputs:?}");
            vec![say, at_once(format!("t{steps}"))]
        }
    })
}

/// Plays a session on a host whose writes are lost from a number of them on. Returns what a client was shown.
async fn play_until_crash(
    folder: &Path,
    world: &World,
    writes: u64,
) -> (SessionId, Vec<(u64, String)>) {
    let host = sessions(folder, world);
    host.store.crash_after(writes);
    let session = host.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    host.start(&session);
    let seen = until(&mut frames, "completed").await;
    host.shutdown().await;
    (*session.id(), seen)
}

/// The number of a session's steps that the log holds after such a crash, and what a client was shown.
async fn steps_after(writes: u64, script: Script) -> (usize, Vec<(u64, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let (id, seen) = play_until_crash(folder.path(), &World::new(script), writes).await;
    let steps = opened(folder.path()).steps_from(id, None, 0).await.unwrap();
    (steps.len(), seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_with_nothing_to_wait_for_are_one_write() {
    let mut logged = Vec::new();
    for writes in 2..=4 {
        let (steps, seen) = steps_after(writes, hops).await;
        assert_dense(&seen);
        logged.push(steps);
    }
    assert_eq!(
        logged,
        [0, HOPS + 1, 2 * HOPS + 2],
        "the steps in the log after its creation and start, a third write, and a fourth"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_after_a_crash_between_rounds_that_are_written_together() {
    for writes in 1..=4 {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(hops);
        let (id, before) = play_until_crash(folder.path(), &world, writes).await;

        let second = sessions(folder.path(), &world);
        second.recover().await.unwrap();
        let session = second.get(&id, &UserId::from("u")).await.unwrap();
        second.start(&session);
        let seen = until(&mut session.subscribe(0), "completed").await;
        assert_dense(&seen);
        assert_eq!(seen[..before.len()], before, "after {writes} writes");
        assert!(world.done("tool a") <= 1, "after {writes} writes");
        let replay = second.replay(id).await.unwrap();
        assert_eq!(replay.different, None, "after {writes} writes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_the_rounds_that_are_written_together_can_be_read_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let host = sessions(folder.path(), &World::new(hops));
    let session = host.create(new("u")).await.unwrap();
    host.start(&session);
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert_dense(&seen);
    for step in 0..=2 * HOPS {
        let said = format!("step {step}");
        let frames = seen.iter().filter(|(_, frame)| frame.contains(&said));
        assert!(frames.count() > 0, "{said} is not shown");
    }
    let replay = host.replay(*session.id()).await.unwrap();
    assert_eq!(replay.different, None);
    let steps = host.store.steps_from(*session.id(), None, 0).await.unwrap();
    let numbers: Vec<u64> = steps.iter().map(|step| step.step).collect();
    assert_eq!(numbers, (0..2 * HOPS as u64 + 2).collect::<Vec<_>>());
}

/// Asks for models as long as there are any.
fn asks_on(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    Ok(match inputs.last() {
        Some(Input::EffectFailed(_)) => vec![finish("refused")],
        _ => vec![ask_model("m")],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_is_known_at_once_is_written_with_what_it_answers() {
    // Its creation, its start, and a write for each of the five model calls.
    let (steps, _) = steps_after(7, asks_on).await;
    assert_eq!(steps, 5);
    // The sixth is refused, and the task ends.
    let (steps, seen) = steps_after(8, asks_on).await;
    assert_eq!(steps, 7, "{:?}", names(&seen));
}

/// Goes on for as long as it may.
fn circles(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let asked = |input: &Input| matches!(input, Input::UserMessage(_));
    if inputs.iter().any(asked) {
        return Ok(vec![finish("done")]);
    }
    Ok(vec![say("on"), at_once("t".to_owned())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_that_lead_on_for_ever_are_written_and_shown_meanwhile() {
    let (steps, _) = steps_after(3, |context, state, inputs| {
        // A session of its own that ends, since a crash is seen by nobody.
        if context.step == 40 {
            return Ok(vec![finish("done")]);
        }
        circles(context, state, inputs)
    })
    .await;
    assert_eq!(steps, 16, "the most that are written together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_rounds_are_not_kept_back() {
    let (steps, _) = steps_after(3, |context, _, _| {
        if context.step == 40 {
            return Ok(vec![finish("done")]);
        }
        let large = "x".repeat(30_000);
        Ok(vec![say(&large), at_once("t".to_owned())])
    })
    .await;
    assert!(steps <= 2, "{steps} rounds of 60 KB waited for one another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_a_session_whose_rounds_lead_on_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let host = sessions(folder.path(), &World::new(circles));
    let session = host.create(new("u")).await.unwrap();
    let id = *session.id();
    let mut frames = session.subscribe(0);
    host.start(&session);
    until(&mut frames, "on").await;
    host.stop(&id).await;
    assert_eq!(host.count(), 0);
    let read = host.store.frames_after(id, &"u".into(), 0, usize::MAX);
    let frames = read.await.unwrap().frames;
    let frames: Vec<_> = frames
        .into_iter()
        .map(|(seq, frame)| (seq, frame.to_string()))
        .collect();
    assert_dense(&frames);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_that_were_to_be_written_together_are_written_once_that_is_possible() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(hops);
    world.hold_tools.store(true, Ordering::SeqCst);
    let host = sessions(folder.path(), &world);
    let session = host.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    host.start(&session);
    eventually("the tool begins", || world.done("tool a") == 1).await;
    host.store.fill_disk(true);
    world.hold_tools.store(false, Ordering::SeqCst);
    eventually("the log is ill", || host.log_failure().is_some()).await;
    host.store.fill_disk(false);
    let seen = until(&mut frames, "completed").await;
    assert_dense(&seen);
    let replay = host.replay(*session.id()).await.unwrap();
    assert_eq!(replay.different, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_while_they_cannot_be_written_leaves_a_log_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(hops);
    world.hold_tools.store(true, Ordering::SeqCst);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    eventually("the tool begins", || world.done("tool a") == 1).await;
    first.store.fill_disk(true);
    world.hold_tools.store(false, Ordering::SeqCst);
    eventually("the log is ill", || first.log_failure().is_some()).await;
    first.shutdown().await;
    drop((session, first));

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert_dense(&seen);
    let replay = second.replay(id).await.unwrap();
    assert_eq!(replay.different, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_only_with_the_last_before_a_stop_begins_at_the_next_start() {
    // The attempt that the stop hurries fails, and the next one is the last: which one that is, depends on what else
    // is written.
    let mut outcomes = Vec::new();
    for refused in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(worker);
        world.hold.store(true, Ordering::SeqCst);
        let first = sessions(folder.path(), &world);
        let session = first.create(new("u")).await.unwrap();
        let id = *session.id();
        first.start(&session);
        eventually("the model is asked", || world.done("model m m") == 1).await;
        first.store.fill_disk(true);
        world.hold.store(false, Ordering::SeqCst);
        eventually("the log is ill", || first.log_failure().is_some()).await;
        first.store.free_disk_after(refused);
        first.shutdown().await;
        drop((session, first));
        let before = world.any("tool");

        let second = sessions(folder.path(), &world);
        assert_eq!(second.recover().await.unwrap(), 1);
        let session = second.get(&id, &UserId::from("u")).await.unwrap();
        let seen = until(&mut session.subscribe(0), "completed").await;
        assert_dense(&seen);
        let replay = second.replay(id).await.unwrap();
        assert_eq!(replay.different, None);
        let steps = second.store.steps_from(id, None, 0).await.unwrap();
        let inputs: String = steps.into_iter().map(|step| step.inputs).collect();
        let ran = [world.done("tool a"), world.done("tool b")];
        assert!(ran <= [1, 1], "{ran:?}");
        let is_lost = inputs.contains("EffectLost");
        outcomes.push((before, ran, is_lost, inputs.contains("hello")));
    }
    assert!(
        outcomes.contains(&(0, [1, 1], false, true)),
        "nothing that was written at the last moment began at the next start; for each number of failures: tools \
         that ran before, each tool's runs, whether anything was lost, whether the answer is in the log: {outcomes:?}"
    );
}
