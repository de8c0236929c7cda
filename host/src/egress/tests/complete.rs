//! Owns the tests of a whole model call: a guest, the egress and a server on the loopback.

use std::time::Instant;

use super::*;
use crate::plugins::llm_types::{CompletionRequest, Delta};
use crate::plugins::tests::{engine, guests};
use crate::plugins::types::{Content, Error, ErrorKind};
use crate::plugins::{Completed, Limits, LlmPlugin, Shown, Target, complete};

async fn called(guest: guests::Llm, endpoint: &Endpoint) -> (Result<Completed, Error>, Vec<Delta>) {
    let wasm = guests::llm(&guest);
    let llm = LlmPlugin::load(&engine(), "test", &wasm, &Limits::default())
        .await
        .unwrap();
    let request = CompletionRequest {
        model: "m".into(),
        messages: vec![],
        tools: vec![],
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    };
    let (egress, key) = (egress(), key());
    let target = Target {
        egress: &egress,
        endpoint,
        key: Some(&key),
        settings: "{}",
        files: None,
    };
    // A session's task is moved between threads, so the call must be able to as well.
    fn sendable<F: Future + Send>(call: F) -> F {
        call
    }
    let mut deltas = Vec::new();
    let call = complete(&llm, target, &request, |shown| match shown {
        Shown::Delta(delta) => deltas.push(delta.clone()),
        Shown::Reset => deltas.clear(),
    });
    let result = sendable(call).await.map_err(|failed| failed.error);
    (result, deltas)
}

fn refusal(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Response {
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn a_model_call_shows_deltas_and_gives_the_answer_with_its_figures() {
    let (endpoint, log) = server(|_| sse("data: a\n\n")).await;
    let (result, deltas) = called(guests::Llm::default(), &endpoint).await;
    let completed = result.unwrap();
    assert_eq!(
        completed.completion.message.content,
        [Content::Text("done".into())]
    );
    assert_eq!(completed.completion.usage.output_tokens, 22);
    assert_eq!(
        (completed.tries, deltas),
        (1, vec![Delta::Text("x".into())])
    );
    assert!(completed.figures.fuel > 0);
    assert_eq!(log.lock().unwrap()[0].uri, "/v1/chat");
}

#[tokio::test]
async fn a_busy_provider_is_asked_again_after_the_pause_it_wants() {
    let (endpoint, log) = server(|number| match number {
        0 => refusal(429, &[("retry-after", "1.5")], "slow down"),
        _ => sse("data: a\n\n"),
    })
    .await;
    let begun = Instant::now();
    let (result, _) = called(guests::Llm::default(), &endpoint).await;
    assert_eq!(result.unwrap().tries, 2);
    assert!(begun.elapsed() >= Duration::from_millis(1_500));
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_pause_of_more_than_a_minute_is_not_waited_for() {
    let (endpoint, log) = server(|_| refusal(429, &[("retry-after", "61")], "later")).await;
    let (result, _) = called(guests::Llm::default(), &endpoint).await;
    let error = result.unwrap_err();
    assert_eq!(
        (error.kind, error.retry_after_ms),
        (ErrorKind::RateLimited, Some(61_000))
    );
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refusal_that_stays_one_is_not_asked_again_and_does_not_echo_the_key() {
    let (endpoint, log) = server(|_| refusal(401, &[], "bad key sk-very-secret")).await;
    let (result, _) = called(guests::Llm::default(), &endpoint).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthenticated);
    assert_eq!(error.message, "bad key [secret]");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_that_breaks_before_anything_was_shown_is_asked_for_again() {
    let (endpoint, log) = server(|number| match number {
        0 => sse(Body::from_stream(stream::iter([
            Ok(": wait\n\n"),
            Err(std::io::Error::other("gone")),
        ]))),
        _ => sse("data: a\n\n"),
    })
    .await;
    let (result, deltas) = called(guests::Llm::default(), &endpoint).await;
    assert_eq!((result.unwrap().tries, deltas.len()), (2, 1));
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again_and_what_was_shown_of_it_is_void() {
    let (endpoint, log) = server(|number| {
        let first = stream::iter([Ok("data: a\n\n")]);
        if number > 0 {
            return sse(Body::from_stream(first));
        }
        let broken = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(std::io::Error::other("gone"))
        };
        sse(Body::from_stream(first.chain(stream::once(broken))))
    })
    .await;
    let (result, deltas) = called(guests::Llm::default(), &endpoint).await;
    assert_eq!(result.unwrap().tries, 2);
    // `called` forgets at a reset, as a client does.
    assert_eq!(deltas, [Delta::Text("x".into())]);
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_guest_that_wants_another_host_or_sets_a_key_is_not_sent() {
    let (endpoint, log) = server(|_| sse("data: a\n\n")).await;
    for (path, header) in [
        ("//evil.example/x", "accept"),
        ("/../admin", "accept"),
        ("https://evil.example", "accept"),
        ("/chat", "authorization"),
        ("/chat", "cookie"),
    ] {
        let guest = guests::Llm {
            path,
            header,
            ..guests::Llm::default()
        };
        let (result, _) = called(guest, &endpoint).await;
        assert_eq!(
            result.unwrap_err().kind,
            ErrorKind::Internal,
            "{path} {header}"
        );
    }
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn dropping_a_model_call_drops_its_request() {
    let (gone, went) = tokio::sync::oneshot::channel::<()>();
    let gone = Arc::new(Mutex::new(Some(gone)));
    let (endpoint, _) = server(move |_| {
        // The sender lives in the body: it is dropped with the connection.
        let held = gone.lock().unwrap().take();
        let endless = stream::unfold(held, |held| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(": wait\n\n"), held))
        });
        sse(Body::from_stream(endless))
    })
    .await;
    let call = called(guests::Llm::default(), &endpoint);
    assert!(
        tokio::time::timeout(Duration::from_millis(1_500), call)
            .await
            .is_err()
    );
    let ended = tokio::time::timeout(Duration::from_secs(5), went).await;
    assert!(ended.is_ok_and(|ended| ended.is_err()));
}
