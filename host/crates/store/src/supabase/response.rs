//! Interprets responses of the REST API.
//!
//! # Invariants
//! - Every unsuccessful response becomes one of [`ChatStoreError`]'s variants, whatever its body is.
//! - What the database said goes to the log, truncated and without the rows that it quotes.
//! - A response has a maximum size.

use futures::StreamExt;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use super::client::{CHAT, INTEGRATION, MAC};
use crate::chat_store::{ChatStoreError, MissingSchema};
use lucid_types::text::cut;

/// The tables that this version uses.
const TABLES: [&str; 4] = ["users", "chat_sessions", "chat_messages", "integrations"];
/// Their columns.
const COLUMNS: [&str; 5] = [
    CHAT,
    INTEGRATION,
    MAC,
    "email,name,avatar_url",
    "user_id,session_id,role,content,event_type,metadata_json",
];

/// Maximum size of a response in bytes: a page of messages.
const LARGEST: usize = 64 << 20;
/// Maximum size of an error response, in bytes.
const LARGEST_REFUSAL: usize = 64 << 10;

/// Converts an error of a request that got no response.
pub(super) fn no_answer(cause: reqwest::Error) -> ChatStoreError {
    // Without the URL: its query names users.
    tracing::debug!(cause = %cause.without_url(), "the REST API of the record of chats did not answer");
    ChatStoreError::Unavailable { answered: false }
}

/// Checks for a success without rows.
pub(super) async fn expect_success(
    response: Response,
    service: bool,
) -> Result<(), ChatStoreError> {
    if response.status().is_success() {
        return Ok(());
    }
    Err(refusal(response, service).await)
}

/// Reads the rows of a successful response.
pub(super) async fn rows<T: DeserializeOwned>(
    response: Response,
    service: bool,
) -> Result<Vec<T>, ChatStoreError> {
    match response.status() {
        // An offset past the end.
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(Vec::new()),
        status if status.is_success() => {}
        _ => return Err(refusal(response, service).await),
    }
    let (body, whole) = body(response, LARGEST).await?;
    let unreadable = |why: String| {
        tracing::error!(%why, "the REST API of the record of chats answered what is no list of rows");
        ChatStoreError::Unavailable { answered: true }
    };
    if !whole {
        return Err(unreadable(format!("more than {LARGEST} bytes")));
    }
    serde_json::from_slice(&body).map_err(|why| match why.classify() {
        // Valid JSON, but rows of another shape: a column has another type.
        Category::Data => {
            tracing::error!(%why, "the REST API of the record of chats answered rows of another form");
            ChatStoreError::Schema(MissingSchema::Form)
        }
        _ => unreadable(why.to_string()),
    })
}

/// Reads a body, and returns whether that is all of it.
async fn body(response: Response, largest: usize) -> Result<(Vec<u8>, bool), ChatStoreError> {
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(no_answer)?;
        let room = largest - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}

/// PostgREST's description of an error. Its `details` and `hint` may quote rows, so they are
/// omitted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PostgrestError {
    code: Option<String>,
    message: Option<String>,
}

async fn refusal(response: Response, service: bool) -> ChatStoreError {
    let status = response.status();
    let body = match body(response, LARGEST_REFUSAL).await {
        Ok((body, _)) => body,
        Err(error) => return error,
    };
    let parsed: PostgrestError = serde_json::from_slice(&body).unwrap_or_default();
    let code = parsed.code.unwrap_or_default();
    let message: String = cut(&parsed.message.unwrap_or_default(), 200)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    let error = classify_error(status.as_u16(), &code, &message, service);
    match error {
        // Users' tokens expire all the time.
        ChatStoreError::Token => {
            tracing::debug!(%status, code, message, "the record of chats does not take a token");
        }
        // Said once, where it is dealt with.
        ChatStoreError::Schema(MissingSchema::Column(Some((_, MAC)))) => {
            tracing::debug!(%status, code, message, "the project lacks a column that is not needed");
        }
        ChatStoreError::Unavailable { .. } => {
            tracing::debug!(%status, code, message, "the record of chats does not work");
        }
        _ => tracing::warn!(%status, code, message, "the record of chats refused a request"),
    }
    error
}

/// Maps a status and PostgREST's code to an error. Of the message, only names that this version
/// knows are considered.
fn classify_error(status: u16, code: &str, message: &str, service: bool) -> ChatStoreError {
    let unavailable = |answered| ChatStoreError::Unavailable { answered };
    let key = |setting| ChatStoreError::Key { setting };
    if let Some(lack) = missing_schema(status, code, message) {
        return ChatStoreError::Schema(lack);
    }
    match (status, code) {
        // The host's key is wrong: the operator can correct that, and nothing needs to be given up.
        (401, _) if service => key("SUPABASE_SERVICE_KEY"),
        // Expired, signed with another secret, or for a role that does not exist or has no
        // permissions.
        (401, code) if code.starts_with("PGRST3") || code == "42501" => ChatStoreError::Token,
        // The gateway does not know the API key.
        (401, _) => key("SUPABASE_ANON_KEY"),
        (408 | 425 | 429 | 502..=504, _) => unavailable(false),
        // A transaction that lost against another one.
        (_, "40001" | "40P01") => unavailable(true),
        (403 | 413, _) => refused(status, code),
        // Values that do not fit a column, and constraint violations.
        (400 | 409, code) if code.starts_with("22") || code.starts_with("23") => {
            refused(status, code)
        }
        _ => unavailable(true),
    }
}

/// Returns the part of the schema that the project lacks, if that is what the error says.
fn missing_schema(status: u16, code: &str, message: &str) -> Option<MissingSchema> {
    let word = |known: &[&'static str]| {
        let mut words = message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.find_map(|word| known.iter().copied().find(|known| *known == word))
    };
    let table = word(&TABLES);
    let column = || {
        let table = table?;
        let columns = COLUMNS.iter().flat_map(|columns| columns.split(','));
        // The table may be named before or after it.
        let columns: Vec<_> = columns.filter(|column| !TABLES.contains(column)).collect();
        Some((table, word(&columns)?))
    };
    // As reported by PostgREST and by PostgreSQL.
    match code {
        "PGRST205" | "42P01" => Some(MissingSchema::Table(table)),
        "PGRST204" | "42703" => Some(MissingSchema::Column(column())),
        "PGRST200" => Some(MissingSchema::Link),
        "42P10" => Some(MissingSchema::Unique),
        "PGRST202" => Some(MissingSchema::Form),
        "42501" if status == 403 && message.starts_with("permission denied for") => {
            Some(MissingSchema::Right(table))
        }
        _ => None,
    }
}

fn refused(status: u16, code: &str) -> ChatStoreError {
    let code = if code.is_empty() {
        format!("HTTP {status}")
    } else {
        cut(code, 20).to_owned()
    };
    ChatStoreError::Refused { code }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_project_lacks_is_named_from_what_the_database_says() {
        for (status, code, message, expected) in [
            (
                404,
                "PGRST205",
                "Could not find the table 'public.chat_sessions' in the schema cache",
                "the table chat_sessions",
            ),
            (
                404,
                "42P01",
                r#"relation "public.integrations" does not exist"#,
                "the table integrations",
            ),
            (
                400,
                "42703",
                "column chat_sessions.model_calls does not exist",
                "the column chat_sessions.model_calls",
            ),
            (
                400,
                "PGRST204",
                "Could not find the 'cost' column of 'chat_sessions' in the schema cache",
                "the column chat_sessions.cost",
            ),
            (
                400,
                "42703",
                "column integrations.lucid_mac does not exist",
                "the column integrations.lucid_mac",
            ),
            (
                400,
                "PGRST200",
                "Could not find a relationship between 'chat_messages' and 'chat_sessions' in the schema cache",
                "the foreign key from chat_messages to chat_sessions",
            ),
            (
                400,
                "42P10",
                "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                "a unique index",
            ),
            (
                403,
                "42501",
                "permission denied for table chat_messages",
                "users' right to use the table chat_messages",
            ),
            (404, "42P01", "<b>hunter2</b>", "a table"),
        ] {
            let shown = classify_error(status, code, message, false).to_string();
            let expected = format!("lacks {expected}: ");
            assert!(shown.contains(&expected), "{code}: {shown}");
            assert!(shown.contains("migrations/supabase"), "{shown}");
        }
        // A refusal by a policy concerns the rows, not the project.
        let refused = r#"new row violates row-level security policy for table "chat_sessions""#;
        assert!(matches!(
            classify_error(403, "42501", refused, false),
            ChatStoreError::Refused { .. }
        ));
    }

    #[test]
    fn each_answer_has_the_meaning_that_its_code_says() {
        for (status, code, service, expected) in [
            (401, "PGRST301", false, "Token"),
            (401, "PGRST303", false, "Token"),
            (401, "42501", false, "Token"),
            (
                401,
                "PGRST301",
                true,
                "Key { setting: \"SUPABASE_SERVICE_KEY\" }",
            ),
            (401, "", false, "Key { setting: \"SUPABASE_ANON_KEY\" }"),
            (403, "42501", false, "Refused { code: \"42501\" }"),
            (409, "23503", true, "Refused { code: \"23503\" }"),
            (400, "22P02", false, "Refused { code: \"22P02\" }"),
            (413, "", false, "Refused { code: \"HTTP 413\" }"),
            (404, "42P01", false, "Schema(Table(None))"),
            (404, "PGRST205", false, "Schema(Table(None))"),
            (400, "PGRST204", false, "Schema(Column(None))"),
            (400, "42703", false, "Schema(Column(None))"),
            (503, "PGRST000", false, "Unavailable { answered: false }"),
            (504, "", false, "Unavailable { answered: false }"),
            (429, "", false, "Unavailable { answered: false }"),
            (500, "57014", false, "Unavailable { answered: true }"),
            (302, "", false, "Unavailable { answered: true }"),
            (404, "", false, "Unavailable { answered: true }"),
        ] {
            let shown = format!("{:?}", classify_error(status, code, "", service));
            assert_eq!(shown, expected, "{status} {code}");
        }
    }

    proptest! {
        /// A sentence is shown, and nothing of the response.
        #[test]
        fn no_answer_shows_through(status in 300u16..600, code in "[A-Z0-9]{0,30}", missing: bool, message in "[A-Z0-9 ]{4,30}", service: bool) {
            let code = if missing { "42703".to_owned() } else { code };
            let shown = classify_error(status, &code, &message, service).to_string();
            prop_assert!(code.len() < 4 || !shown.contains(&code), "{}", shown);
            prop_assert!(!shown.contains(&message), "{}", shown);
        }
    }
}
