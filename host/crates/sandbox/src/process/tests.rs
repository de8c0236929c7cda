//! Tests of long-running programs in real sandboxes.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::super::tests::SandboxFixture;
use super::super::{BackendChoice, ExecRequest, Sandbox};
use super::*;

const BOTH: [BackendChoice; 2] = [BackendChoice::Bubblewrap, BackendChoice::Landlock];

fn spawn(sandbox: &Sandbox, command: &str) -> Process {
    let request = ExecRequest::shell(command).keep_output(0, 1000);
    sandbox.spawn(request).unwrap()
}

/// With a generous timeout, so that only a hang exceeds it.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, work).await.expect("in time")
}

#[tokio::test]
async fn a_program_that_stays_open_answers_and_says_how_it_ended() {
    for choice in BOTH {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let command = "while read line; do echo \"got $line\"; done; echo so long >&2; exit 3";
        let Process {
            mut input,
            output,
            end,
        } = spawn(&sandbox, command);
        let mut lines = BufReader::new(output).lines();
        for word in ["one", "two"] {
            input
                .write_all(format!("{word}\n").as_bytes())
                .await
                .unwrap();
            let line = in_time(lines.next_line()).await.unwrap().unwrap();
            assert_eq!(line, format!("got {word}"));
        }
        assert_eq!(end.sentence(), None, "it still runs");
        input.shutdown().await.unwrap();
        assert_eq!(in_time(lines.next_line()).await.unwrap(), None);
        let said = "It ended with exit code 3. It said: so long";
        assert_eq!(end.sentence(), Some(said), "{choice:?}");
        sandbox.close().await;
    }
}

#[tokio::test]
async fn all_that_a_program_prints_comes_through_however_much_that_is() {
    let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
    let sandbox = fixture.start("one", None).await;
    let Process { mut output, .. } = spawn(&sandbox, "head -c 3000000 /dev/zero");
    // It waits for its reader, and others do not wait for it.
    let ran = sandbox.exec(ExecRequest::shell("echo well"), |_| {}).await;
    assert_eq!(ran.unwrap().output, "well\n");
    let mut all = Vec::new();
    in_time(output.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 3_000_000);
    sandbox.close().await;
}

#[tokio::test]
async fn a_program_ends_when_its_output_is_dropped_and_with_its_box() {
    let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
    let sandbox = fixture.start("one", None).await;
    let Process {
        input: _input,
        output,
        ..
    } = spawn(
        &sandbox,
        "trap 'touch gone; exit' TERM; touch here; while :; do sleep 0.01; done",
    );
    let there = |name: &str| {
        let file = fixture.workspace("one").host_path().join(name);
        async move {
            in_time(async {
                while !file.exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
    };
    there("here").await;
    drop(output);
    there("gone").await;

    let Process {
        mut output,
        mut input,
        end,
    } = spawn(&sandbox, "cat");
    sandbox.close().await;
    let mut all = Vec::new();
    in_time(output.read_to_end(&mut all)).await.unwrap();
    assert_eq!(end.sentence(), Some("The sandbox is gone."));
    // Writing what cannot be read any more never blocks, whether or not it is noticed at once.
    let _ = in_time(input.write_all(b"late")).await;
    assert!(sandbox.spawn(ExecRequest::argv(["cat"])).is_err());
}

#[tokio::test]
async fn a_program_that_is_not_there_ends_at_once_with_the_reason() {
    let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
    let sandbox = fixture.start("one", None).await;
    let request = ExecRequest::argv(["no-such-program"]);
    let Process {
        mut output, end, ..
    } = sandbox.spawn(request).unwrap();
    let mut all = Vec::new();
    in_time(output.read_to_end(&mut all)).await.unwrap();
    let said = end.sentence().unwrap();
    assert!(said.contains("no program no-such-program"), "{said}");
    sandbox.close().await;
}
