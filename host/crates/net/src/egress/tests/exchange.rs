//! Tests of complete responses, as tools and git providers receive them.

use super::*;
use lucid_types::wit::types::HttpResponse;

async fn exchanged(
    answer: impl Fn(usize) -> Response + Send + Sync + 'static,
) -> (Result<HttpResponse, EgressError>, Vec<RecordedRequest>) {
    let (endpoint, log) = server(answer).await;
    let answer = egress().exchange(&endpoint, Some(&key()), &post()).await;
    let seen = log.lock().unwrap().clone();
    (answer, seen)
}

#[tokio::test]
async fn any_status_comes_back_whole_with_its_headers_and_without_cookies() {
    for status in [200, 201, 404, 500] {
        let (answer, seen) = exchanged(move |_| {
            let mut response = Response::new(Body::from("{\"a\":1}"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            let headers = response.headers_mut();
            headers.insert("x-rate", "7".parse().unwrap());
            headers.insert("set-cookie", "a=b".parse().unwrap());
            response
        })
        .await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, &*answer.body), (status, &b"{\"a\":1}"[..]));
        let names: Vec<&str> = answer.headers.iter().map(|one| &*one.name).collect();
        assert!(names.contains(&"x-rate"), "{names:?}");
        assert!(!names.contains(&"set-cookie"), "{names:?}");
        assert_eq!(seen[0].uri, "/v1/chat?a=b+c");
        assert_eq!(seen[0].header("authorization"), ["Bearer sk-very-secret"]);
    }
}

#[tokio::test]
async fn a_key_that_a_server_repeats_is_blanked_in_headers_and_body_however_short() {
    for secret in ["sk-very-secret", "pw7"] {
        let (endpoint, _) = server(move |_| {
            let mut response = Response::new(Body::from(format!("you sent {secret}, \u{e4}")));
            let echoed = format!("Bearer {secret}").parse().unwrap();
            response.headers_mut().insert("x-echo", echoed);
            response
        })
        .await;
        let key = Secret::from(secret);
        let answer = egress().exchange(&endpoint, Some(&key), &post()).await;
        let answer = answer.unwrap();
        let body = String::from_utf8(answer.body).unwrap();
        assert_eq!(body, "you sent [secret], \u{e4}");
        let echoed = answer.headers.iter().find(|one| one.name == "x-echo");
        assert_eq!(echoed.unwrap().value, "Bearer [secret]");
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_come_back_as_they_are() {
    let (answer, _) = exchanged(|_| Response::new(Body::from(vec![0xff, 0x00, 0xfe]))).await;
    assert_eq!(answer.unwrap().body, [0xff, 0x00, 0xfe]);
}

#[tokio::test]
async fn an_answer_that_is_too_large_or_leads_elsewhere_is_an_error() {
    let (answer, _) = exchanged(|_| Response::new(Body::from(vec![b'x'; 10_001]))).await;
    assert!(
        matches!(answer, Err(EgressError::TooLarge { limit: 10_000 })),
        "{answer:?}"
    );
    let (answer, seen) = exchanged(|_| {
        let location = [("location", "http://127.0.0.2:1/stolen")];
        (StatusCode::TEMPORARY_REDIRECT, location).into_response()
    })
    .await;
    assert!(
        matches!(answer, Err(EgressError::Redirected { .. })),
        "{answer:?}"
    );
    assert_eq!(seen.len(), 1);
}
