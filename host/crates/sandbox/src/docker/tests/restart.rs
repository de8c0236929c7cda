//! Tests in which an engine is really stopped and started again while a session works.

use std::path::Path;
use std::process::{Child, Stdio};

use super::*;

/// An engine of this test's own. Stopped when dropped.
struct Own {
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Own {
    async fn started() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("lucid-engine-")
            .tempdir()
            .unwrap();
        let mut own = Self { dir, process: None };
        own.start().await;
        own
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn address(&self) -> String {
        format!("unix://{}", self.path("sock"))
    }

    async fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let process = Command::new("dockerd")
            .args(["--host", &self.address()])
            .args(["--data-root", &self.path("data")])
            .args(["--exec-root", &self.path("exec")])
            .args(["--pidfile", &self.path("pid")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        until("an engine of the test's own", || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(ended.is_none(), "dockerd ended: {}", log());
            Command::new("docker")
                .args(["-H", &self.address(), "info"])
                .output()
                .is_ok_and(|output| output.status.success())
        })
        .await;
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = process.wait();
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test]
async fn a_session_survives_a_restart_of_the_engine() {
    let Some(image) = image() else {
        return;
    };
    let there = [
        "/usr/sbin/dockerd",
        "/usr/bin/dockerd",
        "/usr/local/bin/dockerd",
    ]
    .iter()
    .any(|path| Path::new(path).exists());
    if !there || !rustix::process::geteuid().is_root() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED a restart of the engine: only root can start one of its own, where dockerd is"
        );
        return;
    }
    let mut engine = Own::started().await;
    let data = Data::new();
    let archive = engine.path("image.tar");
    docker(&["save", "--output", &archive, image]);
    docker(&["-H", &engine.address(), "load", "--input", &archive]);
    let settings = data.settings(|own| own.host = Some(engine.address()));
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC))
        .await
        .unwrap();
    let sandbox = data.start(&host, "one").await;
    shell(&sandbox, "echo work > file").await;
    let ended = sandbox.ended();
    engine.stop();
    let reason = tokio::time::timeout(TIMEOUT, ended).await.unwrap();
    assert!(!sandbox.is_alive(), "{reason}");
    sandbox.close().await;
    engine.start().await;
    let sandbox = data.start(&host, "one").await;
    assert_eq!(sandbox.kind(), BackendKind::Docker);
    assert_eq!(shell(&sandbox, "cat file").await.output, "work\n");
    sandbox.close().await;
    // What could not be removed during the outage is gone as well.
    until("no folder", || data.folders() == 0).await;
    let left = docker(&["-H", &engine.address(), "ps", "--all", "--quiet"]);
    assert_eq!(left, "");
}
