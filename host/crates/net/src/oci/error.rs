//! Errors between the host and a registry, and their messages.
//!
//! # Invariants
//! - An error names hosts, never a whole URL, which may hold a token.
//! - An error does not repeat what a server said.

use std::io;
use std::time::Duration;

use lucid_types::plural;

/// An error in fetching a component. The message ends a sentence that names the component.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The HTTP client could not be created.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
    /// The connection failed.
    #[error("{host} cannot be reached ({detail})")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// The system's message.
        detail: String,
    },
    /// The host resolves to a blocked address.
    #[error(
        "{host} is at an address that is not asked: a metadata service's, or one of a private network that the manifest's [registries] does not name"
    )]
    Address {
        /// The host.
        host: String,
    },
    /// The registry redirects to a server that nothing is fetched from.
    #[error(
        "{host} sends on to {to}, where nothing is fetched from: it must be https and public, or in the manifest's [registries]"
    )]
    SendsAway {
        /// The host that was asked.
        host: String,
        /// The redirect's target, without path and query.
        to: String,
    },
    /// There are too many redirects.
    #[error("{host} sends on from place to place without an end")]
    SendsAround {
        /// The host that was asked.
        host: String,
    },
    /// The request took too long.
    #[error("{host} took longer than {}", plural::count(.limit.as_secs(), "second"))]
    Slow {
        /// The host that was asked.
        host: String,
        /// The time limit.
        limit: Duration,
    },
    /// The registry denied access.
    #[error(
        "{host} refuses it (HTTP {status}): {}", if *.known { "the user and password of its entry in [registries] are not good for it" } else { "say `user` and `password` in [registries.\"…\"], and set the variable, or make it public" }
    )]
    Refused {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
        /// Whether a user and a password were configured.
        known: bool,
    },
    /// The user and password cannot be sent.
    #[error(
        "the user and password for {host} cannot be sent: a user has no colon, and both are plain characters"
    )]
    Credentials {
        /// The host they are for.
        host: String,
    },
    /// The registry does not have it.
    #[error("{host} knows no such component, or shows it to others only")]
    Missing {
        /// The host that was asked.
        host: String,
    },
    /// The registry responded with an unexpected status.
    #[error("{host} answered HTTP {status}{}", if *.status == 429 || *.status >= 500 { ": try again later" } else { "" })]
    Answered {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// The response ended early.
    #[error("the answer of {host} broke off ({detail})")]
    Broken {
        /// The host that was asked.
        host: String,
        /// The system's message.
        detail: String,
    },
    /// The content is invalid.
    #[error("{0}")]
    Wrong(String),
    /// A disk operation failed.
    #[error("it cannot be kept or read: {0}")]
    Disk(#[from] io::Error),
}
