//! Renders a command's output as a person sees it once the command has ended: progress bars in
//! their final state, and no escape codes.
//!
//! # Invariants
//! - A text without control characters other than line breaks and tabs is unchanged.
//! - Rendering any output ends soon: each byte is looked at a bounded number of times.

mod screen;

use lucid_types::unicode::lossy;
use screen::{BLANKS, CursorMove, TerminalScreen};

/// The largest parameter of a control sequence.
const LARGEST: usize = 9999;
/// The most parameters of a control sequence that are read.
const PARAMETERS: usize = 16;
/// The longest title or link of the older form, in bytes, which may also be text in another
/// encoding.
const LONGEST_OLD: usize = 512;

/// The text that a person sees once all of this was written to a terminal.
pub(super) fn rendered(output: &[u8]) -> String {
    let text = lossy(output);
    let has_old =
        output.iter().any(|byte| matches!(byte, 0x9b | 0x9d)) && text.contains('\u{fffd}');
    let text = if has_old {
        with_old_controls(output)
    } else {
        text.into_owned()
    };
    if !text
        .chars()
        .any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        return text;
    }
    let mut terminal = Terminal {
        screen: TerminalScreen::new(BLANKS),
        main: None,
    };
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        rest = terminal.process_char(c, &rest[c.len_utf8()..]);
    }
    match terminal.main {
        None => terminal.screen.render(),
        // A program did not leave its full screen: what was there before must not be lost.
        Some(main) => [main.render(), terminal.screen.render()].join("\n"),
    }
}

/// Decodes the output, turning the bytes 0x9b and 0x9d into the control characters of 8-bit
/// terminals where they begin a complete sequence.
fn with_old_controls(output: &[u8]) -> String {
    let mut text = String::new();
    let (mut begun, mut at) = (0, 0);
    while at < output.len() {
        let rest = &output[at..];
        let in_character = at > 0 && output[at - 1] >= 0x80;
        let control = match rest[0] {
            0x9b if !in_character && is_old_sequence(&rest[1..]) => '\u{9b}',
            0x9d if !in_character && is_old_title(&rest[1..]) => '\u{9d}',
            _ => {
                at += 1;
                continue;
            }
        };
        text.push_str(&lossy(&output[begun..at]));
        text.push(control);
        at += 1;
        begun = at;
    }
    text.push_str(&lossy(&output[begun..]));
    text
}

/// Whether digits and semicolons follow, and a letter that terminals know.
fn is_old_sequence(rest: &[u8]) -> bool {
    let parameters = rest.iter().take(32);
    let length = parameters
        .take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b'?'))
        .count();
    length > 0
        && matches!(
            rest.get(length),
            Some(b'A'..=b'H' | b'J' | b'K' | b'd' | b'f' | b'h' | b'l' | b'm')
        )
}

/// Whether a number follows, a semicolon, and an end within reach.
fn is_old_title(rest: &[u8]) -> bool {
    let digits = rest
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let mut rest = rest.iter().take(LONGEST_OLD);
    digits > 0
        && rest.nth(digits) == Some(&b';')
        && rest.find(|byte| matches!(byte, 0x07 | 0x1b | b'\n')) == Some(&0x07)
}

struct Terminal {
    screen: TerminalScreen,
    /// The screen that is restored when a program leaves its full screen.
    main: Option<TerminalScreen>,
}

impl Terminal {
    /// Processes a character, with what belongs to it of `rest`. Returns what is left.
    fn process_char<'a>(&mut self, c: char, rest: &'a str) -> &'a str {
        match c {
            '\u{1b}' => return self.escape(rest),
            '\u{9b}' => return self.sequence(rest),
            '\u{9d}' => return skip_title(rest),
            '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => return skip_control_string(rest),
            '\n' | '\u{b}' | '\u{c}' | '\u{85}' => self.screen.line_feed(),
            '\r' => self.screen.move_by(CursorMove::Column(0)),
            '\u{8}' => self.screen.move_by(CursorMove::Left(1)),
            '\t' => self.screen.tab(),
            '\u{84}' => self.screen.index(),
            '\u{8d}' => self.screen.move_by(CursorMove::Up(1)),
            c if c.is_control() => {}
            c => self.screen.put(c),
        }
        rest
    }

    fn escape<'a>(&mut self, rest: &'a str) -> &'a str {
        let Some(c) = rest.chars().next() else {
            return rest;
        };
        let behind = &rest[c.len_utf8()..];
        match c {
            '[' => return self.sequence(behind),
            ']' => return skip_title(behind),
            'P' | 'X' | '^' | '_' => return skip_control_string(behind),
            '7' => self.screen.save_cursor(),
            '8' => self.screen.restore_cursor(),
            'D' => self.screen.index(),
            'E' => self.screen.line_feed(),
            'M' => self.screen.move_by(CursorMove::Up(1)),
            'c' => {
                self.screen.erase_in_screen(2);
                self.screen.move_by(CursorMove::To(0, 0));
            }
            // A character set: its name follows.
            ' '..='/' => {
                let end = behind.find(|c: char| !matches!(c, ' '..='/'));
                let behind = &behind[end.unwrap_or(behind.len())..];
                return match behind.chars().next() {
                    Some(c @ '0'..='~') => &behind[c.len_utf8()..],
                    _ => behind,
                };
            }
            '0'..='~' => {}
            _ => return rest,
        }
        behind
    }

    /// A control sequence: parameters, and a final letter that selects the function.
    fn sequence<'a>(&mut self, rest: &'a str) -> &'a str {
        let end = rest.find(|c: char| !matches!(c, '0'..='?'));
        let (parameters, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let end = rest.find(|c: char| !matches!(c, ' '..='/'));
        let (between, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let Some(letter @ '@'..='~') = rest.chars().next() else {
            return rest;
        };
        if between.is_empty() {
            self.control(parameters, letter);
        }
        &rest[1..]
    }

    fn control(&mut self, parameters: &str, letter: char) {
        let mut numbers = [None; PARAMETERS];
        let private = parameters.strip_prefix('?');
        if private.is_none() && parameters.starts_with(['<', '=', '>']) {
            return;
        }
        let all = private.unwrap_or(parameters).split(';');
        for (number, text) in numbers.iter_mut().zip(all) {
            // A colon separates details of a colour.
            let text = text.split(':').next().unwrap_or_default();
            *number = text.parse::<usize>().ok().map(|number| number.min(LARGEST));
        }
        if private.is_some() {
            match letter {
                'h' | 'l' if numbers.iter().any(|n| matches!(n, Some(47 | 1047 | 1049))) => {
                    self.full_screen(letter == 'h');
                }
                'J' | 'K' => self.erase(letter, numbers[0].unwrap_or(0)),
                _ => {}
            }
            return;
        }
        let first = numbers[0].unwrap_or(0);
        // A count of zero means one.
        let count = first.max(1);
        let place = |number: Option<usize>| number.unwrap_or(1).max(1) - 1;
        let screen = &mut self.screen;
        match letter {
            'A' => screen.move_by(CursorMove::Up(count)),
            'B' | 'e' => screen.move_by(CursorMove::Down(count)),
            'C' | 'a' => screen.move_by(CursorMove::Right(count)),
            'D' => screen.move_by(CursorMove::Left(count)),
            'E' | 'F' => {
                screen.move_by(if letter == 'E' {
                    CursorMove::Down(count)
                } else {
                    CursorMove::Up(count)
                });
                screen.move_by(CursorMove::Column(0));
            }
            'G' | '`' => screen.move_by(CursorMove::Column(place(numbers[0]))),
            'd' => screen.move_by(CursorMove::Row(place(numbers[0]))),
            'H' | 'f' => screen.move_by(CursorMove::To(place(numbers[0]), place(numbers[1]))),
            'J' | 'K' => self.erase(letter, first),
            'X' => screen.erase_characters(count),
            'P' => screen.delete_characters(count),
            '@' => screen.insert_characters(count),
            'L' => screen.insert_rows(count),
            'M' => screen.delete_rows(count),
            'b' => screen.repeat(count),
            's' => screen.save_cursor(),
            'u' => screen.restore_cursor(),
            _ => {}
        }
    }

    fn erase(&mut self, letter: char, what: usize) {
        if letter == 'J' {
            self.screen.erase_in_screen(what);
        } else {
            self.screen.erase_in_line(what);
        }
    }

    /// A program enters or leaves the full screen.
    fn full_screen(&mut self, takes: bool) {
        let blanks = self.screen.blanks();
        if takes && self.main.is_none() {
            self.main = Some(std::mem::replace(
                &mut self.screen,
                TerminalScreen::new(blanks),
            ));
        } else if !takes && let Some(main) = self.main.take() {
            self.screen = main;
        }
    }
}

/// The text after a title or a link. It ends with its line, so that an unterminated one hides no
/// more.
fn skip_title(rest: &str) -> &str {
    let is_end = |c: char| {
        matches!(
            c,
            '\u{7}' | '\u{1b}' | '\u{9c}' | '\n' | '\u{18}' | '\u{1a}'
        )
    };
    match rest.find(is_end) {
        Some(end) => skip_terminator(&rest[end..]),
        None => "",
    }
}

/// The text after a control string; an unterminated one is not a string. Another string ends it, so
/// that nothing is scanned twice.
fn skip_control_string(rest: &str) -> &str {
    let is_end = |c: char| matches!(c, '\u{1b}' | '\u{18}' | '\u{1a}' | '\u{80}'..='\u{9f}');
    match rest.find(is_end) {
        Some(end) => skip_terminator(&rest[end..]),
        None => rest,
    }
}

fn skip_terminator(rest: &str) -> &str {
    let mut chars = rest.chars();
    match chars.next() {
        // Another sequence begins, or the line ends.
        Some('\u{1b}') if !chars.as_str().starts_with('\\') => rest,
        Some('\u{1b}') => &chars.as_str()[1..],
        Some('\u{7}' | '\u{9c}' | '\u{18}' | '\u{1a}') => chars.as_str(),
        _ => rest,
    }
}

#[cfg(test)]
mod tests;
