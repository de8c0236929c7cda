//! The names of the workspace's public types.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Item, Visibility};

use super::source::is_for_tests;

/// Packages whose types a reader of the workspace meets. Components share no names with anybody: they export
/// functions.
const PACKAGES: [&str; 13] = [
    "lucid",
    "lucid-builtin",
    "lucid-conformance",
    "lucid-exec",
    "lucid-guest-build",
    "lucid-net",
    "lucid-plugin",
    "lucid-precompiled",
    "lucid-sandbox",
    "lucid-session",
    "lucid-store",
    "lucid-types",
    "lucid-wasm",
];

/// The names that stand for several types, a line each with where those are.
pub(crate) fn shared(packages: &BTreeMap<String, (PathBuf, BTreeSet<String>)>) -> String {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in PACKAGES {
        let (manifest, _) = &packages[package];
        let source = manifest.parent().unwrap().join("src");
        files(&source, &mut |file| {
            let text = fs::read_to_string(file).unwrap();
            let items = syn::parse_file(&text).unwrap().items;
            let place = file.strip_prefix(super::root()).unwrap_or(file);
            for name in public(&items) {
                let places = types.entry(name).or_default();
                places.push(place.display().to_string());
            }
        });
    }
    let shared = types.into_iter().filter(|(_, places)| places.len() > 1);
    shared
        .map(|(name, places)| format!("  {name}: {}\n", places.join(", ")))
        .collect()
}

/// The types that are visible outside of their module.
fn public(items: &[Item]) -> Vec<String> {
    let mut names = Vec::new();
    for item in items {
        let (attributes, visibility, name) = match item {
            Item::Struct(item) => (&item.attrs, &item.vis, &item.ident),
            Item::Enum(item) => (&item.attrs, &item.vis, &item.ident),
            Item::Trait(item) => (&item.attrs, &item.vis, &item.ident),
            Item::Type(item) => (&item.attrs, &item.vis, &item.ident),
            Item::Union(item) => (&item.attrs, &item.vis, &item.ident),
            _ => continue,
        };
        if !matches!(visibility, Visibility::Inherited) && !is_for_tests(attributes) {
            names.push(name.to_string());
        }
    }
    names
}

/// Calls `found` with every source file that is not a test's.
pub(crate) fn files(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "tests" {
                files(&path, found);
            }
        } else if name.ends_with(".rs") && name != "tests.rs" && name != "testing.rs" {
            found(&path);
        }
    }
}
