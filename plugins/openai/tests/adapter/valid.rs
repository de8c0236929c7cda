//! The rules of chat completions for requests, after OpenAI's public documentation, and those of
//! its stricter imitators.
//!
//! This file is independent of the adapter.

use lucid_conformance::InvalidRequest;
use serde_json::Value;

type Checked = Result<(), InvalidRequest>;

const MEMBERS: [&str; 12] = [
    "model",
    "messages",
    "tools",
    "stream",
    "stream_options",
    "max_completion_tokens",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "reasoning_effort",
    "n",
];

/// Says what a server would refuse.
pub(crate) fn valid(body: &Value) -> Checked {
    for name in body.as_object().ok_or("not an object")?.keys() {
        need(MEMBERS.contains(&name.as_str()), || {
            format!("unknown member {name}")
        })?;
    }
    let model = body["model"].as_str().unwrap_or_default();
    let (tools, effort) = (list(&body["tools"]), body["reasoning_effort"].as_str());
    let newest = ["gpt-5.5", "gpt-5.6", "gpt-6"]
        .iter()
        .any(|m| model.starts_with(m));
    if newest && !tools.is_empty() {
        need(effort == Some("none"), || {
            format!("{model} with tools and effort {effort:?}")
        })?;
    }
    if model.starts_with("gpt-4") {
        need(effort.is_none(), || format!("{model} does not reason"))?;
    } else if model.starts_with("gpt-") || model.starts_with('o') {
        for name in ["temperature", "top_p", "stop"] {
            need(body.get(name).is_none(), || {
                format!("{model} takes no {name}")
            })?;
        }
    }
    for tool in tools {
        named(&tool["function"]["name"])?;
        need(tool["type"] == "function", || tool.to_string())?;
        schema(&tool["function"]["parameters"], true)?;
    }
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
    for property in properties.into_iter().flat_map(|all| all.values()) {
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

fn messages(messages: &[Value]) -> Checked {
    let mut ids: Vec<&str> = Vec::new();
    // Of the calls before, those that are not answered yet.
    let mut open: Vec<&str> = Vec::new();
    let mut before = "";
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        need(role == "tool" || open.is_empty(), || {
            format!("{open:?} before {message}")
        })?;
        match role {
            "system" => {
                need(at == 0, || "a system message that is not the first".into())?;
                text(&message["content"])?;
            }
            "user" => {
                need(before != "user", || "two user messages".into())?;
                user(&message["content"])?;
            }
            "assistant" => {
                need(matches!(before, "user" | "tool"), || {
                    format!("an answer after {before:?}")
                })?;
                open = assistant(message)?;
                for id in &open {
                    need(!ids.contains(id), || format!("id {id} twice"))?;
                    ids.push(id);
                }
            }
            "tool" => {
                text(&message["content"])?;
                need(!open.is_empty(), || format!("answers no call: {message}"))?;
                let id = open.remove(0);
                need(message["tool_call_id"] == id, || {
                    format!("{message} answers {id}")
                })?;
            }
            other => return Err(format!("role {other}").into()),
        }
        before = role;
    }
    need(matches!(before, "user" | "tool") && open.is_empty(), || {
        format!("ends with {before:?}")
    })
}

fn user(content: &Value) -> Checked {
    let Some(parts) = content.as_array() else {
        return text(content);
    };
    need(!parts.is_empty(), || "an empty message".into())?;
    for part in parts {
        if part["type"] == "image_url" {
            let url = part["image_url"]["url"].as_str().unwrap_or_default();
            need(url.starts_with("data:image/"), || part.to_string())?;
        } else {
            need(part["type"] == "text", || part.to_string())?;
            text(&part["text"])?;
        }
    }
    Ok(())
}

/// The ids of its calls.
fn assistant(message: &Value) -> Result<Vec<&str>, InvalidRequest> {
    let calls = list(&message["tool_calls"]);
    if message["content"].is_null() {
        need(!calls.is_empty(), || "an empty answer".into())?;
    } else if let Some(parts) = message["content"].as_array() {
        // As Mistral has it.
        let known = |part: &Value| part["type"] == "text" || part["type"] == "thinking";
        need(!parts.is_empty() && parts.iter().all(known), || {
            message.to_string()
        })?;
    } else {
        text(&message["content"])?;
    }
    let mut ids = Vec::new();
    for call in calls {
        named(&call["function"]["name"])?;
        let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
        let object = serde_json::from_str::<Value>(arguments).is_ok_and(|a| a.is_object());
        need(object && call["type"] == "function", || {
            format!("no object: {call}")
        })?;
        let id = call["id"].as_str().unwrap_or_default();
        // A gateway's own ids are longer.
        let own = id.contains("__thought__");
        need((1..=40).contains(&id.len()) || own, || format!("id {id:?}"))?;
        ids.push(id);
    }
    Ok(ids)
}

fn text(text: &Value) -> Checked {
    let blank = text.as_str().unwrap_or_default().trim().is_empty();
    need(!blank, || format!("blank: {text}"))
}

fn named(name: &Value) -> Checked {
    let name = name.as_str().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let good = (1..=64).contains(&name.len()) && name.chars().all(fits);
    need(good, || format!("a function named {name:?}"))
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
