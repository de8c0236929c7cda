//! Tests of the empty WASI: what a guest of another toolchain finds, and what it does not.

use wit_parser::Resolve;

use super::*;
use crate::wasi::{INTERFACES, provides};

/// The parts of WASI that these guests import, as WASI's own WIT has them.
const WIT: [&str; 5] = [
    r"package wasi:io@0.2.6;
      interface poll {
        resource pollable { block: func(); ready: func() -> bool; }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
      }",
    r"package wasi:clocks@0.2.6;
      interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> datetime; }
      interface monotonic-clock {
        use wasi:io/poll@0.2.6.{pollable};
        now: func() -> u64;
        subscribe-duration: func(when: u64) -> pollable;
      }",
    r"package wasi:random@0.2.6;
      interface random { get-random-bytes: func(len: u64) -> list<u8>; get-random-u64: func() -> u64; }",
    r"package wasi:cli@0.2.6;
      interface environment { get-environment: func() -> list<tuple<string, string>>; }
      interface exit { exit: func(status: result); }",
    r"package wasi:sockets@0.2.6;
      interface network { enum error-code { unknown, access-denied, not-supported, invalid-argument,
        out-of-memory, timeout, concurrency-conflict, not-in-progress, would-block, invalid-state,
        new-socket-limit, address-not-bindable, address-in-use, remote-unreachable, connection-refused,
        connection-reset, connection-aborted, datagram-too-large, name-unresolvable,
        temporary-resolver-failure, permanent-resolver-failure } enum ip-address-family { ipv4, ipv6 } }
      interface tcp { resource tcp-socket; }
      interface tcp-create-socket {
        use network.{error-code, ip-address-family};
        use tcp.{tcp-socket};
        create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
      }",
];

const IMPORTS: &str = r#"
    (import "wasi:clocks/monotonic-clock@0.2.6" "now" (func $now (result i64)))
    (import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func $timer (param i64) (result i32)))
    (import "wasi:clocks/wall-clock@0.2.6" "now" (func $wall (param i32)))
    (import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
    (import "wasi:io/poll@0.2.6" "[method]pollable.ready" (func $ready (param i32) (result i32)))
    (import "wasi:io/poll@0.2.6" "poll" (func $poll (param i32 i32 i32)))
    (import "wasi:random/random@0.2.6" "get-random-u64" (func $random (result i64)))
    (import "wasi:random/random@0.2.6" "get-random-bytes" (func $bytes (param i64 i32)))
    (import "wasi:cli/environment@0.2.6" "get-environment" (func $environment (param i32)))
    (import "wasi:cli/exit@0.2.6" "exit" (func $exit (param i32)))
    (import "wasi:sockets/tcp-create-socket@0.2.6" "create-tcp-socket" (func $socket (param i32 i32)))
"#;

/// Makes the 32 bytes at 65536 the state.
const GIVE: &str = "(i32.store offset=12 (global.get $ok) (i32.const 65536)) (i32.store offset=16 (global.get $ok) (i32.const 32)) global.get $ok";

async fn guest(step: &str, limits: &PluginLimits) -> PolicyPlugin {
    let mut wit = Resolve::default();
    for (number, text) in WIT.iter().enumerate() {
        wit.push_str(format!("{number}.wit"), text).unwrap();
    }
    let wasm = testing::policy_with(IMPORTS, step, wit);
    PolicyPlugin::load(&engine(), "test", &wasm, limits)
        .await
        .unwrap()
}

async fn state(step: &str, context: &Context) -> Vec<u8> {
    let plugin = guest(&format!("{step} {GIVE}"), &PluginLimits::default()).await;
    let called = plugin.step(context, None, &[]).await;
    called.result.unwrap().state.bytes
}

async fn trap(step: &str) -> String {
    let plugin = guest(step, &PluginLimits::default()).await;
    let error = plugin.step(&context(), None, &[]).await.result.unwrap_err();
    assert!(matches!(error, CallError::Trap { .. }), "{error}");
    error.to_string()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[tokio::test]
async fn both_clocks_show_the_calls_own_time_and_stand_still() {
    let clock = Context {
        now_ms: 1_700_000_000_123,
        ..context()
    };
    let read = "(i64.store (i32.const 65536) (call $now)) (call $wall (i32.const 65544))
        (i64.store (i32.const 65560) (call $now))";
    let bytes = state(read, &clock).await;
    assert_eq!(number(&bytes, 0), 1_700_000_000_123_000_000);
    assert_eq!(number(&bytes, 24), number(&bytes, 0));
    assert_eq!(number(&bytes, 8), 1_700_000_000);
    assert_eq!(bytes[16..20], 123_000_000_u32.to_le_bytes());
    // A time that no clock can represent is not an error.
    let never = Context {
        now_ms: u64::MAX,
        ..context()
    };
    assert_eq!(number(&state(read, &never).await, 0), u64::MAX);
}

#[tokio::test]
async fn the_same_seed_draws_the_same_in_every_version_of_the_host() {
    let draw =
        "(i64.store (i32.const 65536) (call $random)) (i64.store (i32.const 65544) (call $random))";
    let (first, again) = (state(draw, &context()).await, state(draw, &context()).await);
    assert_eq!(first, again);
    // A recorded session is replayed by later hosts, so these must never change. They are SHA-256
    // of "lucid:wasi:random", the seed and 0, each number in 8 bytes, little-endian.
    assert_eq!(number(&first, 0), 0x10e4_04af_e17e_4a7c);
    assert_eq!(number(&first, 8), 0x92cb_ff70_ace4_092a);
    let other = Context {
        seed: 3,
        ..context()
    };
    assert_ne!(state(draw, &other).await, first);
}

#[tokio::test]
async fn a_guest_that_waits_is_told_at_once_what_to_do_instead() {
    let hour = "(call $timer (i64.const 3600000000000))";
    let told = trap(&format!("(call $block {hour}) unreachable")).await;
    assert!(told.contains("`set-timer`"), "{told}");
    let listed = format!(
        "(i32.store (i32.const 65536) {hour}) (call $poll (i32.const 65536) (i32.const 1) (i32.const 65600)) unreachable"
    );
    assert!(trap(&listed).await.contains("`set-timer`"));
    // A guest can ask whether a time has passed, and a timer that is due now does not wait.
    let asked = format!(
        "(i32.store8 (i32.const 65536) (call $ready {hour}))
        (i32.store8 (i32.const 65537) (call $ready (call $timer (i64.const 0))))
        (call $block (call $timer (i64.const 0)))"
    );
    assert_eq!(state(&asked, &context()).await[..2], [0, 1]);
}

#[tokio::test]
async fn a_guest_that_asks_for_the_time_again_and_again_ends_by_its_limits() {
    let until = "(loop $again (br_if $again (i64.lt_u (call $now) (i64.const -1)))) unreachable";
    let few = PluginLimits {
        fuel: 1_000_000,
        ..PluginLimits::default()
    };
    let called = guest(until, &few).await.step(&context(), None, &[]).await;
    assert!(matches!(called.result, Err(CallError::OutOfFuel { .. })));
    let short = PluginLimits {
        fuel: u64::MAX,
        wall: Duration::from_millis(200),
        ..PluginLimits::default()
    };
    let called = guest(until, &short).await.step(&context(), None, &[]).await;
    assert!(matches!(called.result, Err(CallError::Deadline { .. })));
}

#[tokio::test]
async fn a_socket_is_refused_and_nothing_is_in_the_environment() {
    let ask =
        "(call $socket (i32.const 0) (i32.const 65536)) (call $environment (i32.const 65552))";
    let bytes = state(ask, &context()).await;
    assert_eq!(bytes[0], 1, "it is an error");
    assert_eq!(bytes[4], 1, "access-denied: {bytes:?}");
    assert_eq!(bytes[20..24], [0; 4], "no variable");
}

#[tokio::test]
async fn what_a_guest_asks_too_much_of_is_its_own_fault() {
    let told = trap("(call $exit (i32.const 1)) unreachable").await;
    assert!(told.contains("it exited with code 1"), "{told}");
    let told = trap("(call $bytes (i64.const 0x7fffffffffff) (i32.const 65536)) unreachable").await;
    assert!(told.contains("random bytes at once"), "{told}");
    let hoard = "(loop $again (drop (call $timer (i64.const 1))) (br $again)) unreachable";
    trap(hoard).await;
}

#[test]
fn only_what_can_be_empty_is_there_and_only_of_version_0_2() {
    for interface in INTERFACES {
        assert!(provides(&format!("{interface}@0.2.9")), "{interface}");
        for version in [
            "",
            "@",
            "@0.2",
            "@0.2.",
            "@0.2.x",
            "@0.2.9-rc",
            "@0.3.0",
            "@1.0.0",
            "@0.20.1",
        ] {
            assert!(
                !provides(&format!("{interface}{version}")),
                "{interface}{version}"
            );
        }
    }
    for import in [
        "wasi:http/types@0.2.9",
        "wasi:io/pollx@0.2.9",
        "wasi:keyvalue/store@0.2.0",
        "@0.2.0",
        "",
    ] {
        assert!(!provides(import), "{import}");
    }
}
