//! Tests of the folders of hosts, processes and containers.

use super::*;

fn root(dir: &Path) -> (StateDir, File) {
    fs::write(dir.join("exec"), "program").unwrap();
    StateDir::open(dir, &dir.join("exec")).unwrap()
}

#[test]
fn a_host_that_finds_its_folder_again_is_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = root(dir.path()).0.instance().unwrap();
    assert_eq!(root(dir.path()).0.instance().unwrap(), first);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(root(other.path()).0.instance().unwrap(), first);
    fs::write(dir.path().join("docker/instance"), "../..").unwrap();
    assert!(root(dir.path()).0.instance().is_err());
}

#[test]
fn one_process_at_a_time_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let held = root(dir.path()).0.lock().unwrap();
    assert!(held.is_some());
    assert!(root(dir.path()).0.lock().unwrap().is_none());
    drop(held);
    assert!(root(dir.path()).0.lock().unwrap().is_some());
}

#[test]
fn what_a_process_has_is_free_when_it_is_dead_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let (first, life) = root(dir.path());
    let made = first.create_container_dir(None).unwrap();
    let (second, _life) = root(dir.path());
    let [seen] = &second.others()[..] else {
        panic!("one other process is there")
    };
    assert_eq!(seen.name(), first.owner().name());
    assert!(seen.lock_if_dead().unwrap().is_none());
    drop(life);
    assert!(seen.lock_if_dead().unwrap().is_some());
    assert_eq!(seen.container_dirs()[0].name(), made.name());
    seen.remove_if_empty();
    assert_eq!(
        second.others().len(),
        1,
        "a box was removed with its folder"
    );
    made.remove();
    seen.remove_if_empty();
    assert!(second.others().is_empty());
}

#[test]
fn a_name_that_leads_elsewhere_is_no_box() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _life) = root(dir.path());
    for name in ["..", "../run", "lock", ""] {
        assert!(root.owner().find(name).is_none(), "{name}");
    }
    let made = root.create_container_dir(None).unwrap();
    assert_eq!(root.owner().find(made.name()).unwrap().path, made.path);
    assert_eq!(root.owner().container_dirs().len(), 1);
}

#[test]
fn a_workspace_that_is_given_away_stays_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _life) = root(dir.path());
    let made = root.create_container_dir(Some("/usr/bin/python3")).unwrap();
    let waiting = made.make_workspace().unwrap();
    let identity = DirIdentity::of(&waiting).unwrap();
    let to = dir.path().join("given");
    assert_eq!(made.recorded(), None);
    let record = ContainerRecord {
        session: SessionId::new(),
        workspace: to.clone(),
        identity,
    };
    made.record(&record).unwrap();
    made.move_workspace(&to).unwrap();
    assert_eq!(DirIdentity::of(&to).unwrap(), identity);
    assert_eq!(made.recorded(), Some(record));
    made.remove();
    assert!(to.is_dir() && !made.path.exists());
}

#[test]
fn a_workspace_is_not_given_over_one_that_holds_something() {
    let dir = tempfile::tempdir().unwrap();
    let (root, _life) = root(dir.path());
    let made = root.create_container_dir(None).unwrap();
    made.make_workspace().unwrap();
    let to = dir.path().join("taken");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("work"), "1").unwrap();
    assert!(made.move_workspace(&to).is_err());
    assert_eq!(fs::read(to.join("work")).unwrap(), b"1");
}
