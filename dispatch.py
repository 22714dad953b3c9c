"""Who a received message is for: which subscriptions and listeners, once each, however many copies the broker sends.

A broker may send one copy of a message for each overlapping subscription or one copy for all (MQTT 5.0, 3.3.4), and it
sends retained messages again with every SUBSCRIBE. Neither may show as two messages, and no message may be lost because
it looks like another one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from inbox import Inbox, Message, Subscription
from topics import TopicFilter

_MAX_ROUTES: Final = 100_000
"""Topics whose consumers are remembered; past that the memory starts anew."""

_MAX_OWED: Final = 10_000
"""Copies that are awaited; past that the oldest are not any more."""

_OWED_S: Final = 10.0
"""So long after the last message that another feed brought first, the copies that did not come are given up."""


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
    granted: bool = False
    """Whether the broker has confirmed a SUBSCRIBE since it is there: its retained messages come before live ones."""


Consumer = Subscription | Listener


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
    at_broker: bool = False
    """Whether the broker has it, as far as what it sent until now tells."""
    subscribing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a SUBSCRIBE for it is under way."""
    owed: dict[int, int] = field(default_factory=dict)
    """How many copies of which messages, by hash, this feed still has to bring: others were faster."""
    owed_since: float = 0.0
    """When the last of them came by another feed."""

    @property
    def unused(self) -> bool:
        """Whether nobody lives on it."""
        return not self.subscriptions and not self.listeners

    def owe(self, key: int, now: float) -> None:
        """Note that another feed has brought a message first."""
        self.owed[key] = self.owed.get(key, 0) + 1
        self.owed_since = now
        if len(self.owed) > _MAX_OWED:
            del self.owed[next(iter(self.owed))]

    def pays(self, key: int, now: float) -> bool:
        """Say whether the message it brings is one that another feed has brought first."""
        if now - self.owed_since > _OWED_S:
            self.owed.clear()
        count = self.owed.pop(key, 0)
        if count > 1:
            self.owed[key] = count - 1
        return count > 0


@dataclass(slots=True, eq=False)
class _Route:
    """The consumers of one topic."""

    drawn: int
    """Which state of the feeds it shows."""
    feeds: dict[int, Feed]
    """By identifier; without those of shared subscriptions, which bring messages of their own (4.8.2)."""
    shared: dict[int, Feed]
    subscriptions: tuple[Subscription, ...]
    listeners: tuple[Listener, ...]
    copies: int
    """How many a broker sends that makes one for each subscription, those included that are being ended."""
    same_qos: bool
    """Whether these have one QoS, so that the copies do not overtake each other."""
    had: tuple[Consumer, ...] = ()
    """For whom the retained message is no news: subscriptions that have had any message, listeners that have had it."""
    last: int = 0
    """The hash of the last payload."""
    connection: int = 0
    """The number of the connection on which it came."""


class Dispatch:
    """Gives every received message to those it is for. It belongs to one event loop."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.feeds: dict[str, Feed] = {}
        self._ending: list[Feed] = []
        self._routes: dict[str, _Route] = {}
        self._state = 0
        self._connection = 1
        self._identifiers = 0
        self._untold = _UntoldCopies()

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
        self._state += 1

    def granted(self, feed: Feed) -> None:
        """Take note that the broker has a feed; to be called between the messages before and after its SUBACK."""
        for listener in feed.listeners:
            listener.granted = True
        if not feed.at_broker:
            feed.at_broker = True
            feed.owed.clear()  # what came before came without it
            self._state += 1

    def ending(self, feed: Feed) -> Callable[[], None]:
        """Take note that UNSUBSCRIBE is sent for a feed, and return what is to be called at its UNSUBACK."""
        self._ending.append(feed)
        self._state += 1

        def ended() -> None:
            if feed in self._ending:
                self._ending.remove(feed)
                self._state += 1

        return ended

    def reset(self) -> None:
        """Forget the copies that are awaited: another connection begins."""
        self._connection += 1
        self._ending.clear()
        self._untold = _UntoldCopies()
        for feed in self.feeds.values():
            feed.owed.clear()
        self._state += 1

    def session_is_new(self) -> None:
        """Take note that the broker has none of the feeds."""
        for feed in self.feeds.values():
            feed.at_broker = False
        self._state += 1

    def deliver(self, received: Received) -> None:
        """Store a message for the subscriptions it is for and let the listeners hear it, unless it is a copy."""
        sent_for = received.subscription_identifiers
        if sent_for and not 0 < min(sent_for) <= self._identifiers:  # never were ours: only its topic tells
            received = received._replace(subscription_identifiers=())
        route = self._routes.get(received.topic)
        if route is None or route.drawn != self._state:
            route = self._draw(received.topic, route)
        if received.retained:
            audience, listeners = self._newcomers(route, received)
        elif self._is_news(route, received):
            audience, listeners = route.subscriptions, route.listeners
            told = tuple(each for each in listeners if each.granted or each in route.had)
            route.had, route.last, route.connection = audience + told, hash(received.payload), self._connection
        else:
            audience, listeners = (), ()
            if not any(feed.at_broker for feed in route.feeds.values()):
                # Nobody's, but the value that everyone here is about to be told as retained.
                route.had, route.last, route.connection = (), hash(received.payload), self._connection
        if route.shared:
            audience, listeners = self._with_shared(route, received, audience, listeners)
        if not audience and not listeners:
            return
        message = Message(self._inbox.next_seq(), *received[:6], audience)
        if audience:
            self._inbox.store(message)
        for listener in listeners:
            listener.hear(message)

    def _draw(self, topic: str, old: _Route | None) -> _Route:
        if old is None and len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        matching = [feed for feed in self.feeds.values() if feed.topic_filter.matches(topic)]
        feeds = [feed for feed in matching if feed.topic_filter.share_name is None]
        sending = [feed for feed in feeds if feed.at_broker]
        sending += [feed for feed in self._ending if feed.at_broker and feed.topic_filter.matches(topic)]
        route = self._routes[topic] = _Route(
            self._state,
            {feed.identifier: feed for feed in feeds},
            {feed.identifier: feed for feed in matching if feed not in feeds},
            tuple(subscription for feed in feeds for subscription in feed.subscriptions),
            tuple(listener for feed in feeds for listener in feed.listeners),
            len(sending),
            len({feed.qos for feed in sending}) <= 1,
        )
        if old is not None:
            route.had = tuple(each for each in old.had if each in route.subscriptions or each in route.listeners)
            route.last, route.connection = old.last, old.connection
        return route

    def _newcomers(self, route: _Route, received: Received) -> tuple[tuple[Subscription, ...], tuple[Listener, ...]]:
        """Say who a retained message is news for: it answers one SUBSCRIBE, and others on the feed have it already."""
        sent_for = received.subscription_identifiers
        feeds = [feed for feed in route.feeds.values() if not sent_for or feed.identifier in sent_for]
        payload = hash(received.payload)
        changed_meanwhile = payload != route.last and route.connection != self._connection
        had = () if changed_meanwhile else route.had
        audience = tuple(each for feed in feeds for each in feed.subscriptions if each not in had)
        listeners = tuple(each for feed in feeds for each in feed.listeners if each not in had)
        route.had = (*had, *audience, *listeners)  # those on other feeds get copies of their own
        if route.connection != self._connection:
            route.last, route.connection = payload, self._connection
        return audience, listeners

    def _is_news(self, route: _Route, received: Received) -> bool:
        """Say whether a live message did not come before by another feed."""
        identifiers = received.subscription_identifiers
        if not identifiers:
            return bool(route.feeds) and not self._untold.is_copy(received, route.copies, same_qos=route.same_qos)
        bringing = [route.feeds[identifier] for identifier in identifiers if identifier in route.feeds]
        if len(route.feeds) == 1 and bringing and not bringing[0].owed:
            return True
        key, now = hash((received.topic, received.payload)), received.received_at
        paid = [feed.pays(key, now) for feed in bringing]
        if not bringing or any(paid):
            return False  # nobody's: it is on its way since before the last one left
        for feed in route.feeds.values():
            if feed not in bringing:
                feed.owe(key, now)
        return True

    def _with_shared(
        self,
        route: _Route,
        received: Received,
        audience: tuple[Subscription, ...],
        listeners: tuple[Listener, ...],
    ) -> tuple[tuple[Subscription, ...], tuple[Listener, ...]]:
        """Add those on shared subscriptions, if the message is for them as far as the broker says."""
        sent_for = received.subscription_identifiers
        for identifier, feed in route.shared.items():
            if identifier in sent_for or not (sent_for or route.feeds):
                audience += tuple(feed.subscriptions)
                listeners += tuple(feed.listeners)
        return audience, listeners


@dataclass(slots=True)
class _Awaited:
    """A message of which copies are to come."""

    key: int
    qos: int
    since: float
    copies: int
    same_qos: bool
    came: int = 0


class _UntoldCopies:
    """Recognises copies where the broker does not say which subscription a message is sent for (MQTT 3.1.1).

    Some brokers send a copy for each subscription, one right after another. Others send one for all, as mosquitto does
    by default: they show by a message whose copies do not come, and from then on nothing is taken for a copy.
    """

    _PROMPT_S: Final = 0.25
    """A copy is rarely later; what comes later may be another message that says the same."""
    _LATE_S: Final = 2.0
    """The same once the broker has shown that it copies, and for copies of another QoS, which may have to queue."""
    _CERTAIN: Final = 2
    """So many messages with prompt copies weigh as much as that many without any."""

    def __init__(self) -> None:
        self._awaited: dict[int, _Awaited] = {}
        self._last: dict[str, _Awaited] = {}
        self._copying = 0

    def is_copy(self, received: Received, copies: int, *, same_qos: bool) -> bool:
        """Say whether a message came before; `copies` is how many of it a copying broker sends."""
        if self._copying < 0 or (copies <= 1 and not self._awaited):
            return False
        now, topic = received.received_at, received.topic
        key = hash((topic, received.payload))
        self._give_up(now)
        awaited = self._awaited.get(key)
        if awaited is not None:
            awaited.came += 1
            if awaited.came == awaited.copies:
                del self._awaited[key]
            if now - awaited.since <= self._PROMPT_S:
                self._copying = min(self._copying + 1, self._CERTAIN)
            elif awaited.same_qos:
                self._copying -= 1
            return True
        last = self._last.pop(topic, None)
        if last is not None and last.same_qos and last.qos == received.qos and not (last.came or self._copying):
            # With one QoS the copies of a message come before the next one, unless so many wait that they overtake.
            self._give_up_on(last)
        if copies > 1:
            self._awaited[key] = awaited = _Awaited(key, received.qos, now, copies - 1, same_qos)
            if not self._copying:
                self._last[topic] = awaited
        return False

    def _give_up(self, now: float) -> None:
        """Stop waiting for what should be here by now."""
        while self._awaited:
            oldest = next(iter(self._awaited.values()))
            patience_s = self._PROMPT_S if oldest.same_qos and self._copying <= 0 else self._LATE_S
            if now - oldest.since <= patience_s and len(self._awaited) <= _MAX_OWED:
                return
            self._give_up_on(oldest)

    def _give_up_on(self, awaited: _Awaited) -> None:
        if self._awaited.pop(awaited.key, None) and not awaited.came:
            self._copying -= 1
