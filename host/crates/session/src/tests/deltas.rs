//! What a client's screen shows, in whatever order deltas, frames and losses come.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::effects::deltas::DeltaStream;
use crate::handle::{Session, SessionInfo};
use crate::stream::feed::BEHIND;
use crate::user_logs::UserLogs;

/// An action of the session or of its reader.
#[derive(Debug, Clone)]
enum Act {
    /// An effect shows this many deltas.
    Pieces(usize, usize),
    /// The effect restarts.
    Again(usize),
    /// The effect is done, and a row says so. The flag says whether the row replaces what was
    /// shown.
    Done(usize, bool),
    /// An unrelated row.
    Row,
    /// The reader takes up to this many batches.
    Read(usize),
    /// The client reconnects, from where it was or from nothing.
    Reconnect,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let effect = 0_usize..2;
    let act = prop_oneof![
        4 => (effect.clone(), prop_oneof![5 => 1_usize..4, 1 => Just(BEHIND + 5)])
            .prop_map(|(effect, count)| Act::Pieces(effect, count)),
        1 => effect.clone().prop_map(Act::Again),
        2 => (effect, any::<bool>()).prop_map(|(effect, stands)| Act::Done(effect, stands)),
        1 => Just(Act::Row),
        4 => (1_usize..6).prop_map(Act::Read),
        1 => Just(Act::Reconnect),
    ];
    prop::collection::vec(act, 0..40)
}

/// One run of an effect; names are reused.
struct Run {
    stream: Arc<DeltaStream>,
    number: u64,
    tries: u64,
    pieces: u64,
}

#[derive(Default)]
struct Client {
    seen: u64,
    /// The run, attempt and index of each delta on the screen, by effect.
    screen: BTreeMap<String, Vec<[u64; 3]>>,
    got: usize,
    resets: usize,
}

impl Client {
    /// Plays a client that follows the protocol, and checks what must hold for it.
    fn takes(
        &mut self,
        batch: SubscriptionItem,
        over: &BTreeMap<String, u64>,
    ) -> Result<(), TestCaseError> {
        match batch {
            SubscriptionItem::Frames(frames) => {
                for (seq, frame) in frames {
                    prop_assert_eq!(seq, self.seen + 1, "a frame is left out");
                    self.seen = seq;
                    if let Some((effect, _)) = frame.split_once(" done ") {
                        self.screen.remove(effect);
                    }
                }
            }
            SubscriptionItem::Delta(frame) => {
                let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
                let effect = frame["effect"].as_str().unwrap().to_owned();
                if frame["reset"] == true {
                    self.resets += 1;
                    self.screen.remove(&effect);
                    return Ok(());
                }
                let piece: [u64; 3] =
                    serde_json::from_str(frame["content"].as_str().unwrap()).unwrap();
                // The rows it was given so far end runs up to this one.
                let ended = over.get(&effect).copied().unwrap_or(0);
                prop_assert!(piece[0] >= ended, "{piece:?} of {effect} behind its row");
                self.got += 1;
                let text = self.screen.entry(effect).or_default();
                text.push(piece);
                for (number, shown) in (0..).zip(text.iter()) {
                    let whole = [piece[0], piece[1], number];
                    prop_assert_eq!(*shown, whole, "a text with a hole: {:?}", text);
                }
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }
}

fn session(store: &Store) -> Arc<SessionHandle> {
    let (mailbox, _) = tokio::sync::mpsc::channel(1);
    let about = SessionInfo {
        id: SessionId::new(),
        user: "u".into(),
        project_id: None,
        task: "t".into(),
        repo_url: None,
        mock: false,
        created_at: 0,
    };
    let plugins = SessionPlugins {
        policy: "scripted".to_owned(),
        digest: Digest::of("d"),
        provider: String::new(),
    };
    let log: Arc<dyn lucid_types::log::SessionLog> = Arc::new(store.clone());
    let session = Session::new(
        about,
        0,
        (
            log.clone(),
            Arc::new(UserLogs::new(log, UserLogLimits::default())),
        ),
        mailbox,
        Box::new(|_| {}),
        plugins,
    );
    Arc::new(SessionHandle { session })
}

/// The number of completed runs of each effect, by the rows up to a number.
fn over(rows: &[Option<String>], seen: u64) -> BTreeMap<String, u64> {
    let mut over = BTreeMap::new();
    for effect in rows.iter().take(seen as usize).flatten() {
        *over.entry(effect.clone()).or_default() += 1;
    }
    over
}

fn plays(store: &Store, acts: &[Act]) -> Result<(), TestCaseError> {
    let session = session(store);
    let mut reader = session.subscribe(0).with_deltas();
    let mut client = Client::default();
    let run = |effect: usize, number| Run {
        stream: DeltaStream::new(session.session.clone(), format!("e{effect}").into()),
        number,
        tries: 0,
        pieces: 0,
    };
    let mut runs = [run(0, 0), run(1, 0)];
    let mut rows: Vec<Option<String>> = Vec::new();
    let mut given = 0;
    // A reader that never falls behind and was there from the beginning gets everything.
    let mut keeps_up = true;
    let mut unread = 0;
    let mut publish = |row: Option<String>| {
        let frame: Arc<str> = match &row {
            Some(effect) => format!("{effect} done ").into(),
            None => "row".into(),
        };
        rows.push(row);
        session.feed.publish(rows.len() as u64, &[frame]);
        rows.clone()
    };
    let mut written = Vec::new();
    for act in acts.iter().cloned().chain([Act::Read(1000)]) {
        match act {
            Act::Pieces(effect, count) => {
                let run = &mut runs[effect];
                for _ in 0..count {
                    let piece = format!("[{},{},{}]", run.number, run.tries, run.pieces);
                    run.stream.push(DeltaKind::Text, &piece);
                    run.pieces += 1;
                    given += 1;
                }
                unread += count;
            }
            Act::Again(effect) => {
                let run = &mut runs[effect];
                run.stream.push(DeltaKind::Reset, "");
                (run.tries, run.pieces) = (run.tries + 1, 0);
                unread += 1;
            }
            // Only as many rows as are kept in memory: reading the log is tested elsewhere.
            Act::Done(..) | Act::Row if written.len() >= 30 => {}
            Act::Done(effect, stands) => {
                let before = &runs[effect];
                prop_assert!(before.stream.finish(stands));
                prop_assert!(
                    !before.stream.finish(stands),
                    "the last word was given twice"
                );
                before.stream.push(DeltaKind::Text, "too late");
                let next = before.number + 1;
                runs[effect] = run(effect, next);
                written = publish(Some(format!("e{effect}")));
                unread += 3;
            }
            Act::Row => {
                written = publish(None);
                unread += 1;
            }
            Act::Read(count) => {
                for _ in 0..count {
                    let Some(batch) = reader.next().now_or_never() else {
                        unread = 0;
                        break;
                    };
                    client.takes(batch, &over(&written, client.seen))?;
                }
            }
            Act::Reconnect => {
                keeps_up = false;
                reader = session.subscribe(client.seen).with_deltas();
            }
        }
        keeps_up &= unread <= BEHIND;
    }
    prop_assert_eq!(client.seen, written.len() as u64, "rows are missing");
    if keeps_up {
        prop_assert_eq!(
            client.got,
            given,
            "deltas were lost though nothing was behind"
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_text_on_the_screen_has_no_hole_and_never_comes_behind_its_row(acts in acts()) {
        static STORE: std::sync::OnceLock<(tempfile::TempDir, Store)> = std::sync::OnceLock::new();
        let (_, store) = STORE.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            (folder, store)
        });
        plays(store, &acts)?;
    }
}

fn text(batch: Option<SubscriptionItem>) -> String {
    match batch {
        Some(SubscriptionItem::Delta(frame)) => {
            let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
            frame["content"].as_str().unwrap_or("reset").to_owned()
        }
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn who_fell_behind_is_told_to_forget_and_sees_the_next_try_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(&Store::open(folder.path()).unwrap());
    let mut reader = session.subscribe(0).with_deltas();
    let stream = DeltaStream::new(session.session.clone(), "e".into());
    let mut next = || text(reader.next().now_or_never());
    stream.push(DeltaKind::Text, "one");
    assert_eq!(next(), "one");
    for _ in 0..=BEHIND {
        stream.push(DeltaKind::Text, "more");
    }
    assert_eq!(next(), "reset");
    assert_eq!(next(), "None");
    stream.push(DeltaKind::Text, "the end of a sentence");
    assert_eq!(next(), "None", "a text without its beginning");
    stream.push(DeltaKind::Reset, "");
    stream.push(DeltaKind::Text, "once more");
    assert_eq!((next(), next()), ("reset".into(), "once more".into()));
    // Nothing replaces it, so it is voided.
    assert!(stream.finish(false));
    assert_eq!((next(), next()), ("reset".into(), "None".into()));
}
