"""Well-known mistakes that one line shows: a table of what they look like, what to say and how to put them right."""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from lot.report import LONGEST_CORRECTED, Kind, Severity
from lot.syntax import keyword_meant, keywords, read

_REPAIRS: Final = 8
"""How many keywords of one line are put right before giving up on it."""


class Finding(NamedTuple):
    """A mistake in the shape of a line."""

    severity: Severity
    position: int
    rule: str
    message: str
    fixed: str | None = None
    """The shape of the corrected line."""


class _Mistake(NamedTuple):
    kinds: str
    rule: str
    severity: Severity
    pattern: re.Pattern[str]
    """What it looks like; the last group, or else the whole match, is the place."""
    message: str
    fix: str | None = None
    """A replacement for the match."""


def _row(kinds: str, rule: str, severity: Severity, pattern: str, message: str, fix: str | None = None) -> _Mistake:
    return _Mistake(kinds, rule, severity, re.compile(pattern, re.DOTALL), message, fix)


_CONDITION: Final = r"(?:\bIF\b(?:(?!\b(?:THEN|IF)\b).)*?|^UNTIL\b.*?)"

IN_ANY_LINE: Final = (
    _row("action model rule", "topic-position-zero", "error",
         r"(\bTOPIC\s+POSITION\s+\(?)(?:0+(?:\.\d+)?|\.\d+|-\s?\d+(?:\.\d+)?)(?![\w.])",
         "TOPIC POSITION counts from 1.", r"\g<1>1"),
    _row("action model rule", "topic-position-no-integer", "error",
         r'\bTOPIC\s+POSITION\s+\(?(?:"\d+"|0*[1-9]\d*\.\d+)',
         "TOPIC POSITION takes a whole number from 1, without quotes."),
    _row("model", "with-value", "error", r"(\bWITH\s+)VALUE\b(?!\s*[./*+]|\s*-(?!\d)|-)\s*(?P<place>)",
         "WITH VALUE is refused: write the value directly after WITH.", r"\1"),
    _row("action model", "old-spelling", "warning", r"\bTIMESTAMP\s+WITH\b",
         "TIMESTAMP WITH is the old spelling: write TIMESTAMP and the format.", "TIMESTAMP"),
    _row("action model", "old-spelling", "warning", rf"({_CONDITION})(?<![=!<>])=(?![=<>])(?P<place>)",
         "= as a comparison is the old spelling: write ==.", r"\1=="),
    _row("action model", "old-spelling", "warning", r"\bEQUAL\b",
         "EQUAL is the old spelling: write == or EQUALS.", "EQUALS"),
    _row("action", "old-spelling", "warning", r"^DESCRIPTION\b",
         "DESCRIPTION comes from old brokers; whether a current one accepts it is not known."),
    _row("action", "old-spelling", "warning", r"\bON\s+TIMESTAMP\b",
         "ON TIMESTAMP comes from old brokers: write ON EVERY with a day and AT, if the broker refuses it."),
    _row("action model", "float-type", "warning", r"\b(AS\s+|ADD\s+|AS)FLOAT\b(?P<place>)",
         "FLOAT is not among the current types: write DOUBLE.", r"\1DOUBLE"),
    _row("action", "transform-after-bytes", "error",
         r"\bPAYLOAD\s+AS\s+BYTES\s*\)*\s*(?=AND_THEN\b.*\bAND_THEN\b)(?P<place>)",
         "PAYLOAD AS BYTES is passed on as it is: AND_THEN may not change it."),
    _row("action", "transform-after-bytes", "warning",
         r"\bPAYLOAD\s+AS\s+BYTES\s*\)*\s*(?=AND_THEN\b(?!.*\bAND_THEN\b))(?P<place>)",
         "PAYLOAD AS BYTES is passed on as it is: AND_THEN may not change it."),
    _row("model", "trailing-comma", "warning", r"\s?(?P<place>),$",
         "Fields of a model are not separated by commas: leave the comma out.", ""),
    _row("model", "untyped-field", "warning", r'^ADD\s+"\d+"',
         "The field has no type: write ADD STRING, INT, DOUBLE, BOOL, OBJECT, ARRAY or TIMESTAMP."),
    _row("route", "metadata", "error", r"^ADD\s+METADATA\b",
         "ADD METADATA belongs to templates only: delete it with all that is indented under it."),
)  # fmt: skip
"""Told wherever they are seen."""

IN_UNREADABLE_LINES: Final = (
    _row("action", "message-keyword", "error", r"^((?:PUBLISH|KEEP)\s+TOPIC\b.*?)\bMESSAGE\b(?P<place>)",
         "MESSAGE is no keyword here: write WITH before the value.", r"\1WITH"),
    _row("action", "missing-value", "error", r"^(?:PUBLISH\s+TOPIC|KEEP\s+\w+|SET)\b.*\b(WITH|TO|AS)$",
         "There is no value after the last keyword."),
    _row("action", "missing-with", "error", r'^((?:PUBLISH|KEEP)\s+TOPIC\s+"\d+")(?!.*\bWITH\b)\s*(?=\S|$)',
         "A topic to publish or keep needs WITH and a value.", r"\1 WITH "),
    _row("action", "missing-with", "error", r"^(?:PUBLISH|KEEP)\s+TOPIC\b(?!.*\bWITH\b)",
         "A topic to publish or keep needs WITH and a value."),
    _row("action", "set-without-with", "error",
         r'^(SET\s+(?:"\d+"|[^\W\d]\w*|\{\s*\w+\s*\}))\s*(?:[:=]+\s*)?(?![\s:=]|$|(?:WITH|TO|AS|USING)\b)'
         r"(?!.*\b(?:WITH|USING)\b.*\bIN$)",
         "SET needs WITH between the name and the value.", r"\1 WITH "),
    _row("action", "set-without-with", "error", r'^SET\s+(?:"\d+"|[^\W\d]\w*)\s*[:=]*$',
         "SET needs WITH and a value."),
    _row("action rule", "missing-then", "error", r"^((?:ELSE\s+)?IF\b(?!.*\bTHEN\b).*)$",
         "A condition ends with THEN.", r"\1 THEN"),
    _row("action rule", "end-if", "error", r"^END\s?(?:_?\s?IF\b|;?$)",
         "END IF does not exist: a block ends where its indentation ends, so delete the line."),
    _row("action model", "missing-then", "error", r"^(?!.*\bTHEN\b).*(?=\bIF\b)(?P<place>)",
         "A condition ends with THEN."),
    _row("action", "call-mcp-tool", "error", r"^(?:CALL\s+MCP\b.*\b)?TOOL\s",
         'CALL MCP with TOOL is refused: write CALL MCP "Route.tool".'),
    _row("model", "with-collapsed", "error", r"\bWITH\s+COLLAPSED\b",
         "COLLAPSED stands alone, without WITH.", "COLLAPSED"),
    _row("model", "with-formats", "error", r"\bWITH\s+FORMATS\b",
         "WITH FORMATS is refused: write WITH FORMAT.", "WITH FORMAT"),
    _row("route", "route-without-type", "error", r"^DEFINE\s+ROUTE\b(?!.*\bWITH\s+TYPE\s+\S)",
         "A route needs WITH TYPE and its type."),
)  # fmt: skip
"""Told about lines that the grammar does not know; the first that fits is the cause."""

_WORD: Final = re.compile(r"(?<![\w.\"{])[^\W\d]\w*(?![\w\"}])")
_HOLDS: Final = re.compile(
    r"(?:IF|ELSE|CASE|DEFAULT|ON|DEFINE|DO)\b.*?\b(?:THEN|ELSE|DO)\s+(?=(?:SET|PUBLISH|KEEP|CALL)\b)", re.DOTALL
)
"""What stands before a statement on the same line."""
_RETURN_LIST: Final = re.compile(r"^(?:RETURN\s+)?OUTPUT\s+\w+(?:\s*,\s*\w+)*$")


class _Edit(NamedTuple):
    """A correction: what stands between two positions is replaced."""

    start: int
    end: int
    text: str

    def applied(self, shape: str) -> str:
        return shape[: self.start] + self.text + shape[self.end :]

    def before(self, position: int) -> int:
        """Say where a position was before."""
        if position < self.start + len(self.text):
            return min(position, self.start)
        return position + self.end - self.start - len(self.text)


_Seen = tuple[Finding, _Edit | None]
_VAGUE: Final = {"unfinished", "unreadable", "unknown-keyword"}


@lru_cache(maxsize=512)
def findings(kind: Kind, shape: str, repair: bool) -> tuple[Finding, ...]:
    """List the mistakes in a line of a definition of this kind.

    Args:
        kind: The kind of the definition.
        shape: The shape of the line.
        repair: Whether to look behind the first mistake, and for misspelled keywords; both take time.
    """
    found: dict[tuple[int, str], Finding] = {}
    edits: list[_Edit] = []
    current = shape
    repair = repair and len(shape) <= LONGEST_CORRECTED
    while True:
        seen = _look(kind, current, repair)
        for finding, _ in seen:
            if edits and finding.rule in _VAGUE:
                continue  # what a correction leaves to be filled in
            position = finding.position
            for edit in reversed(edits):
                position = edit.before(position)
            found.setdefault((position, finding.rule), finding._replace(position=position))
        correction = next((edit for finding, edit in seen if edit and finding.severity == "error"), None)
        if correction is None or not repair or len(edits) == _REPAIRS:
            break
        edits.append(correction)
        current = correction.applied(current)
    if len(edits) > 1 or (edits and len(found) > 1):
        whole = current if read(kind, current).tree else next((each.fixed for each, _ in seen if each.fixed), None)
        return tuple(each._replace(fixed=whole or each.fixed) for each in found.values())
    return tuple(found.values())


def _look(kind: Kind, shape: str, repair: bool) -> list[_Seen]:
    """See what is wrong with a line as it is; of what makes it unreadable only the first."""
    found = [seen for row in IN_ANY_LINE if (seen := _seen(row, kind, shape))]
    reading = read(kind, shape)
    if reading.tree or any(finding.severity == "error" for finding, _ in found):
        return found
    if kind == "action" and re.match(r"OUTPUT\b.*(?:,|\bOUTPUT\b)|RETURN\s", shape):
        fixed = None
        if _RETURN_LIST.match(shape):
            names = re.findall(r"\w+", shape.replace("RETURN", "").replace("OUTPUT", ""))
            begin = "RETURN\n    OUTPUT " if shape.startswith("RETURN") else "OUTPUT "
            fixed = begin + ("\n    OUTPUT " if shape.startswith("RETURN") else "\nOUTPUT ").join(names)
        message = "RETURN stands alone on its line, and each OUTPUT on its own below it."
        return [*found, (Finding("error", 0, "return-on-one-line", message, fixed), None)]
    if kind == "action" and (outer := _HOLDS.match(shape)):
        inner = [each for each in findings(kind, shape[outer.end() :], repair) if each.severity == "error"]
        if inner:
            return found + [
                (each._replace(position=outer.end() + each.position, fixed=each.fixed and outer[0] + each.fixed), None)
                for each in inner
            ]
    for row in IN_UNREADABLE_LINES:
        if seen := _seen(row, kind, shape):
            spelled = _spelling(kind, shape, reading.stopped, repair)
            in_wrong_case = all(each.rule == "keyword-case" and each.fixed for each in spelled)
            return found + ([(each, None) for each in spelled] if in_wrong_case else [seen])
    return found + [(each, None) for each in _spelling(kind, shape, reading.stopped, repair)]


def _seen(row: _Mistake, kind: Kind, shape: str) -> _Seen | None:
    match = row.pattern.search(shape) if kind in row.kinds.split() else None
    if not match:
        return None
    at = match.start()
    if "place" in row.pattern.groupindex:
        at = match.end(1) if row.fix is not None else match.end()
    elif row.rule == "missing-value":
        at = match.start(1)
    edit = _Edit(match.start(), match.end(), match.expand(row.fix)) if row.fix is not None else None
    fixed = edit.applied(shape) if edit and len(shape) <= LONGEST_CORRECTED else None
    return Finding(row.severity, at, row.rule, row.message, fixed if fixed and read(kind, fixed).tree else None), edit


def _spelling(kind: Kind, shape: str, stopped: int, repair: bool) -> list[Finding]:
    """Put keywords right as long as that lets the line be read further."""
    meant: list[tuple[str, str, int]] = []
    fixed, at = shape, stopped
    while repair and len(meant) < _REPAIRS and (better := _better(kind, fixed, at)):
        fixed, at, word, keyword, position = better
        meant.append((word, keyword, position))
        if at < 0:
            break
    if meant:
        whole = fixed if at < 0 else None
        shift, told = 0, []
        for word, keyword, position in sorted(meant, key=lambda item: item[2]):
            if word.upper() == keyword:
                rule, message = "keyword-case", f"Keywords are upper case: write {keyword}."
            else:
                rule, message = "misspelled-keyword", f"{word} is no keyword here: {keyword} seems to be meant."
            told.append(Finding("warning", position - shift, rule, message, whole))
            shift += len(keyword) - len(word)
        return told
    if every := re.search(r"\bON\s+EVERY\b", shape):
        message = "ON EVERY takes a number and a unit, such as 5 SECONDS, or a day, AT and a time."
        return [Finding("error", every.start(), "missing-unit", message)]
    first = re.match(r"[^\W\d]\w*", shape)
    if first and shape[:stopped].strip() in ("", first[0]) and first[0] not in keywords():
        return [Finding("warning", 0, "unknown-keyword", f"No line begins with {first[0][:40]} here.")]
    if stopped >= len(shape):
        return [Finding("warning", max(0, len(shape) - 1), "unfinished", "The line ends where more is expected.")]
    shown = re.match(r"[!-~]{1,30}", shape[stopped:])
    message = f"The line can be understood up to {shown[0] if shown else 'here'}, which is not expected here."
    if '"' in (shown[0] if shown else ""):
        message = "The line can be understood up to this string, which is not expected here."
    return [Finding("warning", stopped, "unreadable", message)]


def _better(kind: Kind, shape: str, stopped: int) -> tuple[str, int, str, str, int] | None:
    """Replace the word where reading stopped, or the one before, by the keyword meant, if that helps."""
    words = [match for match in _WORD.finditer(shape) if match.start() <= stopped][-2:]
    for match in reversed(words):
        keyword = keyword_meant(match[0])
        if keyword is None or keyword == match[0]:
            continue
        fixed = shape[: match.start()] + keyword + shape[match.end() :]
        reading = read(kind, fixed)
        if reading.tree:
            return fixed, -1, match[0], keyword, match.start()
        further = reading.stopped - stopped - len(keyword) + len(match[0])
        if further > 0 or (further == 0 and match.start() == 0 and match.end() < stopped):
            return fixed, reading.stopped, match[0], keyword, match.start()
    return None
