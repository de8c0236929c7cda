//! The listener, with time limits that a test can wait for.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::WebSocketUpgrade;
use axum::routing::get;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::*;

const HEADER: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_millis(700);
/// Wide, since tests run beside each other.
const DEADLINE: Duration = Duration::from_secs(20);
/// The size of an answer that no buffer of a connection holds.
const LARGE: usize = 64 << 20;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: lucid\r\n\r\n";
const SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nhost: lucid\r\n\r\n";

/// What holds the answers of `/slow` back.
struct Gate {
    /// The requests that have come.
    come: Semaphore,
    /// The answers that may be given.
    open: Semaphore,
}

impl Gate {
    async fn pass(&self) -> &'static str {
        self.come.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        "done"
    }

    /// Waits until so many more requests have come.
    async fn come(&self, count: u32) {
        let come = timeout(DEADLINE, self.come.acquire_many(count)).await;
        come.unwrap().unwrap().forget();
    }
}

struct Served {
    address: SocketAddr,
    budget: ConnectionBudget,
    gate: Arc<Gate>,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<()>,
}

impl Served {
    async fn start(limits: ConnectionLimits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endless = || async {
            let piece = || Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 64 * 1024]));
            Body::from_stream(futures::stream::repeat_with(piece))
        };
        let gate = Arc::new(Gate {
            come: Semaphore::new(0),
            open: Semaphore::new(0),
        });
        let slow = {
            let gate = gate.clone();
            move || async move { gate.pass().await }
        };
        let echo = |upgrade: WebSocketUpgrade| async {
            upgrade.on_upgrade(|mut socket| async move {
                while let Some(Ok(message)) = socket.recv().await {
                    let _ = socket.send(message).await;
                }
            })
        };
        let router = Router::new()
            .route("/echo", get(echo))
            .route("/", get(|| async { "here" }))
            .route("/slow", get(slow))
            .route("/large", get(|| async { vec![b'x'; LARGE] }))
            .route("/endless", get(endless));
        let timeouts = ConnectionTimeouts {
            header: HEADER,
            idle: IDLE,
            write: WRITE,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let budget = ConnectionBudget::new(limits);
        let budgets = (budget.clone(), timeouts);
        let ended = tokio::spawn(serve(listener, router, budgets, async move {
            let _ = stopped.await;
        }));
        Self {
            address,
            budget,
            gate,
            stop: Some(stop),
            ended,
        }
    }

    async fn with_room() -> Self {
        Self::start(ConnectionLimits::for_descriptors(1024)).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }
}

/// The next of what is sent, as text.
async fn read(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 64 * 1024];
    let count = timeout(DEADLINE, stream.read(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes[..count.unwrap_or(0)]).into_owned()
}

/// How long it takes until the connection is closed; whatever comes before is dropped.
async fn closed(stream: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    let mut bytes = vec![0; 64 * 1024];
    timeout(DEADLINE, async {
        while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    })
    .await
    .unwrap();
    begun.elapsed()
}

#[tokio::test]
async fn a_connection_that_sends_nothing_and_one_that_trickles_a_header_end_alike() {
    let served = Served::with_room().await;
    let (mut silent, trickling) = (served.connect().await, served.connect().await);
    let (mut reading, mut writing) = trickling.into_split();
    let sending = tokio::spawn(async move {
        let bytes = REQUEST[..REQUEST.len() - 1].iter().chain([&b'x'; 1000]);
        for byte in bytes {
            if writing.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(HEADER / 20).await;
        }
        panic!("the connection stayed open");
    });
    let begun = Instant::now();
    closed(&mut silent).await;
    assert!(begun.elapsed() > HEADER / 2, "{:?}", begun.elapsed());
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, reading.read_to_end(&mut answer))
        .await
        .unwrap();
    timeout(DEADLINE, sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_is_kept_for_another_request_and_for_a_slow_answer() {
    let served = Served::with_room().await;
    let mut stream = served.connect().await;
    for pause in [Duration::ZERO, 2 * HEADER, 2 * HEADER] {
        sleep(pause).await;
        stream.write_all(REQUEST).await.unwrap();
        assert!(read(&mut stream).await.ends_with("here"));
    }
    stream.write_all(SLOW).await.unwrap();
    served.gate.come(1).await;
    sleep(2 * HEADER).await;
    served.gate.open.add_permits(1);
    assert!(read(&mut stream).await.ends_with("done"));
    let idle = closed(&mut stream).await;
    assert!(idle > 2 * HEADER, "closed after {idle:?}");
}

#[tokio::test]
async fn the_header_of_a_later_request_has_the_same_limit() {
    let served = Served::with_room().await;
    let mut stream = served.connect().await;
    stream.write_all(REQUEST).await.unwrap();
    assert!(read(&mut stream).await.ends_with("here"));
    stream.write_all(&REQUEST[..10]).await.unwrap();
    let waited = closed(&mut stream).await;
    assert!(waited < IDLE - HEADER / 2, "closed after {waited:?}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_cut_off_and_a_slow_one_is_not() {
    let served = Served::with_room().await;
    let mut stream = served.connect().await;
    let endless = b"GET /endless HTTP/1.1\r\nhost: lucid\r\n\r\n";
    stream.write_all(endless).await.unwrap();
    let mut piece = vec![0; 1 << 20];
    let begun = Instant::now();
    while begun.elapsed() < 3 * WRITE {
        assert!(stream.read(&mut piece).await.unwrap() > 0);
        sleep(WRITE / 20).await;
    }
    sleep(3 * WRITE).await;
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_connection_is_in_use_until_its_client_has_taken_the_answer() {
    let served = Served::with_room().await;
    let mut stream = served.connect().await;
    stream
        .write_all(b"GET /large HTTP/1.1\r\nhost: lucid\r\n\r\n")
        .await
        .unwrap();
    let mut piece = vec![0; 64 << 10];
    let mut taken = 0;
    while taken < LARGE {
        let count = timeout(DEADLINE, stream.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0, "it was closed after {taken} bytes");
        taken += count;
        // What the kernel holds for the client is not the server's any more.
        if taken < LARGE / 2 {
            assert_eq!(served.budget.idle(), 0, "after {taken} bytes");
        }
    }
    let idle = async {
        while served.budget.idle() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, idle).await.unwrap();
}

#[tokio::test]
async fn a_websocket_has_none_of_the_limits_of_requests() {
    let served = Served::with_room().await;
    let url = format!("ws://{}/echo", served.address);
    let connected = tokio_tungstenite::client_async(url, served.connect().await).await;
    let (mut socket, _) = connected.unwrap();
    for pause in [Duration::ZERO, 2 * HEADER, IDLE + HEADER] {
        sleep(pause).await;
        let text = Message::text("still here");
        socket.send(text.clone()).await.unwrap();
        let answer = timeout(DEADLINE, socket.next()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap(), text);
    }
}

#[tokio::test]
async fn a_header_that_is_too_large_is_refused() {
    let served = Served::with_room().await;
    let mut stream = served.connect().await;
    let header = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(LARGEST_HEADER));
    stream.write_all(header.as_bytes()).await.unwrap();
    assert!(read(&mut stream).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_stop_answers_what_is_in_progress_and_closes_what_is_idle() {
    let mut served = Served::with_room().await;
    let (mut unused, mut kept, mut busy) = (
        served.connect().await,
        served.connect().await,
        served.connect().await,
    );
    kept.write_all(REQUEST).await.unwrap();
    assert!(read(&mut kept).await.ends_with("here"));
    busy.write_all(SLOW).await.unwrap();
    served.gate.come(1).await;
    served.stop();
    closed(&mut kept).await;
    closed(&mut unused).await;
    assert!(!served.ended.is_finished());
    served.gate.open.add_permits(1);
    let answer = read(&mut busy).await;
    assert!(answer.ends_with("done"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    timeout(DEADLINE, &mut served.ended).await.unwrap().unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn where_everything_is_in_use_a_client_is_told_to_come_again_and_can_when_it_is_not() {
    let limits = ConnectionLimits {
        total: 4,
        anonymous: 2,
        anonymous_per_address: 2,
        in_use_per_user: 1,
        sockets_per_user: 1,
    };
    let served = Served::start(limits).await;
    let mut busy = [served.connect().await, served.connect().await];
    for stream in &mut busy {
        stream.write_all(SLOW).await.unwrap();
    }
    served.gate.come(2).await;
    let mut late = served.connect().await;
    late.write_all(REQUEST).await.unwrap();
    let answer = read(&mut late).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: 5\r\n"), "{answer}");
    let detail = r#""detail":"The server has too many connections. Try again in a moment.""#;
    assert!(answer.contains(detail), "{answer}");
    let id = answer
        .split("x-request-id: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next());
    let id = format!(
        r#","requestId":"{}"}}"#,
        id.expect("the answer names its request")
    );
    assert!(answer.ends_with(&id), "{answer}");
    served.gate.open.add_permits(2);
    for stream in &mut busy {
        assert!(read(stream).await.ends_with("done"));
    }
    // An exchange ends a moment after its answer is read.
    let are_idle = async {
        while served.budget.idle() < 2 {
            sleep(HEADER / 100).await;
        }
    };
    timeout(DEADLINE, are_idle).await.unwrap();
    // The first of them gives way.
    let mut later = served.connect().await;
    later.write_all(REQUEST).await.unwrap();
    assert!(read(&mut later).await.ends_with("here"));
    assert!(closed(&mut busy[0]).await < IDLE / 2);
}
