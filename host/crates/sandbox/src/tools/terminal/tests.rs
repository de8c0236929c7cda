//! Tests of progress bars, colours and titles, and of output that is meant to hang a terminal.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

#[track_caller]
fn shows(output: &str, expected: &str) {
    assert_eq!(rendered(output.as_bytes()), expected, "{output:?}");
}

#[test]
fn a_progress_bar_is_left_in_its_last_state() {
    shows("10%\r50%\r100%\ndone\n", "100%\ndone\n");
    shows("Downloading...\rok\x1b[K\n", "ok\n");
    shows("long text\rok\n", "okng text\n");
    shows("50%      \r       \rdone\n", "done\n");
    shows("a\r\nb\r\n", "a\nb\n");
    shows("|\x08/\x08-\x08done\n", "done\n");
    shows("N\x08NA\x08A\n", "NA\n");
    shows("one\ntwo\n\x1b[2A\x1b[2KONE\n\x1b[2KTWO\n", "ONE\nTWO\n");
    shows("one\ntwo\n\x1b[1A\x1b[2K\x1b[1A\x1b[2Kdone\n", "done\n");
    shows("a: 1\nb: 1\n\x1b[1F\x1b[4Gx\x1b[E", "a: 1\nb: x\n");
    let bars: String = (0..200).map(|n| format!("\x1b[2K\r{n} %")).collect();
    shows(&(bars + "\n"), "199 %\n");
}

#[test]
fn colours_titles_and_links_are_gone_and_their_text_stays() {
    shows(
        "\x1b[1;31merror\x1b[0m: no\x1b[38;2;1;2;3m!\x1b[m\n",
        "error: no!\n",
    );
    shows(
        "\x1b]0;title\x07text\x1b]2;other\x1b\\ more\n",
        "text more\n",
    );
    shows(
        "\x1b]8;;https://a.example/\x1b\\link\x1b]8;;\x1b\\.\n",
        "link.\n",
    );
    shows("\u{9b}31mred\u{9b}0m \u{9d}0;title\u{9c}x\n", "red x\n");
    shows("\x1bP1;2q data\nmore\x1b\\after\x1b_app\x1b\\\n", "after\n");
    shows(
        "\x1b(0x\x1b(B\x1b[?25l\x1b[>4;2m\x1b[!p\x1b=y\x1b[?25h\x07\n",
        "xy\n",
    );
    assert_eq!(rendered(b"\x9b31mred\x9b0m \x9d0;title\x07x\n"), "red x\n");
    // Windows-1252 and Shift JIS have these bytes as text.
    assert_eq!(rendered(b"a \x9bb\x9b\n"), "a \u{fffd}b\u{fffd}\n");
    assert_eq!(rendered("\u{6db}1m\n".as_bytes()), "\u{6db}1m\n");
}

#[test]
fn what_a_sequence_begins_hides_no_more_than_a_terminal_would() {
    shows("a\x1b]0;no end\nb\n", "a\nb\n");
    shows("a\x1bPno end\nb\n", "ano end\nb\n");
    shows("a\x1b", "a");
    shows("a\x1b[", "a");
    shows("a\x1b[31", "a");
    shows("a\x1b[3\u{e9}b\x1b\u{e9}c\x1b\x1b[mc", "a\u{e9}b\u{e9}cc");
    shows("a\0b\x7fc\x0ed\n", "abcd\n");
}

#[test]
fn a_screen_that_was_cleared_shows_what_came_after() {
    shows("before\n\x1b[2J\x1b[Hafter\n", "after\n");
    shows("before\n\x1b[H\x1b[2Jafter\n", "after\n");
    shows("before\n\x1b[H\x1b[Jafter\n", "after\n");
    shows("before\n\x1bcafter\n", "after\n");
    shows("\x1b[3;3Hx\x1b[1;1Hy\n", "y\n\n  x");
    shows(
        "main\n\x1b[?1049hfull\x1b[Hscreen\x1b[?1049lback\n",
        "main\nback\n",
    );
    shows("main\n\x1b[?1049hfull", "main\n\nfull");
    shows("abc\x1b[2Dx\x1b7y\x1b8z\n", "axz\n");
    shows("abcdef\x1b[4D\x1b[P\x1b[@\x1b[X\n", "ab def\n");
    shows("a\nb\nc\x1b[2A\x1b[L\rx\x1b[B\x1b[M", "x\nb\nc");
    shows("-\x1b[9b\n", "----------\n");
}

#[test]
fn wide_characters_accents_and_tabs_keep_their_columns() {
    shows("\u{4e2d}\u{6587}\rx\n", "x \u{6587}\n");
    shows("e\u{301}a\rx\n", "xa\n");
    shows("a\tb\rx\n", "x\tb\n");
    shows("a\tb\r\x1b[3Cx\n", "a  x    b\n");
    shows(
        "\u{1f468}\u{200d}\u{1f469}!\r\n",
        "\u{1f468}\u{200d}\u{1f469}!\n",
    );
}

#[test]
fn output_that_is_meant_to_take_long_does_not() {
    let begun = Instant::now();
    let attacks = [
        "\x1b[1K",
        "x\x1b[1K",
        "\x1b[P",
        "\x1b[9999@",
        "\x1b[L",
        "\x1b[9999L",
        "\x1b[9999B\x1b[9999Cx",
        "\n\x1b[9999Cx",
        "\x1b[9999;9999Hx",
        "\x1b[9999;9999Hx\x1b[2J",
        "x\x1b[9999b",
        "\x1b[?1049h\x1b[?1049l",
        "\x1bP",
        "\x1b]",
        "\x1b[1;",
        "\u{9d}",
        "\u{90}",
        "\t\r",
        "x\u{301}",
        "\x1b[3J\n",
        "\x1b[M\n",
    ];
    for attack in attacks {
        for before in [String::new(), "x".repeat(2000), "y\n".repeat(200)] {
            let output = before + &attack.repeat(100_000 / attack.len());
            let text = rendered(output.as_bytes());
            assert!(
                text.len() < 4 * output.len() + 200_000,
                "{attack:?}: {}",
                text.len()
            );
        }
    }
    let old = [&b"\x9d0;"[..], b"\x9b1", b"\x9b1m", b"\xff\x9d1;x"];
    for attack in old {
        rendered(&attack.repeat(100_000 / attack.len()));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(120),
        "{:?}",
        begun.elapsed()
    );
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c \u{4e2d}\u{301}\t]{1,4}",
        "\x1b\\[[0-9]{0,3}(;[0-9]{0,3})?[@-Z`a-z]",
        "\x1b[\\[\\]PX7-8DEMc(]?",
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        Just("\x08".to_owned()),
        Just("\x1b[?1049h".to_owned()),
        Just("\x1b[?1049l".to_owned()),
        Just("x".repeat(1100)),
        any::<char>().prop_map(String::from),
    ]
}

proptest! {
    #[test]
    fn a_text_without_controls_stays_as_it_is(text in "([^\\p{Cc}]|[\n\t]){0,200}") {
        prop_assert_eq!(rendered(text.as_bytes()), text.as_str());
        // Also when it goes through the terminal.
        let through = format!("\x1b[m{text}");
        prop_assert_eq!(rendered(through.as_bytes()), text);
    }

    #[test]
    fn long_lines_stay_in_one_piece(text in "[a\u{4e2d}\t ]{1000,2500}") {
        let through = format!("\x1b[m{text}\nend");
        prop_assert_eq!(rendered(through.as_bytes()), format!("{text}\nend"));
    }

    #[test]
    fn whatever_is_written_is_rendered_without_a_control_character(
        pieces in prop::collection::vec(piece(), 0..60),
    ) {
        let text = rendered(pieces.concat().as_bytes());
        prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{:?}", text);
    }

    #[test]
    fn any_bytes_are_rendered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        rendered(&bytes);
    }
}
