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

use crate::handle::Session;
use crate::message::{ActorMessage, Mailbox, Tree};
use crate::ports::tools::{EventSink, SessionTools, ToolProvider, ToolsSpec};
use crate::ports::{Environment, EnvironmentError, EnvironmentSpec};
use crate::shared::SessionsShared;
use lucid_types::ids::EffectId;

/// Forwards an environment's unsolicited events to the session's mailbox.
#[derive(Clone)]
pub(super) struct EnvironmentEvents {
    pub(super) mailbox: Mailbox,
    /// The number of the last file tree.
    pub(super) tree_counter: Arc<AtomicU64>,
    pub(super) closed: CancellationToken,
}

impl EnvironmentEvents {
    pub(super) async fn tree(&self, environment: &dyn Environment) -> Option<Tree> {
        // Taken before the tree is read: a tree with a larger number then includes everything that
        // a smaller one does.
        let number = self.tree_counter.fetch_add(1, Ordering::Relaxed) + 1;
        let json = environment.tree().await?;
        Some(Tree { number, json })
    }

    /// Listens until the end of the environment or of the session.
    pub(super) fn listen(&self, environment: Arc<dyn Environment>) {
        let (mailbox, of) = (self.mailbox.clone(), environment.clone());
        tokio::spawn(self.closed.clone().run_until_cancelled_owned(async move {
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
        let over = self.closed.clone();
        tokio::spawn(over.run_until_cancelled_owned(async move {
            while environment.changed().await {
                let Some(tree) = listener.tree(&*environment).await else {
                    continue;
                };
                let message = Box::new(ActorMessage::Tree(tree));
                if listener.mailbox.send(message).await.is_err() {
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

    pub(super) fn is_open(&self) -> bool {
        self.opened.initialized()
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
    pub(super) session: Arc<Session>,
    pub(super) spec: EnvironmentSpec,
    pub(super) policy: String,
    pub(super) environment: Arc<OnceCell<Arc<dyn Environment>>>,
    pub(super) fetch: Arc<AtomicBool>,
    pub(super) tools_slot: SessionToolsSlot,
    pub(super) listener: EnvironmentEvents,
}

impl EnvironmentHandle {
    /// Returns the session's environment, opening it first if necessary.
    pub(super) async fn open(&self) -> Result<Arc<dyn Environment>, EnvironmentError> {
        let environments = &self.shared.deps.environments;
        let opened = self.environment.get_or_try_init(|| async {
            if let Some(reason) = environments.refusal() {
                return Err(EnvironmentError::Unavailable(reason));
            }
            let environment = environments.reopen(self.spec.clone()).await?;
            if self.fetch.load(Ordering::Relaxed) {
                if let Err(error) = environment.fetch().await {
                    environment.close().await;
                    return Err(error);
                }
                self.fetch.store(false, Ordering::Relaxed);
            }
            self.listener.listen(environment.clone());
            Ok(environment)
        });
        let environment = opened.await?.clone();
        self.session.show_workspace();
        Ok(environment)
    }

    /// Returns the environment if one can be opened; tools may not need it.
    pub(super) async fn try_open(&self) -> Result<Option<Arc<dyn Environment>>, EnvironmentError> {
        match self.shared.deps.environments.refusal() {
            Some(_) => Ok(None),
            None => self.open().await.map(Some),
        }
    }

    /// Returns the deployment's tools, opened over this environment.
    pub(super) async fn tools(
        &self,
        environment: Option<Arc<dyn Environment>>,
    ) -> Arc<dyn SessionTools> {
        let opened = self.tools_slot.opened.get_or_init(|| {
            let spec = ToolsSpec {
                session: self.spec.session,
                user: self.spec.user.clone(),
                policy: self.policy.clone(),
            };
            self.tools_slot.tools.open(spec, environment)
        });
        opened.await.clone()
    }

    /// Forwards the notices of these tools. Does nothing if the session is over.
    pub(super) async fn forward_notices(&self, tools: &dyn SessionTools) {
        for notice in tools.notices() {
            let _ = self
                .listener
                .mailbox
                .send(Box::new(ActorMessage::Notice(notice)))
                .await;
        }
    }

    /// Returns the sink that announces an effect's next action.
    pub(super) fn events(&self, effect: &EffectId) -> EventSink {
        let (mailbox, effect) = (self.listener.mailbox.clone(), effect.clone());
        Arc::new(move |event| {
            let (mailbox, effect) = (mailbox.clone(), effect.clone());
            async move {
                let (confirm, written) = oneshot::channel();
                let message =
                    Box::new(ActorMessage::Announcement(effect, Box::new(event), confirm));
                mailbox.send(message).await.is_ok() && written.await.is_ok()
            }
            .boxed()
        })
    }
}
