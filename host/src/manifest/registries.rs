//! `[registries]`: how registries are accessed for the components that a manifest names, and the
//! outcome.
//!
//! # Invariants
//!
//! - A password is in an environment variable, not in the manifest.
//! - A registry without an entry is accessed anonymously, over https unless it is on this machine.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::fields::{ManifestReader, SpannedKey, SpannedValue, field};
use super::model::{ComponentSource, KeyVariable, Located, Manifest, PluginEntry};
use super::problem::{ManifestProblem, ManifestProblems, SourcePosition};
use crate::config::{Variables, is_host_secret, is_variable};
use lucid_net::oci::{
    ComponentRequest, ComponentStore, RegistryAccess, RegistryHost, TagResolution,
};

pub(super) const REGISTRY: &[&str] = &["user", "password", "plain_http"];

/// How a registry is accessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryEntry {
    /// The position of its table.
    pub at: SourcePosition,
    /// `user` and `password`.
    pub login: Option<RegistryCredentials>,
    /// `plain_http`.
    pub plain_http: Option<bool>,
}

/// Credentials for a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// `user`.
    pub user: String,
    /// `password`: the variable that holds it.
    pub password: KeyVariable,
}

/// Reads `[registries]`.
pub(super) fn registries(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
) -> BTreeMap<RegistryHost, RegistryEntry> {
    let mut all = BTreeMap::new();
    let Some(table) = reader.any_table(item, "registries") else {
        return all;
    };
    for (key, item) in table {
        let name = key.get_ref().as_ref();
        let registry = match RegistryHost::parse(name) {
            Ok(registry) => registry,
            Err(why) => {
                reader.report(
                    &key.span(),
                    format!("a name in `registries` is none: {why}"),
                );
                continue;
            }
        };
        let of = format!("registries.\"{name}\"");
        let Some(table) = reader.table(item, &of, REGISTRY) else {
            continue;
        };
        let entry = entry(reader, key, table, &of);
        if all.insert(registry, entry).is_some() {
            reader.report(&key.span(), format!("`{of}` is there twice"));
        }
    }
    all
}

fn entry(
    reader: &mut ManifestReader<'_>,
    key: &SpannedKey<'_>,
    table: &DeTable<'_>,
    of: &str,
) -> RegistryEntry {
    let plain = |user: &str| {
        (1..=255).contains(&user.len()) && !user.contains(|c: char| c == ':' || c.is_control())
    };
    let user = field(table, "user").map(|(_, item)| {
        let what = "a user's name, 1 to 255 characters and none of them a colon";
        let text = reader.text_matching(item, &format!("{of}.user"), what, plain)?;
        Some(text.value.to_owned())
    });
    let password = field(table, "password").map(|(_, item)| password(reader, item, of));
    let plain_http = field(table, "plain_http")
        .and_then(|(_, item)| reader.boolean(item, &format!("{of}.plain_http")));
    let at = reader.at(&key.span());
    let login = match (user, password) {
        (None, None) => None,
        (Some(user), Some(password)) => user
            .zip(password)
            .map(|(user, password)| RegistryCredentials { user, password }),
        _ => {
            reader.report_at(
                at,
                format!(
                    "`{of}` has one of `user` and `password` without the other: name both, or none"
                ),
            );
            None
        }
    };
    RegistryEntry {
        at,
        login,
        plain_http,
    }
}

fn password(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    of: &str,
) -> Option<KeyVariable> {
    // The value is not repeated: it may be the password itself.
    let what = "the name of an environment variable, in capital letters, digits and _; the password itself never stands in a manifest";
    let Located { value, at } =
        reader.text_matching(item, &format!("{of}.password"), what, is_variable)?;
    if is_host_secret(value) {
        let what = format!("{value} is this host's own secret, which is sent to nobody");
        reader.report_at(at, what);
        return None;
    }
    Some(KeyVariable {
        is_needed: true,
        name: value.to_owned(),
        stated: Some(at),
    })
}

impl Manifest {
    /// Fetches the components that the manifest names in registries, and returns a copy with them,
    /// or with the reasons why they are missing. Takes as long as the registries take.
    pub async fn fetch_components(
        self,
        components: &ComponentStore,
        variables: &Variables,
        tags: TagResolution,
    ) -> Result<Self, ManifestProblems> {
        let wanted = self.references();
        let (access, unset) = self.access(variables)?;
        let mut results = components.fetch_all(&wanted, access, tags).await;
        results.warnings.extend(unset);
        Ok(Self {
            fetched: results,
            ..self
        })
    }

    fn references(&self) -> Vec<ComponentRequest> {
        self.entries()
            .filter_map(
                |PluginEntry {
                     component, digest, ..
                 }| match &component.value {
                    ComponentSource::Registry(reference) => Some(ComponentRequest {
                        reference: reference.clone(),
                        component: digest.as_ref().map(|digest| digest.value),
                    }),
                    ComponentSource::Builtin(_) | ComponentSource::File(_) => None,
                },
            )
            .collect()
    }

    /// The credentials for each registry, and a sentence for each password that is not set.
    fn access(
        &self,
        variables: &Variables,
    ) -> Result<(BTreeMap<RegistryHost, RegistryAccess>, Vec<String>), ManifestProblems> {
        let (mut all, mut unset, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (registry, entry) in &self.registries {
            let mut access = RegistryAccess {
                login: None,
                plain_http: entry.plain_http,
            };
            if let Some(RegistryCredentials { user, password }) = &entry.login {
                match variables.key(&password.name) {
                    Ok(Some(secret)) => access.login = Some((user.clone(), secret)),
                    Ok(None) => unset.push(format!(
                        "{} is not set, which holds the password for the registry {registry}: it is asked as anybody may.",
                        password.name
                    )),
                    Err(why) => wrong.push(ManifestProblem::at(
                        self.path.as_deref(),
                        password.stated.unwrap_or(entry.at),
                        why.to_string(),
                    )),
                }
            }
            all.insert(registry.clone(), access);
        }
        ManifestProblems::unless_none(wrong)?;
        Ok((all, unset))
    }
}
