//! Owns what a picture is to the editor: what kind it is, and how it is shown.
//!
//! What always holds: a file's kind is told by its first bytes, never by its name.

use super::ToolOutcome;
use crate::blobs::LARGEST;
use crate::workspace::{Workspace, WorkspaceError, WorkspacePath};

/// A picture for a model.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// As in `Content-Type`.
    pub media_type: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Picture({}, {} bytes)",
            self.media_type,
            self.bytes.len()
        )
    }
}

/// The kinds that providers take, by how they begin.
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

/// Shows a picture, to a model that sees them; none where the file is no picture.
pub(super) fn view(
    workspace: &Workspace,
    path: &WorkspacePath,
    seen: bool,
) -> Option<Result<ToolOutcome, String>> {
    let mut first = [0; 16];
    let (mut file, size) = workspace.open(path).ok()?;
    let read = std::io::Read::read(&mut file, &mut first).ok()?;
    let media_type = kind(&first[..read])?;
    let shown = path.shown();
    if !seen {
        return Some(Err(format!(
            "{shown} is a picture ({media_type}, {size} bytes), and this model does not see pictures. Use the terminal to learn more of it."
        )));
    }
    Some(match workspace.read(path, LARGEST) {
        Ok(bytes) => Ok(ToolOutcome {
            text: format!(
                "{shown} is a picture ({media_type}, {} bytes):",
                bytes.len()
            ),
            picture: Some(Picture { media_type, bytes }),
            ..ToolOutcome::default()
        }),
        Err(WorkspaceError::TooLarge { size, limit, .. }) => Err(format!(
            "{shown} is a picture of {size} bytes; at most {limit} can be shown. Make it smaller first."
        )),
        Err(error) => Err(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let workspace = Workspace::create(base.path(), "u", "s").unwrap();
        let (path, text) = (
            workspace.path("a.png").unwrap(),
            workspace.path("a.txt").unwrap(),
        );
        let png = b"\x89PNG\r\n\x1a\n and more".to_vec();
        workspace.write(&path, &png).unwrap();
        workspace.write(&text, b"plain").unwrap();
        let outcome = view(&workspace, &path, true).unwrap().unwrap();
        let picture = outcome.picture.unwrap();
        assert_eq!(
            (picture.media_type, picture.bytes),
            ("image/png", png.clone())
        );
        let told = view(&workspace, &path, false).unwrap().unwrap_err();
        assert!(told.contains("does not see pictures"), "{told}");
        assert!(view(&workspace, &text, true).is_none());
        let mut large = png;
        large.resize(usize::try_from(LARGEST).unwrap() + 1, 0);
        workspace.write(&path, &large).unwrap();
        let told = view(&workspace, &path, true).unwrap().unwrap_err();
        assert!(told.contains("Make it smaller"), "{told}");
    }
}
