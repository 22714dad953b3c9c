"""The connection against real brokers: it comes up, tells why it does not, survives, and never lies about it."""

import asyncio
import itertools
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

import mqtt_client
import mqtt_link
from config import BrokerConfig, TLSConfig
from errors import BrokerError, BrokerOfflineError, BrokerRefusedError, BrokerSilentError, InputError
from inbox import Inbox, Message, Subscription
from mqtt_client import MqttClient, Published
from mqtt_link import PublishProperties
from simulator.users import User
from tests.brokers import Embedded, Mosquitto, Reachable, Watcher
from tests.brokers import publish as publish_from_outside
from tests.hostile import (
    OBEDIENT,
    Answer,
    Hostile,
    Peer,
    Script,
    Sent,
    connack,
    disconnect,
    never,
    obedient,
    subscription_identifier,
)
from tests.hostile import publish as publish_packet
from tests.raw_client import Kind, RawClient, packet
from tests.wire import Listening, Wire, until
from topics import TopicFilter

pytestmark = pytest.mark.anyio

Broker = Embedded | Mosquitto
Made = Callable[..., Mosquitto]

NO_MATCHING_SUBSCRIBERS = 0x10

_numbers = itertools.count()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client try again at once."""
    monkeypatch.setattr(mqtt_client, "_BACK_OFF_S", (0.01, 0.02))


@pytest.fixture
def topic() -> str:
    """A topic of the test's own."""
    return f"t{next(_numbers)}"


@asynccontextmanager
async def started(broker: Listening, **settings: Any) -> AsyncIterator[MqttClient]:
    """Start a client that need not get through."""
    config = BrokerConfig(host=broker.host, port=broker.port, **settings)
    async with MqttClient(config, Inbox(100_000, 64 << 20)) as client:
        yield client


@asynccontextmanager
async def connected(broker: Listening, **settings: Any) -> AsyncIterator[MqttClient]:
    """Start a client and wait until it is connected."""
    async with started(broker, **settings) as client:
        await until(lambda: client.state.connected, what="a connection")
        yield client


def tell(broker: Reachable, topic: str, payload: bytes = b"", *, qos: int = 1, retain: bool = False) -> None:
    """Publish as somebody else, who enters by the side door."""
    publish_from_outside(broker, topic, payload, qos, retain=retain)


def connected_times(client: MqttClient, count: int) -> bool:
    return client.state.connected and client.state.connections >= count


def received_at_least(subscription: Subscription, count: int) -> bool:
    return subscription.received >= count


def texts(messages: Any) -> list[bytes]:
    return [message.payload for message in messages]


@pytest.fixture(scope="module")
def guarded(mosquitto_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A mosquitto with one user."""
    with Mosquitto(tmp_path_factory.mktemp("guarded"), users={"operator": "right"}) as broker:
        yield broker


@pytest.fixture(scope="module")
def secured(mosquitto_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A mosquitto that speaks TLS."""
    with Mosquitto(tmp_path_factory.mktemp("secured"), tls=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def mutual(mosquitto_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A mosquitto that demands a client certificate."""
    with Mosquitto(tmp_path_factory.mktemp("mutual"), mutual_tls=True) as broker:
        yield broker


def certificate_of(broker: Mosquitto, **more: Any) -> TLSConfig:
    """Settings that trust a broker and show the client certificate it issued."""
    return TLSConfig(
        ca_cert=broker.ca_path, client_cert=broker.client_cert_path, client_key=broker.client_key_path, **more
    )


async def why_not(client: MqttClient) -> str:
    """Wait until an attempt to connect has failed and return what the operator reads."""
    await until(lambda: client.state.next_attempt_at is not None, what="a failed attempt")
    assert not client.state.connected
    assert client.state.last_error is not None
    with pytest.raises(BrokerOfflineError) as offline:
        await client.probe()
    assert client.state.last_error in str(offline.value)
    return client.state.last_error


async def publish(client: MqttClient, topic: str, payload: bytes = b"", qos: int = 1, **properties: Any) -> Published:
    return await client.publish(topic, payload, qos, retain=False, properties=PublishProperties(**properties))


@pytest.mark.skipif(not hasattr(select, "poll"), reason="Windows counts descriptors, and does not number them")
async def test_it_works_in_a_process_that_has_thousands_of_files_open(broker: Embedded | Mosquitto) -> None:
    """`select` knows no descriptor beyond 1023, and over HTTP there can be that many clients."""
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        async with connected(broker) as client:
            subscription = await client.subscribe(TopicFilter("many/files"), 1)
            await client.publish("many/files", b"x", 1, retain=False, properties=PublishProperties())
            await until(lambda: subscription.received == 1)
    finally:
        for each in many:
            os.close(each)


class TestComingUp:
    async def test_a_client_starts_without_a_broker_and_is_there_when_the_broker_is(self, mosquitto: Mosquitto) -> None:
        async with Wire(mosquitto) as wire:
            wire.refuse()
            async with started(wire) as client:
                assert "nothing listens there; is the broker running, and is MQTT_PORT right?" in await why_not(client)
                assert client.state.attempts >= 1
                assert client.state.connections == 0

                await wire.accept()
                await until(lambda: client.state.connected)

                state = client.state
                assert (state.attempts, state.connections, state.last_error, state.next_attempt_at) == (
                    0,
                    1,
                    None,
                    None,
                )
                assert (state.protocol, state.broker) == ("5", f"mqtt://127.0.0.1:{wire.port}")
                assert not client.inbox.gaps

    async def test_a_host_that_does_not_exist_is_told_by_name(self) -> None:
        async with MqttClient(BrokerConfig(host="no-such-host.invalid"), Inbox(10, 1000)) as client:
            assert "'no-such-host.invalid' cannot be resolved; check MQTT_BROKER and DNS" in await why_not(client)

    async def test_closing_says_goodbye_and_leaves_nothing(self, make_mosquitto: Made, topic: str) -> None:
        broker = make_mosquitto()
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())

        async with connected(broker, client_id="leaving", client_id_fixed=True, session_expiry_s=600) as client:
            await client.subscribe(TopicFilter(topic), 1)
            closing = time.monotonic()
        assert time.monotonic() - closing < 1

        assert asyncio.all_tasks() == tasks
        await until(lambda: set(threading.enumerate()) <= threads, what="the end of every thread")
        await until(lambda: "Client leaving disconnected." in broker.log)
        assert "Received DISCONNECT from leaving" in broker.log
        with RawClient(broker) as other:
            assert not other.connect("leaving", clean=False).session_present

    @pytest.mark.parametrize("obstacle", ["refusing", "silent", "no CONNACK"])
    async def test_closing_while_connecting_leaves_nothing(self, mosquitto: Mosquitto, obstacle: str) -> None:
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())

        async with Wire(mosquitto) as wire:
            if obstacle == "refusing":
                wire.refuse()
            wire.swallow()
            async with started(wire, tls=TLSConfig() if obstacle == "silent" else None, connect_timeout_s=1) as client:
                await until(lambda: wire.connections or client.state.last_error)
        assert asyncio.all_tasks() == tasks
        await until(lambda: set(threading.enumerate()) <= threads, what="the end of every thread")


class TestLogin:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1", "auto"])
    @pytest.mark.parametrize(("user", "password"), [("operator", "wrong"), ("stranger", "right"), (None, None)])
    async def test_a_refused_login_is_told_and_not_hammered(
        self,
        guarded: Mosquitto,
        caplog: pytest.LogCaptureFixture,
        protocol: str,
        user: str | None,
        password: str | None,
    ) -> None:
        secret = SecretStr(password) if password else None
        async with started(guarded, protocol=protocol, user=user, password=secret) as client:
            text = await why_not(client)

            assert "refused the connection" in text
            assert "MQTT_USER" in text
            assert "MQTT_PASSWORD" in text
            assert client.state.attempts == 1
            assert client.state.next_attempt_at is not None
            assert client.state.next_attempt_at - time.time() > 14
            assert "wrong" not in caplog.text.replace("is wrong", "")

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_the_right_password_opens(self, guarded: Mosquitto, protocol: str) -> None:
        async with connected(guarded, protocol=protocol, user="operator", password=SecretStr("right")) as client:
            assert (await publish(client, "t")).acknowledged


class TestTLS:
    async def test_a_trusted_broker_is_used_and_described(self, secured: Mosquitto) -> None:
        async with connected(secured, tls=TLSConfig(ca_cert=secured.ca_path)) as client:
            assert (await publish(client, "t")).acknowledged

            facts = dict(client.state.tls)
            assert (facts.pop("enabled"), facts.pop("verified"), facts.pop("version")) == (True, True, "TLSv1.3")
            assert str(facts.pop("cipher")).startswith("TLS_")
            assert datetime.strptime(str(facts.pop("certificate_expires")), "%b %d %H:%M:%S %Y %Z")  # noqa: DTZ007
            assert facts == {}

    async def test_an_unknown_authority_is_not_trusted(self, secured: Mosquitto) -> None:
        async with started(secured, tls=TLSConfig()) as client:
            text = await why_not(client)

            assert "is not trusted" in text
            assert "set MQTT_CA_CERT to the CA that signed it" in text

    async def test_insecure_trusts_anyone_and_says_so(self, secured: Mosquitto) -> None:
        async with connected(secured, tls=TLSConfig(insecure=True)) as client:
            assert client.state.tls["verified"] is False

    async def test_a_certificate_for_another_name_is_told_and_a_server_name_mends_it(
        self, make_mosquitto: Made
    ) -> None:
        broker = make_mosquitto(tls=True, certificate_names=["elsewhere.example"])

        for host in ("localhost", "127.0.0.1"):
            config = BrokerConfig(host=host, port=broker.port, tls=TLSConfig(ca_cert=broker.ca_path))
            async with MqttClient(config, Inbox(10, 1000)) as client:
                assert "MQTT_TLS_SERVER_NAME" in await why_not(client)
        tls = TLSConfig(ca_cert=broker.ca_path, server_name="elsewhere.example")
        async with connected(broker, tls=tls) as client:
            assert client.state.tls["verified"] is True

    async def test_an_expired_certificate_is_told(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto(tls=True, not_after=datetime.now(UTC) - timedelta(days=1))

        async with started(broker, tls=TLSConfig(ca_cert=broker.ca_path)) as client:
            assert "expired); have the broker's certificate renewed" in await why_not(client)

    async def test_tls_on_a_plain_port_is_told(self, mosquitto: Mosquitto) -> None:
        async with started(mosquitto, tls=TLSConfig()) as client:
            assert "check MQTT_PORT and MQTT_USE_TLS" in await why_not(client)

    @pytest.mark.parametrize("protocol", ["auto", "5"])
    async def test_a_plain_connection_to_a_tls_port_is_told(self, secured: Mosquitto, protocol: str) -> None:
        async with started(secured, protocol=protocol) as client:
            assert "it may want TLS (MQTT_USE_TLS)" in await why_not(client)

    @pytest.mark.parametrize("min_version", ["1.2", "1.3"])
    async def test_a_client_certificate_opens_where_one_is_asked_for(self, mutual: Mosquitto, min_version: str) -> None:
        async with connected(mutual, tls=certificate_of(mutual, min_version=min_version)) as client:
            assert (await publish(client, "t")).acknowledged

    async def test_a_missing_client_certificate_is_told(self, mutual: Mosquitto) -> None:
        async with started(mutual, tls=TLSConfig(ca_cert=mutual.ca_path)) as client:
            assert "MQTT_CLIENT_CERT" in await why_not(client)

    async def test_a_client_certificate_of_another_authority_is_told(
        self, mutual: Mosquitto, make_mosquitto: Made
    ) -> None:
        other = certificate_of(make_mosquitto(mutual_tls=True))

        async with started(mutual, tls=replace(other, ca_cert=mutual.ca_path)) as client:
            assert "MQTT_CLIENT_CERT" in await why_not(client)

    async def test_an_encrypted_key_opens_with_its_password_only(self, mutual: Mosquitto, tmp_path: Path) -> None:
        key = load_pem_private_key(mutual.client_key_path.read_bytes(), None)
        encrypted = tmp_path / "key.pem"
        encrypted.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
        )
        tls = replace(certificate_of(mutual), client_key=encrypted)

        async with connected(mutual, tls=replace(tls, client_key_password=SecretStr("open sesame"))):
            pass
        for password in (SecretStr("open barley"), None):
            async with started(mutual, tls=replace(tls, client_key_password=password)) as client:
                text = await why_not(client)
                assert "MQTT_CLIENT_KEY_PASSWORD is wrong" in text
                assert "barley" not in text

    async def test_a_key_of_another_certificate_is_told(self, mutual: Mosquitto, make_mosquitto: Made) -> None:
        other = make_mosquitto(mutual_tls=True)

        async with started(mutual, tls=replace(certificate_of(mutual), client_key=other.client_key_path)) as client:
            assert "MQTT_CLIENT_KEY does not belong to MQTT_CLIENT_CERT" in await why_not(client)

    @pytest.mark.parametrize("content", [None, b"no certificate"])
    async def test_a_certificate_file_that_is_spoilt_later_is_told(
        self, secured: Mosquitto, tmp_path: Path, content: bytes | None
    ) -> None:
        ca = tmp_path / "ca.pem"
        if content is not None:
            ca.write_bytes(content)

        async with started(secured, tls=TLSConfig(ca_cert=ca)) as client:
            text = await why_not(client)
            assert "MQTT_CA_CERT" in text
            assert "broker" not in text

    async def test_a_broker_of_older_tls_is_told(self) -> None:
        with old_tls() as (broker, tls):
            async with started(broker, tls=replace(tls, min_version="1.3")) as client:
                assert "MQTT_TLS_MIN_VERSION" in await why_not(client)
            async with connected(broker, tls=tls) as client:
                assert client.state.tls["version"] == "TLSv1.2"

    async def test_the_cipher_is_one_of_those_allowed(self) -> None:
        with old_tls() as (broker, tls):
            for cipher in ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"):
                async with connected(broker, tls=replace(tls, ciphers=cipher)) as client:
                    assert client.state.tls["cipher"] == cipher
            async with started(broker, tls=replace(tls, ciphers="ECDHE-ECDSA-AES128-CCM8")) as client:
                assert "MQTT_TLS_CIPHERS" in await why_not(client)


@contextmanager
def old_tls() -> Iterator[tuple[Embedded, TLSConfig]]:
    """A broker that speaks TLS 1.2 at most (mosquitto has a setting for the oldest version only)."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with Embedded(tls=context) as broker, ca.cert_pem.tempfile() as ca_path:
        yield broker, TLSConfig(ca_cert=Path(ca_path))


class TestWebSocket:
    @pytest.mark.parametrize("tls", [False, True])
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_mqtt_over_websocket_carries_everything(
        self, make_mosquitto: Made, topic: str, tls: bool, protocol: str
    ) -> None:
        broker = make_mosquitto(websockets=True, tls=tls)
        security = TLSConfig(ca_cert=broker.ca_path) if tls else None

        async with connected(broker, transport="websockets", tls=security, protocol=protocol) as client:
            subscription = await client.subscribe(TopicFilter(topic), 2)
            payload = bytes(range(256)) * 1000
            assert (await publish(client, topic, payload, 2)).acknowledged
            await until(lambda: subscription.received)

            assert texts(client.inbox.read(subscription).messages) == [payload]
            assert client.state.tls["enabled"] is tls
            assert client.state.broker == f"{'wss' if tls else 'ws'}://127.0.0.1:{broker.port}/mqtt"

    async def test_a_plain_mqtt_port_is_told(self, mosquitto: Mosquitto) -> None:
        async with started(mosquitto, transport="websockets") as client:
            assert "MQTT_TRANSPORT" in await why_not(client)


class TestProtocol:
    async def test_a_broker_without_mqtt_5_is_spoken_to_in_3_1_1(self, make_mosquitto: Made, topic: str) -> None:
        broker = make_mosquitto(only_311=True)

        async with connected(broker, protocol="auto") as client:
            assert client.state.protocol == "3.1.1"
            assert (await publish(client, topic)).acknowledged
            broker.restart()
            await until(lambda: client.state.connections == 2)
            assert client.state.protocol == "3.1.1"

    async def test_a_broker_without_mqtt_5_is_told_when_5_is_demanded(self, make_mosquitto: Made) -> None:
        async with started(make_mosquitto(only_311=True), protocol="5") as client:
            assert "it does not speak MQTT 5: set MQTT_PROTOCOL" in await why_not(client)

    @pytest.mark.parametrize("only_311", [False, True])
    async def test_3_1_1_is_spoken_when_it_is_demanded(self, make_mosquitto: Made, only_311: bool) -> None:
        async with connected(make_mosquitto(only_311=only_311), protocol="3.1.1") as client:
            assert client.state.protocol == "3.1.1"

    async def test_properties_on_3_1_1_are_an_error(self, mosquitto: Mosquitto, topic: str) -> None:
        async with connected(mosquitto, protocol="3.1.1") as client:
            with pytest.raises(InputError, match=r"MQTT 3.1.1, which has no message properties"):
                await publish(client, topic, content_type="text/plain")


class TestPublish:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    @pytest.mark.parametrize("qos", [0, 1, 2])
    @pytest.mark.parametrize("payload", [b"", bytes(range(256)), b"\xff\xfe", b"\0", b"x" * 1_000_000], ids=len)
    async def test_a_payload_arrives_byte_for_byte_and_comes_back_so(
        self, mosquitto: Mosquitto, topic: str, protocol: str, qos: int, payload: bytes
    ) -> None:
        with Watcher(mosquitto, topic) as watcher:
            async with connected(mosquitto, protocol=protocol) as client:
                subscription = await client.subscribe(TopicFilter(topic), 2)
                await publish(client, topic, payload, qos)
                await until(lambda: subscription.received)

                assert texts(client.inbox.read(subscription).messages) == [payload]
            (seen,) = watcher.wait_count(1)
        assert (seen.payload, seen.qos, seen.retain) == (payload, qos, False)

    async def test_properties_travel(self, mosquitto: Mosquitto, topic: str) -> None:
        async with connected(mosquitto) as client:
            subscription = await client.subscribe(TopicFilter(topic), 1)
            await publish(
                client,
                topic,
                b"x",
                content_type="application/json",
                expiry_s=60,
                response_topic="answers/here",
                correlation_data=b"\0\xff",
                user_properties=(("k", "v1"), ("k", "v2"), ("ü", "☃")),
            )
            await until(lambda: subscription.received)

            (message,) = client.inbox.read(subscription).messages
            assert message.properties == {
                "content_type": "application/json",
                "expiry_s": 60,
                "response_topic": "answers/here",
                "correlation_data": b"\0\xff",
                "user_properties": [("k", "v1"), ("k", "v2"), ("ü", "☃")],
            }

    async def test_nobody_listening_is_no_error_and_is_told(self, mosquitto: Mosquitto, topic: str) -> None:
        async with connected(mosquitto) as client:
            assert (await publish(client, topic)).reason == "No matching subscribers (0x10)"

    @pytest.mark.parametrize("qos", [1, 2])
    async def test_a_refusal_has_the_brokers_reason(self, make_mosquitto: Made, topic: str, qos: int) -> None:
        broker = make_mosquitto(acl="topic read #\n")

        async with connected(broker) as client:
            with pytest.raises(BrokerRefusedError, match=r"refused the message to 't\d+': Not authorized \(0x87\)"):
                await publish(client, topic, b"x", qos)
            assert await client.probe()
            assert client.state.connections == 1

    async def test_a_packet_that_the_broker_will_not_take_is_not_sent(self, make_mosquitto: Made, topic: str) -> None:
        broker = make_mosquitto(config=["max_packet_size 2000"])

        async with connected(broker) as client:
            assert (await publish(client, topic, b"x" * 1900)).acknowledged
            with pytest.raises(BrokerRefusedError, match=r"takes packets of at most 2000 bytes"):
                await publish(client, topic, b"x" * 2000)
            with pytest.raises(BrokerRefusedError, match=r"takes packets of at most 2000 bytes"):
                await publish(client, topic, content_type="c" * 1000, user_properties=(("k", "v" * 1000),))
            assert (await publish(client, topic)).acknowledged
            assert client.state.connections == 1

    @pytest.mark.parametrize("qos", [1, 2])
    async def test_a_payload_that_the_broker_answers_to_be_too_large_is_an_error(
        self, make_mosquitto: Made, topic: str, qos: int
    ) -> None:
        broker = make_mosquitto(config=["message_size_limit 1000"])

        async with connected(broker) as client:
            with pytest.raises(BrokerRefusedError, match=r"Packet too large \(0x95\)"):
                await publish(client, topic, b"x" * 1001, qos)
            assert (await publish(client, topic)).acknowledged
            assert client.state.connections == 1

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_many_at_once_are_all_acknowledged_in_their_order(
        self, mosquitto: Mosquitto, topic: str, protocol: str
    ) -> None:
        async with connected(mosquitto, protocol=protocol) as client:
            subscription = await client.subscribe(TopicFilter(topic), 2)
            payloads = [str(number).encode() for number in range(300)]

            answers = await asyncio.gather(*(publish(client, topic, payload, 2) for payload in payloads))
            await until(lambda: subscription.received == len(payloads))

            assert all(answer.acknowledged for answer in answers)
            assert texts(client.inbox.read(subscription).messages) == payloads

    async def test_publishes_given_up_while_the_broker_is_stuck_do_not_exceed_what_it_takes(
        self, make_mosquitto: Made, topic: str
    ) -> None:
        """The broker takes 20 at a time; one more than that ends the connection (MQTT 5.0, 3.1.2.11.3)."""
        broker = make_mosquitto()

        async with connected(broker) as client:
            broker.freeze()
            for _ in range(3):
                calls = [asyncio.create_task(publish(client, topic, b"x", 2)) for _ in range(20)]
                await asyncio.wait(calls, timeout=0.05)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
            broker.thaw()

            assert (await publish(client, topic, b"x", 2)).acknowledged
            assert client.state.connections == 1


class TestOverlap:
    """A broker may send one copy of a message for each overlapping subscription or one for all of them."""

    KINDS = (
        "mosquitto-5",  # copies
        "mosquitto-3.1.1",  # merges
        "mosquitto copying-3.1.1",
        "copying-5",
        "copying-3.1.1",
        "merging-5",
        "merging-3.1.1",
    )

    @pytest.fixture(params=KINDS)
    async def crossing(self, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Broker, MqttClient]]:
        """Each broker in each MQTT version, with a client."""
        kind, _, protocol = request.param.partition("-")
        if kind == "mosquitto":
            broker: Broker = request.getfixturevalue("mosquitto")
            async with connected(broker, protocol=protocol) as client:
                yield broker, client
        elif kind == "mosquitto copying":
            make_mosquitto: Made = request.getfixturevalue("make_mosquitto")
            broker = make_mosquitto(config=["allow_duplicate_messages true"])
            async with connected(broker, protocol=protocol) as client:
                yield broker, client
        else:
            with Embedded(copy_per_subscription=kind == "copying") as broker:
                async with connected(broker, protocol=protocol) as client:
                    yield broker, client

    @pytest.mark.parametrize("grants", [(1, 1, 1), (2, 2, 2), (0, 1, 2)])
    async def test_each_message_shows_once_whatever_the_subscriptions_were_granted(
        self, crossing: tuple[Broker, MqttClient], topic: str, grants: tuple[int, int, int]
    ) -> None:
        broker, client = crossing
        filters = (f"{topic}/#", f"{topic}/+", f"{topic}/a")
        subscriptions = [
            await client.subscribe(TopicFilter(text), qos) for text, qos in zip(filters, grants, strict=True)
        ]
        payloads = [str(number).encode() for number in range(100)]

        with RawClient(broker) as other:
            other.connect()
            for number, payload in enumerate(payloads):
                other.publish(f"{topic}/a", payload, number % 3)

        await until(lambda: subscriptions[0].received >= len(payloads))
        await client.probe()
        assert sorted(texts(client.inbox.read().messages)) == sorted(payloads)
        assert [subscription.received for subscription in subscriptions] == [len(payloads)] * 3

    async def test_a_value_that_repeats_shows_each_time(self, crossing: tuple[Broker, MqttClient], topic: str) -> None:
        broker, client = crossing
        await client.subscribe(TopicFilter(f"{topic}/#"), 1)
        await client.subscribe(TopicFilter(f"{topic}/a"), 1)
        payloads = [b"first", b"second", *[b"same"] * 10]

        with RawClient(broker) as other:
            other.connect()
            for payload in payloads:
                other.publish(f"{topic}/a", payload)

        await until(lambda: len(client.inbox) >= len(payloads))
        await client.probe()
        assert texts(client.inbox.read().messages) == payloads

    @pytest.mark.parametrize("repeating", [False, True])
    async def test_subscriptions_that_come_and_go_cost_nothing_and_double_nothing(
        self, crossing: tuple[Broker, MqttClient], topic: str, repeating: bool
    ) -> None:
        broker, client = crossing
        base = await client.subscribe(TopicFilter(f"{topic}/#"), 1)
        await self.show_how_it_copies(broker, client, topic, base)
        payloads = [b"same" if repeating else str(number).encode() for number in range(80)]
        cursor = client.inbox.read(base).cursor(2)
        changes = asyncio.create_task(self.come_and_go(client, topic))

        with RawClient(broker) as other:
            other.connect()
            for number, payload in enumerate(payloads):  # one by one, so that no acknowledgement overtakes a message
                await asyncio.to_thread(other.publish, f"{topic}/a", payload)
                await until(partial(received_at_least, base, 3 + number))
        changes.cancel()
        await asyncio.wait([changes])
        await client.probe()

        assert texts(client.inbox.read(base, after=cursor).messages) == payloads

    async def show_how_it_copies(self, broker: Broker, client: MqttClient, topic: str, base: Subscription) -> None:
        """Send two overlapping messages that differ: without identifiers, the client cannot know before it saw some."""
        async with client.listen(TopicFilter(f"{topic}/a"), lambda _message: None):
            with RawClient(broker) as other:
                other.connect()
                other.publish(f"{topic}/a", b"one")
                other.publish(f"{topic}/a", b"two")
            await until(lambda: base.received == 2)

    async def come_and_go(self, client: MqttClient, topic: str) -> None:
        for number in itertools.count():
            wanted = TopicFilter((f"{topic}/a", f"{topic}/+", "+/a")[number % 3])
            if number % 2:
                async with client.listen(wanted, lambda _message: None):
                    await client.probe()
            else:
                await client.unsubscribe(await client.subscribe(wanted, number % 3))


class TestOutage:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    @pytest.mark.parametrize("how", ["restart", "kill"])
    async def test_subscriptions_come_back_as_they_were_and_the_gap_is_told(
        self, make_mosquitto: Made, topic: str, protocol: str, how: str
    ) -> None:
        broker = make_mosquitto()
        async with connected(broker, protocol=protocol) as client:
            subscriptions = [await client.subscribe(TopicFilter(f"{topic}/{qos}"), qos) for qos in (0, 1, 2)]
            heard: list[Message] = []
            async with client.listen(TopicFilter(f"{topic}/heard"), heard.append) as watch:
                stopped_at = time.time()
                if how == "kill":
                    broker.kill()
                else:
                    broker.stop()
                await until(lambda: not client.state.connected)
                started_at = time.time()
                broker.start()
                await until(lambda: client.inbox.gaps[0].end is not None)
                for qos in (0, 1, 2):
                    tell(broker, f"{topic}/{qos}", b"after", qos=2)
                tell(broker, f"{topic}/heard", b"after")
                await until(lambda: heard and all(each.received for each in subscriptions))

            (gap,) = client.inbox.gaps
            assert gap.end is not None
            assert stopped_at - 0.01 <= gap.start <= started_at <= gap.end <= time.time()
            assert gap.cause == "the broker closed it or the network broke"
            assert not gap.session_resumed
            assert [client.inbox.read(each).messages[0].qos for each in subscriptions] == [0, 1, 2]
            assert [each.received for each in subscriptions] == [1, 1, 1]
            assert (watch.connected_throughout, watch.gaps) == (False, [gap])
            assert client.state.connections == 2

    async def test_retained_values_are_news_after_an_outage_only_where_they_changed(
        self, make_mosquitto: Made, topic: str
    ) -> None:
        broker = make_mosquitto()
        async with Wire(broker) as wire, connected(wire) as client:
            for name in ("same", "changed"):
                tell(broker, f"{topic}/{name}", b"1", retain=True)
            subscription = await client.subscribe(TopicFilter(f"{topic}/#"), 1)
            await until(lambda: subscription.received == 2)

            wire.refuse()
            wire.cut()
            await until(lambda: not client.state.connected)
            tell(broker, f"{topic}/changed", b"2", retain=True)
            tell(broker, f"{topic}/new", b"3", retain=True)
            await wire.accept()
            await until(lambda: subscription.received == 4)
            await client.probe()

            messages = client.inbox.read(subscription).messages
            assert sorted((message.topic, message.payload) for message in messages) == [
                (f"{topic}/changed", b"1"),
                (f"{topic}/changed", b"2"),
                (f"{topic}/new", b"3"),
                (f"{topic}/same", b"1"),
            ]

    @pytest.mark.usefixtures("impatient")
    async def test_an_outage_is_logged_when_it_begins_and_ends_and_not_at_every_attempt(
        self, mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "mqtt_client")
        async with Wire(mosquitto) as wire, connected(wire) as client:
            wire.refuse()
            wire.cut()
            await until(lambda: client.state.attempts > 5)
            await wire.accept()
            await until(lambda: client.state.connected)

        levels = [record.levelname for record in caplog.records]
        assert levels == ["INFO", "WARNING", "WARNING", "INFO"], caplog.text

    async def test_a_frozen_broker_is_not_taken_for_a_silent_one(
        self, make_mosquitto: Made, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_client, "PROBE_TIMEOUT_S", 0.2)
        monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.2)
        broker = make_mosquitto()
        async with connected(broker) as client:
            assert await client.still_there(0)
            subscription = await client.subscribe(TopicFilter(topic), 1)
            broker.freeze()

            assert not await client.still_there(0)
            with pytest.raises(BrokerSilentError, match=r"within 0.2 s: it may have taken it or not"):
                await publish(client, topic)
            with pytest.raises(BrokerSilentError, match=r"did not acknowledge the subscription to 'other' within 0.2"):
                await client.subscribe(TopicFilter("other"), 1)
            with pytest.raises(BrokerSilentError, match=r"did not answer within 0.2 s"):
                await client.probe()
            await publish(client, topic, qos=0)
            assert not await client.still_there(0.1)  # what went out was not heard by anyone
            with pytest.raises(BrokerSilentError, match="ended here, but the broker did not confirm"):
                await client.unsubscribe(subscription)
            broker.thaw()

            await until(lambda: client._link is not None and client._link.silent_s < 1)  # noqa: SLF001
            assert client.inbox.subscriptions == {}

    async def test_who_listens_to_a_broker_that_freezes_is_not_told_it_was_silent(
        self, make_mosquitto: Made, topic: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_client, "PROBE_TIMEOUT_S", 0.2)
        broker = make_mosquitto()
        async with connected(broker) as client:
            async with client.listen(TopicFilter(topic), lambda _message: None) as watch:
                broker.freeze()

            assert not watch.connected_throughout

    async def test_the_keep_alive_ends_a_dead_connection_and_the_gap_begins_before_the_freeze(
        self, make_mosquitto: Made, topic: str
    ) -> None:
        broker = make_mosquitto()
        async with connected(broker, keepalive_s=1) as client:
            await client.subscribe(TopicFilter(topic), 1)
            frozen_at = time.time()
            broker.freeze()

            await until(lambda: not client.state.connected, 20)

            (gap,) = client.inbox.gaps
            assert gap.cause == "the broker stopped answering (keep-alive timeout)"
            assert frozen_at - 2.5 < gap.start <= frozen_at
            broker.thaw()
            await until(lambda: gap.end is not None)

    async def test_a_stalled_broker_cannot_hold_up_the_end(self, mosquitto: Mosquitto) -> None:
        threads = set(threading.enumerate())
        async with Wire(mosquitto) as wire:
            async with connected(wire) as client:
                wire.stall()
                publishing = [asyncio.create_task(publish(client, "t", b"x" * 1_000_000, 0)) for _ in range(50)]
                await asyncio.wait(publishing, timeout=0.2)
                for task in publishing:
                    task.cancel()
                await asyncio.wait(publishing)
                closing = time.monotonic()
            assert time.monotonic() - closing < 1
            await until(lambda: set(threading.enumerate()) <= threads, what="the end of every thread")

    async def test_a_message_too_large_for_the_inbox_is_left_out_by_the_broker(
        self, mosquitto: Mosquitto, topic: str
    ) -> None:
        config = BrokerConfig(host=mosquitto.host, port=mosquitto.port, protocol="5")
        async with MqttClient(config, Inbox(1000, 1 << 20)) as client:
            await until(lambda: client.state.connected)
            subscription = await client.subscribe(TopicFilter(topic), 1)
            for payload in (b"x" * (2 << 20), b"small"):
                tell(mosquitto, topic, payload)
            await until(lambda: subscription.received)
            await client.probe()

            assert texts(client.inbox.read(subscription).messages) == [b"small"]
            assert client.state.connections == 1

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_a_session_that_is_kept_brings_what_came_meanwhile(
        self, make_mosquitto: Made, topic: str, protocol: str
    ) -> None:
        broker = make_mosquitto()
        session = {"client_id": f"keeper-{topic}", "client_id_fixed": True, "session_expiry_s": 600}
        async with Wire(broker) as wire, connected(wire, protocol=protocol, **session) as client:
            one = await client.subscribe(TopicFilter(f"{topic}/a"), 1)
            other = await client.subscribe(TopicFilter(f"{topic}/+"), 2)
            wire.refuse()
            wire.cut()
            await until(lambda: not client.state.connected)
            for number in range(50):
                tell(broker, f"{topic}/a", str(number).encode(), qos=1 + number % 2)
            await wire.accept()
            await until(lambda: client.inbox.gaps[0].end is not None)
            tell(broker, f"{topic}/a", b"live")
            await until(lambda: one.received >= 51)
            await client.probe()

            payloads = sorted([*(str(number).encode() for number in range(50)), b"live"])
            assert sorted(texts(client.inbox.read().messages)) == payloads
            assert (one.received, other.received) == (51, 51)
            assert client.inbox.gaps[0].session_resumed
            assert client.state.session_resumed

    async def test_a_session_of_an_earlier_run_is_not_taken_up(self, mosquitto: Mosquitto, topic: str) -> None:
        with RawClient(mosquitto) as earlier:
            earlier.connect("runner", clean=False, session_expiry=600)
            earlier.subscribe(topic, 1)
        tell(mosquitto, topic, b"for the earlier run")

        async with connected(mosquitto, client_id="runner", client_id_fixed=True, session_expiry_s=600) as client:
            assert not client.state.session_resumed
            await client.probe()
            assert len(client.inbox) == 0

    async def test_a_subscription_ended_during_an_outage_is_ended_in_the_session_too(
        self, mosquitto: Mosquitto, topic: str
    ) -> None:
        session = {"client_id": f"leaver-{topic}", "client_id_fixed": True, "session_expiry_s": 600}
        async with Wire(mosquitto) as wire, connected(wire, **session) as client:
            subscription = await client.subscribe(TopicFilter(topic), 1)
            wire.refuse()
            wire.cut()
            await until(lambda: not client.state.connected)
            await client.unsubscribe(subscription)
            await wire.accept()
            await until(lambda: client.state.connected)
            await client.probe()

            with RawClient(mosquitto) as other:
                other.connect()
                assert other.publish(topic) == NO_MATCHING_SUBSCRIBERS

    @pytest.mark.parametrize("qos", [1, 2])
    async def test_a_publish_without_an_answer_is_not_sent_again(
        self, make_mosquitto: Made, topic: str, qos: int
    ) -> None:
        broker = make_mosquitto()
        session = {"client_id": f"once-{topic}", "client_id_fixed": True, "session_expiry_s": 600}
        with Watcher(broker, topic) as watcher:
            async with Wire(broker) as wire, connected(wire, **session) as client:
                wire.swallow(to_broker=False)
                lost = asyncio.create_task(publish(client, topic, b"once", qos))
                await until(lambda: "Received PUBLISH from once" in broker.log)
                wire.mend()
                with pytest.raises(BrokerSilentError, match=r"may have taken the message to 't.*' or not"):
                    await lost
                await until(lambda: client.state.connections == 2)
                await publish(client, topic, b"next", qos)

            watcher.wait_for(lambda seen: seen.payload == b"next")
            assert [seen.payload for seen in watcher.seen].count(b"once") == (1 if qos == 1 else 0)

    async def test_another_client_with_our_id_is_told_and_not_fought(self, broker: Broker, topic: str) -> None:
        """Not every broker says why it closes the connection: then it is a guess, from the second time on."""
        async with connected(broker, client_id=f"twin-{topic}", client_id_fixed=True) as client:
            taken_at = time.monotonic()
            for fight in range(1, 3):
                with RawClient(broker) as twin:
                    twin.connect(f"twin-{topic}")
                    await until(lambda: not client.state.connected and client.state.next_attempt_at)
                    if fight > 1 or isinstance(broker, Embedded):
                        assert f"the client id 'twin-{topic}'" in str(client.state.last_error)
                    await until(partial(connected_times, client, fight + 1))
            assert time.monotonic() - taken_at > 0.25 + 0.5

    async def test_a_subscription_refused_when_it_is_restored_is_told_until_it_is_taken(self, topic: str) -> None:
        users = {"u": User("u")}
        with Embedded(users=users) as broker:
            async with connected(broker, user="u", password=SecretStr("u")) as client:
                refused = await client.subscribe(TopicFilter(f"{topic}/a"), 1)
                granted = await client.subscribe(TopicFilter(f"{topic}/b"), 1)
                cursors = {each.id: client.inbox.cursor(each) for each in (refused, granted)}

                users["u"] = User("u", subscribe=(f"{topic}/b",))
                broker.restart()
                await until(lambda: refused.refusal)
                broker.call(lambda inside: inside.publish(f"{topic}/b", b"heard", 1))
                await until(lambda: granted.received)
                assert refused.refusal is not None
                assert f"refused the subscription to '{topic}/a': Not authorized (0x87)" in refused.refusal
                outage, refusal = client.inbox.gaps
                assert (outage.topic_filter, outage.end is not None) == (None, True)
                assert (refusal.topic_filter, refusal.end) == (TopicFilter(f"{topic}/a"), None)
                assert refusal.cause == refused.refusal
                assert client.inbox.read(refused, after=cursors[refused.id]).gaps == [outage, refusal]
                assert client.inbox.read(granted, after=cursors[granted.id]).gaps == [outage]
                assert not client.inbox.read(refused, after=client.inbox.cursor(refused)).connected_throughout

                users["u"] = User("u")
                broker.restart()
                await until(lambda: not refused.refusal)
                broker.call(lambda inside: inside.publish(f"{topic}/a", b"again", 1))
                await until(lambda: refused.received)
                assert refusal.end is not None


def lost(client: MqttClient) -> int:
    """Count the messages that are told to be lost."""
    return sum(gap.lost or 0 for gap in client.inbox.gaps)


async def turn() -> float:
    """Wait for the event loop's next turn and return how many seconds that took."""
    started = time.monotonic()
    await asyncio.sleep(0)
    return time.monotonic() - started


def saying(data: bytes) -> Answer:
    """Answer with `data`, whatever is asked."""

    async def answer(peer: Peer, _sent: Sent) -> None:
        peer.send(data)

    return answer


def saying_to(kind: Kind, rest: bytes) -> Answer:
    """Answer with a packet that has the packet identifier of the question."""

    async def answer(peer: Peer, sent: Sent) -> None:
        peer.send(packet(kind, sent.packet_id + rest))

    return answer


def first(answer: Answer, afterwards: Answer) -> Answer:
    """Answer the first packet of a kind in one way and all that come later in another."""

    async def either(peer: Peer, sent: Sent) -> None:
        is_first = [each.kind for each in peer.sent].count(sent.kind) == 1
        await (answer if is_first else afterwards)(peer, sent)

    return either


async def retain(client: MqttClient, topic: str) -> Published:
    return await client.publish(topic, b"x", 1, retain=True, properties=PublishProperties())


def breaking(data: bytes, *, after: Kind = Kind.CONNECT) -> Script:
    """Be obedient until a packet of a kind is answered, then send `data`."""

    async def script(peer: Peer) -> None:
        async def answer_and_break(peer: Peer, sent: Sent) -> None:
            await OBEDIENT[sent.kind](peer, sent)
            peer.send(data)

        await peer.obey({after: answer_and_break})

    return script


def answering(kind: Kind, answer: Answer) -> Script:
    """Be obedient but for one kind of packet."""
    return lambda peer: peer.obey({kind: answer})


def about(sent: Sent) -> bytes:
    """Return the packet identifier of any packet that has one."""
    start = 2 + int.from_bytes(sent.body[:2]) if sent.kind == Kind.PUBLISH else 0
    return sent.body[start : start + 2]


@contextmanager
def elsewhere(broker: Hostile) -> Iterator[Hostile]:
    """Run a broker in a thread of its own: it answers also while the client's event loop is busy."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(broker):
        yield broker


class Held(socket.socket):
    """What paho wakes its thread by, if whoever does so is held up until the broker has answered and is gone."""

    def send(self, *data: Any) -> int:
        sent = super().send(*data)
        time.sleep(0.2)
        return sent

    @classmethod
    def pair(cls) -> tuple[socket.socket, socket.socket]:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        return reader, cls(fileno=writer.detach())


async def shut(peer: Peer) -> None:
    """Close the connection at once."""
    peer.close()


@asynccontextmanager
async def subscribed(*scripts: Script, **settings: Any) -> AsyncIterator[tuple[Hostile, MqttClient, Subscription]]:
    """Start a client that has a subscription to `t/#`."""
    async with Hostile(*scripts) as broker, connected(broker, protocol="5", **settings) as client:
        yield broker, client, await client.subscribe(TopicFilter("t/#"), 2)


async def hears(broker: Hostile, client: MqttClient, payload: bytes = b"still here") -> None:
    """Check that what the broker sends now comes through, as soon as the subscription stands."""
    await until(lambda: client.state.connected and broker.peers[-1].subscribed.get(b"t/#"), what="a subscription")
    peer = broker.peers[-1]
    peer.send(message(peer, "t/x", payload))
    await until(lambda: payload in texts(client.inbox.read().messages), what="the message")


def message(peer: Peer, name: str | bytes, payload: bytes = b"", *, qos: int = 0, packet_id: int = 1) -> bytes:
    """Build a message for the subscription to `t/#`."""
    properties = subscription_identifier(peer.subscribed[b"t/#"])
    return publish_packet(name, payload, qos=qos, packet_id=packet_id, properties=properties)


@pytest.mark.usefixtures("impatient")
class TestHostileBroker:
    """Each ends in a clear state, and the client hears again afterwards."""

    @pytest.mark.parametrize(
        ("script", "says"),
        [
            (lambda peer: peer.forever(), "did not answer CONNECT within 1 s: is it a healthy MQTT broker?"),
            (shut, "closed the connection without answering CONNECT"),
            (answering(Kind.CONNECT, saying(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 200)), "be no MQTT broker"),
            (answering(Kind.CONNECT, saying(bytes(range(256)) * 4)), "did not answer CONNECT in MQTT 5"),
            (answering(Kind.CONNECT, saying(b"\x20\xff\xff\xff\xff\x7f")), "did not answer CONNECT in MQTT 5"),
            (answering(Kind.CONNECT, saying(b"\x20\x00")), "did not answer CONNECT in MQTT 5"),
            (answering(Kind.CONNECT, saying(connack(0x03))), "did not answer CONNECT in MQTT 5"),
            (answering(Kind.CONNECT, saying(connack(0, b"\x99\x00"))), "did not answer CONNECT in MQTT 5"),
            (answering(Kind.CONNECT, saying(connack(0x01))), "it does not speak MQTT 5: set MQTT_PROTOCOL"),
            (answering(Kind.CONNECT, saying(connack(0x84))), "it does not speak MQTT 5: set MQTT_PROTOCOL"),
            (answering(Kind.CONNECT, saying(connack(0x85))), "(0x85); it does not accept the client id 'coreflux-mcp-"),
            (answering(Kind.CONNECT, saying(connack(0x88))), "Server unavailable (0x88); it is not available"),
            (answering(Kind.CONNECT, saying(connack(0x89, b"\x1f\x00\x03zzz"))), "it says 'zzz'; it is busy"),
            (answering(Kind.CONNECT, saying(connack(0x97))), "Quota exceeded (0x97); see the broker's log"),
            (answering(Kind.CONNECT, saying(connack(0x9C, b"\x1c\0\3b:1"))), "it names 'b:1'; set MQTT_BROKER"),
            (answering(Kind.CONNECT, saying(connack(0x9D))), "Server moved (0x9D); set MQTT_BROKER"),
            (
                answering(Kind.CONNECT, saying(connack(session_present=True))),
                "resumes a session that was not asked for",
            ),
            (answering(Kind.CONNECT, saying(connack(0x9F))), "connections come too fast"),
        ],
    )
    async def test_what_is_wrong_with_connack_is_told(self, script: Script, says: str) -> None:
        async with Hostile(script, obedient) as broker, started(broker, protocol="5", connect_timeout_s=1) as client:
            told = set()
            while not client.state.connected:
                told.add(str(client.state.last_error))
                await turn()

            assert any(says in text for text in told), told
            await client.subscribe(TopicFilter("t/#"), 1)
            await hears(broker, client)

    async def test_what_was_wrong_in_mqtt_5_is_told_also_when_3_1_1_fails_too(self) -> None:
        broken = answering(Kind.CONNECT, saying(connack(0, b"\x99\x00")))
        refusing = answering(Kind.CONNECT, saying(bytes([0x20, 2, 0, 5])))
        async with Hostile(broken, refusing) as broker, started(broker, protocol="auto") as client:
            text = await why_not(client)

        assert "the login is not allowed" in text
        assert "did not answer CONNECT in MQTT 5" in text

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_a_session_that_was_not_asked_for_is_not_resumed_after_an_outage(self, protocol: str) -> None:
        properties = b"\0" if protocol == "5" else b""
        accepting = answering(Kind.CONNECT, saying(packet(Kind.CONNACK, b"\0\0" + properties)))
        resuming = answering(Kind.CONNECT, saying(packet(Kind.CONNACK, b"\1\0" + properties)))
        async with Hostile(accepting, resuming, accepting) as broker, connected(broker, protocol=protocol) as client:
            broker.peers[0].close()
            await until(lambda: client.state.connections == 2)

            assert len(broker.peers) == 3
            assert not client.state.session_resumed

    @pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 255])
    async def test_each_refusal_of_3_1_1_is_told(self, code: int) -> None:
        script = answering(Kind.CONNECT, saying(bytes([0x20, 2, 0, code])))
        async with Hostile(script) as broker, started(broker, protocol="3.1.1") as client:
            text = await why_not(client)

        says = {
            1: "did not answer CONNECT in MQTT 3.1.1: it may speak another version (MQTT_PROTOCOL)",
            2: "it does not accept the client id",
            3: "it is not available",
            4: "user name or password is wrong",
            5: "the login is not allowed",
        }
        assert says.get(code, "see the broker's log") in text

    @pytest.mark.parametrize(
        "data",
        [
            packet(Kind.PUBLISH, b""),
            packet(Kind.PUBLISH, b"\xff\xfftoo short"),
            packet(Kind.PUBLISH, b"\0\0\0"),  # no topic, and no alias was granted
            publish_packet("t/x", qos=3),
            publish_packet("t/x", qos=1, packet_id=0),
            publish_packet("t/x", properties=b"\x99\x00"),
            publish_packet("t/x", properties=b"\x0b\xff\xff\xff\xff\x7f"),
            publish_packet("t/x", properties=b"\x08\xff\xff"),
            publish_packet("t/x", properties=b"\x23\x00\x01"),  # a topic alias
            b"\x30\xff\xff\xff\xff\xff",
            b"\x00\x00",
            b"\xf0\x00",  # AUTH
            packet(Kind.CONNECT, b""),
            packet(Kind.SUBSCRIBE, b"\0\1\0"),
            packet(Kind.SUBACK, b""),
            packet(Kind.SUBACK, b"\0\1\0\x7f"),
            packet(Kind.UNSUBACK, b"\0"),
            packet(Kind.PUBACK, b"\0"),
            packet(Kind.PUBREC, b"\0\1\x80\x05"),
            packet(Kind.PUBREL, b"\0"),
            packet(Kind.PINGRESP, b"x"),
            packet(Kind.DISCONNECT, b"\xff"),
            packet(Kind.DISCONNECT, b""),
            connack(),
        ],
    )
    async def test_a_broken_packet_ends_the_connection_and_the_next_one_hears(
        self, data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with subscribed(breaking(data, after=Kind.SUBSCRIBE), obedient) as (broker, client, _subscription):
            await until(lambda: client.state.connections == 2)

            (gap,) = client.inbox.gaps
            assert gap.cause
            assert "Traceback" not in caplog.text
            await hears(broker, client)

    @pytest.mark.parametrize(
        "data",
        [
            packet(Kind.PUBACK, b"\x12\x34"),
            packet(Kind.PUBACK, b"\x12\x34\x87"),
            packet(Kind.PUBREC, b"\x12\x34"),
            packet(Kind.PUBREC, b"\x12\x34\x97\x00"),
            packet(Kind.PUBCOMP, b"\x12\x34"),
            packet(Kind.PUBREL, b"\x12\x34", flags=2),
            packet(Kind.SUBACK, b"\x12\x34\0\0"),
            packet(Kind.UNSUBACK, b"\x12\x34\0\0"),
            packet(Kind.PINGRESP, b""),
            publish_packet("u/x", b"of nobody", properties=subscription_identifier(99)),
            publish_packet("u/x", b"not asked for"),
        ],
    )
    async def test_a_packet_that_nobody_asked_for_is_ignored(self, data: bytes) -> None:
        async with subscribed(breaking(data, after=Kind.SUBSCRIBE)) as (broker, client, _subscription):
            await hears(broker, client)

            assert client.state.connections == 1
            assert texts(client.inbox.read().messages) == [b"still here"]

    async def test_a_topic_that_is_not_utf_8_is_shown_as_well_as_it_can_be(self) -> None:
        async with subscribed(obedient) as (broker, client, _subscription):
            peer = broker.peers[0]
            for name in (b"t/\xff\xfe", b"t/\xed\xa0\x80", b"t/a\0b"):
                peer.send(message(peer, name, b"odd"))
            await hears(broker, client)

            names = [each.topic for each in client.inbox.read().messages]
            assert names == ["t/\ufffd\ufffd", "t/\ufffd\ufffd\ufffd", "t/a\0b", "t/x"]

    async def test_a_message_with_an_identifier_that_is_none_of_ours_is_for_those_its_topic_is_for(self) -> None:
        async with subscribed(obedient) as (broker, client, subscription):
            peer = broker.peers[0]
            peer.send(publish_packet("t/x", b"odd", properties=subscription_identifier(99)))
            await hears(broker, client)

            assert texts(client.inbox.read(subscription).messages) == [b"odd", b"still here"]

    async def test_a_packet_that_stops_half_way_ends_with_the_keep_alive(self) -> None:
        half = breaking(publish_packet("t/x", b"x" * 1000)[:500], after=Kind.SUBSCRIBE)
        async with subscribed(half, obedient, keepalive_s=1) as (broker, client, _subscription):
            await until(lambda: client.state.connections == 2)

            await hears(broker, client)

    @pytest.mark.parametrize(
        ("suback", "says"),
        [
            (b"", "did not acknowledge the subscription to 't/#' within 0.2 s"),
            (packet(Kind.SUBACK, b"\x12\x34\0\0"), "did not acknowledge the subscription to 't/#' within 0.2 s"),
            (packet(Kind.SUBACK, b"\0\1\0"), "refused the subscription to 't/#': Malformed packet (0x81)"),
            (packet(Kind.SUBACK, b"\0\1\0\x97"), "refused the subscription to 't/#': Quota exceeded (0x97)"),
            (packet(Kind.SUBACK, b"\0\1\x04\x1f\0\1z\x8f"), "Topic filter invalid (0x8F), it says 'z'"),
            (packet(Kind.SUBACK, b"\0\1\0\x7f"), "The connection was lost"),
        ],
    )
    async def test_a_subscription_that_is_not_granted_leaves_nothing_behind(
        self, suback: bytes, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.2)
        script = answering(Kind.SUBSCRIBE, saying(suback))
        async with Hostile(script, obedient) as broker, connected(broker, protocol="5") as client:
            with pytest.raises(BrokerError, match=re.escape(says)):
                await client.subscribe(TopicFilter("t/#"), 1)

            assert client.inbox.subscriptions == {}
            if client.state.connections == 1 and client.state.connected:
                await until(lambda: broker.peers[0].sent[-1].kind == Kind.UNSUBSCRIBE)

    async def test_a_subscription_that_the_broker_will_not_end_is_told(self) -> None:
        script = answering(Kind.UNSUBSCRIBE, saying_to(Kind.UNSUBACK, b"\0\x87"))
        async with subscribed(script) as (_broker, client, subscription):
            with pytest.raises(BrokerRefusedError, match=r"has ended here, but the broker .*: Not authorized \(0x87\)"):
                await client.unsubscribe(subscription)

            assert client.inbox.subscriptions == {}

    async def test_giving_up_a_subscription_before_it_is_granted_leaves_nothing_behind(self) -> None:
        async with Hostile(answering(Kind.SUBSCRIBE, never)) as broker, connected(broker, protocol="5") as client:
            subscribing = asyncio.create_task(client.subscribe(TopicFilter("t/#"), 1))
            await until(lambda: broker.peers[0].sent[-1].kind == Kind.SUBSCRIBE)

            subscribing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await subscribing

            await until(lambda: broker.peers[0].sent[-1].kind == Kind.UNSUBSCRIBE)
            assert client.inbox.subscriptions == {}

    async def test_a_filter_that_is_accepted_again_is_told_to_be_heard(self) -> None:
        refusing = answering(Kind.SUBSCRIBE, first(saying_to(Kind.SUBACK, b"\0\x87"), OBEDIENT[Kind.SUBSCRIBE]))
        async with subscribed(breaking(disconnect(0x8B), after=Kind.SUBSCRIBE), refusing) as (broker, client, earlier):
            await until(lambda: earlier.refusal)
            later = await client.subscribe(TopicFilter("t/#"), 1)

            await hears(broker, client)
            assert (earlier.received, later.received) == (1, 1)
            assert earlier.refusal is None
            assert [gap.end is None for gap in client.inbox.gaps] == [False, False]

    async def test_the_quality_of_service_is_told_as_the_broker_granted_it_last(self) -> None:
        granting_less = answering(Kind.SUBSCRIBE, saying_to(Kind.SUBACK, b"\0\0"))
        async with subscribed(obedient, granting_less) as (broker, client, subscription):
            assert subscription.granted_qos == 2

            broker.peers[0].close()
            await until(lambda: client.state.connections == 2 and client.inbox.gaps[0].end)
            assert subscription.granted_qos == 0

    async def test_a_subscription_that_is_raised_by_another_one_is_told_to_be_raised(self) -> None:
        async with Hostile(obedient) as broker, connected(broker, protocol="5") as client:
            earlier = await client.subscribe(TopicFilter("t/#"), 0)
            await client.subscribe(TopicFilter("t/#"), 2)

            assert earlier.granted_qos == 2

    async def test_a_subscription_that_is_not_confirmed_after_an_outage_is_not_told_to_be_heard(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.1)
        forgetful = answering(Kind.SUBSCRIBE, never)
        async with subscribed(breaking(disconnect(0x8B), after=Kind.SUBSCRIBE), forgetful) as (_broker, client, mine):
            await until(lambda: mine.refusal)

            assert "did not acknowledge the subscription to 't/#' within 0.1 s" in str(mine.refusal)
            assert client.state.connections == 2
            assert not client.inbox.read(mine, after=client.inbox.cursor(mine)).connected_throughout

    @pytest.mark.parametrize(
        ("kind", "attempt"),
        [
            (Kind.PUBLISH, lambda client: publish(client, "a")),
            (Kind.SUBSCRIBE, lambda client: client.subscribe(TopicFilter("a"), 1)),
            (Kind.UNSUBSCRIBE, lambda client: client.probe()),
        ],
    )
    async def test_what_was_sent_is_not_told_to_be_unsent_however_soon_the_broker_hangs_up(
        self, kind: Kind, attempt: Callable[[MqttClient], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang_up(peer: Peer, _sent: Sent) -> None:
            peer.send(disconnect(0x95))
            peer.close()

        monkeypatch.setattr("paho.mqtt.client._socketpair_compat", Held.pair)
        with elsewhere(Hostile(answering(kind, hang_up), obedient)) as broker:
            async with connected(broker, protocol="5") as client:
                with pytest.raises(BrokerSilentError, match=r"the broker closed it: Packet too large \(0x95\)"):
                    await attempt(client)

                assert broker.peers[0].sent[1].kind == kind

    @pytest.mark.parametrize(
        ("attempt", "asked", "answer", "rest"),
        [
            (lambda client: publish(client, "a", qos=1), Kind.PUBLISH, Kind.PUBREC, b""),
            (lambda client: publish(client, "a", qos=1), Kind.PUBLISH, Kind.PUBCOMP, b""),
            (lambda client: publish(client, "a", qos=1), Kind.PUBLISH, Kind.SUBACK, b"\0\0"),
            (lambda client: publish(client, "a", qos=1), Kind.PUBLISH, Kind.UNSUBACK, b"\0\0"),
            (lambda client: publish(client, "a", qos=2), Kind.PUBLISH, Kind.PUBACK, b""),
            (lambda client: publish(client, "a", qos=2), Kind.PUBLISH, Kind.PUBACK, b"\x87"),
            (lambda client: publish(client, "a", qos=2), Kind.PUBLISH, Kind.PUBCOMP, b""),
            (lambda client: publish(client, "a", qos=2), Kind.PUBREL, Kind.PUBACK, b""),
            (lambda client: publish(client, "a", qos=2), Kind.PUBLISH, Kind.SUBACK, b"\0\0"),
            (lambda client: client.subscribe(TopicFilter("a"), 1), Kind.SUBSCRIBE, Kind.UNSUBACK, b"\0\0"),
            (lambda client: client.probe(), Kind.UNSUBSCRIBE, Kind.SUBACK, b"\0\0"),
        ],
    )
    async def test_the_acknowledgement_of_something_else_is_none_and_ends_the_connection(
        self, attempt: Callable[[MqttClient], Awaitable[object]], asked: Kind, answer: Kind, rest: bytes
    ) -> None:
        async def mistake(peer: Peer, sent: Sent) -> None:
            peer.send(packet(answer, about(sent) + rest))

        async with Hostile(answering(asked, mistake), obedient) as broker, connected(broker, protocol="5") as client:
            with pytest.raises(BrokerSilentError, match=r"the broker acknowledged what it was not sent"):
                await attempt(client)

            await until(lambda: client.state.connections == 2)
            await client.subscribe(TopicFilter("t/#"), 1)
            await hears(broker, client)

    async def test_an_acknowledgement_that_comes_twice_is_taken_once(self) -> None:
        async def twice(peer: Peer, sent: Sent) -> None:
            await OBEDIENT[sent.kind](peer, sent)
            await OBEDIENT[sent.kind](peer, sent)

        for kind in (Kind.PUBLISH, Kind.PUBREL, Kind.SUBSCRIBE):
            async with subscribed(answering(kind, twice)) as (broker, client, _subscription):
                for qos in (1, 2, 1, 2):
                    assert (await publish(client, "a", b"x", qos)).acknowledged
                await hears(broker, client)
                assert client.state.connections == 1

    @pytest.mark.parametrize("qos", [1, 2])
    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            (b"\x87", "Not authorized (0x87)."),
            (b"\x97\x00", "Quota exceeded (0x97)."),
            (b"\x90\x0b\x1f\x00\x08too deep", "Topic name invalid (0x90), it says 'too deep'."),
            (b"\x99\x05\x26\x00\x00\x00\x00", "Payload format invalid (0x99)."),
            (b"\x95", "Packet too large (0x95)."),
            (b"\xfe", "reason code (0xFE)."),
        ],
    )
    async def test_each_refusal_of_a_message_is_told(self, qos: int, answer: bytes, says: str) -> None:
        async def refuse(peer: Peer, sent: Sent) -> None:
            start = 2 + int.from_bytes(sent.body[:2])
            peer.send(packet(Kind.PUBACK if qos == 1 else Kind.PUBREC, sent.body[start : start + 2] + answer))

        async with subscribed(answering(Kind.PUBLISH, refuse)) as (broker, client, _subscription):
            with pytest.raises(BrokerRefusedError, match=re.escape(f"refused the message to 'a': {says}")):
                await publish(client, "a", b"x", qos)

            await hears(broker, client)
            assert client.state.connections == 1
            assert Kind.PUBREL not in [sent.kind for sent in broker.peers[0].sent]

    @pytest.mark.parametrize(("qos", "silent"), [(1, Kind.PUBLISH), (2, Kind.PUBLISH), (2, Kind.PUBREL)])
    async def test_a_message_that_is_never_acknowledged_is_not_known_to_have_arrived(
        self, qos: int, silent: Kind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.1)
        async with subscribed(answering(silent, never)) as (broker, client, _subscription):
            with pytest.raises(BrokerSilentError, match=r"within 0.1 s: it may have taken it or not"):
                await publish(client, "a", b"x", qos)

            await hears(broker, client)

    async def test_no_more_messages_are_under_way_than_the_broker_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def two_at_a_time(peer: Peer, _sent: Sent) -> None:
            peer.send(connack(0, b"\x21\x00\x02"))

        async def takes_the_first_two(peer: Peer) -> None:
            await peer.obey({Kind.CONNECT: two_at_a_time, Kind.PUBLISH: never})

        monkeypatch.setattr(mqtt_link, "ANSWER_TIMEOUT_S", 0.2)
        async with Hostile(takes_the_first_two) as broker, connected(broker, protocol="5") as client:
            answers = await asyncio.gather(*(publish(client, "a") for _ in range(5)), return_exceptions=True)
            with pytest.raises(BrokerSilentError, match=r"waited 0.2 s and was not sent"):
                await publish(client, "a")

            assert [str(answer).endswith("and was not sent.") for answer in answers] == [False] * 2 + [True] * 3
            assert [sent.kind for sent in broker.peers[0].sent].count(Kind.PUBLISH) == 2

            await publish(client, "a", qos=0)  # what needs no answer does not count (MQTT 5.0, 4.9)
            await until(lambda: [sent.kind for sent in broker.peers[0].sent].count(Kind.PUBLISH) == 3)

    @pytest.mark.parametrize(
        ("properties", "attempt", "says"),
        [
            (b"\x24\x00", lambda client: publish(client, "a", qos=1), "takes at most QoS 0"),
            (b"\x24\x01", lambda client: publish(client, "a", qos=2), "takes at most QoS 1"),
            (b"\x25\x00", lambda client: retain(client, "a"), "keeps no retained messages"),
            (b"\x27\x00\x00\x00\x20", lambda client: publish(client, "a" * 40), "packets of at most 32 bytes"),
            (
                b"\x27\0\0\0\x20",
                lambda client: client.subscribe(TopicFilter("a" * 40), 0),
                "packets of at most 32 bytes",
            ),
            (b"\x28\x00", lambda client: client.subscribe(TopicFilter("a/+"), 0), "no wildcard subscriptions"),
            (b"\x2a\x00", lambda client: client.subscribe(TopicFilter("$share/g/a"), 0), "no shared subscriptions"),
        ],
    )
    async def test_what_the_broker_said_it_cannot_do_is_not_tried(
        self, properties: bytes, attempt: Callable[[MqttClient], Awaitable[object]], says: str
    ) -> None:
        script = answering(Kind.CONNECT, saying(connack(0, properties)))
        async with Hostile(script) as broker, connected(broker, protocol="5") as client:
            with pytest.raises(BrokerRefusedError, match=re.escape(says)):
                await attempt(client)

            assert client.inbox.subscriptions == {}
            assert [sent.kind for sent in broker.peers[0].sent] == [Kind.CONNECT]

    @pytest.mark.parametrize(("properties", "qos"), [(b"", 2), (b"\x24\x00", 0), (b"\x24\x01", 1)])
    async def test_the_highest_qos_that_the_broker_takes_is_known(self, properties: bytes, qos: int) -> None:
        script = answering(Kind.CONNECT, saying(connack(0, properties)))
        async with Hostile(script) as broker, connected(broker, protocol="5") as client:
            assert client.state.maximum_qos == qos

    async def test_a_broker_without_subscription_identifiers_is_not_sent_any(self) -> None:
        script = answering(Kind.CONNECT, saying(connack(0, b"\x29\x00")))
        async with Hostile(script) as broker, connected(broker, protocol="5") as client:
            subscribing = asyncio.create_task(client.subscribe(TopicFilter("a"), 1))
            await until(lambda: len(broker.peers[0].sent) == 2)
            subscribing.cancel()
            await asyncio.wait([subscribing])

            assert broker.peers[0].sent[1].body == b"\0\1\0\0\1a\1"

    async def test_what_the_broker_decides_is_used(self) -> None:
        script = answering(Kind.CONNECT, saying(connack(0, b"\x12\x00\x06chosen\x13\x00\x01")))
        async with Hostile(script) as broker, connected(broker, protocol="5") as client:
            assert client.state.client_id == "chosen"
            await until(lambda: broker.peers[0].sent[-1].kind == Kind.PINGREQ)  # after one second, not thirty

    @pytest.mark.parametrize("server_keep_alive", [b"\x13\0\0", b"\x13\xff\xff"])
    async def test_a_broker_that_wants_few_pings_or_none_is_still_noticed_to_be_gone(
        self, server_keep_alive: bytes
    ) -> None:
        async def half_open(peer: Peer) -> None:
            await peer.obey({Kind.CONNECT: saying(connack(0, server_keep_alive)), Kind.PINGREQ: never})

        async with Hostile(half_open, obedient) as broker, connected(broker, protocol="5", keepalive_s=1) as client:
            heard_at = time.time()
            await until(lambda: client.state.connections == 2)

            (gap,) = client.inbox.gaps
            assert gap.cause == "the broker stopped answering (keep-alive timeout)"
            assert abs(gap.start - heard_at) < 0.5

    @pytest.mark.parametrize(
        ("inbox_bytes", "announced"), [(1024, 1 << 20), (64 << 20, 64 << 20), (1 << 40, 268_435_455)]
    )
    async def test_the_broker_is_asked_not_to_send_what_the_inbox_could_not_hold(
        self, inbox_bytes: int, announced: int
    ) -> None:
        async with Hostile(obedient) as broker:
            config = BrokerConfig(host=broker.host, port=broker.port, protocol="5")
            async with MqttClient(config, Inbox(1000, inbox_bytes)) as client:
                await until(lambda: client.state.connected)

                assert b"\x27" + announced.to_bytes(4) in broker.peers[0].sent[0].body

    @pytest.mark.parametrize(
        ("code", "says"),
        [
            (0x00, "Normal disconnection (0x00)"),
            (0x81, "Malformed packet (0x81)"),
            (0x87, "Not authorized (0x87)"),
            (0x8B, "Server shutting down (0x8B)"),
            (0x8D, "Keep alive timeout (0x8D)"),
            (0x8E, "Session taken over (0x8E); another client uses the client id 'coreflux-mcp-"),
            (0x93, "Receive maximum exceeded (0x93)"),
            (0x95, "Packet too large (0x95)"),
            (0x98, "Administrative action (0x98)"),
            (0x9C, "Use another server (0x9C)"),
        ],
    )
    async def test_why_the_broker_disconnects_is_told(self, code: int, says: str) -> None:
        script = breaking(disconnect(code), after=Kind.SUBSCRIBE)
        async with subscribed(script, obedient) as (broker, client, subscription):
            await until(lambda: client.inbox.gaps)

            (gap,) = client.inbox.gaps
            assert f"the broker closed it: {says}" in gap.cause
            assert abs(gap.start - time.time()) < 60
            assert client.inbox.read(subscription).gaps == [gap]
            await hears(broker, client)

    async def test_which_server_the_broker_names_instead_is_told(self) -> None:
        farewell = packet(Kind.DISCONNECT, b"\x9d\x09\x1c\0\6other:")
        async with subscribed(breaking(farewell, after=Kind.SUBSCRIBE), obedient) as (_broker, client, _subscription):
            await until(lambda: client.inbox.gaps)

            assert client.inbox.gaps[0].cause == "the broker closed it: Server moved (0x9D), it names 'other:'"

    async def test_a_burst_is_kept_whole_while_calls_go_on(self) -> None:
        async with subscribed(obedient) as (broker, client, subscription):
            peer = broker.peers[0]
            burst = b"".join(message(peer, f"t/{number % 100}", str(number).encode()) for number in range(30_000))
            peer.send(burst)

            longest_s = 0.0
            while subscription.received < 30_000:
                longest_s = max(longest_s, await turn())
                await client.probe()
                assert (await publish(client, "a")).acknowledged

            assert texts(client.inbox.read(subscription).messages) == [str(n).encode() for n in range(30_000)]
            assert client.inbox.dropped == 0
            assert longest_s < 1

    @pytest.mark.parametrize(("count", "size"), [(40, 200_000), (20_000, 0)])
    async def test_what_comes_faster_than_it_can_be_taken_is_counted(self, count: int, size: int) -> None:
        """The bound of the inbox is also the bound of what may wait in front of it."""
        async with Hostile(obedient) as broker:
            config = BrokerConfig(host=broker.host, port=broker.port, protocol="5")
            async with MqttClient(config, Inbox(100_000, 1 << 20)) as client:
                await until(lambda: client.state.connected)
                subscription = await client.subscribe(TopicFilter("t/#"), 1)
                peer = broker.peers[0]
                peer.send(message(peer, "t/x", b"x" * size) * count)
                await peer.drain()
                time.sleep(0.2)  # noqa: ASYNC251 - the event loop is to be stuck while the thread reads on
                await until(lambda: subscription.received + lost(client) == count)
                await hears(broker, client)

                assert lost(client) > 0
                reading = client.inbox.read(subscription)
                assert len(reading.messages) + reading.dropped + lost(client) == count + 1
                assert reading.connected_throughout

    async def test_a_message_of_five_megabytes_comes_through_and_the_next_one_too(self) -> None:
        async with subscribed(obedient) as (broker, client, subscription):
            peer = broker.peers[0]
            payload = b"\0\xff" * 2_500_000
            for qos in (0, 1, 2):
                peer.send(message(peer, "t/x", payload, qos=qos, packet_id=qos + 1))
            await hears(broker, client)
            await until(lambda: subscription.received == 4)

            assert texts(client.inbox.read(subscription).messages)[0] == payload
            assert client.state.connections == 1

    async def test_exactly_once_messages_that_are_never_released_are_shown(self) -> None:
        async def flood(peer: Peer, sent: Sent) -> None:
            await OBEDIENT[Kind.SUBSCRIBE](peer, sent)
            for number in range(1, 3000):
                peer.send(message(peer, "t/x", str(number).encode(), qos=2, packet_id=number))

        async def withholding(peer: Peer) -> None:
            await peer.obey({Kind.SUBSCRIBE: flood, Kind.PUBREC: never})

        async with subscribed(withholding) as (broker, client, subscription):
            await until(lambda: subscription.received == 2999)

            assert texts(client.inbox.read(subscription).messages) == [
                str(number).encode() for number in range(1, 3000)
            ]
            await hears(broker, client)

    async def test_an_exactly_once_message_is_shown_once_however_often_it_is_sent(self) -> None:
        async def twice(peer: Peer, sent: Sent) -> None:
            await OBEDIENT[Kind.SUBSCRIBE](peer, sent)
            peer.send(message(peer, "t/x", b"once", qos=2, packet_id=7) * 2)

        async with subscribed(answering(Kind.SUBSCRIBE, twice)) as (broker, client, _subscription):
            await hears(broker, client)

            assert texts(client.inbox.read().messages) == [b"once", b"still here"]

    async def test_an_exactly_once_message_survives_an_outage_before_its_release(self) -> None:
        """The broker that has our PUBREC does not send the message again (MQTT 5.0, 4.3.3)."""

        async def cut_after_pubrec(peer: Peer) -> None:
            async def send(peer: Peer, sent: Sent) -> None:
                await OBEDIENT[Kind.SUBSCRIBE](peer, sent)
                peer.send(message(peer, "t/x", b"once", qos=2, packet_id=7))

            async def cut(peer: Peer, _sent: Sent) -> None:
                peer.close()

            await peer.obey({Kind.SUBSCRIBE: send, Kind.PUBREC: cut})

        async def resume(peer: Peer) -> None:
            async def accept(peer: Peer, _sent: Sent) -> None:
                peer.send(connack(session_present=True) + packet(Kind.PUBREL, b"\0\7", flags=2))

            await peer.obey({Kind.CONNECT: accept})

        keeping = {"client_id": "keeper", "client_id_fixed": True, "session_expiry_s": 600}
        async with subscribed(cut_after_pubrec, resume, **keeping) as (broker, client, subscription):
            await until(lambda: client.state.connections == 2)
            await hears(broker, client)

            assert texts(client.inbox.read(subscription).messages) == [b"once", b"still here"]
