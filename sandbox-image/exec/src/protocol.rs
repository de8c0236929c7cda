//! The frames between the host and an exec server, and between a git helper and the host's gateway.
//!
//! A frame is `u32 length of the payload, u8 kind, u32 id, payload`, big-endian. Ids name commands;
//! the host chooses them.
//!
//! # Invariants
//! - A length above [`MAX_PAYLOAD`] ends the connection before a byte of the payload is read.
//! - An unknown kind is an error, never skipped.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Raised whenever a frame changes its meaning. Both ends must name the same one.
pub const VERSION: u32 = 4;
/// The most a frame may carry.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The most a command may take, its input included: as many frames as that needs.
pub const MAX_COMMAND: usize = 16 << 20;
/// The size of what precedes a payload.
pub const HEADER: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Server: I am ready. JSON [`Hello`].
    Hello = 1,
    /// Host: run a command. JSON [`Start`].
    Start = 2,
    /// Host: kill a command and its process group.
    Kill = 3,
    /// Server: bytes a command wrote, as they come.
    Output = 4,
    /// Server: the kept end of a command's output, just before its `Exit`.
    Tail = 5,
    /// Server: a command is over. JSON [`Exit`].
    Exit = 6,
    /// Server: a command could not be started. A sentence.
    Failed = 7,
    /// Server: a command could not be started, since the box has no room for another process. A
    /// sentence.
    Full = 8,
    /// Host: bytes for the standard input of a command that stays open; none end it.
    Input = 9,
    /// Host: a command that stays open may write so many bytes more: a big-endian `u32`.
    More = 10,
    /// Host: a part of a command that is too long for one frame. The last part is the `Start`.
    Part = 11,
    /// Git helper: the repository I want. JSON [`GitOpen`]. Answered with the advertisement.
    GitOpen = 16,
    /// Git helper: a part of a request.
    GitBody = 17,
    /// Git helper: the request is whole, send it.
    GitPost = 18,
    /// Gateway: a part of the answer.
    GitData = 19,
    /// Gateway: the answer is whole.
    GitEnd = 20,
    /// Gateway: no answer. A sentence.
    GitError = 21,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Start,
            Self::Kill,
            Self::Output,
            Self::Tail,
            Self::Exit,
            Self::Failed,
            Self::Full,
            Self::Input,
            Self::More,
            Self::Part,
            Self::GitOpen,
            Self::GitBody,
            Self::GitPost,
            Self::GitData,
            Self::GitEnd,
            Self::GitError,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Why bytes were not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFrame {
    /// The length that was announced.
    TooLong(usize),
    /// The kind that nobody knows.
    UnknownKind(u8),
}

impl fmt::Display for BadFrame {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(length) => write!(
                out,
                "a frame of {length} bytes is longer than the {MAX_PAYLOAD} allowed"
            ),
            Self::UnknownKind(kind) => write!(out, "a frame has the unknown kind {kind}"),
        }
    }
}

impl std::error::Error for BadFrame {}

/// What precedes a payload, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// The command it belongs to.
    pub id: u32,
    /// How many bytes follow.
    pub length: usize,
}

impl Header {
    /// Reads and checks a header.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, BadFrame> {
        let [l0, l1, l2, l3, kind, i0, i1, i2, i3] = bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(BadFrame::TooLong(length));
        }
        let kind = Kind::from_byte(kind).ok_or(BadFrame::UnknownKind(kind))?;
        Ok(Self {
            kind,
            id: u32::from_be_bytes([i0, i1, i2, i3]),
            length,
        })
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// The command it belongs to, 0 where it belongs to none.
    pub id: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame. A payload that is too long is cut; senders split long data with [`Frame::split`].
    #[must_use]
    pub fn new(kind: Kind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        let mut payload = payload.into();
        payload.truncate(MAX_PAYLOAD);
        Self { kind, id, payload }
    }

    /// A frame that carries JSON.
    pub fn json(kind: Kind, id: u32, value: &impl Serialize) -> io::Result<Self> {
        let payload = serde_json::to_vec(value)?;
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                BadFrame::TooLong(payload.len()),
            ));
        }
        Ok(Self { kind, id, payload })
    }

    /// The bytes on the wire that start a command.
    pub fn of_command(id: u32, start: &Start) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(start)?;
        if json.len() > MAX_COMMAND {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                BadFrame::TooLong(json.len()),
            ));
        }
        let last = json.len().saturating_sub(1) / MAX_PAYLOAD;
        let parts = json.chunks(MAX_PAYLOAD).enumerate().map(|(number, part)| {
            let kind = if number == last {
                Kind::Start
            } else {
                Kind::Part
            };
            Self::new(kind, id, part).encode()
        });
        Ok(parts.collect::<Vec<_>>().concat())
    }

    /// As many frames as the bytes need.
    pub fn split(kind: Kind, id: u32, bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes
            .chunks(MAX_PAYLOAD / 4)
            .map(move |part| Self::new(kind, id, part))
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend((self.payload.len() as u32).to_be_bytes());
        bytes.push(self.kind as u8);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Writes the frame in one piece.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        out.write_all(&self.encode())?;
        out.flush()
    }

    /// Reads one frame; `None` at a clean end between two.
    pub fn read_from(mut input: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        let mut have = 0;
        while have < HEADER {
            match input.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let header =
            Header::parse(header).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))?;
        let mut payload = vec![0; header.length];
        input.read_exact(&mut payload)?;
        Ok(Some(Self {
            kind: header.kind,
            id: header.id,
            payload,
        }))
    }
}

/// The server's first frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the server.
    pub version: u32,
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The command line of the shell in `argv`, where that is longer than an argument may be.
    #[serde(default)]
    pub script: Option<String>,
    /// Where it runs; the server's own folder where absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Added to the server's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// After which time the process group is killed.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// What it reads; nothing where absent.
    #[serde(default)]
    pub stdin: Option<String>,
    /// How many of the first bytes are sent as they come.
    pub output_head: usize,
    /// How many of the last bytes are kept.
    pub output_tail: usize,
    /// It stays open: `Input` frames are what it reads, and what it writes to standard output comes as
    /// the host grants it, `output_head` at first and `More` after that; until then it waits. Of
    /// standard error only the last `output_tail` bytes are kept.
    #[serde(default)]
    pub live: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, where it ended by itself.
    pub code: Option<i32>,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// The time-out killed it.
    pub timed_out: bool,
    /// The host killed it.
    pub killed: bool,
    /// How many bytes lie between the first and the last that were sent.
    pub omitted: u64,
    /// How many processes the kernel ended for want of memory since the last command's end.
    #[serde(default)]
    pub memory_kills: u64,
    /// How many new processes the kernel refused since the last command's end.
    #[serde(default)]
    pub refused_processes: u64,
}

/// What the server is started with.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Serve {
    /// Resource limits for everything in the box.
    pub limits: Limits,
    /// Confine the server and all below it with Landlock.
    #[serde(default)]
    pub confine: Option<Confine>,
    /// For a server that looks for its host: after how many seconds without one it ends. Never,
    /// where absent.
    #[serde(default)]
    pub patience_seconds: Option<u64>,
}

/// Resource limits.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Limits {
    /// How many processes and threads.
    pub processes: u64,
    /// The user runs other things too, which count against the same limit: allow for them.
    pub shared_user: bool,
    /// How many open files, each process.
    pub open_files: u64,
    /// How large a file may become.
    pub file_bytes: u64,
    /// How much data memory, each process. Unlimited where absent.
    #[serde(default)]
    pub data_bytes: Option<u64>,
}

/// What Landlock lets through.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Confine {
    /// Folders and files that may be read, written and run.
    pub read_write: Vec<String>,
    /// Folders and files that may be read and run.
    pub read_only: Vec<String>,
    /// Whether the network may be used.
    pub network: bool,
    /// Builds a root of its own first; all paths above are then of that root. The whole old root stays in
    /// sight where absent.
    #[serde(default)]
    pub root: Option<PrivateRoot>,
}

/// A root file system of the sandbox's own, made with namespaces that an ordinary user may create.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PrivateRoot {
    /// An existing folder to mount the new root on while it is built.
    pub mount_point: String,
    /// Paths that keep their place, with what is below them. One that does not exist is passed over.
    pub shown: Vec<String>,
    /// Paths of the host and where they appear, in this order.
    pub placed: Vec<(String, String)>,
    /// How much fits into `/dev/shm`.
    pub shared_memory_bytes: u64,
    /// Whether there is a network without any interface but the loopback, instead of the host's.
    pub own_network: bool,
    /// The user and group id that processes have inside.
    pub user: u32,
}

/// A git helper's first frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GitOpen {
    /// [`VERSION`] of the helper.
    pub version: u32,
    /// What is in the file beside the socket: proof that the caller sits in this session's box.
    pub key: String,
    /// The repository.
    pub url: String,
    /// What git wants of it.
    #[serde(default)]
    pub service: GitService,
}

/// What git asks a server for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitService {
    /// Clone and fetch. Its requests are parts that end with a flush packet, each with an answer.
    #[default]
    #[serde(rename = "git-upload-pack")]
    Fetch,
    /// Push. There is one request.
    #[serde(rename = "git-receive-pack")]
    Push,
}

impl GitService {
    /// Git's own name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fetch => "git-upload-pack",
            Self::Push => "git-receive-pack",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_read_back_is_the_frame_that_was_written() {
        let frame = Frame::new(Kind::Output, 7, b"hello".to_vec());
        let bytes = frame.encode();
        assert_eq!(Frame::read_from(bytes.as_slice()).unwrap(), Some(frame));
        assert_eq!(Frame::read_from(&bytes[..0]).unwrap(), None);
        for cut in 1..bytes.len() {
            assert!(Frame::read_from(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut bytes = Frame::new(Kind::Output, 7, Vec::new()).encode();
        bytes[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = Frame::read_from(bytes.as_slice()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn a_long_command_is_as_many_frames_as_it_needs_and_one_that_is_too_long_is_none() {
        let start = |length: usize| Start {
            script: Some("x".repeat(length)),
            ..Start::default()
        };
        for (length, parts) in [(0, 0), (MAX_PAYLOAD, 1), (3 * MAX_PAYLOAD, 3)] {
            let bytes = Frame::of_command(7, &start(length)).unwrap();
            let mut rest = bytes.as_slice();
            let mut json = Vec::new();
            for number in 0..=parts {
                let frame = Frame::read_from(&mut rest).unwrap().unwrap();
                let kind = if number == parts {
                    Kind::Start
                } else {
                    Kind::Part
                };
                assert_eq!((frame.kind, frame.id), (kind, 7));
                json.extend(frame.payload);
            }
            assert!(rest.is_empty());
            let read: Start = serde_json::from_slice(&json).unwrap();
            assert_eq!(read.script.unwrap().len(), length);
        }
        assert!(Frame::of_command(7, &start(MAX_COMMAND)).is_err());
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        let mut bytes = Frame::new(Kind::Output, 7, Vec::new()).encode();
        bytes[4] = 99;
        assert!(Frame::read_from(bytes.as_slice()).is_err());
    }
}
