//! Warm containers that wait for sessions.
//!
//! # Invariants
//! - A waiting container has an empty workspace of its own and belongs to nobody.
//! - It leaves the pool before it is assigned to a session, and never comes back.
//! - Its record names the session before the session sees any of it, so after a crash in between it
//!   belongs to that session or to nobody.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::container::{Container, DockerContext, ReadyContainer};
use super::state_dir::{ContainerRecord, DirIdentity};
use crate::error::{SandboxError, io_error};
use crate::settings::Transport;
use lucid_types::ids::SessionId;

/// How long to leave alone an engine that created no container, or one that ended while it waited.
const PAUSE: Duration = Duration::from_secs(10);

/// The waiting containers.
pub(super) struct WarmPool {
    context: Arc<DockerContext>,
    size: usize,
    state: Mutex<PoolState>,
    /// Notified when a container was taken, or the pool was closed.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct PoolState {
    waiting: VecDeque<ReadyContainer>,
    filling: bool,
    closed: bool,
}

impl WarmPool {
    pub(super) fn new(context: Arc<DockerContext>, size: usize) -> Self {
        Self {
            context,
            size,
            state: Mutex::default(),
            changed: Arc::default(),
        }
    }

    /// Fills the pool in the background, until it is closed or dropped.
    pub(super) fn keep_full(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if self.size == 0 || state.filling || state.closed {
            return;
        }
        state.filling = true;
        drop(state);
        let (pool, changed) = (Arc::downgrade(self), Arc::clone(&self.changed));
        tokio::spawn(async move {
            loop {
                let Some(strong) = pool.upgrade() else { return };
                let step = strong.fill_one().await;
                drop(strong);
                match step {
                    Step::Closed => return,
                    Step::Added => {}
                    Step::Full(ends) => tokio::select! {
                        () = changed.notified() => {}
                        // What ended this one may end the next as well.
                        _ = select_all(ends) => tokio::time::sleep(PAUSE).await,
                    },
                    // Nothing signals when the engine can create containers again.
                    Step::Failed => tokio::time::sleep(PAUSE).await,
                }
            }
        });
    }

    async fn fill_one(&self) -> Step {
        {
            let mut state = self.state.lock();
            if state.closed {
                return Step::Closed;
            }
            // Removed by being dropped.
            state.waiting.retain(|opened| opened.connection.is_alive());
            if state.waiting.len() >= self.size {
                let ends = state.waiting.iter();
                return Step::Full(
                    ends.map(|opened| opened.connection.ended().boxed())
                        .collect(),
                );
            }
        }
        match self.context.open(None, Some(Transport::Socket)).await {
            Ok(opened) => {
                let mut state = self.state.lock();
                if state.closed {
                    return Step::Closed;
                }
                state.waiting.push_back(opened);
                Step::Added
            }
            Err(_) if self.state.lock().closed => Step::Closed,
            Err(error) => {
                tracing::warn!(%error, "no container could be made to wait for a session");
                Step::Failed
            }
        }
    }

    /// Takes a container out for good.
    pub(super) fn take(&self) -> Option<ReadyContainer> {
        let taken = {
            let mut state = self.state.lock();
            loop {
                match state.waiting.pop_front() {
                    Some(opened) if !opened.connection.is_alive() => drop(opened),
                    other => break other,
                }
            }
        };
        self.changed.notify_one();
        taken
    }

    /// Removes all waiting containers, and stops refilling.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_one();
    }
}

enum Step {
    Added,
    /// The ends of the waiting containers, of which there is at least one.
    Full(Vec<BoxFuture<'static, String>>),
    Failed,
    Closed,
}

/// Makes a container taken from the pool a session's: records the session first, then moves the
/// workspace to where the session sees it. Nothing may exist at that path yet.
pub(super) fn claim(
    container: &Container,
    session: SessionId,
    workspace: &Path,
) -> Result<(), SandboxError> {
    let folder = container.folder();
    let identity = DirIdentity::of(&folder.workspace())?;
    if let Some(parent) = workspace.parent() {
        std::fs::create_dir_all(parent)
            .map_err(io_error(format!("{} cannot be made", parent.display())))?;
    }
    folder.record(&ContainerRecord {
        session,
        workspace: workspace.to_owned(),
        identity,
    })?;
    folder.move_workspace(workspace).map_err(io_error(format!(
        "the workspace {} cannot be put in place",
        workspace.display()
    )))
}
