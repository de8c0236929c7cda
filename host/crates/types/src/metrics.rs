//! What the server counts and measures of itself: the names, and the functions that record.
//!
//! Names follow Prometheus' conventions, and OpenTelemetry's where it has one for the same. Whoever serves them installs
//! a recorder for the crate `metrics` and calls [`turn_on`]; until then nothing is recorded, and it costs nothing.
//!
//! # Invariants
//!
//! - No label has unbounded values: no user, no session, no path. What a user or a plugin may name freely is one of the
//!   first [`MOST_VALUES`] or `other`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use metrics::{SharedString, counter, histogram};
use parking_lot::RwLock;

use crate::digest::Digest;
use crate::log::ModelCallRow;

/// The most values of a label that others name.
pub const MOST_VALUES: usize = 200;
/// The value of a label of which there are more.
const OTHER: &str = "other";
/// The longest value of a label, in bytes.
const LONGEST_VALUE: usize = 100;

static IS_ON: AtomicBool = AtomicBool::new(false);

/// What kind of series a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It is what it is at the moment.
    Gauge,
    /// How often values fell below bounds. Holds the bounds.
    Histogram(&'static [f64]),
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// What it is, a sentence.
    pub help: &'static str,
}

/// From 50 µs to 10 s: steps, rounds and writes.
const SHORT: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    10.0,
];
/// From 1 ms to 10 s: OpenTelemetry's advice for HTTP, and 1 ms.
const REQUESTS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// From 10 ms to 82 s, as OpenTelemetry advises for models, and longer ones.
const LONG: &[f64] = &[
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0,
    1800.0,
];
/// From 256 KiB to 256 MiB.
const MEMORY: &[f64] = &[
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
];

macro_rules! names {
    ($($name:ident = $text:literal, $kind:expr, $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// All metrics.
        pub const ALL: &[Metric] = &[$(Metric { name: $text, kind: $kind, help: $help }),*];
    };
}

use MetricKind::{Counter, Gauge, Histogram};

names! {
    BUILD = "lucid_build_info", Gauge, "1, with the server's version as a label.";
    READY = "lucid_ready", Gauge, "1 if the server takes work, as at /ready; else 0.";
    GENERATION = "lucid_generation", Gauge, "The number of the deployment's generation; it grows with each reload.";
    HTTP = "http_server_request_duration_seconds", Histogram(REQUESTS), "How long HTTP requests took until their answer began.";
    SOCKETS = "lucid_websocket_connections", Gauge, "Open WebSocket connections of clients.";
    SESSIONS = "lucid_sessions", Gauge, "Sessions that have not ended, by policy and state.";
    SESSIONS_CREATED = "lucid_sessions_created_total", Counter, "Sessions that were created, by policy.";
    SESSIONS_ENDED = "lucid_sessions_ended_total", Counter, "Sessions that ended, by policy and reason.";
    STEP = "lucid_step_duration_seconds", Histogram(SHORT), "How long steps of policies took, by policy and build.";
    STEP_FUEL = "lucid_step_fuel_total", Counter, "Fuel that steps used, roughly instructions, by policy and build.";
    STEP_MEMORY = "lucid_step_memory_bytes", Histogram(MEMORY), "Memory that steps had, by policy and build.";
    STEP_FAILURES = "lucid_step_failures_total", Counter, "Steps that failed, by policy and build.";
    APPEND = "lucid_log_append_duration_seconds", Histogram(SHORT), "How long sessions waited until their rounds were in the log.";
    ROUNDS = "lucid_log_rounds_total", Counter, "Rounds that were written to the log.";
    LOG_WRITABLE = "lucid_log_writable", Gauge, "1 if the log can be written; 0 while sessions wait until it can.";
    MODEL_CALL = "gen_ai_client_operation_duration_seconds", Histogram(LONG), "How long calls of models took, with their retries.";
    MODEL_FIRST_WORD = "gen_ai_client_operation_time_to_first_chunk_seconds", Histogram(LONG), "How long calls of models took until their first words.";
    MODEL_TOKENS = "lucid_model_tokens_total", Counter, "Tokens of model calls, by provider, model and type.";
    MODEL_COST = "lucid_model_cost_microdollars_total", Counter, "Millionths of a US dollar that model calls cost, where the price is known, by provider and model.";
    MODEL_CALLS = "lucid_model_calls_total", Counter, "Model calls that sessions were charged for, by provider and model.";
    MODEL_RETRIES = "lucid_model_retries_total", Counter, "How often a provider was asked again for the same call.";
    TOOL = "lucid_tool_duration_seconds", Histogram(LONG), "How long tools ran, by tool and outcome.";
    WORKSPACES = "lucid_workspaces", Gauge, "Sessions that have a workspace.";
    SANDBOX_START = "lucid_sandbox_start_duration_seconds", Histogram(LONG), "How long sandboxes took to start, by kind and outcome.";
}

/// Has everything recorded from here on. The recorder is installed first.
pub fn turn_on() {
    IS_ON.store(true, Ordering::Release);
}

fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// The values of a label that others name.
#[derive(Default)]
struct LabelValues(RwLock<HashSet<Arc<str>>>);

impl LabelValues {
    /// The value, if it is known, and `other` if not.
    fn known(&self, value: &str) -> SharedString {
        let known = self.0.read().get(value).cloned();
        known.map_or(SharedString::const_str(OTHER), Into::into)
    }

    /// The value, if it is one of the first, and `other` if not. No text is copied for one that is known.
    fn bounded(&self, value: &str) -> SharedString {
        if let Some(known) = self.0.read().get(value) {
            return known.clone().into();
        }
        if value.len() > LONGEST_VALUE {
            return SharedString::const_str(OTHER);
        }
        let mut known = self.0.write();
        if known.len() >= MOST_VALUES && !known.contains(value) {
            return SharedString::const_str(OTHER);
        }
        let value = Arc::<str>::from(value);
        known.insert(value.clone());
        value.into()
    }
}

static POLICIES: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);
static BUILDS: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);
static MODELS: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);
static PROVIDERS: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);
static ROUTES: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);
static TOOLS: LazyLock<LabelValues> = LazyLock::new(LabelValues::default);

/// A policy's name as a label's value.
pub fn policy_label(policy: &str) -> SharedString {
    POLICIES.bounded(policy)
}

/// A request was answered, by the pattern of its path.
pub fn http_request(method: &'static str, route: &str, status: u16, took: Duration) {
    if is_on() {
        histogram!(HTTP, "http_request_method" => method, "http_route" => ROUTES.bounded(route),
            "http_response_status_code" => status.to_string())
        .record(took);
    }
}

/// A session was created.
pub fn session_created(policy: &str) {
    if is_on() {
        counter!(SESSIONS_CREATED, "policy" => policy_label(policy)).increment(1);
    }
}

/// A session ended.
pub fn session_ended(policy: &str, reason: &'static str) {
    if is_on() {
        counter!(SESSIONS_ENDED, "policy" => policy_label(policy), "reason" => reason).increment(1);
    }
}

/// What a step took.
#[derive(Debug, Clone, Copy)]
pub struct StepFigures {
    /// How long it took.
    pub took: Duration,
    /// The fuel that it used.
    pub fuel: u64,
    /// The memory that it had, in bytes.
    pub memory: u64,
    /// Whether it failed.
    pub failed: bool,
}

/// A policy was stepped.
pub fn step(policy: &str, build: Digest, figures: StepFigures) {
    if !is_on() {
        return;
    }
    let (policy, build) = (
        policy_label(policy),
        BUILDS.bounded(&build.to_string()[..12]),
    );
    let labels = || [("policy", policy.clone()), ("build", build.clone())];
    histogram!(STEP, &labels()).record(figures.took);
    counter!(STEP_FUEL, &labels()).increment(figures.fuel);
    histogram!(STEP_MEMORY, &labels()).record(figures.memory as f64);
    if figures.failed {
        counter!(STEP_FAILURES, &labels()).increment(1);
    }
}

/// Rounds of a session were written to the log.
pub fn append(rounds: usize, took: Duration) {
    if is_on() {
        histogram!(APPEND).record(took);
        counter!(ROUNDS).increment(rounds as u64);
    }
}

/// What a call of a model took.
#[derive(Debug)]
pub struct ModelCallFigures<'a> {
    /// The provider.
    pub provider: &'a str,
    /// The model.
    pub model: &'a str,
    /// How long it took, with its retries.
    pub took: Duration,
    /// How long it took until the first word.
    pub first_word: Option<Duration>,
    /// What kind of error it ended with.
    pub error: Option<String>,
    /// How often the provider was asked.
    pub tries: u32,
}

/// Has a model's name in the metrics: one that its provider or the operator names, not only a user.
pub fn list_model(model: &str) {
    if is_on() {
        MODELS.bounded(model);
    }
}

/// The labels of a model, after OpenTelemetry's conventions.
fn model_labels(provider: &str, model: &str) -> Vec<(&'static str, SharedString)> {
    vec![
        ("gen_ai_operation_name", SharedString::const_str("chat")),
        ("gen_ai_provider_name", PROVIDERS.bounded(provider)),
        ("gen_ai_request_model", MODELS.known(model)),
    ]
}

/// A model was called, and answered or did not.
pub fn model_call(figures: ModelCallFigures<'_>) {
    if !is_on() {
        return;
    }
    let labels = model_labels(figures.provider, figures.model);
    if let Some(first_word) = figures.first_word {
        histogram!(MODEL_FIRST_WORD, &labels).record(first_word);
    }
    counter!(MODEL_RETRIES, &labels).increment(u64::from(figures.tries.saturating_sub(1)));
    let error = figures
        .error
        .map_or(SharedString::const_str(""), Into::into);
    let labels = [labels, vec![("error_type", error)]].concat();
    histogram!(MODEL_CALL, &labels).record(figures.took);
}

/// A call of a model is in the log, with what it used: the sum of these is the log's.
pub fn model_usage(call: &ModelCallRow) {
    if !is_on() {
        return;
    }
    let (labels, used) = (model_labels(&call.provider, &call.model), &call.used);
    counter!(MODEL_CALLS, &labels).increment(used.calls);
    counter!(MODEL_COST, &labels).increment(used.cost);
    for (kind, tokens) in [
        ("input", used.input_tokens),
        ("output", used.output_tokens),
        ("cache_read", used.cache_read_tokens),
        ("cache_write", used.cache_write_tokens),
    ] {
        let kind = vec![("gen_ai_token_type", SharedString::const_str(kind))];
        counter!(MODEL_TOKENS, &[labels.clone(), kind].concat()).increment(tokens);
    }
}

/// Has a tool's name in the metrics: one that there is, not only one that a model asks for.
pub fn list_tool(name: &str) {
    if is_on() {
        TOOLS.bounded(name);
    }
}

/// A tool ran. One that succeeds is one that there is.
pub fn tool(name: &str, succeeded: bool, took: Duration) {
    if is_on() {
        let (tool, outcome) = match succeeded {
            true => (TOOLS.bounded(name), "ok"),
            false => (TOOLS.known(name), "error"),
        };
        histogram!(TOOL, "tool" => tool, "outcome" => outcome).record(took);
    }
}

/// A sandbox was started, or could not be.
pub fn sandbox_start(kind: &str, succeeded: bool, took: Duration) {
    if is_on() {
        let outcome = if succeeded { "ok" } else { "error" };
        histogram!(SANDBOX_START, "kind" => kind.to_owned(), "outcome" => outcome).record(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prometheus_names_and_end_in_their_unit() {
        let mut names = HashSet::new();
        for metric in ALL {
            let Metric { name, kind, help } = metric;
            assert!(names.insert(name), "{name} is there twice");
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(name.bytes().all(is_plain), "{name}");
            let unit = match kind {
                Counter => name.ends_with("_total"),
                Histogram(bounds) => {
                    assert!(bounds.is_sorted(), "{name}");
                    name.ends_with("_seconds") || name.ends_with("_bytes")
                }
                Gauge => !name.ends_with("_total"),
            };
            assert!(unit, "{name} does not say what it counts");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
    }

    #[test]
    fn whoever_names_things_cannot_make_series_without_end() {
        let values = LabelValues::default();
        let mut labels = HashSet::new();
        for number in 0..10 * MOST_VALUES {
            labels.insert(values.bounded(&format!("model-{number}")).to_string());
        }
        assert_eq!(labels.len(), MOST_VALUES + 1);
        assert_eq!(
            &*values.bounded("model-0"),
            "model-0",
            "what is known stays known"
        );
        assert_eq!(&*values.bounded("model-new"), OTHER);
        assert_eq!(&*values.known("model-0"), "model-0");
        let values = LabelValues::default();
        assert_eq!(&*values.known("asked for"), OTHER);
        assert_eq!(&*values.known("asked for"), OTHER, "to ask is not to list");
        assert_eq!(
            &*LabelValues::default().bounded(&"x".repeat(LONGEST_VALUE + 1)),
            OTHER
        );
    }
}
