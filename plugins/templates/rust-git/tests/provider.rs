//! Requests and results of each operation, without a network: the test plays the provider's server.

use lucid_plugin::git::{NewChange, Operation, Page, Reply};
use lucid_plugin::testing::Exchange;
use lucid_plugin::types::ErrorKind;
use my_agent::MyAgent;

type Asked = Exchange<MyAgent>;

const PULL: &str = r#"{"number": 7, "title": "Fix", "state": "open", "html_url": "https://git.example.org/team/project/pulls/7",
    "head": {"ref": "lucid/fix"}, "base": {"ref": "main"}}"#;

fn opening() -> Asked {
    Asked::begin(Operation::OpenChange(NewChange {
        repository: "team/project".into(),
        title: "Fix".into(),
        body: "It was broken.".into(),
        head: "lucid/fix".into(),
        base: None,
        draft: false,
    }))
}

#[test]
fn a_token_is_its_users() {
    let exchange = Asked::begin(Operation::CurrentUser);
    assert_eq!(exchange.asked().path, "/user");
    let reply = exchange.answers(200, &[], r#"{"id": 1, "login": "ann"}"#);
    assert!(matches!(reply.ended(), Ok(Reply::Account(account)) if account.login == "ann"));
}

#[test]
fn a_full_page_is_followed_by_another() {
    let page = Page {
        cursor: None,
        limit: 1,
    };
    let one = r#"[{"id": 1, "name": "project", "full_name": "team/project", "html_url": "https://git.example.org/team/project"}]"#;
    let reply = Asked::begin(Operation::ListRepositories(page)).answers(200, &[], one);
    let Ok(Reply::Repositories(found)) = reply.ended() else {
        panic!("no repositories")
    };
    assert_eq!(found.next.as_deref(), Some("2"));
    assert_eq!(found.repositories[0].default_branch, "main");
}

#[test]
fn a_change_is_opened_and_one_that_is_there_is_found() {
    let reply = opening().answers(201, &[], PULL).ended();
    assert!(matches!(reply, Ok(Reply::Change(change)) if change.number == 7 && !change.existed));
    let exists = r#"{"message": "pull request already exists"}"#;
    let reply = opening().answers(409, &[], exists);
    assert_eq!(reply.query("head"), Some("lucid/fix"));
    let reply = reply.answers(200, &[], &format!("[{PULL}]")).ended();
    assert!(matches!(reply, Ok(Reply::Change(change)) if change.existed));
}

#[test]
fn a_refused_token_is_told_as_one() {
    let error = opening().answers(401, &[], "{}").ended().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthenticated);
}
