//! The routes over stored chats: list, read, rename and delete.
//!
//! # Invariants
//!
//! - Every lookup names the caller, so another user's chat is indistinguishable from one that never
//!   existed.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::problem::{Json, Path, Problem, Query};
use super::sessions::UsageView;
use crate::api::identity::Authenticated;
use lucid_session::UserLogExceeded;
use lucid_store::{Chat, ChatMessage, ChatStoreError, Principal};
use lucid_types::sentence::sentence;
use lucid_types::user_work::UserWorkError;

/// A chat of so many bytes is made an answer of where that holds up no other request.
const LARGE: usize = 256 << 10;

/// Which chats are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// How many, 1 to 100.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: i64,
    /// How many to pass over.
    #[param(minimum = 0, maximum = 4_294_967_295_u64, default = 0)]
    offset: i64,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self {
            limit: 50,
            offset: 0,
        }
    }
}

impl PageQuery {
    fn checked(&self) -> Result<(u32, u32), Problem> {
        let limit = u32::try_from(self.limit)
            .ok()
            .filter(|limit| (1..=100).contains(limit));
        let limit = limit.ok_or_else(|| {
            Problem::unprocessable("The query does not fit: limit must be from 1 to 100.")
        })?;
        let offset = u32::try_from(self.offset).map_err(|_| {
            Problem::unprocessable(format!(
                "The query does not fit: offset must be from 0 to {}.",
                u32::MAX
            ))
        })?;
        Ok((limit, offset))
    }
}

/// The caller's chats.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatsView {
    chats: Vec<ChatView>,
}

/// A chat.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ChatView {
    id: String,
    #[schema(required = true)]
    agent_session_id: Option<String>,
    #[schema(required = true)]
    project_id: Option<String>,
    title: String,
    #[schema(required = true)]
    model_provider: Option<String>,
    /// Its session is alive.
    is_active: bool,
    /// What its session's model calls used; absent where it called no model.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    usage: Option<UsageView>,
    created_at: String,
    updated_at: String,
}

impl From<Chat> for ChatView {
    fn from(chat: Chat) -> Self {
        Self {
            id: chat.id,
            agent_session_id: chat.agent_session_id,
            project_id: chat.project_id,
            title: chat.title,
            model_provider: chat.model_provider,
            is_active: chat.is_active,
            usage: (chat.totals.calls > 0).then(|| UsageView::from(&chat.totals)),
            created_at: chat.created_at.to_rfc3339(),
            updated_at: chat.updated_at.to_rfc3339(),
        }
    }
}

/// A chat with what was said in it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct WholeChatView {
    #[serde(flatten)]
    chat: ChatView,
    /// In the order written.
    messages: Vec<MessageView>,
}

/// A line of a chat.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct MessageView {
    id: String,
    #[schema(example = "assistant")]
    role: String,
    content: String,
    #[schema(required = true, example = "CmdRunAction")]
    event_type: Option<String>,
    /// What else there is to it.
    #[schema(required = true, value_type = Option<Object>)]
    metadata_json: Option<Box<RawValue>>,
    created_at: String,
}

impl From<ChatMessage> for MessageView {
    fn from(message: ChatMessage) -> Self {
        Self {
            id: message.id,
            role: message.role,
            content: message.content,
            event_type: message.event_type,
            // As it was written; what is no JSON was never shown to anybody.
            metadata_json: message
                .metadata_json
                .and_then(|text| RawValue::from_string(text).ok()),
            created_at: message.created_at.to_rfc3339(),
        }
    }
}

/// List the caller's chats
///
/// Newest first, by `updatedAt`.
#[utoipa::path(
    get, path = "/api/v1/chats", tag = "chats", params(PageQuery),
    responses((status = 200, body = ChatsView), (status = 401, body = Problem), (status = 502, description = "The store refuses", body = Problem), (status = 503, description = "The store cannot be reached", body = Problem), (status = 422, body = Problem)),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Query(page): Query<PageQuery>,
) -> Result<Json<ChatsView>, Problem> {
    let (limit, offset) = page.checked()?;
    let chats = api
        .parts
        .chats
        .list(&Principal::from(&who), limit, offset)
        .await?;
    Ok(Json(ChatsView {
        chats: chats.into_iter().map(ChatView::from).collect(),
    }))
}

/// Read a chat
///
/// The id is a chat's, not a session's.
#[utoipa::path(
    get, path = "/api/v1/chats/{id}", tag = "chats", params(("id" = String, Path, description = "The chat")),
    responses((status = 200, body = WholeChatView), (status = 401, body = Problem), (status = 502, description = "The store refuses", body = Problem), (status = 503, description = "The store cannot be reached", body = Problem), (status = 404, body = Problem), (status = 429, description = "Too many of the caller's requests wait already", body = Problem)),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn get(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    // From before it is read until it is an answer, since it may be large.
    let turn = api.parts.chat_reads.slot(&who.user).await?;
    let (chat, messages) = api
        .parts
        .chats
        .get(&Principal::from(&who), &id)
        .await?
        .ok_or_else(no_chat)?;
    let bytes: usize = messages.iter().map(size_of_message).sum();
    let write = move || {
        Json(WholeChatView {
            chat: chat.into(),
            messages: messages.into_iter().map(MessageView::from).collect(),
        })
        .into_response()
    };
    if bytes < LARGE {
        return Ok(write());
    }
    turn.run(write)
        .await
        .map_err(|error| Problem::from(UserWorkError::from(error)))
}

/// About how many bytes a message has.
fn size_of_message(message: &ChatMessage) -> usize {
    message.content.len() + message.metadata_json.as_ref().map_or(0, String::len)
}

/// A new title.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct NewTitle {
    #[schema(required, nullable = false, pattern = r"\S")]
    title: Option<String>,
}

/// A chat that was renamed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RenamedView {
    #[schema(example = "updated")]
    status: &'static str,
    id: String,
    title: String,
}

/// Rename a chat
#[utoipa::path(
    patch, path = "/api/v1/chats/{id}", tag = "chats", params(("id" = String, Path, description = "The chat")),
    request_body = NewTitle,
    responses(
        (status = 200, body = RenamedView),
        (status = 400, description = "No title, or the body is not JSON", body = Problem),
        (status = 401, body = Problem), (status = 502, description = "The store refuses", body = Problem), (status = 503, description = "The store cannot be reached", body = Problem),
        (status = 404, body = Problem),
        (status = 429, description = "The caller has written as much as they may", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn rename(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
    Json(new): Json<NewTitle>,
) -> Result<Json<RenamedView>, Problem> {
    let title = new
        .title
        .as_deref()
        .map(str::trim)
        .filter(|title| !title.is_empty());
    let title = title.ok_or_else(|| Problem::bad_request("Missing 'title'"))?;
    api.parts.sessions.admit_change(&who.user, title.len())?;
    let title = api
        .parts
        .chats
        .rename(&Principal::from(&who), &id, title)
        .await?
        .ok_or_else(no_chat)?;
    Ok(Json(RenamedView {
        status: "updated",
        id,
        title,
    }))
}

/// A chat that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DeletedView {
    #[schema(example = "deleted")]
    status: &'static str,
    id: String,
}

/// Delete a chat
///
/// Its messages go with it, and all that the server has of its session: what happened in it, what its models
/// read, its files. A session that is alive is not stopped; what the server has of it goes when it ends.
#[utoipa::path(
    delete, path = "/api/v1/chats/{id}", tag = "chats", params(("id" = String, Path, description = "The chat")),
    responses((status = 200, body = DeletedView), (status = 401, body = Problem), (status = 502, description = "The store refuses", body = Problem), (status = 503, description = "The store cannot be reached", body = Problem), (status = 404, body = Problem)),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Path(id): Path<String>,
) -> Result<Json<DeletedView>, Problem> {
    let chat = id.clone();
    // To its end, even if the client leaves.
    let deleting = tokio::spawn(async move {
        let deleted = api
            .parts
            .chats
            .delete(&Principal::from(&who), &chat)
            .await?;
        for session in deleted.sessions {
            api.parts.sessions.remove_files(&who.user, session).await;
        }
        Ok::<_, ChatStoreError>(deleted.chat)
    });
    if !deleting
        .await
        .map_err(|error| Problem::internal(&error))??
    {
        return Err(no_chat());
    }
    Ok(Json(DeletedView {
        status: "deleted",
        id,
    }))
}

fn no_chat() -> Problem {
    Problem::not_found("Chat not found")
}

/// When to try again after writing too much within a minute, in seconds: part of what one may write is
/// back by then.
const RATE_AGAIN: u32 = 5;

impl From<UserLogExceeded> for Problem {
    fn from(error: UserLogExceeded) -> Self {
        let problem = Self::too_many(error.sentence());
        match error {
            UserLogExceeded::Rate(_) => problem.retry_after(RATE_AGAIN),
            UserLogExceeded::Total(_) => problem,
        }
    }
}

impl From<ChatStoreError> for Problem {
    fn from(error: ChatStoreError) -> Self {
        let detail = sentence(&error);
        match error {
            ChatStoreError::Unavailable { .. }
            | ChatStoreError::NoServiceKey
            | ChatStoreError::Key { .. }
            | ChatStoreError::Schema(_) => Self::unavailable(detail),
            ChatStoreError::NoUser => Self::conflict(detail),
            ChatStoreError::Token => Self::unauthorized("Invalid token"),
            ChatStoreError::Refused { .. } => Self::bad_gateway(detail),
            ChatStoreError::Local(error) => Self::store(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: i64, offset: i64) -> Result<(u32, u32), u16> {
        PageQuery { limit, offset }
            .checked()
            .map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_page_has_1_to_100_chats_and_starts_at_0_or_later() {
        let PageQuery { limit, offset } = serde_json::from_str("{}").unwrap();
        assert_eq!(page(limit, offset), Ok((50, 0)));
        assert_eq!(page(1, 0), Ok((1, 0)));
        assert_eq!(page(100, 7), Ok((100, 7)));
        for (limit, offset) in [
            (0, 0),
            (101, 0),
            (-1, 0),
            (50, -1),
            (i64::MAX, 0),
            (50, i64::MAX),
        ] {
            assert_eq!(page(limit, offset), Err(422), "{limit} {offset}");
        }
    }

    #[test]
    fn a_line_shows_its_metadata_as_an_object_and_its_time_with_an_offset() {
        let message = |metadata: Option<&str>| ChatMessage {
            id: "1".into(),
            role: "assistant".into(),
            content: "c".into(),
            event_type: Some("CmdRunAction".into()),
            metadata_json: metadata.map(str::to_owned),
            created_at: chrono::DateTime::from_timestamp(1_771_410_600, 0).unwrap(),
        };
        let view =
            serde_json::to_value(MessageView::from(message(Some(r#"{"command":"ls"}"#)))).unwrap();
        assert_eq!(view["metadataJson"]["command"], "ls");
        assert_eq!(view["createdAt"], "2026-02-18T10:30:00+00:00");
        for none in [None, Some("{")] {
            let view = serde_json::to_value(MessageView::from(message(none))).unwrap();
            assert!(view["metadataJson"].is_null());
        }
    }
}
