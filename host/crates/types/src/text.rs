//! Truncating text.

/// Truncates a text to at most `most` characters.
pub fn cut(text: &str, most: usize) -> &str {
    // There are never fewer bytes than characters, so most texts need no counting.
    if text.len() <= most {
        text
    } else {
        text.char_indices()
            .nth(most)
            .map_or(text, |(at, _)| &text[..at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_on_a_characters_boundary() {
        assert_eq!(
            (cut("añb", 2), cut("añb", 3), cut("añb", 9), cut("", 0)),
            ("añ", "añb", "añb", "")
        );
    }
}
