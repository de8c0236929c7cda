//! The default plugins: components, and the native code that the build compiled from each.
//!
//! The code is for the target of the build and any of its processors. Where it does not fit, such as
//! in a program that was built with other settings, a server compiles the component as any other.

use lucid_precompiled::EmbeddedComponent;

macro_rules! component {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm"))
    };
}

macro_rules! embedded {
    ($component:ident, $name:literal) => {
        embedded(
            $component,
            include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".cwasm")),
        )
    };
}

/// The mock agent.
pub const MOCK: &[u8] = component!("mock");
/// The default agent.
pub const CODER: &[u8] = component!("coder");
/// The adapter for Anthropic's Messages API.
pub const ANTHROPIC: &[u8] = component!("anthropic");
/// The adapter for Google's Gemini API.
pub const GOOGLE: &[u8] = component!("google");
/// The adapter for OpenAI chat completions.
pub const OPENAI: &[u8] = component!("openai");
/// The integration of GitHub.
pub const GITHUB: &[u8] = component!("github");
/// The integration of GitLab.
pub const GITLAB: &[u8] = component!("gitlab");

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

/// All of them, with their code.
pub static EMBEDDED: [EmbeddedComponent; 7] = [
    embedded!(MOCK, "mock"),
    embedded!(CODER, "coder"),
    embedded!(ANTHROPIC, "anthropic"),
    embedded!(GOOGLE, "google"),
    embedded!(OPENAI, "openai"),
    embedded!(GITHUB, "github"),
    embedded!(GITLAB, "gitlab"),
];

#[expect(
    unsafe_code,
    reason = "native code; see the first comment of lucid-precompiled"
)]
const fn embedded(component: &'static [u8], code: &'static [u8]) -> EmbeddedComponent {
    // SAFETY: this function is called with files that this package's build script wrote, and with nothing else:
    // each is what the compiler made, or empty.
    unsafe { EmbeddedComponent::new(component, code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_plugin_comes_with_code_that_fits_this_machine() {
        let engine = wasmtime::Engine::new(&lucid_precompiled::settings()).unwrap();
        let plugins = [POLICIES, PROVIDERS, GIT].concat();
        assert_eq!(plugins.len(), EMBEDDED.len());
        for (name, component) in plugins {
            let code = EmbeddedComponent::find(&EMBEDDED, component);
            let loaded = code.unwrap_or_else(|| panic!("there is no code of {name}"));
            loaded
                .load(&engine)
                .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        }
    }
}
