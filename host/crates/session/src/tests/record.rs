//! Tests of the pure core, `round`, on its own.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::message::{ActorMessage, Started, Tree};
use super::*;
use crate::budget::Budget;
use crate::round::{RoundBuilder, RoundContext, StartedWork, internal_error, of_effect};
use lucid_types::log::{EffectKind, SessionCounters};

fn tree(number: u64, json: &str) -> Tree {
    Tree {
        number,
        json: json.to_owned(),
    }
}

fn told(which: u8, effect: &str) -> ActorMessage {
    let effect = EffectId::from(effect);
    let error = || Error {
        kind: ErrorKind::Upstream,
        code: None,
        message: "no".to_owned(),
        retry_after_ms: None,
    };
    match which {
        0 => ActorMessage::Started(Started::default()),
        1 | 2 => ActorMessage::Message(1, "hi".to_owned()),
        3 => ActorMessage::Model(effect, Err(error().into())),
        4 => ActorMessage::Tool(effect, Err(error()), Some(tree(1, "[]"))),
        5 => ActorMessage::Timer(effect),
        10 => ActorMessage::Tree(tree(2, "[1]")),
        6 => ActorMessage::Lost(effect),
        7 => ActorMessage::Failed(effect, error()),
        8 => {
            let message = Message {
                role: Role::Assistant,
                content: vec![Content::Text("t".to_owned())],
            };
            let usage = Usage {
                input_tokens: 1,
                output_tokens: 1,
                cache_read_tokens: 0,
                cache_write_tokens: 0,
            };
            ActorMessage::Model(
                effect,
                Ok(ModelAnswer {
                    message,
                    stop: StopReason::EndTurn,
                    usage,
                    cost: CallCost {
                        usage,
                        cost: None,
                        provider: "p".to_owned(),
                        model: "m".to_owned(),
                        tries: 1,
                    },
                    aside: false,
                }),
            )
        }
        _ => {
            let result = ToolResult {
                call_id: "c".to_owned(),
                is_error: false,
                text: "t".to_owned(),
                exit_code: None,
                blobs: vec![],
            };
            ActorMessage::Tool(
                effect,
                Ok(Box::new(ToolResultWithEvent {
                    result,
                    event: EventDraft::text("CmdOutputObservation", "t"),
                    notices: Vec::new(),
                })),
                None,
            )
        }
    }
}

fn wanted(which: u8, effect: &str) -> Command {
    match which {
        0 => ask_model(effect),
        1 => run(effect),
        2 => Command::SetTimer(Timer {
            effect: effect.to_owned(),
            delay_ms: 5,
        }),
        3 => Command::Ask(Question {
            effect: effect.to_owned(),
            title: "?".to_owned(),
            detail: "{}".to_owned(),
        }),
        4 => Command::Cancel(effect.to_owned()),
        5 => Command::Append(Message {
            role: Role::User,
            content: vec![],
        }),
        6 => finish(""),
        7 => Command::Other(Custom {
            kind: "x".to_owned(),
            body: "{}".to_owned(),
        }),
        _ => say("so"),
    }
}

type BuildAssignment = Vec<(Vec<(u8, u8)>, Vec<(u8, u8)>, bool)>;

fn rounds() -> impl Strategy<Value = BuildAssignment> {
    let some = |kinds| prop::collection::vec((kinds, 0u8..3), 0..6);
    prop::collection::vec(
        (
            some((0u8..11).boxed()),
            some((0u8..9).boxed()),
            prop::bool::weighted(0.9),
        ),
        1..20,
    )
}

#[test]
fn what_a_failed_model_call_took_counts_as_well() {
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
        describe: &|_| EventDraft::text("CmdRunAction", "x"),
    };
    let open = BTreeMap::from([("e".into(), EffectKind::Model)]);
    let mut builder = RoundBuilder::new(&context, SessionCounters::default(), open, 10);
    let spent = CallCost {
        usage: Usage {
            input_tokens: 40,
            output_tokens: 2,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        },
        cost: Some(7),
        provider: "p".to_owned(),
        model: "m".to_owned(),
        tries: 4,
    };
    builder.apply(ActorMessage::Model(
        "e".into(),
        Err(ModelFailure {
            error: internal_error(ErrorKind::Upstream, "It broke off."),
            cost: Some(Box::new(spent)),
        }),
    ));
    assert_eq!(builder.counters.tokens, 42);
    assert_eq!(builder.counters.totals.cost, 7);
    assert!(matches!(builder.inputs[..], [Input::EffectFailed(_)]));
}

#[test]
fn a_policy_hears_of_an_answers_own_usage_and_the_sums_count_all_tries() {
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
        budget: Budget {
            iterations: 9,
            tokens: Some(50),
            cost: None,
        },
        describe: &|_| EventDraft::text("CmdRunAction", "x"),
    };
    let answer = || {
        let ActorMessage::Model(effect, Ok(mut answer)) = told(8, "e") else {
            panic!("not an answer");
        };
        // A previous attempt broke off.
        answer.cost.usage.input_tokens = 48;
        (answer.cost.cost, answer.cost.tries) = (Some(9), 2);
        ActorMessage::Model(effect, Ok(answer))
    };
    let open = BTreeMap::from([("e".into(), EffectKind::Model)]);
    let mut builder = RoundBuilder::new(&context, SessionCounters::default(), open, 10);
    builder.apply(answer());
    let [Input::ModelReplied(reply)] = &builder.inputs[..] else {
        panic!("{:?}", builder.inputs);
    };
    assert_eq!(
        (reply.usage.input_tokens, reply.usage.output_tokens),
        (1, 1)
    );
    let totals = builder.counters.totals;
    assert_eq!((totals.calls, totals.tokens(), totals.cost), (1, 49, 9));
    assert_eq!(context.budget.tokens_left(&builder.counters), Some(1));

    // A response that nobody waits for any more is charged, and changes nothing else.
    builder.apply(answer());
    assert_eq!(builder.inputs.len(), 1);
    assert_eq!(builder.counters.totals.tokens(), 98);
    assert_eq!(builder.counters.next_entry, 1);
    assert_eq!(
        context.budget.refusal(&builder.counters).as_deref(),
        Some("The session used up its 50 tokens.")
    );
}

proptest! {
    #[test]
    fn numbers_are_dense_and_a_policy_hears_once_of_each_effect_that_it_waits_for(drawn in rounds()) {
        let (session, user, chat) = (SessionId::new(), "u".into(), "c".into());
        let budget = Budget { iterations: 3, ..Budget::default() };
        let scene = RoundContext {
            session, user: &user, chat: &chat, task: "t", repository: None, branch: None, opens_change: false, pushed: None, model: "m", mock: false,
            settings: "{}", policy_digest: Digest::of("d"), available_models: None, budget, describe: &|_| EventDraft::text("CmdRunAction", "x"),
        };
        let mut counters = SessionCounters { next_seq: 1, ..SessionCounters::default() };
        let mut open = BTreeMap::<EffectId, EffectKind>::new();
        let mut rows = BTreeMap::<EffectId, EffectKind>::new();
        let mut waiting = BTreeSet::<EffectId>::new();
        let context = Context {
            session: "s".to_owned(), step: 0, now_ms: 0, seed: 0, iterations_left: 0, tokens_left: None, cost_left: None, millis_left: None,
        };
        for (arrived, commands, good) in drawn {
            let mut draft = RoundBuilder::new(&scene, counters, open.clone(), 10);
            for (which, effect) in arrived {
                draft.apply(told(which, &effect.to_string()));
            }
            let commands: Vec<_> = commands.iter().map(|(which, effect)| wanted(*which, &effect.to_string())).collect();
            let transition = Transition { state: Snapshot { schema: 1, bytes: vec![] }, commands };
            let result = if good { Ok(transition) } else { Err(StepError::call("broke")) };
            let round = draft.decide(&context, StepOutcome { result, fuel: 0, memory: 0, micros: 0 });
            let row = &round.row;
            prop_assert_eq!(row.first_seq, counters.next_seq);
            prop_assert_eq!(row.counters.next_seq, row.first_seq + row.frames.len() as u64);
            prop_assert_eq!(row.counters.next_row, counters.next_row + 1);
            prop_assert_eq!(row.counters.step, counters.step + 1);
            let entries: Vec<u64> = row.entries.iter().map(|(entry, _)| *entry).collect();
            prop_assert_eq!(entries, (counters.next_entry..row.counters.next_entry).collect::<Vec<_>>());
            prop_assert!(row.counters.iterations <= 3);
            for frame in &row.frames {
                prop_assert!(serde_json::from_str::<serde_json::Value>(frame).unwrap()["type"].is_string());
            }
            // What the database would hold is what the engine holds.
            for closed in &row.closed {
                rows.remove(closed);
            }
            for opened in &row.opened {
                prop_assert!(rows.insert(opened.id.clone(), opened.kind).is_none());
            }
            prop_assert_eq!(&rows, &round.open);
            // The policy is told exactly once of everything it waits for, even if steps fail.
            if good {
                let inputs = &row.decision.as_ref().unwrap().inputs;
                let told: Vec<Input> = serde_json::from_str(inputs).unwrap();
                for effect in told.into_iter().filter_map(of_effect) {
                    prop_assert!(waiting.remove(&effect), "told of {} a second time", effect);
                }
                waiting.extend(row.opened.iter().map(|opened| opened.id.clone()));
            }
            prop_assert!(waiting.iter().eq(round.open.keys()), "waits for {waiting:?}, open are {:?}", round.open);
            for begin in &round.started {
                if let StartedWork::Tool(run) = begin {
                    prop_assert!(round.open.contains_key(run.effect.as_str()));
                }
            }
            (counters, open) = (row.counters, round.open);
        }
    }
}

#[test]
fn the_next_message_answers_an_open_question() {
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
    let open = BTreeMap::from([("q".into(), EffectKind::Ask)]);
    let mut builder = RoundBuilder::new(
        &context,
        SessionCounters {
            next_entry: 4,
            task_open: true,
            ..SessionCounters::default()
        },
        open,
        0,
    );
    builder.apply(ActorMessage::Message(1, "yes".to_owned()));
    builder.apply(ActorMessage::Message(2, "and more".to_owned()));
    assert!(
        matches!(&builder.inputs[..], [Input::Answered(answer), Input::UserMessage(message)]
        if answer.effect == "q" && answer.entry == 4 && message.entry == 5)
    );
}
