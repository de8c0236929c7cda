//! A text file as a line editor sees it, whatever its line endings and its encoding.
//!
//! # Invariants
//! - The text has no byte order mark, and each of its line endings is one LF.
//! - Bytes that an edit does not change are preserved, including those of unchanged lines within
//!   the edited range and bytes that are invalid in the file's encoding.
//! - New text takes the file's encoding and the line endings of where it is inserted.

use std::ops::Range;
use std::time::{Duration, Instant};

use encoding_rs::WINDOWS_1252;
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline};

/// The time limit for diffing the lines of an edit, after which the rest counts as changed.
const COMPARING: Duration = Duration::from_secs(1);
/// The longest change, in bytes, that is diffed by characters too.
const LONGEST_FINE: usize = 8 << 10;

/// How many characters after an edit are searched for a line ending.
const LOOK_AHEAD: usize = 64 << 10;

/// A file's character encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// UTF-8. Invalid bytes are read one by one as Windows-1252, and kept.
    Utf8,
    /// Windows-1252, which includes Latin-1: no byte above ASCII is part of a UTF-8 character.
    Windows1252,
    /// With a byte order mark.
    Utf16Le,
    /// With a byte order mark.
    Utf16Be,
}

/// A character that a file's encoding lacks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Windows-1252, which the file is written in, has no {0:?}")]
pub(super) struct UnencodableChar(char);

/// A decoded text file.
#[derive(Debug)]
pub(super) struct TextFile {
    bytes: Vec<u8>,
    /// The length of the byte order mark, in bytes.
    bom_length: usize,
    encoding: Encoding,
    /// Whether the file has no LF, so that a CR ends a line.
    cr_alone: bool,
    text: String,
}

/// A character of the text, and the bytes that it stands for.
#[derive(Clone, Copy)]
struct DecodedChar<'a> {
    character: char,
    bytes: &'a [u8],
}

impl TextFile {
    /// Decodes a file, or returns the bytes if they are not text.
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, Vec<u8>> {
        let (mark, encoding) = match bytes.as_slice() {
            [0xff, 0xfe, ..] => (2, Encoding::Utf16Le),
            [0xfe, 0xff, ..] => (2, Encoding::Utf16Be),
            [0xef, 0xbb, 0xbf, rest @ ..] => (3, detect_eight_bit(rest)),
            all => (0, detect_eight_bit(all)),
        };
        let mut file = Self {
            bytes,
            bom_length: mark,
            encoding,
            cr_alone: false,
            text: String::new(),
        };
        let has = |c: char| file.units().any(|unit| unit.character == c);
        file.cr_alone = !has('\n') && has('\r');
        let text: String = file.units().map(|unit| unit.character).collect();
        if text.contains('\0') {
            return Err(file.bytes);
        }
        file.text = text;
        Ok(file)
    }

    /// The file's original bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The file's size in bytes.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it begins with a byte order mark.
    pub(super) fn has_mark(&self) -> bool {
        self.bom_length > 0
    }

    /// The decoded text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Converts a text's line endings to those of this file's text.
    pub(super) fn normalized(&self, text: &str) -> String {
        let text = text.replace("\r\n", "\n");
        if self.cr_alone {
            text.replace('\r', "\n")
        } else {
            text
        }
    }

    /// The file's bytes with a range of the text replaced. The new text's line endings are LF.
    pub(super) fn replace(
        &self,
        range: Range<usize>,
        new: &str,
    ) -> Result<Vec<u8>, UnencodableChar> {
        let edits = edits(range.start, &self.text[range], new);
        let mut edited = self.bytes[..self.bom_length].to_vec();
        let mut units = self.units();
        let mut at = 0;
        let mut line_end: Option<&[u8]> = None;
        for (range, new) in edits {
            while at < range.start
                && let Some(unit) = units.next()
            {
                at += unit.character.len_utf8();
                line_end = (unit.character == '\n').then_some(unit.bytes).or(line_end);
                edited.extend_from_slice(unit.bytes);
            }
            let mut replaced = Vec::new();
            while at < range.end
                && let Some(unit) = units.next()
            {
                at += unit.character.len_utf8();
                replaced.extend((unit.character == '\n').then_some(unit.bytes));
            }
            let usual = if new.contains('\n') {
                // The ending of the line that the edit splits, if it is not too far away.
                let next = units
                    .clone()
                    .take(LOOK_AHEAD)
                    .find(|unit| unit.character == '\n');
                let near = next.map(|unit| unit.bytes).or(line_end);
                replaced.last().copied().or(near)
            } else {
                None
            };
            let mut ends = replaced.into_iter();
            for (number, line) in new.split('\n').enumerate() {
                if number > 0 {
                    match ends.next().or(usual) {
                        Some(end) => edited.extend_from_slice(end),
                        None => self.encode("\n", &mut edited)?,
                    }
                }
                self.encode(line, &mut edited)?;
            }
        }
        units.for_each(|unit| edited.extend_from_slice(unit.bytes));
        Ok(edited)
    }

    /// The bytes of an entirely new text, with its own line endings, after this file's byte order
    /// mark.
    pub(super) fn with_text(&self, text: &str) -> Result<Vec<u8>, UnencodableChar> {
        let mut bytes = self.bytes[..self.bom_length].to_vec();
        self.encode(text, &mut bytes)?;
        Ok(bytes)
    }

    fn encode(&self, text: &str, into: &mut Vec<u8>) -> Result<(), UnencodableChar> {
        match self.encoding {
            Encoding::Utf8 => into.extend_from_slice(text.as_bytes()),
            Encoding::Utf16Le => into.extend(text.encode_utf16().flat_map(u16::to_le_bytes)),
            Encoding::Utf16Be => into.extend(text.encode_utf16().flat_map(u16::to_be_bytes)),
            Encoding::Windows1252 => {
                let (encoded, _, failed) = WINDOWS_1252.encode(text);
                if failed {
                    let fails = |c: &char| WINDOWS_1252.encode(c.encode_utf8(&mut [0; 4])).2;
                    return Err(UnencodableChar(
                        text.chars().find(fails).unwrap_or_default(),
                    ));
                }
                into.extend_from_slice(&encoded);
            }
        }
        Ok(())
    }

    fn units(&self) -> DecodedChars<'_> {
        let mut stray = ['\0'; 128];
        let bytes: Vec<u8> = (0x80..=0xff).collect();
        let (decoded, _) = WINDOWS_1252.decode_without_bom_handling(&bytes);
        for (c, decoded) in stray.iter_mut().zip(decoded.chars()) {
            *c = decoded;
        }
        DecodedChars {
            rest: &self.bytes[self.bom_length..],
            encoding: self.encoding,
            cr_alone: self.cr_alone,
            undecodable: stray,
        }
    }
}

/// Which of the two byte encodings a file has.
fn detect_eight_bit(bytes: &[u8]) -> Encoding {
    let strays = bytes.utf8_chunks().any(|chunk| !chunk.invalid().is_empty());
    if strays && bytes.utf8_chunks().all(|chunk| chunk.valid().is_ascii()) {
        Encoding::Windows1252
    } else {
        Encoding::Utf8
    }
}

/// Iterates over a file, one character of its text at a time.
#[derive(Clone)]
struct DecodedChars<'a> {
    rest: &'a [u8],
    encoding: Encoding,
    cr_alone: bool,
    /// The characters for bytes from 0x80 on that are not valid UTF-8.
    undecodable: [char; 128],
}

impl<'a> DecodedChars<'a> {
    /// The next character, and its length in bytes.
    fn peek(&self, from: usize) -> Option<(char, usize)> {
        let rest = self.rest.get(from..)?;
        let big_endian = match self.encoding {
            Encoding::Utf16Le => false,
            Encoding::Utf16Be => true,
            Encoding::Utf8 | Encoding::Windows1252 => return self.peek_byte(rest),
        };
        let half = |at: usize| -> Option<u16> {
            let bytes = [*rest.get(at)?, *rest.get(at + 1)?];
            Some(if big_endian {
                u16::from_be_bytes(bytes)
            } else {
                u16::from_le_bytes(bytes)
            })
        };
        let Some(first) = half(0) else {
            // Half a unit, at the end.
            return (!rest.is_empty()).then_some((char::REPLACEMENT_CHARACTER, rest.len()));
        };
        let pair = [first, half(2).unwrap_or(0)];
        Some(match char::decode_utf16(pair).next() {
            Some(Ok(c)) => (c, 2 * c.len_utf16()),
            _ => (char::REPLACEMENT_CHARACTER, 2),
        })
    }

    fn peek_byte(&self, rest: &[u8]) -> Option<(char, usize)> {
        let first = *rest.first()?;
        if first.is_ascii() {
            return Some((first.into(), 1));
        }
        let chunk = rest[..rest.len().min(4)].utf8_chunks().next()?;
        Some(match chunk.valid().chars().next() {
            Some(c) => (c, c.len_utf8()),
            None => (self.undecodable[usize::from(first & 0x7f)], 1),
        })
    }
}

impl<'a> Iterator for DecodedChars<'a> {
    type Item = DecodedChar<'a>;

    fn next(&mut self) -> Option<DecodedChar<'a>> {
        let (mut seen, mut length) = self.peek(0)?;
        if seen == '\r' && self.cr_alone {
            seen = '\n';
        } else if seen == '\r' {
            // Also CR CR LF, which results from a repeated conversion.
            let mut end = length;
            for _ in 0..2 {
                match self.peek(end) {
                    Some(('\n', more)) => {
                        (seen, length) = ('\n', end + more);
                        break;
                    }
                    Some(('\r', more)) => end += more,
                    _ => break,
                }
            }
        }
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(DecodedChar {
            character: seen,
            bytes,
        })
    }
}

/// A range of a text, and its replacement.
type Replacement<'a> = (Range<usize>, &'a str);

/// The changes that turn one text, which is at `from`, into another, in order. They cover neither
/// unchanged lines nor the unchanged characters of a slightly changed line.
fn edits<'a>(from: usize, old: &'a str, new: &'a str) -> Vec<Replacement<'a>> {
    let deadline = Instant::now() + COMPARING;
    let lines = |text: &'a str| -> Vec<&'a str> { text.split_inclusive('\n').collect() };
    let mut edits = Vec::new();
    for (range, by) in diff_pieces(&lines(old), &lines(new), new, deadline) {
        let changed = &old[range.clone()];
        if changed.len().max(by.len()) <= LONGEST_FINE {
            let fine = diff_pieces(&characters(changed), &characters(by), by, deadline);
            let at = from + range.start;
            edits.extend(
                fine.into_iter()
                    .map(|(range, by)| (at + range.start..at + range.end, by)),
            );
            continue;
        }
        let head = common_prefix_length(changed.chars(), by.chars());
        let (changed, by) = (&changed[head..], &by[head..]);
        let tail = common_prefix_length(changed.chars().rev(), by.chars().rev());
        let range = from + range.start + head..from + range.end - tail;
        edits.push((range, &by[..by.len() - tail]));
    }
    edits
}

fn characters(text: &str) -> Vec<&str> {
    text.split_inclusive(|_: char| true).collect()
}

/// The differences between two texts split into pieces.
fn diff_pieces<'a>(
    old_pieces: &[&str],
    new_pieces: &[&str],
    new: &'a str,
    deadline: Instant,
) -> Vec<Replacement<'a>> {
    let (old_starts, new_starts) = (offsets(old_pieces), offsets(new_pieces));
    capture_diff_slices_deadline(Algorithm::Myers, old_pieces, new_pieces, Some(deadline))
        .into_iter()
        .filter(|op| !matches!(op, DiffOp::Equal { .. }))
        .map(|op| {
            let (_, was, is) = op.as_tag_tuple();
            let range = old_starts[was.start]..old_starts[was.end];
            (range, &new[new_starts[is.start]..new_starts[is.end]])
        })
        .collect()
}

/// The start of each piece, and the end of the last one.
fn offsets(pieces: &[&str]) -> Vec<usize> {
    let mut at = 0;
    let ends = pieces.iter().map(|piece| {
        at += piece.len();
        at
    });
    std::iter::once(0).chain(ends).collect()
}

/// The length in bytes of two texts' common prefix.
fn common_prefix_length(
    one: impl Iterator<Item = char>,
    other: impl Iterator<Item = char>,
) -> usize {
    one.zip(other)
        .take_while(|(one, other)| one == other)
        .map(|(c, _)| c.len_utf8())
        .sum()
}

#[cfg(test)]
mod tests;
