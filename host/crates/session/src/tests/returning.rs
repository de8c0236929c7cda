//! Sessions that resume after a restart: when their users come back, or without their files.

use super::*;

/// A session at its first model call, from a host that is gone.
async fn left_at_work(folder: &Path, world: &World) -> SessionId {
    let first = sessions(folder, world);
    world.hold.store(true, Ordering::SeqCst);
    let session = first.create(new("u")).await.unwrap();
    first.start(&session);
    eventually("the model is asked", || world.done("model m m") == 1).await;
    first.shutdown().await;
    world.hold.store(false, Ordering::SeqCst);
    *session.id()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_waits_for_its_user_does_nothing_and_stays_until_that_user_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let id = left_at_work(folder.path(), &world).await;
    let waiting = |host: &Host| (host.count(), host.count_held());
    let user = UserId::from("u");

    let second = with_limits(opened(folder.path()), &world, |limits| {
        limits.grace = Duration::from_millis(20);
    });
    second.recover_held().await.unwrap();
    let before = world.diary.lock().clone();
    // The sweep has run many times.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(waiting(&second), (1, 1));
    assert_eq!(*world.diary.lock(), before, "it did something");
    assert!(second.get(&id, &user).await.unwrap().is_alive());
    second.shutdown().await;
    drop(second);

    // Once written, the hold applies to later starts, until the user comes back.
    let third = sessions(folder.path(), &world);
    let held = |connection: &rusqlite::Connection| {
        Ok(connection.execute("UPDATE sessions SET held = 1", [])?)
    };
    third.store.write(held).await.unwrap();
    assert_eq!(third.recover().await.unwrap(), 0);
    assert_eq!(waiting(&third), (1, 1));
    let session = third.get(&id, &user).await.unwrap();
    third.start(&session);
    until(&mut session.subscribe(0), "completed").await;
    assert_eq!(waiting(&third), (1, 0));
    third.shutdown().await;
    drop((session, third));
    let fourth = sessions(folder.path(), &world);
    assert_eq!(fourth.recover().await.unwrap(), 1);
}

fn told_of_loss(
    _: &Context,
    _: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(ask_model("m")),
            Input::Other(custom) => commands.push(say(&format!("{} {}", custom.kind, custom.body))),
            Input::EffectLost(_) => commands.push(run("a")),
            Input::ToolReplied(_) => commands.push(finish("done")),
            _ => {}
        }
    }
    Ok(commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_files_are_gone_tells_its_policy_and_its_user_and_fetches_its_repository_again()
 {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(told_of_loss);
    let id = left_at_work(folder.path(), &world).await;
    assert_eq!(world.done("fetch"), 1);
    world.lost.store(true, Ordering::SeqCst);
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let seen = until(&mut session.subscribe(0), "completed").await;
    let told = |text: &str| {
        seen.iter()
            .filter(|(_, frame)| frame.contains(text))
            .count()
    };
    assert_eq!(told("is gone from the server"), 2, "{seen:?}");
    assert_eq!(told("lucid.workspace-lost"), 1, "{seen:?}");
    assert_eq!(
        (
            world.done("renew"),
            world.done("reopen"),
            world.done("fetch")
        ),
        (1, 1, 2)
    );
}
