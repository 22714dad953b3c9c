"""The messaging tools: look around, read, subscribe, wait, publish, request, clear."""

import asyncio
import base64
import binascii
import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from weakref import WeakValueDictionary

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

import callers
from config import Bounds, Confirm
from errors import BrokerError, BrokerRefusedError, BrokerSilentError, InputError, LimitError, PolicyRefusedError
from inbox import Inbox, Message, Reading
from mqtt_link import PublishProperties
from policy import response_root
from sanitizer import hide_secrets, hide_secrets_in_bytes
from tools.answers import (
    NotFaithfulError,
    ShownGap,
    ShownMessage,
    decode_json,
    decode_text,
    fit_all,
    fit_in_order,
    fitting,
    instant,
    refuse_markers,
    show_gaps,
    show_message,
    size_of,
    visible,
)
from tools.conditions import Condition, Matcher
from tools.expose import Exposer, OptionalText, tell_progress
from tools.gate import Plan
from tools.policed import PolicedBroker
from tools.undo import Previous, Undo, how
from topics import TopicFilter, check_topic_name, shown

MAX_SILENCE_S: Final = 2.0
"""A broker silent for longer is asked whether it is still there before silence is reported as silence."""

MAX_TOPICS_HEARD: Final = 20_000
"""Topics told apart while looking around; further ones are left out, and that is said."""

MOST_SUBSCRIPTIONS: Final = 100
"""Of one client, over HTTP."""
FORGOTTEN_S: Final = 3600.0
"""A client over HTTP may be gone without a word: a subscription that nobody has read for so long is ended."""

MAX_LOOKS: Final = 8
"""Looks around whose further pages are kept; the oldest goes first."""

_overwrites: ContextVar[bool] = ContextVar("overwrites", default=False)
"""Whether the call under way was found to replace a retained value, before it was decided whether to ask a person."""

_SAMPLE_CHARS: Final = 80
_SAMPLED: Final = 4096
"""Bytes in which secrets are looked for before they are cut to a sample."""
_TOPIC_ROOM: Final = 300
"""Bytes that a topic beside an answer's data may take; nobody has longer ones but to do harm."""
_QUIET_S: Final = 0.3
"""Retained messages come in one burst after SUBACK; so long a pause is its end."""
_FIRST_S: Final = 1.0
"""A slow broker's first may take longer."""
_LONGEST_LOOK_S: Final = 10.0
"""For retained messages that never seem to end."""
_PROGRESS_S: Final = 1.0
_ENVELOPE: Final = 64
"""Bytes an answer grows by when the fields around its messages are filled in."""

Filter = Annotated[str, Field(description="with + and #")]
Limit = Annotated[int, Field(ge=1, le=1000)]
MaxBytes = Annotated[int | None, Field(ge=1024, le=1 << 20, description="of the whole answer")]
QoS = Literal[0, 1, 2]
Timeout = Annotated[float, Field(ge=0.1, le=300)]


class TopicSeen(BaseModel):
    """What was heard of one topic."""

    topic: str
    messages: int
    retained: bool
    payload_type: Literal["empty", "number", "boolean", "json", "text", "binary"]
    sample: str
    bytes: int
    last_seen: str


class TopicsSeen(BaseModel):
    """Answer of mqtt_topics."""

    topics: list[TopicSeen]
    total: int
    next_cursor: str | None
    truncated: bool
    listened_s: float
    connected_throughout: bool
    left_out: list[str] = Field(default=[], exclude_if=lambda value: not value)


class ValuesRead(BaseModel):
    """Answer of mqtt_read."""

    messages: list[ShownMessage]
    listened_s: float
    connected_throughout: bool
    truncated: bool
    omitted: int = Field(default=0, exclude_if=lambda value: not value)
    gaps: list[ShownGap] = Field(default=[], exclude_if=lambda value: not value)


class Subscribed(BaseModel):
    """Answer of mqtt_subscribe."""

    subscription_id: str
    topic_filter: str
    granted_qos: int
    cursor: str


class TopicStatistics(BaseModel):
    """One topic in the answer of mqtt_messages with mode stats."""

    topic: str
    messages: int
    bytes: int
    first_at: str
    last_at: str
    min: float | None = Field(default=None, exclude_if=lambda value: value is None)
    max: float | None = Field(default=None, exclude_if=lambda value: value is None)
    mean: float | None = Field(default=None, exclude_if=lambda value: value is None)


class Messages(BaseModel):
    """Answer of mqtt_messages."""

    messages: list[ShownMessage]
    next_cursor: str
    remaining: int
    dropped: int
    gaps: list[ShownGap]
    connected_throughout: bool
    truncated: bool
    stats: list[TopicStatistics] = Field(default=[], exclude_if=lambda value: not value)


class Unsubscribed(BaseModel):
    """Answer of mqtt_unsubscribe."""

    topic_filter: str
    received: int
    dropped: int


class Waited(BaseModel):
    """Answer of mqtt_wait."""

    matched: bool
    messages: list[ShownMessage]
    seen: int
    waited_s: float
    connected_throughout: bool
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)
    gaps: list[ShownGap] = Field(default=[], exclude_if=lambda value: not value)


class PublishedAnswer(BaseModel):
    """Answer of mqtt_publish."""

    topic: str
    bytes: int
    qos: int
    retain: bool
    acknowledged: bool
    reason: str
    elapsed_ms: float
    replaced: Previous | None = Field(default=None, exclude_if=lambda value: value is None)
    undo: str = Field(default="", exclude_if=lambda value: not value)


class Responded(BaseModel):
    """Answer of mqtt_request."""

    response: ShownMessage
    elapsed_ms: float


class Uncleared(BaseModel):
    """A retained message that stayed."""

    topic: str
    reason: str


class Cleared(BaseModel):
    """Answer of mqtt_clear_retained."""

    topics: list[str]
    cleared: int
    dry_run: bool
    truncated: bool
    failed: list[Uncleared] = Field(default=[], exclude_if=lambda value: not value)
    omitted: int = Field(default=0, exclude_if=lambda value: not value)
    removed: list[Previous] = Field(default=[], exclude_if=lambda value: not value)
    undo: str = Field(default="", exclude_if=lambda value: not value)


@dataclass(slots=True)
class _Heard:
    """What a look around knows of one topic."""

    last: Message
    messages: int = 0
    retained: bool = False


@dataclass(slots=True)
class _Look:
    """A look around whose pages can be fetched."""

    topics: list[_Heard]
    listened_s: float
    connected_throughout: bool
    incomplete: bool
    left_out: tuple[str, ...]
    token: str = field(default_factory=lambda: secrets.token_hex(4))


class Messaging:
    """Publish, subscribe, read and wait."""

    def __init__(self, broker: PolicedBroker, bounds: Bounds, undo: Undo, confirm: Confirm) -> None:
        self._broker = broker
        self._bounds = bounds
        self._undo = undo
        self._confirm = confirm
        self._looks: dict[str, _Look] = {}
        self._overwriting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._started = time.time()

    def tools(self, expose: Exposer) -> list[Tool]:
        """List the tools there are."""
        return [
            *expose(self.mqtt_topics, "Look around"),
            *expose(self.mqtt_read, "Read current values"),
            *expose(self.mqtt_subscribe, "Subscribe"),
            *expose(self.mqtt_messages, "Read received messages"),
            *expose(self.mqtt_unsubscribe, "Unsubscribe"),
            *expose(self.mqtt_wait, "Wait for a message"),
            *expose(self.mqtt_publish, "Publish", self._about_to_publish),
            *expose(self.mqtt_request, "Request and response", self._about_to_request),
            *expose(self.mqtt_clear_retained, "Clear retained messages", self._about_to_clear),
        ]

    async def mqtt_topics(
        self,
        topic_filter: Filter = "#",
        listen_s: Annotated[float, Field(ge=0, le=60)] = 2,
        contains: Annotated[OptionalText, Field(description="text in the topic, any case")] = "",
        limit: Limit = 100,
        after: Annotated[OptionalText, Field(description="next_cursor of the page before")] = "",
    ) -> TopicsSeen:
        """Find out which topics exist: listen for a moment and list each topic with a sample.

        Topics that are silent and not retained meanwhile stay unseen. For values use mqtt_read.
        """
        if after:
            look, first = self._page(after)
        else:
            look, first = await self._look_around(TopicFilter(topic_filter), listen_s, contains), 0
        answer = TopicsSeen(
            topics=[],
            total=len(look.topics),
            next_cursor=f"{look.token}-{len(look.topics)}",
            truncated=True,
            listened_s=look.listened_s,
            connected_throughout=look.connected_throughout,
            left_out=list(look.left_out),
        )
        room = self._bounds.result_max_bytes - size_of(answer)
        for heard in look.topics[first : first + limit]:
            seen = _show_topic(heard)
            room -= size_of(seen) + 2
            if room < 0 and answer.topics:
                break
            answer.topics.append(seen)
        done = first + len(answer.topics)
        more = done < len(look.topics)
        answer.next_cursor = f"{look.token}-{done}" if more else None
        answer.truncated = more or look.incomplete
        return answer

    def _page(self, cursor: str) -> tuple[_Look, int]:
        token, _, first = cursor.partition("-")
        if token not in self._looks or not first.isdecimal() or len(first) > len(str(MAX_TOPICS_HEARD)):
            raise InputError(
                f"The page {shown(cursor)} is not kept any more, or not by this server: look again without `after`."
            )
        return self._looks[token], int(first)

    async def _look_around(self, topic_filter: TopicFilter, listen_s: float, contains: str) -> _Look:
        heard: dict[str, _Heard] = {}
        incomplete = False
        wanted = contains.casefold()

        def hear(message: Message) -> None:
            nonlocal incomplete
            known = heard.get(message.topic)
            if known is None:
                if wanted and wanted not in message.topic.casefold():
                    return
                if len(heard) >= MAX_TOPICS_HEARD:
                    incomplete = True
                    return
                known = heard[message.topic] = _Heard(message)
            elif message.retained and known.last.payload == message.payload:
                known.retained = True
                return  # the retained value that was held already
            known.messages += 1
            known.retained = known.retained or message.retained
            known.last = message

        started = time.monotonic()
        part = self._broker.policy.look(topic_filter)
        connected = await self._broker.look(part, hear, listen_s)
        topics = [heard[topic] for topic in sorted(heard)]
        look = _Look(topics, _elapsed(started), connected, incomplete, part.left_out)
        self._looks[look.token] = look
        while len(self._looks) > MAX_LOOKS:
            del self._looks[next(iter(self._looks))]
        return look

    async def mqtt_read(
        self,
        topic_filter: Filter,
        timeout_s: Timeout = 2,
        limit: Limit = 50,
        max_bytes: MaxBytes = None,
    ) -> ValuesRead:
        """Read the values now: retained ones, and what is published within the timeout, the last of each topic.

        One exact topic returns as soon as it has a value. To follow values over time use mqtt_subscribe.
        """
        wanted = TopicFilter(topic_filter)
        self._broker.policy.check_subscribe(wanted)
        newest: dict[str, Message] = {}
        enough = asyncio.Event()
        omitted: set[str] = set()

        def hear(message: Message) -> None:
            if message.topic in newest or len(newest) < limit:
                newest[message.topic] = message
                if not wanted.has_wildcard:
                    enough.set()
            elif len(omitted) < MAX_TOPICS_HEARD:
                omitted.add(message.topic)

        started = time.monotonic()
        async with self._broker.listen(wanted, hear) as watch:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await enough.wait()
        answer = ValuesRead(
            messages=[],
            listened_s=_elapsed(started),
            connected_throughout=watch.connected_throughout,
            truncated=False,
            omitted=len(omitted),
            gaps=show_gaps(watch.gaps, self._room_for_gaps(max_bytes)),
        )
        messages = [newest[topic] for topic in sorted(newest)]
        answer.messages = fit_all(messages, self._room(max_bytes, answer))
        answer.omitted += len(messages) - len(answer.messages)
        answer.truncated = answer.omitted > 0 or any(message.cut for message in answer.messages)
        return answer

    async def mqtt_subscribe(self, topic_filter: Filter, qos: QoS = 1) -> Subscribed:
        """Start collecting messages in the background, retained ones first; read them with mqtt_messages."""
        caller = callers.current.get()
        if caller.transport == "http":
            await self._end_forgotten()
            if len(self._broker.inbox.of(caller.principal)) >= MOST_SUBSCRIPTIONS:
                raise InputError(f"You have {MOST_SUBSCRIPTIONS} subscriptions: end some with mqtt_unsubscribe first.")
        subscription = await self._broker.subscribe(TopicFilter(topic_filter), qos)
        subscription.owner = caller.principal
        return Subscribed(
            subscription_id=subscription.id,
            topic_filter=_shown_topic(subscription.topic_filter.text),
            granted_qos=subscription.granted_qos,
            cursor=self._broker.inbox.cursor(subscription),
        )

    async def _end_forgotten(self) -> None:
        for subscription in list(self._broker.inbox.subscriptions.values()):
            if time.monotonic() - subscription.read_at > FORGOTTEN_S:
                with suppress(BrokerError):  # it has ended here all the same
                    await self._broker.unsubscribe(subscription)

    async def mqtt_messages(
        self,
        subscription_id: OptionalText = "",
        topic_filter: OptionalText = "",
        after: Annotated[OptionalText, Field(description="next_cursor of an earlier answer; default: the oldest")] = "",
        limit: Limit = 50,
        mode: Annotated[
            Literal["full", "latest", "changes", "stats"],
            Field(description="every message, the last per topic, only changed payloads, or figures per topic"),
        ] = "full",
        max_bytes: MaxBytes = None,
    ) -> Messages:
        """Read what subscriptions have collected, oldest first. Reading removes nothing.

        gaps and connected_throughout tell silence from not listening, dropped what fell out of the buffer.
        """
        inbox = self._broker.inbox
        owner = callers.current.get().principal
        subscription = inbox.subscription(subscription_id, owner) if subscription_id else None
        for each in [subscription] if subscription else inbox.of(owner):
            each.read_at = time.monotonic()
        wanted = TopicFilter(topic_filter) if topic_filter else None
        if wanted:
            self._broker.policy.check_subscribe(wanted)
        if subscription is None and not inbox.subscriptions and not len(inbox):
            raise InputError("There is no subscription and nothing was collected: call mqtt_subscribe first.")
        there = await self._broker.still_there(MAX_SILENCE_S)
        reading = inbox.read(subscription, wanted, after or None, "full" if mode == "stats" else mode)
        gaps = show_gaps(reading.gaps, self._room_for_gaps(max_bytes))
        if subscription is None and wanted is not None and not _covered(wanted, inbox):
            cause = "no open subscription covers this filter: what it does not bring was not listened to"
            gaps.append(ShownGap(start=instant(self._started), end=None, cause=cause))
        answer = Messages(
            messages=[],
            next_cursor=reading.cursor(0),
            remaining=0,
            dropped=reading.dropped,
            gaps=gaps,
            connected_throughout=there and all(gap.lost is not None for gap in gaps),
            truncated=False,
        )
        room = self._room(max_bytes, answer)
        if mode == "stats":
            _fill_in_statistics(answer, reading, limit, room)
            return answer
        answer.messages = fit_in_order(reading.messages[:limit], room)
        answer.next_cursor = reading.cursor(len(answer.messages))
        answer.remaining = len(reading.messages) - len(answer.messages)
        answer.truncated = answer.remaining > 0 or any(message.cut for message in answer.messages)
        return answer

    async def mqtt_unsubscribe(self, subscription_id: str) -> Unsubscribed:
        """End a subscription; other subscriptions to the same filter go on."""
        subscription = self._broker.inbox.subscription(subscription_id, callers.current.get().principal)
        await self._broker.unsubscribe(subscription)
        return Unsubscribed(
            topic_filter=_shown_topic(subscription.topic_filter.text),
            received=subscription.received,
            dropped=subscription.dropped,
        )

    async def mqtt_wait(
        self,
        context: Context[Any, Any],
        topic_filter: Filter,
        condition: Annotated[Condition | None, Field(description="default: any message")] = None,
        count: Annotated[int, Field(ge=1, le=1000)] = 1,
        timeout_s: Timeout = 30,
    ) -> Waited:
        """Wait until `count` messages come that meet the condition, or the time is over.

        A retained value counts only for a condition. To send something and wait for its answer use mqtt_request.
        """
        matcher = Matcher(condition) if condition is not None else None
        matched: list[Message] = []
        seen = 0
        done = asyncio.Event()

        def hear(message: Message) -> None:
            nonlocal seen
            if done.is_set():
                return
            seen += 1
            if matcher.meets(message) if matcher is not None else not message.retained:
                matched.append(message)
                if len(matched) == count:
                    done.set()

        started = time.monotonic()
        async with self._broker.listen(TopicFilter(topic_filter), hear) as watch:
            while not done.is_set() and (left_s := timeout_s - (time.monotonic() - started)) > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left_s, _PROGRESS_S)):
                        await done.wait()
                await tell_progress(
                    context,
                    min(time.monotonic() - started, timeout_s),
                    timeout_s,
                    f"{len(matched)} of {count} matched, {seen} messages seen",
                )
        answer = Waited(
            matched=done.is_set(),
            messages=[],
            seen=seen,
            waited_s=_elapsed(started),
            connected_throughout=watch.connected_throughout,
            gaps=show_gaps(watch.gaps, self._room_for_gaps(None)),
        )
        answer.messages = fit_all(matched, self._room(None, answer))
        cut = any(message.cut for message in answer.messages)
        answer.truncated = cut or len(answer.messages) < len(matched)
        return answer

    async def mqtt_publish(
        self,
        topic: str,
        payload: Annotated[str, Field(description="sent as it is; JSON as text")],
        qos: QoS = 1,
        retain: bool = False,
        encoding: Annotated[
            Literal["text", "json", "hex", "base64"],
            Field(description="json: checked, sent unchanged; hex, base64: decoded to bytes"),
        ] = "text",
        content_type: OptionalText = "",
        expiry_s: Annotated[int | None, Field(ge=0, le=0xFFFF_FFFF)] = None,
        response_topic: OptionalText = "",
        user_properties: dict[str, str] | None = None,
    ) -> PublishedAnswer:
        """Publish one message and report the broker's acknowledgement.

        Acts on real devices. With retain=true it replaces the topic's kept value. Use mqtt_request to get a response.
        """
        check_topic_name(topic)
        data = self._data(topic, payload, encoding, retain=retain)
        self._check_response_topic(response_topic)
        properties = PublishProperties(
            content_type=_mqtt_text(content_type, "content_type"),
            expiry_s=expiry_s,
            response_topic=response_topic,
            user_properties=tuple(
                (_mqtt_text(name, "user_properties"), _mqtt_text(value, "user_properties"))
                for name, value in (user_properties or {}).items()
            ),
        )
        before, undo = None, ""
        if retain:
            async with self._overwriting.setdefault(topic, asyncio.Lock()):
                try:
                    before = await self._retained_on(topic)
                except (BrokerRefusedError, PolicyRefusedError):
                    undo = "What was retained there before may not be read, so it could not be kept."
                if before and self._confirm == "overwrite" and not _overwrites.get():
                    raise PolicyRefusedError(
                        f"Something is retained on {shown(topic)} by now: make the same call again, so that a person "
                        "can be asked. Nothing was sent."
                    )
                published = await self._broker.publish(topic, data, qos, retain=True, properties=properties)
        else:
            published = await self._broker.publish(topic, data, qos, retain=False, properties=properties)
        act = self._undo.begin() if before else ""
        undo = how(act) if before else undo
        return PublishedAnswer(
            topic=_shown_topic(topic),
            bytes=len(data),
            qos=qos,
            retain=retain,
            acknowledged=published.acknowledged,
            reason=visible(published.reason),
            elapsed_ms=round(published.elapsed_ms, 2),
            replaced=self._undo.keep(act, before) if before else None,
            undo=undo,
        )

    async def _about_to_publish(
        self, topic: str, payload: str, qos: int, retain: bool, encoding: str, response_topic: str, **_: object
    ) -> Plan:
        self._broker.policy.check_publish(check_topic_name(topic), retain=retain)
        self._check_response_topic(response_topic)
        data = self._data(topic, payload, encoding, retain=retain)
        words = f"publish {len(data)} bytes to {shown(topic)} with QoS {qos}"
        if response_topic:
            words += f", the answer to go to {shown(response_topic)}"
        if not retain:
            return Plan(words, content=payload)
        if self._confirm == "destructive":
            return Plan(f"{words}, retained", content=payload)
        _overwrites.set(True)
        try:
            before = await self._retained_on(topic)
        except (BrokerRefusedError, PolicyRefusedError):
            return Plan(f"{words}, retained in place of what may not be read", "a retained value", payload)
        if before is None:
            _overwrites.set(False)
            return Plan(f"{words}, retained where nothing is", content=payload)
        return Plan(f"{words}, retained in place of {len(before.payload)} bytes", "a retained value", payload)

    def _check_response_topic(self, topic: str) -> None:
        """Refuse a response topic that is closed to us: whoever answers would publish there in our place."""
        if topic:
            self._broker.policy.check_publish(check_topic_name(topic), retain=False)

    async def _about_to_request(self, topic: str, payload: str, response_topic: str, **_: object) -> Plan:
        self._broker.policy.check_publish(check_topic_name(topic), retain=False)
        if response_topic:
            self._broker.policy.check_subscribe(TopicFilter(response_topic))
            if self._broker.state.protocol == "5":  # with 3.1.1 nobody is told of it
                self._check_response_topic(response_topic)
        words = f"publish {len(payload)} characters to {shown(topic)} and wait for the answer"
        return Plan(words, content=payload)

    async def _about_to_clear(self, topic_filter: str, dry_run: bool, limit: int) -> Plan | None:
        if dry_run:
            return None
        self._broker.policy.check_subscribe(TopicFilter(topic_filter))
        broker = self._broker.state.broker
        return Plan(f"delete up to {limit} retained messages below {shown(topic_filter)} from {broker}", "something")

    async def _retained_on(self, topic: str) -> Message | None:
        """Return the retained message of a topic.

        Raises:
            BrokerRefusedError, PolicyRefusedError: It may not be read.
            BrokerSilentError: The broker did not tell.
        """
        found: list[Message] = []
        async with self._broker.listen(TopicFilter(topic), found.append):
            there = await self._broker.still_there(0)  # what is retained comes before the answer to this
        if not there:
            raise BrokerSilentError(f"The broker did not say what is retained on {shown(topic)}. Nothing was sent.")
        return next((message for message in found if message.retained and message.payload), None)

    async def mqtt_request(
        self,
        topic: str,
        payload: str,
        response_topic: Annotated[OptionalText, Field(description="needed with MQTT 3.1.1 only")] = "",
        timeout_s: Timeout = 10,
    ) -> Responded:
        """Publish a request and return the response, matched by MQTT 5 correlation data."""
        check_topic_name(topic)
        data = self._encode(payload, "text")
        state = self._broker.state
        own_topic = not response_topic
        if own_topic and state.protocol == "3.1.1":
            raise InputError("The broker speaks MQTT 3.1.1: give the response_topic on which the device answers.")
        answer_topic = response_topic or response_root(state.client_id) + secrets.token_hex(8)
        if check_topic_name(answer_topic) == topic:
            raise InputError("The response_topic is the topic itself: the request would be taken for its own response.")
        correlation = secrets.token_bytes(12)
        modern = state.protocol == "5"
        response: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def hear(message: Message) -> None:
            # A responder that does not know correlation data sends none back; another's response has another's.
            ours = message.properties.get("correlation_data", correlation) == correlation
            if ours and not message.retained and not response.done():
                response.set_result(message)

        properties = PublishProperties(response_topic=answer_topic, correlation_data=correlation)
        fate = "was not acknowledged, so it may have been taken or not,"
        async with self._broker.listen(TopicFilter(answer_topic), hear) as watch:
            started = time.monotonic()
            publishing = asyncio.create_task(
                self._broker.publish(
                    topic,
                    data,
                    min(1, state.maximum_qos),
                    retain=False,
                    properties=properties if modern else PublishProperties(),
                )
            )
            either: set[asyncio.Future[Any]] = {publishing, response}
            try:  # a response can overtake the acknowledgement, which may never come
                await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                if publishing.done() and not response.done():
                    fate = f"was published ({publishing.result().reason})"
                    await asyncio.wait({response}, timeout=max(0.0, timeout_s - (time.monotonic() - started)))
            finally:
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
            elapsed_ms = (time.monotonic() - started) * 1000
        if not response.done():
            missed = "" if watch.connected_throughout else " The connection was lost meanwhile."
            raise BrokerSilentError(
                f"The request to {shown(topic)} {fate} "
                f"but no response came on {shown(answer_topic)} within {timeout_s:g} s.{missed}"
            )
        room = self._bounds.result_max_bytes - 2 * _ENVELOPE
        return Responded(response=show_message(response.result(), room), elapsed_ms=round(elapsed_ms, 2))

    async def mqtt_clear_retained(
        self,
        context: Context[Any, Any],
        topic_filter: Filter,
        dry_run: Annotated[bool, Field(description="true: only list what would be cleared")] = True,
        limit: Limit = 50,
    ) -> Cleared:
        """Delete the retained messages below a filter. First call with dry_run=true and show the user the list."""
        found, all_of_it = await self._retained(TopicFilter(topic_filter), limit)
        answer = Cleared(topics=[], cleared=0, dry_run=dry_run, truncated=not all_of_it)
        act = "" if dry_run else self._undo.begin()
        answer.undo = how(act) if act else ""
        for done, message in enumerate(found[:limit]):
            topic = _shown_topic(message.topic)
            if not dry_run:
                try:
                    qos = min(1, self._broker.state.maximum_qos)
                    await self._broker.publish(message.topic, b"", qos, retain=True, properties=PublishProperties())
                except (BrokerRefusedError, PolicyRefusedError, LimitError, InputError) as exc:
                    answer.failed.append(Uncleared(topic=topic, reason=visible(fitting(str(exc), _TOPIC_ROOM))))
                    continue
                except BrokerError as exc:
                    raise type(exc)(f"{answer.cleared} of {len(found[:limit])} were cleared. {exc}") from exc
                answer.cleared += 1
                answer.removed.append(self._undo.keep(act, message))
                await tell_progress(context, done + 1, len(found[:limit]), f"cleared {topic}")
            answer.topics.append(topic)
        if answer.failed and not answer.cleared:
            raise BrokerRefusedError(f"None of {len(answer.failed)} was cleared. {answer.failed[0].reason}")
        self._fit(answer)
        return answer

    def _fit(self, answer: Cleared) -> None:
        """Leave out what there is no room for: what can be read in the resource first."""
        room = self._bounds.result_max_bytes
        for previous in reversed(answer.removed):
            if size_of(answer) <= room:
                return
            previous.payload = previous.encoding = None
        for items in (answer.removed, answer.failed, answer.topics):
            while items and size_of(answer) > room:
                answer.omitted += len(items) - len(items) // 2
                del items[len(items) // 2 :]

    async def _retained(self, topic_filter: TopicFilter, limit: int) -> tuple[Sequence[Message], bool]:
        """Return retained messages by topic, one more than `limit` at the most, and whether these are all.

        Raises:
            BrokerSilentError: The broker was not there all the time.
        """
        found: dict[str, Message] = {}
        heard = asyncio.Event()

        def hear(message: Message) -> None:
            if message.retained and message.payload and len(found) <= limit:
                found[message.topic] = message
                heard.set()

        quiet = False
        deadline = time.monotonic() + _LONGEST_LOOK_S
        async with self._broker.listen(topic_filter, hear) as watch:
            there = await self._broker.still_there(0)  # most of what is retained comes before the answer to this
            while there and not quiet and len(found) <= limit and time.monotonic() < deadline:
                heard.clear()
                try:
                    async with asyncio.timeout(_QUIET_S if found else _FIRST_S):
                        await heard.wait()
                except TimeoutError:
                    quiet = True
        if not there or not watch.connected_throughout:
            raise BrokerSilentError(
                f"The connection did not last while looking for what is retained below {shown(topic_filter.text)}. "
                "Nothing was cleared."
            )
        return [found[topic] for topic in sorted(found)], quiet and len(found) <= limit

    def _data(self, topic: str, payload: str, encoding: str, *, retain: bool) -> bytes:
        """Encode a payload; what undo shows with a secret hidden becomes again what it was."""
        original = self._undo.original(topic, payload) if retain and encoding in _TEXTS else None
        return self._encode(payload, encoding) if original is None else original

    def _encode(self, payload: str, encoding: str) -> bytes:
        if encoding in _TEXTS:
            refuse_markers(payload)
        try:
            data = _ENCODERS[encoding](payload)
        except (ValueError, RecursionError, binascii.Error) as exc:
            raise InputError(
                f"The payload is not valid {encoding}: {shown(str(exc))[1:-1]}. Nothing was sent."
            ) from None
        limit = self._bounds.max_payload_bytes
        if len(data) > limit:
            raise InputError(f"The payload has {len(data)} bytes, MAX_PAYLOAD_BYTES allows {limit}. Nothing was sent.")
        return data

    def _room_for_gaps(self, max_bytes: int | None) -> int:
        return (max_bytes or self._bounds.result_max_bytes) // 4

    def _room(self, max_bytes: int | None, answer: BaseModel) -> int:
        """Return how many bytes of messages fit beside the other fields of `answer`."""
        return (max_bytes or self._bounds.result_max_bytes) - size_of(answer) - _ENVELOPE


def _covered(wanted: TopicFilter, inbox: Inbox) -> bool:
    """Say whether everything that `wanted` matches is being collected."""
    return any(
        subscription.topic_filter.share_name is None and subscription.topic_filter.covers(wanted)
        for subscription in inbox.subscriptions.values()
    )


def _checked_json(payload: str) -> bytes:
    json.loads(payload)
    return payload.encode()


_ENCODERS: Final[dict[str, Callable[[str], bytes]]] = {
    "text": str.encode,
    "json": _checked_json,
    "hex": bytes.fromhex,
    "base64": lambda payload: base64.b64decode(payload, validate=True),
}


_TEXTS: Final = ("text", "json")


def _mqtt_text(text: str, name: str) -> str:
    """Check a UTF-8 string property (MQTT 5.0, 1.5.4)."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(f"{name} is not valid text. Nothing was sent.") from None
    if "\0" in text or size > 0xFFFF:  # noqa: PLR2004 - two length bytes
        raise InputError(f"{name} holds a NUL or more than 65535 bytes. Nothing was sent.")
    return text


def _show_topic(heard: _Heard) -> TopicSeen:
    message = heard.last
    kind, sample = _classify(message.payload)
    return TopicSeen(
        topic=_shown_topic(message.topic),
        messages=heard.messages,
        retained=heard.retained,
        payload_type=kind,
        sample=sample,
        bytes=len(message.payload),
        last_seen=instant(message.received_at),
    )


def _classify(payload: bytes) -> tuple[Literal["empty", "number", "boolean", "json", "text", "binary"], str]:
    """Say what kind of payload it is, with the beginning of it."""
    if not payload:
        return "empty", ""
    text = decode_text(payload)
    if text is None:
        return "binary", hide_secrets_in_bytes(payload[:_SAMPLED])[: _SAMPLE_CHARS // 2].hex()
    text_shown = hide_secrets(text[:_SAMPLED])
    sample = visible(text_shown[:_SAMPLE_CHARS] + ("…" if len(text_shown) > _SAMPLE_CHARS else ""))
    try:
        value = decode_json(text)
    except NotFaithfulError:
        return "text", sample
    if isinstance(value, bool):
        return "boolean", sample
    return ("number" if isinstance(value, int | float) else "json"), sample


def _fill_in_statistics(answer: Messages, reading: Reading, limit: int, room: int) -> None:
    by_topic: dict[str, list[Message]] = {}
    for message in reading.messages:
        by_topic.setdefault(message.topic, []).append(message)
    for topic in sorted(by_topic)[:limit]:
        figures = _statistics(topic, by_topic[topic])
        room -= size_of(figures) + 2
        if room < 0:
            break
        answer.stats.append(figures)
    answer.next_cursor = reading.cursor(len(reading.messages))
    answer.truncated = len(answer.stats) < len(by_topic)


def _statistics(topic: str, messages: list[Message]) -> TopicStatistics:
    figures = TopicStatistics(
        topic=_shown_topic(topic),
        messages=len(messages),
        bytes=sum(len(message.payload) for message in messages),
        first_at=instant(messages[0].received_at),
        last_at=instant(messages[-1].received_at),
    )
    numbers = [number for message in messages if (number := _number(message.payload)) is not None]
    if numbers:
        figures.min, figures.max = min(numbers), max(numbers)
        figures.mean = sum(number / len(numbers) for number in numbers)  # so that it cannot overflow
    return figures


def _number(payload: bytes) -> float | None:
    """Return a payload that is a finite number."""
    try:
        number = float(payload)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _shown_topic(text: str) -> str:
    return visible(fitting(text, _TOPIC_ROOM))


def _elapsed(started: float) -> float:
    return round(time.monotonic() - started, 3)
