//! The harness of the end-to-end tests: the real `lucid` binary on a port and a folder of its own,
//! clients for its REST and WebSocket sides, and the outside world it talks to (a scripted model
//! endpoint, litellm's proxy before one, a git server over smart HTTP, an OCI registry, a PostgreSQL
//! behind PostgREST).
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
pub mod registry;
mod socket;
mod supabase;
mod token;
mod wait;

pub use git::{GitRequest, GitServer, git, repository};
pub use host::{Answer, Host, HostBuilder, binary, command, find, text_of, with_compiled_plugins};
pub use litellm::LiteLlm;
pub use model::{Model, Seen, Turn, call, calls};
pub use process::{guest_memories, own_memory, process_with, stop_within_a_guest};
pub use socket::{Socket, event, is_completed, kinds, seq};
pub use supabase::{Passed, Supabase, anon_key, service_key, user_token};
pub use token::{JWT_SECRET, claims_token, expired_token, foreign_token, token};
pub use wait::{DEADLINE, eventually, within};

/// The component of `tests/guests/hostile`: a policy that misbehaves in the way its task names.
pub const HOSTILE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hostile.wasm"));

/// The component of `tests/guests/counting`: a policy that counts to the number in its task, and tells
/// which build of it does.
const COUNTING: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/counting.wasm"));

/// A build of `tests/guests/counting` of its own. With the manners `good` it does as it should, with
/// `evil` it refuses to take over a session, with `trap` it cannot say what it is, with `bugs` it breaks
/// down at the third number, with `spin` it never comes to an end of its first step.
pub fn counting(number: u32, manners: &str) -> Vec<u8> {
    const WORDS: &[u8] = b"build-0000-good-of-the-guest-that-counts";
    let own = format!("build-{number:04}-{manners}-of-the-guest-that-counts");
    assert_eq!(own.len(), WORDS.len(), "{own} does not fit");
    let mut wasm = COUNTING.to_vec();
    let mut places = wasm.windows(WORDS.len()).enumerate();
    let place = places.find_map(|(at, words)| (words == WORDS).then_some(at));
    let place = place.expect("the guest's words on itself are not in it");
    wasm[place..place + own.len()].copy_from_slice(own.as_bytes());
    wasm
}
