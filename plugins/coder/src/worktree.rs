//! The session's own branch, and git's view of the workspace when the model wants to finish.
//!
//! # Invariants
//!
//! - What the final message says of a branch comes from git, not from the model.
//! - A workspace that is not a repository, or a git command that fails, does not prevent the end.

use serde::{Deserialize, Serialize};

/// The maximum number of changed files that are named.
const NAMED: usize = 12;
/// The maximum length of the part of a branch name that is derived from the task, in characters.
const SLUG: usize = 32;
/// The maximum length of a word in it: a longer one may be a key or an address, which has no place
/// in a branch name.
const LONGEST_WORD: usize = 14;

/// The command whose output [`Worktree::read`] parses. The ends of all lines are what git prints.
pub(crate) const LOOK: &str = "git rev-parse --git-dir >/dev/null 2>&1 || exit 0; \
    echo \"branch $(git symbolic-ref --short -q HEAD)\"; \
    echo \"commit $(git rev-parse --short -q --verify HEAD)\"; \
    echo \"upstream $(git rev-parse --abbrev-ref '@{upstream}' 2>/dev/null)\"; \
    echo \"unpushed $(git rev-list --count HEAD --not --remotes 2>/dev/null)\"; \
    git --no-optional-locks status --porcelain | head -n 50";

/// Git's view of the workspace.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Worktree {
    /// The checked-out branch. Empty if there is none.
    branch: String,
    /// Its abbreviated commit. Empty if there is none.
    commit: String,
    /// Its upstream branch on the server. Empty if there is none.
    upstream: String,
    /// The number of commits that no branch of the server has.
    unpushed: u64,
    /// Files that differ from the commit.
    changed: Vec<String>,
}

impl Worktree {
    /// Parses the output of [`LOOK`]. Anything unreadable counts as empty.
    pub(crate) fn read(output: &str) -> Self {
        let mut read = Self::default();
        for line in output.lines() {
            // A state and a path: `?? notes.txt`.
            let file = line.get(3..).filter(|_| line.get(2..3) == Some(" "));
            match (line.split_once(' '), file) {
                (Some(("branch", name)), _) => read.branch = name.trim().into(),
                (Some(("commit", name)), _) => read.commit = name.trim().into(),
                (Some(("upstream", name)), _) => read.upstream = name.trim().into(),
                (Some(("unpushed", count)), _) => {
                    read.unpushed = count.trim().parse().unwrap_or(0);
                }
                (_, Some(path)) => read.changed.push(path.trim().into()),
                _ => {}
            }
        }
        read
    }

    /// The message to the model if work would be left behind.
    pub(crate) fn objection(&self, own: &str) -> Option<String> {
        let mut left = Vec::new();
        if !self.changed.is_empty() {
            left.push(format!("not committed: {}", self.named()));
        }
        if self.unpushed > 0 {
            left.push(format!("not pushed: {}", commits(self.unpushed)));
        }
        if left.is_empty() {
            return None;
        }
        Some(format!(
            "Not finished yet. In the workspace there is work that nobody else can see. {}. Commit \
             what belongs to the task on the branch `{own}`, push it with `git push -u origin \
             {own}`, delete what does not belong to it, and call `finish` again. If the push is \
             refused, do not try it again: call `finish` and say so. The same if the user wants \
             no commit.",
            capital(&left.join("; "))
        ))
    }

    /// The sentence about the work after the model's last message. `None` if there is nothing to
    /// say.
    pub(crate) fn said(&self, message: &str, own: &str) -> Option<String> {
        let mut said = Vec::new();
        let pushed = self.unpushed == 0 && self.upstream.ends_with(&format!("/{}", self.branch));
        if !self.commit.is_empty() && pushed && self.branch == own && !message.contains(own) {
            said.push(format!(
                "The work is on the branch `{own}` ({}).",
                self.commit
            ));
        }
        if self.unpushed > 0 {
            let at = match self.branch.as_str() {
                "" => format!("at {}", self.commit),
                branch => format!("on the branch `{branch}`"),
            };
            said.push(format!(
                "Not pushed: {} {at}, only in this session's workspace.",
                commits(self.unpushed)
            ));
        }
        if !self.changed.is_empty() {
            said.push(format!("Not committed: {}.", self.named()));
        }
        (!said.is_empty()).then(|| said.join(" "))
    }

    fn named(&self) -> String {
        let named: Vec<&str> = self
            .changed
            .iter()
            .take(NAMED)
            .map(String::as_str)
            .collect();
        let more = match self.changed.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{}{more}", named.join(", "))
    }
}

fn commits(count: u64) -> String {
    match count {
        1 => "1 commit".into(),
        more => format!("{more} commits"),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// The name of a session's own branch: a few words of the task, and the end of the session's id,
/// which is the part that differs.
pub(crate) fn branch(task: &str, session: &str) -> String {
    let mut slug = String::new();
    let words = task.split(|c: char| !c.is_ascii_alphanumeric());
    for word in words.filter(|word| !word.is_empty() && word.len() <= LONGEST_WORD) {
        if slug.len() + word.len() > SLUG {
            break;
        }
        slug.push_str(&word.to_ascii_lowercase());
        slug.push('-');
    }
    let name: Vec<char> = session
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let end: String = name[name.len().saturating_sub(6)..].iter().collect();
    format!("lucid/{slug}{}", end.to_ascii_lowercase())
        .trim_end_matches(['-', '/'])
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "lucid/fix-1";

    #[test]
    fn a_branch_is_named_after_the_task_and_the_session() {
        let session = "0199f1aa-0000-7000-8000-0000DEADBEEF";
        assert_eq!(
            branch("Fix the *bug* in add()!", session),
            "lucid/fix-the-bug-in-add-adbeef"
        );
        assert_eq!(branch("", session), "lucid/adbeef");
        assert_eq!(branch("", ""), "lucid");
        let key = branch("Use ghp_0123456789abcdefghij please", session);
        assert_eq!(key, "lucid/use-ghp-please-adbeef");
        assert!(branch(&"word ".repeat(99), session).len() < 50);
    }

    #[test]
    fn what_git_prints_is_read() {
        let read = Worktree::read(
            "branch lucid/fix-1\ncommit abc1234\nupstream origin/main\nunpushed 2\n M a b.py\n?? new/\n",
        );
        let wanted = Worktree {
            branch: OWN.into(),
            commit: "abc1234".into(),
            upstream: "origin/main".into(),
            unpushed: 2,
            changed: vec!["a b.py".into(), "new/".into()],
        };
        assert_eq!(read, wanted);
        assert_eq!(Worktree::read(""), Worktree::default());
        assert_eq!(
            Worktree::read("é\n日本語\nunpushed \n"),
            Worktree::default()
        );
    }

    #[test]
    fn work_that_is_left_behind_is_named_and_nothing_else_is() {
        let read = Worktree::read("branch main\ncommit a\nupstream origin/main\nunpushed 0\n");
        assert_eq!(read.objection(OWN), None);
        assert_eq!(read.said("Done.", OWN), None);

        let read = Worktree::read("branch lucid/fix-1\ncommit a\nupstream \nunpushed 1\n?? x\n");
        let told = read.objection(OWN).unwrap();
        assert!(
            told.contains("Not committed: x; not pushed: 1 commit."),
            "{told}"
        );
        let said = read.said("Done.", OWN).unwrap();
        assert!(
            said.contains("Not pushed: 1 commit on the branch `lucid/fix-1`"),
            "{said}"
        );
        assert!(said.contains("Not committed: x."), "{said}");

        let read = Worktree::read(
            "branch lucid/fix-1\ncommit a\nupstream origin/lucid/fix-1\nunpushed 0\n",
        );
        assert_eq!(read.objection(OWN), None);
        assert_eq!(
            read.said("Done.", OWN).unwrap(),
            "The work is on the branch `lucid/fix-1` (a)."
        );
        assert_eq!(read.said("It is on lucid/fix-1.", OWN), None);
    }
}
