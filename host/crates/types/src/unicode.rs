//! Converts almost-Unicode input to Unicode: output of programs, and JSON of other people's
//! servers.
//!
//! # Invariants
//!
//! - Two adjacent halves of a surrogate pair become their character, and anything that is not a
//!   character becomes U+FFFD. All else stays as it is.
//! - Where the input is split makes no difference, and no more than twelve bytes are held back.

use std::borrow::Cow;

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Decodes bytes that may not be UTF-8, such as a program's output.
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut text = Utf8Decoder::default();
            let mut decoded = text.push(bytes);
            decoded.push_str(&text.finish());
            Cow::Owned(decoded)
        }
    }
}

/// The beginning of a byte sequence.
enum SequenceStart {
    /// A character, and its length in bytes.
    Char(char, usize),
    /// This many bytes that are not a character.
    Bad(usize),
    /// The beginning of a character or of a surrogate pair, which may be continued.
    Cut,
}

/// Decodes half of a surrogate pair that is encoded as if it were a character in UTF-8.
fn surrogate(bytes: &[u8]) -> Option<u16> {
    match *bytes {
        [0xed, two @ 0xa0..=0xbf, three @ 0x80..=0xbf, ..] => {
            Some(0xd000 | u16::from(two & 0x3f) << 6 | u16::from(three & 0x3f))
        }
        _ => None,
    }
}

/// Decodes the first character of a non-empty byte sequence.
fn next(bytes: &[u8]) -> SequenceStart {
    if let Some(first) = surrogate(bytes) {
        let rest = &bytes[3..];
        let is_high = first < 0xdc00;
        let may_go_on = match *rest {
            [] | [0xed] => true,
            [0xed, two] => (0xb0..=0xbf).contains(&two),
            _ => false,
        };
        if is_high && may_go_on {
            return SequenceStart::Cut;
        }
        let pair = [first, surrogate(rest).unwrap_or_default()];
        return match char::decode_utf16(pair).next() {
            Some(Ok(c)) => SequenceStart::Char(c, 6),
            _ => SequenceStart::Bad(3),
        };
    }
    // Never split here if it is the beginning of half a pair.
    if matches!(*bytes, [0xed] | [0xed, 0xa0..=0xbf]) {
        return SequenceStart::Cut;
    }
    match std::str::from_utf8(&bytes[..bytes.len().min(4)]) {
        Ok(text) => first_of(text),
        Err(error) if error.valid_up_to() > 0 => {
            let text = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            first_of(text)
        }
        Err(error) => match error.error_len() {
            Some(length) => SequenceStart::Bad(length),
            None if bytes.len() < 4 => SequenceStart::Cut,
            None => SequenceStart::Bad(1),
        },
    }
}

fn first_of(text: &str) -> SequenceStart {
    match text.chars().next() {
        Some(c) => SequenceStart::Char(c, c.len_utf8()),
        None => SequenceStart::Bad(1),
    }
}

/// Decodes bytes that arrive in pieces.
#[derive(Debug, Default)]
pub struct Utf8Decoder {
    partial: Vec<u8>,
}

impl Utf8Decoder {
    /// Decodes what is complete after more bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            match next(rest) {
                SequenceStart::Char(c, length) => {
                    text.push(c);
                    rest = &rest[length..];
                }
                SequenceStart::Bad(length) => {
                    text.push(REPLACEMENT);
                    rest = &rest[length..];
                }
                SequenceStart::Cut => {
                    self.partial = rest.to_vec();
                    break;
                }
            }
        }
        text
    }

    /// Decodes the remainder when there are no more bytes.
    pub fn finish(&mut self) -> String {
        match std::mem::take(&mut self.partial).as_slice() {
            [] => String::new(),
            // Half a pair, followed by the beginning of something that is not its other half.
            [0xed, 0xa0..=0xaf, _, _, ..] => [REPLACEMENT, REPLACEMENT].iter().collect(),
            _ => REPLACEMENT.to_string(),
        }
    }
}

/// Repairs foreign JSON that arrives in pieces: escapes of half a surrogate pair, and bytes that
/// are not UTF-8.
#[derive(Debug, Default)]
pub struct JsonRepairer {
    partial: Vec<u8>,
    /// Keep bytes that are not UTF-8, unless they are half of a pair, so that their author gets an
    /// error.
    is_strict: bool,
}

impl JsonRepairer {
    /// Returns what is complete after more bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let mut json = Vec::with_capacity(all.len());
        let mut rest = all.as_slice();
        while let Some(first) = rest.first() {
            let (piece, length) = match (first, next(rest)) {
                (b'\\', _) => match escape(rest) {
                    Some(found) => found,
                    None => break,
                },
                (_, SequenceStart::Char(c, length)) if length == c.len_utf8() => {
                    (&rest[..length], length)
                }
                // A pair whose halves were encoded as characters.
                (_, SequenceStart::Char(c, length)) => {
                    json.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    (&[][..], length)
                }
                (_, SequenceStart::Bad(length)) if self.is_strict && surrogate(rest).is_none() => {
                    (&rest[..length], length)
                }
                (_, SequenceStart::Bad(length)) => ("\u{fffd}".as_bytes(), length),
                (_, SequenceStart::Cut) => break,
            };
            json.extend_from_slice(piece);
            rest = &rest[length..];
        }
        self.partial = rest.to_vec();
        json
    }

    /// Returns the remainder when there are no more bytes. It cannot be JSON, so it stays as it is.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

/// Repairs a complete JSON text.
pub fn readable_json(json: &[u8]) -> Cow<'_, [u8]> {
    whole(json, JsonRepairer::default())
}

/// Repairs only halves of pairs in a complete JSON text. It stays unreadable if it is not UTF-8 for
/// another reason.
pub fn paired_json(json: &[u8]) -> Cow<'_, [u8]> {
    let is_strict = true;
    let pieces = JsonRepairer {
        is_strict,
        ..JsonRepairer::default()
    };
    whole(json, pieces)
}

/// [`paired_json`] for a `str`.
pub fn paired_text(json: &str) -> Cow<'_, str> {
    match paired_json(json.as_bytes()) {
        Cow::Borrowed(_) => Cow::Borrowed(json),
        Cow::Owned(paired) => Cow::Owned(lossy(&paired).into_owned()),
    }
}

fn whole(json: &[u8], mut pieces: JsonRepairer) -> Cow<'_, [u8]> {
    let may_be_half = |bytes: &[u8]| matches!(bytes, [b'\\', b'u', b'd' | b'D']);
    if std::str::from_utf8(json).is_ok() && !json.windows(3).any(may_be_half) {
        return Cow::Borrowed(json);
    }
    let mut readable = pieces.push(json);
    readable.extend(pieces.finish());
    if readable == json {
        return Cow::Borrowed(json);
    }
    Cow::Owned(readable)
}

/// The replacement for an escape at the beginning, and the number of bytes it replaces. `None` if
/// that is not known yet.
fn escape(json: &[u8]) -> Option<(&[u8], usize)> {
    const LONE: &[u8] = b"\\ufffd";
    if *json.get(1)? != b'u' {
        return Some((&json[..2], 2));
    }
    let unit = |at: usize| {
        let digits = std::str::from_utf8(json.get(at..at + 4)?).ok()?;
        u16::from_str_radix(digits, 16).ok()
    };
    if json.len() < 6 {
        // A malformed escape is left for the parser to reject.
        let is_hex = json[2..].iter().all(u8::is_ascii_hexdigit);
        return (!is_hex).then_some((&json[..2], 2));
    }
    match unit(2) {
        Some(0xd800..=0xdbff) => match json.get(6..) {
            Some([] | [b'\\']) => None,
            Some([b'\\', b'u', rest @ ..]) if rest.len() < 4 => None,
            Some([b'\\', b'u', ..]) if matches!(unit(8), Some(0xdc00..=0xdfff)) => {
                Some((&json[..12], 12))
            }
            _ => Some((LONE, 6)),
        },
        Some(0xdc00..=0xdfff) => Some((LONE, 6)),
        Some(_) => Some((&json[..6], 6)),
        None => Some((&json[..2], 2)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_become_characters_and_halves_become_the_replacement() {
        assert_eq!(lossy(b"a\xed\xa0\xbd\xed\xb8\x80b"), "a\u{1f600}b");
        assert_eq!(lossy(b"a\xed\xa0\xbdb"), "a\u{fffd}b");
        assert_eq!(lossy(b"\xed\xb8\x80"), "\u{fffd}");
        assert_eq!(lossy(b"\xed\xa0\xbd\xed\xb8"), "\u{fffd}\u{fffd}");
        assert_eq!(
            lossy(b"\xed\xa0\xbd\xed\xa0\xbd\xed\xb8\x80"),
            "\u{fffd}\u{1f600}"
        );
        assert_eq!(lossy(b"\xff\xc3\xa9\xe9"), "\u{fffd}\u{e9}\u{fffd}");
        assert_eq!(
            lossy("\u{d7ff}\u{e000}\u{fffd}".as_bytes()),
            "\u{d7ff}\u{e000}\u{fffd}"
        );
    }

    #[test]
    fn json_with_half_a_pair_is_read() {
        let read = |json: &[u8]| -> String {
            let readable = readable_json(json);
            serde_json::from_slice(&readable)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&readable)))
        };
        assert_eq!(read(br#""a\ud83d b""#), "a\u{fffd} b");
        assert_eq!(read(br#""\ud83d\ude00""#), "\u{1f600}");
        assert_eq!(read(br#""\ude00\ud83d\n""#), "\u{fffd}\u{fffd}\n");
        assert_eq!(
            read(br#""\ud83d\ud83d\ude00\\ud83d""#),
            "\u{fffd}\u{1f600}\\ud83d"
        );
        assert_eq!(
            read(b"\"\xff \xed\xa0\xbd \xed\xa0\xbd\xed\xb8\x80 \xc3\xa9\""),
            "\u{fffd} \u{fffd} \u{1f600} \u{e9}"
        );
        for broken in [&br#""\u12"#[..], br#""\uzzzz""#, b"\"\\"] {
            assert_eq!(&*readable_json(broken), broken);
        }
    }

    #[test]
    fn what_a_client_sends_is_read_without_halves_and_stays_what_it_is_otherwise() {
        for (json, text) in [
            (r#""\\ud83d""#, "\\ud83d"),
            (r#""\\\ud83d""#, "\\\u{fffd}"),
            (r#""\"\uD83D\"""#, "\"\u{fffd}\""),
            (r#""\ud83dx\ude00""#, "\u{fffd}x\u{fffd}"),
            (r#""\uD83D\uDE00\ud83d""#, "\u{1f600}\u{fffd}"),
        ] {
            let read: String = serde_json::from_str(&paired_text(json)).unwrap();
            assert_eq!(read, text, "{json}");
        }
        let read: serde_json::Value =
            serde_json::from_str(&paired_text(r#"{"\ud83d":["\udc00"]}"#)).unwrap();
        assert_eq!(read, serde_json::json!({"\u{fffd}": ["\u{fffd}"]}));
        // JSON in another encoding is invalid, whoever sends it.
        assert_eq!(&*paired_json(b"\"\xff\xe9\""), b"\"\xff\xe9\"");
        assert_eq!(
            &*paired_json(b"\"\xff\xed\xa0\xbd\""),
            b"\"\xff\xef\xbf\xbd\""
        );
    }

    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"\xed\xa0\xbd"[..],
            b"\xed\xb8\x80",
            b"\xed",
            b"\xf0\x9f\x98\x80",
            b"\xf0\x9f",
            b"\xc3\xa9",
            b"\xff",
            b"a",
            br"\ud83d",
            br"\ude00",
            br"\\",
            br"\u00",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn where_bytes_are_cut_makes_no_difference(bytes in pieces(), cuts in prop::collection::vec(1..5_usize, 0..40)) {
            let (mut text, mut json) = (Utf8Decoder::default(), JsonRepairer::default());
            let (mut decoded, mut readable) = (String::new(), Vec::new());
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                decoded += &text.push(piece);
                readable.extend(json.push(piece));
                prop_assert!(text.partial.len() <= 12 && json.partial.len() <= 12);
                rest = more;
            }
            decoded += &text.finish();
            readable.extend(json.finish());
            prop_assert_eq!(decoded, lossy(&bytes));
            prop_assert_eq!(readable, &*readable_json(&bytes));
        }

        #[test]
        fn what_is_unicode_stays_as_it_is(text in any::<String>()) {
            let json = serde_json::to_vec(&text).unwrap();
            prop_assert!(matches!(readable_json(&json), Cow::Borrowed(_)));
            let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            let escaped = format!("\"{escaped}\"");
            prop_assert_eq!(&*paired_text(&escaped), &*escaped);
            let mut pieces = Utf8Decoder::default();
            prop_assert_eq!(pieces.push(text.as_bytes()) + &pieces.finish(), text);
        }
    }
}
