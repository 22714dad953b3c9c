"""What `doctor` checks at the broker: what the login may publish and read, and whether it may give commands.

Nothing is left behind: one message, not retained, goes to a topic that nobody else knows, and only where the settings
let the assistant publish there. Where a login may do less than everything, its broker is not asked about the rest: a
message to a topic of the plant could move something.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Final

from config import Config
from coreflux import Coreflux
from doctor.checkup import Check, Finding, failed, ok, skipped, warning
from errors import BrokerRefusedError, BrokerSilentError, NotCorefluxError, PolicyRefusedError
from inbox import Message
from mqtt_client import MqttClient
from mqtt_link import PublishProperties
from policy import Policy, exists_in
from topics import TopicFilter, shown

PREFIX: Final = "coreflux-mcp/doctor/"
"""Nothing is published but to a topic below it."""

DELIVERY_S: Final = 2.0
"""How long a message may take to come back."""
REPLY_S: Final = 5.0
"""How long the command channel may take."""
NEEDS: Final = ("login", "client id")
"""A connection, and nobody who takes it away."""
_MOST_FILTERS: Final = 20


class RightsChecks:
    """The rights of the login.

    Args:
        config: The settings.
        client: Returns the connection; called once there is one.
    """

    def __init__(self, config: Config, client: Callable[[], MqttClient]) -> None:
        self._config = config
        self._client = client
        self._topic = TopicFilter(f"{PREFIX}{secrets.token_hex(8)}")
        self._delivered: bool | None = None
        """Whether a message came back; None when that was not tried."""

    def checks(self) -> list[Check]:
        """List the checks."""
        return [
            Check("publish", self._publish, NEEDS, ("ACCESS_MODE", "PUBLISH_", "SUBSCRIBE_"), 8),
            Check("subscribe", self._subscribe, NEEDS, ("SUBSCRIBE_",), 15),
            Check("Coreflux commands", self._commands, NEEDS, limit_s=12),
        ]

    async def _publish(self) -> AsyncIterator[Finding]:
        mode, policy = self._config.access_mode, Policy(self._config.rules)
        verdict = policy.publish(self._topic.text)
        if not exists_in("mqtt_publish", mode):
            yield ok(f"ACCESS_MODE={mode} has no tool that publishes: nothing was tried")
        elif not verdict.allowed:
            yield skipped(f"not tried: {verdict.reason} A message there could move something")
        else:
            yield await self._try_to_publish(policy)

    async def _try_to_publish(self, policy: Policy) -> Finding:
        client, topic = self._client(), self._topic.text
        heard = asyncio.Event()
        listens = policy.subscribe(self._topic).allowed
        async with AsyncExitStack() as listening:
            if listens:
                try:
                    await listening.enter_async_context(client.listen(self._topic, lambda _message: heard.set()))
                except BrokerRefusedError:
                    listens = False
            started = time.perf_counter()
            try:
                published = await client.publish(topic, b"doctor", 1, retain=False, properties=PublishProperties())
            except BrokerRefusedError as exc:
                return failed(str(exc).removesuffix("."), _give("publish to", "PUBLISH_ALLOW"))
            if listens:
                with suppress(TimeoutError):
                    async with asyncio.timeout(DELIVERY_S):
                        await heard.wait()
            elapsed_ms = (time.perf_counter() - started) * 1000
        if listens:
            self._delivered = heard.is_set()
        came = f"a message to {topic} was acknowledged ({published.reason})"
        if self._delivered:
            return ok(f"{came} and came back after {elapsed_ms:.1f} ms")
        if client.state.protocol == "5":
            return ok(came)
        untold = "in MQTT 3.1.1 a broker acknowledges what it refuses"
        if listens:
            return failed(
                f"{came} and did not come back: the login may not publish it, or not read it; {untold}",
                _give("publish and read", "PUBLISH_ALLOW and SUBSCRIBE_ALLOW"),
            )
        return warning(
            f"{came}; whether it was let through is not known: {untold}",
            "Set MQTT_PROTOCOL=5 if the broker speaks it.",
        )

    async def _subscribe(self) -> AsyncIterator[Finding]:
        policy, open_to_all = Policy(self._config.rules), not self._config.rules.subscribe_allow
        try:
            filters = policy.look(TopicFilter("#")).filters[:_MOST_FILTERS]
        except PolicyRefusedError as exc:
            yield warning(f"the rules let nothing be read: {exc}", "Change SUBSCRIBE_ALLOW or SUBSCRIBE_DENY.")
            return
        refusals = {each.text: text for each in filters if (text := await self._refusal(each))}
        own = policy.subscribe(self._topic).allowed and await self._refusal(self._topic)
        granted = ", ".join(each.text for each in filters if each.text not in refusals)
        told = False
        for topic_filter, text in refusals.items():
            told = True
            if not open_to_all:
                yield failed(
                    text, f"Let the login read {topic_filter} at the broker, or take it out of SUBSCRIBE_ALLOW."
                )
            elif own:
                yield failed(f"{text}; nor may it read {self._topic.text}", _give("read", "SUBSCRIBE_ALLOW"))
            else:
                yield warning(
                    f"{text}; single topics are granted",
                    "Name in SUBSCRIBE_ALLOW what the login may read, so that the assistant knows.",
                )
        if self._delivered is False:
            told = True
            fact = (
                f"the subscription to {self._topic.text} was granted, but what was published there did not come within "
            )
            if self._client().state.protocol == "5":
                yield failed(f"{fact}{DELIVERY_S:g} s: the login may not read it", _give("read", "SUBSCRIBE_ALLOW"))
            else:
                yield warning(
                    f"{fact}{DELIVERY_S:g} s: whether the login may read it is not known",
                    "Mend what the check of publish says, and run doctor again.",
                )
        if not told:
            untried = (
                "" if self._delivered else "; whether anything is delivered was not tried, as nothing was published"
            )
            yield ok(f"granted: {granted}{untried}")

    async def _refusal(self, topic_filter: TopicFilter) -> str:
        """Subscribe for a moment, and return the broker's refusal; "" when it grants that."""
        try:
            async with self._client().listen(topic_filter, _nobody_listens, 0):
                return ""
        except BrokerRefusedError as exc:
            return str(exc).removesuffix(".")

    async def _commands(self) -> AsyncIterator[Finding]:
        coreflux = Coreflux(self._client(), REPLY_S)
        make = await coreflux.identity.make()
        what = shown(make.version) if make.version else "a broker that does not say what it is"
        if make.has_no_commands:
            yield ok(f"this broker is {what} and none of Coreflux's: there are none, and the lot_ tools say so")
            return
        try:
            await coreflux.check()
        except (BrokerRefusedError, BrokerSilentError, NotCorefluxError) as exc:
            text = str(exc).removesuffix(".")
            rights = "give the login CommandCall and AllowedSystemConfiguration in the broker"
            if make.kind == "coreflux":
                yield failed(text, f"{rights[0].upper()}{rights[1:]}.")
            else:
                yield warning(
                    f"this is {what}. {text}", f"If it is a Coreflux broker, {rights}; else there is no more to do."
                )
            return
        yield ok(f"{'Coreflux ' if make.kind == 'coreflux' else ''}{what} answers them")


def _give(right: str, setting: str) -> str:
    return (
        f"Give the login the right to {right} {PREFIX}# at the broker, or name in {setting} what it may: nothing else "
        "is tried."
    )


def _nobody_listens(_message: Message) -> None:
    pass
