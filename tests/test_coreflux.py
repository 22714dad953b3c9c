"""The Coreflux command channel and deployments, against the development broker's Coreflux personality and others."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Literal
from unittest.mock import ANY

import pytest
from pydantic import SecretStr

import coreflux as module
from backups import Backups, Saved
from config import BrokerConfig, Config
from coreflux import OUTPUT_TOPIC, Coreflux, Entity, Picture, Reply, check_command, check_name, is_guarded, named
from deployment import Outcome, deploy, in_order, plan, put_back
from errors import BrokerOfflineError, BrokerRefusedError, BrokerSilentError, InputError, NotCorefluxError
from inbox import Inbox
from lot import Definition, Kind, analyse
from mqtt_client import MqttClient
from mqtt_link import PublishProperties
from restore import run_backups
from simulator.coreflux import ACCOUNTS, Options
from simulator.coreflux import Coreflux as Personality
from simulator.faults import Fault, Wrong
from tests.brokers import Embedded, Mosquitto
from tests.wire import until

pytestmark = pytest.mark.anyio

BEAT = 'DEFINE ACTION Beat\nON EVERY 5 SECONDS DO\n    PUBLISH TOPIC "beat" WITH "x"'
FASTER = BEAT.replace("5", "1")
PUMP = 'DEFINE MODEL Pump COLLAPSED WITH TOPIC "pump/state"\n    ADD DOUBLE "flow" WITH TOPIC "pump/flow" AS TRIGGER'
CLOSED = "DEFINE RULE Closed WITH PRIORITY 200 FOR Publish\n    DENY"
OPEN = CLOSED.replace("DENY", "ALLOW")
STATS = "# Script Name: Stats\ndef mean(values):\n    return sum(values) / len(values)"


@asynccontextmanager
async def connected(broker: Embedded | Mosquitto, user: str = "root", protocol: str = "5") -> AsyncIterator[MqttClient]:
    config = BrokerConfig(
        host=broker.host,
        port=broker.port,
        user=user or None,
        password=SecretStr(ACCOUNTS[user].password) if user else None,
        protocol="3.1.1" if protocol == "3.1.1" else "5",
    )
    async with MqttClient(config, Inbox(1000, 1 << 20)) as client:
        await until(lambda: client.state.connected)
        yield client


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a shorter silence for the end of what the broker has to tell."""
    monkeypatch.setattr(module, "_QUIET_S", 0.15)


@pytest.fixture(params=["2.x", "1.x"])
def personality(request: pytest.FixtureRequest) -> Personality:
    return Personality(Options(dialect=request.param))


@pytest.fixture
async def channel(personality: Personality) -> AsyncIterator[Coreflux]:
    with Embedded(personality=personality) as broker:
        async with connected(broker) as client:
            yield Coreflux(client, answer_timeout_s=3)


class TestNames:
    @pytest.mark.parametrize("name", ["Pump", "_x9", "A" * 255])
    def test_an_identifier_is_a_name(self, name: str) -> None:
        assert check_name("action", name) == name

    @pytest.mark.parametrize(
        "name",
        ["", "9x", "a b", 'a"', "a\n-removeAllRoutes", "a -requestId x", "-x", "ä", "a;b", "a/b", "A" * 256, "a\0"],
    )
    def test_nothing_else_is(self, name: str) -> None:
        with pytest.raises(InputError, match="is no name"):
            check_name("action", name)

    @pytest.mark.parametrize(
        ("kind", "name", "is_one"),
        [
            ("panel", "Pumps & Valves (north)", True),
            ("theme", "Dark", True),
            ("panel", "", False),
            ("panel", " Room", False),
            ("panel", "-Room", False),
            ("panel", 'The "Room"', False),
            ("panel", "Room/1", False),
            ("panel", "Room #1", False),
            ("panel", "Room\n-removeAllRoutes", False),
            ("panel", "Room\u2028", False),
            ("panel", "Room -requestId x", False),
            ("panel", "R" * 256, False),
            ("python", "Stats", True),
            ("python", "line-stats", True),
            ("python", "-stats", False),
            ("python", "a b", False),
            ("python", "", False),
        ],
    )
    def test_panels_have_titles_and_scripts_words(self, kind: Kind, name: str, is_one: bool) -> None:
        with nullcontext() if is_one else pytest.raises(InputError, match=f"is no name of a {kind}"):
            check_name(kind, name)

    def test_what_is_no_name_of_an_action_is_told_in_english(self) -> None:
        with pytest.raises(InputError, match="no name of an action: letters"):
            check_name("action", "9x")

    def test_a_definition_whose_name_is_none_is_not_planned(self) -> None:
        code = BEAT.replace("Beat", "Größe")
        with pytest.raises(InputError, match="no name of an action"):
            plan(analyse(f"{code}\n\n{OPEN}").definitions, Picture())

    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("", "no command"),
            ("listRoutes", "no command"),
            ("- listRoutes", "no command"),
            ("-listRoutes -requestId mine", "no request id"),
            ("--list-routes --REQUEST-ID mine", "no request id"),
        ],
    )
    def test_what_is_no_command_is_refused(self, command: str, says: str) -> None:
        with pytest.raises(InputError, match=says):
            check_command(command)

    @pytest.mark.parametrize(
        ("command", "guarded"),
        [
            ("-removeAllRoutes", True),
            ("--remove-all-routes", True),
            ("-REMOVEUSER bob", True),
            ("-removeRoute R", True),
            ("-restoreRules", True),
            ("-changeUserPassword bob x", True),
            ("-changeUserSettings bob AllowedUserManagement true", True),
            ("-loadLicense /x", True),
            ("-installPythonPackage x", True),
            ("-unloadProject", True),
            ("-loadProject Plant", True),
            ("-addUserToGroup assistant Admins", True),
            ("-addRule DEFINE RULE X WITH PRIORITY 200 FOR Publish\n    DENY", True),
            ("-addProject https://x Plant load", True),
            ('-addProject https://x Plant "load"', True),
            ("-addProject https://x Plant", False),
            ("-listRoutes\n-removeAllRules", True),
            ("-listRoutes\u2028--remove-all-rules", True),
            ("-listRoutes ; -removeAllRules", True),
            ('-addAction DEFINE ACTION A\nON EVERY 5 SECONDS DO\n    PUBLISH TOPIC "x" WITH "-removeAllRules"', True),
            ("-addPython # Script Name: X\ny = (a\n -b)", False),
            ("-uninstall-with-token a b", True),
            ("-asset-default-config x", True),
            ("-listRoutes", False),
            ("-runAction Beat", False),
            ("-addAction DEFINE ACTION removeAll", False),
        ],
    )
    def test_what_can_destroy_or_lock_out_is_guarded_however_it_is_written(self, command: str, guarded: bool) -> None:
        assert is_guarded(check_command(command)) is guarded

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("-removeRoute R", "-removeRoute R"),
            ("--list-user-groups bob", "--list-user-groups bob"),
            ("-addRule DEFINE RULE R\n    DENY", "-addRule DEFINE RULE R"),
            ("-changeUserPassword bob hunter22", "-changeUserPassword bob"),
            ("-addUser bob hunter22", "-addUser bob"),
            ("-setSecret PLC=hunter22", "-setSecret PLC"),
            ("-setEnv PLC=hunter22", "-setEnv PLC"),
            ("--set-env", "--set-env"),
            ("-addProject https://hunter22@git.example.com/p Plant", "-addProject"),
            ("-projectPull P https://hunter22@git.example.com/p", "-projectPull"),
            ("-routeCertificates cert64:hunter22", "-routeCertificates"),
            ("-addRoute DEFINE ROUTE R WITH TYPE X\n    PASSWORD hunter22", "-addRoute"),
            ("-install-with-token asset hunter22", "-install-with-token"),
            ("-uninstall-with-token asset hunter22", "-uninstall-with-token"),
            ("-whatComesNext hunter22", "-whatComesNext"),
        ],
    )
    def test_of_a_command_only_what_can_be_no_secret_is_written_down(self, command: str, words: str) -> None:
        assert named(command) == words


class TestChannel:
    async def test_a_command_has_its_reply(self, channel: Coreflux, personality: Personality) -> None:
        added = await channel.add("-addAction", BEAT)
        removed = await channel.remove("action", "Beat")

        assert added.success, added
        assert removed.success, removed
        assert personality.entities() == {}

    async def test_a_script_has_its_reply_too(self, channel: Coreflux, personality: Personality) -> None:
        assert (await channel.add("-addPython", STATS)).success
        personality.inject(Fault(Wrong.FAILING, "AddPython"))
        assert not (await channel.add("-addPython", STATS)).success
        assert (await channel.command("-removePython Stats")).success

    async def test_a_refusal_is_a_reply_with_its_place(self, channel: Coreflux) -> None:
        reply = await channel.add("-addAction", BEAT.replace("ACTION Beat", 'ACTION "Beat"'))

        assert not reply.success
        assert reply.errors[0]["line"] == 1

    async def test_a_command_without_a_reply_is_not_waited_for(self, channel: Coreflux) -> None:
        assert (await channel.command("-updateData")).success

    @pytest.mark.parametrize("wrong", [Wrong.FOREIGN_ID, Wrong.FOREIGN_NO_ID, Wrong.FOREIGN_COMMAND, Wrong.DUPLICATE])
    async def test_what_others_are_told_is_not_taken_for_our_reply(
        self, channel: Coreflux, personality: Personality, wrong: Wrong
    ) -> None:
        await channel.command("-listRoutes")
        personality.inject(Fault(wrong, "AddAction"))

        assert (await channel.add("-addAction", BEAT)).success
        assert (await channel.remove("action", "Beat")).success

    async def test_a_reply_that_does_not_come_is_not_made_up(
        self, channel: Coreflux, personality: Personality, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "QUARANTINE_S", 0.3)
        await channel.command("-listRoutes")
        for wrong in (Wrong.NO_REPLY, Wrong.IGNORED, Wrong.TRUNCATED):
            personality.inject(Fault(wrong, "AddAction"))
            channel._answer_timeout_s = 0.3  # noqa: SLF001 - nobody wants to wait
            with pytest.raises(BrokerSilentError, match="CommandCall"):
                await channel.add("-addAction", BEAT)
            channel._answer_timeout_s = 3  # noqa: SLF001
            assert (await channel.command("-listRoutes")).success

    async def test_a_late_reply_reaches_nobody(
        self, channel: Coreflux, personality: Personality, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "QUARANTINE_S", 1.0)
        await channel.command("-listRoutes")
        personality.inject(Fault(Wrong.LATE, "AddAction", after_s=0.6), Fault(Wrong.FAILING, "AddAction"))
        channel._answer_timeout_s = 0.2  # noqa: SLF001
        with pytest.raises(BrokerSilentError):
            await channel.add("-addAction", BEAT)
        channel._answer_timeout_s = 3  # noqa: SLF001

        assert (await channel.add("-addAction", BEAT)).success

    async def test_commands_at_once_have_each_their_own_reply(self, channel: Coreflux) -> None:
        names = [f"Beat{number}" for number in range(6)]
        replies = await asyncio.gather(*(channel.add("-addAction", BEAT.replace("Beat", name)) for name in names))

        assert all(reply.success for reply in replies)
        for name, reply in zip(names, replies, strict=True):
            assert name in reply.message


class TestOtherSide:
    async def test_replies_in_another_order_reach_their_callers(self) -> None:
        personality = Personality(Options(dialect="2.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client)
                await channel.command("-listRoutes")
                personality.inject(Fault(Wrong.HELD, "AddAction"))
                first, second = await asyncio.gather(channel.add("-addAction", BEAT), channel.add("-addModel", PUMP))

        assert "Beat" in first.message
        assert "Pump" in second.message

    async def test_a_stray_text_is_no_reply_of_a_new_broker(self) -> None:
        personality = Personality(Options(dialect="2.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=0.5)
                await channel.command("-listRoutes")
                personality.inject(Fault(Wrong.NOT_JSON, "AddAction", text="Action 'Beat' added successfully."))
                with pytest.raises(BrokerSilentError):
                    await channel.add("-addAction", BEAT)

    @pytest.mark.parametrize("text", ["Broker is busy", "2 routes were cleaned up"])
    async def test_a_stray_text_before_the_first_reply_is_no_reply_either(self, text: str) -> None:
        personality = Personality(Options(dialect="2.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=3)
                personality.inject(Fault(Wrong.LATE, "ListRoutes", after_s=1.5))
                await channel.identity.make()
                asking = asyncio.create_task(channel.add("-addAction", BEAT))
                await asyncio.sleep(0.3)
                await client.publish(OUTPUT_TOPIC, text.encode(), 1, retain=False, properties=PublishProperties())
                first = await asking
                second = await channel.run_action("Beat", {"payload": "x"})

        assert (first.success, first.dialect, second.success, second.dialect) == (True, ANY, True, "2.x")

    async def test_a_new_broker_taken_for_an_old_one_is_known_again_with_the_next_reply(self) -> None:
        personality = Personality(Options(dialect="2.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=1)
                personality.inject(Fault(Wrong.NOT_JSON, "ListRoutes"))
                first = await channel.add("-addAction", BEAT)
                second = await channel.add("-addAction", BEAT)

        assert (first.success, second.success, second.dialect) == (True, True, "2.x")

    async def test_an_old_broker_that_stays_silent_is_asked_anew_what_it_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "QUARANTINE_S", 0.1)
        personality = Personality(Options(dialect="1.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=1)
                await channel.check()
                personality.options = Options(dialect="2.x")
                personality.inject(Fault(Wrong.IGNORED, "AddAction"))
                with pytest.raises(BrokerSilentError):
                    await channel.add("-addAction", BEAT)

                assert (await channel.add("-addAction", BEAT)).dialect == "2.x"

    @pytest.mark.parametrize("strips_request_id", [True, False])
    async def test_an_old_broker_costs_no_deadline_with_each_connection(self, strips_request_id: bool) -> None:
        with Embedded(personality=Personality(Options(dialect="1.x", strips_request_id=strips_request_id))) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=2)
                await channel.check()
                client.state.connections += 1
                started = time.monotonic()
                await channel.check()

        assert time.monotonic() - started < 1.9

    async def test_a_reply_without_our_identifier_is_taken_where_only_it_can_be_meant(self) -> None:
        personality = Personality(Options(dialect="2.x", repeats_request_id=False))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=2)
                personality.inject(Fault(Wrong.FOREIGN_NO_ID, "AddAction"), Fault(Wrong.FOREIGN_COMMAND, "AddModel"))
                names = [f"Beat{number}" for number in range(4)]
                replies = await asyncio.gather(
                    *(channel.add("-addAction", BEAT.replace("Beat", name)) for name in names),
                    channel.add("-addModel", PUMP),
                    channel.run_action("Beat0", {"payload": "x"}),
                )

        assert all(reply.success for reply in replies), replies
        assert [name in reply.message for name, reply in zip([*names, "Pump", "Beat0"], replies, strict=True)] == [
            True
        ] * 6

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_a_login_that_may_not_read_replies_is_told(self, protocol: str) -> None:
        with Embedded(personality=Personality()) as broker:
            async with connected(broker, "operator", protocol) as client:
                with pytest.raises(BrokerRefusedError, match="may not read the replies"):
                    await Coreflux(client).command("-listRoutes")

    async def test_a_command_dropped_in_silence_is_told(self) -> None:
        personality = Personality()
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                personality.inject(Fault(Wrong.IGNORED, times=None))
                with pytest.raises(BrokerSilentError, match="drops commands"):
                    await Coreflux(client, answer_timeout_s=0.5).command("-listRoutes")

    @pytest.mark.parametrize("protocol", ["5", "3.1.1"])
    async def test_a_broker_of_another_make_is_told_at_once(self, mosquitto: Mosquitto, protocol: str) -> None:
        async with connected(mosquitto, "", protocol) as client:
            started = time.monotonic()
            with pytest.raises(NotCorefluxError, match="mosquitto"):
                await Coreflux(client).command("-listRoutes")

        assert time.monotonic() - started < 3

    async def test_a_broker_without_a_word_about_itself_is_told(self, embedded: Embedded) -> None:
        async with connected(embedded, "") as client:
            with pytest.raises((NotCorefluxError, BrokerSilentError), match="Coreflux broker"):
                await Coreflux(client, answer_timeout_s=0.5).command("-listRoutes")


class TestEntities:
    @pytest.mark.parametrize("retained", [True, False])
    async def test_entities_are_found_whatever_the_retain_bit_says(self, retained: bool) -> None:
        with Embedded(personality=Personality(Options(retained=retained))) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client)
                await channel.add("-addAction", BEAT)
                await channel.add("-addModel", PUMP)
                await sourced(channel, "Beat", BEAT)
                picture = await channel.entities()

        assert picture.complete
        ours = {(each.kind, each.name): each.code for each in picture.entities if each.kind != "rule"}
        assert ours == {("action", "Beat"): BEAT, ("model", "Pump"): PUMP}

    async def test_what_was_removed_is_gone(self, channel: Coreflux) -> None:
        await channel.add("-addAction", BEAT)
        await sourced(channel, "Beat", BEAT)
        await channel.remove("action", "Beat")
        async with asyncio.timeout(5):
            while any(each.name == "Beat" for each in (await channel.entities(["action"])).entities):
                pass

    @pytest.mark.parametrize("retained", [True, False])
    @pytest.mark.parametrize("command", ["-removeAction Beat", "--remove-all-actions"])
    async def test_what_was_removed_is_gone_though_its_topic_is_not_cleared(self, retained: bool, command: str) -> None:
        with Embedded(personality=Personality(Options(cleared=False, retained=retained))) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client)
                await channel.add("-addAction", BEAT)
                await sourced(channel, "Beat", BEAT)
                await channel.command(command)

                assert not (await channel.entities(["action"])).entities
                assert (await channel.remove("action", "Beat")).success is False
                assert not (await channel.add("-addAction", BEAT.replace("DO", "DO DO"))).success
                assert not (await channel.entities(["action"])).entities
                await channel.add("-addAction", BEAT)
                await sourced(channel, "Beat", BEAT)

    async def test_what_the_broker_does_not_find_is_gone_though_its_topic_is_not_cleared(self) -> None:
        with Embedded(personality=Personality(Options(cleared=False))) as broker:
            async with connected(broker) as client, connected(broker) as other:
                channel = Coreflux(client)
                await channel.add("-addAction", BEAT)
                await sourced(channel, "Beat", BEAT)
                await Coreflux(other).remove("action", "Beat")
                await channel.remove("action", "Beat")

                assert not (await channel.entities(["action"])).entities

    @pytest.mark.parametrize(
        ("cleared", "source"),
        [(True, BEAT), (True, FASTER), (False, FASTER)],  # nothing would tell BEAT from what was left uncleared
    )
    async def test_what_somebody_else_brings_back_is_there_again(self, cleared: bool, source: str) -> None:
        with Embedded(personality=Personality(Options(cleared=cleared))) as broker:
            async with connected(broker) as client, connected(broker) as other:
                channel = Coreflux(client)
                await channel.add("-addAction", BEAT)
                await sourced(channel, "Beat", BEAT)
                await channel.remove("action", "Beat")
                await asyncio.sleep(0.2)
                assert not (await channel.entities(["action"])).entities
                await Coreflux(other).add("-addAction", source)

                await sourced(channel, "Beat", source)

    async def test_who_follows_is_told_of_a_removal_though_the_topic_is_not_cleared(self) -> None:
        told: list[list[str]] = []

        async def tell(entities: Sequence[Entity]) -> None:
            told.append([each.name for each in entities])

        with Embedded(personality=Personality(Options(cleared=False))) as broker:
            async with connected(broker) as client, connected(broker) as other:
                channel = Coreflux(client)
                following = asyncio.create_task(channel.follow("action", tell))
                await channel.add("-addAction", BEAT)
                await until(lambda: told[-1:] == [["Beat"]])
                await channel.remove("action", "Beat")
                await until(lambda: told[-1:] == [[]])
                await Coreflux(other).add("-addAction", BEAT)
                await until(lambda: told[-1:] == [["Beat"]])
                following.cancel()

    async def test_a_login_that_may_not_look_is_told(self) -> None:
        with Embedded(personality=Personality()) as broker:
            async with connected(broker, "operator") as client:
                with pytest.raises(BrokerRefusedError, match="Actions"):
                    await Coreflux(client).entities()


async def sourced(channel: Coreflux, name: str, code: str) -> None:
    """Wait until the broker shows a source."""
    async with asyncio.timeout(5):
        while not any((e.name, e.code) == (name, code) for e in (await channel.entities()).entities):
            pass


@asynccontextmanager
async def failing(*, retained: bool) -> AsyncIterator[tuple[Coreflux, Personality]]:
    """A broker that clears no topics, on which an action has failed while running."""
    personality = Personality(Options(cleared=False, retained=retained))
    with Embedded(personality=personality) as broker:
        async with connected(broker) as client:
            channel = Coreflux(client)
            personality.inject(Fault(Wrong.ERROR_TOPIC, "AddAction", text="division by zero"))
            await channel.add("-addAction", BEAT)
            await sourced(channel, "Beat", BEAT)
            yield channel, personality


async def run(channel: Coreflux, directory: Path, code: str) -> tuple[Outcome, Backups]:
    """Plan and deploy."""
    backups = Backups(directory)
    definitions = analyse(code).definitions
    picture = await channel.entities()
    return await deploy(channel, backups, plan(definitions, picture), "mqtt://h"), backups


class TestDeployment:
    def test_what_others_need_goes_first(self) -> None:
        code = (
            "DEFINE ACTION Caller\nON START DO\n    CALL ACTION Callee WITH a = 1\n\n"
            'DEFINE ACTION Callee\nINPUT a AS INT\nDO\n    SET "b" WITH {a}\n\n'
            'DEFINE MODEL Child FROM Parent WITH TOPIC "c"\n\n'
            'DEFINE MODEL Parent WITH TOPIC "p"\n    ADD DOUBLE "x" WITH TOPIC "x" AS TRIGGER'
        )

        assert [each.name for each in in_order(analyse(code).definitions)] == ["Parent", "Child", "Callee", "Caller"]

    def test_a_long_chain_of_calls_is_put_in_order_too(self) -> None:
        names = [f"A{number}" for number in range(5000)]
        chain = [
            Definition("action", name, 1, "", "-addAction", (("action", needed),))
            for name, needed in zip(names, [*names[1:], names[0]], strict=True)
        ]

        assert [each.name for each in in_order(chain)] == names[::-1]

    @pytest.mark.parametrize("retained", [True, False])
    async def test_an_error_of_what_was_replaced_is_no_failure(self, tmp_path: Path, retained: bool) -> None:
        async with failing(retained=retained) as (channel, personality):
            fixed, _ = await run(channel, tmp_path, FASTER)
            await channel.remove("action", "Beat")
            again, _ = await run(channel, tmp_path, BEAT)

        assert (fixed.failure, again.failure) == ("", "")
        assert personality.entities()[("Action", "Beat")] == BEAT

    @pytest.mark.parametrize("text", ["division by zero", "no such topic"])
    @pytest.mark.parametrize("retained", [True, False])
    async def test_an_error_that_comes_anew_is_a_failure_whatever_it_says(
        self, tmp_path: Path, text: str, retained: bool
    ) -> None:
        async with failing(retained=retained) as (channel, personality):
            personality.inject(Fault(Wrong.ERROR_TOPIC, "AddAction", text=text))
            outcome, _ = await run(channel, tmp_path, FASTER)

        assert text in outcome.failure
        assert outcome.rolled_back
        assert personality.entities()[("Action", "Beat")] == BEAT

    async def test_what_was_removed_is_deployed_again_though_its_topic_is_not_cleared(self, tmp_path: Path) -> None:
        personality = Personality(Options(cleared=False))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client)
                await run(channel, tmp_path, BEAT)
                await channel.remove("action", "Beat")
                outcome, _ = await run(channel, tmp_path, BEAT)

        assert [step.change for step in outcome.applied] == ["create"]
        assert personality.entities() == {("Action", "Beat"): BEAT}

    @pytest.mark.parametrize(
        ("dialect", "code", "faults"),
        [
            ("2.x", STATS, [Fault(Wrong.FAILING, "AddPython")]),
            ("2.x", FASTER, [Fault(Wrong.FAILING, "AddAction", times=2)]),
            ("2.x", PUMP, [Fault(Wrong.FAILING, "AddModel"), Fault(Wrong.FAILING, "RemoveModel")]),
            ("2.x", CLOSED.replace("200", "50"), [Fault(Wrong.FAILING, "RemoveRule")]),
            ("1.x", CLOSED.replace("200", "50"), [Fault(Wrong.FAILING, "RemoveRule")]),
        ],
    )
    async def test_where_nothing_was_changed_nothing_is_left(
        self, tmp_path: Path, dialect: Literal["2.x", "1.x"], code: str, faults: list[Fault]
    ) -> None:
        personality = Personality(Options(dialect=dialect))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=3)
                await channel.add("-addAction", BEAT)
                await sourced(channel, "Beat", BEAT)
                personality.inject(*faults)
                outcome, backups = await run(channel, tmp_path, code)

        assert "refused" in outcome.failure
        assert (outcome.left, outcome.rolled_back) == ([], True)
        assert personality.entities() == {("Action", "Beat"): BEAT}
        assert backups.all()[-1].state == "rolled back"

    async def test_an_old_broker_that_may_have_refused_somebody_else_is_put_back(self, tmp_path: Path) -> None:
        personality = Personality(Options(dialect="1.x"))
        with Embedded(personality=personality) as broker:
            async with connected(broker) as client:
                channel = Coreflux(client, answer_timeout_s=3)
                await channel.check()
                personality.inject(Fault(Wrong.NOT_JSON, "AddAction", text="Parsing error: something (1,1)"))
                outcome, _ = await run(channel, tmp_path, BEAT)

        assert outcome.rolled_back
        assert personality.entities() == {}

    async def test_without_a_connection_nothing_was_changed(
        self, channel: Coreflux, personality: Personality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = plan(analyse(f"{BEAT}\n\n{STATS}").definitions, Picture(complete=True))

        async def offline(*_: object) -> None:
            raise BrokerOfflineError("Not connected. Nothing was sent.")

        monkeypatch.setattr(channel, "command", offline)
        outcome = await deploy(channel, Backups(tmp_path), steps, "mqtt://h")

        assert (outcome.left, outcome.rolled_back) == ([], True)
        assert "Nothing was sent" in outcome.failure

    async def test_what_is_left_is_one_sentence_each(
        self, channel: Coreflux, personality: Personality, tmp_path: Path
    ) -> None:
        await run(channel, tmp_path, CLOSED)
        personality.inject(Fault(Wrong.FAILING, "AddRule"))
        monkey = channel.add

        async def refuse_second(verb: str, code: str) -> Reply:
            if code == CLOSED:
                raise BrokerOfflineError("Not connected. Nothing was sent.")
            return await monkey(verb, code)

        channel.add = refuse_second  # type: ignore[method-assign]
        outcome, _ = await run(channel, tmp_path, OPEN)

        assert outcome.left == ["rule Closed: Not connected. Nothing was sent"]

    async def test_a_new_program_is_created_and_a_changed_one_replaced(
        self, channel: Coreflux, personality: Personality, tmp_path: Path
    ) -> None:
        first, _ = await run(channel, tmp_path, f"{BEAT}\n\n{PUMP}\n")
        picture = await channel.entities()
        steps = plan(analyse(f"{FASTER}\n\n{PUMP}\n").definitions, picture)
        second = await deploy(channel, Backups(tmp_path), steps, "mqtt://h")

        assert not first.failure
        assert [(step.definition.name, step.change) for step in steps] == [("Pump", "unchanged"), ("Beat", "replace")]
        assert "-ON EVERY 5 SECONDS DO\n+ON EVERY 1 SECONDS DO" in steps[1].diff
        assert [step.definition.name for step in second.applied] == ["Beat"]
        assert personality.entities()[("Action", "Beat")] == FASTER

    async def test_a_rule_is_replaced_by_removing_and_adding_it(
        self, channel: Coreflux, personality: Personality, tmp_path: Path
    ) -> None:
        await run(channel, tmp_path, CLOSED)
        outcome, _ = await run(channel, tmp_path, OPEN)

        assert not outcome.failure
        assert personality.entities()[("Rule", "Closed")] == OPEN

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(Wrong.FAILING, "AddRule"),
            Fault(Wrong.FALSE_SUCCESS, "AddRule"),
            Fault(Wrong.NEVER_APPEARS, "AddAction"),
            Fault(Wrong.ERROR_TOPIC, "AddAction", text="division by zero"),
        ],
        ids=lambda fault: fault.wrong.name,
    )
    async def test_a_failure_puts_back_exactly_what_was_there(
        self,
        channel: Coreflux,
        personality: Personality,
        tmp_path: Path,
        fault: Fault,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("deployment.APPEAR_TIMEOUT_S", 1.5)
        await run(channel, tmp_path, f"{BEAT}\n\n{CLOSED}\n")
        before = personality.entities()
        personality.inject(fault)
        outcome, backups = await run(channel, tmp_path, f"{FASTER}\n\n{PUMP}\n\n{OPEN}\n")

        assert outcome.failure
        assert outcome.rolled_back, outcome
        assert personality.entities() == before
        assert backups.all()[-1].state == "rolled back"

    async def test_what_cannot_be_backed_up_is_not_deployed(
        self, channel: Coreflux, personality: Personality, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(Exception, match="nothing was changed"):
            await run(channel, tmp_path / "file" / "backups", BEAT)

        assert personality.entities() == {}

    async def test_a_cancelled_deployment_puts_back_too(
        self, channel: Coreflux, personality: Personality, tmp_path: Path
    ) -> None:
        personality.inject(Fault(Wrong.NEVER_APPEARS, "AddAction"))
        deploying = asyncio.create_task(run(channel, tmp_path, BEAT))
        await until(lambda: ("Action", "Beat") in personality.entities())
        deploying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deploying

        await until(lambda: personality.entities() == {})
        await until(lambda: Backups(tmp_path).all()[-1].state == "rolled back")

    async def test_what_a_killed_server_left_is_named_and_can_be_put_back(
        self, channel: Coreflux, personality: Personality, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await run(channel, tmp_path, BEAT)
        monkeypatch.setattr(Backups, "mark", lambda *_: None)  # a server that is killed writes nothing any more
        await run(channel, tmp_path, FASTER)
        backups = Backups(tmp_path)
        (left,) = backups.unfinished("mqtt://h")
        for saved in left.entities:
            await put_back(channel, saved)

        assert personality.entities() == {("Action", "Beat"): BEAT}
        assert backups.unfinished("mqtt://elsewhere") == []


class TestRestore:
    @pytest.mark.parametrize(
        ("fault", "state", "left"), [(None, "partly restored", 0), ("AddRule", "not rolled back", 1)]
    )
    def test_a_script_that_only_a_person_can_put_back_is_named_and_ends_the_advice(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str | None, state: str, left: int
    ) -> None:
        personality = Personality(Options())
        with Embedded(personality=personality) as broker:
            config = Config(
                broker=BrokerConfig(
                    host=broker.host,
                    port=broker.port,
                    user="root",
                    password=SecretStr(ACCOUNTS["root"].password),
                ),
                state_dir=tmp_path,
            )
            backups = Backups(config.backups_dir)
            saved = [Saved("python", "Stats", None), Saved("action", "Beat", BEAT), Saved("rule", "Closed", CLOSED)]
            backup = backups.create(config.broker.url, "deploy", saved)
            backups.mark(backup, "not rolled back")
            personality.inject(*([Fault(Wrong.FAILING, fault)] if fault else []))
            code = run_backups("restore", backup.id, config)
        said = capsys.readouterr().out

        assert code == 1
        assert "BY HAND: python Stats" in said
        assert "restored: action Beat" in said
        assert personality.entities()[("Action", "Beat")] == BEAT
        assert backups.load(backup.id).state == state
        assert len(backups.unfinished(config.broker.url)) == left


class TestBackups:
    def test_only_the_owner_reads_them(self, tmp_path: Path) -> None:
        backup = Backups(tmp_path / "b").create("mqtt://h", "deploy", [])

        assert (tmp_path / "b").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "b" / f"{backup.id}.json").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("name", ["../x", "20260101T000000000000Z-abcdef/../x", "", "x" * 300])
    def test_a_name_cannot_lead_out_of_the_directory(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(Exception, match="no name of a backup"):
            Backups(tmp_path).load(name)

    def test_a_spoilt_file_is_told_and_hides_no_other(self, tmp_path: Path) -> None:
        backups = Backups(tmp_path)
        kept = backups.create("mqtt://h", "deploy", [])
        (tmp_path / "20260101T000000000000Z-abcdef.json").write_text("{")

        assert [each.id for each in backups.all()] == [kept.id]
        with pytest.raises(Exception, match="cannot be read"):
            backups.load("20260101T000000000000Z-abcdef")
