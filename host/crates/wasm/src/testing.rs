//! What tests of this module and of its users are made of: an engine, and guests.
//!
//! The guests are core modules written by hand and turned into components against the real WIT. They answer from
//! memory laid out here, so each test can say what a guest does without a guest toolchain.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where something fails"
)]

use std::fmt::Write as _;
use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Docs, Resolve, Span, Stability, WorldItem, WorldKey};

use super::{Engine, EngineOptions};

/// An engine with room for two short calls and two responses at once, and without a cache.
///
/// # Panics
/// If this machine cannot have one.
pub fn engine() -> Engine {
    Engine::new(EngineOptions {
        calls: 2,
        streams: 2,
        ..EngineOptions::default()
    })
    .unwrap()
}

/// The address from which a guest's initial memory begins.
const BASE: u32 = 1024;

/// A guest's memory under construction.
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        Self(Vec::new())
    }

    /// Places bytes at the next multiple of 8.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        let at = BASE + u32::try_from(self.0.len()).unwrap();
        self.0.extend_from_slice(bytes);
        at
    }

    /// Places a string or list of bytes, and returns its pointer and length.
    fn text(&mut self, text: &str) -> [u32; 2] {
        [
            self.put(text.as_bytes()),
            u32::try_from(text.len()).unwrap(),
        ]
    }

    fn words(&mut self, words: &[u32]) -> u32 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(&bytes)
    }

    fn data(&self) -> String {
        let mut data = String::new();
        for byte in &self.0 {
            write!(data, "\\{byte:02x}").unwrap();
        }
        format!("(data (i32.const {BASE}) \"{data}\")")
    }
}

const MEMORY: &str = r#"
    (memory (export "memory") 160)
    (global $next (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.set $next (i32.add (local.get $at) (local.get 3)))
      (local.get $at))
"#;

/// A policy whose `step` has this body. In it, `$ok` is the address of a transition without
/// commands and with the state `[1, 2, 3]`, `$err` that of the error `too\u{7} hot`; local 0 is
/// free.
///
/// # Panics
/// If the body is no WebAssembly text.
pub fn policy(step: &str) -> Vec<u8> {
    policy_with("", step, Resolve::default())
}

/// Like [`policy`], with more core imports, from interfaces in `also`; the guest imports all of
/// them.
pub(super) fn policy_with(imports: &str, step: &str, also: Resolve) -> Vec<u8> {
    let mut image = Image::new();
    let [name, version, about] = ["test", "1.2.3", "A test."].map(|text| image.text(text));
    let descriptor = image.words(&[
        name[0], name[1], version[0], version[1], about[0], about[1], 1, 7, 5,
    ]);
    let state = image.put(&[1, 2, 3]);
    let ok = image.words(&[0, 0, 7, state, 3, 0, 0]);
    let message = image.text("too\u{7} hot");
    let err = image.words(&[1, 0, 8, 0, 0, 0, message[0], message[1], 0, 0, 0, 0]);
    let log = image.text("a\x1b[1mb");
    let module = format!(
        r#"(module
    (import "lucid:host/log@0.1.0" "log" (func $log (param i32 i32 i32)))
    {imports}
    {MEMORY}
    {data}
    (global $ok i32 (i32.const {ok}))
    (global $err i32 (i32.const {err}))
    (func $say (call $log (i32.const 1) (i32.const {log}) (i32.const {log_len})))
    (func (export "lucid:policy/policy@0.1.0#describe") (result i32) (i32.const {descriptor}))
    (func (export "lucid:policy/policy@0.1.0#migrate") (param i32 i32 i32) (result i32) unreachable)
    (func (export "lucid:policy/policy@0.1.0#step")
      (param i32) (result i32)
      {step}))"#,
        data = image.data(),
        log = log[0],
        log_len = log[1],
    );
    component(&module, "policy", "policy-plugin", also)
}

/// The behaviour of an LLM guest.
#[derive(Debug)]
pub struct Llm {
    /// The path it sends to.
    pub path: &'static str,
    /// The framing it expects, as the number of the case in the WIT.
    pub framing: u32,
    /// The name of the one header it sends.
    pub header: &'static str,
    /// Token counts, read and written, that it also reports with each push.
    pub told: Option<[u32; 2]>,
}

impl Default for Llm {
    fn default() -> Self {
        Self {
            path: "/chat",
            framing: 0,
            header: "content-type",
            told: None,
        }
    }
}

/// An adapter that posts `{}`, or the first text or digest of a conversation's first message; shows
/// `x` for each push, and ends with `done`. A refusal's body is its error's message; status 429 is
/// `rate-limited`, 401 `unauthenticated`, 400 `invalid-input`, anything else `upstream`.
pub fn llm(guest: &Llm) -> Vec<u8> {
    let mut image = Image::new();
    let [name, version, about, url, model] =
        ["test", "1.2.3", "A test.", "https://example.org", "m"].map(|text| image.text(text));
    let bearer = [0, 0, 0];
    let descriptor = image.words(
        &[
            &[name, version, about, url, model, model].concat()[..],
            &bearer,
        ]
        .concat(),
    );
    let none = image.words(&[0, 0]);
    let no_probe = image.words(&[0; 11]);
    let [post, path, header, value, body] =
        ["POST", guest.path, guest.header, "application/json", "{}"].map(|text| image.text(text));
    let headers = image.words(&[header, value].concat());
    let encoded = image.words(&[
        0,
        0,
        post[0],
        post[1],
        path[0],
        path[1],
        0,
        0,
        headers,
        1,
        body[0],
        body[1],
        0,
        0,
        guest.framing,
    ]);
    let error = image.words(&[0; 12]);
    let x = image.text("x");
    let [read, written] = guest.told.unwrap_or_default();
    let delta = image.words(
        &[
            [0, 0, x[0], x[1], 0, 0, 0, 0, 0, 0],
            [4, 0, read, 0, written, 0, 0, 0, 0, 0],
        ]
        .concat(),
    );
    let count = 1 + u32::from(guest.told.is_some());
    let deltas = image.words(&[0, 0, delta, count]);
    let done = image.text("done");
    let content = image.words(&[0, 0, done[0], done[1], 0, 0, 0, 0, 0, 0, 0, 0]);
    let finished = image.words(&[0, 0, 2, content, 1, 0, 11, 0, 22, 0, 0, 0, 0, 0]);
    let at = "lucid:llm/provider@0.1.0";
    let module = format!(
        r#"(module
    (import "[export]{at}" "[resource-new]decoder" (func $new (param i32) (result i32)))
    {MEMORY}
    {data}
    (func (export "{at}#describe") (result i32) (i32.const {descriptor}))
    (func (export "{at}#models") (param i32 i32) (result i32) (i32.const {none}))
    (func (export "{at}#probe") (param i32 i32) (result i32) (i32.const {no_probe}))
    (func (export "{at}#encode")
      (param i32 i32 i32 i32) (param $messages i32) (param $count i32)
      (param i32 i32 i32 i32 i32 i32 i32) (result i32)
      (if (local.get $count) (then
        (i32.store (i32.const {body_at}) (i32.load offset=8 (i32.load offset=4 (local.get $messages))))
        (i32.store (i32.const {body_length}) (i32.load offset=12 (i32.load offset=4 (local.get $messages))))))
      (i32.const {encoded}))
    (func (export "{at}#classify") (param $status i32) (param i32 i32 i32 i32) (result i32)
      (i32.store8 (i32.const {error})
        (if (result i32) (i32.eq (local.get $status) (i32.const 429)) (then (i32.const 5))
          (else (if (result i32) (i32.eq (local.get $status) (i32.const 401))
            (then (i32.const 1))
            (else (if (result i32) (i32.eq (local.get $status) (i32.const 400))
              (then (i32.const 0)) (else (i32.const 12))))))))
      (i32.store (i32.const {message}) (local.get 3))
      (i32.store (i32.const {length}) (local.get 4))
      (i32.const {error}))
    (func (export "{at}#[constructor]decoder") (param i32 i32) (result i32)
      (call $new (i32.const 1)))
    (func (export "{at}#[method]decoder.push") (param i32 i32 i32) (result i32)
      (i32.const {deltas}))
    (func (export "{at}#[method]decoder.finish") (param i32) (result i32) (i32.const {finished})))"#,
        data = image.data(),
        body_at = encoded + 40,
        body_length = encoded + 44,
        message = error + 16,
        length = error + 20,
    );
    component(&module, "llm", "llm-plugin", Resolve::default())
}

/// A component with one function that has these many locals, each of them used, and loops: what a
/// compiler carries through each of them.
///
/// # Panics
/// If the text is no WebAssembly.
pub fn many_locals(locals: usize, loops: usize) -> Vec<u8> {
    let mut text = "(component (core module (func (local".to_owned();
    text.push_str(&" i32".repeat(locals));
    text.push(')');
    for local in 0..locals {
        write!(text, " local.get {local} drop").unwrap();
    }
    text.push_str(&" loop nop end".repeat(loops));
    text.push_str(")))");
    wat::parse_str(text).unwrap()
}

/// A component of types of instances, each of which exports an instance of the type before it.
///
/// # Panics
/// If the text is no WebAssembly.
pub fn type_chain(levels: usize) -> Vec<u8> {
    let mut text = "(component (type $t0 (instance))".to_owned();
    for level in 1..=levels {
        let below = level - 1;
        write!(
            text,
            r#"(type $t{level} (instance (alias outer 1 $t{below} (type $b)) (export "x" (instance (type $b)))))"#
        )
        .unwrap();
    }
    text.push(')');
    wat::parse_str(text).unwrap()
}

fn component(module: &str, package: &str, world: &str, mut resolve: Resolve) -> Vec<u8> {
    let mut module = wat::parse_str(module).unwrap();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../wit");
    let more: Vec<_> = resolve.interfaces.iter().map(|(id, _)| id).collect();
    for shared in ["types", "host"] {
        resolve.push_path(wit.join(shared)).unwrap();
    }
    let (package, _) = resolve.push_path(wit.join(package)).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    for id in more {
        let item = WorldItem::Interface {
            id,
            stability: Stability::Unknown,
            external_id: None,
            docs: Docs::default(),
            span: Span::default(),
        };
        resolve.worlds[world]
            .imports
            .insert(WorldKey::Interface(id), item);
    }
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.module(&module).unwrap().validate(true);
    encoder.encode().unwrap()
}
