//! Parses the `WWW-Authenticate` header with which a registry asks for authentication.
//!
//! The crate `http-auth` (0.1.10) was considered: it refuses parts of RFC 9110's grammar (more than one space behind a
//! scheme, a `token68`), and with them every challenge that follows in the same header.
//!
//! # Invariants
//! - Any header can be parsed; one that is not understood counts as no challenge.

/// How a registry wants requests to be authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthChallenge {
    /// With user name and password in each request.
    Basic,
    /// With a token from another server.
    Bearer {
        /// The token server's URL, as it was written.
        realm: String,
        /// The service that the token is for.
        service: Option<String>,
    },
}

/// The first challenge of a header that can be answered.
pub(super) fn read(header: &str) -> Option<AuthChallenge> {
    let mut rest = header;
    let mut found: Option<ChallengeParameters> = None;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start_matches([' ', '\t']);
        match after.strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after.trim_start_matches([' ', '\t']));
                if let Some(found) = &mut found {
                    found.take(word, value);
                }
                rest = after;
            }
            // A word without a value begins the next challenge, or the header is over.
            None => {
                if let Some(challenge) = found.and_then(ChallengeParameters::challenge) {
                    return Some(challenge);
                }
                if word.is_empty() {
                    return None;
                }
                found = Some(ChallengeParameters::new(word));
                rest = after;
            }
        }
    }
}

/// A value and what follows it. The value is quoted, with backslash escapes, or plain.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

struct ChallengeParameters {
    scheme: String,
    realm: Option<String>,
    service: Option<String>,
}

impl ChallengeParameters {
    fn new(scheme: &str) -> Self {
        Self {
            scheme: scheme.to_ascii_lowercase(),
            realm: None,
            service: None,
        }
    }

    fn take(&mut self, name: &str, value: String) {
        if name.eq_ignore_ascii_case("realm") {
            self.realm.get_or_insert(value);
        } else if name.eq_ignore_ascii_case("service") {
            self.service.get_or_insert(value);
        }
    }

    fn challenge(self) -> Option<AuthChallenge> {
        match &*self.scheme {
            "basic" => Some(AuthChallenge::Basic),
            "bearer" => Some(AuthChallenge::Bearer {
                realm: self.realm?,
                service: self.service,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<AuthChallenge> {
        Some(AuthChallenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn the_ways_that_registries_ask_are_understood() {
        for (header, meant) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#,
                bearer("https://auth.example/token", Some("registry.example")),
            ),
            (
                r#"bearer  Realm = "https://a/t" , error="invalid_token""#,
                bearer("https://a/t", None),
            ),
            (
                r#"Bearer service="a, \"b\"",realm=https://a/t"#,
                bearer("https://a/t", Some("a, \"b\"")),
            ),
            (r#"Basic realm="Registry""#, Some(AuthChallenge::Basic)),
            ("Basic", Some(AuthChallenge::Basic)),
            (
                r#"Negotiate, Bearer realm="https://a/t""#,
                bearer("https://a/t", None),
            ),
            (r#"Bearer service="x""#, None),
            ("Negotiate abc==", None),
            (r#"realm="https://a/t""#, None),
            (r#"Bearer realm="unended"#, bearer("unended", None)),
            ("", None),
        ] {
            assert_eq!(read(header), meant, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in prop_oneof![
            any::<String>(),
            "(Bearer|Basic|realm|service|=|\"|,| |\\\\|x){0,20}",
        ]) {
            let _ = read(&header);
        }

        #[test]
        fn a_realm_comes_out_as_it_went_in(realm in "\\PC{0,40}", service in "\\PC{0,40}") {
            let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer realm=\"{}\",service=\"{}\"", quoted(&realm), quoted(&service));
            prop_assert_eq!(read(&header), bearer(&realm, Some(&service)));
        }
    }
}
