"""Real brokers for tests: a mosquitto of any shape on free loopback ports, and a pair of eyes and hands outside."""

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import trustme
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from simulator.broker import Broker
from tests.fronts import Front, refuse_mqtt_5, speak_websocket

T = TypeVar("T")

HOST = "127.0.0.1"
START_TIMEOUT_S = 10
START_ATTEMPTS = 5  # a port that was free a moment ago may be taken by a test that runs beside this one
WAIT_TIMEOUT_S = 5

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
MOSQUITTO = shutil.which("mosquitto", path=_PATH)


class Reachable(Protocol):
    """A broker with a side door: a plain listener that lets everyone do everything."""

    @property
    def host(self) -> str:
        """Where it listens."""

    @property
    def side_port(self) -> int:
        """The side door."""


class Mosquitto:
    """A mosquitto of its own: what is tested listens on `port`, what tests do from outside enters by `side_port`.

    A context manager. It starts on entering, and dies with the test process whatever happens to that.

    Args:
        directory: An empty directory for its files.
        users: Name and password of each who may log in; without it everyone may.
        acl: Text of an ACL file; without it everyone may do everything.
        tls: Speak TLS on `port`, with a certificate signed by the authority in `ca_path`.
        mutual_tls: Demand a client certificate too, such as the one in `client_cert_path`. Implies `tls`.
        certificate_names: What the server certificate is for.
        not_after: When the server certificate ends.
        websockets: Speak MQTT over WebSocket on `port`, on any path.
        only_311: Refuse MQTT 5 as an old broker does.
        persistence: Remember sessions and retained messages across `restart`.
        config: More lines of configuration, for the broker or the listener on `port`.
    """

    host = HOST

    def __init__(
        self,
        directory: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        tls: bool = False,
        mutual_tls: bool = False,
        certificate_names: Iterable[str] = ("localhost", HOST, "::1"),
        not_after: datetime | None = None,
        websockets: bool = False,
        only_311: bool = False,
        persistence: bool = False,
        config: Iterable[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca_path = directory / "ca.pem"
        self.client_cert_path = directory / "client.pem"
        self.client_key_path = directory / "client.key"
        self.port, self.side_port, self._inner_port = 0, 0, 0
        self._users = users
        self._acl = acl
        self._tls = tls or mutual_tls
        self._mutual_tls = mutual_tls
        self._relay = speak_websocket if websockets else refuse_mqtt_5 if only_311 else None
        self._persistence = persistence
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._around = ExitStack()
        if self._tls:
            self._make_certificates(certificate_names, not_after)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What mosquitto wrote so far."""
        return (self.directory / "mosquitto.log").read_text()

    def start(self) -> None:
        """Start, on the ports of the last time if there was one, and return when every listener answers."""
        if self.port:
            self._start()
        else:
            self._start_on_free_ports(START_ATTEMPTS)

    def stop(self) -> None:
        """End it in good order; it saves what `persistence` asks for. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same ports."""
        self.stop()
        self.start()

    def change_password(self, user: str, password: str) -> None:
        """Give a user another password while it runs; who is logged in with the old one is thrown out."""
        assert self._users is not None, "it has no users"
        self._users = {**self._users, user: password}
        self._write_files()
        self._signal(signal.SIGHUP)

    def take_certificates_of(self, other: "Mosquitto") -> None:
        """Use another one's certificates and authority from the next start on."""
        for name in ("ca.pem", "server.pem", "server.key"):
            (self.directory / name).write_bytes((other.directory / name).read_bytes())

    def freeze(self) -> None:
        """Stop its clock: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def _start_on_free_ports(self, attempts: int) -> None:
        self.port, self.side_port, self._inner_port = _free_ports(3)
        try:
            self._start()
        except OSError:
            if attempts == 1:
                raise
            self._start_on_free_ports(attempts - 1)

    def _start(self) -> None:
        self._write_files()
        with (self.directory / "mosquitto.log").open("ab") as log, ExitStack() as around:
            self._process = subprocess.Popen(
                [MOSQUITTO or "mosquitto", "-v", "-c", self.directory / "mosquitto.conf"],
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for pytest
            )
            around.callback(self._process.wait)
            around.callback(self._process.kill)
            around.enter_context(_killed_with_us(self._process.pid))
            self._await_listener(self.side_port)
            if self._relay is None:
                self._await_listener(self.port)
            else:
                self._await_listener(self._inner_port)
                around.enter_context(Front(self.port, self._inner_port, self._relay, self._front_tls()))
            self._around = around.pop_all()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self.thaw()
        self._signal(number)
        self._process.wait(START_TIMEOUT_S)
        self._around.close()
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "mosquitto is not running"
        self._process.send_signal(number)

    def _await_listener(self, port: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise OSError(f"mosquitto ended with {self._process.returncode}: {self.log}")
            try:
                socket.create_connection((HOST, port), timeout=1).close()
            except OSError:
                time.sleep(0.005)
            else:
                return
        raise TimeoutError(f"mosquitto did not listen on port {port}: {self.log}")

    def _write_files(self) -> None:
        lines = [
            "per_listener_settings true",
            "log_timestamp_format %H:%M:%S",
            *(["user root"] if os.geteuid() == 0 else []),
            *(["persistence true", f"persistence_location {self.directory}/"] if self._persistence else []),
            f"listener {self.side_port} {HOST}",
            "allow_anonymous true",
            f"listener {self.port if self._relay is None else self._inner_port} {HOST}",
            f"allow_anonymous {'true' if self._users is None else 'false'}",
        ]
        if self._users is not None:
            passwords = self.directory / "passwords"
            passwords.touch(mode=0o600)
            for user, password in self._users.items():
                command = [shutil.which("mosquitto_passwd", path=_PATH) or "mosquitto_passwd", "-b"]
                command += [str(passwords), user, password]
                subprocess.run(command, check=True, capture_output=True)
            lines.append(f"password_file {passwords}")
        if self._acl is not None:
            acl = self.directory / "acl"
            acl.touch(mode=0o600)
            acl.write_text(self._acl)
            lines.append(f"acl_file {acl}")
        if self._tls and self._relay is None:
            lines += [f"certfile {self._server_path('pem')}", f"keyfile {self._server_path('key')}"]
            lines += [f"cafile {self.ca_path}", "require_certificate true"] if self._mutual_tls else []
        lines += self._config
        (self.directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def _server_path(self, suffix: str) -> Path:
        return self.directory / f"server.{suffix}"

    def _make_certificates(self, names: Iterable[str], not_after: datetime | None) -> None:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(self.ca_path)
        server = ca.issue_cert(*names, not_after=not_after)
        server.private_key_pem.write_to_path(self._server_path("key"))
        self._server_path("pem").write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        client = ca.issue_cert("client@example.org", common_name="client")
        client.private_key_pem.write_to_path(self.client_key_path)
        client.cert_chain_pems[0].write_to_path(self.client_cert_path)

    def _front_tls(self) -> ssl.SSLContext | None:
        if not self._tls:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca_path)
        context.load_cert_chain(self._server_path("pem"), self._server_path("key"))
        context.verify_mode = ssl.CERT_REQUIRED if self._mutual_tls else ssl.CERT_NONE
        return context


class Embedded:
    """The broker of `simulator/` on a thread of its own, so that a test need not be async. Also a context manager.

    Args:
        options: The arguments of `Broker`, but for the port.
    """

    host = HOST

    def __init__(self, **options: Any) -> None:
        self.port = 0
        self._options = options
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._broker: Broker

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def side_port(self) -> int:
        """The only port; a broker with users has no side door."""
        return self.port

    def start(self) -> None:
        """Start, on the port of the last time if there was one."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded-broker", daemon=True)
        self._thread.start()
        self._broker = Broker(self.port, **self._options)
        self._run(self._broker.__aenter__())
        self.port = self._broker.port

    def stop(self) -> None:
        """Close the broker and check that nothing of it is left."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_TIMEOUT_S)
        self._loop.close()

    def restart(self) -> None:
        """Stop, which forgets everything, and start on the same port."""
        self.stop()
        self.start()

    def call(self, function: Callable[[Broker], T]) -> T:
        """Do something to the broker on its own loop."""

        async def on_its_loop() -> T:
            return function(self._broker)

        return self._run(on_its_loop())

    async def _close(self) -> None:
        await self._broker.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"the broker has left tasks: {left}"

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as it arrived; its MQTT 5 properties have the names that paho gives them."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: dict[str, Any]


class Watcher:
    """What passes one topic filter on a broker, seen through the side door.

    A context manager; on entering it returns once the subscription is granted.
    """

    def __init__(self, broker: Reachable, topic_filter: str = "#", qos: int = 2) -> None:
        self._broker = broker
        self._filter = topic_filter
        self._qos = qos
        self._seen: list[Seen] = []
        self._granted: list[ReasonCode] = []
        self._changed = threading.Condition()
        self._around = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as around:
            client = around.enter_context(_outsider(self._broker))
            client.on_message = self._on_message
            client.on_subscribe = self._on_subscribe
            client.subscribe(self._filter, self._qos)
            self._wait(lambda: bool(self._granted), WAIT_TIMEOUT_S, "no SUBACK")
            assert not self._granted[0].is_failure, self._granted[0]
            self._around = around.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._around.close()

    @property
    def seen(self) -> list[Seen]:
        """Every message so far."""
        with self._changed:
            return list(self._seen)

    def wait_for(self, matches: Callable[[Seen], bool], timeout_s: float = WAIT_TIMEOUT_S) -> Seen:
        """Wait for a message, be it one that is here already, and return it."""
        self._wait(lambda: any(map(matches, self._seen)), timeout_s, "no such message")
        return next(filter(matches, self.seen))

    def wait_count(self, count: int, timeout_s: float = WAIT_TIMEOUT_S) -> list[Seen]:
        """Wait until there are `count` messages, and return all."""
        self._wait(lambda: len(self._seen) >= count, timeout_s, f"fewer than {count} messages")
        return self.seen

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"{what} on {self._filter} within {timeout_s} s; seen: {self._seen}")

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        properties = {} if message.properties is None else message.properties.json()
        seen = Seen(message.topic, bytes(message.payload), message.qos, message.retain, properties)
        with self._changed:
            self._seen.append(seen)
            self._changed.notify_all()

    def _on_subscribe(
        self, _client: Client, _userdata: object, _mid: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        with self._changed:
            self._granted = reasons
            self._changed.notify_all()


def publish(
    broker: Reachable,
    topic: str,
    payload: bytes | str = b"",
    qos: int = 1,
    *,
    retain: bool = False,
    **properties: object,
) -> None:
    """Publish through the side door and return when it is acknowledged; properties are named as in paho."""
    packed = Properties(PacketTypes.PUBLISH)
    for name, value in properties.items():
        setattr(packed, name, value)
    reasons: list[ReasonCode] = []
    with _outsider(broker) as client:
        client.on_publish = lambda _client, _userdata, _mid, reason, _properties: reasons.append(reason)
        message = client.publish(topic, payload, qos, retain, packed)
        message.wait_for_publish(WAIT_TIMEOUT_S)
        assert message.is_published(), f"no acknowledgement for {topic}"
    assert not any(reason.is_failure for reason in reasons), f"{topic}: {reasons}"


@contextmanager
def _outsider(broker: Reachable) -> Iterator[Client]:
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_socket_open = _without_delay
    client.connect(broker.host, broker.side_port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def _without_delay(_client: Client, _userdata: object, connection: object) -> None:
    assert isinstance(connection, socket.socket)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def _killed_with_us(pid: int) -> Iterator[None]:
    """Kill a process when this one is gone, however it went: the pipe to the watchdog breaks."""
    command = ["sh", "-c", f"read _; kill -9 {pid}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as watchdog:
        try:
            yield
        finally:
            watchdog.kill()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
