"""Reads LoT as a broker does, with no line of the server's own parser: a small grammar, and what walks it.

It follows the published material, and where that is silent it is strict. The wording of its errors is a guess, but for
`Expected one of ..., but found ...` and `STRING where IDENTIFIER was expected`.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

INDENT = 4

# NL ends a line, > and < are an indented block, a word in lower case is a rule or a kind of token, all others stand for
# themselves. The first alternative that fits is taken.
_GRAMMAR = """
ACTION = DEFINE ACTION name ( NL? trigger NL? | NL input* ) DO ( block | statement ) tail*
trigger = ON ( EVERY ( number unit | day AT string ) | TIMESTAMP string | TOPIC string | CHANGE string | START
    | CONNECT | DISCONNECT | SUBSCRIBE string? )
unit = MILLISECONDS | SECOND | SECONDS | MINUTE | MINUTES | HOUR | HOURS | DAY | DAYS | WEEK | WEEKS | MONTH | MONTHS
    | YEAR | YEARS
day = MONDAY | TUESDAY | WEDNESDAY | THURSDAY | FRIDAY | SATURDAY | SUNDAY | WEEKDAY | WEEKEND
input = INPUT name AS ( STRING | INT | DOUBLE | BOOL | JSON ) NL
tail = RETURN NL > output+ < | description
output = OUTPUT name NL
description = DESCRIPTION string NL
block = NL > statement+ <
statement = set | publish | keep | publish_model | if | switch | loop | call | trigger_event
set = SET string ( WITH | TO | AS ) expr NL
publish = PUBLISH TOPIC expr WITH expr NL
keep = KEEP ( TOPIC expr | ENV string | SECRET string ) WITH expr NL | DELETE ( ENV | SECRET ) string NL
publish_model = PUBLISH MODEL model TO expr WITH ( NL > ( argument ','? NL )+ < | argument NL )
argument = identifier '=' expr
if = IF expr THEN block ( ELSE IF expr THEN block )* ( ELSE block )?
switch = SWITCH expr NL > ( CASE primary THEN block )+ ( DEFAULT THEN block )? <
loop = LOOP block UNTIL expr NL
call = CALL callee ( NL > with? NL? return? NL < | with NL > return NL < | with? return? NL )
callee = ACTION action | PYTHON script | MCP string | LLM string METHOD string | AGENT string METHOD string
with = WITH ( '(' ( given ( ',' given )* )? ')' | argument ( ',' argument )* )
given = argument | expr
return = RETURN ( AS variable | result ( ',' result )* )
result = identifier
trigger_event = TRIGGER string TO name ( WITH expr )? NL
expr = IF expr THEN expr ELSE expr | logic
logic = NOT? compare ( ( AND | OR ) NOT? compare )*
compare = sum ( ( '==' | '!=' | '>=' | '<=' | '>' | '<' | EQUALS | NOT EQUALS | CONTAINS | STARTS_WITH | ENDS_WITH )
    sum )?
sum = term ( ( '+' | '-' ) term )*
term = factor ( ( '*' | '/' | '%' ) factor )*
factor = primary cast? ( AND_THEN transform )*
cast = AS ( STRING | INT | DOUBLE | BOOL | OBJECT | ARRAY | TIMESTAMP | BYTES )
transform = TRIM | FILTER USING REGEX string | REPLACE expr WITH expr
primary = string | number | '-' number | variable | '(' expr ')' | payload | position | constant | elsewhere | field
payload = PAYLOAD
position = TOPIC POSITION number
constant = TRUE | FALSE | true | false | EMPTY | NULL
elsewhere = '{' ( pair ( ',' pair )* )? '}' | '[' ( expr ( ',' expr )* )? ']' | GET TOPIC primary
    | GET JSON string IN expr | GET ( ENV | SECRET ) string | GET MODEL string FROM string WHERE expr
    | TIMESTAMP WITH? string | RANDOM UUID
    | RANDOM ( INT | DOUBLE )? BETWEEN sum AND sum | FILTER expr USING REGEX string | REPLACE expr WITH expr IN expr
    | TRIM expr | CLIENTID | USER | ENDPOINT | CLEANSESSION | DISCONNECTREASON | SUBSCRIBETOPIC | SUBSCRIBEQOS
pair = string ':' expr
field = identifier
MODEL = DEFINE MODEL name option* NL ( > member+ < )?
option = COLLAPSED | FROM parent | KEEP | RETAIN | QOS0 | QOS1 | QOS2
    | WITH ( TOPIC string | RETAIN ( AND QOS1 )? | FORMAT ( PROTOBUF | JSON | BOTH ) )
member = ADD COLLECTION string OF ( string | model ) NL
    | ADD ( STRING | INT | DOUBLE | BOOL | OBJECT | ARRAY | TIMESTAMP )? string ( WITH ( TOPIC string | expr ) )?
    ( AS TRIGGER )? NL ( > member+ < )?
    | STORE IN string ( NL > table NL < | table NL ) | FETCH FROM string table ( LIMIT number )? NL
table = WITH TABLE string ( WHEN expr )?
RULE = DEFINE RULE name WITH PRIORITY priority FOR scope ( TO TOPIC string )? NL > verdict <
priority = number
verdict = ALLOW NL | DENY NL | IF condition THEN NL > verdict < ELSE NL > verdict <
condition = claim ( ( AND | OR ) claim )*
claim = NOT claim | '(' condition ')' | USER IS string | USER HAS ( string | word ) | USER IN GROUP string
    | CLIENTID IS ( string | position ) | CLIENTID MATCHES REGEX string | ENDPOINT IS string
    | TOPIC EXISTS sum | GET TOPIC sum IS string
scope = Connect | Publish | Subscribe | PublishSys | SubscribeSys | CommandCall | ShellCommand | SystemConfiguration
    | UserManagementCreation | UserManagementRemove | UserManagementPasswordChange | UserManagementUpdate
    | RuleManagementCreation | RuleManagementRemove | ModelManagementCreation | ModelManagementRemove
    | ActionManagementCreation | ActionManagementRemove | ActionManagementRun | RouteManagementCreation
    | RouteManagementRemove | LogManagementCreation | LogManagementUpdate | LogManagementRemove | LogManagementRead
ROUTE = DEFINE ROUTE name WITH TYPE type NL > section+ <
section = setting | ADD EVENT name settings | ADD name settings
    | ADD MAPPING ( name | string ) NL > ( setting | ADD TAG string settings )+ <
settings = NL > setting+ <
setting = WITH ( EVERY number unit | word ( GET ( ENV | SECRET ) string | string | '-'? number | word ) ) NL
PANEL = DEFINE PANEL title NL ( > part+ < )?
part = ( WITH | ADD | SET | BIND ) any+ NL ( > part+ < )? | ON CLICK DO block
THEME = DEFINE THEME title NL > ( SET string WITH string NL )+ <
title = string | identifier
model = parent | string
parent = identifier
script = string
action = identifier
name = identifier
type = POSTGRESQL | MYSQL | MARIADB | SQLSERVER | MONGODB | OPENSEARCH | CRATEDB | SNOWFLAKE | FILE_STORAGE
    | MODBUS_TCP | MODBUS_SERIAL | MODBUS_SERVER | SIEMENS_S7 | OPCUA | OPCUA_SERVER | ETHERNETIP | ALLEN_BRADLEY
    | ADS | FINS | BACNET | MQTT_BRIDGE | MQTT_CLUSTER | SPARKPLUG_B | SPARKPLUG_HOST | KAFKA | GRPC | REST_API
    | EMAIL | LLM | AGENT | MCP | MCP_SERVER | BARCODE | AUDIO_INPUT | VIDEO_INPUT | VIDEO_OUTPUT
"""

ROUTE_TYPES = re.findall(r"\w+", _GRAMMAR.rpartition("type =")[2])
_RESERVED = set(
    re.findall(
        r"\w+",
        """ADD AS BETWEEN CALL DEFINE DELETE DO ELSE END EVENT FROM GET IF IN KEEP MAPPING MESSAGE METADATA ON OUTPUT
        PUBLISH RETURN SET STORE SWITCH TAG THEN TO TOPIC TRIGGER UNTIL USING VALUE WHEN WHERE WITH AND OR NOT""",
    )
)
_TOKEN = re.compile(
    r"""(?P<skip>[ ]+|--.*|//.*)
      | (?P<string>"(?:[^"\\]|\\.)*"|'[^']*')
      | (?P<number>\d+(?:\.\d+)?(?![A-Za-z_]))
      | (?P<variable>\{[ ]*[A-Za-z_]\w*[ ]*\})
      | (?P<identifier>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
      | (?P<operator>[=!<>]=|[-+*/%<>=(){}\[\],:])""",
    re.VERBOSE | re.ASCII,
)
_KINDS = {"string", "number", "variable", "identifier"}
_PAIRS = {")": "(", "]": "[", "}": "{"}


class LotError(Exception):
    """The text is no LoT; `line` and `column` count from 1."""

    def __init__(self, text: str, line: int, column: int, suggestion: str = "") -> None:
        super().__init__(f"{text} ({line},{column})")
        self.suggestion = suggestion
        self.line = line
        self.column = column


class UndecidedError(Exception):
    """Only a real broker knows."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word, or the layout NL, INDENT or DEDENT, and where it is."""

    kind: str
    text: str
    line: int
    column: int

    @property
    def plain(self) -> str:
        """The text of a string without its quotes, of a variable without its braces."""
        if self.kind == "variable":
            return self.text.strip("{ }")
        text = self.text[1:-1] if self.kind == "string" else self.text
        return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), text)


@dataclass(frozen=True, slots=True)
class Node:
    """What one rule of the grammar has matched."""

    rule: str
    parts: tuple["Node | Token", ...]

    def all(self, rule: str) -> Iterator["Node"]:
        """Find the nodes of a rule in here, in the order of the text."""
        for part in self.parts:
            if isinstance(part, Node):
                if part.rule == rule:
                    yield part
                yield from part.all(rule)

    def tokens(self) -> Iterator[Token]:
        """Give every word in here."""
        for part in self.parts:
            if isinstance(part, Node):
                yield from part.tokens()
            else:
                yield part

    @property
    def token(self) -> Token:
        """The first word in here."""
        return next(self.tokens())


@dataclass(frozen=True, slots=True)
class Definition:
    """What one text defines; for a Python script `functions` are what others call."""

    kind: str
    name: str
    tree: Node = field(default_factory=lambda: Node("", ()))
    functions: tuple[str, ...] = ()

    def texts(self, rule: str) -> list[str]:
        """Give the first word of every node of a rule, without quotes."""
        return [node.token.plain for node in self.tree.all(rule)]

    @property
    def description(self) -> str | None:
        """What the DESCRIPTION clause says."""
        return next(([*node.tokens()][1].plain for node in self.tree.all("description")), None)

    @property
    def inputs(self) -> list[str]:
        """What a callable action is given."""
        return [[*node.tokens()][1].text for node in self.tree.all("input")]

    @property
    def outputs(self) -> list[str]:
        """What a callable action gives back."""
        return [[*node.tokens()][1].text for node in self.tree.all("output")]

    @property
    def needs(self) -> list[tuple[str, str]]:
        """The kinds and names of what must be there for it to work."""
        models = [("Model", name) for rule in ("parent", "model") for name in self.texts(rule)]
        scripts = [("Python", name.partition(".")[0]) for name in self.texts("script")]
        return list(dict.fromkeys([*models, *(("Action", name) for name, _, _ in self.calls), *scripts]))

    @property
    def calls(self) -> list[tuple[str, int, Token]]:
        """The actions it calls, how many values it takes back from each, and where."""
        calls = [(node, callee.token) for node in self.tree.all("call") for callee in node.all("action")]
        return [(callee.text, len([*node.all("result")]), callee) for node, callee in calls]


def parse(text: str, kind: str) -> Definition:
    """Read the one definition in `text`, which must be of that kind (ACTION, MODEL, ...); raises `LotError`."""
    try:
        tree = _Reading(_tokens(text)).read(kind)
    except RecursionError as error:
        raise LotError("nested too deeply", 1, 1) from error
    if kind == "ACTION":
        for node in tree.all("field"):
            raise LotError(f"unexpected IDENTIFIER {node.token.text}", node.token.line, node.token.column)
    for node in tree.all("position"):
        if [*node.tokens()][-1].text == "0":
            raise LotError("TOPIC POSITION counts from 1", node.token.line, node.token.column)
    name = next(node.token for rule in ("name", "title") for node in tree.all(rule))
    if "." in name.text and name.kind == "identifier":
        raise LotError("a name has no dots", name.line, name.column)
    return Definition(kind, name.plain, tree)


def parse_python(text: str) -> Definition:
    """Read a script for `-addPython`."""
    first, _, _ = text.partition("\n")
    match = re.fullmatch(r"#\s*Script Name:\s*(\w+)\s*", first)
    if match is None:
        raise LotError("the first line is to be # Script Name: NAME", 1, 1)
    try:
        module = ast.parse(text)
    except SyntaxError as error:
        raise LotError(str(error.msg), error.lineno or 1, error.offset or 1) from error
    return Definition(
        "PYTHON", match[1], functions=tuple(n.name for n in module.body if isinstance(n, ast.FunctionDef))
    )


def _tokens(text: str) -> list[Token]:
    """Cut a text into words and layout; within brackets a line goes on."""
    found: list[Token] = []
    brackets: list[Token] = []
    depth = number = 0
    for number, raw in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        words = _words(raw.rstrip(), number)
        if words and not brackets:
            column = words[0].column
            level, rest = divmod(column - 1, INDENT)
            if "\t" in raw[:column] or rest or level > depth + 1:
                raise LotError("unexpected INDENT", number, column, "indent with 4 spaces a level")
            layout = "INDENT" if level > depth else "DEDENT"
            found += [Token(layout, layout, number, column)] * abs(level - depth)
            depth = level
        for word in words:
            if word.text in _PAIRS.values():
                brackets.append(word)
            elif word.text in _PAIRS and (not brackets or brackets.pop().text != _PAIRS[word.text]):
                raise LotError(f"{word.text} without {_PAIRS[word.text]}", number, word.column)
        found += words
        if words and not brackets:
            found.append(Token("NL", "NL", number, words[-1].column + len(words[-1].text)))
    if brackets:
        raise LotError(f"{brackets[-1].text} without its end", brackets[-1].line, brackets[-1].column)
    end = found[-1].column if found else 1
    return found + [Token("DEDENT", "DEDENT", number, end)] * depth + [Token("END", "END", number, end)]


def _words(raw: str, number: int) -> list[Token]:
    words: list[Token] = []
    at = len(raw) - len(raw.lstrip())
    while at < len(raw):
        match = _TOKEN.match(raw, at)
        if match is None:
            raise LotError("a quote without its end" if raw[at] in "\"'" else "PARSE ERROR", number, at + 1)
        if match.lastgroup != "skip":
            words.append(Token(str(match.lastgroup), match[0], number, at + 1))
        at = match.end()
    return words


class _Reading:
    """One walk through the words of a text; remembers how far it got, because that is where the mistake is."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.farthest = 0
        self.expected: dict[str, None] = {}

    def read(self, kind: str) -> Node:
        found = _RULES[kind](self, 0)
        if found is not None and self.tokens[found[0]].kind == "END":
            return Node(kind, tuple(found[1]))
        if found is not None:
            self.miss(found[0], "END")
        token = self.tokens[self.farthest]
        shown = (
            token.text
            if token.kind == "operator"
            else f"{token.kind.upper()} {token.text}".removesuffix(f" {token.kind}")
        )
        text, suggestion = f"Expected one of {', '.join(self.expected)}, but found {shown}", ""
        if token.kind == "INDENT":
            text, suggestion = "unexpected INDENT", "write this line in the column of the one before"
        elif token.kind == "string" and "IDENTIFIER" in self.expected:
            text, suggestion = "STRING where IDENTIFIER was expected", f"write {token.plain} without quotes"
        raise LotError(text, token.line, token.column, suggestion)

    def miss(self, at: int, expected: str) -> None:
        if at > self.farthest:
            self.farthest, self.expected = at, {}
        if at == self.farthest:
            self.expected[expected] = None


_Match = tuple[int, list[Node | Token]] | None  # where it ends, and what it found
_Matcher = Callable[[_Reading, int], _Match]


def _terminal(word: str) -> _Matcher:
    layout = {">": "INDENT", "<": "DEDENT", "NL": "NL"}.get(word)

    def match(reading: _Reading, at: int) -> _Match:
        token = reading.tokens[at]
        is_layout = token.kind.isupper()
        if layout is not None:
            fits = token.kind == layout
        elif word in _KINDS:
            fits = token.kind == word and not (word == "identifier" and token.text in _RESERVED)
        elif word in {"any", "word"}:
            fits = not is_layout if word == "any" else token.kind == "identifier"
        else:
            fits = token.text == word.strip("'") and not is_layout
        if fits:
            return at + 1, [] if layout else [token]
        reading.miss(at, layout or (word.upper() if word in _KINDS else word))
        return None

    return match


def _reference(rule: str) -> _Matcher:
    def match(reading: _Reading, at: int) -> _Match:
        found = _RULES[rule](reading, at)
        return found and (found[0], [Node(rule, tuple(found[1]))])

    return match


def _sequence(matchers: list[_Matcher]) -> _Matcher:
    def match(reading: _Reading, at: int) -> _Match:
        parts: list[Node | Token] = []
        for matcher in matchers:
            found = matcher(reading, at)
            if found is None:
                return None
            at = found[0]
            parts += found[1]
        return at, parts

    return match


def _either(matchers: list[_Matcher]) -> _Matcher:
    return lambda reading, at: next((found for each in matchers if (found := each(reading, at))), None)


def _repeated(matcher: _Matcher, how: str) -> _Matcher:
    def match(reading: _Reading, at: int) -> _Match:
        parts: list[Node | Token] = []
        count = 0
        while not (how == "?" and count) and (found := matcher(reading, at)):
            at = found[0]
            parts += found[1]
            count += 1
        return None if how == "+" and not count else (at, parts)

    return match


def _compile(grammar: str) -> dict[str, _Matcher]:
    bodies = dict(rule.split(" = ", 1) for rule in re.split(r"\n(?! )", grammar.strip()))
    return {rule: _alternatives(re.findall(r"'[^']+'|\w+|\S", body), bodies) for rule, body in bodies.items()}


def _alternatives(words: list[str], rules: Mapping[str, str]) -> _Matcher:
    """Take the words of the grammar up to a closing bracket."""
    found: list[list[_Matcher]] = [[]]
    while words and (word := words.pop(0)) != ")":
        if word == "|":
            found.append([])
        elif word in "?*+":
            found[-1].append(_repeated(found[-1].pop(), word))
        elif word == "(":
            found[-1].append(_alternatives(words, rules))
        else:
            found[-1].append(_reference(word) if word in rules and not word.isupper() else _terminal(word))
    return _either([_sequence(each) for each in found])


_RULES = _compile(_GRAMMAR)


def run(action: Definition, variables: dict[str, Any], publish: Callable[[str, str], None]) -> dict[str, Any] | None:
    """Carry an action out as far as its inputs decide it, and give its outputs; None when something else decides them.

    Args:
        action: What is run.
        variables: The inputs; below `PAYLOAD` what a simulated message carries.
        publish: Takes topic and payload of what it publishes.
    """
    for statement in _steps(action.tree):
        try:
            _do(statement, variables, publish)
        except UndecidedError:
            return None
    outputs = {name: variables[name] for name in action.outputs if name in variables}
    return outputs if len(outputs) == len(action.outputs) else None


def _steps(tree: Node) -> list[Node]:
    blocks = [part for part in tree.parts if isinstance(part, Node) and part.rule in {"block", "statement"}]
    return [
        statement
        for block in blocks
        for statement in ([block] if block.rule == "statement" else block.parts)
        if isinstance(statement, Node)
    ]


def _do(statement: Node, variables: dict[str, Any], publish: Callable[[str, str], None]) -> None:
    (step,) = statement.parts
    if not isinstance(step, Node) or step.rule not in {"set", "publish"}:
        raise UndecidedError
    values = [_value(part, variables) for part in step.parts if isinstance(part, Node)]
    if step.rule == "set":
        (variables[[*step.tokens()][1].plain],) = values
    else:
        publish(*map(_text, values))


def _value(node: Node, variables: Mapping[str, Any]) -> Any:
    """Work an expression out; operators of different rank side by side are left, as nobody says which binds."""
    nodes = [part for part in node.parts if isinstance(part, Node)]
    tokens = [part for part in node.parts if isinstance(part, Token)]
    match node.rule:
        case "sum" | "term" if len(nodes) > 1:
            if any(len(each.parts) > 1 for each in nodes if each.rule == "term"):
                raise UndecidedError
            result = _value(nodes[0], variables)
            for operator, each in zip(tokens, nodes[1:], strict=True):
                result = _apply(operator.text, result, _value(each, variables))
            return result
        case "primary" if tokens and not nodes:
            return _literal(tokens, variables)
        case "payload" if "PAYLOAD" in variables:
            return variables["PAYLOAD"]
        case "constant":
            return {"TRUE": True, "true": True, "FALSE": False, "false": False}.get(tokens[0].text)
        case "expr" | "logic" | "compare" | "sum" | "term" | "factor" | "primary" if len(nodes) == 1:
            if {token.text for token in tokens} <= {"(", ")"}:
                return _value(nodes[0], variables)
    raise UndecidedError


def _literal(tokens: list[Token], variables: Mapping[str, Any]) -> Any:
    last = tokens[-1]
    if last.kind == "variable":
        if last.plain not in variables:
            raise UndecidedError
        return variables[last.plain]
    if last.kind == "number":
        number = float(last.text) if "." in last.text else int(last.text)
        return -number if len(tokens) > 1 else number
    return last.plain


def _apply(operator: str, left: Any, right: Any) -> Any:
    if operator == "+" and (isinstance(left, str) or isinstance(right, str)):
        return _text(left) + _text(right)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in (left, right)):
        raise UndecidedError
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    raise UndecidedError  # how a division rounds


def _text(value: Any) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise UndecidedError  # how a broker writes it
