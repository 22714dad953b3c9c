"""How received messages are shown to the assistant: decoded, escaped where the eye would be fooled, and bounded."""

import base64
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, Field

from errors import InputError
from inbox import Gap, Message
from sanitizer import CERTIFICATE_MARKER, MARKER, hide_secrets, hide_secrets_in, hide_secrets_in_bytes, shortened

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
    properties_omitted: bool = Field(default=False, exclude_if=lambda value: not value)
    escaped: bool = Field(default=False, exclude_if=lambda value: not value)

    @property
    def cut(self) -> bool:
        """Whether anything of it is missing."""
        return self.payload_truncated or self.topic_truncated or self.properties_omitted


class ShownGap(BaseModel):
    """A time in which messages may have been missed, or a loss."""

    start: str
    end: str | None
    cause: str
    topic_filter: str | None = Field(default=None, exclude_if=lambda value: value is None)
    lost: int | None = Field(default=None, exclude_if=lambda value: value is None)
    session_resumed: bool = Field(default=False, exclude_if=lambda value: not value)


def show_gaps(gaps: Sequence[Gap], room: int) -> list[ShownGap]:
    """Show gaps, oldest first, in about `room` bytes: the last ones apart, the earlier ones as one."""
    apart = max(1, room // _GAP_BYTES)
    earlier, last = gaps[:-apart], gaps[-apart:]
    shown = [
        ShownGap(
            start=instant(gap.start),
            end=None if gap.end is None else instant(gap.end),
            cause=visible(gap.cause),
            topic_filter=_short(gap.topic_filter.text) if gap.topic_filter else None,
            lost=gap.lost,
            session_resumed=gap.session_resumed,
        )
        for gap in last
    ]
    if earlier:
        ends = [gap.end for gap in earlier if gap.end is not None]
        whole = ShownGap(
            start=instant(min(gap.start for gap in earlier)),
            end=instant(max(ends)) if len(ends) == len(earlier) else None,
            cause=f"{len(earlier)} earlier gaps",
            lost=None if any(gap.lost is None for gap in earlier) else sum(gap.lost or 0 for gap in earlier),
        )
        shown.insert(0, whole)
    return shown


_GAP_BYTES: Final = 256


def _short(text: str) -> str:
    kept = _beginning(text, _GAP_BYTES // 2)
    return visible(kept) + ("" if kept == text else "…")


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
    """Apply `visible` to every string of a JSON value, keys included.

    Raises:
        NotFaithfulError: Two keys would look the same.
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return _unique([(visible(key), visible_all(item)) for key, item in value.items()])
    if isinstance(value, list):
        return [visible_all(item) for item in value]
    return value


def visible_data(value: Any) -> Any:
    """Apply `visible` to a JSON value; as text where the value would not survive the way to the assistant."""
    with suppress(ValueError):
        if not _deeper_than(value, MAX_JSON_DEPTH):
            json.dumps(value, allow_nan=False)
            return visible_all(value)
    try:
        return visible(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return "(nested too deep to be shown)"


def refuse_markers(text: str) -> None:
    """Refuse a text that has a marker of ours where a secret was: it would take the secret's place.

    Raises:
        InputError: It has one.
    """
    for marker in (MARKER, CERTIFICATE_MARKER):
        if marker in text:
            raise InputError(
                f"{marker} stands for a secret that this server has hidden, and would replace it. Nothing was sent. "
                "Leave that part as it is, or ask the user to change it without the assistant."
            )


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
    except (ValueError, ArithmeticError, RecursionError):
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


LEAST_ROOM: Final = 256
"""Bytes into which every message can be cut."""


def show_message(message: Message, room: int) -> ShownMessage:
    """Show a message in at most `room` bytes of JSON, where these are at least `LEAST_ROOM`.

    The payload is cut first. Properties are left out, and then the topic is cut, only where they would leave it less
    than a quarter of the room.
    """
    topic, properties, wanted = message.topic, message.properties, room
    whole = None
    if len(message.payload) <= room:
        whole = _whole(message.payload)
        shown = _show(message, topic, properties, whole)
        if size_of(shown) <= room:
            return shown
        wanted = len(json.dumps(whole.value))
    room_beside = room - min(wanted, room // 4)
    if size_of(_show(message, topic, properties, _NOTHING)) > room_beside:
        properties = {}
    if size_of(_show(message, topic, properties, _NOTHING)) > room_beside:
        topic = _beginning(hide_secrets(topic), room_beside - size_of(_show(message, "", properties, _NOTHING)))
    if whole is not None:
        shown = _show(message, topic, properties, whole)
        if size_of(shown) <= room:
            return shown
    room_left = room - size_of(_show(message, topic, properties, _NOTHING))
    return _show(message, topic, properties, _cut(message.payload, max(0, room_left)))


class _Payload(NamedTuple):
    """What is shown of a payload."""

    value: Any
    encoding: Literal["text", "json", "base64"]
    truncated: bool
    escaped: bool


_NOTHING: Final = _Payload("", "base64", truncated=True, escaped=True)
"""What is left of a payload in the worst case, with all that there may be to say about it."""


def _show(message: Message, topic: str, properties: Mapping[str, object], payload: _Payload) -> ShownMessage:
    shown_topic, shown_properties = visible(topic), _show_properties(properties, visible)
    return ShownMessage(
        seq=message.seq,
        topic=shown_topic,
        payload=payload.value,
        encoding=payload.encoding,
        bytes=len(message.payload),
        qos=message.qos,
        retained=message.retained,
        received_at=instant(message.received_at),
        properties=shown_properties,
        payload_truncated=payload.truncated,
        topic_truncated=topic != message.topic,
        properties_omitted=len(properties) < len(message.properties),
        escaped=payload.escaped or shown_topic != topic or shown_properties != _show_properties(properties, str),
    )


def _whole(payload: bytes) -> _Payload:
    text = decode_text(payload)
    if text is None:
        shown = base64.b64encode(hide_secrets_in_bytes(payload)).decode()
        return _Payload(shown, "base64", truncated=False, escaped=False)
    try:
        value = hide_secrets_in(decode_json(text))
        shown = visible_all(value)
    except NotFaithfulError:
        shown = visible(text)
        return _Payload(shown, "text", truncated=False, escaped=shown != text)
    return _Payload(shown, "json", truncated=False, escaped=shown != value)


def _cut(payload: bytes, room: int) -> _Payload:
    """Show as much of the beginning of a payload as fits into `room` bytes of JSON, besides the quotes."""
    text = _decode_start(payload, room + _SECRET_MARGIN)
    if text is None:
        size = room // 4 * 3
        start = payload[: size + _SECRET_MARGIN]
        hidden = hide_secrets_in_bytes(start)
        surely = hidden[: max(0, len(hidden) - max(0, len(start) - size))][:size]
        return _Payload(base64.b64encode(surely).decode(), "base64", truncated=len(payload) > size, escaped=False)
    sure = hide_secrets(text)
    if len(payload) > room + _SECRET_MARGIN:
        beyond = len(text) - len(_decode_start(payload, room) or "")
        sure = sure[: max(0, len(sure) - beyond)]
    kept = _beginning(sure, room)
    truncated = kept != sure or len(payload) > room + _SECRET_MARGIN
    return _Payload(visible(kept), "text", truncated, escaped=visible(kept) != kept)


def _beginning(text: str, room: int) -> str:
    """Return as much of the beginning of `text` as takes at most `room` bytes of JSON when it is shown."""
    end = 0
    for step in (1024, 1):
        while end < len(text) and (size := len(json.dumps(visible(text[end : end + step]))) - 2) <= room:
            room -= size
            end += step
    return text[:end]


def fitting(text: str, room: int) -> str:
    """Return the beginning of a text that takes at most `room` bytes of JSON, its secrets hidden."""
    room -= 2  # the quotes
    text = shortened(text, max(0, room))
    kept = _beginning(text, room)
    return kept if kept == text else f"{_beginning(kept, room - _ELLIPSIS)}…"


_ELLIPSIS: Final = 6
"""Bytes of "…" as JSON."""


def quoted(text: str, room: int = 600) -> str:
    """Quote words of others in a sentence of ours: on one line, and where they end is plain."""
    return json.dumps(visible(fitting(text, room)), ensure_ascii=False)


def _decode_start(payload: bytes, size: int) -> str | None:
    """Decode the first `size` bytes, or return None where they are not UTF-8; a character cut in two does not count."""
    start = payload[:size]
    try:
        return start.decode()
    except UnicodeDecodeError as exc:
        return start[: exc.start].decode() if exc.reason == "unexpected end of data" else None


def _show_properties(properties: Mapping[str, object], show: Callable[[str], str]) -> dict[str, Any] | None:
    shown: dict[str, Any] = {}
    for name, value in properties.items():
        if isinstance(value, bytes):
            text = decode_text(value)
            shown[name] = show(text) if text is not None else base64.b64encode(value).decode()
        elif isinstance(value, list):
            shown[name] = [[show(key), show(text)] for key, text in value]
        else:
            shown[name] = show(value) if isinstance(value, str) else value
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
        one = show_message(message, room - _SEPARATOR)
        size = size_of(one) + _SEPARATOR
        if shown and (one.cut or size > room):
            break
        shown.append(one)
        room -= size
    return shown


_SEPARATOR: Final = 2


def fit_all(messages: Sequence[Message], room: int) -> list[ShownMessage]:
    """Show all messages in `room` bytes if that can be: short ones whole, long ones cut to a fair share.

    The longest are left out where even that is too much.
    """
    shown: dict[int, ShownMessage] = {}
    by_size = sorted(messages, key=lambda message: message.size)
    for left, message in zip(range(len(messages), 0, -1), by_size, strict=True):
        one = show_message(message, max(LEAST_ROOM, room // left - _SEPARATOR))
        size = size_of(one) + _SEPARATOR
        if size > room:
            break
        shown[message.seq] = one
        room -= size
    return [shown[message.seq] for message in messages if message.seq in shown]
