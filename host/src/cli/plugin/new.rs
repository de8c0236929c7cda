//! `lucid plugin new`: creates a project that builds right away.
//!
//! # Invariants
//!
//! - An existing folder is never written to, and a half-written project is removed.
//! - The project contains everything it needs of Lucid, so it builds without a checkout.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::error::NameError;
use super::{KindArg, Lang, NewArgs, refused, scaffold};
use crate::cli::failed;
use lucid_types::sentence::sentence;
use lucid_wasm::PluginKind;

/// The maximum length of a name, which becomes a crate's and a plugin's.
const LONGEST: usize = 64;
/// Names that a crate cannot have, or that would shadow one that the project needs.
const RESERVED_NAMES: &[&str] = &[
    "alloc",
    "as",
    "async",
    "auto",
    "await",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "lucid-plugin",
    "match",
    "mod",
    "move",
    "mut",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "serde-json",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "unsafe",
    "use",
    "vendor",
    "where",
    "while",
    "wit-bindgen",
    "yield",
];

/// For languages whose templates have none.
const MANIFEST: &str = r#"# What `lucid serve` and `lucid run` in this folder offer. `lucid manifest example` shows every field.

[policies.my-agent]
component = "my-agent.wasm"

[defaults]
policy = "my-agent"
"#;
/// Files left by their builds.
const IGNORED: &str = "/node_modules\n/.venv\n__pycache__\n/*.wasm\n/.env\n/storage\n";

/// Creates the project.
pub(super) fn new(args: &NewArgs) -> ExitCode {
    if let Err(why) = check_name(&args.name) {
        return refused(&sentence(why));
    }
    let Some(template) = template(args.kind, args.lang) else {
        return refused(
            "That kind of plugin is written in Rust: an adapter decodes streams, which the other languages are too slow for, and there is no template for tools or git providers in another one. Leave --lang out.",
        );
    };
    let folder = PathBuf::from(&args.name);
    match write(&folder, &args.name, template, args.lang, args.kind) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return refused(&format!(
                "There is a folder or file {} already, and nothing is written over it. Choose another name, or move it away.",
                args.name
            ));
        }
        Err(error) => {
            return failed(&format!(
                "The project {} cannot be written: {error}.",
                args.name
            ));
        }
    }
    outln!("{}/ is there. Next:\n", args.name);
    outln!("  cd {}", args.name);
    outln!("  lucid plugin build");
    outln!("  lucid plugin check {}.wasm", args.name);
    ExitCode::SUCCESS
}

fn check_name(name: &str) -> Result<(), NameError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    if !begins || name.ends_with('-') || name.len() > LONGEST || !name.chars().all(plain) {
        return Err(NameError::Form {
            name: name.to_owned(),
            most: LONGEST,
        });
    }
    if name.contains("--") || RESERVED_NAMES.contains(&name) {
        return Err(NameError::Crate(name.to_owned()));
    }
    Ok(())
}

fn template(kind: KindArg, lang: Lang) -> Option<&'static str> {
    match (kind, lang) {
        (KindArg::Policy, Lang::Rust) => Some("rust-policy"),
        (KindArg::Llm, Lang::Rust) => Some("rust-llm"),
        (KindArg::Tools, Lang::Rust) => Some("rust-tools"),
        (KindArg::Policy, Lang::Javascript) => Some("javascript"),
        (KindArg::Policy, Lang::Python) => Some("python"),
        (KindArg::Git, Lang::Rust) => Some("rust-git"),
        (KindArg::Llm | KindArg::Tools | KindArg::Git, _) => None,
    }
}

/// All files of a project, by their relative paths.
fn files(name: &str, template: &str, lang: Lang, kind: KindArg) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for (path, text) in scaffold::below(&format!("plugins/templates/{template}")) {
        files.push((named(path, name).into(), named(text, name)));
    }
    let own = PluginKind::from(kind);
    if lang == Lang::Rust {
        for (path, text) in scaffold::below("plugins/sdk") {
            files.push((Path::new("vendor/lucid-plugin").join(path), text.to_owned()));
        }
        // All of them, since the SDK is built against all.
        for (path, text) in scaffold::below("wit") {
            files.push((Path::new("wit").join(path), text.to_owned()));
        }
        let crates = r#"["lucid-plugin", "serde", "serde_json"]"#;
        let lock = format!(
            "{}\n[[package]]\nname = \"{name}\"\nversion = \"0.1.0\"\ndependencies = {crates}\n",
            scaffold::LOCK
        );
        files.push(("Cargo.lock".into(), lock));
    } else {
        for (path, text) in [
            ("lucid.toml", named(MANIFEST, name)),
            (".gitignore", IGNORED.into()),
        ] {
            if !files.iter().any(|(there, _)| there == Path::new(path)) {
                files.push((path.into(), text));
            }
        }
        for (path, text) in scaffold::below(&format!("wit/{own}")) {
            files.push((Path::new("wit").join(path), text.to_owned()));
        }
        for package in ["types", "host"] {
            for (path, text) in scaffold::below(&format!("wit/{package}")) {
                let path = Path::new("wit/deps").join(package).join(path);
                files.push((path, text.to_owned()));
            }
        }
    }
    files
}

/// A template's text with the author's name in place of `my-agent`, in each language's spelling.
fn named(text: &str, name: &str) -> String {
    let words: Vec<&str> = name.split('-').collect();
    let camel: String = words
        .iter()
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_ascii_uppercase() + rest
        })
        .collect();
    let snake = words.join("_");
    text.replace("my-agent", name)
        .replace("my_agent", &snake)
        .replace("MY_AGENT", &snake.to_ascii_uppercase())
        .replace("MyAgent", &camel)
}

fn write(folder: &Path, name: &str, template: &str, lang: Lang, kind: KindArg) -> io::Result<()> {
    // Fails if anything of this name exists, including a dangling link.
    std::fs::create_dir(folder)?;
    let written = files(name, template, lang, kind)
        .into_iter()
        .try_for_each(|(path, text)| {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, text)
        });
    if written.is_err() {
        let _ = std::fs::remove_dir_all(folder);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_elsewhere_or_is_no_crates_is_refused() {
        for name in [
            "", "-a", "a-", "a--b", "A", "a_b", "a/b", "../a", ".", "..", "1a", "a b", "test",
            "serde", "ä", "a\n", "/tmp/a", "auto",
        ] {
            assert!(check_name(name).is_err(), "`{name}` was taken");
        }
        assert!(check_name(&"a".repeat(65)).is_err());
        for name in ["a", "reviewer", "my-agent-2"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_projects_files_stay_in_its_folder_and_have_its_name() {
        for (kind, lang) in [
            (KindArg::Policy, Lang::Rust),
            (KindArg::Llm, Lang::Rust),
            (KindArg::Tools, Lang::Rust),
            (KindArg::Git, Lang::Rust),
            (KindArg::Policy, Lang::Javascript),
            (KindArg::Policy, Lang::Python),
        ] {
            let template = template(kind, lang).unwrap();
            let files = files("code-reviewer", template, lang, kind);
            assert!(files.len() > 5, "{lang:?} has no template");
            for (path, text) in files {
                let plain = |part| matches!(part, std::path::Component::Normal(_));
                assert!(path.components().all(plain), "{}", path.display());
                let left = ["my-agent", "my_agent", "MyAgent"];
                let left = left.iter().find(|left| text.contains(**left));
                assert!(
                    left.is_none() || path.starts_with("vendor"),
                    "{left:?} is left in {}",
                    path.display()
                );
            }
        }
    }

    #[test]
    fn a_folder_that_is_there_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(
            folder.path(),
            "a",
            "rust-policy",
            Lang::Rust,
            KindArg::Policy,
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
