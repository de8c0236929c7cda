//! Reference to a component in a registry: `oci://registry/repository:tag`, or with the digest of
//! its manifest after an `@`.
//!
//! # Invariants
//! - A [`Reference`] names a host, a repository, and a tag or a digest, each of which can stand in
//!   a URL's path as is.
//! - Formatting a [`Reference`] and parsing it again yields the same value.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use lucid_types::digest::Digest;

/// Prefix of a reference.
pub const SCHEME: &str = "oci://";
/// Prefix of a digest; other algorithms are not accepted.
const ALGORITHM: &str = "sha256:";
/// The most characters of a repository's name, as registries define it.
const LONGEST_REPOSITORY: usize = 255;
/// The most characters of a tag.
const LONGEST_TAG: usize = 128;

/// A reference to a component in a registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: RegistryHost,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A registry: its host, and its port if that is not the default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost(String);

/// An error in parsing a reference. The message ends a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReferenceError(&'static str);

impl RegistryHost {
    /// Parses a host, as in `ghcr.io` or `localhost:5000`.
    ///
    /// # Errors
    /// If the text is not a host with an optional port.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let wrong = ReferenceError(
            "a registry is a host and perhaps a port, such as ghcr.io or registry.internal:5000",
        );
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(plain) || text.ends_with(':') {
            return Err(wrong);
        }
        let url = Url::parse(&format!("https://{text}/")).map_err(|_| wrong)?;
        let host = url.host_str().ok_or(wrong)?;
        // Parsing as https would drop port 443, which is not the default of plain http.
        let port = text.rsplit_once(':').map(|(_, port)| port);
        let port = port.and_then(|port| port.parse::<u16>().ok());
        let port = port.filter(|_| !text.ends_with(']'));
        Ok(Self(match port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }))
    }

    /// Whether it is on this machine, judging by its name alone.
    pub fn is_loopback(&self) -> bool {
        let url = Url::parse(&format!("https://{}/", self.0));
        match url.as_ref().ok().and_then(Url::host) {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address == Ipv4Addr::LOCALHOST,
            Some(Host::Ipv6(address)) => address == Ipv6Addr::LOCALHOST,
            None => false,
        }
    }

    /// The URL of its API.
    pub(super) fn base(&self, plain_http: bool) -> Option<Url> {
        // Docker Hub's name is not the host that serves its API.
        let host = match &*self.0 {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        let scheme = if plain_http { "http" } else { "https" };
        Url::parse(&format!("{scheme}://{host}/v2/")).ok()
    }

    /// The registry as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// Parses what follows `oci://`.
    ///
    /// # Errors
    /// If the text does not name a repository with a tag or a SHA-256 digest.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (registry, rest) = text.split_once('/').ok_or(ReferenceError(
            "it names no repository: write oci://REGISTRY/REPOSITORY:TAG",
        ))?;
        let registry = RegistryHost::parse(registry)?;
        let (rest, digest) = match rest.split_once('@') {
            None => (rest, None),
            Some((rest, digest)) => {
                let digest = self::digest(digest).ok_or(ReferenceError(
                    "behind the @ stands the digest of its manifest: sha256: and 64 hexadecimal digits",
                ))?;
                (rest, Some(digest))
            }
        };
        let (repository, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((repository, tag)) => (repository, Some(tag)),
        };
        if repository.len() > LONGEST_REPOSITORY || !repository.split('/').all(is_part) {
            return Err(ReferenceError(
                "a repository's name has lower-case letters, digits, and single . _ - between them, in parts with / between them",
            ));
        }
        if !tag.is_none_or(is_tag) {
            return Err(ReferenceError(
                "a tag has letters, digits, . _ and -, at most 128 of them, and begins with none of . and -",
            ));
        }
        if tag.is_none() && digest.is_none() {
            return Err(ReferenceError(
                "it says neither a tag nor a digest: write :TAG, or @sha256:… for the one and only",
            ));
        }
        Ok(Self {
            registry,
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry.
    pub fn registry(&self) -> &RegistryHost {
        &self.registry
    }

    /// The repository's name in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest of its manifest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What the registry is asked for: the digest, or else the tag.
    pub(super) fn tag_or_digest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.with_algorithm(),
            (None, tag) => tag.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{ALGORITHM}{digest}")?;
        }
        Ok(())
    }
}

/// The digest in a reference or a descriptor, whose digits may be in upper case; `None` for another
/// algorithm.
pub(super) fn digest(text: &str) -> Option<Digest> {
    let digits = text.strip_prefix(ALGORITHM)?;
    digits.to_ascii_lowercase().parse().ok()
}

fn is_part(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators = part.split(|c: char| c.is_ascii() && plain(c as u8));
    let ends = |edge: Option<u8>| edge.is_some_and(plain);
    ends(part.bytes().next())
        && ends(part.bytes().next_back())
        && separators.all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(plain)
        && tag.bytes().all(|byte| plain(byte) || b".-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_names_a_component_is_read_and_written_as_it_was() {
        let hex = "0123456789abcdef".repeat(4);
        for text in [
            "ghcr.io/team/reviewer:1.2.0",
            "localhost:5000/a:latest",
            "[::1]:5000/a/b-c/d__e:_x",
            "registry.internal:443/a--b.c:1",
            &format!("ghcr.io/team/reviewer@sha256:{hex}"),
            &format!("ghcr.io/team/reviewer:1@sha256:{hex}"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), format!("oci://{text}"));
        }
        let upper = format!("GHCR.io/a@sha256:{}", hex.to_uppercase());
        let reference = Reference::parse(&upper).unwrap();
        assert_eq!(
            reference.to_string(),
            format!("oci://ghcr.io/a@sha256:{hex}")
        );
        assert_eq!(reference.digest(), hex.parse().ok());
    }

    #[test]
    fn what_names_nothing_or_could_lead_elsewhere_is_refused() {
        for (text, why) in [
            ("ghcr.io", "no repository"),
            ("/a:1", "a registry is"),
            ("user:pass@ghcr.io/a:1", "a registry is"),
            ("ghcr.io?/a:1", "a registry is"),
            ("ghcr.io:/a:1", "a registry is"),
            ("ghcr.io:99999/a:1", "a registry is"),
            ("ghcr.io#x/a:1", "a registry is"),
            ("ghcr.io/a", "neither a tag nor a digest"),
            ("ghcr.io/A:1", "a repository's name"),
            ("ghcr.io/../a:1", "a repository's name"),
            ("ghcr.io/a//b:1", "a repository's name"),
            ("ghcr.io/a/:1", "a repository's name"),
            ("ghcr.io/a..b:1", "a repository's name"),
            ("ghcr.io/a%2f:1", "a repository's name"),
            ("ghcr.io/ä:1", "a repository's name"),
            ("ghcr.io/a:", "a tag has"),
            ("ghcr.io/a:-x", "a tag has"),
            ("ghcr.io/a:1/2", "a tag has"),
            ("ghcr.io/a:1?x", "a tag has"),
            ("ghcr.io/a@sha256:12", "64 hexadecimal"),
            ("ghcr.io/a@sha512:12", "64 hexadecimal"),
            ("ghcr.io/a@", "64 hexadecimal"),
        ] {
            let refused = Reference::parse(text).map(|taken| taken.to_string());
            let said = refused.expect_err(text).to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn only_this_machine_by_its_own_name_is_this_machine() {
        let loopback = |text: &str| RegistryHost::parse(text).unwrap().is_loopback();
        for text in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "[::1]",
            "LOCALHOST:80",
        ] {
            assert!(loopback(text), "{text}");
        }
        for text in [
            "localhost.example",
            "127.0.0.1.example",
            "10.0.0.1",
            "[::2]:1",
        ] {
            assert!(!loopback(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_is_the_same_when_it_is_read_again(
            text in prop_oneof![
                any::<String>(),
                "[a-zA-Z0-9.:@/_-]{0,60}",
                "[a-z.]{1,9}(:[0-9]{1,5})?(/[a-z0-9._-]{1,6}){1,3}(:[a-zA-Z0-9._-]{1,6})?(@sha256:[0-9a-fA-F]{64})?",
            ]
        ) {
            if let Ok(reference) = Reference::parse(&text) {
                let written = reference.to_string();
                let again = Reference::parse(written.strip_prefix(SCHEME).unwrap());
                prop_assert_eq!(again, Ok(reference.clone()));
                let url = reference.registry().base(false).unwrap();
                let path = format!("{}/manifests/{}", reference.repository(), reference.tag_or_digest());
                let url = url.join(&path).unwrap();
                prop_assert!(url.path().ends_with(&path), "{} became {}", path, url);
            }
        }
    }
}
