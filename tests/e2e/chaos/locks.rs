//! Another process holds the database's lock.

use std::time::Duration;

use rusqlite::Connection;

use super::{begun, check_dense, is_said, is_status};
use lucid_tests::Host;

/// Longer than any write waits for a lock by itself.
const HELD: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlast_a_lock_that_another_process_holds_for_long() {
    let host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    let mut sockets = begun(&host, 5).await;
    let database = host.folder().join("storage/.lucid/data/lucid.db");
    let other = Connection::open(database).unwrap();
    other.busy_timeout(Duration::from_secs(10)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let held = tokio::time::sleep(HELD);
    for socket in &mut sockets {
        socket
            .until("the pause", |frame| is_status(frame, "paused"))
            .await;
    }
    let about = is_said(&host, "degraded").await;
    assert!(
        about["reason"].as_str().unwrap().contains("locked"),
        "{about}"
    );
    held.await;
    other.execute_batch("ROLLBACK").unwrap();
    for mut socket in sockets {
        socket.completed().await;
        check_dense(&socket.frames);
    }
    is_said(&host, "healthy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_of_the_host_does_not_wait_for_another_process_and_sessions_go_on_afterwards() {
    let mut host = Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .set("MOCK_STEP_DELAY_SECONDS", "1")
        .start();
    let mut socket = begun(&host, 1).await.remove(0);
    let database = host.folder().join("storage/.lucid/data/lucid.db");
    let other = Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    socket
        .until("the pause", |frame| is_status(frame, "paused"))
        .await;
    host.stop().await;
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    host.start_again();
    let first = serde_json::json!({"task": "Task 0", "features": ["seq"]});
    let mut again = lucid_tests::Socket::open(&host, "user-0", first).await;
    again.completed().await;
    check_dense(&again.frames);
}
