//! Schemas of tools as every adapter may hand them on.
//!
//! # Invariants
//! - What comes out is an object's, without a choice at its root, of a bounded size. A provider that does not
//!   take one schema refuses every call of the session, not only this tool's.
//! - It allows at least what went in allowed, since the tool checks its arguments itself.

use serde_json::{Map, Value, json};

/// The most bytes of a schema.
pub(super) const LARGEST: usize = 32 << 10;
/// So many ways of choices are looked at: they may lead to each other, or in a circle.
const MAX_ALTERNATIVES: usize = 100;

/// The schema as it is told to models; none where it is too large or that of no object.
pub(super) fn usable(schema: &str) -> Option<String> {
    if schema.len() > LARGEST {
        return None;
    }
    let Ok(Value::Object(mut schema)) = serde_json::from_str::<Value>(schema) else {
        return None;
    };
    let is_object = may_be_object(&schema);
    let root = Value::Object(schema.clone());
    let mut left = MAX_ALTERNATIVES;
    flatten(&mut schema, &root, &mut left);
    for kept_out in ["not", "enum", "const", "$schema", "$id"] {
        schema.remove(kept_out);
    }
    schema.insert("type".into(), "object".into());
    // Some languages write an empty object as an empty list.
    if !schema.get("properties").is_none_or(Value::is_object) {
        schema.remove("properties");
    }
    let schema = Value::Object(schema).to_string();
    (is_object && schema.len() <= LARGEST).then_some(schema)
}

fn may_be_object(schema: &Map<String, Value>) -> bool {
    let is_object = |kind: &Value| {
        kind.as_str()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("object"))
    };
    match schema.get("type") {
        None | Some(Value::Null) => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is_object),
        Some(kind) => is_object(kind),
    }
}

/// Takes the members of all ways of a choice together. Those are wanted that every way wants.
fn flatten(schema: &mut Map<String, Value>, root: &Value, left: &mut usize) {
    for name in ["allOf", "anyOf", "oneOf"] {
        let Some(Value::Array(ways)) = schema.remove(name) else {
            continue;
        };
        let ways = ways.iter().filter_map(|way| resolved(way, root));
        let mut wanted: Option<Vec<Value>> = None;
        for mut way in ways {
            if *left == 0 {
                // What a way wants that is not looked at, nobody knows.
                wanted = None;
                break;
            }
            *left -= 1;
            flatten(&mut way, root, left);
            if !may_be_object(&way) {
                continue;
            }
            let required = match way.remove("required") {
                Some(Value::Array(required)) => required,
                _ => Vec::new(),
            };
            wanted = Some(match wanted {
                None => required,
                Some(before) if name == "allOf" => [before, required].concat(),
                Some(before) => {
                    let both = |name: &Value| required.contains(name);
                    before.into_iter().filter(both).collect()
                }
            });
            if let Some(Value::Object(more)) = way.remove("properties") {
                more.into_iter()
                    .for_each(|(name, property)| add(schema, name, property));
            }
        }
        want(schema, wanted.unwrap_or_default());
        // What one way forbids another may want.
        schema.remove("additionalProperties");
    }
}

/// A way of a choice, which may be written elsewhere in the schema.
fn resolved(way: &Value, root: &Value) -> Option<Map<String, Value>> {
    let path = way.get("$ref").and_then(Value::as_str);
    let there = path
        .and_then(|path| path.strip_prefix('#'))
        .and_then(|path| root.pointer(path));
    there.unwrap_or(way).as_object().cloned()
}

/// A member that two ways have is as either of them says.
fn add(schema: &mut Map<String, Value>, name: String, property: Value) {
    let all = schema.entry("properties").or_insert_with(|| json!({}));
    let Value::Object(all) = all else { return };
    match all.get_mut(&name) {
        None => drop(all.insert(name, property)),
        Some(before) if *before == property => {}
        Some(before) => {
            let mut all = ways(before.take());
            for way in ways(property) {
                if !all.contains(&way) {
                    all.push(way);
                }
            }
            *before = json!({ "anyOf": all });
        }
    }
}

/// The ways of a member that is nothing but a choice; any other is the one way.
fn ways(property: Value) -> Vec<Value> {
    match property {
        Value::Object(mut only)
            if only.len() == 1 && only.get("anyOf").is_some_and(Value::is_array) =>
        {
            match only.remove("anyOf") {
                Some(Value::Array(ways)) => ways,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}

fn want(schema: &mut Map<String, Value>, wanted: Vec<Value>) {
    if wanted.is_empty() {
        return;
    }
    let all = schema.entry("required").or_insert_with(|| json!([]));
    if let Value::Array(all) = all {
        for name in wanted {
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    fn told(schema: &Value) -> Option<Value> {
        usable(&schema.to_string()).map(|schema| serde_json::from_str(&schema).unwrap())
    }

    #[test]
    fn a_choice_at_the_root_keeps_the_members_of_all_its_ways() {
        let way = |name: &str, kind: &str| json!({"type": "object", "properties": {"kind": {"const": name}, name: {"type": kind}}, "required": ["kind", name]});
        assert_eq!(
            told(
                &json!({"oneOf": [way("a", "string"), {"$ref": "#/$defs/b"}], "$defs": {"b": way("b", "number")}})
            ),
            Some(json!({
                "type": "object",
                "properties": {
                    "kind": {"anyOf": [{"const": "a"}, {"const": "b"}]},
                    "a": {"type": "string"},
                    "b": {"type": "number"},
                },
                "required": ["kind"],
                "$defs": {"b": way("b", "number")},
            }))
        );
        assert_eq!(
            told(&json!({"properties": {"x": {}}, "required": ["x"], "allOf": [way("a", "string"), way("b", "number")]})).unwrap()["required"],
            json!(["x", "kind", "a", "b"])
        );
        let circle = json!({"anyOf": [way("a", "string"), {"$ref": "#"}, {"$ref": "#"}]});
        assert!(told(&circle).unwrap()["properties"]["a"].is_object());
    }

    #[test]
    fn a_member_of_many_ways_is_one_flat_choice() {
        let way = |n: usize| {
            let kind = json!({"const": n % 79});
            json!({"type": "object", "properties": {"kind": kind}})
        };
        let all: Vec<Value> = (0..80).map(way).collect();
        let told = told(&json!({ "oneOf": all })).unwrap();
        let kinds: Vec<Value> = (0..79).map(|n| json!({"const": n})).collect();
        assert_eq!(told["properties"]["kind"], json!({ "anyOf": kinds }));
    }

    #[test]
    fn of_more_ways_than_are_looked_at_nothing_is_wanted_or_forbidden() {
        let way = |name: &str| json!({"properties": {name: {}}, "required": [name]});
        let circle = json!({
            "anyOf": [{"$ref": "#"}, {"$ref": "#"}],
            "oneOf": [way("a"), way("b")],
            "additionalProperties": false,
        });
        let mut many = vec![way("a"); MAX_ALTERNATIVES];
        many.push(way("b"));
        let wide = json!({"oneOf": many, "additionalProperties": false});
        for schema in [circle, wide] {
            let told = told(&schema).unwrap();
            for kept_out in ["anyOf", "oneOf", "required", "additionalProperties"] {
                assert_eq!(told.get(kept_out), None, "{kept_out} of {schema}");
            }
        }
        let nullable = json!({"type": ["object", "null"], "properties": {"b": {}}});
        let told = told(&json!({"anyOf": [way("a"), nullable]})).unwrap();
        assert_eq!(
            told,
            json!({"type": "object", "properties": {"a": {}, "b": {}}})
        );
    }

    #[test]
    fn what_other_languages_write_for_an_object_is_one() {
        let empty = json!({"type": "object"});
        for schema in [
            json!({}),
            json!({"type": null}),
            json!({"type": "Object"}),
            json!({"type": ["object", "null"]}),
            json!({"type": "object", "properties": []}),
            json!({"type": "object", "properties": null, "$schema": "x"}),
        ] {
            assert_eq!(told(&schema), Some(empty.clone()), "{schema}");
        }
        let wide = json!({"type": "object", "description": "x".repeat(LARGEST)});
        for none in [json!({"type": "string"}), json!([]), json!(true), wide] {
            assert_eq!(told(&none), None);
        }
    }

    proptest! {
        #[test]
        fn a_mutated_schema_is_an_objects_within_the_limit_or_none(
            schema in mutated_text([
                r##"{"anyOf":[{"$ref":"#/$defs/a"},{"type":"object","properties":{"x":{"type":"integer"}}}],"$defs":{"a":{"oneOf":[{"$ref":"#"}]}}}"##,
                r#"{"type":"object","allOf":[{"required":["a"]},{"properties":{"a":{"enum":[1]}}}]}"#,
            ]),
        ) {
            if let Some(schema) = usable(&schema) {
                prop_assert!(schema.len() <= LARGEST);
                let read: Value = serde_json::from_str(&schema).unwrap();
                prop_assert_eq!(&read["type"], "object");
            }
        }
    }
}
