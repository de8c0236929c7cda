//! Tests of what a hostile exec server may send: none of it does more than end its own connection.

use lucid_mutations::{cuts, mutated, pieces};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::io::DuplexStream;

use super::reader::SENTENCE;
use super::*;

fn start(head: usize, tail: usize) -> Start {
    Start {
        argv: vec!["true".to_owned()],
        output_head: head,
        output_tail: tail,
        ..Start::default()
    }
}

/// A connection, and the other end of it.
fn pair() -> (Connection, DuplexStream) {
    pair_with_room(4096)
}

/// The same for a server that sends this much without being read.
fn pair_with_room(room: usize) -> (Connection, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(room);
    let (reader, writer) = tokio::io::split(ours);
    (Connection::from_streams(reader, writer, None), theirs)
}

async fn ends_after(bytes: Vec<u8>) -> String {
    let (connection, mut theirs) = pair();
    let mut running = connection.start(&start(4, 4)).unwrap();
    let ended = connection.ended();
    theirs.write_all(&bytes).await.unwrap();
    let reason = tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .unwrap();
    // Waiting commands are released.
    while running.next().await.is_some() {}
    assert!(!connection.is_alive());
    assert!(connection.start(&start(0, 0)).is_err());
    reason
}

#[tokio::test]
async fn a_frame_out_of_turn_ends_the_connection() {
    let frame = |kind, id, payload: &[u8]| Frame::new(kind, id, payload).encode();
    for (bytes, reason) in [
        (frame(FrameKind::Output, 2, b"x"), "never sent"),
        (frame(FrameKind::Output, 1, b"12345"), "more output"),
        (frame(FrameKind::Tail, 1, b"12345"), "more output"),
        (frame(FrameKind::Output, 1, b""), "without a byte"),
        (frame(FrameKind::Tail, 1, b""), "without a byte"),
        (frame(FrameKind::Hello, 1, b"{}"), "out of turn"),
        (frame(FrameKind::Start, 1, b"{}"), "out of turn"),
        (frame(FrameKind::GitData, 1, b"{}"), "out of turn"),
        (frame(FrameKind::Exit, 1, b"not an end"), "cannot be read"),
        (vec![0xff; 9], "longer than"),
        (vec![0, 0, 0, 0, 99, 0, 0, 0, 1], "unknown kind"),
    ] {
        let said = ends_after(bytes).await;
        assert!(said.contains(reason), "{said} instead of {reason}");
    }
}

#[tokio::test]
async fn a_box_that_prints_more_than_it_was_granted_loses_its_connection() {
    let (connection, mut theirs) = pair();
    let mut running = connection
        .start(&Start {
            live: true,
            ..start(4, 0)
        })
        .unwrap();
    let output = |bytes: &[u8]| Frame::new(FrameKind::Output, 1, bytes).encode();
    theirs.write_all(&output(b"1234")).await.unwrap();
    assert!(matches!(running.next().await, Some(CommandEvent::Output(bytes)) if bytes == b"1234"));
    running.grant_output(2);
    theirs.write_all(&output(b"56")).await.unwrap();
    assert!(matches!(running.next().await, Some(CommandEvent::Output(bytes)) if bytes == b"56"));
    theirs.write_all(&output(b"7")).await.unwrap();
    assert!(running.next().await.is_none());
    assert!(connection.ended().await.contains("more output"));
}

#[tokio::test]
async fn output_after_the_end_of_its_command_ends_the_connection() {
    let mut bytes = Frame::json(FrameKind::Exit, 1, &Exit::default())
        .unwrap()
        .encode();
    bytes.extend(Frame::new(FrameKind::Output, 1, b"x".to_vec()).encode());
    assert!(ends_after(bytes).await.contains("never sent"));
}

#[tokio::test]
async fn the_reason_of_an_end_is_asked_for_and_the_first_one_stays() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (reader, writer) = tokio::io::split(ours);
    let inquiry: EndReasonLookup = Box::pin(async { Some("It was killed.".to_owned()) });
    let connection = Connection::from_streams(reader, writer, Some(inquiry));
    drop(theirs);
    assert_eq!(connection.ended().await, "It was killed.");
    connection.close_with_reason("It was closed.");
    assert_eq!(connection.ended().await, "It was killed.");
    assert!(connection.gone().to_string().contains("It was killed."));
}

#[tokio::test]
async fn a_box_without_room_is_told_apart_from_a_command_that_is_wrong() {
    let (connection, mut theirs) = pair();
    let mut running = connection.start(&start(0, 0)).unwrap();
    let frame = Frame::new(FrameKind::Full, 1, b"full".to_vec());
    theirs.write_all(&frame.encode()).await.unwrap();
    assert!(
        matches!(running.next().await, Some(CommandEvent::Full(sentence)) if sentence == "full")
    );
    assert!(connection.is_alive());
}

#[tokio::test]
async fn a_sentence_of_a_box_is_cut_and_holds_nothing_that_is_not_read() {
    let long = format!("a\x1b[2Jb\n{}", "x".repeat(100_000));
    for kind in [FrameKind::Failed, FrameKind::Full] {
        let (connection, mut theirs) = pair();
        let mut running = connection.start(&start(0, 0)).unwrap();
        let frame = Frame::new(kind, 1, long.clone()).encode();
        theirs.write_all(&frame).await.unwrap();
        let Some(CommandEvent::Failed(said) | CommandEvent::Full(said)) = running.next().await
        else {
            panic!("no sentence came")
        };
        assert_eq!(said.chars().count(), SENTENCE);
        assert!(said.starts_with("a[2Jb x"), "{said}");
    }
    let unreadable = serde_json::to_vec(&long).unwrap();
    let reason = ends_after(Frame::new(FrameKind::Exit, 1, unreadable).encode()).await;
    assert!(reason.len() < 2 * SENTENCE, "{reason}");
}

#[tokio::test]
async fn any_number_may_stand_for_the_signal_that_ended_a_command() {
    let (connection, mut theirs) = pair();
    let exit = Exit {
        signal: Some(i32::MAX),
        ..Exit::default()
    };
    let frame = Frame::json(FrameKind::Exit, 1, &exit).unwrap().encode();
    let start = start(0, 0);
    let running = super::super::exec::run(&connection, None, &start, |_| {});
    let answer = async {
        read_frame(&mut theirs).await.unwrap();
        theirs.write_all(&frame).await.unwrap();
    };
    let (ran, ()) = tokio::join!(running, answer);
    assert_eq!(ran.unwrap().exit_code, i32::MAX);
}

proptest! {
    #[test]
    fn no_bytes_do_more_than_end_the_connection(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (connection, mut theirs) = pair();
            let mut running = connection.start(&start(8, 8)).unwrap();
            theirs.write_all(&bytes).await.unwrap();
            drop(theirs);
            let mut output = 0;
            while let Some(event) = running.next().await {
                if let CommandEvent::Output(bytes) | CommandEvent::Tail(bytes) = event {
                    output += bytes.len();
                }
            }
            assert!(output <= 16);
            connection.ended().await;
        });
    }

    #[test]
    fn mutated_frames_mean_the_same_wherever_the_stream_of_them_is_cut(
        bytes in mutated(transcripts()),
        cuts in cuts(),
    ) {
        let whole = told(&bytes, &[]);
        let (sizes, _) = &whole;
        prop_assert!(sizes.iter().all(|size| *size <= 2 * SENTENCE * 4));
        prop_assert_eq!(&told(&bytes, &cuts), &whole);
    }
}

/// What an exec server may send to two commands.
fn transcripts() -> Vec<Vec<u8>> {
    let frame = |kind, id, payload: &[u8]| Frame::new(kind, id, payload).encode();
    let exit = |id| {
        Frame::json(FrameKind::Exit, id, &Exit::default())
            .unwrap()
            .encode()
    };
    vec![
        [
            frame(FrameKind::Output, 1, b"out"),
            frame(FrameKind::Output, 2, b"more"),
            frame(FrameKind::Tail, 1, b"the end"),
            exit(1),
            exit(2),
        ]
        .concat(),
        [
            frame(FrameKind::Failed, 2, b"no such program"),
            frame(FrameKind::Full, 1, b"no room"),
        ]
        .concat(),
    ]
}

/// The sizes of what two commands are told of a stream in these pieces, and why it ended.
fn told(bytes: &[u8], cuts: &[Index]) -> (Vec<usize>, String) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (connection, mut theirs) = pair_with_room(bytes.len() + 1);
        let commands = [0, 1].map(|_| connection.start(&start(8, 8)).unwrap());
        let ended = connection.ended();
        for piece in pieces(bytes, cuts) {
            // The other end may be closed already.
            let _ = theirs.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        drop(theirs);
        let mut sizes = Vec::new();
        for mut command in commands {
            while let Some(event) = command.next().await {
                sizes.push(match event {
                    CommandEvent::Output(bytes) | CommandEvent::Tail(bytes) => bytes.len(),
                    CommandEvent::Exit(_) => 0,
                    CommandEvent::Failed(sentence) | CommandEvent::Full(sentence) => sentence.len(),
                });
            }
        }
        (sizes, ended.await)
    })
}
