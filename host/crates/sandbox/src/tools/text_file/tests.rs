//! Tests of edits in texts of all encodings and line endings.

use proptest::prelude::*;

use super::*;

fn file(bytes: &[u8]) -> TextFile {
    TextFile::open(bytes.to_vec()).unwrap()
}

/// Replaces a text that occurs once.
fn replaced(bytes: &[u8], old: &str, new: &str) -> Vec<u8> {
    let file = file(bytes);
    let at = file.text().find(old).unwrap();
    file.replace(at..at + old.len(), new).unwrap()
}

fn utf16(text: &str, big_endian: bool) -> Vec<u8> {
    let bytes = |unit: u16| {
        if big_endian {
            unit.to_be_bytes()
        } else {
            unit.to_le_bytes()
        }
    };
    "\u{feff}"
        .encode_utf16()
        .chain(text.encode_utf16())
        .flat_map(bytes)
        .collect()
}

#[test]
fn lines_that_end_in_cr_lf_are_edited_as_they_are_seen() {
    let file = b"one\r\ntwo\r\nthree\r\n";
    assert_eq!(self::file(file).text(), "one\ntwo\nthree\n");
    assert_eq!(
        replaced(file, "one\ntwo\n", "1\n2\n"),
        b"1\r\n2\r\nthree\r\n"
    );
    assert_eq!(
        replaced(file, "two", "2\n2.5"),
        b"one\r\n2\r\n2.5\r\nthree\r\n"
    );
    assert_eq!(replaced(file, "two\n", ""), b"one\r\nthree\r\n");
    assert_eq!(replaced(b"a\rb\rc", "b", "1\n2"), b"a\r1\r2\rc");
    assert_eq!(
        replaced(b"a\r\r\nb\r\r\n", "b", "1\n2"),
        b"a\r\r\n1\r\r\n2\r\r\n"
    );
    assert_eq!(replaced(b"one", "one", "1\n2"), b"1\n2");
}

#[test]
fn mixed_line_ends_stay_where_nothing_was_changed() {
    let file = b"a\r\nb\nc\r\nd\ne\rf\r\n";
    assert_eq!(self::file(file).text(), "a\nb\nc\nd\ne\rf\n");
    assert_eq!(
        replaced(file, "a\nb\nc\nd\n", "a\nB\nc\nD\n"),
        b"a\r\nB\nc\r\nD\ne\rf\r\n"
    );
    assert_eq!(
        replaced(file, "b\nc\n", "b\nb2\nc\n"),
        b"a\r\nb\nb2\r\nc\r\nd\ne\rf\r\n"
    );
}

#[test]
fn a_byte_order_mark_stays_and_is_no_part_of_the_text() {
    let marked = b"\xef\xbb\xbfone\r\ntwo\r\n";
    assert_eq!(file(marked).text(), "one\ntwo\n");
    assert_eq!(
        replaced(marked, "one", "\u{e9}ins"),
        "\u{feff}\u{e9}ins\r\ntwo\r\n".as_bytes()
    );
    for big_endian in [false, true] {
        let bytes = utf16("one\r\n\u{1f600} two\r\n", big_endian);
        assert_eq!(file(&bytes).text(), "one\n\u{1f600} two\n");
        assert_eq!(
            replaced(&bytes, "two", "zwei\n\u{e9}"),
            utf16("one\r\n\u{1f600} zwei\r\n\u{e9}\r\n", big_endian)
        );
    }
}

#[test]
fn bytes_that_are_not_utf8_stay_and_new_ones_are_of_the_files_encoding() {
    let latin = b"caf\xe9 \x80\nna\xefve\n";
    assert_eq!(file(latin).text(), "caf\u{e9} \u{20ac}\nna\u{ef}ve\n");
    assert_eq!(file(latin).encoding, Encoding::Windows1252);
    assert_eq!(
        replaced(latin, "na\u{ef}ve", "na\u{ef}ve \u{fc}ber \u{20ac}"),
        b"caf\xe9 \x80\nna\xefve \xfcber \x80\n"
    );
    let refused = file(latin).replace(0..1, "\u{4e2d}");
    assert_eq!(refused, Err(UnencodableChar('\u{4e2d}')));
    // UTF-8 with one invalid byte, which stays beside the new text.
    let mixed = b"\xc3\xa9 and \xe9 x\n";
    assert_eq!(file(mixed).encoding, Encoding::Utf8);
    assert_eq!(
        replaced(mixed, "\u{e9} and \u{e9} x", "\u{e9} und \u{e9} \u{fc}"),
        b"\xc3\xa9 und \xe9 \xc3\xbc\n"
    );
}

#[test]
fn what_is_binary_is_no_text() {
    for bytes in [&b"\x89PNG\r\n\x1a\n\0\0"[..], b"\0", b"\xff\xfe\0\0a\0\0\0"] {
        assert!(TextFile::open(bytes.to_vec()).is_err(), "{bytes:?}");
    }
    assert_eq!(file(b"").text(), "");
}

#[test]
fn a_large_file_is_opened_and_edited_in_a_moment() {
    let begun = Instant::now();
    for line in [&b"\r"[..], b"\r\r\r\n", b"\xe9\r\n", b"\xc3"] {
        let bytes = line.repeat((1 << 20) / line.len());
        let file = file(&bytes);
        let all = file.text().len();
        assert_eq!(file.replace(0..all, file.text()).unwrap(), bytes);
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
}

/// Pieces of files: characters of all lengths, all line endings, and bytes that are not UTF-8.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        &b"\n"[..],
        b"\r\n",
        b"\r",
        b"a",
        b"b",
        "\u{e9}".as_bytes(),
        "\u{1f600}".as_bytes(),
        b"\xe9",
        b"\xf0\x9f",
    ]);
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn text_before_and_behind_an_edit_keeps_its_bytes(
        bytes in pieces(),
        wide in any::<Option<bool>>(),
        ends in (0..60_usize, 0..60_usize),
        new in "[ab\u{e9}\n]{0,8}",
    ) {
        let bytes = match wide {
            Some(big_endian) => utf16(&String::from_utf8_lossy(&bytes), big_endian),
            None => bytes,
        };
        let file = file(&bytes);
        let text = file.text().to_owned();
        let (from, to) = (ends.0.min(ends.1), ends.0.max(ends.1));
        let (from, to) = (text.floor_char_boundary(from), text.floor_char_boundary(to));
        let edited = file.replace(from..to, &new).unwrap();
        // The bytes for the text before and after the edit are unchanged.
        let lengths: Vec<(usize, usize)> = file
            .units()
            .scan(0, |at, unit| {
                *at += unit.character.len_utf8();
                Some((*at, unit.bytes.len()))
            })
            .collect();
        let sum = |fits: &dyn Fn(usize) -> bool| -> usize {
            lengths.iter().filter(|(at, _)| fits(*at)).map(|(_, length)| length).sum()
        };
        let head = file.bom_length + sum(&|at| at <= from);
        let tail = sum(&|at| at > to);
        prop_assert_eq!(&edited[..head], &bytes[..head]);
        prop_assert_eq!(&edited[edited.len() - tail..], &bytes[bytes.len() - tail..]);
    }

    #[test]
    fn what_is_put_in_is_read_back_and_no_change_changes_no_byte(
        bytes in pieces(),
        old in 0..30_usize,
        new in "[abc\n]{0,12}",
    ) {
        let file = file(&bytes);
        let text = file.text();
        prop_assert_eq!(&file.replace(0..text.len(), text).unwrap(), &bytes);
        let at = text.floor_char_boundary(old);
        let edited = file.replace(at..at, &new).unwrap();
        // A CR before the new text would merge with its LF into one line ending.
        if !text[..at].ends_with('\r') && !text.contains('\r') {
            let expected = [&text[..at], &new, &text[at..]].concat();
            let again = TextFile::open(edited).unwrap();
            prop_assert_eq!(again.text(), expected);
        }
    }
}
