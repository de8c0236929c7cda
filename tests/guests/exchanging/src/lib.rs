//! An integration of a git provider that misbehaves in the way its settings name: what a host must bear of
//! a component that somebody else wrote.

use lucid_plugin::git::{
    Account, Answered, Change, Descriptor, KeyPlace, NextStep, Operation, Provider, Reply,
    Repository, RepositoryPage, get,
};
use lucid_plugin::types::{Error, ErrorKind, Header};

/// The integration.
pub struct Exchanging;

impl Provider for Exchanging {
    type State = String;

    fn describe() -> Descriptor {
        Descriptor {
            name: "exchanging".into(),
            version: "0.1.0".into(),
            description: "Misbehaves.".into(),
            default_base_url: "https://api.example.org".into(),
            default_web_url: "https://git.example.org".into(),
            api_path: "/api".into(),
            key: KeyPlace::Bearer,
            git_user: "token".into(),
            scopes: Vec::new(),
            settings_schema: None,
        }
    }

    fn step(
        settings: &str,
        operation: &Operation,
        answered: Option<Answered<String>>,
    ) -> Result<NextStep<String>, Error> {
        let act: String = serde_json::from_str::<serde_json::Value>(settings)
            .ok()
            .and_then(|settings| Some(settings["act"].as_str()?.to_owned()))
            .unwrap_or_default();
        let mut request = get("/user", &[]);
        let state = "s".to_owned();
        match act.as_str() {
            "endless" => return Ok(NextStep::Send(request, state)),
            "memory" => return Ok(NextStep::Send(request, "s".repeat(1 << 17))),
            "elsewhere" => request.path = "https://evil.example/user".into(),
            "climb" => request.path = "/..%2F..%2Fadmin".into(),
            "header" => request.headers.push(Header {
                name: "Authorization".into(),
                value: "Bearer mine".into(),
            }),
            "split" => request.headers.push(Header {
                name: "x-a".into(),
                value: "b\r\nx-c: d".into(),
            }),
            "trap" => panic!("on purpose"),
            "spin" => loop {
                std::hint::black_box(());
            },
            "tell" => {
                let said = answered.map_or_else(String::new, |answered| {
                    String::from_utf8_lossy(&answered.response.body).into_owned()
                });
                if said.is_empty() {
                    return Ok(NextStep::Send(request, state));
                }
                return Err(Error::new(ErrorKind::Upstream, said));
            }
            "other" => return Ok(NextStep::Done(change("https://git.example.org/1"))),
            "script" => return Ok(NextStep::Done(change("javascript:alert(1)"))),
            "many" => {
                let Operation::ListRepositories(page) = operation else {
                    return Err(Error::invalid("only lists"));
                };
                let number: u32 = page
                    .cursor
                    .as_deref()
                    .map_or(Ok(0), str::parse)
                    .unwrap_or_default();
                return Ok(NextStep::Done(Reply::Repositories(RepositoryPage {
                    repositories: vec![repository()],
                    next: Some((number + 1).to_string()),
                })));
            }
            _ => {
                return Ok(NextStep::Done(Reply::Account(Account {
                    id: "1".into(),
                    login: "\u{202e}evil\n\u{1b}[31m".repeat(100),
                    name: None,
                    email: None,
                    scopes: vec!["a||https://evil.example".into(); 1000],
                })));
            }
        }
        Ok(NextStep::Send(request, state))
    }
}

fn repository() -> Repository {
    Repository {
        id: "1".into(),
        name: "r".into(),
        full_name: "t/r".into(),
        web_url: "https://git.example.org/t/r".into(),
        clone_url: "https://git.example.org/t/r.git".into(),
        default_branch: "main".into(),
        private: false,
        description: None,
    }
}

fn change(web_url: &str) -> Reply {
    Reply::Change(Change {
        number: 1,
        title: "t".into(),
        web_url: web_url.into(),
        state: "open".into(),
        head: "h".into(),
        base: "b".into(),
        existed: false,
    })
}

lucid_plugin::export_git!(Exchanging);
