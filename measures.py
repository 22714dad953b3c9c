"""What is counted, and the one table of it: `/metrics` exposes these numbers and `server_status` shows them.

Everything here belongs to the event loop. No label has a value that somebody outside could choose.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Final, Literal, NamedTuple, Protocol, get_args

from audit import Audit
from copilot_client import CopilotClient
from limits import Limits
from mqtt_client import Broker
from policy import TOOLS

Outcome = Literal["ok", "error", "refused", "limited", "cancelled", "asked", "failed"]
"""How a tool call ended: done; a failure we foresaw; forbidden; too much at once; given up; a question to a person that
the client has to put; a bug of ours."""
Kind = Literal["counter", "gauge", "histogram"]

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OTHER: Final = "other"

_ACTION: Final = "run_<name>"
_AUTH_FAILURES: Final = ("missing", "wrong")
_RATE_LIMITS: Final = ("calls", "messages", "address", "client", "requests", "sessions")
_MOST_ROUTES: Final = 20

Number = int | float


class Durations:
    """How long calls took."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    @property
    def sum_s(self) -> float:
        """Seconds in all, to the microsecond."""
        return round(self._sum_s, 6)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    @property
    def up_to(self) -> list[int]:
        """For each of `BUCKETS_S`, and for no bound at all, how many took no longer."""
        return list(accumulate(self._counts))


class Family(NamedTuple):
    """A measure with all of its values."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    values: list[tuple[tuple[str, ...], Number | Durations]]
    """Each with the values of the labels, in their order."""


class Sources(NamedTuple):
    """Who else has numbers."""

    version: str
    broker: Broker
    copilot: CopilotClient
    audit: Audit
    limits: Limits


class Connections(Protocol):
    """Who knows what is open over HTTP."""

    @property
    def sessions(self) -> int:
        """How many sessions are open."""

    @property
    def streams(self) -> int:
        """How many requests and streams are under way."""


class Measures:
    """The counters of the server, and the way to those that its parts keep.

    Attributes:
        http: Whoever serves MCP over HTTP; None on stdio.
    """

    def __init__(self, sources: Sources | None = None) -> None:
        """Make it; without sources it counts, and has nothing to show."""
        self.http: Connections | None = None
        self._sources = sources
        self._calls: dict[tuple[str, str], Durations] = {}
        self._auth_failures: Counter[str] = Counter()
        self._rate_limited: Counter[str] = Counter()
        self._http_requests: Counter[tuple[str, str]] = Counter()

    def tool_call(self, tool: str, outcome: Outcome, seconds: float) -> None:
        """Count a tool call that has ended; a tool that is not in the policy's table is that of an action."""
        key = (tool if tool in TOOLS else _ACTION, outcome)
        durations = self._calls.get(key)
        if durations is None:
            durations = self._calls[key] = Durations()
        durations.add(seconds)

    def auth_failure(self, reason: str) -> None:
        """Count a request over HTTP with a token that is "missing" or "wrong"."""
        self._auth_failures[reason if reason in _AUTH_FAILURES else OTHER] += 1

    def rate_limited(self, limit: str) -> None:
        """Count what was turned away: one of too many "calls"; over HTTP "address", "client", "requests", "sessions".

        Messages to one topic are counted where they are refused.
        """
        self._rate_limited[limit if limit in _RATE_LIMITS else OTHER] += 1

    def http_request(self, route: str, status: int) -> None:
        """Count a request over HTTP; `route` is a path of ours, and status 0 means that nothing was answered."""
        known = {known for known, _ in self._http_requests}
        if route not in known and len(known) >= _MOST_ROUTES:
            route = OTHER
        self._http_requests[route, f"{status // 100}xx" if status else "none"] += 1

    def families(self) -> list[Family]:
        """Return all there is to tell, as it is now."""
        if self._sources is None:
            return []
        return [_family(row, self, self._sources) for row in _TABLE]

    def calls(self) -> Mapping[tuple[str, str], int]:
        """Return how many calls ended how, zeros included: the first of a kind would not show as an increase."""
        counts: dict[tuple[str, str], int] = dict.fromkeys(
            ((tool, end) for tool in TOOLS for end in get_args(Outcome)), 0
        )
        return counts | {key: durations.count for key, durations in self._calls.items()}

    def durations(self) -> Mapping[tuple[str, str], Durations]:
        """Return how long calls took."""
        return self._calls

    def refusals(self) -> int:
        """Return how many calls were forbidden."""
        return sum(durations.count for (_, outcome), durations in self._calls.items() if outcome == "refused")

    def auth_failures(self) -> Mapping[str, int]:
        """Return how many requests had no token that fits."""
        return dict.fromkeys(_AUTH_FAILURES, 0) | self._auth_failures

    def rate_limits(self, limits: Limits) -> Mapping[str, int]:
        """Return how much was turned away: what `limits` refused and was no call was a message."""
        messages = limits.facts()["refused"] - self._rate_limited["calls"]
        return dict.fromkeys(_RATE_LIMITS, 0) | self._rate_limited | {"messages": messages}

    def http_requests(self) -> Mapping[tuple[str, str], int]:
        """Return how many requests were answered how."""
        return self._http_requests


class _Row(NamedTuple):
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Measures, Sources], Number | Mapping[str, Number] | Mapping[tuple[str, str], Number | Durations]]
    """Gives a number; with labels, numbers by the values of these."""


def _family(row: _Row, measures: Measures, sources: Sources) -> Family:
    found = row.read(measures, sources)
    values: list[tuple[tuple[str, ...], Number | Durations]]
    if isinstance(found, Mapping):
        values = [((key,) if isinstance(key, str) else key, value) for key, value in found.items()]
    else:
        values = [((), found)]
    return Family(row.name, row.kind, row.help, row.labels, values)


_TABLE: Final = (
    _Row("build_info", "gauge", "The version that runs.", ("version",), lambda _m, s: {s.version: 1}),
    _Row(
        "tool_calls_total",
        "counter",
        "Calls that reached a tool, by how they ended.",
        ("tool", "outcome"),
        lambda m, _s: m.calls(),
    ),
    _Row(
        "tool_call_duration_seconds",
        "histogram",
        "How long these took; a question that a person answers within a call is part of it.",
        ("tool", "outcome"),
        lambda m, _s: m.durations(),
    ),
    _Row(
        "policy_refusals_total",
        "counter",
        "Calls that the operator's rules or a person forbade.",
        (),
        lambda m, _s: m.refusals(),
    ),
    _Row(
        "rate_limit_exceeded_total",
        "counter",
        "What was turned away, by the limit: on calls, on messages to one topic, or over HTTP on what comes from an "
        "address or a client, on the requests of a client that are under way and on its sessions.",
        ("limit",),
        lambda m, s: m.rate_limits(s.limits),
    ),
    _Row(
        "auth_failures_total",
        "counter",
        "Requests over HTTP without a token, or with a wrong one.",
        ("reason",),
        lambda m, _s: m.auth_failures(),
    ),
    _Row("connected", "gauge", "Whether the broker is connected.", (), lambda _m, s: int(s.broker.state.connected)),
    _Row(
        "connection_errors_total",
        "counter",
        "Attempts to connect to the broker that failed, and connections that were lost.",
        (),
        lambda _m, s: s.broker.state.errors,
    ),
    _Row(
        "reconnects_total",
        "counter",
        "Connections to the broker after the first.",
        (),
        lambda _m, s: max(0, s.broker.state.connections - 1),
    ),
    _Row(
        "messages_received_total",
        "counter",
        "Messages for subscriptions, those included that were dropped.",
        (),
        lambda _m, s: s.broker.inbox.received,
    ),
    _Row(
        "messages_dropped_total",
        "counter",
        "Messages that fell out of the inbox, or came too fast or too large to get into it.",
        (),
        lambda _m, s: s.broker.inbox.dropped,
    ),
    _Row("inbox_messages", "gauge", "Messages in the inbox.", (), lambda _m, s: len(s.broker.inbox)),
    _Row("inbox_bytes", "gauge", "Bytes in the inbox.", (), lambda _m, s: s.broker.inbox.bytes),
    _Row("inbox_max_messages", "gauge", "The most messages it holds.", (), lambda _m, s: s.broker.inbox.max_messages),
    _Row("inbox_max_bytes", "gauge", "The most bytes it holds.", (), lambda _m, s: s.broker.inbox.max_bytes),
    _Row("subscriptions", "gauge", "Open subscriptions.", (), lambda _m, s: len(s.broker.inbox.subscriptions)),
    _Row("audit_lines_total", "counter", "Lines written to the audit file.", (), lambda _m, s: s.audit.lines),
    _Row(
        "audit_failing",
        "gauge",
        "Whether there is an audit file and it cannot be written.",
        (),
        lambda _m, s: int(s.audit.failure is not None),
    ),
    _Row(
        "copilot_calls_total",
        "counter",
        "Questions to the Copilot, however often each was sent, by how they ended.",
        ("outcome",),
        lambda _m, s: s.copilot.calls,
    ),
    _Row(
        "copilot_tokens_total",
        "counter",
        "Tokens that the Copilot says these took.",
        ("kind",),
        lambda _m, s: s.copilot.tokens,
    ),
    _Row(
        "http_requests_total",
        "counter",
        "Requests over HTTP; the status is none where the client left first.",
        ("route", "status"),
        lambda m, _s: m.http_requests(),
    ),
    _Row("http_sessions", "gauge", "Open MCP sessions.", (), lambda m, _s: m.http.sessions if m.http else 0),
    _Row("http_streams", "gauge", "Requests and streams under way.", (), lambda m, _s: m.http.streams if m.http else 0),
)
"""Every measure, without the prefix that its name has outside."""
