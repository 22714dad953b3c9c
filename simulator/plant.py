"""A small plant to try things on: a line, a tank, a heater and a device that answers, on any MQTT broker."""

import itertools
import json
import logging
import math
import socket
import ssl
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from paho.mqtt.client import Client, ConnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 10
CLEAR_TIMEOUT_S = 5
STEP_S = 0.5  # plant time between two readings
COLD, HOT = 21.0, 80.0  # where the temperature goes with the heater off and on
INERTIA_S = 8.0  # after that time it has gone two thirds of its way


class PlantOfflineError(ConnectionError):
    """The plant cannot work on the broker: nobody there, login refused, or topics not allowed."""


class Plant:
    """Simulated devices below one topic prefix, as one MQTT client. A context manager.

    | topic | what |
    | --- | --- |
    | `line1/temperature` | `{"value": 21.4, "unit": "°C"}`, each step |
    | `line1/pressure` | `1.013`, a plain number, each step |
    | `line1/state` | `{"state": "running", "product": "A"}`, retained |
    | `tank/level` | `{"value": 60.0, "unit": "%"}`, each step |
    | `heater/set` | takes `on` and `off`, and the temperature follows |
    | `heater/state` | `on` or `off`, retained |
    | `device/request` | takes text or JSON, answers `{"ok": true, "echo": ...}` to its response topic |
    | `device/response` | the answer to a request without one, as all are on MQTT 3.1.1 |

    Args:
        host: Where the broker is.
        port: Where it listens.
        prefix: What every topic begins with.
        username: How to log in, if at all.
        password: Likewise.
        tls: Makes it speak TLS.
        protocol: The version of MQTT.
        rate_hz: Steps a second; two are real time, and more let the plant live faster.
    """

    def __init__(
        self,
        host: str,
        port: int,
        prefix: str = "plant",
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        protocol: Literal["5", "3.1.1"] = "5",
        rate_hz: float = 1 / STEP_S,
    ) -> None:
        self._address = (host, port)
        self._prefix = prefix
        self._pause_s = 1 / rate_hz
        self._lock = threading.Lock()  # the heater is switched in paho's thread and works in ours
        self._heater_on = False
        self._retained: set[str] = set()
        self._started: Future[None] = Future()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="plant", daemon=True)
        version = MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=version)
        self._client.on_socket_open = _send_at_once
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.message_callback_add(f"{prefix}/heater/set", self._on_heater_set)
        self._client.message_callback_add(f"{prefix}/device/request", self._on_request)
        if username is not None:
            self._client.username_pw_set(username, password)
        if tls is not None:
            self._client.tls_set_context(tls)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Connect, listen and begin to send; raises `PlantOfflineError` when the broker does not let it."""
        host, port = self._address
        try:
            self._client.connect(host, port)
            self._client.loop_start()
            self._started.result(START_TIMEOUT_S)
        except OSError as error:
            self._client.disconnect()
            self._client.loop_stop()
            text = str(error) or "no answer"
            raise PlantOfflineError(f"the plant cannot work on the broker {host}:{port}: {text}") from error
        self._thread.start()

    def stop(self) -> None:
        """Stop sending, clear every retained message of the plant, and disconnect; a failed `start` left nothing."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            cleared = [self._client.publish(topic, b"", 1, retain=True) for topic in self._retained]
        try:
            for message in cleared:
                message.wait_for_publish(CLEAR_TIMEOUT_S)
            done = all(message.is_published() for message in cleared)
        except RuntimeError:  # paho's word for a connection that is gone
            done = False
        if not done:
            logger.warning("the broker is gone, and what the plant has retained stays there: %s", self._retained)
        self._client.disconnect()
        self._client.loop_stop()

    def _live(self) -> None:
        """Take a reading each step, until the plant stops."""
        temperature = COLD
        for step in itertools.count():
            goal = HOT if self._heater_on else COLD
            temperature += (goal - temperature) * STEP_S / INERTIA_S
            ripple = math.sin(step)
            self._send("line1/temperature", _json(value=round(temperature + ripple / 10, 2), unit="°C"))
            self._send("line1/pressure", f"{1.013 + ripple / 100:.3f}")
            self._send("tank/level", _json(value=round(60 + 20 * math.sin(step / 60), 1), unit="%"))
            if self._stopping.wait(self._pause_s):
                return

    def _send(self, name: str, payload: str) -> None:
        self._client.publish(f"{self._prefix}/{name}", payload)

    def _tell_states(self) -> None:
        """Publish what is retained, unless it is being cleared already."""
        states = {
            "line1/state": _json(state="running", product="A"),
            "heater/state": "on" if self._heater_on else "off",
        }
        with self._lock:
            if not self._stopping.is_set():
                for name, state in states.items():
                    topic = f"{self._prefix}/{name}"
                    self._retained.add(topic)
                    self._client.publish(topic, state, 1, retain=True)

    def _on_connect(
        self,
        client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refuse(f"it says {reason}")
        else:
            client.subscribe([(f"{self._prefix}/heater/set", 1), (f"{self._prefix}/device/request", 1)])

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refuse(f"it may not subscribe below {self._prefix}")
            return
        self._tell_states()
        if not self._started.done():
            self._started.set_result(None)

    def _refuse(self, text: str) -> None:
        logger.warning("the broker does not let the plant work: %s", text)
        if not self._started.done():
            self._started.set_exception(OSError(text))

    def _on_heater_set(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.payload in {b"on", b"off"}:
            self._heater_on = message.payload == b"on"
            self._tell_states()

    def _on_request(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        asked = message.properties or Properties(PacketTypes.PUBLISH)
        topic = getattr(asked, "ResponseTopic", f"{self._prefix}/device/response")
        # An answer there would be no answer: paho raises, and a request of our own has no end.
        if not topic or "+" in topic or "#" in topic or topic == message.topic:
            logger.warning("no answer goes to the response topic %r", topic)
            return
        properties = Properties(PacketTypes.PUBLISH)
        if hasattr(asked, "CorrelationData"):
            properties.CorrelationData = asked.CorrelationData
        client.publish(topic, _answer(bytes(message.payload)), 1, properties=properties)


def _answer(payload: bytes) -> str:
    """Echo JSON as JSON and other text as text; in ASCII, because JSON may spell what is no character."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return json.dumps({"ok": False, "echo": None, "error": "the request is no text"})
    try:
        return json.dumps({"ok": True, "echo": json.loads(text)})
    except (ValueError, RecursionError):
        return json.dumps({"ok": True, "echo": text})


def _json(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _send_at_once(_client: Client, _userdata: object, connection: object) -> None:
    """Switch Nagle's algorithm off, which holds an answer back for 40 ms."""
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
