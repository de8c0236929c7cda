//! Tests of the engine with a scripted policy and no plugins, models, sandboxes or network.

mod asking;
mod beside;
mod cancelling;
mod changing;
mod crash;
mod deltas;
mod halting;
mod joining;
mod life;
mod moving;
mod pausing;
mod paying;
mod probation;
mod reading;
mod record;
mod retention;
mod returning;
mod shadow;
mod sleeping;
mod trees;
mod world;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::*;
use lucid_store::{Store, StoreError};
use lucid_types::digest::Digest;
use lucid_types::exec::{ExecError, ExecRequest, ExecResult, Process};
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::SessionLog;
use lucid_types::secret::Secret;
use lucid_types::transient::TransientFailure;
use lucid_types::user::UserId;
use lucid_types::wit::policy::*;
use lucid_types::wit::types::*;
use world::World;

fn call(id: &str) -> ToolCall {
    ToolCall {
        id: id.to_owned(),
        name: "sh".to_owned(),
        arguments: format!("echo {id}"),
    }
}

fn run(effect: &str) -> Command {
    Command::RunTool(ToolRun {
        effect: effect.to_owned(),
        call: call(effect),
        timeout_ms: None,
    })
}

fn ask_model(effect: &str) -> Command {
    let prompt = vec![Part::History(Span {
        first: 0,
        last: None,
    })];
    Command::CallModel(ModelCall {
        effect: effect.to_owned(),
        model: String::new(),
        prompt,
        tools: Vec::new(),
        max_output_tokens: None,
        params: "{}".to_owned(),
        aside: false,
    })
}

fn finish(text: &str) -> Command {
    Command::Finish(Outcome::Succeeded(text.to_owned()))
}

fn say(text: &str) -> Command {
    Command::Emit(Event {
        event_type: "ThinkAction".to_owned(),
        content: text.to_owned(),
        fields: "{}".to_owned(),
    })
}

/// A model call, two tools, a timer, the end; lost effects are ignored.
fn worker(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    let timer = || {
        Command::SetTimer(Timer {
            effect: "w".to_owned(),
            delay_ms: 1,
        })
    };
    for input in inputs {
        match input {
            Input::Started(_) => commands.push(ask_model("m")),
            Input::ModelReplied(_) => commands.extend([run("a"), run("b")]),
            Input::ToolReplied(reply) if reply.effect == "b" => commands.push(timer()),
            Input::EffectLost(effect) if effect == "m" || effect == "b" => commands.push(timer()),
            Input::TimerFired(_) => commands.push(finish("done")),
            Input::UserMessage(_) => commands.push(finish("again")),
            _ => {}
        }
    }
    Ok(commands)
}

/// Sessions, and the store that holds their log.
#[derive(Clone)]
struct Host {
    sessions: Sessions,
    store: Store,
}

impl std::ops::Deref for Host {
    type Target = Sessions;

    fn deref(&self) -> &Sessions {
        &self.sessions
    }
}

fn sessions(folder: &Path, world: &World) -> Host {
    with_key(folder, world, "k")
}

fn with_key(folder: &Path, world: &World, key: &str) -> Host {
    made_of(opened(folder), world, key, |_| {})
}

/// The last host's tasks may hold the store for a moment after they were aborted.
fn opened(folder: &Path) -> Store {
    let mut tries = 0;
    loop {
        match Store::open(folder) {
            Err(StoreError::InUse(_)) if tries < 200 => tries += 1,
            other => return other.unwrap(),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn with_limits(store: Store, world: &World, change: fn(&mut SessionLimits)) -> Host {
    made_of(store, world, "k", change)
}

fn made_of(store: Store, world: &World, key: &str, change: fn(&mut SessionLimits)) -> Host {
    let (_, deployment) = deployment(1, world);
    deployed(store, deployment, world, key, change)
}

fn deployed(
    store: Store,
    deployment: Deployment,
    world: &World,
    key: &str,
    change: fn(&mut SessionLimits),
) -> Host {
    let mut limits = SessionLimits {
        iterations: 5,
        session_tokens: None,
        session_cost: None,
        task_time: Duration::from_secs(20),
        grace: Duration::from_secs(60),
        sleep_after: Duration::from_millis(10),
        retention: Duration::from_secs(3600),
        sessions_per_user: 100,
    };
    change(&mut limits);
    let user_logs = world.user_logs;
    let sessions = Sessions::new(SessionDeps {
        log: Arc::new(store.clone()),
        sealer: Sealer::new(&Secret::new(key)),
        deployment,
        environments: Arc::new(world.clone()),
        pull_requests: Arc::new(world.clone()),
        reserve: lucid_types::disk_reserve::DiskReserve::none(),
        limits,
        user_logs,
    });
    Host { sessions, store }
}

/// A deployment with the world's policies and models, and the sender for new generations.
fn deployment(number: u64, world: &World) -> (watch::Sender<Arc<Generation>>, Deployment) {
    watch::channel(generation(number, world))
}

fn generation(number: u64, world: &World) -> Arc<Generation> {
    Arc::new(Generation {
        number,
        policies: Arc::new(world.clone()),
        models: Arc::new(world.clone()),
        tools: world.tools.clone(),
    })
}

fn new(user: &str) -> NewSession {
    NewSession {
        user: user.into(),
        project_id: Some("p".to_owned()),
        task: "do it".to_owned(),
        repo_url: None,
        git_token: Some(Secret::new("token")),
        branch: None,
        git_user_name: None,
        git_user_email: None,
        provider: None,
        model: None,
        token_limit: None,
        cost_limit: None,
        api_key: Some(Secret::new("sk-key")),
        policy: None,
        open_change: None,
    }
}

/// Reads until a frame contains a text, or the session ends.
async fn until(subscription: &mut Subscription, text: &str) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    let read = async {
        loop {
            match subscription.next().await {
                SubscriptionItem::Frames(frames) => {
                    let found = frames.iter().any(|(_, frame)| frame.contains(text));
                    seen.extend(
                        frames
                            .into_iter()
                            .map(|(seq, frame)| (seq, frame.to_string())),
                    );
                    if found {
                        return;
                    }
                }
                SubscriptionItem::Ended(_) => return,
                SubscriptionItem::Delta(_) | SubscriptionItem::Notice(_) => {}
                SubscriptionItem::Gap(from, to) => panic!("gap {from} to {to}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("in time");
    seen
}

/// The types of frames, or their statuses.
fn names(frames: &[(u64, String)]) -> Vec<String> {
    let name = |frame: &String| {
        let value: serde_json::Value = serde_json::from_str(frame).unwrap();
        let members = ["eventType", "status", "event", "type"];
        members
            .iter()
            .find_map(|member| value[*member].as_str().map(str::to_owned))
            .unwrap()
    };
    frames.iter().map(|(_, frame)| name(frame)).collect()
}

fn assert_dense(frames: &[(u64, String)]) {
    let numbers: Vec<u64> = frames.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
}

/// Polls for a condition that is not announced.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(waited.is_ok(), "it did not happen in time: {what}");
}
