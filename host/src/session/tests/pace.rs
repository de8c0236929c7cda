//! How fast whole sessions are, and how much an idle one holds. Run by hand, in release.

use std::time::Instant;

use super::*;

fn plays(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands: Vec<_> = (0..7)
        .map(|n| say(&format!("What the mock says, number {n}.")))
        .collect();
    commands.push(finish("[MOCK] done"));
    Ok(commands)
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; run it alone and in release"]
async fn whole_mock_sessions_in_a_second() {
    const COUNT: usize = 5000;
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(plays);
    (world.mock, world.models) = (true, false);
    world.sandbox.store(false, Ordering::SeqCst);
    let store = Store::open(folder.path()).unwrap();
    let sessions = with_limits(store, &world, |limits| {
        limits.sessions_per_user = usize::MAX
    });
    let whole = |sessions: Sessions| async move {
        let session = sessions.create(new("u")).await.unwrap();
        let mut frames = session.subscribe(0);
        sessions.start(&session);
        until(&mut frames, "completed").await;
        session
    };
    let alone = Instant::now();
    for _ in 0..100 {
        whole(sessions.clone()).await;
    }
    println!("alone: {:?} each", alone.elapsed() / 100);
    let (before, begun) = (resident(), Instant::now());
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..COUNT {
        running.spawn(whole(sessions.clone()));
    }
    let kept = running.join_all().await;
    println!(
        "together: {:.0} a second",
        COUNT as f64 / begun.elapsed().as_secs_f64()
    );
    println!("idle: {} bytes each", (resident() - before) / COUNT);
    println!(
        "transactions and writes: {:?}",
        sessions.shared.deps.store.written()
    );
    let begun = Instant::now();
    futures::future::join_all(kept.iter().map(|session| sessions.stop(session.id()))).await;
    println!(
        "stopped: {:.0} a second",
        COUNT as f64 / begun.elapsed().as_secs_f64()
    );
}
