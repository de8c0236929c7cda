//! The files in a conversation: images, stored by digest, and in `image_verdicts` the providers'
//! verdicts on them.
//!
//! # Invariants
//! - A file belongs to one session, is found under that session only, and is deleted with it.
//! - Its name is the digest of its content.
//! - The total size per session is bounded.
//! - Only the owner can access the folder (0700).

mod image_verdicts;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lucid_types::digest::Digest;
use lucid_types::ids::SessionId;
use lucid_types::limits::LARGEST_BLOB;
use lucid_types::wit::types::BlobRef;

pub use self::image_verdicts::{ImageVerdict, ImageVerdicts};

/// Maximum total size of a session's files, in bytes.
const MOST: u64 = 64 << 20;

/// Why a file is not stored or not found. Each message is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The file is too large.
    #[error("the file has {size} bytes, and at most {LARGEST_BLOB} are kept")]
    TooLarge {
        /// The file's size in bytes.
        size: u64,
    },
    /// The session has reached its limit.
    #[error("the session's pictures take as much as they may ({MOST} bytes)")]
    Full,
    /// The session has no such file, or is over.
    #[error("there is no file {digest} in this session")]
    NotFound {
        /// What was asked for as a digest, truncated.
        digest: String,
    },
    /// Any other I/O error.
    #[error("a file of the session cannot be kept or read: {0}")]
    Io(#[from] io::Error),
}

/// The files of all sessions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: Arc<Path>,
}

/// The files of one session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SessionBlobs {
    folder: PathBuf,
}

impl Blobs {
    /// Stores files in this folder, which is created with the first file.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Returns the files of a session.
    pub fn of(&self, session: SessionId) -> SessionBlobs {
        SessionBlobs {
            folder: self.folder.join(session.to_string()),
        }
    }
}

impl SessionBlobs {
    /// Stores a file. Identical bytes are stored once.
    pub async fn put(&self, media_type: &str, bytes: Vec<u8>) -> Result<BlobRef, BlobError> {
        let (folder, media_type) = (self.folder.clone(), media_type.to_owned());
        blocking(move || {
            let size = bytes.len() as u64;
            if size > LARGEST_BLOB {
                return Err(BlobError::TooLarge { size });
            }
            let digest = Digest::of(&bytes);
            let path = folder.join(digest.to_string());
            if !path.is_file() {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)?;
                if held(&folder)? + size > MOST {
                    return Err(BlobError::Full);
                }
                // All or nothing, even if the host is killed meanwhile.
                let mut file = tempfile::NamedTempFile::new_in(&folder)?;
                io::Write::write_all(&mut file, &bytes)?;
                file.persist(&path).map_err(|error| error.error)?;
            }
            Ok(BlobRef {
                digest: digest.with_algorithm(),
                media_type,
                size,
            })
        })
        .await
    }

    /// Reads a file that a conversation names. The name is a plugin's, so it may be no digest.
    pub async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
        let missing = || BlobError::NotFound {
            digest: blob.digest.chars().take(80).collect(),
        };
        // Only a digest becomes a path.
        let name = Digest::parse_with_algorithm(&blob.digest).map_err(|_| missing())?;
        let path = self.folder.join(name.to_string());
        match blocking(move || Ok(std::fs::read(path)?)).await {
            Err(BlobError::Io(cause)) if cause.kind() == io::ErrorKind::NotFound => Err(missing()),
            other => other,
        }
    }

    /// Removes all of the session's files. Does nothing if there are none.
    pub async fn remove(&self) -> Result<(), BlobError> {
        let folder = self.folder.clone();
        blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause.into()),
            _ => Ok(()),
        })
        .await
    }
}

fn held(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        // A file that is being stored may be renamed meanwhile.
        sum += entry?.metadata().map_or(0, |data| data.len());
    }
    Ok(sum)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|cause| Err(BlobError::Io(io::Error::other(cause))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0198c0de-0000-7000-8000-000000000001";
    const TWO: &str = "0198c0de-0000-7000-8000-000000000002";

    #[tokio::test]
    async fn a_file_is_found_by_its_digest_in_its_own_session_only() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(&folder.path().join("blobs"));
        let (one, two) = (
            blobs.of(ONE.parse().unwrap()),
            blobs.of(TWO.parse().unwrap()),
        );
        let kept = one.put("image/png", b"abc".to_vec()).await.unwrap();
        assert_eq!(
            kept.digest,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!((kept.media_type.as_str(), kept.size), ("image/png", 3));
        assert_eq!(one.put("image/png", b"abc".to_vec()).await.unwrap(), kept);
        assert_eq!(one.get(&kept).await.unwrap(), b"abc");
        let missing = two.get(&kept).await;
        assert!(matches!(missing, Err(BlobError::NotFound { .. })));
        for wrong in [
            "",
            "sha256:",
            "sha256:../../x",
            "ba78",
            &kept.digest.to_uppercase(),
        ] {
            let named = BlobRef {
                digest: wrong.to_owned(),
                ..kept.clone()
            };
            let got = one.get(&named).await;
            assert!(matches!(got, Err(BlobError::NotFound { .. })), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_a_session_keeps_is_bounded_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let one = Blobs::new(folder.path()).of(ONE.parse().unwrap());
        let large = |first: u8| {
            let mut bytes = vec![0; usize::try_from(LARGEST_BLOB).unwrap()];
            bytes[0] = first;
            bytes
        };
        let mut too_large = large(0);
        too_large.push(0);
        let refused = one.put("image/png", too_large).await;
        assert!(matches!(refused, Err(BlobError::TooLarge { .. })));
        let fit = u8::try_from(MOST / LARGEST_BLOB).unwrap();
        for number in 0..fit {
            one.put("image/png", large(number)).await.unwrap();
        }
        let full = one.put("image/png", large(fit)).await;
        assert!(matches!(full, Err(BlobError::Full)));
        one.remove().await.unwrap();
        one.remove().await.unwrap();
        one.put("image/png", large(fit)).await.unwrap();
    }
}
