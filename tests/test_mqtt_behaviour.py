"""What MQTT promises, held against mosquitto and against the broker of `simulator/`.

Where the two differ the MQTT 5 specification decides, and the test cites its section.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import pytest

from simulator.limits import Limits
from simulator.users import User
from tests.brokers import Embedded, Mosquitto
from tests.raw_client import (
    Kind,
    Packet,
    RawClient,
    Will,
    connect_packet,
    encode_properties,
    encode_text,
    packet,
    publish_packet,
    subscribe_packet,
)

Broker = Embedded | Mosquitto
Join = Callable[..., RawClient]

MALFORMED, PROTOCOL_ERROR = 0x81, 0x82


@pytest.fixture(params=[4, 5], ids=["3.1.1", "5"])
def level(request: pytest.FixtureRequest) -> int:
    """Each protocol version in turn."""
    version: int = request.param
    return version


@pytest.fixture
def topic() -> str:
    """Give a topic that no other test uses."""
    return f"behaviour/{uuid4().hex}"


@pytest.fixture
def join(broker: Broker) -> Iterator[Join]:
    """Connect a client to each plain broker: the level, then the arguments of `RawClient.connect`."""
    yield from joining(broker)


@pytest.fixture
def join_ours(embedded: Embedded) -> Iterator[Join]:
    """Connect a client to our broker, for what mosquitto does otherwise."""
    yield from joining(embedded)


def joining(broker: Broker) -> Iterator[Join]:
    """Give a way to connect, and close what it has connected."""
    with ExitStack() as clients:

        def connect(level: int = 5, client_id: str = "", **options: Any) -> RawClient:
            client = clients.enter_context(RawClient(broker, level))
            client.connect(client_id, **options)
            assert client.connack.reason == 0
            return client

        yield connect


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give a broker where `reader` may subscribe to `open/#` only, and `writer` publish there only."""
    if request.param == "embedded":
        users = {
            "reader": User("secret", publish=(), subscribe=("open/#",)),
            "writer": User("secret", publish=("open/#",), subscribe=()),
        }
        with Embedded(users=users) as ours:
            yield ours
    else:
        request.getfixturevalue("mosquitto_installed")
        acl = "user reader\ntopic read open/#\nuser writer\ntopic write open/#\n"
        directory = tmp_path_factory.mktemp("guarded")
        with Mosquitto(directory, users={"reader": "secret", "writer": "secret"}, acl=acl) as theirs:
            yield theirs


@pytest.fixture(scope="module", params=["embedded", "mosquitto"])
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Give a broker that takes packets of no more than 2000 bytes."""
    if request.param == "embedded":
        with Embedded(limits=Limits(max_packet_bytes=2000)) as ours:
            yield ours
    else:
        request.getfixturevalue("mosquitto_installed")
        with Mosquitto(tmp_path_factory.mktemp("narrow"), config=["max_packet_size 2000"]) as theirs:
            yield theirs


def assert_ended(client: RawClient, broker: Broker, reason: int) -> None:
    """Check that the broker closes the connection, and ours with that reason; mosquitto gives another, or none."""
    reasons = [each.reason for each in client.expect_end()]
    if isinstance(broker, Embedded):
        assert reasons == [reason]
    else:
        assert all(each >= 0x80 for each in reasons)


def payloads(messages: list[Packet]) -> list[bytes]:
    """Give what a test looks at most."""
    return [message.payload for message in messages]


# Quality of service


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_a_message_arrives_with_the_lower_of_both_qualities(
    join: Join, level: int, topic: str, published: int, subscribed: int
) -> None:
    """Section 3.8.4: the granted QoS is the most that is delivered."""
    subscriber, publisher = join(level), join(level)
    assert subscriber.subscribe(topic, subscribed) == subscribed

    assert publisher.publish(topic, b"\x00\xff\xfe payload", published) == 0

    message = subscriber.receive()
    assert (message.topic, message.payload) == (topic, b"\x00\xff\xfe payload")
    assert message.qos == min(published, subscribed)
    assert (message.retain, message.duplicate) == (False, False)


@pytest.mark.parametrize("payload", [b"", b"x" * 127, b"x" * 128, b"x" * 16_384, b"x" * 3_000_000], ids=len)
def test_a_payload_of_any_size_arrives_whole(join: Join, topic: str, payload: bytes) -> None:
    """Section 3.3.3: the payload is the publisher's, and may be empty."""
    client = join()
    client.subscribe(topic)

    client.publish(topic, payload)

    assert client.receive().payload == payload


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_keep_their_order(join: Join, level: int, topic: str, qos: int) -> None:
    """Section 4.6: in the order they came, for each topic and QoS."""
    subscriber, publisher = join(level), join(level)
    subscriber.subscribe(topic, qos)
    expected = [b"%d" % number for number in range(20)]

    publisher.send(b"".join(publish_packet(level, topic, each, qos, number) for number, each in enumerate(expected, 1)))

    if qos == 2:
        for _ in expected:
            publisher.acknowledge(Kind.PUBREL, publisher.expect(Kind.PUBREC).packet_id)
    assert payloads([subscriber.receive() for _ in expected]) == expected


def test_an_exactly_once_message_that_is_sent_twice_is_delivered_once(join: Join, level: int, topic: str) -> None:
    """Section 4.3.3: a duplicate before PUBREL is no new message."""
    client = join(level)
    client.subscribe(topic)

    for duplicate in (False, True):
        client.send(publish_packet(level, topic, b"once", 2, 7, duplicate=duplicate))
        assert client.expect(Kind.PUBREC).packet_id == 7
    client.acknowledge(Kind.PUBREL, 7)
    client.expect(Kind.PUBCOMP)

    assert payloads(client.messages()) == [b"once"]


def test_the_identifier_of_a_finished_message_can_be_used_again(join: Join, level: int, topic: str) -> None:
    """Section 2.2.1: a packet identifier is free after PUBCOMP."""
    client = join(level)
    client.subscribe(topic)

    for payload in (b"first", b"second"):
        client.send(publish_packet(level, topic, payload, 2, 7))
        client.expect(Kind.PUBREC)
        client.acknowledge(Kind.PUBREL, 7)
        client.expect(Kind.PUBCOMP)

    assert payloads(client.messages()) == [b"first", b"second"]


def test_a_message_that_nobody_wants_is_acknowledged_as_such(join: Join, topic: str) -> None:
    """Section 3.4.2.1: no matching subscribers."""
    assert join().publish(topic, b"x") == 0x10


# Retained messages


def test_a_retained_message_is_told_to_who_subscribes_later(join: Join, level: int, topic: str) -> None:
    """Section 3.3.1.3: with the flag set."""
    publisher, later = join(level), join(level)
    publisher.publish(topic, b"state", retain=True)

    later.subscribe(topic, 1)

    message = later.receive()
    assert (message.payload, message.qos, message.retain) == (b"state", 1, True)


def test_a_retained_message_is_news_to_who_has_subscribed(join: Join, level: int, topic: str) -> None:
    """Section 3.3.1.3: with the flag cleared."""
    client = join(level)
    client.subscribe(topic)

    client.publish(topic, b"state", retain=True)

    assert client.receive().retain is False


def test_the_last_retained_message_counts(join: Join, level: int, topic: str) -> None:
    """Section 3.3.1.3: a retained message replaces the last; one that is not leaves it alone."""
    client = join(level)
    for payload in (b"old", b"new"):
        client.publish(topic, payload, retain=True)
    client.publish(topic, b"passing by")

    client.subscribe(topic)

    assert payloads(client.messages()) == [b"new"]


def test_an_empty_retained_message_clears_the_topic(join: Join, level: int, topic: str) -> None:
    """Section 3.3.1.3: and reaches subscribers as any message does."""
    client, watcher = join(level), join(level)
    client.publish(topic, b"state", retain=True)
    watcher.subscribe(topic)
    watcher.receive()

    client.publish(topic, b"", retain=True)

    assert payloads(watcher.messages()) == [b""]
    client.subscribe(topic)
    assert client.messages() == []


def test_a_wildcard_brings_every_retained_message_below_it(join: Join, level: int, topic: str) -> None:
    """Section 3.3.1.3: on each matching topic."""
    client = join(level)
    for name in ("a", "b", "c/d"):
        client.publish(f"{topic}/{name}", name.encode(), retain=True)

    client.subscribe(f"{topic}/+")
    one_level = payloads(client.messages())
    client.subscribe(f"{topic}/#")
    all_levels = payloads(client.messages())

    assert sorted(one_level) == [b"a", b"b"]
    assert sorted(all_levels) == [b"a", b"b", b"c/d"]


def test_subscribing_again_brings_the_retained_message_again(join: Join, level: int, topic: str) -> None:
    """Section 3.8.4, and MQTT 3.1.1 section 3.8.4."""
    client = join(level)
    client.publish(topic, b"state", retain=True)

    for _ in range(2):
        client.subscribe(topic)

    assert payloads(client.messages()) == [b"state", b"state"]


@pytest.mark.parametrize(
    ("retain_handling", "told"),
    [(0, [b"state", b"state"]), (1, [b"state"]), (2, [])],
    ids=["always", "when new", "never"],
)
def test_retain_handling_decides_when_retained_messages_come(
    join: Join, topic: str, retain_handling: int, told: list[bytes]
) -> None:
    """Section 3.8.3.1."""
    client = join()
    client.publish(topic, b"state", retain=True)

    for _ in range(2):
        client.subscribe(topic, retain_handling=retain_handling)

    assert payloads(client.messages()) == told


def test_retain_as_published_keeps_the_flag(join: Join, topic: str) -> None:
    """Section 3.8.3.1."""
    client = join()
    client.subscribe(topic, retain_as_published=True)

    client.publish(topic, b"retained", retain=True)
    client.publish(topic, b"not", retain=False)

    assert [(message.payload, message.retain) for message in client.messages()] == [
        (b"retained", True),
        (b"not", False),
    ]


# Subscriptions


@pytest.mark.parametrize(
    ("topic_filter", "name", "matches"),
    [
        ("+", "", True),
        ("#", "a", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("a/#", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),  # an empty level is one
        ("a/+", "a/b/c", False),
        ("+/+", "/b", True),
        ("/+", "/b", True),
        ("+", "/b", False),
        ("+/b/#", "a/b", True),
        ("a/+/c", "a//c", True),
        ("A", "a", False),
        ("a b/ü", "a b/ü", True),
    ],
)
def test_filters_match_as_the_specification_says(
    join: Join, level: int, topic: str, topic_filter: str, name: str, matches: bool
) -> None:
    """Section 4.7: wildcards, empty levels, case, spaces."""
    client = join(level)
    client.subscribe(f"{topic}/{topic_filter}")

    client.publish(f"{topic}/{name}", b"x")

    assert len(client.messages()) == matches


def test_wildcards_at_the_root_do_not_match_dollar_topics(join: Join, level: int) -> None:
    """Section 4.7.2."""
    name = f"$behaviour-{uuid4().hex}/x"
    everything, one_level, named = join(level), join(level), join(level)
    everything.subscribe("#")
    one_level.subscribe("+/x")
    named.subscribe(f"{name.partition('/')[0]}/#")

    join(level).publish(name, b"x")

    assert payloads(named.messages()) == [b"x"]
    assert name not in [message.topic for message in everything.messages() + one_level.messages()]


def test_several_filters_in_one_packet_are_granted_each(join: Join, level: int, topic: str) -> None:
    """Section 3.9.3: a reason code for each filter, in their order."""
    client = join(level)

    client.send(subscribe_packet(level, 9, [(f"{topic}/a", 0), (f"{topic}/b", 1), (f"{topic}/c", 2)]))

    granted = client.expect(Kind.SUBACK)
    assert (granted.packet_id, granted.reasons) == (9, (0, 1, 2))


def test_subscribing_again_replaces_the_subscription(join: Join, level: int, topic: str) -> None:
    """Section 3.8.4."""
    client = join(level)
    client.subscribe(topic, 0)
    client.subscribe(topic, 2)

    client.publish(topic, b"x", 1)

    assert [message.qos for message in client.messages()] == [1]


def test_nothing_comes_after_unsubscribing(join: Join, level: int, topic: str) -> None:
    """Section 3.10.4."""
    client = join(level)
    client.subscribe(f"{topic}/#")
    client.subscribe(f"{topic}/kept")

    reasons = client.unsubscribe(f"{topic}/#", f"{topic}/never")

    client.publish(f"{topic}/gone", b"gone")
    client.publish(f"{topic}/kept", b"kept")
    assert payloads(client.messages()) == [b"kept"]
    assert reasons == ((0x00, 0x11) if level == 5 else ())


def test_overlapping_subscriptions_deliver_with_the_highest_quality(join: Join, topic: str) -> None:
    """Section 3.3.4: in one copy, or in one for each subscription."""
    client = join()
    client.subscribe(f"{topic}/+", 0)
    client.subscribe(f"{topic}/#", 2)

    client.publish(f"{topic}/x", b"x", 2)

    assert sorted(message.qos for message in client.messages()) in ([2], [0, 2])


def test_a_message_carries_the_identifier_of_every_subscription_that_it_matches(join: Join, topic: str) -> None:
    """Section 3.3.4: in one copy or in several, each identifier once."""
    client = join()
    client.subscribe(f"{topic}/+", subscription_ids=[3])
    client.subscribe(f"{topic}/#", subscription_ids=[268_435_455])
    client.subscribe(f"{topic}/y", subscription_ids=[5])

    client.publish(f"{topic}/x", b"x")

    copies = client.messages()
    assert sorted(each for copy in copies for each in copy.properties["subscription_ids"]) == [3, 268_435_455]


def test_a_retained_message_carries_the_identifier_of_its_subscription(join: Join, topic: str) -> None:
    """Section 3.8.2.1.2."""
    client = join()
    client.publish(topic, b"state", retain=True)

    client.subscribe(topic, subscription_ids=[7])

    assert client.receive().properties["subscription_ids"] == [7]


def test_no_local_spares_a_client_its_own_messages(join: Join, topic: str) -> None:
    """Section 3.8.3.1."""
    client, other = join(), join()
    client.subscribe(topic, no_local=True)

    client.publish(topic, b"own")
    other.publish(topic, b"other's")

    assert payloads(client.messages()) == [b"other's"]


def test_a_shared_subscription_gives_each_message_to_one_of_its_members(join: Join, topic: str) -> None:
    """Section 4.8.2: and every group gets all."""
    members = [join(), join()]
    for member in members:
        member.subscribe(f"$share/group/{topic}/#", 1)
    alone = join()
    alone.subscribe(f"$share/other/{topic}/#", 1)
    sent = [b"%d" % number for number in range(10)]

    publisher = join()
    for payload in sent:
        publisher.publish(f"{topic}/x", payload)

    first, second = (payloads(member.messages()) for member in members)
    assert first
    assert second
    assert sorted(first + second) == sent
    assert payloads(alone.messages()) == sent


def test_the_members_that_stay_get_all_of_a_shared_subscription(join: Join, topic: str) -> None:
    """Section 4.8.2."""
    stays, goes, leaves = join(), join(), join()
    for member in (stays, goes, leaves):
        member.subscribe(f"$share/group/{topic}", 1)
    goes.disconnect()
    leaves.unsubscribe(f"$share/group/{topic}")

    publisher = join()
    for payload in (b"1", b"2", b"3"):
        publisher.publish(topic, payload)

    assert payloads(stays.messages()) == [b"1", b"2", b"3"]


# Wills


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_will_of_a_client_that_is_lost_is_published(join: Join, level: int, topic: str, qos: int) -> None:
    """Section 3.1.2.5."""
    watcher = join(level)
    watcher.subscribe(topic, 2)
    client = join(level, will=Will(topic, b"lost", qos, retain=True))

    client.drop()

    will = watcher.receive()
    assert (will.payload, will.qos) == (b"lost", qos)
    later = join(level)
    later.subscribe(topic)
    assert later.receive().retain is True


def test_the_will_of_a_client_that_takes_leave_is_forgotten(join: Join, level: int, topic: str) -> None:
    """Section 3.14.4."""
    watcher = join(level)
    watcher.subscribe(topic)
    client = join(level, will=Will(topic, b"lost"))

    client.disconnect()

    assert watcher.messages() == []


def test_a_client_may_ask_for_its_will_when_it_takes_leave(join: Join, topic: str) -> None:
    """Section 3.14.2.1: disconnect with will message."""
    watcher = join()
    watcher.subscribe(topic)
    client = join(will=Will(topic, b"asked for"))

    client.disconnect(0x04)

    assert watcher.receive().payload == b"asked for"


def test_a_will_has_properties(join: Join, topic: str) -> None:
    """Section 3.1.3.2."""
    watcher = join()
    watcher.subscribe(topic)
    properties = {"content_type": "text/plain", "user_properties": [("unit", "press 4")]}
    client = join(will=Will(topic, b"lost", properties=properties | {"will_delay": 0}))

    client.drop()

    assert watcher.receive().properties == properties


def test_a_delayed_will_waits(join: Join, topic: str) -> None:
    """Section 3.1.3.2.2."""
    watcher = join()
    watcher.subscribe(topic)
    client = join(will=Will(topic, b"lost", properties={"will_delay": 1}), session_expiry=60)

    lost_at = time.monotonic()
    client.drop()

    assert watcher.receive().payload == b"lost"
    assert time.monotonic() - lost_at > 0.9


def test_a_delayed_will_is_forgotten_when_the_client_comes_back(join: Join, topic: str) -> None:
    """Section 3.1.3.2.2. The other will shows that the time has passed."""
    watcher = join()
    watcher.subscribe(f"{topic}/#")
    client = join(5, topic, will=Will(f"{topic}/back", b"", properties={"will_delay": 1}), session_expiry=60)
    other = join(will=Will(f"{topic}/gone", b"", properties={"will_delay": 2}), session_expiry=60)

    client.drop()
    join(5, topic, clean=False, session_expiry=60)
    other.drop()

    assert watcher.receive().topic == f"{topic}/gone"


# Sessions


def come_back(join: Join, level: int, client_id: str) -> RawClient:
    """Connect for a session that is to be kept."""
    return join(level, client_id, clean=False, **({"session_expiry": 60} if level == 5 else {}))


def test_a_session_keeps_subscriptions_and_messages(join: Join, level: int, topic: str) -> None:
    """Section 4.1."""
    client = come_back(join, level, topic)
    assert client.connack.session_present is False
    client.subscribe(topic, 2)
    client.drop()

    publisher = join(level)
    publisher.publish(topic, b"1", 1)
    publisher.publish(topic, b"2", 2)
    client = come_back(join, level, topic)

    assert client.connack.session_present is True
    assert [(message.payload, message.qos) for message in (client.receive(), client.receive())] == [
        (b"1", 1),
        (b"2", 2),
    ]
    publisher.publish(topic, b"3")
    assert client.receive().payload == b"3"


def test_a_clean_start_throws_the_session_away(join: Join, level: int, topic: str) -> None:
    """Section 3.1.2.4."""
    client = come_back(join, level, topic)
    client.subscribe(topic, 1)
    client.drop()
    publisher = join(level)
    publisher.publish(topic, b"x")

    assert join(level, topic, clean=True).connack.session_present is False

    assert come_back(join, level, topic).connack.session_present is False
    publisher.publish(topic, b"y")
    assert come_back(join, level, topic).messages() == []


def test_a_session_without_expiry_ends_with_its_connection(join: Join, topic: str) -> None:
    """Section 3.1.2.11.2."""
    client = join(5, topic, clean=False)
    client.disconnect()

    assert join(5, topic, clean=False).connack.session_present is False


def test_a_session_ends_when_it_has_expired(join: Join, topic: str) -> None:
    """Section 3.1.2.11.2."""
    client = join(5, topic, clean=False, session_expiry=1)
    client.subscribe(topic, 1)
    client.drop()
    publisher = join()

    deadline = time.monotonic() + 5
    while publisher.publish(topic, b"x") != 0x10:  # nobody is expected back any more
        assert time.monotonic() < deadline
        publisher.ping()

    assert join(5, topic, clean=False).connack.session_present is False


def test_a_client_may_change_its_expiry_when_it_takes_leave(join: Join, topic: str) -> None:
    """Section 3.14.2.2.2."""
    client = join(5, topic, clean=False, session_expiry=60)
    client.disconnect(session_expiry=0)

    assert join(5, topic, clean=False).connack.session_present is False


def test_a_session_that_was_to_end_cannot_be_kept_afterwards(join: Join, topic: str) -> None:
    """Section 3.14.2.2.2."""
    client = join(5, topic)

    client.send(packet(Kind.DISCONNECT, b"\0" + encode_properties({"session_expiry": 60})))

    last_words = client.expect_end()
    assert [each.reason for each in last_words] == [PROTOCOL_ERROR]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_without_acknowledgement_comes_again(join: Join, level: int, topic: str, qos: int) -> None:
    """Section 4.4: with the same packet identifier, in the same order."""
    client = come_back(join, level, topic)
    client.subscribe(topic, 2)
    publisher = join(level)
    publisher.publish(topic, b"first", qos)
    publisher.publish(topic, b"second", qos)
    sent = [client.expect(Kind.PUBLISH), client.expect(Kind.PUBLISH)]
    client.drop()

    client = come_back(join, level, topic)

    again = [client.receive(), client.receive()]
    assert [each.duplicate for each in sent + again] == [False, False, True, True]
    assert [(each.payload, each.packet_id) for each in again] == [(each.payload, each.packet_id) for each in sent]
    assert client.messages() == []


def test_a_half_finished_message_goes_on_where_it_stopped(join: Join, level: int, topic: str) -> None:
    """Section 4.4: PUBREL is sent again."""
    client = come_back(join, level, topic)
    client.subscribe(topic, 2)
    join(level).publish(topic, b"x", 2)
    packet_id = client.expect(Kind.PUBLISH).packet_id
    client.acknowledge(Kind.PUBREC, packet_id)
    client.expect(Kind.PUBREL)
    client.drop()

    client = come_back(join, level, topic)

    assert client.expect(Kind.PUBREL).packet_id == packet_id
    client.acknowledge(Kind.PUBCOMP, packet_id)
    assert client.messages() == []


def test_an_unreleased_message_of_a_client_is_still_known_when_it_comes_back(
    join: Join, level: int, topic: str
) -> None:
    """Section 4.1: QoS 2 messages that are not completely acknowledged belong to the session."""
    watcher = join(level)
    watcher.subscribe(topic)
    client = come_back(join, level, topic)
    client.send(publish_packet(level, topic, b"once", 2, 5))
    client.expect(Kind.PUBREC)
    client.drop()

    client = come_back(join, level, topic)
    client.send(publish_packet(level, topic, b"once", 2, 5, duplicate=True))
    client.expect(Kind.PUBREC)
    client.acknowledge(Kind.PUBREL, 5)
    client.expect(Kind.PUBCOMP)

    assert payloads(watcher.messages()) == [b"once"]


def test_a_second_connection_takes_the_session_over(broker: Broker, join: Join, topic: str) -> None:
    """Section 3.1.4: the first is told so and closed, and its will published."""
    watcher = join()
    watcher.subscribe(topic)
    first = join(5, topic, will=Will(topic, b"taken over"))

    second = join(5, topic)

    assert_ended(first, broker, 0x8E)
    assert watcher.receive().payload == b"taken over"
    second.ping()


def test_a_second_connection_of_the_old_protocol_takes_the_session_over(join: Join, topic: str) -> None:
    """MQTT 3.1.1, section 3.1.4."""
    first = join(4, topic)

    second = join(4, topic)

    assert first.expect_end() == []
    second.ping()


def test_a_client_without_a_name_is_given_one(join: Join) -> None:
    """Section 3.2.2.3.7."""
    names = {join().connack.properties["assigned_client_id"] for _ in range(2)}

    assert len(names) == 2
    assert all(names)


def test_a_nameless_client_of_the_old_protocol_cannot_keep_a_session(broker: Broker) -> None:
    """MQTT 3.1.1, section 3.1.3.1."""
    with RawClient(broker, 4) as client:
        assert client.connect("", clean=False).reason == 2  # MQTT 3.1.1, section 3.1.3.1
        client.expect_end()


# Expiry of messages


def test_a_message_tells_what_is_left_of_its_life(join: Join, topic: str) -> None:
    """Section 3.3.2.3.3."""
    client = join()
    client.subscribe(topic)

    client.publish(topic, b"x", message_expiry=100)

    assert client.receive().properties == {"message_expiry": 100}


def test_a_message_dies_while_it_waits(join: Join, topic: str) -> None:
    """Section 3.3.2.3.3: in a session and as a retained message, beside ones that live longer."""
    client = come_back(join, 5, topic)
    client.subscribe(f"{topic}/waits/#", 1)
    client.drop()
    publisher = join()
    publisher.publish(f"{topic}/waits/short", b"x", message_expiry=1)
    publisher.publish(f"{topic}/waits/long", b"x", message_expiry=100)
    publisher.publish(f"{topic}/retained/short", b"x", retain=True, message_expiry=2)
    publisher.publish(f"{topic}/retained/long", b"x", retain=True, message_expiry=100)

    wait_until(lambda: told(join, f"{topic}/retained/#") == [f"{topic}/retained/long"])

    message = come_back(join, 5, topic).receive()
    assert message.topic == f"{topic}/waits/long"
    assert 90 <= message.properties["message_expiry"] < 100


def told(join: Join, topic_filter: str) -> list[str]:
    """Subscribe afresh and give the topics of the retained messages."""
    client = join()
    client.subscribe(topic_filter)
    topics = [message.topic for message in client.messages()]
    client.disconnect()
    return topics


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    """Ask again and again; each asking is a round trip to a broker."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"


# What MQTT 5 carries along


def test_properties_arrive_as_they_were_sent(join: Join, topic: str) -> None:
    """Sections 3.3.2.3.2 to 3.3.2.3.9: user properties in their order."""
    client = join()
    client.subscribe(topic)
    properties: dict[str, Any] = {
        "payload_format": 1,
        "content_type": "application/json",
        "response_topic": "answers/here",
        "correlation_data": b"\x00\x01\xff",
        "user_properties": [("b", "2"), ("a", "1"), ("b", "3"), ("", "")],
    }

    client.publish(topic, b"{}", **properties)

    assert client.receive().properties == properties


def test_properties_are_lost_on_clients_of_the_old_protocol(join: Join, topic: str) -> None:
    """A message has the same topic and payload in both versions."""
    client = join(4)
    client.subscribe(topic)

    join(5).publish(topic, b"x", content_type="text/plain")

    assert client.receive().payload == b"x"


def test_a_topic_alias_stands_for_its_topic(join: Join, topic: str) -> None:
    """Section 3.3.2.3.4."""
    client = join()
    client.subscribe(f"{topic}/#")
    assert client.connack.properties["topic_alias_maximum"] >= 1

    client.publish(f"{topic}/a", b"1", topic_alias=1)
    client.publish("", b"2", topic_alias=1)
    client.publish(f"{topic}/b", b"3", topic_alias=1)
    client.publish("", b"4", topic_alias=1)

    seen = [(message.topic.removeprefix(topic), message.payload) for message in client.messages()]
    assert seen == [("/a", b"1"), ("/a", b"2"), ("/b", b"3"), ("/b", b"4")]


@pytest.mark.parametrize(
    ("name", "alias", "reason"),
    [("x", 0, 0x94), ("x", 65_535, 0x94), ("", 1, PROTOCOL_ERROR)],
    ids=["zero", "above the maximum", "unknown"],
)
def test_a_wrong_topic_alias_ends_the_connection(
    broker: Broker, join: Join, name: str, alias: int, reason: int
) -> None:
    """Section 3.3.2.3.4."""
    client = join()

    client.send(publish_packet(5, name, b"x", properties={"topic_alias": alias}))

    assert_ended(client, broker, reason)


def test_no_more_messages_are_on_their_way_than_the_client_takes(join: Join, topic: str) -> None:
    """Section 4.9. QoS 0 is not held up (section 3.3.4)."""
    client = join(receive_maximum=2)
    client.subscribe(topic, 1)
    publisher = join()
    for qos, payload in ((1, b"1"), (1, b"2"), (1, b"3"), (0, b"4")):
        publisher.publish(topic, payload, qos)

    first, second, unacknowledged = client.messages()
    client.acknowledge(Kind.PUBACK, first.packet_id)
    (third,) = client.messages()

    assert payloads([first, second, unacknowledged, third]) == [b"1", b"2", b"4", b"3"]


def test_a_message_larger_than_the_client_takes_is_left_out(join: Join, topic: str) -> None:
    """Section 3.1.2.11.4."""
    client = join(maximum_packet_size=200)
    client.subscribe(topic, 1)
    publisher = join()

    publisher.publish(topic, b"x" * 200)
    publisher.publish(topic, b"small")

    assert payloads(client.messages()) == [b"small"]


# What a broker refuses


def test_a_wrong_password_is_refused(guarded: Broker, level: int) -> None:
    """Section 3.2.2.2, and MQTT 3.1.1 table 3.1."""
    # Section 3.2.2.2, or MQTT 3.1.1, table 3.1: bad user name or password, or not authorized.
    expected = {0x86, 0x87} if level == 5 else {4, 5}
    logins: list[dict[str, Any]] = [
        {"username": "reader", "password": "wrong"},
        {"username": "nobody", "password": "secret"},
        {},
    ]
    for login in logins:
        with RawClient(guarded, level) as client:
            assert client.connect(**login).reason in expected
            client.expect_end()


def test_a_right_password_is_let_in(guarded: Broker, level: int) -> None:
    """The other half of the test above."""
    with RawClient(guarded, level) as client:
        assert client.connect(username="reader", password="secret").reason == 0


@pytest.mark.parametrize("qos", [1, 2])
def test_what_may_not_be_published_is_delivered_to_nobody(guarded: Broker, level: int, topic: str, qos: int) -> None:
    """Section 3.4.2.1: not authorized; MQTT 3.1.1 has no way to say so."""
    with RawClient(guarded, level) as reader, RawClient(guarded, level) as writer:
        reader.connect(username="reader", password="secret")
        writer.connect(username="writer", password="secret")
        reader.subscribe(f"open/{topic}", 2)

        refused = reader.publish(f"open/{topic}", b"from the reader", qos)
        allowed = writer.publish(f"open/{topic}", b"from the writer", qos)

        assert refused == (0x87 if level == 5 else 0)  # MQTT 3.1.1 has no way to say so
        assert allowed == 0
        assert payloads(reader.messages()) == [b"from the writer"]


def test_what_may_not_be_subscribed_to_does_not_come(guarded: Broker, level: int, topic: str) -> None:
    """A broker may refuse; mosquitto 2.0 grants such a subscription and delivers nothing."""
    with RawClient(guarded, level) as reader, RawClient(guarded, level) as writer:
        reader.connect(username="reader", password="secret")
        writer.connect(username="writer", password="secret")
        assert writer.subscribe(f"open/{topic}", 1) in ({1, 0x87} if level == 5 else {1, 0x80})

        writer.publish(f"open/{topic}", b"x")

        assert writer.messages() == []


def test_a_packet_that_is_too_large_ends_the_connection(narrow: Broker, level: int) -> None:
    """Section 3.2.2.3.6."""
    with RawClient(narrow, level) as client:
        connack = client.connect()
        client.publish("fits", b"x" * 1900)

        client.send(publish_packet(level, "does/not/fit", b"x" * 2000))

        last_words = [each.reason for each in client.expect_end()]
        if level == 5:
            assert connack.properties["maximum_packet_size"] == 2000
            assert last_words == [0x95]
        else:
            assert last_words == []


def test_a_client_that_falls_silent_is_disconnected(join: Join, topic: str) -> None:
    """Section 3.1.2.10: after one and a half times its interval; mosquitto looks every five seconds."""
    watcher = join()
    watcher.subscribe(f"{topic}/#")
    started = time.monotonic()
    clients = {level: join(level, keep_alive=1, will=Will(f"{topic}/{level}", b"silent")) for level in (4, 5)}

    for client in clients.values():
        client.expect_end()

    assert 1.4 < time.monotonic() - started < 10
    assert {watcher.receive().topic, watcher.receive().topic} == {f"{topic}/4", f"{topic}/5"}


def test_an_unknown_protocol_version_is_refused(broker: Broker) -> None:
    """Section 3.1.2.2."""
    with RawClient(broker, 4) as client:
        client.send(connect_packet(6))

        (connack,) = client.expect_end()
        assert connack.reasons in {(1,), (0x84,)}


def test_an_unknown_way_to_authenticate_is_refused(broker: Broker) -> None:
    """Section 4.12."""
    with RawClient(broker) as client:
        assert client.connect(authentication_method="riddle").reason == 0x8C


@pytest.mark.parametrize(
    "data",
    [
        publish_packet(5, "too/early", b"x"),
        packet(Kind.CONNECT, encode_text("MQTT") + b"\x05\x03\x00\x3c\x00\x00\x00"),
        packet(Kind.CONNECT, encode_text("MQTT") + b"\x05\x02"),
        packet(Kind.CONNECT, encode_text("HTTP") + b"\x05\x02\x00\x3c\x00\x00\x00"),
        connect_packet(5, will=Will("will/#", b"x")),
        connect_packet(5, will=Will("will", b"x", qos=3)),
        b"\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\xff",
    ],
    ids=[
        "PUBLISH first",
        "reserved flag",
        "cut short",
        "other protocol",
        "will with a wildcard",
        "will with QoS 3",
        "packet type 0",
        "HTTP",
        "length of five bytes",
    ],
)
def test_a_client_that_does_not_connect_properly_is_not_let_in(broker: Broker, data: bytes) -> None:
    """Sections 3.1.0 to 3.1.4."""
    with RawClient(broker) as client:
        client.send(data)

        assert all(each.kind == Kind.CONNACK and each.reason >= 1 for each in client.expect_end())


BROKEN = {
    "second CONNECT": (connect_packet(5), PROTOCOL_ERROR),
    "CONNACK": (packet(Kind.CONNACK, b"\0\0\0"), PROTOCOL_ERROR),
    "AUTH": (packet(Kind.AUTH, b""), PROTOCOL_ERROR),
    "topic with #": (publish_packet(5, "a/#", b"x"), MALFORMED),
    "topic with +": (publish_packet(5, "a/+", b"x"), MALFORMED),
    "topic with U+0000": (publish_packet(5, "a\0", b"x"), MALFORMED),
    "no topic and no alias": (publish_packet(5, "", b"x"), PROTOCOL_ERROR),
    "QoS 3": (publish_packet(5, "a", b"x", qos=3, packet_id=1), MALFORMED),
    "packet identifier 0": (publish_packet(5, "a", b"x", qos=1, packet_id=0), PROTOCOL_ERROR),
    "topic not UTF-8": (packet(Kind.PUBLISH, b"\0\2\xc3\x28\0x"), MALFORMED),
    "topic with a surrogate": (packet(Kind.PUBLISH, b"\0\3\xed\xa0\x80\0x"), MALFORMED),
    "property of another packet": (packet(Kind.PUBLISH, encode_text("a") + b"\2\x11\0x"), MALFORMED),
    "properties cut short": (packet(Kind.PUBLISH, encode_text("a") + b"\x7f"), MALFORMED),
    "topic cut short": (packet(Kind.PUBLISH, b"\0\x09short"), MALFORMED),
    "no filter": (subscribe_packet(5, 1, []), PROTOCOL_ERROR),
    "# in the middle": (subscribe_packet(5, 1, [("a/#/b", 0)]), MALFORMED),
    "# inside a level": (subscribe_packet(5, 1, [("a#", 0)]), MALFORMED),
    "+ inside a level": (subscribe_packet(5, 1, [("a+", 0)]), MALFORMED),
    "empty filter": (subscribe_packet(5, 1, [("", 0)]), MALFORMED),
    "QoS 3 wanted": (subscribe_packet(5, 1, [("a", 3)]), PROTOCOL_ERROR),
    "retain handling 3": (subscribe_packet(5, 1, [("a", 0x30)]), PROTOCOL_ERROR),
    "reserved option": (subscribe_packet(5, 1, [("a", 0x40)]), MALFORMED),
    "subscription identifier 0": (subscribe_packet(5, 1, [("a", 0)], {"subscription_ids": [0]}), PROTOCOL_ERROR),
    "SUBSCRIBE cut short": (subscribe_packet(5, 1, [("a", 0)])[:1] + b"\x02\0\1", MALFORMED),
    "SUBSCRIBE with wrong flags": (b"\x80" + subscribe_packet(5, 1, [("a", 0)])[1:], MALFORMED),
    "nothing to unsubscribe": (packet(Kind.UNSUBSCRIBE, b"\0\1\0", flags=2), PROTOCOL_ERROR),
    "PUBREL with wrong flags": (packet(Kind.PUBREL, b"\0\1", flags=0), MALFORMED),
    "DISCONNECT with wrong flags": (packet(Kind.DISCONNECT, b"", flags=1), MALFORMED),
}
# What mosquitto 2.0 lets pass.
TOLERATED = {
    "subscription identifier of a client": (
        publish_packet(5, "a", b"x", properties={"subscription_ids": [1]}),
        PROTOCOL_ERROR,
    ),
    "payload format 2": (publish_packet(5, "a", b"x", properties={"payload_format": 2}), PROTOCOL_ERROR),
    "response topic with a wildcard": (
        publish_packet(5, "a", b"x", properties={"response_topic": "a/#"}),
        PROTOCOL_ERROR,
    ),
    "no local on a shared subscription": (subscribe_packet(5, 1, [("$share/group/a", 4)]), PROTOCOL_ERROR),
    "shared subscription without a name": (subscribe_packet(5, 1, [("$share//a", 0)]), MALFORMED),
    "PINGREQ with a body": (packet(Kind.PINGREQ, b"x"), MALFORMED),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_packet_that_breaks_the_rules_ends_the_connection(
    broker: Broker, join: Join, data: bytes, reason: int
) -> None:
    """Section 4.13."""
    client = join()

    client.send(data)

    assert_ended(client, broker, reason)


def test_a_broken_packet_of_one_client_is_no_trouble_to_another(join: Join, level: int, topic: str) -> None:
    """Section 4.13."""
    other, broken = join(level), join(level)
    other.subscribe(topic)

    broken.send(b"\xff" * 100)
    broken.expect_end()

    other.publish(topic, b"x")
    assert payloads(other.messages()) == [b"x"]


# What mosquitto 2.0.11 does otherwise than the specification says


@pytest.mark.parametrize(("data", "reason"), TOLERATED.values(), ids=TOLERATED)
def test_a_packet_that_mosquitto_tolerates_ends_the_connection(
    embedded: Embedded, join_ours: Join, data: bytes, reason: int
) -> None:
    """Section 4.13; each rule is in the section of its packet (3.3, 3.8, 3.12, 4.8.2)."""
    client = join_ours()

    client.send(data)

    assert_ended(client, embedded, reason)


def test_overlapping_subscriptions_of_the_old_protocol_deliver_with_the_highest_quality(
    join_ours: Join, topic: str
) -> None:
    """MQTT 3.1.1, section 3.3.5. mosquitto takes the first that it finds."""
    client = join_ours(4)
    client.subscribe(f"{topic}/+", 0)
    client.subscribe(f"{topic}/#", 2)

    client.publish(f"{topic}/x", b"x", 2)

    assert [message.qos for message in client.messages()] == [2]


def test_a_shared_subscription_is_told_no_retained_message(join_ours: Join, topic: str) -> None:
    """Section 3.3.1.3: they go to new subscriptions that are not shared. mosquitto sends them."""
    client = join_ours()
    client.publish(topic, b"state", retain=True)

    client.subscribe(f"$share/group/{topic}")

    assert client.messages() == []


def test_a_delayed_will_is_published_when_the_session_ends_before(join_ours: Join, topic: str) -> None:
    """Section 3.1.3.2.2: whichever happens first. mosquitto waits for the delay."""
    watcher = join_ours()
    watcher.subscribe(topic)
    client = join_ours(will=Will(topic, b"lost", properties={"will_delay": 60}))

    client.drop()

    assert watcher.receive().payload == b"lost"


def test_only_the_end_of_an_exactly_once_message_makes_room_for_the_next(join_ours: Join, topic: str) -> None:
    """Section 4.9: PUBCOMP does, PUBREC does not. mosquitto sends more than the client takes."""
    client = join_ours(receive_maximum=1)
    client.subscribe(topic, 2)
    publisher = join_ours()
    publisher.publish(topic, b"first", 2)
    publisher.publish(topic, b"second", 2)

    (first,) = client.messages()
    client.acknowledge(Kind.PUBREC, first.packet_id)
    client.expect(Kind.PUBREL)
    assert client.messages() == []
    client.acknowledge(Kind.PUBCOMP, first.packet_id)

    assert payloads(client.messages()) == [b"second"]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_message_of_any_quality_that_nobody_wants_is_acknowledged_as_such(
    join_ours: Join, topic: str, qos: int
) -> None:
    """Sections 3.4.2.1 and 3.5.2.1. mosquitto says so for QoS 1 only, which is its right."""
    assert join_ours().publish(topic, b"x", qos) == 0x10


def test_a_silent_client_is_told_why_it_is_disconnected(join_ours: Join) -> None:
    """Section 3.14.2.1: keep alive timeout. mosquitto closes without a word."""
    client = join_ours(keep_alive=1)

    assert [each.reason for each in client.expect_end()] == [0x8D]


def test_a_subscription_that_is_not_allowed_is_refused(level: int) -> None:
    """Section 3.9.3: not authorized; MQTT 3.1.1 knows one refusal. mosquitto grants it and delivers nothing."""
    users = {"reader": User("secret", subscribe=("open/#",))}
    with Embedded(users=users) as broker, RawClient(broker, level) as client:
        client.connect(username="reader", password="secret")

        granted = [client.subscribe(each, 1) for each in ("open/#", "open/x", "open", "$share/group/open/x")]
        refused = [client.subscribe(each, 1) for each in ("#", "+/x", "other", "$share/group/#", "$SYS/#")]

        assert granted == [1] * 4
        assert refused == [0x87 if level == 5 else 0x80] * 5
