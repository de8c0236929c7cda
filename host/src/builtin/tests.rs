//! Tests of the plugins in this binary.

use std::path::Path;

use super::{ANTHROPIC, CODER, GOOGLE, MOCK, OPENAI};
use lucid_wasm::ALLOWED_IMPORTS;

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

#[test]
fn the_built_in_guests_import_no_wasi_at_all() {
    for wasm in [ANTHROPIC, CODER, GOOGLE, MOCK, OPENAI] {
        let wit_component::DecodedWasm::Component(resolve, world) =
            wit_component::decode(wasm).unwrap()
        else {
            panic!("a built-in guest is no component");
        };
        for key in resolve.worlds[world].imports.keys() {
            let import = resolve.name_world_key(key);
            assert!(ALLOWED_IMPORTS.contains(&import.as_str()), "{import}");
        }
    }
}
