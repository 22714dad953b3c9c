"""A login with tokens, against a token service and a broker that checks them: in time, in secret, and told apart."""

import asyncio
import base64
import itertools
import logging
import math
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import SecretStr

import mqtt_client
import mqtt_oauth
import sanitizer
from config import BrokerConfig, OAuthConfig
from errors import BrokerOfflineError
from inbox import Inbox, Subscription
from mqtt_client import LOGIN_RENEWED, MqttClient
from mqtt_failures import LinkFailedError
from mqtt_link import PublishProperties
from mqtt_oauth import LARGEST_ANSWER, Token, TokenSource
from simulator.broker import Broker
from simulator.messages import Message
from simulator.tokens import Tokens
from tests.documentation import ROOT
from tests.doubles.copilot import (
    CLOSE,
    HANG,
    Answer,
    as_json,
    closed_midway,
    failure,
    not_json,
    preceded_by,
    redirect,
    slow,
)
from tests.doubles.oauth import OAuthDouble, refused
from tests.raw_client import RawClient
from tests.wire import until
from topics import TopicFilter

pytestmark = pytest.mark.anyio

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client try again at once."""
    monkeypatch.setattr(mqtt_client, "_BACK_OFF_S", (0.01, 0.02))


@pytest.fixture
async def service() -> AsyncIterator[OAuthDouble]:
    async with OAuthDouble() as double:
        yield double


@pytest.fixture
async def broker(service: OAuthDouble) -> AsyncIterator[Broker]:
    """A broker that lets in who shows a token of the service."""
    async with Broker(tokens=service.trusted) as broker:
        yield broker


def knowing(service: OAuthDouble, **more: Any) -> OAuthConfig:
    settings: dict[str, Any] = {
        "token_url": service.url,
        "client_id": service.client_id,
        "client_secret": SecretStr(service.secret),
        "scope": service.scope,
    }
    return OAuthConfig(**settings | more)


@asynccontextmanager
async def started(broker: Broker, service: OAuthDouble, **settings: Any) -> AsyncIterator[MqttClient]:
    """Start a client that need not get through."""
    config = BrokerConfig(host=broker.host, port=broker.port, oauth=knowing(service), **settings)
    async with MqttClient(config, Inbox(10_000, 1 << 20)) as client:
        yield client


@asynccontextmanager
async def connected(broker: Broker, service: OAuthDouble, **settings: Any) -> AsyncIterator[MqttClient]:
    """Start a client and wait until it is connected."""
    async with started(broker, service, **settings) as client:
        await until(lambda: client.state.connected, what="a connection")
        yield client


@asynccontextmanager
async def source(service: OAuthDouble, **settings: Any) -> AsyncIterator[TokenSource]:
    tokens = TokenSource(knowing(service, **settings))
    yield tokens
    await tokens.aclose()


async def failed(service: OAuthDouble, **settings: Any) -> LinkFailedError:
    async with source(service, **settings) as tokens:
        with pytest.raises(LinkFailedError) as caught:
            await tokens.fetch()
    return caught.value


async def why_not(client: MqttClient) -> str:
    """Wait until an attempt to connect has failed and return what the operator reads."""
    await until(lambda: client.state.next_attempt_at is not None, what="a failed attempt")
    assert not client.state.connected
    assert client.state.last_error is not None
    return client.state.last_error


def connections(client: MqttClient, count: int) -> Callable[[], bool]:
    return lambda: client.state.connected and client.state.connections >= count


def received(subscription: Subscription, count: int) -> Callable[[], bool]:
    return lambda: subscription.received >= count


def restored(client: MqttClient) -> bool:
    return client.state.connected and all(gap.end is not None for gap in client.inbox.gaps)


def payloads(client: MqttClient, subscription: Subscription) -> list[bytes]:
    return [message.payload for message in client.inbox.read(subscription).messages]


class TestToken:
    async def test_it_is_asked_for_as_the_standard_has_it(self, service: OAuthDouble) -> None:
        async with source(service) as tokens:
            token = await tokens.fetch()

        (asked,) = service.requests
        assert (asked.method, asked.path) == ("POST", "/oauth2/token")
        assert asked.form == {"grant_type": "client_credentials", "scope": service.scope}
        encoded = base64.b64decode(asked.headers["Authorization"].removeprefix("Basic ")).decode()
        assert encoded.startswith("plant+7%2F%C3%BC%3A:s%25%2B+%3A")  # RFC 6749, 2.3.1
        assert asked.headers["Accept"] == "application/json"
        assert [token.password.get_secret_value()] == service.tokens
        assert token.lifetime_s == 3600

    async def test_without_a_scope_none_is_asked_for(self, service: OAuthDouble) -> None:
        async with source(service, scope=None) as tokens:
            await tokens.fetch()

        assert service.requests[0].form == {"grant_type": "client_credentials"}

    async def test_it_is_kept_until_it_is_time_for_the_next(
        self, service: OAuthDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with source(service) as tokens:
            first = await tokens.usable()
            assert await tokens.usable() is first

            tokens.token = replace(first, asked=first.asked - 0.8 * 3600)
            second = await tokens.usable()
            tokens.drop()
            third = await tokens.usable()

        assert len({first.password, second.password, third.password}) == len(service.requests) == 3

    async def test_an_old_one_is_used_while_no_new_one_can_be_had_and_not_longer(self, service: OAuthDouble) -> None:
        async with source(service) as tokens:
            token = await tokens.usable()
            service.answer(failure(503), failure(503))

            tokens.token = aging = replace(token, asked=token.asked - 3599)
            assert await tokens.usable() is aging

            tokens.token = replace(token, asked=token.asked - 3601)
            with pytest.raises(LinkFailedError, match="503"):
                await tokens.usable()

    @pytest.mark.parametrize(
        ("lifetime_s", "due_s"),
        [
            (3600, 2880),
            (50, 40),  # from here down the ten seconds before its end come first
            (49, 39),
            (20, 10),
            (19.9, 15.92),  # they would be in its first half
            (2, 1.6),
            (0.5, 1),  # no service is hammered
        ],
    )
    def test_it_is_due_after_four_fifths_of_its_life_or_ten_seconds_before_its_end(
        self, lifetime_s: float, due_s: float
    ) -> None:
        token = Token(SecretStr("x"), lifetime_s, time.monotonic(), time.time())

        assert token.due_in_s == pytest.approx(due_s, abs=0.1)
        assert not token.expired
        assert replace(token, asked_at=token.asked_at - lifetime_s).due_in_s == pytest.approx(
            max(0, due_s - lifetime_s), abs=0.1
        )
        assert replace(token, asked_at=token.asked_at - lifetime_s).expired  # whatever the machine slept through

    @pytest.mark.parametrize(
        ("expires_in", "lifetime_s"),
        [
            (1, 1),
            (0.5, 0.5),
            ("3599", 3599),  # as some services write it
            (10**400, 31_536_000),
            (..., 3600),  # as the token itself says
            (None, 3600),
        ],
    )
    async def test_how_long_it_lives_is_what_the_service_says_or_else_the_token(
        self, service: OAuthDouble, expires_in: object, lifetime_s: float
    ) -> None:
        service.answer(service.granted(expires_in=expires_in))

        async with source(service) as tokens:
            assert (await tokens.fetch()).lifetime_s == pytest.approx(lifetime_s, abs=1)

    @pytest.mark.parametrize("expires_in", [0, -1, "soon", "", "-5", True, [3600], math.nan])
    async def test_a_lifetime_that_makes_no_sense_is_told(self, service: OAuthDouble, expires_in: object) -> None:
        service.answer(service.granted(expires_in=expires_in))

        assert "gave a token that has expired or never will (expires_in)" in str(await failed(service))

    async def test_a_token_that_expired_before_it_came_is_told(self, service: OAuthDouble) -> None:
        service.answer(service.granted(access_token=service.token(exp=time.time() - 1), expires_in=...))

        assert "has expired" in str(await failed(service))

    @pytest.mark.parametrize(
        "token",
        [
            "opaque",
            "a.b.c",
            "a.!!.c",
            "a.bnVsbA.c",  # null
            jwt.encode({"sub": "x"}, "k" * 32),
            jwt.encode({"exp": 1}, "k" * 32).replace(".", ".."),
        ],
    )
    async def test_a_token_that_nobody_knows_the_end_of_lives_for_five_minutes(
        self, service: OAuthDouble, token: str
    ) -> None:
        service.answer(service.granted(access_token=token, expires_in=...))

        async with source(service) as tokens:
            assert (await tokens.fetch()).lifetime_s == 300

    @pytest.mark.parametrize("size", [1, 60_000])
    async def test_a_token_that_fits_a_password_is_taken(self, service: OAuthDouble, size: int) -> None:
        service.answer(service.granted(access_token="t" * size))

        async with source(service) as tokens:
            assert (await tokens.fetch()).password == SecretStr("t" * size)

    @pytest.mark.parametrize("kind", ["bearer", "BEARER"])
    async def test_the_case_of_its_type_does_not_matter(self, service: OAuthDouble, kind: str) -> None:
        service.answer(service.granted(token_type=kind))

        async with source(service) as tokens:
            await tokens.fetch()


INVALID_CLIENT = "Check MQTT_OAUTH_CLIENT_ID and MQTT_OAUTH_CLIENT_SECRET."
CHECK_URL = "Check MQTT_OAUTH_TOKEN_URL."
NO_TOKEN = "answered with something that is no token"
UNFIT = "gave a token that can be no password (access_token)"
NO_BEARER = "gave a token that is none for whoever bears it (token_type)"


def given(**fields: object) -> Answer:
    """An answer with a token that none can be made of."""
    said = {"access_token": "t0ken", "token_type": "bearer", "expires_in": 60} | fields
    return as_json({name: value for name, value in said.items() if value is not ...})


ANSWERS: dict[str, tuple[Answer, str, str, str]] = {
    "wrong secret": (refused("invalid_client", 401), "refuses a token (HTTP 401, invalid_client)", INVALID_CLIENT, "l"),
    "401 without words": (failure(401), "refuses a token (HTTP 401)", INVALID_CLIENT, "l"),
    "wrong secret, as 400": (
        refused("invalid_client"),
        "refuses a token (HTTP 400, invalid_client)",
        INVALID_CLIENT,
        "l",
    ),
    "403": (failure(403), "refuses a token (HTTP 403)", INVALID_CLIENT, "l"),
    "wrong scope": (
        refused("invalid_scope"),
        "refuses a token (HTTP 400, invalid_scope)",
        "Check MQTT_OAUTH_SCOPE.",
        "l",
    ),
    "no such grant": (
        refused("unauthorized_client"),
        "refuses a token (HTTP 400, unauthorized_client)",
        "There, allow this client the grant type client_credentials.",
        "l",
    ),
    "an error that could be any text": (
        refused("<b>hunter2</b>"),
        "refuses a token (HTTP 400)",
        "Check MQTT_OAUTH_TOKEN_URL, and whether it wants MQTT_OAUTH_SCOPE.",
        "l",
    ),
    "an error with 200": (
        refused("invalid_client", 200),
        "refuses a token (HTTP 200, invalid_client)",
        INVALID_CLIENT,
        "l",
    ),
    "trouble": (failure(500), "has trouble of its own (HTTP 500)", "It is asked again.", "n"),
    "trouble, in HTML": (failure(502), "has trouble of its own (HTTP 502)", "It is asked again.", "n"),
    "trouble for now": (
        refused("temporarily_unavailable"),
        "has trouble of its own (HTTP 400)",
        "It is asked again.",
        "n",
    ),
    "asked too often": (failure(429), "was asked too often (HTTP 429)", "It is asked again.", "n"),
    "another address": (failure(404), "does not give tokens at this address (HTTP 404)", CHECK_URL, "n"),
    "elsewhere": (
        redirect("http://127.0.0.1:9/"),
        "sends us to another address, where the secret does not go (HTTP 307)",
        CHECK_URL,
        "n",
    ),
    "HTML": (not_json("<html>hunter2</html>", "text/html"), NO_TOKEN, CHECK_URL, "n"),
    "empty": (not_json(""), NO_TOKEN, CHECK_URL, "n"),
    "deep": (not_json("[" * 60_000), NO_TOKEN, CHECK_URL, "n"),
    "no object": (as_json(["hunter2"]), NO_TOKEN, CHECK_URL, "n"),
    "no token": (given(access_token=...), NO_TOKEN, CHECK_URL, "n"),
    "null for a token": (given(access_token=None), UNFIT, CHECK_URL, "n"),
    "an empty token": (given(access_token=""), UNFIT, CHECK_URL, "n"),
    "a token with a line break": (given(access_token="hunter2\n"), UNFIT, CHECK_URL, "n"),
    "a token that is no text": (not_json('{"access_token": "hunter2\\ud800"}'), UNFIT, CHECK_URL, "n"),
    "no type": (given(token_type=...), NO_BEARER, CHECK_URL, "n"),
    "another type": (given(token_type="mac"), NO_BEARER, CHECK_URL, "n"),
    "a huge body": (
        given(more="x" * LARGEST_ANSWER),
        f"answered with more than {LARGEST_ANSWER} bytes",
        CHECK_URL,
        "n",
    ),
    "a huge refusal": (
        refused("invalid_client", 401, more="x" * LARGEST_ANSWER),
        f"answered with more than {LARGEST_ANSWER} bytes",
        CHECK_URL,
        "n",
    ),
    "no HTTP": (
        preceded_by(b"220 smtp.example hunter2\r\n", CLOSE),
        "could not be reached (it broke off, or speaks no HTTP)",
        "Check MQTT_OAUTH_TOKEN_URL, the network and the proxy.",
        "n",
    ),
    "half an answer": (
        closed_midway(given()),
        "could not be reached (it broke off, or speaks no HTTP)",
        "Check MQTT_OAUTH_TOKEN_URL, the network and the proxy.",
        "n",
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_what_is_wrong_with_the_token_service_is_told_in_own_words(service: OAuthDouble, case: str) -> None:
    answer, what, advice, kind = ANSWERS[case]
    service.answer(answer)

    told = await failed(service)

    assert str(told) == f"The token service {service.url} {what}: this is not the broker. {advice}"
    assert told.kind == {"l": "login", "n": "network"}[kind]
    assert len(service.requests) == 1


@pytest.mark.parametrize("answer", [preceded_by(HANG), slow(60), closed_midway(given(), how=HANG)])
async def test_a_token_service_that_is_too_slow_is_told(
    service: OAuthDouble, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_oauth, "TIMEOUT_S", 0.2)
    service.answer(answer)

    assert str(await failed(service)) == (
        f"The token service {service.url} did not answer within 0.2 s: this is not the broker. It may be busy or down."
    )


async def test_the_query_of_its_address_is_sent_and_not_shown(service: OAuthDouble) -> None:
    service.answer(failure(500))

    told = await failed(service, token_url=f"{service.url}?tenant=hunter2")

    assert service.requests[0].path == "/oauth2/token?tenant=hunter2"
    assert "hunter2" not in str(told)


async def test_an_address_that_is_none_to_the_library_is_told(service: OAuthDouble) -> None:
    told = await failed(service, token_url=f"http://127.0.0.1/{'x' * 70_000}")

    assert str(told).endswith(f" has an address that cannot be asked: this is not the broker. {CHECK_URL}")


async def test_a_proxy_that_cannot_be_used_is_told_without_its_address(
    service: OAuthDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"nonsense://me:{service.secret[-8:]}@proxy")

    told = str(await failed(service))

    assert "HTTPS_PROXY" in told
    assert service.secret[-8:] not in told


class TestLogin:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_the_password_is_a_token_and_the_user_the_client_unless_another_is_set(
        self, broker: Broker, service: OAuthDouble, protocol: str
    ) -> None:
        seen: list[str] = []

        def see(message: Message) -> bool:
            seen.append(message.username)
            return True

        broker.on_publish.append(see)

        for user in (None, "operator"):
            async with connected(broker, service, protocol=protocol, user=user) as client:
                await client.publish("a", b"", 1, retain=False, properties=PublishProperties())

        assert seen == [service.client_id, "operator"]
        assert len(service.tokens) == 2

    async def test_a_token_is_used_for_one_connection_after_another(self, broker: Broker, service: OAuthDouble) -> None:
        async with connected(broker, service, client_id="one") as client:
            broker.cut_off("one")
            await until(connections(client, 2))

        assert len(service.requests) == 1

    async def test_a_token_service_that_is_down_is_told_apart_from_a_broker_that_is(
        self, broker: Broker, service: OAuthDouble
    ) -> None:
        noticed: list[str] = []
        await service.stop()
        config = BrokerConfig(host=broker.host, port=broker.port, oauth=knowing(service))
        async with MqttClient(config, Inbox(10, 1000), lambda event, **_: noticed.append(event)) as client:
            told = await why_not(client)
            assert told.startswith(f"The token service {service.url} could not be reached (")
            assert ": this is not the broker." in told
            with pytest.raises(BrokerOfflineError) as offline:
                await client.probe()
            assert told in str(offline.value)

            await service.start()
            await until(lambda: client.state.connected)
            assert client.state.last_error is None

            await broker.aclose()
            await until(lambda: "nothing listens there" in str(client.state.last_error))
            assert "token service" not in str(client.state.last_error)

        assert noticed[:2] == ["connection_failed", "connected"]

    async def test_a_client_that_the_service_refuses_is_not_tried_again_soon_and_a_new_secret_is_at_once(
        self, broker: Broker, service: OAuthDouble
    ) -> None:
        noticed: list[str] = []
        wrong = knowing(service, client_secret=SecretStr("wrong-hunter2"))
        config = BrokerConfig(host=broker.host, port=broker.port, oauth=wrong)
        async with MqttClient(config, Inbox(10, 1000), lambda event, **_: noticed.append(event)) as client:
            assert "refuses a token (HTTP 401, invalid_client)" in await why_not(client)
            assert (client.state.next_attempt_at or 0) - time.time() > 20

            client.renew(replace(config, oauth=knowing(service)))
            await until(lambda: client.state.connected)

        assert noticed == ["login_failed", "connected"]
        assert len(service.requests) == 2

    @pytest.mark.parametrize("flaw", ["expired", "badly signed", "for others", "no token"])
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_a_token_that_the_broker_refuses_is_replaced_by_a_fresh_one(
        self, broker: Broker, service: OAuthDouble, flaw: str, protocol: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_client, "_LOGIN_BACK_OFF_S", (0.01, 0.02))
        bad = {
            "expired": service.token(exp=time.time() - 1),
            "badly signed": jwt.encode({"exp": time.time() + 60, "aud": service.audience}, "k" * 32),
            "for others": service.token(aud="others"),
            "no token": "hunter2",
        }[flaw]
        service.answer(service.granted(access_token=bad))
        refusals: list[str] = []

        def note(event: str, reason: str = "", **_: str) -> None:
            refusals.extend([reason] if event == "login_failed" else [])

        config = BrokerConfig(host=broker.host, port=broker.port, protocol=protocol, oauth=knowing(service))  # type: ignore[arg-type] # one of them
        async with MqttClient(config, Inbox(10, 1000), note) as client:
            await until(lambda: client.state.connected)

        (told,) = refusals
        assert told.startswith(f"mqtt://127.0.0.1:{broker.port} refused the connection: ")
        assert told.endswith(f" The password was a token of {service.url}.")
        assert len(service.tokens) == 2

    async def test_a_token_that_was_good_and_is_refused_now_is_replaced_at_once(self, service: OAuthDouble) -> None:
        async with Broker(tokens=service.trusted) as broker, connected(broker, service) as client:
            await broker.aclose()
            service._verifying = service._signing = secrets.token_hex(32)  # noqa: SLF001 - the keys are changed
            async with Broker(broker.port, tokens=service.trusted):
                await until(connections(client, 2), timeout_s=5)  # long before a refused login's back-off

        assert len(service.tokens) == 2

    async def test_closing_while_a_token_is_fetched_ends_cleanly(self, broker: Broker, service: OAuthDouble) -> None:
        tasks = asyncio.all_tasks()
        service.answer(preceded_by(HANG))

        async with started(broker, service):
            await service.arrived()
            closing = time.monotonic()
        assert time.monotonic() - closing < 1

        await until(lambda: asyncio.all_tasks() <= tasks)


class TestRenewal:
    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_it_comes_before_the_broker_would_end_the_connection(self, protocol: str) -> None:
        async with (
            OAuthDouble(lifetime_s=4) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service, protocol=protocol) as client,
        ):
            await until(connections(client, 2))

            assert {gap.cause for gap in client.inbox.gaps} == {LOGIN_RENEWED}
            assert client.state.last_error is None

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_no_subscription_is_lost_and_the_gap_is_told(self, protocol: str) -> None:
        async with (
            OAuthDouble(expires_in=1) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service, protocol=protocol) as client,
        ):
            heard: list[bytes] = []
            subscription = await client.subscribe(TopicFilter("plant/#"), 1)
            broker.publish("plant/a", b"before", 1)
            await until(received(subscription, 1))
            cursor = client.inbox.read(subscription).cursor(1)

            async with client.listen(TopicFilter("plant/+"), lambda message: heard.append(message.payload)) as watch:
                service.expires_in = 3600  # of the next token, which is the last one
                await until(connections(client, 2))
                await until(lambda: restored(client))
                broker.publish("plant/a", b"after", 1)
                await until(lambda: b"after" in heard)

            assert client.inbox.subscription(subscription.id) is subscription
            assert payloads(client, subscription) == [b"before", b"after"]
            rest = client.inbox.read(subscription, after=cursor)
            assert [message.payload for message in rest.messages] == [b"after"]
            assert {gap.cause for gap in rest.gaps} == {LOGIN_RENEWED}
            assert not rest.connected_throughout
            assert not watch.connected_throughout
            assert {gap.cause for gap in watch.gaps} == {LOGIN_RENEWED}

    async def test_a_session_that_the_broker_keeps_is_resumed_and_nothing_is_missed(self) -> None:
        async with (
            OAuthDouble(expires_in=1) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service, client_id="kept", client_id_fixed=True, session_expiry_s=60) as client,
        ):
            subscription = await client.subscribe(TopicFilter("count"), 2)
            sent = 0
            while client.state.connections < 3:
                broker.publish("count", b"%d" % sent, 2)
                sent += 1
                await asyncio.sleep(0.002)
            await until(received(subscription, sent))

            assert payloads(client, subscription) == [b"%d" % number for number in range(sent)]
            assert client.state.session_resumed
            assert {(gap.cause, gap.session_resumed) for gap in client.inbox.gaps if gap.end} == {(LOGIN_RENEWED, True)}

    async def test_no_call_fails_because_of_it(self) -> None:
        async with (
            OAuthDouble(expires_in=1) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service) as client,
        ):
            taken: list[bytes] = []

            def take(message: Message) -> bool:
                taken.append(message.payload)
                return True

            broker.on_publish.append(take)

            async def publish_all_the_time(name: bytes) -> int:
                count = 0
                while client.state.connections < 3:
                    said = await client.publish("t", name, 2, retain=False, properties=PublishProperties())
                    assert said.acknowledged
                    count += 1
                return count

            async def subscribe_all_the_time() -> None:
                while client.state.connections < 3:
                    await client.unsubscribe(await client.subscribe(TopicFilter("t/+"), 1))
                    await client.probe()

            async with asyncio.timeout(15):
                busy = asyncio.create_task(subscribe_all_the_time())
                counts = await asyncio.gather(*(publish_all_the_time(name) for name in (b"a", b"b", b"c")))
                await busy

            assert [taken.count(name) for name in (b"a", b"b", b"c")] == counts
            assert {gap.cause for gap in client.inbox.gaps} == {LOGIN_RENEWED}

    async def test_it_counts_as_no_failure_and_waits_for_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mqtt_client, "_BACK_OFF_S", (60.0, 60.0))
        noticed: list[str] = []
        async with OAuthDouble(expires_in=1) as service, Broker(tokens=service.trusted) as broker:
            fixed: dict[str, Any] = {"client_id": "fixed", "client_id_fixed": True}
            config = BrokerConfig(host=broker.host, port=broker.port, oauth=knowing(service), **fixed)
            async with MqttClient(config, Inbox(10, 1000), lambda event, **_: noticed.append(event)) as client:
                await until(connections(client, 4))
                assert client.state.next_attempt_at is None
                assert client.state.last_error is None

        assert noticed == [*["connected", "login_renewed"] * 3, "connected"]

    async def test_while_no_new_token_can_be_had_the_connection_stays_and_the_cause_is_told(self) -> None:
        noticed: list[str] = []
        async with OAuthDouble(expires_in=1) as service, Broker(tokens=service.trusted) as broker:
            config = BrokerConfig(host=broker.host, port=broker.port, oauth=knowing(service))
            async with MqttClient(config, Inbox(10, 1000), lambda event, **_: noticed.append(event)) as client:
                await until(lambda: client.state.connected)
                await service.stop()
                await until(lambda: client.state.last_error)
                assert "this is not the broker" in str(client.state.last_error)
                assert client.state.connected
                await client.probe()

                await service.start()
                await until(connections(client, 2))
                assert client.state.last_error is None

        assert noticed[:4] == ["connected", "login_renewal_failed", "login_renewed", "connected"]

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_where_none_could_be_had_in_time_the_broker_ends_it_and_it_comes_back_by_itself(
        self, protocol: str
    ) -> None:
        async with (
            OAuthDouble(lifetime_s=2) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service, protocol=protocol) as client,
        ):
            await service.stop()
            await until(lambda: not client.state.connected, what="the end of the token")
            await until(lambda: "token service" in str(client.state.last_error))
            service.lifetime_s = 3600
            await service.start()
            await until(lambda: restored(client))

            (gap,) = client.inbox.gaps
            assert gap.cause.startswith("the broker closed it")
            assert protocol != "5" or "0xA0" in gap.cause

    async def test_a_secret_that_was_rotated_is_used_for_the_next_token_and_not_before(
        self, service: OAuthDouble, broker: Broker
    ) -> None:
        service.expires_in = 1
        async with connected(broker, service) as client:
            service.secret = f"new-{secrets.token_hex(8)}"
            await until(lambda: "invalid_client" in str(client.state.last_error))
            assert client.state.connected
            client.renew(BrokerConfig(oauth=knowing(service)))
            await until(connections(client, 2), timeout_s=5)  # long before a refused login's back-off

            asked = len(service.requests)
            service.expires_in = 3600
            client.renew(BrokerConfig(oauth=knowing(service)))
            assert client.state.connected
            assert len(service.requests) == asked

    async def test_closing_while_a_token_is_renewed_ends_cleanly(self) -> None:
        async with OAuthDouble(expires_in=1) as service, Broker(tokens=service.trusted) as broker:
            tasks = asyncio.all_tasks()
            async with connected(broker, service):
                service.answer(preceded_by(HANG))
                await service.arrived(2)
                closing = time.monotonic()
            assert time.monotonic() - closing < 1
            await until(lambda: asyncio.all_tasks() <= tasks)

    async def test_a_connection_that_is_lost_while_a_token_is_renewed_is_made_again(self) -> None:
        async with (
            OAuthDouble(expires_in=1) as service,
            Broker(tokens=service.trusted) as broker,
            connected(broker, service, client_id="cut") as client,
        ):
            service.answer(preceded_by(HANG))
            await service.arrived(2)
            service.expires_in = 3600
            broker.cut_off("cut")
            await until(lambda: connections(client, 2)() and restored(client))

            assert [gap.cause for gap in client.inbox.gaps] == ["the broker closed it or the network broke"]


class TestSecrecy:
    async def test_neither_the_secret_nor_a_token_is_logged_or_shown(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_client, "_LOGIN_BACK_OFF_S", (0.01, 0.02))
        caplog.set_level(logging.DEBUG)
        shown: list[object] = []
        async with OAuthDouble(expires_in=1) as service, Broker(tokens=service.trusted) as broker:
            echo = {"error_description": service.secret, "error_uri": service.secret, "access_token": service.secret}
            service.answer(
                as_json({"error": service.secret}, 400),
                as_json(echo | {"error": "invalid_client"}, 401),
                not_json(service.secret),
                as_json({"access_token": f"{service.secret}\n"}),
                preceded_by(service.secret.encode() + b"\r\n", CLOSE),
                service.granted(access_token=service.token(exp=1)),
            )
            config = BrokerConfig(host=broker.host, port=broker.port, oauth=knowing(service))
            note = lambda event, **facts: shown.append((event, facts))  # noqa: E731
            async with MqttClient(config, Inbox(10, 1000), note) as client:
                await until(connections(client, 3))
                tokens = client._tokens  # noqa: SLF001
                assert tokens is not None
                shown += [client, client.state, client._config, client.inbox.gaps, tokens, tokens.token]  # noqa: SLF001
                shown += [vars(client), vars(tokens)]
        shown += [record.__dict__ for record in caplog.records]
        told = f"{shown} {caplog.text}"

        assert len(told) > 5000
        assert "invalid_client" in told
        login = base64.b64encode(service.secret.encode()).decode()[:12]
        for hidden in (service.secret[5:], login, *(part for token in service.tokens for part in token.split(".")[1:])):
            assert hidden not in told

    async def test_every_token_is_known_to_the_sanitizer_before_anything_can_repeat_it(
        self, service: OAuthDouble
    ) -> None:
        token = f"opaque-{secrets.token_hex(16)}"
        service.answer(service.granted(access_token=token), service.granted(access_token=token[::-1], token_type="mac"))

        async with source(service) as tokens:
            await tokens.fetch()
            with pytest.raises(LinkFailedError):
                await tokens.fetch()

        assert sanitizer.hide_secrets(f"a {token} b {token[::-1]} c") == f"a {sanitizer.MARKER} b {sanitizer.MARKER} c"

    async def test_what_is_known_does_not_grow_for_ever_where_a_token_is_known_by_its_form(
        self, service: OAuthDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt_oauth, "_MANY", 1)
        opaque = secrets.token_hex(16)
        async with source(service) as tokens:
            for _ in range(3):
                await tokens.fetch()
            service.answer(service.granted(access_token=opaque))
            await tokens.fetch()

        assert sanitizer._process._values == {service.tokens[0], opaque}  # noqa: SLF001
        assert all(token not in sanitizer.hide_secrets(f"x {token} y") for token in service.tokens)


def test_a_start_without_it_does_not_load_it() -> None:
    code = "import sys, mqtt_client; sys.exit('mqtt_oauth' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# What the development broker checks.


def pem(key: Any) -> tuple[str, str]:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private.decode(), key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_tokens_signed_with_a_private_key_are_taken(algorithm: str) -> None:
    key = rsa.generate_private_key(65_537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    async with (
        OAuthDouble(algorithm=algorithm, keys=pem(key)) as service,
        Broker(tokens=service.trusted) as broker,
        connected(broker, service) as client,
    ):
        assert client.state.connections == 1


KEY = secrets.token_hex(32)


def signed(key: str = KEY, algorithm: str | None = "HS256", **claims: object) -> str:
    return jwt.encode({"exp": time.time() + 86_400, "aud": "broker"} | claims, key, algorithm)


class TestBroker:
    @pytest.mark.parametrize(
        ("password", "code"),
        [
            pytest.param(signed(), 0, id="good"),
            pytest.param(signed(exp=time.time() - 1), 0x87, id="expired"),
            pytest.param(signed(aud="others"), 0x87, id="for others"),
            pytest.param(signed("k" * 32), 0x86, id="another key"),
            pytest.param(signed("", "none"), 0x86, id="not signed"),
            pytest.param(signed(KEY * 2, "HS512"), 0x86, id="another algorithm"),
            pytest.param(jwt.encode({"aud": "broker"}, KEY), 0x86, id="without an end"),
            pytest.param(signed()[:-2], 0x86, id="cut"),
            pytest.param("secret", 0x86, id="no token"),
            pytest.param("", 0x86, id="none"),
        ],
    )
    @pytest.mark.parametrize("level", [5, 4])
    async def test_a_password_is_checked_as_a_token(self, password: str, code: int, level: int) -> None:
        async with Broker(tokens=Tokens(KEY, audience="broker")) as broker:
            said = await asyncio.to_thread(connack_code, broker, password, level)

        assert said == (code if level == 5 or code == 0 else 5)

    async def test_any_audience_will_do_where_none_is_asked_for(self) -> None:
        async with Broker(tokens=Tokens(KEY)) as broker:
            assert await asyncio.to_thread(connack_code, broker, signed(aud="others"), 5) == 0


def connack_code(broker: Broker, password: str, level: int) -> int:
    with RawClient(broker, level=level) as client:
        return client.connect("c", username="u", password=password).reason
