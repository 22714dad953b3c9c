"""What the broker at the other end is, as far as it tells."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final, Literal

from errors import BrokerRefusedError
from inbox import Message
from mqtt_client import Broker
from topics import TopicFilter

_COREFLUX: Final = "$SYS/Coreflux/Version"
_OTHERS: Final = "$SYS/broker/version"
"""Where brokers say what they are: the Coreflux documentation, and mosquitto(8), whose topic others took over."""

_WAIT_S: Final = 0.5
"""How long after SUBACK a retained message may take."""
_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Make:
    """Which broker it is; many do not tell, or not everyone."""

    kind: Literal["coreflux", "mosquitto", "other", "unknown"] = "unknown"
    version: str | None = None

    @property
    def has_no_commands(self) -> bool:
        """Whether it is known to be no Coreflux broker."""
        return self.kind in ("mosquitto", "other")


class Identity:
    """The make of a broker, asked for once a connection."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._known = (0, Make())
        """The number of the connection on which it was asked, and the answer."""

    async def make(self) -> Make:
        """Say what the broker is.

        Raises:
            BrokerOfflineError, BrokerSilentError: As their names say.
        """
        if self._known[0] != self._broker.state.connections or not self._known[0]:
            make = await _ask(self._broker)
            self._known = (self._broker.state.connections, make)
        return self._known[1]


async def _ask(broker: Broker) -> Make:
    said: dict[str, str] = {}
    told = asyncio.Event()

    def hear(message: Message) -> None:
        said[message.topic] = message.payload.decode(errors="replace")[:_LONGEST]
        told.set()

    async with contextlib.AsyncExitStack() as stack:
        heard = False
        for topic in (_COREFLUX, _OTHERS):
            with contextlib.suppress(BrokerRefusedError):
                await stack.enter_async_context(broker.listen(TopicFilter(topic), hear))
                heard = True
        if heard:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT_S):
                    await told.wait()
    if version := said.get(_COREFLUX):
        return Make("coreflux", version)
    if version := said.get(_OTHERS):
        return Make("mosquitto" if "mosquitto" in version else "other", version)
    return Make()
