//! Users' git accounts, and the trait for the stores that keep them.
//!
//! # Invariants
//! - Every lookup and every change names the user, and another user's account does not exist for
//!   it.
//! - A user has one account per provider.
//! - A row holds the token only in its sealed form.
//! - A row's message authentication code is kept as given, and replaced with the row.

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::chat_store::ChatStoreError;
use crate::error::StoreError;
use crate::sqlite::{QueueKey, Store};
use lucid_types::identity::Identity;

/// A git account that a user connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Integration {
    /// The row's id.
    pub id: String,
    /// The provider, in capital letters: `GITHUB`, `GITLAB`.
    pub provider: String,
    /// The user's name for the account.
    pub label: Option<String>,
    /// The sealed token, in hex.
    pub access_token_encrypted: String,
    /// The initialization vector that the token was sealed with, in hex.
    pub iv: String,
    /// The account's name at the provider.
    pub external_username: Option<String>,
    /// The token's scopes and, after `||`, the address of a self-hosted server.
    pub scopes: Option<String>,
    /// The row's message authentication code, in hex. `None` for a row that another application
    /// wrote, and if the store has no column for it.
    pub mac: Option<String>,
    /// Time at which the account was connected.
    pub created_at: DateTime<Utc>,
}

/// An account to be stored.
#[derive(Debug, Clone)]
pub struct NewIntegration {
    /// The provider, in capital letters.
    pub provider: String,
    /// The user's name for the account.
    pub label: String,
    /// The sealed token, in hex.
    pub access_token_encrypted: String,
    /// The initialization vector that the token was sealed with, in hex.
    pub iv: String,
    /// The account's name at the provider.
    pub external_username: String,
    /// As in [`Integration`].
    pub scopes: String,
    /// As in [`Integration`].
    pub mac: String,
    /// Whether the account is of no use without `mac`, so that a store that cannot keep it is an
    /// error.
    pub mac_required: bool,
}

/// The future result of a call.
pub type IntegrationFuture<T> = BoxFuture<'static, Result<T, ChatStoreError>>;

/// A store of users' git accounts. `who` is the caller: with their own token if row-level security
/// is to decide, otherwise the user that a server acts for.
pub trait Integrations: Send + Sync {
    /// Returns the user's accounts, ordered by provider.
    fn list(&self, who: &Identity) -> IntegrationFuture<Vec<Integration>>;
    /// Returns the user's account at a provider.
    fn get(&self, who: &Identity, provider: &str) -> IntegrationFuture<Option<Integration>>;
    /// Stores an account, replacing the user's previous one at that provider.
    fn put(&self, who: &Identity, new: NewIntegration) -> IntegrationFuture<()>;
    /// Deletes an account. Resolves to `false` if there is none.
    fn delete(&self, who: &Identity, provider: &str) -> IntegrationFuture<bool>;
}

const COLUMNS: &str = "id, provider, label, access_token_encrypted, iv, external_username, scopes, lucid_mac, created_at";

impl Integrations for Store {
    fn list(&self, who: &Identity) -> IntegrationFuture<Vec<Integration>> {
        let (store, user) = (self.clone(), who.user.clone());
        let key = QueueKey::User(user.clone());
        let work = move |connection: &Connection| {
            let mut select = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM integrations WHERE user_id = ?1 ORDER BY provider"
            ))?;
            let rows = select.query_map([user.as_str()], integration)?;
            rows.map(|row| row.map_err(StoreError::from)).collect()
        };
        async move { Ok(store.read_for(key, work).await?) }.boxed()
    }

    fn get(&self, who: &Identity, provider: &str) -> IntegrationFuture<Option<Integration>> {
        let (store, user, provider) = (self.clone(), who.user.clone(), provider.to_owned());
        let key = QueueKey::User(user.clone());
        let work = move |connection: &Connection| {
            let mut select = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM integrations WHERE user_id = ?1 AND provider = ?2"
            ))?;
            Ok(select
                .query_row([user.as_str(), &provider], integration)
                .optional()?)
        };
        async move { Ok(store.read_for(key, work).await?) }.boxed()
    }

    fn put(&self, who: &Identity, new: NewIntegration) -> IntegrationFuture<()> {
        let (store, user) = (self.clone(), who.user.clone());
        let key = QueueKey::User(user.clone());
        let work = move |connection: &Connection| {
            connection
                .prepare_cached(
                    "INSERT INTO integrations (id, user_id, provider, label, access_token_encrypted, iv, external_username, scopes, lucid_mac, created_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                     ON CONFLICT (user_id, provider) DO UPDATE SET
                       label = excluded.label, access_token_encrypted = excluded.access_token_encrypted, iv = excluded.iv,
                       external_username = excluded.external_username, scopes = excluded.scopes, lucid_mac = excluded.lucid_mac,
                       created_at = excluded.created_at",
                )?
                .execute(params![
                    Uuid::new_v4().to_string(),
                    user.as_str(),
                    new.provider,
                    new.label,
                    new.access_token_encrypted,
                    new.iv,
                    new.external_username,
                    new.scopes,
                    new.mac,
                    Utc::now().timestamp_millis(),
                ])?;
            Ok(())
        };
        async move { Ok(store.write_for(key, work).await?) }.boxed()
    }

    fn delete(&self, who: &Identity, provider: &str) -> IntegrationFuture<bool> {
        let (store, user, provider) = (self.clone(), who.user.clone(), provider.to_owned());
        let key = QueueKey::User(user.clone());
        let work = move |connection: &Connection| {
            let deleted = connection
                .prepare_cached("DELETE FROM integrations WHERE user_id = ?1 AND provider = ?2")?
                .execute([user.as_str(), &provider])?;
            Ok(deleted > 0)
        };
        async move { Ok(store.write_for(key, work).await?) }.boxed()
    }
}

fn integration(row: &Row<'_>) -> rusqlite::Result<Integration> {
    Ok(Integration {
        id: row.get(0)?,
        provider: row.get(1)?,
        label: row.get(2)?,
        access_token_encrypted: row.get(3)?,
        iv: row.get(4)?,
        external_username: row.get(5)?,
        scopes: row.get(6)?,
        mac: row.get(7)?,
        created_at: DateTime::from_timestamp_millis(row.get(8)?).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str) -> Identity {
        Identity {
            user: user.into(),
            token: None,
            project: None,
            session: None,
            admin: false,
        }
    }

    fn new(provider: &str, token: &str) -> NewIntegration {
        NewIntegration {
            provider: provider.to_owned(),
            label: "An account".to_owned(),
            access_token_encrypted: token.to_owned(),
            iv: "00".to_owned(),
            external_username: "octocat".to_owned(),
            scopes: "repo".to_owned(),
            mac: format!("mac of {token}"),
            mac_required: false,
        }
    }

    #[tokio::test]
    async fn an_account_is_its_users_alone_and_a_later_one_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (alice, bob) = (who("alice"), who("bob"));
        store.put(&alice, new("GITHUB", "aa")).await.unwrap();
        store.put(&alice, new("GITLAB", "bb")).await.unwrap();
        store.put(&bob, new("GITHUB", "cc")).await.unwrap();
        store.put(&alice, new("GITHUB", "dd")).await.unwrap();
        let of = async |who: &Identity| {
            let all = store.list(who).await.unwrap();
            let short = all.iter();
            let short = short.map(|one| (one.provider.clone(), one.access_token_encrypted.clone()));
            short.collect::<Vec<_>>()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            of(&alice).await,
            [pair("GITHUB", "dd"), pair("GITLAB", "bb")]
        );
        assert_eq!(of(&bob).await, [pair("GITHUB", "cc")]);
        let found = store.get(&alice, "GITHUB").await.unwrap().unwrap();
        assert_eq!(found.mac.as_deref(), Some("mac of dd"));
        assert!(store.get(&bob, "GITLAB").await.unwrap().is_none());
        assert!(!store.delete(&bob, "GITLAB").await.unwrap());
        assert!(store.delete(&alice, "GITHUB").await.unwrap());
        assert!(!store.delete(&alice, "GITHUB").await.unwrap());
        assert_eq!(of(&alice).await, [pair("GITLAB", "bb")]);
        assert_eq!(of(&bob).await, [pair("GITHUB", "cc")]);
    }
}
