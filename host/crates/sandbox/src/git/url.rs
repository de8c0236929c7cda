//! Which repositories a session can reach.
//!
//! # Invariants
//! - A session reaches its own repository and, where that is allowed, others beside it, never one
//!   whose address could be read in two ways.

use lucid_types::repository_url::{RepositoryUrlError, repository_url};

/// The URL prefix that git in the sandbox sends to the gateway: the repository, or everything of
/// its owner.
pub fn gateway_prefix(repository: &str, allow_owner: bool) -> Result<String, RepositoryUrlError> {
    let url = repository_url(repository)?;
    Ok(match owner(&url) {
        // With its slash: another owner's name may have this one as a prefix.
        Some(owner) if allow_owner => format!("{owner}/"),
        _ => plain(&url).to_owned(),
    })
}

/// The repository that a helper asked for, if it may have it: the session's own, or one beside it.
pub(super) fn permitted(own: &str, asked: &str, allow_owner: bool) -> Option<String> {
    if plain(asked) == plain(own) {
        return Some(own.to_owned());
    }
    if !allow_owner {
        return None;
    }
    let asked = repository_url(asked).ok()?;
    let name = asked.strip_prefix(owner(own)?)?.strip_prefix('/')?;
    // Servers differ in how they interpret other characters.
    let clear = |c: char| c.is_ascii_alphanumeric() || "-_.~+".contains(c);
    let fits = !matches!(plain(name), "" | "." | "..") && name.chars().all(clear);
    fits.then_some(asked)
}

/// Another repository whose URL git sent here only because this one's is its prefix, which is all
/// that git can match. Returned as a URL safe on a command line; a longer match of the user's own
/// leads git elsewhere.
pub(super) fn sibling_repository(own: &str, asked: &str) -> Option<String> {
    let asked = repository_url(asked).ok()?;
    let name = asked.strip_prefix(plain(own))?;
    let clear = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!name.is_empty() && name.len() <= 100 && name.chars().all(clear)).then_some(asked)
}

/// A repository's URL without its last segment, if something precedes that.
fn owner(url: &str) -> Option<&str> {
    let (owner, _) = plain(url).rsplit_once('/')?;
    let (_, place) = owner.split_once("://")?;
    place.contains('/').then_some(owner)
}

/// A repository's URL without the ending that servers treat as optional.
pub(super) fn plain(url: &str) -> &str {
    let url = url.trim_end_matches('/');
    url.strip_suffix(".git").unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_the_repository_itself_or_one_beside_it(
            asked in mutated_text([
                "https://h.org/group/team/project.git",
                "https://u:p@h.org/group/team/other.git",
                "https://h.org/group/team/%2e%2e/x",
                "https://h.org:443/group/team/a;b",
            ]),
        ) {
            let own = "https://h.org/group/team/project.git";
            let alone = permitted(own, &asked, false);
            prop_assert!(alone.is_none_or(|url| url == own));
            if let Some(url) = permitted(own, &asked, true) {
                let read = Url::parse(&url).unwrap();
                prop_assert_eq!(read.origin().ascii_serialization(), "https://h.org");
                prop_assert!(read.username().is_empty() && read.password().is_none());
                prop_assert!(read.query().is_none() && read.fragment().is_none(), "{}", url);
                let segments: Vec<_> = read.path_segments().unwrap().collect();
                prop_assert_eq!(segments.len(), 3, "{}", url);
                prop_assert_eq!(&segments[..2], ["group", "team"]);
            }
            let neighbour = sibling_repository(own, &asked);
            prop_assert!(neighbour.is_none_or(|url| !url.contains([' ', ';', '\'', '"', '$', '`', '&', '|', '\n'])));
        }
    }

    #[test]
    fn a_session_reaches_its_own_repository_only() {
        let own = "https://github.com/team/project.git";
        for asked in [
            own,
            "https://github.com/team/project",
            "https://github.com/team/project/",
        ] {
            assert_eq!(
                permitted(own, asked, false).as_deref(),
                Some(own),
                "{asked}"
            );
        }
        for asked in [
            "https://github.com/team/project2",
            "https://github.com/team/other.git",
            "https://github.com/team/project/../other",
            "https://github.com.evil/team/project",
            "http://github.com/team/project",
            "",
        ] {
            assert_eq!(permitted(own, asked, false), None, "{asked}");
        }
        assert_eq!(
            gateway_prefix(own, false).unwrap(),
            "https://github.com/team/project"
        );
    }

    #[test]
    fn where_the_owner_is_allowed_its_other_repositories_are_reached_and_nothing_else() {
        let own = "https://h.org/group/team/project.git";
        assert_eq!(
            gateway_prefix(own, true).unwrap(),
            "https://h.org/group/team/"
        );
        for asked in [
            "https://h.org/group/team/other.git",
            "https://u:p@h.org/group/team/other.git",
            "https://h.org/group/team/x/../other.git",
        ] {
            assert_eq!(
                permitted(own, asked, true).as_deref(),
                Some("https://h.org/group/team/other.git"),
                "{asked}"
            );
        }
        for asked in [
            "https://h.org/group/team",
            "https://h.org/group/team/",
            "https://h.org/group/team/a/b",
            "https://h.org/group/team2/other",
            "https://h.org/group/team/../other/x",
            "https://h.org/group/team/..%2fother%2fx",
            "https://h.org/group/team/%2e%2e/x",
            "https://h.org/group/team/..\\other",
            "https://h.org/group/team/.git",
            "https://h.org:8443/group/team/other",
            "http://h.org/group/team/other",
        ] {
            assert_eq!(permitted(own, asked, true), None, "{asked}");
        }
    }

    #[test]
    fn a_neighbour_is_what_begins_with_the_repositorys_name() {
        let own = "https://h.org/team/project.git";
        let url = "https://h.org/team/project2";
        assert_eq!(sibling_repository(own, url).as_deref(), Some(url));
        for other in [
            "https://h.org/team/project",
            "https://h.org/team/project/../x",
            "https://h.org/team/project2/x",
            "https://h.org/team/project;touch%20x",
            "https://h.org/team/other",
            "https://evil.org/team/project2",
            "",
        ] {
            assert_eq!(sibling_repository(own, other), None, "{other}");
        }
    }

    #[test]
    fn a_repository_without_an_owner_has_nothing_beside_it() {
        let own = "https://h.org/project.git";
        assert_eq!(gateway_prefix(own, true).unwrap(), "https://h.org/project");
        assert_eq!(permitted(own, "https://h.org/other.git", true), None);
    }
}
