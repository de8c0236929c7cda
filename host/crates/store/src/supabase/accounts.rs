//! Users' git accounts in a Supabase project.
//!
//! # Invariants
//! - A row holds the token only in its sealed form, in the format that a frontend using the same
//!   rows writes.
//! - A project that has no column for the code that protects a row still works: its rows are read
//!   and written without one, except an account that is of no use without it.

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use serde::{Deserialize, Serialize};

use super::SupabaseChatStore;
use super::rows::clean;
use crate::accounts::{Integration, IntegrationFuture, Integrations, NewIntegration};
use crate::chat_store::{ChatStoreError, Principal};
use lucid_types::identity::Identity;

/// PostgreSQL: a foreign key violation.
const NO_SUCH_ROW: &str = "23503";

#[derive(Debug, Deserialize)]
pub(super) struct IntegrationRow {
    id: String,
    provider: String,
    label: Option<String>,
    access_token_encrypted: String,
    iv: String,
    external_username: Option<String>,
    scopes: Option<String>,
    /// Not requested from a project without the column.
    #[serde(default)]
    lucid_mac: Option<String>,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct NewIntegrationRow {
    provider: String,
    label: String,
    access_token_encrypted: String,
    iv: String,
    external_username: String,
    scopes: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lucid_mac: Option<String>,
    created_at: DateTime<Utc>,
    #[serde(skip)]
    pub(super) mac_required: bool,
}

impl NewIntegrationRow {
    /// The same row for a project that has no column for the code.
    pub(super) fn without_mac(&self) -> Self {
        Self {
            lucid_mac: None,
            ..self.clone()
        }
    }
}

impl From<IntegrationRow> for Integration {
    fn from(row: IntegrationRow) -> Self {
        Self {
            id: row.id,
            provider: row.provider,
            label: row.label,
            access_token_encrypted: row.access_token_encrypted,
            iv: row.iv,
            external_username: row.external_username,
            scopes: row.scopes,
            mac: row.lucid_mac,
            created_at: row.created_at,
        }
    }
}

impl From<NewIntegration> for NewIntegrationRow {
    fn from(new: NewIntegration) -> Self {
        // A provider's description of an account is free text.
        let text = |text: String| clean(&text).into_owned();
        Self {
            provider: text(new.provider),
            label: text(new.label),
            access_token_encrypted: new.access_token_encrypted,
            iv: new.iv,
            external_username: text(new.external_username),
            scopes: text(new.scopes),
            lucid_mac: Some(new.mac),
            created_at: Utc::now(),
            mac_required: new.mac_required,
        }
    }
}

impl Integrations for SupabaseChatStore {
    fn list(&self, who: &Identity) -> IntegrationFuture<Vec<Integration>> {
        let (records, caller) = (self.clone(), Principal::from(who));
        async move {
            let Some(acting) = records.supabase().authorized(&caller)? else {
                return Ok(Vec::new());
            };
            let rows = acting.integrations(&[("order", "provider.asc")]).await?;
            Ok(rows.into_iter().map(Integration::from).collect())
        }
        .boxed()
    }

    fn get(&self, who: &Identity, provider: &str) -> IntegrationFuture<Option<Integration>> {
        let (records, caller, provider) = (self.clone(), Principal::from(who), provider.to_owned());
        async move {
            let Some(acting) = records.supabase().authorized(&caller)? else {
                return Ok(None);
            };
            let provider = format!("eq.{provider}");
            let rows = acting.integrations(&[("provider", &provider)]).await?;
            Ok(rows.into_iter().next().map(Integration::from))
        }
        .boxed()
    }

    fn put(&self, who: &Identity, new: NewIntegration) -> IntegrationFuture<()> {
        let (records, caller) = (self.clone(), Principal::from(who));
        async move {
            let Some(acting) = records.supabase().authorized(&caller)? else {
                return Err(ChatStoreError::Refused {
                    code: "a user whose id is no UUID".to_owned(),
                });
            };
            let put = acting.put_integration(&new.into()).await;
            put.map_err(|error| match error {
                ChatStoreError::Refused { code } if code == NO_SUCH_ROW => ChatStoreError::NoUser,
                other => other,
            })
        }
        .boxed()
    }

    fn delete(&self, who: &Identity, provider: &str) -> IntegrationFuture<bool> {
        let (records, caller, provider) = (self.clone(), Principal::from(who), provider.to_owned());
        async move {
            let Some(acting) = records.supabase().authorized(&caller)? else {
                return Ok(false);
            };
            acting.remove_integration(&provider).await
        }
        .boxed()
    }
}
