//! Classifies GitHub's refusals: from status, headers and message to an error the host can act on.
//!
//! # Invariants
//!
//! - A rate limit is distinguished from a missing permission, though both are 403.
//! - A missing branch is named.

use lucid_plugin::git::{NewChange, header, json, refusal, said, text_at};
use lucid_plugin::types::{Error, ErrorKind, HttpResponse};

/// Whether a pull request of these branches exists already.
pub(crate) fn says_exists(response: &HttpResponse) -> bool {
    response.status == 422 && said(response).contains("pull request already exists")
}

/// Classifies a refusal of any request.
pub(crate) fn of(response: &HttpResponse) -> Error {
    let mut error = refusal("GitHub", response);
    if is_limit(response) {
        error.kind = ErrorKind::RateLimited;
        error.message = "GitHub was asked too often with this token; try again later.".into();
        error.code = Some("rate-limit".into());
    } else if header(&response.headers, "x-github-sso").is_some() {
        error.kind = ErrorKind::Forbidden;
        error.message = "The organization wants its members to sign in: authorize the token for its single sign-on, in GitHub's settings of the token.".into();
        error.code = Some("sso".into());
    }
    error
}

/// Whether a refusal is a rate limit. The primary limit says that nothing remains. The secondary
/// one says when to retry, or names itself.
fn is_limit(response: &HttpResponse) -> bool {
    let headers = &response.headers;
    matches!(response.status, 403 | 429)
        && (header(headers, "retry-after").is_some()
            || header(headers, "x-ratelimit-remaining") == Some("0")
            || said(response).to_ascii_lowercase().contains("rate limit"))
}

/// Classifies a refusal to open a pull request.
pub(crate) fn of_change(change: &NewChange, base: &str, response: &HttpResponse) -> Error {
    let mut error = of(response);
    let not_found =
        |what: String, code: &str| Error::new(ErrorKind::NotFound, what).with_code(code);
    match response.status {
        404 => not_found(
            format!(
                "GitHub knows no repository `{}`, or the token may not open pull requests in it.",
                change.repository
            ),
            "repository",
        ),
        403 if error.kind == ErrorKind::Forbidden && error.code.as_deref() != Some("sso") => {
            error.message = format!(
                "The token may not open pull requests in `{}`: it needs the scope `repo`, or write access to pull requests.",
                change.repository
            );
            error
        }
        422 if is_invalid(response, "head") => not_found(
            format!(
                "`{}` has no branch `{}` to open a pull request of.",
                change.repository, change.head
            ),
            "head",
        ),
        422 if is_invalid(response, "base") => not_found(
            format!(
                "`{}` has no branch `{base}` to open a pull request to.",
                change.repository
            ),
            "base",
        ),
        422 if said(response).contains("No commits between") => {
            let what = format!("`{}` has nothing that `{base}` does not have.", change.head);
            Error::invalid(what).with_code("no-commits")
        }
        422 if said(response)
            .to_ascii_lowercase()
            .contains("draft pull requests") =>
        {
            Error::new(
                ErrorKind::Unsupported,
                format!("`{}` takes no draft pull requests.", change.repository),
            )
            .with_code("draft")
        }
        _ => error,
    }
}

/// Whether GitHub rejects this field of the request.
fn is_invalid(response: &HttpResponse, field: &str) -> bool {
    let Ok(body) = json(response) else {
        return false;
    };
    let errors = body["errors"].as_array();
    errors.into_iter().flatten().any(|error| {
        text_at(error, "field") == Some(field) && text_at(error, "code") == Some("invalid")
    })
}
