//! The shape of the code: which crate uses which, that modules of a crate form no circle, that no two public
//! types share a name, and that errors are written as the convention says. What is read is the source itself,
//! and what cargo says of the workspace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

mod errors;
mod names;
mod source;
mod unsafe_code;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use self::source::Crate;

/// The crates of the server, from the ground up: each may use those before it.
const LAYERS: [&str; 7] = [
    "lucid-types",
    "lucid-wasm",
    "lucid-net",
    "lucid-store",
    "lucid-sandbox",
    "lucid-session",
    "lucid",
];

/// What each crate below the server may use of the others.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("lucid-types", &[]),
    ("lucid-wasm", &["lucid-types"]),
    ("lucid-net", &["lucid-types"]),
    ("lucid-store", &["lucid-types", "lucid-net"]),
    ("lucid-sandbox", &["lucid-types", "lucid-net"]),
    ("lucid-session", &["lucid-types"]),
];

/// What the tests of the session engine do without.
const NOT_IN_SESSION_TESTS: [&str; 4] = ["axum", "bollard", "wasmtime", "lucid-sandbox"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--offline")
        .current_dir(root())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo {arguments:?} failed: {errors}"
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The packages of the workspace, each with its `Cargo.toml` and its own normal dependencies.
fn packages() -> BTreeMap<String, (PathBuf, BTreeSet<String>)> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let packages = packages.map(|package| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        let normal = normal.map(|dependency| text(&dependency["name"])).collect();
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        (text(&package["name"]), (manifest, normal))
    });
    packages.collect()
}

fn crates() -> Vec<Crate> {
    let packages = packages();
    let crates = LAYERS.iter().map(|name| {
        let (manifest, _) = &packages[*name];
        Crate::read(name, &manifest.parent().unwrap().join("src"))
    });
    crates.collect()
}

#[test]
fn each_crate_of_the_server_uses_only_the_crates_below_it_that_it_may_use() {
    let packages = packages();
    for (name, allowed) in ALLOWED {
        let (_, dependencies) = &packages[name];
        let ours = dependencies
            .iter()
            .filter(|used| LAYERS.contains(&used.as_str()));
        let wrong: Vec<&String> = ours
            .filter(|used| !allowed.contains(&used.as_str()))
            .collect();
        assert!(
            wrong.is_empty(),
            "{name} depends on {wrong:?}, and may use only {allowed:?} of the server's crates"
        );
    }
}

#[test]
fn the_session_engine_and_its_tests_need_no_web_server_no_docker_client_and_no_wasmtime() {
    let tree = cargo(&[
        "tree",
        "--package",
        "lucid-session",
        "--edges",
        "normal,dev",
        "--prefix",
        "none",
    ]);
    let used: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(used.contains("tokio"), "the tree could not be read: {tree}");
    for name in NOT_IN_SESSION_TESTS {
        assert!(
            !used.contains(name),
            "`cargo test -p lucid-session` links {name}"
        );
    }
}

#[test]
fn no_modules_of_a_crate_use_each_other_in_a_circle() {
    let mut found = String::new();
    for krate in crates() {
        for circle in krate.circles() {
            found += &format!(
                "{}: {}\n{}",
                krate.name,
                circle.modules.join(" → "),
                circle.uses()
            );
        }
    }
    assert!(found.is_empty(), "top-level modules form circles:\n{found}");
}

#[test]
fn no_two_public_types_have_one_name() {
    let shared = names::shared(&packages());
    assert!(
        shared.is_empty(),
        "a name stands for one thing in the workspace, and these stand for several:\n{shared}"
    );
}

#[test]
fn errors_are_lower_case_and_have_no_full_stop() {
    let found = errors::texts(&packages());
    let wrong: String = found
        .iter()
        .filter(|(text, _)| !errors::is_conventional(text))
        .map(|(text, place)| format!("  {place}: {text}\n"))
        .collect();
    assert!(
        wrong.is_empty(),
        "an error begins in lower case and has no full stop, since the sentence for a person is made where it is shown:\n{wrong}"
    );
}

#[test]
fn unsafe_code_is_where_the_guide_gives_its_reason_and_nowhere_else() {
    let guide = std::fs::read_to_string(root().join("host/docs/security.md")).unwrap();
    let (_, section) = guide.split_once("### Unsafe code\n").unwrap();
    let section = section.split("\n#").next().unwrap();
    let listed: BTreeMap<String, usize> = section
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let file = cells.next()?.trim_end_matches('`').to_owned();
            Some((file, cells.next()?.trim().parse().ok()?))
        })
        .collect();
    let found = unsafe_code::places(&packages());
    assert_eq!(
        found, listed,
        "the code has unsafe code in the files on the left, and host/docs/security.md gives a reason for those on \
         the right: do without it, or say there why it is sound"
    );
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    // The bindings of a guest, which wit-bindgen makes, have some.
    let is_guest =
        |used: &BTreeSet<String>| used.contains("wit-bindgen") || used.contains("lucid-plugin");
    let mut wrong = Vec::new();
    for (name, (manifest, used)) in packages() {
        let has_some = ["lucid-builtin", "lucid-precompiled"].contains(&name.as_str());
        if !has_some && (name == "lucid-conformance" || !is_guest(&used)) {
            wrong.extend(unsafe_code::without_a_ban(&manifest));
        }
    }
    assert!(
        wrong.is_empty(),
        "these lack `#![forbid(unsafe_code)]`: {wrong:?}"
    );
}

#[test]
fn the_convention_for_errors_knows_acronyms_and_code() {
    for text in [
        "it is gone",
        "`x` is no name",
        "'x' is no name",
        "{0}",
        ".env cannot be read: {0}",
        "--server must be a URL",
        "JSON is expected",
        "SUPABASE_URL cannot be used: {0}",
        "it is gone. Upload it again",
        "may it be written?",
    ] {
        assert!(errors::is_conventional(text), "{text}");
    }
    for text in [
        "It is gone",
        "A share is too large",
        "it is gone.",
        "{0}.",
        "",
    ] {
        assert!(!errors::is_conventional(text), "{text}");
    }
}
