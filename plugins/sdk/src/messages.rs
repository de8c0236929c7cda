//! Convenience functions to build and read the shared vocabulary.
//!
//! They work on public fields, keep no state and make no decisions.

use crate::types::{Content, Error, ErrorKind, Message, Role, ToolDefinition, ToolResult, Usage};

impl Message {
    /// A message with one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Content::Text(text.into())],
        }
    }

    /// A system message.
    pub fn system(text: impl Into<String>) -> Self {
        Self::text(Role::System, text)
    }

    /// A user message.
    pub fn user(text: impl Into<String>) -> Self {
        Self::text(Role::User, text)
    }

    /// A model's message.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::text(Role::Assistant, text)
    }

    /// A tool message.
    pub fn tool(result: ToolResult) -> Self {
        Self {
            role: Role::Tool,
            content: vec![Content::ToolResult(result)],
        }
    }

    /// All text of the message, joined by line breaks.
    pub fn joined_text(&self) -> String {
        joined_text(&self.content)
    }
}

/// All text among some content, joined by line breaks.
pub fn joined_text(content: &[Content]) -> String {
    let mut joined = String::new();
    for piece in content {
        if let Content::Text(text) = piece {
            if !joined.is_empty() {
                joined.push('\n');
            }
            joined.push_str(text);
        }
    }
    joined
}

impl ToolResult {
    /// The result of a successful call.
    pub fn ok(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            call_id: call_id.into(),
            is_error: false,
            text: text.into(),
            exit_code: None,
            blobs: Vec::new(),
        }
    }

    /// The result of a call that was refused or failed.
    pub fn failed(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            is_error: true,
            ..Self::ok(call_id, text)
        }
    }

    /// Whether the tool refused, or the command it ran failed.
    pub fn is_bad(&self) -> bool {
        self.is_error || self.exit_code.is_some_and(|code| code != 0)
    }
}

impl Error {
    /// An error of a kind, with a message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// Adds the other side's own code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// A bug of the plugin itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// A request that will fail again.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// A failure of the other side.
    pub fn upstream(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Upstream, message)
    }
}

impl ToolDefinition {
    /// A tool with its schema as JSON.
    pub fn new(
        name: impl Into<String>,
        description: impl Into<String>,
        schema: &serde_json::Value,
    ) -> Self {
        Self {
            name: name.into(),
            description: description.into(),
            input_schema: schema.to_string(),
        }
    }
}

/// No tokens.
pub const NO_USAGE: Usage = Usage {
    input_tokens: 0,
    output_tokens: 0,
    cache_read_tokens: 0,
    cache_write_tokens: 0,
};

/// The first `limit` characters, with a mark if something was cut off.
pub fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_string(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}
