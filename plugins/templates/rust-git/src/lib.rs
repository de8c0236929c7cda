//! A git provider plugin: identifies a token's user, lists repositories, opens a pull request.
//!
//! It sends nothing itself. An operation is a chain of requests: `step` returns the next one, the
//! host sends it with the user's token, and calls again with the response. A request has a path but
//! no host and no token. This one speaks a small API: replace it with your provider's own paths and
//! fields.

use lucid_plugin::git::{
    Account, Answered, Change, Descriptor, KeyPlace, NO_SETTINGS, NewChange, NextStep, Operation,
    Page, Provider, Reply, Repository, RepositoryPage, get, id, is_success, json, page_number,
    path_part, post, refusal, required, said, text_at,
};
use lucid_plugin::types::{Error, ErrorKind, HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The plugin.
pub struct MyAgent;

/// The request that was sent, which comes back with the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// The first request of an operation.
    First,
    /// The search for an existing pull request.
    Existing,
}

impl Provider for MyAgent {
    type State = Asked;

    fn describe() -> Descriptor {
        Descriptor {
            name: "my-agent".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "Repositories and changes of Example.".into(),
            default_base_url: "https://git.example.org/api/v1".into(),
            default_web_url: "https://git.example.org".into(),
            // On a self-hosted server, the API is at this path below its web address.
            api_path: "/api/v1".into(),
            key: KeyPlace::Bearer,
            git_user: "token".into(),
            scopes: vec!["write:repository".into()],
            settings_schema: Some(NO_SETTINGS.into()),
        }
    }

    fn step(
        _: &str,
        operation: &Operation,
        answered: Option<Answered<Asked>>,
    ) -> Result<NextStep<Asked>, Error> {
        let first = |request: HttpRequest| Ok(NextStep::Send(request, Asked::First));
        match (operation, answered) {
            (Operation::CurrentUser, None) => first(get("/user", &[])),
            (Operation::CurrentUser, Some(answered)) => account(&answered.response),
            (Operation::ListRepositories(page), None) => first(list(page)?),
            (Operation::ListRepositories(page), Some(answered)) => {
                repositories(page, &answered.response)
            }
            (Operation::OpenChange(change), None) => first(open(change)?),
            (Operation::OpenChange(change), Some(answered)) => opened(change, &answered),
        }
    }
}

/// The JSON of a successful response.
fn success(response: &HttpResponse) -> Result<Value, Error> {
    if is_success(response) {
        json(response)
    } else {
        Err(refusal("Example", response))
    }
}

fn account(response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let user = success(response)?;
    Ok(NextStep::Done(Reply::Account(Account {
        id: id(&user)?,
        login: required(&user, "login")?.into(),
        name: text_at(&user, "full_name").map(str::to_owned),
        email: text_at(&user, "email").map(str::to_owned),
        scopes: Vec::new(),
    })))
}

fn list(page: &Page) -> Result<HttpRequest, Error> {
    let (number, limit) = (page_number(page)?.to_string(), page.limit.clamp(1, 50));
    let query = [("page", number.as_str()), ("limit", &limit.to_string())];
    Ok(get("/user/repos", &query))
}

fn repositories(page: &Page, response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let answer = success(response)?;
    let all = answer
        .as_array()
        .ok_or_else(|| Error::upstream("The list of repositories is none."))?;
    let repository = |value: &Value| {
        let web_url = required(value, "html_url")?.to_owned();
        Ok(Repository {
            id: id(value)?,
            name: required(value, "name")?.into(),
            full_name: required(value, "full_name")?.into(),
            clone_url: text_at(value, "clone_url")
                .map_or_else(|| format!("{web_url}.git"), str::to_owned),
            web_url,
            default_branch: text_at(value, "default_branch").unwrap_or("main").into(),
            private: value["private"].as_bool().unwrap_or(true),
            description: text_at(value, "description").map(str::to_owned),
        })
    };
    // This provider does not say whether there is more: a full page is followed by another.
    let full = all.len() >= page.limit.clamp(1, 50) as usize;
    let next = page_number(page)? + 1;
    Ok(NextStep::Done(Reply::Repositories(RepositoryPage {
        repositories: all.iter().map(repository).collect::<Result<_, Error>>()?,
        next: full.then(|| next.to_string()),
    })))
}

/// The path of a repository: `/repos/OWNER/NAME`.
fn path(change: &NewChange) -> Result<String, Error> {
    match change.repository.split('/').collect::<Vec<_>>()[..] {
        [owner, name] if !owner.is_empty() && !name.is_empty() && !owner.starts_with('.') => {
            Ok(format!("/repos/{}/{}", path_part(owner), path_part(name)))
        }
        _ => Err(Error::invalid(format!(
            "`{}` is no repository here: it is called OWNER/NAME.",
            change.repository
        ))),
    }
}

fn open(change: &NewChange) -> Result<HttpRequest, Error> {
    let mut body = json!({
        "title": change.title,
        "body": change.body,
        "head": change.head,
        "draft": change.draft,
    });
    // Without one, this provider uses the repository's default branch.
    if let Some(base) = &change.base {
        body["base"] = base.as_str().into();
    }
    Ok(post(format!("{}/pulls", path(change)?), &body))
}

fn opened(change: &NewChange, answered: &Answered<Asked>) -> Result<NextStep<Asked>, Error> {
    let response = &answered.response;
    match answered.state {
        // If the pull request exists already, it is the result.
        Asked::First if response.status == 409 && said(response).contains("already exists") => {
            let query = [("state", "open"), ("head", change.head.as_str())];
            let request = get(format!("{}/pulls", path(change)?), &query);
            Ok(NextStep::Send(request, Asked::Existing))
        }
        Asked::First => done(&success(response)?, false),
        Asked::Existing => match success(response)?.as_array().and_then(|all| all.first()) {
            Some(found) => done(found, true),
            None => Err(Error::new(
                ErrorKind::Conflict,
                "There is such a change already, and it is not shown.",
            )),
        },
    }
}

fn done(value: &Value, existed: bool) -> Result<NextStep<Asked>, Error> {
    let number = value["number"].as_u64();
    Ok(NextStep::Done(Reply::Change(Change {
        number: number.ok_or_else(|| Error::upstream("The answer has no `number`."))?,
        title: required(value, "title")?.into(),
        web_url: required(value, "html_url")?.into(),
        state: required(value, "state")?.into(),
        head: required(&value["head"], "ref")?.into(),
        base: required(&value["base"], "ref")?.into(),
        existed,
    })))
}

lucid_plugin::export_git!(MyAgent);
