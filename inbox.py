"""The inbox: what was received, bounded, re-readable, and honest about what is missing.

Reading takes nothing away; a cursor says where a reading ended. Three things can be missing from a reading and each is
told: messages that fell out at the bound (`dropped`), times when nobody was listening, and bursts that were lost before
they could be stored (both are `gaps`).
"""

import re
import secrets
import sys
import time
import zlib
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, NamedTuple

from errors import InputError
from topics import TopicFilter, shown

Mode = Literal["full", "latest", "changes"]

MAX_SUBSCRIPTIONS: Final = 1000
"""How many subscriptions may be open: more is a loop that has run wild."""

MAX_GAPS: Final = 100
"""How many gaps that are over are told apart; the oldest are told as one."""

_MAX_COUNTED: Final = 32 << 20
"""Bytes spent on counting evictions topic by topic; past that they are counted together and told to every reader."""
_COUNT_COST: Final = 256
"""Bytes one such count takes besides the topic, rounded up."""


@dataclass(slots=True, eq=False)
class Subscription:
    """A handle on what one topic filter brought in since it was opened."""

    id: str
    topic_filter: TopicFilter
    granted_qos: int
    opened_at: float
    first_gap: int
    """Gaps that were over before it was opened do not touch it: those with a lower index."""
    received: int = 0
    dropped: int = 0
    """How many of `received` have fallen out of the inbox."""
    owner: str | None = None
    """The client it belongs to; None where there is but one."""
    read_at: float = field(default_factory=time.monotonic)
    refusal: str | None = None
    """Why the broker refused to restore it after a reconnect; it hears nothing until that changes."""


class Message(NamedTuple):
    """A received message."""

    seq: int
    """Rises by at least one from message to message and never repeats in one run."""
    topic: str
    payload: bytes
    qos: int
    retained: bool
    received_at: float
    """Seconds since the epoch."""
    properties: Mapping[str, object]
    audience: tuple[Subscription, ...] = ()
    """The subscriptions it was received for."""

    @property
    def size(self) -> int:
        """Bytes it counts for in the inbox."""
        return len(self.payload) + len(self.topic) + (len(repr(self.properties)) if self.properties else 0)


@dataclass(slots=True)
class Gap:
    """A time in which messages may have been missed, or a burst of which some certainly were."""

    start: float
    cause: str
    end: float | None = None
    """None while it lasts."""
    topic_filter: TopicFilter | None = None
    """The only filter it concerns; None for every one."""
    lost: int | None = None
    """How many messages were lost while the connection stood; None for an outage."""
    session_resumed: bool = False
    """Whether the broker kept the session, and with it the QoS 1 and 2 messages, over the outage."""
    index: int = sys.maxsize
    """Its place in the order in which gaps ended; after all others while it lasts."""


class _Cursor(NamedTuple):
    seq: int
    passed: int
    """Messages of the selection, kept or dropped, up to `seq`."""
    stored: int
    """Messages of the whole inbox, kept or dropped, up to `seq`."""
    gap: int
    """Index of the first gap that was not over."""


@dataclass(slots=True)
class Reading:
    """Messages of one selection in one window of the inbox, oldest first, and what is missing from them."""

    messages: Sequence[Message]
    dropped: int
    gaps: Sequence[Gap]
    _ordinals: Sequence[int]
    _tag: str
    _start: _Cursor
    _end: _Cursor
    _evicted: int

    @property
    def connected_throughout(self) -> bool:
        """Whether the whole window was listened to."""
        return all(gap.lost is not None for gap in self.gaps)

    def cursor(self, shown: int) -> str:
        """Return where to go on when the first `shown` of `messages` have been taken."""
        if shown == len(self.messages):
            return _write_cursor(self._tag, self._end)
        if shown == 0:
            return _write_cursor(self._tag, self._start)
        # The gaps of an unfinished window are told again with its next part.
        seq, passed = self.messages[shown - 1].seq, self._ordinals[shown - 1]
        return _write_cursor(self._tag, _Cursor(seq, passed, self._evicted, self._start.gap))


class Inbox:
    """A bounded store of received messages, oldest out first. It belongs to one event loop.

    Args:
        max_messages: The most messages held.
        max_bytes: The most bytes of topics, payloads and properties held.
        replica: The name of this process among several that clients reach by the same address; "" when it is alone.
    """

    def __init__(self, max_messages: int, max_bytes: int, replica: str = "") -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.bytes = 0
        self.dropped = 0
        self.last_seq = 0
        self.subscriptions: dict[str, Subscription] = {}
        self.gaps: list[Gap] = []
        self._messages: deque[Message] = deque()
        self._evicted = 0
        self._evicted_of_topic: Counter[tuple[str, tuple[Subscription, ...]]] = Counter()
        self._evicted_elsewhere = 0
        self._counted = 0
        self._gaps_ended = 0
        self._opened = 0
        self._replica = replica
        self._run = secrets.token_hex(3)

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def received(self) -> int:
        """How many messages it was given: those held, those that fell out, and those that could not be stored."""
        return len(self._messages) + self.dropped

    def open(self, topic_filter: TopicFilter, granted_qos: int) -> Subscription:
        """Start a subscription; it sees what is stored for it from now on.

        Raises:
            InputError: There are `MAX_SUBSCRIPTIONS` already.
        """
        if len(self.subscriptions) >= MAX_SUBSCRIPTIONS:
            raise InputError(f"There are {MAX_SUBSCRIPTIONS} subscriptions: end some with mqtt_unsubscribe first.")
        self._opened += 1
        subscription = Subscription(
            f"s{self._opened}{self._replica and f'-{self._replica}'}",
            topic_filter,
            granted_qos,
            opened_at=time.time(),
            first_gap=self._gaps_ended,
        )
        self.subscriptions[subscription.id] = subscription
        return subscription

    def close(self, subscription: Subscription) -> None:
        """End a subscription; what it brought stays readable by topic until it falls out."""
        del self.subscriptions[subscription.id]

    def of(self, owner: str | None) -> list[Subscription]:
        """List the open subscriptions of a client."""
        return [each for each in self.subscriptions.values() if each.owner == owner]

    def subscription(self, subscription_id: str, owner: str | None = None) -> Subscription:
        """Return an open subscription of a client.

        Raises:
            InputError: The client has none with this id.
        """
        found = self.subscriptions.get(subscription_id)
        if found is not None and found.owner == owner:
            return found
        if self._replica and not subscription_id.endswith(f"-{self._replica}"):
            raise InputError(
                f"This replica of the server does not hold the subscription {shown(subscription_id)}: the one that "
                "does may answer the next call, unless it has ended. Otherwise subscribe again; what came meanwhile "
                "is not here."
            )
        have = ", ".join(each.id for each in self.of(owner)[:20]) or "none"
        raise InputError(
            f"There is no subscription {shown(subscription_id)}: the open ones are {have}. "
            "A subscription ends with mqtt_unsubscribe, when the server restarts"
            f"{', or when it is not read for an hour' if self._replica else ''}."
        )

    def next_seq(self) -> int:
        """Return a sequence number that was never given before."""
        self.last_seq += 1
        return self.last_seq

    def store(self, message: Message) -> None:
        """Keep `message`, and let the oldest fall out where a bound asks for it."""
        size = message.size
        if size > self.max_bytes:
            self.lose(1, f"a message of {size} bytes is larger than BUFFER_MAX_BYTES ({self.max_bytes})")
            return
        for subscription in message.audience:
            subscription.received += 1
        self._messages.append(message)
        self.bytes += size
        while self.bytes > self.max_bytes or len(self._messages) > self.max_messages:
            self._evict()

    def _evict(self) -> None:
        message = self._messages.popleft()
        self.bytes -= message.size
        self.dropped += 1
        self._evicted += 1
        for subscription in message.audience:
            subscription.dropped += 1
        kind = message.topic, message.audience
        if kind not in self._evicted_of_topic:
            self._counted += len(message.topic) + _COUNT_COST
        if kind in self._evicted_of_topic or self._counted <= _MAX_COUNTED:
            self._evicted_of_topic[kind] += 1
        else:
            self._evicted_elsewhere += 1

    def begin_gap(self, cause: str, start: float | None = None, topic_filter: TopicFilter | None = None) -> Gap:
        """Note that from `start` (epoch seconds, now by default) messages may be missed, until `end_gap`."""
        gap = Gap(time.time() if start is None else start, cause, topic_filter=topic_filter)
        self.gaps.append(gap)
        self._tell_oldest_gaps_as_one()
        return gap

    def _tell_oldest_gaps_as_one(self) -> None:
        over = sorted((gap for gap in self.gaps if gap.end is not None), key=lambda gap: gap.index)
        if len(over) < MAX_GAPS:
            return
        oldest = over[: len(over) - MAX_GAPS + 2]
        filters = {gap.topic_filter for gap in oldest}
        as_one = Gap(
            start=min(gap.start for gap in oldest),
            cause="several gaps, too long ago to be told apart",
            end=max(gap.end or gap.start for gap in oldest),
            topic_filter=filters.pop() if len(filters) == 1 else None,
            lost=None if any(gap.lost is None for gap in oldest) else sum(gap.lost or 0 for gap in oldest),
            session_resumed=all(gap.session_resumed for gap in oldest),
            index=oldest[-1].index,
        )
        self.gaps = [as_one, *(gap for gap in self.gaps if gap.index > as_one.index)]

    def end_gap(self, gap: Gap, *, session_resumed: bool = False) -> None:
        """Note that `gap` is over."""
        gap.end = time.time()
        gap.session_resumed = session_resumed
        gap.index = self._gaps_ended
        self._gaps_ended += 1

    def lose(self, count: int, cause: str) -> None:
        """Note that `count` messages were received and could not be stored."""
        self.dropped += count
        gap = self.begin_gap(cause)
        gap.lost = count
        self.end_gap(gap)

    def held(self, topic_filter: TopicFilter) -> Iterator[Message]:
        """Yield the messages held whose topic matches, oldest first."""
        wanted = _Selection(None, topic_filter)
        return (message for message in self._messages if wanted.holds(message.topic, message.audience))

    def gaps_since(self, index: int, topic_filter: TopicFilter | None = None) -> list[Gap]:
        """Return the gaps that concern `topic_filter` and were not over when `next_gap` was `index`."""
        return [
            gap
            for gap in self.gaps
            if gap.index >= index
            and (gap.topic_filter is None or topic_filter is None or gap.topic_filter == topic_filter)
        ]

    def next_gap(self) -> int:
        """Return the index that the next gap to end will have."""
        return self._gaps_ended

    def cursor(self, subscription: Subscription) -> str:
        """Return where reading `subscription` starts if only what comes from now on is wanted."""
        selection = _Selection(subscription, None)
        return _write_cursor(
            selection.tag(self._run),
            _Cursor(self.last_seq, subscription.received, self._evicted + len(self._messages), self.next_gap()),
        )

    def read(
        self,
        subscription: Subscription | None = None,
        topic_filter: TopicFilter | None = None,
        after: str | None = None,
        mode: Mode = "full",
    ) -> Reading:
        """Read what is held of a subscription, of a filter, of both or of everything.

        Args:
            subscription: Only what was received for it.
            topic_filter: Only topics that match it.
            after: A cursor; only what came after it. By default everything held.
            mode: `full` for every message, `latest` for the last one of each topic, `changes` for those whose payload
                differs from the one before on the same topic.

        Raises:
            InputError: `after` is no cursor of this run.
        """
        selection = _Selection(subscription, topic_filter)
        tag = selection.tag(self._run)
        evicted = self._evicted_of(selection)
        if after is None:
            start = _Cursor(0, 0, 0, subscription.first_gap if subscription else 0)
            lost, passed = evicted, evicted
        else:
            start, same_selection = _read_cursor(after, tag)
            if start.seq > self.last_seq:
                raise InputError(_NOT_A_CURSOR.format(shown(after)))
            if same_selection:
                lost, passed = max(0, evicted - start.passed), max(evicted, start.passed)
            else:
                # The cursor counts messages of another selection: at most this many of ours are gone.
                lost = min(evicted, max(0, self._evicted - start.stored))
                passed = evicted + sum(
                    selection.holds(m.topic, m.audience) for m in self._messages if m.seq <= start.seq
                )
        messages, ordinals, passed = self._scan(selection, start.seq, passed, mode)
        end = _Cursor(self.last_seq, passed, self._evicted + len(self._messages), self.next_gap())
        return Reading(messages, lost, self._gaps_of(selection, start.gap), ordinals, tag, start, end, self._evicted)

    def _gaps_of(self, selection: "_Selection", index: int) -> list[Gap]:
        gaps = self.gaps_since(index)
        if (subscription := selection.subscription) is not None:
            gaps = self.gaps_since(max(index, subscription.first_gap), subscription.topic_filter)
        return [
            gap
            for gap in gaps
            if gap.topic_filter is None
            or selection.topic_filter is None
            or gap.topic_filter.overlaps(selection.topic_filter)
        ]

    def _scan(
        self, selection: "_Selection", after_seq: int, passed: int, mode: Mode
    ) -> tuple[list[Message], list[int], int]:
        chosen: dict[object, tuple[Message, int]] = {}
        previous: dict[str, bytes] = {}
        first = bisect_right(self._messages, after_seq, key=lambda message: message.seq)
        if mode == "changes":
            previous = {
                m.topic: m.payload for m in islice(self._messages, first) if selection.holds(m.topic, m.audience)
            }
        for message in islice(self._messages, first, None):
            if not selection.holds(message.topic, message.audience):
                continue
            passed += 1
            # A retained value comes again with every subscription made to it: one showing is enough.
            repeated = previous.get(message.topic) == message.payload and (mode == "changes" or message.retained)
            previous[message.topic] = message.payload
            if repeated and mode != "latest":
                continue
            key: object = message.seq
            if mode == "latest":
                key = message.topic
                chosen.pop(key, None)
            chosen[key] = (message, passed)
        return [message for message, _ in chosen.values()], [ordinal for _, ordinal in chosen.values()], passed

    def _evicted_of(self, selection: "_Selection") -> int:
        subscription = selection.subscription
        if selection.topic_filter is None:
            return self._evicted if subscription is None else subscription.dropped
        counted = sum(count for kind, count in self._evicted_of_topic.items() if selection.holds(*kind))
        if subscription is None:
            return counted + self._evicted_elsewhere
        return min(counted + self._evicted_elsewhere, subscription.dropped)


@dataclass(slots=True)
class _Selection:
    """Which messages a reading is about; topics are matched once each."""

    subscription: Subscription | None
    topic_filter: TopicFilter | None
    _matches: dict[str, bool] = field(default_factory=dict)

    def holds(self, topic: str, audience: tuple[Subscription, ...]) -> bool:
        if self.subscription is not None and self.subscription not in audience:
            return False
        if self.topic_filter is None:
            return True
        known = self._matches.get(topic)
        if known is None:
            known = self._matches[topic] = self.topic_filter.matches(topic)
        return known

    def tag(self, run: str) -> str:
        """Name the run of the server and the selection, so that a cursor is not taken for another's."""
        name = (
            f"{self.subscription.id if self.subscription else ''} {self.topic_filter.text if self.topic_filter else ''}"
        )
        return f"{run}{zlib.crc32(name.encode()):08x}"


_CURSOR = re.compile(r"([0-9a-f]{6})([0-9a-f]{8})-([0-9a-f]{1,16})-([0-9a-f]{1,16})-([0-9a-f]{1,16})-([0-9a-f]{1,16})")
_NOT_A_CURSOR = "{} is not a cursor: pass a next_cursor from an earlier answer unchanged, or leave `after` out."


def _write_cursor(tag: str, cursor: _Cursor) -> str:
    return f"{tag}-{cursor.seq:x}-{cursor.passed:x}-{cursor.stored:x}-{cursor.gap:x}"


def _read_cursor(text: str, tag: str) -> tuple[_Cursor, bool]:
    parts = _CURSOR.fullmatch(text)
    if parts is None:
        raise InputError(_NOT_A_CURSOR.format(shown(text)))
    run, selection = parts[1], parts[2]
    if not tag.startswith(run):
        raise InputError(
            "The cursor is from an earlier run of the server, or from another replica of it, and what it pointed at is "
            "not here: leave `after` out."
        )
    return _Cursor(*(int(part, 16) for part in parts.groups()[2:])), tag == run + selection
