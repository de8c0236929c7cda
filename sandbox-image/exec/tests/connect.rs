//! The main process of a container, which looks for its host, run as an ordinary process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lucid_exec::protocol::{Exit, Frame, FrameKind, Hello, ResourceLimits, Serve, Start, VERSION};

/// Wide, so that only what hangs meets it.
const PATIENCE: Duration = Duration::from_secs(20);

fn folder(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("lucid-exec-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn server(socket: &Path, patience_seconds: Option<u64>) -> Child {
    let serve = Serve {
        limits: ResourceLimits {
            processes: u64::MAX,
            open_files: 1024,
            file_bytes: 1 << 30,
            ..ResourceLimits::default()
        },
        patience_seconds,
        ..Serve::default()
    };
    Command::new(env!("CARGO_BIN_EXE_lucid-exec"))
        .arg("--connect")
        .arg(socket)
        .arg(serde_json::to_string(&serve).unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Takes the server's connection as a host does.
fn host(socket: &Path) -> UnixStream {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    let (stream, _) = listener.accept().unwrap();
    std::fs::remove_file(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = Frame::read_from(&stream).unwrap().unwrap();
    assert_eq!(hello.kind, FrameKind::Hello);
    let hello: Hello = serde_json::from_slice(&hello.payload).unwrap();
    assert_eq!(hello.version, VERSION);
    stream
}

fn send(host: &UnixStream, id: u32, command: &str) {
    let start = Start {
        argv: vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
        output_head: 1000,
        output_tail: 1000,
        ..Start::default()
    };
    Frame::json(FrameKind::Start, id, &start)
        .unwrap()
        .write_to(host)
        .unwrap();
}

/// What a command printed, read to its end.
fn output(host: &UnixStream, id: u32) -> (String, Exit) {
    let mut text = Vec::new();
    loop {
        let frame = Frame::read_from(host).unwrap().unwrap();
        assert_eq!(frame.id, id);
        match frame.kind {
            FrameKind::Output | FrameKind::Tail => text.extend(frame.payload),
            FrameKind::Exit => {
                let exit = serde_json::from_slice(&frame.payload).unwrap();
                return (String::from_utf8(text).unwrap(), exit);
            }
            other => panic!("a {other:?} frame"),
        }
    }
}

fn alive(pid: &str) -> bool {
    // A zombie is dead, and the server reaps it soon.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

#[test]
fn the_next_host_finds_the_background_and_nothing_that_the_last_one_ran() {
    let folder = folder("next");
    let socket = folder.join("exec.sock");
    let mut child = server(&socket, Some(60));
    let first = host(&socket);
    send(&first, 1, "setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    let (background, exit) = output(&first, 1);
    assert_eq!(exit.code, Some(0));
    send(&first, 2, "echo $$; sleep 1000; true");
    let frame = Frame::read_from(&first).unwrap().unwrap();
    let foreground = String::from_utf8(frame.payload).unwrap();
    let (background, foreground) = (background.trim(), foreground.trim());
    assert!(alive(background) && alive(foreground));
    drop(first);
    let second = host(&socket);
    // Before it serves the next, the server has ended what nobody waits for.
    assert!(!alive(foreground), "a command outlived its host");
    assert!(alive(background), "the background died with the host");
    // Numbers begin anew, and nothing of the last host's comes through.
    send(&second, 1, &format!("kill {background}; echo well"));
    assert_eq!(output(&second, 1).0, "well\n");
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_host_that_breaks_the_rules_is_left_for_the_next() {
    let folder = folder("rules");
    let socket = folder.join("exec.sock");
    let mut child = server(&socket, Some(60));
    let first = host(&socket);
    Frame::new(FrameKind::Output, 1, b"not yours to send".to_vec())
        .write_to(&first)
        .unwrap();
    assert!(matches!(Frame::read_from(&first), Ok(None)));
    let second = host(&socket);
    send(&second, 1, "echo well");
    assert_eq!(output(&second, 1).0, "well\n");
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn without_a_host_it_ends_and_says_why() {
    let folder = folder("alone");
    let socket = folder.join("exec.sock");
    let mut child = server(&socket, Some(1));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begun.elapsed() < PATIENCE, "it waits for ever");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(!status.success());
    let said = io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert!(said.contains("no host was found"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}
