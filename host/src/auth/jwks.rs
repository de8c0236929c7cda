//! The identity provider's public keys: fetches them, caches them, and decides when to fetch again.
//!
//! # Invariants
//!
//! - A single task does all fetching, so there is one request at a time, and a caller that goes
//!   away cancels none.
//! - The task fetches periodically, and at once for an unknown key, but then only after a minimum
//!   interval: a flood of tokens with made-up key ids causes no more requests than one such token.
//! - While the provider is unreachable the last fetched keys stay in use, for a day at most, since
//!   until then a key that was revoked there is still accepted here.
//! - At most [`MOST_WAITING`] callers wait for a fetch; one more is told at once to come again. Nobody
//!   whose key is known waits.
//! - Without keys no caller is told that their token is invalid, since that cannot be known.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::AuthError;
use super::keys::{KeyLookup, KeySet, KeySetError};
use lucid_net::fetch::{Document, DocumentError, DocumentLimits};
use lucid_types::plural;

/// The maximum size of a key set in bytes, with certificates beside the keys.
const LARGEST: usize = 256 * 1024;

/// How many callers wait for keys at a time. Anybody can make up a key's id, and a wait holds a connection.
pub(super) const MOST_WAITING: usize = 256;

/// The timing of fetches.
#[derive(Debug, Clone, Copy)]
pub(super) struct FetchPacing {
    /// The timeout of a fetch.
    pub(super) fetch: Duration,
    /// The interval between fetches when no key is missing.
    pub(super) refresh: Duration,
    /// The delay after a failure. Each further one is twice as long, up to `refresh`.
    pub(super) retry: Duration,
    /// How long after a response no token causes another fetch.
    pub(super) cooldown: Duration,
    /// How long keys stay in use that could not be fetched again.
    pub(super) stale: Duration,
}

impl Default for FetchPacing {
    fn default() -> Self {
        Self {
            fetch: Duration::from_secs(10),
            refresh: Duration::from_secs(600),
            retry: Duration::from_secs(1),
            cooldown: Duration::from_secs(10),
            stale: Duration::from_secs(86_400),
        }
    }
}

impl FetchPacing {
    /// The delays after one failure and the next, without end.
    fn retries(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.retry)
            .with_max_delay(self.refresh)
            .without_max_times()
            .build()
    }
}

/// The keys are unavailable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// They could not be fetched.
    #[error("{0}")]
    Document(#[from] DocumentError),
    /// The fetched document is not a key set.
    #[error("{0}")]
    KeySet(#[from] KeySetError),
}

/// The cached keys and the state of fetching.
#[derive(Clone, Default)]
struct JwksCache {
    /// The last set that was fetched, and when.
    keys: Option<(Arc<KeySet>, Instant)>,
    /// Whether the last fetch failed.
    failed: bool,
    /// The number of fetches.
    tries: u64,
    /// Until when no token causes a fetch. `None` during a fetch, and before the first one.
    cooldown_until: Option<Instant>,
}

/// The keys of one identity provider.
pub struct Jwks {
    document: Document,
    /// Whether tokens are verified with a shared secret as well, so that there may well be no keys.
    has_shared_secret: bool,
    pace: FetchPacing,
    known: watch::Sender<JwksCache>,
    /// The number of the fetch that a caller waits for.
    wanted: watch::Sender<u64>,
    /// A turn of each caller that waits.
    waiting: Semaphore,
}

/// The result of inspecting the keys, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksStatus {
    /// The number of keys that tokens can be verified with.
    pub usable: usize,
    /// The reasons why other keys cannot be used.
    pub unused: Vec<&'static str>,
}

impl Jwks {
    /// For the keys at a URL that the operator configured. Nothing is fetched before
    /// [`Jwks::follow`].
    pub fn new(url: Url) -> Result<Self, JwksError> {
        Self::with_pace(url, FetchPacing::default())
    }

    pub(super) fn with_pace(url: Url, pace: FetchPacing) -> Result<Self, JwksError> {
        let limits = DocumentLimits {
            time: pace.fetch,
            size: LARGEST,
        };
        Ok(Self {
            document: Document::new(url, limits)?,
            has_shared_secret: false,
            pace,
            known: watch::Sender::default(),
            wanted: watch::Sender::default(),
            waiting: Semaphore::new(MOST_WAITING),
        })
    }

    /// Says whether a shared secret is set besides, with which alone a project may still sign its
    /// tokens.
    #[must_use]
    pub fn with_shared_secret(self, is_set: bool) -> Self {
        Self {
            has_shared_secret: is_set,
            ..self
        }
    }

    /// The URL of the keys.
    pub fn url(&self) -> &Url {
        self.document.url()
    }

    /// Fetches the keys once and describes them.
    pub async fn inspect(&self) -> Result<JwksStatus, JwksError> {
        let keys = self.fetch().await?;
        Ok(JwksStatus {
            usable: keys.len(),
            unused: keys.unused,
        })
    }

    async fn fetch(&self) -> Result<KeySet, JwksError> {
        let document = self.document.fetch().await?;
        Ok(KeySet::read(&document)?)
    }

    /// Fetches the keys, and keeps them fresh forever. To be run once, for as long as tokens are
    /// verified.
    pub async fn follow(&self) {
        let mut retries = self.pace.retries();
        let mut reported = None;
        let mut wanted = self.wanted.subscribe();
        let mut tries = 0;
        loop {
            self.known.send_modify(|known| known.cooldown_until = None);
            let fetched = self.fetch().await;
            self.report(&fetched, &mut reported);
            let pause = match &fetched {
                Ok(_) => {
                    retries = self.pace.retries();
                    self.pace.refresh
                }
                Err(_) => retries.next().unwrap_or(self.pace.refresh),
            };
            tries += 1;
            self.known.send_modify(|known| {
                let now = Instant::now();
                known.tries = tries;
                known.failed = fetched.is_err();
                known.cooldown_until = Some(now + self.pace.cooldown);
                if let Ok(keys) = fetched {
                    known.keys = Some((Arc::new(keys), now));
                }
            });
            let asked = async {
                sleep(self.pace.cooldown).await;
                let _ = wanted.wait_for(|wanted| *wanted > tries).await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = asked => {}
            }
        }
    }

    /// Logs a change, once.
    fn report(&self, fetched: &Result<KeySet, JwksError>, reported: &mut Option<String>) {
        let (fine, sentence) = match fetched {
            Ok(keys) if keys.len() > 0 && keys.unused.is_empty() => (
                true,
                format!(
                    "tokens are checked with {}",
                    plural::count(keys.len(), "key")
                ),
            ),
            Ok(keys) if keys.unused.is_empty() && self.has_shared_secret => (
                true,
                "there are no keys; tokens are checked with the shared secret alone".to_owned(),
            ),
            Err(JwksError::Document(DocumentError::Status { status: 404, .. }))
                if self.has_shared_secret =>
            {
                (
                    true,
                    "no keys are published; tokens are checked with the shared secret alone"
                        .to_owned(),
                )
            }
            Ok(keys) if keys.unused.is_empty() => (
                false,
                "there are no keys, so no token that is signed with one is taken".to_owned(),
            ),
            Ok(keys) => (
                false,
                format!(
                    "tokens are checked with {}; not with {}",
                    plural::count(keys.len(), "key"),
                    keys.unused.join(", nor with ")
                ),
            ),
            Err(error) => (false, format!("the keys cannot be fetched: {error}")),
        };
        if reported.as_ref() == Some(&sentence) {
            return;
        }
        let url = self.url();
        if fine {
            tracing::info!(%url, "{sentence}");
        } else {
            tracing::warn!(%url, "{sentence}");
        }
        *reported = Some(sentence);
    }

    /// The keys that tokens are verified with now; `None` if there are none, or none that are fresh enough.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        let known = self.known.borrow();
        let (keys, fetched) = known.keys.as_ref()?;
        (fetched.elapsed() < self.pace.stale).then(|| keys.clone())
    }

    /// The key that a token of this algorithm names, and the set that it is in. Waits for a fetch in
    /// progress.
    pub(super) async fn find(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> Result<(DecodingKey, Arc<KeySet>), AuthError> {
        let mut changes = self.known.subscribe();
        let known = changes.borrow_and_update().clone();
        match self.found(&known, algorithm, id) {
            Some((keys, KeyLookup::Key(key))) => return Ok((key.clone(), keys.clone())),
            Some((_, KeyLookup::Ambiguous)) => return Err(AuthError::InvalidToken),
            Some((_, KeyLookup::Unknown)) | None => {}
        }
        let rests = known
            .cooldown_until
            .is_some_and(|until| Instant::now() < until);
        if !rests {
            // Before the first keys are there, everybody waits for them.
            let is_unknown = self.found(&known, algorithm, id).is_some();
            let turn = is_unknown.then(|| self.waiting.try_acquire()).transpose();
            let _turn = turn.map_err(|_| AuthError::NoKeys)?;
            let next = known.tries + 1;
            self.wanted.send_if_modified(|wanted| {
                let sooner = *wanted < next;
                *wanted = next.max(*wanted);
                sooner
            });
            let next = changes.wait_for(|now| now.tries > known.tries);
            // Longer than any fetch. It elapses if nothing runs `follow`.
            let _ = timeout(self.pace.fetch * 2, next).await;
        }
        let known = self.known.borrow().clone();
        match self.found(&known, algorithm, id) {
            Some((keys, KeyLookup::Key(key))) => Ok((key.clone(), keys.clone())),
            // The key may be newer than the last successful fetch.
            Some((_, KeyLookup::Unknown)) if known.failed => Err(AuthError::NoKeys),
            Some((_, KeyLookup::Unknown | KeyLookup::Ambiguous)) => Err(AuthError::InvalidToken),
            None => Err(AuthError::NoKeys),
        }
    }

    /// `None` if there are no keys, or none that are fresh enough.
    fn found<'a>(
        &self,
        known: &'a JwksCache,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> Option<(&'a Arc<KeySet>, KeyLookup<'a>)> {
        let (keys, fetched) = known.keys.as_ref()?;
        (fetched.elapsed() < self.pace.stale).then(|| (keys, keys.find(algorithm, id)))
    }
}

impl std::fmt::Debug for Jwks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwks")
            .field("url", &self.url().as_str())
            .finish_non_exhaustive()
    }
}
