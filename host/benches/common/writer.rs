//! Owns a session that writes into the log, without an engine.

use std::sync::Arc;

use lucid_store::Store;
use lucid_types::digest::Digest;
use lucid_types::ids::{EffectId, SessionId};
use lucid_types::log::{
    ChatLine, EffectKind, EffectRow, PolicyDecision, RoundRow, SessionConfig, SessionCounters,
    SessionLog, SessionStatus,
};

/// A session whose rounds are those of an agent that runs a tool: it hears of the last one, says
/// what it thinks, and runs the next.
pub(crate) struct WritingSession {
    store: Store,
    session: SessionId,
    chat: Arc<str>,
    next: u64,
}

impl WritingSession {
    /// A new session of the log.
    pub(crate) async fn new(store: &Store, number: u64) -> Self {
        let mut writer = Self {
            store: store.clone(),
            session: SessionId::new(),
            chat: format!("chat-{number}").into(),
            next: 0,
        };
        let new = SessionConfig {
            id: writer.session,
            user: "bench".into(),
            project_id: None,
            task: "Fix the failing test.".to_owned(),
            repo_url: None,
            branch: None,
            open_change: None,
            git_user_name: None,
            git_user_email: None,
            policy: "coder".to_owned(),
            provider: String::new(),
            model: String::new(),
            token_limit: None,
            cost_limit: None,
            chat_id: writer.chat.to_string(),
            api_key: None,
            git_token: None,
            created_at: 0,
        };
        let first = writer.round();
        store.create(Arc::new(new), first).await.unwrap();
        writer
    }

    /// Its next round: two frames, which are two lines of the chat, and one message.
    fn round(&mut self) -> RoundRow {
        let (row, effect) = (self.next, |row: u64| EffectId::from(format!("tool-{row}")));
        self.next += 1;
        let output = "test result: ok. 12 passed; 0 failed; 0 ignored. ".repeat(4);
        let frame = |kind: &str| {
            format!(
                r#"{{"type":"agent_event","event":"observation","eventType":"{kind}","content":"{output}","timestamp":"2026-11-23T10:30:00.000+00:00"}}"#
            )
        };
        let line = |kind: &str| ChatLine {
            role: "assistant",
            content: output.clone(),
            event_type: kind.to_owned(),
            metadata: None,
        };
        let kinds = ["CmdOutputObservation", "CmdRunAction"];
        let text = |name: &str| format!(r#"{{"{name}":"{output}"}}"#);
        RoundRow {
            session: self.session,
            user: "bench".into(),
            chat: self.chat.clone(),
            row,
            at: 1_800_000_000_000 + row,
            decision: Some(PolicyDecision {
                step: row,
                context: text("context"),
                inputs: text("inputs"),
                commands: Some(text("commands")),
                state: Some((1, Arc::new(vec![7; 400]))),
                state_digest: Some([7; 32]),
                plugin: Digest::of("coder"),
                fuel: 100_000,
                memory: 1 << 20,
                micros: 60,
                error: None,
            }),
            first_seq: 2 * row + 1,
            frames: kinds.map(|kind| frame(kind).into()).to_vec(),
            entries: vec![(row, text("message"))],
            calls: Vec::new(),
            chat_lines: kinds.map(line).to_vec(),
            opened: vec![EffectRow {
                id: effect(row),
                kind: EffectKind::Tool,
                due_at: None,
                delay_ms: None,
                begun: true,
            }],
            not_begun: Vec::new(),
            closed: row.checked_sub(1).map(effect).into_iter().collect(),
            processed: Vec::new(),
            pushed: None,
            counters: SessionCounters {
                step: row + 1,
                next_row: row + 1,
                next_seq: 2 * row + 3,
                next_entry: row + 1,
                task_open: true,
                ..SessionCounters::default()
            },
            status: SessionStatus::Running,
            end_reason: None,
            retains_workspace: false,
            may_stay_pending: row > 0,
        }
    }

    /// Writes its next round.
    pub(crate) async fn append(&mut self) {
        let round = self.round();
        self.store.append(Arc::new(round)).await.unwrap();
    }
}
