//! Where the workspace has unsafe code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;
use syn::{Attribute, ExprUnsafe, ItemForeignMod, ItemImpl, ItemTrait, Macro, Signature};

/// The folders of a package that hold code.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "build"];
/// The folders of guests' code that is no package of the workspace.
const TEMPLATES: &str = "plugins/templates";

/// How often each file of the workspace has `unsafe` in it, in any of its meanings; files without are left out.
pub(crate) fn places(
    packages: &BTreeMap<String, (PathBuf, BTreeSet<String>)>,
) -> BTreeMap<String, usize> {
    let root = super::root();
    let mut found = BTreeMap::new();
    let mut read = |file: &Path| {
        let text = fs::read_to_string(file).unwrap();
        let mut places = Places(0);
        let parsed =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        places.visit_file(&parsed);
        if places.0 > 0 {
            let place = file.strip_prefix(&root).unwrap_or(file);
            found.insert(place.display().to_string(), places.0);
        }
    };
    let folders = packages.values().flat_map(|(manifest, _)| {
        let package = manifest.parent().unwrap();
        FOLDERS.map(|folder| package.join(folder))
    });
    let tests = ["architecture", "e2e"].map(|folder| root.join("tests").join(folder));
    for folder in folders.chain(tests).chain([root.join(TEMPLATES)]) {
        if folder.is_dir() {
            each_file(&folder, &mut read);
        }
    }
    found
}

/// All files of code below a folder, those of tests included.
fn each_file(folder: &Path, read: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            each_file(&path, read);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            read(&path);
        }
    }
}

/// The library and program roots of a package that do not forbid unsafe code.
pub(crate) fn without_a_ban(manifest: &Path) -> Vec<PathBuf> {
    let source = manifest.parent().unwrap().join("src");
    ["lib.rs", "main.rs"]
        .map(|root| source.join(root))
        .into_iter()
        .filter(|root| root.is_file())
        .filter(|root| {
            let text = fs::read_to_string(root).unwrap();
            !text.contains("#![forbid(unsafe_code)]")
        })
        .collect()
}

struct Places(usize);

impl Places {
    fn count(&mut self, is_unsafe: bool) {
        self.0 += usize::from(is_unsafe);
    }
}

impl<'ast> Visit<'ast> for Places {
    fn visit_expr_unsafe(&mut self, expression: &'ast ExprUnsafe) {
        self.count(true);
        syn::visit::visit_expr_unsafe(self, expression);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.count(signature.unsafety.is_some());
        syn::visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        self.count(item.unsafety.is_some());
        syn::visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        self.count(item.unsafety.is_some());
        syn::visit::visit_item_trait(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast ItemForeignMod) {
        self.count(true);
        syn::visit::visit_item_foreign_mod(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        self.count(attribute.path().is_ident("unsafe"));
    }

    // What a macro makes of its tokens is not known here, so the word is enough.
    fn visit_macro(&mut self, tokens: &'ast Macro) {
        let text = tokens.tokens.to_string();
        let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let is_code = !text.contains('"');
        self.0 += words.filter(|word| *word == "unsafe" && is_code).count();
    }
}

#[test]
fn unsafe_code_is_found_in_all_its_forms() {
    for text in [
        "fn f() { unsafe { g() } }",
        "unsafe fn f() {}",
        "unsafe impl Send for X {}",
        "unsafe trait T {}",
        "unsafe extern \"C\" { fn f(); }",
        "#[unsafe(no_mangle)] fn f() {}",
        "m! { unsafe { f() } }",
        "impl X { unsafe fn f() {} }",
    ] {
        let mut places = Places(0);
        places.visit_file(&syn::parse_file(text).unwrap());
        assert_eq!(places.0, 1, "{text}");
    }
    let mut places = Places(0);
    places.visit_file(&syn::parse_file("fn f() { let unsafely = \"unsafe\"; }").unwrap());
    assert_eq!(places.0, 0);
}
