//! Tests of a whole model call: a guest, the egress and a server on the loopback interface.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, stream};
use url::Url;

use super::*;
use lucid_net::egress::{Egress, EgressLimits, Endpoint, KeyInjection};
use lucid_store::blobs::{Blobs, SessionBlobs};
use lucid_tests::{RecordedRequest, RecordedRequests, record_requests};
use lucid_types::wit::llm::{CompletionRequest, Delta};
use lucid_types::wit::types::{BlobRef, Content, Error, ErrorKind, Message, Role, Usage};
use lucid_wasm::testing::{self, engine};
use lucid_wasm::{LlmPlugin, PluginLimits};

/// A server that records its requests, and responds by the request's number.
async fn server(
    answer: impl Fn(usize) -> Response + Send + Sync + 'static,
) -> (Endpoint, RecordedRequests) {
    server_of(move |_, number| answer(number)).await
}

/// The same, with the request as an argument too.
async fn server_of(
    answer: impl Fn(&RecordedRequest, usize) -> Response + Send + Sync + 'static,
) -> (Endpoint, RecordedRequests) {
    let (url, requests) = record_requests(answer).await;
    let endpoint = Endpoint::new(Url::parse(&url).unwrap(), KeyInjection::Bearer).unwrap();
    (endpoint, requests)
}

fn egress() -> Egress {
    let limits = EgressLimits {
        connect: Duration::from_secs(2),
        first_byte: Duration::from_millis(500),
        idle: Duration::from_millis(500),
        response: 10_000,
        refusal: 100,
    };
    Egress::new(limits, []).unwrap()
}

fn key() -> Secret {
    Secret::from("sk-very-secret")
}

fn sse(body: impl Into<Body>) -> Response {
    ([(CONTENT, "text/event-stream")], body.into()).into_response()
}

const CONTENT: &str = "content-type";

async fn called(
    guest: testing::Llm,
    endpoint: &Endpoint,
) -> (Result<CompletedCall, Error>, Vec<Delta>) {
    let (result, deltas) = asked_with(guest, endpoint, vec![], None).await;
    (result.map_err(|failed| failed.error), deltas)
}

async fn asked_with(
    guest: testing::Llm,
    endpoint: &Endpoint,
    content: Vec<Content>,
    files: Option<&SessionBlobs>,
) -> (Result<CompletedCall, FailedCall>, Vec<Delta>) {
    let wasm = testing::llm(&guest);
    let llm = LlmPlugin::load(&engine(), "test", &wasm, &PluginLimits::default())
        .await
        .unwrap();
    let role = Role::User;
    let messages = match content.is_empty() {
        true => vec![],
        false => vec![Message { role, content }],
    };
    let request = CompletionRequest {
        model: "m".into(),
        messages,
        tools: vec![],
        max_output_tokens: None,
        params: "{}".into(),
        streaming: true,
    };
    let (egress, key) = (egress(), key());
    let target = CallTarget {
        egress: &egress,
        endpoint,
        key: Some(&key),
        settings: "{}",
        files,
        patience: Duration::from_secs(10),
        notify: &|_| std::future::ready(()).boxed(),
    };
    // A session's task moves between threads, so the call must be able to as well.
    fn sendable<F: Future + Send>(call: F) -> F {
        call
    }
    let mut deltas = Vec::new();
    let call = complete(&llm, target, &request, |shown| match shown {
        StreamEvent::Delta(delta) => deltas.push(delta.clone()),
        StreamEvent::Reset => deltas.clear(),
    });
    let result = sendable(call).await;
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
    let (result, deltas) = called(testing::Llm::default(), &endpoint).await;
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
    assert!(completed.usage.fuel > 0);
    assert_eq!(log.lock().unwrap()[0].uri, "/v1/chat");
}

#[tokio::test]
async fn an_api_that_is_not_where_it_was_pasted_is_found_at_its_other_place_and_kept_to() {
    for wanted in ["/chat", "/v1/chat"] {
        let (endpoint, log) = server_of(move |seen, _| match seen.uri == wanted {
            true => sse("data: a\n\n"),
            false => refusal(404, &[], "nothing here"),
        })
        .await;
        let mut bare = endpoint.base_url().clone();
        bare.set_path("");
        let endpoint = endpoint.or_at(Some(bare));
        for _ in 0..2 {
            let (result, _) = called(testing::Llm::default(), &endpoint).await;
            assert_eq!(result.unwrap().tries, 1);
        }
        let asked: Vec<String> = log
            .lock()
            .unwrap()
            .iter()
            .map(|seen| seen.uri.clone())
            .collect();
        let expected = match wanted {
            "/chat" => vec!["/v1/chat", "/chat", "/chat"],
            _ => vec!["/v1/chat", "/v1/chat"],
        };
        assert_eq!(asked, expected);
    }
}

#[tokio::test]
async fn a_busy_provider_is_asked_again_after_the_pause_it_wants() {
    let (endpoint, log) = server(|number| match number {
        0 => refusal(429, &[("retry-after", "1.5")], "slow down"),
        _ => sse("data: a\n\n"),
    })
    .await;
    let begun = Instant::now();
    let (result, _) = called(testing::Llm::default(), &endpoint).await;
    assert_eq!(result.unwrap().tries, 2);
    assert!(begun.elapsed() >= Duration::from_millis(1_500));
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_pause_of_more_than_the_patience_is_not_waited_for() {
    let (endpoint, log) = server(|_| refusal(429, &[("retry-after", "61")], "later")).await;
    let (result, _) = called(testing::Llm::default(), &endpoint).await;
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
    let (result, _) = called(testing::Llm::default(), &endpoint).await;
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
    let (result, deltas) = called(testing::Llm::default(), &endpoint).await;
    assert_eq!((result.unwrap().tries, deltas.len()), (2, 1));
    assert_eq!(log.lock().unwrap().len(), 2);
}

/// A response whose connection breaks after its first frame.
fn broken() -> Response {
    let first = stream::iter([Ok("data: a\n\n")]);
    let broken = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("gone"))
    };
    sse(Body::from_stream(first.chain(stream::once(broken))))
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again_and_what_was_shown_of_it_is_void() {
    let (endpoint, log) = server(|number| match number {
        0 => broken(),
        _ => sse("data: a\n\n"),
    })
    .await;
    let (result, deltas) = called(testing::Llm::default(), &endpoint).await;
    assert_eq!(result.unwrap().tries, 2);
    // `called` discards its deltas at a reset, as a client does.
    assert_eq!(deltas, [Delta::Text("x".into())]);
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn what_a_try_that_broke_off_took_is_spent_and_is_not_the_answers_own_usage() {
    let (endpoint, _) = server(|number| match number {
        0 => broken(),
        _ => sse("data: a\n\n"),
    })
    .await;
    let guest = testing::Llm {
        told: Some([500, 3]),
        ..testing::Llm::default()
    };
    let (result, _) = called(guest, &endpoint).await;
    let completed = result.unwrap();
    assert_eq!(completed.tries, 2);
    let used = |usage: Usage| (usage.input_tokens, usage.output_tokens);
    assert_eq!(
        used(completed.completion.usage),
        (11, 22),
        "a policy would take this for the length of its prompt"
    );
    assert_eq!(used(completed.cost), (511, 25));
}

/// A session's files with one image in them.
async fn pictured() -> (tempfile::TempDir, SessionBlobs, BlobRef) {
    let folder = tempfile::tempdir().unwrap();
    let files = Blobs::new(folder.path()).of(lucid_types::ids::SessionId::new());
    let blob = files.put("image/png", b"\x89PNG".to_vec()).await.unwrap();
    (folder, files, blob)
}

fn bodies(log: &RecordedRequests) -> Vec<String> {
    let log = log.lock().unwrap();
    let body = |seen: &RecordedRequest| String::from_utf8_lossy(&seen.body).into_owned();
    log.iter().map(body).collect()
}

#[tokio::test]
async fn a_request_that_is_wrong_is_made_once_more_without_pictures_and_those_are_not_sent_again() {
    let (_folder, files, blob) = pictured().await;
    let (endpoint, log) = server(|number| match number {
        0 => refusal(400, &[], "could not process image"),
        // A pause is allowed before the second request as before any.
        1 => refusal(429, &[("retry-after", "0")], "slow down"),
        _ => sse("data: a\n\n"),
    })
    .await;
    let ask = async || {
        let content = vec![Content::Image(blob.clone())];
        asked_with(testing::Llm::default(), &endpoint, content, Some(&files)).await
    };
    let (result, _) = ask().await;
    assert_eq!(result.unwrap().tries, 3);
    let told = "[A picture that the provider refused was left out.]";
    assert_eq!(bodies(&log), [&blob.digest, told, told]);
    let (result, _) = ask().await;
    assert_eq!(result.unwrap().tries, 1, "the picture was sent again");
    assert_eq!(bodies(&log)[3], told);
}

#[tokio::test]
async fn where_it_was_not_the_pictures_the_first_error_stands_and_they_are_sent_as_before() {
    let (_folder, files, blob) = pictured().await;
    let (endpoint, log) = server(|number| match number {
        0 => refusal(400, &[], "the tools are wrong"),
        1 => refusal(400, &[], "something else"),
        2 => refusal(400, &[], "the tools are wrong"),
        _ => refusal(401, &[], "who are you"),
    })
    .await;
    let content = vec![Content::Image(blob.clone())];
    for (tries, said) in [(2, "the tools are wrong"), (2, "who are you")] {
        let (result, _) = asked_with(
            testing::Llm::default(),
            &endpoint,
            content.clone(),
            Some(&files),
        )
        .await;
        let failed = result.unwrap_err();
        assert_eq!((failed.tries, failed.error.message.as_str()), (tries, said));
    }
    assert_eq!(
        bodies(&log)[2],
        blob.digest,
        "it is blamed without a reason"
    );
    // Without an image there is nothing to leave out.
    let content = vec![Content::Text("Hi".into())];
    let (endpoint, log) = server(|_| refusal(400, &[], "no")).await;
    let (result, _) = asked_with(testing::Llm::default(), &endpoint, content, Some(&files)).await;
    assert_eq!(result.unwrap_err().tries, 1);
    assert_eq!(bodies(&log), ["Hi"]);
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
        let guest = testing::Llm {
            path,
            header,
            ..testing::Llm::default()
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
        // The body owns the sender, which is dropped with the connection.
        let held = gone.lock().unwrap().take();
        let endless = stream::unfold(held, |held| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(": wait\n\n"), held))
        });
        sse(Body::from_stream(endless))
    })
    .await;
    let call = called(testing::Llm::default(), &endpoint);
    assert!(
        tokio::time::timeout(Duration::from_millis(1_500), call)
            .await
            .is_err()
    );
    let ended = tokio::time::timeout(Duration::from_secs(5), went).await;
    assert!(ended.is_ok_and(|ended| ended.is_err()));
}
