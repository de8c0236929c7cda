//! Client for the two registry requests a plugin needs: an artifact's manifest, and its component.
//!
//! The crate `oci-client` (0.18) was considered: it follows redirects wherever they lead, accepts
//! no client or resolver of ours that would not, reads manifests and tokens of any size, and brings
//! twenty crates along.
//!
//! # Invariants
//! - User and password go to the registry they belong to and to the token service that it names,
//!   over https only. Neither they nor a token follow a redirect to another server.
//! - A registry may redirect to a public server over https, or to one that the manifest's
//!   `[registries]` names. Addresses are checked at connect time.
//! - Every response is bounded in size and in time.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use url::Url;

use super::auth_challenge::{self, AuthChallenge};
use super::error::OciError;
use super::manifest::{self, Layer};
use super::reference::{Reference, RegistryHost};
use crate::client::ClientSpec;
use crate::client::error_message;
use crate::resolver::{AddressPolicy, literal_allowed, was_refused};
use lucid_types::digest::Digest;
use lucid_types::secret::Secret;

/// Timeouts and size limits.
#[derive(Debug, Clone)]
pub(super) struct RegistryLimits {
    /// Timeout for a connection.
    pub(super) connect: Duration,
    /// Timeout for a whole manifest or token, and for the start of a component.
    pub(super) answer: Duration,
    /// Timeout between two pieces of a component.
    pub(super) idle: Duration,
    /// Timeout for a whole component.
    pub(super) component: Duration,
    /// Maximum size of a manifest or a token, in bytes.
    pub(super) document: usize,
}

impl Default for RegistryLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            component: Duration::from_secs(600),
            document: 4 << 20,
        }
    }
}

/// The most redirects that a registry may send.
const HOPS: usize = 5;

/// How a registry is accessed.
#[derive(Debug, Clone, Default)]
pub struct RegistryAccess {
    /// User name and password.
    pub login: Option<(String, Secret)>,
    /// Whether to use plain http; `None` for the default: only for a registry on this machine.
    pub plain_http: Option<bool>,
}

impl RegistryAccess {
    fn plain_http(&self, registry: &RegistryHost) -> bool {
        self.plain_http.unwrap_or_else(|| registry.is_loopback())
    }
}

/// Client for registries.
pub(super) struct RegistryClient {
    http: reqwest::Client,
    /// The registries that the manifest names, and their API URLs.
    named: BTreeMap<RegistryHost, (RegistryAccess, Url)>,
    limits: RegistryLimits,
}

impl RegistryClient {
    /// Creates a client for these registries. They may be in a private network, since the manifest
    /// names them.
    pub(super) fn new(
        named: BTreeMap<RegistryHost, RegistryAccess>,
        limits: RegistryLimits,
    ) -> Result<Self, OciError> {
        let named: BTreeMap<RegistryHost, (RegistryAccess, Url)> = named
            .into_iter()
            .filter_map(|(registry, access)| {
                let base = registry.base(access.plain_http(&registry))?;
                Some((registry, (access, base)))
            })
            .collect();
        let hosts = named.values().filter_map(|(_, base)| base.host_str());
        let addresses = AddressPolicy::Public {
            private_hosts: hosts.map(str::to_owned).collect(),
        };
        let http = ClientSpec::new(addresses, limits.connect)
            .read_timeout(limits.idle)
            .build()
            .map_err(|cause| OciError::Client(error_message(cause)))?;
        Ok(Self {
            http,
            named,
            limits,
        })
    }

    /// Starts pulling one component. Its registry must be a named one.
    pub(super) fn pull<'a>(&'a self, reference: &'a Reference) -> Result<Pull<'a>, OciError> {
        let registry = reference.registry();
        let known = self.named.get(registry);
        let (access, base) =
            known.ok_or_else(|| OciError::Wrong(format!("{registry} is no registry's address")))?;
        Ok(Pull {
            client: self,
            reference,
            login: access.login.as_ref(),
            host: registry.to_string(),
            base: base.clone(),
            authorization: None,
        })
    }

    fn bases(&self) -> impl Iterator<Item = &Url> {
        self.named.values().map(|(_, base)| base)
    }

    /// Whether a registry may direct the client to this URL.
    pub(super) fn may_be_sent_to(&self, url: &Url) -> bool {
        if !url.username().is_empty() || url.password().is_some() {
            return false;
        }
        if self.bases().any(|base| base.origin() == url.origin()) {
            return true;
        }
        // Another port of a named host may be anything, and its name leads to private addresses
        // too.
        let near = self.bases().any(|base| base.host() == url.host());
        url.scheme() == "https" && !near && literal_allowed(url, false)
    }
}

/// A pull of one component.
pub(super) struct Pull<'a> {
    client: &'a RegistryClient,
    reference: &'a Reference,
    login: Option<&'a (String, Secret)>,
    /// The host, as errors name it.
    host: String,
    base: Url,
    /// The credentials that the registry requires, once it has said so.
    authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Pull<'_> {
    #[cfg(test)]
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// Fetches the manifest. Returns its bytes and their digest, which equals the requested one if
    /// there is one.
    pub(super) async fn manifest(&mut self) -> Result<(Vec<u8>, Digest), OciError> {
        let path = format!(
            "{}/manifests/{}",
            self.reference.repository(),
            self.reference.tag_or_digest()
        );
        let limit = self.client.limits.answer;
        let slow = self.timeout_error(limit);
        let asked = async {
            let answer = self.get(&path, manifest::ACCEPT).await?;
            let stated_digest = answer.headers().get("docker-content-digest").cloned();
            let bytes = self.document(answer).await?;
            Ok((bytes, stated_digest))
        };
        let (bytes, stated_digest) = timeout(limit, asked).await.unwrap_or(Err(slow))?;
        let found = Digest::of(&bytes);
        let stated_digest = stated_digest
            .as_ref()
            .and_then(|stated_digest| stated_digest.to_str().ok());
        let stated_digest = stated_digest.and_then(super::reference::digest);
        let meant = self.reference.digest().or(stated_digest);
        match meant {
            Some(meant) if meant != found => Err(OciError::Wrong(format!(
                "{} gave another manifest than it must be: sha256:{found} in place of sha256:{meant}",
                self.host
            ))),
            _ => Ok((bytes, found)),
        }
    }

    /// Writes the component into a file. On success the file has the layer's size and digest.
    pub(super) async fn component(
        &mut self,
        layer: &Layer,
        file: std::fs::File,
    ) -> Result<(), OciError> {
        let limit = self.client.limits.component;
        let slow = self.timeout_error(limit);
        let bring = self.download(layer, tokio::fs::File::from_std(file));
        timeout(limit, bring).await.unwrap_or(Err(slow))
    }

    async fn download(&mut self, layer: &Layer, mut file: tokio::fs::File) -> Result<(), OciError> {
        let path = format!(
            "{}/blobs/sha256:{}",
            self.reference.repository(),
            layer.digest
        );
        let limit = self.client.limits.answer;
        let slow = self.timeout_error(limit);
        let answer = timeout(limit, self.get(&path, "*/*"));
        let answer = answer.await.unwrap_or(Err(slow))?;
        let mut pieces = answer.bytes_stream();
        let (mut size, mut digest) = (0_u64, Sha256::new());
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|cause| self.transport_error(cause))?;
            size += piece.len() as u64;
            if size > layer.size {
                return Err(OciError::Wrong(format!(
                    "{} gave a longer component than the {} bytes that its manifest says",
                    self.host, layer.size
                )));
            }
            digest.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        if size < layer.size {
            return Err(OciError::Wrong(format!(
                "{} gave {size} of the component's {} bytes",
                self.host, layer.size
            )));
        }
        let found = Digest::from(<[u8; 32]>::from(digest.finalize()));
        if found != layer.digest {
            return Err(OciError::Wrong(format!(
                "{} gave another component than its manifest says: sha256:{found} in place of sha256:{}",
                self.host, layer.digest
            )));
        }
        Ok(())
    }

    /// Fetches a path below the registry's API, authenticating where the registry requires it.
    async fn get(&mut self, path: &str, accept: &'static str) -> Result<Response, OciError> {
        let mut asked = self.authorization.is_some();
        loop {
            let (answer, own) = self.follow(path, accept).await?;
            let status = answer.status();
            match status {
                StatusCode::OK => return Ok(answer),
                StatusCode::UNAUTHORIZED if own && !asked => {
                    asked = true;
                    self.authorization = Some(self.authorize(&answer).await?);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if own => {
                    return Err(self.refused(status));
                }
                StatusCode::NOT_FOUND if own => {
                    let host = self.host.clone();
                    return Err(OciError::Missing { host });
                }
                _ => {
                    let host = answer.url().host_str().unwrap_or_default().to_owned();
                    let status = status.as_u16();
                    return Err(OciError::Answered { host, status });
                }
            }
        }
    }

    /// Follows redirects. Returns the response, and whether it is the registry's own.
    async fn follow(&self, path: &str, accept: &'static str) -> Result<(Response, bool), OciError> {
        let wrong = |_| OciError::Wrong("it cannot be asked for".to_owned());
        let mut url = self.base.join(path).map_err(wrong)?;
        for _ in 0..=HOPS {
            let own = url.origin() == self.base.origin();
            let mut request = self.client.http.get(url.clone()).header(ACCEPT, accept);
            if let (true, Some(value)) = (own, &self.authorization) {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let answer = self.send(&url, request).await?;
            if !answer.status().is_redirection() {
                return Ok((answer, own));
            }
            let next = answer.headers().get(LOCATION);
            let next = next.and_then(|next| url.join(next.to_str().ok()?).ok());
            url = self.checked(next)?;
        }
        let host = self.host.clone();
        Err(OciError::SendsAround { host })
    }

    /// Checks a URL that the registry named.
    fn checked(&self, url: Option<Url>) -> Result<Url, OciError> {
        let to = url.as_ref().filter(|url| url.has_host()).map_or_else(
            || "nowhere".to_owned(),
            |url| url.origin().ascii_serialization(),
        );
        let fits = url.filter(|url| self.client.may_be_sent_to(url));
        fits.ok_or_else(|| OciError::SendsAway {
            host: self.host.clone(),
            to,
        })
    }

    async fn send(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, OciError> {
        let host = url.host_str().unwrap_or_default().to_owned();
        // A literal address is not resolved, so the resolver does not check it.
        let named = self.client.bases().any(|base| base.host() == url.host());
        if !literal_allowed(url, named) {
            return Err(OciError::Address { host });
        }
        request.send().await.map_err(|cause| {
            if was_refused(&cause) {
                return OciError::Address { host };
            }
            let detail = error_message(cause);
            OciError::Unreachable { host, detail }
        })
    }

    /// The credentials that a registry requires, according to its refusal.
    async fn authorize(&self, refusal: &Response) -> Result<HeaderValue, OciError> {
        let challenges = refusal.headers().get_all(WWW_AUTHENTICATE).iter();
        let mut challenges =
            challenges.filter_map(|value| auth_challenge::read(value.to_str().ok()?));
        match (challenges.next(), self.login) {
            (Some(AuthChallenge::Basic), Some(login)) => self.basic(login),
            (Some(AuthChallenge::Bearer { realm, service }), _) => {
                self.token(&realm, service).await
            }
            _ => Err(self.refused(refusal.status())),
        }
    }

    fn basic(&self, (user, password): &(String, Secret)) -> Result<HeaderValue, OciError> {
        use base64::Engine as _;
        let unfit = || OciError::Credentials {
            host: self.host.clone(),
        };
        if user.contains(':') || user.contains(char::is_control) {
            return Err(unfit());
        }
        let pair = format!("{user}:{}", password.expose());
        let pair = base64::engine::general_purpose::STANDARD.encode(pair);
        let mut value = HeaderValue::from_str(&format!("Basic {pair}")).map_err(|_| unfit())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Requests a token for reading this repository and nothing else, whatever the registry asks
    /// for.
    async fn token(&self, realm: &str, service: Option<String>) -> Result<HeaderValue, OciError> {
        let mut url = self.checked(Url::parse(realm).ok())?;
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let scope = format!("repository:{}:pull", self.reference.repository());
        url.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.client.http.get(url.clone());
        if let Some(login) = self.login {
            request = request.header(AUTHORIZATION, self.basic(login)?);
        }
        let answer = self.send(&url, request).await?;
        let status = answer.status();
        match status {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(self.refused(status));
            }
            _ => {
                let host = url.host_str().unwrap_or_default().to_owned();
                let status = status.as_u16();
                return Err(OciError::Answered { host, status });
            }
        }
        let bytes = self.document(answer).await?;
        let token = serde_json::from_slice::<Token>(&bytes).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let value = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let mut value = value
            .ok_or_else(|| OciError::Wrong(format!("{} gives tokens that are none", self.host)))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Reads a small response completely.
    async fn document(&self, mut answer: Response) -> Result<Vec<u8>, OciError> {
        let limit = self.client.limits.document;
        let mut bytes = Vec::new();
        while let Some(piece) = answer
            .chunk()
            .await
            .map_err(|cause| self.transport_error(cause))?
        {
            if bytes.len() + piece.len() > limit {
                return Err(OciError::Wrong(format!(
                    "{} answered with more than the {limit} bytes that are read of a manifest",
                    self.host
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    fn refused(&self, status: StatusCode) -> OciError {
        OciError::Refused {
            host: self.host.clone(),
            status: status.as_u16(),
            known: self.login.is_some(),
        }
    }

    fn transport_error(&self, cause: reqwest::Error) -> OciError {
        OciError::Broken {
            host: self.host.clone(),
            detail: error_message(cause),
        }
    }

    fn timeout_error(&self, limit: Duration) -> OciError {
        OciError::Slow {
            host: self.host.clone(),
            limit,
        }
    }
}
