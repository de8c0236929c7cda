//! Work that is not cut off when whoever asked for it goes away.

use std::future::Future;
use std::task::Poll;

use tokio::task::JoinError;

/// Runs a future to its end, even if the caller goes away meanwhile. It is begun in place, and only one that has
/// to wait gets a task of its own.
///
/// # Errors
/// Fails if the future panicked in a task of its own, or the runtime is being shut down. A panic before that is the
/// caller's.
pub(crate) async fn to_completion<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    let mut future = Box::pin(future);
    match futures::poll!(&mut future) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => tokio::spawn(future).await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_has_begun_is_done_although_the_caller_goes_away() {
        let (go, wait) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let work = async move {
            let _ = wait.await;
            done.send(()).unwrap();
        };
        let mut work = Box::pin(to_completion(work));
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        go.send(()).unwrap();
        let is_done = tokio::time::timeout(Duration::from_secs(60), is_done).await;
        assert!(is_done.is_ok_and(|done| done.is_ok()), "it was cut off");
        let at_once = to_completion(async { 1 }).now_or_never();
        assert_eq!(at_once.expect("it need not wait").unwrap(), 1);
    }
}
