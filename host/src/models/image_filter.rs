//! Decides which images of a conversation a model is sent, and replaces those left out.
//!
//! # Invariants
//!
//! - An image that this model's provider refused is not sent again.
//! - An omitted image leaves a sentence in its place.
//! - An image the provider accepted before is not blamed for a refusal as long as there is one it
//!   never accepted.

use std::borrow::Cow;
use std::collections::BTreeSet;

use lucid_store::blobs::{ImageVerdict, ImageVerdicts, SessionBlobs};
use lucid_types::digest::Digest;
use lucid_types::wit::llm::CompletionRequest;
use lucid_types::wit::types::{BlobRef, Content, Error, ErrorKind};

/// The text that replaces an image for the model.
const LEFT_OUT: &str = "[A picture that the provider refused was left out.]";

/// The images of one request, and the verdicts on them.
pub(super) struct ImageFilter<'a> {
    request: &'a CompletionRequest,
    files: Option<&'a SessionBlobs>,
    /// The model that the verdicts are about.
    model: String,
    known: ImageVerdicts,
}

impl<'a> ImageFilter<'a> {
    /// The images of a request to a provider.
    pub(super) async fn of(
        request: &'a CompletionRequest,
        provider: &str,
        files: Option<&'a SessionBlobs>,
    ) -> Self {
        let known = match files {
            Some(files) if !named(request).is_empty() => files.verdicts().await,
            _ => ImageVerdicts::default(),
        };
        Self {
            request,
            files,
            model: format!("{provider}/{}", request.model),
            known,
        }
    }

    fn has_verdict(&self, verdict: ImageVerdict, digest: Option<Digest>) -> bool {
        digest.is_some_and(|digest| self.known.contains(verdict, &self.model, digest))
    }

    /// The digests of the images that are sent.
    fn sent(&self) -> BTreeSet<Option<Digest>> {
        let mut sent = named(self.request);
        sent.retain(|digest| !self.has_verdict(ImageVerdict::Refused, *digest));
        sent
    }

    /// The request as it is sent: without the images that were refused before.
    pub(super) fn request(&self) -> Cow<'a, CompletionRequest> {
        if self.sent().len() == named(self.request).len() {
            return Cow::Borrowed(self.request);
        }
        Cow::Owned(without(self.request, |digest| {
            self.has_verdict(ImageVerdict::Refused, digest)
        }))
    }

    /// The request without any image, if an error may be about those that were sent.
    pub(super) fn without_all(&self, error: &Error) -> Option<CompletionRequest> {
        (blames_request(error) && !self.sent().is_empty()).then(|| without(self.request, |_| true))
    }

    /// Records that the provider accepted what was sent.
    pub(super) async fn record_accepted(&self) {
        let mut unknown = self.sent();
        unknown.retain(|digest| !self.has_verdict(ImageVerdict::Accepted, *digest));
        self.record_verdict(ImageVerdict::Accepted, unknown).await;
    }

    /// Records that the provider refused what was sent, and accepted it without images.
    pub(super) async fn refused(&self) {
        let sent = self.sent();
        let mut suspects = sent.clone();
        suspects.retain(|digest| !self.has_verdict(ImageVerdict::Accepted, *digest));
        // Each was accepted before, so it is their combination: all are left out.
        let blamed = if suspects.is_empty() { sent } else { suspects };
        self.record_verdict(ImageVerdict::Refused, blamed).await;
    }

    async fn record_verdict(&self, verdict: ImageVerdict, digests: BTreeSet<Option<Digest>>) {
        if let Some(files) = self.files {
            let digests: Vec<Digest> = digests.into_iter().flatten().collect();
            files.record_verdict(verdict, &self.model, &digests).await;
        }
    }
}

/// Whether an error says that the request itself is invalid, so that another one may succeed.
pub(super) fn blames_request(error: &Error) -> bool {
    // A server whose model cannot see responds with 400, 404 or that it cannot do that.
    matches!(
        error.kind,
        ErrorKind::InvalidInput | ErrorKind::NotFound | ErrorKind::Unsupported
    )
}

/// The digest of an image, which a plugin named. `None` if that is no digest: no session has such an
/// image, and there is no verdict on it.
pub(super) fn digest(blob: &BlobRef) -> Option<Digest> {
    Digest::parse_with_algorithm(&blob.digest).ok()
}

/// The digests of all images in the conversation.
pub(super) fn named(request: &CompletionRequest) -> BTreeSet<Option<Digest>> {
    let mut all = BTreeSet::new();
    for content in request.messages.iter().flat_map(|message| &message.content) {
        let blobs = match content {
            Content::Image(blob) => std::slice::from_ref(blob),
            Content::ToolResult(result) => &result.blobs,
            _ => continue,
        };
        all.extend(blobs.iter().map(digest));
    }
    all
}

fn without(request: &CompletionRequest, out: impl Fn(Option<Digest>) -> bool) -> CompletionRequest {
    let mut request = request.clone();
    let out = |blob: &BlobRef| out(digest(blob));
    for content in request.messages.iter_mut().flat_map(|m| &mut m.content) {
        match content {
            Content::Image(blob) if out(blob) => *content = Content::Text(LEFT_OUT.to_owned()),
            Content::ToolResult(result) => {
                let before = result.blobs.len();
                result.blobs.retain(|blob| !out(blob));
                for _ in result.blobs.len()..before {
                    if !result.text.is_empty() {
                        result.text.push('\n');
                    }
                    result.text.push_str(LEFT_OUT);
                }
            }
            _ => {}
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::wit::types::{Message, Role, ToolResult};

    fn blob(content: &str) -> BlobRef {
        BlobRef {
            digest: Digest::of(content).with_algorithm(),
            media_type: "image/png".into(),
            size: 3,
        }
    }

    fn request() -> CompletionRequest {
        let said = |role, content| Message { role, content };
        CompletionRequest {
            model: "m".into(),
            messages: vec![
                said(
                    Role::User,
                    vec![Content::Text("See".into()), Content::Image(blob("a"))],
                ),
                said(
                    Role::Tool,
                    vec![Content::ToolResult(ToolResult {
                        call_id: "c".into(),
                        is_error: false,
                        text: "Two:".into(),
                        exit_code: None,
                        blobs: vec![blob("b"), blob("a")],
                    })],
                ),
            ],
            tools: vec![],
            max_output_tokens: None,
            params: "{}".into(),
            streaming: true,
        }
    }

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, String::new())
    }

    #[test]
    fn what_is_left_out_leaves_a_sentence_and_everything_else_stays() {
        let [a, b] = ["a", "b"].map(|content| Some(Digest::of(content)));
        assert_eq!(named(&request()), BTreeSet::from([a, b]));
        let left = without(&request(), |digest| digest == a);
        assert_eq!(named(&left), BTreeSet::from([b]));
        assert_eq!(left.messages[0].content[0], Content::Text("See".into()));
        assert_eq!(left.messages[0].content[1], Content::Text(LEFT_OUT.into()));
        let Content::ToolResult(result) = &left.messages[1].content[0] else {
            panic!("{left:?}");
        };
        assert_eq!(result.text, format!("Two:\n{LEFT_OUT}"));
        assert_eq!(result.blobs, [blob("b")]);
        let none = without(&request(), |_| true);
        assert!(named(&none).is_empty());
        assert_eq!(format!("{none:?}").matches(LEFT_OUT).count(), 3);
    }

    #[tokio::test]
    async fn only_an_error_about_the_request_is_taken_to_be_about_its_pictures() {
        let request = request();
        let pictures = ImageFilter::of(&request, "p", None).await;
        let wrong = error(ErrorKind::InvalidInput);
        assert!(pictures.without_all(&wrong).is_some());
        for kind in [
            ErrorKind::Unauthenticated,
            ErrorKind::RateLimited,
            ErrorKind::Upstream,
            ErrorKind::ContextTooLong,
            ErrorKind::Refused,
        ] {
            assert!(pictures.without_all(&error(kind)).is_none(), "{kind:?}");
        }
        let text = without(&request, |_| true);
        let pictures = ImageFilter::of(&text, "p", None).await;
        assert!(pictures.without_all(&wrong).is_none());
    }

    #[tokio::test]
    async fn what_was_taken_before_is_not_blamed_unless_there_is_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            lucid_store::blobs::Blobs::new(folder.path()).of(lucid_types::ids::SessionId::new());
        files.put("image/png", b"any".to_vec()).await.unwrap();
        let whole = request();
        let first = without(&whole, |digest| digest == Some(Digest::of("b")));
        ImageFilter::of(&first, "p", Some(&files))
            .await
            .record_accepted()
            .await;
        let pictures = ImageFilter::of(&whole, "p", Some(&files)).await;
        assert_eq!(*pictures.request(), whole);
        pictures.refused().await;
        let later = ImageFilter::of(&whole, "p", Some(&files)).await;
        assert_eq!(*later.request(), first, "`a` was taken before");
        later.refused().await;
        let last = ImageFilter::of(&whole, "p", Some(&files)).await;
        assert!(named(&last.request()).is_empty());
        assert!(
            last.without_all(&error(ErrorKind::InvalidInput)).is_none(),
            "no picture was sent, so none is to blame"
        );
        let other = ImageFilter::of(&whole, "another", Some(&files)).await;
        assert_eq!(*other.request(), whole, "another provider may take them");
    }

    #[tokio::test]
    async fn an_image_that_is_named_by_no_digest_is_left_out_and_no_other_is_blamed_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let files =
            lucid_store::blobs::Blobs::new(folder.path()).of(lucid_types::ids::SessionId::new());
        files.put("image/png", b"any".to_vec()).await.unwrap();
        let good = request();
        let images = ImageFilter::of(&good, "p", Some(&files)).await;
        images.record_accepted().await;
        let mut bad = request();
        bad.messages[0].content.push(Content::Image(BlobRef {
            digest: "sha256:x".into(),
            ..blob("c")
        }));
        let images = ImageFilter::of(&bad, "p", Some(&files)).await;
        let missing = error(ErrorKind::NotFound);
        let bare = images.without_all(&missing).unwrap();
        assert!(named(&bare).is_empty());
        images.refused().await;
        let later = ImageFilter::of(&good, "p", Some(&files)).await;
        assert_eq!(*later.request(), good);
    }
}
