//! Tests of commands of any length, and of the terminal that none of them has.

use super::SandboxFixture;
use crate::*;

const ALL: [BackendChoice; 3] = [
    BackendChoice::Bubblewrap,
    BackendChoice::Landlock,
    BackendChoice::Local,
];

async fn ran(sandbox: &Sandbox, request: ExecRequest) -> ExecResult {
    sandbox.exec(request, |_| {}).await.unwrap()
}

#[tokio::test]
async fn a_command_of_any_length_runs_as_a_short_one_does() {
    for choice in ALL {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let command = |padding: usize| {
            let padding = "x".repeat(padding);
            format!(
                "read line\n: '{padding}'\necho \"$line $# $0\"; cat <<'END'\n$x\nEND\ncat; echo é; (exit 3)"
            )
        };
        let short = ExecRequest::shell(command(1)).stdin("one\ntwo\n");
        let short = ran(&sandbox, short).await;
        assert_eq!(short.exit_code, 3, "{choice:?}: {short:?}");
        assert!(
            short.output.ends_with("$x\ntwo\né\n"),
            "{choice:?}: {short:?}"
        );
        for length in [119_000, 130_000, 140_000, 1 << 20, 5 << 20] {
            let long = ExecRequest::shell(command(length)).stdin("one\ntwo\n");
            let long = ran(&sandbox, long).await;
            assert_eq!(
                (long.exit_code, long.output),
                (short.exit_code, short.output.clone()),
                "{choice:?}: {length}"
            );
        }
        let input = ExecRequest::shell("wc -c").stdin("x".repeat(5 << 20));
        assert_eq!(ran(&sandbox, input).await.output.trim(), "5242880");
        for too_long in [
            ExecRequest::shell("x".repeat(20 << 20)),
            ExecRequest::argv(["true".to_owned(), "x".repeat(200_000)]),
            ExecRequest::shell("true").env("LONG", "x".repeat(200_000)),
        ] {
            let refused = sandbox.exec(too_long, |_| {}).await.unwrap_err();
            let SandboxError::Refused(sentence) = refused else {
                panic!("{choice:?}: {refused:?}");
            };
            assert!(sentence.contains("file"), "{sentence}");
        }
        let well = ran(&sandbox, ExecRequest::shell("echo well")).await;
        assert_eq!(well.output, "well\n", "{choice:?}");
    }
}

#[tokio::test]
async fn no_command_has_a_terminal_or_is_in_the_session_of_one() {
    // Read as text: in a container whose session began outside of it the number is 0, which no
    // process id can be.
    let own = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (own, _) = session_and_terminal(&own);
    for choice in ALL {
        let fixture = SandboxFixture::new(choice).await;
        let sandbox = fixture.start("one", None).await;
        let command = "cat /proc/self/stat; (: </dev/tty) 2>/dev/null && echo a terminal; cat; test -t 0 || echo none";
        let result = ran(&sandbox, ExecRequest::shell(command)).await;
        let (stat, rest) = result.output.split_once('\n').unwrap();
        assert_eq!(rest, "none\n", "{choice:?}: {result:?}");
        let (session, terminal) = session_and_terminal(stat);
        assert_eq!(terminal, "0", "{choice:?}: {stat}");
        // In bubblewrap the same session has another number.
        if choice != BackendChoice::Bubblewrap {
            assert_ne!(session, own, "{choice:?}: {stat}");
        }
    }
}

/// The session of a process and its controlling terminal, from its line in `/proc/<pid>/stat`
/// (proc(5), fields 6 and 7).
fn session_and_terminal(stat: &str) -> (&str, &str) {
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let mut fields = after_name.split_whitespace().skip(3);
    (fields.next().unwrap(), fields.next().unwrap())
}
