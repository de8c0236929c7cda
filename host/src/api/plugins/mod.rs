//! The admin routes over the deployment's plugins: status and statistics, uploads, activation of a
//! build, and reloading.
//!
//! # Invariants
//!
//! - Only an administrator gets past the first line, and that is checked before any of the body is
//!   read.
//! - One upload is read at a time.
//! - No response contains a key.

pub(crate) mod shadow;
pub(crate) mod status;

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::Api;
use super::problem::{DISK_AGAIN, Json, Path, Problem};
use crate::auth::Admin;
use crate::deployment::manager::{BuildChange, BuildChangeError, UploadError};
use crate::manifest;
use lucid_types::digest::Digest;
use lucid_types::sentence::sentence;
use lucid_wasm::{AnyPlugin, CallFigures, EngineOptions, Plugin, PluginKind, PluginLimits};

/// How long an upload's body may take to arrive.
const LONGEST_UPLOAD: Duration = Duration::from_secs(300);
/// The accepted media types of components.
const MEDIA_TYPES: [&str; 2] = ["application/wasm", "application/octet-stream"];

/// The deployment's plugins.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PluginsView {
    /// Counted up from 1 with each change since the server's start.
    pub generation: u64,
    /// Since when it holds.
    pub since: String,
    /// What is loaded.
    pub plugins: Vec<LoadedView>,
    /// What was uploaded and is kept, the newest first.
    pub uploads: Vec<KeptView>,
    /// Why the last load came to nothing; null where what is there now was loaded last.
    #[schema(required = true)]
    pub last_error: Option<LastErrorView>,
    /// What the operator should know. A sentence each.
    pub warnings: Vec<String>,
    /// What is being fetched, loaded or compiled at this moment.
    pub loading: Vec<LoadingView>,
}

/// Work that goes on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadingView {
    /// A plugin's name, or words such as `the deployment`.
    #[schema(example = "coder")]
    pub what: String,
    /// `fetching`, `loading` or `compiling`.
    #[schema(example = "compiling")]
    pub doing: String,
    /// Since when.
    pub since: String,
}

/// A loaded plugin, and how it does.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadedView {
    /// `policy`, `llm`, `tools` or `git`.
    #[schema(example = "policy")]
    pub kind: String,
    /// Its name in this deployment.
    #[schema(example = "coder")]
    pub name: String,
    /// What it calls itself.
    #[schema(example = "coder")]
    pub own_name: String,
    /// Its own version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// What it says it does.
    pub description: String,
    /// The component's SHA-256, in lower-case hex.
    pub digest: String,
    /// `builtin`, `file`, `registry`, or `upload` where an uploaded build takes the place of what the manifest names.
    #[schema(example = "upload")]
    pub source: String,
    /// What the manifest names, such as `builtin:coder`, a path, or `oci://…`.
    #[schema(required = true)]
    pub component: Option<String>,
    /// All that it imports.
    pub imports: Vec<String>,
    /// What it may do.
    pub grants: GrantsView,
    /// What one call may use.
    pub limits: LimitsView,
    /// Live sessions on this build. Of a provider: live sessions whose model it answers for. Of tools:
    /// live sessions of the policies that have them.
    pub sessions: usize,
    /// Live sessions that still have another build of it.
    pub other_builds: Vec<BuildView>,
    /// What its calls used since it was loaded, by function.
    pub calls: Vec<CallFiguresView>,
    /// The uploaded builds that were activated in its place, the active one first. Where the first is
    /// not `digest`, it could not be loaded when the server started.
    pub activated: Vec<ActivationView>,
    /// The build that a share of new sessions gets; null where there is none.
    #[schema(required = true)]
    pub candidate: Option<CandidateView>,
    /// How the candidate, or else this build, does beside the one before; null where none is on probation.
    #[schema(required = true)]
    pub probation: Option<ProbationView>,
    /// The last builds that were taken back by themselves, the newest first.
    pub taken_back: Vec<TakenBackView>,
    /// The last builds that somebody rolled back, the newest first.
    pub rolled_back: Vec<RolledBackView>,
}

/// The figures of one of a plugin's functions.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = CallFigures)]
pub struct CallFiguresView {
    /// The function, such as `step`.
    pub call: String,
    /// How often it was called.
    pub calls: u64,
    /// How often it answered with an error of its own.
    pub refusals: u64,
    /// How often it broke down or met a limit.
    pub failures: u64,
    /// Half of the calls took no longer, in microseconds.
    pub p50_micros: u64,
    /// Of a hundred calls one took longer, in microseconds.
    pub p99_micros: u64,
    /// The most that one call used; instructions, roughly.
    pub most_fuel: u64,
    /// All calls together.
    pub fuel: u64,
    /// The most memory that one call had, in bytes.
    pub most_memory: u64,
}

impl From<CallFigures> for CallFiguresView {
    fn from(figures: CallFigures) -> Self {
        Self {
            call: figures.call.to_owned(),
            calls: figures.calls,
            refusals: figures.refusals,
            failures: figures.failures,
            p50_micros: figures.p50_micros,
            p99_micros: figures.p99_micros,
            most_fuel: figures.most_fuel,
            fuel: figures.fuel,
            most_memory: figures.most_memory,
        }
    }
}

fn figures_of(plugin: &impl Plugin) -> Vec<CallFiguresView> {
    let figures = plugin.figures().into_iter();
    figures.map(CallFiguresView::from).collect()
}

/// A build that a share of new sessions gets.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CandidateView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// Its own version.
    pub version: String,
    /// Of a hundred new sessions.
    #[schema(minimum = 1, maximum = 99)]
    pub share: u8,
    /// Live sessions on it.
    pub sessions: usize,
    /// What its calls used since it was loaded, by function.
    pub calls: Vec<CallFiguresView>,
    /// Who gave it the share; null where it is no longer written down.
    #[schema(required = true)]
    pub by: Option<String>,
    /// Since when it is a candidate.
    #[schema(required = true)]
    pub at: Option<String>,
}

/// How a build on probation does: counted since it was activated, or since the server's start.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbationView {
    /// Its steps.
    pub steps: u64,
    /// Those that failed and that the build before took well, or could not be asked for.
    pub failed: u64,
    /// The sessions that took a step with it.
    pub sessions: u64,
    /// Those among them in which one failed.
    pub failed_in: u64,
    /// The steps of the build before.
    pub steps_before: u64,
    /// Those that failed.
    pub failed_before: u64,
}

/// A build that was taken back by itself.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TakenBackView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// When.
    pub at: String,
    /// A sentence with the figures.
    pub why: String,
}

/// A build that somebody rolled back.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolledBackView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: String,
}

/// What a plugin may do.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GrantsView {
    /// A policy's sessions ask models.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub calls_models: Option<bool>,
    /// A policy's sessions work in a sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub needs_sandbox: Option<bool>,
    /// Where a provider, or the server of tools, is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub base_url: Option<String>,
    /// Where a git provider's repositories are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub web_url: Option<String>,
    /// `bearer`, or the header that holds the key alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub key_place: Option<String>,
    /// The variable that holds the deployment's key for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub key_variable: Option<String>,
    /// The deployment has such a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub has_key: Option<bool>,
    /// A provider's models that can be chosen by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub models: Option<Vec<String>>,
    /// The tools, as models call them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tools: Option<Vec<String>>,
    /// The policies whose sessions have the tools; absent where all have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policies: Option<Vec<String>>,
    /// What one call of a tool may take, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub call_time: Option<f64>,
}

/// What one call may use.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsView {
    /// Instructions, roughly.
    pub fuel: u64,
    /// Bytes.
    pub memory: usize,
    /// Bytes of its answer.
    pub output: usize,
    /// Seconds of wall clock.
    pub time: f64,
}

impl From<&PluginLimits> for LimitsView {
    fn from(limits: &PluginLimits) -> Self {
        Self {
            fuel: limits.fuel,
            memory: limits.memory_bytes,
            output: limits.output_bytes,
            time: limits.wall.as_secs_f64(),
        }
    }
}

/// Another build that sessions have.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// How many.
    pub sessions: usize,
}

/// A build that was activated.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActivationView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// Who did it.
    pub by: String,
    /// When.
    pub at: String,
}

/// An uploaded build that is kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptView {
    /// SHA-256 in lower-case hex.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// `policy`, `llm`, `tools` or `git`.
    #[schema(required = true)]
    pub kind: Option<String>,
    /// What it calls itself.
    #[schema(required = true)]
    pub own_name: Option<String>,
    /// Its own version.
    #[schema(required = true)]
    pub version: Option<String>,
    /// Who uploaded it.
    #[schema(required = true)]
    pub by: Option<String>,
    /// When.
    #[schema(required = true)]
    pub at: Option<String>,
}

/// Why the last load came to nothing.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastErrorView {
    /// When.
    pub at: String,
    /// What was wrong.
    pub problems: Vec<ProblemView>,
}

/// One thing that was wrong.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// The manifest, or the file of an uploaded build.
    #[schema(required = true)]
    pub file: Option<String>,
    /// From 1.
    #[schema(required = true)]
    pub line: Option<usize>,
    /// From 1, in characters.
    #[schema(required = true)]
    pub column: Option<usize>,
    /// What, and what to do.
    pub what: String,
}

impl From<&manifest::ManifestProblem> for ProblemView {
    fn from(problem: &manifest::ManifestProblem) -> Self {
        Self {
            file: problem.file.clone(),
            line: problem.at.map(|at| at.line),
            column: problem.at.map(|at| at.column),
            what: problem.what.clone(),
        }
    }
}

/// List the deployment's plugins
///
/// With digests, grants, limits, sessions and figures, what was uploaded, and the last error.
#[utoipa::path(
    get, path = "/api/v1/plugins", tag = "plugins",
    responses(
        (status = 200, body = PluginsView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    _who: Admin,
) -> Result<Json<PluginsView>, Problem> {
    // Reads the upload store's folder.
    let listed = tokio::task::spawn_blocking(move || {
        let parts = &api.parts;
        parts.deployment.overview(&parts.sessions)
    });
    listed
        .await
        .map(Json)
        .map_err(|error| Problem::internal(&error))
}

/// A component that was kept.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UploadedView {
    /// `policy`, `llm`, `tools` or `git`.
    #[schema(example = "policy")]
    pub(crate) kind: String,
    /// What it calls itself.
    pub(crate) own_name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    /// SHA-256 in lower-case hex: what `activate` takes.
    pub(crate) digest: String,
    pub(crate) imports: Vec<String>,
    /// What its first calls used.
    pub(crate) calls: Vec<CallFiguresView>,
}

impl From<&AnyPlugin> for UploadedView {
    fn from(plugin: &AnyPlugin) -> Self {
        Self {
            kind: plugin.kind().to_string(),
            own_name: plugin.own_name().to_owned(),
            version: plugin.version().to_owned(),
            description: plugin.description().to_owned(),
            digest: plugin.digest().to_string(),
            imports: plugin.imports(),
            calls: figures_of(plugin),
        }
    }
}

/// Upload a component
///
/// It is let in as a plugin of what it exports, or refused with the reason; what was let in is kept by
/// its digest. No session runs on it before it is activated.
#[utoipa::path(
    post, path = "/api/v1/plugins", tag = "plugins",
    request_body(
        content((Vec<u8> = "application/wasm"), (Vec<u8> = "application/octet-stream")),
        description = "The component",
    ),
    responses(
        (status = 200, body = UploadedView),
        (status = 400, description = "It did not arrive whole", body = Problem),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 408, description = "It took too long to arrive", body = Problem),
        (status = 413, description = "Larger than any component may be", body = Problem),
        (status = 415, description = "Neither application/wasm nor application/octet-stream", body = Problem),
        (status = 422, description = "No plugin, or one that this host does not let in", body = Problem),
        (status = 507, description = "No room to keep it", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn upload(
    State(api): State<Api>,
    Admin(who): Admin,
    mut request: Request,
) -> Result<Json<UploadedView>, Problem> {
    let largest = EngineOptions::default().largest_component;
    announced(request.headers(), largest)?;
    if let Some(shortage) = api.parts.sessions.disk_shortage().await {
        let full = Problem::new(StatusCode::INSUFFICIENT_STORAGE, shortage);
        return Err(full.retry_after(DISK_AGAIN));
    }
    // Held until it is stored: each upload takes its size in memory.
    let Ok(_turn) = api.parts.uploads.acquire().await else {
        return Err(Problem::unavailable("The server is about to restart."));
    };
    DefaultBodyLimit::max(largest).apply(&mut request);
    let wasm = match timeout(LONGEST_UPLOAD, Bytes::from_request(request, &())).await {
        Ok(Ok(wasm)) => wasm,
        Ok(Err(error)) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Err(too_large(largest));
        }
        Ok(Err(_)) => return Err(Problem::bad_request("The component did not arrive whole.")),
        Err(_) => {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "The component took too long to arrive.",
            ));
        }
    };
    let kept = api.parts.deployment.upload(wasm, who.as_str()).await?;
    Ok(Json(UploadedView::from(&kept)))
}

/// Whether a body can be a component, by its headers.
fn announced(headers: &HeaderMap, largest: usize) -> Result<(), Problem> {
    let named = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type = named(header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    let media_type = media_type.unwrap_or_default().trim();
    if !MEDIA_TYPES
        .iter()
        .any(|one| one.eq_ignore_ascii_case(media_type))
    {
        return Err(Problem::unsupported_media_type(
            "A component must be sent with Content-Type: application/wasm.",
        ));
    }
    let length = named(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > largest as u64) {
        return Err(too_large(largest));
    }
    Ok(())
}

fn too_large(largest: usize) -> Problem {
    Problem::too_large(format!(
        "A component may have {largest} bytes, and this one has more."
    ))
}

/// Which build.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activate {
    /// SHA-256 in hex, with or without `sha256:` before it.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    pub(crate) digest: String,
    /// Of a hundred new sessions, 1 to 99; all where there is none. Only of a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 99)]
    pub(crate) share: Option<u8>,
    /// The policy may be one under a name that nobody has yet. Without it such a name is refused, since it
    /// is a slip more often.
    // Left out when false: an older server does not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) new: bool,
}

/// What holds by now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ChangedView {
    /// The generation that new sessions get.
    pub(crate) generation: u64,
    /// `policy`, `llm`, `tools` or `git`.
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The build it is now; null where a policy that was only uploaded is gone.
    #[schema(required = true)]
    pub(crate) digest: Option<String>,
    #[schema(required = true)]
    pub(crate) version: Option<String>,
    /// `builtin`, `file`, `registry` or `upload`.
    #[schema(required = true)]
    pub(crate) source: Option<String>,
    /// The build beside it that a share of new sessions gets; null where there is none.
    #[schema(required = true)]
    pub(crate) candidate: Option<String>,
    /// That share, of a hundred.
    #[schema(required = true)]
    pub(crate) share: Option<u8>,
}

/// Activate an uploaded build
///
/// It takes the place of the component that the manifest names for that plugin, also over restarts;
/// settings, limits, address and key stay the manifest's. It is loaded first, and where it cannot be
/// nothing changes. With `new` a policy may have a name that the manifest does not have: it is offered then
/// with no settings.
///
/// With `share` it is a candidate beside the active build: so many of a hundred new sessions get it and
/// keep it. Without, it has all, and a candidate of the same policy has none any more. A policy's new
/// build is on probation: it is taken back by itself when it fails more often than the one before.
#[utoipa::path(
    post, path = "/api/v1/plugins/{kind}/{name}/activate", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`, `llm`, `tools` or `git`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    request_body = Activate,
    responses(
        (status = 200, body = ChangedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No such plugin, and not said to be `new`; or no such upload", body = Problem),
        (status = 409, description = "It has all new sessions already, or there is none that could have the rest", body = Problem),
        (status = 422, description = "It cannot be loaded, the share is none, or the body does not fit; nothing changed", body = Problem),
        (status = 507, description = "No room to write down what is active", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn activate(
    State(api): State<Api>,
    Admin(who): Admin,
    Path((kind, name)): Path<(String, String)>,
    Json(request): Json<Activate>,
) -> Result<Json<ChangedView>, Problem> {
    let kind = kind_of(&kind)?;
    let digest = digest_of(&request.digest)?;
    let change = BuildChange::Activate {
        digest,
        by: who.to_string(),
        share: request.share,
        new: request.new,
    };
    changed(&api, kind, name, change).await
}

/// Roll a plugin back
///
/// A candidate loses its share first. Then it goes to the build that was active before the active one, and
/// at last to what the manifest names.
#[utoipa::path(
    post, path = "/api/v1/plugins/{kind}/{name}/rollback", tag = "plugins",
    params(
        ("kind" = String, Path, description = "`policy`, `llm`, `tools` or `git`"),
        ("name" = String, Path, description = "Its name in this deployment"),
    ),
    responses(
        (status = 200, body = ChangedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 404, description = "No such plugin", body = Problem),
        (status = 409, description = "No uploaded build is active", body = Problem),
        (status = 422, description = "The one before cannot be loaded; nothing changed", body = Problem),
        (status = 507, description = "No room to write down what is active", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn roll_back(
    State(api): State<Api>,
    Admin(who): Admin,
    Path((kind, name)): Path<(String, String)>,
) -> Result<Json<ChangedView>, Problem> {
    let by = who.to_string();
    changed(&api, kind_of(&kind)?, name, BuildChange::RollBack { by }).await
}

async fn changed(
    api: &Api,
    kind: PluginKind,
    name: String,
    change: BuildChange,
) -> Result<Json<ChangedView>, Problem> {
    let deployment = &api.parts.deployment;
    let generation = deployment.change(kind, &name, change).await?;
    let now = deployment.loaded(kind, &name);
    let candidate = deployment.candidate(kind, &name);
    Ok(Json(ChangedView {
        generation,
        kind: kind.to_string(),
        name,
        digest: now.as_ref().map(|(plugin, _)| plugin.digest().to_string()),
        version: now.as_ref().map(|(plugin, _)| plugin.version().to_owned()),
        source: now.map(|(_, source)| source.to_owned()),
        share: candidate.as_ref().map(|(_, share)| *share),
        candidate: candidate.map(|(digest, _)| digest),
    }))
}

/// A load that was asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReloadedView {
    /// The generation that new sessions get.
    pub(crate) generation: u64,
    /// An active build that cannot be loaded, while the server runs on the one before; null where all
    /// is as it should be.
    #[schema(required = true)]
    pub(crate) last_error: Option<LastErrorView>,
}

/// Load the manifest and the components again
///
/// As the server does by itself when it notices that a file changed. Tags in registries are asked for
/// anew, which the server does by itself when it starts and at no other time.
#[utoipa::path(
    post, path = "/api/v1/plugins/reload", tag = "plugins",
    responses(
        (status = 200, body = ReloadedView),
        (status = 401, body = Problem),
        (status = 403, description = "Not an administrator", body = Problem),
        (status = 422, description = "Something is wrong; nothing changed", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn reload(
    State(api): State<Api>,
    _who: Admin,
) -> Result<Json<ReloadedView>, Problem> {
    let deployment = api.parts.deployment.clone();
    // Runs to completion even if the client disconnects.
    let loaded = tokio::spawn(async move {
        let loaded = deployment.reload().await;
        loaded.map(|generation| ReloadedView {
            generation,
            last_error: deployment.last_error(),
        })
    });
    match loaded.await {
        Ok(Ok(view)) => Ok(Json(view)),
        Ok(Err(problems)) => Err(BuildChangeError::Refused(problems).into()),
        Err(error) => Err(Problem::internal(&error)),
    }
}

pub(super) fn digest_of(text: &str) -> Result<Digest, Problem> {
    let given = text.trim().to_ascii_lowercase();
    let digest = given.strip_prefix("sha256:").unwrap_or(&given);
    digest.parse().map_err(|_| {
        Problem::unprocessable(
            "`digest` must be the 64 hexadecimal digits that the upload was answered with.",
        )
    })
}

pub(super) fn kind_of(text: &str) -> Result<PluginKind, Problem> {
    let named = PluginKind::named(text);
    named.ok_or_else(|| {
        Problem::not_found(format!(
            "A plugin's kind is one of {}.",
            PluginKind::names()
        ))
    })
}

impl From<BuildChangeError> for Problem {
    fn from(error: BuildChangeError) -> Self {
        let detail = error.sentence();
        match &error {
            BuildChangeError::NoSuchPlugin { .. }
            | BuildChangeError::UnknownPlugin { .. }
            | BuildChangeError::NotNew { .. }
            | BuildChangeError::NotUploaded(_) => Self::not_found(detail),
            BuildChangeError::NoName
            | BuildChangeError::NoShare
            | BuildChangeError::WrongShare
            | BuildChangeError::Refused(_) => Self::unprocessable(detail),
            BuildChangeError::NothingActive { .. }
            | BuildChangeError::NoSecondBuild(_)
            | BuildChangeError::IsActive(_) => Self::conflict(detail),
            BuildChangeError::Interrupted => Self::unavailable(detail),
            BuildChangeError::UploadStore(cause) => upload_store_error(cause, detail),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let detail = sentence(&error);
        match &error {
            UploadError::NotAdmitted(_) => Self::unprocessable(detail),
            UploadError::UploadStore(cause) => upload_store_error(cause, detail),
            UploadError::Interrupted => Self::unavailable(detail),
        }
    }
}

/// An administrator may know which file is concerned.
fn upload_store_error(
    cause: &crate::deployment::uploads::UploadStoreError,
    detail: String,
) -> Problem {
    use crate::deployment::uploads::UploadStoreError;
    tracing::error!(%cause, "the store of uploaded plugins failed");
    let full = cause.is_disk_full() || matches!(cause, UploadStoreError::Full { .. });
    let status = if full {
        StatusCode::INSUFFICIENT_STORAGE
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Problem::new(status, detail)
}
