//! Compiled components: the settings they are compiled with, the process that compiles one, the cache folder, those
//! that are part of the program, and the one `unsafe` call that loading them takes.
//!
//! # Safety
//!
//! Nothing is loaded as native code that this program, under this user, did not write itself:
//! [`CompiledCode`] is made by its compiler, in this process or in [one](CompilerProcess) of the same
//! program, comes from the cache folder, or was compiled by the program's own build
//! ([`EmbeddedComponent`], whose maker promises that). [`ComponentCacheDir::component`] is a safe function on these
//! grounds:
//!
//! - The folder was created by this user for nobody else: it is opened without following a link,
//!   and its owner and its mode (0700) are checked on the open handle. Every file is reached
//!   through that handle, so renaming a parent folder later changes nothing.
//! - A file is opened without following a link. That it is a regular file, its owner and its mode
//!   (0600) are checked on the handle it is read through.
//! - Its name is the digest of the component and of everything wasmtime says two engines must share
//!   ([`Engine::precompile_compatibility_hash`]: version, target, settings, CPU features).
//! - It starts with the digest of its name and of what follows, so a torn or damaged file, and one
//!   that came under another's name, is recompiled.
//! - It is read into memory once, and the bytes that were checked are the bytes that are loaded:
//!   nobody can change them between the two, as they could in a mapped file.
//!
//! Only root or this user can get round these, and both can change this program as well.
//!
//! # Eviction
//!
//! The folder's size is limited: a new entry in a full folder replaces the least recently used
//! ones. Two processes may share a folder, since a missing file is recompiled.
//!
//! # Failures
//!
//! A component whose compilation a process did not survive is remembered beside the code, in a file that
//! is written and trusted like it, so that the next start refuses it at once. It is tried again by
//! another version of this program, after a month, when the file is deleted, or when there were many
//! others since. Only what is the
//! component's doing is remembered: not that the machine was too busy, or had no process for it.

mod code;
mod confinement;
mod embedded;
mod process;
mod settings;

use std::fs::File;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

pub use code::CompiledCode;
pub use confinement::{ResourceLimitError, confine};
pub use embedded::EmbeddedComponent;
pub use process::{CompileDeath, CompileLimits, CompilerProcess, ProcessFailure, REFUSED, UNREADY};
pub use settings::settings;

const DIGEST: usize = 32;
const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};
/// The maximum size of a compiled component, in bytes. A larger file is not read.
const LARGEST: u64 = process::LARGEST_CODE + DIGEST as u64;
/// The file name extension of code.
const KIND: &str = ".cwasm";
/// The file name extension of a failure.
const FAILURE: &str = ".failed";
/// How long an incomplete file is kept until its writer counts as dead.
const DRAFT: Duration = Duration::from_secs(60 * 60);
/// How many failures are remembered.
const MOST_FAILURES: usize = 256;
/// How long a failure is remembered.
const MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// A failure is one of this version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A cache folder of compiled components.
#[derive(Debug)]
pub struct ComponentCacheDir {
    folder: OwnedFd,
    /// Where it was opened, for people.
    path: PathBuf,
    /// Its maximum size in bytes.
    size: u64,
}

/// A folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ComponentCacheError {
    /// It cannot be created or opened.
    #[error("the folder {} for compiled plugins cannot be opened: {cause}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// Other users could put native code there.
    #[error(
        "the folder {} for compiled plugins belongs to user {owner} with mode {mode:04o}; it must belong to this user with mode 0700, because what lies there is run",
        .path.display()
    )]
    Shared {
        /// The folder.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// A failure that was remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownFailure {
    /// What was to be remembered.
    pub why: String,
    /// The file that remembers it.
    pub file: PathBuf,
}

/// The origin of a component.
#[derive(Debug)]
pub enum CacheOutcome {
    /// It was in the cache.
    Cached,
    /// It was compiled, and is in the cache now.
    Compiled,
    /// It was compiled, and could not be stored in the cache: the next start compiles it again.
    NotKept(io::Error),
}

impl ComponentCacheDir {
    /// Opens the folder, and creates it if it does not exist. It holds `size` bytes, but always at
    /// least the component that was stored last.
    pub fn open(path: &Path, size: u64) -> Result<Self, ComponentCacheError> {
        let io = |cause: io::Error| ComponentCacheError::Io {
            path: path.to_owned(),
            cause,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(cause) => return Err(io(cause.into())),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io(e.into()))?;
        let stat = rustix::fs::fstat(&folder).map_err(|e| io(e.into()))?;
        let mode = stat.st_mode & 0o7777;
        if stat.st_uid != rustix::process::geteuid().as_raw() || mode & 0o077 != 0 {
            return Err(ComponentCacheError::Shared {
                path: path.to_owned(),
                owner: stat.st_uid,
                mode,
            });
        }
        Ok(Self {
            folder,
            path: path.to_owned(),
            size,
        })
    }

    /// Returns a component, from the cache or compiled by `compile`, which may take a while: so call this
    /// where that does no harm.
    ///
    /// # Errors
    ///
    /// An error of `compile`, or that its code cannot be loaded.
    pub fn component<E: From<wasmtime::Error>>(
        &self,
        engine: &Engine,
        wasm: &[u8],
        compile: impl FnOnce() -> Result<CompiledCode, E>,
    ) -> Result<(Component, CacheOutcome), E> {
        let name = name_of(engine, wasm, KIND);
        if let Some(component) = self.take(engine, &name) {
            // The time of last use. If it cannot be set, the component is only recompiled sooner.
            let now = Timestamps {
                last_access: NOW,
                last_modification: NOW,
            };
            let _ = rustix::fs::utimensat(&self.folder, &name, &now, AtFlags::SYMLINK_NOFOLLOW);
            return Ok((component, CacheOutcome::Cached));
        }
        let code = compile()?;
        let component = code.load(engine)?;
        let origin = match self.put(&name, code.bytes()) {
            Ok(()) => {
                // What cannot be removed now is tried again with the next one.
                let _ = self.shrink(&name);
                CacheOutcome::Compiled
            }
            Err(cause) => CacheOutcome::NotKept(cause),
        };
        Ok((component, origin))
    }

    fn take(&self, engine: &Engine, name: &str) -> Option<Component> {
        let code = self.read(name).ok()??;
        CompiledCode::of(code).load(engine).ok()
    }

    /// Remembers how compiling a component ended, so that it is not tried again.
    pub fn remember_failure(&self, engine: &Engine, wasm: &[u8], why: &str) -> io::Result<()> {
        let text = format!("{VERSION}\n{why}");
        self.put(&name_of(engine, wasm, FAILURE), text.as_bytes())?;
        // What cannot be removed now is tried again with the next one.
        let _ = self.forget_failures();
        Ok(())
    }

    /// Removes the oldest failures of too many.
    fn forget_failures(&self) -> io::Result<()> {
        let mut failures = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if !name.ends_with(FAILURE) {
                continue;
            }
            // Another process may have removed it meanwhile.
            if let Ok(stat) = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                failures.push((stat.st_mtime, stat.st_mtime_nsec, name.to_owned()));
            }
        }
        failures.sort_unstable();
        let surplus = failures.len().saturating_sub(MOST_FAILURES);
        for (.., name) in &failures[..surplus] {
            match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }

    /// How compiling a component ended, if it was tried by this version and failed.
    pub fn failure(&self, engine: &Engine, wasm: &[u8]) -> Option<KnownFailure> {
        let name = name_of(engine, wasm, FAILURE);
        let text = String::from_utf8(self.read(&name).ok()??).ok()?;
        let (version, why) = text.split_once('\n')?;
        let file = self.path.join(&name);
        let written = file.symlink_metadata().ok()?.modified().ok()?;
        let age = SystemTime::now()
            .duration_since(written)
            .unwrap_or_default();
        (version == VERSION && age <= MEMORY).then(|| KnownFailure {
            why: why.to_owned(),
            file,
        })
    }

    /// The verified bytes of a file. `None` if the file does not exist or cannot be trusted.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(&self.folder, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_uid != rustix::process::geteuid().as_raw()
            || stat.st_mode & 0o077 != 0
            || size > LARGEST
        {
            return Ok(None);
        }
        let mut file = File::from(fd);
        let mut claimed = [0; DIGEST];
        file.read_exact(&mut claimed)?;
        let mut code = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(LARGEST).read_to_end(&mut code)?;
        let matches = seal(name, &code) == claimed;
        Ok(matches.then_some(code))
    }

    /// Writes a temporary file and moves it into place, so that a crash leaves no half-written one.
    fn put(&self, name: &str, code: &[u8]) -> io::Result<()> {
        // Random, since processes that share the folder may have the same process id, each in its
        // own container.
        let drawn = RandomState::new().build_hasher().finish();
        let draft = format!(".{drawn:016x}.draft");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.folder, &draft, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(fd);
        let written = file
            .write_all(&seal(name, code))
            .and_then(|()| file.write_all(code))
            .and_then(|()| {
                rustix::fs::renameat(&self.folder, &draft, &self.folder, name).map_err(Into::into)
            });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.folder, &draft, AtFlags::empty());
        }
        written
    }

    /// Removes the least recently used files until the rest fits, and never `kept`.
    fn shrink(&self, kept: &str) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folder)? {
            let entry = entry?;
            let stat =
                rustix::fs::statat(&self.folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            // Another process may have removed it meanwhile.
            let (Ok(stat), Ok(name)) = (stat, entry.file_name().to_str()) else {
                continue;
            };
            let used = (stat.st_mtime, stat.st_mtime_nsec);
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            if name.ends_with(KIND) && name != kept {
                files.push((used, name.to_owned(), size));
            } else if name == kept {
                files.push(((i64::MAX, 0), name.to_owned(), size));
            } else if name.ends_with(".draft") && age(stat.st_mtime) > DRAFT
                || name.ends_with(FAILURE) && age(stat.st_mtime) > MEMORY
            {
                rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())?;
            }
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, _, size)| size).sum();
        for (_, name, size) in files {
            if total <= self.size || name == kept {
                break;
            }
            match rustix::fs::unlinkat(&self.folder, &name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => total -= size,
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }
}

/// The time elapsed since then, given in seconds since 1970.
fn age(then: i64) -> Duration {
    let then = UNIX_EPOCH + Duration::from_secs(u64::try_from(then).unwrap_or(0));
    SystemTime::now().duration_since(then).unwrap_or_default()
}

/// The header of a file of that name.
fn seal(name: &str, code: &[u8]) -> [u8; DIGEST] {
    let mut digest = Sha256::new();
    digest.update(name);
    // No name contains it.
    digest.update([0]);
    digest.update(code);
    digest.finalize().into()
}

/// A name that identifies both the component and the engine it was compiled for.
fn name_of(engine: &Engine, wasm: &[u8], kind: &str) -> String {
    struct Feed(Sha256);
    impl Hasher for Feed {
        fn finish(&self) -> u64 {
            0 // never asked: the digest is taken instead
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut feed = Feed(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut feed);
    let host = hex::encode(feed.0.finalize());
    format!(
        "{}-{}{kind}",
        hex::encode(Sha256::digest(wasm)),
        &host[..32]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The smallest possible component: a header and nothing else.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn shelf() -> (tempfile::TempDir, ComponentCacheDir) {
        let folder = tempfile::tempdir().unwrap();
        let shelf = ComponentCacheDir::open(&folder.path().join("cwasm"), u64::MAX).unwrap();
        (folder, shelf)
    }

    /// The empty component with a custom section, which is different for each number.
    fn numbered(number: u8) -> Vec<u8> {
        [EMPTY, &[0, 3, 1, b'n', number]].concat()
    }

    fn component(
        shelf: &ComponentCacheDir,
        engine: &Engine,
        wasm: &[u8],
    ) -> (Component, CacheOutcome) {
        let compiled = shelf.component(engine, wasm, || CompiledCode::compile(engine, wasm));
        compiled.unwrap()
    }

    fn only_file(folder: &tempfile::TempDir) -> PathBuf {
        let mut files = std::fs::read_dir(folder.path().join("cwasm")).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(files.next().is_none());
        file
    }

    #[test]
    fn a_component_is_compiled_once_and_then_taken_from_the_shelf() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        let (_, first) = component(&shelf, &engine, EMPTY);
        let (_, second) = component(&shelf, &engine, EMPTY);
        assert!(matches!(
            (first, second),
            (CacheOutcome::Compiled, CacheOutcome::Cached)
        ));
        let mode = only_file(&folder).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_compiled_anew() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        component(&shelf, &engine, EMPTY);
        let file = only_file(&folder);
        let whole = std::fs::read(&file).unwrap();
        for damage in [whole[..whole.len() - 1].to_vec(), Vec::new(), {
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            flipped
        }] {
            std::fs::write(&file, damage).unwrap();
            let (_, origin) = component(&shelf, &engine, EMPTY);
            assert!(matches!(origin, CacheOutcome::Compiled));
        }
    }

    #[test]
    fn a_file_under_anothers_name_is_not_taken() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        component(&shelf, &engine, &numbered(1));
        let one = only_file(&folder);
        let other = one.with_file_name(name_of(&engine, &numbered(2), KIND));
        std::fs::rename(one, other).unwrap();
        let (_, origin) = component(&shelf, &engine, &numbered(2));
        assert!(matches!(origin, CacheOutcome::Compiled));
    }

    #[test]
    fn a_file_that_others_can_write_or_a_link_is_not_taken() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        component(&shelf, &engine, EMPTY);
        let file = only_file(&folder);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let (_, origin) = component(&shelf, &engine, EMPTY);
        assert!(matches!(origin, CacheOutcome::Compiled));

        let elsewhere = folder.path().join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let (_, origin) = component(&shelf, &engine, EMPTY);
        assert!(matches!(origin, CacheOutcome::Compiled));
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let refused = ComponentCacheDir::open(&path, u64::MAX)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("mode 0755"), "{refused}");
    }

    #[test]
    fn a_full_shelf_gives_away_what_was_not_taken_for_the_longest_time() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        let origin =
            |shelf: &ComponentCacheDir, number| component(shelf, &engine, &numbered(number)).1;
        origin(&shelf, 0);
        let one = only_file(&folder).metadata().unwrap().len();
        origin(&shelf, 1);
        // As if both had been there, and only the first had been used since.
        let path = folder.path().join("cwasm");
        for entry in std::fs::read_dir(&path).unwrap() {
            let long_ago = SystemTime::now() - Duration::from_secs(3600);
            let file = File::options()
                .write(true)
                .open(entry.unwrap().path())
                .unwrap();
            file.set_modified(long_ago).unwrap();
        }
        assert!(matches!(origin(&shelf, 0), CacheOutcome::Cached));
        let draft = path.join(".1-1.draft");
        std::fs::write(&draft, "of a process that is dead").unwrap();
        File::options()
            .write(true)
            .open(&draft)
            .unwrap()
            .set_modified(UNIX_EPOCH)
            .unwrap();

        // They differ by a few bytes at most.
        let small = ComponentCacheDir::open(&path, one * 2 + 100).unwrap();
        assert!(matches!(origin(&small, 2), CacheOutcome::Compiled));
        assert!(!draft.exists(), "a draft of a dead process stays");
        assert!(matches!(origin(&small, 0), CacheOutcome::Cached));
        assert!(matches!(origin(&small, 2), CacheOutcome::Cached));
        assert!(matches!(origin(&small, 1), CacheOutcome::Compiled));

        let none = ComponentCacheDir::open(&path, 0).unwrap();
        assert!(matches!(origin(&none, 3), CacheOutcome::Compiled));
        assert!(matches!(origin(&none, 3), CacheOutcome::Cached));
        only_file(&folder);
    }

    #[test]
    fn a_failure_is_remembered_until_its_file_is_gone_or_old() {
        let (_folder, shelf) = shelf();
        let engine = Engine::default();
        assert_eq!(shelf.failure(&engine, EMPTY), None);
        shelf.remember_failure(&engine, EMPTY, "too slow").unwrap();
        let known = shelf.failure(&engine, EMPTY).unwrap();
        assert_eq!(known.why, "too slow");
        assert_eq!(shelf.failure(&engine, &numbered(1)), None);

        let file = File::options().write(true).open(&known.file).unwrap();
        file.set_modified(SystemTime::now() - MEMORY - Duration::from_secs(60))
            .unwrap();
        assert_eq!(shelf.failure(&engine, EMPTY), None);
        component(&shelf, &engine, &numbered(1));
        assert!(!known.file.exists(), "an old failure stays");

        shelf.remember_failure(&engine, EMPTY, "too slow").unwrap();
        std::fs::write(&known.file, "damaged").unwrap();
        assert_eq!(shelf.failure(&engine, EMPTY), None);
        std::fs::remove_file(&known.file).unwrap();
        assert_eq!(shelf.failure(&engine, EMPTY), None);
    }

    #[test]
    fn of_many_failures_the_last_are_remembered() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        let wasm = |number: usize| {
            let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
            [EMPTY, &[0, 4, 1, b'n', high, low]].concat()
        };
        for number in 0..MOST_FAILURES + 3 {
            shelf
                .remember_failure(&engine, &wasm(number), "too slow")
                .unwrap();
            if number < 3 {
                let known = shelf.failure(&engine, &wasm(number)).unwrap();
                let file = File::options().write(true).open(known.file).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_secs(60))
                    .unwrap();
            }
        }
        for number in 0..MOST_FAILURES + 3 {
            let is_known = shelf.failure(&engine, &wasm(number)).is_some();
            assert_eq!(is_known, number >= 3, "{number}");
        }
        let files = std::fs::read_dir(folder.path().join("cwasm")).unwrap();
        assert_eq!(files.count(), MOST_FAILURES);
    }

    #[test]
    fn another_engine_has_another_file() {
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let fuelled = Engine::new(&config).unwrap();
        assert_ne!(
            name_of(&Engine::default(), EMPTY, KIND),
            name_of(&fuelled, EMPTY, KIND)
        );
    }
}
