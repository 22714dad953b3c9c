"""Measures what MCP over HTTP costs, beside stdio, in one run: `.venv/bin/python bench/over_http.py`.

Both are our server, at a mosquitto that is started for it, and a client without an SDK. HTTP is on loopback with a
bearer token, in both protocol eras: 2026-07-28, where each request stands alone, and a session of 2025-11-25. The calls
of each take turns, so that the machine is as busy for one as for the other: the ratios are what counts.
"""

import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Protocol, Self

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402 - the line above makes the rest importable
from rich.table import Table  # noqa: E402

from bench.run import OURS, UNLIMITED, Report, until_connected  # noqa: E402
from bench.stdio_client import StdioClient  # noqa: E402
from tests.brokers import Mosquitto  # noqa: E402

CALLS: Final = 1000
"""One after another, by each way."""
CLIENTS: Final = 32
ROUNDS: Final = 5
CALLS_OF_A_ROUND: Final = 1000
SESSIONS: Final = 500
NAMES: Final = ("one", "two", "three", "four", "five", "six")
"""One client may have 250 sessions and 100 streams."""
MOST: Final = 2.0
"""So many times what stdio takes, HTTP may take."""
START_TIMEOUT_S: Final = 20
ANSWER_TIMEOUT_S: Final = 60

Era = Literal["2026-07-28", "2025-11-25"]
ERAS: Final[tuple[Era, ...]] = ("2026-07-28", "2025-11-25")
HELLO: Final = {"name": "bench", "version": "1"}
META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": HELLO,
    "io.modelcontextprotocol/clientCapabilities": {},
}
MESSAGE: Final = {"topic": "bench/publish", "payload": "x" * 64, "qos": 1}
TOOL: Final = "mqtt_publish"


class Client(Protocol):
    """Who calls tools, over stdio or HTTP."""

    def start_call(self, tool: str, arguments: dict[str, Any]) -> int:
        """Call a tool and return the number to `finish` it by."""

    def finish(self, number: int) -> dict[str, Any]:
        """Wait for the answer of a call that must succeed."""

    def time_call(self, tool: str, **arguments: Any) -> float:
        """Call a tool and return how long it took, in ms."""


class Server:
    """Our server over HTTP, with a token for each of `NAMES`."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.tokens = {name: secrets.token_urlsafe(32) for name in NAMES}
        file = Path(self._directory.name) / "tokens"
        file.write_text("".join(f"{name} write {_digest(token)}\n" for name, token in self.tokens.items()))
        file.chmod(0o600)
        self._log = Path(self._directory.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                OURS,
                env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
                | settings
                | {"MCP_TRANSPORT": "http", "MCP_PORT": "0", "MCP_TOKENS_FILE": str(file)}
                | {"MCP_CLIENT_RATE_LIMIT_PER_MINUTE": "10000000"},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        self.port = 0

    def __enter__(self) -> Self:
        until = time.monotonic() + START_TIMEOUT_S
        while not (served := re.search(r"MCP is served on \S+:(\d+)/mcp", self._log.read_text())):
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.02)
        self.port = int(served[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._directory.cleanup()

    def until_connected(self) -> None:
        """Wait for the broker connection."""
        with HTTPClient(self, "2026-07-28") as client:
            while not client.finish(client.start_call("server_status", {}))["connection"]["connected"]:
                time.sleep(0.01)

    @property
    def rss_mb(self) -> float:
        """Memory of it."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Connection:
    """One connection, and requests on it one after another."""

    def __init__(self, server: Server, name: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), ANSWER_TIMEOUT_S)
        self._answers: BinaryIO = self._socket.makefile("rb")
        self._head = (
            f"/mcp HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {server.tokens[name]}\r\n"
            "Accept: application/json, text/event-stream\r\n"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends also a reading in another thread
        self._socket.close()

    def open_session(self) -> str:
        """Shake hands as clients of 2025-11-25 do, and return the session's name."""
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": HELLO}
        self.post({"id": 0, "method": "initialize", "params": hello})
        headers, _ = self.receive()
        session = headers["mcp-session-id"]
        self.post({"method": "notifications/initialized"}, mcp_session_id=session)
        self.receive()
        return session

    def open_stream(self, session: str) -> None:
        """Open the stream of what a session may be told, and leave it open."""
        self._send("GET", b"", {"mcp_session_id": session, "mcp_protocol_version": "2025-11-25"})
        self._receive_head()

    def post(self, message: dict[str, Any], **headers: str) -> None:
        """Send a message."""
        self._send("POST", json.dumps({"jsonrpc": "2.0", **message}).encode(), headers)

    def receive(self) -> tuple[dict[str, str], bytes]:
        """Wait for the whole of an answer that is none of refusal."""
        headers = self._receive_head()
        if headers.get("transfer-encoding") != "chunked":
            return headers, self._answers.read(int(headers["content-length"]))
        body = b""
        while size := int(self._answers.readline(), 16):
            body += self._answers.read(size)
            self._answers.readline()
        self._answers.readline()
        return headers, body

    def _send(self, method: str, body: bytes, headers: dict[str, str]) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._socket.sendall(f"{method} {self._head}{kind}{lines}\r\n".encode() + body)

    def _receive_head(self) -> dict[str, str]:
        status = self._answers.readline()
        headers: dict[str, str] = {}
        while line := self._answers.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        if not status:
            raise ConnectionError("the connection has ended")
        assert status.split()[1] in (b"200", b"202"), status
        return headers


class HTTPClient:
    """A client on a connection of its own; like `StdioClient` it reads in a thread, so that both pay for that."""

    def __init__(self, server: Server, era: Era) -> None:
        self._connection = Connection(server, NAMES[0])
        self._modern = era == "2026-07-28"
        self._headers: dict[str, str] = {"mcp_protocol_version": era}
        if not self._modern:
            self._headers["mcp_session_id"] = self._connection.open_session()
        self._ids = itertools.count(1)
        self._ended: dict[int, tuple[float, dict[str, Any]]] = {}
        self._arrived = threading.Condition()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.__exit__(kind, error, traceback)
        self._reading.join()

    def start_call(self, tool: str, arguments: dict[str, Any]) -> int:
        """Call a tool and return the number to `finish` it by."""
        number = next(self._ids)
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        headers = self._headers
        if self._modern:
            params["_meta"] = META
            headers = headers | {"mcp_method": "tools/call", "mcp_name": tool}
        self._connection.post({"id": number, "method": "tools/call", "params": params}, **headers)
        return number

    def finish(self, number: int) -> dict[str, Any]:
        """Wait for the answer of a call that must succeed."""
        _, result = self._answer(number)
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    def time_call(self, tool: str, **arguments: Any) -> float:
        """Call a tool and return how long it took, in ms."""
        started = time.perf_counter()
        ended, _ = self._answer(self.start_call(tool, arguments))
        return (ended - started) * 1000

    def _answer(self, number: int) -> tuple[float, dict[str, Any]]:
        with self._arrived:
            if not self._arrived.wait_for(lambda: number in self._ended, ANSWER_TIMEOUT_S):
                raise TimeoutError(f"no answer to request {number}")
            ended, message = self._ended.pop(number)
        result: dict[str, Any] = message["result"]
        assert not result.get("isError"), result
        return ended, result

    def _read(self) -> None:
        with suppress(OSError):
            while True:
                headers, body = self._connection.receive()
                ended = time.perf_counter()
                if headers["content-type"].startswith("text/event-stream"):
                    body = next(line[6:] for line in body.splitlines() if line.startswith(b"data: {"))
                message = json.loads(body)
                with self._arrived:
                    self._ended[message["id"]] = ended, message
                    self._arrived.notify_all()


def main() -> int:
    """Measure, print the table, and return 1 when HTTP costs too much."""
    report = Report(Table("figure", "stdio", "HTTP with bearer", "goal", "reached"))
    with tempfile.TemporaryDirectory() as directory, Mosquitto(Path(directory) / "broker", config=UNLIMITED) as broker:
        settings = {"MQTT_BROKER": broker.host, "MQTT_PORT": str(broker.port)}
        settings |= {"RATE_LIMIT_PER_S": "100000", "RATE_LIMIT_BURST": "1000000"}
        with StdioClient(OURS, settings) as stdio, Server(settings) as server:
            until_connected(stdio)
            server.until_connected()
            for era in ERAS:
                measure_one(report, stdio, server, era)
            for era in ERAS:
                measure_many(report, stdio, server, era)
        with Server(settings) as server:
            server.until_connected()
            measure_sessions(report, server)
    Console(width=120).print(report.table)
    return 1 if report.missed else 0


def measure_one(report: Report, stdio: StdioClient, server: Server, era: Era) -> None:
    """Call one by one, in turns."""
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("publish", TOOL, MESSAGE),
        ("server_status", "server_status", {}),
    ]
    with HTTPClient(server, era) as http:
        for what, tool, arguments in calls:
            pairs = [(stdio.time_call(tool, **arguments), http.time_call(tool, **arguments)) for _ in range(CALLS)]
            floor, ours = (sorted(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(ours) / statistics.median(floor)
            report.add(
                f"{what}, median and p99, {era}",
                f"{statistics.median(floor):.2f}, {p99(floor):.1f} ms",
                f"{statistics.median(ours):.2f}, {p99(ours):.1f} ms, {ratio:.2f} x stdio",
                f"<= {MOST:g} x stdio",
                reached=ratio <= MOST,
            )
            if tool == TOOL:
                tell(
                    report,
                    f"publish, 1 client, {era}",
                    *(f"{1000 / statistics.mean(times):.0f}/s" for times in (floor, ours)),
                )


def measure_many(report: Report, stdio: StdioClient, server: Server, era: Era) -> None:
    """Publish from many clients at one time, in turns with as many calls at one time of the one client of stdio."""
    with ExitStack() as stack:
        http = [stack.enter_context(HTTPClient(server, era)) for _ in range(CLIENTS)]
        turns = [(all_at_once([stdio] * CLIENTS), all_at_once(http)) for _ in range(ROUNDS)]
    (floor, floor_ms), (ours, ours_ms) = (
        (statistics.median(rate for rate, _ in way), sorted(ms for _, times in way for ms in times))
        for way in zip(*turns, strict=True)
    )
    tell(
        report,
        f"publish, {CLIENTS} clients, and p99, {era}",
        f"{floor:.0f}/s, {p99(floor_ms):.0f} ms",
        f"{ours:.0f}/s, {p99(ours_ms):.0f} ms, {ours / floor:.2f} x stdio",
    )


def all_at_once(clients: Sequence[Client]) -> tuple[float, list[float]]:
    """Have a call of each client under way until enough are done; return how many a second, and how long each took."""
    times: list[float] = []
    under_way: deque[tuple[Client, int, float]] = deque()
    started = time.perf_counter()
    for number in range(CALLS_OF_A_ROUND + len(clients)):
        client = clients[number % len(clients)]
        if number >= len(clients):
            client, call, since = under_way.popleft()
            client.finish(call)
            times.append((time.perf_counter() - since) * 1000)
        if number < CALLS_OF_A_ROUND:
            since = time.perf_counter()
            under_way.append((client, client.start_call(TOOL, MESSAGE), since))
    return CALLS_OF_A_ROUND / (time.perf_counter() - started), times


def measure_sessions(report: Report, server: Server) -> None:
    """Open sessions that do nothing, and then the stream of each."""
    with ExitStack() as stack:
        before_mb = server.rss_mb
        sessions: list[tuple[str, str]] = []
        for number in range(SESSIONS):
            name = NAMES[number % len(NAMES)]
            with Connection(server, name) as connection:
                sessions.append((name, connection.open_session()))
        idle_mb = server.rss_mb
        for name, session in sessions:
            stack.enter_context(Connection(server, name)).open_stream(session)
        streams_mb = server.rss_mb
    tell(report, "memory after start", "", f"{before_mb:.1f} MB")
    for what, mb in ((f"{SESSIONS} idle sessions", idle_mb), ("their streams open", streams_mb)):
        each_kb = (mb - before_mb) / SESSIONS * 1000
        tell(report, f"memory with {what}", "", f"{mb:.1f} MB, {each_kb:.0f} KB each")


def tell(report: Report, figure: str, stdio: str, http: str) -> None:
    """Add a row that has no goal."""
    report.table.add_row(figure, stdio, http, "", "")


def p99(times: Sequence[float]) -> float:
    """Return what 99 of 100 sorted times do not exceed."""
    return times[int(len(times) * 0.99)]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
