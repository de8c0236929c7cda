//! Fetches a small public document from an address that the operator configured, such as an
//! identity provider's signing keys.
//!
//! # Invariants
//! - The document is fetched over HTTPS, or over HTTP from a non-public address only, since anyone
//!   on the network path could substitute a document of their own.
//! - Redirects are not followed, and time and size are limited.
//! - No credential is sent.
//! - Metadata services are never contacted.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::ACCEPT;
use url::Url;

use super::client::ClientSpec;
use super::client::error_message;
use super::resolver::{self, AddressPolicy};

/// Time and size limits of a document.
#[derive(Debug, Clone, Copy)]
pub struct DocumentLimits {
    /// From the start of the connection to the last byte.
    pub time: Duration,
    /// Maximum size in bytes.
    pub size: usize,
}

/// An error in fetching a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The address cannot be used.
    #[error("it must be an https URL, or an http URL at an address that is not public")]
    Url,
    /// The HTTP client could not be created.
    #[error("the HTTP client cannot be made: {detail}")]
    Client {
        /// The cause.
        detail: String,
    },
    /// The host resolves to a blocked address.
    #[error(
        "{host} is at an address that is not asked: a metadata service's, or, for plain http, a public one (use https)"
    )]
    Address {
        /// The host that was to be asked.
        host: String,
    },
    /// The connection failed.
    #[error("{host} cannot be reached: {detail}")]
    Connect {
        /// The host that was asked.
        host: String,
        /// The system's message.
        detail: String,
    },
    /// The fetch took too long.
    #[error("{host} did not answer in full within {} s", .limit.as_secs_f32())]
    Time {
        /// The host that was asked.
        host: String,
        /// The time limit.
        limit: Duration,
    },
    /// The server sent a redirect.
    #[error("{host} answered with a redirect, which is not followed; correct the address")]
    Redirected {
        /// The host that was asked.
        host: String,
    },
    /// The server responded with an error status.
    #[error("{host} answered with HTTP {status}")]
    Status {
        /// The host that was asked.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// The document is too large.
    #[error("{host} answered with more than the {limit} bytes that are taken")]
    Size {
        /// The host that was asked.
        host: String,
        /// The limit in bytes.
        limit: usize,
    },
}

/// A document's address, and the client that fetches it.
#[derive(Debug, Clone)]
pub struct Document {
    url: Url,
    client: reqwest::Client,
    limits: DocumentLimits,
}

impl Document {
    /// A document at an address that the operator configured. The host's name is resolved at each
    /// connection.
    ///
    /// # Errors
    /// If the address cannot be used, or the HTTP client cannot be created.
    pub fn new(url: Url, limits: DocumentLimits) -> Result<Self, DocumentError> {
        let addresses = addresses(&url).ok_or(DocumentError::Url)?;
        let client = ClientSpec::new(addresses, limits.time)
            .without_keep_alive()
            .build();
        let client = client.map_err(|cause| DocumentError::Client {
            detail: error_message(cause),
        })?;
        Ok(Self {
            url,
            client,
            limits,
        })
    }

    /// Whether a document may be at an address. A host name is checked again when it is resolved.
    pub fn is_allowed_url(url: &Url) -> bool {
        addresses(url).is_some()
    }

    /// The document's address.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Fetches the document as it is now.
    pub async fn fetch(&self) -> Result<Vec<u8>, DocumentError> {
        let fetched = tokio::time::timeout(self.limits.time, self.fetch_body());
        fetched.await.map_err(|_| DocumentError::Time {
            host: self.host(),
            limit: self.limits.time,
        })?
    }

    async fn fetch_body(&self) -> Result<Vec<u8>, DocumentError> {
        let request = self.client.get(self.url.clone());
        let sent = request.header(ACCEPT, "application/json").send().await;
        let mut response = sent.map_err(|cause| self.connect_error(cause))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(DocumentError::Redirected { host: self.host() });
        }
        if status != StatusCode::OK {
            return Err(DocumentError::Status {
                host: self.host(),
                status: status.as_u16(),
            });
        }
        let mut document = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|cause| self.connect_error(cause))?
        {
            if document.len() + piece.len() > self.limits.size {
                return Err(DocumentError::Size {
                    host: self.host(),
                    limit: self.limits.size,
                });
            }
            document.extend_from_slice(&piece);
        }
        Ok(document)
    }

    fn connect_error(&self, cause: reqwest::Error) -> DocumentError {
        let host = self.host();
        if resolver::was_refused(&cause) {
            return DocumentError::Address { host };
        }
        DocumentError::Connect {
            host,
            detail: error_message(cause),
        }
    }

    fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }
}

/// Which addresses the host of a URL may have; `None` if the URL is refused.
fn addresses(url: &Url) -> Option<AddressPolicy> {
    let addresses = match url.scheme() {
        "https" => AddressPolicy::PublicAndPrivate,
        "http" => AddressPolicy::PrivateOnly,
        _ => return None,
    };
    let plain = url.username().is_empty() && url.password().is_none();
    (url.has_host() && plain && addresses.allows_literal(url)).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode as Code;
    use axum::response::Redirect;
    use axum::routing::get;

    use super::*;

    const LIMITS: DocumentLimits = DocumentLimits {
        time: Duration::from_secs(30),
        size: 1000,
    };

    fn at(url: &str, limits: DocumentLimits) -> Result<Document, DocumentError> {
        Document::new(Url::parse(url).unwrap(), limits)
    }

    /// Starts a server of odd documents, and returns its address.
    async fn server() -> String {
        let routes = Router::new()
            .route("/good", get(async || "x".repeat(1000)))
            .route("/long", get(async || "x".repeat(1001)))
            .route("/elsewhere", get(async || Redirect::temporary("/good")))
            .route("/no", get(async || Code::IM_A_TEAPOT))
            .route("/partly", get(async || (Code::PARTIAL_CONTENT, "{}")))
            .route("/never", get(std::future::pending::<()>));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        format!("http://{address}")
    }

    async fn fetched(url: &str) -> Result<usize, DocumentError> {
        let document = at(url, LIMITS)?.fetch().await?;
        Ok(document.len())
    }

    #[tokio::test]
    async fn a_document_is_taken_whole_from_where_it_was_looked_for_or_not_at_all() {
        let base = server().await;
        let host = || "127.0.0.1".to_owned();
        let result = async |path: &str| fetched(&format!("{base}{path}")).await;
        assert_eq!(result("/good").await, Ok(1000));
        assert_eq!(
            result("/long").await,
            Err(DocumentError::Size {
                host: host(),
                limit: 1000
            })
        );
        assert_eq!(
            result("/elsewhere").await,
            Err(DocumentError::Redirected { host: host() })
        );
        for (path, status) in [("/no", 418), ("/partly", 206), ("/nothing", 404)] {
            assert_eq!(
                result(path).await,
                Err(DocumentError::Status {
                    host: host(),
                    status
                }),
                "{path}"
            );
        }
        let gone = fetched("http://127.0.0.1:1/keys").await.unwrap_err();
        assert!(matches!(gone, DocumentError::Connect { .. }), "{gone}");
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up() {
        let limits = DocumentLimits {
            time: Duration::from_millis(50),
            ..LIMITS
        };
        let document = at(&format!("{}/never", server().await), limits).unwrap();
        let error = document.fetch().await.unwrap_err();
        assert!(matches!(error, DocumentError::Time { .. }), "{error}");
    }

    #[test]
    fn plain_http_is_for_addresses_that_are_not_public() {
        for url in [
            "https://project.example.co/keys",
            "https://203.0.113.7/keys",
            "https://10.0.0.7/keys",
            "http://127.0.0.1:9/keys",
            "http://10.0.0.7/keys",
            "http://[::1]/keys",
            // Checked when it is resolved.
            "http://auth/keys",
        ] {
            assert!(at(url, LIMITS).is_ok(), "{url}");
        }
        for url in [
            "http://203.0.113.7/keys",
            "http://169.254.169.254/keys",
            "https://169.254.169.254/keys",
            "https://[fd00:ec2::254]/keys",
            "http://0.0.0.0/keys",
            "https://user:word@project.example.co/keys",
            "ftp://project.example.co/keys",
            "file:///etc/keys",
            "data:,{}",
        ] {
            assert_eq!(at(url, LIMITS).err(), Some(DocumentError::Url), "{url}");
        }
    }
}
