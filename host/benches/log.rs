//! What the log costs: `cargo bench --bench log`. Appending a session's round, alone and with many
//! sessions that write at once; reading frames again for a client that comes back; putting a logged
//! session through its policy again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

#[path = "common/writer.rs"]
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};

use lucid::config::Config;
use lucid::server::App;
use lucid_session::{NewSession, SessionHandle, Sessions, Subscription, SubscriptionItem};
use lucid_store::Store;
use lucid_types::ids::SessionId;
use lucid_types::log::SessionLog;

use writer::WritingSession;

/// Sessions that write at once.
const WRITERS: u64 = 64;
/// Frames that a client has missed.
const MISSED: u64 = 100;
/// Rounds of the session that the client comes back to.
const ROUNDS: u64 = 2_000;
/// Steps of the session that goes through its policy again.
const STEPS: u64 = 100;
/// A folder grows by some KB for each write that is measured.
const MEASURED: Duration = Duration::from_secs(3);

fn runtime() -> Runtime {
    Builder::new_multi_thread().enable_all().build().unwrap()
}

fn append(c: &mut Criterion) {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut group = c.benchmark_group("append");
    group
        .throughput(Throughput::Elements(1))
        .measurement_time(MEASURED);
    let mut writer = runtime.block_on(WritingSession::new(&store, 0));
    group.bench_function("a round, alone", |b| {
        b.iter(|| runtime.block_on(writer.append()));
    });
    let mut writers: Vec<_> = (1..=WRITERS)
        .map(|number| runtime.block_on(WritingSession::new(&store, number)))
        .collect();
    group.bench_function("a round, with 64 sessions that write", |b| {
        b.iter_custom(|rounds| {
            let begin = Instant::now();
            let tasks = writers.drain(..).zip(0..).map(|(mut writer, n)| {
                let share = (rounds + n) / WRITERS;
                runtime.spawn(async move {
                    for _ in 0..share {
                        writer.append().await;
                    }
                    writer
                })
            });
            let done = runtime.block_on(join_all(tasks.collect::<Vec<_>>()));
            let time = begin.elapsed();
            writers.extend(done.into_iter().map(Result::unwrap));
            time
        });
    });
    group.finish();
}

fn read_again(c: &mut Criterion) {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let (session, last) = runtime.block_on(async {
        let mut writer = WritingSession::new(&store, 0).await;
        for _ in 1..ROUNDS {
            writer.append().await;
        }
        (store.living_ids().await.unwrap()[0], 2 * ROUNDS)
    });
    let user = "bench".into();
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(MISSED));
    group.bench_function("the last 100 frames of a session with 4,000", |b| {
        b.iter(|| {
            let read = store.frames_after(session, &user, last - MISSED, usize::MAX);
            let chunk = runtime.block_on(read).unwrap();
            assert_eq!(chunk.frames.len() as u64, MISSED);
        });
    });
    group.finish();
}

/// Waits until the task or the last message is answered.
async fn answered(frames: &mut Subscription) {
    loop {
        match frames.next().await {
            SubscriptionItem::Frames(frames) => {
                if frames.iter().any(|(_, frame)| frame.contains("completed")) {
                    return;
                }
            }
            end => panic!("the session ended early: {end:?}"),
        }
    }
}

/// A session of the mock, with as many steps.
async fn played(sessions: &Sessions, steps: u64) -> SessionId {
    let new = NewSession {
        user: "bench".into(),
        project_id: None,
        task: "Fix the failing test.".to_owned(),
        repo_url: None,
        git_token: None,
        branch: None,
        git_user_name: None,
        git_user_email: None,
        provider: None,
        model: None,
        token_limit: None,
        cost_limit: None,
        api_key: None,
        policy: None,
        open_change: None,
    };
    let session: Arc<SessionHandle> = sessions.create(new).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    answered(&mut frames).await;
    for _ in 1..steps {
        let said = session.message("And now the next one, please.").await;
        said.unwrap();
        answered(&mut frames).await;
    }
    *session.id()
}

async fn app(storage: &Path) -> App {
    let config = Config::from_pairs([
        ("WORKSPACE_BASE_PATH", storage.to_str().unwrap()),
        ("SANDBOX_BACKEND", "none"),
        ("MOCK_STEP_DELAY_SECONDS", "0"),
    ]);
    Box::pin(App::start(config.unwrap())).await.unwrap()
}

fn decide_again(c: &mut Criterion) {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let app = runtime.block_on(app(folder.path()));
    let sessions = app.sessions();
    let id = runtime.block_on(played(sessions, STEPS));
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(STEPS));
    group.bench_function("100 logged steps through the mock", |b| {
        b.iter(|| {
            let replay = runtime.block_on(sessions.replay(id)).unwrap();
            assert_eq!((replay.same, replay.different), (STEPS, None));
        });
    });
    group.finish();
    runtime.block_on(sessions.shutdown());
}

criterion_group!(benches, append, read_again, decide_again);
criterion_main!(benches);
