//! Redacts a key from what a provider sent back.
//!
//! A provider that echoes a key may also show it in another form. The forms that are known are those
//! of the usual encoders. They are looked for together, so their number costs nearly nothing; what
//! would need another way of looking is left out: a key cut into groups, in another case, encoded
//! twice, or compressed.
//!
//! # Invariants
//! - The output contains the key in none of these forms: verbatim, reversed, with a space or a dash
//!   between its characters, URL-encoded (also with every byte escaped), hexadecimal (also with a
//!   space, a colon or a dash between its bytes, or `%` or `\x` before each), base64 or base32 (at
//!   any offset of the encoded text), or inside a JSON string.
//! - A text that was cut does not end with the beginning of the key.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use url::form_urlencoded::byte_serialize;

use super::redact_scan::FormScanner;
use lucid_types::secret::{Secret, Zeroizing};
use lucid_types::wit::llm::{Frame, Sse};

/// The replacement for a key.
pub(super) const REDACTED: &str = "[secret]";
/// The shortest key, in bytes, that counts as a secret. A shorter one is a placeholder, such as a
/// self-hosted server is given (`ollama`): a response may well contain the word. In errors that
/// people see it is redacted all the same, where it stands as a word of its own.
const SECRET: usize = 12;
/// The shortest encoded form that is redacted; a shorter one would be found everywhere.
const SHORTEST_FORM: usize = 8;
/// The shortest beginning of a key that is removed at a cut. A shorter one reveals nothing.
const SHORTEST_PIECE: usize = 3;

/// All forms in which one key may be written, wiped when dropped. Without a key it changes nothing.
#[derive(Clone, Default)]
pub struct Redactor {
    /// The forms, the key itself first.
    forms: Vec<Zeroizing<String>>,
    /// Of the forms of a secret.
    scanner: FormScanner,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// Creates a redactor for this key.
    pub fn new(key: Option<&Secret>) -> Self {
        let Some(key) = key.map(Secret::expose) else {
            return Self::default();
        };
        if key.is_empty() {
            return Self::default();
        }
        let mut plain = vec![Zeroizing::new(key.to_owned())];
        let form: String = byte_serialize(key.as_bytes()).collect();
        for encoded in [form, percent_encode_all(key.as_bytes())] {
            plain.push(Zeroizing::new(lowercase_escapes(&encoded)));
            plain.push(Zeroizing::new(encoded));
        }
        for before_each in ["", "%", "\\x"] {
            plain.extend(hexadecimal(key.as_bytes(), before_each));
        }
        for between in [" ", ":", "-"] {
            for mut digits in hexadecimal(key.as_bytes(), between) {
                digits.remove(0);
                plain.push(digits);
            }
        }
        plain.push(joined(key.chars().rev(), ""));
        for between in [" ", "-"] {
            plain.push(joined(key.chars(), between));
        }
        for before in 0..3 {
            // Three bytes are four characters: the key may begin at any of the three.
            let mut bytes = Zeroizing::new(vec![0; before]);
            bytes.extend_from_slice(key.as_bytes());
            let (first, end) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
            for encoded in [
                STANDARD_NO_PAD.encode(&*bytes),
                URL_SAFE_NO_PAD.encode(&*bytes),
            ] {
                let encoded = Zeroizing::new(encoded);
                if let Some(own) = encoded.get(first..end) {
                    plain.push(Zeroizing::new(own.to_owned()));
                }
            }
        }
        for before in 0..5 {
            // Five bytes are eight characters.
            let mut bytes = Zeroizing::new(vec![0; before]);
            bytes.extend_from_slice(key.as_bytes());
            let (first, end) = ((before * 8).div_ceil(5), bytes.len() * 8 / 5);
            let encoded = base32(&bytes);
            if let Some(own) = encoded.get(first..end) {
                plain.push(Zeroizing::new(own.to_ascii_lowercase()));
                plain.push(Zeroizing::new(own.to_owned()));
            }
        }
        let mut forms = vec![Zeroizing::new(key.to_owned())];
        // An error may quote a body that is itself JSON, and the response is JSON around that.
        for inner in plain {
            let mut layer = vec![inner];
            for _ in 0..3 {
                // What no encoder changes is itself in all further layers.
                let changed = layer.iter().filter(|form| is_changed_in_json(form));
                let outer: Vec<_> = changed.flat_map(|form| json_escaped(form)).collect();
                for form in std::mem::replace(&mut layer, outer) {
                    if form.len() >= SHORTEST_FORM && !forms.contains(&form) {
                        forms.push(form);
                    }
                }
            }
        }
        // Longer forms first: one that contains another is replaced before it, so that no part of
        // it is left.
        forms[1..].sort_by_key(|form| std::cmp::Reverse(form.len()));
        let scanner = match key.len() {
            SECRET.. => FormScanner::new(forms.iter().map(|form| form.as_bytes())),
            _ => FormScanner::default(),
        };
        Self { forms, scanner }
    }

    /// Redacts the key in a text.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        if self.is_secret() && !self.occurs_in(&text) {
            return text;
        }
        for form in &self.forms {
            if !text.contains(form.as_str()) {
                continue;
            }
            if self.is_secret() {
                text = Cow::Owned(text.replace(form.as_str(), REDACTED));
            } else if let Some(redacted) = redact_word(&text, form) {
                text = Cow::Owned(redacted);
            }
        }
        text
    }

    /// Redacts the key in a text of a response. A key that is too short to be secret is left.
    pub fn redact_response(&self, text: &mut String) {
        if self.is_secret()
            && let Cow::Owned(redacted) = self.text(text)
        {
            *text = redacted;
        }
    }

    /// Redacts the key in a frame, before any plugin sees it.
    pub(super) fn redact_frame(&self, frame: Frame) -> Frame {
        if !self.is_secret() {
            return frame;
        }
        let own = |mut text: String| {
            self.redact_response(&mut text);
            text
        };
        match frame {
            Frame::Sse(Sse { event, data, id }) => Frame::Sse(Sse {
                event: event.map(own),
                data: own(data),
                id: id.map(own),
            }),
            Frame::Line(line) => Frame::Line(own(line)),
            Frame::Body(body) => match self.text(&String::from_utf8_lossy(&body)) {
                // Lossy or not, nothing was found, so nothing is changed.
                Cow::Borrowed(_) => Frame::Body(body),
                Cow::Owned(redacted) => Frame::Body(redacted.into_bytes()),
            },
        }
    }

    /// A body with the key redacted, cut to `most` bytes. `whole` is false if only its beginning
    /// was read. Bytes that are not UTF-8 are replaced.
    pub(super) fn redact_body(&self, body: &[u8], whole: bool, most: usize) -> Vec<u8> {
        let text = String::from_utf8_lossy(body);
        let mut text = self.text(&text).into_owned();
        if !whole {
            let left = self
                .forms
                .iter()
                .map(|form| partial_form_at_end(&text, form));
            let left = left.max().unwrap_or(0);
            text.truncate(text.len() - left);
        }
        text.truncate(text.floor_char_boundary(most));
        text.into_bytes()
    }

    /// How many extra bytes must be read, so that no part of a key is left at a cut.
    pub(super) fn margin(&self) -> usize {
        self.forms.iter().map(|form| form.len()).max().unwrap_or(0)
    }

    /// The forms in which the key may be written.
    pub(super) fn forms(&self) -> impl Iterator<Item = &str> {
        self.forms.iter().map(|form| form.as_str())
    }

    /// Whether this secret occurs in a text.
    fn occurs_in(&self, text: &str) -> bool {
        let is_form = |rest: &[u8]| {
            let mut forms = self.forms.iter();
            forms.any(|form| rest.starts_with(form.as_bytes()))
        };
        self.scanner.finds(text.as_bytes(), is_form)
    }

    /// Whether a form of this secret may begin the text, or the text may be the beginning of one.
    pub(super) fn may_begin(&self, text: &str) -> bool {
        self.scanner.may_begin(text.as_bytes())
    }

    pub(super) fn is_secret(&self) -> bool {
        self.forms.first().is_some_and(|key| key.len() >= SECRET)
    }
}

/// Redacts the key in a text.
pub fn redact(text: &str, key: Option<&Secret>) -> String {
    Redactor::new(key).text(text).into_owned()
}

/// Redacts a word in a text. `None` if it only occurs within other words, as `x` does in `maximum`.
fn redact_word(text: &str, word: &str) -> Option<String> {
    let joins = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let mut redacted = String::new();
    let mut from = 0;
    for (at, _) in text.match_indices(word) {
        let end = at + word.len();
        if joins(text[..at].chars().next_back()) || joins(text[end..].chars().next()) {
            continue;
        }
        redacted.push_str(&text[from..at]);
        redacted.push_str(REDACTED);
        from = end;
    }
    (from > 0).then(|| redacted + &text[from..])
}

/// How many bytes at the text's end are the beginning of a form.
fn partial_form_at_end(text: &str, form: &str) -> usize {
    let ends = form.char_indices().map(|(at, _)| at);
    let ends = ends.filter(|at| *at >= SHORTEST_PIECE).rev();
    let mut found = ends.filter(|end| text.ends_with(&form[..*end]));
    found.next().unwrap_or(0)
}

/// Whether one of [`json_escaped`] is not the text itself.
fn is_changed_in_json(text: &str) -> bool {
    text.bytes()
        .any(|byte| byte < b' ' || b"\"\\/<>&".contains(&byte))
}

/// The forms in which encoders write a text into a JSON string: with mandatory escapes only, with
/// slashes escaped too, and with HTML's special characters escaped.
fn json_escaped(text: &str) -> [Zeroizing<String>; 3] {
    let quoted = Zeroizing::new(serde_json::to_string(text).unwrap_or_default());
    let inside = quoted
        .get(1..quoted.len().saturating_sub(1))
        .unwrap_or_default();
    let html = inside
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026");
    [inside.to_owned(), inside.replace('/', "\\/"), html].map(Zeroizing::new)
}

/// Percent-encodes everything but the unreserved characters, spaces included.
fn percent_encode_all(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Two hex digits for each byte, each pair after `before_each`: in lower case and in upper case.
fn hexadecimal(bytes: &[u8], before_each: &str) -> [Zeroizing<String>; 2] {
    [b"0123456789abcdef", b"0123456789ABCDEF"].map(|digits| {
        // Allocated at its full size: a text that grows leaves copies behind, which nobody wipes.
        let mut text = Zeroizing::new(String::with_capacity(bytes.len() * (2 + before_each.len())));
        for byte in bytes {
            text.push_str(before_each);
            text.extend([byte >> 4, byte & 0xf].map(|half| char::from(digits[usize::from(half)])));
        }
        text
    })
}

/// The characters with a text between them.
fn joined(chars: impl Iterator<Item = char> + Clone, between: &str) -> Zeroizing<String> {
    let size = chars.clone().map(|c| c.len_utf8() + between.len()).sum();
    let mut text = Zeroizing::new(String::with_capacity(size));
    for c in chars {
        if !text.is_empty() {
            text.push_str(between);
        }
        text.push(c);
    }
    text
}

/// Base32 as RFC 4648 has it, in capitals and without padding.
fn base32(bytes: &[u8]) -> Zeroizing<String> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = Zeroizing::new(String::with_capacity((bytes.len() * 8).div_ceil(5)));
    for five in bytes.chunks(5) {
        let mut block = [0; 8];
        block[3..3 + five.len()].copy_from_slice(five);
        let bits = u64::from_be_bytes(block);
        for place in 0..(five.len() * 8).div_ceil(5) {
            let digit = (bits >> (35 - 5 * place)) & 31;
            text.push(char::from(ALPHABET[usize::try_from(digit).unwrap_or(0)]));
        }
    }
    text
}

/// The same with `%2f` in place of `%2F`.
fn lowercase_escapes(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut lower = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_at(piece.len().min(2));
        lower.push('%');
        lower.push_str(&code.to_ascii_lowercase());
        lower.push_str(rest);
    }
    lower
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sk-a/b+c\"d?e>f~0123456789";

    fn key() -> Secret {
        Secret::from(KEY)
    }

    #[test]
    fn a_key_is_blanked_as_it_is_and_as_it_looks_in_a_url() {
        let key = Secret::from("sk-a/b+c");
        let said = redact(
            "bad key sk-a/b+c (url ?key=sk-a%2Fb%2Bc or sk-a%2fb%2bc)",
            Some(&key),
        );
        assert_eq!(said, "bad key [secret] (url ?key=[secret] or [secret])");
    }

    #[test]
    fn a_key_is_blanked_in_base64_wherever_it_stands_in_the_encoded_text() {
        for before in ["", "B", "Be", "Bearer ", "user:", "{\"key\": \""] {
            for after in ["", "\n", "\"}", " and more"] {
                let whole = format!("{before}{KEY}{after}");
                for encoded in [STANDARD.encode(&whole), URL_SAFE.encode(&whole)] {
                    let said = redact(&encoded, Some(&key()));
                    assert!(said.contains(REDACTED), "{before:?} {after:?}");
                    // The rest is too little to reveal more than a byte at each end.
                    assert!(said.len() + KEY.len() <= encoded.len() + REDACTED.len() + 4);
                }
            }
        }
    }

    #[test]
    fn a_key_is_blanked_in_hexadecimal() {
        let key = Secret::from("sk-a/b+c");
        let said = redact(
            "736b2d612f622b63 736B2D612F622B63 %73%6b%2d%61%2f%62%2b%63 %73%6B%2D%61%2F%62%2B%63",
            Some(&key),
        );
        assert_eq!(said, [REDACTED; 4].join(" "));
    }

    proptest! {
        #[test]
        fn a_key_is_blanked_in_any_encoding_of_any_text_around_it(
            key in "[!-~]{12,48}",
            before in "[ -~]{0,16}",
            after in "[ -~]{0,16}",
            depth in 0..3,
        ) {
            let encoders: [fn(&str) -> String; 17] = [
                str::to_owned,
                |text| byte_serialize(text.as_bytes()).collect(),
                |text| percent_encode_all(text.as_bytes()),
                |text| lowercase_escapes(&percent_encode_all(text.as_bytes())),
                |text| hexadecimal(text.as_bytes(), "")[0].to_string(),
                |text| hexadecimal(text.as_bytes(), "")[1].to_string(),
                |text| hexadecimal(text.as_bytes(), "%")[0].to_string(),
                |text| hexadecimal(text.as_bytes(), "%")[1].to_string(),
                |text| json_escaped(text)[0].to_string(),
                |text| hexadecimal(text.as_bytes(), "\\x")[0].to_string(),
                |text| hexadecimal(text.as_bytes(), " ")[0][1..].to_owned(),
                |text| hexadecimal(text.as_bytes(), ":")[1][1..].to_owned(),
                |text| hexadecimal(text.as_bytes(), "-")[0][1..].to_owned(),
                |text| text.chars().rev().collect(),
                |text| joined(text.chars(), " ").to_string(),
                |text| joined(text.chars(), "-").to_string(),
                |text| joined(text.chars().rev(), "").to_string(),
            ];
            let secret = Secret::from(key.as_str());
            for (number, encode) in encoders.into_iter().enumerate() {
                let (mut own, mut whole) = (encode(&key), encode(&format!("{before}{key}{after}")));
                for _ in 0..depth {
                    (own, whole) = (json_escaped(&own)[0].to_string(), json_escaped(&whole)[0].to_string());
                }
                let said = redact(&whole, Some(&secret));
                // A JSON string in a JSON string in another is as deep as it goes.
                prop_assert!(
                    !said.contains(&own) && said.contains(REDACTED) || (number == 8 && depth == 2 && own != key),
                    "{whole} became {said}"
                );
            }
            for encoded in [STANDARD.encode(format!("{before}{key}{after}")), URL_SAFE.encode(format!("{before}{key}{after}"))] {
                let said = redact(&encoded, Some(&secret));
                prop_assert!(said.contains(REDACTED), "{encoded} became {said}");
            }
            let encoded = base32(format!("{before}{key}{after}").as_bytes());
            for encoded in [encoded.to_string(), encoded.to_ascii_lowercase()] {
                let said = redact(&encoded, Some(&secret));
                prop_assert!(said.contains(REDACTED), "{encoded} became {said}");
                // The rest is too little to reveal more than a byte at each end.
                let around = (before.len() + after.len() + 2) * 8 / 5 + 4;
                prop_assert!(said.len() <= around + REDACTED.len(), "{encoded} became {said}");
            }
        }

        #[test]
        fn what_is_looked_for_together_is_found_as_if_each_form_was_looked_for(
            key in "[!-~äß]{12,20}",
            pieces in proptest::collection::vec((0..200usize, 0..40usize, "[ -~ü]{0,6}"), 0..6),
        ) {
            let redactor = Redactor::new(Some(&Secret::from(key.as_str())));
            let forms: Vec<&str> = redactor.forms().collect();
            let mut text = String::new();
            for (form, end, between) in pieces {
                // Whole forms, and beginnings of them.
                let form = forms[form % forms.len()];
                text.push_str(&form[..form.floor_char_boundary(if end < 8 { form.len() } else { end })]);
                text.push_str(&between);
            }
            let one_by_one = forms.iter().fold(text.clone(), |text, form| text.replace(form, REDACTED));
            prop_assert_eq!(redactor.text(&text), one_by_one);
        }
    }

    #[test]
    fn base32_is_that_of_rfc_4648() {
        for (text, encoded) in [
            ("", ""),
            ("f", "MY"),
            ("fo", "MZXQ"),
            ("foo", "MZXW6"),
            ("foob", "MZXW6YQ"),
            ("fooba", "MZXW6YTB"),
            ("foobar", "MZXW6YTBOI"),
        ] {
            assert_eq!(*base32(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_key_is_blanked_backwards_and_with_something_between_its_characters() {
        let key = Secret::from("sk-123456789");
        let said = redact(
            "987654321-ks s k - 1 2 3 4 5 6 7 8 9 s-k---1-2-3-4-5-6-7-8-9",
            Some(&key),
        );
        assert_eq!(said, [REDACTED; 3].join(" "));
        let said = redact("73 6b 2d 31 32 33 34 35 36 37 38 39", Some(&key));
        assert_eq!(said, REDACTED);
    }

    #[test]
    fn a_key_is_blanked_as_it_looks_in_a_json_string() {
        let in_json = serde_json::to_string(KEY).unwrap();
        for text in [
            in_json.clone(),
            in_json.replace('/', "\\/"),
            in_json.replace('>', "\\u003e"),
        ] {
            assert_eq!(redact(&text, Some(&key())), format!("\"{REDACTED}\""));
            // And such a string inside another one.
            let nested = redact(&serde_json::to_string(&text).unwrap(), Some(&key()));
            assert_eq!(nested, format!(r#""\"{REDACTED}\"""#));
        }
    }

    #[test]
    fn no_part_of_a_key_is_left_wherever_a_body_is_cut() {
        let redactor = Redactor::new(Some(&Secret::from("sk-12345678")));
        let whole = b"sk-12345678 and again sk-12345678, that was it";
        for read in 0..=whole.len() {
            for most in 0..=read {
                let body = redactor.redact_body(&whole[..read], false, most);
                let text = String::from_utf8(body).unwrap();
                assert!(!text.contains("sk-1"), "{read} {most}: {text}");
            }
        }
    }

    #[test]
    fn a_whole_body_keeps_an_end_that_looks_like_the_beginning_of_a_key() {
        let redactor = Redactor::new(Some(&Secret::from("sk-12345678")));
        assert_eq!(
            redactor.redact_body(b"it begins with sk-", true, 100),
            b"it begins with sk-"
        );
    }

    #[test]
    fn a_placeholder_that_is_no_secret_stays_in_an_answer() {
        let said = |key: &str, text: &str| {
            let mut text = text.to_owned();
            Redactor::new(Some(&Secret::from(key))).redact_response(&mut text);
            text
        };
        assert_eq!(said("ollama", "ask ollama"), "ask ollama");
        assert_eq!(said(KEY, &format!("it is {KEY}")), "it is [secret]");
    }

    #[test]
    fn a_placeholder_is_taken_out_of_an_error_only_as_a_word_of_its_own() {
        let said = |key: &str, text: &str| redact(text, Some(&Secret::from(key)));
        assert_eq!(
            said("x", "maximum context; the key x, \"x\" or x is wrong"),
            "maximum context; the key [secret], \"[secret]\" or [secret] is wrong"
        );
        assert_eq!(said("ollama", "ollamas: ollama"), "ollamas: [secret]");
        assert_eq!(said("x", "xx x"), "xx [secret]");
    }

    #[test]
    fn without_a_key_nothing_is_changed() {
        assert_eq!(redact("text", None), "text");
        assert_eq!(redact("text", Some(&Secret::from(""))), "text");
    }
}
