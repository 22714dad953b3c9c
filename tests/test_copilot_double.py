"""The double of the Copilot service does what tests of a client rely on."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from tests.doubles import copilot
from tests.doubles.copilot import CLOSE, HANG, RESET, Answer, CopilotDouble, Ending, Pause, completion, failure, stream

pytestmark = pytest.mark.anyio

QUESTION = {"model": "n/a", "messages": [{"role": "user", "content": "Write an action."}]}
STREAMED = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
async def double() -> AsyncIterator[CopilotDouble]:
    async with CopilotDouble() as double:
        yield double


@pytest.fixture
async def client(double: CopilotDouble) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {double.key}"}
    async with httpx2.AsyncClient(base_url=double.url, headers=headers, trust_env=False, timeout=5) as client:
        yield client


async def ask(client: httpx2.AsyncClient, question: Any = QUESTION) -> httpx2.Response:
    return await client.post(copilot.CHAT, params={"agent": "true"}, json=question)


async def reads(client: httpx2.AsyncClient) -> list[bytes]:
    async with client.stream("POST", copilot.CHAT, json=STREAMED) as response:
        return [read async for read in response.aiter_raw()]


def content(answer: httpx2.Response) -> Any:
    return answer.json()["choices"][0]["message"]["content"]


def said(body: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("key", ["", "Bearer wrong", "Basic {key}", "{key}", "Bearer"])
async def test_the_key_is_demanded(double: CopilotDouble, client: httpx2.AsyncClient, key: str) -> None:
    client.headers["Authorization"] = key.format(key=double.key)

    answer = await ask(client)

    assert answer.status_code == 401
    assert answer.json() == {"id": "unauthorized", "message": "Unable to authenticate you."}


async def test_answers_come_in_order_over_one_connection_and_requests_are_recorded(
    double: CopilotDouble, client: httpx2.AsyncClient
) -> None:
    double.answer(completion("one", retrieval=copilot.RETRIEVAL), failure(429, retry_after=3), completion(None))

    one, refused, *rest = [await ask(client) for _ in range(4)]

    assert (content(one), one.json()["retrieval"]) == ("one", copilot.RETRIEVAL)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
    assert [content(answer) for answer in rest] == [None, None]
    assert (double.connections, len(double.requests)) == (1, 4)
    request = await double.arrived(4)
    assert (request.path, request.query, request.json) == (copilot.CHAT, {"agent": "true"}, QUESTION)
    assert request.headers["AUTHORIZATION"] == f"Bearer {double.key}"
    assert not request.abandoned.is_set()


@pytest.mark.parametrize("question", [{}, [], {"messages": []}, {"messages": ["hi"]}, {"messages": [{"role": "me"}]}])
async def test_what_the_agent_would_not_accept_takes_no_answer(
    double: CopilotDouble, client: httpx2.AsyncClient, question: Any
) -> None:
    double.answer(completion("one"), completion("two"))

    refused = await ask(client, question)

    assert (refused.status_code, refused.json()["detail"][0]["loc"][:2]) == (422, ["body", "messages"])
    assert content(await ask(client)) == "one"


async def test_the_other_endpoints(double: CopilotDouble, client: httpx2.AsyncClient) -> None:
    double.verdict(copilot.as_json({"message": "no"}, 400))

    assert (await client.get("/health")).json() == {"status": "ok"}
    double.health = failure(503)
    assert (await client.get("/health")).text.startswith("<html>")
    assert (await client.post("/verify", json={"code": "x", "filename": "a.lot"})).json() == {"message": "no"}
    assert (await client.post("/v1/chat/completions", json=QUESTION)).json()["id"] == "not_found"


async def test_a_completion_is_a_stream_for_who_asks_for_one(double: CopilotDouble, client: httpx2.AsyncClient) -> None:
    double.answer(completion(finish_reason="length"))

    events = (await reads(client))[-3:]

    assert said(b"".join(await reads(client))) == content(await ask(client)) == copilot.FENCED
    assert json.loads(events[0][6:])["choices"][0]["finish_reason"] == "length"
    assert json.loads(events[1][6:])["usage"] == copilot.USAGE
    assert events[2] == b"data: [DONE]\n\n"


async def test_each_part_is_read_apart(double: CopilotDouble, client: httpx2.AsyncClient) -> None:
    whole = stream(["°", Pause(0.01), {"content": "C"}], comments=True, newline="\r\n", usage=copilot.USAGE)
    inside = whole.content.index("°".encode()) + 1
    double.answer(whole, copilot.cut(whole, [inside]), stream(["ab"], finish_reason=None, done=False, split=1))

    assert await reads(client) == [part for part in whole.body if isinstance(part, bytes)]
    first, second = await reads(client)
    assert (first[-1:], said(first + second)) == (b"\xc2", "°C")
    assert {len(read) for read in await reads(client)} == {1}


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("question", [QUESTION, STREAMED], ids=["whole", "stream"])
async def test_a_connection_that_ends_early_is_an_error(
    double: CopilotDouble, client: httpx2.AsyncClient, how: Ending, question: Any
) -> None:
    for answer in copilot.closed_midway(how=how), copilot.preceded_by(how), copilot.preceded_by(b"SSH-2.0\r\n", how):
        double.answer(answer)
        with pytest.raises((httpx2.NetworkError, httpx2.RemoteProtocolError)):
            await ask(client, question)

    assert not any(request.abandoned.is_set() for request in double.requests)


@pytest.mark.parametrize(
    "answer", [copilot.slow(60), copilot.closed_midway(how=HANG), stream(["a", HANG]), copilot.gigantic(1 << 26)]
)
async def test_a_client_that_goes_away_is_noticed(
    double: CopilotDouble, client: httpx2.AsyncClient, answer: Answer
) -> None:
    double.answer(answer)
    asking = asyncio.create_task(ask(client))
    request = await double.arrived()

    asking.cancel()

    await asyncio.wait_for(request.abandoned.wait(), 5)


async def test_leaving_hangs_up_on_who_still_waits() -> None:
    before = asyncio.all_tasks()
    async with httpx2.AsyncClient(trust_env=False) as client:
        async with CopilotDouble(public=True) as double:
            double.answer(copilot.preceded_by(HANG))
            asking = asyncio.create_task(client.post(double.url + copilot.CHAT, json=QUESTION))
            await double.arrived()

        assert asyncio.all_tasks() - before == {asking}
        with pytest.raises((httpx2.NetworkError, httpx2.RemoteProtocolError)):
            await asking


async def test_answers_that_are_wrong(double: CopilotDouble, client: httpx2.AsyncClient) -> None:
    date = failure(429, retry_after=datetime(2026, 1, 1, tzinfo=UTC), reset=9)
    double.answer(copilot.not_json(), copilot.mislabelled(completion()), copilot.redirect("http://a.example/b"), date)

    plain, mislabelled, moved, later = [await ask(client) for _ in range(4)]

    assert plain.text == content(mislabelled) == copilot.FENCED
    assert mislabelled.headers["content-type"] == "text/html"
    assert (moved.status_code, moved.headers["location"]) == (307, "http://a.example/b")
    assert (later.headers["retry-after"], later.headers["ratelimit-reset"]) == ("Thu, 01 Jan 2026 00:00:00 GMT", "9")
    for shape in copilot.OTHER_SHAPES.values():
        double.answer(copilot.as_json(shape))
        assert (await ask(client)).json() == shape
