"""The Coreflux broker's command channel and its entities, spoken over a `Broker`. Knows neither MCP nor paho.

A command is published as text to one topic, and its reply comes back on another that every client shares. Brokers from
2.x on answer with JSON that repeats a request id; older ones answer with a sentence and nothing to tell whose it is.
Which of the two it is, is found out once a connection with a harmless command.

Facts are from the broker reference (compiled from the vendor's published clients and documents, not measured): what it
tags as unverified is read defensively here and decides nothing.
"""

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from errors import (
    BrokerError,
    BrokerRefusedError,
    BrokerSilentError,
    InputError,
    NoSuchEntityError,
    NotCorefluxError,
)
from identity import Identity
from inbox import Message
from lot import Kind
from lot.report import VERBS
from mqtt_client import Broker, Watch
from mqtt_link import PublishProperties
from sanitizer import shortened
from topics import TopicFilter, shown

COMMAND_TOPIC: Final = "$SYS/Coreflux/Command"
OUTPUT_TOPIC: Final = "$SYS/Coreflux/Command/Output"

ANSWER_TIMEOUT_S: Final = 10.0
"""How long a reply may take; the vendor's own older server waits as long."""

QUARANTINE_S: Final = 5.0
"""How long after a command without a reply nothing is sent to a broker that cannot say whose a reply is."""

_JUNK_S: Final = 0.5
"""How much later than a stray text the JSON reply of a 2.x broker may come."""
_QUIET_S: Final = 0.5
"""Entity topics come in one burst after SUBACK; so long a pause is its end."""
_LONGEST_LOOK_S: Final = 5.0
_MOST_FOLLOWED: Final = 1000
_LONGEST_WORDS: Final = 200
_LONGEST_NAMED: Final = 80
_STILL_CONNECTED_S: Final = 1.0
"""How often who follows looks whether the connection is still the same."""

Dialect = Literal["2.x", "1.x"]

ROOTS: Final[Mapping[Kind, str]] = {
    "action": "$SYS/Coreflux/Actions",
    "model": "$SYS/Coreflux/Models",
    "rule": "$SYS/Coreflux/Rules",
    "route": "$SYS/Coreflux/Routes",
    "panel": "$SYS/Coreflux/VoT/Panels",
    "theme": "$SYS/Coreflux/VoT/Themes",
}
"""Where the source of each kind of entity is to be read. Python scripts have no topic in 2.x [v2]."""

_OPEN: Final = {
    *("addaction", "addmodel", "addrule", "addpython", "addpanel", "addvisu", "addtheme", "updatevisustate"),
    *("actiontrace", "lotdiagnostic", "routecode", "panelcode", "checkrouteconnection", "connectionstatus"),
    *("loadproject", "unloadproject", "duplicateproject", "projectstatus", "projectmanifest", "projectcheckout"),
    *("addusertogroup", "changeusersettings", "installpythonpackage", "restorerules", "loadlicense", "runaction"),
}
"""Whose arguments hold no secret by their nature, and may be shown; so may those of what lists, gets and removes."""
_NAMES_FIRST: Final = {"adduser", "changeuserpassword", "setsecret", "setenv"}
"""Whose first argument, up to a `=`, says whom or what it is about, and whose rest is secret."""

_GUARDED: Final = {
    *("restorerules", "changeuserpassword", "changeusersettings", "loadlicense", "installpythonpackage", "addrule"),
    *("loadproject", "unloadproject", "addusertogroup"),
}
"""What can take away, replace what runs, or lock out, besides everything that removes or uninstalls."""

_NO_REPLY: Final = {"updatedata"}
_VERB = re.compile(r"--?[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_TITLE = re.compile(r"[^\W_][\w .-]{0,254}")
_REQUEST_ID = re.compile(r"-{1,2}request-?id", re.IGNORECASE)
_PROPERTIES: Final = PublishProperties()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the broker answered to a command.

    Attributes:
        success: Whether it did what was asked.
        message: Its words.
        data: What it found; None when it said nothing.
        errors: What was wrong, each with `message` and, for LoT, `line` and `column` where it said so.
        dialect: How it answered.
    """

    success: bool
    message: str
    data: Any = None
    errors: tuple[Mapping[str, Any], ...] = ()
    dialect: Dialect = "2.x"

    @property
    def words(self) -> str:
        """Its words, to be quoted in a sentence of ours: on one line, and where they end is plain."""
        return in_words(self.message)


@dataclass(slots=True)
class Entity:
    """Something that runs in the broker."""

    kind: Kind
    name: str
    code: str = ""
    description: str = ""
    error: str = ""
    """The last error it had while running."""
    status: Mapping[str, Any] | None = None
    """Of a route: its connection and health, as the broker says it."""


@dataclass(slots=True)
class Picture:
    """The entities there are."""

    entities: list[Entity] = field(default_factory=list)
    complete: bool = False
    """Everything the broker had to tell was heard: the listening was granted, uninterrupted, and ended in silence."""


def check_name(kind: Kind, name: str) -> str:
    """Check the name of an entity; nothing else than a name can come out of it into a command.

    Raises:
        InputError: It is none.
    """
    pattern = _TITLE if kind in {"panel", "theme"} else _NAME
    if not pattern.fullmatch(name):
        raise InputError(f"{shown(name)} is no name of a {kind}: letters, digits and _ only, and no digit first.")
    return name


def verb_of(command: str) -> str:
    """Return the first word of a command without dashes and in lower case, as every spelling of it has in common."""
    return command.split(None, 1)[0].replace("-", "").lower() if command.strip() else ""


def check_command(command: str) -> str:
    """Check a whole command as a person or an assistant would type it.

    Raises:
        InputError: It is none, or carries a request id of its own.
    """
    command = command.strip()
    first = command.split(None, 1)[0] if command else ""
    if not _VERB.fullmatch(first):
        raise InputError(f"{shown(first)} is no command: one begins with a dash, like -listRoutes.")
    if "\0" in command or _REQUEST_ID.search(command):
        raise InputError("A command can have no request id of its own: leave out -requestId.")
    return command


def is_guarded(command: str) -> bool:
    """Say whether a command can destroy or lock out, so that a person is asked: the broker reference's guard list.

    Also when that stands further on in the text: whether a broker takes several commands in one is not known.
    """
    words = [word.strip("\"';") for word in command.split()]
    verbs = {verb_of(word) for word in words if word.startswith("-")}
    return (
        not verbs.isdisjoint(_GUARDED)
        or any(verb.startswith(("remove", "uninstall", "assetdefault")) for verb in verbs)
        or ("addproject" in verbs and "load" in (word.lower() for word in words))
    )


class Coreflux:
    """The command channel of one broker."""

    def __init__(self, broker: Broker, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.identity = Identity(broker)
        self._broker = broker
        self._answer_timeout_s = answer_timeout_s
        self._known: tuple[int, Dialect] | None = None
        """The number of the connection on which the dialect was found out, and what it is."""
        self._one_at_a_time = asyncio.Lock()
        self._quarantine_until = 0.0

    async def check(self) -> None:
        """Make sure that this broker takes our commands, by a harmless one; raises what `command` raises."""
        await self._dialect()

    async def command(self, command: str) -> Reply:
        """Give one command and return the broker's reply, whatever it says.

        Raises:
            InputError: It is no command; see `check_command`.
            NotCorefluxError: This broker has no command channel.
            BrokerRefusedError: The login may not read replies, or may not give commands.
            BrokerSilentError: No reply came; whether the command was carried out is not known.
            BrokerOfflineError: There is no connection.
        """
        command = check_command(command)
        dialect = await self._dialect()
        return await self._ask(command, dialect)

    async def remove(self, kind: Kind, name: str) -> Reply:
        """Remove an entity; raises what `command` raises."""
        return await self.command(f"{VERBS[kind].replace('-add', '-remove')} {_argument(check_name(kind, name))}")

    async def add(self, verb: str, code: str) -> Reply:
        """Deploy one definition with the verb of its kind; raises what `command` raises."""
        if not code.startswith(("DEFINE ", "# Script Name:")):
            raise InputError("A definition begins with DEFINE, and a Python script with # Script Name:, in column 1.")
        return await self.command(f"{verb} {code}")

    async def run_action(self, name: str, arguments: Mapping[str, Any] | None = None) -> Reply:
        """Run a callable action with its inputs, or any action with a message; raises what `command` raises.

        A 1.x broker takes a name only [v1].

        Raises:
            InputError: There are arguments and the broker cannot take any, or not these.
        """
        check_name("action", name)
        if arguments and await self._dialect() == "1.x":
            raise InputError("This broker is of the 1.x line, which runs actions without arguments.")
        try:
            rest = f" {json.dumps(arguments, ensure_ascii=False, allow_nan=False)}" if arguments else ""
        except ValueError:
            raise InputError("NaN and Infinity are no JSON, so an action cannot be given them.") from None
        return await self.command(f"-runAction {name}{rest}")

    async def entities(self, kinds: Iterable[Kind] = tuple(ROOTS)) -> Picture:
        """Look at the entities of some kinds, by name.

        Raises:
            BrokerRefusedError: The login may not read `$SYS/Coreflux`.
            NotCorefluxError, BrokerOfflineError, BrokerSilentError: As their names say.
        """
        await self._check_for_coreflux()
        found: dict[tuple[Kind, str], Entity] = {}
        heard_at = started = time.monotonic()

        def hear(message: Message) -> None:
            nonlocal heard_at
            heard_at = time.monotonic()
            place = _place(message.topic)
            if place is None:
                return
            kind, name, part = place
            if part == "" and not message.payload:  # removed; the retain bit says nothing (it may be missing)
                found.pop((kind, name), None)
                return
            _note(found.setdefault((kind, name), Entity(kind, name)), part, message.payload.decode(errors="replace"))

        async with contextlib.AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(self._listen(f"{ROOTS[kind]}/#", hear))
                for kind in kinds
                if kind in ROOTS
            ]
            while (now := time.monotonic()) - heard_at < _QUIET_S and now - started < _LONGEST_LOOK_S:  # noqa: ASYNC110 - silence
                await asyncio.sleep(_QUIET_S - (now - heard_at))
            quiet = time.monotonic() - heard_at >= _QUIET_S
        entities = sorted((each for each in found.values() if each.code), key=lambda each: (each.kind, each.name))
        return Picture(entities, complete=quiet and all(watch.connected_throughout for watch in watches))

    async def follow(self, kind: Kind, tell: Callable[[Sequence[Entity]], Awaitable[None]]) -> None:
        """Tell which entities of a kind there are, with source and description, by name: now and at each change.

        Returns when the connection is lost; what changed meanwhile has to be looked at anew.

        Raises:
            BrokerRefusedError: The login may not read `$SYS/Coreflux`.
            NotCorefluxError, BrokerOfflineError, BrokerSilentError: As their names say.
        """
        await self._check_for_coreflux()
        found: dict[str, Entity] = {}
        changed = asyncio.Event()

        def hear(message: Message) -> None:
            place = _place(message.topic)
            if place is None or (place[1] not in found and len(found) >= _MOST_FOLLOWED):
                return
            before = found.get(place[1]) or Entity(kind, place[1])
            after = replace(before)
            _note(after, place[2], message.payload.decode(errors="replace"))
            if after != before:
                found[after.name] = after
                changed.set()

        connection = self._broker.state.connections
        async with (
            self._listen(f"{ROOTS[kind]}/+", hear),
            self._listen(f"{ROOTS[kind]}/+/Description", hear),
        ):
            changed.set()
            while self._broker.state.connected and self._broker.state.connections == connection:
                if changed.is_set():
                    await asyncio.sleep(_QUIET_S)  # changes come in bursts
                    changed.clear()
                    await tell([found[name] for name in sorted(found) if found[name].code])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STILL_CONNECTED_S):
                        await changed.wait()

    # The channel.

    async def _dialect(self) -> Dialect:
        """Find out once a connection how this broker answers, or that it has no commands."""
        state = self._broker.state
        if self._known is None or self._known[0] != state.connections:
            await self._check_for_coreflux()
            connection = state.connections
            async with self._one_at_a_time:
                reply = await self._exchange("-listRoutes", None)
            self._known = (connection, reply.dialect)
        return self._known[1]

    async def _check_for_coreflux(self) -> None:
        """Refuse a broker that says to be another one; not every login may read what a Coreflux broker says."""
        make = await self.identity.make()
        if make.has_no_commands:
            raise NotCorefluxError(f"This broker is {shown(make.version or '')} and has no Coreflux command channel.")

    async def _ask(self, command: str, dialect: Dialect) -> Reply:
        if dialect == "2.x":
            return await self._exchange(command, dialect)
        async with self._one_at_a_time:
            wait_s = self._quarantine_until - time.monotonic()
            if wait_s > 0:  # a late reply could be taken for the next one
                await asyncio.sleep(wait_s)
            try:
                return await self._exchange(command, dialect)
            except BaseException:  # silence, and a caller that gave up
                self._quarantine_until = time.monotonic() + QUARANTINE_S
                raise

    async def _exchange(self, command: str, dialect: Dialect | None) -> Reply:
        """Send a command and wait for its reply; without a dialect, find that out too."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        request_id = "" if dialect == "1.x" else secrets.token_hex(8)

        def take(found: Reply) -> None:
            if not reply.done():
                reply.set_result(found)

        def hear(message: Message) -> None:
            text = message.payload.decode(errors="replace").strip()
            if request_id and (found := _read_envelope(text, request_id)):
                take(found)
            elif dialect != "2.x" and (found := _read_sentence(text, command)):
                loop.call_later(0 if dialect else _JUNK_S, take, found)

        async with self._listen(OUTPUT_TOPIC, hear):
            await self._publish(f"{command} -requestId {request_id}" if request_id else command)
            if verb_of(command) in _NO_REPLY:
                return Reply(success=True, message="Sent; this command has no reply.")
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    return await reply
            except TimeoutError:
                raise BrokerSilentError(
                    f"No reply to {named(command)} within {self._answer_timeout_s:g} s. A Coreflux broker drops "
                    "commands of logins without the right CommandCall in silence, and other brokers have no commands "
                    "at all: check the login's rights. Whether it was carried out is not known."
                ) from None

    @asynccontextmanager
    async def _listen(self, topic_filter: str, hear: Callable[[Message], None]) -> AsyncIterator[Watch]:
        """Hear what the broker tells of itself, which it does not tell every login."""
        try:
            async with self._broker.listen(TopicFilter(topic_filter), hear) as watch:
                yield watch
        except BrokerRefusedError as exc:
            if topic_filter not in str(exc):
                raise
            what, right = ("what runs in the broker", "AllowedSystemConfiguration")
            if topic_filter == OUTPUT_TOPIC:
                what, right = ("the replies to commands", "AllowedSystemConfiguration or AllowedUserManagement")
            raise BrokerRefusedError(f"The login may not read {what}: {exc} In Coreflux it needs {right}.") from exc

    async def _publish(self, command: str) -> None:
        try:
            await self._broker.publish(COMMAND_TOPIC, command.encode(), 1, retain=False, properties=_PROPERTIES)
        except BrokerRefusedError as exc:
            raise NotCorefluxError(
                f"This broker refuses commands to {COMMAND_TOPIC}: it is no Coreflux broker, or the login has no right "
                f"to give any. {exc}"
            ) from exc


def named(command: str) -> str:
    """Show a command on one line that may be logged: its verb, and of the rest what can be no secret."""
    first = command.split("\n", 1)[0]
    words = first.split()
    if verb_of(command) in _NAMES_FIRST:
        return shown(shortened(" ".join(words[:2]).partition("=")[0], _LONGEST_NAMED))[1:-1]
    return shown(shortened(first, _LONGEST_NAMED))[1:-1] if is_open(command) else words[0]


def is_open(command: str) -> bool:
    """Say whether the whole of a command may be shown: it is known what it is, and that holds no secret."""
    verb = verb_of(command)
    return verb in _OPEN or (verb.startswith(("list", "get", "remove", "uninstall")) and "token" not in verb)


def in_words(text: str) -> str:
    """Quote what the broker says, on one line and not at length."""
    return json.dumps(shortened(text, _LONGEST_WORDS), ensure_ascii=False)


def _argument(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _read_envelope(text: str, request_id: str) -> Reply | None:
    """Read the JSON reply to our request [v2]; None for anything else on the topic."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(envelope, dict) or envelope.get("requestId") != request_id:
        return None
    errors = envelope.get("errors")
    return Reply(
        success=envelope.get("success") is True,
        message=str(envelope.get("message", "")),
        data=envelope.get("data"),
        errors=tuple(each for each in errors if isinstance(each, dict)) if isinstance(errors, list) else (),
    )


_PARSE_ERROR = re.compile(r"pars(?:e|ing) error", re.IGNORECASE)
_POSITION = re.compile(r"\((\d{1,6}),\s?(\d{1,6})\)")
_DONE = re.compile(r"success|removed|enabled", re.IGNORECASE)
_FAILED = re.compile(r"error|fail|not found|does not exist|denied|unknown|invalid", re.IGNORECASE)


def _read_sentence(text: str, command: str) -> Reply | None:
    """Take a sentence for the reply when it speaks of what the command is about [v1].

    There is nothing else to go by: an older broker tells nobody whose reply it is. Parse errors name no entity.
    """
    if not text or text[0] in "{[":
        return None
    words = command.split()
    about = words[1] if len(words) > 1 else ""
    if about.upper() == "DEFINE":
        about = words[3] if len(words) > 3 else ""  # noqa: PLR2004 - -addAction DEFINE ACTION name
    parse_error = _PARSE_ERROR.search(text) is not None
    if about and about.strip('"') not in text and not (parse_error and "DEFINE" in command):
        return None
    failed = _FAILED.search(text) is not None
    if about and not failed and not _DONE.search(text):
        return None  # half a reply, or talk about the entity: neither may pass for success
    errors: tuple[Mapping[str, Any], ...] = ()
    if parse_error:
        position = _POSITION.search(text)
        place = {"line": int(position[1]), "column": int(position[2])} if position else {}
        errors = ({"message": text, **place},)
    return Reply(success=not failed, message=text, errors=errors, dialect="1.x")


# Entities.


def _place(topic: str) -> tuple[Kind, str, str] | None:
    """Say which entity a topic is about, and which part of it; "" is its source."""
    for kind, root in ROOTS.items():
        if topic.startswith(f"{root}/"):
            name, _, part = topic[len(root) + 1 :].partition("/")
            return kind, name, part
    return None


def _note(entity: Entity, part: str, text: str) -> None:
    if part == "":
        entity.code = text
    elif part == "Description":
        entity.description = _described(text)
    elif part == "Error":
        entity.error = text
    elif part == "status" and entity.kind == "route":
        with contextlib.suppress(ValueError, RecursionError):
            status = json.loads(text)
            entity.status = status if isinstance(status, dict) else None


def _described(text: str) -> str:
    """Read a description: plain text, or JSON with a `description` (both occur) [v1]."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(value["description"]) if isinstance(value, dict) and "description" in value else text


def find(picture: Picture, kind: Kind, name: str) -> Entity:
    """Find one entity.

    Raises:
        NoSuchEntityError: It is not there.
        BrokerError: It was not heard of, but not everything was.
    """
    for entity in picture.entities:
        if (entity.kind, entity.name) == (kind, name):
            return entity
    if picture.complete:
        raise NoSuchEntityError(f"There is no {kind} {shown(name)} in the broker.")
    raise BrokerError(f"No {kind} {shown(name)} was heard of, but not everything could be heard: try again.")
