"""The Coreflux broker's command channel and its entities, spoken over a `Broker`. Knows neither MCP nor paho.

A command is published as text to one topic, and its reply comes back on another that every client shares. Brokers from
2.x on answer with JSON that repeats a request id; older ones answer with a sentence and nothing to tell whose it is.
Which of the two it is, is found out once a connection with a harmless command, and anew when it proves to be wrong.

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
from lot.report import NAME, VERBS
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
"""How much later than a text that might be our reply the one with our identifier may come."""
_QUIET_S: Final = 0.5
"""Entity topics come in one burst after SUBACK; so long a pause is its end."""
_LONGEST_LOOK_S: Final = 5.0
_MOST_FOLLOWED: Final = 1000
_LONGEST_WORDS: Final = 200
_LONGEST_NAMED: Final = 80
_STILL_CONNECTED_S: Final = 1.0
"""How often who follows looks whether the connection is still the same."""

Dialect = Literal["2.x", "no ids", "1.x"]
"""How a broker answers: JSON with our identifier, JSON without any (which versions do is not known), or sentences."""

_PROBE: Final = "-listRoutes"
"""The harmless command by which the dialect is found out."""
_ABOUT_PROBE = re.compile("route", re.IGNORECASE)
"""What a sentence says that answers it."""

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

_KINDS: Final[Mapping[str, Kind]] = {**{kind: kind for kind in ROOTS}, "visu": "panel"}
"""The kinds of entities by what verbs call them."""
_CHANGE = re.compile(rf"(add|remove|removeall)({'|'.join(_KINDS)})s?")
_DEFINED = re.compile(r'DEFINE\s+\w+\s+(?:"([^"]*)"|(\S+))')

_NO_REPLY: Final = {"updatedata"}
_VERB = re.compile(r"--?[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)*")
_TITLE = re.compile(r'[^\W_](?!.*-request-?id)[^"\\/+#]{0,254}', re.IGNORECASE)
_SCRIPT = re.compile(r"\w[\w.-]{0,254}")
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
    def says_missing(self) -> bool:
        """Whether it says that what it was to work on is not there."""
        said = self.message.lower()
        return not self.success and ("not found" in said or "does not exist" in said)

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
    errors: dict[tuple[Kind, str], str] = field(default_factory=dict)
    """The last errors by kind and name, also of what is not there any more: they may stay."""


class Look:
    """What is heard of entities while listening."""

    def __init__(self) -> None:
        self.found: dict[tuple[Kind, str], Entity] = {}
        self.errors: dict[tuple[Kind, str], list[tuple[str, bool]]] = {}
        """Their errors in the order in which they came, and whether each was there before."""
        self.watches: list[Watch] = []
        self._heard_at = time.monotonic()

    def hear(self, place: tuple[Kind, str, str], text: str, *, retained: bool) -> None:
        """Take in what a topic says."""
        kind, name, part = place
        self._heard_at = time.monotonic()
        if part == "Error":
            self.errors.setdefault((kind, name), []).append((text, retained))
        if part == "" and not text:  # removed; the retain bit says nothing (it may be missing)
            self.found.pop((kind, name), None)
        else:
            _note(self.found.setdefault((kind, name), Entity(kind, name)), part, text)

    async def settled(self) -> bool:
        """Wait until nothing more comes, and say whether it ended."""
        started = time.monotonic()
        while (now := time.monotonic()) - self._heard_at < _QUIET_S and now - started < _LONGEST_LOOK_S:  # noqa: ASYNC110 - silence
            await asyncio.sleep(_QUIET_S - (now - self._heard_at))
        return time.monotonic() - self._heard_at >= _QUIET_S


def check_name(kind: Kind, name: str) -> str:
    """Check the name of an entity; nothing else than a name can come out of it into a command.

    Raises:
        InputError: It is none.
    """
    pattern, words = NAME, "letters, digits and _ only, and no digit first"
    if kind in ("panel", "theme"):
        pattern, words = _TITLE, 'a letter or digit first, on one line, and none of "\\/+#'
    elif kind == "python":
        pattern, words = _SCRIPT, "letters, digits, _, - and . only, and neither - nor . first"
    if not pattern.fullmatch(name) or not name.isprintable():
        raise InputError(f"{shown(name)} is no name of {'an' if kind == 'action' else 'a'} {kind}: {words}.")
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
        self._gone: dict[tuple[Kind, str], str] = {}
        """What was removed, with the source it had: the broker may go on showing that."""

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
        change = _change(command)
        if change is None:
            return await self._ask(command, dialect)
        act, kind, name = change
        if act == "add":
            left = self._gone.pop((kind, name), None)
            reply = await self._ask(command, dialect)
            if left is not None and not reply.success:
                self._gone[kind, name] = left
            return reply
        async with contextlib.AsyncExitStack() as stack:
            look = Look()
            with contextlib.suppress(BrokerRefusedError):  # who may not look is not shown anything that is gone
                look = await stack.enter_async_context(self.look([kind]))
            reply = await self._ask(command, dialect)
        if reply.success or reply.says_missing:
            gone = (each for each in look.found.values() if each.code and name in ("", each.name))
            self._gone |= {(kind, each.name): each.code for each in gone}
        return reply

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
            self._known = None  # should that be wrong, the next call finds out
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
        kinds = [kind for kind in kinds if kind in ROOTS]
        async with self.look(kinds) as look:
            quiet = await look.settled()
        complete = quiet and all(watch.connected_throughout for watch in look.watches)
        if complete:
            sourced = {key for key, entity in look.found.items() if entity.code}
            for key in [key for key in self._gone if key[0] in kinds and key not in sourced]:
                del self._gone[key]  # the broker has cleared its topic
        entities = sorted(filter(self._is_there, look.found.values()), key=lambda each: (each.kind, each.name))
        return Picture(entities, complete, {key: errors[-1][0] for key, errors in look.errors.items()})

    @asynccontextmanager
    async def look(self, kinds: Iterable[Kind]) -> AsyncIterator[Look]:
        """Hear of the entities of some kinds: first of those there are, then of each change; raises as `entities`.

        It has also what was removed and is still shown.
        """
        await self._check_for_coreflux()
        look = Look()

        def hear(message: Message) -> None:
            if place := _place(message.topic):
                text = message.payload.decode(errors="replace")
                self._learn(place, text, look.found.get(place[:2]), message)
                look.hear(place, text, retained=message.retained)

        async with contextlib.AsyncExitStack() as stack:
            for kind in kinds:
                look.watches.append(await stack.enter_async_context(self._listen(f"{ROOTS[kind]}/#", hear)))
            yield look

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
            after, text = replace(before), message.payload.decode(errors="replace")
            self._learn(place, text, before, message)
            _note(after, place[2], text)
            if after != before:
                found[after.name] = after
                changed.set()

        connection = self._broker.state.connections
        async with (
            self._listen(f"{ROOTS[kind]}/+", hear),
            self._listen(f"{ROOTS[kind]}/+/Description", hear),
        ):
            told: list[Entity] | None = None
            changed.set()
            while self._broker.state.connected and self._broker.state.connections == connection:
                if changed.is_set():
                    await asyncio.sleep(_QUIET_S)  # changes come in bursts
                    changed.clear()
                entities = [found[name] for name in sorted(found) if self._is_there(found[name])]
                if entities != told:
                    told = entities
                    await tell(entities)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STILL_CONNECTED_S):
                        await changed.wait()

    def _learn(self, place: tuple[Kind, str, str], text: str, before: Entity | None, message: Message) -> None:
        """Take note that something which was removed is there again, or that its topic was cleared.

        The first source that comes may be what was left, also without the retain bit.
        """
        kind, name, part = place
        comes_anew = not message.retained and before is not None and before.code
        if part == "" and (comes_anew or text != self._gone.get((kind, name))):
            self._gone.pop((kind, name), None)

    def _is_there(self, entity: Entity) -> bool:
        """Say whether what is shown is there: it has a source, and not that with which we removed it."""
        return bool(entity.code) and self._gone.get((entity.kind, entity.name)) != entity.code

    # The channel.

    async def _dialect(self) -> Dialect:
        """Find out once a connection how this broker answers, or that it has no commands."""
        known, state = self._known, self._broker.state
        if known is None or known[0] != state.connections:
            await self._check_for_coreflux()
            async with self._one_at_a_time:
                await self._sit_out_quarantine()
                connection = state.connections
                reply = await self._exchange(_PROBE, None)
            self._known = known = (connection, reply.dialect)
        return known[1]

    async def _check_for_coreflux(self) -> None:
        """Refuse a broker that says to be another one; not every login may read what a Coreflux broker says."""
        make = await self.identity.make()
        if make.has_no_commands:
            raise NotCorefluxError(f"This broker is {shown(make.version or '')} and has no Coreflux command channel.")

    async def _ask(self, command: str, dialect: Dialect) -> Reply:
        if dialect == "2.x":
            return await self._exchange(command, dialect)
        async with self._one_at_a_time:
            await self._sit_out_quarantine()
            try:
                return await self._exchange(command, dialect)
            except BaseException as exc:  # silence, and a caller that gave up
                self._quarantine_until = time.monotonic() + QUARANTINE_S
                if isinstance(exc, BrokerSilentError):
                    self._known = None  # perhaps it was taken for another broker than it is
                raise

    async def _sit_out_quarantine(self) -> None:
        wait_s = self._quarantine_until - time.monotonic()
        if wait_s > 0:  # a late reply could be taken for the next one
            await asyncio.sleep(wait_s)

    async def _exchange(self, command: str, dialect: Dialect | None) -> Reply:
        """Send a command and wait for its reply; without a dialect, find that out too."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        request_id = secrets.token_hex(8) if dialect in (None, "2.x") else ""
        likely: Reply | None = None

        def take(found: Reply) -> None:
            if not reply.done():
                reply.set_result(found)

        def hear(message: Message) -> None:
            nonlocal likely
            found, patience_s = self._understand(message, command, dialect, request_id)
            if found and patience_s is not None:
                loop.call_later(patience_s, take, found)
            elif found:
                likely = found

        async with self._listen(OUTPUT_TOPIC, hear):
            await self._publish(f"{command} -requestId {request_id}" if request_id else command)
            if verb_of(command) in _NO_REPLY:
                return Reply(success=True, message="Sent; this command has no reply.")
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    return await reply
            except TimeoutError:
                if likely:
                    return likely
                raise BrokerSilentError(
                    f"No reply to {named(command)} within {self._answer_timeout_s:g} s. A Coreflux broker drops "
                    "commands of logins without the right CommandCall in silence, and other brokers have no commands "
                    "at all: check the login's rights. Whether it was carried out is not known."
                ) from None

    def _understand(
        self, message: Message, command: str, dialect: Dialect | None, request_id: str
    ) -> tuple[Reply | None, float | None]:
        """Read a message as the reply to a command; with how long a better one may take, None until the deadline."""
        text = message.payload.decode(errors="replace").strip()
        patience_s = 0 if dialect else _JUNK_S
        envelope = _read_envelope(text)
        if envelope is None:
            found = _read_sentence(text, command) if dialect in (None, "1.x") else None
            was_old = self._known is not None and self._known[1] == "1.x"
            certain = dialect or was_old or _ABOUT_PROBE.search(text)
            return found, patience_s if certain else None
        its_id = envelope.get("requestId")
        if dialect == "1.x" or (dialect == "no ids" and its_id is not None):
            self._known = None  # the broker is a newer one
        if request_id and its_id == request_id:
            return _reply(envelope, "2.x"), 0
        if dialect != "2.x" and its_id is None and _is_about(envelope, command):
            return _reply(envelope, "no ids"), patience_s
        return None, None

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
    return name if _SCRIPT.fullmatch(name) else f'"{name}"'


def _change(command: str) -> tuple[str, Kind, str] | None:
    """Say what a command does to what entity that has a topic: add, remove or removeall, its kind, and its name.

    What removes all rules is none: it leaves those that are built in.
    """
    verb = _CHANGE.fullmatch(verb_of(command))
    if verb is None or verb[0] == "removeallrules":
        return None
    rest = (*command.split(None, 1), "")[1]
    name = "" if verb[1] == "removeall" else rest.strip().strip('"')
    if verb[1] == "add":
        defined = _DEFINED.match(rest)
        name = (defined[1] or defined[2] or "") if defined else ""
    return verb[1], _KINDS[verb[2]], name


def _read_envelope(text: str) -> dict[str, Any] | None:
    """Read a JSON reply [v2]; None for anything else on the topic."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return envelope if isinstance(envelope, dict) else None


def _is_about(envelope: Mapping[str, Any], command: str) -> bool:
    """Say whether a reply without an identifier names a command, and no other entity than it."""
    said = envelope.get("command")
    return (
        isinstance(said, str) and said.lower() == verb_of(command) and str(envelope.get("entityName") or "") in command
    )


def _reply(envelope: Mapping[str, Any], dialect: Dialect) -> Reply:
    errors = envelope.get("errors")
    return Reply(
        success=envelope.get("success") is True,
        message=str(envelope.get("message", "")),
        data=envelope.get("data"),
        errors=tuple(each for each in errors if isinstance(each, dict)) if isinstance(errors, list) else (),
        dialect=dialect,
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
    adds = about.upper() == "DEFINE" or about == "#"
    if adds:
        at = 4 if about == "#" else 3  # -addPython # Script Name: name, -addAction DEFINE ACTION name
        about = words[at] if len(words) > at else ""
    parse_error = _PARSE_ERROR.search(text) is not None
    if about and about.strip('"') not in text and not (parse_error and adds):
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
