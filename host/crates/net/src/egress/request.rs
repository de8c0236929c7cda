//! Builds the request that is sent from the one a plugin wrote, and refuses what a plugin may not
//! set.
//!
//! # Invariants
//! - The resulting URL has the base URL's scheme, host and port, and a path below the base URL's
//!   path, whatever the plugin wrote.
//! - No header that belongs to the host can come from a plugin, above all the one that holds the
//!   key.
//! - A redirect leads to the same server.

use std::borrow::Cow;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::EgressError;
use lucid_types::sanitize::sanitize;
use lucid_types::wit::types::Header;

const LONGEST_PATH: usize = 2_048;
const MOST_HEADERS: usize = 64;

/// Headers that belong to the host: credentials, routing and transport.
const HOST_HEADERS: &[&str] = &[
    "accept-encoding",
    "api-key",
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "origin",
    "referer",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-api-key",
    "x-auth-token",
    "x-goog-api-key",
    "x-real-ip",
];
/// Headers of the transport: a key in one of these would break it.
const CARRYING: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const HOST_PREFIXES: &[&str] = &["proxy-", "sec-", "x-forwarded-", "x-amz-security-"];

/// Appends the plugin's path to the base URL. If `slashes` is set, an escaped slash is a separator
/// too, and the parts between are checked as segments.
pub(super) fn join(
    base: &Url,
    path: &str,
    query: &[(String, String)],
    slashes: bool,
) -> Result<Url, EgressError> {
    let refuse = |reason| EgressError::Path {
        path: sanitize(path, 200),
        reason,
    };
    check_path(path, slashes).map_err(refuse)?;
    let mut url = base.clone();
    let below = base.path().trim_end_matches('/');
    url.set_path(&format!("{below}{path}"));
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    // The checks above guarantee this; it is verified all the same, on what is really sent.
    let same = url.scheme() == base.scheme()
        && url.host() == base.host()
        && url.port_or_known_default() == base.port_or_known_default()
        && url.username().is_empty()
        && url.path().strip_prefix(below) == Some(path);
    if same {
        Ok(url)
    } else {
        Err(refuse("it leads away from the base URL"))
    }
}

fn check_path(path: &str, slashes: bool) -> Result<(), &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("it is too long");
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err("it must start with `/`");
    };
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&c);
    if !path.bytes().all(plain) {
        return Err("it has a character that belongs in the query or must be percent-encoded");
    }
    let parted = if slashes {
        Cow::Owned(rest.replace("%2F", "/").replace("%2f", "/"))
    } else {
        Cow::Borrowed(rest)
    };
    let segments = parted.split('/');
    let last = segments.clone().count() - 1;
    for (number, segment) in segments.enumerate() {
        if segment.is_empty() && number != last {
            return Err("it has an empty part");
        }
        // Some servers ignore a parameter or an escape after such a name.
        let name = segment.split([';', '%']).next().unwrap_or_default();
        if matches!(name, "." | "..") {
            return Err("it has a part `.` or `..`");
        }
        check_escapes(segment)?;
    }
    Ok(())
}

/// An escape may stand only for a character that has no meaning in a path.
fn check_escapes(segment: &str) -> Result<(), &'static str> {
    let mut pieces = segment.split('%');
    pieces.next();
    for piece in pieces {
        let code = piece.get(..2).and_then(|hex| {
            let plain = hex.bytes().all(|c| c.is_ascii_hexdigit());
            plain.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
        });
        match code {
            None => return Err("it has a `%` that is not an escape"),
            Some(b'.' | b'/' | b'\\' | b'%' | 0..=0x1f | 0x7f) => {
                return Err("it has an escape that hides what the path is");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Parses one of the methods that APIs are called with.
pub(super) fn method(method: &str) -> Result<Method, EgressError> {
    match method {
        "GET" => Ok(Method::GET),
        "POST" => Ok(Method::POST),
        "PUT" => Ok(Method::PUT),
        "PATCH" => Ok(Method::PATCH),
        "DELETE" => Ok(Method::DELETE),
        other => Err(EgressError::Method {
            method: sanitize(other, 20),
        }),
    }
}

/// The plugin's headers, if it may set all of them.
pub(super) fn headers(headers: &[Header], key: &HeaderName) -> Result<HeaderMap, EgressError> {
    let mut map = HeaderMap::with_capacity(headers.len() + 1);
    for header in headers {
        let refuse = |reason| EgressError::Header {
            name: sanitize(&header.name, 100),
            reason,
        };
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| refuse("that is not a header's name"))?;
        let host = name == key
            || HOST_HEADERS.contains(&name.as_str())
            || HOST_PREFIXES
                .iter()
                .any(|prefix| name.as_str().starts_with(prefix));
        if host {
            return Err(EgressError::HostHeader {
                name: name.as_str().to_owned(),
            });
        }
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| refuse("its value has a line break or another control character"))?;
        if map.len() >= MOST_HEADERS {
            return Err(refuse("there are too many"));
        }
        map.append(name, value);
    }
    Ok(map)
}

/// Validates the header that an adapter wants its key in.
pub(super) fn key_header(name: &str) -> Result<HeaderName, EgressError> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    parsed
        .filter(|name| !CARRYING.contains(&name.as_str()))
        .ok_or_else(|| EgressError::KeyHeader {
            name: sanitize(name, 100),
        })
}

/// The target of a redirect, if it is on the same server.
pub(super) fn redirect_target(url: &Url, location: Option<&HeaderValue>) -> Option<Url> {
    let next = url.join(location?.to_str().ok()?).ok()?;
    let same = next.scheme() == url.scheme()
        && next.host() == url.host()
        && next.port_or_known_default() == url.port_or_known_default()
        && next.username().is_empty()
        && next.password().is_none();
    same.then_some(next)
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;
    use reqwest::header::AUTHORIZATION;

    use super::*;

    proptest! {
        #[test]
        fn whatever_path_a_plugin_writes_stays_below_the_base_url(
            path in mutated_text([
                "/v1/models/gemini-2.5-pro:streamGenerateContent",
                "/projects/team%20x/merge_requests;a=b",
                "/a/%2e%2e/b//c",
                "/projects/group%2Fproject/issues",
            ]),
            slashes: bool,
        ) {
            let base = Url::parse("https://api.example:8443/base/v4").unwrap();
            let query = [("a b".to_owned(), path.clone())];
            if let Ok(url) = join(&base, &path, &query, slashes) {
                let read = Url::parse(url.as_str()).unwrap();
                prop_assert_eq!(&read, &url);
                prop_assert_eq!(read.origin(), base.origin());
                prop_assert!(read.path().starts_with("/base/v4/"), "{}", read);
                prop_assert!(read.path_segments().unwrap().all(|part| part != ".." && part != "."));
                prop_assert_eq!(read.query_pairs().count(), 1);
                prop_assert!(read.fragment().is_none());
            }
        }
    }

    #[test]
    fn the_header_that_holds_the_key_is_the_hosts_own_whatever_it_is_called() {
        let name = key_header("X-Custom-Key").unwrap();
        let header = Header {
            name: "x-custom-key".to_owned(),
            value: "mine".to_owned(),
        };
        assert!(headers(std::slice::from_ref(&header), &AUTHORIZATION).is_ok());
        let refused = headers(&[header], &name).unwrap_err();
        assert_eq!(
            refused,
            EgressError::HostHeader {
                name: "x-custom-key".to_owned()
            }
        );
        for wrong in ["host", "Content-Length", "a b", ""] {
            assert!(key_header(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_redirect_is_followed_on_the_same_server_only() {
        let url = Url::parse("https://api.example/v1/chat").unwrap();
        let to = |text: &str| {
            let location = HeaderValue::from_str(text).unwrap();
            redirect_target(&url, Some(&location)).map(String::from)
        };
        assert_eq!(
            to("/v2/chat").as_deref(),
            Some("https://api.example/v2/chat")
        );
        assert_eq!(
            to("https://API.example:443/x").as_deref(),
            Some("https://api.example/x")
        );
        for elsewhere in [
            "http://api.example/v1/chat",
            "https://api.example:444/",
            "https://api.example.evil/",
            "//evil.example/",
            "https://user@api.example/",
            "https://user:pw@api.example/",
            "file:///etc/passwd",
        ] {
            assert_eq!(to(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(redirect_target(&url, None), None);
    }

    fn joined(base: &str, path: &str) -> Result<String, EgressError> {
        join(&Url::parse(base).unwrap(), path, &[], false).map(String::from)
    }

    #[test]
    fn a_path_goes_below_the_base_url_with_or_without_its_slash() {
        for base in ["https://api.example/v1", "https://api.example/v1/"] {
            let url = joined(base, "/chat/completions").unwrap();
            assert_eq!(url, "https://api.example/v1/chat/completions");
        }
        let url = joined("http://[::1]:8080", "/models/a:generate%20x/").unwrap();
        assert_eq!(url, "http://[::1]:8080/models/a:generate%20x/");
        assert_eq!(joined("https://a.b/v1", "/").unwrap(), "https://a.b/v1/");
    }

    #[test]
    fn a_query_is_added_to_the_base_urls_own_and_encoded() {
        let base = Url::parse("https://a.b/x?version=1").unwrap();
        let query = [("q".to_owned(), "a&b=c#/d".to_owned())];
        let url = join(&base, "/y", &query, false).unwrap();
        assert_eq!(url.as_str(), "https://a.b/x/y?version=1&q=a%26b%3Dc%23%2Fd");
    }

    #[test]
    fn where_slashes_may_be_escaped_what_they_part_is_held_to_the_same() {
        let base = Url::parse("https://gitlab.example/gl/api/v4").unwrap();
        let joined = |path: &str| join(&base, path, &[], true).map(String::from);
        assert_eq!(
            joined("/projects/group%2Fsub%2fname/branches/a%2Fb").unwrap(),
            "https://gitlab.example/gl/api/v4/projects/group%2Fsub%2fname/branches/a%2Fb"
        );
        for path in [
            "/projects/..%2F..%2Fadmin",
            "/projects/a%2F..%2Fb",
            "/projects/a%2F.%2Fb",
            "/projects/%2F%2Fevil.example",
            "/projects/a%2F%2Fb",
            "/projects/a%2F..;x%2Fb",
            "/projects/a%2F%2e%2e",
            "/projects/a%252Fb",
            "/projects/a%5cb",
        ] {
            assert!(joined(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in [
            "",
            "chat",
            "//evil.example/x",
            "/a//b",
            "/..",
            "/a/../b",
            "/a/./b",
            "/%2e%2e/b",
            "/%2E./b",
            "/a/..;/b",
            "/a/..;x=1/b",
            "/a/..%3b/b",
            "/a/.;/b",
            "/..%20/b",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/a?b",
            "/a#b",
            "/a b",
            "/a\tb",
            "/a\r\nb",
            "/a%",
            "/a%g0",
            "/a%+1",
            "/a%00",
            "/a%252e",
            "https://evil.example/",
            "@evil.example",
            "/ä",
            "\\\\evil.example",
            ":8080/x",
        ] {
            let refused = joined("https://api.example/v1", path);
            assert!(
                matches!(refused, Err(EgressError::Path { .. })),
                "{path}: {refused:?}"
            );
        }
        assert!(joined("https://a.b", &format!("/{}", "a".repeat(3_000))).is_err());
    }

    #[test]
    fn a_header_that_is_the_hosts_own_is_refused_by_name() {
        for name in [
            "Authorization",
            "host",
            "COOKIE",
            "Content-Length",
            "connection",
            "Transfer-Encoding",
            "Proxy-Authorization",
            "proxy-anything",
            "X-Api-Key",
            "x-goog-api-key",
            "X-Forwarded-For",
        ] {
            let header = Header {
                name: name.to_owned(),
                value: "x".to_owned(),
            };
            let name = name.to_lowercase();
            assert_eq!(
                headers(&[header], &AUTHORIZATION),
                Err(EgressError::HostHeader { name })
            );
        }
    }

    #[test]
    fn a_header_that_breaks_the_line_is_refused_and_a_plain_one_is_sent() {
        let header = |name: &str, value: &str| Header {
            name: name.to_owned(),
            value: value.to_owned(),
        };
        let fit = |list: &[Header]| headers(list, &AUTHORIZATION);
        assert!(fit(&[header("x", "a\r\nAuthorization: b")]).is_err());
        assert!(fit(&[header("x y", "a")]).is_err());
        assert!(fit(&[header("", "a")]).is_err());
        let fine = [
            header("Content-Type", "application/json"),
            header("anthropic-beta", "a"),
        ];
        assert_eq!(fit(&fine).unwrap().len(), 2);
        assert!(fit(&vec![header("a", "b"); 65]).is_err());
    }

    #[test]
    fn only_the_methods_of_an_api_are_sent() {
        assert!(method("POST").is_ok());
        for wrong in ["post", "CONNECT", "TRACE", "", "GET /"] {
            assert!(method(wrong).is_err());
        }
    }
}
