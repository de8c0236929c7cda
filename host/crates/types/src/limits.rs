//! Limits that several parts of the host have to agree on.

/// The largest file that a session's conversation may hold, in bytes: providers accept an image of
/// up to 5 MiB, and they count its base64 form.
pub const LARGEST_BLOB: u64 = (5 << 20) / 4 * 3;
