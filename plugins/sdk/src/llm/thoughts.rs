//! Separates a model's reasoning from its answer where a server sends both as one text, with tags
//! around the reasoning.
//!
//! # Invariants
//!
//! - Where the text was split makes no difference.
//! - No tag is shown, neither whole nor in part.
//! - Text reported as one of the two is never reported as the other later, except for reasoning
//!   that only its closing tag revealed, which is reported as such.
//! - A tag counts only at the beginning of a line and outside of code, so an answer about such tags
//!   keeps them.

/// The tags around reasoning.
const TAGS: [(&str, &str); 6] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
];

/// The number of bytes of an answer that are looked at again with the next fragment.
const TAIL: usize = 8;

/// A piece of a model's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// More of the answer.
    Text(String),
    /// More reasoning.
    Thought(String),
    /// The end of the reasoning, and its tags.
    End(&'static str, String),
    /// All text so far was reasoning: its opening tag was in the prompt, written by the server.
    WasThought(&'static str, String),
}

/// Splits one text.
#[derive(Debug, Default)]
pub struct Thoughts {
    /// Text that is undecided yet.
    held: String,
    state: State,
    /// Whether some of the answer was returned.
    answered: bool,
    /// Blanks that the answer may begin with.
    blank: String,
    /// Whether there was reasoning.
    thought: bool,
    /// Whether the answer is about such tags.
    speaks: bool,
    /// The end of the returned text.
    tail: String,
    /// How much of the held text was searched for a closing tag.
    searched: usize,
    line: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    /// Within the tags of this index.
    Thought(usize),
    /// The same, in the middle of the answer: it is text if it is not closed.
    Perhaps(usize),
}

/// The answer's position in its line.
#[derive(Debug, Default)]
struct Line {
    /// Whether the line has anything but blanks.
    begun: bool,
    /// The number of fence characters that it begins with.
    fence: usize,
    /// Whether it is within a code block.
    in_code: bool,
}

impl Line {
    fn take(&mut self, c: char) {
        match c {
            '\n' => {
                if self.fence >= 3 {
                    self.in_code = !self.in_code;
                }
                (self.begun, self.fence) = (false, 0);
            }
            '`' | '~' if !self.begun || self.fence > 0 && self.fence < 3 => {
                self.begun = true;
                self.fence += 1;
            }
            c if c.is_whitespace() && !self.begun => {}
            _ => {
                self.begun = true;
                if self.fence < 3 {
                    self.fence = 0;
                }
            }
        }
    }
}

impl Thoughts {
    /// Takes more of the text.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        self.held.push_str(text);
        self.decide(false, out);
    }

    /// Ends the text.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        self.decide(true, out);
    }

    fn decide(&mut self, over: bool, out: &mut Vec<Piece>) {
        loop {
            let before = (self.held.len(), self.state);
            match self.state {
                State::Text => self.text(over, out),
                State::Thought(tag) => self.thought(tag, over, out),
                State::Perhaps(tag) => self.perhaps(tag, over, out),
            }
            if self.held.is_empty() || before == (self.held.len(), self.state) {
                return;
            }
        }
    }

    /// Returns text up to a tag, or to what may become one.
    fn text(&mut self, over: bool, out: &mut Vec<Piece>) {
        let mut end = self.held.len();
        let mut found = None;
        for (at, c) in self.held.char_indices() {
            if !self.line.begun && !self.line.in_code && !c.is_whitespace() {
                let rest = &self.held[at..];
                match begins(rest, over) {
                    Begins::Open(tag) => found = Some((tag, true)),
                    Begins::Close(tag) if !self.thought && !self.spoke(at) => {
                        found = Some((tag, false))
                    }
                    Begins::Unknown => {
                        end = at;
                        break;
                    }
                    Begins::Close(_) | Begins::No => {}
                }
                if found.is_some() {
                    end = at;
                    break;
                }
            }
            self.line.take(c);
        }
        let mut rest = self.held.split_off(end);
        let told = std::mem::take(&mut self.held);
        if let Some((tag, opens)) = found {
            if opens {
                rest.drain(..TAGS[tag].0.len());
                self.tell(told, out);
                self.blank.clear();
                self.state = if self.answered {
                    State::Perhaps(tag)
                } else {
                    State::Thought(tag)
                };
            } else {
                rest.drain(..TAGS[tag].1.len());
                self.tell(told, out);
                let after = blank_lines(&mut rest);
                out.push(Piece::WasThought(
                    TAGS[tag].0,
                    format!("{}{after}", TAGS[tag].1),
                ));
                self.answered = false;
                self.blank.clear();
                self.end_thought();
            }
        } else {
            self.tell(told, out);
        }
        self.held = rest;
    }

    /// Whether the answer mentions such tags before this position.
    fn spoke(&self, at: usize) -> bool {
        self.speaks || speaks(&format!("{}{}", self.tail, &self.held[..at]))
    }

    /// Blanks before an answer are held back: before reasoning they are dropped.
    fn tell(&mut self, mut text: String, out: &mut Vec<Piece>) {
        if !self.answered {
            self.blank.push_str(&text);
            if self.blank.trim().is_empty() {
                return;
            }
            text = std::mem::take(&mut self.blank);
        }
        if !text.is_empty() {
            self.answered = true;
            self.tail.push_str(&text);
            self.speaks |= speaks(&self.tail);
            let from = self
                .tail
                .floor_char_boundary(self.tail.len().saturating_sub(TAIL));
            self.tail.drain(..from);
            out.push(Piece::Text(text));
        }
    }

    fn thought(&mut self, tag: usize, over: bool, out: &mut Vec<Piece>) {
        let close = TAGS[tag].1;
        if let Some(at) = self.held.find(close) {
            let after = at + close.len();
            // Blanks after it are removed too, and may be incomplete.
            if !over && !ends_blank(&self.held[after..]) {
                self.told_up_to(at, out);
                return;
            }
            let mut rest = self.held.split_off(at);
            rest.drain(..close.len());
            let thought = std::mem::take(&mut self.held);
            think(thought, out);
            let blank = blank_lines(&mut rest);
            out.push(Piece::End(TAGS[tag].0, format!("{close}{blank}")));
            self.held = rest;
            self.end_thought();
        } else if over {
            think(std::mem::take(&mut self.held), out);
            out.push(Piece::End(TAGS[tag].0, String::new()));
            self.end_thought();
        } else {
            let at = self.held.len() - beginning_at_end(&self.held, close);
            self.told_up_to(at, out);
        }
    }

    fn told_up_to(&mut self, at: usize, out: &mut Vec<Piece>) {
        let rest = self.held.split_off(at);
        think(std::mem::replace(&mut self.held, rest), out);
    }

    /// Reasoning in the middle of an answer is returned once its end is there.
    fn perhaps(&mut self, tag: usize, over: bool, out: &mut Vec<Piece>) {
        let close = TAGS[tag].1;
        let from = self.searched.saturating_sub(close.len());
        let from = self.held.floor_char_boundary(from);
        if self.held[from..].contains(close) {
            self.searched = 0;
            self.state = State::Thought(tag);
            return;
        }
        self.searched = self.held.len();
        if over {
            let text = format!("{}{}", TAGS[tag].0, std::mem::take(&mut self.held));
            self.state = State::Text;
            self.tell(text, out);
        }
    }

    fn end_thought(&mut self) {
        self.state = State::Text;
        self.thought = true;
        self.line = Line::default();
    }
}

/// Whether an answer is about such tags, like one that explains them.
fn speaks(text: &str) -> bool {
    text.contains("<think") || text.contains("`</")
}

fn think(thought: String, out: &mut Vec<Piece>) {
    if !thought.is_empty() {
        out.push(Piece::Thought(thought));
    }
}

enum Begins {
    Open(usize),
    /// A closing tag alone in its line.
    Close(usize),
    /// It may become one of them.
    Unknown,
    No,
}

fn begins(text: &str, over: bool) -> Begins {
    for (tag, (open, close)) in TAGS.iter().enumerate() {
        if text.starts_with(open) {
            return Begins::Open(tag);
        }
        if let Some(after) = text.strip_prefix(close) {
            return match after.chars().next() {
                Some(next) if !matches!(next, '\n' | '\r') => Begins::No,
                // Blanks after it are removed too.
                _ if over || ends_blank(after) => Begins::Close(tag),
                _ => Begins::Unknown,
            };
        }
        if !over && (open.starts_with(text) || close.starts_with(text)) {
            return Begins::Unknown;
        }
    }
    Begins::No
}

/// Whether it is known how many blanks this begins with, as far as that matters.
fn ends_blank(text: &str) -> bool {
    !text.trim_start().is_empty() || text.bytes().filter(|b| *b == b'\n').count() >= 2
}

/// Removes leading blanks, up to an empty line.
fn blank_lines(text: &mut String) -> String {
    let mut lines = 0;
    let end = text.char_indices().find(|(_, c)| {
        let stop = !c.is_whitespace() || lines == 2;
        lines += usize::from(*c == '\n');
        stop
    });
    let rest = text.split_off(end.map_or(text.len(), |(at, _)| at));
    std::mem::replace(text, rest)
}

/// The length of the longest suffix of a text, in bytes, that is a prefix of `of`.
fn beginning_at_end(text: &str, of: &str) -> usize {
    let ends = of.char_indices().map(|(at, _)| at).skip(1);
    ends.filter(|end| text.ends_with(&of[..*end]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The resulting reasoning and answer.
    fn split(pieces: &[&str]) -> (String, String) {
        let mut thoughts = Thoughts::default();
        let mut out = Vec::new();
        for piece in pieces {
            thoughts.push(piece, &mut out);
        }
        thoughts.finish(&mut out);
        let (mut thought, mut text) = (String::new(), String::new());
        for piece in out {
            match piece {
                Piece::Text(more) => text.push_str(&more),
                Piece::Thought(more) => thought.push_str(&more),
                Piece::End(..) => {}
                Piece::WasThought(..) => thought.push_str(&std::mem::take(&mut text)),
            }
        }
        (thought, text)
    }

    #[test]
    fn reasoning_is_told_from_the_answer_wherever_the_text_is_cut() {
        for (whole, thought, text) in [
            ("<think>\nHm.\n</think>\n\nYes.", "\nHm.\n", "Yes."),
            (
                " \n<think>a < b </thin k></think>Yes",
                "a < b </thin k>",
                "Yes",
            ),
            ("[THINK]Größe[/THINK]😀", "Größe", "😀"),
            ("◁think▷Hm◁/think▷Yes", "Hm", "Yes"),
            ("<think></think>\n\nYes.", "", "Yes."),
            ("<think>never ends", "never ends", ""),
            ("Look.\n<think>Hm</think>\nYes", "Hm", "Look.\nYes"),
            ("<think>a</think>\n<think>b</think>Yes", "ab", "Yes"),
            (
                "It began before.\n</think>\n\nYes.",
                "It began before.\n",
                "Yes.",
            ),
            ("", "", ""),
        ] {
            assert_eq!(split(&[whole]), (thought.into(), text.into()), "{whole}");
            for (at, _) in whole.char_indices() {
                let (head, tail) = whole.split_at(at);
                assert_eq!(
                    split(&[head, tail]),
                    (thought.into(), text.into()),
                    "{whole} at {at}"
                );
            }
            let single: Vec<String> = whole.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            assert_eq!(split(&single), (thought.into(), text.into()), "{whole}");
        }
    }

    #[test]
    fn an_answer_that_speaks_of_the_tags_keeps_them() {
        for text in [
            "Put `<think>` before it and `</think>` behind it.",
            "Between <think> and </think> it reasons.",
            "So:\n```xml\n<think>\nHm\n</think>\n```\nThat is all.",
            "~~~\n</think>\n~~~\n",
            "`<think>` is a tag.",
            "It opens with\n<think>\nand I never saw its end.",
            "a <thin line",
            "<thin",
            "</think> is what closes it.",
            "What `<think>` opens this closes:\n</think>\nand no more.",
        ] {
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(split(&[text]), (String::new(), text.into()));
            assert_eq!(split(&chars), (String::new(), text.into()));
        }
    }

    #[test]
    fn no_piece_shows_a_part_of_a_tag() {
        let mut thoughts = Thoughts::default();
        let mut out = Vec::new();
        for c in "<think>Hm</think>Yes".chars() {
            thoughts.push(&c.to_string(), &mut out);
        }
        thoughts.finish(&mut out);
        for piece in out {
            if let Piece::Text(told) | Piece::Thought(told) = piece {
                assert!(!told.contains(['<', '>', '/']), "{told}");
            }
        }
    }
}
