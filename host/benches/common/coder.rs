//! Owns what the coder is given in the step that is measured.

use lucid_session::AvailableModels;
use lucid_types::wit::policy::{Context, Input, Start};
use lucid_types::wit::types::ToolDefinition;

/// A tool of every sandbox.
pub(crate) fn terminal() -> ToolDefinition {
    ToolDefinition {
        name: "terminal".to_owned(),
        description: "Runs a command.".to_owned(),
        input_schema: r#"{"type":"object","properties":{"command":{"type":"string"}}}"#.to_owned(),
    }
}

/// A session's first step.
pub(crate) fn first_step() -> (Context, [Input; 1]) {
    let models = AvailableModels::only("m");
    let context = Context {
        session: "0190163d-8694-739b-aea5-966c26f8ad91".to_owned(),
        step: 0,
        now_ms: 1_800_000_000_000,
        seed: 1,
        iterations_left: 50,
        tokens_left: None,
        cost_left: None,
        millis_left: None,
    };
    let inputs = [Input::Started(Start {
        task: "Fix the failing test.".to_owned(),
        entry: 0,
        workspace: "/workspace".to_owned(),
        repository: None,
        branch: None,
        model: models.model,
        small_model: models.small,
        models: models.names,
        instructions: Vec::new(),
        tools: vec![terminal()],
        settings: "{}".to_owned(),
    })];
    (context, inputs)
}
