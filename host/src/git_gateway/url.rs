//! Owns which repository URLs are taken, and how they are written.
//!
//! What always holds: what comes out is http or https and holds no user, password, query or fragment.

use url::Url;

use super::GatewayError;

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

/// A repository's URL without the ending that servers take or leave.
pub(super) fn plain(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix(".git").unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_url_loses_its_user_and_must_be_http() {
        assert_eq!(
            repository_url(" https://u:p@github.com/a/b.git?x#y ").unwrap(),
            "https://github.com/a/b.git"
        );
        assert_eq!(
            repository_url("https://github.com/a/b/").unwrap(),
            "https://github.com/a/b"
        );
        for text in [
            "",
            "-x",
            "--upload-pack=touch",
            "git@github.com:a/b",
            "ssh://h/a",
            "file:///etc",
            "ext::sh",
            "https://github.com/",
            "https://h/a b",
        ] {
            assert!(repository_url(text).is_err(), "{text}");
        }
    }
}
