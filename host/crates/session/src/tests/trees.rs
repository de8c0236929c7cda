//! File trees that change without a tool's action.

use super::super::message::{ActorMessage, Tree};
use super::*;
use crate::budget::Budget;
use crate::round::{RoundBuilder, RoundContext, ShownTree};
use lucid_types::log::{SessionCounters, SessionStatus};

fn trees(frames: &[(u64, String)]) -> Vec<&str> {
    let trees = frames
        .iter()
        .filter(|(_, frame)| frame.contains("file_tree"));
    trees.map(|(_, frame)| frame.as_str()).collect()
}

#[tokio::test]
async fn a_change_that_no_tool_made_is_written_shown_and_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let first = sessions(folder.path(), &world);
    let session = first.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    first.start(&session);
    let mut seen = until(&mut frames, "completed").await;
    let id = *session.id();
    let steps = first.replay(id).await.unwrap().same;

    world.grow(1);
    seen.extend(until(&mut frames, "file_tree").await);
    assert!(trees(&seen).last().unwrap().contains("g0"), "{seen:?}");
    // A change was noticed, and the tree is still the same: nothing to show.
    world.grow(1);
    world.grow(1);
    session.message("more").await.unwrap();
    let more = until(&mut frames, "completed").await;
    assert_eq!(names(&more), ["task_start", "completed"]);
    seen.extend(more);
    assert_dense(&seen);
    let after = first.replay(id).await.unwrap();
    assert_eq!((after.same, after.different), (steps + 1, None));

    // What was shown is in the log: the next host shows the same.
    first.shutdown().await;
    drop((first, session, frames));
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &"u".into()).await.unwrap();
    let mut again = session.subscribe(0);
    let mut kept = Vec::new();
    while kept.len() < seen.len() {
        match again.next().await {
            SubscriptionItem::Frames(frames) => {
                kept.extend(
                    frames
                        .into_iter()
                        .map(|(seq, frame)| (seq, frame.to_string())),
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(kept, seen);
}

#[tokio::test]
async fn changes_while_tools_run_come_in_order_and_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(worker);
    let sessions = sessions(folder.path(), &world);
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let grower = {
        let world = world.clone();
        tokio::spawn(async move {
            for files in 1..=50 {
                world.grow(files);
                tokio::task::yield_now().await;
            }
        })
    };
    let mut seen = until(&mut frames, "completed").await;
    grower.await.unwrap();
    world.grow(51);
    if !trees(&seen).iter().any(|tree| tree.contains("g50")) {
        seen.extend(until(&mut frames, "g50").await);
    }
    assert_dense(&seen);
    let sizes: Vec<usize> = trees(&seen)
        .iter()
        .map(|tree| tree.matches("name").count())
        .collect();
    assert!(
        sizes.windows(2).all(|two| two[0] < two[1]),
        "they only grow, so each is larger than the one before: {sizes:?}"
    );
}

#[test]
fn a_tree_that_is_older_than_what_was_shown_is_not_shown() {
    let (session, user, chat) = (SessionId::new(), "u".into(), "c".into());
    let context = RoundContext {
        session,
        user: &user,
        chat: &chat,
        task: "t",
        repository: None,
        branch: None,
        opens_change: false,
        pushed: None,
        model: "m",
        mock: false,
        settings: "{}",
        policy_digest: Digest::of("d"),
        available_models: None,
        budget: Budget::default(),
        describe: &|_| EventDraft::default(),
    };
    let shown = |start: ShownTree, trees: &[(u64, &str)]| {
        let mut builder =
            RoundBuilder::new(&context, SessionCounters::default(), Default::default(), 0);
        builder.shown_tree = start;
        for (number, json) in trees {
            let json = (*json).to_owned();
            builder.apply(ActorMessage::Tree(Tree {
                number: *number,
                json,
            }));
        }
        assert!(builder.inputs.is_empty(), "a tree is nothing to decide on");
        let round = builder.close_round(SessionStatus::Running, None);
        assert!(round.row.decision.is_none());
        let frames = round.row.frames;
        let tree = |frame: &Arc<str>| {
            let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
            frame["tree"].to_string()
        };
        frames.iter().map(tree).collect::<Vec<_>>()
    };
    let empty = ShownTree::empty();
    assert_eq!(shown(empty, &[(1, "[]")]), Vec::<String>::new());
    assert_eq!(shown(ShownTree::unknown(), &[(1, "[]")]), ["[]"]);
    // Begun earlier and done later: it knows less than what is shown.
    assert_eq!(shown(empty, &[(2, "[2]"), (1, "[1]")]), ["[2]"]);
    assert_eq!(
        shown(empty, &[(1, "[1]"), (2, "[1]"), (3, "[]"), (4, "[1]")]),
        ["[1]", "[]", "[1]"]
    );
}
