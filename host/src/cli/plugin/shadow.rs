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
use serde_json::{Value, json};

use super::admin::{AdminClient, ServerArgs, text_of};
use crate::cli::failed;
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
        Ok(report) => {
            if args.server.json {
                outln!("{report}");
            } else {
                out!("{}", strip_controls(&render_report(&report)));
            }
            if is_clean(&report) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(why) => failed(&why),
    }
}

async fn wait_for_report(args: &ShadowArgs) -> Result<Value, String> {
    let server = AdminClient::find(&args.server)?;
    let path = ["policy", &args.name, "shadow"];
    let wanted = json!({ "digest": args.digest, "sessions": args.sessions });
    let begun = server.post(&path, &wanted).await?;
    let watched = std::io::stderr().is_terminal() && !args.server.json;
    loop {
        let report = server.ask(Method::GET, &path).await?;
        if report["since"] != begun["since"] || report["digest"] != begun["digest"] {
            return Err("Another shadow took the place of this one before it was read.".to_owned());
        }
        if report["until"].is_string() {
            if watched {
                errln!();
            }
            return Ok(report);
        }
        if watched {
            let wanted = report["wanted"].as_u64().unwrap_or_default();
            let wanted = plural::count(wanted, "session");
            err!("\r{} of {wanted}", report["sessions"]);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether everything was replayed without a difference.
fn is_clean(report: &Value) -> bool {
    let none = |name: &str| report[name] == 0;
    report["problem"].is_null()
        && ["different", "failed", "notMigrated", "unread"]
            .into_iter()
            .all(none)
}

fn render_report(report: &Value) -> String {
    let number = |name: &str| report[name].as_u64().unwrap_or_default();
    let mut text = String::new();
    for one in report["differences"].as_array().into_iter().flatten() {
        let session = one_line(text_of(one, "session"));
        let what = match text_of(one, "what") {
            "failed" => "the new build fails",
            "mended" => "the recorded step failed, the new build's does not",
            "not-migrated" => "the new build does not take its state over",
            _ => "other commands",
        };
        let place = match one["step"].as_u64() {
            Some(step) => format!("session {session}, step {step}"),
            None => format!("session {session}, as it stands"),
        };
        text += &format!("{place}: {what}\n");
        for line in text_of(one, "text").lines() {
            text += &format!("  {line}\n");
        }
        text.push('\n');
    }
    text += &format!(
        "{}, {}: {} the same, {} different, {} failed; {} would not be taken over\n",
        plural::count(number("sessions"), "session"),
        plural::count(number("steps"), "step"),
        plural::count(number("same"), "session"),
        number("different"),
        number("failed"),
        number("notMigrated"),
    );
    let (then, now) = (number("fuelThen"), number("fuelNow"));
    text += &format!("fuel {now}, and {then} when they were recorded\n");
    if number("unread") > 0 {
        text += &format!(
            "{} could not be read by this server\n",
            plural::count(number("unread"), "session")
        );
    }
    if let Some(problem) = report["problem"].as_str() {
        text += &format!("{}\n", one_line(problem));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_shadow_without_a_difference_is_clean() {
        let good =
            json!({"problem": null, "different": 0, "failed": 0, "notMigrated": 0, "unread": 0});
        assert!(is_clean(&good));
        for (name, value) in [
            ("problem", json!("It was ended after 600 seconds.")),
            ("different", json!(1)),
            ("failed", json!(1)),
            ("notMigrated", json!(1)),
            ("unread", json!(1)),
            ("failed", Value::Null),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(!is_clean(&bad), "{bad}");
        }
    }

    #[test]
    fn what_a_server_answers_cannot_move_the_cursor() {
        let evil = "\u{1b}[2Jx\r";
        let report = json!({
            "problem": evil,
            "differences": [{"session": evil, "step": 3, "what": evil, "text": evil}],
        });
        let text = strip_controls(&render_report(&report));
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}
