"""Deploying LoT as a transaction: planned, backed up, applied in order, verified, and put back when anything fails."""

import asyncio
import difflib
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from backups import Backup, Backups, Saved
from coreflux import ROOTS, Coreflux, Look, Picture, Reply, check_name, in_words
from errors import BridgeError, BrokerSilentError
from lot import Definition, Kind
from lot.report import VERBS

APPEAR_TIMEOUT_S: Final = 10.0
"""How long an entity may take to show its new source; a few seconds are usual."""

_LOOK_AGAIN_S: Final = 0.1
_ORDER: Final[tuple[Kind, ...]] = ("python", "model", "action", "route", "rule", "panel", "theme")
"""The broker's own load order, but scripts before the actions that call them."""

Change = Literal["create", "replace", "unchanged", "unknown"]


@dataclass(frozen=True, slots=True)
class Step:
    """What deploying one definition changes.

    Attributes:
        definition: What is to run.
        change: What that is to what runs now; unknown for kinds that the broker does not show.
        before: The source that runs now; None when there is none or it cannot be seen.
        diff: Both, compared line by line.
        error: The error that is shown now, of what runs or of what once did.
    """

    definition: Definition
    change: Change
    before: str | None
    diff: str
    error: str = ""

    @property
    def saved(self) -> Saved:
        """What was there before."""
        return Saved(self.definition.kind, self.definition.name, self.before)


@dataclass(slots=True)
class Outcome:
    """How a deployment ended.

    Attributes:
        applied: The steps that were carried out and verified, in order.
        backup_id: Where what was there before is kept; None when nothing was touched.
        rolled_back: It failed and everything was put back.
        failure: Why it failed; empty when it did not.
        errors: What the broker found wrong, each with `message` and where it said so `line` and `column`.
        left: What could not be put back, in words.
    """

    applied: list[Step] = field(default_factory=list)
    backup_id: str | None = None
    rolled_back: bool = False
    failure: str = ""
    errors: list[dict[str, object]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class StepFailedError(BridgeError):
    """One step did not do what it should."""

    def __init__(self, text: str, reply: Reply | None = None) -> None:
        super().__init__(text)
        self.reply = reply


class ByHandError(StepFailedError):
    """Only a person can do it."""


def plan(definitions: Sequence[Definition], picture: Picture) -> list[Step]:
    """Compare definitions with what runs, in the order in which they have to be deployed.

    Raises:
        InputError: A definition has a name that is none: it could be deployed, and not be taken away again.
    """
    for each in definitions:
        check_name(each.kind, each.name)
    running = {(each.kind, each.name): each.code for each in picture.entities}
    return [_step(each, running.get((each.kind, each.name)), picture) for each in in_order(definitions)]


def in_order(definitions: Sequence[Definition]) -> list[Definition]:
    """Put what others need before them; otherwise by kind, then as they were written."""
    by_key = {(each.kind, each.name): each for each in definitions}
    ordered: list[Definition] = []
    visited: set[tuple[Kind, str]] = set()
    waiting = [(each, False) for each in sorted(definitions, key=lambda each: _ORDER.index(each.kind))][::-1]
    while waiting:  # not by recursion: a chain may be longer than Python's stack
        definition, has_what_it_needs = waiting.pop()
        key = (definition.kind, definition.name)
        if has_what_it_needs:
            ordered.append(by_key[key])
        elif key not in visited:
            visited.add(key)
            waiting.append((definition, True))
            waiting += [(by_key[needed], False) for needed in reversed(definition.needs) if needed in by_key]
    return ordered


def _step(definition: Definition, before: str | None, picture: Picture) -> Step:
    if definition.kind == "python":
        change: Change = "unknown"
    elif before is None:
        change = "create"
    else:
        change = "unchanged" if _same(before, definition.text) else "replace"
    diff = "" if change == "unchanged" else _diff(before or "", definition.text, definition.name)
    return Step(definition, change, before, diff, picture.errors.get((definition.kind, definition.name), ""))


def _same(one: str, other: str) -> bool:
    """Compare sources without the ends of their lines and of the texts."""
    return _bare(one) == _bare(other)


def _bare(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{name} (running)", f"{name} (new)", lineterm=""
    )
    return "\n".join(lines)


async def deploy(coreflux: Coreflux, backups: Backups, steps: Sequence[Step], broker: str) -> Outcome:
    """Apply the steps of a plan; on a failure put back exactly what was there before.

    Nothing is raised for what the broker does: the outcome tells it. Being cancelled puts back too. What the broker is
    known not to have touched is left alone.
    """
    outcome = Outcome()
    steps = [step for step in steps if step.change != "unchanged"]
    if not steps:
        return outcome
    backup = await asyncio.to_thread(backups.create, broker, "deploy", [step.saved for step in steps])
    outcome.backup_id = backup.id
    touched: list[Step] = []
    try:
        for step in steps:
            await _apply(coreflux, step, touched)
            outcome.applied.append(step)
    except BridgeError as exc:
        outcome.failure = str(exc)
        reply = exc.reply if isinstance(exc, StepFailedError) else None
        outcome.errors = [dict(error) for error in reply.errors] if reply else []
        await _put_back(coreflux, backups, backup, touched, outcome)
    except asyncio.CancelledError:
        outcome.failure = "the call was cancelled"
        await asyncio.shield(_put_back(coreflux, backups, backup, touched, outcome))
        raise
    else:
        await asyncio.to_thread(backups.mark, backup, "applied")
    return outcome


async def _put_back(
    coreflux: Coreflux, backups: Backups, backup: Backup, touched: Sequence[Step], outcome: Outcome
) -> None:
    for step in reversed(touched):
        try:
            await put_back(coreflux, step.saved)
        except BridgeError as exc:
            outcome.left.append(f"{step.definition.kind} {step.definition.name}: {str(exc).removesuffix('.')}")
    outcome.applied = []
    outcome.rolled_back = not outcome.left
    await asyncio.to_thread(backups.mark, backup, "rolled back" if outcome.rolled_back else "not rolled back")


async def put_back(coreflux: Coreflux, saved: Saved) -> None:
    """Make an entity what it was: its old source, or gone.

    Raises:
        ByHandError: It is a script.
        BridgeError: The broker did not do it.
    """
    if saved.kind == "python":
        raise ByHandError(
            "a broker does not show scripts, so what was there before is not known: a person has to deploy it again, "
            "or to remove the script where there was none"
        )
    if saved.code is None:
        reply = await coreflux.remove(saved.kind, saved.name)
        if not reply.success and not reply.says_missing:
            raise StepFailedError(f"it could not be removed: {reply.words}", reply)
        return
    async with coreflux.look([saved.kind]) as look:
        if saved.kind == "rule":
            await coreflux.remove("rule", saved.name)
        reply = await coreflux.add(VERBS[saved.kind], saved.code)
        if not reply.success:
            raise StepFailedError(f"its old source was refused: {reply.words}", reply)
        await _await_source(look, saved.kind, saved.name, saved.code)


async def _apply(coreflux: Coreflux, step: Step, touched: list[Step]) -> None:
    definition = step.definition
    key = (definition.kind, definition.name)
    what = f"{definition.kind} {definition.name}"
    async with coreflux.look([kind for kind in ROOTS if kind == definition.kind]) as look:
        if definition.kind == "rule" and step.before is not None:
            # A rule that exists is not replaced (2.14.3-rc.62) [v2].
            await _tell(coreflux.remove("rule", definition.name), f"did not remove the old {what}", step, touched)
        await _tell(coreflux.add(definition.verb, definition.text), f"refused the {what}", step, touched)
        if definition.kind == "python":
            return
        before = len(look.errors.get(key, ()))
        await _await_source(look, *key, definition.text)
        await look.settled()
    errors = look.errors.get(key, [])
    old = {step.error, *(text for text, was_there in errors[:before] if was_there)}
    for number, (text, was_there) in enumerate(errors):
        if text and (text not in old or (number >= before and not was_there)):
            raise StepFailedError(f"The {what} fails while running: {in_words(text)}")


async def _tell(command: Awaitable[Reply], failed: str, step: Step, touched: list[Step]) -> None:
    """Have a command of a step carried out, and note the step unless it is known that nothing was done.

    Raises:
        StepFailedError: The broker said no.
        BridgeError: What the channel raises.
    """
    is_first = step not in touched[-1:]
    if is_first:
        touched.append(step)
    try:
        reply = await command
    except BrokerSilentError:
        raise
    except BridgeError:
        if is_first:
            touched.pop()
        raise
    if not reply.success:
        if is_first and (reply.dialect == "2.x" or step.definition.name in reply.message):
            touched.pop()  # otherwise it may be somebody else who was told no
        raise StepFailedError(f"The broker {failed}: {reply.words}", reply)


async def _await_source(look: Look, kind: Kind, name: str, code: str) -> None:
    """Wait until the broker shows a source as that of an entity.

    Raises:
        StepFailedError: It does not show it.
    """
    deadline = time.monotonic() + APPEAR_TIMEOUT_S
    while not ((entity := look.found.get((kind, name))) and _same(entity.code, code)):
        if time.monotonic() > deadline:
            raise StepFailedError(
                f"The broker said yes to the {kind} {name} and does not show it after {APPEAR_TIMEOUT_S:g} s."
            )
        await asyncio.sleep(_LOOK_AGAIN_S)
