//! Problems of a deployment, and their positions.
//!
//! # Invariants
//!
//! - Each problem is one line that begins with its position in the format compilers use, so that
//!   editors can jump to it.
//! - [`ManifestProblems`] holds at least one.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use lucid_types::sanitize::sanitize;

/// The maximum length of a displayed problem, in characters.
const LONGEST: usize = 1_000;

/// A position in a manifest, both from 1. The column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, serde::Serialize)]
pub struct SourcePosition {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// One problem of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ManifestProblem {
    /// The manifest's path, as it was given. `None` if no manifest is to blame.
    pub file: Option<String>,
    /// The position in it. `None` if the file as a whole is meant.
    pub at: Option<SourcePosition>,
    /// What is wrong and what to do, without a full stop.
    pub what: String,
}

impl ManifestProblem {
    /// A problem of the environment, or of this binary.
    pub fn plain(what: impl AsRef<str>) -> Self {
        Self::new(None, None, what.as_ref())
    }

    /// A problem of a file as a whole.
    pub fn of_file(file: &Path, what: impl AsRef<str>) -> Self {
        Self::new(Some(display_path(file)), None, what.as_ref())
    }

    /// A problem at a position in a file, or of no file if `file` is `None`.
    pub fn at(file: Option<&Path>, at: SourcePosition, what: impl AsRef<str>) -> Self {
        Self::new(file.map(display_path), file.map(|_| at), what.as_ref())
    }

    fn new(file: Option<String>, at: Option<SourcePosition>, what: &str) -> Self {
        let what = sanitize(what, LONGEST);
        Self { file, at, what }
    }
}

fn display_path(file: &Path) -> String {
    sanitize(&file.display().to_string(), 300)
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(SourcePosition { line, column }) = self.at {
                write!(f, "{line}:{column}:")?;
            }
            f.write_str(" ")?;
        }
        f.write_str(self.what.trim_end_matches('.'))
    }
}

/// All problems, in the order of the file. A line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestProblems(Vec<ManifestProblem>);

impl ManifestProblems {
    /// Succeeds if there is no problem. Only as many are kept as a person reads at once.
    pub fn unless_none(mut all: Vec<ManifestProblem>) -> Result<(), Self> {
        if all.is_empty() {
            return Ok(());
        }
        all.sort_by_key(|problem| problem.at);
        all.dedup();
        all.truncate(50);
        Err(Self(all))
    }

    /// Iterates over the problems.
    pub fn iter(&self) -> impl Iterator<Item = &ManifestProblem> {
        self.0.iter()
    }
}

impl From<ManifestProblem> for ManifestProblems {
    fn from(problem: ManifestProblem) -> Self {
        Self(vec![problem])
    }
}

impl std::error::Error for ManifestProblems {}

impl fmt::Display for ManifestProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

/// Converts byte offsets in a text to lines and columns.
pub(super) struct LineIndex<'a> {
    text: &'a str,
    /// The offset of each line.
    starts: Vec<usize>,
}

impl<'a> LineIndex<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let starts = std::iter::once(0)
            .chain(breaks.map(|(at, _)| at + 1))
            .collect();
        Self { text, starts }
    }

    /// The position of a span's beginning.
    pub(super) fn at(&self, span: &Range<usize>) -> SourcePosition {
        let byte = span.start.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= byte).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.as_bytes().get(start..byte).unwrap_or_default();
        // Counts bytes that do not continue a character.
        let column = 1 + before.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        SourcePosition { line, column }
    }
}

/// The known name that was probably meant.
pub(super) fn nearest<'n>(
    given: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    // Names are short: a long text is not a misspelling of one, and is expensive to compare.
    if given.len() > 100 {
        return None;
    }
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The end of a sentence about an unknown name: what was probably meant, and what is available.
pub(crate) fn suggest<'n>(given: &str, known: impl IntoIterator<Item = &'n str> + Clone) -> String {
    let all: Vec<&str> = known.clone().into_iter().collect();
    let there = match all.as_slice() {
        [] => "there are none".to_owned(),
        all => format!("there are: {}", all.join(", ")),
    };
    match nearest(given, known) {
        Some(meant) => format!("did you mean `{meant}`? ({there})"),
        None => there,
    }
}
