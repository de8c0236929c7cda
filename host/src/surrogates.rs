//! Replaces halves of UTF-16 surrogate pairs in JSON text, before it is parsed.
//!
//! JSON lets a string say `"\ud83d"`, half a character, and JavaScript writes it that way when a text was
//! cut between the halves; serde refuses the whole document for it. A half becomes U+FFFD here, as a
//! browser shows it.
//!
//! # Invariants
//! - A document that serde reads is not changed by one byte.
//! - Nothing but halves is changed: what was invalid for another reason stays invalid.
//! - Text keeps its length, so the positions in a parser's messages hold.

use std::borrow::Cow;

/// `\uXXXX`.
const ESCAPE: usize = 6;
/// What stands for half a pair: U+FFFD as an escape, and as UTF-8.
const ESCAPED_REPLACEMENT: &str = "\\ufffd";
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The document with each half of a pair replaced.
pub fn replace(json: &str) -> Cow<'_, str> {
    let mut rest = 0;
    let mut replaced = String::new();
    for at in halves(json.as_bytes()) {
        replaced.push_str(&json[rest..at]);
        replaced.push_str(ESCAPED_REPLACEMENT);
        rest = at + ESCAPE;
    }
    if rest == 0 {
        return Cow::Borrowed(json);
    }
    replaced.push_str(&json[rest..]);
    Cow::Owned(replaced)
}

/// The same for bytes that may not be UTF-8 because halves stand in them unescaped, each as the three
/// bytes that UTF-8 would have for it if it had any.
pub fn replace_in_bytes(json: &[u8]) -> Cow<'_, [u8]> {
    let escaped: Vec<usize> = halves(json).collect();
    let raw: Vec<usize> = raw_halves(json).collect();
    if escaped.is_empty() && raw.is_empty() {
        return Cow::Borrowed(json);
    }
    let mut replaced = json.to_vec();
    for at in escaped {
        replaced[at..at + ESCAPE].copy_from_slice(ESCAPED_REPLACEMENT.as_bytes());
    }
    for at in raw {
        replaced[at..at + REPLACEMENT.len()].copy_from_slice(REPLACEMENT);
    }
    Cow::Owned(replaced)
}

/// Where an escape stands that is half a pair without its other half.
fn halves(json: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            at += json.get(at..)?.iter().position(|byte| *byte == b'\\')?;
            let here = at;
            // A backslash outside of a string is no JSON, and is none afterwards either.
            match (code_unit(json, here), code_unit(json, here + ESCAPE)) {
                (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => at += 2 * ESCAPE,
                (Some(0xd800..=0xdfff), _) => {
                    at += ESCAPE;
                    return Some(here);
                }
                (Some(_), _) => at += ESCAPE,
                // The character behind it is escaped, another backslash perhaps.
                (None, _) => at += 2,
            }
        }
    })
}

/// The UTF-16 code unit that is escaped here, where one is.
fn code_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + ESCAPE)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// Where half a pair stands as it is. No UTF-8 has these bytes.
fn raw_halves(json: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let windows = json.windows(REPLACEMENT.len()).enumerate();
    windows
        .filter_map(|(at, window)| matches!(window, [0xed, 0xa0..=0xbf, 0x80..=0xbf]).then_some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn read(json: &str) -> String {
        serde_json::from_str(&replace(json)).unwrap()
    }

    #[test]
    fn half_a_pair_becomes_the_replacement_character_and_a_pair_stays_its_character() {
        for (json, text) in [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""\uDE00""#, "\u{fffd}"),
            (r#""a\ud83db""#, "a\u{fffd}b"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\uD83D\uDE00\ud83d""#, "😀\u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
            (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
            (r#""\ud83dx\ude00""#, "\u{fffd}x\u{fffd}"),
            (r#""\ud83d\n""#, "\u{fffd}\n"),
            (r#""\ud83d\u0041""#, "\u{fffd}A"),
            (r#""\ud83d\\ude00""#, "\u{fffd}\\ude00"),
        ] {
            assert_eq!(read(json), text, "{json}");
        }
    }

    #[test]
    fn an_escaped_backslash_before_a_u_is_no_escape() {
        for (json, text) in [
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""\\\\ud83d""#, "\\\\ud83d"),
            (r#""\"\ud83d\"""#, "\"\u{fffd}\""),
        ] {
            assert_eq!(read(json), text, "{json}");
        }
    }

    #[test]
    fn a_members_name_is_a_text_like_any_other() {
        let read: Value = serde_json::from_str(&replace(r#"{"\ud83d":["\udc00"]}"#)).unwrap();
        assert_eq!(read, serde_json::json!({"\u{fffd}": ["\u{fffd}"]}));
    }

    #[test]
    fn what_is_no_json_for_another_reason_stays_none() {
        for json in [
            r#""\ud83"#,
            r#""\u"#,
            r#""\"#,
            "\\ud83d",
            r#"{"a":\ud83d}"#,
            "",
            r#""\ud8zz""#,
        ] {
            let replaced = replace(json);
            assert!(serde_json::from_str::<Value>(&replaced).is_err(), "{json}");
        }
    }

    #[test]
    fn half_a_pair_in_bytes_is_found_unescaped_too() {
        for (bytes, text) in [
            (&b"\"\xed\xa0\xbd\""[..], "\u{fffd}"),
            (b"\"a\xed\xb8\x80\\ud83d\"", "a\u{fffd}\u{fffd}"),
            ("\"\u{d7ff}\u{e000}\"".as_bytes(), "\u{d7ff}\u{e000}"),
        ] {
            let read: String = serde_json::from_slice(&replace_in_bytes(bytes)).unwrap();
            assert_eq!(read, text);
        }
        // Other bytes that are no UTF-8 stay what they are.
        assert_eq!(&*replace_in_bytes(b"\"\xff\xed\""), b"\"\xff\xed\"");
    }

    /// Pieces that meet in every way: halves, pairs, escapes and backslashes.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\\ud83d".to_owned()),
            Just("\\uDE00".to_owned()),
            Just("\\u0041".to_owned()),
            Just("\\\\".to_owned()),
            Just("\\\"".to_owned()),
            Just("\\n".to_owned()),
            Just("ud83d".to_owned()),
            "[a-f0-9u]{1,4}",
            "[^\"\\\\\\x00-\\x1f]{1,3}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|all| format!("\"{}\"", all.concat()))
    }

    proptest! {
        #[test]
        fn every_string_can_be_read_and_what_could_be_read_is_not_changed(json in pieces()) {
            let replaced = replace(&json);
            let read = serde_json::from_str::<String>(&replaced);
            prop_assert!(read.is_ok(), "{} of {}", replaced, json);
            if serde_json::from_str::<String>(&json).is_ok() {
                prop_assert_eq!(&*replaced, &*json);
            }
            prop_assert_eq!(replaced.len(), json.len());
            prop_assert_eq!(&*replace(&replaced), &*replaced);
            prop_assert_eq!(&*replace_in_bytes(json.as_bytes()), replaced.as_bytes());
        }

        #[test]
        fn any_text_that_serde_reads_is_not_changed(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(&*replace(&json), &*json);
            let ascii: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            let json = format!("\"{ascii}\"");
            prop_assert_eq!(&*replace(&json), &*json);
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }

        #[test]
        fn any_bytes_keep_their_length_and_what_serde_says_of_them(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let replaced = replace_in_bytes(&bytes);
            prop_assert_eq!(replaced.len(), bytes.len());
            if serde_json::from_slice::<Value>(&bytes).is_ok() {
                prop_assert_eq!(&*replaced, &bytes[..]);
            }
        }
    }
}
