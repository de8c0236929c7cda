//! The fields of a manifest, and the values each may hold.
//!
//! # Invariants
//!
//! - Every field present was looked at. An unknown name is an error that suggests the name probably
//!   meant.
//! - The schema for editors accepts what is accepted here, which a test checks.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::fields::{ManifestReader, SpannedKey, SpannedValue, field};
use super::mcp::server;
use super::model::{Located, Manifest, PolicyAssignment};
use super::plugins::{PLUGIN, git, plugin, provider, tools};
use super::problem::{ManifestProblems, suggest};
use super::registries::registries;
use crate::builtin;
use lucid_session::SEPARATOR;

pub(super) const ROOT: &[&str] = &[
    "policies",
    "providers",
    "tools",
    "mcp",
    "git",
    "registries",
    "defaults",
    "assign",
];
pub(super) const DEFAULTS: &[&str] = &["policy", "provider"];
pub(super) const ASSIGN: &[&str] = &["policy", "users", "projects"];

/// Describes a name of the manifest's own. Others are ids from elsewhere.
const NAME: &str =
    "1 to 64 lower-case letters, digits, - and _, the first of them a letter or digit";
const ID: &str = "an id of 1 to 255 characters";

/// Reads a manifest.
pub(super) fn manifest(path: &Path, text: &str) -> Result<Manifest, ManifestProblems> {
    let mut reader = ManifestReader::new(path, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        reader.report(&span, format!("this is not TOML: {}", error.message()));
    }
    // Otherwise problems that follow from a wrong line would be reported as well.
    if !reader.has_no_problems() {
        return reader.finish().map(|()| Manifest::default());
    }
    let root = document.get_ref();
    reader.reject_unknown_fields(root, "", ROOT);
    let mut manifest = Manifest {
        path: Some(path.to_owned()),
        ..Manifest::default()
    };
    for (key, item) in named(&mut reader, root, "policies") {
        let name = key.get_ref().as_ref();
        let of = format!("policies.{name}");
        if name == "auto" {
            reader.report(
                &key.span(),
                "no policy can be called `auto`: as a default that means the one that fits",
            );
        }
        let Some(table) = reader.table(item, &of, PLUGIN) else {
            continue;
        };
        let entry = plugin(&mut reader, key, table, &of, builtin::POLICIES, "policy");
        if let Some(entry) = entry {
            manifest.policies.insert(name.to_owned(), entry);
        }
    }
    for (key, item) in named(&mut reader, root, "providers") {
        if let Some(entry) = provider(&mut reader, key, item) {
            manifest
                .providers
                .insert(key.get_ref().as_ref().to_owned(), entry);
        }
    }
    for (key, item) in named(&mut reader, root, "git") {
        if let Some(entry) = git(&mut reader, key, item) {
            let name = key.get_ref().as_ref().to_owned();
            manifest.git.insert(name, entry);
        }
    }
    if let Some((_, item)) = field(root, "registries") {
        manifest.registries = registries(&mut reader, item);
    }
    for (key, item) in sources(&mut reader, root, "tools") {
        if let Some(entry) = tools(&mut reader, key, item, root) {
            manifest
                .tools
                .insert(key.get_ref().as_ref().to_owned(), entry);
        }
    }
    for (key, item) in sources(&mut reader, root, "mcp") {
        let name = key.get_ref().as_ref();
        if manifest.tools.contains_key(name) {
            let what = format!(
                "`tools.{name}` and `mcp.{name}` would have tools of the same names: give one of them another name"
            );
            reader.report(&key.span(), what);
        }
        if let Some(entry) = server(&mut reader, key, item, root) {
            manifest.mcp.insert(name.to_owned(), entry);
        }
    }
    if let Some((_, item)) = field(root, "defaults") {
        defaults(&mut reader, item, root, &mut manifest);
    }
    if let Some((_, item)) = field(root, "assign") {
        assignments(&mut reader, item, root, &mut manifest);
    }
    reader.finish()?;
    Ok(manifest)
}

/// Reads the entries of a table of plugins.
fn named<'d, 'i>(
    reader: &mut ManifestReader<'_>,
    root: &'d DeTable<'i>,
    kind: &str,
) -> Vec<(&'d SpannedKey<'i>, &'d SpannedValue<'i>)> {
    let Some((_, item)) = field(root, kind) else {
        return Vec::new();
    };
    let Some(table) = reader.any_table(item, kind) else {
        return Vec::new();
    };
    if table.is_empty() {
        let what = if matches!(kind, "tools" | "mcp") {
            format!("`{kind}` names none: leave it out")
        } else {
            format!("`{kind}` names none: leave it out to have the built-in ones")
        };
        reader.report(&item.span(), what);
    }
    let mut all = Vec::new();
    for (key, item) in table {
        if is_name(key.get_ref()) {
            all.push((key, item));
        } else {
            reader.report(&key.span(), format!("a name in `{kind}` must be {NAME}"));
        }
    }
    all
}

/// Reads the entries of a table of tool sources.
fn sources<'d, 'i>(
    reader: &mut ManifestReader<'_>,
    root: &'d DeTable<'i>,
    kind: &str,
) -> Vec<(&'d SpannedKey<'i>, &'d SpannedValue<'i>)> {
    let all = named(reader, root, kind);
    for (key, _) in &all {
        let name = key.get_ref().as_ref();
        if !is_source_name(name) {
            reader.report(
                &key.span(),
                format!("a name in `{kind}` begins those of its tools (`{name}__…`), so it may have {LONGEST_SOURCE} characters, no `__` in it and no `_` at its end"),
            );
        }
    }
    all
}

/// Whether a policy, a provider or a tool source can have this name.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next();
    first.is_some_and(plain)
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| plain(byte) || b"-_".contains(&byte))
}

/// The maximum length of a source's name in characters: models see `SOURCE__TOOL`, of which they
/// accept 64.
pub(super) const LONGEST_SOURCE: usize = 32;

/// Whether a tool source can have this name: the first `__` of a tool's full name ends it.
pub(crate) fn is_source_name(name: &str) -> bool {
    is_name(name)
        && name.len() <= LONGEST_SOURCE
        && !name.contains(SEPARATOR)
        && !name.ends_with('_')
}

fn defaults(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    root: &DeTable<'_>,
    manifest: &mut Manifest,
) {
    let Some(table) = reader.table(item, "defaults", DEFAULTS) else {
        return;
    };
    if let Some((_, item)) = field(table, "policy")
        && let Some(text) = reader.text(item, "defaults.policy")
    {
        manifest.default_policy = if text.value == "auto" {
            let Located { value, at } = text;
            let value = value.to_owned();
            Some(Located { value, at })
        } else {
            reject_unknown(reader, &text, root, "policies", builtin::POLICIES)
        };
    }
    if let Some((_, item)) = field(table, "provider")
        && let Some(text) = reader.text(item, "defaults.provider")
        && let Some(name) = reject_unknown(reader, &text, root, "providers", builtin::PROVIDERS)
    {
        manifest.default_provider = Some(name);
    }
}

fn assignments(
    reader: &mut ManifestReader<'_>,
    item: &SpannedValue<'_>,
    root: &DeTable<'_>,
    manifest: &mut Manifest,
) {
    let DeValue::Array(array) = item.get_ref() else {
        reader.report(
            &item.span(),
            "`assign` is a list: write `[[assign]]`, with two brackets",
        );
        return;
    };
    let is_id = |id: &str| (1..=255).contains(&id.len()) && !id.contains(char::is_control);
    for item in array {
        let Some(table) = reader.table(item, "assign", ASSIGN) else {
            continue;
        };
        let mut ids = |field_name: &str| {
            let (_, item) = field(table, field_name)?;
            reader.texts(item, &format!("assign.{field_name}"), ID, is_id)
        };
        let (users, projects) = (ids("users"), ids("projects"));
        if field(table, "users").is_none() && field(table, "projects").is_none() {
            reader.report(
                &item.span(),
                "`assign` says nobody: name `users` or `projects`, or set the policy in `[defaults]`",
            );
        }
        let Some((_, policy)) = field(table, "policy") else {
            reader.report(&item.span(), "`assign` has no `policy`");
            continue;
        };
        if let Some(text) = reader.text(policy, "assign.policy")
            && let Some(policy) = reject_unknown(reader, &text, root, "policies", builtin::POLICIES)
        {
            manifest.assignments.push(PolicyAssignment {
                policy,
                users: users.unwrap_or_default(),
                projects: projects.unwrap_or_default(),
            });
        }
    }
}

/// Reads a name of the deployment's: one in the manifest, or a built-in one if the manifest has
/// none of that kind. An entry counts even if it has other problems, which are reported there.
pub(super) fn reject_unknown(
    reader: &mut ManifestReader<'_>,
    text: &Located<&str>,
    root: &DeTable<'_>,
    kind: &str,
    builtins: &'static [(&'static str, &'static [u8])],
) -> Option<Located<String>> {
    let own: Vec<&str> = match field(root, kind).map(|(_, item)| item.get_ref()) {
        Some(DeValue::Table(table)) => table.keys().map(|key| key.get_ref().as_ref()).collect(),
        _ => builtins.iter().map(|(name, _)| *name).collect(),
    };
    let Located { value, at } = *text;
    if own.contains(&value) {
        let value = value.to_owned();
        return Some(Located { value, at });
    }
    let (one, instead) = (
        if kind == "policies" {
            "policy"
        } else {
            "provider"
        },
        suggest(value, own.iter().copied()),
    );
    reader.report_at(at, format!("there is no {one} `{value}`; {instead}"));
    None
}
