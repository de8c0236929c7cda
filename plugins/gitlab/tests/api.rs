//! GitLab's responses, in their real formats, and the result of each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use lucid_gitlab::GitLab;
use lucid_plugin::git::{Change, NewChange, Operation, Page, Reply};
use lucid_plugin::testing::Exchange;
use lucid_plugin::types::{Error, ErrorKind};
use serde_json::json;

type Asked = Exchange<GitLab>;

fn change() -> NewChange {
    NewChange {
        repository: "group/sub/project".into(),
        title: "Fix the sum".into(),
        body: "It was wrong.".into(),
        head: "lucid/fix".into(),
        base: Some("main".into()),
        draft: false,
    }
}

fn opening(change: NewChange) -> Asked {
    Asked::begin(Operation::OpenChange(change))
}

/// Both branches are there, and the change itself is asked for.
fn asked(change: NewChange) -> Asked {
    opening(change)
        .answers(200, &[], r#"{"name": "lucid/fix"}"#)
        .answers(200, &[], r#"{"name": "main"}"#)
}

fn refused(exchange: Asked) -> Error {
    exchange.ended().unwrap_err()
}

const REQUEST: &str = r#"{"id": 84, "iid": 14, "project_id": 4, "title": "Fix the sum", "state": "opened",
    "web_url": "https://gitlab.example.com/group/sub/project/-/merge_requests/14",
    "source_branch": "lucid/fix", "target_branch": "main"}"#;

fn opened(existed: bool) -> Reply {
    Reply::Change(Change {
        number: 14,
        title: "Fix the sum".into(),
        web_url: "https://gitlab.example.com/group/sub/project/-/merge_requests/14".into(),
        state: "opened".into(),
        head: "lucid/fix".into(),
        base: "main".into(),
        existed,
    })
}

#[test]
fn a_token_is_its_users() {
    let reply = Asked::begin(Operation::CurrentUser)
        .answers(
            200,
            &[],
            r#"{"id": 7, "username": "jsmith", "name": "Jay Smith", "state": "active", "email": "j@example.com"}"#,
        )
        .ended()
        .unwrap();
    let Reply::Account(account) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        (account.id.as_str(), account.login.as_str()),
        ("7", "jsmith")
    );
    assert_eq!(account.email.as_deref(), Some("j@example.com"));
}

#[test]
fn a_refused_token_and_one_that_may_too_little_are_told_apart() {
    let user =
        |status, body| refused(Asked::begin(Operation::CurrentUser).answers(status, &[], body));
    for body in [
        r#"{"message": "401 Unauthorized"}"#,
        r#"{"error": "invalid_token", "error_description": "Token was revoked. You have to re-authorize from the user."}"#,
    ] {
        assert_eq!(user(401, body).kind, ErrorKind::Unauthenticated, "{body}");
    }
    let error = user(
        403,
        r#"{"error": "insufficient_scope", "error_description": "The request requires higher privileges than provided by the access token.", "scope": "api read_api"}"#,
    );
    assert_eq!(error.kind, ErrorKind::Forbidden);
    assert!(error.message.contains("`api`"), "{}", error.message);
}

#[test]
fn projects_come_page_by_page_with_all_that_the_user_is_a_member_of() {
    let page = |cursor: Option<&str>| {
        Asked::begin(Operation::ListRepositories(Page {
            cursor: cursor.map(str::to_owned),
            limit: 100,
        }))
    };
    let first = page(None);
    assert_eq!(
        (first.asked().path.as_str(), first.query("membership")),
        ("/projects", Some("true"))
    );
    let body = json!([
        {"id": 4, "name": "The Project", "path": "project", "path_with_namespace": "group/sub/project",
         "web_url": "https://gitlab.example.com/gl/group/sub/project", "visibility": "internal",
         "http_url_to_repo": "https://gitlab.example.com/gl/group/sub/project.git",
         "default_branch": "develop", "description": ""},
        {"id": 5, "name": "empty", "path": "empty", "path_with_namespace": "me/empty",
         "web_url": "https://gitlab.example.com/gl/me/empty", "visibility": "public"},
    ]);
    let headers = [
        ("X-Next-Page", "2"),
        ("X-Page", "1"),
        ("X-Total-Pages", "2"),
    ];
    let reply = first
        .answers(200, &headers, &body.to_string())
        .ended()
        .unwrap();
    let Reply::Repositories(found) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(found.next.as_deref(), Some("2"));
    let [own, empty] = found.repositories.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(
        (own.name.as_str(), own.full_name.as_str()),
        ("project", "group/sub/project")
    );
    assert_eq!(
        (own.default_branch.as_str(), empty.default_branch.as_str()),
        ("develop", "main")
    );
    assert!(own.private, "what is internal is not public");
    assert!(!empty.private && own.description.is_none());
    let second = page(Some("2"));
    assert_eq!(second.query("page"), Some("2"));
    let reply = second
        .answers(200, &[("X-Next-Page", "")], "[]")
        .ended()
        .unwrap();
    assert!(matches!(reply, Reply::Repositories(page) if page.next.is_none()));
}

#[test]
fn a_merge_request_is_opened_in_a_sub_group_after_its_branches_were_seen() {
    let exchange = opening(change());
    assert_eq!(
        exchange.asked().path,
        "/projects/group%2Fsub%2Fproject/repository/branches/lucid%2Ffix"
    );
    let exchange = exchange.answers(200, &[], r#"{"name": "lucid/fix"}"#);
    assert_eq!(
        exchange.asked().path,
        "/projects/group%2Fsub%2Fproject/repository/branches/main"
    );
    let exchange = exchange.answers(200, &[], r#"{"name": "main"}"#);
    assert_eq!(
        exchange.asked().path,
        "/projects/group%2Fsub%2Fproject/merge_requests"
    );
    assert_eq!(
        exchange.body(),
        json!({"source_branch": "lucid/fix", "target_branch": "main", "title": "Fix the sum", "description": "It was wrong."})
    );
    assert_eq!(
        exchange.answers(201, &[], REQUEST).ended().unwrap(),
        opened(false)
    );
}

#[test]
fn without_a_base_it_goes_to_the_projects_own_default_branch() {
    let change = NewChange {
        base: None,
        ..change()
    };
    let exchange = opening(change).answers(200, &[], "{}");
    assert_eq!(exchange.asked().path, "/projects/group%2Fsub%2Fproject");
    let exchange = exchange.answers(200, &[], r#"{"id": 4, "default_branch": "develop"}"#);
    assert_eq!(exchange.body()["target_branch"], "develop");
    assert_eq!(
        exchange.answers(201, &[], REQUEST).ended().unwrap(),
        opened(false)
    );
}

#[test]
fn a_draft_says_so_in_its_title_once() {
    for (title, sent) in [("Fix", "Draft: Fix"), ("draft: Fix", "draft: Fix")] {
        let draft = NewChange {
            title: title.into(),
            draft: true,
            ..change()
        };
        assert_eq!(asked(draft).body()["title"], sent);
    }
}

#[test]
fn one_that_is_there_already_is_found_and_given() {
    let exists =
        r#"{"message": ["Another open merge request already exists for this source branch: !14"]}"#;
    let exchange = asked(change()).answers(409, &[], exists);
    assert_eq!(
        (
            exchange.query("source_branch"),
            exchange.query("target_branch")
        ),
        (Some("lucid/fix"), Some("main"))
    );
    assert_eq!(exchange.query("state"), Some("opened"));
    let reply = exchange
        .answers(200, &[], &format!("[{REQUEST}]"))
        .ended()
        .unwrap();
    assert_eq!(reply, opened(true));
    let hidden = asked(change())
        .answers(409, &[], exists)
        .answers(200, &[], "[]");
    assert_eq!(refused(hidden).kind, ErrorKind::Conflict);
}

#[test]
fn a_branch_that_is_not_there_is_named_and_nothing_is_opened() {
    let missing = r#"{"message": "404 Branch Not Found"}"#;
    let head = refused(opening(change()).answers(404, &[], missing));
    assert_eq!(
        (head.kind, head.code.as_deref()),
        (ErrorKind::NotFound, Some("head"))
    );
    assert!(
        head.message.contains("no branch `lucid/fix`"),
        "{}",
        head.message
    );
    let base = opening(change())
        .answers(200, &[], "{}")
        .answers(404, &[], missing);
    let base = refused(base);
    assert_eq!(
        (base.kind, base.code.as_deref()),
        (ErrorKind::NotFound, Some("base"))
    );
}

#[test]
fn each_refusal_says_what_is_wrong() {
    for (status, headers, body, kind, words) in [
        (
            404,
            None,
            r#"{"message": "404 Project Not Found"}"#,
            ErrorKind::NotFound,
            "no project `group/sub/project`",
        ),
        (
            403,
            None,
            r#"{"message": "403 Forbidden"}"#,
            ErrorKind::Forbidden,
            "the role of a developer",
        ),
        (
            422,
            None,
            r#"{"message": ["You can't use same project/branch for source and target"]}"#,
            ErrorKind::InvalidInput,
            "same project/branch",
        ),
        (
            400,
            None,
            r#"{"message": {"title": ["is too long (maximum is 255 characters)"]}}"#,
            ErrorKind::InvalidInput,
            "is too long",
        ),
        (
            429,
            Some(("Retry-After", "30")),
            "Retry later\n",
            ErrorKind::RateLimited,
            "too often",
        ),
        (
            502,
            None,
            "<html>GitLab is not responding</html>",
            ErrorKind::Upstream,
            "HTTP 502",
        ),
        (201, None, "{}", ErrorKind::Upstream, "no `iid`"),
    ] {
        let headers: Vec<_> = headers.into_iter().collect();
        let error = refused(asked(change()).answers(status, &headers, body));
        assert_eq!(error.kind, kind, "{status} {body}");
        assert!(
            error.message.contains(words),
            "{status} {body}: {}",
            error.message
        );
        assert_eq!(
            error.retry_after_ms,
            (!headers.is_empty()).then_some(30_000),
            "{body}"
        );
    }
}

#[test]
fn a_project_that_is_none_is_not_asked_for() {
    for repository in ["", "project", "a//b", "../b", "a/./b"] {
        let change = NewChange {
            repository: repository.into(),
            ..change()
        };
        assert_eq!(
            refused(opening(change)).kind,
            ErrorKind::InvalidInput,
            "{repository}"
        );
    }
}
