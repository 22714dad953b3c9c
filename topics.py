"""Topic names and topic filters: what is well-formed, what matches, and which filter covers which.

The rules are those of MQTT 5.0, sections 1.5.4 (UTF-8 strings), 4.7 (topic names and filters) and 4.8.2 (shared
subscriptions); 3.1.1 has the same ones.
"""

import re
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from errors import InputError
from sanitizer import shortened

MAX_BYTES: Final = 65_535
"""The longest UTF-8 string MQTT can carry (1.5.4)."""

# NUL is forbidden; a receiver may close the connection over the other control characters and over noncharacters
# (1.5.4), and mosquitto does: refusing them here keeps the connection.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


def check_topic_name(topic: str) -> str:
    """Return `topic` if a message can be published to it.

    Raises:
        InputError: It is empty, too long, holds a wildcard or a character MQTT forbids.
    """
    _check_string(topic, "topic")
    if "+" in topic or "#" in topic:
        raise InputError(
            f"The topic {shown(topic)} contains a wildcard (+ or #): publish to one exact topic, "
            "wildcards are for subscriptions."
        )
    return topic


def shown(text: str) -> str:
    """Quote `text` for an error message: printable, not too long, and without secrets that a cut would disguise."""
    return repr(text if len(text) <= _SHOWN_CHARS else shortened(text, _SHOWN_CHARS))


_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class TopicFilter:
    """A well-formed topic filter; making one checks it.

    Raises:
        InputError: The filter is malformed.
    """

    text: str
    share_name: str | None = field(init=False, default=None)
    """The group of a shared subscription (`$share/GROUP/FILTER`)."""
    levels: tuple[str, ...] = field(init=False)
    """What is matched, without the `$share/GROUP/` part."""

    def __post_init__(self) -> None:
        _check_string(self.text, "topic filter")
        body = self.text
        if body.startswith("$share/"):
            _, share_name, body = (*body.split("/", 2), "", "")[:3]
            if not share_name or "+" in share_name or "#" in share_name or not body:
                raise InputError(
                    f"The shared subscription {shown(self.text)} is malformed: it has the form $share/GROUP/FILTER, "
                    "and GROUP holds no wildcard."
                )
            object.__setattr__(self, "share_name", share_name)
        levels = tuple(body.split("/"))
        for position, level in enumerate(levels):
            if "#" in level and (level != "#" or position != len(levels) - 1):
                raise InputError(f"The topic filter {shown(self.text)} is malformed: # stands alone in the last level.")
            if "+" in level and level != "+":
                raise InputError(f"The topic filter {shown(self.text)} is malformed: + stands alone in its level.")
        object.__setattr__(self, "levels", levels)

    @property
    def has_wildcard(self) -> bool:
        """Whether more than one topic can match."""
        return "+" in self.levels or self.levels[-1] == "#"

    def matches(self, topic: str) -> bool:
        """Say whether a message published to `topic` belongs to this filter."""
        return self.covers_levels(tuple(topic.split("/")))

    def covers(self, other: "TopicFilter") -> bool:
        """Say whether every topic that `other` can match is matched by this filter too."""
        return self.covers_levels(_SPELLED_OUT.get(other.levels, other.levels))

    def overlaps(self, other: "TopicFilter") -> bool:
        """Say whether there is a topic that both match."""
        mine, others = (_SPELLED_OUT.get(one.levels, one.levels) for one in (self, other))
        if mine[0] == "+":
            mine, others = others, mine
        if mine[0].startswith("$") and others[0] == "+":
            return False
        for one, two in zip_longest(mine, others):
            if "#" in (one, two):
                return True
            if one != two and (None in (one, two) or "+" not in (one, two)):
                return False
        return True

    def intersection(self, other: "TopicFilter") -> "TopicFilter | None":
        """Return the filter of the topics that both match, without a share; None where there is none."""
        if not self.overlaps(other):
            return None
        mine, others = (_SPELLED_OUT.get(one.levels, one.levels) for one in (self, other))
        levels: list[str] = []
        for position in range(max(len(mine), len(others))):
            if "#" in mine[position : position + 1]:
                levels += others[position:]
                break
            if "#" in others[position : position + 1]:
                levels += mine[position:]
                break
            levels.append(others[position] if mine[position] == "+" else mine[position])
        return TopicFilter("/".join(levels))

    def covers_levels(self, levels: tuple[str, ...]) -> bool:
        """Do the work of `matches` and `covers`: a topic is a filter without wildcards."""
        mine = self.levels
        if mine[0] in ("+", "#") and levels[0].startswith("$"):
            return False  # 4.7.2: a leading wildcard does not reach topics that begin with $
        for position, level in enumerate(mine):
            if level == "#":
                return True
            if position == len(levels) or levels[position] == "#" or level not in ("+", levels[position]):
                return False
        return len(mine) == len(levels)


_SPELLED_OUT: Final[dict[tuple[str, ...], tuple[str, ...]]] = {("#",): ("+", "#"), ("", "#"): ("", "+", "#")}
"""Filters that mean the same as a longer one, because the empty text is no topic."""


def _check_string(text: str, what: str) -> None:
    if not text:
        raise InputError(f"The {what} is empty: MQTT needs at least one character.")
    if found := _FORBIDDEN.search(text):
        raise InputError(f"The {what} {shown(text)} contains U+{ord(found[0]):04X}, which MQTT does not allow.")
    if (size := len(text.encode())) > MAX_BYTES:
        raise InputError(f"The {what} is {size} bytes long: MQTT allows at most {MAX_BYTES}.")
