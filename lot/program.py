"""A whole text: the definitions in it, and what they mean for one another."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher, get_close_matches
from itertools import accumulate, groupby
from typing import Final

from lot.checks import ANY_TEXT, examine
from lot.lines import logical_lines
from lot.report import LONGEST_CORRECTED, VERBS, Analysis, Definition, Kind, Need, Problem
from lot.structure import Entity

_KINDS: Final[dict[str, Kind]] = {
    "ACTION": "action",
    "MODEL": "model",
    "RULE": "rule",
    "ROUTE": "route",
    "PANEL": "panel",
    "VISU": "panel",
    "THEME": "theme",
}
_HEADER: Final = re.compile(r"(\s*)([^\W\d]\w*)\s+([^\W\d]\w*)\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))?")
_SCRIPT: Final = re.compile(r"#\s*Script Name:\s*(\S+)", re.IGNORECASE)
_WRAPPED: Final = re.compile(r"\s*(-add[A-Za-z]+\s+)?([\"'`]?)\s*(?=DEFINE\b)")
_DEFINE: Final = re.compile(r"DEFINE\b")
_COMMENT: Final = re.compile(r"\s*(?:--|//|#)")
_FENCE: Final = re.compile(r"\s*```\w*\s*$")
_WORDS: Final = re.compile(r"\w+|\s+|.")
_Edit = tuple[int, int, str]
"""A start and an end in a line, and what belongs between them."""
_REPAIRS: Final = 500
"""How many unreadable lines are searched for misspelled keywords: a text with more is no program."""
_LINES: Final = 100_000
"""How many lines are examined: more of them in a text of 1 MiB are no program, and each takes its time."""
_COMPARED: Final = 8_000_000
"""How many characters of topics are compared in one text."""


@dataclass(slots=True)
class _Part:
    """The lines of one definition."""

    kind: Kind
    name: str
    first: int
    """Counted from 0."""
    last: int = 0
    """The line behind its end."""


def analyse(code: str) -> Analysis:
    """Find the definitions in a text, and every problem that shows without a broker. It never raises."""
    lines = [line.removesuffix("\r") for line in code.removeprefix("\ufeff").split("\n")]
    problems: list[Problem] = []
    _unwrap(lines, problems)
    parts = list(_parts(lines, problems))
    lines = [line.lstrip("\0") for line in lines]
    found = []
    repairs = _REPAIRS
    for part in parts:
        entity = Entity(part.kind, part.name, part.first + 1)
        if part.kind != "python" and part.first < _LINES:
            until = min(part.last, _LINES)
            body = logical_lines(lines[part.first : until], part.first + 1, part.kind in ("action", "model"))
            examine(entity, body, repairs)
            repairs -= entity.unreadable
        found.append(entity)
    _between(found)
    as_written = code.removeprefix("\ufeff").split("\n")
    texts = ("\n".join(as_written[part.first : part.last]).strip() for part in parts)
    definitions = tuple(map(_definition, found, texts))
    problems += [problem for entity in found for problem in entity.problems]
    if not parts and any(map(str.strip, lines)):
        problems = [problem for problem in problems if problem.rule != "outside-definition"]
        problems.append(
            Problem("warning", 1, 1, "no-definition", "Nothing here begins with DEFINE, so there is nothing to send.")
        )
    if parts and parts[-1].last > _LINES:
        message = f"Only the lines before this one were examined: {_LINES:,} are the most that are."
        problems.append(Problem("warning", _LINES + 1, 1, "too-many-lines", message))
    unique = sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))
    return Analysis(definitions, tuple(_put_together(unique, lines)))


def _put_together(problems: list[Problem], lines: list[str]) -> Iterator[Problem]:
    """Make one suggestion of those for the same line, since each corrects only what it was made for."""
    for number, group in groupby(problems, lambda problem: problem.line):
        told = list(group)
        suggestions = list(dict.fromkeys(each.suggestion for each in told if each.suggestion))
        line = lines[number - 1]
        if len(suggestions) < 2 or len(line) > LONGEST_CORRECTED or any("\n" in each for each in suggestions):  # noqa: PLR2004
            yield from told
            continue
        edits: list[_Edit] = []
        for suggestion in suggestions:
            new = [edit for edit in _edits(line, suggestion) if edit not in edits]
            if all(start >= edit[1] or end <= edit[0] for start, end, _ in new for edit in edits):
                edits += new
        whole = line
        for start, end, text in sorted(edits, reverse=True):
            whole = whole[:start] + text + whole[end:]
        yield from (replace(each, suggestion=whole if each.suggestion else None) for each in told)


def _edits(line: str, corrected: str) -> list[_Edit]:
    """Say which words of a line a correction replaces."""
    old, new = _WORDS.findall(line), _WORDS.findall(corrected)
    places = [0, *accumulate(map(len, old))]
    return [
        (places[start], places[end], "".join(new[into:until]))
        for tag, start, end, into, until in SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        if tag != "equal"
    ]


def _unwrap(lines: list[str], problems: list[Problem]) -> None:
    """Blank out a command or quotes around the whole text."""
    first = next((number for number, line in enumerate(lines) if line.strip() and not _COMMENT.match(line)), None)
    match = _WRAPPED.match(lines[first]) if first is not None else None
    if first is None or not match or not (match[1] or match[2]):
        return
    lines[first] = "\0" * match.end() + lines[first][match.end() :]
    if match[1]:
        message = "The command does not belong to the program: begin with DEFINE."
        problems.append(Problem("warning", first + 1, match.start(1) + 1, "command-in-code", message))
    if quote := match[2]:
        message = "The program is not wrapped in quotes."
        problems.append(Problem("error", first + 1, match.start(2) + 1, "quoted-body", message))
        last = max(number for number, line in enumerate(lines) if line.strip())
        if lines[last].rstrip().endswith(quote):
            lines[last] = lines[last].rstrip()[:-1]


def _parts(lines: list[str], problems: list[Problem]) -> Iterator[_Part]:
    """Split a text where its definitions begin."""
    part: _Part | None = None
    end, told = 0, False
    for number, line in enumerate(lines):
        begun = _begun(line, number, part, problems)
        if begun or _FENCE.match(line) or (_DEFINE.match(line) and not (part and part.kind == "python")):
            if part:
                part.last = end
                yield part
            part, told = begun, bool(begun)
        if part is None and not told and line.strip() and not _COMMENT.match(line):
            message = "What stands here belongs to no definition, so it is never sent."
            place = number + 1, len(line) - len(line.lstrip()) + 1
            problems.append(Problem("warning", *place, "outside-definition", message))
            told = True
        if line.strip() and (part is None or part.kind == "python" or not _COMMENT.match(line) or line[0].isspace()):
            end = number + 1
    if part:
        part.last = end
        yield part


def _begun(line: str, number: int, part: _Part | None, problems: list[Problem]) -> _Part | None:
    """Say which definition begins in a line, if one does."""
    if script := _SCRIPT.match(line):
        return _Part("python", script[1], number)
    wrapped = len(line) - len(line.lstrip("\0"))
    match = _HEADER.match(line.lstrip("\0"))
    if not match or (part and part.kind == "python" and not re.match(r"DEFINE\s+[A-Z]+\s", line)):
        return None
    indent, define, word = match[1], match[2], match[3]
    kind = _kind(word, exactly=bool(indent) or define != "DEFINE")
    if define != "DEFINE" and (indent or not get_close_matches(define.upper(), ["DEFINE"], cutoff=0.8)):
        return None
    if kind is None:
        if define == "DEFINE" and not indent:
            message = (
                f"DEFINE {word[:40]} does not exist: only ACTION, MODEL, RULE, ROUTE, PANEL and THEME can be defined."
            )
            problems.append(Problem("warning", number + 1, match.start(3) + 1, "unknown-keyword", message))
        return None
    if indent and not wrapped:
        message = "DEFINE stands in the first column."
        problems.append(Problem("error", number + 1, len(indent) + 1, "define-column", message, line.strip()))
    name = match[4] or match[5] or match[6] or ""
    return _Part(kind, name if match[6] is None else re.split(r"--|//", name)[0], number)


def _kind(word: str, *, exactly: bool) -> Kind | None:
    if exactly or word in _KINDS:
        return _KINDS.get(word.upper())
    close = get_close_matches(word.upper(), list(_KINDS), 1, 0.75)
    return _KINDS[close[0]] if close else None


def _definition(entity: Entity, text: str) -> Definition:
    return Definition(
        entity.kind,
        entity.name,
        entity.line,
        text,
        VERBS[entity.kind],
        tuple(dict.fromkeys(need for need, _ in entity.needs)),
        tuple(entity.inputs),
        tuple(entity.outputs),
        entity.description,
        entity.trigger is not None,
    )


# Between definitions


def _between(entities: list[Entity]) -> None:
    first: dict[Need, Entity] = {}
    for entity in entities:
        key = (entity.kind, entity.name)
        if entity.name and key in first:
            message = f"There is a {entity.kind} {entity.name[:60]} already in line {first[key].line}."
            entity.tell("warning", (entity.line, 1), "duplicate-definition", message)
        first.setdefault(key, entity)
    settled: dict[int, bool] = {}
    for entity in entities:
        _order(entity, first)
        _results(entity, first)
        if entity.field_topic and not _may_publish(entity, first, settled):
            message = "No field is marked AS TRIGGER, so the model never publishes by itself."
            entity.tell("warning", (entity.line, 1), "no-field-trigger", message)
    _collapsed(entities)
    _loops(entities)
    _kept(entities)


def _order(entity: Entity, first: dict[Need, Entity]) -> None:
    wanted = "model" if entity.kind == "model" else "action"
    for need, place in entity.needs:
        other = first.get(need)
        if other and other.line > entity.line and need[0] in (wanted, "python"):
            message = f"{need[1][:60]} is defined only in line {other.line}: define it before what needs it."
            entity.tell("warning", place, "defined-later", message)


def _results(entity: Entity, first: dict[Need, Entity]) -> None:
    for name, count, place in entity.calls:
        callee = first.get(("action", name))
        if callee is None or count == len(callee.outputs) or (count is None and not callee.outputs):
            continue
        message = (
            f"{name[:60]} has {len(callee.outputs)} outputs, but {count or 0} are taken: RETURN names each of them."
        )
        entity.tell("warning" if count is None else "error", place, "return-count", message)


def _may_publish(model: Entity, first: dict[Need, Entity], settled: dict[int, bool]) -> bool:
    """Say whether a model, or one it is made from, has a field that is a trigger, or that is not known.

    Args:
        model: The model.
        first: The definitions by their names.
        settled: What is known of the models of this text already, and will be.
    """
    below: dict[int, None] = {}
    ancestor: Entity | None = model
    while True:
        if ancestor is None or id(ancestor) in below:
            result = True  # whether the parent has one is not known
        elif ancestor.has_field_trigger or ancestor.parent is None:
            result = ancestor.has_field_trigger
        elif id(ancestor) in settled:
            result = settled[id(ancestor)]
        else:
            below[id(ancestor)] = None
            ancestor = first.get(("model", ancestor.parent))
            continue
        settled.update(dict.fromkeys(below, result))
        return result


def _collapsed(entities: list[Entity]) -> None:
    models = [(each.base_topic, each) for each in entities if each.collapsed and each.base_topic]
    topics = [(entity, *read) for entity in entities for read in entity.listens + entity.reads]
    compared, each_time = 0, sum(len(base) for base, _ in models)
    for entity, topic, place in topics:
        compared += each_time + len(models) * len(topic)
        if compared > _COMPARED:
            return
        levels = topic.split("/")
        for base, model in models:
            depth = base.count("/") + 1
            if depth < len(levels) and levels[depth] in model.fields and _overlap(base, "/".join(levels[:depth])):
                message = f"{model.name} is COLLAPSED: it publishes one JSON to its topic and nothing below it."
                entity.tell("warning", place, "collapsed-subtopic", message)


def _loops(entities: list[Entity]) -> None:
    compared = 0
    for entity in entities:
        each_time = sum(len(listened) for listened, _ in entity.listens)
        for topic, place in entity.publishes:
            compared += each_time + len(entity.listens) * len(topic)
            if compared > _COMPARED:
                return
            if entity.kind == "action" and any(_overlap(listened, topic) for listened, _ in entity.listens):
                message = "The action publishes to the topic that triggers it, which may never end."
                entity.tell("warning", place, "own-trigger", message)


def _kept(entities: list[Entity]) -> None:
    listened = {topic for entity in entities for topic, _ in entity.listens}
    patterns = [topic for topic in listened if "+" in topic or "#" in topic]
    lengths = {id(topics): sum(map(len, topics)) for topics in (listened, patterns)}
    compared = 0
    for entity in entities:
        published = {topic for topic, _ in entity.publishes}
        for topic, place in entity.keeps:
            others = listened if ANY_TEXT in topic else patterns
            compared += lengths[id(others)] + len(others) * len(topic)
            if topic in published or compared > _COMPARED:
                continue
            if topic in listened or any(_overlap(other, topic) for other in others):
                message = "KEEP delivers nothing, so what listens to this topic is not told: write PUBLISH."
                entity.tell("warning", place, "keep-does-not-deliver", message)


def _overlap(topic_filter: str, topic: str) -> bool:
    """Say whether a message published to a topic, parts of which are not known, can match a filter."""
    levels = topic_filter.split("/")
    if levels[0] == "$share":
        levels = levels[2:]
    if levels and levels[0] in ("#", "+") and topic.startswith("$"):
        return False
    parts = topic.split("/")
    for number, level in enumerate(levels):
        if level == "#":
            return True
        if number >= len(parts):
            return False
        part = parts[number]
        if level != "+" and part not in (level, "+", ANY_TEXT):
            if ANY_TEXT not in part:
                return False
            known = part.split(ANY_TEXT)
            if not (level.startswith(known[0]) and level.endswith(known[-1])):
                return False
    return len(levels) == len(parts)
