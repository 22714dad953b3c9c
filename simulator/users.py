"""Who may log in at the broker, and what each may do there."""

from dataclasses import dataclass

from simulator.routing import covers, split_share


@dataclass(frozen=True, slots=True)
class User:
    """A login, and the filters of the topics it may publish and subscribe to; None is every topic, `$SYS` too."""

    password: str
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None

    def may_publish(self, topic: str) -> bool:
        """Tell whether a message to `topic` is allowed."""
        return self.publish is None or any(covers(allowed, topic) for allowed in self.publish)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Tell whether everything that `topic_filter` can match is allowed."""
        _, plain = split_share(topic_filter)
        return self.subscribe is None or any(covers(allowed, plain) for allowed in self.subscribe)


ANYONE = User(password="")  # who connects to a broker without users
