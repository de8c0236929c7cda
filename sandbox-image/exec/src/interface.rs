//! The network interface whose other end is the host: a tunnel, of which the host gets the packets that
//! no socket in the sandbox takes.
//!
//! # Invariants
//! - It is made before anything else runs in the sandbox, and what it takes to make one is given up then.
//! - Without it a sandbox starts as if none had been wanted, and the host is told why.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use lucid_exec::protocol::{INTERFACE_MTU, SANDBOX_ADDRESSES};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use tun_rs::DeviceBuilder;

use crate::network::route_all_through;

/// Its name in the sandbox.
const NAME: &str = "lucid0";

/// The interface, or why there is none.
pub(crate) type HandedInterface = Result<OwnedFd, InterfaceError>;

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InterfaceError {
    /// The driver does not make one.
    #[error("/dev/net/tun cannot be used: {0}")]
    Create(#[source] io::Error),
    /// It was made, and is of no use.
    #[error("its network interface cannot be set up: {0}")]
    SetUp(#[source] io::Error),
}

/// Makes the interface in this network namespace. It goes when nobody has what is returned any more.
pub(crate) fn hand_over() -> HandedInterface {
    let (old, new) = SANDBOX_ADDRESSES;
    let device = DeviceBuilder::new()
        .name(NAME)
        .mtu(INTERFACE_MTU)
        .ipv4(old, 32, None)
        .enable(true)
        .build_sync()
        .map_err(InterfaceError::Create)?;
    let set_up = || {
        let interface = device.if_index()?;
        route_all_through(interface, old.into())?;
        // A machine may have IPv6 turned off.
        let _ = device
            .add_address_v6(new, 128)
            .and_then(|()| route_all_through(interface, new.into()));
        device.as_fd().try_clone_to_owned()
    };
    set_up().map_err(InterfaceError::SetUp)
}

/// Gives up all rights that this process has beyond those of its user, and those of what it starts, after
/// becoming that user where it is to be another one. Must be called while there is a single thread.
pub(crate) fn give_up_rights(user: Option<u32>) -> Result<(), Errno> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel may not know the latest.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    clear_ambient_capability_set()?;
    if let Some(user) = user {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, none)
}
