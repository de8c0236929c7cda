//! Removes build machine paths from components.
//!
//! # Invariants
//!
//! - In the source path of a panic message, a name that is the same on every machine replaces the
//!   folder of the project, of cargo, or of the compiler. The same compiler therefore builds the
//!   same sources to the same bytes everywhere.

use std::path::{Path, PathBuf};

/// Compiler flags, separated by spaces. Of two that match a path the later one applies.
pub(crate) fn flags<'a>(folders: impl IntoIterator<Item = (&'a Path, &'a str)>) -> String {
    let mut all = String::new();
    let cargo = cargo_home();
    let mut add = |from: &Path, to: &str| {
        let mut places = vec![from.to_owned()];
        places.extend(from.canonicalize().ok().filter(|real| real != from));
        for place in places {
            let text = place.display().to_string();
            // Flags in a variable cannot contain a space, and a folder's name is no reason to
            // refuse a build.
            if !text.contains(char::is_whitespace) && text.len() > 1 {
                all += &format!(" --remap-path-prefix={text}={to}");
            }
        }
    };
    for (from, to) in folders {
        add(from, to);
    }
    if let Some(cargo) = cargo {
        add(&cargo, "/cargo");
        // The registry a crate came from makes no difference.
        let sources = cargo.join("registry/src");
        let mut registries: Vec<PathBuf> = std::fs::read_dir(sources)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        registries.sort();
        for registry in registries {
            add(&registry, "/crates");
        }
    }
    all.trim_start().to_owned()
}

fn cargo_home() -> Option<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    set.or_else(|| Some(std::env::home_dir()?.join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_in_both_its_ways_and_one_with_a_space_is_left() {
        // A link to a folder that every Linux has.
        let (link, real) = (
            Path::new("/proc/self/cwd"),
            std::env::current_dir().unwrap(),
        );
        let spaced = real.join("a b");
        let flags = flags([(link, "/plugin"), (&*spaced, "/spaced")]);
        for place in [link, &real] {
            let flag = format!("--remap-path-prefix={}=/plugin", place.display());
            assert!(
                flags.split(' ').any(|one| one == flag),
                "{flag} is not in {flags}"
            );
        }
        assert!(!flags.contains("/spaced"), "{flags}");
        let each = flags.split(' ');
        assert!(
            each.clone()
                .all(|flag| flag.starts_with("--remap-path-prefix=")),
            "{flags}"
        );
        let general = each.clone().position(|flag| flag.ends_with("=/cargo"));
        let special = each.clone().position(|flag| flag.ends_with("=/crates"));
        assert!(special.is_none() || general < special, "{flags}");
    }
}
