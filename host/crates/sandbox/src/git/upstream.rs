//! Requests to the git server: the only place that the token is sent to.
//!
//! # Invariants
//! - The token is in a header of these requests and nowhere else, not in errors either. It is sent
//!   over https only, unless the operator allowed private addresses.
//! - A redirect is followed on the same server only, and only in reply to git's first request.
//! - A server's own words in a refusal are not passed on.
//! - Waits are bounded, and so are responses.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    USER_AGENT,
};
use reqwest::{Body, Client, Response, StatusCode};
use url::Url;

use super::GitRules;
use super::error::UpstreamError;
use super::http::check_literal;
use lucid_exec::protocol::GitService;
use lucid_net::resolver::was_refused;
use lucid_types::secret::Secret;

/// Maximum size of the response to the first request, in bytes: for a push it lists all branches.
const MAX_ADVERTISEMENT: usize = 16 << 20;
/// Timeout of the complete first response, unless the operator sets a shorter one.
const FIRST_ANSWER: Duration = Duration::from_secs(60);
/// How long a server may be silent within a response.
const SILENCE: Duration = Duration::from_secs(120);
/// The most redirects that a server may send.
const MAX_REDIRECTS: usize = 3;

/// Git's credentials: the token is the password.
#[derive(Debug, Clone)]
pub struct GitCredentials {
    /// The user name, which differs between providers.
    pub user: String,
    /// The token.
    pub token: Secret,
}

impl From<Secret> for GitCredentials {
    /// With the user name that most providers accept, since they look at the token alone.
    fn from(token: Secret) -> Self {
        let user = "x-access-token".to_owned();
        Self { user, token }
    }
}

/// The branch that the server accepted last.
pub(super) type LastPush = Arc<Mutex<Option<String>>>;

/// A session's repository, and how to access it.
pub(super) struct UpstreamRemote {
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) login: Option<GitCredentials>,
    /// The branch that was pushed last.
    pub(super) pushed: LastPush,
    pub(super) rules: GitRules,
    pub(super) key: String,
}

/// The URL at which the server responded, and its capabilities, as git reads them.
pub(super) struct Advertisement {
    pub(super) url: String,
    pub(super) bytes: Vec<u8>,
}

impl UpstreamRemote {
    /// Requests the server's capabilities.
    pub(super) async fn advertise(
        &self,
        url: &str,
        service: GitService,
    ) -> Result<Advertisement, UpstreamError> {
        let asked = async {
            let (url, answer) = self.discover(url, service).await?;
            let kind = format!("application/x-{}-advertisement", service.name());
            let bytes = read_body(self.accepted(answer, service, &kind)?).await?;
            let bytes = strip_service_header(&bytes, service)?;
            Ok(Advertisement { url, bytes })
        };
        let longest = FIRST_ANSWER.min(self.rules.longest);
        tokio::time::timeout(longest, asked)
            .await
            .unwrap_or(Err(UpstreamError::Slow { limit: longest }))
    }

    /// Sends one of git's requests, and returns the server's response with its body still unread.
    pub(super) async fn post(
        &self,
        url: &str,
        service: GitService,
        body: Body,
    ) -> Result<Response, UpstreamError> {
        let name = service.name();
        let answer = self
            .client
            .post(format!("{url}/{name}"))
            .headers(self.headers(service)?)
            .header(CONTENT_TYPE, format!("application/x-{name}-request"))
            .header(ACCEPT, format!("application/x-{name}-result"))
            .body(body)
            .send()
            .await
            .map_err(describe_error)?;
        self.accepted(answer, service, &format!("application/x-{name}-result"))
    }

    /// Sends the first request, and follows redirects on the same server, as it sends them for a
    /// renamed repository, and GitLab for one without `.git`.
    async fn discover(
        &self,
        url: &str,
        service: GitService,
    ) -> Result<(String, Response), UpstreamError> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let question = format!("{url}/info/refs?service={}", service.name());
            let question = Url::parse(&question).map_err(UpstreamError::Url)?;
            check_literal(&question, self.rules.allow_private)?;
            if self.login.is_some() && question.scheme() != "https" && !self.rules.allow_private {
                return Err(UpstreamError::PlainHttp);
            }
            let request = self.client.get(question.clone());
            let answer = request
                .headers(self.headers(service)?)
                .send()
                .await
                .map_err(describe_error)?;
            if !answer.status().is_redirection() {
                return Ok((url, answer));
            }
            let target = answer
                .headers()
                .get(LOCATION)
                .and_then(|value| question.join(value.to_str().ok()?).ok())
                .ok_or(UpstreamError::Redirect)?;
            // Another server would get the token.
            if target.origin() != question.origin() {
                return Err(UpstreamError::OtherServer);
            }
            // Not the redirected request, but a sign-in page.
            let Some(path) = target.path().strip_suffix("/info/refs") else {
                return Err(self.refused(service));
            };
            url = format!("{}{path}", target.origin().ascii_serialization());
        }
        Err(UpstreamError::Redirects)
    }

    /// Notes that the server accepted a push of this branch.
    pub(super) fn record_push(&self, branch: String) {
        let mut pushed = self.pushed.lock();
        *pushed = Some(branch);
    }

    fn headers(&self, service: GitService) -> Result<HeaderMap, UpstreamError> {
        let mut headers = HeaderMap::new();
        if service == GitService::Fetch {
            headers.insert("git-protocol", HeaderValue::from_static("version=2"));
        }
        // Some servers respond to git only.
        headers.insert(USER_AGENT, HeaderValue::from_static("git/2.40 (lucid)"));
        if let Some(GitCredentials { user, token }) = &self.login {
            let pair = format!("{user}:{}", token.expose());
            let value = format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(pair)
            );
            let mut value = HeaderValue::from_str(&value).map_err(UpstreamError::Token)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    fn accepted(
        &self,
        answer: Response,
        service: GitService,
        content_type: &str,
    ) -> Result<Response, UpstreamError> {
        let status = answer.status();
        if status.is_redirection() {
            return Err(UpstreamError::Moved);
        }
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.refused(service)),
            // A private repository is reported as missing.
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                let with_token = self.login.is_some();
                return Err(UpstreamError::Missing { with_token });
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                return Err(UpstreamError::LargePush);
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                let status = status.as_u16();
                return Err(UpstreamError::Busy { status });
            }
            _ => {
                let status = status.as_u16();
                return Err(UpstreamError::Status { status });
            }
        }
        let header = |name| {
            let value = answer.headers().get(name)?;
            Some(value.to_str().unwrap_or("unreadable").to_ascii_lowercase())
        };
        let given = header(CONTENT_TYPE).unwrap_or_default();
        if given.split(';').next().unwrap_or_default().trim() != content_type {
            return Err(UpstreamError::NotGit);
        }
        // No encoding was requested, and a decompression bomb must not be unpacked.
        if header(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(UpstreamError::Compressed);
        }
        Ok(answer)
    }

    fn refused(&self, service: GitService) -> UpstreamError {
        UpstreamError::Refused {
            service,
            with_token: self.login.is_some(),
        }
    }
}

/// The next part of a response; `None` at its end.
pub(super) async fn next_part(
    body: &mut (impl futures::Stream<Item = reqwest::Result<Bytes>> + Unpin),
) -> Result<Option<Bytes>, UpstreamError> {
    match tokio::time::timeout(SILENCE, body.next()).await {
        Ok(part) => part.transpose().map_err(describe_error),
        Err(_) => Err(UpstreamError::Slow { limit: SILENCE }),
    }
}

async fn read_body(answer: Response) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    let mut body = answer.bytes_stream();
    while let Some(part) = next_part(&mut body).await? {
        bytes.extend(part);
        if bytes.len() > MAX_ADVERTISEMENT {
            return Err(UpstreamError::LongAdvertisement);
        }
    }
    Ok(bytes)
}

/// Strips what only HTTP puts before an advertisement, and checks that one follows.
fn strip_service_header(bytes: &[u8], service: GitService) -> Result<Vec<u8>, UpstreamError> {
    let line = format!("# service={}\n", service.name());
    let prefix = format!("{:04x}{line}0000", line.len() + 4);
    let bytes = bytes.strip_prefix(prefix.as_bytes()).unwrap_or(bytes);
    let good = match service {
        GitService::Fetch => bytes.starts_with(b"000eversion 2\n"),
        // A packet line begins with its length in hex; of a page that begins so, no line is that
        // long.
        GitService::Push => bytes
            .get(..4)
            .is_some_and(|length| length.iter().all(u8::is_ascii_hexdigit)),
    };
    match service {
        _ if good => Ok(bytes.to_vec()),
        GitService::Fetch => Err(UpstreamError::OldProtocol),
        GitService::Push => Err(UpstreamError::Advertisement),
    }
}

/// The error for a request that failed. No cause of it contains a header.
fn describe_error(cause: reqwest::Error) -> UpstreamError {
    let host = cause.url().and_then(Url::host_str).map(str::to_owned);
    let cause = cause.without_url();
    if let Some(host) = host.filter(|_| was_refused(&cause)) {
        return UpstreamError::Address { host };
    }
    let mut deepest: &dyn std::error::Error = &cause;
    while let Some(deeper) = deepest.source() {
        deepest = deeper;
    }
    let reason = deepest.to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default();
    UpstreamError::Connection {
        reason: reason.to_owned(),
        cause,
    }
}
