"""The server as its clients start it: a child process, two pipes, and nothing on stdout but the protocol."""

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client.stdio import StdioServerParameters
from mcp.types import INVALID_REQUEST, PARSE_ERROR

from tests.assistant import ERAS, Era, assistant
from tests.brokers import Mosquitto, Watcher, publish
from tests.child import COMMAND, START_TIMEOUT_S, Child, settings
from tests.documentation import ROOT
from tests.wire import Wire, until

pytestmark = pytest.mark.anyio

Made = Callable[..., Mosquitto]

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> Era:
    chosen: Era = request.param
    return chosen


@pytest.fixture(scope="module")
async def child() -> AsyncIterator[Child]:
    """A server that the tests of a module share; what they send it does it no harm."""
    async with Child(settings()) as child:
        yield child


@asynccontextmanager
async def client(environment: dict[str, str], era: Era) -> AsyncIterator[Any]:
    """Start the server by the official client."""
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment)
    async with assistant(parameters, era) as me:
        yield me


class TestStart:
    @pytest.mark.parametrize("broker_is", ["gone", "silent"])
    async def test_tools_are_listed_at_once_whatever_the_broker_does(
        self, mosquitto: Mosquitto, era: Era, broker_is: str
    ) -> None:
        async with Wire(mosquitto) as wire:
            if broker_is == "gone":
                wire.refuse()
            else:
                wire.swallow()
            started = time.monotonic()
            async with client(settings(wire, MQTT_CONNECT_TIMEOUT_S="60"), era) as me:
                assert "mqtt_publish" in await me.tools()
                assert time.monotonic() - started < START_TIMEOUT_S
                assert (await me.call("server_status"))["connection"]["connected"] is False

    def test_a_client_of_2026_needs_no_handshake(self) -> None:
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": MODERN}}
        with subprocess.Popen(
            COMMAND, env=settings(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            process.stdin.close()

        assert len(answer["result"]["tools"]) == 15
        assert process.returncode == 0

    def test_every_bad_setting_is_named_and_stops_the_start(self) -> None:
        environment = settings(MQTT_PORT="99999", MQTT_PROTOCOL="4", LOG_LEVEL="LOUD", MQTT_PASSWORD_FILE="/no/such")
        ended = run(environment)

        assert ended.returncode == 2
        assert ended.stdout == b""
        for name in ("MQTT_PORT='99999'", "MQTT_PROTOCOL='4'", "LOG_LEVEL='LOUD'", "MQTT_PASSWORD_FILE='/no/such'"):
            assert name in ended.stderr.decode()
        assert b"Traceback" not in ended.stderr

    async def test_warnings_about_settings_are_told_and_do_not_stop_the_start(self) -> None:
        async with Child(settings(MQTT_USERNAME="me", MQTT_TLS_INSECURE="true")) as child:
            status = await child.call("server_status")

            assert any("did you mean MQTT_USER?" in advice for advice in status["advice"])
            assert "did you mean MQTT_USER?" in child.stderr


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--help"], b"usage: server.py"),
            (["client-config", "--help"], b"claude-desktop"),
            (["--version"], b"coreflux-mcp 0."),
        ],
    )
    def test_help_and_version_are_printed(self, arguments: list[str], says: bytes) -> None:
        ended = run(settings(), arguments)

        assert ended.returncode == 0
        assert says in ended.stdout
        assert ended.stderr == b""

    @pytest.mark.parametrize("arguments", [["fly"], ["client-config", "notepad"]])
    def test_what_is_not_known_is_an_error(self, arguments: list[str]) -> None:
        ended = run(settings(), arguments)

        assert ended.returncode == 2
        assert ended.stdout == b""
        assert b"usage: server.py" in ended.stderr


class TestLog:
    async def test_nothing_but_protocol_is_on_stdout_whatever_goes_wrong(
        self, make_mosquitto: Made, tmp_path: Path
    ) -> None:
        """The child runs with Python's development mode, and the handler of one tool has a bug."""
        broker = make_mosquitto()
        script = tmp_path / "broken.py"
        script.write_text(
            "import sys, threading, warnings\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "import mqtt_client, server\n"
            "mqtt_client.MqttClient.probe = lambda self: print('print') or warnings.warn('warning') or 1 / 0\n"
            f"sys.exit(server.main(['--env-file', {os.devnull!r}]))\n"
        )
        environment = settings(broker, LOG_LEVEL="DEBUG", PYTHONDEVMODE="1", PYTHONUNBUFFERED="1")
        async with Child(environment, [sys.executable, str(script)]) as child:
            await child.connected()
            answer = (await child.start_call("server_status", check=True))["result"]
            assert answer["isError"]
            assert answer["content"][0]["text"] == "Error executing tool server_status"
            for bad in (
                {"topic": "a/#"},
                {"retian": True},
                {"qos": 7},
                {"topic": "t", "payload": "{", "encoding": "json"},
            ):
                assert (await child.start_call("mqtt_publish", **bad))["result"]["isError"]
            assert "no_such_tool" in json.dumps(await child.start_call("no_such_tool"))
            child.write(b"no JSON\n\xff\xfe\n[]\n{}\n\n")
            child.write(b'{"jsonrpc":"2.0","id":99,"method":"\\ud800"}\n')
            broker.kill()
            await until(lambda: "was lost" in child.stderr)
            assert (await child.start_call("mqtt_publish", topic="t", payload="x"))["result"]["isError"]
            child.close_stdin()

            assert await child.ended() == 0
            assert "ZeroDivisionError" in child.stderr

    async def test_no_secret_is_in_the_log(self, make_mosquitto: Made, tmp_path: Path) -> None:
        broker = make_mosquitto(users={"operator": "right"})
        log = tmp_path / "log"
        secret = "Wrong-Secret-9/+ä"
        for given in (
            {"MQTT_USER": "operator", "MQTT_PASSWORD": secret},
            {"MQTT_BROKER": f"mqtt://operator:Wrong-Secret-9%2F+%C3%A4@{broker.host}:{broker.port}"},
        ):
            environment = settings(broker, LOG_LEVEL="DEBUG", LOG_FILE=str(log), **given)
            async with Child(environment) as child:
                await until(lambda: "refused the connection" in child.stderr)
                status = json.dumps(await child.call("server_status", check=True))
                child.close_stdin()
                assert await child.ended() == 0

                for text in (status, child.stderr, log.read_text(), *map(bytes.decode, child.lines)):
                    assert not re.search(r"Wrong-Secret|9/\+|9%2F", text)

    async def test_the_log_goes_to_a_file_that_only_the_owner_reads(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.touch(mode=0o666)
        async with Child(settings(LOG_FILE=str(log))) as child:
            await until(lambda: "nothing listens there" in log.read_text())
            child.close_stdin()

            assert await child.ended() == 0
            assert log.read_text() == child.stderr
        assert log.stat().st_mode & 0o777 == 0o600

    async def test_json_is_one_object_a_line(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        async with Child(settings(LOG_FORMAT="json", LOG_LEVEL="DEBUG", LOG_FILE=str(log))) as child:
            await until(lambda: "nothing listens there" in child.stderr)
            child.close_stdin()
            assert await child.ended() == 0

            entries = [json.loads(line) for line in child.stderr.splitlines()]
        assert log.read_text() == child.stderr
        assert {"time", "level", "logger", "message"} <= set(entries[0])
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"]) for entry in entries)

    async def test_none_is_silence(self, tmp_path: Path) -> None:
        log = tmp_path / "log"
        async with Child(settings(LOG_LEVEL="NONE", LOG_FILE=str(log))) as child:
            assert (await child.start_call("mqtt_publish", topic="t", payload="x"))["result"]["isError"]
            child.close_stdin()

            assert await child.ended() == 0
            assert child.stderr == ""
        assert not log.exists()

    async def test_a_log_file_that_cannot_be_written_is_told_at_the_start(self, tmp_path: Path) -> None:
        ended = run(settings(LOG_FILE=str(tmp_path / "no" / "log")))

        assert ended.returncode == 2
        assert ended.stdout == b""
        assert b"LOG_FILE: " in ended.stderr
        assert b"Traceback" not in ended.stderr


class TestEnd:
    @pytest.mark.parametrize(
        ("how", "doing"), [("stdin", "nothing"), ("stdin", "waiting"), ("SIGTERM", "waiting"), ("SIGINT", "waiting")]
    )
    async def test_every_end_is_quick_and_says_goodbye(self, make_mosquitto: Made, how: str, doing: str) -> None:
        broker = make_mosquitto()
        async with Child(settings(broker, MQTT_CLIENT_ID="leaving")) as child:
            await child.connected()
            await child.call("mqtt_subscribe", topic_filter="#")
            if doing == "waiting":
                for number in range(5):
                    child.start_call("mqtt_wait", topic_filter=f"never/{number}", timeout_s=300)
                await until(lambda: broker.log.count("never/4") > 0)

            self.end(child, how)

            assert await child.ended() == 0
            assert "Traceback" not in child.stderr
        await until(lambda: "Received DISCONNECT from leaving" in broker.log)

    @pytest.mark.parametrize(
        ("broker_is", "how"),
        [
            ("refusing", "SIGTERM"),
            ("silent", "SIGINT"),
            ("frozen", "SIGTERM"),
            ("frozen", "stdout"),
        ],
    )
    async def test_a_broker_in_trouble_holds_up_no_end(self, make_mosquitto: Made, broker_is: str, how: str) -> None:
        broker = make_mosquitto()
        async with Wire(broker) as wire:
            if broker_is == "refusing":
                wire.refuse()
            if broker_is == "silent":
                wire.swallow()
            async with Child(settings(wire)) as child:
                if broker_is == "frozen":
                    await child.connected()
                    broker.freeze()
                for number in range(3):
                    child.start_call("mqtt_read", topic_filter=f"never/{number}", timeout_s=300)
                await until(lambda: wire.connections or broker_is == "refusing")

                self.end(child, how)

                assert await child.ended() == 0

    @pytest.mark.parametrize("traffic", [False, True])
    async def test_a_client_that_does_not_read_any_more_ends_the_server(
        self, make_mosquitto: Made, traffic: bool
    ) -> None:
        broker = make_mosquitto()
        async with Child(settings(broker, MQTT_CLIENT_ID="orphan")) as child:
            await child.connected()

            child.close_stdout()
            if traffic:
                child.start_call("server_status")

            assert await child.ended() == 0
            assert "Traceback" not in child.stderr
        await until(lambda: "Received DISCONNECT from orphan" in broker.log)

    async def test_the_log_gone_is_no_end(self, mosquitto: Mosquitto) -> None:
        """A client may close what it does not want to read."""
        async with Child(settings(mosquitto, LOG_LEVEL="DEBUG")) as child:
            await child.connected()
            child._process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined] # noqa: SLF001

            for _ in range(3):
                await child.call("mqtt_publish", topic="t", payload="x")
            child.close_stdin()
            assert await child.ended() == 0

    @staticmethod
    def end(child: Child, how: str) -> None:
        if how == "stdin":
            child.close_stdin()
        elif how == "stdout":
            child.close_stdout()
        else:
            child.signal(signal.Signals[how])


class TestNoMessage:
    """What the SDK drops without a word, so that its client would wait for ever."""

    HALF = b'{"topic":"a","payload":"\\ud800"}'
    CALL = b'{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"mqtt_publish","arguments":%s}}'

    @pytest.mark.parametrize(
        ("line", "id_", "code", "says"),
        [
            (b"garbage", None, PARSE_ERROR, "line 1 column 1"),
            (b'{"jsonrpc":"2.0","id":7007,"method":"ping"', None, PARSE_ERROR, "EOF"),
            (b"\xff\xfe\x00", None, PARSE_ERROR, "Parse error"),
            (b"[" * 100_000, None, PARSE_ERROR, "recursion"),
            (CALL % (b"7007", HALF), 7007, PARSE_ERROR, "surrogate"),
            (CALL % (b'"seven"', HALF), "seven", PARSE_ERROR, "surrogate"),
            (CALL % (b'"\\udc00"', b"{}"), None, PARSE_ERROR, "surrogate"),
            (CALL % (b"7007", b'{"topic":"a","payload":"\xff"}'), 7007, PARSE_ERROR, "unicode"),
            (CALL % (b"7007", b"[" * 300 + b"]" * 300), 7007, PARSE_ERROR, "recursion"),
            (CALL % (b"9" * 5000, b"{}"), None, PARSE_ERROR, "number out of range"),
            (b"\xef\xbb\xbf" + CALL % (b"7007", b"{}"), 7007, PARSE_ERROR, "line 1 column 1"),
            (CALL % (b"1.5", b"{}"), None, INVALID_REQUEST, "an id that is a string or an integer"),
            (CALL % (b"null", b"{}"), None, INVALID_REQUEST, "an id that is a string or an integer"),
            (CALL % (b"true", b"{}"), None, INVALID_REQUEST, "an id that is a string or an integer"),
            (CALL % (b'{"a":1}', b"{}"), None, INVALID_REQUEST, "an id that is a string or an integer"),
            (b'{"jsonrpc":"2.0","id":7007}', 7007, INVALID_REQUEST, "a method"),
            (b'{"jsonrpc":"2.0","id":7007,"method":"ping","params":[1]}', 7007, INVALID_REQUEST, "params"),
            (b'{"jsonrpc":"1.0","id":7007,"method":"ping"}', 7007, INVALID_REQUEST, "2.0"),
            (b'{"jsonrpc":"2.0","method":1}', None, INVALID_REQUEST, "a method"),
            (b"null", None, INVALID_REQUEST, "JSON-RPC"),
            (b"[]", None, INVALID_REQUEST, "a line of its own"),
            (b"[1]", None, INVALID_REQUEST, "a line of its own"),
            (b'[{"jsonrpc":"2.0","id":7007,"method":"ping"}]', 7007, INVALID_REQUEST, "a line of its own"),
        ],
    )
    async def test_it_is_answered_with_the_id_where_it_has_one(
        self, child: Child, line: bytes, id_: str | int | None, code: int, says: str
    ) -> None:
        (answer,) = await answers(child, line)

        assert answer["id"] == id_
        assert answer["error"]["code"] == code
        assert says in answer["error"]["message"]
        assert len(answer["error"]["message"]) < 200

    async def test_each_request_of_a_batch_is_answered(self, child: Child) -> None:
        batch = b'[{"jsonrpc":"2.0","id":7007,"method":"ping"},{"jsonrpc":"2.0","method":"x"},1,{"id":"eight"}]'

        assert [each["id"] for each in await answers(child, batch)] == [7007, "eight"]

    @pytest.mark.parametrize(
        "line",
        [
            b"",
            b"  ",
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"reason":"\\ud800"}}',
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"id":1.5}}',
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":[1]}',
            b'{"jsonrpc":"2.0","method":"unheard of"}',
            b'{"jsonrpc":"2.0","id":7007,"result":{"half":"\\ud800"}}',
            b'{"jsonrpc":"2.0","id":7007.5,"result":{}}',
            b'{"jsonrpc":"2.0","id":7007,"error":"none"}',
            b'[{"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"2.0","id":7007,"result":{}}]',
        ],
    )
    async def test_what_wants_no_answer_gets_none(self, child: Child, line: bytes) -> None:
        assert await answers(child, line) == []

    async def test_it_is_logged_without_its_content_and_a_flood_does_not_fill_the_disk(self) -> None:
        async with Child(settings()) as child:
            got = await answers(child, b"\n".join([b"hunter2-secret"] * 5000 + [self.CALL % (b"hunter2.5", b"{}")]))

            assert len(got) == 5001
            assert child.stderr.count("is no message of MCP") == 1
            assert "hunter2" not in child.stderr

    async def test_a_line_without_end_is_answered_and_leaves_the_server_well(self, child: Child) -> None:
        for line in (b"x" * 50_000_000, b'{"jsonrpc":"2.0","id":7007,"method":"' + b"x" * 50_000_000):
            (answer,) = await answers(child, line)
            assert answer["error"]["code"] == PARSE_ERROR


class TestTraffic:
    async def test_hostile_payloads_are_shown_and_the_server_goes_on(self, mosquitto: Mosquitto, era: Era) -> None:
        payloads: list[tuple[bytes, str, Any]] = [
            (b"", "text", ""),
            (b"\0\xff\xfe", "base64", "AP/+"),
            (rb'{"a": "\ud800"}', "json", {"a": "\\ud800"}),
            (b"\xed\xa0\x80", "base64", "7aCA"),
            ("\u202egnp.exe\u200b".encode(), "text", "\\u202egnp.exe\\u200b"),
            (b'{"a": 1e999, "b": NaN}', "text", '{"a": 1e999, "b": NaN}'),
            (b"[" * 100_000, "text", None),
            (b"x" * 5_000_000, "text", None),
            (bytes(range(256)) * 20_000, "base64", None),
        ]
        async with client(settings(mosquitto), era) as me:
            subscription = (await me.call("mqtt_subscribe", topic_filter=f"hostile/{era}"))["subscription_id"]
            for payload, _, _ in [*payloads, (b"after", "", "")]:
                await asyncio.to_thread(publish, mosquitto, f"hostile/{era}", payload)
            await me.call("mqtt_wait", topic_filter="never", timeout_s=0.1)
            cursor = None
            for payload, encoding, shown in payloads:
                answer = await me.call(
                    "mqtt_messages", subscription_id=subscription, after=cursor, limit=1, max_bytes=8192
                )
                cursor = answer["next_cursor"]
                (message,) = answer["messages"]
                assert (message["encoding"], message["bytes"]) == (encoding, len(payload))
                if shown is None:
                    assert message["payload_truncated"]
                    assert 4000 < len(json.dumps(answer)) < 10_000
                else:
                    assert message["payload"] == shown

            answer = await me.call("mqtt_messages", subscription_id=subscription, after=cursor)
            assert [message["payload"] for message in answer["messages"]] == ["after"]

    async def test_a_payload_of_any_kind_goes_out_byte_for_byte(self, mosquitto: Mosquitto) -> None:
        binary = bytes(range(256)) * 2000
        sent = [
            (base64.b64encode(binary).decode(), "base64", binary),
            (binary.hex(), "hex", binary),
            ('{"a":  1.0}', "json", b'{"a":  1.0}'),
            ("null", "text", b"null"),
            ("", "text", b""),
            ("\u2603" * 100_000, "text", ("\u2603" * 100_000).encode()),
            ("x" * 5_000_000, "text", b"x" * 5_000_000),
        ]
        with Watcher(mosquitto, "bytes") as watcher:
            async with client(settings(mosquitto, MAX_PAYLOAD_BYTES="5 MB"), "auto") as me:
                for payload, encoding, _ in sent:
                    answer = await me.call("mqtt_publish", topic="bytes", payload=payload, encoding=encoding, qos=2)
                    assert answer["acknowledged"]

            seen = watcher.wait_count(len(sent))
        assert [each.payload for each in seen] == [payload for _, _, payload in sent]

    async def test_thirty_two_calls_at_once_do_not_wait_for_each_other(self, mosquitto: Mosquitto) -> None:
        async with Child(settings(mosquitto)) as child:
            await child.connected()
            waits = [child.start_call("mqtt_wait", topic_filter=f"many/{n}", timeout_s=60) for n in range(16)]
            others = [child.start_call("mqtt_publish", topic=f"other/{n}", payload="x") for n in range(16)]

            answers = await asyncio.gather(*others)
            assert not any(wait.done() for wait in waits)
            await until(lambda: mosquitto.log.count("\tmany/") >= 16)
            for number in range(16):
                await child.call("mqtt_publish", topic=f"many/{number}", payload="go")
            async with asyncio.timeout(START_TIMEOUT_S):
                results = [answer["result"]["structuredContent"] for answer in await asyncio.gather(*waits)]

            assert all(answer["result"]["structuredContent"]["acknowledged"] for answer in answers)
            assert all(result["matched"] for result in results)

    async def test_cancelling_a_call_frees_what_it_held(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto()
        async with Child(settings(broker, MQTT_CLIENT_ID="patient")) as child:
            await child.connected()
            waiting = child.start_call("mqtt_wait", topic_filter="never", timeout_s=300)
            await until(lambda: "patient 1 never" in broker.log)

            child.tell("notifications/cancelled", {"requestId": child._last_id, "reason": "enough"})  # noqa: SLF001

            await until(lambda: "patient never" in broker.log)
            assert (await child.call("server_status"))["connection"]["connected"]
            assert not waiting.done() or "error" in waiting.result()

    async def test_an_outage_is_told_in_the_next_answers(self, make_mosquitto: Made) -> None:
        broker = make_mosquitto()
        async with client(settings(broker), "auto") as me:
            subscribed = await me.call("mqtt_subscribe", topic_filter="t/#", qos=2)
            broker.stop()
            async with asyncio.timeout(START_TIMEOUT_S):
                while (await me.call("server_status"))["connection"]["connected"]:
                    pass
            assert "Not connected to" in await me.fail("mqtt_publish", topic="t/x", payload="x")
            broker.start()
            async with asyncio.timeout(START_TIMEOUT_S):
                while not (status := await me.call("server_status"))["connection"]["connected"]:
                    pass
            await me.call("mqtt_publish", topic="t/x", payload="back", qos=2)
            answer = await me.call("mqtt_messages", subscription_id=subscribed["subscription_id"])

            assert status["subscriptions"][0]["granted_qos"] == 2
            assert [message["payload"] for message in answer["messages"]] == ["back"]
            assert answer["messages"][0]["qos"] == 2
            assert len(answer["gaps"]) == 1
            assert answer["connected_throughout"] is False


async def answers(child: Child, line: bytes) -> list[dict[str, Any]]:
    """Send a line and return what is answered to it."""
    before = len(child.lines)
    child.write(line + b"\n")
    await child.ask("ping")
    return [json.loads(each) for each in child.lines[before:-1]]


def run(environment: dict[str, str], arguments: list[str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command that is to end by itself."""
    return subprocess.run(
        [*COMMAND, *(arguments or [])],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
