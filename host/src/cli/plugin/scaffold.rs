//! Files embedded in this binary for new projects: templates, the SDK, the WIT, and the versions of
//! the SDK's crates.

include!(concat!(env!("OUT_DIR"), "/kit.rs"));

/// The files below a folder of the repository, by their relative paths.
pub(super) fn below(folder: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES.iter().filter_map(move |(name, text)| {
        let rest = name.strip_prefix(folder)?.strip_prefix('/')?;
        Some((rest, *text))
    })
}
