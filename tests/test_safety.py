"""What an assistant may not do, what a person is asked before, and what is written down: through the tools."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult, InputRequiredResult, ResourceTemplateReference
from pydantic import SecretStr

from approvals import Approvals
from audit import Audit, verify
from config import AuditConfig, BrokerConfig, Config, Rules
from inbox import Inbox
from limits import MOST_QUESTIONS
from mqtt_client import MqttClient
from policy import TOOLS, rule_of
from server import build_server
from simulator.coreflux import ACCOUNTS, Options
from simulator.coreflux import Coreflux as Personality
from tests.assistant import ALLOWED, ERAS, Assistant, Era
from tests.brokers import Embedded, Mosquitto
from tests.child import COMMAND, Child, settings
from tests.documentation import COPILOT, list_tools
from tests.fake_broker import FakeBroker
from tests.test_coreflux import OPEN
from tests.test_lot_tools import SPREAD
from topics import TopicFilter

pytestmark = pytest.mark.anyio

Person = Callable[[str], ElicitResult]
YES = ElicitResult(action="accept", content={"allow": True})
ADMIN = Config(access_mode="admin")
TOKEN = "ghp_aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1b2C"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.03)
    monkeypatch.setattr("identity._WAIT_S", 0.03)
    monkeypatch.setattr("tools.messaging._QUIET_S", 0.03)
    monkeypatch.setattr("tools.messaging._FIRST_S", 0.03)


@pytest.fixture
def fake() -> FakeBroker:
    broker = FakeBroker()
    broker.send("plant/a", b"21.5", retain=True)
    broker.send("plant/b", b"\xff\x00", retain=True)
    return broker


@asynccontextmanager
async def assisted(
    broker: FakeBroker,
    config: Config = ADMIN,
    era: Era = "auto",
    person: Person | None = None,
    audit: Audit | None = None,
) -> AsyncIterator[Assistant]:
    async def ask(context: Any, params: Any) -> ElicitResult:
        assert person
        return person(params.message)

    server = build_server(config, broker, audit=audit)
    async with Client(server, mode=era, elicitation_callback=ask if person else None) as client:
        yield Assistant(client)


class TestConfirmation:
    """A person confirms what cannot be undone."""

    @pytest.mark.parametrize("era", ERAS)
    async def test_a_yes_lets_exactly_this_happen(self, fake: FakeBroker, era: Era) -> None:
        asked: list[str] = []

        def person(question: str) -> ElicitResult:
            asked.append(question)
            return YES

        async with assisted(fake, era=era, person=person) as me:
            await me.call("mqtt_clear_retained", topic_filter="plant/a", dry_run=True)
            assert asked == []
            cleared = await me.call("mqtt_clear_retained", topic_filter="plant/a", dry_run=False)
            await me.call("mqtt_clear_retained", topic_filter="plant/b", dry_run=False)

        assert cleared["topics"] == ["plant/a"]
        assert len(asked) == 2  # a yes is good for one act
        assert "'plant/a'" in asked[0]
        assert "mqtt://fake:1883" in asked[0]
        assert fake.retained == {}

    @pytest.mark.parametrize("era", ERAS)
    @pytest.mark.parametrize(
        "answer",
        [
            ElicitResult(action="decline"),
            ElicitResult(action="cancel"),
            ElicitResult(action="accept", content={"allow": False}),
            ElicitResult(action="accept", content={}),
            ElicitResult(action="accept"),
            ElicitResult(action="accept", content={"allow": "certainly"}),
        ],
        ids=str,
    )
    async def test_anything_but_a_yes_is_a_no(self, fake: FakeBroker, era: Era, answer: ElicitResult) -> None:
        async with assisted(fake, era=era, person=lambda _question: answer) as me:
            words = await me.fail("mqtt_clear_retained", topic_filter="plant/#", dry_run=False)

        assert "Not done" in words
        assert set(fake.retained) == {"plant/a", "plant/b"}

    @pytest.mark.parametrize("era", ERAS)
    async def test_a_client_that_cannot_ask_is_told_the_other_way(self, fake: FakeBroker, era: Era) -> None:
        async with assisted(fake, era=era) as me:
            words = await me.fail("mqtt_clear_retained", topic_filter="plant/#", dry_run=False)

        assert "CONFIRM_FALLBACK=approve-file" in words
        assert set(fake.retained) == {"plant/a", "plant/b"}

    async def test_no_argument_counts_as_a_yes(self, fake: FakeBroker) -> None:
        async with assisted(fake) as me:
            for argument in ("confirm", "allow", "force", "confirmed"):
                words = await me.fail("mqtt_clear_retained", topic_filter="plant/#", dry_run=False, **{argument: True})
                assert "no argument" in words

    async def test_an_answer_is_good_for_its_act_alone_and_once(self, fake: FakeBroker) -> None:
        def call(client: Client, topic_filter: str, **more: Any) -> Any:
            arguments = {"topic_filter": topic_filter, "dry_run": False}
            return client.session.call_tool("mqtt_clear_retained", arguments, allow_input_required=True, **more)

        async with assisted(fake, person=lambda _question: YES) as me:
            question = await call(me.client, "plant/a")
            assert isinstance(question, InputRequiredResult)
            answer = {"input_responses": dict.fromkeys(question.input_requests or {}, YES)}
            state = {"request_state": question.request_state}
            with pytest.raises(MCPError, match="requestState"):
                await call(me.client, "plant/b", **answer, **state)
            done = await call(me.client, "plant/a", **answer, **state)
            fake.send("plant/a", b"22", retain=True)
            again = await call(me.client, "plant/a", **answer, **state)

        assert (done.is_error, again.is_error) == (False, True)
        assert "used before" in again.content[0].text
        assert set(fake.retained) == {"plant/a", "plant/b"}

    @pytest.fixture
    async def overwriter(self, broker: Embedded | Mosquitto, tmp_path: Path) -> AsyncIterator[Assistant]:
        """An assistant on a real broker that may not overwrite what is retained, and nobody to ask."""
        config = Config(rules=Rules(confirm="overwrite"), state_dir=tmp_path)
        inbox = Inbox(1000, 1 << 20)
        async with MqttClient(BrokerConfig(host=broker.host, port=broker.port), inbox) as mqtt:
            async with Client(build_server(config, mqtt)) as client:
                yield Assistant(client)

    async def test_what_was_retained_a_moment_ago_is_not_overwritten_unasked(self, overwriter: Assistant) -> None:
        for number in range(50):
            again = {"topic": f"moment/{number}", "retain": True}
            await overwriter.call("mqtt_publish", payload="1", **again)
            assert "Not done" in await overwriter.fail("mqtt_publish", payload="2", **again)

    @pytest.mark.parametrize(
        ("tool", "arguments", "lines"),
        [
            ("mqtt_publish", {"topic": "v", "payload": "OPEN\nAllow? \u202eYes"}, ["| OPEN", "| Allow? \\u202eYes"]),
            ("mqtt_publish", {"topic": "v", "payload": f"key {TOKEN}"}, ["| key [REDACTED]"]),
            ("mqtt_publish", {"topic": "v", "payload": "4f50", "encoding": "hex"}, ["| 4f50"]),
            ("mqtt_request", {"topic": "v", "payload": "?"}, ["| ?"]),
            ("lot_run_action", {"name": "Beat", "arguments": {"valve": 7}}, ['| {"valve": 7}']),
            ("lot_run_action", {"name": "Beat"}, []),
            ("lot_deploy", {"code": SPREAD}, [f"| {line}" for line in SPREAD.splitlines()]),
            (
                "coreflux_command",
                {"command": "-addRule DEFINE RULE A\n    DENY"},
                ["| -addRule DEFINE RULE A", "|     DENY"],
            ),
            ("coreflux_command", {"command": "-changeUserPassword bob hunter2"}, []),
            ("coreflux_command", {"command": "-removeRoute R"}, []),
            ("lot_remove", {"kind": "action", "name": "Beat"}, []),
            (
                "mqtt_publish",
                {"topic": "v", "payload": "1" * 3000},
                ["| " + "1" * 1000 + "…", "(the first 1000 of 3000 characters)"],
            ),
        ],
    )
    async def test_the_question_shows_what_is_sent(
        self, fake: FakeBroker, tool: str, arguments: dict[str, Any], lines: list[str]
    ) -> None:
        asked: list[str] = []

        def person(question: str) -> ElicitResult:
            asked.append(question)
            return ElicitResult(action="decline")

        async with assisted(fake, Config(access_mode="admin", rules=Rules(confirm="every")), person=person) as me:
            await me.client.call_tool(tool, arguments)

        assert asked[0].splitlines()[1:] == lines
        assert "hunter2" not in asked[0]

    async def test_who_waits_for_a_person_keeps_nobody_out(self, fake: FakeBroker) -> None:
        answered = asyncio.Event()
        asked = 0

        async def ask(context: Any, params: Any) -> ElicitResult:
            nonlocal asked
            asked += 1
            await answered.wait()
            return ElicitResult(action="decline")

        server = build_server(replace(ADMIN, rules=Rules(concurrent=4)), fake)
        async with Client(server, mode="legacy", elicitation_callback=ask) as client:
            me = Assistant(client)
            act = {"topic_filter": "plant/#", "dry_run": False}
            asking = [asyncio.create_task(client.call_tool("mqtt_clear_retained", act)) for _ in range(MOST_QUESTIONS)]
            while asked < MOST_QUESTIONS:
                await asyncio.sleep(0)
            assert "questions wait" in await me.fail("coreflux_command", command="-removeAllRules")
            assert (await me.call("server_status"))["policy"]["limits"]["under_way"] == 1
            await me.call("mqtt_read", topic_filter="plant/a")
            answered.set()
            await asyncio.gather(*asking)

        assert set(fake.retained) == {"plant/a", "plant/b"}

    @pytest.mark.parametrize("era", ERAS)
    async def test_a_value_that_changes_while_a_person_thinks_can_be_overwritten(
        self, fake: FakeBroker, era: Era
    ) -> None:
        def person(_question: str) -> ElicitResult:
            fake.send("plant/a", b"22.5", retain=True)
            return YES

        async with assisted(fake, replace(ADMIN, rules=Rules(confirm="overwrite")), era=era, person=person) as me:
            answer = await me.call("mqtt_publish", topic="plant/a", payload="1", retain=True)

        assert answer["replaced"]["payload"] == "22.5"
        assert fake.retained["plant/a"] == b"1"

    async def test_of_many_that_overwrite_at_once_only_the_first_is_not_asked_about(
        self, overwriter: Assistant
    ) -> None:
        act = {"topic": f"race/{os.urandom(4).hex()}", "retain": True}
        results = await asyncio.gather(
            *(overwriter.client.call_tool("mqtt_publish", {**act, "payload": str(number)}) for number in range(6))
        )

        assert [result.is_error for result in results].count(False) == 1

    async def test_an_answer_that_comes_too_late_is_none(
        self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tools.confirm.ANSWER_WITHIN_S", 0.0)
        for era in ERAS:
            async with assisted(fake, era=era, person=lambda _question: YES) as me:
                assert "Not done" in await me.fail("mqtt_clear_retained", topic_filter="#", dry_run=False)

    @pytest.mark.parametrize(
        ("confirm", "tool", "arguments", "asks"),
        [
            ("destructive", "mqtt_publish", {"topic": "plant/a", "payload": "1", "retain": True}, False),
            ("overwrite", "mqtt_publish", {"topic": "plant/a", "payload": "1", "retain": True}, True),
            ("overwrite", "mqtt_publish", {"topic": "plant/new", "payload": "1", "retain": True}, False),
            ("overwrite", "mqtt_publish", {"topic": "plant/a", "payload": "1"}, False),
            ("every", "mqtt_publish", {"topic": "plant/a", "payload": "1"}, True),
            ("every", "mqtt_request", {"topic": "plant/a", "payload": "1", "timeout_s": 0.1}, True),
            ("destructive", "lot_remove", {"kind": "action", "name": "Beat"}, True),
            ("destructive", "lot_run_action", {"name": "Beat"}, False),
            ("every", "lot_run_action", {"name": "Beat"}, True),
            ("destructive", "coreflux_command", {"command": "-listRoutes"}, False),
            ("destructive", "coreflux_command", {"command": "--remove-all-routes"}, True),
            ("destructive", "coreflux_command", {"command": "-changeUserPassword bob hunter2"}, True),
            ("destructive", "lot_deploy", {"code": SPREAD}, False),
            ("destructive", "lot_deploy", {"code": OPEN}, True),  # the rule is there already
            ("destructive", "lot_deploy", {"code": OPEN.replace("Closed", "Other")}, False),
            ("destructive", "lot_deploy", {"code": OPEN, "dry_run": True}, False),
            ("every", "mqtt_read", {"topic_filter": "plant/a", "timeout_s": 0.1}, False),
        ],
    )
    async def test_a_person_is_asked_before_what_the_settings_say(
        self, fake: FakeBroker, confirm: Any, tool: str, arguments: dict[str, Any], asks: bool
    ) -> None:
        fake.send("$SYS/Coreflux/Rules/Closed", OPEN.replace("ALLOW", "DENY").encode(), retain=True)
        fake.refused.add("$SYS/Coreflux/Command")  # what goes on after the question does not matter here
        asked: list[str] = []

        def person(question: str) -> ElicitResult:
            asked.append(question)
            return ElicitResult(action="decline")

        async with assisted(fake, Config(access_mode="admin", rules=Rules(confirm=confirm)), person=person) as me:
            await me.client.call_tool(tool, arguments)

        assert bool(asked) is asks
        assert "hunter2" not in "".join(asked)


class TestApproval:
    """The way for clients that cannot ask."""

    CONFIG = replace(ADMIN, rules=Rules(fallback="approve-file"))

    def approve(self, approval: str, home: Path, answer: bytes) -> str:
        """Answer as a person at a terminal does."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "approve", approval],
            env=settings(XDG_STATE_HOME=str(home), HOME=str(home)),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        os.close(theirs)
        os.write(ours, answer)
        output, _ = process.communicate(timeout=30)
        os.close(ours)
        return output.decode()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
    async def test_a_person_allows_one_act_once(self, fake: FakeBroker, tmp_path: Path) -> None:
        config = replace(self.CONFIG, state_dir=tmp_path / "coreflux-mcp")
        act = {"topic_filter": "plant/a", "dry_run": False}
        async with assisted(fake, config) as me:
            words = await me.fail("mqtt_clear_retained", **act)
            approval = words.partition("server.py approve ")[2].split()[0]
            assert approval in await me.fail("mqtt_clear_retained", **act)  # the same question waits
            no = await asyncio.to_thread(self.approve, approval, tmp_path, b"no\n")
            assert "Not done" in await me.fail("mqtt_clear_retained", **act)
            yes = await asyncio.to_thread(self.approve, approval, tmp_path, b"yes\n")
            assert "Not done" in await me.fail("mqtt_clear_retained", topic_filter="plant/#", dry_run=False)
            done = await me.call("mqtt_clear_retained", **act)
            assert "Not done" in await me.fail("mqtt_clear_retained", **act)

        assert "delete up to 50 retained messages below 'plant/a'" in yes
        assert "Not allowed" in no
        assert done["cleared"] == 1
        assert "plant/b" in fake.retained

    async def test_of_two_calls_one_uses_the_approval(self, fake: FakeBroker, tmp_path: Path) -> None:
        async with assisted(fake, replace(self.CONFIG, state_dir=tmp_path)) as me:
            act = {"topic_filter": "plant/#", "dry_run": False}
            await me.fail("mqtt_clear_retained", **act)
            approvals = Approvals(tmp_path / "approvals")
            approvals.approve(approvals.waiting()[0])
            results = await asyncio.gather(*(me.client.call_tool("mqtt_clear_retained", act) for _ in range(5)))

        assert [result.is_error for result in results].count(False) == 1

    def test_what_is_no_person_cannot_approve(self, tmp_path: Path) -> None:
        approval = Approvals(tmp_path / "coreflux-mcp" / "approvals").ask("do it", "", "0" * 32)
        done = subprocess.run(
            [*COMMAND, "approve", approval.id],
            env=settings(XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path)),
            input="yes\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

        assert done.returncode == 1
        assert "Only a person at a terminal" in done.stderr

    def test_an_approval_ends_by_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        approvals = Approvals(tmp_path)
        approval = approvals.ask("do it", "", "0" * 32)
        approvals.approve(approval)
        (file,) = tmp_path.glob("*.json")
        assert file.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr("time.time", lambda: approval.until + 1)

        assert not approvals.take("0" * 32)
        assert list(tmp_path.glob("*.json")) == []


class TestTopics:
    """The rules for topics, as the tools obey them."""

    RULES = Rules(
        publish_allow=(TopicFilter("plant/cmd/#"),),
        publish_deny=(TopicFilter("plant/cmd/secret"),),
        subscribe_allow=(TopicFilter("plant/#"),),
        subscribe_deny=(TopicFilter("plant/b"),),
        fallback="allow",
    )
    CONFIG = Config(access_mode="admin", rules=RULES, copilot=COPILOT)

    @pytest.mark.parametrize(
        ("tool", "arguments", "says"),
        [
            ("mqtt_publish", {"topic": "plant/a", "payload": "1"}, "plant/cmd/#"),
            ("mqtt_publish", {"topic": "plant/cmd/secret", "payload": "1"}, "PUBLISH_DENY has plant/cmd/secret"),
            ("mqtt_request", {"topic": "plant/a", "payload": "1"}, "PUBLISH_ALLOW"),
            ("mqtt_request", {"topic": "plant/cmd/x", "payload": "1", "response_topic": "office/x"}, "SUBSCRIBE_ALLOW"),
            ("mqtt_request", {"topic": "plant/cmd/x", "payload": "1", "response_topic": "plant/a"}, "PUBLISH_ALLOW"),
            ("mqtt_publish", {"topic": "plant/cmd/x", "payload": "1", "response_topic": "plant/a"}, "PUBLISH_ALLOW"),
            (
                "mqtt_publish",
                {"topic": "plant/cmd/x", "payload": "-removeAllRules", "response_topic": "$SYS/Coreflux/Command"},
                "by hand",
            ),
            ("mqtt_publish", {"topic": "$SYS/Coreflux/Command/Output", "payload": "{}"}, "the broker itself"),
            ("mqtt_publish", {"topic": "$SYS/Coreflux/Config/New", "payload": "{}"}, "the broker itself"),
            ("mqtt_read", {"topic_filter": "plant/#"}, "SUBSCRIBE_DENY has plant/b"),
            ("mqtt_read", {"topic_filter": "office/#"}, "SUBSCRIBE_ALLOW, which has plant/#"),
            ("mqtt_subscribe", {"topic_filter": "#"}, "SUBSCRIBE"),
            ("mqtt_subscribe", {"topic_filter": "$share/g/plant/+"}, "plant/b"),
            ("mqtt_messages", {"topic_filter": "#"}, "SUBSCRIBE"),
            ("mqtt_wait", {"topic_filter": "plant/+", "timeout_s": 0.1}, "plant/b"),
            ("mqtt_topics", {"topic_filter": "office/#", "listen_s": 0}, "Nothing of 'office/#' is open"),
            ("mqtt_clear_retained", {"topic_filter": "plant/#"}, "plant/b"),
            ("mqtt_clear_retained", {"topic_filter": "plant/a", "dry_run": False}, "PUBLISH_ALLOW"),
            ("copilot_ask", {"question": "?", "include_topics": ["office/a"]}, "SUBSCRIBE_ALLOW"),
        ],
    )
    async def test_what_is_closed_is_refused_with_the_rule(
        self, fake: FakeBroker, tool: str, arguments: dict[str, Any], says: str
    ) -> None:
        async with assisted(fake, self.CONFIG) as me:
            assert says in await me.fail(tool, **arguments)

        assert fake.published == []
        assert set(fake.retained) == {"plant/a", "plant/b"}

    async def test_a_look_around_shows_what_is_open_and_says_what_was_left_out(self, fake: FakeBroker) -> None:
        fake.send("office/secret", b"x", retain=True)
        async with assisted(fake, self.CONFIG) as me:
            seen = await me.call("mqtt_topics", listen_s=0.05)
            whole = await me.call("mqtt_topics", topic_filter="plant/a", listen_s=0.05)

        assert [each["topic"] for each in seen["topics"]] == ["plant/a"]
        assert "plant/#" in seen["left_out"][0]
        assert "plant/b" in seen["left_out"][1]
        assert "left_out" not in whole

    async def test_a_look_around_counts_a_message_once_however_many_rules_open_it(self, fake: FakeBroker) -> None:
        allow = tuple(map(TopicFilter, ("plant/#", "+/a", "plant/a")))

        async def publish() -> None:
            while len(fake.feeds) < len(allow):
                await asyncio.sleep(0)
            fake.send("plant/a", b"22")

        async with assisted(fake, replace(ADMIN, rules=Rules(subscribe_allow=allow))) as me:
            publishing = asyncio.create_task(publish())
            seen = await me.call("mqtt_topics", listen_s=0.2)
            await publishing

        assert [(each["topic"], each["messages"]) for each in seen["topics"]] == [("plant/a", 2), ("plant/b", 1)]

    async def test_a_look_at_what_is_held_asks_the_broker_for_nothing(self, fake: FakeBroker) -> None:
        async with assisted(fake) as me:
            await me.call("mqtt_subscribe", topic_filter="plant/a")
            fake.go_offline()
            seen = await me.call("mqtt_topics", listen_s=0)

        assert [each["topic"] for each in seen["topics"]] == ["plant/a"]

    async def test_a_request_hears_its_answer_whatever_may_be_read(self, fake: FakeBroker) -> None:
        def device(topic: str, _payload: bytes, properties: Any) -> None:
            if topic == "plant/cmd/x":
                fake.send(
                    properties.response_topic, b"ok", properties={"correlation_data": properties.correlation_data}
                )

        fake.respond = device
        async with assisted(fake, self.CONFIG) as me:
            answer = await me.call("mqtt_request", topic="plant/cmd/x", payload="?")

        assert answer["response"]["payload"] == "ok"

    async def test_the_status_shows_the_rules(self, fake: FakeBroker) -> None:
        async with assisted(fake, self.CONFIG) as me:
            policy = (await me.call("server_status"))["policy"]

        assert policy["subscribe_deny"] == ["plant/b"]
        assert policy["confirm_fallback"] == "allow"

    @pytest.mark.parametrize(
        ("what", "topic", "code", "says"),
        [
            ("publish", "a/b", 0, "yes: PUBLISH_ALLOW has a/#"),
            ("publish", "b", 1, "no: 'b' is not within PUBLISH_ALLOW"),
            ("publish", "$SYS/Coreflux/Command", 1, "no: Commands"),
            ("subscribe", "s/#", 1, "no: 's/#' is not within SUBSCRIBE_ALLOW, which has s/+"),
            ("subscribe", "s/x", 0, "yes: SUBSCRIBE_ALLOW has s/+"),
            ("publish", "a/#", 1, "wildcard"),
        ],
    )
    def test_a_person_can_ask_what_is_allowed_and_why(self, what: str, topic: str, code: int, says: str) -> None:
        environment = settings(PUBLISH_ALLOW="a/#", SUBSCRIBE_ALLOW="s/+")
        done = subprocess.run(
            [*COMMAND, "policy", "check", what, topic],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

        assert done.returncode == code
        assert says in done.stdout + done.stderr


class TestUndo:
    """What was retained can be put back."""

    async def test_what_was_replaced_is_in_the_answer_and_can_be_put_back(self, fake: FakeBroker) -> None:
        async with assisted(fake) as me:
            first = await me.call("mqtt_publish", topic="plant/a", payload="99", retain=True)
            second = await me.call("mqtt_publish", topic="plant/new", payload="1", retain=True)
            back = first["replaced"]
            await me.call(
                "mqtt_publish", topic=back["topic"], payload=back["payload"], encoding=back["encoding"], retain=True
            )

        assert back == {"topic": "plant/a", "bytes": 4, "encoding": "text", "payload": "21.5"}
        assert "retain=true" in first["undo"]
        assert "replaced" not in second
        assert fake.retained["plant/a"] == b"21.5"

    async def test_what_may_not_be_read_is_said_and_asked_about(self, fake: FakeBroker) -> None:
        rules = Rules(subscribe_deny=(TopicFilter("plant/a"),))
        async with assisted(fake, replace(ADMIN, rules=rules)) as me:
            answer = await me.call("mqtt_publish", topic="plant/a", payload="1", retain=True)
        async with assisted(fake, replace(ADMIN, rules=replace(rules, confirm="overwrite"))) as me:
            words = await me.fail("mqtt_publish", topic="plant/a", payload="1", retain=True)

        assert "could not be kept" in answer["undo"]
        assert "replaced" not in answer
        assert "in place of what may not be read" in words

    async def test_what_was_cleared_can_be_put_back_whole(self, fake: FakeBroker) -> None:
        fake.send("plant/long", b"x" * 5000, retain=True)
        before = dict(fake.retained)
        async with assisted(fake, replace(ADMIN, rules=ALLOWED)) as me:
            cleared = await me.call("mqtt_clear_retained", topic_filter="plant/#", dry_run=False)
            assert fake.retained == {}
            uri = cleared["undo"].split()[-1]
            (content,) = (await me.client.read_resource(uri)).contents
            for arguments in json.loads(content.text):  # type: ignore[union-attr]
                await me.call("mqtt_publish", **arguments)

        assert fake.retained == before
        assert [each.get("encoding") for each in cleared["removed"]] == ["text", "base64", None]

    @pytest.mark.parametrize("way", ["answer", "resource"])
    async def test_a_hidden_secret_is_put_back_too(self, fake: FakeBroker, way: str) -> None:
        before = json.dumps({"url": "a", "token": TOKEN}).encode()
        fake.send("plant/config", before, retain=True)
        async with assisted(fake) as me:
            answer = await me.call("mqtt_publish", topic="plant/config", payload="{}", retain=True)
            if way == "answer":
                back = {name: answer["replaced"][name] for name in ("topic", "payload", "encoding")} | {"retain": True}
            else:
                (content,) = (await me.client.read_resource(answer["undo"].split()[-1])).contents
                (back,) = json.loads(content.text)  # type: ignore[union-attr]
            assert "[REDACTED]" in back["payload"]
            await me.call("mqtt_publish", **back)

        assert fake.retained["plant/config"] == before

    @pytest.mark.parametrize(
        ("tool", "arguments"),
        [
            ("mqtt_publish", {"topic": "plant/config", "payload": '{"token": "[REDACTED]"}', "retain": True}),
            ("mqtt_publish", {"topic": "plant/config", "payload": '{"token": "[REDACTED]"}', "encoding": "json"}),
            ("mqtt_request", {"topic": "plant/config", "payload": "[REDACTED]"}),
            ("lot_deploy", {"code": SPREAD + '\n    PUBLISH TOPIC "a" WITH "[REDACTED]"'}),
            ("lot_run_action", {"name": "Beat", "arguments": {"key": "[REDACTED]"}}),
            ("coreflux_command", {"command": "-setSecret PLC=[REDACTED]"}),
        ],
    )
    async def test_a_marker_never_takes_the_place_of_a_secret(
        self, fake: FakeBroker, tool: str, arguments: dict[str, Any]
    ) -> None:
        async with assisted(fake, replace(ADMIN, rules=ALLOWED)) as me:
            assert "stands for a secret" in await me.fail(tool, **arguments)

        assert fake.published == []

    async def test_what_is_kept_is_bounded(self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tools.undo.MOST_BYTES", 10_000)
        for number in range(5):
            fake.send(f"big/{number}", b"x" * 4000, retain=True)
        async with assisted(fake, replace(ADMIN, rules=ALLOWED)) as me:
            removed = (await me.call("mqtt_clear_retained", topic_filter="big/#", dry_run=False))["removed"]

        assert [each.get("kept", True) for each in removed] == [True, True, False, False, False]


class TestLimits:
    """Calls that run wild."""

    async def test_a_refused_call_says_when_to_come_back(self, fake: FakeBroker) -> None:
        config = replace(ADMIN, rules=Rules(calls_per_s=1, burst=3))
        async with assisted(fake, config) as me:
            for _ in range(3):
                await me.call("mqtt_publish", topic="plant/x", payload="1")
            words = await me.fail("mqtt_publish", topic="plant/x", payload="1")

        assert "come back in" in words
        assert len(fake.published) == 3

    async def test_resources_and_completions_have_the_same_limits(self, fake: FakeBroker) -> None:
        config = replace(ADMIN, rules=Rules(calls_per_s=1, burst=2))
        source = ResourceTemplateReference(uri="coreflux://{kind}/{name}")
        async with assisted(fake, config) as me:
            await me.client.complete(source, {"name": "kind", "value": ""})
            await me.client.complete(source, {"name": "kind", "value": ""})
            with pytest.raises(MCPError, match="come back in"):
                await me.client.complete(source, {"name": "kind", "value": ""})
            with pytest.raises(MCPError, match="come back in"):
                await me.client.read_resource("coreflux://action/Beat")

    async def test_calls_that_wait_leave_room_for_others(self, fake: FakeBroker) -> None:
        config = replace(ADMIN, rules=Rules(concurrent=4))
        async with assisted(fake, config) as me:
            wait = {"topic_filter": "never", "timeout_s": 60}
            waiting = [asyncio.create_task(me.client.call_tool("mqtt_wait", wait)) for _ in range(2)]
            while (await me.call("server_status"))["policy"]["limits"]["under_way"] < 3:
                await asyncio.sleep(0)
            assert "half" in await me.fail("mqtt_wait", **wait)
            await me.call("mqtt_publish", topic="plant/x", payload="1")
            for task in waiting:
                task.cancel()

    async def test_a_tool_has_its_time_and_no_more(self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TOOLS, "mqtt_wait", TOOLS["mqtt_wait"]._replace(limit_s=0.05))
        async with assisted(fake) as me:
            assert "longer than its 0.05 s" in await me.fail("mqtt_wait", topic_filter="never", timeout_s=60)


class TestRecord:
    """What is written down."""

    @pytest.fixture
    async def audit(self, tmp_path: Path) -> AsyncIterator[Audit]:
        async with Audit(AuditConfig(file=tmp_path / "audit.jsonl", key=SecretStr("k" * 16))) as audit:
            yield audit

    def lines(self, tmp_path: Path) -> list[dict[str, Any]]:
        text = (tmp_path / "audit.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    async def test_every_act_refusal_and_confirmation_has_its_line(
        self, fake: FakeBroker, audit: Audit, tmp_path: Path
    ) -> None:
        config = replace(ADMIN, rules=Rules(publish_deny=(TopicFilter("closed"),)))
        answers = [ElicitResult(action="decline"), YES]
        async with assisted(fake, config, person=lambda _question: answers.pop(0), audit=audit) as me:
            await me.call("mqtt_publish", topic="plant/x", payload="hello")
            await me.call("mqtt_read", topic_filter="plant/a", timeout_s=0.1)
            await me.fail("mqtt_publish", topic="closed", payload="1")
            await me.fail("mqtt_clear_retained", topic_filter="plant/a", dry_run=False)
            await me.call("mqtt_clear_retained", topic_filter="plant/a", dry_run=False)
            fake.refused.add("plant/x")
            await me.fail("mqtt_publish", topic="plant/x", payload="1")
        lines = self.lines(tmp_path)

        assert [line["event"] for line in lines] == [
            *("act", "refused"),
            *("asked", "answered", "refused"),
            *("asked", "answered", "act"),
            "act",
        ]
        assert [line["answer"] for line in lines if line["event"] == "answered"] == ["no", "yes"]
        assert lines[0]["act"] == "publish 5 bytes to 'plant/x' with QoS 1"
        assert lines[0]["caller"].startswith("mcp ")
        assert lines[0]["duration_ms"] >= 0
        assert lines[-1]["outcome"].startswith("failed: The broker refused the message")
        assert len({line["correlation"] for line in lines[:2]}) == 2
        assert len(lines[0]["digest"]) == 32
        await audit.__aexit__(None, None, None)
        assert verify(tmp_path / "audit.jsonl", SecretStr("k" * 16)) == []

    async def test_commands_with_secrets_are_not_recorded_in_clear(
        self, fake: FakeBroker, audit: Audit, tmp_path: Path
    ) -> None:
        async with assisted(fake, replace(ADMIN, rules=ALLOWED), audit=audit) as me:
            await me.client.call_tool("coreflux_command", {"command": "-addUser bob hunter2"})

        text = (tmp_path / "audit.jsonl").read_text("utf-8")
        assert "-addUser" in text
        assert "hunter2" not in text

    async def test_nothing_is_done_that_cannot_be_recorded_when_it_must_be(
        self, fake: FakeBroker, tmp_path: Path
    ) -> None:
        record = AuditConfig(file=tmp_path / "no" / "such" / "folder" / "audit.jsonl", required=True)
        async with Audit(record) as audit, assisted(fake, replace(ADMIN, audit=record), audit=audit) as me:
            words = await me.fail("mqtt_publish", topic="plant/x", payload="1")
            await me.call("mqtt_read", topic_filter="plant/a", timeout_s=0.1)
            advice = " ".join((await me.call("server_status"))["advice"])

        assert "could not be recorded" in words
        assert "not recorded" in advice
        assert fake.published == []

    def test_a_person_can_verify_the_record(self, tmp_path: Path) -> None:
        async def write() -> None:
            async with Audit(AuditConfig(file=tmp_path / "audit.jsonl")) as audit:
                for number in range(3):
                    await audit.record("act", number=number)

        asyncio.run(write())
        file = tmp_path / "audit.jsonl"
        whole = self.verify(tmp_path)
        file.write_text(file.read_text("utf-8").replace('"number":1', '"number":7'), "utf-8")
        changed = self.verify(tmp_path)

        assert (whole.returncode, changed.returncode) == (0, 1)
        assert "whole and unchanged" in whole.stdout
        assert "2" in changed.stdout

    def verify(self, tmp_path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "audit", "verify"],
            env=settings(AUDIT_FILE=str(tmp_path / "audit.jsonl")),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )


class TestOverThePipe:
    """The same with a real broker, a real client and a real pipe."""

    @pytest.mark.parametrize("era", ERAS)
    async def test_a_person_is_asked_and_everything_is_recorded(
        self, mosquitto: Mosquitto, era: Era, tmp_path: Path
    ) -> None:
        file = tmp_path / "audit.jsonl"
        environment = settings(
            mosquitto, ACCESS_MODE="admin", AUDIT_FILE=str(file), AUDIT_KEY="k" * 20, LOG_FILE=str(tmp_path / "log")
        )
        asked: list[str] = []

        async def person(context: Any, params: Any) -> ElicitResult:
            asked.append(params.message)
            return YES

        server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment)
        topic = f"pipe/{era}"
        async with Client(server, mode=era, elicitation_callback=person) as client:
            me = Assistant(client)
            await me.call("mqtt_publish", topic=topic, payload="1", retain=True)
            cleared = await me.call("mqtt_clear_retained", topic_filter=topic, dry_run=False)
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]

        assert cleared["topics"] == [topic]
        broker = f"mqtt://{mosquitto.host}:{mosquitto.port}"
        assert asked == [f"Allow the assistant to delete up to 50 retained messages below {topic!r} from {broker}?"]
        assert [line["event"] for line in lines] == ["started", "connected", "act", "asked", "answered", "act"]
        assert lines[0]["rules"]["confirm"] == "destructive"
        assert verify(file, SecretStr("k" * 20)) == []
        assert file.stat().st_mode & 0o777 == 0o600

    async def test_refused_logins_and_new_secrets_are_recorded(self, tmp_path: Path) -> None:
        file, password = tmp_path / "audit.jsonl", tmp_path / "password"
        password.write_text("wrong-password", "utf-8")
        password.chmod(0o600)

        async def until_recorded(event: str) -> None:
            async with asyncio.timeout(20):
                while f'"event":"{event}"' not in file.read_text("utf-8"):
                    await asyncio.sleep(0.05)

        with Embedded(personality=Personality(Options())) as broker:
            environment = settings(broker, MQTT_USER="root", MQTT_PASSWORD_FILE=str(password), AUDIT_FILE=str(file))
            async with Child(environment):
                await until_recorded("login_failed")
                password.write_text(ACCOUNTS["root"].password, "utf-8")
                await until_recorded("secrets_rotated")
                await until_recorded("connected")

        assert "wrong-password" not in file.read_text("utf-8")


class TestTable:
    """Everything about a tool follows from its row."""

    async def test_every_tool_is_what_its_row_says(self) -> None:
        tools = {tool["name"]: tool for tool in await list_tools()}

        assert {*tools, "run_<name>"} == set(TOOLS)
        for name, tool in tools.items():
            rule, hints = rule_of(name), tool["annotations"]
            assert hints["readOnlyHint"] is not rule.acts
            assert hints["destructiveHint"] is rule.acts
            assert hints["idempotentHint"] is (rule.effect in ("looks", "deletes"))
            if rule.effect == "deletes":
                assert rule.asks != "never"

    @pytest.mark.parametrize("tool", [tool for tool, rule in TOOLS.items() if rule.acts and tool != "run_<name>"])
    async def test_every_act_is_recorded_and_asks_when_every_act_must(
        self, fake: FakeBroker, tmp_path: Path, tool: str
    ) -> None:
        arguments: dict[str, dict[str, Any]] = {
            "mqtt_publish": {"topic": "a", "payload": "1"},
            "mqtt_request": {"topic": "a", "payload": "1", "timeout_s": 0.1},
            "mqtt_clear_retained": {"topic_filter": "a", "dry_run": False},
            "lot_deploy": {"code": SPREAD},
            "lot_run_action": {"name": "Beat"},
            "lot_remove": {"kind": "action", "name": "Beat"},
            "coreflux_command": {"command": "-listRoutes"},
        }
        asked: list[str] = []

        def person(question: str) -> ElicitResult:
            asked.append(question)
            return ElicitResult(action="decline")

        record = AuditConfig(file=tmp_path / "audit.jsonl")
        config = replace(ADMIN, rules=Rules(confirm="every"))
        async with Audit(record) as audit, assisted(fake, config, person=person, audit=audit) as me:
            await me.fail(tool, **arguments[tool])

        assert len(asked) == 1
        assert [json.loads(line)["event"] for line in (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()] == [
            "asked",
            "answered",
            "refused",
        ]

    def test_a_tool_without_a_row_cannot_be_offered(self) -> None:
        with pytest.raises(KeyError):
            rule_of("mqtt_explode")
