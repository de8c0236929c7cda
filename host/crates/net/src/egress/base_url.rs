//! Normalises base URLs as people paste them: a full request URL, one without a scheme, one in
//! quotes.
//!
//! # Invariants
//! - The result is http or https, has a host, and carries no credentials, no fragment and no key in
//!   its query.
//! - The server is the one that was pasted.
//! - Errors never repeat the pasted text, since it may contain a key.

use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// An error in parsing a base URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BaseUrlError {
    /// The text is not a URL.
    #[error("it is no http or https URL")]
    NoUrl,
    /// It contains a user name or password.
    #[error("it holds a credential (a user name or password), which belongs in the key")]
    Login,
    /// Its query contains a key.
    #[error("its query holds a key, which belongs in the variable of the key")]
    Key,
    /// It has a fragment (`#…`).
    #[error("it has a part behind `#`")]
    Fragment,
    /// It has a query (`?…`) where none is sent.
    #[error("it has a part behind `?`, which would not be sent: leave it out")]
    Query,
}

/// Suffixes of request URLs, which adapters add themselves.
const ENDS: &[&str] = &["/chat/completions"];
/// The same, for suffixes that follow a version.
const ENDS_OF_VERSIONS: &[&str] = &[
    "/completions",
    "/embeddings",
    "/messages",
    "/models",
    "/responses",
];
/// Azure's domains, where each customer has a resource of OpenAI's models.
const AZURE: &[&str] = &[".openai.azure.com", ".cognitiveservices.azure.com"];

/// Parses the base URL of a model provider.
pub fn parse_base_url(text: &str) -> Result<Url, BaseUrlError> {
    let mut url = server(text)?;
    let path = strip_endpoint_path(&url);
    url.set_path(&path);
    Ok(url)
}

/// Parses the address of a server that is not a model provider's.
pub fn without_query(text: &str) -> Result<Url, BaseUrlError> {
    let url = server(text)?;
    match url.query() {
        None => Ok(url),
        Some(_) => Err(BaseUrlError::Query),
    }
}

/// Parses the address of any server.
pub fn server(text: &str) -> Result<Url, BaseUrlError> {
    let text = unquote(text);
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(BaseUrlError::NoUrl);
    }
    let mut url = parsed(text).ok_or(BaseUrlError::NoUrl)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BaseUrlError::Login);
    }
    if url.fragment().is_some_and(|fragment| !fragment.is_empty()) {
        return Err(BaseUrlError::Fragment);
    }
    if url.query_pairs().any(|(name, _)| holds_key(&name)) {
        return Err(BaseUrlError::Key);
    }
    // The wildcard addresses that servers listen on mean this machine.
    if matches!(url.host(), Some(Host::Ipv4(address)) if address.is_unspecified()) {
        let _ = url.set_ip_host(Ipv4Addr::LOCALHOST.into());
    } else if matches!(url.host(), Some(Host::Ipv6(address)) if address.is_unspecified()) {
        let _ = url.set_ip_host(Ipv6Addr::LOCALHOST.into());
    }
    url.set_fragment(None);
    if url.query() == Some("") {
        url.set_query(None);
    }
    Ok(url)
}

/// Strips the quotes that a text was copied with.
fn unquote(text: &str) -> &str {
    let mut text = text.trim();
    for (open, close) in [('"', '"'), ('\'', '\''), ('`', '`'), ('<', '>')] {
        let inner = text
            .strip_prefix(open)
            .and_then(|text| text.strip_suffix(close));
        text = inner.map_or(text, str::trim);
    }
    text
}

fn parsed(text: &str) -> Option<Url> {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("http:") || lower.starts_with("https:") {
        return Url::parse(text).ok().filter(Url::has_host);
    }
    // Another scheme, or one without a host.
    if text.contains("://") {
        return None;
    }
    let rest = text.trim_start_matches('/');
    let url = Url::parse(&format!("https://{rest}")).ok()?;
    let near = is_near(&url);
    let named = url.domain().is_some_and(|name| name.contains('.'));
    if !(near || named || url.port().is_some() || url.domain().is_none()) {
        return None;
    }
    let scheme = if near || !named { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{rest}")).ok()
}

/// Whether a URL leads to this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => is_loopback_v6(address),
        None => false,
    }
}

fn is_loopback_v6(address: Ipv6Addr) -> bool {
    let mapped = address.to_ipv4_mapped();
    address.is_loopback() || mapped.is_some_and(|address| address.is_loopback())
}

/// Whether a server is one that cannot have a public certificate.
fn is_near(url: &Url) -> bool {
    let private = |address: Ipv4Addr| address.is_private() || address.is_unspecified();
    is_loopback(url)
        || match url.host() {
            Some(Host::Ipv4(address)) => private(address),
            Some(Host::Domain(name)) => name == "host.docker.internal",
            Some(Host::Ipv6(_)) | None => false,
        }
}

/// Whether a query parameter of this name is a secret.
fn holds_key(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["key", "token", "secret", "password", "auth", "sig", "code"]
        .iter()
        .any(|word| name.contains(word))
}

/// The path without what adapters add to it.
fn strip_endpoint_path(url: &Url) -> String {
    let mut path = url.path().trim_end_matches('/');
    for end in ENDS {
        path = path.strip_suffix(end).unwrap_or(path);
    }
    for end in ENDS_OF_VERSIONS {
        let before = path.strip_suffix(end);
        path = before
            .filter(|before| version(before).is_some())
            .unwrap_or(path);
    }
    // Google's form: a model and the method to call on it.
    if let Some((before, model)) = path.rsplit_once("/models/")
        && model.contains(':')
        && version(before).is_some()
    {
        path = before;
    }
    let path = path.trim_end_matches('/');
    let host = url.host_str().unwrap_or_default();
    let azure = AZURE.iter().any(|end| host.ends_with(end));
    if azure && matches!(path, "" | "/openai") {
        return "/openai/v1".to_owned();
    }
    path.to_owned()
}

/// The version at a path's end, such as `v1` or `v1beta`.
fn version(path: &str) -> Option<&str> {
    let (_, last) = path.rsplit_once('/')?;
    let digits = last.strip_prefix('v')?;
    digits
        .starts_with(|c: char| c.is_ascii_digit())
        .then_some(last)
}

/// The base URL to try first, and a second one for a server at which the first leads nowhere. An
/// adapter's requests go below a version, which is in its own base URL or in its requests, and
/// people paste base URLs with a version as well as without. `usual` is the adapter's own base URL.
pub fn base_url_candidates(pasted: Url, usual: &Url) -> (Url, Option<Url>) {
    let with = |path: &str| {
        let mut url = pasted.clone();
        url.set_path(path);
        url
    };
    let path = pasted.path().trim_end_matches('/');
    match (version(usual.path().trim_end_matches('/')), version(path)) {
        (Some(own), None) => {
            let below = with(&format!("{path}/{own}"));
            if path.is_empty() {
                // Nearly all servers have a version, and some give a response even for unknown
                // paths.
                (below, Some(pasted))
            } else {
                (pasted, Some(below))
            }
        }
        (None, Some(given)) => {
            let above = with(&path[..path.len() - given.len() - 1]);
            (pasted, Some(above))
        }
        _ => (pasted, None),
    }
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_pasted_is_refused_or_is_a_url_without_a_login_that_is_read_as_itself(
            text in prop_oneof![
                any::<String>(),
                mutated_text([
                    " \"https://api.example.org/v1/chat/completions?x=1\" ",
                    "http://[::1]:8080/v1",
                    "0.0.0.0:11434",
                    "<https://u:p@resource.openai.azure.com/openai/deployments/d#f>",
                ]),
            ],
        ) {
            if let Ok(url) = parse_base_url(&text) {
                prop_assert!(["http", "https"].contains(&url.scheme()) && url.has_host(), "{}", url);
                prop_assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
                prop_assert_eq!(parse_base_url(url.as_str()), Ok(url));
            }
        }
    }

    #[test]
    fn a_base_url_is_read_as_people_paste_it() {
        for (text, read) in [
            ("https://api.example.org/v1", "https://api.example.org/v1"),
            (
                " \"https://api.example.org/v1/\" ",
                "https://api.example.org/v1",
            ),
            ("'https://api.example.org/v1'", "https://api.example.org/v1"),
            ("<https://api.example.org/v1>", "https://api.example.org/v1"),
            ("https://api.example.org/v1//", "https://api.example.org/v1"),
            (
                "https://api.example.org/v1/chat/completions",
                "https://api.example.org/v1",
            ),
            (
                "https://api.example.org/v1/chat/completions/?#",
                "https://api.example.org/v1",
            ),
            (
                "https://api.example.org/v1/messages",
                "https://api.example.org/v1",
            ),
            (
                "https://api.example.org/v1/responses",
                "https://api.example.org/v1",
            ),
            (
                "https://api.example.org/v1/models",
                "https://api.example.org/v1",
            ),
            (
                "https://api.example.org/messages",
                "https://api.example.org/messages",
            ),
            (
                "https://g.example/v1beta/models/m-1:generateContent",
                "https://g.example/v1beta",
            ),
            ("HTTPS://API.example.org", "https://api.example.org/"),
            ("api.example.org/v1", "https://api.example.org/v1"),
            ("//api.example.org/v1", "https://api.example.org/v1"),
            ("localhost:11434", "http://localhost:11434/"),
            ("localhost", "http://localhost/"),
            ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
            ("192.168.0.7:8000", "http://192.168.0.7:8000/"),
            ("[::1]:8000", "http://[::1]:8000/"),
            ("ollama:11434/v1", "http://ollama:11434/v1"),
            ("0.0.0.0:11434", "http://127.0.0.1:11434/"),
            ("http://[::]:8000/v1", "http://[::1]:8000/v1"),
            ("https:api.example.org", "https://api.example.org/"),
            (
                "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2026-06-01",
                "https://r.openai.azure.com/openai/deployments/d?api-version=2026-06-01",
            ),
            (
                "https://r.openai.azure.com/",
                "https://r.openai.azure.com/openai/v1",
            ),
            (
                "https://r.openai.azure.com/openai/",
                "https://r.openai.azure.com/openai/v1",
            ),
            (
                "https://r.openai.azure.com/openai/v1/",
                "https://r.openai.azure.com/openai/v1",
            ),
        ] {
            assert_eq!(
                parse_base_url(text).map(String::from).as_deref(),
                Ok(read),
                "{text}"
            );
        }
        for (text, read) in [
            (
                "mcp.example.org/v1/messages",
                "https://mcp.example.org/v1/messages",
            ),
            ("localhost:3001/mcp", "http://localhost:3001/mcp"),
            (" <https://git.example.org/> ", "https://git.example.org/"),
        ] {
            let server = server(text).map(String::from);
            assert_eq!(server.as_deref(), Ok(read), "{text}");
        }
        for (text, why) in [
            ("", BaseUrlError::NoUrl),
            ("nonsense", BaseUrlError::NoUrl),
            ("ftp://x.example", BaseUrlError::NoUrl),
            ("http://", BaseUrlError::NoUrl),
            ("https://a b.example", BaseUrlError::NoUrl),
            ("https://u:p@x.example", BaseUrlError::Login),
            ("u:p@x.example", BaseUrlError::Login),
            ("https://x.example/?key=k", BaseUrlError::Key),
            ("https://x.example/?api_key=k", BaseUrlError::Key),
            ("https://x.example/#k", BaseUrlError::Fragment),
        ] {
            assert_eq!(parse_base_url(text), Err(why), "{text}");
        }
    }

    #[test]
    fn a_version_that_is_missing_or_too_many_is_tried_both_ways() {
        let of = |pasted: &str, usual: &str| {
            let url = |text| Url::parse(text).unwrap();
            let (first, other) = base_url_candidates(url(pasted), &url(usual));
            (String::from(first), other.map(String::from))
        };
        let versioned = "https://api.example.org/v1";
        let bare = "https://api.example.org";
        for (pasted, usual, first, other) in [
            ("http://h:1/v1", versioned, "http://h:1/v1", None),
            ("http://h:1/v4", versioned, "http://h:1/v4", None),
            (
                "http://h:1",
                versioned,
                "http://h:1/v1",
                Some("http://h:1/"),
            ),
            (
                "http://h:1/api?a=b",
                versioned,
                "http://h:1/api?a=b",
                Some("http://h:1/api/v1?a=b"),
            ),
            ("http://h:1", bare, "http://h:1/", None),
            ("http://h:1/anthropic", bare, "http://h:1/anthropic", None),
            ("http://h:1/v1", bare, "http://h:1/v1", Some("http://h:1/")),
            (
                "http://h:1/a/v1beta",
                bare,
                "http://h:1/a/v1beta",
                Some("http://h:1/a"),
            ),
        ] {
            let found = of(pasted, usual);
            assert_eq!(
                (found.0.as_str(), found.1.as_deref()),
                (first, other),
                "{pasted} {usual}"
            );
        }
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for (url, is) in [
            ("http://localhost:1", true),
            ("http://a.localhost", true),
            ("http://127.1.2.3", true),
            ("http://[::1]/v1", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://192.168.0.1", false),
            ("http://localhost.example.org", false),
            ("http://[fe80::1]", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), is, "{url}");
        }
    }
}
