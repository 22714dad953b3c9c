"""What every `Broker` promises: the fake that other tests trust, and the real client on each kind of broker.

A claim that not all of them can make names the stages it is made on.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Protocol

import pytest
from pydantic import SecretStr

import mqtt_client
from config import BrokerConfig
from errors import BrokerOfflineError, BrokerRefusedError, InputError
from inbox import Inbox, Message, Subscription
from mqtt_client import Broker, MqttClient, Published
from mqtt_link import PublishProperties
from simulator.users import User
from tests.brokers import Embedded, Mosquitto
from tests.fake_broker import FakeBroker
from tests.raw_client import RawClient
from tests.wire import until
from topics import TopicFilter

pytestmark = pytest.mark.anyio

FORBIDDEN = "forbidden/x"
NOBODY_SUBSCRIBED = 0x10

EVERY_STAGE = ["fake", "embedded", "mosquitto-5", "mosquitto-3.1.1"]
TELLING_REFUSED_PUBLISHES = ["fake", "embedded", "mosquitto-5"]  # MQTT 3.1.1 has no way to say it
TELLING_REFUSED_SUBSCRIPTIONS = ["fake", "embedded"]  # mosquitto 2.0.11 asks its ACL file only when it delivers

_numbers = itertools.count()


class Stage(Protocol):
    """A `Broker` and the world beyond it."""

    broker: Broker

    def send(self, topic: str, payload: bytes = b"", *, qos: int = 1, retain: bool = False) -> None:
        """Publish as somebody else."""

    def is_subscribed(self, topic: str) -> bool:
        """Say whether the broker has us down for `topic`; sends an empty message there."""

    def lose(self) -> None:
        """Take the broker away."""

    def come_back(self) -> None:
        """Have it again."""


class FakeStage:
    """The fake."""

    def __init__(self) -> None:
        self.broker: Broker
        self.broker = self._fake = FakeBroker()
        self._fake.refused.add(FORBIDDEN)

    def send(self, topic: str, payload: bytes = b"", *, qos: int = 1, retain: bool = False) -> None:
        self._fake.send(topic, payload, qos=qos, retain=retain)

    def is_subscribed(self, topic: str) -> bool:
        return any(TopicFilter(text).matches(topic) for text in self._fake.feeds)

    def lose(self) -> None:
        self._fake.go_offline()

    def come_back(self) -> None:
        self._fake.come_back()


class RealStage:
    """The client over the network; somebody else speaks MQTT by hand."""

    def __init__(self, real: Embedded | Mosquitto, client: MqttClient, user: str | None) -> None:
        self.broker: Broker = client
        self._real = real
        self._user = user

    def send(self, topic: str, payload: bytes = b"", *, qos: int = 1, retain: bool = False) -> None:
        self._send(topic, payload, qos, retain=retain)

    def is_subscribed(self, topic: str) -> bool:
        return self._send(topic, b"", 1, retain=False) != NOBODY_SUBSCRIBED

    def lose(self) -> None:
        self._real.stop()

    def come_back(self) -> None:
        self._real.start()

    def _send(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> int:
        with RawClient(self._real) as client:
            client.connect(username=self._user, password=self._user)
            reason = client.publish(topic, payload, qos, retain=retain)
            client.disconnect()
        assert reason in (0, NOBODY_SUBSCRIBED)
        return reason


@pytest.fixture(params=EVERY_STAGE)
async def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Each broker in turn, connected; what is lost is tried again at once."""
    monkeypatch.setattr(mqtt_client, "_BACK_OFF_S", (0.01, 0.02))
    if request.param == "fake":
        yield FakeStage()
        return
    kind, _, protocol = request.param.partition("-")
    with ExitStack() as stack:
        real: Embedded | Mosquitto
        user = None
        if kind == "embedded":
            user, allowed = "someone", ("free/#",)
            real = stack.enter_context(Embedded(users={user: User(user, publish=allowed, subscribe=allowed)}))
        else:
            make_mosquitto: Callable[..., Mosquitto] = request.getfixturevalue("make_mosquitto")
            real = make_mosquitto(acl="topic readwrite free/#\n")
        config = BrokerConfig(
            host=real.host,
            port=real.port,
            user=user,
            password=SecretStr(user) if user else None,
            protocol="3.1.1" if protocol == "3.1.1" else "5",
        )
        async with MqttClient(config, Inbox(1000, 1 << 20)) as client:
            await until(lambda: client.state.connected)
            yield RealStage(real, client, user)


@pytest.fixture
def topic() -> str:
    """A topic of the test's own, with two levels below it to play with."""
    return f"free/t{next(_numbers)}"


def on(stages: list[str]) -> pytest.MarkDecorator:
    """Make a claim for some stages only."""
    return pytest.mark.parametrize("stage", stages, indirect=True)


async def publish(broker: Broker, topic: str, payload: bytes = b"", qos: int = 1, *, retain: bool = False) -> Published:
    return await broker.publish(topic, payload, qos, retain=retain, properties=PublishProperties())


async def received(stage: Stage, subscription: Subscription, *payloads: bytes) -> list[Message]:
    """Wait until a subscription has exactly these messages, in order, and return them."""
    inbox = stage.broker.inbox
    await until(lambda: subscription.received >= len(payloads))
    await stage.broker.probe()  # what else came before the answer has arrived too
    messages = list(inbox.read(subscription).messages)
    assert [message.payload for message in messages] == list(payloads)
    assert subscription.received == len(payloads)
    return messages


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_publish_is_told_to_be_acknowledged_when_its_qos_has_acknowledgements(
    stage: Stage, topic: str, qos: int
) -> None:
    subscription = await stage.broker.subscribe(TopicFilter(topic), 2)

    published = await publish(stage.broker, topic, b"on", qos)

    assert published.acknowledged is (qos > 0)
    assert published.elapsed_ms >= 0
    if qos:
        assert published.reason == "Success (0x00)"
    (message,) = await received(stage, subscription, b"on")
    assert (message.topic, message.qos, message.retained, message.audience) == (topic, qos, False, (subscription,))
    assert abs(message.received_at - time.time()) < 60


@pytest.mark.parametrize("bad", ["", "a/+", "a/#", "a\0b", "x" * 65_536])
async def test_a_topic_that_is_none_is_refused_and_the_connection_stays(stage: Stage, topic: str, bad: str) -> None:
    with pytest.raises(InputError):
        await publish(stage.broker, bad)

    assert (await publish(stage.broker, topic)).acknowledged
    assert stage.broker.state.connections == 1


async def test_a_retained_message_comes_first_and_is_marked(stage: Stage, topic: str) -> None:
    stage.send(topic, b"kept", retain=True)

    subscription = await stage.broker.subscribe(TopicFilter(topic), 1)
    await until(lambda: subscription.received)
    stage.send(topic, b"live")

    messages = await received(stage, subscription, b"kept", b"live")
    assert [message.retained for message in messages] == [True, False]


async def test_a_retained_publish_comes_as_news_to_who_is_subscribed_already(stage: Stage, topic: str) -> None:
    subscription = await stage.broker.subscribe(TopicFilter(topic), 1)

    await publish(stage.broker, topic, b"kept", retain=True)

    (message,) = await received(stage, subscription, b"kept")
    assert message.retained is False


async def test_sequence_numbers_rise_and_reading_takes_nothing_away(stage: Stage, topic: str) -> None:
    subscription = await stage.broker.subscribe(TopicFilter(f"{topic}/#"), 1)
    inbox = stage.broker.inbox
    for number in range(5):
        stage.send(f"{topic}/{number}", str(number).encode())
    messages = await received(stage, subscription, *(str(number).encode() for number in range(5)))

    numbers = [message.seq for message in messages]
    assert numbers == sorted(set(numbers))
    assert list(inbox.read(subscription).messages) == messages
    assert list(inbox.read(subscription, after=inbox.read(subscription).cursor(2)).messages) == messages[2:]


async def test_two_subscriptions_on_one_filter_are_one_at_the_broker(stage: Stage, topic: str) -> None:
    first = await stage.broker.subscribe(TopicFilter(topic), 1)
    second = await stage.broker.subscribe(TopicFilter(topic), 1)

    stage.send(topic, b"both")
    (one,), (other,) = await received(stage, first, b"both"), await received(stage, second, b"both")
    await stage.broker.unsubscribe(first)
    stage.send(topic, b"second")
    await received(stage, second, b"both", b"second")
    await stage.broker.unsubscribe(second)
    await stage.broker.probe()

    assert one is other
    assert first.received == 1
    assert not stage.broker.inbox.subscriptions
    assert not stage.is_subscribed(topic)


async def test_a_retained_message_is_news_to_the_newest_subscription_only(stage: Stage, topic: str) -> None:
    stage.send(topic, b"kept", retain=True)
    first = await stage.broker.subscribe(TopicFilter(topic), 1)
    await received(stage, first, b"kept")
    second = await stage.broker.subscribe(TopicFilter(topic), 1)
    await received(stage, second, b"kept")
    third = await stage.broker.subscribe(TopicFilter(topic), 1)

    await received(stage, third, b"kept")
    await received(stage, second, b"kept")
    await received(stage, first, b"kept")


@pytest.mark.parametrize("again", [b"kept", b"other"])
async def test_a_retained_message_is_no_news_after_a_live_one(stage: Stage, topic: str, again: bytes) -> None:
    first = await stage.broker.subscribe(TopicFilter(topic), 1)
    stage.send(topic, b"kept", retain=True)
    await received(stage, first, b"kept")
    stage.send(topic, again)  # leaves the retained message as it is
    await received(stage, first, b"kept", again)

    second = await stage.broker.subscribe(TopicFilter(topic), 1)

    await received(stage, second, b"kept")
    await received(stage, first, b"kept", again)


async def test_overlapping_filters_show_a_message_once(stage: Stage, topic: str) -> None:
    filters = [f"{topic}/#", f"{topic}/+", f"{topic}/a", "free/+/a"]
    subscriptions = [await stage.broker.subscribe(TopicFilter(text), 1) for text in filters]
    payloads = [b"1", b"2", b"2", b"2", b"3"]

    for payload in payloads:
        stage.send(f"{topic}/a", payload)

    for subscription in subscriptions:
        await received(stage, subscription, *payloads)
    assert [message.payload for message in stage.broker.inbox.read().messages] == payloads
    assert all(message.audience == tuple(subscriptions) for message in stage.broker.inbox.read().messages)


async def test_who_listens_hears_what_is_retained_and_what_comes(stage: Stage, topic: str) -> None:
    stage.send(f"{topic}/kept", b"old", retain=True)
    heard: list[Message] = []

    async with stage.broker.listen(TopicFilter(f"{topic}/+"), heard.append) as watch:
        await until(lambda: heard)
        stage.send(f"{topic}/live", b"new")
        await until(lambda: len(heard) == 2)
    stage.send(f"{topic}/late", b"unheard")
    await stage.broker.probe()

    assert [(message.payload, message.retained) for message in heard] == [(b"old", True), (b"new", False)]
    assert (watch.connected_throughout, watch.gaps) == (True, [])
    assert not stage.is_subscribed(f"{topic}/live")
    assert len(stage.broker.inbox) == 0


async def test_who_listens_to_a_subscribed_filter_leaves_the_subscription_alone(stage: Stage, topic: str) -> None:
    stage.send(topic, b"kept", retain=True)
    subscription = await stage.broker.subscribe(TopicFilter(topic), 1)
    await received(stage, subscription, b"kept")
    heard: list[Message] = []

    async with stage.broker.listen(TopicFilter(topic), heard.append):
        await until(lambda: heard)
        stage.send(topic, b"during")
        await until(lambda: len(heard) == 2)
    stage.send(topic, b"after")

    await received(stage, subscription, b"kept", b"during", b"after")
    assert [message.payload for message in heard] == [b"kept", b"during"]


async def test_cancelling_who_listens_frees_the_subscription(stage: Stage, topic: str) -> None:
    listening = asyncio.Event()

    async def listen() -> None:
        async with stage.broker.listen(TopicFilter(topic), lambda _message: None):
            listening.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(listen())
    await listening.wait()
    assert stage.is_subscribed(topic)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stage.broker.probe()

    assert not stage.is_subscribed(topic)


async def test_an_error_of_who_listens_frees_the_subscription_and_passes(stage: Stage, topic: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with stage.broker.listen(TopicFilter(topic), lambda _message: None):
            raise ZeroDivisionError
    await stage.broker.probe()

    assert not stage.is_subscribed(topic)


@on(TELLING_REFUSED_PUBLISHES)
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_publish_that_the_broker_refuses_is_an_error(stage: Stage, topic: str, qos: int) -> None:
    with pytest.raises(BrokerRefusedError, match=rf"refused the message to '{FORBIDDEN}': Not authorized \(0x87\)"):
        await publish(stage.broker, FORBIDDEN, b"x", qos)

    assert (await publish(stage.broker, topic)).acknowledged
    assert stage.broker.state.connections == 1


@on(TELLING_REFUSED_SUBSCRIPTIONS)
async def test_a_subscription_that_the_broker_refuses_leaves_nothing_behind(stage: Stage) -> None:
    says = rf"refused the subscription to '{FORBIDDEN}': Not authorized \(0x87\)"

    with pytest.raises(BrokerRefusedError, match=says):
        await stage.broker.subscribe(TopicFilter(FORBIDDEN), 1)
    with pytest.raises(BrokerRefusedError, match=says):
        async with stage.broker.listen(TopicFilter(FORBIDDEN), lambda _message: None):
            pytest.fail("it listens")

    assert not stage.broker.inbox.subscriptions
    assert not stage.broker.inbox.gaps


async def test_a_probe_measures_a_round_trip(stage: Stage) -> None:
    assert 0 < await stage.broker.probe() < 10_000
    assert await stage.broker.still_there(0)


async def test_offline_is_an_error_at_once_and_nothing_is_queued(stage: Stage, topic: str) -> None:
    broker = stage.broker
    subscription = await broker.subscribe(TopicFilter(topic), 1)
    stage.lose()
    await until(lambda: not broker.state.connected)
    started = time.monotonic()

    for attempt in (
        publish(broker, topic, b"lost"),
        broker.subscribe(TopicFilter(topic), 1),
        broker.listen(TopicFilter(topic), lambda _message: None).__aenter__(),
        broker.probe(),
    ):
        with pytest.raises(BrokerOfflineError, match=r"^Not connected to mqtt://.*Nothing was sent\.$"):
            await attempt
    assert not await broker.still_there(60)
    assert time.monotonic() - started < 1
    assert broker.state.protocol is None
    assert broker.state.last_error

    stage.come_back()
    await until(lambda: broker.state.connected and broker.inbox.gaps[0].end is not None)
    stage.send(topic, b"after")
    await received(stage, subscription, b"after")


async def test_an_outage_is_a_gap_with_its_times_and_cause(stage: Stage, topic: str) -> None:
    broker = stage.broker
    subscription = await broker.subscribe(TopicFilter(topic), 1)
    before = broker.inbox.cursor(subscription)
    lost_at = time.time()

    stage.lose()
    await until(lambda: broker.inbox.gaps)
    (gap,) = broker.inbox.gaps
    during = broker.inbox.read(subscription, after=before)
    stage.come_back()
    await until(lambda: gap.end is not None)
    after = broker.inbox.read(subscription, after=before)

    assert gap.end is not None
    assert lost_at - 0.01 <= gap.start <= gap.end <= time.time()
    assert gap.cause
    assert gap.topic_filter is None
    for reading in (during, after):
        assert list(reading.gaps) == [gap]
        assert not reading.connected_throughout
    later = broker.inbox.read(subscription, after=after.cursor(0))
    assert (list(later.gaps), later.connected_throughout) == ([], True)


async def test_who_listens_through_an_outage_is_told(stage: Stage, topic: str) -> None:
    heard: list[Message] = []

    async with stage.broker.listen(TopicFilter(topic), heard.append) as watch:
        stage.lose()
        await until(lambda: not stage.broker.state.connected)
        stage.come_back()
        await until(lambda: stage.broker.inbox.gaps[0].end is not None)
        stage.send(topic, b"after")
        await until(lambda: heard)

    assert [message.payload for message in heard] == [b"after"]
    assert not watch.connected_throughout
    assert watch.gaps == list(stage.broker.inbox.gaps)


async def test_a_subscription_can_be_ended_offline_and_does_not_come_back(stage: Stage, topic: str) -> None:
    broker = stage.broker
    subscription = await broker.subscribe(TopicFilter(topic), 1)
    stage.lose()
    await until(lambda: not broker.state.connected)

    await broker.unsubscribe(subscription)
    stage.come_back()
    await until(lambda: broker.state.connected)
    await broker.probe()

    assert not broker.inbox.subscriptions
    assert not stage.is_subscribed(topic)
