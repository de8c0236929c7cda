//! Why a git helper is not served. What an error says is what git's user reads, behind `git-remote-lucid: `.
//!
//! # Invariants
//! - No error holds the token, or words of a server.

use std::time::Duration;

use super::branch_policy::BranchPolicy;
use lucid_exec::protocol::GitService;
use lucid_types::plural;

/// An error in serving one helper.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    /// Its first frame is none that asks for something.
    #[error("the git helper did not say what it wants")]
    Hello,
    /// It is of another build.
    #[error("the git helper speaks another version than the host")]
    Version,
    /// It does not know the session's key.
    #[error("the git helper does not belong to this session")]
    Key,
    /// It wants a repository that the session may not reach.
    #[error("this session may reach {own} and {}{}", others(*.allow_owner), around(.neighbour.as_deref()))]
    Repository {
        /// The session's own repository.
        own: String,
        /// Whether others of the same owner may be reached.
        allow_owner: bool,
        /// The repository that git may have meant to reach by another way.
        neighbour: Option<String>,
    },
    /// It closed the connection.
    #[error("the git helper went away")]
    Gone,
    /// It sent nothing for a long time.
    #[error("the git helper was silent for too long")]
    Silent,
    /// It sent a frame that does not belong there.
    #[error("the git helper's request cannot be read")]
    Frame,
    /// Its request is larger than what is kept of one.
    #[error("git's request is too large")]
    LargeRequest,
    /// Its push is incomplete.
    #[error("git's push ends within its commands")]
    ShortPush,
    /// Its push is larger than the operator allows.
    #[error("this push is larger than {}", plural::size(*.most))]
    LargePush {
        /// The limit in bytes.
        most: u64,
    },
    /// The response is larger than the operator allows.
    #[error(
        "what the git server sends is larger than {}, the most that one clone or fetch may bring here",
        plural::size(*.most)
    )]
    LargeResponse {
        /// The limit in bytes.
        most: u64,
    },
    /// Its push is not allowed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// The server did not do what was asked.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

fn others(allow_owner: bool) -> &'static str {
    if allow_owner {
        "no repository but its owner's others"
    } else {
        "no other repository"
    }
}

fn around(neighbour: Option<&str>) -> String {
    neighbour.map_or_else(String::new, |url| {
        format!(": where the sandbox has a network, `git -c url.{url}.insteadOf={url} …` takes it")
    })
}

/// A push that is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PushError {
    /// Its commands do not follow the protocol.
    #[error("git's push cannot be read")]
    Unreadable,
    /// Its command list is too long.
    #[error("this push changes too many branches at a time")]
    TooMany,
    /// It is signed, so it could not be passed on in another form.
    #[error("signed pushes are not taken here: push without --signed")]
    Signed,
    /// It changes something other than a branch.
    #[error("a session may push here to every branch, but to no tag or other ref")]
    NoBranch,
    /// It changes a ref that the operator did not name.
    #[error(
        "a session may push here only to branches named {0}, and to no tag: name one, as in `git push origin HEAD:<branch>`"
    )]
    OtherBranch(BranchPolicy),
    /// It has options, with which a server may merge it into any branch.
    #[error("a session may push here only to branches named {0}, and without push options")]
    Options(BranchPolicy),
}

/// An error in asking the git server.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// The repository's URL is none.
    #[error("the repository's URL cannot be read")]
    Url(#[source] url::ParseError),
    /// The token would be sent unencrypted.
    #[error("a token is sent only over https: use the https URL of the repository")]
    PlainHttp,
    /// The token has characters that no header can hold.
    #[error("the git token cannot be sent")]
    Token(#[source] reqwest::header::InvalidHeaderValue),
    /// The host is at an address that is not contacted.
    #[error(
        "{host} is at an address of a private network, which this host does not let sessions reach"
    )]
    Address {
        /// The host that was to be asked.
        host: String,
    },
    /// The connection failed.
    #[error("the connection to the git server failed: {reason}")]
    Connection {
        /// The innermost cause, which is the most specific.
        reason: String,
        /// The cause, without the URL.
        #[source]
        cause: reqwest::Error,
    },
    /// The server was too slow.
    #[error(
        "the git server did not answer in full within {}",
        plural::count(.limit.as_secs(), "second")
    )]
    Slow {
        /// The time limit.
        limit: Duration,
    },
    /// The server redirects to nowhere.
    #[error("the git server sends on to an address that cannot be read")]
    Redirect,
    /// The server redirects to another server.
    #[error(
        "the git server sends on to another server, where git does not follow: give the repository's own URL, with https:// where it has that"
    )]
    OtherServer,
    /// The server redirects again and again.
    #[error("the git server sends on from address to address without an end")]
    Redirects,
    /// The server redirects a request that cannot be sent again.
    #[error("the repository has moved: give its new URL")]
    Moved,
    /// The server denied access.
    #[error("{}", refused(*.service, *.with_token))]
    Refused {
        /// What was asked for.
        service: GitService,
        /// Whether there was a token.
        with_token: bool,
    },
    /// The server has no such repository, or hides a private one.
    #[error("{}", missing(*.with_token))]
    Missing {
        /// Whether there was a token.
        with_token: bool,
    },
    /// The server does not take so large a push.
    #[error("the git server finds this push too large")]
    LargePush,
    /// The server has no time.
    #[error("the git server is busy ({status}): try again later")]
    Busy {
        /// The HTTP status.
        status: u16,
    },
    /// The server responded with another error status.
    #[error("the git server answered {status}")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// The response is not git's.
    #[error("the server at that URL is not a git server")]
    NotGit,
    /// The response is compressed.
    #[error("the git server answered in a compression that it was not asked for")]
    Compressed,
    /// The first response is too long.
    #[error("the git server's first answer is too long")]
    LongAdvertisement,
    /// The server knows only older versions of the protocol.
    #[error("the git server does not speak protocol version 2")]
    OldProtocol,
    /// The first response to a push is not git's.
    #[error("the git server's first answer cannot be read")]
    Advertisement,
}

fn refused(service: GitService, with_token: bool) -> String {
    let may = match service {
        GitService::Fetch => "read",
        GitService::Push => "write to",
    };
    if with_token {
        format!(
            "the git server refused the token: it is wrong, has expired, or may not {may} the repository"
        )
    } else {
        format!(
            "the git server refused access without a token: connect an account, or give a token, that may {may} the repository"
        )
    }
}

fn missing(with_token: bool) -> &'static str {
    if with_token {
        "the git server knows no such repository, or the token may not see it"
    } else {
        "the git server knows no such repository, or it is private: connect an account, or give a token, that may read it"
    }
}
