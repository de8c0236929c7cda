//! Git provider plugins: the trait they implement, shared helpers, and the glue to the exported
//! interface.
//!
//! # Invariants
//!
//! - An operation is a chain of requests, and the state between two of them is the plugin's own,
//!   carried by the host. So a step depends on nothing but its arguments.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::bindings::git::exports::lucid::git::provider as wit;
use crate::cut;
use crate::llm::refusal::retry_after_ms;
use crate::types::{Error, ErrorKind, Header, HttpRequest, HttpResponse};

pub use crate::llm::{NO_SETTINGS, header, parse_settings, text_at};
pub use wit::{
    Account, Change, Descriptor, KeyPlace, NewChange, Operation, Page, Reply, Repository,
    RepositoryPage,
};

/// The next action of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum NextStep<S> {
    /// Send this request, and step again with the response and this state.
    Send(HttpRequest, S),
    /// The operation is complete.
    Done(Reply),
}

/// A request's response, and the state from the step that sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered<S> {
    /// The state from the previous step.
    pub state: S,
    /// The response, whatever its status.
    pub response: HttpResponse,
}

/// A git provider's API: encodes requests and interprets responses.
pub trait Provider: 'static {
    /// The state between two requests of an operation.
    type State: Serialize + DeserializeOwned;

    /// Describes this plugin.
    fn describe() -> Descriptor;

    /// One step of an operation. The first has no response.
    fn step(
        settings: &str,
        operation: &Operation,
        answered: Option<Answered<Self::State>>,
    ) -> Result<NextStep<Self::State>, Error>;
}

/// A GET request for JSON.
pub fn get(path: impl Into<String>, query: &[(&str, &str)]) -> HttpRequest {
    let query = query.iter();
    HttpRequest {
        method: "GET".into(),
        path: path.into(),
        query: query.map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        headers: vec![Header {
            name: "accept".into(),
            value: "application/json".into(),
        }],
        body: Vec::new(),
    }
}

/// A POST request with a JSON body and a JSON response.
pub fn post(path: impl Into<String>, body: &Value) -> HttpRequest {
    let mut request = get(path, &[]);
    request.method = "POST".into();
    request.headers.push(Header {
        name: "content-type".into(),
        value: "application/json".into(),
    });
    request.body = body.to_string().into_bytes();
    request
}

/// Escapes a text as one path segment: everything except letters, digits, `-`, `.`, `_` and `~`,
/// including slashes.
pub fn path_part(text: &str) -> String {
    let mut part = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            part.push(char::from(byte));
        } else {
            part.push_str(&format!("%{byte:02X}"));
        }
    }
    part
}

/// The JSON of a successful response. An error of kind `upstream` if it is not JSON.
pub fn json(response: &HttpResponse) -> Result<Value, Error> {
    serde_json::from_slice(&response.body)
        .map_err(|_| Error::upstream("The git provider's answer is not JSON."))
}

/// Whether the status is a success.
pub fn is_success(response: &HttpResponse) -> bool {
    (200..300).contains(&response.status)
}

/// The message in an error body: every text of `message`, `error` … in it, joined, since providers
/// put them in many places. Truncated, and empty if the body is not JSON.
pub fn said(response: &HttpResponse) -> String {
    fn texts(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(text) if !into.contains(text) => into.push(text.clone()),
            Value::Array(all) => all.iter().for_each(|value| texts(value, into)),
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                // The address of a documentation page tells a user nothing.
                if !name.contains("url") {
                    texts(value, into);
                }
            }),
            _ => {}
        }
    }
    let mut all = Vec::new();
    texts(
        &serde_json::from_slice(&response.body).unwrap_or_default(),
        &mut all,
    );
    cut(&all.join("; "), 500)
}

/// The error for an unsuccessful response whose message need not be interpreted: classified by
/// status, with the time of a retry. `provider` is a display name.
pub fn refusal(provider: &str, response: &HttpResponse) -> Error {
    let (status, said) = (response.status, said(response));
    let why = match said.trim_end_matches('.') {
        "" => String::new(),
        said => format!(": {said}"),
    };
    let (kind, message) = match status {
        401 => (
            ErrorKind::Unauthenticated,
            format!(
                "{provider} does not accept the token: it is wrong, has expired, or was revoked."
            ),
        ),
        403 => (
            ErrorKind::Forbidden,
            format!("{provider} does not let this token do that{why}."),
        ),
        404 | 410 => (
            ErrorKind::NotFound,
            format!("{provider} knows no such thing, or the token may not see it{why}."),
        ),
        409 => (ErrorKind::Conflict, format!("{provider} refused{why}.")),
        429 => (
            ErrorKind::RateLimited,
            format!("{provider} was asked too often with this token; try again later."),
        ),
        503 => (
            ErrorKind::Overloaded,
            format!("{provider} is busy; try again later."),
        ),
        500.. => (
            ErrorKind::Upstream,
            format!("{provider} failed (HTTP {status})."),
        ),
        400..500 => (ErrorKind::InvalidInput, format!("{provider} refused{why}.")),
        _ => (
            ErrorKind::Upstream,
            format!("{provider} answered with HTTP {status}, which means nothing here."),
        ),
    };
    Error {
        kind,
        code: Some(status.to_string()),
        message,
        retry_after_ms: retry_after_ms(&response.headers),
    }
}

/// A parameter of the next page's address in the `Link` header (RFC 8288).
pub fn next_in_link(headers: &[Header], parameter: &str) -> Option<String> {
    let links = header(headers, "link")?;
    let next = links.split(',').find(|link| {
        let mut parts = link.split(';').skip(1).map(str::trim);
        parts.any(|part| matches!(part, "rel=\"next\"" | "rel=next"))
    })?;
    let (_, query) = next.split(';').next()?.split_once('?')?;
    let query = query.trim().trim_end_matches('>');
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| *name == parameter)?;
    Some(value.to_owned())
}

/// A cursor that is a page number. Without one, the first page.
pub fn page_number(page: &Page) -> Result<u32, Error> {
    let Some(cursor) = &page.cursor else {
        return Ok(1);
    };
    let number = cursor.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Error::invalid("The cursor of the next page is none of this provider's."))
}

/// A member that must be present.
pub fn required<'a>(value: &'a Value, name: &str) -> Result<&'a str, Error> {
    text_at(value, name)
        .ok_or_else(|| Error::upstream(format!("The git provider's answer has no `{name}`.")))
}

/// The provider's numeric id of something, as text.
pub fn id(value: &Value) -> Result<String, Error> {
    match &value["id"] {
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Error::upstream("The git provider's answer has no `id`.")),
    }
}

/// The type that `export_git!` exports for a provider.
#[doc(hidden)]
pub struct ExportedGitProvider<P>(PhantomData<P>);

impl<P: Provider> wit::Guest for ExportedGitProvider<P> {
    fn describe() -> Descriptor {
        crate::panics::tell();
        P::describe()
    }

    fn step(
        settings: String,
        operation: Operation,
        state: Option<Vec<u8>>,
        answer: Option<HttpResponse>,
    ) -> Result<wit::Next, Error> {
        crate::panics::tell();
        step::<P>(&settings, &operation, state.as_deref(), answer)
    }
}

/// A step as the host runs it.
pub(crate) fn step<P: Provider>(
    settings: &str,
    operation: &Operation,
    state: Option<&[u8]>,
    answer: Option<HttpResponse>,
) -> Result<wit::Next, Error> {
    let answered = match (state, answer) {
        (None, None) => None,
        (Some(state), Some(response)) => {
            let state = serde_json::from_slice(state)
                .map_err(|e| Error::invalid(format!("The state cannot be read: {e}.")))?;
            Some(Answered { state, response })
        }
        _ => {
            return Err(Error::invalid(
                "A state and an answer belong together: there is one without the other.",
            ));
        }
    };
    Ok(match P::step(settings, operation, answered)? {
        NextStep::Send(request, state) => {
            let state = serde_json::to_vec(&state)
                .map_err(|e| Error::internal(format!("The state cannot be written: {e}.")))?;
            wit::Next::Send(wit::Sending { request, state })
        }
        NextStep::Done(reply) => wit::Next::Done(reply),
    })
}

/// Exports a [`Provider`] as the component's own. Used once in a crate. Does nothing natively.
#[macro_export]
macro_rules! export_git {
    ($provider:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type ExportedGitProvider = $crate::git::ExportedGitProvider<$provider>;
            $crate::bindings::git::export_git_world!(
                ExportedGitProvider with_types_in $crate::bindings::git
            );
        };
    };
}
