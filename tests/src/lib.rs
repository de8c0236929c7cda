//! The harness of the end-to-end tests: the real `lucid` binary on a port and a folder of its own,
//! clients for its REST and WebSocket sides, and the outside world it talks to (a scripted model
//! endpoint, litellm's proxy before one, a git server over smart HTTP).
//!
//! What always holds: nothing here links the host. It is driven as an operator and a frontend drive
//! it, tokens included, so that an error of the host cannot hide in code that both share. A wait has
//! a deadline and says what it waited for; a test that fails prints the host's own log.

pub mod docker;
mod git;
mod host;
mod litellm;
mod model;
mod process;
mod socket;
mod token;
mod wait;

pub use git::{GitRequest, GitServer, git, repository};
pub use host::{Answer, Host, HostBuilder, binary, command, find, text_of, with_compiled_plugins};
pub use litellm::LiteLlm;
pub use model::{Model, Seen, Turn, call, calls};
pub use process::{guest_memories, own_memory, process_with, stop_within_a_guest};
pub use socket::{Socket, event, is_completed, kinds, seq};
pub use token::{JWT_SECRET, claims_token, expired_token, foreign_token, token};
pub use wait::{DEADLINE, eventually, within};

/// The component of `tests/guests/hostile`: a policy that misbehaves in the way its task names.
pub const HOSTILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile.wasm"));
