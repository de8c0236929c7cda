//! Tests of pushes by a foreign helper: which of their bytes reach the server.

use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, Response};
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::git::*;
use crate::read_frame;
use lucid_exec::protocol::{GitOpen, GitService, VERSION};

const OLD: &str = "1111111111111111111111111111111111111111";
const NONE: &str = "0000000000000000000000000000000000000000";

/// A git server that accepts everything, and the pushes that reached it.
async fn server() -> (String, Arc<Mutex<Vec<Bytes>>>) {
    let pushes = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&pushes);
    let answer = move |method: Method, body: Bytes| {
        let kind = if method == Method::GET {
            "advertisement"
        } else {
            taken.lock().unwrap().push(body);
            "result"
        };
        let kind = format!("application/x-git-receive-pack-{kind}");
        let answer = Response::builder().header("content-type", kind);
        async { answer.body(axum::body::Body::from("0000")).unwrap() }
    };
    let router = Router::new()
        .fallback(answer)
        .layer(axum::extract::DefaultBodyLimit::disable());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/team/own.git", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, pushes)
}

/// A session's gateway, and a helper that was admitted to push.
struct Helper {
    stream: UnixStream,
    pushes: Arc<Mutex<Vec<Bytes>>>,
    _gateway: GitGateway,
    _folder: TempDir,
}

impl Helper {
    async fn open(branches: BranchPolicy) -> Self {
        let (url, pushes) = server().await;
        let folder = tempfile::tempdir().unwrap();
        let rules = GitRules {
            allow_private: true,
            allow_owner: false,
            branches,
            depth: None,
            largest: 8 << 20,
            longest: Duration::from_secs(60),
        };
        let client = client(true).unwrap();
        let gateway = GitGateway::start(folder.path(), None, &url, None, rules, client).unwrap();
        let stream = UnixStream::connect(folder.path().join("git.sock"));
        let mut helper = Self {
            stream: stream.await.unwrap(),
            pushes,
            _gateway: gateway,
            _folder: folder,
        };
        let open = GitOpen {
            version: VERSION,
            key: std::fs::read_to_string(helper._folder.path().join("git.key")).unwrap(),
            url,
            service: GitService::Push,
        };
        let open = Frame::json(FrameKind::GitOpen, 0, &open).unwrap();
        helper.write(&open).await;
        assert_eq!(helper.answer().await, Ok(b"0000".to_vec()));
        helper
    }

    async fn write(&mut self, frame: &Frame) {
        // A gateway that has refused does not listen any more.
        let _ = self.stream.write_all(&frame.encode()).await;
    }

    async fn send(&mut self, bytes: &[u8], piece: usize) {
        for part in bytes.chunks(piece) {
            self.write(&Frame::new(FrameKind::GitBody, 0, part)).await;
        }
    }

    /// The complete response, or the gateway's error.
    async fn answer(&mut self) -> Result<Vec<u8>, String> {
        let mut answer = Vec::new();
        loop {
            let frame = read_frame(&mut self.stream).await.unwrap();
            match frame.kind {
                FrameKind::GitData => answer.extend(frame.payload),
                FrameKind::GitEnd => return Ok(answer),
                FrameKind::GitError => return Err(String::from_utf8(frame.payload).unwrap()),
                other => panic!("{other:?}"),
            }
        }
    }

    async fn push(&mut self, bytes: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        self.send(bytes, piece).await;
        self.write(&Frame::new(FrameKind::GitPost, 0, Vec::new()))
            .await;
        self.answer().await
    }

    fn pushes(&self) -> Vec<Bytes> {
        self.pushes.lock().unwrap().clone()
    }
}

fn list(names: &[&str], asked: &str) -> Vec<u8> {
    let lines = names.iter().enumerate().map(|(number, name)| {
        let asked = if number == 0 { asked } else { "" };
        let line = format!("{NONE} {OLD} {name}{asked}");
        format!("{:04x}{line}", line.len() + 4)
    });
    let text: String = lines.chain(["0000".to_owned()]).collect();
    text.into_bytes()
}

const REPORT: &str = "\0 report-status agent=git/2.47";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_reaches_the_server_byte_for_byte() {
    let noise = |count: usize| {
        let bytes = (0..count).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8);
        bytes.collect::<Vec<u8>>()
    };
    // Nothing after the list, a pack that is buffered, and one that is streamed.
    for (pack, piece) in [
        (0, 1),
        (0, 7),
        (5_000, 3),
        (70_000, 64_000),
        (3 << 20, 65_000),
    ] {
        let mut helper = Helper::open(BranchPolicy::default()).await;
        let mut bytes = list(&["refs/heads/lucid/a", "refs/heads/lucid/b"], REPORT);
        bytes.extend(noise(pack));
        assert_eq!(helper.push(&bytes, piece).await, Ok(b"0000".to_vec()));
        let pushes = helper.pushes();
        assert_eq!(pushes.len(), 1);
        assert!(pushes[0] == bytes, "{pack} bytes came changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_is_not_allowed_not_a_byte_reaches_the_server() {
    for names in [
        &["refs/heads/main"][..],
        &["refs/heads/lucid/a", "refs/heads/main"],
        &["refs/tags/lucid/a"],
    ] {
        for (pack, piece) in [(0, 1), (3 << 20, 65_000)] {
            let mut helper = Helper::open(BranchPolicy::default()).await;
            let mut bytes = list(names, REPORT);
            bytes.extend(vec![0; pack]);
            let report = helper.push(&bytes, piece).await.unwrap();
            let report = String::from_utf8(report).unwrap();
            assert!(report.contains("unpack ok\n"), "{report}");
            for name in names {
                assert!(report.contains(&format!("ng {name} ")), "{report}");
            }
            assert!(
                report.contains("only to branches named lucid/*"),
                "{report}"
            );
            assert!(helper.pushes().is_empty());
        }
    }
    // If git requests no report, the helper gets an error.
    let mut helper = Helper::open(BranchPolicy::default()).await;
    let sentence = helper.push(&list(&["refs/heads/main"], ""), 100).await;
    let sentence = sentence.unwrap_err();
    assert!(
        sentence.contains("only to branches named lucid/*"),
        "{sentence}"
    );
    assert!(helper.pushes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_not_whole_reaches_nobody() {
    let whole = list(&["refs/heads/lucid/a"], REPORT);
    for end in [0, 3, 50, whole.len() - 4, whole.len() - 1] {
        let mut helper = Helper::open(BranchPolicy::Any).await;
        let sentence = helper.push(&whole[..end], 100).await.unwrap_err();
        assert!(sentence.contains("ends within its commands"), "{sentence}");
        assert!(helper.pushes().is_empty());
    }
    for bytes in [b"0001".to_vec(), b"+02a".to_vec(), b"fff0".repeat(1 << 19)] {
        let mut helper = Helper::open(BranchPolicy::Any).await;
        let sentence = helper.push(&bytes, 60_000).await.unwrap_err();
        assert!(sentence.contains("push"), "{sentence}");
        assert!(helper.pushes().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_without_an_end_is_not_read_for_ever() {
    let mut helper = Helper::open(BranchPolicy::default()).await;
    let mut bytes = list(&["refs/heads/main"], REPORT);
    bytes.extend(vec![0; 9 << 20]);
    let sentence = helper.push(&bytes, 65_000).await.unwrap_err();
    assert!(
        sentence.contains("only to branches named lucid/*"),
        "{sentence}"
    );
}
