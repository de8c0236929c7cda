//! The routes over live sessions: create one, list the caller's, look at one, stop one.
//!
//! # Invariants
//!
//! - A session is looked up together with its user, so another user's is never shown or touched.

use std::time::Duration;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::problem::{DISK_AGAIN, Json, Path, Problem, RESTARTED_AGAIN, STORE_AGAIN};
use super::session_request::SessionRequest;
use crate::api::identity::Authenticated;
use lucid_session::{
    CloseReason, CreateError, GetSessionError, LookupError, SessionDetails, SessionDetailsError,
    SessionSummary, WakeError, WorkspaceLookupError, dollars,
};
use lucid_types::identity::Identity;
use lucid_types::ids::SessionId;
use lucid_types::log::UsageTotals;
use lucid_types::user::UserId;

/// A list shows this much of a task, in characters.
const LISTED_TASK: usize = 80;
/// How long a stop that cannot be written down is waited for.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// What is said of a session that goes on in the next run of the server only.
const NOT_HERE: &str =
    "The session rests, and goes on when the server is started again; stop it then.";
/// What is said of a session that sleeps and that this server cannot go on with.
pub(super) const CANNOT_GO_ON: &str = "The server cannot go on with this session, so it stays as it is; the server's log says why. Ask its operator.";
/// What is said of a session that sleeps while the server stops.
const STOPPING: &str = "The server is stopping. Try again when it is back.";
/// An id that is longer is not repeated in full.
const LONGEST_ID: usize = 64;

/// A session that was made.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CreatedView {
    /// `ready`, or `mock` where the policy is the rehearsal.
    #[schema(example = "ready")]
    status: &'static str,
    #[schema(value_type = String)]
    session_id: SessionId,
    message: &'static str,
}

/// Make a session
///
/// It starts when a WebSocket attaches to it, with `sessionId` in the first message.
#[utoipa::path(
    post, path = "/api/v1/sessions", tag = "sessions", request_body = SessionRequest,
    responses(
        (status = 200, body = CreatedView),
        (status = 400, description = "Unknown provider, model or policy, no key for it, or a repository that is refused; or the body is not JSON", body = Problem),
        (status = 401, description = "Not authenticated, or the provider refused the key", body = Problem),
        (status = 422, description = "No task, or the body does not fit", body = Problem),
        (status = 429, description = "The caller has as many sessions as they may, or has written as much", body = Problem),
        (status = 503, description = "Nothing to run commands in, no room on the disk, or the log cannot be written: with `Retry-After` where that passes", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn create(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Json(request): Json<SessionRequest>,
) -> Result<Json<CreatedView>, Problem> {
    let new = request
        .for_user(&who)
        .ok_or_else(|| Problem::unprocessable("Missing required field: 'task'"))?;
    let session = api.parts.sessions.create(new).await?;
    let (status, message) = if session.is_mock() {
        (
            "mock",
            "Session created with the mock agent, which calls no model.",
        )
    } else {
        ("ready", "Session created.")
    };
    Ok(Json(CreatedView {
        status,
        session_id: *session.id(),
        message,
    }))
}

/// The caller's sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionsView {
    sessions: Vec<SessionView>,
}

/// A session in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionView {
    #[schema(value_type = String)]
    session_id: SessionId,
    #[schema(value_type = String)]
    user_id: UserId,
    /// The first 80 characters.
    task: String,
    is_alive: bool,
    created_at: String,
}

impl From<SessionSummary> for SessionView {
    fn from(summary: SessionSummary) -> Self {
        Self {
            session_id: summary.session_id,
            user_id: summary.user_id,
            task: summary.task.chars().take(LISTED_TASK).collect(),
            is_alive: summary.is_alive,
            created_at: summary.created_at,
        }
    }
}

/// List the caller's sessions
#[utoipa::path(
    get, path = "/api/v1/sessions", tag = "sessions",
    responses(
        (status = 200, body = SessionsView),
        (status = 401, body = Problem),
        (status = 503, description = "The sessions cannot be read at the moment", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
) -> Result<Json<SessionsView>, Problem> {
    let sessions = api.parts.sessions.list(&who.user).await;
    let sessions = sessions.map_err(|cause| Problem::log(&cause))?;
    Ok(Json(SessionsView {
        sessions: sessions.into_iter().map(SessionView::from).collect(),
    }))
}

/// What a session's model calls used.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageView {
    model_calls: u64,
    /// Without what came from a prompt cache.
    input_tokens: u64,
    output_tokens: u64,
    cache_read_tokens: u64,
    cache_write_tokens: u64,
    /// All of these together.
    total_tokens: u64,
    /// In US dollars, of the calls whose model has known prices.
    #[schema(example = 0.0421)]
    cost_usd: f64,
}

impl From<&UsageTotals> for UsageView {
    fn from(totals: &UsageTotals) -> Self {
        Self {
            model_calls: totals.calls,
            input_tokens: totals.input_tokens,
            output_tokens: totals.output_tokens,
            cache_read_tokens: totals.cache_read_tokens,
            cache_write_tokens: totals.cache_write_tokens,
            total_tokens: totals.tokens(),
            cost_usd: dollars(totals.cost),
        }
    }
}

/// One session, alive or over.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DetailsView {
    #[schema(value_type = String)]
    session_id: SessionId,
    #[schema(value_type = String)]
    user_id: UserId,
    /// All of it.
    task: String,
    #[schema(example = "running")]
    status: &'static str,
    /// Why it is over, where it is.
    #[schema(required = true)]
    end_reason: Option<String>,
    is_alive: bool,
    #[schema(required = true)]
    project_id: Option<String>,
    chat_id: String,
    policy: String,
    model_provider: String,
    model: String,
    /// What keeps its commands in now; none while it has no sandbox.
    #[schema(required = true, example = "bubblewrap")]
    sandbox: Option<String>,
    usage: UsageView,
    /// How many tokens it may use, where there is a limit.
    #[schema(required = true)]
    token_limit: Option<u64>,
    /// What it may cost in US dollars, where there is a limit.
    #[schema(required = true)]
    cost_limit: Option<f64>,
    created_at: String,
    updated_at: String,
}

impl From<SessionDetails> for DetailsView {
    fn from(details: SessionDetails) -> Self {
        Self {
            session_id: details.session_id,
            user_id: details.user_id,
            task: details.task,
            status: details.status,
            end_reason: details.end_reason,
            is_alive: details.is_alive,
            project_id: details.project_id,
            chat_id: details.chat_id,
            policy: details.policy,
            model_provider: details.provider,
            model: details.model,
            sandbox: details.sandbox,
            usage: UsageView::from(&details.totals),
            token_limit: details.token_limit,
            cost_limit: details.cost_limit.map(dollars),
            created_at: details.created_at,
            updated_at: details.updated_at,
        }
    }
}

/// Look at a session
///
/// What it used is there also when it is over.
#[utoipa::path(
    get, path = "/api/v1/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, body = DetailsView),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "The log cannot be read at the moment", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn get(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
) -> Result<Json<DetailsView>, Problem> {
    let (_, details) = details_of(&api, &who, &id).await?;
    Ok(Json(details.into()))
}

/// The caller's session of that id, whether it is live or over.
pub(super) async fn details_of(
    api: &Api,
    who: &Identity,
    id: &str,
) -> Result<(SessionId, SessionDetails), Problem> {
    let parsed = session_id(id)?;
    match api.parts.sessions.details(&parsed, &who.user).await {
        Ok(details) => Ok((parsed, details)),
        Err(SessionDetailsError::Lookup(LookupError::NotFound)) => Err(no_session(id)),
        Err(SessionDetailsError::Lookup(LookupError::NotYours)) => {
            Err(Problem::forbidden("Not authorized to see this session."))
        }
        Err(SessionDetailsError::Log(cause)) => Err(Problem::log(&cause)),
    }
}

/// A session that was stopped.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoppedView {
    #[schema(example = "stopped")]
    status: &'static str,
    #[schema(value_type = String)]
    session_id: SessionId,
    message: &'static str,
}

/// Stop a session
///
/// The id is a session's, not a chat's. Its files go with it, also those of a session that ended by itself
/// and are kept for a while.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", tag = "sessions",
    params(("id" = String, Path, description = "The session")),
    responses(
        (status = 200, body = StoppedView),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "That it is stopped cannot be written down yet", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn stop(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
) -> Result<Json<StoppedView>, Problem> {
    let not_yours = "Not authorized to stop this session.";
    let session = match api.session(&id, &who, not_yours).await {
        Ok(session) => {
            let stopping = api.parts.sessions.stop(session.id());
            let is_ended = tokio::select! {
                is_ended = stopping => is_ended,
                problem = unwritten_stop(&api) => return Err(problem),
            };
            if !is_ended {
                return Err(unwritten_end(&session.close_reason()));
            }
            *session.id()
        }
        // One that is over may have files that are kept.
        Err(problem) if problem.status() == axum::http::StatusCode::NOT_FOUND => {
            let parsed = session_id(&id)?;
            let sessions = &api.parts.sessions;
            let discarded = sessions.discard(&parsed, &who.user).await;
            if !discarded.map_err(|error| of_lookup(&error, &id, not_yours))? {
                let goes_on = sessions.is_resumable(&parsed, &who.user).await;
                return Err(if goes_on {
                    Problem::unavailable(NOT_HERE)
                } else {
                    problem
                });
            }
            parsed
        }
        Err(problem) => return Err(problem),
    };
    Ok(Json(StoppedView {
        status: "stopped",
        session_id: session,
        message: "Session stopped and resources cleaned up.",
    }))
}

/// Why a session that was to be stopped is not over.
fn unwritten_end(reason: &CloseReason) -> Problem {
    if reason.is_restart() {
        Problem::unavailable(
            "The server is stopping, and could not write that the session ended. It goes on when the server is back; stop it then.",
        )
    } else {
        Problem::unavailable(format!(
            "{} It does no more work, but it is not written that it ended: it goes on when the server is started again; stop it then.",
            reason.reason
        ))
    }
}

/// Says that a stop waits for the log; never returns while that can be written.
async fn unwritten_stop(api: &Api) -> Problem {
    loop {
        tokio::time::sleep(STOP_PATIENCE).await;
        if let Some(reason) = api.parts.sessions.log_failure() {
            return Problem::unavailable(format!(
                "The session does no more work, but the server's log cannot be written, because {reason}. It ends as soon as it can; should the server be restarted before, ask again."
            ))
            .retry_after(STORE_AGAIN);
        }
    }
}

impl Api {
    /// The caller's session of that id. Another user's is refused with the given sentence.
    pub(super) async fn session(
        &self,
        id: &str,
        who: &Identity,
        not_yours: &str,
    ) -> Result<std::sync::Arc<lucid_session::SessionHandle>, Problem> {
        let parsed = session_id(id)?;
        let session = self.parts.sessions.get(&parsed, &who.user).await;
        session.map_err(|error| match error {
            GetSessionError::Lookup(LookupError::NotFound) => no_session(id),
            GetSessionError::Lookup(LookupError::NotYours) => Problem::forbidden(not_yours),
            GetSessionError::Wake(WakeError::Log(cause)) => Problem::log(&cause),
            GetSessionError::Wake(WakeError::Resume(_)) => Problem::unavailable(CANNOT_GO_ON),
            GetSessionError::Wake(WakeError::ShuttingDown) => {
                Problem::unavailable(STOPPING).retry_after(RESTARTED_AGAIN)
            }
        })
    }
}

impl Api {
    /// The caller's session of that id, alive or over, if it has a workspace.
    pub(super) async fn with_workspace(
        &self,
        id: &str,
        who: &Identity,
    ) -> Result<Option<SessionId>, Problem> {
        let parsed = session_id(id)?;
        let known = self.parts.sessions.has_workspace(&parsed, &who.user).await;
        let known =
            known.map_err(|error| of_lookup(&error, id, "Not authorized to access this session."));
        Ok(known?.then_some(parsed))
    }
}

fn of_lookup(error: &WorkspaceLookupError, id: &str, not_yours: &str) -> Problem {
    match error {
        WorkspaceLookupError::Lookup(LookupError::NotFound) => no_session(id),
        WorkspaceLookupError::Lookup(LookupError::NotYours) => Problem::forbidden(not_yours),
        WorkspaceLookupError::Log(cause) => Problem::log(cause),
        WorkspaceLookupError::NotRemoved => Problem::unavailable(
            "The session's files could not be removed. That is tried again in ten minutes.",
        ),
    }
}

/// Reads the id that a client sent.
fn session_id(text: &str) -> Result<SessionId, Problem> {
    text.parse().map_err(|_| no_session(text))
}

/// The answer for a session that is not there.
pub(super) fn no_session(id: &str) -> Problem {
    let printable: String = id
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_ID)
        .collect();
    Problem::not_found(format!("Session {printable} not found."))
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        let detail = error.to_user();
        match &error {
            CreateError::UnknownProvider(..)
            | CreateError::MissingKey { .. }
            | CreateError::UnknownModel { .. }
            | CreateError::UnpricedModel { .. }
            | CreateError::Repository(_)
            | CreateError::UnknownPolicy(..) => Self::bad_request(detail),
            CreateError::KeyRefused(_) => Self::unauthorized(detail),
            CreateError::TooManySessions(_) => Self::too_many(detail),
            CreateError::UserLog(exceeded) => Self::from(*exceeded),
            CreateError::NoSandbox(_) => Self::unavailable(detail),
            CreateError::ShuttingDown => Self::unavailable(detail).retry_after(RESTARTED_AGAIN),
            CreateError::Paused(_) => Self::unavailable(detail).retry_after(STORE_AGAIN),
            CreateError::DiskShort(_) => Self::unavailable(detail).retry_after(DISK_AGAIN),
            CreateError::Log(_) => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_the_first_80_characters_of_a_task() {
        let summary = SessionSummary {
            session_id: "0198c0de-0000-7000-8000-000000000000".parse().unwrap(),
            user_id: "u1".into(),
            task: "é".repeat(200),
            is_alive: true,
            created_at: "2026-02-18T10:30:00+00:00".to_owned(),
        };
        let value = serde_json::to_value(SessionView::from(summary)).unwrap();
        assert_eq!(value["task"].as_str().unwrap().chars().count(), 80);
        assert_eq!(value["isAlive"], true);
        assert_eq!(value["userId"], "u1");
        assert_eq!(value["createdAt"], "2026-02-18T10:30:00+00:00");
        assert!(value["sessionId"].is_string());
    }

    #[test]
    fn a_stop_that_was_lost_says_that_the_server_stops_only_where_it_does() {
        let stopping = unwritten_end(&CloseReason::restarting());
        assert!(stopping.detail().contains("The server is stopping"));
        let failed = unwritten_end(&CloseReason::failed("The log is gone."));
        let detail = failed.detail();
        assert!(
            detail.starts_with("The log is gone.") && !detail.contains("is stopping"),
            "{detail}"
        );
        for problem in [stopping, failed] {
            assert_eq!(problem.status().as_u16(), 503);
        }
    }

    #[test]
    fn a_session_that_is_not_created_says_why_and_what_to_do() {
        let detail = |error: CreateError| Problem::from(error).detail().to_owned();
        assert_eq!(
            detail(CreateError::MissingKey {
                provider: "openai".to_owned(),
                variable: "OPENAI_API_KEY".to_owned(),
            }),
            "No API key for the model provider 'openai'. Send one with the request (api_key), or ask the operator to set OPENAI_API_KEY."
        );
        assert_eq!(
            detail(CreateError::UnknownModel {
                model: "m".to_owned(),
                provider: "p".to_owned(),
                offered: "There are: a, b.".to_owned(),
            }),
            "The model 'm' of the provider 'p' is not offered here. There are: a, b."
        );
        assert_eq!(
            detail(CreateError::TooManySessions(2)),
            "You have 2 sessions already, which is as many as you may have. Stop one first."
        );
        assert_eq!(
            detail(CreateError::DiskShort("The disk is full.".to_owned())),
            "No session can begin at the moment. The disk is full."
        );
        assert_eq!(
            detail(CreateError::NoSandbox("None works here.".to_owned())),
            "There is no sandbox to work in: None works here."
        );
    }

    #[test]
    fn an_unknown_id_is_repeated_only_in_part() {
        assert_eq!(no_session("abc").detail(), "Session abc not found.");
        assert!(no_session(&"x\n".repeat(10_000)).detail().len() < 100);
    }
}
