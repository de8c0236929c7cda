//! The host's data for one live instance, which is all that the instance can reach: its limits, its
//! log, and an empty WASI once it asks for one.
//!
//! # Invariants
//! - Memory is counted over all of a component's memories together.
//! - A call logs a bounded number of bounded lines, without control characters, under the plugin's
//!   name.

use std::sync::Arc;

use wasmtime::ResourceLimiter;
use wasmtime::component::Linker;

use super::limits::{MOST_CORE_INSTANCES, MOST_MEMORIES, MOST_TABLES};
use super::log_label::LogLabel;
use super::stdio::GuestOutput;
use super::wasi::{CallClock, HasWasi, Wasi};
use lucid_types::sanitize::sanitize;
use lucid_types::wit::log::Level;

/// The most lines that one call may log.
const MOST_LINES: u32 = 32;
/// The longest line, in characters.
const LONGEST_LINE: usize = 1_000;
/// The most elements in all of a component's tables together. The pool's own limit is lower.
const MOST_ELEMENTS: usize = 100_000;

/// The last error output of a call before it ended.
#[derive(Debug, Default)]
pub(super) struct ErrorOutput {
    /// The call's last line in the host's log at error level, where the SDK reports a panic.
    pub(super) logged: Option<String>,
    /// The end of the call's standard error.
    pub(super) printed: Option<String>,
}

/// The host's data for one instance.
pub struct HostState {
    label: Arc<LogLabel>,
    lines: u32,
    /// The last line logged at error level, which explains a trap that follows.
    error: Option<String>,
    memory_limit: usize,
    memory: usize,
    elements: usize,
    refused: bool,
    clock: CallClock,
    /// Created on first use.
    wasi: Option<Box<(Wasi, GuestOutput)>>,
}

impl HostState {
    pub(super) fn new(label: Arc<LogLabel>, memory_limit: usize, clock: CallClock) -> Self {
        Self {
            label,
            lines: 0,
            error: None,
            memory_limit,
            memory: 0,
            elements: 0,
            refused: false,
            clock,
            wasi: None,
        }
    }

    /// Begins a new call.
    pub(super) fn begin(&mut self) {
        self.lines = 0;
        self.error = None;
        self.refused = false;
        if let Some(parts) = &self.wasi {
            parts.1.begin();
        }
    }

    /// Ends a call, and returns its last error output.
    pub(super) fn end(&self) -> ErrorOutput {
        let printed = self.wasi.as_ref().map(|parts| parts.1.end());
        ErrorOutput {
            logged: self.error.clone(),
            printed: printed.filter(|words| !words.is_empty()),
        }
    }

    /// The label of the instance's log lines.
    pub(super) fn label(&self) -> &LogLabel {
        &self.label
    }

    /// Linear memory so far, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether this call was denied memory.
    pub(super) fn refused_memory(&self) -> bool {
        self.refused
    }
}

impl HasWasi for HostState {
    fn wasi(&mut self) -> &mut Wasi {
        let parts = self.wasi.get_or_insert_with(|| {
            let printed = GuestOutput::new(self.label.clone());
            Box::new((Wasi::new(self.clock, &printed), printed))
        });
        &mut parts.0
    }
}

/// Gives components the interface that they log through.
pub(super) fn add_log_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    let mut instance = linker.instance("lucid:host/log@0.1.0")?;
    instance.func_wrap("log", |mut store, (level, message): (Level, String)| {
        let guest: &mut HostState = store.data_mut();
        guest.log(level, &message);
        Ok(())
    })
}

impl HostState {
    fn log(&mut self, level: Level, message: &str) {
        let message = sanitize(message, LONGEST_LINE);
        self.lines += 1;
        if self.lines <= MOST_LINES {
            self.label.line(level, &message);
        } else if self.lines == MOST_LINES + 1 {
            let dropped =
                format!("more than {MOST_LINES} log lines in one call; the rest is dropped");
            self.label.line(Level::Warn, &dropped);
        }
        // Kept even if the line is dropped from the log: a panic is the last of a call's lines.
        if matches!(level, Level::Error) {
            self.error = Some(message);
        }
    }
}

impl ResourceLimiter for HostState {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.memory + desired.saturating_sub(current);
        if total > self.memory_limit {
            self.refused = true;
            return Ok(false);
        }
        self.memory = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // Within the plugin's limit, but more than the pool has for one memory.
        self.refused = true;
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.elements + desired.saturating_sub(current);
        if total > MOST_ELEMENTS {
            self.refused = true;
            return Ok(false);
        }
        self.elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        MOST_CORE_INSTANCES as usize + 1
    }

    fn tables(&self) -> usize {
        MOST_TABLES as usize
    }

    fn memories(&self) -> usize {
        MOST_MEMORIES as usize
    }
}
