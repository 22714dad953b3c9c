"""The status tool: what is connected, since when, with what rights, and what to do when something is wrong."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

import callers
from backups import Backups
from config import Config
from copilot_client import CopilotClient
from errors import BridgeError, BrokerError
from identity import Identity, Make
from inbox import Subscription
from measures import OTHER, Durations, Family, Number
from mqtt_client import Broker
from tools.actions import ActionTools
from tools.answers import ShownGap, fitting, instant, show_gaps, size_of, visible
from tools.expose import Exposer
from tools.gate import Gate

_FIRST_ATTEMPT_S: Final = 1.0
_SUBSCRIPTIONS_SHOWN: Final = 50
_FILTER_ROOM: Final = 200
_CLIENT_ID_ROOM: Final = 300
_ADVICE_ROOM: Final = 1000
_TOOLS_MEASURED: Final = (10, 3, 0)
"""How many tools are measured apart, and how many where that is too much."""


class ServerFacts(BaseModel):
    """This server."""

    name: str
    version: str
    uptime_s: float
    transport: str


class ConnectionFacts(BaseModel):
    """The connection to the broker."""

    connected: bool
    broker: str
    client_id: str
    protocol: str | None
    tls: dict[str, Any]
    since: str
    last_error: str | None
    attempts: int
    next_attempt_at: str | None
    gaps: list[ShownGap]
    round_trip_ms: float | None = Field(default=None, exclude_if=lambda value: value is None)


class BrokerFacts(BaseModel):
    """What is known of the broker."""

    kind: str
    version: str | None


class SubscriptionFacts(BaseModel):
    """An open subscription."""

    subscription_id: str
    topic_filter: str
    granted_qos: int
    received: int
    dropped: int
    refused: str | None = Field(default=None, exclude_if=lambda value: value is None)


class BufferFacts(BaseModel):
    """The buffer of received messages."""

    messages: int
    bytes: int
    max_messages: int
    max_bytes: int
    dropped: int


class PolicyFacts(BaseModel):
    """What the assistant may do."""

    access: str
    publish_allow: list[str]
    publish_deny: list[str]
    subscribe_allow: list[str]
    subscribe_deny: list[str]
    confirm: str
    confirm_fallback: str
    audit: str
    limits: dict[str, int]


class CopilotFacts(BaseModel):
    """The Coreflux Copilot."""

    configured: bool
    reachable: bool | None
    missing: list[str] = Field(default=[], exclude_if=lambda value: not value)
    """The settings that are."""


class ProcessFacts(BaseModel):
    """This process."""

    pid: int
    rss_mb: float | None
    threads: int


class Status(BaseModel):
    """Answer of server_status."""

    server: ServerFacts
    connection: ConnectionFacts
    broker: BrokerFacts
    subscriptions: list[SubscriptionFacts]
    buffer: BufferFacts
    policy: PolicyFacts
    copilot: CopilotFacts
    process: ProcessFacts
    advice: list[str]
    metrics: dict[str, Number | dict[str, Number]] = Field(default={}, exclude_if=lambda value: not value)
    """What `/metrics` has: by name, and where there are labels by these; what is 0 is left out there."""


class ServerStatus:
    """Say how the server and its connection are."""

    def __init__(
        self,
        broker: Broker,
        identity: Identity,
        copilot: CopilotClient,
        gate: Gate,
        config: Config,
        backups: Backups,
        notes: list[str],
        actions: ActionTools | None,
        name: str,
        version: str,
    ) -> None:
        self._broker = broker
        self._identity = identity
        self._copilot = copilot
        self._gate = gate
        self._config = config
        self._backups = backups
        self._notes = notes
        self._actions = actions
        self._name = name
        self._version = version
        self._started = time.monotonic()

    def tools(self, expose: Exposer) -> list[Tool]:
        """List the tools there are."""
        return expose(self.server_status, "Server status")

    async def server_status(self, check: bool = False) -> Status:
        """Report connection, subscriptions, buffer, access mode and advice. Use it first and when something fails.

        check=true also makes a round trip to the broker and looks whether the Copilot is up.
        """
        await self._broker.first_attempt(_FIRST_ATTEMPT_S)
        state, inbox = self._broker.state, self._broker.inbox
        advice = list(self._config.warnings)
        round_trip_ms = None
        if check and state.connected:
            try:
                round_trip_ms = round(await self._broker.probe(), 2)
            except BrokerError as exc:
                advice.append(str(exc))
        own = inbox.of(callers.current.get().principal)
        advice += await self._advice(own)
        missing = self._copilot.missing
        copilot = CopilotFacts(configured=not missing, reachable=None, missing=missing)
        if check and not missing:
            copilot.reachable = await self._copilot.health()
        status = Status(
            server=ServerFacts(
                name=self._name,
                version=self._version,
                uptime_s=round(time.monotonic() - self._started, 1),
                transport=self._config.transport,
            ),
            connection=ConnectionFacts(
                connected=state.connected,
                broker=state.broker,
                client_id=visible(fitting(state.client_id, _CLIENT_ID_ROOM)),
                protocol=state.protocol,
                tls=state.tls or {"enabled": self._config.broker.tls is not None},
                since=instant(state.since),
                last_error=state.last_error and visible(state.last_error),
                attempts=state.attempts,
                next_attempt_at=instant(state.next_attempt_at) if state.next_attempt_at else None,
                gaps=show_gaps(inbox.gaps, self._config.bounds.result_max_bytes // 4),
                round_trip_ms=round_trip_ms,
            ),
            broker=await self._identified(),
            subscriptions=[
                SubscriptionFacts(
                    subscription_id=subscription.id,
                    topic_filter=visible(fitting(subscription.topic_filter.text, _FILTER_ROOM)),
                    granted_qos=subscription.granted_qos,
                    received=subscription.received,
                    dropped=subscription.dropped,
                    refused=subscription.refusal and visible(fitting(subscription.refusal, _FILTER_ROOM)),
                )
                for subscription in own[:_SUBSCRIPTIONS_SHOWN]
            ],
            buffer=BufferFacts(
                messages=len(inbox),
                bytes=inbox.bytes,
                max_messages=inbox.max_messages,
                max_bytes=inbox.max_bytes,
                dropped=inbox.dropped,
            ),
            policy=self._policy(),
            copilot=copilot,
            process=ProcessFacts(pid=os.getpid(), rss_mb=_rss_mb(), threads=threading.active_count()),
            advice=[visible(fitting(text, _ADVICE_ROOM)) for text in advice],
        )
        families = self._gate.measures.families()
        for most_tools in _TOOLS_MEASURED:
            status.metrics = _figures(families, most_tools)
            if size_of(status) <= self._config.bounds.result_max_bytes:
                return status
        status.metrics = {}
        while status.subscriptions and size_of(status) > self._config.bounds.result_max_bytes:
            del status.subscriptions[len(status.subscriptions) // 2 :]
        return status

    async def _advice(self, own: list[Subscription]) -> list[str]:
        """Say what is not as it should be, and what to do about it."""
        state, inbox = self._broker.state, self._broker.inbox
        advice = list(self._notes)
        if not state.connected:
            advice.append(state.why_offline)
        advice += [subscription.refusal for subscription in own if subscription.refusal]
        if len(own) > _SUBSCRIPTIONS_SHOWN:
            advice.append(f"{len(own) - _SUBSCRIPTIONS_SHOWN} more subscriptions are not shown.")
        if self._config.broker.embedded:
            advice.append("This is the built-in development broker with a simulated plant: nothing here is real.")
        for backup in await asyncio.to_thread(self._backups.unfinished, state.broker):
            names = ", ".join(f"{each.kind} {each.name}" for each in backup.entities)
            advice.append(
                f"The change of {names} at {backup.created} did not end. What was there before is in backup "
                f"{backup.id}; a person can put it back: python server.py backups restore {backup.id}"
            )
        if self._actions:
            advice += self._actions.advice()
        if self._gate.audit.failure:
            advice.append(f"What is done is not recorded: {self._gate.audit.failure}")
        if inbox.dropped:
            advice.append(
                f"{inbox.dropped} messages did not stay in the buffer: read more often, subscribe to less, "
                "or raise BUFFER_MAX_MESSAGES and BUFFER_MAX_BYTES."
            )
        return advice

    def _policy(self) -> PolicyFacts:
        rules = self._config.rules
        return PolicyFacts(
            access=self._config.access_mode,
            publish_allow=[each.text for each in rules.publish_allow],
            publish_deny=[each.text for each in rules.publish_deny],
            subscribe_allow=[each.text for each in rules.subscribe_allow],
            subscribe_deny=[each.text for each in rules.subscribe_deny],
            confirm=rules.confirm,
            confirm_fallback=rules.fallback,
            audit="off" if self._config.audit.file is None else "failing" if self._gate.audit.failure else "on",
            limits=self._gate.limits.facts(),
        )

    async def _identified(self) -> BrokerFacts:
        make = Make()
        if self._broker.state.connected:
            with contextlib.suppress(BridgeError):
                make = await self._identity.make()
        return BrokerFacts(kind=make.kind, version=make.version and visible(make.version))


def _figures(families: list[Family], most_tools: int) -> dict[str, Number | dict[str, Number]]:
    """Show measures, with the tools apart that were called most."""
    calls: dict[str, Number] = defaultdict(int)
    for family in families:
        if family.name == "tool_calls_total":
            for labels, value in family.values:
                calls[labels[0]] += _number(value)
    apart = sorted(calls, key=calls.__getitem__, reverse=True)[:most_tools]
    figures: dict[str, Number | dict[str, Number]] = {}
    for family in families:
        if not family.labels:
            figures[family.name] = _number(family.values[0][1])
            continue
        shown: dict[str, Number] = {}
        for labels, value in family.values:
            number = _number(value)
            tool, *rest = labels
            key = " ".join([OTHER, *rest] if family.labels[0] == "tool" and tool not in apart else labels)
            if number:
                shown[key] = round(shown.get(key, 0) + number, 6)
        if shown:
            name = f"{family.name}_sum" if family.kind == "histogram" else family.name
            figures[name] = shown
    return figures


def _number(value: Number | Durations) -> Number:
    return value.sum_s if isinstance(value, Durations) else value


def _rss_mb() -> float | None:
    """Return the memory this process occupies, or None where the platform has no simple way to tell."""
    if sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
