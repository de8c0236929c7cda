//! Finds the one layer of an artifact's manifest that is the component.
//!
//! # Invariants
//! - Accepted media types are those of the CNCF layout for WebAssembly artifacts, and the one in
//!   use before it.
//! - An artifact that can be read in two ways is refused.

use serde::Deserialize;

use super::error::OciError;
use super::reference::digest;
use lucid_types::digest::Digest;
use lucid_types::sanitize::sanitize;

/// The media type that a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const COMPONENT: [&str; 2] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];

/// The layer of an artifact that is the component.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its digest.
    pub(super) digest: Digest,
    /// Its size in bytes.
    pub(super) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

/// Finds the component's layer. `largest` is the component's maximum size in bytes.
pub(super) fn layer(text: &[u8], largest: u64) -> Result<Layer, OciError> {
    let wrong = |what: String| OciError::Wrong(what);
    let manifest: Manifest = serde_json::from_slice(text)
        .map_err(|_| wrong("what the registry has there is no manifest of an artifact".into()))?;
    let kind = manifest.media_type.as_deref();
    if kind.is_some_and(|kind| INDEX.contains(&kind)) {
        return Err(wrong(
            "it is an index of several artifacts: name one of them by its digest".into(),
        ));
    }
    if manifest.schema_version != 2 || kind.is_some_and(|kind| kind != ACCEPT) {
        return Err(wrong(
            "what the registry has there is no OCI artifact: push the component with a tool for OCI artifacts, such as wkg or oras".into(),
        ));
    }
    let is_component = |layer: &&Descriptor| {
        let kind = layer.media_type.split(';').next().unwrap_or_default();
        COMPONENT.contains(&kind.trim())
    };
    let mut components = manifest.layers.iter().filter(is_component);
    let Some(found) = components.next() else {
        let kinds: Vec<String> = manifest
            .layers
            .iter()
            .take(5)
            .map(|layer| sanitize(&layer.media_type, 80))
            .collect();
        return Err(wrong(format!(
            "it holds no WebAssembly component: a layer of the type {} is looked for, and there are: {}",
            COMPONENT[0],
            if kinds.is_empty() {
                "none".to_owned()
            } else {
                kinds.join(", ")
            }
        )));
    };
    if components.next().is_some() {
        return Err(wrong(
            "it holds more than one WebAssembly component, and a plugin is one".into(),
        ));
    }
    let digest = digest(&found.digest).ok_or_else(|| {
        wrong("its component is named by another digest than sha256, which is not taken".into())
    })?;
    if found.size > largest {
        return Err(wrong(format!(
            "its component has {} bytes, and {largest} are allowed",
            found.size
        )));
    }
    Ok(Layer {
        digest,
        size: found.size,
    })
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn read(manifest: &Value) -> Result<Layer, String> {
        layer(manifest.to_string().as_bytes(), 100).map_err(|why| why.to_string())
    }

    fn of(kind: &str, size: u64) -> Value {
        json!({"mediaType": kind, "digest": format!("sha256:{HEX}"), "size": size})
    }

    #[test]
    fn the_one_layer_that_is_a_component_is_found_under_both_its_types() {
        let text = of("text/markdown", 5);
        for kind in COMPONENT {
            let manifest = json!({"schemaVersion": 2, "mediaType": ACCEPT, "config": {}, "layers": [text, of(kind, 100)]});
            let meant = Layer {
                digest: HEX.parse().unwrap(),
                size: 100,
            };
            assert_eq!(read(&manifest), Ok(meant), "{kind}");
        }
    }

    #[test]
    fn what_is_no_component_or_could_be_two_is_a_sentence() {
        let wasm = || of("application/wasm", 1);
        let artifact = |layers: Value| json!({"schemaVersion": 2, "layers": layers});
        let mut other = wasm();
        other["digest"] = json!(format!("sha512:{HEX}{HEX}"));
        for (manifest, says) in [
            (json!([]), "no manifest"),
            (
                json!({"schemaVersion": 1, "layers": [wasm()]}),
                "no OCI artifact",
            ),
            (
                json!({"schemaVersion": 2, "mediaType": INDEX[0], "manifests": []}),
                "an index",
            ),
            (
                json!({"schemaVersion": 2, "mediaType": "x/y", "layers": [wasm()]}),
                "no OCI artifact",
            ),
            (artifact(json!([])), "there are: none"),
            (
                artifact(json!([of(
                    "application/vnd.oci.image.layer.v1.tar+gzip",
                    1
                )])),
                "tar+gzip",
            ),
            (artifact(json!([wasm(), wasm()])), "more than one"),
            (artifact(json!([other])), "another digest"),
            (
                artifact(json!([of("application/wasm", 101)])),
                "has 101 bytes",
            ),
            (
                artifact(json!([{"mediaType": "application/wasm", "digest": "x", "size": -1}])),
                "no manifest",
            ),
        ] {
            let said = read(&manifest).expect_err(&manifest.to_string());
            assert!(said.contains(says), "{manifest}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_an_error(bytes in any::<Vec<u8>>()) {
            let _ = layer(&bytes, 100);
        }

        #[test]
        fn a_mutated_manifest_is_a_small_layer_or_a_short_error(
            bytes in mutated([
                json!({"schemaVersion": 2, "mediaType": ACCEPT, "config": {}, "layers": [of("application/wasm", 100)]}),
                json!({"schemaVersion": 2, "mediaType": INDEX[1], "manifests": []}),
            ].map(|manifest| manifest.to_string())),
        ) {
            match layer(&bytes, 100) {
                Ok(layer) => prop_assert!(layer.size <= 100),
                Err(error) => prop_assert!(error.to_string().len() < 2_000, "{}", error),
            }
        }
    }
}
