"""The server as a child process, and the two ends of its pipes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Self

from tests.documentation import ROOT
from tests.wire import Listening

COMMAND = [sys.executable, str(ROOT / "server.py"), "--env-file", os.devnull]

START_TIMEOUT_S = 20
END_TIMEOUT_S = 3
"""The promise is one second; the machine may be busy."""

LONGEST_LINE = 1 << 25
NOBODY_LISTENS = "127.0.0.1:9"

HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def settings(broker: Listening | None = None, **more: str) -> dict[str, str]:
    """Make an environment for the child with nothing in it of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"MQTT_BROKER": f"{broker.host}:{broker.port}" if broker else NOBODY_LISTENS} | more


class Child:
    """The server and the two ends of its pipes; entering starts it and shakes hands, leaving kills what is left."""

    def __init__(self, environment: Mapping[str, str], command: list[str] | None = None) -> None:
        self._environment = environment
        self._command = command or COMMAND
        self._process: asyncio.subprocess.Process
        self._reading: list[asyncio.Task[None]] = []
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self.lines: list[bytes] = []
        """What came on stdout."""
        self.stderr = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        self._reading = [asyncio.create_task(self._read_stdout()), asyncio.create_task(self._read_stderr())]
        await self.ask("initialize", HELLO)
        self.tell("notifications/initialized")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.gather(*self._reading)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def tell(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification."""
        self._send({"jsonrpc": "2.0", "method": method, "params": params or {}})

    def start(self, method: str, params: Mapping[str, Any] | None = None) -> "asyncio.Future[dict[str, Any]]":
        """Send a request and return what will be the answer."""
        self._last_id += 1
        answer = self._answers[self._last_id] = asyncio.get_running_loop().create_future()
        self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params or {}})
        return answer

    async def ask(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the result."""
        async with asyncio.timeout(START_TIMEOUT_S):
            answer = await self.start(method, params)
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def start_call(self, tool: str, **arguments: Any) -> "asyncio.Future[dict[str, Any]]":
        """Call a tool and return what will be the answer."""
        return self.start("tools/call", {"name": tool, "arguments": arguments})

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that is to succeed."""
        result = await self.ask("tools/call", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    async def connected(self) -> None:
        """Wait until the server has its broker."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (await self.call("server_status"))["connection"]["connected"]:
                pass

    def write(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def close_stdin(self) -> None:
        """Hang up as a client does that ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close_stdout(self) -> None:
        """Stop reading, as a client does that has crashed."""
        self._process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined] # noqa: SLF001

    async def ended(self) -> int:
        """Wait until the process has ended by itself and return its exit code; every line of stdout was protocol."""
        async with asyncio.timeout(END_TIMEOUT_S):
            code = await self._process.wait()
        await asyncio.gather(*self._reading)
        for line in self.lines:
            assert json.loads(line)["jsonrpc"] == "2.0"
            assert line.endswith(b"\n")
        return code

    def _send(self, message: Mapping[str, Any]) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    async def _read_stdout(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line)
            answer = json.loads(line)
            waiting = self._answers.pop(answer.get("id"), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.stderr += line.decode()
