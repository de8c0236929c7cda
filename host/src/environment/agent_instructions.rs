//! A repository's instructions for agents: which files they are read from, and in which order.
//!
//! # Invariants
//!
//! - The file with the highest priority comes first, each begins with its name, and text beyond the
//!   limit is cut with a sentence that says so.
//! - A file that cannot be read is skipped.

use std::io::Read as _;

use lucid_sandbox::workspace::Workspace;

/// Files with a repository's instructions for agents, in order of priority.
const FILES: [&str; 3] = ["AGENTS.md", "CLAUDE.md", ".cursorrules"];
/// The maximum size of one of them, in bytes.
const LONGEST: u64 = 32 * 1024;

/// The instructions for agents in a workspace's repository: a text for each file that exists.
pub(super) fn read_instructions(workspace: &Workspace) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut instructions: Vec<String> = Vec::new();
    for name in FILES {
        let Some(text) = read(workspace, name) else {
            continue;
        };
        // One is often a link to another.
        if text.trim().is_empty() || texts.contains(&text) {
            continue;
        }
        instructions.push(format!("{name}:\n\n{text}"));
        texts.push(text);
    }
    instructions
}

fn read(workspace: &Workspace, name: &str) -> Option<String> {
    let path = workspace.path(name).ok()?;
    let (file, length) = workspace.open(&path).ok()?;
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).ok()?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if length > LONGEST {
        // The limit may have split a character.
        while text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
        text.push_str(&format!(
            "\n[{name} has {length} bytes; this is its beginning. Read the file for the rest.]"
        ));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lucid_types::ids::SessionId;

    fn with(files: &[(&str, &str)]) -> Vec<String> {
        let base = tempfile::tempdir().unwrap();
        let workspace = Workspace::create(base.path(), &"u".into(), SessionId::new()).unwrap();
        for (name, text) in files {
            std::fs::write(workspace.host_path().join(name), text).unwrap();
        }
        read_instructions(&workspace)
    }

    #[test]
    fn all_files_of_instructions_are_told_by_name_and_the_weightiest_first() {
        assert!(with(&[]).is_empty());
        let told = with(&[
            (".cursorrules", "third"),
            ("CLAUDE.md", "second"),
            ("AGENTS.md", "first"),
        ]);
        let wanted = [
            "AGENTS.md:\n\nfirst",
            "CLAUDE.md:\n\nsecond",
            ".cursorrules:\n\nthird",
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn the_same_text_under_two_names_is_told_once_and_nothing_not_at_all() {
        let told = with(&[
            ("CLAUDE.md", "same"),
            ("AGENTS.md", "same"),
            (".cursorrules", " \n"),
        ]);
        assert_eq!(told, ["AGENTS.md:\n\nsame"]);
    }

    #[test]
    fn a_long_file_is_cut_and_that_is_said() {
        let text = "é".repeat(40_000);
        let told = with(&[("AGENTS.md", &format!("x{text}"))]).remove(0);
        assert!(told.len() < 33_000, "{}", told.len());
        assert!(
            told.contains("AGENTS.md has 80001 bytes"),
            "{}",
            &told[32_000..]
        );
        assert!(!told.contains(char::REPLACEMENT_CHARACTER));
    }
}
