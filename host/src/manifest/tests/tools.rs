//! Tools in a manifest, and what is loaded from it.

use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::as_json;
use crate::deployment::load::load;
use crate::manifest::*;
use lucid_net::egress::KeyInjection;
use lucid_tests::{TOOLING, tooling};
use lucid_wasm::testing::engine;
use lucid_wasm::{Plugin, Plugins};

fn parse(text: &str) -> Result<Manifest, ManifestProblems> {
    Manifest::parse(Path::new("etc/lucid.toml"), text)
}

/// The example's entry, uncommented: it is a comment there since its component does not exist.
fn example() -> String {
    let begin = EXAMPLE.find("#   [tools.tickets]").unwrap();
    let lines = EXAMPLE[begin..].lines();
    let lines = lines.take_while(|line| line.starts_with("#   "));
    let lines: Vec<&str> = lines.map(|line| &line[4..]).collect();
    lines.join("\n").replace('…', &"0".repeat(64))
}

fn schema_takes(text: &str) -> bool {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let document = as_json(text);
    jsonschema::validator_for(&schema)
        .unwrap()
        .is_valid(&document)
}

#[test]
fn the_entry_in_the_example_is_one_and_has_every_field() {
    let text = example();
    let manifest = parse(&text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    assert!(
        schema_takes(&text),
        "the schema for editors does not take it"
    );
    for field in crate::manifest::plugins::TOOLS {
        assert!(text.contains(&format!("{field} = ")), "no `{field}` in it");
    }
    let tools = &manifest.tools["tickets"];
    assert_eq!(tools.key.as_ref().unwrap().value, "TICKETS_TOKEN");
    assert!(matches!(tools.key_place, Some(KeyInjection::Header(_))));
    assert_eq!(tools.time.unwrap().as_secs(), 60);
    assert_eq!(tools.policies, Some(vec!["coder".to_owned()]));
    assert_eq!(manifest.files(), [Path::new("etc/plugins/tickets.wasm")]);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    const T: &str = "[tools.t]\ncomponent = \"t.wasm\"\n";
    let after = |rest: &str| format!("{T}{rest}");
    for (text, place, says) in [
        ("[tools]".to_owned(), "1:1", "names none"),
        ("[tools.t]".to_owned(), "1:8", "has no `component`"),
        (
            "[tools.T]\ncomponent = \"t\"".to_owned(),
            "1:8",
            "lower-case",
        ),
        (
            "[tools.a__b]\ncomponent = \"t\"".to_owned(),
            "1:8",
            "no `__` in it",
        ),
        (
            "[tools.a_]\ncomponent = \"t\"".to_owned(),
            "1:8",
            "no `_` at its end",
        ),
        (
            format!("[tools.{}]\ncomponent = \"t\"", "a".repeat(33)),
            "1:8",
            "may have 32 characters",
        ),
        (
            "[tools.t]\ncomponent = \"builtin:coder\"".to_owned(),
            "2:13",
            "no built-in component with tools `coder`; there are none",
        ),
        (
            after("model = \"m\""),
            "3:1",
            "`tools.t` has no field `model`",
        ),
        (
            after("base_url = \"ftp://x\""),
            "3:12",
            "must begin with http",
        ),
        (
            after("base_url = \"http://169.254.169.254/\""),
            "3:12",
            "metadata",
        ),
        (
            after("base_url = \"https://x/?key=1\""),
            "3:12",
            "holds a key",
        ),
        (after("key = \"T_KEY\""), "3:7", "no `base_url`"),
        (
            after("base_url = \"https://x\"\nkey = \"sk-the-key-itself\""),
            "4:7",
            "never stands in a manifest",
        ),
        (
            after("base_url = \"https://x\"\nkey = \"INTERNAL_API_KEY\""),
            "4:7",
            "this host's own secret",
        ),
        (
            after("key_place = \"bearer\""),
            "3:1",
            "no use without a `key`",
        ),
        (
            after("base_url = \"https://x\"\nkey = \"K\"\nkey_place = { header = \"host\" }"),
            "5:24",
            "no header that can hold a key",
        ),
        (after("time = 0"), "3:8", "from 1 to 3600 seconds"),
        (after("time = \"soon\""), "3:8", "a time"),
        (after("time = \"2h\""), "3:8", "from 1 to 3600 seconds"),
        (after("time = true"), "3:8", "a time"),
        (after("policies = []"), "3:12", "is empty"),
        (
            after("policies = [\"codr\"]"),
            "3:13",
            "did you mean `coder`?",
        ),
        (after("policies = [3]"), "3:13", "a text in quotes"),
    ] {
        let problems = match parse(&text) {
            Ok(manifest) => panic!("taken: {text}\n{manifest:?}"),
            Err(problems) => problems.to_string(),
        };
        let begin = format!("etc/lucid.toml:{place}: ");
        assert!(
            problems
                .lines()
                .any(|line| line.starts_with(&begin) && line.contains(says)),
            "{text}\nwanted {begin}…{says}, was told\n{problems}"
        );
        assert!(
            !problems.contains("sk-the-key"),
            "it repeats a key: {problems}"
        );
    }
}

proptest! {
    #[test]
    fn the_schema_takes_the_names_that_are_taken_here(name in "[a-z0-9_-]{1,34}") {
        let text = format!("[tools.{name}]\ncomponent = \"t.wasm\"");
        prop_assert_eq!(parse(&text).is_ok(), schema_takes(&text), "{}", name);
    }
}

/// Loads a manifest beside the tests' guest, and returns problems without the folder's path.
async fn loaded(text: &str) -> Result<LoadedPlugins, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("t.wasm"), TOOLING).unwrap();
    std::fs::write(folder.path().join("other.wasm"), tooling(7)).unwrap();
    std::fs::write(folder.path().join("mock.wasm"), crate::builtin::MOCK).unwrap();
    let path = folder.path().join("lucid.toml");
    std::fs::write(&path, text).unwrap();
    let base = format!("{}/", folder.path().display());
    let lines = |problems: ManifestProblems| problems.to_string().replace(&base, "");
    let manifest = Manifest::read(&path).map_err(lines)?;
    Box::pin(load(&manifest, &engine(), &Plugins::default(), None))
        .await
        .map_err(lines)
}

#[tokio::test]
async fn components_are_loaded_with_their_tools_and_one_may_be_there_twice() {
    let text = "[tools.t]\ncomponent = \"t.wasm\"\nsettings = { more = \"extra\" }\n[tools.u]\ncomponent = \"other.wasm\"\n";
    let loaded = loaded(text).await.unwrap();
    let [t, u] = &loaded.tools[..] else {
        panic!("{:?}", loaded.tools)
    };
    assert_eq!((t.plugin.name(), u.plugin.name()), ("t", "u"));
    assert_eq!(u.plugin.descriptor().version, "build-0007");
    assert_eq!(t.definitions.len(), u.definitions.len() + 1);
    assert_eq!(t.definitions.last().unwrap().name, "extra");
}

#[tokio::test]
async fn tools_that_cannot_be_loaded_are_said_with_their_place_and_nothing_is() {
    for (text, place, says) in [
        (
            "[tools.t]\ncomponent = \"gone.wasm\"",
            "2:13",
            "cannot be read",
        ),
        (
            "[tools.t]\ncomponent = \"mock.wasm\"",
            "2:13",
            "is not a tools plugin",
        ),
        (
            "[tools.t]\ncomponent = \"t.wasm\"\nsettings = { greting = \"x\" }",
            "3:14",
            "did you mean `greeting`?",
        ),
        (
            "[tools.t]\ncomponent = \"t.wasm\"\nsettings = { greeting = \"refuse\" }",
            "3:1",
            "It refuses to greet so",
        ),
        (
            "[tools.t]\ncomponent = \"t.wasm\"\nsettings = { more = \"a b\" }",
            "3:1",
            "`a b` needs another name",
        ),
        (
            "[tools.t]\ncomponent = \"t.wasm\"\nsettings = { more = \"lines\" }",
            "3:1",
            "two tools with the name `lines`",
        ),
    ] {
        let said = loaded(text).await.err().unwrap();
        let begin = format!("lucid.toml:{place}: ");
        assert!(
            said.starts_with(&begin) && said.contains(says),
            "{text}\n{said}"
        );
    }
    let long = "a".repeat(32);
    let text =
        format!("[tools.{long}]\ncomponent = \"t.wasm\"\nsettings = {{ more = \"{long}\" }}");
    let said = loaded(&text).await.err().unwrap();
    assert!(said.contains("66 characters, and models take 64"), "{said}");
}
