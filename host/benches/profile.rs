//! Where the time of a session goes, beside another build in the same run:
//! `LUCID_BASE=path/to/lucid cargo bench --bench profile`.
//!
//! Builds take turns, and each figure is the median of five rounds. Processor time is what Linux counted
//! for the server's threads, so that the client's is no part of it; page writes are those of SQLite's log.
//! How to look inside with `perf` is in `docs/benchmarks.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures::SinkExt;
use futures::future::join_all;
use rusqlite::{Connection, OpenFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_tungstenite::tungstenite::Message as Frame;

use client::Client;
use server::Server;

/// How many clients are connected at once where that is asked.
const CLIENTS: usize = 16;
/// The same where sessions have sandboxes.
const SANDBOXED: usize = 8;
/// A frame of SQLite's log: a page and its header.
const PAGE_WRITE: u64 = 4096 + 24;

/// How much is done.
struct Plan {
    rounds: usize,
    /// Sessions one after the other, and of each client where many are connected.
    alone: usize,
    each: usize,
    /// Sessions with a sandbox, in all, and of each client where many are connected.
    sandboxed: (usize, usize),
    /// Sessions of which the page writes are counted: fewer than what SQLite's log is copied for.
    counted: usize,
    created: usize,
}

/// The figures of one build, by what they are. Each has a value for each round.
type Figures = BTreeMap<String, Vec<f64>>;

fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--perf");
    if let Some(file) = arguments.nth(1) {
        return record(&file);
    }
    let measured = std::env::args().any(|argument| argument == "--bench");
    let plan = if measured {
        Plan {
            rounds: 5,
            alone: 400,
            each: 150,
            sandboxed: (40, 20),
            counted: 8,
            created: 1_000,
        }
    } else {
        Plan {
            rounds: 1,
            alone: 2,
            each: 1,
            // Not every machine has them.
            sandboxed: (0, 0),
            counted: 1,
            created: 2,
        }
    };
    let mut builds = vec![PathBuf::from(env!("CARGO_BIN_EXE_lucid"))];
    builds.extend(std::env::var_os("LUCID_BASE").map(PathBuf::from));
    let mut figures: Vec<Figures> = builds.iter().map(|_| Figures::new()).collect();
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    for _ in 0..plan.rounds {
        for (binary, figures) in builds.iter().zip(&mut figures) {
            round(&runtime, binary, &plan, figures);
        }
    }
    let heads: &[&str] = if builds.len() > 1 {
        &["this build", "base"]
    } else {
        &["this build"]
    };
    print!("{:56}", "");
    for head in heads {
        print!("{head:>12}");
    }
    println!();
    let names: Vec<_> = figures[0].keys().cloned().collect();
    for name in names {
        print!("{name:56}");
        for figures in &mut figures {
            match figures.get_mut(&name) {
                Some(values) => print!("{:>12.2}", median(values)),
                None => print!("{:>12}", "-"),
            }
        }
        println!();
    }
}

/// Has `perf` look at this build for ten seconds, while sessions are played: one after the other, with
/// `--many` many at once, with `--waits` many whose policy waits between rounds, and with `--sandbox` with
/// sandboxes of bubblewrap.
fn record(file: &str) {
    let asked = |what| std::env::args().any(|argument| argument == what);
    let waits = asked("--waits");
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let storage = tempfile::tempdir().unwrap();
    let delay = if waits { "0.01" } else { "0" };
    let sandbox = if asked("--sandbox") {
        "bubblewrap"
    } else {
        "none"
    };
    let settings = [
        ("MOCK_STEP_DELAY_SECONDS", delay),
        ("SANDBOX_BACKEND", sandbox),
    ];
    let server = Server::start(storage.path(), &settings);
    let clients = if waits || asked("--many") { CLIENTS } else { 1 };
    let urls: Vec<String> = (0..clients)
        .map(|number| server.socket(&format!("user-{number}")))
        .collect();
    runtime.block_on(session(&urls[0], "first"));
    let mut perf = Command::new("perf")
        .args(["record", "--freq=5000", "--call-graph=dwarf,16384"])
        .args(["--output", file])
        .args(["--pid", &server.child.id().to_string(), "--", "sleep", "10"])
        .spawn()
        .expect("perf is installed");
    while perf.try_wait().unwrap().is_none() {
        many(&runtime, &urls, 10);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// All figures of one build, once.
fn round(runtime: &Runtime, binary: &Path, plan: &Plan, figures: &mut Figures) {
    let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;

    let storage = tempfile::tempdir().unwrap();
    let server = Server::start_binary(binary, storage.path(), &[]);
    let url = server.socket("alone");
    let before = page_writes(storage.path());
    for number in 0..plan.counted {
        runtime.block_on(session(&url, &format!("counted {number}")));
    }
    let pages = page_writes(storage.path()) - before;
    note("a session: page writes", pages as f64 / plan.counted as f64);
    note("a session: rows of the log", rows(storage.path()));

    let used = Used::of(&server);
    let mut times: Vec<f64> = (0..plan.alone)
        .map(|number| {
            let begin = Instant::now();
            runtime.block_on(session(&url, &format!("alone {number}")));
            micros(begin.elapsed())
        })
        .collect();
    note("a session alone: p50, µs", median(&mut times));
    let spent = Used::of(&server).since(&used);
    note(
        "a session: processor time, µs",
        micros(spent.whole()) / plan.alone as f64,
    );
    for (thread, time) in spent.0 {
        let name = format!("a session: processor time of {thread}, µs");
        note(&name, micros(time) / plan.alone as f64);
    }

    let users: Vec<String> = (0..CLIENTS)
        .map(|number| server.socket(&format!("user-{number}")))
        .collect();
    let begin = Instant::now();
    many(runtime, &users, plan.each);
    let sessions = (plan.each * CLIENTS) as f64;
    note(
        "16 clients: sessions a second",
        sessions / begin.elapsed().as_secs_f64(),
    );

    let begin = Instant::now();
    let used = Used::of(&server);
    let clients = (0..CLIENTS).map(|number| {
        let token = Server::token(&format!("maker-{number}"));
        runtime.spawn(create(server.health(), token, plan.created))
    });
    for done in runtime.block_on(join_all(clients.collect::<Vec<_>>())) {
        done.unwrap();
    }
    let created = (plan.created * CLIENTS) as f64;
    note(
        "16 clients: POST /sessions a second",
        created / begin.elapsed().as_secs_f64(),
    );
    let spent = Used::of(&server).since(&used).whole();
    note(
        "POST /sessions: processor time, µs",
        micros(spent) / created,
    );
    drop(server);

    let storage = tempfile::tempdir().unwrap();
    let delay = [("MOCK_STEP_DELAY_SECONDS", "0.01")];
    let server = Server::start_binary(binary, storage.path(), &delay);
    let urls: Vec<String> = (0..CLIENTS)
        .map(|number| server.socket(&format!("waits-{number}")))
        .collect();
    // What starts once is no part of a round.
    runtime.block_on(session(&urls[0], "first"));
    let used = Used::of(&server);
    let each = plan.each.div_ceil(10);
    let sessions = each * CLIENTS;
    many(runtime, &urls, each);
    let spent = Used::of(&server).since(&used);
    let rounds = rows(storage.path());
    note("a policy that waits: rows of the log", rounds);
    let rounds = rounds * sessions as f64;
    note(
        "a round of a policy that waits: processor time, µs",
        micros(spent.whole()) / rounds,
    );
    for (thread, time) in spent.0 {
        let name = format!("a round of a policy that waits: of {thread}, µs");
        note(&name, micros(time) / rounds);
    }
    drop(server);

    let kinds: &[&str] = match plan.sandboxed {
        (0, _) => &[],
        _ => &["bubblewrap", "landlock"],
    };
    for kind in kinds {
        let storage = tempfile::tempdir().unwrap();
        let server = Server::start_binary(binary, storage.path(), &[("SANDBOX_BACKEND", *kind)]);
        let (alone, each) = plan.sandboxed;
        let url = server.socket("alone");
        let mut times: Vec<f64> = (0..alone)
            .map(|number| {
                let begin = Instant::now();
                runtime.block_on(session(&url, &format!("alone {number}")));
                micros(begin.elapsed()) / 1e3
            })
            .collect();
        note(
            &format!("a session with {kind}, alone: p50, ms"),
            median(&mut times),
        );
        let users: Vec<String> = (0..SANDBOXED)
            .map(|number| server.socket(&format!("user-{number}")))
            .collect();
        let begin = Instant::now();
        many(runtime, &users, each);
        let sessions = (each * SANDBOXED) as f64;
        note(
            &format!("{SANDBOXED} clients with {kind}: sessions a second"),
            sessions / begin.elapsed().as_secs_f64(),
        );
    }
}

/// Has clients do this many sessions each, all at once.
fn many(runtime: &Runtime, urls: &[String], each: usize) {
    let clients = urls.iter().map(|url| {
        let url = url.clone();
        runtime.spawn(async move {
            for number in 0..each {
                session(&url, &format!("one of many {number}")).await;
            }
        })
    });
    for done in runtime.block_on(join_all(clients.collect::<Vec<_>>())) {
        done.unwrap();
    }
}

/// Connects, gives a task, reads until it is completed, stops, reads until the close.
async fn session(url: &str, task: &str) {
    let mut client = Client::completed(url, task).await;
    let stop = Frame::text(r#"{"type":"stop"}"#);
    client.socket.send(stop).await.unwrap();
    client.until_closed().await;
}

/// Creates sessions over one connection.
async fn create(health: String, token: String, count: usize) {
    let address = health.trim_start_matches("http://");
    let address = address.trim_end_matches("/health");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 4096];
    for number in 0..count {
        let body = format!(r#"{{"task":"create {number}"}}"#);
        let request = format!(
            "POST /api/v1/sessions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut length = 0;
        loop {
            let read = stream.read(&mut answer[length..]).await.unwrap();
            assert!(read > 0, "the connection was closed");
            length += read;
            let text = String::from_utf8_lossy(&answer[..length]);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                assert!(head.starts_with("HTTP/1.1 200"), "{text}");
                let size = head.to_ascii_lowercase();
                let size = size.split("content-length: ").nth(1).unwrap();
                let size: usize = size.lines().next().unwrap().parse().unwrap();
                if body.len() >= size {
                    break;
                }
            }
        }
    }
}

/// How many pages were written to SQLite's log since it began anew.
fn page_writes(storage: &Path) -> u64 {
    let log = database(storage).with_extension("db-wal");
    log.metadata().map_or(0, |file| file.len()) / PAGE_WRITE
}

/// Rows of the log that a session has, on average.
fn rows(storage: &Path) -> f64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(database(storage), flags).unwrap();
    let sql = "SELECT CAST(count(*) AS REAL) / (SELECT count(*) FROM sessions) FROM steps";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn database(storage: &Path) -> PathBuf {
    storage.join(".lucid/data/lucid.db")
}

/// The processor time that a server's threads have used, by their names.
struct Used(BTreeMap<String, Duration>);

impl Used {
    fn of(server: &Server) -> Self {
        let mut times = BTreeMap::new();
        let tasks = format!("/proc/{}/task", server.child.id());
        for task in std::fs::read_dir(tasks).unwrap() {
            let task = task.unwrap().path();
            // One that ended meanwhile is gone.
            let read = |name| std::fs::read_to_string(task.join(name));
            let (Ok(name), Ok(time)) = (read("comm"), read("schedstat")) else {
                continue;
            };
            let name = name
                .trim()
                .trim_end_matches(|c: char| c.is_numeric() || c == '-');
            let nanos = time.split(' ').next().unwrap().parse().unwrap();
            *times.entry(name.to_owned()).or_default() += Duration::from_nanos(nanos);
        }
        Self(times)
    }

    /// What was used since, without the threads that used next to nothing.
    fn since(&self, before: &Self) -> Self {
        let spent = self.0.iter().map(|(name, time)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), time.saturating_sub(before))
        });
        Self(spent.collect())
    }

    fn whole(&self) -> Duration {
        self.0.values().sum()
    }
}
