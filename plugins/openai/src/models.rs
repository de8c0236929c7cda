//! The known models, and the request options each one takes.
//!
//! Figures are those of OpenAI's public pages of November 2026. A price that rises with the length
//! of the prompt is given at its lowest.
//!
//! # Invariants
//!
//! - Nothing is assumed about a model that is not in the list, since most of those are other
//!   vendors' models behind the same API.

use lucid_plugin::llm::{ModelInfo, Prices, prices};

/// How a model accepts `reasoning_effort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Never.
    Never,
    /// Always.
    Any,
    /// Only without tools. With tools the model decides.
    Alone,
    /// With tools `none` must be sent, or the request is refused.
    NoneWithTools,
}

/// The request options of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) effort: Effort,
    /// Whether it accepts `temperature`, `top_p` and `stop`.
    pub(crate) sampling: bool,
    /// Whether it is OpenAI's, by its name, and not another vendor's behind the same API.
    pub(crate) own: bool,
}

struct Model {
    id: &'static str,
    name: &'static str,
    context: u64,
    output: u64,
    effort: Effort,
    prices: Prices,
}

const fn model(
    id: &'static str,
    name: &'static str,
    context: u64,
    output: u64,
    effort: Effort,
    prices: Prices,
) -> Model {
    Model {
        id,
        name,
        context,
        output,
        effort,
        prices,
    }
}

const MODELS: [Model; 18] = [
    model(
        "gpt-6.1-sol",
        "GPT-6.1 Sol",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(2_000_000, 10_000_000, 100_000, 2_500_000),
    ),
    model(
        "gpt-6-astra",
        "GPT-6 Astra",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(10_000_000, 50_000_000, 1_000_000, 12_500_000),
    ),
    model(
        "gpt-6-sol",
        "GPT-6 Sol",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(2_000_000, 10_000_000, 200_000, 2_500_000),
    ),
    model(
        "gpt-6-luna",
        "GPT-6 Luna",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(100_000, 500_000, 10_000, 125_000),
    ),
    model(
        "gpt-5.6-sol",
        "GPT-5.6 Sol",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(4_000_000, 20_000_000, 400_000, 5_000_000),
    ),
    model(
        "gpt-5.6-terra",
        "GPT-5.6 Terra",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(2_000_000, 12_000_000, 200_000, 2_500_000),
    ),
    model(
        "gpt-5.6-luna",
        "GPT-5.6 Luna",
        922_000,
        128_000,
        Effort::NoneWithTools,
        prices(200_000, 1_200_000, 20_000, 250_000),
    ),
    model(
        "gpt-5.5",
        "GPT-5.5",
        1_050_000,
        128_000,
        Effort::NoneWithTools,
        prices(5_000_000, 30_000_000, 500_000, 5_000_000),
    ),
    model(
        "gpt-5.4",
        "GPT-5.4",
        1_050_000,
        128_000,
        Effort::Alone,
        prices(2_500_000, 15_000_000, 250_000, 2_500_000),
    ),
    model(
        "gpt-5.4-mini",
        "GPT-5.4 mini",
        272_000,
        128_000,
        Effort::Alone,
        prices(750_000, 4_500_000, 75_000, 750_000),
    ),
    model(
        "gpt-5.2",
        "GPT-5.2",
        272_000,
        128_000,
        Effort::Alone,
        prices(1_750_000, 14_000_000, 175_000, 1_750_000),
    ),
    model(
        "gpt-5.1",
        "GPT-5.1",
        272_000,
        128_000,
        Effort::Any,
        prices(1_250_000, 10_000_000, 125_000, 1_250_000),
    ),
    model(
        "gpt-5",
        "GPT-5",
        272_000,
        128_000,
        Effort::Any,
        prices(1_250_000, 10_000_000, 125_000, 1_250_000),
    ),
    model(
        "gpt-5-mini",
        "GPT-5 mini",
        272_000,
        128_000,
        Effort::Any,
        prices(250_000, 2_000_000, 25_000, 250_000),
    ),
    model(
        "o3",
        "o3",
        200_000,
        100_000,
        Effort::Any,
        prices(2_000_000, 8_000_000, 500_000, 2_000_000),
    ),
    model(
        "gpt-4.1",
        "GPT-4.1",
        1_047_576,
        32_768,
        Effort::Never,
        prices(2_000_000, 8_000_000, 500_000, 2_000_000),
    ),
    model(
        "gpt-4.1-mini",
        "GPT-4.1 mini",
        1_047_576,
        32_768,
        Effort::Never,
        prices(400_000, 1_600_000, 100_000, 400_000),
    ),
    model(
        "gpt-4o",
        "GPT-4o",
        128_000,
        16_384,
        Effort::Never,
        prices(2_500_000, 10_000_000, 1_250_000, 2_500_000),
    ),
];

pub(crate) fn all() -> Vec<ModelInfo> {
    MODELS
        .iter()
        .map(|m| ModelInfo {
            id: m.id.into(),
            display_name: m.name.into(),
            context_tokens: m.context,
            output_tokens: m.output,
            tools: true,
            images: true,
            // It may reason, but this API does not return the reasoning.
            thinking: false,
            prices: Some(m.prices),
        })
        .collect()
}

/// The options by the model's name, with or without a date suffix and a route prefix.
pub(crate) fn ways(model: &str) -> Ways {
    let name = model.rsplit('/').next().unwrap_or(model);
    let known = MODELS.iter().find(|m| {
        let rest = name.strip_prefix(m.id);
        rest.is_some_and(|rest| rest.is_empty() || is_date(rest))
    });
    let effort = known.map(|m| m.effort).or_else(|| newer(name));
    Ways {
        effort: effort.unwrap_or(Effort::Any),
        sampling: effort.is_none_or(|effort| effort == Effort::Never),
        own: effort.is_some() || is_own(name),
    }
}

/// Whether a name is OpenAI's although it is not in the list: `gpt-4-turbo`, `o4-mini`,
/// `chatgpt-4o-latest`, and not `gpt-oss-120b`, which others serve.
fn is_own(name: &str) -> bool {
    let numbered = |rest: &str| rest.bytes().next().is_some_and(|b| b.is_ascii_digit());
    name.starts_with("chatgpt-")
        || name.strip_prefix("gpt-").is_some_and(numbered)
        || name.strip_prefix('o').is_some_and(numbered)
}

/// Whether it is a date suffix such as `-2025-08-07`.
fn is_date(rest: &str) -> bool {
    rest.len() == 11
        && rest.starts_with('-')
        && rest.bytes().all(|b| b.is_ascii_digit() || b == b'-')
}

/// The effort of an OpenAI model that is newer than this file: treated like the newest here.
fn newer(name: &str) -> Option<Effort> {
    let version = name.strip_prefix("gpt-")?;
    let number: String = version
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let number: f64 = number.trim_end_matches('.').parse().ok()?;
    (number >= 5.4).then_some(Effort::NoneWithTools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_name_its_date_and_its_route() {
        for name in ["gpt-5", "gpt-5-2025-08-07", "openai/gpt-5"] {
            assert!(!ways(name).sampling, "{name}");
            assert_eq!(ways(name).effort, Effort::Any, "{name}");
        }
        assert_eq!(ways("gpt-7-terra").effort, Effort::NoneWithTools);
        assert_eq!(ways("gpt-4.1-mini").effort, Effort::Never);
        for foreign in ["gpt-oss-120b", "qwen3-coder", "scripted", "llama"] {
            let ways = ways(foreign);
            assert!(ways.sampling && ways.effort == Effort::Any, "{foreign}");
            assert!(!ways.own, "{foreign}");
        }
        for own in [
            "gpt-4-turbo",
            "o4-mini",
            "chatgpt-4o-latest",
            "gpt-9",
            "openai/gpt-5",
        ] {
            assert!(ways(own).own, "{own}");
        }
    }
}
