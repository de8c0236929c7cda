//! Pull requests opened for what a session pushed.

use super::*;

/// Pushes with the tools that its task names, and finishes; or fails if the task says so.
fn pushes(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(start) => commands.push(run(&start.task)),
            Input::UserMessage(_) => commands.push(run("look")),
            Input::ToolReplied(reply) if reply.effect == "push-and-fail" => {
                return Err("no more".to_owned());
            }
            Input::ToolReplied(_) => commands.push(finish("It is fixed.")),
            _ => {}
        }
    }
    Ok(commands)
}

fn wanting(task: &str, open_change: Option<OpenChange>) -> NewSession {
    NewSession {
        task: task.to_owned(),
        repo_url: Some("https://git.example/team/project".to_owned()),
        branch: Some("develop".to_owned()),
        open_change,
        ..new("u")
    }
}

#[tokio::test]
async fn the_change_of_what_was_pushed_is_opened_when_the_task_is_done_and_its_link_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(pushes);
    let sessions = sessions(folder.path(), &world);
    let wanted = wanting("push", Some(OpenChange::Draft));
    let session = sessions.create(wanted).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "ChangeMessage").await;
    assert_dense(&seen);
    let names = names(&seen);
    let (done, opened) = (&names[names.len() - 2], &names[names.len() - 1]);
    assert_eq!(
        (done.as_str(), opened.as_str()),
        ("completed", "ChangeMessage")
    );
    let frame: serde_json::Value = serde_json::from_str(&seen.last().unwrap().1).unwrap();
    assert_eq!(frame["url"], "https://git.example/changes/1");
    let text = frame["content"].as_str().unwrap();
    assert!(
        text.contains("#1 push") && text.contains("https://git.example/changes/1"),
        "{text}"
    );
    assert!(world.done("change lucid/push to develop draft: It is fixed.") == 1);
    // The next task pushes nothing, and opens nothing.
    session.message("and look").await.unwrap();
    until(&mut frames, "completed").await;
    assert_eq!(
        world.done("change lucid/push to develop draft: It is fixed."),
        1
    );
}

#[tokio::test]
async fn none_is_opened_where_nobody_asked_nothing_was_pushed_or_the_task_failed() {
    for (task, wish, last) in [
        ("push", None, "completed"),
        ("look", Some(OpenChange::Ready), "completed"),
        ("push-and-fail", Some(OpenChange::Ready), "no more"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(pushes);
        let sessions = sessions(folder.path(), &world);
        let session = sessions.create(wanting(task, wish)).await.unwrap();
        let mut frames = session.subscribe(0);
        sessions.start(&session);
        until(&mut frames, last).await;
        let id = *session.id();
        sessions.stop(&id).await;
        assert_eq!(world.any("change "), 0, "{task}");
    }
}

#[tokio::test]
async fn one_that_was_being_opened_when_the_host_stopped_is_opened_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(pushes);
    world.hold_changes.store(true, Ordering::SeqCst);
    let first = sessions(folder.path(), &world);
    let wanted = wanting("push", Some(OpenChange::Ready));
    let session = first.create(wanted).await.unwrap();
    let id = *session.id();
    let mut frames = session.subscribe(0);
    first.start(&session);
    until(&mut frames, "completed").await;
    first.shutdown().await;
    drop((frames, session, first));

    world.hold_changes.store(false, Ordering::SeqCst);
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    let seen = until(&mut frames, "ChangeMessage").await;
    assert_dense(&seen);
    assert_eq!(
        names(&seen)
            .iter()
            .filter(|name| *name == "ChangeMessage")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_session_that_is_stopped_meanwhile_waits_for_the_link() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(pushes);
    world.hold_changes.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let wanted = wanting("push", Some(OpenChange::Ready));
    let session = sessions.create(wanted).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "completed").await;
    let id = *session.id();
    let stopped = async {
        tokio::task::yield_now().await;
        world.hold_changes.store(false, Ordering::SeqCst);
    };
    tokio::join!(sessions.stop(&id), stopped);
    let seen = until(&mut frames, "ChangeMessage").await;
    assert!(
        names(&seen).contains(&"ChangeMessage".to_owned()),
        "{seen:?}"
    );
}
