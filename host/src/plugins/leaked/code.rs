//! Owns where a text is code: between fences, and between backticks.

use std::ops::Range;

/// The parts of a text that are code, fences and backticks with them. A fence without an end is none: what
/// is behind it may be anything.
pub(super) fn ranges(text: &str) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    let mut fence: Option<(usize, &str)> = None;
    let mut at = 0;
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
            (None, None) => spans(line, at, &mut all),
        }
        at += line.len();
    }
    all
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
