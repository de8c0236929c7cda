//! Shadow runs: builds that replay the most recent sessions.

use super::world::{Build, Script};
use super::*;
use crate::{DifferenceKind, ShadowBounds, ShadowReport};

/// Sessions that have run, one after the other, and the build that they had.
struct Fixture {
    _folder: tempfile::TempDir,
    world: World,
    sessions: Host,
    ids: Vec<SessionId>,
}

impl Fixture {
    async fn new(count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(worker);
        let sessions = sessions(folder.path(), &world);
        let mut ids = Vec::new();
        for number in 0..count {
            let task = format!("task {number}");
            let session = sessions.create(NewSession { task, ..new("u") }).await;
            let session = session.unwrap();
            let mut frames = session.subscribe(0);
            sessions.start(&session);
            until(&mut frames, "completed").await;
            ids.push(*session.id());
        }
        Self {
            _folder: folder,
            world,
            sessions,
            ids,
        }
    }

    async fn shadow(&self, script: Script, build: Build, most: u64) -> ShadowReport {
        self.shadow_within(script, build, most, ShadowBounds::default())
            .await
    }

    async fn shadow_within(
        &self,
        script: Script,
        build: Build,
        most: u64,
        bounds: ShadowBounds,
    ) -> ShadowReport {
        let next = World {
            build,
            script,
            ..self.world.clone()
        };
        let policy = Policies::find(&next, None).unwrap();
        let told = Mutex::default();
        let done = self
            .sessions
            .shadow("scripted", &*policy, most, bounds, &told);
        done.await.unwrap();
        told.into_inner()
    }
}

const BUILD: Build = Build {
    digest: "e",
    schema: 1,
    oldest_schema: 1,
    refuses: false,
};

/// Adds a message when the first tool is done, and continues.
fn chatty(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    let mut commands = worker(context, state, inputs)?;
    if inputs.iter().any(|i| matches!(i, Input::ToolReplied(_))) {
        commands.push(say("by the way"));
    }
    Ok(commands)
}

/// Fails at the timer, which is the last step.
fn breaks(
    context: &Context,
    state: Option<&Snapshot>,
    inputs: &[Input],
) -> Result<Vec<Command>, String> {
    if inputs.iter().any(|i| matches!(i, Input::TimerFired(_))) {
        return Err("It broke down.".to_owned());
    }
    worker(context, state, inputs)
}

#[tokio::test]
async fn a_build_that_does_the_same_differs_nowhere_and_nothing_is_written_or_done() {
    let fixture = Fixture::new(2).await;
    let store = &fixture.sessions.store;
    let done = || fixture.world.diary.lock().len();
    let before = (store.written(), done());
    let shown = fixture.shadow(worker, BUILD, 10).await;
    assert_eq!(
        (store.written(), done()),
        before,
        "something was written or done"
    );
    assert_eq!(
        (shown.total, shown.sessions, shown.same),
        (2, 2, 2),
        "{shown:?}"
    );
    assert_eq!(
        (shown.different, shown.failed, shown.not_migrated),
        (0, 0, 0),
        "{shown:?}"
    );
    assert!(shown.steps >= 8, "{shown:?}");
    assert_eq!(
        (shown.fuel_then, shown.fuel_now),
        (shown.steps, shown.steps),
        "{shown:?}"
    );
    assert_eq!((shown.differences.len(), shown.cut), (0, None));
}

#[tokio::test]
async fn other_commands_are_shown_once_for_a_session_with_step_and_build() {
    let fixture = Fixture::new(2).await;
    let shown = fixture.shadow(chatty, BUILD, 10).await;
    assert_eq!(
        (shown.same, shown.different, shown.failed),
        (0, 2, 0),
        "{shown:?}"
    );
    assert!(shown.steps_different >= 2, "{shown:?}");
    let [newest, oldest] = &shown.differences[..] else {
        panic!("{shown:?}");
    };
    assert_eq!(
        (newest.session, oldest.session),
        (fixture.ids[1], fixture.ids[0])
    );
    assert_eq!(
        (newest.what, newest.recorded_by),
        (DifferenceKind::Commands, Some(Digest::of("d")))
    );
    assert!(newest.step.is_some_and(|step| step > 0), "{newest:?}");
    assert!(
        newest
            .text
            .lines()
            .any(|line| line.starts_with('+') && line.contains("by the way")),
        "{}",
        newest.text
    );
}

#[tokio::test]
async fn a_step_that_breaks_down_fails_its_session_with_the_reason() {
    let fixture = Fixture::new(1).await;
    let shown = fixture.shadow(breaks, BUILD, 10).await;
    assert_eq!(
        (shown.same, shown.different, shown.failed),
        (0, 0, 1),
        "{shown:?}"
    );
    let [one] = &shown.differences[..] else {
        panic!("{shown:?}");
    };
    assert_eq!(
        (one.what, &*one.text),
        (DifferenceKind::Failed, "It broke down.")
    );
}

#[tokio::test]
async fn a_build_that_does_not_take_a_state_over_says_so() {
    let fixture = Fixture::new(1).await;
    let refuses = Build {
        refuses: true,
        ..BUILD
    };
    let too_new = Build {
        schema: 3,
        oldest_schema: 2,
        ..BUILD
    };
    for (build, reason) in [(refuses, "cannot make sense"), (too_new, "schema 2 to 3")] {
        let shown = fixture.shadow(worker, build, 10).await;
        assert_eq!((shown.same, shown.not_migrated), (1, 1), "{shown:?}");
        let one = &shown.differences[0];
        assert_eq!((one.what, one.step), (DifferenceKind::NotMigrated, None));
        assert!(one.text.contains(reason), "{one:?}");
    }
}

#[tokio::test]
async fn a_shadow_takes_no_more_than_it_may_and_says_that_it_was_cut() {
    let fixture = Fixture::new(3).await;
    let usual = ShadowBounds::default();
    assert_eq!(fixture.shadow(worker, BUILD, 2).await.sessions, 2);
    let few = ShadowBounds { steps: 2, ..usual };
    let shown = fixture.shadow_within(worker, BUILD, 3, few).await;
    assert_eq!((shown.steps, shown.sessions), (2, 1), "{shown:?}");
    assert!(
        shown
            .cut
            .as_ref()
            .is_some_and(|why| why.contains("2 steps")),
        "{shown:?}"
    );
    let short = ShadowBounds {
        time: Duration::ZERO,
        ..usual
    };
    let shown = fixture.shadow_within(worker, BUILD, 3, short).await;
    assert_eq!(shown.steps, 0, "{shown:?}");
    assert!(shown.cut.is_some(), "{shown:?}");
    let first = ShadowBounds {
        session_steps: 1,
        ..usual
    };
    let shown = fixture.shadow_within(worker, BUILD, 3, first).await;
    assert_eq!((shown.steps, shown.sessions, shown.cut), (3, 3, None));
    let one = ShadowBounds {
        differences: 1,
        ..usual
    };
    let shown = fixture.shadow_within(chatty, BUILD, 3, one).await;
    assert_eq!(
        (shown.different, shown.differences.len()),
        (3, 1),
        "{shown:?}"
    );
}

#[tokio::test]
async fn without_sessions_a_shadow_says_that_it_showed_nothing() {
    let fixture = Fixture::new(0).await;
    let shown = fixture.shadow(worker, BUILD, 10).await;
    assert!(
        shown
            .cut
            .is_some_and(|why| why.contains("nothing to replay"))
    );
}
