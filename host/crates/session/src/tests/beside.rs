//! Deployment tools beside the sandbox's own.

use super::*;
use crate::ports::Environment;

/// Tools that record their calls in the world's diary.
#[derive(Clone)]
struct Beside {
    world: World,
    number: usize,
    /// The event that a call announces before it continues, and whether it continued.
    shows: bool,
    opening: Arc<AtomicBool>,
}

impl Beside {
    fn of(world: &World, number: usize) -> Self {
        Self {
            world: world.clone(),
            number,
            shows: false,
            opening: Arc::default(),
        }
    }
}

impl ToolProvider for Beside {
    fn any_for(&self, policy: &str) -> bool {
        policy == "scripted"
    }

    fn describe(&self, policy: &str, call: &ToolCall) -> Option<EventDraft> {
        let is_ours = self.any_for(policy) && call.name.starts_with("more__");
        is_ours.then(|| EventDraft::text("CmdRunAction", format!("more {}", call.arguments)))
    }

    fn open(
        &self,
        spec: ToolsSpec,
        environment: Option<Arc<dyn Environment>>,
    ) -> BoxFuture<'static, Arc<dyn SessionTools>> {
        let this = self.clone();
        async move {
            let environment = if environment.is_some() { "a" } else { "no" };
            let line = format!(
                "open {} {} with {environment} place",
                this.number, spec.policy
            );
            this.world.note(line);
            while this.opening.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Arc::new(this) as Arc<dyn SessionTools>
        }
        .boxed()
    }
}

impl SessionTools for Beside {
    fn definitions(&self) -> Vec<ToolDefinition> {
        ["more__x", "sh", "more__x"]
            .map(|name| ToolDefinition {
                name: name.to_owned(),
                description: "of the deployment".to_owned(),
                input_schema: "{}".to_owned(),
            })
            .into()
    }

    fn notices(&self) -> Vec<String> {
        vec!["The tools of other are not there.".to_owned()]
    }

    fn run(
        &self,
        call: ToolCall,
        _: Option<u32>,
        showing: ToolOutput,
    ) -> BoxFuture<'static, Result<ToolResultWithEvent, Error>> {
        let this = self.clone();
        async move {
            let line = format!("beside {} {}", this.number, call.id);
            this.world.note(line);
            if this.shows {
                let event = EventDraft::text("CmdRunAction", "an act of its own");
                let may = (showing.events)(event).await;
                this.world.note(format!("may {may}"));
            }
            while this.world.hold.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(ToolResultWithEvent::failed(&call, "It came to nothing."))
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.world.note(format!("end {}", self.number));
        std::future::ready(()).boxed()
    }
}

fn run_more(effect: &str) -> Command {
    Command::RunTool(ToolRun {
        effect: effect.to_owned(),
        call: ToolCall {
            name: "more__x".to_owned(),
            ..call(effect)
        },
        timeout_ms: None,
    })
}

/// Calls both kinds of tools for each message from the user, and finishes once both have answered.
fn both(_: &Context, _: Option<&Snapshot>, inputs: &[Input]) -> Result<Vec<Command>, String> {
    let mut commands = Vec::new();
    for input in inputs {
        match input {
            Input::Started(start) => {
                let names: Vec<_> = start.tools.iter().map(|tool| &*tool.name).collect();
                if start.workspace == "/workspace" && names.contains(&"sh") {
                    assert_eq!(names, ["sh", "more__x"]);
                    assert_eq!(
                        start.tools[0].description, "d",
                        "the sandbox's stays its own"
                    );
                } else {
                    assert_eq!(names, ["more__x"]);
                }
                commands.push(run_more("m0"));
            }
            Input::UserMessage(said) => {
                commands.push(run_more(&format!("m{}", said.entry)));
            }
            Input::ToolReplied(reply) if reply.effect.starts_with('m') => {
                commands.push(run(&reply.effect.replace('m', "s")));
            }
            Input::ToolReplied(_) => {
                commands.push(Command::Finish(Outcome::Succeeded("done".to_owned())));
            }
            Input::EffectLost(_) | Input::EffectFailed(_) => {
                commands.push(Command::Finish(Outcome::Succeeded("lost".to_owned())));
            }
            _ => {}
        }
    }
    Ok(commands)
}

fn world(change: impl FnOnce(&mut Beside)) -> (World, Beside) {
    let mut world = World::new(both);
    let mut beside = Beside::of(&world, 1);
    change(&mut beside);
    world.tools = Arc::new(beside.clone());
    (world, beside)
}

/// The number of calls of the first set that have begun.
fn calls(world: &World) -> usize {
    let diary = world.diary.lock();
    diary
        .iter()
        .filter(|line| line.starts_with("beside 1"))
        .count()
}

#[tokio::test]
async fn a_policy_is_told_of_the_deployments_tools_behind_the_sandboxes_and_calls_either() {
    let (world, _) = world(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "\"completed\"").await;
    assert_dense(&seen);
    let text = |n: usize| seen[n].1.as_str();
    assert!(text(1).contains("\"ready\""), "{seen:?}");
    let notice = seen
        .iter()
        .position(|(_, frame)| frame.contains("other are not there"));
    assert!(
        notice.is_some_and(|at| at > 1),
        "it is said behind `ready`: {seen:?}"
    );
    let shown = seen.iter().any(|(_, frame)| frame.contains("more echo m0"));
    assert!(shown, "the host shows the call: {seen:?}");
    assert_eq!(world.done("open 1 scripted with a place"), 1);
    assert_eq!((world.done("beside 1 m0"), world.done("tool s0")), (1, 1));
    assert_eq!(world.done("tool m0"), 0, "it is not the sandbox's");
    sessions.stop(session.id()).await;
    let diary = world.diary.lock().clone();
    let at = |line: &str| diary.iter().position(|noted| noted == line);
    assert!(
        at("end 1") < at("close") && at("end 1").is_some(),
        "tools end before their place: {diary:?}"
    );
}

#[tokio::test]
async fn without_a_sandbox_the_deployments_tools_are_there_all_the_same() {
    let (world, _) = world(|_| {});
    world.sandbox.store(false, Ordering::SeqCst);
    let folder = tempfile::tempdir().unwrap();
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "\"completed\"").await;
    assert_eq!(world.done("open 1 scripted with no place"), 1);
    assert_eq!(world.done("beside 1 m0"), 1);
    sessions.stop(session.id()).await;
    assert_eq!(world.done("end 1"), 1);
}

#[tokio::test]
async fn what_a_call_does_is_written_down_before_it_is_done() {
    let (world, _) = world(|beside| beside.shows = true);
    let folder = tempfile::tempdir().unwrap();
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    let seen = until(&mut frames, "\"completed\"").await;
    assert_dense(&seen);
    let shown = seen
        .iter()
        .filter(|(_, frame)| frame.contains("an act of its own"));
    assert_eq!(shown.count(), 1);
    assert_eq!(world.done("may true"), 1);
}

#[tokio::test]
async fn a_session_that_is_stopped_while_its_tools_open_ends_at_once() {
    let (world, beside) = world(|_| {});
    beside.opening.store(true, Ordering::SeqCst);
    let folder = tempfile::tempdir().unwrap();
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    sessions.start(&session);
    eventually("the tools are being opened", || {
        world.done("open 1 scripted with a place") == 1
    })
    .await;
    sessions.stop(session.id()).await;
    assert_eq!((world.done("close"), world.done("wipe")), (1, 1));
}

#[tokio::test]
async fn a_call_that_a_crash_cut_off_is_lost_and_the_next_one_opens_the_tools_again() {
    let (world, _) = world(|_| {});
    world.hold.store(true, Ordering::SeqCst);
    let folder = tempfile::tempdir().unwrap();
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    let id = *session.id();
    sessions.start(&session);
    eventually("the call has begun", || calls(&world) == 1).await;
    sessions.shutdown().await;
    assert_eq!(world.done("end 1"), 1, "a pause ends them");
    drop((session, sessions));

    world.hold.store(false, Ordering::SeqCst);
    let sessions = made_of(Store::open(folder.path()).unwrap(), &world, "k", |_| {});
    assert_eq!(sessions.recover().await.unwrap(), 1);
    let session = sessions.get(&id, &"u".into()).await.unwrap();
    let mut frames = session.subscribe(0);
    until(&mut frames, "\"lost\"").await;
    assert_eq!(world.done("beside 1 m0"), 1, "it is not run again");
    assert_eq!(
        world.done("open 1 scripted with a place"),
        1,
        "nobody needs them yet"
    );
    session.message("again").await.unwrap();
    until(&mut frames, "\"done\"").await;
    assert_eq!(world.done("open 1 scripted with a place"), 2);
    sessions.stop(&id).await;
}

#[tokio::test]
async fn another_generation_changes_tools_between_two_calls_and_leaves_the_same_ones_alone() {
    let (world, _) = world(|_| {});
    let folder = tempfile::tempdir().unwrap();
    let (published, deployment) = deployment(1, &world);
    let store = Store::open(folder.path()).unwrap();
    let sessions = deployed(store, deployment, &world, "k", |_| {});
    let session = sessions.create(new("u")).await.unwrap();
    let mut frames = session.subscribe(0);
    sessions.start(&session);
    until(&mut frames, "\"completed\"").await;

    published.send_replace(generation(2, &world));
    session.message("again").await.unwrap();
    until(&mut frames, "\"completed\"").await;
    assert_eq!(
        world.done("open 1 scripted with a place"),
        1,
        "they are the same"
    );

    // The tools change during a call, which is not disturbed.
    world.hold.store(true, Ordering::SeqCst);
    session.message("and again").await.unwrap();
    until(&mut frames, "more echo").await;
    eventually("a third call has begun", || calls(&world) == 3).await;
    let mut next = world.clone();
    next.tools = Arc::new(Beside::of(&world, 2));
    published.send_replace(generation(3, &next));
    session
        .message("a word that makes it take a step")
        .await
        .unwrap();
    until(&mut frames, "more echo").await;
    assert_eq!(world.done("end 1"), 0, "a call goes on");
    world.hold.store(false, Ordering::SeqCst);
    until(&mut frames, "\"completed\"").await;
    eventually("the newer ones are called", || {
        world.done("open 2 scripted with a place") == 1
    })
    .await;
    assert_eq!(world.done("end 1"), 1);
    sessions.stop(session.id()).await;
    assert_eq!(world.done("end 2"), 1);
}
