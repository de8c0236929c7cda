//! Commands that stay open, with the host's end of the socket in the test's hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lucid_exec::protocol::{Exit, Frame, FrameKind, ResourceLimits, Serve, Start};

/// Wide, so that only what hangs meets it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    child: Child,
    host: UnixStream,
}

impl Server {
    fn start() -> Self {
        let serve = Serve {
            limits: ResourceLimits {
                processes: u64::MAX,
                open_files: 1024,
                file_bytes: 1 << 30,
                ..ResourceLimits::default()
            },
            ..Serve::default()
        };
        let (host, theirs) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lucid-exec"))
            .arg("--serve")
            .arg(serde_json::to_string(&serve).unwrap())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let server = Self { child, host };
        assert_eq!(server.next().kind, FrameKind::Hello);
        server
    }

    fn send(&self, kind: FrameKind, id: u32, payload: &[u8]) {
        Frame::new(kind, id, payload).write_to(&self.host).unwrap();
    }

    fn run(&self, id: u32, command: &str, output_head: usize, live: bool) {
        let start = Start {
            argv: vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
            output_head,
            output_tail: 100,
            live,
            ..Start::default()
        };
        let frame = Frame::json(FrameKind::Start, id, &start).unwrap();
        frame.write_to(&self.host).unwrap();
    }

    fn next(&self) -> Frame {
        Frame::read_from(&self.host).unwrap().unwrap()
    }

    /// What a command prints up to so many bytes, and nothing else.
    fn output(&self, id: u32, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let frame = self.next();
            assert_eq!((frame.kind, frame.id), (FrameKind::Output, id));
            all.extend(frame.payload);
        }
        all
    }

    /// All else that a command prints, the end of what it complains of, and how it ends.
    fn rest(&self, id: u32) -> (Vec<u8>, Vec<u8>, Exit) {
        let (mut all, mut tail) = (Vec::new(), Vec::new());
        loop {
            let frame = self.next();
            assert_eq!(frame.id, id);
            match frame.kind {
                FrameKind::Output => all.extend(frame.payload),
                FrameKind::Tail => tail.extend(frame.payload),
                FrameKind::Exit => {
                    return (all, tail, serde_json::from_slice(&frame.payload).unwrap());
                }
                other => panic!("a {other:?} frame"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_command_that_stays_open_reads_what_comes_until_that_ends() {
    let server = Server::start();
    server.run(1, "cat; echo over", 1000, true);
    for text in ["one\n", "two\n"] {
        server.send(FrameKind::Input, 1, text.as_bytes());
        assert_eq!(server.output(1, text.len()), text.as_bytes());
    }
    server.send(FrameKind::Input, 1, b"");
    let (output, _, exit) = server.rest(1);
    assert_eq!(
        (output.as_slice(), exit.code),
        (b"over\n".as_slice(), Some(0))
    );
    // What comes too late is for nobody.
    server.send(FrameKind::Input, 1, b"late");
    server.send(FrameKind::More, 1, &1_u32.to_be_bytes());
    server.run(2, "echo well", 1000, false);
    assert_eq!(server.rest(2).0, b"well\n");
}

#[test]
fn what_the_host_does_not_grant_waits_and_holds_nobody_up() {
    let server = Server::start();
    server.run(1, "head -c 100000 /dev/zero", 1000, true);
    assert_eq!(server.output(1, 1000).len(), 1000);
    server.run(2, "echo well", 1000, false);
    let (other, _, _) = server.rest(2);
    assert_eq!(other, b"well\n", "nothing of the first came between");
    server.send(FrameKind::More, 1, &200_000_u32.to_be_bytes());
    let (output, _, exit) = server.rest(1);
    assert_eq!((output.len(), exit.code), (99_000, Some(0)));
}

#[test]
fn a_command_that_ends_with_nothing_granted_is_reported_all_the_same() {
    let server = Server::start();
    server.run(1, "echo never read; exit 7", 0, true);
    let (output, _, exit) = server.rest(1);
    assert_eq!((output.len(), exit.code), (0, Some(7)));
}

#[test]
fn complaints_are_kept_apart_and_only_their_end_is() {
    let server = Server::start();
    let command = "head -c 5000 /dev/zero | tr '\\0' x >&2; echo the end >&2; echo said";
    server.run(1, command, 1000, true);
    let (output, tail, exit) = server.rest(1);
    assert_eq!(output, b"said\n");
    assert!(
        tail.len() == 100 && tail.ends_with(b"xthe end\n"),
        "{tail:?}"
    );
    assert_eq!(exit.omitted, 4908);
}

#[test]
fn one_that_does_not_read_what_it_is_given_is_ended_and_no_other() {
    let server = Server::start();
    server.run(1, "echo here; sleep 1000", 1000, true);
    server.run(2, "echo here; read line; echo $line", 1000, true);
    let mut said = [server.next(), server.next()].map(|frame| (frame.id, frame.payload));
    said.sort();
    assert_eq!(said, [1, 2].map(|id| (id, b"here\n".to_vec())));
    for _ in 0..40 {
        server.send(FrameKind::Input, 1, &[b'x'; 256 * 1024]);
    }
    let (_, _, exit) = server.rest(1);
    assert!(exit.killed, "{exit:?}");
    server.send(FrameKind::Input, 2, b"well\n");
    assert_eq!(server.rest(2).0, b"well\n");
}

#[test]
fn the_host_ends_one_with_all_that_it_started() {
    let server = Server::start();
    server.run(1, "sleep 1000 & echo $!; cat", 1000, true);
    let child = String::from_utf8(server.output(1, 2)).unwrap();
    server.send(FrameKind::Kill, 1, b"");
    let (_, _, exit) = server.rest(1);
    assert!(exit.killed);
    let alive = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z"))
    };
    let begun = Instant::now();
    while alive() {
        assert!(begun.elapsed() < PATIENCE, "what it started lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}
