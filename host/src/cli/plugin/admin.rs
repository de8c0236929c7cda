//! `lucid plugin list`, `upload`, `activate`, `rollback` and `reload`: administration of a running
//! server's plugins.
//!
//! # Invariants
//!
//! - A token signed on this machine is sent to this machine only. A token for another server comes
//!   from the environment, since other users can read a command line.
//! - A server's response cannot move the cursor.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::{Client, Method, Response, Url};
use serde_json::{Value, json};

use super::{KindArg, component};
use crate::auth::{Authenticator, IssueError};
use crate::cli::failed;
use crate::cli::render::{one_line, strip_controls};
use crate::config::Config;
use crate::deployment::uploads::{DeactivatedBuild, UploadStoreError};
use crate::server::{self, DataDirs};
use lucid_net::client::ClientSpec;
use lucid_net::resolver::AddressPolicy;
use lucid_types::plural;
use lucid_types::user::UserId;
use lucid_wasm::PluginKind;

/// The variable that holds a token for another server.
const TOKEN: &str = "LUCID_TOKEN";
/// The user of a token that is made here.
const OPERATOR: &str = "command-line";
/// The author of an offline rollback.
const OFFLINE: &str = "command-line --offline";
/// The lifetime of such a token.
const TOKEN_TIME: Duration = Duration::from_secs(120);
/// Timeout for a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// The request timeout: a component may take a while to arrive and to compile.
const LONGEST: Duration = Duration::from_secs(600);

/// Which server.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Where it listens, such as `https://lucid.example.org`; without, the server of these settings on
    /// this machine. For another one LUCID_TOKEN holds an administrator's token
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UploadArgs {
    /// The component
    file: PathBuf,
    /// Activate it at once, in place of the plugin of this name
    #[arg(long, value_name = "NAME")]
    activate: Option<String>,
    /// The name is a new one: add a policy
    #[arg(long, requires = "activate")]
    new: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct ActivateArgs {
    /// What it is for
    #[arg(value_enum)]
    kind: KindArg,
    /// The plugin's name in the deployment
    name: String,
    /// What the upload was answered with, with or without `sha256:`
    digest: String,
    /// Give it so many of a hundred new sessions, beside the active build; 1 to 99, of a policy only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=99))]
    share: Option<u8>,
    /// The name is a new one: add a policy
    #[arg(long)]
    new: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// What it is for
    #[arg(value_enum)]
    kind: KindArg,
    /// The plugin's name in the deployment
    name: String,
    /// Without asking a server: it does so at its next start, or when it notices
    #[arg(long, conflicts_with_all = ["server", "json"])]
    offline: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Lists the plugins.
pub(super) async fn list(args: &ServerArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(args)?;
        server.ask(Method::GET, &[]).await
    };
    print_result(args, answer.await, listed)
}

/// Uploads a component.
pub(super) async fn upload(args: &UploadArgs) -> ExitCode {
    let answer = async {
        let wasm = component(&args.file)?;
        let server = AdminClient::find(&args.server)?;
        let kept = server.upload(wasm).await?;
        let Some(name) = &args.activate else {
            return Ok(kept);
        };
        if !args.server.json {
            out!("{}", strip_controls(&uploaded(&kept)));
        }
        let (kind, digest) = (text_of(&kept, "kind"), text_of(&kept, "digest"));
        server.activate(kind, name, digest, None, args.new).await
    };
    let show = if args.activate.is_some() {
        changed
    } else {
        uploaded
    };
    print_result(&args.server, answer.await, show)
}

/// Activates a build.
pub(super) async fn activate(args: &ActivateArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(&args.server)?;
        let kind = PluginKind::from(args.kind).to_string();
        server
            .activate(&kind, &args.name, &args.digest, args.share, args.new)
            .await
    };
    print_result(&args.server, answer.await, changed)
}

/// Rolls back the active build.
pub(super) async fn rollback(args: &RollbackArgs) -> ExitCode {
    let kind = PluginKind::from(args.kind);
    if args.offline {
        return match roll_back_offline(kind, &args.name) {
            Ok(text) => {
                out!("{text}");
                ExitCode::SUCCESS
            }
            Err(why) => failed(&why),
        };
    }
    let answer = async {
        let server = AdminClient::find(&args.server)?;
        let kind = kind.to_string();
        server
            .post(&[&kind, &args.name, "rollback"], &json!({}))
            .await
    };
    print_result(&args.server, answer.await, changed)
}

/// Reloads everything.
pub(super) async fn reload(args: &ServerArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(args)?;
        server.post(&["reload"], &json!({})).await
    };
    print_result(args, answer.await, |answer| {
        let mut text = format!("Generation {} holds.\n", answer["generation"]);
        text += &last_error(answer);
        text
    })
}

/// Rolls back in this machine's upload store.
fn roll_back_offline(kind: PluginKind, name: &str) -> Result<String, String> {
    let config = Config::load().map_err(|error| error.to_string())?;
    let upload_store = server::open_upload_store(&DataDirs::under(&config.workspace_base_path));
    let roll_back = || {
        let writer = upload_store.lock()?;
        let mut record = upload_store.record()?;
        let Some(off) = record.roll_back(kind, name, OFFLINE, chrono::Utc::now()) else {
            return Ok(None);
        };
        writer.write(&record)?;
        let before = record.builds(kind, name).last();
        let before = before.map(|build| build.digest.clone());
        Ok::<_, UploadStoreError>(Some((off, before)))
    };
    match roll_back() {
        Ok(Some((DeactivatedBuild::Candidate(build), _))) => Ok(format!(
            "The upload sha256:{} has no share of the sessions of the {kind} plugin {name} any more.\n",
            build.digest
        )),
        Ok(Some((DeactivatedBuild::Active(last), before))) => {
            let now = match before {
                Some(digest) => format!("the upload sha256:{digest}"),
                None => "what the manifest names".to_owned(),
            };
            Ok(format!(
                "The {kind} plugin {name} is no longer the upload sha256:{}, but {now}.\n",
                last.digest
            ))
        }
        Ok(None) => Err(format!(
            "The {kind} plugin `{}` has no uploaded build to go back from.",
            one_line(name)
        )),
        Err(error) => Err(format!("{error}.")),
    }
}

/// The server may be anywhere: whoever runs the command named it.
fn client_spec() -> ClientSpec {
    ClientSpec::new(AddressPolicy::PublicAndPrivate, CONNECT).timeout(LONGEST)
}

/// A running server, and the credentials for it.
pub(super) struct AdminClient {
    base: Url,
    token: String,
    client: Client,
}

impl AdminClient {
    pub(super) fn find(args: &ServerArgs) -> Result<Self, String> {
        let (base, token) = match &args.server {
            Some(text) => (parse_server_url(text)?, given_token()),
            None => local_server()?,
        };
        let token = token.ok_or_else(|| {
            format!("Set {TOKEN} to an administrator's token of that server: `lucid token --user NAME --admin` prints one there.")
        })?;
        let mut client = client_spec();
        if is_loopback(&base) {
            client = client.without_proxy();
        }
        let client = client
            .build()
            .map_err(|error| format!("No server can be asked: {error}."))?;
        Ok(Self {
            base,
            token,
            client,
        })
    }

    fn url(&self, path: &[&str]) -> Result<Url, String> {
        let mut url = self.base.clone();
        let segments = url.path_segments_mut();
        segments
            .map_err(|()| "The server's address can have no path.".to_owned())?
            .pop_if_empty()
            .extend(["api", "v1", "plugins"])
            .extend(path);
        Ok(url)
    }

    pub(super) async fn ask(&self, method: Method, path: &[&str]) -> Result<Value, String> {
        let request = self.client.request(method, self.url(path)?);
        self.answer(request).await
    }

    pub(super) async fn post(&self, path: &[&str], body: &Value) -> Result<Value, String> {
        let request = self.client.post(self.url(path)?);
        self.answer(request.json(body)).await
    }

    async fn upload(&self, wasm: Vec<u8>) -> Result<Value, String> {
        let request = self.client.post(self.url(&[])?);
        let request = request.header("content-type", "application/wasm");
        self.answer(request.body(wasm)).await
    }

    async fn activate(
        &self,
        kind: &str,
        name: &str,
        digest: &str,
        share: Option<u8>,
        new: bool,
    ) -> Result<Value, String> {
        let mut body = json!({ "digest": digest });
        if let Some(share) = share {
            body["share"] = share.into();
        }
        // Omitted if false: an older server does not know it.
        if new {
            body["new"] = true.into();
        }
        self.post(&[kind, name, "activate"], &body).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, String> {
        let sent = request.bearer_auth(&self.token).send().await;
        let base = &self.base;
        let response: Response = sent.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(below) = cause.source() {
                cause = below;
            }
            format!("No server answers at {base} ({cause}). Does it run? --server names another.")
        })?;
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|error| format!("The answer of {base} broke off: {error}."))?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() && answer.is_object() {
            return Ok(answer);
        }
        Err(match answer["detail"].as_str() {
            Some(detail) => detail.to_owned(),
            None => format!("{base} answered {status}, which is not how a Lucid server answers."),
        })
    }
}

/// The server of these settings. Whoever can read them can sign tokens.
fn local_server() -> Result<(Url, Option<String>), String> {
    let config = Config::load().map_err(|error| error.to_string())?;
    if config.port == 0 {
        return Err(
            "PORT is 0, which is another port at each start: name the server with --server."
                .to_owned(),
        );
    }
    let mut address = config.address();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let base = Url::parse(&format!("http://{address}"));
    let base = base.map_err(|error| format!("{address} is no address: {error}."))?;
    if let Some(token) = given_token() {
        return Ok((base, Some(token)));
    }
    let keys = config.keys().map_err(|error| error.to_string())?;
    let auth = Authenticator::new(keys.jwt.as_ref(), None);
    let issued = auth.issue_admin(&UserId::from(OPERATOR), TOKEN_TIME);
    let token = issued.map_err(|error| match error {
        // INTERNAL_API_KEY would work, but is not sent: a process that listens there while the
        // server is down would keep it.
        IssueError::NoSecret => format!(
            "There is no token: {error}. Set {TOKEN} to an administrator's token of the identity provider."
        ),
        error => format!("There is no token: {error}."),
    })?;
    Ok((base, Some(token)))
}

fn given_token() -> Option<String> {
    let token = std::env::var(TOKEN).ok();
    token
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

fn parse_server_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok();
    let fits = |url: &Url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && plain && url.query().is_none()
    };
    url.filter(fits).ok_or_else(|| {
        "--server must be an http or https URL such as https://lucid.example.org, without user name, password or query.".to_owned()
    })
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn print_result(
    args: &ServerArgs,
    answer: Result<Value, String>,
    show: impl Fn(&Value) -> String,
) -> ExitCode {
    match answer {
        Ok(answer) if args.json => outln!("{answer}"),
        Ok(answer) => out!("{}", strip_controls(&show(&answer))),
        Err(why) => return failed(&why),
    }
    ExitCode::SUCCESS
}

/// A number from the response, with its unit.
fn counted(number: &Value, what: &str) -> String {
    plural::count(number.as_u64().unwrap_or_default(), what)
}

fn listed(answer: &Value) -> String {
    let mut text = format!(
        "generation {} since {}\n",
        answer["generation"],
        text_of(answer, "since")
    );
    for work in answer["loading"].as_array().into_iter().flatten() {
        text += &format!(
            "{} {} since {}\n",
            text_of(work, "doing"),
            one_line(text_of(work, "what")),
            text_of(work, "since"),
        );
    }
    for plugin in answer["plugins"].as_array().into_iter().flatten() {
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {}, {}\n",
            text_of(plugin, "kind"),
            text_of(plugin, "name"),
            text_of(plugin, "version"),
            text_of(plugin, "digest"),
            from(plugin),
            counted(&plugin["sessions"], "session"),
        );
        text += &rollout(plugin);
        for other in plugin["otherBuilds"].as_array().into_iter().flatten() {
            text += &format!(
                "          {} with sha256:{}\n",
                counted(&other["sessions"], "session"),
                text_of(other, "digest")
            );
        }
        for call in plugin["calls"].as_array().into_iter().flatten() {
            text += &format!(
                "          {:<10} {:>7} calls, p50 {} µs, p99 {} µs, most fuel {}, most memory {} KB, {} refusals, {} failures\n",
                text_of(call, "call"),
                call["calls"],
                call["p50Micros"],
                call["p99Micros"],
                call["mostFuel"],
                call["mostMemory"].as_u64().unwrap_or_default() >> 10,
                call["refusals"],
                call["failures"],
            );
        }
    }
    let uploads = answer["uploads"].as_array().into_iter().flatten();
    for (number, kept) in uploads.enumerate() {
        if number == 0 {
            text += "uploads\n";
        }
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {} KB, by {}, {}\n",
            text_of(kept, "kind"),
            text_of(kept, "ownName"),
            text_of(kept, "version"),
            text_of(kept, "digest"),
            kept["size"].as_u64().unwrap_or_default().div_ceil(1024),
            text_of(kept, "by"),
            text_of(kept, "at"),
        );
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        text += &format!(
            "warning: {}\n",
            one_line(warning.as_str().unwrap_or_default())
        );
    }
    text + &last_error(answer)
}

/// The other builds of a plugin.
fn rollout(plugin: &Value) -> String {
    let mut text = String::new();
    let candidate = &plugin["candidate"];
    if candidate.is_object() {
        text += &format!(
            "          {} of a hundred new sessions get {} sha256:{}, {}\n",
            candidate["share"],
            text_of(candidate, "version"),
            text_of(candidate, "digest"),
            counted(&candidate["sessions"], "session"),
        );
    }
    let tried = &plugin["probation"];
    if tried.is_object() {
        text += &format!(
            "          on probation: {} of {} failed, in {} of {}; before it {} of {}\n",
            tried["failed"],
            counted(&tried["steps"], "step"),
            tried["failedIn"],
            counted(&tried["sessions"], "session"),
            tried["failedBefore"],
            counted(&tried["stepsBefore"], "step"),
        );
    }
    for taken in plugin["takenBack"].as_array().into_iter().flatten() {
        text += &format!(
            "          taken back at {}: sha256:{}. {}\n",
            text_of(taken, "at"),
            text_of(taken, "digest"),
            one_line(text_of(taken, "why")),
        );
    }
    for rolled in plugin["rolledBack"].as_array().into_iter().flatten() {
        text += &format!(
            "          rolled back at {} by {}: sha256:{}\n",
            text_of(rolled, "at"),
            one_line(text_of(rolled, "by")),
            text_of(rolled, "digest"),
        );
    }
    text
}

fn from(plugin: &Value) -> String {
    let component = text_of(plugin, "component");
    match (text_of(plugin, "source"), component) {
        ("upload", "") => "an upload".to_owned(),
        ("upload", component) => format!("an upload in place of {}", one_line(component)),
        (_, component) => one_line(component),
    }
}

fn last_error(answer: &Value) -> String {
    let error = &answer["lastError"];
    let problems = error["problems"].as_array().into_iter().flatten();
    let lines = problems.map(|problem| {
        let mut place = text_of(problem, "file").to_owned();
        for part in ["line", "column"] {
            if let Some(number) = problem[part].as_u64() {
                place += &format!(":{number}");
            }
        }
        let what = one_line(text_of(problem, "what"));
        format!(
            "error at {}: {} {what}\n",
            text_of(error, "at"),
            one_line(&place)
        )
    });
    lines.collect()
}

fn uploaded(answer: &Value) -> String {
    format!(
        "{} {} {}\nsha256:{}\nNothing runs on it yet: `lucid plugin activate {} NAME {}`\n",
        text_of(answer, "kind"),
        text_of(answer, "ownName"),
        text_of(answer, "version"),
        text_of(answer, "digest"),
        text_of(answer, "kind"),
        text_of(answer, "digest"),
    )
}

fn changed(answer: &Value) -> String {
    let (kind, name) = (text_of(answer, "kind"), text_of(answer, "name"));
    let now = match answer["digest"].as_str() {
        Some(digest) => format!(
            "is {} sha256:{digest} ({})",
            text_of(answer, "version"),
            text_of(answer, "source")
        ),
        None => "is no longer offered".to_owned(),
    };
    if let Some(candidate) = answer["candidate"].as_str() {
        return format!(
            "The {kind} plugin {name} {now}, and {} of a hundred new sessions get sha256:{candidate}, from generation {} on.\n",
            answer["share"], answer["generation"]
        );
    }
    format!(
        "The {kind} plugin {name} {now}, from generation {} on.\n",
        answer["generation"]
    )
}

pub(super) fn text_of<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_to_another_route() {
        let server = AdminClient {
            base: Url::parse("http://127.0.0.1:8000/behind/").unwrap(),
            token: String::new(),
            client: client_spec().build().unwrap(),
        };
        let url = |name: &str| {
            server
                .url(&["policy", name, "rollback"])
                .unwrap()
                .to_string()
        };
        assert_eq!(
            url("coder"),
            "http://127.0.0.1:8000/behind/api/v1/plugins/policy/coder/rollback"
        );
        for name in ["../../sessions", "a/b", "a?b", "a#b", "%2e%2e"] {
            let path = url(name);
            assert!(
                path.starts_with("http://127.0.0.1:8000/behind/api/v1/plugins/policy/")
                    && path.ends_with("/rollback"),
                "{name}: {path}"
            );
        }
    }

    #[test]
    fn a_server_is_a_plain_address() {
        for good in ["http://127.0.0.1:8000", "https://lucid.example.org/base"] {
            assert!(parse_server_url(good).is_ok(), "{good}");
        }
        for bad in [
            "lucid.example.org",
            "ftp://x",
            "https://u:p@x",
            "https://x?y=1",
            "",
        ] {
            assert!(parse_server_url(bad).is_err(), "{bad}");
        }
        assert!(is_loopback(&Url::parse("http://[::1]:1").unwrap()));
        assert!(!is_loopback(
            &Url::parse("http://localhost.example.org").unwrap()
        ));
    }

    #[test]
    fn what_a_server_answers_cannot_move_the_cursor() {
        let evil = "\u{1b}[2Jx\r";
        let answer = json!({
            "plugins": [{"kind": evil, "name": evil, "component": evil, "source": "upload", "digest": evil}],
            "uploads": [{"ownName": evil}], "warnings": [evil],
            "lastError": {"at": evil, "problems": [{"what": evil, "file": evil}]},
        });
        for text in [listed(&answer), changed(&answer), uploaded(&answer)] {
            let text = strip_controls(&text);
            assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
        }
    }
}
