//! The chat store in a Supabase project.
//!
//! # Invariants
//! - Messages are ordered by time, and by id if their times are equal.
//! - All of a chat's messages are read, however few rows the project returns at once.

use std::sync::Arc;

use uuid::Uuid;

use super::Supabase;
use super::client::AuthorizedClient;
use super::rows::{ChatRow, MessageRow, ProgressRow, TitleRow, title};
use crate::chat_store::{
    Chat, ChatMessage, ChatProgress, ChatStore, ChatStoreError, ChatStoreFuture, Principal,
};

/// Rows requested at once; a project returns 1,000 unless configured otherwise.
const PAGE: usize = 1000;
/// A page with fewer rows is the last: no project returns as few as this at once.
const LEAST: usize = 100;
/// Maximum size of a chat that is read, in bytes: users write to these tables too.
const LARGEST_CHAT: usize = 256 << 20;

/// The chats and git accounts of a project's users; each call sees those of one user. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct SupabaseChatStore {
    supabase: Arc<Supabase>,
}

impl SupabaseChatStore {
    /// The chats of a project.
    pub fn new(supabase: Supabase) -> Self {
        Self {
            supabase: Arc::new(supabase),
        }
    }

    /// Returns whether requests can be made for users who sent no token.
    pub fn has_service_key(&self) -> bool {
        self.supabase.has_service_key()
    }

    pub(super) fn supabase(&self) -> &Supabase {
        &self.supabase
    }

    /// Returns an authorized client for a caller and one chat, or `None` if there cannot be one.
    fn to_chat(
        &self,
        caller: &Principal,
        id: &str,
    ) -> Result<Option<(AuthorizedClient<'_>, Uuid)>, ChatStoreError> {
        let acting = self.supabase.authorized(caller)?;
        Ok(acting.zip(Uuid::parse_str(id).ok()))
    }
}

async fn find(acting: &AuthorizedClient<'_>, id: Uuid) -> Result<Option<ChatRow>, ChatStoreError> {
    let rows = acting.chats(&[("id", &format!("eq.{id}"))]).await?;
    Ok(rows.into_iter().next())
}

async fn all_messages(
    acting: &AuthorizedClient<'_>,
    id: Uuid,
) -> Result<Vec<ChatMessage>, ChatStoreError> {
    let (chat, limit) = (format!("eq.{id}"), PAGE.to_string());
    let mut messages: Vec<ChatMessage> = Vec::new();
    let mut size = 0;
    let mut after: Option<String> = None;
    loop {
        let mut narrow = vec![
            ("session_id", chat.as_str()),
            ("order", "created_at.asc,id.asc"),
            ("limit", &limit),
        ];
        if let Some(after) = &after {
            narrow.push(("or", after));
        }
        let page = acting.messages(&narrow).await?;
        let Some(last) = page.last() else {
            return Ok(messages);
        };
        let (at, id) = (quoted(&last.created_at), quoted(&last.id));
        after = Some(format!(
            "(created_at.gt.{at},and(created_at.eq.{at},id.gt.{id}))"
        ));
        let few = page.len() < LEAST;
        messages.reserve(page.len());
        for message in page.into_iter().map(ChatMessage::from) {
            size += message.content.len() + message.metadata_json.as_ref().map_or(0, String::len);
            messages.push(message);
        }
        if size > LARGEST_CHAT {
            return Err(ChatStoreError::Refused {
                code: format!("a chat of more than {LARGEST_CHAT} bytes"),
            });
        }
        if few {
            return Ok(messages);
        }
    }
}

/// Quotes a value within a filter's parentheses, where a comma would end it.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', r"\\").replace('"', r#"\""#))
}

/// Appends messages. Returns `false` if the chat does not exist or is not the user's.
async fn append(
    acting: &AuthorizedClient<'_>,
    chat: Uuid,
    messages: &[ChatMessage],
) -> Result<bool, ChatStoreError> {
    // With the user's token, row-level security ensures this.
    if acting.service && find(acting, chat).await?.is_none() {
        return Ok(false);
    }
    let rows: Option<Vec<_>> = messages
        .iter()
        .map(|message| MessageRow::new(chat, message))
        .collect();
    let rows = rows.ok_or_else(|| ChatStoreError::Refused {
        code: "a message whose id is no UUID".to_owned(),
    })?;
    if rows.is_empty() {
        return Ok(find(acting, chat).await?.is_some());
    }
    match acting.insert_messages(&rows).await {
        Ok(()) => Ok(true),
        // Refused because the chat does not exist (any more), or for another reason.
        Err(ChatStoreError::Refused { code }) => match find(acting, chat).await? {
            None => Ok(false),
            Some(_) => Err(ChatStoreError::Refused { code }),
        },
        Err(error) => Err(error),
    }
}

impl ChatStore for SupabaseChatStore {
    fn list(&self, caller: &Principal, limit: u32, offset: u32) -> ChatStoreFuture<'_, Vec<Chat>> {
        let caller = caller.clone();
        Box::pin(async move {
            let Some(acting) = self.supabase.authorized(&caller)? else {
                return Ok(Vec::new());
            };
            let narrow = [
                ("order", "updated_at.desc,id.desc"),
                ("limit", &limit.to_string()),
                ("offset", &offset.to_string()),
            ];
            let rows = acting.chats(&narrow).await?;
            Ok(rows.into_iter().map(Chat::from).collect())
        })
    }

    fn find(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Option<Chat>> {
        let (caller, id) = (caller.clone(), id.to_owned());
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(None);
            };
            Ok(find(&acting, id).await?.map(Chat::from))
        })
    }

    fn create(&self, caller: &Principal, chat: Chat) -> ChatStoreFuture<'_, ()> {
        let caller = caller.clone();
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &chat.id)? else {
                return Err(ChatStoreError::Refused {
                    code: "an id that is no UUID".to_owned(),
                });
            };
            acting.insert_chat(&ChatRow::new(id, &chat)).await
        })
    }

    fn rename(
        &self,
        caller: &Principal,
        id: &str,
        text: &str,
    ) -> ChatStoreFuture<'_, Option<String>> {
        let (caller, id, title) = (caller.clone(), id.to_owned(), title(text));
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(None);
            };
            let row = TitleRow { title };
            Ok(acting.change(id, &row).await?.then_some(row.title))
        })
    }

    fn update_progress(
        &self,
        caller: &Principal,
        id: &str,
        progress: ChatProgress,
    ) -> ChatStoreFuture<'_, bool> {
        let (caller, id) = (caller.clone(), id.to_owned());
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(false);
            };
            acting.change(id, &ProgressRow::from(progress)).await
        })
    }

    fn delete(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, bool> {
        let (caller, id) = (caller.clone(), id.to_owned());
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(false);
            };
            acting.remove(id).await
        })
    }

    fn append(
        &self,
        caller: &Principal,
        id: &str,
        messages: Vec<ChatMessage>,
    ) -> ChatStoreFuture<'_, bool> {
        let (caller, id) = (caller.clone(), id.to_owned());
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(false);
            };
            append(&acting, id, &messages).await
        })
    }

    fn messages(&self, caller: &Principal, id: &str) -> ChatStoreFuture<'_, Vec<ChatMessage>> {
        let (caller, id) = (caller.clone(), id.to_owned());
        Box::pin(async move {
            let Some((acting, id)) = self.to_chat(&caller, &id)? else {
                return Ok(Vec::new());
            };
            all_messages(&acting, id).await
        })
    }
}
