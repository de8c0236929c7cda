//! Reads single values from TOML, and reports invalid ones.
//!
//! # Invariants
//!
//! - A problem is recorded with its position and reading continues, so one run reports all of them.
//! - A value is repeated only if it cannot be a key.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

use super::model::{Located, PluginSettings};
use super::problem::{LineIndex, ManifestProblem, ManifestProblems, SourcePosition, suggest};
use crate::config::time;

/// A key with its span.
pub(super) type SpannedKey<'i> = Spanned<std::borrow::Cow<'i, str>>;
/// A value with its span.
pub(super) type SpannedValue<'i> = Spanned<DeValue<'i>>;

/// The maximum size of a plugin's settings as JSON, in bytes: they are in the log of each session.
const LARGEST_SETTINGS: usize = 64 << 10;

/// Reads one manifest, and collects its problems.
pub(super) struct ManifestReader<'a> {
    pub(super) file: &'a Path,
    lines: LineIndex<'a>,
    problems: Vec<ManifestProblem>,
}

impl<'a> ManifestReader<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            lines: LineIndex::new(text),
            problems: Vec::new(),
        }
    }

    /// Fails if there was any problem.
    pub(super) fn finish(self) -> Result<(), ManifestProblems> {
        ManifestProblems::unless_none(self.problems)
    }

    pub(super) fn has_no_problems(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn at(&self, span: &Range<usize>) -> SourcePosition {
        self.lines.at(span)
    }

    pub(super) fn report(&mut self, span: &Range<usize>, what: impl AsRef<str>) {
        let at = self.at(span);
        self.report_at(at, what);
    }

    pub(super) fn report_at(&mut self, at: SourcePosition, what: impl AsRef<str>) {
        self.problems
            .push(ManifestProblem::at(Some(self.file), at, what));
    }

    /// Reports a value of the wrong type.
    fn report_type(&mut self, item: &SpannedValue<'_>, name: &str, what: &str) {
        let kind = kind(item.get_ref());
        self.report(
            &item.span(),
            format!("`{name}` must be {what}, and this is {kind}"),
        );
    }

    /// Reads a table with no other fields than these.
    pub(super) fn table<'d, 'i>(
        &mut self,
        item: &'d SpannedValue<'i>,
        name: &str,
        fields: &[&'static str],
    ) -> Option<&'d DeTable<'i>> {
        let table = self.any_table(item, name)?;
        self.reject_unknown_fields(table, name, fields);
        Some(table)
    }

    /// Reads a table whose fields are names.
    pub(super) fn any_table<'d, 'i>(
        &mut self,
        item: &'d SpannedValue<'i>,
        name: &str,
    ) -> Option<&'d DeTable<'i>> {
        if let DeValue::Table(table) = item.get_ref() {
            return Some(table);
        }
        self.report_type(item, name, "a table");
        None
    }

    /// Reports each field that is none of these.
    pub(super) fn reject_unknown_fields(
        &mut self,
        table: &DeTable<'_>,
        name: &str,
        fields: &[&'static str],
    ) {
        for key in table.keys() {
            let given = key.get_ref().as_ref();
            if !fields.contains(&given) {
                let of = if name.is_empty() {
                    "a manifest".to_owned()
                } else {
                    format!("`{name}`")
                };
                let instead = suggest(given, fields.iter().copied());
                self.report(
                    &key.span(),
                    format!("{of} has no field `{given}`; {instead}"),
                );
            }
        }
    }

    pub(super) fn text<'d>(
        &mut self,
        item: &'d SpannedValue<'_>,
        name: &str,
    ) -> Option<Located<&'d str>> {
        if let DeValue::String(text) = item.get_ref() {
            let at = self.at(&item.span());
            return Some(Located { value: text, at });
        }
        self.report_type(item, name, "a text in quotes");
        None
    }

    /// Reads a text that passes a test. `what` ends the sentence for one that does not.
    pub(super) fn text_matching<'d>(
        &mut self,
        item: &'d SpannedValue<'_>,
        name: &str,
        what: &str,
        fits: impl FnOnce(&str) -> bool,
    ) -> Option<Located<&'d str>> {
        let text = self.text(item, name)?;
        if fits(text.value) {
            return Some(text);
        }
        self.report(&item.span(), format!("`{name}` must be {what}"));
        None
    }

    /// Reads a list of texts that pass a test.
    pub(super) fn texts(
        &mut self,
        item: &SpannedValue<'_>,
        name: &str,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let texts = self.located_texts(item, name, what, fits)?;
        let owned = |text: Located<&str>| text.value.to_owned();
        Some(texts.into_iter().map(owned).collect())
    }

    /// [`Self::texts`], each with its position.
    pub(super) fn located_texts<'d>(
        &mut self,
        item: &'d SpannedValue<'_>,
        name: &str,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Vec<Located<&'d str>>> {
        let DeValue::Array(array) = item.get_ref() else {
            self.report_type(item, name, "a list in brackets");
            return None;
        };
        if array.iter().next().is_none() {
            let what = format!("`{name}` is empty: name something, or leave the field out");
            self.report(&item.span(), what);
            return None;
        }
        let texts = array
            .iter()
            .map(|item| self.text_matching(item, name, what, &fits));
        // Collected to the end, so that every problem is reported.
        let texts: Vec<_> = texts.collect();
        texts.into_iter().collect()
    }

    pub(super) fn boolean(&mut self, item: &SpannedValue<'_>, name: &str) -> Option<bool> {
        if let DeValue::Boolean(yes) = item.get_ref() {
            return Some(*yes);
        }
        self.report_type(item, name, "true or false");
        None
    }

    /// Reads an integer within bounds, or a size such as `64m` where one is accepted.
    pub(super) fn amount(
        &mut self,
        item: &SpannedValue<'_>,
        name: &str,
        within: &std::ops::RangeInclusive<u64>,
        read: Option<fn(&str) -> Option<u64>>,
    ) -> Option<u64> {
        let given = match (item.get_ref(), read) {
            (DeValue::Integer(number), _) => whole(number).and_then(|n| u64::try_from(n).ok()),
            (DeValue::String(text), Some(read)) => read(text),
            _ => {
                let what = if read.is_some() {
                    "a size such as \"64m\""
                } else {
                    "a whole number"
                };
                self.report_type(item, name, what);
                return None;
            }
        };
        let given = given.filter(|given| within.contains(given));
        if given.is_none() {
            let (least, most) = (within.start(), within.end());
            let unit = if read.is_some() { " bytes" } else { "" };
            self.report(
                &item.span(),
                format!("`{name}` must be from {least} to {most}{unit} on this host"),
            );
        }
        given
    }

    /// Reads a number that need not be an integer.
    pub(super) fn number(&mut self, item: &SpannedValue<'_>, name: &str) -> Option<f64> {
        match item.get_ref() {
            DeValue::Float(number) => float(number),
            // The precision lost beyond 15 digits does not matter for a price or a time.
            DeValue::Integer(number) => whole(number).map(|number| number as f64),
            _ => {
                self.report_type(item, name, "a number");
                return None;
            }
        }
        .filter(|number| number.is_finite())
        .or_else(|| {
            self.report(
                &item.span(),
                format!("`{name}` must be a number that can be counted with"),
            );
            None
        })
    }

    /// Reads a duration within bounds: a number of seconds, or a text such as `"5m"`.
    pub(super) fn seconds(
        &mut self,
        item: &SpannedValue<'_>,
        name: &str,
        least: f64,
        most: f64,
    ) -> Option<Duration> {
        let given = match item.get_ref() {
            DeValue::String(text) => time(text),
            DeValue::Integer(_) | DeValue::Float(_) => Some(self.number(item, name)?),
            _ => None,
        };
        let Some(given) = given else {
            self.report_type(
                item,
                name,
                "a time: a number of seconds, or a text such as \"90s\" or \"5m\"",
            );
            return None;
        };
        let fits = (least..=most).contains(&given);
        let seconds = fits.then(|| Duration::try_from_secs_f64(given).ok());
        seconds.flatten().or_else(|| {
            let what = format!("`{name}` must be from {least} to {most} seconds on this host");
            self.report(&item.span(), what);
            None
        })
    }

    /// Reads a plugin's settings and converts them to JSON.
    pub(super) fn settings(
        &mut self,
        key: &SpannedKey<'_>,
        item: &SpannedValue<'_>,
        name: &str,
    ) -> Option<PluginSettings> {
        let table = self.any_table(item, name)?;
        let mut places = BTreeMap::new();
        let values = self.object(table, "", &mut places)?;
        let at = self.at(&key.span());
        let size = serde_json::to_string(&values).map_or(0, |text| text.len());
        if size > LARGEST_SETTINGS {
            self.report_at(
                at,
                format!("`{name}` has {size} bytes as JSON, and {LARGEST_SETTINGS} are allowed"),
            );
            return None;
        }
        Some(PluginSettings { values, at, places })
    }

    pub(super) fn object(
        &mut self,
        table: &DeTable<'_>,
        pointer: &str,
        places: &mut BTreeMap<String, SourcePosition>,
    ) -> Option<Map<String, Value>> {
        let mut all = Some(Map::new());
        for (key, item) in table {
            let escaped = key.get_ref().replace('~', "~0").replace('/', "~1");
            let pointer = format!("{pointer}/{escaped}");
            places.insert(pointer.clone(), self.at(&key.span()));
            match (self.json(item, &pointer, places), &mut all) {
                (Some(value), Some(all)) => {
                    all.insert(key.get_ref().as_ref().to_owned(), value);
                }
                _ => all = None,
            }
        }
        all
    }

    /// Converts a value to JSON. The recursion ends, since the parser limits the nesting depth.
    fn json(
        &mut self,
        item: &SpannedValue<'_>,
        pointer: &str,
        places: &mut BTreeMap<String, SourcePosition>,
    ) -> Option<Value> {
        let value = match item.get_ref() {
            DeValue::String(text) => Some(Value::from(text.as_ref())),
            DeValue::Boolean(yes) => Some(Value::from(*yes)),
            DeValue::Integer(number) => whole(number).map(Value::from),
            DeValue::Float(number) => float(number).and_then(Number::from_f64).map(Value::Number),
            DeValue::Datetime(_) => None,
            DeValue::Array(array) => {
                let mut all = Some(Vec::new());
                for (index, item) in array.iter().enumerate() {
                    let pointer = format!("{pointer}/{index}");
                    places.insert(pointer.clone(), self.at(&item.span()));
                    match (self.json(item, &pointer, places), &mut all) {
                        (Some(value), Some(all)) => all.push(value),
                        _ => all = None,
                    }
                }
                // A problem in it was reported there.
                return all.map(Value::Array);
            }
            DeValue::Table(table) => return self.object(table, pointer, places).map(Value::Object),
        };
        if value.is_none() {
            let what = format!(
                "{} cannot be a setting: settings are JSON, which has texts, numbers, true and false",
                kind(item.get_ref())
            );
            self.report(&item.span(), what);
        }
        value
    }
}

/// A field of a table.
pub(super) fn field<'d, 'i>(
    table: &'d DeTable<'i>,
    name: &str,
) -> Option<(&'d SpannedKey<'i>, &'d SpannedValue<'i>)> {
    table.get_key_value(name)
}

fn whole(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn float(number: &DeFloat<'_>) -> Option<f64> {
    let given: f64 = number.as_str().parse().ok()?;
    given.is_finite().then_some(given)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
