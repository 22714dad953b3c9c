"""A raw JSON-RPC client over a child's pipes: no SDK, so that what is measured is the server."""

import itertools
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROTOCOL = "2025-11-25"


class StdioClient:
    """A server as a child, and calls to it. A context manager; entering returns when `tools/list` was answered."""

    def __init__(self, command: list[str], settings: dict[str, str]) -> None:
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._ids = itertools.count(1)
        self._answers: dict[int, tuple[float, dict[str, Any]]] = {}
        self._arrived = threading.Condition()
        self._writing = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        self._answer(
            self._ask(
                "initialize",
                {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
            )
        )
        self._write({"method": "notifications/initialized"})
        _, self.tools = self._answer(self._ask("tools/list", {}))
        self.start_ms = (time.perf_counter() - self.started) * 1000
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    @property
    def rss_mb(self) -> float:
        """Memory of the server."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def cpu_s(self) -> float:
        """CPU time the server has used, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def start_call(self, tool: str, arguments: dict[str, Any]) -> int:
        """Call a tool and return the number to `finish` it by."""
        return self._ask("tools/call", {"name": tool, "arguments": arguments})

    def finish(self, number: int) -> dict[str, Any]:
        """Wait for the answer of a call that must succeed."""
        _, result = self._answer(number)
        assert not result.get("isError"), result
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed, and wait for the answer."""
        return self.finish(self.start_call(tool, arguments))

    def time_call(self, tool: str, **arguments: Any) -> float:
        """Call a tool and return how long it took, in ms."""
        started = time.perf_counter()
        number = self.start_call(tool, arguments)
        ended, result = self._answer(number)
        assert not result.get("isError"), result
        return (ended - started) * 1000

    def _ask(self, method: str, params: dict[str, Any]) -> int:
        number = next(self._ids)
        self._write({"id": number, "method": method, "params": params})
        return number

    def _write(self, message: dict[str, Any]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        assert self._process.stdin is not None
        with self._writing:
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _answer(self, number: int) -> tuple[float, dict[str, Any]]:
        with self._arrived:
            if not self._arrived.wait_for(lambda: number in self._answers, 60):
                raise TimeoutError(f"no answer to request {number}")
            ended, message = self._answers.pop(number)
        result: dict[str, Any] = message["result"]
        return ended, result

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            ended = time.perf_counter()
            message = json.loads(line)
            with self._arrived:
                self._answers[message.get("id", 0)] = ended, message
                self._arrived.notify_all()
