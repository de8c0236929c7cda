//! No file descriptor is left.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use super::{begun, check_dense, is_said};
use lucid_tests::{Host, Socket, eventually, within};

fn limit(host: &Host, descriptors: u64) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap());
    let new = Rlimit {
        current: Some(descriptors),
        // The host has this process's own.
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    prlimit(pid, Resource::Nofile, new).unwrap()
}

fn open(host: &Host) -> u64 {
    let open = std::fs::read_dir(format!("/proc/{}/fd", host.pid())).unwrap();
    open.count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_on_where_no_descriptor_is_left_and_clients_come_back_when_there_is() {
    let host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    let mut sockets = begun(&host, 5).await;
    let before = limit(&host, open(&host));
    // All of this is written and read with what is open.
    for socket in &mut sockets {
        socket.completed().await;
    }
    sockets[0].say("One more").await;
    sockets[0].completed().await;
    // A client that comes now waits for a descriptor, and nobody suffers from it.
    let mut late = tokio::spawn({
        let address = host.address().to_owned();
        async move { tokio::net::TcpStream::connect(address).await.map(drop) }
    });
    within("the connection to be queued", &mut late)
        .await
        .unwrap()
        .unwrap();
    limit(&host, before.current.unwrap_or(4096));
    eventually("the server to answer", async || {
        let mut socket = Socket::open(&host, "eve", json!({"task": "Task"})).await;
        (!socket.completed().await.is_empty()).then_some(())
    })
    .await;
    for socket in &sockets {
        check_dense(&socket.frames);
    }
    is_said(&host, "healthy").await;
}
