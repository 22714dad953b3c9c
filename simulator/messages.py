"""A message inside the broker: what was published and until when it is worth delivering."""

from dataclasses import dataclass, replace
from typing import Self

from simulator.packets import Properties, Publish


@dataclass(frozen=True, slots=True)
class Message:
    """What a client published, or the process itself, which is no client and has no user name."""

    publisher: str | None
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties
    expires_at: float | None
    username: str = ""

    @classmethod
    def from_packet(cls, publisher: str | None, topic: str, packet: Publish, now: float, username: str = "") -> Self:
        """Take a message out of its packet, less what concerned only the way it came."""
        properties = packet.properties
        if properties.topic_alias is not None or properties.will_delay_s is not None:
            properties = replace(properties, topic_alias=None, will_delay_s=None)
        expiry_s = properties.message_expiry_s
        return cls(
            publisher=publisher,
            topic=topic,
            payload=packet.payload,
            qos=packet.qos,
            retain=packet.retain,
            properties=properties,
            expires_at=None if expiry_s is None else now + expiry_s,
            username=username,
        )

    @property
    def size(self) -> int:
        """What it takes of a bound in bytes."""
        return len(self.topic) + len(self.payload)

    def expired(self, now: float) -> bool:
        """Tell whether nobody is to receive it any more."""
        return self.expires_at is not None and self.expires_at <= now
