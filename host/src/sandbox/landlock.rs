//! The command line of a box without namespaces: the exec server under its own supervisor, confined
//! by Landlock, or by nothing where the operator wants that.
//!
//! What always holds: confined, only the workspace and the session's own folders can be written, and
//! of the system only named folders can be read, none of which holds a secret.

use lucid_exec::protocol::{Confine, Serve};
use tokio::process::Command;

use super::environment::environment;
use super::runtime::SessionDir;
use super::{Network, SandboxError, Settings, Spec, system};
use crate::workspace::box_user;

/// What this kind reads where the other has something of its own: the kernel's view of processes, and
/// names of users and machines. None of them holds a password.
const AS_THE_HOST_HAS_IT: [&str; 4] = ["/proc", "/etc/passwd", "/etc/group", "/etc/hosts"];
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// What commands of such a box can read and write.
fn confinement(settings: &Settings, dir: &SessionDir, spec: Spec<'_>) -> Confine {
    let within = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let network = settings.network == Network::Host;
    let system = [system::USR]
        .into_iter()
        .chain(system::BESIDE_USR)
        .chain(system::ETC)
        .chain(AS_THE_HOST_HAS_IT)
        .chain(network.then_some(system::RESOLVER));
    let mut read_only: Vec<String> = system.map(str::to_owned).collect();
    read_only.push(dir.path().to_string_lossy().into_owned());
    let mut read_write: Vec<String> = DEVICES.map(str::to_owned).into();
    read_write.extend([
        within("tmp"),
        within("home"),
        spec.workspace.to_string_lossy().into_owned(),
    ]);
    Confine {
        read_write,
        read_only,
        network,
    }
}

pub(super) fn command(
    settings: &Settings,
    dir: &SessionDir,
    spec: Spec<'_>,
    confined: bool,
    mut serve: Serve,
) -> Result<Command, SandboxError> {
    let within = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    serve.confine = confined.then(|| confinement(settings, dir, spec));
    let serve =
        serde_json::to_string(&serve).map_err(|error| SandboxError::Start(error.to_string()))?;
    let mut command = Command::new(within("bin/lucid-exec"));
    command
        .args(["--supervise", &serve])
        .env_clear()
        .current_dir(spec.workspace);
    command.envs(environment(
        &within("bin"),
        &within("home"),
        &within("tmp"),
        &within("git.sock"),
        spec,
    ));
    if let Some(user) = box_user() {
        command.uid(user).gid(user);
    }
    Ok(command)
}
