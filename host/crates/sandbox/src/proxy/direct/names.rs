//! Answers questions for names by asking the machine's own name servers.
//!
//! # Invariants
//! - A question is passed on as it is, and nothing but a question: no update, no transfer of a zone.
//! - What a server answers names the question that it was asked. What else it says is not looked at.
//! - A question waits for its sandbox's turn among all lookups.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use crate::proxy::Shared;

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
/// The bits of a message's fourth byte that tell an error.
const ERROR: u8 = 0x0f;
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
    pub(super) async fn answer(&self, question: &[u8], shared: &Shared) -> Option<Vec<u8>> {
        if !is_question(question) {
            return None;
        }
        let _turn = shared.lookup_turn().await?;
        for server in self.servers() {
            let asked = tokio::time::timeout(PATIENCE, ask(server, question));
            if let Ok(Ok(answer)) = asked.await {
                return Some(answer);
            }
        }
        None
    }

    /// Answers the questions that come over a connection, one after the other.
    pub(super) async fn serve(&self, mut program: UnixStream, shared: &Shared) {
        while let Ok(Ok(question)) = tokio::time::timeout(SILENCE, read_message(&mut program)).await
        {
            let Some(answer) = self.answer_at_length(&question, shared).await else {
                return;
            };
            if write_message(&mut program, &answer).await.is_err() {
                return;
            }
        }
    }

    async fn answer_at_length(&self, question: &[u8], shared: &Shared) -> Option<Vec<u8>> {
        if !is_question(question) {
            return None;
        }
        let _turn = shared.lookup_turn().await?;
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
    let asked = Asked::parse(&message[HEADER..]);
    asks && asked.is_some_and(|asked| !TRANSFERS.contains(&asked.record))
}

/// What a message asks.
#[derive(PartialEq, Eq)]
struct Asked {
    /// In lower case, with the lengths of its parts.
    name: Vec<u8>,
    record: u16,
    class: u16,
}

impl Asked {
    /// Reads the question that begins here.
    fn parse(question: &[u8]) -> Option<Self> {
        let mut length = 0;
        loop {
            let part = *question.get(length)?;
            // A question comes first, so that there is nothing that it could point to.
            if part > 63 {
                return None;
            }
            length += 1 + usize::from(part);
            if part == 0 {
                break;
            }
        }
        let (name, rest) = question.split_at_checked(length)?;
        let [record, class] =
            [rest.get(..2)?, rest.get(2..4)?].map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
        Some(Self {
            // No length is a letter.
            name: name.to_ascii_lowercase(),
            record,
            class,
        })
    }
}

/// Whether this answers a question: it says so, has the question's number and repeats it, which only the
/// news of an error may leave out.
fn is_answer(message: &[u8], question: &[u8]) -> bool {
    let (Some(header), Some(asked)) = (message.first_chunk::<HEADER>(), question.get(HEADER..))
    else {
        return false;
    };
    let repeats = match header[4..6] {
        [0, 0] => header[3] & ERROR != 0,
        [0, 1] => {
            let repeated = Asked::parse(&message[HEADER..]);
            repeated.is_some() && repeated == Asked::parse(asked)
        }
        _ => false,
    };
    header[2] & ANSWER != 0 && header[..2] == question[..2] && repeats
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
        for length in 0..question(1).len() {
            assert!(!is_question(&question(1)[..length]), "{length}");
        }
    }

    #[test]
    fn an_answer_has_the_number_of_its_question_and_repeats_it() {
        let answer = |changes: &[(usize, u8)]| {
            let mut answer = question(1);
            answer[2] |= ANSWER;
            for (at, byte) in changes {
                answer[*at] = *byte;
            }
            is_answer(&answer, &question(1))
        };
        assert!(answer(&[]));
        assert!(answer(&[(13, b'E')]), "names are the same in any case");
        assert!(answer(&[(3, 1), (5, 0)]), "an error need not repeat it");
        assert!(!is_answer(&question(1), &question(1)), "no answer");
        for other in [(0, 8), (1, 8), (5, 0), (5, 2), (13, b'x'), (26, 28)] {
            assert!(!answer(&[other]), "{other:?}");
        }
        let mut whole = question(1);
        whole[2] |= ANSWER;
        for length in 0..question(1).len() {
            assert!(!is_answer(&whole[..length], &question(1)), "{length}");
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
