//! The known models, and the request options each one takes.
//!
//! Figures are those of the provider's public pages of November 2026. A price that rises with the
//! length of the prompt is given at its lowest.
//!
//! # Invariants
//!
//! - A Claude that is not in the list is treated like the newest ones, since a new name is newer
//!   than this file.
//! - Other vendors' models behind the same API are sent no option that a policy did not ask for.

use lucid_plugin::llm::{ModelInfo, Prices, prices};

/// How a model's reasoning is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasons {
    /// By a number of tokens, on request.
    Budget,
    /// Adaptive, on request, or by a number of tokens.
    Either,
    /// Adaptive, on request.
    Asked,
    /// Adaptive, unless turned off.
    Unasked,
    /// Adaptive. If turned off, it would refuse the request or the reasoning of its earlier
    /// responses.
    Always,
}

/// The request options of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) reasons: Reasons,
    /// Whether its reasoning is bound to everything before it, so that the API has to be told to
    /// drop what no longer fits a condensed conversation.
    pub(crate) bound: bool,
    /// The maximum number of output tokens.
    pub(crate) output: u32,
    /// Whether its reasoning is signed, and refused without a signature: true of Anthropic's
    /// models, wherever they are served.
    pub(crate) proves: bool,
}

impl Ways {
    /// Whether it accepts `temperature` and `top_p`.
    pub(crate) fn sampling(self) -> bool {
        matches!(self.reasons, Reasons::Budget | Reasons::Either)
    }
}

struct Model {
    id: &'static str,
    name: &'static str,
    context: u64,
    ways: Ways,
    prices: Prices,
}

const fn model(
    id: &'static str,
    name: &'static str,
    context: u64,
    reasons: Reasons,
    bound: bool,
    prices: Prices,
) -> Model {
    let output = if context > 200_000 { 128_000 } else { 64_000 };
    Model {
        id,
        name,
        context,
        ways: Ways {
            reasons,
            bound,
            output,
            proves: true,
        },
        prices,
    }
}

const MILLION: u64 = 1_000_000;
const OPUS: Prices = prices(5_000_000, 25_000_000, 500_000, 6_250_000);
const SONNET: Prices = prices(3_000_000, 15_000_000, 300_000, 3_750_000);

const MODELS: [Model; 13] = [
    model(
        "claude-fable-5-1",
        "Claude Fable 5.1",
        MILLION,
        Reasons::Always,
        true,
        prices(10_000_000, 50_000_000, 250_000, 12_500_000),
    ),
    model(
        "claude-opus-5-5",
        "Claude Opus 5.5",
        MILLION,
        Reasons::Always,
        true,
        prices(4_000_000, 20_000_000, 200_000, 5_000_000),
    ),
    model(
        "claude-sonnet-5-5",
        "Claude Sonnet 5.5",
        MILLION,
        Reasons::Always,
        true,
        prices(2_000_000, 10_000_000, 100_000, 2_500_000),
    ),
    model(
        "claude-haiku-5-5",
        "Claude Haiku 5.5",
        MILLION,
        Reasons::Always,
        true,
        prices(100_000, 500_000, 10_000, 125_000),
    ),
    model(
        "claude-opus-5",
        "Claude Opus 5",
        MILLION,
        Reasons::Unasked,
        false,
        OPUS,
    ),
    model(
        "claude-sonnet-5",
        "Claude Sonnet 5",
        MILLION,
        Reasons::Unasked,
        false,
        prices(2_000_000, 10_000_000, 200_000, 2_500_000),
    ),
    model(
        "claude-opus-4-8",
        "Claude Opus 4.8",
        MILLION,
        Reasons::Asked,
        false,
        OPUS,
    ),
    model(
        "claude-opus-4-7",
        "Claude Opus 4.7",
        MILLION,
        Reasons::Asked,
        false,
        OPUS,
    ),
    model(
        "claude-opus-4-6",
        "Claude Opus 4.6",
        MILLION,
        Reasons::Either,
        false,
        OPUS,
    ),
    model(
        "claude-sonnet-4-6",
        "Claude Sonnet 4.6",
        MILLION,
        Reasons::Either,
        false,
        SONNET,
    ),
    model(
        "claude-opus-4-5",
        "Claude Opus 4.5",
        200_000,
        Reasons::Budget,
        false,
        OPUS,
    ),
    model(
        "claude-sonnet-4-5",
        "Claude Sonnet 4.5",
        200_000,
        Reasons::Budget,
        false,
        SONNET,
    ),
    model(
        "claude-haiku-4-5",
        "Claude Haiku 4.5",
        200_000,
        Reasons::Budget,
        false,
        prices(1_000_000, 5_000_000, 100_000, 1_250_000),
    ),
];

pub(crate) fn all() -> Vec<ModelInfo> {
    MODELS
        .iter()
        .map(|m| ModelInfo {
            id: m.id.into(),
            display_name: m.name.into(),
            context_tokens: m.context,
            output_tokens: m.ways.output.into(),
            tools: true,
            images: true,
            thinking: true,
            prices: Some(m.prices),
        })
        .collect()
}

/// The options by the model's name, with or without a date suffix and a route prefix.
pub(crate) fn ways(model: &str) -> Ways {
    let name = model.rsplit('/').next().unwrap_or(model);
    let known = MODELS.iter().find(|m| {
        name.strip_prefix(m.id).is_some_and(|rest| {
            let date = rest.strip_prefix(['-', '@']).unwrap_or("x");
            rest.is_empty() || (date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()))
        })
    });
    known.map_or(
        Ways {
            reasons: if name.contains("claude") {
                Reasons::Unasked
            } else {
                Reasons::Either
            },
            bound: false,
            output: 64_000,
            proves: name.contains("claude"),
        },
        |m| m.ways,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_name_its_date_and_its_route() {
        for name in [
            "claude-haiku-4-5",
            "claude-haiku-4-5-20251001",
            "claude-haiku-4-5@20251001",
            "anthropic/claude-haiku-4-5",
        ] {
            assert_eq!(ways(name).reasons, Reasons::Budget, "{name}");
        }
        assert_eq!(ways("claude-opus-5-5").reasons, Reasons::Always);
        assert_eq!(ways("claude-opus-5").reasons, Reasons::Unasked);
        for newer in ["claude-opus-5-9", "claude-opus-6"] {
            assert_eq!(ways(newer).reasons, Reasons::Unasked, "{newer}");
        }
        assert_eq!(ways("kimi-k3").reasons, Reasons::Either);
        assert!(ways("bedrock/us.anthropic.claude-new").proves && !ways("kimi-k3").proves);
    }
}
