"""What was retained before we replaced or cleared it, so that it can be put back."""

import base64
import json
import secrets
from collections import OrderedDict
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from inbox import Message
from sanitizer import MARKER, hide_secrets
from tools.answers import decode_text, fitting, visible

MOST_ACTS: Final = 200
MOST_BYTES: Final = 16 << 20
SHOWN_BYTES: Final = 1000
"""A payload of more is not in the answer, but in its resource."""


class Previous(BaseModel):
    """A retained value that was."""

    topic: str
    bytes: int
    encoding: Literal["text", "base64"] | None = Field(default=None, exclude_if=lambda value: value is None)
    payload: str | None = Field(default=None, exclude_if=lambda value: value is None)
    kept: bool = Field(default=True, exclude_if=lambda value: value)
    """False when there was no room for it any more."""


class Undo:
    """What the last acts replaced or cleared; the oldest act goes first."""

    def __init__(self) -> None:
        self._acts: OrderedDict[str, list[Message]] = OrderedDict()
        self._bytes = 0

    def begin(self) -> str:
        """Name an act."""
        name = secrets.token_hex(4)
        self._acts[name] = []
        self._make_room()
        return name

    def keep(self, name: str, message: Message) -> Previous:
        """Keep a retained message that is about to go, and describe how to get it back."""
        previous = Previous(topic=visible(fitting(message.topic, SHOWN_BYTES)), bytes=len(message.payload))
        self._acts[name].append(message)
        self._bytes += len(message.payload)
        self._make_room()
        if self._bytes > MOST_BYTES:
            self._acts[name].pop()
            self._bytes -= len(message.payload)
            previous.kept = False
        elif len(message.payload) <= SHOWN_BYTES:
            shown = _arguments(message)
            # What is shown with escapes would not put back the same.
            if visible(shown["payload"]) == shown["payload"] and previous.topic == message.topic:
                previous.encoding, previous.payload = shown["encoding"], shown["payload"]
        return previous

    def read(self, name: str) -> str | None:
        """Return the arguments with which mqtt_publish puts back what an act took, as JSON; None when it is gone."""
        act = self._acts.get(name)
        if act is None:
            return None
        return json.dumps([_arguments(message) | {"retain": True, "qos": message.qos} for message in act])

    def original(self, topic: str, payload: str) -> bytes | None:
        """Return what was retained on a topic and is shown as `payload` because a secret in it is hidden."""
        for act in reversed(self._acts.values()):
            for message in act:
                if message.topic == topic and MARKER in payload and _arguments(message)["payload"] == payload:
                    return message.payload
        return None

    def _make_room(self) -> None:
        while len(self._acts) > MOST_ACTS or (self._bytes > MOST_BYTES and len(self._acts) > 1):
            _, gone = self._acts.popitem(last=False)
            self._bytes -= sum(len(message.payload) for message in gone)


def how(name: str) -> str:
    """Say how an act can be undone."""
    return f"Put back with mqtt_publish and retain=true: topic, payload and encoding as here or in undo://{name}"


def _arguments(message: Message) -> dict[str, Any]:
    text = decode_text(message.payload)
    if text is None:
        return {"topic": message.topic, "payload": base64.b64encode(message.payload).decode(), "encoding": "base64"}
    return {"topic": message.topic, "payload": hide_secrets(text), "encoding": "text"}
