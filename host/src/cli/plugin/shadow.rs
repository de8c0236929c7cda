//! `lucid plugin shadow`: shows what an uploaded build would have done in a server's recent
//! sessions.
//!
//! # Invariants
//!
//! - It waits until the server is done, and no longer.
//! - A server's response cannot move the cursor.
//! - The exit code is 0 if there is no difference, 1 if there is one (as with `diff`) or if the
//!   shadow run failed.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::admin::{AdminClient, ServerArgs, read, refused};
use super::error::ServerError;
use crate::api::plugins::shadow::{Begin, ShadowView};
use crate::cli::render::{one_line, strip_controls};
use lucid_types::plural;

/// The interval between progress queries.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ShadowArgs {
    /// The policy's name in the deployment
    name: String,
    /// What the upload was answered with, with or without `sha256:`
    digest: String,
    /// How many sessions, the newest first
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=200))]
    sessions: u64,
    #[command(flatten)]
    server: ServerArgs,
}

/// Starts a shadow run, waits, and prints its result.
pub(super) async fn shadow(args: &ShadowArgs) -> ExitCode {
    match wait_for_report(args).await {
        Ok((answer, report)) => {
            if args.server.json {
                outln!("{answer}");
            } else {
                out!("{}", strip_controls(&render_report(&report)));
            }
            if is_clean(&report) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(why) => refused(&why),
    }
}

/// The last response, as the server sent it and as this program knows it.
async fn wait_for_report(args: &ShadowArgs) -> Result<(Value, ShadowView), ServerError> {
    let server = AdminClient::find(&args.server)?;
    let path = ["policy", &args.name, "shadow"];
    let wanted = Begin {
        digest: args.digest.clone(),
        sessions: args.sessions,
    };
    let begun: ShadowView = read(&server.post(&path, &wanted).await?)?;
    let watched = std::io::stderr().is_terminal() && !args.server.json;
    loop {
        let answer = server.ask(Method::GET, &path).await?;
        let report: ShadowView = read(&answer)?;
        if report.since != begun.since || report.digest != begun.digest {
            return Err(ServerError::Replaced);
        }
        if report.until.is_some() {
            if watched {
                errln!();
            }
            return Ok((answer, report));
        }
        if watched {
            let wanted = plural::count(report.wanted, "session");
            err!("\r{} of {wanted}", report.sessions);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether everything was replayed without a difference.
fn is_clean(report: &ShadowView) -> bool {
    let bad = [
        report.different,
        report.failed,
        report.not_migrated,
        report.unread,
    ];
    report.problem.is_none() && bad == [0; 4]
}

fn render_report(report: &ShadowView) -> String {
    let mut text = String::new();
    for one in &report.differences {
        let session = one_line(&one.session);
        let what = match one.what.as_str() {
            "failed" => "the new build fails",
            "mended" => "the recorded step failed, the new build's does not",
            "not-migrated" => "the new build does not take its state over",
            _ => "other commands",
        };
        let place = match one.step {
            Some(step) => format!("session {session}, step {step}"),
            None => format!("session {session}, as it stands"),
        };
        text += &format!("{place}: {what}\n");
        for line in one.text.lines() {
            text += &format!("  {line}\n");
        }
        text.push('\n');
    }
    text += &format!(
        "{}, {}: {} the same, {} different, {} failed; {} would not be taken over\n",
        plural::count(report.sessions, "session"),
        plural::count(report.steps, "step"),
        plural::count(report.same, "session"),
        report.different,
        report.failed,
        report.not_migrated,
    );
    text += &format!(
        "fuel {}, and {} when they were recorded\n",
        report.fuel_now, report.fuel_then
    );
    if report.unread > 0 {
        text += &format!(
            "{} could not be read by this server\n",
            plural::count(report.unread, "session")
        );
    }
    if let Some(problem) = &report.problem {
        text += &format!("{}\n", one_line(problem));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(changes: Value) -> ShadowView {
        let mut report = json!({
            "name": "coder", "digest": "", "beside": "", "by": "", "since": "", "until": "",
            "problem": null, "wanted": 1, "sessions": 1, "same": 1, "different": 0, "failed": 0,
            "notMigrated": 0, "unread": 0, "steps": 1, "stepsDifferent": 0, "fuelThen": 1,
            "fuelNow": 1, "differences": [],
        });
        let Value::Object(changes) = changes else {
            panic!("not an object")
        };
        for (name, value) in changes {
            report[name] = value;
        }
        read(&report).unwrap()
    }

    #[test]
    fn only_a_whole_shadow_without_a_difference_is_clean() {
        assert!(is_clean(&report(json!({}))));
        for bad in [
            json!({"problem": "It was ended after 600 seconds."}),
            json!({"different": 1}),
            json!({"failed": 1}),
            json!({"notMigrated": 1}),
            json!({"unread": 1}),
        ] {
            assert!(!is_clean(&report(bad.clone())), "{bad}");
        }
    }

    #[test]
    fn what_a_server_answers_cannot_move_the_cursor() {
        let evil = "\u{1b}[2Jx\r";
        let report = report(json!({
            "problem": evil,
            "differences": [{"session": evil, "step": 3, "what": evil, "text": evil}],
        }));
        let text = strip_controls(&render_report(&report));
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}
