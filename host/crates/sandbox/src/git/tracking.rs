//! The branches and tags of a session's clone beside the checked-out one, and what the model is
//! told of its clone.
//!
//! # Invariants
//! - A failure here never fails a session: a clone without them is still a clone, and says so.
//! - They are bounded in size and in time, more tightly than the clone itself. Where the server can
//!   omit file contents, these are fetched on demand.
//! - All of them have the clone's depth: a smaller one would cut the history that is there.

use std::time::Duration;

use super::GitRules;

/// How long fetching them may take.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// The largest file of the fetch, in the shell's blocks, which are 512 or 1,024 bytes.
pub(super) const BLOCKS: u32 = 128 << 10;
/// Fetches them into a clone, or leaves it unchanged. Its arguments are git's settings.
///
/// Only the server's advertisement tells whether it supports filters: git itself drops a filter
/// that the server does not know, and fetches everything. A lazily fetched history without trees
/// would be smaller still, but a push from it reads the tree of each branch that the server has,
/// one request for each.
pub(super) const FETCH: &str = r#"dir=$(git rev-parse --git-dir) || exit 1
filter=
if GIT_TRACE_PACKET=1 git "$@" ls-remote --quiet origin HEAD 2>&1 | grep -q 'fetch=.*filter'; then
  filter=--filter=blob:none
fi
(
  ulimit -f "$BLOCKS"
  exec git "$@" -c core.logAllRefUpdates=false -c gc.auto=0 -c maintenance.auto=false -c fetch.unpackLimit=1 \
    fetch --quiet --no-tags $DEPTH $filter origin '+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*'
)
code=$?
if [ $code -ne 0 ]; then
  rm -f "$dir"/objects/pack/tmp_* "$dir"/shallow.lock
  for key in remote.origin.promisor remote.origin.partialclonefilter extensions.partialclone; do
    git "$@" config --unset-all $key
  done
  exit $code
fi
git "$@" pack-refs --all"#;

/// The state of a session's clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneState {
    /// Whether the repository has no commit yet.
    pub empty: bool,
    /// Whether it has all branches and tags of the server.
    pub all_branches: bool,
}

impl CloneState {
    /// Describes the clone to a model.
    #[must_use]
    pub fn describe(&self, rules: &GitRules) -> String {
        let mut sentences = vec!["The workspace is a git clone.".to_owned()];
        if self.empty {
            sentences.push("The repository has no commit yet.".to_owned());
        } else {
            sentences.extend(rules.depth.map(|depth| {
                format!(
                    "It is shallow: of each branch the last {depth} commits are there, and `git fetch --unshallow` brings the rest."
                )
            }));
            sentences.push(if self.all_branches {
                "All branches and tags of the server were known when it was made: `git checkout NAME` takes one, and content that is not there yet is fetched by itself.".to_owned()
            } else {
                "Other branches and tags are not in it: `git fetch origin NAME` brings one, `git ls-remote origin` lists them.".to_owned()
            });
        }
        sentences.push("`origin` is reached through the host, which adds the credentials; there are none to look for.".to_owned());
        sentences.push(format!(
            "It takes pushes to these branches only: {}. Tags cannot be pushed.",
            rules.branches
        ));
        sentences.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::BranchPolicy;
    use super::*;

    #[test]
    fn a_model_is_told_how_deep_its_clone_is_and_where_it_may_push() {
        let mut rules = GitRules {
            allow_private: false,
            allow_owner: false,
            branches: BranchPolicy::parse("lucid/*,docs").unwrap(),
            depth: Some(20),
            largest: 1,
            longest: Duration::from_secs(1),
        };
        let cloned = CloneState {
            empty: false,
            all_branches: true,
        };
        let told = cloned.describe(&rules);
        for part in [
            "last 20 commits",
            "git checkout NAME",
            "only: lucid/*, docs.",
        ] {
            assert!(told.contains(part), "{told}");
        }
        rules.depth = None;
        let cloned = CloneState {
            all_branches: false,
            ..cloned
        };
        let told = cloned.describe(&rules);
        assert!(
            told.contains("git fetch origin NAME") && !told.contains("shallow"),
            "{told}"
        );
    }
}
