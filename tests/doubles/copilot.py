"""A Coreflux Copilot that says what a test tells it to: HTTP/1.1 on loopback, down to each write and each hang-up.

Texts and shapes carry the tag that the reference of the API gives them: `spec`, `docs`, `agent`, `seen`, `unverified`.
"""

import asyncio
import json
import secrets
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.message import Message
from email.parser import HeaderParser
from email.utils import format_datetime
from enum import Enum
from http.client import responses
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

HOST = "127.0.0.1"
CHAT = "/api/v1/chat/completions"
ROLES = ("system", "developer", "user", "assistant", "tool")  # spec
WAIT_TIMEOUT_S = 5
GAP_S = 0.001
"""Between two writes the client gets this long to read, so that it reads them apart."""

LOT = 'DEFINE ACTION Overheated\nON TOPIC "öfen/1/°C" DO\n    PUBLISH TOPIC "alarm" WITH PAYLOAD\n'
"""Valid, and with characters of two bytes."""
FENCED = f"Here is the action:\n\n```lot\n{LOT}```\n\nIt passes each value on."
SEVERAL = f"First:\n\n```lot\n{LOT}```\n\nThen, in a shell:\n\n```bash\nmosquitto_sub -t alarm\n```\n\n```\n{LOT}```"
UNFENCED = f"Here is the action:\n\n{LOT}"
THINKING = f"<think>The user wants ```lot\nDEFINE ACTION Draft\n``` or so.</think>\n\n{FENCED}"
INVALID = '```lot\nDEFINE ACTION Broken\nWHENEVER TOPIC "a" THEN\n```'
REFUSAL = "I'm not able to help with that request."
KNOWLEDGE_TIMEOUT = "Failed to retrieve data from Knowledge base(s) - timeout"  # seen, in content or error

USAGE = {"prompt_tokens": 812, "completion_tokens": 64, "total_tokens": 876}  # spec
FUNCTIONS = {"called_functions": ["lookup_topic"]}  # agent
CHUNK = {"id": "r1", "index": "kb-1", "score": 0.83, "filename": "actions.md", "page": 3, "page_content": "DEFINE ..."}
RETRIEVAL = {"retrieved_data": [CHUNK, {"id": "r2", "index": "kb-1", "score": 0.41}]}  # agent
GUARDRAILS = {"triggered_guardrails": [{"message": REFUSAL, "rule_name": "Jailbreak"}]}  # agent
OTHER_SHAPES: Mapping[str, object] = {
    "array": [],
    "null": None,
    "string": "DEFINE",
    "empty object": {},
    "choices null": {"choices": None},
    "choices empty": {"choices": []},
    "choice no object": {"choices": ["DEFINE"]},
    "message missing": {"choices": [{"index": 0, "finish_reason": "stop"}]},
    "message null": {"choices": [{"index": 0, "message": None}]},
    "content missing": {"choices": [{"message": {"role": "assistant"}}]},
    "content no string": {"choices": [{"message": {"role": "assistant", "content": ["DEFINE"]}}]},
}
"""Valid JSON that is no completion; for `as_json`."""

_IDENTITY = {"id": "chatcmpl-1", "created": 1_760_000_000, "model": "n/a"}  # spec
_QUOTA = {"ratelimit-limit": "5000", "ratelimit-remaining": "4999"}  # spec, on 200 as well as on errors
_HTML = b"<html><head><title>Error</title></head><body><h1>Error at the edge</h1></body></html>"  # unverified
_FAILURES: Mapping[int, object] = {
    400: {"error": "Bad request", "code": "bad_request"},  # unverified
    401: {"id": "unauthorized", "message": "Unable to authenticate you."},  # spec
    403: {"id": "forbidden", "message": "You are not authorized to perform this operation"},  # shared error schema
    404: {"id": "not_found", "message": "The resource you requested could not be found."},  # shared error schema
    408: {"id": "request_timeout", "message": "Request timed out."},  # unverified
    422: {"detail": [{"loc": ["body", "messages"], "msg": "Field required", "type": "missing"}]},  # seen
    429: {"id": "too_many_requests", "message": "API rate limit exceeded."},  # spec
    500: {"id": "server_error", "message": "Unexpected server-side error"},  # spec
}


class Ending(Enum):
    """How an answer ends before its time; what stands after it is promised and never sent."""

    CLOSE = "hang up in good order"
    RESET = "hang up with a TCP reset"
    HANG = "send nothing more until the client is gone"


CLOSE, RESET, HANG = Ending.CLOSE, Ending.RESET, Ending.HANG


@dataclass(frozen=True, slots=True)
class Pause:
    """Silence between two writes."""

    seconds: float


Part = bytes | Pause | Ending
Framing = Literal["length", "chunked", "close"]
"""How a client learns where the body ends: `Content-Length`, chunks (one a write), or the hang-up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gets: each `bytes` of `before` (the status line) and of `body` is a write of its own."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Sequence[Part] = b""
    before: Sequence[Part] = ()
    framing: Framing = "length"
    streamed: "Callable[[bool], Answer] | None" = None
    """Makes what a request with `stream: true` gets in place of this, given whether it wants the usage."""

    @property
    def content(self) -> bytes:
        """The body without its pauses and endings."""
        return b"".join(part for part in self._parts() if isinstance(part, bytes))

    def script(self) -> Iterator[Part]:
        """All that is sent, framing included."""
        framing = {
            "length": f"Content-Length: {len(self.content)}",
            "chunked": "Transfer-Encoding: chunked",
            "close": "Connection: close",
        }[self.framing]
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}", framing]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        yield from self.before
        yield "\r\n".join([*lines, "", ""]).encode("latin-1")
        if self.framing != "chunked":
            yield from self._parts()
            return
        match [b"%x\r\n%b\r\n" % (len(part), part) if isinstance(part, bytes) else part for part in self._parts()]:
            case [*chunks, bytes(last)]:
                # The end mark goes with the last piece: who leaves after [DONE] has abandoned nothing.
                yield from [*chunks, last + b"0\r\n\r\n"]
            case chunks:
                yield from [*chunks, b"0\r\n\r\n"]

    def _parts(self) -> list[Part]:
        return [part for part in ([self.body] if isinstance(self.body, bytes) else self.body) if part != b""]


@dataclass(slots=True)
class Request:
    """One request as it arrived; `headers` do not mind the case, `at` is the loop's time."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes
    at: float
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client went away before the answer was finished."""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class _Answers:
    """The answers of one endpoint, in order; the last one repeats."""

    def __init__(self, first: Answer) -> None:
        self._last = first
        self.waiting: deque[Answer] = deque()

    def take(self) -> Answer:
        if self.waiting:
            self._last = self.waiting.popleft()
        return self._last


class CopilotDouble:
    """The agent, and beside it the LoT verifier, on a port of its own; a `public` one demands no key.

    An async context manager; leaving it closes every connection and returns when nothing of it runs.
    A request without the key, or one the agent would not accept, is answered so and takes nothing from the queue.
    """

    def __init__(self, *, public: bool = False) -> None:
        self.key = secrets.token_hex(16)  # docs: a plain alphanumeric string
        self.url = ""
        self.requests: list[Request] = []
        """Every request to whatever path, answered or not."""
        self.connections = 0
        """How many TCP connections were opened."""
        self.health = as_json({"status": "ok"})  # seen
        self._public = public
        self._chat = _Answers(completion())
        self._verdicts = _Answers(as_json({"valid": True}))  # unverified
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.url = f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.sleep(0)  # who was accepted just now becomes a task
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # aborted transports close their sockets

    def answer(self, *answers: Answer) -> None:
        """Queue what the next requests for a completion get; the last one repeats."""
        self._chat.waiting.extend(answers)

    def verdict(self, *answers: Answer) -> None:
        """Queue what the next requests to the verifier get; the last one repeats."""
        self._verdicts.waiting.extend(answers)

    async def arrived(self, count: int = 1) -> Request:
        """Wait for the request with this number, counted from 1, be it answered or not."""
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while len(self.requests) < count:
                await asyncio.sleep(GAP_S)
        return self.requests[count - 1]

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        self.connections += 1
        try:
            # A client may go whenever it likes.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._converse(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients.discard(task)

    async def _converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer one request after the other, and notice in the midst of an answer that the client is gone."""
        first = await reader.read(1)
        while first:
            request = await _read(first, reader)
            self.requests.append(request)
            following = asyncio.create_task(reader.read(1))
            answering = asyncio.create_task(self._send(self._answer_to(request), request, writer))
            try:
                await asyncio.wait({following, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done() and (following.exception() or not following.result()):
                    request.abandoned.set()
                    return
                if not await answering:
                    return
                first = await following
            finally:
                following.cancel()
                answering.cancel()
                await asyncio.gather(following, answering, return_exceptions=True)

    def _answer_to(self, request: Request) -> Answer:
        match request.method, request.path:
            case "GET", "/health":
                return self.health
            case "POST", "/verify":
                return self._verdicts.take()
            case "POST", "/api/v1/chat/completions":
                if not self._public and request.headers["Authorization"] != f"Bearer {self.key}":
                    return failure(401)
                return _fault(request) or _as_asked(self._chat.take(), request.json)
            case _:
                return failure(404)

    async def _send(self, answer: Answer, request: Request, writer: StreamWriter) -> bool:
        """Send an answer and tell whether the connection goes on."""
        for part in answer.script():
            match part:
                case Pause():
                    await asyncio.sleep(part.seconds)
                case Ending.HANG:
                    await asyncio.Event().wait()
                case Ending.RESET:
                    at_once = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                    writer.transport.abort()
                    return False
                case Ending.CLOSE:
                    return False
                case bytes():
                    await asyncio.sleep(GAP_S)
                    try:
                        writer.write(part)  # asyncio has set TCP_NODELAY
                        await writer.drain()
                    except OSError:
                        request.abandoned.set()
                        raise
        return answer.framing != "close" and request.headers.get("Connection", "").lower() != "close"


async def _read(first: bytes, reader: StreamReader) -> Request:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, _, rest = head.partition("\r\n")
    method, target, _ = line.split(" ")
    headers = HeaderParser().parsestr(rest)
    assert "Transfer-Encoding" not in headers, "the double reads bodies with a Content-Length only"
    body = await reader.readexactly(int(headers.get("Content-Length", "0")))
    url = urlsplit(target)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    return Request(method, url.path, query, headers, body, asyncio.get_running_loop().time())


def _fault(request: Request) -> Answer | None:
    """What the agent does not accept of a request (shape: seen; words: unverified)."""
    messages = None
    with suppress(ValueError, TypeError, KeyError):
        messages = request.json["messages"]
    if not isinstance(messages, list) or not messages:
        return failure(422)
    for at, each in enumerate(messages):
        if not isinstance(each, dict) or each.get("role") not in ROLES or "content" not in each:
            fault = {"loc": ["body", "messages", at], "msg": "Input should be a valid message", "type": "value_error"}
            return failure(422, {"detail": [fault]})
    return None


def _as_asked(answer: Answer, body: Mapping[str, Any]) -> Answer:
    if not body.get("stream") or answer.streamed is None:
        return answer
    return answer.streamed(bool((body.get("stream_options") or {}).get("include_usage")))


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Answer with any JSON."""
    all_headers = {"Content-Type": "application/json", **_QUOTA, **(headers or {})}
    return Answer(status, all_headers, json.dumps(value, ensure_ascii=False).encode())


def completion(
    content: str | None = FENCED,
    finish_reason: str | None = "stop",
    message: Mapping[str, object] | None = None,
    usage: object = USAGE,
    **extra: object,
) -> Answer:
    """Answer as the agent does, with a stream to who asks for one (spec).

    Args:
        content: What it says; null and empty happen too.
        finish_reason: `stop`, `length`, `tool_calls` or `content_filter`.
        message: More fields of the message, such as `reasoning_content` and `refusal`.
        usage: Counts, or null; in a stream only for who wants them.
        extra: More fields of the answer, such as `retrieval`, `functions` and `guardrails`.
    """
    said = {"role": "assistant", "content": content, **(message or {})}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason, "logprobs": None}
    whole = as_json({**_IDENTITY, "object": "chat.completion", "choices": [choice], "usage": usage, **extra})
    text = content or ""
    step = len(text) // 8 + 1
    deltas: list[str | Mapping[str, object]] = [message] if message else []
    deltas += [text[at : at + step] for at in range(0, len(text), step)]

    def streamed(with_usage: bool) -> Answer:
        return stream(deltas, finish_reason, usage=usage if with_usage else None, last=extra)

    return replace(whole, streamed=streamed)


def refusal(content: str = REFUSAL) -> Answer:
    """Refuse as a guardrail does, with 200 (agent)."""
    return completion(content, guardrails=GUARDRAILS)


def stream(
    pieces: Iterable[str | Mapping[str, object] | Part] = (FENCED[:30], FENCED[30:]),
    finish_reason: str | None = "stop",
    *,
    usage: object = None,
    last: Mapping[str, object] | None = None,
    error: object = None,
    done: bool = True,
    comments: bool = False,
    newline: str = "\n",
    split: int | Sequence[int] | None = None,
) -> Answer:
    """Answer with server-sent events, each a write of its own (spec).

    Args:
        pieces: Content, or whole deltas; bytes are sent as they are, pauses and endings happen where they stand.
        finish_reason: That of the last chunk, which is left out without one.
        usage: Is sent with a chunk of its own, after the last one.
        last: More fields of the last chunk, such as `retrieval` (unverified that they come there).
        error: An event with this error comes after the pieces, in place of the last chunk.
        done: End with `[DONE]`.
        comments: Put comments, `event:` and `id:` lines before each event (SSE standard).
        newline: What ends a line.
        split: Cut the bytes anew, as `cut` does.
    """

    def event(value: object) -> bytes:
        data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        noise = [": ping", "", "event: message", "id: 7"] if comments else []
        return newline.join([*noise, f"data: {data}", "", ""]).encode()

    def chunk(*choices: object, **more: object) -> bytes:
        more = {"usage": None, **more} if usage else more
        return event({**_IDENTITY, "object": "chat.completion.chunk", "choices": choices, **more})

    def choice(delta: Mapping[str, object], reason: str | None = None) -> Mapping[str, object]:
        return {"index": 0, "delta": delta, "finish_reason": reason}

    parts: list[Part] = [chunk(choice({"role": "assistant", "content": ""}))]
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(chunk(choice({"content": piece})))
        else:
            parts.append(chunk(choice(piece)) if isinstance(piece, Mapping) else piece)
    if error is not None:
        parts.append(event({"error": error}))
    else:
        parts += [chunk(choice({}, finish_reason), **(last or {}))] if finish_reason else []
        parts += [chunk(usage=usage)] if usage else []
    parts += [event("[DONE]")] if done else []
    whole = Answer(200, {"Content-Type": "text/event-stream", **_QUOTA}, parts, framing="chunked")
    return whole if split is None else cut(whole, split)


def failure(
    status: int, body: object = None, *, retry_after: float | datetime | str | None = None, reset: int | None = None
) -> Answer:
    """Fail as the platform does, or with 502, 503 and 504 as its edge does: in HTML.

    Args:
        status: The status code.
        body: Another body than the usual one, such as `{"error": ..., "code": ...}` or one with a `request_id`.
        retry_after: Seconds, or an aware date, or any text.
        reset: The `ratelimit-reset`, in seconds since 1970.
    """
    when = format_datetime(retry_after, usegmt=True) if isinstance(retry_after, datetime) else retry_after
    headers = {} if when is None else {"Retry-After": str(when)}
    headers |= {} if reset is None else {"ratelimit-reset": str(reset), "ratelimit-remaining": "0"}
    if body is None and status not in _FAILURES:
        return Answer(status, {"Content-Type": "text/html", **headers}, _HTML)
    return as_json(_FAILURES[status] if body is None else body, status, headers)


def redirect(url: str, status: int = 307) -> Answer:
    """Send the client elsewhere, such as to another double (unverified that it happens)."""
    return Answer(status, {"Location": url})


def not_json(text: str = FENCED, content_type: str = "text/plain; charset=utf-8") -> Answer:
    """Answer with 200 and no JSON."""
    return Answer(200, {"Content-Type": content_type}, text.encode())


def gigantic(size: int, framing: Framing = "chunked") -> Answer:
    """Answer with `size` characters of content; only `length` warns the client."""
    return replace(cut(completion("x" * size), 1 << 16), framing=framing)


def mislabelled(answer: Answer, content_type: str = "text/html") -> Answer:
    """Give the answer a wrong Content-Type."""
    return _changed(answer, lambda each: replace(each, headers={**each.headers, "Content-Type": content_type}))


def preceded_by(*parts: Part, answer: Answer | None = None) -> Answer:
    """Let this happen before the status line: a hang-up, silence for ever, bytes that are no HTTP."""
    return _changed(answer or completion(), lambda each: replace(each, before=parts))


def slow(seconds: float, answer: Answer | None = None) -> Answer:
    """Send nothing, not even a status line, for so long."""
    return preceded_by(Pause(seconds), answer=answer)


def closed_midway(answer: Answer | None = None, after: int | None = None, how: Ending = CLOSE) -> Answer:
    """End in the middle of the body, or after so many bytes of it, though all of it is promised."""

    def close(each: Answer) -> Answer:
        at = len(each.content) // 2 if after is None else after
        return replace(each, body=[each.content[:at], how, each.content[at:]])

    return _changed(answer or completion(), close)


def cut(answer: Answer, sizes: int | Sequence[int]) -> Answer:
    """Write the body in pieces of one size, or in pieces of these sizes and a rest; its pauses are forgotten."""

    def recut(each: Answer) -> Answer:
        whole, at, body = each.content, 0, list[Part]()
        for size in [sizes] * (len(whole) // sizes) if isinstance(sizes, int) else sizes:
            body.append(whole[at : at + size])
            at += size
        return replace(each, body=[*body, whole[at:]])

    return _changed(answer, recut)


def _changed(answer: Answer, change: Callable[[Answer], Answer]) -> Answer:
    """Change an answer, and what it is as a stream likewise."""
    changed, streamed = change(answer), answer.streamed
    return changed if streamed is None else replace(changed, streamed=lambda usage: change(streamed(usage)))
