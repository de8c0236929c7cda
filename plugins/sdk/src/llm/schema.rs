//! Converts any tool's schema to one that providers accept.
//!
//! A provider refuses the whole request for one schema that it does not like, and schemas of MCP
//! servers are whatever their authors' generators write.
//!
//! # Invariants
//!
//! - The result is an object schema with `properties`, valid by the latest draft, without
//!   references, without alternatives at its root, without boolean schemas, without optional
//!   keywords, and of a bounded size, whatever went in.
//! - The result allows at least what the original allowed, as far as member names can express it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::conversation::tool_name;
use crate::types::ToolDefinition;

/// The depth below which anything is allowed.
const DEEPEST: usize = 24;
/// The maximum number of parts after expanding references. A larger schema is left open from there
/// on.
const LARGEST: usize = 1_000;
const TYPES: [&str; 7] = [
    "object", "array", "string", "number", "integer", "boolean", "null",
];
const FORMATS: [&str; 11] = [
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
    "regex",
];
const NUMBERS: [&str; 5] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
const COUNTS: [&str; 6] = [
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
];

/// A tool as it is sent to a provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// A unique name of characters that all providers accept.
    pub name: String,
    /// The description of when to use it.
    pub description: String,
    /// The converted schema: see the module.
    pub schema: Value,
}

/// The tools of a request. `named` says which member names arguments may have.
pub fn tools(definitions: &[ToolDefinition], named: fn(&str) -> bool) -> Vec<Tool> {
    let mut names = BTreeSet::new();
    let tools = definitions.iter().map(|definition| Tool {
        name: tool_name(&definition.name),
        description: definition.description.clone(),
        schema: of(definition, named),
    });
    tools
        .filter(|tool| names.insert(tool.name.clone()))
        .collect()
}

/// Accepts any name.
pub fn any_name(_: &str) -> bool {
    true
}

/// The converted schema of a tool. An invalid one becomes that of an open object.
pub fn of(tool: &ToolDefinition, named: fn(&str) -> bool) -> Value {
    let root = super::json::whole(&tool.input_schema).unwrap_or(Value::Null);
    let mut cleaner = Cleaner {
        root: &root,
        named,
        left: LARGEST,
        within: Vec::new(),
    };
    let mut schema = match cleaner.clean(&root, 0) {
        Some(Value::Object(schema)) => schema,
        _ => Map::new(),
    };
    flatten(&mut schema);
    schema.remove("enum");
    schema.remove("default");
    schema.insert("type".into(), "object".into());
    schema.entry("properties").or_insert_with(|| json!({}));
    for name in [
        "items",
        "minItems",
        "maxItems",
        "format",
        "pattern",
        "minLength",
        "maxLength",
    ] {
        schema.remove(name);
    }
    Value::Object(schema)
}

/// No provider accepts alternatives at the root: the members of all alternatives are merged, and
/// only those required by each are required.
fn flatten(schema: &mut Map<String, Value>) {
    let Some(Value::Array(ways)) = schema.remove("anyOf") else {
        return;
    };
    let mut wanted: Option<Vec<Value>> = None;
    for way in ways {
        let Value::Object(mut way) = way else {
            continue;
        };
        if way.get("type").is_some_and(|kind| kind == "null") {
            continue;
        }
        flatten(&mut way);
        let required = list(&way, "required").to_vec();
        wanted = Some(match wanted {
            None => required,
            Some(before) => before
                .into_iter()
                .filter(|name| required.contains(name))
                .collect(),
        });
        if let Some(Value::Object(more)) = way.remove("properties") {
            let all = schema.entry("properties").or_insert_with(|| json!({}));
            for (name, property) in more {
                either(all, name, property);
            }
        }
    }
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        let all = schema.entry("required").or_insert_with(|| json!([]));
        if let Value::Array(all) = all {
            let more: Vec<Value> = wanted
                .into_iter()
                .filter(|name| !all.contains(name))
                .collect();
            all.extend(more);
        }
    }
    // What one alternative forbids another may require.
    schema.remove("additionalProperties");
}

/// A member that two alternatives have may match either.
fn either(all: &mut Value, name: String, property: Value) {
    let Value::Object(all) = all else { return };
    match all.get_mut(&name) {
        None => drop(all.insert(name, property)),
        Some(before) if *before == property => {}
        Some(before) => {
            let mut ways = match before.get("anyOf").and_then(Value::as_array) {
                Some(ways) => ways.clone(),
                None => vec![before.clone()],
            };
            if !ways.contains(&property) {
                ways.push(property);
            }
            *before = json!({ "anyOf": ways });
        }
    }
}

struct Cleaner<'a> {
    root: &'a Value,
    named: fn(&str) -> bool,
    /// The number of parts that may still be added.
    left: usize,
    /// The references that are being expanded.
    within: Vec<&'a str>,
}

impl<'a> Cleaner<'a> {
    /// `None` for a schema that nothing matches.
    fn clean(&mut self, schema: &'a Value, depth: usize) -> Option<Value> {
        if self.left == 0 || depth > DEEPEST {
            return Some(json!({}));
        }
        self.left -= 1;
        let schema = match schema {
            Value::Bool(false) => return None,
            Value::Object(schema) => schema,
            _ => return Some(json!({})),
        };
        let mut out = self.referenced(schema, depth);
        for part in list(schema, "allOf") {
            if let Some(Value::Object(part)) = self.clean(part, depth + 1) {
                merge(&mut out, part);
            }
        }
        let mut own = Map::new();
        said(schema, &mut own);
        self.members(schema, depth, &mut own);
        self.items(schema, depth, &mut own);
        let nullable = kinds(schema, &mut own);
        values(schema, &mut own);
        merge(&mut out, own);
        self.choice(schema, depth, &mut out);
        if nullable {
            or_null(&mut out);
        }
        complete(&mut out);
        Some(Value::Object(out))
    }

    /// Expands a reference. A cyclic one is left open.
    fn referenced(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Map<String, Value> {
        let path = schema.get("$ref").and_then(Value::as_str);
        let Some(path) = path.filter(|path| !self.within.contains(path)) else {
            return Map::new();
        };
        let found = path
            .strip_prefix('#')
            .and_then(|path| self.root.pointer(path));
        let Some(found) = found else {
            return Map::new();
        };
        self.within.push(path);
        let there = self.clean(found, depth + 1);
        self.within.pop();
        match there {
            Some(Value::Object(there)) => there,
            _ => Map::new(),
        }
    }

    fn members(
        &mut self,
        schema: &'a Map<String, Value>,
        depth: usize,
        out: &mut Map<String, Value>,
    ) {
        let mut required: Vec<Value> = Vec::new();
        if let Some(Value::Object(properties)) = schema.get("properties") {
            let mut all = Map::new();
            for (name, property) in properties {
                if !(self.named)(name) {
                    continue;
                }
                if let Some(clean) = self.clean(property, depth + 1) {
                    // As in old drafts.
                    if property.get("required") == Some(&Value::Bool(true)) {
                        required.push(name.as_str().into());
                    }
                    all.insert(name.clone(), clean);
                }
            }
            out.insert("properties".into(), all.into());
        }
        for name in list(schema, "required") {
            if name.is_string() && !required.contains(name) {
                required.push(name.clone());
            }
        }
        if !required.is_empty() {
            out.insert("required".into(), required.into());
        }
        match schema.get("additionalProperties") {
            Some(Value::Bool(more)) => {
                drop(out.insert("additionalProperties".into(), (*more).into()))
            }
            Some(more @ Value::Object(_)) => {
                if let Some(more) = self.clean(more, depth + 1) {
                    out.insert("additionalProperties".into(), more);
                }
            }
            _ => {}
        }
    }

    /// The schemas of a list's positions are merged into one for all items.
    fn items(
        &mut self,
        schema: &'a Map<String, Value>,
        depth: usize,
        out: &mut Map<String, Value>,
    ) {
        let places = match (schema.get("items"), schema.get("prefixItems")) {
            (_, Some(Value::Array(places))) | (Some(Value::Array(places)), _) => places,
            (Some(items), _) => {
                let items = self.clean(items, depth + 1).unwrap_or_else(|| json!({}));
                out.insert("items".into(), items);
                return;
            }
            _ => return,
        };
        let mut ways: Vec<Value> = Vec::new();
        for place in places {
            let way = self.clean(place, depth + 1).unwrap_or_else(|| json!({}));
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        let items = match ways.len() {
            0 => json!({}),
            1 => ways.remove(0),
            _ => json!({ "anyOf": ways }),
        };
        out.insert("items".into(), items);
    }

    fn choice(
        &mut self,
        schema: &'a Map<String, Value>,
        depth: usize,
        out: &mut Map<String, Value>,
    ) {
        let some = match (list(schema, "anyOf"), list(schema, "oneOf")) {
            ([], some) | (some, _) => some,
        };
        let mut ways: Vec<Value> = Vec::new();
        for way in some {
            if let Some(way) = self.clean(way, depth + 1)
                && !ways.contains(&way)
            {
                ways.push(way);
            }
        }
        // An alternative that only requires members is a condition on what is there already.
        let adds = |way: &Value| {
            way.as_object()
                .is_some_and(|way| way.keys().any(|name| name != "required"))
        };
        if !out.is_empty() && !ways.iter().any(adds) {
            return;
        }
        if ways.len() == 1 {
            if let Value::Object(way) = ways.remove(0) {
                merge(out, way);
            }
            return;
        }
        if ways.is_empty() {
            return;
        }
        // Some providers accept no type beside alternatives, so each alternative has its own.
        let structured = ["properties", "items"]
            .iter()
            .any(|name| out.contains_key(*name));
        if !structured && let Some(kind) = out.remove("type") {
            for way in &mut ways {
                if let Value::Object(way) = way
                    && !way.contains_key("type")
                    && !way.contains_key("anyOf")
                {
                    way.insert("type".into(), kind.clone());
                    complete(way);
                }
            }
        }
        out.insert("anyOf".into(), ways.into());
    }
}

/// Copies annotations and limits, if they have the type that their keyword requires.
fn said(schema: &Map<String, Value>, out: &mut Map<String, Value>) {
    let mut keep = |name: &str, good: fn(&Value) -> bool| {
        if let Some(value) = schema.get(name).filter(|value| good(value)) {
            out.insert(name.into(), value.clone());
        }
    };
    for name in ["title", "description"] {
        keep(name, Value::is_string);
    }
    keep("default", |_| true);
    keep("uniqueItems", Value::is_boolean);
    keep("format", |format| {
        format
            .as_str()
            .is_some_and(|format| FORMATS.contains(&format))
    });
    // Few servers can build a grammar from lookarounds.
    keep("pattern", |pattern| {
        pattern
            .as_str()
            .is_some_and(|pattern| !pattern.contains("(?"))
    });
    for name in NUMBERS {
        keep(name, Value::is_number);
    }
    for name in COUNTS {
        keep(name, Value::is_u64);
    }
    // As in old drafts.
    for (old, limit) in [
        ("exclusiveMinimum", "minimum"),
        ("exclusiveMaximum", "maximum"),
    ] {
        if schema.get(old) == Some(&Value::Bool(true))
            && let Some(value) = out.remove(limit)
        {
            out.insert(old.into(), value);
        }
    }
}

/// The type, or several. Returns whether the schema allows null in another way.
fn kinds(schema: &Map<String, Value>, out: &mut Map<String, Value>) -> bool {
    let known = |kind: &&Value| kind.as_str().is_some_and(|kind| TYPES.contains(&kind));
    let kinds: Vec<Value> = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().filter(known).cloned().collect(),
        Some(kind) => Some(kind).filter(known).cloned().into_iter().collect(),
        None => Vec::new(),
    };
    match kinds.as_slice() {
        [] => {}
        [one] => drop(out.insert("type".into(), one.clone())),
        _ => drop(out.insert("type".into(), kinds.into())),
    }
    schema.get("nullable") == Some(&Value::Bool(true))
}

/// The enumerated values, restricted to those of the required type.
fn values(schema: &Map<String, Value>, out: &mut Map<String, Value>) {
    let values = match (schema.get("const"), schema.get("enum")) {
        (Some(one), _) => std::slice::from_ref(one),
        (None, Some(Value::Array(values))) => values.as_slice(),
        _ => return,
    };
    let fits = |value: &&Value| match out.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| is_of(value, kind)),
        Some(kind) => is_of(value, kind),
    };
    let mut all: Vec<Value> = Vec::new();
    for value in values.iter().filter(fits) {
        if !all.contains(value) {
            all.push(value.clone());
        }
    }
    if !all.is_empty() {
        out.insert("enum".into(), all.into());
    }
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn or_null(out: &mut Map<String, Value>) {
    match out.get_mut("type") {
        Some(Value::Array(kinds)) if !kinds.contains(&json!("null")) => kinds.push("null".into()),
        Some(Value::String(kind)) if kind != "null" => {
            let kinds = json!([kind, "null"]);
            out.insert("type".into(), kinds);
        }
        Some(_) => {}
        None => match out.get_mut("anyOf") {
            Some(Value::Array(ways)) => ways.push(json!({ "type": "null" })),
            _ => return,
        },
    }
    if let Some(Value::Array(values)) = out.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
}

/// Adds missing items to a list and properties to an object, and drops required members that are
/// not defined.
fn complete(out: &mut Map<String, Value>) {
    if !out.contains_key("type") && !out.contains_key("anyOf") {
        if out.contains_key("properties") {
            out.insert("type".into(), "object".into());
        } else if out.contains_key("items") {
            out.insert("type".into(), "array".into());
        }
    }
    let is = |kind: &str| match out.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        Some(one) => one == kind,
        None => false,
    };
    let (object, array) = (is("object"), is("array"));
    if object {
        out.entry("properties").or_insert_with(|| json!({}));
    }
    if array {
        out.entry("items").or_insert_with(|| json!({}));
    }
    let Some(Value::Array(required)) = out.remove("required") else {
        return;
    };
    // A single one is a condition, which the caller merges.
    let known = |name: &Value| match (out.get("properties"), name.as_str()) {
        (Some(properties), Some(name)) => properties.get(name).is_some(),
        (None, _) => true,
        _ => false,
    };
    let required: Vec<Value> = required.into_iter().filter(known).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
}

/// Combines two schemas that both apply: members are merged, and for everything else the later one
/// wins.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(before)), Value::Object(more)) if name == "properties" => {
                before.extend(more)
            }
            (Some(Value::Array(before)), Value::Array(more)) if name == "required" => {
                let more: Vec<Value> = more
                    .into_iter()
                    .filter(|one| !before.contains(one))
                    .collect();
                before.extend(more);
            }
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

fn list<'a>(schema: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    schema
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}
