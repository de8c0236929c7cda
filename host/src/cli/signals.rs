//! The signals that end a process gracefully: SIGINT (Ctrl-C), SIGTERM (a service manager) and
//! SIGHUP (a closed terminal, or an operator's habit).
//!
//! # Invariants
//!
//! - Once [`interrupted`] was called none of them ends the process by itself.
//! - A SIGHUP that the parent process had ignored (`nohup`) stays ignored.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for the next of the signals, and returns its name. They are caught from this call on, not
/// from the first poll on.
pub(super) fn interrupted() -> impl Future<Output = &'static str> {
    let mut kinds = vec![
        ("SIGINT", SignalKind::interrupt()),
        ("SIGTERM", SignalKind::terminate()),
    ];
    if !is_hangup_ignored() {
        kinds.push(("SIGHUP", SignalKind::hangup()));
    }
    let caught: Vec<_> = kinds
        .into_iter()
        .map(|(name, kind)| (name, signal(kind)))
        .collect();
    async {
        let each = caught.into_iter().map(|(name, signals)| async move {
            match signals {
                Ok(mut signals) => {
                    signals.recv().await;
                    name
                }
                // It then keeps its default effect.
                Err(_) => std::future::pending().await,
            }
        });
        futures::future::select_all(each.map(Box::pin)).await.0
    }
}

/// Whether the parent process wants this one to outlive its terminal.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Parses `SigIgn` in a process's status: a hexadecimal mask whose lowest bit is signal 1.
fn ignores_hangup(status: &str) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hangup_that_nohup_had_ignored_stays_ignored() {
        let status =
            |mask: &str| format!("Name:\tlucid\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(""));
    }
}
