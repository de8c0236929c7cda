//! Owns a client of the WebSocket, as thin as one can be: it shares the machine with the server.

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// What a frame says of a task that is completed.
pub(crate) const COMPLETED: &str = r#""status":"completed""#;

/// A client whose task is completed. Its session goes on until it is stopped.
pub(crate) struct Client {
    /// Its connection.
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects, gives a task, and reads until it is completed.
    pub(crate) async fn completed(url: &str, task: &str) -> Self {
        let first = format!(r#"{{"task":"{task}"}}"#);
        Self::until(url, first, COMPLETED).await.0
    }

    /// Connects, says what for, and reads until a frame contains a text. Returns what was read as well.
    pub(crate) async fn until(url: &str, first: String, text: &str) -> (Self, String) {
        // The library fills its whole read buffer with zeros before each read, 128 KiB by default.
        let config = WebSocketConfig::default().read_buffer_size(4 << 10);
        let (mut socket, _) = connect_async_with_config(url, Some(config), true)
            .await
            .unwrap();
        socket.send(Frame::text(first)).await.unwrap();
        let mut read = String::new();
        loop {
            match socket.next().await {
                Some(Ok(Frame::Text(frame))) => {
                    read += &frame;
                    if frame.contains(text) {
                        return (Self { socket }, read);
                    }
                }
                Some(Ok(_)) => {}
                end => panic!("the session ended before {text:?} was shown: {end:?}"),
            }
        }
    }

    /// Reads until the server has closed the connection.
    pub(crate) async fn until_closed(&mut self) {
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}
