//! Error responses: RFC 9457 problems, and extractors whose rejections are problems too.
//!
//! # Invariants
//!
//! - Every error body is `application/problem+json` with `type`, `title`, `status` and `detail`,
//!   and `detail` is a sentence for a person (older clients read nothing else).
//! - The cause of an internal error goes to the log, never to the client.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use axum::body::HttpBody as _;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::LARGEST_BODY;
use super::request_id::RequestId;
use crate::auth::AuthError;
use crate::listener::{ConnectionSlot, HeldBytes, TooManyBytes};
use lucid_store::StoreError;
use lucid_types::log::LogError;
use lucid_types::sentence::sentence;
use lucid_types::transient::TransientFailure;
use lucid_types::unicode::paired_json;

/// A parser's message may repeat the input. More than this many characters help nobody.
const LONGEST_REASON: usize = 300;
/// How long a body of at most [`LARGEST_BODY`](super::LARGEST_BODY) may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// `Retry-After` while the database is unavailable, in seconds.
pub(super) const STORE_AGAIN: u32 = 5;
/// `Retry-After` while too much is held for clients that take their time, in seconds.
const HELD_AGAIN: u32 = 5;
/// `Retry-After` while the server stops, in seconds: a restart is over soon, and another server is there at once.
pub(super) const RESTARTED_AGAIN: u32 = 5;
/// `Retry-After` while the disk is full, in seconds.
pub(super) const DISK_AGAIN: u32 = 30;

/// A failed request, as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(value_type = String, example = "Not Found")]
    title: Cow<'static, str>,
    /// The HTTP status.
    #[serde(serialize_with = "as_number")]
    #[schema(value_type = u16, example = 404)]
    status: StatusCode,
    /// What went wrong, in a sentence.
    #[schema(example = "Chat not found")]
    detail: String,
    /// The request's id, as in the header `X-Request-Id` and in the server's log.
    #[serde(rename = "requestId", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "0197a3c2-7b1e-7c31-9d1f-0242ac120002")]
    request_id: Option<String>,
    /// After how many seconds the same request may succeed: the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem with any status. The title is the status's own.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: Cow::Borrowed(status.canonical_reason().unwrap_or("Error")),
            status,
            detail: detail.into(),
            request_id: None,
            retry_after: None,
        }
    }

    /// Sets after how many seconds a retry may succeed.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Sets another title.
    #[must_use]
    pub fn with_title(mut self, title: impl Into<Cow<'static, str>>) -> Self {
        self.title = title.into();
        self
    }

    /// 400: the request cannot be carried out as sent.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401: the caller, or a key they sent, is not accepted.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403: the caller is authenticated, but not permitted.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 404: the resource does not exist.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 409: the request conflicts with the present state.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 413: the body is too large.
    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// 415: the body's media type is not accepted.
    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    /// 422: a field is missing or has an invalid value.
    pub fn unprocessable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    /// 429: the caller has reached a limit.
    pub fn too_many(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail)
    }

    /// 500: an error of our own. The cause is logged, with its sources, and the client gets a plain
    /// sentence.
    pub fn internal(cause: &(dyn Error + 'static)) -> Self {
        tracing::error!(cause = %ErrorChain(cause), "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something went wrong on the server. Its log says what, under the id of this request.",
        )
    }

    /// 502: a service behind this one failed.
    pub fn bad_gateway(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, detail)
    }

    /// 503: temporarily unavailable.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// The chats could not be read or written: 503 if that is temporary, else 500.
    pub fn store(cause: &StoreError) -> Self {
        Self::database(cause.transient(), cause)
    }

    /// The log could not be read or written: 503 if that is temporary, else 500.
    pub fn log(cause: &LogError) -> Self {
        Self::database(cause.transient(), cause)
    }

    fn database(transient: Option<TransientFailure>, cause: &(dyn Error + 'static)) -> Self {
        match transient {
            Some(reason) => Self::unavailable(format!(
                "The server's database cannot be used at the moment, because {reason}. Try again in a moment."
            ))
            .retry_after(STORE_AGAIN),
            None => Self::internal(cause),
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The detail.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The title.
    pub fn title(&self) -> &str {
        &self.title
    }
}

/// The response for an unknown path. The router's fallback.
pub async fn no_such_route() -> Problem {
    Problem::not_found("There is nothing at this address.")
}

/// The response for a known path with another method. The router's method fallback.
pub async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "This address does not take that method.",
    )
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        self.request_id = RequestId::current().map(|id| id.as_str().to_owned());
        let mut response = (self.status, axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::NoKeys => Self::unavailable(error.detail()),
            _ => Self::unauthorized(error.detail()),
        }
    }
}

impl From<TooManyBytes> for Problem {
    fn from(error: TooManyBytes) -> Self {
        let text = sentence(error);
        let problem = match error {
            TooManyBytes::OfUser => Self::too_many(text),
            TooManyBytes::OfAll => Self::unavailable(text),
        };
        problem.retry_after(HELD_AGAIN)
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match &rejection {
            JsonRejection::JsonDataError(error) => {
                Self::unprocessable(format!("The request body does not fit: {}.", reason(error)))
            }
            JsonRejection::JsonSyntaxError(error) => {
                Self::bad_request(format!("The request body is not JSON: {}.", reason(error)))
            }
            JsonRejection::MissingJsonContentType(_) => Self::unsupported_media_type(
                "The request body must be sent with Content-Type: application/json.",
            ),
            other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Self::too_large("The request body is larger than what this server takes.")
            }
            other if other.status().is_server_error() => Self::internal(other),
            other => Self::new(other.status(), "The request body could not be read."),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::unprocessable(format!("The query does not fit: {}.", reason(&rejection)))
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        if rejection.status().is_server_error() {
            return Self::internal(&rejection);
        }
        // A malformed id is treated like an unknown one.
        Self::not_found("There is nothing at this address.")
    }
}

/// A JSON body of a request or a response. Unlike axum's own, a rejection is a [`Problem`], half a
/// surrogate pair becomes U+FFFD, and a request's has to arrive in time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let _held = hold_body(&request)?;
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let body = in_time(BODY_TIMEOUT, Bytes::from_request(request, state))
            .await?
            .map_err(JsonRejection::from)?;
        let body = match paired_json(&body) {
            Cow::Borrowed(_) => body,
            Cow::Owned(replaced) => replaced.into(),
        };
        let request = Request::from_parts(parts, body.into());
        let axum::Json(value) = axum::Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}

/// Counts a body as its user's while it arrives, by the size that it is announced with.
fn hold_body(request: &Request) -> Result<Option<HeldBytes>, TooManyBytes> {
    let Some(connection) = request.extensions().get::<ConnectionSlot>() else {
        return Ok(None);
    };
    let announced = request.body().size_hint().exact();
    connection.hold(announced.map_or(LARGEST_BODY as u64, |size| size.min(LARGEST_BODY as u64)))
}

/// What a body's future gives, or 408 if it does not arrive in time.
async fn in_time<T>(limit: Duration, arriving: impl Future<Output = T>) -> Result<T, Problem> {
    timeout(limit, arriving).await.map_err(|_| {
        Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "The request body took too long to arrive.",
        )
    })
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Query parameters. Unlike axum's own, a rejection is a [`Problem`].
#[derive(Debug, Clone, Copy, Default, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

/// Path parameters. Unlike axum's own, a rejection is a [`Problem`].
#[derive(Debug, Clone, Copy, Default, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// A parser's message on one line, without the position in the body, and truncated.
fn reason(error: &(dyn Error + 'static)) -> String {
    let text = error.source().unwrap_or(error).to_string();
    let text = text
        .rfind(" at line ")
        .map_or(text.as_str(), |at| &text[..at]);
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match clean.char_indices().nth(LONGEST_REASON) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}

struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut below = self.0.source();
        while let Some(cause) = below {
            write!(f, ": {cause}")?;
            below = cause.source();
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::extract::DefaultBodyLimit;
    use serde::Deserialize;
    use serde_json::{Value, json};

    #[derive(Debug, Deserialize)]
    struct Wanted {
        #[expect(dead_code, reason = "only its presence is looked at")]
        task: String,
    }

    #[derive(Debug, Deserialize)]
    struct Page {
        limit: Option<u32>,
    }

    async fn body(response: Response) -> (StatusCode, String, Value) {
        let status = response.status();
        let kind = response.headers()[header::CONTENT_TYPE]
            .to_str()
            .unwrap()
            .to_owned();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        (status, kind, serde_json::from_slice(&bytes).unwrap())
    }

    fn request(kind: Option<&str>, body: &str) -> Request {
        let mut request = Request::post("/")
            .body(Body::from(body.to_owned()))
            .unwrap();
        if let Some(kind) = kind {
            request
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap());
        }
        request
    }

    async fn refused(kind: Option<&str>, text: &str) -> Problem {
        Json::<Wanted>::from_request(request(kind, text), &())
            .await
            .unwrap_err()
    }

    #[tokio::test]
    async fn a_problem_has_all_four_members_and_its_own_media_type() {
        let (status, kind, value) =
            body(Problem::not_found("Chat not found").into_response()).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(kind, "application/problem+json");
        let expected = json!({"type": "about:blank", "title": "Not Found", "status": 404, "detail": "Chat not found"});
        assert_eq!(value, expected);
    }

    #[tokio::test]
    async fn a_refused_caller_gets_401_with_the_sentence_and_the_scheme() {
        let response = Problem::from(AuthError::MissingSubject).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let (status, _, value) = body(response).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(value["detail"], "Token missing sub claim");
    }

    #[tokio::test]
    async fn an_internal_error_does_not_show_its_cause() {
        let cause = std::io::Error::other("password=hunter2");
        let (status, _, value) = body(Problem::internal(&cause).into_response()).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!value.to_string().contains("hunter2"));
    }

    #[tokio::test]
    async fn a_missing_field_is_422_and_named() {
        let problem = refused(Some("application/json"), "{}").await;
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(
            problem.detail(),
            "The request body does not fit: missing field `task`."
        );
    }

    #[tokio::test]
    async fn a_field_of_the_wrong_type_is_422_and_named() {
        let problem = refused(Some("application/json; charset=utf-8"), r#"{"task": 3}"#).await;
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(
            problem.detail(),
            "The request body does not fit: task: invalid type: integer `3`, expected a string."
        );
    }

    #[tokio::test]
    async fn a_body_that_is_not_json_is_400_and_of_another_kind_415() {
        assert_eq!(
            refused(Some("application/json"), "{").await.status(),
            StatusCode::BAD_REQUEST
        );
        assert_eq!(
            refused(None, "{}").await.status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        );
        assert_eq!(
            refused(Some("text/plain"), "{}").await.status(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        );
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413() {
        let mut large = request(
            Some("application/json"),
            &format!("{{\"task\":\"{}\"}}", "x".repeat(64)),
        );
        DefaultBodyLimit::max(16).apply(&mut large);
        let problem = Json::<Wanted>::from_request(large, &()).await.unwrap_err();
        assert_eq!(problem.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn a_long_value_is_not_repeated_in_full() {
        let problem = refused(
            Some("application/json"),
            &format!("\"{}\"", "é".repeat(10_000)),
        )
        .await;
        assert!(
            problem.detail().chars().count() < 400,
            "{}",
            problem.detail()
        );
    }

    #[tokio::test]
    async fn a_query_that_does_not_fit_is_422() {
        let (mut parts, ()) = Request::get("/?limit=many").body(()).unwrap().into_parts();
        let problem = Query::<Page>::from_request_parts(&mut parts, &())
            .await
            .unwrap_err();
        assert_eq!(problem.status(), StatusCode::UNPROCESSABLE_ENTITY);
        assert!(problem.detail().contains("limit"), "{}", problem.detail());
        let (mut parts, ()) = Request::get("/?limit=3").body(()).unwrap().into_parts();
        assert_eq!(
            Query::<Page>::from_request_parts(&mut parts, &())
                .await
                .unwrap()
                .0
                .limit,
            Some(3)
        );
    }

    #[tokio::test]
    async fn a_path_outside_a_route_is_our_own_fault() {
        let (mut parts, ()) = Request::get("/").body(()).unwrap().into_parts();
        let problem = Path::<u32>::from_request_parts(&mut parts, &())
            .await
            .unwrap_err();
        assert_eq!(problem.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn a_missing_route_or_method_is_a_problem_too() {
        assert_eq!(no_such_route().await.status(), StatusCode::NOT_FOUND);
        assert_eq!(
            no_such_method().await.status(),
            StatusCode::METHOD_NOT_ALLOWED
        );
    }

    #[test]
    fn the_causes_of_an_error_are_told_in_one_line() {
        let outer = std::io::Error::other(crate::auth::AuthError::Required);
        assert!(
            ErrorChain(&outer)
                .to_string()
                .starts_with("authentication required")
        );
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_not_waited_for_for_ever() {
        let beginning = Ok::<_, std::convert::Infallible>(Bytes::from_static(b"{\"task\":"));
        let beginning = futures::stream::iter([beginning]);
        let endless = futures::StreamExt::chain(beginning, futures::stream::pending());
        let arriving = Bytes::from_request(Request::new(Body::from_stream(endless)), &());
        let refused = in_time(Duration::from_millis(50), arriving).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
