//! What programs in a box see of the host's system, whatever the kind of box.
//!
//! What always holds: all of it is read-only; nothing here is a secret or a user's; a path that a
//! machine does not have is passed over.

/// The system's programs and libraries.
pub(super) const USR: &str = "/usr";

/// What stands beside `/usr`: on many systems links into it.
pub(super) const BESIDE_USR: [&str; 7] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
];

/// What programs need of `/etc`.
pub(super) const ETC: [&str; 14] = [
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/python3",
];

/// How names are looked up; only where the box has a network.
pub(super) const RESOLVER: &str = "/etc/resolv.conf";
