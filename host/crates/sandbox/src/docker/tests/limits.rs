//! Tests that really hit each limit: the next command, the other session and the host are
//! unaffected.

use super::super::super::LimitHit;
use super::*;

/// A host with one hostile session and one that must not be affected.
async fn two(data: &Data) -> (Sandboxes, Sandbox, Sandbox) {
    let host = data.host(|_| {}).await;
    let bad = data.start(&host, "bad").await;
    let good = data.start(&host, "good").await;
    (host, bad, good)
}

async fn both_are_well(bad: Sandbox, good: Sandbox) {
    for sandbox in [bad, good] {
        let result = shell(&sandbox, "echo well").await;
        assert_eq!((result.output.as_str(), result.limit), ("well\n", None));
        sandbox.close().await;
    }
}

#[tokio::test]
async fn three_gibibytes_are_not_to_be_had_and_the_user_is_told() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (_host, bad, good) = two(&data).await;
    let result = shell(
        &bad,
        "python3 -c 'x = bytearray(3 << 30); print(len(x))'; echo $?",
    )
    .await;
    assert_eq!(result.limit, Some(LimitHit::Memory), "{result:?}");
    assert!(
        result
            .output
            .contains("137\n[The sandbox reached its memory limit"),
        "{}",
        result.output
    );
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn a_fork_bomb_meets_the_limit_of_its_own_container() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    // Few enough to be there long before the timeout, however busy the machine is.
    let host = data.host_with(|settings| settings.processes = 64).await;
    let bad = data.start(&host, "bad").await;
    let good = data.start(&host, "good").await;
    let bomb = "import os\nwhile True:\n  try:\n    if os.fork() == 0: os.execvp('sleep', ['sleep', '4444'])\n  except OSError: pass";
    let workspace = data.workspace("bad");
    let path = workspace.path("bomb.py").unwrap();
    workspace.write(&path, bomb.as_bytes()).unwrap();
    let request = ExecRequest::shell("python3 bomb.py").timeout(Duration::from_secs(5));
    let result = bad.exec(request, |_| {}).await.unwrap();
    assert!(result.timed_out, "{result:?}");
    assert_eq!(result.limit, Some(LimitHit::Processes), "{result:?}");
    // Its group was killed with it; a busy machine takes a moment to reap so many.
    none_runs(&bad, "4444").await;
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn a_container_that_stays_full_of_processes_is_given_up_and_replaced() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (host, bad, good) = two(&data).await;
    // Each leaves its group and goes on when the command is over.
    let flood = "import os, sys\nwhile True:\n  try:\n    if os.fork() == 0:\n      os.setsid()\n      os.execvp('sleep', ['sleep', '5555'])\n  except OSError: sys.exit(7)";
    let workspace = data.workspace("bad");
    let path = workspace.path("flood.py").unwrap();
    workspace.write(&path, flood.as_bytes()).unwrap();
    let first = bad
        .exec(ExecRequest::argv(["python3", "flood.py"]), |_| {})
        .await;
    let error = match first {
        // The flood ended by itself, and left no room for the next command.
        Ok(result) => {
            assert_eq!(
                (result.exit_code, result.limit),
                (7, Some(LimitHit::Processes))
            );
            let mut error = None;
            // One process that ends leaves room for one thread: the second thread has none.
            for _ in 0..3 {
                error = error.or(bad.exec(ExecRequest::shell("true"), |_| {}).await.err());
            }
            error.expect("a full container runs commands")
        }
        Err(error) => error,
    };
    assert!(matches!(error, SandboxError::Gone(_)), "{error}");
    assert!(error.to_string().contains("limit of processes"), "{error}");
    assert!(!bad.is_alive());
    bad.close().await;
    let bad = data.start(&host, "bad").await;
    assert_eq!(shell(&bad, "ls").await.output, "flood.py\n");
    none_runs(&bad, "5555").await;
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn busy_loops_get_no_more_than_their_share() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (_host, bad, good) = two(&data).await;
    let loops = "for i in 1 2 3 4; do (while :; do :; done) & done; sleep 1; kill %1 %2 %3 %4; cat /sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat 2>/dev/null";
    let (result, other) = tokio::join!(shell(&bad, loops), shell(&good, "echo well"));
    assert_eq!(other.output, "well\n");
    let throttled = result
        .output
        .lines()
        .find_map(|line| line.strip_prefix("nr_throttled "))
        .and_then(|count| count.parse::<u64>().ok());
    assert!(throttled.is_some_and(|count| count > 0), "{result:?}");
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn what_is_in_memory_has_a_size_and_cleaning_up_is_possible() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (_host, bad, good) = two(&data).await;
    // Both at once: together they must not use all of the memory.
    for folder in ["/tmp", "$HOME", "/dev/shm"] {
        let result = shell(&bad, &format!("dd if=/dev/zero of={folder}/big bs=1M")).await;
        assert_ne!(result.exit_code, 0, "{folder}: {result:?}");
        assert!(
            result.output.contains("No space left on device"),
            "{folder}: {result:?}"
        );
    }
    let result = shell(&bad, "rm /tmp/big $HOME/big /dev/shm/big && echo clean").await;
    assert_eq!(result.output, "clean\n");
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn files_in_memory_are_limited_in_number_as_well() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (_host, bad, good) = two(&data).await;
    let most = shell(&bad, "stat -f -c %c /tmp /var/tmp $HOME")
        .await
        .output;
    let most: Vec<u64> = most.lines().map(|line| line.parse().unwrap()).collect();
    let is_limited = |files: &u64| (8192..=1 << 18).contains(files);
    assert!(most.len() == 3 && most.iter().all(is_limited), "{most:?}");
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn nothing_outside_can_be_written_mounted_or_reached() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let (_host, bad, good) = two(&data).await;
    let other = data.workspace("good");
    other
        .write(&other.path("secret").unwrap(), b"another's")
        .unwrap();
    for command in [
        "echo x > /planted",
        "echo x > /etc/planted",
        "echo x > /usr/bin/planted",
        "echo x > /run/lucid/bin/lucid-exec",
        "mkdir /home/other",
        "mount -t tmpfs none /tmp",
        "mount --bind / /tmp",
        "unshare -r true",
        "chroot / true",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "mknod /tmp/device b 8 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo c > /proc/sysrq-trigger",
        "nc -w 1 127.0.0.1 1",
        "wget -T 1 http://192.0.2.1/",
        "cat /proc/1/root/etc/shadow /workspace/../good/secret",
    ] {
        let result = shell(&bad, command).await;
        assert_ne!(result.exit_code, 0, "{command}: {}", result.output);
    }
    let result = shell(&bad, "cat /proc/self/status; ip -o addr").await;
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(
            result.output.contains(line),
            "{line} is missing: {}",
            result.output
        );
    }
    assert!(!result.output.contains("eth0"), "{}", result.output);
    both_are_well(bad, good).await;
}

#[tokio::test]
async fn an_images_volume_is_as_small_as_any_other_place_that_can_be_written() {
    let Some(image) = image() else {
        return;
    };
    let data = Data::new();
    let name = format!("{}volume", data.prefix);
    let made = docker(&["create", image, "true"]);
    docker(&["commit", "--change=VOLUME /srv/data", &made, &name]);
    docker(&["rm", &made]);
    let host = data.host(|own| own.image.clone_from(&name)).await;
    let sandbox = data.start(&host, "one").await;
    let result = shell(
        &sandbox,
        "touch /srv/data/file && dd if=/dev/zero of=/srv/data/full bs=1M count=64 2>&1",
    )
    .await;
    assert!(result.output.contains("No space left"), "{result:?}");
    let mounts = "{{range .Mounts}}{{.Type}} {{end}}";
    let mounts = docker(&["inspect", "--format", mounts, &data.containers()[0]]);
    assert!(!mounts.contains("volume"), "{mounts}");
    sandbox.close().await;
    docker(&["rmi", &name]);
}
