//! Validates the tool definitions of a plugin, so that every model provider accepts them.
//!
//! # Invariants
//! - A list that passes is small, its names are distinct and made of the characters that providers
//!   allow, and each schema is that of a JSON object.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use lucid_types::sanitize::sanitize;
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

/// What is wrong with a plugin's tools.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolSchemaError {
    /// There are too many.
    #[error("it has {0} tools, and {MOST} are allowed")]
    TooMany(usize),
    /// A name that providers do not take.
    #[error("the tool `{0}` needs another name: 1 to {LONGEST_NAME} letters, digits, _ and -")]
    Name(String),
    /// Two tools have one name.
    #[error("it has two tools with the name `{0}`")]
    SameName(String),
    /// A description is too long.
    #[error("the description of `{name}` has {size} bytes, and {LONGEST_DESCRIPTION} are allowed")]
    Description { name: String, size: usize },
    /// A schema is too large.
    #[error("the schema of `{name}` has {size} bytes, and {LARGEST_SCHEMA} are allowed")]
    LargeSchema { name: String, size: usize },
    /// All tools together are too large.
    #[error("its tools have more than the {LARGEST} bytes that are allowed together")]
    Large,
    /// A schema is none of a tool's arguments.
    #[error("the schema of `{name}` cannot be used: {source}")]
    Schema {
        name: String,
        source: InputSchemaError,
    },
}

/// Why a schema is none of a tool's arguments.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputSchemaError {
    #[error("it is no JSON object ({0})")]
    NoObject(#[from] serde_json::Error),
    #[error("arguments are an object, so its `type` must be \"object\"")]
    Type,
    #[error("its `properties` are no object")]
    Properties,
}

/// Checks that these tools can be offered to a model.
pub(super) fn check(tools: &[ToolDefinition]) -> Result<(), ToolSchemaError> {
    if tools.len() > MOST {
        return Err(ToolSchemaError::TooMany(tools.len()));
    }
    let mut names = BTreeSet::new();
    let mut total = 0_usize;
    for tool in tools {
        let name = || sanitize(&tool.name, 80);
        if !is_tool_name(&tool.name) {
            return Err(ToolSchemaError::Name(name()));
        }
        if !names.insert(&tool.name) {
            return Err(ToolSchemaError::SameName(name()));
        }
        let (described, schema) = (tool.description.len(), tool.input_schema.len());
        if described > LONGEST_DESCRIPTION {
            let (name, size) = (name(), described);
            return Err(ToolSchemaError::Description { name, size });
        }
        if schema > LARGEST_SCHEMA {
            let (name, size) = (name(), schema);
            return Err(ToolSchemaError::LargeSchema { name, size });
        }
        total += tool.name.len() + described + schema;
        if total > LARGEST {
            return Err(ToolSchemaError::Large);
        }
        check_schema(&tool.input_schema).map_err(|source| {
            let name = name();
            ToolSchemaError::Schema { name, source }
        })?;
    }
    Ok(())
}

/// Whether this can be a tool's own name.
fn is_tool_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain)
}

fn check_schema(schema: &str) -> Result<(), InputSchemaError> {
    let schema: Map<String, Value> = serde_json::from_str(schema)?;
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err(InputSchemaError::Type);
    }
    if !schema.get("properties").is_none_or(Value::is_object) {
        return Err(InputSchemaError::Properties);
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
        assert!(check(&tools).is_ok());
        assert!(
            check(&[]).is_ok(),
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
            let why = check(&tools).expect_err(said).to_string();
            assert!(why.contains(said), "{said}: {why}");
        }
        let many = (0..100).map(|number| ToolDefinition {
            name: format!("t{number}"),
            ..long(LONGEST_DESCRIPTION)
        });
        let why = check(&many.collect::<Vec<_>>()).unwrap_err().to_string();
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
                let why = why.to_string();
                prop_assert!(!why.chars().any(char::is_control), "{:?}", why);
            }
        }
    }
}
