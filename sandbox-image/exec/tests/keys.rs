//! Keys of the host that starts an exec server.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use keyutils::keytypes::User;
use keyutils::{Keyring, Permission};
use lucid_exec::protocol::{Frame, FrameKind, ResourceLimits, Serve, Start};

#[test]
fn a_key_of_the_hosts_session_is_not_in_the_sandboxs() {
    let Ok(mut session) = Keyring::join_anonymous_session() else {
        println!("SKIPPED: this kernel has no keyrings");
        return;
    };
    let name = format!("lucid-key-{}", std::process::id());
    let mut key = session
        .add_key::<User, _, _>(name.as_str(), b"secret".as_slice())
        .unwrap();
    // So that it is listed only for whoever has it in a keyring of theirs.
    key.set_permissions(Permission::POSSESSOR_ALL).unwrap();
    let own = std::fs::read_to_string("/proc/keys").unwrap();
    assert!(own.contains(&name), "the host has its key: {own}");

    let (host, theirs) = UnixStream::pair().unwrap();
    let serve = Serve {
        limits: ResourceLimits {
            processes: u64::MAX,
            open_files: 1024,
            file_bytes: 1 << 30,
            ..ResourceLimits::default()
        },
        ..Serve::default()
    };
    let mut server = Command::new(env!("CARGO_BIN_EXE_lucid-exec"))
        .arg("--serve")
        .arg(serde_json::to_string(&serve).unwrap())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .unwrap();
    let hello = Frame::read_from(&host).unwrap().unwrap();
    assert_eq!(hello.kind, FrameKind::Hello);
    let start = Start {
        argv: ["cat", "/proc/keys"].map(str::to_owned).into(),
        output_head: 100_000,
        ..Start::default()
    };
    (&host)
        .write_all(&Frame::of_command(1, &start).unwrap())
        .unwrap();
    let mut seen = String::new();
    loop {
        let frame = Frame::read_from(&host).unwrap().unwrap();
        match frame.kind {
            FrameKind::Output => seen.push_str(&String::from_utf8_lossy(&frame.payload)),
            FrameKind::Exit => break,
            other => panic!("a {other:?} frame"),
        }
    }
    assert!(!seen.contains(&name), "{seen}");
    host.shutdown(std::net::Shutdown::Write).unwrap();
    (&host).read_to_end(&mut Vec::new()).unwrap();
    server.wait().unwrap();
}
