//! One call of a model for a session: deltas, usage and cost are reported while it goes on.
//!
//! # Invariants
//!
//! - A user's own key is used at the provider it came for. Any other is called with the deployment's.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::completion::{CallTarget, StreamEvent, complete};
use super::routing::CalledProvider;
use lucid_net::egress::Egress;
use lucid_session::{CallCost, DeltaKind, DeltaSink, ModelAnswer, ModelFailure, ModelRequest};
use lucid_store::blobs::Blobs;
use lucid_types::metrics::{self, ModelCallFigures};
use lucid_types::wit::llm::{CompletionRequest, Delta};
use lucid_types::wit::types::{ErrorKind, Usage};

pub(super) async fn ask(
    egress: &Egress,
    blobs: &Blobs,
    patience: Duration,
    called: CalledProvider,
    request: ModelRequest,
    deltas: &DeltaSink,
) -> Result<ModelAnswer, ModelFailure> {
    let CalledProvider {
        provider: model_provider,
        model,
        label,
    } = called;
    let own = request.api_key.as_ref();
    let own = own.filter(|_| model_provider.name == request.provider);
    let files = blobs.of(request.session);
    let target = CallTarget {
        egress,
        endpoint: &model_provider.endpoint,
        key: own.or(model_provider.key.as_ref()),
        settings: &model_provider.settings,
        files: Some(&files),
        patience,
        notify: &*request.notices,
    };
    let call = request.call;
    let wanted = CompletionRequest {
        model,
        messages: request.messages,
        tools: call.tools,
        max_output_tokens: call.max_output_tokens,
        params: call.params,
        streaming: true,
    };
    let cost = |usage: Usage, tries| CallCost {
        cost: model_provider.catalog.cost(&wanted.model, &usage),
        usage,
        provider: label.clone(),
        model: wanted.model.clone(),
        tries,
    };
    let mut so_far = PartialUsage::default();
    let lists_model = model_provider.catalog.lists(&wanted.model);
    let mut measured = MeasuredCall::new(&label, &wanted.model, lists_model);
    let (begun, first_word) = (measured.begun, &measured.first_word);
    let mut show = |event: StreamEvent<'_>| match event {
        StreamEvent::Delta(Delta::Text(text)) => deltas(DeltaKind::Text, text),
        StreamEvent::Delta(Delta::Thinking(text)) => deltas(DeltaKind::Thinking, text),
        StreamEvent::Delta(Delta::ToolCallStarted(_) | Delta::ToolCallArguments(_)) => {}
        StreamEvent::Delta(Delta::Usage(usage)) => {
            so_far.current = Some(*usage);
            request
                .meter
                .report(cost(so_far.sum(), so_far.restarts + 1));
        }
        StreamEvent::Reset => {
            so_far.again();
            deltas(DeltaKind::Reset, "");
        }
    };
    let show = |event: StreamEvent<'_>| {
        if matches!(event, StreamEvent::Delta(_)) {
            first_word.get_or_init(|| begun.elapsed());
        }
        show(event);
    };
    let answered = complete(&model_provider.llm, target, &wanted, show).await;
    match &answered {
        Ok(done) => measured.end(None, done.tries),
        Err(failed) => measured.end(Some(error_type(failed.error.kind)), failed.tries),
    }
    let done = answered.map_err(|failed| ModelFailure {
        error: failed.error,
        cost: failed
            .wasted_tokens
            .map(|usage| Box::new(cost(*usage, failed.tries))),
    })?;
    tracing::debug!(
        provider = model_provider.name,
        tries = done.tries,
        fuel = done.usage.fuel,
        micros = done.usage.micros,
        "a model answered"
    );
    let answer = done.completion;
    Ok(ModelAnswer {
        cost: cost(done.cost, done.tries),
        usage: answer.usage,
        message: answer.message,
        stop: answer.stop,
        aside: call.aside,
    })
}

/// A call that the metrics hear of at its end, also if it is given up before.
struct MeasuredCall<'a> {
    provider: &'a str,
    model: &'a str,
    begun: Instant,
    first_word: OnceLock<Duration>,
    error: Option<String>,
    tries: u32,
}

impl<'a> MeasuredCall<'a> {
    fn new(provider: &'a str, model: &'a str, is_listed: bool) -> Self {
        if is_listed {
            metrics::list_model(model);
        }
        Self {
            provider,
            model,
            begun: Instant::now(),
            first_word: OnceLock::new(),
            error: Some(error_type(ErrorKind::Cancelled)),
            tries: 1,
        }
    }

    fn end(&mut self, error: Option<String>, tries: u32) {
        (self.error, self.tries) = (error, tries);
    }
}

impl Drop for MeasuredCall<'_> {
    fn drop(&mut self) {
        metrics::model_call(ModelCallFigures {
            provider: self.provider,
            model: self.model,
            took: self.begun.elapsed(),
            first_word: self.first_word.get().copied(),
            error: self.error.take(),
            tries: self.tries,
        });
    }
}

/// What metrics call a kind of error: `RateLimited` is `rate_limited`.
fn error_type(kind: ErrorKind) -> String {
    let mut name = String::new();
    for letter in format!("{kind:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

/// The usage so far of a call in progress, as reported by the provider: all that is known of a
/// cancelled one.
#[derive(Default)]
struct PartialUsage {
    /// The usage of tries that broke off.
    earlier_tries: Vec<Usage>,
    /// The usage of the current try. Each report replaces the one before.
    current: Option<Usage>,
    /// How often it restarted after something had been shown.
    restarts: u32,
}

impl PartialUsage {
    fn again(&mut self) {
        self.earlier_tries.extend(self.current.take());
        self.restarts += 1;
    }

    fn sum(&self) -> Usage {
        let all = || self.earlier_tries.iter().chain(&self.current);
        let sum = |part: fn(&Usage) -> u64| {
            all().fold(0_u64, |sum, usage| sum.saturating_add(part(usage)))
        };
        Usage {
            input_tokens: sum(|usage| usage.input_tokens),
            output_tokens: sum(|usage| usage.output_tokens),
            cache_read_tokens: sum(|usage| usage.cache_read_tokens),
            cache_write_tokens: sum(|usage| usage.cache_write_tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_have_names_in_lower_case() {
        assert_eq!(error_type(ErrorKind::RateLimited), "rate_limited");
        assert_eq!(error_type(ErrorKind::Internal), "internal");
    }

    #[test]
    fn what_a_call_took_so_far_is_its_newest_word_and_that_of_each_try_before() {
        let told = |input_tokens, output_tokens| Usage {
            input_tokens,
            output_tokens,
            cache_read_tokens: 1,
            cache_write_tokens: 0,
        };
        let mut so_far = PartialUsage::default();
        for usage in [told(10, 1), told(10, 5)] {
            so_far.current = Some(usage);
        }
        assert_eq!(so_far.sum(), told(10, 5));
        so_far.again();
        assert_eq!(
            so_far.sum(),
            told(10, 5),
            "a try that broke off is paid for"
        );
        // A try that reported nothing.
        so_far.again();
        so_far.current = Some(told(10, 2));
        let sum = so_far.sum();
        assert_eq!((sum.input_tokens, sum.output_tokens), (20, 7));
        assert_eq!((sum.cache_read_tokens, so_far.restarts), (2, 2));
    }
}
