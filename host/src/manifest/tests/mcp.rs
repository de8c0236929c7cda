//! MCP servers in a manifest.

use std::path::Path;

use serde_json::Value;

use super::as_json;
use crate::manifest::*;
use lucid_net::egress::KeyInjection;

fn parse(text: &str) -> Result<Manifest, ManifestProblems> {
    Manifest::parse(Path::new("etc/lucid.toml"), text)
}

/// The example's entries, uncommented: they are comments there since their servers do not exist.
fn example() -> String {
    let begin = EXAMPLE.find("#   [mcp.files]").unwrap();
    let lines = EXAMPLE[begin..]
        .lines()
        .take_while(|line| line.starts_with('#'));
    let lines: Vec<&str> = lines
        .map(|line| line.get(4..).unwrap_or_default())
        .collect();
    lines.join("\n")
}

fn schema_takes(text: &str) -> bool {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let document = as_json(text);
    jsonschema::validator_for(&schema)
        .unwrap()
        .is_valid(&document)
}

#[test]
fn the_entries_in_the_example_are_some_and_have_every_field() {
    let text = example();
    let manifest = parse(&text).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    assert!(
        schema_takes(&text),
        "the schema for editors does not take it"
    );
    for field in crate::manifest::mcp::MCP {
        assert!(text.contains(&format!("{field} = ")), "no `{field}` in it");
    }
    let files = &manifest.mcp["files"];
    let McpTransport::Program { command, env } = &files.transport else {
        panic!("{files:?}")
    };
    assert_eq!((command.len(), env["LOG_LEVEL"].as_str()), (3, "warn"));
    assert!(files.tools.has("search") && !files.tools.has("delete"));
    assert_eq!(files.policies, Some(vec!["coder".to_owned()]));
    let seconds = |time: Option<std::time::Duration>| time.unwrap().as_secs();
    assert_eq!((seconds(files.start_time), seconds(files.time)), (10, 30));
    let wiki = &manifest.mcp["wiki"];
    let McpTransport::Http {
        url,
        key,
        key_place,
    } = &wiki.transport
    else {
        panic!("{wiki:?}")
    };
    assert_eq!(url.value.as_str(), "https://wiki.example.com/mcp");
    assert_eq!(key.as_ref().unwrap().value, "WIKI_TOKEN");
    assert!(matches!(key_place, Some(KeyInjection::Header(_))));
    assert!(wiki.tools.has("whatever"));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    const P: &str = "[mcp.p]\ncommand = [\"p\"]\ntools = [\"*\"]\n";
    const U: &str = "[mcp.u]\nurl = \"https://u/mcp\"\ntools = [\"*\"]\n";
    let p = |rest: &str| format!("{P}{rest}");
    let u = |rest: &str| format!("{U}{rest}");
    for (text, place, says) in [
        ("[mcp]".to_owned(), "1:1", "names none"),
        (
            "[mcp.a__b]\ncommand = [\"p\"]\ntools = [\"*\"]".to_owned(),
            "1:6",
            "no `__` in it",
        ),
        (
            format!("[tools.p]\ncomponent = \"t.wasm\"\n{P}"),
            "3:6",
            "tools of the same names",
        ),
        (
            "[mcp.p]\ncommand = [\"p\"]".to_owned(),
            "1:6",
            "has no `tools`",
        ),
        (
            "[mcp.p]\ntools = [\"*\"]".to_owned(),
            "1:6",
            "neither `command`",
        ),
        (p("url = \"https://u/\""), "1:6", "is one of both"),
        (p("comand = []"), "4:1", "did you mean `command`?"),
        (
            "[mcp.p]\ncommand = \"p\"\ntools = [\"*\"]".to_owned(),
            "2:11",
            "a list in brackets",
        ),
        (
            "[mcp.p]\ncommand = []\ntools = [\"*\"]".to_owned(),
            "2:11",
            "is empty",
        ),
        (
            "[mcp.p]\ncommand = [\"\"]\ntools = [\"*\"]".to_owned(),
            "2:12",
            "1 to 32768",
        ),
        (
            "[mcp.p]\ncommand = [\"p\"]\ntools = [\"*\", \"a\"]".to_owned(),
            "3:9",
            "stands for all",
        ),
        (
            "[mcp.p]\ncommand = [\"p\"]\ntools = []".to_owned(),
            "3:9",
            "is empty",
        ),
        (
            p("env = { \"A-B\" = \"1\" }"),
            "4:9",
            "letters, digits and _",
        ),
        (p("env = { A = 1 }"), "4:13", "a text in quotes"),
        (p("key = \"K\""), "4:1", "no use without `url`"),
        (u("env = { A = \"1\" }"), "4:1", "no use without `command`"),
        (u("key_place = \"bearer\""), "4:1", "no use without `key`"),
        (
            u("key = \"sk-the-key-itself\""),
            "4:7",
            "never stands in a manifest",
        ),
        (
            u("key = \"ENCRYPTION_KEY\""),
            "4:7",
            "this host's own secret",
        ),
        (
            "[mcp.u]\nurl = \"https://u/?key=sk-the-key\"\ntools = [\"*\"]".to_owned(),
            "2:7",
            "holds a key",
        ),
        (
            "[mcp.u]\nurl = \"http://169.254.169.254/\"\ntools = [\"*\"]".to_owned(),
            "2:7",
            "metadata",
        ),
        (p("time = 0"), "4:8", "from 1 to 3600 seconds"),
        (p("start_time = 61"), "4:14", "from 0.1 to 60 seconds"),
        (p("policies = [\"codr\"]"), "4:13", "did you mean `coder`?"),
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
    for fine in [p(""), u(""), u("key = \"K\"")] {
        assert!(parse(&fine).is_ok() && schema_takes(&fine), "{fine}");
    }
}
