//! Owns `lucid run`: one task in this process, shown in the terminal as it goes.
//!
//! What always holds: it is the same session that a server would run, on a storage folder of its own,
//! so that it works beside a server; the exit code says whether the task succeeded; the workspace is
//! kept and named at the end.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::Style;
use serde_json::Value;
use tokio::time::timeout;

use super::screen::{Progress, Screen, colours};
use super::serve::LOCAL_USER;
use super::{RunArgs, failed, interrupted, wrong, wrong_manifest};
use crate::app::{self, App, Keep, StartError};
use crate::config::Config;
use crate::session::{Batch, NewSession, Session};

/// How long a session may take to end.
const END: Duration = Duration::from_secs(15);

/// Works on one task.
pub(super) async fn run(mut config: Config, args: RunArgs) -> ExitCode {
    for warning in config.notes() {
        tracing::warn!("{warning}");
    }
    // The one who types is the operator, and may name any model.
    config.models.typed_provider = args.provider.as_deref().map(str::to_lowercase);
    config.models.typed_model = args.model;
    let storage = match own_folder(&config) {
        Ok(storage) => storage,
        Err(error) => return failed(&error.to_string()),
    };
    let app = match Box::pin(App::start_in(config, &storage, Keep::Workspaces)).await {
        Ok(app) => app,
        Err(StartError::Config(error)) => return wrong(&error),
        Err(StartError::Deployment(problems)) => return wrong_manifest(&problems),
        Err(error) => return failed(&error.to_string()),
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
    let mut view = View::new();
    let _attached = session.attach();
    app.sessions().start(&session);
    let outcome = tokio::select! {
        outcome = watch(&session, &mut view) => outcome,
        _ = interrupted() => {
            view.line(&view.screen.entry("stopped", Style::new().yellow(), "as you asked"));
            false
        }
    };
    view.end();
    let workspace = session
        .workspace()
        .map(|workspace| workspace.host_path().to_owned());
    // A second Ctrl-C does not wait.
    let ended = async {
        app.sessions().stop(session.id()).await;
        app.shutdown(tokio::time::Instant::now() + END).await;
    };
    tokio::select! {
        _ = timeout(END, ended) => {}
        _ = interrupted() => {}
    }
    if let Some(workspace) = workspace {
        let path = workspace.display().to_string();
        view.line(&view.screen.entry("files", Style::new().dimmed(), &path));
    }
    if outcome {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A folder that no server and no other run has open.
fn own_folder(config: &Config) -> Result<PathBuf, StartError> {
    let mut folder = config.workspace_base_path.clone();
    let id = uuid::Uuid::now_v7().simple().to_string();
    for name in [".lucid", "runs", &id] {
        folder.push(name);
        app::make(&folder)?;
    }
    Ok(folder)
}

/// Shows frames until the task is over, and says whether it succeeded.
async fn watch(session: &Arc<Session>, view: &mut View) -> bool {
    let mut subscription = session.subscribe(0);
    loop {
        let frames = match subscription.next().await {
            Batch::Frames(frames) => frames,
            Batch::Notice(frame) => vec![(0, frame)],
            Batch::Delta(_) | Batch::Gap(..) => continue,
            Batch::Ended(_) => return false,
        };
        for (_, frame) in frames {
            let frame = serde_json::from_str(&frame).unwrap_or(Value::Null);
            match view.frame(&frame) {
                Progress::Done => return true,
                Progress::Failed => return false,
                Progress::Same | Progress::Busy(_) => {}
            }
        }
    }
}

/// The terminal: lines that stay, and below them what is going on.
struct View {
    screen: Screen,
    spinner: Option<ProgressBar>,
    /// What went wrong last, in the words that were shown.
    last_error: Option<String>,
}

impl View {
    fn new() -> Self {
        let out = std::io::stdout().is_terminal();
        let err = std::io::stderr().is_terminal();
        // The spinner is drawn on stderr, below lines on stdout: both must be the terminal.
        let spinner = (out && err).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner:>7}  {wide_msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            screen: Screen::new(colours(out)),
            spinner,
            last_error: None,
        }
    }

    fn frame(&mut self, frame: &Value) -> Progress {
        let shown = self.screen.show(frame);
        if !shown.text.is_empty() && !self.is_said(frame) {
            self.line(&shown.text);
        }
        if let (Some(spinner), Progress::Busy(what)) = (&self.spinner, &shown.progress) {
            spinner.reset_elapsed();
            spinner.set_message(what.clone());
        }
        shown.progress
    }

    /// Whether it is the end of a task for a reason that was the last thing shown.
    fn is_said(&mut self, frame: &Value) -> bool {
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
        // Whoever reads may have gone; the work goes on all the same.
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
