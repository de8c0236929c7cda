//! The tools that a server lists, each parsed on its own.
//!
//! # Invariants
//!
//! - An invalid tool hides no other one: what it lacks is left open, and one without a name is left
//!   out.

use rmcp::RoleClient;
use rmcp::model::{
    ClientRequest, ListToolsRequest, ListToolsResult, PaginatedRequestParams, ServerResult,
};
use rmcp::service::{Peer, ServiceError};
use serde_json::{Map, Value, json};

/// Requests a page of the list.
pub(super) async fn page(
    server: &Peer<RoleClient>,
    page: Option<PaginatedRequestParams>,
) -> Result<ListToolsResult, ServiceError> {
    match server.list_tools(page.clone()).await {
        Err(ServiceError::UnexpectedResponse) => {}
        listed => return listed,
    }
    // Requested again, since the response is not part of the error.
    let request = ClientRequest::ListToolsRequest(ListToolsRequest {
        method: Default::default(),
        params: page,
        extensions: Default::default(),
    });
    match server.send_request(request).await? {
        ServerResult::ListToolsResult(listed) => Ok(listed),
        ServerResult::CustomResult(listed) => {
            readable(&listed.0).ok_or(ServiceError::UnexpectedResponse)
        }
        _ => Err(ServiceError::UnexpectedResponse),
    }
}

/// The parts of a list that can be read.
fn readable(listed: &Value) -> Option<ListToolsResult> {
    let tools = listed.get("tools")?.as_array()?;
    let tools: Vec<Value> = tools.iter().filter_map(tool).collect();
    let mut readable = json!({ "tools": tools });
    if let Some(next @ Value::String(_)) = listed.get("nextCursor") {
        readable["nextCursor"] = next.clone();
    }
    serde_json::from_value(readable).ok()
}

fn tool(listed: &Value) -> Option<Value> {
    let mut tool = Map::new();
    tool.insert("name".into(), listed.get("name")?.as_str()?.into());
    if let Some(description) = listed.get("description").and_then(Value::as_str) {
        tool.insert("description".into(), description.into());
    }
    let schema = listed
        .get("inputSchema")
        .filter(|schema| schema.is_object());
    let open = json!({ "type": "object" });
    tool.insert("inputSchema".into(), schema.unwrap_or(&open).clone());
    Some(Value::Object(tool))
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tool_that_the_protocol_does_not_allow_hides_no_other() {
        let listed = json!({
            "tools": [
                {"name": "good", "description": "d", "inputSchema": {"type": "object", "properties": {"a": {}}}},
                {"name": "without"},
                {"name": "null", "description": null, "inputSchema": null},
                {"name": "bool", "description": 5, "inputSchema": true, "annotations": "x"},
                {"description": "nameless", "inputSchema": {"type": "object"}},
                "text",
            ],
            "nextCursor": "2",
        });
        let read = readable(&listed).unwrap();
        let told: Vec<(&str, Option<&str>, String)> = read
            .tools
            .iter()
            .map(|tool| {
                let schema = Value::Object((*tool.input_schema).clone()).to_string();
                (&*tool.name, tool.description.as_deref(), schema)
            })
            .collect();
        let open = r#"{"type":"object"}"#.to_owned();
        assert_eq!(
            told,
            [
                (
                    "good",
                    Some("d"),
                    r#"{"properties":{"a":{}},"type":"object"}"#.to_owned()
                ),
                ("without", None, open.clone()),
                ("null", None, open.clone()),
                ("bool", None, open),
            ]
        );
        assert_eq!(read.next_cursor.as_deref(), Some("2"));
        assert!(readable(&json!({"tools": 3})).is_none());
    }

    proptest! {
        #[test]
        fn of_a_mutated_list_no_more_tools_are_read_than_are_in_it(
            listed in mutated([
                r#"{"tools":[{"name":"good","description":"d","inputSchema":{"type":"object"}},{"name":"bad","inputSchema":null},"x"],"nextCursor":"2"}"#,
            ]),
        ) {
            if let Ok(listed) = serde_json::from_slice::<Value>(&listed)
                && let Some(read) = readable(&listed)
            {
                prop_assert!(read.tools.len() <= listed["tools"].as_array().unwrap().len());
            }
        }
    }
}
