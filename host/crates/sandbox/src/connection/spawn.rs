//! Starts the first process of a sandbox.

use std::sync::{Arc, OnceLock, mpsc};

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::busy_program;

/// Keeps the beginning of the standard error of a sandbox's own processes, and drains the rest.
pub(super) async fn collect_stderr(
    mut stderr: tokio::process::ChildStderr,
    collected: Arc<Mutex<String>>,
) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let mut collected = collected.lock();
        if collected.len() < 4096 {
            collected.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts a process from a thread that never ends. The kernel sends the signal that `bwrap
/// --die-with-parent` asks for when the starting *thread* ends, and the runtime's threads may.
pub(super) async fn spawn(mut command: Command) -> std::io::Result<Child> {
    static STARTER: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let run = move || jobs.into_iter().for_each(|job| job());
        std::thread::Builder::new()
            .name("sandbox-starter".into())
            .spawn(run)
            .ok()
            .map(|_| sender)
    });
    let lost = || std::io::Error::other("the thread that starts sandboxes is gone");
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let job: Job = Box::new(move || {
        let _runtime = runtime.enter();
        let _ = sender.send(busy_program::retry(|| command.spawn()));
    });
    starter
        .as_ref()
        .ok_or_else(lost)?
        .send(job)
        .map_err(|_| lost())?;
    receiver.await.map_err(|_| lost())?
}
