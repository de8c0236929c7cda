//! `lucid plugin replay`: runs a recorded session as a test of a policy.
//!
//! # Invariants
//!
//! - The log is only read, even while a server writes to it, and nothing is carried out.
//! - Each step is given the logged context and inputs, and the state that this same build produced
//!   in the step before.

use std::process::ExitCode;

use super::error::ReplayCommandError;
use super::{ReplayArgs, component, engine};
use crate::cli::failed;
use crate::cli::render::strip_controls;
use crate::config::Config;
use crate::server::DataDirs;
use lucid_session::{difference, readable};
use lucid_types::ids::SessionId;
use lucid_types::log::LoggedStep;
use lucid_types::plural;
use lucid_types::sentence::sentence;
use lucid_types::wit::policy::{Context, Input, Snapshot};
use lucid_wasm::{PluginLimits, PolicyPlugin};

/// The maximum number of differing steps that are shown.
const MAX_SHOWN: u64 = 3;

/// Replays a session, and prints the differences.
pub(super) async fn replay(config: &Config, args: &ReplayArgs) -> ExitCode {
    match Box::pin(compare(config, args)).await {
        Ok(outcome) => outcome,
        Err(why) => failed(&sentence(why)),
    }
}

async fn compare(config: &Config, args: &ReplayArgs) -> Result<ExitCode, ReplayCommandError> {
    let wasm = component(&args.file)?;
    let folders = DataDirs::under(&config.workspace_base_path);
    let log = lucid_store::open_read_only(folders.data()).map_err(ReplayCommandError::Open)?;
    let unknown = || ReplayCommandError::NoSession(args.session.clone());
    let session: SessionId = args.session.parse().map_err(|_| unknown())?;
    let row = lucid_store::find_session(&log, session)?;
    let row = row.ok_or_else(unknown)?;
    let name = args.file.file_stem().unwrap_or_default().to_string_lossy();
    let engine = engine()?;
    let policy = PolicyPlugin::load(&engine, &name, &wasm, &PluginLimits::default()).await?;
    outln!(
        "session {} of the policy {}, replayed with {} {}",
        args.session,
        strip_controls(&row.fixed.policy),
        policy.descriptor().name,
        strip_controls(&policy.descriptor().version)
    );
    let mut state: Option<Snapshot> = None;
    let (mut same, mut different, mut next) = (0_u64, 0_u64, 0);
    loop {
        let steps = lucid_store::logged_steps(&log, session, next)?;
        let Some(last) = steps.last() else { break };
        next = last.step + 1;
        for logged in steps {
            let (now, after) = again(&policy, &logged, state.as_ref()).await?;
            let then = logged
                .commands
                .as_deref()
                .map_or_else(|| "(the step failed)".to_owned(), readable);
            let failed_both = logged.commands.is_none() && after.is_none();
            if failed_both || now == then {
                same += 1;
            } else {
                different += 1;
                if different <= MAX_SHOWN {
                    outln!("\nstep {}: - the log, + {name}", logged.step);
                    out!("{}", strip_controls(&difference(&then, &now)));
                }
            }
            // A failed step left the state unchanged.
            state = after.or(state);
        }
    }
    if same + different == 0 {
        return Err(ReplayCommandError::NoStep(args.session.clone()));
    }
    if different == 0 {
        let steps = plural::count(same, "step");
        outln!("{steps}, all with the same commands.");
        return Ok(ExitCode::SUCCESS);
    }
    outln!(
        "\n{different} of {} gave other commands.",
        plural::count(same + different, "step")
    );
    Ok(ExitCode::FAILURE)
}

/// The commands of one step as text, and the resulting state. A failed step has none.
async fn again(
    policy: &PolicyPlugin,
    logged: &LoggedStep,
    state: Option<&Snapshot>,
) -> Result<(String, Option<Snapshot>), ReplayCommandError> {
    let unread = |source| ReplayCommandError::Step {
        step: logged.step,
        source,
    };
    let context: Context = serde_json::from_str(&logged.context).map_err(unread)?;
    let inputs: Vec<Input> = serde_json::from_str(&logged.inputs).map_err(unread)?;
    match policy.step(&context, state, &inputs).await.result {
        Ok(done) => {
            let commands = serde_json::to_string(&done.commands).map_err(unread)?;
            Ok((readable(&commands), Some(done.state)))
        }
        Err(error) => Ok((format!("(the step failed)\n{error}"), None)),
    }
}
