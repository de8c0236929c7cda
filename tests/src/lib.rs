//! The harness of the end-to-end tests: the real `lucid` binary on a port and a folder of its own,
//! clients for its REST and WebSocket sides, and the outside world it talks to (a scripted model
//! endpoint, litellm's proxy before one, a git server over smart HTTP, an OCI registry, a PostgreSQL
//! behind PostgREST).
//!
//! What always holds: nothing here links the host. It is driven as an operator and a frontend drive
//! it, tokens included, so that an error of the host cannot hide in code that both share. A wait has
//! a deadline and says what it waited for; a test that fails prints the host's own log.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "a frontend's client, which is none of the host's"
)]

mod disk;
pub mod docker;
mod git;
mod host;
mod identity;
mod kinds;
mod languages;
mod litellm;
mod model;
mod process;
mod provider;
mod python;
mod recorder;
pub mod registry;
mod schemathesis;
mod socket;
mod supabase;
mod token;
mod wait;

pub use disk::SmallDisk;
pub use git::{GitRequest, GitServer, git, repository};
pub use host::{
    Host, HostBuilder, HttpAnswer, binary, command, command_through, command_with_descriptors,
    find, in_own_mounts, text_of,
};
pub use identity::{IdentityProvider, RSA_1024, RSA_2048, RSA_2048_PUBLIC, SigningKey};
pub use kinds::{HostOfKind, hosts_of_each_kind};
pub use languages::Template;
pub use litellm::LiteLlm;
pub use model::{Model, ModelRequestSeen, ModelTurn, call, calls};
pub use process::{guest_memories, own_memory, process_with, stop_within_a_guest};
pub use provider::GitApi;
pub use recorder::{RecordedRequest, RecordedRequests, record_requests};
pub use schemathesis::schemathesis;
pub use socket::{Socket, event, is_completed, kinds, seq};
pub use supabase::{GatewayRequest, TestSupabase, anon_key, service_key};
pub use token::{
    JWT_SECRET, claims_token, expired_token, foreign_token, hs256_token, hs256_token_with, now,
    token, token_for,
};
pub use wait::{DEADLINE, eventually, within};

/// The exec server, a static executable.
pub const EXEC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lucid-exec"));

/// The component of `tests/guests/hostile`: a policy that misbehaves in the way its task names.
pub const HOSTILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile.wasm"));

/// The component of `tests/guests/counting`: a policy that counts to the number in its task, and tells
/// which build of it does.
const COUNTING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/counting.wasm"));

/// The component of `tests/guests/exchanging`: a git provider's integration that misbehaves in the way its
/// settings name.
pub const EXCHANGING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/exchanging.wasm"));

/// The component of `tests/guests/tooling`: tools that behave, and tools that misbehave in the way their
/// names say.
pub const TOOLING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tooling.wasm"));

/// A build of `tests/guests/tooling` of its own, which says its number when its tool `build` is called.
pub fn tooling(number: u32) -> Vec<u8> {
    const WORDS: &str = "build-0000-of-the-guest-with-tools";
    let own = format!("build-{number:04}-of-the-guest-with-tools");
    rewritten(TOOLING, WORDS, &own)
}

/// Another build of a guest: its words on itself stand once in it, and others take their place.
fn rewritten(guest: &[u8], words: &str, own: &str) -> Vec<u8> {
    assert_eq!(own.len(), words.len(), "{own} does not fit");
    let mut wasm = guest.to_vec();
    let mut places = wasm.windows(words.len()).enumerate();
    let place = places.find_map(|(at, found)| (found == words.as_bytes()).then_some(at));
    let place = place.expect("the guest's words on itself are not in it");
    wasm[place..place + own.len()].copy_from_slice(own.as_bytes());
    wasm
}

/// A build of `tests/guests/counting` of its own. With the manners `good` it does as it should, with
/// `evil` it refuses to take over a session, with `trap` it cannot say what it is, with `bugs` it breaks
/// down at the third number, with `spin` it never comes to an end of its first step.
pub fn counting(number: u32, manners: &str) -> Vec<u8> {
    const WORDS: &str = "build-0000-good-of-the-guest-that-counts";
    let own = format!("build-{number:04}-{manners}-of-the-guest-that-counts");
    rewritten(COUNTING, WORDS, &own)
}
