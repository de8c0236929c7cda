//! Makes sentences of errors, whose own text begins in lower case and has no full stop.

use std::fmt::Display;

/// The text as a sentence: with a capital and a full stop, as far as it lacks them.
pub fn sentence(text: impl Display) -> String {
    let text = full_stop(text);
    let mut rest = text.chars();
    match rest.next() {
        Some(first) if first.is_lowercase() => first.to_uppercase().chain(rest).collect(),
        _ => text,
    }
}

/// The text as the end of a sentence: with a full stop, unless it ends one already.
pub fn full_stop(text: impl Display) -> String {
    let mut text = text.to_string();
    if !text.ends_with(['.', '!', '?', '…']) {
        text.push('.');
    }
    text
}

/// The text as a sentence, and behind it what its reader can do, a sentence already.
pub fn with_advice(text: impl Display, advice: Option<&str>) -> String {
    let mut text = sentence(text);
    if let Some(advice) = advice {
        text.push(' ');
        text.push_str(advice);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capital_and_a_full_stop_are_added_where_they_are_missing() {
        assert_eq!(sentence("it is gone"), "It is gone.");
        assert_eq!(sentence("Is it gone?"), "Is it gone?");
        assert_eq!(sentence("`x` is no name"), "`x` is no name.");
        assert_eq!(full_stop("it is gone"), "it is gone.");
        assert_eq!(sentence(""), ".");
    }

    #[test]
    fn advice_stands_behind_the_sentence() {
        let both = with_advice("it is gone", Some("Upload it again."));
        assert_eq!(both, "It is gone. Upload it again.");
        assert_eq!(with_advice("it is gone", None), "It is gone.");
    }
}
