//! The routes over the caller's git accounts: connect, list and disconnect them, list their
//! repositories, open a pull request.
//!
//! # Invariants
//!
//! - No response contains a token.
//! - Every lookup names the caller.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::problem::{Json, Path, Problem};
use super::session_request::{non_blank, non_empty};
use crate::api::identity::Authenticated;
use crate::git_providers::GitInstanceError;
use crate::git_providers::accounts::{AccountError, AccountView, PullRequestRequest};
use lucid_types::repository_url::parse_repository_url;
use lucid_types::secret::Secret;
use lucid_types::text::cut;
use lucid_types::wit::git::Repository;

/// The maximum length of a title, in characters. It has one line, and no provider accepts a longer
/// one.
const LONGEST_TITLE: usize = 255;

/// An account to connect.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connect {
    /// One of the deployment's git providers.
    #[schema(example = "github")]
    provider: String,
    /// A token of the account. It is tried before it is kept.
    #[schema(value_type = String, pattern = r"\S")]
    token: Secret,
    /// The web address of a GitLab of one's own.
    gitlab_url: Option<String>,
}

/// It is connected.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConnectedView {
    #[schema(example = "connected")]
    status: &'static str,
    provider: String,
    /// The account's name there.
    username: String,
    message: String,
}

/// The caller's accounts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IntegrationsView {
    integrations: Vec<IntegrationView>,
}

/// An account.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct IntegrationView {
    id: String,
    #[schema(example = "github")]
    provider: String,
    #[schema(required = true)]
    label: Option<String>,
    #[schema(required = true)]
    external_username: Option<String>,
    /// What the token may do, as far as the provider says; separated by commas.
    scopes: String,
    /// The web address of a server of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    url: Option<String>,
    created_at: String,
    /// Always true: what is not connected is not listed.
    connected: bool,
}

impl From<AccountView> for IntegrationView {
    fn from(account: AccountView) -> Self {
        Self {
            id: account.row.id,
            provider: account.provider,
            label: account.row.label,
            external_username: account.row.external_username,
            scopes: account.scopes,
            url: account.own_url,
            created_at: account.row.created_at.to_rfc3339(),
            connected: true,
        }
    }
}

/// It is forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DisconnectedView {
    #[schema(example = "disconnected")]
    status: &'static str,
    provider: String,
}

/// What an account reaches.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RepositoriesView {
    provider: String,
    repos: Vec<RepositoryView>,
    count: usize,
}

/// A repository.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RepositoryView {
    name: String,
    #[schema(example = "team/project")]
    full_name: String,
    /// For people.
    url: String,
    /// For git.
    clone_url: String,
    default_branch: String,
    private: bool,
    #[schema(required = true)]
    description: Option<String>,
}

impl From<Repository> for RepositoryView {
    fn from(repository: Repository) -> Self {
        Self {
            name: repository.name,
            full_name: repository.full_name,
            url: repository.web_url,
            clone_url: repository.clone_url,
            default_branch: repository.default_branch,
            private: repository.private,
            description: repository.description,
        }
    }
}

/// A change to open.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = NewChange)]
pub(super) struct PullRequestBody {
    /// The repository, as git knows it.
    #[schema(example = "https://github.com/team/project.git")]
    repo_url: String,
    /// The branch that has the work.
    #[schema(pattern = r"\S")]
    branch: String,
    /// The branch it is to go to: `main` where none is given.
    base_branch: Option<String>,
    /// One line.
    #[schema(pattern = r"\S")]
    title: String,
    /// Markdown.
    body: Option<String>,
    /// Not ready for review.
    #[serde(default)]
    draft: Option<bool>,
    /// The web address of the GitLab that the account is of.
    gitlab_url: Option<String>,
}

/// A pull request or merge request that is open.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChangeView {
    #[schema(example = "created")]
    status: &'static str,
    provider: String,
    pr_url: String,
    pr_number: u64,
    title: String,
    /// The provider's own word.
    #[schema(example = "open")]
    state: String,
    /// It was there already.
    existed: bool,
}

/// Connect a git account
///
/// The token is tried first, and kept in the place of the one before.
#[utoipa::path(
    post, path = "/api/v1/integrations", tag = "integrations", request_body = Connect,
    responses(
        (status = 200, body = ConnectedView),
        (status = 400, description = "No such provider, or the body is not JSON", body = Problem),
        (status = 401, body = Problem),
        (status = 422, description = "The provider refuses the token, or the body does not fit", body = Problem),
        (status = 502, description = "The provider fails", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn connect(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Json(wanted): Json<Connect>,
) -> Result<Json<ConnectedView>, Problem> {
    let provider = wanted.provider.trim().to_ascii_lowercase();
    let own = non_blank(wanted.gitlab_url);
    // A pasted token often includes the end of the line.
    let token = non_empty(Some(wanted.token))
        .ok_or_else(|| Problem::unprocessable("Token validation failed: there is none."))?;
    let accounts = &api.parts.accounts;
    let username = accounts
        .connect(&who, &provider, own.as_deref(), &token)
        .await?;
    Ok(Json(ConnectedView {
        status: "connected",
        message: format!("Connected as {username}."),
        provider,
        username,
    }))
}

/// List the caller's git accounts
#[utoipa::path(
    get, path = "/api/v1/integrations", tag = "integrations",
    responses(
        (status = 200, body = IntegrationsView),
        (status = 401, body = Problem),
        (status = 502, description = "The store refuses", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
) -> Result<Json<IntegrationsView>, Problem> {
    let all = api.parts.accounts.list(&who).await?;
    Ok(Json(IntegrationsView {
        integrations: all.into_iter().map(IntegrationView::from).collect(),
    }))
}

/// Forget a git account
#[utoipa::path(
    delete, path = "/api/v1/integrations/{provider}", tag = "integrations",
    params(("provider" = String, Path, description = "The git provider")),
    responses(
        (status = 200, body = DisconnectedView),
        (status = 401, body = Problem),
        (status = 404, description = "No account is connected", body = Problem),
        (status = 502, description = "The store refuses", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn disconnect(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(provider): Path<String>,
) -> Result<Json<DisconnectedView>, Problem> {
    let provider = provider.to_ascii_lowercase();
    if !api.parts.accounts.disconnect(&who, &provider).await? {
        return Err(AccountError::NotSaved(cut(&provider, 64).to_owned()).into());
    }
    Ok(Json(DisconnectedView {
        status: "disconnected",
        provider,
    }))
}

/// List the repositories that an account reaches
///
/// All of them, whatever the provider gives at once.
#[utoipa::path(
    get, path = "/api/v1/integrations/{provider}/repos", tag = "integrations",
    params(("provider" = String, Path, description = "The git provider")),
    responses(
        (status = 200, body = RepositoriesView),
        (status = 400, description = "No such provider", body = Problem),
        (status = 401, body = Problem),
        (status = 404, description = "No account is connected", body = Problem),
        (status = 409, description = "The account's row does not open, or has to be connected again", body = Problem),
        (status = 422, description = "The provider refuses the token, or its address is refused", body = Problem),
        (status = 502, description = "The provider fails", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn repositories(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(provider): Path<String>,
) -> Result<Json<RepositoriesView>, Problem> {
    let provider = provider.to_ascii_lowercase();
    let repositories = api.parts.accounts.repositories(&who, &provider).await?;
    Ok(Json(RepositoriesView {
        provider,
        count: repositories.len(),
        repos: repositories.into_iter().map(RepositoryView::from).collect(),
    }))
}

/// Open a pull request or merge request
///
/// Where an open one of the same branches is there, that is the answer.
#[utoipa::path(
    post, path = "/api/v1/integrations/{provider}/pr", tag = "integrations", request_body = PullRequestBody,
    params(("provider" = String, Path, description = "The git provider")),
    responses(
        (status = 200, body = ChangeView),
        (status = 400, description = "No such provider, or the body is not JSON", body = Problem),
        (status = 401, body = Problem),
        (status = 404, description = "No account is connected", body = Problem),
        (status = 409, description = "The account's row does not open, or has to be connected again", body = Problem),
        (status = 422, description = "The repository is on another server, or a field is missing", body = Problem),
        (status = 502, description = "The provider fails, or says no", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn open_change(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(provider): Path<String>,
    Json(wanted): Json<PullRequestBody>,
) -> Result<Json<ChangeView>, Problem> {
    let provider = provider.to_ascii_lowercase();
    let title = non_blank(Some(wanted.title));
    let head = non_blank(Some(wanted.branch));
    let (Some(title), Some(head)) = (title, head) else {
        return Err(Problem::unprocessable(
            "A change needs a `title` and a `branch`.",
        ));
    };
    let base = non_blank(wanted.base_branch).unwrap_or_else(|| "main".to_owned());
    let own = non_blank(wanted.gitlab_url);
    let change = PullRequestRequest {
        repository: parse_repository_url(&wanted.repo_url),
        head,
        base: Some(base),
        title: cut(title.lines().next().unwrap_or_default(), LONGEST_TITLE).to_owned(),
        body: wanted.body.unwrap_or_default(),
        draft: wanted.draft.unwrap_or_default(),
    };
    let accounts = &api.parts.accounts;
    let change = accounts
        .open_change(&who, &provider, own.as_deref(), change)
        .await?;
    Ok(Json(ChangeView {
        status: "created",
        provider,
        pr_url: change.web_url,
        pr_number: change.number,
        title: change.title,
        state: change.state,
        existed: change.existed,
    }))
}

impl From<AccountError> for Problem {
    fn from(error: AccountError) -> Self {
        let detail = error.sentence();
        match error {
            AccountError::Instance(GitInstanceError::Unknown { .. }) => Self::bad_request(detail),
            AccountError::Instance(GitInstanceError::Address(_))
            | AccountError::Token(_)
            | AccountError::OtherServer(_) => Self::unprocessable(detail),
            AccountError::NotSaved(_) => Self::not_found(detail),
            AccountError::Provider(_) => Self::bad_gateway(detail),
            AccountError::Undecryptable(_) | AccountError::UnconfirmedServer(_) => {
                Self::conflict(detail)
            }
            AccountError::Store(error) => error.into(),
        }
    }
}
