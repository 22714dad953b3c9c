"""What several processes that serve the same clients tell each other, over the broker.

They belong together when they have the same AUDIT_KEY. News and claims are short messages on one topic that carries
the key's fingerprint; each is authenticated with a key of its own, so nobody else on the broker can forge one.

A claim is how an answer is used once by all of them together: who uses it says so, and hears by the broker's order
whose claim came first. MQTT promises that order for one publisher only (MQTT 5.0, 4.6); brokers that are one process
give all subscribers the same one.
"""

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from errors import BridgeError, BrokerError
from inbox import Message
from mqtt_client import Broker
from mqtt_link import PublishProperties
from policy import REPLICAS
from topics import TopicFilter

CLAIM_TIMEOUT_S: Final = 5.0
"""How long a claim may take to come back from the broker."""
MOST_CLAIMS: Final = 10_000
"""Claims that are remembered; the oldest answers are too late for anything by then."""

BEAT_S: Final = 20.0
"""How often each says that it is there; who is not heard for three times as long is gone."""

_AGAIN_S: Final = 2.0

logger = logging.getLogger(__name__)


class Replicas:
    """This process among others like it."""

    def __init__(self, broker: Broker, key: bytes) -> None:
        self.name: Final = secrets.token_hex(3)
        self.trouble: str | None = None
        """Why the others are not heard, for an operator."""
        self._broker = broker
        self._key = key
        self._seal = self.key("replicas")
        self._topic = TopicFilter(f"{REPLICAS}{self.key('fingerprint').hex()[:16]}")
        self._claims: dict[str, str] = {}
        """Who came first, by what was claimed."""
        self._waiting: dict[str, asyncio.Event] = {}
        self._listeners: list[Callable[[], None]] = []
        self._others: dict[str, float] = {}
        """When each was heard last."""
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def several(self) -> bool:
        """Whether there are others, so that a client's next request may not come here."""
        return any(time.monotonic() - heard < 3 * BEAT_S for heard in self._others.values())

    def key(self, purpose: str) -> bytes:
        """Return a key for one purpose, the same in all replicas."""
        return hmac.digest(self._key, f"coreflux-mcp {purpose}".encode(), "sha256")

    def on_news(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when another replica has changed its list of tools."""
        self._listeners.append(listener)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear the others while in context."""
        task = asyncio.create_task(self._listen(), name="replicas")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def tell(self) -> None:
        """Tell the others that the list of tools has changed; who is not reached finds out alone."""
        await self._say("tools")

    async def _say(self, news: str) -> None:
        with suppress(BrokerError):
            await self._publish(news=news)

    async def claim(self, name: str) -> bool:
        """Say whether no replica has claimed `name` before.

        Raises:
            BridgeError: That could not be found out.
        """
        if name in self._claims:
            return False
        mine = f"{self.name}-{secrets.token_hex(4)}"
        heard = self._waiting.setdefault(name, asyncio.Event())
        try:
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                await self._publish(claim=name, by=mine)
                await heard.wait()
        except TimeoutError:
            why = self.trouble or "the broker did not send it back."
            raise BridgeError(
                f"The answer could not be made known to the other replicas of the server: {why}"
            ) from None
        finally:
            self._waiting.pop(name, None)
        return self._claims[name] == mine

    async def _publish(self, **content: str) -> None:
        body = json.dumps(content | {"from": self.name})
        payload = f"{hmac.new(self._seal, body.encode(), 'sha256').hexdigest()} {body}".encode()
        await self._broker.publish(self._topic.text, payload, 1, retain=False, properties=PublishProperties())

    async def _listen(self) -> None:
        while True:
            try:
                async with self._broker.listen(self._topic, self._hear, 1):
                    self.trouble = None
                    await self._publish(news="hello")
                    while True:
                        await asyncio.sleep(BEAT_S)
                        await self._publish(news="here")
            except BrokerError as exc:
                if self.trouble != str(exc):
                    logger.warning("the other replicas of this server are not heard: %s", exc)
                self.trouble = str(exc)
            await asyncio.sleep(_AGAIN_S)

    def _hear(self, message: Message) -> None:
        content = self._opened(message.payload)
        if name := content.get("claim"):
            if name not in self._claims and len(self._claims) >= MOST_CLAIMS:
                del self._claims[next(iter(self._claims))]
            self._claims.setdefault(name, content.get("by", ""))
            if heard := self._waiting.get(name):
                heard.set()
        elif content and content["from"] != self.name:
            self._others[content["from"]] = time.monotonic()
            if content["news"] == "hello":  # it does not know yet that we are here
                task = asyncio.get_running_loop().create_task(self._say("here"), name="replicas.answer")
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            elif content["news"] == "tools":
                for listener in self._listeners:
                    listener()

    def _opened(self, payload: bytes) -> dict[str, Any]:
        mac, _, body = payload.partition(b" ")
        if not hmac.compare_digest(mac, hmac.new(self._seal, body, "sha256").hexdigest().encode()):
            return {}  # not from one of us
        content: dict[str, Any] = json.loads(body)
        return content
