//! What a program says first, in HTTP or SOCKS 5, and what it is told.
//!
//! # Invariants
//! - A request is bounded in size, and nothing of it reaches a server before its destination was
//!   allowed.
//! - A connection carries one request, and its answer says so: a second one would go to the first one's
//!   server, whatever it asked for.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use url::Url;

use super::destination::{ConnectError, Destination};

/// The longest request, without its body.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// What belongs to one connection, in lower case: it is not for the server.
const OF_CONNECTION: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "host",
];

/// How long a program may take to be told why it is not connected.
const LAST_WORDS: Duration = Duration::from_secs(1);

const SOCKS: u8 = 5;
const SOCKS_NO_LOGIN: u8 = 0;
const SOCKS_CONNECT: u8 = 1;
/// The address that a reply names, which programs ignore: 0.0.0.0:0.
const SOCKS_ADDRESS: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];

/// Why a request is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the request did not arrive in time")]
    Slow,
    #[error(
        "there are as many connections as there may be, of your sandboxes or of all; try again in a moment"
    )]
    Busy,
    #[error("the request is not HTTP")]
    Http(#[from] httparse::Error),
    #[error("the request has more than {MAX_HEAD} bytes before its body")]
    TooLong,
    #[error("the request names no server; this is a proxy for HTTP and SOCKS 5")]
    NoDestination,
    #[error("a proxy is asked for https: URLs with CONNECT")]
    Https,
    #[error("of SOCKS, version 5 without a login and its CONNECT are served")]
    Socks,
}

/// How a program is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// HTTP's CONNECT.
    Connect,
    /// A request for an `http:` URL, which is the server's to answer.
    Forward,
    Socks,
}

/// A request for a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProxyRequest {
    pub(super) destination: Destination,
    /// What the server gets first.
    pub(super) first: Vec<u8>,
    form: Form,
}

/// Reads a request.
pub(super) async fn read(program: &mut TcpStream) -> Result<ProxyRequest, RequestError> {
    let mut first = [0];
    if program.peek(&mut first).await? == 1 && first[0] == SOCKS {
        return read_socks(program).await;
    }
    let mut bytes = Vec::with_capacity(1024);
    read_head(program, &mut bytes).await?;
    parse_http(&bytes)?.ok_or(RequestError::TooLong)
}

/// Reads up to the empty line that ends a head, and maybe beyond it. A head that is too long is cut.
async fn read_head(from: &mut (impl AsyncRead + Unpin), bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut seen = 0;
    // It is looked for in what is new: a head that comes byte by byte is not read again for each.
    while !has_empty_line(&bytes[seen..]) && bytes.len() < MAX_HEAD {
        seen = bytes.len().saturating_sub(3);
        if from.read_buf(bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn has_empty_line(bytes: &[u8]) -> bool {
    let is_end = |window: &[u8]| window.starts_with(b"\n\n") || window == b"\n\r\n";
    bytes.windows(3).any(is_end) || bytes.ends_with(b"\n\n")
}

/// `None` if there is more to come.
pub(super) fn parse_http(bytes: &[u8]) -> Result<Option<ProxyRequest>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(bytes)? else {
        return Ok(None);
    };
    if length > MAX_HEAD {
        return Err(RequestError::TooLong);
    }
    let (method, target) = (request.method.unwrap_or(""), request.path.unwrap_or(""));
    if method == "CONNECT" {
        return Ok(Some(ProxyRequest {
            destination: Destination::parse(target).ok_or(RequestError::NoDestination)?,
            first: bytes[length..].to_vec(),
            form: Form::Connect,
        }));
    }
    let url = Url::parse(target).map_err(|_| RequestError::NoDestination)?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(RequestError::Https),
        _ => return Err(RequestError::NoDestination),
    }
    let port = url.port().unwrap_or(80);
    let destination = url
        .host_str()
        .and_then(|host| Destination::new(host, port))
        .ok_or(RequestError::NoDestination)?;
    let mut first = for_server(&request, &url);
    first.extend(&bytes[length..]);
    Ok(Some(ProxyRequest {
        destination,
        first,
        form: Form::Forward,
    }))
}

/// Copies the head of a server's answer to a request for a URL, as the last of the connection: whether
/// the server keeps its side open is not the program's to know. Interim answers come before it.
pub(super) async fn forward_answer(
    server: &mut ReadHalf<'_>,
    program: &mut WriteHalf<'_>,
) -> io::Result<u64> {
    let mut bytes = Vec::with_capacity(1024);
    let mut received = 0;
    loop {
        read_head(server, &mut bytes).await?;
        let Some(head) = last_answer(&bytes) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        received += head.length as u64;
        program.write_all(&head.bytes).await?;
        bytes.drain(..head.length);
        if !head.is_interim {
            program.write_all(&bytes).await?;
            return Ok(received + bytes.len() as u64);
        }
    }
}

/// The head of an answer, for the program.
struct AnswerHead {
    bytes: Vec<u8>,
    /// How long it was as the server sent it.
    length: usize,
    /// Whether another one follows.
    is_interim: bool,
}

/// `None` for what is no answer.
fn last_answer(bytes: &[u8]) -> Option<AnswerHead> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = answer.parse(bytes).ok()? else {
        return None;
    };
    let code = answer.code?;
    let is_interim = code / 100 == 1 && code != 101;
    if is_interim || code == 101 {
        return Some(AnswerHead {
            bytes: bytes[..length].to_vec(),
            length,
            is_interim,
        });
    }
    let (version, reason) = (answer.version?, answer.reason.unwrap_or_default());
    let mut head = format!("HTTP/1.{version} {code} {reason}\r\n").into_bytes();
    add_headers(&mut head, answer.headers);
    head.extend(b"Connection: close\r\n\r\n");
    Some(AnswerHead {
        bytes: head,
        length,
        is_interim,
    })
}

/// Adds all that are not of one connection. Returns whether one asks for another protocol.
fn add_headers(head: &mut Vec<u8>, headers: &[httparse::Header<'_>]) -> bool {
    let mut upgrades = false;
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        if OF_CONNECTION.contains(&name.as_str()) {
            continue;
        }
        upgrades |= name == "upgrade";
        head.extend(header.name.as_bytes());
        head.extend(b": ");
        head.extend(header.value);
        head.extend(b"\r\n");
    }
    upgrades
}

/// The request as the server gets it: with a path in place of the URL, and as the connection's last.
fn for_server(request: &httparse::Request<'_, '_>, url: &Url) -> Vec<u8> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let method = request.method.unwrap_or_default();
    let version = request.version.unwrap_or(1);
    let mut head = format!("{method} {target} HTTP/1.{version}\r\nHost: {host}\r\n").into_bytes();
    let end: &[u8] = if add_headers(&mut head, request.headers) {
        b"Connection: close, Upgrade\r\n\r\n"
    } else {
        b"Connection: close\r\n\r\n"
    };
    head.extend(end);
    head
}

async fn read_socks(program: &mut TcpStream) -> Result<ProxyRequest, RequestError> {
    let [version, methods] = read_array(program).await?;
    let mut offered = vec![0; usize::from(methods)];
    program.read_exact(&mut offered).await?;
    if version != SOCKS || !offered.contains(&SOCKS_NO_LOGIN) {
        return Err(RequestError::Socks);
    }
    program.write_all(&[SOCKS, SOCKS_NO_LOGIN]).await?;
    let [version, command, _, kind] = read_array(program).await?;
    if (version, command) != (SOCKS, SOCKS_CONNECT) {
        return Err(RequestError::Socks);
    }
    let host = match kind {
        1 => std::net::Ipv4Addr::from(read_array::<4>(program).await?).to_string(),
        4 => std::net::Ipv6Addr::from(read_array::<16>(program).await?).to_string(),
        3 => {
            let [length] = read_array(program).await?;
            let mut name = vec![0; usize::from(length)];
            program.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| RequestError::NoDestination)?
        }
        _ => return Err(RequestError::Socks),
    };
    let port = u16::from_be_bytes(read_array(program).await?);
    Ok(ProxyRequest {
        destination: Destination::new(&host, port).ok_or(RequestError::NoDestination)?,
        first: Vec::new(),
        form: Form::Socks,
    })
}

async fn read_array<const N: usize>(program: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    program.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Tells a program whose request cannot be read.
pub(super) async fn refuse_unread(program: &mut TcpStream, error: &RequestError) {
    let answer = match error {
        RequestError::Io(_) => return,
        // No acceptable method, which is all that the protocol has for any of it.
        RequestError::Socks => vec![SOCKS, 0xff],
        RequestError::Busy => http_answer(
            "503 Service Unavailable",
            &format!("Lucid's proxy: {error}."),
        ),
        error => http_answer("400 Bad Request", &format!("Lucid's proxy: {error}.")),
    };
    tell(program, &answer).await;
}

/// Sends the last words of a connection. What the program still sends is read for a moment: the kernel
/// would discard them with a connection that is closed with bytes unread.
async fn tell(program: &mut TcpStream, answer: &[u8]) {
    let told = async {
        program.write_all(answer).await?;
        program.shutdown().await?;
        let mut rest = [0; 4096];
        let mut left = MAX_HEAD;
        while left > 0 {
            match program.read(&mut rest).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LAST_WORDS, told).await;
}

impl ProxyRequest {
    /// Whether the server answers in HTTP, to one request.
    pub(super) fn is_forwarded(&self) -> bool {
        self.form == Form::Forward
    }

    /// Tells the program that it is connected.
    pub(super) async fn accept(&self, program: &mut TcpStream) -> io::Result<()> {
        match self.form {
            Form::Connect => program.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await,
            Form::Socks => {
                let reply = [&[SOCKS, 0, 0][..], &SOCKS_ADDRESS].concat();
                program.write_all(&reply).await
            }
            Form::Forward => Ok(()),
        }
    }

    /// Tells the program why it is not connected.
    pub(super) async fn refuse(&self, program: &mut TcpStream, error: &ConnectError) {
        let answer = match (self.form, error) {
            (Form::Socks, ConnectError::Refused) => [&[SOCKS, 2, 0][..], &SOCKS_ADDRESS].concat(),
            (Form::Socks, _) => [&[SOCKS, 4, 0][..], &SOCKS_ADDRESS].concat(),
            (_, error) => {
                let status = match error {
                    ConnectError::Refused => "403 Forbidden",
                    ConnectError::SlowLookup | ConnectError::SlowConnect => "504 Gateway Timeout",
                    ConnectError::Lookup(_) | ConnectError::Connect(_) => "502 Bad Gateway",
                };
                let destination = &self.destination;
                http_answer(
                    status,
                    &format!("Lucid's proxy did not connect to {destination}: {error}."),
                )
            }
        };
        tell(program, &answer).await;
    }
}

/// An answer of the proxy's own, after which it closes the connection.
fn http_answer(status: &str, sentence: &str) -> Vec<u8> {
    let length = sentence.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{sentence}\n"
    )
    .into_bytes()
}
