"""Conditions on a message, for waiting: a path into the payload, an operator and a value."""

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from errors import InputError
from inbox import Message
from topics import shown

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "contains", "exists", "changed"]

MAX_PAYLOAD: Final = 1 << 20
"""Bytes of a payload that a condition looks into; a larger one never meets it."""

_MAX_TOPICS: Final = 100_000
"""Topics whose last value is remembered for `changed`."""

_STEP = re.compile(r"(?:^|(?<!^)\.)([^.\[\]]+)|\[([0-9]{1,9})\]")
_MISSING: Final = object()


class Condition(BaseModel):
    """What a message must say."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        default="", max_length=1000, description="into JSON, e.g. motor.temps[0]; empty: the whole payload"
    )
    op: Operator
    value: Any = Field(default=None, description="not for exists and changed")


@dataclass(slots=True)
class Matcher:
    """Says of one message after another whether it meets a condition.

    Raises:
        InputError: The path is malformed, or the operator cannot use the value.
    """

    condition: Condition
    _steps: list[str | int] = field(init=False)
    _before: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = _parse(self.condition.path)
        if self.condition.op not in ("exists", "changed") and "value" not in self.condition.model_fields_set:
            raise InputError(f"The operator {self.condition.op} compares: give the value to compare with.")
        if self.condition.op in _ORDERINGS and (
            isinstance(self.condition.value, bool) or not isinstance(self.condition.value, int | float)
        ):
            raise InputError(
                f"The operator {self.condition.op} compares numbers: give a number as value, "
                f"not {shown(repr(self.condition.value))[1:-1]}."
            )

    def meets(self, message: Message) -> bool:
        """Say whether `message` meets the condition; for `changed`, against the one before on its topic."""
        if len(message.payload) > MAX_PAYLOAD:
            return False
        text = message.payload.decode(errors="replace")
        found = self._find(text)
        op, wanted = self.condition.op, self.condition.value
        if found is _MISSING:
            return False
        if op == "exists":
            return True
        if op == "changed":
            before = self._before.get(message.topic, _MISSING)
            if before is not _MISSING or len(self._before) < _MAX_TOPICS:
                self._before[message.topic] = found
            return before is not _MISSING and not _equal(before, found)
        if not self._steps and isinstance(wanted, str):
            found = text if op == "contains" or not isinstance(found, str) else found
        return _compare(op, found, wanted)

    def _find(self, text: str) -> Any:
        try:
            value = json.loads(text, parse_constant=str)  # NaN is not even equal to itself
        except (ValueError, RecursionError):
            return text if not self._steps else _MISSING
        for step in self._steps:
            in_object = isinstance(value, dict) and isinstance(step, str) and step in value
            in_array = isinstance(value, list) and isinstance(step, int) and step < len(value)
            if not in_object and not in_array:
                return _MISSING
            value = value[step]
        return value


def _parse(path: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise InputError(f"The path {shown(path)} is malformed: write it like motor.temps[0].")
        steps.append(step[1] if step[1] is not None else int(step[2]))
        at = step.end()
    return steps


def _compare(op: Operator, found: Any, wanted: Any) -> bool:
    if op in ("==", "!="):
        return _equal(found, wanted) == (op == "==")
    if op == "contains":
        if isinstance(found, list):
            return any(_equal(item, wanted) for item in found)
        return isinstance(wanted, str) and isinstance(found, str | dict) and wanted in found
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    return _ORDERINGS[op](found, wanted)


_ORDERINGS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _equal(one: Any, other: Any) -> bool:
    """Compare JSON values, however deep: true is not 1."""
    pairs = [(one, other)]
    while pairs:
        one, other = pairs.pop()
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            pairs += [(item, other[key]) for key, item in one.items()]
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            pairs += zip(one, other, strict=True)
        elif isinstance(one, bool) != isinstance(other, bool) or one != other:
            return False
    return True
