//! Git's way out of a sandbox: one socket for each session, through which the helper in the box
//! fetches from that session's repository and from no other.
//!
//! What always holds: the token stays here, never in the box, in a log line or in an error; only
//! fetching is possible; redirects are not followed; addresses of the host's own networks are
//! refused unless the operator allowed them, and those of cloud metadata services always.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use futures::StreamExt;
use lucid_exec::protocol::{Frame, GitOpen, Kind, VERSION};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use url::{Host, Url};

use crate::sandbox::{ExecRequest, Sandbox, SandboxError, read_frame};
use crate::workspace::box_user;

#[cfg(test)]
#[path = "git_gateway_tests.rs"]
mod tests;

/// The most a helper may send for one request.
const MAX_REQUEST: usize = 16 << 20;
/// The most a server may answer with before it is cut off.
const MAX_ADVERTISEMENT: u64 = 1 << 20;
const MAX_ANSWER: u64 = 4 << 30;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a helper may be.
const IDLE: Duration = Duration::from_secs(600);
/// How many helpers a session may have at a time.
const MAX_HELPERS: usize = 4;
/// How long a clone may take.
const CLONE: Duration = Duration::from_secs(600);

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The repository's URL will not do.
    #[error("{0}")]
    Url(String),
    /// The socket could not be made.
    #[error("The git gateway's socket {path} cannot be made: {cause}")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The HTTP client could not be made.
    #[error("The git gateway's HTTP client cannot be made: {0}")]
    Client(#[source] reqwest::Error),
}

/// Checks a repository's URL and gives it back as git is to see it: http or https, without user,
/// password, query or fragment.
pub fn repository_url(text: &str) -> Result<String, GatewayError> {
    let bad = |why: &str| Err(GatewayError::Url(format!("The repository URL {why}.")));
    let text = text.trim();
    let Ok(mut url) = Url::parse(text) else {
        return bad("cannot be read: give one like https://github.com/owner/name");
    };
    if !matches!(url.scheme(), "http" | "https") {
        return bad("must begin with https:// or http://");
    }
    if url.host().is_none() || url.path().trim_matches('/').is_empty() {
        return bad("names no repository: give one like https://github.com/owner/name");
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) || text.len() > 2000 {
        return bad("holds characters that do not belong there, or is too long");
    }
    // Neither can fail for a URL that has a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Whether a gateway may connect there.
#[must_use]
pub fn address_allowed(address: IpAddr, allow_private: bool) -> bool {
    let v4 = match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) => embedded_v4(v6),
    };
    let (never, private) = match (v4, address) {
        (Some(v4), _) => {
            let [a, b, c, _] = v4.octets();
            let never = v4.is_link_local()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
                || v4 == Ipv4Addr::new(168, 63, 129, 16);
            let private = v4.is_private()
                || v4.is_loopback()
                || matches!(
                    (a, b, c),
                    (0 | 240.., ..) | (100, 64..=127, _) | (198, 18 | 19, _) | (192, 0, 0)
                );
            (never, private)
        }
        (None, IpAddr::V6(v6)) => {
            let metadata =
                v6.segments()[..2] == [0xfd00, 0x0ec2] || v6.segments()[..2] == [0xfd20, 0x00ce];
            let never =
                v6.is_multicast() || v6.is_unspecified() || v6.is_unicast_link_local() || metadata;
            (never, v6.is_loopback() || v6.is_unique_local())
        }
        (None, IpAddr::V4(_)) => (true, true),
    };
    !never && (allow_private || !private)
}

/// The IPv4 address that an IPv6 address stands for: mapped, NAT64, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let from = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff) | (0x64, 0xff9b, 0, 0, 0, 0) => from(g, h),
        (0x2002, ..) => from(b, c),
        _ => None,
    }
}

struct Resolver {
    allow_private: bool,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|address| address_allowed(address.ip(), allow_private))
                .collect();
            if allowed.is_empty() {
                return Err(refused_address(name.as_str()).into());
            }
            // These very addresses are connected to, so a name cannot change its mind in between.
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

fn refused_address(host: &str) -> String {
    format!(
        "{host} is at an address of a private network, which this host does not let sessions reach"
    )
}

/// The HTTP client that gateways use: no redirects, no proxy, checked addresses.
pub fn client(allow_private: bool) -> Result<Client, GatewayError> {
    // Fails where one is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .dns_resolver(Resolver { allow_private })
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(SILENCE)
        .build()
        .map_err(GatewayError::Client)
}

struct Remote {
    client: Client,
    url: String,
    token: Option<SecretString>,
    allow_private: bool,
    key: String,
}

/// A session's open gateway. Dropping it closes it.
pub struct Gateway {
    task: tokio::task::JoinHandle<()>,
    socket: PathBuf,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Gateway")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// Listens in the session's runtime folder ([`Sandbox::runtime_dir`]) for helpers that want the
    /// repository. `client` is one of [`client`], made with the same `allow_private`.
    pub fn start(
        folder: &Path,
        repository: &str,
        token: Option<SecretString>,
        allow_private: bool,
        client: Client,
    ) -> Result<Self, GatewayError> {
        let url = repository_url(repository)?;
        let socket = folder.join("git.sock");
        let failed = |cause| GatewayError::Socket {
            path: socket.display().to_string(),
            cause,
        };
        let key = uuid::Uuid::new_v4().simple().to_string();
        let key_file = folder.join("git.key");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        std::fs::write(&key_file, &key).map_err(failed)?;
        for path in [&socket, &key_file] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(failed)?;
            if let Some(user) = box_user() {
                std::os::unix::fs::chown(path, Some(user), Some(user)).map_err(failed)?;
            }
        }
        let remote = Arc::new(Remote {
            client,
            url,
            token,
            allow_private,
            key,
        });
        Ok(Self {
            task: tokio::spawn(listen(listener, remote)),
            socket,
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("key"));
    }
}

async fn listen(listener: UnixListener, remote: Arc<Remote>) {
    let places = Arc::new(Semaphore::new(MAX_HELPERS));
    // With the gateway its connections go too.
    let mut helpers = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::warn!(%error, "a git helper could not be let in");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while helpers.try_join_next().is_some() {}
        let remote = Arc::clone(&remote);
        helpers.spawn(async move {
            let _place = place;
            let mut connection = connection;
            if let Err(sentence) = serve(&mut connection, &remote).await {
                let frame = Frame::new(Kind::GitError, 0, sentence);
                let _ = connection.write_all(&frame.encode()).await;
            }
        });
    }
}

/// Serves one helper. An error is a sentence for git's user.
async fn serve(connection: &mut UnixStream, remote: &Remote) -> Result<(), String> {
    let open = match tokio::time::timeout(Duration::from_secs(10), read_frame(connection)).await {
        Ok(Ok(Frame {
            kind: Kind::GitOpen,
            payload,
            ..
        })) => serde_json::from_slice::<GitOpen>(&payload).ok(),
        _ => None,
    };
    let open = open.ok_or("the git helper did not say what it wants")?;
    if open.version != VERSION {
        return Err("the git helper speaks another version than the host".to_owned());
    }
    if !bool::from(open.key.as_bytes().ct_eq(remote.key.as_bytes())) {
        return Err("the git helper does not belong to this session".to_owned());
    }
    if plain(&open.url) != plain(&remote.url) {
        return Err(format!(
            "this session may reach {} and no other repository",
            remote.url
        ));
    }
    let (url, advertisement) = advertise(remote).await?;
    for frame in Frame::split(Kind::GitData, 0, &advertisement) {
        send(connection, &frame).await?;
    }
    send(connection, &Frame::new(Kind::GitEnd, 0, Vec::new())).await?;
    while let Some(request) = read_request(connection).await? {
        let answer = remote
            .client
            .post(format!("{url}/git-upload-pack"))
            .headers(headers(remote)?)
            .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
            .header(ACCEPT, "application/x-git-upload-pack-result")
            .body(request);
        let answer = accepted(sent(answer).await?, "application/x-git-upload-pack-result")?;
        let mut body = answer.bytes_stream();
        let mut received = 0;
        while let Some(part) = body.next().await {
            let part = part.map_err(broken)?;
            received += part.len() as u64;
            if received > MAX_ANSWER {
                return Err(format!(
                    "the repository is larger than the {MAX_ANSWER} bytes a session may fetch"
                ));
            }
            for frame in Frame::split(Kind::GitData, 0, &part) {
                send(connection, &frame).await?;
            }
        }
        send(connection, &Frame::new(Kind::GitEnd, 0, Vec::new())).await?;
    }
    Ok(())
}

fn plain(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix(".git").unwrap_or(url)
}

async fn send(connection: &mut UnixStream, frame: &Frame) -> Result<(), String> {
    let written = tokio::time::timeout(IDLE, connection.write_all(&frame.encode())).await;
    written
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| "the git helper went away".to_owned())
}

/// One request of a helper; none when it is done.
async fn read_request(connection: &mut UnixStream) -> Result<Option<Vec<u8>>, String> {
    let mut request = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, read_frame(connection)).await {
            Ok(Ok(Frame {
                kind: Kind::GitBody,
                payload,
                ..
            })) if request.len() + payload.len() <= MAX_REQUEST => {
                request.extend(payload);
            }
            Ok(Ok(Frame {
                kind: Kind::GitPost,
                ..
            })) => return Ok(Some(request)),
            Ok(Err(_)) if request.is_empty() => return Ok(None),
            Ok(_) => {
                return Err("the git helper's request is too large or cannot be read".to_owned());
            }
            Err(_) => return Err("the git helper was silent for too long".to_owned()),
        }
    }
}

/// Asks what the server can do. GitLab answers only under `.git`, and redirects there.
async fn advertise(remote: &Remote) -> Result<(String, Vec<u8>), String> {
    let mut url = remote.url.clone();
    let parsed = Url::parse(&url).map_err(|_| "the repository's URL cannot be read".to_owned())?;
    let literal = match parsed.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        _ => None,
    };
    // A literal address is never resolved, so the resolver does not see it.
    if literal.is_some_and(|address| !address_allowed(address, remote.allow_private)) {
        return Err(refused_address(parsed.host_str().unwrap_or_default()));
    }
    if remote.token.is_some() && parsed.scheme() != "https" && !remote.allow_private {
        return Err(
            "a token is sent only over https: use the https URL of the repository".to_owned(),
        );
    }
    let answer = loop {
        let request = remote
            .client
            .get(format!("{url}/info/refs?service=git-upload-pack"))
            .headers(headers(remote)?);
        let answer = sent(request).await?;
        if !answer.status().is_redirection() || url.ends_with(".git") {
            break answer;
        }
        url.push_str(".git");
    };
    let answer = accepted(answer, "application/x-git-upload-pack-advertisement")?;
    let mut bytes = Vec::new();
    let mut body = answer.bytes_stream();
    while let Some(part) = body.next().await {
        bytes.extend(part.map_err(broken)?);
        if bytes.len() as u64 > MAX_ADVERTISEMENT {
            return Err(
                "the git server's first answer is too long: it does not speak protocol version 2"
                    .to_owned(),
            );
        }
    }
    let service = b"001e# service=git-upload-pack\n0000";
    let bytes = bytes
        .strip_prefix(service)
        .map_or_else(|| bytes.clone(), <[u8]>::to_vec);
    if !bytes.starts_with(b"000eversion 2\n") {
        return Err("the git server does not speak protocol version 2".to_owned());
    }
    Ok((url, bytes))
}

fn headers(remote: &Remote) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert("git-protocol", HeaderValue::from_static("version=2"));
    // Some servers answer git only.
    headers.insert(USER_AGENT, HeaderValue::from_static("git/2.40 (lucid)"));
    if let Some(token) = &remote.token {
        let pair = format!("x-access-token:{}", token.expose_secret());
        let value = format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        );
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| "the git token cannot be sent".to_owned())?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

async fn sent(request: reqwest::RequestBuilder) -> Result<Response, String> {
    request.send().await.map_err(broken)
}

fn accepted(answer: Response, content_type: &str) -> Result<Response, String> {
    let status = answer.status();
    if status.is_redirection() {
        return Err("the repository has moved: give its new URL".to_owned());
    }
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err("the git server refused access: connect an account, or give a token, that may read the repository".to_owned());
        }
        StatusCode::NOT_FOUND => {
            return Err(
                "the git server knows no such repository, or the token may not see it".to_owned(),
            );
        }
        _ => return Err(format!("the git server answered {status}")),
    }
    let given = answer
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if given.split(';').next().unwrap_or_default().trim() != content_type {
        return Err("the server at that URL is not a git server".to_owned());
    }
    Ok(answer)
}

/// The innermost reason says the most, and none of them holds a header.
fn broken(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason: &dyn std::error::Error = &error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    format!("the git server cannot be reached: {reason}")
}

/// Why a repository could not be put into a workspace.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The URL will not do.
    #[error(transparent)]
    Url(#[from] GatewayError),
    /// The branch's name will not do.
    #[error("{0:?} is not the name of a branch.")]
    Branch(String),
    /// Git said no.
    #[error("The repository could not be cloned: {0}")]
    Failed(String),
    /// The sandbox is gone, or cannot run git.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Clones the session's repository into its empty workspace, through the gateway.
pub async fn clone_into(
    sandbox: &Sandbox,
    repository: &str,
    branch: Option<&str>,
    user_name: Option<&str>,
    user_email: Option<&str>,
) -> Result<(), CloneError> {
    let url = repository_url(repository)?;
    let mut argv = vec!["git".to_owned()];
    for setting in [
        "protocol.file.allow=never",
        "protocol.ext.allow=never",
        "core.hooksPath=/dev/null",
        "advice.detachedHead=false",
    ] {
        argv.extend(["-c".to_owned(), setting.to_owned()]);
    }
    argv.extend(["clone", "--quiet", "--no-recurse-submodules"].map(str::to_owned));
    if let Some(branch) = branch {
        let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
        if branch.is_empty()
            || branch.len() > 250
            || branch.starts_with('-')
            || branch.contains("..")
            || branch.contains(odd)
        {
            return Err(CloneError::Branch(branch.chars().take(100).collect()));
        }
        argv.extend(["--branch".to_owned(), branch.to_owned()]);
    }
    argv.extend(["--".to_owned(), url, ".".to_owned()]);
    git(sandbox, argv).await?;
    for (key, value) in [("user.name", user_name), ("user.email", user_email)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            git(
                sandbox,
                ["git", "config", "--replace-all", key, value]
                    .map(str::to_owned)
                    .to_vec(),
            )
            .await?;
        }
    }
    Ok(())
}

async fn git(sandbox: &Sandbox, argv: Vec<String>) -> Result<(), CloneError> {
    let result = sandbox
        .exec(
            ExecRequest::argv(argv).timeout(CLONE).keep(2000, 2000),
            |_| {},
        )
        .await?;
    if result.timed_out {
        return Err(CloneError::Failed(format!(
            "it took longer than {} seconds.",
            CLONE.as_secs()
        )));
    }
    if result.exit_code != 0 {
        return Err(CloneError::Failed(result.output.trim().to_owned()));
    }
    Ok(())
}
