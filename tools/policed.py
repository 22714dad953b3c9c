"""The broker as the assistant may use it: every topic it names is held against the operator's rules first."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from inbox import Inbox, Message, Subscription
from limits import Limits
from mqtt_client import Broker, ConnectionState, Published, Watch
from mqtt_link import PublishProperties
from policy import Look, Policy
from topics import TopicFilter


class PolicedBroker:
    """A `Broker` that also raises `PolicyRefusedError` and `LimitError`."""

    def __init__(self, broker: Broker, policy: Policy, limits: Limits) -> None:
        self.policy = policy
        self._broker = broker
        self._limits = limits

    @property
    def inbox(self) -> Inbox:
        """The received messages."""
        return self._broker.inbox

    @property
    def state(self) -> ConnectionState:
        """How the connection is."""
        return self._broker.state

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, properties: PublishProperties
    ) -> Published:
        """Publish one message, if the topic is open and it is not one of too many."""
        self.policy.check_publish(topic, retain=retain)
        self._limits.message(topic)
        return await self._broker.publish(topic, payload, qos, retain=retain, properties=properties)

    async def subscribe(self, topic_filter: TopicFilter, qos: int) -> Subscription:
        """Open a subscription, if all it can match is open."""
        self.policy.check_subscribe(topic_filter)
        return await self._broker.subscribe(topic_filter, qos)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        await self._broker.unsubscribe(subscription)

    def listen(
        self, topic_filter: TopicFilter, hear: Callable[[Message], None], qos: int = 1
    ) -> AbstractAsyncContextManager[Watch]:
        """Hear what a filter brings, if all it can match is open."""
        self.policy.check_subscribe(topic_filter, own=self._broker.state.client_id)
        return self._broker.listen(topic_filter, hear, qos)

    @asynccontextmanager
    async def look(self, part: Look, hear: Callable[[Message], None]) -> AsyncIterator[list[Watch]]:
        """Hear what is open of a look around: what is held already, and what comes until the context ends."""

        def hear_open(message: Message) -> None:
            if self.policy.open(message.topic):
                hear(message)

        for each in part.filters:
            for message in self.inbox.held(each):
                hear_open(message)
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self._broker.listen(each, hear_open, 0)) for each in part.filters]

    async def first_attempt(self, timeout_s: float) -> None:
        """Return when the first attempt to connect is over."""
        await self._broker.first_attempt(timeout_s)

    async def probe(self) -> float:
        """Make a round trip to the broker."""
        return await self._broker.probe()

    async def still_there(self, max_silence_s: float) -> bool:
        """Say whether the broker answers."""
        return await self._broker.still_there(max_silence_s)
