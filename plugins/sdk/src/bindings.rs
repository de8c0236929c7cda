//! The Rust form of the WIT packages, generated when the crate is built.
//!
//! # Invariants
//!
//! - `types` and `log` are generated once and all worlds point at that one copy, so a message a
//!   policy builds is the same type an adapter reads.
//! - The interfaces are exported only where a plugin calls one of the `export_…!` macros: linking
//!   this crate exports nothing.

#![allow(
    unreachable_pub,
    clippy::all,
    reason = "generated; documented in the WIT"
)]

/// The interfaces that all plugin kinds share.
pub mod shared {
    wit_bindgen::generate!({
        inline: "
            package lucid:sdk@0.1.0;
            world shared {
                import lucid:types/types@0.1.0;
                import lucid:host/log@0.1.0;
            }
        ",
        path: ["../../wit/types", "../../wit/host"],
        world: "lucid:sdk/shared",
        additional_derives: [PartialEq, Clone, serde::Serialize, serde::Deserialize],
        generate_unused_types: true,
        generate_all,
    });
}

/// The world of a policy.
pub mod policy {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/host", "../../wit/policy"],
        world: "lucid:policy/policy-plugin",
        with: {
            "lucid:types/types@0.1.0": crate::bindings::shared::lucid::types::types,
            "lucid:host/log@0.1.0": crate::bindings::shared::lucid::host::log,
        },
        additional_derives: [PartialEq, Clone, serde::Serialize, serde::Deserialize],
        pub_export_macro: true,
        export_macro_name: "export_policy_world",
        default_bindings_module: "lucid_plugin::bindings::policy",
        generate_unused_types: true,
    });
}

/// The world of a provider adapter.
pub mod llm {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/host", "../../wit/llm"],
        world: "lucid:llm/llm-plugin",
        with: {
            "lucid:types/types@0.1.0": crate::bindings::shared::lucid::types::types,
            "lucid:host/log@0.1.0": crate::bindings::shared::lucid::host::log,
        },
        additional_derives: [PartialEq, Clone, serde::Serialize, serde::Deserialize],
        pub_export_macro: true,
        export_macro_name: "export_llm_world",
        default_bindings_module: "lucid_plugin::bindings::llm",
        generate_unused_types: true,
    });
}

/// The world of a git provider plugin.
pub mod git {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/host", "../../wit/git"],
        world: "lucid:git/git-plugin",
        with: {
            "lucid:types/types@0.1.0": crate::bindings::shared::lucid::types::types,
            "lucid:host/log@0.1.0": crate::bindings::shared::lucid::host::log,
        },
        additional_derives: [PartialEq, Clone, serde::Serialize, serde::Deserialize],
        pub_export_macro: true,
        export_macro_name: "export_git_world",
        default_bindings_module: "lucid_plugin::bindings::git",
        generate_unused_types: true,
    });
}

/// The world of a tool component.
pub mod tools {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/host", "../../wit/tools"],
        world: "lucid:tools/tools-plugin",
        with: {
            "lucid:types/types@0.1.0": crate::bindings::shared::lucid::types::types,
            "lucid:host/log@0.1.0": crate::bindings::shared::lucid::host::log,
        },
        additional_derives: [PartialEq, Clone, serde::Serialize, serde::Deserialize],
        pub_export_macro: true,
        export_macro_name: "export_tools_world",
        default_bindings_module: "lucid_plugin::bindings::tools",
        generate_unused_types: true,
    });
}
