//! Runs an operation: a step, a request, its response, and the next step.
//!
//! # Invariants
//!
//! - An operation makes a bounded number of requests in a bounded time, and a list terminates.
//! - The result is fit for display: an address is an http(s) URL, texts are plain and short.
//! - Whatever a plugin does, no other operation is affected.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use url::Url;

use super::GitInstance;
use lucid_net::egress::{EgressError, Redactor, retry_after_ms};
use lucid_types::sanitize::sanitize;
use lucid_types::secret::Secret;
use lucid_types::wit::git::{
    Account, Change, NewChange, Next, Operation, Page, Reply, Repository, RepositoryPage,
};
use lucid_types::wit::types::{Error, ErrorKind, HttpRequest, HttpResponse};

/// The time limit of one operation.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// The time limit of a list, with all its pages.
const LONGEST_LIST: Duration = Duration::from_secs(120);
/// The longest pause granted to a provider, and the total for one operation. A longer wait is left
/// to the caller.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const ALL_PAUSES: Duration = Duration::from_secs(20);
/// The maximum number of times one request is sent.
const MOST_TRIES: usize = 4;
/// The maximum number of requests in one operation. An honest plugin makes four.
const MOST_REQUESTS: usize = 8;
/// The maximum size of the state between two requests, in bytes.
const LARGEST_STATE: usize = 64 << 10;
/// The page size of a list.
const PAGE: u32 = 100;
/// The maximum number of pages in a list, and of repositories in a page.
const MOST_PAGES: usize = 200;
const LARGEST_PAGE: usize = 1_000;

pub(super) async fn account(instance: &GitInstance, token: &Secret) -> Result<Account, Error> {
    match operation(instance, token, &Operation::CurrentUser).await? {
        Reply::Account(account) => fit_account(account),
        _ => Err(other_reply(instance)),
    }
}

pub(super) async fn repositories(
    instance: &GitInstance,
    token: &Secret,
) -> Result<Vec<Repository>, Error> {
    let all = async {
        let (mut all, mut seen, mut cursor) = (Vec::new(), HashSet::new(), None);
        for _ in 0..MOST_PAGES {
            let page = Page {
                cursor: cursor.clone(),
                limit: PAGE,
            };
            let reply = operation(instance, token, &Operation::ListRepositories(page)).await?;
            let Reply::Repositories(RepositoryPage { repositories, next }) = reply else {
                return Err(other_reply(instance));
            };
            if repositories.len() > LARGEST_PAGE {
                return Err(too_many_steps(instance));
            }
            for repository in repositories {
                all.push(fit_repository(repository)?);
            }
            match next {
                None => return Ok(all),
                Some(next) if next.len() <= 1_000 && seen.insert(next.clone()) => {
                    cursor = Some(next);
                }
                Some(_) => return Err(too_many_steps(instance)),
            }
        }
        Err(too_many_steps(instance))
    };
    tokio::time::timeout(LONGEST_LIST, all)
        .await
        .unwrap_or_else(|_| Err(timeout_error(instance, LONGEST_LIST)))
}

pub(super) async fn open_change(
    instance: &GitInstance,
    token: &Secret,
    change: NewChange,
) -> Result<Change, Error> {
    match operation(instance, token, &Operation::OpenChange(change)).await? {
        Reply::Change(change) => fit_change(change),
        _ => Err(other_reply(instance)),
    }
}

async fn operation(
    instance: &GitInstance,
    token: &Secret,
    operation: &Operation,
) -> Result<Reply, Error> {
    let Ok(_slot) = instance.slots.acquire().await else {
        return Err(Error::internal("The server goes down."));
    };
    let redactor = Redactor::new(Some(token));
    let done = tokio::time::timeout(LONGEST, steps(instance, token, operation)).await;
    let mut done = done.unwrap_or_else(|_| Err(timeout_error(instance, LONGEST)));
    if let Err(error) = &mut done {
        error.message = redactor.text(&error.message).into_owned();
        error.code = error
            .code
            .take()
            .map(|code| redactor.text(&code).into_owned());
    }
    done
}

async fn steps(
    instance: &GitInstance,
    token: &Secret,
    operation: &Operation,
) -> Result<Reply, Error> {
    let (plugin, settings) = (&instance.provider.plugin, &instance.provider.settings);
    let (mut state, mut answer) = (None, None);
    let mut pauses_left = ALL_PAUSES;
    // The last step has no request to send.
    for _ in 0..=MOST_REQUESTS {
        let next = plugin.step(settings, operation, state, answer).await;
        match next.result? {
            Next::Done(reply) => return Ok(reply),
            Next::Send(sending) => {
                if sending.state.len() > LARGEST_STATE {
                    return Err(Error::internal(
                        "The git provider's integration wants to remember too much; report it to its author.",
                    ));
                }
                let sent = exchange(instance, token, &sending.request, &mut pauses_left);
                (state, answer) = (Some(sending.state), Some(sent.await?));
            }
        }
    }
    Err(too_many_steps(instance))
}

/// Sends a request, and repeats it if the provider asks for a short pause first.
async fn exchange(
    instance: &GitInstance,
    token: &Secret,
    request: &HttpRequest,
    pauses_left: &mut Duration,
) -> Result<HttpResponse, EgressError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let sent = instance
            .egress
            .exchange(&instance.endpoint.api, Some(token), request);
        let response = sent.await?;
        let pause = pause(&request.method, &response, SystemTime::now());
        let Some(pause) = pause.filter(|pause| pause <= pauses_left && tries < MOST_TRIES) else {
            return Ok(response);
        };
        *pauses_left -= pause;
        tracing::info!(
            host = instance.host(),
            status = response.status,
            pause_ms = pause.as_millis(),
            "the git provider asks for a pause"
        );
        tokio::time::sleep(pause).await;
    }
}

/// The pause before the same request is repeated. `None` if its response is final. A rate-limited
/// request changed nothing, whatever its method. After a server error that is certain only for a
/// request that reads.
fn pause(method: &str, response: &HttpResponse, now: SystemTime) -> Option<Duration> {
    let again = match response.status {
        // GitHub responds with 403 for 429.
        403 | 429 => true,
        502..=504 => method == "GET",
        _ => false,
    };
    let wanted = retry_after_ms(&response.headers, now).filter(|_| again)?;
    let pause = Duration::from_millis(wanted);
    // Without a minimum, requests would be repeated as fast as the network allows.
    (pause <= LONGEST_PAUSE).then(|| pause.max(Duration::from_millis(100)))
}

fn fit_account(mut account: Account) -> Result<Account, Error> {
    account.login = sanitize(account.login.trim(), 255);
    if account.login.is_empty() {
        return Err(Error::upstream(
            "The git provider does not say whose token it is.",
        ));
    }
    account.scopes.truncate(50);
    for scope in &mut account.scopes {
        *scope = sanitize(scope, 100).replace(['|', ','], " ");
    }
    Ok(account)
}

fn fit_repository(repository: Repository) -> Result<Repository, Error> {
    Ok(Repository {
        id: sanitize(&repository.id, 100),
        name: sanitize(&repository.name, 255),
        full_name: sanitize(&repository.full_name, 500),
        web_url: web_address(&repository.web_url)?,
        clone_url: web_address(&repository.clone_url)?,
        default_branch: sanitize(&repository.default_branch, 255),
        private: repository.private,
        description: repository.description.map(|text| sanitize(&text, 1_000)),
    })
}

fn fit_change(mut change: Change) -> Result<Change, Error> {
    change.web_url = web_address(&change.web_url)?;
    change.title = sanitize(&change.title, 500);
    change.state = sanitize(&change.state, 50);
    change.head = sanitize(&change.head, 255);
    change.base = sanitize(&change.base, 255);
    Ok(change)
}

/// Validates an address that a browser opens as a page: no script and no credential in it.
fn web_address(text: &str) -> Result<String, Error> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && text.len() <= 2_000
    });
    url.map(String::from)
        .ok_or_else(|| Error::upstream("The git provider gave an address that is none of the web."))
}

fn other_reply(instance: &GitInstance) -> Error {
    Error::internal(format!(
        "The integration `{}` answered something else than it was asked; report it to its author.",
        instance.provider()
    ))
}

fn too_many_steps(instance: &GitInstance) -> Error {
    Error::upstream(format!(
        "{} does not come to an end with its answer.",
        instance.host()
    ))
}

fn timeout_error(instance: &GitInstance, limit: Duration) -> Error {
    Error::new(
        ErrorKind::Deadline,
        format!(
            "{} did not answer in full within {} s.",
            instance.host(),
            limit.as_secs()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::wit::types::Header;

    #[test]
    fn a_short_pause_is_waited_for_and_a_long_one_is_not() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let asked = |method: &str, status: u16, after: Option<&str>| {
            let headers = after.map(|value| Header {
                name: "retry-after".to_owned(),
                value: value.to_owned(),
            });
            let response = HttpResponse {
                status,
                headers: headers.into_iter().collect(),
                body: Vec::new(),
            };
            pause(method, &response, now).map(|pause| pause.as_millis())
        };
        for (method, status, after, waits) in [
            ("GET", 403, Some("2"), Some(2_000)),
            ("POST", 403, Some("10"), Some(10_000)),
            (
                "POST",
                429,
                Some("Wed, 21 Oct 2026 07:28:03 GMT"),
                Some(3_000),
            ),
            ("GET", 503, Some("1"), Some(1_000)),
            ("GET", 429, Some("0"), Some(100)),
            ("GET", 429, Some("11"), None),
            ("GET", 403, None, None),
            ("POST", 503, Some("1"), None),
            ("GET", 404, Some("1"), None),
            ("GET", 200, Some("1"), None),
        ] {
            assert_eq!(
                asked(method, status, after),
                waits,
                "{method} {status} {after:?}"
            );
        }
    }
}
