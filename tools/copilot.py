"""The Copilot tools: ask it, and have it write LoT that is checked before anybody sees it. Nothing is deployed here."""

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

from config import Bounds
from copilot_client import Answer, CopilotClient, Progress, Turn
from coreflux import ROOTS, Coreflux, find
from errors import InputError
from inbox import Message
from lot import Analysis, analyse
from lot.extract import Extract, extract
from sanitizer import hide_secrets, shortened
from tools.answers import fitting, size_of, visible
from tools.expose import Exposer, OptionalText, tell_progress
from tools.lot import ShownDefinition, ShownProblem, show_problems, verdict
from tools.policed import PolicedBroker
from topics import TopicFilter, check_topic_name, shown

MOST_VALUE: Final = 1000
"""Characters of a topic's value that go along."""
MOST_SOURCE: Final = 8000
MOST_SOURCES_SHOWN: Final = 20

_VALUES_WITHIN_S: Final = 2.0
_TELL_EVERY_S: Final = 0.5
_NO_SCORE: Final = 1e9
_LABEL: Final = 200
"""Bytes of what is said of each thing that went along."""
_FORM: Final = (
    "Write LoT (the language of Coreflux brokers) that does what follows. Answer with all of the code in one fenced "
    "block, without comments in it, and after it explain it in a few sentences."
)

Text = Annotated[str, Field(min_length=1, max_length=20_000)]
More = Annotated[OptionalText, Field(max_length=50_000)]
Topics = Annotated[list[str] | None, Field(max_length=20, description="their values go along")]
Entities = Annotated[list[str] | None, Field(max_length=10, description='their source goes along: "action/Name"')]


class Source(BaseModel):
    """A document the Copilot looked at."""

    id: str
    filename: str | None = Field(default=None, exclude_if=lambda value: value is None)
    page: int | None = Field(default=None, exclude_if=lambda value: value is None)
    score: float | None = Field(default=None, exclude_if=lambda value: value is None)


class Asked(BaseModel):
    """Answer of copilot_ask."""

    answer: str
    sources: list[Source]
    finish_reason: str | None
    untrusted: bool = True
    notes: list[str] = Field(default=[], exclude_if=lambda value: not value)
    sent_along: list[str] = Field(default=[], exclude_if=lambda value: not value)
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)


class Generated(BaseModel):
    """Answer of copilot_generate_lot."""

    code: str
    definitions: list[ShownDefinition]
    problems: list[ShownProblem]
    verdict: str
    explanation: str
    finish_reason: str | None
    attempts: int
    untrusted: bool = True
    notes: list[str] = Field(default=[], exclude_if=lambda value: not value)
    sent_along: list[str] = Field(default=[], exclude_if=lambda value: not value)
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)


class Copilot:
    """What the Coreflux Copilot can do for an assistant."""

    def __init__(self, client: CopilotClient, broker: PolicedBroker, coreflux: Coreflux, bounds: Bounds) -> None:
        self._client = client
        self._broker = broker
        self._coreflux = coreflux
        self._bounds = bounds

    def tools(self, expose: Exposer) -> list[Tool]:
        """List the tools there are; none without a Copilot."""
        if self._client.missing:
            return []
        return [
            *expose(self.copilot_ask, "Ask the Copilot"),
            *expose(self.copilot_generate_lot, "Have LoT written"),
        ]

    async def copilot_ask(
        self,
        question: Text,
        ctx: Context[Any, Any],
        context: More = "",
        include_topics: Topics = None,
        include_entities: Entities = None,
    ) -> Asked:
        """Ask the Coreflux Copilot, a service outside the plant. It sees what you send; its answer is untrusted."""
        along = await self._along(context, include_topics, include_entities)
        reply = await self._client.ask([_question(question, along)], _teller(ctx))
        asked = Asked(
            answer=visible(reply.text),
            sources=_sources(reply),
            finish_reason=reply.finish_reason and visible(reply.finish_reason),
            notes=[visible(note) for note in reply.notes],
            sent_along=[fitting(each, _LABEL) for each in along],
        )
        if len(reply.sources) > MOST_SOURCES_SHOWN:
            asked.notes.append(f"{len(reply.sources) - MOST_SOURCES_SHOWN} more sources are not shown.")
        room = self._bounds.result_max_bytes
        if size_of(asked) > room:
            asked.sources, asked.truncated = [], True
            asked.answer = fitting(asked.answer, room - size_of(asked) + len(json.dumps(asked.answer)))
        return asked

    async def copilot_generate_lot(
        self,
        task: Text,
        ctx: Context[Any, Any],
        context: More = "",
        include_topics: Topics = None,
        include_entities: Entities = None,
        max_attempts: Annotated[int, Field(ge=1, le=3)] = 2,
    ) -> Generated:
        """Have the Copilot write LoT, check it here, and ask again where that finds errors. Deploys nothing.

        Untrusted: show the code to the user before lot_deploy.
        """
        along = await self._along(context, include_topics, include_entities)
        conversation = [_question(f"{_FORM}\n\n{task}", along)]
        best: tuple[Answer, Extract, Analysis] | None = None
        attempts, progress = 0, _teller(ctx)
        while attempts < max_attempts:
            attempts += 1
            reply = await self._client.ask(conversation, progress)
            extracted = extract(reply.text)
            analysis = await asyncio.to_thread(analyse, hide_secrets(extracted.code))
            if best is None or _worth(extracted, analysis) >= _worth(*best[1:]):
                best = (reply, extracted, analysis)
            if reply.refused or (extracted.code and not analysis.errors):
                break
            conversation = [conversation[0], Turn("assistant", reply.text), Turn("user", _criticism(analysis))]
        assert best is not None  # noqa: S101 - max_attempts is at least 1
        reply, extracted, analysis = best
        generated = Generated(
            code=visible(extracted.code),
            definitions=[
                ShownDefinition(kind=each.kind, name=visible(each.name), line=each.line)
                for each in analysis.definitions
            ],
            problems=show_problems(analysis.problems),
            verdict=verdict(analysis.problems) if extracted.code else "there is no LoT in the answer",
            explanation=visible(extracted.prose),
            finish_reason=reply.finish_reason and visible(reply.finish_reason),
            attempts=attempts,
            notes=[visible(note) for note in reply.notes],
            sent_along=[fitting(each, _LABEL) for each in along],
        )
        room = self._bounds.result_max_bytes
        if size_of(generated) > room:
            generated.truncated = True
            generated.explanation = fitting(generated.explanation, room // 8)
            del generated.problems[10:]
            del generated.definitions[50:]
        if size_of(generated) > room:
            generated.code = fitting(generated.code, room - size_of(generated) + len(json.dumps(generated.code)))
        return generated

    async def _along(self, context: str, topics: list[str] | None, entities: list[str] | None) -> dict[str, str]:
        """Gather what goes along: what it is, for the result, and the text of it."""
        along = {f"context ({len(context)} characters)": context} if context else {}
        return along | await self._values(topics or []) | await self._entities(entities or [])

    async def _values(self, topics: Sequence[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        heard = asyncio.Event()

        def hear(message: Message) -> None:
            values.setdefault(message.topic, message.payload[: 4 * MOST_VALUE].decode(errors="replace"))
            if len(values) == len(set(topics)):
                heard.set()

        for topic in topics:
            check_topic_name(topic)
        async with contextlib.AsyncExitStack() as stack:
            for topic in dict.fromkeys(topics):
                await stack.enter_async_context(self._broker.listen(TopicFilter(topic), hear))
            if topics:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_VALUES_WITHIN_S):
                        await heard.wait()
        along = {}
        for topic in dict.fromkeys(topics):
            value = values.get(topic)
            said = "(no value was heard)" if value is None else _cut(value, MOST_VALUE)
            along[visible(f"topic {topic} ({len(said)} characters)")] = f"Topic {topic} has now:\n{said}"
        return along

    async def _entities(self, names: Sequence[str]) -> dict[str, str]:
        wanted = []
        for each in dict.fromkeys(names):
            kind, _, name = each.partition("/")
            found = next((known for known in ROOTS if known == kind), None)
            if found is None or not name:
                raise InputError(f"{shown(each)} names no entity: write kind/name, with one of {', '.join(ROOTS)}.")
            wanted.append((found, name))
        along = {}
        pictures = {kind: await self._coreflux.entities([kind]) for kind in dict.fromkeys(kind for kind, _ in wanted)}
        for kind, name in wanted:
            code = _cut(find(pictures[kind], kind, name).code, MOST_SOURCE)
            along[visible(f"{kind} {name} ({len(code)} characters)")] = f"The {kind} {name} that runs now:\n{code}"
        return along


def _question(text: str, along: dict[str, str]) -> Turn:
    """Make the message; no secret that we know leaves with it."""
    parts = [text, *(f"--- given as data ---\n{each}" for each in along.values())]
    return Turn("user", hide_secrets("\n\n".join(parts)))


def _teller(ctx: Context[Any, Any]) -> Progress | None:
    """Make what tells how far the answer is, if the client wants to know."""
    if "progress_token" not in (ctx.request_context.meta or {}):
        return None
    started = told_at = time.monotonic()

    async def tell(characters: int) -> None:
        nonlocal told_at
        if (now := time.monotonic()) - told_at >= _TELL_EVERY_S:
            told_at = now
            await tell_progress(ctx, now - started, None, f"{characters} characters written")

    return tell


def _worth(extracted: Extract, analysis: Analysis) -> tuple[bool, int]:
    return bool(extracted.code), -len(analysis.errors)


def _criticism(analysis: Analysis) -> str:
    if not analysis.definitions:
        return "There is no LoT in your answer. Answer with the code in one fenced block."
    found = "\n".join(f"line {each.line}, column {each.column}: {each.message}" for each in analysis.problems[:20])
    return f"A check of that code found these problems:\n{found}\n\nAnswer with the whole code, corrected, as before."


def _sources(reply: Answer) -> list[Source]:
    return [
        Source(
            id=visible(shortened(str(each.get("id", "")), 100)),
            filename=visible(shortened(str(each["filename"]), 200)) if each.get("filename") else None,
            page=each["page"] if isinstance(each.get("page"), int) else None,
            score=_score(each.get("score")),
        )
        for each in reply.sources[:MOST_SOURCES_SHOWN]
    ]


def _score(value: object) -> float | None:
    """Take a score that is a number, and no NaN."""
    return float(value) if isinstance(value, int | float) and abs(value) < _NO_SCORE else None


def _cut(text: str, characters: int) -> str:
    return shortened(text, characters) + (" (cut)" if len(text) > characters else "")
