"""How received messages are shown to the assistant: decoded, escaped where the eye would be fooled, and bounded."""

import base64
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from inbox import Gap, Message
from sanitizer import hide_secrets

MAX_JSON_DEPTH: Final = 64
"""JSON nested deeper is shown as text: parsers on the way to the model give up soon after."""

_SECRET_MARGIN: Final = 4096
"""How far beyond a cut is read, so that a secret that straddles the cut is hidden, not halved."""

_HIDING_LETTERS: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that show as nothing although Unicode calls them letters, marks or symbols."""


class ShownMessage(BaseModel):
    """A received message."""

    seq: int
    topic: str
    payload: Any
    encoding: Literal["text", "json", "base64"]
    bytes: int
    qos: int
    retained: bool
    received_at: str
    properties: dict[str, Any] | None = Field(default=None, exclude_if=lambda value: value is None)
    payload_truncated: bool = Field(default=False, exclude_if=lambda value: not value)
    topic_truncated: bool = Field(default=False, exclude_if=lambda value: not value)
    escaped: bool = Field(default=False, exclude_if=lambda value: not value)


class ShownGap(BaseModel):
    """A time in which messages may have been missed, or a loss."""

    start: str
    end: str | None
    cause: str
    topic_filter: str | None = Field(default=None, exclude_if=lambda value: value is None)
    lost: int | None = Field(default=None, exclude_if=lambda value: value is None)
    session_resumed: bool = Field(default=False, exclude_if=lambda value: not value)


def show_gaps(gaps: Iterable[Gap]) -> list[ShownGap]:
    """Show gaps as they go into an answer."""
    return [
        ShownGap(
            start=instant(gap.start),
            end=None if gap.end is None else instant(gap.end),
            cause=visible(gap.cause),
            topic_filter=gap.topic_filter.text if gap.topic_filter else None,
            lost=gap.lost,
            session_resumed=gap.session_resumed,
        )
        for gap in gaps
    ]


def instant(epoch_s: float) -> str:
    """Write an instant as RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def visible(text: str) -> str:
    r"""Show what would be invisible, or would reorder the text around it, as escapes such as `\u202e`.

    Text that has nothing of the kind comes back as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(character) if _is_hidden(character) else character for character in text)


def _is_hidden(character: str) -> bool:
    if character in "\t\n\r":
        return False
    category = unicodedata.category(character)
    return (
        category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or character in _HIDING_LETTERS
        or "\ufe00" <= character <= "\ufe0f"  # variation selectors carry text that nobody sees
        or "\U000e0100" <= character <= "\U000e01ef"
        or "\u180b" <= character <= "\u180f"
    )


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004 - the basic plane


def visible_all(value: Any) -> Any:
    """Apply `visible` to every string of a JSON value, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): visible_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [visible_all(item) for item in value]
    return value


def decode_text(payload: bytes) -> str | None:
    """Return the payload as text, or None where it is not UTF-8."""
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


class NotFaithfulError(ValueError):
    """Parsing would show something else than what is there."""


def decode_json(text: str) -> Any:
    """Parse JSON that survives the way to the assistant unchanged.

    Raises:
        NotFaithfulError: It is no JSON, or JSON that would change: NaN, a number beyond the precision of a double, the
            same key twice, or nesting beyond `MAX_JSON_DEPTH`.
    """
    if not text or text[0] not in _JSON_STARTS:  # most text ends here
        raise NotFaithfulError
    try:
        value = json.loads(text, parse_float=_exact_float, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise NotFaithfulError from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise NotFaithfulError
    return value


_JSON_STARTS: Final = frozenset(' \t\r\n{["-0123456789tfn')


def _exact_float(text: str) -> float:
    value = float(text)
    if Decimal(repr(value)) != Decimal(text):
        raise NotFaithfulError
    return value


def _refuse(_constant: str) -> None:
    raise NotFaithfulError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotFaithfulError
    return found


def _deeper_than(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if depth == 0:
        return True
    return any(_deeper_than(item, depth - 1) for item in (value.values() if isinstance(value, dict) else value))


def show_message(message: Message, room: int) -> ShownMessage:
    """Show a message in about `room` bytes of JSON, at most that if it has to be cut.

    A payload is cut before anything else; topics and properties only where they are so long that nothing else helps.
    """
    keep = room
    while True:
        shown = _show(message, keep)
        if keep < _LEAST_KEPT or size_of(shown) <= room:
            return shown
        keep = keep * 2 // 3


_LEAST_KEPT: Final = 16


def _show(message: Message, keep: int) -> ShownMessage:
    topic = visible(message.topic)
    properties = _show_properties(message.properties)
    long_topic = max(_LEAST_KEPT, keep // 4)
    if properties is not None and len(repr(properties)) > keep // 2:
        properties = {"omitted_bytes": len(repr(message.properties))}
    payload, encoding, truncated = _show_payload(message.payload, keep)
    return ShownMessage(
        seq=message.seq,
        topic=topic if len(topic) <= long_topic else topic[:long_topic] + "…",
        payload=payload,
        encoding=encoding,
        bytes=len(message.payload),
        qos=message.qos,
        retained=message.retained,
        received_at=instant(message.received_at),
        properties=properties,
        payload_truncated=truncated,
        topic_truncated=len(topic) > long_topic,
        escaped=topic != message.topic
        or (encoding == "text" and not truncated and payload != decode_text(message.payload)),
    )


def _show_payload(payload: bytes, keep: int) -> tuple[Any, Literal["text", "json", "base64"], bool]:
    whole = len(payload) <= keep
    text = decode_text(payload) if whole else _decode_start(payload, keep + _SECRET_MARGIN)
    if text is None:
        return base64.b64encode(payload[: keep // 4 * 3]).decode(), "base64", len(payload) > keep // 4 * 3
    if whole:
        try:
            return visible_all(decode_json(text)), "json", False
        except NotFaithfulError:
            return visible(text), "text", False
    return visible(hide_secrets(text)[:keep]), "text", True


def _decode_start(payload: bytes, size: int) -> str | None:
    """Decode the first `size` bytes, or return None where they are not UTF-8; a character cut in two does not count."""
    start = payload[:size]
    try:
        return start.decode()
    except UnicodeDecodeError as exc:
        return start[: exc.start].decode() if exc.reason == "unexpected end of data" else None


def _show_properties(properties: Mapping[str, object]) -> dict[str, Any] | None:
    shown: dict[str, Any] = {}
    for name, value in properties.items():
        if isinstance(value, bytes):
            text = decode_text(value)
            shown[name] = visible(text) if text is not None else base64.b64encode(value).decode()
        elif isinstance(value, list):
            shown[name] = [[visible(key), visible(text)] for key, text in value]
        else:
            shown[name] = visible(value) if isinstance(value, str) else value
    return shown or None


def size_of(model: BaseModel) -> int:
    """Return how many bytes a model takes in an answer, at the most: as JSON with spaces and escapes."""
    return len(json.dumps(model.model_dump()))


def fit_in_order(messages: Sequence[Message], room: int) -> list[ShownMessage]:
    """Show as many messages as fit into `room` bytes, in order; the first is cut if it alone does not fit."""
    shown: list[ShownMessage] = []
    for message in messages:
        if shown and len(message.payload) > room:
            break
        one = show_message(message, room)
        size = size_of(one) + _SEPARATOR
        if shown and (size > room or one.payload_truncated):
            break
        shown.append(one)
        room -= size
    return shown


_SEPARATOR: Final = 2


def fit_all(messages: Sequence[Message], room: int) -> list[ShownMessage]:
    """Show all messages in `room` bytes if that can be: short ones whole, long ones cut to a fair share.

    The last ones are left out where even that is too much.
    """
    shown: dict[int, ShownMessage] = {}
    for left, message in zip(
        range(len(messages), 0, -1), sorted(messages, key=lambda message: len(message.payload)), strict=True
    ):
        one = show_message(message, max(_LEAST_SHARE, room // left) - _SEPARATOR)
        size = size_of(one) + _SEPARATOR
        if size > room:
            break
        shown[message.seq] = one
        room -= size
    return [shown[message.seq] for message in messages if message.seq in shown]


_LEAST_SHARE: Final = 256
