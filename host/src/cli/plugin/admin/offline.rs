//! The rollback without a server, in this machine's upload store.

use crate::cli::plugin::error::ServerError;
use crate::cli::render::one_line;
use crate::config::Config;
use crate::deployment::uploads::{DeactivatedBuild, UploadStoreError};
use crate::server::{self, DataDirs};
use lucid_wasm::PluginKind;

/// The author of an offline rollback.
const OFFLINE: &str = "command-line --offline";

/// Rolls back in this machine's upload store.
pub(super) fn roll_back_offline(kind: PluginKind, name: &str) -> Result<String, ServerError> {
    let config = Config::load()?;
    let upload_store = server::open_upload_store(&DataDirs::under(&config.workspace_base_path));
    let roll_back = || {
        let writer = upload_store.lock()?;
        let mut record = upload_store.record()?;
        let Some(off) = record.roll_back(kind, name, OFFLINE, chrono::Utc::now()) else {
            return Ok(None);
        };
        writer.write(&record)?;
        let before = record.builds(kind, name).last();
        let before = before.map(|build| build.digest);
        Ok::<_, UploadStoreError>(Some((off, before)))
    };
    match roll_back()? {
        Some((DeactivatedBuild::Candidate(build), _)) => Ok(format!(
            "The upload sha256:{} has no share of the sessions of the {kind} plugin {name} any more.\n",
            build.digest
        )),
        Some((DeactivatedBuild::Active(last), before)) => {
            let now = match before {
                Some(digest) => format!("the upload sha256:{digest}"),
                None => "what the manifest names".to_owned(),
            };
            Ok(format!(
                "The {kind} plugin {name} is no longer the upload sha256:{}, but {now}.\n",
                last.digest
            ))
        }
        None => Err(ServerError::NothingActive {
            kind,
            name: one_line(name),
        }),
    }
}
