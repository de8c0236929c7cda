//! Opens a session's pull request, with the session's own token or its user's account.
//!
//! # Invariants
//!
//! - A failure is a sentence, and no token is in it.
//! - The user is not connected when a pull request is opened: the store is accessed by the server
//!   on their behalf, or, if the deployment has no key for that, with the token the user last sent.

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::accounts::{AccountError, Accounts, PullRequestRequest};
use lucid_session::{NewPullRequest, OpenedPullRequest, PullRequestError, PullRequests};
use lucid_store::{ChatStoreError, Outbox};
use lucid_types::identity::Identity;

/// Opens pull requests for sessions.
pub(crate) struct PullRequestOpener {
    pub(crate) accounts: Accounts,
    /// Holds the tokens of recently connected users.
    pub(crate) outbox: Option<Outbox>,
}

impl PullRequests for PullRequestOpener {
    fn open(
        &self,
        request: NewPullRequest,
    ) -> BoxFuture<'static, Result<OpenedPullRequest, PullRequestError>> {
        let (accounts, outbox) = (self.accounts.clone(), self.outbox.clone());
        async move {
            let mut who = Identity {
                user: request.user,
                token: None,
                project: None,
                session: None,
                admin: false,
            };
            let wanted = PullRequestRequest {
                repository: request.repository,
                head: request.branch,
                base: request.base,
                title: request.title,
                body: request.body,
                draft: request.draft,
            };
            let own = request.token.as_ref();
            let mut opened = accounts.open_for_session(&who, own, wanted.clone()).await;
            // Nothing was sent yet.
            if let Err(AccountError::Store(ChatStoreError::NoServiceKey)) = opened {
                who.token = outbox.and_then(|outbox| outbox.token_of(&who.user));
                if who.token.is_some() {
                    opened = accounts.open_for_session(&who, own, wanted).await;
                }
            }
            let change = opened.map_err(|error| PullRequestError::Failed {
                sentence: error.sentence(),
                cause: error.into(),
            })?;
            Ok(OpenedPullRequest {
                number: change.number,
                title: change.title,
                url: change.web_url,
                existed: change.existed,
            })
        }
        .boxed()
    }
}
