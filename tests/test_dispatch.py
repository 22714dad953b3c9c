"""Who a message is for: each consumer hears each message once, whatever copies a broker sends and in which order."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from dispatch import Dispatch, Feed, Listener, Received
from inbox import Inbox, Message, Subscription
from topics import TopicFilter

TOLD = ("one each", "one each, lagging", "one for all")
UNTOLD = ("one each, untold", "one for all, untold")
"""How brokers send a message that several subscriptions match; untold: without subscription identifiers.

Lagging copies wait, as those of another QoS may: each subscription's are in order, and acknowledgements overtake them.
"""


@dataclass(eq=False)
class Consumer:
    """Somebody on a feed: a listener, or a subscription whose messages are looked up in the inbox."""

    feed: Feed
    who: Subscription | Listener
    listened: list[Message] = field(default_factory=list)
    due: list[bytes] = field(default_factory=list)
    """What the broker sent to its feed since it is there."""


class World:
    """A broker, a connection on which what it sends waits until `receive`, and the dispatch behind that."""

    def __init__(self, copies: str = "one each") -> None:
        self.inbox = Inbox(100_000, 1 << 30)
        self.dispatch = Dispatch(self.inbox)
        self.copies = copies
        self.now = time.time()
        self.consumers: list[Consumer] = []
        self.retained: dict[str, bytes] = {}
        self.at_broker: dict[str, Feed] = {}
        self.sent: dict[Feed, set[bytes]] = {}
        self.acknowledgements: deque[tuple[int, Callable[[], None]]] = deque()
        self.copies_waiting: dict[int, deque[tuple[int, Callable[[], None]]]] = {}
        self.packets = 0

    # What the client does.

    def subscribe(self, text: str) -> Consumer:
        feed = self.dispatch.feed(TopicFilter(text), 1)
        consumer = Consumer(feed, subscription := self.inbox.open(feed.topic_filter, 1))
        feed.subscriptions.append(subscription)
        return self._join(consumer)

    def listen(self, text: str) -> Consumer:
        listened: list[Message] = []
        consumer = Consumer(self.dispatch.feed(TopicFilter(text), 1), listener := Listener(listened.append), listened)
        consumer.feed.listeners.append(listener)
        return self._join(consumer)

    def _join(self, consumer: Consumer) -> Consumer:
        self.dispatch.changed()
        self.consumers.append(consumer)
        self._accept(consumer.feed)
        return consumer

    def leave(self, consumer: Consumer) -> None:
        self.consumers.remove(consumer)
        feed = consumer.feed
        if isinstance(consumer.who, Subscription):
            feed.subscriptions.remove(consumer.who)
            self.inbox.close(consumer.who)
        else:
            feed.listeners.remove(consumer.who)
        self.dispatch.changed()
        if feed.unused:
            self._acknowledge(self.dispatch.ending(feed))
            del self.at_broker[feed.topic_filter.text]

    def reconnect(self, *, session_resumed: bool = False) -> None:
        """Lose what is under way, connect again and restore the subscriptions."""
        self.acknowledgements.clear()
        self.copies_waiting.clear()
        for consumer in self.consumers:
            had = self.heard(consumer)
            consumer.due = [payload for payload in consumer.due if payload in had]
        self.dispatch.reset()
        if not session_resumed:
            self.dispatch.session_is_new()
            self.at_broker.clear()
        for feed in self.dispatch.feeds.values():
            self._accept(feed, retained_too=not session_resumed)

    def heard(self, consumer: Consumer) -> list[bytes]:
        """Return the payloads that reached a consumer, also those that a reading would hide as repeated."""
        if isinstance(consumer.who, Listener):
            return [message.payload for message in consumer.listened]
        everything = self.inbox.held(TopicFilter("#"))
        return [message.payload for message in everything if consumer.who in message.audience]

    # What the broker does.

    def _accept(self, feed: Feed, *, retained_too: bool = True) -> None:
        self.at_broker[feed.topic_filter.text] = feed
        self._acknowledge(lambda: self.dispatch.granted(feed))
        for topic, payload in self.retained.items():
            if retained_too and feed.topic_filter.share_name is None and feed.topic_filter.matches(topic):
                self._copy((feed,), topic, payload, retained=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, our_share: bool = True) -> None:
        if retain:
            self.retained[topic] = payload
        feeds = [feed for feed in self.at_broker.values() if feed.topic_filter.matches(topic)]
        plain = [feed for feed in feeds if feed.topic_filter.share_name is None]
        shared = [feed for feed in feeds if feed not in plain and our_share]
        for consumer in self.consumers:
            if consumer.feed in plain + shared:
                consumer.due.append(payload)
        together = [tuple(plain)] if plain and self.copies.startswith("one for all") else [(feed,) for feed in plain]
        for each in [*together, *((feed,) for feed in shared)]:
            self._copy(each, topic, payload)

    def _copy(self, feeds: tuple[Feed, ...], topic: str, payload: bytes, *, retained: bool = False) -> None:
        for feed in feeds:
            self.sent.setdefault(feed, set()).add(payload)
        identifiers = () if self.copies in UNTOLD else tuple(feed.identifier for feed in feeds)
        received = Received(topic, payload, 0, retained, self.now, {}, identifiers)
        queue = feeds[0].identifier if self.copies == "one each, lagging" else 0
        self.packets += 1
        waiting = self.copies_waiting.setdefault(queue, deque())
        waiting.append((self.packets, lambda: self.dispatch.deliver(received)))

    def _acknowledge(self, event: Callable[[], None]) -> None:
        self.packets += 1
        self.acknowledgements.append((self.packets, event))

    # What the network does.

    def receive(self, packets: int = 1_000_000, which: int = 0) -> None:
        """Take packets from the connection; `which` chooses the subscription where copies are lagging."""
        for _ in range(packets):
            queues = [queue for queue in self.copies_waiting.values() if queue]
            if queues and not (
                self.acknowledgements and self.acknowledgements[0][0] < queues[which % len(queues)][0][0]
            ):
                queues[which % len(queues)].popleft()[1]()
            elif self.acknowledgements:
                self.acknowledgements.popleft()[1]()
            else:
                return


class Traffic(RuleBasedStateMachine):
    """Consumers come and go, messages are published and received in any order; no two messages are alike."""

    consumers = Bundle("consumers")
    world: World
    published = 0

    @rule(target=consumers, text=st.sampled_from(["a", "#", "+/b", "a/#"]))
    def subscribe(self, text: str) -> Consumer:
        return self.world.subscribe(text)

    @rule(target=consumers, text=st.sampled_from(["a", "#", "+/b"]))
    def listen(self, text: str) -> Consumer:
        return self.world.listen(text)

    @rule(consumer=consumes(consumers))
    def leave(self, consumer: Consumer) -> None:
        self.world.leave(consumer)

    @rule(topic=st.sampled_from(["a", "a/b", "c"]), count=st.integers(1, 3), our_share=st.booleans())
    def publish(self, topic: str, count: int, our_share: bool) -> None:
        for _ in range(count):
            self.published += 1
            self.world.publish(topic, b"%d" % self.published, retain=self.retains(topic), our_share=our_share)

    @rule(packets=st.integers(1, 5), which=st.integers(0, 3))
    def receive(self, packets: int, which: int) -> None:
        self.world.receive(packets, which)

    def retains(self, topic: str) -> bool:
        return False

    def teardown(self) -> None:
        self.world.receive()
        for consumer in self.world.consumers:
            self.check(consumer, self.world.heard(consumer))

    def check(self, consumer: Consumer, heard: list[bytes]) -> None:
        assert len(heard) == len(set(heard))
        assert set(consumer.due) <= set(heard)


class WithIdentifiers(Traffic):
    """The same with MQTT 5, shared subscriptions and reconnects."""

    @initialize(copies=st.sampled_from(TOLD))
    def start(self, copies: str) -> None:
        self.world = World(copies)

    @rule(target=Traffic.consumers, text=st.sampled_from(["$share/g/a", "$share/h/#"]))
    def share(self, text: str) -> Consumer:
        return self.world.subscribe(text)

    @rule(session_resumed=st.booleans())
    def reconnect(self, session_resumed: bool) -> None:
        self.world.reconnect(session_resumed=session_resumed)

    def check(self, consumer: Consumer, heard: list[bytes]) -> None:
        super().check(consumer, heard)
        if consumer.feed.topic_filter.share_name is not None:
            assert set(heard) <= self.world.sent.get(consumer.feed, set())

    def teardown(self) -> None:
        super().teardown()
        plain = {one.who for one in self.world.consumers if one.feed.topic_filter.share_name is None}
        stored = [one.payload for one in self.world.inbox.read().messages if plain & set(one.audience)]
        assert len(stored) == len(set(stored))


class WithoutIdentifiers(Traffic):
    """The same with MQTT 3.1.1."""

    @initialize(copies=st.sampled_from(UNTOLD))
    def start(self, copies: str) -> None:
        self.world = World(copies)

    @rule(session_resumed=st.booleans())
    def reconnect(self, session_resumed: bool) -> None:
        self.world.reconnect(session_resumed=session_resumed)


class WithRetainedMessages(Traffic):
    """The same with messages that the broker retains, and new sessions."""

    @initialize(copies=st.sampled_from(["one each", "one for all"]))
    def start(self, copies: str) -> None:
        self.world = World(copies)

    @rule()
    def reconnect(self) -> None:
        self.world.reconnect()

    def retains(self, topic: str) -> bool:
        return topic in ("a", "c")

    def check(self, consumer: Consumer, heard: list[bytes]) -> None:
        if isinstance(consumer.who, Subscription):
            assert len(heard) == len(set(heard))
        for retained in (False, True):  # a listener may hear as retained what came to it just before it was there
            listened = [message.payload for message in consumer.listened if message.retained is retained]
            assert len(listened) == len(set(listened))
        assert set(consumer.due) <= set(heard)
        kept = {payload for topic, payload in self.world.retained.items() if consumer.feed.topic_filter.matches(topic)}
        assert kept <= set(heard)


for _machine, _examples in ((WithIdentifiers, 250), (WithoutIdentifiers, 150), (WithRetainedMessages, 150)):
    _machine.TestCase.settings = settings(deadline=None, max_examples=_examples, stateful_step_count=30)

test_with_identifiers_each_message_reaches_each_consumer_once = WithIdentifiers.TestCase
test_without_identifiers_each_message_reaches_each_consumer_once = WithoutIdentifiers.TestCase
test_everyone_has_the_retained_messages_and_nobody_has_them_twice = WithRetainedMessages.TestCase


def test_a_retained_message_is_not_heard_again_after_a_reconnect_although_its_live_copy_was_for_nobody() -> None:
    world = World()
    left = world.listen("a")
    for payload in (b"1", b"2"):
        world.publish("a", payload, retain=True)
    world.receive(2)
    world.leave(left)
    stays = world.listen("a")
    world.receive()
    world.reconnect()
    world.receive()

    assert world.heard(stays) == [b"2"]


# Copies


def deliver(world: World, topic: str, payload: bytes, *feeds: Feed, retained: bool = False) -> None:
    identifiers = tuple(feed.identifier for feed in feeds)
    world.dispatch.deliver(Received(topic, payload, 1, retained, world.now, {"expiry_s": 5}, identifiers))


@pytest.mark.parametrize("copies", [*TOLD, *UNTOLD])
def test_overlapping_subscriptions_and_listeners_have_each_message_once_and_in_order(copies: str) -> None:
    world = World(copies)
    consumers = [world.subscribe("a"), world.listen("#"), world.subscribe("#"), world.listen("a/#")]
    numbers = [b"%d" % number for number in range(20)]

    for number in numbers:
        world.publish("a", number)
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [numbers] * 4
    assert [message.payload for message in world.inbox.read().messages] == numbers


def test_copies_are_recognised_however_they_are_interleaved() -> None:
    world = World()
    early, late = world.subscribe("a"), world.subscribe("#")
    world.receive()

    for payload, feed in zip(
        b"1213243545", [early, early, late, early, late, early, late, early, late, late], strict=True
    ):
        deliver(world, "a", bytes([payload]), feed.feed)

    assert world.heard(early) == world.heard(late) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_feed_far_behind_brings_nothing_new() -> None:
    world = World()
    fast, slow = world.subscribe("a"), world.subscribe("#")
    world.receive()

    for feed in (fast, slow):
        for number in range(1000):
            deliver(world, "a", b"%d" % (number % 7), feed.feed)

    assert len(world.heard(fast)) == len(world.heard(slow)) == 1000


@pytest.mark.parametrize("copies", [*TOLD, "one each, untold"])
def test_equal_messages_are_not_taken_for_copies(copies: str) -> None:
    world = World(copies)
    consumers = [world.subscribe("a"), world.listen("#")]

    for _ in range(5):
        world.publish("a", b"on")
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"on"] * 5] * 2


def test_a_broker_that_sends_one_for_all_shows_itself_and_then_nothing_is_taken_for_a_copy() -> None:
    world = World("one for all, untold")
    consumers = [world.subscribe("a"), world.listen("#")]

    for payload in b"12":
        world.publish("a", bytes([payload]))
    for _ in range(3):
        world.publish("a", b"on")
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"1", b"2", b"on", b"on", b"on"]] * 2


def test_a_copy_that_the_broker_lost_does_not_swallow_an_equal_message() -> None:
    world = World()
    lossy, other = world.subscribe("a"), world.subscribe("#")
    world.receive()

    deliver(world, "a", b"on", other.feed)  # and the copy for the other feed is lost
    deliver(world, "a", b"on", lossy.feed)
    deliver(world, "a", b"on", other.feed)

    assert world.heard(lossy) == world.heard(other) == [b"on", b"on"]


def test_a_copy_that_the_broker_lost_is_not_awaited_for_ever() -> None:
    world = World()
    lossy, other = world.subscribe("a"), world.subscribe("#")
    world.receive()

    deliver(world, "a", b"on", other.feed)
    world.now += 60
    deliver(world, "a", b"on", lossy.feed)

    assert world.heard(lossy) == world.heard(other) == [b"on", b"on"]


def test_the_copy_of_one_that_has_left_is_not_missed_and_not_told_twice() -> None:
    world = World()
    early, late = world.subscribe("a"), world.subscribe("#")
    world.publish("a", b"1")
    world.publish("a", b"2")
    world.receive(3)  # of both confirmations and four copies

    world.leave(early)
    world.receive()

    assert world.heard(late) == [b"1", b"2"]


def test_a_message_from_before_a_subscription_is_not_awaited_from_it() -> None:
    world = World()
    early = world.subscribe("a")
    world.publish("a", b"on")
    late = world.subscribe("#")
    world.receive()

    world.leave(early)
    world.publish("a", b"on")
    world.receive()

    assert world.heard(late) == [b"on", b"on"]


@pytest.mark.parametrize("copies", [*TOLD, "one each, untold"])
def test_a_copy_lost_with_a_connection_is_not_awaited_on_the_next(copies: str) -> None:
    world = World(copies)
    early, late = world.subscribe("a"), world.subscribe("#")
    world.publish("a", b"on")
    world.receive(3)

    world.reconnect()
    world.leave(early)
    world.publish("a", b"on")
    world.receive()

    assert world.heard(late) == [b"on", b"on"]


def test_no_copies_are_awaited_from_a_subscription_that_has_ended() -> None:
    world = World("one each, untold")
    stays, leaves = world.subscribe("a"), world.subscribe("#")
    world.receive()
    world.leave(leaves)
    world.receive()

    for _ in range(3):
        world.publish("a", b"on")
    world.receive()

    assert world.heard(stays) == [b"on"] * 3


def test_no_copies_are_awaited_from_a_subscription_that_ends_before_it_was_confirmed() -> None:
    world = World("one each, untold")
    stays = world.subscribe("a")
    world.publish("a", b"1")
    leaves = world.subscribe("#")
    world.publish("a", b"2")
    world.leave(leaves)

    world.receive()

    assert world.heard(stays) == [b"1", b"2"]


def test_a_message_for_nobody_leaves_no_trace() -> None:
    world = World()
    world.subscribe("a")
    gone = world.subscribe("b")
    world.receive()
    world.leave(gone)

    deliver(world, "b", b"", gone.feed)
    deliver(world, "b", b"", gone.feed, retained=True)
    deliver(world, "c", b"")
    deliver(world, "a", b"", gone.feed)

    assert (len(world.inbox), world.inbox.last_seq) == (0, 0)


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("text", ["a", "$share/g/a"])
def test_a_message_with_identifiers_that_never_were_ours_goes_by_its_topic(text: str, retained: bool) -> None:
    world = World()
    consumer = world.subscribe(text)
    world.receive()

    world.dispatch.deliver(Received("a", b"1", 0, retained, world.now, {}, (268_435_455, 99)))
    world.dispatch.deliver(Received("a", b"2", 0, False, world.now, {}, (99, consumer.feed.identifier)))

    assert world.heard(consumer) == [b"1", b"2"]


def test_what_only_a_listener_hears_is_not_stored() -> None:
    world = World()
    listener = world.listen("a")

    world.publish("a", b"1")
    world.receive()

    assert world.heard(listener) == [b"1"]
    assert (len(world.inbox), world.inbox.last_seq) == (0, 1)


def test_a_message_keeps_what_it_came_with() -> None:
    world = World()
    subscription = world.subscribe("a")
    world.receive()

    deliver(world, "a", b"1", subscription.feed)

    (message,) = world.inbox.read().messages
    assert message == (1, "a", b"1", 1, False, world.now, {"expiry_s": 5}, (subscription.who,))


def test_traffic_on_one_topic_does_not_touch_another() -> None:
    world = World()
    narrow, wide = world.subscribe("a"), world.subscribe("#")

    for topic in ("a", "b", "a", "c", "b"):
        world.publish(topic, topic.encode())
    world.receive()

    assert world.heard(narrow) == [b"a", b"a"]
    assert world.heard(wide) == [b"a", b"b", b"a", b"c", b"b"]


def test_more_topics_than_are_remembered_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is lowered: a hundred thousand topics take seconds."""
    monkeypatch.setattr("dispatch._MAX_ROUTES", 3)
    world = World()
    consumers = [world.subscribe("#"), world.listen("+")]

    for number in range(20):
        world.publish(f"t{number % 10}", b"%d" % number)
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"%d" % number for number in range(20)]] * 2


# Shared subscriptions


def test_two_groups_have_their_own_share_of_the_messages() -> None:
    world = World()
    one, other = world.subscribe("$share/g/a"), world.subscribe("$share/h/a")
    world.receive()

    for payload, feed in zip(b"1232", [one, one, other, other], strict=True):
        deliver(world, "a", bytes([payload]), feed.feed)

    assert (world.heard(one), world.heard(other)) == ([b"1", b"2"], [b"3", b"2"])


def test_a_shared_subscription_has_its_share_beside_a_plain_one_that_has_all() -> None:
    world = World()
    plain, shared = world.subscribe("a"), world.subscribe("$share/g/#")

    for number in range(6):
        world.publish("a", b"%d" % number, our_share=number % 2 == 0)
    world.receive()

    assert world.heard(plain) == [b"%d" % number for number in range(6)]
    assert world.heard(shared) == [b"0", b"2", b"4"]


# Retained messages


@pytest.mark.parametrize("copies", [*TOLD, *UNTOLD])
@pytest.mark.parametrize("join", [World.subscribe, World.listen])
def test_a_retained_message_is_told_to_each_newcomer_and_to_nobody_twice(
    copies: str, join: Callable[[World, str], Consumer]
) -> None:
    world = World(copies)
    world.publish("a", b"kept", retain=True)

    consumers = []
    for text in ("a", "a", "#", "a", "#"):
        consumers.append(join(world, text))
        world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"kept"]] * 5


def test_whoever_heard_it_live_is_not_told_it_as_retained() -> None:
    world = World()
    consumers = [world.subscribe("a"), world.listen("a")]
    world.publish("a", b"kept", retain=True)
    world.receive()

    newcomer = world.listen("a")
    world.receive()

    assert [world.heard(consumer) for consumer in (*consumers, newcomer)] == [[b"kept"]] * 3


def test_an_older_retained_message_is_no_news_to_who_has_a_newer_live_one() -> None:
    world = World()
    world.publish("a", b"old", retain=True)
    first = world.subscribe("a")
    world.publish("a", b"new")
    world.receive()

    newcomer = world.subscribe("a")
    world.receive()

    assert (world.heard(first), world.heard(newcomer)) == ([b"old", b"new"], [b"old"])


def test_a_listener_learns_that_a_topic_is_retained_though_a_message_came_first() -> None:
    """Which topics have a retained message is what a listener may have come to find out."""
    world = World()
    world.subscribe("a")
    world.receive()
    world.publish("a", b"kept", retain=True)
    listener = world.listen("#")

    world.receive()

    assert [(message.payload, message.retained) for message in listener.listened] == [(b"kept", False), (b"kept", True)]


# Reconnecting


@pytest.mark.parametrize("copies", [*TOLD, *UNTOLD])
def test_after_a_reconnect_a_retained_message_is_told_only_if_it_changed(copies: str) -> None:
    world = World(copies)
    consumers = [world.subscribe("a"), world.listen("a"), world.subscribe("#"), world.listen("#")]
    world.publish("a", b"1", retain=True)
    world.receive()

    world.reconnect()
    world.receive()
    world.publish("a", b"2", retain=True)
    world.reconnect()  # before that has come
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"1", b"2"]] * 4


@pytest.mark.parametrize("session_resumed", [False, True])
@pytest.mark.parametrize("copies", [*TOLD, *UNTOLD])
def test_copies_are_counted_anew_on_another_connection(copies: str, session_resumed: bool) -> None:
    world = World(copies)
    consumers = [world.subscribe("a"), world.listen("#")]
    for payload in b"12":
        world.publish("a", bytes([payload]))
    world.receive()
    world.publish("a", b"lost")
    world.receive(1)

    world.reconnect(session_resumed=session_resumed)
    for payload in b"34":
        world.publish("a", bytes([payload]))
    world.receive()

    assert [world.heard(consumer) for consumer in consumers] == [[b"1", b"2", b"lost", b"3", b"4"]] * 2


def test_a_late_retained_message_does_not_make_a_newer_one_news_after_a_reconnect() -> None:
    world = World()
    first, newcomer = world.subscribe("a"), world.subscribe("#")
    world.receive()
    deliver(world, "a", b"newer", first.feed)
    deliver(world, "a", b"older", newcomer.feed, retained=True)

    world.reconnect()
    world.receive()
    deliver(world, "a", b"newer", first.feed, retained=True)

    assert world.heard(first) == [b"newer"]


# Feeds


def test_a_filter_has_one_feed_and_a_new_identifier_when_it_comes_again() -> None:
    world = World()
    first, again, shared = world.subscribe("a"), world.listen("a"), world.subscribe("$share/g/a")
    world.leave(first)
    assert world.dispatch.feeds == {"a": again.feed, "$share/g/a": shared.feed}

    world.leave(again)
    later = world.listen("a")

    assert first.feed is again.feed
    assert len({first.feed.identifier, shared.feed.identifier, later.feed.identifier}) == 3


@pytest.mark.anyio
async def test_an_unused_feed_stays_while_a_subscribe_for_it_is_under_way() -> None:
    world = World()
    consumer = world.listen("a")

    async with consumer.feed.subscribing:
        world.leave(consumer)
        assert "a" in world.dispatch.feeds
    world.dispatch.changed()

    assert not world.dispatch.feeds
