//! The parts of the host's system that programs in a sandbox see, whatever the backend.
//!
//! # Invariants
//! - All of it is read-only.
//! - None of it is a secret or a user's.
//! - A path that a machine does not have is skipped.

/// The system's programs and libraries.
pub(super) const USR: &str = "/usr";

/// Siblings of `/usr`: on many systems links into it.
pub(super) const BESIDE_USR: [&str; 7] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
];

/// What programs need of `/etc`: system tables and defaults installed by packages, and files that
/// identify the system. Files in which administrators keep passwords, tokens or environments are
/// not among them (`environment`, `profile.d`, `default`, `gitconfig`, `pip.conf`, `npmrc`,
/// `netrc`).
const ETC: [&str; 60] = [
    "ImageMagick-6",
    "ImageMagick-7",
    "alpine-release",
    "alternatives",
    "arch-release",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "dpkg",
    "ethertypes",
    "fedora-release",
    "fonts",
    "gai.conf",
    "gentoo-release",
    "groff",
    "host.conf",
    "inputrc",
    "issue",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "locale.gen",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "mailcap",
    "manpath.config",
    "mime.types",
    "nanorc",
    "netconfig",
    "networks",
    "nsswitch.conf",
    "openssl",
    "os-release",
    "papersize",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "python",
    "redhat-release",
    "rpc",
    "services",
    "shells",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "system-release",
    "terminfo",
    "texmf",
    "timezone",
    "vim",
    "xattr.conf",
];
/// The same for names that contain a version: directories with a language's own defaults.
const ETC_PREFIXES: [&str; 2] = ["java-", "python3"];

/// The absolute paths of what a sandbox has of `/etc`.
pub(super) fn etc() -> Vec<String> {
    let listed = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    let versions = listed
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| ETC_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
    let known = ETC.iter().map(|name| (*name).to_owned());
    let names = known.chain(versions);
    names.map(|name| format!("/etc/{name}")).collect()
}

/// The resolver's configuration; only if the sandbox has a network.
pub(super) const RESOLVER: &str = "/etc/resolv.conf";
