"""What the assistant may do: which tools there are in which access mode, what each is like, and which topics are open.

The tools are in one table, and everything else about a tool follows from its row: whether it exists, what it tells
clients about itself, whether a person is asked, whether it is recorded, and how long it may take.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from config import ACCESS_MODES, AccessMode, Rules
from errors import InputError, PolicyRefusedError
from topics import TopicFilter, shown

Effect = Literal["looks", "handles", "writes", "deletes"]
"""Looks only; opens or closes something of this session; acts on the world; removes what others rely on."""

Asks = Literal["never", "when it destroys", "always"]
"""When a person is asked: never; when what a call is about says so; at every call."""


class ToolRule(NamedTuple):
    """One row of the table."""

    access: AccessMode
    effect: Effect
    asks: Asks = "never"
    limit_s: float = 60.0
    """How long a call may take, whatever it was asked to wait for."""
    waits: bool = False
    """Whether it takes its time, and must not keep quick calls out."""

    @property
    def acts(self) -> bool:
        """Whether it changes something; every such call is recorded."""
        return self.effect in ("writes", "deletes")


TOOLS: Final[Mapping[str, ToolRule]] = {
    "server_status": ToolRule("read", "looks"),
    "mqtt_topics": ToolRule("read", "looks", limit_s=90, waits=True),
    "mqtt_read": ToolRule("read", "looks", limit_s=330, waits=True),
    "mqtt_subscribe": ToolRule("read", "handles"),
    "mqtt_messages": ToolRule("read", "looks"),
    "mqtt_unsubscribe": ToolRule("read", "handles"),
    "mqtt_wait": ToolRule("read", "looks", limit_s=330, waits=True),
    "mqtt_publish": ToolRule("write", "writes", "when it destroys"),
    "mqtt_request": ToolRule("write", "writes", limit_s=330, waits=True),
    "mqtt_clear_retained": ToolRule("admin", "deletes", "when it destroys", limit_s=330, waits=True),
    "lot_list": ToolRule("read", "looks"),
    "lot_show": ToolRule("read", "looks"),
    "lot_check": ToolRule("read", "looks"),
    "lot_diagnose": ToolRule("read", "looks"),
    "lot_deploy": ToolRule("write", "writes", "when it destroys", limit_s=900, waits=True),
    "lot_run_action": ToolRule("write", "writes"),
    "lot_remove": ToolRule("admin", "deletes", "always"),
    "coreflux_command": ToolRule("admin", "writes", "when it destroys"),
    "copilot_ask": ToolRule("read", "looks", limit_s=660, waits=True),
    "copilot_generate_lot": ToolRule("read", "looks", limit_s=1980, waits=True),
    "run_<name>": ToolRule("write", "writes"),
}
"""Every tool; `run_<name>` stands for those that actions have."""

_COMMANDS: Final = "$SYS/Coreflux/Command"
REPLICAS: Final = "coreflux-mcp/replicas/"
"""Below it replicas of this server talk to each other."""
_NOT_OURS: Final = {
    "$SYS/Coreflux/": "what the broker itself tells",
    REPLICAS: "what replicas of this server tell each other",
}
"""Below what nothing is published by hand, and whose it is."""


def response_root(client_id: str) -> str:
    """Return below what `mqtt_request` hears its answers, each on a topic that nobody else knows."""
    return f"coreflux-mcp/response/{_IN_A_FILTER.sub('_', client_id)}/"


_IN_A_FILTER: Final = re.compile(r"[+#/]")
"""What a broker that assigns client ids could put into one."""


def rule_of(tool: str) -> ToolRule:
    """Return the row of a tool.

    Raises:
        KeyError: It is not in the table, so it cannot be offered.
    """
    return TOOLS["run_<name>" if tool.startswith("run_") else tool]


def exists_in(tool: str, mode: AccessMode) -> bool:
    """Say whether a tool exists in an access mode."""
    return ACCESS_MODES.index(rule_of(tool).access) <= ACCESS_MODES.index(mode)


class Verdict(NamedTuple):
    """Whether something is allowed, and in a sentence why."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Look:
    """What is open of what somebody wants to look at.

    Attributes:
        filters: What may be listened to.
        left_out: Which part of the wish is not among it, in sentences.
    """

    filters: tuple[TopicFilter, ...]
    left_out: tuple[str, ...]


class Policy:
    """The rules for topics: deny beats allow, and no allow means everything."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def publish(self, topic: str, *, retain: bool = False) -> Verdict:
        """Say whether a message may be published to a topic."""
        if topic.lower() == _COMMANDS.lower():
            return Verdict(
                allowed=False,
                reason=f"Commands are not published to {_COMMANDS} by hand: use the lot_ tools or coreflux_command.",
            )
        for root, whose in _NOT_OURS.items():
            if topic.lower().startswith(root.lower()):
                return Verdict(allowed=False, reason=f"{root}# is for {whose}.")
        if retain and topic.startswith("$SYS/"):
            return Verdict(allowed=False, reason=f"{shown(topic)}: nothing is retained below $SYS by hand.")
        for denied in self.rules.publish_deny:
            if denied.matches(topic):
                instead = _instead(self.rules.publish_allow)
                return Verdict(
                    allowed=False, reason=f"PUBLISH_DENY has {denied.text}: {shown(topic)} is closed. {instead}"
                )
        for allowed in self.rules.publish_allow:
            if allowed.matches(topic):
                return Verdict(allowed=True, reason=f"PUBLISH_ALLOW has {allowed.text}.")
        return _without_a_row(shown(topic), "PUBLISH_ALLOW", self.rules.publish_allow)

    def subscribe(self, wanted: TopicFilter) -> Verdict:
        """Say whether every topic that a filter can match may be read."""
        for denied in self.rules.subscribe_deny:
            if denied.overlaps(wanted):
                instead = _instead(self.rules.subscribe_allow)
                return Verdict(
                    allowed=False,
                    reason=f"SUBSCRIBE_DENY has {denied.text}: {shown(wanted.text)} reaches into it. {instead}",
                )
        for allowed in self.rules.subscribe_allow:
            if allowed.covers(wanted):
                return Verdict(allowed=True, reason=f"SUBSCRIBE_ALLOW has {allowed.text}.")
        return _without_a_row(shown(wanted.text), "SUBSCRIBE_ALLOW", self.rules.subscribe_allow)

    def check_publish(self, topic: str, *, retain: bool) -> None:
        """Refuse what `publish` does not allow.

        Raises:
            PolicyRefusedError: It is not allowed; nothing was sent.
        """
        verdict = self.publish(topic, retain=retain)
        if not verdict.allowed:
            raise PolicyRefusedError(f"{verdict.reason} Nothing was sent.")

    def check_subscribe(self, wanted: TopicFilter, own: str = "") -> None:
        """Refuse what `subscribe` does not allow; topics below `own` are the server's.

        Raises:
            PolicyRefusedError: It is not allowed.
        """
        if own and not wanted.has_wildcard and wanted.text.startswith(response_root(own)):
            return
        verdict = self.subscribe(wanted)
        if not verdict.allowed:
            raise PolicyRefusedError(verdict.reason)

    def look(self, wanted: TopicFilter) -> Look:
        """Narrow a wish to look around to what is open.

        What a deny rule takes out of the middle of a filter cannot be said with filters: who looks has to leave those
        topics out, see `open`.
        """
        if wanted.share_name is not None:
            self.check_subscribe(wanted)
        filters = [wanted]
        left_out = []
        if self.rules.subscribe_allow and not any(each.covers(wanted) for each in self.rules.subscribe_allow):
            found = [each.intersection(wanted) for each in self.rules.subscribe_allow]
            filters = [each for each in found if each]
            left_out.append(f"Only what SUBSCRIBE_ALLOW opens was looked at: {_listed(self.rules.subscribe_allow)}.")
        closed = [each for each in self.rules.subscribe_deny if any(each.overlaps(kept) for kept in filters)]
        if closed:
            left_out.append(f"What SUBSCRIBE_DENY closes was left out: {_listed(closed)}.")
        filters = [each for each in filters if not any(denied.covers(each) for denied in closed)]
        if not filters:
            raise PolicyRefusedError(f"Nothing of {shown(wanted.text)} is open. {' '.join(left_out)}")
        return Look(tuple(filters), tuple(left_out))

    def readable(self, topic: str) -> bool:
        """Say whether a topic is within what the rules open; a text that is no topic only where there are none."""
        if not (self.rules.subscribe_allow or self.rules.subscribe_deny):
            return True
        try:
            return self.subscribe(TopicFilter(topic)).allowed
        except InputError:
            return False

    def open(self, topic: str) -> bool:
        """Say whether a topic may be read."""
        return not any(each.matches(topic) for each in self.rules.subscribe_deny)


def _without_a_row(what: str, name: str, allowed: tuple[TopicFilter, ...]) -> Verdict:
    if not allowed:
        return Verdict(allowed=True, reason=f"{name} is empty, which means everything.")
    return Verdict(allowed=False, reason=f"{what} is not within {name}, which has {_listed(allowed)}.")


def _instead(allowed: tuple[TopicFilter, ...]) -> str:
    return f"Open is what else is within {_listed(allowed)}." if allowed else "Everything else is open."


def _listed(filters: tuple[TopicFilter, ...] | list[TopicFilter]) -> str:
    texts = [each.text for each in filters[:_LISTED]]
    return ", ".join(texts) + (f" and {len(filters) - _LISTED} more" if len(filters) > _LISTED else "")


_LISTED: Final = 20
