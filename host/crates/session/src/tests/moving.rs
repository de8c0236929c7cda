//! Sessions that move between generations of their deployment.

use super::world::Build;
use super::*;

/// A build that came after the first, and writes another schema.
const NEWER: Build = Build {
    digest: "e",
    schema: 2,
    oldest_schema: 1,
    refuses: false,
};

/// A deployment that the test changes, and the sessions on it.
struct Fixture {
    folder: tempfile::TempDir,
    world: World,
    published: watch::Sender<Arc<Generation>>,
    sessions: Host,
}

impl Fixture {
    fn new(world: World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (published, deployment) = deployment(1, &world);
        let sessions = deployed(store, deployment, &world, "k", |_| {});
        Self {
            folder,
            world,
            published,
            sessions,
        }
    }

    /// Publishes the next generation, with that build of the policy.
    fn publish(&self, build: Build, script: world::Script) {
        let next = World {
            build,
            script,
            ..self.world.clone()
        };
        let number = self.published.borrow().number + 1;
        self.published.send_replace(generation(number, &next));
    }

    async fn begin(&self) -> (Arc<SessionHandle>, Subscription) {
        let session = self.sessions.create(new("u")).await.unwrap();
        let frames = session.subscribe(0);
        self.sessions.start(&session);
        (session, frames)
    }

    /// The component, the inputs and the resulting state of each step.
    async fn steps(&self, session: &SessionHandle) -> Vec<(Digest, Vec<Input>)> {
        let store = &self.sessions.store;
        let steps = store.steps_from(*session.id(), None, 0);
        let steps = steps.await.unwrap().into_iter();
        steps
            .map(|step| {
                let inputs = serde_json::from_str(&step.inputs).unwrap();
                (step.plugin, inputs)
            })
            .collect()
    }

    /// Waits until that component has taken the session's last step.
    async fn until_on(&self, session: &SessionHandle, digest: &str) -> Vec<(Digest, Vec<Input>)> {
        for _ in 0..2_000 {
            let steps = self.steps(session).await;
            if steps
                .last()
                .is_some_and(|(plugin, _)| *plugin == Digest::of(digest))
            {
                return steps;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("the session did not come to {digest}");
    }
}

fn is_upgrade(input: Option<&Input>) -> bool {
    matches!(input, Some(Input::Upgraded(1)))
}

/// Works, and says whose state it was given.
fn tells(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = worker(context, state, inputs)?;
    if is_upgrade(inputs.first()) {
        let state = state.expect("an upgrade comes with a state");
        assert!(state.bytes.starts_with(b"moved"), "{state:?}");
        assert_eq!(state.schema, 2);
        commands.insert(0, say("here I am"));
    }
    Ok(commands)
}

fn breaks(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    Err("It broke down.".to_owned())
}

#[tokio::test]
async fn a_session_moves_in_the_middle_of_its_task_and_its_log_says_where() {
    let fixture = Fixture::new(World::new(worker));
    fixture.world.hold.store(true, Ordering::SeqCst);
    let (session, mut frames) = fixture.begin().await;
    while fixture.world.done("model m m") == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fixture.publish(NEWER, tells);
    fixture.until_on(&session, "e").await;
    fixture.world.hold.store(false, Ordering::SeqCst);
    let seen = until(&mut frames, "completed").await;
    assert_dense(&seen);
    let shown = names(&seen);
    assert!(shown.contains(&"ThinkAction".to_owned()), "{shown:?}");
    assert_eq!(
        (fixture.world.done("tool a"), fixture.world.done("tool b")),
        (1, 1)
    );

    let steps = fixture.steps(&session).await;
    let moved = steps
        .iter()
        .position(|(plugin, _)| *plugin == Digest::of("e"))
        .unwrap();
    let (before, after) = steps.split_at(moved);
    assert!(
        before.iter().all(|(plugin, _)| *plugin == Digest::of("d")),
        "{steps:?}"
    );
    assert!(
        after.iter().all(|(plugin, _)| *plugin == Digest::of("e")),
        "{steps:?}"
    );
    let upgrades = steps.iter().flat_map(|(_, inputs)| inputs);
    let upgrades = upgrades.filter(|input| is_upgrade(Some(input))).count();
    assert_eq!(upgrades, 1, "{steps:?}");
    assert!(is_upgrade(after[0].1.first()), "{steps:?}");
}

#[tokio::test]
async fn an_idle_session_moves_at_once_and_nothing_holds_the_old_generation() {
    let fixture = Fixture::new(World::new(worker));
    let (session, mut frames) = fixture.begin().await;
    until(&mut frames, "completed").await;
    let old = Arc::downgrade(&fixture.published.borrow());
    fixture.publish(NEWER, tells);
    fixture.until_on(&session, "e").await;
    // The actor releases it a moment after the step is in the log.
    for _ in 0..2_000 {
        if old.strong_count() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(old.strong_count(), 0, "something holds the old generation");

    // The same build again is not announced.
    let steps = fixture.steps(&session).await.len();
    fixture.publish(NEWER, tells);
    session.message("more").await.unwrap();
    until(&mut frames, "completed").await;
    let after = fixture.steps(&session).await;
    assert_eq!(after.len(), steps + 1, "{after:?}");
    assert!(!is_upgrade(after[steps].1.first()), "{after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_sleeps_moves_as_well_and_one_that_cannot_keeps_the_build_it_has() {
    let refuses = Build {
        refuses: true,
        ..NEWER
    };
    for (build, moves) in [(NEWER, true), (refuses, false)] {
        let world = World::new(|_, _, inputs| {
            let told = |input: &Input| matches!(input, Input::Started(_) | Input::UserMessage(_));
            Ok(inputs
                .iter()
                .filter(|input| told(input))
                .map(|_| finish("again"))
                .collect())
        });
        world.sandbox.store(false, Ordering::SeqCst);
        let fixture = Fixture::new(world);
        let host = &fixture.sessions;
        let (session, mut frames) = fixture.begin().await;
        until(&mut frames, "completed").await;
        let id = *session.id();
        drop((session, frames));
        eventually("the session sleeps", || host.count_asleep() == 1).await;
        let old = Arc::downgrade(&fixture.published.borrow());
        let next = World {
            build,
            script: tells,
            // Other tools, which none has opened.
            tools: Arc::new(NoToolProvider),
            ..fixture.world.clone()
        };
        fixture.published.send_replace(generation(2, &next));
        if moves {
            eventually("nothing holds the old generation", || {
                old.strong_count() == 0
            })
            .await;
            eventually("it sleeps again", || host.count_asleep() == 1).await;
        } else {
            eventually("it was woken", || host.count_asleep() == 0).await;
        }
        let plugins: Vec<_> = host.count_by_plugins().into_keys().collect();
        let digest = Digest::of(if moves { "e" } else { "d" });
        assert_eq!(plugins[0].digest, digest);
        let session = host.get(&id, &UserId::from("u")).await.unwrap();
        let mut frames = session.subscribe(0);
        session.message("more").await.unwrap();
        let text = if moves { "here I am" } else { "again" };
        until(&mut frames, text).await;
        let steps = fixture.steps(&session).await;
        assert_eq!(steps.last().unwrap().0, digest, "{steps:?}");
    }
}

#[tokio::test]
async fn a_session_stays_where_it_is_when_the_newer_build_will_not_have_it() {
    let too_new = Build {
        oldest_schema: 2,
        ..NEWER
    };
    let refuses = Build {
        refuses: true,
        ..NEWER
    };
    let script: world::Script = tells;
    for (what, build, script) in [
        ("it takes over no state so old", too_new, script),
        ("it refuses this state", refuses, script),
        ("its first step breaks down", NEWER, breaks),
    ] {
        let fixture = Fixture::new(World::new(worker));
        let (session, mut frames) = fixture.begin().await;
        until(&mut frames, "completed").await;
        let before = fixture.steps(&session).await;
        fixture.publish(build, script);
        session.message("more").await.unwrap();
        let seen = until(&mut frames, "completed").await;
        assert_eq!(names(&seen), ["task_start", "completed"], "{what}");
        let after = fixture.steps(&session).await;
        assert!(after.len() > before.len(), "{what}: {after:?}");
        assert!(
            after.iter().all(|(plugin, _)| *plugin == Digest::of("d")),
            "{what}: {after:?}"
        );

        // The next generation is another chance.
        fixture.publish(NEWER, tells);
        fixture.until_on(&session, "e").await;
    }
}

#[tokio::test]
async fn a_users_own_key_goes_to_no_server_that_it_did_not_come_for() {
    let fixture = Fixture::new(World::new(worker));
    let (session, mut frames) = fixture.begin().await;
    until(&mut frames, "completed").await;
    let elsewhere = World {
        build: NEWER,
        script: tells,
        server: "https://elsewhere.example",
        ..fixture.world.clone()
    };
    fixture.published.send_replace(generation(2, &elsewhere));
    session.message("more").await.unwrap();
    until(&mut frames, "completed").await;
    let steps = fixture.steps(&session).await;
    assert!(
        steps.iter().all(|(plugin, _)| *plugin == Digest::of("d")),
        "{steps:?}"
    );

    // A session without one moves.
    let without = NewSession {
        api_key: None,
        task: "another".to_owned(),
        ..new("v")
    };
    fixture
        .published
        .send_replace(generation(3, &fixture.world));
    let session = fixture.sessions.create(without).await.unwrap();
    let mut frames = session.subscribe(0);
    fixture.sessions.start(&session);
    until(&mut frames, "completed").await;
    fixture.published.send_replace(generation(4, &elsewhere));
    fixture.until_on(&session, "e").await;
}

#[tokio::test]
async fn new_sessions_begin_with_the_newest_build() {
    let fixture = Fixture::new(World::new(worker));
    fixture.publish(NEWER, tells);
    let (session, mut frames) = fixture.begin().await;
    until(&mut frames, "completed").await;
    let steps = fixture.steps(&session).await;
    assert!(
        steps.iter().all(|(plugin, _)| *plugin == Digest::of("e")),
        "{steps:?}"
    );
    assert!(!is_upgrade(steps[0].1.first()), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_another_build_takes_over_or_the_session_is_left_alone() {
    let fixture = Fixture::new(World::new(worker));
    let (session, mut frames) = fixture.begin().await;
    until(&mut frames, "completed").await;
    let id = *session.id();
    let Fixture {
        folder,
        world,
        sessions: first,
        published,
    } = fixture;
    first.shutdown().await;
    drop((frames, session, first, published));

    // A session that cannot resume waits for a host that can run it.
    let too_new = World {
        build: Build {
            oldest_schema: 2,
            ..NEWER
        },
        ..world.clone()
    };
    // Nor can one whose provider is now another server, since the key is its user's own.
    let elsewhere = World {
        server: "https://elsewhere.example",
        ..world.clone()
    };
    for world in [too_new, elsewhere] {
        let second = sessions(folder.path(), &world);
        assert_eq!(second.recover().await.unwrap(), 0);
        second.shutdown().await;
    }

    // A build that tries and fails leaves the state unchanged, and the next one is told whose it
    // is.
    let refuses = World {
        build: Build {
            refuses: true,
            ..NEWER
        },
        ..world.clone()
    };
    let second = sessions(folder.path(), &refuses);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    session.message("try").await.unwrap();
    until(&mut session.subscribe(0), "cannot make sense").await;
    second.shutdown().await;
    drop((session, second));

    let newer = World {
        build: NEWER,
        script: tells,
        ..world
    };
    let third = sessions(folder.path(), &newer);
    assert_eq!(third.recover().await.unwrap(), 1);
    let session = third.get(&id, &UserId::from("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    session.message("more").await.unwrap();
    // Shown before, and again now.
    let mut seen = until(&mut frames, "\"completed\"").await;
    while names(&seen)
        .iter()
        .filter(|name| *name == "completed")
        .count()
        < 2
    {
        seen.extend(until(&mut frames, "\"completed\"").await);
    }
    assert_dense(&seen);
    let shown = names(&seen);
    assert!(shown.contains(&"ThinkAction".to_owned()), "{shown:?}");
    let errors = shown.iter().filter(|name| *name == "error").count();
    assert_eq!(errors, 1, "of the build that refused: {shown:?}");
}
