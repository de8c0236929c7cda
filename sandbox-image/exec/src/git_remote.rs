//! The git remote helper `git-remote-lucid`: forwards git's requests to the host's gateway, which
//! holds the token, and returns its responses. It speaks `connect` of gitremote-helpers(7), so that
//! fetching and pushing are git's own, with all their features.
//!
//! # Invariants
//! - A request is forwarded unchanged.
//! - A failure is one sentence on standard error.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use lucid_exec::protocol::{Frame, FrameKind, GitOpen, GitService, VERSION};

/// Maximum size of a request before a pack: many thousand `have` lines or branches.
const MAX_REQUEST: usize = 16 << 20;
/// How much of a pack goes into one frame, in bytes.
const PART: usize = 64 << 10;

/// Why git's request was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitRemoteError {
    /// The arguments are not those that git gives a remote helper.
    #[error("git calls this program; it is not run by hand")]
    Arguments,
    /// Git sent a command that was not among the announced capabilities.
    #[error("a repository can be fetched and pushed to here, and nothing else")]
    Command,
    /// The sandbox has no gateway.
    #[error("this sandbox has no git gateway (LUCID_GIT_SOCKET is not set)")]
    NoGateway,
    /// The gateway's socket accepts no connection.
    #[error("the host's git gateway cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// The key that the gateway asks for cannot be read.
    #[error("the key of the git gateway cannot be read: {0}")]
    Key(#[source] io::Error),
    /// Reading from or writing to git failed.
    #[error("the connection to git broke: {0}")]
    Git(#[source] io::Error),
    /// Reading from or writing to the gateway failed.
    #[error("the connection to the host's git gateway broke: {0}")]
    Gateway(#[source] io::Error),
    /// The gateway refused the request, with this sentence.
    #[error("{0}")]
    Refused(String),
    /// The gateway hung up before the end of a response.
    #[error("the host's git gateway closed the connection")]
    Closed,
    /// Git's request has another form than gitprotocol-common(5).
    #[error("git sent something that is not a packet line")]
    PacketLine,
    /// Git's request exceeds [`MAX_REQUEST`].
    #[error("git's request is larger than the {MAX_REQUEST} bytes allowed")]
    TooLarge,
}

impl GitRemoteError {
    fn refused(sentence: &[u8]) -> Self {
        Self::Refused(String::from_utf8_lossy(sentence).into_owned())
    }
}

/// Serves git on standard input and output.
pub(crate) fn run(arguments: &[String]) -> Result<(), GitRemoteError> {
    let [_, url] = arguments else {
        return Err(GitRemoteError::Arguments);
    };
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).map_err(GitRemoteError::Git)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => return Ok(()),
            "capabilities" => output
                .write_all(b"connect\n\n")
                .and_then(|()| output.flush())
                .map_err(GitRemoteError::Git)?,
            "connect git-upload-pack" => {
                let gateway = Gateway::open(url, GitService::Fetch, &mut output)?;
                return fetch(&gateway, &mut input, &mut output);
            }
            "connect git-receive-pack" => {
                let gateway = Gateway::open(url, GitService::Push, &mut output)?;
                return push(&gateway, &mut input, &mut output);
            }
            _ => return Err(GitRemoteError::Command),
        }
    }
}

fn fetch(
    gateway: &Gateway,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), GitRemoteError> {
    while let Some(request) = read_section(input)? {
        // A lone flush is how git ends the conversation.
        if request == b"0000" {
            return Ok(());
        }
        gateway.send(&request)?;
        gateway.sent()?;
        gateway.receive(output)?;
    }
    Ok(())
}

fn push(
    gateway: &Gateway,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<(), GitRemoteError> {
    let Some(commands) = read_section(input)?.filter(|section| section != b"0000") else {
        return Ok(());
    };
    gateway.send(&commands)?;
    if has_push_options(&commands)
        && let Some(options) = read_section(input)?
    {
        gateway.send(&options)?;
    }
    // A pack has no length: git closes its side after it. Where branches are only deleted there is
    // no pack, and git waits for the response.
    if brings_objects(&commands) {
        let mut part = vec![0; PART];
        loop {
            match input.read(&mut part) {
                Ok(0) => break,
                Ok(count) => gateway.send(&part[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(GitRemoteError::Git(error)),
            }
        }
    }
    gateway.sent()?;
    gateway.receive(output)
}

/// The connection to the host.
struct Gateway(UnixStream);

impl Gateway {
    /// Opens a repository, and forwards the server's advertisement to git.
    fn open(
        url: &str,
        service: GitService,
        output: &mut impl Write,
    ) -> Result<Self, GitRemoteError> {
        let socket =
            PathBuf::from(std::env::var_os("LUCID_GIT_SOCKET").ok_or(GitRemoteError::NoGateway)?);
        let stream = UnixStream::connect(&socket).map_err(GitRemoteError::Connect)?;
        let key =
            std::fs::read_to_string(socket.with_extension("key")).map_err(GitRemoteError::Key)?;
        let open = GitOpen {
            version: VERSION,
            key,
            url: url.to_owned(),
            service,
        };
        let gateway = Self(stream);
        let frame = Frame::json(FrameKind::GitOpen, 0, &open).map_err(GitRemoteError::Gateway)?;
        gateway.write(&frame)?;
        let mut advertisement = Vec::new();
        gateway.receive(&mut advertisement)?;
        // The empty line says that the connection is established; the server's capabilities follow
        // at once.
        output
            .write_all(b"\n")
            .and_then(|()| output.write_all(&advertisement))
            .and_then(|()| output.flush())
            .map_err(GitRemoteError::Git)?;
        Ok(gateway)
    }

    /// Sends a part of a request.
    fn send(&self, bytes: &[u8]) -> Result<(), GitRemoteError> {
        Frame::split(FrameKind::GitBody, 0, bytes).try_for_each(|frame| self.write(&frame))
    }

    /// Marks the request as complete.
    fn sent(&self) -> Result<(), GitRemoteError> {
        self.write(&Frame::new(FrameKind::GitPost, 0, Vec::new()))
    }

    fn write(&self, frame: &Frame) -> Result<(), GitRemoteError> {
        frame.write_to(&self.0).map_err(|error| {
            // A gateway that hangs up in the middle of a pack has sent the reason.
            match Frame::read_from(&self.0) {
                Ok(Some(Frame {
                    kind: FrameKind::GitError,
                    payload,
                    ..
                })) => GitRemoteError::refused(&payload),
                _ => GitRemoteError::Gateway(error),
            }
        })
    }

    /// Copies one response.
    fn receive(&self, output: &mut impl Write) -> Result<(), GitRemoteError> {
        loop {
            match Frame::read_from(&self.0).map_err(GitRemoteError::Gateway)? {
                Some(Frame {
                    kind: FrameKind::GitData,
                    payload,
                    ..
                }) => output
                    .write_all(&payload)
                    .and_then(|()| output.flush())
                    .map_err(GitRemoteError::Git)?,
                Some(Frame {
                    kind: FrameKind::GitEnd,
                    ..
                }) => return Ok(()),
                Some(Frame {
                    kind: FrameKind::GitError,
                    payload,
                    ..
                }) => return Err(GitRemoteError::refused(&payload)),
                _ => return Err(GitRemoteError::Closed),
            }
        }
    }
}

/// Reads packet lines up to and including a flush; `None` at the end of the input.
fn read_section(input: &mut impl Read) -> Result<Option<Vec<u8>>, GitRemoteError> {
    let mut section = Vec::new();
    loop {
        let mut length = [0; 4];
        match input.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && section.is_empty() => {
                return Ok(None);
            }
            Err(error) => return Err(GitRemoteError::Git(error)),
        }
        let size = std::str::from_utf8(&length)
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or(GitRemoteError::PacketLine)?;
        section.extend(length);
        if size == 0 {
            return Ok(Some(section));
        }
        let start = section.len();
        let more = size.saturating_sub(4);
        if start + more > MAX_REQUEST {
            return Err(GitRemoteError::TooLarge);
        }
        section.resize(start + more, 0);
        input
            .read_exact(&mut section[start..])
            .map_err(GitRemoteError::Git)?;
    }
}

/// The contents of the packet lines of a section.
fn lines(section: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = section;
    std::iter::from_fn(move || {
        let (length, _) = rest.split_at_checked(4)?;
        let size = usize::from_str_radix(std::str::from_utf8(length).ok()?, 16).ok()?;
        let (line, after) = rest.split_at_checked(size.max(4))?;
        rest = after;
        Some(&line[4..])
    })
}

/// Whether any command of a push (`old new name`) sets a ref, rather than deleting it.
fn brings_objects(commands: &[u8]) -> bool {
    lines(commands).any(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let hash = |word: &[u8]| word.len() >= 40 && word.iter().all(u8::is_ascii_hexdigit);
        let (old, new) = (words.next(), words.next());
        old.is_some_and(hash)
            && new.is_some_and(|new| hash(new) && new.iter().any(|byte| *byte != b'0'))
    })
}

/// Whether push options follow the commands: git says so among the capabilities of the first one.
fn has_push_options(commands: &[u8]) -> bool {
    lines(commands)
        .filter_map(|line| line.splitn(2, |byte| *byte == 0).nth(1))
        .flat_map(|abilities| abilities.split(|byte| matches!(byte, b' ' | b'\n')))
        .any(|ability| ability == b"push-options")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111";
    const NONE: &str = "0000000000000000000000000000000000000000";

    fn packets(lines: &[String]) -> Vec<u8> {
        let lines = lines
            .iter()
            .map(|line| format!("{:04x}{line}", line.len() + 4));
        let text: String = lines.chain(["0000".to_owned()]).collect();
        text.into_bytes()
    }

    #[test]
    fn a_request_ends_at_its_flush_packet() {
        let mut input: &[u8] = b"0014command=ls-refs\n00010009peel\n0000000cignored!";
        let request = read_section(&mut input).unwrap().unwrap();
        assert!(request.ends_with(b"0000"));
        assert_eq!(input, b"000cignored!");
    }

    #[test]
    fn a_request_cut_short_is_an_error_and_none_is_the_end() {
        assert!(read_section(&mut &b"0014comm"[..]).is_err());
        assert!(read_section(&mut &b"zzzz"[..]).is_err());
        assert_eq!(read_section(&mut &b""[..]).unwrap(), None);
    }

    #[test]
    fn a_push_that_only_deletes_has_no_pack_behind_it() {
        let delete = format!("{OLD} {NONE} refs/heads/a\0 report-status agent=git/2");
        let create = format!("{NONE} {OLD} refs/heads/b");
        let shallow = format!("shallow {OLD}");
        assert!(!brings_objects(&packets(std::slice::from_ref(&delete))));
        assert!(!brings_objects(&packets(&[
            shallow.clone(),
            delete.clone()
        ])));
        assert!(brings_objects(&packets(&[shallow, delete, create])));
    }

    #[test]
    fn push_options_are_expected_only_where_git_names_them() {
        let with = |abilities: &str| {
            has_push_options(&packets(&[format!(
                "{NONE} {OLD} refs/heads/a\0{abilities}"
            )]))
        };
        assert!(with(" report-status push-options agent=git/2"));
        assert!(with(" report-status push-options\n"));
        assert!(!with(" report-status agent=push-options-like"));
        assert!(!has_push_options(&packets(&[format!(
            "{NONE} {OLD} refs/heads/push-options"
        )])));
    }
}
