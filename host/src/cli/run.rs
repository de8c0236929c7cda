//! `lucid run`: runs one task in this process and shows its progress in the terminal.
//!
//! # Invariants
//!
//! - The session is the same as in a server, in a storage folder of its own, so it can run beside a
//!   server.
//! - The exit code says whether the task succeeded, failed, or is waiting for an answer that nobody
//!   gives.
//! - The workspace is kept, and its path is printed at the end.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::Style;
use serde_json::Value;
use tokio::time::timeout;

use super::answers::PendingAnswers;
use super::render::{FrameProgress, FrameRenderer, colours};
use super::serve::LOCAL_USER;
use super::{RunArgs, UNANSWERED, failed, interrupted, not_started};
use crate::config::Config;
use crate::server::{self, App, StartError, WorkspaceRetention};
use lucid_session::{NewSession, SessionHandle, SubscriptionItem};

/// The error of a task that ended with an unanswered question.
const NO_ANSWER: &str = "The agent asked something, and standard input has no answer: run this in a terminal and type it, or pipe in a line for each answer.";
/// How long a session may take to end.
const END: Duration = Duration::from_secs(15);

/// Runs one task.
pub(super) async fn run(mut config: Config, args: RunArgs) -> ExitCode {
    for warning in config.notes() {
        tracing::warn!("{warning}");
    }
    // The user at the command line is the operator, and may name any model.
    config.models.typed_provider = args.provider.as_deref().map(str::to_lowercase);
    config.models.typed_model = args.model;
    let storage = match own_folder(&config) {
        Ok(storage) => storage,
        Err(error) => return failed(&error.sentence()),
    };
    // From here on there is something to clean up.
    let mut stop = Box::pin(interrupted());
    let started = tokio::select! {
        started = Box::pin(App::start_in(config, &storage, WorkspaceRetention::Workspaces)) => started,
        _ = &mut stop => return failed("Stopped before the task began."),
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => return not_started(&error),
    };
    let new = NewSession {
        user: LOCAL_USER.into(),
        task: args.task,
        repo_url: args.repo,
        branch: args.branch,
        provider: args.provider,
        policy: args.policy,
        model: None,
        token_limit: None,
        cost_limit: None,
        project_id: None,
        git_token: None,
        git_user_name: None,
        git_user_email: None,
        api_key: None,
        open_change: None,
    };
    let session = match app.sessions().create(new).await {
        Ok(session) => session,
        Err(error) => return failed(&error.to_operator()),
    };
    let mut view = TerminalView::new();
    let _attached = session.attach();
    app.sessions().start(&session);
    let outcome = tokio::select! {
        outcome = watch(&session, &mut view) => outcome,
        _ = &mut stop => {
            view.line(&view.screen.entry("stopped", Style::new().yellow(), "as you asked"));
            TaskOutcome::Failed
        }
    };
    view.end();
    let workspace = session
        .has_workspace()
        .then(|| app.workspaces().find(session.user(), *session.id()))
        .flatten()
        .map(|workspace| workspace.host_path().to_owned());
    // A second Ctrl-C does not wait.
    let again = interrupted();
    let ended = async {
        app.sessions().stop(session.id()).await;
        app.shutdown(tokio::time::Instant::now() + END).await;
    };
    tokio::select! {
        _ = timeout(END, ended) => {}
        _ = again => {}
    }
    if let Some(workspace) = workspace {
        let path = workspace.display().to_string();
        view.line(&view.screen.entry("files", Style::new().dimmed(), &path));
    }
    match outcome {
        TaskOutcome::Succeeded => ExitCode::SUCCESS,
        TaskOutcome::Failed => ExitCode::FAILURE,
        TaskOutcome::Unanswered => {
            failed(NO_ANSWER);
            ExitCode::from(UNANSWERED)
        }
    }
}

/// Creates a folder that no server and no other run has open.
fn own_folder(config: &Config) -> Result<PathBuf, StartError> {
    let mut folder = config.workspace_base_path.clone();
    let id = uuid::Uuid::now_v7().simple().to_string();
    for name in [".lucid", "runs", &id] {
        folder.push(name);
        server::create_dir(&folder)?;
    }
    Ok(folder)
}

/// The outcome of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TaskOutcome {
    Succeeded,
    Failed,
    /// It waits for an answer, and there is none.
    Unanswered,
}

/// Shows frames until the task is over, and passes on the user's answers.
async fn watch(session: &Arc<SessionHandle>, view: &mut TerminalView) -> TaskOutcome {
    let mut subscription = session.subscribe(0);
    let mut questions = session.questions();
    let mut answers = PendingAnswers::default();
    let mut answered = 0;
    loop {
        let question = *questions.borrow_and_update();
        // The question must be shown first.
        let asks = question > answered && subscription.last_seq() >= question;
        view.ask(asks);
        let batch = tokio::select! {
            batch = subscription.next() => batch,
            // Fails only if the session has been dropped, and it is held here.
            _ = questions.changed(), if !asks => continue,
            answer = answers.next(), if asks => {
                let Some(answer) = answer else {
                    return TaskOutcome::Unanswered;
                };
                answered = question;
                view.answered(&answer);
                if let Err(error) = session.message(answer).await {
                    view.line(&view.screen.entry("error", Style::new().red(), &error.sentence()));
                    return TaskOutcome::Failed;
                }
                continue;
            }
        };
        let frames = match batch {
            SubscriptionItem::Frames(frames) => frames,
            SubscriptionItem::Notice(frame) => vec![(0, frame)],
            SubscriptionItem::Delta(_) | SubscriptionItem::Gap(..) => continue,
            SubscriptionItem::Ended(_) => return TaskOutcome::Failed,
        };
        for (_, frame) in frames {
            let frame = serde_json::from_str(&frame).unwrap_or(Value::Null);
            match view.frame(&frame) {
                FrameProgress::Done => return TaskOutcome::Succeeded,
                FrameProgress::Failed => return TaskOutcome::Failed,
                FrameProgress::Same | FrameProgress::Busy(_) => {}
            }
        }
    }
}

/// The terminal: permanent lines, and the current activity below them.
struct TerminalView {
    screen: FrameRenderer,
    spinner: Option<ProgressBar>,
    /// The last error, in the words that were shown.
    last_error: Option<String>,
    /// Whether an answer is waited for.
    asks: bool,
}

impl TerminalView {
    fn new() -> Self {
        Self {
            screen: FrameRenderer::new(colours(std::io::stdout().is_terminal())),
            spinner: spinner(),
            last_error: None,
            asks: false,
        }
    }

    /// Shows or removes the prompt for an answer.
    fn ask(&mut self, asks: bool) {
        if std::mem::replace(&mut self.asks, asks) == asks {
            return;
        }
        if asks {
            self.end();
            PendingAnswers::prompt();
        } else {
            self.spinner = spinner();
        }
    }

    /// Shows an answer that was not typed here.
    fn answered(&self, answer: &str) {
        if !PendingAnswers::is_interactive() {
            self.line(&self.screen.entry("answer", Style::new().bold(), answer));
        }
    }

    fn frame(&mut self, frame: &Value) -> FrameProgress {
        let rendered = self.screen.show(frame);
        if !rendered.text.is_empty() && !self.was_printed(frame) {
            self.line(&rendered.text);
        }
        if let (Some(spinner), FrameProgress::Busy(what)) = (&self.spinner, &rendered.progress) {
            spinner.reset_elapsed();
            spinner.set_message(what.clone());
        }
        rendered.progress
    }

    /// Whether a frame ends the task with the error that was shown last.
    fn was_printed(&mut self, frame: &Value) -> bool {
        let is_event = frame["event"] == "error";
        let reason = if is_event {
            &frame["content"]
        } else {
            &frame["message"]
        };
        let reason = reason.as_str().map(str::to_owned);
        if is_event {
            self.last_error = reason;
            return false;
        }
        frame["type"] == "error"
            && self
                .last_error
                .take_if(|last| Some(&*last) == reason.as_ref())
                .is_some()
    }

    fn line(&self, text: &str) {
        // The reader may be gone, and the work continues all the same.
        let print = || drop(writeln!(std::io::stdout(), "{text}"));
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }

    fn end(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

/// The activity indicator. `None` if it would mix with results.
fn spinner() -> Option<ProgressBar> {
    // The spinner is drawn on stderr, below lines on stdout, so both must be the terminal.
    let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    terminal.then(|| {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner:>7}  {wide_msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    })
}
