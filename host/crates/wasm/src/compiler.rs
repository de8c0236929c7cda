//! Compiling a component: in a process of its own, or in this one.
//!
//! A compiler is a large program that reads what strangers wrote. In a process of its own it can run
//! out of memory or time, or crash, and the host says so and goes on; see
//! [`CompilerProcess`] for what that process is left with. [The bounds](crate::bounds) are checked
//! there too, first of all, so that in the host nothing reads a component that was not compiled yet.
//!
//! This keeps a component from bringing down the host by being compiled. It does not make the code
//! that comes back any more trustworthy than the compiler: that code runs in the host.
//!
//! # Invariants
//! - A component is compiled within its bounds, whichever way.
//! - In a process of its own, it is limited in memory and time, and what it did not survive is
//!   remembered in the cache folder, unless that was the machine's fault.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use lucid_precompiled::{
    CompileDeath, CompileLimits, CompiledCode, CompilerProcess, KnownFailure, ProcessFailure,
    REFUSED, UNREADY, settings,
};
use lucid_types::sanitize::sanitize;

use super::bounds::{self, BoundsError};

/// The command by which `lucid` compiles. It is for [`Compiler::Child`] only.
pub const COMPILE_COMMAND: &str = "compile-component";

/// The running program, even where its file was replaced since: another version could not make code for
/// this one.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The limits of a process that compiles. The guests that take most, in a debug build: Python 500 MB
/// and 14 s of processor time, JavaScript 610 MB and 17 s.
const LIMITS: CompileLimits = CompileLimits {
    memory: 2 << 30,
    processor: Duration::from_secs(300),
    // Longer, so that a component that takes too much is found out by its processor time, which does
    // not depend on what else the machine does.
    wall: Duration::from_secs(600),
};

/// How much of a compiler's message is handed over, in characters. However they are escaped, a refusal
/// is then shorter than what is read of one.
const LONGEST_DETAIL: usize = 2_000;

/// Where components are compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Compiler {
    /// In this process, within the bounds alone. For programs that are not `lucid`.
    #[default]
    InProcess,
    /// In a process for each component.
    Child(CompilerProcess),
}

impl Compiler {
    /// A process of the running program, which must be `lucid`.
    pub fn lucid() -> Self {
        Self::lucid_at(Path::new(THIS_PROGRAM), LIMITS)
    }

    /// A process of `lucid` in that file, with these limits.
    pub fn lucid_at(program: &Path, limits: CompileLimits) -> Self {
        Self::Child(CompilerProcess {
            program: program.to_owned(),
            command: COMPILE_COMMAND,
            limits,
        })
    }

    pub(super) fn compile(
        &self,
        engine: &wasmtime::Engine,
        wasm: &[u8],
    ) -> Result<CompiledCode, CompileError> {
        match self {
            Self::InProcess => Ok(compile(engine, wasm)?),
            Self::Child(process) => process.compile(wasm).map_err(CompileError::from),
        }
    }
}

/// A component that was not compiled.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompileError {
    /// The compiler refused it.
    #[error(transparent)]
    Refused(#[from] CompileRefusal),
    /// It was the end of the process.
    #[error(transparent)]
    Died(CompileDeath),
    /// It was the end of the process before.
    #[error("{}", .0.why)]
    KnownToFail(KnownFailure),
    /// There was no process for it.
    #[error(transparent)]
    Process(ProcessFailure),
}

/// A component that the compiler refused.
#[derive(Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub(super) enum CompileRefusal {
    /// It is beyond the bounds.
    #[error(transparent)]
    Bounds(#[from] BoundsError),
    /// It is no component that this engine can compile.
    #[error("{0}")]
    Component(String),
}

impl CompileRefusal {
    /// The same, with a message that is short enough to be handed over.
    fn truncated(self) -> Self {
        let cut = |detail: String| sanitize(&detail, LONGEST_DETAIL);
        match self {
            Self::Component(detail) => Self::Component(cut(detail)),
            Self::Bounds(BoundsError::Malformed(detail)) => {
                Self::Bounds(BoundsError::Malformed(cut(detail)))
            }
            Self::Bounds(exceeded @ BoundsError::Exceeded { .. }) => Self::Bounds(exceeded),
        }
    }
}

impl From<wasmtime::Error> for CompileError {
    fn from(error: wasmtime::Error) -> Self {
        Self::Refused(CompileRefusal::Component(format!("{error:#}")))
    }
}

impl From<ProcessFailure> for CompileError {
    fn from(failure: ProcessFailure) -> Self {
        match failure {
            ProcessFailure::Refused(why) => match serde_json::from_slice(&why) {
                Ok(refusal) => Self::Refused(refusal),
                Err(_) => Self::Refused(CompileRefusal::Component(
                    String::from_utf8_lossy(&why).into_owned(),
                )),
            },
            ProcessFailure::Died(death) => {
                if let CompileDeath::Crashed { said, .. } = &death {
                    let said = sanitize(said, 2_000);
                    tracing::warn!(said, "the process that compiles plugins failed");
                }
                Self::Died(death)
            }
            other => Self::Process(other),
        }
    }
}

/// Compiles within the bounds.
fn compile(engine: &wasmtime::Engine, wasm: &[u8]) -> Result<CompiledCode, CompileRefusal> {
    bounds::check(wasm)?;
    CompiledCode::compile(engine, wasm)
        .map_err(|error| CompileRefusal::Component(format!("{error:#}")))
}

/// The process that compiles, from its first line on: limits itself to these bytes of memory and
/// seconds of processor time, then reads a component from standard input, and writes its code, or why
/// there is none, to standard output.
pub fn compile_stdin(memory: u64, seconds: u64) -> ExitCode {
    match answer(memory, seconds) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(UNREADY)
        }
    }
}

fn answer(memory: u64, seconds: u64) -> Result<ExitCode, Box<dyn std::error::Error>> {
    lucid_precompiled::confine(memory, seconds)?;
    // Here, where it is the machine's fault if there are no threads: later it would look like the
    // component's.
    rayon::ThreadPoolBuilder::new().build_global()?;
    let mut wasm = Vec::new();
    io::stdin().lock().read_to_end(&mut wasm)?;
    let engine = wasmtime::Engine::new(&settings())?;
    match compile(&engine, &wasm) {
        Ok(code) => {
            code.write(io::stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(refusal) => {
            serde_json::to_writer(io::stdout().lock(), &refusal.truncated())?;
            Ok(ExitCode::from(REFUSED))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_any_length_is_short_enough_to_be_read_whole() {
        for text in ["\u{10ffff}", "\"\\", "\u{1}", "\u{7f}x", "a"] {
            let long = text.repeat(100_000);
            for refusal in [
                CompileRefusal::Component(long.clone()),
                CompileRefusal::Bounds(BoundsError::Malformed(long.clone())),
            ] {
                let written = serde_json::to_vec(&refusal.truncated()).unwrap();
                assert!(written.len() < 16 << 10, "{text:?}: {}", written.len());
                let read = CompileError::from(ProcessFailure::Refused(written));
                assert!(matches!(read, CompileError::Refused(_)), "{read:?}");
            }
        }
    }
}
