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
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::{ServerError, TOKEN};
use super::{KindArg, component};
use crate::api::plugins::{
    Activate, ChangedView, LastErrorView, LoadedView, PluginsView, ReloadedView, UploadedView,
};
use crate::auth::{Authenticator, IssueError};
use crate::cli::failed;
use crate::cli::render::{one_line, strip_controls};
use crate::config::Config;
use crate::deployment::uploads::{DeactivatedBuild, UploadStoreError};
use crate::server::{self, DataDirs};
use lucid_net::client::ClientSpec;
use lucid_net::resolver::AddressPolicy;
use lucid_types::plural;
use lucid_types::sentence::sentence;
use lucid_types::user::UserId;
use lucid_wasm::PluginKind;

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

/// Uploads a component, and activates it if that is wanted.
pub(super) async fn upload(args: &UploadArgs) -> ExitCode {
    let answer = async {
        let wasm = component(&args.file)?;
        let server = AdminClient::find(&args.server)?;
        let kept = server.upload(wasm).await?;
        Ok((server, kept))
    };
    let (server, kept) = match answer.await {
        Ok(answered) => answered,
        Err(why) => return refused(&why),
    };
    let Some(name) = &args.activate else {
        return print_result(&args.server, Ok(kept), uploaded);
    };
    let answer = async {
        let kept: UploadedView = read(&kept)?;
        if !args.server.json {
            out!("{}", strip_controls(&uploaded(&kept)));
        }
        let wanted = Activate {
            digest: kept.digest,
            share: None,
            new: args.new,
        };
        server.activate(&kept.kind, name, &wanted).await
    };
    print_result(&args.server, answer.await, changed)
}

/// Activates a build.
pub(super) async fn activate(args: &ActivateArgs) -> ExitCode {
    let answer = async {
        let server = AdminClient::find(&args.server)?;
        let kind = PluginKind::from(args.kind).to_string();
        let wanted = Activate {
            digest: args.digest.clone(),
            share: args.share,
            new: args.new,
        };
        server.activate(&kind, &args.name, &wanted).await
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
            Err(why) => refused(&why),
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
    print_result(args, answer.await, |answer: &ReloadedView| {
        let holds = format!("Generation {} holds.\n", answer.generation);
        holds + &last_error(answer.last_error.as_ref())
    })
}

/// Rolls back in this machine's upload store.
fn roll_back_offline(kind: PluginKind, name: &str) -> Result<String, ServerError> {
    let config = Config::load()?;
    let upload_store = server::open_upload_store(&DataDirs::under(&config.workspace_base_path));
    let roll_back = || {
        let writer = upload_store.lock()?;
        let mut record = upload_store.record()?;
        let Some(off) = record.roll_back(kind, name, OFFLINE, chrono::Utc::now()) else {
            return Ok(None);
        };
        writer.write(&record)?;
        let before = record.builds(kind, name).last();
        let before = before.map(|build| build.digest);
        Ok::<_, UploadStoreError>(Some((off, before)))
    };
    match roll_back()? {
        Some((DeactivatedBuild::Candidate(build), _)) => Ok(format!(
            "The upload sha256:{} has no share of the sessions of the {kind} plugin {name} any more.\n",
            build.digest
        )),
        Some((DeactivatedBuild::Active(last), before)) => {
            let now = match before {
                Some(digest) => format!("the upload sha256:{digest}"),
                None => "what the manifest names".to_owned(),
            };
            Ok(format!(
                "The {kind} plugin {name} is no longer the upload sha256:{}, but {now}.\n",
                last.digest
            ))
        }
        None => Err(ServerError::NothingActive {
            kind,
            name: one_line(name),
        }),
    }
}

/// The server may be anywhere: whoever runs the command named it.
fn client_spec() -> ClientSpec {
    ClientSpec::new(AddressPolicy::Any, CONNECT)
        .repeat_refused()
        .timeout(LONGEST)
}

/// A running server, and the credentials for it.
pub(super) struct AdminClient {
    base: Url,
    token: String,
    client: Client,
}

impl AdminClient {
    pub(super) fn find(args: &ServerArgs) -> Result<Self, ServerError> {
        let (base, token) = match &args.server {
            Some(text) => (parse_server_url(text)?, given_token()),
            None => local_server()?,
        };
        let token = token.ok_or(ServerError::NoToken)?;
        let mut client = client_spec();
        if is_loopback(&base) {
            client = client.without_proxy();
        }
        let client = client.build().map_err(ServerError::Client)?;
        Ok(Self {
            base,
            token,
            client,
        })
    }

    fn url(&self, path: &[&str]) -> Result<Url, ServerError> {
        let mut url = self.base.clone();
        let segments = url.path_segments_mut();
        segments
            .map_err(|()| ServerError::NoPath)?
            .pop_if_empty()
            .extend(["api", "v1", "plugins"])
            .extend(path);
        Ok(url)
    }

    pub(super) async fn ask(&self, method: Method, path: &[&str]) -> Result<Value, ServerError> {
        let request = self.client.request(method, self.url(path)?);
        self.answer(request).await
    }

    pub(super) async fn post(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<Value, ServerError> {
        let request = self.client.post(self.url(path)?);
        self.answer(request.json(body)).await
    }

    async fn upload(&self, wasm: Vec<u8>) -> Result<Value, ServerError> {
        let request = self.client.post(self.url(&[])?);
        let request = request.header("content-type", "application/wasm");
        self.answer(request.body(wasm)).await
    }

    async fn activate(
        &self,
        kind: &str,
        name: &str,
        wanted: &Activate,
    ) -> Result<Value, ServerError> {
        self.post(&[kind, name, "activate"], wanted).await
    }

    /// The body of a successful response, as the server sent it: with `--json` it is printed whole.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, ServerError> {
        let sent = request.bearer_auth(&self.token).send().await;
        let base = || self.base.clone();
        let response: Response = sent.map_err(|source| ServerError::NoAnswer {
            base: base(),
            source,
        })?;
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|source| ServerError::BrokeOff {
            base: base(),
            source,
        })?;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() && answer.is_object() {
            return Ok(answer);
        }
        match answer["detail"].as_str() {
            Some(detail) => Err(ServerError::Refused(detail.to_owned())),
            None => Err(ServerError::NoLucid {
                base: base(),
                status,
            }),
        }
    }
}

/// A response as this version of the program knows it.
pub(super) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, ServerError> {
    T::deserialize(answer).map_err(ServerError::OtherVersion)
}

/// Prints why a command had no success.
pub(super) fn refused(why: &ServerError) -> ExitCode {
    failed(&sentence(why))
}

/// The server of these settings. Whoever can read them can sign tokens.
fn local_server() -> Result<(Url, Option<String>), ServerError> {
    let config = Config::load()?;
    if config.port == 0 {
        return Err(ServerError::RandomPort);
    }
    let mut address = config.address();
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let base = Url::parse(&format!("http://{address}"));
    let base = base.map_err(|source| ServerError::Address { address, source })?;
    if let Some(token) = given_token() {
        return Ok((base, Some(token)));
    }
    let keys = config.keys()?;
    let auth = Authenticator::new(keys.jwt.as_ref(), None);
    let issued = auth.issue_admin(&UserId::from(OPERATOR), TOKEN_TIME);
    let token = issued.map_err(|error| match error {
        // INTERNAL_API_KEY would work, but is not sent: a process that listens there while the
        // server is down would keep it.
        IssueError::NoSecret => ServerError::NoSecret(error),
        error => ServerError::Issue(error),
    })?;
    Ok((base, Some(token)))
}

fn given_token() -> Option<String> {
    let token = std::env::var(TOKEN).ok();
    token
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

fn parse_server_url(text: &str) -> Result<Url, ServerError> {
    let url = Url::parse(text).ok();
    let fits = |url: &Url| {
        let plain = url.username().is_empty() && url.password().is_none();
        matches!(url.scheme(), "http" | "https") && url.has_host() && plain && url.query().is_none()
    };
    url.filter(fits).ok_or(ServerError::Url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn print_result<T: DeserializeOwned>(
    args: &ServerArgs,
    answer: Result<Value, ServerError>,
    show: impl Fn(&T) -> String,
) -> ExitCode {
    let text = match answer {
        Ok(answer) if args.json => {
            outln!("{answer}");
            return ExitCode::SUCCESS;
        }
        Ok(answer) => read(&answer).map(|answer| show(&answer)),
        Err(why) => Err(why),
    };
    match text {
        Ok(text) => out!("{}", strip_controls(&text)),
        Err(why) => return refused(&why),
    }
    ExitCode::SUCCESS
}

fn listed(answer: &PluginsView) -> String {
    let mut text = format!("generation {} since {}\n", answer.generation, answer.since);
    for work in &answer.loading {
        text += &format!(
            "{} {} since {}\n",
            work.doing,
            one_line(&work.what),
            work.since,
        );
    }
    for plugin in &answer.plugins {
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {}, {}\n",
            plugin.kind,
            plugin.name,
            plugin.version,
            plugin.digest,
            from(plugin),
            plural::count(plugin.sessions as u64, "session"),
        );
        text += &rollout(plugin);
        for other in &plugin.other_builds {
            text += &format!(
                "          {} with sha256:{}\n",
                plural::count(other.sessions as u64, "session"),
                other.digest
            );
        }
        for call in &plugin.calls {
            text += &format!(
                "          {:<10} {:>7} calls, p50 {} µs, p99 {} µs, most fuel {}, most memory {} KB, {} refusals, {} failures\n",
                call.call,
                call.calls,
                call.p50_micros,
                call.p99_micros,
                call.most_fuel,
                call.most_memory >> 10,
                call.refusals,
                call.failures,
            );
        }
    }
    for (number, kept) in answer.uploads.iter().enumerate() {
        if number == 0 {
            text += "uploads\n";
        }
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {} KB, by {}, {}\n",
            known(&kept.kind),
            known(&kept.own_name),
            known(&kept.version),
            kept.digest,
            kept.size.div_ceil(1024),
            known(&kept.by),
            known(&kept.at),
        );
    }
    for warning in &answer.warnings {
        text += &format!("warning: {}\n", one_line(warning));
    }
    text + &last_error(answer.last_error.as_ref())
}

/// A text that the server may not know; empty then.
fn known(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

/// The other builds of a plugin.
fn rollout(plugin: &LoadedView) -> String {
    let mut text = String::new();
    if let Some(candidate) = &plugin.candidate {
        text += &format!(
            "          {} of a hundred new sessions get {} sha256:{}, {}\n",
            candidate.share,
            candidate.version,
            candidate.digest,
            plural::count(candidate.sessions as u64, "session"),
        );
    }
    if let Some(tried) = &plugin.probation {
        text += &format!(
            "          on probation: {} of {} failed, in {} of {}; before it {} of {}\n",
            tried.failed,
            plural::count(tried.steps, "step"),
            tried.failed_in,
            plural::count(tried.sessions, "session"),
            tried.failed_before,
            plural::count(tried.steps_before, "step"),
        );
    }
    for taken in &plugin.taken_back {
        text += &format!(
            "          taken back at {}: sha256:{}. {}\n",
            taken.at,
            taken.digest,
            one_line(&taken.why),
        );
    }
    for rolled in &plugin.rolled_back {
        text += &format!(
            "          rolled back at {} by {}: sha256:{}\n",
            rolled.at,
            one_line(&rolled.by),
            rolled.digest,
        );
    }
    text
}

fn from(plugin: &LoadedView) -> String {
    match (plugin.source.as_str(), &plugin.component) {
        ("upload", None) => "an upload".to_owned(),
        ("upload", Some(component)) => format!("an upload in place of {}", one_line(component)),
        (_, component) => one_line(known(component)),
    }
}

fn last_error(error: Option<&LastErrorView>) -> String {
    let Some(error) = error else {
        return String::new();
    };
    let lines = error.problems.iter().map(|problem| {
        let mut place = known(&problem.file).to_owned();
        for number in [problem.line, problem.column].into_iter().flatten() {
            place += &format!(":{number}");
        }
        format!(
            "error at {}: {} {}\n",
            error.at,
            one_line(&place),
            one_line(&problem.what)
        )
    });
    lines.collect()
}

fn uploaded(answer: &UploadedView) -> String {
    let UploadedView {
        kind,
        own_name,
        version,
        digest,
        ..
    } = answer;
    format!(
        "{kind} {own_name} {version}\nsha256:{digest}\nNothing runs on it yet: `lucid plugin activate {kind} NAME {digest}`\n"
    )
}

fn changed(answer: &ChangedView) -> String {
    let ChangedView {
        kind,
        name,
        generation,
        ..
    } = answer;
    let now = match &answer.digest {
        Some(digest) => format!(
            "is {} sha256:{digest} ({})",
            known(&answer.version),
            known(&answer.source)
        ),
        None => "is no longer offered".to_owned(),
    };
    if let (Some(candidate), Some(share)) = (&answer.candidate, answer.share) {
        return format!(
            "The {kind} plugin {name} {now}, and {share} of a hundred new sessions get sha256:{candidate}, from generation {generation} on.\n"
        );
    }
    format!("The {kind} plugin {name} {now}, from generation {generation} on.\n")
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
        let list: PluginsView = read(&json!({
            "generation": 1, "since": evil,
            "plugins": [{
                "kind": evil, "name": evil, "ownName": evil, "version": evil, "description": evil,
                "digest": evil, "source": "upload", "component": evil, "imports": [evil],
                "grants": {}, "limits": {"fuel": 1, "memory": 1, "output": 1, "time": 1.0},
                "sessions": 1, "otherBuilds": [{"digest": evil, "sessions": 1}], "calls": [],
                "activated": [], "candidate": null, "probation": null,
                "takenBack": [{"digest": evil, "at": evil, "why": evil}],
                "rolledBack": [{"digest": evil, "by": evil, "at": evil}],
            }],
            "uploads": [{
                "digest": evil, "size": 1, "kind": evil, "ownName": evil, "version": evil,
                "by": evil, "at": null,
            }],
            "lastError": {"at": evil, "problems": [{"what": evil, "file": evil, "line": 1}]},
            "warnings": [evil],
            "loading": [{"what": evil, "doing": evil, "since": evil}],
        }))
        .unwrap();
        let change: ChangedView = read(&json!({
            "generation": 1, "kind": evil, "name": evil, "digest": evil, "version": evil,
            "source": evil, "candidate": evil, "share": 1,
        }))
        .unwrap();
        let upload: UploadedView = read(&json!({
            "kind": evil, "ownName": evil, "version": evil, "description": evil, "digest": evil,
            "imports": [], "calls": [],
        }))
        .unwrap();
        for text in [listed(&list), changed(&change), uploaded(&upload)] {
            let text = strip_controls(&text);
            assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
        }
    }
}
