//! The Gemini API's rules for requests, after its public documentation.
//!
//! This file is independent of the adapter. Calls must follow the rules of a model that requires
//! thought signatures.

use lucid_conformance::InvalidRequest;
use serde_json::Value;

type Checked = Result<(), InvalidRequest>;

const MEMBERS: [&str; 5] = [
    "contents",
    "systemInstruction",
    "tools",
    "safetySettings",
    "generationConfig",
];
const CONFIG: [&str; 5] = [
    "maxOutputTokens",
    "temperature",
    "topP",
    "stopSequences",
    "thinkingConfig",
];
const SCHEMA: [&str; 22] = [
    "type",
    "format",
    "title",
    "description",
    "nullable",
    "enum",
    "maxItems",
    "minItems",
    "properties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "example",
    "anyOf",
    "propertyOrdering",
    "default",
    "items",
    "minimum",
    "maximum",
];

/// Says what the API would refuse.
pub(crate) fn valid(body: &Value) -> Checked {
    only(body, &MEMBERS)?;
    only(&body["generationConfig"], &CONFIG)?;
    let thinking = &body["generationConfig"]["thinkingConfig"];
    only(
        thinking,
        &["includeThoughts", "thinkingBudget", "thinkingLevel"],
    )?;
    let both = thinking.get("thinkingBudget").is_some() && thinking.get("thinkingLevel").is_some();
    need(!both, || "a budget and a level".into())?;
    if let Some(level) = thinking["thinkingLevel"].as_str() {
        need(
            ["minimal", "low", "medium", "high"].contains(&level),
            || level.into(),
        )?;
    }
    for part in list(&body["systemInstruction"]["parts"]) {
        text(&part["text"])?;
    }
    let filters = list(&body["safetySettings"]);
    let off = filters
        .iter()
        .filter(|f| f["threshold"] == "BLOCK_NONE")
        .count();
    need(filters.len() == 4 && off == 4, || {
        "four filters, all off".into()
    })?;
    for function in list(&body["tools"][0]["functionDeclarations"]) {
        only(function, &["name", "description", "parameters"])?;
        named(&function["name"])?;
        if let Some(parameters) = function.get("parameters") {
            schema(parameters)?;
        }
    }
    contents(list(&body["contents"]))
}

fn contents(contents: &[Value]) -> Checked {
    let mut open: Vec<&Value> = Vec::new();
    for (at, content) in contents.iter().enumerate() {
        let role = if at % 2 == 0 { "user" } else { "model" };
        need(content["role"] == role, || {
            format!("content {at} is not the {role}'s")
        })?;
        let parts = list(&content["parts"]);
        need(!parts.is_empty(), || format!("content {at} is empty"))?;
        if role == "user" {
            user(parts, &std::mem::take(&mut open))?;
        } else {
            open = model(parts)?;
        }
    }
    need(contents.len() % 2 == 1, || {
        "the user does not come last".into()
    })
}

fn user(parts: &[Value], calls: &[&Value]) -> Checked {
    for (at, part) in parts.iter().enumerate() {
        only(part, &["text", "inlineData", "functionResponse"])?;
        need(part.as_object().is_some_and(|p| p.len() == 1), || {
            format!("not one: {part}")
        })?;
        if let Some(answer) = part.get("functionResponse") {
            let call = calls
                .get(at)
                .ok_or_else(|| format!("answers no call: {part}"))?;
            only(answer, &["id", "name", "response"])?;
            need(answer["name"] == call["name"], || {
                format!("{answer} answers {call}")
            })?;
            need(answer.get("id") == call.get("id"), || {
                format!("{answer} answers {call}")
            })?;
            need(answer["response"].is_object(), || {
                format!("no object: {answer}")
            })?;
            continue;
        }
        need(at >= calls.len(), || format!("before the answers: {part}"))?;
        if let Some(data) = part.get("inlineData") {
            let kind = data["mimeType"].as_str().unwrap_or_default();
            need(
                kind.starts_with("image/") && data["data"].is_string(),
                || part.to_string(),
            )?;
        } else {
            text(&part["text"])?;
        }
    }
    need(parts.len() >= calls.len(), || {
        format!("not all of {calls:?} are answered")
    })
}

/// Its calls.
fn model(parts: &[Value]) -> Result<Vec<&Value>, InvalidRequest> {
    let mut calls: Vec<&Value> = Vec::new();
    for part in parts {
        only(part, &["text", "functionCall", "thoughtSignature"])?;
        let signed = part["thoughtSignature"]
            .as_str()
            .is_some_and(|s| !s.is_empty());
        if let Some(call) = part.get("functionCall") {
            only(call, &["id", "name", "args"])?;
            named(&call["name"])?;
            need(call["args"].is_object(), || format!("no object: {call}"))?;
            let again = calls
                .iter()
                .any(|c| call.get("id").is_some() && c.get("id") == call.get("id"));
            need(!again, || format!("an id twice: {call}"))?;
            need(signed || !calls.is_empty(), || {
                format!("an unproven first call: {part}")
            })?;
            calls.push(call);
        } else {
            need(part["text"].is_string(), || format!("nothing: {part}"))?;
            let blank = part["text"].as_str().unwrap_or_default().trim().is_empty();
            need(signed || !blank, || format!("blank: {part}"))?;
        }
    }
    Ok(calls)
}

/// One schema, and all in it.
pub(crate) fn schema(value: &Value) -> Checked {
    only(value, &SCHEMA)?;
    let kind = value["type"].as_str();
    let choice = !list(&value["anyOf"]).is_empty();
    need(choice != kind.is_some(), || {
        format!("a type, or a choice: {value}")
    })?;
    for (of, name) in [
        ("object", "properties"),
        ("object", "required"),
        ("array", "items"),
    ] {
        need(kind == Some(of) || value.get(name).is_none(), || {
            format!("{name} in {value}")
        })?;
    }
    match kind {
        None => {}
        Some("object") => {
            let properties = value["properties"].as_object();
            for name in list(&value["required"]) {
                let there =
                    properties.is_some_and(|p| p.contains_key(name.as_str().unwrap_or_default()));
                need(there, || format!("{name} is required, and not there"))?;
            }
            for property in properties.into_iter().flat_map(|p| p.values()) {
                schema(property)?;
            }
            need(properties.is_none_or(|p| !p.is_empty()), || {
                "no properties".into()
            })?;
        }
        Some("array") => schema(&value["items"])?,
        Some("string" | "number" | "integer" | "boolean") => {}
        Some(other) => return Err(format!("type {other}").into()),
    }
    for one in list(&value["enum"]) {
        let good = kind == Some("string") && one.as_str().is_some_and(|t| !t.is_empty());
        need(good, || format!("enum of {one}"))?;
    }
    list(&value["anyOf"]).iter().try_for_each(schema)
}

fn text(text: &Value) -> Checked {
    let blank = text.as_str().unwrap_or_default().trim().is_empty();
    need(!blank, || format!("blank: {text}"))
}

fn named(name: &Value) -> Checked {
    let name = name.as_str().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let good = name.len() <= 64 && begins && name.chars().all(fits);
    need(good, || format!("a function named {name:?}"))
}

fn only(value: &Value, members: &[&str]) -> Checked {
    for name in value.as_object().into_iter().flat_map(|o| o.keys()) {
        need(members.contains(&name.as_str()), || {
            format!("unknown member {name} in {value}")
        })?;
    }
    Ok(())
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
