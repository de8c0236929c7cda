//! A policy's options for a model call, parsed once for all adapters.
//!
//! # Invariants
//!
//! - An unknown option is ignored, so that a policy can set one that only some adapters have.

use serde_json::{Map, Value};

use super::parse_settings;
use crate::types::Error;

/// A policy's options: `temperature`, `top_p`, `stop`, `thinking`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Params {
    /// The sampling temperature, if the model still accepts it.
    pub temperature: Option<f64>,
    /// The nucleus sampling threshold, if the model still accepts it.
    pub top_p: Option<f64>,
    /// Stop sequences.
    pub stop: Vec<String>,
    /// The amount of reasoning. `None` for the provider's default.
    pub thinking: Option<Thinking>,
}

/// The amount of reasoning: `false`, a number of tokens, a word such as `high`, or an object with
/// `budget_tokens` or `effort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// As little as the model allows.
    Off,
    /// A maximum number of tokens.
    Budget(u32),
    /// A level on the provider's own scale.
    Effort(Effort),
}

/// The reasoning effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Almost none.
    Minimal,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// The maximum.
    Max,
}

impl Params {
    /// Parses the text of a JSON object.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let all: Map<String, Value> = parse_settings(text)
            .map_err(|_| Error::invalid("The params of the model call are not a JSON object."))?;
        let number = |name: &str| all.get(name).and_then(Value::as_f64);
        let stop = match all.get("stop") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(some)) => some
                .iter()
                .filter_map(|text| text.as_str().map(Into::into))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            temperature: number("temperature"),
            top_p: number("top_p"),
            stop: stop
                .into_iter()
                .filter(|s: &String| !s.trim().is_empty())
                .collect(),
            thinking: all.get("thinking").and_then(Thinking::read),
        })
    }
}

impl Thinking {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(false) => Some(Self::Off),
            Value::Bool(true) => Some(Self::Effort(Effort::Medium)),
            Value::Number(tokens) => tokens.as_u64().map(Self::tokens),
            Value::String(word) => Self::word(word),
            Value::Object(members) => {
                let member = |name| members.get(name);
                if member("type").and_then(Value::as_str) == Some("disabled") {
                    return Some(Self::Off);
                }
                member("budget_tokens")
                    .and_then(Value::as_u64)
                    .map(Self::tokens)
                    .or_else(|| Self::word(member("effort")?.as_str()?))
            }
            _ => None,
        }
    }

    fn tokens(tokens: u64) -> Self {
        match u32::try_from(tokens).unwrap_or(u32::MAX) {
            0 => Self::Off,
            tokens => Self::Budget(tokens),
        }
    }

    fn word(word: &str) -> Option<Self> {
        Some(Self::Effort(match word {
            "off" | "none" | "disabled" => return Some(Self::Off),
            "minimal" => Effort::Minimal,
            "low" => Effort::Low,
            "medium" | "on" | "adaptive" => Effort::Medium,
            "high" => Effort::High,
            "xhigh" | "max" => Effort::Max,
            _ => return None,
        }))
    }

    /// The number of tokens, for a model that takes one. 0 for off.
    pub fn as_budget(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Budget(tokens) => tokens,
            Self::Effort(Effort::Minimal) => 1_024,
            Self::Effort(Effort::Low) => 4_096,
            Self::Effort(Effort::Medium) => 8_192,
            Self::Effort(Effort::High) => 16_384,
            Self::Effort(Effort::Max) => 32_000,
        }
    }

    /// The level, for a model that takes one. `None` for off.
    pub fn as_effort(self) -> Option<Effort> {
        match self {
            Self::Off => None,
            Self::Budget(0..=1_024) => Some(Effort::Minimal),
            Self::Budget(..=4_096) => Some(Effort::Low),
            Self::Budget(..=10_000) => Some(Effort::Medium),
            Self::Budget(_) => Some(Effort::High),
            Self::Effort(effort) => Some(effort),
        }
    }
}
