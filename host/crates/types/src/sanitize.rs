//! Sanitizes text from a guest or a provider for display.
//!
//! # Invariants
//!
//! - The result has no control characters (line breaks and tabs become spaces), no bidirectional
//!   overrides, and no more than the requested length.

/// Sanitizes a text and truncates it to `most` characters, including the truncation mark.
pub fn sanitize(text: &str, most: usize) -> String {
    let mut output = String::with_capacity(text.len().min(most));
    let mut count = 0;
    for c in text.chars() {
        let c = match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
            c if c.is_control() || turns(c) => continue,
            c => c,
        };
        if count == most {
            output.pop();
            output.push('…');
            break;
        }
        output.push(c);
        count += 1;
    }
    output
}

/// Whether a character changes how its neighbours are displayed rather than being visible itself.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{sanitize, turns};

    #[test]
    fn control_characters_are_gone_and_line_breaks_are_spaces() {
        assert_eq!(
            sanitize("a\x1b[31mb\nc\u{202e}d\0", 100),
            "a[31mb cd".to_owned()
        );
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_and_says_so() {
        assert_eq!(sanitize("ääää", 4), "ääää");
        assert_eq!(sanitize("äääää", 4), "äää…");
        assert_eq!(sanitize("abc", 0), "…");
    }

    proptest! {
        #[test]
        fn any_text_is_cut_and_has_nothing_that_is_not_seen(text in any::<String>(), most in 1..40_usize) {
            let clean = sanitize(&text, most);
            prop_assert!(clean.chars().count() <= most);
            prop_assert!(!clean.chars().any(|c| c.is_control() || turns(c)), "{:?}", clean);
        }
    }
}
