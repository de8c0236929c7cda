//! The verdicts of providers on a session's images, so that an image that was refused is not sent
//! again.
//!
//! # Invariants
//! - The record is small, is stored beside the session's files and is deleted with them.
//! - A verdict concerns one model, since another may accept what this one refuses.
//! - If a verdict cannot be stored or read, that costs one more refusal, never a call.

use std::collections::HashSet;
use std::io::{self, Write};

use super::{SessionBlobs, blocking};
use lucid_types::digest::{Digest, sha256_hex};

/// The file's name in the session's folder. It is not a digest, so it is never served as a blob.
const NAME: &str = "verdicts";
/// Maximum size of the record in bytes: about a thousand verdicts.
const MOST: u64 = 64 << 10;

/// A provider's verdict on an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageVerdict {
    /// The provider answered a request that contained the image.
    Accepted,
    /// The provider refused a request that contained the image, and answered the same request
    /// without it.
    Refused,
}

impl ImageVerdict {
    fn sign(self) -> char {
        match self {
            Self::Accepted => '+',
            Self::Refused => '-',
        }
    }
}

/// The known verdicts on a session's images.
#[derive(Debug, Default)]
pub struct ImageVerdicts(HashSet<String>);

impl ImageVerdicts {
    /// Returns whether this verdict is known for a model and an image.
    pub fn contains(&self, verdict: ImageVerdict, model: &str, digest: Digest) -> bool {
        self.0.contains(&line(verdict, model, digest))
    }
}

impl SessionBlobs {
    /// Reads the known verdicts on the session's images.
    pub async fn verdicts(&self) -> ImageVerdicts {
        let path = self.folder.join(NAME);
        match blocking(move || Ok(std::fs::read_to_string(path)?)).await {
            Ok(text) => ImageVerdicts(text.lines().map(str::to_owned).collect()),
            // Usually there are no verdicts yet.
            Err(_) => ImageVerdicts::default(),
        }
    }

    /// Records a verdict on images.
    pub async fn record_verdict(&self, verdict: ImageVerdict, model: &str, digests: &[Digest]) {
        if digests.is_empty() {
            return;
        }
        let mut lines = String::new();
        for digest in digests {
            lines.push_str(&line(verdict, model, *digest));
            lines.push('\n');
        }
        let path = self.folder.join(NAME);
        let kept = blocking(move || {
            // The folder is not created: without one the session has no images any more.
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)?;
            if file.metadata()?.len() + lines.len() as u64 > MOST {
                return Err(io::Error::other("there is no room for more").into());
            }
            Ok(file.write_all(lines.as_bytes())?)
        })
        .await;
        if let Err(cause) = kept {
            tracing::debug!("what a provider said to a picture is not remembered: {cause}");
        }
    }
}

/// A line of fixed length whatever the model's name is, since that is chosen by a user.
fn line(verdict: ImageVerdict, model: &str, digest: Digest) -> String {
    let (sign, digest) = (verdict.sign(), digest.with_algorithm());
    format!("{sign}{}", sha256_hex(format!("{model}\0{digest}")))
}

#[cfg(test)]
mod tests {
    use super::super::Blobs;
    use super::*;
    use lucid_types::wit::types::BlobRef;

    const SESSION: &str = "0198c0de-0000-7000-8000-000000000001";

    #[tokio::test]
    async fn what_a_provider_said_is_known_for_that_model_until_the_session_goes() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(folder.path());
        let files = blobs.of(SESSION.parse().unwrap());
        let kept = files.put("image/png", b"abc".to_vec()).await.unwrap();
        let digest = Digest::parse_with_algorithm(&kept.digest).unwrap();
        let other = Digest::of(b"another");
        files
            .record_verdict(ImageVerdict::Refused, "a\nb", &[digest, other])
            .await;
        files
            .record_verdict(ImageVerdict::Accepted, "c", &[digest])
            .await;
        // As after a restart: nothing is only in memory.
        let known = Blobs::new(folder.path())
            .of(SESSION.parse().unwrap())
            .verdicts()
            .await;
        for (verdict, model, digest, expected) in [
            (ImageVerdict::Refused, "a\nb", digest, true),
            (ImageVerdict::Refused, "a\nb", other, true),
            (ImageVerdict::Refused, "b", digest, false),
            (ImageVerdict::Accepted, "a\nb", digest, false),
            (ImageVerdict::Accepted, "c", digest, true),
            (ImageVerdict::Accepted, "c", other, false),
        ] {
            let is = known.contains(verdict, model, digest);
            assert_eq!(is, expected, "{verdict:?} {model:?} {digest}");
        }
        assert!(
            files
                .get(&BlobRef {
                    digest: "verdicts".to_owned(),
                    ..kept
                })
                .await
                .is_err(),
            "it is found as a file"
        );
        files.remove().await.unwrap();
        files
            .record_verdict(ImageVerdict::Refused, "c", &[digest])
            .await;
        assert!(
            !folder.path().join(SESSION).exists(),
            "a session that is over has a folder again"
        );
        assert!(
            !files
                .verdicts()
                .await
                .contains(ImageVerdict::Accepted, "c", digest)
        );
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let files = Blobs::new(folder.path()).of(SESSION.parse().unwrap());
        files.put("image/png", b"abc".to_vec()).await.unwrap();
        let many: Vec<Digest> = (0..100_u8).map(|number| Digest::of([number])).collect();
        for model in 0..20 {
            files
                .record_verdict(ImageVerdict::Refused, &model.to_string(), &many)
                .await;
        }
        let size = std::fs::metadata(folder.path().join(SESSION).join(NAME)).unwrap();
        assert!(size.len() <= MOST, "{} bytes", size.len());
        let known = files.verdicts().await;
        assert!(
            known.contains(ImageVerdict::Refused, "0", many[99]),
            "the first is gone"
        );
        assert!(
            !known.contains(ImageVerdict::Refused, "19", many[99]),
            "all fit"
        );
    }
}
