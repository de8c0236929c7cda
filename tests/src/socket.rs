//! A client of the WebSocket route.

use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::host::Host;
use crate::token::token;
use crate::wait::{DEADLINE, within};

/// An open connection, and all that came over it.
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// In order of arrival.
    pub frames: Vec<Value>,
    /// How the host closed it.
    pub closed: Option<u16>,
}

impl Socket {
    /// Connects for a user, the token in the address, and sends the first message.
    pub async fn open(host: &Host, user: &str, first: Value) -> Self {
        Self::open_by(host, &token(user), first).await
    }

    /// Connects by a token and sends the first message.
    pub async fn open_by(host: &Host, token: &str, first: Value) -> Self {
        let mut socket = Self::connect(host, &format!("?token={token}")).await;
        socket.send(first).await;
        socket
    }

    /// Connects and says nothing.
    pub async fn connect(host: &Host, query: &str) -> Self {
        Self::connect_with(host, query, None).await
    }

    /// Connects with a small buffer for what is not read yet.
    pub async fn connect_with(host: &Host, query: &str, buffer: Option<u32>) -> Self {
        let tcp = TcpSocket::new_v4().unwrap();
        if let Some(bytes) = buffer {
            tcp.set_recv_buffer_size(bytes).unwrap();
        }
        let address = host.address();
        let tcp = tcp.connect(address.parse().unwrap()).await.unwrap();
        let url = format!("ws://{address}/api/v1/ws{query}");
        let connected =
            tokio::time::timeout(DEADLINE, tokio_tungstenite::client_async(url, tcp)).await;
        let (stream, _) = connected
            .expect("the handshake timed out")
            .expect("the handshake failed");
        Self {
            stream,
            frames: Vec::new(),
            closed: None,
        }
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    /// Sends a text that need not be a frame.
    pub async fn send_text(&mut self, text: &str) {
        let sent = tokio::time::timeout(DEADLINE, self.stream.send(Message::text(text))).await;
        sent.expect("the host does not read")
            .expect("the host closed the connection");
    }

    /// A follow-up.
    pub async fn say(&mut self, content: &str) {
        self.send(json!({"type": "message", "content": content}))
            .await;
    }

    /// The next frame; none when the connection is closed.
    pub async fn next(&mut self) -> Option<Value> {
        // One for all of the loop: pings come for ever.
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let Ok(message) = tokio::time::timeout_at(deadline, self.stream.next()).await else {
                panic!("no frame for {DEADLINE:?}; so far: {}", self.told());
            };
            match message {
                Some(Ok(Message::Text(text))) => {
                    let frame: Value = serde_json::from_str(&text)
                        .unwrap_or_else(|e| panic!("no JSON in a frame ({e}): {text}"));
                    self.frames.push(frame.clone());
                    return Some(frame);
                }
                Some(Ok(Message::Close(close))) => {
                    self.closed = close.map(|close| close.code.into());
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => panic!("a frame that is no text: {other:?}"),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Ends the connection as a lost one ends: without a close frame, and with all read that came.
    pub async fn lose(self) {
        drop(self);
    }

    /// Closes the connection as a page does that is left, and waits for the host's answer.
    pub async fn close(mut self) {
        let closing = CloseFrame {
            code: CloseCode::Away,
            reason: "".into(),
        };
        self.stream.close(Some(closing)).await.unwrap();
        while let Some(Ok(_)) = within("the host's answer to a close", self.stream.next()).await {}
    }

    /// The next frame, if it is there already.
    pub fn next_now(&mut self) -> Option<Value> {
        self.next().now_or_never().flatten()
    }

    /// Reads on until a frame fits, and gives all that came on the way, that frame last.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut read = Vec::new();
        while let Some(frame) = self.next().await {
            let found = fits(&frame);
            read.push(frame);
            if found {
                return read;
            }
        }
        panic!(
            "closed ({:?}) before {what}; frames: {}",
            self.closed,
            self.told()
        );
    }

    /// Reads on until the task is completed.
    pub async fn completed(&mut self) -> Vec<Value> {
        self.until("completed", is_completed).await
    }

    /// Reads on until the session is ready, and gives its id.
    pub async fn session(&mut self) -> String {
        let ready =
            |frame: &Value| frame["sessionId"].is_string() && frame["status"] != "initializing";
        let read = self.until("the session's id", ready).await;
        read.last().unwrap()["sessionId"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Reads to the end of the connection, and gives the close code.
    pub async fn end(&mut self) -> u16 {
        while self.next().await.is_some() {}
        self.closed
            .unwrap_or_else(|| panic!("closed without a code; frames: {}", self.told()))
    }

    /// Sends so many of the protocol's pings, and reads nothing meanwhile.
    pub async fn ping(&mut self, times: usize) {
        for _ in 0..times {
            let ping = Message::Ping(vec![b'p'; 125].into());
            within("a ping to be sent", self.stream.send(ping))
                .await
                .ok();
        }
    }

    /// Sends a text while it reads on, as a browser does, to the close: its code and reason.
    pub async fn closed_by(self, text: &str) -> (u16, String) {
        let (mut sink, mut stream) = self.stream.split();
        let sending = async {
            // How much of it goes out is the host's affair.
            sink.send(Message::text(text)).await.ok();
            std::future::pending().await
        };
        let reading = async {
            loop {
                match stream.next().await {
                    Some(Ok(Message::Close(Some(close)))) => {
                        return (close.code.into(), close.reason.as_str().to_owned());
                    }
                    Some(Ok(_)) => {}
                    end => panic!("no close, but {end:?}"),
                }
            }
        };
        let either = async {
            tokio::select! {
                close = reading => close,
                never = sending => never,
            }
        };
        within("the close", either).await
    }

    fn told(&self) -> String {
        let lines: Vec<String> = self
            .frames
            .iter()
            .map(|frame| frame.to_string().chars().take(300).collect())
            .collect();
        if lines.is_empty() {
            "none".to_owned()
        } else {
            format!("\n  {}", lines.join("\n  "))
        }
    }
}

/// The sequence number of a frame.
pub fn seq(frame: &Value) -> Option<u64> {
    frame["seq"].as_u64()
}

/// Whether this frame ends a task.
pub fn is_completed(frame: &Value) -> bool {
    frame["type"] == "status" && frame["status"] == "completed"
}

/// The first frame with this event type.
#[track_caller]
pub fn event<'a>(frames: &'a [Value], kind: &str) -> &'a Value {
    frames
        .iter()
        .find(|frame| frame["eventType"] == kind)
        .unwrap_or_else(|| panic!("no {kind} in {frames:#?}"))
}

/// What the frames are, in short: `status:completed`, `action:CmdRunAction`.
pub fn kinds(frames: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    frames
        .iter()
        .map(|frame| match frame["type"].as_str() {
            Some("status") => format!("status:{}", text(&frame["status"])),
            Some("agent_event") if frame["event"] == "task_start" => "task_start".to_owned(),
            Some("agent_event") => {
                format!("{}:{}", text(&frame["event"]), text(&frame["eventType"]))
            }
            _ => text(&frame["type"]),
        })
        .collect()
}
