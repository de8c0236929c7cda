//! The rule for which branches sessions may push to.
//!
//! # Invariants
//! - Only a well-formed name below `refs/heads/` is ever allowed, so no rule reaches a tag, a pull
//!   request or another server's private refs.
//! - A branch that is not named is not allowed.

use std::fmt;
use std::sync::Arc;

/// The namespace of branches.
const HEADS: &str = "refs/heads/";
/// The coder's own branches.
const DEFAULT: &str = "lucid/*";
/// The longest accepted name of a ref, in bytes.
const LONGEST: usize = 1024;

/// The branches that sessions may create, change and delete on the git server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BranchPolicy {
    /// Every branch.
    Any,
    /// Patterns: a branch's name, or a prefix with `*` at its end.
    These(Arc<[String]>),
}

impl Default for BranchPolicy {
    fn default() -> Self {
        Self::These([DEFAULT.to_owned()].into())
    }
}

impl BranchPolicy {
    /// Parses a comma-separated list of patterns such as `lucid/*,feature/*,main`; `*` is every
    /// branch. `None` if one of them is not a pattern.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let patterns = text.split(',').map(str::trim);
        let patterns: Vec<&str> = patterns.filter(|pattern| !pattern.is_empty()).collect();
        if patterns.is_empty() {
            return None;
        }
        let fits = |pattern: &&str| match pattern.strip_suffix('*') {
            // A prefix is valid if a longer name is.
            Some(beginning) => is_name(&format!("{beginning}x")),
            None => is_name(pattern),
        };
        if !patterns.iter().all(fits) {
            return None;
        }
        Some(if patterns.contains(&"*") {
            Self::Any
        } else {
            Self::These(patterns.into_iter().map(str::to_owned).collect())
        })
    }

    /// Whether a session may create, change or delete this ref (`refs/heads/lucid/fix`).
    pub(super) fn allow(&self, reference: &str) -> bool {
        let Some(branch) = reference.strip_prefix(HEADS) else {
            return false;
        };
        is_name(branch)
            && match self {
                Self::Any => true,
                Self::These(patterns) => patterns.iter().any(|pattern| {
                    pattern
                        .strip_suffix('*')
                        .map_or(branch == pattern, |start| {
                            branch.len() > start.len() && branch.starts_with(start)
                        })
                }),
            }
    }
}

/// As it is written in the setting.
impl fmt::Display for BranchPolicy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => out.write_str("*"),
            Self::These(patterns) => out.write_str(&patterns.join(", ")),
        }
    }
}

/// Whether git accepts this as a branch name, according to git-check-ref-format(1).
fn is_name(name: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\,".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.to_ascii_lowercase().ends_with(".lock")
    };
    name.len() <= LONGEST
        && !name.starts_with('-')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.contains(odd)
        && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allowed(patterns: &str, reference: &str) -> bool {
        BranchPolicy::parse(patterns).unwrap().allow(reference)
    }

    #[test]
    fn the_agents_own_branches_are_allowed_and_nothing_else() {
        let own = BranchPolicy::default();
        for good in [
            "refs/heads/lucid/fix",
            "refs/heads/lucid/a/b",
            "refs/heads/lucid/ü",
        ] {
            assert!(own.allow(good), "{good}");
        }
        for bad in [
            "refs/heads/main",
            "refs/heads/lucid",
            "refs/heads/lucid/",
            "refs/heads/lucidity",
            "refs/heads/LUCID/fix",
            "refs/heads/lucid/../main",
            "refs/heads/lucid//x",
            "refs/heads/lucid/.x",
            "refs/heads/lucid/x.lock",
            "refs/heads/lucid/x.LOCK",
            "refs/heads/lucid/x.",
            "refs/heads/lucid/@{1}",
            "refs/heads/lucid/a b",
            "refs/heads/lucid/a\0b",
            "refs/heads/lucid/a\\b",
            "refs/heads//lucid/x",
            "refs/heads/refs/heads/lucid/x",
            "refs/tags/lucid/v1",
            "refs/for/lucid/x",
            "refs/lucid/x",
            "lucid/x",
            "HEAD",
            "",
        ] {
            assert!(!own.allow(bad), "{bad}");
        }
    }

    #[test]
    fn a_pattern_is_a_branch_or_the_beginning_of_one() {
        assert!(allowed("main", "refs/heads/main"));
        assert!(!allowed("main", "refs/heads/main2"));
        assert!(allowed("fix-*, lucid/*", "refs/heads/fix-1"));
        assert!(allowed("fix-*, lucid/*", "refs/heads/lucid/1"));
        assert!(!allowed("fix-*, lucid/*", "refs/heads/fix-"));
        for wrong in [
            "",
            " , ",
            "a*b",
            "*/x",
            "**",
            "-x",
            "a b",
            "refs/../x",
            "/a",
            "a/",
        ] {
            assert_eq!(BranchPolicy::parse(wrong), None, "{wrong}");
        }
        let told = |patterns| BranchPolicy::parse(patterns).unwrap().to_string();
        assert_eq!(told("a,b/*"), "a, b/*");
        assert_eq!(told("a,*"), "*");
    }

    #[test]
    fn every_branch_is_no_tag() {
        assert!(allowed("*", "refs/heads/main"));
        for bad in [
            "refs/tags/v1",
            "refs/pull/1/head",
            "HEAD",
            "refs/heads/../tags/v1",
        ] {
            assert!(!allowed("*", bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_allowed_is_a_branch_below_the_pattern(reference in "\\PC{0,40}") {
            for reference in [reference.clone(), format!("refs/heads/{reference}")] {
                if BranchPolicy::default().allow(&reference) {
                    prop_assert!(reference.starts_with("refs/heads/lucid/"));
                }
            }
        }
    }
}
