//! What can be seen of a process from outside: by its command line, its memory, and where it computes.

use std::fs::read_to_string;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::within;

/// The id of a process whose command line holds a text.
pub fn process_with(text: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            *pid != std::process::id() && String::from_utf8_lossy(&line).contains(text)
        })
}

/// The resident memory of a process that is its own, in bytes: heap and stacks, no mapped files.
pub fn own_memory(pid: u32) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Stops a process (SIGSTOP) at a moment when one of its threads is in the middle of a guest's code,
/// and leaves it stopped. False if `over` said first that there is nothing more to wait for; then the
/// process runs on.
///
/// A guest's code is the only code that no file holds. The process is stopped again and again, and
/// each time it is looked where its threads are.
pub async fn stop_within_a_guest(pid: u32, mut over: impl AsyncFnMut() -> bool) -> bool {
    let guests = code_of_no_file(pid);
    assert!(!guests.is_empty(), "no guest's code is in process {pid}");
    let inside = |place: u64| guests.iter().any(|code| code.contains(&place));
    let look = async {
        while !over().await {
            signal(pid, Signal::STOP);
            if places(pid).into_iter().any(inside) {
                return true;
            }
            signal(pid, Signal::CONT);
            tokio::task::yield_now().await;
        }
        false
    };
    within("a step", look).await
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Where each thread of a process stands that is being stopped.
fn places(pid: u32) -> Vec<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut places = Vec::new();
    for thread in threads.flatten() {
        // `running` until the signal has reached the thread; otherwise the program counter comes last.
        let place = loop {
            let state = read_to_string(thread.path().join("syscall"))
                .expect("where the host's threads are cannot be looked at");
            if let Some((_, last)) = state.trim().rsplit_once(" 0x") {
                break u64::from_str_radix(last, 16).unwrap();
            }
            std::thread::yield_now();
        };
        places.push(place);
    }
    places
}

/// The stretches of a process's memory that can be executed and belong to no file.
fn code_of_no_file(pid: u32) -> Vec<Range<u64>> {
    let maps = read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let code = maps.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, access, _, _, "0"] = words[..] else {
            return None;
        };
        let (from, to) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        access.contains('x').then_some(number(from)?..number(to)?)
    });
    code.collect()
}

/// The linear memories of a process's guests: readable stretches in front of a reservation so large
/// that only wasmtime makes one.
pub fn guest_memories(pid: u32) -> Vec<Vec<u8>> {
    const RESERVED: u64 = 128 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let all: Vec<(u64, u64, String)> = maps
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
            (number(start), number(end), words.next().unwrap().to_owned())
        })
        .collect();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))
        .expect("the host's memory cannot be looked at");
    let mut found = Vec::new();
    for (index, (start, end, access)) in all.iter().enumerate() {
        // One memory may be several mappings: its image, and what grew behind it.
        let mut behind = *end;
        let rest = all[index + 1..].iter().take_while(|(from, to, _)| {
            let joined = *from == behind;
            behind = *to;
            joined
        });
        let guarded = rest
            .take(3)
            .any(|(from, to, access)| access.starts_with("---") && to - from >= RESERVED);
        if access.starts_with("rw") && guarded {
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            if memory.read_exact_at(&mut bytes, *start).is_ok() {
                found.push(bytes);
            }
        }
    }
    found
}
