//! Owns a client of the WebSocket, as thin as one can be: it shares the machine with the server.

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

/// A client whose task is completed. Its session goes on until it is stopped.
pub(crate) struct Client {
    /// Its connection.
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects, gives a task, and reads until it is completed.
    pub(crate) async fn completed(url: &str, task: &str) -> Self {
        // The library fills its whole read buffer with zeros before each read, 128 KiB by default.
        let config = WebSocketConfig::default().read_buffer_size(4 << 10);
        let (mut socket, _) = connect_async_with_config(url, Some(config), true)
            .await
            .unwrap();
        let first = format!(r#"{{"task":"{task}"}}"#);
        socket.send(Frame::text(first)).await.unwrap();
        loop {
            match socket.next().await {
                Some(Ok(Frame::Text(text))) if text.contains(r#""status":"completed""#) => break,
                Some(Ok(_)) => {}
                end => panic!("the session ended before its task was completed: {end:?}"),
            }
        }
        Self { socket }
    }

    /// Reads until the server has closed the connection.
    pub(crate) async fn until_closed(&mut self) {
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}
