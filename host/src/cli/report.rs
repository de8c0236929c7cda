//! Messages of the command line other than its results: sentences for the operator, as lines of
//! text or, with `LOG_FORMAT=json`, as lines of the same JSON that the log uses.
//!
//! # Invariants
//!
//! - With `LOG_FORMAT=json` every line on stderr is JSON, including start-up errors, panics and a
//!   wrong command line. So is what `serve` prints on stdout.
//! - A failure to print never panics: a result that cannot be printed is a failure at the end,
//!   unless its reader closed the pipe, and a server continues to serve.

use std::fmt;
use std::io::{self, Write as _};
use std::panic::PanicHookInfo;
use std::process::ExitCode;
use std::sync::OnceLock;

use chrono::{SecondsFormat, Utc};
use serde_json::json;

use super::WRONG;
use super::render::one_line;
use crate::config::{Config, LogFormat};

static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// The error that kept a part of a result from stdout.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// The severity of a line.
#[derive(Debug, Clone, Copy)]
pub(super) enum Severity {
    Error,
    Warn,
    Info,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
        }
    }
}

/// Selects the format, before anything else can fail.
pub(super) fn begin() {
    if FORMAT.set(Config::log_format()).is_ok() && is_json() {
        std::panic::set_hook(Box::new(|panic| errln!("{}", panicked(panic))));
    }
}

/// Whether lines are JSON.
pub(super) fn is_json() -> bool {
    FORMAT.get() == Some(&LogFormat::Json)
}

/// Prints a sentence to stderr.
pub(super) fn print_message(level: Severity, sentence: &str) {
    let sentence = one_line(sentence);
    if is_json() {
        errln!("{}", line(level, &sentence));
    } else {
        errln!("{sentence}");
    }
}

/// Prints a sentence to stdout in the log's format, since both end up in one place. A server
/// continues if it cannot be printed.
pub(super) fn announce(sentence: &str) {
    let printed = if is_json() {
        writeln!(io::stdout(), "{}", line(Severity::Info, sentence))
    } else {
        writeln!(io::stdout(), "{sentence}")
    };
    if let Err(cause) = printed {
        tracing::warn!(%cause, "a line could not be printed to stdout");
    }
}

/// Prints a part of a result to stdout.
pub(super) fn print(words: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_fmt(words).and_then(|()| stdout.flush());
    if let Err(cause) = printed {
        let _ = UNPRINTED.set(cause);
    }
}

/// Prints to stderr. The reader may be gone.
pub(super) fn complain(words: fmt::Arguments<'_>) {
    let _ = io::stderr().write_fmt(words);
}

/// The error that kept a result from being printed. `None` if it was printed, or if its reader
/// closed the pipe.
pub(super) fn print_error() -> Option<&'static io::Error> {
    UNPRINTED
        .get()
        .filter(|cause| cause.kind() != io::ErrorKind::BrokenPipe)
}

/// Reports a wrong command line, or prints the help.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && is_json() {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        print_message(Severity::Error, text);
        return ExitCode::from(WRONG);
    }
    // The reader may be gone.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::from(WRONG)
    } else {
        ExitCode::SUCCESS
    }
}

/// Formats a line like the log.
fn line(level: Severity, sentence: &str) -> String {
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
    line(Severity::Error, &one_line(&sentence))
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::sync::Mutex;

    use serde_json::Value;

    use super::panicked;

    #[test]
    fn a_panic_is_one_line_of_json_with_its_words_and_its_place() {
        static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let name = || std::thread::current().name().map(str::to_owned);
        let mine = name();
        let usual = panic::take_hook();
        // Other tests may panic meanwhile.
        panic::set_hook(Box::new(move |info| {
            if name() == mine {
                LINES.lock().unwrap().push(panicked(info));
            } else {
                usual(info);
            }
        }));
        for words in ["two\nlines", "an \u{1b}[31mescape and \"quotes\""] {
            panic::catch_unwind(|| panic!("{words}")).unwrap_err();
        }
        panic::catch_unwind(|| panic::panic_any(7)).unwrap_err();
        drop(panic::take_hook());
        let lines = LINES.lock().unwrap();
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, words) in lines
            .iter()
            .zip(["two", "escape and \"quotes\"", "no text"])
        {
            assert!(!line.contains(['\n', '\u{1b}']), "{line:?}");
            let line: Value = serde_json::from_str(line).unwrap();
            let said = line["fields"]["message"].as_str().unwrap();
            assert_eq!(line["level"], "ERROR");
            assert!(
                said.contains(words) && said.contains("report.rs:"),
                "{said}"
            );
        }
    }
}
