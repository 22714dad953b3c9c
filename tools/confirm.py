"""Ask a person before what cannot be undone, in both protocol eras, and where the client cannot, by another way."""

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

from approvals import Approvals
from audit import Audit
from config import Rules
from errors import BridgeError, PolicyRefusedError

ANSWER_WITHIN_S: Final = 120.0
"""How long a person has to answer, and for how long the answer is good."""

_MOST_USED: Final = 1000
"""Answers within `ANSWER_WITHIN_S`: more are not from people."""
_KEY: Final = "confirm"


class _Yes(BaseModel):
    """The form that a person fills in."""

    allow: bool = Field(title="Allow this once", description="Nothing happens without it.")


@dataclass(frozen=True, slots=True)
class Act:
    """What a person is asked to allow.

    Attributes:
        words: What will happen, to stand behind "to".
        content: What is sent, in lines that begin with "| "; "" for nothing.
        digest: What the answer is bound to: the tool, all of its arguments, the broker, and over HTTP the client.
    """

    words: str
    content: str
    digest: str


class Once(Protocol):
    """Makes sure that an answer is used once, by this process or by any of several."""

    @property
    def several(self) -> bool:
        """Whether there are several, and a request may reach any of them."""

    async def claim(self, name: str) -> bool:
        """Say whether nobody has claimed `name` before; raises `BridgeError` when that cannot be found out."""


class OnceHere:
    """Within this process."""

    several = False

    def __init__(self) -> None:
        self._used: dict[str, float] = {}

    async def claim(self, name: str) -> bool:
        """Say whether nobody has claimed `name` before."""
        now = time.monotonic()
        while self._used and next(iter(self._used.values())) < now:
            del self._used[next(iter(self._used))]
        if name in self._used or len(self._used) >= _MOST_USED:
            return False
        self._used[name] = now + ANSWER_WITHIN_S
        return True


class Confirmations:
    """Questions to a person and their answers.

    A question to a client of 2026-07-28 travels with the client, sealed by the SDK (`RequestStateSecurity`): its name,
    what it is bound to, and until when it is good. So any process that has the key can take the answer.
    """

    def __init__(self, rules: Rules, approvals: Approvals, audit: Audit, once: Once) -> None:
        self._rules = rules
        self._approvals = approvals
        self._audit = audit
        self._once = once

    async def confirm(self, act: Act, context: Context[Any, Any], facts: dict[str, Any]) -> InputRequiredResult | None:
        """Return None when a person has said yes to exactly this act, or the question that the client has to put.

        An answer is used up by the call it was given for.

        Raises:
            PolicyRefusedError: A person said no, or could not be asked.
        """
        modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
        # The answer of an older client is a request of its own, which could reach another replica.
        if not _can_ask(context) or (self._once.several and not modern):
            await self._without_client(act, facts)
            return None
        if modern:
            if context.request_state is None:
                await self._audit.record("asked", act=act.words, **facts)
                return self._question(act)
            answer = await self._answer(act, context)
        else:
            await self._audit.record("asked", act=act.words, **facts)
            answer = await _ask_now(act, context)
        await self._audit.record("answered", act=act.words, answer=answer, **facts)
        if answer != "yes":
            raise PolicyRefusedError(f"Not done: a person was asked to allow the assistant to {act.words}: {answer}.")
        return None

    def _question(self, act: Act) -> InputRequiredResult:
        state = f"{secrets.token_hex(12)} {act.digest} {time.time() + ANSWER_WITHIN_S:.3f}"
        params = ElicitRequestFormParams(message=_sentence(act), requested_schema=_Yes.model_json_schema())
        return InputRequiredResult(input_requests={_KEY: ElicitRequest(params=params)}, request_state=state)

    async def _answer(self, act: Act, context: Context[Any, Any]) -> str:
        name, digest, until = (context.request_state or "").split(" ")
        if digest != act.digest or time.time() > float(until) or not await self._once.claim(name):
            return "the answer was to another question, too late, or used before"
        answer = (context.input_responses or {}).get(_KEY)
        if not isinstance(answer, ElicitResult):
            return "there was no answer"
        agreed = answer.action == "accept" and (answer.content or {}).get("allow") is True
        return "yes" if agreed else "no"

    async def _without_client(self, act: Act, facts: dict[str, Any]) -> None:
        if self._rules.fallback == "allow":
            await self._audit.record("answered", act=act.words, answer="allowed by CONFIRM_FALLBACK", **facts)
            return
        if self._rules.fallback == "approve-file":
            if await asyncio.to_thread(self._approvals.take, act.digest):
                await self._audit.record("answered", act=act.words, answer="yes, by approve", **facts)
                return
            try:
                approval = await asyncio.to_thread(self._approvals.ask, act.words, act.content, act.digest)
            except BridgeError as exc:
                raise PolicyRefusedError(f"Not done: nobody could be asked to allow it. {exc}") from exc
            await self._audit.record("asked", act=act.words, approval=approval.id, **facts)
            raise PolicyRefusedError(
                f"Not done yet: a person has to allow the assistant to {act.words}. Ask the user to run, on the "
                f"machine of this server: python server.py approve {approval.id} . Then make the same call again "
                "within 10 minutes."
            )
        raise PolicyRefusedError(
            f"Not done: a person has to allow the assistant to {act.words}, and this client cannot ask one. The "
            "operator can set CONFIRM_FALLBACK=approve-file, which lets a person allow it with a command."
        )


async def _ask_now(act: Act, context: Context[Any, Any]) -> str:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            result = await context.elicit(_sentence(act), _Yes)
    except TimeoutError:
        return f"there was no answer within {ANSWER_WITHIN_S:g} s"
    except ValueError:  # also pydantic's: the client accepted with something that is no answer
        return "the answer could not be understood"
    return "yes" if result.action == "accept" and result.data.allow else "no"


def _can_ask(context: Context[Any, Any]) -> bool:
    capabilities = context.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


def _sentence(act: Act) -> str:
    return f"Allow the assistant to {act.words}?" + (f"\n{act.content}" if act.content else "")
