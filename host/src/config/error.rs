//! Configuration errors.
//!
//! # Invariants
//!
//! - Each message is one line that names the setting or the file and says what to do, and none
//!   shows a secret.

use std::io;
use std::path::PathBuf;

/// A configuration error. Each message is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not one of the permitted ones.
    #[error("{name} is {value}, but it must be {allowed}")]
    NotAllowed {
        /// The setting.
        name: &'static str,
        /// The given value, quoted and truncated.
        value: String,
        /// The permitted values, as the end of a sentence.
        allowed: &'static str,
    },
    /// A secret, or a value that may contain one, is unusable. The value is not shown.
    #[error("{name} cannot be used: it must be {allowed} (what was given is not shown here)")]
    BadSecret {
        /// The setting.
        name: &'static str,
        /// The permitted values, as the end of a sentence.
        allowed: &'static str,
    },
    /// A secret that protects other people's data is so short that it can be guessed. The value is
    /// not shown.
    #[error(
        "{name} cannot be used: it must be at least {least} bytes, since a shorter one can be guessed (what was given is not shown here)"
    )]
    ShortSecret {
        /// The setting.
        name: &'static str,
        /// The length that is needed, in bytes.
        least: usize,
    },
    /// A key that a manifest names is unusable. The value is not shown.
    #[error(
        "{name} cannot be used as a key: it must be printable ASCII without spaces or line breaks, since it is sent in a header (what was given is not shown here)"
    )]
    BadKey {
        /// The variable.
        name: String,
    },
    /// A variable of the environment is not Unicode.
    #[error("{name} cannot be used: it must be UTF-8 text (what was given is not shown here)")]
    NotText {
        /// The setting.
        name: String,
    },
    /// Local mode with an address that other machines can reach.
    #[error(
        "HOST is {value}, but without SUPABASE_JWT_SECRET or SUPABASE_URL the server runs in local mode, which listens on a loopback address only (127.0.0.1 or ::1): set SUPABASE_JWT_SECRET or SUPABASE_URL to serve others"
    )]
    LocalModeIsLocal {
        /// The given value, quoted and truncated.
        value: String,
    },
    /// The machine's network for sandboxes of several users.
    #[error(
        "SANDBOX_NETWORK is host, which is for local mode only: users' commands would reach this machine's own servers, its networks and each other; set proxy, and name hosts with private addresses in SANDBOX_PRIVATE_HOSTS, or set none"
    )]
    HostNetworkIsLocal,
    /// Sockets beside a proxy that is not there.
    #[error(
        "SANDBOX_DIRECT is set, which opens ports beside the proxy, but SANDBOX_NETWORK is not proxy: set SANDBOX_NETWORK=proxy, or remove SANDBOX_DIRECT"
    )]
    DirectIsBesideTheProxy,
    /// The `.env` file exists but cannot be read.
    #[error(".env cannot be read: {0}")]
    DotEnv(#[source] io::Error),
    /// A line of the `.env` file is not `NAME=value`.
    #[error(
        ".env cannot be read: line {line} is not NAME=value (quote a value that holds spaces or quotes)"
    )]
    DotEnvLine {
        /// The line's number, from 1.
        line: usize,
    },
    /// Other users can read a secret file.
    #[error(
        "{} can be read by other users (mode {mode:04o}): delete it to have a new one made, or run chmod 600 on it if nobody has read it",
        path.display()
    )]
    OpenSecretFile {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret file's content was modified.
    #[error(
        "{} does not hold 64 hexadecimal digits: put back the original, or delete it to have a new one made (what was made with the old one is then lost)",
        path.display()
    )]
    BadSecretFile {
        /// The file.
        path: PathBuf,
    },
    /// A secret file cannot be read or created.
    #[error("{} cannot be read or made: {source}. Is WORKSPACE_BASE_PATH a folder this user can write to?", path.display())]
    SecretFile {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}
