//! What the build put into this binary: the default plugins, and the exec server for sandboxes.

pub use lucid_builtin::{
    ANTHROPIC, CODER, EMBEDDED, GIT, GITHUB, GITLAB, GOOGLE, MOCK, OPENAI, POLICIES, PROVIDERS,
};

/// The exec server, a static executable.
pub const EXEC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lucid-exec"));

#[cfg(test)]
mod tests;
