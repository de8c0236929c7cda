"""An agent for Lucid: it greets, looks at its workspace, and answers what it is told.

A policy decides what happens next and does nothing itself. The host calls `step` with what came in;
`step` gives back what the host shall do, and what the policy wants to remember. In between there is
no policy: each step runs in a new instance, so a global variable is forgotten.

`wit/policy.wit` says what comes in and what goes out. A record such as `tool-run` is a dataclass
`ToolRun`, a case such as `run-tool` of `command` is `Command_RunTool`, and what is optional may be
`None`.

Import all that you need here at the top: it is read in when the component is built, and there is no
file to import from later.
"""

import json
import traceback
from datetime import datetime, timezone

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.policy import (
    Command,
    Command_Cancel,
    Command_Emit,
    Command_Finish,
    Command_RunTool,
    Context,
    Descriptor,
    Event,
    Input,
    Input_CancelRequested,
    Input_EffectFailed,
    Input_EffectLost,
    Input_Started,
    Input_ToolReplied,
    Input_UserMessage,
    Outcome_Cancelled,
    Outcome_Failed,
    Outcome_Succeeded,
    Snapshot,
    Start,
    ToolRun,
    Transition,
)
from wit_world.imports import log
from wit_world.imports.types import Error, ErrorKind, ToolCall, ToolResult

# The layout of the state. Count it up when an older state could not be read any more.
SCHEMA = 1


class Policy(exports.Policy):
    """What the host calls."""

    def describe(self) -> Descriptor:
        return Descriptor(
            name="my-agent",
            version="0.1.0",
            description="Greets, looks at its workspace, and answers what it is told.",
            calls_models=False,
            needs_sandbox=False,
            schema=SCHEMA,
            oldest_schema=SCHEMA,
            # A JSON schema of the settings that a deployment may give; they come with the start.
            settings_schema=None,
        )

    def step(self, ctx: Context, state: Snapshot | None, inputs: list[Input]) -> Transition:
        try:
            agent = Agent(state)
            for given in inputs:
                agent.take(ctx, given)
            return Transition(Snapshot(SCHEMA, agent.written()), agent.commands)
        except Err:
            raise
        except Exception:
            # Anything but an `Err` would end in a trap that says little.
            raise Err(error(ErrorKind.INTERNAL, traceback.format_exc())) from None

    def migrate(self, old: Snapshot) -> Snapshot:
        """Called once, when this build takes over a session from an older one with another schema."""
        text = f"A state of schema {old.schema} cannot be taken over."
        raise Err(error(ErrorKind.UNSUPPORTED, text))


class Agent:
    """One step of it."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        known = json.loads(snapshot.bytes) if snapshot else {}
        self.steps: int = known.get("steps", 0) + 1
        self.messages: int = known.get("messages", 0)
        self.waits_for: str | None = known.get("waits_for")
        self.commands: list[Command] = []

    def written(self) -> bytes:
        known = {"steps": self.steps, "messages": self.messages, "waits_for": self.waits_for}
        return json.dumps(known).encode()

    def take(self, ctx: Context, given: Input) -> None:
        match given:
            case Input_Started(start):
                self.begin(ctx, start)
            case Input_UserMessage():
                self.messages += 1
                # While a tool runs, the answer comes with its result.
                if self.waits_for is None:
                    self.succeed(f"That was message {self.messages}, in step {self.steps}.")
            case Input_ToolReplied(reply) if reply.effect == self.waits_for:
                self.looked(reply.outcome)
            case Input_EffectFailed(failure) if failure.effect == self.waits_for:
                self.fail(failure.error)
            case Input_EffectLost(effect) if effect == self.waits_for:
                # Nobody knows whether it happened.
                text = "The host was restarted while a tool ran."
                self.fail(error(ErrorKind.UPSTREAM, text))
            case Input_CancelRequested():
                if self.waits_for is not None:
                    self.commands.append(Command_Cancel(self.waits_for))
                self.waits_for = None
                self.commands.append(Command_Finish(Outcome_Cancelled()))
            case _:
                pass  # Not of interest here: answers, models, timers, upgrades.

    def begin(self, ctx: Context, start: Start) -> None:
        # Lines for the host's operator. What `print` prints is found there too.
        log.log(log.Level.INFO, f"a session with {len(start.tools)} tools")
        text = f"Hello! You asked for: {start.task}"
        # What a person sees. Time and chance are the call's own: the same step gives the same bytes.
        fields = {"thought": text, "at": datetime.now(timezone.utc).isoformat()}
        self.commands.append(Command_Emit(Event("ThinkAction", text, json.dumps(fields))))
        if not any(tool.name == "terminal" for tool in start.tools):
            self.succeed("I have no terminal here, so that is all.")
            return
        # An effect's name is the policy's own, once in a session. Its result comes as a later input.
        self.waits_for = f"look-{ctx.step}"
        call = ToolCall(self.waits_for, "terminal", json.dumps({"command": "ls"}))
        self.commands.append(Command_RunTool(ToolRun(self.waits_for, call, None)))

    def looked(self, outcome: ToolResult) -> None:
        if outcome.is_error:
            self.fail(error(ErrorKind.UPSTREAM, outcome.text))
            return
        self.waits_for = None
        # What a model would read: the command's output, and how it ended.
        self.succeed(f"I ran ls, and it gave:\n{outcome.text}")

    def succeed(self, text: str) -> None:
        """Closes the task; the next message of the user opens another."""
        self.commands.append(Command_Finish(Outcome_Succeeded(text)))

    def fail(self, cause: Error) -> None:
        self.waits_for = None
        self.commands.append(Command_Finish(Outcome_Failed(cause)))


def error(kind: ErrorKind, message: str) -> Error:
    return Error(kind=kind, code=None, message=message, retry_after_ms=None)
