//! Waiting: for a future, or for something that only polling can see. Never a fixed pause.

use std::future::Future;
use std::time::Duration;

/// Wide, because the tests run in parallel on few cores; nothing ever takes that long.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The future's value, or a failure that says what was waited for.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}

/// Asks again and again until there is a value.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            if let Some(value) = ask().await {
                return value;
            }
        }
    })
    .await
}
