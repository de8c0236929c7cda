//! The environment variables of commands in a sandbox.
//!
//! # Invariants
//! - The environment is built from nothing, so it contains no variable of the host's.

use std::collections::BTreeMap;
use std::path::Path;

/// The environment of every command.
pub(super) fn environment(
    bin: &str,
    home: &str,
    temporary: &str,
    socket: &str,
    repository: Option<&str>,
) -> BTreeMap<String, String> {
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    let path = format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut environment: BTreeMap<String, String> = [
        ("PATH", path.as_str()),
        ("HOME", home),
        ("TMPDIR", temporary),
        ("USER", "agent"),
        ("LOGNAME", "agent"),
        ("SHELL", shell),
        ("LANG", "C.UTF-8"),
        ("TERM", "dumb"),
        ("PAGER", "cat"),
        ("GIT_PAGER", "cat"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("LUCID_GIT_SOCKET", socket),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    if let Some(repository) = repository {
        environment.extend(git_environment(repository));
    }
    environment
}

/// The variables that direct git to the host's gateway for a repository.
pub(super) fn git_environment(repository: &str) -> BTreeMap<String, String> {
    let repository = repository.strip_suffix(".git").unwrap_or(repository);
    let entries = [
        (
            format!("url.lucid::{repository}.insteadOf"),
            repository.to_owned(),
        ),
        ("protocol.lucid.allow".to_owned(), "always".to_owned()),
        ("protocol.version".to_owned(), "2".to_owned()),
    ];
    let mut environment =
        BTreeMap::from([("GIT_CONFIG_COUNT".to_owned(), entries.len().to_string())]);
    for (number, (key, value)) in entries.into_iter().enumerate() {
        environment.insert(format!("GIT_CONFIG_KEY_{number}"), key);
        environment.insert(format!("GIT_CONFIG_VALUE_{number}"), value);
    }
    environment
}
