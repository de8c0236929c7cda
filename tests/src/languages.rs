//! Where the tests keep what was built of the templates of other languages, beside the binary: building and
//! compiling them takes a minute, and several tests need them.
//!
//! What always holds: a component is kept under the digest of all that it is made of, so one of an older
//! template is not found.

use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::host::binary;

/// A template's project, and where what is built of it is kept.
pub struct Template {
    /// `javascript` or `python`.
    pub language: &'static str,
    /// Its files by their place in it: the template, and the WIT as `wit/` and `wit/deps/`.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Where its component is, once it was built.
    pub component: PathBuf,
    /// What the component was compiled to.
    pub cache: PathBuf,
}

impl Template {
    /// Of the repository in `root`.
    pub fn new(root: &Path, language: &'static str) -> Self {
        let mut files = Vec::new();
        for (from, to) in [
            (&*format!("plugins/templates/{language}"), ""),
            ("wit/policy", "wit"),
            ("wit/types", "wit/deps/types"),
            ("wit/host", "wit/deps/host"),
        ] {
            let from = root.join(from);
            let mut found = Vec::new();
            read_below(&from, &mut found);
            let placed = found.into_iter().map(|(path, bytes)| {
                let below = path.strip_prefix(&from).unwrap();
                (Path::new(to).join(below), bytes)
            });
            files.extend(placed);
        }
        files.sort();
        let mut digest = Sha256::new();
        for (path, bytes) in &files {
            digest.update(path.as_os_str().as_encoded_bytes());
            digest.update(bytes.len().to_le_bytes());
            digest.update(bytes);
        }
        let digest = hex::encode(&digest.finalize()[..8]);
        let folder = binary()
            .with_file_name("lucid-tests-languages")
            .join(language);
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            language,
            files,
            component: folder.join(format!("{digest}.wasm")),
            cache: folder.join("cache"),
        }
    }

    /// The folder of both.
    pub fn folder(&self) -> &Path {
        self.component.parent().unwrap()
    }

    /// Held while one looks whether it is there, and puts it there.
    pub fn lock(&self) -> File {
        let lock = File::create(self.folder().join("lock")).unwrap();
        lock.lock().unwrap();
        lock
    }

    /// Removes what is of no use any more: older components, and what they were compiled to.
    pub fn clear(&self) {
        for entry in std::fs::read_dir(self.folder()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(&path).unwrap();
            } else if path
                .extension()
                .is_some_and(|extension| extension == "wasm")
            {
                std::fs::remove_file(&path).unwrap();
            }
        }
    }

    /// Keeps a component that was built of it elsewhere, and what that was compiled to, so that nobody
    /// does either again.
    pub fn keep(&self, component: &Path, compiled: &Path) {
        use std::os::unix::fs::DirBuilderExt as _;
        let _lock = self.lock();
        if self.component.is_file() {
            return;
        }
        self.clear();
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(&self.cache).unwrap();
        for entry in std::fs::read_dir(compiled).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), self.cache.join(entry.file_name())).unwrap();
        }
        let draft = self.folder().join("draft");
        std::fs::copy(component, &draft).unwrap();
        std::fs::rename(draft, &self.component).unwrap();
    }
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
