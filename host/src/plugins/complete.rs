//! Owns one model call from end to end: encode, send, decode, and try again where that may help.
//!
//! What always holds: nothing is asked a second time once a viewer was shown anything of the first
//! answer; an error that comes back does not contain the key; dropping the future drops the request
//! and the decoder with it.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use secrecy::SecretString;

use super::bindings::llm::{Completion, CompletionRequest, Delta, Encoded, Frame};
use super::bindings::types::{Error, ErrorKind, Header};
use super::limits::Figures;
use super::llm::LlmPlugin;
use crate::egress::{Answer, Egress, Endpoint, Refusal, blank};

/// How often it is tried again.
const RETRIES: usize = 3;
/// The first pause, about; each further one is about twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A provider that wants a longer pause is not waited for: the error says how long it is.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How many frames that are there already go into the decoder at once.
const BATCH: usize = 64;

/// Who is asked, and with what.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// What sends.
    pub egress: &'a Egress,
    /// Where to.
    pub endpoint: &'a Endpoint,
    /// With which key, where there is one.
    pub key: Option<&'a SecretString>,
    /// The deployment's settings for the adapter, a JSON object.
    pub settings: &'a str,
}

/// A model's answer, and what it took.
#[derive(Debug, Clone, PartialEq)]
pub struct Completed {
    /// The answer.
    pub completion: Completion,
    /// What the adapter used, all tries together.
    pub figures: Figures,
    /// How often the provider was asked.
    pub tries: u32,
}

/// Asks a model, and shows what comes of the answer as it comes.
pub async fn complete(
    llm: &LlmPlugin,
    target: Target<'_>,
    request: &CompletionRequest,
    on_delta: impl FnMut(&Delta) + Send,
) -> Result<Completed, Error> {
    let mut call = Call {
        llm,
        target,
        request,
        on_delta,
        shown: false,
        figures: Figures::default(),
    };
    let answered = Box::pin(call.run()).await;
    answered.map_err(|mut error| {
        error.message = blank(&error.message, target.key);
        error.code = error.code.map(|code| blank(&code, target.key));
        error
    })
}

struct Call<'a, F> {
    llm: &'a LlmPlugin,
    target: Target<'a>,
    request: &'a CompletionRequest,
    on_delta: F,
    shown: bool,
    figures: Figures,
}

impl<F: FnMut(&Delta) + Send> Call<'_, F> {
    async fn run(&mut self) -> Result<Completed, Error> {
        let encoded = self.llm.encode(self.target.settings, self.request).await;
        self.figures += encoded.figures;
        let encoded = encoded.result?;
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_times(RETRIES)
            .with_jitter()
            .build();
        for tries in 1_u32.. {
            let error = match self.once(&encoded).await {
                Ok(completion) => {
                    return Ok(Completed {
                        completion,
                        figures: self.figures,
                        tries,
                    });
                }
                Err(error) => error,
            };
            let Some(pause) = self.pause(&error, &mut pauses) else {
                return Err(error);
            };
            tracing::info!(
                plugin = self.llm.name(),
                tries,
                pause_ms = pause.as_millis(),
                "the model call is tried again: {}",
                blank(&error.message, self.target.key)
            );
            tokio::time::sleep(pause).await;
        }
        Err(failure("the model call was tried too often"))
    }

    /// How long to wait before the next try; none if there is to be none.
    fn pause(
        &self,
        error: &Error,
        pauses: &mut impl Iterator<Item = Duration>,
    ) -> Option<Duration> {
        let passes = matches!(
            error.kind,
            ErrorKind::RateLimited | ErrorKind::Overloaded | ErrorKind::Upstream
        );
        if self.shown || !passes {
            return None;
        }
        let wanted = Duration::from_millis(error.retry_after_ms.unwrap_or(0));
        if wanted > LONGEST_PAUSE {
            return None;
        }
        pauses.next().map(|pause| pause.max(wanted))
    }

    async fn once(&mut self, encoded: &Encoded) -> Result<Completion, Error> {
        let Target {
            egress,
            endpoint,
            key,
            ..
        } = self.target;
        let answer = egress
            .send(endpoint, key, &encoded.request, encoded.framing)
            .await?;
        let frames = match answer {
            Answer::Frames(frames) => frames,
            Answer::Refused(refusal) => return Err(self.refused(&refusal).await),
        };
        let decoder = self.llm.decoder(&self.request.model).await;
        self.figures += decoder.figures;
        let mut decoder = decoder.result?;
        let mut batches = frames.ready_chunks(BATCH);
        while let Some(batch) = batches.next().await {
            let mut broken = None;
            let mut whole: Vec<Frame> = Vec::with_capacity(batch.len());
            for frame in batch {
                match frame {
                    Ok(frame) => whole.push(frame),
                    Err(error) => broken = Some(error),
                }
            }
            if !whole.is_empty() {
                let pushed = decoder.push(&whole).await;
                self.figures += pushed.figures;
                for delta in pushed.result? {
                    self.shown = true;
                    (self.on_delta)(&delta);
                }
            }
            if let Some(error) = broken {
                return Err(error.into());
            }
        }
        let finished = decoder.finish().await;
        self.figures += finished.figures;
        Ok(finished.result?)
    }

    /// What a refusal means. Where the adapter does not read it, the provider's header says when.
    async fn refused(&mut self, refusal: &Refusal) -> Error {
        let classified = self
            .llm
            .classify(refusal.status, &refusal.headers, &refusal.body)
            .await;
        self.figures += classified.figures;
        match classified.result {
            Ok(mut error) => {
                error.retry_after_ms = error
                    .retry_after_ms
                    .or_else(|| retry_after_ms(&refusal.headers));
                error
            }
            Err(error) => error.into(),
        }
    }
}

/// `retry-after` in seconds, or `retry-after-ms`. A date is not read.
fn retry_after_ms(headers: &[Header]) -> Option<u64> {
    let header = |name: &str| {
        let found = headers.iter().find(|header| header.name == name)?;
        let value: f64 = found.value.trim().parse().ok()?;
        (value.is_finite() && value >= 0.0).then_some(value)
    };
    let millis = header("retry-after-ms").or_else(|| Some(header("retry-after")? * 1_000.0))?;
    // A float that is too large becomes the largest number, which is past every limit.
    Some(millis as u64)
}

fn failure(message: &str) -> Error {
    Error {
        kind: ErrorKind::Internal,
        code: None,
        message: message.to_owned(),
        retry_after_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_seconds_and_milliseconds() {
        let header = |name: &str, value: &str| {
            vec![Header {
                name: name.to_owned(),
                value: value.to_owned(),
            }]
        };
        assert_eq!(retry_after_ms(&header("retry-after", "2")), Some(2_000));
        assert_eq!(retry_after_ms(&header("retry-after", " 0.5 ")), Some(500));
        assert_eq!(retry_after_ms(&header("retry-after-ms", "250")), Some(250));
        for wrong in ["-1", "NaN", "inf", "", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(
                retry_after_ms(&header("retry-after", wrong)),
                None,
                "{wrong}"
            );
        }
    }
}
