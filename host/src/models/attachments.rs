//! Inlines files into a request's body without passing them through a plugin.
//!
//! # Invariants
//!
//! - Only a file that the conversation names is inlined, and only one of its own session.
//! - Inlined content is base64, so it cannot change the text around it.
//! - The body is scanned once, however many files there are, and not on an async thread.

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::image_filter::{digest, named};
use lucid_store::blobs::SessionBlobs;
use lucid_types::wit::llm::{CompletionRequest, Encoded, Placed};
use lucid_types::wit::types::{Error, ErrorKind};

/// The maximum total size of a request's files, in bytes before base64: providers accept no more.
const MOST: usize = 20 << 20;
/// The maximum number of files in a request.
const MOST_FILES: usize = 1_000;
/// The longest marker, in bytes. Together with the number of files it bounds the cost of the
/// search.
const LONGEST_MARKER: usize = 256;

/// Inlines the files. Returns the adapter's request unchanged if there are none.
pub(super) async fn inline_file(
    mut encoded: Encoded,
    request: &CompletionRequest,
    files: Option<&SessionBlobs>,
) -> Result<Encoded, Error> {
    if encoded.files.is_empty() {
        return Ok(encoded);
    }
    if encoded.files.len() > MOST_FILES {
        return Err(too_much(&format!("are more than {MOST_FILES}")));
    }
    let named = named(request);
    let mut size: usize = 0;
    let mut pieces = Vec::with_capacity(encoded.files.len());
    for Placed { marker, blob } in std::mem::take(&mut encoded.files) {
        let Some(files) = files.filter(|_| named.contains(&digest(&blob))) else {
            return Err(internal_error(
                "placed a file that the conversation does not hold",
            ));
        };
        let bytes = files.get(&blob).await.map_err(|cause| {
            let message = format!("A picture cannot be sent: {cause}.");
            Error::new(ErrorKind::NotFound, message).with_code("file")
        })?;
        // The real size, whatever the adapter says it is, counted each time the file is inlined.
        size = size.saturating_add(bytes.len());
        if size > MOST {
            return Err(too_much(&format!("have more than {MOST} bytes")));
        }
        pieces.push(InlinedFile { marker, bytes });
    }
    let body = std::mem::take(&mut encoded.request.body);
    // The body can have tens of megabytes, which would block everything else on this thread.
    let placed = tokio::task::spawn_blocking(move || inline_files(&body, &pieces)).await;
    encoded.request.body = placed
        .map_err(|cause| {
            let message = format!("The pictures could not be put into the request: {cause}.");
            Error::internal(message).with_code("files")
        })?
        .ok_or_else(|| internal_error("did not write a file's marker exactly once"))?;
    Ok(encoded)
}

/// A file, and the text that it replaces.
struct InlinedFile {
    marker: String,
    bytes: Vec<u8>,
}

/// The body with each marker replaced by its file in base64. `None` if a marker does not occur
/// exactly once, or overlaps another one.
fn inline_files(body: &[u8], pieces: &[InlinedFile]) -> Option<Vec<u8>> {
    let mut markers = pieces.iter().map(|piece| piece.marker.len());
    if markers.any(|length| length == 0 || length > LONGEST_MARKER) {
        return None;
    }
    let search = AhoCorasick::new(pieces.iter().map(|piece| &piece.marker)).ok()?;
    let mut found = vec![None; pieces.len()];
    // It stops at the first marker that occurs twice, so there are never more hits than files.
    for hit in search.try_find_overlapping_iter(body).ok()? {
        let before = found.get_mut(hit.pattern().as_usize())?;
        if before.replace(hit.range()).is_some() {
            return None;
        }
    }
    let found: Option<Vec<_>> = found.into_iter().collect();
    let mut places: Vec<_> = found?.into_iter().zip(pieces).collect();
    places.sort_by_key(|(range, _)| range.start);
    let long = |piece: &InlinedFile| piece.bytes.len().div_ceil(3) * 4;
    let more: usize = pieces.iter().map(long).sum();
    let mut placed = Vec::with_capacity(body.len() + more);
    let mut from = 0;
    for (range, piece) in places {
        // `None` if it begins within the previous one.
        placed.extend_from_slice(body.get(from..range.start)?);
        placed.extend_from_slice(STANDARD.encode(&piece.bytes).as_bytes());
        from = range.end;
    }
    placed.extend_from_slice(body.get(from..)?);
    Some(placed)
}

/// The error for too many files. A policy can respond by shortening the conversation.
fn too_much(what: &str) -> Error {
    let message =
        format!("The pictures of the conversation {what}, which is what can be sent at once.");
    Error::new(ErrorKind::ContextTooLong, message).with_code("files")
}

fn internal_error(what: &str) -> Error {
    let message = format!("The model's adapter {what}; report it to the adapter's author.");
    Error::internal(message).with_code("adapter-files")
}

#[cfg(test)]
mod tests {
    use lucid_types::wit::llm::Framing;
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use lucid_store::blobs::Blobs;
    use lucid_types::wit::types::{BlobRef, Content, HttpRequest, Message, Role};

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
        let files = Blobs::new(folder.path()).of(lucid_types::ids::SessionId::new());
        let blob = files.put("image/png", b"\x89PNG".to_vec()).await.unwrap();
        (folder, files, blob)
    }

    #[tokio::test]
    async fn a_file_takes_its_markers_place_in_base64() {
        let (_folder, files, blob) = kept().await;
        let asked = encoded("{\"d\":\"lucid-blob:1\"}".into(), "lucid-blob:1", &blob);
        let placed = inline_file(asked, &request(Some(&blob)), Some(&files))
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
            let placed = inline_file(encoded(body.into(), "M", &blob), asked, files).await;
            assert_eq!(placed.unwrap_err().kind, ErrorKind::Internal, "{body}");
        }
        for (body, marker) in [("abc", String::new()), ("", "M".repeat(LONGEST_MARKER + 1))] {
            let marker = marker.as_str();
            let body = format!("{body}{marker}");
            let placed = inline_file(encoded(body, marker, &blob), &mine, Some(&files)).await;
            let told = placed.unwrap_err().message;
            assert!(told.contains("marker exactly once"), "{told}");
        }
    }

    #[tokio::test]
    async fn more_than_a_provider_takes_is_a_conversation_that_is_too_long() {
        let (_folder, files, _) = kept().await;
        let large = vec![7; 3 << 20];
        let mut blob = files.put("image/png", large).await.unwrap();
        let asked = request(Some(&blob));
        // Whatever size the adapter gives, and however often it inlines the file.
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
        let placed = inline_file(often(6), &asked, Some(&files)).await.unwrap();
        assert_eq!(placed.request.body.len(), 6 * (4 << 20));
        let placed = inline_file(often(7), &asked, Some(&files)).await;
        assert_eq!(placed.unwrap_err().kind, ErrorKind::ContextTooLong);
    }

    #[tokio::test]
    async fn more_files_than_can_be_searched_for_are_a_conversation_that_is_too_long() {
        let (_folder, files, blob) = kept().await;
        let mut asked = encoded(String::new(), "", &blob);
        asked.files = vec![asked.files[0].clone(); MOST_FILES + 1];
        let placed = inline_file(asked, &request(Some(&blob)), Some(&files)).await;
        assert_eq!(placed.unwrap_err().kind, ErrorKind::ContextTooLong);
    }

    /// All positions of a marker.
    fn places(body: &str, marker: &str) -> Vec<Range<usize>> {
        (0..body.len())
            .filter(|at| body[*at..].starts_with(marker))
            .map(|at| at..at + marker.len())
            .collect()
    }

    proptest! {
        #[test]
        fn all_files_are_placed_where_their_markers_stand_once_and_apart_and_else_none_is(
            body in "[ab]{0,12}",
            markers in prop::collection::vec("[ab]{1,4}", 0..4),
        ) {
            let pieces: Vec<InlinedFile> = markers
                .iter()
                .enumerate()
                .map(|(number, marker)| InlinedFile { marker: marker.clone(), bytes: vec![7; number] })
                .collect();
            let got = inline_files(body.as_bytes(), &pieces);
            let found: Vec<Vec<_>> = markers.iter().map(|marker| places(&body, marker)).collect();
            let mut all: Vec<_> = found.iter().flatten().cloned().zip(&pieces).collect();
            all.sort_by_key(|(range, _)| range.start);
            let clear = found.iter().all(|places| places.len() == 1)
                && all.windows(2).all(|two| two[0].0.end <= two[1].0.start);
            prop_assert_eq!(got.is_some(), clear, "{} {:?}", body, markers);
            if let Some(got) = got {
                let mut expected = body;
                for (range, piece) in all.into_iter().rev() {
                    expected.replace_range(range, &STANDARD.encode(&piece.bytes));
                }
                prop_assert_eq!(got, expected.into_bytes());
            }
        }

        #[test]
        fn many_files_are_placed_in_any_order(
            order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            // One marker is a prefix of another, except for its terminator.
            let marker = |number: usize| format!("<{number}>");
            let body: String = (0..40).map(|number| format!("-{}", marker(number))).collect();
            let pieces: Vec<InlinedFile> = order
                .iter()
                .map(|number| InlinedFile { marker: marker(*number), bytes: vec![*number as u8] })
                .collect();
            let expected: String =
                (0..40_u8).map(|number| format!("-{}", STANDARD.encode([number]))).collect();
            prop_assert_eq!(inline_files(body.as_bytes(), &pieces), Some(expected.into_bytes()));
        }
    }
}
