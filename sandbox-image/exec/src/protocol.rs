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
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Protocol version, incremented whenever a frame changes its meaning. Both ends must have the
/// same.
pub const VERSION: u32 = 6;
/// Maximum size of a frame's payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// Maximum size of a command in bytes, its input included, over as many frames as that needs.
pub const MAX_COMMAND: usize = 16 << 20;
/// Size of the header that precedes a payload, in bytes.
pub const HEADER: usize = 9;

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Server: I am ready. JSON [`Hello`]. Over a socket, the listener that [`Serve::proxy`] asks for and
    /// the interface that [`Serve::interface`] does come with the first byte, as descriptors.
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
    /// Server: a command could not be started. The payload is a sentence.
    Failed = 7,
    /// Server: a command could not be started, since the sandbox has no room for another process.
    /// The payload is a sentence.
    Full = 8,
    /// Host: bytes for the standard input of a command that stays open; an empty payload ends it.
    Input = 9,
    /// Host: a command that stays open may write this many more bytes: a big-endian `u32`.
    More = 10,
    /// Host: a part of a command that is too long for one frame. The last part is the `Start`.
    Part = 11,
    /// Git helper: opens a repository. JSON [`GitOpen`]. The reply is the advertisement.
    GitOpen = 16,
    /// Git helper: a part of a request.
    GitBody = 17,
    /// Git helper: the request is complete, send it.
    GitPost = 18,
    /// Gateway: a part of the response.
    GitData = 19,
    /// Gateway: the response is complete.
    GitEnd = 20,
    /// Gateway: the request failed. The payload is a sentence.
    GitError = 21,
}

impl FrameKind {
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

/// An error in parsing a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadFrame {
    /// The announced length exceeds [`MAX_PAYLOAD`].
    TooLong(usize),
    /// The kind is unknown.
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

/// A validated frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The command it belongs to.
    pub id: u32,
    /// Length of the payload in bytes.
    pub length: usize,
}

impl Header {
    /// Parses and validates a header.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, BadFrame> {
        let [l0, l1, l2, l3, kind, i0, i1, i2, i3] = bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(BadFrame::TooLong(length));
        }
        let kind = FrameKind::from_byte(kind).ok_or(BadFrame::UnknownKind(kind))?;
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
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The command it belongs to, or 0 if none.
    pub id: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Creates a frame. A payload that is too long is cut; senders split long data with
    /// [`Frame::split`].
    #[must_use]
    pub fn new(kind: FrameKind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        let mut payload = payload.into();
        payload.truncate(MAX_PAYLOAD);
        Self { kind, id, payload }
    }

    /// Creates a frame with a JSON payload.
    pub fn json(kind: FrameKind, id: u32, value: &impl Serialize) -> io::Result<Self> {
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
                FrameKind::Start
            } else {
                FrameKind::Part
            };
            Self::new(kind, id, part).encode()
        });
        Ok(parts.collect::<Vec<_>>().concat())
    }

    /// Splits `bytes` into as many frames as they need.
    pub fn split(kind: FrameKind, id: u32, bytes: &[u8]) -> impl Iterator<Item = Self> + '_ {
        bytes
            .chunks(MAX_PAYLOAD / 4)
            .map(move |part| Self::new(kind, id, part))
    }

    /// Encodes the frame as bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend((self.payload.len() as u32).to_be_bytes());
        bytes.push(self.kind as u8);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Writes the frame with a single write.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        out.write_all(&self.encode())?;
        out.flush()
    }

    /// Reads one frame; `None` at a clean end between two frames.
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
    /// The server's [`VERSION`].
    pub version: u32,
    /// Why the interface that [`Serve::interface`] asks for did not come: a sentence's beginning.
    #[serde(default)]
    pub no_interface: Option<String>,
}

/// A command to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The command line of the shell in `argv`, where that is longer than an argument may be.
    #[serde(default)]
    pub script: Option<String>,
    /// Working directory; the server's own if absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Environment variables added to the server's own.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Milliseconds after which the process group is killed.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Standard input; empty if absent.
    #[serde(default)]
    pub stdin: Option<String>,
    /// How many of the first output bytes are sent as they come.
    pub output_head: usize,
    /// How many of the last output bytes are kept.
    pub output_tail: usize,
    /// Whether the command stays open. Then `Input` frames are its standard input, and its standard
    /// output is sent as the host grants it, `output_head` bytes at first and `More` after that;
    /// until then it waits. Of standard error only the last `output_tail` bytes are kept.
    #[serde(default)]
    pub live: bool,
}

/// How a command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, if the command exited by itself.
    pub code: Option<i32>,
    /// Signal, if one ended the command.
    pub signal: Option<i32>,
    /// Whether the timeout killed it.
    pub timed_out: bool,
    /// Whether the host killed it.
    pub killed: bool,
    /// Number of bytes omitted between the first and the last that were sent.
    pub omitted: u64,
    /// Processes that the kernel killed for lack of memory since the last command's end.
    #[serde(default)]
    pub memory_kills: u64,
    /// New processes that the kernel refused since the last command's end.
    #[serde(default)]
    pub refused_processes: u64,
}

/// Parameters of the server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Serve {
    /// Resource limits for everything in the sandbox.
    pub limits: ResourceLimits,
    /// Landlock confinement of the server and everything below it.
    #[serde(default)]
    pub confine: Option<Confine>,
    /// The system calls that processes may make, and the sockets that they may create. Any, if
    /// absent.
    #[serde(default)]
    pub sockets: Option<Sockets>,
    /// A port on the loopback interface, 0 for any that is free: programs that want to reach the
    /// network find a proxy there. The server listens at it, names it in the environment of
    /// commands, and hands the listener to the host, which is the proxy.
    #[serde(default)]
    pub proxy: Option<u16>,
    /// A network interface of the sandbox's own, whose other end is the host: the server makes it, gives
    /// up the rights that this takes, and hands it to the host.
    #[serde(default)]
    pub interface: Option<HostInterface>,
    /// For a server that looks for its host: seconds without one after which it ends. Never, if
    /// absent.
    #[serde(default)]
    pub patience_seconds: Option<u64>,
}

/// How the interface that leads to the host is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInterface {
    /// Whether the server makes a network namespace for it first: it has no rights over the one that it
    /// starts in.
    #[serde(default)]
    pub own_namespace: bool,
    /// The user and the group that the server becomes once it is made. It stays who it is if absent.
    #[serde(default)]
    pub user: Option<u32>,
    /// A device file to use in place of `/dev/net/tun`, for a server that builds its own root.
    #[serde(default)]
    pub device: Option<PathBuf>,
}

/// The sandbox's addresses on the interface that leads to the host: from a network that RFC 7335 keeps for
/// the inner ends of tunnels, and from one that RFC 4193 lets everybody choose.
pub const SANDBOX_ADDRESSES: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 0, 2),
    Ipv6Addr::new(0xfd6c, 0x7563, 0x6964, 0, 0, 0, 0, 2),
);
/// The host's address at the other end, where it answers for names and for nothing else.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// The longest packet that passes, in bytes. It is as long as the kernel's own on the loopback interface,
/// since no wire has to take it.
pub const INTERFACE_MTU: u16 = 65_520;

/// What a process does, with the rights of the host, before it becomes the first one of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Files of control groups that a process writes to in order to join them.
    pub groups: Vec<PathBuf>,
    /// How early the kernel ends it when memory runs out, from -1000 to 1000.
    pub oom_score_adj: i32,
    /// The user and the group that it then becomes. It stays who it is if absent.
    pub user: Option<u32>,
}

/// Resource limits.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Maximum number of processes and threads.
    pub processes: u64,
    /// Whether the user runs other processes too, which count against the same limit and are
    /// allowed for.
    pub shared_user: bool,
    /// Maximum number of open files of each process.
    pub open_files: u64,
    /// Maximum size of a file, in bytes.
    pub file_bytes: u64,
    /// Maximum data memory of each process, in bytes. Unlimited if absent.
    #[serde(default)]
    pub data_bytes: Option<u64>,
}

/// The sockets that processes may create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    /// Local ones.
    Local,
    /// Local ones, and TCP connections to the port of [`Serve::proxy`]. For a sandbox without a
    /// network namespace; on a kernel that cannot enforce it, `Local`.
    Proxy,
    /// Local and IP sockets, which reach what their network namespace does.
    Ip,
}

/// The paths that Landlock allows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Confine {
    /// Folders and files that may be read, written and executed.
    pub read_write: Vec<String>,
    /// Folders and files that may be read and executed.
    pub read_only: Vec<String>,
    /// Private root that is built first; all paths above are then relative to it. The whole old
    /// root stays visible if absent.
    #[serde(default)]
    pub root: Option<PrivateRoot>,
}

/// A root file system of the sandbox's own, built with namespaces that an ordinary user may create.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PrivateRoot {
    /// An existing folder to mount the new root on while it is built.
    pub mount_point: String,
    /// Paths that keep their place, with everything below them. One that does not exist is skipped.
    pub shown: Vec<String>,
    /// Paths on the host and the paths where they appear, in this order.
    pub placed: Vec<(String, String)>,
    /// Size of `/dev/shm`, in bytes.
    pub shared_memory_bytes: u64,
    /// Whether the sandbox has a network of its own with only the loopback interface, instead of
    /// the host's.
    pub own_network: bool,
    /// User and group id of processes inside.
    pub user: u32,
}

/// A git helper's first frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GitOpen {
    /// The helper's [`VERSION`].
    pub version: u32,
    /// Content of the key file beside the socket: proof that the caller runs in this session's
    /// sandbox.
    pub key: String,
    /// URL of the repository.
    pub url: String,
    /// The requested service.
    #[serde(default)]
    pub service: GitService,
}

/// A service that git requests from a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GitService {
    /// Clone and fetch. Its requests are parts that end with a flush packet, each with a response.
    #[default]
    #[serde(rename = "git-upload-pack")]
    Fetch,
    /// Push. There is one request.
    #[serde(rename = "git-receive-pack")]
    Push,
}

impl GitService {
    /// Git's own name for the service.
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
    use lucid_mutations::mutated;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_read_back_is_the_frame_that_was_written() {
        let frame = Frame::new(FrameKind::Output, 7, b"hello".to_vec());
        let bytes = frame.encode();
        assert_eq!(Frame::read_from(bytes.as_slice()).unwrap(), Some(frame));
        assert_eq!(Frame::read_from(&bytes[..0]).unwrap(), None);
        for cut in 1..bytes.len() {
            assert!(Frame::read_from(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut bytes = Frame::new(FrameKind::Output, 7, Vec::new()).encode();
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
                    FrameKind::Start
                } else {
                    FrameKind::Part
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
        let mut bytes = Frame::new(FrameKind::Output, 7, Vec::new()).encode();
        bytes[4] = 99;
        assert!(Frame::read_from(bytes.as_slice()).is_err());
    }

    fn stream() -> Vec<u8> {
        let exit = Frame::json(FrameKind::Exit, 1, &Exit::default()).unwrap();
        let start = Frame::of_command(2, &Start::default()).unwrap();
        let output = Frame::new(FrameKind::Output, 1, b"hello".to_vec());
        [output.encode(), exit.encode(), start].concat()
    }

    proptest! {
        #[test]
        fn frames_of_mutated_bytes_are_those_that_were_sent_up_to_the_first_that_is_none(
            bytes in mutated([stream()]),
        ) {
            let mut rest = bytes.as_slice();
            let mut read = Vec::new();
            while let Ok(Some(frame)) = Frame::read_from(&mut rest) {
                prop_assert!(frame.payload.len() <= MAX_PAYLOAD);
                read.extend(frame.encode());
            }
            prop_assert_eq!(&bytes[..read.len()], read);
        }

        #[test]
        fn a_mutated_command_is_one_or_an_error(json in mutated([serde_json::to_vec(&Start::default()).unwrap()])) {
            if let Ok(start) = serde_json::from_slice::<Start>(&json) {
                prop_assert!(Frame::of_command(1, &start).is_ok());
            }
        }
    }
}
