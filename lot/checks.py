"""What the lines of a definition say, and what is wrong with that although each can be read."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from lot.lines import Line
from lot.mistakes import findings
from lot.report import LONGEST_CORRECTED, NAME
from lot.structure import TOP, Entity, Node, Place, form_of, indented
from lot.syntax import keyword_meant, read

if TYPE_CHECKING:
    from lark import Token, Tree

    from lot.report import Kind

    Branch = Tree[Token]

_UNITS: Final = re.compile(r"(?:MILLISECOND|SECOND|MINUTE|HOUR|DAY|WEEK|MONTH|YEAR)S?")
_DAYS: Final = re.compile(r"(?:MON|TUES|WEDNES|THURS|FRI|SATUR|SUN)DAY|WEEKDAYS?|WEEKENDS?|DAY")
_INPUT_TYPES: Final = {"STRING", "INT", "DOUBLE", "BOOL", "JSON", "ARRAY", "OBJECT", "TIMESTAMP"}
_SCOPES: Final = re.compile(
    r"Connect|Publish|Subscribe|PublishSys|SubscribeSys|CommandCall|ShellCommand|SystemConfiguration"
    r"|UserManagement(?:Creation|Remove|PasswordChange|Update)|RuleManagement(?:Creation|Remove)"
    r"|ModelManagement(?:Creation|Remove)|ActionManagement(?:Creation|Remove|Run)|RouteManagement(?:Creation|Remove)"
    r"|LogManagement(?:Creation|Update|Remove|Read)|AssetManagement\w*"
)
_SECRET_KEYS: Final = re.compile(
    r"(?:\w*_)?(?:PASS(?:WORD|WD|PHRASE)?|API_?KEY|SECRET|TOKEN|(?:SECRET|ACCESS|PRIVATE)_KEY)"
)
_RESERVED_PRIORITIES: Final = 100
_HOLD_STATEMENTS: Final = {"define_action", "trigger_line", "do_line", "do", "if_line", "else_line", "case_line"}
_STATEMENTS: Final = {
    "do", "set", "publish", "keep", "publish_model", "keep_env", "if_line", "call_action", "call_python", "call_mcp",
    "call_llm", "trigger_event",
}  # fmt: skip
_TOPIC_PARTS: Final = ("string", "variable")
_TEXTS: Final = ("string", "timestamp", "random_uuid")
_KNOWN_NAMES: Final = {
    "CLIENTID", "USER", "ENDPOINT", "CLEANSESSION", "DISCONNECTREASON", "SUBSCRIBETOPIC", "SUBSCRIBEQOS", "RESULT",
}  # fmt: skip
_NO_PAYLOAD: Final = {"on_every": "timer", "on_day": "timer", "on_timestamp": "timer", "on_start": "start"}
_VARIABLE: Final = re.compile(r"\{\s*([^\W\d][\w.-]*)\s*\}")
_PAYLOAD: Final = re.compile(r"\bPAYLOAD\b")
_WHERE: Final = re.compile(r"\b(?:WHERE|WHEN)\b")
"""Names behind it are columns of a table."""
_SEPARATORS: Final = ("/", "_", "-", ".", ":")
_WRITTEN_OUT: Final = "The secret is written into the program: store it with -setSecret and read it with GET SECRET."
_TITLED: Final = ("panel", "theme")
"""Kinds whose names may be any text in quotes."""
_HEAD: Final = re.compile(r'\w+\s+\w+[^\S\n]*("\d+"|\S*)')
"""The first line of a definition up to its name."""
_NO_NAME: Final = re.compile(r"(?:ON|DO|WITH|FROM|INPUT)?")
"""What stands behind the kind where the name is left out."""
_QUOTED: Final = {
    "model": ("parent", re.compile(r'(?!ADD\b|FETCH\b|STORE\b).*?\bFROM\s+("\d+")', re.DOTALL | re.IGNORECASE)),
    "action": ("action", re.compile(r'.*?\bCALL\s+ACTION\s+("\d+")', re.DOTALL | re.IGNORECASE)),
}
"""Where the name of another definition is written as a string."""
_LONGEST_TOPIC: Final = 1000
"""A text of more characters is treated as unknown, since texts put together from one another grow fast."""
ANY_TEXT: Final = "\0"
"""Stands in a topic for what is only known when the program runs."""


def examine(entity: Entity, lines: Iterable[Line], repairs: int) -> None:
    """Read all lines of a definition into `entity`, with the problems in them, and repair some that are unreadable."""
    kept = list(_with_code(entity, lines))
    nodes = indented(entity, _nodes(entity, kept, repairs), kept)  # one at a time: trees are large
    if entity.kind == "action":
        _action(entity, nodes, kept)
    elif entity.kind == "model":
        _model(entity, nodes)
    elif entity.kind == "rule":
        _rule(entity, nodes)
    elif entity.kind == "route":
        _route(entity, nodes)
    else:
        for node in nodes:
            if node.tree and node.form == "bind":
                token = _tokens(node.tree)[1]
                entity.listens.append((node.line.string(token), _at(node.line, token)))


def _with_code(entity: Entity, lines: Iterable[Line]) -> Iterator[Line]:
    """Leave out the lines that are comments, telling about these."""
    comments: list[Place] = []
    for line in lines:
        if line.comment:
            comments.append(line.comment)
        if not line.shape:
            continue
        if line.shape.startswith("#"):
            entity.tell(
                "warning", line.start, "hash-comment", "# begins no comment in LoT: write -- or delete the line."
            )
            continue
        yield line
    if comments:
        message = "Brokers differ in the comments they accept: leave them out"
        more = f" ({len(comments)} lines have one)." if len(comments) > 1 else "."
        entity.tell("warning", comments[0], "comment", message + more)


def _nodes(entity: Entity, lines: Iterable[Line], repairs: int) -> Iterator[Node]:
    for line in lines:
        nameless = _tell_names(entity, line)
        tree = read(entity.kind, line.shape).tree
        _tell_findings(entity, line, repair=entity.unreadable < repairs, vague=not (line.marks or nameless))
        entity.unreadable += tree is None
        yield Node(line, tree, form_of(line, tree))


def _tell_findings(entity: Entity, line: Line, *, repair: bool, vague: bool) -> None:
    for mark in line.marks:
        rule = "unbalanced-quote" if mark.character in "\"'" else "unbalanced-bracket"
        message = f"The {mark.character} has no other half."
        entity.tell("error", (mark.line, mark.column), rule, message)
    for finding in findings(entity.kind, line.shape, repair and not line.marks):
        if not vague and finding.rule in ("unreadable", "unfinished", "unknown-keyword"):
            continue
        if entity.kind == "panel" and not line.marks and finding.rule != "keyword-case":
            continue  # its vocabulary is not known completely
        fixed = None
        if finding.fixed is not None and "\n" not in line.shape:
            fixed = "\n".join(line.indent + line.source(part) for part in finding.fixed.split("\n"))
        if finding.rule == "call-mcp-tool":
            fixed = _mcp_call(line)
        entity.tell(finding.severity, line.place(finding.position), finding.rule, finding.message, fixed)


def _mcp_call(line: Line) -> str | None:
    rest = re.sub(r'^CALL\s+MCP\s+"0"\s+TOOL\s+"1"', "", line.shape)
    if rest == line.shape or "\n" in rest:
        return None
    return f'{line.indent}CALL MCP "{line.strings[0][1:-1]}.{line.strings[1][1:-1]}"{line.source(rest)}'


def _tokens(tree: "Branch") -> "list[Token]":
    return [child for child in tree.children if isinstance(child, str)]


def _trees(tree: "Branch") -> "list[Branch]":
    return [child for child in tree.children if not isinstance(child, str)]


def _at(line: Line, token: "Token") -> Place:
    return line.place(token.start_pos or 0)


def _unquoted(line: Line, token: "Token") -> str:
    return line.string(token) if token.type == "STRING" else str(token)


def _tell_names(entity: Entity, line: Line) -> bool:
    """Tell about the names in a line that the broker does not take, and say whether the definition has none.

    A name the grammar does not take either is replaced in the line by one that it does, so that the rest can be read.
    """
    what, pattern = _QUOTED.get(entity.kind, ("", None))
    if pattern and (other := pattern.match(line.shape)):
        _quoted(entity, line, other, what)
    own = _HEAD.match(line.shape) if line.number == entity.line else None
    if own is None:
        return False
    name = own[1]
    if _NO_NAME.fullmatch(name) and not (name and read(entity.kind, line.shape).tree):
        entity.tell("error", line.place(own.start(1)), "no-name", f"The {entity.kind} has no name.")
        return True
    if entity.kind in _TITLED or NAME.fullmatch(name):
        return False
    if name.startswith('"'):
        if name[1:-1].isdigit():  # a whole string, by its number
            _quoted(entity, line, own, entity.kind)
        return False
    message = "A name consists of the letters A to Z, digits and _, 255 at most, and begins with no digit."
    fixed = re.sub(r"\W", "_", re.sub(r"\W+$", "", name))
    _tell_name(entity, line, own, "name-characters", message, re.sub(r"^(?=\d)", "_", fixed))
    line.shape = line.shape[: own.start(1)] + re.sub(r"\W|^\d", "_", name) + line.shape[own.end(1) :]
    return False


def _quoted(entity: Entity, line: Line, match: re.Match[str], what: str) -> None:
    rule = "quoted-parent" if what == "parent" else "quoted-name"
    message = f"The name of the {what} is written without quotes."
    _tell_name(entity, line, match, rule, message, line.string(match[1]))


def _tell_name(entity: Entity, line: Line, match: re.Match[str], rule: str, message: str, name: str) -> None:
    """Tell about the name that is the first group of a match, and suggest another if that is one."""
    shape = line.source(line.shape[: match.start(1)]) + name + line.source(line.shape[match.end(1) :])
    fixed = line.indent + shape if NAME.fullmatch(name) and "\n" not in line.shape else None
    entity.tell("error", line.place(match.start(1)), rule, message, fixed)


# Actions


def _action(entity: Entity, nodes: Iterable[Node], lines: list[Line]) -> None:  # noqa: C901
    types: dict[str, str | None] = {}
    used: list[tuple[str, Place]] = []
    known: set[str] = set()
    has_do, last_trigger, last_input = False, None, None
    for node in nodes:
        line, tree = node.line, node.tree
        used += [(match[1].split(".")[0], line.place(match.start())) for match in _VARIABLE.finditer(line.shape)]
        last_input = node if node.form == "input_line" else last_input
        has_do = (
            has_do
            or node.form == "do_line"
            or bool(re.match(r"(?:DEFINE|ON)\b.*(?:\bDO\b|\sdo$)", line.shape, re.DOTALL))
        )
        known |= set(re.findall(r"\bINPUT\s+(\w+)", line.shape))
        if tree is None:
            last_trigger = node if node.form == "trigger_line" else last_trigger
            known |= {line.string(found) for found in re.findall(r'^SET\s+("\d+")', line.shape)}
            known |= set(re.findall(r"\bRETURN\s+(?:AS\s*\{\s*)?(\w+)", line.shape))
            continue
        if node.form in ("define_action", "trigger_line"):
            trigger = next((each for each in _trees(tree) if str(each.data).startswith("on_")), None)
            if trigger is not None:
                _trigger(entity, line, trigger)
                last_trigger = node
        if node.form == "do_line" and node.depth == 0 and last_trigger and not last_trigger.line.shape.endswith("DO"):
            message = "DO on its own line is the old spelling: write it at the end of the trigger line."
            entity.tell("warning", line.start, "old-spelling", message)
        _expressions(entity, line, tree, types)
        for statement in _statements(tree):
            _statement(entity, node, statement, types, known)
        _check_place(entity, node)
    if not has_do and (at := last_trigger or last_input):
        _missing_do(entity, at, is_trigger=at is last_trigger)
    elif not has_do:
        entity.tell("error", lines[0].start, "no-trigger", "The action has no trigger, and neither INPUT nor DO.")
    for name, place in used:
        if name not in known:
            entity.tell("warning", place, "unknown-variable", f"{{{name[:60]}}} is never set in this action.")
            known.add(name)
    _payload(entity, lines)


def _missing_do(entity: Entity, at: Node, *, is_trigger: bool) -> None:
    line = at.line
    if is_trigger and at.tree is None and not line.shape.startswith("ON"):
        return  # what is wrong with it is told already
    fixed = line.indent + line.source(line.shape) + " DO" if is_trigger and at.tree else None
    entity.tell("error", line.start, "missing-do", "DO is missing before the body.", fixed)


def _payload(entity: Entity, lines: list[Line]) -> None:
    without = _NO_PAYLOAD.get(entity.trigger or "")
    for line in lines if without else ():
        if found := _PAYLOAD.search(line.shape):
            message = f"There is no PAYLOAD in a {without} action: read the value with GET TOPIC."
            entity.tell("warning", line.place(found.start()), "payload-without-message", message)


def _trigger(entity: Entity, line: Line, trigger: "Branch") -> None:
    entity.trigger = str(trigger.data)
    tokens = _tokens(trigger)
    if trigger.data == "on_topic":
        entity.listens.append((line.string(tokens[0]), _at(line, tokens[0])))
    elif trigger.data == "on_every":
        number, *units = [token for token in tokens if token.type != "STRING"]
        place = _at(line, number)
        if not units and len(tokens) == 1:
            entity.tell("error", place, "missing-unit", "ON EVERY needs a unit, such as SECONDS.")
        elif units and not _UNITS.fullmatch(units[0]):
            if _UNITS.fullmatch(units[0].upper()):
                _unknown_word(entity, line, units[0], "unit of time", _UNITS)
            else:
                entity.tell("error", _at(line, units[0]), "missing-unit", f"{units[0][:40]} is no unit of time.")
    elif trigger.data == "on_day" and not _DAYS.fullmatch(tokens[0]):
        _unknown_word(entity, line, tokens[0], "day", _DAYS)


def _unknown_word(entity: Entity, line: Line, token: "Token", what: str, known: re.Pattern[str]) -> None:
    upper = token.upper()
    meant = upper if known.fullmatch(upper) else None
    start = token.start_pos or 0
    fixed = line.indent + line.source(line.shape[:start] + upper + line.shape[start + len(token) :]) if meant else None
    rule = "keyword-case" if meant else "unknown-keyword"
    entity.tell(
        "warning",
        line.place(start),
        rule,
        f"{token[:40]} is no {what}" + (f": write {meant}." if meant else "."),
        fixed,
    )


def _statements(tree: "Branch") -> "Iterator[Branch]":
    """Yield a line's statement, and those on the same line behind THEN or DO."""
    yield tree
    while tree.data in _HOLD_STATEMENTS and (inner := _trees(tree)) and inner[-1].data in _STATEMENTS:
        tree = inner[-1]
        yield tree


def _statement(  # noqa: C901, PLR0912
    entity: Entity, node: Node, tree: "Branch", types: dict[str, str | None], known: set[str]
) -> None:
    line, form = node.line, str(tree.data)
    tokens, trees = _tokens(tree), _trees(tree)
    place = _at(line, tokens[0]) if tokens else line.start
    if form == "input_line":
        entity.inputs.append((str(tokens[0]), str(tokens[1])))
        types[str(tokens[0])] = "number" if tokens[1] in ("INT", "DOUBLE") else None
        if tokens[1] not in _INPUT_TYPES:
            _unknown_word(entity, line, tokens[1], "type of an input", re.compile("|".join(_INPUT_TYPES)))
    elif form == "output_line":
        entity.outputs.append(str(tokens[0]))
    elif form == "description_line":
        entity.description = line.string(tokens[0])
    elif form == "set":
        name = _unquoted(line, tokens[0]).strip("{} ")
        types[name] = _type_of(trees[0], types)
        entity.texts[name] = _text(trees[0], line, entity.texts)
        known.add(name)
        if trees[0].data == "string" and entity.texts[name] and _SECRET_KEYS.fullmatch(name.upper()):
            entity.tell("warning", _place_of(line, trees[0]), "literal-secret", _WRITTEN_OUT)
    elif form in ("publish", "keep", "publish_model"):
        if form == "publish_model":
            entity.needs.append((("model", _unquoted(line, tokens[0])), place))
        if topic := template(trees[0], line, entity.texts):
            (entity.keeps if form == "keep" else entity.publishes).append((topic, _place_of(line, trees[0])))
    elif form == "keep_env" and tokens[0] == "SECRET" and trees[0].data == "string":
        entity.tell("warning", _place_of(line, trees[0]), "literal-secret", _WRITTEN_OUT)
    elif form == "call_action":
        callee = _unquoted(line, tokens[0])
        results = next((each for each in trees if each.data == "results"), None)
        entity.needs.append((("action", callee), place))
        entity.calls.append((callee, len(results.children) if results else None, place))
        known |= {str(name) for name in results.children} if results else set()
    elif form in ("call_python", "call_mcp", "call_llm"):
        target = line.string(tokens[0])
        kind: Kind = "python" if form == "call_python" else "route"
        entity.needs.append(((kind, target if form == "call_llm" else target.split(".")[0]), place))
        known |= {str(token).strip("{} ") for token in tokens if token.type == "VAR"}
    elif form == "trigger_event":
        to_route = tokens[1].type != "VAR"
        entity.needs.append((("route", _unquoted(line, tokens[1] if to_route else tokens[0])), place))


def _check_place(entity: Entity, node: Node) -> None:
    """Tell about a line that cannot stand where it does."""
    line, form = node.line, node.form
    wanted = {"else_line": ("if_line", "else_line"), "until_line": ("loop_line",)}.get(form)
    if wanted and node.previous not in wanted:
        word = line.shape.split()[0]
        entity.tell(
            "warning", line.start, "unreadable", f"There is no {wanted[0][:-5].upper()} above that {word} belongs to."
        )
    elif form in TOP:
        if node.depth and form != "trigger_line":
            word = line.shape.split()[0]
            entity.tell("warning", line.start, "unexpected-indent", f"{word} stands in the column of DEFINE.")
    elif form == "field_line" and "publish" not in (node.parents or ("",))[-1]:
        entity.tell("warning", line.start, "unreadable", "Only below PUBLISH MODEL may a line assign a field.")
    elif node.depth == 0:
        message = "The line belongs into a block: indent it by 4 spaces for each level."
        entity.tell("warning", line.start, "not-indented", message)
    elif form == "case_line" and node.parents[-1] not in ("switch_line", ""):
        entity.tell("warning", line.start, "unreadable", "CASE and DEFAULT stand under SWITCH.")


# Expressions


def _place_of(line: Line, tree: "Branch") -> Place:
    while tree.children:
        first = tree.children[0]
        if isinstance(first, str):
            return _at(line, first)
        tree = first
    return line.start


def _chain(tree: "Branch") -> "tuple[list[Branch], list[Token]]":
    """Take apart what + and - join: the operands and the operators between them."""
    operands: list[Branch] = []
    operators: list[Token] = []
    while tree.data == "sum":
        left, operator, right = tree.children
        operands.append(right)  # type: ignore[arg-type]
        operators.append(operator)  # type: ignore[arg-type]
        tree = left  # type: ignore[assignment]
    operands.append(tree)
    return operands[::-1], operators[::-1]


def template(tree: "Branch", line: Line, texts: dict[str, str]) -> str | None:
    """Give a topic's text, `ANY_TEXT` for its variable parts, if it begins with known text."""
    text = _text(tree, line, texts)
    return None if text.startswith(ANY_TEXT) else text


def _text(tree: "Branch", line: Line, texts: dict[str, str]) -> str:
    """Put together what is known of a text, given what is known of the variables in it."""
    operands, operators = _chain(tree)
    if len(operands) > 1 and all(operator == "+" for operator in operators):
        text = "".join(_text(each, line, texts) for each in operands)
    elif tree.data == "string":
        text = line.string(str(tree.children[0]))
    elif tree.data == "variable":
        text = texts.get(str(tree.children[0]).strip("{} "), ANY_TEXT)
    elif tree.data == "group":
        text = _text(_trees(tree)[0], line, texts)
    elif tree.data == "replace":
        what, by, within = (
            _text(each, line, texts) if each.data in _TOPIC_PARTS else ANY_TEXT for each in _trees(tree)
        )
        text = within.replace(what, by) if what else within
    else:
        text = ANY_TEXT
    return text if len(text) <= _LONGEST_TOPIC else ANY_TEXT


def _type_of(tree: "Branch", types: dict[str, str | None]) -> str | None:
    """Say whether a value is a number, or text that came from outside; None where that is open."""
    while tree.data == "group":
        tree = tree.children[0]  # type: ignore[assignment]
    if tree.data in ("payload", "get_topic", "get_json"):
        return "outside"
    if tree.data == "cast":
        return "number" if _trees(tree)[1].data == "numeric" else None
    if tree.data in ("number", "term", "minus", "random"):
        return "number"
    if tree.data == "variable":
        return types.get(str(tree.children[0]).strip("{} "))
    if tree.data == "sum":
        kinds, joins = _summands(tree, types)
        return None if "text" in kinds else "number" if "-" in joins or "number" in kinds else None
    return None


def _summands(tree: "Branch", types: dict[str, str | None]) -> "tuple[list[str | None], list[Token | None]]":
    """Say what kind of values + and - join, and which of the two stands before each; a topic's text counts as one."""
    operands, operators = _chain(tree)
    kinds: list[str | None] = []
    joins: list[Token | None] = []
    at = 0
    while at < len(operands):
        joins.append(operators[at - 1] if at else None)
        end = _topic_end(operands, operators, at)
        last = operands[end]
        kinds.append(
            "text"
            if last.data in _TEXTS and end == at
            else _type_of(last if last.data == "cast" else operands[at], types)
        )
        at = end + 1
    return kinds, joins


def _topic_end(operands: "list[Branch]", operators: "list[Token]", at: int) -> int:
    """Find the last operand that belongs to the topic, if one is read at `at`."""
    if operands[at].data != "get_topic" or _trees(operands[at])[0].data not in _TOPIC_PARTS:
        return at
    while at < len(operators) and operators[at] == "+" and operands[at].data != "cast":
        following = operands[at + 1]
        part = _trees(following)[0] if following.data == "cast" else following
        if part.data not in _TOPIC_PARTS:
            break
        at += 1
    return at


def _expressions(entity: Entity, line: Line, tree: "Branch", types: dict[str, str | None]) -> None:
    """Check what is calculated in a line and which topics it reads."""
    parts: list[Branch] = list(tree.iter_subtrees())
    where = _WHERE.search(line.shape)
    inner = {id(part.children[0]) for part in parts if part.data == "sum"}
    grouped = {id(part.children[0]) for part in parts if part.data == "group"}
    for part in parts:
        if part.data == "sum" and id(part) not in inner:
            _sum(entity, line, part, types, in_group=id(part) in grouped)
        elif part.data == "term":
            if "outside" in [_type_of(each, types) for each in _trees(part)]:
                _uncast(entity, line, _tokens(part)[0])
        elif part.data == "get_topic" and (text := template(_trees(part)[0], line, entity.texts)):
            entity.reads.append((text, _place_of(line, part)))
        elif part.data == "get_model":
            route = _tokens(part)[1]
            entity.needs.append((("route", _unquoted(line, route)), _at(line, route)))
        elif part.data == "name_" and entity.kind == "action":
            _bare_name(entity, line, _tokens(part)[0], types, where.end() if where else None)


def _bare_name(
    entity: Entity, line: Line, token: "Token", types: dict[str, str | None], columns_from: int | None
) -> None:
    start = token.start_pos or 0
    if token in _KNOWN_NAMES or (columns_from is not None and start >= columns_from):
        return
    keyword = keyword_meant(token) if token not in types else None
    if keyword in ("PAYLOAD", "EMPTY"):
        fixed = line.indent + line.source(line.shape[:start] + keyword + line.shape[start + len(token) :])
        rule = "keyword-case" if token.upper() == keyword else "misspelled-keyword"
        entity.tell("warning", line.place(start), rule, f"{keyword} seems to be meant by {token[:40]}.", fixed)
        return
    suggestion = None
    if token in types and "\n" not in line.shape and len(line.shape) <= LONGEST_CORRECTED:
        fixed = line.shape[:start] + f"{{{token}}}" + line.shape[start + len(token) :]
        suggestion = line.indent + line.source(fixed)
    entity.tell(
        "warning", line.place(start), "bare-name", f"A variable is read in braces: {{{token[:40]}}}.", suggestion
    )


def _uncast(entity: Entity, line: Line, operator: "Token") -> None:
    message = "A value from a topic, a payload or JSON is text: cast it, as with AS DOUBLE, before calculating with it."
    entity.tell("warning", _at(line, operator), "uncast-arithmetic", message)


def _sum(entity: Entity, line: Line, tree: "Branch", types: dict[str, str | None], *, in_group: bool) -> None:
    kinds, joins = _summands(tree, types)
    for left, right, operator in zip(kinds, kinds[1:], joins[1:], strict=False):
        if operator is None or "outside" not in (left, right):
            continue
        if operator == "-" or ("number" in (left, right) and "text" not in kinds):
            _uncast(entity, line, operator)
            break
    operands, operators = _chain(tree)
    for at, operand in enumerate(operands[:-1]):
        last = operand
        while last.data in ("term", "minus", "cast") and (inner := _trees(last)):
            last = inner[0] if last.data == "cast" else inner[-1]
        if last.data != "get_topic" or operators[at] != "+":
            continue
        if unclear := _unclear(line, operands, operators, at) if in_group else operators[at]:
            message = "Whether + belongs to the topic or to its value is not clear: put GET TOPIC into parentheses."
            entity.tell("warning", _at(line, unclear), "ambiguous-get-topic", message)


def _unclear(line: Line, operands: "list[Branch]", operators: "list[Token]", at: int) -> "Token | None":
    """Find the + behind a GET TOPIC in parentheses of which nobody can say whether the topic goes on."""
    if operands[at].data != "get_topic":
        return None
    end = _topic_end(operands, operators, at)
    parts = [_trees(each)[0] if each.data == "cast" else each for each in operands[at + 1 : end + 1]]
    texts = [line.string(str(each.children[0])) if each.data == "string" else None for each in parts]
    topic = _trees(operands[at])[0]
    before = line.string(str(topic.children[0])) if topic.data == "string" else ""
    for number, text in enumerate(texts):
        if (
            text is None
            and not before.endswith(_SEPARATORS)
            and not any((each or "").startswith("/") for each in texts)
        ):
            return operators[at + number]
        before = text or ""
    return None


# Models, rules and routes


def _model(entity: Entity, nodes: Iterable[Node]) -> None:  # noqa: C901, PLR0912
    for node in nodes:
        line, tree = node.line, node.tree
        if tree is None:
            entity.has_field_trigger = entity.has_field_trigger or bool(re.search(r"\bAS\s+TRIGGER\b", line.shape))
            continue
        tokens, form = _tokens(tree), node.form
        for option in tree.find_pred(lambda each: each.data in ("parent", "collapsed", "base_topic")):
            if option.data == "parent":
                entity.parent = _unquoted(line, _tokens(option)[0])
                place = _at(line, _tokens(option)[0])
                entity.needs.append((("model", entity.parent), place))
            elif option.data == "collapsed":
                entity.collapsed = True
            else:
                entity.base_topic = line.string(str(_tokens(option)[0]))
        if form in ("add_field", "add_as"):
            entity.fields.add(line.string(next(token for token in tokens if token.type == "STRING")))
            entity.has_field_trigger = entity.has_field_trigger or any(token.type == "AS_TRIGGER" for token in tokens)
            if form == "add_as" or any(each.data == "field_topic" for each in _trees(tree)):
                entity.field_topic = entity.field_topic or line.start
            if form == "add_as":
                message = "AS behind the field's name is the old spelling: write the type before the name."
                entity.tell("warning", line.start, "old-spelling", message)
        elif form == "add_collection":
            entity.needs.append((("model", _unquoted(line, tokens[1])), _at(line, tokens[1])))
        elif form in ("store", "fetch"):
            entity.needs.append((("route", line.string(tokens[0])), _at(line, tokens[0])))
        for topic in tree.find_data("field_topic"):
            if text := template(_trees(topic)[0], line, {}):
                entity.listens.append((text, _place_of(line, topic)))
        _expressions(entity, line, tree, {})


def _rule(entity: Entity, nodes: Iterable[Node]) -> None:
    waiting: list[Node] = []
    for node in nodes:
        while waiting and waiting[-1].depth > node.depth:
            _without_else(entity, waiting.pop())
        if waiting and waiting[-1].depth == node.depth:
            if node.form == "rule_else":
                waiting.pop()
            else:
                _without_else(entity, waiting.pop())
        if node.form in ("rule_if", "if_line") or re.match(r"ELSE\s+IF\b", node.line.shape):
            waiting.append(node)
        if node.form == "define_rule" and node.tree:
            tokens = {token.type: token for token in _tokens(node.tree)}
            _, priority, scope = _tokens(node.tree)[:3]
            if float(tokens["NUMBER"]) < _RESERVED_PRIORITIES:
                place = _at(node.line, priority)
                entity.tell("warning", place, "reserved-priority", "Priorities below 100 are reserved for the broker.")
            if not _SCOPES.fullmatch(scope):
                place = _at(node.line, scope)
                entity.tell("warning", place, "unknown-scope", f"{scope[:40]} is not among the known scopes.")
    for node in reversed(waiting):
        _without_else(entity, node)


def _without_else(entity: Entity, node: Node) -> None:
    message = "An IF in a rule needs an ELSE: brokers refuse it without."
    entity.tell("warning", node.line.start, "if-without-else", message)


def _route(entity: Entity, nodes: Iterable[Node]) -> None:
    sections: list[tuple[int, str]] = []
    for node in nodes:
        line, tree = node.line, node.tree
        while sections and sections[-1][0] >= node.depth:
            sections.pop()
        if tree is None:
            continue
        if node.form == "section":
            word = _tokens(tree)[0]
            if word == "TAG" and not any(section == "MAPPING" for _, section in sections):
                entity.tell(
                    "error", line.start, "tag-outside-mapping", "ADD TAG stands inside ADD MAPPING, indented under it."
                )
            sections.append((node.depth, str(word)))
        for setting in tree.find_data("setting"):
            _setting(entity, line, *_tokens(setting))


def _setting(entity: Entity, line: Line, key: "Token", *values: "Token") -> None:
    if key == "EVERY" and len(values) > 1 and not _UNITS.fullmatch(values[1]):
        _unknown_word(entity, line, values[1], "unit of time", _UNITS)
    if not values or values[0].type not in ("STRING", "NAME", "NUMBER"):
        return
    text, place = _unquoted(line, values[0]), _at(line, values[0])
    if key == "SOURCE_TOPIC":
        entity.listens.append((text, place))
    elif _SECRET_KEYS.fullmatch(key) and text and not re.search(r"\{(?:secret|env)\.|^#.*#$", text):
        name = f"{entity.name}_{key}".upper()
        start = values[0].start_pos or 0
        shape = line.shape[:start] + f"GET SECRET '{name}'" + line.shape[start + len(values[0]) :]
        fixed = line.indent + line.source(shape).replace("'", '"') if len(line.strings) == 1 else None
        message = f"{key} is written into the program: store it with -setSecret and write GET SECRET."
        entity.tell("warning", place, "literal-secret", message, fixed)
