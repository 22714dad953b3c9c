"""Deploying LoT as a transaction: planned, backed up, applied in order, verified, and put back when anything fails."""

import asyncio
import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from backups import Backup, Backups, Saved
from coreflux import Coreflux, Entity, Picture, Reply, in_words
from errors import BridgeError
from lot import Definition, Kind
from lot.report import VERBS

APPEAR_TIMEOUT_S: Final = 10.0
"""How long an entity may take to show its new source; a few seconds are usual."""

_LOOK_AGAIN_S: Final = 0.3
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
    """

    definition: Definition
    change: Change
    before: str | None
    diff: str

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


def plan(definitions: Sequence[Definition], picture: Picture) -> list[Step]:
    """Compare definitions with what runs, in the order in which they have to be deployed."""
    running = {(each.kind, each.name): each for each in picture.entities}
    return [_step(each, running.get((each.kind, each.name))) for each in in_order(definitions)]


def in_order(definitions: Sequence[Definition]) -> list[Definition]:
    """Put what others need before them; otherwise by kind, then as they were written."""
    by_key = {(each.kind, each.name): each for each in definitions}
    ordered: list[Definition] = []
    visited: set[tuple[Kind, str]] = set()

    def visit(definition: Definition) -> None:
        key = (definition.kind, definition.name)
        if key in visited:
            return
        visited.add(key)
        for needed in definition.needs:
            if needed in by_key:
                visit(by_key[needed])
        ordered.append(by_key[key])

    for each in sorted(definitions, key=lambda each: _ORDER.index(each.kind)):
        visit(each)
    return ordered


def _step(definition: Definition, running: Entity | None) -> Step:
    before = running.code if running else None
    if definition.kind == "python":
        change: Change = "unknown"
    elif before is None:
        change = "create"
    else:
        change = "unchanged" if _same(before, definition.text) else "replace"
    diff = "" if change == "unchanged" else _diff(before or "", definition.text, definition.name)
    return Step(definition, change, before, diff)


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

    Nothing is raised for what the broker does: the outcome tells it. Being cancelled puts back too.
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
            touched.append(step)
            await _apply(coreflux, step)
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
            outcome.left.append(f"{step.definition.kind} {step.definition.name}: {exc}")
    outcome.applied = []
    outcome.rolled_back = not outcome.left
    await asyncio.to_thread(backups.mark, backup, "rolled back" if outcome.rolled_back else "not rolled back")


async def put_back(coreflux: Coreflux, saved: Saved) -> None:
    """Make an entity what it was: its old source, or gone.

    Raises:
        BridgeError: The broker did not do it.
    """
    if saved.kind == "python":
        raise StepFailedError("a broker does not show scripts, so what was there before is not known and it stays")
    if saved.code is None:
        reply = await coreflux.remove(saved.kind, saved.name)
        missing = "not found" in reply.message.lower() or "does not exist" in reply.message.lower()
        if not reply.success and not missing:
            raise StepFailedError(f"it could not be removed: {reply.words}", reply)
        return
    if saved.kind == "rule":
        await coreflux.remove("rule", saved.name)
    reply = await coreflux.add(VERBS[saved.kind], saved.code)
    if not reply.success:
        raise StepFailedError(f"its old source was refused: {reply.words}", reply)
    await _await_source(coreflux, saved.kind, saved.name, saved.code)


async def _apply(coreflux: Coreflux, step: Step) -> None:
    definition = step.definition
    what = f"the {definition.kind} {definition.name}"
    if definition.kind == "rule" and step.before is not None:
        # A rule that exists is not replaced (2.14.3-rc.62) [v2].
        reply = await coreflux.remove("rule", definition.name)
        if not reply.success:
            raise StepFailedError(f"The broker did not remove the old {what[4:]}: {reply.words}", reply)
    reply = await coreflux.add(definition.verb, definition.text)
    if not reply.success:
        raise StepFailedError(f"The broker refused {what}: {reply.words}", reply)
    if definition.kind != "python":
        error = await _await_source(coreflux, definition.kind, definition.name, definition.text)
        if error:
            raise StepFailedError(f"{what[0].upper()}{what[1:]} fails while running: {in_words(error)}")


async def _await_source(coreflux: Coreflux, kind: Kind, name: str, code: str) -> str:
    """Wait until the broker shows a source as that of an entity; return the error it has there, if any.

    Raises:
        StepFailedError: It does not show it.
    """
    deadline = time.monotonic() + APPEAR_TIMEOUT_S
    while True:
        picture = await coreflux.entities([kind])
        for entity in picture.entities:
            if entity.name == name and _same(entity.code, code):
                return entity.error
        if time.monotonic() > deadline:
            raise StepFailedError(
                f"The broker said yes to the {kind} {name} and does not show it after {APPEAR_TIMEOUT_S:g} s."
            )
        await asyncio.sleep(_LOOK_AGAIN_S)
