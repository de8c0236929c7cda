//! Reads a manifest's entry for one plugin: its component, and what the plugin is given.
//!
//! # Invariants
//!
//! - A value given for a key, or for a URL that may contain one, is never repeated in a message.
//! - A variable that holds a secret of the host's own is never accepted as a key.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use url::Url;

use super::fields::{ManifestReader, SpannedKey, SpannedValue, field};
use super::model::{
    ComponentSource, GitEntry, KeyVariable, LimitOverrides, Located, ModelPrices, PluginEntry,
    ProviderEntry, ToolsEntry,
};
use super::problem::suggest;
use super::read::reject_unknown;
use crate::builtin;
use crate::config::{is_host_secret, is_model, is_variable, size};
use lucid_net::egress::{BaseUrlError, Endpoint, KeyInjection, parse_base_url, without_query};
use lucid_net::oci::{Reference, ReferenceError, SCHEME};
use lucid_types::digest::Digest;
use lucid_types::wit::llm::{KeyPlace, Prices};

pub(super) const PLUGIN: &[&str] = &["component", "digest", "settings", "limits"];
pub(super) const PROVIDER: &[&str] = &[
    "component",
    "digest",
    "settings",
    "limits",
    "base_url",
    "key",
    "key_place",
    "models",
    "model",
    "small_model",
    "prices",
    "silence",
];
pub(super) const TOOLS: &[&str] = &[
    "component",
    "digest",
    "settings",
    "limits",
    "base_url",
    "key",
    "key_place",
    "time",
    "policies",
];
pub(super) const GIT: &[&str] = &[
    "component",
    "digest",
    "settings",
    "limits",
    "base_url",
    "web_url",
];
pub(super) const LIMITS: &[&str] = &["fuel", "memory", "output", "time"];
pub(super) const KEY_PLACE: &[&str] = &["header"];
pub(super) const PRICE: &[&str] = &["input", "output", "cache_read", "cache_write"];

/// The permitted ranges of a call's limits on any host. The host's engine has no more memory than
/// this for one call.
pub(super) const FUEL: std::ops::RangeInclusive<u64> = 1_000_000..=1_000_000_000_000;
const MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=512 << 20;
const OUTPUT: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 20;
pub(super) const TIME: [f64; 2] = [0.1, 60.0];
/// How long a provider's server may send nothing, in seconds.
pub(super) const SILENCE: (f64, f64) = (1.0, 86_400.0);
/// The range of a tool call's time limit, in seconds.
pub(super) const CALL_TIME: [f64; 2] = [1.0, 3600.0];
/// The highest price of a million tokens, in dollars.
pub(super) const DEAREST: f64 = 1_000_000.0;
const MODEL: &str = "a model's name, at most 200 characters and none of them a space";

pub(super) fn plugin(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    table: &DeTable<'_>,
    of: &str,
    builtins: &'static [(&'static str, &'static [u8])],
    kind: &str,
) -> Option<PluginEntry> {
    let at = reader.at(&key.span());
    let component = match field(table, "component") {
        Some((_, item)) => component(reader, item, of, builtins, kind),
        None => {
            reader.report_at(
                at,
                format!(
                    "`{of}` has no `component`: say \"builtin:NAME\", the path of a component's file, or \"oci://REGISTRY/REPOSITORY:TAG\""
                ),
            );
            None
        }
    };
    let digest = field(table, "digest").map(|(_, item)| {
        let what = "\"sha256:\" and 64 hexadecimal digits, as `sha256sum FILE` prints them";
        let name = format!("{of}.digest");
        let text = reader.text_matching(item, &name, what, |text| digest(text).is_some())?;
        let value = digest(text.value)?;
        Some(Located { value, at: text.at })
    });
    let settings = field(table, "settings")
        .map(|(key, item)| reader.settings(key, item, &format!("{of}.settings")));
    let limits = field(table, "limits").map(|(_, item)| limits(reader, item, of));
    Some(PluginEntry {
        at,
        component: component?,
        digest: digest.flatten(),
        settings: settings.flatten().unwrap_or_default(),
        limits: limits.flatten().unwrap_or_default(),
    })
}

fn component(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
    builtins: &'static [(&'static str, &'static [u8])],
    kind: &str,
) -> Option<Located<ComponentSource>> {
    let text = reader.text(item, &format!("{of}.component"))?;
    let value = match source(reader.file, text.value, builtins, kind) {
        Ok(value) => value,
        Err(why) => {
            reader.report_at(text.at, why.to_string());
            return None;
        }
    };
    Some(Located { value, at: text.at })
}

/// Why a `component` is none.
#[derive(Debug, thiserror::Error)]
enum ComponentSourceError {
    /// No such component is built in.
    #[error("there is no built-in {kind} `{name}`; {instead}")]
    NoBuiltin {
        kind: String,
        name: String,
        /// What there is instead.
        instead: String,
    },
    /// It refers to no component in a registry.
    #[error("this names no component in a registry: {0}")]
    Registry(#[from] ReferenceError),
    /// It is neither a name nor a path nor an address of a registry.
    #[error(
        "a component is \"builtin:NAME\", the path of a file, or \"oci://REGISTRY/REPOSITORY:TAG\""
    )]
    Other,
}

fn source(
    manifest: &Path,
    text: &str,
    builtins: &'static [(&'static str, &'static [u8])],
    kind: &str,
) -> Result<ComponentSource, ComponentSourceError> {
    if let Some(name) = text.strip_prefix("builtin:") {
        let names = builtins.iter().map(|(known, _)| *known);
        return match builtins.iter().find(|(known, _)| *known == name) {
            Some((known, _)) => Ok(ComponentSource::Builtin(known)),
            None => Err(ComponentSourceError::NoBuiltin {
                kind: kind.to_owned(),
                name: name.to_owned(),
                instead: suggest(name, names),
            }),
        };
    }
    if let Some(rest) = text.strip_prefix(SCHEME) {
        return Ok(ComponentSource::Registry(Reference::parse(rest)?));
    }
    if text.is_empty() || text.contains("://") || text.contains(char::is_control) {
        return Err(ComponentSourceError::Other);
    }
    let folder = manifest.parent().unwrap_or(Path::new(""));
    Ok(ComponentSource::File(folder.join(PathBuf::from(text))))
}

fn digest(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix("sha256:")?;
    hex.to_ascii_lowercase().parse().ok()
}

fn limits(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<LimitOverrides> {
    let name = |field: &str| format!("{of}.limits.{field}");
    let table = reader.table(item, &format!("{of}.limits"), LIMITS)?;
    let mut amount = |field_name: &str, within, read: Option<fn(&str) -> Option<u64>>| {
        let (_, item) = field(table, field_name)?;
        reader.amount(item, &name(field_name), within, read)
    };
    let fuel = amount("fuel", &FUEL, None);
    let memory = amount("memory", &MEMORY, Some(size));
    let output = amount("output", &OUTPUT, Some(size));
    let time = field(table, "time")
        .and_then(|(_, item)| reader.seconds(item, &name("time"), TIME[0], TIME[1]));
    Some(LimitOverrides {
        fuel,
        memory: memory.and_then(|bytes| usize::try_from(bytes).ok()),
        output: output.and_then(|bytes| usize::try_from(bytes).ok()),
        time,
    })
}

pub(super) fn provider(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    item: &SpannedValue<'_>,
) -> Option<ProviderEntry> {
    let name = key.get_ref().as_ref();
    let of = format!("providers.{name}");
    let table = reader.table(item, &of, PROVIDER)?;
    let entry = plugin(reader, key, table, &of, builtin::PROVIDERS, "provider");
    let base_url = field(table, "base_url").and_then(|(_, item)| pasted_url(reader, item, &of));
    let key = key_variable(reader, table, name, &of, key);
    let key_place = field(table, "key_place").and_then(|(_, item)| key_place(reader, item, &of));
    let models = field(table, "models")
        .and_then(|(_, item)| reader.texts(item, &format!("{of}.models"), MODEL, is_model));
    let mut model = |field_name: &str| {
        let (_, item) = field(table, field_name)?;
        let text = reader.text_matching(item, &format!("{of}.{field_name}"), MODEL, is_model)?;
        Some((text.value.to_owned(), text.at))
    };
    let (model, small_model) = (model("model"), model("small_model"));
    for (field_name, named) in [("model", &model), ("small_model", &small_model)] {
        if let (Some(models), Some((named, at))) = (&models, named)
            && !models.contains(named)
        {
            reader.report_at(
                *at,
                format!(
                    "`{of}.{field_name}` is not among `models`: add it there, or name one of those"
                ),
            );
        }
    }
    let prices = field(table, "prices").and_then(|(_, item)| prices(reader, item, &of));
    let silence = field(table, "silence")
        .and_then(|(_, item)| reader.seconds(item, &format!("{of}.silence"), SILENCE.0, SILENCE.1));
    Some(ProviderEntry {
        plugin: entry?,
        base_url,
        key: key?,
        key_place,
        models,
        model: model.map(|(model, _)| model),
        small_model: small_model.map(|(model, _)| model),
        prices: prices.unwrap_or_default(),
        silence,
    })
}

/// Reads a tool component's entry. The address of its requests and the key are up to the
/// deployment.
pub(super) fn tools(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    item: &SpannedValue<'_>,
    root: &DeTable<'_>,
) -> Option<ToolsEntry> {
    let name = key.get_ref().as_ref();
    let of = format!("tools.{name}");
    let table = reader.table(item, &of, TOOLS)?;
    let entry = plugin(reader, key, table, &of, &[], "component with tools");
    let base_url = field(table, "base_url").and_then(|(_, item)| base_url(reader, item, &of));
    let key = field(table, "key").and_then(|(_, item)| stated_key(reader, item, &of));
    let key_place = field(table, "key_place").and_then(|(_, item)| key_place(reader, item, &of));
    if let Some(key) = &key
        && field(table, "base_url").is_none()
    {
        reader.report_at(
            key.at,
            format!(
                "`{of}` has a `key` and no `base_url`: say which server the key is for, so that no build of the component can send it to another"
            ),
        );
    }
    if let Some((place, _)) = field(table, "key_place")
        && field(table, "key").is_none()
    {
        let what =
            format!("`{of}.key_place` is of no use without a `key`: add that, or leave this out");
        reader.report(&place.span(), what);
    }
    let time = field(table, "time").and_then(|(_, item)| {
        reader.seconds(item, &format!("{of}.time"), CALL_TIME[0], CALL_TIME[1])
    });
    let policies = policies(reader, table, &of, root);
    Some(ToolsEntry {
        plugin: entry?,
        base_url,
        key,
        key_place,
        time,
        policies,
    })
}

/// Reads the list of policies whose sessions have the tools, if there is one.
pub(super) fn policies(
    reader: &mut ManifestReader<'_>,
    table: &DeTable<'_>,
    of: &str,
    root: &DeTable<'_>,
) -> Option<Vec<String>> {
    let (_, item) = field(table, "policies")?;
    let of = format!("{of}.policies");
    let names = reader.located_texts(item, &of, "a policy's name", |_| true)?;
    let known = names
        .iter()
        .map(|name| reject_unknown(reader, name, root, "policies", builtin::POLICIES));
    // Collected to the end, so that every problem is reported.
    let known: Vec<_> = known.collect();
    let owned = |name: Option<Located<String>>| name.map(|name| name.value);
    known.into_iter().map(owned).collect()
}

fn base_url(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<Located<Url>> {
    address(reader, item, &format!("{of}.base_url"))
}

/// A model provider's URL, as people paste it.
fn pasted_url(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<Located<Url>> {
    read_url(reader, item, &format!("{of}.base_url"), parse_base_url)
}

fn read_url(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    name: &str,
    read: fn(&str) -> Result<Url, BaseUrlError>,
) -> Option<Located<Url>> {
    let text = reader.text(item, name)?;
    match read(text.value) {
        Ok(value) => usable(reader, Located { value, at: text.at }),
        Err(why) => {
            // The value is not repeated: it may contain a key.
            let what = match why {
                BaseUrlError::NoUrl => format!(
                    "`{name}` must begin with http:// or https:// and a host's name, such as \"https://api.example.com/v1\""
                ),
                other => format!("`{name}` cannot be used: {other}"),
            };
            reader.report_at(text.at, what);
            None
        }
    }
}

/// A URL that requests may be sent to.
fn usable(reader: &mut ManifestReader<'_>, url: Located<Url>) -> Option<Located<Url>> {
    if let Err(why) = Endpoint::new(url.value.clone(), KeyInjection::Bearer) {
        reader.report_at(url.at, why.to_string());
        return None;
    }
    Some(url)
}

/// Reads a git provider's entry.
pub(super) fn git(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    item: &SpannedValue<'_>,
) -> Option<GitEntry> {
    let of = format!("git.{}", key.get_ref());
    let table = reader.table(item, &of, GIT)?;
    let entry = plugin(reader, key, table, &of, builtin::GIT, "git provider");
    let base_url = field(table, "base_url").and_then(|(_, item)| base_url(reader, item, &of));
    let web_url = field(table, "web_url")
        .and_then(|(_, item)| address(reader, item, &format!("{of}.web_url")));
    Some(GitEntry {
        plugin: entry?,
        base_url,
        web_url,
    })
}

/// A URL that requests go to.
pub(super) fn address(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    name: &str,
) -> Option<Located<Url>> {
    read_url(reader, item, name, without_query)
}

/// The variable that holds the key.
fn key_variable(
    reader: &mut ManifestReader<'_>,
    table: &DeTable<'_>,
    name: &str,
    of: &str,
    entry: &SpannedKey<'_>,
) -> Option<KeyVariable> {
    let Some((_, item)) = field(table, "key") else {
        let usual = format!("{}_API_KEY", name.to_ascii_uppercase().replace('-', "_"));
        if is_host_secret(&usual) {
            reader.report(
                &entry.span(),
                format!("{usual}, the usual variable for the key of `{name}`, is this host's own secret: give it another name, or say in `key` which variable holds the key"),
            );
            return None;
        }
        return Some(KeyVariable {
            name: usual,
            stated: None,
            is_needed: true,
        });
    };
    if let DeValue::Boolean(false) = item.get_ref() {
        return Some(KeyVariable {
            name: String::new(),
            stated: Some(reader.at(&item.span())),
            is_needed: false,
        });
    }
    let Located { value, at } = stated_key(reader, item, of)?;
    Some(KeyVariable {
        name: value,
        stated: Some(at),
        is_needed: true,
    })
}

/// The variable that `key` names.
pub(super) fn stated_key(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<Located<String>> {
    // The value is not repeated: it may be the key itself.
    let what = "the name of an environment variable, in capital letters, digits and _; the key itself never stands in a manifest";
    let text = reader.text_matching(item, &format!("{of}.key"), what, is_variable)?;
    if is_host_secret(text.value) {
        let what = format!(
            "{} is this host's own secret, which is sent to nobody",
            text.value
        );
        reader.report_at(text.at, what);
        return None;
    }
    let Located { value, at } = text;
    let value = value.to_owned();
    Some(Located { value, at })
}

pub(super) fn key_place(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<KeyInjection> {
    let name = format!("{of}.key_place");
    let what = "\"bearer\", or { header = \"NAME\" } for a header that holds the key alone";
    if let DeValue::String(text) = item.get_ref() {
        if text == "bearer" {
            return Some(KeyInjection::Bearer);
        }
        reader.report(&item.span(), format!("`{name}` must be {what}"));
        return None;
    }
    let table = reader.table(item, &name, KEY_PLACE)?;
    let Some((_, item)) = field(table, "header") else {
        reader.report(&item.span(), format!("`{name}` must be {what}"));
        return None;
    };
    let text = reader.text(item, &format!("{name}.header"))?;
    match KeyInjection::of(&KeyPlace::Header(text.value.to_owned())) {
        Ok(place) => Some(place),
        Err(_) => {
            reader.report_at(
                text.at,
                format!("`{name}.header` is no header that can hold a key"),
            );
            None
        }
    }
}

fn prices(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<ModelPrices> {
    let name = format!("{of}.prices");
    let table = reader.any_table(item, &name)?;
    let mut all = ModelPrices::default();
    for (key, item) in table {
        let model = key.get_ref().as_ref();
        if !matches!(item.get_ref(), DeValue::Table(_)) {
            reader.report(
                &key.span(),
                format!("`{name}` has prices by model: write `prices = {{ \"*\" = {{ input = 0, output = 0 }} }}` for all models whose price nobody else says"),
            );
            return None;
        }
        if !is_model(model) {
            reader.report(
                &key.span(),
                format!("in `{name}` must be {MODEL}, or \"*\""),
            );
            continue;
        }
        let of = format!("{name}.{model}");
        let Some(table) = reader.table(item, &of, PRICE) else {
            continue;
        };
        let mut price = |field_name: &str| {
            let (_, item) = field(table, field_name)?;
            price(reader, item, &format!("{of}.{field_name}"))
        };
        let (input, output) = (price("input"), price("output"));
        let (cache_read, cache_write) = (price("cache_read"), price("cache_write"));
        for required in ["input", "output"] {
            if field(table, required).is_none() {
                reader.report(
                    &key.span(),
                    format!(
                        "`{of}` has no `{required}`: say what a million tokens cost, in US dollars"
                    ),
                );
            }
        }
        let (Some(input), Some(output)) = (input, output) else {
            continue;
        };
        let prices = Prices {
            input,
            output,
            // Without a price of its own, cached input costs the same as other input.
            cache_read: cache_read.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
        };
        if model == "*" {
            all.others = Some(prices);
        } else {
            all.by_model.insert(model.to_owned(), prices);
        }
    }
    Some(all)
}

/// Converts dollars per million tokens to millionths of a dollar.
fn price(reader: &mut ManifestReader<'_>, item: &SpannedValue<'_>, name: &str) -> Option<u64> {
    let dollars = reader.number(item, name)?;
    if !(0.0..=DEAREST).contains(&dollars) {
        reader.report(
            &item.span(),
            format!("`{name}` must be from 0 to {DEAREST} US dollars for a million tokens"),
        );
        return None;
    }
    // Within the exact range of an f64: at most 10^12.
    Some((dollars * 1e6).round() as u64)
}
