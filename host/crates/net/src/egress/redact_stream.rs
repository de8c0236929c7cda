//! Redacts a key from a model's response: from deltas as they stream, and from the complete
//! response.
//!
//! # Invariants
//! - The pieces shown of one text, joined, contain the key in none of the forms that [`Redactor`]
//!   knows, wherever the provider cut it.
//! - A text without the key is shown whole and in order.
//! - Of a delta, no more is held back than a suffix that may still become a key.

use std::collections::BTreeMap;

use super::redact::{REDACTED, Redactor};
use lucid_types::wit::llm::{Delta, ToolCallArguments, ToolCallStart};
use lucid_types::wit::types::Content;

/// The texts of one response that may end within a key. Each is concatenated on its own by the
/// client, so each has a held-back end of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text,
    Thinking,
    /// The arguments of the call with this id, redacted.
    Arguments(String),
}

impl Part {
    fn delta(self, text: String) -> Delta {
        match self {
            Self::Text => Delta::Text(text),
            Self::Thinking => Delta::Thinking(text),
            Self::Arguments(id) => {
                Delta::ToolCallArguments(ToolCallArguments { id, fragment: text })
            }
        }
    }
}

/// Redacts the key in the deltas of one response. A retried response needs a new one.
#[derive(Debug)]
pub struct StreamRedactor {
    redactor: Redactor,
    /// Undecided ends of texts; none of them is empty.
    undecided: BTreeMap<Part, String>,
}

impl StreamRedactor {
    /// Creates the state for one response.
    pub fn new(redactor: Redactor) -> Self {
        Self {
            redactor,
            undecided: BTreeMap::new(),
        }
    }

    /// The part of this delta, and of what was held back before it, that can be shown now.
    pub fn next(&mut self, delta: Delta) -> Option<Delta> {
        let (part, text) = match delta {
            Delta::Text(text) => (Part::Text, text),
            Delta::Thinking(text) => (Part::Thinking, text),
            Delta::ToolCallArguments(ToolCallArguments { mut id, fragment }) => {
                self.redactor.redact_response(&mut id);
                (Part::Arguments(id), fragment)
            }
            Delta::ToolCallStarted(ToolCallStart { mut id, mut name }) => {
                self.redactor.redact_response(&mut id);
                self.redactor.redact_response(&mut name);
                return Some(Delta::ToolCallStarted(ToolCallStart { id, name }));
            }
            Delta::Usage(usage) => return Some(Delta::Usage(usage)),
        };
        let text = match self.undecided.remove(&part) {
            Some(held) => held + &text,
            None => text,
        };
        let (redacted, held) = self.redactor.split_decided(&text);
        if !held.is_empty() {
            self.undecided.insert(part.clone(), held.to_owned());
        }
        // An empty delta is passed on as it came; one that is held back whole is not passed on yet.
        (held.is_empty() || !redacted.is_empty()).then(|| part.delta(redacted))
    }

    /// What is still held back at the end of the response: it turned out to be no key.
    pub fn finish(&mut self) -> Vec<Delta> {
        let held = std::mem::take(&mut self.undecided).into_iter();
        held.map(|(part, mut text)| {
            self.redactor.redact_response(&mut text);
            part.delta(text)
        })
        .collect()
    }
}

impl Redactor {
    /// Splits a text into its beginning, with the key redacted, and the rest, which may still
    /// become a form of the key.
    fn split_decided<'a>(&self, text: &'a str) -> (String, &'a str) {
        if !self.is_secret() {
            return (text.to_owned(), "");
        }
        let mut redacted = String::with_capacity(text.len());
        let mut at = 0;
        while let Some(next) = text[at..].chars().next() {
            let rest = &text[at..];
            let mut longest = 0;
            if self.may_begin(rest) {
                for form in self.forms() {
                    if form.len() > rest.len() && form.starts_with(rest) {
                        return (redacted, rest);
                    }
                    if form.len() > longest && rest.starts_with(form) {
                        longest = form.len();
                    }
                }
            }
            if longest > 0 {
                redacted.push_str(REDACTED);
                at += longest;
            } else {
                redacted.push(next);
                at += next.len_utf8();
            }
        }
        (redacted, "")
    }

    /// Redacts the key in one piece of a complete response. Only there is a key whole that was
    /// streamed in many pieces.
    pub fn content(&self, content: &mut Content) {
        match content {
            Content::Text(text) => self.redact_response(text),
            Content::Thinking(thinking) => {
                self.redact_response(&mut thinking.text);
                if let Some(signature) = &mut thinking.signature {
                    self.redact_response(signature);
                }
            }
            Content::ToolCall(call) => {
                self.redact_response(&mut call.id);
                self.redact_response(&mut call.name);
                self.redact_response(&mut call.arguments);
            }
            Content::ToolResult(result) => {
                self.redact_response(&mut result.call_id);
                self.redact_response(&mut result.text);
                for blob in &mut result.blobs {
                    self.redact_response(&mut blob.digest);
                    self.redact_response(&mut blob.media_type);
                }
            }
            Content::Image(blob) => {
                self.redact_response(&mut blob.digest);
                self.redact_response(&mut blob.media_type);
            }
            Content::Other(custom) => {
                self.redact_response(&mut custom.kind);
                self.redact_response(&mut custom.body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use url::form_urlencoded::byte_serialize;

    use super::*;
    use lucid_types::secret::Secret;
    use lucid_types::wit::types::{BlobRef, Custom, Thinking, ToolCall, ToolResult, Usage};

    const KEY: &str = "sk-a/b+c\"d?e>f~0123456789";

    fn redactor(key: &str) -> Redactor {
        Redactor::new(Some(&Secret::from(key)))
    }

    /// The text that a viewer has at the end.
    fn text_of(deltas: &[Delta]) -> String {
        let text = |delta: &Delta| match delta {
            Delta::Text(text) => Some(text.clone()),
            _ => None,
        };
        deltas.iter().filter_map(text).collect()
    }

    fn shown(showing: &mut StreamRedactor, pieces: impl IntoIterator<Item = String>) -> String {
        let mut deltas: Vec<Delta> = pieces
            .into_iter()
            .filter_map(|piece| showing.next(Delta::Text(piece)))
            .collect();
        deltas.extend(showing.finish());
        text_of(&deltas)
    }

    /// The text in pieces, cut between characters at these places.
    fn cut(text: &str, places: &[Index]) -> Vec<String> {
        let mut ends: Vec<usize> = places
            .iter()
            .map(|place| text.floor_char_boundary(place.index(text.len() + 1)))
            .collect();
        ends.push(text.len());
        ends.sort_unstable();
        let mut from = 0;
        ends.into_iter()
            .map(|end| text[std::mem::replace(&mut from, end)..end].to_owned())
            .collect()
    }

    /// Forms in which a key is written, and what must not be visible of each: in base64 the first
    /// and last characters of the key also depend on its neighbours.
    fn written(key: &str) -> Vec<(String, String)> {
        let plain = |text: String| (text.clone(), text);
        let url: String = byte_serialize(key.as_bytes()).collect();
        let json = serde_json::to_string(key).unwrap();
        let mut all = vec![
            plain(key.to_owned()),
            plain(url),
            plain(json[1..json.len() - 1].to_owned()),
        ];
        for spaced in [" ", "-"] {
            let chars: Vec<String> = key.chars().map(String::from).collect();
            all.push(plain(chars.join(spaced)));
        }
        all.push(plain(key.chars().rev().collect()));
        for before in ["", "x", "xy"] {
            let text = format!("{before}{key}");
            for encoded in [STANDARD.encode(&text), URL_SAFE.encode(&text)] {
                let inner = encoded.trim_end_matches('=');
                let inner = inner[4..inner.len() - 1].to_owned();
                all.push((encoded, inner));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn a_key_is_never_shown_however_it_is_written_and_wherever_it_is_cut(
            key in "[a-zA-Z0-9/+=?~&\"-]{14,40}",
            way in any::<Index>(),
            before in ".{0,20}",
            between in "[a-z ]{0,5}",
            after in ".{0,20}",
            places in vec(any::<Index>(), 0..60),
        ) {
            let ways = written(&key);
            let (written, never) = way.get(&ways);
            let text = format!("{before} {written} {between} {written}{after}");
            let seen = shown(&mut StreamRedactor::new(redactor(&key)), cut(&text, &places));
            prop_assert!(!seen.contains(never), "{text:?} was shown as {seen:?}");
            prop_assert!(seen.contains(REDACTED), "{text:?} was shown as {seen:?}");
        }

        #[test]
        fn a_text_without_a_key_comes_out_whole_and_in_order(
            // Full of beginnings of the key.
            words in vec(prop_oneof![
                (0..KEY.len()).prop_map(|end| KEY[..end].to_owned()),
                "[ -~ä€]{0,10}",
            ], 0..20),
            places in vec(any::<Index>(), 0..60),
        ) {
            let text = words.join(" ");
            prop_assume!(!text.contains(KEY));
            let pieces = cut(&text, &places);
            let mut showing = StreamRedactor::new(redactor(KEY));
            let (mut came, mut seen) = (String::new(), String::new());
            for piece in pieces {
                came.push_str(&piece);
                let delta = showing.next(Delta::Text(piece));
                seen.push_str(&text_of(delta.as_slice()));
                let held = came.strip_prefix(seen.as_str());
                let held = held.expect("what is shown is not the text's beginning");
                let begins = |form: &str| form.len() > held.len() && form.starts_with(held);
                prop_assert!(
                    held.is_empty() || redactor(KEY).forms().any(begins),
                    "{held:?} was held back for nothing"
                );
            }
            seen.push_str(&text_of(&showing.finish()));
            prop_assert_eq!(seen, text);
        }

        #[test]
        fn what_is_shown_in_pieces_is_what_the_whole_answer_says(
            words in vec(prop_oneof![Just(KEY.to_owned()), "[ -~]{0,8}"], 0..8),
            places in vec(any::<Index>(), 0..40),
        ) {
            let mut whole = words.concat();
            let seen = shown(&mut StreamRedactor::new(redactor(KEY)), cut(&whole, &places));
            redactor(KEY).redact_response(&mut whole);
            prop_assert_eq!(seen, whole);
        }
    }

    #[test]
    fn each_text_of_an_answer_has_its_own_end() {
        let (first, second) = KEY.split_at(9);
        let arguments = |id: &str, fragment: &str| {
            Delta::ToolCallArguments(ToolCallArguments {
                id: id.to_owned(),
                fragment: fragment.to_owned(),
            })
        };
        let usage = Delta::Usage(Usage {
            input_tokens: 1,
            output_tokens: 2,
            cache_read_tokens: 0,
            cache_write_tokens: 0,
        });
        let mut showing = StreamRedactor::new(redactor(KEY));
        for held in [
            Delta::Text(first.to_owned()),
            Delta::Thinking(first.to_owned()),
            arguments("a", first),
            arguments("b", first),
        ] {
            assert_eq!(showing.next(held.clone()), None, "{held:?}");
        }
        assert_eq!(showing.next(usage.clone()), Some(usage));
        let blank = || REDACTED.to_owned();
        for (delta, redacted) in [
            (arguments("b", second), arguments("b", REDACTED)),
            (Delta::Thinking(second.to_owned()), Delta::Thinking(blank())),
            (Delta::Text(second.to_owned()), Delta::Text(blank())),
        ] {
            assert_eq!(showing.next(delta), Some(redacted));
        }
        assert_eq!(showing.finish(), [arguments("a", first)]);
        assert_eq!(showing.finish(), []);
    }

    #[test]
    fn a_call_that_is_named_after_the_key_is_not_shown_so() {
        let mut showing = StreamRedactor::new(redactor(KEY));
        let started = Delta::ToolCallStarted(ToolCallStart {
            id: format!("call-{KEY}"),
            name: KEY.to_owned(),
        });
        let redacted = Delta::ToolCallStarted(ToolCallStart {
            id: format!("call-{REDACTED}"),
            name: REDACTED.to_owned(),
        });
        assert_eq!(showing.next(started), Some(redacted));
        let grown = Delta::ToolCallArguments(ToolCallArguments {
            id: format!("call-{KEY}"),
            fragment: "{}".to_owned(),
        });
        let redacted = Delta::ToolCallArguments(ToolCallArguments {
            id: format!("call-{REDACTED}"),
            fragment: "{}".to_owned(),
        });
        assert_eq!(showing.next(grown), Some(redacted));
    }

    #[test]
    fn a_placeholder_that_is_no_secret_is_shown_at_once() {
        let mut showing = StreamRedactor::new(redactor("ollama"));
        let said = || Delta::Text("ask oll".to_owned());
        assert_eq!(showing.next(said()), Some(said()));
    }

    #[test]
    fn no_piece_of_a_whole_answer_keeps_the_key() {
        let key = || format!("it is {KEY}");
        let blob = || BlobRef {
            digest: key(),
            media_type: key(),
            size: 1,
        };
        let all = [
            Content::Text(key()),
            Content::Image(blob()),
            Content::Thinking(Thinking {
                text: key(),
                signature: Some(key()),
            }),
            Content::ToolCall(ToolCall {
                id: key(),
                name: key(),
                arguments: key(),
            }),
            Content::ToolResult(ToolResult {
                call_id: key(),
                is_error: false,
                text: key(),
                exit_code: None,
                blobs: vec![blob()],
            }),
            Content::Other(Custom {
                kind: key(),
                body: key(),
            }),
        ];
        for mut content in all {
            redactor(KEY).content(&mut content);
            let text = format!("{content:?}");
            assert!(!text.contains("0123456789"), "{text}");
            assert!(text.contains(REDACTED), "{text}");
        }
    }
}
