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

/// What is next in an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<S> {
    /// Send this, and step again with the answer and this state.
    Send(HttpRequest, S),
    /// That was all.
    Done(Reply),
}

/// A request's answer, and what the step that asked wanted to be known.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered<S> {
    /// What the step before left.
    pub state: S,
    /// What came back, whatever its status.
    pub response: HttpResponse,
}

/// A git provider's API: it says what to send and what came back means.
pub trait Provider: 'static {
    /// What is known between two requests of an operation.
    type State: Serialize + DeserializeOwned;

    /// What this integration is.
    fn describe() -> Descriptor;

    /// One step of an operation; the first has no answer.
    fn step(
        settings: &str,
        operation: &Operation,
        answered: Option<Answered<Self::State>>,
    ) -> Result<Next<Self::State>, Error>;
}

/// A GET of JSON.
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

/// A POST of JSON, answered with JSON.
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

/// A text as one part of a path: all but letters, digits, `-`, `.`, `_` and `~` is escaped, a slash too.
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

/// A success as JSON; an error of kind `upstream` for what is none.
pub fn json(response: &HttpResponse) -> Result<Value, Error> {
    serde_json::from_slice(&response.body)
        .map_err(|_| Error::upstream("The git provider's answer is not JSON."))
}

/// Whether it is a success.
pub fn is_success(response: &HttpResponse) -> bool {
    (200..300).contains(&response.status)
}

/// What an error's body says, every text of `message`, `error` … in it, joined: providers put them in
/// many places. Short, and nothing where it is no JSON.
pub fn said(response: &HttpResponse) -> String {
    fn texts(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::String(text) if !into.contains(text) => into.push(text.clone()),
            Value::Array(all) => all.iter().for_each(|value| texts(value, into)),
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                // An address of the documentation tells a user nothing.
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

/// An answer that is no success, where its words need not be looked at: what its status means, and
/// when to try again. `provider` is a name for people.
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

/// What the `Link` header (RFC 8288) says of the next page: one parameter of its address.
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

/// A cursor that is the number of a page; none is the first.
pub fn page_number(page: &Page) -> Result<u32, Error> {
    let Some(cursor) = &page.cursor else {
        return Ok(1);
    };
    let number = cursor.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Error::invalid("The cursor of the next page is none of this provider's."))
}

/// A member that must be there.
pub fn required<'a>(value: &'a Value, name: &str) -> Result<&'a str, Error> {
    text_at(value, name)
        .ok_or_else(|| Error::upstream(format!("The git provider's answer has no `{name}`.")))
}

/// The provider's number for something, as text.
pub fn id(value: &Value) -> Result<String, Error> {
    match &value["id"] {
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => Err(Error::upstream("The git provider's answer has no `id`.")),
    }
}

/// What `export_git!` exports in the name of a provider.
#[doc(hidden)]
pub struct Exported<P>(PhantomData<P>);

impl<P: Provider> wit::Guest for Exported<P> {
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

/// A step as the host sees it.
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
        Next::Send(request, state) => {
            let state = serde_json::to_vec(&state)
                .map_err(|e| Error::internal(format!("The state cannot be written: {e}.")))?;
            wit::Next::Send(wit::Sending { request, state })
        }
        Next::Done(reply) => wit::Next::Done(reply),
    })
}

/// Exports a [`Provider`] as the component's own. Once in a crate; natively it does nothing.
#[macro_export]
macro_rules! export_git {
    ($provider:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::git::Exported<$provider>;
            $crate::bindings::git::export_git_world!(
                Exported with_types_in $crate::bindings::git
            );
        };
    };
}
