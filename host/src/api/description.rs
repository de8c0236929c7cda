//! The OpenAPI document: what all routes have in common, and what follows from how a route is
//! built.
//!
//! # Invariants
//!
//! - An error is described under the media type it is sent with.
//! - A body that is not JSON is described as bytes.
//! - A status that an extractor or a layer can respond with is described for every route that has
//!   it, so no route has to repeat it: authentication (401, 503), a body (400, 413, 415, 422), a
//!   query (422), a path (404), and an internal error (500).

use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Content, KnownFormat, ObjectBuilder, Ref, RefOr, Required, Response, ResponseBuilder, Schema,
    SchemaFormat, Type,
};

use super::problem::Problem;

const JSON: &str = "application/json";
const PROBLEM_JSON: &str = "application/problem+json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lucid",
        description = "Runs AI coding agents whose policies, models and git providers are WebAssembly components.\n\nA *session* is live work; a *chat* is its record. The WebSocket at `/api/v1/ws` starts sessions and shows what they do.",
    ),
    modifiers(&Schemes),
    components(schemas(Problem)),
    tags(
        (name = "status", description = "What this server is and whether it works, without authentication; and its metrics"),
        (name = "sessions", description = "Live work"),
        (name = "chats", description = "The record of the work"),
        (name = "files", description = "The workspace of a session"),
        (name = "integrations", description = "The caller's git accounts"),
        (name = "plugins", description = "The deployment's plugins, for its administrators: the internal key, or a token with the claim `lucid_admin`"),
    ),
)]
pub(super) struct Description;

/// The two authentication schemes, for the description.
struct Schemes;

impl utoipa::Modify for Schemes {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .build();
        let components = api.components.get_or_insert_with(Default::default);
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        for (name, header) in [
            ("internal_user", "X-User-ID"),
            ("internal_key", "X-Internal-Key"),
        ] {
            let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(header)));
            components.add_security_scheme(name, scheme);
        }
    }
}

/// Completes a document whose routes describe only what is specific to them.
pub(super) fn completed(mut api: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            for (status, description) in shared(operation) {
                let responses = &mut operation.responses.responses;
                responses
                    .entry(status.to_owned())
                    .or_insert_with(|| RefOr::T(refusal(description)));
            }
            as_problems(operation);
            as_bytes(operation);
        }
    }
    api
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [
        &mut item.get,
        &mut item.post,
        &mut item.patch,
        &mut item.put,
        &mut item.delete,
    ];
    all.into_iter().flatten()
}

/// The errors of a route that follow from how it is built.
fn shared(operation: &Operation) -> Vec<(&'static str, &'static str)> {
    let mut shared = vec![("500", "A fault of the server; its log says what")];
    let secured = operation.security.as_ref();
    if secured.is_some_and(|ways| !ways.is_empty()) {
        shared.push(("401", "Not authenticated"));
        shared.push(("429", "The caller has too many requests in progress"));
        shared.push((
            "503",
            "Not now: the store cannot be reached, or the keys that tokens are checked with cannot",
        ));
    }
    if takes_json(operation) {
        shared.push(("400", "The body is not JSON"));
        shared.push(("408", "The body took too long to arrive"));
        shared.push(("413", "The body is larger than 1 MiB"));
        shared.push(("415", "The body is not sent as application/json"));
        shared.push(("422", "The body does not fit"));
    }
    if has(operation, &ParameterIn::Query) {
        shared.push(("422", "The query does not fit"));
    }
    if has(operation, &ParameterIn::Path) {
        shared.push(("404", "There is no such thing"));
    }
    shared
}

fn takes_json(operation: &Operation) -> bool {
    match &operation.request_body {
        Some(RefOr::T(body)) => body.content.contains_key(JSON),
        _ => false,
    }
}

fn has(operation: &Operation, place: &ParameterIn) -> bool {
    let parameters = operation.parameters.iter().flatten();
    parameters
        .filter_map(|parameter| match parameter {
            RefOr::T(parameter) => Some(parameter),
            RefOr::Ref(_) => None,
        })
        .any(|parameter: &Parameter| parameter.parameter_in == *place)
}

fn refusal(description: &str) -> Response {
    let problem = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem"))));
    ResponseBuilder::new()
        .description(description)
        .content(PROBLEM_JSON, problem)
        .build()
}

/// Moves errors to their own media type: a route only says that its body is a [`Problem`].
fn as_problems(operation: &mut Operation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.required = Some(Required::True);
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && is_error(status)
        {
            if let Some(problem) = response.content.shift_remove(JSON) {
                response.content.insert(PROBLEM_JSON.to_owned(), problem);
            }
            if response.description.is_empty() {
                response.description = described(status).to_owned();
            }
        }
    }
}

/// In a body that is not JSON, a `Vec<u8>` is the body itself, not a list of numbers.
fn as_bytes(operation: &mut Operation) {
    let bytes = || {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .build()
    };
    let describe = |kind: &str, content: &mut RefOr<Content>| {
        if let RefOr::T(content) = content
            && !kind.ends_with("json")
        {
            content.schema = Some(RefOr::T(Schema::Object(bytes())));
        }
    };
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        for (kind, content) in &mut body.content {
            describe(kind, content);
        }
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            for (kind, content) in &mut response.content {
                describe(kind, content);
            }
        }
    }
}

fn is_error(status: &str) -> bool {
    status.starts_with(['4', '5'])
}

/// The description of a status, if a route has none of its own.
fn described(status: &str) -> &'static str {
    match status {
        "401" => "Not authenticated",
        "404" => "There is no such thing",
        "422" => "What was sent does not fit",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    fn document() -> Value {
        let api = super::super::described().into_openapi();
        serde_json::to_value(super::completed(api)).unwrap()
    }

    fn each(document: &Value, look: impl Fn(&str, &Value)) {
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                look(&format!("{method} {path}"), operation);
            }
        }
    }

    #[test]
    fn every_error_is_described_as_a_problem_and_in_words() {
        each(&document(), |name, operation| {
            for (status, response) in operation["responses"].as_object().unwrap() {
                if !super::is_error(status) {
                    continue;
                }
                let content = response["content"].as_object().unwrap();
                let kinds: Vec<_> = content.keys().collect();
                assert_eq!(kinds, ["application/problem+json"], "{name} {status}");
                assert_eq!(
                    content["application/problem+json"]["schema"]["$ref"],
                    "#/components/schemas/Problem",
                    "{name} {status}"
                );
                assert_ne!(response["description"], "", "{name} {status}");
            }
        });
    }

    #[test]
    fn every_reference_leads_somewhere_and_no_two_types_share_a_name() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let reference = reference.split('"').next().unwrap();
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{reference} is nowhere");
        }
        assert_eq!(
            schemas["OpenChange"]["enum"],
            serde_json::json!(["ready", "draft"])
        );
        assert!(schemas["NewChange"]["properties"]["repoUrl"].is_object());
    }

    #[test]
    fn what_is_no_json_is_described_as_bytes() {
        let document = document();
        let upload = &document["paths"]["/api/v1/plugins"]["post"]["requestBody"]["content"];
        let archive = &document["paths"]["/api/v1/files/archive"]["get"]["responses"]["200"];
        for schema in [
            &upload["application/wasm"]["schema"],
            &upload["application/octet-stream"]["schema"],
            &archive["content"]["application/gzip"]["schema"],
        ] {
            assert_eq!(
                *schema,
                serde_json::json!({"type": "string", "format": "binary"})
            );
        }
    }

    #[test]
    fn what_an_extractor_refuses_is_described_wherever_it_is_used() {
        each(&document(), |name, operation| {
            let described = |status: &str| operation["responses"].get(status).is_some();
            assert!(described("500"), "{name}");
            let secured = operation.get("security").is_some();
            assert_eq!(described("401"), secured, "{name}");
            assert!(!secured || described("503"), "{name}");
            if operation["requestBody"]["content"]["application/json"].is_object() {
                for status in ["400", "413", "415", "422"] {
                    assert!(described(status), "{name} {status}");
                }
                assert_eq!(operation["requestBody"]["required"], true, "{name}");
            }
        });
    }

    /// Whether a value of a schema may be null.
    fn may_be_null(schema: &Value) -> bool {
        let is_null = |of: &Value| of["type"] == "null" || may_be_null(of);
        let kinds = schema["type"].as_array().into_iter().flatten();
        let choices = ["oneOf", "anyOf"].map(|name| schema[name].as_array());
        kinds.into_iter().any(|kind| kind == "null")
            || choices.into_iter().flatten().flatten().any(is_null)
    }

    /// Visits every object that a schema leads to, each named one once.
    fn visit(
        document: &Value,
        schema: &Value,
        seen: &mut Vec<String>,
        look: &mut dyn FnMut(&Value),
    ) {
        if let Some(reference) = schema["$ref"].as_str() {
            if !seen.iter().any(|known| known == reference) {
                seen.push(reference.to_owned());
                let place = reference.trim_start_matches('#');
                visit(document, document.pointer(place).unwrap(), seen, look);
            }
            return;
        }
        if schema["properties"].is_object() {
            look(schema);
        }
        match schema {
            Value::Object(members) => members
                .values()
                .for_each(|of| visit(document, of, seen, look)),
            Value::Array(items) => items.iter().for_each(|of| visit(document, of, seen, look)),
            _ => {}
        }
    }

    #[test]
    fn what_may_be_null_in_an_answer_is_always_there() {
        let document = document();
        let mut seen = Vec::new();
        let mut nullable = 0;
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item.as_object().unwrap().values() {
                visit(
                    &document,
                    &operation["responses"],
                    &mut seen,
                    &mut |object| {
                        let required = object["required"].as_array();
                        for (member, schema) in object["properties"].as_object().unwrap() {
                            if may_be_null(schema) {
                                nullable += 1;
                                let is_required =
                                    required.is_some_and(|all| all.iter().any(|one| one == member));
                                assert!(
                                    is_required,
                                    "{member} may be null, and may be missing: {object}"
                                );
                            }
                        }
                    },
                );
            }
        }
        assert!(nullable > 20, "{nullable}");
    }
}
