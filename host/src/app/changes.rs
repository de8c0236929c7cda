//! Owns how a session's change is opened: with the session's own token, or its user's account.
//!
//! What always holds: what goes wrong is a sentence, and no token is in it.

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::auth::{Identity, UserId};
use crate::integrations::{Accounts, WantedChange};
use crate::session::{ChangeOpened, ChangeRequest, Changes};

/// Opens changes for sessions.
pub(super) struct Opener(pub(super) Accounts);

impl Changes for Opener {
    fn open(&self, request: ChangeRequest) -> BoxFuture<'static, Result<ChangeOpened, String>> {
        let accounts = self.0.clone();
        async move {
            // For the user, who is not here: the store is asked as by a server that acts for them.
            let who = Identity {
                user: UserId::from(request.user),
                token: None,
                project: None,
                session: None,
                admin: false,
            };
            let wanted = WantedChange {
                repository: request.repository,
                head: request.branch,
                base: request.base,
                title: request.title,
                body: request.body,
                draft: request.draft,
            };
            let opened = accounts.open_for_session(&who, request.token.as_ref(), wanted);
            let change = opened.await.map_err(|error| error.to_string())?;
            Ok(ChangeOpened {
                number: change.number,
                title: change.title,
                url: change.web_url,
                existed: change.existed,
            })
        }
        .boxed()
    }
}
