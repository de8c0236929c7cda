//! Owns where a text is code: between fences, between backticks, and where a paragraph is indented.

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
        let mark = ["```", "~~~"]
            .into_iter()
            .find(|mark| trimmed.starts_with(mark));
        match (&fence, mark) {
            (None, Some(mark)) => fence = Some((at, mark)),
            (Some((from, open)), Some(mark))
                if *open == mark && trimmed.trim_end().bytes().all(|b| b == mark.as_bytes()[0]) =>
            {
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

fn is_indented(line: &str) -> bool {
    line.starts_with("    ") || line.starts_with('\t')
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
