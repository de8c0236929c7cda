//! The modules of a crate, and which uses which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

/// A crate's top-level modules and what they use of each other.
pub(crate) struct Crate {
    pub name: String,
    /// Each use with a place where it stands.
    uses: BTreeMap<(String, String), String>,
}

/// Modules that use each other, the first one again at the end.
pub(crate) struct Circle {
    pub modules: Vec<String>,
    places: Vec<String>,
}

impl Circle {
    /// Where the modules use each other, a line each.
    pub(crate) fn uses(&self) -> String {
        self.places
            .iter()
            .map(|place| format!("  {place}\n"))
            .collect()
    }
}

impl Crate {
    /// Reads the sources of a crate in a folder.
    pub(crate) fn read(name: &str, source: &Path) -> Self {
        let mut reader = Reader {
            root: source,
            top: BTreeSet::new(),
            exported: BTreeMap::new(),
            uses: BTreeMap::new(),
        };
        let root = source.join("lib.rs");
        let items = parse(&root).items;
        reader.top_level(&items);
        reader.file(&root, &[], &items);
        Self {
            name: name.to_owned(),
            uses: reader.uses,
        }
    }

    /// One circle for each module that is in one.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        let modules: BTreeSet<&str> = self.uses.keys().map(|(from, _)| from.as_str()).collect();
        let mut circles = Vec::new();
        let mut known: BTreeSet<String> = BTreeSet::new();
        for module in modules {
            if known.contains(module) {
                continue;
            }
            if let Some(modules) = self.way_back(module) {
                known.extend(modules.iter().cloned());
                let places = modules.windows(2).map(|pair| {
                    let place = &self.uses[&(pair[0].clone(), pair[1].clone())];
                    format!("{} uses {} in {place}", pair[0], pair[1])
                });
                let places = places.collect();
                circles.push(Circle { modules, places });
            }
        }
        circles
    }

    /// The shortest way from a module over others back to itself.
    fn way_back(&self, start: &str) -> Option<Vec<String>> {
        let mut ways = vec![vec![start.to_owned()]];
        let mut seen = BTreeSet::new();
        while !ways.is_empty() {
            let mut longer = Vec::new();
            for way in ways {
                let last = way.last()?;
                for (_, to) in self.uses.keys().filter(|(from, _)| from == last) {
                    let mut way = way.clone();
                    way.push(to.clone());
                    if to == start {
                        return Some(way);
                    }
                    if seen.insert(to.clone()) {
                        longer.push(way);
                    }
                }
            }
            ways = longer;
        }
        None
    }
}

fn parse(path: &Path) -> syn::File {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Whether an item exists only for tests.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| list.tokens.to_string().contains("test"))
    })
}

struct Reader<'a> {
    root: &'a Path,
    top: BTreeSet<String>,
    /// What the crate's root exports of a module, by name.
    exported: BTreeMap<String, String>,
    uses: BTreeMap<(String, String), String>,
}

impl Reader<'_> {
    fn top_level(&mut self, items: &[Item]) {
        for item in items {
            match item {
                Item::Mod(module) if !is_for_tests(&module.attrs) => {
                    self.top.insert(module.ident.to_string());
                }
                _ => {}
            }
        }
        for item in items {
            if let Item::Use(used) = item {
                for path in paths(&used.tree) {
                    let path: Vec<&str> = path
                        .iter()
                        .map(String::as_str)
                        .filter(|part| !["self", "crate"].contains(part))
                        .collect();
                    if let [module, .., name] = path[..]
                        && self.top.contains(module)
                    {
                        self.exported.insert(name.to_owned(), module.to_owned());
                    }
                }
            }
        }
    }

    /// Notes what a file uses, and reads the files of its modules.
    fn file(&mut self, path: &Path, module: &[String], items: &[Item]) {
        let mut found = Uses {
            module: module.to_vec(),
            paths: Vec::new(),
        };
        for item in items {
            match item {
                Item::Mod(declared) if is_for_tests(&declared.attrs) => {}
                Item::Mod(declared) => {
                    let mut inner = module.to_vec();
                    inner.push(declared.ident.to_string());
                    match &declared.content {
                        Some((_, items)) => self.file(path, &inner, items),
                        None => self.module_file(path, &inner),
                    }
                }
                // A re-export at the root is no use of a module.
                Item::Use(_) if module.is_empty() => {}
                item => found.visit_item(item),
            }
        }
        let place = path
            .strip_prefix(self.root)
            .unwrap_or(path)
            .display()
            .to_string();
        for path in found.paths {
            self.note(module, &path, &place);
        }
    }

    fn module_file(&mut self, parent: &Path, module: &[String]) {
        let name = module.last().map(String::as_str).unwrap_or_default();
        let folder = match parent.file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "mod" | "main") => parent.with_file_name(""),
            _ => parent.with_extension(""),
        };
        let file = folder.join(format!("{name}.rs"));
        let file = if file.is_file() {
            file
        } else {
            folder.join(name).join("mod.rs")
        };
        let items = parse(&file).items;
        self.file(&file, module, &items);
    }

    /// Notes a path from the crate's root, such as `egress::Redactor`.
    fn note(&mut self, module: &[String], path: &[String], place: &str) {
        let root = "the crate's root".to_owned();
        let from = module.first().unwrap_or(&root);
        let Some(first) = path.first() else { return };
        let to = match self.exported.get(first) {
            _ if self.top.contains(first) => first,
            Some(module) => module,
            None => &root,
        };
        if from != to {
            let key = (from.clone(), to.clone());
            let place = format!("{place} ({})", path.join("::"));
            self.uses.entry(key).or_insert(place);
        }
    }
}

/// Collects the paths within the crate, each from its root.
struct Uses {
    module: Vec<String>,
    paths: Vec<Vec<String>>,
}

impl Uses {
    fn take(&mut self, path: &[String]) {
        let mut module = self.module.clone();
        let mut rest = path;
        let mut is_ours = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => {
                    module.pop();
                }
                _ => break,
            }
            is_ours = true;
            rest = after;
        }
        if is_ours {
            module.extend(rest.iter().cloned());
            self.paths.push(module);
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for path in paths(&item.tree) {
            self.take(&path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts = path.segments.iter().map(|part| part.ident.to_string());
        self.take(&parts.collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {}

    // A visibility such as `pub(in lucid_sandbox)` is no use.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// The paths of a `use`, a name each.
fn paths(tree: &UseTree) -> Vec<Vec<String>> {
    match tree {
        UseTree::Path(path) => {
            let inner = paths(&path.tree).into_iter();
            let first = path.ident.to_string();
            inner
                .map(|rest| [vec![first.clone()], rest].concat())
                .collect()
        }
        UseTree::Name(name) if name.ident == "self" => vec![Vec::new()],
        UseTree::Name(name) => vec![vec![name.ident.to_string()]],
        UseTree::Rename(name) => vec![vec![name.ident.to_string()]],
        UseTree::Glob(_) => vec![Vec::new()],
        UseTree::Group(group) => group.items.iter().flat_map(paths).collect(),
    }
}
