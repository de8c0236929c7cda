//! Tests of control groups in folders that imitate a hierarchy, and with the machine's own.

use std::time::{Duration, Instant};

use super::*;

/// How long to retry what the lock of a host keeps that is gone: between fork and exec, any process that
/// another test starts holds a copy of it.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);

const LIMITS: GroupLimits = GroupLimits {
    memory_bytes: 256 << 20,
    processes: 100,
    processors: 1.5,
};

/// A folder that imitates a delegated group of version 2.
fn delegated(controllers: &str, is_root_of_all: bool) -> (tempfile::TempDir, OwnGroup) {
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().join("unit");
    fs::create_dir(&group).unwrap();
    for (name, content) in [
        ("cgroup.controllers", controllers),
        ("cgroup.subtree_control", ""),
        ("cgroup.procs", "0\n1\n"),
    ] {
        fs::write(group.join(name), content).unwrap();
    }
    if !is_root_of_all {
        fs::write(group.join("cgroup.type"), "domain\n").unwrap();
    }
    let own = OwnGroup {
        version: Version::Two,
        path: group,
        controllers: Vec::new(),
        is_root: false,
    };
    (folder, own)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn where_version_2_is_delegated_the_host_moves_to_a_leaf_and_limits_groups_beside_it() {
    let (folder, own) = delegated("cpuset cpu io memory pids\n", false);
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    assert_eq!(groups.shortcoming(), None);
    let me = std::process::id().to_string();
    assert_eq!(text(&own.path.join("lucid-host/cgroup.procs")), me);
    let enabled = "+memory +pids +cpu";
    assert_eq!(text(&own.path.join("cgroup.subtree_control")), enabled);
    let host = &groups.hierarchies[0].group;
    assert_eq!(text(&host.join("cgroup.subtree_control")), enabled);
    let made = groups.make("one", &LIMITS).unwrap();
    let group = host.join("one");
    assert_eq!(made[0].entry(), group.join("cgroup.procs"));
    assert_eq!(text(&group.join("memory.max")), (256 << 20).to_string());
    assert_eq!(text(&group.join("pids.max")), "100");
    assert_eq!(text(&group.join("cpu.max")), "150000 100000");

    // The next host in this unit is in the leaf already.
    let leaf = OwnGroup {
        path: own.path.join("lucid-host"),
        ..own.clone()
    };
    let again = ControlGroups::in_groups(&[leaf], folder.path());
    assert_eq!(again.shortcoming(), None);
    assert_eq!(again.hierarchies[0].group.parent(), Some(&*own.path));
    assert_ne!(again.hierarchies[0].group, *host);
}

#[test]
fn in_a_containers_own_root_what_else_runs_there_moves_too_and_in_the_root_of_all_nothing_does() {
    let (folder, own) = delegated("memory pids cpu", false);
    let own = OwnGroup {
        is_root: true,
        ..own
    };
    let _groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    // The last one that was written. 0 stands for whoever writes, and is not.
    assert_eq!(text(&own.path.join("lucid-host/cgroup.procs")), "1");

    let (folder, own) = delegated("memory pids cpu", true);
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    assert_eq!(groups.shortcoming(), None);
    assert!(!own.path.join("lucid-host").exists());
}

#[test]
fn a_group_that_is_not_delegated_is_left_as_it_was() {
    let (folder, own) = delegated("cpuset io", false);
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    let said = groups.shortcoming().unwrap();
    assert!(
        said.contains("offers none") && said.contains("itself instead"),
        "{said}"
    );
    assert!(!own.path.join("lucid-host").exists());

    // The kernel refuses to hand controllers on while processes of others are in the group.
    let (folder, own) = delegated("memory", false);
    fs::remove_file(own.path.join("cgroup.subtree_control")).unwrap();
    fs::create_dir(own.path.join("cgroup.subtree_control")).unwrap();
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    assert!(!groups.limit_memory() && groups.shortcoming().is_some());
    let me = std::process::id().to_string();
    assert_eq!(text(&own.path.join("cgroup.procs")), me, "it is back");
    let left: Vec<_> = fs::read_dir(&own.path).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| {
        let name = entry.file_name();
        // The imitation has a file in the leaf, which the kernel would remove with it.
        name == "lucid-host" || !name.to_string_lossy().starts_with("lucid-")
    }));
}

#[test]
fn what_version_2_lacks_is_taken_from_version_1_and_what_none_has_is_said() {
    let (folder, two) = delegated("pids", false);
    let memory = folder.path().join("memory");
    fs::create_dir(&memory).unwrap();
    let one = OwnGroup {
        version: Version::One,
        path: memory,
        controllers: vec!["memory".to_owned()],
        is_root: false,
    };
    let systemd = OwnGroup {
        version: Version::One,
        path: folder.path().join("systemd"),
        controllers: vec!["name=systemd".to_owned()],
        is_root: false,
    };
    let groups = ControlGroups::in_groups(&[systemd, one, two], folder.path());
    let versions: Vec<_> = groups.hierarchies.iter().map(|it| it.version).collect();
    assert_eq!(versions, [Version::Two, Version::One]);
    assert_eq!(
        groups.shortcoming().unwrap(),
        "No control group limits the processors of a sandbox as a whole (the kernel offers no controller for that)."
    );
    let made = groups.make("one", &LIMITS).unwrap();
    let limit = made[1].path.join("memory.limit_in_bytes");
    assert_eq!(text(&limit), (256 << 20).to_string());
    assert_eq!(text(&made[1].path.join("memory.swappiness")), "0");
    assert_eq!(made[1].entry(), made[1].path.join("tasks"));
}

/// A program in place of the exec server, which joins no group whose path has `bad` in it, and writes down
/// what it is to become.
fn exec_that_refuses_bad_groups(folder: &Path) -> PathBuf {
    let exec = folder.join("exec");
    let script = "#!/bin/sh\necho \"$4 $5\" >> \"$0.log\"\ncase \"$2\" in */bad/*) echo 'lucid-exec: this is not allowed' >&2; exit 1;; esac\n";
    fs::write(&exec, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&exec, mode).unwrap();
    exec
}

fn first_version(folder: &Path, name: &str, controller: &str) -> OwnGroup {
    let path = folder.join(name);
    fs::create_dir(&path).unwrap();
    OwnGroup {
        version: Version::One,
        path,
        controllers: vec![controller.to_owned()],
        is_root: false,
    }
}

#[test]
fn a_hierarchy_in_which_no_process_can_join_a_group_costs_its_own_limits_and_no_others() {
    let (folder, two) = delegated("cpu", false);
    let exec = exec_that_refuses_bad_groups(folder.path());
    let memory = first_version(folder.path(), "bad", "memory");
    let processes = first_version(folder.path(), "good", "pids");
    let groups = ControlGroups::in_groups(&[two, memory, processes], folder.path());
    assert_eq!(groups.shortcoming(), None);
    let groups = groups.that_work(&exec);
    assert!(groups.limit_processes() && !groups.limit_memory());
    let said = groups.shortcoming().unwrap();
    assert!(
        said.starts_with("No control group limits the memory of")
            && said.contains("this is not allowed"),
        "{said}"
    );
    assert_eq!(groups.make("one", &LIMITS).unwrap().len(), 2);
    // Nothing else is sure to be on a machine: there is no /bin/true on some.
    let expected = format!("{} --version\n", exec.display()).repeat(3);
    assert_eq!(text(&folder.path().join("exec.log")), expected);
}

#[test]
fn after_a_trial_that_failed_the_host_is_in_its_group_again_which_hands_nothing_on() {
    let (folder, own) = delegated("memory pids cpu", false);
    let exec = exec_that_refuses_bad_groups(folder.path());
    let bad = folder.path().join("bad");
    fs::rename(&own.path, &bad).unwrap();
    let own = OwnGroup { path: bad, ..own };
    // Somebody else has this one from it.
    fs::write(own.path.join("cgroup.subtree_control"), "cpu\n").unwrap();
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    let me = std::process::id().to_string();
    assert_ne!(
        text(&own.path.join("cgroup.procs")),
        me,
        "it is in the leaf"
    );
    let groups = groups.that_work(&exec);
    assert!(groups.hierarchies.is_empty() && groups.shortcoming().is_some());
    let handed = text(&own.path.join("cgroup.subtree_control"));
    assert_eq!(handed, "-memory -pids");
    assert_eq!(text(&own.path.join("cgroup.procs")), me, "it is back");
}

#[test]
fn a_hosts_group_that_somebody_removed_is_made_again_for_the_next_sandbox() {
    let (folder, own) = delegated("memory pids", false);
    let groups = ControlGroups::in_groups(std::slice::from_ref(&own), folder.path());
    let host = &groups.hierarchies[0].group;
    groups.make("one", &LIMITS).unwrap();
    fs::remove_dir_all(host).unwrap();
    let made = groups.make("two", &LIMITS).unwrap();
    assert_eq!(text(&host.join("cgroup.subtree_control")), "+memory +pids");
    assert_eq!(text(&made[0].path.join("pids.max")), "100");
    fs::remove_dir_all(&own.path).unwrap();
    assert!(groups.make("three", &LIMITS).is_err());
}

#[test]
fn of_a_host_that_is_gone_all_groups_are_removed_and_of_one_that_lives_none() {
    let folder = tempfile::tempdir().unwrap();
    let hierarchy = folder.path().join("memory");
    fs::create_dir(&hierarchy).unwrap();
    let groups = |record: &Record| {
        let group = hierarchy.join(record.name());
        record.add(&group).unwrap();
        fs::create_dir_all(group.join("session")).unwrap();
        group
    };
    let alive = Record::create(folder.path()).unwrap();
    let of_alive = groups(&alive);
    let gone = Record::create(folder.path()).unwrap();
    let of_gone = groups(&gone);
    // Named by a record and not by its name: another's.
    let others = hierarchy.join("other");
    fs::create_dir(&others).unwrap();
    gone.add(&others).unwrap();
    drop(gone);
    let mut next = Record::create(folder.path()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while of_gone.exists() {
        assert!(Instant::now() < deadline, "the lock goes with its host");
        std::thread::sleep(PAUSE);
        next.remove();
        next = Record::create(folder.path()).unwrap();
    }
    assert!(of_alive.exists() && others.exists());
    let records = fs::read_dir(folder.path().join("cgroups")).unwrap();
    assert_eq!(records.count(), 2);
    drop(alive);
    next.remove();
}

#[test]
fn what_the_kernel_offers_here_is_used_and_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let exec = exec_server(folder.path());
    let groups = Arc::new(ControlGroups::find(folder.path(), &exec));
    let hosts: Vec<_> = groups
        .hierarchies
        .iter()
        .map(|it| it.group.clone())
        .collect();
    match groups.create("one", &LIMITS, Path::new("/alice")).unwrap() {
        None => assert!(
            groups.shortcoming().unwrap().contains("memory"),
            "it says why"
        ),
        Some(group) => {
            let entries = group.entries();
            assert!(entries.iter().all(|entry| entry.exists()));
            let hits = group.begin_command().hits();
            assert_eq!((hits.memory_kills, hits.refused_processes), (0, 0));
            assert_eq!(group.end_reason(), None);
            drop(group);
            assert!(entries.iter().all(|entry| !entry.exists()));
        }
    }
    drop(groups);
    assert!(hosts.iter().all(|host| !host.exists()));
    let records = fs::read_dir(folder.path().join("cgroups")).unwrap();
    assert_eq!(records.count(), 0);
}

#[test]
fn what_a_host_that_crashed_left_running_in_its_groups_is_ended_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let exec = exec_server(folder.path());
    let mut crashed = ControlGroups::find(folder.path(), &exec);
    if crashed.hierarchies.is_empty() {
        assert!(crashed.shortcoming().is_some(), "it says why");
        return;
    }
    let group = crashed.make("one", &LIMITS).unwrap();
    let launch = Launch {
        groups: group.iter().map(Group::entry).collect(),
        ..Launch::default()
    };
    let launch = serde_json::to_string(&launch).unwrap();
    let hosts = crashed.hierarchies.iter().map(|it| it.group.clone());
    let mut left = Leftovers {
        hosts: hosts.collect(),
        process: Command::new(&exec)
            .args(["--launch", &launch, "--", "sleep", "1000"])
            .spawn()
            .unwrap(),
    };
    let joined = |group: &Group| !text(&group.path.join("cgroup.procs")).is_empty();
    let deadline = Instant::now() + PATIENCE;
    while !group.iter().all(joined) {
        let ended = left.process.try_wait().unwrap();
        assert!(ended.is_none(), "it joins and stays: {ended:?}");
        assert!(Instant::now() < deadline, "it joins");
        std::thread::sleep(PAUSE);
    }
    // The lock goes with the host, and nothing else does.
    crashed.record = Record::default();
    std::mem::forget(crashed);
    let deadline = Instant::now() + PATIENCE;
    let mut next = ControlGroups::find(folder.path(), &exec);
    while group.iter().any(|it| it.path.exists()) {
        assert!(Instant::now() < deadline, "the next one removes the groups");
        std::thread::sleep(PAUSE);
        drop(next);
        next = ControlGroups::find(folder.path(), &exec);
    }
    let ended = std::os::unix::process::ExitStatusExt::signal(&left.process.wait().unwrap());
    assert_eq!(ended, Some(9));
}

/// What is left of a host, gone with the test.
struct Leftovers {
    hosts: Vec<PathBuf>,
    process: std::process::Child,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for host in &self.hosts {
            let _ = removal::remove_with_inner(host);
        }
    }
}

fn exec_server(folder: &Path) -> PathBuf {
    let exec = folder.join("lucid-exec");
    fs::write(&exec, lucid_tests::EXEC).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&exec, mode).unwrap();
    exec
}
