//! What `lucid plugin new` writes, as a table of names and texts: the templates, the SDK, the WIT, and
//! the versions of crates that this very build was made with, so that a new project builds as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lucid_guest_build::Error;

/// What a build leaves in a folder.
const BUILT: [&str; 6] = [
    "target",
    "node_modules",
    ".venv",
    "__pycache__",
    "wit",
    "Cargo.lock",
];

/// Writes the table as Rust.
pub(crate) fn write(root: &Path, to: &Path) -> Result<(), Error> {
    let mut files = Vec::new();
    for folder in [
        "plugins/templates",
        "plugins/sdk/src",
        "wit/types",
        "wit/host",
        "wit/policy",
        "wit/llm",
        "wit/git",
        "wit/tools",
    ] {
        collect(&root.join(folder), &mut files)?;
    }
    files.push(root.join("plugins/sdk/Cargo.toml"));
    files.sort();
    let mut table = String::from("pub(super) const FILES: &[(&str, &str)] = &[\n");
    for file in files {
        let name = file
            .strip_prefix(root)?
            .to_str()
            .ok_or("a name that is no text")?;
        let path = file.to_str().ok_or("a path that is no text")?;
        writeln!(table, "    ({name:?}, include_str!({path:?})),")?;
    }
    table.push_str("];\n");
    let lock = lock(&std::fs::read_to_string(root.join("Cargo.lock"))?)?;
    writeln!(table, "pub(super) const LOCK: &str = {lock:?};")?;
    Ok(std::fs::write(to, table)?)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let of_template = folder.to_string_lossy().contains("plugins/templates");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        let built = of_template && (BUILT.contains(&name) || name.ends_with(".wasm"));
        if path.is_dir() && !built {
            collect(&path, files)?;
        } else if path.is_file() && !built {
            files.push(path);
        }
    }
    Ok(())
}

/// The part of a lock file that the SDK needs.
fn lock(whole: &str) -> Result<String, Error> {
    let mut blocks = whole.split("\n[[package]]\n");
    let head = blocks.next().ok_or("an empty Cargo.lock")?;
    let blocks: Vec<&str> = blocks.map(str::trim_end).collect();
    let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for block in &blocks {
        by_name.entry(value(block, "name")).or_default().push(block);
    }
    let mut wanted = vec!["lucid-plugin"];
    let mut taken = BTreeSet::new();
    while let Some(dependency) = wanted.pop() {
        let mut words = dependency.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next());
        for block in by_name.get(name).into_iter().flatten() {
            let fits = version.is_none_or(|version| value(block, "version") == version);
            if fits && taken.insert(*block) {
                let list = block
                    .split_once("dependencies = [")
                    .map_or("", |(_, list)| list);
                let names = list
                    .lines()
                    .map(|line| line.trim().trim_matches([',', '"']));
                wanted.extend(names.filter(|name| !name.is_empty() && *name != "]"));
            }
        }
    }
    if taken.len() < 2 {
        return Err("Cargo.lock does not say what lucid-plugin is made of".into());
    }
    let mut part = head.to_owned();
    for block in taken {
        write!(part, "\n[[package]]\n{block}\n")?;
    }
    Ok(part)
}

fn value<'a>(block: &'a str, field: &str) -> &'a str {
    let found = block
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(" = "));
    found.unwrap_or_default().trim_matches('"')
}
