//! The routes that serve workspace contents unchanged: a single file, or the whole workspace as an
//! archive.
//!
//! # Invariants
//!
//! - The session is looked up together with its user.
//! - A browser never renders a response as a page: it is sent as bytes to save, under a sanitized
//!   file name.
//! - Memory is bounded, whatever the size of the workspace.
//! - A file is read in pieces, each in its user's turn.
//! - The number of concurrent archives is bounded, and an archive ends with its connection or when
//!   nobody reads it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use http_range_header::parse_range_header;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::Api;
use super::files::{no_file, not_yet};
use super::problem::{Problem, Query};
use crate::api::identity::Authenticated;
use lucid_sandbox::workspace::{Workspace, WorkspaceError};
use lucid_types::user::UserId;
use lucid_types::user_work::{CancelFlag, UserWork};

/// The size of a chunk that is read and sent, in bytes.
const PIECE: usize = 64 * 1024;
/// The maximum number of archive chunks buffered for a slow client.
const BUFFERED_CHUNKS: usize = 4;
/// The maximum number of concurrent archives. Each has a thread for as long as it is sent, so these
/// are not taken from the slots of other work.
const MOST_ARCHIVES: usize = 4;
/// A client that reads nothing for this long is gone.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A client's minimum rate, in bytes per second, once `TIMEOUT` is used up: slow readers must not
/// keep others from their archives.
const SLOWEST: u64 = 64 * 1024;
/// The maximum length of a suggested file name, in bytes.
const LONGEST_NAME: usize = 200;

/// Which file is asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct DownloadQuery {
    /// The session (not the chat).
    session_id: String,
    /// From the workspace's root, with or without the leading `/workspace`, and as the list of files has
    /// it.
    path: String,
}

/// Download a file
///
/// Its bytes as they are. One range can be asked for; with `If-Range`, of the file it was.
#[utoipa::path(
    get, path = "/api/v1/files/download", tag = "files", params(DownloadQuery),
    responses(
        (status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The range of it", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The path leaves the workspace, or is not a file's", body = Problem),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's session", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "The server's database cannot be used at the moment", body = Problem),
        (status = 416, description = "The file is not so long", body = Problem),
        (status = 422, body = Problem),
        (status = 429, description = "Too many of the caller's requests wait already", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn file(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Query(query): Query<DownloadQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = query.path.clone();
    let opened = api.in_workspace(&query.session_id, &who, move |workspace, _| {
        open(&workspace, &path)
    });
    let (shown, file, length) = opened.await?.ok_or_else(|| not_yet(&query.path))??;
    let tag = tag(&file, length).map_err(|cause| Problem::internal(&cause))?;
    let name = shown.rsplit('/').next().unwrap_or_default();
    let mut response = save_as(name, "application/octet-stream");
    response.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));

    // A range of an earlier version is useless to a client that has the rest of that version.
    let same = headers
        .get(header::IF_RANGE)
        .is_none_or(|known| *known == tag);
    let range = headers.get(header::RANGE).filter(|_| same);
    let (status, first, count) = match range.map(|range| ByteRange::read(range, length)) {
        None | Some(ByteRange::All) => (StatusCode::OK, 0, length),
        Some(ByteRange::Part(first, last)) => {
            let shown = value(&format!("bytes {first}-{last}/{length}"));
            response.insert(header::CONTENT_RANGE, shown);
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
        Some(ByteRange::None) => {
            let sentence =
                format!("{shown} is {length} bytes; the range that was asked for is not in it.");
            let mut response =
                Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, sentence).into_response();
            let shown = value(&format!("bytes */{length}"));
            response.headers_mut().insert(header::CONTENT_RANGE, shown);
            return Ok(response);
        }
    };
    response.insert(header::ETAG, tag);
    response.insert(header::CONTENT_LENGTH, count.into());
    // A file that shrinks meanwhile ends the connection early, which the client detects by the
    // length.
    let body = Body::from_stream(pieces(
        api.parts.user_work.clone(),
        who.user,
        file,
        first..first + count,
    ));
    Ok((status, response, body).into_response())
}

/// Opens a file: how its path is shown, the file, and its length. Blocks.
fn open(workspace: &Workspace, path: &str) -> Result<(String, File, u64), Problem> {
    let opened = workspace.path(path).and_then(|path| {
        let (file, length) = workspace.open(&path)?;
        Ok((path.display(), file, length))
    });
    opened.map_err(|error| match error {
        // With the path as the client wrote it.
        WorkspaceError::NotFound(_) => no_file(path),
        error => error.into(),
    })
}

/// A range of a file, read as the client takes it.
fn pieces(
    user_work: UserWork,
    user: UserId,
    file: File,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> {
    let file = Arc::new(file);
    futures::stream::try_unfold(range.start, move |at| {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let (user_work, user, file) = (user_work.clone(), user.clone(), file.clone());
        async move {
            if left == 0 {
                return Ok(None);
            }
            // The download has begun, so it waits however many others do.
            let slot = user_work.patient_slot(&user).await;
            let read = slot.run(move || {
                let mut piece = vec![0; left.min(PIECE)];
                let count = file.read_at(&mut piece, at)?;
                piece.truncate(count);
                Ok::<_, io::Error>(piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            let next = at + piece.len() as u64;
            Ok((!piece.is_empty()).then(|| (piece.into(), next)))
        }
    })
}

/// Whose workspace is asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct ArchiveQuery {
    /// The session (not the chat).
    session_id: String,
}

/// Download a workspace
///
/// A `tar.gz` of all of it, made while it is sent: what the tree leaves out too. Links are links.
/// What could not be put in is listed in `left-out-of-this-archive.txt`.
#[utoipa::path(
    get, path = "/api/v1/files/archive", tag = "files", params(ArchiveQuery),
    responses(
        (status = 200, description = "The archive", body = Vec<u8>, content_type = "application/gzip"),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's session", body = Problem),
        (status = 404, body = Problem),
        (status = 422, body = Problem),
        (status = 429, description = "An archive is being made for this user already, or too many of their requests wait", body = Problem),
        (status = 503, description = "Too many archives are being made", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn archive(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Query(query): Query<ArchiveQuery>,
) -> Result<Response, Problem> {
    let opened = api.in_workspace(&query.session_id, &who, |workspace, _| Ok(workspace));
    let not_started = || Problem::not_found("The session has not started, so it has no files yet.");
    let workspace = opened.await?.ok_or_else(not_started)??;
    let turn = api.parts.archives.acquire(&who.user)?;
    let (sender, mut pieces) = mpsc::channel(BUFFERED_CHUNKS);
    let id = query.session_id;
    let name = format!("workspace-{id}.tar.gz");
    let cancelled = CancelFlag::default();
    let connection = cancelled.on_drop();
    tokio::task::spawn_blocking(move || {
        // Held for as long as the thread is busy, whatever happens to the connection.
        let _turn = turn;
        pack(&workspace, sender, &id, &cancelled);
    });
    let body = futures::stream::poll_fn(move |context| {
        let _connection = &connection;
        pieces.poll_recv(context)
    });
    let headers = save_as(&name, "application/gzip");
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Sends an archive to its end, or logs why not. Blocks.
fn pack(
    workspace: &Workspace,
    sender: mpsc::Sender<io::Result<Bytes>>,
    session: &str,
    cancelled: &CancelFlag,
) {
    let mut pipe = ChunkWriter {
        sender,
        piece: Vec::with_capacity(PIECE),
        waited: Duration::ZERO,
        sent: 0,
        disconnected: false,
    };
    let packed = workspace.archive(&mut pipe, cancelled);
    if let Err(cause) = packed {
        tracing::info!(session, %cause, "an archive was not sent to its end");
        // The connection is aborted: half an archive must not look like a complete one.
        let broken = io::Error::other("the archive is not whole");
        let _ = pipe.sender.try_send(Err(broken));
    }
}

/// A writer that sends chunks to the client.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
    /// How long the client has been waited for.
    waited: Duration,
    sent: u64,
    /// Whether the client is gone, so that sending is not tried twice.
    disconnected: bool,
}

impl ChunkWriter {
    fn send(&mut self) -> io::Result<()> {
        if self.disconnected {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let due = TIMEOUT + Duration::from_secs(self.sent / SLOWEST);
        let patience = due.saturating_sub(self.waited).min(TIMEOUT);
        self.sent += piece.len() as u64;
        let begun = Instant::now();
        // This thread is dedicated, and may block.
        let sent = tokio::runtime::Handle::current()
            .block_on(self.sender.send_timeout(Ok(piece.into()), patience));
        self.waited += begun.elapsed();
        sent.map_err(|error| {
            self.disconnected = true;
            match error {
                mpsc::error::SendTimeoutError::Timeout(_) => {
                    io::Error::new(io::ErrorKind::TimedOut, "the client took it too slowly")
                }
                mpsc::error::SendTimeoutError::Closed(_) => {
                    io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone")
                }
            }
        })
    }
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        let count = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            Ok(())
        } else {
            self.send()
        }
    }
}

/// The users whose archives are being made.
#[derive(Debug, Clone, Default)]
pub(super) struct ArchiveSlots(Arc<Mutex<HashSet<UserId>>>);

impl ArchiveSlots {
    /// Reserves a slot: one for each user, and a few in all.
    fn acquire(&self, user: &UserId) -> Result<ArchiveSlot, Problem> {
        let mut making = self.0.lock();
        if making.contains(user) {
            return Err(Problem::too_many(
                "An archive is being made for you already. Try again when it is done.",
            ));
        }
        if making.len() >= MOST_ARCHIVES {
            return Err(Problem::unavailable(
                "Too many archives are being made. Try again in a moment.",
            ));
        }
        making.insert(user.clone());
        Ok(ArchiveSlot {
            archives: self.clone(),
            user: user.clone(),
        })
    }
}

struct ArchiveSlot {
    archives: ArchiveSlots,
    user: UserId,
}

impl Drop for ArchiveSlot {
    fn drop(&mut self) {
        let mut making = self.archives.0.lock();
        making.remove(&self.user);
    }
}

/// The requested bytes of a file.
#[derive(Debug, PartialEq, Eq)]
enum ByteRange {
    /// All: the request has no range that this server understands.
    All,
    /// From the first to the last byte, inclusive.
    Part(u64, u64),
    /// A range outside of the file.
    None,
}

impl ByteRange {
    fn read(value: &HeaderValue, length: u64) -> Self {
        let header = value.to_str().unwrap_or_default();
        // Several ranges would need a multipart response; a server may ignore them.
        let Some(ranges) = parse_range_header(header).ok().filter(|all| all.len() == 1) else {
            return Self::All;
        };
        match ranges.validate(length) {
            Ok(ranges) => ranges
                .first()
                .map_or(Self::None, |range| Self::Part(*range.start(), *range.end())),
            Err(_) => Self::None,
        }
    }
}

/// An entity tag for the file's present state.
fn tag(file: &std::fs::File, length: u64) -> io::Result<HeaderValue> {
    let data = file.metadata()?;
    let tag = format!(
        "\"{:x}-{length:x}-{:x}-{:x}\"",
        data.ino(),
        data.ctime(),
        data.ctime_nsec()
    );
    Ok(value(&tag))
}

/// A header value from text that is known to be valid.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

/// Headers that make a browser save the body, whatever it contains.
fn save_as(name: &str, kind: &'static str) -> HeaderMap {
    const POLICY: HeaderName = header::CONTENT_SECURITY_POLICY;
    HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_DISPOSITION, value(&disposition(name))),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            POLICY,
            HeaderValue::from_static("default-src 'none'; sandbox"),
        ),
    ])
}

/// RFC 6266: an ASCII name for old clients, and the real name for the others. Neither contains a
/// slash, a quote or an unprintable character, and neither begins with a dot.
fn disposition(name: &str) -> String {
    let mut clean: String = name
        .chars()
        .map(|c| match c {
            // Bidirectional overrides can make `exe.txt` look like `txt.exe`.
            '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '_',
            '/' | '\\' | '"' | ':' | '*' | '?' | '<' | '>' | '|' => '_',
            c if c.is_control() => '_',
            c => c,
        })
        .collect();
    if clean.len() > LONGEST_NAME {
        // Its end has the extension.
        let from = clean.ceil_char_boundary(clean.len() - LONGEST_NAME);
        clean.drain(..from);
    }
    let clean = clean.trim_matches([' ', '.']);
    let dot = if name.starts_with('.') { "_." } else { "" };
    let clean = match clean {
        "" => "file".to_owned(),
        clean => format!("{dot}{clean}"),
    };
    let plain: String = clean
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '_'
            }
        })
        // Some clients decode it.
        .map(|c| if c == '%' { '_' } else { c })
        .collect();
    let encoded: String = clean
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated;
    use proptest::prelude::*;

    use super::*;
    use lucid_types::ids::SessionId;

    #[test]
    fn a_hostile_name_is_a_name_and_nothing_else() {
        for (name, plain, encoded) in [
            ("a.txt", "a.txt", "a.txt"),
            ("Größe 5.txt", "Gr__e 5.txt", "Gr%C3%B6%C3%9Fe%205.txt"),
            (
                "x\"; filename=evil.html",
                "x_; filename=evil.html",
                "x_%3B%20filename%3Devil.html",
            ),
            (
                "a\r\nSet-Cookie: b",
                "a__Set-Cookie_ b",
                "a__Set-Cookie_%20b",
            ),
            ("..\\..\\evil", "_._.._evil", "_._.._evil"),
            (".bashrc", "_.bashrc", "_.bashrc"),
            ("...", "file", "file"),
            ("", "file", "file"),
            ("gpj.\u{202e}exe", "gpj._exe", "gpj._exe"),
            ("100%41", "100_41", "100%2541"),
        ] {
            let expected = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}");
            assert_eq!(disposition(name), expected, "{name:?}");
            assert!(
                HeaderValue::from_str(&disposition(name)).is_ok(),
                "{name:?}"
            );
        }
        let long = disposition(&format!("{}.tar.gz", "ü".repeat(5000)));
        assert!(long.ends_with(".tar.gz") && long.len() < 1000, "{long}");
    }

    #[test]
    fn a_range_is_within_the_file_or_none() {
        for (asked, length, expected) in [
            ("bytes=0-9", 100, ByteRange::Part(0, 9)),
            ("bytes=90-", 100, ByteRange::Part(90, 99)),
            ("bytes=-10", 100, ByteRange::Part(90, 99)),
            ("bytes=-1000", 100, ByteRange::Part(0, 99)),
            ("bytes=50-1000", 100, ByteRange::Part(50, 99)),
            (
                "bytes=0-99999999999999999999999",
                100,
                ByteRange::Part(0, 99),
            ),
            ("bytes=100-", 100, ByteRange::None),
            ("bytes=99999999999999999999999-", 100, ByteRange::None),
            ("bytes=-0", 100, ByteRange::None),
            ("bytes=0-", 0, ByteRange::None),
            ("bytes=-5", 0, ByteRange::None),
            ("bytes=9-3", 100, ByteRange::All),
            ("bytes=0-1,5-6", 100, ByteRange::All),
            ("bytes=a-b", 100, ByteRange::All),
            ("bytes=-", 100, ByteRange::All),
            ("lines=0-1", 100, ByteRange::All),
        ] {
            let value = HeaderValue::from_static(asked);
            assert_eq!(
                ByteRange::read(&value, length),
                expected,
                "{asked} of {length}"
            );
        }
    }

    #[test]
    fn a_user_has_one_archive_at_a_time_and_all_have_a_few() {
        let archives = ArchiveSlots::default();
        let user = |number: usize| UserId::from(format!("u{number}").as_str());
        let mut turns: Vec<_> = (0..MOST_ARCHIVES)
            .map(|number| archives.acquire(&user(number)).ok().unwrap())
            .collect();
        let status = |number| {
            archives
                .acquire(&user(number))
                .err()
                .map(|problem| problem.status())
        };
        assert_eq!(status(0), Some(StatusCode::TOO_MANY_REQUESTS));
        assert_eq!(status(99), Some(StatusCode::SERVICE_UNAVAILABLE));
        turns.pop();
        assert_eq!(status(99), None);
        assert_eq!(status(0), Some(StatusCode::TOO_MANY_REQUESTS));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_archive_that_nobody_takes_any_more_ends() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"u".into(), SessionId::new()).unwrap();
        let large = std::fs::File::create(workspace.host_path().join("large")).unwrap();
        large.set_len(8 << 30).unwrap();
        let (sender, mut pieces) = mpsc::channel(BUFFERED_CHUNKS);
        let packing = tokio::task::spawn_blocking(move || {
            pack(&workspace, sender, "s", &CancelFlag::default());
        });
        assert!(pieces.recv().await.unwrap().is_ok());
        drop(pieces);
        let ended = tokio::time::timeout(Duration::from_secs(30), packing);
        ended.await.expect("it went on").unwrap();
    }

    proptest! {
        #[test]
        fn a_mutated_range_lies_within_the_file(
            range in mutated(["bytes=0-499", "bytes=-500", "bytes=9500-", "bytes=0-0,-1"]),
            length in 0..10_000_u64,
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&range)
                && let ByteRange::Part(first, last) = ByteRange::read(&value, length)
            {
                prop_assert!(first <= last && last < length, "{}-{} of {}", first, last, length);
            }
        }
    }
}
