//! What the command line says beside its results: sentences for the operator, as lines of text or, with
//! `LOG_FORMAT=json`, as lines of the same JSON that the log has.
//!
//! # Invariants
//!
//! - With `LOG_FORMAT=json` no line on stderr is anything but JSON: errors of the start, panics and a wrong
//!   command line are not either. What `serve` says on stdout is the log's as well.

use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::OnceLock;

use chrono::{SecondsFormat, Utc};
use serde_json::json;

use super::WRONG;
use super::screen::one_line;
use crate::config::{Config, LogFormat};

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// How much a line matters.
#[derive(Debug, Clone, Copy)]
pub(super) enum Level {
    Error,
    Warn,
    Info,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
        }
    }
}

/// Decides the format, before anything else can go wrong.
pub(super) fn begin() {
    if FORMAT.set(Config::log_format()).is_ok() && is_json() {
        std::panic::set_hook(Box::new(|panic| eprintln!("{}", panicked(panic))));
    }
}

/// Whether lines are JSON.
pub(super) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// A sentence on stderr.
pub(super) fn say(level: Level, sentence: &str) {
    let sentence = one_line(sentence);
    if is_json() {
        eprintln!("{}", line(level, &sentence));
    } else {
        eprintln!("{sentence}");
    }
}

/// A sentence on stdout that is the log's as well, since both end in one place.
pub(super) fn announce(sentence: &str) {
    if is_json() {
        println!("{}", line(Level::Info, sentence));
    } else {
        println!("{sentence}");
    }
}

/// A command line that is wrong, or that asks for help.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && is_json() {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        say(Level::Error, text);
        return ExitCode::from(WRONG);
    }
    // Whoever reads may have gone.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(WRONG)
    } else {
        ExitCode::SUCCESS
    }
}

/// As the log writes its own.
fn line(level: Level, sentence: &str) -> String {
    json!({
        "timestamp": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
        "level": level.name(),
        "fields": { "message": sentence },
        "target": "lucid",
    })
    .to_string()
}

fn panicked(panic: &PanicHookInfo<'_>) -> String {
    let text = panic.payload_as_str().unwrap_or("no text");
    let place = panic.location().map(ToString::to_string);
    let sentence = format!(
        "panicked at {}: {text}",
        place.as_deref().unwrap_or("an unknown place")
    );
    line(Level::Error, &one_line(&sentence))
}
