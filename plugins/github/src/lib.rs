//! The git provider plugin for GitHub's REST API, including GitHub Enterprise.
//!
//! # Invariants
//!
//! - A request carries no credential and no host, since both are the deployment's.
//! - A refusal is classified by its message before its status, since GitHub uses one status for
//!   many things.

mod refusal;

use lucid_plugin::git::{
    Account, Answered, Change, Descriptor, KeyPlace, NO_SETTINGS, NewChange, NextStep, Operation,
    Page, Provider, Reply, Repository, RepositoryPage, get, header, id, is_success, json,
    next_in_link, page_number, path_part, post, required, text_at,
};
use lucid_plugin::types::{Error, ErrorKind, Header, HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The API version that requests name.
const VERSION: &str = "2022-11-28";
/// GitHub's maximum page size.
const LONGEST_PAGE: u32 = 100;
/// The branch of a repository that names none, such as an empty one.
const DEFAULT_BRANCH: &str = "main";

/// The plugin.
pub struct GitHub;

/// The request that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// The only request of an operation.
    It,
    /// The query for the repository's default branch.
    Repository,
    /// The request that opens the pull request to this branch.
    Open(String),
    /// The search for an existing pull request to this branch.
    Existing(String),
}

impl Provider for GitHub {
    type State = Asked;

    fn describe() -> Descriptor {
        Descriptor {
            name: "github".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "GitHub and GitHub Enterprise: repositories and pull requests.".into(),
            default_base_url: "https://api.github.com".into(),
            default_web_url: "https://github.com".into(),
            api_path: "/api/v3".into(),
            key: KeyPlace::Bearer,
            git_user: "x-access-token".into(),
            scopes: vec!["repo".into()],
            settings_schema: Some(NO_SETTINGS.into()),
        }
    }

    fn step(
        _: &str,
        operation: &Operation,
        answered: Option<Answered<Asked>>,
    ) -> Result<NextStep<Asked>, Error> {
        match (operation, answered) {
            (Operation::CurrentUser, None) => Ok(ask(get("/user", &[]))),
            (Operation::CurrentUser, Some(answered)) => account(&answered.response),
            (Operation::ListRepositories(page), None) => Ok(ask(list(page)?)),
            (Operation::ListRepositories(_), Some(answered)) => repositories(&answered.response),
            (Operation::OpenChange(change), answered) => open(change, answered),
        }
    }
}

/// Adds GitHub's headers to a request.
fn ask(request: HttpRequest) -> NextStep<Asked> {
    send(request, Asked::It)
}

fn send(mut request: HttpRequest, asked: Asked) -> NextStep<Asked> {
    for header in &mut request.headers {
        if header.name == "accept" {
            header.value = "application/vnd.github+json".into();
        }
    }
    request.headers.push(Header {
        name: "x-github-api-version".into(),
        value: VERSION.into(),
    });
    NextStep::Send(request, asked)
}

fn account(response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let user = success(response)?;
    let scopes = header(&response.headers, "x-oauth-scopes").unwrap_or_default();
    let scopes = scopes.split(',').map(str::trim).filter(|s| !s.is_empty());
    Ok(NextStep::Done(Reply::Account(Account {
        id: id(&user)?,
        login: required(&user, "login")?.into(),
        name: text_at(&user, "name").map(str::to_owned),
        email: text_at(&user, "email").map(str::to_owned),
        scopes: scopes.map(str::to_owned).collect(),
    })))
}

/// Lists all repositories that the user can push to or was invited to, which is what people expect
/// in a list of theirs.
fn list(page: &Page) -> Result<HttpRequest, Error> {
    let number = page_number(page)?.to_string();
    let limit = page.limit.clamp(1, LONGEST_PAGE).to_string();
    Ok(get(
        "/user/repos",
        &[
            ("affiliation", "owner,collaborator,organization_member"),
            ("sort", "pushed"),
            ("per_page", &limit),
            ("page", &number),
        ],
    ))
}

fn repositories(response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let answer = success(response)?;
    let all = answer
        .as_array()
        .ok_or_else(|| Error::upstream("GitHub's list of repositories is none."))?;
    let repository = |value: &Value| {
        let web_url = required(value, "html_url")?.to_owned();
        Ok(Repository {
            id: id(value)?,
            name: required(value, "name")?.into(),
            full_name: required(value, "full_name")?.into(),
            clone_url: text_at(value, "clone_url")
                .map_or_else(|| format!("{web_url}.git"), str::to_owned),
            web_url,
            default_branch: text_at(value, "default_branch")
                .unwrap_or(DEFAULT_BRANCH)
                .into(),
            private: value["private"].as_bool().unwrap_or(true),
            description: text_at(value, "description").map(str::to_owned),
        })
    };
    Ok(NextStep::Done(Reply::Repositories(RepositoryPage {
        repositories: all.iter().map(repository).collect::<Result<_, Error>>()?,
        next: next_in_link(&response.headers, "page"),
    })))
}

/// `/repos/OWNER/NAME`.
fn repository(change: &NewChange) -> Result<(String, &str), Error> {
    let path = change.repository.trim_matches('/');
    let (owner, name) = path
        .split_once('/')
        .filter(|(owner, name)| {
            let fits = |part: &str| !matches!(part, "" | "." | "..");
            fits(owner) && fits(name) && !name.contains('/')
        })
        .ok_or_else(|| {
            Error::invalid(format!(
                "`{path}` is no repository of GitHub's: it is called OWNER/NAME."
            ))
        })?;
    Ok((
        format!("/repos/{}/{}", path_part(owner), path_part(name)),
        owner,
    ))
}

fn open(change: &NewChange, answered: Option<Answered<Asked>>) -> Result<NextStep<Asked>, Error> {
    let (path, owner) = repository(change)?;
    let pull = |base: &str| {
        let body = json!({
            "title": change.title,
            "body": change.body,
            "head": change.head,
            "base": base,
            "draft": change.draft,
        });
        send(
            post(format!("{path}/pulls"), &body),
            Asked::Open(base.into()),
        )
    };
    let Some(Answered { state, response }) = answered else {
        return Ok(match &change.base {
            Some(base) => pull(base),
            None => send(get(path, &[]), Asked::Repository),
        });
    };
    match state {
        Asked::It | Asked::Repository if is_success(&response) => {
            let repository = json(&response)?;
            Ok(pull(
                text_at(&repository, "default_branch").unwrap_or(DEFAULT_BRANCH),
            ))
        }
        Asked::It | Asked::Repository => Err(refusal::of_change(change, "", &response)),
        Asked::Open(_) if is_success(&response) => done(&json(&response)?, false),
        Asked::Open(base) if refusal::says_exists(&response) => {
            let request = get(
                format!("{path}/pulls"),
                &[
                    ("state", "open"),
                    ("head", &format!("{owner}:{}", change.head)),
                    ("base", &base),
                    ("per_page", "1"),
                ],
            );
            Ok(send(request, Asked::Existing(base)))
        }
        Asked::Open(base) => Err(refusal::of_change(change, &base, &response)),
        Asked::Existing(_) => existing(change, &response),
    }
}

fn existing(change: &NewChange, response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let found = success(response)?;
    match found.as_array().and_then(|all| all.first()) {
        Some(found) => done(found, true),
        None => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "GitHub says that there is a pull request of `{}` already, and does not show it.",
                change.head
            ),
        )),
    }
}

fn done(value: &Value, existed: bool) -> Result<NextStep<Asked>, Error> {
    let number = value["number"].as_u64();
    Ok(NextStep::Done(Reply::Change(Change {
        number: number.ok_or_else(|| Error::upstream("GitHub's answer has no `number`."))?,
        title: required(value, "title")?.into(),
        web_url: required(value, "html_url")?.into(),
        state: required(value, "state")?.into(),
        head: required(&value["head"], "ref")?.into(),
        base: required(&value["base"], "ref")?.into(),
        existed,
    })))
}

fn success(response: &HttpResponse) -> Result<Value, Error> {
    if is_success(response) {
        json(response)
    } else {
        Err(refusal::of(response))
    }
}

lucid_plugin::export_git!(GitHub);
