//! The git accounts that users connected: their tokens, and the operations made with them.
//!
//! # Invariants
//!
//! - A token is validated before it is stored, is stored encrypted, and is in no response and no
//!   log line.
//! - It goes to the server it was saved for and to no other, whatever a later request names.
//! - A row names a server of its user's own only if it has the code that this host gave it, and
//!   only for the provider that has such servers. Any other row that names a server other than the
//!   deployment's, such as another application writes or somebody changed, is not used: its token is
//!   for a server that cannot be known, so it goes nowhere.

use std::borrow::Cow;
use std::sync::Arc;

use super::account_mac::{AccountMac, RowFields};
use super::token_cipher;
use crate::git_providers::{GitInstance, GitInstanceError, GitProviders};
use lucid_store::{ChatStoreError, Integration, Integrations, NewIntegration};
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;
use lucid_types::sentence::with_advice;
use lucid_types::wit::git::{Change, NewChange, Repository};
use lucid_types::wit::types::{Error, ErrorKind};

pub use super::token_cipher::{DecryptionError, EncryptedToken, TokenCipher};

/// The separator between a token's scopes and the address of a self-hosted server, in their column.
const SEPARATOR: &str = "||";
/// The only provider with servers of users' own. Old clients send an address for any.
const OWN_SERVERS: &str = "gitlab";

/// An error of an account operation.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The provider, or the server's address, is invalid.
    #[error("{0}")]
    Instance(#[from] GitInstanceError),
    /// The token was validated and refused.
    #[error("token validation failed: {0}")]
    Token(String),
    /// The user has no account there.
    #[error("no {0} token saved")]
    NotSaved(String),
    /// The provider refused, or did not respond.
    #[error("{}", .0.message)]
    Provider(Error),
    /// The row cannot be decrypted.
    #[error(transparent)]
    Undecryptable(#[from] DecryptionError),
    /// The row names another server than the deployment's, and no account was connected to it here.
    #[error(
        "the saved {0} account names another server, but was not connected to it here, so its token is sent nowhere"
    )]
    UnconfirmedServer(String),
    /// The account is for a server other than the requested one.
    #[error("{0}")]
    OtherServer(String),
    /// The rows cannot be read or written.
    #[error(transparent)]
    Store(#[from] ChatStoreError),
}

impl AccountError {
    /// The text for the account's user: a sentence, and what to do.
    pub fn sentence(&self) -> String {
        match self {
            // Sentences already, some of them a provider's own.
            Self::Provider(_) | Self::OtherServer(_) => self.to_string(),
            other => with_advice(other, other.advice().as_deref()),
        }
    }

    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Instance(GitInstanceError::Unknown { known, .. }) => {
                let are = if known.len() == 1 { "is" } else { "are" };
                Some(format!("There {are}: {}.", known.join(", ")).into())
            }
            Self::NotSaved(_) => Some("Connect the account first.".into()),
            Self::UnconfirmedServer(_) => Some("Connect the account again.".into()),
            Self::Undecryptable(_) => {
                Some("Connect the account again, or put the old key back.".into())
            }
            Self::Instance(GitInstanceError::Address(_))
            | Self::Token(_)
            | Self::Provider(_)
            | Self::OtherServer(_)
            | Self::Store(_) => None,
        }
    }
}

/// A pull request that a user wants to open.
#[derive(Debug, Clone)]
pub struct PullRequestRequest {
    /// The repository's URL, as git uses it.
    pub repository: String,
    /// The branch with the changes.
    pub head: String,
    /// The target branch. Defaults to the repository's default branch.
    pub base: Option<String>,
    /// The title, one line.
    pub title: String,
    /// The description, in Markdown.
    pub body: String,
    /// Whether it is not ready for review.
    pub draft: bool,
}

impl PullRequestRequest {
    fn into_change(self, repository: String) -> NewChange {
        NewChange {
            repository,
            title: self.title,
            body: self.body,
            head: self.head,
            base: self.base,
            draft: self.draft,
        }
    }
}

/// An account, as its user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountView {
    /// The database row.
    pub row: Integration,
    /// The provider's name in this deployment, in lower case.
    pub provider: String,
    /// The token's scopes, as far as the provider reported them.
    pub scopes: String,
    /// The address of a self-hosted server, if the token goes there.
    pub own_url: Option<String>,
}

/// An account that is ready for operations.
struct OpenAccount {
    instance: GitInstance,
    token: Secret,
}

/// The users' git accounts. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    rows: Arc<dyn Integrations>,
    cipher: TokenCipher,
    mac: AccountMac,
    providers: Arc<dyn Fn() -> Arc<GitProviders> + Send + Sync>,
}

impl Accounts {
    /// Accounts over these rows. `providers` returns those of the current deployment.
    pub fn new(
        rows: Arc<dyn Integrations>,
        cipher: TokenCipher,
        providers: impl Fn() -> Arc<GitProviders> + Send + Sync + 'static,
    ) -> Self {
        Self {
            rows,
            mac: AccountMac::new(&cipher),
            cipher,
            providers: Arc::new(providers),
        }
    }

    /// Validates a token, and stores it in place of the previous one. Returns the account's name.
    pub async fn connect(
        &self,
        who: &Identity,
        provider: &str,
        own: Option<&str>,
        token: &Secret,
    ) -> Result<String, AccountError> {
        // An old client sends the address along, whichever provider is meant.
        let own = own.filter(|_| provider == OWN_SERVERS);
        let instance = (self.providers)().find_instance(provider, own)?;
        if !token_cipher::is_token(token.expose().as_bytes()) {
            return Err(AccountError::Token(
                "it is empty, too long, or has characters that no token has.".to_owned(),
            ));
        }
        let account = instance
            .account(token)
            .await
            .map_err(|error| match error.kind {
                ErrorKind::Unauthenticated
                | ErrorKind::Forbidden
                | ErrorKind::NotFound
                | ErrorKind::InvalidInput => AccountError::Token(error.message),
                _ => AccountError::Provider(error),
            })?;
        let sealed = self.cipher.encrypt(token);
        let server = instance.own_url();
        let server = server.map(|own| own.as_str().trim_end_matches('/'));
        let mut scopes = account.scopes.join(",");
        if let Some(server) = server {
            scopes.push_str(SEPARATOR);
            scopes.push_str(server);
        }
        let provider = provider.to_ascii_uppercase();
        let mac = self.mac.of(RowFields {
            user: who.user.as_str(),
            provider: &provider,
            server: server.unwrap_or_default(),
            token: &sealed.token,
            iv: &sealed.iv,
        });
        let new = NewIntegration {
            provider,
            label: format!("{} on {}", account.login, instance.host()),
            access_token_encrypted: sealed.token,
            iv: sealed.iv,
            external_username: account.login.clone(),
            scopes,
            mac,
            mac_required: server.is_some(),
        };
        self.rows.put(who, new).await?;
        Ok(account.login)
    }

    /// The user's accounts.
    pub async fn list(&self, who: &Identity) -> Result<Vec<AccountView>, AccountError> {
        let rows = self.rows.list(who).await?;
        let view = |row: Integration| self.view(who, row);
        Ok(rows.into_iter().map(view).collect())
    }

    /// Deletes an account. Returns false if there is none.
    pub async fn disconnect(&self, who: &Identity, provider: &str) -> Result<bool, AccountError> {
        let provider = provider.to_ascii_uppercase();
        Ok(self.rows.delete(who, &provider).await?)
    }

    /// All repositories that an account can access.
    pub async fn repositories(
        &self,
        who: &Identity,
        provider: &str,
    ) -> Result<Vec<Repository>, AccountError> {
        let account = self.account(who, provider).await?;
        let found = account.instance.repositories(&account.token).await;
        found.map_err(AccountError::Provider)
    }

    /// Opens a pull request with an account's token. `own` is the server that the client means, if
    /// given.
    pub async fn open_change(
        &self,
        who: &Identity,
        provider: &str,
        own: Option<&str>,
        wanted: PullRequestRequest,
    ) -> Result<Change, AccountError> {
        let account = self.account(who, provider).await?;
        let instance = &account.instance;
        if let Some(own) = own.filter(|_| provider == OWN_SERVERS) {
            let meant = (self.providers)().find_instance(provider, Some(own))?;
            if meant.own_url() != instance.own_url() {
                return Err(AccountError::OtherServer(format!(
                    "The saved {provider} token is for {}, and goes to no other server.",
                    instance.host()
                )));
            }
        }
        let path = instance.path_of(&wanted.repository).ok_or_else(|| {
            AccountError::OtherServer(format!(
                "That is no repository on {}, which the saved {provider} token is for.",
                instance.host()
            ))
        })?;
        let wanted = wanted.into_change(path);
        let opened = instance.open_change(&account.token, wanted).await;
        opened.map_err(AccountError::Provider)
    }

    /// Opens a session's pull request: with the session's token, else with the account that the
    /// user connected for the repository's server.
    pub async fn open_for_session(
        &self,
        who: &Identity,
        token: Option<&Secret>,
        wanted: PullRequestRequest,
    ) -> Result<Change, AccountError> {
        let providers = (self.providers)();
        let at_deployment = providers.of_repository(&wanted.repository);
        let (mut found, mut unusable) = (None, None);
        if let (Some(instance), Some(token)) = (&at_deployment, token) {
            found = Some((instance.clone(), token.clone()));
        } else {
            for row in self.rows.list(who).await? {
                let provider = row.provider.to_ascii_lowercase();
                let account = match self.opened(who, &provider, &row) {
                    Ok(account) => account,
                    Err(error) => {
                        if names_server_of(&providers, &provider, &row, &wanted.repository) {
                            unusable = Some(error);
                        }
                        continue;
                    }
                };
                if account.instance.path_of(&wanted.repository).is_some() {
                    let token = token.cloned().unwrap_or(account.token);
                    found = Some((account.instance, token));
                    break;
                }
            }
        }
        let Some((instance, token)) = found else {
            if let Some(error) = unusable {
                return Err(error);
            }
            return Err(AccountError::OtherServer(match at_deployment {
                Some(instance) => AccountError::NotSaved(instance.provider().to_owned()).sentence(),
                None => {
                    "The repository is on no server whose changes can be opened here.".to_owned()
                }
            }));
        };
        let path = instance.path_of(&wanted.repository).ok_or_else(|| {
            AccountError::OtherServer("The repository's address cannot be read.".to_owned())
        })?;
        instance
            .open_change(&token, wanted.into_change(path))
            .await
            .map_err(AccountError::Provider)
    }

    async fn account(&self, who: &Identity, provider: &str) -> Result<OpenAccount, AccountError> {
        // An unknown provider is reported before a missing token.
        (self.providers)().find_instance(provider, None)?;
        let row = self.rows.get(who, &provider.to_ascii_uppercase()).await?;
        let row = row.ok_or_else(|| AccountError::NotSaved(provider.to_owned()))?;
        self.opened(who, provider, &row)
    }

    fn opened(
        &self,
        who: &Identity,
        provider: &str,
        row: &Integration,
    ) -> Result<OpenAccount, AccountError> {
        let providers = (self.providers)();
        let own = self.own_server(who, row);
        let instance = providers.find_instance(provider, own)?;
        if own.is_none() && names_another_server(&providers, provider, row) {
            tracing::warn!(
                integration = row.id,
                "a git account names a server without having been connected to it here, so its token is sent nowhere"
            );
            return Err(AccountError::UnconfirmedServer(provider.to_owned()));
        }
        let token = self.cipher.decrypt(&EncryptedToken {
            token: row.access_token_encrypted.clone(),
            iv: row.iv.clone(),
        });
        if token.is_err() {
            tracing::error!(
                integration = row.id,
                "a saved git token does not open: ENCRYPTION_KEY is not the one it was saved with, or its row was changed"
            );
        }
        Ok(OpenAccount {
            instance,
            token: token?,
        })
    }

    /// The user's own server that a row names, if this host wrote that row for this user.
    fn own_server<'a>(&self, who: &Identity, row: &'a Integration) -> Option<&'a str> {
        let (_, own) = parts(row.scopes.as_deref().unwrap_or_default());
        let provider = row.provider.to_ascii_uppercase();
        let fields = RowFields {
            user: who.user.as_str(),
            provider: &provider,
            server: own.unwrap_or_default(),
            token: &row.access_token_encrypted,
            iv: &row.iv,
        };
        let is_ours = provider.eq_ignore_ascii_case(OWN_SERVERS)
            && row
                .mac
                .as_deref()
                .is_some_and(|mac| self.mac.verify(fields, mac));
        own.filter(|_| is_ours)
    }

    fn view(&self, who: &Identity, row: Integration) -> AccountView {
        let (scopes, _) = parts(row.scopes.as_deref().unwrap_or_default());
        AccountView {
            provider: row.provider.to_ascii_lowercase(),
            scopes: scopes.to_owned(),
            own_url: self.own_server(who, &row).map(str::to_owned),
            row,
        }
    }
}

/// Whether a row names a server other than the deployment's. An address that is none counts as
/// another server.
fn names_another_server(providers: &GitProviders, provider: &str, row: &Integration) -> bool {
    let (_, own) = parts(row.scopes.as_deref().unwrap_or_default());
    own.is_some_and(|own| {
        let named = providers.find_instance(provider, Some(own));
        named.map_or(true, |instance| instance.own_url().is_some())
    })
}

/// Whether a repository is on the server that a row names, or on the deployment's of that provider.
fn names_server_of(
    providers: &GitProviders,
    provider: &str,
    row: &Integration,
    repository: &str,
) -> bool {
    let (_, own) = parts(row.scopes.as_deref().unwrap_or_default());
    [None, own].into_iter().any(|server| {
        let instance = providers.find_instance(provider, server);
        instance.is_ok_and(|instance| instance.path_of(repository).is_some())
    })
}

/// Splits the column into a token's scopes and the server's address.
fn parts(scopes: &str) -> (&str, Option<&str>) {
    match scopes.split_once(SEPARATOR) {
        Some((scopes, own)) => (scopes, Some(own).filter(|own| !own.trim().is_empty())),
        None => (scopes, None),
    }
}
