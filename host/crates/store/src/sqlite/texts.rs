//! Stores a large text once per session, however many rows contain it: a tool's output occurs in
//! the policy's inputs, in the transcript and in the chat.
//!
//! # Invariants
//!
//! - What is read is byte for byte what was written.
//! - A value without a large text is stored as it is, and so is everything that older builds wrote.
//!   The type of the column's value (TEXT or BLOB) tells the two forms apart.
//! - A text belongs to one session and is deleted with it.

use std::borrow::Cow;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::StoreError;
use crate::sqlite::sql::AsText;
use lucid_types::ids::SessionId;

/// Minimum size in bytes of a text that is stored separately. A reference takes about 80.
const LARGE: usize = 1024;

/// The first half of a SHA-256.
type Digest = [u8; 16];

/// One part of a value.
#[derive(Debug, Serialize, Deserialize)]
enum PackedPart<'a> {
    /// Literal text.
    #[serde(rename = "l", borrow)]
    Literal(Cow<'a, str>),
    /// A slice of a stored text, in its JSON-escaped form.
    #[serde(rename = "j")]
    Json(TextSlice),
    /// A slice of a stored text, unescaped.
    #[serde(rename = "t")]
    Plain(TextSlice),
}

/// A slice: the text's digest, and the start and end offsets in bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct TextSlice(Digest, usize, usize);

/// What stands for a value with large texts: a serialized list of parts. `None` for a value without one,
/// which is stored as it is.
pub(crate) type Parts = Option<Vec<u8>>;

/// A value as it is stored.
#[derive(Debug)]
pub(crate) enum PackedValue<'a> {
    /// A value without a large text.
    Whole(&'a str),
    /// A serialized list of parts.
    Parts(&'a [u8]),
}

impl<'a> PackedValue<'a> {
    /// A value, and what stands for it.
    pub(crate) fn new(value: &'a str, parts: &'a Parts) -> Self {
        match parts {
            Some(parts) => Self::Parts(parts),
            None => Self::Whole(value),
        }
    }

    /// Its size in bytes, without the texts that it refers to.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Whole(text) => text.len(),
            Self::Parts(parts) => parts.len(),
        }
    }
}

impl ToSql for PackedValue<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = match self {
            Self::Whole(text) => ValueRef::Text(text.as_bytes()),
            Self::Parts(parts) => ValueRef::Blob(parts),
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

fn content(cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Content(cause.to_string())
}

fn parts(parts: &[PackedPart<'_>]) -> Result<Parts, StoreError> {
    let parts = serde_json::to_vec(parts).map_err(|cause| content(&cause))?;
    Ok(Some(parts))
}

/// The large texts of what is about to be written, taken out of its values. Finding them takes long and
/// needs no database, so it is done before the writer is asked.
#[derive(Debug, Default)]
pub(crate) struct LargeTexts(Vec<(Digest, String)>);

impl LargeTexts {
    /// Their size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(_, text)| text.len()).sum()
    }

    /// Packs JSON, taking its large strings out.
    pub(crate) fn pack_json(&mut self, json: &str) -> Result<Parts, StoreError> {
        let mut pieces = Vec::new();
        let mut from = 0;
        for (begin, end) in large_strings(json) {
            let slice = self.slice(&json[begin..end]);
            pieces.push(PackedPart::Literal(json[from..begin].into()));
            pieces.push(PackedPart::Json(slice));
            from = end;
        }
        if pieces.is_empty() {
            return Ok(None);
        }
        pieces.push(PackedPart::Literal(json[from..].into()));
        parts(&pieces)
    }

    /// Packs a text that is not JSON; a large one is taken out.
    pub(crate) fn pack_text(&mut self, text: &str) -> Result<Parts, StoreError> {
        if text.len() < LARGE {
            return Ok(None);
        }
        let quoted = serde_json::to_string(text).map_err(|cause| content(&cause))?;
        let slice = self.slice(&quoted[1..quoted.len() - 1]);
        parts(&[PackedPart::Plain(slice)])
    }

    /// Stores the texts that the session does not have. Returns their bytes.
    pub(crate) fn store(
        &self,
        connection: &Connection,
        session: SessionId,
    ) -> Result<usize, StoreError> {
        let mut stored = 0;
        for (digest, text) in &self.0 {
            let added = connection
                .prepare_cached(
                    "INSERT INTO texts (session_id, digest, text) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?
                .execute(params![AsText(session), digest, text])?;
            stored += added * text.len();
        }
        Ok(stored)
    }

    /// The place of a string in the texts, adding it if necessary. A string that is a part of a text (a
    /// frame holds its beginning) is not added again.
    fn slice(&mut self, json: &str) -> TextSlice {
        // A comparison is much shorter than a search.
        let begins = self.0.iter().find(|(_, kept)| kept.starts_with(json));
        let begins = begins.map(|(digest, _)| (*digest, 0));
        let found = begins.or_else(|| {
            let mut longer = self.0.iter().filter(|(_, kept)| kept.len() > json.len());
            longer.find_map(|(digest, kept)| Some((*digest, kept.find(json)?)))
        });
        if let Some((digest, at)) = found {
            return TextSlice(digest, at, at + json.len());
        }
        let whole: [u8; 32] = Sha256::digest(json).into();
        let mut digest = Digest::default();
        digest.copy_from_slice(&whole[..16]);
        self.0.push((digest, json.to_owned()));
        TextSlice(digest, 0, json.len())
    }
}

/// The start and end of each large string in a JSON text, without its quotation marks.
fn large_strings(json: &str) -> impl Iterator<Item = (usize, usize)> + '_ {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let begin = at + bytes[at..].iter().position(|byte| *byte == b'"')? + 1;
            let mut end = begin;
            loop {
                match bytes.get(end)? {
                    b'"' => break,
                    b'\\' => end += 2,
                    _ => end += 1,
                }
            }
            at = end + 1;
            if end - begin >= LARGE {
                return Some((begin, end));
            }
        }
    })
}

/// Reassembles a value from a row. Its large texts are the session's; a row without a session has
/// none.
pub(crate) fn unpack_column(
    connection: &Connection,
    session: impl Into<Option<SessionId>>,
    row: &Row<'_>,
    column: usize,
) -> Result<String, StoreError> {
    optional(connection, session, row, column)?.ok_or_else(|| content(&"a value is missing"))
}

/// Like [`unpack_column`], for a column that may be null.
pub(crate) fn optional(
    connection: &Connection,
    session: impl Into<Option<SessionId>>,
    row: &Row<'_>,
    column: usize,
) -> Result<Option<String>, StoreError> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        ValueRef::Blob(parts) => unpack(connection, session.into(), parts).map(Some),
        _ => Ok(Some(row.get(column)?)),
    }
}

/// Reassembles a value from its parts.
pub(crate) fn unpack(
    connection: &Connection,
    session: Option<SessionId>,
    parts: &[u8],
) -> Result<String, StoreError> {
    let session = session.map(AsText);
    let parts: Vec<PackedPart<'_>> =
        serde_json::from_slice(parts).map_err(|cause| content(&cause))?;
    let mut select = connection
        .prepare_cached("SELECT text FROM texts WHERE session_id = ?1 AND digest = ?2")?;
    let mut json_at = |TextSlice(digest, from, to): TextSlice| -> Result<String, StoreError> {
        let text: String = select.query_row(params![session, digest], |row| row.get(0))?;
        let json = text.get(from..to).map(str::to_owned);
        json.ok_or_else(|| content(&"a part of a text is missing"))
    };
    let mut whole = String::new();
    for part in parts {
        match part {
            PackedPart::Literal(text) => whole.push_str(&text),
            PackedPart::Json(slice) => whole.push_str(&json_at(slice)?),
            PackedPart::Plain(slice) => {
                let quoted = format!("\"{}\"", json_at(slice)?);
                let plain: String =
                    serde_json::from_str(&quoted).map_err(|cause| content(&cause))?;
                whole.push_str(&plain);
            }
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(include_str!("../../../../../migrations/0013_texts.sql"))
            .unwrap();
        connection
            .execute_batch("CREATE TABLE held (value)")
            .unwrap();
        connection
    }

    fn stored(connection: &Connection, session: SessionId, packed: &PackedValue<'_>) -> String {
        connection.execute("DELETE FROM held", []).unwrap();
        connection
            .execute("INSERT INTO held VALUES (?1)", [packed])
            .unwrap();
        let mut select = connection.prepare("SELECT value FROM held").unwrap();
        let mut rows = select.query([]).unwrap();
        let row = rows.next().unwrap().unwrap();
        unpack_column(connection, session, row, 0).unwrap()
    }

    fn kept(connection: &Connection) -> (i64, i64) {
        let sums = "SELECT count(*), coalesce(sum(octet_length(text)), 0) FROM texts";
        connection
            .query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
    }

    #[test]
    fn what_a_tool_printed_is_kept_once_and_read_from_everywhere() {
        let connection = database();
        let session = SessionId::new();
        let printed = "line \"one\"\n\tline\\two\u{1}\n".repeat(500) + "ïï";
        let said = format!("{printed}[exit code 0]");
        let entry = json!({"role": "tool", "content": [{"text": said}]}).to_string();
        let frames = json!([{"content": &printed[..2000]}]).to_string();
        let inputs = json!([{"tool-replied": {"outcome": {"text": said}, "entry": 3}}]).to_string();
        let mut texts = LargeTexts::default();
        let packed = [
            texts.pack_json(&entry).unwrap(),
            texts.pack_json(&inputs).unwrap(),
            texts.pack_json(&frames).unwrap(),
            texts.pack_text(&printed).unwrap(),
            texts.pack_text("short").unwrap(),
        ];
        assert_eq!(
            texts.store(&connection, session).unwrap(),
            kept(&connection).1 as usize
        );
        let whole = [&*entry, &*inputs, &*frames, &*printed, "short"];
        for (parts, whole) in packed.iter().zip(whole) {
            let packed = PackedValue::new(whole, parts);
            assert_eq!(stored(&connection, session, &packed), whole);
            assert!(packed.len() < 300, "{}", packed.len());
        }
        assert_eq!(kept(&connection).0, 1);
        // The same again in a later round, and in another session.
        assert_eq!(texts.store(&connection, session).unwrap(), 0);
        assert_eq!(kept(&connection).0, 1);
        texts.store(&connection, SessionId::new()).unwrap();
        assert_eq!(kept(&connection).0, 2);
    }

    #[test]
    fn what_an_older_build_wrote_is_read_as_it_is() {
        let connection = database();
        let old = json!({"text": "x".repeat(5000)}).to_string();
        let session = SessionId::new();
        assert_eq!(stored(&connection, session, &PackedValue::Whole(&old)), old);
    }

    /// Values with a large text.
    fn large(connection: &Connection, session: SessionId) -> Vec<Vec<u8>> {
        let text = "line \"one\" \u{fc}\n".repeat(500);
        let json = json!({"role": "tool", "content": [{"text": text}]}).to_string();
        let mut texts = LargeTexts::default();
        let packed = [
            texts.pack_json(&json).unwrap(),
            texts.pack_text(&text).unwrap(),
        ];
        texts.store(connection, session).unwrap();
        packed.map(|parts| parts.expect("it is large")).into()
    }

    proptest! {
        #[test]
        fn a_damaged_value_is_read_or_is_an_error(parts in mutated(large(&database(), SessionId::new()))) {
            let (connection, session) = (database(), SessionId::new());
            large(&connection, session);
            let _ = unpack(&connection, Some(session), &parts);
        }

        #[test]
        fn whatever_is_packed_is_read_byte_for_byte(
            pieces in prop::collection::vec(("[\\PC\"\\\\\n\u{1}]{0,40}", 1_usize..80), 0..6),
        ) {
            let connection = database();
            let session = SessionId::new();
            let mut texts = LargeTexts::default();
            let strings: Vec<String> =
                pieces.iter().map(|(text, times)| text.repeat(*times)).collect();
            let json = json!({"all": strings, "again": strings}).to_string();
            let whole = texts.pack_json(&json).unwrap();
            let parts = strings.iter().map(|text| texts.pack_text(text).unwrap());
            let parts: Vec<Parts> = parts.collect();
            texts.store(&connection, session).unwrap();
            let whole = PackedValue::new(&json, &whole);
            prop_assert_eq!(&stored(&connection, session, &whole), &json);
            for (text, parts) in strings.iter().zip(&parts) {
                let packed = PackedValue::new(text, parts);
                prop_assert_eq!(&stored(&connection, session, &packed), text);
            }
        }
    }
}
