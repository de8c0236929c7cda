//! The check of a git provider plugin: runs each operation to completion against a server that
//! responds in every way a server can.
//!
//! No real provider is contacted: its responses are covered by the plugin's own tests. Checked here
//! is what holds for every plugin: repeating a step gives the same result, an operation terminates,
//! every request is one that a host would send, a refusal becomes an error of the right kind, and
//! no malformed response causes a trap.

use super::super::report::CheckReport;
use super::violation::{Violation, violation};
use lucid_net::egress::{Endpoint, KeyInjection, refusal_of};
use lucid_types::wit::git::{NewChange, Next, Operation, Page, Reply};
use lucid_types::wit::types::{Error, ErrorKind, Header, HttpRequest, HttpResponse};
use lucid_wasm::{CallError, GitPlugin};

/// The number of requests after which an operation counts as endless. A host stops at the same
/// number.
const MOST_REQUESTS: usize = 8;
/// A token that a server repeats in its refusal.
const TOKEN: &str = "token-of-the-check-0123456789";
/// Runs all checks.
pub(super) async fn check(report: &mut CheckReport, git: &GitPlugin, settings: &str) {
    report.result("addresses", addresses(git));
    report.result("requests", requests(git, settings).await);
    report.result("refusals", refusals(git, settings).await);
    report.result("nonsense", feed_garbage(git, settings).await);
}

fn addresses(git: &GitPlugin) -> Result<String, Violation> {
    let descriptor = git.descriptor();
    for (what, address) in [
        ("default-base-url", &descriptor.default_base_url),
        ("default-web-url", &descriptor.default_web_url),
    ] {
        let url = url::Url::parse(address).map_err(|_| violation!("its {what} is no URL"))?;
        Endpoint::public(url, KeyInjection::Bearer).map_err(|why| {
            Violation::from(why).within(format!("its {what} `{address}` cannot be used"))
        })?;
    }
    Ok(format!(
        "{}, repositories at {}; on a server of one's own the API is at {}",
        descriptor.default_base_url, descriptor.default_web_url, descriptor.api_path
    ))
}

/// Each kind of operation, with sample arguments.
fn operations() -> Vec<(&'static str, Operation)> {
    let change = |repository: &str, base: Option<&str>, draft| {
        Operation::OpenChange(NewChange {
            repository: repository.into(),
            title: "Fix \"it\"\u{1f41b}".into(),
            body: "Because.\n\n- it was broken".into(),
            head: "lucid/fix-it".into(),
            base: base.map(str::to_owned),
            draft,
        })
    };
    let page = |cursor: Option<&str>, limit| {
        Operation::ListRepositories(Page {
            cursor: cursor.map(str::to_owned),
            limit,
        })
    };
    vec![
        ("the current user", Operation::CurrentUser),
        ("the first page", page(None, 100)),
        ("a page of one", page(None, 1)),
        ("a page of none", page(None, 0)),
        ("a page of very many", page(None, u32::MAX)),
        ("a strange cursor", page(Some("\" & ../ä"), 100)),
        ("a change", change("team/project", Some("main"), false)),
        (
            "a draft to the default branch",
            change("team/project", None, true),
        ),
        (
            "a change in a group of a group",
            change("a/b/c", Some("main"), false),
        ),
        (
            "a repository that is none",
            change("../..", Some("main"), false),
        ),
    ]
}

async fn requests(git: &GitPlugin, settings: &str) -> Result<String, Violation> {
    let mut tried = 0;
    for (name, operation) in operations() {
        let said = |why: Violation| why.within(name);
        match step(git, settings, &operation, None).await.map_err(said)? {
            Ok(Next::Send(sending)) => {
                request(git, &sending.request).map_err(said)?;
                tried += 1;
            }
            Ok(Next::Done(_)) => {
                return Err(violation!("{name}: it is done before anything was asked"));
            }
            // It may refuse invalid input.
            Err(error) if error.kind == ErrorKind::InvalidInput => {}
            Err(error) => {
                return Err(violation!(
                    "{name}: what cannot be asked is an error of kind invalid-input, and this is {:?}: {}",
                    error.kind,
                    error.message
                ));
            }
        }
    }
    if tried < 4 {
        return Err(violation!(
            "only {tried} of its operations ask anything; it must know all three of them"
        ));
    }
    Ok(format!(
        "{tried} operations begin, each the same when begun again"
    ))
}

async fn refusals(git: &GitPlugin, settings: &str) -> Result<String, Violation> {
    let body = format!(r#"{{"message": "No, {TOKEN}.", "error": "no"}}"#);
    for (status, headers, kinds) in [
        (401, None, &[ErrorKind::Unauthenticated][..]),
        (403, None, &[ErrorKind::Forbidden]),
        (404, None, &[ErrorKind::NotFound]),
        (429, Some(("retry-after", "7")), &[ErrorKind::RateLimited]),
        (500, None, &[ErrorKind::Upstream]),
        (503, None, &[ErrorKind::Overloaded, ErrorKind::Upstream]),
    ] {
        let answer = response(status, headers, body.as_bytes());
        for (name, operation) in operations() {
            let Some(Err(error)) = ended(git, settings, &operation, &answer)
                .await
                .map_err(|why| why.within(format!("{name}, answered with {status}")))?
            else {
                continue;
            };
            if error.kind != ErrorKind::InvalidInput && !kinds.contains(&error.kind) {
                return Err(violation!(
                    "{name}: an answer with status {status} must be an error of kind {:?}, and is {:?}: {}",
                    kinds[0],
                    error.kind,
                    error.message
                ));
            }
            if status == 401 && error.message.contains(TOKEN) {
                return Err(violation!(
                    "{name}: the refusal of a token is passed on with the token in it"
                ));
            }
            if headers.is_some()
                && error.kind == ErrorKind::RateLimited
                && error.retry_after_ms != Some(7_000)
            {
                return Err(violation!(
                    "{name}: `retry-after: 7` must come out as 7000 ms, and is {:?}",
                    error.retry_after_ms
                ));
            }
        }
    }
    Ok("a refusal is an error of its kind, without the token".to_owned())
}

async fn feed_garbage(git: &GitPlugin, settings: &str) -> Result<String, Violation> {
    let deep = "[".repeat(5_000);
    let mut tried = 0;
    for body in [
        "",
        "null",
        "[]",
        "{}",
        "[null, 1, {}]",
        "<html>",
        "\u{0}\u{ff}",
        r#"{"id": -1, "number": -1, "iid": 1e400, "login": "", "html_url": []}"#,
        r#"[{"id": "", "name": {}, "full_name": null}]"#,
        deep.as_str(),
    ] {
        for status in [200, 201, 204, 302, 422, 999] {
            let link = Some(("link", "<;rel=\"next\">,<?page=>; rel=next, ;;;"));
            let answer = response(status, link, body.as_bytes());
            for (name, operation) in operations() {
                ended(git, settings, &operation, &answer)
                    .await
                    .map_err(|why| {
                        why.within(format!("{name}, answered with {status} and {body:.40?}"))
                    })?;
                tried += 1;
            }
        }
    }
    // A host never passes these, and a plugin must still cope.
    for (state, answer) in [
        (Some(b"not a state".to_vec()), None),
        (None, Some(response(200, None, b"{}"))),
        (Some(b"\xff".to_vec()), Some(response(200, None, b"{}"))),
    ] {
        let called = git.step(settings, &Operation::CurrentUser, state, answer);
        match called.await.result {
            Ok(_) | Err(CallError::Plugin { .. }) => tried += 1,
            Err(error) => return Err(Violation::from(error).within("a state that is none")),
        }
    }
    Ok(format!(
        "{tried} answers that mean nothing, none of which it breaks down over"
    ))
}

/// Runs an operation with the same response each time. `None` if it did not terminate, like a list
/// that has the same next page again and again.
async fn ended(
    git: &GitPlugin,
    settings: &str,
    operation: &Operation,
    answer: &HttpResponse,
) -> Result<Option<Result<Reply, Error>>, Violation> {
    let mut before = None;
    for _ in 0..MOST_REQUESTS {
        match step(git, settings, operation, before).await? {
            Ok(Next::Done(reply)) => return Ok(Some(Ok(reply))),
            Err(error) => return Ok(Some(Err(error))),
            Ok(Next::Send(sending)) => {
                request(git, &sending.request)?;
                before = Some((sending.state, answer.clone()));
            }
        }
    }
    Err(violation!(
        "it asks for the {MOST_REQUESTS}th time; an operation must come to its end"
    ))
}

/// Runs one step twice. The outer error is a sentence about the plugin, the inner one is the
/// plugin's.
async fn step(
    git: &GitPlugin,
    settings: &str,
    operation: &Operation,
    before: Option<(Vec<u8>, HttpResponse)>,
) -> Result<Result<Next, Error>, Violation> {
    let mut said = Vec::new();
    for _ in 0..2 {
        let (state, answer) = before.clone().unzip();
        let called = git.step(settings, operation, state, answer).await;
        said.push(match called.result {
            Ok(next) => Ok(next),
            Err(CallError::Plugin { error, .. }) => Err(error),
            Err(error) => return Err(error.into()),
        });
    }
    if said[0] != said[1] {
        return Err(violation!("a step that is made again gives something else"));
    }
    Ok(said.swap_remove(0))
}

/// Checks that a host would send a request.
fn request(git: &GitPlugin, request: &HttpRequest) -> Result<(), Violation> {
    let place = git.descriptor().key.clone().into();
    match refusal_of(request, &place, true) {
        Some(why) => Err(Violation::from(why).within("a host would not send what it asks")),
        None => Ok(()),
    }
}

fn response(status: u16, header: Option<(&str, &str)>, body: &[u8]) -> HttpResponse {
    let header = header.map(|(name, value)| Header {
        name: name.into(),
        value: value.into(),
    });
    HttpResponse {
        status,
        headers: header.into_iter().collect(),
        body: body.to_vec(),
    }
}
