//! The texts of the workspace's errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use syn::visit::Visit;
use syn::{Attribute, LitStr};

use super::names::files;

/// Names that keep their capital where a text begins with them.
pub(crate) const NAMES: [&str; 3] = ["Cargo.toml", "Landlock", "Windows-1252"];

/// The text of each `#[error("…")]`, with its file.
pub(crate) fn texts(
    packages: &BTreeMap<String, (PathBuf, BTreeSet<String>)>,
) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (manifest, _) in packages.values() {
        let source = manifest.parent().unwrap().join("src");
        if !source.is_dir() {
            continue;
        }
        files(&source, &mut |file| {
            let text = fs::read_to_string(file).unwrap();
            let mut errors = Texts(Vec::new());
            errors.visit_file(&syn::parse_file(&text).unwrap());
            let place = file.strip_prefix(super::root()).unwrap_or(file);
            let place = place.display().to_string();
            found.extend(errors.0.into_iter().map(|text| (text, place.clone())));
        });
    }
    found
}

/// Whether a text begins with no capital, unless an acronym, a setting or a name does, and has no full stop.
pub(crate) fn is_conventional(text: &str) -> bool {
    let is_of_acronym = |c: &char| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_';
    let begins_well = text.chars().next().is_some_and(|first| {
        !first.is_uppercase()
            || text.chars().take_while(is_of_acronym).count() > 1
            || NAMES.iter().any(|name| text.starts_with(name))
    });
    begins_well && !text.ends_with('.')
}

/// Collects the texts of a file.
struct Texts(Vec<String>);

impl<'ast> Visit<'ast> for Texts {
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if !attribute.path().is_ident("error") {
            return;
        }
        // `transparent` is no text.
        let first = attribute
            .meta
            .require_list()
            .ok()
            .and_then(|list| list.tokens.clone().into_iter().next());
        let text = first.and_then(|token| syn::parse_str::<LitStr>(&token.to_string()).ok());
        self.0.extend(text.map(|text| text.value()));
    }
}
