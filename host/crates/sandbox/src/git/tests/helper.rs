//! What a hostile helper sends: whatever it is, no server is asked to change what the rules forbid.

use std::sync::Arc;

use axum::extract::Request;
use lucid_mutations::mutated;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::super::connection::serve;
use super::super::receive_pack::tests::{ASKED, as_git_reads_them, push};
use super::*;

/// A git server that takes everything, and keeps what it was to change.
struct Recording {
    url: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Recording {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/team/project.git", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        let answer = move |request: Request| {
            let kept = Arc::clone(&kept);
            async move {
                if request.method() == Method::GET {
                    return about_a_push("advertisement", "0000");
                }
                if let Ok(body) = axum::body::to_bytes(request.into_body(), usize::MAX).await {
                    kept.lock().push(body);
                }
                about_a_push("result", "000eunpack ok\n0000")
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { url, bodies }
    }

    fn remote(&self) -> UpstreamRemote {
        UpstreamRemote {
            client: client(true).unwrap(),
            url: self.url.clone(),
            login: None,
            pushed: LastPush::default(),
            rules: GitRules {
                branches: BranchPolicy::default(),
                ..RULES
            },
            key: "key".to_owned(),
        }
    }
}

fn about_a_push(kind: &str, body: &'static str) -> Response<Body> {
    Response::builder()
        .header(
            "content-type",
            format!("application/x-git-receive-pack-{kind}"),
        )
        .body(body.into())
        .unwrap()
}

/// What a helper sends for a push of these branches.
fn pushing(url: &str, branches: &[&str]) -> Vec<u8> {
    let open = GitOpen {
        version: VERSION,
        key: "key".to_owned(),
        url: url.to_owned(),
        service: GitService::Push,
    };
    let list = push(branches, ASKED);
    let (head, tail) = list.split_at(list.len() / 2);
    let body = |bytes: &[u8]| Frame::new(FrameKind::GitBody, 0, bytes).encode();
    [
        Frame::json(FrameKind::GitOpen, 0, &open).unwrap().encode(),
        body(head),
        body(tail),
        body(b"PACK and so on"),
        Frame::new(FrameKind::GitPost, 0, Vec::new()).encode(),
    ]
    .concat()
}

/// Whether a helper that sends this waits for an answer to its request.
fn awaits_answer(mut bytes: &[u8]) -> bool {
    let mut last = None;
    while let Ok(Some(frame)) = Frame::read_from(&mut bytes) {
        last = Some(frame.kind);
    }
    bytes.is_empty() && last == Some(FrameKind::GitPost)
}

/// Serves a helper that sends this, and goes when it was answered or cannot be.
async fn serve_bytes(bytes: &[u8], remote: &UpstreamRemote) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (mut answers, mut requests) = theirs.into_split();
    let (answered, waiting) = tokio::sync::oneshot::channel::<()>();
    let sending = async {
        // The other end may be gone already.
        let _ = requests.write_all(bytes).await;
        if awaits_answer(bytes) {
            let _ = waiting.await;
        }
        drop(requests);
    };
    let reading = async {
        // The advertisement's end, and the answer's.
        let mut ends = 0;
        while let Ok(frame) = read_frame(&mut answers).await {
            ends += usize::from(frame.kind == FrameKind::GitEnd);
            if ends == 2 || frame.kind == FrameKind::GitError {
                break;
            }
        }
        drop(answered);
        while read_frame(&mut answers).await.is_ok() {}
    };
    let serving = async {
        let _ = serve(&mut ours, remote).await;
        drop(ours);
    };
    let all = async { tokio::join!(serving, sending, reading) };
    let ended = tokio::time::timeout(Duration::from_secs(60), all).await;
    ended.expect("a helper that is gone is served for ever");
}

#[test]
fn no_mutated_push_asks_a_server_for_a_change_that_is_not_allowed() {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(Recording::start());
    let remote = server.remote();
    let good = pushing(&server.url, &["refs/heads/lucid/a", "refs/heads/lucid/b"]);
    let corpus = [
        good.clone(),
        pushing(&server.url, &["refs/heads/main"]),
        pushing(&server.url, &["refs/heads/lucid/a", "refs/heads/main"]),
        pushing("http://127.0.0.1:1/team/other.git", &["refs/heads/lucid/a"]),
    ];
    // The whole of it arrives when nothing is changed.
    runtime.block_on(serve_bytes(&good, &remote));
    assert_eq!(server.bodies.lock().len(), 1);
    proptest!(|(bytes in mutated(corpus))| {
        runtime.block_on(serve_bytes(&bytes, &remote));
        for body in server.bodies.lock().drain(..) {
            for name in as_git_reads_them(&body) {
                let name = String::from_utf8(name).unwrap();
                prop_assert!(name.starts_with("refs/heads/lucid/"), "{name:?} came through");
            }
        }
    });
}
