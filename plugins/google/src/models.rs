//! The known models, and the request options each one takes.
//!
//! Figures are those of the provider's public pages of November 2026. A price that rises with the
//! length of the prompt is given at its lowest, and one that is temporarily lowered at its usual
//! level.
//!
//! # Invariants
//!
//! - A model that is not in the list is treated like the newest ones.

use lucid_plugin::llm::{ModelInfo, Prices, prices};

/// How a model's reasoning is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reasons {
    /// By a number of tokens, with this minimum.
    Budget { least: u32 },
    /// By a level, with `minimal` if the model knows it.
    Level { minimal: bool },
}

/// The request options of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) reasons: Reasons,
    /// Whether it accepts `temperature` and `topP`.
    pub(crate) sampling: bool,
    /// Whether it refuses a call that comes back without its thought signature.
    pub(crate) signed: bool,
}

struct Model {
    id: &'static str,
    name: &'static str,
    ways: Ways,
    prices: Prices,
}

const OLD: Ways = Ways {
    reasons: Reasons::Budget { least: 0 },
    sampling: true,
    signed: false,
};
const OLD_PRO: Ways = Ways {
    reasons: Reasons::Budget { least: 128 },
    ..OLD
};
const NEW: Ways = Ways {
    reasons: Reasons::Level { minimal: false },
    sampling: false,
    signed: true,
};
const THREE: Ways = Ways {
    sampling: true,
    ..NEW
};
const FLASH: Ways = Ways {
    reasons: Reasons::Level { minimal: true },
    ..THREE
};

const fn model(id: &'static str, name: &'static str, ways: Ways, prices: Prices) -> Model {
    Model {
        id,
        name,
        ways,
        prices,
    }
}

// The API writes its own cache, at no cost.
const MODELS: [Model; 9] = [
    model(
        "gemini-3.8-flash",
        "Gemini 3.8 Flash",
        NEW,
        prices(1_500_000, 7_500_000, 150_000, 1_500_000),
    ),
    model(
        "gemini-3.5-flash",
        "Gemini 3.5 Flash",
        FLASH,
        prices(1_500_000, 9_000_000, 150_000, 1_500_000),
    ),
    model(
        "gemini-3.5-flash-lite",
        "Gemini 3.5 Flash-Lite",
        FLASH,
        prices(300_000, 2_500_000, 30_000, 300_000),
    ),
    model(
        "gemini-3.1-pro-preview",
        "Gemini 3.1 Pro",
        THREE,
        prices(2_000_000, 12_000_000, 200_000, 2_000_000),
    ),
    model(
        "gemini-3.1-flash-lite",
        "Gemini 3.1 Flash-Lite",
        FLASH,
        prices(250_000, 1_500_000, 25_000, 250_000),
    ),
    model(
        "gemini-3-flash-preview",
        "Gemini 3 Flash",
        FLASH,
        prices(500_000, 3_000_000, 50_000, 500_000),
    ),
    model(
        "gemini-2.5-pro",
        "Gemini 2.5 Pro",
        OLD_PRO,
        prices(1_250_000, 10_000_000, 125_000, 1_250_000),
    ),
    model(
        "gemini-2.5-flash",
        "Gemini 2.5 Flash",
        OLD,
        prices(300_000, 2_500_000, 30_000, 300_000),
    ),
    model(
        "gemini-2.5-flash-lite",
        "Gemini 2.5 Flash-Lite",
        OLD,
        prices(100_000, 400_000, 10_000, 100_000),
    ),
];

pub(crate) fn all() -> Vec<ModelInfo> {
    MODELS
        .iter()
        .map(|m| ModelInfo {
            id: m.id.into(),
            display_name: m.name.into(),
            context_tokens: 1_048_576,
            output_tokens: 65_536,
            tools: true,
            images: true,
            thinking: true,
            prices: Some(m.prices),
        })
        .collect()
}

/// `None` for another vendor's model behind the same API, about which nothing is assumed.
pub(crate) fn ways(model: &str) -> Option<Ways> {
    let name = model.rsplit('/').next().unwrap_or(model);
    let known = MODELS.iter().find(|m| m.id == name).map(|m| m.ways);
    known.or_else(|| {
        let version = name.strip_prefix("gemini-")?;
        Some(match () {
            () if version.starts_with("1.") || version.starts_with("2.0") => return None,
            () if version.starts_with("2.5-pro") => OLD_PRO,
            () if version.starts_with("2.") => OLD,
            () => NEW,
        })
    })
}
