"""What the development broker promises beyond MQTT: its codec, its bounds, its doors, its end."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import packets
from simulator.broker import Broker
from simulator.limits import Limits
from simulator.messages import Message
from simulator.packets import Acknowledgement, Decoder, PacketError, Properties, Publish, Reason
from simulator.routing import Subscription, SubscriptionTree, covers, is_topic_filter, is_topic_name, split_share
from simulator.users import User
from tests import raw_client
from tests.brokers import Embedded
from tests.raw_client import Kind, RawClient, Will, connect_packet, packet, publish_packet

Join = Callable[..., RawClient]

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TOPICS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
LEVELS = st.sampled_from([packets.V311, packets.V5])
PACKET_IDS = st.integers(1, 65_535)
SECONDS = st.integers(0, 2**32 - 1)
PROPERTIES = st.builds(
    Properties,
    payload_format=st.none() | st.integers(0, 1),
    message_expiry_s=st.none() | SECONDS,
    content_type=st.none() | TEXTS,
    response_topic=st.none() | TOPICS,
    correlation_data=st.none() | st.binary(max_size=20),
    subscription_ids=st.lists(st.integers(1, 2**28 - 1), max_size=3).map(tuple),
    topic_alias=st.none() | st.integers(0, 65_535),
    user_properties=st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple),
)


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    """Make any PUBLISH that keeps the rules."""
    qos = draw(st.integers(0, 2))
    return Publish(
        topic=draw(TOPICS),
        payload=draw(st.binary(max_size=300)),
        qos=qos,
        retain=draw(st.booleans()),
        duplicate=qos > 0 and draw(st.booleans()),
        packet_id=draw(PACKET_IDS) if qos else 0,
        properties=draw(PROPERTIES),
    )


def connected_decoder(level: int, max_packet_bytes: int = 1000) -> Decoder:
    """Give a decoder that has seen a CONNECT."""
    decoder = Decoder(max_packet_bytes)
    (connect,) = decoder.feed(connect_packet(level, "someone"))
    assert isinstance(connect, packets.Connect)
    return decoder


@pytest.fixture
def started() -> Iterator[Callable[..., Embedded]]:
    """Start a broker with the arguments of `Broker`; it ends with the test, after its clients."""
    with ExitStack() as brokers:
        yield lambda **options: brokers.enter_context(Embedded(**options))


@pytest.fixture
def join(started: Callable[..., Embedded]) -> Iterator[Callable[..., RawClient]]:
    """Connect a client to a broker: the broker, the level, then the arguments of `RawClient.connect`."""
    with ExitStack() as clients:

        def connect(broker: Embedded, level: int = 5, client_id: str = "", **options: Any) -> RawClient:
            client = clients.enter_context(RawClient(broker, level))
            client.connect(client_id, **options)
            assert client.connack.reason == 0
            return client

        yield connect


# The codec


@given(publishes(), LEVELS)
def test_a_publish_is_decoded_as_it_was_encoded(publish: Publish, level: int) -> None:
    """MQTT 3.1.1 loses the properties."""
    (decoded,) = connected_decoder(level).feed(packets.encode_publish(publish, level))

    assert isinstance(decoded, Publish)
    assert decoded.properties == (publish.properties if level == packets.V5 else Properties())
    assert (decoded.topic, decoded.payload, decoded.qos) == (publish.topic, publish.payload, publish.qos)
    assert (decoded.retain, decoded.duplicate) == (publish.retain, publish.duplicate)
    assert decoded.packet_id == publish.packet_id


@given(publishes())
def test_an_independent_client_reads_what_is_encoded(publish: Publish) -> None:
    """Two codecs that share no code agree on every field."""
    seen = read_independently(packets.encode_publish(publish, packets.V5))

    properties = publish.properties
    assert (seen.topic, seen.payload, seen.qos, seen.packet_id) == (
        publish.topic,
        publish.payload,
        publish.qos,
        publish.packet_id,
    )
    assert (seen.retain, seen.duplicate) == (publish.retain, publish.duplicate)
    expected = {
        "payload_format": properties.payload_format,
        "message_expiry": properties.message_expiry_s,
        "content_type": properties.content_type,
        "response_topic": properties.response_topic,
        "correlation_data": properties.correlation_data,
        "subscription_ids": list(properties.subscription_ids),
        "topic_alias": properties.topic_alias,
        "user_properties": list(properties.user_properties),
    }
    assert seen.properties == {name: value for name, value in expected.items() if value not in (None, [])}


def read_independently(encoded: bytes) -> raw_client.Packet:
    """Take one packet apart with the tests' own decoder."""
    body = next(at for at in range(1, 5) if encoded[at] < 0x80) + 1
    return raw_client.decode(encoded[0], encoded[body:], packets.V5)


@given(
    st.sampled_from([packets.Kind.PUBACK, packets.Kind.PUBREC, packets.Kind.PUBREL, packets.Kind.PUBCOMP]),
    PACKET_IDS,
    st.sampled_from([Reason.SUCCESS, Reason.PACKET_IDENTIFIER_NOT_FOUND]),
    LEVELS,
)
def test_an_acknowledgement_is_decoded_as_it_was_encoded(
    kind: packets.Kind, packet_id: int, reason: Reason, level: int
) -> None:
    """MQTT 3.1.1 loses the reason."""
    acknowledgement = Acknowledgement(kind, packet_id, reason)

    (decoded,) = connected_decoder(level).feed(packets.encode_acknowledgement(acknowledgement, level))

    assert decoded == Acknowledgement(kind, packet_id, reason if level == packets.V5 else Reason.SUCCESS)


@given(
    level=LEVELS,
    client_id=TEXTS,
    clean=st.booleans(),
    keep_alive=st.integers(0, 65_535),
    username=st.none() | TEXTS,
    password=TEXTS,
    will=st.none() | st.builds(Will, TOPICS, st.binary(max_size=20), st.integers(0, 2), st.booleans()),
    expiry=SECONDS,
)
def test_a_connect_of_an_independent_client_is_understood(
    level: int,
    client_id: str,
    clean: bool,
    keep_alive: int,
    username: str | None,
    password: str,
    will: Will | None,
    expiry: int,
) -> None:
    """A codec that shares no code with ours has made it."""
    login = {} if username is None else {"username": username, "password": password}
    options: dict[str, Any] = {
        "clean": clean,
        "keep_alive": keep_alive,
        "will": will,
        "session_expiry": expiry,
        **login,
    }

    (connect,) = Decoder(1000).feed(connect_packet(level, client_id, **options))

    assert connect == packets.Connect(
        level=level,
        client_id=client_id,
        clean_start=clean,
        keep_alive_s=keep_alive,
        will=None if will is None else Publish(will.topic, will.payload, will.qos, will.retain),
        username=username,
        password=None if username is None else password.encode(),
        properties=Properties(session_expiry_s=expiry) if level == packets.V5 else Properties(),
    )


@given(st.lists(publishes(), min_size=1, max_size=5), st.data())
def test_packets_are_cut_right_wherever_the_network_splits_them(published: list[Publish], data: st.DataObject) -> None:
    """TCP knows bytes and no packets."""
    decoder = connected_decoder(packets.V5, max_packet_bytes=2000)
    stream = b"".join(packets.encode_publish(publish, packets.V5) for publish in published)

    decoded: list[packets.Packet] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        decoded += decoder.feed(stream[:size])
        stream = stream[size:]

    assert decoded == published


@given(st.lists(st.binary(max_size=50), max_size=5), st.sampled_from([None, packets.V311, packets.V5]))
def test_no_bytes_do_more_than_break_the_rules(chunks: list[bytes], level: int | None) -> None:
    """Whatever a client sends is a packet or a `PacketError`."""
    decoder = Decoder(1000) if level is None else connected_decoder(level)

    with suppress(PacketError):
        for chunk in chunks:
            list(decoder.feed(chunk))


@given(kind=st.sampled_from(Kind), flags=st.integers(0, 15), body=st.binary(max_size=50), level=LEVELS)
def test_no_packet_does_more_than_break_the_rules(kind: Kind, flags: int, body: bytes, level: int) -> None:
    """The same, for bytes that come as a packet."""
    with suppress(PacketError):
        list(connected_decoder(level).feed(packet(kind, body, flags)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x30\x85\x00", Reason.MALFORMED_PACKET),
        (b"\x30\xff\xff\xff\xff", Reason.MALFORMED_PACKET),
        (b"\x30\xff\x07", Reason.PACKET_TOO_LARGE),
    ],
    ids=["length with a needless byte", "length without an end", "more than the bound, before its body has come"],
)
def test_a_packet_is_judged_by_its_length_alone(data: bytes, reason: Reason) -> None:
    """Section 1.5.5, and so that nobody can fill the memory."""
    with pytest.raises(PacketError) as raised:
        list(connected_decoder(packets.V5).feed(data))

    assert raised.value.reason == reason


# Names and filters

NAMES = st.lists(st.sampled_from(["", "a", "b", "$a"]), min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(
        st.lists(st.sampled_from(["", "a", "b", "+", "$a"]), max_size=3), st.sampled_from(["", "a", "b", "+", "#"])
    )
    .map(lambda levels: "/".join([*levels[0], levels[1]]))
    .filter(bool)
)


@given(st.lists(FILTERS, unique=True, max_size=8), NAMES)
def test_the_tree_finds_exactly_the_filters_that_match(topic_filters: list[str], name: str) -> None:
    """Two ways to the same answer: walking a tree, and comparing level by level."""
    tree: SubscriptionTree[str] = SubscriptionTree()
    for topic_filter in topic_filters:
        tree.add("someone", Subscription(topic_filter, 0))

    found = {subscription.topic_filter for found in tree.plain(name).values() for subscription in found}

    assert found == {topic_filter for topic_filter in topic_filters if covers(topic_filter, name)}


@given(st.lists(FILTERS, unique=True, min_size=2, max_size=8), NAMES)
def test_a_subscription_that_is_taken_out_leaves_the_others(topic_filters: list[str], name: str) -> None:
    """Filters share the nodes they begin with."""
    tree: SubscriptionTree[str] = SubscriptionTree()
    for topic_filter in topic_filters:
        tree.add("someone", Subscription(topic_filter, 0))
    gone, *stay = topic_filters

    tree.remove("someone", gone)

    found = {subscription.topic_filter for found in tree.plain(name).values() for subscription in found}
    assert found == {topic_filter for topic_filter in stay if covers(topic_filter, name)}


@given(FILTERS, FILTERS, NAMES)
def test_what_a_filter_covers_it_matches(allowed: str, wanted: str, name: str) -> None:
    """Nobody reads what is not allowed by way of a wider filter."""
    if covers(allowed, wanted) and covers(wanted, name):
        assert covers(allowed, name)


@pytest.mark.parametrize(
    ("allowed", "wanted", "covered"),
    [
        ("a/#", "a/#", True),
        ("a/#", "a", True),
        ("a/#", "a/+/b", True),
        ("a/#", "#", False),
        ("a/+", "a/#", False),
        ("a/+", "a/+", True),
        ("a/+", "a/+/+", False),
        ("a/+/#", "a/#", False),
        ("a/b", "a/+", False),
        ("#", "#", True),
        ("#", "$SYS/#", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/Coreflux/Command", True),
    ],
)
def test_a_filter_covers_another(allowed: str, wanted: str, covered: bool) -> None:
    """Each row stands on a boundary."""
    assert covers(allowed, wanted) is covered


@pytest.mark.parametrize(
    ("text", "name", "topic_filter"),
    [
        ("a", True, True),
        ("", False, False),
        ("/", True, True),
        ("a/+", False, True),
        ("a/b+", False, False),
        ("a/#", False, True),
        ("#/a", False, False),
        ("\0", False, False),
        ("x" * 65_535, True, True),
        ("ü" * 32_768, False, False),
        ("$share/group/a", True, True),
        ("$share/group/", True, False),
        ("$share/group", True, False),
        ("$share//a", True, False),
        ("$share/+/a", False, False),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_names_and_filters_are_told_from_other_texts(text: str, name: bool, topic_filter: bool) -> None:
    """Sections 4.7.1, 4.7.3 and 4.8.2."""
    assert (is_topic_name(text), is_topic_filter(text)) == (name, topic_filter)


def test_a_shared_filter_is_taken_apart() -> None:
    """The filter itself may contain anything."""
    assert split_share("$share/group/a/$share/b") == ("group", "a/$share/b")
    assert split_share("a/$share/b") == (None, "a/$share/b")


# The doors


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104 - refused here
def test_it_listens_on_loopback_only(host: str) -> None:
    """It is no production broker."""
    with pytest.raises(ValueError, match=f"loopback only, not on {host}"):
        Broker(host=host)


def test_it_says_that_it_is_for_development(started: Callable[..., Embedded], caplog: pytest.LogCaptureFixture) -> None:
    """Once, when it starts."""
    broker = started()

    assert caplog.messages == [f"development broker on 127.0.0.1:{broker.port}, not for production"]


def test_it_speaks_tls(started: Callable[..., Embedded]) -> None:
    """With whatever context it is given."""
    ca = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ca.issue_cert("127.0.0.1").configure_cert(server)
    ca.configure_trust(client)
    broker = started(tls=server)

    with RawClient(broker, tls=client) as raw:
        raw.connect()
        raw.subscribe("a")
        raw.publish("a", b"x" * 100_000)

        assert raw.receive().payload == b"x" * 100_000


def test_a_command_and_its_answer_take_milliseconds(embedded: Embedded, join: Join) -> None:
    """Nagle's algorithm would hold each answer back for 40 ms."""
    client = join(embedded)
    client.subscribe("quick", 1)

    began = time.monotonic()
    for _ in range(20):
        client.publish("quick", b"command")
        client.receive()

    assert time.monotonic() - began < 20 * 0.02


@pytest.mark.parametrize("level", [4, 5])
def test_clients_may_publish_below_sys(embedded: Embedded, join: Join, level: int) -> None:
    """That is what this broker exists for."""
    client = join(embedded, level)
    client.subscribe("$SYS/Coreflux/Command/#", 1)

    assert client.publish("$SYS/Coreflux/Command", b"-help") == 0

    assert client.receive().payload == b"-help"


def test_a_user_without_limits_may_do_everything(started: Callable[..., Embedded], join: Join) -> None:
    """A user is limited by what is listed, and by nothing when nothing is."""
    client = join(started(users={"root": User("secret")}), username="root", password="secret")

    assert client.subscribe("#") == 0
    assert client.subscribe("$SYS/#") == 0
    assert client.publish("$SYS/x", b"x") == 0


def test_a_will_is_held_to_the_rights_of_its_client(started: Callable[..., Embedded], join: Join) -> None:
    """A client cannot say after its end what it may not say before."""
    broker = started(users={"limited": User("secret", publish=("open/#",))})
    login = {"username": "limited", "password": "secret"}
    watcher = join(broker, **login)
    watcher.subscribe("#")

    join(broker, will=Will("closed/x", b"lost"), **login).drop()
    join(broker, will=Will("open/x", b"lost"), **login).drop()

    assert watcher.receive().topic == "open/x"
    assert watcher.messages() == []


# Overlapping subscriptions


@pytest.mark.parametrize(("copy_per_subscription", "copies"), [(False, [[1, 2]]), (True, [[1], [2]])])
def test_overlapping_subscriptions_give_one_copy_or_several(
    started: Callable[..., Embedded], join: Join, copy_per_subscription: bool, copies: list[list[int]]
) -> None:
    """Section 3.3.4 allows both, and both occur in the field."""
    client = join(started(copy_per_subscription=copy_per_subscription))
    client.subscribe("a/+", subscription_ids=[1])
    client.subscribe("a/#", subscription_ids=[2])

    client.publish("a/b", b"x")

    assert sorted(sorted(message.properties["subscription_ids"]) for message in client.messages()) == copies


# In process


def test_the_process_publishes_without_a_connection(embedded: Embedded, join: Join) -> None:
    """As the personality of a real broker will."""
    client = join(embedded)
    client.subscribe("inside/#", 1)

    embedded.call(
        lambda broker: broker.publish(
            "inside/state", b"x", 1, retain=True, properties=Properties(content_type="text/plain")
        )
    )

    message = client.receive()
    assert (message.topic, message.payload, message.qos) == ("inside/state", b"x", 1)
    assert message.properties == {"content_type": "text/plain"}
    client.subscribe("inside/#")
    assert client.receive().retain is True


def test_the_process_publishes_to_topic_names_only(embedded: Embedded) -> None:
    """A wildcard is the caller's mistake."""
    with pytest.raises(ValueError, match="not a topic name: 'a/#'"):
        embedded.call(lambda broker: broker.publish("a/#", b"x"))


def test_a_hook_sees_messages_and_may_take_them(started: Callable[..., Embedded], join: Join) -> None:
    """Only those that their client may publish, and before anyone else."""
    broker = started(users={"limited": User("secret", publish=("command", "other"))})
    seen: list[Message] = []

    def take_commands(message: Message) -> bool:
        seen.append(message)
        return message.topic == "command"

    broker.call(lambda running: running.on_publish.append(take_commands))
    client = join(broker, client_id="console", username="limited", password="secret")
    client.subscribe("#")

    for topic in ("command", "other", "forbidden"):
        client.publish(topic, b"x", retain=True)

    assert [message.topic for message in client.messages()] == ["other"]
    assert [(message.publisher, message.topic) for message in seen] == [("console", "command"), ("console", "other")]
    client.subscribe("command")
    assert client.messages() == []


# Bounds


@pytest.mark.parametrize(("level", "reason"), [(4, 3), (5, 0x97)])
def test_a_client_too_many_is_refused(started: Callable[..., Embedded], join: Join, level: int, reason: int) -> None:
    """A remembered session counts; who comes back to it is not too many."""
    broker = started(limits=Limits(max_clients=2))
    join(broker, 5, "kept", session_expiry=60).disconnect()
    join(broker, 5, "connected")

    with RawClient(broker, level) as client:
        assert client.connect().reason == reason
        client.expect_end()

    assert join(broker, 5, "kept", clean=False).connack.session_present is True


def test_a_connection_too_many_is_closed(started: Callable[..., Embedded]) -> None:
    """Before it has said who it is."""
    broker = started(limits=Limits(max_clients=1))

    with RawClient(broker), RawClient(broker), RawClient(broker) as third:
        assert third.expect_end() == []


def test_a_connection_that_says_nothing_is_closed(started: Callable[..., Embedded]) -> None:
    """Sockets are not held for who might be a client some day."""
    broker = started(limits=Limits(connect_timeout_s=0.05))

    with RawClient(broker) as client:
        assert client.expect_end() == []


def test_a_subscription_too_many_is_refused(started: Callable[..., Embedded], join: Join) -> None:
    """One in the place of another is not too many."""
    client = join(started(limits=Limits(max_subscriptions=2)))

    reasons = [client.subscribe(topic_filter, 1) for topic_filter in ("a", "b", "c", "b")]

    assert reasons == [1, 1, 0x97, 1]


def test_a_filter_of_too_many_levels_is_refused(embedded: Embedded, join: Join) -> None:
    """Each level costs memory for as long as the subscription lasts."""
    client = join(embedded)

    assert client.subscribe("/" * 199) == 0
    assert client.subscribe("/" * 200) == 0x8F


def test_a_retained_message_too_many_is_refused(
    started: Callable[..., Embedded], join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """One in the place of another is not too many, and clearing or expiry makes room."""
    client = join(started(limits=Limits(max_retained=2)))

    def retain(topic: str, payload: bytes, **properties: Any) -> int:
        return client.publish(topic, payload, retain=True, **properties)

    client.subscribe("#")
    assert [retain("a", b"1"), retain("b", b"1"), retain("c", b"1"), retain("b", b"2")] == [0, 0, 0x97, 0]
    assert "no room for the retained message on c, refused" in caplog.messages
    assert [retain("a", b""), retain("c", b"1", message_expiry=0), retain("d", b"1")] == [0, 0, 0]
    assert [message.topic for message in client.messages()] == ["a", "b", "b", "a", "d"]


def test_retained_messages_are_bounded_in_bytes(started: Callable[..., Embedded], join: Join) -> None:
    """Topic and payload count."""
    client = join(started(limits=Limits(max_retained_bytes=100)))
    client.subscribe("#")

    reasons = [client.publish(topic, b"x" * size, retain=True) for topic, size in (("a", 99), ("b", 1), ("a", 97))]

    assert reasons == [0, 0x97, 0]
    assert client.publish("b", b"x", retain=True) == 0


@pytest.mark.parametrize("limits", [Limits(max_queued=3), Limits(max_queued_bytes=6)], ids=["count", "bytes"])
def test_what_a_queue_cannot_hold_is_dropped_and_told(
    started: Callable[..., Embedded], join: Join, caplog: pytest.LogCaptureFixture, limits: Limits
) -> None:
    """The oldest stay, and the log says how many did not."""
    broker = started(limits=limits)
    client = join(broker, 5, "away", session_expiry=60)
    client.subscribe("t", 1)
    client.drop()
    publisher = join(broker)

    for number in range(5):
        publisher.publish("t", b"%d" % number)
    client = join(broker, 5, "away", clean=False, session_expiry=60)

    assert [client.receive().payload for _ in range(3)] == [b"0", b"1", b"2"]
    assert client.messages() == []
    assert "the queue of client 'away' is full, dropping messages" in caplog.messages
    assert "client 'away' has lost 2 messages to its full queue" in caplog.messages


def test_messages_of_qos_0_are_not_kept_for_who_is_away(started: Callable[..., Embedded], join: Join) -> None:
    """Section 4.3.1: at most once, and not as a matter for a queue."""
    broker = started()
    client = join(broker, 5, "away", session_expiry=60)
    client.subscribe("t", 0)
    client.drop()

    join(broker).publish("t", b"x")

    assert join(broker, 5, "away", clean=False).messages() == []


def test_a_client_that_reads_slowly_loses_nothing_within_the_bounds(
    started: Callable[..., Embedded], join: Join
) -> None:
    """What does not fit into its socket waits in its session, in order."""
    broker = started()
    slow, publisher = join(broker), join(broker)
    slow.subscribe("t", 0)
    expected = [b"%06d" % number + b"x" * 10_000 for number in range(2000)]

    for payload in expected:
        publisher.publish("t", payload, 1)

    assert [slow.receive().payload for _ in expected] == expected


def test_a_client_that_reads_nothing_costs_no_more_than_its_queue(
    started: Callable[..., Embedded], join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    """Others do not notice."""
    broker = started(limits=Limits(max_queued=10))
    other = join(broker)
    other.subscribe("t", 0)

    with RawClient(broker, narrow=True) as deaf:
        deaf.connect()
        deaf.subscribe("t", 0)
        for _ in range(100):
            other.publish("t", b"x" * 100_000)
            assert len(other.receive().payload) == 100_000

    assert "the queue of client" in caplog.text


def test_a_client_that_asks_and_never_reads_is_cut_off(
    started: Callable[..., Embedded], caplog: pytest.LogCaptureFixture
) -> None:
    """Answers cannot wait in a session as messages do."""
    broker = started(limits=Limits(max_packet_bytes=1000))
    pings = packet(Kind.PINGREQ, b"") * 10_000

    with RawClient(broker, narrow=True) as client:
        client.connect()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - one of many sends
            for _ in range(1000):
                client.send(pings)

    assert "cutting off a client that reads nothing" in caplog.messages


def test_unfinished_messages_of_a_client_are_bounded(started: Callable[..., Embedded], join: Join) -> None:
    """Section 4.9: it has been told the receive maximum."""
    client = join(started(limits=Limits(receive_maximum=2)))
    assert client.connack.properties["receive_maximum"] == 2

    for packet_id in (1, 2, 2, 3):
        client.send(publish_packet(5, "t", b"x", 2, packet_id))

    assert [each.reason for each in client.expect_end() if each.kind == Kind.DISCONNECT] == [0x93]


def test_unacknowledged_messages_to_a_client_are_bounded(started: Callable[..., Embedded], join: Join) -> None:
    """Whatever the client says it takes."""
    client = join(started(limits=Limits(max_inflight=2)))
    client.subscribe("t", 1)

    for number in range(3):
        client.publish("t", b"%d" % number)

    first, _second = client.messages()
    client.acknowledge(Kind.PUBACK, first.packet_id)
    assert [message.payload for message in client.messages()] == [b"2"]


# What a client did not send


@pytest.mark.parametrize("kind", [Kind.PUBACK, Kind.PUBCOMP])
def test_an_acknowledgement_of_nothing_is_passed_over(embedded: Embedded, join: Join, kind: Kind) -> None:
    """It may be late by one connection."""
    client = join(embedded)

    client.acknowledge(kind, 77)

    client.ping()


@pytest.mark.parametrize(("kind", "answer"), [(Kind.PUBREC, Kind.PUBREL), (Kind.PUBREL, Kind.PUBCOMP)])
def test_a_step_of_an_unknown_message_is_answered_as_such(
    embedded: Embedded, join: Join, kind: Kind, answer: Kind
) -> None:
    """Sections 3.6.2.1 and 3.7.2.1: packet identifier not found."""
    client = join(embedded)

    client.acknowledge(kind, 77)

    answered = client.expect(answer)
    assert (answered.packet_id, answered.reason) == (77, 0x92)


def test_a_message_that_a_client_refuses_is_done_with(embedded: Embedded, join: Join) -> None:
    """Section 4.3.3: a PUBREC with a reason of failure ends it."""
    client = join(embedded, receive_maximum=1)
    client.subscribe("refused", 2)
    client.publish("refused", b"1", 2)
    client.publish("refused", b"2", 2)

    (first,) = client.messages()
    client.send(packet(Kind.PUBREC, first.packet_id.to_bytes(2) + b"\x97"))

    assert [message.payload for message in client.messages()] == [b"2"]


def test_what_waited_for_a_session_still_fits_the_next_connection(started: Callable[..., Embedded], join: Join) -> None:
    """The new connection takes fewer and smaller packets than the last."""
    broker = started()
    client = join(broker, 5, "smaller", session_expiry=60)
    client.subscribe("t", 1)
    for payload in (b"x" * 1000, b"1", b"2"):
        client.publish("t", payload)
    client.drop()

    client = join(broker, 5, "smaller", clean=False, receive_maximum=1, maximum_packet_size=100)

    assert [client.receive().payload, client.receive().payload] == [b"1", b"2"]
    assert client.messages() == []


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_no_bytes_of_one_client_harm_another(embedded: Embedded, chunks: list[bytes]) -> None:
    """Valid packets among them do what they say, and no more."""
    with RawClient(embedded) as other, RawClient(embedded) as hostile:
        other.connect()
        hostile.connect()
        with suppress(OSError):  # closed already
            for chunk in chunks:
                hostile.send(chunk)

        other.ping()


# The end


def test_its_end_is_told_to_clients_at_once(started: Callable[..., Embedded], join: Join) -> None:
    """Even when one of them does not read; `Embedded` checks that no task is left."""
    broker = started()
    new, old, deaf = join(broker, 5), join(broker, 4), join(broker, 5)
    deaf.subscribe("t")
    for _ in range(100):
        new.publish("t", b"x" * 100_000)

    began = time.monotonic()
    broker.stop()

    assert time.monotonic() - began < 2
    assert [each.reason for each in new.expect_end()] == [0x8B]
    assert old.expect_end() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((broker.host, broker.port))
    broker.start()


def test_a_new_start_knows_nothing_of_the_last(started: Callable[..., Embedded], join: Join) -> None:
    """Everything is in memory, timers of wills and sessions included."""
    broker = started()
    client = join(broker, 5, "kept", session_expiry=60, will=Will("t", b"", properties={"will_delay": 30}))
    client.subscribe("t", 1)
    client.publish("t", b"x", retain=True)
    client.drop()

    broker.restart()

    client = join(broker, 5, "kept", clean=False)
    assert client.connack.session_present is False
    client.subscribe("t")
    assert client.messages() == []
