//! Resolves which file of the workspace an edit means.
//!
//! # Invariants
//! - The editor and the terminal mean the same file by the same path. A path that leads out of the
//!   workspace is refused, never mapped to one of the same name inside.

use crate::workspace::{Workspace, WorkspacePath};

/// A path at which every workspace can be addressed, whatever its sandbox.
const USUAL_ROOT: &str = "/workspace";

/// A path that leads out of the workspace.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocateError {
    /// A relative path leads above the root.
    #[error("{path} is not in the workspace. Relative paths begin at {root}")]
    Above {
        /// The path.
        path: String,
        /// The workspace's path.
        root: String,
    },
    /// An absolute path is that of another folder.
    #[error(
        "{path} is outside the workspace, and the editor works in that alone. Use {instead}, or the terminal for {path}"
    )]
    Outside {
        /// The path.
        path: String,
        /// The path that is probably meant.
        instead: String,
    },
}

/// The file that a model's path refers to: relative to the workspace's root, or absolute below
/// `root`, the workspace's path as commands see it.
pub(super) fn locate(
    workspace: &Workspace,
    root: &str,
    text: &str,
) -> Result<WorkspacePath, LocateError> {
    // A file URL can hold absolute paths only.
    let text = text.strip_prefix("file://").unwrap_or(text);
    if needs_expansion(text) {
        return Err(outside_workspace_hint(workspace, root, text));
    }
    if !text.starts_with('/') {
        return workspace.path(text).map_err(|_| LocateError::Above {
            path: text.to_owned(),
            root: root.to_owned(),
        });
    }
    let wanted = plain(text);
    let host = workspace.host_path().to_string_lossy();
    let inside = [root, USUAL_ROOT, &host].into_iter().find_map(|root| {
        let root = plain(root);
        wanted
            .starts_with(&root)
            .then(|| wanted[root.len()..].join("/"))
    });
    inside
        .and_then(|inside| workspace.path(&inside).ok())
        .ok_or_else(|| outside_workspace_hint(workspace, root, text))
}

/// Whether a path begins with something that only a shell or another system expands, and would
/// create a stray folder here: `~/x`, `$HOME/x`, `${TMPDIR}/x`, `C:\\x`.
fn needs_expansion(text: &str) -> bool {
    let name = text.split('/').next().unwrap_or_default();
    let variable = name.strip_prefix('$').map(|name| {
        let braced = name
            .strip_prefix('{')
            .and_then(|name| name.strip_suffix('}'));
        braced.unwrap_or(name)
    });
    let is_upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    // In upper case, as environment variables are: `$id.tsx` is a name that frameworks use.
    let is_variable = variable.is_some_and(|name| !name.is_empty() && name.chars().all(is_upper));
    let is_drive =
        matches!(text.as_bytes(), [drive, b':', b'\\' | b'/', ..] if drive.is_ascii_alphabetic());
    name == "~" || is_variable || is_drive
}

/// An absolute path's names, without `.` and `..`.
fn plain(path: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names
}

/// The error for a path outside, with the one to use. If its folder exists in the workspace, that was meant.
fn outside_workspace_hint(workspace: &Workspace, root: &str, text: &str) -> LocateError {
    let below = match text.split_once(['/', '\\']) {
        _ if !needs_expansion(text) => text.to_owned(),
        Some((_, below)) => below.replace('\\', "/"),
        None => String::new(),
    };
    let names = plain(&below);
    let has = |names: &[&str]| {
        let path = workspace.path(&names.join("/"));
        path.is_ok_and(|path| workspace.is_folder(&path).is_ok())
    };
    let folder = names.split_last().map_or(&[][..], |(_, folder)| folder);
    let meant = match names.last() {
        None => String::new(),
        Some(_) if has(&names) || (!folder.is_empty() && has(folder)) => {
            format!("/{}", names.join("/"))
        }
        Some(name) => format!("/{name}"),
    };
    let root = root.trim_end_matches('/');
    LocateError::Outside {
        path: text.to_owned(),
        instead: format!("{root}{meant}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::ids::SessionId;

    #[test]
    fn a_path_is_the_one_that_commands_mean_or_is_refused_with_the_one_to_use() {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"u".into(), SessionId::new()).unwrap();
        workspace
            .write(&workspace.path("src/a.py").unwrap(), b"")
            .unwrap();
        let host = workspace.host_path().display().to_string();
        let located = |text: &str| locate(&workspace, "/srv/code", text);
        for text in [
            "src/a.py",
            "./src/../src/a.py",
            "/workspace/src/a.py",
            "/srv/code/src/a.py",
            "/srv/code//./src/b/../a.py",
            "/tmp/../srv/code/src/a.py",
            "file:///workspace/src/a.py",
            &format!("{host}/src/a.py"),
        ] {
            let path = located(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(path.display(), "/src/a.py", "{text}");
        }
        for text in ["/workspace", "/srv/code/", ".", ""] {
            assert!(located(text).unwrap().is_root(), "{text}");
        }
        for (text, use_instead) in [
            ("/tmp/repro.py", "Use /srv/code/repro.py,"),
            ("/src/a.py", "Use /srv/code/src/a.py,"),
            ("/src/new.py", "Use /srv/code/src/new.py,"),
            ("/workspaces/x", "Use /srv/code/x,"),
            ("/workspace/../etc/passwd", "Use /srv/code/passwd,"),
            ("~/notes.txt", "Use /srv/code/notes.txt,"),
            ("~", "Use /srv/code,"),
            ("$HOME/..", "Use /srv/code,"),
            ("$HOME/notes.txt", "Use /srv/code/notes.txt,"),
            ("${TMPDIR}/src/a.py", "Use /srv/code/src/a.py,"),
            ("C:\\Users\\me\\a.py", "Use /srv/code/a.py,"),
            ("/", "Use /srv/code,"),
        ] {
            let why = located(text).unwrap_err().to_string();
            assert!(why.contains(use_instead), "{text}: {why}");
            assert!(why.contains(&format!("the terminal for {text}")), "{why}");
        }
        for text in ["$id.tsx", "routes/$HOME", "$", "~x", "c:x"] {
            let path = located(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(path.display(), format!("/{text}"));
        }
        for text in ["..", "../x", "src/../../x", "a\0b"] {
            assert!(located(text).is_err(), "{text}");
        }
        assert!(located("/workspace/a\0b").is_err());
    }
}
