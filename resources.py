"""What an assistant can read and a person can start from: the LoT reference, deployed source, prompts, completion."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.server.mcpserver.prompts.base import Prompt, PromptArgument
from mcp.server.mcpserver.resources import TextResource
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)

from config import Config
from coreflux import ROOTS, Coreflux, check_name, find
from errors import BridgeError, InputError, NoSuchEntityError
from lot import Kind
from tools.answers import visible
from tools.undo import Undo
from topics import shown

PAGES: Final = Path(__file__).with_name("lot") / "reference"
SOURCE: Final = "coreflux://{kind}/{name}"
UNDO: Final = "undo://{act}"
DIAGNOSIS: Final = "why_does_it_not_work"

_FOR: Final[dict[str, tuple[str, ...]]] = {
    "action": ("program", "action", "triggers", "statements", "expressions", "topics"),
    "model": ("program", "model", "expressions", "topics"),
    "rule": ("program", "rule", "topics"),
    "route": ("program", "route", "topics"),
}
"""The pages that writing each kind needs."""

_MOST_VALUES: Final = 100
"""As many values a completion may have: MCP."""
_NAMES_FRESH_S: Final = 5.0
"""People complete at every keystroke."""


class Resources:
    """Resources, templates, prompts and completion of one server."""

    def __init__(self, coreflux: Coreflux, config: Config, undo: Undo) -> None:
        self._coreflux = coreflux
        self._config = config
        self._undo = undo
        self._pages = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
        self._names: dict[str, tuple[float, list[str]]] = {}

    def add_to(self, server: MCPServer[None]) -> None:
        """Add everything to a server."""
        for page, text in self._pages.items():
            title, about = text.removeprefix("# ").split("\n\n")[:2]
            server.add_resource(
                TextResource(
                    uri=f"lot://reference/{page}",
                    name=f"lot_{page}",
                    title=f"LoT: {title}",
                    description=about,
                    mime_type="text/markdown",
                    text=text,
                )
            )
        server.resource(SOURCE, name="source", title="Source of an entity", mime_type="text/plain")(self.source)
        server.resource(UNDO, name="undo", title="What an act replaced", mime_type="application/json")(self.undo)
        for prompt in self._prompts():
            server.add_prompt(prompt)
        server.completion()(self.complete)  # type: ignore[no-untyped-call]

    async def source(self, kind: str, name: str) -> str:
        """The LoT source of an action, model, rule, route, panel or theme that runs in the Coreflux broker."""
        try:
            entity = find(await self._coreflux.entities([_kind(kind)]), _kind(kind), check_name(_kind(kind), name))
        except (InputError, NoSuchEntityError) as exc:
            raise ResourceNotFoundError(str(exc)) from exc
        except BridgeError as exc:
            raise ResourceError(str(exc)) from exc
        size, most = len(entity.code.encode()), self._config.bounds.result_max_bytes
        if size > most:
            raise ResourceError(f"The source has {size} bytes, more than RESULT_MAX_BYTES ({most}) allows.")
        return visible(entity.code)

    async def undo(self, act: str) -> str:
        """The retained messages that an act replaced or cleared, as arguments for mqtt_publish."""
        kept = self._undo.read(act)
        if kept is None:
            raise ResourceNotFoundError(f"Nothing is kept under {shown(act)}: it was too long ago, or never.")
        return kept

    def _prompts(self) -> Iterator[Prompt]:
        # Made by hand: the SDK's models of their arguments take 3 ms each, and every start would pay for them.
        for kind in _FOR:
            yield Prompt(
                name=f"write_{kind}",
                title=f"Write a {kind}",
                description=f"Write a LoT {kind}, check it, and deploy it only when you agree.",
                arguments=[PromptArgument(name="task", description="What it is to do", required=True)],
                fn=partial(self._write, kind),
            )
        yield Prompt(
            name=DIAGNOSIS,
            title="Why does it not work?",
            description="Find out why an action, a model, a rule or a route does not do what it should.",
            arguments=[
                PromptArgument(name="kind", description=", ".join(_FOR), required=True),
                PromptArgument(name="name", description="As in lot_list", required=True),
            ],
            fn=_find_the_fault,
        )

    def _write(self, kind: str, task: str) -> str:
        return "\n\n".join(
            [
                f"Write a LoT {kind} for a Coreflux broker. What it is to do:\n\n{task}",
                self._steps(),
                "The reference of LoT that you need:",
                *(self._pages[page] for page in _FOR[kind]),
            ]
        )

    def _steps(self) -> str:
        last = (
            "Show me the code. It cannot be deployed: the server runs with ACCESS_MODE=read."
            if self._config.access_mode == "read"
            else "Show me the code, and the plan of lot_deploy with dry_run=true. Deploy it only after I said yes."
        )
        return (
            "1. See with lot_list what is there, and with mqtt_topics and mqtt_read which topics and payloads it works "
            "with. Ask me what you cannot know.\n"
            "2. Write it after the reference below, without comments.\n"
            "3. Give it to lot_check, and mend it until no problem is left.\n"
            f"4. {last}"
        )

    async def complete(
        self,
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        """Complete the kind and the name of an entity."""
        of = ref.uri if isinstance(ref, ResourceTemplateReference) else ref.name
        if of not in (SOURCE, DIAGNOSIS):
            if of in {f"write_{kind}" for kind in _FOR}:
                return None
            raise MCPError(INVALID_PARAMS, f"There is no prompt or resource template {shown(of)}.")
        kinds = list(ROOTS) if isinstance(ref, ResourceTemplateReference) else list(_FOR)
        if argument.name == "kind":
            found = kinds
        elif argument.name == "name":
            given = (context.arguments or {}).get("kind") if context else None
            found = [name for kind in kinds if given in (None, kind) for name in await self._names_of(_kind(kind))]
        else:
            return None
        fitting = [value for value in found if value.startswith(argument.value)]
        return Completion(values=fitting[:_MOST_VALUES], total=len(fitting), has_more=len(fitting) > _MOST_VALUES)

    async def _names_of(self, kind: Kind) -> list[str]:
        heard_at, names = self._names.get(kind, (0.0, []))
        if not heard_at or time.monotonic() - heard_at > _NAMES_FRESH_S:
            try:
                picture = await self._coreflux.entities([kind])
            except BridgeError:
                return []  # nothing to propose; who reads the entity is told why
            readable = [each.name for each in picture.entities if _is_name(kind, each.name)]
            names = [name for name in readable if visible(name) == name]  # one with escapes would name nothing
            self._names[kind] = (time.monotonic(), names)
        return names


_LOOK_AT: Final = {
    "action": "mqtt_wait on the topics of its trigger: do messages come? Then on the topics it publishes to. A timer "
    "needs no message; KEEP delivers nothing; ON CHANGE runs only when the bytes differ.",
    "model": "mqtt_read the topics of its fields, and mqtt_wait on its own. It publishes only when a field that is AS "
    "TRIGGER changes.",
    "rule": "lot_list the rules: the one with the lowest priority number whose scope and topic fit decides. Compare "
    "their priorities, scopes, topics and users with what was refused or allowed.",
    "route": "lot_list the routes: is it connected, and healthy? Then mqtt_wait on the topics of its events, mappings "
    "and results. An event runs when something is published to its source topic, not when it is kept.",
}


def _find_the_fault(kind: str, name: str) -> str:
    if kind not in _LOOK_AT:
        raise MCPError(INVALID_PARAMS, f"There is no such kind: {', '.join(_LOOK_AT)} can be looked into.")
    if not _is_name(_kind(kind), name):
        raise MCPError(INVALID_PARAMS, f"{shown(name)} is no name of a {kind}.")
    return (
        f"Find out why the {kind} {name} in the Coreflux broker does not do what it should. Change nothing.\n"
        "1. server_status with check=true: is the broker connected, and was it all the time?\n"
        f"2. lot_show for the {kind} {name}: is it there, and has it an error? Give its source to lot_check.\n"
        f"3. lot_diagnose for it.\n4. {_LOOK_AT[kind]}\n"
        "5. Tell me what you saw, what you conclude, how sure that is, and the smallest change that would mend it."
    )


def _kind(text: str) -> Kind:
    for kind in ROOTS:
        if kind == text:
            return kind
    raise InputError(f"There is no such kind of entity: {', '.join(ROOTS)} have a source that can be read.")


def _is_name(kind: Kind, name: str) -> bool:
    try:
        check_name(kind, name)
    except InputError:
        return False
    return True
