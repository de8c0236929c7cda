//! Owns the requests to the git server: the only place that the token goes to.
//!
//! What always holds: the token is in a header of these requests and nowhere else, no error holds it,
//! and it goes over https only, unless the operator allowed private addresses; redirects are not
//! followed.

use base64::Engine;
use futures::StreamExt;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::address::check_literal;

/// The most a server may answer with to the first question before it is cut off.
const MAX_ADVERTISEMENT: u64 = 1 << 20;

/// The one repository of a session, and what reaching it takes.
pub(super) struct Remote {
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) token: Option<SecretString>,
    pub(super) allow_private: bool,
    pub(super) key: String,
}

/// Asks what the server can do. GitLab answers only under `.git`, and redirects there.
pub(super) async fn advertise(remote: &Remote) -> Result<(String, Vec<u8>), String> {
    let mut url = remote.url.clone();
    let parsed = Url::parse(&url).map_err(|_| "the repository's URL cannot be read".to_owned())?;
    check_literal(&parsed, remote.allow_private)?;
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

/// Sends one request of git's, and gives the server's answer, its body still to be read.
pub(super) async fn upload_pack(
    remote: &Remote,
    url: &str,
    request: Vec<u8>,
) -> Result<Response, String> {
    let answer = remote
        .client
        .post(format!("{url}/git-upload-pack"))
        .headers(headers(remote)?)
        .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
        .header(ACCEPT, "application/x-git-upload-pack-result")
        .body(request);
    accepted(sent(answer).await?, "application/x-git-upload-pack-result")
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
pub(super) fn broken(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason: &dyn std::error::Error = &error;
    while let Some(deeper) = reason.source() {
        reason = deeper;
    }
    format!("the git server cannot be reached: {reason}")
}
