//! The only outgoing HTTP path to model providers, to the servers that tools call, and to the
//! documents that the operator names.
//!
//! A plugin chooses the path, the query, plain headers and the body of a request, and nothing else;
//! the destination and the key come from the deployment. Proxies are those of the environment
//! (`HTTPS_PROXY`, `NO_PROXY` …).
//!
//! # Invariants
//! - Redirects are followed on the same server only and addresses are checked, so a key never
//!   reaches another host.
//! - Every wait has a limit, and every response a maximum size.
//! - Nothing that comes back contains the key, whatever the provider echoes.

mod base_url;
pub mod error;
mod raw;
mod redact;
mod redact_scan;
mod redact_stream;
mod request;
mod response;
mod retry_after;
mod stream_start;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue, LOCATION};
use url::Url;

use super::client::{ClientSpec, error_message};
use super::resolver::{self, AddressPolicy};
use lucid_types::secret::Secret;
use lucid_types::wit::llm::{Framing, KeyPlace};
use lucid_types::wit::types::{HttpRequest, HttpResponse};

pub use self::raw::RawResponse;
pub use self::redact::{Redactor, redact};
pub use self::redact_stream::StreamRedactor;
pub use self::response::{EgressResponse, ErrorResponse, ResponseFrames};
pub use base_url::{
    BaseUrlError, base_url_candidates, is_loopback, parse_base_url, server, without_query,
};
pub use error::EgressError;
pub use retry_after::retry_after_ms;

/// Timeouts and size limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressLimits {
    /// Timeout for a connection.
    pub connect: Duration,
    /// Timeout from the request to the response's headers. A model that does not stream thinks
    /// here.
    pub first_byte: Duration,
    /// Timeout between two pieces of the response.
    pub idle: Duration,
    /// Maximum size of a response, in bytes.
    pub response: u64,
    /// Maximum size of a refusal's body, in bytes; the rest of it is not read.
    pub refusal: usize,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(300),
            idle: Duration::from_secs(120),
            response: 32 << 20,
            refusal: 64 << 10,
        }
    }
}

impl EgressLimits {
    /// Limits for model providers: a model may think for minutes, and sends nothing meanwhile.
    pub fn for_models() -> Self {
        let silence = Duration::from_secs(600);
        Self {
            first_byte: silence,
            idle: silence,
            ..Self::default()
        }
    }
}

/// The most redirects that are followed.
const REDIRECTS: usize = 3;

/// How a key is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyInjection {
    /// As `Authorization: Bearer …`.
    Bearer,
    /// Alone, as the value of this header.
    Header(HeaderName),
}

impl KeyInjection {
    /// Converts what an adapter says about where its provider wants the key.
    ///
    /// # Errors
    /// If the header it names cannot hold the key.
    pub fn of(place: &KeyPlace) -> Result<Self, EgressError> {
        match place {
            KeyPlace::Bearer => Ok(Self::Bearer),
            KeyPlace::Header(name) => request::key_header(name).map(Self::Header),
        }
    }

    fn header(&self) -> HeaderName {
        match self {
            Self::Bearer => AUTHORIZATION,
            Self::Header(name) => name.clone(),
        }
    }

    fn value(&self, key: &Secret) -> Result<HeaderValue, EgressError> {
        let key = key.expose();
        let value = match self {
            Self::Bearer => HeaderValue::from_str(&format!("Bearer {key}")),
            Self::Header(_) => HeaderValue::from_str(key),
        };
        let mut value = value.map_err(|_| EgressError::Key)?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The error with which every deployment would refuse this plugin request, whose key is sent as
/// `place` says; `None` if one could send it. `slashes` is as in
/// [`Endpoint::with_escaped_slashes`].
pub fn refusal_of(request: &HttpRequest, place: &KeyPlace, slashes: bool) -> Option<EgressError> {
    let checked = || {
        let base = Url::parse("https://example.org").map_err(|_| EgressError::BaseUrl {
            reason: "it is none",
        })?;
        request::join(&base, &request.path, &request.query, slashes)?;
        request::method(&request.method)?;
        request::headers(&request.headers, &KeyInjection::of(place)?.header())?;
        Ok(())
    };
    checked().err()
}

/// The location of a provider's API.
#[derive(Debug, Clone)]
pub struct Endpoint {
    base_url: Url,
    injection: KeyInjection,
    /// Whether the deployment configured the base URL: then its host may be a private one.
    named: bool,
    /// Whether an escaped slash may stand within a path segment.
    slashes: bool,
    /// How long its server may be silent, if configured for it.
    silence: Option<Duration>,
    /// An alternative location of the API on the same server.
    alternative: Option<Arc<AlternativeBase>>,
}

/// An alternative location on the same server, and which of the two turned out to be the API's.
#[derive(Debug)]
struct AlternativeBase {
    base_url: Url,
    /// 0 while unknown, otherwise [`FIRST`] or [`SECOND`].
    state: AtomicU8,
}

const FIRST: u8 = 1;
const SECOND: u8 = 2;

impl Endpoint {
    /// An endpoint at a base URL that the deployment configured: `http` or `https`, with a host, no
    /// credentials, no fragment. It may be on this machine or in a private network.
    ///
    /// # Errors
    /// If the base URL does not have that form.
    pub fn new(base_url: Url, injection: KeyInjection) -> Result<Self, EgressError> {
        Self::checked(base_url, injection, true)
    }

    /// An endpoint at a base URL that an adapter brings, which must be on the public network.
    ///
    /// # Errors
    /// If the base URL cannot be used.
    pub fn public(base_url: Url, injection: KeyInjection) -> Result<Self, EgressError> {
        Self::checked(base_url, injection, false)
    }

    /// The server, as `https://host:port`.
    pub fn server(&self) -> String {
        self.base_url.origin().ascii_serialization()
    }

    fn checked(base_url: Url, injection: KeyInjection, named: bool) -> Result<Self, EgressError> {
        let wrong = if !matches!(base_url.scheme(), "http" | "https") {
            "it must begin with http:// or https://"
        } else if !base_url.has_host() {
            "it has no host"
        } else if !base_url.username().is_empty() || base_url.password().is_some() {
            "it holds a credential, which belongs in the key"
        } else if base_url.fragment().is_some() {
            "it has a part behind `#`"
        } else if !resolver::literal_allowed(&base_url, named) {
            "its address is a metadata service's, or none that one server has"
        } else {
            return Ok(Self {
                base_url,
                injection,
                named,
                slashes: false,
                silence: None,
                alternative: None,
            });
        };
        Err(EgressError::BaseUrl { reason: wrong })
    }

    /// Allows escaped slashes, for an API that names things by paths in one path segment:
    /// `/projects/group%2Fname`.
    #[must_use]
    pub fn with_escaped_slashes(mut self) -> Self {
        self.slashes = true;
        self
    }

    /// Adds an alternative base URL on the same server: if nothing is found at the one, the other
    /// is tried, and the one that responds is used from then on.
    #[must_use]
    pub fn or_at(mut self, other: Option<Url>) -> Self {
        let other = other.filter(|other| other.origin() == self.base_url.origin());
        self.alternative = other.map(|base_url| {
            let is = AtomicU8::new(0);
            Arc::new(AlternativeBase {
                base_url,
                state: is,
            })
        });
        self
    }

    /// The base URL of requests, as far as it is known.
    fn current_base(&self) -> &Url {
        match &self.alternative {
            Some(other) if other.state.load(Ordering::Relaxed) == SECOND => &other.base_url,
            _ => &self.base_url,
        }
    }

    /// The alternative location, while it is unknown which of the two is right.
    fn untried_alternative(&self) -> Option<&AlternativeBase> {
        let other = self.alternative.as_deref()?;
        (other.state.load(Ordering::Relaxed) == 0).then_some(other)
    }

    /// Sets how long the server may be silent: before a response, and between two pieces of it.
    #[must_use]
    pub fn with_silence(mut self, silence: Option<Duration>) -> Self {
        self.silence = silence;
        self
    }

    /// The limits for this server, given the general ones.
    fn limits(&self, general: &EgressLimits) -> EgressLimits {
        EgressLimits {
            first_byte: self.silence.unwrap_or(general.first_byte),
            idle: self.silence.unwrap_or(general.idle),
            ..general.clone()
        }
    }

    /// The base URL.
    pub fn base_url(&self) -> &Url {
        self.current_base()
    }

    /// How the key is sent.
    pub fn injection(&self) -> &KeyInjection {
        &self.injection
    }

    /// The host, as errors may name it.
    fn host(&self) -> String {
        self.base_url.host_str().unwrap_or_default().to_owned()
    }
}

fn named_hosts<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> BTreeSet<String> {
    let named = endpoints.into_iter().filter(|endpoint| endpoint.named);
    named.map(Endpoint::host).collect()
}

/// Sends plugins' requests. A clone shares the connections.
#[derive(Debug, Clone)]
pub struct Egress {
    client: reqwest::Client,
    limits: EgressLimits,
    /// The hosts that may be private; `None` if they are known only later.
    named: Option<BTreeSet<String>>,
}

impl Egress {
    /// Creates the HTTP client itself, so that one which follows redirects cannot get in. The hosts
    /// of these endpoints may be private where the deployment named them.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn new<'a>(
        limits: EgressLimits,
        endpoints: impl IntoIterator<Item = &'a Endpoint>,
    ) -> Result<Self, EgressError> {
        let named = named_hosts(endpoints);
        let addresses = AddressPolicy::Public {
            private_hosts: named.clone(),
        };
        Self::with(limits, addresses, Some(named))
    }

    /// For endpoints that are known only later, such as users' own servers. Their hosts may be
    /// private if `private` is set.
    ///
    /// # Errors
    /// If the HTTP client cannot be created.
    pub fn open(limits: EgressLimits, private: bool) -> Result<Self, EgressError> {
        Self::with(limits, AddressPolicy::public_or_private(private), None)
    }

    fn with(
        limits: EgressLimits,
        addresses: AddressPolicy,
        named: Option<BTreeSet<String>>,
    ) -> Result<Self, EgressError> {
        let client = ClientSpec::new(addresses, limits.connect)
            .build()
            .map_err(|cause| EgressError::Client {
                detail: error_message(cause),
            })?;
        Ok(Self {
            client,
            limits,
            named,
        })
    }

    /// Reuses this egress if it fits these endpoints, so that connections survive a change of the
    /// deployment; otherwise creates a new one.
    pub fn reuse_or_new(
        before: Option<&Self>,
        limits: EgressLimits,
        endpoints: &[&Endpoint],
    ) -> Result<Self, EgressError> {
        let named = Some(named_hosts(endpoints.iter().copied()));
        match before.filter(|before| before.named == named && before.limits == limits) {
            Some(before) => Ok(before.clone()),
            None => Self::new(limits, endpoints.iter().copied()),
        }
    }

    /// Sends a plugin's request with the deployment's key. Dropping the future drops the request,
    /// and dropping the frames ends the response.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        request: &HttpRequest,
        framing: Framing,
    ) -> Result<EgressResponse, EgressError> {
        let redactor = Redactor::new(key);
        let response = self.respond(endpoint, key, request).await;
        let response = response.map_err(|error| error.redacted(&redactor))?;
        let limits = endpoint.limits(&self.limits);
        if !response.status().is_success() {
            let refusal = response::refusal(response, &redactor, &limits).await;
            return Ok(EgressResponse::Refused(refusal));
        }
        Ok(EgressResponse::Success(response::frames(
            response, framing, redactor, &limits,
        )))
    }

    /// Sends a plugin's request with the deployment's key, and returns the complete response,
    /// whatever its status. Dropping the future drops the request.
    pub async fn exchange(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        request: &HttpRequest,
    ) -> Result<HttpResponse, EgressError> {
        let redactor = Redactor::new(key);
        let exchanged = async {
            let response = self.respond(endpoint, key, request).await?;
            response::response(response, &redactor, &self.limits).await
        };
        exchanged.await.map_err(|error| error.redacted(&redactor))
    }

    /// Sends a request and reads only the head of the response. An error may repeat the key.
    async fn respond(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        request: &HttpRequest,
    ) -> Result<reqwest::Response, EgressError> {
        let at = |base: &Url| request::join(base, &request.path, &request.query, endpoint.slashes);
        let call = CheckedRequest {
            method: request::method(&request.method)?,
            url: at(endpoint.current_base())?,
            headers: request::headers(&request.headers, &endpoint.injection.header())?,
            body: Bytes::from(request.body.clone()),
        };
        let Some(other) = endpoint.untried_alternative() else {
            return self.send_checked(endpoint, key, call).await;
        };
        let first = self.send_checked(endpoint, key, call.clone()).await?;
        if !is_nothing(first.status()) {
            if first.status().is_success() {
                other.state.store(FIRST, Ordering::Relaxed);
            }
            return Ok(first);
        }
        let url = at(&other.base_url)?;
        let second = self
            .send_checked(endpoint, key, CheckedRequest { url, ..call })
            .await;
        match second {
            Ok(second) if !is_nothing(second.status()) => {
                other.state.store(SECOND, Ordering::Relaxed);
                Ok(second)
            }
            // Neither has what was asked for, such as a model that does not exist.
            _ => Ok(first),
        }
    }

    /// Sends a request that was already checked.
    async fn send_checked(
        &self,
        endpoint: &Endpoint,
        key: Option<&Secret>,
        mut call: CheckedRequest,
    ) -> Result<reqwest::Response, EgressError> {
        if let Some(key) = key {
            let name = endpoint.injection.header();
            call.headers.insert(name, endpoint.injection.value(key)?);
        }
        let mut hops = 0;
        loop {
            let sending = self
                .client
                .request(call.method.clone(), call.url.clone())
                .headers(call.headers.clone())
                .body(call.body.clone())
                .send();
            let limit = endpoint.limits(&self.limits).first_byte;
            let response = tokio::time::timeout(limit, sending)
                .await
                .map_err(|_| EgressError::FirstByte {
                    host: endpoint.host(),
                    limit,
                })?
                .map_err(|cause| EgressError::unsent(endpoint.host(), cause))?;
            let status = response.status();
            if !status.is_redirection() {
                return Ok(response);
            }
            // The other redirects turn a POST into a GET.
            let keeps_method = matches!(
                status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            );
            let next = request::redirect_target(&call.url, response.headers().get(LOCATION));
            match next {
                Some(next) if keeps_method && hops < REDIRECTS => call.url = next,
                _ => {
                    return Err(EgressError::Redirected {
                        host: endpoint.host(),
                        status: status.as_u16(),
                    });
                }
            }
            hops += 1;
        }
    }
}

/// Whether a status says that nothing is at a URL.
fn is_nothing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    )
}

/// A checked request.
#[derive(Clone)]
struct CheckedRequest {
    method: reqwest::Method,
    url: Url,
    headers: reqwest::header::HeaderMap,
    body: Bytes,
}
