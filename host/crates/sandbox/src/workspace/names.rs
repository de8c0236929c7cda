//! Encodes file names for JSON, which holds only UTF-8, and decodes them.
//!
//! # Invariants
//! - Two names never share an encoding, and each encoding decodes to its name.
//! - An escape stands for one byte of 0x80 or above: no slash, dot or NUL comes out of one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Begins an escape. It is escaped itself, so that it always begins one.
const MARK: char = '\u{fffd}';

/// Encodes a name for clients: unchanged, except for U+FFFD and two lower-case hex digits for each
/// byte that is not UTF-8.
pub(super) fn encode_name(name: &OsStr) -> String {
    if let Some(text) = name.to_str()
        && !text.contains(MARK)
    {
        return text.to_owned();
    }
    let mut spelled = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == MARK {
                escape(MARK.encode_utf8(&mut [0; 4]).as_bytes(), &mut spelled);
            } else {
                spelled.push(c);
            }
        }
        escape(chunk.invalid(), &mut spelled);
    }
    spelled
}

fn escape(bytes: &[u8], spelled: &mut String) {
    for byte in bytes {
        spelled.push_str(&format!("{MARK}{byte:02x}"));
    }
}

/// Decodes a name. A mark that begins no escape stands for itself.
pub(super) fn decode_name(spelled: &str) -> OsString {
    let mut bytes = Vec::with_capacity(spelled.len());
    let mut rest = spelled;
    while let Some(at) = rest.find(MARK) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + MARK.len_utf8()..];
        match escaped(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[2..];
            }
            None => bytes.extend_from_slice(MARK.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    OsString::from_vec(bytes)
}

fn escaped(rest: &str) -> Option<u8> {
    let digits = rest.get(..2)?;
    let lower_case = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (digits.bytes().all(lower_case) && byte >= 0x80).then_some(byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_utf8_is_spelled_as_it_is_and_what_is_not_by_its_bytes() {
        let spelled = |bytes: &[u8]| encode_name(OsStr::from_bytes(bytes));
        assert_eq!(spelled("café\\x41 %41".as_bytes()), "café\\x41 %41");
        assert_eq!(spelled(b"caf\xe9.txt"), "caf\u{fffd}e9.txt");
        assert_eq!(
            spelled("\u{fffd}e9".as_bytes()),
            "\u{fffd}ef\u{fffd}bf\u{fffd}bde9"
        );
    }

    #[test]
    fn no_escape_gives_a_byte_that_leads_elsewhere() {
        for text in [
            "\u{fffd}2f",
            "\u{fffd}2e\u{fffd}2e",
            "\u{fffd}00",
            "\u{fffd}E9",
            "\u{fffd}é",
        ] {
            assert_eq!(decode_name(text), OsStr::new(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_spelling_reads_back_as_its_name(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xef), Just(0xbf), Just(0xbd), Just(b'e')], 0..40),
        ) {
            let name = OsStr::from_bytes(&bytes);
            prop_assert_eq!(decode_name(&encode_name(name)), name);
        }
    }
}
