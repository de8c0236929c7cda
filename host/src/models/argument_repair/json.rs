//! Parses JSON as models write it: line breaks within strings, superfluous commas, comments,
//! Python's keywords, unquoted names, a code fence around it, or all of it in a string.
//!
//! # Invariants
//!
//! - A text that ends in the middle of a value yields nothing, and so do two values that contradict
//!   each other.

use serde_json::{Map, Number, Value};

/// The maximum nesting depth of values.
const DEPTH: usize = 100;
/// How many times a value may be encoded as a string within a string.
const LAYERS: usize = 3;

/// The one object that a text means.
pub(super) fn object(text: &str) -> Option<Value> {
    layer(text, 0)
}

/// The one value that a text means.
pub(super) fn value(text: &str) -> Option<Value> {
    let mut values = Reader::new(text).all()?;
    let only = values.pop()?;
    values.is_empty().then_some(only)
}

/// Parses the value at the beginning of a text, and returns it with the rest.
pub(crate) fn first(text: &str) -> Option<(Value, &str)> {
    let mut reader = Reader::new(text);
    let value = reader.value(0)?;
    Some((value, reader.rest))
}

/// Parses a text that is in this many layers of strings.
fn layer(text: &str, number: usize) -> Option<Value> {
    let text = unfenced(text.trim_start_matches('\u{feff}').trim());
    if text.is_empty() {
        return Some(Value::Object(Map::new()));
    }
    let mut values = Reader::new(text).all()?;
    if values.len() > 1 {
        // Some servers send an empty object before the real one, or the same one twice.
        values.retain(|value| !is_nothing(value));
        values.dedup();
    }
    match (values.pop(), values.is_empty()) {
        (None, _) => Some(Value::Object(Map::new())),
        (Some(value), true) => meant(value, number),
        (Some(_), false) => None,
    }
}

fn meant(value: Value, number: usize) -> Option<Value> {
    match value {
        Value::Object(_) => Some(value),
        Value::Null => Some(Value::Object(Map::new())),
        Value::String(text) if number < LAYERS => layer(&text, number + 1),
        Value::Array(mut list) if list.len() <= 1 => match list.pop() {
            None => Some(Value::Object(Map::new())),
            Some(one @ Value::Object(_)) => Some(one),
            Some(_) => None,
        },
        _ => None,
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

/// The content of a Markdown fence that encloses the whole text.
fn unfenced(text: &str) -> &str {
    let fence = if text.starts_with("```") { "```" } else { "`" };
    let inner = text
        .strip_prefix(fence)
        .and_then(|text| text.strip_suffix(fence));
    let Some(inner) = inner else {
        return text;
    };
    let inner = inner.trim_start();
    let word = inner.find(|c: char| !c.is_ascii_alphanumeric());
    let rest = word.map_or(inner, |end| &inner[end..]).trim();
    // The name of a language is not a value.
    if rest.starts_with(['{', '[', '"']) {
        rest
    } else {
        inner.trim()
    }
}

/// Parses values from a text.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// Parses all values up to the end. Superfluous closing brackets after them are ignored.
    fn all(mut self) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        loop {
            self.space();
            if self.rest.is_empty() {
                return Some(values);
            }
            if !values.is_empty() && self.rest.starts_with(['}', ']']) {
                let closing = |c: char| c.is_whitespace() || matches!(c, '}' | ']');
                return self.rest.chars().all(closing).then_some(values);
            }
            values.push(self.value(0)?);
        }
    }

    /// Skips blanks and JavaScript comments.
    fn space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let behind = if let Some(comment) = self.rest.strip_prefix("//") {
                comment.split_once('\n')
            } else if let Some(comment) = self.rest.strip_prefix("/*") {
                comment.split_once("*/")
            } else {
                None
            };
            match behind {
                Some((_, rest)) => self.rest = rest,
                None => return,
            }
        }
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.space();
        match self.rest.chars().next()? {
            _ if depth > DEPTH => None,
            '{' => self.members(depth),
            '[' => self.items(depth),
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            _ => self.word(),
        }
    }

    fn members(&mut self, depth: usize) -> Option<Value> {
        self.take('{').then_some(())?;
        let mut members = Map::new();
        while !self.take('}') {
            self.space();
            let name = match self.rest.chars().next()? {
                quote @ ('"' | '\'') => self.string(quote)?,
                _ => self.name()?,
            };
            self.take(':').then_some(())?;
            members.insert(name, self.value(depth + 1)?);
            if !self.take(',') {
                return self.take('}').then_some(Value::Object(members));
            }
        }
        Some(Value::Object(members))
    }

    /// Parses a member's unquoted name.
    fn name(&mut self) -> Option<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_name(c))?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn items(&mut self, depth: usize) -> Option<Value> {
        self.take('[').then_some(())?;
        let mut items = Vec::new();
        while !self.take(']') {
            items.push(self.value(depth + 1)?);
            if !self.take(',') {
                return self.take(']').then_some(Value::Array(items));
            }
        }
        Some(Value::Array(items))
    }

    /// Parses a number or a keyword, including Python's.
    fn word(&mut self) -> Option<Value> {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c));
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" | "True" => Some(Value::Bool(true)),
            "false" | "False" => Some(Value::Bool(false)),
            "null" | "None" => Some(Value::Null),
            number => serde_json::from_str::<Number>(number)
                .ok()
                .map(Value::Number),
        }
    }

    /// Parses a string, which may contain unescaped characters that JSON would escape.
    fn string(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        // The opening quote.
        chars.next()?;
        loop {
            let (at, c) = chars.next()?;
            match c {
                c if c == quote => {
                    self.rest = &self.rest[at + c.len_utf8()..];
                    return Some(text);
                }
                '\\' => {
                    let (escape, length) = escaped(&self.rest[at..])?;
                    text.push(escape);
                    // All of an escape is ASCII, or one character after the backslash.
                    for _ in 1..length {
                        chars.next()?;
                    }
                }
                c => text.push(c),
            }
        }
    }
}

/// Decodes the escape at a text's beginning, and returns its length in characters.
fn escaped(text: &str) -> Option<(char, usize)> {
    let plain = |c| Some((c, 2));
    match text.chars().nth(1)? {
        c @ ('"' | '\'' | '\\' | '/') => plain(c),
        'n' => plain('\n'),
        't' => plain('\t'),
        'r' => plain('\r'),
        'b' => plain('\u{8}'),
        'f' => plain('\u{c}'),
        'u' => unicode(text),
        _ => None,
    }
}

/// Decodes `\u` and four digits, or two of them that form one character.
fn unicode(text: &str) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let first = unit(0)?;
    let pair = |second| char::decode_utf16([first, second]).next()?.ok();
    if let Some(one) = char::from_u32(first.into()) {
        return Some((one, 6));
    }
    match unit(6).and_then(pair) {
        Some(one) => Some((one, 12)),
        // Half of a pair is not a character.
        None => Some((char::REPLACEMENT_CHARACTER, 6)),
    }
}
