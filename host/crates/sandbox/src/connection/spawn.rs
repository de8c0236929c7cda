//! Starts the first process of a sandbox.

use std::io::ErrorKind;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// How often to retry starting a program that is still open for writing, and the pause between
/// tries.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

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

/// Starts a process. A program written a moment ago may still be open for writing in a child of
/// another thread that has not called exec yet.
fn start(command: &mut Command) -> std::io::Result<Child> {
    let busy = |error: &std::io::Error| error.kind() == ErrorKind::ExecutableFileBusy;
    for _ in 0..BUSY_TRIES {
        match command.spawn() {
            Err(error) if busy(&error) => std::thread::sleep(BUSY_PAUSE),
            started => return started,
        }
    }
    command.spawn()
}

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
        let _ = sender.send(start(&mut command));
    });
    starter
        .as_ref()
        .ok_or_else(lost)?
        .send(job)
        .map_err(|_| lost())?;
    receiver.await.map_err(|_| lost())?
}
