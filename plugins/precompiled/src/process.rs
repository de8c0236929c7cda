//! A process that compiles a component, so that what a compiler does with it ends with that process.
//!
//! Its end here starts the program, hands over the component, waits and takes the code back; its
//! other end, [`confine`], is what the program does first.
//!
//! # Invariants
//! - The process has nothing of this one but three files in memory: no variable of the environment, no
//!   other file that this one opened, no terminal, no working directory.
//! - It ends: by itself, by its limit of processor time, after its wall-clock time, or with this
//!   process.
//! - A [`CompileDeath`] is the component's doing; what the machine did to the process is any other
//!   [`ProcessFailure`], and says nothing about the component.
//! - What it gives back is read from memory that it had and nobody else, after it is gone.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::code::CompiledCode;

/// The exit code of a process that refuses a component, and says why on its standard output.
pub const REFUSED: u8 = 3;
/// The exit code of a process that did not come to read a component, and says why on standard error.
pub const UNREADY: u8 = 4;

/// The maximum size of the code, in bytes.
pub(crate) const LARGEST_CODE: u64 = 1 << 30;
/// How much of a refusal or of standard error is read, in bytes.
const MOST_TEXT: u64 = 16 << 10;
/// Threads that compile. More of them take more memory at once.
const MOST_THREADS: usize = 8;
/// How the standard library's message begins when memory runs out. There is no other sign: the process
/// then ends by the same signal as after a failed assertion.
const NO_MEMORY: &str = "memory allocation of ";
/// Time between two looks at whether the process ended.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(20);

/// The limits of a compiling process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Memory in bytes, of all its threads together.
    pub memory: u64,
    /// Processor time, of all its threads together, in whole seconds.
    pub processor: Duration,
    /// Wall-clock time.
    pub wall: Duration,
}

/// How to start a process that compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerProcess {
    /// The program. What it writes is run as native code, so it is this very program, or one that is
    /// trusted like it.
    pub program: PathBuf,
    /// The command by which it compiles. Two numbers follow: the limits of memory in bytes and of
    /// processor time in seconds, for [`confine`](crate::confine).
    pub command: &'static str,
    /// Its limits.
    pub limits: CompileLimits,
}

/// A process that gave no code.
#[derive(Debug, thiserror::Error)]
pub enum ProcessFailure {
    /// It could not be started, or its files could not be made.
    #[error("the process that compiles plugins cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It refused the component.
    #[error("the component was refused")]
    Refused(Vec<u8>),
    /// It reached a limit or failed.
    #[error(transparent)]
    Died(#[from] CompileDeath),
    /// It was not done in time, and how fast it is depends on what else the machine does.
    #[error(
        "the process that compiles plugins took longer than {} s; try again when the machine is less busy",
        .0.as_secs_f32()
    )]
    TimedOut(Duration),
    /// Somebody else ended it.
    #[error("the process that compiles plugins was ended by signal {0}; try again")]
    Killed(i32),
}

/// The end of a process that compiled a component, where another one would end the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileDeath {
    /// It computed for too long.
    #[error("it took more than {} s of processor time", .0.as_secs_f32())]
    TookTooMuchProcessorTime(Duration),
    /// It wanted too much memory.
    #[error("it took more than {} MiB of memory", .0 >> 20)]
    TookTooMuchMemory(u64),
    /// The code is too large.
    #[error("its native code has more than {} MiB", .0 >> 20)]
    TooMuchCode(u64),
    /// The compiler failed.
    #[error("the compiler failed ({how})")]
    Crashed {
        /// The signal or exit code.
        how: String,
        /// The beginning of what it wrote to standard error, as it came.
        said: String,
    },
}

impl CompilerProcess {
    /// Compiles a component in a process of its own, and waits for it.
    ///
    /// # Errors
    ///
    /// Why there is no code.
    pub fn compile(&self, wasm: &[u8]) -> Result<CompiledCode, ProcessFailure> {
        let files = || -> io::Result<_> {
            let mut input = memory_file("component")?;
            input.write_all(wasm)?;
            input.rewind()?;
            Ok((input, memory_file("code")?, memory_file("errors")?))
        };
        let (input, output, errors) = files().map_err(ProcessFailure::Start)?;
        let mut process = Process(
            self.command(input, &output, &errors)
                .and_then(|mut command| command.spawn())
                .map_err(ProcessFailure::Start)?,
        );
        let ended = process.wait(self.limits.wall);
        let status = ended.map_err(ProcessFailure::Start)?;
        let Some(status) = status else {
            return Err(ProcessFailure::TimedOut(self.limits.wall));
        };
        match status.code() {
            Some(0) => read(output, LARGEST_CODE)
                .map(CompiledCode::of)
                .map_err(ProcessFailure::Start),
            Some(code) if code == i32::from(REFUSED) => read(output, MOST_TEXT)
                .map_err(ProcessFailure::Start)
                .and_then(|why| Err(ProcessFailure::Refused(why))),
            Some(code) if code == i32::from(UNREADY) => {
                let why = read(errors, MOST_TEXT).map_err(ProcessFailure::Start)?;
                let why = String::from_utf8_lossy(&why);
                Err(ProcessFailure::Start(io::Error::other(why.trim_end())))
            }
            _ => Err(self.death(status, errors)),
        }
    }

    fn command(&self, input: File, output: &File, errors: &File) -> io::Result<Command> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let Limits { memory, seconds } = self.limits.into();
        let mut command = Command::new(&self.program);
        command
            .arg0("lucid")
            .arg(self.command)
            .args([memory.to_string(), seconds.to_string()])
            .env_clear()
            .env("RAYON_NUM_THREADS", threads.min(MOST_THREADS).to_string())
            .current_dir("/")
            // What a terminal sends to this process is not for it, and whatever it started ends with
            // it.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::from(OwnedFd::from(output.try_clone()?)))
            .stderr(Stdio::from(OwnedFd::from(errors.try_clone()?)));
        Ok(command)
    }

    /// Says why a process ended that neither compiled nor refused.
    fn death(&self, status: ExitStatus, errors: File) -> ProcessFailure {
        let said = read(errors, MOST_TEXT).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let signal = status.signal();
        let is = |one: Signal| signal == Some(one.as_raw());
        if is(Signal::XCPU) {
            return CompileDeath::TookTooMuchProcessorTime(self.limits.processor).into();
        }
        if is(Signal::XFSZ) {
            return CompileDeath::TooMuchCode(LARGEST_CODE).into();
        }
        if said.starts_with(NO_MEMORY) {
            return CompileDeath::TookTooMuchMemory(self.limits.memory).into();
        }
        let others = [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP];
        if let Some(signal) = signal
            && others.into_iter().any(is)
        {
            return ProcessFailure::Killed(signal);
        }
        let how = match (signal, status.code()) {
            (Some(signal), _) => format!("signal {signal}"),
            (None, code) => format!("exit code {}", code.unwrap_or_default()),
        };
        CompileDeath::Crashed { how, said }.into()
    }
}

/// Limits as they are handed over.
struct Limits {
    memory: u64,
    seconds: u64,
}

impl From<CompileLimits> for Limits {
    fn from(limits: CompileLimits) -> Self {
        Self {
            memory: limits.memory,
            seconds: limits.processor.as_secs().max(1),
        }
    }
}

/// A process that is ended with this value, and its group with it.
struct Process(Child);

impl Process {
    /// Waits at most this long. `None` if it has not ended by then.
    fn wait(&mut self, at_most: Duration) -> io::Result<Option<ExitStatus>> {
        let started = Instant::now();
        let mut pause = FIRST_LOOK;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if started.elapsed() >= at_most {
                return Ok(None);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The number of one that was waited for may be another's by now.
        if !matches!(self.0.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        // It may have left its group.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file in memory that only its holders can reach.
fn memory_file(name: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

fn read(mut file: File, at_most: u64) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(at_most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script in place of a compiler.
    fn run(script: &str, wall: Duration) -> Result<CompiledCode, ProcessFailure> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("script");
        std::fs::write(&file, script).unwrap();
        let process = CompilerProcess {
            program: "/bin/sh".into(),
            command: file.to_str().unwrap().to_owned().leak(),
            limits: CompileLimits {
                memory: 1 << 20,
                processor: Duration::from_secs(2),
                wall,
            },
        };
        process.compile(b"the component")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_process_is_given_the_component_and_its_limits_and_nothing_else() {
        let code = run("cat; echo \" $1 $2 $PWD $HOME\"", LONG).unwrap();
        let text = String::from_utf8(code.bytes().to_vec()).unwrap();
        assert_eq!(text, "the component 1048576 2 / \n");
    }

    #[test]
    fn the_end_of_a_process_says_why_there_is_no_code() {
        let refused = run("echo no; exit 3", LONG).unwrap_err();
        assert!(matches!(refused, ProcessFailure::Refused(why) if why == b"no\n"));
        let unready = run("echo no memory >&2; exit 4", LONG).unwrap_err();
        assert_eq!(
            unready.to_string(),
            "the process that compiles plugins cannot be started: no memory"
        );
        let killed = run("kill -TERM $$", LONG).unwrap_err();
        assert!(matches!(killed, ProcessFailure::Killed(15)));
        for (script, death) in [
            ("kill -SEGV $$", "the compiler failed (signal 11)"),
            ("exit 101", "the compiler failed (exit code 101)"),
            ("kill -XCPU $$", "it took more than 2 s of processor time"),
            (
                "echo memory allocation of 9 bytes failed >&2; kill -ABRT $$",
                "it took more than 1 MiB of memory",
            ),
            ("kill -XFSZ $$", "its native code has more than 1024 MiB"),
        ] {
            match run(script, LONG) {
                Err(ProcessFailure::Died(why)) => assert_eq!(why.to_string(), death),
                other => panic!("{script}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_process_that_goes_on_is_ended() {
        let started = Instant::now();
        let slow = run("exec sleep 60", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(slow, ProcessFailure::TimedOut(_)), "{slow:?}");
        assert_eq!(
            slow.to_string(),
            "the process that compiles plugins took longer than 0.3 s; try again when the machine is less busy"
        );
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_a_process_started_is_ended_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let slow = run(&script, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(slow, ProcessFailure::TimedOut(_)), "{slow:?}");
        let pid = std::fs::read_to_string(&file).unwrap();
        // Empty where it has ended and nobody has waited for it yet.
        let command = format!("/proc/{}/cmdline", pid.trim());
        let is_there = || std::fs::read(&command).is_ok_and(|line| !line.is_empty());
        let started = Instant::now();
        while is_there() && started.elapsed() < LONG {
            std::thread::sleep(LAST_LOOK);
        }
        assert!(!is_there(), "process {pid} goes on");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let process = CompilerProcess {
            program: "/nowhere/lucid".into(),
            command: "compile",
            limits: CompileLimits {
                memory: 1,
                processor: LONG,
                wall: LONG,
            },
        };
        assert!(matches!(
            process.compile(b""),
            Err(ProcessFailure::Start(_))
        ));
    }
}
