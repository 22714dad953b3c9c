"""One connection to a broker, from CONNECT to its end. The only file that knows paho.

paho runs its network loop in a thread of its own. What happens there is appended to a deque and wakes the event loop
once per burst; the event loop owns everything else. A link is used once: paho would send unacknowledged messages again
after a reconnect, also those for which an error was already reported.
"""

import asyncio
import logging
import select
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, Literal, NamedTuple

import paho.mqtt.client
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MessageState, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from config import BrokerConfig
from dispatch import Received
from errors import BrokerOfflineError, BrokerRefusedError, BrokerSilentError
from mqtt_failures import KEEP_ALIVE_TIMEOUT, LinkFailedError, failure, no_answer, own_ending, refusal, tls_context
from mqtt_packets import MalformedPacketError, decode_publish, decode_refusal
from topics import shown

ANSWER_TIMEOUT_S: Final = 10.0
"""How long the broker may take to acknowledge a PUBLISH, a SUBSCRIBE or an UNSUBSCRIBE."""

CLOSE_TIMEOUT_S: Final = 0.5
"""How long a broker may take to read DISCONNECT."""

MAX_IN_FLIGHT: Final = 1000
"""The most QoS 1 and 2 messages unacknowledged in either direction; sent fewer where the broker takes fewer."""

_IN_FLIGHT_3_1_1: Final = 20
"""The same on MQTT 3.1.1, where a broker cannot say what it takes: the usual default of clients and brokers."""

_SLICE: Final = 256
"""Events handled before the event loop gets a turn."""

_BURST: Final = 32
"""So many events at once are a burst: the next look is taken after `_BURST_PAUSE_S`, not at the next event."""
_BURST_PAUSE_S: Final = 0.002

_PING_DELAY_S: Final = 5.0
"""So much later than the keep-alive interval a ping may be sent and answered on a connection that is well."""

_EMPTY_MESSAGE_BYTES: Final = 512
"""Memory that a message without a payload takes while it waits, roughly."""

_PACKET_BYTES: Final = (1 << 20, 268_435_455)
"""Bounds of the largest packet that the broker is asked to send: a large message, and the most paho can ask for."""

FAILURE: Final = 0x80
"""Reason codes from here on are failures (MQTT 5.0, 2.4)."""

_SESSION_TAKEN_OVER: Final = 0x8E

_WRONG_ANSWER: Final = "the broker acknowledged what it was not sent"
"""The cause where an acknowledgement is not of the kind that the packet with its identifier has (MQTT 5.0, 4.13)."""

logger = logging.getLogger(__name__)

Answer = tuple[int, str]
"""A reason code and how to say it."""


class _Question(NamedTuple):
    """What the broker is to answer."""

    asked: int
    """The type of the packet."""
    answer: "asyncio.Future[Answer]"
    accepted: Callable[[], None]
    """Called when the broker says yes, between the messages that came before and after that."""


def _nothing_to_do() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the broker said in CONNACK; the defaults are the specification's (MQTT 5.0, 3.2.2.3)."""

    session_present: bool = False
    client_id: str | None = None
    receive_maximum: int = 65_535
    maximum_qos: int = 2
    retain_available: bool = True
    maximum_packet_size: int | None = None
    wildcard_subscriptions: bool = True
    subscription_identifiers: bool = True
    shared_subscriptions: bool = True


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended."""

    cause: str
    deaf_since: float
    """Epoch seconds; nothing that was sent later is sure to have been heard."""


@dataclass(frozen=True, slots=True)
class PublishProperties:
    """The MQTT 5 properties of a message to publish (3.3.2.3)."""

    content_type: str = ""
    expiry_s: int | None = None
    response_topic: str = ""
    correlation_data: bytes = b""
    user_properties: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Bytes they take in the packet, rounded up."""
        texts = [self.content_type, self.response_topic, *(text for pair in self.user_properties for text in pair)]
        return sum(len(text.encode()) + 4 for text in texts) + len(self.correlation_data) + 8


class Link:
    """One connection. All but what is marked runs in the event loop that made it.

    Args:
        config: The broker.
        protocol: The MQTT version.
        clean_start: Whether the broker is to forget an earlier session; in MQTT 3.1.1 the session expiry decides alone.
        deliver: Called with each received message.
        lose: Called with the number of messages that came faster than they could be taken over.
        unreleased: Identifiers of the QoS 2 messages that were delivered and the broker has not released yet; they
            outlive the connection where the session does.
        max_waiting_bytes: How many bytes of messages may wait to be taken over. In MQTT 5 the broker is also asked to
            send no larger packet, within `_PACKET_BYTES`: it leaves such messages out and tells nobody (3.1.2.11.4).
    """

    def __init__(
        self,
        config: BrokerConfig,
        protocol: Literal["5", "3.1.1"],
        *,
        clean_start: bool,
        deliver: Callable[[Received], None],
        lose: Callable[[int], None],
        unreleased: set[int],
        max_waiting_bytes: int,
    ) -> None:
        self.protocol = protocol
        self.greeting = Greeting()
        self._config = config
        self._clean_start = clean_start if protocol == "5" else not config.session_expiry_s
        self._deliver = deliver
        self._lose = lose
        self._unreleased = unreleased
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[Greeting] = _forgettable(self._loop.create_future())
        self.ended: asyncio.Future[Ending] = self._loop.create_future()
        """Done when the connection is over."""
        self._abandoned = False
        self._farewell: tuple[str, int] | None = None
        self._questions: dict[int, _Question] = {}
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._inbound = _Inbound(self._wake, max_waiting_bytes)
        self._max_packet_bytes = min(max(max_waiting_bytes, _PACKET_BYTES[0]), _PACKET_BYTES[1])
        self._awake = False
        """Whether the event loop will look at what came in without being woken."""
        self._lost_told = 0
        self._paho = self._make_paho()

    # Opening and closing.

    async def open(self) -> None:
        """Connect and wait for CONNACK.

        Raises:
            LinkFailedError: The broker cannot be reached, is not trusted or said no.
        """
        timeout_s = self._config.connect_timeout_s
        threading.Thread(target=self._connect, name="mqtt.connect", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s + 0.5):  # paho's own limit, for TCP, TLS and WebSocket, comes first
                self.greeting = await self._greeted
        except TimeoutError:
            self._abandon()
            raise LinkFailedError(
                f"{self._config.url} did not answer CONNECT within {timeout_s:g} s: is it a healthy MQTT broker?"
            ) from None
        except BaseException:
            self._abandon()
            raise
        if self.protocol == "5":
            self._in_flight = asyncio.Semaphore(min(MAX_IN_FLIGHT, self.greeting.receive_maximum))
        else:
            self._in_flight = asyncio.Semaphore(_IN_FLIGHT_3_1_1)

    async def close(self, *, keep_session: bool = False) -> None:
        """Say DISCONNECT, which ends the session at the broker unless it is kept, and wait a moment for the end."""
        properties = None
        if self.protocol == "5" and not keep_session:
            properties = Properties(PacketTypes.DISCONNECT)
            properties.SessionExpiryInterval = 0
        self._abandon(properties)
        await asyncio.wait([self.ended], timeout=CLOSE_TIMEOUT_S)
        if not self.ended.done():
            self._paho.hang_up()

    def _abandon(self, properties: Properties | None = None) -> None:
        self._abandoned = True
        if self._paho.disconnect(properties=properties) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._paho.hang_up()

    @property
    def silent_s(self) -> float:
        """For how long nothing has come from the broker."""
        inbound = self._inbound
        return max(time.monotonic() - inbound.heard, time.time() - inbound.heard_at)  # a machine may have slept

    def tls_facts(self) -> dict[str, object]:
        """Say how the connection is encrypted."""
        if self._config.tls is None:
            return {"enabled": False}
        facts: dict[str, object] = {"enabled": True, "verified": not self._config.tls.insecure}
        stream = self._paho.socket()
        if isinstance(stream, ssl.SSLSocket):
            cipher, certificate = stream.cipher(), stream.getpeercert()
            facts["version"] = stream.version()
            facts["cipher"] = cipher[0] if cipher else None
            facts["certificate_expires"] = certificate.get("notAfter") if certificate else None
        return facts

    # Asking the broker.

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, properties: PublishProperties
    ) -> Answer:
        """Publish, and wait for the acknowledgement (QoS 0: for the moment it is written to the socket).

        Raises:
            BrokerOfflineError: The connection is gone; nothing was sent.
            BrokerRefusedError: The broker said no.
            BrokerSilentError: It did not answer in time, or the connection broke meanwhile.
        """
        what = f"the message to {shown(topic)}"
        room = self._in_flight if qos else asyncio.Semaphore()  # QoS 0 does not count (MQTT 5.0, 4.9)
        sent = False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await room.acquire()
                try:
                    info = self._paho.publish(topic, payload, qos, retain, self._publish_properties(properties))
                    answer = self._ask(PacketTypes.PUBLISH, info.rc, info.mid)
                except BaseException:
                    room.release()
                    raise
                # Giving up does not make room: the broker still counts the message (MQTT 5.0, 4.9).
                answer.add_done_callback(lambda _: room.release())
                sent = True
                return _accepted(await self._answer(answer, what), what)
        except TimeoutError:
            raise BrokerSilentError(
                f"The broker did not acknowledge {what} within {ANSWER_TIMEOUT_S:g} s: it may have taken it or not."
                if sent
                else f"The broker is not acknowledging messages; {what} waited {ANSWER_TIMEOUT_S:g} s and was not sent."
            ) from None

    async def subscribe(
        self, topic_filter: str, qos: int, identifier: int, granted: Callable[[], None], *, known: bool = False
    ) -> int:
        """Subscribe, wait for SUBACK and return the QoS granted.

        Args:
            topic_filter: A well-formed topic filter.
            qos: The highest QoS wanted.
            identifier: The subscription identifier; not sent where the broker knows none.
            granted: Called at SUBACK, between the messages that came before and after it.
            known: The session is an old one: retained messages are wanted only if it does not have the subscription.

        Raises:
            BrokerOfflineError, BrokerRefusedError, BrokerSilentError: As for `publish`.
        """
        what = f"the subscription to {shown(topic_filter)}"
        if self.protocol == "5":
            properties = Properties(PacketTypes.SUBSCRIBE)
            if self.greeting.subscription_identifiers:
                properties.SubscriptionIdentifier = identifier
            handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB if known else SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
            options = SubscribeOptions(qos=qos, retainHandling=handling)
            rc, mid = self._paho.subscribe(topic_filter, options=options, properties=properties)
        else:
            rc, mid = self._paho.subscribe(topic_filter, qos)
        answer = self._ask(PacketTypes.SUBSCRIBE, rc, mid, granted)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                code, _ = _accepted(await self._answer(answer, what), what)
        except TimeoutError:
            raise BrokerSilentError(f"The broker did not acknowledge {what} within {ANSWER_TIMEOUT_S:g} s.") from None
        return code

    def unsubscribe_soon(
        self, topic_filter: str, ended: Callable[[], None] = _nothing_to_do
    ) -> "asyncio.Future[Answer]":
        """Send UNSUBSCRIBE and return what will be the answer; it may be thrown away.

        `ended` is called at UNSUBACK, between the messages that came before and after it.

        A broker answers this packet whatever it names (MQTT 5.0, 3.10.4 and 3.11.3), which makes it a round trip that
        needs no rights and leaves no trace.

        Raises:
            BrokerOfflineError: The connection is gone.
        """
        rc, mid = self._paho.unsubscribe(topic_filter)
        return self._ask(PacketTypes.UNSUBSCRIBE, rc, mid, ended)

    def _ask(
        self, asked: int, rc: MQTTErrorCode, mid: int | None, accepted: Callable[[], None] = _nothing_to_do
    ) -> "asyncio.Future[Answer]":
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None or self.ended.done():
            raise BrokerOfflineError(f"The connection to {self._config.url} is gone: nothing was sent.")
        answer: asyncio.Future[Answer] = _forgettable(self._loop.create_future())
        self._questions[mid] = _Question(asked, answer, accepted)
        return answer

    async def _answer(self, answer: "asyncio.Future[Answer]", what: str) -> Answer:
        try:
            return await asyncio.shield(answer)  # whoever gives up waiting, the question stays open
        except BrokerSilentError as exc:
            raise BrokerSilentError(f"{exc} The broker may have taken {what} or not.") from None

    def _publish_properties(self, wanted: PublishProperties) -> Properties | None:
        if self.protocol != "5" or wanted == PublishProperties():
            return None
        properties = Properties(PacketTypes.PUBLISH)
        if wanted.content_type:
            properties.ContentType = wanted.content_type
        if wanted.expiry_s is not None:
            properties.MessageExpiryInterval = wanted.expiry_s
        if wanted.response_topic:
            properties.ResponseTopic = wanted.response_topic
        if wanted.correlation_data:
            properties.CorrelationData = wanted.correlation_data
        if wanted.user_properties:
            properties.UserProperty = list(wanted.user_properties)
        return properties

    # What came in.

    def _wake(self) -> None:
        """Have the event loop look at what came in. Runs in paho's thread."""
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                logger.debug("the event loop is closed; what the broker still sends is not wanted")

    def _drain(self) -> None:
        inbound = self._inbound
        handled = 0
        while inbound.events and handled < _SLICE:
            event = inbound.events.popleft()
            handled += 1
            try:
                if isinstance(event, Received):
                    inbound.bytes_out += _weight(event)
                    self._deliver(event)
                else:
                    event()
            except Exception:
                logger.exception("what the broker sent could not be handled; listening goes on")
        if (lost := inbound.lost) != self._lost_told:
            self._lose(lost - self._lost_told)
            self._lost_told = lost
        if inbound.events:
            self._loop.call_soon(self._drain)
        elif handled >= _BURST:
            self._loop.call_later(_BURST_PAUSE_S, self._drain)
        else:
            self._awake = False
            if inbound.events:  # it came between the two lines above, and woke nobody
                self._wake()

    def _on_connack(self, code: int, reason: str, session_present: bool, properties: dict[str, Any]) -> None:
        if self._greeted.done():
            self._paho.disconnect()  # too late: nobody waits for it any more
        elif code >= FAILURE:
            self._greeted.set_exception(refusal(code, reason, self._config, self.protocol))
        elif session_present and self._clean_start:  # the connection must not be used (MQTT 5.0, 3.2.2.1.1)
            self._greeted.set_exception(
                LinkFailedError(
                    f"{self._config.url} resumes a session that was not asked for: is it a healthy MQTT broker?"
                )
            )
        else:
            self._greeted.set_result(
                Greeting(
                    session_present=session_present,
                    client_id=properties.get("AssignedClientIdentifier"),
                    receive_maximum=properties.get("ReceiveMaximum", 65_535),
                    maximum_qos=properties.get("MaximumQoS", 2),
                    retain_available=bool(properties.get("RetainAvailable", 1)),
                    maximum_packet_size=properties.get("MaximumPacketSize"),
                    wildcard_subscriptions=bool(properties.get("WildcardSubscriptionAvailable", 1)),
                    subscription_identifiers=bool(properties.get("SubscriptionIdentifierAvailable", 1)),
                    shared_subscriptions=bool(properties.get("SharedSubscriptionAvailable", 1)),
                )
            )

    def _on_answer(self, asked: int, mid: int, code: int, reason: str) -> None:
        question = self._questions.get(mid)
        if question is None:
            return
        if question.asked != asked:
            self._on_end(LinkFailedError(_WRONG_ANSWER))
            self._paho.hang_up()
            return
        del self._questions[mid]
        if code < FAILURE:
            question.accepted()
        if not question.answer.done():
            question.answer.set_result((code, reason))

    def _on_disconnect(self, from_broker: bool, code: int, reason: str) -> None:
        if code == _SESSION_TAKEN_OVER:
            reason += f"; another client uses the client id {shown(self._config.client_id)}"
        self._farewell = (f"the broker closed it: {reason}" if from_broker else own_ending(code, reason)), code

    def _on_end(self, error: Exception | None) -> None:
        """Close the books: nobody waits on a connection that is over."""
        if self.ended.done():
            return
        cause, code = self._farewell or ("the broker closed it without a word", 0)
        if isinstance(error, LinkFailedError):
            cause = str(error)
        elif error is not None:
            cause = "the network thread failed"
            logger.error("the network thread of the MQTT client failed", exc_info=error)
        # A broker that is there is heard once in a keep-alive interval. Where it was not, nobody knows since when.
        now, heard_at = time.time(), self._inbound.heard_at
        deaf = code == KEEP_ALIVE_TIMEOUT or now - heard_at > self._paho.keepalive + _PING_DELAY_S
        self.ended.set_result(Ending(cause, heard_at if deaf else now))
        if not self._greeted.done():
            failed = error if isinstance(error, LinkFailedError) else no_answer(self._config, self.protocol, code)
            self._greeted.set_exception(failed)
        for question in self._questions.values():
            if not question.answer.done():
                question.answer.set_exception(BrokerSilentError(f"The connection was lost: {cause}."))
        self._questions.clear()

    # paho: making it, and its callbacks, which run in its thread.

    def _make_paho(self) -> "_Paho":
        config = self._config
        paho = _Paho(
            self._inbound,
            self._on_end,
            self._unreleased,
            client_id=config.client_id,
            clean_session=None if self.protocol == "5" else self._clean_start,
            protocol=MQTTProtocolVersion.MQTTv5 if self.protocol == "5" else MQTTProtocolVersion.MQTTv311,
            transport=config.transport,
        )
        paho.connect_timeout = config.connect_timeout_s
        paho.max_inflight_messages_set(0)  # `_in_flight` is the limit
        if config.transport == "websockets":
            paho.ws_set_options(path=config.ws_path)
        if config.user is not None or config.password is not None:
            paho.username_pw_set(config.user, config.password.get_secret_value() if config.password else None)
        paho.on_socket_open = _send_at_once
        paho.on_connect = self._connack_came
        paho.on_disconnect = self._disconnect_came
        paho.on_publish = self._puback_came
        paho.on_subscribe = self._suback_came
        paho.on_unsubscribe = self._unsuback_came
        return paho

    def _connect(self) -> None:
        """Connect and start paho's thread. Blocks, so it has a thread of its own."""
        config = self._config
        options: dict[str, Any] = {}
        if self.protocol == "5":
            options["properties"] = properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = MAX_IN_FLIGHT
            properties.MaximumPacketSize = self._max_packet_bytes
            if config.session_expiry_s:
                properties.SessionExpiryInterval = config.session_expiry_s
            options["clean_start"] = self._clean_start
        try:
            if config.tls is not None:
                self._paho.use_tls(tls_context(config.tls), config.tls.server_name or config.host)
            self._paho.connect(config.host, config.port, config.keepalive_s, **options)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the event loop waits to hear of it
            failed = failure(exc, config)
            self._paho.drop()
            self._inbound.post(lambda: self._on_end(failed))
            return
        if self._abandoned:
            self._paho.disconnect()
        else:
            # Without it paho writes in the caller's thread once its own is over, and calls unsent what that had sent.
            self._paho.on_socket_register_write = _leave_it_to_the_thread
            self._paho.loop_start()

    def _connack_came(
        self, _client: Client, _data: object, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        said = properties.json() if properties else {}
        value, reason, session_present = code.value, _spoken(code, properties), flags.session_present
        self._inbound.post(lambda: self._on_connack(value, reason, session_present, said))

    def _disconnect_came(
        self, _client: Client, _data: object, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        value, reason, from_broker = code.value, _spoken(code, properties), flags.is_disconnect_packet_from_server
        self._inbound.post(lambda: self._on_disconnect(from_broker, value, reason))

    def _answer_came(self, asked: int, mid: int, code: ReasonCode, properties: Properties | None) -> None:
        value, reason = code.value, _spoken(code, properties)
        self._inbound.post(lambda: self._on_answer(asked, mid, value, reason))

    def _puback_came(
        self, _client: Client, _data: object, mid: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._answer_came(PacketTypes.PUBLISH, mid, code, properties)

    def _suback_came(
        self, _client: Client, _data: object, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        code = codes[0] if codes else ReasonCode(PacketTypes.DISCONNECT, "Malformed packet")
        self._answer_came(PacketTypes.SUBSCRIBE, mid, code, properties)

    def _unsuback_came(
        self, _client: Client, _data: object, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        # An UNSUBACK of MQTT 3.1.1 has no reason code: it means success (3.11).
        code = codes[0] if codes else ReasonCode(PacketTypes.UNSUBACK)
        self._answer_came(PacketTypes.UNSUBSCRIBE, mid, code, properties)


class _Inbound:
    """What paho's thread leaves for the event loop. Each counter is written by one side only."""

    def __init__(self, wake: Callable[[], None], max_waiting_bytes: int) -> None:
        self.events: deque[Received | Callable[[], None]] = deque()
        self.heard = time.monotonic()
        """When the last packet came, and the same in epoch seconds."""
        self.heard_at = time.time()
        self.bytes_out = 0
        self.lost = 0
        self._bytes_in = 0
        self._wake = wake
        self._max_waiting_bytes = max_waiting_bytes

    def post(self, event: Callable[[], None]) -> None:
        """Have `event` called in the event loop."""
        self.events.append(event)
        self._wake()

    def post_message(self, message: Received) -> None:
        """Have `message` delivered in the event loop, if it is not hopelessly behind."""
        if self._bytes_in - self.bytes_out > self._max_waiting_bytes:
            self.lost += 1
        else:
            self._bytes_in += _weight(message)
            self.events.append(message)
        self._wake()


def _weight(message: Received) -> int:
    return len(message.payload) + _EMPTY_MESSAGE_BYTES


if sys.platform != "win32":

    def _wait(
        readers: list[socket.socket], writers: list[socket.socket], _errors: list[socket.socket], timeout_s: float
    ) -> tuple[list[socket.socket], list[socket.socket], list[socket.socket]]:
        """Wait as `select.select` does, also for descriptors beyond 1023, of which it knows nothing."""
        poll = select.poll()
        for each in {*readers, *writers}:
            poll.register(each, (select.POLLIN if each in readers else 0) | (select.POLLOUT if each in writers else 0))
        ready = dict(poll.poll(timeout_s * 1000))
        return (
            [each for each in readers if ready.get(each.fileno(), 0) & ~select.POLLOUT],
            [each for each in writers if ready.get(each.fileno(), 0) & ~select.POLLIN],
            [],
        )

    vars(paho.mqtt.client)["select"] = SimpleNamespace(select=_wait)  # it uses nothing else of it (2.2.0)


class _Paho(Client):
    """paho with corrections. All but what is marked runs in paho's thread, or in the one that connects."""

    def __init__(
        self, inbound: _Inbound, on_end: Callable[[Exception | None], None], unreleased: set[int], **options: Any
    ) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, **options)
        self._inbound = inbound
        self._on_end = on_end
        self._unreleased = unreleased
        self._stream: socket.socket | None = None
        self._wrap: Callable[[socket.socket], ssl.SSLSocket]

    def use_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Have TLS with a broker whose certificate is for `server_name`, whatever host is connected to."""
        self.tls_set_context(context)
        self._wrap = partial(context.wrap_socket, server_hostname=server_name, do_handshake_on_connect=False)

    def hang_up(self) -> None:
        """Break the connection off in whatever state it is: the thread that waits for it wakes. Runs in any thread."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close a connection that failed on the way; paho forgets it."""
        if self._stream is not None:
            self._stream.close()

    def _create_socket_connection(self) -> socket.socket:
        self._stream = super()._create_socket_connection()
        return self._stream

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        self._stream = stream = self._wrap(tcp_sock)
        stream.do_handshake()
        return stream

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        """Run the network loop, and report its end whatever ended it: a thread that dies in silence leaves us deaf."""
        error: Exception | None = None
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as exc:  # noqa: BLE001 - reported, not hidden
            error = exc
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.drop()
            self._inbound.post(lambda: self._on_end(error))

    def _packet_handle(self) -> MQTTErrorCode:
        """Note that the broker was heard, were it by a PINGRESP only."""
        self._inbound.heard, self._inbound.heard_at = time.monotonic(), time.time()
        return super()._packet_handle()

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a message over without paho's slow properties (20 us a message with a subscription identifier)."""
        packet = self._in_packet
        try:
            mid, message = decode_publish(
                packet["command"],
                bytes(packet["packet"]),
                time.time(),
                mqtt_5=self._protocol == MQTTProtocolVersion.MQTTv5,
            )
        except MalformedPacketError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        if message.qos == 2:  # noqa: PLR2004 - exactly once
            if mid not in self._unreleased:
                self._unreleased.add(mid)
                self._inbound.post_message(message)
            return self._send_pubrec(mid)
        self._inbound.post_message(message)
        return self._send_puback(mid) if message.qos else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrel(self) -> MQTTErrorCode:
        self._unreleased.discard(int.from_bytes(self._in_packet["packet"][:2], "big"))
        return super()._handle_pubrel()

    def _handle_connack(self) -> MQTTErrorCode:
        if self._in_packet["packet"][:1] != b"\1":
            self._unreleased.clear()  # the broker remembers no session, and none of its messages
        own_s = self._keepalive
        rc = super()._handle_connack()
        # A broker that asks for fewer pings or none (0) would not be noticed to be gone; more are always allowed.
        self._keepalive = min(own_s, self._keepalive or own_s)
        return rc

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        """Take any refusal; paho drops the connection over a reason code it does not expect, as mosquitto's 0x95."""
        self._expect(MessageState.MQTT_MS_WAIT_FOR_PUBACK if cmd == "PUBACK" else MessageState.MQTT_MS_WAIT_FOR_PUBCOMP)
        return self._take_refusal() if self._is_refusal() else super()._handle_pubackcomp(cmd)

    def _handle_pubrec(self) -> MQTTErrorCode:
        """Take a refusal of a QoS 2 message for one; paho goes on to PUBREL and reports success."""
        self._expect(MessageState.MQTT_MS_WAIT_FOR_PUBREC, MessageState.MQTT_MS_WAIT_FOR_PUBCOMP)
        return self._take_refusal() if self._is_refusal() else super()._handle_pubrec()

    def _expect(self, *states: MessageState) -> None:
        """End the connection if the message that is acknowledged is not in one of `states`; paho takes any for done."""
        with self._out_message_mutex:
            message = self._out_messages.get(int.from_bytes(self._in_packet["packet"][:2], "big"))
        if message is not None and message.state not in states:
            raise LinkFailedError(_WRONG_ANSWER)

    def _is_refusal(self) -> bool:
        packet = self._in_packet["packet"]
        return self._protocol == MQTTProtocolVersion.MQTTv5 and len(packet) > 2 and packet[2] >= FAILURE  # noqa: PLR2004

    def _take_refusal(self) -> MQTTErrorCode:
        try:
            mid, value, words = decode_refusal(bytes(self._in_packet["packet"]))
        except MalformedPacketError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        code, properties = ReasonCode(PacketTypes.PUBACK), Properties(PacketTypes.PUBACK)
        code.value = value
        if words:
            properties.ReasonString = words
        with self._out_message_mutex:
            if mid in self._out_messages:
                return self._do_on_publish(mid, code, properties)
        return MQTTErrorCode.MQTT_ERR_SUCCESS


def _forgettable(future: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
    """Let `future` fail without a warning when nobody waits for it any more."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _send_at_once(_client: Client, _data: object, stream: Any) -> None:
    """Switch Nagle's algorithm off: with it an answer can wait 40 ms for an acknowledgement (measured)."""
    borrowed = socket.socket(fileno=stream.fileno())
    try:
        borrowed.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    finally:
        borrowed.detach()


def _leave_it_to_the_thread(_client: Client, _data: object, _stream: Any) -> None:
    """Do nothing: paho's thread is awake."""


def _spoken(code: ReasonCode, properties: Properties | None) -> str:
    """Say a reason code, with the broker's own words where it sent some."""
    try:
        name = code.getName()
    except (KeyError, ValueError):  # codes that paho does not expect in this packet
        name = _MORE_CODES.get(code.value, "reason code")
    words, server = getattr(properties, "ReasonString", ""), getattr(properties, "ServerReference", "")
    said = (f", it says {shown(words)}" if words else "") + (f", it names {shown(server)}" if server else "")
    return f"{name} (0x{code.value:02X})" + said


_MORE_CODES: Final = {0x10: "No matching subscribers", 0x95: "Packet too large", 0x9B: "QoS not supported"}


def _accepted(answer: Answer, what: str) -> Answer:
    code, reason = answer
    if code >= FAILURE:
        raise BrokerRefusedError(f"The broker refused {what}: {reason}.")
    return answer
