//! Creates sessions and starts their actors.
//!
//! # Invariants
//! - Everything that can be refused is refused before anything is written.
//! - A session, its chat, its task and its first frame are one transaction.
//! - Its secrets are sealed in the log, and removed from it when the session ends.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use tokio::sync::mpsc;
use url::Url;
use uuid::Uuid;

use super::actor;
use super::actor::resume::ResumeState;
use super::actor::task_clock;
use super::budget::{Budget, lower};
use super::detached::to_completion;
use super::error::{CreateError, WakeError};
use super::handle::{ActorLauncher, Session, SessionHandle, SessionInfo, SessionPlugins};
use super::ports::{
    BuildAssignment, Generation, ModelSelection, Models, PolicyInfo, SessionPolicy,
};
use super::registry::SleepingClocks;
use super::round::{RoundBuilder, RoundContext};
use super::sessions::Sessions;
use super::shared::SessionsShared;
use super::stream::frames::EventDraft;
use super::types::OpenChange;
use lucid_types::ids::SessionId;
use lucid_types::log::{LogError, RoundRow, SessionConfig, SessionCounters, SessionStatus};
use lucid_types::log_label::PluginCaller;
use lucid_types::metrics;
use lucid_types::repository_url::{parse_repository_url, repository_url};
use lucid_types::secret::Secret;
use lucid_types::user::UserId;

/// The capacity of a session's mailbox.
const MAILBOX: usize = 64;

/// The parameters of a new session.
#[derive(Clone)]
pub struct NewSession {
    /// The user that will own the session.
    pub user: UserId,
    /// The client's name for the project that the session belongs to.
    pub project_id: Option<String>,
    /// The task.
    pub task: String,
    /// The URL of the repository to clone.
    pub repo_url: Option<String>,
    /// The token for the repository.
    pub git_token: Option<Secret>,
    /// The branch to check out.
    pub branch: Option<String>,
    /// The author name for commits.
    pub git_user_name: Option<String>,
    /// The author email for commits.
    pub git_user_email: Option<String>,
    /// The model provider's name.
    pub provider: Option<String>,
    /// The model's name.
    pub model: Option<String>,
    /// A token limit for the session; the deployment's limit applies if it is lower.
    pub token_limit: Option<u64>,
    /// A cost limit in millionths of a US dollar; the deployment's limit applies if it is lower.
    pub cost_limit: Option<u64>,
    /// The user's own API key for the provider.
    pub api_key: Option<Secret>,
    /// The policy's name.
    pub policy: Option<String>,
    /// Whether to open a pull request for what is pushed.
    pub open_change: Option<OpenChange>,
}

impl NewSession {
    /// Moves a credential out of the repository's URL, because the URL is logged, shown to models
    /// and compared. It becomes the token if none was given.
    fn tidy_repository(&mut self) -> Result<(), CreateError> {
        let Some(text) = &self.repo_url else {
            return Ok(());
        };
        let text = parse_repository_url(text);
        let tidy = repository_url(&text)?;
        if self.git_token.is_none() {
            self.git_token = credential(&text).map(Secret::new);
        }
        self.repo_url = Some(tidy);
        Ok(())
    }
}

/// Returns the password in a URL, or the user name if it stands alone, as in `https://TOKEN@host/`.
fn credential(url: &str) -> Option<String> {
    let url = Url::parse(url.trim()).ok()?;
    let given = url.password().unwrap_or(url.username());
    // The crate decodes only forms, in which a plus is a space.
    let form = format!("t={}", given.replace('+', "%2B"));
    let (_, token) = url::form_urlencoded::parse(form.as_bytes()).next()?;
    (!token.is_empty()).then(|| token.into_owned())
}

/// The seal context of a secret: binds it to its row and column.
pub(super) fn seal_context(session: SessionId, what: &str) -> String {
    format!("session/{session}/{what}")
}

/// The seal context of a session's own provider key: the server it was given for, so that it opens
/// for no other, whatever a later deployment calls by that name.
pub(super) fn key_for(policy: &PolicyInfo, models: &dyn Models, provider: &str) -> String {
    let server = policy.calls_models.then(|| models.server(provider));
    format!("api-key/{}", server.flatten().unwrap_or_default())
}

impl Sessions {
    /// Returns the existing session that does exactly this work, or creates one. Two clients that
    /// ask for the same work at the same time get the same session.
    pub async fn find_or_create(
        &self,
        mut new: NewSession,
    ) -> Result<Arc<SessionHandle>, CreateError> {
        new.tidy_repository()?;
        let work = (
            &new.user,
            new.project_id.as_deref(),
            new.task.as_str(),
            new.repo_url.as_deref(),
        );
        let hash = usize::try_from(self.shared.hasher.hash_one(work)).unwrap_or_default();
        let _turn = self.shared.creation_locks[hash % self.shared.creation_locks.len()]
            .lock()
            .await;
        match self.find_same(work.0, work.1, work.2, work.3).await {
            Ok(Some(session)) => Ok(session),
            // One that cannot be woken does not keep its user from beginning anew.
            Ok(None) | Err(WakeError::Resume(_)) => self.create(new).await,
            Err(WakeError::Log(cause)) => Err(cause.into()),
            Err(WakeError::ShuttingDown) => Err(CreateError::ShuttingDown),
        }
    }

    /// Creates a session and writes it to the log. It does nothing until [`Sessions::start`].
    pub async fn create(&self, mut new: NewSession) -> Result<Arc<SessionHandle>, CreateError> {
        new.tidy_repository()?;
        let deps = &self.shared.deps;
        if self.are_draining() {
            return Err(CreateError::ShuttingDown);
        }
        if let Some(shortage) = self.disk_shortage().await {
            return Err(CreateError::DiskShort(shortage));
        }
        let generation = deps.deployment.borrow().clone();
        let (policies, models) = (&generation.policies, &generation.models);
        let assigned = policies.assigned(&new.user, new.project_id.as_deref());
        let named = new.policy.as_deref().or(assigned);
        let mut drawn = policies.assign(named)?;
        let fits = self.select_provider(&generation, &*drawn.policy, &new);
        let provider = match (fits, &drawn.slot) {
            // A candidate may need what the active build does not, and no user should run into
            // that.
            (Err(reason), Some(turn)) if turn.is_candidates() => {
                let digest = drawn.policy.info().digest;
                tracing::warn!(%digest, %reason, "a session that was a candidate's turn begins with the active build");
                drawn = policies.find(named)?.into();
                self.select_provider(&generation, &*drawn.policy, &new)?
            }
            (fits, _) => fits?,
        };
        let BuildAssignment { policy, slot: turn } = drawn;
        let info = policy.info();
        let cost_limit = lower(deps.limits.session_cost, new.cost_limit);
        let id = SessionId::new();
        let claim = self.shared.claim(&new.user, id)?;
        let user_logs = &self.shared.user_logs;
        user_logs.admit(&new.user, new.task.len()).await?;
        if info.calls_models {
            models.check(&provider.name, new.api_key.clone()).await?;
        }
        let key_for = key_for(info, &**models, &provider.name);
        let seal = |secret: &Option<Secret>, what: &str| {
            secret.as_ref().map(|secret| {
                deps.sealer
                    .seal(secret.expose().as_bytes(), &seal_context(id, what))
            })
        };
        let fixed = Arc::new(SessionConfig {
            api_key: seal(&new.api_key, &key_for),
            git_token: seal(&new.git_token, "git-token"),
            user: new.user,
            project_id: new.project_id,
            task: new.task,
            repo_url: new.repo_url,
            branch: new.branch,
            open_change: new.open_change.map(|wish| wish.text().to_owned()),
            git_user_name: new.git_user_name,
            git_user_email: new.git_user_email,
            policy: info.name.clone(),
            provider: provider.name,
            model: provider.model,
            token_limit: lower(deps.limits.session_tokens, new.token_limit),
            cost_limit,
            chat_id: Uuid::now_v7().to_string(),
            created_at: task_clock::now(),
            id,
        });
        let first = first_round(&fixed, info, deps.log.uptime());
        let (counters, frames, first_seq) = (first.counters, first.frames.clone(), first.first_seq);
        let found = ResumeState {
            previous_build: None,
            generation,
            fixed: fixed.clone(),
            policy,
            api_key: new.api_key,
            git_token: new.git_token,
            counters,
            state: None,
            pushed: None,
            open: Vec::new(),
            inbox: Vec::new(),
            status: SessionStatus::Created,
            waits_for_user: false,
            clocks: SleepingClocks::default(),
        };
        let shared = self.shared.clone();
        // Runs to completion even if the caller goes away: a session that is written must exist.
        let made = to_completion(async move {
            let _claim = claim;
            let (user, size) = (fixed.user.clone(), first.size() + fixed.task.len() as u64);
            let policy = fixed.policy.clone();
            shared.deps.log.create(fixed, first).await?;
            metrics::session_created(&policy);
            shared.user_logs.wrote(&user, size);
            if let Some(turn) = turn {
                turn.commit();
            }
            let session = shared.assemble(id, found);
            shared.register(&session);
            session.feed.publish(first_seq, &frames);
            Ok(session)
        });
        made.await
            .unwrap_or_else(|_| Err(CreateError::Log(LogError::Closed)))
    }

    /// Returns the provider that would serve such a session with this policy, or why there is none.
    fn select_provider(
        &self,
        generation: &Generation,
        policy: &dyn SessionPolicy,
        new: &NewSession,
    ) -> Result<ModelSelection, CreateError> {
        let (deps, info, models) = (&self.shared.deps, policy.info(), &generation.models);
        let provider = if info.calls_models {
            models.find(
                new.provider.as_deref(),
                new.model.as_deref(),
                new.api_key.is_some(),
            )?
        } else {
            // Only a label: any is accepted.
            ModelSelection {
                name: new.provider.clone().unwrap_or_default(),
                model: String::new(),
            }
        };
        let cost_limit = lower(deps.limits.session_cost, new.cost_limit);
        if info.calls_models
            && cost_limit.is_some()
            && let Some(unpriced) =
                models.check_priced(&provider.name, &provider.model, new.api_key.is_some())
        {
            return Err(unpriced);
        }
        if info.needs_sandbox
            && let Some(reason) = deps.environments.refusal()
        {
            return Err(CreateError::NoSandbox(reason));
        }
        Ok(provider)
    }
}

impl SessionsShared {
    /// Makes a startable session from one that is in the log. It is yet to be registered.
    pub(super) fn assemble(
        self: &Arc<Self>,
        id: SessionId,
        found: ResumeState,
    ) -> Arc<SessionHandle> {
        let (mailbox, message) = mpsc::channel(MAILBOX);
        let fixed = &found.fixed;
        let about = SessionInfo {
            id,
            user: fixed.user.clone(),
            project_id: fixed.project_id.clone(),
            task: fixed.task.as_str().into(),
            repo_url: fixed.repo_url.clone(),
            mock: found.policy.info().mock,
            created_at: fixed.created_at,
        };
        let last_seq = found.counters.next_seq.saturating_sub(1);
        let plugins = SessionPlugins::of(found.policy.info(), &fixed.provider);
        let shared = Arc::downgrade(self);
        let launch: ActorLauncher = Box::new(move |session| {
            if let Some(shared) = shared.upgrade() {
                let actors = shared.actors.clone();
                let caller = PluginCaller::session(*session.id());
                actors.spawn(caller.scope(actor::live(shared, session, found, message)));
            }
        });
        let logs = (self.deps.log.clone(), self.user_logs.clone());
        let session = Session::new(about, last_seq, logs, mailbox, launch, plugins);
        Arc::new(SessionHandle { session })
    }
}

/// The first round: the task, and the start of the session.
fn first_round(fixed: &SessionConfig, info: &PolicyInfo, uptime_ms: u64) -> RoundRow {
    let names = (fixed.id, fixed.chat_id.as_str().into());
    let nothing = Budget::default();
    let context = RoundContext::new(&names, fixed, info, nothing, &|_| EventDraft::default());
    let counters = SessionCounters {
        next_seq: 1,
        uptime_ms,
        ..SessionCounters::default()
    };
    let mut builder = RoundBuilder::new(&context, counters, BTreeMap::new(), fixed.created_at);
    builder.open_session();
    builder.close_round(SessionStatus::Created, None).row
}

#[cfg(test)]
mod tests {
    use super::credential;

    #[test]
    fn a_credential_in_a_url_is_found_however_it_is_written() {
        for (url, token) in [
            ("https://user:ghp_abc@github.com/o/r.git", Some("ghp_abc")),
            ("https://ghp_abc@github.com/o/r.git", Some("ghp_abc")),
            ("https://u:a%2Bb+c@example.org/o/r", Some("a+b+c")),
            ("https://github.com/o/r", None),
            ("not a url", None),
        ] {
            assert_eq!(credential(url).as_deref(), token, "{url}");
        }
    }
}
