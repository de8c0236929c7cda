//! Damaged input for the property tests of whatever reads untrusted bytes.
//!
//! Arbitrary bytes rarely get past the first check of a parser. What reaches the rest of it is valid input
//! with a few changes, as a fuzzer makes them from its corpus: [`mutated`] makes these. [`cuts`] and
//! [`pieces`] cut a stream as a network does.
//!
//! The number of cases is proptest's own, so a long run needs no other tool:
//! `PROPTEST_CASES=100000 cargo test -p lucid-net -- mutated`.

#![forbid(unsafe_code)]

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// What parsers give a meaning: ends of numbers, and the punctuation of JSON, TOML, HTTP and pkt-lines.
const BYTES: &[u8] =
    b"\0\x01\x1b\x7f\x80\xc3\xed\xff\n\r\t \"'\\/{}[]<>():;,.=#%@&?*+-_`~|$!0129afxzAFZ";

/// Numbers at the edges of their types.
const NUMBERS: [&str; 18] = [
    "-1",
    "0",
    "00",
    "127",
    "256",
    "32768",
    "65536",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551616",
    "1e999",
    "-1e-999",
    "0.1",
    "1e9",
    "NaN",
    "-",
];

/// How often a few bytes are repeated at most. What is nested that deep ends a reader that recurses
/// without a limit.
const REPEATED: usize = 20_000;

/// Where something is, as far as there is something.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: Index,
    length: usize,
}

impl Place {
    fn of(self, bytes: &[u8]) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        let at = self.at.index(bytes.len());
        at..bytes.len().min(at + self.length)
    }
}

/// One change.
#[derive(Debug, Clone)]
enum Change {
    /// One bit is another.
    Flip(Index, u8),
    /// One byte is another.
    Set(Index, u8),
    /// Something comes in between.
    Insert(Index, Vec<u8>),
    /// Something is missing.
    Remove(Place),
    /// Something is there many times.
    Repeat(Place, usize),
    /// Something stands elsewhere as well.
    Copy(Place, Index),
    /// Something of another input stands there.
    Splice(Index, Place, Index),
    /// A number is another.
    Number(Index, &'static str),
    /// The end is missing.
    Truncate(Index),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let between = |bytes: &[u8], at: &Index| at.index(bytes.len() + 1);
        match self {
            Self::Flip(at, bit) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << (bit % 8);
            }
            Self::Set(at, byte) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Self::Flip(..) | Self::Set(..) => {}
            Self::Insert(at, new) => {
                let at = between(bytes, at);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Remove(place) => {
                bytes.drain(place.of(bytes));
            }
            Self::Repeat(place, times) => {
                let range = place.of(bytes);
                let many = bytes[range.clone()].repeat(*times);
                bytes.splice(range, many);
            }
            Self::Copy(from, to) => {
                let copied = bytes[from.of(bytes)].to_vec();
                let to = between(bytes, to);
                bytes.splice(to..to, copied);
            }
            Self::Splice(which, from, to) => {
                let other = &corpus[which.index(corpus.len())];
                let copied = other[from.of(other)].to_vec();
                let to = between(bytes, to);
                bytes.splice(to..to, copied);
            }
            Self::Number(which, new) => {
                let numbers = numbers(bytes);
                if !numbers.is_empty() {
                    let range = numbers[which.index(numbers.len())].clone();
                    bytes.splice(range, new.bytes());
                }
            }
            Self::Truncate(at) => bytes.truncate(between(bytes, at)),
        }
    }
}

/// Where the numbers are.
fn numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        if !byte.is_ascii_digit() {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => found.push(at..at + 1),
        }
    }
    found
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    let place = |longest: usize| (at(), 1..=longest).prop_map(|(at, length)| Place { at, length });
    let byte = || prop_oneof![3 => select(BYTES), 1 => any::<u8>()];
    prop_oneof![
        2 => (at(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
        4 => (at(), byte()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), vec(byte(), 1..6)).prop_map(|(at, new)| Change::Insert(at, new)),
        4 => place(40).prop_map(Change::Remove),
        2 => (place(40), 2..5_usize).prop_map(|(place, times)| Change::Repeat(place, times)),
        1 => (place(6), 2..REPEATED).prop_map(|(place, times)| Change::Repeat(place, times)),
        3 => (place(80), at()).prop_map(|(from, to)| Change::Copy(from, to)),
        3 => (at(), place(80), at()).prop_map(|(which, from, to)| Change::Splice(which, from, to)),
        2 => (at(), select(&NUMBERS[..])).prop_map(|(which, new)| Change::Number(which, new)),
        1 => at().prop_map(Change::Truncate),
    ]
}

/// One of these inputs, with a few changes.
///
/// # Panics
///
/// If there are none.
pub fn mutated<B: AsRef<[u8]>>(
    corpus: impl IntoIterator<Item = B>,
) -> impl Strategy<Value = Vec<u8>> {
    let corpus: Vec<Vec<u8>> = corpus
        .into_iter()
        .map(|input| input.as_ref().to_vec())
        .collect();
    assert!(!corpus.is_empty(), "there is nothing to change");
    (any::<Index>(), vec(change(), 0..6)).prop_map(move |(which, changes)| {
        let mut bytes = corpus[which.index(corpus.len())].clone();
        for change in changes {
            change.apply(&mut bytes, &corpus);
        }
        bytes
    })
}

/// The same for readers of text: what is not UTF-8 any more is replaced.
pub fn mutated_text<T: AsRef<str>>(
    corpus: impl IntoIterator<Item = T>,
) -> impl Strategy<Value = String> {
    let corpus: Vec<Vec<u8>> = corpus
        .into_iter()
        .map(|text| text.as_ref().as_bytes().to_vec())
        .collect();
    mutated(corpus).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Places at which a stream is cut.
pub fn cuts() -> impl Strategy<Value = Vec<Index>> {
    vec(any::<Index>(), 0..12)
}

/// A stream in pieces, some of which may be empty.
#[must_use]
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|at| at.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut from = 0;
    let piece = |end| &bytes[std::mem::replace(&mut from, end)..end];
    ends.into_iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_whole(bytes in vec(any::<u8>(), 0..100), cuts in cuts()) {
            prop_assert_eq!(pieces(&bytes, &cuts).concat(), bytes);
        }

        #[test]
        fn nothing_is_changed_without_a_panic(bytes in mutated([&b""[..], b"{\"a\":[1,22]}", b"x"])) {
            prop_assert!(bytes.len() < 6 * 6 * REPEATED * 6);
        }
    }

    #[test]
    fn a_number_is_found_whole() {
        assert_eq!(numbers(b"1a234,5"), [0..1, 2..5, 6..7]);
    }
}
