//! What fails around sessions: the disk, locks, descriptors, clocks, models, hosts that are stopped while
//! they work. No session ends for it, and none loses anything.

mod clock;
mod descriptors;
mod disk;
mod goodbye;
mod left_alone;
mod locks;
mod moved;
mod outage;
mod starting;

use serde_json::{Value, json};

use lucid_tests::{Host, Socket, eventually, seq};

/// Sessions of the mock for as many users, each of which has shown its first step.
async fn begun(host: &Host, count: usize) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for number in 0..count {
        let first = json!({"task": format!("Task {number}"), "features": ["seq"]});
        let mut socket = Socket::open(host, &format!("user-{number}"), first).await;
        socket
            .until("its first step", |frame| {
                frame["eventType"] == "ThinkAction"
            })
            .await;
        sockets.push(socket);
    }
    sockets
}

fn is_status(frame: &Value, status: &str) -> bool {
    frame["type"] == "status" && frame["status"] == status
}

/// Frames of the log came in order, none left out and none twice; notices have no number.
#[track_caller]
fn check_dense(frames: &[Value]) {
    let numbers: Vec<u64> = frames.iter().filter_map(seq).collect();
    let dense = numbers.windows(2).all(|two| two[1] == two[0] + 1);
    assert!(dense && numbers.first() == Some(&1), "{numbers:?}");
    for frame in frames {
        let notice = is_status(frame, "paused") || is_status(frame, "resumed");
        assert_eq!(seq(frame).is_none(), notice, "{frame}");
    }
}

/// Waits until `GET /` says so.
async fn is_said(host: &Host, status: &str) -> Value {
    eventually(&format!("the status {status}"), async || {
        let about = host.send("GET", "/", &[], None).await.ok();
        (about["status"] == status).then_some(about)
    })
    .await
}
