//! Copies between a program and a server until both are done.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::request::{ProxyRequest, forward_answer};

/// How much is copied at a time, in bytes. Held only while there is something to copy.
const BUFFER: usize = 64 << 10;
/// How long both sides may be silent.
const IDLE: Duration = Duration::from_secs(600);

/// The bytes that passed.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    pub(super) fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What was sent and received so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.received))
    }
}

/// Sends what the program said together with its request, and copies in both directions. Ends when both
/// are at their end, when one breaks, or after a long silence.
pub(super) async fn copy(
    request: &ProxyRequest,
    program: &mut TcpStream,
    server: &mut TcpStream,
    traffic: &Traffic,
) {
    let both = async {
        server.write_all(&request.first).await?;
        let sent = request.first.len() as u64;
        traffic.sent.fetch_add(sent, Ordering::Relaxed);
        let (from_program, mut to_program) = program.split();
        let (mut from_server, to_server) = server.split();
        let answers = async {
            if request.is_forwarded() {
                let head = forward_answer(&mut from_server, &mut to_program).await?;
                traffic.received.fetch_add(head, Ordering::Relaxed);
            }
            copy_one_way(from_server, to_program, &traffic.received).await
        };
        tokio::try_join!(
            copy_one_way(from_program, to_server, &traffic.sent),
            answers
        )
    };
    let silence = async {
        let mut before = traffic.totals();
        loop {
            tokio::time::sleep(IDLE).await;
            let now = traffic.totals();
            if now == before {
                return;
            }
            before = now;
        }
    };
    tokio::select! {
        // A connection that broke is as over as one that ended.
        _ = both => {}
        () = silence => {}
    }
}

async fn copy_one_way(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    count: &AtomicU64,
) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match from.try_read_buf(&mut buffer) {
                Ok(0) => return to.shutdown().await,
                Ok(_) => {
                    to.write_all(&buffer).await?;
                    count.fetch_add(buffer.len() as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}
