//! Images in the editor: their format, and how they are shown.
//!
//! # Invariants
//! - A file's format is determined by its first bytes, never by its name.
//! - An image that every provider would refuse is answered with a sentence instead of being shown,
//!   since once in the conversation it would be refused with every later request.

use super::ToolOutcome;
use super::edit_error::EditError;
use crate::workspace::{Workspace, WorkspaceError, WorkspacePath};
use lucid_types::limits::LARGEST_BLOB;

/// The longest side that providers accept, in pixels.
const LONGEST_SIDE: usize = 8_000;

/// An image for a model.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage {
    /// The media type, as in `Content-Type`.
    pub media_type: &'static str,
    /// The file's content.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Picture({}, {} bytes)",
            self.media_type,
            self.bytes.len()
        )
    }
}

/// The media type, for formats that providers accept, by the first bytes.
fn kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => None,
    }
}

/// Shows an image to a model that accepts them; `None` if the file is not an image.
pub(super) fn view(
    workspace: &Workspace,
    path: &WorkspacePath,
    seen: bool,
) -> Option<Result<ToolOutcome, EditError>> {
    let mut first = [0; 16];
    let (mut file, size) = workspace.open(path).ok()?;
    let read = std::io::Read::read(&mut file, &mut first).ok()?;
    let media_type = kind(&first[..read])?;
    let relative_path = path.relative();
    if !seen {
        let problem = ImageError::Unseen { media_type, size };
        return Some(Err(EditError::image(path, problem)));
    }
    Some(match workspace.read(path, LARGEST_BLOB) {
        Ok(bytes) => fit(media_type, &bytes)
            .map_err(|problem| EditError::image(path, problem))
            .map(|(width, height)| ToolOutcome {
                text: format!(
                    "{relative_path} is a picture ({media_type}, {width}x{height} pixels, {} bytes):",
                    bytes.len()
                ),
                image: Some(EncodedImage { media_type, bytes }),
                ..ToolOutcome::default()
            }),
        Err(WorkspaceError::TooLarge { size, limit, .. }) => {
            Err(EditError::image(path, ImageError::Large { size, limit }))
        }
        Err(error) => Err(error.into()),
    })
}

const SMALLER: &str = "Make a smaller copy of it with a command (`convert a.png -resize 1500x1500 b.png`, or \
                       Python's Pillow, where they are there) and view that";

/// Why a file is not shown. The message follows the file's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ImageError {
    /// The model accepts no images.
    #[error(
        "is a picture ({media_type}, {size} bytes), and this model does not see pictures. Use the terminal to learn more of it"
    )]
    Unseen {
        /// Its format.
        media_type: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The file is too large.
    #[error("is a picture of {size} bytes; at most {limit} can be shown. {SMALLER}")]
    Large {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is incomplete, or none of the format that its beginning says.
    #[error(
        "begins like a picture ({media_type}), but is broken or not whole, so it cannot be shown. Make it anew, or learn more of it with a command (`file`)"
    )]
    Broken {
        /// The format that its beginning says.
        media_type: &'static str,
    },
    /// The image has too many pixels.
    #[error(
        "is a picture of {width}x{height} pixels; at most {LONGEST_SIDE} a side can be shown. {SMALLER}"
    )]
    Wide {
        /// Its width in pixels.
        width: usize,
        /// Its height in pixels.
        height: usize,
    },
}

/// Width and height in pixels of an image that providers accept.
fn fit(media_type: &'static str, bytes: &[u8]) -> Result<(usize, usize), ImageError> {
    let broken = || ImageError::Broken { media_type };
    if !is_whole(media_type, bytes) {
        return Err(broken());
    }
    let size = imagesize::blob_size(bytes).map_err(|_| broken())?;
    let (width, height) = (size.width, size.height);
    if width == 0 || height == 0 {
        return Err(broken());
    }
    if width.max(height) > LONGEST_SIDE {
        return Err(ImageError::Wide { width, height });
    }
    Ok((width, height))
}

/// Whether the file ends as its format requires: one that is still being written, or was truncated,
/// has a valid beginning. What is between is for the provider to read.
fn is_whole(media_type: &str, bytes: &[u8]) -> bool {
    // Data may follow the end, which decoders ignore.
    let ends = |end: &[u8]| bytes.windows(end.len()).rev().any(|window| window == end);
    match media_type {
        "image/png" => bytes.get(12..16) == Some(b"IHDR") && ends(b"IEND"),
        "image/jpeg" => ends(&[0xff, 0xd9]),
        "image/webp" => bytes
            .get(4..8)
            .and_then(|size| size.try_into().ok())
            .map(u32::from_le_bytes)
            .is_some_and(|size| size as usize <= bytes.len() - 8),
        // A GIF's end is a single byte that occurs anywhere.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use lucid_types::ids::SessionId;

    /// A complete PNG of this size, as far as can be seen without decoding it.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend(b"\x08\x02\0\0\0CRC.\0\0\0\0IDATCRC.\0\0\0\0IENDCRC.");
        bytes
    }

    fn jpeg(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = b"\xff\xd8\xff\xe0\0\x04JF\xff\xc0\0\x0b\x08".to_vec();
        bytes.extend(height.to_be_bytes());
        bytes.extend(width.to_be_bytes());
        bytes.extend(b"\x01\x01\x11\0\xff\xda\0\x02..\xff\xd9");
        bytes
    }

    fn gif(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = b"GIF89a".to_vec();
        bytes.extend(width.to_le_bytes());
        bytes.extend(height.to_le_bytes());
        bytes.extend(b"\0\0\0;");
        bytes
    }

    /// In the extended format, which states its size explicitly.
    fn webp(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
        bytes.extend(&(width - 1).to_le_bytes()[..3]);
        bytes.extend(&(height - 1).to_le_bytes()[..3]);
        bytes
    }

    fn each(width: u16, height: u16) -> [Vec<u8>; 4] {
        let (w, h) = (u32::from(width), u32::from(height));
        [
            png(w, h),
            jpeg(width, height),
            gif(width, height),
            webp(w, h),
        ]
    }

    #[test]
    fn a_picture_that_providers_take_is_shown_with_its_size() {
        for bytes in each(8_000, 3) {
            let media_type = kind(&bytes).unwrap();
            assert_eq!(fit(media_type, &bytes), Ok((8_000, 3)), "{media_type}");
        }
        let mut more = png(1, 1);
        more.extend([0; 100]);
        assert_eq!(
            fit("image/png", &more),
            Ok((1, 1)),
            "something stands behind its end"
        );
    }

    #[test]
    fn a_picture_of_too_many_pixels_is_refused_with_what_to_do() {
        for bytes in each(3, 8_001) {
            let told = fit(kind(&bytes).unwrap(), &bytes).unwrap_err().to_string();
            assert!(
                told.contains("3x8001") && told.contains("-resize"),
                "{told}"
            );
        }
        let told = fit("image/png", &png(u32::MAX, u32::MAX))
            .unwrap_err()
            .to_string();
        assert!(told.contains("4294967295x4294967295"), "{told}");
    }

    #[test]
    fn a_picture_that_is_empty_or_cut_off_is_refused() {
        for bytes in [png(0, 5), png(5, 0), jpeg(0, 5), jpeg(5, 0), gif(0, 5)] {
            let told = fit(kind(&bytes).unwrap(), &bytes).unwrap_err().to_string();
            assert!(told.contains("broken"), "{told}");
        }
        for bytes in [png(5, 5), jpeg(5, 5), webp(5, 5)] {
            for end in 12..bytes.len() {
                // The placeholder for a PNG's last checksum follows its end.
                if bytes[..end].windows(4).any(|window| window == b"IEND") {
                    continue;
                }
                let cut = fit(kind(&bytes).unwrap(), &bytes[..end]);
                assert!(cut.is_err(), "{end} of {bytes:?}");
            }
        }
        // A length that points past the end, and one that points back.
        for length in [b"\xff\xff", b"\0\0", b"\0\x01"] {
            let mut bytes = jpeg(5, 5);
            bytes[4..6].copy_from_slice(length);
            assert!(fit("image/jpeg", &bytes).is_err(), "{length:?}");
        }
        let mut other = png(5, 5);
        other[12..16].copy_from_slice(b"CgBI");
        assert!(fit("image/png", &other).is_err());
    }

    proptest! {
        #[test]
        fn whatever_stands_behind_a_pictures_first_bytes_is_a_size_within_the_limit_or_a_sentence(
            which in 0..4_usize,
            junk in prop::collection::vec(any::<u8>(), 0..80),
            at in 4..60_usize,
        ) {
            let mut bytes = each(5, 5)[which].clone();
            let at = at.min(bytes.len());
            bytes.splice(at.., junk);
            if let Some(media_type) = kind(&bytes)
                && let Ok((width, height)) = fit(media_type, &bytes)
            {
                prop_assert!((1..=LONGEST_SIDE).contains(&width));
                prop_assert!((1..=LONGEST_SIDE).contains(&height));
            }
        }
    }

    #[test]
    fn a_picture_is_told_by_its_first_bytes() {
        for (bytes, expected) in [
            (&b"\x89PNG\r\n\x1a\n\0"[..], Some("image/png")),
            (b"\xff\xd8\xff\xe0", Some("image/jpeg")),
            (b"GIF89a", Some("image/gif")),
            (b"RIFF\0\0\0\0WEBPVP8 ", Some("image/webp")),
            (b"RIFF\0\0\0\0WAVE", None),
            (b"GIF90a", None),
            (b"<svg/>", None),
            (b"", None),
        ] {
            assert_eq!(kind(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_model_that_sees_gets_the_picture_and_another_one_a_sentence() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"u".into(), SessionId::new()).unwrap();
        let (path, text) = (
            workspace.path("a.png").unwrap(),
            workspace.path("a.txt").unwrap(),
        );
        let png = png(640, 480);
        workspace.write(&path, &png).unwrap();
        workspace.write(&text, b"plain").unwrap();
        let outcome = view(&workspace, &path, true).unwrap().unwrap();
        assert!(outcome.text.contains("640x480"), "{}", outcome.text);
        let image = outcome.image.unwrap();
        assert_eq!((image.media_type, image.bytes), ("image/png", png.clone()));
        let told = view(&workspace, &path, false)
            .unwrap()
            .unwrap_err()
            .to_string();
        assert!(told.contains("does not see pictures"), "{told}");
        assert!(view(&workspace, &text, true).is_none());
        workspace.write(&path, &png[..30]).unwrap();
        let told = view(&workspace, &path, true)
            .unwrap()
            .unwrap_err()
            .to_string();
        assert!(told.contains("a.png begins like a picture"), "{told}");
        let mut large = png;
        large.resize(usize::try_from(LARGEST_BLOB).unwrap() + 1, 0);
        workspace.write(&path, &large).unwrap();
        let told = view(&workspace, &path, true)
            .unwrap()
            .unwrap_err()
            .to_string();
        assert!(told.contains("Make a smaller copy"), "{told}");
    }
}
