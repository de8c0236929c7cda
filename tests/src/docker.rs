//! A real Docker engine, seen from outside through its command line.
//!
//! What always holds: a test that needs an engine and finds none says so on the terminal, and with
//! `LUCID_DOCKER=required` (set by `tests/run` once it has one, and by `.ci/run`) it fails. What a
//! test started is removed when it ends, also when it failed. Containers of others are never touched:
//! everything goes by a label that only the test knows, or by a container's id.

mod image;
mod site;

use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::wait::{eventually, within};

pub use site::{ContainerNames, Containers};

/// Tells the tests that an engine must be there.
const REQUIRED: &str = "LUCID_DOCKER";

/// The engine, or `None` on a machine without one, where the test ends: that is said on standard
/// error, past the test's captured output.
///
/// # Panics
/// If none answers though `LUCID_DOCKER=required`.
pub async fn engine() -> Option<TestEngine> {
    static FOUND: OnceCell<Result<(), String>> = OnceCell::const_new();
    let found = FOUND
        .get_or_init(async || {
            let info = within("docker info", run(&["info", "--format", "{{.ID}}"])).await?;
            if info.status.success() {
                Ok(())
            } else {
                Err(complaint(&info))
            }
        })
        .await;
    let Err(why) = found else {
        return Some(TestEngine { _private: () });
    };
    match std::env::var(REQUIRED).as_deref() {
        Ok("required") => panic!("no Docker engine answers, but {REQUIRED}=required: {why}"),
        Ok(other) => panic!("{REQUIRED} is '{other}'; the only value is 'required'"),
        Err(_) => {}
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    // `eprintln!` would be captured, and a test that passes shows nothing of it.
    writeln!(
        std::io::stderr(),
        "SKIPPED {test}: no Docker engine answers ({why})"
    )
    .ok();
    None
}

/// An engine that answered.
#[derive(Debug, Clone, Copy)]
pub struct TestEngine {
    _private: (),
}

impl TestEngine {
    /// A small image with `busybox`, `bash`, `git` and `python3`, whose user is root. Built from this
    /// machine's own programs when the engine does not have it yet.
    pub async fn image(&self) -> String {
        static IMAGE: OnceCell<String> = OnceCell::const_new();
        IMAGE
            .get_or_init(async || {
                within(
                    "the test image",
                    tokio::task::spawn_blocking(image::name_of_the_built),
                )
                .await
                .unwrap()
            })
            .await
            .clone()
    }

    /// What `docker ARGUMENTS` prints, trimmed.
    ///
    /// # Panics
    /// If it fails, with its complaint.
    pub async fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments).await;
        assert!(
            output.status.success(),
            "docker {arguments:?}: {}",
            complaint(&output)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// `docker ARGUMENTS`, whatever comes of it.
    pub async fn try_docker(&self, arguments: &[&str]) -> Output {
        within(&format!("docker {arguments:?}"), run(arguments))
            .await
            .unwrap()
    }

    /// The containers with this label (`key=value`, or `key` alone), running or not.
    pub async fn containers(&self, label: &str) -> Vec<TestContainer> {
        self.those_with(&format!("label={label}")).await
    }

    /// The containers whose name begins with this, running or not.
    pub async fn named(&self, prefix: &str) -> Vec<TestContainer> {
        self.those_with(&by_name(prefix)).await
    }

    async fn those_with(&self, filter: &str) -> Vec<TestContainer> {
        let ids = self
            .docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", filter])
            .await;
        ids.lines()
            .map(|id| TestContainer {
                engine: *self,
                id: id.to_owned(),
            })
            .collect()
    }

    /// Waits until that many containers have the label.
    pub async fn until_count(&self, label: &str, count: usize) -> Vec<TestContainer> {
        eventually(
            &format!("{count} containers with the label {label}"),
            async || {
                let found = self.containers(label).await;
                (found.len() == count).then_some(found)
            },
        )
        .await
    }

    /// Waits until that many containers have a name that begins with this.
    pub async fn until_named(&self, prefix: &str, count: usize) -> Vec<TestContainer> {
        eventually(
            &format!("{count} containers whose name begins with {prefix}"),
            async || {
                let found = self.named(prefix).await;
                (found.len() == count).then_some(found)
            },
        )
        .await
    }

    /// Starts a container of the test's own in the test image, without a network: `options` go before
    /// the image and `command` after it. It is removed when what is given back is dropped.
    pub async fn start(&self, options: &[&str], command: &[&str]) -> StartedContainer {
        let label = format!("lucid.test={}", Uuid::new_v4());
        let image = self.image().await;
        let mut arguments = vec!["run", "--detach", "--network=none", "--label", &label];
        arguments.extend(options);
        arguments.push(&image);
        arguments.extend(command);
        let sweep = self.sweep(&label);
        let container = TestContainer {
            engine: *self,
            id: self.docker(&arguments).await,
        };
        StartedContainer {
            container,
            _sweep: sweep,
        }
    }

    /// Removes every container that has this label (`key=value`) when it is dropped: for a test whose
    /// host may be killed, or fail, before it removes them itself.
    pub fn sweep(&self, label: &str) -> Sweep {
        assert!(
            label
                .split_once('=')
                .is_some_and(|(_, value)| !value.is_empty()),
            "'{label}' has no value: it would remove the containers of others"
        );
        Sweep {
            filter: format!("label={label}"),
        }
    }

    /// Removes every container whose name begins with this when it is dropped. The prefix must be the
    /// test's own.
    pub fn sweep_named(&self, prefix: &str) -> Sweep {
        assert!(
            prefix.len() > 8,
            "'{prefix}' may be the beginning of others' names"
        );
        Sweep {
            filter: by_name(prefix),
        }
    }
}

/// A container, which may be gone.
#[derive(Debug, Clone)]
pub struct TestContainer {
    engine: TestEngine,
    /// The whole id.
    pub id: String,
}

impl TestContainer {
    /// What `docker inspect` shows, or `None` when the container is gone.
    pub async fn inspect(&self) -> Option<Value> {
        let output = self
            .engine
            .try_docker(&["container", "inspect", &self.id])
            .await;
        if !output.status.success() {
            let why = complaint(&output);
            assert!(why.to_lowercase().contains("no such container"), "{why}");
            return None;
        }
        let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
        Some(all[0].take())
    }

    /// Waits until what `docker inspect` shows is as wished, and gives it.
    ///
    /// # Panics
    /// If the container goes away instead.
    pub async fn until(&self, what: &str, mut wished: impl FnMut(&Value) -> bool) -> Value {
        eventually(what, async || {
            let seen = self.inspect().await;
            let seen = seen.unwrap_or_else(|| panic!("{} is gone; waited for {what}", self.id));
            wished(&seen).then_some(seen)
        })
        .await
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        eventually(&format!("container {} to be gone", self.id), async || {
            self.inspect().await.is_none().then_some(())
        })
        .await;
    }

    /// Kills its main process, as the machine's memory killer would.
    pub async fn kill(&self) {
        self.engine.docker(&["kill", &self.id]).await;
    }

    /// Removes it, running or not.
    pub async fn remove(&self) {
        self.engine
            .docker(&["rm", "--force", "--volumes", &self.id])
            .await;
    }

    /// Runs a command in it by `docker exec`, as its user.
    pub async fn exec(&self, command: &[&str]) -> Output {
        let mut arguments = vec!["exec", &self.id];
        arguments.extend(command);
        self.engine.try_docker(&arguments).await
    }
}

/// A container that a test started, gone when this is dropped.
#[derive(Debug)]
pub struct StartedContainer {
    container: TestContainer,
    _sweep: Sweep,
}

impl std::ops::Deref for StartedContainer {
    type Target = TestContainer;

    fn deref(&self) -> &TestContainer {
        &self.container
    }
}

/// Removes the containers of a label when it is dropped.
#[derive(Debug)]
pub struct Sweep {
    filter: String,
}

fn by_name(prefix: &str) -> String {
    format!("name=^/?{prefix}")
}

impl Drop for Sweep {
    fn drop(&mut self) {
        // What fails here is left to the engine: a panic while a test fails would hide why it failed.
        let found = std::process::Command::new("docker")
            .args(["ps", "--all", "--quiet", "--filter", &self.filter])
            .output();
        let Ok(found) = found else { return };
        let ids = String::from_utf8_lossy(&found.stdout);
        if ids.trim().is_empty() {
            return;
        }
        std::process::Command::new("docker")
            .args(["rm", "--force", "--volumes"])
            .args(ids.lines())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

async fn run(arguments: &[&str]) -> Result<Output, String> {
    Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("the docker command cannot be run: {error}"))
}

/// What a failed call said, on one line.
fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said.split_whitespace().collect();
    if said.is_empty() {
        output.status.to_string()
    } else {
        said.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Something that lasts until it is killed.
    const LAST: &[&str] = &["sleep", "1000000"];

    fn out(output: &Output) -> String {
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{printed} {}", complaint(output));
        printed
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_image_has_what_a_session_needs() {
        let Some(engine) = engine().await else { return };
        let container = engine
            .start(
                &[
                    "--init",
                    "--user=1000:1000",
                    "--read-only",
                    "--tmpfs=/tmp:exec",
                ],
                LAST,
            )
            .await;
        for (command, printed) in [
            ("id -un", "agent"),
            ("python -c 'import json, unittest; print(6 * 7)'", "42"),
            ("bash -c 'echo ${BASH_VERSION:+yes}'", "yes"),
            ("/usr/bin/env sh -c 'seq 3 | tail -n 1'", "3"),
            ("ls -d /workspace /home/agent", "/home/agent\n/workspace"),
            (
                "cd /tmp && git init -q one && cd one && echo a >a && git add a \
                 && git -c user.name=T -c user.email=t@example.com commit -qm 'One' \
                 && cd .. && git clone -q one two 2>&1 && cat two/a && git -C two log --format=%s",
                "a\nOne",
            ),
        ] {
            let output = container.exec(&["sh", "-c", command]).await;
            assert_eq!(out(&output), printed, "{command}");
        }
        let root = container.exec(&["sh", "-c", "echo x >/etc/x"]).await;
        assert!(!root.status.success());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_image_is_built_once() {
        let Some(engine) = engine().await else { return };
        let name = engine.image().await;
        let id = ["image", "inspect", "--format={{.Id}}", &name];
        let before = engine.docker(&id).await;
        // Past the value that this process keeps.
        let again = tokio::task::spawn_blocking(image::name_of_the_built)
            .await
            .unwrap();
        assert_eq!(again, name);
        assert_eq!(engine.docker(&id).await, before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_container_is_found_by_its_label_and_seen_to_end() {
        let Some(engine) = engine().await else { return };
        let mine = format!("lucid.session_id={}", Uuid::new_v4());
        assert!(engine.containers(&mine).await.is_empty());
        let started = engine.start(&["--label", &mine], LAST).await;
        let other = engine.start(&[], LAST).await;

        let found = engine.until_count(&mine, 1).await;
        assert_eq!(found[0].id, started.id);
        let seen = found[0].inspect().await.unwrap();
        assert_eq!(seen["State"]["Running"], true);
        assert_eq!(seen["HostConfig"]["NetworkMode"], "none");

        found[0].kill().await;
        let seen = found[0]
            .until("the killed container to end", |seen| {
                seen["State"]["Running"] == false
            })
            .await;
        assert_eq!(seen["State"]["ExitCode"], 137);
        assert_eq!(engine.containers(&mine).await.len(), 1, "ended is not gone");

        found[0].remove().await;
        found[0].gone().await;
        engine.until_count(&mine, 0).await;
        assert!(found[0].inspect().await.is_none());
        assert_eq!(other.inspect().await.unwrap()["State"]["Running"], true);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_started_container_is_gone_with_its_test_and_no_other() {
        let Some(engine) = engine().await else { return };
        let other = engine.start(&[], LAST).await;
        let kept: TestContainer = {
            let started = engine.start(&[], LAST).await;
            started.container.clone()
        };
        kept.gone().await;
        assert!(other.inspect().await.is_some());
    }

    #[test]
    #[should_panic(expected = "would remove the containers of others")]
    fn a_sweep_needs_a_value() {
        TestEngine { _private: () }.sweep("lucid.managed=");
    }
}
