//! The admin routes over shadow runs: an uploaded build of a policy repeats the steps of recent
//! sessions, and the differences are reported.
//!
//! # Invariants
//!
//! - Only an administrator gets past the first line.
//! - A response contains excerpts from the log for the steps that differ, truncated. It contains no
//!   key, since no policy is ever given one.

use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::params::{digest_of, kind_of};
use crate::api::Api;
use crate::api::problem::{Json, Path, Problem};
use crate::auth::Admin;
use crate::deployment::rollout::shadow::{ShadowError, ShadowRun};
use lucid_session::{DifferenceKind, ShadowDifference};
use lucid_types::sentence::sentence;
use lucid_wasm::PluginKind;

/// The default number of sessions to replay.
const SESSIONS: u64 = 20;
/// The maximum number of sessions to replay.
const MOST_SESSIONS: u64 = 200;

/// What to shadow.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begin {
    /// SHA-256 in hex, with or without `sha256:` before it.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    pub(crate) digest: String,
    /// How many sessions, the newest first; 1 to 200.
    #[serde(default = "usual_sessions")]
    #[schema(default = 20, minimum = 1, maximum = 200)]
    pub(crate) sessions: u64,
}

fn usual_sessions() -> u64 {
    SESSIONS
}

/// A shadow: how far it is, and what it showed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShadowView {
    /// The policy.
    #[schema(example = "coder")]
    pub(crate) name: String,
    /// The build that is shadowed: SHA-256 in lower-case hex.
    pub(crate) digest: String,
    /// The build that new sessions had when it began.
    pub(crate) beside: String,
    /// Who wanted it.
    pub(crate) by: String,
    /// When it began.
    pub(crate) since: String,
    /// When it came to its end; null while it runs.
    #[schema(required = true)]
    pub(crate) until: Option<String>,
    /// Why it says nothing of the build, or not all; null where all was replayed.
    #[schema(required = true)]
    pub(crate) problem: Option<String>,
    /// Sessions that will have been replayed in the end.
    pub(crate) wanted: u64,
    /// Sessions that were; the next three together.
    pub(crate) sessions: u64,
    /// Those in which all steps gave the same commands.
    pub(crate) same: u64,
    /// Those in which a step gave other commands.
    pub(crate) different: u64,
    /// Those in which a step broke down, refused or met a limit, and did not when it was recorded.
    pub(crate) failed: u64,
    /// Sessions whose last state the build does not take over, whatever became of their steps.
    pub(crate) not_migrated: u64,
    /// Sessions whose steps this host cannot read.
    pub(crate) unread: u64,
    /// Steps that were compared.
    pub(crate) steps: u64,
    /// Those among them that differed.
    pub(crate) steps_different: u64,
    /// What the compared steps used when they were recorded; instructions, roughly.
    pub(crate) fuel_then: u64,
    /// What the build used for the same steps.
    pub(crate) fuel_now: u64,
    /// The first 40 differences.
    pub(crate) differences: Vec<DifferenceView>,
}

/// Something that the build does differently.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DifferenceView {
    /// In which session.
    pub(crate) session: String,
    /// At which of its steps, from 0; null where it is about the session's last state.
    #[schema(required = true)]
    pub(crate) step: Option<u64>,
    /// `commands`: it gives others. `failed`: it breaks down. `mended`: it gives some where the recorded
    /// step failed. `not-migrated`: it does not take the session's last state over.
    #[schema(example = "commands")]
    pub(crate) what: String,
    /// The build that took the recorded step; null where there is none.
    #[schema(required = true)]
    pub(crate) recorded_by: Option<String>,
    /// The lines of the commands that differ (`-` recorded, `+` now), or the build's reason. Cut.
    pub(crate) text: String,
}

impl From<ShadowDifference> for DifferenceView {
    fn from(difference: ShadowDifference) -> Self {
        Self {
            session: difference.session.to_string(),
            step: difference.step,
            what: match difference.what {
                DifferenceKind::Commands => "commands",
                DifferenceKind::Failed => "failed",
                DifferenceKind::Mended => "mended",
                DifferenceKind::NotMigrated => "not-migrated",
            }
            .to_owned(),
            recorded_by: difference.recorded_by.map(|digest| digest.to_string()),
            text: difference.text,
        }
    }
}

fn view(name: String, shadow: &ShadowRun) -> ShadowView {
    // In this order: a run that has ended makes no further progress.
    let end = shadow.end();
    let report = shadow.report();
    let (until, problem) = match end {
        Some((at, failed)) => (Some(format_time(at)), failed.or(report.cut)),
        None => (None, None),
    };
    ShadowView {
        name,
        digest: shadow.digest.to_string(),
        beside: shadow.compared_with.to_string(),
        by: shadow.by.clone(),
        since: format_time(shadow.begun),
        until,
        problem,
        wanted: report.total,
        sessions: report.sessions,
        same: report.same,
        different: report.different,
        failed: report.failed,
        not_migrated: report.not_migrated,
        unread: report.unread,
        steps: report.steps,
        steps_different: report.steps_different,
        fuel_then: report.fuel_then,
        fuel_now: report.fuel_now,
        differences: report.differences.into_iter().map(Into::into).collect(),
    }
}

fn format_time(at: SystemTime) -> String {
    DateTime::<Utc>::from(at).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Shadow an uploaded build of a policy
///
/// The logged inputs of the policy's last sessions go through it, in the background, one shadow at a
/// time. Nothing is carried out and no session notices. `GET` of the same address says how far it is and
/// what it showed.
#[utoipa::path(
    post, path = "/api/v1/plugins/{kind}/{name}/shadow", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    request_body = Begin,
    responses(
        (status = 202, description = "It was begun", body = ShadowView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No such policy, or no such upload", body = Problem),
        (status = 409, description = "One runs already", body = Problem),
        (status = 422, description = "Not a policy, no digest, or not 1 to 200 sessions", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(crate) async fn begin(
    State(api): State<Api>,
    Admin(who): Admin,
    Path((kind, name)): Path<(String, String)>,
    Json(request): Json<Begin>,
) -> Result<(StatusCode, Json<ShadowView>), Problem> {
    of_policy(&kind)?;
    let digest = digest_of(&request.digest)?;
    if !(1..=MOST_SESSIONS).contains(&request.sessions) {
        return Err(Problem::unprocessable(format!(
            "`sessions` must be 1 to {MOST_SESSIONS}."
        )));
    }
    let parts = &api.parts;
    let with = (&parts.deployment, &parts.sessions);
    let begun = parts
        .shadows
        .begin(with, &name, digest, request.sessions, who.as_str())?;
    Ok((StatusCode::ACCEPTED, Json(view(name, &begun))))
}

/// See what the last shadow of a policy showed
///
/// Or how far it is. It is kept until the next one, or the server's end.
#[utoipa::path(
    get, path = "/api/v1/plugins/{kind}/{name}/shadow", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    responses(
        (status = 200, body = ShadowView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No build of it was shadowed since the server's start", body = Problem),
        (status = 422, description = "Not a policy", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(crate) async fn report(
    State(api): State<Api>,
    _who: Admin,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<ShadowView>, Problem> {
    of_policy(&kind)?;
    match api.parts.shadows.last(&name) {
        Some(last) => Ok(Json(view(name, &last))),
        None => Err(Problem::not_found(
            "No build of this policy was shadowed since the server's start.",
        )),
    }
}

/// Only policies can be shadowed: calls of other plugins are not in the log, so there is nothing to
/// replay.
fn of_policy(kind: &str) -> Result<(), Problem> {
    match kind_of(kind)? {
        PluginKind::Policy => Ok(()),
        _ => Err(Problem::unprocessable(
            "Only a policy can be shadowed: the log has its steps, and no other plugin's calls.",
        )),
    }
}

impl From<ShadowError> for Problem {
    fn from(error: ShadowError) -> Self {
        match error {
            ShadowError::Change(cause) => cause.into(),
            busy @ ShadowError::Busy { .. } => Self::conflict(sentence(busy)),
        }
    }
}
