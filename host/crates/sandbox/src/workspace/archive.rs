//! Streams a workspace as one archive: a tar, compressed with gzip.
//!
//! # Invariants
//! - Memory is bounded and nothing is written to disk.
//! - Links are stored as links and never followed.
//! - Each file's data is as long as its header says, whatever happens to the file meanwhile, so the
//!   archive is always well-formed.
//! - What is left out is listed in the archive.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::FileType;
use tar::{Builder, EntryType, Header};

use super::walk::{DEEPEST, MOST_ENTRIES, Walk, WalkEntry, WalkStep};
use super::{Workspace, WorkspaceError, WorkspacePath, explain};
use lucid_types::plural;
use lucid_types::user_work::CancelFlag;

/// The top-level folder of the archive.
const TOP: &str = "workspace";
/// The file that lists what was left out.
const LIST: &str = "left-out-of-this-archive.txt";
/// The most lines of that list.
const LINES: usize = 1000;
/// The most bytes of holes, in all files together: sparse data takes no disk and could be endless.
const HOLES: u64 = 16 << 30;
/// Maximum memory for the names of hard-linked files, in bytes.
const NAMES: usize = 16 << 20;

impl Workspace {
    /// Writes the archive. Blocks for as long as `to` takes it; ends at the first error of `to`, or
    /// when nobody wants it any more.
    pub fn archive(&self, to: impl Write, cancelled: &CancelFlag) -> Result<(), WorkspaceError> {
        let failed = |cause| explain(&WorkspacePath::root(), cause);
        let walk = Walk::new(self).map_err(failed)?;
        let packed = Archive {
            tar: Builder::new(GzEncoder::new(to, Compression::fast())),
            skipped: SkippedEntries::default(),
            holes: HOLES,
            names: HashMap::new(),
            names_left: NAMES,
        };
        packed.pack(walk, cancelled).map_err(failed)
    }
}

struct Archive<W: Write> {
    tar: Builder<GzEncoder<W>>,
    skipped: SkippedEntries,
    /// Bytes of holes that may still be written.
    holes: u64,
    /// The path in the archive of each hard-linked file.
    names: HashMap<(u64, u64), PathBuf>,
    names_left: usize,
}

#[derive(Default)]
struct SkippedEntries {
    lines: String,
    count: usize,
}

impl SkippedEntries {
    fn note(&mut self, path: &Path, why: &str) {
        self.count += 1;
        if self.count <= LINES {
            // Writing into a string cannot fail. Quoted, since a name may contain a line break.
            let _ = writeln!(self.lines, "{:?}: {why}", path.to_string_lossy());
        }
    }
}

impl<W: Write> Archive<W> {
    fn pack(mut self, mut walk: Walk, cancelled: &CancelFlag) -> io::Result<()> {
        self.folder(Path::new(TOP), 0o755, None)?;
        while let Some(step) = walk.next() {
            // What is left out sends nothing, so an error of `to` would not tell.
            if cancelled.is_set() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match step {
                WalkStep::Found(found) => self.entry(&walk, &found)?,
                WalkStep::Closed(path, error) => {
                    let why = format!("the folder cannot be looked into ({error}).");
                    self.skipped.note(&path, &why);
                }
                WalkStep::Deep(path) => {
                    let why = format!("the folder is more than {DEEPEST} folders deep.");
                    self.skipped.note(&path, &why);
                }
                WalkStep::Many => {
                    let why = format!("what comes after the first {MOST_ENTRIES} entries.");
                    self.skipped.note(Path::new(""), &why);
                }
            }
        }
        self.list()?;
        self.tar.into_inner()?.finish()?.flush()
    }

    fn entry(&mut self, walk: &Walk, found: &WalkEntry) -> io::Result<()> {
        match found.kind() {
            FileType::Directory => {
                self.folder(&below_top(&found.path), found.stat.st_mode, Some(found))
            }
            FileType::Symlink => match walk.target(found) {
                Ok(target) => {
                    let mut header = header(EntryType::Symlink, 0o777, Some(found));
                    self.tar
                        .append_link(&mut header, below_top(&found.path), target)
                }
                // Gone by now, or something else.
                Err(error) => {
                    self.note_unreadable(found, &error);
                    Ok(())
                }
            },
            FileType::RegularFile => self.file(walk, found),
            _ => {
                self.skipped
                    .note(&found.path, "neither a file, a folder nor a link.");
                Ok(())
            }
        }
    }

    fn note_unreadable(&mut self, found: &WalkEntry, error: &io::Error) {
        self.skipped
            .note(&found.path, &format!("it cannot be read ({error})."));
    }

    fn file(&mut self, walk: &Walk, found: &WalkEntry) -> io::Result<()> {
        let path = below_top(&found.path);
        if let Some(file) = found.identity() {
            if let Some(first) = self.names.get(&file) {
                let mut header = header(EntryType::Link, found.stat.st_mode, Some(found));
                return self.tar.append_link(&mut header, path, first);
            }
            // The first of several names: unless it is kept here, each of the others would be a
            // copy.
            let size = path.as_os_str().len() + 64;
            let Some(left) = self.names_left.checked_sub(size) else {
                self.skipped
                    .note(&found.path, "too many files have several names.");
                return Ok(());
            };
            self.names_left = left;
        }
        let file = match walk.open(found) {
            Ok(file) => file,
            Err(error) => {
                self.note_unreadable(found, &error);
                return Ok(());
            }
        };
        let length = file.metadata().map_or(found.length(), |data| data.len());
        let holes = length.saturating_sub(found.allocated());
        let Some(left) = self.holes.checked_sub(holes) else {
            let length = plural::count(length, "byte");
            let why = format!("it is {length}, nearly all of them holes.");
            self.skipped.note(&found.path, &why);
            return Ok(());
        };
        self.holes = left;
        let mut header = header(EntryType::Regular, found.stat.st_mode, Some(found));
        header.set_size(length);
        let mut content = FixedLengthReader {
            file,
            remaining: length,
            missing: None,
        };
        self.tar.append_data(&mut header, &path, &mut content)?;
        if let Some(missing) = content.missing {
            let why = format!(
                "its last {missing} bytes are missing, zeros in their place: it changed while it was read."
            );
            self.skipped.note(&found.path, &why);
        }
        if let Some(file) = found.identity() {
            self.names.insert(file, path);
        }
        Ok(())
    }

    fn folder(&mut self, path: &Path, mode: u32, found: Option<&WalkEntry>) -> io::Result<()> {
        // Whoever unpacks the folder must be able to fill it.
        let mut header = header(EntryType::Directory, mode | 0o700, found);
        self.tar.append_data(&mut header, path, io::empty())
    }

    fn list(&mut self) -> io::Result<()> {
        let SkippedEntries { mut lines, count } = std::mem::take(&mut self.skipped);
        if count == 0 {
            return Ok(());
        }
        if count > LINES {
            let _ = writeln!(lines, "and {} more.", count - LINES);
        }
        let text = format!("What is not in this archive, or not whole:\n\n{lines}");
        let mut header = header(EntryType::Regular, 0o644, None);
        header.set_size(text.len() as u64);
        // Beside the workspace's folder, so that it cannot collide with a file of that name.
        self.tar.append_data(&mut header, LIST, text.as_bytes())
    }
}

fn below_top(path: &Path) -> PathBuf {
    Path::new(TOP).join(path)
}

/// Omits the files' owner, which is nobody's business, and any setuid and setgid bits.
fn header(kind: EntryType, mode: u32, found: Option<&WalkEntry>) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let mtime = found.map_or(0, |found| found.stat.st_mtime);
    header.set_mtime(u64::try_from(mtime).unwrap_or(0));
    header
}

/// A file's content at exactly the announced length: later growth is not read, missing bytes are
/// zeros.
struct FixedLengthReader<R> {
    file: R,
    remaining: u64,
    /// How many bytes were missing, if any.
    missing: Option<u64>,
}

impl<R: Read> Read for FixedLengthReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining).map_or(into.len(), |left| left.min(into.len()));
        let into = &mut into[..most];
        if into.is_empty() {
            return Ok(0);
        }
        let read = match self.missing {
            Some(_) => 0,
            None => match self.file.read(into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                read => read.unwrap_or(0),
            },
        };
        let read = if read == 0 {
            self.missing.get_or_insert(self.remaining);
            into.fill(0);
            into.len()
        } else {
            read
        };
        self.remaining -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, symlink};

    use flate2::read::GzDecoder;

    use super::*;
    use lucid_types::ids::SessionId;

    fn workspace() -> (tempfile::TempDir, Workspace) {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"user".into(), SessionId::new()).unwrap();
        (base, workspace)
    }

    fn packed(workspace: &Workspace) -> Vec<u8> {
        let mut bytes = Vec::new();
        workspace
            .archive(&mut bytes, &CancelFlag::default())
            .unwrap();
        bytes
    }

    /// Kind, length and link of each entry, read to its end.
    fn entries(bytes: &[u8]) -> BTreeMap<String, (EntryType, u64, Option<PathBuf>)> {
        let mut archive = tar::Archive::new(GzDecoder::new(bytes));
        let read = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let link = entry.link_name().unwrap().map(|link| link.into_owned());
            let length = io::copy(&mut entry, &mut io::sink()).unwrap();
            (path, (entry.header().entry_type(), length, link))
        });
        read.collect()
    }

    fn text(bytes: &[u8], name: &str) -> String {
        let mut archive = tar::Archive::new(GzDecoder::new(bytes));
        let mut found = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|entry| entry.path().unwrap() == Path::new(name))
            .unwrap_or_else(|| panic!("no {name}"));
        let mut text = String::new();
        found.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn everything_is_in_it_links_are_links_and_nothing_from_outside_is() {
        let (base, workspace) = workspace();
        let root = workspace.host_path();
        fs::write(base.path().join("secret"), "not yours").unwrap();
        let long = ["x".repeat(90), "y".repeat(90), "z".repeat(90)].join("/");
        for path in ["a.txt", ".git/config", "node_modules/x/y.js", &long] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "content").unwrap();
        }
        fs::create_dir(root.join("empty")).unwrap();
        let odd = root.join(std::ffi::OsStr::from_bytes(b"odd \xff\n\"name"));
        fs::write(&odd, "odd").unwrap();
        symlink(base.path().join("secret"), root.join("out")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink(".", root.join("loop")).unwrap();
        fs::hard_link(root.join("a.txt"), root.join("b.txt")).unwrap();
        let bytes = packed(&workspace);

        let entries = entries(&bytes);
        for (name, target) in [("out", base.path().join("secret")), ("etc", "/etc".into())] {
            let entry = &entries[&format!("workspace/{name}")];
            assert_eq!(entry, &(EntryType::Symlink, 0, Some(target)));
        }
        assert!(
            !entries
                .keys()
                .any(|path| path.starts_with("workspace/loop/"))
        );
        assert!(!entries.contains_key(LIST), "{}", text(&bytes, LIST));
        let kinds = ["a.txt", "b.txt"].map(|name| entries[&format!("workspace/{name}")].0);
        assert!(kinds.contains(&EntryType::Link) && kinds.contains(&EntryType::Regular));

        // It unpacks to what it was made from.
        let to = tempfile::tempdir().unwrap();
        tar::Archive::new(GzDecoder::new(&bytes[..]))
            .unpack(to.path())
            .unwrap();
        let to = to.path().join("workspace");
        for path in [
            "a.txt",
            "b.txt",
            ".git/config",
            "node_modules/x/y.js",
            &long,
        ] {
            assert_eq!(fs::read(to.join(path)).unwrap(), b"content", "{path}");
        }
        assert_eq!(fs::read(to.join(odd.file_name().unwrap())).unwrap(), b"odd");
        assert!(to.join("empty").is_dir());
        assert_eq!(fs::metadata(to.join("a.txt")).unwrap().nlink(), 2);
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_leaves_the_archive_whole() {
        struct Grows;
        impl Read for Grows {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                into.fill(b'g');
                Ok(into.len())
            }
        }
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("the disk"))
            }
        }
        let read = |file: Box<dyn Read>| {
            let mut content = FixedLengthReader {
                file,
                remaining: 100,
                missing: None,
            };
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).unwrap();
            (bytes, content.missing)
        };
        assert_eq!(read(Box::new(Grows)), (vec![b'g'; 100], None));
        let mut shrunk = vec![b's'; 40];
        shrunk.resize(100, 0);
        assert_eq!(read(Box::new(&[b's'; 40][..])), (shrunk, Some(60)));
        assert_eq!(read(Box::new(Fails)), (vec![0; 100], Some(100)));
    }

    #[test]
    fn an_archive_made_while_files_change_can_be_read_to_its_end() {
        let (_base, workspace) = workspace();
        let root = workspace.host_path().to_owned();
        let over = std::sync::atomic::AtomicBool::new(false);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut round = 0usize;
                while !over.load(relaxed) {
                    round += 1;
                    let name = root.join(format!("f{}", round % 7));
                    // Any of these may meet what another round left.
                    let _ = fs::write(&name, vec![b'x'; (round * 7919) % 300_000]);
                    let _ = fs::remove_file(root.join(format!("f{}", (round + 3) % 7)));
                    let _ = symlink("/etc/hostname", root.join(format!("f{}", (round + 3) % 7)));
                    let _ = fs::remove_file(root.join(format!("f{}", (round + 5) % 7)));
                }
            });
            for _ in 0..40 {
                let bytes = packed(&workspace);
                assert!(entries(&bytes).contains_key("workspace"), "not whole");
            }
            over.store(true, relaxed);
        });
    }

    #[test]
    fn what_is_left_out_is_listed() {
        let (_base, workspace) = workspace();
        let root = workspace.host_path();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        fs::File::create(root.join("endless"))
            .unwrap()
            .set_len(HOLES + 1)
            .unwrap();
        fs::create_dir_all(root.join(vec!["d"; DEEPEST + 5].join("/"))).unwrap();
        fs::write(root.join("fine"), "fine").unwrap();
        let bytes = packed(&workspace);
        let entries = entries(&bytes);
        assert!(entries.contains_key("workspace/fine"));
        assert!(!entries.contains_key("workspace/endless"));
        let list = text(&bytes, LIST);
        for part in ["\"socket\": neither", "holes", "folders deep"] {
            assert!(list.contains(part), "{part}: {list}");
        }
    }

    #[test]
    fn it_ends_with_whoever_takes_it() {
        struct Takes(usize);
        impl Write for Takes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self
                    .0
                    .checked_sub(bytes.len())
                    .ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_base, workspace) = workspace();
        // Reading it to its end would take a day.
        let endless = fs::File::create(workspace.host_path().join("endless")).unwrap();
        endless.set_len(HOLES - 1).unwrap();
        let wanted = CancelFlag::default();
        assert!(workspace.archive(Takes(100_000), &wanted).is_err());
        drop(wanted.on_drop());
        assert!(workspace.archive(Takes(usize::MAX), &wanted).is_err());
    }
}
