"""The server as a client starts it: a child process over real pipes, with a real broker behind it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client.stdio import StdioServerParameters

from tests.assistant import ERAS, Era, assistant
from tests.brokers import Embedded, Mosquitto, publish
from tests.documentation import ROOT

BOUND_S = 5
"""How long the process may take to end here, on a busy machine; a second is what is promised."""

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
LIST_TOOLS = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}


def settings(port: int, **others: str) -> dict[str, str]:
    """An environment with nothing in it of whoever runs the tests."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT", "LANG") if name in os.environ}
    return clean | {"MQTT_BROKER": "127.0.0.1", "MQTT_PORT": str(port)} | others


COMMAND = [sys.executable, str(ROOT / "server.py"), "--env-file", os.devnull]


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


class Child:
    """The server, line by line."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            COMMAND, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(message).encode() + b"\n" for message in messages))
        self.process.stdin.flush()

    def receive(self, number: int) -> dict[str, Any]:
        """Read up to the answer with this number; whatever else comes must be the protocol's too."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            assert message["jsonrpc"] == "2.0"
            if message.get("id") == number:
                return message
        raise AssertionError(f"no answer to {number}: {self.end()}")

    def greet(self) -> None:
        self.send(INITIALIZE)
        self.receive(1)
        self.send(INITIALIZED)

    def connect(self) -> None:
        self.greet()
        self.send(call(2, "server_status"))
        assert self.receive(2)["result"]["structuredContent"]["connection"]["connected"]

    def end(self) -> str:
        """Close stdin, wait for the end, and return what was written to stderr."""
        _, stderr = self.process.communicate(timeout=BOUND_S)
        return stderr.decode()


@contextmanager
def child(env: dict[str, str]) -> Iterator[Child]:
    server = Child(env)
    watchdog = threading.Timer(10 * BOUND_S, server.process.kill)  # so that no test waits for a line for ever
    watchdog.start()
    try:
        yield server
    finally:
        watchdog.cancel()
        server.process.kill()
        server.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class TestStart:
    def test_it_answers_at_once_without_a_broker(self) -> None:
        with child(settings(1)) as server:
            server.send(INITIALIZE, INITIALIZED, LIST_TOOLS)

            assert server.receive(1)["result"]["serverInfo"]["name"] == "coreflux-mcp"
            assert len(server.receive(2)["result"]["tools"]) == 9
            server.send(call(3, "server_status"))
            connection = server.receive(3)["result"]["structuredContent"]["connection"]
            assert connection["connected"] is False
            assert "nothing listens there" in connection["last_error"]

    def test_bad_settings_stop_the_start_and_are_all_named(self) -> None:
        env = settings(1, MQTT_PORT="70000", ACCESS_MODE="root", MQTT_PASSWORD_FILE="/nowhere")
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=BOUND_S, check=False)

        assert done.returncode == 2
        assert done.stdout == ""
        for name in ("MQTT_PORT", "ACCESS_MODE", "MQTT_PASSWORD_FILE"):
            assert name in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["client-config", "--help"], ["--version"]])
    def test_every_command_has_help(self, arguments: list[str]) -> None:
        done = subprocess.run([*COMMAND[:2], *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False)

        assert done.returncode == 0
        assert done.stdout

    def test_an_unknown_command_is_refused(self) -> None:
        done = subprocess.run([*COMMAND[:2], "dance"], capture_output=True, text=True, timeout=BOUND_S, check=False)

        assert done.returncode == 2
        assert "dance" in done.stderr


class TestEnd:
    @pytest.mark.parametrize("ending", ["stdin", "SIGTERM", "SIGINT"])
    @pytest.mark.parametrize("waiting", [False, True])
    def test_it_ends_by_itself_and_says_goodbye_to_the_broker(
        self, make_mosquitto: Callable[..., Mosquitto], ending: str, waiting: bool
    ) -> None:
        broker = make_mosquitto()
        with child(settings(broker.port, MQTT_CLIENT_ID="leaver")) as server:
            server.connect()
            if waiting:
                server.send(*(call(10 + number, "mqtt_wait", topic_filter=f"silent/{number}") for number in range(5)))
                until(lambda: broker.log.count("SUBSCRIBE from leaver") >= 5)
            if ending == "stdin":
                assert server.process.stdin is not None
                server.process.stdin.close()
                server.process.stdin = None
            else:
                server.process.send_signal(getattr(signal, ending))

            assert server.process.wait(BOUND_S) == 0
            until(lambda: "Received DISCONNECT from leaver" in broker.log)

    def test_a_client_that_is_gone_ends_it(self, mosquitto: Mosquitto) -> None:
        with child(settings(mosquitto.port)) as server:
            server.connect()
            assert server.process.stdout is not None
            server.process.stdout.close()
            server.process.stdout = None

            assert server.process.wait(BOUND_S) == 0
            assert "Traceback" not in server.end()


class TestStreams:
    def test_stdout_carries_the_protocol_only_whatever_is_logged(self, mosquitto: Mosquitto) -> None:
        with child(settings(mosquitto.port, LOG_LEVEL="DEBUG")) as server:
            server.connect()
            assert server.process.stdin is not None
            server.process.stdin.write(b"this is not JSON\n\xff\xfe\n[]\n")
            server.send(call(3, "no_such_tool"), call(4, "mqtt_publish", topic="+", payload=""), LIST_TOOLS | {"id": 5})

            assert "no_such_tool" in json.dumps(server.receive(3))
            assert server.receive(4)["result"]["isError"]
            assert server.receive(5)["result"]["tools"]
            assert "connected to" in server.end()

    def test_no_secret_is_in_the_log_at_debug(self, make_mosquitto: Callable[..., Mosquitto]) -> None:
        password = os.urandom(8).hex()
        broker = make_mosquitto(users={"me": password})
        env = settings(broker.port, LOG_LEVEL="DEBUG", MQTT_USER="me", MQTT_PASSWORD=password)
        with child(env) as server:
            server.connect()
            server.send(call(3, "mqtt_publish", topic="t", payload=password, encoding=password))

            assert password not in json.dumps(server.receive(3))
            assert password not in server.end()

    def test_a_log_file_is_private_and_json_is_one_object_a_line(self, mosquitto: Mosquitto, tmp_path: Path) -> None:
        file = tmp_path / "server.log"
        with child(settings(mosquitto.port, LOG_FILE=str(file), LOG_FORMAT="json")) as server:
            server.connect()
            stderr = server.end()

        lines = file.read_text(encoding="utf-8").splitlines()
        assert file.stat().st_mode & 0o777 == 0o600
        assert lines == stderr.splitlines()
        entries = [json.loads(line) for line in lines]
        assert any(entry["message"].startswith("connected to") for entry in entries)
        assert all(entry.keys() >= {"time", "level", "logger", "message"} for entry in entries)

    def test_silence_is_silence(self) -> None:
        with child(settings(1, LOG_LEVEL="NONE")) as server:
            server.greet()
            server.send(call(2, "server_status"))
            assert server.receive(2)["result"]["structuredContent"]["connection"]["last_error"]

            assert server.end() == ""

    def test_a_log_file_that_cannot_be_written_is_told_at_the_start(self, tmp_path: Path) -> None:
        env = settings(1, LOG_FILE=str(tmp_path / "no" / "such" / "directory.log"))
        done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=BOUND_S, check=False)

        assert done.returncode == 2
        assert "LOG_FILE" in done.stderr


@pytest.mark.anyio
class TestBothEras:
    @pytest.mark.parametrize("era", ERAS)
    async def test_an_assistant_subscribes_publishes_and_reads(self, broker: Embedded | Mosquitto, era: Era) -> None:
        parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=settings(broker.port))
        async with assistant(parameters, era) as me:
            subscription = await me.call("mqtt_subscribe", topic_filter=f"stdio/{era}/#")
            published = await me.call("mqtt_publish", topic=f"stdio/{era}/x", payload='{"n": 1}')
            await me.call("mqtt_wait", topic_filter="silent", timeout_s=0.1)
            messages = await me.call("mqtt_messages", subscription_id=subscription["subscription_id"])

        assert published["acknowledged"] is True
        assert [(m["topic"], m["payload"]) for m in messages["messages"]] == [(f"stdio/{era}/x", {"n": 1})]

    @pytest.mark.parametrize("era", ERAS)
    async def test_hostile_payloads_reach_the_assistant_safely_and_hearing_goes_on(
        self, mosquitto: Mosquitto, era: Era
    ) -> None:
        parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=settings(mosquitto.port))
        topic = f"hostile/{era}"
        async with assistant(parameters, era) as me:
            await me.call("mqtt_subscribe", topic_filter=f"{topic}/#")
            payloads = (b'"\\ud800"', b"\xff\x00", b"x" * 5_000_000, b"", b"[" * 100_000, "\u202e".encode())
            for number, payload in enumerate(payloads):
                await asyncio.to_thread(publish, mosquitto, f"{topic}/{number}", payload)
            await asyncio.to_thread(publish, mosquitto, f"{topic}/end", b"still hearing")
            await me.call(
                "mqtt_wait", topic_filter=f"{topic}/late", condition={"op": "exists"}, timeout_s=0.1
            )  # the burst is here now
            answer = await me.call("mqtt_messages", topic_filter=f"{topic}/end")
            everything = await me.call("mqtt_messages", topic_filter=f"{topic}/#", mode="stats")

        assert [m["payload"] for m in answer["messages"]] == ["still hearing"]
        assert len(everything["stats"]) == len(payloads) + 1

    async def test_thirty_two_calls_at_once_do_not_wait_for_each_other(self, mosquitto: Mosquitto) -> None:
        parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=settings(mosquitto.port))
        async with assistant(parameters) as me:
            waiting = [
                asyncio.create_task(me.call("mqtt_wait", topic_filter=f"go/{number}", timeout_s=30))
                for number in range(16)
            ]
            async with asyncio.timeout(BOUND_S * 2):
                published = await asyncio.gather(*(me.call("mqtt_publish", topic="x", payload="1") for _ in range(16)))
                assert all(answer["acknowledged"] for answer in published)
                assert not any(task.done() for task in waiting)
                while not all(task.done() for task in waiting):
                    for number in range(16):
                        await me.call("mqtt_publish", topic=f"go/{number}", payload="1")

        assert all(task.result()["matched"] for task in waiting)

    async def test_a_cancelled_call_frees_its_subscription_at_the_broker(
        self, make_mosquitto: Callable[..., Mosquitto]
    ) -> None:
        broker = make_mosquitto()
        env = settings(broker.port, MQTT_CLIENT_ID="canceller")
        async with assistant(StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=env)) as me:
            waiting = asyncio.create_task(me.call("mqtt_wait", topic_filter="never/mind"))
            await asyncio.to_thread(until, lambda: "never/mind" in broker.log)

            waiting.cancel()

            await asyncio.to_thread(until, lambda: "Received UNSUBSCRIBE from canceller" in broker.log)
