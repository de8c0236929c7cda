//! Owns the one place that talks to model providers.
//!
//! What always holds: a plugin says path, query, plain headers and body, and nothing else of a
//! request; where it goes and what key goes along are the deployment's. A redirect is not followed,
//! so a key never reaches another host. Every wait has a limit and every answer a size, and no error
//! that comes back contains the key, whatever the provider echoes.

mod answer;
mod blank;
mod error;
mod request;
#[cfg(test)]
mod tests;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::plugins::llm_types::Framing;
use crate::plugins::types::HttpRequest;

pub use answer::{Answer, Frames, Refusal};
pub use blank::blank;
pub use error::EgressError;

/// How long is waited for what, and how much is taken.
#[derive(Debug, Clone)]
pub struct EgressLimits {
    /// For a connection.
    pub connect: Duration,
    /// From the request to the answer's headers. A model that does not stream thinks here.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// For an answer, in bytes.
    pub response: u64,
    /// For a refusal, in bytes; the rest of it is not read.
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

/// How a key goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Injection {
    /// As `Authorization: Bearer …`.
    Bearer,
}

/// Where a provider's API is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    base_url: Url,
    injection: Injection,
}

impl Endpoint {
    /// A base URL of the deployment's: `http` or `https`, a host, no credential, no fragment.
    pub fn new(base_url: Url, injection: Injection) -> Result<Self, EgressError> {
        let wrong = if !matches!(base_url.scheme(), "http" | "https") {
            "it must begin with http:// or https://"
        } else if !base_url.has_host() {
            "it has no host"
        } else if !base_url.username().is_empty() || base_url.password().is_some() {
            "it holds a credential, which belongs in the key"
        } else if base_url.fragment().is_some() {
            "it has a part behind `#`"
        } else {
            return Ok(Self {
                base_url,
                injection,
            });
        };
        Err(EgressError::BaseUrl { reason: wrong })
    }

    /// The base URL.
    pub fn base_url(&self) -> &Url {
        &self.base_url
    }

    /// The host, as an error may name it.
    fn host(&self) -> String {
        self.base_url.host_str().unwrap_or_default().to_owned()
    }
}

/// Sends requests of plugins. A clone shares the connections.
#[derive(Debug, Clone)]
pub struct Egress {
    client: reqwest::Client,
    limits: EgressLimits,
}

impl Egress {
    /// Makes the client itself, so that one which follows redirects cannot get in.
    pub fn new(limits: EgressLimits) -> Result<Self, EgressError> {
        // Somebody else may have done it; any provider will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(limits.connect)
            .user_agent(concat!("lucid/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| EgressError::Client {
                detail: error::words(cause),
            })?;
        Ok(Self { client, limits })
    }

    /// Sends a plugin's request with the deployment's key. Dropping the future drops the request,
    /// and dropping the frames ends the answer.
    pub async fn send(
        &self,
        endpoint: &Endpoint,
        key: Option<&SecretString>,
        request: &HttpRequest,
        framing: Framing,
    ) -> Result<Answer, EgressError> {
        let sent = self.send_unblanked(endpoint, key, request, framing).await;
        sent.map_err(|error| error.blanked(key))
    }

    async fn send_unblanked(
        &self,
        endpoint: &Endpoint,
        key: Option<&SecretString>,
        request: &HttpRequest,
        framing: Framing,
    ) -> Result<Answer, EgressError> {
        let url = request::join(endpoint.base_url(), &request.path, &request.query)?;
        let method = request::method(&request.method)?;
        let mut headers = request::headers(&request.headers)?;
        if let Some(key) = key {
            match endpoint.injection {
                Injection::Bearer => {
                    let mut value =
                        HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))
                            .map_err(|_| EgressError::Key)?;
                    value.set_sensitive(true);
                    headers.insert(AUTHORIZATION, value);
                }
            }
        }
        let sending = self
            .client
            .request(method, url)
            .headers(headers)
            .body(request.body.clone())
            .send();
        let response = tokio::time::timeout(self.limits.first_byte, sending)
            .await
            .map_err(|_| EgressError::FirstByte {
                host: endpoint.host(),
                limit: self.limits.first_byte,
            })?
            .map_err(|cause| EgressError::unsent(endpoint.host(), cause))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(EgressError::Redirected {
                host: endpoint.host(),
                status: status.as_u16(),
            });
        }
        if !status.is_success() {
            let refusal = answer::refusal(response, key, &self.limits).await;
            return Ok(Answer::Refused(refusal));
        }
        Ok(Answer::Frames(answer::frames(
            response,
            framing,
            key.cloned(),
            &self.limits,
        )))
    }
}
