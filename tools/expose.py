"""The one way from a method to a tool: what every call and every answer must go through happens here and in `gate`."""

import functools
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.context_injection import find_context_parameter
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolResult,
    InputRequiredResult,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel, BeforeValidator, ValidationError

from config import AccessMode
from errors import BridgeError
from policy import Effect, exists_in, rule_of
from sanitizer import Keys, hide_secrets
from tools.answers import visible
from tools.gate import Describe, Gate
from topics import shown

logger = logging.getLogger(__name__)

_HINTS: Final[dict[Effect, ToolAnnotations]] = {
    "looks": ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=True),
    "handles": ToolAnnotations(
        read_only_hint=True, destructive_hint=False, idempotent_hint=False, open_world_hint=True
    ),
    "writes": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True),
    "deletes": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=True),
}
"""What clients are told about a tool. What writes can destroy: a message can start a motor, or replace a kept value."""

OptionalText = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
"""Text that may be left out. Exactly `str` for the SDK, which would parse JSON-looking text for any other type."""


class Exposer:
    """Turns the methods of toolsets into tools, those that exist in the access mode."""

    def __init__(self, gate: Gate, access: AccessMode) -> None:
        self._gate = gate
        self._access = access

    def __call__(
        self, method: Callable[..., Awaitable[BaseModel]], title: str, describe: Describe | None = None
    ) -> list[Tool]:
        """Make the tool of a method; none where the access mode does not have it.

        The docstring becomes the description, the annotations the schemas. A foreseen failure becomes a tool error;
        every text that goes out has its secrets hidden; arguments that do not exist are refused.
        """
        name = method.__name__
        return [_tool(method, title, self._gate, describe)] if exists_in(name, self._access) else []


def _tool(method: Callable[..., Awaitable[BaseModel]], title: str, gate: Gate, describe: Describe | None) -> Tool:
    signature = inspect.signature(method)
    name = method.__name__
    own_context = find_context_parameter(method)

    @functools.wraps(method)
    async def guarded(**arguments: Any) -> CallToolResult | InputRequiredResult:
        given = {key: value for key, value in arguments.items() if key != own_context}

        async def run() -> CallToolResult:
            return _answered(await method(**arguments))

        try:
            return await gate.call(name, given, _context.get(), describe, run)
        except BridgeError as exc:
            failed = getattr(exc, "answer", None)
            if failed is None:
                raise ToolError(_fit_to_leave(str(exc))) from exc
            return CallToolResult(
                content=[TextContent(type="text", text=_fit_to_leave(str(exc)))],
                structured_content=_all_fit_to_leave(failed.model_dump(mode="json")),
                is_error=True,
            )

    guarded.__signature__ = signature.replace(return_annotation=CallToolResult)  # type: ignore[attr-defined] # looked for first
    # The SDK would make a schema of the whole answer and check every answer against it: 3 ms a tool at every start.
    tool = _StrictTool.from_function(
        guarded,
        title=title,
        description=" ".join((method.__doc__ or "").split()),
        annotations=_HINTS[rule_of(name).effect],
        structured_output=False,
    )
    metadata = tool.fn_metadata
    metadata.arg_model.model_config["extra"] = "forbid"
    metadata.arg_model.model_rebuild(force=True)
    metadata.output_schema = outline(signature.return_annotation)
    tool.parameters = lean({"additionalProperties": False, **tool.parameters})
    return tool


def _answered(answer: BaseModel) -> CallToolResult:
    structured = _all_fit_to_leave(answer.model_dump(mode="json"))
    text = json.dumps(structured, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=structured)


_context: ContextVar[Context[Any, Any]] = ContextVar("context")
"""Of the call that is being served."""


class _StrictTool(Tool):
    """A tool that says in plain words what is wrong with its arguments."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Run the tool; see `Tool.run`."""
        _context.set(context)
        properties = self.parameters.get("properties", {})
        for name, value in arguments.items():  # pydantic takes true for 1
            if isinstance(value, bool) and properties.get(name, {}).get("type") in ("integer", "number"):
                raise ToolError(f"{self.name} was not called: {name}: input should be a number, not {value}.")
        try:
            return await super().run(arguments, context, convert_result)
        except ToolError as exc:
            if isinstance(exc.__cause__, ValidationError):
                known = list(properties)
                text = "; ".join(_in_words(dict(problem), known) for problem in exc.__cause__.errors())
                raise ToolError(_fit_to_leave(f"{self.name} was not called: {text}.")) from exc
            raise


def _in_words(problem: dict[str, Any], known: list[str]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(where, known, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}"
        return f"there is no argument {shown(where)}, {meant}".rstrip("?")
    if problem["type"] == "missing":
        return f"{where} is required"
    given = problem.get("input")
    what = given if isinstance(given, str) else repr(given)
    what = f", not {shown(what) if isinstance(given, str) else shown(what)[1:-1]}"
    hint = " (pass JSON as text)" if problem["type"] == "string_type" and isinstance(given, dict | list) else ""
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}{what}"


def _fit_to_leave(text: str) -> str:
    """Hide secrets, and show what cannot be seen as escapes; a lone surrogate would kill the transport (SDK 2.3.0)."""
    return visible(hide_secrets(text))


def _all_fit_to_leave(value: Any) -> Any:
    if isinstance(value, str):
        return _fit_to_leave(value)
    if isinstance(value, dict):
        keys = Keys()
        return {keys.written(key, _fit_to_leave(key)): _all_fit_to_leave(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_all_fit_to_leave(item) for item in value]
    return value


async def last_look(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Make fit to leave what the SDK answers by itself: errors, lists, echoes of what was asked (middleware).

    The answers of tools were looked at before their structure and their text were made of one piece.
    """
    try:
        result = await call_next(ctx)
    except MCPError as exc:
        raise MCPError(exc.code, _fit_to_leave(exc.message), _all_fit_to_leave(exc.data)) from exc
    except ValidationError:
        raise  # the SDK says that the parameters are invalid, and no more
    except Exception as exc:
        if ctx.method == "prompts/get" and isinstance(exc, ValueError):
            # An unknown prompt, or arguments it does not take: the caller's mistake, which the SDK takes for ours.
            raise MCPError(INVALID_PARAMS, _fit_to_leave(str(exc))) from exc
        # The SDK would tell a client of the older protocol what went wrong inside.
        logger.exception("%s failed", ctx.method)
        raise MCPError(INTERNAL_ERROR, "Internal server error") from exc
    if isinstance(result, dict) and "structuredContent" not in result:
        return {key: _all_fit_to_leave(value) for key, value in result.items()}
    return result


async def tell_progress(context: Context[Any, Any], done: float, total: float | None, text: str) -> None:
    """Report progress to a client that asked for it."""
    await context.report_progress(done, total, _fit_to_leave(text))


def lean(schema: dict[str, Any]) -> dict[str, Any]:
    """Take out of an input schema what every session would pay for and no model needs.

    Titles repeat names; `null` beside a type, or an empty text as default, only says that an argument may be left out;
    a definition that is used once stands where it is used (none of ours refers to itself).
    """
    definitions = schema.pop("$defs", {})

    def trim(node: Any, *, names: bool = False) -> Any:
        if isinstance(node, list):
            return [trim(item) for item in node]
        if not isinstance(node, dict):
            return node
        if not names and "anyOf" in node:
            kinds = [kind for kind in node["anyOf"] if kind != {"type": "null"}]
            if len(kinds) == 1:
                node = {key: value for key, value in node.items() if key not in ("anyOf", "default")} | kinds[0]
        if not names and "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]] | {k: v for k, v in node.items() if k != "$ref"}
        return {
            key: trim(value, names=not names and key == "properties")
            for key, value in node.items()
            if names or (key != "title" and (key, value) != ("default", ""))
        }

    trimmed: dict[str, Any] = trim(schema)
    return trimmed


def outline(model: type[BaseModel]) -> dict[str, Any]:
    """Write the names and types of the fields that every answer has as a schema; the answer shows the rest."""
    always = {name: field for name, field in model.model_fields.items() if field.is_required()}
    return {"type": "object", "properties": {name: _kind(field.annotation) for name, field in always.items()}}


_KINDS: Final[dict[Any, str]] = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def _kind(annotation: Any) -> dict[str, Any]:
    """Write the outermost type of an annotation as a schema."""
    if annotation is Any:
        return {}
    choices = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {"type": "string"}
    if get_origin(annotation) is list:
        return {"type": "array", "items": _kind(choices[0])}
    if get_origin(annotation) in (UnionType, Union):
        return {"type": [_kind(choice)["type"] for choice in choices]}
    return {"type": _KINDS.get(annotation, "object")}
