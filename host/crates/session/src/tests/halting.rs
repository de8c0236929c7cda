//! A host that is told to stop while commands run.

use super::*;

/// Two tools at once, a model call, and a third tool.
fn three(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) => commands.extend([run("a"), large(run("b"))]),
            Input::ToolReplied(reply) if reply.effect == "b" => commands.push(ask_model("m")),
            Input::ModelReplied(_) => commands.push(run("c")),
            Input::ToolReplied(reply) if reply.effect == "c" => commands.push(finish("done")),
            Input::EffectLost(effect) => commands.push(finish(&format!("lost {effect}"))),
            _ => {}
        }
    }
    Ok(commands)
}

/// Makes an argument as long as a file, which the log stores differently from short ones.
fn large(command: Command) -> Command {
    match command {
        Command::RunTool(mut run) => {
            run.call.arguments = serde_json::json!({"text": "long ".repeat(1_000)}).to_string();
            Command::RunTool(run)
        }
        other => other,
    }
}

const LONG: Duration = Duration::from_secs(10);

/// Starts a session whose first tool runs until `world.hold` is false.
async fn held_at_its_first_tool(host: &Host, world: &World) -> SessionId {
    world.hold.store(true, Ordering::SeqCst);
    let session = host.create(new("u")).await.unwrap();
    host.start(&session);
    eventually("the tool runs", || world.done("tool a") == 1).await;
    *session.id()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_runs_ends_before_the_host_does_and_what_comes_next_begins_after_the_restart()
 {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(three);
    let first = sessions(folder.path(), &world);
    let id = held_at_its_first_tool(&first, &world).await;
    let stopping = tokio::spawn({
        let first = first.clone();
        async move { first.shut_down_within(LONG).await }
    });
    eventually("the host stops", || first.shared.halt.is_cancelled()).await;
    assert_eq!(first.count(), 1, "it did not wait for the command");
    world.hold.store(false, Ordering::SeqCst);
    let left = stopping.await.unwrap();
    assert_eq!((left.sessions, left.commands), (1, Vec::new()));
    assert_eq!((world.any("tool"), world.any("model")), (1, 0));
    drop(first);

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert_dense(&seen);
    let (_, last) = seen.last().unwrap();
    assert!(last.contains(r#""message":"done""#), "{seen:?}");
    for tool in ["tool a", "tool b", "tool c", "model m m"] {
        assert_eq!(world.done(tool), 1, "{tool}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_begins_after_a_restart_is_lost_after_a_crash_and_not_run_twice() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(three);
    let first = sessions(folder.path(), &world);
    let id = held_at_its_first_tool(&first, &world).await;
    let release = async {
        eventually("the host stops", || first.shared.halt.is_cancelled()).await;
        world.hold.store(false, Ordering::SeqCst);
    };
    tokio::join!(first.shut_down_within(LONG), release);
    drop(first);

    world.hold.store(true, Ordering::SeqCst);
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    eventually("the second tool runs", || world.done("tool b") == 1).await;
    second.store.crash_after(0);
    second.shutdown().await;
    drop(second);

    world.hold.store(false, Ordering::SeqCst);
    let third = sessions(folder.path(), &world);
    assert_eq!(third.recover().await.unwrap(), 1);
    let session = third.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    assert!(seen.last().unwrap().1.contains("lost b"), "{seen:?}");
    assert_eq!((world.done("tool a"), world.done("tool b")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_takes_too_long_is_cut_off_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(three);
    let first = sessions(folder.path(), &world);
    let id = held_at_its_first_tool(&first, &world).await;
    let left = first.shut_down_within(Duration::from_millis(50)).await;
    assert_eq!(left.sessions, 1);
    assert_eq!(left.commands, [(id, "sh echo a".to_owned())]);
    drop(first);

    world.hold.store(false, Ordering::SeqCst);
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    // The second tool runs on meanwhile, so its result may have come behind this already.
    let told = seen.iter().find(|(_, frame)| frame.contains("completed"));
    assert!(told.unwrap().1.contains("lost a"), "{seen:?}");
}
