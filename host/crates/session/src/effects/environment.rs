//! Access to what a session's tools work on: its execution environment, and the deployment's tools
//! beside it.
//!
//! # Invariants
//! - Each is opened once, by the session's start or, after a restart, by the first call that needs
//!   it.
//! - The environment exists before the tools that may live in it, and is closed after them.
//! - Tools of an older generation end before a call of a newer one begins, and never during a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::FutureExt;
use tokio::sync::{OnceCell, oneshot};
use tokio_util::sync::CancellationToken;

use crate::SessionsShared;
use crate::handle::SessionHandle;
use crate::ports::tools::{EventSink, SessionTools, ToolProvider, ToolsSpec};
use crate::ports::{ActorMessage, Environment, EnvironmentSpec, Mailbox, WorkspaceTree};

/// Forwards an environment's unsolicited events to the session's mailbox.
#[derive(Clone)]
pub(super) struct EnvironmentEvents {
    pub(super) mailbox: Mailbox,
    /// The number of the last file tree.
    pub(super) trees: Arc<AtomicU64>,
    pub(super) over: CancellationToken,
}

impl EnvironmentEvents {
    pub(super) async fn tree(&self, place: &dyn Environment) -> Option<WorkspaceTree> {
        // Taken before the tree is read: a tree with a larger number then includes everything that
        // a smaller one does.
        let number = self.trees.fetch_add(1, Ordering::Relaxed) + 1;
        let json = place.tree().await?;
        Some(WorkspaceTree { number, json })
    }

    /// Listens until the end of the environment or of the session.
    pub(super) fn listen(&self, place: Arc<dyn Environment>) {
        let (mailbox, of) = (self.mailbox.clone(), place.clone());
        tokio::spawn(self.over.clone().run_until_cancelled_owned(async move {
            while let Some(notice) = of.notice().await {
                if mailbox
                    .send(Box::new(ActorMessage::Notice(notice)))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }));
        let listener = self.clone();
        let over = self.over.clone();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            while place.changed().await {
                let Some(tree) = listener.tree(&*place).await else {
                    continue;
                };
                let news = Box::new(ActorMessage::Tree(tree));
                if listener.mailbox.send(news).await.is_err() {
                    return;
                }
            }
        }));
    }
}

/// The deployment's tools, as opened for one session. A clone is a handle to the same tools.
#[derive(Clone)]
pub(super) struct SessionToolsSlot {
    pub(super) tools: Arc<dyn ToolProvider>,
    opened: Arc<OnceCell<Arc<dyn SessionTools>>>,
}

impl SessionToolsSlot {
    pub(super) fn new(tools: Arc<dyn ToolProvider>) -> Self {
        Self {
            tools,
            opened: Arc::default(),
        }
    }

    pub(super) async fn close(&self) {
        if let Some(opened) = self.opened.get() {
            opened.close().await;
        }
    }
}

/// Access to a session's environment and tools.
pub(super) struct EnvironmentHandle {
    pub(super) shared: Arc<SessionsShared>,
    pub(super) session: Arc<SessionHandle>,
    pub(super) spec: EnvironmentSpec,
    pub(super) policy: String,
    pub(super) place: Arc<OnceCell<Arc<dyn Environment>>>,
    pub(super) fetch: Arc<AtomicBool>,
    pub(super) shelf: SessionToolsSlot,
    pub(super) listener: EnvironmentEvents,
}

impl EnvironmentHandle {
    /// Returns the session's environment, opening it first if necessary.
    pub(super) async fn open(&self) -> Result<Arc<dyn Environment>, String> {
        let places = &self.shared.deps.places;
        let opened = self.place.get_or_try_init(|| async {
            if let Some(reason) = places.refusal() {
                return Err(reason);
            }
            let place = places.reopen(self.spec.clone()).await?;
            if self.fetch.load(Ordering::Relaxed) {
                if let Err(reason) = place.fetch().await {
                    place.close().await;
                    return Err(reason);
                }
                self.fetch.store(false, Ordering::Relaxed);
            }
            self.listener.listen(place.clone());
            Ok(place)
        });
        let place = opened.await?.clone();
        self.session.show_workspace();
        Ok(place)
    }

    /// Returns the environment if one can be opened; tools may not need it.
    pub(super) async fn open_where_possible(&self) -> Result<Option<Arc<dyn Environment>>, String> {
        match self.shared.deps.places.refusal() {
            Some(_) => Ok(None),
            None => self.open().await.map(Some),
        }
    }

    /// Returns the deployment's tools, opened over this environment.
    pub(super) async fn tools(&self, place: Option<Arc<dyn Environment>>) -> Arc<dyn SessionTools> {
        let opened = self.shelf.opened.get_or_init(|| {
            let spec = ToolsSpec {
                session: self.spec.session.clone(),
                user: self.spec.user.clone(),
                policy: self.policy.clone(),
            };
            self.shelf.tools.open(spec, place)
        });
        opened.await.clone()
    }

    /// Forwards the notices of these tools. Does nothing if the session is over.
    pub(super) async fn tell_notices(&self, tools: &dyn SessionTools) {
        for notice in tools.notices() {
            let _ = self
                .listener
                .mailbox
                .send(Box::new(ActorMessage::Notice(notice)))
                .await;
        }
    }

    /// Returns the sink that announces an effect's next action.
    pub(super) fn events(&self, effect: &str) -> EventSink {
        let (mailbox, effect) = (self.listener.mailbox.clone(), effect.to_owned());
        Arc::new(move |event| {
            let (mailbox, effect) = (mailbox.clone(), effect.clone());
            async move {
                let (told, written) = oneshot::channel();
                let news = Box::new(ActorMessage::Shows(effect, Box::new(event), told));
                mailbox.send(news).await.is_ok() && written.await.is_ok()
            }
            .boxed()
        })
    }
}
