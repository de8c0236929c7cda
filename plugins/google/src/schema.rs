//! Converts a JSON schema to the subset that Gemini accepts.
//!
//! # Invariants
//!
//! - The result has only members that the API knows, whatever went in.
//! - The result says no more than the original: what cannot be expressed is left out, never
//!   replaced.

use serde_json::{Map, Value, json};

/// The depth below which, or in a cycle, anything is allowed.
const DEEPEST: usize = 16;
/// Keywords that are copied unchanged.
const KEPT: [&str; 14] = [
    "title",
    "description",
    "nullable",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
    "pattern",
    "default",
    "example",
];
/// The only formats that the API does not refuse.
const FORMATS: [&str; 7] = [
    "enum",
    "date-time",
    "int32",
    "int64",
    "float",
    "double",
    "byte",
];

/// A tool's parameters. `None` if it has none: an object without properties is refused.
pub(crate) fn parameters(schema: &Value) -> Option<Value> {
    let cleaned = clean(schema, schema, 0);
    cleaned.get("properties").is_some().then_some(cleaned)
}

fn clean(schema: &Value, root: &Value, depth: usize) -> Value {
    let any = || json!({ "type": "string" });
    let Some(schema) = schema.as_object().filter(|_| depth < DEEPEST) else {
        return any();
    };
    if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
        let found = path.strip_prefix('#').and_then(|path| root.pointer(path));
        let mut there = found.map_or_else(any, |found| clean(found, root, depth + 1));
        if let Some(description) = schema.get("description") {
            there["description"] = description.clone();
        }
        return there;
    }
    let mut out = Map::new();
    for part in schema
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        merge(&mut out, clean(part, root, depth + 1));
    }
    for name in KEPT {
        if let Some(value) = schema.get(name) {
            out.insert(name.into(), value.clone());
        }
    }
    if let Some(format) = schema
        .get("format")
        .filter(|f| f.as_str().is_some_and(|f| FORMATS.contains(&f)))
    {
        out.insert("format".into(), format.clone());
    }
    children(schema, root, depth, &mut out);
    choices(schema, root, depth, &mut out);
    kind(schema, &mut out);
    Value::Object(out)
}

fn children(schema: &Map<String, Value>, root: &Value, depth: usize, out: &mut Map<String, Value>) {
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let mut all = match out.remove("properties") {
            Some(Value::Object(before)) => before,
            _ => Map::new(),
        };
        for (name, property) in properties {
            all.insert(name.clone(), clean(property, root, depth + 1));
        }
        if !all.is_empty() {
            out.insert("properties".into(), all.into());
        }
    }
    let known = |name: &Value| {
        let name = name.as_str()?;
        let there = out.get("properties")?.get(name).is_some();
        there.then(|| Value::from(name))
    };
    let own = schema.get("required").and_then(Value::as_array);
    let before = out.get("required").and_then(Value::as_array);
    let mut required: Vec<Value> = Vec::new();
    for name in before.into_iter().chain(own).flatten().filter_map(known) {
        if !required.contains(&name) {
            required.push(name);
        }
    }
    out.remove("required");
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    if let Some(items) = schema.get("items") {
        out.insert("items".into(), clean(items, root, depth + 1));
    }
}

/// Converts alternatives: values, or schemas.
fn choices(schema: &Map<String, Value>, root: &Value, depth: usize, out: &mut Map<String, Value>) {
    let values = match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(values)), _) => values.as_slice(),
        (_, Some(value)) => std::slice::from_ref(value),
        _ => &[],
    };
    // The API accepts only texts.
    let texts: Vec<Value> = values
        .iter()
        .filter(|value| value.as_str().is_some_and(|text| !text.is_empty()))
        .cloned()
        .collect();
    if !texts.is_empty() && texts.len() == values.len() {
        out.insert("type".into(), "string".into());
        out.insert("enum".into(), texts.into());
    }
    let some = schema.get("anyOf").or_else(|| schema.get("oneOf"));
    let Some(some) = some.and_then(Value::as_array) else {
        return;
    };
    let is_null = |one: &&Value| one.get("type").and_then(Value::as_str) == Some("null");
    let mut ways: Vec<Value> = some
        .iter()
        .filter(|one| !is_null(one))
        .map(|one| clean(one, root, depth + 1))
        .collect();
    if ways.len() < some.len() {
        out.insert("nullable".into(), true.into());
    }
    if ways.len() == 1 {
        merge(out, ways.remove(0));
    } else if !ways.is_empty() {
        out.insert("anyOf".into(), ways.into());
    }
}

/// Reduces a schema to exactly one type, or several schemas. Adds items to an array.
fn kind(schema: &Map<String, Value>, out: &mut Map<String, Value>) {
    let mut kinds: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(some)) => some.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let before = kinds.len();
    kinds.retain(|kind| *kind != "null");
    if kinds.len() < before {
        out.insert("nullable".into(), true.into());
    }
    if out.contains_key("anyOf") {
        // The API accepts no other keyword about the value beside it.
        for name in ["type", "properties", "required", "items", "enum"] {
            out.remove(name);
        }
        return;
    }
    match kinds.as_slice() {
        [] if out.contains_key("type") => {}
        [] if out.contains_key("properties") => {
            out.insert("type".into(), "object".into());
        }
        [] if out.contains_key("items") => {
            out.insert("type".into(), "array".into());
        }
        [] => {
            out.insert("type".into(), "string".into());
        }
        [one] => {
            out.insert("type".into(), (*one).into());
        }
        some => {
            let ways: Vec<Value> = some.iter().map(|kind| of_kind(kind, out)).collect();
            for name in ["properties", "required", "items", "enum"] {
                out.remove(name);
            }
            out.insert("anyOf".into(), ways.into());
            out.remove("type");
            return;
        }
    }
    let kind = out.get("type").and_then(Value::as_str).map(str::to_owned);
    for (of, names) in [
        ("string", &["enum"][..]),
        ("object", &["properties", "required"]),
        ("array", &["items"]),
    ] {
        if kind.as_deref() != Some(of) {
            names.iter().for_each(|name| drop(out.remove(*name)));
        }
    }
    if kind.as_deref() == Some("array") && !out.contains_key("items") {
        out.insert("items".into(), json!({ "type": "string" }));
    }
}

/// The keywords that apply to one type, among several.
fn of_kind(kind: &str, all: &Map<String, Value>) -> Value {
    let mut one = Map::new();
    one.insert("type".into(), kind.into());
    let names: &[&str] = match kind {
        "object" => &["properties", "required"],
        "array" => &["items"],
        _ => &[],
    };
    for name in names {
        if let Some(value) = all.get(*name) {
            one.insert((*name).into(), value.clone());
        }
    }
    if kind == "array" && !one.contains_key("items") {
        one.insert("items".into(), json!({ "type": "string" }));
    }
    Value::Object(one)
}

/// Merges two schemas. Where both have the same keyword, the later one wins as a whole: half of one
/// schema and half of another would not be a schema.
fn merge(into: &mut Map<String, Value>, from: Value) {
    let Value::Object(from) = from else { return };
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(before)), Value::Object(more)) if name == "properties" => {
                before.extend(more);
            }
            (Some(Value::Array(before)), Value::Array(more)) if name == "required" => {
                before.extend(more);
            }
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}
