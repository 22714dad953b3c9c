"""MCP over HTTP: who may come in, how much of it, and which server a client sees."""

import asyncio
import contextlib
import copy
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import anyio
from mcp.server import MCPServer
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, AuthorizationContext
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.types import Message, Receive

from audit import Audit
from callers import SCOPE_KEY
from config import ACCESS_MODES, AccessMode, HTTPClient, HTTPConfig
from http_app import Exchange, Headers
from limits import Bucket
from measures import Measures
from sanitizer import hide_secrets, shortened
from tools.answers import visible

BODY_BYTES: Final = 4 << 20
BODY_TIMEOUT_S: Final = 30.0
"""For the whole body of a request."""
MAX_SESSIONS: Final = 1000
MAX_SESSIONS_OF_ONE: Final = 250
SESSION_IDLE_S: Final = 1800.0
MAX_REQUESTS_OF_ONE: Final = 100
"""Requests and streams of one client at one time."""
WRONG_TOKEN_DELAY_S: Final = 0.5
MOST_DELAYED: Final = 100
"""Wrong tokens that are answered slowly at one time; more are answered at once, with 429."""
MAX_KEYS: Final = 10_000
"""Addresses and clients whose requests are counted; past that the one longest silent starts anew."""

_METHODS: Final = b"GET, POST, DELETE"
_LONGEST_TOKEN: Final = 4096
_SESSION: Final = b"mcp-session-id"
_ASKED_HEADERS: Final = re.compile(r"(?:accept|authorization|content-type|last-event-id|mcp-[a-z0-9-]{1,100})")
_IPV6_NETWORK: Final = 64
"""Bits: whoever has an IPv6 address has that many of them."""

logger = logging.getLogger(__name__)


class PerMinute:
    """How many requests each of many may make; all of a minute's at once, if they like."""

    def __init__(self, limit: int, now: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._now = now
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, key: str) -> int:
        """Count a request and return 0, or the seconds after which there is room for one."""
        bucket = self._buckets.pop(key, None) or Bucket(self._now())
        while len(self._buckets) >= MAX_KEYS:
            self._buckets.popitem(last=False)
        self._buckets[key] = bucket
        return math.ceil(bucket.add(self._now(), self._limit, self._limit / 60))


class Clients:
    """The endpoint /mcp: an MCP server for each access mode that somebody has."""

    def __init__(
        self,
        config: HTTPConfig,
        access: AccessMode,
        make: Callable[[AccessMode], MCPServer[None]],
        audit: Audit,
        measures: Measures,
        seal: bytes | None = None,
    ) -> None:
        """Make it; `access` is the mode of who needs no token, `seal` a key that all replicas of this server have."""
        self._config = config
        self._access = access
        self._make = make
        self._audit = audit
        self._measures = measures
        self._seal = seal
        self._servers: dict[AccessMode, _Server] = {}
        self._strangers = PerMinute(config.rate_limit_per_minute)
        self._clients = PerMinute(config.client_rate_limit_per_minute)
        self._delayed = 0
        self._told_at = -1.0
        self._under_way: dict[anyio.CancelScope, HTTPClient] = {}
        self._stopping = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Have a server for each mode that there is or may come to be, while in context."""
        modes = ACCESS_MODES if self._config.several else (self._access,)
        async with AsyncExitStack() as stack:
            for mode in modes:
                self._servers[mode] = await stack.enter_async_context(_serving(self._make(mode), self._seal))
            yield

    def renew(self, config: HTTPConfig) -> None:
        """Let in who may come in from now on, and end what others have under way."""
        if config.several != self._config.several or bool(config.clients) != bool(self._config.clients):
            return  # another way to come in needs a restart
        # So does another mode for the only client there is.
        clients = tuple(each if config.several else each._replace(access=self._access) for each in config.clients)
        self._config = replace(self._config, clients=clients)
        for scope, client in list(self._under_way.items()):
            if clients and client not in clients:
                scope.cancel()

    async def stop(self, patience_s: float) -> None:
        """Take no more requests, and end those that do not end by themselves in time."""
        self._stopping = True
        until = time.monotonic() + patience_s
        while self._under_way and time.monotonic() < until:  # noqa: ASYNC110 - two conditions, for a second at most
            await asyncio.sleep(0.02)
        for scope in list(self._under_way):
            scope.cancel()

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        if exchange.method == "OPTIONS":
            await self._preflight(exchange)
            return
        client = self._client(exchange)
        if client is None:
            await self._turn_away(exchange)
            return
        exchange.client = client.name or None
        if wait_s := self._clients.take(client.name or exchange.address):
            await self._too_many(exchange, "client", wait_s)
        elif exchange.method not in ("GET", "POST", "DELETE"):
            await exchange.refuse(405, f"{_METHODS.decode()} are possible here.", [(b"allow", _METHODS)])
        elif self._stopping:
            await exchange.refuse(503, "The server is stopping.", [(b"retry-after", b"5")])
        elif sum(each == client for each in self._under_way.values()) >= MAX_REQUESTS_OF_ONE:
            await self._too_many(exchange, "requests", 1)
        else:
            await self._serve(exchange, client)

    def _client(self, exchange: Exchange) -> HTTPClient | None:
        """Find out whose token it is; every one is compared with, in the same time whether it fits or not."""
        if not self._config.clients:
            return HTTPClient("", self._access, b"")
        values = exchange.header(b"authorization")
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not token or len(token) > _LONGEST_TOKEN:
            return None
        digest = hashlib.sha256(token.strip()).digest()
        found = None
        for client in self._config.clients:
            if hmac.compare_digest(client.digest, digest):
                found = client
        return found

    async def _turn_away(self, exchange: Exchange) -> None:
        """Tell nothing, count it, and be slow with whoever tries tokens."""
        reason = "wrong" if exchange.header(b"authorization") else "missing"
        self._measures.auth_failure(reason)
        if time.monotonic() - self._told_at >= 1:
            self._told_at = time.monotonic()
            logger.warning("a request from %s had a %s token", exchange.address, reason)
            self._audit.note("unauthorized", address=exchange.address, reason=reason, correlation=exchange.id)
        wait_s = self._strangers.take(_network(exchange.address))
        if wait_s or (reason == "wrong" and self._delayed >= MOST_DELAYED):
            await self._too_many(exchange, "address", wait_s or 1)
            return
        if reason == "wrong":
            self._delayed += 1
            try:
                await asyncio.sleep(WRONG_TOKEN_DELAY_S)
            finally:
                self._delayed -= 1
        await exchange.refuse(401, "Unauthorized", [(b"www-authenticate", b"Bearer")])

    async def _too_many(self, exchange: Exchange, limit: str, wait_s: int) -> None:
        self._measures.rate_limited(limit)
        await exchange.refuse(429, f"Too many requests: come back in {wait_s} s.", [(b"retry-after", b"%d" % wait_s)])

    async def _preflight(self, exchange: Exchange) -> None:
        """Answer a browser that asks what a page may do (Fetch Standard, CORS protocol)."""
        if exchange.origin not in self._config.allowed_origins:
            await exchange.refuse(403, "Pages of this origin may not use the server: see MCP_ALLOWED_ORIGINS.")
            return
        asked = b",".join(exchange.header(b"access-control-request-headers")).decode("latin-1").lower().split(",")
        allowed = [each.strip() for each in asked if _ASKED_HEADERS.fullmatch(each.strip())]
        headers: Headers = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", ", ".join(allowed[:50]).encode()),
            (b"access-control-max-age", b"600"),
        ]
        await exchange.answer(204, None, headers)

    async def _serve(self, exchange: Exchange, client: HTTPClient) -> None:
        name = client.name or None
        exchange.scope[SCOPE_KEY] = exchange.scope[SCOPE_KEY]._replace(principal=name)
        if name:
            # The SDK lets a session be used only by who opened it.
            exchange.scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=name, scopes=[]))
        with anyio.CancelScope() as scope:
            self._under_way[scope] = client
            try:
                await self._pass_on(exchange, client)
            finally:
                del self._under_way[scope]
        if scope.cancelled_caught:
            if not exchange.status:
                await exchange.refuse(503, "The server is stopping, or you may not use it any more.")
            await exchange.finish()

    async def _pass_on(self, exchange: Exchange, client: HTTPClient) -> None:
        try:
            body = await _whole_body(exchange)
        except TimeoutError:
            await exchange.refuse(408, f"The body did not come within {BODY_TIMEOUT_S:g} s.")
            return
        if body is None:
            await exchange.refuse(413, f"The body has more than {BODY_BYTES} bytes.")
            return
        try:
            await self._servers[client.access](exchange, client, body)
        except _EnoughSessionsError:
            await self._too_many(exchange, "sessions", 60)

    @property
    def streams(self) -> int:
        """How many requests and streams are under way."""
        return len(self._under_way)

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return sum(server.sessions for server in self._servers.values())


class _EnoughSessionsError(Exception):
    """A client would open one session more than it may have."""


class _Sessions(StreamableHTTPSessionManager):
    """The sessions of a server, of which no client takes the room of others."""

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        """Open a session: whatever opens one comes by here, and nothing comes between the count and the opening."""
        if requestor and list(self._session_owners.values()).count(requestor) >= MAX_SESSIONS_OF_ONE:
            raise _EnoughSessionsError
        return super()._admit_session(requestor)


class _Server:
    """One MCP server as the SDK serves it over HTTP, both protocol eras."""

    def __init__(
        self, sessions: StreamableHTTPSessionManager, elsewhere: StreamableHTTPSessionManager, seal: bytes | None
    ) -> None:
        self._manager = sessions
        self._elsewhere = elsewhere
        self._seal = seal
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Sessions that their clients have ended here."""

    @property
    def sessions(self) -> int:
        return len(self._manager._server_instances)  # noqa: SLF001 - the SDK tells it nowhere

    async def __call__(self, exchange: Exchange, client: HTTPClient, body: bytes) -> None:
        """Serve a request; raises _EnoughSessionsError."""
        manager, scope = self._manager, exchange.scope
        given = exchange.header(_SESSION)
        session = self._unsealed(given[0], client) if given else None
        if session is not None:
            scope["headers"] = [(key, value) for key, value in scope["headers"] if key != _SESSION]
            if session in self._manager._server_instances or session in self._ended:  # noqa: SLF001
                scope["headers"].append((_SESSION, session.encode()))
                if exchange.method == "DELETE":
                    self._end(session)
            elif exchange.method == "POST":
                manager = self._elsewhere
            else:
                await exchange.refuse(405, "This replica does not hold the session: only POST is possible.")
                return
        told = _Told(exchange, client, self._sealed, body)
        await manager.handle_request(scope, _giving(body, exchange.receive), told.send)

    def _end(self, session: str) -> None:
        """Remember that a session has ended: nobody else is to serve what comes for it."""
        self._ended[session] = None
        while len(self._ended) > MAX_KEYS:
            self._ended.popitem(last=False)

    def _sealed(self, session: str, client: HTTPClient) -> str:
        """Make of a session's name one that every replica can recognise as given to this client."""
        return f"{session}.{self._mac(session, client)}" if self._seal else session

    def _unsealed(self, text: bytes, client: HTTPClient) -> str | None:
        session, _, mac = text.decode("latin-1").partition(".")
        expected = self._mac(session, client) if self._seal else ""
        return session if expected and hmac.compare_digest(mac.encode(), expected.encode()) else None

    def _mac(self, session: str, client: HTTPClient) -> str:
        content = json.dumps([session, client.name, client.access]).encode()
        return hmac.new(self._seal or b"", content, "sha256").hexdigest()[:32]


@asynccontextmanager
async def _serving(server: MCPServer[None], seal: bytes | None) -> AsyncIterator[_Server]:
    sessions = _Sessions(
        server._lowlevel_server,  # noqa: SLF001 - the SDK makes its own manager otherwise
        max_request_body_size=BODY_BYTES,
        session_idle_timeout=SESSION_IDLE_S,
        max_sessions=MAX_SESSIONS,
    )
    # A session that another replica holds is served here without one: nothing is begun twice for it.
    sessionless = copy.copy(sessions.app)
    sessionless.lifespan = _nothing
    elsewhere = StreamableHTTPSessionManager(sessionless, stateless=True, max_request_body_size=BODY_BYTES)
    async with sessions.run(), elsewhere.run():
        yield _Server(sessions, elsewhere, seal)


@asynccontextmanager
async def _nothing(_server: object) -> AsyncIterator[dict[str, Any]]:
    yield {}


class _Told:
    """Passes the SDK's answer on: a session's name sealed, an error in words that repeat nothing."""

    def __init__(
        self, exchange: Exchange, client: HTTPClient, sealed: Callable[[str, HTTPClient], str], asked: bytes
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._sealed = sealed
        self._asked = asked
        self._error: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [
                (key, self._sealed(value.decode(), self._client).encode() if key == _SESSION else value)
                for key, value in message.get("headers", [])
            ]
            message = {**message, "headers": headers}
            if message["status"] == HTTPStatus.ACCEPTED and _is_request(self._asked):
                message["status"] = HTTPStatus.BAD_REQUEST
                self._body = b"The id of a request is a string or an integer."
            if message["status"] >= 400:  # noqa: PLR2004
                self._error = message
                return
        elif self._error is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                kept = [(k, v) for k, v in self._error["headers"] if k not in (b"content-length", b"content-type")]
                await self._exchange.answer(self._error["status"], _in_our_words(self._body), kept)
            return
        await self._exchange.send(message)


def _is_request(body: bytes) -> bool:
    """Say whether what the SDK took for a notification is a request, with an id of a kind that it does not know."""
    message = json.loads(body)
    return "method" in message and "id" in message


def _in_our_words(body: bytes) -> Mapping[str, Any]:
    """Keep of an error what helps: the SDK's text may repeat the request, or tell how it is made."""
    error: dict[str, Any] = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Invalid request"}}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        told = json.loads(body)
        error["id"] = told.get("id")
        error["error"] = {**told["error"], "message": _plain(told["error"]["message"])}
        return error
    if body and not body.startswith(b"{"):
        error["error"]["message"] = _plain(body.decode(errors="replace"))
    return error


def _plain(text: str) -> str:
    if "validation error" in text.lower() or "traceback" in text.lower():
        return "The body is not a valid JSON-RPC message of MCP."
    return visible(shortened(hide_secrets(text.splitlines()[0] if text else ""), 200))


async def _whole_body(exchange: Exchange) -> bytes | None:
    """Read the body of a request; None when it is too large."""
    declared = exchange.header(b"content-length")
    if declared and (not declared[0].isdigit() or int(declared[0]) > BODY_BYTES):
        return None
    body = b""
    if exchange.method == "POST":
        more = True
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while more:
                message = await exchange.receive()
                if message["type"] != "http.request":
                    return b""  # the client is gone
                body += message.get("body", b"")
                if len(body) > BODY_BYTES:
                    return None
                more = message.get("more_body", False)
    return body


def _giving(body: bytes, then: Receive) -> Receive:
    """Return what gives a body out again, and then what still comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return waiting.pop() if waiting else await then()

    return receive


def _network(address: str) -> str:
    """Return who shares an address: with IPv6 a whole network belongs to one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, _IPV6_NETWORK), strict=False))  # noqa: PLR2004
