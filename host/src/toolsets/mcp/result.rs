//! Converts a server's results and tool descriptions to text for a model.
//!
//! # Invariants
//!
//! - Content that is not text is described in a sentence, never passed on.
//! - No character that changes how other text is displayed comes through, and no control character
//!   except line breaks and tabs.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

use lucid_types::sanitize::sanitize;

/// The maximum length of one line, in characters.
const LINE: usize = 100_000;
/// The maximum length of a name in a sentence, in characters.
const NAME: usize = 200;
/// The maximum number of blocks of a result that are read.
const BLOCKS: usize = 1_000;

/// Sanitizes a text of several lines.
pub(super) fn tidy(text: &str) -> String {
    let line = |line: &str| {
        let parts: Vec<_> = line.split('\t').map(|part| sanitize(part, LINE)).collect();
        parts.join("\t")
    };
    let lines: Vec<_> = text.lines().map(line).collect();
    lines.join("\n")
}

/// A result's text for a model, and whether the tool failed.
pub(super) fn text(result: CallToolResult) -> (String, bool) {
    let failed = result.is_error == Some(true);
    let count = result.content.len();
    let mut parts: Vec<String> = result.content.into_iter().take(BLOCKS).map(block).collect();
    if count > BLOCKS {
        parts.push(format!("[{} more parts are left out.]", count - BLOCKS));
    }
    // If there is text, it says the same, as the protocol requires.
    if parts.is_empty() {
        parts.extend(
            result
                .structured_content
                .map(|value| tidy(&value.to_string())),
        );
    }
    let text = parts.join("\n");
    if text.trim().is_empty() {
        return ("[The tool gave back nothing.]".to_owned(), failed);
    }
    (text, failed)
}

fn block(block: ContentBlock) -> String {
    let left_out = |what: &str, media_type: &str, size: usize| {
        let media_type = sanitize(media_type, NAME);
        format!(
            "[{what} ({media_type}, {size} bytes in base64) is left out: only text is passed on.]"
        )
    };
    match block {
        ContentBlock::Text(text) => tidy(&text.text),
        ContentBlock::Image(image) => left_out("A picture", &image.mime_type, image.data.len()),
        ContentBlock::Audio(audio) => left_out("A sound", &audio.mime_type, audio.data.len()),
        ContentBlock::Resource(embedded) => match embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => {
                format!("[{}]\n{}", sanitize(&uri, NAME), tidy(&text))
            }
            ResourceContents::BlobResourceContents {
                uri,
                mime_type,
                blob,
                ..
            } => {
                let what = format!("The resource {}", sanitize(&uri, NAME));
                left_out(
                    &what,
                    mime_type.as_deref().unwrap_or("of no known type"),
                    blob.len(),
                )
            }
            _ => "[A resource of another kind is left out.]".to_owned(),
        },
        ContentBlock::ResourceLink(link) => {
            let (name, uri) = (sanitize(&link.name, NAME), sanitize(&link.uri, NAME));
            format!("[A link to the resource {name}: {uri}]")
        }
        _ => "[Something of another kind is left out.]".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(value: serde_json::Value) -> (String, bool) {
        text(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn texts_are_passed_on_and_all_else_is_named() {
        let (text, failed) = of(json!({"isError": true, "content": [
            {"type": "text", "text": "one\u{1b}[2J\ttwo\r\nthree\u{202e}"},
            {"type": "image", "mimeType": "image/png", "data": "AAAA"},
            {"type": "audio", "mimeType": "audio/\nwav", "data": "AAAAAAAA"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}},
            {"type": "resource", "resource": {"uri": "file:///b", "blob": "AA"}},
            {"type": "resource_link", "name": "n", "uri": "file:///c"},
        ]}));
        assert!(failed);
        assert_eq!(
            text,
            "one[2J\ttwo\nthree\n\
             [A picture (image/png, 4 bytes in base64) is left out: only text is passed on.]\n\
             [A sound (audio/ wav, 8 bytes in base64) is left out: only text is passed on.]\n\
             [file:///a]\ninside\n\
             [The resource file:///b (of no known type, 2 bytes in base64) is left out: only text is passed on.]\n\
             [A link to the resource n: file:///c]"
        );
    }

    #[test]
    fn what_is_structured_only_is_passed_on_as_json_and_nothing_is_said_to_be_nothing() {
        let (text, failed) = of(json!({"content": [], "structuredContent": {"a": 1}}));
        assert_eq!((text.as_str(), failed), (r#"{"a":1}"#, false));
        let (text, _) = of(json!({"content": [{"type": "text", "text": " "}]}));
        assert_eq!(text, "[The tool gave back nothing.]");
    }

    #[test]
    fn a_result_of_very_many_parts_is_cut() {
        let part = json!({"type": "text", "text": "x"});
        let (text, _) = of(json!({"content": vec![part; 5000]}));
        assert!(text.ends_with("[4000 more parts are left out.]") && text.len() < 3000);
    }

    proptest! {
        #[test]
        fn a_mutated_result_is_a_text_of_bounded_size_without_controls(
            result in mutated([
                r#"{"isError":true,"content":[{"type":"text","text":"one\u001b[2J\ttwo"},{"type":"image","mimeType":"image/png","data":"AAAA"}]}"#,
                r#"{"content":[{"type":"resource","resource":{"uri":"file:///a","text":"inside"}},{"type":"resource_link","name":"n","uri":"file:///c"}]}"#,
                r#"{"content":[],"structuredContent":{"a":[1,"\u202e"]}}"#,
            ]),
        ) {
            if let Ok(result) = serde_json::from_slice::<CallToolResult>(&result) {
                let size = serde_json::to_vec(&result).unwrap().len();
                let (text, _) = super::text(result);
                prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{:?}", text);
                prop_assert!(text.len() <= 16 * size + 500, "{} of {}", text.len(), size);
            }
        }
    }
}
