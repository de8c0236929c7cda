//! Explains why a text that an edit wants to replace is not in its file: which part the model got
//! nearly right.
//!
//! # Invariants
//! - Pure; the result is a sentence of bounded length.
//! - It only explains. A near match is never replaced, since it may be the wrong place.

/// The most places that are named.
const MAX_MATCHES: usize = 5;
/// The most lines of the file that are shown.
const MAX_SHOWN: usize = 12;
/// The longest part of a line that is shown, in characters.
const WIDTH: usize = 200;
/// The most lines that are compared, so that a large file with many similar lines takes a bounded
/// time.
const COMPARED: usize = 2_000_000;

/// Describes a near match, as a sentence that follows "does not occur in the file".
pub(super) fn explain(content: &str, old: &str) -> Option<String> {
    let file: Vec<&str> = content.lines().collect();
    let wanted: Vec<&str> = old.lines().collect();
    if let Some(plain) = without_numbers(&wanted)
        && content.contains(plain.trim_end_matches('\n'))
    {
        return Some(
            "`old_str` begins its lines with the numbers that `view` shows; they are not in the \
             file. Leave them and the tab behind them out."
                .to_owned(),
        );
    }
    let same = |one: &str, other: &str| one.split_whitespace().eq(other.split_whitespace());
    let places = find(&file, &wanted, same);
    if let Some(first) = places.first() {
        let lines = numbers(&places);
        let hint = shown(&file, *first, wanted.len());
        return Some(format!(
            "At {lines} it differs only in spaces, tabs or empty lines. There the file reads:\n{hint}"
        ));
    }
    let same = |one: &str, other: &str| !one.trim().is_empty() && one.trim() == other.trim();
    let (at, first) = wanted
        .iter()
        .enumerate()
        .find(|(_, line)| line.trim().len() > 3)?;
    let places = find(&file, &[first], same);
    let place = *places.first()?;
    let lines = numbers(&places);
    let which = if at == 0 { "first" } else { "first full" };
    let hint = shown(&file, place, wanted.len() - at);
    Some(format!(
        "Its {which} line is at {lines}, but what follows differs. There the file reads:\n{hint}"
    ))
}

/// The text without what looks like line numbers, if every line has one.
fn without_numbers(wanted: &[&str]) -> Option<String> {
    let mut plain = String::new();
    for line in wanted {
        let (number, rest) = line.split_once('\t')?;
        let number = number.trim();
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        plain.push_str(rest);
        plain.push('\n');
    }
    (!plain.trim().is_empty()).then_some(plain)
}

/// The indexes, from zero, at which consecutive lines are equal under `same`.
fn find(file: &[&str], wanted: &[&str], same: impl Fn(&str, &str) -> bool) -> Vec<usize> {
    if wanted.is_empty() || wanted.iter().all(|line| line.trim().is_empty()) {
        return Vec::new();
    }
    file.windows(wanted.len())
        .take(COMPARED / wanted.len())
        .enumerate()
        .filter(|(_, lines)| lines.iter().zip(wanted).all(|(a, b)| same(a, b)))
        .map(|(at, _)| at)
        .take(MAX_MATCHES)
        .collect()
}

fn numbers(places: &[usize]) -> String {
    let numbers: Vec<String> = places.iter().map(|at| (at + 1).to_string()).collect();
    match numbers.as_slice() {
        [one] => format!("line {one}"),
        all => format!("the lines {}", all.join(", ")),
    }
}

fn shown(file: &[&str], first: usize, count: usize) -> String {
    let mut text = String::new();
    for (number, line) in file
        .iter()
        .enumerate()
        .skip(first)
        .take(count.min(MAX_SHOWN))
    {
        let line: String = line.chars().take(WIDTH).collect();
        text.push_str(&format!("{:>6}\t{line}\n", number + 1));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "def add(a, b):\n    return a - b\n\n\ndef sub(a, b):\n    return a - b\n";

    #[test]
    fn a_text_that_differs_in_spaces_alone_is_shown_as_the_file_has_it() {
        let told = explain(FILE, "def add(a, b):\n\treturn  a - b\n").unwrap();
        assert!(
            told.contains("At line 1 it differs only in spaces"),
            "{told}"
        );
        assert!(told.contains("     2\t    return a - b"), "{told}");
        let told = explain(FILE, "\treturn a - b").unwrap();
        assert!(told.contains("At the lines 2, 6"), "{told}");
    }

    #[test]
    fn a_text_that_begins_right_is_shown_how_it_goes_on() {
        let told = explain(FILE, "def sub(a, b):\n    return b - a").unwrap();
        assert!(told.contains("Its first line is at line 5"), "{told}");
        assert!(told.contains("     6\t    return a - b"), "{told}");
    }

    #[test]
    fn numbers_of_lines_are_named() {
        let told = explain(FILE, "     5\tdef sub(a, b):\n     6\t    return a - b").unwrap();
        assert!(told.contains("numbers that `view` shows"), "{told}");
    }

    #[test]
    fn what_is_nowhere_near_is_not_explained_and_nothing_takes_long() {
        for old in ["zebra", "", "\n", "}", "\n\n\n\n\n\n\n"] {
            assert_eq!(explain(FILE, old), None, "{old:?}");
        }
        let large = "same\n".repeat(800_000);
        let told = explain(&large, &format!("{}other", "same\n".repeat(400_000))).unwrap();
        assert!(told.len() < 5_000, "{}", told.len());
    }
}
