//! Git accounts in rows that others write too: where their tokens go.

use std::collections::BTreeMap;

use chrono::Utc;
use futures::FutureExt as _;
use parking_lot::Mutex as Lock;

use super::*;
use crate::git_providers::accounts::{
    AccountError, Accounts, EncryptedToken, PullRequestRequest, TokenCipher,
};
use lucid_store::{
    ChatStoreError, Integration, IntegrationFuture, Integrations, MissingSchema, NewIntegration,
};
use lucid_types::identity::Identity;

/// Rows that a test can change behind the host's back, as whoever may write them can.
#[derive(Default)]
struct SharedRows {
    rows: Lock<BTreeMap<(String, String), Integration>>,
    /// Whether the column of the code is missing.
    without_macs: bool,
}

impl SharedRows {
    fn row(&self, user: &str, provider: &str) -> Integration {
        self.rows.lock()[&(user.to_owned(), provider.to_owned())].clone()
    }

    fn write(&self, user: &str, row: Integration) {
        let key = (user.to_owned(), row.provider.clone());
        self.rows.lock().insert(key, row);
    }

    fn change(&self, user: &str, provider: &str, change: impl FnOnce(&mut Integration)) {
        let mut row = self.row(user, provider);
        change(&mut row);
        self.write(user, row);
    }
}

impl Integrations for SharedRows {
    fn list(&self, who: &Identity) -> IntegrationFuture<Vec<Integration>> {
        let rows = self.rows.lock();
        let own = rows
            .iter()
            .filter(|((user, _), _)| user == who.user.as_str());
        let own: Vec<_> = own.map(|(_, row)| row.clone()).collect();
        async move { Ok(own) }.boxed()
    }

    fn get(&self, who: &Identity, provider: &str) -> IntegrationFuture<Option<Integration>> {
        let key = (who.user.to_string(), provider.to_owned());
        let row = self.rows.lock().get(&key).cloned();
        async move { Ok(row) }.boxed()
    }

    fn put(&self, who: &Identity, new: NewIntegration) -> IntegrationFuture<()> {
        if self.without_macs && new.mac_required {
            let lack = MissingSchema::Column(Some(("integrations", "lucid_mac")));
            return async move { Err(ChatStoreError::Schema(lack)) }.boxed();
        }
        let mac = (!self.without_macs).then_some(new.mac);
        let row = Integration {
            id: "1".to_owned(),
            provider: new.provider,
            label: Some(new.label),
            access_token_encrypted: new.access_token_encrypted,
            iv: new.iv,
            external_username: Some(new.external_username),
            scopes: Some(new.scopes),
            mac,
            created_at: Utc::now(),
        };
        self.write(who.user.as_str(), row);
        async move { Ok(()) }.boxed()
    }

    fn delete(&self, who: &Identity, provider: &str) -> IntegrationFuture<bool> {
        let key = (who.user.to_string(), provider.to_owned());
        let deleted = self.rows.lock().remove(&key).is_some();
        async move { Ok(deleted) }.boxed()
    }
}

/// The deployment's own servers, a user's, and one of somebody who wants tokens.
struct World {
    deployment: Server,
    house: Server,
    evil: Server,
    rows: Arc<SharedRows>,
    accounts: Accounts,
}

impl World {
    async fn new() -> Self {
        Self::over(SharedRows::default()).await
    }

    async fn over(rows: SharedRows) -> Self {
        let server = async || {
            Server::start(|asked, _| match asked.uri.ends_with("/user") {
                true => answer(200, &json!({"id": 1, "login": "ada", "username": "ada"})),
                false => answer(200, &json!([])),
            })
            .await
        };
        let (deployment, house, evil) = (server().await, server().await, server().await);
        let (github, gitlab) = (
            format!("{}/gh", deployment.url),
            format!("{}/gl", deployment.url),
        );
        let all = [
            ("github", Some(github.as_str())),
            ("gitlab", Some(gitlab.as_str())),
        ];
        let all = Arc::new(providers(true, &all).await);
        let rows = Arc::new(rows);
        Self {
            deployment,
            house,
            evil,
            accounts: Accounts::new(rows.clone(), cipher(), move || all.clone()),
            rows,
        }
    }

    async fn connect(&self, user: &str, provider: &str, own: Option<&str>) {
        let (who, token) = (who(user), token());
        let connected = self.accounts.connect(&who, provider, own, &token);
        assert_eq!(connected.await.unwrap(), "ada");
    }

    /// How often each server saw the token: the deployment's, the user's and the evil one.
    fn seen(&self) -> [usize; 3] {
        [&self.deployment, &self.house, &self.evil].map(|server| {
            let seen = server.seen();
            let with = seen
                .iter()
                .filter(|asked| asked.authorization.contains(TOKEN));
            with.count()
        })
    }

    /// How often each of them sees it while an account's repositories are listed.
    async fn asked(&self, user: &str, provider: &str) -> [usize; 3] {
        let before = self.seen();
        let found = self.accounts.repositories(&who(user), provider).await;
        assert_eq!(found.unwrap(), []);
        let mut asked = self.seen();
        for (asked, before) in asked.iter_mut().zip(before) {
            *asked -= before;
        }
        asked
    }

    /// An account whose token is sent nowhere, which its user reads. `why` is for the test's reader.
    async fn is_refused(&self, user: &str, provider: &str, why: &str) {
        let before = self.seen();
        let found = self.accounts.repositories(&who(user), provider).await;
        let refused = found.expect_err(why);
        assert!(
            matches!(refused, AccountError::UnconfirmedServer(_)),
            "{why}: {refused:?}"
        );
        assert_eq!(
            refused.sentence(),
            format!(
                "The saved {provider} account names another server, but was not connected to it here, \
                 so its token is sent nowhere. Connect the account again."
            )
        );
        assert_eq!(self.seen(), before, "{why}");
    }
}

const DEPLOYMENTS: [usize; 3] = [1, 0, 0];
const OWN: [usize; 3] = [0, 1, 0];

fn cipher() -> TokenCipher {
    TokenCipher::new(&Secret::new("the key of the deployment"))
}

fn who(user: &str) -> Identity {
    Identity {
        user: user.into(),
        token: None,
        project: None,
        session: None,
        admin: false,
    }
}

/// A row as another application writes it.
fn foreign_row(provider: &str, server: Option<&str>) -> Integration {
    let EncryptedToken { token, iv } = cipher().encrypt(&token());
    Integration {
        id: "2".to_owned(),
        provider: provider.to_owned(),
        label: None,
        access_token_encrypted: token,
        iv,
        external_username: None,
        scopes: server.map(|server| format!("api||{server}")),
        mac: None,
        created_at: Utc::now(),
    }
}

#[tokio::test]
async fn an_account_on_a_server_of_ones_own_is_used_there() {
    let world = World::new().await;
    world.connect("ada", "gitlab", Some(&world.house.url)).await;
    assert!(world.rows.row("ada", "GITLAB").mac.is_some());
    assert_eq!(world.asked("ada", "gitlab").await, OWN);
    let listed = world.accounts.list(&who("ada")).await.unwrap();
    assert_eq!(listed[0].own_url.as_deref(), Some(world.house.url.as_str()));
}

#[tokio::test]
async fn a_row_whose_server_somebody_changed_sends_its_token_nowhere() {
    let world = World::new().await;
    for own in [None, Some(world.house.url.as_str())] {
        world.connect("ada", "gitlab", own).await;
        for scopes in [
            format!("||{}", world.evil.url),
            format!("api||{}", world.evil.url),
            format!("||{}||{}", world.house.url, world.evil.url),
            "||no address at all".to_owned(),
            "||http://169.254.169.254/".to_owned(),
        ] {
            world
                .rows
                .change("ada", "GITLAB", |row| row.scopes = Some(scopes.clone()));
            world.is_refused("ada", "gitlab", &scopes).await;
            let listed = world.accounts.list(&who("ada")).await.unwrap();
            assert_eq!(listed[0].own_url, None, "{scopes}");
        }
    }
}

#[tokio::test]
async fn a_code_that_was_removed_or_made_up_is_as_good_as_none() {
    let world = World::new().await;
    for mac in [
        None,
        Some(String::new()),
        Some("00".repeat(32)),
        Some("nonsense".to_owned()),
    ] {
        world.connect("ada", "gitlab", Some(&world.house.url)).await;
        world
            .rows
            .change("ada", "GITLAB", |row| row.mac = mac.clone());
        world.is_refused("ada", "gitlab", &format!("{mac:?}")).await;
    }
}

#[tokio::test]
async fn a_row_with_another_rows_token_sends_it_nowhere() {
    let world = World::new().await;
    world.connect("ada", "gitlab", Some(&world.evil.url)).await;
    let other = foreign_row("GITLAB", None);
    world.rows.change("ada", "GITLAB", |row| {
        row.access_token_encrypted = other.access_token_encrypted;
        row.iv = other.iv;
    });
    world.is_refused("ada", "gitlab", "another's token").await;
}

#[tokio::test]
async fn a_row_that_was_moved_to_another_user_or_provider_names_no_server_there() {
    let world = World::new().await;
    world.connect("ada", "gitlab", Some(&world.house.url)).await;
    let row = world.rows.row("ada", "GITLAB");
    world.rows.write("eve", row.clone());
    world.is_refused("eve", "gitlab", "another user").await;
    let moved = Integration {
        provider: "GITHUB".to_owned(),
        ..row
    };
    world.rows.write("ada", moved);
    world.is_refused("ada", "github", "another provider").await;
    assert_eq!(world.asked("ada", "gitlab").await, OWN);
}

#[tokio::test]
async fn github_has_no_server_of_a_users_own_whatever_its_row_says() {
    let world = World::new().await;
    world.connect("ada", "github", Some(&world.evil.url)).await;
    assert_eq!(world.rows.row("ada", "GITHUB").scopes.as_deref(), Some(""));
    assert_eq!(world.asked("ada", "github").await, DEPLOYMENTS);
    // Also with a code that is right for it, which this host makes for nobody.
    let mut row = foreign_row("GITHUB", Some(&world.evil.url));
    let fields = account_mac::RowFields {
        user: "ada",
        provider: "GITHUB",
        server: &world.evil.url,
        token: &row.access_token_encrypted,
        iv: &row.iv,
    };
    row.mac = Some(account_mac::AccountMac::new(&cipher()).of(fields));
    world.rows.write("ada", row);
    world.is_refused("ada", "github", "no such servers").await;
}

#[tokio::test]
async fn a_row_of_another_application_is_used_on_the_deployments_own_server() {
    let world = World::new().await;
    let own = format!("{}/gl/", world.deployment.url);
    for server in [None, Some(own.as_str())] {
        world.rows.write("ada", foreign_row("GITLAB", server));
        assert_eq!(
            world.asked("ada", "gitlab").await,
            DEPLOYMENTS,
            "{server:?}"
        );
    }
    let row = foreign_row("GITLAB", Some(&world.house.url));
    world.rows.write("ada", row);
    world.is_refused("ada", "gitlab", "a foreign server").await;
    // Such an application replaces the token in a row of this host's, and leaves the code.
    world.connect("ada", "gitlab", None).await;
    let other = foreign_row("GITLAB", None);
    world.rows.change("ada", "GITLAB", |row| {
        row.access_token_encrypted = other.access_token_encrypted;
        row.iv = other.iv;
        row.scopes = None;
    });
    assert_eq!(world.asked("ada", "gitlab").await, DEPLOYMENTS);
}

#[tokio::test]
async fn whoever_needs_the_server_that_is_not_asked_reads_how_to_get_it_back_and_does() {
    let world = World::new().await;
    let row = foreign_row("GITLAB", Some(&world.house.url));
    world.rows.write("ada", row);
    let wanted = |repository: &str| PullRequestRequest {
        repository: repository.to_owned(),
        head: "lucid/fix".to_owned(),
        base: None,
        title: "Fix".to_owned(),
        body: String::new(),
        draft: false,
    };
    let at_house = wanted(&format!("{}/team/project", world.house.url));
    let ada = who("ada");
    let (accounts, own) = (&world.accounts, Some(world.house.url.as_str()));
    let at_deployment = wanted(&format!("{}/gl/team/project", world.deployment.url));
    for (server, change) in [(own, &at_house), (None, &at_house), (None, &at_deployment)] {
        let asked = accounts.open_change(&ada, "gitlab", server, change.clone());
        let of_session = accounts.open_for_session(&ada, None, change.clone());
        for refused in [asked.await.unwrap_err(), of_session.await.unwrap_err()] {
            assert!(
                matches!(refused, AccountError::UnconfirmedServer(_)),
                "{refused:?}"
            );
            let said = refused.sentence();
            assert!(said.ends_with("Connect the account again."), "{said}");
        }
    }
    // A repository elsewhere has nothing to do with that account.
    let elsewhere = wanted(&format!("{}/team/project", world.evil.url));
    let refused = accounts.open_for_session(&ada, None, elsewhere).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, AccountError::OtherServer(_)),
        "{refused:?}"
    );
    assert_eq!(world.seen(), [0, 0, 0]);
    world.connect("ada", "gitlab", own).await;
    assert_eq!(world.asked("ada", "gitlab").await, OWN);
}

#[tokio::test]
async fn a_store_without_the_column_keeps_accounts_on_the_deployments_servers() {
    let world = World::over(SharedRows {
        without_macs: true,
        ..SharedRows::default()
    })
    .await;
    world.connect("ada", "gitlab", None).await;
    assert_eq!(world.asked("ada", "gitlab").await, DEPLOYMENTS);
    let ada = who("ada");
    let own = Some(world.house.url.as_str());
    let refused = world.accounts.connect(&ada, "gitlab", own, &token()).await;
    let said = refused.unwrap_err().sentence();
    assert!(said.contains("integrations.lucid_mac"), "{said}");
    // What was there before is still there.
    assert_eq!(world.asked("ada", "gitlab").await, DEPLOYMENTS);
}
