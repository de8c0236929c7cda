//! One model call from end to end: encode, send, decode, and retry where that may help, either
//! later, within the deployment's retry budget, or once without the images if the provider says
//! that the request is invalid. Tool calls are repaired before anything else sees them.
//!
//! # Invariants
//!
//! - Before a retry, viewers are told to discard what they were shown of the first response.
//! - Nothing that comes back contains the key.
//! - Dropping the future drops the request and the decoder with it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::future::BoxFuture;

use super::attachments::inline_file;
use super::image_filter::{ImageFilter, blames_request};
use super::leaked_calls::{self, LeakWatcher};
use super::provenance::ResponseOrigin;
use super::quirks::{LearnedQuirks, is_about_form};
use super::retry::Retries;
use super::{argument_repair, tool_names};
use lucid_net::egress::{
    Egress, EgressResponse, Endpoint, ErrorResponse, Redactor, StreamRedactor, retry_after_ms,
};
use lucid_store::blobs::SessionBlobs;
use lucid_types::secret::Secret;
use lucid_types::wit::llm::{Completion, CompletionRequest, Delta, Encoded, Frame};
use lucid_types::wit::types::{Content, Error, ErrorKind, Usage};
use lucid_wasm::{CallUsage, LlmPlugin, Plugin};

/// The maximum number of buffered frames passed to the decoder at once.
const BATCH: usize = 64;

/// Notifies users that the provider is down, or responds again. Resolves when that is logged.
pub type OutageNotifier<'a> = &'a (dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync);

/// The destination of a model call, and its settings.
#[derive(Clone, Copy)]
pub struct CallTarget<'a> {
    /// The egress that sends it.
    pub egress: &'a Egress,
    /// The provider's endpoint.
    pub endpoint: &'a Endpoint,
    /// The key, if there is one.
    pub key: Option<&'a Secret>,
    /// The deployment's settings for the adapter, a JSON object.
    pub settings: &'a str,
    /// The conversation's files. `None` if it cannot have any.
    pub files: Option<&'a SessionBlobs>,
    /// How long transient failures are retried.
    pub patience: Duration,
    /// Receives the announcements of an outage.
    pub notify: OutageNotifier<'a>,
}

/// A part of a response, shown to viewers before it is complete.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamEvent<'a> {
    /// The next part.
    Delta(&'a Delta),
    /// The response broke off and is requested again: everything shown of it is void.
    Reset,
}

/// A model's response, and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletedCall {
    /// The response. Its usage is that of the last try only and tells how long the prompt was.
    pub completion: Completion,
    /// Tokens of all tries together.
    pub cost: Usage,
    /// The adapter's resource usage over all tries.
    pub usage: CallUsage,
    /// The number of requests sent to the provider.
    pub tries: u32,
}

/// A model call that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedCall {
    /// The error of the last try.
    pub error: Error,
    /// Tokens of tries that broke off, as far as they were reported: they are billed.
    pub wasted_tokens: Option<Box<Usage>>,
    /// The number of requests sent to the provider.
    pub tries: u32,
}

/// Calls a model, and streams its response as it arrives.
pub async fn complete(
    llm: &LlmPlugin,
    target: CallTarget<'_>,
    request: &CompletionRequest,
    show: impl FnMut(StreamEvent<'_>) + Send,
) -> Result<CompletedCall, FailedCall> {
    let sent = tool_names::send(request);
    let mut call = Call {
        llm,
        target,
        request: &sent,
        show,
        shown: false,
        wasted_tokens: None,
        tries: 0,
        figures: CallUsage::default(),
        retries: Retries::new(target.patience),
        learned: llm.extension(),
    };
    let answered = Box::pin(call.run()).await;
    if let Some(end) = call
        .retries
        .end_announcement(answered.is_ok(), Instant::now())
    {
        (target.notify)(end).await;
    }
    let redactor = Redactor::new(target.key);
    match answered {
        Ok(mut completed) => {
            // A key that arrived in pieces is whole only here.
            for content in &mut completed.completion.message.content {
                redactor.content(content);
            }
            let answer = &mut completed.completion;
            if let Cow::Owned(sent) = &sent {
                argument_repair::repair(&mut answer.message, &sent.tools, answer.stop);
                tool_names::receive(&mut answer.message, &request.tools);
            }
            argument_repair::repair(&mut answer.message, &request.tools, answer.stop);
            Ok(completed)
        }
        Err(mut error) => {
            error.message = redactor.text(&error.message).into_owned();
            error.code = error.code.map(|code| redactor.text(&code).into_owned());
            Err(FailedCall {
                error,
                wasted_tokens: call.wasted_tokens.map(Box::new),
                tries: call.tries,
            })
        }
    }
}

struct Call<'a, F> {
    llm: &'a LlmPlugin,
    target: CallTarget<'a>,
    request: &'a CompletionRequest,
    show: F,
    shown: bool,
    /// Tokens of tries that broke off, as far as they were reported.
    wasted_tokens: Option<Usage>,
    tries: u32,
    figures: CallUsage,
    retries: Retries,
    /// What the adapter's servers turned out to require.
    learned: Arc<LearnedQuirks>,
}

impl<F: FnMut(StreamEvent<'_>) + Send> Call<'_, F> {
    async fn run(&mut self) -> Result<CompletedCall, Error> {
        let CallTarget { endpoint, .. } = self.target;
        let origin = ResponseOrigin::new(self.llm.name(), endpoint, &self.request.model);
        let request = origin.strip_foreign(self.request);
        let mut completed = self.with_images(&origin, &request).await?;
        origin.mark(&mut completed.completion.message);
        Ok(completed)
    }

    async fn with_images(
        &mut self,
        origin: &ResponseOrigin,
        request: &CompletionRequest,
    ) -> Result<CompletedCall, Error> {
        let CallTarget { files, .. } = self.target;
        let images = ImageFilter::of(request, self.llm.name(), files).await;
        let sent = images.request();
        let error = match self.send_adapted(origin, &sent).await {
            Ok(completed) => {
                images.record_accepted().await;
                return Ok(completed);
            }
            Err(error) => error,
        };
        let Some(bare) = images.without_all(&error) else {
            return Err(error);
        };
        self.again(&error, Duration::ZERO);
        match self.send_adapted(origin, &bare).await {
            Ok(completed) => {
                images.refused().await;
                Ok(completed)
            }
            // The images were not the reason.
            Err(second) if blames_request(&second) => Err(error),
            Err(second) => Err(second),
        }
    }

    /// Sends the request in the form this server is known to want, and in another one if a refusal
    /// asks for it.
    async fn send_adapted(
        &mut self,
        origin: &ResponseOrigin,
        request: &CompletionRequest,
    ) -> Result<CompletedCall, Error> {
        let known = self.learned.of(origin);
        let mut quirks = known;
        loop {
            let answered = if quirks.is_empty() {
                self.answered(request).await
            } else {
                self.answered(&quirks.applied(request)).await
            };
            let error = match answered {
                Ok(completed) => {
                    if quirks != known {
                        self.learned.remember(origin, quirks);
                    }
                    return Ok(completed);
                }
                Err(error) => error,
            };
            let Some(wanted) = quirks.learn_from(&error, request) else {
                return Err(error);
            };
            self.again(&error, Duration::ZERO);
            quirks = wanted;
        }
    }

    /// Retries until there is a response, or an error that is not transient.
    async fn answered(&mut self, request: &CompletionRequest) -> Result<CompletedCall, Error> {
        let encoded = self.llm.encode(self.target.settings, request).await;
        self.figures += encoded.usage;
        let encoded = inline_file(encoded.result?, request, self.target.files).await?;
        loop {
            self.tries = self.tries.saturating_add(1);
            let (began, wasted) = (Instant::now(), self.wasted_tokens);
            let error = match self.send_once(&encoded).await {
                Ok(completion) => {
                    let mut cost = completion.usage;
                    if let Some(wasted) = &self.wasted_tokens {
                        add(&mut cost, wasted);
                    }
                    return Ok(CompletedCall {
                        completion,
                        cost,
                        usage: self.figures,
                        tries: self.tries,
                    });
                }
                Err(error) => error,
            };
            let begun = self.shown || self.wasted_tokens != wasted;
            if begun && !self.retries.may_repeat_broken_off() {
                return Err(error);
            }
            let now = Instant::now();
            let Some(pause) = self.retries.pause(&error, began, now) else {
                return Err(self.retries.explain(error));
            };
            self.again(&error, pause);
            if let Some(begin) = self.retries.announcement(&error, pause, now) {
                let begin = Redactor::new(self.target.key).text(&begin).into_owned();
                (self.target.notify)(begin).await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Discards what was shown of the response before it is requested again.
    fn again(&mut self, error: &Error, pause: Duration) {
        tracing::info!(
            plugin = self.llm.name(),
            tries = self.tries,
            pause_ms = pause.as_millis(),
            "the model call is tried again: {}",
            Redactor::new(self.target.key).text(&error.message)
        );
        if std::mem::take(&mut self.shown) {
            (self.show)(StreamEvent::Reset);
        }
    }

    async fn send_once(&mut self, encoded: &Encoded) -> Result<Completion, Error> {
        let CallTarget {
            egress,
            endpoint,
            key,
            ..
        } = self.target;
        let answer = egress
            .send(endpoint, key, &encoded.request, encoded.framing)
            .await?;
        let frames = match answer {
            EgressResponse::Success(frames) => frames,
            EgressResponse::Refused(refusal) => return Err(self.refused(&refusal).await),
        };
        let decoder = self.llm.decoder(&self.request.model).await;
        self.figures += decoder.usage;
        let mut decoder = decoder.result?;
        let mut reported_usage = None;
        let mut showing = StreamRedactor::new(Redactor::new(key));
        let mut watch = LeakWatcher::default();
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
                self.figures += pushed.usage;
                let deltas = match pushed.result {
                    Ok(deltas) => deltas,
                    Err(error) => {
                        return Err(self.record_partial_usage(reported_usage, error.into()));
                    }
                };
                for delta in deltas {
                    if let Delta::Usage(usage) = &delta {
                        reported_usage = Some(*usage);
                    }
                    // A possible beginning of a key waits for more.
                    if let Some(delta) = showing.next(delta) {
                        self.emit(delta, &mut watch);
                    }
                }
            }
            if let Some(error) = broken {
                return Err(self.record_partial_usage(reported_usage, error.into()));
            }
        }
        let finished = decoder.finish().await;
        self.figures += finished.usage;
        let mut whole = finished
            .result
            .map_err(|error| self.record_partial_usage(reported_usage, error.into()))?;
        for delta in showing.finish() {
            self.emit(delta, &mut watch);
        }
        let calls = |piece: &Content| matches!(piece, Content::ToolCall(_));
        let own = whole.message.content.iter().any(calls);
        leaked_calls::take(&mut whole, &self.request.tools);
        let rest = watch.finish();
        // Text that became a call is shown as one.
        if (own || !whole.message.content.iter().any(calls)) && !rest.is_empty() {
            self.shown = true;
            (self.show)(StreamEvent::Delta(&Delta::Text(rest)));
        }
        Ok(whole)
    }

    /// Shows what arrived, except for text that may be a call.
    fn emit(&mut self, delta: Delta, watch: &mut LeakWatcher) {
        let delta = match delta {
            Delta::Text(text) => match watch.next(&text) {
                visible if visible.is_empty() && !text.is_empty() => return,
                visible => Delta::Text(visible),
            },
            other => other,
        };
        self.shown = true;
        (self.show)(StreamEvent::Delta(&delta));
    }

    /// Records the usage of a response that broke off: it is billed even though it never became
    /// complete.
    fn record_partial_usage(&mut self, reported_usage: Option<Usage>, error: Error) -> Error {
        if let Some(reported_usage) = reported_usage {
            let nothing = Usage {
                input_tokens: 0,
                output_tokens: 0,
                cache_read_tokens: 0,
                cache_write_tokens: 0,
            };
            add(self.wasted_tokens.get_or_insert(nothing), &reported_usage);
        }
        error
    }

    /// Classifies a refusal. If the adapter gives no time for a retry, the provider's header does.
    async fn refused(&mut self, refusal: &ErrorResponse) -> Error {
        let classified = self
            .llm
            .classify(refusal.status, &refusal.headers, &refusal.body)
            .await;
        self.figures += classified.usage;
        match classified.result {
            Ok(mut error) => {
                error.retry_after_ms = error
                    .retry_after_ms
                    .or_else(|| retry_after_ms(&refusal.headers, SystemTime::now()));
                if is_about_form(&error, self.request) {
                    error.kind = ErrorKind::InvalidInput;
                }
                error
            }
            Err(error) => error.into(),
        }
    }
}

fn add(sum: &mut Usage, more: &Usage) {
    for (sum, more) in [
        (&mut sum.input_tokens, more.input_tokens),
        (&mut sum.output_tokens, more.output_tokens),
        (&mut sum.cache_read_tokens, more.cache_read_tokens),
        (&mut sum.cache_write_tokens, more.cache_write_tokens),
    ] {
        *sum = sum.saturating_add(more);
    }
}

#[cfg(test)]
mod tests;
