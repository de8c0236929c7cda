//! The client of a running server's admin routes, and the credentials for it.
//!
//! # Invariants
//!
//! - A token signed on this machine is sent to this machine only. A token for another server comes
//!   from the environment, since other users can read a command line.

use std::time::Duration;

use reqwest::{Client, Method, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ServerArgs;
use crate::api::plugins::Activate;
use crate::auth::{Authenticator, IssueError};
use crate::cli::plugin::error::{ServerError, TOKEN};
use crate::config::Config;
use lucid_net::client::ClientSpec;
use lucid_net::resolver::AddressPolicy;
use lucid_types::user::UserId;

/// The user of a token that is made here.
const OPERATOR: &str = "command-line";
/// The lifetime of such a token.
const TOKEN_TIME: Duration = Duration::from_secs(120);
/// Timeout for a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// The request timeout: a component may take a while to arrive and to compile.
const LONGEST: Duration = Duration::from_secs(600);

/// The server may be anywhere: whoever runs the command named it.
fn client_spec() -> ClientSpec {
    ClientSpec::new(AddressPolicy::Any, CONNECT)
        .repeat_refused()
        .timeout(LONGEST)
}

/// A running server, and the credentials for it.
pub(in crate::cli::plugin) struct AdminClient {
    base: Url,
    token: String,
    client: Client,
}

impl AdminClient {
    pub(in crate::cli::plugin) fn find(args: &ServerArgs) -> Result<Self, ServerError> {
        let (base, token) = match &args.server {
            Some(text) => (parse_server_url(text)?, given_token()),
            None => local_server()?,
        };
        let token = token.ok_or(ServerError::NoToken)?;
        let mut client = client_spec();
        if is_loopback(&base) {
            client = client.without_proxy();
        }
        let client = client.build().map_err(ServerError::Client)?;
        Ok(Self {
            base,
            token,
            client,
        })
    }

    fn url(&self, path: &[&str]) -> Result<Url, ServerError> {
        let mut url = self.base.clone();
        let segments = url.path_segments_mut();
        segments
            .map_err(|()| ServerError::NoPath)?
            .pop_if_empty()
            .extend(["api", "v1", "plugins"])
            .extend(path);
        Ok(url)
    }

    pub(in crate::cli::plugin) async fn ask(
        &self,
        method: Method,
        path: &[&str],
    ) -> Result<Value, ServerError> {
        let request = self.client.request(method, self.url(path)?);
        self.answer(request).await
    }

    pub(in crate::cli::plugin) async fn post(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Value, ServerError> {
        let request = self.client.post(self.url(path)?);
        self.answer(request.json(body)).await
    }

    pub(super) async fn upload(&self, wasm: Vec<u8>) -> Result<Value, ServerError> {
        let request = self.client.post(self.url(&[])?);
        let request = request.header("content-type", "application/wasm");
        self.answer(request.body(wasm)).await
    }

    pub(super) async fn activate(
        &self,
        kind: &str,
        name: &str,
        wanted: &Activate,
    ) -> Result<Value, ServerError> {
        self.post(&[kind, name, "activate"], wanted).await
    }

    /// The body of a successful response, as the server sent it: with `--json` it is printed whole.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, ServerError> {
        let sent = request.bearer_auth(&self.token).send().await;
        let base = || self.base.clone();
        let response: Response = sent.map_err(|source| ServerError::NoAnswer {
            base: base(),
            source,
        })?;
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|source| ServerError::BrokeOff {
            base: base(),
            source,
        })?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() && answer.is_object() {
            return Ok(answer);
        }
        match answer["detail"].as_str() {
            Some(detail) => Err(ServerError::Refused(detail.to_owned())),
            None => Err(ServerError::NoLucid {
                base: base(),
                status,
            }),
        }
    }
}

/// A response as this version of the program knows it.
pub(in crate::cli::plugin) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, ServerError> {
    T::deserialize(answer).map_err(ServerError::OtherVersion)
}

/// The server of these settings. Whoever can read them can sign tokens.
fn local_server() -> Result<(Url, Option<String>), ServerError> {
    let config = Config::load()?;
    if config.port == 0 {
        return Err(ServerError::RandomPort);
    }
    let mut address = config.address();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let base = Url::parse(&format!("http://{address}"));
    let base = base.map_err(|source| ServerError::Address { address, source })?;
    if let Some(token) = given_token() {
        return Ok((base, Some(token)));
    }
    let keys = config.keys()?;
    let auth = Authenticator::new(keys.jwt.as_ref(), None)
        .expecting(&config.jwt_audiences, config.jwt_issuer.as_deref());
    let issued = auth.issue_admin(&UserId::from(OPERATOR), TOKEN_TIME);
    let token = issued.map_err(|error| match error {
        // INTERNAL_API_KEY would work, but is not sent: a process that listens there while the
        // server is down would keep it.
        IssueError::NoSecret => ServerError::NoSecret(error),
        error => ServerError::Issue(error),
    })?;
    Ok((base, Some(token)))
}

fn given_token() -> Option<String> {
    let token = std::env::var(TOKEN).ok();
    token
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

fn parse_server_url(text: &str) -> Result<Url, ServerError> {
    let url = Url::parse(text).ok();
    let fits = |url: &Url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && plain && url.query().is_none()
    };
    url.filter(fits).ok_or(ServerError::Url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_to_another_route() {
        let server = AdminClient {
            base: Url::parse("http://127.0.0.1:8000/behind/").unwrap(),
            token: String::new(),
            client: client_spec().build().unwrap(),
        };
        let url = |name: &str| {
            server
                .url(&["policy", name, "rollback"])
                .unwrap()
                .to_string()
        };
        assert_eq!(
            url("coder"),
            "http://127.0.0.1:8000/behind/api/v1/plugins/policy/coder/rollback"
        );
        for name in ["../../sessions", "a/b", "a?b", "a#b", "%2e%2e"] {
            let path = url(name);
            assert!(
                path.starts_with("http://127.0.0.1:8000/behind/api/v1/plugins/policy/")
                    && path.ends_with("/rollback"),
                "{name}: {path}"
            );
        }
    }

    #[test]
    fn a_server_is_a_plain_address() {
        for good in ["http://127.0.0.1:8000", "https://lucid.example.org/base"] {
            assert!(parse_server_url(good).is_ok(), "{good}");
        }
        for bad in [
            "lucid.example.org",
            "ftp://x",
            "https://u:p@x",
            "https://x?y=1",
            "",
        ] {
            assert!(parse_server_url(bad).is_err(), "{bad}");
        }
        assert!(is_loopback(&Url::parse("http://[::1]:1").unwrap()));
        assert!(!is_loopback(
            &Url::parse("http://localhost.example.org").unwrap()
        ));
    }
}
