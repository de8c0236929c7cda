//! `lucid doctor`: what was found on this machine, and how to fix what is missing.
//!
//! # Invariants
//!
//! - No secret is shown, only whether there is one.
//! - Everything that is missing comes with a remedy.
//! - The exit code is 1 if no session could run.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use owo_colors::Style;

use super::descriptors;
use super::render::{FrameRenderer, colours, strip_controls};
use crate::auth::{Jwks, JwksStatus};
use crate::config::{Config, SandboxBackend, SandboxNetwork, is_supabase};
use crate::listener::ConnectionLimits;
use crate::server::{self, DataDirs, StartError};
use lucid_sandbox::docker::Transport;
use lucid_sandbox::{BackendKind, Sandboxes};
use lucid_store::blobs::Blobs;
use lucid_store::{ChatStoreError, Store, StoreError, Supabase};
use lucid_types::plural;
use lucid_types::sentence::{full_stop, sentence};
use url::Url;

/// With fewer descriptors a server of many users runs short of them.
const ENOUGH_DESCRIPTORS: u64 = 4096;

/// The status of a finding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CheckStatus {
    /// It works.
    Good,
    /// It is missing, but something else replaces it or nobody needs it.
    Note,
    /// Nothing can run without it.
    Bad,
}

struct DoctorReport {
    screen: FrameRenderer,
    bad: bool,
}

impl DoctorReport {
    fn title(&self, text: &str) {
        outln!("{}", self.screen.paint(text, Style::new().bold()));
    }

    fn line(&mut self, mark: CheckStatus, text: &str) {
        self.bad |= mark == CheckStatus::Bad;
        let (sign, style) = match mark {
            CheckStatus::Good => ("ok", Style::new().green()),
            CheckStatus::Note => ("--", Style::new().yellow()),
            CheckStatus::Bad => ("!!", Style::new().red()),
        };
        let text = strip_controls(text).trim_end().replace('\n', "\n      ");
        outln!("  {}  {text}", self.screen.paint(sign, style));
    }
}

/// Checks everything, in the order in which a start needs it.
pub(super) async fn doctor(config: Config) -> ExitCode {
    let mut report = DoctorReport {
        screen: FrameRenderer::new(colours(std::io::stdout().is_terminal())),
        bad: false,
    };
    settings(&mut report, &config);
    tokens(&mut report, &config).await;
    store(&mut report, &config);
    chats(&mut report, &config).await;
    let folders = DataDirs::under(&config.workspace_base_path);
    sandboxes(&mut report, &config, &folders).await;
    let usable = plugins(&mut report, &config, &folders).await;
    keys(&mut report, &config, usable);
    if report.bad {
        outln!("\nNo session can run here until what is marked !! is put right.");
        return ExitCode::FAILURE;
    }
    outln!("\nSessions can run here.");
    ExitCode::SUCCESS
}

fn settings(report: &mut DoctorReport, config: &Config) {
    report.title("Settings");
    report.line(CheckStatus::Good, &token_ways(config));
    report.line(
        CheckStatus::Good,
        &format!("listens on {}", config.address()),
    );
    let (mark, files) = open_files(descriptors::limit());
    report.line(mark, &files);
    for warning in config.notes() {
        report.line(CheckStatus::Note, &warning);
    }
}

/// How many files may be open at a time, and what follows from it.
fn open_files(limit: u64) -> (CheckStatus, String) {
    if limit == u64::MAX {
        return (
            CheckStatus::Good,
            "any number of files and connections may be open at a time".to_owned(),
        );
    }
    let connections = ConnectionLimits::for_descriptors(limit).total;
    let found = format!(
        "{limit} files may be open at a time, and {connections} of them may be connections of clients"
    );
    if limit < ENOUGH_DESCRIPTORS {
        let advice = "Raise the hard limit to serve many users: `ulimit -Hn` in a shell, LimitNOFILE= in a systemd unit, --ulimit nofile= for a container.";
        return (CheckStatus::Note, format!("{found}\n{advice}"));
    }
    (CheckStatus::Good, found)
}

/// The ways in which users' tokens are verified.
pub(super) fn token_ways(config: &Config) -> String {
    let keys = config.jwks_url.as_ref();
    let keys = keys.map(|url| format!("the keys at {url} (RS256, ES256)"));
    let ways = match (keys, config.jwt_secret.is_some()) {
        (None, false) => {
            "local mode, for this machine only; set SUPABASE_JWT_SECRET or SUPABASE_URL to serve others".to_owned()
        }
        (None, true) => "tokens are checked with SUPABASE_JWT_SECRET (HS256)".to_owned(),
        (Some(keys), false) => format!("tokens are checked with {keys}"),
        (Some(keys), true) => {
            format!("tokens are checked with SUPABASE_JWT_SECRET (HS256) and {keys}")
        }
    };
    ways + &required_claims(config)
}

/// What tokens must say beside that, as the end of a sentence.
fn required_claims(config: &Config) -> String {
    let mut required = String::new();
    if !config.jwt_audiences.is_empty() {
        let audiences = config.jwt_audiences.join(" or ");
        required.push_str(&format!("; `aud` must name {audiences}"));
    }
    if let Some(issuer) = &config.jwt_issuer {
        required.push_str(&format!("; `iss` must be {issuer}"));
    }
    required
}

/// Checks the identity provider's keys, as they are now.
async fn tokens(report: &mut DoctorReport, config: &Config) {
    let Some(url) = &config.jwks_url else {
        return;
    };
    if let Some(advice) = missing_claims(config, url) {
        report.line(CheckStatus::Note, &advice);
    }
    let look = async { Jwks::new(url.clone())?.inspect().await };
    let look = look.await;
    for reason in look.iter().flat_map(|look| &look.unused) {
        report.line(
            CheckStatus::Note,
            &format!("the identity provider has {reason}; it is not used"),
        );
    }
    match look {
        Ok(JwksStatus { usable: 0, .. }) if config.jwt_secret.is_some() => report.line(
            CheckStatus::Note,
            "The identity provider has no keys that can be used, so tokens are checked with SUPABASE_JWT_SECRET alone.",
        ),
        Ok(JwksStatus { usable: 0, .. }) => report.line(
            CheckStatus::Note,
            "The identity provider has no keys that can be used, so no token is taken: let it sign with RS256 or ES256, or set SUPABASE_JWT_SECRET.",
        ),
        Ok(JwksStatus { usable, .. }) => report.line(
            CheckStatus::Good,
            &format!("the identity provider publishes its keys; those that can be used: {usable}"),
        ),
        Err(error) => report.line(
            CheckStatus::Note,
            &format!("The identity provider's keys cannot be fetched: {error}.\nThe server starts all the same, tries again, and answers tokens that are signed with one with 503 until they are there."),
        ),
    }
}

/// Asks for the settings that keep out tokens which an identity provider signs for its other
/// applications. A Supabase project has no others.
fn missing_claims(config: &Config, keys: &Url) -> Option<String> {
    if is_supabase(keys) {
        return None;
    }
    let unset = match (config.jwt_audiences.is_empty(), config.jwt_issuer.is_none()) {
        (true, true) => "JWT_AUDIENCE and JWT_ISSUER are not set",
        (true, false) => "JWT_AUDIENCE is not set",
        (false, true) => "JWT_ISSUER is not set",
        (false, false) => return None,
    };
    Some(format!(
        "{unset}: a token that the identity provider signs for another application is taken here too. Set them to what its tokens for this server say in `aud` and `iss`."
    ))
}

fn store(report: &mut DoctorReport, config: &Config) {
    report.title("Store");
    if let Err(error) = config.keys() {
        report.line(CheckStatus::Bad, &full_stop(error));
        return;
    }
    let folders = DataDirs::under(&config.workspace_base_path);
    match server::open_store(&folders) {
        Ok(store) => {
            report.line(CheckStatus::Good, &format!("{} in {}", Store::kind(&store), store.folder().display()));
            database_size(report, store.folder());
        }
        // In use, so it works.
        Err(StartError::Store(StoreError::InUse(folder))) => {
            report.line(CheckStatus::Good, &format!("in {}, in use by a lucid that runs now", folder.display()));
            database_size(report, &folder);
        }
        Err(error) => report.line(
            CheckStatus::Bad,
            &format!("{}\nLet this user write to that folder, or set WORKSPACE_BASE_PATH to another one.", error.sentence()),
        ),
    }
}

/// Says of a database that an older version made, and that is too large to be rewritten at a start,
/// how its space comes back.
fn database_size(report: &mut DoctorReport, folder: &Path) {
    let stays = lucid_store::open_read_only(folder);
    if let Ok(Some(size)) = stays.and_then(|database| lucid_store::size_that_stays(&database)) {
        report.line(
            CheckStatus::Note,
            &format!(
                "The database takes {} and keeps its size when chats are deleted, since an older version made it.\nTo have the space back, stop the server and run: sqlite3 {}/lucid.db 'PRAGMA auto_vacuum = incremental; VACUUM'",
                plural::size(size),
                folder.display()
            ),
        );
    }
}

/// Checks the chat store, if it is not the local one.
async fn chats(report: &mut DoctorReport, config: &Config) {
    let Some(settings) = &config.supabase else {
        return;
    };
    let url = &settings.url;
    let found = async {
        let project = Supabase::new(settings)?;
        project.probe().await?;
        Ok::<_, ChatStoreError>(project.probe_macs().await)
    };
    let found = found.await;
    match found {
        Ok(macs) => {
            report.line(CheckStatus::Good, &format!("chats go to Supabase at {url}"));
            if let Err(error) = macs {
                report.line(
                    CheckStatus::Note,
                    &format!(
                        "{} Until then tokens of git accounts go to the deployment's own servers only.",
                        sentence(error)
                    ),
                );
            }
        }
        Err(error) => report.line(
            CheckStatus::Bad,
            &format!("chats go to Supabase at {url}: {}", full_stop(error)),
        ),
    }
    if settings.service_key.is_none() {
        report.line(
            CheckStatus::Note,
            "SUPABASE_SERVICE_KEY is not set: chats of users whose token expired wait for their next request",
        );
    }
}

async fn sandboxes(report: &mut DoctorReport, config: &Config, folders: &DataDirs) {
    report.title("Sandbox");
    let found: Sandboxes = match server::find_sandboxes(config, folders).await {
        Ok(found) => found,
        Err(error) => {
            let advice = match config.sandbox_backend {
                SandboxBackend::Auto | SandboxBackend::None => "",
                SandboxBackend::Docker
                | SandboxBackend::Bubblewrap
                | SandboxBackend::Landlock
                | SandboxBackend::Local => {
                    "\nSet SANDBOX_BACKEND to auto, to use whatever works here."
                }
            };
            report.line(CheckStatus::Bad, &format!("{}{advice}", error.sentence()));
            return;
        }
    };
    let refused = found.refusal().is_some();
    let findings = found.findings();
    for finding in &findings {
        match (&finding.problem, refused) {
            (None, _) if finding.kind == found.kind() => {
                report.line(
                    CheckStatus::Good,
                    &format!("{} works, and is used", finding.kind),
                );
                if found.transport() == Some(Transport::Exec) {
                    report.line(
                        CheckStatus::Note,
                        "its containers cannot reach this server's sockets, so commands go through `docker exec`: slower, and without git. Where this server runs in a container itself, set HOST_WORKSPACE_PATH.",
                    );
                }
            }
            (None, _) => report.line(CheckStatus::Good, &format!("{} works", finding.kind)),
            (Some(problem), _) => report.line(
                CheckStatus::Note,
                &format!("{}: {problem}\n{}", finding.kind, advice(finding.kind)),
            ),
        }
    }
    // The reason why it is not another kind is reported above.
    if !refused && let Some(remark) = found.remark() {
        report.line(CheckStatus::Note, &remark);
    }
    if config.sandbox_backend == SandboxBackend::None {
        report.line(
            CheckStatus::Note,
            "SANDBOX_BACKEND is none: no commands are run, and the mock only shows its script.",
        );
    } else if refused && findings.iter().any(|finding| finding.problem.is_none()) {
        // A working kind that is not selected automatically: the refusal says why, and how to
        // select it.
        let reason = found.refusal().unwrap_or_default();
        report.line(
            CheckStatus::Bad,
            &format!("There is nothing to run commands in. {reason}"),
        );
    } else if refused {
        report.line(
            CheckStatus::Bad,
            "There is nothing to run commands in. Put one of the above right; until then only the mock runs, and it only shows its script.",
        );
    }
    if config.sandbox_network == SandboxNetwork::None {
        report.line(
            CheckStatus::Good,
            "SANDBOX_NETWORK is none: commands have no network",
        );
    }
    // Containers have their own.
    if found.kind() != BackendKind::Docker && !installed("git") {
        report.line(
            CheckStatus::Note,
            "git is not installed, so no repository can be cloned: apt-get install git",
        );
    }
}

/// How to make a kind of sandbox work.
fn advice(kind: BackendKind) -> &'static str {
    match kind {
        BackendKind::Docker => "With it every session has a container of its own.",
        BackendKind::Bubblewrap => {
            "Install it (apt-get install bubblewrap). In a container it needs user namespaces: see --security-opt, or use Landlock."
        }
        BackendKind::Landlock => {
            "It needs a Linux kernel from 5.13 on with landlock in the list of /sys/kernel/security/lsm."
        }
        BackendKind::Local | BackendKind::None => "",
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Reports the loaded plugins, and whether a model can be called.
async fn plugins(report: &mut DoctorReport, config: &Config, folders: &DataDirs) -> bool {
    report.title("Plugins");
    // No model is called, so there are no files.
    let blobs = Blobs::new(&config.workspace_base_path);
    let deployed = match Box::pin(server::deploy(config, folders, blobs)).await {
        Ok(deployed) => deployed,
        Err(error) => {
            report.line(CheckStatus::Bad, &error.sentence());
            return false;
        }
    };
    if let Some(path) = &deployed.manifest.path {
        report.line(CheckStatus::Good, &format!("as {} says", path.display()));
    }
    for plugin in deployed.plugins.list() {
        let line = format!(
            "{:<7} {:<16} {:<8} sha256 {:.12}…",
            plugin.kind.to_string(),
            plugin.name,
            plugin.version,
            plugin.digest,
        );
        report.line(CheckStatus::Good, &line);
    }
    for warning in &deployed.warnings {
        report.line(CheckStatus::Note, warning);
    }
    let (gets, asks) = deployed.describe_defaults();
    match deployed.check_default_provider().await {
        Ok(()) => report.line(
            if asks {
                CheckStatus::Good
            } else {
                CheckStatus::Note
            },
            &gets,
        ),
        Err(why) => report.line(
            CheckStatus::Note,
            &format!("{gets}; but it cannot be asked at the moment: {why}"),
        ),
    }
    let providers = deployed.providers();
    for provider in &providers {
        let mark = if provider.is_usable {
            CheckStatus::Good
        } else {
            CheckStatus::Note
        };
        report.line(mark, &format!("provider {provider}"));
    }
    providers.iter().any(|provider| provider.is_usable)
}

fn keys(report: &mut DoctorReport, config: &Config, usable: bool) {
    report.title("Keys");
    let models = &config.models;
    let own = models.providers.iter();
    let own = own.map(|own| (own.key_variable, own.api_key.is_some()));
    let others = [
        ("LLM_API_KEY", models.api_key.is_some()),
        ("LLM_BASE_URL", models.base_url.is_some()),
        ("INTERNAL_API_KEY", config.internal_api_key.is_some()),
        ("ENCRYPTION_KEY", config.encryption_key.is_some()),
    ];
    for (name, there) in own.chain(others) {
        let (mark, word) = if there {
            (CheckStatus::Good, "set")
        } else {
            (CheckStatus::Note, "not set")
        };
        report.line(mark, &format!("{name} is {word}"));
    }
    if !usable {
        report.line(
            CheckStatus::Note,
            "No model can be asked: set ANTHROPIC_API_KEY, GOOGLE_API_KEY or OPENAI_API_KEY, or LLM_BASE_URL (and LLM_API_KEY) for a compatible server. Until then the mock agent plays its script.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_come_with_advice_and_enough_without() {
        let (mark, text) = open_files(1024);
        assert!(
            mark == CheckStatus::Note && text.contains("LimitNOFILE="),
            "{text}"
        );
        for limit in [4096, 1 << 20, u64::MAX] {
            let (mark, text) = open_files(limit);
            assert!(
                mark == CheckStatus::Good && !text.contains("LimitNOFILE="),
                "{text}"
            );
        }
    }
}
