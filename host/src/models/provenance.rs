//! Records which server a response came from, and decides what of it may be sent to another one.
//!
//! A server may want back what it gave with a response: reasoning, signatures, ids. Another server,
//! or another model of the same one, refuses that or has no use for it.
//!
//! # Invariants
//!
//! - Vendor-specific items and reasoning go back to the server and model that gave them, and to
//!   nobody else.
//! - A provider adapter never sees the mark.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

use lucid_net::egress::Endpoint;
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::types::{Content, Custom, Message, Role};

/// The kind of the mark at the end of a response. Its body is JSON text: a digest of the origin.
const KIND: &str = "lucid.origin";

/// The origin of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResponseOrigin(String);

impl ResponseOrigin {
    /// The origin for a model, behind an adapter, at a server.
    pub(super) fn new(provider: &str, endpoint: &Endpoint, model: &str) -> Self {
        let mut digest = Sha256::new();
        for part in [provider, &endpoint.server(), model] {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        // Enough to distinguish the servers of one deployment.
        let digest = digest.finalize();
        Self(hex::encode(&digest[..8]))
    }

    /// Its digest.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Marks a response with a piece that its server may want back.
    pub(super) fn mark(&self, message: &mut Message) {
        if message.content.iter().any(is_vendors) {
            message.content.push(Content::Other(Custom {
                kind: KIND.to_owned(),
                body: format!("\"{}\"", self.0),
            }));
        }
    }

    /// The request as it is sent to this origin. A response without a mark predates marks: its
    /// adapter recognises its own pieces.
    pub(super) fn strip_foreign<'a>(
        &self,
        request: &'a CompletionRequest,
    ) -> Cow<'a, CompletionRequest> {
        let marked = |message: &Message| origin(message).is_some();
        if !request.messages.iter().any(marked) {
            return Cow::Borrowed(request);
        }
        let mut request = request.clone();
        for message in &mut request.messages {
            let Some(by) = origin(message) else { continue };
            let foreign = by.trim_matches('"') != self.0;
            message
                .content
                .retain(|piece| !(is_mark(piece) || foreign && is_vendors(piece)));
        }
        Cow::Owned(request)
    }
}

/// The request without vendor-specific pieces. `None` if it has none.
pub(super) fn strip_vendor_pieces(request: &CompletionRequest) -> Option<CompletionRequest> {
    let answers = |message: &&Message| message.role == Role::Assistant;
    let pieces = request
        .messages
        .iter()
        .filter(answers)
        .flat_map(|message| &message.content);
    if !pieces.into_iter().any(is_vendors) {
        return None;
    }
    let mut request = request.clone();
    for message in &mut request.messages {
        if message.role == Role::Assistant {
            message.content.retain(|piece| !is_vendors(piece));
        }
    }
    Some(request)
}

/// Whether a piece is of use only to the server it came from.
fn is_vendors(piece: &Content) -> bool {
    matches!(piece, Content::Thinking(_) | Content::Other(_))
}

fn is_mark(piece: &Content) -> bool {
    matches!(piece, Content::Other(custom) if custom.kind == KIND)
}

fn origin(message: &Message) -> Option<&str> {
    message.content.iter().find_map(|piece| match piece {
        Content::Other(custom) if custom.kind == KIND => Some(custom.body.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use lucid_net::egress::KeyInjection;
    use lucid_types::wit::types::Thinking;

    fn origin_of(provider: &str, server: &str, model: &str) -> ResponseOrigin {
        let url = Url::parse(server).unwrap();
        let endpoint = Endpoint::new(url, KeyInjection::Bearer).unwrap();
        ResponseOrigin::new(provider, &endpoint, model)
    }

    fn request(messages: Vec<Message>) -> CompletionRequest {
        CompletionRequest {
            model: "m".into(),
            messages,
            tools: vec![],
            max_output_tokens: None,
            params: "{}".into(),
            streaming: true,
        }
    }

    fn answer(content: Vec<Content>) -> Message {
        Message {
            role: Role::Assistant,
            content,
        }
    }

    #[test]
    fn what_a_server_gave_goes_back_to_it_and_to_no_other() {
        let here = origin_of("openai", "http://127.0.0.1:1/v1", "m");
        let thought = Content::Thinking(Thinking {
            text: "Hm".into(),
            signature: None,
        });
        let vendors = Content::Other(Custom {
            kind: "openai.message".into(),
            body: "{}".into(),
        });
        let text = Content::Text("Yes".into());
        let given = answer(vec![vendors, thought, text.clone()]);
        let mut marked = given.clone();
        here.mark(&mut marked);
        assert_eq!(marked.content.len(), 4);
        let asked = request(vec![marked]);
        assert_eq!(
            here.strip_foreign(&asked).messages,
            std::slice::from_ref(&given)
        );
        for other in [
            origin_of("openai", "http://127.0.0.1:2/v1", "m"),
            origin_of("openai", "http://127.0.0.1:1/v1", "n"),
            origin_of("anthropic", "http://127.0.0.1:1/v1", "m"),
        ] {
            assert_eq!(
                other.strip_foreign(&asked).messages,
                [answer(vec![text.clone()])]
            );
        }
        assert_eq!(
            strip_vendor_pieces(&here.strip_foreign(&asked))
                .unwrap()
                .messages,
            [answer(vec![text])]
        );
        // A response without a mark.
        let old = request(vec![given.clone()]);
        assert_eq!(here.strip_foreign(&old).messages, [given]);
    }

    #[test]
    fn a_plain_answer_is_not_marked() {
        let mut plain = answer(vec![Content::Text("Yes".into())]);
        origin_of("openai", "http://127.0.0.1:1", "m").mark(&mut plain);
        assert_eq!(plain.content.len(), 1);
        assert_eq!(strip_vendor_pieces(&request(vec![plain])), None);
    }
}
