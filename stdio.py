"""MCP over stdin and stdout: what is no message is answered, where the SDK drops it and its client waits for ever."""

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

LONGEST_SEARCHED: Final = 16 << 20
"""Bytes: in what is no message and longer than this, nobody looks for an id."""
TOLD_EVERY_S: Final = 60.0
"""What runs wild must not fill the disk."""

_BATCH: Final = "A batch is not possible here: each message has a line of its own."
_NO_REQUEST: Final = (
    'This is no JSON-RPC request: it has "jsonrpc": "2.0", an id that is a string or an integer, a method, '
    "and params that are an object or are left out."
)
_HALF: Final = "Parse error: a string has one half of a surrogate pair, such as \\ud800, which is no text."

logger = logging.getLogger(__name__)


class _NoMessageError(Exception):
    """What came is no message of MCP; `value` is what can be made of it nevertheless."""

    def __init__(self, code: int, why: str, value: Any) -> None:
        super().__init__(why)
        self._error = ErrorData(code=code, message=why)
        self._value = value

    def answers(self) -> Iterator[JSONRPCError]:
        """Return one for each request in it, by its id where that can be found."""
        several = self._value if isinstance(self._value, list) else [self._value]
        for each in [each for each in several if isinstance(each, dict)] or [{}]:
            if not _wants_no_answer(each):
                yield JSONRPCError(jsonrpc="2.0", id=_id(each), error=self._error)


async def serve_stdio(server: MCPServer[None]) -> None:
    """Serve until stdin ends."""
    sdk = server._lowlevel_server  # noqa: SLF001 - what it has for stdio reads stdin itself
    passing_on, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    # The SDK writes stdout and has nothing to read.
    async with (
        stdio_server(stdin=anyio.wrap_file(io.StringIO())) as (nothing, answers),
        nothing,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_read, passing_on, answers)
        await sdk.run(messages, answers, sdk.create_initialization_options())


async def _read(messages: MemoryObjectSendStream[SessionMessage | Exception], answers: Any) -> None:
    """Pass the messages on that come on stdin, and answer what is none."""
    told_at = -TOLD_EVERY_S
    with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the server has ended
        async with messages:
            async for line in anyio.wrap_file(sys.stdin.buffer):
                try:
                    message = _message(line)
                except _NoMessageError as exc:
                    if time.monotonic() - told_at >= TOLD_EVERY_S:
                        told_at = time.monotonic()
                        logger.warning("what came on stdin is no message of MCP: %s", exc)
                    for answer in exc.answers():
                        await answers.send(SessionMessage(answer))
                else:
                    if message is not None:
                        await messages.send(SessionMessage(message))


def _message(line: bytes) -> JSONRPCMessage | None:
    """Return the message of a line, None when the line is empty.

    Raises:
        _NoMessageError: It is none.
    """
    try:
        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError as exc:
        if not line.strip():
            return None
        raise _problem(line, exc) from None
    # To the SDK a request with an id of another kind is a notification, which nobody answers.
    if isinstance(message, JSONRPCNotification) and b'"id"' in line and "id" in json.loads(line):
        raise _NoMessageError(INVALID_REQUEST, _NO_REQUEST, None)
    return message


def _problem(line: bytes, error: ValidationError) -> _NoMessageError:
    """Say why a line is no message, and to whom."""
    found = error.errors(include_url=False, include_input=False)[0]
    why = f"Parse error: {found['ctx']['error']}." if found["type"] == "json_invalid" else ""
    value = None
    if len(line) <= LONGEST_SEARCHED:
        # Python takes some for JSON that the SDK does not.
        with suppress(ValueError, RecursionError):
            value = json.loads(line.decode("utf-8-sig", errors="replace"))
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            why = _HALF
        except RecursionError:
            pass
    if why:
        return _NoMessageError(PARSE_ERROR, why, value)
    return _NoMessageError(INVALID_REQUEST, _BATCH if isinstance(value, list) else _NO_REQUEST, value)


def _wants_no_answer(message: dict[str, Any]) -> bool:
    """Say whether something would be a notification, or an answer itself, were it well-formed."""
    if "method" in message:
        return isinstance(message["method"], str) and "id" not in message
    return "result" in message or "error" in message


def _id(message: dict[str, Any]) -> str | int | None:
    """Return the id of a request, None when it has none that can be repeated."""
    found = message.get("id")
    return found if type(found) is int or (isinstance(found, str) and found.isprintable()) else None
