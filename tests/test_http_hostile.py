"""Whoever is on the other end of an HTTP connection: nothing it sends or does not send holds up or fools the server."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bridge import Bridge
from config import Config, HTTPConfig
from http_app import Door, Endpoint, Exchange, page
from http_clients import MAX_SESSIONS_OF_ONE, Clients, PerMinute
from http_server import bind, bind_unix, serving
from measures import Measures
from tests.brokers import Embedded
from tests.child import settings
from tests.fake_broker import FakeBroker
from tests.http_child import MODERN_META, TOKEN, HTTPChild, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")]

AUTHORIZED = f"authorization: Bearer {TOKEN}\r\n"
GOOD = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN_META}})
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
ROUTES = ["/mcp", "/healthz", "/readyz", "/nothing"]


@pytest.fixture(scope="module")
async def served(embedded: Embedded) -> AsyncIterator[HTTPChild]:
    async with HTTPChild(
        settings(embedded, MCP_RATE_LIMIT_PER_MINUTE="100000", MCP_CLIENT_RATE_LIMIT_PER_MINUTE="100000")
    ) as child:
        yield child


async def is_well(child: HTTPChild) -> bool:
    answer = await child.ask(body=GOOD.encode(), mcp_protocol_version="2026-07-28", mcp_method="tools/list")
    return answer.status == 200 and "Traceback" not in child.stderr


class TestOneRequestIsOne:
    """Nothing can be smuggled in behind or inside of a request."""

    @pytest.mark.parametrize(
        "headers",
        [
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 0\r\n",
            "content-length: 5\r\ncontent-length: 50\r\n",
            "content-length: 5, 50\r\n",
            "content-length: -1\r\n",
            "content-length: +5\r\n",
            "content-length: 0x5\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: xchunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
            "transfer-encoding : chunked\r\n",
            "content-length: 5\r\n folded: yes\r\n",
            "x-nul: a\0b\r\n",
            "host: evil.example\r\n",
            "no colon at all\r\n",
            ": empty name\r\n",
        ],
    )
    @pytest.mark.parametrize("path", ROUTES)
    async def test_what_two_readers_could_read_differently_is_refused_whole(
        self, served: HTTPChild, path: str, headers: str
    ) -> None:
        second = f"GET /healthz HTTP/1.1\r\nhost: localhost\r\n{AUTHORIZED}\r\n"
        answers = await served.raw(
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{AUTHORIZED}content-type: application/json\r\n{headers}\r\n"
            f"0\r\n\r\n{second}".encode()
        )

        assert len(answers) == 1
        assert answers[0].status in {400, 413, 421, 501}

    @pytest.mark.parametrize(
        "path",
        [
            "//mcp", "/mcp/", "/mcp/.", "/./mcp", "/healthz/../mcp", "/%6dcp", "/mcp%00", "/mcp%2f", "/MCP", "/mcp;x",
            "/", "*", "http://localhost/mcp", "http://evil.example/mcp", "/mcp#x", "/..%2fserver.py", "/.env",
            "/metrics", "/.well-known/oauth-protected-resource", "/sse", "/" + "a" * 20_000,
        ],
    )  # fmt: skip
    async def test_a_path_is_exactly_one_of_ours(self, served: HTTPChild, path: str) -> None:
        answer = await served.ask("GET", path)

        assert answer.status in {400, 404}
        assert "server.py" not in answer.body.decode()

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "CONNECT", "HEAD", "PROPFIND", "get", "X" * 1000])
    @pytest.mark.parametrize("path", ROUTES)
    async def test_methods_are_those_there_are(self, served: HTTPChild, method: str, path: str) -> None:
        answer = await served.ask(method, path)

        if method == "HEAD" and path.endswith("z"):
            assert answer.status == 200
            assert answer.body == b""
        else:
            assert answer.status in {400, 404, 405}

    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /mcp\r\n\r\n",
            b"\r\n" * 100_000,
            os.urandom(10_000),
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
            b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000,
            b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        ],
        ids=range(8),
    )
    async def test_what_is_no_request_is_refused_or_hung_up_on(self, served: HTTPChild, data: bytes) -> None:
        try:
            answers = await served.raw(data + b"\r\n\r\n")
        except ConnectionError:
            answers = []

        assert all(400 <= answer.status < 600 for answer in answers)
        assert await is_well(served)

    async def test_it_becomes_no_websocket(self, served: HTTPChild) -> None:
        headers: Any = {"connection": "Upgrade, close", "upgrade": "websocket", "sec_websocket_version": "13"}
        answer = await served.ask("GET", "/mcp", sec_websocket_key="x" * 22 + "==", **headers)

        assert answer.status in {400, 406}


class TestNoMessage:
    """Whatever is no message is answered at once, and with nothing of it."""

    CALL = b'{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"mqtt_publish","arguments":%s}}'

    @pytest.fixture(scope="class")
    async def session(self, served: HTTPChild) -> str:
        answer = await served.ask(body=json.dumps(HELLO).encode())
        return answer.headers["mcp-session-id"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"garbage",
            b"\xff\xfe",
            b"\xef\xbb\xbf" + GOOD.encode("utf-16"),
            b"[%s]" % GOOD.encode(),
            b'{"jsonrpc":"2.0","id":7}',
            b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}',
            CALL % (b"1.5", b"{}"),
            CALL % (b"null", b"{}"),
            CALL % (b"true", b"{}"),
            CALL % (b'{"a":1}', b"{}"),
            CALL % (b"9" * 5000, b"{}"),
            CALL % (b"7", b'{"topic":"a","payload":"\xff"}'),
            CALL % (b"7", b"[" * 50_000 + b"]" * 50_000),
        ],
    )
    @pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
    async def test_it_gets_400(self, served: HTTPChild, session: str, version: str, body: bytes) -> None:
        routed = {"mcp_method": "tools/call", "mcp_name": "mqtt_publish"} if version == "2026-07-28" else {}
        kept = {} if routed else {"mcp_session_id": session}
        answer = await served.ask(body=body, mcp_protocol_version=version, **routed, **kept)

        assert answer.status == 400
        error = json.loads(answer.body)
        assert error["id"] in {None, 7}
        assert error["error"]["code"] in {-32700, -32600, -32602}
        assert len(error["error"]["message"]) <= 200
        assert await is_well(served)

    async def test_half_a_surrogate_pair_is_answered(self, served: HTTPChild, session: str) -> None:
        call = {"name": "mqtt_publish", "arguments": {"topic": "a", "payload": "\ud800"}}
        body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": call}
        old = await served.ask(body=json.dumps(body).encode(), mcp_session_id=session)
        call["_meta"] = MODERN_META
        routed = {"mcp_method": "tools/call", "mcp_name": "mqtt_publish"}
        new = await served.ask(body=json.dumps(body).encode(), mcp_protocol_version="2026-07-28", **routed)

        assert (old.status, new.status) == (400, 200)
        assert json.loads(new.body)["result"]["isError"]

    @pytest.mark.parametrize("body", [{"method": "notifications/initialized"}, {"id": 7, "result": {}}])
    async def test_what_wants_no_answer_gets_202(self, served: HTTPChild, session: str, body: dict[str, Any]) -> None:
        body = {"jsonrpc": "2.0", **body}

        assert (await served.ask(body=json.dumps(body).encode(), mcp_session_id=session)).status == 202


class TestTooMuch:
    @pytest.mark.parametrize("path", ROUTES)
    async def test_a_body_that_is_too_large_is_refused(self, served: HTTPChild, path: str) -> None:
        declared = await served.raw(
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{AUTHORIZED}content-length: 999999999\r\n\r\n".encode()
        )
        assert declared[0].status == {"/mcp": 413, "/nothing": 404}.get(path, 405)

    async def test_a_body_that_grows_too_large_is_refused(self, served: HTTPChild) -> None:
        head = f"POST /mcp HTTP/1.1\r\nhost: localhost\r\n{AUTHORIZED}transfer-encoding: chunked\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head.encode())
        answer = asyncio.create_task(reader.read())
        with suppress(ConnectionError):
            while not answer.done():
                writer.write(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
                await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            assert (await answer)[:12] in {b"", b"HTTP/1.1 413"}
        assert await is_well(served)

    async def test_nobody_with_a_wrong_token_has_a_body_read(self, served: HTTPChild) -> None:
        head = "POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\nexpect: 100-continue\r\n"
        (answer,) = await served.raw(f"{head}content-length: 1000\r\n\r\n".encode())

        assert answer.status == 401

    @pytest.mark.parametrize("headers", [{}, {"mcp_protocol_version": "2025-06-18"}])
    async def test_one_client_may_have_so_many_sessions_and_leaves_room_for_others(
        self, embedded: Embedded, tmp_path: Path, headers: dict[str, str]
    ) -> None:
        tokens = tmp_path / "tokens"
        names = {"alice": "a" * 40, "bob": "b" * 40}
        tokens.write_text(
            "".join(f"{name} write {hashlib.sha256(token.encode()).hexdigest()}\n" for name, token in names.items())
        )
        tokens.chmod(0o600)
        environment = settings(embedded, MCP_TOKENS_FILE=str(tokens), MCP_CLIENT_RATE_LIMIT_PER_MINUTE="100000")
        async with HTTPChild(environment) as child:

            async def initialize(name: str = "alice") -> int:
                return (await child.ask(body=json.dumps(HELLO).encode(), token=names[name], **headers)).status

            one_by_one = [await initialize() for _ in range(MAX_SESSIONS_OF_ONE - 20)]
            at_once = await asyncio.gather(*(initialize() for _ in range(60)))

            assert one_by_one == [200] * (MAX_SESSIONS_OF_ONE - 20)
            assert sorted(at_once) == [200] * 20 + [429] * 40
            assert await initialize("bob") == 200

    async def test_connections_that_say_nothing_keep_nobody_out(self, served: HTTPChild) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(300)]
        try:
            assert await is_well(served)
        finally:
            for _, writer in silent:
                writer.close()

    def test_addresses_are_forgotten_before_they_fill_the_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("http_clients.MAX_KEYS", 100)
        limit = PerMinute(1)
        assert [limit.take(str(number)) for number in range(1000)] == [0] * 1000
        assert len(limit._buckets) == 100  # noqa: SLF001
        assert limit.take("999") > 0

    def test_there_is_room_again_when_it_was_promised(self) -> None:
        now = [0.0]
        limit = PerMinute(30, lambda: now[0])
        assert [limit.take("a") for _ in range(31)] == [0] * 30 + [2]
        now[0] += 2
        assert limit.take("a") == 0
        assert limit.take("a") == 2


@asynccontextmanager
async def door(endpoint: Endpoint, path: str = "/x") -> AsyncIterator[int]:
    """Serve one endpoint in this process and yield its port."""
    where = bind("127.0.0.1", 0)
    async with serving(Door(HTTPConfig(), {path: endpoint}, Measures()), where):
        yield where.getsockname()[1]


async def hung_up(port: int, *pieces: bytes, every_s: float = 0.0) -> bytes:
    """Send pieces until the server ends the connection, and return what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = asyncio.create_task(reader.read())
    try:
        async with asyncio.timeout(10):
            for piece in pieces:
                if not said.done():
                    writer.write(piece)
                    await asyncio.wait([said], timeout=every_s)
            return await said
    except ConnectionError:
        return b""
    finally:
        writer.close()


class TestTooSlow:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("http_server.HEADERS_TIMEOUT_S", 0.2)
        monkeypatch.setattr("http_server.SLOW_READER_S", 0.2)
        monkeypatch.setattr("http_clients.BODY_TIMEOUT_S", 0.2)

    @pytest.mark.parametrize(
        "pieces",
        [
            [],
            [b"GET /x HTTP/1.1\r\nhost: localhost\r\n"],
            [bytes([each]) for each in b"GET /x HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 100],
        ],
        ids=["silent", "stopped", "a byte at a time"],
    )
    async def test_who_does_not_finish_a_request_is_hung_up_on(self, pieces: list[bytes]) -> None:
        async with door(page(lambda: (200, {}))) as port:
            assert await hung_up(port, *pieces, every_s=0.02) == b""

    async def test_so_is_who_does_not_finish_a_second_one(self) -> None:
        async with door(page(lambda: (200, {}))) as port:
            good = b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n"
            said = await hung_up(port, good, *[bytes([each]) for each in good[:-2]], every_s=0.02)

        assert said.count(b"HTTP/1.1 200") == 1

    async def test_who_keeps_the_body_back_is_told_and_hung_up_on(self) -> None:
        bridge = Bridge(Config(), FakeBroker())
        clients = Clients(HTTPConfig(), "write", bridge.server, bridge.audit, bridge.measures)
        async with clients.serving(), door(clients, "/mcp") as port:
            said = await hung_up(port, b"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")

        assert said.startswith(b"HTTP/1.1 408")

    async def test_who_does_not_read_the_answer_is_hung_up_on(self) -> None:
        ended = asyncio.Event()

        async def disconnected(exchange: Exchange) -> None:
            while (await exchange.receive())["type"] != "http.disconnect":
                pass

        async def endless(exchange: Exchange) -> None:
            gone = asyncio.create_task(disconnected(exchange))
            await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
            while not gone.done():
                await exchange.send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
                await asyncio.sleep(0)
            await exchange.finish()
            ended.set()

        async with door(endless) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
            async with asyncio.timeout(10):
                await ended.wait()
            writer.close()


class TestSockets:
    def test_a_socket_that_is_served_is_not_taken_away(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        first = bind_unix(path)
        first.listen()
        with pytest.raises(Exception, match="served by another process"):
            bind_unix(path)
        first.close()
        bind_unix(path).close()

    def test_what_is_no_socket_is_not_taken_away(self, tmp_path: Path) -> None:
        path = tmp_path / "s"
        path.write_text("precious")
        with pytest.raises(Exception, match="is no socket"):
            bind_unix(path)
        assert path.read_text() == "precious"

    def test_a_host_that_is_none_is_told(self) -> None:
        with pytest.raises(Exception, match="cannot be listened on"):
            bind("no-such-host.invalid", 0)


@pytest.mark.parametrize("spawn", [1, 50])
async def test_a_client_that_goes_away_leaves_nothing_under_way(spawn: int) -> None:
    bridge = Bridge(Config(), FakeBroker())
    clients = Clients(HTTPConfig(), "write", bridge.server, bridge.audit, bridge.measures)
    call: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "mqtt_wait",
            "arguments": {"topic_filter": "never", "timeout_s": 60},
            "_meta": MODERN_META,
        },
    }
    body = json.dumps(call).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        "mcp-protocol-version: 2026-07-28\r\n"
        "mcp-method: tools/call\r\nmcp-name: mqtt_wait\r\naccept: application/json, text/event-stream\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    async with clients.serving(), door(clients, "/mcp") as port:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(spawn)]
        for _, writer in connections:
            writer.write(head.encode() + body)
        await until(lambda: clients.streams == spawn)
        for _, writer in connections:
            writer.close()
        await until(lambda: clients.streams == 0)
