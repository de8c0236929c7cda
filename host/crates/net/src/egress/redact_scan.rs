//! A fast test of whether a text may contain one of a key's forms.
//!
//! Nearly every text contains none of them, and each of some forty would otherwise be looked for
//! on its own. The algorithm is Wu and Manber's: pairs of bytes say how far the next form can be at
//! the nearest, so most of a text is never looked at. It is written out here because the matchers of
//! `aho-corasick` and `memchr` keep copies of what they look for, which nobody wipes.
//!
//! # Invariants
//! - A text in which a form occurs is never passed over.
//! - The tables, which tell something of the key, are wiped when dropped.

use lucid_types::secret::Zeroizing;

/// How many bytes are looked at together.
const PAIR: usize = 2;
/// How many bits of each of them count. All of ASCII's do, or letters would be taken for digits.
const BITS: u32 = 7;
/// The bit of an entry that says that a form begins with such a pair. The others are a shift.
const BEGINS: u8 = 0x80;

/// The tables for some forms. Without any it finds nothing.
#[derive(Clone, Default)]
pub(super) struct FormScanner {
    /// The length of the shortest form; of the longer ones, so many bytes count.
    window: usize,
    /// For each pair, how far a window that ends with it can be moved on, and [`BEGINS`].
    pairs: Zeroizing<Vec<u8>>,
    /// For each byte, whether a form begins with it.
    first: Zeroizing<Vec<bool>>,
}

impl FormScanner {
    /// Creates the tables. Nothing is found if a form is shorter than two bytes.
    pub(super) fn new<'a>(forms: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let shortest = forms.clone().map(<[u8]>::len).min();
        let Some(window) = shortest.filter(|window| *window >= PAIR) else {
            return Self::default();
        };
        // A shift has seven bits.
        let window = window.min(usize::from(BEGINS));
        let shift = |by: usize| u8::try_from(by).unwrap_or(BEGINS - 1);
        let mut scanner = Self {
            window,
            pairs: Zeroizing::new(vec![shift(window - PAIR + 1); 1 << (2 * BITS)]),
            first: Zeroizing::new(vec![false; 1 << u8::BITS]),
        };
        for form in forms {
            for (at, pair) in form[..window].windows(PAIR).enumerate() {
                let entry = &mut scanner.pairs[class(pair)];
                let left = shift(window - PAIR - at).min(*entry & !BEGINS);
                *entry = left | (*entry & BEGINS);
            }
            scanner.pairs[class(&form[..PAIR])] |= BEGINS;
            scanner.first[usize::from(form[0])] = true;
        }
        scanner
    }

    /// Whether a form may begin in this text at a place for which `is_form` says so.
    pub(super) fn finds(&self, text: &[u8], is_form: impl Fn(&[u8]) -> bool) -> bool {
        let mut from = 0;
        while let Some(window) = text.get(from..from + self.window)
            && let Some(pair) = window.last_chunk::<PAIR>()
        {
            let shift = self.pairs[class(pair)] & !BEGINS;
            if shift > 0 {
                from += usize::from(shift);
            } else if self.may_begin(window) && is_form(&text[from..]) {
                return true;
            } else {
                from += 1;
            }
        }
        false
    }

    /// Whether a form may begin a text, or the text may be the beginning of a form.
    pub(super) fn may_begin(&self, text: &[u8]) -> bool {
        match text {
            [] => false,
            [one] => self.first.get(usize::from(*one)) == Some(&true),
            [..] => {
                let entry = self.pairs.get(class(&text[..PAIR]));
                entry.is_some_and(|entry| entry & BEGINS > 0)
            }
        }
    }
}

/// The entry of a pair of bytes: the lower bits of both.
fn class(pair: &[u8]) -> usize {
    let bits = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or_default() & 0x7f);
    (bits(pair.first()) << BITS) | bits(pair.get(1))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn finds(forms: &[String], text: &str) -> bool {
        let scanner = FormScanner::new(forms.iter().map(String::as_bytes));
        scanner.finds(text.as_bytes(), |rest| {
            forms.iter().any(|form| rest.starts_with(form.as_bytes()))
        })
    }

    proptest! {
        #[test]
        fn a_form_is_found_wherever_it_stands_and_nothing_else_is(
            // Of few letters, so that beginnings of forms are everywhere.
            forms in vec("[abü]{2,9}", 1..8),
            text in "[abcü]{0,40}",
        ) {
            let expected = forms.iter().any(|form| text.contains(form.as_str()));
            prop_assert_eq!(finds(&forms, &text), expected);
        }

        #[test]
        fn every_beginning_of_a_form_may_begin_one(form in "[ -~ü]{2,40}", end in 1..40usize) {
            let scanner = FormScanner::new([form.as_bytes()].into_iter());
            let end = form.floor_char_boundary(end);
            prop_assert!(end == 0 || scanner.may_begin(&form.as_bytes()[..end]));
        }
    }

    #[test]
    fn forms_longer_than_a_shift_are_found() {
        let long = "x".repeat(300);
        assert!(finds(
            std::slice::from_ref(&long),
            &format!("{}{long}", "y".repeat(301))
        ));
        assert!(!finds(
            std::slice::from_ref(&long),
            &format!("{}y{}", &long[1..], &long[1..])
        ));
    }

    #[test]
    fn without_forms_nothing_is_found() {
        assert!(!finds(&[], "text"));
        assert!(!FormScanner::default().may_begin(b"text"));
    }
}
