//! The usage of model calls: of one call, and the totals of a session.
//!
//! # Invariants
//! - Amounts of money are in millionths of a US dollar.

use serde::{Deserialize, Serialize};

use crate::ids::EffectId;

/// Usage totals of a session's model calls so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageTotals {
    /// The number of calls.
    pub calls: u64,
    /// Tokens read by the model, excluding those from a cache.
    pub input_tokens: u64,
    /// Tokens written by the model.
    pub output_tokens: u64,
    /// Tokens read from a prompt cache.
    pub cache_read_tokens: u64,
    /// Tokens written to a prompt cache.
    pub cache_write_tokens: u64,
    /// Cost of the calls whose model has known prices, in millionths of a US dollar.
    pub cost: u64,
}

/// A model call that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCallRow {
    /// The call's effect.
    pub effect: EffectId,
    /// The provider's name.
    pub provider: String,
    /// The model's name.
    pub model: String,
    /// Usage of this call; `calls` is 1, and `cost` is 0 if it is unknown.
    pub used: UsageTotals,
    /// Whether the model's prices are known.
    pub priced: bool,
    /// The number of requests made to the provider.
    pub tries: u32,
}

impl UsageTotals {
    /// The sum of all tokens.
    pub fn tokens(&self) -> u64 {
        self.input_tokens
            .saturating_add(self.output_tokens)
            .saturating_add(self.cache_read_tokens)
            .saturating_add(self.cache_write_tokens)
    }

    /// Adds other totals.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.calls, other.calls),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.cache_read_tokens, other.cache_read_tokens),
            (&mut self.cache_write_tokens, other.cache_write_tokens),
            (&mut self.cost, other.cost),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}
