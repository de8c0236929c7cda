//! Validates the tool definitions of a plugin, so that every model provider accepts them.
//!
//! What is wrong is phrased as the end of a sentence about the plugin.
//!
//! # Invariants
//! - A list that passes is small, its names are distinct and made of the characters that providers
//!   allow, and each schema is that of a JSON object.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use lucid_types::sanitize::clean;
use lucid_types::wit::types::ToolDefinition;

/// The most tools that one plugin may have. Each is in the prompt of every model call.
const MOST: usize = 128;
/// The longest description, in bytes.
const LONGEST_DESCRIPTION: usize = 4 << 10;
/// The largest schema, in bytes.
const LARGEST_SCHEMA: usize = 32 << 10;
/// The largest size of all tools together, in bytes.
const LARGEST: usize = 256 << 10;
/// The longest name of a tool, in characters: providers take 64, and at least one and `__` precede
/// it.
const LONGEST_NAME: usize = 61;

/// Checks that these tools can be offered to a model.
pub(super) fn check(tools: &[ToolDefinition]) -> Result<(), String> {
    if tools.len() > MOST {
        return Err(format!(
            "it has {} tools, and {MOST} are allowed",
            tools.len()
        ));
    }
    let mut names = BTreeSet::new();
    let mut size = 0_usize;
    for tool in tools {
        let name = clean(&tool.name, 80);
        if !is_tool_name(&tool.name) {
            return Err(format!(
                "the tool `{name}` needs another name: 1 to {LONGEST_NAME} letters, digits, _ and -"
            ));
        }
        if !names.insert(&tool.name) {
            return Err(format!("it has two tools with the name `{name}`"));
        }
        let described = tool.description.len();
        if described > LONGEST_DESCRIPTION {
            return Err(format!(
                "the description of `{name}` has {described} bytes, and {LONGEST_DESCRIPTION} are allowed"
            ));
        }
        let schema = tool.input_schema.len();
        if schema > LARGEST_SCHEMA {
            return Err(format!(
                "the schema of `{name}` has {schema} bytes, and {LARGEST_SCHEMA} are allowed"
            ));
        }
        size += tool.name.len() + described + schema;
        if size > LARGEST {
            return Err(format!(
                "its tools have more than the {LARGEST} bytes that are allowed together"
            ));
        }
        check_schema(&tool.input_schema)
            .map_err(|why| format!("the schema of `{name}` cannot be used: {why}"))?;
    }
    Ok(())
}

/// Whether this can be a tool's own name.
fn is_tool_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain)
}

fn check_schema(schema: &str) -> Result<(), String> {
    let schema: Map<String, Value> =
        serde_json::from_str(schema).map_err(|why| format!("it is no JSON object ({why})"))?;
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err("arguments are an object, so its `type` must be \"object\"".to_owned());
    }
    if !schema.get("properties").is_none_or(Value::is_object) {
        return Err("its `properties` are no object".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tool(name: &str, schema: &str) -> ToolDefinition {
        ToolDefinition {
            name: name.to_owned(),
            description: "Does it.".to_owned(),
            input_schema: schema.to_owned(),
        }
    }

    const OBJECT: &str = r#"{"type": "object"}"#;

    #[test]
    fn tools_that_every_provider_takes_pass() {
        let longest = "a".repeat(LONGEST_NAME);
        let tools = [tool("find-It_2", OBJECT), tool(&longest, OBJECT)];
        assert_eq!(check(&tools), Ok(()));
        assert_eq!(
            check(&[]),
            Ok(()),
            "one with no tools is of no use, and no harm"
        );
    }

    #[test]
    fn what_a_provider_would_refuse_is_named() {
        let long = |count: usize| ToolDefinition {
            description: "x".repeat(count),
            ..tool("a", OBJECT)
        };
        let wide = format!(
            r#"{{"type": "object", "x": "{}"}}"#,
            "x".repeat(LARGEST_SCHEMA)
        );
        for (tools, said) in [
            (vec![tool("", OBJECT)], "needs another name"),
            (vec![tool("a b", OBJECT)], "`a b` needs another name"),
            (vec![tool("a\u{1b}[1m", OBJECT)], "`a[1m` needs"),
            (vec![tool("ä", OBJECT)], "needs another name"),
            (
                vec![tool(&"a".repeat(LONGEST_NAME + 1), OBJECT)],
                "needs another name",
            ),
            (
                vec![tool("a", OBJECT), tool("a", OBJECT)],
                "two tools with the name `a`",
            ),
            (vec![tool("a", "{")], "no JSON object"),
            (vec![tool("a", "[]")], "no JSON object"),
            (vec![tool("a", "{}")], "must be \"object\""),
            (
                vec![tool("a", r#"{"type": "string"}"#)],
                "must be \"object\"",
            ),
            (vec![tool("a", &"[".repeat(20_000))], "no JSON object"),
            (
                vec![tool("a", r#"{"type": "object", "properties": []}"#)],
                "are no object",
            ),
            (vec![tool("a", &wide)], "the schema of `a` has"),
            (
                vec![long(LONGEST_DESCRIPTION + 1)],
                "the description of `a` has",
            ),
            (vec![tool("a", OBJECT); MOST + 1], "has 129 tools"),
        ] {
            let why = check(&tools).expect_err(said);
            assert!(why.contains(said), "{said}: {why}");
        }
        let many = (0..100).map(|number| ToolDefinition {
            name: format!("t{number}"),
            ..long(LONGEST_DESCRIPTION)
        });
        let why = check(&many.collect::<Vec<_>>()).unwrap_err();
        assert!(why.contains("allowed together"), "{why}");
    }

    proptest! {
        /// Whatever a plugin returns, a refusal never repeats characters that could move a cursor.
        #[test]
        fn any_definitions_are_taken_or_refused_with_a_clean_sentence(
            tools in prop::collection::vec((".{0,5}", ".{0,20}"), 0..4)
        ) {
            let tools: Vec<_> = tools.iter().map(|(name, schema)| tool(name, schema)).collect();
            if let Err(why) = check(&tools) {
                prop_assert!(!why.chars().any(char::is_control), "{:?}", why);
            }
        }
    }
}
