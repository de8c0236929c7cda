//! A client's request for a session: the same members over REST and in the WebSocket's first
//! message.
//!
//! # Invariants
//!
//! - A member that is `null` or blank counts as absent.
//! - The session's user is never read from here (`userId` is not even looked at).

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use lucid_session::{NewSession, OpenChange};
use lucid_types::identity::Identity;
use lucid_types::secret::Secret;

/// What a session that is asked for should be.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionRequest {
    /// What to do.
    #[schema(
        required,
        nullable = false,
        pattern = r"\S",
        example = "Fix the failing test"
    )]
    task: Option<String>,
    /// A repository to clone into the workspace. It may hold a credential, so it is printed as little as
    /// one.
    #[schema(value_type = Option<String>)]
    repo_url: Option<Secret>,
    /// A token for that repository. It never reaches the sandbox.
    #[schema(value_type = Option<String>)]
    git_token: Option<Secret>,
    /// The branch to check out.
    branch: Option<String>,
    /// The name that commits are made under.
    git_user_name: Option<String>,
    /// The address that commits are made under.
    git_user_email: Option<String>,
    /// The project this belongs to.
    project_id: Option<String>,
    /// The provider of the model.
    #[serde(rename = "model_provider")]
    provider: Option<String>,
    #[serde(rename = "modelProvider")]
    provider_too: Option<String>,
    /// The model, of those that the deployment offers. With no provider named, also as
    /// `provider/model`.
    model: Option<String>,
    /// The most tokens the session may use; the deployment's own limit holds as well.
    #[serde(default, deserialize_with = "tokens")]
    #[schema(minimum = 0, maximum = 9_007_199_254_740_991_u64)]
    token_limit: Option<u64>,
    /// The most the session may cost, in US dollars; the deployment's own limit holds as well.
    #[serde(default, deserialize_with = "dollars")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000_000, example = 2.5)]
    cost_limit: Option<u64>,
    /// The user's own key for that provider.
    #[serde(rename = "api_key")]
    #[schema(value_type = Option<String>)]
    api_key: Option<Secret>,
    #[serde(rename = "apiKey")]
    #[schema(value_type = Option<String>)]
    api_key_too: Option<Secret>,
    /// The policy, where not the deployment's default.
    policy: Option<String>,
    /// Whether a pull request or merge request is opened of the branch that was pushed, when a task
    /// succeeds: `ready` for review, or as a `draft`.
    open_change: Option<OpenChange>,
}

impl SessionRequest {
    /// The task, if there is one.
    pub(super) fn task(&self) -> Option<&str> {
        self.task.as_deref().filter(|task| !task.trim().is_empty())
    }

    /// The requested repository.
    pub(super) fn repo_url(&self) -> Option<&str> {
        self.repo_url
            .as_ref()
            .map(|url| url.expose().trim())
            .filter(|url| !url.is_empty())
    }

    /// The project: the requested one, else the token's.
    pub(super) fn project_for(&self, who: &Identity) -> Option<String> {
        non_blank(self.project_id.clone()).or_else(|| who.project.clone())
    }

    /// The session to create. `None` if the task is missing.
    pub(super) fn for_user(self, who: &Identity) -> Option<NewSession> {
        Some(NewSession {
            user: who.user.clone(),
            project_id: self.project_for(who),
            task: self.task()?.to_owned(),
            repo_url: self.repo_url().map(str::to_owned),
            git_token: non_empty(self.git_token),
            branch: non_blank(self.branch),
            git_user_name: non_blank(self.git_user_name),
            git_user_email: non_blank(self.git_user_email),
            provider: non_blank(self.provider).or_else(|| non_blank(self.provider_too)),
            model: non_blank(self.model),
            token_limit: self.token_limit,
            cost_limit: self.cost_limit,
            api_key: non_empty(self.api_key).or_else(|| non_empty(self.api_key_too)),
            policy: non_blank(self.policy),
            open_change: self.open_change,
        })
    }
}

/// The largest integer that every JSON parser reads exactly.
const MOST_TOKENS: u64 = (1 << 53) - 1;

fn tokens<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let tokens = Option::<u64>::deserialize(from)?;
    if tokens.is_some_and(|tokens| tokens > MOST_TOKENS) {
        return Err(D::Error::custom("not a number of tokens"));
    }
    Ok(tokens)
}

/// Reads dollars as millionths.
fn dollars<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let Some(dollars) = Option::<f64>::deserialize(from)? else {
        return Ok(None);
    };
    if !(0.0..=1e9).contains(&dollars) {
        return Err(D::Error::custom("not a number of dollars"));
    }
    Ok(Some((dollars * 1e6).round() as u64))
}

/// A text, unless it is blank.
pub(super) fn non_blank(text: Option<String>) -> Option<String> {
    let text = text?;
    let trimmed = text.trim();
    (!trimmed.is_empty()).then(|| trimmed.to_owned())
}

/// A secret, unless it is empty.
pub(super) fn non_empty(secret: Option<Secret>) -> Option<Secret> {
    let secret = secret?;
    let trimmed = secret.expose().trim();
    (!trimmed.is_empty()).then(|| Secret::new(trimmed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(project: Option<&str>) -> Identity {
        Identity {
            user: "u1".into(),
            token: None,
            project: project.map(str::to_owned),
            session: None,
            admin: false,
        }
    }

    fn asked(json: &str) -> SessionRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn null_and_blank_members_count_as_absent() {
        let request = asked(
            r#"{"task":"do","repoUrl":"","gitToken":null,"branch":" ","model_provider":"","api_key":"","policy":null}"#,
        );
        let new = request.for_user(&who(None)).unwrap();
        assert_eq!(
            (new.task.as_str(), new.repo_url, new.branch, new.provider),
            ("do", None, None, None)
        );
        assert!(new.git_token.is_none() && new.api_key.is_none() && new.policy.is_none());
    }

    #[test]
    fn a_request_without_a_task_gives_no_session() {
        for json in ["{}", r#"{"task":null}"#, r#"{"task":"  "}"#] {
            assert!(asked(json).for_user(&who(None)).is_none(), "{json}");
        }
    }

    #[test]
    fn provider_and_key_are_taken_under_both_names() {
        for json in [
            r#"{"task":"t","modelProvider":"openai","apiKey":"k"}"#,
            r#"{"task":"t","model_provider":"openai","api_key":"k"}"#,
            r#"{"task":"t","modelProvider":"other","model_provider":"openai","apiKey":"","api_key":"k"}"#,
        ] {
            let new = asked(json).for_user(&who(None)).unwrap();
            assert_eq!(new.provider.as_deref(), Some("openai"));
            assert_eq!(new.api_key.unwrap().expose(), "k");
        }
    }

    #[test]
    fn a_model_and_limits_are_taken_and_a_cost_is_in_dollars() {
        let request = asked(r#"{"task":"t","model":" m ","tokenLimit":9000,"costLimit":0.25}"#);
        let new = request.for_user(&who(None)).unwrap();
        assert_eq!(new.model.as_deref(), Some("m"));
        assert_eq!(
            (new.token_limit, new.cost_limit),
            (Some(9000), Some(250_000))
        );
        let request = asked(r#"{"task":"t","model":"","tokenLimit":null,"costLimit":null}"#);
        let new = request.for_user(&who(None)).unwrap();
        assert_eq!(
            (new.model, new.token_limit, new.cost_limit),
            (None, None, None)
        );
        for wrong in [
            r#"{"costLimit":-1}"#,
            r#"{"costLimit":"1"}"#,
            r#"{"tokenLimit":1.5}"#,
            r#"{"tokenLimit":-1}"#,
            r#"{"tokenLimit":9007199254740992}"#,
        ] {
            assert!(
                serde_json::from_str::<SessionRequest>(wrong).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_change_is_opened_only_where_it_was_asked_for() {
        for (json, wish) in [
            (r#"{"task":"t"}"#, None),
            (r#"{"task":"t","openChange":null}"#, None),
            (
                r#"{"task":"t","openChange":"ready"}"#,
                Some(OpenChange::Ready),
            ),
            (
                r#"{"task":"t","openChange":"draft"}"#,
                Some(OpenChange::Draft),
            ),
        ] {
            let new = asked(json).for_user(&who(None)).unwrap();
            assert_eq!(new.open_change, wish, "{json}");
        }
        assert!(serde_json::from_str::<SessionRequest>(r#"{"openChange":true}"#).is_err());
    }

    #[test]
    fn the_user_is_the_one_who_asked_whatever_the_body_says() {
        let new = asked(r#"{"task":"t","userId":"root","token":"x"}"#)
            .for_user(&who(None))
            .unwrap();
        assert_eq!(new.user.as_str(), "u1");
    }

    #[test]
    fn the_tokens_project_stands_in_for_a_missing_one() {
        assert_eq!(
            asked("{}").project_for(&who(Some("p1"))).as_deref(),
            Some("p1")
        );
        assert_eq!(
            asked(r#"{"projectId":"p2"}"#)
                .project_for(&who(Some("p1")))
                .as_deref(),
            Some("p2")
        );
    }

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let request = asked(
            r#"{"task":"t","repoUrl":"https://hidden@host/x.git","gitToken":"ghp_hidden","apiKey":"sk_hidden"}"#,
        );
        assert!(!format!("{request:?}").contains("hidden"));
    }
}
