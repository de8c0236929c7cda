//! Reads of the log that are worth waiting for.

use lucid_types::log::{LogError, Logged, pauses};

/// Reads until that succeeds or the failure is no longer transient. Cancel safe.
pub(super) async fn when_possible<T>(read: impl Fn() -> Logged<T>) -> Result<T, LogError> {
    let mut pauses = pauses();
    let mut told = false;
    loop {
        let failed = match read().await {
            Err(cause) if cause.transient().is_some() => cause,
            result => return result,
        };
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(cause = %failed, "the log could not be read; it is tried again");
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}
