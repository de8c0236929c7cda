//! What the build put into this binary: the default plugins, and the exec server for sandboxes.

/// The mock agent.
pub const MOCK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mock.wasm"));
/// The default agent.
pub const CODER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/coder.wasm"));
/// The adapter for Anthropic's Messages API.
pub const ANTHROPIC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/anthropic.wasm"));
/// The adapter for Google's Gemini API.
pub const GOOGLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/google.wasm"));
/// The adapter for OpenAI chat completions.
pub const OPENAI: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openai.wasm"));
/// The integration of GitHub.
pub const GITHUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/github.wasm"));
/// The integration of GitLab.
pub const GITLAB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/gitlab.wasm"));
/// The exec server, a static executable.
pub const EXEC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lucid-exec"));

/// The policies, by name.
pub const POLICIES: &[(&str, &[u8])] = &[("coder", CODER), ("mock", MOCK)];
/// The model adapters, by name.
pub const PROVIDERS: &[(&str, &[u8])] = &[
    ("anthropic", ANTHROPIC),
    ("google", GOOGLE),
    ("openai", OPENAI),
];
/// The git providers' integrations, by name.
pub const GIT: &[(&str, &[u8])] = &[("github", GITHUB), ("gitlab", GITLAB)];

#[cfg(test)]
mod tests;
