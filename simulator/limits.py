"""What the development broker holds at most, so that no client can make it eat a machine."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a broker; what happens at each is said beside it.

    Attributes:
        max_clients: Sessions, connected or remembered; a further client is refused.
        max_subscriptions: Of one session; a further one is refused.
        max_retained: Retained messages; a further one is refused.
        max_retained_bytes: Their topics and payloads together; as `max_retained`.
        max_queued: Messages that wait for one session; a further one is dropped and the loss logged.
        max_queued_bytes: Their topics and payloads together; as `max_queued`.
        max_packet_bytes: One packet of a client; a larger one ends its connection.
        max_inflight: Messages on their way to one client without its acknowledgement; further ones wait.
        receive_maximum: QoS 2 messages a client may leave unfinished; one more ends its connection.
        topic_alias_maximum: Topic aliases of one connection; one more ends it.
        connect_timeout_s: Time from the TCP connection to the CONNECT packet.
    """

    max_clients: int = 1000
    max_subscriptions: int = 1000
    max_retained: int = 10_000
    max_retained_bytes: int = 64 * MIB
    max_queued: int = 100_000
    max_queued_bytes: int = 64 * MIB
    max_packet_bytes: int = 16 * MIB
    max_inflight: int = 1000
    receive_maximum: int = 1000
    topic_alias_maximum: int = 100
    connect_timeout_s: float = 10


LIMITS = Limits()
