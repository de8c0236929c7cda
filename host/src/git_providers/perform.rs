//! Owns how an operation is carried out: a step, a request, its answer, and the next step.
//!
//! What always holds: an operation makes a few requests and takes a bounded time, a list comes to its end,
//! and what comes out is fit to be shown: an address is one of the web, texts are plain and short. Whatever
//! an integration does, no other operation is harmed.

use std::collections::HashSet;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::Site;
use crate::egress::Blanker;
use crate::plugins::git_types::{
    Account, Change, NewChange, Next, Operation, Page, Reply, Repository, RepositoryPage,
};
use crate::plugins::text::clean;
use crate::plugins::types::{Error, ErrorKind};

/// How long one operation may take.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// How long a list may take, with all its pages.
const LONGEST_LIST: Duration = Duration::from_secs(120);
/// How many requests one operation may make; an honest one makes four.
const MOST_REQUESTS: usize = 8;
/// What may be known between two of them, in bytes.
const LARGEST_STATE: usize = 64 << 10;
/// What is asked for at once.
const PAGE: u32 = 100;
/// How many pages a list may have, and how many repositories a page.
const MOST_PAGES: usize = 200;
const LARGEST_PAGE: usize = 1_000;

pub(super) async fn account(site: &Site, token: &SecretString) -> Result<Account, Error> {
    match operation(site, token, &Operation::CurrentUser).await? {
        Reply::Account(account) => fit_account(account),
        _ => Err(other_reply(site)),
    }
}

pub(super) async fn repositories(
    site: &Site,
    token: &SecretString,
) -> Result<Vec<Repository>, Error> {
    let all = async {
        let (mut all, mut seen, mut cursor) = (Vec::new(), HashSet::new(), None);
        for _ in 0..MOST_PAGES {
            let page = Page {
                cursor: cursor.clone(),
                limit: PAGE,
            };
            let reply = operation(site, token, &Operation::ListRepositories(page)).await?;
            let Reply::Repositories(RepositoryPage { repositories, next }) = reply else {
                return Err(other_reply(site));
            };
            if repositories.len() > LARGEST_PAGE {
                return Err(endless(site));
            }
            for repository in repositories {
                all.push(fit_repository(repository)?);
            }
            match next {
                None => return Ok(all),
                Some(next) if next.len() <= 1_000 && seen.insert(next.clone()) => {
                    cursor = Some(next);
                }
                Some(_) => return Err(endless(site)),
            }
        }
        Err(endless(site))
    };
    tokio::time::timeout(LONGEST_LIST, all)
        .await
        .unwrap_or_else(|_| Err(too_slow(site, LONGEST_LIST)))
}

pub(super) async fn open_change(
    site: &Site,
    token: &SecretString,
    change: NewChange,
) -> Result<Change, Error> {
    match operation(site, token, &Operation::OpenChange(change)).await? {
        Reply::Change(change) => fit_change(change),
        _ => Err(other_reply(site)),
    }
}

async fn operation(
    site: &Site,
    token: &SecretString,
    operation: &Operation,
) -> Result<Reply, Error> {
    let Ok(_slot) = site.slots.acquire().await else {
        return Err(fault(ErrorKind::Internal, "The server goes down."));
    };
    let blanker = Blanker::new(Some(token));
    let done = tokio::time::timeout(LONGEST, steps(site, token, operation)).await;
    let mut done = done.unwrap_or_else(|_| Err(too_slow(site, LONGEST)));
    if let Err(error) = &mut done {
        error.message = blanker.text(&error.message).into_owned();
        error.code = error
            .code
            .take()
            .map(|code| blanker.text(&code).into_owned());
    }
    done
}

async fn steps(site: &Site, token: &SecretString, operation: &Operation) -> Result<Reply, Error> {
    let (plugin, settings) = (&site.served.plugin, &site.served.settings);
    let (mut state, mut answer) = (None, None);
    // The last step has nothing more to send.
    for _ in 0..=MOST_REQUESTS {
        let next = plugin.step(settings, operation, state, answer).await;
        match next.result? {
            Next::Done(reply) => return Ok(reply),
            Next::Send(sending) => {
                if sending.state.len() > LARGEST_STATE {
                    return Err(fault(
                        ErrorKind::Internal,
                        "The git provider's integration wants to remember too much; report it to its author.",
                    ));
                }
                let sent = site
                    .egress
                    .exchange(&site.place.api, Some(token), &sending.request);
                (state, answer) = (Some(sending.state), Some(sent.await?));
            }
        }
    }
    Err(endless(site))
}

fn fit_account(mut account: Account) -> Result<Account, Error> {
    account.login = clean(account.login.trim(), 255);
    if account.login.is_empty() {
        return Err(fault(
            ErrorKind::Upstream,
            "The git provider does not say whose token it is.",
        ));
    }
    account.scopes.truncate(50);
    for scope in &mut account.scopes {
        *scope = clean(scope, 100).replace(['|', ','], " ");
    }
    Ok(account)
}

fn fit_repository(repository: Repository) -> Result<Repository, Error> {
    Ok(Repository {
        id: clean(&repository.id, 100),
        name: clean(&repository.name, 255),
        full_name: clean(&repository.full_name, 500),
        web_url: web_address(&repository.web_url)?,
        clone_url: web_address(&repository.clone_url)?,
        default_branch: clean(&repository.default_branch, 255),
        private: repository.private,
        description: repository.description.map(|text| clean(&text, 1_000)),
    })
}

fn fit_change(mut change: Change) -> Result<Change, Error> {
    change.web_url = web_address(&change.web_url)?;
    change.title = clean(&change.title, 500);
    change.state = clean(&change.state, 50);
    change.head = clean(&change.head, 255);
    change.base = clean(&change.base, 255);
    Ok(change)
}

/// What a browser opens as a page: nothing with a script or a credential in it.
fn web_address(text: &str) -> Result<String, Error> {
    let url = Url::parse(text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && text.len() <= 2_000
    });
    url.map(String::from).ok_or_else(|| {
        fault(
            ErrorKind::Upstream,
            "The git provider gave an address that is none of the web.",
        )
    })
}

fn other_reply(site: &Site) -> Error {
    fault(
        ErrorKind::Internal,
        format!(
            "The integration `{}` answered something else than it was asked; report it to its author.",
            site.provider()
        ),
    )
}

fn endless(site: &Site) -> Error {
    fault(
        ErrorKind::Upstream,
        format!("{} does not come to an end with its answer.", site.host()),
    )
}

fn too_slow(site: &Site, limit: Duration) -> Error {
    fault(
        ErrorKind::Deadline,
        format!(
            "{} did not answer in full within {} s.",
            site.host(),
            limit.as_secs()
        ),
    )
}

fn fault(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error {
        kind,
        code: None,
        message: message.into(),
        retry_after_ms: None,
    }
}
