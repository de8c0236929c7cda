//! Deltas: pieces of an effect that is still running.

use std::sync::Arc;

/// The kind of a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaKind {
    /// The model's text.
    Text,
    /// The model's reasoning.
    Thinking,
    /// A command's output.
    Terminal,
    /// No piece: what was shown of the effect so far is void, since it starts again.
    Reset,
}

/// Receives deltas. Never waits, and may lose some.
pub type DeltaSink = Arc<dyn Fn(DeltaKind, &str) + Send + Sync>;
