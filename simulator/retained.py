"""The retained messages: the last word on each topic, bounded."""

from simulator.limits import Limits
from simulator.messages import Message
from simulator.routing import covers


class Retained:
    """At most one message a topic."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages: dict[str, Message] = {}
        self._bytes = 0

    def put(self, message: Message, now: float) -> bool:
        """Keep a message in the place of its topic's last, or only clear that when the new one is empty.

        Returns False, and leaves everything as it was, when there is no room.
        """
        last = self._messages.get(message.topic)
        if message.payload and not self._has_room(message, last):
            self._drop_expired(now)
            last = self._messages.get(message.topic)
            if not self._has_room(message, last):
                return False
        if last is not None:
            self._remove(last)
        if message.payload:
            self._messages[message.topic] = message
            self._bytes += message.size
        return True

    def matching(self, topic_filter: str, now: float) -> list[Message]:
        """Find the messages that a new subscription is told."""
        self._drop_expired(now)
        return [message for topic, message in self._messages.items() if covers(topic_filter, topic)]

    def _has_room(self, message: Message, last: Message | None) -> bool:
        count, size = (0, 0) if last is None else (1, last.size)
        return (
            len(self._messages) - count < self._limits.max_retained
            and self._bytes - size + message.size <= self._limits.max_retained_bytes
        )

    def _drop_expired(self, now: float) -> None:
        for message in [message for message in self._messages.values() if message.expired(now)]:
            self._remove(message)

    def _remove(self, message: Message) -> None:
        del self._messages[message.topic]
        self._bytes -= message.size
