//! Reads a `.env` file.
//!
//! # Invariants
//!
//! - Its lines may hold secrets, so an error gives a line's number and none of its content.

use std::cell::Cell;
use std::io::{self, Read};

use super::ConfigError;

/// The pairs of a file, in order.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, ConfigError> {
    let line = Cell::new(0);
    let lines = Lines {
        // Editors on other systems begin a file with a byte order mark.
        rest: text.trim_start_matches('\u{feff}').as_bytes(),
        given: &line,
    };
    dotenvy::from_read_iter(lines)
        .map(|pair| {
            pair.map_err(|error| match error {
                // The error contains the text that could not be read: one line, or all lines of a
                // quoted value, of which the last one was read last.
                dotenvy::Error::LineParse(bad, _) => ConfigError::DotEnvLine {
                    line: line.get() + 1 - bad.lines().count().clamp(1, line.get().max(1)),
                },
                dotenvy::Error::Io(error) => ConfigError::DotEnv(error),
                _ => ConfigError::DotEnv(io::ErrorKind::InvalidData.into()),
            })
        })
        .collect()
}

/// Returns one line per read and counts them, since the parser does not report its position.
struct Lines<'a> {
    rest: &'a [u8],
    given: &'a Cell<usize>,
}

impl Read for Lines<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(self.rest.len(), |at| at + 1);
        let (line, _) = self.rest.split_at(end.min(into.len()));
        into[..line.len()].copy_from_slice(line);
        self.rest = &self.rest[line.len()..];
        // A line longer than the reader's buffer is read in parts, and counts once.
        if line.len() == end && !line.is_empty() {
            self.given.set(self.given.get() + 1);
        }
        Ok(line.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_quotes_and_exports_are_understood() {
        let text = "# comment\nA=1\n\nexport B=2 # two\nC='x$y z'\nD=\"two\nlines\"\nE=\n";
        let expected = [
            ("A", "1"),
            ("B", "2"),
            ("C", "x$y z"),
            ("D", "two\nlines"),
            ("E", ""),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(pairs(text).unwrap(), expected);
        let long = format!("A={}\nB=1", "x".repeat(50_000));
        assert_eq!(pairs(&long).unwrap().len(), 2);
        let elsewhere = pairs("\u{feff}A=1\r\nB=2\r\n").unwrap();
        assert_eq!(elsewhere[0], ("A".to_owned(), "1".to_owned()));
    }

    #[test]
    fn a_bad_line_is_named_by_number_and_not_shown() {
        for bad in [
            "KEY hunter2",
            "KEY='hunter2",
            "KEY='hunter2\nmore",
            "KEY=hunter2 and more",
            "K EY=hunter2",
        ] {
            for before in [
                "A=1\n\n",
                "A=\"two\nlines\"\n",
                "# a\n#b\n",
                "B=hunter2\nA=hunter2\n",
            ] {
                let sentence = pairs(&format!("{before}{bad}\n")).unwrap_err().to_string();
                assert!(
                    sentence.contains("line 3") && !sentence.contains("hunter2"),
                    "{bad:?} {before:?}: {sentence}"
                );
            }
        }
        let long = format!("A={}\nB 1", "x".repeat(50_000));
        assert!(pairs(&long).unwrap_err().to_string().contains("line 2"));
    }
}
