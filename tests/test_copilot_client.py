"""The client of the Copilot and of the verifier, against a real server on loopback that misbehaves as told."""

import asyncio
import io
import json
import logging
import math
import re
import socket
import ssl
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

import copilot_client
import sanitizer
from config import Config, CopilotConfig
from copilot_client import Answer, CopilotClient, Finding, Turn
from errors import ServiceError, ServiceSilentError
from sanitizer import MARKER
from tests.doubles import copilot
from tests.doubles.copilot import CLOSE, HANG, RESET, CopilotDouble, as_json, completion, failure, preceded_by, stream
from tests.wire import HOST

pytestmark = pytest.mark.anyio

Made = Callable[[], copilot.Answer]
FENCED, REFUSAL = copilot.FENCED, copilot.REFUSAL
QUESTION = [Turn("user", "Write an action.")]
PROXIES = [name for each in ("http", "https", "all", "no") for name in (f"{each}_proxy", f"{each}_proxy".upper())]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing waited for, and no proxies and authorities: to read those of the system takes long."""
    monkeypatch.setattr(copilot_client, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(copilot_client, "_JITTER_S", (0, 0))
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))
    for name in (*PROXIES, "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def double() -> AsyncIterator[CopilotDouble]:
    async with CopilotDouble() as double:
        yield double


@pytest.fixture
async def client(double: CopilotDouble) -> AsyncIterator[CopilotClient]:
    async with CopilotClient(config(double)) as client:
        yield client


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
def streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def config(double: CopilotDouble, **more: Any) -> CopilotConfig:
    """Read the settings as the server does, so that the key is known to be hidden."""
    address = {"COPILOT_URL": double.url, "LOT_VERIFIER_API_URL": f"{double.url}/verify"}
    given = Config.from_env({**address, "DO_AGENT_API_KEY": double.key}, env_file=None)
    return replace(given.copilot, **more)


async def ask(client: CopilotClient, streamed: bool = False, told: list[int] | None = None) -> Answer:
    async def progress(characters: int) -> None:
        if told is not None:
            told.append(characters)

    async with asyncio.timeout(10):
        return await client.ask(QUESTION, progress if streamed else None)


async def failed(client: CopilotClient, streamed: bool = False) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        await ask(client, streamed)
    return raised.value


@dataclass(frozen=True)
class Exchange:
    """A client and what it asks, with a stream or without."""

    double: CopilotDouble
    client: CopilotClient
    streamed: bool

    def answer(self, *answers: copilot.Answer) -> None:
        self.double.answer(*answers)

    async def ask(self) -> Answer:
        return await ask(self.client, self.streamed)

    async def failed(self, timeout_s: float = 10) -> ServiceError:
        async with CopilotClient(config(self.double, timeout_s=timeout_s)) as client:
            return await failed(client, self.streamed)


@pytest.fixture
def x(double: CopilotDouble, client: CopilotClient, streamed: bool) -> Exchange:
    return Exchange(double, client, streamed)


@asynccontextmanager
async def answered_by(handler: Callable[[httpx2.Request], httpx2.Response]) -> AsyncIterator[CopilotClient]:
    """Make a client without a network."""
    settings = CopilotConfig(url="http://127.0.0.1/chat", key=SecretStr("k"), verifier_url="http://127.0.0.1/verify")
    async with CopilotClient(settings) as client:
        client._http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler))  # noqa: SLF001
        yield client


# The request.


async def test_the_whole_conversation_is_sent(x: Exchange) -> None:
    async def progress(characters: int) -> None:
        pass

    turns = [Turn("user", "Wärme?"), Turn("assistant", "°C"), Turn("user", "Write it.")]
    await x.client.ask(turns, progress if x.streamed else None)

    (request,) = x.double.requests
    assert (request.method, request.path, request.query) == ("POST", copilot.CHAT, {"agent": "true"})
    assert request.headers["Authorization"] == f"Bearer {x.double.key}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.json == {
        "model": "n/a",
        "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
        "stream": x.streamed,
        "include_retrieval_info": True,
        "include_guardrails_info": True,
    } | ({"stream_options": {"include_usage": True}} if x.streamed else {})


async def test_a_connection_is_used_again(double: CopilotDouble, client: CopilotClient) -> None:
    double.answer(completion("one"), failure(401), failure(500), completion("two"))

    assert (await ask(client)).text == "one"
    await failed(client)
    assert (await ask(client)).text == "two"
    assert await client.health()
    assert await client.verify("DEFINE") == []
    assert (len(double.requests), double.connections) == (6, 1)


async def test_what_is_not_configured_is_told() -> None:
    async with CopilotClient(CopilotConfig()) as client:
        assert str(await failed(client)) == "There is no Copilot: set DO_AGENT_API_KEY and COPILOT_URL."
        assert client.missing == ["DO_AGENT_API_KEY", "COPILOT_URL"]
        assert not client.verifies
        assert not await client.health()
        with pytest.raises(ServiceError, match="set LOT_VERIFIER_API_URL"):
            await client.verify("DEFINE")


async def test_a_renewed_key_is_used_from_the_next_question_on(double: CopilotDouble, client: CopilotClient) -> None:
    double.key = "renewed"
    assert "DO_AGENT_API_KEY" in str(await failed(client))

    client.renew(CopilotConfig(url="http://127.0.0.1:9/elsewhere", key=SecretStr("renewed")))

    assert (await ask(client)).text == FENCED


# Failures.

ONCE = {
    301: "sends us to another address, where the key does not go: check its URL (HTTP 301)",
    400: "did not take the question (HTTP 400, 'Bad request')",
    401: "does not accept the key: check DO_AGENT_API_KEY (HTTP 401, 'Unable to authenticate you.')",
    403: "gives this key no access: check DO_AGENT_API_KEY and COPILOT_URL (HTTP 403, ",
    404: "is not at this address: check its URL (HTTP 404, ",
    413: "was asked more than it takes: ask for less (HTTP 413)",
    422: "did not take the question (HTTP 422, 'Field required')",
}
AGAIN = {
    408: "took too long (HTTP 408, 'Request timed out.')",
    429: "was asked too often, or its quota is used up (HTTP 429, 'API rate limit exceeded.')",
    500: "has trouble of its own: try again later (HTTP 500, 'Unexpected server-side error')",
    502: "has trouble of its own: try again later (HTTP 502)",
    503: "has trouble of its own: try again later (HTTP 503)",
    504: "has trouble of its own: try again later (HTTP 504)",
}


@pytest.mark.parametrize("status", [*ONCE, *AGAIN])
async def test_a_status_is_told_and_asked_again_where_that_is_sensible(x: Exchange, status: int) -> None:
    x.answer(failure(status))

    text = str(await x.failed())

    assert text.startswith(f"The Copilot {(ONCE | AGAIN)[status]}")
    assert len(x.double.requests) == (1 if status in ONCE else 3)


@pytest.mark.parametrize("passing", [failure(429), failure(503), preceded_by(CLOSE), preceded_by(RESET)])
async def test_a_failure_that_passes_is_not_noticed(x: Exchange, passing: copilot.Answer) -> None:
    x.answer(passing, passing, completion())

    assert (await x.ask()).text == FENCED


@pytest.mark.parametrize("before", [(CLOSE,), (RESET,), (b"SSH-2.0\r\n", CLOSE), (b"HTTP/1.1 200 OK\r\n", CLOSE)])
async def test_a_hang_up_before_the_answer_is_tried_three_times(x: Exchange, before: Sequence[copilot.Part]) -> None:
    x.answer(preceded_by(*before))

    error = await x.failed()

    assert isinstance(error, ServiceSilentError)
    assert "The Copilot at 127.0.0.1 cannot be reached" in str(error)
    assert len(x.double.requests) == 3


async def test_a_refused_connection_is_told(double: CopilotDouble) -> None:
    with socket.create_server((HOST, 0)) as taken:
        url = f"http://{HOST}:{taken.getsockname()[1]}"

    async with CopilotClient(replace(config(double), url=url)) as client:
        assert "Check the address, the network and the proxy." in str(await failed(client))
        assert not await client.health()


@pytest.mark.parametrize("kind", [httpx2.ConnectError, httpx2.ConnectTimeout])
async def test_a_connection_is_tried_three_times(kind: type[httpx2.RequestError]) -> None:
    tries = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        tries.append(request)
        raise kind("")

    async with answered_by(refuse) as client:
        text = str(await failed(client))

    reason = "no connection within 5 s" if kind is httpx2.ConnectTimeout else "ConnectError"
    assert f"The Copilot at 127.0.0.1 cannot be reached: {reason}." in text
    assert len(tries) == 3


@pytest.mark.parametrize("after", [1, None])
@pytest.mark.parametrize("how", [CLOSE, RESET])
async def test_an_answer_broken_off_is_not_asked_again(x: Exchange, how: copilot.Ending, after: int | None) -> None:
    x.answer(copilot.closed_midway(how=how, after=after), copilot.closed_midway(failure(500), how=how, after=after))

    for asked in (1, 2):
        error = await x.failed()

        assert str(error) == "The Copilot broke off in the middle of its answer: ask again."
        assert isinstance(error, ServiceSilentError)
        assert len(x.double.requests) == asked


@pytest.mark.parametrize("told", ["seconds", "date", "reset"])
async def test_a_service_is_left_alone_as_long_as_it_says(x: Exchange, told: str) -> None:
    until = math.ceil(time.time() + 0.2)
    wait = {
        "seconds": lambda: failure(429, retry_after=0.3, reset=until + 1000),
        "date": lambda: failure(503, retry_after=datetime.fromtimestamp(until, UTC)),
        "reset": lambda: failure(429, reset=until),
    }[told]()
    x.answer(wait, completion())
    started = time.time()

    assert (await x.ask()).text == FENCED

    assert time.time() >= (started + 0.3 if told == "seconds" else until)


FAR = 1_000_000


A_YEAR_S = 31_536_000


@pytest.mark.parametrize(
    ("limits", "wait_s"),
    [
        (lambda: failure(429, retry_after=FAR), FAR),
        (lambda: failure(503, retry_after=datetime.fromtimestamp(time.time() + FAR, UTC)), FAR),
        (lambda: failure(429, reset=int(time.time()) + FAR), FAR),
        (lambda: replace(failure(429), headers={"retry-after": "inf"}), A_YEAR_S),
        (lambda: replace(failure(429), headers={"ratelimit-reset": "inf", "ratelimit-remaining": "0"}), A_YEAR_S),
        (lambda: failure(429, retry_after=61), 61),
        (lambda: failure(429, retry_after=5), 5),  # longer than the whole question may take
    ],
)
async def test_a_wait_that_is_too_long_is_told_instead(x: Exchange, limits: Made, wait_s: int) -> None:
    x.answer(limits())

    text = str(await x.failed(timeout_s=3 if wait_s < 60 else 1000))

    assert text.startswith("The Copilot ")
    assert abs(int(text.removesuffix(" s.").rpartition(". Ask again in ")[2]) - wait_s) < 3
    assert len(x.double.requests) == 1


async def test_the_last_failure_is_told_when_no_time_is_left(x: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copilot_client, "FIRST_WAIT_S", 30)
    x.answer(failure(503))

    assert str(await x.failed(timeout_s=1)).endswith("(HTTP 503).")
    assert len(x.double.requests) == 1


NO_LIMITS = [
    {"retry-after": "soon"},
    {"retry-after": "-5"},
    {"retry-after": "nan"},
    {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"},
    {"retry-after": "Thu, 01 Jan 99999999999 00:00:00 GMT"},
    {"retry-after": "Thu, 01 Jan 2026 00:00:00 +99999999999999"},
    {"ratelimit-reset": "9999999999"},  # how much remains is not said
    {"ratelimit-reset": "9999999999", "ratelimit-remaining": "1"},
    {"ratelimit-reset": "never", "ratelimit-remaining": "0"},
    {"ratelimit-reset": "0", "ratelimit-remaining": "0"},
]


@pytest.mark.parametrize("headers", NO_LIMITS)
async def test_a_limit_that_says_nothing_is_passed_over(x: Exchange, headers: dict[str, str]) -> None:
    x.answer(replace(failure(429), headers=headers), completion())

    assert (await x.ask()).text == FENCED


SLOW = {
    "slow": copilot.slow(60),
    "nothing ever": preceded_by(HANG),
    "half a head": preceded_by(b"HTTP/1.1 200 OK\r\n", HANG),
    "half a body": copilot.closed_midway(how=HANG),
    "half an error": copilot.closed_midway(failure(500), how=HANG),
    "a stream that drips": stream([piece for _ in range(2000) for piece in ("a", copilot.Pause(0.05))]),
    "failures that take their time": copilot.slow(0.15, failure(500)),
}


@pytest.mark.parametrize("case", SLOW)
async def test_the_whole_question_has_one_timeout(x: Exchange, case: str) -> None:
    x.answer(SLOW[case])
    started = time.monotonic()

    error = await x.failed(timeout_s=0.25)

    assert time.monotonic() - started < 2
    assert isinstance(error, ServiceSilentError)
    assert str(error).startswith("The Copilot did not answer within 0.25 s.")
    await asyncio.wait_for(x.double.requests[-1].abandoned.wait(), 5)


@pytest.mark.parametrize("case", [case for case in SLOW if not case.startswith("failures")])
async def test_cancelling_stops_the_request(x: Exchange, case: str) -> None:
    x.answer(SLOW[case], completion())
    asking = asyncio.create_task(x.ask())
    request = await x.double.arrived()

    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(request.abandoned.wait(), 5)
    assert len(x.double.requests) == 1
    assert (await x.ask()).text == FENCED


# What does not get through.


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that is logged, by every library, through a handler as `logs` sets it up."""
    handler, root = logging.StreamHandler(io.StringIO()), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    sanitizer.protect_handler(handler)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.stream
    root.removeHandler(handler)
    root.setLevel(level)


def echoes(key: str) -> dict[str, copilot.Answer]:
    header = f"Bearer {key}"
    return {
        "message": failure(500, {"message": f"no such key: {key}"}),
        "error": failure(401, {"error": {"message": header, "code": key}}),
        "detail": failure(422, {"detail": [{"loc": [key], "msg": header, "type": key}]}),
        "text": replace(copilot.not_json(header), status=400),
        "HTML": replace(copilot.not_json(f"<p>{key}"), status=403),
        "headers": replace(completion(finish_reason=key), headers={"X-Echo": header}),
        "a redirect": copilot.redirect(f"http://a.example/?key={key}"),
        "no HTTP": preceded_by(f"HTTP/1.1 {header}\r\n\r\n".encode(), CLOSE),
        "a header that is none": preceded_by(f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n".encode(), CLOSE),
        "a stream": stream(["a"], error={"message": header}),
        "another shape": as_json({key: key}),
        "a reason to end": completion("", finish_reason=key),
        "a broken body": copilot.closed_midway(copilot.not_json(header)),
    }


@pytest.mark.parametrize("case", echoes(""))
async def test_the_key_appears_nowhere(x: Exchange, case: str, log: io.StringIO) -> None:
    x.answer(echoes(x.double.key)[case])
    said = repr(x.client) + str(vars(x.client))
    try:
        said += repr(replace(await x.ask(), text=""))
    except ServiceError as exc:
        said += f"{exc!r} {exc}"
        logging.getLogger("any").exception("it failed")
    logging.getLogger("any").debug("%r %s", x.client, x.client)

    assert "httpcore2.http11 send_request_headers.started" in log.getvalue()
    assert [text for text in (said, log.getvalue()) if x.double.key in text] == []


HTML = "<!DOCTYPE html><html><body>Bad gateway at edge-7</body></html>"
PAGES = {
    "a page": replace(copilot.not_json(HTML, "text/html"), status=502),
    "a page that calls itself JSON": replace(copilot.not_json(f"\r\n {HTML}", "application/json"), status=500),
    "a page with a mark in front": replace(copilot.not_json(f"\ufeff{HTML}"), status=400),
    "a page in JSON": failure(500, {"message": HTML}),
    "a page in a list": failure(422, {"detail": [{"msg": HTML}]}),
    "a page in an object": failure(500, {"error": {"message": HTML}}),
    "a page with 200": copilot.not_json(HTML, "text/html"),
    "a page in a stream": stream(["a"], error={"message": HTML}),
}


@pytest.mark.parametrize("case", PAGES)
async def test_a_page_is_never_quoted(double: CopilotDouble, client: CopilotClient, case: str) -> None:
    double.answer(PAGES[case])

    text = str(await failed(client, streamed=True))

    assert "<" not in text
    assert "edge-7" not in text


SECRET = "dop_v1_" + "3fa92c7be105" * 5 + "abcd"
NOTHING: list[object] = [None, True, 5, "", [], {}, [["a"]], {"message": None}]
BODIES: dict[str, tuple[object, str]] = {
    "message": ({"id": "x", "message": "why", "request_id": "1"}, "'why'"),
    "error": ({"error": "why", "code": 7}, "'why'"),
    "an object": ({"error": {"message": "why", "type": "t"}}, "'why'"),
    "detail": ({"detail": "why"}, "'why'"),
    "a list": ({"detail": [{"msg": "one"}, {"msg": "two"}, "three"]}, "'one; two'"),
    "lines": ({"message": "a\n\tb"}, "'a b'"),
    "a long one": ({"message": "word " * 1000}, repr("word " * 40 + "…")),
    "a secret": ({"message": f"the key {SECRET} is old"}, f"'the key {MARKER} is old'"),
    "a secret at the end": ({"message": "x" * 190 + f" {SECRET}"}, repr(("x" * 190 + f" {MARKER}")[:200] + "…")),
    **{f"{value!r}, which says nothing": (value, "") for value in NOTHING},
    **{f"{value!r} as the message": ({"message": value}, "") for value in NOTHING},
}


@pytest.mark.parametrize("case", BODIES)
async def test_an_error_is_quoted_in_short_without_secrets(
    double: CopilotDouble, client: CopilotClient, case: str
) -> None:
    body, quoted = BODIES[case]
    double.answer(as_json(body, 400))

    text = str(await failed(client))

    assert text == f"The Copilot did not take the question (HTTP 400{', ' if quoted else ''}{quoted})."


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_giant_is_not_read_to_the_end(
    x: Exchange, framing: copilot.Framing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copilot_client, "LARGEST_ANSWER", 1 << 16)
    giant = copilot.gigantic(1 << 24, framing)
    many_events = replace(copilot.cut(stream(["x" * 1000] * (1 << 14)), 1 << 16), framing=framing)
    x.answer(giant, replace(giant, status=500, streamed=None), many_events)

    for _ in range(3 if x.streamed else 2):
        assert "more than 65536 bytes" in str(await failed(x.client, x.streamed))
        await asyncio.wait_for(x.double.requests[-1].abandoned.wait(), 5)
    x.double.health = giant
    assert not await x.client.health()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(x: Exchange, status: int) -> None:
    async with CopilotDouble() as other:
        x.answer(copilot.redirect(other.url + copilot.CHAT, status))

        assert "another address, where the key does not go" in str(await x.failed())
        assert other.requests == []
    for nowhere in ("http://[x", "http://", "\x7f", "http://a:b/", ""):
        x.answer(copilot.redirect(nowhere, status))
        # Before 2.16.2 the library looks at the address although it is not to be followed.
        assert re.search(f"HTTP {status}|location header", str(await x.failed()))


# Answers.


@pytest.mark.parametrize("content", [FENCED, copilot.SEVERAL, copilot.UNFENCED, copilot.INVALID, " \ud83d\ude00a "])
async def test_an_answer_is_the_same_as_a_stream(double: CopilotDouble, client: CopilotClient, content: str) -> None:
    content = content.encode("utf-16", "surrogatepass").decode("utf-16")
    double.answer(completion(content, retrieval=copilot.RETRIEVAL, functions=copilot.FUNCTIONS, guardrails=None))

    whole, streamed = await ask(client), await ask(client, streamed=True)

    assert whole == streamed == Answer(content.strip(), "stop", tuple(copilot.RETRIEVAL["retrieved_data"]))


@pytest.mark.parametrize("retrieval", [None, {}, {"retrieved_data": None}, {"retrieved_data": ["a"]}, [], "a"])
async def test_no_sources_are_no_sources(x: Exchange, retrieval: object) -> None:
    x.answer(completion(usage=None, retrieval=retrieval))

    assert (await x.ask()).sources == ()


NO_ANSWERS = {name: as_json(shape) for name, shape in copilot.OTHER_SHAPES.items()} | {
    f"{name} as an event": stream([f"data: {json.dumps(shape)}\n\n".encode()])
    for name, shape in copilot.OTHER_SHAPES.items()
}
NO_ANSWERS |= {
    repr(text): copilot.not_json(text, "application/json")
    for text in ("", " \n", HTML, f"\ufeff\n{HTML}", "<think>hm</think>")
}
NO_ANSWERS["no words"] = completion(None, guardrails={"triggered_guardrails": [{"message": None, "rule_name": None}]})


@pytest.mark.parametrize("case", NO_ANSWERS)
async def test_what_is_no_answer_is_an_error(double: CopilotDouble, client: CopilotClient, case: str) -> None:
    double.answer(NO_ANSWERS[case])

    text = str(await failed(client, streamed=True))

    assert re.match("The Copilot (answered in a form|gave an empty answer|answered with something that is no)", text)
    assert "<" not in text


THOUGHTS = {
    copilot.THINKING: FENCED,
    "<think>a</think>\n\nb": "b",
    "<THINK>a\n</Think>b": "b",
    "<thinking>a</thinking>b": "b",
    "<think>a</think><think>b</think>c": "c",
    "a\n</think>\nb": "b",
    "a</THINKING>b": "b",
    "b\n<THINK>a": "b",
    "a < b, <thinker> and <b>": "a < b, <thinker> and <b>",
}


@pytest.mark.parametrize("content", THOUGHTS)
async def test_thinking_is_left_out(x: Exchange, content: str) -> None:
    x.answer(completion(content, message={"reasoning_content": "hm"}), stream(content))

    for _ in range(2 if x.streamed else 1):
        assert (await x.ask()).text == THOUGHTS[content]


@pytest.mark.parametrize("content", [None, "", " \n", "<think>a</think>", "<think>a"])
@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", None])
async def test_an_empty_answer_is_an_error(x: Exchange, content: str | None, reason: str | None) -> None:
    x.answer(completion(content, reason))

    text = str(await x.failed())

    assert text.startswith(f"The Copilot gave an empty answer (finish_reason {reason}).")
    assert ("Its thinking took all the room" in text) == (reason == "length")


UNREAD = copilot.KNOWLEDGE_TIMEOUT
NOT_WHOLE = "The answer was cut off at the Copilot's length limit: it is not complete."
NO_KNOWLEDGE = "The Copilot could not look into its knowledge base: it may be guessing."
REFUSED = "The Copilot refused to answer this."
GUARDED = "A guardrail of the Copilot was triggered: 'Jailbreak'."
GUARDS = copilot.GUARDRAILS
NOTES: dict[str, tuple[copilot.Answer, Answer]] = {
    "a guardrail": (copilot.refusal(), Answer(REFUSAL, "stop", (), (GUARDED,), refused=True)),
    "its own words": (completion(None, guardrails=GUARDS), Answer(REFUSAL, "stop", (), (GUARDED,), refused=True)),
    "a refusal": (completion(None, message={"refusal": "No."}), Answer("No.", "stop", (), (REFUSED,), refused=True)),
    "a filter": (completion("No.", "content_filter"), Answer("No.", "content_filter", (), (REFUSED,), refused=True)),
    "no guardrail": (completion("a", guardrails={"triggered_guardrails": []}), Answer("a", "stop")),
    "cut off": (completion("a", "length"), Answer("a", "length", (), (NOT_WHOLE,))),
    "no knowledge": (completion(UNREAD), Answer(UNREAD, "stop", (), (NO_KNOWLEDGE,))),
}


@pytest.mark.parametrize("case", NOTES)
async def test_what_is_to_be_known_about_an_answer_is_told(x: Exchange, case: str) -> None:
    said, answer = NOTES[case]
    x.answer(said)

    assert await x.ask() == answer


@pytest.mark.parametrize("before", ["", "<think>hm</think>\n"])
async def test_plain_text_is_an_answer_with_a_note(x: Exchange, before: str) -> None:
    x.answer(copilot.not_json(f"{before}{FENCED}\n"))

    answer = await x.ask()

    assert answer == Answer(FENCED, notes=("This is not the form of an answer: it is shown as plain text.",))


async def test_a_wrong_label_does_not_matter(double: CopilotDouble, client: CopilotClient) -> None:
    label = "Text/Event-Stream; charset=latin-1"
    double.answer(copilot.mislabelled(completion()), copilot.mislabelled(stream(), label))

    assert (await ask(client)).text == (await ask(client, streamed=True)).text == FENCED


# Streams.

STREAMS = {
    "comments": stream(comments=True),
    "CRLF": stream(comments=True, newline="\r\n"),
    "CR": stream(newline="\r"),
    "byte by byte": stream(comments=True, split=1),
    "usage": stream(usage=copilot.USAGE, last={"functions": copilot.FUNCTIONS}),
    "no [DONE]": stream(done=False),
    "no finish_reason": stream(finish_reason=None),
    "events without data": stream([b"event: ping\n\n", FENCED, b"id: 7\n\nretry: 3000\n\nevent: end\nid: 8\n\n"]),
    "other deltas": stream([{"content": None}, {"tool_calls": []}, FENCED, {"reasoning_content": "hm"}]),
    "whatever follows": stream([FENCED, b"data: [DONE]\n\ndata: no JSON\n\n"]),
}


@pytest.mark.parametrize("case", STREAMS)
async def test_every_kind_of_stream_is_read(double: CopilotDouble, client: CopilotClient, case: str) -> None:
    double.answer(STREAMS[case])

    answer = await ask(client, streamed=True)

    assert answer.text == FENCED
    assert answer.finish_reason == (None if case in ("no finish_reason", "whatever follows") else "stop")


async def test_one_event_may_hold_a_large_answer(double: CopilotDouble, client: CopilotClient) -> None:
    double.answer(stream(["x" * (3 << 19)]))

    assert len((await ask(client, streamed=True)).text) == 3 << 19


BROKEN = {
    "nothing": (stream([], None, done=False), "broke off in the middle of its answer: ask again."),
    "no end": (stream(finish_reason=None, done=False), "broke off in the middle of its answer: ask again."),
    "no blank line": (stream([b"data: [DONE]"], None, done=False), "broke off in the middle"),
    "no JSON": (stream(["a", b"data: {\n\n"]), "answered in a form that is not known."),
    "an error": (stream(["a"], error={"message": "why"}), "failed while it wrote its answer: 'why'."),
    "an error as text": (stream(["a"], error="why"), "failed while it wrote its answer: 'why'."),
    "an error without words": (stream(["a"], error={"code": 5}), "failed while it wrote its answer."),
    "a failed retrieval": (stream([], error=copilot.KNOWLEDGE_TIMEOUT), copilot.KNOWLEDGE_TIMEOUT),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_stream_is_told(double: CopilotDouble, client: CopilotClient, case: str) -> None:
    double.answer(BROKEN[case][0])

    text = str(await failed(client, streamed=True))

    assert text.startswith("The Copilot ")
    assert BROKEN[case][1] in text
    assert len(double.requests) == 1


async def test_progress_is_how_much_there_is(double: CopilotDouble, client: CopilotClient) -> None:
    told: list[int] = []
    double.answer(stream(FENCED, comments=True, usage=copilot.USAGE))

    await ask(client, streamed=True, told=told)

    assert told == sorted(told)
    assert set(told) == set(range(len(FENCED) + 1))


async def read_in(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def outcome(answer: copilot.Answer, pieces: Sequence[bytes] = (), *, streamed: bool = False) -> Answer | str:
    """Get an answer without a network, in these pieces, or why there is none."""

    async def get() -> Answer | str:
        body = read_in(pieces or [answer.content])
        response = httpx2.Response(answer.status, headers=dict(answer.headers), content=body)
        async with answered_by(lambda _: response) as client:
            try:
                return await ask(client, streamed)
            except ServiceError as exc:
                return str(exc)

    return asyncio.run(get())


WORDS = st.lists(st.sampled_from(["ö", "😀", "\r\n", "\u2028", "\ufeff", "<think>", "</THINK>", "data: ", "a", " "]))


@settings(deadline=None)
@given(
    content=WORDS.map("".join) | st.text(),
    reason=st.sampled_from(["stop", "length", "content_filter"]),
    extra=st.sampled_from([{}, {"retrieval": copilot.RETRIEVAL}, {"guardrails": copilot.GUARDRAILS}]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    data=st.data(),
)
def test_however_a_stream_is_split_it_is_the_same_answer(
    content: str, reason: str, extra: dict[str, Any], newline: str, data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(content)))) | {0, len(content)})
    texts = [content[start:end] for start, end in pairwise(ends)]
    events = stream(texts, reason, last=extra, usage=copilot.USAGE, comments=data.draw(st.booleans()), newline=newline)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events.content)), max_size=60)) | {0, len(events.content)})
    pieces = [events.content[start:end] for start, end in pairwise(cuts)]

    assert outcome(events, pieces, streamed=True) == outcome(completion(content, reason, **extra))


KEYS = "choices message content delta refusal finish_reason guardrails triggered_guardrails retrieval error detail"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=4),
    max_leaves=20,
)
CHOICES = st.builds(lambda choice, more: more | {"choices": [choice]}, JSON, st.dictionaries(st.text(), JSON))


@settings(deadline=None)
@given(
    status=st.sampled_from([200, 200, 200, 400, 401, 422, 500]),
    label=st.sampled_from(["text/event-stream", "application/json", "text/html; charset=x", "text/event-stream2"]),
    body=st.binary() | (JSON | CHOICES).map(lambda value: json.dumps(value).encode()),
    before=st.sampled_from([b"", b"data: ", b"data: " + b"[" * 5000, b"[" * 5000, b"data: [DONE]\n\n"]),
    streamed=st.booleans(),
)
def test_whatever_comes_is_an_answer_or_a_failure_that_was_foreseen(
    status: int, label: str, body: bytes, before: bytes, streamed: bool
) -> None:
    headers = {"Content-Type": label, "Retry-After": "1000"}

    assert outcome(copilot.Answer(status, headers, before + body + b"\n\n"), streamed=streamed)


# The verifier.

PARSED = "Parse error at (3, 14): unexpected THEN"
VERDICTS: dict[str, tuple[copilot.Answer, list[Finding]]] = {
    "valid": (as_json({"valid": True, "message": "fine"}), []),
    "text": (copilot.not_json("OK"), []),
    "no object": (as_json(["fine"]), []),
    "bad syntax": (as_json({"message": PARSED}, 400), [Finding("error", 3, 14, PARSED)]),
    "bad syntax as text": (replace(copilot.not_json(PARSED), status=400), [Finding("error", 3, 14, PARSED)]),
    "bad syntax as a string": (as_json(PARSED, 400), [Finding("error", 3, 14, PARSED)]),
    "bad syntax without a word": (as_json({}, 400), [Finding("error", 0, 0, "The verifier refuses it.")]),
    "bad syntax and nothing": (
        replace(copilot.not_json(""), status=400),
        [Finding("error", 0, 0, "The verifier refuses it.")],
    ),
    "not valid": (as_json({"valid": False, "error": "why"}), [Finding("error", 0, 0, "why")]),
    "no success": (as_json({"success": False}), [Finding("error", 0, 0, "The verifier refuses it.")]),
    "a long one": (as_json({"message": "x" * 999}, 400), [Finding("error", 0, 0, "x" * 200 + "…")]),
    "a list": (
        as_json({"valid": False, "errors": [{"line": 2, "column": 5, "message": "a"}, PARSED, {"line": "x"}]}),
        [Finding("error", 2, 5, "a"), Finding("error", 3, 14, PARSED), Finding("error", 0, 0, "")],
    ),
    "warnings": (
        as_json({"valid": True, "warnings": ["a"], "problems": [{"message": "b", "severity": "WARNING"}]}),
        [Finding("warning", 0, 0, "b"), Finding("warning", 0, 0, "a")],
    ),
    "warnings and no reason": (
        as_json({"valid": False, "message": "why", "warnings": ["a"]}),
        [Finding("error", 0, 0, "why"), Finding("warning", 0, 0, "a")],
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
async def test_every_verdict_is_understood(double: CopilotDouble, client: CopilotClient, case: str) -> None:
    double.verdict(VERDICTS[case][0])

    assert await client.verify("DEFINE ACTION Öfen") == VERDICTS[case][1]

    (request,) = double.requests
    assert request.json == {"code": "DEFINE ACTION Öfen", "filename": "snippet.lot"}
    assert "Authorization" not in request.headers


UNUSABLE = {
    "down": (failure(503), 3, "has trouble of its own"),
    "gone": (failure(404), 1, "is not at this address: check its URL"),
    "hung up": (preceded_by(CLOSE), 3, "cannot be reached"),
    "slow": (copilot.slow(60), 1, "did not answer within 0.25 s"),
    "a page": (copilot.not_json(HTML, "text/html"), 1, "answered with something that is no answer"),
    "a page with 400": (replace(copilot.not_json(HTML), status=400), 1, "answered with something that is no answer"),
    "a giant": (copilot.gigantic(1 << 22), 1, "was not read to the end"),
}


@pytest.mark.parametrize("case", UNUSABLE)
async def test_a_verifier_that_is_no_help_is_an_error(
    double: CopilotDouble, client: CopilotClient, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copilot_client, "VERIFIER_TIMEOUT_S", 0.25 if case == "slow" else 10)
    verdict, attempts, text = UNUSABLE[case]
    double.verdict(verdict)

    with pytest.raises(ServiceError) as raised:
        await client.verify("DEFINE")

    assert text in str(raised.value)
    assert "<" not in str(raised.value)
    assert len(double.requests) == attempts


# Health.


@pytest.mark.parametrize(
    ("health", "up"),
    [
        (as_json({"status": "ok"}), True),
        (failure(500), False),
        (copilot.redirect("/up"), False),
        (copilot.slow(60), False),
        (preceded_by(RESET), False),
    ],
)
async def test_health_asks_nothing_and_shows_no_key(
    double: CopilotDouble, client: CopilotClient, health: copilot.Answer, up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copilot_client, "HEALTH_TIMEOUT_S", 0.25)
    double.health = health

    assert await client.health() is up

    (request,) = double.requests
    assert (request.method, request.path, request.query) == ("GET", "/health", {})
    assert double.key not in str(request.headers)


# The environment.


async def test_proxies_of_the_environment_are_used(double: CopilotDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", double.url)
    monkeypatch.setenv("NO_PROXY", f"plant.example,{HOST}")

    async with CopilotClient(config(double, url=f"http://copilot.example{copilot.CHAT}")) as client:
        assert (await ask(client)).text == FENCED
        assert await client.health()
    async with CopilotClient(config(double)) as client:
        assert (await ask(client)).text == FENCED

    hosts = [request.headers["Host"] for request in double.requests]
    assert hosts == ["copilot.example", "copilot.example", double.url.removeprefix("http://")]


@pytest.mark.parametrize("trusted", [True, False])
async def test_authorities_of_the_environment_are_trusted(
    double: CopilotDouble, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(HOST).configure_cert(context)
    (ca if trusted else trustme.CA()).cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(part for part in completion().script() if isinstance(part, bytes))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0, ssl=context) as server:
        url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}/"
        async with CopilotClient(config(double, url=url)) as client:
            if trusted:
                assert (await ask(client)).text == FENCED
            else:
                assert "CERTIFICATE_VERIFY_FAILED" in str(await failed(client))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "gopher://operator:hunter2@proxy.example"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", __file__),
    ],
)
async def test_an_environment_that_cannot_be_used_is_told(
    double: CopilotDouble, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    async with CopilotClient(config(double)) as client:
        text = str(await failed(client))
        assert not await client.health()

    assert "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR" in text
    assert "hunter2" not in text
    assert double.requests == []
