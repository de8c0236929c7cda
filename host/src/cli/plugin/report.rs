//! Output of findings: a line each, with the failures marked.
//!
//! # Invariants
//!
//! - Nothing that a plugin returned can move the cursor or change colours.
//! - A failure makes the exit code 1.

use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;

use owo_colors::Style;

use crate::cli::render::{FrameRenderer, colours, strip_controls};
use lucid_wasm::{CallFigures, PluginLimits};

/// The width of the column with the checked item's name.
const NAME: usize = 10;

/// The findings of a check.
pub(super) struct CheckReport {
    screen: FrameRenderer,
    bad: bool,
}

impl CheckReport {
    pub(super) fn new() -> Self {
        Self {
            screen: FrameRenderer::new(colours(std::io::stdout().is_terminal())),
            bad: false,
        }
    }

    pub(super) fn title(&self, text: &str) {
        outln!(
            "{}",
            self.screen
                .paint(&strip_controls(text), Style::new().bold())
        );
    }

    pub(super) fn pass(&self, what: &str, text: &str) {
        self.line("ok", Style::new().green(), what, text);
    }

    /// A note that is worth knowing but does not fail the check.
    pub(super) fn note(&self, what: &str, text: &str) {
        self.line("--", Style::new().yellow(), what, text);
    }

    pub(super) fn fail(&mut self, what: &str, text: &str) {
        self.bad = true;
        self.line("!!", Style::new().red(), what, text);
    }

    /// A success, or a failure with its reason.
    pub(super) fn result(&mut self, what: &str, result: Result<String, impl Display>) {
        match result {
            Ok(text) => self.pass(what, &text),
            Err(why) => self.fail(what, &why.to_string()),
        }
    }

    fn line(&self, sign: &str, style: Style, what: &str, text: &str) {
        let indent = format!("\n{:width$}", "", width = NAME + 8);
        let text = strip_controls(text).trim_end().replace('\n', &indent);
        outln!(
            "  {}  {:NAME$}  {text}",
            self.screen.paint(sign, style),
            strip_controls(what)
        );
    }

    /// A line for each function, with its usage relative to the limits.
    pub(super) fn figures(&mut self, figures: &[CallFigures], limits: &PluginLimits) {
        outln!(
            "  {:<12}{:>7}{:>11}{:>11}  {:<26}most memory",
            "call",
            "calls",
            "p50",
            "p99",
            "most fuel"
        );
        for of in figures {
            let fuel = share(of.most_fuel, limits.fuel);
            let memory = share(of.most_memory, limits.memory_bytes as u64);
            outln!(
                "  {:<12}{:>7}{:>8} µs{:>8} µs  {:<26}{} KB ({memory} %)",
                of.call,
                of.calls,
                of.p50_micros,
                of.p99_micros,
                format!("{} ({fuel} %)", of.most_fuel),
                of.most_memory >> 10,
            );
            if of.failures == 0 && fuel.max(memory) >= 50 {
                self.note(of.call, "it used half of a limit or more on small inputs");
            }
        }
    }

    /// Whether there was a failure.
    pub(super) fn has_failures(&self) -> bool {
        self.bad
    }

    /// 1 if there was a failure.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.has_failures() {
            outln!(
                "\nA host would refuse it, or sessions with it would fail: see what is marked !!."
            );
            return ExitCode::FAILURE;
        }
        outln!("\nNothing is wrong with it.");
        ExitCode::SUCCESS
    }
}

fn share(used: u64, limit: u64) -> u64 {
    used.saturating_mul(100).checked_div(limit).unwrap_or(100)
}
