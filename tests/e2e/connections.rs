//! Connections: those that only cost end, and keep nobody with a token from working.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use lucid_tests::{
    Host, Socket, command_with_descriptors, event, eventually, text_of, token, within,
};

/// A host that may open few files, and plays the mock without a sandbox.
fn small_host(descriptors: u64) -> Host {
    Host::with_defaults()
        .set("SANDBOX_BACKEND", "none")
        .with_descriptors(descriptors)
        .start()
}

/// A connection from one of this machine's addresses.
async fn connect_from(host: &Host, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    let to: SocketAddr = host.address().parse().unwrap();
    within("a connection", socket.connect(to)).await.unwrap()
}

/// Whether the host has closed it.
fn is_closed(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Asks for a user's sessions over a connection that is kept.
async fn ask(stream: &mut TcpStream) {
    let request = format!(
        "GET /api/v1/sessions HTTP/1.1\r\nhost: lucid\r\nauthorization: Bearer {}\r\n\r\n",
        token("alice")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 16 * 1024];
    let count = within("the answer", stream.read(&mut answer))
        .await
        .unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_limit_of_descriptors_keep_no_user_from_working() {
    let host = small_host(256);
    let mut before = Socket::open(&host, "alice", json!({"task": "Before"})).await;
    before.completed().await;
    let mut kept = connect_from(&host, 1).await;
    ask(&mut kept).await;
    // More of them than there are descriptors, of one address and of several; some are WebSockets that
    // say nothing.
    let mut idle = Vec::new();
    for number in 0..300 {
        idle.push(connect_from(&host, 1 + (number / 50) as u8).await);
    }
    let mut silent = Socket::connect(&host, "").await;
    for _ in 0..60 {
        idle.push(connect_from(&host, 1).await);
    }
    assert_eq!(silent.end().await, 1013);
    for number in 0..20 {
        let user = format!("user-{number}");
        let mut socket = Socket::open(&host, &user, json!({"task": "Meanwhile"})).await;
        socket.completed().await;
        host.get(&user, "/api/v1/sessions").await.ok();
        idle.push(connect_from(&host, 1).await);
    }
    before.say("Go on").await;
    event(&before.completed().await, "MockResponse");
    ask(&mut kept).await;
    // Most of the idle ones are gone, and those that came last are still there.
    let open = async || {
        let open = idle.iter().filter(|stream| !is_closed(stream)).count();
        (0 < open && open <= 76).then_some(())
    };
    eventually("the idle connections to give way", open).await;
    assert!(!is_closed(idle.last().unwrap()));
    let log = host.log();
    assert!(!log.contains("connection can be accepted"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_sockets_and_others_have_their_own() {
    let host = small_host(160);
    let mut first = Socket::open(&host, "alice", json!({"task": "Task"})).await;
    let session = first.session().await;
    let again = json!({"sessionId": session});
    let mut sockets = vec![first];
    let refused = loop {
        let mut socket = Socket::open(&host, "alice", again.clone()).await;
        if socket.next().await.unwrap()["type"] == "error" {
            break socket;
        }
        sockets.push(socket);
    };
    // Two thirds of a quarter of three fifths of the descriptors.
    assert_eq!(sockets.len(), 16);
    let text =
        "You have 16 connections already, which is as many as you may have. Close one first.";
    assert_eq!(refused.frames[0]["message"], text);
    let mut refused = refused;
    assert_eq!(refused.end().await, 1000);
    let mut other = Socket::open(&host, "bob", json!({"task": "Task"})).await;
    other.completed().await;
    host.get("alice", "/api/v1/sessions").await.ok();
    sockets.pop().unwrap().close().await;
    eventually("a place for another socket", async || {
        let mut socket = Socket::open(&host, "alice", again.clone()).await;
        (socket.next().await.unwrap()["type"] != "error").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_whose_requests_never_end_keeps_no_other_user_from_working() {
    let host = small_host(160);
    let request = format!(
        "POST /api/v1/sessions HTTP/1.1\r\nhost: lucid\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
        token("alice")
    );
    // More of them than there may be connections, and a quarter of those is in use for one user.
    let mut endless = Vec::new();
    for _ in 0..100 {
        let mut stream = connect_from(&host, 1).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        endless.push(stream);
    }
    let refused = eventually("a refusal", async || {
        let answer = host.get("alice", "/api/v1/sessions").await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(
        refused.problem(429),
        "You have 24 requests and connections in progress, which is as many as you may have. \
         Try again when one has ended."
    );
    host.get("bob", "/api/v1/sessions").await.ok();
    let mut other = Socket::open(&host, "bob", json!({"task": "Task"})).await;
    other.completed().await;
    drop(endless);
    eventually("a place for another request", async || {
        let answer = host.get("alice", "/api/v1/sessions").await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_pings_and_reads_nothing_is_closed_before_and_after_its_first_message() {
    let host = small_host(256);
    let mut stranger = Socket::connect(&host, "").await;
    stranger.ping(200).await;
    assert_eq!(stranger.end().await, 1008);
    let mut known = Socket::open(&host, "alice", json!({"task": "Task"})).await;
    known.completed().await;
    known.ping(200).await;
    assert_eq!(known.end().await, 1008);
    // As often as clients do.
    let mut other = Socket::open(&host, "bob", json!({"task": "Task"})).await;
    other.ping(20).await;
    other.completed().await;
}

/// A request of a user that is sent, and whose answer nobody reads.
async fn unread(host: &Host, user: &str, request: &str, body: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket
        .connect(host.address().parse().unwrap())
        .await
        .unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nhost: lucid\r\nauthorization: Bearer {}\r\n",
        token(user)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_user_does_not_take_are_few_and_keep_no_other_user_from_theirs() {
    let host = Host::with_defaults().start();
    let mut sessions = Vec::new();
    for user in ["alice", "bob"] {
        let mut socket =
            Socket::open(&host, user, json!({"task": "Files", "projectId": user})).await;
        let session = socket.session().await;
        socket.completed().await;
        // Each byte of it takes six in JSON.
        let large = host.workspace(&session).join("large");
        std::fs::write(large, vec![1; 4 << 20]).unwrap();
        sessions.push(session);
    }
    let path = |session: &str| format!("/api/v1/files/read?session_id={session}&path=large");
    let mut held = Vec::new();
    for _ in 0..12 {
        let request = format!("GET {}", path(&sessions[0]));
        held.push(unread(&host, "alice", &request, b"\r\n").await);
    }
    let refused = eventually("a refusal", async || {
        let answer = host.get("alice", &path(&sessions[0])).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert_eq!(
        refused.problem(429),
        "Your requests, and the answers that you have not taken yet, have as much memory as one user's may (64 MiB)."
    );
    // What is small is answered all the same.
    host.get("alice", "/api/v1/sessions").await.ok();
    host.get("bob", &path(&sessions[1])).await.ok();
    drop(held);
    eventually("room for another answer", async || {
        let answer = host.get("alice", &path(&sessions[0])).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_end_are_few_for_a_user() {
    let host = small_host(1024);
    let body = b"content-type: application/json\r\ncontent-length: 1048576\r\n\r\n{";
    let mut held = Vec::new();
    for _ in 0..80 {
        held.push(unread(&host, "alice", "POST /api/v1/sessions", body).await);
    }
    let task = json!({"task": "Task"});
    let refused = eventually("a refusal", async || {
        let answer = host.post("alice", "/api/v1/sessions", task.clone()).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    refused.problem(429);
    host.post("bob", "/api/v1/sessions", task.clone())
        .await
        .ok();
    drop(held);
    eventually("room for another body", async || {
        let answer = host.post("alice", "/api/v1/sessions", task.clone()).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_header_and_a_websocket_that_says_nothing_end_in_time() {
    let host = Host::with_defaults().set("SANDBOX_BACKEND", "none").start();
    let header = async {
        let begun = Instant::now();
        let (mut reading, mut writing) = connect_from(&host, 1).await.into_split();
        writing.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
        while writing.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut answer = Vec::new();
        let _ = reading.read_to_end(&mut answer).await;
        begun.elapsed()
    };
    let handshake = async {
        let begun = Instant::now();
        let mut socket = Socket::connect(&host, "").await;
        assert_eq!(socket.end().await, 4010);
        let text = "No first message came within 30 seconds.";
        assert_eq!(socket.frames[0]["message"], text);
        begun.elapsed()
    };
    let both = async { tokio::join!(header, handshake) };
    let (header, handshake) = within("both to end", both).await;
    let seconds = Duration::from_secs;
    assert!(seconds(8) < header && header < seconds(25), "{header:?}");
    assert!(
        seconds(29) < handshake && handshake < seconds(50),
        "{handshake:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_open_files_is_raised_and_the_doctor_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = |descriptors| {
        let mut doctor = command_with_descriptors(folder.path(), &["doctor"], descriptors);
        text_of(&doctor.output().unwrap().stdout)
    };
    let printed = doctor(1024);
    let found = "1024 files may be open at a time, and 612 of them may be connections of clients";
    assert!(printed.contains(found), "{printed}");
    assert!(printed.contains("LimitNOFILE="), "{printed}");
    let printed = doctor(8192);
    assert!(printed.contains("8192 files may be open"), "{printed}");
    assert!(!printed.contains("LimitNOFILE="), "{printed}");
}
