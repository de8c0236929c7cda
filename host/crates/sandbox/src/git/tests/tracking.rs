//! Tests of what a session's clone has beside the checked-out branch, over a real `git
//! http-backend`.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{RULES, Session, history};
use crate::BackendChoice;
use crate::git::*;
use crate::tests::SandboxFixture;
use lucid_tests::{GitServer, git};

/// The size of the sandbox's `.git`, in KiB.
async fn kib(session: &Session) -> u64 {
    let size = session.good("du -sk .git | cut -f 1").await;
    size.parse().unwrap()
}

fn checkout(session: &Session) -> Checkout<'_> {
    Checkout {
        repository: &session.url,
        ..Checkout::default()
    }
}

/// A repository with a branch `side` that adds an incompressible file of 4 MB, and with tags.
fn with_side_branch() -> tempfile::TempDir {
    let source = history();
    let at = source.path();
    git(at, &["tag", "-a", "-m", "first", "v1", "HEAD~2"]);
    git(at, &["checkout", "-q", "-b", "side", "HEAD~4"]);
    let mut word = 1_u64;
    let noise = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 56) as u8
    });
    std::fs::write(at.join("big"), noise.take(4 << 20).collect::<Vec<u8>>()).unwrap();
    git(at, &["add", "big"]);
    git(at, &["commit", "-q", "-m", "Big"]);
    git(at, &["tag", "v2"]);
    git(at, &["checkout", "-q", "main"]);
    source
}

#[tokio::test]
async fn other_branches_and_tags_can_be_checked_out_without_a_fetch() {
    let server = GitServer::start().await;
    let source = with_side_branch();
    for filters in [true, false] {
        let name = format!("filters-{filters}");
        let url = server.publish(&name, source.path());
        server.git(
            &name,
            &["config", "uploadpack.allowFilter", &filters.to_string()],
        );
        let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
        let session = Session::open(&fixture, &url, None, RULES).await;
        let cloned = session.cloned(checkout(&session)).await.unwrap();
        assert!(cloned.all_branches, "{filters}");
        let small = kib(&session).await < 2048;
        assert_eq!(
            small, filters,
            "content of other branches is left out where that is possible"
        );

        assert_eq!(session.good("git log --oneline | wc -l").await, "3");
        session.good("git checkout -q side && test -s big").await;
        // They can be compared only if they have a merge base.
        assert_eq!(session.good("git log --format=%s -1").await, "Big");
        session
            .good("git checkout -q main && git checkout -q other")
            .await;
        session
            .good("git checkout -q v2 && git checkout -q v1")
            .await;
        assert_eq!(session.good("git tag").await, "v1\nv2");
        assert_eq!(session.good("git branch -r | grep -c -v HEAD").await, "3");
        session.good("git switch -q -c work main && echo x > new && git add new && git commit -qm New && git push -q -u origin work && git fetch -q && git status --short").await;
        assert_eq!(
            server.git(&name, &["log", "-1", "--format=%s", "work"]),
            "New"
        );
        session
            .good("git fetch -q --unshallow && git checkout -q main")
            .await;
        assert_eq!(session.good("git log --oneline | wc -l").await, "30");
    }
}

#[tokio::test]
async fn where_other_branches_are_too_much_the_clone_goes_without_them_and_says_so() {
    let server = GitServer::start().await;
    let url = server.publish("big", with_side_branch().path());
    let fixture = SandboxFixture::new(BackendChoice::Landlock).await;
    let rules = GitRules {
        largest: 2 << 20,
        ..RULES
    };
    let session = Session::open(&fixture, &url, None, rules).await;
    let cloned = session.cloned(checkout(&session)).await.unwrap();
    assert!(!cloned.all_branches && !cloned.empty);
    assert!(kib(&session).await < 1024);
    session
        .good("git status --short && git log --oneline && git fsck")
        .await;
    assert_eq!(session.run("git config remote.origin.promisor").await.0, 1);
    session
        .good("git fetch -q origin other && git checkout -q other")
        .await;
}

/// 3,000 branches of up to 30 commits over 1,000 files, some with big files: a stream for
/// fast-import.
fn many_branches() -> Vec<u8> {
    let (mut stream, mut mark) = (Vec::new(), 0_u32);
    let mut commit = |branch: &str, from: Option<u32>, files: &[(String, Vec<u8>)]| {
        mark += 1;
        let time = 1_700_000_000 + u64::from(mark);
        let _ = write!(
            stream,
            "commit refs/heads/{branch}\nmark :{mark}\ncommitter A <a@b.c> {time} +0000\ndata 2\nx\n"
        );
        if let Some(from) = from {
            let _ = writeln!(stream, "from :{from}");
        }
        for (path, content) in files {
            let _ = writeln!(stream, "M 100644 inline {path}\ndata {}", content.len());
            stream.extend_from_slice(content);
            stream.push(b'\n');
        }
        stream.push(b'\n');
        mark
    };
    let path = |number: u32| format!("src/d{:02}/f{number}", number / 20 % 50);
    let all: Vec<_> = (0..1000)
        .map(|it| (path(it), format!("{it}\n").into_bytes()))
        .collect();
    let mut trunk = vec![commit("main", None, &all)];
    for number in 0..100 {
        let text = format!("main {number}\n").into_bytes();
        let last = trunk.last().copied();
        trunk.push(commit("main", last, &[(path(number * 7 % 1000), text)]));
    }
    for branch in 0..3000_u32 {
        let mut last = trunk[branch as usize % trunk.len()];
        for step in 0..[1, 2, 5, 30][branch as usize % 4] {
            let mut files = vec![(
                path((branch + step) % 1000),
                format!("{branch} {step}\n").into_bytes(),
            )];
            if branch % 300 == 0 && step == 0 {
                let mut word = u64::from(branch) + 1;
                let noise = std::iter::repeat_with(|| {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (word >> 56) as u8
                });
                files.push((format!("big-{branch}"), noise.take(3 << 20).collect()));
            }
            last = commit(&format!("team/b{branch}"), Some(last), &files);
        }
    }
    stream
}

#[tokio::test]
async fn three_thousand_branches_with_big_files_make_a_clone_neither_large_nor_slow_to_push_from() {
    let server = GitServer::start().await;
    let url = server.publish_empty("many");
    let folder = server.git("many", &["rev-parse", "--absolute-git-dir"]);
    let mut import = Command::new("git")
        .args(["-C", &folder, "fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    import
        .stdin
        .take()
        .unwrap()
        .write_all(&many_branches())
        .unwrap();
    assert!(import.wait().unwrap().success());
    server.git("many", &["config", "uploadpack.allowFilter", "true"]);

    let fixture = SandboxFixture::roomy(BackendChoice::Landlock).await;
    let rules = GitRules {
        depth: Some(20),
        ..RULES
    };
    let session = Session::open(&fixture, &url, None, rules).await;
    let begun = std::time::Instant::now();
    let cloned = session.cloned(checkout(&session)).await.unwrap();
    let duration = begun.elapsed();
    assert!(cloned.all_branches);
    let size = kib(&session).await;
    println!("3,000 branches: cloned in {duration:?}, .git has {size} KiB");
    // All the big files together have 30 MB.
    assert!(size < 24 << 10, "{size} KiB");
    assert_eq!(session.good("git branch -r | grep -c team/").await, "3000");
    session.good("git checkout -q team/b2703 && test ! -e big-2703 && git checkout -q team/b2700 && test -s big-2700").await;
    let before = server.seen().len();
    session.good("git switch -q -c mine main && echo x > new && git add new && git commit -qm New && git push -q origin mine").await;
    let asked = server.seen().len() - before;
    assert!(asked < 10, "{asked} requests for one push");
}
