//! Tests of the upload store.

use std::path::Path;

use proptest::prelude::*;

use super::lock::TEMPORARY_PREFIX;
use super::*;
use lucid_wasm::PluginKind;

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
