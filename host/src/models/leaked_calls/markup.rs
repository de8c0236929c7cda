//! The markup in which models write calls: one reader for all of it, since models mix it.

use serde_json::Value;

use super::{Arguments, WrittenCall, json};

/// What begins calls.
pub(super) const OPENERS: [&str; 29] = [
    "<tool_call>",
    "<tool_calls>",
    "<toolcall>",
    "<tool_use>",
    "<function_calls>",
    "<function_call>",
    "<functioncall>",
    "<function=",
    "<function name=",
    "<invoke name=",
    "<minimax:tool_call>",
    "<seed:tool_call>",
    "<|tool_call|>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|python_tag|>",
    "<|tool_calls_begin|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<TOOLCALL>",
    "functools[",
    "<start_function_call>",
    "<｜DSML｜function_calls>",
    "[TOOL_CALLS]",
    "[TOOL_REQUEST]",
    "<|channel|>commentary to=functions.",
    "assistantcommentary to=functions.",
    "commentary to=functions.",
    "<antml:function_calls>",
];
/// What begins one call, within those.
const INNER: [&str; 7] = [
    "<|tool_call_begin|>function<|tool_sep|>",
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "<｜tool▁call▁begin｜>",
    "<|tool_call_begin|>",
    "<tool_call>",
    "<function_call>",
    "<tool_use>",
];
/// What ends them, and what a server should have taken away.
const CLOSERS: [&str; 34] = [
    "</tool_call>",
    "</tool_calls>",
    "</toolcall>",
    "</tool_use>",
    "</function_calls>",
    "</function_call>",
    "</functioncall>",
    "</function>",
    "</invoke>",
    "</minimax:tool_call>",
    "</seed:tool_call>",
    "</antml:function_calls>",
    "</antml:invoke>",
    "</｜DSML｜function_calls>",
    "</｜DSML｜invoke>",
    "<|/tool_call|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "<|tool_calls_end|>",
    "</TOOLCALL>",
    "<end_function_call>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<｜end▁of▁sentence｜>",
    "[END_TOOL_REQUEST]",
    "[/TOOL_CALLS]",
    "<|call|>",
    "<|end|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|endoftext|>",
    "</s>",
    ";",
];
/// Behind these a model goes on with a result that it made up.
const MADE_UP: [&str; 4] = [
    "<tool_response>",
    "<function_results>",
    "<tool_result>",
    "[TOOL_RESULTS]",
];

/// So many places are looked at.
pub(super) const MOST: usize = 64;

/// Where calls may begin.
pub(super) fn openings(text: &str) -> Vec<usize> {
    let mut all: Vec<usize> = OPENERS
        .iter()
        .flat_map(|opener| text.match_indices(opener).map(|(at, _)| at))
        .collect();
    all.sort_unstable();
    all.dedup();
    // Nobody means more.
    all.truncate(MOST);
    all
}

/// Whether markup that cannot be read begins a line and is the last thing that the answer says.
pub(super) fn is_open_to_its_end(text: &str, at: usize) -> bool {
    let markup = text[at..].trim_end();
    // Those that are no more than a mark of punctuation stand in any text.
    let closers = || CLOSERS.iter().filter(|closer| closer.len() > 1);
    begins_line(text, at)
        && if closers().any(|closer| markup.contains(closer)) {
            // Behind words it was only explained.
            closers().any(|closer| markup.ends_with(closer))
                || MADE_UP.iter().any(|made_up| markup.contains(made_up))
        } else {
            let is_closed = markup.ends_with(['>', '}', ']', ')']) || markup.ends_with("```");
            is_closed || has_begun(markup)
        }
}

/// Whether there is more of a call than its first mark: the answer was cut off within it.
fn has_begun(text: &str) -> bool {
    let inside = OPENERS.iter().find_map(|opener| text.strip_prefix(opener));
    let inside = inside.unwrap_or_default().trim_start();
    inside.starts_with(['{', '[', '<']) || inside.contains("<parameter")
}

/// Whether a call that begins here is written to be one. Behind other words of its line it may be quoted,
/// unless it goes on from their end without a blank: some models write no line break.
pub(super) fn stands_alone(text: &str, at: usize) -> bool {
    let ends = |c: char| c.is_alphanumeric() || ".!?…>*".contains(c);
    begins_line(text, at) || text[..at].ends_with(ends)
}

/// Whether only the marks of a quotation stand before it in its line.
pub(super) fn is_quoted(text: &str, at: usize) -> bool {
    let line = line_before(text, at);
    let is_mark = |c: char| c.is_whitespace() || c == '>';
    line.contains('>') && line.chars().all(is_mark)
}

fn begins_line(text: &str, at: usize) -> bool {
    line_before(text, at).trim().is_empty()
}

fn line_before(text: &str, at: usize) -> &str {
    text[..at].rsplit('\n').next().unwrap_or_default()
}

/// The calls that a text consists of; none where it is anything else, or goes on with something else.
pub(super) fn read(text: &str) -> Option<Vec<WrittenCall>> {
    let mut reader = Reader { rest: text };
    let mut calls = Vec::new();
    loop {
        reader.skip();
        if reader.rest.is_empty()
            || MADE_UP
                .iter()
                .any(|made_up| reader.rest.starts_with(made_up))
        {
            return Some(calls);
        }
        if reader.accept_any(&CLOSERS) || reader.accept_any(&INNER) || reader.accept_wrapper() {
            continue;
        }
        calls.extend(reader.calls()?);
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn accept(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn accept_any(&mut self, tokens: &[&str]) -> bool {
        tokens.iter().any(|token| self.accept(token))
    }

    /// One that holds calls and names none.
    fn accept_wrapper(&mut self) -> bool {
        let named = |opener: &&&str| !opener.ends_with(['=', '.', '[']);
        OPENERS
            .iter()
            .filter(named)
            .any(|opener| self.accept(opener))
    }

    /// Up to a token, which is taken as well.
    fn until(&mut self, token: &str) -> Option<&'a str> {
        let (before, rest) = self.rest.split_once(token)?;
        self.rest = rest;
        Some(before)
    }

    fn calls(&mut self) -> Option<Vec<WrittenCall>> {
        if self.rest.starts_with("functools[") {
            self.accept("functools");
        }
        if self.rest.starts_with(['{', '[']) {
            return json::calls(&self.value()?);
        }
        if self.rest.starts_with("```") {
            let (_, rest) = self.rest.split_once('\n')?;
            self.rest = rest.trim_start();
            let value = self.value()?;
            self.skip();
            return self.accept("```").then(|| json::calls(&value))?;
        }
        let mut channels = OPENERS.iter().filter(|opener| opener.ends_with('.'));
        let one = if channels.any(|opener| self.accept(opener)) {
            self.of_a_channel()?
        } else if self.accept("<function=") {
            let name = self.until(">")?;
            self.named(unquoted(name), "</function>")?
        } else if let Some(name) = self.tag("function") {
            self.named(name, "</function>")?
        } else if let Some(name) = self.tag("invoke") {
            self.named(name, "</invoke>")?
        } else {
            self.bare()?
        };
        Some(vec![one])
    }

    /// A JSON value at the beginning, also one that is slightly wrong.
    fn value(&mut self) -> Option<Value> {
        let (value, rest) = json::first(self.rest)?;
        self.rest = rest;
        Some(value)
    }

    /// A tag like `<invoke name="terminal">`, whatever stands before its name.
    fn tag(&mut self, word: &str) -> Option<&'a str> {
        let inner = self.rest.strip_prefix('<')?;
        let inner = ["antml:", "｜DSML｜", ""]
            .iter()
            .find_map(|before| inner.strip_prefix(before)?.strip_prefix(word))?;
        let (attributes, rest) = inner.strip_prefix(' ')?.split_once('>')?;
        let name = attribute(attributes, "name")?;
        self.rest = rest;
        Some(name)
    }

    /// A call whose name was read.
    fn named(&mut self, name: &str, close: &str) -> Option<WrittenCall> {
        let mut texts = Vec::new();
        self.skip();
        if self.rest.starts_with('{') {
            let value = self.value()?;
            self.skip();
            self.accept(close);
            return Some(WrittenCall {
                name: name.to_owned(),
                arguments: Arguments::Json(value.to_string()),
            });
        }
        loop {
            self.skip();
            let named = if self.accept("<parameter=") {
                Some(unquoted(self.until(">")?))
            } else {
                self.tag("parameter")
            };
            let Some(parameter) = named else { break };
            texts.push((parameter.to_owned(), self.parameter()?));
        }
        Some(WrittenCall {
            name: name.to_owned(),
            arguments: Arguments::Texts(texts),
        })
    }

    /// A parameter's text, up to the end tag that another tag follows: the text may hold one itself.
    fn parameter(&mut self) -> Option<String> {
        let text = self.rest;
        for close in PARAMETER_ENDS {
            for (at, _) in text.match_indices(close) {
                let after = &text[at + close.len()..];
                let next = after.trim_start();
                if next.is_empty()
                    || next.starts_with("</")
                    || next.starts_with("<|")
                    || PARAMETERS.iter().any(|tag| next.starts_with(tag))
                {
                    self.rest = after;
                    return Some(one_line_break_less(&text[..at]));
                }
            }
        }
        None
    }

    /// A call that begins with a name, and has its arguments behind it in one of several ways.
    fn bare(&mut self) -> Option<WrittenCall> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
        let end = self.rest.find(|c| !plain(c)).unwrap_or(self.rest.len());
        let name = &self.rest[..end];
        if name.is_empty() {
            return None;
        }
        self.rest = &self.rest[end..];
        self.skip();
        if self.accept("[CALL_ID]") {
            let end = self.rest.find('[')?;
            self.rest = &self.rest[end..];
        }
        let marks = [
            "[ARGS]",
            "<|tool_call_argument_begin|>",
            "<｜tool▁sep｜>",
            "<|tool_sep|>",
        ];
        self.accept_any(&marks);
        self.skip();
        let arguments = if self.rest.starts_with("<arg_key>") {
            Arguments::Texts(self.pairs()?)
        } else {
            let fenced = self.rest.starts_with("```");
            if fenced {
                self.until("\n")?;
                self.skip();
            }
            let value = self.value().filter(Value::is_object)?;
            self.skip();
            if fenced && !self.accept("```") {
                return None;
            }
            Arguments::Json(value.to_string())
        };
        Some(WrittenCall {
            name: name.to_owned(),
            arguments,
        })
    }

    /// A call in harmony's words, without all of its marks.
    fn of_a_channel(&mut self) -> Option<WrittenCall> {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || matches!(c, '<' | '{'))?;
        let name = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        let marks = [
            "<|constrain|>",
            "<|message|>",
            "<|channel|>",
            "commentary",
            "json",
            "code",
        ];
        loop {
            self.skip();
            if !self.accept_any(&marks) {
                break;
            }
        }
        let value = self.value().filter(Value::is_object)?;
        Some(WrittenCall {
            name,
            arguments: Arguments::Json(value.to_string()),
        })
    }

    fn pairs(&mut self) -> Option<Vec<(String, String)>> {
        let mut all = Vec::new();
        while self.accept("<arg_key>") {
            let key = self.until("</arg_key>")?.trim().to_owned();
            self.skip();
            if !self.accept("<arg_value>") {
                return None;
            }
            all.push((key, self.until("</arg_value>")?.to_owned()));
            self.skip();
        }
        Some(all)
    }
}

/// What ends a parameter.
const PARAMETER_ENDS: [&str; 3] = ["</parameter>", "</antml:parameter>", "</｜DSML｜parameter>"];
/// What begins one.
const PARAMETERS: [&str; 4] = [
    "<parameter=",
    "<parameter ",
    "<antml:parameter ",
    "<｜DSML｜parameter ",
];

/// Templates put a text on lines of its own.
fn one_line_break_less(text: &str) -> String {
    let text = text.strip_prefix('\n').unwrap_or(text);
    text.strip_suffix('\n').unwrap_or(text).to_owned()
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = attributes.split_once(&format!("{name}="))?;
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    rest[1..].split_once(quote).map(|(value, _)| value)
}
