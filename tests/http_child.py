"""The server over HTTP as a child process, asked by real clients and by raw bytes."""

import asyncio
import re
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitResult

from tests.assistant import Assistant, Era
from tests.child import COMMAND, START_TIMEOUT_S

TOKEN = "t" * 40
ANSWER_TIMEOUT_S = 20

MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass(frozen=True)
class Answer:
    """What came back on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class HTTPChild:
    """The server; entering starts it, leaving kills what is left."""

    def __init__(self, environment: Mapping[str, str], trust: ssl.SSLContext | None = None) -> None:
        defaults = {"MCP_TRANSPORT": "http", "MCP_PORT": "0", "MCP_TOKEN": TOKEN}
        if {"MCP_TOKENS_FILE", "MCP_TOKEN_FILE", "MCP_UNIX_SOCKET"} & environment.keys():
            del defaults["MCP_TOKEN"]
        self._environment = {name: text for name, text in {**defaults, **environment}.items() if text}
        self._trust = trust
        self._reading: asyncio.Task[None]
        self.process: asyncio.subprocess.Process
        self.stderr = ""
        self.url = ""

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *COMMAND, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read_stderr())
        self.url = await self.said(r'MCP is served on ([^\s"]+)')
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def said(self, pattern: str) -> str:
        """Wait until a line of the log matches, and return its first group or all of it."""
        found = None
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (found := re.search(pattern, self.stderr)):
                assert self.process.returncode is None, self.stderr
                await asyncio.sleep(0.01)
        return found[1] if found.groups() else found[0]

    @property
    def port(self) -> int:
        """The port it listens on."""
        return urlsplit(self.url).port or 0

    @asynccontextmanager
    async def assistant(
        self,
        era: Era = "auto",
        token: str = TOKEN,
        url: str = "",
        headers: Mapping[str, str] | None = None,
        person: ElicitResult | None = None,
    ) -> AsyncIterator[Assistant]:
        """Connect an assistant by the official client; `person` is what is answered to every question."""

        async def answer(context: Any, params: Any) -> ElicitResult:
            assert person
            return person

        async with (
            self.http(token, headers) as http,
            Client(
                streamable_http_client(url or self.url, http_client=http),
                mode=era,
                elicitation_callback=answer if person else None,
            ) as client,
        ):
            yield Assistant(client)

    def http(self, token: str = TOKEN, headers: Mapping[str, str] | None = None) -> httpx2.AsyncClient:
        """Make an HTTP client that shows a token."""
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.AsyncClient(
            headers={**shown, **(headers or {})}, timeout=ANSWER_TIMEOUT_S, verify=self._trust or True, trust_env=False
        )

    async def raw(self, request: bytes) -> list[Answer]:
        """Send bytes on a connection of their own and return every answer until the server ends it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                data = await reader.read()
        finally:
            writer.close()
        return list(_answers(data))

    async def ask(
        self, method: str = "POST", path: str = "/mcp", body: bytes = b"", token: str = TOKEN, **headers: str
    ) -> Answer:
        """Send one request with the headers of a good one, except those given; "" leaves one out."""
        given = {
            "host": f"127.0.0.1:{self.port}",
            "authorization": f"Bearer {token}" if token else "",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "content-length": str(len(body)),
            "connection": "close",
        } | {name.replace("_", "-"): text for name, text in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in given.items() if text)]
        (answer,) = await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return answer

    async def ended(self, within_s: float = 3.0) -> int:
        """Wait until the process has ended by itself and return its exit code."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.stderr += line.decode()


def _answers(data: bytes) -> Any:
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        if "chunked" in headers.get("transfer-encoding", ""):
            body, data = rest, b""
        else:
            size = int(headers.get("content-length", len(rest)))
            body, data = rest[:size], rest[size:]
        yield Answer(int(first.split()[1]), headers, body)


async def until(condition: Callable[[], bool], within_s: float = ANSWER_TIMEOUT_S) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
