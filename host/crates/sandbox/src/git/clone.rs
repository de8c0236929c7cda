//! Clones the session's repository into its workspace.
//!
//! # Invariants
//! - Git runs in the sandbox, never on the host.
//! - No hook of the repository runs, and no protocol but the gateway's is used.
//! - Client input is never taken for an option.
//! - Nothing larger than the operator allows is checked out.
//! - A failure is one sentence.

use std::time::{Duration, Instant};

use super::GitRules;
use super::tracking::{self, CloneState};
use crate::error::SandboxError;
use crate::handle::Sandbox;
use lucid_types::exec::{ExecRequest, ExecResult};
use lucid_types::plural;
use lucid_types::repository_url::{RepositoryUrlError, repository_url};

/// Bytes that a file takes on disk beside its content, for estimating a checkout's size.
const FILE: u64 = 4096;
/// Sums up the checkout's size, and stops when it is too much: a small pack may hold files of any
/// size.
const COUNT: &str = r#"git ls-tree -r -l HEAD | awk -v most="$MOST" -v file="$FILE" '{ sum += $4 + file; if (sum > most) { print "too large"; exit } }'"#;
/// Fetches submodules one by one, since git gives up at the first that fails. Its arguments are
/// git's settings.
const SUBMODULES: &str = r#"git "$@" ls-files --stage | sed -n 's/^160000 [0-9a-f]* 0.//p' | { code=0; while IFS= read -r path; do git "$@" submodule --quiet update --init --recursive $DEPTH -- "$path" || code=1; done; exit $code; }"#;
/// The settings of every git command.
const SETTINGS: [&str; 12] = [
    "-c",
    "protocol.allow=never",
    "-c",
    "protocol.lucid.allow=always",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.quotePath=false",
    "-c",
    "advice.detachedHead=false",
    "-c",
    "init.defaultBranch=main",
];

/// A repository to clone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checkout<'a> {
    /// The repository's URL.
    pub repository: &'a str,
    /// The branch or tag; the repository's default if absent.
    pub branch: Option<&'a str>,
    /// `user.name` for commits.
    pub user_name: Option<&'a str>,
    /// `user.email` for commits.
    pub user_email: Option<&'a str>,
}

/// The committer if the user sets none: git refuses to commit without a name.
const NAME: &str = "Lucid";
const EMAIL: &str = "lucid@localhost";

fn non_empty(value: Option<&str>) -> Option<&str> {
    value.filter(|value| !value.is_empty())
}

/// An error in cloning a repository into a workspace.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The URL cannot be used.
    #[error(transparent)]
    Url(#[from] RepositoryUrlError),
    /// The branch's name cannot be used.
    #[error("{0:?} is not the name of a branch")]
    Branch(String),
    /// The repository has branches, but not this one.
    #[error("the repository has no branch or tag {requested:?}. It has {existing}")]
    NoBranch {
        /// The requested name.
        requested: String,
        /// Some of the existing branches.
        existing: String,
    },
    /// Git failed.
    #[error("the repository could not be cloned: {0}")]
    Failed(String),
    /// The repository is larger than the operator allows.
    #[error("the repository is too large: its files take more than {0} on the disk")]
    TooLarge(String),
    /// The clone took longer than the operator allows, in seconds.
    #[error("the repository could not be cloned within {}", plural::count(.0.to_owned(), "second"))]
    TooSlow(u64),
    /// The sandbox is gone, or cannot run git.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Clones the session's repository into its empty workspace, through the gateway. A repository
/// without commits results in an empty workspace on the requested branch.
pub async fn clone_into(
    sandbox: &Sandbox,
    wanted: Checkout<'_>,
    rules: &GitRules,
) -> Result<CloneState, CloneError> {
    let url = repository_url(wanted.repository)?;
    let branch = wanted.branch.map(branch_name).transpose()?;
    let git = GitRunner {
        sandbox,
        longest: rules.longest,
        end: Instant::now() + rules.longest,
    };
    let depth = rules.depth.map(|depth| format!("--depth={depth}"));
    let clone = |branch: Option<&str>| {
        let mut arguments = vec!["clone", "--quiet", "--no-checkout"];
        arguments.extend(depth.as_deref());
        arguments.extend(branch.iter().flat_map(|branch| ["--branch", branch]));
        arguments.extend(["--", &url, "."]);
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let cloned = git.run(&clone(branch)).await?;
    if cloned.exit_code != 0 {
        let Some(branch) = branch else {
            return Err(CloneError::Failed(sentence(&cloned.output)));
        };
        // Git does not find the branch in an empty repository either.
        let there = git
            .run(&["ls-remote", "--quiet", "--heads", "--", &url])
            .await?;
        if there.exit_code != 0 {
            return Err(CloneError::Failed(sentence(&cloned.output)));
        }
        if !there.output.trim().is_empty() {
            return Err(match branches(&there.output) {
                (names, false) if names.iter().any(|name| name == branch) => {
                    CloneError::Failed(sentence(&cloned.output))
                }
                (names, more) => CloneError::NoBranch {
                    requested: branch.to_owned(),
                    existing: list(&names, more),
                },
            });
        }
        git.run_checked(&clone(None)).await?;
        git.run_checked(&["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")])
            .await?;
    }
    git.configure(&wanted).await?;
    let commit = git
        .run(&["rev-parse", "--quiet", "--verify", "HEAD^{commit}"])
        .await?;
    if commit.exit_code != 0 {
        // The repository is empty: the session will make the first commit.
        return Ok(CloneState {
            empty: true,
            all_branches: false,
        });
    }
    git.count(rules.largest).await?;
    git.run_checked(&["reset", "--quiet", "--hard"]).await?;
    if rules.allow_owner {
        git.submodules(rules.depth).await?;
    }
    // Without a depth git fetches all branches anyway.
    let all_branches = match &depth {
        Some(depth) => git.all_branches(depth).await?,
        None => true,
    };
    Ok(CloneState {
        empty: false,
        all_branches,
    })
}

/// Git in a sandbox, with a single deadline for all its commands.
struct GitRunner<'a> {
    sandbox: &'a Sandbox,
    longest: Duration,
    end: Instant,
}

impl GitRunner<'_> {
    async fn run(&self, arguments: &[impl AsRef<str>]) -> Result<ExecResult, CloneError> {
        let arguments = arguments.iter().map(AsRef::as_ref);
        let argv = ["git"].into_iter().chain(SETTINGS).chain(arguments);
        self.exec(ExecRequest::argv(argv)).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecResult, CloneError> {
        let left = self.end.saturating_duration_since(Instant::now());
        let request = request.timeout(left).keep_output(2000, 2000);
        let result = self.sandbox.exec(request, |_| {}).await?;
        if result.timed_out {
            return Err(CloneError::TooSlow(self.longest.as_secs()));
        }
        Ok(result)
    }

    async fn run_checked(&self, arguments: &[impl AsRef<str>]) -> Result<(), CloneError> {
        let result = self.run(arguments).await?;
        if result.exit_code == 0 {
            return Ok(());
        }
        Err(CloneError::Failed(sentence(&result.output)))
    }

    /// Configures the committer, a refspec that lets a shallow clone see other branches too (as
    /// `--force-with-lease` and a later `git fetch --unshallow` need), and `push.autoSetupRemote`,
    /// so that a plain `git push` publishes a new branch.
    async fn configure(&self, wanted: &Checkout<'_>) -> Result<(), CloneError> {
        let all = "+refs/heads/*:refs/remotes/origin/*";
        for (key, value) in [
            ("remote.origin.fetch", Some(all)),
            ("push.autoSetupRemote", Some("true")),
            ("user.name", non_empty(wanted.user_name).or(Some(NAME))),
            ("user.email", non_empty(wanted.user_email).or(Some(EMAIL))),
        ] {
            if let Some(value) = value {
                self.run_checked(&["config", "--replace-all", key, value])
                    .await?;
            }
        }
        Ok(())
    }

    /// Refuses a checkout larger than `most` bytes.
    async fn count(&self, most: u64) -> Result<(), CloneError> {
        let request = ExecRequest::shell(COUNT)
            .env("MOST", most.to_string())
            .env("FILE", FILE.to_string());
        let counted = self.exec(request).await?;
        if counted.output.contains("too large") {
            return Err(CloneError::TooLarge(plural::size(most)));
        }
        if counted.exit_code != 0 {
            return Err(CloneError::Failed(sentence(&counted.output)));
        }
        Ok(())
    }

    /// Fetches the other branches and the tags, and returns whether that succeeded.
    async fn all_branches(&self, depth: &str) -> Result<bool, CloneError> {
        let argv = ["sh", "-c", tracking::FETCH, "sh"]
            .into_iter()
            .chain(SETTINGS);
        let left = self.end.saturating_duration_since(Instant::now());
        let request = ExecRequest::argv(argv)
            .env("DEPTH", depth)
            .env("BLOCKS", tracking::BLOCKS.to_string())
            .timeout(left.min(tracking::LONGEST))
            .keep_output(2000, 2000);
        let result = self.sandbox.exec(request, |_| {}).await?;
        if result.exit_code != 0 || result.timed_out {
            tracing::warn!(why = %sentence(&result.output), "a session's clone has one branch only");
        }
        Ok(result.exit_code == 0 && !result.timed_out)
    }

    /// Fetches the submodules that the session may have. One that it may not have stays empty: git
    /// tells whoever needs it why.
    async fn submodules(&self, depth: Option<u32>) -> Result<(), CloneError> {
        let depth = depth.map(|depth| format!("--depth={depth}"));
        let argv = ["sh", "-c", SUBMODULES, "sh"].into_iter().chain(SETTINGS);
        let request = ExecRequest::argv(argv).env("DEPTH", depth.unwrap_or_default());
        let result = self.exec(request).await?;
        if result.exit_code != 0 {
            tracing::warn!(why = %sentence(&result.output), "not all submodules of a session's repository were fetched");
        }
        Ok(())
    }
}

fn branch_name(branch: &str) -> Result<&str, CloneError> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    if branch.is_empty()
        || branch.len() > 250
        || branch.starts_with(['-', '/'])
        || branch.ends_with(['/', '.'])
        || branch.contains("..")
        || branch.contains("//")
        || branch.contains("@{")
        || branch.contains(odd)
    {
        return Err(CloneError::Branch(branch.chars().take(100).collect()));
    }
    Ok(branch)
}

/// The branches that `git ls-remote` listed, and whether there are more than were kept.
fn branches(listed: &str) -> (Vec<String>, bool) {
    let names: Vec<String> = listed
        .lines()
        .filter_map(|line| line.split_once("\trefs/heads/"))
        .filter(|(hash, _)| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(|(_, name)| name.to_owned())
        .collect();
    let more = names.len() < listed.lines().count();
    (names, more)
}

fn list(names: &[String], more: bool) -> String {
    let listed: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
    let rest = if more || names.len() > listed.len() {
        " and others"
    } else {
        ""
    };
    match listed.as_slice() {
        [] => "others".to_owned(),
        listed => format!("{}{rest}", listed.join(", ")),
    }
}

/// The line of git's output that says why it failed: the gateway's, or else git's own last line.
fn sentence(output: &str) -> String {
    let line_after = |prefix: &'static str| {
        let lines = output.lines().map(str::trim);
        lines.rev().find_map(move |line| line.strip_prefix(prefix))
    };
    let line = line_after("git-remote-lucid: ")
        .or_else(|| line_after("fatal: "))
        .or_else(|| line_after("error: "))
        .or_else(|| output.lines().map(str::trim).rfind(|line| !line.is_empty()))
        .unwrap_or("git said nothing");
    let line: String = line.chars().filter(|c| !c.is_control()).take(500).collect();
    line.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_git_wrote_the_gateways_sentence_is_told_else_gits_own() {
        for (output, told) in [
            (
                "Cloning into '.'...\ngit-remote-lucid: the git server refused\nfatal: Could not read.\n",
                "the git server refused",
            ),
            ("warning: x\nfatal: bad object.\n", "bad object"),
            ("error: one\nerror: two\n", "two"),
            ("sh: git: not found\n\n", "sh: git: not found"),
            ("", "git said nothing"),
            ("fatal: \u{1b}[31mred", "[31mred"),
        ] {
            assert_eq!(sentence(output), told);
        }
    }

    #[test]
    fn a_branch_is_a_branchs_name() {
        for good in ["main", "feature/a-b", "v1.0", "ünïcode"] {
            assert_eq!(branch_name(good).unwrap(), good);
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a:b",
            "@{-1}",
            "/a",
            "a/",
            "a\n",
        ] {
            assert!(branch_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_branches_that_there_are_are_listed_up_to_ten() {
        let hash = "1".repeat(40);
        let listed = format!("{hash}\trefs/heads/main\n{hash}\trefs/heads/a/b\n");
        let (names, more) = branches(&listed);
        assert_eq!(list(&names, more), "main, a/b");
        let (names, more) = branches(&format!("{listed}[100 bytes left out]\n"));
        assert_eq!(list(&names, more), "main, a/b and others");
        let many: Vec<String> = (0..11).map(|number| format!("b{number}")).collect();
        assert!(list(&many, false).ends_with("b9 and others"));
    }
}
