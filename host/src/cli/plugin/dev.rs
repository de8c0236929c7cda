//! `lucid plugin dev`: builds and checks whenever a source file is saved.
//!
//! # Invariants
//!
//! - A change made during a build triggers the next build. Files that the build itself writes do
//!   not.
//! - A build or a check that fails is reported and ends nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use super::error::BuildError;
use super::{CheckArgs, build, check};
use crate::cli::{failed, interrupted};
use crate::deployment::watch::FileWatcher;
use crate::manifest::Manifest;

/// Folders and files that build tools create.
const MADE: &[&str] = &[
    "target",
    "node_modules",
    "__pycache__",
    "build",
    "dist",
    "Cargo.lock",
];
/// The maximum number of sources, more than a project has.
const MOST: usize = 5_000;

/// The sources of a project, with their modification times and sizes.
type Sources = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

/// Runs until it is interrupted.
pub(super) async fn dev(folder: &Path) -> ExitCode {
    if !folder.is_dir() {
        return failed(&format!("There is no folder {}.", folder.display()));
    }
    let end = interrupted();
    tokio::pin!(end);
    let mut watch = FileWatcher::new();
    loop {
        let seen = sources(folder);
        let work = folder.to_owned();
        // Cargo receives the terminal's interrupt as well, and exits.
        let built = tokio::task::spawn_blocking(move || build::build(&work)).await;
        match built.unwrap_or(Err(BuildError::BrokeOff)) {
            Ok(file) => {
                let args = CheckArgs {
                    file: file.clone(),
                    kind: None,
                    settings: "{}".to_owned(),
                    recorded: None,
                };
                if check::main(&args).await == ExitCode::SUCCESS {
                    outln!("{}", describe_manifest_use(folder, &file));
                }
            }
            Err(why) => {
                failed(&format!("The plugin was not built: {why}."));
            }
        }
        outln!("Waiting for a change in {}; Ctrl-C ends.", folder.display());
        loop {
            // Watching starts before the scan, so that no change is missed.
            let now = sources(folder);
            watch.watch_only(now.keys().cloned());
            if sources(folder) != seen {
                break;
            }
            tokio::select! {
                () = watch.changed() => {}
                _ = &mut end => return ExitCode::SUCCESS,
            }
        }
    }
}

/// All sources, and the folders they are in.
fn sources(folder: &Path) -> Sources {
    let mut found = Sources::new();
    scan(folder, &mut found);
    found
}

fn scan(folder: &Path, found: &mut Sources) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') || name.ends_with(".wasm") || MADE.contains(&&*name) {
            continue;
        }
        let (path, Ok(data)) = (entry.path(), entry.metadata()) else {
            continue;
        };
        if found.len() >= MOST {
            return;
        }
        if data.is_dir() {
            scan(&path, found);
        } else {
            let stamp = data.modified().ok().map(|time| (time, data.len()));
            found.insert(path, stamp);
        }
    }
}

/// Says whether a manifest beside the project names the component.
fn describe_manifest_use(folder: &Path, file: &Path) -> String {
    let own = file.canonicalize().ok();
    for manifest in [folder.join("lucid.toml"), "lucid.toml".into()] {
        let Ok(read) = Manifest::read(&manifest) else {
            continue;
        };
        let names = read
            .files()
            .iter()
            .any(|path| path.canonicalize().ok() == own);
        if names {
            return format!(
                "{} names it: a host that runs with that manifest takes the new build by itself.",
                manifest.display()
            );
        }
    }
    format!(
        "No lucid.toml here names it: to load it, say component = \"{}\" in one.",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_writes_is_no_source_and_what_an_author_writes_is() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("src/lib.rs", "one");
        let before = sources(folder.path());
        for made in [
            "a.wasm",
            "target/x",
            "node_modules/y/z",
            "Cargo.lock",
            ".venv/a",
        ] {
            put(made, "made");
        }
        assert_eq!(sources(folder.path()), before);
        put("src/other.rs", "");
        assert_ne!(sources(folder.path()), before, "a new file is a change");
        let before = sources(folder.path());
        put("src/lib.rs", "longer");
        assert_ne!(sources(folder.path()), before, "so is another text");
    }
}
