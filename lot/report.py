"""What an analysis tells: the definitions found in a text and the problems seen in it."""

import re
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["action", "model", "rule", "route", "panel", "theme", "python"]
Severity = Literal["error", "warning"]
Need = tuple[Kind, str]

VERBS: Final[dict[Kind, str]] = {
    "action": "-addAction",
    "model": "-addModel",
    "rule": "-addRule",
    "route": "-addRoute",
    "panel": "-addPanel",
    "theme": "-addTheme",
    "python": "-addPython",
}

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
"""The name of an action, a model, a rule or a route."""

LONGEST_CORRECTED: Final = 500
"""A line of more characters is told about and not written out again as it should be: that means to read it again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, or likely wrong, at one place of the text."""

    severity: Severity
    line: int
    """From 1, of the whole text."""
    column: int
    """From 1, in characters."""
    rule: str
    """The name of the rule, which stays the same from version to version."""
    message: str
    suggestion: str | None = None
    """The corrected line, or definition, where there is no doubt about it."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One entity: what one command carries to the broker."""

    kind: Kind
    name: str
    line: int
    text: str
    """Its source as it was written, without blank lines at the end."""
    verb: str
    needs: tuple[Need, ...] = ()
    """Other entities it uses, in the order of their first use."""
    inputs: tuple[tuple[str, str], ...] = ()
    """The names and types an action takes."""
    outputs: tuple[str, ...] = ()
    description: str | None = None
    triggered: bool = False
    """Whether it is an action that runs by itself."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """All that can be told without a broker."""

    definitions: tuple[Definition, ...]
    problems: tuple[Problem, ...]
    """In the order of their places."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that a broker is known to refuse."""
        return tuple(problem for problem in self.problems if problem.severity == "error")
