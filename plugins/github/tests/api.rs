//! GitHub's responses, in their real formats, and the result of each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use lucid_github::GitHub;
use lucid_plugin::git::{Change, NewChange, Operation, Page, Provider, Reply};
use lucid_plugin::testing::Exchange;
use lucid_plugin::types::{Error, ErrorKind};
use serde_json::json;

type Asked = Exchange<GitHub>;
/// Status, headers, body, and what comes of it.
type Case = (
    u16,
    &'static [(&'static str, &'static str)],
    String,
    ErrorKind,
    &'static str,
);

fn change() -> NewChange {
    NewChange {
        repository: "team/project".into(),
        title: "Fix the sum".into(),
        body: "It was wrong.".into(),
        head: "lucid/fix".into(),
        base: Some("main".into()),
        draft: true,
    }
}

fn opening() -> Asked {
    Asked::begin(Operation::OpenChange(change()))
}

fn refused(exchange: Asked) -> Error {
    exchange.ended().unwrap_err()
}

const PULL: &str = r#"{"id": 1, "number": 1347, "state": "open", "title": "Fix the sum",
    "url": "https://api.github.com/repos/team/project/pulls/1347",
    "html_url": "https://github.com/team/project/pull/1347", "draft": true,
    "head": {"label": "team:lucid/fix", "ref": "lucid/fix", "sha": "6dcb09b5"},
    "base": {"label": "team:main", "ref": "main", "sha": "c3d0be41"}}"#;

fn opened(existed: bool) -> Reply {
    Reply::Change(Change {
        number: 1347,
        title: "Fix the sum".into(),
        web_url: "https://github.com/team/project/pull/1347".into(),
        state: "open".into(),
        head: "lucid/fix".into(),
        base: "main".into(),
        existed,
    })
}

#[test]
fn a_token_is_its_users_with_the_scopes_that_github_names() {
    let exchange = Asked::begin(Operation::CurrentUser);
    let asked = exchange.asked();
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/user")
    );
    let own = ["authorization", "cookie", "host", "user-agent"];
    for header in &asked.headers {
        assert!(!own.contains(&header.name.as_str()), "{}", header.name);
    }
    let reply = exchange
        .answers(
            200,
            &[("X-OAuth-Scopes", "repo, read:user")],
            r#"{"login": "octocat", "id": 583231, "name": "The Octocat", "email": null}"#,
        )
        .ended()
        .unwrap();
    let Reply::Account(account) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (account.id.as_str(), account.login.as_str()),
        ("583231", "octocat")
    );
    assert_eq!(
        (account.name.as_deref(), account.email),
        (Some("The Octocat"), None)
    );
    assert_eq!(account.scopes, ["repo", "read:user"]);
}

#[test]
fn a_bad_token_is_unauthenticated_and_is_not_repeated() {
    let error = refused(Asked::begin(Operation::CurrentUser).answers(
        401,
        &[],
        r#"{"message": "Bad credentials ghp_abc", "documentation_url": "https://docs.github.com/rest", "status": "401"}"#,
    ));
    assert_eq!(error.kind, ErrorKind::Unauthenticated);
    assert!(!error.message.contains("ghp_abc"), "{}", error.message);
}

#[test]
fn repositories_come_page_by_page_with_all_that_the_user_belongs_to() {
    let page = |cursor: Option<&str>| {
        Asked::begin(Operation::ListRepositories(Page {
            cursor: cursor.map(str::to_owned),
            limit: 1000,
        }))
    };
    let first = page(None);
    assert_eq!(first.asked().path, "/user/repos");
    assert_eq!(
        first.query("affiliation"),
        Some("owner,collaborator,organization_member")
    );
    assert_eq!(
        (first.query("per_page"), first.query("page")),
        (Some("100"), Some("1"))
    );
    let body = json!([
        {"id": 1, "name": "project", "full_name": "team/project", "private": true,
         "html_url": "https://github.com/team/project", "description": "A thing.",
         "clone_url": "https://github.com/team/project.git", "default_branch": "trunk"},
        {"id": 2, "name": "empty", "full_name": "team/empty", "private": false,
         "html_url": "https://github.com/team/empty", "description": null, "default_branch": null},
    ]);
    let link = "<https://api.github.com/user/repos?affiliation=owner&page=2&per_page=100>; rel=\"next\", <https://api.github.com/user/repos?page=9>; rel=\"last\"";
    let reply = first
        .answers(200, &[("link", link)], &body.to_string())
        .ended()
        .unwrap();
    let Reply::Repositories(found) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(found.next.as_deref(), Some("2"));
    let [full, empty] = found.repositories.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (full.full_name.as_str(), full.default_branch.as_str()),
        ("team/project", "trunk")
    );
    assert!(full.private && !empty.private);
    assert_eq!(
        empty.default_branch, "main",
        "an empty repository has no branch"
    );
    assert_eq!(empty.clone_url, "https://github.com/team/empty.git");

    let second = page(found.next.as_deref());
    assert_eq!(second.query("page"), Some("2"));
    let last = "<https://api.github.com/user/repos?page=1>; rel=\"prev\"";
    let reply = second
        .answers(200, &[("Link", last)], "[]")
        .ended()
        .unwrap();
    assert_eq!(
        reply,
        Reply::Repositories(lucid_plugin::git::RepositoryPage {
            repositories: Vec::new(),
            next: None
        })
    );
    for cursor in ["0", "-1", "two", "2&page=3"] {
        assert_eq!(
            refused(page(Some(cursor))).kind,
            ErrorKind::InvalidInput,
            "{cursor}"
        );
    }
}

#[test]
fn a_pull_request_is_opened_as_it_was_asked_for() {
    let exchange = opening();
    assert_eq!(exchange.asked().method, "POST");
    assert_eq!(exchange.asked().path, "/repos/team/project/pulls");
    assert_eq!(
        exchange.body(),
        json!({"title": "Fix the sum", "body": "It was wrong.", "head": "lucid/fix", "base": "main", "draft": true})
    );
    assert_eq!(
        exchange.answers(201, &[], PULL).ended().unwrap(),
        opened(false)
    );
}

#[test]
fn one_that_is_there_already_is_found_and_given() {
    let exists = json!({"message": "Validation Failed", "errors": [{"resource": "PullRequest", "code": "custom",
        "message": "A pull request already exists for team:lucid/fix."}], "status": "422"});
    let exchange = opening().answers(422, &[], &exists.to_string());
    assert_eq!(exchange.asked().method, "GET");
    assert_eq!(exchange.query("head"), Some("team:lucid/fix"));
    assert_eq!(
        (exchange.query("base"), exchange.query("state")),
        (Some("main"), Some("open"))
    );
    assert_eq!(
        exchange
            .answers(200, &[], &format!("[{PULL}]"))
            .ended()
            .unwrap(),
        opened(true)
    );
    let hidden = opening()
        .answers(422, &[], &exists.to_string())
        .answers(200, &[], "[]");
    assert_eq!(refused(hidden).kind, ErrorKind::Conflict);
}

#[test]
fn without_a_base_it_goes_to_the_repositorys_own_default_branch() {
    let change = NewChange {
        base: None,
        ..change()
    };
    let exchange = Asked::begin(Operation::OpenChange(change.clone()));
    assert_eq!(exchange.asked().method, "GET");
    assert_eq!(exchange.asked().path, "/repos/team/project");
    let exchange = exchange.answers(200, &[], r#"{"id": 1, "default_branch": "trunk"}"#);
    assert_eq!(exchange.body()["base"], "trunk");
    assert_eq!(
        exchange.answers(201, &[], PULL).ended().unwrap(),
        opened(false)
    );
    let empty = Asked::begin(Operation::OpenChange(change.clone())).answers(200, &[], "{}");
    assert_eq!(empty.body()["base"], "main");
    let hidden = Asked::begin(Operation::OpenChange(change)).answers(404, &[], "{}");
    assert!(
        refused(hidden)
            .message
            .contains("no repository `team/project`")
    );
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let validation = |errors: serde_json::Value| {
        json!({"message": "Validation Failed", "errors": errors, "status": "422"}).to_string()
    };
    let field = |name: &str| {
        validation(json!([{"resource": "PullRequest", "field": name, "code": "invalid"}]))
    };
    let said = |message: &str| {
        json!({"message": message, "documentation_url": "https://docs.github.com/x"}).to_string()
    };
    let cases: Vec<Case> = vec![
        (
            422,
            &[],
            field("head"),
            ErrorKind::NotFound,
            "has no branch `lucid/fix`",
        ),
        (
            422,
            &[],
            field("base"),
            ErrorKind::NotFound,
            "has no branch `main`",
        ),
        (
            422,
            &[],
            validation(
                json!([{"resource": "PullRequest", "code": "custom", "message": "No commits between main and lucid/fix"}]),
            ),
            ErrorKind::InvalidInput,
            "has nothing that `main` does not have",
        ),
        (
            422,
            &[],
            said("Draft pull requests are not supported in this repository."),
            ErrorKind::Unsupported,
            "takes no draft",
        ),
        (
            403,
            &[],
            said("Resource not accessible by personal access token"),
            ErrorKind::Forbidden,
            "needs the scope `repo`",
        ),
        (
            403,
            &[(
                "X-GitHub-SSO",
                "required; url=https://github.com/orgs/team/sso",
            )],
            said("Resource protected by organization SAML enforcement."),
            ErrorKind::Forbidden,
            "single sign-on",
        ),
        (
            403,
            &[("Retry-After", "60")],
            said(
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
            ),
            ErrorKind::RateLimited,
            "too often",
        ),
        (
            403,
            &[
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1372700873"),
            ],
            said("API rate limit exceeded for user ID 1."),
            ErrorKind::RateLimited,
            "too often",
        ),
        (
            429,
            &[("retry-after", "60")],
            said("Slow down."),
            ErrorKind::RateLimited,
            "too often",
        ),
        (
            404,
            &[],
            said("Not Found"),
            ErrorKind::NotFound,
            "no repository `team/project`",
        ),
        (
            401,
            &[],
            said("Bad credentials"),
            ErrorKind::Unauthenticated,
            "does not accept the token",
        ),
        (
            500,
            &[],
            "<html>Unicorn!</html>".into(),
            ErrorKind::Upstream,
            "HTTP 500",
        ),
        (503, &[], String::new(), ErrorKind::Overloaded, "busy"),
        (201, &[], "<html>".into(), ErrorKind::Upstream, "not JSON"),
        (201, &[], "{}".into(), ErrorKind::Upstream, "no `number`"),
    ];
    for (status, headers, body, kind, words) in cases {
        let error = refused(opening().answers(status, headers, &body));
        assert_eq!(error.kind, kind, "{status} {body}");
        assert!(
            error.message.contains(words),
            "{status} {body}: {}",
            error.message
        );
        let waits = headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("retry-after"));
        assert_eq!(
            error.retry_after_ms,
            waits.then_some(60_000),
            "{status} {body}"
        );
    }
}

#[test]
fn a_repository_that_is_none_is_not_asked_for() {
    for repository in ["", "team", "team/", "/project", "a/b/c", "../..", "a/.."] {
        let change = NewChange {
            repository: repository.into(),
            ..change()
        };
        let error = refused(Asked::begin(Operation::OpenChange(change)));
        assert_eq!(error.kind, ErrorKind::InvalidInput, "{repository}");
    }
    let odd = NewChange {
        repository: "te am/pro?ject".into(),
        ..change()
    };
    let exchange = Asked::begin(Operation::OpenChange(odd));
    assert_eq!(exchange.asked().path, "/repos/te%20am/pro%3Fject/pulls");
}

#[test]
fn its_descriptor_fits_github_and_an_enterprise_server() {
    let said = GitHub::describe();
    assert_eq!(
        (said.default_base_url.as_str(), said.api_path.as_str()),
        ("https://api.github.com", "/api/v3")
    );
    assert_eq!(
        (said.default_web_url.as_str(), said.git_user.as_str()),
        ("https://github.com", "x-access-token")
    );
}
