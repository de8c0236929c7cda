//! The routes for browsing a session's workspace: its tree, and the text of a file.
//!
//! # Invariants
//!
//! - The session is looked up together with its user.
//! - The workspace checks the path, and no path leads out of it.
//! - An async thread never blocks on the file system, and no user takes another's threads
//!   ([`UserWork`](lucid_types::user_work::UserWork)).

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::problem::{Json, Problem, Query};
use crate::api::identity::Authenticated;
use lucid_sandbox::workspace::{TreeNode, Workspace, WorkspaceError};
use lucid_types::identity::Identity;
use lucid_types::plural;
use lucid_types::sentence::{full_stop, sentence};
use lucid_types::user_work::{CancelFlag, UserWorkError};

/// `Retry-After` while as many of a user's requests wait as may, in seconds.
const QUEUE_AGAIN: u32 = 1;
/// The maximum size of a displayed file, in bytes.
const LARGEST_FILE: u64 = 8 * 1024 * 1024;

/// Whose tree is asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct TreeQuery {
    /// The session (not the chat).
    session_id: String,
}

/// A workspace's tree.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TreeView {
    /// Nodes: `name`, `type` (`file` or `folder`), `path` (from the workspace's root, as in
    /// `/src/a.py`), and `children` on folders. A name that is not UTF-8 has U+FFFD and two lower-case
    /// hex digits in place of each byte that does not fit (`caf` + U+FFFD + `e9.txt`), and U+FFFD itself
    /// is written so by its three bytes. Such a path can be asked for as it is listed.
    #[schema(value_type = Vec<NodeView>, example = json!([{"name": "a.py", "type": "file", "path": "/a.py"}]))]
    tree: Vec<TreeNode>,
}

/// How a [`TreeNode`] is written.
#[derive(ToSchema)]
#[schema(no_recursion)]
#[expect(dead_code, reason = "it only describes")]
struct NodeView {
    name: String,
    #[schema(rename = "type", inline)]
    kind: NodeKindView,
    /// From the workspace's root, as in `/src/a.py`.
    path: String,
    /// What is in a folder; absent on files.
    #[schema(nullable = false)]
    children: Option<Vec<NodeView>>,
}

/// How a node's kind is written.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "it only describes")]
enum NodeKindView {
    File,
    Folder,
}

/// List a workspace
#[utoipa::path(
    get, path = "/api/v1/files/list", tag = "files", params(TreeQuery),
    responses(
        (status = 200, body = TreeView),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's session", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "The server's database cannot be used at the moment", body = Problem),
        (status = 422, body = Problem),
        (status = 429, description = "Too many of the caller's requests wait already", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Query(query): Query<TreeQuery>,
) -> Result<Response, Problem> {
    let listed = api.in_workspace(&query.session_id, &who, |workspace, cancelled| {
        let tree = workspace.tree_until(cancelled)?;
        // Written there too: it may have a megabyte.
        Ok(Json(TreeView { tree }).into_response())
    });
    listed.await?.unwrap_or_else(|| {
        // A session that has not started has no workspace yet, which is equivalent to an empty one.
        Ok(Json(TreeView { tree: Vec::new() }).into_response())
    })
}

/// Which file is asked for.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct FileQuery {
    /// The session (not the chat).
    session_id: String,
    /// From the workspace's root, with or without the leading `/workspace`. A name that is not UTF-8 is
    /// written as the list of files has it: U+FFFD and two lower-case hex digits for each byte that does
    /// not fit.
    path: String,
}

/// A file's text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileView {
    /// What is no valid UTF-8 is replaced.
    content: String,
}

/// Read a file
#[utoipa::path(
    get, path = "/api/v1/files/read", tag = "files", params(FileQuery),
    responses(
        (status = 200, body = FileView),
        (status = 400, description = "The path leaves the workspace, or is not a file's", body = Problem),
        (status = 401, body = Problem),
        (status = 403, description = "Another user's session", body = Problem),
        (status = 404, body = Problem),
        (status = 503, description = "The server's database cannot be used at the moment", body = Problem),
        (status = 413, description = "The file is larger than 8 MiB; it can be downloaded", body = Problem),
        (status = 415, description = "The file is no text; it can be downloaded", body = Problem),
        (status = 422, body = Problem),
        (status = 429, description = "Too many of the caller's requests wait already", body = Problem),
    ),
    security(("bearer" = []), ("internal_user" = [], "internal_key" = [])),
)]
pub(super) async fn read(
    State(api): State<Api>,
    Authenticated(who): Authenticated,
    Query(query): Query<FileQuery>,
) -> Result<Response, Problem> {
    let path = query.path.clone();
    let read = api.in_workspace(&query.session_id, &who, move |workspace, _| {
        // Written there too: in JSON it may have six times its size.
        text(&workspace, &path)
    });
    read.await?.ok_or_else(|| not_yet(&query.path))?
}

/// The answer with a file's text. Blocks.
fn text(workspace: &Workspace, path: &str) -> Result<Response, Problem> {
    let read = workspace
        .path(path)
        .and_then(|path| workspace.read(&path, LARGEST_FILE));
    let bytes = read.map_err(|error| match error {
        // With the path as the client wrote it.
        WorkspaceError::NotFound(_) => no_file(path),
        WorkspaceError::TooLarge { .. } => {
            Problem::too_large(format!("{} Download it instead.", full_stop(error)))
        }
        error => error.into(),
    })?;
    if bytes.contains(&0) {
        return Err(no_text(path, bytes.len()));
    }
    let content = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Ok(Json(FileView { content }).into_response())
}

/// The error for a binary file, which is unreadable even with replacement characters.
fn no_text(path: &str, size: usize) -> Problem {
    Problem::unsupported_media_type(format!(
        "{path} is a binary file of {}, which has no text to show. Download it instead.",
        plural::count(size, "byte")
    ))
}

pub(super) fn no_file(path: &str) -> Problem {
    Problem::not_found(format!("File not found: {path}"))
}

/// The error for any path while the session has no workspace.
pub(super) fn not_yet(path: &str) -> Problem {
    match Workspace::check(path) {
        Ok(()) => no_file(path),
        Err(error) => error.into(),
    }
}

impl Api {
    /// Works in the user's turn on the workspace of the caller's session of that id, alive or over;
    /// `None` where it has none yet. The flag is set when the client leaves.
    pub(super) async fn in_workspace<T: Send + 'static>(
        &self,
        id: &str,
        who: &Identity,
        work: impl FnOnce(Workspace, &CancelFlag) -> Result<T, Problem> + Send + 'static,
    ) -> Result<Option<Result<T, Problem>>, Problem> {
        let Some(session) = self.with_workspace(id, who).await? else {
            return Ok(None);
        };
        let (workspaces, user) = (self.parts.workspaces.clone(), who.user.clone());
        let worked = self.parts.user_work.run(&who.user, move |cancelled| {
            let workspace = workspaces.find(&user, session)?;
            Some(work(workspace, cancelled))
        });
        Ok(worked.await?)
    }
}

impl From<UserWorkError> for Problem {
    fn from(error: UserWorkError) -> Self {
        match error {
            UserWorkError::QueueFull => Self::too_many(
                "Too many of your requests wait for their turn already. Try again in a moment.",
            )
            .retry_after(QUEUE_AGAIN),
            UserWorkError::Panicked(_) => Self::internal(&error),
        }
    }
}

impl From<WorkspaceError> for Problem {
    fn from(error: WorkspaceError) -> Self {
        match error {
            WorkspaceError::Traversal => Self::bad_request(sentence(error)),
            WorkspaceError::NotFound(path) => no_file(&path),
            // Their first word is a path.
            WorkspaceError::NotAFile(_) | WorkspaceError::Forbidden(_) => {
                Self::bad_request(full_stop(error))
            }
            WorkspaceError::TooLarge { .. } => Self::too_large(full_stop(error)),
            WorkspaceError::Io { .. } => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::ids::SessionId;

    #[test]
    fn each_failure_of_a_workspace_has_its_status() {
        let statuses = [
            (WorkspaceError::Traversal, 400),
            (WorkspaceError::NotFound("a".into()), 404),
            (WorkspaceError::NotAFile("a".into()), 400),
            (WorkspaceError::Forbidden("a".into()), 400),
            (
                WorkspaceError::TooLarge {
                    path: "a".into(),
                    size: 9,
                    limit: 1,
                },
                413,
            ),
            (
                WorkspaceError::Io {
                    path: "a".into(),
                    cause: std::io::Error::other("disk"),
                },
                500,
            ),
        ];
        for (error, status) in statuses {
            assert_eq!(Problem::from(error).status(), status);
        }
        assert_eq!(
            Problem::from(WorkspaceError::Traversal).detail(),
            "Path traversal not allowed."
        );
        assert_eq!(no_file("a/b.py").detail(), "File not found: a/b.py");
    }

    #[test]
    fn a_file_is_read_from_the_workspaces_root_under_each_of_its_names() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"u1".into(), SessionId::new()).unwrap();
        std::fs::write(workspace.host_path().join("a.txt"), "hello").unwrap();
        let read = |name: &str| {
            let read = workspace.read(&workspace.path(name)?, LARGEST_FILE)?;
            Ok::<_, Problem>(read)
        };
        for name in ["a.txt", "/a.txt", "/workspace/a.txt"] {
            assert_eq!(read(name).unwrap(), b"hello", "{name}");
        }
        let out = read("../x").unwrap_err();
        assert_eq!(
            (out.status().as_u16(), out.detail()),
            (400, "Path traversal not allowed.")
        );
    }

    #[test]
    fn a_queue_that_is_full_is_said_in_a_sentence() {
        let refused = Problem::from(UserWorkError::QueueFull);
        assert_eq!(refused.status(), 429);
        assert!(refused.detail().starts_with("Too many of your requests"));
    }
}
