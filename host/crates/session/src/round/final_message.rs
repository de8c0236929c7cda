//! Decides how the end of a task is shown, so that the agent's last message appears exactly once.
//!
//! # Invariants
//! - Pure: a function of what the policy said and what clients were shown of it.
//! - Nothing that the policy said is omitted, and nothing appears both in an event and in the
//!   sentence that ends the task.

/// The closing sentence of a task whose final text is shown as an event.
const COMPLETED: &str = "Task completed.";
/// Maximum length of a closing sentence, in characters.
const SENTENCE: usize = 200;

/// The final message of a task.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FinalMessage<'a> {
    /// The text still to be shown as an event.
    pub(super) event: Option<&'a str>,
    /// The short sentence for the frame `completed`.
    pub(super) sentence: &'a str,
}

/// Splits the final message. `text` is what the policy ends its task with; `last_message` is the agent's
/// last message in the task, which clients have already been shown.
pub(super) fn final_message<'a>(text: &'a str, last_message: Option<&str>) -> FinalMessage<'a> {
    let text = text.trim();
    let rest = last_message.and_then(|last_message| behind(text, last_message.trim()));
    let unseen = rest.unwrap_or(text);
    if unseen.is_empty() {
        return FinalMessage {
            event: None,
            sentence: COMPLETED,
        };
    }
    // A task with no other message ends in a single sentence, as the mock's does.
    if rest.is_none() && !text.contains('\n') && text.chars().count() <= SENTENCE {
        return FinalMessage {
            event: None,
            sentence: text,
        };
    }
    FinalMessage {
        event: Some(unseen),
        sentence: COMPLETED,
    }
}

/// Returns what follows `last_message`, if `text` begins with it as a paragraph of its own.
fn behind<'a>(text: &'a str, last_message: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(last_message)?;
    (rest.is_empty() || rest.starts_with('\n')).then(|| rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn told(text: &str, last_message: Option<&str>, event: Option<&str>, sentence: &str) {
        assert_eq!(
            final_message(text, last_message),
            FinalMessage { event, sentence }
        );
    }

    #[test]
    fn what_was_shown_is_not_told_again() {
        let long = format!("I changed:\n{}", "- a line\n".repeat(40));
        told(&long, Some(&long), None, COMPLETED);
        told("It is 42.", Some("It is 42.\n"), None, COMPLETED);
    }

    #[test]
    fn what_was_not_shown_is_an_event_and_what_follows_it_too() {
        let long = "A report.\nOf two lines.";
        told(long, None, Some(long), COMPLETED);
        told(long, Some("I look around."), Some(long), COMPLETED);
        let more = "Fixed.\n\nNot pushed: 1 commit.";
        told(
            more,
            Some("Fixed."),
            Some("Not pushed: 1 commit."),
            COMPLETED,
        );
        let wide = "x".repeat(SENTENCE + 1);
        told(&wide, None, Some(&wide), COMPLETED);
    }

    #[test]
    fn a_short_sentence_of_its_own_ends_the_task_itself() {
        told("[MOCK] Done.", None, None, "[MOCK] Done.");
        told("Fixed it.", Some("Fixed"), None, "Fixed it.");
        told("Fixed.", Some("I look around."), None, "Fixed.");
    }

    #[test]
    fn no_words_are_a_sentence_too() {
        told(" \n", Some("said"), None, COMPLETED);
        told("", None, None, COMPLETED);
    }
}
