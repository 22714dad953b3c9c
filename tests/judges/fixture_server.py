"""A test-only build: our HTTP stack around tools, resources and prompts that the conformance suite asks for by name.

What each has to do is said by the suite, in the descriptions of its scenarios. Everything between the socket and the
SDK is the product's: the door, the clients' endpoint, the last look at answers, the news of tool lists.
"""

import asyncio
import base64
import json
import logging
import secrets
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

sys.path.insert(0, str(Path(__file__).parents[2]))

from mcp.server import MCPServer
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CallToolResult,
    Completion,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequests,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field

from audit import Audit
from config import AuditConfig, HTTPConfig
from http_app import Door
from http_clients import Clients
from http_server import bind, serving
from measures import Measures
from tools.changes import ToolListChanges
from tools.expose import last_look

ENOUGH: Final = 1_000_000
"""Requests a minute: the limit is judged elsewhere."""
PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV: Final = base64.b64encode(
    b"RIFF\x26\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00\x80>\x00\x00\x02\x00\x10\x00data\x02"
    b"\x00\x00\x00\x00\x00"
).decode()
PAUSE_S: Final = 0.05
OLDER_METHODS: Final = ("logging/setLevel", "resources/subscribe", "resources/unsubscribe")
"""What the suite wants a client of the older handshake to be able to ask, and neither the SDK's server class nor ours
serves."""

Ctx = Context[Any, Any]
Asked = CallToolResult | InputRequiredResult


def said(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)])


def form(message: str, **properties: Any) -> ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sampling(prompt: str, max_tokens: int = 100) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=max_tokens))


def embedded(uri: str, kind: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=text))


# Content of each kind.


async def test_simple_text() -> CallToolResult:
    """Return text."""
    return said("This is a simple text response for testing.")


async def test_image_content() -> CallToolResult:
    """Return an image."""
    return CallToolResult(content=[ImageContent(type="image", data=PNG, mime_type="image/png")])


async def test_audio_content() -> CallToolResult:
    """Return a sound."""
    return CallToolResult(content=[AudioContent(type="audio", data=WAV, mime_type="audio/wav")])


async def test_embedded_resource() -> CallToolResult:
    """Return a resource."""
    text = "This is an embedded resource content."
    return CallToolResult(content=[embedded("test://embedded-resource", "text/plain", text)])


async def test_multiple_content_types() -> CallToolResult:
    """Return text, an image and a resource."""
    return CallToolResult(
        content=[
            TextContent(type="text", text="Multiple content types test:"),
            ImageContent(type="image", data=PNG, mime_type="image/png"),
            embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ]
    )


async def test_error_handling() -> CallToolResult:
    """Fail."""
    raise ToolError("This tool intentionally returns an error for testing")


# What is sent while a call is under way.


async def test_tool_with_logging(ctx: Ctx) -> CallToolResult:
    """Send three log messages."""
    await ctx.info("Tool execution started")
    await asyncio.sleep(PAUSE_S)
    await ctx.info("Tool processing data")
    await asyncio.sleep(PAUSE_S)
    await ctx.info("Tool execution completed")
    return said("Logged.")


async def test_logging_tool(ctx: Ctx) -> CallToolResult:
    """Log something, whether or not somebody wants to know."""
    await ctx.info("Logged")
    return said("Logged.")


async def test_tool_with_progress(ctx: Ctx) -> CallToolResult:
    """Report progress three times."""
    for done in (0, 50):
        await ctx.report_progress(done, 100)
        await asyncio.sleep(PAUSE_S)
    await ctx.report_progress(100, 100)
    return said("Done.")


# Requests of the server to a client of the older handshake.


async def test_sampling(prompt: str, ctx: Ctx) -> CallToolResult:
    """Ask the client's model."""
    messages = [SamplingMessage(role="user", content=TextContent(type="text", text=prompt))]
    answer = await ctx.session.create_message(
        messages, max_tokens=100, related_request_id=ctx.request_context.request_id
    )
    return said(f"LLM response: {answer.content.text if isinstance(answer.content, TextContent) else answer.content}")


async def _elicited(ctx: Ctx, message: str, properties: dict[str, Any], required: list[str]) -> ElicitResult:
    schema = {"type": "object", "properties": properties, "required": required}
    answer: ElicitResult = await ctx.session.elicit_form(message, schema, ctx.request_context.request_id)
    return answer


async def test_elicitation(message: str, ctx: Ctx) -> CallToolResult:
    """Ask the user who they are."""
    properties = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    answer = await _elicited(ctx, message, properties, ["username", "email"])
    return said(f"User response: action={answer.action}, content={json.dumps(answer.content)}")


async def test_elicitation_sep1034_defaults(ctx: Ctx) -> CallToolResult:
    """Ask with a default in each kind of field."""
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    answer = await _elicited(ctx, "Please review the defaults", properties, [])
    return said(f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}")


async def test_elicitation_sep1330_enums(ctx: Ctx) -> CallToolResult:
    """Ask with a choice of each kind."""
    options = ["option1", "option2", "option3"]
    titled = [
        {"const": f"value{n}", "title": f"{name} Option"} for n, name in enumerate(("First", "Second", "Third"), 1)
    ]
    legacy = {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]}
    properties = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", **legacy},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    answer = await _elicited(ctx, "Please choose", properties, [])
    return said(f"Elicitation completed: action={answer.action}, content={json.dumps(answer.content)}")


# Questions that travel with a client of 2026-07-28.


def _answers(ctx: Ctx, *keys: str) -> list[Any] | None:
    given = ctx.input_responses or {}
    return [given[key] for key in keys] if given.keys() >= set(keys) else None


def _filled(answer: Any, field: str) -> Any:
    return (answer.content or {}).get(field) if isinstance(answer, ElicitResult) else None


NAME: Final = form("What is your name?", name={"type": "string"})
CONFIRM: Final = form("Please confirm", ok={"type": "boolean"})


async def test_input_required_result_elicitation(ctx: Ctx) -> Asked:
    """Ask for a name."""
    if (answers := _answers(ctx, "user_name")) is None:
        return InputRequiredResult(input_requests={"user_name": NAME})
    return said(f"Hello, {_filled(answers[0], 'name')}!")


async def test_streaming_elicitation(ctx: Ctx) -> Asked:
    """Ask for a name; nothing of it may be a request on the stream."""
    return await test_input_required_result_elicitation(ctx)


async def test_input_required_result_sampling(ctx: Ctx) -> Asked:
    """Ask the client's model for a capital."""
    if (answers := _answers(ctx, "capital_question")) is None:
        return InputRequiredResult(input_requests={"capital_question": sampling("What is the capital of France?")})
    return said(answers[0].content.text)


async def test_input_required_result_list_roots(ctx: Ctx) -> Asked:
    """Ask for the client's roots."""
    if (answers := _answers(ctx, "client_roots")) is None:
        return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})
    return said(", ".join(str(root.uri) for root in answers[0].roots))


async def test_input_required_result_request_state(ctx: Ctx) -> Asked:
    """Ask for confirmation, with a state."""
    if (answers := _answers(ctx, "confirm")) is None or ctx.request_state != "asked":
        return InputRequiredResult(input_requests={"confirm": CONFIRM}, request_state="asked")
    return said(f"state-ok, {_filled(answers[0], 'ok')}")


async def test_input_required_result_tampered_state(ctx: Ctx) -> Asked:
    """Ask for confirmation, with a state that is sealed."""
    return await test_input_required_result_request_state(ctx)


async def test_input_required_result_multiple_inputs(ctx: Ctx) -> Asked:
    """Ask for three things at once."""
    if (answers := _answers(ctx, "user_name", "greeting", "client_roots")) is None:
        requests: InputRequests = {
            "user_name": NAME,
            "greeting": sampling("Generate a greeting", 50),
            "client_roots": ListRootsRequest(),
        }
        return InputRequiredResult(input_requests=requests, request_state="asked")
    name, greeting, roots = answers
    return said(f"{greeting.content.text}, {_filled(name, 'name')}: {len(roots.roots)} roots")


async def test_input_required_result_multi_round(ctx: Ctx) -> Asked:
    """Ask for a name, then for a color."""
    if (second := _answers(ctx, "step2")) and (ctx.request_state or "").startswith("name "):
        return said(f"{ctx.request_state}, color {_filled(second[0], 'color')}")
    if (first := _answers(ctx, "step1")) and ctx.request_state == "round 1":
        question = form("Step 2: What is your favorite color?", color={"type": "string"})
        return InputRequiredResult(
            input_requests={"step2": question}, request_state=f"name {_filled(first[0], 'name')}"
        )
    question = form("Step 1: What is your name?", name={"type": "string"})
    return InputRequiredResult(input_requests={"step1": question}, request_state="round 1")


async def test_input_required_result_capabilities(ctx: Ctx) -> Asked:
    """Ask for what the client can do, and nothing else."""
    can = ctx.client_capabilities
    requests: InputRequests = {}
    if can is not None and can.elicitation is not None:
        requests["user_name"] = NAME
    if can is not None and can.sampling is not None:
        requests["greeting"] = sampling("Generate a greeting", 50)
    return InputRequiredResult(input_requests=requests) if requests and not ctx.input_responses else said("Done.")


async def test_missing_capability(ctx: Ctx) -> CallToolResult:
    """Do what needs a client with a model."""
    can = ctx.client_capabilities
    if can is None or can.sampling is None:
        raise MCPError(
            MISSING_REQUIRED_CLIENT_CAPABILITY,
            "The client has to offer sampling.",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return said("Done.")


# What arguments may look like.


async def test_headers(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> CallToolResult:
    """Take an argument that a client also has to say in a header."""
    return said(region)


SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


async def json_schema_2020_12_tool() -> CallToolResult:
    """Tool with JSON Schema 2020-12 features."""
    return said("Done.")


TOOLS: Final[list[Callable[..., Any]]] = [
    test_simple_text,
    test_image_content,
    test_audio_content,
    test_embedded_resource,
    test_multiple_content_types,
    test_error_handling,
    test_tool_with_logging,
    test_logging_tool,
    test_tool_with_progress,
    test_sampling,
    test_elicitation,
    test_elicitation_sep1034_defaults,
    test_elicitation_sep1330_enums,
    test_input_required_result_elicitation,
    test_streaming_elicitation,
    test_input_required_result_sampling,
    test_input_required_result_list_roots,
    test_input_required_result_request_state,
    test_input_required_result_tampered_state,
    test_input_required_result_multiple_inputs,
    test_input_required_result_multi_round,
    test_input_required_result_capabilities,
    test_missing_capability,
    test_headers,
    json_schema_2020_12_tool,
]


def fixture_server(*_: Any) -> MCPServer[None]:
    """Make the server that the suite wants."""
    changes = ToolListChanges()
    tools = [Tool.from_function(function, structured_output=False) for function in TOOLS]
    tools[-1].parameters = SCHEMA
    server: MCPServer[None] = MCPServer(
        "fixtures",
        version="1",
        tools=tools,
        subscriptions=changes.bus,
        middleware=[last_look, changes.middleware, older_methods],
        log_level="WARNING",
    )
    add_changes(server, changes)
    add_resources(server)
    add_prompts(server)
    return server


async def older_methods(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Serve what only a client of the older handshake may ask (middleware)."""
    if ctx.method in OLDER_METHODS and ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return {}
    return await call_next(ctx)


def add_changes(server: MCPServer[None], changes: ToolListChanges) -> None:
    """Add what changes the lists of tools and prompts, so that clients have to be told."""

    @server.tool()
    async def test_trigger_tool_change() -> CallToolResult:
        """Change the list of tools."""
        server.add_tool(test_simple_text, name="test_added", structured_output=False)
        await changes.tell()
        server.remove_tool("test_added")
        await changes.tell()
        return said("Changed.")

    @server.tool()
    async def test_trigger_prompt_change(ctx: Ctx) -> CallToolResult:
        """Change the list of prompts."""
        await ctx.notify_prompts_changed()
        return said("Changed.")


def add_resources(server: MCPServer[None]) -> None:
    """Add the resources."""

    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        """Text that stays the same."""
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        """An image that stays the same."""
        return base64.b64decode(PNG)

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        """What can be subscribed to."""
        return "Watched."

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:  # noqa: A002 - the suite's name
        """Something that has a number."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def add_prompts(server: MCPServer[None]) -> None:
    """Add the prompts, and the completion of their arguments."""

    @server.prompt()
    def test_simple_prompt() -> str:
        """Say something simple."""
        return "This is a simple prompt for testing."

    @server.prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """Say what was given."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
        """Show a resource."""
        return [
            UserMessage(embedded(resourceUri, "text/plain", "Embedded resource content for testing.")),
            UserMessage("Please process the embedded resource above."),
        ]

    @server.prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        """Show an image."""
        image = ImageContent(type="image", data=PNG, mime_type="image/png")
        return [UserMessage(image), UserMessage("Please analyze the image above.")]

    @server.prompt()
    def test_input_required_result_prompt(ctx: Ctx) -> str | InputRequiredResult:
        """Say what the user wants."""
        if (answers := _answers(ctx, "user_context")) is None:
            question = form("What context should the prompt use?", context={"type": "string"})
            return InputRequiredResult(input_requests={"user_context": question})
        return f"Use this context: {_filled(answers[0], 'context')}"

    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=[f"{argument.value}is"], total=1, has_more=False)

    server.completion()(complete)  # type: ignore[no-untyped-call]


async def serve() -> None:
    """Serve until SIGTERM, and say where."""
    http = HTTPConfig(client_rate_limit_per_minute=ENOUGH)
    measures = Measures()
    # Sealed as with replicas, where sessions have longer names.
    clients = Clients(http, "write", fixture_server, Audit(AuditConfig()), measures, secrets.token_bytes(32))
    where = bind("127.0.0.1", 0)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with clients.serving(), serving(Door(http, {"/mcp": clients}, measures), where):
        sys.stderr.write(f"MCP is served on http://127.0.0.1:{where.getsockname()[1]}/mcp\n")
        await stop.wait()
        await clients.stop(0)


if __name__ == "__main__":
    logging.basicConfig(level="WARNING")
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # sampling and logging are part of what is judged
    asyncio.run(serve())
