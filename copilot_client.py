"""The Coreflux Copilot, and the LoT verifier beside it, over HTTP. Knows no MCP; nobody else knows the HTTP library.

The Copilot is a hosted agent. Facts are from the reference of its API: what that calls the OpenAI-compatible core is
relied on, every other field is read where it is there. What it says is untrusted text.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar, get_args
from urllib.parse import urlsplit, urlunsplit

import httpx2

from config import CopilotConfig
from errors import ServiceError, ServiceSilentError
from sanitizer import shortened

LARGEST_ANSWER: Final = 1 << 21
"""Bytes; a hundred times what an agent writes."""

CONNECT_TIMEOUT_S: Final = 5.0
HEALTH_TIMEOUT_S: Final = 5.0
VERIFIER_TIMEOUT_S: Final = 15.0
ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 60.0
"""The platform's own advice: begin with 500 ms, wait no longer than 60 s, 250 to 500 ms of jitter."""

_A_YEAR_S: Final = 31_536_000.0
_JITTER_S: Final = (0.25, 0.5)
_AGAIN: Final = {408, 429, 500, 502, 503, 504}
_WORDS: Final = 200
"""Characters of a service's own words that an error quotes."""
_THINKING: Final = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THINKING: Final = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_MOST_TOKENS: Final = 1 << 24
"""A single answer that says it took more is not believed."""
_KNOWLEDGE_FAILED: Final = "failed to retrieve data from knowledge base"

T = TypeVar("T")
CallOutcome = Literal["ok", "refused", "error", "silent", "cancelled", "failed"]
"""How a question ended: answered; it did not want to; an answer of no use; none in time; given up; a bug of ours."""
Progress = Callable[[int], Awaitable[None]]
"""Told how many characters there are by now."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Copilot said.

    Attributes:
        text: Its words, without its thinking.
        finish_reason: Why it ended: `stop`; `length` when it was cut off; `content_filter`; or what else it said.
        sources: The documents it looked at, as it describes them.
        notes: What is to be known about the answer, in sentences.
        refused: It did not want to, or a guardrail of it did not.
    """

    text: str
    finish_reason: str | None = None
    sources: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the verifier has against a program; line and column are 0 where it does not say."""

    severity: Literal["error", "warning"]
    line: int
    column: int
    message: str


class CopilotClient:
    """The Copilot, and the verifier where there is one. An async context manager that closes the connections."""

    def __init__(self, config: CopilotConfig) -> None:
        self._config = config
        self._http: httpx2.AsyncClient | None = None
        self.calls: dict[str, int] = dict.fromkeys(get_args(CallOutcome), 0)
        """How many questions ended how, however often each was sent."""
        self.tokens = {"prompt": 0, "completion": 0}
        """How many they took, as far as the service says."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http:
            await self._http.aclose()

    @property
    def missing(self) -> list[str]:
        """The settings without which nothing can be asked."""
        return self._config.missing

    @property
    def verifies(self) -> bool:
        """Whether there is a verifier."""
        return self._config.verifier_url is not None

    def renew(self, config: CopilotConfig) -> None:
        """Use the key of `config` from the next question on."""
        self._config = replace(self._config, key=config.key)

    async def ask(self, conversation: Sequence[Turn], progress: Progress | None = None) -> Answer:
        """Have the last message of a conversation answered.

        Args:
            conversation: The whole of it; the service remembers nothing.
            progress: Told while the answer is written, which then comes as a stream. The answer is the same.

        Raises:
            ServiceSilentError: There was no answer, or not all of it, in time.
            ServiceError: It answered, and that is of no use: refused, busy, broken or not understood.
        """
        config = self._config
        if config.url is None or config.key is None:
            raise ServiceError(f"There is no Copilot: set {' and '.join(config.missing)}.")
        body: dict[str, Any] = {
            "model": "n/a",
            "messages": [turn._asdict() for turn in conversation],
            "stream": progress is not None,
            "include_retrieval_info": True,
            "include_guardrails_info": True,
        }
        if progress:
            body["stream_options"] = {"include_usage": True}

        async def read(response: httpx2.Response) -> Answer:
            if progress and _is_stream(response):
                whole = await _read_stream(response, progress)
                self._count_tokens(whole)
                return _answer(whole)
            text = (await _read_all(response)).decode(errors="replace")
            try:
                value = json.loads(text)
                self._count_tokens(value)
                return _answer(value)
            except (ValueError, RecursionError):
                text = without_thinking(text)
                if not text or _is_page(text):
                    raise ServiceError("The Copilot answered with something that is no answer.") from None
                return Answer(text, notes=("This is not the form of an answer: it is shown as plain text.",))

        headers = {"Authorization": f"Bearer {config.key.get_secret_value()}"}
        outcome: CallOutcome = "failed"
        try:
            answer = await self._post("The Copilot", config.url, body, headers, config.timeout_s, read)
            outcome = "refused" if answer.refused else "ok"
        except ServiceError as exc:
            outcome = "silent" if isinstance(exc, ServiceSilentError) else "error"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.calls[outcome] += 1
        return answer

    def _count_tokens(self, value: object) -> None:
        usage = value.get("usage") if isinstance(value, dict) else None
        if isinstance(usage, dict):
            for kind in self.tokens:
                count = _number(usage.get(f"{kind}_tokens"), 0)
                self.tokens[kind] += count if count <= _MOST_TOKENS else 0

    async def verify(self, code: str) -> list[Finding]:
        """Have the verifier check a program.

        Raises:
            ServiceSilentError, ServiceError: As for `ask`.
        """
        if self._config.verifier_url is None:
            raise ServiceError("There is no verifier: set LOT_VERIFIER_API_URL.")
        body = {"code": code, "filename": "snippet.lot"}

        async def read(response: httpx2.Response) -> list[Finding]:
            return _findings(await _read_all(response), refused=response.status_code == httpx2.codes.BAD_REQUEST)

        return await self._post(
            "The LoT verifier", self._config.verifier_url, body, {}, VERIFIER_TIMEOUT_S, read, answers=(200, 400)
        )

    async def health(self) -> bool:
        """Say whether the Copilot's host is up. No question is asked, and the key is not sent."""
        if self._config.url is None:
            return False
        scheme, host, *_ = urlsplit(self._config.url)
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                async with self._client().stream("GET", urlunsplit((scheme, host, "/health", "", ""))) as response:
                    await _read_all(response)
                    return response.status_code == httpx2.codes.OK
        except (httpx2.HTTPError, ServiceError, TimeoutError):
            return False

    # HTTP.

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:  # proxies and authorities are those of the environment, as with every such client
            try:
                self._http = httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S))
            except (ImportError, OSError, ValueError):  # a proxy has a password: its text is not quoted
                raise ServiceError(
                    "The environment's proxy or authorities cannot be used: "
                    "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR."
                ) from None
        return self._http

    async def _post(
        self,
        service: str,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        timeout_s: float,
        read: Callable[[httpx2.Response], Awaitable[T]],
        answers: Sequence[int] = (200,),
    ) -> T:
        """Post until there is an answer, as often as is sensible."""
        request = self._client().build_request("POST", url, json=body, headers=headers)
        attempt = 0
        try:
            async with asyncio.timeout(timeout_s) as whole:
                while True:
                    attempt += 1
                    try:
                        return await self._post_once(service, request, read, answers)
                    except _PassingError as exc:
                        wait_s = max(exc.wait_s, FIRST_WAIT_S * 2 ** (attempt - 1) + random.uniform(*_JITTER_S))  # noqa: S311
                        too_late = asyncio.get_running_loop().time() + wait_s > (whole.when() or 0)
                        if wait_s > LONGEST_WAIT_S or (too_late and exc.wait_s):
                            raise type(exc.failure)(f"{exc.failure} Ask again in {wait_s:.0f} s.") from None
                        if attempt == ATTEMPTS or too_late:
                            raise exc.failure from None
                    await asyncio.sleep(wait_s)
        except TimeoutError:
            raise ServiceSilentError(
                f"{service} did not answer within {timeout_s:g} s. It may be busy: ask again, or ask for less."
            ) from None

    async def _post_once(
        self,
        service: str,
        request: httpx2.Request,
        read: Callable[[httpx2.Response], Awaitable[T]],
        answers: Sequence[int],
    ) -> T:
        try:
            response = await self._client().send(request, stream=True)
        except httpx2.RequestError as exc:
            raise _PassingError(ServiceSilentError(_unreachable(service, request.url.host, exc))) from exc
        try:
            if response.status_code in answers:
                return await read(response)
            failure = ServiceError(_refusal(service, response.status_code, await _read_all(response)))
        except httpx2.RequestError as exc:  # it has cost what it cost: nobody asks again unasked
            raise ServiceSilentError(f"{service} broke off in the middle of its answer: ask again.") from exc
        finally:
            await response.aclose()
        if response.status_code in _AGAIN:
            raise _PassingError(failure, _told_to_wait(response.headers))
        raise failure


class _PassingError(Exception):
    """A failure that may be over soon."""

    def __init__(self, failure: ServiceError, wait_s: float = 0.0) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.wait_s = wait_s
        """How long the service wants to be left alone; 0 when it does not say."""


def _unreachable(service: str, host: str, exc: httpx2.RequestError) -> str:
    reason = str(exc) or type(exc).__name__
    if isinstance(exc, httpx2.ConnectTimeout):
        reason = f"no connection within {CONNECT_TIMEOUT_S:g} s"
    reason = shortened(reason, _WORDS)
    return f"{service} at {host} cannot be reached: {reason}. Check the address, the network and the proxy."


_REFUSALS: Final = {
    401: "does not accept the key: check DO_AGENT_API_KEY",
    403: "gives this key no access: check DO_AGENT_API_KEY and COPILOT_URL",
    404: "is not at this address: check its URL",
    408: "took too long",
    413: "was asked more than it takes: ask for less",
    429: "was asked too often, or its quota is used up",
}


def _refusal(service: str, status: int, body: bytes) -> str:
    """Say what a status means, with the service's own words as a quotation where it has any that are fit for that."""
    if status in _REFUSALS:
        meaning = _REFUSALS[status]
    elif 300 <= status < 400:  # noqa: PLR2004
        meaning = "sends us to another address, where the key does not go: check its URL"
    elif status >= 500:  # noqa: PLR2004
        meaning = "has trouble of its own: try again later"
    else:
        meaning = "did not take the question"
    words = _own_words(body)
    return f"{service} {meaning} (HTTP {status}" + (f", {words})." if words else ").")


def _own_words(body: bytes) -> str:
    """Quote the message of an error, in each of the shapes there are; never a page of HTML."""
    text = body.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        value = next((value[key] for key in ("message", "detail", "error") if value.get(key)), "")
    if isinstance(value, list):
        value = "; ".join(str(each.get("msg", "")) for each in value[:5] if isinstance(each, dict))
    if isinstance(value, dict):
        value = value.get("message")
    if not isinstance(value, str) or _is_page(value):
        return ""
    text = " ".join(value[: 10 * _WORDS].split())
    return repr(shortened(text, _WORDS)) if text else ""


def _is_page(text: str) -> bool:
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def _told_to_wait(headers: httpx2.Headers) -> float:
    """Read how long the service wants to be left alone: `retry-after`, else when its limit is renewed."""
    if after := headers.get("retry-after"):
        try:
            return min(max(0.0, float(after)), _A_YEAR_S)
        except ValueError:
            try:
                return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
            except (ValueError, OverflowError):
                return 0.0
    try:
        reset = float(headers.get("ratelimit-reset", ""))
    except ValueError:
        return 0.0
    return min(max(0.0, reset - time.time()), _A_YEAR_S) if headers.get("ratelimit-remaining") == "0" else 0.0


async def _read_all(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > LARGEST_ANSWER:
            raise ServiceError(f"The answer has more than {LARGEST_ANSWER} bytes: it was not read to the end.")
    return bytes(body)


# Answers.


def _is_stream(response: httpx2.Response) -> bool:
    label = response.headers.get("content-type", "").partition(";")[0]
    return bool(label.strip().lower() == "text/event-stream")


async def _read_stream(response: httpx2.Response, progress: Progress) -> dict[str, Any]:
    """Put the pieces of a stream together to what would have come without one."""
    response.encoding = "utf-8"  # whatever its header says: that is what such streams are
    message = {"content": "", "refusal": ""}
    whole: dict[str, Any] = {}
    finish_reason, size, done = None, 0, False
    async for event in _events(response):
        if not event.data:  # such as one that only keeps the connection alive
            continue
        if event.data.strip() == "[DONE]":
            done = True
            break
        size += len(event.data)
        if size > LARGEST_ANSWER:
            raise ServiceError(f"The answer has more than {LARGEST_ANSWER} bytes: it was not read to the end.")
        chunk = _parsed(event.data)
        if chunk.get("error"):
            words = _own_words(event.data.encode())
            raise ServiceError("The Copilot failed while it wrote its answer" + (f": {words}." if words else "."))
        whole |= {key: value for key, value in chunk.items() if value is not None}
        choice = _first_choice(chunk)
        delta = choice.get("delta")
        for part in message:
            if isinstance(delta, dict) and isinstance(delta.get(part), str):
                message[part] += delta[part]
        finish_reason = choice.get("finish_reason") or finish_reason
        await progress(len(message["content"]))
    if not done and finish_reason is None:
        raise ServiceSilentError("The Copilot broke off in the middle of its answer: ask again.")
    return whole | {"choices": [{"message": message, "finish_reason": finish_reason}]}


async def _events(response: httpx2.Response) -> AsyncIterator[httpx2.ServerSentEvent]:
    try:
        async for event in httpx2.EventSource(response, LARGEST_ANSWER):
            yield event
    except httpx2.SSEError:  # the size of one event: the label was looked at
        raise ServiceError(f"The answer has more than {LARGEST_ANSWER} bytes: it was not read to the end.") from None


def _parsed(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServiceError("The Copilot answered in a form that is not known.")
    return value


def _first_choice(value: Mapping[str, Any]) -> dict[str, Any]:
    choices = value.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _answer(value: object) -> Answer:
    """Take a completion apart.

    Raises:
        ServiceError: It is none, or an empty one.
    """
    choice = _first_choice(value) if isinstance(value, dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if not isinstance(value, dict) or not isinstance(message, dict) or not isinstance(content, str | None):
        raise ServiceError("The Copilot answered in a form that is not known.")
    finish_reason = choice.get("finish_reason")
    if finish_reason is not None:
        finish_reason = shortened(str(finish_reason), 40)
    text = without_thinking(content or "") or (refusal if isinstance(refusal, str) else "")
    notes = []
    guardrails = _items(value, "guardrails", "triggered_guardrails")
    if guardrails:
        names = ", ".join(repr(shortened(str(each.get("rule_name", "")), 60)) for each in guardrails[:5])
        notes.append(f"A guardrail of the Copilot was triggered: {names}.")
        text = text or str(guardrails[0].get("message") or "")
    refused = bool(guardrails or refusal or finish_reason == "content_filter")
    if refused and not guardrails:
        notes.append("The Copilot refused to answer this.")
    if finish_reason == "length":
        notes.append("The answer was cut off at the Copilot's length limit: it is not complete.")
    if _KNOWLEDGE_FAILED in text.lower():
        notes.append("The Copilot could not look into its knowledge base: it may be guessing.")
    if not text.strip():
        why = " Its thinking took all the room there was." if finish_reason == "length" else ""
        raise ServiceError(f"The Copilot gave an empty answer (finish_reason {finish_reason}).{why}")
    return Answer(
        text=text.strip(),
        finish_reason=finish_reason,
        sources=tuple(_items(value, "retrieval", "retrieved_data")),
        notes=tuple(notes),
        refused=refused,
    )


def _items(value: Mapping[str, Any], outer: str, inner: str) -> list[Mapping[str, Any]]:
    """Take a list out of one of the parts that an agent may add, if it is there."""
    part = value.get(outer)
    found = part.get(inner) if isinstance(part, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def without_thinking(text: str) -> str:
    """Leave out what a reasoning model thought before it answered, also where only the end of that is marked."""
    return _END_OF_THINKING.sub("", _THINKING.sub("", text)).strip()


# The verifier.


def _findings(body: bytes, *, refused: bool) -> list[Finding]:
    """Read what the verifier says; the names of its fields are unverified, so several are looked for."""
    text = body.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, str):
        if _is_page(value):
            raise ServiceError("The LoT verifier answered with something that is no answer.")
        value = {"message": value}
    if not isinstance(value, dict):
        value = {}
    listed = [each for key in ("errors", "problems", "warnings") for each in _listed(value.get(key), key)]
    refused = refused or value.get("valid") is False or value.get("success") is False
    if refused and not any(each.severity == "error" for each in listed):
        message = str(value.get("message") or value.get("error") or "The verifier refuses it.")
        listed.insert(0, Finding("error", *_position(message), shortened(message, _WORDS)))
    return listed


def _listed(found: object, key: str) -> list[Finding]:
    findings = []
    for each in found[:100] if isinstance(found, list) else []:
        item: dict[str, Any] = each if isinstance(each, dict) else {"message": str(each)}
        message = str(item.get("message", ""))
        line, column = _position(message)
        severity = str(item.get("severity", key)).lower()
        findings.append(
            Finding(
                "warning" if severity.startswith("warn") else "error",
                _number(item.get("line"), line),
                _number(item.get("column"), column),
                shortened(message, _WORDS),
            )
        )
    return findings


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise


def _position(text: str) -> tuple[int, int]:
    """Find `(line,column)`, as parse errors of brokers have it [v1]; 0 where there is none."""
    match = re.search(r"\((\d{1,6}),\s?(\d{1,6})\)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
