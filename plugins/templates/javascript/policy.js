// An agent for Lucid: it greets, looks at its workspace, and answers what it is told.
//
// A policy decides what happens next and does nothing itself. The host calls `step` with what came
// in; `step` gives back what the host shall do, and what the policy wants to remember. In between
// there is no policy: each step runs in a new instance, so a global variable is forgotten.
//
// `wit/policy.wit` says what comes in and what goes out. A name such as `run-tool` is a tag here
// ({ tag: "run-tool", val: … }), a field such as `effect-id` is `effectId`, an enum a string, a
// number of 64 bits a BigInt, and a field that may be left out `undefined`.

import { log } from "lucid:host/log@0.1.0";

// The layout of the state. Count it up when an older state could not be read any more.
const SCHEMA = 1;

export const policy = {
  describe() {
    return {
      name: "my-agent",
      version: "0.1.0",
      description: "Greets, looks at its workspace, and answers what it is told.",
      callsModels: false,
      needsSandbox: false,
      schema: SCHEMA,
      oldestSchema: SCHEMA,
      // A JSON schema of the settings that a deployment may give; they come with `started`.
      settingsSchema: undefined,
    };
  },

  step(context, snapshot, inputs) {
    return orRefuse(() => {
      const state = snapshot ? read(snapshot.bytes) : { steps: 0, messages: 0, waitsFor: null };
      const commands = [];
      state.steps += 1;
      for (const input of inputs) take(context, state, input, commands);
      return { state: { schema: SCHEMA, bytes: write(state) }, commands };
    });
  },

  // Called once, when this build takes over a session from an older one with another schema.
  migrate(old) {
    throw refusal("unsupported", `A state of schema ${old.schema} cannot be taken over.`);
  },
};

function take(context, state, input, commands) {
  switch (input.tag) {
    case "started":
      begin(context, state, input.val, commands);
      break;
    case "user-message":
      state.messages += 1;
      // While a tool runs, the answer comes with its result.
      if (!state.waitsFor) answer(state, commands);
      break;
    case "tool-replied":
      if (input.val.effect === state.waitsFor) looked(state, input.val.outcome, commands);
      break;
    case "effect-failed":
      if (input.val.effect === state.waitsFor) fail(state, input.val.error, commands);
      break;
    case "effect-lost": // The host was restarted meanwhile: nobody knows whether it happened.
      if (input.val === state.waitsFor) {
        fail(state, refusal("upstream", "The host was restarted while a tool ran."), commands);
      }
      break;
    case "cancel-requested":
      if (state.waitsFor) commands.push({ tag: "cancel", val: state.waitsFor });
      state.waitsFor = null;
      finish(commands, { tag: "cancelled" });
      break;
    // Not of interest here: answered, model-replied, timer-fired, upgraded, other.
  }
}

function begin(context, state, start, commands) {
  // Lines for the host's operator. What `console.log` prints is found there too.
  log("info", `a session with ${start.tools.length} tools`);
  const text = `Hello! You asked for: ${start.task}`;
  // What a person sees. Time and chance are the call's own: the same step gives the same bytes.
  const fields = { thought: text, at: new Date().toISOString() };
  emit(commands, "ThinkAction", text, fields);
  if (!start.tools.some((tool) => tool.name === "terminal")) {
    return finish(commands, { tag: "succeeded", val: "I have no terminal here, so that is all." });
  }
  // An effect's name is the policy's own, once in a session. Its result comes as a later input.
  state.waitsFor = `look-${context.step}`;
  const call = { id: state.waitsFor, name: "terminal", arguments: JSON.stringify({ command: "ls" }) };
  commands.push({ tag: "run-tool", val: { effect: state.waitsFor, call, timeoutMs: undefined } });
}

function looked(state, outcome, commands) {
  state.waitsFor = null;
  if (outcome.isError) {
    return finish(commands, { tag: "failed", val: refusal("upstream", outcome.text) });
  }
  // What a model would read: the command's output, and how it ended.
  finish(commands, { tag: "succeeded", val: `I ran ls, and it gave:\n${outcome.text}` });
}

function answer(state, commands) {
  const text = `That was message ${state.messages}, in step ${state.steps}.`;
  finish(commands, { tag: "succeeded", val: text });
}

function fail(state, error, commands) {
  state.waitsFor = null;
  finish(commands, { tag: "failed", val: error });
}

// Closes the task; the next message of the user opens another.
function finish(commands, outcome) {
  commands.push({ tag: "finish", val: outcome });
}

function emit(commands, eventType, content, fields) {
  commands.push({ tag: "emit", val: { eventType, content, fields: JSON.stringify(fields) } });
}

function refusal(kind, message) {
  return { kind, code: undefined, message, retryAfterMs: undefined };
}

// What a function throws must be an `error` of the WIT; anything else would end in a trap that says
// little. So an exception that nobody expected is made one.
function orRefuse(work) {
  try {
    return work();
  } catch (error) {
    if (error?.kind) throw error;
    throw refusal("internal", `${error}\n${error?.stack ?? ""}`);
  }
}

function read(bytes) {
  return JSON.parse(new TextDecoder().decode(bytes));
}

function write(state) {
  return new TextEncoder().encode(JSON.stringify(state));
}
