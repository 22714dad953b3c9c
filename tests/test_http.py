"""The server over HTTP: both protocol eras for real clients, and who may come in, from where, and how often."""

import asyncio
import hashlib
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme

from tests.assistant import ERAS, Era
from tests.brokers import Embedded
from tests.child import COMMAND, settings
from tests.http_child import MODERN_META, TOKEN, HTTPChild, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="signals and modes of POSIX")]

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN_META}}
MODERN_HEADERS = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/list"}
WRONG = "w" * 40


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Era:
    chosen: Era = request.param
    return chosen


@pytest.fixture(scope="module")
async def served(embedded: Embedded) -> AsyncIterator[HTTPChild]:
    """A server that the tests of a module share; what they refuse is refused to them alone."""
    async with HTTPChild(
        settings(
            embedded,
            MCP_RATE_LIMIT_PER_MINUTE="100000",
            MCP_CLIENT_RATE_LIMIT_PER_MINUTE="100000",
            MCP_ALLOWED_ORIGINS="https://app.example",
            MCP_ALLOWED_HOSTS="mcp.example,other.example:8443",
        )
    ) as child:
        yield child


def tokens(path: Path, *clients: tuple[str, str, str]) -> str:
    """Write a file of tokens: name, access mode and token of each."""
    lines = [f"{name} {access} {hashlib.sha256(token.encode()).hexdigest()}\n" for name, access, token in clients]
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(lines))
    fresh.chmod(0o600)
    fresh.replace(path)
    return str(path)


async def listed(child: HTTPChild, token: str = TOKEN, **headers: str) -> Any:
    return await child.ask(body=json.dumps(LIST).encode(), token=token, **(MODERN_HEADERS | headers))


class TestServing:
    async def test_a_client_works_as_over_stdio(self, served: HTTPChild, era: Era) -> None:
        async with served.assistant(era) as me:
            handle = await me.call("mqtt_subscribe", topic_filter=f"http/{era}")
            await me.call("mqtt_publish", topic=f"http/{era}", payload="22")
            heard = await me.call("mqtt_wait", topic_filter=f"http/{era}", timeout_s=0.1)
            read = await me.call("mqtt_messages", subscription_id=handle["subscription_id"])
            status = await me.call("server_status")

        assert heard["matched"] is False
        assert [each["payload"] for each in read["messages"]] == [22]
        assert status["server"]["transport"] == "http"

    async def test_it_listens_on_a_unix_socket_that_only_its_owner_can_use(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        path = tmp_path / "mcp.sock"
        async with HTTPChild(settings(embedded, MCP_UNIX_SOCKET=str(path))) as child:
            transport = httpx2.AsyncHTTPTransport(uds=str(path))
            async with httpx2.AsyncClient(transport=transport) as http:
                answer = await http.get("http://localhost/healthz")

            assert answer.json() == {"alive": True}
            assert path.stat().st_mode & 0o777 == 0o600
            child.signal(signal.SIGKILL)
            await child.ended()
        async with HTTPChild(settings(embedded, MCP_UNIX_SOCKET=str(path))):  # in place of what the killed one left
            pass

    async def test_it_serves_tls_of_1_2_at_least(self, embedded: Embedded, tmp_path: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        (tmp_path / "key.pem").chmod(0o600)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        files = {"MCP_TLS_CERT": str(tmp_path / "cert.pem"), "MCP_TLS_KEY": str(tmp_path / "key.pem")}
        async with HTTPChild(settings(embedded, **files), trust) as child:
            assert child.url.startswith("https://")
            async with child.http() as http:
                answer = await http.get(child.url.replace("/mcp", "/healthz"))
            assert answer.headers["strict-transport-security"]
            async with child.assistant() as me:
                assert "mqtt_publish" in await me.tools()
            renewed = authority.issue_cert("127.0.0.1", "localhost")
            renewed.private_key_pem.write_to_path(tmp_path / "key.pem")
            (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in renewed.cert_chain_pems))
            await child.said("MCP_TLS_CERT.* changed|MCP_TLS_KEY.* changed")
            _, writer = await asyncio.open_connection("127.0.0.1", child.port, ssl=trust)
            shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            assert shown == ssl.PEM_cert_to_DER_cert(renewed.cert_chain_pems[0].bytes().decode())
            old = ssl.create_default_context()
            authority.configure_trust(old)
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.open_connection("127.0.0.1", child.port, ssl=old)

    async def test_a_port_that_is_taken_stops_the_start_with_a_sentence(self, served: HTTPChild) -> None:
        with pytest.raises(AssertionError, match="cannot be listened on"):
            async with HTTPChild(settings(MCP_PORT=str(served.port))):
                pass

    async def test_it_ends_within_three_seconds_with_streams_open(self, embedded: Embedded, era: Era) -> None:
        async with HTTPChild(settings(embedded)) as child, child.http() as http:
            async with child.assistant(era) as me:
                waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="never/comes", timeout_s=60))
                await asyncio.sleep(0)
                async with http.stream("GET", child.url.replace("/mcp", "/healthz")):
                    await until(lambda: child.stderr.count("POST /mcp") > 0)
                    child.signal(signal.SIGTERM)
                    assert await child.ended() == 0
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        assert "Traceback" not in child.stderr


class TestWhoMayComeIn:
    async def test_a_good_token_comes_in_and_no_other(self, served: HTTPChild) -> None:
        assert (await listed(served)).status == 200
        for token in ("", WRONG, TOKEN[:-1], f"{TOKEN}t"):
            answer = await listed(served, token)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert json.loads(answer.body)["error"]["message"] == "Unauthorized"

    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": TOKEN},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer"},
            {"authorization": f"Bearer {TOKEN} {TOKEN}"},
            {"authorization": "", "x_api_key": TOKEN},
            {"authorization": "", "cookie": f"token={TOKEN}"},
        ],
    )
    async def test_a_token_elsewhere_does_not_count(self, served: HTTPChild, headers: dict[str, str]) -> None:
        assert (await listed(served, **headers)).status == 401

    @pytest.mark.parametrize("name", ["token", "access_token", "authorization"])
    async def test_a_token_in_the_query_does_not_count_and_is_not_logged(self, served: HTTPChild, name: str) -> None:
        answer = await served.ask(path=f"/mcp?{name}={TOKEN}", token="")

        assert answer.status == 401
        assert TOKEN not in served.stderr

    async def test_each_client_sees_the_tools_of_its_own_mode_and_the_record_has_its_name(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        file = tokens(tmp_path / "tokens", ("viewer", "read", "r" * 40), ("line-3", "write", "w" * 40))
        record = tmp_path / "audit.jsonl"
        async with HTTPChild(settings(embedded, MCP_TOKENS_FILE=file, AUDIT_FILE=str(record))) as child:
            async with child.assistant(token="r" * 40) as me:
                assert "mqtt_publish" not in await me.tools()
                assert (await me.call("server_status"))["policy"]["access"] == "read"
            async with child.assistant(token="w" * 40) as me:
                await me.call("mqtt_publish", topic="a", payload="1")
        lines = [json.loads(line) for line in record.read_text().splitlines()]
        (started,) = [each for each in lines if each["event"] == "started"]
        (act,) = [each for each in lines if each["event"] == "act"]

        assert started["clients"] == {"viewer": "read", "line-3": "write"}
        assert (act["principal"], act["transport"], act["address"]) == ("line-3", "http", "127.0.0.1")
        assert f"[{act['correlation']}]" in child.stderr

    async def test_a_session_belongs_to_the_client_that_opened_it(self, embedded: Embedded, tmp_path: Path) -> None:
        file = tokens(tmp_path / "tokens", ("one", "write", "1" * 40), ("two", "write", "2" * 40))
        hello = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "1"},
            },
        }
        ping = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"}).encode()
        async with HTTPChild(settings(embedded, MCP_TOKENS_FILE=file)) as child:
            opened = await child.ask(body=json.dumps(hello).encode(), token="1" * 40)
            session = opened.headers["mcp-session-id"]

            assert (await child.ask(body=ping, token="2" * 40, mcp_session_id=session)).status == 404
            assert (await child.ask(body=ping, token="1" * 40, mcp_session_id=session)).status == 200
            assert session not in child.stderr

    async def test_a_client_does_not_see_or_end_what_another_collects(self, embedded: Embedded, tmp_path: Path) -> None:
        file = tokens(tmp_path / "tokens", ("one", "write", "1" * 40), ("two", "write", "2" * 40))
        async with HTTPChild(settings(embedded, MCP_TOKENS_FILE=file)) as child:
            async with child.assistant(token="1" * 40) as one, child.assistant(token="2" * 40) as two:
                handle = (await one.call("mqtt_subscribe", topic_filter="a/#"))["subscription_id"]

                assert (await two.call("server_status"))["subscriptions"] == []
                assert handle not in await two.fail("mqtt_unsubscribe", subscription_id="s9")
                assert "no subscription" in await two.fail("mqtt_unsubscribe", subscription_id=handle)
                assert "no subscription" in await two.fail("mqtt_messages", subscription_id=handle)
                assert await one.call("mqtt_unsubscribe", subscription_id=handle)

    async def test_the_file_of_tokens_is_read_again_when_it_changes(
        self, embedded: Embedded, tmp_path: Path, era: Era
    ) -> None:
        path = tmp_path / "tokens"
        file = tokens(path, ("old", "write", "o" * 40))
        async with HTTPChild(settings(embedded, MCP_TOKENS_FILE=file)) as child:
            async with child.assistant(era, token="o" * 40) as me:
                waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="never/comes", timeout_s=60))
                await until(lambda: "POST /mcp" in child.stderr)
                tokens(path, ("new", "read", "n" * 40))
                child.signal(signal.SIGHUP)
                await child.said("MCP_TOKENS_FILE changed")
                with pytest.raises(BaseException):  # noqa: B017, PT011 - what was under way for it has ended
                    await asyncio.wait_for(waiting, 10)

                assert (await listed(child, "o" * 40)).status == 401
                assert (await listed(child, "n" * 40)).status == 200
                path.write_text("nonsense\n")
                child.signal(signal.SIGHUP)
                await child.said("line 1 is not a name")
                assert (await listed(child, "n" * 40)).status == 200
                child.process.kill()

    async def test_a_new_client_comes_in_without_a_restart(self, embedded: Embedded, tmp_path: Path) -> None:
        file = tokens(tmp_path / "tokens", ("old", "write", "o" * 40))
        command = [*COMMAND, "token", "new", "new", "--access", "admin", "--file", file]
        async with HTTPChild(settings(embedded, MCP_TOKENS_FILE=file)) as child:
            made = await asyncio.create_subprocess_exec(*command, env=settings(), stdout=asyncio.subprocess.PIPE)
            token, _ = await made.communicate()
            await child.said("MCP_TOKENS_FILE changed")
            async with child.assistant(token=token.decode().strip()) as me:
                assert "lot_remove" in await me.tools()
            assert (await listed(child, "o" * 40)).status == 200

    async def test_the_only_token_can_be_replaced_without_a_restart(self, embedded: Embedded, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.touch(0o600)
        file.write_text("1" * 40)
        async with HTTPChild(settings(embedded, MCP_TOKEN="", MCP_TOKEN_FILE=str(file))) as child:
            assert (await listed(child, "1" * 40)).status == 200
            file.write_text("2" * 40)
            await child.said("MCP_TOKEN changed")
            assert (await listed(child, "1" * 40)).status == 401
            assert (await listed(child, "2" * 40)).status == 200

    async def test_wrong_tokens_are_counted_and_slowed_and_good_ones_are_not(self, embedded: Embedded) -> None:
        async with HTTPChild(settings(embedded, MCP_RATE_LIMIT_PER_MINUTE="5")) as child:
            answers = await asyncio.gather(*(listed(child, WRONG) for _ in range(8)))
            statuses = sorted(answer.status for answer in answers)
            refused = next(answer for answer in answers if answer.status == 429)

            assert statuses == [401] * 5 + [429] * 3
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert (await listed(child)).status == 200
            assert (await child.ask("GET", "/healthz", token="")).status == 200

    async def test_a_client_has_so_many_requests_a_minute(self, embedded: Embedded) -> None:
        async with HTTPChild(settings(embedded, MCP_CLIENT_RATE_LIMIT_PER_MINUTE="4")) as child:
            answers = [await listed(child) for _ in range(6)]

            assert [answer.status for answer in answers] == [200] * 4 + [429] * 2
            assert 1 <= int(answers[-1].headers["retry-after"]) <= 15

    @pytest.mark.parametrize(
        ("trusted", "forwarded", "address"),
        [
            ("", "198.51.100.7", "127.0.0.1"),
            ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("127.0.0.0/8", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
            ("127.0.0.1,198.51.100.0/24", "203.0.113.9, 198.51.100.7", "203.0.113.9"),
            ("127.0.0.1", "nonsense", "127.0.0.1"),
            ("127.0.0.1", "203.0.113.9, nonsense", "127.0.0.1"),
            ("127.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
            ("127.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ],
    )
    async def test_what_a_proxy_says_counts_when_it_is_trusted(
        self, embedded: Embedded, trusted: str, forwarded: str, address: str
    ) -> None:
        async with HTTPChild(settings(embedded, MCP_TRUSTED_PROXIES=trusted)) as child:
            await child.ask("GET", "/healthz", x_forwarded_for=forwarded)
            await child.said(rf"GET /healthz 200, .* for {address} ")


class TestBrowsers:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("LOCALHOST:1", 200),
            ("[::1]:8765", 200),
            ("mcp.example", 200),
            ("mcp.example:8765", 200),
            ("other.example:8443", 200),
            ("other.example", 421),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("evil.example:8765", 421),
            ("198.51.100.7", 421),
            ("localhost:1@evil.example", 421),
            ("localhost,evil.example", 421),
            ("", 400),  # HTTP/1.1 has to have one
        ],
    )
    @pytest.mark.parametrize("path", ["/mcp", "/healthz", "/readyz", "/nothing"])
    async def test_the_host_is_checked_on_every_route(
        self, served: HTTPChild, path: str, host: str, status: int
    ) -> None:
        method = "POST" if path == "/mcp" else "GET"
        answer = await served.ask(method, path, json.dumps(LIST).encode(), host=host, **MODERN_HEADERS)

        assert answer.status == (404 if status == 200 and path == "/nothing" else status)

    @pytest.mark.parametrize(
        ("origin", "status"),
        [
            ("https://app.example", 200),
            ("HTTPS://APP.EXAMPLE", 200),
            ("http://127.0.0.1:{port}", 200),  # its own pages
            ("https://app.example:444", 403),
            ("http://app.example", 403),
            ("https://app.example.evil.example", 403),
            ("http://localhost:3000", 403),
            ("null", 403),
        ],
    )
    @pytest.mark.parametrize("path", ["/mcp", "/healthz", "/readyz", "/nothing"])
    async def test_the_origin_is_checked_on_every_route(
        self, served: HTTPChild, path: str, origin: str, status: int
    ) -> None:
        method = "POST" if path == "/mcp" else "GET"
        shown = origin.format(port=served.port)
        answer = await served.ask(method, path, json.dumps(LIST).encode(), origin=shown, **MODERN_HEADERS)

        assert answer.status == (404 if status == 200 and path == "/nothing" else status)
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == ("https://app.example" if shown.lower() == "https://app.example" else None)

    async def test_a_preflight_is_answered_for_allowed_origins_only(self, served: HTTPChild) -> None:
        asked: Any = {
            "access_control_request_method": "POST",
            "access_control_request_headers": "authorization, mcp-session-id, x-evil",
        }
        good = await served.ask("OPTIONS", token="", **asked, origin="https://app.example")
        bad = await served.ask("OPTIONS", token="", **asked, origin="https://evil.example")

        assert good.status == 204
        assert good.headers["access-control-allow-headers"] == "authorization, mcp-session-id"
        assert good.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in good.headers
        assert bad.status == 403
        assert "access-control-allow-origin" not in bad.headers

    @pytest.mark.parametrize("path", ["/mcp", "/healthz", "/nothing"])
    async def test_every_answer_has_the_headers_that_restrain_browsers(self, served: HTTPChild, path: str) -> None:
        headers = (await served.ask("GET", path)).headers

        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b'"text"',
            b'{"jsonrpc": "2.0"}',
            b'{"jsonrpc": "2.0", "id": {"x": "hunter2-secret"}, "method": 7}',
            b'{"jsonrpc": "1.0", "id": 1, "method": "hunter2-secret"}',
            b"\xff\xfe",
            b"[" * 100_000,
        ],
    )
    @pytest.mark.parametrize("headers", [{}, MODERN_HEADERS])
    async def test_an_invalid_request_gets_400_and_nothing_of_it_back(
        self, served: HTTPChild, body: bytes, headers: dict[str, str]
    ) -> None:
        answer = await served.ask(body=body, **headers)

        assert answer.status == 400
        message = json.loads(answer.body)["error"]["message"]
        assert "hunter2" not in message
        assert "pydantic" not in answer.body.decode().lower()
        assert len(message) <= 200


class TestHealth:
    async def test_it_is_ready_when_the_broker_is_there_and_says_why_when_not(self) -> None:
        with Embedded() as broker:
            async with HTTPChild(settings(broker)) as child, child.http("") as http:
                url = child.url.replace("/mcp", "/readyz")
                await child.said("connected to")
                assert (await http.get(url)).json() == {"ready": True}
                broker.stop()
                await child.said("was lost")
                answer = await http.get(url)
                alive = await http.get(child.url.replace("/mcp", "/healthz"))
                broker.start()

        assert answer.status_code == 503
        assert "lost" in answer.json()["reason"] or "refused" in answer.json()["reason"]
        assert alive.status_code == 200

    async def test_the_access_log_is_structured_and_names_the_call(self, embedded: Embedded, tmp_path: Path) -> None:
        record = tmp_path / "audit.jsonl"
        environment = settings(embedded, LOG_FORMAT="json", AUDIT_FILE=str(record))
        async with HTTPChild(environment) as child:
            async with child.assistant() as me:
                await me.call("mqtt_publish", topic="a", payload="1")
            (act,) = [each for each in map(json.loads, record.read_text().splitlines()) if each["event"] == "act"]
            await child.said(act["correlation"])
        lines = [json.loads(line) for line in child.stderr.splitlines()]
        (line,) = [each for each in lines if each.get("correlation") == act["correlation"] and "status" in each]

        assert (line["method"], line["route"], line["status"]) == ("POST", "/mcp", 200)
        assert (line["address"], line["client"]) == ("127.0.0.1", "MCP_TOKEN")
        assert line["bytes"] > 100
        assert line["duration_ms"] > 0
