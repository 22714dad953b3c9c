"""The broker as the assistant may use it: every topic it names is held against the operator's rules first."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

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

    async def look(self, part: Look, hear: Callable[[Message], None], listen_s: float) -> bool:
        """Hear what is held of the open part of a look around, and what comes meanwhile; say whether all was heard.

        Where the filters of the part overlap, a message is heard once. Nothing is subscribed to for no time.
        """

        def ear(number: int) -> Callable[[Message], None]:
            earlier = part.filters[:number]

            def hear_open(message: Message) -> None:
                if self.policy.open(message.topic) and not any(each.matches(message.topic) for each in earlier):
                    hear(message)

            return hear_open

        ears = [(each, ear(number)) for number, each in enumerate(part.filters)]
        for each, hear_open in ears:
            for message in self.inbox.held(each):
                hear_open(message)
        if not listen_s:
            return self.state.connected
        async with AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(self._broker.listen(each, hear_open, 0)) for each, hear_open in ears
            ]
            await asyncio.sleep(listen_s)
        return all(watch.connected_throughout for watch in watches)

    async def first_attempt(self, timeout_s: float) -> None:
        """Return when the first attempt to connect is over."""
        await self._broker.first_attempt(timeout_s)

    async def probe(self) -> float:
        """Make a round trip to the broker."""
        return await self._broker.probe()

    async def still_there(self, max_silence_s: float) -> bool:
        """Say whether the broker answers."""
        return await self._broker.still_there(max_silence_s)
