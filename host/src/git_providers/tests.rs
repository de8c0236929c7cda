//! Tests of operations: the built-in plugins and hostile ones, against servers on the loopback
//! interface.

mod accounts;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::builtin;
use lucid_types::wit::git::Descriptor;
use lucid_types::wit::types::ErrorKind;
use lucid_wasm::{Engine, EngineOptions, PluginLimits};

const TOKEN: &str = "ghp_0123456789abcdefghij";

/// A request that a server received.
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    uri: String,
    authorization: String,
    body: Value,
}

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    async fn start(
        answer: impl Fn(&Asked, usize) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let router = Router::new().fallback(
            async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let authorization = headers.get("authorization");
                let asked = Asked {
                    method: method.to_string(),
                    uri: uri.to_string(),
                    authorization: authorization
                        .map_or("", |value| value.to_str().unwrap())
                        .to_owned(),
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                let before = {
                    let mut seen = noted.lock().unwrap();
                    seen.push(asked.clone());
                    seen.len() - 1
                };
                answer(&asked, before)
            },
        );
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(status: u16, body: &Value) -> Response {
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    (status, axum::Json(body.clone())).into_response()
}

/// The built-in providers, with these web addresses.
async fn providers(private: bool, urls: &[(&str, Option<&str>)]) -> GitProviders {
    GitProviders::new(loaded(urls).await, private, None).unwrap()
}

async fn loaded(urls: &[(&str, Option<&str>)]) -> Vec<LoadedGit> {
    let engine = Engine::new(EngineOptions {
        calls: 2,
        streams: 2,
        ..EngineOptions::default()
    });
    let engine = engine.unwrap();
    let mut loaded = Vec::new();
    for (name, web_url) in urls {
        let (_, wasm) = builtin::GIT
            .iter()
            .find(|(known, _)| known == name)
            .unwrap();
        let limits = PluginLimits::default();
        let plugin = GitPlugin::load(&engine, name, wasm, &limits).await.unwrap();
        loaded.push(LoadedGit {
            plugin,
            settings: "{}".to_owned(),
            base_url: None,
            web_url: web_url.map(|url| Url::parse(url).unwrap()),
            builtin: true,
        });
    }
    loaded
}

#[tokio::test]
async fn a_deployments_own_server_is_known_by_either_of_its_addresses() {
    let github = "https://api.github.com/ https://github.com/";
    let house = "https://ghe.example.com/api/v3 https://ghe.example.com/";
    for (base_url, web_url, meant) in [
        (Some("https://github.com"), None, github),
        (Some("https://www.github.com/"), None, github),
        (None, Some("https://github.com/"), github),
        (Some("https://api.github.com/"), None, github),
        (Some("https://ghe.example.com/api/v3/"), None, house),
        (Some("https://ghe.example.com"), None, house),
        (None, Some("https://ghe.example.com/"), house),
        (None, Some("https://ghe.example.com/api/v3"), house),
    ] {
        let url = |text: Option<&str>| text.map(|text| Url::parse(text).unwrap());
        let mut all = loaded(&[("github", None)]).await;
        (all[0].base_url, all[0].web_url) = (url(base_url), url(web_url));
        let all = GitProviders::new(all, false, None).unwrap();
        let (api, web) = all.addresses("github").unwrap();
        let found = format!("{} {}", api.trim_end_matches('/'), web);
        assert_eq!(
            found.replace("com ", "com/ "),
            meant,
            "{base_url:?} {web_url:?}"
        );
    }
}

#[tokio::test]
async fn a_component_that_is_not_built_in_does_not_choose_where_tokens_go() {
    let not_built_in = async |url| {
        let mut all = loaded(&[("github", url)]).await;
        all[0].builtin = false;
        GitProviders::new(all, false, None)
    };
    let wrong = not_built_in(None).await.err().unwrap();
    assert!(
        wrong.len() == 1 && wrong[0].1.contains("`base_url` must say"),
        "{wrong:?}"
    );
    let stated = not_built_in(Some("https://github.com")).await;
    let (api, _) = stated.unwrap().addresses("github").unwrap();
    assert_eq!(
        api, "https://github.com/api/v3",
        "what it calls its usual address is its own choice"
    );
}

#[tokio::test]
async fn a_component_that_is_not_built_in_does_not_choose_the_address_behind_the_one_that_is_stated()
 {
    let one = loaded(&[("github", None)]).await.remove(0);
    let mut descriptor = one.plugin.descriptor().clone();
    descriptor.default_web_url = "https://evil.example".to_owned();
    let endpoint = |descriptor: &Descriptor| {
        let api = Url::parse(&descriptor.default_base_url).unwrap();
        GitEndpoint::of(descriptor, Some(api), None, false)
    };
    let wrong = endpoint(&descriptor).unwrap_err().to_string();
    assert!(wrong.contains("`web_url` must say"), "{wrong}");
    descriptor.default_base_url = "https://ghe.example.com/api/v3".to_owned();
    let web = endpoint(&descriptor).unwrap().web;
    assert_eq!(web.as_str(), "https://ghe.example.com/");
}

#[tokio::test]
async fn servers_of_users_that_never_answer_hold_up_nobody_elsewhere() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", silent.local_addr().unwrap());
    let server = Server::start(|_, _| answer(200, &json!({"id": 1, "login": "ada"}))).await;
    let all = providers(true, &[("github", Some(&server.url)), ("gitlab", None)]).await;
    let stuck = all.find_instance("gitlab", Some(&own)).unwrap();
    let token = token();
    let waiting = futures::future::join_all((0..AT_ONCE).map(|_| stuck.account(&token)));
    let deployments = all.find_instance("github", None).unwrap();
    let provider = async {
        // Either all of them are available, or nothing is shown.
        let mut open = Vec::new();
        for _ in 0..AT_ONCE {
            open.push(silent.accept().await.unwrap());
        }
        let account = deployments.account(&token).await;
        drop(open);
        account
    };
    tokio::select! {
        _ = waiting => panic!("a server that never answers was done with"),
        account = provider => assert_eq!(account.unwrap().login, "ada"),
    }
}

fn token() -> Secret {
    Secret::new(TOKEN)
}

fn change(repository: &str) -> NewChange {
    NewChange {
        repository: repository.to_owned(),
        title: "Fix".to_owned(),
        body: String::new(),
        head: "lucid/fix".to_owned(),
        base: None,
        draft: false,
    }
}

#[tokio::test]
async fn all_pages_of_an_enterprise_server_are_read_with_the_token_and_each_once() {
    let server = Server::start(|asked, _| {
        assert!(asked.uri.starts_with("/ghe/api/v3/user/repos?"), "{asked:?}");
        let page: usize = asked.uri.rsplit_once("&page=").unwrap().1.parse().unwrap();
        let one = |n: usize| json!({"id": n, "name": format!("r{n}"), "full_name": format!("team/r{n}"),
            "html_url": format!("https://ghe.example/team/r{n}"), "private": true, "default_branch": "main"});
        let all: Vec<Value> = (0..100).map(|n| one(page * 1000 + n)).collect();
        let mut response = answer(200, &json!(all));
        if page < 3 {
            let link = format!("<https://elsewhere.example/x?page={}>; rel=\"next\"", page + 1);
            response.headers_mut().insert("link", link.parse().unwrap());
        }
        response
    })
    .await;
    let web = format!("{}/ghe/", server.url);
    let all = providers(false, &[("github", Some(&web))]).await;
    let instance = all.find_instance("github", None).unwrap();
    let found = instance.repositories(&token()).await.unwrap();
    assert_eq!(found.len(), 300);
    let seen = server.seen();
    // Only the page number is read from the link: the server's address is the deployment's.
    assert_eq!(seen.len(), 3);
    assert!(
        seen.iter()
            .all(|asked| asked.authorization == format!("Bearer {TOKEN}"))
    );
}

#[tokio::test]
async fn a_short_pause_that_a_provider_asks_for_is_made_and_the_same_request_sent_again() {
    let server = Server::start(|asked, before| match before {
        // A secondary limit on reading, and one on writing.
        0 => later(403, "1"),
        3 => later(429, "0"),
        1 | 2 => answer(200, &json!({"name": "fix", "default_branch": "main"})),
        _ => answer(
            201,
            &json!({"number": 3, "title": "Fix", "state": "open", "iid": 3,
            "html_url": "https://git.example/a/b/pull/3", "web_url": "https://git.example/a/b/-/merge_requests/3",
            "head": {"ref": "lucid/fix"}, "base": {"ref": "main"}, "asked": asked.body["title"],
            "source_branch": "lucid/fix", "target_branch": "main"}),
        ),
    })
    .await;
    let web = format!("{}/gl", server.url);
    let all = providers(false, &[("gitlab", Some(&web))]).await;
    let instance = all
        .of_repository(&format!("{web}/team/project.git"))
        .unwrap();
    let opened = instance.open_change(&token(), change("team/project")).await;
    assert_eq!(opened.unwrap().number, 3);
    let seen = server.seen();
    assert_eq!((&seen[0].uri, &seen[3].uri), (&seen[1].uri, &seen[4].uri));
    assert_eq!(seen[3].body, seen[4].body);
    assert_eq!(seen.len(), 5);

    // A long pause is not waited for, and the caller gets the error. Neither is one that never
    // ends.
    for (after, times) in [("11", 1), ("0", 4)] {
        let server = Server::start(move |_, _| later(429, after)).await;
        let all = providers(false, &[("github", Some(&server.url))]).await;
        let instance = all.find_instance("github", None).unwrap();
        let refused = instance.account(&token()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::RateLimited, "{refused:?}");
        assert_eq!(server.seen().len(), times);
    }
}

fn later(status: u16, after: &str) -> Response {
    let mut response = answer(
        status,
        &json!({"message": "You have exceeded a secondary rate limit."}),
    );
    let headers = response.headers_mut();
    headers.insert("retry-after", after.parse().unwrap());
    response
}

#[tokio::test]
async fn a_change_in_a_group_of_a_group_below_a_path_is_opened() {
    let server = Server::start(|asked, before| match before {
        0 | 1 => answer(
            200,
            &json!({"name": "lucid/fix", "default_branch": "develop"}),
        ),
        _ => answer(
            201,
            &json!({"iid": 3, "title": "Fix", "state": "opened",
            "web_url": "https://git.example/g/s/p/-/merge_requests/3",
            "source_branch": "lucid/fix", "target_branch": asked.body["target_branch"]}),
        ),
    })
    .await;
    let web = format!("{}/gl", server.url);
    let all = providers(false, &[("gitlab", Some(&web))]).await;
    let repository = format!("{web}/group/sub/project.git");
    let instance = all.of_repository(&repository).unwrap();
    let path = instance.path_of(&repository).unwrap();
    assert_eq!(path, "group/sub/project");
    let change = instance.open_change(&token(), change(&path)).await.unwrap();
    assert_eq!((change.number, change.base.as_str()), (3, "develop"));
    let asked: Vec<String> = server
        .seen()
        .iter()
        .map(|asked| format!("{} {}", asked.method, asked.uri))
        .collect();
    assert_eq!(
        asked,
        [
            "GET /gl/api/v4/projects/group%2Fsub%2Fproject/repository/branches/lucid%2Ffix",
            "GET /gl/api/v4/projects/group%2Fsub%2Fproject",
            "POST /gl/api/v4/projects/group%2Fsub%2Fproject/merge_requests",
        ]
    );
}

#[tokio::test]
async fn a_server_that_repeats_the_token_or_has_no_end_is_told_as_what_it_is() {
    let echoing = Server::start(|_, _| {
        answer(
            422,
            &json!({"message": format!("no {TOKEN}"), "errors": []}),
        )
    })
    .await;
    let all = providers(false, &[("github", Some(&echoing.url))]).await;
    let instance = all.find_instance("github", None).unwrap();
    let error = instance
        .open_change(&token(), change("team/project"))
        .await
        .unwrap_err();
    assert!(!error.message.contains(TOKEN), "{}", error.message);
    let endless = Server::start(|_, _| {
        let mut response = answer(200, &json!([]));
        let link = "<https://api.example/x?page=2>; rel=\"next\"";
        response.headers_mut().insert("link", link.parse().unwrap());
        response
    })
    .await;
    let all = providers(false, &[("github", Some(&endless.url))]).await;
    let instance = all.find_instance("github", None).unwrap();
    let error = instance.repositories(&token()).await.unwrap_err();
    assert!(
        error.message.contains("does not come to an end"),
        "{}",
        error.message
    );
    assert_eq!(
        endless.seen().len(),
        2,
        "the same page was asked for again and again"
    );
}

#[tokio::test]
async fn the_token_follows_no_redirect_to_another_server() {
    let thief = Server::start(|_, _| answer(200, &json!({"id": 1, "login": "thief"}))).await;
    let target = format!("{}/user", thief.url);
    let server = Server::start(move |_, _| {
        (
            axum::http::StatusCode::TEMPORARY_REDIRECT,
            [("location", target.clone())],
        )
            .into_response()
    })
    .await;
    let all = providers(false, &[("github", Some(&server.url))]).await;
    let error = all
        .find_instance("github", None)
        .unwrap()
        .account(&token())
        .await;
    assert!(error.unwrap_err().message.contains("redirect"));
    assert!(thief.seen().is_empty(), "the token went to another server");
}

#[tokio::test]
async fn an_address_with_a_script_or_a_login_in_it_is_given_to_nobody() {
    for url in [
        "javascript:alert(1)",
        "https://user@evil.example/",
        "file:///etc/passwd",
        "",
    ] {
        let server = Server::start(move |_, _| {
            answer(
                200,
                &json!([{"id": 1, "name": "r", "full_name": "t/r", "html_url": url,
                "clone_url": "https://a.example/t/r.git"}]),
            )
        })
        .await;
        let all = providers(false, &[("github", Some(&server.url))]).await;
        let found = all
            .find_instance("github", None)
            .unwrap()
            .repositories(&token())
            .await;
        assert_eq!(found.unwrap_err().kind, ErrorKind::Upstream, "{url}");
    }
}

#[tokio::test]
async fn a_users_own_server_is_asked_only_where_one_may_be() {
    let all = providers(false, &[("gitlab", None), ("github", None)]).await;
    for address in [
        "http://gitlab.example.com",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest",
        "https://10.0.0.7",
        "https://[::1]:8080",
        "https://user:pw@gitlab.example.com",
        "https://gitlab.example.com/?x=1",
        "ftp://gitlab.example.com",
        "gitlab",
        "",
    ] {
        assert!(
            matches!(
                all.find_instance("gitlab", Some(address)),
                Err(GitInstanceError::Address(_))
            ),
            "{address} was taken"
        );
    }
    // As people paste it: a page, the API, a remote.
    for address in [
        "git.example.com",
        "https://git.example.com/",
        "https://git.example.com/api/v4/",
        "https://git.example.com/users/sign_in",
        "https://git.example.com/-/profile",
        "git@git.example.com:group/project.git",
        "ssh://git@git.example.com:2222/group/project.git",
    ] {
        let own = all.find_instance("gitlab", Some(address)).unwrap();
        let url = own.own_url().unwrap();
        assert_eq!(url.as_str(), "https://git.example.com/", "{address}");
    }
    let own = all
        .find_instance("gitlab", Some("https://git.example.com/gl/"))
        .unwrap();
    assert_eq!(
        own.own_url().unwrap().as_str(),
        "https://git.example.com/gl"
    );
    let usual = all
        .find_instance("gitlab", Some("https://gitlab.com/"))
        .unwrap();
    assert!(
        usual.own_url().is_none(),
        "the deployment's own is no user's"
    );
    assert!(matches!(
        all.find_instance("gitea", None),
        Err(GitInstanceError::Unknown { .. })
    ));
    // A name that resolves to a private address is rejected when it is resolved.
    let local = all
        .find_instance("gitlab", Some("https://localhost:1"))
        .unwrap();
    let error = local.account(&token()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Forbidden, "{}", error.message);

    let private = providers(true, &[("gitlab", None)]).await;
    assert!(
        private
            .find_instance("gitlab", Some("http://127.0.0.1:8080"))
            .is_ok()
    );
    let metadata = private.find_instance("gitlab", Some("http://169.254.169.254"));
    assert!(metadata.is_err(), "a metadata service is asked by nobody");
}

#[tokio::test]
async fn a_repository_is_found_at_its_server_and_nowhere_else() {
    let all = providers(
        false,
        &[
            ("github", None),
            ("gitlab", Some("https://git.example.com/gl")),
        ],
    )
    .await;
    let of = |url: &str| {
        all.of_repository(url)
            .map(|instance| instance.provider().to_owned())
    };
    assert_eq!(
        of("https://github.com/team/project.git").as_deref(),
        Some("github")
    );
    assert_eq!(
        of("https://git.example.com/gl/a/b/c").as_deref(),
        Some("gitlab")
    );
    for elsewhere in [
        "http://github.com/team/project",
        "https://github.com.evil.example/team/project",
        "https://github.com:8443/team/project",
        "https://github.com/team",
        "https://git.example.com/team/project",
        "https://git.example.com/glx/team/project",
        "https://github.com/team/pro%2Fject",
        "https://github.com/team/-/project",
        "not a url",
    ] {
        assert_eq!(of(elsewhere), None, "{elsewhere}");
    }
    assert_eq!(
        all.git_user("https://git.example.com/gl/a/b").as_deref(),
        Some("oauth2")
    );
}

/// The result of an operation of the misbehaving component, and the requests the server received
/// meanwhile.
async fn misbehaves(act: &str) -> (Result<Change, Error>, Vec<Asked>) {
    let server = Server::start(|_, _| answer(200, &json!({"token": TOKEN}))).await;
    let instance = misbehaving(act, &server)
        .await
        .find_instance("evil", None)
        .unwrap();
    let change = instance.open_change(&token(), change("team/project")).await;
    (change, server.seen())
}

async fn misbehaving(act: &str, server: &Server) -> GitProviders {
    let engine = Engine::new(EngineOptions {
        calls: 2,
        streams: 2,
        ..EngineOptions::default()
    });
    let limits = PluginLimits {
        fuel: 100_000_000,
        ..PluginLimits::default()
    };
    let wasm = lucid_tests::EXCHANGING;
    let plugin = GitPlugin::load(&engine.unwrap(), "evil", wasm, &limits).await;
    let loaded = LoadedGit {
        plugin: plugin.unwrap(),
        settings: json!({ "act": act }).to_string(),
        base_url: None,
        web_url: Some(Url::parse(&server.url).unwrap()),
        builtin: false,
    };
    GitProviders::new(vec![loaded], false, None).unwrap()
}

#[tokio::test]
async fn a_component_that_misbehaves_harms_its_own_operation_alone() {
    for (act, requests, words) in [
        ("endless", 9, "does not come to an end"),
        ("memory", 0, "wants to remember too much"),
        ("elsewhere", 0, "which is not allowed"),
        ("climb", 0, "which is not allowed"),
        ("header", 0, "`authorization`, which is the host's own"),
        ("split", 0, "line break"),
        ("trap", 0, "broke down"),
        ("spin", 0, "fuel"),
        ("script", 0, "none of the web"),
        ("", 0, "something else than it was asked"),
    ] {
        let (result, asked) = misbehaves(act).await;
        let error = result.unwrap_err();
        assert!(error.message.contains(words), "{act}: {}", error.message);
        assert_eq!(asked.len(), requests, "{act}: {asked:?}");
    }
    // The plugin never sees the token: a server that repeats it is redacted before.
    let (result, asked) = misbehaves("tell").await;
    let said = result.unwrap_err().message;
    assert!(!said.contains(TOKEN) && said.contains("[secret]"), "{said}");
    assert_eq!(asked[0].authorization, format!("Bearer {TOKEN}"));
    let (result, _) = misbehaves("other").await;
    assert_eq!(result.unwrap().number, 1);
}

#[tokio::test]
async fn what_it_says_is_made_fit_to_be_shown_and_a_list_without_an_end_is_given_up() {
    let server = Server::start(|_, _| answer(200, &json!({}))).await;
    let instance = misbehaving("", &server)
        .await
        .find_instance("evil", None)
        .unwrap();
    let account = instance.account(&token()).await.unwrap();
    assert!(account.login.chars().count() <= 255);
    assert!(!account.login.contains(['\u{202e}', '\n', '\u{1b}']));
    assert_eq!(account.scopes.len(), 50);
    // A scope that would be taken for a server's address in the row.
    assert!(account.scopes.iter().all(|scope| !scope.contains('|')));
    let instance = misbehaving("many", &server)
        .await
        .find_instance("evil", None)
        .unwrap();
    let error = instance.repositories(&token()).await.unwrap_err();
    assert!(
        error.message.contains("does not come to an end"),
        "{}",
        error.message
    );
    assert!(server.seen().is_empty());
}
