//! Everyday programs, in every sandbox backend that this machine supports. The table in
//! `sandbox-image/README.md` of what does not run where is this list's: a check that fails where it
//! should run fails the test, and so does one that runs where the table says it does not.

use std::time::Duration;

use super::SandboxFixture;
use crate::landlock::Isolation;
use crate::{BackendChoice, BackendKind, ExecRequest, Sandbox};

/// One everyday task. It works if its script succeeds and prints what is expected.
pub(crate) struct Check {
    pub name: &'static str,
    /// The program it needs; skipped without. The test's own list says what must be installed.
    pub needs: &'static str,
    pub script: &'static str,
    pub(crate) prints: &'static str,
}

const fn check(
    name: &'static str,
    needs: &'static str,
    script: &'static str,
    prints: &'static str,
) -> Check {
    Check {
        name,
        needs,
        script,
        prints,
    }
}

pub(crate) const CHECKS: [Check; 36] = [
    check(
        "pipeline",
        "sort",
        "printf 'b\\na\\nb\\n' | sort | uniq -c | sort -rn | head -n 1 | awk '{ print $2 $1 }'",
        "b2",
    ),
    check(
        "here document",
        "bash",
        "cat <<END\n$((40 + 2))\nEND\ndiff <(echo same) <(echo same) && cat < /dev/null && echo said > /dev/stdout",
        "42\nsaid",
    ),
    check(
        "git init and commit",
        "git",
        "git init -q -b main . && echo x > f && git add f && git -c user.name=a -c user.email=a@b.c commit -qm one && git log --oneline | wc -l",
        "1",
    ),
    check(
        "git outside a repository",
        "git",
        "git status 2>&1 || true",
        "not a git repository",
    ),
    check(
        "python",
        "python3",
        "python3 -c 'import json, os, subprocess, tempfile; tempfile.mkdtemp(); print(subprocess.run([\"echo\", \"ran\"], capture_output=True, text=True).stdout, os.cpu_count() > 0)'",
        "ran\n True",
    ),
    check(
        "python venv",
        "python3",
        "python3 -m venv v && v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'",
        "True",
    ),
    check(
        "pip install of a local wheel",
        "python3",
        r#"python3 - <<'END'
import zipfile
with zipfile.ZipFile("local-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("local.py", "answer = 42\n")
    wheel.writestr("local-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: local\nVersion: 1\n")
    wheel.writestr("local-1.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("local-1.dist-info/RECORD", "")
END
python3 -m venv v && v/bin/pip install --no-index --disable-pip-version-check ./local-1-py3-none-any.whl && v/bin/python -c 'import local; print(local.answer)' && v/bin/pip list"#,
        "42",
    ),
    check(
        "python multiprocessing",
        "python3",
        "printf 'import multiprocessing as m\\ndef f(x): return x * x\\nif __name__ == \"__main__\":\\n  lock = m.Lock()\\n  q = m.Queue(); q.put(1); q.get()\\n  with lock, m.Pool(2) as pool: print(sum(pool.map(f, range(4))))\\n' > p.py && python3 p.py",
        "14",
    ),
    check(
        "python shared memory",
        "python3",
        "python3 -c 'from multiprocessing.shared_memory import SharedMemory as S; s = S(create=True, size=100); s.buf[0] = 7; print(S(s.name).buf[0]); s.close(); s.unlink()' 2>/dev/null || python3 -c 'open(\"/dev/shm/x\", \"w\").write(\"7\"); print(open(\"/dev/shm/x\").read())'",
        "7",
    ),
    check(
        "python terminal",
        "python3",
        "python3 -c 'import os, pty; m, s = pty.openpty(); print(os.isatty(s)); os.write(s, b\"x\"); print(os.read(m, 1)); pty.spawn([\"sh\", \"-c\", \"test -t 0 && echo spawned\"])' < /dev/null",
        "spawned",
    ),
    check(
        "python unittest",
        "python3",
        "printf 'import unittest\\nclass T(unittest.TestCase):\\n  def test_it(self): self.assertEqual(1, 1)\\n' > test_it.py && python3 -m unittest 2>&1",
        "OK",
    ),
    check(
        "who one is",
        "python3",
        "id -u >/dev/null && python3 -c 'import getpass, os, pwd; print(pwd.getpwuid(os.getuid()).pw_name and getpass.getuser() and \"known\"); open(os.path.expanduser(\"~/.x\"), \"w\")'",
        "known",
    ),
    check(
        "own host name",
        "python3",
        "python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'",
        ".",
    ),
    check(
        "script",
        "script",
        "script -qec 'test -t 0 && test -t 1 && echo in a terminal; stty -a >/dev/null; echo x > /dev/tty' /dev/null",
        "in a terminal",
    ),
    check(
        "tmux",
        "tmux",
        "tmux new-session -d -s s 'echo ran > out; sleep 60' && for i in $(seq 100); do test -s out && break; sleep 0.1; done; tmux ls && tmux kill-server; cat out",
        "ran",
    ),
    check(
        "file in /tmp",
        "sh",
        "echo 'echo from there' > /tmp/repro.sh && sh /tmp/repro.sh && ls /tmp && mkdir /tmp/d && mv /tmp/repro.sh . && rm -r /tmp/d",
        "from there",
    ),
    check(
        "file in /var/tmp",
        "sh",
        "echo there > /var/tmp/f && cat /var/tmp/f",
        "there",
    ),
    check(
        "mktemp",
        "mktemp",
        "f=$(mktemp) && d=$(mktemp -d) && echo x > \"$d/y\" && cp \"$d/y\" \"$f\" && cat \"$f\"",
        "x",
    ),
    check("flock", "flock", "flock lock -c 'echo locked'", "locked"),
    check(
        "timeout",
        "timeout",
        "timeout 1 sleep 30; test $? -ne 0 && echo ended",
        "ended",
    ),
    check(
        "find and xargs",
        "find",
        "mkdir -p a/b && touch a/b/one.txt a/two.txt && find a -name '*.txt' | sort | xargs -n 1 basename | tr '\\n' ' '",
        "one.txt two.txt",
    ),
    check(
        "sed and awk",
        "sed",
        "printf 'a 1\\nb 2\\n' > f && sed -i 's/a/c/' f && awk '{ s += $2 } END { print s }' f && grep -c c f",
        "3\n1",
    ),
    check(
        "tar, gzip, xz",
        "tar",
        "mkdir d && echo x > d/f && tar czf d.tgz d && tar cf - d | gzip -9 > e.tgz && rm -r d && tar xzf e.tgz && cat d/f && { ! command -v xz || { xz -k d/f && xz -dc d/f.xz; }; }",
        "x",
    ),
    check(
        "background server and curl",
        "curl",
        "echo served > page; (python3 -u -c 'import http.server as h; s = h.HTTPServer((\"127.0.0.1\", 0), h.SimpleHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()' > port 2> log &) ; for i in $(seq 100); do test -s port && break; sleep 0.1; done; curl -fsS --noproxy '*' \"http://127.0.0.1:$(cat port)/page\"",
        "served",
    ),
    check(
        "ssh-keygen",
        "ssh-keygen",
        "ssh-keygen -q -t ed25519 -N '' -f key && ssh-keygen -lf key.pub",
        "ED25519",
    ),
    check(
        "sqlite",
        "sqlite3",
        "sqlite3 db 'create table t (n); insert into t values (20), (22); select sum(n) from t'",
        "42",
    ),
    check(
        "perl",
        "perl",
        "perl -MList::Util=sum -MPOSIX -e 'print sum(40, 2), strftime(\"\", gmtime), \"\\n\"'",
        "42",
    ),
    check(
        "make",
        "make",
        "printf 'all: out\\n\\tcat out\\nout:\\n\\techo made > $@\\n' > Makefile && make -j2 2>&1",
        "made",
    ),
    check(
        "gcc",
        "gcc",
        "printf '#include <stdio.h>\\nint main(void) { puts(\"compiled\"); }\\n' > m.c && gcc -O1 -o m m.c && ./m",
        "compiled",
    ),
    check(
        "node",
        "node",
        "node -e 'require(\"fs\").mkdtempSync(require(\"os\").tmpdir() + \"/x\"); console.log(6 * 7, require(\"os\").cpus().length > 0)'",
        "42 true",
    ),
    check(
        "npm run",
        "npm",
        "echo '{\"name\":\"p\",\"version\":\"1.0.0\",\"scripts\":{\"hi\":\"echo ran\"}}' > package.json && npm run --silent hi 2>&1",
        "ran",
    ),
    check(
        "cargo build",
        "cargo",
        "cargo init --quiet --name built . && cargo build --quiet --offline && ./target/debug/built",
        "Hello, world!",
    ),
    check(
        "login shell",
        "bash",
        "bash -lic 'echo welcome' 2>&1 < /dev/null | grep -v 'job control\\|terminal process group' | tr '\\n' ' '",
        "welcome",
    ),
    check(
        "system's name",
        "sh",
        "test ! -e /etc/os-release || cat /etc/os-release > /dev/null; test ! -e /etc/debian_version || cat /etc/debian_version > /dev/null; date > /dev/null && echo told",
        "told",
    ),
    check(
        "configuration that is not there",
        "python3",
        "python3 -c 'import pathlib\nfor p in [\"/etc/gitconfig\", \"/etc/pip.conf\", \"/etc/profile\", \"/home\"]:\n  try: pathlib.Path(p).read_text()\n  except (FileNotFoundError, IsADirectoryError): pass\nprint(\"read\")'",
        "read",
    ),
    check(
        "uninterrupted errors of what is above the workspace",
        "python3",
        "python3 -c 'import os\np = os.getcwd()\nwhile p != \"/\":\n  p = os.path.dirname(p); os.listdir(p)\nprint(\"listed\")'",
        "listed",
    ),
];

/// What a machine must have for the list to count; `tests/run` installs it.
const MUST: [&str; 14] = [
    "bash",
    "git",
    "python3",
    "script",
    "tmux",
    "flock",
    "curl",
    "ssh-keygen",
    "sqlite3",
    "perl",
    "make",
    "gcc",
    "node",
    "npm",
];
/// What does not run under Landlock on machines whose users get no namespaces.
const NOT_WITHOUT_NAMESPACES: [&str; 10] = [
    "python multiprocessing",
    "python shared memory",
    "python terminal",
    "script",
    "tmux",
    "file in /tmp",
    "file in /var/tmp",
    "background server and curl",
    "configuration that is not there",
    "uninterrupted errors of what is above the workspace",
];

/// There the result depends on the machine's own files: a session's own user id has no name in them.
const AS_THE_MACHINE_IS: [&str; 4] = ["own host name", "login shell", "who one is", "ssh-keygen"];

/// Runs the list, each check in a folder of its own. Returns what failed and what was skipped.
pub(crate) async fn run(sandbox: &Sandbox) -> (Vec<(&'static str, String)>, Vec<&'static str>) {
    let (mut failed, mut skipped) = (Vec::new(), Vec::new());
    for (number, check) in CHECKS.iter().enumerate() {
        let has = format!("command -v {}", check.needs);
        let has = sandbox.exec(ExecRequest::shell(has), |_| {}).await.unwrap();
        if has.exit_code != 0 {
            skipped.push(check.needs);
            continue;
        }
        let script = format!(
            "mkdir check-{number} && cd check-{number} && {}",
            check.script
        );
        let request = ExecRequest::shell(script).timeout(Duration::from_secs(120));
        let ran = sandbox.exec(request, |_| {}).await.unwrap();
        let output = ran.output.replace('\r', "");
        if ran.exit_code != 0 || !output.contains(check.prints) {
            failed.push((check.name, format!("code {}: {output}", ran.exit_code)));
        }
    }
    (failed, skipped)
}

#[tokio::test]
async fn what_people_run_runs_in_sandboxes_of_processes() {
    for choice in [BackendChoice::Bubblewrap, BackendChoice::Landlock] {
        let fixture = SandboxFixture::roomy(choice).await;
        let sandbox = fixture.start("one", None).await;
        let (failed, skipped) = run(&sandbox).await;
        assert!(failed.is_empty(), "{choice:?}: {failed:#?}");
        for needed in MUST {
            assert!(
                !skipped.contains(&needed),
                "{needed} is missing: bash tests/run installs it"
            );
        }
        sandbox.close().await;
    }
}

#[tokio::test]
async fn without_namespaces_what_does_not_run_is_what_the_table_says() {
    let fixture = SandboxFixture::roomy(BackendChoice::Landlock).await;
    let mut found = crate::detect::DetectedBackends::clone(&fixture.sandboxes.0.detected());
    assert_eq!(
        found.landlock,
        Some(Isolation::PrivateRoot),
        "this test needs user namespaces"
    );
    found.landlock = Some(Isolation::HostRoot);
    fixture.sandboxes.0.set_detected(found);
    let sandbox = fixture.start("one", None).await;
    assert_eq!(sandbox.kind(), BackendKind::Landlock);
    let (failed, _) = run(&sandbox).await;
    let names = failed.iter().map(|(name, _)| *name);
    let names: Vec<&str> = names
        .filter(|name| !AS_THE_MACHINE_IS.contains(name))
        .collect();
    assert_eq!(names, NOT_WITHOUT_NAMESPACES, "{failed:#?}");
    sandbox.close().await;
}

/// What Landlock gives a session of its own belongs to no other session, and not to the host.
#[tokio::test]
async fn tmp_terminals_and_shared_memory_are_each_sandboxs_own() {
    for choice in [BackendChoice::Bubblewrap, BackendChoice::Landlock] {
        let fixture = SandboxFixture::roomy(choice).await;
        let (one, two) = (
            fixture.start("one", None).await,
            fixture.start("two", None).await,
        );
        let shell = async |sandbox: &Sandbox, command: &str| {
            let request = ExecRequest::shell(command);
            sandbox.exec(request, |_| {}).await.unwrap()
        };
        let name = format!("lucid-own-{}", uuid::Uuid::new_v4().simple());
        let made =
            format!("echo x > /tmp/{name} && echo x > /dev/shm/{name} && echo x > /var/tmp/{name}");
        assert_eq!(shell(&one, &made).await.exit_code, 0, "{choice:?}");
        // A terminal that stays open in one is not among the other's, nor among the host's.
        let open = "python3 -c 'import os, pty, time; m, s = pty.openpty(); print(os.ttyname(s), flush=True); time.sleep(60)' > tty 2>&1 & while ! test -s tty; do sleep 0.01; done; cat tty";
        assert_eq!(shell(&one, open).await.output, "/dev/pts/0\n", "{choice:?}");
        let look = format!("ls /dev/pts; cat /tmp/{name} /dev/shm/{name} /var/tmp/{name}");
        let seen = shell(&two, &look).await;
        assert!(
            !seen.output.contains("0\n") && seen.exit_code != 0,
            "{choice:?}: {}",
            seen.output
        );
        for folder in ["/tmp", "/dev/shm", "/var/tmp"] {
            assert!(
                !std::path::Path::new(folder).join(&name).exists(),
                "{choice:?} {folder}"
            );
        }
        // Nothing of the host's is there, and the isolation cannot be undone from inside.
        for command in [
            "ls /root",
            "ls /old",
            "cat /etc/gitconfig",
            "cat /etc/environment",
            "cat /dev/kmsg",
            "mount -t tmpfs tmpfs /tmp",
            "umount /tmp",
            "umount -l /etc",
            "unshare -Urm umount -l /etc",
            "unshare -Urm mount -t proc proc /proc",
            "touch /etc/x",
            "touch /x",
            "touch /dev/x",
            "touch /run/lucid/x",
            "chroot / true",
        ] {
            let ran = shell(&one, command).await;
            assert_ne!(ran.exit_code, 0, "{choice:?} {command}: {}", ran.output);
        }
        one.close().await;
        two.close().await;
    }
}
