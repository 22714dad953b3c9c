"""The Copilot tools as an assistant uses them, against a service on loopback."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp.client import Client
from pydantic import SecretStr

from config import Bounds, Config, CopilotConfig
from server import build_server
from tests.assistant import Assistant, Era
from tests.brokers import Mosquitto
from tests.child import Child, settings
from tests.doubles.copilot import (
    CHAT,
    FENCED,
    GUARDRAILS,
    INVALID,
    LOT,
    RETRIEVAL,
    SEVERAL,
    THINKING,
    UNFENCED,
    CopilotDouble,
    Pause,
    as_json,
    completion,
    failure,
    stream,
)
from tests.fake_broker import FakeBroker
from tests.test_coreflux import BEAT

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.03)
    monkeypatch.setattr("identity._WAIT_S", 0.03)
    monkeypatch.setattr("copilot_client.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("copilot_client._JITTER_S", (0.0, 0.01))
    monkeypatch.setattr("tools.copilot._VALUES_WITHIN_S", 0.1)


@pytest.fixture
async def copilot() -> AsyncIterator[CopilotDouble]:
    async with CopilotDouble() as double:
        yield double


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@asynccontextmanager
async def helped(
    copilot: CopilotDouble, broker: FakeBroker, era: Era = "auto", room: int = 1 << 14, **more: Any
) -> AsyncIterator[Assistant]:
    known = CopilotConfig(url=copilot.url + CHAT, key=SecretStr(copilot.key), **more)
    config = Config(copilot=known, bounds=Bounds(result_max_bytes=room))
    async with Client(build_server(config, broker), mode=era) as client:
        yield Assistant(client)


@pytest.fixture
async def me(copilot: CopilotDouble, broker: FakeBroker) -> AsyncIterator[Assistant]:
    async with helped(copilot, broker) as assistant:
        yield assistant


def asked(copilot: CopilotDouble, number: int = -1) -> list[dict[str, str]]:
    """The conversation of a request."""
    messages: list[dict[str, str]] = copilot.requests[number].json["messages"]
    return messages


@pytest.mark.parametrize(
    "known", [CopilotConfig(), CopilotConfig(url="https://x"), CopilotConfig(key=SecretStr("abc"))], ids=str
)
async def test_without_a_key_and_an_address_there_are_no_tools_and_the_status_says_what_to_set(
    broker: FakeBroker, known: CopilotConfig
) -> None:
    async with Client(build_server(Config(copilot=known), broker)) as client:
        me = Assistant(client)
        status = await me.call("server_status")
        assert not [name for name in await me.tools() if name.startswith("copilot")]

    assert status["copilot"] == {"configured": False, "reachable": None, "missing": known.missing}


async def test_the_status_looks_whether_the_copilot_is_up_without_asking_it(
    me: Assistant, copilot: CopilotDouble
) -> None:
    unlooked = (await me.call("server_status"))["copilot"]
    up = (await me.call("server_status", check=True))["copilot"]
    copilot.health = failure(503)
    down = (await me.call("server_status", check=True))["copilot"]

    assert [each["reachable"] for each in (unlooked, up, down)] == [None, True, False]
    assert {request.path for request in copilot.requests} == {"/health"}
    assert not any(copilot.key in str(request.headers) for request in copilot.requests)


async def test_a_question_gets_its_answer_with_its_sources_marked_as_untrusted(
    me: Assistant, copilot: CopilotDouble
) -> None:
    copilot.answer(completion("Use \u202eKEEP.", retrieval=RETRIEVAL))
    answer = await me.call("copilot_ask", question="How do I keep a value?", context="broker 2.14")

    assert answer == {
        "answer": "Use \\u202eKEEP.",
        "sources": [{"id": "r1", "filename": "actions.md", "page": 3, "score": 0.83}, {"id": "r2", "score": 0.41}],
        "finish_reason": "stop",
        "untrusted": True,
        "sent_along": ["context (11 characters)"],
    }
    (message,) = asked(copilot)
    assert "How do I keep a value?" in message["content"]
    assert "broker 2.14" in message["content"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (completion("a", "length"), "cut off"),
        (completion("No.", guardrails=GUARDRAILS), "guardrail"),
        (completion("No.", "content_filter"), "refused"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_said(
    me: Assistant, copilot: CopilotDouble, answer: Any, says: str
) -> None:
    copilot.answer(answer)

    assert says in " ".join((await me.call("copilot_ask", question="?"))["notes"])


@pytest.mark.parametrize("tool", ["copilot_ask", "copilot_generate_lot"])
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (failure(401), "DO_AGENT_API_KEY"),
        (failure(429, retry_after=3600), "Ask again in 3600 s"),
        (failure(500), "later"),
        (completion(""), "empty answer"),
        (as_json([]), "not known"),
    ],
)
async def test_a_failure_is_an_error_that_says_what_to_do(
    me: Assistant, copilot: CopilotDouble, tool: str, answer: Any, says: str
) -> None:
    copilot.answer(answer)

    words = await me.fail(tool, **{"question" if tool == "copilot_ask" else "task": "x"})
    assert says in words
    assert copilot.key not in words


@pytest.mark.parametrize("answer", [FENCED, UNFENCED, THINKING])
async def test_code_comes_checked_and_with_what_is_said_about_it(
    me: Assistant, copilot: CopilotDouble, answer: str
) -> None:
    copilot.answer(completion(answer))
    generated = await me.call("copilot_generate_lot", task="pass each value on")

    assert generated["code"] == LOT.strip()
    assert generated["definitions"] == [{"kind": "action", "name": "Overheated", "line": 1}]
    assert generated["problems"] == []
    assert generated["verdict"].startswith("no problem found locally")
    assert generated["explanation"].startswith("Here is the action:")
    assert generated["attempts"] == 1


async def test_several_blocks_are_kept_in_order(me: Assistant, copilot: CopilotDouble) -> None:
    copilot.answer(completion(SEVERAL.replace("Overheated", "First", 1)))
    generated = await me.call("copilot_generate_lot", task="x", max_attempts=1)

    assert [each["name"] for each in generated["definitions"]] == ["First", "Overheated"]
    assert "mosquitto_sub" in generated["explanation"]


async def test_code_with_errors_is_asked_for_once_more_with_what_is_wrong(
    me: Assistant, copilot: CopilotDouble
) -> None:
    copilot.answer(completion(INVALID), completion(FENCED))
    generated = await me.call("copilot_generate_lot", task="pass each value on")

    assert (generated["attempts"], generated["problems"]) == (2, [])
    first, answer, criticism = asked(copilot)
    assert first == asked(copilot, 0)[0]
    assert answer == {"role": "assistant", "content": INVALID}
    assert "line 2" in criticism["content"]


@pytest.mark.parametrize(
    ("max_attempts", "answers", "attempts"),
    [(1, [INVALID], 1), (2, [INVALID], 2), (3, [INVALID], 3), (3, ["I would use an action.", INVALID, "Sorry."], 3)],
)
async def test_the_best_of_a_few_attempts_comes_with_its_problems(
    me: Assistant, copilot: CopilotDouble, max_attempts: int, answers: list[str], attempts: int
) -> None:
    copilot.answer(*map(completion, answers))
    generated = await me.call("copilot_generate_lot", task="x", max_attempts=max_attempts)

    assert generated["attempts"] == attempts == len(copilot.requests)
    assert "Broken" in generated["code"]
    assert [each for each in generated["problems"] if each["severity"] == "error"]


async def test_a_refusal_is_not_asked_again(me: Assistant, copilot: CopilotDouble) -> None:
    copilot.answer(completion("No.", guardrails=GUARDRAILS))
    generated = await me.call("copilot_generate_lot", task="x")

    assert (generated["code"], generated["attempts"], len(copilot.requests)) == ("", 1, 1)
    assert generated["verdict"] == "there is no LoT in the answer"
    assert "guardrail" in generated["notes"][0]


async def test_nothing_is_deployed(me: Assistant, copilot: CopilotDouble, broker: FakeBroker) -> None:
    copilot.answer(completion(FENCED))
    await me.call("copilot_generate_lot", task="deploy it at once")

    assert broker.published == []


async def test_what_goes_along_is_bounded_without_secrets_and_listed(
    me: Assistant, copilot: CopilotDouble, broker: FakeBroker
) -> None:
    token = "ghp_" + "Ab1" * 12
    broker.send("plant/a", b"21.5 " + token.encode(), retain=True)
    broker.send("plant/long", b"x" * 100_000, retain=True)
    broker.send("plant/secret", b"nobody asked", retain=True)
    broker.send("$SYS/Coreflux/Actions/Beat", BEAT.encode(), retain=True)
    answer = await me.call(
        "copilot_ask",
        question="why?",
        include_topics=["plant/a", "plant/long", "plant/none"],
        include_entities=["action/Beat"],
    )
    sent = asked(copilot)[0]["content"]

    assert [each.split(" (")[0] for each in answer["sent_along"]] == [
        "topic plant/a",
        "topic plant/long",
        "topic plant/none",
        "action Beat",
    ]
    assert "21.5" in sent
    assert BEAT in sent
    assert "no value was heard" in sent
    assert token not in sent
    assert "nobody asked" not in sent
    assert len(sent) < 5000


@pytest.mark.parametrize(
    "along",
    [
        {"include_topics": ["plant/#"]},
        {"include_topics": ["a"] * 21},
        {"include_entities": ["Beat"]},
        {"include_entities": ["action/Nobody"]},
        {"include_entities": ["shell/x"]},
        {"question": ""},
    ],
    ids=str,
)
async def test_what_cannot_go_along_is_refused_and_nothing_is_asked(
    me: Assistant, copilot: CopilotDouble, along: dict[str, Any]
) -> None:
    await me.fail("copilot_ask", **{"question": "x", **along})

    assert copilot.requests == []


@pytest.mark.parametrize("tool", ["copilot_ask", "copilot_generate_lot"])
async def test_an_answer_is_bounded_and_says_so(copilot: CopilotDouble, broker: FakeBroker, tool: str) -> None:
    code = "\n\n".join(LOT.replace("Overheated", f"A{number}") for number in range(100))
    copilot.answer(completion(f"{'ü' * 9000}\n```lot\n{code}\n```", retrieval=RETRIEVAL))
    async with helped(copilot, broker, room=4096) as me:
        answer = await me.call(tool, **{"question" if tool == "copilot_ask" else "task": "x"})

    assert answer["truncated"]
    assert len(json.dumps(answer)) <= 4096


async def test_a_client_that_takes_progress_sees_the_answer_grow(
    copilot: CopilotDouble, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.copilot._TELL_EVERY_S", 0.0)
    copilot.answer(stream(["KEEP", " it", "."]), completion("KEEP it."))
    async with helped(copilot, broker, "legacy") as me:
        streamed = await me.call("copilot_ask", question="?")
        plain = await me.client.call_tool("copilot_ask", {"question": "?"})

    assert [request.json["stream"] for request in copilot.requests] == [True, False]
    assert plain.structured_content == streamed
    told = [done for done, _, _ in me.progress]
    assert len(told) >= 3
    assert told == sorted(set(told))
    assert "8 characters" in str(me.progress[-1])


async def test_a_client_that_gives_up_ends_the_request_to_the_service_too(
    copilot: CopilotDouble, mosquitto: Mosquitto
) -> None:
    copilot.answer(stream(["KEEP", Pause(60), " it."]))
    environment = settings(mosquitto, COPILOT_URL=copilot.url, DO_AGENT_API_KEY=copilot.key, LOG_LEVEL="DEBUG")
    async with Child(environment) as child:
        asking = child.start_call("copilot_ask", question="?")
        request = await copilot.arrived()
        child.tell("notifications/cancelled", {"requestId": child._last_id})  # noqa: SLF001
        async with asyncio.timeout(5):
            await request.abandoned.wait()
        assert not asking.done() or "error" in asking.result()
        await child.call("server_status")
        child.close_stdin()
        assert await child.ended() == 0

    assert copilot.key not in child.stderr + b"".join(child.lines).decode()


async def test_progress_goes_over_the_pipe(copilot: CopilotDouble, mosquitto: Mosquitto) -> None:
    copilot.answer(stream(["KEEP", Pause(0.7), " it.", Pause(0.1), ""]))
    environment = settings(mosquitto, COPILOT_URL=copilot.url, DO_AGENT_API_KEY=copilot.key)
    async with Child(environment) as child:
        call = {"name": "copilot_ask", "arguments": {"question": "?"}, "_meta": {"progressToken": "p1"}}
        answer = await child.ask("tools/call", call)
        told = [line for line in map(json.loads, child.lines) if line.get("method") == "notifications/progress"]

    assert answer["structuredContent"]["answer"] == "KEEP it."
    assert told[0]["params"]["progressToken"] == "p1"
    assert told[0]["params"]["message"] == "8 characters written"


class TestVerifier:
    async def test_its_findings_are_merged_and_marked(self, copilot: CopilotDouble, broker: FakeBroker) -> None:
        copilot.verdict(as_json({"message": "Parsing error (2,9): unexpected"}, 400))
        async with helped(copilot, broker, verifier_url=f"{copilot.url}/verify") as me:
            checked = await me.call("lot_check", code=BEAT)

        (problem,) = checked["problems"]
        assert (problem["origin"], problem["severity"], problem["line"], problem["column"]) == (
            "verifier",
            "error",
            2,
            9,
        )
        assert checked["verdict"].startswith("1 error")
        assert copilot.requests[0].json == {"code": BEAT, "filename": "snippet.lot"}

    async def test_when_it_is_down_the_local_result_stands_and_says_so(
        self, copilot: CopilotDouble, broker: FakeBroker
    ) -> None:
        copilot.verdict(failure(502))
        async with helped(copilot, broker, verifier_url=f"{copilot.url}/verify") as me:
            checked = await me.call("lot_check", code=BEAT)

        assert checked["problems"] == []
        assert checked["verdict"].startswith("no problem found locally")
        assert "The LoT verifier has trouble" in checked["verdict"]

    async def test_no_secret_goes_to_it(self, copilot: CopilotDouble, broker: FakeBroker) -> None:
        token = "ghp_" + "Ab1" * 12
        async with helped(copilot, broker, verifier_url=f"{copilot.url}/verify") as me:
            await me.call("lot_check", code=f'DEFINE ACTION A\nON START DO\n    SET "t" WITH "{token}"')

        assert token.encode() not in copilot.requests[0].body
