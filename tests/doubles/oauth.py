"""An OAuth 2 token service that says what a test tells it to: client credentials over HTTP/1.1 on loopback.

Tokens are real JWTs, so that a broker can check them. What an answer is made of is the same as for the other double.
"""

import asyncio
import base64
import secrets
import time
from asyncio import StreamReader, StreamWriter
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus

import jwt

from simulator.tokens import Tokens
from tests.doubles.copilot import GAP_S, HOST, WAIT_TIMEOUT_S, Answer, Ending, Pause, as_json


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a token as it arrived; `headers` do not mind the case."""

    method: str
    path: str
    headers: Message
    form: dict[str, str]


class OAuthDouble:
    """A token service with one client, on a port of its own. An async context manager.

    What is queued with `answer` is said to the next requests; after that, who logs in right gets a token.

    Args:
        lifetime_s: How long a token lives, by its own claim.
        expires_in: What the answer says of that; by default the same.
        algorithm: How tokens are signed.
        keys: What they are signed with and what they are verified with; by default a common secret.
    """

    def __init__(
        self,
        lifetime_s: float = 3600,
        *,
        expires_in: object = ...,
        algorithm: Any = "HS256",
        keys: tuple[str, str] | None = None,
    ) -> None:
        self.client_id = "plant 7/ü:"
        """With characters that have to be encoded."""
        self.secret = f"s%+ :{secrets.token_hex(16)}"
        self.scope = "mqtt:read mqtt:write"
        self.audience = "broker"
        self.lifetime_s = lifetime_s
        self.expires_in = expires_in
        self.requests: list[Asked] = []
        self.tokens: list[str] = []
        """Every token that was given."""
        self.port = 0
        key = secrets.token_hex(32)
        self._algorithm = algorithm
        self._signing, self._verifying = keys or (key, key)
        self._answers: deque[Answer] = deque()
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    @property
    def url(self) -> str:
        """The token endpoint."""
        return f"http://{HOST}:{self.port}/oauth2/token"

    @property
    def trusted(self) -> Tokens:
        """What a broker needs to check the tokens."""
        return Tokens(self._verifying, self._algorithm, self.audience)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of the last time if there was one."""
        self._server = await asyncio.start_server(self._accept, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and listen no more."""
        self._server.close()
        await asyncio.sleep(0)  # who was accepted just now becomes a task
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0)  # aborted transports close their sockets

    def answer(self, *answers: Answer) -> None:
        """Queue what the next requests get in place of a token."""
        self._answers.extend(answers)

    async def arrived(self, count: int = 1) -> Asked:
        """Wait for the request with this number, counted from 1, be it answered or not."""
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while len(self.requests) < count:
                await asyncio.sleep(GAP_S)
        return self.requests[count - 1]

    def token(self, **claims: object) -> str:
        """Make a token, with other claims where they are given."""
        now = time.time()
        usual: dict[str, object] = {
            "sub": self.client_id,
            "aud": self.audience,
            "iat": now,
            "exp": now + self.lifetime_s,
            "jti": secrets.token_hex(8),
        }
        return jwt.encode(usual | claims, self._signing, self._algorithm)

    def granted(self, **fields: object) -> Answer:
        """Answer with a new token, and other fields where they are given; without those that are `...`."""
        token = fields.get("access_token", self.token())
        if isinstance(token, str):
            self.tokens.append(token)
        expires_in = self.lifetime_s if self.expires_in is ... else self.expires_in
        said = {"access_token": token, "token_type": "Bearer", "expires_in": expires_in} | fields
        return as_json({name: value for name, value in said.items() if value is not ...})

    def _answer_to(self, asked: Asked) -> Answer:
        if self._answers:
            return self._answers.popleft()
        scheme, _, login = asked.headers["Authorization"].partition(" ")
        client_id, _, secret = base64.b64decode(login).decode().partition(":")
        if (scheme, unquote_plus(client_id), unquote_plus(secret)) != ("Basic", self.client_id, self.secret):
            return refused("invalid_client", 401)
        if asked.form.get("grant_type") != "client_credentials":
            return refused("unsupported_grant_type")
        if not set(asked.form.get("scope", "").split()) <= set(self.scope.split()):
            return refused("invalid_scope")
        return self.granted()

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            # A client may go whenever it likes.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._send(self._answer_to(await self._read(reader)), reader, writer):
                    pass
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients.discard(task)

    async def _read(self, reader: StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, _, rest = head.partition("\r\n")
        method, path, _ = line.split(" ")
        headers = HeaderParser().parsestr(rest)
        assert headers["Content-Type"] == "application/x-www-form-urlencoded"
        body = await reader.readexactly(int(headers["Content-Length"]))
        form = {name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()}
        asked = Asked(method, path, headers, form)
        self.requests.append(asked)
        return asked

    async def _send(self, answer: Answer, reader: StreamReader, writer: StreamWriter) -> bool:
        """Send an answer and tell whether the connection goes on."""
        for part in answer.script():
            if isinstance(part, Pause):
                await asyncio.sleep(part.seconds)
            elif part is Ending.HANG:
                await reader.read()
                return False
            elif isinstance(part, Ending):
                return False
            else:
                writer.write(part)
                await writer.drain()
        return answer.framing != "close"


def refused(error: str, status: int = 400, **more: object) -> Answer:
    """Refuse as RFC 6749, 5.2 has it."""
    headers = {"WWW-Authenticate": 'Basic realm="tokens"'} if status == 401 else {}
    return as_json({"error": error, "error_description": f"in words: {error}", **more}, status, headers)
