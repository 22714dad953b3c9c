"""A definition read line by line: which blocks its lines form, and what they say."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lot.lines import OPENS_FIELDS, Line
from lot.report import Kind, Need, Problem, Severity

if TYPE_CHECKING:
    from lark import Token, Tree

Place = tuple[int, int]

_OPENERS: Final = {
    "define_action", "trigger_line", "input_line", "do_line", "return_line", "if_line", "else_line", "switch_line",
    "case_line", "loop_line", "define_model", "add_field", "define_rule", "rule_if", "rule_else", "define_route",
    "section", "define_panel", "panel_option", "on_click", "define_theme",
}  # fmt: skip
_NEED_A_BLOCK: Final = {"do_line", "return_line", "if_line", "else_line", "switch_line", "case_line", "loop_line"}
_FIRST_WORDS: Final[dict[str, str]] = {
    "IF": "if_line", "ELSE": "else_line", "SWITCH": "switch_line", "CASE": "case_line", "DEFAULT": "case_line",
    "LOOP": "loop_line", "ON": "trigger_line", "DO": "do_line", "RETURN": "return_line", "ADD": "add_field",
    "DEFINE": "define", "PUBLISH": "publish", "SET": "set", "KEEP": "keep",
}  # fmt: skip
"""What a line that could not be read seems to be."""
TOP: Final = {"define_action", "trigger_line", "do_line", "input_line", "return_line", "description_line"}
"""The lines of an action that stand in the column of DEFINE."""


@dataclass(slots=True)
class Entity:
    """What is known of one definition while it is read."""

    kind: Kind
    name: str
    line: int
    problems: list[Problem] = field(default_factory=list)
    unreadable: int = 0
    """How many of its lines the grammar does not know."""
    needs: list[tuple[Need, Place]] = field(default_factory=list)
    inputs: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    description: str | None = None
    trigger: str | None = None
    """The form of its trigger."""
    texts: dict[str, str] = field(default_factory=dict)
    """What is known of the texts in its variables."""
    listens: list[tuple[str, Place]] = field(default_factory=list)
    """The topics, or filters of topics, whose messages reach it."""
    publishes: list[tuple[str, Place]] = field(default_factory=list)
    keeps: list[tuple[str, Place]] = field(default_factory=list)
    reads: list[tuple[str, Place]] = field(default_factory=list)
    """Topics whose last value it gets, as far as they are known."""
    calls: list[tuple[str, int | None, Place]] = field(default_factory=list)
    """Actions it calls, with the number of results it takes."""
    fields: set[str] = field(default_factory=set)
    collapsed: bool = False
    base_topic: str | None = None
    parent: str | None = None
    has_field_trigger: bool = False
    field_topic: Place | None = None
    """The first field of a model that is bound to a topic."""

    def tell(self, severity: Severity, place: Place, rule: str, message: str, suggestion: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(severity, *place, rule, message, suggestion))


@dataclass(slots=True)
class Node:
    """A line in its place."""

    line: Line
    tree: "Tree[Token] | None"
    form: str
    depth: int = 0
    parents: tuple[str, ...] = ()
    """The forms of the lines it is indented under, the nearest last."""
    previous: str = ""
    """The form of the line before it in the same block."""


@dataclass(slots=True)
class _Block:
    width: int
    opener: str
    last: str = ""


def form_of(line: Line, tree: "Tree[Token] | None") -> str:
    """Name what a line is."""
    if tree is not None:
        return str(tree.data)
    word = re.match(r"\w*", line.shape)
    return _FIRST_WORDS.get(word[0].upper() if word else "", "")


def opens(form: str, line: Line, tree: "Tree[Token] | None") -> bool:
    """Say whether a block may follow the line."""
    if tree is None:
        return (
            form in _OPENERS or bool(re.search(r"\b(?:DO|THEN|ELSE|WITH|DEFINE)$|:$", line.shape)) or form == "define"
        )
    if form == "publish_model":
        return bool(OPENS_FIELDS.match(line.shape))
    if form in ("if_line", "else_line", "case_line", "do_line"):
        return bool(re.search(r"\b(?:THEN|ELSE|DO|DEFAULT)$", line.shape))
    return form in _OPENERS


def indented(entity: Entity, nodes: Iterable[Node], lines: list[Line]) -> Iterator[Node]:
    """Find the blocks of a definition by the indentation of its lines, telling what is wrong with that."""
    tabs_only = _tabs_only(entity, lines)
    blocks = [_Block(0, "")]
    base, opened, before = 0, False, None
    for number, node in enumerate(nodes):
        line = node.line
        if number == 0 or (node.form == "trigger_line" and number == 1 and line.width):
            further = lines[number + 1].width - line.width if number + 1 < len(lines) else -1
            if number and line.width > base:
                _trigger_indented(entity, line)
            if further % 4 == 0 and further >= bool(number):  # all that follows is indented as much too far
                base = line.width
            width = 0
        else:
            width = max(0, line.width - base)
        _fit(entity, node, blocks, width, before if opened else None)
        node.depth, node.previous = len(blocks) - 1, blocks[-1].last
        node.parents = tuple(block.opener for block in blocks[1:])
        _check_width(entity, node, width, tabs_only, blocks[-1].opener)
        yield node
        blocks[-1].last = node.form
        opened, before = opens(node.form, line, node.tree), node


def _fit(entity: Entity, node: Node, blocks: list[_Block], width: int, opener: Node | None) -> None:
    """Open and close blocks until the line is in the one it belongs to."""
    line = node.line
    if width > blocks[-1].width:
        if opener is None and entity.kind != "panel":
            entity.tell(
                "warning", line.start, "unexpected-indent", "Nothing above opens a block, and yet the line is indented."
            )
        blocks.append(_Block(width, opener.form if opener else ""))
        return
    if opener and opener.form in _NEED_A_BLOCK and not (opener.form == "do_line" and node.form == "return_line"):
        word = re.match(r"\w+(?:\s+IF\b)?", opener.line.shape)
        entity.tell(
            "warning", opener.line.start, "empty-block", f"Nothing is indented under {word[0] if word else 'this'}."
        )
    left = 0
    while width < blocks[-1].width:
        left = blocks.pop().width
    if width > blocks[-1].width:
        if width % 4 == 0:
            severity: Severity = "error" if left % 4 else "warning"
            message = "The line goes back to a column where no block begins."
            entity.tell(severity, line.start, "unexpected-indent", message)
        blocks.append(_Block(width, ""))


def _trigger_indented(entity: Entity, line: Line) -> None:
    entity.tell(
        "error",
        line.start,
        "trigger-indented",
        "The trigger stands in the column of DEFINE, not indented under it.",
        line.source(line.shape),
    )


def _tabs_only(entity: Entity, lines: Iterable[Line]) -> bool:
    """Say whether the definition is indented with tabs throughout, as old brokers let it be."""
    indents = [(line.indent, line) for line in lines if line.indent]
    if len(indents) < 2 or any(indent.strip("\t") for indent, _ in indents):  # noqa: PLR2004
        return False
    message = "The definition is indented with tabs, which current brokers refuse: write 4 spaces for each."
    entity.tell("warning", (indents[0][1].number, 1), "tab-indent", message)
    return True


def _check_width(entity: Entity, node: Node, width: int, tabs_only: bool, opener: str) -> None:
    line = node.line
    if tabs_only or not line.indent:
        return
    corrected = "    " * node.depth + line.source(line.shape) if "\n" not in line.shape else None
    if "\t" in line.indent:
        column = line.indent.index("\t") + 1
        message = "The line is indented with a tab: write 4 spaces for each level."
        entity.tell("error", (line.number, column), "tab-indent", message, corrected)
    elif width % 4:
        message = f"The line is indented by {line.width} spaces: write 4 for each level."
        # A line indented too far stays a warning: the vendor's own page on PAYLOAD has a body at 5.
        wider = opener and width > 4 * node.depth
        entity.tell("warning" if wider else "error", line.start, "indent-width", message, corrected)
