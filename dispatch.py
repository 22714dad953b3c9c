"""Who a received message is for: which subscriptions and listeners, once each, however many copies the broker sends.

A broker may send one copy of a message for each overlapping subscription or one copy for all (MQTT 5.0, 3.3.4), and it
sends retained messages again with every SUBSCRIBE. Neither may show as two messages.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from inbox import Inbox, Message, Subscription
from topics import TopicFilter

_MAX_ROUTES: Final = 100_000
"""Topics whose consumers are remembered; past that the memory starts anew."""


class Received(NamedTuple):
    """A message as the broker sent it."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    received_at: float
    properties: dict[str, object]
    subscription_identifiers: tuple[int, ...]
    """The feeds it was sent for; empty where the broker does not say (MQTT 3.1.1)."""


@dataclass(slots=True, eq=False)
class Listener:
    """Someone who hears messages as they come, for as long as one call lasts."""

    hear: Callable[[Message], None]


@dataclass(slots=True, eq=False)
class Feed:
    """One subscription at the broker and everyone here who lives on it."""

    identifier: int
    """Its MQTT 5 subscription identifier."""
    topic_filter: TopicFilter
    qos: int
    """The highest QoS that was asked for."""
    subscriptions: list[Subscription] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    restored: bool = False
    """Whether the retained messages now coming are the answer to a reconnect, not to a new consumer."""
    subscribing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a SUBSCRIBE for it is under way."""

    @property
    def unused(self) -> bool:
        """Whether nobody lives on it."""
        return not self.subscriptions and not self.listeners


@dataclass(slots=True, eq=False)
class _Route:
    """The consumers of one topic, and how many copies came by each feed."""

    feeds: tuple[Feed, ...]
    subscriptions: tuple[Subscription, ...]
    listeners: tuple[Listener, ...]
    copies: dict[int, int]
    most_copies: int = 0


class Dispatch:
    """Gives every received message to those it is for. It belongs to one event loop."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.feeds: dict[str, Feed] = {}
        self._routes: dict[str, _Route] = {}
        self._identifiers = 0
        self._adjacent = _AdjacentCopies()

    def feed(self, topic_filter: TopicFilter, qos: int) -> Feed:
        """Return the feed of a filter, a new one where there is none."""
        feed = self.feeds.get(topic_filter.text)
        if feed is None:
            self._identifiers += 1
            feed = self.feeds[topic_filter.text] = Feed(self._identifiers, topic_filter, qos)
        return feed

    def changed(self) -> None:
        """Take note that feeds, or those who live on them, have changed."""
        for text in [text for text, feed in self.feeds.items() if feed.unused and not feed.subscribing.locked()]:
            del self.feeds[text]
        self.reset()

    def reset(self) -> None:
        """Forget the copies counted: the consumers changed, or another connection begins."""
        self._routes.clear()
        self._adjacent = _AdjacentCopies()

    def deliver(self, received: Received) -> None:
        """Store a message for the subscriptions it is for and let the listeners hear it, unless it is a copy."""
        route = self._routes.get(received.topic) or self._new_route(received.topic)
        audience, listeners = route.subscriptions, route.listeners
        if received.retained:
            audience, listeners = self._newcomers(route, received)
        elif not route.feeds or self._is_copy(route, received):
            return
        if not audience and not listeners:
            return
        message = Message(self._inbox.next_seq(), *received[:6], audience)
        if audience:
            self._inbox.store(message)
        for listener in listeners:
            listener.hear(message)

    def _new_route(self, topic: str) -> _Route:
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        feeds = tuple(feed for feed in self.feeds.values() if feed.topic_filter.matches(topic))
        route = self._routes[topic] = _Route(
            feeds,
            tuple(subscription for feed in feeds for subscription in feed.subscriptions),
            tuple(listener for feed in feeds for listener in feed.listeners),
            {feed.identifier: 0 for feed in feeds},
        )
        return route

    def _newcomers(self, route: _Route, received: Received) -> tuple[tuple[Subscription, ...], tuple[Listener, ...]]:
        """Say who a retained message is news for: it answers one SUBSCRIBE, and others on the feed have it already."""
        sent_for = received.subscription_identifiers
        feeds = [feed for feed in route.feeds if not sent_for or feed.identifier in sent_for]
        newest = self._inbox.newest(received.topic)
        audience = tuple(
            subscription
            for feed in feeds
            for subscription in feed.subscriptions
            if newest is None
            or subscription not in newest.audience
            or (feed.restored and newest.payload != received.payload)
        )
        return audience, tuple(listener for feed in feeds for listener in feed.listeners)

    def _is_copy(self, route: _Route, received: Received) -> bool:
        """Say whether the message came before by another feed.

        The n-th message of a topic is the n-th that any one feed brings: whichever feed is ahead brings news.
        """
        if not received.subscription_identifiers:
            return len(route.feeds) > 1 and self._adjacent.is_copy(received, len(route.feeds))
        news = False
        for identifier in received.subscription_identifiers:
            if identifier in route.copies:
                route.copies[identifier] += 1
                if route.copies[identifier] > route.most_copies:
                    route.most_copies = route.copies[identifier]
                    news = True
        return not news


class _AdjacentCopies:
    """Recognises copies where the broker does not say which subscription a message is sent for (MQTT 3.1.1).

    mosquitto sends the copies one right after another. The first overlapping message that comes alone shows a broker
    that sends one copy for all; from then on nothing is taken for a copy.
    """

    def __init__(self) -> None:
        self._last: tuple[str, bytes] | None = None
        self._feeds = 0
        self._expected = 0
        self._broker_sends_one = False

    def is_copy(self, received: Received, feeds: int) -> bool:
        if self._broker_sends_one:
            return False
        this = (received.topic, received.payload)
        if self._expected and this == self._last:
            self._expected -= 1
            return True
        if self._last is not None and self._expected == self._feeds - 1:
            self._broker_sends_one = True
        self._last, self._feeds, self._expected = this, feeds, feeds - 1
        return False
