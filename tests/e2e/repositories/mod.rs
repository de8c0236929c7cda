//! The agent on ten small repositories with a real bug each, led by a model that errs as models do.
//!
//! What always holds: whether a repository is well is said by its own `test.sh`, run by us: on what
//! was published, where it fails, and on a fresh clone of the branch that the agent pushed, where it
//! passes. What is not on that branch does not count.

mod cases;
mod script;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use cases::Case;
use lucid_tests::{GitServer, Host, Model, Socket, repository};

const KEY: &str = "sk-the-tests-own-key-0123456789";

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_is_not_unique_and_one_indented_wrongly_are_edited_in_the_end() {
    solve(cases::python_median()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misleading_test_leads_astray_and_back() {
    solve(cases::python_invoice()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_arguments_and_tools_that_are_not_there_do_no_harm() {
    solve(cases::shell_backup()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_answers_do_no_harm() {
    solve(cases::c_ring()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_fails_is_repaired_and_tried_before_the_end() {
    solve(cases::c_build()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instructions_the_weightier_holds_and_a_refusal_is_not_the_end() {
    solve(cases::perl_csv()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_is_too_long_is_condensed_and_the_work_goes_on() {
    solve(cases::awk_report()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_repository_forbids_is_not_touched() {
    solve(cases::python_forbidden()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_user_can_know_is_asked() {
    solve(cases::shell_config()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_goes_in_circles_is_told_and_gets_out() {
    solve(cases::python_roman()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_refused_is_not_tried_again_and_said_in_the_last_message() {
    let mut case = cases::python_forbidden();
    let work = work(&mut case, false).await;
    let last = work.last;
    assert!(
        last.contains("Not pushed: 1 commit on the branch `lucid/"),
        "{last}"
    );
    let asked = work.model.completions();
    let outputs = asked.last().unwrap().messages("tool");
    let refused = |output: &&String| output.contains("refused access");
    assert_eq!(outputs.iter().filter(refused).count(), 1, "{outputs:#?}");
}

/// A session that came to its end.
struct Work {
    git: GitServer,
    url: String,
    model: Model,
    /// What the agent said last.
    last: String,
}

/// Lets the agent work on a case's repository, on a server that takes pushes or does not.
async fn work(case: &mut Case, pushes: bool) -> Work {
    let files = files(&folder(case.name));
    let named: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    let source = repository(&named);
    let (well, said) = tested(source.path());
    assert!(!well, "there is nothing to repair: {said}");

    let git = GitServer::start().await;
    let url = git.publish(case.name, source.path());
    if !pushes {
        git.git(case.name, &["config", "http.receivepack", "false"]);
    }
    let model = Model::start(script::model(std::mem::take(&mut case.steps))).await;
    let host = Host::with_defaults()
        .set("LLM_API_KEY", KEY)
        .set("LLM_BASE_URL", &model.url)
        .set("MAX_ITERATIONS", case.budget.to_string())
        .start();
    let first = json!({"task": "Make the tests pass: sh test.sh", "repoUrl": url, "branch": "main",
        "gitUserName": "An Agent", "gitUserEmail": "agent@example.com", "modelProvider": "openai"});
    let mut socket = Socket::open(&host, "alice", first).await;
    if let Some(answer) = case.answer {
        let asks = |frame: &Value| {
            let content = frame["content"].as_str().unwrap_or_default();
            frame["eventType"] == "AgentMessageAction" && content.contains('?')
        };
        socket.until("the question", asks).await;
        socket.say(answer).await;
    }
    let ends = |frame: &Value| frame["status"] == "completed" || frame["type"] == "error";
    let frames = socket.until("the end", ends).await;
    assert_eq!(frames.last().unwrap()["status"], "completed", "{frames:#?}");
    let said = |frame: &&Value| frame["eventType"] == "AgentMessageAction";
    let last = frames.iter().rfind(said).expect("the agent said nothing");
    let last = last["content"].as_str().unwrap().to_owned();
    Work {
        git,
        url,
        model,
        last,
    }
}

async fn solve(mut case: Case) {
    let Work {
        git,
        url,
        model,
        last,
    } = work(&mut case, true).await;

    // What became of it stands on one branch of its own, and says so.
    let branches = git.git(
        case.name,
        &["for-each-ref", "--format=%(refname:short)", "refs/heads"],
    );
    let own: Vec<&str> = branches.lines().filter(|name| *name != "main").collect();
    let [branch] = own[..] else {
        panic!("not one branch of its own: {branches}; {last}")
    };
    assert!(branch.starts_with("lucid/make-the-tests-pass"), "{branch}");
    assert!(last.contains(branch), "{last}");
    let changed = git.git(case.name, &["diff", "--name-only", "main", branch]);
    assert_eq!(changed.lines().collect::<Vec<_>>(), case.changed);
    let message = git.git(case.name, &["log", "-1", "--format=%s|%an", branch]);
    assert!(message.starts_with(case.message), "{message}");
    assert!(message.ends_with("|An Agent"), "{message}");
    let clone = tempfile::tempdir().unwrap();
    let target = clone.path().join("clone");
    let arguments = ["clone", "--quiet", "--branch", branch, &url];
    lucid_tests::git(
        clone.path(),
        &[&arguments[..], &[target.to_str().unwrap()]].concat(),
    );
    let (well, said) = tested(&target);
    assert!(well, "{said}");

    // Within its budget, and the model was told what it had to be told.
    let asked = model.completions();
    assert!(asked.len() <= case.budget, "{} model calls", asked.len());
    let all: String = asked.iter().map(script::told).collect();
    for sentence in case.told {
        assert!(all.contains(sentence), "the model was not told: {sentence}");
    }
}

/// Whether a repository's own tests pass, and what they say.
fn tested(folder: &Path) -> (bool, String) {
    let output = Command::new("sh")
        .arg("test.sh")
        .current_dir(folder)
        .output()
        .unwrap();
    let said = lucid_tests::text_of(&output.stdout) + &lucid_tests::text_of(&output.stderr);
    (output.status.success(), said)
}

fn folder(name: &str) -> PathBuf {
    // This is a test of the package in `host`.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/repositories")
        .join(name)
}

/// The files below a folder, by their paths from there.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.push((name.to_owned(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}
