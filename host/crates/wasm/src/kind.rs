//! The kinds of plugins, and what a component of each exports.

/// The kind of a plugin: the WIT world it implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PluginKind {
    /// An agent's policy.
    Policy,
    /// A model provider's API.
    Llm,
    /// A team's own tools.
    Tools,
    /// A git provider's API.
    Git,
}

impl PluginKind {
    /// All kinds.
    pub const ALL: &[Self] = &[Self::Policy, Self::Llm, Self::Tools, Self::Git];

    /// Returns the kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|kind| kind.to_string() == name)
    }

    /// The names of all kinds, for a sentence.
    pub fn names() -> String {
        let names: Vec<String> = Self::ALL.iter().map(|kind| format!("`{kind}`")).collect();
        names.join(", ")
    }

    /// The interface that a plugin of this kind must export, and the functions that must be in it.
    pub(super) fn exports(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Policy => (
                "lucid:policy/policy@0.1.0",
                &["describe", "step", "migrate"],
            ),
            Self::Llm => (
                "lucid:llm/provider@0.1.0",
                &[
                    "describe",
                    "models",
                    "encode",
                    "classify",
                    "[constructor]decoder",
                    "[method]decoder.push",
                    "[method]decoder.finish",
                ],
            ),
            Self::Tools => (
                "lucid:tools/tools@0.1.0",
                &["describe", "definitions", "step"],
            ),
            Self::Git => ("lucid:git/provider@0.1.0", &["describe", "step"]),
        }
    }

    /// Functions that came to that interface later: a component without one was built against an older version
    /// of it, and is refused as such.
    pub(super) fn later_exports(self) -> &'static [&'static str] {
        match self {
            Self::Llm => &["probe"],
            Self::Policy | Self::Tools | Self::Git => &[],
        }
    }
}

impl std::fmt::Display for PluginKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Policy => "policy",
            Self::Llm => "llm",
            Self::Tools => "tools",
            Self::Git => "git",
        })
    }
}
