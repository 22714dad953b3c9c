"""From text to logical lines: comments gone, strings taken out, continuations joined, every place remembered."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

_STATEMENT: Final = (
    r"(?:DEFINE|ADD|INPUT|OUTPUT|SWITCH|CASE|LOOP|UNTIL|DESCRIPTION|ELSE)\b|(?:SET|DELETE)\s+\S"
    r"|(?:PUBLISH|KEEP)\s+(?:TOPIC|MODEL|ENV|SECRET)\b|(?:CALL|STORE|FETCH|TRIGGER)\s|(?:ALLOW|DENY|DO)\s*$"
    r"|ON\s+(?:TOPIC|CHANGE|EVERY|START|TIMESTAMP|CONNECT|DISCONNECT|SUBSCRIBE)\b|IF\b.*\bTHEN\s*$"
)
_BEGINS: Final = re.compile(_STATEMENT)
"""How a line begins that continues no other."""
_AFTER_A_STRING: Final = re.compile(rf"\s*(?:{_STATEMENT}|WITH\s+[A-Z_]+\s|#\s*Script Name:)|\s*$")
"""Before such a line a string must have ended."""
_CONTINUES: Final = re.compile(
    r"(?:WITH|RETURN|TOOL|AND_THEN|AND|OR|USING|IN|TO|WHERE|WHEN|LIMIT|METHOD|AS|FROM|BETWEEN|THEN)\b|[-+*/%<>=!,]"
)
_UNFINISHED: Final = re.compile(r"(?:[-+*/%<>=!,]|\b(?:WITH|AND|OR|NOT|TO|AS|IN|USING|AND_THEN))$")
_CONTINUED: Final = re.compile(r"(?:SET|PUBLISH|KEEP|CALL|TRIGGER|IF|ELSE\s+IF|UNTIL|STORE|FETCH|ADD|DEFINE\s+MODEL)\b")
"""How a line begins that may go on in lines indented further."""
_INLINE_IF: Final = re.compile(r"(?:SET|PUBLISH|KEEP|ADD)\b.*\bIF\b|[\w.]+\s*=\s*\(?\s*IF\b")
"""How a line begins whose ELSE may stand in a line indented further."""
OPENS_FIELDS: Final = re.compile(r"PUBLISH\s+MODEL\b.*\bWITH$", re.DOTALL)

_PIECES: Final = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'|--|//|/\*|[\"']")
_PLAIN_PIECES: Final = re.compile(r"\"[^\"]*\"|'[^']*'|--|//|/\*|[\"']")
"""The same where a backslash is a character like any other, as at the end of a Windows path."""
_BRACKETS: Final = re.compile(r"[(){}\[\]]")
_OPENS: Final = {")": "(", "}": "{", "]": "["}
_STRING_LINES: Final = 60
"""How many lines a string may run on."""
_RUN_ONS: Final = 4
"""How often a line may go on because of a string or a comment: each line may have to be read a second time."""


class Mark(NamedTuple):
    """A character without its other half."""

    line: int
    column: int
    character: str


class _Piece(NamedTuple):
    line: int
    column: int
    text: str
    is_string: bool = False


@dataclass(slots=True)
class _Physical:
    number: int
    last: int
    indent: str
    pieces: list[_Piece] = field(default_factory=list)
    comment: tuple[int, int] | None = None
    lone_quotes: list[Mark] = field(default_factory=list)

    @property
    def code(self) -> str:
        return "".join('""' if piece.is_string else piece.text for piece in self.pieces).strip()


@dataclass(slots=True)
class Line:
    """A logical line: one line of the text, or several that belong together."""

    number: int
    last: int
    """The last line of the text it takes."""
    indent: str
    shape: str = ""
    """Its code, each string replaced by its number in quotes."""
    strings: list[str] = field(default_factory=list)
    """The strings as they were written, quotes included."""
    spots: list[tuple[int, int, int]] = field(default_factory=list)
    """Where the parts of `shape` come from: position in it, line, column."""
    comment: tuple[int, int] | None = None
    """Where its first comment begins."""
    marks: list[Mark] = field(default_factory=list)

    @property
    def width(self) -> int:
        """How far it is indented; a tab counts for four."""
        return len(self.indent.expandtabs(4))

    @property
    def start(self) -> tuple[int, int]:
        """Where its code begins: line and column, from 1."""
        return self.place(0)

    def place(self, position: int) -> tuple[int, int]:
        """Say where in the text a position of `shape` is."""
        start, line, column = self.spots[max(0, bisect_right(self.spots, (position, 1 << 60, 0)) - 1)]
        return line, column + position - start

    def string(self, token: str) -> str:
        """Give the text of a string token, without its quotes."""
        return self.strings[int(token[1:-1])][1:-1]

    def source(self, shape: str) -> str:
        """Put the strings back into a shape made from this line's."""
        return re.sub(r'"(\d+)"', lambda match: self.strings[int(match[1])], shape)


def logical_lines(lines: list[str], first: int, continues: bool) -> Iterator[Line]:
    """Read the lines of one definition.

    Args:
        lines: The lines, without their ends.
        first: The number of the first.
        continues: Whether a line may go on in lines that are indented further, as in actions and models.
    """
    group: list[_Physical] = []
    open_brackets = 0
    for physical in _physical_lines(lines, first):
        code = physical.code
        if not code and open_brackets <= 0:
            if physical.comment:
                yield _joined([physical])
            continue
        within = open_brackets > 0 and not _BEGINS.match(code)
        if group and not within and not (continues and _goes_on(group, physical, code, open_brackets)):
            yield _joined(group)
            group, open_brackets = [], 0
        group.append(physical)
        open_brackets += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
    if group:
        yield _joined(group)


def _goes_on(group: list[_Physical], physical: _Physical, code: str, open_brackets: int) -> bool:
    begun, before = group[0].code, group[-1].code
    if len(physical.indent.expandtabs(4)) <= len(group[0].indent.expandtabs(4)):
        return False
    if code.startswith("ELSE"):
        return bool(_INLINE_IF.match(begun))
    if open_brackets > 0 or not _CONTINUED.match(begun) or OPENS_FIELDS.match(before) or _BEGINS.match(code):
        return False
    return bool(_CONTINUES.match(code) or _UNFINISHED.search(before))


def _joined(group: list[_Physical]) -> Line:
    line = Line(group[0].number, group[-1].last, group[0].indent)
    parts: list[str] = []
    length = 0
    for physical in group:
        if parts:
            parts.append("\n")
            length += 1
        for piece in physical.pieces:
            text = piece.text
            line.spots.append((length, piece.line, piece.column))
            if piece.is_string:
                line.strings.append(text)
                text = f'"{len(line.strings) - 1}"'
            parts.append(text)
            length += len(text)
        line.comment = line.comment or physical.comment
        line.marks += physical.lone_quotes
    line.shape = "".join(parts).rstrip()
    line.spots = line.spots or [(0, line.number, len(line.indent) + 1)]
    line.marks += _lone_brackets(line)
    return line


def _lone_brackets(line: Line) -> Iterator[Mark]:
    opened: list[tuple[str, int]] = []
    for match in _BRACKETS.finditer(line.shape):
        if match[0] not in _OPENS:
            opened.append((match[0], match.start()))
        elif opened and opened[-1][0] == _OPENS[match[0]]:
            opened.pop()
        else:
            yield Mark(*line.place(match.start()), match[0])
            return  # what follows may be its consequence
    if opened:
        yield Mark(*line.place(opened[-1][1]), opened[-1][0])


def _physical_lines(lines: list[str], first: int) -> Iterator[_Physical]:
    index = 0
    while index < len(lines):
        physical = _scanned(lines, index, first, _PIECES)
        if physical.lone_quotes and "\\" in lines[index]:
            plain = _scanned(lines, index, first, _PLAIN_PIECES)
            physical = physical if plain.lone_quotes else plain
        yield physical
        index = physical.last - first + 1


def _scanned(lines: list[str], index: int, first: int, pattern: re.Pattern[str]) -> _Physical:
    """Read the line at `index`, and those a string or a comment that begins there runs on into."""
    text = lines[index].rstrip()
    position = len(text) - len(text.lstrip())
    physical = _Physical(index + first, index + first, text[:position])

    def add(end: int, is_string: bool = False) -> None:
        if end > position:
            physical.pieces.append(_Piece(physical.last, position + 1, text[position:end], is_string))

    at, run_ons = position, 0
    while match := pattern.search(text, at):
        found, at = match[0], match.end()
        if len(found) > 1 and found[0] in "\"'":
            add(match.start())
            position = match.start()
            add(at, is_string=True)
            position = at
        elif found in ("--", "//"):
            add(match.start())
            physical.comment = physical.comment or (physical.last, match.start() + 1)
            return physical
        elif run_ons < _RUN_ONS and (ends := _end(lines, index, at, "*/" if found == "/*" else found)):
            add(match.start())
            row, end = ends
            if found == "/*":
                physical.comment = physical.comment or (physical.last, match.start() + 1)
                physical.pieces.append(_Piece(physical.last, match.start() + 1, " "))
            else:
                whole = "\n".join([text[match.start() :], *lines[index + 1 : row], lines[row][:end]])
                physical.pieces.append(_Piece(physical.last, match.start() + 1, whole, is_string=True))
            run_ons += row > index
            index, at = row, end
            position, text, physical.last = end, lines[row].rstrip(), row + first
        elif found != "/*":
            physical.lone_quotes.append(Mark(physical.last, match.start() + 1, found))
            if found == '"':
                break  # to look for its other half from each quote behind it would take for ever
    add(len(text))
    return physical


def _end(lines: list[str], index: int, at: int, closer: str) -> tuple[int, int] | None:
    """Find where what was opened before `at` ends, as a row and a position behind the end."""
    if closer == "'":
        return None
    if closer == "*/" and (found := lines[index].find(closer, at)) >= 0:
        return index, found + len(closer)
    for row in range(index + 1, min(len(lines), index + _STRING_LINES)):
        if closer == '"' and _AFTER_A_STRING.match(lines[row]):
            return None
        if (found := lines[row].find(closer)) >= 0:
            return row, found + len(closer)
    return None
