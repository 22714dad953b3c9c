"""The simulated plant, on our broker and on mosquitto: what it sends, does and answers, and that it leaves nothing."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal
from uuid import uuid4

import pytest

from simulator.plant import Plant, PlantOfflineError
from simulator.users import User
from tests.brokers import Embedded, Mosquitto, Seen, Watcher, publish

Broker = Embedded | Mosquitto
RATE_HZ = 50  # so that a minute of the plant takes little more than two seconds


@pytest.fixture
def prefix() -> str:
    """Give a prefix that no other test uses, of more than one level."""
    return f"site/{uuid4().hex}"


@pytest.fixture
def plant(broker: Broker, prefix: str) -> Iterator[Plant]:
    """Run a quick plant."""
    with Plant(broker.host, broker.port, prefix, rate_hz=RATE_HZ) as running:
        yield running


def value(seen: Seen) -> float:
    """Read a reading."""
    number: float = json.loads(seen.payload)["value"]
    return number


def test_sensors_are_read_again_and_again(broker: Broker, plant: Plant, prefix: str) -> None:
    """As JSON with a unit, and as a plain number."""
    with Watcher(broker, f"{prefix}/#") as watcher:
        watcher.wait_count(50)

        readings = {seen.topic.removeprefix(f"{prefix}/"): seen for seen in watcher.seen if not seen.retain}

    assert readings.keys() == {"line1/temperature", "line1/pressure", "tank/level"}
    temperature = json.loads(readings["line1/temperature"].payload)
    assert temperature.keys() == {"value", "unit"}
    assert temperature["unit"] == "°C"
    assert 20 < temperature["value"] < 22
    assert 0.9 < float(readings["line1/pressure"].payload) < 1.1
    assert json.loads(readings["tank/level"].payload).keys() == {"value", "unit"}


def test_states_are_retained(broker: Broker, plant: Plant, prefix: str) -> None:
    """Who comes later is told."""
    with Watcher(broker, f"{prefix}/+/state") as watcher:
        states = {seen.topic: (seen.payload, seen.retain) for seen in watcher.wait_count(2)}

    assert json.loads(states[f"{prefix}/line1/state"][0])["state"] == "running"
    assert states[f"{prefix}/heater/state"] == (b"off", True)
    assert states[f"{prefix}/line1/state"][1] is True


def test_the_temperature_follows_the_heater(broker: Broker, plant: Plant, prefix: str) -> None:
    """Up when it is on, and down again."""
    with Watcher(broker, f"{prefix}/heater/state") as heater:
        publish(broker, f"{prefix}/heater/set", "on")
        with Watcher(broker, f"{prefix}/line1/temperature") as thermometer:
            thermometer.wait_for(lambda seen: value(seen) > 60)
        publish(broker, f"{prefix}/heater/set", "nonsense")
        publish(broker, f"{prefix}/heater/set", "off")
        with Watcher(broker, f"{prefix}/line1/temperature") as thermometer:
            thermometer.wait_for(lambda seen: value(seen) < 40)

        assert [seen.payload for seen in heater.seen] == [b"off", b"on", b"off"]


@pytest.mark.parametrize(
    ("request_payload", "answer"),
    [
        (b'{"read": "flow"}', {"ok": True, "echo": {"read": "flow"}}),
        (b"status?", {"ok": True, "echo": "status?"}),
        (b"", {"ok": True, "echo": ""}),
        (b"[" * 100_000, {"ok": True, "echo": "[" * 100_000}),
        (b'"\\ud800"', {"ok": True, "echo": "\ud800"}),
        (b"\xff", {"ok": False, "echo": None, "error": "the request is no text"}),
    ],
    ids=["JSON", "text", "nothing", "endless JSON", "half a character", "bytes"],
)
def test_the_device_answers_where_it_is_asked_to(
    broker: Broker, plant: Plant, prefix: str, request_payload: bytes, answer: dict[str, Any]
) -> None:
    """With the correlation data of the request."""
    with Watcher(broker, f"answers/{prefix}") as watcher:
        publish(
            broker,
            f"{prefix}/device/request",
            request_payload,
            ResponseTopic=f"answers/{prefix}",
            CorrelationData=b"\x00\x01",
        )
        seen = watcher.wait_for(lambda _seen: True)

    assert json.loads(seen.payload) == answer
    assert seen.properties == {"CorrelationData": "0001"}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_device_answers_a_request_that_names_no_topic(
    broker: Broker, prefix: str, protocol: Literal["5", "3.1.1"]
) -> None:
    """On MQTT 3.1.1 none does."""
    with (
        Plant(broker.host, broker.port, prefix, protocol=protocol),
        Watcher(broker, f"{prefix}/device/response") as watcher,
    ):
        publish(broker, f"{prefix}/device/request", "hello")
        seen = watcher.wait_for(lambda _seen: True)

    assert json.loads(seen.payload) == {"ok": True, "echo": "hello"}


def test_the_device_survives_a_response_topic_that_is_none(mosquitto: Mosquitto, prefix: str) -> None:
    """Wildcards, which mosquitto lets pass, and the topic of the request, where an answer would be a request."""
    with (
        Plant(mosquitto.host, mosquitto.port, prefix),
        Watcher(mosquitto, f"{prefix}/device/#") as watcher,
    ):
        for topic in (f"{prefix}/#", f"{prefix}/device/request"):
            publish(mosquitto, f"{prefix}/device/request", "hello", ResponseTopic=topic)
        publish(mosquitto, f"{prefix}/device/request", "last")
        watcher.wait_for(lambda seen: b'"last"' in seen.payload)

        assert [seen.payload for seen in watcher.seen][:3] == [b"hello", b"hello", b"last"]
        assert len(watcher.seen) == 4


def test_it_leaves_nothing_behind(broker: Broker, prefix: str) -> None:
    """No retained message, and no thread."""
    threads = set(threading.enumerate())
    with Plant(broker.host, broker.port, prefix, rate_hz=RATE_HZ):
        publish(broker, f"{prefix}/heater/set", "on")
        with Watcher(broker, f"{prefix}/heater/state") as watcher:
            watcher.wait_for(lambda seen: seen.payload == b"on")

    assert set(threading.enumerate()) <= threads
    with Watcher(broker, f"{prefix}/#") as watcher:
        publish(broker, f"{prefix}/mark", "x")
        watcher.wait_for(lambda seen: seen.topic == f"{prefix}/mark")
        assert [seen.topic for seen in watcher.seen] == [f"{prefix}/mark"]


def test_it_goes_on_when_the_broker_comes_back(prefix: str) -> None:
    """Its states are back too, though the broker has forgotten them."""
    with Embedded() as broker, Plant(broker.host, broker.port, prefix, rate_hz=RATE_HZ):
        broker.restart()

        with Watcher(broker, f"{prefix}/#") as watcher:
            watcher.wait_for(lambda seen: seen.topic == f"{prefix}/heater/state")
            publish(broker, f"{prefix}/device/request", "hello")
            watcher.wait_for(lambda seen: seen.topic == f"{prefix}/device/response")
            watcher.wait_for(lambda seen: seen.topic == f"{prefix}/tank/level")


def test_it_stops_when_the_broker_is_gone(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """And says what it could not clear."""
    with Embedded() as broker:
        plant = Plant(broker.host, broker.port, prefix, rate_hz=RATE_HZ)
        plant.start()

    plant.stop()

    assert "what the plant has retained stays there" in caplog.text


def test_it_logs_in_over_tls(make_mosquitto: Callable[..., Mosquitto], prefix: str) -> None:
    """As any client does."""
    broker = make_mosquitto(users={"plant": "secret"}, tls=True)
    tls = ssl.create_default_context(cafile=broker.ca_path)

    with (
        Plant(broker.host, broker.port, prefix, "plant", "secret", tls, rate_hz=RATE_HZ),
        Watcher(broker, f"{prefix}/#") as watcher,
    ):
        watcher.wait_for(lambda seen: seen.topic == f"{prefix}/tank/level")


@pytest.mark.parametrize(
    ("login", "text"),
    [
        (("plant", "wrong"), "Bad user name or password"),
        (("limited", "secret"), "may not subscribe below site/"),
    ],
    ids=["wrong password", "no right"],
)
def test_it_says_why_it_cannot_work(prefix: str, login: tuple[str, str], text: str) -> None:
    """At once, and without going on trying."""
    threads = set(threading.enumerate())
    users = {"plant": User("secret"), "limited": User("secret", subscribe=("other/#",))}
    with Embedded(users=users) as broker:
        with pytest.raises(PlantOfflineError, match=text) as raised:
            Plant(broker.host, broker.port, prefix, *login).start()

        assert f"{broker.host}:{broker.port}" in str(raised.value)
    assert set(threading.enumerate()) <= threads


def test_it_says_when_there_is_no_broker(prefix: str) -> None:
    """At once, and there is nothing to stop then."""
    with Embedded() as broker:
        pass
    plant = Plant(broker.host, broker.port, prefix)

    with pytest.raises(PlantOfflineError, match="refused"):
        plant.start()
    plant.stop()
