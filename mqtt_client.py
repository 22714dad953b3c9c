"""The broker connection: kept up, told truthfully, shared by everyone who publishes, subscribes or listens.

`Broker` is what the tools need; `MqttClient` is it over the network. One task keeps one `Link` at a time connected,
backs off between attempts and restores the subscriptions; each time without them is a gap in the inbox. Where the
password is a token that expires, that task also moves to a new connection in time.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from config import BrokerConfig
from dispatch import Dispatch, Feed, Listener
from errors import BrokerError, BrokerOfflineError, BrokerRefusedError, BrokerSilentError, InputError
from inbox import Gap, Inbox, Message, Subscription
from mqtt_failures import LinkFailedError
from mqtt_link import FAILURE, Greeting, Link, PublishProperties
from topics import TopicFilter, check_topic_name, shown

if TYPE_CHECKING:
    from mqtt_oauth import Token, TokenSource

PROBE_TIMEOUT_S: Final = 3.0
"""How long the broker may take to answer a probe before it counts as not listening."""

FIRST_ATTEMPT_S: Final = 5.0
"""How long a call waits for the outcome of the first attempt to connect: clients call as soon as we have started."""

_STABLE_S: Final = 30.0
"""A connection that held this long starts the back-off anew."""

_BACK_OFF_S: Final = (0.25, 15.0)
"""First and longest wait before the next attempt."""
_LOGIN_BACK_OFF_S: Final = (30.0, 300.0)
"""The same after a refused login: brokers lock out those who hammer."""

_CALM_S: Final = 2.0
"""How long calls under way may take to end before the connection is left for one with a new token."""

LOGIN_RENEWED: Final = "the login was renewed"
"""The cause of the gap that this makes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """What the broker said to a message."""

    acknowledged: bool
    reason: str
    elapsed_ms: float


@dataclass(slots=True)
class ConnectionState:
    """The connection as an operator wants to know it."""

    connected: bool = False
    broker: str = ""
    client_id: str = ""
    protocol: str | None = None
    """The MQTT version spoken; None while there is no connection."""
    since: float = field(default_factory=time.time)
    """Epoch seconds since when it is as `connected` says."""
    last_error: str | None = None
    attempts: int = 0
    """Attempts to connect since the last success."""
    next_attempt_at: float | None = None
    maximum_qos: int = 2
    """The highest QoS with which the broker takes messages (MQTT 5.0, 3.2.2.3.4)."""
    tls: dict[str, object] = field(default_factory=dict)
    session_resumed: bool = False
    connections: int = 0
    """How many connections there have been."""
    errors: int = 0
    """How many attempts to connect have failed, and how many connections were lost."""

    @property
    def why_offline(self) -> str:
        """Why there is no connection, where there is none."""
        return self.last_error or "The first connection to the broker is being made."


@dataclass(slots=True)
class Watch:
    """What is known about a time of listening once it is over."""

    connected_throughout: bool = False
    gaps: list[Gap] = field(default_factory=list)


class Broker(Protocol):
    """A broker as the tools need it. Every method raises a `BrokerError` when the broker cannot do its part."""

    inbox: Inbox
    state: ConnectionState

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, properties: PublishProperties
    ) -> Published:
        """Publish one message and wait for the acknowledgement that its QoS has."""

    async def subscribe(self, topic_filter: TopicFilter, qos: int) -> Subscription:
        """Open a subscription; the broker has confirmed it on return."""

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""

    def listen(
        self, topic_filter: TopicFilter, hear: Callable[[Message], None], qos: int = 1
    ) -> AbstractAsyncContextManager[Watch]:
        """Hear what a filter brings, retained messages first, until the context ends."""

    async def first_attempt(self, timeout_s: float) -> None:
        """Return when the first attempt to connect has succeeded or failed, at the latest after `timeout_s`."""

    async def probe(self) -> float:
        """Make a round trip to the broker and return how many milliseconds it took."""

    async def still_there(self, max_silence_s: float) -> bool:
        """Say whether the broker has been heard from within `max_silence_s`, or answers now."""


Notice = Callable[..., None]
"""Takes note of an event and, by name, its facts; it must neither fail nor block."""


def _unnoticed(_event: str, **_facts: str) -> None:
    pass


class MqttClient:
    """A `Broker` over the network: an async context manager that connects in the background.

    Entering does not wait for the broker. The methods wait for the outcome of the first attempt to connect; when it
    failed, and whenever the broker is gone, they raise `BrokerOfflineError` at once. Nothing is queued.
    """

    def __init__(self, config: BrokerConfig, inbox: Inbox, notice: Notice = _unnoticed) -> None:
        """Make it; `notice` is told of connections, losses and refused logins, for the record."""
        self.inbox = inbox
        self._notice = notice
        self.state = ConnectionState(broker=config.url, client_id=config.client_id)
        self._config = config
        self._dispatch = Dispatch(inbox)
        self._link: Link | None = None
        self._protocol: Literal["5", "3.1.1"] = "3.1.1" if config.protocol == "3.1.1" else "5"
        self._unwanted: set[str] = set()
        """Filters that an old session may still hold at the broker."""
        self._unreleased: set[int] = set()
        """QoS 2 messages of the session that the broker has not released yet."""
        self._fell_back_from: LinkFailedError | None = None
        """Why MQTT 3.1.1 is tried, if that may have been something else than the version."""
        self._task: asyncio.Task[None] | None = None
        self._first_attempt_over = asyncio.Event()
        self._renewed = asyncio.Event()
        self._calls = 0
        self._calm = asyncio.Event()
        self._at_once = False
        """Whether the next attempt to connect has nothing to wait for."""
        self._tokens = _token_source(config)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep_connected(), name="mqtt.keep_connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._tokens is not None:
            await self._tokens.aclose()

    def renew(self, config: BrokerConfig) -> None:
        """Use the secrets of `config`, and certificate files as they are now, from the next connection on.

        A connection that holds is left alone; without one, or without a new token for it, the next attempt is made at
        once.
        """
        self._config = self._config.with_secrets_of(config)
        if self._tokens is not None and self._config.oauth is not None:
            self._tokens.renew(self._config.oauth)
        self._renewed.set()

    # What the tools ask for.

    async def publish(
        self, topic: str, payload: bytes, qos: int, *, retain: bool, properties: PublishProperties
    ) -> Published:
        """Publish one message and wait for the acknowledgement that its QoS has.

        Raises:
            InputError: The topic is no topic name, or the broker cannot take such a message.
            BrokerOfflineError, BrokerRefusedError, BrokerSilentError: As their names say.
        """
        check_topic_name(topic)
        link = await self._online()
        size = len(topic.encode()) + len(payload) + properties.size + _PACKET_OVERHEAD
        _check_abilities(link.greeting, size, qos, retain=retain)
        if link.protocol == "3.1.1" and properties != PublishProperties():
            raise InputError(
                "The broker speaks MQTT 3.1.1, which has no message properties: leave out content_type, expiry_s, "
                "response_topic and user_properties."
            )
        started = time.perf_counter()
        with self._call():
            _, reason = await link.publish(topic, payload, qos, retain=retain, properties=properties)
        elapsed_ms = (time.perf_counter() - started) * 1000
        if qos == 0:
            return Published(acknowledged=False, reason="sent; QoS 0 is never acknowledged", elapsed_ms=elapsed_ms)
        return Published(acknowledged=True, reason=reason, elapsed_ms=elapsed_ms)

    async def subscribe(self, topic_filter: TopicFilter, qos: int) -> Subscription:
        """Open a subscription; on return the broker has confirmed it.

        Raises:
            InputError: The broker cannot have such a subscription.
            BrokerOfflineError, BrokerRefusedError, BrokerSilentError: As their names say; nothing is left behind.
        """
        link = await self._online()
        subscription = self.inbox.open(topic_filter, qos)
        feed = self._dispatch.feed(topic_filter, qos)
        feed.subscriptions.append(subscription)
        self._dispatch.changed()
        try:
            await self._subscribe(link, feed, qos)
        except BaseException:
            feed.subscriptions.remove(subscription)
            self.inbox.close(subscription)
            self._leave(feed)
            raise
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; others on the same filter go on.

        Raises:
            BrokerRefusedError, BrokerSilentError: It has ended here, but the broker refused or did not confirm.
        """
        feed = self._dispatch.feeds[subscription.topic_filter.text]
        feed.subscriptions.remove(subscription)
        self.inbox.close(subscription)
        answer = self._leave(feed)
        if answer is not None:
            try:
                with self._call():
                    async with asyncio.timeout(PROBE_TIMEOUT_S):
                        code, reason = await answer
            except TimeoutError:
                raise BrokerSilentError(
                    f"The subscription has ended here, but the broker did not confirm it within {PROBE_TIMEOUT_S:g} s."
                ) from None
            if code >= FAILURE:
                raise BrokerRefusedError(f"The subscription has ended here, but the broker goes on with it: {reason}.")

    @asynccontextmanager
    async def listen(
        self, topic_filter: TopicFilter, hear: Callable[[Message], None], qos: int = 1
    ) -> AsyncIterator[Watch]:
        """Hear what a filter brings, retained messages first, until the context ends.

        What is yielded is filled in at the end, when the broker has answered once more: only then is it sure that
        silence was silence.

        Raises:
            InputError, BrokerOfflineError, BrokerRefusedError, BrokerSilentError: As for `subscribe`.
        """
        link = await self._online()
        first_gap = self.inbox.next_gap()
        feed = self._dispatch.feed(topic_filter, qos)
        listener = Listener(hear)
        feed.listeners.append(listener)
        self._dispatch.changed()
        watch = Watch()
        try:
            await self._subscribe(link, feed, qos)
            yield watch
        finally:
            feed.listeners.remove(listener)
            listener.hear = _nobody_listens  # it may be remembered for a while, and what it heard is not to be
            answer = self._leave(feed)
        answered = await self._answered(answer)
        watch.gaps = self.inbox.gaps_since(first_gap, topic_filter)
        watch.connected_throughout = answered and all(gap.lost is not None for gap in watch.gaps)

    async def probe(self) -> float:
        """Make a round trip to the broker and return how many milliseconds it took.

        Raises:
            BrokerOfflineError, BrokerSilentError: As their names say.
        """
        link = await self._online()
        started = time.perf_counter()
        answer = link.unsubscribe_soon(f"coreflux-mcp/probe/{secrets.token_hex(8)}")
        try:
            with self._call():
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await answer
        except TimeoutError:
            raise BrokerSilentError(f"The broker did not answer within {PROBE_TIMEOUT_S:g} s.") from None
        return (time.perf_counter() - started) * 1000

    async def still_there(self, max_silence_s: float) -> bool:
        """Say whether the broker has been heard from within `max_silence_s`, or answers now."""
        if self._link is not None and self._link.silent_s <= max_silence_s:
            return True
        try:
            await self.probe()
        except BrokerError:
            return False
        return True

    async def first_attempt(self, timeout_s: float) -> None:
        """Return when the first attempt to connect has succeeded or failed, at the latest after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._first_attempt_over.wait()

    # Subscriptions at the broker.

    async def _online(self) -> Link:
        if self._link is None:
            await self.first_attempt(FIRST_ATTEMPT_S)
        if self._link is None:
            state = self.state
            why = f": {state.last_error}" if state.last_error else " yet."
            wait_s = max(0.0, (state.next_attempt_at or 0) - time.time())
            when = f" The next attempt is in {wait_s:.0f} s." if wait_s >= 1 else ""
            raise BrokerOfflineError(f"Not connected to {state.broker}{why}{when} Nothing was sent.")
        return self._link

    async def _subscribe(self, link: Link, feed: Feed, qos: int) -> None:
        _check_filter_abilities(link.greeting, feed.topic_filter)
        with self._call():
            async with feed.subscribing:
                wanted = max(feed.qos, qos)
                granted = await link.subscribe(
                    feed.topic_filter.text, wanted, feed.identifier, partial(self._dispatch.granted, feed)
                )
                feed.qos = wanted
                self._unwanted.discard(feed.topic_filter.text)
                self._note_grant(feed, granted)

    def _leave(self, feed: Feed) -> "asyncio.Future[tuple[int, str]] | None":
        """Let the broker forget a feed nobody lives on. Never waits, so that it works while being cancelled."""
        self._dispatch.changed()
        if not feed.unused:
            return None
        if gap := self._refusal_gap(feed):
            self.inbox.end_gap(gap)
        if self._link is not None:
            with suppress(BrokerOfflineError):
                return self._link.unsubscribe_soon(feed.topic_filter.text, self._dispatch.ending(feed))
        if self._config.session_expiry_s:
            self._unwanted.add(feed.topic_filter.text)
        return None

    async def _answered(self, answer: "asyncio.Future[tuple[int, str]] | None") -> bool:
        if answer is None:
            return await self.still_there(0)
        try:
            with self._call():
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await answer
        except (TimeoutError, BrokerError):
            return False
        return True

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Count a call that waits for the broker, so that the connection is not left in the midst of it."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._calm.set()

    # Keeping the connection.

    async def _keep_connected(self) -> None:
        failures = short_lives = 0
        while True:
            self._renewed.clear()
            started = time.monotonic()
            failure = await self._connect_and_stay()
            if self._at_once or (failure is not None and self._fall_back(failure)):
                self._at_once = False
                if failure is None:
                    failures = short_lives = 0
                continue
            self._first_attempt_over.set()
            stable = failure is None and time.monotonic() - started >= _STABLE_S
            failures = 0 if stable else failures + 1
            short_lives = short_lives + 1 if failure is None and not stable else 0
            if short_lives > 1 and self._config.client_id_fixed:
                # Many brokers do not say it, and they throw each of the two out whenever the other comes.
                self.state.last_error = f"{self.state.last_error} {_twin(self._config.client_id)}"
            wait_s = _back_off_s(failure, failures)
            self.state.next_attempt_at = time.time() + wait_s
            await self._pause(wait_s)

    async def _pause(self, wait_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._renewed.wait()

    def _fall_back(self, failure: LinkFailedError) -> bool:
        """Turn to the other MQTT version where the failure asks for it; say whether to try it at once."""
        # A broker that closed a connection after it took earlier ones is more likely restarting than another one.
        early = failure.kind == "closed" and self.state.connections == 0
        if self._config.protocol != "auto" or not (early or failure.kind == "protocol"):
            return False
        self._protocol = "3.1.1" if self._protocol == "5" else "5"
        falling_back = self._protocol == "3.1.1"
        self._fell_back_from = failure if falling_back and early else None
        return falling_back

    async def _connect_and_stay(self) -> LinkFailedError | None:
        """Make one connection and stay until it ends; return why none came about, or None."""
        state = self.state
        state.attempts += 1
        try:
            link, token = await self._open()
        except LinkFailedError as exc:
            state.errors += 1
            failure, earlier = exc, self._fell_back_from
            if earlier is not None and str(earlier) != str(exc):
                failure = LinkFailedError(f"{exc} Before, in MQTT 5: {earlier}", exc.kind)
            self._tell("login_failed" if exc.kind == "login" else "connection_failed", failure)
            return failure
        self._fell_back_from = None
        try:
            await self._stay(link, token)
        finally:
            self._link = None
            state.connected, state.since, state.protocol = False, time.time(), None
            if not link.ended.done():
                await link.close()
        return None

    def _tell(self, event: str, failure: LinkFailedError) -> None:
        if str(failure) != self.state.last_error:
            logger.warning("%s Trying again until it works.", failure)
            self._notice(event, reason=str(failure))
        self.state.last_error = str(failure)

    async def _open(self) -> "tuple[Link, Token | None]":
        """Make a connection; return it and the token it was made with, if its password is one."""
        config, token, before = self._config, None, None
        if self._tokens is not None and config.oauth is not None:
            before = self._tokens.token
            token = await self._tokens.usable()
            config = replace(config, user=config.user or config.oauth.client_id, password=token.password)
        self._dispatch.reset()
        link = Link(
            config,
            self._protocol,
            clean_start=self.state.connections == 0 or not config.session_expiry_s,
            deliver=self._dispatch.deliver,
            lose=self._lose,
            unreleased=self._unreleased,
            max_waiting_bytes=self.inbox.max_bytes,
        )
        try:
            await link.open()
        except LinkFailedError as exc:
            if self._tokens is None or token is None or exc.kind != "login":
                raise
            self._tokens.drop()
            self._at_once = token is before  # it may have been revoked: a fresh one is tried before anybody waits
            raise LinkFailedError(f"{exc} The password was a token of {self._tokens.url}.", exc.kind) from exc
        return link, token

    async def _stay(self, link: Link, token: "Token | None") -> None:
        state, greeting = self.state, link.greeting
        if not greeting.session_present:
            self._dispatch.session_is_new()
        self._link = link
        self._first_attempt_over.set()
        state.connected, state.since, state.protocol = True, time.time(), link.protocol
        state.client_id = greeting.client_id or self._config.client_id
        state.maximum_qos = greeting.maximum_qos
        state.tls, state.session_resumed = link.tls_facts(), greeting.session_present
        state.connections += 1
        state.attempts, state.next_attempt_at, state.last_error = 0, None, None
        logger.info("connected to %s with MQTT %s as %s", state.broker, link.protocol, state.client_id)
        self._notice("connected", broker=state.broker, client_id=state.client_id)
        feeds = list(self._dispatch.feeds.values())  # now: those that are added from here on subscribe by themselves
        restoring = asyncio.create_task(self._restore(link, feeds), name="mqtt.restore_subscriptions")
        try:
            if await self._is_to_be_left(link, token):
                await self._leave_for_new_login(link)
                return
        finally:
            restoring.cancel()
        ending = link.ended.result()
        state.errors += 1
        state.last_error = f"The connection to {state.broker} was lost: {ending.cause}."
        logger.warning("%s", state.last_error)
        self._notice("connection_lost", broker=state.broker, reason=ending.cause)
        self._begin_gap(ending.cause, ending.deaf_since)

    def _begin_gap(self, cause: str, start: float | None = None) -> None:
        if not any(gap.end is None and gap.topic_filter is None for gap in self.inbox.gaps):
            self.inbox.begin_gap(cause, start)

    # A new login in time.

    async def _is_to_be_left(self, link: Link, token: "Token | None") -> bool:
        """Wait until a connection has ended, or until there is a new token for the next one; say whether it is that."""
        if self._tokens is None or token is None:
            await asyncio.wait([link.ended])  # awaiting it would cancel it with us, and a link that ended is not closed
            return False
        renewing = asyncio.create_task(self._renew_token(self._tokens, token), name="mqtt.renew_token")
        ways_out: list[asyncio.Future[Any]] = [link.ended, renewing]
        try:
            await asyncio.wait(ways_out, return_when=asyncio.FIRST_COMPLETED)
            if not link.ended.done():
                renewing.result()
                self._link = None  # calls that come now wait for the next connection
                self._first_attempt_over.clear()
                await self._calls_over(link)
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])
        return not link.ended.done()

    async def _renew_token(self, tokens: "TokenSource", token: "Token") -> None:
        """Return when there is a new token in place of `token`, which is good until then, or as the broker sees it."""
        await asyncio.sleep(token.due_in_s)
        failures = 0
        while True:
            self._renewed.clear()
            try:
                await tokens.fetch()
            except LinkFailedError as exc:
                self._tell("login_renewal_failed", exc)
                failures += 1
                await self._pause(_back_off_s(exc, failures))
            else:
                return

    async def _calls_over(self, link: Link) -> None:
        """Let calls under way end, but not for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CALM_S):
                while self._calls and not link.ended.done():
                    self._calm.clear()
                    await self._calm.wait()

    async def _leave_for_new_login(self, link: Link) -> None:
        """End a connection that is well, and not its session; the next one is made at once."""
        logger.info("%s at %s: connecting again", LOGIN_RENEWED, self.state.broker)
        self._notice("login_renewed", broker=self.state.broker)
        self._begin_gap(LOGIN_RENEWED)
        self._at_once = True
        await link.close(keep_session=True)

    # Subscriptions after a reconnect.

    async def _restore(self, link: Link, feeds: list[Feed]) -> None:
        """Subscribe again to everything, and end the gaps where that worked."""
        for text in self._unwanted - self._dispatch.feeds.keys():
            with suppress(BrokerOfflineError):
                link.unsubscribe_soon(text)
        self._unwanted.clear()
        await asyncio.gather(*(self._restore_feed(link, feed) for feed in feeds))
        if self._link is link and not link.ended.done():
            for gap in self.inbox.gaps:
                if gap.end is None and gap.topic_filter is None:
                    self.inbox.end_gap(gap, session_resumed=link.greeting.session_present)

    async def _restore_feed(self, link: Link, feed: Feed) -> None:
        async with feed.subscribing:
            if feed.unused:
                return  # they left meanwhile, and there may be a new feed for the filter by now
            try:
                granted = await link.subscribe(
                    feed.topic_filter.text,
                    feed.qos,
                    feed.identifier,
                    partial(self._dispatch.granted, feed),
                    known=link.greeting.session_present,
                )
            except BrokerError as exc:
                if link.ended.done():
                    return
                logger.warning("%s It brings nothing until the broker accepts it again.", exc)
                self._note_refusal(feed, str(exc))
            else:
                self._note_grant(feed, granted)

    def _note_grant(self, feed: Feed, granted_qos: int) -> None:
        """Take note of what the broker grants a feed now, which may be less than before."""
        for subscription in feed.subscriptions:
            subscription.granted_qos = granted_qos
        self._note_refusal(feed, None)

    def _note_refusal(self, feed: Feed, refusal: str | None) -> None:
        """Take note of whether the broker refuses a feed that it had before."""
        for subscription in feed.subscriptions:
            subscription.refusal = refusal
        gap = self._refusal_gap(feed)
        if refusal and gap is None:
            self.inbox.begin_gap(refusal, topic_filter=feed.topic_filter)
        elif gap and not refusal:
            self.inbox.end_gap(gap)

    def _refusal_gap(self, feed: Feed) -> Gap | None:
        return next((gap for gap in self.inbox.gaps if gap.end is None and gap.topic_filter == feed.topic_filter), None)

    def _lose(self, count: int) -> None:
        logger.warning("%d messages came faster than they could be taken over and are lost", count)
        self.inbox.lose(count, "they came faster than they could be taken over")


def _token_source(config: BrokerConfig) -> "TokenSource | None":
    if config.oauth is None:
        return None
    from mqtt_oauth import TokenSource  # noqa: PLC0415 - only these settings need it

    return TokenSource(config.oauth)


def _back_off_s(failure: LinkFailedError | None, failures: int) -> float:
    first_s, longest_s = _LOGIN_BACK_OFF_S if failure is not None and failure.kind == "login" else _BACK_OFF_S
    wait_s: float = min(longest_s, first_s * 2 ** min(failures, 10))
    return wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _twin(client_id: str) -> str:
    return f"This happened again soon: does another client use the client id {shown(client_id)} (MQTT_CLIENT_ID)?"


_PACKET_OVERHEAD: Final = 16
"""Bytes of a PUBLISH besides topic, payload and properties, or of a SUBSCRIBE besides the filter, rounded up."""


def _nobody_listens(_message: Message) -> None:
    pass


def _check_abilities(greeting: Greeting, size: int, qos: int, *, retain: bool) -> None:
    """Refuse what the broker said in CONNACK it cannot take: sending it would cost the connection (MQTT 5.0, 3.2.2.3).

    Raises:
        BrokerRefusedError: It cannot.
    """
    if qos > greeting.maximum_qos:
        raise BrokerRefusedError(f"The broker takes at most QoS {greeting.maximum_qos}: publish with that.")
    if retain and not greeting.retain_available:
        raise BrokerRefusedError("The broker keeps no retained messages: publish with retain=false.")
    _check_size(greeting, size, "send a smaller payload")


def _check_size(greeting: Greeting, size: int, advice: str) -> None:
    if greeting.maximum_packet_size is not None and size > greeting.maximum_packet_size:
        raise BrokerRefusedError(
            f"The broker takes packets of at most {greeting.maximum_packet_size} bytes, and this one has about {size}: "
            f"{advice}."
        )


def _check_filter_abilities(greeting: Greeting, topic_filter: TopicFilter) -> None:
    size = len(topic_filter.text.encode()) + _PACKET_OVERHEAD
    _check_size(greeting, size, "subscribe to a shorter filter")
    if topic_filter.has_wildcard and not greeting.wildcard_subscriptions:
        raise BrokerRefusedError("The broker has no wildcard subscriptions: subscribe to exact topics.")
    if topic_filter.share_name is not None and not greeting.shared_subscriptions:
        raise BrokerRefusedError(f"The broker has no shared subscriptions: leave out {shown('$share/…')}.")
