//! Copies between a program and a server until both are done.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

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
    /// What was sent and received so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.received))
    }

    /// Sends what the program said together with its request.
    pub(super) async fn send_first(&self, server: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        server.write_all(bytes).await?;
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Copies in both directions. Ends when both are at their end, when one breaks, or after a long
/// silence.
pub(super) async fn copy(program: &mut TcpStream, server: &mut TcpStream, traffic: &Traffic) {
    let (from_program, to_program) = program.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::try_join!(
            copy_one_way(from_program, to_server, &traffic.sent),
            copy_one_way(from_server, to_program, &traffic.received),
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
