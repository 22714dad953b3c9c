"""Which subscriptions a topic matches: names, filters, and the tree that finds them."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MAX_BYTES = 65_535  # what the length of a text on the wire can say
SHARE = "$share"

Subscriber = TypeVar("Subscriber", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one session asked for with one filter."""

    topic_filter: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    identifier: int | None = None


def is_topic_name(topic: str) -> bool:
    """Tell whether a message can be published to `topic`."""
    return "+" not in topic and "#" not in topic and _fits(topic)


def is_topic_filter(topic_filter: str) -> bool:
    """Tell whether `topic_filter`, which may be that of a shared subscription, can be subscribed to."""
    share, plain = split_share(topic_filter)
    if share is not None and (not share or "+" in share or "#" in share):
        return False
    *parents, last = plain.split("/")
    return (
        _fits(topic_filter)
        and plain != ""
        and all(level == "+" or ("+" not in level and "#" not in level) for level in parents)
        and (last in {"+", "#"} or ("+" not in last and "#" not in last))
    )


def split_share(topic_filter: str) -> tuple[str | None, str]:
    """Take `$share/NAME/FILTER` apart; the name is None where nothing is shared."""
    first, _, rest = topic_filter.partition("/")
    if first != SHARE:
        return None, topic_filter
    share, _, plain = rest.partition("/")
    return share, plain


def covers(allowed: str, topic_filter: str) -> bool:
    """Tell whether a plain filter matches every topic that another one can match, or one topic name."""
    if topic_filter.startswith("$") and allowed[0] in "+#":
        return False
    outer, inner = allowed.split("/"), topic_filter.split("/")
    if outer[-1] == "#":
        outer.pop()
        inner = inner[: len(outer)]
    return len(outer) == len(inner) and all(
        mine == theirs or (mine == "+" and theirs != "#") for mine, theirs in zip(outer, inner, strict=True)
    )


def _fits(topic: str) -> bool:
    return 0 < len(topic.encode()) <= MAX_BYTES and "\0" not in topic


@dataclass(slots=True)
class _Node(Generic[Subscriber]):
    """One level of the filters that begin alike."""

    children: dict[str, "_Node[Subscriber]"] = field(default_factory=dict)
    plain: dict[Subscriber, Subscription] = field(default_factory=dict)
    shared: dict[str, dict[Subscriber, Subscription]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.children or self.plain or self.shared)


class SubscriptionTree(Generic[Subscriber]):
    """Every subscription of every subscriber, found by the topics they match."""

    def __init__(self) -> None:
        self._root: _Node[Subscriber] = _Node()

    def add(self, subscriber: Subscriber, subscription: Subscription) -> None:
        """Put a subscription in, in the place of one with the same filter."""
        share, plain = split_share(subscription.topic_filter)
        node = self._root
        for level in plain.split("/"):
            node = node.children.setdefault(level, _Node())
        members = node.plain if share is None else node.shared.setdefault(share, {})
        members[subscriber] = subscription

    def remove(self, subscriber: Subscriber, topic_filter: str) -> None:
        """Take a subscription out, and the levels that only it needed."""
        share, plain = split_share(topic_filter)
        levels = plain.split("/")
        path = [self._root]
        for level in levels:
            path.append(path[-1].children[level])
        node = path.pop()
        if share is None:
            del node.plain[subscriber]
        else:
            del node.shared[share][subscriber]
            if not node.shared[share]:
                del node.shared[share]
        for parent, level in zip(reversed(path), reversed(levels), strict=True):
            if parent.children[level].empty:
                del parent.children[level]

    def plain(self, topic: str) -> dict[Subscriber, list[Subscription]]:
        """Find who gets a topic for themselves, and by which subscriptions."""
        found: dict[Subscriber, list[Subscription]] = {}
        for node in self._nodes(topic):
            for subscriber, subscription in node.plain.items():
                found.setdefault(subscriber, []).append(subscription)
        return found

    def shared(self, topic: str) -> Iterator[dict[Subscriber, Subscription]]:
        """Find the groups of whose members one gets a topic."""
        for node in self._nodes(topic):
            yield from node.shared.values()

    def _nodes(self, topic: str) -> list[_Node[Subscriber]]:
        found: list[_Node[Subscriber]] = []
        nodes = [self._root]
        wild = not topic.startswith("$")  # MQTT 5, section 4.7.2
        for level in topic.split("/"):
            if wild:
                found += [node.children["#"] for node in nodes if "#" in node.children]
            keys = (level, "+") if wild else (level,)
            nodes = [node.children[key] for node in nodes for key in keys if key in node.children]
            wild = True
        # "a/#" matches "a" too (section 4.7.1.2).
        return found + nodes + [node.children["#"] for node in nodes if "#" in node.children]
