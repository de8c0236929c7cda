//! The opening of the stores: the log, the chats, and what is kept for users.

use std::sync::Arc;

use super::WorkspaceRetention;
use super::error::StartError;
use super::folders::{DataDirs, create_dir};
use crate::config::Config;
use lucid_store::{Chats, Integrations, Outbox, Store, Supabase, SupabaseChatStore};

/// The log and the chats.
pub(crate) fn open_store(folders: &DataDirs) -> Result<Store, StartError> {
    create_dir(&folders.root)?;
    Ok(Store::open(&folders.data)?)
}

/// What is kept for users beside the log.
pub(super) struct UserStores {
    pub(super) chats: Chats,
    pub(super) outbox: Option<Outbox>,
    pub(super) integrations: Arc<dyn Integrations>,
}

/// The records where the settings say, or in the local database. A single run at a terminal
/// (`WorkspaceRetention::Workspaces`) is this machine's own.
pub(super) async fn open_user_stores(
    config: &Config,
    store: &Store,
    keep: WorkspaceRetention,
) -> Result<UserStores, StartError> {
    let deletions = store.clone();
    tokio::spawn(async move {
        if let Err(cause) = deletions.finish_deletions().await {
            tracing::warn!(%cause, "the log of deleted chats is deleted at the next start: it could not be now");
        }
    });
    let Some(settings) = config
        .supabase
        .as_ref()
        .filter(|_| keep == WorkspaceRetention::No)
    else {
        return Ok(UserStores {
            chats: Chats::new(store.clone()),
            outbox: None,
            integrations: Arc::new(store.clone()),
        });
    };
    let stores = Arc::new(SupabaseChatStore::new(Supabase::new(settings)?));
    let outbox = Outbox::start(store.clone(), SupabaseChatStore::clone(&stores)).await?;
    Ok(UserStores {
        chats: Chats::remote(store.clone(), stores.clone(), outbox.clone()),
        outbox: Some(outbox),
        integrations: stores,
    })
}
