//! The store of uploads: components by their digest, and the record of which are active, in one
//! folder.
//!
//! # Invariants
//!
//! - A file there is complete or absent, even after a crash or on a full disk.
//! - A writer holds the folder's lock, so a server and a command line beside it do not undo each
//!   other's work.
//! - A build that is active or can be rolled back to is never removed to make room.
//! - A record that cannot be understood is an error, never an empty one.

mod activations;

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use self::activations::ActivationsError;
pub(crate) use self::activations::{
    Activation, Activations, AutoRollback, Candidate, DeactivatedBuild,
};
use crate::manifest::{
    ManifestProblem, SecondBuild, SecondBuildRole, UploadOverride, UploadOverrides,
};
use lucid_types::digest::Digest;
use lucid_wasm::PluginKind;

/// The file with the record of active builds.
const RECORD: &str = "active.json";
/// The prefix of files that are not complete yet.
const TEMPORARY_PREFIX: &str = ".draft-";
const LOCK: &str = ".lock";
/// The maximum size of a record, in bytes.
const LARGEST_RECORD: u64 = 4 << 20;

/// An error of the upload store.
#[derive(Debug, thiserror::Error)]
pub enum UploadStoreError {
    /// The record is invalid.
    #[error(
        "{path} cannot be understood ({source}), so nobody knows which uploaded builds are active: put it right, or remove it to run what the manifest names"
    )]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: ActivationsError,
    },
    /// A file operation failed.
    #[error("{path} cannot be {what}: {cause}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The operation: `read`, `written` or so.
        what: &'static str,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// There is no room, and nothing that may be removed.
    #[error(
        "there is no room for another build: {in_use} are active or can be rolled back to, and they are all that is kept"
    )]
    Full {
        /// The number of stored builds that must stay.
        in_use: usize,
    },
}

impl UploadStoreError {
    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::File { cause, .. } if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<UploadStoreError> for ManifestProblem {
    fn from(error: UploadStoreError) -> Self {
        Self::plain(error.to_string())
    }
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
struct StorageLimits {
    builds: usize,
    bytes: u64,
}

/// The upload store's folder. A clone is the same store. Looking at it creates nothing.
#[derive(Debug, Clone)]
pub(crate) struct UploadStore {
    folder: PathBuf,
    limits: StorageLimits,
}

/// The metadata of an uploaded build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadMetadata {
    /// `policy`, `llm`, `tools` or `git`.
    pub(crate) kind: String,
    /// The component's own name.
    pub(crate) name: String,
    /// The component's own version.
    pub(crate) version: String,
    /// Who uploaded it.
    pub(crate) by: String,
    /// When it was uploaded.
    pub(crate) at: DateTime<Utc>,
}

/// A stored build.
#[derive(Debug)]
pub(crate) struct StoredUpload {
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// `None` if its label was lost.
    pub(crate) label: Option<UploadMetadata>,
    written: SystemTime,
}

impl UploadStore {
    /// The store in this folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            limits: StorageLimits {
                builds: 64,
                bytes: 4 << 30,
            },
        }
    }

    /// The record's file.
    pub(crate) fn record_file(&self) -> PathBuf {
        self.folder.join(RECORD)
    }

    /// The path of a build, whether it exists or not.
    pub(crate) fn file(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.wasm"))
    }

    fn label_file(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{digest}.json"))
    }

    /// Whether a build is stored.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.file(digest).is_file()
    }

    /// The record of active builds. Empty if none was ever activated.
    pub(crate) fn record(&self) -> Result<Activations, UploadStoreError> {
        let path = self.record_file();
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| {
            let mut file = file.take(LARGEST_RECORD);
            file.read_to_string(&mut text)
        });
        match read {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return Ok(Activations::default());
            }
            Err(cause) if cause.kind() != io::ErrorKind::InvalidData => {
                return Err(failed(&path, "read", cause));
            }
            Err(cause) => {
                let source = cause.into();
                return Err(UploadStoreError::Damaged { path, source });
            }
            Ok(_) => {}
        }
        let parsed = serde_json::from_str::<Activations>(&text).map_err(ActivationsError::from);
        let checked = parsed.and_then(|record| record.check().map(|()| record));
        checked.map_err(|source| UploadStoreError::Damaged { path, source })
    }

    /// The uploads of a deployment: each plugin's active build, and its second build.
    pub(crate) fn uploads(&self, record: &Activations) -> UploadOverrides {
        let mut uploads = UploadOverrides::default();
        for (kind, name, _) in record.all() {
            self.apply_active(record, kind, name, &mut uploads);
        }
        uploads
    }

    /// Adds a plugin's active build, and its second build, to the uploads.
    pub(crate) fn apply_active(
        &self,
        record: &Activations,
        kind: PluginKind,
        name: &str,
        uploads: &mut UploadOverrides,
    ) {
        let active = record.builds(kind, name).len().checked_sub(1);
        self.apply_build(record, (kind, name), active, uploads);
        if let Some(candidate) = record.candidate(kind, name) {
            let role = SecondBuildRole::Candidate {
                share: candidate.share,
            };
            let upload = Some(self.upload(record, kind, name, &candidate.build));
            uploads.set_second_build(name, Some(SecondBuild { role, upload }));
        }
    }

    /// Adds one of a plugin's builds to the uploads, by its index. The manifest's component is used
    /// if there is none. While it is on probation the previous one stays beside it.
    pub(crate) fn apply_build(
        &self,
        record: &Activations,
        (kind, name): (PluginKind, &str),
        at: Option<usize>,
        uploads: &mut UploadOverrides,
    ) {
        let builds = record.builds(kind, name);
        let build = at.and_then(|at| builds.get(at));
        let upload = |build| self.upload(record, kind, name, build);
        uploads.set(kind, name, build.map(upload));
        if kind != PluginKind::Policy {
            return;
        }
        let before = build.filter(|build| build.probation).map(|_| SecondBuild {
            role: SecondBuildRole::Previous,
            upload: at.and_then(|at| builds.get(at.checked_sub(1)?)).map(upload),
        });
        uploads.set_second_build(name, before);
    }

    /// The upload for one build of a plugin.
    fn upload(
        &self,
        record: &Activations,
        kind: PluginKind,
        name: &str,
        build: &Activation,
    ) -> UploadOverride {
        UploadOverride {
            file: self.file(build.digest),
            digest: build.digest,
            added: record.is_added(kind, name),
            probation: build.probation.then_some(build.at),
        }
    }

    /// All stored builds, the newest first. Unreadable ones are left out.
    pub(crate) fn list(&self) -> Vec<StoredUpload> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        let mut all: Vec<StoredUpload> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let digest: Digest = name.strip_suffix(".wasm")?.parse().ok()?;
                let found = entry.metadata().ok()?;
                let label = std::fs::read(self.label_file(digest)).ok();
                Some(StoredUpload {
                    digest,
                    size: found.len(),
                    label: label.and_then(|label| serde_json::from_slice(&label).ok()),
                    written: found.modified().ok()?,
                })
            })
            .collect();
        all.sort_by(|a, b| (b.written, &a.digest).cmp(&(a.written, &b.digest)));
        all
    }

    /// Creates the folder, if possible.
    pub(crate) fn prepare(&self) {
        if let Err(error) = self.create_dir() {
            tracing::warn!("no plugin can be uploaded: {error}");
        }
    }

    fn create_dir(&self) -> Result<(), UploadStoreError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|cause| failed(&self.folder, "made", cause))
    }

    /// Waits for the folder's lock. May block for a while, so not for an executor thread.
    pub(crate) fn lock(&self) -> Result<UploadStoreLock, UploadStoreError> {
        self.create_dir()?;
        let path = self.folder.join(LOCK);
        let mut options = File::options();
        options.create(true).write(true).truncate(false).mode(0o600);
        let lock = options.open(&path).and_then(|file| {
            file.lock()?;
            Ok(file)
        });
        Ok(UploadStoreLock {
            store: self.clone(),
            _lock: lock.map_err(|cause| failed(&path, "locked", cause))?,
        })
    }
}

/// The right to write, until it is dropped.
#[derive(Debug)]
pub(crate) struct UploadStoreLock {
    store: UploadStore,
    _lock: File,
}

impl UploadStoreLock {
    /// Stores a build, and returns its digest. Makes room by removing the oldest of those that are
    /// neither active nor can be rolled back to.
    pub(crate) fn store(
        &self,
        wasm: &[u8],
        label: &UploadMetadata,
    ) -> Result<Digest, UploadStoreError> {
        let digest = Digest::of(wasm);
        self.sweep();
        self.make_room(digest, wasm.len() as u64)?;
        // The label first: a build exists when its component does.
        let text = serde_json::to_vec(label).unwrap_or_default();
        self.write_file(&self.store.label_file(digest), &text)?;
        let path = self.store.file(digest);
        if let Err(error) = self.write_file(&path, wasm) {
            if !path.is_file() {
                let _ = std::fs::remove_file(self.store.label_file(digest));
            }
            return Err(error);
        }
        Ok(digest)
    }

    /// Writes the record of active builds.
    pub(crate) fn write(&self, record: &Activations) -> Result<(), UploadStoreError> {
        let path = self.store.record_file();
        let text = serde_json::to_vec_pretty(record);
        let text = text.map_err(|error| failed(&path, "written", error.into()))?;
        if text.len() as u64 > LARGEST_RECORD {
            // A record that cannot be read again would keep the server from starting.
            let cause = io::Error::other("it would be too large; roll back what is not used");
            return Err(failed(&path, "written", cause));
        }
        self.write_file(&path, &text)
    }

    /// Writes a file completely or not at all.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), UploadStoreError> {
        let folder = &self.store.folder;
        let put = || {
            // Its mode is 0600. On failure it is removed.
            let mut draft = tempfile::Builder::new()
                .prefix(TEMPORARY_PREFIX)
                .tempfile_in(folder)?;
            draft.write_all(bytes)?;
            draft.as_file().sync_all()?;
            draft.persist(path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        };
        put().map_err(|cause| failed(path, "written", cause))
    }

    /// Removes incomplete files after a crash. Nobody else is writing now.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.store.folder).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY_PREFIX.as_bytes())
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn make_room(&self, digest: Digest, size: u64) -> Result<(), UploadStoreError> {
        let StorageLimits { builds, bytes } = self.store.limits;
        let record = self.store.record()?;
        let in_use = record.digests();
        let mut kept = self.store.list();
        kept.retain(|one| one.digest != digest);
        let mut total: u64 = kept.iter().map(|one| one.size).sum();
        while kept.len() >= builds || total.saturating_add(size) > bytes {
            let idle = kept.iter().rposition(|one| !in_use.contains(&one.digest));
            let Some(oldest) = idle.map(|at| kept.remove(at)) else {
                return Err(UploadStoreError::Full { in_use: kept.len() });
            };
            let path = self.store.file(oldest.digest);
            std::fs::remove_file(&path).map_err(|cause| failed(&path, "removed", cause))?;
            let _ = std::fs::remove_file(self.store.label_file(oldest.digest));
            total = total.saturating_sub(oldest.size);
        }
        Ok(())
    }
}

fn failed(path: &Path, what: &'static str, cause: io::Error) -> UploadStoreError {
    UploadStoreError::File {
        path: path.to_owned(),
        what,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Fixture {
        _folder: tempfile::TempDir,
        depot: UploadStore,
    }

    impl Fixture {
        fn new(builds: usize, bytes: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut upload_store = UploadStore::new(folder.path().join("data/plugins"));
            upload_store.limits = StorageLimits { builds, bytes };
            Self {
                _folder: folder,
                depot: upload_store,
            }
        }

        fn keep(&self, wasm: &[u8]) -> Result<Digest, UploadStoreError> {
            self.depot.lock()?.store(wasm, &label())
        }

        /// Stores a build with an explicit time, since a file system's clock may be coarse.
        fn keep_at(&self, wasm: &[u8], seconds: u64) -> Digest {
            let digest = self.keep(wasm).unwrap();
            let file = File::options().write(true).open(self.depot.file(digest));
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.unwrap().set_modified(at).unwrap();
            digest
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.depot.folder).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect()
        }
    }

    fn label() -> UploadMetadata {
        UploadMetadata {
            kind: "policy".to_owned(),
            name: "own".to_owned(),
            version: "1".to_owned(),
            by: "alice".to_owned(),
            at: DateTime::UNIX_EPOCH,
        }
    }

    fn activation(digest: Digest) -> Activation {
        Activation {
            digest,
            by: "alice".to_owned(),
            at: DateTime::UNIX_EPOCH,
            probation: false,
        }
    }

    #[test]
    fn what_is_kept_is_whole_private_and_found_again() {
        use std::os::unix::fs::PermissionsExt as _;
        let fixture = Fixture::new(4, 1_000);
        assert!(fixture.depot.list().is_empty(), "nothing was made yet");
        let digest = fixture.keep(b"a component").unwrap();
        assert!(fixture.depot.has(digest));
        let path = fixture.depot.file(digest);
        assert_eq!(std::fs::read(&path).unwrap(), b"a component");
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&fixture.depot.folder)), (0o600, 0o700));
        let kept = fixture.depot.list();
        assert_eq!((kept.len(), kept[0].size), (1, 11));
        assert_eq!(kept[0].label, Some(label()));
        // Its bytes were damaged on the disk: the same upload repairs it.
        std::fs::write(&path, b"a comp").unwrap();
        assert_eq!(fixture.keep(b"a component").unwrap(), digest);
        assert_eq!(std::fs::read(&path).unwrap(), b"a component");
    }

    #[test]
    fn a_draft_that_a_crash_left_is_no_build_and_goes() {
        let fixture = Fixture::new(4, 1_000);
        fixture.keep(b"one").unwrap();
        let draft = fixture.depot.folder.join(format!("{TEMPORARY_PREFIX}abc"));
        std::fs::write(&draft, b"half").unwrap();
        assert_eq!(fixture.depot.list().len(), 1);
        fixture.keep(b"two").unwrap();
        assert!(!draft.exists(), "the draft is still there");
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_there_and_no_draft() {
        let fixture = Fixture::new(4, 1_000);
        let digest = fixture.keep(b"one").unwrap();
        let mut record = Activations::default();
        record.push(PluginKind::Policy, "coder", false, activation(digest));
        let writer = fixture.depot.lock().unwrap();
        writer.write(&record).unwrap();
        drop(writer);
        // A folder in the file's place makes the last step fail, on any disk and for any user.
        let other = Digest::of(b"two");
        std::fs::create_dir(fixture.depot.file(other)).unwrap();
        let error = fixture.keep(b"two").unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
        assert_eq!(fixture.depot.record().unwrap(), record);
        let names = fixture.names();
        assert!(
            !names.iter().any(|name| name.starts_with(TEMPORARY_PREFIX)),
            "{names:?}"
        );
        let full = failed(Path::new("x"), "written", io::ErrorKind::StorageFull.into());
        assert!(full.is_disk_full());
        assert!(
            !fixture.depot.label_file(other).exists(),
            "its label is left"
        );
    }

    #[test]
    fn the_oldest_that_nobody_needs_goes_first() {
        let fixture = Fixture::new(3, 1_000);
        let digests: Vec<Digest> = (1..=3)
            .map(|number| fixture.keep_at(&[number], u64::from(number)))
            .collect();
        let mut record = Activations::default();
        record.push(PluginKind::Llm, "openai", false, activation(digests[0]));
        record.push(PluginKind::Llm, "openai", false, activation(digests[2]));
        fixture.depot.lock().unwrap().write(&record).unwrap();
        let fourth = fixture.keep_at(&[4], 4);
        let there: Vec<bool> = digests
            .iter()
            .map(|digest| fixture.depot.has(*digest))
            .collect();
        assert_eq!(
            there,
            [true, false, true],
            "the second was the oldest idle one"
        );
        record.push(PluginKind::Policy, "coder", false, activation(fourth));
        fixture.depot.lock().unwrap().write(&record).unwrap();
        let error = fixture.keep(&[5]).unwrap_err();
        assert!(
            matches!(error, UploadStoreError::Full { in_use: 3 }),
            "{error}"
        );
        assert!(
            fixture.keep(&[4]).is_ok(),
            "one that is there takes no more room"
        );

        let fixture = Fixture::new(100, 10);
        fixture.keep_at(&[1; 6], 1);
        fixture.keep_at(&[2; 6], 2);
        let kept = fixture.depot.list();
        assert_eq!((kept.len(), kept[0].size), (1, 6), "{kept:?}");
        assert!(
            fixture.keep(&[3; 11]).is_err(),
            "larger than all that is kept"
        );
    }

    #[test]
    fn a_damaged_record_is_an_error_and_never_an_empty_one() {
        let fixture = Fixture::new(4, 1_000);
        assert_eq!(fixture.depot.record().unwrap(), Activations::default());
        let digest = fixture.keep(b"one").unwrap();
        let mut record = Activations::default();
        record.push(PluginKind::Policy, "coder", true, activation(digest));
        fixture.depot.lock().unwrap().write(&record).unwrap();
        let path = fixture.depot.record_file();
        let good = std::fs::read_to_string(&path).unwrap();
        for end in 0..good.len() {
            std::fs::write(&path, &good[..end]).unwrap();
            let error = fixture.depot.record().unwrap_err().to_string();
            assert!(
                error.contains("active.json cannot be understood"),
                "{error}"
            );
        }
        for (from, to) in [
            (digest.to_string().as_str(), "../../../etc/passwd"),
            ("coder", "../coder"),
            ("\"version\": 1", "\"version\": 2"),
            // From a later host, which gave it a meaning.
            ("\"added\"", "\"share\""),
        ] {
            std::fs::write(&path, good.replace(from, to)).unwrap();
            let error = fixture.depot.record().unwrap_err();
            assert!(
                matches!(error, UploadStoreError::Damaged { .. }),
                "{from}: {error}"
            );
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(
            fixture.depot.record(),
            Err(UploadStoreError::Damaged { .. })
        ));
        std::fs::write(&path, good).unwrap();
        assert_eq!(fixture.depot.record().unwrap(), record);
    }

    fn on_probation(digest: Digest, seconds: i64) -> Activation {
        Activation {
            at: DateTime::from_timestamp(seconds, 0).unwrap(),
            probation: true,
            ..activation(digest)
        }
    }

    #[test]
    fn a_record_of_the_version_before_is_read_and_its_builds_are_settled() {
        let fixture = Fixture::new(4, 1_000);
        fixture.keep(b"one").unwrap();
        let digest = "a".repeat(64);
        let text = format!(
            r#"{{"version": 1, "policies": {{"coder": {{"added": false, "builds": [
                {{"digest": "{digest}", "by": "alice", "at": "2026-11-28T12:00:00.123456789Z"}}
            ]}}}}, "providers": {{}}}}"#
        );
        std::fs::write(fixture.depot.record_file(), text).unwrap();
        let mut record = fixture.depot.record().unwrap();
        assert!(!record.builds(PluginKind::Policy, "coder")[0].probation);
        let uploads = fixture.depot.uploads(&record);
        assert!(uploads.of(PluginKind::Policy)["coder"].probation.is_none());
        // As long as no new feature is used, the previous version reads what this one writes.
        record.push(
            PluginKind::Policy,
            "coder",
            false,
            activation(Digest::of("b")),
        );
        let text = serde_json::to_string(&record).unwrap();
        for word in ["probation", "candidate", "taken_back"] {
            assert!(!text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_share_that_is_none_is_damage() {
        let fixture = Fixture::new(4, 1_000);
        let digest = fixture.keep(b"one").unwrap();
        let mut record = Activations::default();
        let build = on_probation(digest, 1);
        record.set_candidate("coder", Candidate { build, share: 42 });
        fixture.depot.lock().unwrap().write(&record).unwrap();
        assert_eq!(fixture.depot.record().unwrap(), record);
        let path = fixture.depot.record_file();
        let good = std::fs::read_to_string(&path).unwrap();
        for share in ["0", "100", "255", "256", "-1", "1.5", "\"42\""] {
            std::fs::write(&path, good.replace("42", share)).unwrap();
            let error = fixture.depot.record().unwrap_err();
            assert!(
                matches!(error, UploadStoreError::Damaged { .. }),
                "{share}: {error}"
            );
        }
        let of_provider = good.replace("\"policies\"", "\"x\"");
        let of_provider = of_provider.replace("\"providers\"", "\"policies\"");
        std::fs::write(&path, of_provider.replace("\"x\"", "\"providers\"")).unwrap();
        let error = fixture.depot.record().unwrap_err().to_string();
        assert!(error.contains("only policies have any"), "{error}");
    }

    #[test]
    fn two_that_write_at_once_take_turns() {
        let fixture = Fixture::new(64, 1 << 20);
        std::thread::scope(|scope| {
            for number in 0..16_u8 {
                let upload_store = fixture.depot.clone();
                scope.spawn(move || {
                    let writer = upload_store.lock().unwrap();
                    let digest = writer.store(&[number], &label()).unwrap();
                    let mut record = upload_store.record().unwrap();
                    let name = format!("p{number}");
                    record.push(PluginKind::Policy, &name, true, activation(digest));
                    writer.write(&record).unwrap();
                });
            }
        });
        assert_eq!(fixture.depot.record().unwrap().all().count(), 16);
        assert_eq!(fixture.depot.list().len(), 16);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let depot = UploadStore::new(folder.path().to_owned());
            std::fs::write(depot.record_file(), &bytes).unwrap();
            prop_assert!(depot.record().is_err(), "{:?}", depot.record());
        }
    }
}
