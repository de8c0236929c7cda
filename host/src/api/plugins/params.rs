//! A plugin's kind and a build's digest, as a request gives them.

use crate::api::problem::Problem;
use lucid_types::digest::Digest;
use lucid_wasm::PluginKind;

pub(super) fn digest_of(text: &str) -> Result<Digest, Problem> {
    let given = text.trim().to_ascii_lowercase();
    let digest = given.strip_prefix("sha256:").unwrap_or(&given);
    digest.parse().map_err(|_| {
        Problem::unprocessable(
            "`digest` must be the 64 hexadecimal digits that the upload was answered with.",
        )
    })
}

pub(super) fn kind_of(text: &str) -> Result<PluginKind, Problem> {
    let named = PluginKind::named(text);
    named.ok_or_else(|| {
        Problem::not_found(format!(
            "A plugin's kind is one of {}.",
            PluginKind::names()
        ))
    })
}
