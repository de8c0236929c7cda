//! Owns how files get into a request's body, without passing through a plugin.
//!
//! What always holds: only a file that the conversation names is placed, and only one of its session;
//! what is placed is base64, so it cannot change what is around it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::bindings::llm::{CompletionRequest, Encoded, Placed};
use super::bindings::types::{Content, Error, ErrorKind};
use crate::blobs::SessionBlobs;

/// What the files of one request may have together, in bytes, before base64: providers take no more.
const MOST: usize = 20 << 20;

/// Puts the files in place. Gives the adapter's request back as it is where there are none.
pub(super) async fn place(
    mut encoded: Encoded,
    request: &CompletionRequest,
    files: Option<&SessionBlobs>,
) -> Result<Encoded, Error> {
    if encoded.files.is_empty() {
        return Ok(encoded);
    }
    let named = named(request);
    let mut size: usize = 0;
    for Placed { marker, blob } in std::mem::take(&mut encoded.files) {
        let Some(files) = files.filter(|_| named.contains(&blob.digest.as_str())) else {
            return Err(fault("placed a file that the conversation does not hold"));
        };
        let bytes = files.get(&blob.digest).await.map_err(|cause| {
            error(
                ErrorKind::NotFound,
                "file",
                format!("A picture cannot be sent: {cause}."),
            )
        })?;
        // What is really there, whatever the adapter says of it, and each time that it is placed.
        size = size.saturating_add(bytes.len());
        if size > MOST {
            let message = format!(
                "The pictures of the conversation have more than {MOST} bytes, which is what can be sent at once."
            );
            return Err(error(ErrorKind::ContextTooLong, "files", message));
        }
        let body = std::mem::take(&mut encoded.request.body);
        encoded.request.body = replaced(&body, marker.as_bytes(), &STANDARD.encode(bytes))
            .ok_or_else(|| fault("did not write a file's marker exactly once"))?;
    }
    Ok(encoded)
}

/// The digests of all files in the conversation.
fn named(request: &CompletionRequest) -> Vec<&str> {
    let mut all = Vec::new();
    for content in request.messages.iter().flat_map(|message| &message.content) {
        match content {
            Content::Image(blob) => all.push(blob.digest.as_str()),
            Content::ToolResult(result) => {
                all.extend(result.blobs.iter().map(|blob| blob.digest.as_str()));
            }
            _ => {}
        }
    }
    all
}

/// The body with one text in place of another that stands in it exactly once.
fn replaced(body: &[u8], marker: &[u8], text: &str) -> Option<Vec<u8>> {
    if marker.is_empty() {
        return None;
    }
    let found = |from: usize| {
        let windows = body.get(from..)?.windows(marker.len());
        windows.enumerate().find(|(_, window)| *window == marker)
    };
    let (at, _) = found(0)?;
    let end = at + marker.len();
    if found(end).is_some() {
        return None;
    }
    let mut placed = Vec::with_capacity(body.len() + text.len());
    placed.extend_from_slice(&body[..at]);
    placed.extend_from_slice(text.as_bytes());
    placed.extend_from_slice(&body[end..]);
    Some(placed)
}

fn fault(what: &str) -> Error {
    let message = format!("The model's adapter {what}; report it to the adapter's author.");
    error(ErrorKind::Internal, "adapter-files", message)
}

fn error(kind: ErrorKind, code: &str, message: String) -> Error {
    Error {
        kind,
        code: Some(code.to_owned()),
        message,
        retry_after_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::bindings::llm::Framing;
    use super::super::bindings::types::{BlobRef, HttpRequest, Message, Role};
    use super::*;
    use crate::blobs::Blobs;

    fn request(blob: Option<&BlobRef>) -> CompletionRequest {
        let content = blob.cloned().map(Content::Image).into_iter().collect();
        CompletionRequest {
            model: "m".into(),
            messages: vec![Message {
                role: Role::User,
                content,
            }],
            tools: vec![],
            max_output_tokens: None,
            params: "{}".into(),
            streaming: true,
        }
    }

    fn encoded(body: String, marker: &str, blob: &BlobRef) -> Encoded {
        Encoded {
            request: HttpRequest {
                method: "POST".into(),
                path: "/x".into(),
                query: vec![],
                headers: vec![],
                body: body.into_bytes(),
            },
            files: vec![Placed {
                marker: marker.into(),
                blob: blob.clone(),
            }],
            framing: Framing::WholeBody,
        }
    }

    async fn kept() -> (tempfile::TempDir, SessionBlobs, BlobRef) {
        let folder = tempfile::tempdir().unwrap();
        let files = Blobs::new(folder.path())
            .of("0198c0de-0000-7000-8000-000000000001")
            .unwrap();
        let blob = files.put("image/png", b"\x89PNG".to_vec()).await.unwrap();
        (folder, files, blob)
    }

    #[tokio::test]
    async fn a_file_takes_its_markers_place_in_base64() {
        let (_folder, files, blob) = kept().await;
        let asked = encoded("{\"d\":\"lucid-blob:1\"}".into(), "lucid-blob:1", &blob);
        let placed = place(asked, &request(Some(&blob)), Some(&files))
            .await
            .unwrap();
        assert_eq!(placed.request.body, b"{\"d\":\"iVBORw==\"}");
    }

    #[tokio::test]
    async fn a_file_that_the_conversation_does_not_hold_or_whose_marker_is_not_clear_is_not_sent() {
        let (_folder, files, blob) = kept().await;
        let mine = request(Some(&blob));
        for (body, asked, files) in [
            ("a M b", &request(None), Some(&files)),
            ("a M b", &mine, None),
            ("a M b M", &mine, Some(&files)),
            ("a b", &mine, Some(&files)),
        ] {
            let placed = place(encoded(body.into(), "M", &blob), asked, files).await;
            assert_eq!(placed.unwrap_err().kind, ErrorKind::Internal, "{body}");
        }
        assert_eq!(replaced(b"abc", b"", "x"), None);
    }

    #[tokio::test]
    async fn more_than_a_provider_takes_is_a_conversation_that_is_too_long() {
        let (_folder, files, _) = kept().await;
        let large = vec![7; 3 << 20];
        let mut blob = files.put("image/png", large).await.unwrap();
        let asked = request(Some(&blob));
        // Whatever the adapter says of its size, and however often it places it.
        blob.size = 0;
        let often = |count: usize| {
            let marker = |number: usize| format!("<{number}>");
            let body = (0..count).map(marker).collect();
            let mut encoded = encoded(body, "", &blob);
            let placed = |number| Placed {
                marker: marker(number),
                blob: blob.clone(),
            };
            encoded.files = (0..count).map(placed).collect();
            encoded
        };
        let placed = place(often(6), &asked, Some(&files)).await.unwrap();
        assert_eq!(placed.request.body.len(), 6 * (4 << 20));
        let placed = place(often(7), &asked, Some(&files)).await;
        assert_eq!(placed.unwrap_err().kind, ErrorKind::ContextTooLong);
    }
}
