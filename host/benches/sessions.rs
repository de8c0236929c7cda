//! What a whole session costs over the running server: `cargo bench --bench sessions`.
//!
//! Client and server share the machine, so a figure holds both. Machines differ and are noisy: read
//! it beside `health`, one HTTP request to the same server in the same run.

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

use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::SinkExt;
use futures::future::join_all;
use tokio::runtime::Builder;
use tokio_tungstenite::tungstenite::Message as Frame;

use client::Client;
use server::Server;

/// How many clients are connected at once in the throughput figure.
const CLIENTS: u64 = 16;

/// Connects, gives a task, reads until it is completed, stops, reads until the close.
async fn whole(url: &str, task: &str) {
    let mut client = Client::completed(url, task).await;
    let stop = Frame::text(r#"{"type":"stop"}"#);
    client.socket.send(stop).await.unwrap();
    client.until_closed().await;
}

fn sessions(c: &mut Criterion) {
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let storage = tempfile::tempdir().unwrap();
    let server = Server::start(storage.path(), &[]);

    // The client wants to know who would do TLS, also where nobody does.
    let ring = rustls::crypto::ring::default_provider();
    ring.install_default().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let health = server.health();
    c.bench_function("health", |b| {
        b.iter(|| {
            let request = async { client.get(&health).send().await.unwrap().text().await };
            runtime.block_on(request).unwrap()
        });
    });

    let mut group = c.benchmark_group("a whole mock session");
    group.throughput(Throughput::Elements(1));
    let url = server.socket("alone");
    let mut count = 0;
    group.bench_function("alone", |b| {
        b.iter(|| {
            count += 1;
            let task = format!("alone {count}");
            runtime.block_on(whole(&url, &task));
        });
    });

    let urls: Vec<String> = (0..CLIENTS)
        .map(|number| server.socket(&format!("user-{number}")))
        .collect();
    let mut run = 0;
    group.bench_function("at 16 clients", |b| {
        b.iter_custom(|sessions| {
            run += 1;
            let begin = Instant::now();
            let clients = urls.iter().zip(0..).map(|(url, number)| {
                let (url, share) = (url.clone(), (sessions + number) / CLIENTS);
                runtime.spawn(async move {
                    for n in 0..share {
                        // Each its own: the same work asked for twice is one session.
                        let task = format!("{run} {number} {n}");
                        whole(&url, &task).await;
                    }
                })
            });
            for done in runtime.block_on(join_all(clients.collect::<Vec<_>>())) {
                done.unwrap();
            }
            begin.elapsed()
        });
    });
    group.finish();
}

criterion_group!(benches, sessions);
criterion_main!(benches);
