//! What the operator opens to programs that do not ask the proxy.

use std::ops::RangeInclusive;
use std::str::FromStr;

/// A transport of packets that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum IpTransport {
    Tcp,
    Udp,
}

/// The ports of servers that programs reach by sockets of their own, as `SANDBOX_DIRECT` names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirectPorts(Vec<(IpTransport, RangeInclusive<u16>)>);

/// An entry of the list that names no ports.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is neither tcp nor udp, alone or with a port or a range of ports")]
pub struct DirectPortsError(String);

impl DirectPorts {
    /// Whether nothing is opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn permit(&self, transport: IpTransport, port: u16) -> bool {
        let mut entries = self.0.iter();
        entries.any(|(opened, ports)| *opened == transport && ports.contains(&port))
    }
}

impl FromStr for DirectPorts {
    type Err = DirectPortsError;

    /// Reads a list such as `tcp:5432,udp:3478-3497`, separated by commas.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entries = text
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        entries
            .map(|entry| parse_entry(entry).ok_or_else(|| DirectPortsError(entry.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn parse_entry(entry: &str) -> Option<(IpTransport, RangeInclusive<u16>)> {
    let (transport, ports) = match entry.split_once(':') {
        Some((transport, ports)) => (transport, Some(ports)),
        None => (entry, None),
    };
    let transport = match transport {
        "tcp" => IpTransport::Tcp,
        "udp" => IpTransport::Udp,
        _ => return None,
    };
    let Some(ports) = ports else {
        return Some((transport, 1..=u16::MAX));
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((transport, first..=last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_opens_the_ports_that_it_names_and_no_others() {
        let ports: DirectPorts = " tcp:5432, udp:3478-3480 ,udp:123".parse().unwrap();
        for (transport, port, expected) in [
            (IpTransport::Tcp, 5432, true),
            (IpTransport::Tcp, 5433, false),
            (IpTransport::Udp, 5432, false),
            (IpTransport::Udp, 3477, false),
            (IpTransport::Udp, 3478, true),
            (IpTransport::Udp, 3480, true),
            (IpTransport::Udp, 3481, false),
            (IpTransport::Udp, 123, true),
        ] {
            assert_eq!(
                ports.permit(transport, port),
                expected,
                "{transport:?} {port}"
            );
        }
        let all: DirectPorts = "tcp".parse().unwrap();
        assert!(all.permit(IpTransport::Tcp, 1) && !all.permit(IpTransport::Udp, 1));
        assert!("".parse::<DirectPorts>().unwrap().is_empty());
    }

    #[test]
    fn an_entry_that_names_no_ports_is_refused_and_named() {
        for wrong in [
            "icmp",
            "TCP",
            "tcp:",
            "tcp:0",
            "tcp:5-4",
            "tcp:65536",
            "tcp:a",
            "5432",
            "udp:1-2-3",
            "tcp:5432:1",
            "tcp 5432",
        ] {
            let refused = format!("tcp,{wrong}").parse::<DirectPorts>().unwrap_err();
            assert!(refused.to_string().contains(wrong), "{wrong}: {refused}");
        }
    }
}
