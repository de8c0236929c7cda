//! Validates a plugin's settings against the JSON schema that the plugin provides.
//!
//! # Invariants
//!
//! - A schema comes from a third party, so it must be small, may refer only to itself and without
//!   cycles, and its patterns are matched in linear time. Whatever it says, validation terminates
//!   soon and makes no requests.
//! - A schema that cannot be used is an error of its plugin, found when the plugin is loaded.

use jsonschema::error::ValidationErrorKind;
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};

use super::model::PluginSettings;
use super::problem::{SourcePosition, suggest};

/// The maximum size of a schema in bytes.
const LARGEST: usize = 64 << 10;
/// The maximum nesting depth of a schema, with references expanded.
const DEEPEST: usize = 64;
/// The maximum number of values in a schema, with references expanded.
const MOST: usize = 20_000;
/// The maximum size of a compiled pattern in bytes.
const PATTERN: usize = 1 << 20;
/// Keywords that could refer outside of the schema, or in cycles.
const FORBIDDEN: &[&str] = &["$id", "id", "$dynamicRef", "$recursiveRef"];

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsSchemaError {
    /// It is too large.
    #[error("it has {0} bytes, and {LARGEST} are allowed")]
    TooLarge(usize),
    /// It is not JSON.
    #[error("it is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is too large once its references are expanded.
    #[error(
        "it is too large, too deep, or refers to itself (at most {MOST} values, {DEEPEST} in each other)"
    )]
    TooComplex,
    /// It uses a keyword that could lead out of it, or in cycles.
    #[error("it uses `{0}`, which is not supported")]
    Keyword(&'static str),
    /// It refers to something outside of it.
    #[error("it refers to `{0}`, and only `#/…` within itself is supported")]
    Outside(String),
    /// It is no valid schema.
    #[error(transparent)]
    Invalid(#[from] Box<ValidationError<'static>>),
}

/// Why settings do not fit a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The plugin's schema cannot be used.
    #[error("its schema cannot be used: {0}")]
    Schema(#[from] SettingsSchemaError),
    /// The schema does not accept them, for these reasons.
    #[error("the plugin {}", .0.join("; it "))]
    Refused(Vec<String>),
}

/// A schema that can be used.
#[derive(Debug)]
pub(crate) struct SettingsSchema {
    validator: Validator,
    /// The field names at its top level.
    names: Vec<String>,
}

impl SettingsSchema {
    /// Compiles a schema.
    pub(crate) fn new(text: &str) -> Result<Self, SettingsSchemaError> {
        if text.len() > LARGEST {
            return Err(SettingsSchemaError::TooLarge(text.len()));
        }
        let schema: Value = serde_json::from_str(text)?;
        let mut left = MOST;
        check_complexity(&schema, &schema, 0, &mut left)?;
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(false)
            .with_pattern_options(
                PatternOptions::regex()
                    .size_limit(PATTERN)
                    .dfa_size_limit(PATTERN),
            )
            .build(&schema)
            .map_err(Box::new)?;
        let names = schema.get("properties").and_then(Value::as_object);
        let names = names.map(|names| names.keys().cloned().collect());
        Ok(Self {
            validator,
            names: names.unwrap_or_default(),
        })
    }

    /// The problems of some settings, with their positions.
    pub(crate) fn check(&self, settings: &PluginSettings) -> Vec<(SourcePosition, String)> {
        let values = Value::Object(settings.values.clone());
        let errors = self.validator.iter_errors(&values);
        errors
            .flat_map(|error| self.describe_error(settings, &values, &error))
            .collect()
    }

    fn describe_error(
        &self,
        settings: &PluginSettings,
        values: &Value,
        error: &ValidationError<'_>,
    ) -> Vec<(SourcePosition, String)> {
        let pointer = error.instance_path().as_str();
        let place = |pointer: &str| settings.places.get(pointer).copied();
        let at = place(pointer).unwrap_or(settings.at);
        let field = pointer.trim_start_matches('/').replace('/', ".");
        let unexpected = match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => unexpected.clone(),
            // The error for an object that may have no fields at all.
            ValidationErrorKind::FalseSchema
                if error
                    .schema_path()
                    .as_str()
                    .ends_with("/additionalProperties") =>
            {
                let object = values.pointer(pointer).and_then(Value::as_object);
                let names = object.map(|object| object.keys().cloned().collect());
                names.unwrap_or_default()
            }
            _ => Vec::new(),
        };
        if !unexpected.is_empty() {
            let names = self.names.iter().map(String::as_str);
            let known = |name: &str| {
                if field.is_empty() {
                    suggest(name, names.clone())
                } else {
                    "it is not in the plugin's schema".to_owned()
                }
            };
            return unexpected
                .iter()
                .map(|name| {
                    let escaped = name.replace('~', "~0").replace('/', "~1");
                    let at = place(&format!("{pointer}/{escaped}")).unwrap_or(at);
                    let of = if field.is_empty() {
                        String::new()
                    } else {
                        format!(" in `{field}`")
                    };
                    (at, format!("has no field `{name}`{of}; {}", known(name)))
                })
                .collect();
        }
        let why = error.masked_with("what is set").to_string();
        let sentence = if field.is_empty() {
            format!("cannot take these: {why}")
        } else {
            format!("cannot take `{field}` as it is: {why}")
        };
        vec![(at, sentence)]
    }
}

/// Checks that a plugin's schema can be used and accepts these settings, for a plugin's author, so
/// without positions.
pub(crate) fn settings_fit(schema: &str, values: &Map<String, Value>) -> Result<(), SettingsError> {
    let schema = SettingsSchema::new(schema)?;
    let settings = PluginSettings {
        values: values.clone(),
        ..PluginSettings::default()
    };
    let wrong = schema.check(&settings).into_iter().map(|(_, why)| why);
    let wrong: Vec<String> = wrong.collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(SettingsError::Refused(wrong))
}

/// Visits a schema as a validation would, following references.
fn check_complexity(
    root: &Value,
    value: &Value,
    depth: usize,
    left: &mut usize,
) -> Result<(), SettingsSchemaError> {
    if depth > DEEPEST {
        return Err(SettingsSchemaError::TooComplex);
    }
    *left = left.checked_sub(1).ok_or(SettingsSchemaError::TooComplex)?;
    match value {
        Value::Array(all) => all
            .iter()
            .try_for_each(|value| check_complexity(root, value, depth + 1, left)),
        Value::Object(fields) => {
            check_reference(root, fields, depth, left)?;
            fields
                .values()
                .try_for_each(|value| check_complexity(root, value, depth + 1, left))
        }
        _ => Ok(()),
    }
}

fn check_reference(
    root: &Value,
    fields: &Map<String, Value>,
    depth: usize,
    left: &mut usize,
) -> Result<(), SettingsSchemaError> {
    for name in FORBIDDEN {
        if fields.get(*name).is_some_and(Value::is_string) {
            return Err(SettingsSchemaError::Keyword(name));
        }
    }
    let Some(Value::String(reference)) = fields.get("$ref") else {
        return Ok(());
    };
    let outside = || SettingsSchemaError::Outside(reference.clone());
    let pointer = reference.strip_prefix('#').ok_or_else(outside)?;
    // An escape could hide where the reference points.
    if pointer.contains('%') {
        return Err(outside());
    }
    let target = root.pointer(pointer).ok_or_else(outside)?;
    check_complexity(root, target, depth + 1, left)
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn settings(values: Value) -> PluginSettings {
        let Value::Object(values) = values else {
            panic!("settings are an object")
        };
        PluginSettings {
            values,
            ..PluginSettings::default()
        }
    }

    fn said(schema: &Value, values: Value) -> Vec<String> {
        let schema = SettingsSchema::new(&schema.to_string()).unwrap();
        let wrong = schema.check(&settings(values));
        wrong.into_iter().map(|(_, what)| what).collect()
    }

    #[test]
    fn a_wrong_setting_is_named_and_a_misspelt_one_gets_the_name_that_was_meant() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "ask": {"type": "boolean"},
                "params": {"$ref": "#/$defs/params"}
            },
            "$defs": {"params": {"type": "object", "properties": {"top_p": {"type": "number"}}}}
        });
        assert_eq!(
            said(&schema, json!({"ask": true, "params": {"top_p": 1}})),
            Vec::<String>::new()
        );
        let wrong = said(&schema, json!({"aks": true}));
        assert_eq!(
            wrong,
            ["has no field `aks`; did you mean `ask`? (there are: ask, params)"]
        );
        let wrong = said(
            &schema,
            json!({"params": {"top_p": "a-secret-that-is-not-shown"}}),
        );
        assert!(wrong[0].contains("`params.top_p`"), "{wrong:?}");
        assert!(
            !wrong[0].contains("a-secret"),
            "a value may be one: {wrong:?}"
        );
    }

    #[test]
    fn a_hostile_schema_is_refused_before_it_is_compiled() {
        let wide = format!(r#"{{"description": "{}"}}"#, "x".repeat(LARGEST));
        let mut deep = json!(true);
        for _ in 0..100 {
            deep = json!({ "not": deep });
        }
        // Each one doubles the one before it.
        let mut doubling = serde_json::Map::new();
        doubling.insert("a0".into(), json!(true));
        for n in 1..40 {
            let before = json!({ "$ref": format!("#/$defs/a{}", n - 1) });
            doubling.insert(
                format!("a{n}"),
                json!({ "allOf": [before.clone(), before] }),
            );
        }
        for hostile in [
            wide,
            deep.to_string(),
            json!({"$ref": "#"}).to_string(),
            json!({"anyOf": [{"$ref": "#/anyOf/1"}, {"$ref": "#/anyOf/0"}]}).to_string(),
            json!({"$ref": "#/$defs/a39", "$defs": doubling}).to_string(),
            json!({"$ref": "https://example.org/schema.json"}).to_string(),
            json!({"$ref": "file:///etc/passwd"}).to_string(),
            json!({"$ref": "#%2F"}).to_string(),
            json!({"$id": "https://example.org/", "$ref": "#/x", "x": true}).to_string(),
            json!({"$dynamicRef": "#node"}).to_string(),
            json!({"$schema": "https://example.org/its-own-language"}).to_string(),
            json!({"pattern": "(a{1000}){1000}"}).to_string(),
            json!({"pattern": "(?=a)b"}).to_string(),
            json!({"type": "nothing"}).to_string(),
            "{".to_owned(),
            "[".repeat(10_000),
        ] {
            let shown: String = hostile.chars().take(80).collect();
            assert!(SettingsSchema::new(&hostile).is_err(), "taken: {shown}");
        }
    }

    #[test]
    fn a_pattern_that_makes_other_engines_hang_is_matched_at_once() {
        let schema = json!({"properties": {"a": {"pattern": "^(a+)+$"}}});
        let begun = std::time::Instant::now();
        let wrong = said(&schema, json!({"a": format!("{}!", "a".repeat(30_000))}));
        assert_eq!(wrong.len(), 1);
        assert!(
            begun.elapsed().as_secs() < 30,
            "that took {:?}",
            begun.elapsed()
        );
    }

    proptest! {
        #[test]
        fn a_mutated_schema_is_refused_or_validates(
            schema in mutated_text([
                r##"{"type":"object","properties":{"depth":{"$ref":"#/$defs/n"},"name":{"type":"string","pattern":"^(a+)+$","maxLength":20}},"additionalProperties":false,"$defs":{"n":{"type":"integer","minimum":1}}}"##,
                r##"{"anyOf":[{"required":["a"]},{"not":{"const":[1,{"b":null}]}}],"patternProperties":{"^x-":{"enum":[1,"2"]}},"dependentRequired":{"a":["b"]},"if":{"minProperties":1},"then":{"$ref":"#/anyOf/0"}}"##,
            ]),
        ) {
            if let Ok(schema) = SettingsSchema::new(&schema) {
                schema.check(&settings(json!({"depth": 5, "name": "aaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "x-1": [1]})));
            }
        }
    }
}
