//! The views of the deployment's plugins: what is loaded, what it may do, how it does, and what was
//! uploaded.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::manifest;
use lucid_wasm::{CallFigures, Plugin, PluginLimits};

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

pub(super) fn figures_of(plugin: &impl Plugin) -> Vec<CallFiguresView> {
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
