//! Images in a request: the plugin writes a placeholder, and the host replaces it with the bytes.
//!
//! # Invariants
//!
//! - A placeholder occurs once in the body, whatever a model or a user has written.

use super::{Encoded, Framing, Placed};
use crate::types::{BlobRef, Error, Header, HttpRequest};

/// The image types that every provider here accepts.
const PICTURES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
/// The number of placeholders that are tried before a request counts as impossible to encode.
const TRIES: u32 = 16;

/// The images of a request that is being written.
#[derive(Debug, Default)]
pub struct Files {
    placed: Vec<Placed>,
    /// Distinguishes placeholders from the same words in a text.
    salt: u32,
}

/// How an image is sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Shown {
    /// By this placeholder, which the base64 of its bytes replaces.
    Marked(String),
    /// By this sentence in its place.
    Told(String),
}

impl Files {
    /// Decides what to write for a file. A file that is in the request already is not sent twice.
    pub fn show(&mut self, blob: &BlobRef) -> Shown {
        let media_type = &blob.media_type;
        if !PICTURES.contains(&media_type.as_str()) {
            return Shown::Told(format!("[a file, {media_type}, not shown]"));
        }
        if self.placed.iter().any(|p| p.blob.digest == blob.digest) {
            return Shown::Told("[the same picture as before]".into());
        }
        let marker = match self.salt {
            0 => format!("lucid-blob:{}", blob.digest),
            salt => format!("lucid-blob:{}:{salt}", blob.digest),
        };
        self.placed.push(Placed {
            marker: marker.clone(),
            blob: blob.clone(),
        });
        Shown::Marked(marker)
    }

    /// The sentence for a model that cannot see images.
    pub fn tell(blob: &BlobRef) -> String {
        format!("[a file, {}, not shown]", blob.media_type)
    }

    fn occur_once(&self, body: &str) -> bool {
        self.placed
            .iter()
            .all(|placed| body.matches(placed.marker.as_str()).take(2).count() == 1)
    }
}

/// A request with a JSON body. `write` may be called more than once, and must write the same each
/// time except for the placeholders.
pub fn encoded(
    mut request: HttpRequest,
    framing: Framing,
    mut write: impl FnMut(&mut Files) -> Result<serde_json::Value, Error>,
) -> Result<Encoded, Error> {
    let accept = match framing {
        Framing::ServerSentEvents => "text/event-stream",
        Framing::JsonLines => "application/x-ndjson",
        Framing::WholeBody => "application/json",
    };
    for (name, value) in [("content-type", "application/json"), ("accept", accept)] {
        request.headers.push(Header {
            name: name.into(),
            value: value.into(),
        });
    }
    for salt in 0..TRIES {
        let mut files = Files {
            placed: Vec::new(),
            salt,
        };
        let body = write(&mut files)?.to_string();
        if files.occur_once(&body) {
            request.body = body.into_bytes();
            return Ok(Encoded {
                request,
                files: files.placed,
                framing,
            });
        }
    }
    Err(Error::invalid(
        "The conversation repeats the mark of a picture in every form.",
    ))
}
