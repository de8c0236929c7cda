//! The Messages API's rules for requests, after its public documentation.
//!
//! This file is independent of the adapter.

use lucid_conformance::InvalidRequest;
use serde_json::Value;

type Checked = Result<(), InvalidRequest>;

const MEMBERS: [&str; 11] = [
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "stream",
    "stop_sequences",
    "temperature",
    "top_p",
    "thinking",
    "output_config",
];

/// Says what the API would refuse.
pub(crate) fn valid(body: &Value) -> Checked {
    let members = body.as_object().ok_or("not an object")?;
    for name in members.keys() {
        need(MEMBERS.contains(&name.as_str()), || {
            format!("unknown member {name}")
        })?;
    }
    let limit = body["max_tokens"].as_u64().unwrap_or(0);
    need(limit >= 1, || "no max_tokens".into())?;
    settings(body, limit)?;
    for block in list(&body["system"]) {
        text(block)?;
    }
    for tool in list(&body["tools"]) {
        named(&tool["name"])?;
        schema(&tool["input_schema"], true)?;
    }
    let marks = body.to_string().matches("\"cache_control\"").count();
    need(marks <= 4, || format!("{marks} cache breakpoints"))?;
    messages(list(&body["messages"]))
}

/// A tool's schema, and all in it, as the strictest server takes it.
fn schema(schema: &Value, root: bool) -> Checked {
    let members = schema
        .as_object()
        .ok_or_else(|| format!("no object: {schema}"))?;
    for name in [
        "$ref",
        "$defs",
        "allOf",
        "oneOf",
        "not",
        "const",
        "nullable",
        "prefixItems",
    ] {
        need(!members.contains_key(name), || {
            format!("{name} in {schema}")
        })?;
    }
    let is =
        |kind: &str| schema["type"] == kind || list(&schema["type"]).iter().any(|one| one == kind);
    if root {
        need(schema["type"] == "object", || {
            format!("no object's: {schema}")
        })?;
        for name in ["anyOf", "enum"] {
            need(!members.contains_key(name), || {
                format!("{name} in {schema}")
            })?;
        }
    }
    need(!is("object") || schema["properties"].is_object(), || {
        format!("no properties: {schema}")
    })?;
    need(!is("array") || schema["items"].is_object(), || {
        format!("no items: {schema}")
    })?;
    for name in list(&schema["required"]) {
        let name = name.as_str().unwrap_or_default();
        need(
            schema["properties"].get(name).is_some() || !is("object"),
            || format!("{name} is not there: {schema}"),
        )?;
    }
    if let Some(values) = schema.get("enum") {
        need(!list(values).is_empty(), || format!("no values: {schema}"))?;
    }
    let properties = schema["properties"].as_object();
    for (name, property) in properties.into_iter().flatten() {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let good = (1..=64).contains(&name.len()) && name.chars().all(fits);
        need(good, || format!("a member named {name:?}"))?;
        self::schema(property, false)?;
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(name).filter(|inner| !inner.is_boolean()) {
            self::schema(inner, false)?;
        }
    }
    list(&schema["anyOf"])
        .iter()
        .try_for_each(|one| self::schema(one, false))
}

fn settings(body: &Value, limit: u64) -> Checked {
    let model = body["model"].as_str().unwrap_or_default();
    need(!model.is_empty(), || "no model".into())?;
    let (thinking, has) = (&body["thinking"], |name: &str| body.get(name).is_some());
    let sampling = has("temperature") || has("top_p");
    need(!(has("temperature") && has("top_p")), || {
        "two kinds of sampling".into()
    })?;
    let old = ["-4-5", "-4-6"].iter().any(|of| model.contains(of));
    need(old || !sampling, || format!("{model} takes no sampling"))?;
    match thinking["type"].as_str() {
        None => {}
        Some("enabled") => {
            let budget = thinking["budget_tokens"].as_u64().unwrap_or(0);
            need(old, || format!("{model} takes no budget"))?;
            need((1_024..limit).contains(&budget), || {
                format!("budget {budget} of {limit}")
            })?;
            need(!sampling, || "sampling while thinking".into())?;
        }
        Some("adaptive") => {
            need(!model.contains("-4-5"), || {
                format!("{model} is not adaptive")
            })?;
            need(!sampling, || "sampling while thinking".into())?;
        }
        Some("disabled") => {
            let can = ["claude-opus-5", "claude-sonnet-5"].contains(&model);
            need(can, || format!("{model} always thinks, or never unasked"))?;
        }
        Some(other) => return Err(format!("thinking {other}").into()),
    }
    list(&body["stop_sequences"]).iter().try_for_each(|stop| {
        need(!stop.as_str().unwrap_or_default().trim().is_empty(), || {
            "blank stop".into()
        })
    })
}

fn messages(messages: &[Value]) -> Checked {
    need(!messages.is_empty(), || "no messages".into())?;
    let mut ids: Vec<&str> = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let role = if at % 2 == 0 { "user" } else { "assistant" };
        need(message["role"] == role, || {
            format!("message {at} is not the {role}'s")
        })?;
        let content = list(&message["content"]);
        need(!content.is_empty(), || format!("message {at} is empty"))?;
        if role == "user" {
            user(content, &std::mem::take(&mut open))?;
        } else {
            open = assistant(content)?;
            for id in &open {
                need(!ids.contains(id), || format!("id {id} twice"))?;
                ids.push(id);
            }
        }
    }
    need(messages.len() % 2 == 1, || "a prefilled answer".into())
}

/// The results of the calls before come first, each once.
fn user(content: &[Value], calls: &[&str]) -> Checked {
    for (at, block) in content.iter().enumerate() {
        match block["type"].as_str() {
            Some("tool_result") => {
                let id = block["tool_use_id"].as_str();
                need(id == calls.get(at).copied(), || {
                    format!("{id:?} answers {calls:?}")
                })?;
                result(block)?;
            }
            kind => {
                need(at >= calls.len(), || format!("{kind:?} before the results"))?;
                shown(block)?;
            }
        }
    }
    need(content.len() >= calls.len(), || {
        format!("not all of {calls:?} are answered")
    })
}

fn result(block: &Value) -> Checked {
    let content = list(&block["content"]);
    need(!content.is_empty(), || "an empty result".into())?;
    for piece in content {
        let failed = block["is_error"] == true;
        need(!failed || piece["type"] == "text", || {
            "an error with a picture".into()
        })?;
        shown(piece)?;
    }
    Ok(())
}

fn shown(block: &Value) -> Checked {
    match block["type"].as_str() {
        Some("text") => text(block),
        Some("image") => {
            let source = &block["source"];
            let kinds = ["image/png", "image/jpeg", "image/gif", "image/webp"];
            let kind = source["media_type"].as_str().unwrap_or_default();
            need(source["type"] == "base64" && kinds.contains(&kind), || {
                source.to_string()
            })?;
            need(
                source["data"].as_str().is_some_and(|d| !d.is_empty()),
                || "no data".into(),
            )
        }
        kind => Err(format!("{kind:?} from a user").into()),
    }
}

/// The ids of its calls.
fn assistant(content: &[Value]) -> Result<Vec<&str>, InvalidRequest> {
    let mut calls = Vec::new();
    for block in content {
        match block["type"].as_str() {
            Some("text") => text(block)?,
            Some("thinking") => {
                let signed = block["signature"].as_str().is_some_and(|s| !s.is_empty());
                need(signed && block["thinking"].is_string(), || {
                    format!("unsigned: {block}")
                })?;
                need(block.get("cache_control").is_none(), || {
                    "cached thought".into()
                })?;
            }
            Some("redacted_thinking") => {
                need(block["data"].is_string(), || format!("no data: {block}"))?;
            }
            Some("tool_use") => {
                named(&block["name"])?;
                need(block["input"].is_object(), || format!("no object: {block}"))?;
                let id = block["id"].as_str().unwrap_or_default();
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                need(!id.is_empty() && id.chars().all(fits), || {
                    format!("id {id:?}")
                })?;
                calls.push(id);
            }
            kind => return Err(format!("{kind:?} from a model").into()),
        }
    }
    let last = content.last().map(|block| &block["type"]);
    let thought = last.is_some_and(|kind| kind == "thinking" || kind == "redacted_thinking");
    need(!thought, || "an answer that ends in a thought".into())?;
    Ok(calls)
}

fn text(block: &Value) -> Checked {
    let text = block["text"].as_str().unwrap_or_default();
    need(block["type"] == "text" && !text.trim().is_empty(), || {
        format!("blank: {block}")
    })
}

fn named(name: &Value) -> Checked {
    let name = name.as_str().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let good = (1..=128).contains(&name.len()) && name.chars().all(fits);
    need(good, || format!("a tool named {name:?}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn need(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(otherwise().into())
    }
}
