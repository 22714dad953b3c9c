"""A Coreflux personality for the development broker: commands, entities, users, and what can go wrong with them.

It is built from published material and was never held against a Coreflux broker. Each literal reply carries the tag of
where it comes from: [v2] the vendor's code for 2.x brokers, [v1] older material, [double] a vendor's test double,
[ours] nowhere. Entities are kept and shown. Routes, models and rules do nothing, and actions run only when told to.
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from simulator import lot
from simulator.broker import Broker
from simulator.faults import Fault, Faults, Wrong
from simulator.messages import Message
from simulator.routing import covers, is_topic_name, split_share
from simulator.users import User

logger = logging.getLogger(__name__)

ROOT = "$SYS/Coreflux"
COMMAND = f"{ROOT}/Command"
OUTPUT = f"{ROOT}/Command/Output"
FIRST_FREE_PRIORITY = 100  # those below are the broker's own
TRACE_TIME = timedelta(minutes=5)

Right = Literal["system", "users"]
ADMIN: frozenset[Right] = frozenset({"system", "users"})


@dataclass(frozen=True, slots=True)
class Account(User):
    """A login: `system` stands for AllowedSystemConfiguration, `users` for AllowedUserManagement."""

    rights: frozenset[Right] = frozenset()
    groups: frozenset[str] = frozenset()

    def may_subscribe(self, topic_filter: str) -> bool:
        """Tell what of `$SYS` a session may hear; everything else is open."""
        _, plain = split_share(topic_filter)
        heard = [f"{ROOT}/Projects/#", OUTPUT] if "users" in self.rights else []
        heard += ["$SYS/#"] if "system" in self.rights else []
        return plain.partition("/")[0] != "$SYS" or any(covers(allowed, plain) for allowed in heard)


# The password of root is the one of the published quick starts.
ACCOUNTS: Mapping[str, Account] = {
    "root": Account("coreflux", rights=ADMIN),
    "admin": Account("admin", rights=ADMIN),
    "engineer": Account("engineer", rights=frozenset({"system"})),
    "keeper": Account("keeper", rights=frozenset({"users"})),
    "operator": Account("operator"),
    "": Account(""),  # who gives no name: AnonymousLogin
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where brokers differ, or where nobody has said how they behave.

    Attributes:
        dialect: JSON replies with the request's identifier, or sentences without.
        accounts: Who may log in; whoever gives no name is the one without a name.
        entity_delay_s: How long after the reply the topics of an entity appear.
        retained: Whether a new subscription is told of entities with the retain flag.
        cleared: Whether removal clears the topics of an entity.
        strips_request_id: Whether a 1.x broker ignores `-requestId`, or takes it for a part of the command.
        repeats_request_id: Whether the replies of a 2.x broker repeat it; which versions do not is not known.
        reserves_priorities: Whether rules of a priority below 100 are refused.
        template_key: Where in its data `-routeCode` has the template; "" makes the data the template.
        lists_hints: Whether `sourceLines` and `suggestions` are lists, or texts.
        status_every_s: How often routes tell how they are.
        version: What the broker says it is.
    """

    dialect: Literal["1.x", "2.x"] = "2.x"
    accounts: Mapping[str, Account] = field(default_factory=lambda: ACCOUNTS)
    entity_delay_s: float = 0.05
    retained: bool = True
    cleared: bool = True
    strips_request_id: bool = True
    repeats_request_id: bool = True
    reserves_priorities: bool = True
    template_key: Literal["", "template", "code"] = "template"
    lists_hints: bool = True
    status_every_s: float = 30
    version: str = "2.14.3"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of entity: below which levels it is shown, and what all of it is called."""

    name: str
    levels: tuple[str, ...]
    all: str = ""


_KINDS = [
    _Kind("Action", ("Actions",), "Actions"),
    _Kind("Model", ("Models",), "Models"),
    _Kind("Rule", ("Rules",), "Rules"),
    _Kind("Route", ("Routes",), "Routes"),
    _Kind("Python", (), "PythonScripts"),
    _Kind("Panel", ("VoT/Panels", "Visus")),
    _Kind("Theme", ("VoT/Themes",), "Themes"),
]
_LEVELS = {kind.name: kind.levels for kind in _KINDS}
_Key = tuple[str, str]  # kind and name
_FOREIGN = {Wrong.FOREIGN_ID, Wrong.FOREIGN_NO_ID, Wrong.FOREIGN_COMMAND}


@dataclass(frozen=True, slots=True)
class _Entity:
    source: str
    definition: lot.Definition
    built_in: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a command; `sentence` is how a 1.x broker says it, when that differs from the message."""

    success: bool
    message: str
    kind: str = ""
    name: str = ""
    data: Any = field(default_factory=dict)
    errors: tuple[Mapping[str, Any], ...] = ()
    sentence: str = ""


# Names and priorities of 2.14.3-rc.62; their texts are ours.
_BUILT_IN = [
    ("AllowUserCreation", 10, "UserManagementCreation", 'IF USER IS "root" THEN'),
    ("AllowSubscribeSysClient", 10, "SubscribeSys", "IF USER HAS AllowedSystemConfiguration THEN"),
    ("AllowPublishSysCommand", 10, "CommandCall", "IF USER HAS AllowedSystemConfiguration THEN"),
    ("AllowConnect", 1_000_000, "Connect", ""),
    ("AllowPublishTopic", 1_000_000, 'Publish TO TOPIC "#"', ""),
    ("AllowSubscribeTopic", 1_000_000, 'Subscribe TO TOPIC "#"', ""),
]


class Coreflux:
    """Makes a `Broker` behave as a Coreflux broker: `Broker(personality=Coreflux(options))`.

    What it has been told stays when its broker ends, so that a broker started anew with it has everything still.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.users: dict[str, Account] = dict(self.options.accounts)
        self._entities: dict[_Key, _Entity] = {}
        self._shown: dict[_Key, set[str]] = {}
        self._environment: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._traced: dict[str, datetime] = {}
        self._faults = Faults()
        self._held: list[str] = []
        self._effects: list[Callable[[], None]] = []
        self._timers: set[asyncio.Handle] = set()
        self._broker: Broker
        self._verbs = self._table()
        for name, priority, scope, condition in _BUILT_IN:
            branch = f"{condition}\n        ALLOW\n    ELSE\n        DENY" if condition else "ALLOW"
            text = f"DEFINE RULE {name} WITH PRIORITY {priority} FOR {scope}\n    {branch}"
            self._entities["Rule", name] = _Entity(text, lot.parse(text, "RULE"), built_in=True)

    @property
    def unflagged(self) -> str | None:
        """What new subscriptions are told without the retain flag."""
        return None if self.options.retained else f"{ROOT}/#"

    def entities(self) -> dict[tuple[str, str], str]:
        """Give the source of everything that was deployed, by kind (`Action`) and name."""
        return {key: entity.source for key, entity in self._entities.items() if not entity.built_in}

    def inject(self, *faults: Fault) -> None:
        """Let something go wrong. Several faults may strike the same command."""
        self._faults.arm(*faults)

    def reset(self) -> None:
        """Let everything go well again; a reply that is held back is lost."""
        self._faults.disarm()
        self._held.clear()

    def started(self, broker: Broker) -> None:
        """Begin to listen to commands, and show what there is."""
        self._broker = broker
        broker.on_publish.append(self._sees)
        version: Any = {"version": self.options.version}  # [ours] the fields
        says = version if self.options.dialect == "2.x" else self.options.version
        self._publish("Version", says, retain=True)
        self._publish("Entities/ownership", {}, retain=True)
        self._publish("Projects/list", [], retain=True)
        self._publish("Projects/active", {"status": "unloaded"}, retain=True)  # [v2]
        for key in self._entities:
            self._show(key)
        self._tell_statuses()

    def stopped(self) -> None:
        """Leave undone what was to happen later."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._shown.clear()
        self._broker.on_publish.remove(self._sees)

    # What passes the broker

    def _sees(self, message: Message) -> bool:
        """Drop what a session may not publish below `$SYS`, without a word; take note of commands."""
        if not message.topic.startswith("$SYS/"):
            return False
        if not self._rights(message.username):
            logger.info("dropped a message of user %r to %s", message.username, message.topic)
            return True
        if message.topic == COMMAND:
            self._later(0, self._carry_out, message)
        return False

    def _rights(self, username: str) -> frozenset[Right]:
        account = self.users.get(username)
        return account.rights if account is not None else frozenset()

    def _later(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        def act() -> None:
            self._timers.discard(timer)
            function(*args)

        loop = asyncio.get_running_loop()
        timer = loop.call_later(delay_s, act) if delay_s else loop.call_soon(act)
        self._timers.add(timer)

    def _publish(self, topic: str, payload: Any, *, retain: bool = False) -> None:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        self._broker.publish(f"{ROOT}/{topic}", text.encode(), 1, retain=retain)

    # Commands and replies

    def _carry_out(self, message: Message) -> None:
        text, request_id = self._take_request_id(message.payload.decode(errors="replace"))
        typed, rest = _split(text)
        verb = _camel(typed)
        command = verb[:1].upper() + verb[1:]
        faults = self._faults.strike(command)
        if Wrong.CUT_OFF in faults and message.publisher is not None:
            self._broker.cut_off(message.publisher)
        if Wrong.IGNORED in faults:
            return
        self._effects = []
        before = [dict(each) for each in self._state]
        outcome = self._outcome(verb, typed, rest, self._rights(message.username), failing=Wrong.FAILING in faults)
        deployed = (outcome.kind, outcome.name) if outcome is not None else ("", "")
        if Wrong.ERROR_TOPIC in faults and deployed in self._entities:
            self._entities[deployed] = replace(self._entities[deployed], error=faults[Wrong.ERROR_TOPIC].text)
        if Wrong.FALSE_SUCCESS in faults:
            for state, kept in zip(self._state, before, strict=True):
                state.clear()
                state.update(kept)
        if outcome is not None:
            self._reply(outcome, command if verb in self._verbs else "", request_id, faults)
        if not faults.keys() & {Wrong.FALSE_SUCCESS, Wrong.NEVER_APPEARS}:
            for effect in self._effects:
                effect()

    @property
    def _state(self) -> list[dict[Any, Any]]:
        return [self._entities, self._environment, self._secrets, self.users, self._traced]

    def _take_request_id(self, text: str) -> tuple[str, str | None]:
        found = re.search(r"\s+-requestId\s+(\S+)\s*$", text)
        old = self.options.dialect == "1.x"
        if found is None or (old and not self.options.strips_request_id):
            return text, None
        return text[: found.start()], found[1] if self.options.repeats_request_id and not old else None

    def _outcome(self, verb: str, typed: str, rest: str, rights: frozenset[Right], *, failing: bool) -> _Outcome | None:
        if verb not in self._verbs:
            return _Outcome(False, f"Unknown command: {typed}")  # [v2]
        right, function = self._verbs[verb]
        if right is not None and right not in rights:
            return _Outcome(False, f"Permission denied: You are not allowed to execute -{verb}")  # [v2]
        if failing:
            error = lot.LotError("Expected one of STRING, but found PARSE ERROR IDENTIFIER", 2, 9)  # [v1]
            return self._parse_failure(error, rest)
        try:
            return function(rest)
        except lot.LotError as error:
            return self._parse_failure(error, rest)

    def _parse_failure(self, error: lot.LotError, source: str) -> _Outcome:
        line = source.splitlines()[error.line - 1 : error.line]
        hints = [error.suggestion] if error.suggestion else []
        entry = {
            "message": str(error),
            "line": error.line,
            "column": error.column,
            "sourceLines": line if self.options.lists_hints else "\n".join(line),
            "suggestions": hints if self.options.lists_hints else "\n".join(hints),
        }
        return _Outcome(False, f"Parsing error: {error}", errors=(entry,))  # [v1]

    def _reply(self, outcome: _Outcome, command: str, request_id: str | None, faults: Mapping[Wrong, Fault]) -> None:
        own = self._worded(outcome, command, request_id)
        own = own[: len(own) // 2] if Wrong.TRUNCATED in faults else own
        own = faults[Wrong.NOT_JSON].text if Wrong.NOT_JSON in faults else own
        replies = [own, own] if Wrong.DUPLICATE in faults else [] if Wrong.NO_REPLY in faults else [own]
        for wrong, fault in faults.items():
            if wrong in _FOREIGN and fault.before:
                self._say(self._foreign(wrong, outcome, command))
        if Wrong.HELD in faults:
            self._held += replies
        elif Wrong.LATE in faults:
            self._later(faults[Wrong.LATE].after_s, self._send, replies)
        else:
            self._send(replies)
        for wrong, fault in faults.items():
            if wrong in _FOREIGN and not fault.before:
                self._say(self._foreign(wrong, outcome, command))

    def _say(self, text: str) -> None:
        self._broker.publish(OUTPUT, text.encode(), 1)

    def _send(self, replies: list[str]) -> None:
        """Send replies, and those that were held back until now."""
        for text in [*replies, *self._held]:
            self._say(text)
        self._held = []

    def _worded(self, outcome: _Outcome, command: str, request_id: str | None) -> str:
        if self.options.dialect == "1.x":
            listed = outcome.data if isinstance(outcome.data, list) else []
            names = [each["name"] if isinstance(each, dict) else each for each in listed]
            return "\n".join([outcome.sentence or outcome.message, *names])  # [ours] how lists look
        envelope: dict[str, Any] = {"success": outcome.success}
        envelope |= {"command": command} if command else {}  # [double] absent when the command is unknown
        envelope |= {} if request_id is None else {"requestId": request_id}
        envelope["message"] = outcome.message
        envelope |= {"entityType": outcome.kind, "entityName": outcome.name} if outcome.kind else {}
        envelope["data"] = outcome.data
        envelope |= {} if outcome.success else {"errors": list(outcome.errors) or [{"message": outcome.message}]}
        return json.dumps(envelope)

    def _foreign(self, wrong: Wrong, outcome: _Outcome, command: str) -> str:
        """Word somebody else's reply, which says the contrary of the true one."""
        kind, named = outcome.kind, command
        if wrong is Wrong.FOREIGN_COMMAND:
            kind, named = ("Model", "AddModel") if command == "AddRoute" else ("Route", "AddRoute")
        message = f"{kind or command} 'SomebodyElses' {'failed' if outcome.success else 'added successfully.'}"
        told = _Outcome(not outcome.success, message, kind, "SomebodyElses" if kind else "")
        return self._worded(told, named, f"foreign-{secrets.token_hex(4)}" if wrong is Wrong.FOREIGN_ID else None)

    # Entities

    def _add(self, kind: str, source: str) -> _Outcome:
        definition = lot.parse_python(source) if kind == "Python" else lot.parse(source, kind.upper())
        name = definition.name
        if kind == "Rule" and (kind, name) in self._entities:
            return _Outcome(False, f"A rule with the name '{name}' already exists", kind, name)  # [v2]
        priority = next(iter(definition.texts("priority")), FIRST_FREE_PRIORITY)
        if float(priority) < FIRST_FREE_PRIORITY and self.options.reserves_priorities:
            return _Outcome(False, f"Rule '{name}' failed: priorities 0 to 99 are reserved", kind, name)  # [ours]
        for callee, taken, token in definition.calls:
            called = self._entities.get(("Action", callee))
            if called is not None and taken not in {0, len(called.definition.outputs)}:
                given = len(called.definition.outputs)
                raise lot.LotError(f"{callee} returns {given} values, not {taken}", token.line, token.column)  # [ours]
        self._change((kind, name), _Entity(source, definition))
        shown = "Python script" if kind == "Python" else kind
        end = "!" if kind == "Route" else "."  # [v2] for routes, [double] for all others
        return _Outcome(True, f"{shown} '{name}' added successfully{end}", kind, name)

    def _remove(self, kind: str, name: str) -> _Outcome:
        entity = self._entities.get((kind, name))
        if entity is None:
            return _Outcome(False, f"'{name}' not found.", kind, name)  # [double], and [v1] in part
        if entity.built_in:
            return _Outcome(False, f"Rule '{name}' is built in and cannot be removed, failed", kind, name)  # [ours]
        self._change((kind, name), None)
        sentence = f"{kind} '{name}' removed successfully."  # [ours]; 1.x clients look for the word and the name
        return _Outcome(True, f"Removed '{name}'.", kind, name, sentence=sentence)  # [double]

    def _remove_all(self, kind: str, called: str) -> _Outcome:
        for key in [key for key, entity in self._entities.items() if key[0] == kind and not entity.built_in]:
            self._change(key, None)
        many = "python scripts" if kind == "Python" else called.lower()
        return _Outcome(True, f"removed all {many} successfully")  # [v1]

    def _change(self, key: _Key, entity: _Entity | None) -> None:
        """Put an entity in or out, and let it be seen after a while."""
        if entity is None:
            del self._entities[key]
        else:
            self._entities[key] = entity
        self._effects.append(lambda: self._later(self.options.entity_delay_s, self._show, key))

    def _show(self, key: _Key) -> None:
        """Let the topics of an entity say what is so now."""
        kind, name = key
        entity = self._entities.get(key)
        topics: dict[str, str] = {}
        if entity is not None:
            topics |= {f"{level}/{name}": entity.source for level in _LEVELS[kind]}
            said = {"Description": entity.definition.description, "Error": entity.error}
            topics |= {f"{kind}s/{name}/{what}": text for what, text in said.items() if text is not None}
        for topic in self._shown.pop(key, set()) - topics.keys():
            if self.options.cleared:
                self._publish(topic, "", retain=True)
        for topic, text in topics.items():
            self._publish(topic, text, retain=True)
        if topics:
            self._shown[key] = set(topics)
        if kind == "Route" and entity is not None:
            self._tell_status(name)
        if kind == "Python":
            self._publish("Python/Scripts", [*self._scripts()], retain=True)  # [v1]

    def _scripts(self) -> list[dict[str, Any]]:
        return [
            {"ScriptName": name, "Code": entity.source, "Functions": [*entity.definition.functions]}
            for (kind, name), entity in self._entities.items()
            if kind == "Python"
        ]

    def _missing(self, entity: _Entity) -> list[str]:
        return [f"{kind} {name}" for kind, name in entity.definition.needs if (kind, name) not in self._entities]

    def _pending(self) -> _Outcome:
        waiting = [
            {"entityType": kind, "name": name, "missing": missing}  # [ours]
            for (kind, name), entity in self._entities.items()
            if (missing := self._missing(entity))
        ]
        message = f"{len(waiting)} pending." if waiting else "No pending models or actions."  # [ours], [double]
        return _Outcome(True, message, data=waiting)

    def _diagnose(self, kind: str, name: str) -> _Outcome:
        entity = self._entities.get((kind.capitalize(), name))
        if entity is None:
            return _Outcome(False, f"'{name}' not found.")  # [double]
        report = {"source": entity.source, "missing": self._missing(entity), "error": entity.error}  # [ours]
        return _Outcome(True, f"Diagnostic of {kind} '{name}'.", kind.capitalize(), name, report)  # [ours]

    def _list_entities(self) -> _Outcome:
        listed = [{"type": kind, "name": name, "origin": "adhoc"} for kind, name in self._entities]  # [v2] the origin
        return _Outcome(True, f"{len(listed)} entities.", data=listed)  # [ours]

    def _list(self, kind: str) -> _Outcome:
        names = [name for each, name in self._entities if each == kind]
        listed = [self._route(name) if kind == "Route" else {"name": name} for name in names]
        none = f"No {kind.lower()}s registered."  # [double] for routes
        return _Outcome(True, f"{len(names)} {kind.lower()}s." if names else none, data=listed)

    # Routes

    def _route(self, name: str) -> dict[str, str]:
        types = self._entities["Route", name].definition.texts("type")
        return {"name": name, "type": types[0], "connection": "Connected", "health": "Green"}  # [v2]

    def _tell_status(self, name: str) -> None:
        now = _now()
        status = {
            **self._route(name),
            "errors": {"total": 0, "consecutive": 0, "rate": 0},
            "messages": {"total": 0, "succeeded": 0, "failed": 0},
            "lastActivity": None,
            "lastSuccess": None,
            "lastError": None,
            "uptime": "00:00:00",
            "connectedSince": now,
            "timestamp": now,
        }  # [v2]
        self._publish(f"Routes/{name}/status", status)

    def _tell_statuses(self) -> None:
        for kind, name in self._shown:
            if kind == "Route":
                self._tell_status(name)
        self._later(self.options.status_every_s, self._tell_statuses)

    def _check_route(self, name: str) -> _Outcome:
        if ("Route", name) not in self._entities:
            return _Outcome(False, f"'{name}' not found.", "Route", name)  # [double]
        return _Outcome(True, f"Route '{name}' is connected.", "Route", name, self._route(name))  # [ours]

    def _route_code(self, route_type: str) -> _Outcome:
        if route_type not in lot.ROUTE_TYPES:
            return _Outcome(False, f"Route type '{route_type}' not found.")  # [ours]
        template = (  # [v2] the placeholders and the block that must be taken out
            f"DEFINE ROUTE #name,identifier,Name of the route,.*,# WITH TYPE {route_type}\n"
            '    ADD METADATA\n        WITH DESCRIPTION "a template"\n'
            f'    ADD {route_type}_CONFIG\n        WITH HOST "#host,string,Address of the peer,.*,#"\n'
        )
        key = self.options.template_key
        return _Outcome(True, f"Template of {route_type}.", data={key: template} if key else template)  # [ours]

    def _list_templates(self) -> _Outcome:
        return _Outcome(True, f"{len(lot.ROUTE_TYPES)} templates.", data=[*lot.ROUTE_TYPES])  # [ours]

    # Running and tracing

    def _run(self, rest: str) -> _Outcome:
        name, given_text = _split(rest) if self.options.dialect == "2.x" else (rest.strip(), "")
        entity = self._entities.get(("Action", name))
        if entity is None:
            return _Outcome(False, f"'{name}' not found.", "Action", name)  # [double]
        if missing := self._missing(entity):
            return _Outcome(False, f"Action '{name}' failed: {', '.join(missing)} missing", "Action", name)  # [ours]
        try:
            given = json.loads(given_text or "{}")
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return _Outcome(False, f"Action '{name}' failed: the input is no JSON object", "Action", name)  # [ours]
        began = datetime.now(UTC)
        published: list[dict[str, str]] = []
        variables = {key: given[key] for key in entity.definition.inputs if key in given}
        variables |= {"PAYLOAD": given["payload"]} if "payload" in given else {}
        action = entity.definition
        outputs = lot.run(action, variables, lambda to, text: published.append({"topic": to, "payload": text}))
        data: dict[str, Any] = {"action": name, "traceId": secrets.token_hex(8), "status": "success"}
        data["published"] = published  # [v2]
        data |= {"outputs": outputs} if outputs else {}  # [ours]
        self._effects.append(partial(self._publish_all, published))
        if any(self._traced.get(armed, began) > began for armed in (name, "all")):
            trace = self._trace(data, given, began)
            self._effects.append(partial(self._publish, f"Actions/{name}/Trace", trace))
        return _Outcome(True, f"Action '{name}' executed successfully.", "Action", name, data)  # [double]

    def _publish_all(self, published: list[dict[str, str]]) -> None:
        for message in published:
            if is_topic_name(message["topic"]):
                self._broker.publish(message["topic"], message["payload"].encode())

    def _trace(self, data: Mapping[str, Any], given: Mapping[str, Any], began: datetime) -> dict[str, Any]:
        ended = datetime.now(UTC)
        return {
            "action": data["action"],
            "traceId": data["traceId"],
            "trigger": {"topic": given.get("topic"), "payload": given.get("payload"), "clientId": None},
            "timing": {
                "startUtc": began.isoformat(),
                "endUtc": ended.isoformat(),
                "durationMs": (ended - began) / timedelta(milliseconds=1),
            },
            "published": data["published"],
            "result": data["status"],
            "error": None,
        }  # [v2]

    def _arm(self, what: str, name: str = "") -> _Outcome:
        if what == "status":
            return _Outcome(True, f"{len(self._traced)} traced.", data=[*self._traced])  # [ours]
        if what in {"off", "remove"}:
            for traced in [*self._traced] if what == "off" else [name]:
                self._traced.pop(traced, None)
            return _Outcome(True, "Tracing disabled.")  # [ours]
        if what != "all" and ("Action", what) not in self._entities:
            return _Outcome(False, f"'{what}' not found.", "Action", what)  # [double]
        expires = datetime.now(UTC) + TRACE_TIME
        self._traced[what] = expires
        data = {"action": what, "expiresUtc": expires.isoformat()}
        return _Outcome(True, f"Tracing enabled for action '{what}'.", "Action", what, data)  # [double]

    # Settings and users

    def _set(self, store: dict[str, str], assignment: str) -> _Outcome:
        name, equals, value = assignment.partition("=")
        if not name or not equals:
            return _Outcome(False, "Expected NAME=value, failed")  # [ours]
        store[name] = value
        return _Outcome(True, f"{name} set successfully.")  # [ours], and never with the value

    def _unset(self, store: dict[str, str], name: str) -> _Outcome:
        if store.pop(name, None) is None:
            return _Outcome(False, f"'{name}' not found.")  # [double]
        return _Outcome(True, f"{name} removed successfully.")  # [ours]

    def _list_names(self, store: dict[str, str], *, values: bool) -> _Outcome:
        listed = [{"name": name, "value": value} if values else {"name": name} for name, value in store.items()]
        return _Outcome(True, f"{len(listed)} names.", data=listed)  # [ours]

    def _add_user(self, name: str, password: str) -> _Outcome:
        if name in self.users:
            return _Outcome(False, f"User {name} failed: already exists")  # [ours]
        self.users[name] = Account(password)
        return _Outcome(True, f"User {name} added successfully!")  # [v1]

    def _remove_user(self, name: str) -> _Outcome:
        if name == "root":
            return _Outcome(False, "User root cannot be removed, failed")  # [ours]
        if self.users.pop(name, None) is None:
            return _Outcome(False, f"User {name} not found.")  # [ours]
        return _Outcome(True, f"User {name} removed successfully!")  # [v1]

    def _change_user(self, name: str, done: str, **changes: Any) -> _Outcome:
        if name not in self.users:
            return _Outcome(False, f"User {name} not found.")  # [ours]
        self.users[name] = replace(self.users[name], **changes)
        return _Outcome(True, done)

    def _change_password(self, name: str, password: str) -> _Outcome:
        return self._change_user(name, f"Password for user {name} changed successfully!", password=password)  # [v1]

    def _groups(self, name: str) -> frozenset[str]:
        return self.users[name].groups if name in self.users else frozenset()

    def _join(self, name: str, group: str) -> _Outcome:
        return self._change_user(name, f"User {name} is in {group}.", groups=self._groups(name) | {group})  # [ours]

    def _leave(self, name: str, group: str) -> _Outcome:
        return self._change_user(name, f"User {name} left {group}.", groups=self._groups(name) - {group})  # [ours]

    def _list_groups(self, name: str) -> _Outcome:
        groups = {"groups": sorted(self._groups(name))}  # [v2]
        return _Outcome(name in self.users, f"Groups of user {name}.", data=groups)  # [ours]

    def _update_data(self, _rest: str) -> None:
        """Tell the statistics anew. The only command without a reply."""
        self._effects.append(lambda: self._publish("Stats", {"entities": len(self._entities)}))  # [ours] the fields

    # The list of commands

    def _table(self) -> dict[str, tuple[Right | None, Callable[[str], _Outcome | None]]]:
        """Give what each verb needs and does; those of no published list are not here."""
        table: dict[str, tuple[Right | None, Callable[[str], _Outcome | None]]] = {}
        for kind in _KINDS:
            for called in (kind.name, "Visu") if kind.name == "Panel" else (kind.name,):
                table[f"add{called}"] = "system", partial(self._add, kind.name)
                table[f"remove{called}"] = "system", _arguments(partial(self._remove, kind.name), 1)
            if kind.all:
                table[f"removeAll{kind.all}"] = "system", _arguments(partial(self._remove_all, kind.name, kind.all), 0)
        table["runAction"] = "system", self._run
        table["updateData"] = None, self._update_data
        rows: list[tuple[str, Right | None, Callable[..., _Outcome], tuple[int, ...]]] = [
            ("listRoutes", None, partial(self._list, "Route"), (0,)),
            ("listPanels", None, partial(self._list, "Panel"), (0,)),
            ("listThemes", None, partial(self._list, "Theme"), (0,)),
            ("listEntities", None, self._list_entities, (0,)),
            ("listProjects", None, lambda: _Outcome(True, "No projects found.", data=[]), (0,)),  # [double]
            ("listTemplates", None, self._list_templates, (0,)),
            ("routeCode", None, self._route_code, (1,)),
            ("checkRouteConnection", None, self._check_route, (1,)),
            ("getPendingStatus", None, self._pending, (0,)),
            ("lotDiagnostic", None, self._diagnose, (2,)),
            ("actionTrace", "system", self._arm, (1, 2)),
            ("restoreRules", "system", lambda: _Outcome(True, "Rules restored successfully."), (0,)),  # [ours]
            ("setEnv", "system", partial(self._set, self._environment), (1,)),
            ("removeEnv", "system", partial(self._unset, self._environment), (1,)),
            ("listEnv", "system", partial(self._list_names, self._environment, values=True), (0,)),
            ("setSecret", "system", partial(self._set, self._secrets), (1,)),
            ("removeSecret", "system", partial(self._unset, self._secrets), (1,)),
            ("listSecrets", "system", partial(self._list_names, self._secrets, values=False), (0,)),
            ("addUser", "users", self._add_user, (2,)),
            ("removeUser", "users", self._remove_user, (1,)),
            ("changeUserPassword", "users", self._change_password, (2,)),
            ("addUserToGroup", "users", self._join, (2,)),
            ("removeUserFromGroup", "users", self._leave, (2,)),
            ("listUserGroups", "users", self._list_groups, (1,)),
        ]
        return table | {verb: (right, _arguments(function, *counts)) for verb, right, function, counts in rows}


def _arguments(function: Callable[..., _Outcome], *counts: int) -> Callable[[str], _Outcome]:
    """Cut what follows a verb into arguments; quotes hold one together."""

    def call(rest: str) -> _Outcome:
        given = [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if len(given) not in counts:
            return _Outcome(False, f"Expected {counts[0]} arguments, failed")  # [ours]
        return function(*given)

    return call


def _split(text: str) -> tuple[str, str]:
    """Part the first word from the rest; a new line after it belongs to neither."""
    text = text.replace("\r\n", "\n").lstrip()
    word = re.split(r"\s", text, maxsplit=1)[0]
    return word, text[len(word) :].lstrip(" \t").removeprefix("\n")


def _camel(typed: str) -> str:
    """Turn `-addAction` and `--add-action` into `addAction`; what has no dash is no verb."""
    if typed.startswith("--"):
        first, *more = typed[2:].split("-")
        return first + "".join(word.capitalize() for word in more)
    return typed[1:] if typed.startswith("-") else ""


def _now() -> str:
    return datetime.now(UTC).isoformat()
