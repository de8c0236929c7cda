//! The authorized client of one caller. Every request to the project is made here, including the
//! health check.
//!
//! # Invariants
//! - A request carries either the anon key and the user's own token, or the service key alone.
//! - It reads and changes rows of that user only: in both cases the filter is added here and is not
//!   an argument.
//! - A row that is written has that user's id.
//! - A user who cannot be one of the project's (the id is not a UUID) gets no client, so no request
//!   is made.

use std::sync::atomic::Ordering;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::accounts::{IntegrationRow, NewIntegrationRow};
use super::response::{self, no_answer};
use super::rows::{ChatRow, MessageRow};
use super::{Supabase, bearer};
use crate::chat_store::{ChatStoreError, MissingSchema, Principal};

const API_KEY: HeaderName = HeaderName::from_static("apikey");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The columns of a chat.
pub(super) const CHAT: &str = "id,agent_session_id,project_id,title,model_provider,is_active,created_at,updated_at,model_calls,input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,cost";
/// The columns of a git account.
pub(super) const INTEGRATION: &str =
    "id,provider,label,access_token_encrypted,iv,external_username,scopes,created_at";
/// The column for the code that protects a git account. A project whose last migration did not run
/// lacks it.
pub(super) const MAC: &str = "lucid_mac";
/// The columns of a message, and of its chat, for the filter by user.
const MESSAGE: &str =
    "id,role,content,event_type,metadata_json,created_at,chat_sessions!inner(user_id)";

/// The tables and columns that this version and its frontends read.
const NEEDED: [(&str, &str); 4] = [
    ("users", "id,email,name,avatar_url"),
    ("chat_sessions", CHAT),
    ("chat_messages", MESSAGE),
    ("integrations", INTEGRATION),
];

/// A client that acts for one caller.
pub(super) struct AuthorizedClient<'a> {
    supabase: &'a Supabase,
    user: Uuid,
    api_key: HeaderValue,
    bearer: HeaderValue,
    /// Whether row-level security is bypassed.
    pub(super) service: bool,
}

type Pairs<'a> = &'a [(&'a str, &'a str)];

impl Supabase {
    /// Returns a client for a caller, or `None` if the user is not one of the project's.
    pub(super) fn authorized(
        &self,
        caller: &Principal,
    ) -> Result<Option<AuthorizedClient<'_>>, ChatStoreError> {
        let Ok(user) = Uuid::parse_str(caller.user().as_str()) else {
            return Ok(None);
        };
        let (api_key, bearer, service) = match caller {
            Principal::User { token, .. } => {
                let bearer = bearer(token).map_err(|_| ChatStoreError::Token)?;
                (self.anon_key.clone(), bearer, false)
            }
            Principal::Service { .. } => {
                let keys = self.service_key.clone();
                let (api_key, bearer) = keys.ok_or(ChatStoreError::NoServiceKey)?;
                (api_key, bearer, true)
            }
        };
        Ok(Some(AuthorizedClient {
            supabase: self,
            user,
            api_key,
            bearer,
            service,
        }))
    }
}

impl Supabase {
    /// Remembers that the project has no column for the code that protects a git account, and says
    /// so once.
    fn note_missing_macs(&self) {
        if !self.lacks_macs.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the Supabase project lacks the column integrations.{MAC}, so tokens of git accounts go to the deployment's own servers only; the files of migrations/supabase add it"
            );
        }
    }

    /// Checks that the project responds and has what this version needs. Reads no row.
    pub async fn probe(&self) -> Result<(), ChatStoreError> {
        for (table, columns) in NEEDED {
            self.probe_table(table, columns).await?;
        }
        Ok(())
    }

    /// Checks that the project can keep the code that protects a git account. Everything else works
    /// without it.
    pub async fn probe_macs(&self) -> Result<(), ChatStoreError> {
        self.probe_table("integrations", MAC).await
    }

    async fn probe_table(&self, table: &str, columns: &str) -> Result<(), ChatStoreError> {
        let mut request = self.request(Method::GET, table, self.anon_key.clone());
        if let Some((key, bearer)) = &self.service_key {
            request = self.request(Method::GET, table, key.clone());
            request = request.header(AUTHORIZATION, bearer.clone());
        }
        let request = request.query(&[("select", columns), ("limit", "0")]);
        let response = request.send().await.map_err(no_answer)?;
        match response::rows::<Id>(response, self.has_service_key()).await {
            // Only signed-in users may read rows, as it should be. A missing table or column is
            // reported all the same, because PostgreSQL checks for that first.
            Ok(_) | Err(ChatStoreError::Token) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn request(&self, method: Method, table: &str, api_key: HeaderValue) -> RequestBuilder {
        let mut url = self.rest.clone();
        url.set_path(&format!("{}{table}", url.path()));
        self.client.request(method, url).header(API_KEY, api_key)
    }
}

impl AuthorizedClient<'_> {
    /// Reads chats of the user.
    pub(super) async fn chats(&self, narrow: Pairs<'_>) -> Result<Vec<ChatRow>, ChatStoreError> {
        let owner = self.owner();
        let request = self
            .request(Method::GET, "chat_sessions")
            .query(&[("select", CHAT), ("user_id", &owner)])
            .query(narrow);
        self.rows(request).await
    }

    /// Reads messages of the user's chats.
    pub(super) async fn messages(
        &self,
        narrow: Pairs<'_>,
    ) -> Result<Vec<MessageRow>, ChatStoreError> {
        let owner = self.owner();
        let request = self
            .request(Method::GET, "chat_messages")
            .query(&[("select", MESSAGE), ("chat_sessions.user_id", &owner)])
            .query(narrow);
        self.rows(request).await
    }

    /// Creates a chat for the user. An existing one with the same id is left unchanged, whoever
    /// owns it.
    pub(super) async fn insert_chat(&self, row: &ChatRow) -> Result<(), ChatStoreError> {
        let row = Owned {
            user_id: self.user,
            row,
        };
        self.insert("chat_sessions", &row).await
    }

    /// Appends messages to a chat; existing ones are left unchanged. The caller has checked that
    /// the chat is the user's, since the row itself does not say.
    pub(super) async fn insert_messages(&self, rows: &[MessageRow]) -> Result<(), ChatStoreError> {
        self.insert("chat_messages", &rows).await
    }

    /// Changes a chat of the user. Returns `false` if there is none.
    pub(super) async fn change(
        &self,
        chat: Uuid,
        change: &impl Serialize,
    ) -> Result<bool, ChatStoreError> {
        let request = self.one(Method::PATCH, chat).json(change);
        Ok(!self.rows::<Id>(request).await?.is_empty())
    }

    /// Deletes a chat of the user. Returns `false` if there is none.
    pub(super) async fn remove(&self, chat: Uuid) -> Result<bool, ChatStoreError> {
        let request = self.one(Method::DELETE, chat);
        Ok(!self.rows::<Id>(request).await?.is_empty())
    }

    /// Reads the user's git accounts.
    pub(super) async fn integrations(
        &self,
        narrow: Pairs<'_>,
    ) -> Result<Vec<IntegrationRow>, ChatStoreError> {
        if !self.supabase.lacks_macs.load(Ordering::Relaxed) {
            let columns = format!("{INTEGRATION},{MAC}");
            match self.select_integrations(&columns, narrow).await {
                Err(error) if is_missing_mac(&error) => self.supabase.note_missing_macs(),
                rows => return rows,
            }
        }
        self.select_integrations(INTEGRATION, narrow).await
    }

    async fn select_integrations(
        &self,
        columns: &str,
        narrow: Pairs<'_>,
    ) -> Result<Vec<IntegrationRow>, ChatStoreError> {
        let request = self
            .request(Method::GET, "integrations")
            .query(&[("select", columns), ("user_id", &self.owner())])
            .query(narrow);
        self.rows(request).await
    }

    /// Stores a git account, replacing the user's previous one at that provider.
    pub(super) async fn put_integration(
        &self,
        row: &NewIntegrationRow,
    ) -> Result<(), ChatStoreError> {
        match self.upsert_integration(row).await {
            Err(error) if is_missing_mac(&error) && !row.mac_required => {
                self.supabase.note_missing_macs();
                self.upsert_integration(&row.without_mac()).await
            }
            Ok(()) => {
                // Also after a migration that ran while this host did.
                self.supabase.lacks_macs.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn upsert_integration(&self, row: &NewIntegrationRow) -> Result<(), ChatStoreError> {
        let row = Owned {
            user_id: self.user,
            row,
        };
        let request = self
            .request(Method::POST, "integrations")
            .query(&[("on_conflict", "user_id,provider")])
            .header(PREFER, "return=minimal,resolution=merge-duplicates")
            .json(&row);
        let response = request.send().await.map_err(no_answer)?;
        response::expect_success(response, self.service).await
    }

    /// Deletes a git account of the user. Returns `false` if there is none.
    pub(super) async fn remove_integration(&self, provider: &str) -> Result<bool, ChatStoreError> {
        let request = self
            .request(Method::DELETE, "integrations")
            .query(&[("select", "id"), ("user_id", &self.owner())])
            .query(&[("provider", format!("eq.{provider}"))])
            .header(PREFER, "return=representation");
        Ok(!self.rows::<Id>(request).await?.is_empty())
    }

    /// A request on one chat of the user, whose response lists the chats that were found.
    fn one(&self, method: Method, chat: Uuid) -> RequestBuilder {
        let chat = format!("eq.{chat}");
        self.request(method, "chat_sessions")
            .query(&[("select", "id"), ("user_id", &self.owner()), ("id", &chat)])
            .header(PREFER, "return=representation")
    }

    async fn insert(&self, table: &str, rows: &impl Serialize) -> Result<(), ChatStoreError> {
        let request = self
            .request(Method::POST, table)
            .query(&[("on_conflict", "id")])
            .header(PREFER, "return=minimal,resolution=ignore-duplicates")
            .json(rows);
        let response = request.send().await.map_err(no_answer)?;
        response::expect_success(response, self.service).await
    }

    async fn rows<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<Vec<T>, ChatStoreError> {
        let response = request.send().await.map_err(no_answer)?;
        response::rows(response, self.service).await
    }

    fn owner(&self) -> String {
        format!("eq.{}", self.user)
    }

    fn request(&self, method: Method, table: &str) -> RequestBuilder {
        self.supabase
            .request(method, table, self.api_key.clone())
            .header(AUTHORIZATION, self.bearer.clone())
    }
}

/// Whether a project only lacks the column for the code that protects a git account.
fn is_missing_mac(error: &ChatStoreError) -> bool {
    matches!(error, ChatStoreError::Schema(MissingSchema::Column(Some((_, column)))) if *column == MAC)
}

/// A row with its user's id.
#[derive(Serialize)]
struct Owned<'a, T> {
    user_id: Uuid,
    #[serde(flatten)]
    row: &'a T,
}

#[derive(serde::Deserialize)]
struct Id {
    #[expect(dead_code, reason = "that there is one is what is asked")]
    id: String,
}
