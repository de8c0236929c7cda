//! Effects that a policy cancels, and what clients see of their end.

use super::*;

/// Calls two tools, the second of which waits for the first; cancels both on the user's message.
fn gives_up(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    Ok(match &inputs[0] {
        Input::Started(_) => vec![run("a"), run("b")],
        Input::UserMessage(_) => vec![
            Command::Cancel("a".to_owned()),
            Command::Cancel("b".to_owned()),
            Command::Cancel("a".to_owned()),
        ],
        Input::EffectFailed(failure) => {
            assert_eq!(failure.error.kind, ErrorKind::Cancelled);
            vec![finish("given up")]
        }
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn each_run_that_its_policy_cancels_gets_an_observation_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(gives_up);
    world.hold.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    eventually("the first tool runs", || world.done("tool a") == 1).await;
    session.message("stop that").await.unwrap();
    let seen = until(&mut frames, "completed").await;
    let answers = seen.iter().filter(|(_, frame)| {
        frame.contains("CmdOutputObservation")
            && frame.contains("cancelled this before it was done")
    });
    assert_eq!(answers.count(), 2, "{seen:?}");
    let actions = seen
        .iter()
        .filter(|(_, frame)| frame.contains("CmdRunAction"));
    assert_eq!(actions.count(), 2, "{seen:?}");
    assert_eq!(world.done("tool b"), 0, "what waited never ran");
}

/// Calls two tools, and fails on a message from the user.
fn breaks_down(
    _: &Context,
    _: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    match &inputs[0] {
        Input::Started(_) => Ok(vec![run("a"), run("b")]),
        _ => Err("It broke down.".to_owned()),
    }
}

#[tokio::test]
async fn each_run_that_a_failed_step_leaves_behind_gets_an_observation_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(breaks_down);
    world.hold.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    eventually("the first tool runs", || world.done("tool a") == 1).await;
    session.message("go on").await.unwrap();
    let seen = until(&mut frames, "It broke down.").await;
    let answers = seen.iter().filter(|(_, frame)| {
        frame.contains("CmdOutputObservation") && frame.contains("since the agent failed")
    });
    assert_eq!(answers.count(), 2, "{seen:?}");
    assert_eq!(names(&seen).last().unwrap(), "error", "{seen:?}");
    // What was running is over, and reports nothing any more.
    world.hold.store(false, Ordering::SeqCst);
    session.message("and on").await.unwrap();
    let seen = until(&mut frames, "It broke down.").await;
    assert!(
        !names(&seen).contains(&"CmdOutputObservation".to_owned()),
        "{seen:?}"
    );
}
