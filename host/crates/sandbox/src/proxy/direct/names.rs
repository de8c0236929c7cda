//! Answers questions for names by asking the machine's own name servers.
//!
//! # Invariants
//! - A question is passed on as it is, and nothing but a question: no update, no transfer of a zone.
//! - What a server answers is the answer to the question that it was asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// The port of name servers.
pub(super) const PORT: u16 = 53;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many servers are asked, one after the other, as programs do.
const MAX_SERVERS: usize = 3;
/// How long a program may be silent between two questions over one connection.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the machine's configuration is believed.
const FRESH: Duration = Duration::from_secs(5);
const CONFIGURATION: &str = "/etc/resolv.conf";

const HEADER: usize = 12;
/// The bits of a message's third byte that tell an answer, and what is asked for.
const ANSWER: u8 = 0x80;
const OPERATION: u8 = 0x78;
/// Types of questions, in the section of which there must be one.
const TRANSFERS: [u16; 2] = [251, 252];

/// The machine's name servers.
#[derive(Debug, Clone)]
pub(crate) struct NameServers(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    servers: Vec<SocketAddr>,
    read: Option<Instant>,
    is_fixed: bool,
}

impl NameServers {
    /// Those that the machine's resolver asks.
    pub(crate) fn of_machine() -> Self {
        Self::new(Vec::new(), false)
    }

    /// These.
    #[cfg(test)]
    pub(crate) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self::new(servers, true)
    }

    fn new(servers: Vec<SocketAddr>, is_fixed: bool) -> Self {
        Self(Arc::new(Mutex::new(Known {
            servers,
            read: None,
            is_fixed,
        })))
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut known = self.0.lock();
        let is_fresh = known.read.is_some_and(|read| read.elapsed() < FRESH);
        if !known.is_fixed && !is_fresh {
            let text = std::fs::read_to_string(CONFIGURATION).unwrap_or_default();
            known.servers = parse_servers(&text);
            known.read = Some(Instant::now());
        }
        known.servers.clone()
    }

    /// The answer to a question. `None` if it is none, or nobody answers.
    pub(super) async fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        if !is_question(question) {
            return None;
        }
        for server in self.servers() {
            let asked = tokio::time::timeout(PATIENCE, ask(server, question));
            if let Ok(Ok(answer)) = asked.await {
                return Some(answer);
            }
        }
        None
    }

    /// Answers the questions that come over a connection, one after the other.
    pub(super) async fn serve(&self, mut program: UnixStream) {
        while let Ok(Ok(question)) = tokio::time::timeout(SILENCE, read_message(&mut program)).await
        {
            let Some(answer) = self.answer_at_length(&question).await else {
                return;
            };
            if write_message(&mut program, &answer).await.is_err() {
                return;
            }
        }
    }

    async fn answer_at_length(&self, question: &[u8]) -> Option<Vec<u8>> {
        if !is_question(question) {
            return None;
        }
        for server in self.servers() {
            let asked = async {
                let mut stream = TcpStream::connect(server).await?;
                write_message(&mut stream, question).await?;
                read_message(&mut stream).await
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, asked).await
                && is_answer(&answer, question)
            {
                return Some(answer);
            }
        }
        None
    }
}

/// Asks a server from a port that nobody can guess.
async fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    loop {
        let mut answer = Vec::with_capacity(usize::from(u16::MAX));
        socket.recv_buf(&mut answer).await?;
        if is_answer(&answer, question) {
            return Ok(answer);
        }
    }
}

async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = from.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    from.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes(), message].concat())
        .await
}

/// Whether this asks one question of a name (RFC 1035, section 4.1), and for no zone.
pub(super) fn is_question(message: &[u8]) -> bool {
    let Some(header) = message.first_chunk::<HEADER>() else {
        return false;
    };
    let asks = header[2] & (ANSWER | OPERATION) == 0 && header[4..6] == [0, 1];
    asks && type_of_question(&message[HEADER..]).is_some_and(|of| !TRANSFERS.contains(&of))
}

/// The type that follows the name in a question.
fn type_of_question(mut question: &[u8]) -> Option<u16> {
    loop {
        let (length, rest) = question.split_first()?;
        // A question comes first, so that there is nothing that it could point to.
        if *length > 63 {
            return None;
        }
        if *length == 0 {
            return rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        }
        question = rest.get(usize::from(*length)..)?;
    }
}

fn is_answer(message: &[u8], question: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & ANSWER != 0 && message[..2] == question[..2]
}

fn parse_servers(configuration: &str) -> Vec<SocketAddr> {
    let named = configuration.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    });
    let mut servers: Vec<_> = named.take(MAX_SERVERS).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for the address of a name, of this type.
    fn question(of: u16) -> Vec<u8> {
        let header = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let name = b"\x07example\x03com\x00";
        [&header[..], name, &of.to_be_bytes(), &[0, 1]].concat()
    }

    #[test]
    fn only_a_question_for_a_name_is_passed_on() {
        assert!(is_question(&question(1)));
        assert!(is_question(&question(28)));
        // Transfers of whole zones.
        assert!(!is_question(&question(252)) && !is_question(&question(251)));
        for (at, byte) in [(2, 0x80), (2, 0x28), (5, 0), (5, 2), (12, 0xc0)] {
            let mut other = question(1);
            other[at] = byte;
            assert!(!is_question(&other), "{at}");
        }
        for length in 0..question(1).len() - 2 {
            assert!(!is_question(&question(1)[..length]), "{length}");
        }
    }

    #[test]
    fn the_machines_name_servers_are_read_as_its_resolver_reads_them() {
        let text = "# nameserver 192.0.2.9\nsearch corp\nnameserver 192.0.2.1\nnameserver\nnameserver x\n  nameserver 2001:db8::1 # two\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let servers: Vec<String> = parse_servers(text)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            servers,
            ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]
        );
    }
}
