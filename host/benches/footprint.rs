//! How soon the server is there, and how much memory it holds: `cargo bench --bench footprint`.
//!
//! All of it is measured from outside, on the binary in a process of its own. Memory is what Linux
//! says is resident: `anonymous` is the process's own, `files` are pages of its executable and its
//! database, which the system can drop and read again. KB and MB are thousands and millions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod server;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};

use client::Client;
use lucid::builtin;
use server::Server;

/// Clients that connect at a time.
const CLIENTS: usize = 16;
/// Connections of one user.
const SOCKETS_PER_USER: usize = 64;

/// How many of those that sleep are woken.
const WOKEN: usize = 1_000;
/// By then a session sleeps whose client has gone.
const SOON_ASLEEP: Duration = Duration::from_secs(4);

/// How much is done.
struct Plan {
    starts: usize,
    sessions: usize,
    sleeping: usize,
    plugins: &'static [u8],
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let measured = arguments.any(|argument| argument == "--bench");
    let plan = if measured {
        Plan {
            starts: 10,
            sessions: 512,
            sleeping: 100_000,
            plugins: &[1, 10, 100],
        }
    } else {
        // `cargo test --benches` only asks whether it works.
        Plan {
            starts: 1,
            sessions: 16,
            sleeping: 32,
            plugins: &[1],
        }
    };
    println!("{:48}{:>8}{:>11}", "lucid serve", "aim", "measured");
    let storage = tempfile::tempdir().unwrap();
    starts(storage.path(), plan.starts);
    resident(storage.path());
    for count in plan.plugins {
        loaded(*count);
    }
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    for stays in [true, false] {
        idle_sessions(&runtime, plan.sessions, stays);
    }
    sleeping_sessions(&runtime, plan.sleeping);
}

/// One line of the table.
fn show(what: &str, aim: &str, measured: &str) {
    println!("{what:48}{aim:>8}{measured:>11}");
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// From the start of the process to the answer that it is healthy.
fn start(storage: &Path, settings: &[(&str, &str)]) -> (Duration, Server) {
    let begin = Instant::now();
    let server = Server::start(storage, settings);
    let health = server.health();
    let address = health
        .strip_prefix("http://")
        .and_then(|rest| rest.strip_suffix("/health"))
        .unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /health HTTP/1.1\r\nHost: lucid\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    (begin.elapsed(), server)
}

fn starts(storage: &Path, count: usize) {
    let millis = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    let (first, server) = start(storage, &[]);
    show(
        "first start to healthy, compiling the plugins",
        "",
        &millis(first),
    );
    let memory = Memory::of(&server);
    show(
        "resident after the first start",
        "",
        &megabytes(memory.anonymous + memory.files),
    );
    drop(server);
    let mut times: Vec<_> = (0..count).map(|_| start(storage, &[]).0).collect();
    times.sort();
    show(
        &format!("start to healthy, median of {count}"),
        "300 ms",
        &millis(times[count / 2]),
    );
}

/// Resident memory of a process, in bytes.
struct Memory {
    anonymous: u64,
    files: u64,
}

impl Memory {
    fn of(server: &Server) -> Self {
        let path = format!("/proc/{}/status", server.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let bytes = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
            kib.parse::<u64>().unwrap() * 1024
        };
        Self {
            anonymous: bytes("RssAnon:"),
            files: bytes("RssFile:") + bytes("RssShmem:"),
        }
    }
}

fn resident(storage: &Path) {
    let (_, server) = start(storage, &[]);
    let memory = Memory::of(&server);
    let all = memory.anonymous + memory.files;
    show("resident when idle", "40 MB", &megabytes(all));
    show("  of it anonymous", "", &megabytes(memory.anonymous));
    show("  of it files", "", &megabytes(memory.files));
}

/// What the server holds, and how soon it is there, with so many policies, none of which is another's
/// component: the coder, with a number of its own behind it.
fn loaded(count: u8) {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = "[defaults]\npolicy = \"p0\"\n".to_owned();
    for number in 0..count {
        // A section that nobody reads: `n`, and the number.
        let wasm = [builtin::CODER, &[0, 3, 1, b'n', number]].concat();
        std::fs::write(folder.path().join(format!("p{number}.wasm")), wasm).unwrap();
        manifest += &format!("[policies.p{number}]\ncomponent = \"p{number}.wasm\"\n");
    }
    let path = folder.path().join("lucid.toml");
    std::fs::write(&path, manifest).unwrap();
    let storage = folder.path().join("storage");
    std::fs::create_dir(&storage).unwrap();
    let settings = [("LUCID_MANIFEST", path.to_str().unwrap())];
    let millis = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    let (first, server) = start(&storage, &settings);
    drop(server);
    let (again, server) = start(&storage, &settings);
    let memory = Memory::of(&server);
    let all = memory.anonymous + memory.files;
    let what = |what: &str| format!("{count} policies: {what}");
    show(&what("first start, compiling them"), "", &millis(first));
    show(&what("start, from the cache"), "", &millis(again));
    show(&what("resident"), "", &megabytes(all));
}

/// What a session holds whose task is completed and whose user may go on, with the client connected
/// or gone. The first sessions only warm the server up.
fn idle_sessions(runtime: &Runtime, count: usize, stays: bool) {
    let storage = tempfile::tempdir().unwrap();
    let server = Server::start(storage.path(), &[]);
    let warm_up = runtime.block_on(clients(&server, "warm", count / 4, stays));
    let before = Memory::of(&server).anonymous;
    let measured = runtime.block_on(clients(&server, "idle", count, stays));
    let after = Memory::of(&server).anonymous;
    let each = after.saturating_sub(before) as f64 / count as f64;
    let what = if stays {
        "an idle session, its client connected"
    } else {
        "an idle session, its client gone"
    };
    show(what, "40 KB", &format!("{:.1} KB", each / 1e3));
    drop((warm_up, measured));
}

/// What the server holds of sessions that sleep, and how soon one of them is back when its user is.
fn sleeping_sessions(runtime: &Runtime, count: usize) {
    let storage = tempfile::tempdir().unwrap();
    let settings = [("SESSION_GRACE_SECONDS", "86400")];
    let server = Server::start(storage.path(), &settings);
    let asleep = |name: &str, count: usize| {
        let sessions = runtime.block_on(left(&server, name, count));
        std::thread::sleep(SOON_ASLEEP);
        sessions
    };
    let sessions = asleep("asleep", count);
    let memory = Memory::of(&server);
    let all = memory.anonymous + memory.files;
    let what = format!("resident with {count} sessions that sleep");
    show(&what, "200 MB", &megabytes(all));
    let step = (count / WOKEN).max(1);
    let mut times: Vec<Duration> = runtime.block_on(async {
        let mut times = Vec::new();
        for (url, session) in sessions.iter().step_by(step) {
            let first = format!(r#"{{"sessionId":"{session}"}}"#);
            let begin = Instant::now();
            Client::until(url, first, "").await;
            times.push(begin.elapsed());
        }
        times
    });
    times.sort();
    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let what = "from connecting to one to its first frame";
    show(what, "", &millis(times[times.len() / 2]));
    let slowest = times[times.len() * 99 / 100];
    show("  the slowest of a hundred", "10 ms", &millis(slowest));
    drop(server);
    // Nothing has lived in this process yet but what sleeps, beside what is always there.
    let empty = tempfile::tempdir().unwrap();
    let (_, idle) = start(empty.path(), &settings);
    let before = Memory::of(&idle).anonymous;
    drop(idle);
    let (time, server) = start(storage.path(), &settings);
    let after = Memory::of(&server).anonymous;
    show(&format!("start with {count} that sleep"), "", &millis(time));
    let each = after.saturating_sub(before) as f64 / count as f64;
    show("what one takes then", "300 B", &format!("{each:.0} B"));
}

/// Sessions whose tasks are completed and whose clients have left, each with its user's address.
async fn left(server: &Server, name: &str, count: usize) -> Vec<(String, String)> {
    let session = async |number: usize| {
        let url = server.socket(&format!("{name}-{}", number / SOCKETS_PER_USER));
        let first = format!(r#"{{"task":"{name} {number}"}}"#);
        let (mut client, read) = Client::until(&url, first, client::COMPLETED).await;
        client.socket.close(None).await.unwrap();
        client.until_closed().await;
        let (_, id) = read.split_once(r#""sessionId":""#).unwrap();
        (url, id.split('"').next().unwrap().to_owned())
    };
    let mut all = Vec::new();
    while all.len() < count {
        let most = (all.len() + CLIENTS).min(count);
        all.extend(join_all((all.len()..most).map(session)).await);
    }
    all
}

/// Clients whose tasks are completed; those that do not stay have left when this returns.
async fn clients(server: &Server, name: &str, count: usize, stays: bool) -> Vec<Client> {
    let client = async |number: usize| {
        // A user has so many connections at most.
        let url = server.socket(&format!("{name}-{}", number / SOCKETS_PER_USER));
        let mut client = Client::completed(&url, &format!("{name} {number}")).await;
        if !stays {
            client.socket.close(None).await.unwrap();
            client.until_closed().await;
        }
        client
    };
    let mut all = Vec::new();
    while all.len() < count {
        let most = (all.len() + CLIENTS).min(count);
        all.extend(join_all((all.len()..most).map(client)).await);
    }
    all
}
