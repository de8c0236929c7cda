//! The accounting of model calls, whatever became of them.

use super::world::EARLY;
use super::*;
use lucid_types::log::UsageTotals;

/// The totals of the session's row, its chat and the rows of its calls, which are equal.
async fn totals(sessions: &Host, id: SessionId) -> UsageTotals {
    let user = UserId::from("u");
    let totals = sessions.details(&id, &user).await.unwrap().totals;
    let store = sessions.store.clone();
    let chats = lucid_store::Chats::new(store.clone());
    let chat = chats
        .list(&lucid_store::Principal::service("u"), 1, 0)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(chat.totals, totals, "the chat's sums are not the session's");
    let rows = store.read(|connection| {
        let sum = "SELECT count(*), coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum(cost), 0)
            FROM model_calls";
        let sum = connection.query_row(sum, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        Ok::<(i64, i64, i64), _>(sum?)
    });
    let (calls, tokens, cost) = rows.await.unwrap();
    assert_eq!(
        (calls as u64, tokens as u64, cost as u64),
        (totals.calls, totals.tokens(), totals.cost)
    );
    totals
}

fn early() -> UsageTotals {
    UsageTotals {
        calls: 1,
        input_tokens: EARLY.input_tokens,
        cost: 4,
        ..UsageTotals::default()
    }
}

/// A model that has reported usage and is not finished.
fn thinking(script: world::Script) -> World {
    let world = World::new(script);
    world.tells.store(true, Ordering::SeqCst);
    world.hold.store(true, Ordering::SeqCst);
    world
}

#[tokio::test]
async fn what_a_call_used_that_is_stopped_is_counted_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let world = thinking(worker);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    eventually("the model is asked", || world.done("model m m") == 1).await;
    sessions.stop(session.id()).await;
    let seen = names(&until(&mut frames, "never").await);
    assert_eq!(seen[seen.len() - 2..], ["usage", "stopping"]);
    assert_eq!(totals(&sessions, *session.id()).await, early());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_used_that_a_restart_took_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = thinking(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    first.start(&session);
    eventually("the model is asked", || world.done("model m m") == 1).await;
    first.shutdown().await;
    drop((session, first));
    world.hold.store(false, Ordering::SeqCst);

    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let frames = until(&mut session.subscribe(0), "completed").await;
    let said = format!("{frames:?}");
    assert!(
        said.contains("while the model answered") && !said.contains("not run again"),
        "{said}"
    );
    let seen = names(&frames);
    let lost = seen.iter().filter(|name| *name == "AgentErrorObservation");
    assert_eq!(lost.count(), 1, "the policy hears of it all the same");
    assert_eq!(totals(&second, id).await, early());
}

/// Calls a model, and on the user's message cancels the call or fails.
fn gives_up(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    match &inputs[0] {
        Input::Started(_) => Ok(vec![ask_model("m")]),
        Input::UserMessage(said) if said.content == [Content::Text("fail".to_owned())] => {
            Err("It broke.".to_owned())
        }
        Input::UserMessage(_) => {
            let twice = Command::Cancel("m".to_owned());
            Ok(vec![twice.clone(), twice])
        }
        Input::EffectFailed(failure) => {
            assert_eq!(failure.error.kind, ErrorKind::Cancelled);
            Ok(vec![finish("given up")])
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_call_used_that_is_given_up_is_counted() {
    for (said, then) in [("cancel", "given up"), ("fail", r#""type":"usage""#)] {
        let folder = tempfile::tempdir().unwrap();
        let world = thinking(gives_up);
        let sessions = sessions(folder.path(), &world);
        let session = sessions.create(new("u")).await.unwrap();
        let mut frames = session.subscribe(0);
        sessions.start(&session);
        eventually("the model is asked", || world.done("model m m") == 1).await;
        session.message(said).await.unwrap();
        until(&mut frames, then).await;
        assert_eq!(totals(&sessions, *session.id()).await, early(), "{said}");
    }
}

/// Calls a model whose work panics.
fn grieves(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    Ok(match &inputs[0] {
        Input::Started(_) => vec![ask_model("grief")],
        Input::EffectFailed(failure) => vec![finish(&failure.error.message)],
        other => panic!("{other:?}"),
    })
}

#[tokio::test]
async fn a_call_whose_work_comes_to_grief_is_told_of_and_paid_for() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(grieves);
    world.tells.store(true, Ordering::SeqCst);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "completed").await;
    assert!(seen.last().unwrap().1.contains("came to grief"), "{seen:?}");
    assert_eq!(totals(&sessions, *session.id()).await, early());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_whose_share_of_the_log_is_used_up_is_told_and_goes_on_once_chats_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(worker);
    world.user_logs.total = Some(1000);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let last = until(&mut frames, "nothing says this").await;
    let said: String = last.into_iter().map(|(_, frame)| frame).collect();
    assert!(
        said.contains("The session was ended: the record of your sessions takes 1000 bytes"),
        "{said}"
    );
    assert!(said.contains("Delete chats before the next one."), "{said}");
    eventually("the session to be gone", || sessions.count() == 0).await;
    assert_eq!(world.done("wipe"), 0, "its files are kept");
    assert_eq!(session.message("more").await, Err(MessageRejected::Over));
    let refused = sessions.create(new("u")).await.map(drop).unwrap_err();
    assert_eq!(
        refused.to_user(),
        "The record of your sessions takes 1000 bytes, which is as much as it may. Delete chats first."
    );
    // Another user has a share of their own.
    sessions.create(new("v")).await.unwrap();

    let chats = lucid_store::Chats::new(sessions.store.clone());
    let caller = lucid_store::Principal::service("u");
    let chat = chats.list(&caller, 1, 0).await.unwrap().remove(0);
    assert!(chats.delete(&caller, &chat.id).await.unwrap().chat);
    sessions.create(new("u")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_sends_too_much_in_a_minute_is_refused_and_nobody_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(worker);
    world.user_logs.rate = Some(3 * 4096);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    assert_eq!(session.message("one").await, Ok(()));
    let refused = session.message("x".repeat(9000)).await.unwrap_err();
    assert_eq!(
        refused.sentence(),
        "You have sent more than 12 KiB within a minute, which is as much as you may. Try again in a moment."
    );
    assert_eq!(session.message("two").await, Ok(()));
    let again = sessions.create(new("u")).await.map(drop).unwrap_err();
    assert!(again.passes(), "{again}");
    sessions.create(new("v")).await.unwrap();
}
