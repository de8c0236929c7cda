//! Owns what runs for a session: model calls and timers side by side, tools one after the other.
//!
//! What always holds: an effect reports exactly once, into the session's queue, also where its work
//! comes to grief; unless it is cancelled: then nothing of it reports, and the canceller answers for it
//! and says what it took. Nothing here decides or writes. Dropping [`Effects`] ends all of them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::plugins::policy_types::{ModelCall, ToolRun};
use crate::plugins::types::{Error, ErrorKind};
use crate::secret::Secret;
use crate::store::{EffectKind, NewSessionRow};

use super::live::Session;
use super::ports::{
    DeltaSink, Mailbox, Meter, ModelFailure, ModelRequest, Models, News, Place, PlaceSpec, Spent,
    Tree,
};
use super::record::fault;
use super::stream::Stream;
use super::{Shared, actor, prompt};

pub(super) struct Effects {
    shared: Arc<Shared>,
    session: Arc<Session>,
    fixed: Arc<NewSessionRow>,
    /// Who answers what is asked from here on.
    pub(super) models: Arc<dyn Models>,
    spec: PlaceSpec,
    api_key: Option<Secret>,
    running: HashMap<String, Running>,
    waiting: VecDeque<ToolRun>,
    tool: Option<String>,
    /// Filled once, by provisioning or by the first tool after a restart.
    place: Arc<tokio::sync::OnceCell<Arc<dyn Place>>>,
    listener: Listener,
}

/// An effect that was begun.
struct Running {
    work: AbortHandle,
    stream: Arc<Stream>,
    meter: Meter,
}

impl Running {
    /// Ends it, and says what it took so far; none where its own word is in the queue, or on its way
    /// there.
    fn give_up(&self) -> Option<Option<Spent>> {
        self.stream.finish(false).then(|| {
            self.work.abort();
            self.meter.told()
        })
    }
}

impl Drop for Effects {
    fn drop(&mut self) {
        self.cancel_all();
        self.listener.over.cancel();
    }
}

/// Takes what a place shows without being asked into the session's queue.
#[derive(Clone)]
struct Listener {
    mailbox: Mailbox,
    /// The last tree's number.
    trees: Arc<AtomicU64>,
    over: CancellationToken,
}

impl Listener {
    async fn tree(&self, place: &dyn Place) -> Option<Tree> {
        // Before it is begun: a larger number then knows all that a smaller one does.
        let number = self.trees.fetch_add(1, Ordering::Relaxed) + 1;
        let json = place.tree().await?;
        Some(Tree { number, json })
    }

    /// To the place's end, or the session's.
    fn listen(&self, place: Arc<dyn Place>) {
        let (mailbox, of) = (self.mailbox.clone(), place.clone());
        tokio::spawn(self.over.clone().run_until_cancelled_owned(async move {
            while let Some(notice) = of.notice().await {
                if mailbox.send(Box::new(News::Notice(notice))).await.is_err() {
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
                let news = Box::new(News::Tree(tree));
                if listener.mailbox.send(news).await.is_err() {
                    return;
                }
            }
        }));
    }
}

/// The way to the session's place: opened once, by provisioning, after a restart by what needs it
/// first.
struct Door {
    shared: Arc<Shared>,
    session: Arc<Session>,
    spec: PlaceSpec,
    place: Arc<tokio::sync::OnceCell<Arc<dyn Place>>>,
    listener: Listener,
}

impl Door {
    async fn open(&self) -> Result<Arc<dyn Place>, String> {
        let places = &self.shared.deps.places;
        let opened = self.place.get_or_try_init(|| async {
            if let Some(reason) = places.refusal() {
                return Err(reason);
            }
            let place = places.reopen(self.spec.clone()).await?;
            self.listener.listen(place.clone());
            Ok(place)
        });
        let place = opened.await?.clone();
        if let Some(workspace) = place.workspace() {
            let _ = self.session.workspace.set(workspace);
        }
        Ok(place)
    }
}

impl Effects {
    pub(super) fn new(
        shared: Arc<Shared>,
        session: Arc<Session>,
        models: Arc<dyn Models>,
        spec: PlaceSpec,
        api_key: Option<Secret>,
        fixed: Arc<NewSessionRow>,
    ) -> Self {
        let listener = Listener {
            mailbox: session.mailbox.clone(),
            trees: Arc::default(),
            over: CancellationToken::new(),
        };
        Self {
            listener,
            shared,
            session,
            fixed,
            models,
            spec,
            api_key,
            running: HashMap::new(),
            waiting: VecDeque::new(),
            tool: None,
            place: Arc::default(),
        }
    }

    /// A new, empty place for the session, which from here on is closed at its end.
    pub(super) async fn provision(&mut self) -> Result<Arc<dyn Place>, String> {
        let place = self.shared.deps.places.provision(self.spec.clone()).await?;
        // Nobody else fills it: tools begin later.
        let _ = self.place.set(place.clone());
        Ok(place)
    }

    /// The place has its files: clients may see them.
    pub(super) fn show_workspace(&self, place: &dyn Place) {
        if let Some(workspace) = place.workspace() {
            let _ = self.session.workspace.set(workspace);
        }
    }

    /// After a restart the files are there at once; the sandbox comes with the first tool.
    pub(super) fn reopen_workspace(&mut self) {
        if let Some(workspace) = self.shared.deps.places.workspace(&self.spec) {
            let _ = self.session.workspace.set(workspace);
        }
    }

    /// The tree now.
    pub(super) async fn tree(&self, place: &dyn Place) -> Option<Tree> {
        self.listener.tree(place).await
    }

    /// From here on, changes of the tree are shown also while no tool runs.
    pub(super) fn listen(&self, place: Arc<dyn Place>) {
        self.listener.listen(place);
    }

    fn spawn(
        &mut self,
        stream: Arc<Stream>,
        effect: String,
        meter: Meter,
        work: impl Future<Output = News> + Send + 'static,
    ) {
        let mailbox = self.session.mailbox.clone();
        let running = (effect.clone(), stream.clone(), meter.clone());
        let task = tokio::spawn(async move {
            let news = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(news) => news,
                Err(_) => {
                    let what = "The server could not carry this out: its own work came to grief.";
                    word_of(effect, fault(ErrorKind::Internal, what), meter.told())
                }
            };
            let stands = !matches!(
                news,
                News::Model(_, Err(_)) | News::Tool(_, Err(_), _) | News::Failed(..)
            );
            if stream.finish(stands) {
                // The session may be over.
                let _ = mailbox.send(Box::new(news)).await;
            }
        });
        let (effect, stream, meter) = running;
        let running = Running {
            work: task.abort_handle(),
            stream,
            meter,
        };
        self.running.insert(effect, running);
    }

    fn stream(&self, effect: &str) -> Arc<Stream> {
        Stream::new(self.session.clone(), effect)
    }

    pub(super) fn timer(&mut self, effect: String, due: u64) {
        let left = Duration::from_millis(due.saturating_sub(actor::now()));
        let name = effect.clone();
        let stream = self.stream(&effect);
        self.spawn(stream, effect, Meter::default(), async move {
            if !left.is_zero() {
                tokio::time::sleep(left).await;
            }
            News::Timer(name)
        });
    }

    pub(super) fn model(&mut self, mut call: ModelCall, last_entry: u64) {
        let (shared, session) = (self.shared.clone(), self.fixed.clone());
        let models = self.models.clone();
        let stream = self.stream(&call.effect);
        let sink: DeltaSink = if call.aside {
            Arc::new(|_, _: &str| {})
        } else {
            sink(&stream)
        };
        let meter = Meter::default();
        let api_key = self.api_key.clone();
        let effect = call.effect.clone();
        self.spawn(stream, effect.clone(), meter.clone(), async move {
            let parts = std::mem::take(&mut call.prompt);
            if call.model.is_empty() {
                call.model.clone_from(&session.model);
            }
            let answer =
                match prompt::resolve(&shared.deps.store, &session.id, parts, last_entry).await {
                    Ok(messages) => {
                        let request = ModelRequest {
                            session: session.id.clone(),
                            provider: session.provider.clone(),
                            model: session.model.clone(),
                            api_key,
                            cost_limited: session.cost_limit.is_some(),
                            call,
                            messages,
                            meter,
                        };
                        models.call(request, sink).await
                    }
                    Err(cause) => Err(fault(ErrorKind::Internal, cause.to_string()).into()),
                };
            News::Model(effect, answer)
        });
    }

    pub(super) fn tool(&mut self, run: ToolRun) {
        self.waiting.push_back(run);
    }

    /// Forgets what is done, and begins the next tool where none runs.
    pub(super) fn settle(&mut self, open: &BTreeMap<String, EffectKind>) {
        self.running.retain(|effect, _| open.contains_key(effect));
        self.tool.take_if(|effect| !open.contains_key(effect));
        if self.tool.is_none()
            && let Some(run) = self.waiting.pop_front()
        {
            self.tool = Some(run.effect.clone());
            self.begin_tool(run);
        }
        if self.running.is_empty() {
            self.running.shrink_to_fit();
        }
    }

    /// Begins to listen again to a sandbox that lived on while the host was away. What goes wrong is
    /// said by the next tool, which tries again.
    pub(super) fn listen_again(&mut self) {
        if self.shared.deps.places.lives(&self.spec) {
            let (door, over) = (self.door(), self.listener.over.clone());
            tokio::spawn(over.run_until_cancelled_owned(async move {
                let _ = door.open().await;
            }));
        }
    }

    fn door(&self) -> Door {
        Door {
            shared: self.shared.clone(),
            session: self.session.clone(),
            spec: self.spec.clone(),
            place: self.place.clone(),
            listener: self.listener.clone(),
        }
    }

    fn begin_tool(&mut self, run: ToolRun) {
        let (door, stream) = (self.door(), self.stream(&run.effect));
        let (effect, sink) = (run.effect.clone(), sink(&stream));
        self.spawn(stream, effect.clone(), Meter::default(), async move {
            let place = match door.open().await {
                Ok(place) => place,
                Err(reason) => {
                    return News::Tool(effect, Err(fault(ErrorKind::Unsupported, reason)), None);
                }
            };
            let done = place.run(run.call, run.timeout_ms, sink).await;
            let tree = if place.tree_can_wait() {
                None
            } else {
                door.listener.tree(&*place).await
            };
            News::Tool(effect, done.map(Box::new), tree)
        });
    }

    /// Gives an effect up. What is returned goes into the queue; nothing where the effect was
    /// faster, since its own result is in the queue already.
    pub(super) fn cancel(&mut self, effect: String) -> Option<News> {
        let mut spent = None;
        if let Some(running) = self.running.get(&effect) {
            spent = running.give_up()?;
        }
        self.waiting.retain(|run| run.effect != effect);
        let error = fault(ErrorKind::Cancelled, "It was given up.");
        Some(word_of(effect, error, spent))
    }

    /// Gives all of them up, and returns what model calls among them took so far.
    pub(super) fn cancel_all(&mut self) -> Vec<(String, Spent)> {
        self.waiting.clear();
        self.tool = None;
        let given_up = self.running.drain();
        given_up
            .filter_map(|(effect, running)| Some((effect, running.give_up()??)))
            .collect()
    }

    /// Whether the session brought a key of its own.
    pub(super) fn has_key(&self) -> bool {
        self.api_key.is_some()
    }

    pub(super) fn holds_place(&self) -> bool {
        self.place.initialized()
    }

    pub(super) async fn close_place(&mut self) {
        self.listener.over.cancel();
        if let Some(place) = self.place.get() {
            place.close().await;
        }
    }

    /// Gives the sandbox back. Whatever needs one next opens another over the same workspace.
    pub(super) async fn put_away(&mut self) {
        self.close_place().await;
        self.place = Arc::default();
        self.listener.over = CancellationToken::new();
    }

    pub(super) async fn wipe(&mut self) -> Result<(), String> {
        self.shared.deps.places.wipe(self.spec.clone()).await
    }
}

fn sink(stream: &Arc<Stream>) -> DeltaSink {
    let stream = stream.clone();
    Arc::new(move |kind, text| stream.show(kind, text))
}

/// That no result came of an effect, and what it took all the same.
fn word_of(effect: String, error: Error, spent: Option<Spent>) -> News {
    match spent {
        None => News::Failed(effect, error),
        Some(spent) => {
            let spent = Some(Box::new(spent));
            News::Model(effect, Err(ModelFailure { error, spent }))
        }
    }
}
