//! What nine users notice of a tenth who asks for as much as one can: `cargo bench --bench fairness`.
//!
//! The nine look at their chats and files and talk to their sessions, first alone and then for half a
//! minute beside the tenth, who lists a folder with 300,000 hidden names, sends large messages and
//! deletes chats, all of it without a pause. Clients and server share the machine, so a figure holds
//! both (the tenth user's client has the lowest priority, as if it were elsewhere): read it beside the
//! quiet one of the same run. The aim is a p99 below three times that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a frontend's client, which is none of the host's"
)]

#[path = "common/client.rs"]
mod client;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio_tungstenite::tungstenite::Message as Frame;

use client::Client;
use server::Server;

/// The users whose waits are measured.
const USERS: usize = 9;
const HIDDEN: usize = 300_000;
/// Listings of the tenth user at the same time.
const LISTINGS: usize = 200;
const QUIET: Duration = Duration::from_secs(10);
const FLOODED: Duration = Duration::from_secs(30);
/// Between two calls of a user.
const PAUSE: Duration = Duration::from_millis(20);

/// A user's way to the server.
#[derive(Clone)]
struct User {
    http: reqwest::Client,
    base: String,
    socket: String,
    token: String,
}

impl User {
    fn new(server: &Server, http: &reqwest::Client, name: &str) -> Self {
        let socket = server.socket(name);
        let (_, token) = socket.split_once("token=").unwrap();
        Self {
            http: http.clone(),
            base: server.health().replace("/health", "/api/v1"),
            token: token.to_owned(),
            socket,
        }
    }

    async fn send(&self, method: reqwest::Method, path: &str) -> (u16, Value) {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(reqwest::Method::GET, path).await
    }

    /// A session that has played its script, and its id.
    async fn session(&self, task: &str) -> (Client, String) {
        let client = Client::completed(&self.socket, task).await;
        let (_, list) = self.get("/sessions").await;
        let id = list["sessions"][0]["sessionId"].as_str().unwrap();
        (client, id.to_owned())
    }
}

/// The waits of each kind, and how many calls failed.
#[derive(Default)]
struct Waits {
    of: Mutex<BTreeMap<&'static str, Vec<Duration>>>,
    failed: AtomicUsize,
}

impl Waits {
    fn add(&self, kind: &'static str, begun: Instant, good: bool) {
        let mut of = self.of.lock().unwrap();
        of.entry(kind).or_default().push(begun.elapsed());
        if !good {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The waits that half, and all but one percent, are below.
    fn shares(&self, kind: &str) -> (Duration, Duration) {
        let mut of = self.of.lock().unwrap();
        let times = of.get_mut(kind).unwrap();
        times.sort();
        let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
        (at(50), at(99))
    }
}

/// What one of the nine does until the end.
async fn work(
    user: User,
    session: String,
    mut client: Client,
    waits: Arc<Waits>,
    end: Instant,
) -> Client {
    let (_, chats) = user.get("/chats").await;
    // One that does not grow meanwhile.
    let mut chats = chats["chats"].as_array().unwrap().iter();
    let chat = chats.find(|chat| chat["title"] == "Read").unwrap();
    let chat = chat["id"].as_str().unwrap().to_owned();
    let paths = [
        ("a list of chats", "/chats".to_owned()),
        ("a chat", format!("/chats/{chat}")),
        ("a tree", format!("/files/list?session_id={session}")),
        (
            "a file",
            format!("/files/read?session_id={session}&path=hello.txt"),
        ),
    ];
    while Instant::now() < end {
        for (kind, path) in &paths {
            let begun = Instant::now();
            let (status, _) = user.get(path).await;
            waits.add(kind, begun, status == 200);
            tokio::time::sleep(PAUSE).await;
        }
        let begun = Instant::now();
        let message = json!({"type": "message", "content": "hello"}).to_string();
        client.socket.send(Frame::text(message)).await.unwrap();
        let good = loop {
            match client.socket.next().await {
                Some(Ok(Frame::Text(text))) if text.contains("MockResponse") => break true,
                Some(Ok(Frame::Text(text))) if text.contains(r#""type":"error""#) => break false,
                Some(Ok(_)) => {}
                end => panic!("a session ended: {end:?}"),
            }
        };
        waits.add("a message", begun, good);
        tokio::time::sleep(PAUSE).await;
    }
    client
}

/// Asks for as much as one can until it is stopped. Returns how often something was done.
async fn flood(user: User, session: String, stop: Arc<AtomicBool>) -> String {
    let listed = (0..LISTINGS).map(|_| {
        let (user, stop) = (user.clone(), stop.clone());
        let path = format!("/files/list?session_id={session}");
        tokio::spawn(async move {
            let (mut listed, mut refused) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                match user.get(&path).await.0 {
                    200 => listed += 1,
                    _ => refused += 1,
                }
            }
            (listed, refused)
        })
    });
    let listed: Vec<_> = listed.collect();
    let sent = Arc::new(AtomicUsize::new(0));
    let written = (0..4).map(|number| {
        let (user, stop, sent) = (user.clone(), stop.clone(), sent.clone());
        tokio::spawn(async move {
            let long = "x".repeat(700_000);
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let (mut client, _) = user.session(&format!("write {number} {round}")).await;
                for _ in 0..20 {
                    let message = json!({"type": "message", "content": long}).to_string();
                    if client.socket.send(Frame::text(message)).await.is_err() {
                        break;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                let stopping = Frame::text(r#"{"type":"stop"}"#);
                if client.socket.send(stopping).await.is_ok() {
                    client.until_closed().await;
                }
                let (_, chats) = user.get("/chats?limit=2").await;
                for chat in chats["chats"].as_array().into_iter().flatten() {
                    let path = format!("/chats/{}", chat["id"].as_str().unwrap());
                    user.send(reqwest::Method::DELETE, &path).await;
                }
            }
        })
    });
    let written: Vec<_> = written.collect();
    let (mut done, mut refused) = (0, 0);
    for one in listed {
        let (listed, turned_away) = one.await.unwrap();
        done += listed;
        refused += turned_away;
    }
    for one in written {
        // It may wait for a session that has much to answer, and has ended if one was refused.
        one.abort();
    }
    let sent = sent.load(Ordering::Relaxed);
    format!("{done} listings, {refused} refused; {sent} messages of 700 KB sent")
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.flatten().find_map(|entry| {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        let is_folder = entry.file_type().ok()?.is_dir();
        is_folder.then(|| find(&entry.path(), name))?
    })
}

async fn measure(server: &Server, storage: &Path, elsewhere: &Handle) {
    let client = || reqwest::Client::builder().no_proxy().build().unwrap();
    let tenth = User::new(server, &client(), "tenth");
    let (_client, session) = tenth.session("Hide").await;
    let hidden = find(storage, &session).unwrap().join("many");
    std::fs::create_dir(&hidden).unwrap();
    for number in 0..HIDDEN {
        std::fs::write(hidden.join(format!(".lucid-{number}")), "").unwrap();
    }

    let http = client();
    let mut users = Vec::new();
    for number in 0..USERS {
        let user = User::new(server, &http, &format!("user-{number}"));
        drop(user.session("Read").await);
        let (client, session) = user.session("Work").await;
        std::fs::write(find(storage, &session).unwrap().join("hello.txt"), "hello").unwrap();
        users.push((user, session, client));
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut runs = Vec::new();
    let mut flooding = None;
    for time in [QUIET, FLOODED] {
        if time == FLOODED {
            let flood = flood(tenth.clone(), session.clone(), stop.clone());
            flooding = Some(elsewhere.spawn(flood));
        }
        let waits = Arc::new(Waits::default());
        let end = Instant::now() + time;
        let working = users.drain(..).map(|(user, session, client)| {
            let waits = waits.clone();
            tokio::spawn(async move {
                let client = work(user.clone(), session.clone(), client, waits, end).await;
                (user, session, client)
            })
        });
        let worked = join_all(working.collect::<Vec<_>>()).await;
        users.extend(worked.into_iter().map(Result::unwrap));
        runs.push(waits);
    }
    stop.store(true, Ordering::Relaxed);
    let tenth = flooding.unwrap().await.unwrap();
    println!("the tenth user: {tenth}");
    for kind in ["a list of chats", "a chat", "a tree", "a file", "a message"] {
        let [(quiet_half, quiet), (half, flooded)] =
            [&runs[0], &runs[1]].map(|run| run.shares(kind));
        let times = flooded.as_secs_f64() / quiet.as_secs_f64();
        println!(
            "{kind:<16} quiet p50 {quiet_half:>9.2?} p99 {quiet:>9.2?}   flooded p50 {half:>9.2?} p99 {flooded:>9.2?}   {times:.1} times"
        );
    }
    let failed: Vec<_> = runs
        .iter()
        .map(|run| run.failed.load(Ordering::Relaxed))
        .collect();
    println!(
        "calls of the nine that failed: {} quiet, {} flooded",
        failed[0], failed[1]
    );
}

fn main() {
    let ring = rustls::crypto::ring::default_provider();
    ring.install_default().unwrap();
    let storage = tempfile::tempdir().unwrap();
    let server = Server::start(storage.path(), &[("SANDBOX_BACKEND", "local")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // The tenth user's machine is another one: it gets what server and the nine leave of this one.
    let elsewhere = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| rustix::process::setpriority_process(None, 19).unwrap())
        .build()
        .unwrap();
    runtime.block_on(measure(&server, storage.path(), elsewhere.handle()));
    elsewhere.shutdown_background();
}
