//! Sandboxes that hostile code runs in: detecting the backend this machine supports, starting a
//! sandbox for a session, running commands in it, and removing everything at the end.
//!
//! Docker provides containers, bubblewrap namespaces, Landlock confines the files and sockets of
//! ordinary processes, and with `None` nothing is run at all. When the host dies, its sandboxes die
//! with it, except containers: the next host adopts or removes them.
//!
//! # Layout
//! - `manager` has the sandboxes of this machine: `detect` finds which backends work, `launch` starts one, `handle` is one
//!   that runs. `settings`, `error`: their types.
//! - `backend` picks among `docker`, `bubblewrap` and `landlock`; `command_env`, `system_mounts` and `runtime_dir` are what
//!   commands find.
//! - `cgroup` limits a sandbox as a whole, `memory_watch` does where the kernel does not, and `users` has
//!   the user ids of sandboxes.
//! - `connection` speaks to the exec server; `exec` is one command, `process` one that stays open. `unlinked` finds files
//!   that are removed and still open.
//! - `workspace`: a session's files. `tools`: what models do with them. `git`: the only way to a git server.
//!   `proxy`: the only way to any other.
//!
//! # Invariants
//! - A backend is used only after a sandbox of it really ran here.
//! - A sandbox sees one session's workspace and no other.
//! - Commands get an environment built from nothing.
//! - A sandbox is limited as a whole before its first process runs.
//! - When a sandbox is closed, none of its processes lives on.

#![forbid(unsafe_code)]

mod backend;
mod bubblewrap;
mod busy_program;
mod cgroup;
mod command_env;
mod connection;
mod detect;
pub mod docker;
mod error;
mod exec;
pub mod git;
mod handle;
mod landlock;
mod launch;
mod manager;
mod memory_watch;
mod process;
pub mod proxy;
mod runtime_dir;
mod settings;
mod system_etc;
mod system_mounts;
#[cfg(test)]
mod tests;
pub mod tools;
mod trace_right;
mod unlinked;
mod users;
pub mod workspace;

pub use self::backend::{BackendChoice, BackendKind, BackendStatus};
pub use self::connection::read_frame;
pub use self::error::SandboxError;
pub use self::handle::Sandbox;
pub use self::manager::Sandboxes;
pub use self::settings::{Network, PROCESSES, SandboxSettings, SandboxSpec};
pub use self::unlinked::ProcessTable;
pub use self::users::{NoUserIds, UserIdChoice, UserIds};
pub use lucid_types::exec::{ExecRequest, ExecResult, LimitHit, Process};
