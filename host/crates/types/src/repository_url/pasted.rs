//! Normalises repository addresses as people paste them: an SSH remote, a web page of the
//! repository, an address without a scheme.
//!
//! # Invariants
//! - A rewritten address leads to the same server and the same repository.
//! - What cannot be parsed is returned unchanged, so that validation reports what is wrong with it.

use url::Url;

/// Servers whose repositories are all `owner/name`, and which support https.
const OF_TWO_PARTS: &[&str] = &["github.com", "bitbucket.org", "codeberg.org"];
/// Other servers that support https.
const SECURE: &[&str] = &["gitlab.com"];
/// Path segments that follow `owner/name` in the URL of a page.
const PAGES: &[&str] = &[
    "tree", "blob", "blame", "raw", "commits", "commit", "pull", "edit",
];
/// Path segments that follow `owner/name/src`.
const SOURCES: &[&str] = &["branch", "commit", "tag"];

/// Returns the https form of what was pasted, keeping the credentials of an http URL.
pub fn parse_repository_url(text: &str) -> String {
    let text = unquote(text);
    // A parser of URLs passes over line breaks, so what it makes of them is another text.
    if text.chars().any(char::is_control) {
        return text.to_owned();
    }
    let web = web_form(text).filter(|web| Url::parse(web).is_ok());
    let web = web.unwrap_or_else(|| text.to_owned());
    without_page(&web).unwrap_or(web)
}

fn unquote(text: &str) -> &str {
    let mut text = text.trim();
    text = text.strip_prefix("git clone ").unwrap_or(text).trim();
    for (open, close) in [('"', '"'), ('\'', '\''), ('`', '`'), ('<', '>')] {
        let inner = text
            .strip_prefix(open)
            .and_then(|text| text.strip_suffix(close));
        text = inner.map_or(text, str::trim);
    }
    text
}

fn web_form(text: &str) -> Option<String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) || text.starts_with('-') {
        return None;
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let scheme = scheme.to_ascii_lowercase();
        return match scheme.as_str() {
            "ssh" | "git+ssh" | "ssh+git" | "git" | "git+https" => of_ssh(rest),
            "http" | "https" => None,
            _ => None,
        };
    }
    // `git@host:group/name.git`, as git writes it.
    if let Some((place, path)) = text.split_once(':')
        && !place.contains('/')
        && !path.starts_with(':')
        && let Some((_, host)) = place.rsplit_once('@')
        && is_name(host)
    {
        return joined(host, path);
    }
    // `github.com/owner/name`.
    let (host, path) = text.split_once('/')?;
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    // What has another port would be read as a login at another server.
    let has_port = port.bytes().all(|byte| byte.is_ascii_digit());
    let fits = is_name(name) && name.contains('.') && has_port && path.contains('/');
    fits.then(|| format!("https://{text}"))
}

/// Converts an SSH address without its scheme. Its port is dropped, since it is not that of https.
fn of_ssh(rest: &str) -> Option<String> {
    let (place, path) = rest.split_once('/')?;
    let (_, host) = place.rsplit_once('@').unwrap_or(("", place));
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    is_name(host).then(|| joined(host, path))?
}

fn joined(host: &str, path: &str) -> Option<String> {
    let path = path.trim_start_matches('/');
    // GitHub's alternative host for SSH.
    let host = match host {
        "ssh.github.com" => "github.com",
        "altssh.gitlab.com" => "gitlab.com",
        "altssh.bitbucket.org" => "bitbucket.org",
        other => other,
    };
    (!path.is_empty()).then(|| format!("https://{host}/{path}"))
}

fn is_name(host: &str) -> bool {
    !host.is_empty()
        && !host.starts_with(['-', '.'])
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
}

/// The repository that the page at a URL belongs to.
fn without_page(text: &str) -> Option<String> {
    let mut url = Url::parse(text).ok()?;
    let host = url.host_str()?;
    let host = host.strip_prefix("www.").unwrap_or(host).to_owned();
    let of_two = OF_TWO_PARTS.contains(&host.as_str());
    if of_two || SECURE.contains(&host.as_str()) {
        url.set_host(Some(&host)).ok()?;
        // Only without an explicit port, which belongs to the scheme.
        if url.port().is_none() {
            let _ = url.set_scheme("https");
        }
    }
    let path = url.path().to_owned();
    // The API's URL of a repository.
    if let Some((above, below)) = path.split_once("/repos/")
        && (host == "api.github.com" && above.is_empty() || above == "/api/v3")
    {
        let end = below
            .match_indices('/')
            .nth(1)
            .map_or(below.len(), |(at, _)| at);
        url.set_path(&below[..end]);
        if host == "api.github.com" {
            url.set_host(Some("github.com")).ok()?;
        }
        return Some(url.into());
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let kept = if of_two && parts.len() > 2 {
        &parts[..2]
    } else if let Some(at) = parts.iter().position(|part| *part == "-") {
        &parts[..at]
    } else {
        match parts[..] {
            [_, _, page, _, ..] if PAGES.contains(&page) => &parts[..2],
            [_, _, "src", kind, ..] if SOURCES.contains(&kind) => &parts[..2],
            _ => &parts[..],
        }
    };
    if kept.len() < parts.len() {
        url.set_path(&kept.join("/"));
    }
    Some(url.into())
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repository_is_known_by_what_people_paste() {
        for (text, meant) in [
            (
                "git@github.com:team/project.git",
                "https://github.com/team/project.git",
            ),
            (
                "git@gitlab.example.org:group/sub/project.git",
                "https://gitlab.example.org/group/sub/project.git",
            ),
            (
                "ssh://git@git.example.org:2222/team/project.git",
                "https://git.example.org/team/project.git",
            ),
            (
                "ssh://git@github.com/team/project",
                "https://github.com/team/project",
            ),
            (
                "git+ssh://git@github.com/team/project",
                "https://github.com/team/project",
            ),
            (
                "ssh://git@ssh.github.com:443/team/project",
                "https://github.com/team/project",
            ),
            (
                "git://github.com/team/project.git",
                "https://github.com/team/project.git",
            ),
            ("github.com/team/project", "https://github.com/team/project"),
            (
                "git.example.org:8443/team/project",
                "https://git.example.org:8443/team/project",
            ),
            (
                " \"https://github.com/team/project\" ",
                "https://github.com/team/project",
            ),
            (
                "git clone https://github.com/team/project.git",
                "https://github.com/team/project.git",
            ),
            (
                "https://github.com/team/project/tree/main",
                "https://github.com/team/project",
            ),
            (
                "https://www.github.com/team/project/issues",
                "https://github.com/team/project",
            ),
            (
                "http://github.com/team/project",
                "https://github.com/team/project",
            ),
            (
                "https://ghe.example.org/team/project/blob/main/a/b.rs",
                "https://ghe.example.org/team/project",
            ),
            (
                "https://gitlab.com/group/sub/project/-/tree/main/src",
                "https://gitlab.com/group/sub/project",
            ),
            (
                "https://gitlab.example.org/group/sub/project/-/merge_requests/3",
                "https://gitlab.example.org/group/sub/project",
            ),
            (
                "https://gitea.example.org/team/project/src/branch/main",
                "https://gitea.example.org/team/project",
            ),
            (
                "https://user:token@github.com/team/project/tree/main",
                "https://user:token@github.com/team/project",
            ),
            (
                "https://api.github.com/repos/team/project",
                "https://github.com/team/project",
            ),
            (
                "https://ghe.example.org/api/v3/repos/team/project/pulls/3",
                "https://ghe.example.org/team/project",
            ),
            // These stay as they are.
            (
                "https://gitlab.example.org/group/sub/deep/project",
                "https://gitlab.example.org/group/sub/deep/project",
            ),
            (
                "http://git.example.org/team/project.git",
                "http://git.example.org/team/project.git",
            ),
            (
                "https://github.com/team/project.git",
                "https://github.com/team/project.git",
            ),
            ("file:///etc", "file:///etc"),
            ("ext::sh", "ext::sh"),
            ("--upload-pack=touch", "--upload-pack=touch"),
            ("git@-oProxyCommand=x:a/b", "git@-oProxyCommand=x:a/b"),
            ("project", "project"),
            ("", ""),
        ] {
            assert_eq!(parse_repository_url(text), meant, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_made_of_a_url_leads_to_the_same_server(
            text in mutated_text([
                "https://www.github.com:443/team/project/tree/main/src",
                "http://gitlab.example.org/group/project/-/merge_requests/5#note_1",
                "https://api.github.com/repos/team/project/issues",
                "https://u:p@h.example/api/v3/repos/a/b/c",
            ]),
        ) {
            if let Ok(pasted) = Url::parse(unquote(&text))
                && ["http", "https"].contains(&pasted.scheme())
            {
                let host = pasted.host_str().unwrap();
                let made = parse_repository_url(&text);
                let same = Url::parse(&made).is_ok_and(|made| {
                    let made_host = made.host_str().unwrap();
                    made_host == host
                        || made_host == host.strip_prefix("www.").unwrap_or(host)
                        || (host == "api.github.com" && made_host == "github.com")
                });
                prop_assert!(same, "{} became {}", text, made);
            }
        }

        #[test]
        fn whatever_is_pasted_is_an_address_or_stays_as_it_is(
            text in mutated_text([
                "git@github.com:team/project.git",
                "git clone ssh://git@h.org:2222/team/project",
                "<h.example/team/project>",
            ]),
        ) {
            let made = parse_repository_url(&text);
            prop_assert!(made == unquote(&text) || Url::parse(&made).is_ok(), "{}", made);
        }
    }
}
