//! A session from its creation to its end.

use super::*;
use lucid_store::{Chats, Principal};

#[tokio::test]
async fn what_a_model_says_aside_is_a_thought_and_no_message() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(|_, _, inputs| {
        let mut call = ask_model("a");
        if let Command::CallModel(call) = &mut call {
            call.aside = true;
        }
        Ok(match &inputs[0] {
            Input::Started(_) => vec![call],
            Input::ModelReplied(_) => vec![finish("done")],
            _ => Vec::new(),
        })
    });
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "completed").await;
    let seen = names(&seen);
    assert!(seen.contains(&"ThinkAction".to_owned()), "{seen:?}");
    assert!(!seen.contains(&"AgentMessageAction".to_owned()), "{seen:?}");
}

#[tokio::test]
async fn a_session_shows_what_it_does_in_order_and_keeps_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    sessions.start(&session);
    let seen = until(&mut frames, "completed").await;
    assert_dense(&seen);
    assert_eq!(
        names(&seen),
        [
            "initializing",
            "ready",
            "task_start",
            "AgentMessageAction",
            "usage",
            "CmdRunAction",
            "CmdRunAction",
            "CmdOutputObservation",
            "file_tree",
            "CmdOutputObservation",
            "completed",
        ]
    );
    let chats = Chats::new(sessions.store.clone());
    let listed = chats.list(&Principal::service("u"), 10, 0).await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].title.as_str(), listed[0].is_active),
        (1, "do it", true)
    );
    let (_, lines) = chats
        .get(&Principal::service("u"), &listed[0].id)
        .await
        .unwrap()
        .unwrap();
    let types: Vec<_> = lines
        .iter()
        .map(|line| line.event_type.as_deref().unwrap())
        .collect();
    assert_eq!(
        types[..3],
        ["InitialTask", "AgentMessageAction", "CmdRunAction"]
    );

    session.message("more").await.unwrap();
    let seen = until(&mut frames, "completed").await;
    assert_eq!(names(&seen), ["task_start", "completed"]);

    sessions.stop(session.id()).await;
    let seen = until(&mut frames, "never").await;
    assert_eq!(names(&seen), ["stopping"]);
    assert!(matches!(frames.next().await, SubscriptionItem::Ended(reason) if reason.code == 1000));
    assert_eq!(
        (world.done("close"), world.done("wipe"), sessions.count()),
        (1, 1, 0)
    );
    assert!(session.message("too late").await.is_err());
    let (chat, _) = chats
        .get(&Principal::service("u"), &listed[0].id)
        .await
        .unwrap()
        .unwrap();
    assert!(!chat.is_active);
    let replay = sessions.replay(*session.id()).await.unwrap();
    assert_eq!((replay.same, replay.different), (6, None));
}

fn greets(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    Ok(vec![say("hm"), finish("[MOCK] done")])
}

#[tokio::test]
async fn a_mock_session_without_a_sandbox_is_two_writes_and_its_end_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(greets);
    (world.mock, world.models) = (true, false);
    world.sandbox.store(false, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "completed").await;
    assert_eq!(
        names(&seen),
        ["initializing", "mock_mode", "ThinkAction", "completed"]
    );
    assert_eq!(sessions.store.written().1, 2);
    sessions.stop(session.id()).await;
    assert_eq!(sessions.store.written().1, 3);
}

#[tokio::test]
async fn two_users_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(greets));
    let session = sessions.create(new("ann")).await.unwrap();
    let (ann, bob) = (UserId::from("ann"), UserId::from("bob"));
    assert!(sessions.get(session.id(), &ann).await.is_ok());
    for (id, error) in [
        (*session.id(), LookupError::NotYours),
        (SessionId::new(), LookupError::NotFound),
    ] {
        match sessions.get(&id, &bob).await {
            Err(GetSessionError::Lookup(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
    }
    for (user, count) in [(&ann, 1), (&bob, 0)] {
        assert_eq!(sessions.list(user).await.unwrap().len(), count);
    }
    for (user, project, is_same) in [
        (&ann, Some("p"), true),
        (&bob, Some("p"), false),
        (&ann, None, false),
    ] {
        let found = sessions.find_same(user, project, "do it", None).await;
        assert_eq!(found.unwrap().is_some(), is_same, "{user:?} {project:?}");
    }
    let chats = Chats::new(sessions.store.clone());
    let chat = chats
        .list(&Principal::service("ann"), 1, 0)
        .await
        .unwrap()
        .remove(0);
    assert!(
        chats
            .get(&Principal::service("bob"), &chat.id)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        chats
            .rename(&Principal::service("bob"), &chat.id, "mine")
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        !chats
            .delete(&Principal::service("bob"), &chat.id)
            .await
            .unwrap()
            .chat
    );
    assert_eq!(
        chats
            .rename(&Principal::service("ann"), &chat.id, &"é".repeat(300))
            .await
            .unwrap()
            .unwrap()
            .chars()
            .count(),
        255
    );
    let deleted = chats
        .delete(&Principal::service("ann"), &chat.id)
        .await
        .unwrap();
    assert!(deleted.chat);
    assert!(deleted.sessions.is_empty(), "a session that lives is kept");
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(greets);
    let sessions = sessions(folder.path(), &world);
    let with = |change: fn(&mut NewSession)| {
        let mut wanted = new("u");
        change(&mut wanted);
        wanted
    };
    let refused = sessions
        .create(with(|new| new.provider = Some("nobody".to_owned())))
        .await
        .unwrap_err();
    assert!(matches!(refused, CreateError::UnknownProvider(..)));
    let keyless = with(|new| (new.provider, new.api_key) = (Some("keyless".to_owned()), None));
    assert!(matches!(
        sessions.create(keyless).await.unwrap_err(),
        CreateError::MissingKey { .. }
    ));
    let refused = sessions
        .create(with(|new| new.policy = Some("x".to_owned())))
        .await
        .unwrap_err();
    assert!(matches!(refused, CreateError::UnknownPolicy(..)));
    assert_eq!(sessions.store.written().1, 0);
}

#[tokio::test]
async fn the_same_work_asked_for_twice_at_once_is_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(greets);
    let sessions = sessions(folder.path(), &world);
    let (one, other) = tokio::join!(
        sessions.find_or_create(new("u")),
        sessions.find_or_create(new("u"))
    );
    assert_eq!(one.unwrap().id(), other.unwrap().id());
    assert_eq!(sessions.count(), 1, "two agents do the same work");
}

#[tokio::test]
async fn a_credential_in_a_repository_url_is_kept_out_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(greets);
    let sessions = sessions(folder.path(), &world);
    let mut wanted = new("u");
    wanted.repo_url = Some("https://x-access-token:ghp_secret@example.org/o/r.git".to_owned());
    let session = sessions.create(wanted.clone()).await.unwrap();
    assert_eq!(
        session.info.repo_url.as_deref(),
        Some("https://example.org/o/r.git")
    );
    assert!(
        sessions
            .find_or_create(wanted)
            .await
            .is_ok_and(|same| same.id() == session.id()),
        "the same work is not recognised"
    );
    for file in std::fs::read_dir(sessions.store.folder()).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read(&path).unwrap();
        assert!(
            !text.windows(10).any(|part| part == b"ghp_secret"),
            "{} holds the token",
            path.display()
        );
    }
    let mut wanted = new("u");
    wanted.repo_url = Some("ftp://example.org/o/r".to_owned());
    assert!(matches!(
        sessions.create(wanted).await.unwrap_err(),
        CreateError::Repository(_)
    ));
}

fn breaks(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    match inputs {
        [Input::Started(start)] if start.task == "break" => Err("It broke.".to_owned()),
        [Input::UserMessage(_)] => Err("It was told of a message before its start.".to_owned()),
        _ => Ok(vec![finish("fine")]),
    }
}

#[tokio::test]
async fn a_policy_that_fails_ends_its_task_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(breaks));
    let broken = sessions
        .create(NewSession {
            task: "break".to_owned(),
            ..new("u")
        })
        .await
        .unwrap();
    let good = sessions.create(new("u")).await.unwrap();
    let (mut of_broken, mut of_good) = (broken.subscribe(0), good.subscribe(0));
    sessions.start(&broken);
    sessions.start(&good);
    let seen = until(&mut of_broken, "It broke.").await;
    assert_eq!(names(&seen).last().unwrap(), "error");
    assert_eq!(
        names(&until(&mut of_good, "completed").await)
            .last()
            .unwrap(),
        "completed"
    );
    broken.message("again").await.unwrap();
    assert_eq!(
        names(&until(&mut of_broken, "completed").await),
        ["task_start", "completed"]
    );
}

/// Calls a model repeatedly, until it is refused.
fn spender(ctx: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let said = |input: &Input| match input {
        Input::Started(_) | Input::ModelReplied(_) => Some(ask_model(&ctx.step.to_string())),
        Input::EffectFailed(failure) => {
            let left = (ctx.tokens_left, ctx.cost_left);
            Some(finish(&format!("{:?} {left:?}", failure.error.kind)))
        }
        _ => None,
    };
    Ok(inputs.iter().filter_map(said).collect())
}

#[tokio::test]
async fn what_calls_use_is_summed_and_the_lower_limit_refuses_the_next_call() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(spender);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store.clone(), &world, |limits| {
        limits.iterations = 100;
        limits.session_tokens = Some(1_000);
        limits.session_cost = Some(20);
    });
    // Each call uses 5 tokens and costs 7 millionths.
    let mut asked = new("u");
    (asked.token_limit, asked.cost_limit) = (Some(12), Some(1_000));
    let session = sessions.create(asked).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, r#""status":"completed""#).await;
    assert!(
        seen.last()
            .unwrap()
            .1
            .contains("Deadline (Some(0), Some(0))"),
        "{seen:?}"
    );
    let usage: Vec<_> = seen
        .iter()
        .filter(|(_, f)| f.contains(r#""type":"usage""#))
        .collect();
    assert_eq!(usage.len(), 3);
    assert!(
        usage[2]
            .1
            .contains(r#""sessionTokens":15,"sessionCostUsd":0.000021"#),
        "{usage:?}"
    );

    let details = sessions.details(session.id(), &"u".into()).await.unwrap();
    let totals = details.totals;
    assert_eq!((totals.calls, totals.tokens(), totals.cost), (3, 15, 21));
    assert_eq!(
        (details.token_limit, details.cost_limit),
        (Some(12), Some(20))
    );
    let other = sessions.details(session.id(), &"v".into()).await;
    assert!(matches!(
        other,
        Err(SessionDetailsError::Lookup(LookupError::NotYours))
    ));
    let chats = lucid_store::Chats::new(store.clone());
    assert_eq!(
        chats.list(&Principal::service("u"), 1, 0).await.unwrap()[0].totals,
        totals
    );
    let rows = store.read(|connection| {
        let sum = "SELECT count(*), sum(input_tokens + output_tokens), sum(cost) FROM model_calls";
        Ok(connection.query_row(sum, [], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, i64>(1)?,
                row.get::<_, i64>(2)?,
            ))
        })?)
    });
    assert_eq!(rows.await.unwrap(), (3, 15, 21));
}

/// Calls a model, and fails the step that takes the response; calls it again when told that the
/// first call is lost.
fn deaf(_: &Context, state: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) if state.is_some() => return Err("Started twice.".to_owned()),
            Input::Started(_) => commands.push(ask_model("first")),
            Input::ModelReplied(reply) if reply.effect == "first" => {
                return Err("It is deaf.".to_owned());
            }
            Input::ModelReplied(_) => commands.push(finish("heard")),
            Input::EffectLost(effect) if effect == "first" => commands.push(ask_model("second")),
            Input::UserMessage(_) => assert!(!commands.is_empty(), "it is told before the user"),
            other => panic!("{other:?}"),
        }
    }
    Ok(commands)
}

#[tokio::test]
async fn a_policy_whose_step_failed_hears_before_the_next_message_that_what_it_waits_for_is_lost() {
    for restarted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(deaf);
        let mut host = sessions(folder.path(), &world);
        let mut session = host.create(new("u")).await.unwrap();
        let id = *session.id();
        let mut frames = session.subscribe(0);
        host.start(&session);
        until(&mut frames, "It is deaf.").await;
        if restarted {
            host.shutdown().await;
            drop((frames, session, host));
            host = sessions(folder.path(), &world);
            assert_eq!(host.recover().await.unwrap(), 1);
            session = host.get(&id, &UserId::from("u")).await.unwrap();
            frames = session.subscribe(0);
            until(&mut frames, "It is deaf.").await;
        }
        session.message("go on").await.unwrap();
        let seen = until(&mut frames, "completed").await;
        assert_eq!(names(&seen).last().unwrap(), "completed", "{seen:?}");
        assert_eq!(world.done("model second m"), 1);
        let replay = host.replay(id).await.unwrap();
        assert_eq!(replay.different, None);
    }
}

fn greedy(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(ask_model("0")),
            Input::ModelReplied(reply) => {
                commands.push(ask_model(
                    &(reply.effect.parse::<u32>().unwrap() + 1).to_string(),
                ));
            }
            Input::EffectFailed(failure) => {
                assert_eq!(failure.error.kind, ErrorKind::Deadline);
                commands.push(finish("enough"));
            }
            _ => {}
        }
    }
    Ok(commands)
}

#[tokio::test]
async fn model_calls_of_a_task_are_counted_by_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(greedy);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "completed").await;
    assert_eq!(
        world
            .diary
            .lock()
            .iter()
            .filter(|line| line.starts_with("model"))
            .count(),
        5
    );
}

fn circles(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    Ok(vec![Command::SetTimer(Timer {
        effect: "t".to_owned(),
        delay_ms: 0,
    })])
}

#[tokio::test]
async fn a_policy_that_goes_round_in_circles_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(circles));
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "steps without a word").await;
    assert_eq!(names(&seen).last().unwrap(), "error");
}

#[tokio::test]
async fn a_session_that_everybody_left_ends_after_the_grace_time() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.grace = Duration::from_millis(50)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let guard = session.attach();
    sessions.start(&session);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(session.is_alive());
    drop(guard);
    let mut head = session.feed.watch();
    tokio::time::timeout(Duration::from_secs(5), head.wait_for(|head| head.ended))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((world.done("release"), world.done("wipe")), (1, 0));
}

#[tokio::test]
async fn a_task_that_runs_with_nobody_there_goes_on_and_the_grace_time_begins_when_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.hold.store(true, Ordering::SeqCst);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.grace = Duration::from_millis(50)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    eventually("the model is asked", || world.done("model m m") == 1).await;
    // The sweep has run many times.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(session.is_alive(), "nobody looked, and its work was ended");
    world.hold.store(false, Ordering::SeqCst);
    let seen = until(&mut frames, "completed").await;
    assert_eq!(names(&seen).last().unwrap(), "completed", "{seen:?}");
    eventually("the session ends", || sessions.count() == 0).await;
}

#[tokio::test]
async fn a_task_that_takes_too_long_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.hold.store(true, Ordering::SeqCst);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.task_time = Duration::from_millis(50)
    });
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "longer than").await;
    assert_eq!(names(&seen).last().unwrap(), "error");
    assert!(matches!(frames.next().await, SubscriptionItem::Ended(reason) if reason.code == 1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_stopped_while_it_clones_closes_its_box_before_its_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    world.hold_fetch.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    sessions.start(&session);
    while world.done("fetch") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    sessions.stop(session.id()).await;
    let diary = world.diary.lock().clone();
    assert_eq!(diary, ["provision 5", "fetch", "close", "wipe"]);
}

#[tokio::test]
async fn files_that_cannot_be_removed_are_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    first.start(&session);
    until(&mut session.subscribe(0), "completed").await;
    world.stuck.store(true, Ordering::SeqCst);
    first.stop(session.id()).await;
    first.shutdown().await;
    drop((session, first));

    world.stuck.store(false, Ordering::SeqCst);
    let second = sessions(folder.path(), &world);
    assert_eq!(
        second.recover().await.unwrap(),
        1,
        "the log calls it ended, and its files are there"
    );
    second.shutdown().await;
    assert_eq!(world.done("wipe"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_asks_for_many_sessions_at_once_gets_as_many_as_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(greets);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| limits.sessions_per_user = 3);
    let wanted = (0..20).map(|n| NewSession {
        task: format!("task {n}"),
        ..new("u")
    });
    let made =
        futures::future::join_all(wanted.map(|wanted| sessions.find_or_create(wanted))).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3);
    assert!(sessions.create(new("another")).await.is_ok());
    // A slot is released whether the session ended or was never created.
    let one = made.into_iter().find_map(Result::ok).unwrap();
    sessions.stop(one.id()).await;
    sessions.store.crash_after(0);
    assert!(matches!(
        sessions.create(new("u")).await.unwrap_err(),
        CreateError::Log(_)
    ));
    assert!(matches!(
        sessions.create(new("u")).await.unwrap_err(),
        CreateError::Log(_)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_asker_goes_away_while_it_is_made_is_there_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(greets));
    let mut made = 0;
    // Cancelled at every point at which it can be cancelled.
    for polls in 1..20 {
        let mut asking = Box::pin(sessions.create(new("u")));
        for _ in 0..polls {
            if futures::poll!(&mut asking).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(asking);
        let alive = || {
            let ids = sessions.store.living_ids();
            async { ids.await.unwrap().len() }
        };
        // The writer works in order: once this session exists, the earlier requests are done too.
        sessions.create(new("v")).await.unwrap();
        while alive().await != sessions.count() {
            tokio::task::yield_now().await;
        }
        made = sessions.count();
    }
    assert!(made > 19, "none was made: {made}");
}

fn panics(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    panic!("a test panics on purpose")
}

#[tokio::test]
async fn nobody_waits_for_a_session_that_came_to_grief() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(panics));
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "never").await;
    assert!(matches!(frames.next().await, SubscriptionItem::Ended(reason) if reason.code == 1011));
    sessions.stop(session.id()).await;
    assert_eq!(sessions.count(), 0);
    // The log still has it was: the next host tries again.
    let alive = sessions.in_log().await.unwrap();
    assert!(alive.contains(session.id()));
}

#[tokio::test]
async fn a_message_to_a_session_that_is_over_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = sessions(folder.path(), &World::new(greets));
    let session = sessions.create(new("u")).await.unwrap();
    let store = sessions.store.clone();
    let keep = || store.keep_message(*session.id(), &"user".into(), "hello".to_owned());
    assert!(keep().await.unwrap().is_some());
    sessions.stop(session.id()).await;
    // As if the session ended between the check that it is alive and this.
    assert_eq!(keep().await.unwrap(), None);
    let left = store.read(|connection| {
        Ok(connection.query_row("SELECT count(*) FROM inbox", [], |row| row.get::<_, i64>(0))?)
    });
    assert_eq!(left.await.unwrap(), 0);
}
