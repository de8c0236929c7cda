//! The git provider plugin for GitLab's REST API, version 4, on any instance.
//!
//! # Invariants
//!
//! - A request carries no credential and no host, since both are the deployment's.
//! - A project is identified by its full path, including nested groups, as one escaped segment.
//! - Branches are looked up before a merge request is opened, since GitLab opens one for a branch
//!   that does not exist.

use lucid_plugin::git::{
    Account, Answered, Change, Descriptor, KeyPlace, NO_SETTINGS, NewChange, NextStep, Operation,
    Page, Provider, Reply, Repository, RepositoryPage, get, header, id, is_success, json,
    next_in_link, page_number, path_part, post, refusal, required, said, text_at,
};
use lucid_plugin::types::{Error, ErrorKind, HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// GitLab's maximum page size.
const LONGEST_PAGE: u32 = 100;
/// The branch of a project that names none, such as an empty one.
const DEFAULT_BRANCH: &str = "main";
/// The title prefix that marks a merge request as a draft.
const DRAFT: &str = "Draft: ";

/// The plugin.
pub struct GitLab;

/// The request that was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// The only request of an operation.
    It,
    /// The lookup of the source branch.
    Head,
    /// The query for the project's default branch.
    Project,
    /// The lookup of the target branch.
    Base(String),
    /// The request that opens the merge request to this branch.
    Open(String),
    /// The search for an existing merge request.
    Existing,
}

impl Provider for GitLab {
    type State = Asked;

    fn describe() -> Descriptor {
        Descriptor {
            name: "gitlab".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "GitLab, wherever it is: projects and merge requests.".into(),
            default_base_url: "https://gitlab.com/api/v4".into(),
            default_web_url: "https://gitlab.com".into(),
            api_path: "/api/v4".into(),
            key: KeyPlace::Bearer,
            git_user: "oauth2".into(),
            scopes: vec!["api".into(), "write_repository".into()],
            settings_schema: Some(NO_SETTINGS.into()),
        }
    }

    fn step(
        _: &str,
        operation: &Operation,
        answered: Option<Answered<Asked>>,
    ) -> Result<NextStep<Asked>, Error> {
        match (operation, answered) {
            (Operation::CurrentUser, None) => Ok(NextStep::Send(get("/user", &[]), Asked::It)),
            (Operation::CurrentUser, Some(answered)) => account(&answered.response),
            (Operation::ListRepositories(page), None) => Ok(NextStep::Send(list(page)?, Asked::It)),
            (Operation::ListRepositories(_), Some(answered)) => repositories(&answered.response),
            (Operation::OpenChange(change), answered) => open(change, answered),
        }
    }
}

fn account(response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let user = success(response)?;
    Ok(NextStep::Done(Reply::Account(Account {
        id: id(&user)?,
        login: required(&user, "username")?.into(),
        name: text_at(&user, "name").map(str::to_owned),
        email: text_at(&user, "email").map(str::to_owned),
        // No endpoint that every token may call returns its scopes.
        scopes: Vec::new(),
    })))
}

/// Lists all projects that the user is a member of, directly or through a group.
fn list(page: &Page) -> Result<HttpRequest, Error> {
    let number = page_number(page)?.to_string();
    let limit = page.limit.clamp(1, LONGEST_PAGE).to_string();
    Ok(get(
        "/projects",
        &[
            ("membership", "true"),
            ("archived", "false"),
            ("order_by", "last_activity_at"),
            ("per_page", &limit),
            ("page", &number),
        ],
    ))
}

fn repositories(response: &HttpResponse) -> Result<NextStep<Asked>, Error> {
    let answer = success(response)?;
    let all = answer
        .as_array()
        .ok_or_else(|| Error::upstream("GitLab's list of projects is none."))?;
    let repository = |value: &Value| {
        let web_url = required(value, "web_url")?.to_owned();
        Ok(Repository {
            id: id(value)?,
            name: text_at(value, "path")
                .map_or_else(|| required(value, "name"), Ok)?
                .into(),
            full_name: required(value, "path_with_namespace")?.into(),
            clone_url: text_at(value, "http_url_to_repo")
                .map_or_else(|| format!("{web_url}.git"), str::to_owned),
            web_url,
            default_branch: text_at(value, "default_branch")
                .unwrap_or(DEFAULT_BRANCH)
                .into(),
            // `internal` projects are visible to all who have an account there, and to nobody else.
            private: text_at(value, "visibility") != Some("public"),
            description: text_at(value, "description").map(str::to_owned),
        })
    };
    // Empty on the last page.
    let number = header(&response.headers, "x-next-page").filter(|next| !next.is_empty());
    Ok(NextStep::Done(Reply::Repositories(RepositoryPage {
        repositories: all.iter().map(repository).collect::<Result<_, Error>>()?,
        next: number
            .map(str::to_owned)
            .or_else(|| next_in_link(&response.headers, "page")),
    })))
}

fn open(change: &NewChange, answered: Option<Answered<Asked>>) -> Result<NextStep<Asked>, Error> {
    let project = project(change)?;
    let branch = |name: &str| {
        get(
            format!("{project}/repository/branches/{}", path_part(name)),
            &[],
        )
    };
    let Some(Answered { state, response }) = answered else {
        return Ok(NextStep::Send(branch(&change.head), Asked::Head));
    };
    let open = |base: String| {
        let request = post(format!("{project}/merge_requests"), &body(change, &base));
        NextStep::Send(request, Asked::Open(base))
    };
    match state {
        Asked::Head => {
            is_there(change, &change.head, &response)?;
            Ok(match &change.base {
                Some(base) => NextStep::Send(branch(base), Asked::Base(base.clone())),
                None => NextStep::Send(get(project, &[]), Asked::Project),
            })
        }
        Asked::Project if is_success(&response) => {
            let project = json(&response)?;
            let base = text_at(&project, "default_branch").unwrap_or(DEFAULT_BRANCH);
            Ok(open(base.into()))
        }
        Asked::Project => Err(refused(change, &response)),
        Asked::Base(base) => {
            is_there(change, &base, &response)?;
            Ok(open(base))
        }
        Asked::Open(_) if is_success(&response) => done(&json(&response)?, false),
        Asked::Open(base) if says_exists(&response) => {
            let request = get(
                format!("{project}/merge_requests"),
                &[
                    ("state", "opened"),
                    ("source_branch", &change.head),
                    ("target_branch", &base),
                    ("per_page", "1"),
                ],
            );
            Ok(NextStep::Send(request, Asked::Existing))
        }
        Asked::Open(_) => Err(refused(change, &response)),
        Asked::It | Asked::Existing => {
            let found = success(&response)?;
            match found.as_array().and_then(|all| all.first()) {
                Some(found) => done(found, true),
                None => Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "GitLab says that there is a merge request of `{}` already, and does not show it.",
                        change.head
                    ),
                )),
            }
        }
    }
}

fn project(change: &NewChange) -> Result<String, Error> {
    let path = change.repository.trim_matches('/');
    if path.is_empty()
        || path.split('/').any(|part| matches!(part, "" | "." | ".."))
        || !path.contains('/')
    {
        return Err(Error::invalid(format!(
            "`{path}` is no project of GitLab's: it is called GROUP/NAME."
        )));
    }
    Ok(format!("/projects/{}", path_part(path)))
}

fn body(change: &NewChange, base: &str) -> Value {
    let drafted = change.title.to_ascii_lowercase().starts_with("draft:");
    let title = if change.draft && !drafted {
        format!("{DRAFT}{}", change.title)
    } else {
        change.title.clone()
    };
    json!({
        "source_branch": change.head,
        "target_branch": base,
        "title": title,
        "description": change.body,
    })
}

fn is_there(change: &NewChange, branch: &str, response: &HttpResponse) -> Result<(), Error> {
    if is_success(response) {
        return Ok(());
    }
    if response.status == 404 && said(response).to_ascii_lowercase().contains("branch") {
        let what = format!("`{}` has no branch `{branch}`.", change.repository);
        let code = if branch == change.head {
            "head"
        } else {
            "base"
        };
        return Err(Error::new(ErrorKind::NotFound, what).with_code(code));
    }
    Err(refused(change, response))
}

fn says_exists(response: &HttpResponse) -> bool {
    matches!(response.status, 409 | 422) && said(response).contains("already exists")
}

/// Classifies a refusal about this merge request's project.
fn refused(change: &NewChange, response: &HttpResponse) -> Error {
    let mut error = of(response);
    match error.kind {
        ErrorKind::NotFound => {
            error.message = format!(
                "GitLab knows no project `{}`, or the token may not see it.",
                change.repository
            );
            error.code = Some("repository".into());
        }
        ErrorKind::Forbidden => {
            error.message = format!(
                "The token may not open merge requests in `{}`: it needs the scope `api`, and its user the role of a developer.",
                change.repository
            );
        }
        _ => {}
    }
    error
}

/// Classifies any refusal.
fn of(response: &HttpResponse) -> Error {
    let mut error = refusal("GitLab", response);
    // `insufficient_scope` is a problem of the token, and has status 401 in some versions.
    if said(response).contains("insufficient_scope") {
        error.kind = ErrorKind::Forbidden;
        error.message = "The token has not the scope that this needs: `api`.".into();
    }
    error
}

fn success(response: &HttpResponse) -> Result<Value, Error> {
    if is_success(response) {
        json(response)
    } else {
        Err(of(response))
    }
}

fn done(value: &Value, existed: bool) -> Result<NextStep<Asked>, Error> {
    let number = value["iid"].as_u64();
    Ok(NextStep::Done(Reply::Change(Change {
        number: number.ok_or_else(|| Error::upstream("GitLab's answer has no `iid`."))?,
        title: required(value, "title")?.into(),
        web_url: required(value, "web_url")?.into(),
        state: required(value, "state")?.into(),
        head: required(value, "source_branch")?.into(),
        base: required(value, "target_branch")?.into(),
        existed,
    })))
}

lucid_plugin::export_git!(GitLab);
