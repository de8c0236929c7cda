//! Reads a provider's JSON, even if a string holds half a surrogate pair.
//!
//! Servers split a response between code units and write each half of a pair as an escape of its
//! own, so that one fragment ends with the first half and the next one begins with the second. A
//! Rust string cannot hold a half, and `serde_json` refuses it.
//!
//! # Invariants
//!
//! - Two halves that follow each other in one text become their character, wherever the text was
//!   split.
//! - A lone half becomes U+FFFD.
//! - Neither is an error.

use std::borrow::Cow;

use serde_json::Value;

/// The mark for the first of the 2048 surrogate halves: the last characters of the last private
/// plane. They are read as halves only in a text in which halves were found.
const FIRST_MARK: u32 = 0x10_F800;
const FIRST_HALF: u32 = 0xD800;
const FIRST_LOW: u32 = 0xDC00;
const LAST_HALF: u32 = 0xDFFF;

/// A piece of a response.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponsePiece {
    /// Its value, whose texts are to be passed to a [`Joiner`] or to [`mended`].
    pub value: Value,
    /// Whether halves are marked in it.
    pub marked: bool,
}

/// Parses a piece of a response.
pub fn piece(text: &str) -> Result<ResponsePiece, serde_json::Error> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(ResponsePiece {
            value,
            marked: false,
        }),
        Err(error) => match without_halves(text, mark) {
            Cow::Borrowed(_) => Err(error),
            Cow::Owned(text) => Ok(ResponsePiece {
                value: serde_json::from_str(&text)?,
                marked: true,
            }),
        },
    }
}

/// Parses JSON that is complete, or none of whose texts continues elsewhere.
pub fn whole(text: &str) -> Result<Value, serde_json::Error> {
    piece(text).map(|piece| mended(piece.value, piece.marked))
}

/// A tool's arguments, which are JSON within a JSON string: a lone half in them is replaced.
pub fn arguments(text: String) -> String {
    match without_halves(&text, |_| char::REPLACEMENT_CHARACTER) {
        Cow::Borrowed(_) => text,
        Cow::Owned(mended) => mended,
    }
}

/// The value with pairs joined and lone halves replaced.
pub fn mended(value: Value, marked: bool) -> Value {
    if !marked {
        return value;
    }
    match value {
        Value::String(text) => Value::String(joined(&text)),
        Value::Array(items) => items.into_iter().map(|item| mended(item, true)).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, member)| (joined(&name), mended(member, true)))
            .collect(),
        other => other,
    }
}

fn joined(text: &str) -> String {
    let mut joiner = Joiner::default();
    let mut joined = joiner.push(text, true);
    joined.push_str(joiner.rest());
    joined
}

/// Joins a text that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct Joiner {
    /// The first half of a pair, waiting for the second.
    high: Option<u32>,
}

impl Joiner {
    /// Returns what is complete of the text after this piece. `marked` is as in [`ResponsePiece`].
    pub fn push(&mut self, piece: &str, marked: bool) -> String {
        if self.high.is_none() && !marked {
            return piece.to_owned();
        }
        let mut known = String::with_capacity(piece.len());
        for c in piece.chars() {
            let half = marked.then(|| half(c)).flatten();
            match (self.high.take(), half) {
                (Some(high), Some(low)) if low >= FIRST_LOW => known.push(pair(high, low)),
                (before, half) => {
                    if before.is_some() {
                        known.push(char::REPLACEMENT_CHARACTER);
                    }
                    match half {
                        None => known.push(c),
                        Some(high) if high < FIRST_LOW => self.high = Some(high),
                        Some(_) => known.push(char::REPLACEMENT_CHARACTER),
                    }
                }
            }
        }
        known
    }

    /// Returns the remainder at the end of the text.
    pub fn rest(&mut self) -> &'static str {
        match self.high.take() {
            Some(_) => "\u{FFFD}",
            None => "",
        }
    }
}

fn mark(half: u32) -> char {
    char::from_u32(FIRST_MARK + half - FIRST_HALF).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn half(mark: char) -> Option<u32> {
    let after = u32::from(mark).checked_sub(FIRST_MARK)?;
    let half = FIRST_HALF + after;
    (half <= LAST_HALF).then_some(half)
}

fn pair(high: u32, low: u32) -> char {
    let c = 0x1_0000 + ((high - FIRST_HALF) << 10) + (low - FIRST_LOW);
    char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// JSON text in which each escape of an unpaired half is replaced.
fn without_halves(text: &str, replaced: fn(u32) -> char) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut from, mut at) = (0, 0);
    while let Some(next) = text[at..].find('\\') {
        at += next;
        let Some(unit) = escaped(&text[at..]) else {
            // Another escape, whose second byte may be a backslash.
            at += 1;
            at += text[at..].chars().next().map_or(0, char::len_utf8);
            continue;
        };
        let is_half = (FIRST_HALF..=LAST_HALF).contains(&unit);
        let paired = unit < FIRST_LOW
            && escaped(&text[at + 6..]).is_some_and(|low| (FIRST_LOW..=LAST_HALF).contains(&low));
        if is_half && !paired {
            out.push_str(&text[from..at]);
            out.push(replaced(unit));
            from = at + 6;
        }
        at += if is_half && paired { 12 } else { 6 };
    }
    if from == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[from..]);
    Cow::Owned(out)
}

/// The code unit of an escape like `\u00e4` at the text's beginning.
fn escaped(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[&str]) -> String {
        let mut joiner = Joiner::default();
        let mut all = String::new();
        for text in pieces {
            let piece = piece(text).unwrap();
            all.push_str(&joiner.push(piece.value.as_str().unwrap(), piece.marked));
        }
        all.push_str(joiner.rest());
        all
    }

    #[test]
    fn a_pair_that_was_cut_is_one_character_again() {
        assert_eq!(texts(&[r#""a\ud83d""#, r#""\ude00b""#]), "a😀b");
        assert_eq!(texts(&[r#""a\uD83D""#, r#""""#, r#""\uDE00b""#]), "a😀b");
        assert_eq!(texts(&[r#""\ud83d\ude00\ud83d""#, r#""\ude00""#]), "😀😀");
    }

    #[test]
    fn a_half_that_stays_alone_is_a_replacement_character() {
        assert_eq!(texts(&[r#""a\ud83d""#]), "a\u{FFFD}");
        assert_eq!(texts(&[r#""a\ud83d""#, r#""b""#]), "a\u{FFFD}b");
        assert_eq!(
            texts(&[r#""\ude00\ud83dx\ud83d\ud83d\ude00""#]),
            "\u{FFFD}\u{FFFD}x\u{FFFD}😀"
        );
        assert_eq!(whole(r#"{"a":["\ude00"]}"#).unwrap()["a"][0], "\u{FFFD}");
        assert_eq!(
            arguments(r#"{"a":"\ud83d"}"#.into()),
            "{\"a\":\"\u{FFFD}\"}"
        );
    }

    #[test]
    fn what_only_looks_like_a_half_stays() {
        for text in [
            r#""\\ud83d""#,
            r#""\u00e4\n\"\\""#,
            "\"\u{10F83D}\u{10FFFF}\"",
            r#""\ud83d\ude00""#,
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(texts(&[text]), expected.as_str().unwrap(), "{text}");
        }
        assert!(piece("{").is_err() && piece(r#"{"a":"\ud83d""#).is_err());
        for broken in [r"\", r"\u", r"\ud8", r#""\u12"#, "\"\\ü"] {
            assert!(piece(broken).is_err(), "{broken}");
        }
    }
}
