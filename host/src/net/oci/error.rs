//! Errors between the host and a registry, and their messages.
//!
//! # Invariants
//! - An error names hosts, never a whole URL, which may hold a token.
//! - An error does not repeat what a server said.

use crate::types::plural;
use std::io;
use std::time::Duration;

/// Why a component is not there. It ends a sentence that names the component.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
    /// Nobody answers there.
    #[error("{host} cannot be reached ({detail})")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What the system said.
        detail: String,
    },
    /// It leads to an address that is not asked.
    #[error(
        "{host} is at an address that is not asked: a metadata service's, or one of a private network that the manifest's [registries] does not name"
    )]
    Address {
        /// Which host.
        host: String,
    },
    /// It sent on to where nothing is fetched from.
    #[error(
        "{host} sends on to {to}, where nothing is fetched from: it must be https and public, or in the manifest's [registries]"
    )]
    SendsAway {
        /// Who was asked.
        host: String,
        /// Where to, without path and query.
        to: String,
    },
    /// It sends on and on.
    #[error("{host} sends on from place to place without an end")]
    SendsAround {
        /// Who was asked.
        host: String,
    },
    /// It took too long.
    #[error("{host} took longer than {}", plural::count(.limit.as_secs(), "second"))]
    Slow {
        /// Who was asked.
        host: String,
        /// What is waited.
        limit: Duration,
    },
    /// Whoever asked may not have it.
    #[error(
        "{host} refuses it (HTTP {status}): {}", if *.known { "the user and password of its entry in [registries] are not good for it" } else { "say `user` and `password` in [registries.\"…\"], and set the variable, or make it public" }
    )]
    Refused {
        /// Who was asked.
        host: String,
        /// HTTP status.
        status: u16,
        /// There were a user and a password.
        known: bool,
    },
    /// The user and password cannot be sent.
    #[error(
        "the user and password for {host} cannot be sent: a user has no colon, and both are plain characters"
    )]
    Credentials {
        /// For whom they are.
        host: String,
    },
    /// It is not there.
    #[error("{host} knows no such component, or shows it to others only")]
    Missing {
        /// Who was asked.
        host: String,
    },
    /// It answered something else.
    #[error("{host} answered HTTP {status}{}", if *.status == 429 || *.status >= 500 { ": try again later" } else { "" })]
    Answered {
        /// Who was asked.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// The answer broke off.
    #[error("the answer of {host} broke off ({detail})")]
    Broken {
        /// Who was asked.
        host: String,
        /// What the system said.
        detail: String,
    },
    /// What came is not what it must be.
    #[error("{0}")]
    Wrong(String),
    /// The disk.
    #[error("it cannot be kept or read: {0}")]
    Disk(#[from] io::Error),
}
