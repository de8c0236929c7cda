//! A readable diff between the commands of two steps.
//!
//! # Invariants
//! - The output is bounded, however long the commands are.

use std::time::Duration;

use serde_json::Value;
use similar::TextDiff;

use lucid_types::plural;
use lucid_types::text::cut;

/// Maximum number of lines in a diff.
const LINES: usize = 60;
/// Maximum length of a line in characters: a value can be a whole file.
const LINE: usize = 300;
/// Deadline for the diff: the finest one takes too long if two texts have little in common.
const LONGEST: Duration = Duration::from_millis(200);

/// Formats JSON with one value per line. Text that is not JSON is returned unchanged.
pub fn readable(json: &str) -> String {
    let value = serde_json::from_str::<Value>(json).ok();
    value
        .and_then(|value| serde_json::to_string_pretty(&value).ok())
        .unwrap_or_else(|| json.to_owned())
}

/// The lines that differ, with some context: `-` marks lines of `then`, `+` lines of `now`.
pub fn difference(then: &str, now: &str) -> String {
    let diff = TextDiff::configure().timeout(LONGEST).diff_lines(then, now);
    let text = diff.unified_diff().context_radius(2).to_string();
    let mut lines = text.lines();
    let mut output = String::new();
    for line in lines.by_ref().take(LINES) {
        let start = cut(line, LINE);
        output.push_str(start);
        if start.len() < line.len() {
            output.push('…');
        }
        output.push('\n');
    }
    let left = lines.count();
    if left > 0 {
        output.push_str(&format!("… {}\n", plural::count(left, "more line")));
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_the_value_that_changed() {
        let text =
            |what: &str| readable(&format!(r#"[{{"Append": "{what}"}}, {{"Cancel": "t1"}}]"#));
        let output = difference(&text("one"), &text("two"));
        assert!(output.contains(r#"-    "Append": "one""#), "{output}");
        assert!(output.contains(r#"+    "Append": "two""#), "{output}");
    }

    #[test]
    fn a_difference_has_a_limit_however_long_the_commands_are() {
        let lines = |what: &str| {
            let mut text = String::new();
            for number in 0..10_000 {
                text += &format!("{what} {number} {}\n", "ä".repeat(LINE));
            }
            text
        };
        let (then, now) = (lines("then"), lines("now"));
        let output = difference(&then, &now);
        assert!(
            output.len() < LINES * (LINE + 2) * 2,
            "{} bytes",
            output.len()
        );
        assert!(
            output.ends_with("more lines\n"),
            "nothing says that there is more"
        );
        assert_eq!(difference("same", "same"), "");
    }
}
