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
mod tests {
    use std::path::Path;

    #[test]
    fn no_component_in_this_binary_names_a_folder_of_who_built_it() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let home = std::env::home_dir().unwrap().join(".cargo");
        let cargo = std::env::var_os("CARGO_HOME").map_or(home, Into::into);
        let folders = [workspace.to_owned(), cargo];
        let all = super::POLICIES.iter().chain(super::PROVIDERS);
        for (name, wasm) in all {
            for folder in &folders {
                let folder = folder.display().to_string();
                let found = wasm
                    .windows(folder.len())
                    .any(|part| part == folder.as_bytes());
                assert!(!found, "the component `{name}` names {folder}");
            }
            let named = b"/crates/serde_json-";
            let named = wasm.windows(named.len()).any(|part| part == named);
            assert!(
                named,
                "`{name}` names no source at all, so nothing was looked at"
            );
        }
    }
}
