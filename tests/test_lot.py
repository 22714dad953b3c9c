"""LoT: every form of the language is read, every well-known mistake is told at its place, nothing makes it raise."""

import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lot import Analysis, Definition, Problem, analyse


def in_action(*lines: str, trigger: str = 'ON TOPIC "in/+"') -> str:
    """Put statements into an action that knows the variables x, y and s."""
    known = ['SET "x" WITH 1', 'SET "y" WITH 2', 'SET "s" WITH "text"']
    return f"DEFINE ACTION A\n{trigger} DO\n" + indent("\n".join([*known, *lines]), "    ")


def in_model(*lines: str) -> str:
    return 'DEFINE MODEL M WITH TOPIC "m"\n' + indent("\n".join(lines), "    ")


def in_route(*lines: str) -> str:
    return "DEFINE ROUTE R WITH TYPE ANY\n" + indent("\n".join(lines), "    ")


def in_rule(*lines: str) -> str:
    return 'DEFINE RULE R WITH PRIORITY 200 FOR Publish TO TOPIC "a/#"\n' + indent("\n".join(lines), "    ")


def told(code: str) -> list[tuple[str, str, int, int]]:
    return [(each.severity, each.rule, each.line, each.column) for each in analyse(code).problems]


def rules(code: str) -> list[str]:
    return [problem.rule for problem in analyse(code).problems]


# Forms that work

STATEMENTS = [
    'SET "a" WITH 5',
    'SET "a" TO -3.14',
    'SET "a" AS "text"',
    'SET "a" WITH PAYLOAD',
    'SET "a" WITH PAYLOAD AS BYTES',
    'SET "a" WITH (GET TOPIC "n" AS INT)',
    'SET "a" WITH (GET TOPIC "n" AS INT + 1)',
    'SET "a" WITH (GET TOPIC "n/" + {s} + "/v" AS INT) + 1',
    'SET "a" WITH (GET TOPIC "n/" + {s})',
    'SET "a" WITH (GET TOPIC {s} + "/v")',
    'SET "a" WITH GET TOPIC "n/+/v"',
    'SET "a" WITH GET JSON "a.b" IN PAYLOAD AS DOUBLE',
    'SET "a" WITH (GET JSON "a" IN {s} AS BOOL)',
    'SET "a" WITH GET ENV "HOST"',
    'SET "a" WITH GET SECRET "KEY"',
    'SET "a" WITH GET MODEL "M" FROM "Db" WHERE id EQUALS "x"',
    'SET "a" WITH TOPIC POSITION 2',
    'SET "a" WITH TOPIC POSITION 10',
    'SET "a" WITH TIMESTAMP "UNIX-MS"',
    'SET "a" WITH RANDOM UUID',
    'SET "a" WITH RANDOM BETWEEN 1 AND 6',
    'SET "a" WITH RANDOM DOUBLE BETWEEN 0.0 AND {x}',
    'SET "a" WITH FILTER PAYLOAD USING REGEX "[0-9]+"',
    'SET "a" WITH REPLACE "x" WITH {s} IN "an x here"',
    'SET "a" WITH TRIM PAYLOAD',
    'SET "a" WITH PAYLOAD AND_THEN FILTER USING REGEX "[a-z]" AND_THEN REPLACE "a" WITH "b" AND_THEN TRIM',
    'SET "a" WITH IF {x} >= 100 THEN "full" ELSE "open"',
    'SET "a" WITH (IF {x} > 1 THEN 1 ELSE IF {x} > 0 THEN 2 ELSE 3)',
    'SET "a" WITH ({x} + {y}) * 2 / 3 % 4 - 1',
    'SET "a" WITH NOT {x} == 1 AND ({y} != 2 OR {s} CONTAINS "t")',
    'SET "a" WITH {s} STARTS_WITH "t" OR {s} ENDS_WITH "t" OR {s} NOT EQUALS "t"',
    'SET "a" WITH {s} EQUALS EMPTY',
    'SET "a" WITH TRUE',
    'SET "a" WITH false',
    'SET "a" WITH { "k": {x}, "l": { "m": [1, {y}, "z"] } }',
    'SET "a" WITH {}',
    'SET "a" WITH []',
    'SET "a" WITH "it\'s -- not a // comment /* at all"',
    'SET "a" WITH "{\\"k\\": \\"v\\"}"',
    'SET "a" WITH "C:\\dir\\"',
    """SET "a" WITH '{"k": 1}'""",
    'PUBLISH TOPIC "out" WITH {x}',
    "PUBLISH TOPIC {s} WITH {x}",
    'PUBLISH TOPIC "out/" + {s} + "/v" WITH "a: " + {x} + " °C"',
    'PUBLISH TOPIC REPLACE "N" WITH {s} IN "out/N" WITH {x}',
    'PUBLISH TOPIC "out" WITH PAYLOAD AS BYTES',
    'PUBLISH TOPIC "WITH/THEN/DO" WITH "IF"',
    'KEEP TOPIC "state/" + {s} WITH {x}',
    'KEEP ENV "COUNT" WITH {x} + 1',
    'KEEP SECRET "KEY" WITH {s}',
    'DELETE ENV "COUNT"',
    'DELETE SECRET "KEY"',
    'PUBLISH MODEL M TO "out" WITH v = {x}',
    'PUBLISH MODEL "M" TO "out/" + {s} WITH\n    v = {x}\n    limits.low = 2.5,\n    at = TIMESTAMP "UTC"',
    'IF {x} > 1 THEN\n    SET "x" WITH 0',
    'IF {x} > 1 THEN\n    SET "x" WITH 0\nELSE IF {x} < 0 THEN\n    SET "x" WITH 1\nELSE\n    SET "x" WITH 2',
    'IF {x} > 1 THEN\n    SET "x" WITH 0\n\nELSE\n    IF {y} == 1 THEN\n        SET "x" WITH 2',
    (
        'SWITCH {s}\n    CASE "a" THEN\n        SET "x" WITH 1\n    CASE 2 THEN\n        SET "x" WITH 2\n'
        '    DEFAULT THEN\n        SET "x" WITH 3'
    ),
    'LOOP\n    SET "x" WITH {x} + 1\nUNTIL {x} == 10',
    "CALL ACTION Other",
    "CALL ACTION Other WITH a = {x}, b = ({y} + 1) RETURN p, q",
    "CALL ACTION Other\n    WITH a = {x}, b = {y}\n    RETURN p, q",
    'CALL PYTHON "S.f" WITH () RETURN AS {r}',
    'CALL PYTHON "S.f" WITH ({x}, PAYLOAD) RETURN AS {r}\nSET "a" WITH {r}',
    'CALL PYTHON "S.f"\n    WITH ({x},\n          {y})\n    RETURN AS {r}',
    'CALL MCP "R.tool" WITH (q = "x", n = 3) RETURN AS {r}',
    'CALL LLM "R" METHOD "generate" WITH prompt = "a" + {s} RETURN AS {r}',
    'CALL AGENT "R" METHOD "run" WITH task = "a" RETURN AS {r}',
    'TRIGGER "Event" TO Route WITH "x"',
    'TRIGGER "Event" TO Route',
    'PUBLISH TOPIC "out" WITH {\n    "a": {x},\n    "b": "c"\n}',
    'SET "a" WITH ({x}\n    + {y})',
    'SET "a" WITH IF {x} > 1 THEN "b"\n             ELSE IF {x} > 0 THEN "c"\n             ELSE "d"',
    'SET "a" WITH (IF {x} > 1 THEN "b"\n          ELSE "c")',
    'PUBLISH MODEL M TO "out" WITH\n    v = IF {x} > 1 THEN "b"\n        ELSE "c"',
]

TRIGGERS = [
    "ON EVERY 10 SECONDS",
    "ON EVERY 500 MILLISECONDS",
    "ON EVERY 1 MONTH",
    'ON EVERY WEEKDAY AT "06:00"',
    'ON EVERY SUNDAY AT "06:00:30"',
    'ON TOPIC "a/+/b/#"',
    'ON CHANGE "a/b"',
    "ON START",
    "ON CONNECT",
    "ON DISCONNECT",
    "ON SUBSCRIBE",
    'ON SUBSCRIBE "a/#"',
]

MEMBERS = [
    'ADD STRING "f"',
    'ADD DOUBLE "f" WITH TOPIC "a/+/b" AS TRIGGER',
    'ADD DOUBLE "f" WITH (flow * 60 + limits.low)',
    'ADD DOUBLE "f" WITH (GET TOPIC "a" AS DOUBLE / GET TOPIC "b" AS DOUBLE * 100)',
    'ADD STRING "f" WITH IF (GET TOPIC "a" AS INT > 80) THEN "high" ELSE "low"',
    'ADD STRING "f" WITH IF flow > 1 THEN "b"\n      ELSE "c"',
    'ADD STRING "f" WITH TIMESTAMP "UTC"',
    'ADD BOOL "f" WITH FALSE',
    'ADD INT "f" WITH -5',
    'ADD DOUBLE "f" WITH (VALUE * 2)',
    'ADD TIMESTAMP "f"',
    'ADD OBJECT "f" WITH { "a": 1 }',
    'ADD OBJECT "f"\n    ADD DOUBLE "low" WITH 2.5\n    ADD ARRAY "more"\n        ADD STRING "deep"',
    'ADD COLLECTION "f" OF "Other"',
    'ADD COLLECTION "f" OF Other',
    'STORE IN "Db" WITH TABLE "t"',
    'STORE IN "Db"\n    WITH TABLE "t" WHEN {flow} > 50',
    'FETCH FROM "Db" WITH TABLE "t" WHEN id EQUALS "x" LIMIT 10',
]

MODELS = [
    'DEFINE MODEL M WITH TOPIC "a/+/b"',
    'DEFINE MODEL M COLLAPSED\n    ADD STRING "f"',
    'DEFINE MODEL M COLLAPSED FROM P WITH TOPIC "m"',
    'DEFINE MODEL M FROM P COLLAPSED\n    ADD STRING "f"',
    'DEFINE MODEL M KEEP WITH TOPIC "m" QOS1',
    'DEFINE MODEL M WITH TOPIC "m" RETAIN',
    'DEFINE MODEL M WITH TOPIC "m" WITH RETAIN AND QOS1',
    'DEFINE MODEL M WITH TOPIC "m" WITH FORMAT PROTOBUF',
]

OTHERS = [
    in_rule("ALLOW"),
    in_rule('IF USER IN GROUP "o" OR USER IS "root" THEN', "    ALLOW", "ELSE", "    DENY"),
    in_rule('IF NOT (CLIENTID IS "a" AND USER HAS AllowedX) THEN', "    DENY", "ELSE", "    ALLOW"),
    in_rule('IF CLIENTID MATCHES REGEX "a.*" THEN', "    DENY", "ELSE", "    IF CLIENTID IS TOPIC POSITION 2 THEN",
            "        ALLOW", "    ELSE", "        DENY"),
    in_rule('IF ENDPOINT IS "e" OR TOPIC EXISTS "a/" + {x} THEN', "    DENY", "ELSE", "    ALLOW"),
    in_rule('IF GET TOPIC "state/mode" IS "open" THEN', "    ALLOW", "ELSE", "    DENY"),
    in_rule('IF TOPIC EXISTS REPLACE "+" WITH "x" IN "a/+" THEN', "    ALLOW", "ELSE", "    DENY"),
    in_rule('IF TOPIC EXISTS REPLACE "N" WITH {x} IN "a/" + {x} AND USER IS "u" THEN', "    ALLOW", "ELSE", "    DENY"),
    "DEFINE RULE R WITH PRIORITY 100 FOR AssetManagementCreation\n    ALLOW",
    in_route("ADD SQL_CONFIG", '    WITH SERVER "h"', "    WITH PORT '5432'", "    WITH USE_SSL FALSE",
             '    WITH PASSWORD GET SECRET "P"', "ADD EVENT E", '    WITH SOURCE_TOPIC "a"', '    WITH QUERY "SELECT',
             '        1"'),
    in_route("ADD MAPPING m", '    WITH SOURCE_TOPIC "a"', "    WITH EVERY 5 SECONDS", '    ADD TAG "t"',
             '        WITH ADDRESS "1"', "        WITH OFFSET -1", "        WITH WRITABLE TRUE"),
    in_route("ADD SOURCE_CONFIG", "    WITH BROKER SELF", '    WITH PASSWORD "{secret.P}"'),
    ('DEFINE PANEL "P"\n    WITH TITLE "t"\n    WITH LAYOUT "grid" COLUMNS 2\n    WITH STATE PUBLISHED\n'
     '    ADD COMPONENT "c" WITH TYPE "gauge"\n        SET RANGE FROM 0 TO 10\n        BIND VALUE TO TOPIC "a"\n'
     '        ON CLICK DO\n            PUBLISH TOPIC "b" WITH "1"'),
    'DEFINE THEME "T"\n    SET "PRIMARY" WITH "#0055aa"',
    'DEFINE ACTION C\nINPUT a AS JSON\nINPUT b AS BOOL\nDO\n    SET "c" WITH {a} + {b}\nRETURN\n    OUTPUT c',
    'DEFINE ACTION C\nDO\n    PUBLISH TOPIC "a" WITH 1',
    'DEFINE ACTION C ON START DO\n    PUBLISH TOPIC "a" WITH 1',
    'DEFINE ACTION C\nON START DO PUBLISH TOPIC "a" WITH 1',
    "# Script Name: S\ndef f(x):\n\treturn {'a': x}",
    "",
    "\n \n",
]  # fmt: skip

WORKING = [
    *map(in_action, STATEMENTS),
    *(in_action(trigger=trigger) for trigger in TRIGGERS),
    *(in_model('ADD INT "t" WITH TOPIC "t" AS TRIGGER', member) for member in MEMBERS),
    *MODELS,
    *OTHERS,
]


@pytest.mark.parametrize("code", WORKING)
def test_a_working_form_has_no_problem(code: str) -> None:
    assert analyse(code).problems == ()


@pytest.mark.parametrize("code", WORKING)
@pytest.mark.parametrize("change", ["\r\n", " \n", "\n\n"], ids=["CRLF", "trailing space", "blank lines"])
def test_line_ends_and_blank_lines_mean_nothing(code: str, change: str) -> None:
    if change == "\n\n" and "SELECT\n" in code:
        return  # a blank line ends a string that was not closed

    assert analyse("\ufeff" + code.replace("\n", change)).problems == ()


# The examples of our reference

REFERENCE = {
    "PumpWatch": """\
DEFINE ACTION PumpWatch
ON TOPIC "plant/+/pump/flow" DO
    SET "line" WITH TOPIC POSITION 2
    SET "flow" WITH PAYLOAD AS DOUBLE
    IF {flow} < 2.5 THEN
        PUBLISH TOPIC "plant/" + {line} + "/alarm" WITH "low flow: " + {flow}
""",
    "Spread": """\
DEFINE ACTION Spread
INPUT hi AS DOUBLE
INPUT lo AS DOUBLE
DO
    SET "gap" WITH ({hi} - {lo})
RETURN
    OUTPUT gap
""",
    "Fan": """\
DEFINE ACTION Fan
ON TOPIC "fan/mode" DO
    SET "mode" WITH PAYLOAD
    SWITCH {mode}
        CASE "auto" THEN
            PUBLISH TOPIC "fan/set" WITH "1"
        DEFAULT THEN
            KEEP TOPIC "fan/last" WITH {mode}
""",
    "Mean": """\
DEFINE ACTION Mean
ON TOPIC "series" DO
    SET "series" WITH PAYLOAD
    CALL PYTHON "Stats.mean" WITH ({series}) RETURN AS {out}
    PUBLISH TOPIC "stats/mean" WITH GET JSON "mean" IN {out} AS DOUBLE
""",
    "Event": """\
DEFINE ACTION Event
ON TOPIC "plant/+/flow" DO
    SET "line" WITH TOPIC POSITION 2
    SET "flow" WITH PAYLOAD AS DOUBLE
    PUBLISH MODEL PumpEvent TO "plant/" + {line} + "/event" WITH
        flow = {flow}
        limits.low = 2.5
        at = TIMESTAMP "UTC"
""",
    "Count": """\
DEFINE ACTION Count
ON EVERY 1 SECOND DO
    SET "n" WITH (GET TOPIC "count/total" AS INT)
    KEEP TOPIC "count/total" WITH ({n} + 1)
    PUBLISH TOPIC "count/label" WITH IF {n} >= 100 THEN "full" ELSE "open"
""",
    "PumpState": """\
DEFINE MODEL PumpState COLLAPSED WITH TOPIC "plant/pump1/state"
    ADD DOUBLE "flow" WITH TOPIC "plant/pump1/flow" AS TRIGGER
    ADD DOUBLE "flow_lpm" WITH (flow * 60)
    ADD STRING "at" WITH TIMESTAMP "UTC"
    ADD STRING "site" WITH "north"
""",
    "PumpStateRich": """\
DEFINE MODEL PumpStateRich FROM PumpState WITH TOPIC "plant/pump1/rich"
    ADD OBJECT "limits"
        ADD DOUBLE "low" WITH 2.5
        ADD DOUBLE "high" WITH 9.0
    STORE IN "PlantDb" WITH TABLE "pump_state"
""",
    "OperatorsOnly": """\
DEFINE RULE OperatorsOnly WITH PRIORITY 200 FOR Publish TO TOPIC "plant/cmd/#"
    IF USER IN GROUP "operators" OR USER IS "root" THEN
        ALLOW
    ELSE
        DENY
""",
    "PlantDb": """\
DEFINE ROUTE PlantDb WITH TYPE POSTGRESQL
    ADD SQL_CONFIG
        WITH SERVER "db.example.internal"
        WITH PORT '5432'
        WITH DATABASE "plant"
        WITH USERNAME "lot"
        WITH PASSWORD GET SECRET "PLANT_DB"
    ADD EVENT SaveFlow
        WITH SOURCE_TOPIC "plant/save/flow"
        WITH DESTINATION_TOPIC "plant/save/flow/result"
        WITH QUERY "INSERT INTO flow(v) VALUES ({payload.json.flow})"
""",
    "ToCloud": """\
DEFINE ROUTE ToCloud WITH TYPE MQTT_BRIDGE
    ADD SOURCE_CONFIG
        WITH BROKER SELF
    ADD DESTINATION_CONFIG
        WITH BROKER_ADDRESS "broker.example.org"
        WITH BROKER_PORT '1883'
        WITH CLIENT_ID "edge1"
    ADD MAPPING flow
        WITH SOURCE_TOPIC "plant/+/flow"
        WITH DESTINATION_TOPIC "site1/+/flow"
        WITH DIRECTION "out"
""",
    "PumpRoom": """\
DEFINE PANEL "PumpRoom"
    WITH TITLE "Pump room"
    WITH LAYOUT "grid" COLUMNS 2
    WITH STATE PUBLISHED
    ADD COMPONENT "flow" WITH TYPE "gauge"
        SET UNIT "l/s"
        SET RANGE FROM 0 TO 10
        BIND VALUE TO TOPIC "plant/pump1/flow"
""",
}
PROGRAM = "\n".join(REFERENCE.values())


def test_the_examples_of_the_reference_have_no_problem() -> None:
    analysis = analyse(PROGRAM)

    assert analysis.problems == ()
    assert [definition.name for definition in analysis.definitions] == list(REFERENCE)


# Mistakes: the program, and all that is told of it

E, W = "error", "warning"
NO_POSITION = """DEFINE RULE R WITH PRIORITY 200 FOR Connect
    IF CLIENTID IS TOPIC POSITION 0 THEN
        ALLOW
    ELSE
        DENY"""
REACHED = {
    "action": 'DEFINE ACTION B\nON TOPIC "go/+" DO\n    PUBLISH TOPIC "z" WITH 1',
    "event": in_route("ADD EVENT e", '    WITH SOURCE_TOPIC "go/text"'),
    "model": 'DEFINE MODEL M\n    ADD INT "f" WITH TOPIC "go/+" AS TRIGGER',
    "panel": 'DEFINE PANEL "P"\n    ADD COMPONENT "c" WITH TYPE "t"\n        BIND VALUE TO TOPIC "go/text"',
}

MISTAKES = [
    # 1
    ('DEFINE ACTION A\nON START DO\n\tPUBLISH TOPIC "a" WITH 1',
     (E, "tab-indent", 3, 1), '    PUBLISH TOPIC "a" WITH 1'),
    ('DEFINE ACTION A\nON START DO\n   PUBLISH TOPIC "a" WITH 1', (E, "indent-width", 3, 4),
     '    PUBLISH TOPIC "a" WITH 1'),
    (in_model('ADD OBJECT "o"', '  ADD INT "f"'), (E, "indent-width", 3, 7), '        ADD INT "f"'),
    # 2
    ('  DEFINE ACTION A\nON START DO\n    PUBLISH TOPIC "a" WITH 1', (E, "define-column", 1, 3), "DEFINE ACTION A"),
    # 3
    ('DEFINE ACTION A\n    ON START DO\n        PUBLISH TOPIC "a" WITH 1',
     (E, "trigger-indented", 2, 5), "ON START DO"),
    # 4
    ('DEFINE ACTION "A"\nON START DO\n    PUBLISH TOPIC "a" WITH 1', (E, "quoted-name", 1, 15), "DEFINE ACTION A"),
    ('DEFINE MODEL "M" COLLAPSED', (E, "quoted-name", 1, 14), "DEFINE MODEL M COLLAPSED"),
    ('DEFINE RULE "R" WITH PRIORITY 100 FOR Connect\n    DENY', (E, "quoted-name", 1, 13),
     "DEFINE RULE R WITH PRIORITY 100 FOR Connect"),
    ('DEFINE ROUTE "My R" WITH TYPE EMAIL', (E, "quoted-name", 1, 14), None),
    ('DEFINE MODEL M FROM "P"', (E, "quoted-parent", 1, 21), "DEFINE MODEL M FROM P"),
    (in_action('CALL ACTION "Other"'), (E, "quoted-name", 6, 17), "    CALL ACTION Other"),
    # names that the broker does not take
    *(
        (in_action().replace("ACTION A", f"ACTION {name}"), (E, "name-characters", 1, 15), fixed)
        for name, fixed in (
            ("Größe", None),
            ("a.b", "DEFINE ACTION a_b"),
            ("my-action", "DEFINE ACTION my_action"),
            ("2nd", "DEFINE ACTION _2nd"),
            ("A:", "DEFINE ACTION A"),
            ("a" * 256, None),
        )
    ),
    ("DEFINE MODEL m.n COLLAPSED", (E, "name-characters", 1, 14), "DEFINE MODEL m_n COLLAPSED"),
    ("DEFINE ROUTE r-s WITH TYPE EMAIL", (E, "name-characters", 1, 14), "DEFINE ROUTE r_s WITH TYPE EMAIL"),
    ("DEFINE RULE é WITH PRIORITY 100 FOR Connect\n    DENY", (E, "name-characters", 1, 13), None),
    *(
        (in_action().replace("ACTION A\n", f"ACTION{behind}"), (E, "no-name", 1, column), None)
        for behind, column in (("\n", 14), (" ", 15))
    ),
    ('DEFINE MODEL WITH TOPIC "a"', (E, "no-name", 1, 14), None),
    ("DEFINE ROUTE WITH TYPE EMAIL", (E, "no-name", 1, 14), None),
    ("DEFINE RULE WITH PRIORITY 100 FOR Connect\n    DENY", (E, "no-name", 1, 13), None),
    ('DEFINE PANEL\n    WITH TITLE "t"', (E, "no-name", 1, 13), None),
    # 5
    ('"DEFINE ACTION A\nON START DO\n    PUBLISH TOPIC \'a\' WITH 1"', (E, "quoted-body", 1, 1), None),
    ('-- about\n"DEFINE MODEL M COLLAPSED"', (E, "quoted-body", 2, 1), None),
    # 6
    ('DEFINE ACTION A\nON TOPIC "t"\n    PUBLISH TOPIC "a" WITH 1', (E, "missing-do", 2, 1), 'ON TOPIC "t" DO'),
    ('DEFINE ACTION A\nINPUT x AS INT\n    PUBLISH TOPIC "a" WITH {x}', (E, "missing-do", 2, 1), None),
    ('DEFINE ACTION A\nON EVERY 5 DO\n    PUBLISH TOPIC "a" WITH 1', (E, "missing-unit", 2, 10), None),
    ('DEFINE ACTION A\nON EVERY 5 FORTNIGHTS DO\n    PUBLISH TOPIC "a" WITH 1', (E, "missing-unit", 2, 12), None),
    ('DEFINE ACTION A\nON EVERY SECONDS DO\n    PUBLISH TOPIC "a" WITH 1', (E, "missing-unit", 2, 1), None),
    ('DEFINE ACTION A\nON EVERY MONDAY DO\n    PUBLISH TOPIC "a" WITH 1', (E, "missing-unit", 2, 1), None),
    # 7
    ('DEFINE ACTION A\n    PUBLISH TOPIC "a" WITH 1', (E, "no-trigger", 1, 1), None),
    # 8
    (in_action('PUBLISH TOPIC "a" {x}'), (E, "missing-with", 6, 5), '    PUBLISH TOPIC "a" WITH {x}'),
    (in_action('KEEP TOPIC "a"'), (E, "missing-with", 6, 5), None),
    ('DEFINE ACTION A\nON START DO PUBLISH TOPIC "a" 1', (E, "missing-with", 2, 13),
     'ON START DO PUBLISH TOPIC "a" WITH 1'),
    (in_action('PUBLISH TOPIC "a" WITH'), (E, "missing-value", 6, 23), None),
    (in_action('PUBLISH TOPIC "a" MESSAGE {x}'), (E, "message-keyword", 6, 23), '    PUBLISH TOPIC "a" WITH {x}'),
    # 9
    (in_action('SET "x" 5'), (E, "set-without-with", 6, 5), '    SET "x" WITH 5'),
    (in_action('SET "x"'), (E, "set-without-with", 6, 5), None),
    (in_action('IF {x} > 1 THEN SET "x" 5'), (E, "set-without-with", 6, 21), '    IF {x} > 1 THEN SET "x" WITH 5'),
    (in_action('SET "x" = 5'), (E, "set-without-with", 6, 5), '    SET "x" WITH 5'),
    (in_action("LOOP", '    SET "x" := {x} + 1', "UNTIL {x} > 3"), (E, "set-without-with", 7, 9),
     '        SET "x" WITH {x} + 1'),
    # 10
    (in_action("IF {x} > 5", '    SET "x" WITH 1'), (E, "missing-then", 6, 5), "    IF {x} > 5 THEN"),
    (in_action('SET "x" WITH IF {x} > 1 "a" ELSE "b"'), (E, "missing-then", 6, 18), None),
    (in_action("IF {x} > 5 THEN", '    SET "x" WITH 1', "END IF"), (E, "end-if", 8, 5), None),
    (in_action("IF {x} > 5 THEN", '    SET "x" WITH 1', "END"), (E, "end-if", 8, 5), None),
    # 11
    (in_action('SET "x" WITH TOPIC POSITION 0'),
     (E, "topic-position-zero", 6, 18), '    SET "x" WITH TOPIC POSITION 1'),
    (in_action('PUBLISH TOPIC "a/" + TOPIC POSITION -1 WITH 1'),
     (E, "topic-position-zero", 6, 26), '    PUBLISH TOPIC "a/" + TOPIC POSITION 1 WITH 1'),
    (NO_POSITION, (E, "topic-position-zero", 2, 20), "    IF CLIENTID IS TOPIC POSITION 1 THEN"),
    *(
        (in_action(f'SET "x" WITH TOPIC POSITION {none}'), (E, "topic-position-zero", 6, 18),
         '    SET "x" WITH TOPIC POSITION 1')
        for none in ("0.5", "0.0", ".5", "-1.5")
    ),
    *(
        (in_action(f'SET "x" WITH TOPIC POSITION {none}'), (E, "topic-position-no-integer", 6, 18), None)
        for none in ('"0"', '"2"', "1.5")
    ),
    # 12
    (in_action('SET "x" WITH PAYLOAD', trigger="ON EVERY 5 SECONDS"), (W, "payload-without-message", 6, 18), None),
    (in_action('SET "x" WITH PAYLOAD', trigger="ON START"), (W, "payload-without-message", 6, 18), None),
    # 13
    (in_model('ADD INT "f" WITH VALUE 5'), (E, "with-value", 2, 22), '    ADD INT "f" WITH 5'),
    (in_model('ADD INT "f" WITH VALUE -5'), (E, "with-value", 2, 22), '    ADD INT "f" WITH -5'),
    ("DEFINE MODEL M WITH COLLAPSED", (E, "with-collapsed", 1, 16), "DEFINE MODEL M COLLAPSED"),
    ("DEFINE MODEL M WITH FORMATS JSON", (E, "with-formats", 1, 16), "DEFINE MODEL M WITH FORMAT JSON"),
    # 14
    (in_model('ADD INT "f" WITH TOPIC "a"'), (W, "no-field-trigger", 1, 1), None),
    # 15
    ("DEFINE MODEL C FROM P\nDEFINE MODEL P COLLAPSED", (W, "defined-later", 1, 21), None),
    (in_action("CALL ACTION Later") + '\nDEFINE ACTION Later\nDO\n    PUBLISH TOPIC "a" WITH 1',
     (W, "defined-later", 6, 17), None),
    (in_action('CALL PYTHON "S.f" WITH () RETURN AS {x}') + "\n# Script Name: S", (W, "defined-later", 6, 17), None),
    # 16
    ('DEFINE ACTION A\nINPUT a AS INT\nDO\n    SET "b" WITH {a}\nRETURN b, a', (E, "return-on-one-line", 5, 1), None),
    ('DEFINE ACTION A\nINPUT a AS INT\nDO\n    SET "b" WITH {a}\nRETURN OUTPUT b', (E, "return-on-one-line", 5, 1),
     "RETURN\n    OUTPUT b"),
    ('DEFINE ACTION A\nINPUT a AS INT\nDO\n    SET "b" WITH {a}\nRETURN\n    OUTPUT a, b',
     (E, "return-on-one-line", 6, 5), "    OUTPUT a\n    OUTPUT b"),
    ("DEFINE ACTION A\nINPUT a AS INT\nDO\n    CALL ACTION B\nRETURN {a}", (E, "return-on-one-line", 5, 1), None),
    # 17
    (REFERENCE["Spread"] + in_action("CALL ACTION Spread WITH hi = 1, lo = 0 RETURN p, q"), (E, "return-count", 13, 17),
     None),
    # 18
    (in_action('CALL MCP "R" TOOL "t" WITH (q = "x") RETURN AS {r}'), (E, "call-mcp-tool", 6, 5),
     '    CALL MCP "R.t" WITH (q = "x") RETURN AS {r}'),
    (in_action('CALL MCP "R"', '    TOOL "t"', '    WITH (q = "x")', "    RETURN AS {r}"),
     (E, "call-mcp-tool", 6, 5), None),
    (in_action('CALL MCP "R" WITH (q = "x") TOOL "t"'), (E, "call-mcp-tool", 6, 5), None),
    # 19
    ("DEFINE ROUTE R WITH TYPE", (E, "route-without-type", 1, 1), None),
    ("DEFINE ROUTE R\n    ADD X_CONFIG", (E, "route-without-type", 1, 1), None),
    (in_route('ADD TAG "t"', '    WITH ADDRESS "1"'), (E, "tag-outside-mapping", 2, 5), None),
    (in_route("ADD METADATA", '    WITH DESCRIPTION "d"'), (E, "metadata", 2, 5), None),
    # 20
    (in_rule('IF USER IS "x" THEN', "    ALLOW"), (W, "if-without-else", 2, 5), None),
    ("DEFINE RULE R WITH PRIORITY 99 FOR Connect\n    DENY", (W, "reserved-priority", 1, 29), None),
    # 22
    (in_route("ADD C", '    WITH PASSWORD "hunter2"'), (W, "literal-secret", 3, 23),
     '        WITH PASSWORD GET SECRET "R_PASSWORD"'),
    (in_route("ADD C", "    WITH PASSWORD hunter2"), (W, "literal-secret", 3, 23), None),
    (in_action('SET "api_key" WITH "hunter2"'), (W, "literal-secret", 6, 24), None),
    # 23
    (in_action('SET "z" WITH (GET TOPIC "n" * 2)'), (W, "uncast-arithmetic", 6, 33), None),
    (in_action('SET "z" WITH (GET TOPIC "n" + 2)'), (W, "uncast-arithmetic", 6, 33), None),
    (in_action('SET "z" WITH (GET JSON "a" IN PAYLOAD / 2)'), (W, "uncast-arithmetic", 6, 43), None),
    (in_action('SET "z" WITH PAYLOAD', 'SET "q" WITH ({x} - {z})'), (W, "uncast-arithmetic", 7, 23), None),
    # 24
    *(
        (in_action(*lines) + "\n" + listener, (W, "keep-does-not-deliver", 5 + len(lines), column), None)
        for *lines, column, listener in (
            ('KEEP TOPIC "go/" + {s} WITH 1', 16, REACHED["action"]),
            ('KEEP TOPIC ("go/" + {s}) WITH 1', 17, REACHED["event"]),
            ('KEEP TOPIC "go/text" WITH 1', 16, REACHED["panel"]),
            ('KEEP TOPIC "go/text" WITH 1', 16, REACHED["model"]),
            ('SET "t" WITH "go/" + {s}', "KEEP TOPIC {t} WITH 1", 16, REACHED["panel"]),
            ('SET "t" WITH "go"', 'KEEP TOPIC {t} + "/text" WITH 1', 16, REACHED["event"]),
            ('SET "t" WITH PAYLOAD', 'KEEP TOPIC REPLACE "N" WITH {t} IN "go/N" WITH 1', 24, REACHED["model"]),
            ('KEEP TOPIC "z" WITH 1', 16, REACHED["action"] + '\nDEFINE ACTION C\nON TOPIC "z" DO\n    CALL ACTION D'),
        )
    ),
    # 25
    ('DEFIN ACTION A\nON START DO\n    PUBLISH TOPIC "a" WITH 1', (W, "misspelled-keyword", 1, 1), "DEFINE ACTION A"),
    ('DEFINE ACTOIN A\nON START DO\n    PUBLISH TOPIC "a" WITH 1', (W, "misspelled-keyword", 1, 8), "DEFINE ACTION A"),
    ('DEFINE ACTION A\nON TOPICO "t" DO\n    PUBLISH TOPIC "a" WITH 1',
     (W, "misspelled-keyword", 2, 4), 'ON TOPIC "t" DO'),
    (in_action('publish TOPIC "a" WITH 1'), (W, "keyword-case", 6, 5), '    PUBLISH TOPIC "a" WITH 1'),
    *(
        (in_action(line), (W, "keyword-case", 6, 5 + line.index("with")), "    " + line.replace("with", "WITH"))
        for line in ('PUBLISH TOPIC "a" with 1', 'KEEP TOPIC "a" + {s} with 1', 'SET "x" with 1')
    ),
    ('DEFINE ACTION A\nON TOPIC "t" do\n    PUBLISH TOPIC "a" WITH 1', (W, "keyword-case", 2, 14), 'ON TOPIC "t" DO'),
    ('DEFINE ACTION A\nON EVERY 5 seconds DO\n    PUBLISH TOPIC "a" WITH 1',
     (W, "keyword-case", 2, 12), "ON EVERY 5 SECONDS DO"),
    ("DEFINE ROUTE R with TYPE EMAIL", (W, "keyword-case", 1, 16), "DEFINE ROUTE R WITH TYPE EMAIL"),
    (in_action('set "x" WITH 1'), (W, "keyword-case", 6, 5), '    SET "x" WITH 1'),
    (in_route("ADD MAPPING m", "    WITH EVERY 5 seconds"), (W, "keyword-case", 3, 22),
     "        WITH EVERY 5 SECONDS"),
    ('DEFINE PANEL "P"\n    with TITLE "t"', (W, "keyword-case", 2, 5), '    WITH TITLE "t"'),
    (in_action("WHILE {x} > 1 DO", '    SET "x" WITH 1'), (W, "unknown-keyword", 6, 5), None),
    # 26
    (in_model('ADD FLOAT "f"'), (W, "float-type", 2, 9), '    ADD DOUBLE "f"'),
    # 27
    (in_model('ADD OBJECT "o"', '    ADD INT "f" WITH 1,'), (W, "trailing-comma", 3, 27), '        ADD INT "f" WITH 1'),
    (in_model('ADD INT "f" WITH 1 ,'), (W, "trailing-comma", 2, 24), '    ADD INT "f" WITH 1'),
    # 28
    (in_action('PUBLISH TOPIC "a" WITH PAYLOAD AS BYTES AND_THEN TRIM AND_THEN TRIM'),
     (E, "transform-after-bytes", 6, 45), None),
    (in_action('SET "z" WITH PAYLOAD AS BYTES AND_THEN TRIM'), (W, "transform-after-bytes", 6, 35), None),
    # 29
    ('DEFINE MODEL M COLLAPSED WITH TOPIC "m"\n    ADD INT "f"\n' + in_action(trigger='ON TOPIC "m/f"'),
     (W, "collapsed-subtopic", 4, 10), None),
    ('DEFINE MODEL M COLLAPSED WITH TOPIC "+"\n    ADD INT "text"\n' + REACHED["panel"],
     (W, "collapsed-subtopic", 5, 29), None),
    # 30
    *(
        (in_action(line), (W, "ambiguous-get-topic", 6, 5 + line.index("+")), None)
        for line in (
            'SET "z" WITH GET TOPIC "a/b" + {x}',
            'SET "z" WITH GET TOPIC "a/" + {s} + "b"',
            'SET "z" WITH GET TOPIC "a" AS INT + GET TOPIC "b" AS INT',
            'PUBLISH TOPIC "z" WITH GET TOPIC "a" + " C"',
            'PUBLISH TOPIC GET TOPIC "a" + "/x" WITH 1',
            'IF GET TOPIC "a" AS INT + 1 > 5 THEN\n        SET "x" WITH 1',
        )
    ),
    (in_action("LOOP", '    SET "x" WITH 1', 'UNTIL GET TOPIC "a" AS INT + 1 > 5'),
     (W, "ambiguous-get-topic", 8, 32), None),
    (in_action('SET "z" WITH (GET TOPIC "a/b" + {x})'), (W, "ambiguous-get-topic", 6, 35), None),
    (in_model('ADD INT "f" WITH GET TOPIC "a" AS INT + 1'), (W, "ambiguous-get-topic", 2, 43), None),
    # 31
    (in_action('PUBLISH TOPIC "in/" + {s} WITH 1'), (W, "own-trigger", 6, 19), None),
    (in_action('SET "t" WITH "in/" + {s}', "PUBLISH TOPIC {t} WITH 1"), (W, "own-trigger", 7, 19), None),
    (in_action('PUBLISH MODEL M TO "in/a" WITH v = 1'), (W, "own-trigger", 6, 24), None),
    # characters without their other half
    (in_action('SET "x" WITH "open', 'SET "y" WITH 1'), (E, "unbalanced-quote", 6, 18), None),
    (in_action('SET "x" WITH (1 + 2', 'SET "y" WITH 1'), (E, "unbalanced-bracket", 6, 18), None),
    (in_action('SET "x" WITH {y', 'SET "y" WITH 1'), (E, "unbalanced-bracket", 6, 18), None),
    (in_action('SET "x" WITH 1 + 2)'), (E, "unbalanced-bracket", 6, 23), None),
    # old spellings, and what else is only doubtful
    (in_action('SET "x" WITH TIMESTAMP WITH "ISO"'), (W, "old-spelling", 6, 18), '    SET "x" WITH TIMESTAMP "ISO"'),
    (in_action("IF {x} = 1 THEN", '    SET "x" WITH 1'), (W, "old-spelling", 6, 12), "    IF {x} == 1 THEN"),
    (in_action("IF {x} EQUAL 1 THEN", '    SET "x" WITH 1'), (W, "old-spelling", 6, 12), "    IF {x} EQUALS 1 THEN"),
    ('DEFINE ACTION A\nON START\nDO\n    PUBLISH TOPIC "a" WITH 1', (W, "old-spelling", 3, 1), None),
    (in_action() + '\nDESCRIPTION "d"', (W, "old-spelling", 6, 1), None),
    (in_model('ADD "f"'), (W, "untyped-field", 2, 5), None),
    (in_action('SET "x" WITH 1 -- one'), (W, "comment", 6, 20), None),
    (in_action("// one", '/* two */ SET "x" WITH 1'), (W, "comment", 6, 5), None),
    (in_action("# one"), (W, "hash-comment", 6, 5), None),
    (in_action('PUBLISH TOPIC "a" WITH {never}'), (W, "unknown-variable", 6, 28), None),
    (in_action('PUBLISH TOPIC "a" WITH x'), (W, "bare-name", 6, 28), '    PUBLISH TOPIC "a" WITH {x}'),
    ("DEFINE MODEL M COLLAPSED\nDEFINE MODEL M COLLAPSED", (W, "duplicate-definition", 2, 1), None),
    (in_action("ELSE", '    SET "x" WITH 1'), (W, "unreadable", 6, 5), None),
    (in_action('    SET "x" WITH 1'), (W, "unexpected-indent", 6, 9), None),
    (in_action("IF {x} > 1 THEN", 'SET "x" WITH 1'), (W, "empty-block", 6, 5), None),
    (in_action('SET "x" WITH 1 2'), (W, "unreadable", 6, 20), None),
    (in_action('SET "x" WITH 1 +'), (W, "unfinished", 6, 20), None),
    ("DEFINE RULE R WITH PRIORITY 100 FOR Conect\n    DENY", (W, "unknown-scope", 1, 37), None),
    ("just words", (W, "no-definition", 1, 1), None),
    ("words\nDEFINE MODEL M COLLAPSED", (W, "outside-definition", 1, 1), None),
    ("-addModel DEFINE MODEL M COLLAPSED", (W, "command-in-code", 1, 1), None),
    ("DEFINE THING t", (W, "unknown-keyword", 1, 8), None),
]  # fmt: skip


@pytest.mark.parametrize(("code", "expected", "suggestion"), MISTAKES)
def test_a_mistake_is_told_once_at_its_place(
    code: str, expected: tuple[str, str, int, int], suggestion: str | None
) -> None:
    if expected[1] in ("unknown-keyword", "no-definition") and "DEFINE THING" in code:
        assert expected in told(code)
        return

    assert told(code) == [expected]
    (problem,) = analyse(code).problems
    assert problem.suggestion == suggestion
    assert problem.message.endswith(".")
    assert "valid" not in problem.message
    assert "\n" not in problem.message


@pytest.mark.parametrize(("code", "expected", "suggestion"), [row for row in MISTAKES if row[2]])
def test_the_suggestion_is_right(code: str, expected: tuple[str, str, int, int], suggestion: str) -> None:
    lines = code.split("\n")
    lines[expected[2] - 1] = suggestion
    if expected[1] == "trigger-indented":
        lines[2] = lines[2][4:]

    assert rules("\n".join(lines)) == []


LOOK_ALIKES = [
    *(in_action(statement) for statement in ('SET "a" WITH "\t"', 'SET "a" WITH "DEFINE ACTION"')),
    in_action('PUBLISH TOPIC "out/MESSAGE" WITH "MESSAGE"'),  # 8
    in_action('SET "TOPIC POSITION 0" WITH "TOPIC POSITION 0"'),  # 11
    in_action('SET "a" WITH GET TOPIC "PAYLOAD"', trigger="ON EVERY 1 DAY"),  # 12
    ('DEFINE MODEL P COLLAPSED\n    ADD INT "f" WITH TOPIC "a" AS TRIGGER\n'
     'DEFINE MODEL M FROM P\n    ADD INT "g" WITH TOPIC "b"'),  # 14: the parent has one
    'DEFINE MODEL M FROM Elsewhere\n    ADD INT "g" WITH TOPIC "b"',  # 14: the parent may have one
    REFERENCE["Spread"] + in_action("CALL ACTION Spread WITH hi = 1, lo = 0 RETURN p"),  # 17
    in_route("ADD C", '    WITH PASSWORD ""', '    WITH USERNAME "hunter2"'),  # 22
    in_action('SET "a" WITH "n: " + GET TOPIC "n"', 'SET "b" WITH PAYLOAD + " and 1"'),  # 23: joins texts
    in_action('KEEP TOPIC "go" WITH 1', 'PUBLISH TOPIC "go" WITH 1')
    + '\nDEFINE ACTION B\nON TOPIC "go" DO\n    PUBLISH TOPIC "z" WITH 1',  # 24: it is published as well
    in_action('PUBLISH TOPIC "in" WITH 1', 'PUBLISH TOPIC "in/" + {s} + "/out" WITH 1', 'KEEP TOPIC "off" WITH 1'),
    in_action('PUBLISH TOPIC "$SYS/a" WITH 1', trigger='ON TOPIC "+/a"'),  # 31: not reached by +
    'DEFINE MODEL M WITH TOPIC "m"\n    ADD INT "f"\n' + in_action(trigger='ON TOPIC "m/f"'),  # 29: not collapsed
]  # fmt: skip


@pytest.mark.parametrize("code", LOOK_ALIKES)
def test_what_only_looks_like_a_mistake_is_none(code: str) -> None:
    assert analyse(code).problems == ()


def test_tabs_throughout_are_an_old_form_and_no_error() -> None:
    code = 'DEFINE MODEL M COLLAPSED\n\tADD OBJECT "o"\n\t\tADD INT "f"'

    assert told(code) == [("warning", "tab-indent", 2, 1)]


def test_more_than_four_spaces_throughout_a_block_are_no_error_but_a_ragged_block_is() -> None:
    wide = 'DEFINE ACTION A\nON START DO\n     PUBLISH TOPIC "a" WITH 1'

    assert told(wide) == [("warning", "indent-width", 3, 6)]
    assert told(wide + '\n     PUBLISH TOPIC "b" WITH 1')[1:] == [("warning", "indent-width", 4, 6)]
    assert ("error", "unexpected-indent", 4, 5) in told(wide + '\n    PUBLISH TOPIC "b" WITH 1')
    assert ("error", "indent-width", 6, 6) in told(in_action(' SET "x" WITH 1'))


def test_a_missing_return_is_only_doubtful() -> None:
    code = REFERENCE["Spread"] + in_action("CALL ACTION Spread WITH hi = 1, lo = 0")

    assert told(code) == [("warning", "return-count", 13, 17)]


@pytest.mark.parametrize(
    ("line", "rules", "corrected"),
    [
        (
            'PUBLISH TOPIC "a" MESSAGE TOPIC POSITION 0',
            [("message-keyword", 23), ("topic-position-zero", 31)],
            'PUBLISH TOPIC "a" WITH TOPIC POSITION 1',
        ),
        (
            'SET "a" TOPIC POSITION 0 + TOPIC POSITION 0',
            [("set-without-with", 5), ("topic-position-zero", 13), ("topic-position-zero", 32)],
            'SET "a" WITH TOPIC POSITION 1 + TOPIC POSITION 1',
        ),
        (
            'publish topic "a" with TOPIC POSITION 0',
            [("keyword-case", 5), ("keyword-case", 13), ("keyword-case", 23), ("topic-position-zero", 28)],
            'PUBLISH TOPIC "a" WITH TOPIC POSITION 1',
        ),
        ('PUBLISH TOPIC "a"', [("missing-with", 5)], None),
    ],
)
def test_every_mistake_of_a_line_is_told_with_the_line_as_it_should_be(
    line: str, rules: list[tuple[str, int]], corrected: str | None
) -> None:
    problems = analyse(f'DEFINE ACTION A\nON TOPIC "x/+" DO\n    {line}').problems

    assert [(each.rule, each.column) for each in problems] == rules
    assert {each.suggestion for each in problems} == {corrected and f"    {corrected}"}


@pytest.mark.parametrize(
    ("code", "rules", "corrected"),
    [
        (
            'DEFINE MODEL "M" FROM "P" WITH COLLAPSED WITH FORMATS JSON',
            ["quoted-name", "quoted-parent", "with-collapsed", "with-formats"],
            "DEFINE MODEL M FROM P COLLAPSED WITH FORMAT JSON",
        ),
        ('define model "M" collapsed', ["keyword-case"] * 3 + ["quoted-name"], "DEFINE MODEL M COLLAPSED"),
        ("DEFINE ACTION a-b ON START do", ["name-characters", "keyword-case"], "DEFINE ACTION a_b ON START DO"),
        ("DEFINE ROUTE r-s with TYPE EMAIL", ["name-characters", "keyword-case"], "DEFINE ROUTE r_s WITH TYPE EMAIL"),
        (
            'DEFINE ACTION A\nINPUT a AS INT\nDO\n\tCALL ACTION "B" WITH x = a, y = a',
            ["tab-indent", "quoted-name", "bare-name", "bare-name"],
            "    CALL ACTION B WITH x = {a}, y = {a}",
        ),
        (
            'DEFINE ACTION A\nON TOPIC "t" DO\n  SET "x" TOPIC POSITION 0',
            ["indent-width", "set-without-with", "topic-position-zero"],
            '    SET "x" WITH TOPIC POSITION 1',
        ),
        ("DEFINE ACTION A\nON EVERY 5 seconds", ["missing-do", "keyword-case"], "ON EVERY 5 SECONDS DO"),
    ],
)
def test_a_suggestion_has_the_corrections_of_all_that_is_told_of_its_line(
    code: str, rules: list[str], corrected: str | None
) -> None:
    problems = analyse(code).problems

    assert sorted(each.rule for each in problems) == sorted(rules)
    if corrected:
        assert {each.suggestion for each in problems} == {corrected}
        again = analyse("\n".join([*code.split("\n")[:-1], corrected]))
        assert not again.errors


def test_every_mistake_of_a_program_is_told_at_once() -> None:
    code = """\
DEFINE ACTION "One"
ON TOPIC "a/+" DO
    SET "n" 5
    IF {n} > 3
        PUBLISH TOPIC "b"
    SET "p" WITH TOPIC POSITION 0

DEFINE ROUTE Two
    ADD METADATA
"""

    analysis = analyse(code)

    assert [(problem.rule, problem.line) for problem in analysis.errors] == [
        ("quoted-name", 1),
        ("set-without-with", 3),
        ("missing-then", 4),
        ("missing-with", 5),
        ("topic-position-zero", 6),
        ("route-without-type", 8),
        ("metadata", 9),
    ]
    assert analysis.errors == analysis.problems


def test_no_secret_is_repeated() -> None:
    code = in_route("ADD C", '    WITH API_KEY "hunter2"') + "\n" + in_action('KEEP SECRET "K" WITH "hunter2"')

    assert rules(code) == ["literal-secret", "literal-secret"]
    assert "hunter2" not in repr(analyse(code).problems)


# Definitions


def test_a_definition_tells_what_it_needs_takes_and_gives() -> None:
    code = """\
-- before
DEFINE ACTION Work
INPUT a AS DOUBLE
INPUT b AS JSON
DO
    -- within
    CALL ACTION Other WITH x = {a} RETURN c
    CALL PYTHON "Script.f" WITH ({b}) RETURN AS {d}
    CALL PYTHON "Script.g" WITH ({b}) RETURN AS {d}
    CALL MCP "Tools.search" WITH (q = "x") RETURN AS {e}
    CALL LLM "Llm" METHOD "m" WITH p = "x" RETURN AS {e}
    TRIGGER "Event" TO Db WITH {e}
    SET "f" WITH GET MODEL "M" FROM "Db2" WHERE id EQUALS "x"
    PUBLISH MODEL M TO "m" WITH f = {f}
RETURN
    OUTPUT c
    OUTPUT d


-- after
DEFINE ACTION Runs
ON EVERY 5 SECONDS DO
    PUBLISH TOPIC "a" WITH 1
DESCRIPTION "runs"
"""

    work, runs = analyse(code).definitions

    assert work == Definition(
        kind="action",
        name="Work",
        line=2,
        text=code[code.index("DEFINE") : code.index("\n\n\n")],
        verb="-addAction",
        needs=(
            ("action", "Other"),
            ("python", "Script"),
            ("route", "Tools"),
            ("route", "Llm"),
            ("route", "Db"),
            ("route", "Db2"),
            ("model", "M"),
        ),
        inputs=(("a", "DOUBLE"), ("b", "JSON")),
        outputs=("c", "d"),
        description=None,
        triggered=False,
    )
    assert runs == Definition(
        kind="action",
        name="Runs",
        line=21,
        text=code[code.index("DEFINE ACTION Runs") :].rstrip(),
        verb="-addAction",
        description="runs",
        triggered=True,
    )


def test_a_model_needs_its_parent_its_routes_and_the_models_it_collects() -> None:
    code = """\
DEFINE MODEL M FROM P COLLAPSED
    ADD COLLECTION "c" OF "Item"
    STORE IN "Db" WITH TABLE "t"
    FETCH FROM "Db" WITH TABLE "t" WHEN id EQUALS "x"
"""

    (model,) = analyse(code).definitions

    assert model.needs == (("model", "P"), ("model", "Item"), ("route", "Db"))


def test_each_kind_has_its_verb() -> None:
    code = PROGRAM + '\nDEFINE THEME "T"\n    SET "A" WITH "b"\n# Script Name: S\nx = 1\n'

    verbs = {definition.kind: definition.verb for definition in analyse(code).definitions}

    assert verbs == {
        "action": "-addAction",
        "model": "-addModel",
        "rule": "-addRule",
        "route": "-addRoute",
        "panel": "-addPanel",
        "theme": "-addTheme",
        "python": "-addPython",
    }


def test_a_script_goes_on_to_the_next_definition_or_script() -> None:
    first, second = "# Script Name: A\ndef f():\n    DEFINE = 1", '# Script Name: B\n"""DEFINE ACTION"""'
    code = f"{first}\n\n{second}\n\nDEFINE MODEL M COLLAPSED\n"

    found = [(each.kind, each.name, each.line, each.text) for each in analyse(code).definitions]

    assert found == [
        ("python", "A", 1, first),
        ("python", "B", 5, second),
        ("model", "M", 8, "DEFINE MODEL M COLLAPSED"),
    ]


def test_the_older_word_for_a_panel_is_read() -> None:
    (panel,) = analyse('DEFINE VISU "Old room"\n    WITH TITLE "t"').definitions

    assert (panel.kind, panel.name, panel.verb) == ("panel", "Old room", "-addPanel")


# Whatever the text


def check_places(code: str, analysis: Analysis) -> None:
    lines = code.removeprefix("\ufeff").split("\n")
    for problem in analysis.problems:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
    assert list(analysis.problems) == sorted(analysis.problems, key=lambda each: (each.line, each.column))
    at = 0
    for definition in analysis.definitions:
        at = code.index(definition.text, at) + len(definition.text)


@given(st.text(max_size=300))
@settings(deadline=None, max_examples=200)
def test_any_text_gives_a_report(code: str) -> None:
    check_places(code, analyse(code))
    check_places("DEFINE ACTION A\n" + code, analyse("DEFINE ACTION A\n" + code))


TOKENS = [
    *sorted(set(re.findall(r"\"[^\"\n]*\"|\w+|[^\w\s]| +|\n", PROGRAM))),
    *("\t", "\0", "é", "'", "/*", "--", "\r\n"),
]


@given(st.lists(st.sampled_from(TOKENS), max_size=60).map("".join))
@settings(deadline=None, max_examples=300)
def test_any_words_give_a_report(body: str) -> None:
    for kind in ("ACTION", "MODEL", "RULE", "ROUTE", "PANEL", "THEME"):
        code = f"DEFINE {kind} A\n{body}"
        check_places(code, analyse(code))


@given(
    program=st.sampled_from([*REFERENCE.values(), *WORKING]),
    place=st.floats(0, 1),
    length=st.integers(0, 8),
    put=st.sampled_from(TOKENS),
)
@settings(deadline=None, max_examples=500)
def test_a_changed_program_gives_a_report(program: str, place: float, length: int, put: str) -> None:
    at = int(place * len(program))
    code = program[:at] + put + program[at + length :]

    check_places(code, analyse(code))


@pytest.mark.parametrize(
    "code",
    [
        "(" * 50_000,
        'SET "x" WITH ' + "(1+" * 5000,
        'SET "x" WITH ' + "1+" * 9000 + "1",
        "IF {x} THEN " * 1500 + 'SET "x" WITH 1',
        'SET "x" WITH ' + "IF 1 THEN 2 ELSE " * 1000 + "1",
        "\n".join(" " * 4 * depth + "IF {x} THEN" for depth in range(1, 300)),
        "/*" * 20_000,
        '"' * 20_001,
        '"\n' * 5000,
        "\\" * 20_000,
    ],
    ids=range(10),
)
def test_extreme_text_gives_a_report(code: str) -> None:
    code = "DEFINE ACTION A\nON START DO\n    " + code

    check_places(code, analyse(code))


HEAD = 'DEFINE ACTION A\nON TOPIC "t" DO\n    '
SIZE = 1 << 16


@pytest.mark.parametrize(
    "code",
    [
        HEAD + 'SET "a" WITH "' + '\\"' * (2 * SIZE),
        *(HEAD + 'SET "a" WITH ' + each * (SIZE // len(each)) for each in ('"', "'", "{", "(", ",", "--", "/*", "<")),
        *(HEAD + each * (SIZE // len(each)) for each in ("x\n", '"\n', '"\\"\n', "DO\n", "/*\n", "    }\n")),
        *(HEAD + 'SET "a" WITH 1\n' + ("    " + each * 1000 + "\n") * 9 for each in ("a = ", "IF ", "x + ")),
        "".join(f"DEFINE MODEL M{n}\n" for n in range(8_000)),
        "".join(f'DEFINE MODEL M{n} FROM M{n + 1}\n    ADD INT "f" WITH TOPIC "t"\n' for n in range(4000)),
        (
            "DEFINE ACTION A\n"
            + "".join(f'ON TOPIC "a/+/{n}" DO\n' for n in range(5000))
            + "".join(f'    PUBLISH TOPIC "a/b/{n}" WITH 1\n' for n in range(5000))
        ),
        HEAD + "".join(f'SET "v{n}" WITH ({{v{n - 1}}} + {n} * 3) / 2\n    ' for n in range(4_000)),
    ],
    ids=range(22),
)
def test_no_text_takes_for_ever(code: str) -> None:
    """What was quadratic took minutes, longer than pytest-timeout lets a test take."""
    check_places(code, analyse(code))


@pytest.mark.parametrize("name", ['"', '""', '"a', 'a"', '"a"b"', '"1"', '" "'])
def test_quotes_where_the_name_is_are_told(name: str) -> None:
    assert analyse(f'DEFINE ACTION {name}\nON START DO\n    SET "x" WITH 1').errors


def test_an_open_string_is_one_problem_however_many_quotes_follow() -> None:
    assert told(HEAD + 'SET "a" WITH "' + '\\"' * 100) == [("error", "unbalanced-quote", 3, 18)]


def test_of_a_very_long_text_only_the_first_lines_are_examined() -> None:
    code = "DEFINE MODEL M COLLAPSED\n" + "\n" * 100_000 + "    nonsense\nDEFINE MODEL N COLLAPSED"

    assert told(code) == [("warning", "too-many-lines", 100_001, 1)]
    assert [each.name for each in analyse(code).definitions] == ["M", "N"]


# The package


def test_the_parser_library_is_loaded_with_the_first_analysis() -> None:
    program = (
        "import sys, lot; assert 'lark' not in sys.modules; lot.analyse('DEFINE MODEL M'); assert 'lark' in sys.modules"
    )

    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=True)


def test_a_problem_is_a_value() -> None:
    assert Problem("error", 1, 1, "a", "b.") == Problem("error", 1, 1, "a", "b.", None)
