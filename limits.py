"""How much may happen at once: calls a second, calls under way, messages to one topic.

The limits are for what runs wild, a loop that nobody watches, and are far above what anybody works with. Nothing
queues here: what is too much is refused, and told when to come back. Everything belongs to one event loop.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from config import Rules
from errors import LimitError
from topics import shown

MESSAGES_PER_MINUTE: Final = 60_000
"""To one topic: so many at once, and in the long run so many a minute."""

MAX_TOPICS: Final = 4_096
"""Topics whose messages are counted; past that the half that has used up least of its allowance starts anew."""

MOST_QUESTIONS: Final = 10
"""To a person, at once: nobody reads more."""

_MESSAGES_PER_S: Final = MESSAGES_PER_MINUTE / 60
_ROUNDING: Final = 1e-6
"""So much of a call may be missing: who comes back exactly when told is not turned away for a float's last digit."""


class Bucket:
    """A leaky bucket: each call or message is one drop."""

    __slots__ = ("at", "level")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        self.at = now

    def add(self, now: float, size: int, per_s: float) -> float:
        """Add one drop and return 0; if it would spill, change nothing and return in how many seconds it will not."""
        level = max(self.level - (now - self.at) * per_s, 0.0) + 1
        if level - size > _ROUNDING:
            return (level - size) / per_s
        self.level, self.at = level, now
        return 0.0


class _UnderWay:
    """Counts the calls of one kind; leaving its context ends one."""

    count = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class Limits:
    """Lets calls and messages through, or refuses them; what is refused uses nothing up."""

    def __init__(self, rules: Rules, now: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._now = now
        self._calls = Bucket(now())
        self._quick = _UnderWay()
        self._waiting = _UnderWay()
        self._asking = 0
        self._topics: dict[int, Bucket] = {}  # by hash: a topic can be 64 KiB long
        self._refused = 0

    def enter(self, *, waits: bool) -> AbstractContextManager[None]:
        """Begin a tool call, which ends with the context; calls that wait take at most half of the room.

        Raises:
            LimitError: Too many are under way, or they come too fast.
        """
        rules, waiting = self._rules, self._waiting.count
        full = ""
        if self._quick.count + waiting >= rules.concurrent:
            full = f"{rules.concurrent} calls are under way, which is the limit"
        elif waits and waiting >= rules.concurrent // 2:
            full = (
                f"{waiting} calls that wait are under way, and no more than half of {rules.concurrent} calls may wait"
            )
        if full:
            raise self._refusal(
                f"{full}: come back when one of them has ended, or have the operator raise MAX_CONCURRENT_CALLS."
            )
        if wait_s := self._calls.add(self._now(), rules.burst, rules.calls_per_s):
            raise self._refusal(
                f"Calls come too fast: the limit is {rules.calls_per_s} a second and {rules.burst} at once; "
                f"{_come_back(wait_s)}, or have the operator raise RATE_LIMIT_PER_S or RATE_LIMIT_BURST."
            )
        kind = self._waiting if waits else self._quick
        kind.count += 1
        return kind

    @contextmanager
    def while_asking(self, *, waits: bool) -> Iterator[None]:
        """Let a call that is under way ask a person, in a room of its own: who waits for that keeps nobody else out.

        Raises:
            LimitError: Too many questions wait already.
        """
        if self._asking >= MOST_QUESTIONS:
            raise self._refusal(f"{MOST_QUESTIONS} questions wait for a person: come back when one is answered.")
        kind = self._waiting if waits else self._quick
        self._asking += 1
        kind.count -= 1
        try:
            yield
        finally:
            kind.count += 1
            self._asking -= 1

    def message(self, topic: str) -> None:
        """Count a message that is to be published.

        Raises:
            LimitError: There were too many to this topic.
        """
        now, key = self._now(), hash(topic)
        bucket = self._topics.get(key)
        if bucket is None:
            if len(self._topics) >= MAX_TOPICS:
                self._forget_half()
            bucket = self._topics[key] = Bucket(now)
        if wait_s := bucket.add(now, MESSAGES_PER_MINUTE, _MESSAGES_PER_S):
            raise self._refusal(
                f"Messages to {shown(topic)} come too fast: the limit is {MESSAGES_PER_MINUTE} a minute to one topic, "
                f"and no setting raises it; {_come_back(wait_s)}."
            )

    def facts(self) -> dict[str, int]:
        """Return the limits, the calls under way, and how many calls and messages have been refused since the start."""
        rules, under_way = self._rules, self._quick.count + self._waiting.count
        set_to = {"calls_per_s": rules.calls_per_s, "burst": rules.burst, "concurrent": rules.concurrent}
        return {**set_to, "under_way": under_way, "refused": self._refused}

    def _forget_half(self) -> None:
        topics = self._topics
        by_level = sorted(topics, key=lambda key: topics[key].level + topics[key].at * _MESSAGES_PER_S)
        for key in by_level[: len(by_level) // 2]:
            del topics[key]

    def _refusal(self, text: str) -> LimitError:
        self._refused += 1
        return LimitError(text)


def _come_back(wait_s: float) -> str:
    """Say when, in tenths of a second rounded up."""
    return f"come back in {max(math.ceil(round(wait_s * 10, 6)), 1) / 10} s"
