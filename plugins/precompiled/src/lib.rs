//! Owns the folder of compiled components, and the one `unsafe` call that loading them takes.
//!
//! What always holds: nothing is loaded as native code that this program, under this user, did not
//! write itself. [`Shelf::component`] is a safe function on these grounds:
//!
//! - The folder was made by this user for nobody else: it is opened without following a link, and
//!   its owner and its mode (0700) are checked on the open handle. Every file is reached through
//!   that handle, so renaming a parent folder later changes nothing.
//! - A file is opened without following a link; that it is a plain file, its owner and its mode
//!   (0600) are checked on the handle it is read through.
//! - Its name is the digest of the component and of everything wasmtime says two engines must share
//!   ([`Engine::precompile_compatibility_hash`]: version, target, settings, CPU features).
//! - It starts with the digest of what follows, so a torn or damaged file is compiled anew.
//! - It is read into memory once, and the bytes that were checked are the bytes that are loaded:
//!   nobody can change them between the two, as they could in a mapped file.
//!
//! Who can get round these is root, or this user, who can change this program as well.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

const DIGEST: usize = 32;
/// No compiled component is larger; what is, is not read.
const LARGEST: u64 = 1 << 30;

/// A folder of compiled components.
#[derive(Debug)]
pub struct Shelf {
    folder: OwnedFd,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It cannot be made or opened.
    #[error("the folder {} for compiled plugins cannot be opened: {cause}", .path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Others could put native code there.
    #[error(
        "the folder {} for compiled plugins belongs to user {owner} with mode {mode:04o}; it must belong to this user with mode 0700, because what lies there is run",
        .path.display()
    )]
    Shared {
        /// Which folder.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// What others may do.
        mode: u32,
    },
}

/// Where a component came from.
#[derive(Debug)]
pub enum Origin {
    /// It lay on the shelf.
    Shelf,
    /// It was compiled, and lies on the shelf now.
    Compiled,
    /// It was compiled, and could not be put on the shelf: the next start compiles it again.
    NotKept(io::Error),
}

impl Shelf {
    /// Opens the folder, and makes it where it is not there.
    pub fn open(path: &Path) -> Result<Self, ShelfError> {
        let io = |cause: io::Error| ShelfError::Io {
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
            return Err(ShelfError::Shared {
                path: path.to_owned(),
                owner: stat.st_uid,
                mode,
            });
        }
        Ok(Self { folder })
    }

    /// The component, from the shelf or compiled. Compiling takes a core for a while: call this
    /// where that is no harm. An error is the component's own.
    pub fn component(&self, engine: &Engine, wasm: &[u8]) -> wasmtime::Result<(Component, Origin)> {
        let name = name_of(engine, wasm);
        if let Some(component) = self.take(engine, &name) {
            return Ok((component, Origin::Shelf));
        }
        let component = Component::from_binary(engine, wasm)?;
        let origin = match self.put(&name, &component.serialize()?) {
            Ok(()) => Origin::Compiled,
            Err(cause) => Origin::NotKept(cause),
        };
        Ok((component, origin))
    }

    #[expect(
        unsafe_code,
        reason = "loading native code; see this file's first comment"
    )]
    fn take(&self, engine: &Engine, name: &str) -> Option<Component> {
        let code = self.read(name).ok()??;
        // SAFETY: `code` is what `Component::serialize` gave to a process of this user for an engine
        // of the same compatibility hash: the folder and the file belong to this user and can be
        // written by nobody else, the file's name says component and engine, and the digest in front
        // of it matches these very bytes, which nobody else holds.
        unsafe { Component::deserialize(engine, code) }.ok()
    }

    /// The checked bytes of a file, none where there is no such file or it cannot be trusted.
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
        let matches = Sha256::digest(&code).as_slice() == claimed;
        Ok(matches.then_some(code))
    }

    /// Writes a file beside its place and moves it there, so that a crash leaves no half of one.
    fn put(&self, name: &str, code: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = format!(".{}-{count}.draft", std::process::id());
        // One that a crash left behind, from a process that had the same number.
        let _ = rustix::fs::unlinkat(&self.folder, &draft, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.folder, &draft, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(fd);
        let written = file
            .write_all(Sha256::digest(code).as_slice())
            .and_then(|()| file.write_all(code))
            .and_then(|()| {
                rustix::fs::renameat(&self.folder, &draft, &self.folder, name).map_err(Into::into)
            });
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.folder, &draft, AtFlags::empty());
        }
        written
    }
}

/// Says both what was compiled and what for.
fn name_of(engine: &Engine, wasm: &[u8]) -> String {
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
    let host = hex(&feed.0.finalize());
    format!("{}-{}.cwasm", hex(&Sha256::digest(wasm)), &host[..32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The smallest component there is: a header and nothing else.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(&folder.path().join("cwasm")).unwrap();
        (folder, shelf)
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
        let (_, first) = shelf.component(&engine, EMPTY).unwrap();
        let (_, second) = shelf.component(&engine, EMPTY).unwrap();
        assert!(matches!((first, second), (Origin::Compiled, Origin::Shelf)));
        let mode = only_file(&folder).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_compiled_anew() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        shelf.component(&engine, EMPTY).unwrap();
        let file = only_file(&folder);
        let whole = std::fs::read(&file).unwrap();
        for damage in [whole[..whole.len() - 1].to_vec(), Vec::new(), {
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            flipped
        }] {
            std::fs::write(&file, damage).unwrap();
            let (_, origin) = shelf.component(&engine, EMPTY).unwrap();
            assert!(matches!(origin, Origin::Compiled));
        }
    }

    #[test]
    fn a_file_that_others_can_write_or_a_link_is_not_taken() {
        let (folder, shelf) = shelf();
        let engine = Engine::default();
        shelf.component(&engine, EMPTY).unwrap();
        let file = only_file(&folder);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let (_, origin) = shelf.component(&engine, EMPTY).unwrap();
        assert!(matches!(origin, Origin::Compiled));

        let elsewhere = folder.path().join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        let (_, origin) = shelf.component(&engine, EMPTY).unwrap();
        assert!(matches!(origin, Origin::Compiled));
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        let refused = Shelf::open(&path).unwrap_err().to_string();
        assert!(refused.contains("mode 0755"), "{refused}");
    }

    #[test]
    fn another_engine_has_another_file() {
        let mut config = wasmtime::Config::new();
        config.consume_fuel(true);
        let fuelled = Engine::new(&config).unwrap();
        assert_ne!(name_of(&Engine::default(), EMPTY), name_of(&fuelled, EMPTY));
    }
}
