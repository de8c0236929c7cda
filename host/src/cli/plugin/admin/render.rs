//! A server's responses as text for a person.

use crate::api::plugins::{ChangedView, LastErrorView, LoadedView, PluginsView, UploadedView};
use crate::cli::render::one_line;
use lucid_types::plural;

pub(super) fn listed(answer: &PluginsView) -> String {
    let mut text = format!("generation {} since {}\n", answer.generation, answer.since);
    for work in &answer.loading {
        text += &format!(
            "{} {} since {}\n",
            work.doing,
            one_line(&work.what),
            work.since,
        );
    }
    for plugin in &answer.plugins {
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {}, {}\n",
            plugin.kind,
            plugin.name,
            plugin.version,
            plugin.digest,
            from(plugin),
            plural::count(plugin.sessions as u64, "session"),
        );
        text += &rollout(plugin);
        for other in &plugin.other_builds {
            text += &format!(
                "          {} with sha256:{}\n",
                plural::count(other.sessions as u64, "session"),
                other.digest
            );
        }
        for call in &plugin.calls {
            text += &format!(
                "          {:<10} {:>7} calls, p50 {} µs, p99 {} µs, most fuel {}, most memory {} KB, {} refusals, {} failures\n",
                call.call,
                call.calls,
                call.p50_micros,
                call.p99_micros,
                call.most_fuel,
                call.most_memory >> 10,
                call.refusals,
                call.failures,
            );
        }
    }
    for (number, kept) in answer.uploads.iter().enumerate() {
        if number == 0 {
            text += "uploads\n";
        }
        text += &format!(
            "  {:<7} {:<16} {:<8} sha256:{}  {} KB, by {}, {}\n",
            known(&kept.kind),
            known(&kept.own_name),
            known(&kept.version),
            kept.digest,
            kept.size.div_ceil(1024),
            known(&kept.by),
            known(&kept.at),
        );
    }
    for warning in &answer.warnings {
        text += &format!("warning: {}\n", one_line(warning));
    }
    text + &last_error(answer.last_error.as_ref())
}

/// A text that the server may not know; empty then.
fn known(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

/// The other builds of a plugin.
fn rollout(plugin: &LoadedView) -> String {
    let mut text = String::new();
    if let Some(candidate) = &plugin.candidate {
        text += &format!(
            "          {} of a hundred new sessions get {} sha256:{}, {}\n",
            candidate.share,
            candidate.version,
            candidate.digest,
            plural::count(candidate.sessions as u64, "session"),
        );
    }
    if let Some(tried) = &plugin.probation {
        text += &format!(
            "          on probation: {} of {} failed, in {} of {}; before it {} of {}\n",
            tried.failed,
            plural::count(tried.steps, "step"),
            tried.failed_in,
            plural::count(tried.sessions, "session"),
            tried.failed_before,
            plural::count(tried.steps_before, "step"),
        );
    }
    for taken in &plugin.taken_back {
        text += &format!(
            "          taken back at {}: sha256:{}. {}\n",
            taken.at,
            taken.digest,
            one_line(&taken.why),
        );
    }
    for rolled in &plugin.rolled_back {
        text += &format!(
            "          rolled back at {} by {}: sha256:{}\n",
            rolled.at,
            one_line(&rolled.by),
            rolled.digest,
        );
    }
    text
}

fn from(plugin: &LoadedView) -> String {
    match (plugin.source.as_str(), &plugin.component) {
        ("upload", None) => "an upload".to_owned(),
        ("upload", Some(component)) => format!("an upload in place of {}", one_line(component)),
        (_, component) => one_line(known(component)),
    }
}

pub(super) fn last_error(error: Option<&LastErrorView>) -> String {
    let Some(error) = error else {
        return String::new();
    };
    let lines = error.problems.iter().map(|problem| {
        let mut place = known(&problem.file).to_owned();
        for number in [problem.line, problem.column].into_iter().flatten() {
            place += &format!(":{number}");
        }
        format!(
            "error at {}: {} {}\n",
            error.at,
            one_line(&place),
            one_line(&problem.what)
        )
    });
    lines.collect()
}

pub(super) fn uploaded(answer: &UploadedView) -> String {
    let UploadedView {
        kind,
        own_name,
        version,
        digest,
        ..
    } = answer;
    format!(
        "{kind} {own_name} {version}\nsha256:{digest}\nNothing runs on it yet: `lucid plugin activate {kind} NAME {digest}`\n"
    )
}

pub(super) fn changed(answer: &ChangedView) -> String {
    let ChangedView {
        kind,
        name,
        generation,
        ..
    } = answer;
    let now = match &answer.digest {
        Some(digest) => format!(
            "is {} sha256:{digest} ({})",
            known(&answer.version),
            known(&answer.source)
        ),
        None => "is no longer offered".to_owned(),
    };
    if let (Some(candidate), Some(share)) = (&answer.candidate, answer.share) {
        return format!(
            "The {kind} plugin {name} {now}, and {share} of a hundred new sessions get sha256:{candidate}, from generation {generation} on.\n"
        );
    }
    format!("The {kind} plugin {name} {now}, from generation {generation} on.\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::plugin::admin::read;
    use crate::cli::render::strip_controls;

    #[test]
    fn what_a_server_answers_cannot_move_the_cursor() {
        let evil = "\u{1b}[2Jx\r";
        let list: PluginsView = read(&json!({
            "generation": 1, "since": evil,
            "plugins": [{
                "kind": evil, "name": evil, "ownName": evil, "version": evil, "description": evil,
                "digest": evil, "source": "upload", "component": evil, "imports": [evil],
                "grants": {}, "limits": {"fuel": 1, "memory": 1, "output": 1, "time": 1.0},
                "sessions": 1, "otherBuilds": [{"digest": evil, "sessions": 1}], "calls": [],
                "activated": [], "candidate": null, "probation": null,
                "takenBack": [{"digest": evil, "at": evil, "why": evil}],
                "rolledBack": [{"digest": evil, "by": evil, "at": evil}],
            }],
            "uploads": [{
                "digest": evil, "size": 1, "kind": evil, "ownName": evil, "version": evil,
                "by": evil, "at": null,
            }],
            "lastError": {"at": evil, "problems": [{"what": evil, "file": evil, "line": 1}]},
            "warnings": [evil],
            "loading": [{"what": evil, "doing": evil, "since": evil}],
        }))
        .unwrap();
        let change: ChangedView = read(&json!({
            "generation": 1, "kind": evil, "name": evil, "digest": evil, "version": evil,
            "source": evil, "candidate": evil, "share": 1,
        }))
        .unwrap();
        let upload: UploadedView = read(&json!({
            "kind": evil, "ownName": evil, "version": evil, "description": evil, "digest": evil,
            "imports": [], "calls": [],
        }))
        .unwrap();
        for text in [listed(&list), changed(&change), uploaded(&upload)] {
            let text = strip_controls(&text);
            assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
        }
    }
}
