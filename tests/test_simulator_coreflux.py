"""What the Coreflux personality of the development broker does, right and wrong, seen by a plain MQTT client."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from simulator import lot
from simulator.coreflux import ACCOUNTS, COMMAND, OUTPUT, ROOT, Coreflux, Options
from simulator.faults import Fault, Wrong
from tests.brokers import Embedded, Seen

WAIT_S = 5
REFUSED = 0x80

ACTION = 'DEFINE ACTION Beat\nON EVERY 5 SECONDS DO\n    PUBLISH TOPIC "beat" WITH "x"'
CALLABLE = 'DEFINE ACTION Spread\nINPUT hi AS DOUBLE\nINPUT lo AS DOUBLE\nDO\n    SET "gap" WITH ({hi} - {lo})\nRETURN\n    OUTPUT gap'  # noqa: E501
MODEL = 'DEFINE MODEL Pump COLLAPSED WITH TOPIC "pump/state"\n    ADD DOUBLE "flow" WITH TOPIC "pump/flow" AS TRIGGER'
RULE = "DEFINE RULE Closed WITH PRIORITY 200 FOR Publish\n    DENY"
ROUTE = 'DEFINE ROUTE Mail WITH TYPE EMAIL\n    ADD SMTP_CONFIG\n        WITH HOST "mail.example.org"'
PANEL = 'DEFINE PANEL "Room"\n    WITH TITLE "Pump room"\n    WITH STATE PUBLISHED'
THEME = 'DEFINE THEME "Dark"\n    SET "PRIMARY" WITH "#0055aa"'
PYTHON = "# Script Name: Stats\ndef mean(values):\n    return sum(values) / len(values)"

DEPLOYED = [
    ("Action", "Beat", ACTION, "Actions/Beat"),
    ("Model", "Pump", MODEL, "Models/Pump"),
    ("Rule", "Closed", RULE, "Rules/Closed"),
    ("Route", "Mail", ROUTE, "Routes/Mail"),
    ("Panel", "Room", PANEL, "VoT/Panels/Room"),
    ("Theme", "Dark", THEME, "VoT/Themes/Dark"),
]


class Console:
    """A paho client: everything that it hears, and commands with their replies. A context manager."""

    def __init__(self, broker: Embedded, username: str = "root", *, v5: bool = True) -> None:
        version = MQTTProtocolVersion.MQTTv5 if v5 else MQTTProtocolVersion.MQTTv311
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=version, reconnect_on_failure=False)
        if username:
            self.client.username_pw_set(username, ACCOUNTS[username].password)
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_subscribe
        self.client.on_disconnect = self._on_disconnect
        self.seen: list[Seen] = []
        self.cut_off = False
        self._broker = broker
        self._granted: dict[int, int] = {}
        self._changed = threading.Condition()
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        self.client.connect(self._broker.host, self._broker.port)
        self.client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic_filter: str) -> int:
        """Subscribe and give what SUBACK says."""
        _, mid = self.client.subscribe(topic_filter, 1)
        assert mid is not None
        self.wait(lambda: mid in self._granted)
        return self._granted[mid]

    def publish(self, topic: str, text: str) -> None:
        """Publish and return when it is acknowledged."""
        message = self.client.publish(topic, text, 1)
        message.wait_for_publish(WAIT_S)
        assert message.is_published()

    def send(self, text: str) -> str:
        """Send a command, and give the identifier that it carries."""
        request_id = f"r{next(self._ids)}"
        self.publish(COMMAND, f"{text} -requestId {request_id}")
        return request_id

    def command(self, text: str) -> dict[str, Any]:
        """Send a command and give its reply."""
        request_id = self.send(text)
        return self.reply(request_id)

    def reply(self, request_id: str) -> dict[str, Any]:
        """Wait for the reply to a command."""
        self.wait(lambda: any(each.get("requestId") == request_id for each in self.replies()))
        return next(each for each in self.replies() if each.get("requestId") == request_id)

    def texts(self, topic: str = OUTPUT) -> list[str]:
        """Give what came on a topic."""
        return [each.payload.decode() for each in self.seen if each.topic == topic]

    def replies(self) -> list[dict[str, Any]]:
        """Give the replies that are JSON."""
        return [json.loads(text) for text in self.texts() if text.startswith("{") and text.endswith("}")]

    def shown(self, topic: str, text: str) -> Seen:
        """Wait until a topic below `$SYS/Coreflux` has said this."""
        matches: Callable[[Seen], bool] = lambda each: (each.topic, each.payload) == (f"{ROOT}/{topic}", text.encode())  # noqa: E731
        self.wait(lambda: any(map(matches, self.seen)))
        return next(filter(matches, self.seen))

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), self.seen

    def _on_message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        with self._changed:
            self.seen.append(Seen(message.topic, bytes(message.payload), message.qos, message.retain, {}))
            self._changed.notify_all()

    def _on_subscribe(
        self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        with self._changed:
            self._granted[mid] = reasons[0].value
            self._changed.notify_all()

    def _on_disconnect(self, *_details: object) -> None:
        with self._changed:
            self.cut_off = True
            self._changed.notify_all()


class Plant:
    """A broker with the personality, and who talks to it."""

    def __init__(self, stack: ExitStack, **options: Any) -> None:
        self.coreflux = Coreflux(Options(**options))
        self.broker = stack.enter_context(Embedded(personality=self.coreflux))
        self._stack = stack

    def console(self, username: str = "root", *, hears: str = f"{ROOT}/#", v5: bool = True) -> Console:
        """Log in and listen."""
        console = self._stack.enter_context(Console(self.broker, username, v5=v5))
        assert console.subscribe(hears) < REFUSED
        return console


@pytest.fixture
def plant() -> Iterator[Callable[..., Plant]]:
    """Start a broker with the arguments of `Options`."""
    with ExitStack() as stack:
        yield lambda **options: Plant(stack, **options)


@pytest.fixture
def root(plant: Callable[..., Plant]) -> Console:
    """Root, on a broker as it is by default."""
    return plant().console()


# Commands


def test_a_reply_is_an_envelope_with_the_identifier_of_its_request(root: Console) -> None:
    """Section 3, whole."""
    reply = root.command(f"-addRoute {ROUTE}")

    assert reply == {
        "success": True,
        "command": "AddRoute",
        "requestId": "r1",
        "message": "Route 'Mail' added successfully!",
        "entityType": "Route",
        "entityName": "Mail",
        "data": {},
    }


def test_a_reply_has_an_identifier_only_if_its_request_had(root: Console) -> None:
    """It is opt-in."""
    root.publish(COMMAND, "-listRoutes")

    root.wait(lambda: root.replies() != [])

    assert root.replies() == [
        {"success": True, "command": "ListRoutes", "message": "No routes registered.", "data": []}
    ]


def test_everybody_who_listens_gets_every_reply(plant: Callable[..., Plant]) -> None:
    """One shared topic."""
    broker = plant()
    one, other = broker.console(), broker.console("admin")

    request_id = one.send("-listRoutes")

    assert one.reply(request_id) == other.reply(request_id)


@pytest.mark.parametrize("verb", ["-listRoutes", "--list-routes"])
def test_a_verb_has_two_spellings(root: Console, verb: str) -> None:
    """Camel case with one dash, kebab case with two."""
    assert root.command(verb)["command"] == "ListRoutes"


@pytest.mark.parametrize(
    "typed", ["-noSuchThing", "-listActions", "-mqttPacketTrace", "-ADDROUTE", "hello", '"-listRoutes"']
)
def test_what_is_no_verb_is_said_to_be_unknown(root: Console, typed: str) -> None:
    """Among them some that one would guess."""
    reply = root.command(typed)

    assert (reply["success"], reply["message"]) == (False, f"Unknown command: {typed}")
    assert "command" not in reply


def test_quotes_hold_an_argument_together(root: Console) -> None:
    """And are not a part of it."""
    assert root.command('-setEnv "SITE=north hall"')["success"] is True

    assert root.command("-listEnv")["data"] == [{"name": "SITE", "value": "north hall"}]
    assert root.command("-setEnv SITE=north hall")["success"] is False


def test_a_secret_is_never_told(root: Console) -> None:
    """Neither when it is set nor when all are listed."""
    root.command("-setSecret DB=hush-hush")

    assert root.command("-listSecrets")["data"] == [{"name": "DB"}]
    assert "hush-hush" not in "".join(root.texts())
    assert root.command("-removeSecret DB")["success"] is True
    assert root.command("-removeSecret DB")["success"] is False


def test_update_data_has_no_reply(root: Console) -> None:
    """It is the only one."""
    root.send("-updateData")
    root.command("-listRoutes")

    assert [reply["command"] for reply in root.replies()] == ["ListRoutes"]
    assert len(root.texts(f"{ROOT}/Stats")) == 1


@pytest.mark.parametrize("key", ["", "template", "code"])
def test_a_template_comes_in_one_of_three_places(plant: Callable[..., Plant], key: str) -> None:
    """And it does not parse as it is."""
    console = plant(template_key=key).console()

    data = console.command("-routeCode EMAIL")["data"]

    template = data[key] if key else data
    assert isinstance(template, str)
    assert "ADD METADATA" in template
    assert console.command(f"-addRoute {template}")["success"] is False
    assert "EMAIL" in console.command("-listTemplates")["data"]


# Entities


@pytest.mark.parametrize(("kind", "name", "source", "topic"), DEPLOYED, ids=lambda value: str(value)[:6])
def test_an_entity_is_shown_after_the_reply_until_it_is_removed(
    root: Console, kind: str, name: str, source: str, topic: str
) -> None:
    """Its topic has its source."""
    added = root.command(f"-add{kind} {source}")
    root.shown(topic, source)
    heard = [each.topic for each in root.seen]
    removed = root.command(f"-remove{kind} {name}")
    root.shown(topic, "")

    assert (added["success"], added["entityType"], added["entityName"]) == (True, kind, name)
    assert heard.index(OUTPUT) < heard.index(f"{ROOT}/{topic}")
    assert removed["success"] is True
    assert root.command(f"-remove{kind} {name}")["success"] is False


def test_scripts_are_shown_in_one_list(root: Console) -> None:
    """With the functions that actions call."""
    assert root.command(f"-addPython {PYTHON}")["success"] is True

    root.wait(lambda: root.texts(f"{ROOT}/Python/Scripts") != [])

    (scripts,) = map(json.loads, root.texts(f"{ROOT}/Python/Scripts"))
    assert scripts == [{"ScriptName": "Stats", "Code": PYTHON, "Functions": ["mean"]}]


def test_a_description_has_a_topic_of_its_own(root: Console) -> None:
    """And a route tells how it is."""
    root.command(f'-addAction {ACTION}\nDESCRIPTION "beats"')
    root.command(f"-addRoute {ROUTE}")

    root.shown("Actions/Beat/Description", "beats")
    root.wait(lambda: root.texts(f"{ROOT}/Routes/Mail/status") != [])

    status = json.loads(root.texts(f"{ROOT}/Routes/Mail/status")[0])
    assert (status["name"], status["type"], status["health"]) == ("Mail", "EMAIL", "Green")
    assert root.command("-listRoutes")["data"] == [
        {"name": "Mail", "type": "EMAIL", "connection": "Connected", "health": "Green"}
    ]


def test_routes_tell_how_they_are_again_and_again(plant: Callable[..., Plant]) -> None:
    """The status is not retained."""
    console = plant(status_every_s=0.02).console()
    console.command(f"-addRoute {ROUTE}")

    console.wait(lambda: len(console.texts(f"{ROOT}/Routes/Mail/status")) > 2)


def test_entities_lag_behind_their_reply(plant: Callable[..., Plant]) -> None:
    """As long as a test wants."""
    console = plant(entity_delay_s=60).console()

    console.command(f"-addAction {ACTION}")
    console.command("-listRoutes")

    assert console.texts(f"{ROOT}/Actions/Beat") == []


@pytest.mark.parametrize("retained", [True, False])
def test_who_comes_later_is_told_with_the_flag_or_without(plant: Callable[..., Plant], retained: bool) -> None:
    """Both occur."""
    broker = plant(retained=retained)
    console = broker.console()
    console.command(f"-addAction {ACTION}")
    console.shown("Actions/Beat", ACTION)

    late = broker.console(hears=f"{ROOT}/Actions/#")

    assert late.shown("Actions/Beat", ACTION).retain is retained


def test_a_removed_entity_may_stay_in_sight(plant: Callable[..., Plant]) -> None:
    """Nobody says that its topic is cleared."""
    broker = plant(cleared=False, entity_delay_s=0)
    console = broker.console()
    console.command(f"-addAction {ACTION}")
    console.command("-removeAction Beat")
    console.command("-listRoutes")

    assert broker.console(hears=f"{ROOT}/Actions/#").shown("Actions/Beat", ACTION)
    assert broker.coreflux.entities() == {}


def test_the_broker_says_what_it_is(root: Console) -> None:
    """And which rules it was born with."""
    root.shown("Version", '{"version": "2.14.3"}')

    root.wait(lambda: any(each.topic == f"{ROOT}/Rules/AllowPublishTopic" for each in root.seen))


def test_entities_outlive_a_restart(plant: Callable[..., Plant]) -> None:
    """They are the personality's, and it stays."""
    broker = plant()
    broker.console().command(f"-addAction {ACTION}")

    broker.broker.restart()

    assert broker.console().shown("Actions/Beat", ACTION)


@pytest.mark.parametrize(("kind", "name", "source"), [row[:3] for row in DEPLOYED if row[0] != "Rule"])
def test_what_is_no_rule_is_replaced_in_place(root: Console, kind: str, name: str, source: str) -> None:
    """No removal needed."""
    changed = source.replace("pump", "tank").replace("beat", "pulse").replace("example", "test").replace("00", "ff")
    root.command(f"-add{kind} {source}")

    assert root.command(f"-add{kind} {changed}")["success"] is True
    assert len([each for each in root.command("-listEntities")["data"] if each["name"] == name]) == 1


def test_a_rule_is_not_replaced(root: Console) -> None:
    """It must be removed before."""
    root.command(f"-addRule {RULE}")

    again = root.command(f"-addRule {RULE}")

    assert (again["success"], again["message"]) == (False, "A rule with the name 'Closed' already exists")


def test_built_in_rules_stay(root: Console) -> None:
    """Whatever removes them."""
    root.command(f"-addRule {RULE}")

    assert root.command("-removeRule AllowPublishTopic")["success"] is False
    assert root.command("-removeAllRules")["success"] is True

    rules = [each["name"] for each in root.command("-listEntities")["data"] if each["type"] == "Rule"]
    assert "AllowPublishTopic" in rules
    assert "Closed" not in rules


@pytest.mark.parametrize(("reserves", "priority", "success"), [(True, 99, False), (True, 100, True), (False, 99, True)])
def test_low_priorities_are_the_broker_s_own(
    plant: Callable[..., Plant], reserves: bool, priority: int, success: bool
) -> None:
    """On some brokers."""
    console = plant(reserves_priorities=reserves).console()

    assert console.command(f"-addRule {RULE.replace('200', str(priority))}")["success"] is success


@pytest.mark.parametrize(
    ("verb", "added", "source"),
    [
        ("-removeAllActions", "-addAction", ACTION),
        ("-removeAllModels", "-addModel", MODEL),
        ("-removeAllRoutes", "-addRoute", ROUTE),
        ("-removeAllThemes", "-addTheme", THEME),
        ("-removeAllPythonScripts", "-addPython", PYTHON),
    ],
)
def test_all_of_a_kind_go_at_once(plant: Callable[..., Plant], verb: str, added: str, source: str) -> None:
    """And nothing else."""
    broker = plant()
    console = broker.console()
    console.command(f"-addRule {RULE}")
    console.command(f"{added} {source}")

    assert console.command(verb)["success"] is True

    assert broker.coreflux.entities() == {("Rule", "Closed"): RULE}


def test_what_lacks_something_is_accepted_and_waits(root: Console) -> None:
    """For a parent, a callee, a script."""
    child = 'DEFINE MODEL Child FROM Pump WITH TOPIC "child"'
    caller = (
        'DEFINE ACTION Caller\nON START DO\n    CALL ACTION Beat\n    CALL PYTHON "Stats.mean" WITH ({x}) RETURN AS {y}'
    )
    assert root.command("-getPendingStatus")["data"] == []
    assert root.command(f"-addModel {child}")["success"] is True
    assert root.command(f"-addAction {caller}")["success"] is True

    waiting = {each["name"]: each["missing"] for each in root.command("-getPendingStatus")["data"]}
    assert waiting == {"Child": ["Model Pump"], "Caller": ["Action Beat", "Python Stats"]}
    assert root.command("-runAction Caller")["success"] is False

    for added in (f"-addModel {MODEL}", f"-addAction {ACTION}", f"-addPython {PYTHON}"):
        root.command(added)
    assert root.command("-getPendingStatus")["data"] == []
    assert root.command("-lotDiagnostic action Caller")["data"]["missing"] == []


def test_a_call_takes_back_what_the_action_gives(root: Console) -> None:
    """It is counted when both are there."""
    caller = "DEFINE ACTION Caller\nON START DO\n    CALL ACTION Spread WITH hi = 1, lo = 0 RETURN a, b"
    root.command(f"-addAction {CALLABLE}")

    refused = root.command(f"-addAction {caller}")

    assert (refused["errors"][0]["line"], refused["errors"][0]["column"]) == (3, 17)
    assert root.command(f"-addAction {caller.removesuffix(', b')}")["success"] is True


# Running


def test_an_action_gives_its_outputs_where_its_inputs_decide_them(root: Console) -> None:
    """It is a difference, and no more."""
    root.command(f"-addAction {CALLABLE}")

    reply = root.command('-runAction Spread {"hi": 5, "lo": 2}')

    assert reply["data"] | {"traceId": ""} == {
        "action": "Spread",
        "traceId": "",
        "status": "success",
        "published": [],
        "outputs": {"gap": 3},
    }
    assert "outputs" not in root.command('-runAction Spread {"hi": 5}')["data"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ('SET "out" WITH "a" + {x}', {"out": "a2"}),
        ('SET "out" WITH {x} * (3 + 1)', {"out": 8}),
        ('SET "out" WITH -1 + {x} + 1', {"out": 2}),
        ('SET "out" WITH TRUE', {"out": True}),
        ('SET "y" WITH {x}\n    SET "out" WITH {y}', {"out": 2}),
        ('SET "out" WITH 1 + {x} * 3', None),
        ('SET "out" WITH {x} / 3', None),
        ('SET "out" WITH GET TOPIC "a"', None),
        ('SET "out" WITH TIMESTAMP "UTC"', None),
        ('SET "out" WITH PAYLOAD', None),
        ('IF {x} > 1 THEN\n        SET "out" WITH 1', None),
        ('SET "other" WITH 1', None),
    ],
)
def test_outputs_are_told_or_left_out(body: str, outputs: dict[str, Any] | None) -> None:
    """Never guessed: nobody has said what binds first, how a division rounds, what a topic holds."""
    action = lot.parse(f"DEFINE ACTION X\nINPUT x AS INT\nDO\n    {body}\nRETURN\n    OUTPUT out", "ACTION")

    assert lot.run(action, {"x": 2}, lambda _topic, _text: None) == outputs


def test_an_action_publishes_what_it_says_and_is_traced(plant: Callable[..., Plant]) -> None:
    """For a simulated message."""
    broker = plant()
    console, plain = broker.console(), broker.console("operator", hears="#")
    console.command('-addAction DEFINE ACTION Echo\nON TOPIC "in" DO\n    PUBLISH TOPIC "out/" + {x} WITH "lost"')
    console.command('-addAction DEFINE ACTION Echo\nON TOPIC "in" DO\n    PUBLISH TOPIC "out" WITH "=" + PAYLOAD')
    assert console.command("-actionTrace Echo")["data"]["action"] == "Echo"

    reply = console.command('-runAction Echo {"topic": "in", "payload": "5"}')

    assert reply["data"]["published"] == [{"topic": "out", "payload": "=5"}]
    plain.wait(lambda: plain.texts("out") == ["=5"])
    console.wait(lambda: console.texts(f"{ROOT}/Actions/Echo/Trace") != [])
    (trace,) = map(json.loads, console.texts(f"{ROOT}/Actions/Echo/Trace"))
    assert (trace["traceId"], trace["trigger"]["payload"], trace["result"]) == (
        reply["data"]["traceId"],
        "5",
        "success",
    )
    assert console.command("-actionTrace status")["data"] == ["Echo"]
    assert console.command("-actionTrace off")["success"] is True
    assert console.command("-actionTrace status")["data"] == []


@pytest.mark.parametrize("rest", ["Missing", "Spread nonsense", "Spread [1]"])
def test_a_run_that_cannot_be_fails(root: Console, rest: str) -> None:
    """No such action, or no such input."""
    root.command(f"-addAction {CALLABLE}")

    assert root.command(f"-runAction {rest}")["success"] is False


# LoT

REFUSALS = [
    ("ACTION", f'"{ACTION}"', 1, 1),
    ("ACTION", ACTION.replace("Beat", '"Beat"'), 1, 15),
    ("ACTION", ACTION.replace("    PUBLISH", "  PUBLISH"), 3, 3),
    ("ACTION", ACTION.replace("    PUBLISH", "\tPUBLISH"), 3, 2),
    ("ACTION", ACTION.replace("\nON", "\n    ON"), 2, 5),
    ("ACTION", f"    {ACTION}", 1, 5),
    ("ACTION", ACTION.replace('"beat" WITH', '"beat"'), 3, 26),
    ("ACTION", ACTION.replace("WITH", "MESSAGE"), 3, 26),
    ("ACTION", ACTION.replace(' "x"', ""), 3, 30),
    ("ACTION", ACTION.replace('"x"', '"x'), 3, 31),
    ("ACTION", ACTION.replace('"x"', '("x"'), 3, 31),
    ("ACTION", ACTION.replace('"x"', '"x")'), 3, 34),
    ("ACTION", ACTION.replace('"x"', "flow"), 3, 31),
    ("ACTION", ACTION.replace('"x"', "TOPIC POSITION 0"), 3, 31),
    ("ACTION", ACTION.replace(" SECONDS", ""), 2, 12),
    ("ACTION", ACTION.replace(" DO", ""), 3, 5),
    ("ACTION", ACTION.replace("ON EVERY 5 SECONDS DO\n", ""), 2, 5),
    ("ACTION", ACTION.replace("DEFINE", "define"), 1, 1),
    ("ACTION", f"{ACTION}\n{ACTION}", 4, 1),
    ("ACTION", f"{ACTION}\nRETURN OUTPUT x", 4, 8),
    ("ACTION", 'DEFINE ACTION X\nON START DO\n    SET "x" 5', 3, 13),
    ("ACTION", 'DEFINE ACTION X\nON START DO\n    IF 1 == 1\n        SET "x" WITH 5', 3, 14),
    ("ACTION", 'DEFINE ACTION X\nON START DO\n    IF 1 == 1 THEN\n        SET "x" WITH 5\n    END IF', 5, 5),
    ("ACTION", 'DEFINE ACTION X\nON START DO\n    CALL MCP "R" TOOL "t"', 3, 18),
    ("ACTION", MODEL, 1, 8),
    ("ACTION", "", 1, 1),
    ("MODEL", MODEL.replace(' WITH TOPIC "pump/flow"', ' TOPIC "pump/flow"'), 2, 23),
    ("MODEL", MODEL.replace("COLLAPSED", "WITH COLLAPSED"), 1, 24),
    ("MODEL", 'DEFINE MODEL X FROM "Pump"', 1, 21),
    ("MODEL", 'DEFINE MODEL X WITH TOPIC "a"\n    ADD INT "b" WITH VALUE 5', 2, 22),
    ("RULE", RULE.replace("DENY", 'IF USER IS "x" THEN\n        ALLOW'), 3, 14),
    ("RULE", RULE.replace("Publish", "publish"), 1, 42),
    ("ROUTE", ROUTE.replace(" WITH TYPE EMAIL", ""), 1, 18),
    ("ROUTE", ROUTE.replace("EMAIL", "PIGEON"), 1, 29),
    ("ROUTE", ROUTE.replace("SMTP_CONFIG", "METADATA"), 2, 9),
    ("ROUTE", ROUTE.replace("SMTP_CONFIG", 'TAG "t"'), 2, 9),
]


@pytest.mark.parametrize(("kind", "source", "line", "column"), REFUSALS)
def test_what_is_no_lot_is_refused_where_it_is_wrong(kind: str, source: str, line: int, column: int) -> None:
    """Line and column count from 1."""
    with pytest.raises(lot.LotError) as raised:
        lot.parse(source, kind)

    assert (raised.value.line, raised.value.column) == (line, column), str(raised.value)


def test_a_refusal_says_where_and_what_would_help(root: Console) -> None:
    """In the reply, and nothing is deployed."""
    reply = root.command(f"-addAction {ACTION.replace('Beat', chr(34) + 'Beat' + chr(34))}")

    assert reply == {
        "success": False,
        "command": "AddAction",
        "requestId": "r1",
        "message": "Parsing error: STRING where IDENTIFIER was expected (1,15)",
        "data": {},
        "errors": [
            {
                "message": "STRING where IDENTIFIER was expected (1,15)",
                "line": 1,
                "column": 15,
                "sourceLines": ['DEFINE ACTION "Beat"'],
                "suggestions": ["write Beat without quotes"],
            }
        ],
    }
    assert root.command("-runAction Beat")["success"] is False


def test_hints_may_be_texts(plant: Callable[..., Plant]) -> None:
    """Nobody says what they are."""
    console = plant(lists_hints=False).console()

    (error,) = console.command('-addAction "quoted"')["errors"]

    assert (error["sourceLines"], error["suggestions"]) == ('"quoted"', "")


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        *[(row[0].upper(), row[2]) for row in DEPLOYED],
        ("ACTION", CALLABLE.replace("\n", "\r\n")),
        ("ACTION", ACTION.replace(" DO\n", "\nDO\n") + " -- note\n\n// note\n"),
        ("ACTION", 'DEFINE ACTION X ON TOPIC "a//b" DO\n    SET "x" WITH { "a": [1, {b}], "c": {d} }'),
        ("ACTION", 'DEFINE ACTION X\nON START DO\n    SET "x" WITH (1 +\n  2)'),
        ("ACTION", "DEFINE ACTION X\nON START DO\n    CALL ACTION Y\n        WITH a = 1\n        RETURN b"),
        (
            "ACTION",
            'DEFINE ACTION X\nON START DO\n    LOOP\n        SET "x" WITH 1\n    UNTIL {x} > 2 AND NOT {y} == 1',
        ),
        ("MODEL", 'DEFINE MODEL X FROM Y COLLAPSED\n    ADD OBJECT "a"\n        ADD INT "b" WITH (c + 1)'),
        ("RULE", RULE.replace("DENY", 'IF NOT (USER IS "x") THEN\n        ALLOW\n    ELSE\n        DENY')),
    ],
)
def test_what_is_lot_is_read(kind: str, source: str) -> None:
    """In all its spellings."""
    assert lot.parse(source, kind).name


def test_brackets_without_end_do_no_harm() -> None:
    """Nor do endless ones."""
    with pytest.raises(lot.LotError, match="nested too deeply"):
        lot.parse(f'DEFINE ACTION X\nON START DO\n    SET "x" WITH {"(" * 5000}1{")" * 5000}', "ACTION")


@pytest.mark.parametrize(("script", "line"), [("def f(): pass", 1), ("# Script Name: X\nx = 1\ndef f(:\n    pass", 3)])
def test_a_script_has_a_name_and_is_python(root: Console, script: str, line: int) -> None:
    """The name is its first line."""
    reply = root.command(f"-addPython {script}")

    assert (reply["success"], reply["errors"][0]["line"]) == (False, line)


# Rights


@pytest.mark.parametrize("v5", [True, False])
@pytest.mark.parametrize(
    ("username", "topic_filter", "granted"),
    [
        ("root", "$SYS/#", True),
        ("admin", "$SYS/#", True),
        ("engineer", "$SYS/#", True),
        ("keeper", "$SYS/#", False),
        ("keeper", OUTPUT, True),
        ("keeper", f"{ROOT}/Projects/#", True),
        ("keeper", f"{ROOT}/Actions/#", False),
        ("operator", OUTPUT, False),
        ("operator", f"$share/group/{OUTPUT}", False),
        ("operator", "#", True),
        ("operator", "+/Coreflux/#", True),
        ("", OUTPUT, False),
        ("", "plant/#", True),
    ],
)
def test_who_may_listen_where(
    plant: Callable[..., Plant], username: str, topic_filter: str, granted: bool, v5: bool
) -> None:
    """A refusal is 0x80 in MQTT 3.1.1, and 0x87 in MQTT 5."""
    with Console(plant().broker, username, v5=v5) as console:
        answer = console.subscribe(topic_filter)

    assert answer == 1 if granted else answer == (0x87 if v5 else 0x80)


@pytest.mark.parametrize("username", ["operator", ""])
def test_a_command_without_any_right_vanishes(plant: Callable[..., Plant], username: str) -> None:
    """It is acknowledged, and neither carried out nor answered nor seen."""
    broker = plant()
    console = broker.console()
    intruder = broker.console(username, hears="#")

    intruder.publish(COMMAND, f"-addAction {ACTION}")
    intruder.publish(OUTPUT, "fake")
    intruder.publish("plant/open", "x")
    console.command("-listRoutes")
    intruder.wait(lambda: intruder.texts("plant/open") == ["x"])

    assert broker.coreflux.entities() == {}
    assert len(console.texts()) == 1
    assert len(console.texts(COMMAND)) == 1
    assert {each.topic for each in intruder.seen} == {"plant/open"}


@pytest.mark.parametrize(
    ("username", "text", "allowed"),
    [
        ("engineer", f"-addAction {ACTION}", True),
        ("engineer", "-addUser ann pw", False),
        ("keeper", "-addUser ann pw", True),
        ("keeper", f"-addAction {ACTION}", False),
        ("keeper", "-listSecrets", False),
        ("keeper", "-listRoutes", True),
        ("admin", "-addUser ann pw", True),
    ],
)
def test_who_may_send_may_not_execute_everything(
    plant: Callable[..., Plant], username: str, text: str, allowed: bool
) -> None:
    """Then the reply says so."""
    broker = plant()
    with Console(broker.broker, username) as console:
        assert console.subscribe(OUTPUT) == 1
        reply = console.command(text)

    denied = f"Permission denied: You are not allowed to execute {text.partition(' ')[0]}"
    assert reply["success"] is allowed
    assert (reply["message"] == denied) is not allowed


def test_users_come_and_go(plant: Callable[..., Plant]) -> None:
    """But root stays."""
    broker = plant()
    root = broker.console()
    first, second = token_hex(8), token_hex(8)

    assert root.command(f"-addUser ann {first}")["message"] == "User ann added successfully!"
    assert root.command(f"-addUser ann {first}")["success"] is False
    assert broker.coreflux.users["ann"].password == first
    assert root.command(f"-changeUserPassword ann {second}")["success"] is True
    assert broker.coreflux.users["ann"].password == second
    root.command("-addUserToGroup ann staff")
    assert root.command("-listUserGroups ann")["data"] == {"groups": ["staff"]}
    root.command("-removeUserFromGroup ann staff")
    assert root.command("-listUserGroups ann")["data"] == {"groups": []}
    assert root.command("-removeUser ann")["message"] == "User ann removed successfully!"
    assert root.command("-removeUser ann")["success"] is False
    assert root.command("-removeUser root")["success"] is False


# An old broker


def old(console: Console, text: str) -> str:
    """Send a command to a broker of 1.x, and give the reply that is next."""
    count = len(console.texts())
    console.publish(COMMAND, text)
    console.wait(lambda: len(console.texts()) > count)
    return console.texts()[count]


def test_an_old_broker_answers_in_sentences(plant: Callable[..., Plant]) -> None:
    """With the words that its clients look for."""
    console = plant(dialect="1.x", version="1.8.2").console()
    console.shown("Version", "1.8.2")

    assert old(console, f"-addAction {ACTION} -requestId r1") == "Action 'Beat' added successfully."
    assert old(console, f"-addRoute {ROUTE}") == "Route 'Mail' added successfully!"
    assert old(console, "-listRoutes").splitlines() == ["1 routes.", "Mail"]
    assert "EMAIL" in old(console, "-listTemplates")
    assert old(console, "-runAction Beat") == "Action 'Beat' executed successfully."
    assert "not found" in old(console, "-runAction Beat {}")
    assert old(console, "-removeAction Beat") == "Action 'Beat' removed successfully."
    assert old(console, "-removeAction Beat") == "'Beat' not found."
    assert old(console, "-removeAllRoutes") == "removed all routes successfully"
    assert old(console, "-addAction DEFINE ACTION X\nON TOPIC a DO\n    SET") == (
        "Parsing error: Expected one of STRING, but found IDENTIFIER a (2,10)"
    )


def test_an_old_broker_may_take_the_identifier_for_a_part_of_the_command(plant: Callable[..., Plant]) -> None:
    """It never heard of one."""
    console = plant(dialect="1.x", strips_request_id=False).console()

    assert "Parsing error" in old(console, f"-addAction {ACTION} -requestId r1")
    assert "failed" in old(console, "-removeAction Beat -requestId r1")


def test_a_new_broker_may_not_repeat_the_identifier(plant: Callable[..., Plant]) -> None:
    """The first version that does is not known."""
    console = plant(repeats_request_id=False).console()

    console.send(f"-addAction {ACTION}")
    console.wait(lambda: console.replies() != [])

    (reply,) = console.replies()
    assert (reply["success"], reply["command"], reply["entityName"]) == (True, "AddAction", "Beat")
    assert "requestId" not in reply


# What goes wrong

FOREIGN = [
    (Wrong.FOREIGN_ID, "AddAction", True),
    (Wrong.FOREIGN_NO_ID, "AddAction", False),
    (Wrong.FOREIGN_COMMAND, "AddRoute", False),
]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("wrong", "command", "has_id"), FOREIGN)
def test_somebody_else_is_answered_too(
    plant: Callable[..., Plant], wrong: Wrong, command: str, has_id: bool, before: bool
) -> None:
    """And told the contrary."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(Fault(wrong, before=before))

    console.command(f"-addAction {ACTION}")
    console.wait(lambda: len(console.texts()) == 2)

    own, foreign = console.replies()[::-1] if before else console.replies()
    assert (own["requestId"], own["success"], own["entityName"]) == ("r1", True, "Beat")
    assert (foreign["command"], foreign["success"], foreign["entityName"]) == (command, False, "SomebodyElses")
    assert ("requestId" in foreign, foreign.get("requestId") == "r1") == (has_id, False)


def test_a_reply_comes_twice(plant: Callable[..., Plant]) -> None:
    """And the next one once."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(Fault(Wrong.DUPLICATE))

    console.command("-listRoutes")
    console.command("-listPanels")

    assert [reply["requestId"] for reply in console.replies()] == ["r1", "r1", "r2"]


@pytest.mark.parametrize("fault", [Fault(Wrong.LATE, after_s=0.1), Fault(Wrong.HELD)], ids=["late", "held"])
def test_a_reply_comes_after_the_next_one(plant: Callable[..., Plant], fault: Fault) -> None:
    """Order is promised by nobody."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(fault)

    console.send("-listRoutes")
    console.send("-listPanels")
    console.wait(lambda: len(console.texts()) == 2)

    assert [reply["requestId"] for reply in console.replies()] == ["r2", "r1"]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(Wrong.NOT_JSON, text="Broker is busy"), "Broker is busy"),
        (Fault(Wrong.TRUNCATED), '{"success": true, "command": "ListRoutes", "r'),
    ],
    ids=["text", "half"],
)
def test_a_reply_is_no_json(plant: Callable[..., Plant], fault: Fault, text: str) -> None:
    """Neither wholly nor in part."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(fault)

    console.send("-listRoutes")
    console.wait(lambda: len(console.texts()) == 1)

    assert console.texts()[0].startswith(text)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(console.texts()[0])


@pytest.mark.parametrize(("wrong", "done"), [(Wrong.NO_REPLY, True), (Wrong.IGNORED, False)])
def test_no_reply_comes(plant: Callable[..., Plant], wrong: Wrong, done: bool) -> None:
    """Which does not tell whether something was done."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(Fault(wrong, "Add"))

    console.send(f"-addAction {ACTION}")
    console.command("-listRoutes")

    assert len(console.texts()) == 1
    assert (("Action", "Beat") in broker.coreflux.entities()) is done


def test_success_may_be_a_lie(plant: Callable[..., Plant]) -> None:
    """The reply is right, and the world is as before."""
    broker = plant()
    console = broker.console()
    console.command(f"-addModel {MODEL}")
    broker.coreflux.inject(Fault(Wrong.FALSE_SUCCESS, times=None))

    assert console.command(f"-addAction {ACTION}")["success"] is True
    assert console.command("-removeModel Pump")["success"] is True
    assert console.command("-removeUser operator")["success"] is True

    assert broker.coreflux.entities() == {("Model", "Pump"): MODEL}
    assert "operator" in broker.coreflux.users
    assert console.texts(f"{ROOT}/Actions/Beat") == []


def test_the_second_of_three_fails(plant: Callable[..., Plant]) -> None:
    """With a place in the text."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(Fault(Wrong.FAILING, "Add", skip=1))

    replies = [console.command(text) for text in (f"-addModel {MODEL}", f"-addAction {ACTION}", f"-addRoute {ROUTE}")]

    assert [reply["success"] for reply in replies] == [True, False, True]
    (error,) = replies[1]["errors"]
    assert (error["line"], error["column"], error["sourceLines"]) == (2, 9, ["ON EVERY 5 SECONDS DO"])
    assert set(broker.coreflux.entities()) == {("Model", "Pump"), ("Route", "Mail")}


def test_an_entity_never_appears(plant: Callable[..., Plant]) -> None:
    """Though the reply promised it."""
    broker = plant(entity_delay_s=0)
    console = broker.console()
    broker.coreflux.inject(Fault(Wrong.NEVER_APPEARS, "AddAction"))

    console.command(f"-addAction {ACTION}")
    console.command(f"-addModel {MODEL}")
    console.shown("Models/Pump", MODEL)

    assert console.texts(f"{ROOT}/Actions/Beat") == []
    assert ("Action", "Beat") in broker.coreflux.entities()


def test_an_action_fails_after_it_was_deployed(plant: Callable[..., Plant]) -> None:
    """Until it is deployed anew."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(Fault(Wrong.ERROR_TOPIC, text="division by zero"))

    assert console.command(f"-addAction {ACTION}")["success"] is True
    console.shown("Actions/Beat/Error", "division by zero")

    console.command(f"-addAction {ACTION}")
    console.shown("Actions/Beat/Error", "")


def test_the_connection_is_cut_off_after_the_command(plant: Callable[..., Plant]) -> None:
    """What was to be done is done, and others hear of it."""
    broker = plant()
    console, witness = broker.console(), broker.console("admin")
    broker.coreflux.inject(Fault(Wrong.CUT_OFF))

    request_id = console.send(f"-addAction {ACTION}")
    console.wait(lambda: console.cut_off)

    assert witness.reply(request_id)["success"] is True
    assert console.texts() == []


def test_faults_wait_add_up_and_are_taken_back(plant: Callable[..., Plant]) -> None:
    """A fault is of the next commands that match, or of all until then."""
    broker = plant()
    console = broker.console()
    broker.coreflux.inject(
        Fault(Wrong.DUPLICATE, "ListPanels"),
        Fault(Wrong.FOREIGN_ID, "ListPanels"),
        Fault(Wrong.NO_REPLY, times=2, skip=2),
    )

    console.command("-listRoutes")
    console.command("-listPanels")
    console.wait(lambda: len(console.texts()) == 4)
    console.send("-listThemes")
    console.send("-listThemes")
    broker.coreflux.inject(Fault(Wrong.NO_REPLY, times=None))
    console.send("-listThemes")
    console.send("-listThemes")
    broker.coreflux.reset()

    assert console.command("-listThemes")["success"] is True
    assert len(console.texts()) == 5
