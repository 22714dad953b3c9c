"""What every tool call passes: limits, a person's yes where it is needed, the time it may take, and the record."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, NamedTuple

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, CallToolResult, InputRequiredResult

import callers
import logs
from approvals import Approvals
from audit import Audit, digest
from config import Config
from errors import BridgeError, LimitError, PolicyRefusedError
from limits import Limits
from measures import Measures, Outcome
from policy import ToolRule, rule_of
from sanitizer import hide_secrets, shortened
from tools.answers import visible
from tools.confirm import Act, Confirmations, Once

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What a call is about to change, looked up before it does."""

    words: str
    """In words that follow "to"; they hold no secret."""
    loses: Literal["nothing", "a retained value", "something"] = "nothing"
    """What cannot be had back without a person's care."""
    content: str = ""
    """What is sent, for the person who is asked: a payload, a command, LoT."""


Describe = Callable[..., Awaitable[Plan | None]]
"""Takes a tool's arguments and says what it is about to change; None for nothing."""

_NOBODY: Final = "unknown"
_EXCERPT_CHARS: Final = 1000
_READS: Final = ("resources/read", "completion/complete")


class Gate:
    """The way into every tool."""

    def __init__(
        self,
        config: Config,
        broker: str,
        limits: Limits,
        audit: Audit,
        once: Once,
        measures: Measures | None = None,
    ) -> None:
        self.limits = limits
        self.audit = audit
        self.measures = measures or Measures()
        self._config = config
        self._broker = broker
        self._limit_told_at = -1.0
        self._confirmations = Confirmations(config.rules, Approvals(config.approvals_dir), audit, once)

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        context: Context[Any, Any],
        describe: Describe | None,
        run: Callable[[], Awaitable[CallToolResult]],
    ) -> CallToolResult | InputRequiredResult:
        """Let a call through, and record it where it changes something.

        Raises:
            PolicyRefusedError: The operator's rules or a person forbid it.
            LimitError: There are too many calls.
            BridgeError: It took longer than its tool may, or what `run` raises.
        """
        rule = rule_of(tool)
        caller = callers.caller_of(context.request_context.request)
        correlation = caller.correlation or secrets.token_hex(4)
        facts: dict[str, Any] = {
            "tool": tool,
            "caller": _client(context),
            **caller.facts(),
            "correlation": correlation,
        }
        correlated, called = logs.correlation.set(correlation), callers.current.set(caller)
        try:
            return await self._counted(tool, self._let_through(rule, arguments, context, describe, facts, run))
        except PolicyRefusedError as exc:
            await self.audit.record("refused", reason=str(exc), **facts)
            raise
        except LimitError as exc:
            if time.monotonic() - self._limit_told_at >= 1:  # what runs wild must not fill the disk as well
                self._limit_told_at = time.monotonic()
                await self.audit.record("refused", reason=str(exc), so_far=self.limits.facts()["refused"], **facts)
            raise
        finally:
            callers.current.reset(called)
            logs.correlation.reset(correlated)

    async def limited(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Hold requests that reach the broker without being tool calls against the same limits (middleware)."""
        if ctx.method not in _READS:
            return await call_next(ctx)
        try:
            under_way = self.limits.enter(waits=True)
        except LimitError as exc:
            self.measures.rate_limited("calls")
            raise MCPError(INTERNAL_ERROR, str(exc)) from exc
        with under_way:
            return await call_next(ctx)

    async def _counted(
        self, tool: str, call: Awaitable[CallToolResult | InputRequiredResult]
    ) -> CallToolResult | InputRequiredResult:
        started = time.perf_counter()
        outcome: Outcome = "failed"
        try:
            result = await call
            outcome = "asked" if isinstance(result, InputRequiredResult) else "ok"
        except PolicyRefusedError:
            outcome = "refused"
            raise
        except LimitError:
            outcome = "limited"
            raise
        except BridgeError:
            outcome = "error"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.measures.tool_call(tool, outcome, time.perf_counter() - started)
        return result

    async def _let_through(
        self,
        rule: ToolRule,
        arguments: dict[str, Any],
        context: Context[Any, Any],
        describe: Describe | None,
        facts: dict[str, Any],
        run: Callable[[], Awaitable[CallToolResult]],
    ) -> CallToolResult | InputRequiredResult:
        tool = facts["tool"]
        try:
            under_way = self.limits.enter(waits=rule.waits)
        except LimitError:
            self.measures.rate_limited("calls")
            raise
        with under_way:
            plan = None
            if rule.acts:
                plan = await describe(**arguments) if describe else Plan(f"call {tool}")
            if plan is None:
                return await self._in_time(rule, tool, run)
            return await self._act(rule, plan, arguments, context, facts, run)

    async def _act(
        self,
        rule: ToolRule,
        plan: Plan,
        arguments: dict[str, Any],
        context: Context[Any, Any],
        facts: dict[str, Any],
        run: Callable[[], Awaitable[CallToolResult]],
    ) -> CallToolResult | InputRequiredResult:
        if self.audit.refuses:
            raise PolicyRefusedError(
                f"Not done: it could not be recorded, and AUDIT_REQUIRED=true. {self.audit.failure}"
            )
        tool = facts["tool"]
        bound_to = {"tool": tool, "arguments": arguments, "broker": self._broker}
        whose = {"principal": facts["principal"]} if "principal" in facts else {}
        asks = self._has_to_ask(rule, plan)
        content = _excerpt(plan.content) if asks else ""
        act = Act(visible(hide_secrets(plan.words)), content, digest(bound_to | whose))
        facts |= {"digest": act.digest}
        if asks:
            with self.limits.while_asking(waits=rule.waits):
                question = await self._confirmations.confirm(act, context, facts)
            if question is not None:
                return question
        if self._config.audit.required:  # it may be that nothing can be written any more: found out before, not after
            await self.audit.record("begun", act=act.words, **facts)
            if self.audit.refuses:
                raise PolicyRefusedError(f"Not done: it could not be recorded. {self.audit.failure}")
        started = time.perf_counter()
        outcome = "cancelled"
        try:
            result = await self._in_time(rule, tool, run)
            outcome = "done"
        except (PolicyRefusedError, LimitError):
            outcome = ""  # nothing was done, which has its own line
            raise
        except BridgeError as exc:
            outcome = f"failed: {exc}"
            raise
        except Exception:
            outcome = "failed inside"
            raise
        finally:
            if outcome:
                duration_ms = round((time.perf_counter() - started) * 1000, 2)
                await self.audit.record("act", act=act.words, outcome=outcome, duration_ms=duration_ms, **facts)
        return result

    async def _in_time(self, rule: ToolRule, tool: str, run: Callable[[], Awaitable[CallToolResult]]) -> CallToolResult:
        try:
            async with asyncio.timeout(rule.limit_s) as limit:
                return await run()
        except TimeoutError:
            if not limit.expired():
                raise
            raise BridgeError(
                f"{tool} took longer than its {rule.limit_s:g} s and was stopped. How much of it was done is not known."
            ) from None

    def _has_to_ask(self, rule: ToolRule, plan: Plan) -> bool:
        confirm = self._config.rules.confirm
        if confirm == "every" or rule.asks == "always":
            return True
        losses = {"something"} if confirm == "destructive" else {"something", "a retained value"}
        return rule.asks == "when it destroys" and plan.loses in losses


def _excerpt(content: str) -> str:
    """Show what is sent line by line, so that nothing in it can pass for words of ours."""
    text = shortened(content, _EXCERPT_CHARS)
    lines = [f"| {visible(line)}" for line in text.splitlines()]
    if len(content) > _EXCERPT_CHARS:
        lines.append(f"(the first {_EXCERPT_CHARS} of {len(content)} characters)")
    return "\n".join(lines)


def _client(context: Context[Any, Any]) -> str:
    parameters = context.session.client_params
    if parameters is None:
        return _NOBODY
    return visible(f"{shortened(parameters.client_info.name, 60)} {shortened(parameters.client_info.version, 20)}")
