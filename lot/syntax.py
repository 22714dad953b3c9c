"""The grammar at work: one logical line in, its syntax tree or the place where reading stopped out."""

import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:  # the library is loaded when the first line is read
    from lark import Lark, Token, Tree

GRAMMAR: Final = Path(__file__).with_name("grammar.lark")
_STARTS: Final = ("action_line", "model_line", "rule_line", "route_line", "panel_line", "theme_line")
_LONGEST: Final = 20_000
"""A logical line of more characters, strings not counted, is not read."""
_DEEPEST: Final = 60
"""Nor is one whose brackets are nested deeper."""


class Reading(NamedTuple):
    """What was read of a line."""

    tree: "Tree[Token] | None"
    """Its statement or member, when the line could be read."""
    stopped: int = 0
    """Where it could not be read on."""


@lru_cache(maxsize=1)
def _parser() -> "Lark":
    from lark import Lark  # noqa: PLC0415  # 40 ms that a start without LoT need not pay

    return Lark(GRAMMAR.read_text("utf-8"), parser="lalr", start=list(_STARTS), maybe_placeholders=False)


@lru_cache(maxsize=512)
def read(kind: str, shape: str) -> Reading:
    """Parse the shape of a logical line of a definition of this kind."""
    from lark import UnexpectedInput, UnexpectedToken  # noqa: PLC0415

    if len(shape) > _LONGEST or _too_deep(shape):
        return Reading(None)
    try:
        tree = _parser().parse(shape, start=f"{kind}_line")
    except UnexpectedInput as exc:
        ended = isinstance(exc, UnexpectedToken) and exc.token.type == "$END"
        return Reading(None, len(shape) if ended else exc.pos_in_stream or 0)
    while tree.data.endswith("_line") and tree.data in _STARTS:
        tree = tree.children[0]  # type: ignore[assignment]
    return Reading(tree)


def _too_deep(shape: str) -> bool:
    depth = 0
    for bracket in re.findall(r"[(){}\[\]]", shape):
        depth += 1 if bracket in "([{" else -1
        if depth > _DEEPEST:
            return True
    return False


@lru_cache(maxsize=1)
def keywords() -> frozenset[str]:
    """List the words the grammar knows, from the grammar."""
    words = {terminal.pattern.value for terminal in _parser().terminals if terminal.pattern.type == "str"}
    return frozenset(word for word in words if re.fullmatch(r"[A-Z][A-Z_]+", word)) | {"TRIGGER", "STRING", "FLOAT"}


def keyword_meant(word: str) -> str | None:
    """Name the keyword that a word in the wrong case, or misspelled, stands for."""
    upper = word.upper()
    if upper in keywords():
        return upper
    close = get_close_matches(upper, sorted(keywords()), n=1, cutoff=0.75) if 3 < len(word) < 15 else []  # noqa: PLR2004
    return close[0] if close else None
