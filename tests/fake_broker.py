"""A broker without a network, for tests of the tools: it delivers, retains, refuses and goes offline."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dispatch import Dispatch, Feed, Listener, Received
from errors import BrokerOfflineError, BrokerRefusedError
from inbox import Gap, Inbox, Message, Subscription
from mqtt_client import ConnectionState, Published, Watch
from mqtt_link import PublishProperties
from topics import TopicFilter, check_topic_name


class FakeBroker:
    """A `Broker` in memory. What a real one does over the network happens at once."""

    def __init__(self, max_messages: int = 1000, max_bytes: int = 1 << 20) -> None:
        self.inbox = Inbox(max_messages, max_bytes)
        self.state = ConnectionState(
            connected=True, broker="mqtt://fake:1883", client_id="fake", protocol="5", connections=1
        )
        self.published: list[tuple[str, bytes, int, bool, PublishProperties]] = []
        self.retained: dict[str, bytes] = {}
        self.refused: set[str] = set()
        """Topics and filters that the broker does not allow."""
        self.respond: Callable[[str, bytes, PublishProperties], None] = lambda _topic, _payload, _properties: None
        """A device, called with every message."""
        self._dispatch = Dispatch(self.inbox)
        self._gap: Gap | None = None

    @property
    def feeds(self) -> set[str]:
        """The filters subscribed to at the broker."""
        return set(self._dispatch.feeds)

    def go_offline(self, cause: str = "the cable was pulled") -> None:
        """Lose the connection."""
        self.state.connected, self.state.protocol, self.state.last_error = (
            False,
            None,
            f"The connection was lost: {cause}.",
        )
        self._gap = self.inbox.begin_gap(cause)

    def come_back(self) -> None:
        """Connect again."""
        self.state.connected, self.state.protocol, self.state.last_error = True, "5", None
        if self._gap is not None:
            self.inbox.end_gap(self._gap)

    def send(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        properties: dict[str, object] | None = None,
    ) -> None:
        """Publish something as another client would."""
        if retain:
            self.retained.pop(topic, None)
            if payload:
                self.retained[topic] = payload
        feeds = tuple(f.identifier for f in self._dispatch.feeds.values() if f.topic_filter.matches(topic))
        self._dispatch.deliver(Received(topic, payload, qos, False, time.time(), properties or {}, feeds))

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, properties: PublishProperties
    ) -> Published:
        """Publish one message."""
        check_topic_name(topic)
        self._need_connection()
        if topic in self.refused:
            raise BrokerRefusedError(f"The broker refused the message to {topic!r}: Not authorized (0x87).")
        self.published.append((topic, payload, qos, retain, properties))
        self.send(topic, payload, qos=qos, retain=retain)
        self.respond(topic, payload, properties)
        return Published(acknowledged=qos > 0, reason="Success (0x00)", elapsed_ms=0.1)

    async def subscribe(self, topic_filter: TopicFilter, qos: int) -> Subscription:
        """Open a subscription."""
        self._need_rights(topic_filter)
        feed = self._dispatch.feed(topic_filter, qos)
        subscription = self.inbox.open(topic_filter, qos)
        feed.subscriptions.append(subscription)
        self._send_retained(feed)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        self._dispatch.feeds[subscription.topic_filter.text].subscriptions.remove(subscription)
        self.inbox.close(subscription)
        self._dispatch.changed()

    @asynccontextmanager
    async def listen(
        self, topic_filter: TopicFilter, hear: Callable[[Message], None], qos: int = 1
    ) -> AsyncIterator[Watch]:
        """Hear what a filter brings until the context ends."""
        self._need_rights(topic_filter)
        first_gap = self.inbox.next_gap()
        feed, listener = self._dispatch.feed(topic_filter, qos), Listener(hear)
        feed.listeners.append(listener)
        self._send_retained(feed)
        watch = Watch()
        try:
            yield watch
        finally:
            feed.listeners.remove(listener)
            self._dispatch.changed()
        watch.gaps = self.inbox.gaps_since(first_gap)
        watch.connected_throughout = self.state.connected and not watch.gaps

    async def first_attempt(self, timeout_s: float) -> None:
        """Return at once: it has been made."""

    async def probe(self) -> float:
        """Make a round trip."""
        self._need_connection()
        return 0.1

    async def still_there(self, max_silence_s: float) -> bool:
        """Say whether the broker answers."""
        return self.state.connected

    def _send_retained(self, feed: Feed) -> None:
        self._dispatch.changed()
        for topic, payload in self.retained.items():
            if feed.topic_filter.matches(topic):
                self._dispatch.deliver(Received(topic, payload, 0, True, time.time(), {}, (feed.identifier,)))

    def _need_rights(self, topic_filter: TopicFilter) -> None:
        self._need_connection()
        if topic_filter.text in self.refused:
            raise BrokerRefusedError(
                f"The broker refused the subscription to {topic_filter.text!r}: Not authorized (0x87)."
            )

    def _need_connection(self) -> None:
        if not self.state.connected:
            raise BrokerOfflineError(f"Not connected to mqtt://fake:1883: {self.state.last_error} Nothing was sent.")
