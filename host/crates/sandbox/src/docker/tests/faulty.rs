//! A faulty engine: a proxy before the real one that refuses some requests and delays others.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::engine_socket;

const NO: &[u8] = b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"message\":\"no\"}";
/// Long enough for a host to end meanwhile; shorter would test less, not fail.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
pub(super) struct Faulty(Arc<Faults>);

#[derive(Default)]
struct Faults {
    refused: Mutex<Vec<String>>,
    slow: AtomicBool,
    making: AtomicUsize,
}

impl Faulty {
    /// Requests whose first line contains one of these are refused.
    pub(super) fn refused(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.refused.lock().unwrap()
    }

    /// Makes the creation of containers slow from now on.
    pub(super) fn make_slowly(&self) {
        self.0.slow.store(true, Ordering::SeqCst);
    }

    /// How many containers are being created.
    pub(super) fn making(&self) -> usize {
        self.0.making.load(Ordering::SeqCst)
    }

    /// Listens until the task is aborted.
    pub(super) fn engine_at(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        let faulty = self.clone();
        tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(faulty.clone().pass_on(client));
            }
        })
    }

    async fn pass_on(self, mut client: UnixStream) -> std::io::Result<()> {
        let mut engine = UnixStream::connect(engine_socket()).await?;
        let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut making = false;
        loop {
            // A client sends the next request only after the response to the last.
            tokio::select! {
                count = client.read(&mut asked) => {
                    let asked = &asked[..count?];
                    if asked.is_empty() {
                        return Ok(());
                    }
                    let line = String::from_utf8_lossy(asked);
                    let line = line.lines().next().unwrap_or_default();
                    let refused = self.refused().iter().any(|part| line.contains(part));
                    if refused {
                        client.write_all(NO).await?;
                        continue;
                    }
                    if line.contains("/containers/create?") {
                        making = true;
                        self.0.making.fetch_add(1, Ordering::SeqCst);
                        if self.0.slow.load(Ordering::SeqCst) {
                            tokio::time::sleep(SLOW).await;
                        }
                    }
                    engine.write_all(asked).await?;
                }
                count = engine.read(&mut answered) => {
                    let answered = &answered[..count?];
                    if answered.is_empty() {
                        return Ok(());
                    }
                    if std::mem::take(&mut making) {
                        self.0.making.fetch_sub(1, Ordering::SeqCst);
                    }
                    client.write_all(answered).await?;
                }
            }
        }
    }
}
