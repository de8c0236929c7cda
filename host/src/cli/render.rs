//! Rendering of a session's frames in a terminal.
//!
//! # Invariants
//!
//! - Nothing that an agent, a model or a command wrote can move the cursor, change colours or set a
//!   title: control characters are removed.
//! - Colours are used only on a terminal that did not decline them.

use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use lucid_types::plural;

/// The maximum number of lines shown of a command's output or a diff.
const LINES: usize = 24;
/// The column that text starts in.
const MARGIN: usize = 9;

/// Whether to use colours: on a terminal, unless `NO_COLOR` is set or the terminal has none.
pub(super) fn colours(terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// Removes everything that a terminal would interpret, except for line breaks.
pub(super) fn strip_controls(text: &str) -> String {
    let keep = |c: char| match c {
        '\n' => Some('\n'),
        '\t' => Some(' '),
        c if c.is_control() => None,
        // Bidirectional overrides make text look like something else.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => None,
        c => Some(c),
    };
    text.chars().filter_map(keep).collect()
}

/// Sanitizes a text to one line.
pub(super) fn one_line(text: &str) -> String {
    strip_controls(text)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The progress that a frame reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FrameProgress {
    /// Unchanged.
    Same,
    /// Something that takes time is in progress, as the text says.
    Busy(String),
    /// The task is done.
    Done,
    /// The task failed.
    Failed,
}

/// A rendered frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RenderedFrame {
    /// Lines to print, possibly none.
    pub(super) text: String,
    /// The progress of the work.
    pub(super) progress: FrameProgress,
}

/// Renders frames as text.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameRenderer {
    colour: bool,
}

impl FrameRenderer {
    /// With or without colours.
    pub(super) fn new(colour: bool) -> Self {
        Self { colour }
    }

    /// A label with a text beside it.
    pub(super) fn entry(self, label: &str, style: Style, text: &str) -> String {
        let label = self.paint(&format!("{label:>7}"), style.bold());
        format!("{label}  {}", indented(text))
    }

    /// A text in a style, if colours are used.
    pub(super) fn paint(self, text: &str, style: Style) -> String {
        if self.colour {
            text.style(style).to_string()
        } else {
            text.to_owned()
        }
    }

    /// Renders a frame.
    pub(super) fn show(self, frame: &Value) -> RenderedFrame {
        match text(frame, "type") {
            "agent_event" => self.event(frame),
            "status" => self.status(frame),
            "error" => RenderedFrame {
                text: self.entry("error", Style::new().red(), text(frame, "message")),
                progress: FrameProgress::Failed,
            },
            _ => quiet(FrameProgress::Same),
        }
    }

    fn status(self, frame: &Value) -> RenderedFrame {
        let message = text(frame, "message");
        match text(frame, "status") {
            "completed" => RenderedFrame {
                text: self.entry("done", Style::new().green(), message),
                progress: FrameProgress::Done,
            },
            "failed" => RenderedFrame {
                text: self.entry("failed", Style::new().red(), message),
                progress: FrameProgress::Failed,
            },
            "initializing" => quiet(FrameProgress::Busy("preparing".to_owned())),
            "ready" | "mock_mode" => {
                let text = self.entry("ready", Style::new().dimmed(), message);
                RenderedFrame {
                    text,
                    progress: FrameProgress::Busy("working".to_owned()),
                }
            }
            _ => RenderedFrame {
                text: self.entry("status", Style::new().dimmed(), message),
                progress: FrameProgress::Same,
            },
        }
    }

    fn event(self, frame: &Value) -> RenderedFrame {
        let (event, kind, content) = (
            text(frame, "event"),
            text(frame, "eventType"),
            text(frame, "content"),
        );
        let thinking = || FrameProgress::Busy("thinking".to_owned());
        let cyan = Style::new().cyan();
        if event == "task_start" {
            return RenderedFrame {
                text: self.entry("task", Style::new().bold(), content),
                progress: thinking(),
            };
        }
        if event == "error" || kind == "AgentErrorObservation" {
            return RenderedFrame {
                text: self.entry("error", Style::new().red(), content),
                progress: thinking(),
            };
        }
        match kind {
            "ThinkAction" => {
                let thought = text(frame, "thought");
                let body = [content, if thought == content { "" } else { thought }];
                let body = body
                    .into_iter()
                    .filter(|text| !text.is_empty())
                    .collect::<Vec<_>>()
                    .join("\n");
                RenderedFrame {
                    text: self.entry("think", Style::new().magenta(), &body),
                    progress: thinking(),
                }
            }
            "CmdRunAction" => {
                let command = Some(text(frame, "command"))
                    .filter(|text| !text.is_empty())
                    .unwrap_or(content);
                let rendered = self.entry("run", cyan, &format!("$ {command}"));
                RenderedFrame {
                    text: rendered,
                    progress: FrameProgress::Busy(format!("$ {}", shorten(command))),
                }
            }
            "CmdOutputObservation" => {
                let code = frame
                    .get("exitCode")
                    .and_then(Value::as_i64)
                    .filter(|code| *code != 0);
                let mut lines = self.block(content);
                if let Some(code) = code {
                    lines.push(self.paint(
                        &format!("{:MARGIN$}exit code {code}", ""),
                        Style::new().red(),
                    ));
                }
                RenderedFrame {
                    text: lines.join("\n"),
                    progress: thinking(),
                }
            }
            "FileWriteAction" | "FileEditAction" | "FileReadAction" => {
                let label = match kind {
                    "FileWriteAction" => "write",
                    "FileEditAction" => "edit",
                    _ => "read",
                };
                let path = Some(text(frame, "path"))
                    .filter(|text| !text.is_empty())
                    .unwrap_or(content);
                let mut lines = vec![self.entry(label, cyan, path)];
                lines.extend(self.diff(text(frame, "diff")));
                RenderedFrame {
                    text: lines.join("\n"),
                    progress: FrameProgress::Busy(format!("{label} {}", shorten(path))),
                }
            }
            "FileWriteObservation" | "FileEditObservation" | "FileReadObservation" => {
                let mut lines = self.diff(text(frame, "diff"));
                if lines.is_empty() && kind != "FileReadObservation" {
                    lines = self.block(content);
                }
                RenderedFrame {
                    text: lines.join("\n"),
                    progress: thinking(),
                }
            }
            "ModelStateMessage" => RenderedFrame {
                text: self.entry("model", Style::new().yellow(), content),
                progress: FrameProgress::Same,
            },
            _ if event == "state" || content.is_empty() => quiet(FrameProgress::Same),
            _ => RenderedFrame {
                text: self.entry("says", Style::new().blue(), content),
                progress: thinking(),
            },
        }
    }

    /// Output, dimmed, with a note of how much was left out.
    fn block(self, text: &str) -> Vec<String> {
        self.lines(text, |_| Style::new().dimmed())
    }

    fn diff(self, text: &str) -> Vec<String> {
        self.lines(text, |line| match line.as_bytes().first() {
            Some(b'+') => Style::new().green(),
            Some(b'-') => Style::new().red(),
            _ => Style::new().dimmed(),
        })
    }

    fn lines(self, text: &str, style: impl Fn(&str) -> Style) -> Vec<String> {
        let cleaned = strip_controls(text);
        let all: Vec<&str> = cleaned.trim_end().lines().collect();
        let paint = |line: &&str| format!("{:MARGIN$}{}", "", self.paint(line, style(line)));
        let mut lines: Vec<String> = all.iter().take(LINES).map(paint).collect();
        if all.len() > LINES {
            let more = plural::count(all.len() - LINES, "more line");
            let note = format!("{:MARGIN$}… {more}", "");
            lines.push(self.paint(&note, Style::new().dimmed()));
        }
        lines
    }
}

fn quiet(progress: FrameProgress) -> RenderedFrame {
    RenderedFrame {
        text: String::new(),
        progress,
    }
}

fn text<'a>(frame: &'a Value, name: &str) -> &'a str {
    frame.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Shortens a text for the spinner's line.
fn shorten(text: &str) -> String {
    let line = one_line(text);
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// Indents the following lines like the first one.
fn indented(text: &str) -> String {
    strip_controls(text)
        .trim_end()
        .lines()
        .collect::<Vec<_>>()
        .join(&format!("\n{:MARGIN$}", ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(frame: &Value) -> RenderedFrame {
        FrameRenderer::new(false).show(frame)
    }

    fn event(kind: &str, rest: &Value) -> Value {
        let mut frame = json!({"type": "agent_event", "event": "action", "eventType": kind});
        for (name, value) in rest.as_object().unwrap() {
            frame[name] = value.clone();
        }
        frame
    }

    #[test]
    fn nothing_that_is_shown_can_steer_the_terminal() {
        let evil = "a\u{1b}[2Jb\u{7}\r\u{9b}31mc\u{202e}d";
        assert_eq!(strip_controls(evil), "a[2Jb31mcd");
        for kind in [
            "ThinkAction",
            "CmdRunAction",
            "CmdOutputObservation",
            "FileEditAction",
            "AgentMessageAction",
        ] {
            let frame = event(
                kind,
                &json!({"content": evil, "command": evil, "path": evil, "diff": evil, "thought": evil}),
            );
            let rendered = plain(&frame);
            assert!(
                !rendered.text.chars().any(|c| c.is_control() && c != '\n'),
                "{kind}: {:?}",
                rendered.text
            );
            if let FrameProgress::Busy(what) = rendered.progress {
                assert!(!what.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn a_command_is_shown_with_its_output_and_a_bad_exit_code() {
        let run = plain(&event(
            "CmdRunAction",
            &json!({"content": "pytest -q", "command": "pytest -q"}),
        ));
        assert_eq!(run.text, "    run  $ pytest -q");
        assert_eq!(run.progress, FrameProgress::Busy("$ pytest -q".to_owned()));
        let output = plain(&event(
            "CmdOutputObservation",
            &json!({"content": "1 failed\n", "exitCode": 1}),
        ));
        assert_eq!(output.text, "         1 failed\n         exit code 1");
        assert_eq!(
            plain(&event(
                "CmdOutputObservation",
                &json!({"content": "ok", "exitCode": 0})
            ))
            .text,
            "         ok"
        );
    }

    #[test]
    fn long_output_is_cut_and_says_how_much_is_missing() {
        let long = "x\n".repeat(100);
        let rendered = plain(&event("CmdOutputObservation", &json!({"content": long})));
        assert_eq!(rendered.text.lines().count(), LINES + 1);
        assert!(rendered.text.ends_with("… 76 more lines"));
    }

    #[test]
    fn completed_is_success_and_an_error_is_failure() {
        let done = json!({"type": "status", "status": "completed", "message": "All good"});
        assert_eq!(plain(&done).progress, FrameProgress::Done);
        assert_eq!(
            plain(&json!({"type": "error", "message": "no"})).progress,
            FrameProgress::Failed
        );
        let tried = json!({"type": "agent_event", "event": "error", "eventType": "AgentErrorObservation", "content": "no"});
        assert_ne!(
            plain(&tried).progress,
            FrameProgress::Failed,
            "an agent may get over an error of its own"
        );
    }

    #[test]
    fn without_colours_there_is_no_escape_and_with_them_there_is() {
        let frame = event("ThinkAction", &json!({"content": "hm"}));
        assert!(
            !FrameRenderer::new(false)
                .show(&frame)
                .text
                .contains('\u{1b}')
        );
        assert!(
            FrameRenderer::new(true)
                .show(&frame)
                .text
                .contains('\u{1b}')
        );
        assert!(!colours(false));
    }

    #[test]
    fn a_frame_of_a_kind_that_is_not_known_is_passed_over() {
        for frame in [
            json!({}),
            json!(null),
            json!({"type": "file_tree", "tree": []}),
            json!({"type": "later"}),
        ] {
            assert_eq!(plain(&frame), quiet(FrameProgress::Same));
        }
    }
}
