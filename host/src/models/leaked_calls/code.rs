//! Which parts of a text are code: between fences, between backticks, and in indented paragraphs.

use std::ops::Range;

/// The parts of a text that are code, fences and backticks with them. A fence without an end is none: what
/// is behind it may be anything.
pub(super) fn ranges(text: &str) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    let mut fence: Option<(usize, &str)> = None;
    let mut at = 0;
    // What is indented goes on with a paragraph, if one is open.
    let mut may_be_indented = false;
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_start();
        match (&fence, mark_of(trimmed)) {
            (None, Some(mark)) => fence = Some((at, mark)),
            (Some((from, open)), _) if ends_fence(trimmed, open) => {
                all.push(*from..at + line.len());
                fence = None;
            }
            (Some(_), _) => {}
            (None, None) if is_indented(line) && may_be_indented => all.push(at..at + line.len()),
            (None, None) => spans(line, at, &mut all),
        }
        may_be_indented = trimmed.is_empty() || may_be_indented && is_indented(line);
        at += line.len();
    }
    all
}

/// What a line that begins or ends a fence begins with.
fn mark_of(trimmed: &str) -> Option<&'static str> {
    let mut marks = ["```", "~~~"].into_iter();
    marks.find(|mark| trimmed.starts_with(mark))
}

fn ends_fence(trimmed: &str, open: &str) -> bool {
    let trimmed = trimmed.trim_end();
    trimmed.starts_with(open) && trimmed.bytes().all(|b| b == open.as_bytes()[0])
}

fn is_indented(line: &str) -> bool {
    line.starts_with("    ") || line.starts_with('\t')
}

/// Whether one of these parts, which are in order, holds this place.
pub(super) fn contains(code: &[Range<usize>], at: usize) -> bool {
    let behind = code.partition_point(|range| range.end <= at);
    code.get(behind).is_some_and(|range| range.contains(&at))
}

/// Whether a fence was begun and not ended.
pub(super) fn is_open(text: &str) -> bool {
    let closed = ranges(text).last().map_or(0, |range| range.end);
    let mut lines = text[closed..].lines().map(str::trim_start);
    lines.any(|line| line.starts_with("```") || line.starts_with("~~~"))
}

/// Code within a line.
fn spans(line: &str, at: usize, all: &mut Vec<Range<usize>>) {
    let mut from = 0;
    while let Some(start) = line[from..].find('`').map(|found| from + found) {
        let ticks = line[start..].bytes().take_while(|b| *b == b'`').count();
        let inside = start + ticks;
        let Some(end) = line[inside..].find(&line[start..inside]) else {
            return;
        };
        from = inside + end + ticks;
        all.push(at + start..at + from);
    }
}

/// Where a text stands that comes piece by piece.
#[derive(Debug, Default)]
pub(super) struct TextPosition {
    /// What the fence began with that it is in.
    fence: Option<&'static str>,
    /// Its last line, without blanks before it.
    line: String,
    ticks: FenceState,
}

/// Where a line stands among its backticks.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum FenceState {
    #[default]
    Outside,
    /// So many began code, as yet.
    Begin(usize),
    /// So many began it, and of those that end it so many are there.
    Inside(usize, usize),
}

impl TextPosition {
    pub(super) fn push(&mut self, text: &str) {
        for c in text.chars() {
            if c == '\n' {
                self.end_line();
            } else if !c.is_whitespace() || !self.line.is_empty() {
                self.line.push(c);
                self.ticks = self.ticks.after(c);
            }
        }
    }

    pub(super) fn begins_line(&self) -> bool {
        self.line.is_empty()
    }

    /// Whether what comes next is code.
    pub(super) fn is_code(&self) -> bool {
        self.fence.is_some() || self.ticks != FenceState::Outside || mark_of(&self.line).is_some()
    }

    fn end_line(&mut self) {
        match self.fence {
            None => self.fence = mark_of(&self.line),
            Some(open) if ends_fence(&self.line, open) => self.fence = None,
            Some(_) => {}
        }
        self.line.clear();
        self.ticks = FenceState::Outside;
    }
}

impl FenceState {
    fn after(self, c: char) -> Self {
        match (self, c == '`') {
            (Self::Outside, false) => Self::Outside,
            (Self::Outside, true) => Self::Begin(1),
            (Self::Begin(count), true) => Self::Begin(count + 1),
            (Self::Begin(count), false) | (Self::Inside(count, _), false) => Self::Inside(count, 0),
            (Self::Inside(count, ended), true) if ended + 1 == count => Self::Outside,
            (Self::Inside(count, ended), true) => Self::Inside(count, ended + 1),
        }
    }
}
