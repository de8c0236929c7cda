//! Sessions whose build is on probation, and the fallback to the build before it.

use super::world::{Build, Script};
use super::*;

/// The previous build.
const OLDER: Build = Build {
    digest: "c",
    schema: 1,
    oldest_schema: 1,
    refuses: false,
};

fn told_well(digest: &str) -> (Digest, StepVerdict) {
    (Digest::of(digest), StepVerdict::Ok)
}

fn told_badly(digest: &str) -> (Digest, StepVerdict) {
    (Digest::of(digest), StepVerdict::Failed)
}

/// Fails when tools reply.
fn breaks(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    if inputs.iter().any(|i| matches!(i, Input::ToolReplied(_))) {
        return Err("It broke down.".to_owned());
    }
    worker(context, state, inputs)
}

/// Fails at once.
fn never(_: &Context, _: Option<&Snapshot>, _: &[Input]) -> Result<Vec<Command>, String> {
    Err("It never works.".to_owned())
}

/// Works, and says that it was handed a session.
fn takes(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = worker(context, state, inputs)?;
    if matches!(inputs.first(), Some(Input::Upgraded(1))) {
        let state = state.expect("an upgrade comes with a state");
        assert!(state.bytes.starts_with(b"moved"), "{state:?}");
        commands.insert(0, say("here I am"));
    }
    Ok(commands)
}

struct Fixture {
    _folder: tempfile::TempDir,
    world: World,
    sessions: Host,
}

impl Fixture {
    fn new(script: Script, older: Option<(Build, Script)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World {
            older,
            ..World::new(script)
        };
        let sessions = sessions(folder.path(), &world);
        Self {
            _folder: folder,
            world,
            sessions,
        }
    }

    async fn begin(&self) -> (Arc<SessionHandle>, Subscription) {
        let session = self.sessions.create(new("u")).await.unwrap();
        let frames = session.subscribe(0);
        self.sessions.start(&session);
        (session, frames)
    }

    async fn plugins(&self, session: &SessionHandle) -> Vec<Digest> {
        let store = &self.sessions.store;
        let steps = store.steps_from(*session.id(), None, 0);
        let steps = steps.await.unwrap().into_iter();
        steps.map(|step| step.plugin).collect()
    }

    fn took(&self) -> Vec<(Digest, StepVerdict)> {
        self.world.took.lock().clone()
    }
}

#[tokio::test]
async fn a_step_that_fails_on_probation_is_taken_by_the_build_before_and_no_user_hears_of_it() {
    let fixture = Fixture::new(breaks, Some((OLDER, takes)));
    let (session, mut frames) = fixture.begin().await;
    let seen = until(&mut frames, "completed").await;
    assert_dense(&seen);
    let shown = names(&seen);
    assert!(!shown.contains(&"error".to_owned()), "{shown:?}");
    assert!(shown.contains(&"ThinkAction".to_owned()), "{shown:?}");
    assert_eq!(
        (fixture.world.done("tool a"), fixture.world.done("tool b")),
        (1, 1),
        "nothing was done twice"
    );
    // The log says which build took which step, and the session stays where it is.
    let plugins = fixture.plugins(&session).await;
    let moved = plugins
        .iter()
        .position(|plugin| *plugin == Digest::of("c"))
        .unwrap();
    assert!(moved > 0, "{plugins:?}");
    assert!(
        plugins[moved..]
            .iter()
            .all(|plugin| *plugin == Digest::of("c")),
        "{plugins:?}"
    );
    let runs = fixture.sessions.count_by_plugins();
    assert!(
        runs.keys().all(|runs| runs.digest == Digest::of("c")),
        "{runs:?}"
    );
    let verdict = fixture.took();
    let bad: Vec<_> = verdict
        .iter()
        .filter(|(_, verdict)| *verdict == StepVerdict::Failed)
        .collect();
    assert_eq!(bad, [&told_badly("d")], "{verdict:?}");
    assert_eq!(verdict[0], told_well("d"));
    assert_eq!(
        verdict.len(),
        plugins.len() + 1,
        "each step once, and the failed one: {verdict:?}"
    );
    // What is in the log can be replayed.
    let first = *session.id();
    let replayed = fixture.sessions.replay(first).await.unwrap();
    assert!(replayed.different.is_some(), "the build itself still fails");
}

#[tokio::test]
async fn the_first_step_of_a_session_falls_back_as_well() {
    let fixture = Fixture::new(never, Some((OLDER, takes)));
    let (session, mut frames) = fixture.begin().await;
    let seen = until(&mut frames, "completed").await;
    assert!(!names(&seen).contains(&"error".to_owned()), "{seen:?}");
    assert!(
        !names(&seen).contains(&"ThinkAction".to_owned()),
        "there was no state to take over: {seen:?}"
    );
    let plugins = fixture.plugins(&session).await;
    assert!(
        plugins.iter().all(|plugin| *plugin == Digest::of("c")),
        "{plugins:?}"
    );
    assert_eq!(fixture.took()[..2], [told_badly("d"), told_well("c")]);
}

#[tokio::test]
async fn inputs_that_both_builds_fail_say_nothing_of_either() {
    let fixture = Fixture::new(breaks, Some((OLDER, breaks)));
    let (session, mut frames) = fixture.begin().await;
    until(&mut frames, "It broke down.").await;
    let plugins = fixture.plugins(&session).await;
    assert!(
        plugins.iter().all(|plugin| *plugin == Digest::of("d")),
        "{plugins:?}"
    );
    let verdict = fixture.took();
    assert!(
        verdict.iter().all(|verdict| *verdict == told_well("d")),
        "{verdict:?}"
    );
}

#[tokio::test]
async fn a_build_that_cannot_take_the_state_back_is_not_asked() {
    let refuses = Build {
        refuses: true,
        ..OLDER
    };
    let too_old = Build {
        schema: 0,
        oldest_schema: 0,
        ..OLDER
    };
    for older in [
        Some((refuses, takes as Script)),
        Some((too_old, takes)),
        None,
    ] {
        let fixture = Fixture::new(breaks, older);
        let (session, mut frames) = fixture.begin().await;
        until(&mut frames, "It broke down.").await;
        let plugins = fixture.plugins(&session).await;
        assert!(
            plugins.iter().all(|plugin| *plugin == Digest::of("d")),
            "{plugins:?}"
        );
        assert_eq!(
            fixture.took().last(),
            Some(&told_badly("d")),
            "it is to blame all the same"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_build_that_had_a_session_goes_on_where_the_new_one_fails() {
    let folder = tempfile::tempdir().unwrap();
    // The session is on the build that will become the previous one.
    let before = World {
        build: OLDER,
        ..World::new(worker)
    };
    let first = sessions(folder.path(), &before);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    let mut frames = session.subscribe(0);
    first.start(&session);
    until(&mut frames, "completed").await;
    first.shutdown().await;
    drop((frames, session, first));

    let world = World {
        older: Some((OLDER, worker)),
        script: never,
        ..World::new(never)
    };
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1);
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    session.message("more").await.unwrap();
    let mut frames = session.subscribe(0);
    let mut seen = until(&mut frames, "\"completed\"").await;
    while names(&seen)
        .iter()
        .filter(|name| *name == "completed")
        .count()
        < 2
    {
        seen.extend(until(&mut frames, "\"completed\"").await);
    }
    assert!(!names(&seen).contains(&"error".to_owned()), "{seen:?}");
    let steps = second.store.steps_from(id, None, 0);
    let last = steps.await.unwrap().pop().unwrap();
    assert_eq!(last.plugin, Digest::of("c"));
    let inputs: Vec<Input> = serde_json::from_str(&last.inputs).unwrap();
    assert!(
        !matches!(inputs.first(), Some(Input::Upgraded(_))),
        "the state was its own: {inputs:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_a_state_that_only_the_build_before_can_have_stays_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let before = World {
        build: OLDER,
        ..World::new(worker)
    };
    let first = sessions(folder.path(), &before);
    let session = first.create(new("u")).await.unwrap();
    let id = *session.id();
    let mut frames = session.subscribe(0);
    first.start(&session);
    until(&mut frames, "completed").await;
    first.shutdown().await;
    drop((frames, session, first));

    let too_new = Build {
        digest: "d",
        schema: 3,
        oldest_schema: 2,
        refuses: false,
    };
    let world = World {
        build: too_new,
        older: Some((OLDER, worker)),
        ..World::new(never)
    };
    let second = sessions(folder.path(), &world);
    assert_eq!(second.recover().await.unwrap(), 1, "nobody went on with it");
    let runs = second.count_by_plugins();
    assert!(
        runs.keys().all(|runs| runs.digest == Digest::of("c")),
        "{runs:?}"
    );
    let session = second.get(&id, &UserId::from("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    until(&mut frames, "\"completed\"").await;
    session.message("more").await.unwrap();
    until(&mut frames, "\"completed\"").await;
}
