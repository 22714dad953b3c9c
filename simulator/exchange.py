"""What happens to each packet of each client: sessions, subscriptions, messages, wills."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping

from simulator.connections import Connection
from simulator.limits import Limits
from simulator.messages import Message
from simulator.packets import (
    PINGRESP,
    V5,
    Acknowledgement,
    Connect,
    Disconnect,
    FilterOptions,
    Kind,
    Packet,
    PacketError,
    Ping,
    Properties,
    Publish,
    Reason,
    Subscribe,
    Unsubscribe,
    encode_acknowledgement,
    encode_connack,
    encode_suback,
    encode_unsuback,
)
from simulator.retained import Retained
from simulator.routing import Subscription, SubscriptionTree, covers, is_topic_filter, is_topic_name, split_share
from simulator.sessions import Delivery, Session
from simulator.tokens import Tokens
from simulator.users import ANYONE, User

logger = logging.getLogger(__name__)

NEVER_S = 0xFFFF_FFFF  # a session that expires after so many seconds does not (MQTT 5, section 3.1.2.11.2)
DEFAULT_RECEIVE_MAXIMUM = 65_535  # of a client that names none (section 3.1.2.11.3)
AT_SUBSCRIBE, AT_NEW_SUBSCRIBE = 0, 1  # when retained messages are sent (section 3.8.3.1)
EXACTLY_ONCE = 2
MAX_LEVELS = 200  # of a filter, as in mosquitto: each is a node of the tree

Hook = Callable[[Message], bool]


class Exchange:
    """Minds the connections of a broker.

    Args:
        users: Who may log in, by name; None lets everyone in.
        tokens: What makes a password good in place of `users`; None when it is no token.
        limits: What is held at most.
        copy_per_subscription: Whether a client whose subscriptions overlap gets a message once for each of them,
            or once with all their identifiers.
        hooks: Each sees every message that a client may publish; when it returns True the message goes no further.
        unflagged: New subscriptions are told the retained messages below this filter without the retain flag.
    """

    def __init__(
        self,
        users: Mapping[str, User] | None,
        limits: Limits,
        hooks: list[Hook],
        *,
        tokens: Tokens | None = None,
        copy_per_subscription: bool,
        unflagged: str | None = None,
    ) -> None:
        self._users = users
        self._tokens = tokens
        self._limits = limits
        self._hooks = hooks
        self._copy_per_subscription = copy_per_subscription
        self._unflagged = unflagged
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[Connection, asyncio.Future[None]] = {}
        self._sessions: dict[str, Session] = {}
        self._attached: dict[Connection, Session] = {}
        self._expiries: dict[Connection, asyncio.TimerHandle] = {}
        self._subscriptions: SubscriptionTree[Session] = SubscriptionTree()
        self._retained = Retained(limits)

    async def aclose(self) -> None:
        """Send every client away and forget everything."""
        for connection in self._sockets:
            connection.close(Reason.SERVER_SHUTTING_DOWN, "the development broker stops")
        for session in self._sessions.values():
            session.cancel_timers()
        await asyncio.gather(*self._sockets.values())

    def route(self, message: Message) -> Reason:
        """Hand a message to everyone who subscribed to its topic, and keep it when it is to be retained."""
        if message.retain and not self._retained.put(message, self._loop.time()):
            logger.warning("no room for the retained message on %s, refused", message.topic)
            return Reason.QUOTA_EXCEEDED
        reason = Reason.NO_MATCHING_SUBSCRIBERS
        for session, subscriptions in self._recipients(message):
            self._deliver(session, message, subscriptions)
            reason = Reason.SUCCESS
        return reason

    def cut_off(self, client_id: str) -> None:
        """Close the connection of a client without a word; nothing happens when it has none."""
        session = self._sessions.get(client_id)
        if session is not None and session.connection is not None:
            session.connection.close()

    def opened(self, connection: Connection) -> None:
        """Take a new connection."""
        self._sockets[connection] = self._loop.create_future()
        # Twice, because each client may come back before its last connection is known to be dead.
        if len(self._sockets) > 2 * self._limits.max_clients:
            logger.warning("too many connections, closing a new one")
            connection.close()

    def received(self, connection: Connection, packet: Packet) -> None:
        """Act on a packet."""
        if isinstance(packet, Connect):
            self._connect(connection, packet)
            return
        session = self._attached[connection]
        match packet:
            case Publish():
                self._publish(connection, session, packet)
            case Acknowledgement(kind=Kind.PUBREL):
                self._complete(connection, session, packet)
            case Acknowledgement():
                session.acknowledge(connection, packet)
            case Subscribe():
                self._subscribe(connection, session, packet)
            case Unsubscribe():
                self._unsubscribe(connection, session, packet)
            case Ping():
                connection.send(PINGRESP)
            case Disconnect():
                self._disconnect(connection, session, packet)

    def drained(self, connection: Connection) -> None:
        """Go on sending."""
        if connection in self._attached:
            self._attached[connection].drain()

    def lost(self, connection: Connection) -> None:
        """Let the will and the expiry of the session take their course."""
        if (expiry := self._expiries.pop(connection, None)) is not None:
            expiry.cancel()
        session = self._attached.pop(connection, None)
        if session is None:
            return
        session.detach()
        if session.expiry_s == 0:
            self._end(session)
            return
        if session.expiry_s != NEVER_S:
            session.timers.append(self._loop.call_later(session.expiry_s, self._end, session))
        if session.will is not None:
            delay_s = session.will.properties.will_delay_s or 0
            if delay_s:
                session.timers.append(self._loop.call_later(delay_s, self._publish_will, session))
            else:
                self._publish_will(session)

    def closed(self, connection: Connection) -> None:
        """Forget the connection."""
        self._sockets.pop(connection).set_result(None)

    def _connect(self, connection: Connection, packet: Connect) -> None:
        connection.max_packet_bytes = packet.properties.maximum_packet_size
        user = self._log_in(connection, packet)
        if packet.will is not None and not is_topic_name(packet.will.topic):
            raise PacketError(Reason.MALFORMED_PACKET, "the topic of the will is no topic name")
        client_id = packet.client_id or self._new_client_id(packet)
        session, present = self._open_session(client_id, clean=packet.clean_start)
        session.level = packet.level
        session.user = user
        session.username = packet.username or ""
        session.will = packet.will
        session.expiry_s = _expiry_s(packet)
        self._attached[connection] = session
        connection.accepted = True
        connection.keep_alive(packet.keep_alive_s)
        properties = Properties(
            assigned_client_id=None if packet.client_id else client_id,
            receive_maximum=self._limits.receive_maximum,
            topic_alias_maximum=self._limits.topic_alias_maximum,
            maximum_packet_size=self._limits.max_packet_bytes,
        )
        connection.send(encode_connack(packet.level, Reason.SUCCESS, properties, session_present=present))
        session.attach(connection, packet.properties.receive_maximum or DEFAULT_RECEIVE_MAXIMUM)

    def _log_in(self, connection: Connection, packet: Connect) -> User:
        if packet.properties.authentication_method is not None:
            raise PacketError(Reason.BAD_AUTHENTICATION_METHOD, "no authentication method is known here")
        if self._tokens is not None:
            left_s = self._tokens.check(packet.password or b"") - time.time()
            self._expiries[connection] = self._loop.call_later(
                left_s, connection.close, Reason.MAXIMUM_CONNECT_TIME, "the token has expired"
            )
            return ANYONE
        if self._users is None:
            return ANYONE
        user = self._users.get(packet.username or "")
        if user is None or (packet.password or b"") != user.password.encode():
            raise PacketError(Reason.BAD_USER_NAME_OR_PASSWORD, "wrong user name or password")
        return user

    def _new_client_id(self, packet: Connect) -> str:
        if packet.level != V5 and not packet.clean_start:
            raise PacketError(Reason.CLIENT_IDENTIFIER_NOT_VALID, "a session to keep needs a client identifier")
        return f"auto-{secrets.token_hex(8)}"

    def _open_session(self, client_id: str, *, clean: bool) -> tuple[Session, bool]:
        """Give the session of a client, and tell whether it is one that it had before."""
        session = self._sessions.get(client_id)
        if session is not None and session.connection is not None:
            session.connection.close(Reason.SESSION_TAKEN_OVER, "the client has connected once more")
            session = self._sessions.get(client_id)
        if session is not None and clean:
            self._end(session)
            session = None
        if session is not None:
            session.cancel_timers()
            return session, True
        if len(self._sessions) >= self._limits.max_clients:
            logger.warning("no room for client %r, refused", client_id)
            raise PacketError(Reason.QUOTA_EXCEEDED, "the broker has as many clients as it takes")
        self._sessions[client_id] = session = Session(client_id, self._limits)
        return session, False

    def _end(self, session: Session) -> None:
        session.cancel_timers()
        for topic_filter in session.subscriptions:
            self._subscriptions.remove(session, topic_filter)
        del self._sessions[session.client_id]
        self._publish_will(session)

    def _publish_will(self, session: Session) -> None:
        will, session.will = session.will, None
        if will is not None:
            self._take(session, will.topic, will)

    def _disconnect(self, connection: Connection, session: Session, packet: Disconnect) -> None:
        expiry_s = packet.properties.session_expiry_s
        if expiry_s is not None:
            if expiry_s and not session.expiry_s:
                raise PacketError(Reason.PROTOCOL_ERROR, "a session that was to end cannot be kept")
            session.expiry_s = expiry_s
        if packet.reason == Reason.SUCCESS:
            session.will = None
        connection.close()

    def _publish(self, connection: Connection, session: Session, packet: Publish) -> None:
        topic = self._topic(connection, packet)
        if packet.qos != EXACTLY_ONCE:
            reason = self._take(session, topic, packet)
        elif packet.packet_id in session.received:
            reason = Reason.SUCCESS  # the same once more: our PUBREC was lost
        elif len(session.received) >= self._limits.receive_maximum:
            raise PacketError(Reason.RECEIVE_MAXIMUM_EXCEEDED, "too many unfinished messages")
        else:
            reason = self._take(session, topic, packet)
            if reason < Reason.UNSPECIFIED_ERROR:
                session.received.add(packet.packet_id)
        if packet.qos:
            kind = Kind.PUBREC if packet.qos == EXACTLY_ONCE else Kind.PUBACK
            self._acknowledge(connection, session, Acknowledgement(kind, packet.packet_id, reason))

    def _topic(self, connection: Connection, packet: Publish) -> str:
        """Check a PUBLISH and give its topic, which an alias may stand for."""
        properties = packet.properties
        if properties.subscription_ids or "+" in (response := properties.response_topic or "") or "#" in response:
            raise PacketError(Reason.PROTOCOL_ERROR, "a property that a client must not send so")
        alias = properties.topic_alias
        if alias is not None and not 0 < alias <= self._limits.topic_alias_maximum:
            raise PacketError(Reason.TOPIC_ALIAS_INVALID, f"topic alias {alias}")
        if alias is not None and not packet.topic:
            if alias not in connection.topic_aliases:
                raise PacketError(Reason.PROTOCOL_ERROR, f"nothing is known of topic alias {alias}")
            return connection.topic_aliases[alias]
        if not is_topic_name(packet.topic):
            raise PacketError(Reason.MALFORMED_PACKET, "what is published to is no topic name")
        if alias is not None:
            connection.topic_aliases[alias] = packet.topic
        return packet.topic

    def _take(self, session: Session, topic: str, packet: Publish) -> Reason:
        if not session.user.may_publish(topic):
            logger.info("client %r may not publish to %s", session.client_id, topic)
            return Reason.NOT_AUTHORIZED
        message = Message.from_packet(session.client_id, topic, packet, self._loop.time(), session.username)
        if any(hook(message) for hook in self._hooks):
            return Reason.SUCCESS
        return self.route(message)

    def _complete(self, connection: Connection, session: Session, packet: Acknowledgement) -> None:
        known = packet.packet_id in session.received
        session.received.discard(packet.packet_id)
        reason = Reason.SUCCESS if known else Reason.PACKET_IDENTIFIER_NOT_FOUND
        self._acknowledge(connection, session, Acknowledgement(Kind.PUBCOMP, packet.packet_id, reason))

    def _acknowledge(self, connection: Connection, session: Session, answer: Acknowledgement) -> None:
        connection.send(encode_acknowledgement(answer, session.level))

    def _recipients(self, message: Message) -> Iterator[tuple[Session, list[Subscription]]]:
        """Tell who gets a message, once for each copy."""
        for session, subscriptions in self._subscriptions.plain(message.topic).items():
            own = session.client_id == message.publisher
            heard = [subscription for subscription in subscriptions if not (own and subscription.no_local)]
            if self._copy_per_subscription:
                for subscription in heard:
                    yield session, [subscription]
            elif heard:
                yield session, heard
        for members in self._subscriptions.shared(message.topic):
            session = next((member for member in members if member.connection is not None), next(iter(members)))
            subscription = members.pop(session)
            members[session] = subscription  # at the end of the row now, so that all have their turn
            yield session, [subscription]

    def _deliver(self, session: Session, message: Message, subscriptions: list[Subscription]) -> None:
        # Retained messages keep their flag for whom it was asked; to the others they are news.
        retain = message.retain and any(subscription.retain_as_published for subscription in subscriptions)
        self._send(session, message, subscriptions, retain=retain)

    def _send(self, session: Session, message: Message, subscriptions: list[Subscription], *, retain: bool) -> None:
        qos = min(message.qos, max(subscription.qos for subscription in subscriptions))
        identifiers = tuple(each.identifier for each in subscriptions if each.identifier is not None)
        session.deliver(Delivery(message, qos, retain, identifiers))

    def _subscribe(self, connection: Connection, session: Session, packet: Subscribe) -> None:
        identifier = next(iter(packet.properties.subscription_ids), None)
        reasons: list[int] = []
        told: list[Subscription] = []
        for options in packet.filters:
            is_new = options.topic_filter not in session.subscriptions
            reason = self._refusal(session, options)
            if reason is not None:
                reasons.append(reason)
                continue
            subscription = Subscription(
                options.topic_filter, options.qos, options.no_local, options.retain_as_published, identifier
            )
            session.subscriptions[options.topic_filter] = subscription
            self._subscriptions.add(session, subscription)
            reasons.append(options.qos)
            if options.retain_handling == AT_SUBSCRIBE or (options.retain_handling == AT_NEW_SUBSCRIBE and is_new):
                told.append(subscription)
        connection.send(encode_suback(session.level, packet.packet_id, reasons))
        for subscription in told:
            self._tell_retained(session, subscription)

    def _refusal(self, session: Session, options: FilterOptions) -> Reason | None:
        topic_filter = options.topic_filter
        if not is_topic_filter(topic_filter):
            raise PacketError(Reason.MALFORMED_PACKET, "what is subscribed to is no topic filter")
        if options.no_local and split_share(topic_filter)[0] is not None:
            raise PacketError(Reason.PROTOCOL_ERROR, "no local on a shared subscription")
        if topic_filter.count("/") >= MAX_LEVELS:
            return Reason.TOPIC_FILTER_INVALID
        if not session.user.may_subscribe(topic_filter):
            logger.info("client %r may not subscribe to %s", session.client_id, topic_filter)
            return Reason.NOT_AUTHORIZED
        if topic_filter not in session.subscriptions and len(session.subscriptions) >= self._limits.max_subscriptions:
            logger.warning("client %r has too many subscriptions, refused %s", session.client_id, topic_filter)
            return Reason.QUOTA_EXCEEDED
        return None

    def _tell_retained(self, session: Session, subscription: Subscription) -> None:
        share, plain = split_share(subscription.topic_filter)
        if share is not None:
            return
        for message in self._retained.matching(plain, self._loop.time()):
            if not (subscription.no_local and message.publisher == session.client_id):
                flagged = self._unflagged is None or not covers(self._unflagged, message.topic)
                self._send(session, message, [subscription], retain=flagged)

    def _unsubscribe(self, connection: Connection, session: Session, packet: Unsubscribe) -> None:
        reasons: list[Reason] = []
        for topic_filter in packet.topic_filters:
            if session.subscriptions.pop(topic_filter, None) is None:
                reasons.append(Reason.NO_SUBSCRIPTION_EXISTED)
            else:
                self._subscriptions.remove(session, topic_filter)
                reasons.append(Reason.SUCCESS)
        connection.send(encode_unsuback(session.level, packet.packet_id, reasons))


def _expiry_s(packet: Connect) -> int:
    """Tell how long a session is kept; MQTT 3.1.1 keeps one for good or not at all."""
    if packet.level == V5:
        return packet.properties.session_expiry_s or 0
    return 0 if packet.clean_start else NEVER_S
