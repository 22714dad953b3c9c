"""The LoT tools: see, check, deploy, remove, run and diagnose what runs inside a Coreflux broker."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

from backups import Backups, Saved
from config import Bounds
from copilot_client import CopilotClient, Finding
from coreflux import ROOTS, Coreflux, Entity, Reply, check_command, check_name, find, is_guarded, is_open, named
from deployment import Outcome, Step, deploy, plan
from errors import BridgeError, BrokerError, BrokerRefusedError, InputError, ServiceError
from inbox import Message
from lot import Definition, Problem, analyse
from mqtt_client import Broker
from policy import Policy
from sanitizer import hide_secrets, shortened
from tools.answers import NotFaithfulError, decode_json, fitting, quoted, refuse_markers, size_of, visible, visible_data
from tools.expose import Exposer
from tools.gate import Plan
from topics import TopicFilter, shown

NOTHING_FOUND: Final = "no problem found locally; only the broker can say that it is right"

_TRACE_S: Final = 3.0
_MOST_TRACED: Final = 1000
_DIFF_CHARS: Final = 4000
_KEPT_PROBLEMS: Final = 100
_NAMED: Final = 20
_LEFT: Final = 5
"""Entities that could not be put back and are told with the reason; the backup has all."""
_WORDS: Final = 500
"""Characters of what the broker says to each problem."""

ShownKind = Literal["action", "model", "rule", "route", "panel", "theme"]
Code = Annotated[str, Field(min_length=1, max_length=1 << 20, description="LoT, one definition or several")]
Name = Annotated[str, Field(min_length=1, max_length=255)]


class ShownEntity(BaseModel):
    """An entity in a list."""

    kind: str
    name: str
    description: str
    status: str
    error: str


class Entities(BaseModel):
    """Answer of lot_list."""

    entities: list[ShownEntity]
    complete: bool
    omitted: int = Field(default=0, exclude_if=lambda value: not value)


class Source(BaseModel):
    """Answer of lot_show."""

    code: str
    description: str
    error: str
    escaped: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether `code` has escapes in place of invisible characters."""
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)


class ShownDefinition(BaseModel):
    """A definition in a text."""

    kind: str
    name: str
    line: int


class ShownProblem(BaseModel):
    """Something that is wrong or unwise in a text."""

    severity: str
    line: int
    column: int
    rule: str
    message: str
    suggestion: str | None = Field(default=None, exclude_if=lambda value: value is None)
    origin: Literal["local", "broker", "verifier"] = Field(default="local", exclude_if=lambda value: value == "local")


class Checked(BaseModel):
    """Answer of lot_check."""

    definitions: list[ShownDefinition]
    problems: list[ShownProblem]
    verdict: str


class PlannedStep(BaseModel):
    """What deploying one definition changes."""

    kind: str
    name: str
    change: str
    diff: str


class Deployed(BaseModel):
    """Answer of lot_deploy."""

    plan: list[PlannedStep]
    applied: list[str]
    rolled_back: bool
    backup_id: str | None
    problems: list[ShownProblem]
    omitted: int = Field(default=0, exclude_if=lambda value: not value)
    """Differences, problems and steps that there was no room for."""


class Removed(BaseModel):
    """Answer of lot_remove."""

    removed: bool
    backup_id: str


class Ran(BaseModel):
    """Answer of lot_run_action and coreflux_command."""

    success: bool
    message: str
    data: Any = None
    errors: list[dict[str, Any]] = Field(default=[], exclude_if=lambda value: not value)
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)


class Diagnosis(BaseModel):
    """Answer of lot_diagnose."""

    report: Any
    error: str
    trace: list[Any]
    truncated: bool = Field(default=False, exclude_if=lambda value: not value)


class DeploymentFailedError(BridgeError):
    """A deployment did not come about; `answer` says the same as the text, in fields."""

    def __init__(self, text: str, answer: Deployed) -> None:
        super().__init__(text)
        self.answer = answer


class Lot:
    """What a Coreflux broker runs, for an assistant."""

    def __init__(
        self,
        broker: Broker,
        coreflux: Coreflux,
        copilot: CopilotClient,
        backups: Backups,
        bounds: Bounds,
        policy: Policy,
    ) -> None:
        self._broker = broker
        self._policy = policy
        self._coreflux = coreflux
        self._copilot = copilot
        self._backups = backups
        self._bounds = bounds
        self._deploying = asyncio.Lock()

    def tools(self, expose: Exposer) -> list[Tool]:
        """List the tools there are."""
        return [
            *expose(self.lot_list, "List entities"),
            *expose(self.lot_show, "Show an entity"),
            *expose(self.lot_check, "Check LoT"),
            *expose(self.lot_diagnose, "Diagnose an entity"),
            *expose(self.lot_deploy, "Deploy LoT", self._about_to_deploy),
            *expose(self.lot_run_action, "Run an action", self._about_to_run),
            *expose(self.lot_remove, "Remove an entity", self._about_to_remove),
            *expose(self.coreflux_command, "Coreflux command", self._about_to_command),
        ]

    async def lot_list(self, kind: ShownKind | None = None) -> Entities:
        """List what runs in the Coreflux broker: actions, models, rules, routes, panels, themes."""
        picture = await self._coreflux.entities([kind] if kind else tuple(ROOTS))
        answer = Entities(entities=[_show(each) for each in picture.entities], complete=picture.complete)
        while answer.entities and size_of(answer) > self._bounds.result_max_bytes:
            keep = len(answer.entities) // 2
            answer.omitted += len(answer.entities) - keep
            del answer.entities[keep:]
        return answer

    async def lot_show(self, kind: ShownKind, name: Name) -> Source:
        """Show the source of an entity, its description and its last error."""
        check_name(kind, name)
        entity = find(await self._coreflux.entities([kind]), kind, name)
        code = visible(entity.code)
        answer = Source(
            code=code,
            description=visible(entity.description),
            error=visible(entity.error),
            escaped=code != entity.code,
        )
        room = self._bounds.result_max_bytes
        if size_of(answer) > room:
            answer.truncated = True
            answer.code = fitting(answer.code, room // 2)
            answer.description, answer.error = fitting(answer.description, room // 8), fitting(answer.error, room // 8)
        return answer

    async def lot_check(self, code: Code) -> Checked:
        """Check LoT without a broker: every problem with line, column and correction. Use before lot_deploy."""
        checked = await self._check(code)
        if self._copilot.verifies:
            try:
                findings = await self._copilot.verify(hide_secrets(code))
            except ServiceError as exc:
                checked.verdict += f". {visible(str(exc))}"
            else:
                checked.problems += [_show_finding(finding) for finding in findings]
                checked.verdict = f"{verdict(checked.problems)}; the LoT verifier was asked too"
        _bound(checked, self._bounds.result_max_bytes)
        return checked

    async def _check(self, code: str) -> Checked:
        analysis = await asyncio.to_thread(analyse, hide_secrets(code))  # a message may quote a part of a line
        return Checked(
            definitions=[ShownDefinition(kind=d.kind, name=visible(d.name), line=d.line) for d in analysis.definitions],
            problems=show_problems(analysis.problems),
            verdict=verdict(analysis.problems) + _kept_back(len(analysis.problems) - _KEPT_PROBLEMS),
        )

    async def lot_deploy(self, code: Code, dry_run: bool = False) -> Deployed:
        """Deploy LoT as one transaction: check, back up, apply in order, verify; on a failure all is put back.

        dry_run=true only shows the plan: show it to the user first.
        """
        refuse_markers(code)
        analysis = await asyncio.to_thread(analyse, code)
        clean = hide_secrets(code) == code
        problems = show_problems(analysis.problems) if clean else (await self._check(code)).problems
        empty = Deployed(plan=[], applied=[], rolled_back=False, backup_id=None, problems=problems)
        if not analysis.definitions:
            raise DeploymentFailedError("There is no definition in the text: nothing was sent.", empty)
        if analysis.errors:
            words = f"{verdict(analysis.problems)}: nothing was sent. {_first(problems)}"
            raise DeploymentFailedError(words, _bound_deployed(empty, self._bounds.result_max_bytes))
        for (kind, name), times in Counter((each.kind, each.name) for each in analysis.definitions).items():
            if times > 1:
                raise InputError(f"{kind} {name} is defined twice: nothing was sent.")
        async with self._deploying:
            await self._coreflux.check()
            kinds = dict.fromkeys(each.kind for each in analysis.definitions)
            try:
                picture = await self._coreflux.entities([kind for kind in kinds if kind in ROOTS])
            except BrokerRefusedError as exc:
                raise BrokerRefusedError(
                    f"{exc} Without that nothing can be backed up or verified: nothing was sent."
                ) from exc
            if not picture.complete:
                raise BrokerError("What runs now could not be heard completely, so nothing was sent: try again.")
            steps = await asyncio.to_thread(plan, analysis.definitions, picture)
            answer = empty.model_copy(update={"plan": await asyncio.to_thread(_show_steps, steps)})
            if dry_run:
                return _bound_deployed(answer, self._bounds.result_max_bytes)
            outcome = await deploy(self._coreflux, self._backups, steps, self._broker.state.broker)
        answer.applied = [f"{step.definition.kind} {step.definition.name}" for step in outcome.applied]
        answer.rolled_back, answer.backup_id = outcome.rolled_back, outcome.backup_id
        if outcome.failure:
            answer.problems = _broker_problems(outcome) + answer.problems
            raise DeploymentFailedError(_failure(outcome), _bound_deployed(answer, self._bounds.result_max_bytes))
        return _bound_deployed(answer, self._bounds.result_max_bytes)

    async def lot_remove(self, kind: ShownKind, name: Name) -> Removed:
        """Remove an entity from the broker; its source is backed up first."""
        check_name(kind, name)
        async with self._deploying:
            await self._coreflux.check()
            code = find(await self._coreflux.entities([kind]), kind, name).code
            saved = [Saved(kind, name, code)]
            backup = await asyncio.to_thread(self._backups.create, self._broker.state.broker, "remove", saved)
            reply = await self._coreflux.remove(kind, name)
            await asyncio.to_thread(self._backups.mark, backup, "applied" if reply.success else "rolled back")
            _succeeded(reply, f"the removal of the {kind} {name}")
        return Removed(removed=reply.success, backup_id=backup.id)

    async def lot_run_action(
        self,
        name: Name,
        arguments: Annotated[
            dict[str, Any] | None, Field(description="its INPUTs, or topic and payload of a message to simulate")
        ] = None,
    ) -> Ran:
        """Run an action now. It acts on the plant as if it had been triggered."""
        refuse_markers(_text(arguments or ""))
        reply = await self._coreflux.run_action(name, arguments)
        return self._fit(_succeeded(reply, f"to run {name}"))

    async def lot_diagnose(self, kind: Literal["action", "model", "route", "rule"], name: Name) -> Diagnosis:
        """Find out why an entity does not do what it should: the broker's report, its last error, its next runs."""
        check_name(kind, name)
        reply = await self._coreflux.command(f"-lotDiagnostic {kind} {name}")
        entity = next((e for e in (await self._coreflux.entities([kind])).entities if e.name == name), None)
        trace: list[Any] = []
        if kind == "action":
            trace = await self._trace(name)
        room = self._bounds.result_max_bytes
        answer = Diagnosis(
            report=self._open_data(reply.data or reply.message),
            error=visible(entity.error if entity else ""),
            trace=[],
        )
        if size_of(answer) > room:
            answer.report, answer.truncated = fitting(_text(answer.report), room // 2), True
            answer.error = fitting(answer.error, room // 4)
        room -= size_of(answer)
        for each in trace:
            room -= len(json.dumps(each)) + 2
            if room < 0:
                answer.truncated = True
                break
            answer.trace.append(each)
        return answer

    async def coreflux_command(self, command: Annotated[str, Field(min_length=2, max_length=1 << 20)]) -> Ran:
        """Give the broker one administration command, like -listRoutes. For LoT use the lot_ tools."""
        refuse_markers(command)
        return self._fit(_succeeded(await self._coreflux.command(command), named(command)))

    async def _about_to_deploy(self, code: str, dry_run: bool) -> Plan | None:
        """Say what a deployment changes; replacing a rule is what can lock everybody out."""
        if dry_run:
            return None
        definitions = (await asyncio.to_thread(analyse, code)).definitions
        words = f"deploy {_names(definitions)} to {self._broker.state.broker}"
        rules = {each.name for each in definitions if each.kind == "rule"}
        if not rules:
            return Plan(words, content=code)
        picture = await self._coreflux.entities(["rule"])
        replaced = sorted(each.name for each in picture.entities if each.name in rules)
        if not replaced and picture.complete:
            return Plan(words, content=code)
        return Plan(
            f"{words}, replacing the rules {', '.join(replaced) or '(it is not known which)'}", "something", code
        )

    async def _about_to_run(self, name: str, arguments: dict[str, Any] | None) -> Plan:
        return Plan(
            f"run the action {shown(name)} on {self._broker.state.broker}",
            content=_text(arguments or ""),
        )

    async def _about_to_remove(self, kind: str, name: str) -> Plan:
        return Plan(f"remove the {kind} {shown(name)} from {self._broker.state.broker}", "something")

    async def _about_to_command(self, command: str) -> Plan:
        command = check_command(command)
        words = f"give {self._broker.state.broker} the command {named(command)}"
        content = command if is_open(command) and command != named(command) else ""
        return Plan(words, "something" if is_guarded(command) else "nothing", content)

    async def _trace(self, name: str) -> list[Any]:
        """Arm the trace of an action and hear what its next runs say, for a moment."""
        heard: list[Any] = []

        def hear(message: Message) -> None:
            if len(heard) < _MOST_TRACED:
                heard.append(self._open_data(_parsed(message.payload.decode(errors="replace"))))

        async with self._broker.listen(TopicFilter(f"{ROOTS['action']}/{name}/Trace"), hear):
            armed = await self._coreflux.command(f"-actionTrace {name}")
            if armed.success:
                await asyncio.sleep(_TRACE_S)
        return heard

    def _open_data(self, data: Any) -> Any:
        """Make what the broker says fit to show; of messages on topics that are closed to the assistant the topic."""
        with suppress(RecursionError):  # what is nested too deep is not shown at all
            data = _without_closed(data, self._policy)
        return visible_data(data)

    def _fit(self, reply: Reply) -> Ran:
        answer = Ran(
            success=reply.success,
            message=visible(reply.message),
            data=self._open_data(reply.data),
            errors=[_shown_error(each) for each in reply.errors[:_KEPT_PROBLEMS]],
        )
        room = self._bounds.result_max_bytes
        if size_of(answer) > room:
            answer.truncated = True
            answer.data = fitting(_text(answer.data), room // 2)
            answer.message = fitting(answer.message, room // 8)
        while answer.errors and size_of(answer) > room:
            answer.errors.pop()
        return answer


def _names(definitions: Sequence[Definition]) -> str:
    names = [f"{each.kind} {shown(each.name)[1:-1]}" for each in definitions[:_NAMED]]
    more = len(definitions) - len(names)
    return (", ".join(names) or "nothing") + (f" and {more} more" if more else "")


def _show(entity: Entity) -> ShownEntity:
    states = [(entity.status or {}).get(key) for key in ("connection", "health")]
    connection = " ".join(str(state) for state in states if isinstance(state, str | int))
    return ShownEntity(
        kind=entity.kind,
        name=visible(entity.name),
        description=visible(shortened(entity.description, 200)),
        status=visible(shortened(connection, 100)),
        error=visible(shortened(entity.error, 200)),
    )


def _bound(checked: Checked, room: int) -> None:
    """Leave out what does not fit, and say so."""
    definitions, problems = len(checked.definitions), len(checked.problems)
    while size_of(checked) > room and (checked.definitions or checked.problems):
        if len(checked.definitions) > len(checked.problems):
            del checked.definitions[len(checked.definitions) // 2 :]
        else:
            del checked.problems[len(checked.problems) // 2 :]
    definitions -= len(checked.definitions)
    problems -= len(checked.problems)
    if definitions or problems:
        checked.verdict += f"; not shown: {definitions} definitions, {problems} problems"


def _kept_back(problems: int) -> str:
    return f"; {problems} of the problems are not shown" if problems > 0 else ""


def _bound_deployed(answer: Deployed, room: int) -> Deployed:
    """Leave out what does not fit, and count it: the longest differences first, then problems and steps."""
    over = size_of(answer) - room
    for step in sorted(answer.plan, key=lambda step: len(step.diff), reverse=True):
        if over <= 0:
            break
        over -= len(json.dumps(step.diff))
        step.diff = ""
        answer.omitted += 1
    for items in (answer.problems, answer.applied, answer.plan):
        while over > 0 and items:
            last = items.pop()
            over -= len(json.dumps(last)) if isinstance(last, str) else size_of(last)
            answer.omitted += 1
    return answer


def _without_closed(data: Any, policy: Policy) -> Any:
    """Take out of what the broker tells the messages on topics that the assistant may not read."""
    if isinstance(data, list):
        return [_without_closed(each, policy) for each in data]
    if not isinstance(data, dict):
        return data
    topic = data.get("topic")
    if isinstance(topic, str) and not policy.readable(topic):
        return {"topic": topic, "left_out": "SUBSCRIBE_ALLOW or SUBSCRIBE_DENY closes this topic"}
    return {name: _without_closed(each, policy) for name, each in data.items()}


def show_problems(problems: Sequence[Problem]) -> list[ShownProblem]:
    """Show problems, errors first."""
    return [
        ShownProblem(
            severity=each.severity,
            line=each.line,
            column=each.column,
            rule=each.rule,
            message=visible(each.message),
            suggestion=visible(each.suggestion) if each.suggestion and len(each.suggestion) <= _WORDS else None,
        )
        for each in sorted(problems, key=lambda each: each.severity)[:_KEPT_PROBLEMS]
    ]


def _show_finding(finding: Finding) -> ShownProblem:
    return ShownProblem(
        severity=finding.severity,
        line=finding.line,
        column=finding.column,
        rule="verifier",
        message=visible(finding.message),
        origin="verifier",
    )


def _broker_problems(outcome: Outcome) -> list[ShownProblem]:
    """Show what the broker itself found wrong; its lines count from the definition's first."""
    return [
        ShownProblem(
            severity="error",
            line=_number(error.get("line")),
            column=_number(error.get("column")),
            rule="broker",
            origin="broker",
            message=visible(shortened(str(error.get("message", "")), _WORDS)),
        )
        for error in outcome.errors[:_NAMED]
    ]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _show_steps(steps: Sequence[Step]) -> list[PlannedStep]:
    return [
        PlannedStep(
            kind=step.definition.kind,
            name=step.definition.name,
            change=step.change,
            diff=fitting(visible(step.diff), _DIFF_CHARS),
        )
        for step in steps
    ]


def verdict(problems: Sequence[Problem | ShownProblem]) -> str:
    """Say in a sentence what a check has found."""
    errors = sum(each.severity == "error" for each in problems)
    warnings = len(problems) - errors
    if errors:
        return f"{errors} error{'s' * (errors > 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return f"{NOTHING_FOUND}; {warnings} warning{'s' * (warnings != 1)}" if warnings else NOTHING_FOUND


def _first(problems: Sequence[ShownProblem]) -> str:
    return "; ".join(f"line {each.line}: {each.message}" for each in problems if each.severity == "error")[:1000]


def _failure(outcome: Outcome) -> str:
    if outcome.rolled_back:
        end = f"Everything was put back as it was (backup {outcome.backup_id})."
    else:
        end = (
            f"NOT everything could be put back: {visible('; '.join(outcome.left[:_LEFT]))}. A person can restore it: "
            f"python server.py backups restore {outcome.backup_id}"
        )
    return f"The deployment failed. {visible(outcome.failure)} {end}"


def _succeeded(reply: Reply, what: str) -> Reply:
    """Turn a reply that says no into an error.

    Raises:
        BrokerRefusedError: It says no.
    """
    if not reply.success:
        said = [reply.message, *(str(each.get("message", "")) for each in reply.errors[:_NAMED])]
        raise BrokerRefusedError(
            f"The broker refused {what}: {'; '.join(map(quoted, dict.fromkeys(filter(None, said))))}"
        )
    return reply


def _shown_error(error: Mapping[str, Any]) -> dict[str, Any]:
    shown_error = visible_data(dict(error))
    return shown_error if isinstance(shown_error, dict) else {"message": shown_error}


def _parsed(text: str) -> Any:
    try:
        return decode_json(text)
    except NotFaithfulError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
