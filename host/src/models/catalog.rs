//! The models of one provider that may be chosen, and what is known about each.
//!
//! # Invariants
//!
//! - No I/O.
//! - A model that is not allowed is never returned. The one that the operator named is always
//!   allowed.
//! - Nothing is claimed about an unknown model, least of all a price.

use crate::config::{ModelSettings, ProviderSettings};
use crate::manifest::{ModelPrices, ProviderEntry};
use lucid_session::AvailableModels;
use lucid_types::wit::llm::{Descriptor, ModelInfo, Prices};
use lucid_types::wit::policy::ModelOffer;
use lucid_types::wit::types::Usage;

/// The maximum length of a model name that is sent.
const LONGEST: usize = 200;
/// The maximum number of models that a refusal lists.
const NAMED: usize = 20;

/// The models of one provider.
#[derive(Debug)]
pub(super) struct ModelCatalog {
    provider: String,
    /// `None` if the list allows none of this provider's models.
    default: Option<String>,
    small: String,
    /// Whether the operator named the small model.
    is_small_set: bool,
    known: Vec<ModelInfo>,
    allowed: AllowedModels,
    /// The operator's prices.
    prices: ModelPrices,
}

#[derive(Debug)]
enum AllowedModels {
    /// A server of the operator's own, whose models are unknown here.
    Any,
    /// The models the adapter knows.
    Known,
    /// These, without the provider's prefix.
    Listed(Vec<String>),
}

/// The inputs from which a provider's choice is made.
pub(super) struct CatalogSources<'a> {
    /// The deployment's name for the provider.
    pub(super) name: &'a str,
    pub(super) descriptor: &'a Descriptor,
    pub(super) known: &'a [ModelInfo],
    pub(super) settings: &'a ModelSettings,
    pub(super) provider_settings: Option<&'a ProviderSettings>,
    /// The provider's manifest entry, which takes precedence over the environment.
    pub(super) entry: Option<&'a ProviderEntry>,
    /// The names of all providers, including this one.
    pub(super) others: &'a [String],
    /// Whether it serves sessions that name no provider. If so, `LLM_MODEL` and a model given on
    /// the command line refer to it.
    pub(super) is_default: bool,
    /// Whether it is at `LLM_BASE_URL`, so that `LLM_MODEL` refers to it too.
    pub(super) general: bool,
    /// Whether its base URL points to a server other than the adapter's own.
    pub(super) is_other_server: bool,
}

impl ModelCatalog {
    pub(super) fn new(basis: &CatalogSources<'_>) -> Self {
        let CatalogSources {
            descriptor,
            settings,
            entry,
            is_other_server: elsewhere,
            ..
        } = *basis;
        let small = entry.and_then(|entry| entry.small_model.clone());
        let mut catalog = Self {
            provider: basis.name.to_owned(),
            default: None,
            is_small_set: small.is_some(),
            small: small.unwrap_or_else(|| descriptor.small_model.clone()),
            known: basis.known.to_vec(),
            allowed: AllowedModels::Known,
            prices: entry.map(|entry| entry.prices.clone()).unwrap_or_default(),
        };
        let typed = settings.typed_model.as_ref().filter(|_| basis.is_default);
        let stated = entry.and_then(|entry| entry.model.as_ref());
        let general = basis.is_default || basis.general;
        let general = settings.model.as_ref().filter(|_| general);
        let own = basis.provider_settings.and_then(|own| own.model.as_ref());
        let wanted = typed.or(stated).or(own).or(general);
        let wanted = wanted.cloned();
        catalog.allowed = match (
            entry.and_then(|entry| entry.models.clone()),
            &settings.allowed,
        ) {
            (Some(list), _) => AllowedModels::Listed(list),
            (None, Some(list)) => {
                let others = |name: &str| {
                    settings.of(name).is_some() || basis.others.iter().any(|other| other == name)
                };
                AllowedModels::Listed(catalog.listed(list, elsewhere, others))
            }
            (None, None) if elsewhere => AllowedModels::Any,
            (None, None) => AllowedModels::Known,
        };
        let first = match &catalog.allowed {
            AllowedModels::Listed(list) if !list.contains(&descriptor.default_model) => {
                list.first().cloned()
            }
            _ => Some(descriptor.default_model.clone()),
        };
        catalog.default = wanted.or(first);
        catalog
    }

    /// The entries of the list for this provider: those with its prefix, and those without any
    /// provider's prefix if it may have that model.
    fn listed(
        &self,
        list: &[String],
        elsewhere: bool,
        is_provider: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let fits = |entry: &String| match entry.split_once('/') {
            Some((provider, model)) if provider == self.provider => Some(model.to_owned()),
            Some((provider, _)) if is_provider(provider) => None,
            _ => (elsewhere || self.info(entry).is_some()).then(|| entry.clone()),
        };
        list.iter().filter_map(fits).collect()
    }

    /// The model for a session that names none. `None` if none is allowed.
    pub(super) fn default(&self) -> Option<&str> {
        self.default.as_deref()
    }

    /// Whether a model may be called.
    pub(super) fn allows(&self, model: &str) -> bool {
        let plain = |c: char| !c.is_control() && !c.is_whitespace();
        if model.is_empty() || model.len() > LONGEST || !model.chars().all(plain) {
            return false;
        }
        self.default() == Some(model)
            || (self.is_small_set && model == self.small)
            || match &self.allowed {
                AllowedModels::Any => true,
                AllowedModels::Known => self.info(model).is_some() || model == self.small,
                AllowedModels::Listed(list) => list.iter().any(|listed| listed == model),
            }
    }

    /// Whether its provider or the operator names this model, not only whoever asks for it.
    pub(super) fn lists(&self, model: &str) -> bool {
        let is_listed = || match &self.allowed {
            AllowedModels::Listed(list) => list.iter().any(|listed| listed == model),
            AllowedModels::Any | AllowedModels::Known => model == self.small,
        };
        self.default() == Some(model) || self.info(model).is_some() || is_listed()
    }

    /// The names of all models known to be available, the default first.
    pub(super) fn names(&self) -> Vec<String> {
        let others: Vec<&str> = match &self.allowed {
            AllowedModels::Any => Vec::new(),
            AllowedModels::Known => self.known.iter().map(|info| info.id.as_str()).collect(),
            AllowedModels::Listed(list) => list.iter().map(String::as_str).collect(),
        };
        let mut names: Vec<String> = Vec::new();
        for name in self.default().into_iter().chain(others) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Lists some of them in a sentence.
    pub(super) fn sentence(&self) -> String {
        let names = self.names();
        if names.is_empty() {
            return "LLM_MODELS names none of that provider.".to_owned();
        }
        let more = if names.len() > NAMED {
            " and others"
        } else {
            ""
        };
        let some: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
        format!("There are: {}{more}.", some.join(", "))
    }

    /// The models a policy is offered. With a cost limit (`priced`), only those with a known price.
    pub(super) fn offers(&self, model: &str, priced: bool) -> AvailableModels {
        // On the operator's own server it is unknown whether the adapter's cheap model is
        // available.
        let small = match self.allowed {
            AllowedModels::Any if !self.is_small_set => model,
            _ if priced && !self.is_priced(&self.small) => model,
            _ if self.allows(&self.small) => &self.small,
            _ => model,
        };
        let mut names = self.offered(priced);
        for name in [small, model] {
            if !names.iter().any(|known| known == name) {
                names.insert(0, name.to_owned());
            }
        }
        AvailableModels {
            model: self.offer(model),
            small: self.offer(small),
            names,
        }
    }

    /// The names of the models that a policy may call.
    pub(super) fn offered(&self, priced: bool) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| !priced || self.is_priced(name));
        names
    }

    fn offer(&self, model: &str) -> ModelOffer {
        let info = self.info(model);
        ModelOffer {
            name: model.to_owned(),
            context_tokens: info.map_or(0, |info| info.context_tokens),
            output_tokens: info.map_or(0, |info| info.output_tokens),
            images: info.is_some_and(|info| info.images),
        }
    }

    /// A call's cost, in millionths of a US dollar. `None` if the prices are unknown.
    pub(super) fn cost(&self, model: &str, usage: &Usage) -> Option<u64> {
        let prices = self.prices(model)?;
        let sum: u128 = [
            (usage.input_tokens, prices.input),
            (usage.output_tokens, prices.output),
            (usage.cache_read_tokens, prices.cache_read),
            (usage.cache_write_tokens, prices.cache_write),
        ]
        .into_iter()
        .map(|(tokens, price)| u128::from(tokens) * u128::from(price))
        .sum();
        Some(u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }

    /// Whether a model's price is known.
    pub(super) fn is_priced(&self, model: &str) -> bool {
        self.prices(model).is_some()
    }

    fn prices(&self, model: &str) -> Option<&Prices> {
        let stated = self.prices.by_model.get(model);
        let known = || self.info(model).and_then(|info| info.prices.as_ref());
        stated.or_else(known).or(self.prices.others.as_ref())
    }

    /// The adapter's information about a model. A dated name refers to the model without its date.
    fn info(&self, model: &str) -> Option<&ModelInfo> {
        let dated = |info: &&ModelInfo| {
            let rest = model
                .strip_prefix(&info.id)
                .and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|rest| rest == "latest" || is_date(rest))
        };
        let exact = self.known.iter().find(|info| info.id == model);
        exact.or_else(|| self.known.iter().find(dated))
    }
}

/// `20260131`, `2026-01-31`, or the `0131` and `001` of older names.
fn is_date(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let form: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    form == "0000-00-00" || (digits == text.len() && matches!(digits, 3 | 4 | 8))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::Manifest;
    use lucid_types::wit::llm::KeyPlace;

    fn descriptor() -> Descriptor {
        Descriptor {
            name: "anthropic".into(),
            version: "1.0.0".into(),
            description: String::new(),
            default_base_url: "https://api.example".into(),
            default_model: "large".into(),
            small_model: "small".into(),
            key: KeyPlace::Bearer,
            settings_schema: None,
        }
    }

    fn known() -> Vec<ModelInfo> {
        let model = |id: &str, input: u64| ModelInfo {
            id: id.into(),
            display_name: id.into(),
            context_tokens: 200_000,
            output_tokens: 64_000,
            tools: true,
            images: id == "large",
            thinking: true,
            prices: Some(Prices {
                input,
                output: 5 * input,
                cache_read: input / 10,
                cache_write: input + input / 4,
            }),
        };
        vec![model("large", 3_000_000), model("small", 1_000_000)]
    }

    fn choice(settings: &ModelSettings, elsewhere: bool) -> ModelCatalog {
        ModelCatalog::new(&CatalogSources {
            name: "anthropic",
            descriptor: &descriptor(),
            known: &known(),
            settings,
            provider_settings: settings.of("anthropic"),
            entry: None,
            others: &[],
            is_default: true,
            general: false,
            is_other_server: elsewhere,
        })
    }

    /// A choice made from a manifest entry that contradicts the environment.
    fn stated(fields: &str, elsewhere: bool) -> ModelCatalog {
        let text = format!("[providers.anthropic]\ncomponent = \"builtin:anthropic\"\n{fields}");
        let manifest = Manifest::parse(Path::new("lucid.toml"), &text).unwrap();
        let own = ProviderSettings {
            name: "anthropic",
            model: Some("of-the-environment".into()),
            ..ProviderSettings::default()
        };
        ModelCatalog::new(&CatalogSources {
            name: "anthropic",
            descriptor: &descriptor(),
            known: &known(),
            settings: &ModelSettings {
                allowed: Some(vec!["large".into(), "of-the-environment".into()]),
                ..ModelSettings::default()
            },
            provider_settings: Some(&own),
            entry: manifest.providers.get("anthropic"),
            others: &[],
            is_default: true,
            general: false,
            is_other_server: elsewhere,
        })
    }

    #[test]
    fn what_the_manifest_says_comes_before_the_environment_and_the_rest_is_the_environments() {
        let catalog = stated("", false);
        assert_eq!(catalog.default(), Some("of-the-environment"));
        assert_eq!(catalog.names(), ["of-the-environment", "large"]);
        let catalog = stated(
            "models = [\"a\", \"b\"]\nmodel = \"b\"\nsmall_model = \"a\"",
            false,
        );
        assert_eq!(catalog.names(), ["b", "a"]);
        assert!(!catalog.allows("large") && !catalog.allows("of-the-environment"));
        assert_eq!(catalog.offers("b", false).small.name, "a");
        // A small model that is named is available, even on a server whose models are unknown.
        let catalog = stated("model = \"b\"\nsmall_model = \"tiny\"", true);
        assert!(catalog.allows("tiny"));
        assert_eq!(catalog.offers("b", false).small.name, "tiny");
    }

    #[test]
    fn a_price_is_the_manifests_then_the_adapters_then_that_of_all_others() {
        let catalog = stated(
            "models = [\"large\", \"small\", \"mine\"]\n\
             prices = { large = { input = 1, output = 2.5 }, \"*\" = { input = 0, output = 0 } }",
            true,
        );
        let all = Usage {
            input_tokens: 1_000_000,
            output_tokens: 1_000_000,
            cache_read_tokens: 1_000_000,
            cache_write_tokens: 0,
        };
        assert_eq!(catalog.cost("large", &all), Some(4_500_000));
        assert_eq!(
            catalog.cost("small", &all),
            Some(1_000_000 + 5_000_000 + 100_000)
        );
        assert_eq!(catalog.cost("mine", &all), Some(0));
        assert!(catalog.is_priced("mine"));
    }

    #[test]
    fn where_cost_is_limited_only_models_of_known_price_are_offered() {
        let catalog = stated(
            "models = [\"large\", \"new\"]\nmodel = \"large\"\nsmall_model = \"new\"",
            false,
        );
        assert_eq!(catalog.offers("large", false).names, ["large", "new"]);
        let offers = catalog.offers("large", true);
        assert_eq!(offers.names, ["large"]);
        assert_eq!(offers.small.name, "large");
        assert!(!catalog.is_priced("new"));
    }

    fn listed(list: &[&str]) -> ModelSettings {
        let openai = ProviderSettings {
            name: "openai",
            ..ProviderSettings::default()
        };
        ModelSettings {
            providers: vec![openai],
            allowed: Some(list.iter().map(|entry| (*entry).to_owned()).collect()),
            ..ModelSettings::default()
        }
    }

    #[test]
    fn without_a_list_the_adapters_models_are_offered_and_no_other() {
        let catalog = choice(&ModelSettings::default(), false);
        assert_eq!(catalog.default(), Some("large"));
        for model in ["large", "small", "large-20260101", "small-latest"] {
            assert!(catalog.allows(model), "{model}");
        }
        for model in [
            "",
            "larger",
            "large-x",
            "large-9-20270101",
            "large-5",
            "other",
            "large\n",
            "a b",
        ] {
            assert!(!catalog.allows(model), "{model}");
        }
        let offers = catalog.offers("large", false);
        assert_eq!(offers.small.name, "small");
        assert_eq!(offers.names, ["large", "small"]);
        assert_eq!(
            (offers.model.context_tokens, offers.model.images),
            (200_000, true)
        );
    }

    #[test]
    fn on_a_server_of_the_operators_own_any_model_is_and_nothing_is_claimed_of_it() {
        let settings = ModelSettings {
            model: Some("qwen".into()),
            ..ModelSettings::default()
        };
        let catalog = choice(&settings, true);
        assert_eq!(catalog.default(), Some("qwen"));
        assert!(catalog.allows("mistral/large") && !catalog.allows(&"x".repeat(201)));
        let offers = catalog.offers("qwen", false);
        assert_eq!(
            (offers.small.name.as_str(), offers.model.context_tokens),
            ("qwen", 0)
        );
        assert_eq!(offers.names, ["qwen"]);
        assert_eq!(catalog.cost("qwen", &usage(1_000_000)), None);
    }

    #[test]
    fn a_list_holds_for_the_provider_it_names() {
        let choice_of = |list: &[&str]| choice(&listed(list), false);
        let some = choice_of(&["anthropic/small", "openai/gpt", "gpt-2", "anthropic/new"]);
        assert_eq!(some.default(), Some("small"));
        assert_eq!(some.names(), ["small", "new"]);
        assert!(some.allows("new") && !some.allows("large") && !some.allows("gpt-2"));
        // The bare name of a model that it knows refers to it too.
        assert_eq!(choice_of(&["x", "large"]).names(), ["large"]);
        // On the operator's own server a name may contain slashes, except with another provider's
        // prefix.
        let own = choice(
            &listed(&["openai/gpt", "meta/x", "anthropic/openai/y"]),
            true,
        );
        assert_eq!(own.names(), ["meta/x", "openai/y"]);
        let none = choice_of(&["openai/gpt"]);
        assert_eq!(none.default(), None);
        assert!(!none.allows("large") && none.sentence().contains("LLM_MODELS"));
        // A model that the operator named beside the list is allowed too.
        let mut named = listed(&["small"]);
        named.model = Some("mine".into());
        let named = choice(&named, false);
        assert_eq!(named.names(), ["mine", "small"]);
        assert!(named.allows("mine") && !named.allows("large"));
    }

    fn usage(input_tokens: u64) -> Usage {
        Usage {
            input_tokens,
            output_tokens: 0,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        }
    }

    #[test]
    fn a_cost_is_rounded_up_to_the_next_millionth() {
        let catalog = choice(&ModelSettings::default(), false);
        assert_eq!(catalog.cost("small", &usage(0)), Some(0));
        assert_eq!(catalog.cost("small", &usage(1)), Some(1));
        assert_eq!(
            catalog.cost("large-20260101", &usage(1_000_000)),
            Some(3_000_000)
        );
        let all = Usage {
            input_tokens: 10,
            output_tokens: 10,
            cache_read_tokens: 10,
            cache_write_tokens: 10,
        };
        // 30 + 150 + 3 + 37.5
        assert_eq!(catalog.cost("large", &all), Some(221));
        assert_eq!(catalog.cost("large", &usage(u64::MAX)), Some(u64::MAX));
    }
}
