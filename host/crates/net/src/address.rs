//! The one rule for which addresses the host connects to on somebody else's behalf.
//!
//! # Invariants
//!
//! - Addresses of cloud metadata services, unspecified, multicast and link-local ones are refused always. The
//!   one exception, a base URL that is itself a link-local address, is `resolver::literal_allowed`'s.
//! - Private addresses and this machine are refused unless the caller allows private ones.
//! - An IPv6 address that stands for an IPv4 address (mapped, NAT64, 6to4) is judged by that one.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Whether the host may connect to an address. `allow_private` also allows private addresses and this machine.
#[must_use]
pub fn address_allowed(address: IpAddr, allow_private: bool) -> bool {
    let v4 = match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => embedded_v4(v6),
    };
    let (never, private) = match (v4, address) {
        (Some(v4), _) => {
            let [a, b, c, _] = v4.octets();
            let never = v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
                || v4 == Ipv4Addr::new(168, 63, 129, 16);
            let private = v4.is_private()
                || v4.is_loopback()
                || matches!(
                    (a, b, c),
                    (0 | 240.., ..) | (100, 64..=127, _) | (198, 18 | 19, _) | (192, 0, 0)
                );
            (never, private)
        }
        (None, IpAddr::V6(v6)) => {
            let metadata =
                v6.segments()[..2] == [0xfd00, 0x0ec2] || v6.segments()[..2] == [0xfd20, 0x00ce];
            // A network's own NAT64 prefix: only that network knows where it holds the IPv4
            // address, usually at the end.
            let [a, b, c, .., g, h] = v6.segments();
            let own_nat64 = [a, b, c] == [0x64, 0xff9b, 1];
            let behind = Ipv4Addr::from((u32::from(g) << 16) | u32::from(h));
            let never = v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || metadata
                || (own_nat64 && !address_allowed(IpAddr::V4(behind), true));
            // Site-local addresses are the predecessors of unique-local ones.
            let site_local = a & 0xffc0 == 0xfec0;
            let private = v6.is_loopback() || v6.is_unique_local() || site_local || own_nat64;
            (never, private)
        }
        (None, IpAddr::V4(_)) => (true, true),
    };
    !never && (allow_private || !private)
}

/// Whether this machine has that address. A public one leads to servers here that a firewall may keep from
/// everybody else. Where it cannot be told, for a lack of descriptors say, it counts as this machine's.
#[must_use]
pub fn is_of_this_machine(address: IpAddr) -> bool {
    // Nobody has this one. A machine that lets sockets have it lets them have any address.
    let nobodys: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    match (is_source(address), can_be_bound(address)) {
        (Some(false), Some(false)) => false,
        (Some(false), Some(true)) => can_be_bound(nobodys) != Some(true),
        _ => true,
    }
}

/// Whether a packet to that address would come from the same one; `None` if that cannot be told. Nothing is sent.
fn is_source(address: IpAddr) -> Option<bool> {
    let unspecified: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((unspecified, 0)).ok()?;
    // Any port but 0, which is refused. An address that no route leads to is not this machine's.
    let source = socket
        .connect((address, 9))
        .and_then(|()| socket.local_addr());
    Some(source.is_ok_and(|source| source.ip().to_canonical() == address.to_canonical()))
}

/// Whether a socket may have that address; `None` if that cannot be told.
fn can_be_bound(address: IpAddr) -> Option<bool> {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Some(true),
        Err(error) => (error.kind() == ErrorKind::AddrNotAvailable).then_some(false),
    }
}

/// The IPv4 address embedded in an IPv6 address: mapped, NAT64, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let from = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => from(g, h),
        (0x2002, ..) => from(b, c),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_others() {
        for address in ["127.0.0.1", "127.8.9.10"] {
            assert!(is_of_this_machine(address.parse().unwrap()), "{address}");
        }
        for address in ["203.0.113.7", "8.8.8.8", "2001:db8::7"] {
            assert!(!is_of_this_machine(address.parse().unwrap()), "{address}");
        }
        assert_eq!(is_source(Ipv4Addr::LOCALHOST.into()), Some(true));
    }

    #[test]
    fn metadata_addresses_are_refused_always_and_private_ones_unless_allowed() {
        let allowed = |text: &str, private| address_allowed(text.parse().unwrap(), private);
        for text in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "100.100.100.200",
        ] {
            assert!(!allowed(text, true) && !allowed(text, false), "{text}");
        }
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "::1",
            "fd12::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "fec0::1",
            "64:ff9b:1::7f00:1",
        ] {
            assert!(allowed(text, true) && !allowed(text, false), "{text}");
        }
        for text in ["140.82.121.4", "2606:50c0:8000::153", "172.32.0.1"] {
            assert!(allowed(text, false), "{text}");
        }
    }
}
