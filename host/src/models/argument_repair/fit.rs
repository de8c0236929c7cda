//! Converts values whose JSON type differs from the one in the tool's schema.
//!
//! # Invariants
//!
//! - A value whose type the schema allows stays as it is, except that an integer is written as one.
//!   Any other value is converted to what it says, if it says exactly one thing.

use serde_json::{Map, Number, Value};

use super::{json, normalized_name};

/// The depth to which a schema is followed.
const DEPTH: usize = 32;
/// The largest number up to which integers are exact, however they are written.
const EXACT: f64 = 9_007_199_254_740_992.0;
/// Members in which models wrap all arguments.
const WRAPPERS: &[&str] = &["arguments", "parameters", "args", "input"];

/// Converts a tool's arguments to what its schema requires, as far as possible.
pub(super) fn fit(arguments: Value, tool: &str, schema: &Value) -> Value {
    let Value::Object(given) = arguments else {
        return arguments;
    };
    let given = unwrapped(given, tool, schema);
    SchemaFitter { root: schema }.value(Value::Object(given), schema, 0)
}

/// Unwraps arguments that are all in one of their own: `{"name": "terminal", "arguments": {…}}`.
fn unwrapped(given: Map<String, Value>, tool: &str, schema: &Value) -> Map<String, Value> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return given;
    };
    let named = |name: &str| given.get(name).and_then(Value::as_str);
    let names = ["name", "tool", "function"];
    let name = names.iter().find(|name| named(name) == Some(tool));
    let members = given.len() - usize::from(name.is_some());
    let known = given.keys().any(|key| properties.contains_key(key));
    let wrapper = WRAPPERS
        .iter()
        .chain([&tool])
        .find(|wrapper| given.contains_key(**wrapper));
    let Some(wrapper) = wrapper.filter(|_| members == 1 && !known) else {
        return given;
    };
    match given.get(*wrapper) {
        Some(Value::Object(inner)) => inner.clone(),
        Some(Value::String(text)) => match json::object(text) {
            Some(Value::Object(inner)) => inner,
            _ => given,
        },
        _ => given,
    }
}

/// The types that a schema allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Types {
    null: bool,
    boolean: bool,
    integer: bool,
    number: bool,
    string: bool,
    array: bool,
    object: bool,
}

impl Types {
    fn add(&mut self, name: &str) {
        match name {
            "null" => self.null = true,
            "boolean" => self.boolean = true,
            "integer" => self.integer = true,
            "number" => self.number = true,
            "string" => self.string = true,
            "array" => self.array = true,
            "object" => self.object = true,
            _ => {}
        }
    }

    fn of_value(&mut self, value: &Value) {
        self.add(match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        });
    }

    fn is_any(self) -> bool {
        self == Self::default()
    }

    fn take(self, value: &Value) -> bool {
        match value {
            Value::Null => self.null,
            Value::Bool(_) => self.boolean,
            Value::Number(number) => self.number || (self.integer && !number.is_f64()),
            Value::String(_) => self.string,
            Value::Array(_) => self.array,
            Value::Object(_) => self.object,
        }
    }
}

/// Makes values fit a schema.
struct SchemaFitter<'a> {
    root: &'a Value,
}

impl<'a> SchemaFitter<'a> {
    /// Resolves a reference within the same document.
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        for _ in 0..DEPTH {
            let target = schema.get("$ref").and_then(Value::as_str);
            let target = target.and_then(|target| target.strip_prefix('#'));
            match target.and_then(|pointer| self.root.pointer(pointer)) {
                Some(next) => schema = next,
                None => break,
            }
        }
        schema
    }

    fn choices(schema: &'a Value) -> impl Iterator<Item = &'a Value> {
        let lists = ["anyOf", "oneOf"].into_iter();
        lists
            .filter_map(|name| schema.get(name)?.as_array())
            .flatten()
    }

    fn types(&self, schema: &'a Value, depth: usize) -> Types {
        let mut types = Types::default();
        let schema = self.resolved(schema);
        match schema.get("type") {
            Some(Value::String(name)) => types.add(name),
            Some(Value::Array(names)) => {
                names
                    .iter()
                    .filter_map(Value::as_str)
                    .for_each(|name| types.add(name));
            }
            _ => {
                let listed = schema.get("enum").and_then(Value::as_array);
                let listed = listed.into_iter().flatten().chain(schema.get("const"));
                listed.for_each(|value| types.of_value(value));
                if depth < DEPTH {
                    for catalog in Self::choices(schema) {
                        let other = self.types(catalog, depth + 1);
                        if other.is_any() {
                            // It accepts anything.
                            return Types::default();
                        }
                        types = Types {
                            null: types.null | other.null,
                            boolean: types.boolean | other.boolean,
                            integer: types.integer | other.integer,
                            number: types.number | other.number,
                            string: types.string | other.string,
                            array: types.array | other.array,
                            object: types.object | other.object,
                        };
                    }
                }
                let implied = ["properties", "items"].map(|name| schema.get(name).is_some());
                if types.is_any() {
                    [types.object, types.array] = implied;
                    if implied == [true, true] {
                        return Types::default();
                    }
                }
            }
        }
        types
    }

    fn value(&self, value: Value, schema: &'a Value, depth: usize) -> Value {
        if depth > DEPTH {
            return value;
        }
        let schema = self.resolved(schema);
        let types = self.types(schema, 0);
        if types.is_any() {
            return value;
        }
        let value = if types.take(&value) {
            value
        } else {
            self.converted(value, types, schema, depth)
        };
        match value {
            Value::Object(members) => Value::Object(self.members(members, schema, depth)),
            Value::Array(list) => match self.part(schema, "items") {
                Some(items) => {
                    let fit = |one| self.value(one, items, depth + 1);
                    Value::Array(list.into_iter().map(fit).collect())
                }
                None => Value::Array(list),
            },
            Value::String(text) => Value::String(listed(text, schema)),
            other => other,
        }
    }

    /// A keyword of a schema, from outside its alternatives or from the only alternative that has
    /// it.
    fn part(&self, schema: &'a Value, name: &str) -> Option<&'a Value> {
        if let Some(part) = schema.get(name) {
            return Some(part);
        }
        let choices = Self::choices(schema).map(|catalog| self.resolved(catalog));
        let mut parts = choices.filter_map(|catalog| catalog.get(name));
        let only = parts.next()?;
        parts.next().is_none().then_some(only)
    }

    fn members(
        &self,
        members: Map<String, Value>,
        schema: &'a Value,
        depth: usize,
    ) -> Map<String, Value> {
        let Some(properties) = self.part(schema, "properties").and_then(Value::as_object) else {
            return members;
        };
        let required = self.part(schema, "required").and_then(Value::as_array);
        let required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
        let closed = self.part(schema, "additionalProperties") == Some(&Value::Bool(false));
        let mut fitted = Map::new();
        let given: Vec<String> = members.keys().cloned().collect();
        for (name, value) in members {
            let name = if properties.contains_key(&name) {
                name
            } else {
                let like = normalized_name(&name);
                let mut fits = properties
                    .keys()
                    .filter(|known| normalized_name(known) == like);
                let only = fits.next().filter(|_| fits.next().is_none());
                let free = |known: &&String| {
                    !given.contains(*known)
                        && !fitted.contains_key(*known)
                        && (closed || required(known))
                };
                only.filter(free).cloned().unwrap_or(name)
            };
            let Some(of) = properties.get(&name) else {
                fitted.insert(name, value);
                continue;
            };
            let types = self.types(of, 0);
            // For an optional member, absence is the way to have no value.
            if value.is_null() && !types.null && !types.is_any() && !required(&name) {
                continue;
            }
            let value = self.value(value, of, depth + 1);
            fitted.insert(name, value);
        }
        fitted
    }

    /// Converts a value to another type, if it has exactly one meaning there.
    fn converted(&self, value: Value, types: Types, schema: &'a Value, depth: usize) -> Value {
        let found = match &value {
            Value::Number(number) => of_number(number, types),
            Value::String(text) => of_string(text, types),
            Value::Array(list) if list.len() == 1 => {
                // A list of one element stands for that element.
                list.first().filter(|one| types.take(one)).cloned()
            }
            Value::Object(_) if types.array => {
                let items = self.part(schema, "items");
                let takes = items.is_some_and(|items| self.types(items, depth).object);
                takes.then(|| Value::Array(vec![value.clone()]))
            }
            _ => None,
        };
        found.unwrap_or(value)
    }
}

fn of_number(number: &Number, types: Types) -> Option<Value> {
    if types.integer {
        return whole(number.as_f64()?);
    }
    // A fraction could have been written in several ways.
    (types.string && !number.is_f64()).then(|| Value::String(number.to_string()))
}

fn whole(number: f64) -> Option<Value> {
    let exact = number.fract() == 0.0 && number.abs() <= EXACT;
    exact.then(|| Value::from(number as i64))
}

fn of_string(text: &str, types: Types) -> Option<Value> {
    let text = text.trim();
    let mut found = Vec::new();
    if types.integer || types.number {
        let number = serde_json::from_str::<Number>(text).ok();
        found.extend(number.and_then(|number| {
            let value = Value::Number(number.clone());
            if types.take(&value) {
                Some(value)
            } else {
                whole(number.as_f64()?)
            }
        }));
    }
    if types.boolean {
        let word = text.to_ascii_lowercase();
        let known = [("true", true), ("false", false)];
        found.extend(
            known
                .iter()
                .filter(|(name, _)| *name == word)
                .map(|(_, value)| Value::Bool(*value)),
        );
    }
    if types.null && matches!(text, "null" | "None") {
        found.push(Value::Null);
    }
    if types.array && text.starts_with('[') {
        let list = json::value(text).filter(Value::is_array);
        found.extend(list);
    }
    if types.object && text.starts_with('{') {
        found.extend(json::value(text).filter(Value::is_object));
    }
    let only = found.pop()?;
    found.is_empty().then_some(only)
}

/// Respells a text as in the schema's list of allowed ones.
fn listed(text: String, schema: &Value) -> String {
    let Some(allowed) = schema.get("enum").and_then(Value::as_array) else {
        return text;
    };
    let allowed: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
    if allowed.contains(&text.as_str()) {
        return text;
    }
    let like = normalized_name(&text);
    let mut fits = allowed.iter().filter(|one| normalized_name(one) == like);
    match (fits.next(), fits.next()) {
        (Some(one), None) if !like.is_empty() => (*one).to_owned(),
        _ => text,
    }
}
