//! Which repository URLs are accepted, and how they are normalised.
//!
//! # Invariants
//! - A normalised URL is http or https and holds no user, password, query or fragment.

mod pasted;

use url::Url;

pub use self::pasted::parse_repository_url;

/// The longest URL that is accepted, in bytes.
const LONGEST: usize = 2000;

/// Why a text is not accepted as a repository's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryUrlError {
    /// It is no URL.
    #[error("the repository URL cannot be read: give one like https://github.com/owner/name")]
    Unreadable,
    /// Its scheme is neither http nor https.
    #[error("the repository URL must begin with https:// or http://")]
    Scheme,
    /// It has no host or no path.
    #[error("the repository URL names no repository: give one like https://github.com/owner/name")]
    NoRepository,
    /// It holds white space or control characters, or is too long.
    #[error("the repository URL holds characters that do not belong there, or is too long")]
    Characters,
}

/// Validates a repository's URL and returns it as git is to see it: http or https, without user,
/// password, query or fragment.
///
/// # Errors
/// If the URL cannot be used.
pub fn repository_url(text: &str) -> Result<String, RepositoryUrlError> {
    let text = text.trim();
    let Ok(mut url) = Url::parse(text) else {
        return Err(RepositoryUrlError::Unreadable);
    };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(RepositoryUrlError::Scheme);
    }
    if url.host().is_none() || url.path().trim_matches('/').is_empty() {
        return Err(RepositoryUrlError::NoRepository);
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) || text.len() > LONGEST {
        return Err(RepositoryUrlError::Characters);
    }
    // Neither can fail for a URL that has a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    let url = url.as_str().trim_end_matches('/');
    // What is escaped is longer than it was.
    if url.len() > LONGEST {
        return Err(RepositoryUrlError::Characters);
    }
    Ok(url.to_owned())
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn whatever_is_accepted_is_a_plain_url_that_is_read_as_itself(
            text in mutated_text([
                "https://u:p@github.com/a/b.git?x#y",
                "http://[fd12::1]:8080/group/sub/project/",
                "https://h\u{f6}st.example/%61/b",
            ]),
        ) {
            if let Ok(url) = repository_url(&text) {
                let read = Url::parse(&url).unwrap();
                prop_assert!(["http", "https"].contains(&read.scheme()));
                prop_assert!(read.username().is_empty() && read.password().is_none());
                prop_assert!(read.query().is_none() && read.fragment().is_none());
                prop_assert!(!url.contains(|c: char| c.is_whitespace() || c.is_control()));
                prop_assert_eq!(repository_url(&url), Ok(url));
            }
        }
    }
}
