//! The git remote helper `git-remote-lucid`: hands git's requests to the host's gateway, which
//! holds the token, and its answers back. Speaks `stateless-connect` of gitremote-helpers(7).
//!
//! What always holds: it fetches only; what fails is one sentence on standard error.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use lucid_exec::protocol::{Frame, GitOpen, Kind, VERSION};

/// The most one request to the server may be: many thousand `have` lines.
const MAX_REQUEST: usize = 16 << 20;

/// Serves git on standard input and output.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let [_, url] = arguments else {
        return Err("git calls this program; it is not run by hand".to_owned());
    };
    let mut input = io::stdin().lock();
    let mut output = io::stdout().lock();
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).map_err(lost_git)? == 0 {
            return Ok(());
        }
        let answer = match line.trim_end() {
            "" => return Ok(()),
            "capabilities" => "stateless-connect\noption\n\n",
            "stateless-connect git-upload-pack" => return connect(url, &mut input, &mut output),
            option if option.starts_with("option ") => "unsupported\n",
            _ => return Err("this session's repository can be fetched but not pushed to: the host publishes its work".to_owned()),
        };
        output
            .write_all(answer.as_bytes())
            .and_then(|()| output.flush())
            .map_err(lost_git)?;
    }
}

fn connect(url: &str, input: &mut impl Read, output: &mut impl Write) -> Result<(), String> {
    let socket = PathBuf::from(
        std::env::var_os("LUCID_GIT_SOCKET")
            .ok_or("this sandbox has no git gateway (LUCID_GIT_SOCKET is not set)")?,
    );
    let gateway = UnixStream::connect(&socket)
        .map_err(|error| format!("the host's git gateway cannot be reached: {error}"))?;
    let key = std::fs::read_to_string(socket.with_extension("key"))
        .map_err(|error| format!("the key of the git gateway cannot be read: {error}"))?;
    let open = GitOpen {
        version: VERSION,
        key,
        url: url.to_owned(),
    };
    Frame::json(Kind::GitOpen, 0, &open)
        .and_then(|frame| frame.write_to(&gateway))
        .map_err(lost_host)?;
    let mut advertisement = Vec::new();
    receive(&gateway, &mut advertisement)?;
    // The empty line says that the connection stands; the server's capabilities follow at once.
    output
        .write_all(b"\n")
        .and_then(|()| output.write_all(&advertisement))
        .and_then(|()| output.flush())
        .map_err(lost_git)?;
    while let Some(request) = read_request(input)? {
        for frame in Frame::split(Kind::GitBody, 0, &request) {
            frame.write_to(&gateway).map_err(lost_host)?;
        }
        Frame::new(Kind::GitPost, 0, Vec::new())
            .write_to(&gateway)
            .map_err(lost_host)?;
        receive(&gateway, &mut *output)?;
        output
            .write_all(b"0002")
            .and_then(|()| output.flush())
            .map_err(lost_git)?;
    }
    Ok(())
}

/// Copies one answer of the gateway.
fn receive(gateway: &UnixStream, mut output: impl Write) -> Result<(), String> {
    loop {
        match Frame::read_from(gateway).map_err(lost_host)? {
            Some(Frame {
                kind: Kind::GitData,
                payload,
                ..
            }) => output.write_all(&payload).map_err(lost_git)?,
            Some(Frame {
                kind: Kind::GitEnd, ..
            }) => return Ok(()),
            Some(Frame {
                kind: Kind::GitError,
                payload,
                ..
            }) => return Err(String::from_utf8_lossy(&payload).into_owned()),
            _ => return Err("the host's git gateway closed the connection".to_owned()),
        }
    }
}

/// Reads packet lines up to and with a flush; `None` where git is done.
fn read_request(input: &mut impl Read) -> Result<Option<Vec<u8>>, String> {
    let mut request = Vec::new();
    loop {
        let mut length = [0; 4];
        match input.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && request.is_empty() => {
                return Ok(None);
            }
            Err(error) => return Err(lost_git(error)),
        }
        let size = std::str::from_utf8(&length)
            .ok()
            .and_then(|text| usize::from_str_radix(text, 16).ok())
            .ok_or("git sent something that is not a packet line")?;
        request.extend(length);
        if size == 0 {
            return Ok(Some(request));
        }
        let start = request.len();
        let more = size.saturating_sub(4);
        if start + more > MAX_REQUEST {
            return Err(format!(
                "git's request is larger than the {MAX_REQUEST} bytes allowed"
            ));
        }
        request.resize(start + more, 0);
        input.read_exact(&mut request[start..]).map_err(lost_git)?;
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn lost_git(error: io::Error) -> String {
    format!("the connection to git broke: {error}")
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn lost_host(error: io::Error) -> String {
    format!("the connection to the host's git gateway broke: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ends_at_its_flush_packet() {
        let mut input: &[u8] = b"0014command=ls-refs\n00010009peel\n0000000cignored!";
        let request = read_request(&mut input).unwrap().unwrap();
        assert!(request.ends_with(b"0000"));
        assert_eq!(input, b"000cignored!");
    }

    #[test]
    fn a_request_cut_short_is_an_error_and_none_is_the_end() {
        assert!(read_request(&mut &b"0014comm"[..]).is_err());
        assert!(read_request(&mut &b"zzzz"[..]).is_err());
        assert_eq!(read_request(&mut &b""[..]).unwrap(), None);
    }
}
