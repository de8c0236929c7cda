//! Tests of what is sent and how a response is read, against a server on the loopback interface.

mod exchange;
mod framing;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt, stream};

use super::*;
use lucid_tests::{RecordedRequest, RecordedRequests, record_requests};
use lucid_types::wit::llm::Frame;
use lucid_types::wit::types::Header;

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
    Egress::new(
        EgressLimits {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_millis(500),
            idle: Duration::from_millis(500),
            response: 10_000,
            refusal: 100,
        },
        [],
    )
    .unwrap()
}

fn key() -> Secret {
    Secret::from("sk-very-secret")
}

fn sse(body: impl Into<Body>) -> Response {
    ([(CONTENT, "text/event-stream")], body.into()).into_response()
}

const CONTENT: &str = "content-type";

fn post() -> HttpRequest {
    HttpRequest {
        method: "POST".into(),
        path: "/chat".into(),
        query: vec![("a".into(), "b c".into())],
        headers: vec![Header {
            name: "Content-Type".into(),
            value: "application/json".into(),
        }],
        body: b"{}".to_vec(),
    }
}

async fn asked(endpoint: &Endpoint, framing: Framing) -> Result<EgressResponse, EgressError> {
    egress()
        .send(endpoint, Some(&key()), &post(), framing)
        .await
}

async fn frames(endpoint: &Endpoint, framing: Framing) -> Result<Vec<Frame>, EgressError> {
    match asked(endpoint, framing).await? {
        EgressResponse::Success(frames) => frames.try_collect().await,
        EgressResponse::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[tokio::test]
async fn a_request_carries_the_guests_part_and_the_hosts_key() {
    let (endpoint, log) = server(|_| "ok".into_response()).await;
    let got = frames(&endpoint, Framing::WholeBody).await.unwrap();
    assert_eq!(got, [Frame::Body(b"ok".to_vec())]);
    let seen = log.lock().unwrap()[0].clone();
    assert_eq!(seen.uri, "/v1/chat?a=b+c");
    assert_eq!(seen.body, b"{}");
    assert_eq!(seen.header("authorization"), ["Bearer sk-very-secret"]);
    assert_eq!(seen.header("content-type"), ["application/json"]);
    assert_eq!(seen.header("content-length"), ["2"]);
}

#[tokio::test]
async fn a_guests_own_authorization_never_leaves_the_host() {
    let (endpoint, log) = server(|_| "ok".into_response()).await;
    let mut request = post();
    request.headers[0].name = "Authorization".into();
    let sent = egress()
        .send(&endpoint, None, &request, Framing::WholeBody)
        .await;
    let name = "authorization".to_owned();
    assert_eq!(sent.unwrap_err(), EgressError::HostHeader { name });
    assert!(log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_redirect_to_another_server_is_not_followed_and_the_key_stays() {
    let (elsewhere, seen) = server(|_| "caught".into_response()).await;
    let to = elsewhere.base_url().to_string();
    for status in [301, 302, 307, 308] {
        let to = to.clone();
        let (endpoint, _) = server(move |_| {
            let status = StatusCode::from_u16(status).unwrap();
            (status, [("location", to.clone())]).into_response()
        })
        .await;
        let error = asked(&endpoint, Framing::WholeBody).await.unwrap_err();
        assert!(matches!(error, EgressError::Redirected { status: s, .. } if s == status));
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_redirect_on_the_same_server_is_followed_a_few_times_with_method_body_and_key() {
    let (endpoint, log) = server(|number| match number {
        0 => (
            StatusCode::PERMANENT_REDIRECT,
            [("location", "/v2/chat?x=1")],
        )
            .into_response(),
        _ => "ok".into_response(),
    })
    .await;
    let got = frames(&endpoint, Framing::WholeBody).await.unwrap();
    assert_eq!(got, [Frame::Body(b"ok".to_vec())]);
    let seen = log.lock().unwrap()[1].clone();
    assert_eq!(
        (seen.uri.as_str(), &seen.body[..]),
        ("/v2/chat?x=1", &b"{}"[..])
    );
    assert_eq!(seen.header("authorization"), ["Bearer sk-very-secret"]);
    // A redirect that changes the method is not followed, and a loop ends.
    for status in [StatusCode::SEE_OTHER, StatusCode::TEMPORARY_REDIRECT] {
        let (endpoint, log) =
            server(move |_| (status, [("location", "/v1/chat")]).into_response()).await;
        let error = asked(&endpoint, Framing::WholeBody).await.unwrap_err();
        assert!(matches!(error, EgressError::Redirected { .. }), "{error:?}");
        let most = if status == StatusCode::SEE_OTHER {
            1
        } else {
            1 + REDIRECTS
        };
        assert_eq!(log.lock().unwrap().len(), most);
    }
}

#[tokio::test]
async fn a_key_goes_into_the_header_that_the_adapter_names_and_into_no_other() {
    let (endpoint, log) = server(|_| "ok".into_response()).await;
    let place = KeyPlace::Header("X-Api-Key".to_owned());
    let injection = KeyInjection::of(&place).unwrap();
    let endpoint = Endpoint::new(endpoint.base_url().clone(), injection).unwrap();
    frames(&endpoint, Framing::WholeBody).await.unwrap();
    let seen = log.lock().unwrap()[0].clone();
    assert_eq!(seen.header("x-api-key"), ["sk-very-secret"]);
    assert_eq!(seen.header("authorization"), [""; 0]);
}

#[tokio::test]
async fn a_name_that_no_base_url_of_the_deployment_has_is_not_looked_for_in_private_networks() {
    let url = Url::parse("http://localhost:9/v1").unwrap();
    let public = Endpoint::public(url.clone(), KeyInjection::Bearer).unwrap();
    let error = asked(&public, Framing::WholeBody).await.unwrap_err();
    assert!(
        matches!(&error, EgressError::Address { host } if host == "localhost"),
        "{error:?}"
    );
    let named = Endpoint::new(url, KeyInjection::Bearer).unwrap();
    let egress = Egress::new(EgressLimits::default(), [&named]).unwrap();
    let sent = egress.send(&named, None, &post(), Framing::WholeBody).await;
    assert!(matches!(sent, Err(EgressError::Connect { .. })), "{sent:?}");
}

#[test]
fn a_client_goes_on_over_a_change_only_where_it_may_reach_the_same_private_hosts() {
    let limits = EgressLimits::default;
    let at = |url: &str| Endpoint::new(Url::parse(url).unwrap(), KeyInjection::Bearer).unwrap();
    let (one, other) = (at("http://one.internal/v1"), at("http://other.internal/v1"));
    let before = Egress::new(limits(), [&one]).unwrap();
    let after = Egress::reuse_or_new(Some(&before), limits(), &[&one, &one]).unwrap();
    assert_eq!(after.named, before.named);
    let after = Egress::reuse_or_new(Some(&before), limits(), &[&one, &other]).unwrap();
    assert!(after.named.as_ref().unwrap().contains("other.internal"));
    let after = Egress::reuse_or_new(Some(&after), limits(), &[&other]).unwrap();
    assert!(
        !after.named.unwrap().contains("one.internal"),
        "what the deployment no longer names is reached"
    );
}

#[tokio::test]
async fn a_key_in_an_answer_never_reaches_a_plugin() {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode("Bearer sk-very-secret");
    let body =
        format!("event: sk-very-secret\ndata: {{\"k\":\"sk-very-secret\"}}\n\ndata: {encoded}\n\n");
    let (endpoint, _) = server(move |_| {
        let bytes: Vec<_> = body
            .bytes()
            .map(|byte| Ok::<_, std::io::Error>(vec![byte]))
            .collect();
        sse(Body::from_stream(stream::iter(bytes)))
    })
    .await;
    let got = frames(&endpoint, Framing::ServerSentEvents).await.unwrap();
    let shown = format!("{got:?}");
    assert_eq!(got.len(), 2);
    assert_eq!(shown.matches("[secret]").count(), 3, "{shown}");
    assert!(
        !shown.contains("very-secret") && !shown.contains(&encoded),
        "{shown}"
    );
}

#[tokio::test]
async fn a_refusal_is_cut_and_blanked_and_has_no_cookies() {
    let (endpoint, _) = server(|_| {
        let body = format!("{} sk-very-secret {}", "a".repeat(80), "b".repeat(500));
        let headers = [("set-cookie", "a=b"), ("x-echo", "Bearer sk-very-secret")];
        (StatusCode::UNAUTHORIZED, headers, body).into_response()
    })
    .await;
    let Ok(EgressResponse::Refused(refusal)) = asked(&endpoint, Framing::ServerSentEvents).await
    else {
        panic!("that was a refusal");
    };
    assert_eq!((refusal.status, refusal.body.len()), (401, 100));
    let shown = format!("{refusal:?} {}", String::from_utf8_lossy(&refusal.body));
    assert!(!shown.contains("sk-very") && !shown.contains("cookie"));
    assert!(shown.contains("Bearer [secret]"));
}

#[tokio::test]
async fn only_what_is_compressed_is_refused_for_its_encoding() {
    for (encoding, is_plain) in [
        ("utf-8", true),
        ("none", true),
        ("", true),
        ("Identity", true),
        ("identity, identity", true),
        ("GZIP", false),
        ("identity,br", false),
        ("zstd, utf-8", false),
    ] {
        let (endpoint, _) = server(move |_| {
            let mut response = Response::new(Body::from("data: 1\n\n"));
            let encoding = encoding.parse().unwrap();
            response.headers_mut().insert("content-encoding", encoding);
            response
        })
        .await;
        let got = frames(&endpoint, Framing::ServerSentEvents).await;
        assert_eq!(got.is_ok(), is_plain, "{encoding:?}: {got:?}");
    }
}

#[tokio::test]
async fn events_are_whole_wherever_the_stream_is_cut() {
    let stream = "\u{feff}: hello\r\n\r\nevent: a\r\ndata: {\"x\": \"ä\"}\r\nid: 1\r\n\r\ndata: one\ndata: two\n\nevent: empty\n\ndata: [DONE]\n\n";
    let event = |event: Option<&str>, data: &str, id: Option<&str>| {
        Frame::Sse(lucid_types::wit::llm::Sse {
            event: event.map(Into::into),
            data: data.into(),
            id: id.map(Into::into),
        })
    };
    let expected = [
        event(Some("a"), "{\"x\": \"ä\"}", Some("1")),
        event(None, "one\ntwo", None),
        event(None, "[DONE]", None),
    ];
    for cut in 0..=stream.len() {
        let (one, two) = stream.as_bytes().split_at(cut);
        let pieces = [one, two].map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)));
        let got: Vec<Frame> = response::events(stream::iter(pieces).boxed())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(got, expected, "cut at {cut}");
    }
    // And byte by byte, over the network.
    let (endpoint, _) = server(move |_| {
        let bytes = stream
            .bytes()
            .map(|byte| Ok::<_, std::io::Error>(vec![byte]));
        sse(Body::from_stream(stream::iter(bytes)))
    })
    .await;
    let got = frames(&endpoint, Framing::ServerSentEvents).await.unwrap();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn lines_are_whole_wherever_the_stream_is_cut() {
    let stream = "{\"a\":\"ä\"}\r\n\n{\"b\":2}\n{\"c\":3}";
    let expected = ["{\"a\":\"ä\"}", "{\"b\":2}", "{\"c\":3}"].map(|line| Frame::Line(line.into()));
    for cut in 0..=stream.len() {
        let (one, two) = stream.as_bytes().split_at(cut);
        let pieces = [one, two].map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)));
        let got: Vec<Frame> = response::lines(stream::iter(pieces).boxed())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(got, expected, "cut at {cut}");
    }
}

#[tokio::test]
async fn json_instead_of_events_is_one_whole_body() {
    let (endpoint, _) = server(|_| {
        (
            [(CONTENT, "application/json; charset=utf-8")],
            "{\"error\":1}",
        )
            .into_response()
    })
    .await;
    let got = frames(&endpoint, Framing::ServerSentEvents).await.unwrap();
    assert_eq!(got, [Frame::Body(b"{\"error\":1}".to_vec())]);
}

#[tokio::test]
async fn an_answer_that_is_too_large_ends_with_the_limit() {
    let (endpoint, _) = server(|_| vec![b'a'; 10_001].into_response()).await;
    let error = frames(&endpoint, Framing::WholeBody).await.unwrap_err();
    assert_eq!(error, EgressError::TooLarge { limit: 10_000 });
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_pauses_too_long_is_an_error_of_its_own() {
    let (endpoint, _) = server(|number| {
        let first = stream::iter([Ok("data: a\n\n")]);
        if number == 0 {
            let broken = stream::iter([Err(std::io::Error::other("gone"))]);
            sse(Body::from_stream(first.chain(broken)))
        } else {
            sse(Body::from_stream(first.chain(stream::pending())))
        }
    })
    .await;
    let error = frames(&endpoint, Framing::ServerSentEvents)
        .await
        .unwrap_err();
    assert!(matches!(error, EgressError::Broken { .. }), "{error:?}");
    let error = frames(&endpoint, Framing::ServerSentEvents)
        .await
        .unwrap_err();
    assert!(matches!(error, EgressError::Idle { .. }), "{error:?}");
}

#[tokio::test]
async fn a_provider_that_does_not_begin_or_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let endpoint = Endpoint::new(url, KeyInjection::Bearer).unwrap();
    let error = asked(&endpoint, Framing::WholeBody).await.unwrap_err();
    assert!(matches!(&error, EgressError::FirstByte { host, .. } if host == "127.0.0.1"));
    drop(listener);
    let error = asked(&endpoint, Framing::WholeBody).await.unwrap_err();
    assert!(matches!(&error, EgressError::Connect { host, .. } if host == "127.0.0.1"));
}

#[tokio::test]
async fn a_server_without_tls_is_told_to_be_one() {
    let (plain, _) = server(|_| "ok".into_response()).await;
    let mut url = plain.base_url().clone();
    url.set_scheme("https").unwrap();
    let endpoint = Endpoint::new(url, KeyInjection::Bearer).unwrap();
    let error = asked(&endpoint, Framing::WholeBody).await.unwrap_err();
    assert!(error.to_string().contains("http://"), "{error}");
}

#[test]
fn a_base_url_is_http_with_a_host_and_nothing_secret() {
    for wrong in [
        "file:///etc",
        "https://user:pass@a.b",
        "https://user@a.b",
        "https://a.b/#x",
        "data:x",
    ] {
        let url = Url::parse(wrong).unwrap();
        let refused = Endpoint::new(url, KeyInjection::Bearer);
        assert!(
            matches!(refused, Err(EgressError::BaseUrl { .. })),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_key_that_no_header_can_hold_is_an_error_without_the_key() {
    let (endpoint, _) = server(|_| "ok".into_response()).await;
    let key = Secret::from("sk-broken\n");
    let sent = egress()
        .send(&endpoint, Some(&key), &post(), Framing::WholeBody)
        .await;
    assert_eq!(sent.unwrap_err(), EgressError::Key);
}
