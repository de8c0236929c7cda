//! The sandbox's network namespace, set up by messages of rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const SET_LINK: u16 = 16;
const ADD_ROUTE: u16 = 24;
const REQUEST_WITH_ACK: u16 = 1 | 4;
const CREATE: u16 = 0x400;
const INTERFACE_UP: u32 = 1;
const LOOPBACK: u32 = 1;

const MAIN_TABLE: u8 = 254;
/// Set by whoever administers the network.
const STATIC: u8 = 4;
/// Of a route without a gateway.
const ON_LINK: u8 = 253;
const UNICAST: u8 = 1;
/// The attribute of a route with the interface that it leads through.
const THROUGH: u16 = 4;

/// Makes a network namespace with nothing in it but a loopback interface, and enters it.
pub(crate) fn enter_own_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    bring_loopback_up()
}

/// Brings up the only interface of a new network namespace; its addresses appear by themselves.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    let mut body = Vec::with_capacity(16);
    // Any address family, and any type.
    body.extend([0; 4]);
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend(INTERFACE_UP.to_ne_bytes());
    body.extend(INTERFACE_UP.to_ne_bytes());
    ask(&message(SET_LINK, 0, &body))
}

/// Routes all traffic of an address family through an interface.
pub(crate) fn route_all_through(interface: u32, like: IpAddr) -> io::Result<()> {
    ask(&message(ADD_ROUTE, CREATE, &default_route(interface, like)))
}

fn default_route(interface: u32, like: IpAddr) -> Vec<u8> {
    let family = match like {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    // A family is a number of 16 bits that is below 256.
    let [family, _] = family.as_raw().to_le_bytes();
    let mut body = Vec::with_capacity(20);
    // A destination and a source of no bits, and any kind of service.
    body.extend([family, 0, 0, 0]);
    body.extend([MAIN_TABLE, STATIC, ON_LINK, UNICAST]);
    body.extend([0; 4]);
    body.extend(8_u16.to_ne_bytes());
    body.extend(THROUGH.to_ne_bytes());
    body.extend(interface.to_ne_bytes());
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = 16 + body.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_WITH_ACK | flags).to_ne_bytes());
    // The sequence number and the receiver, the kernel.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Sends a message to the kernel, and waits for its answer.
fn ask(message: &[u8]) -> io::Result<()> {
    let socket: OwnedFd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // The protocol number of rtnetlink(7) is 0, which is what `None` means.
        None,
    )?;
    send(socket.as_fd(), message, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (got, _) = recv(socket.as_fd(), &mut answer, RecvFlags::empty())?;
    // After a header of 16 bytes, an acknowledgement holds 0 and a refusal the negated error
    // number.
    let code = answer[..got].get(16..20).and_then(|it| it.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_to_the_kernel_is_as_long_as_it_says() {
        for address in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let route = default_route(7, address);
            let made = message(ADD_ROUTE, CREATE, &route);
            assert_eq!(made.len(), 16 + 20);
            assert_eq!(made[..4], 36_u32.to_ne_bytes());
        }
    }
}
