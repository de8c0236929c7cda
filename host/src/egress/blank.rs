//! Owns how a key is taken out of what a provider sent back.
//!
//! What always holds: what comes out does not contain the key, neither as it is nor as it looks in a
//! URL, nor its beginning at the end of a text that was cut.

use secrecy::{ExposeSecret, SecretString};
use url::form_urlencoded::byte_serialize;

const BLANK: &str = "[secret]";

/// The text without the key.
pub fn blank(text: &str, key: Option<&SecretString>) -> String {
    let Some(key) = key
        .map(ExposeSecret::expose_secret)
        .filter(|key| !key.is_empty())
    else {
        return text.to_owned();
    };
    let quoted: String = byte_serialize(key.as_bytes()).collect();
    let text = text.replace(key, BLANK);
    if quoted == key {
        text
    } else {
        text.replace(&quoted, BLANK)
    }
}

/// A body that was read up to some point, without the key, cut to `most` bytes. Bytes that are not
/// UTF-8 are replaced.
pub(super) fn blank_body(body: &[u8], key: Option<&SecretString>, most: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(body);
    let mut text = blank(&text, key);
    if let Some(key) = key.map(ExposeSecret::expose_secret) {
        // A cut may have left a piece of the key at the very end.
        let ends = key.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
        let left = ends.rev().find(|end| text.ends_with(&key[..*end]));
        text.truncate(text.len() - left.unwrap_or(0));
    }
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.into_bytes()
}

/// How many bytes more than wanted must be read, so that no part of a key is left at a cut.
pub(super) fn margin(key: Option<&SecretString>) -> usize {
    // Percent-encoding makes three bytes of one.
    key.map_or(0, |key| key.expose_secret().len() * 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_blanked_as_it_is_and_as_it_looks_in_a_url() {
        let key = SecretString::from("sk-a/b+c");
        let said = blank("bad key sk-a/b+c (url ?key=sk-a%2Fb%2Bc)", Some(&key));
        assert_eq!(said, "bad key [secret] (url ?key=[secret])");
    }

    #[test]
    fn no_part_of_a_key_is_left_wherever_a_body_is_cut() {
        let key = SecretString::from("sk-12345678");
        let whole = b"sk-12345678 and again sk-12345678, that was it";
        for read in 0..=whole.len() {
            for most in 0..=read {
                let body = blank_body(&whole[..read], Some(&key), most);
                let text = String::from_utf8(body).unwrap();
                assert!(!text.contains("sk-1"), "{read} {most}: {text}");
            }
        }
    }

    #[test]
    fn without_a_key_nothing_is_changed() {
        assert_eq!(blank("text", None), "text");
        assert_eq!(blank("text", Some(&SecretString::from(""))), "text");
    }
}
