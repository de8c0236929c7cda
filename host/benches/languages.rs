//! What a policy costs in each language: `cargo bench --bench languages`. How long its component is
//! compiled, how soon it is loaded from the cache, and what the first step of a task takes, in a fresh
//! store as every step is.
//!
//! The policy in Rust is the mock; those in JavaScript and Python are the templates of `lucid plugin new`,
//! built once with npm and PyPI and kept below the target folder. Where they cannot be built they are
//! left out, and it is said.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark ends where something fails"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::runtime::{Builder, Runtime};

use lucid::builtin;
use lucid_session::AvailableModels;
use lucid_types::wit::policy::{Context, Input, Start};
use lucid_wasm::{Engine, EngineOptions, PluginLimits, PolicyPlugin};

fn main() {
    let mut arguments = std::env::args().skip(1);
    // `cargo test --benches` only asks whether it works.
    let measured = arguments.any(|argument| argument == "--bench");
    let (loads, steps) = if measured { (20, 200) } else { (1, 1) };
    let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    println!(
        "{:12}{:>12}{:>12}{:>16}{:>12}",
        "", "component", "compiled", "from the cache", "a step"
    );
    show(&runtime, "Rust", builtin::MOCK, loads, steps);
    for language in ["javascript", "python"] {
        if !measured {
            continue;
        }
        match component(language) {
            Ok(path) => {
                let wasm = std::fs::read(path).unwrap();
                show(&runtime, language, &wasm, loads, steps);
            }
            Err(why) => println!("{language} is left out, since its template was not built: {why}"),
        }
    }
}

/// One line of the table; medians, except that it is compiled once.
fn show(runtime: &Runtime, language: &str, wasm: &[u8], loads: usize, steps: usize) {
    let cache = tempfile::tempdir().unwrap();
    let load = || {
        let engine = Engine::new(EngineOptions {
            cache: Some(cache.path().join("cache")),
            ..EngineOptions::default()
        });
        let (engine, limits) = (engine.unwrap(), PluginLimits::default());
        let begun = Instant::now();
        let loaded = PolicyPlugin::load(&engine, "greeter", wasm, &limits);
        let plugin = runtime.block_on(loaded).unwrap();
        (plugin, begun.elapsed())
    };
    let (plugin, compiled) = load();
    let cached = median((0..loads).map(|_| load().1));
    let step = median((0..steps).map(|_| step(runtime, &plugin)));
    println!(
        "{language:12}{:>9} KB{:>9} ms{:>13.1} ms{:>9.3} ms",
        wasm.len() / 1_000,
        compiled.as_millis(),
        cached.as_secs_f64() * 1e3,
        step.as_secs_f64() * 1e3,
    );
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn step(runtime: &Runtime, plugin: &PolicyPlugin) -> Duration {
    let context = Context {
        session: "bench".to_owned(),
        step: 0,
        now_ms: 1_800_000_000_000,
        seed: 1,
        iterations_left: 50,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    };
    let models = AvailableModels::only("m");
    let inputs = [Input::Started(Start {
        task: "Look around.".to_owned(),
        entry: 0,
        workspace: "/workspace".to_owned(),
        repository: None,
        branch: None,
        model: models.model,
        small_model: models.small,
        models: models.names,
        instructions: Vec::new(),
        tools: Vec::new(),
        settings: "{}".to_owned(),
    })];
    let begun = Instant::now();
    let called = runtime.block_on(plugin.step(&context, None, &inputs));
    let took = begun.elapsed();
    called.result.unwrap();
    took
}

/// The template of a language as a component, from the last run where it has not changed since.
fn component(language: &str) -> Result<PathBuf, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let new = ["new", "greeter", "--kind", "policy", "--lang", language];
    plugin(folder.path(), &new)?;
    let project = folder.path().join("greeter");
    let mut files = Vec::new();
    read_below(&project, &mut files);
    files.sort();
    let mut digest = Sha256::new();
    for (path, bytes) in &files {
        digest.update(
            path.strip_prefix(&project)
                .unwrap_or(path)
                .as_os_str()
                .as_encoded_bytes(),
        );
        digest.update(bytes.len().to_le_bytes());
        digest.update(bytes);
    }
    let digest = hex::encode(&digest.finalize()[..8]);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{language}-{digest}.wasm"));
    if !kept.is_file() {
        plugin(&project, &["build"])?;
        std::fs::copy(project.join("greeter.wasm"), &kept).map_err(|error| error.to_string())?;
    }
    Ok(kept)
}

fn plugin(folder: &Path, words: &[&str]) -> Result<(), String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lucid"));
    let output = command
        .arg("plugin")
        .args(words)
        .current_dir(folder)
        .output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().last().unwrap_or("it said nothing").to_owned())
}

fn read_below(folder: &Path, to: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_below(&path, to);
        } else {
            to.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
}
