"""The inbox: reading takes nothing away, and whatever is missing from a reading is told."""

import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from errors import InputError
from inbox import MAX_GAPS, MAX_SUBSCRIPTIONS, Gap, Inbox, Message, Mode, Reading, Subscription
from topics import TopicFilter

EVERYTHING = TopicFilter("#")


def put(
    inbox: Inbox,
    topic: str = "a",
    payload: bytes = b"",
    *audience: Subscription,
    retained: bool = False,
    properties: dict[str, object] | None = None,
) -> Message:
    """Store one message."""
    message = Message(inbox.next_seq(), topic, payload, 0, retained, time.time(), properties or {}, audience)
    inbox.store(message)
    return message


def payloads(messages: Sequence[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def read_to_the_end(read: Callable[[str | None], Reading], page: int, after: str | None = None) -> list[Reading]:
    """Follow the cursors, `page` messages at a time, and return the readings cut down to what each page showed."""
    readings = []
    while True:
        reading = read(after)
        readings.append(reading)
        if len(reading.messages) <= page:
            return readings
        reading.messages = reading.messages[:page]
        after = read(after).cursor(page)


# Cursors


def test_reading_takes_nothing_away() -> None:
    inbox = Inbox(10, 1000)
    first, second = put(inbox, payload=b"1"), put(inbox, payload=b"2")

    assert inbox.read().messages == [first, second]
    assert inbox.read().messages == [first, second]
    assert len(inbox) == 2


def test_a_cursor_goes_on_where_the_page_ended_as_often_as_it_is_used() -> None:
    inbox = Inbox(10, 1000)
    stored = [put(inbox, payload=b"%d" % number) for number in range(5)]

    after_two = inbox.read().cursor(2)

    for _ in range(2):
        assert inbox.read(after=after_two).messages == stored[2:]
    stored.append(put(inbox, payload=b"5"))
    assert inbox.read(after=after_two).messages == stored[2:]


def test_the_cursor_at_the_end_brings_only_what_came_later() -> None:
    inbox = Inbox(10, 1000)
    put(inbox)
    reading = inbox.read()
    end = reading.cursor(1)

    assert inbox.read(after=end).messages == []
    assert inbox.read(after=inbox.read(after=end).cursor(0)).messages == []
    late = put(inbox, payload=b"late")
    assert inbox.read(after=end).messages == [late]
    assert reading.cursor(1) == end


def test_the_cursor_of_an_unshown_page_starts_it_again() -> None:
    inbox = Inbox(2, 1000)
    for number in range(4):
        put(inbox, payload=b"%d" % number)
    reading = inbox.read()

    again = inbox.read(after=reading.cursor(0))

    assert (again.messages, again.dropped) == (reading.messages, reading.dropped)


def test_a_new_subscription_starts_where_it_was_opened() -> None:
    inbox = Inbox(10, 1000)
    subscription = inbox.open(EVERYTHING, 1)
    put(inbox, "a", b"before", subscription)

    from_now_on = inbox.cursor(subscription)
    later = put(inbox, "a", b"after", subscription)

    assert inbox.read(subscription, after=from_now_on).messages == [later]
    assert payloads(inbox.read(subscription).messages) == [b"before", b"after"]


def test_a_cursor_of_one_mode_goes_on_in_another() -> None:
    inbox = Inbox(10, 1000)
    for payload in (b"1", b"2", b"2"):
        put(inbox, payload=payload)

    after_one = inbox.read().cursor(1)

    assert payloads(inbox.read(after=after_one, mode="changes").messages) == [b"2"]
    assert payloads(inbox.read(after=after_one, mode="latest").messages) == [b"2"]


def test_a_cursor_of_another_selection_goes_on_at_the_same_place() -> None:
    inbox = Inbox(10, 1000)
    put(inbox, "a", b"1")
    put(inbox, "b", b"2")
    after_one = inbox.read(topic_filter=TopicFilter("a")).cursor(1)
    late = put(inbox, "b", b"3")

    reading = inbox.read(topic_filter=TopicFilter("b"), after=after_one)

    assert reading.messages == [late]
    assert reading.dropped == 0


def test_a_cursor_of_another_selection_never_hides_a_drop() -> None:
    inbox = Inbox(3, 1000)
    before_all = inbox.read().cursor(0)
    for topic in "abc":
        put(inbox, topic)
    after_one = inbox.read().cursor(1)
    for topic in "aba":
        put(inbox, topic)
    at_the_end = inbox.read().cursor(3)

    assert inbox.read(topic_filter=TopicFilter("b"), after=before_all).dropped == 1
    assert inbox.read(topic_filter=TopicFilter("b"), after=after_one).dropped == 1
    assert inbox.read(topic_filter=TopicFilter("b"), after=at_the_end).dropped == 0
    assert inbox.read(topic_filter=TopicFilter("d"), after=before_all).dropped == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda cursor: " " + cursor,
        lambda cursor: cursor + "\n",
        lambda cursor: cursor + "-0",
        lambda cursor: cursor[:-2],  # a part is missing
        lambda cursor: cursor.upper() + "A",
        lambda cursor: cursor.replace("-", "_"),
        lambda cursor: cursor[:-1] + "g",  # one beyond hexadecimal
        lambda cursor: cursor + "0" * 17,  # a number longer than any
        lambda cursor: cursor[:-1] + "٣",  # a digit elsewhere
        lambda _: "s1",
        lambda _: "0",
        lambda _: "\ud800",
        lambda cursor: cursor * 1000,
    ],
)
def test_what_is_no_cursor_is_refused_in_one_printable_sentence(spoil: Callable[[str], str]) -> None:
    inbox = Inbox(10, 1000)
    put(inbox)

    with pytest.raises(InputError, match="is not a cursor: pass a next_cursor") as caught:
        inbox.read(after=spoil(inbox.read().cursor(1)))

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_cursor_from_beyond_the_end_is_refused() -> None:
    inbox = Inbox(10, 1000)
    put(inbox)
    tag, _, *counts = inbox.read().cursor(1).split("-")

    assert inbox.read(after="-".join([tag, "1", *counts])).messages == []
    with pytest.raises(InputError, match="is not a cursor"):
        inbox.read(after="-".join([tag, "2", *counts]))


def test_a_cursor_from_another_run_is_told_as_that() -> None:
    before, now = Inbox(10, 1000), Inbox(10, 1000)

    with pytest.raises(InputError, match="earlier run of the server"):
        now.read(after=before.read().cursor(0))


# Subscriptions


def test_two_subscriptions_on_one_filter_are_two_cursors_with_counts_of_their_own() -> None:
    inbox = Inbox(2, 1000)
    early = inbox.open(EVERYTHING, 1)
    put(inbox, "a", b"1", early)
    late = inbox.open(EVERYTHING, 0)
    for payload in (b"2", b"3"):
        put(inbox, "a", payload, early, late)

    early_reading, late_reading = inbox.read(early), inbox.read(late)

    assert early.id != late.id
    assert (early.received, early.dropped, late.received, late.dropped) == (3, 1, 2, 0)
    assert (payloads(early_reading.messages), early_reading.dropped) == ([b"2", b"3"], 1)
    assert (payloads(late_reading.messages), late_reading.dropped) == ([b"2", b"3"], 0)


def test_what_a_closed_subscription_brought_stays_readable_by_topic() -> None:
    inbox = Inbox(10, 1000)
    subscription = inbox.open(EVERYTHING, 1)
    message = put(inbox, "a/b", b"", subscription)

    inbox.close(subscription)

    assert inbox.read(topic_filter=TopicFilter("a/+")).messages == [message]
    assert list(inbox.held(TopicFilter("a/+"))) == [message]
    with pytest.raises(InputError):
        inbox.subscription(subscription.id)


def test_an_unknown_subscription_is_refused_with_the_ones_there_are() -> None:
    inbox = Inbox(10, 1000)
    with pytest.raises(InputError, match=r"no subscription 's1': the open ones are none\."):
        inbox.subscription("s1")
    first, second = inbox.open(EVERYTHING, 1), inbox.open(EVERYTHING, 1)

    assert inbox.subscription(second.id) is second
    with pytest.raises(InputError, match=rf"the open ones are {first.id}, {second.id}\."):
        inbox.subscription(first.id.upper())


def test_an_id_is_never_used_again() -> None:
    inbox = Inbox(10, 1000)
    first = inbox.open(EVERYTHING, 1)
    inbox.close(first)

    assert inbox.open(EVERYTHING, 1).id != first.id


def test_subscriptions_without_end_are_refused() -> None:
    inbox = Inbox(10, 1000)
    last = [inbox.open(EVERYTHING, 1) for _ in range(MAX_SUBSCRIPTIONS)][-1]
    with pytest.raises(InputError, match="end some with mqtt_unsubscribe"):
        inbox.open(EVERYTHING, 1)

    inbox.close(last)
    inbox.open(EVERYTHING, 1)


def test_a_reading_can_be_of_what_a_subscription_brought_on_some_of_its_topics() -> None:
    inbox = Inbox(10, 1000)
    mine, other = inbox.open(EVERYTHING, 1), inbox.open(EVERYTHING, 1)
    wanted = put(inbox, "a", b"1", mine)
    put(inbox, "a", b"2", other)
    put(inbox, "b", b"3", mine, other)

    assert inbox.read(mine, TopicFilter("a")).messages == [wanted]


# Bounds


def test_sequence_numbers_rise_and_never_repeat() -> None:
    inbox = Inbox(2, 1000)

    numbers = [put(inbox).seq for _ in range(5)]

    assert all(one < other for one, other in pairwise(numbers))
    assert inbox.last_seq == numbers[-1]


def test_the_oldest_falls_out_when_there_are_too_many() -> None:
    inbox = Inbox(3, 1000)

    stored = [put(inbox) for _ in range(5)]

    assert inbox.read().messages == stored[2:]
    assert (len(inbox), inbox.dropped, inbox.read().dropped) == (3, 2, 2)


def test_bytes_are_bounded_to_the_last_one() -> None:
    inbox = Inbox(10, 20)

    put(inbox, "t", b"1" * 9)
    put(inbox, "t", b"2" * 9)
    assert (len(inbox), inbox.bytes, inbox.dropped) == (2, 20, 0)

    put(inbox, "t", b"")
    assert (len(inbox), inbox.bytes, inbox.dropped) == (2, 11, 1)


def test_topic_and_properties_count_for_the_bytes() -> None:
    inbox = Inbox(10, 10_000)

    plain = put(inbox, "long/topic", b"12")
    with_properties = put(inbox, "t", b"", properties={"content_type": "x" * 500})

    assert plain.size == 12
    assert 500 < with_properties.size < 600
    assert inbox.bytes == plain.size + with_properties.size


def test_one_large_message_can_push_out_all_others() -> None:
    inbox = Inbox(10, 20)
    for _ in range(10):
        put(inbox, "t", b"1")

    large = put(inbox, "t", b"1" * 19)

    assert inbox.read().messages == [large]
    assert (inbox.bytes, inbox.dropped) == (20, 10)


def test_a_message_larger_than_the_whole_inbox_is_a_loss_and_pushes_nothing_out() -> None:
    inbox = Inbox(10, 20)
    subscription = inbox.open(EVERYTHING, 1)
    small = put(inbox, "t", b"1", subscription)

    put(inbox, "t", b"1" * 20, subscription)
    reading = inbox.read(subscription)

    assert (reading.messages, reading.dropped, inbox.dropped) == ([small], 0, 1)
    assert [(gap.lost, gap.cause) for gap in reading.gaps] == [
        (1, "a message of 21 bytes is larger than BUFFER_MAX_BYTES (20)")
    ]
    assert reading.connected_throughout
    assert subscription.received == 1


# Drops


def test_drops_are_counted_for_each_subscription_and_each_filter() -> None:
    inbox = Inbox(2, 1000)
    wide, narrow = inbox.open(EVERYTHING, 1), inbox.open(TopicFilter("a"), 1)
    for topic in "abacb":
        put(inbox, topic, b"", *([wide, narrow] if topic == "a" else [wide]))

    assert inbox.read().dropped == 3
    assert inbox.read(wide).dropped == 3
    assert inbox.read(narrow).dropped == 2
    assert inbox.read(topic_filter=TopicFilter("a")).dropped == 2
    assert inbox.read(topic_filter=TopicFilter("b")).dropped == 1
    assert inbox.read(topic_filter=TopicFilter("+")).dropped == 3
    assert inbox.read(topic_filter=TopicFilter("c")).dropped == 0
    assert inbox.read(wide, TopicFilter("b")).dropped == 1


def test_drops_of_a_subscription_on_some_topics_are_not_mixed_up_with_others() -> None:
    inbox = Inbox(1, 1000)
    mine, other = inbox.open(EVERYTHING, 1), inbox.open(EVERYTHING, 1)
    for topic, audience in (("a", other), ("a", other), ("b", mine), ("b", mine), ("a", mine), ("b", mine)):
        put(inbox, topic, b"", audience)

    assert inbox.read(mine, TopicFilter("a")).dropped == 1
    assert inbox.read(mine, TopicFilter("b")).dropped == 2
    assert inbox.read(other, TopicFilter("b")).dropped == 0


def test_a_drop_is_told_again_to_an_old_cursor_and_not_to_a_new_one() -> None:
    inbox = Inbox(2, 1000)
    put(inbox, payload=b"0")
    old = inbox.read().cursor(1)
    for number in range(1, 5):
        put(inbox, payload=b"%d" % number)

    for _ in range(2):
        reading = inbox.read(after=old)
        assert (payloads(reading.messages), reading.dropped) == ([b"3", b"4"], 2)
    assert inbox.read(after=reading.cursor(1)).dropped == 0
    assert inbox.read(after=reading.cursor(2)).dropped == 0


def test_what_was_shown_before_it_fell_out_is_not_told_as_dropped() -> None:
    inbox = Inbox(2, 1000)
    for _ in range(2):
        put(inbox)
    shown_one, shown_both = inbox.read().cursor(1), inbox.read().cursor(2)
    for _ in range(2):
        put(inbox)

    assert inbox.read(after=shown_one).dropped == 1
    assert inbox.read(after=shown_both).dropped == 0


def test_counting_drops_by_topic_is_bounded_and_what_is_counted_together_is_told_to_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound is lowered: reaching the real one takes seconds."""
    monkeypatch.setattr("inbox._MAX_COUNTED", 1000)
    inbox = Inbox(1, 100_000)
    for topic in ("a", "b" * 900, "c", "a", "end"):
        put(inbox, topic)

    assert inbox.read(topic_filter=TopicFilter("a")).dropped == 2 + 2
    assert inbox.read(topic_filter=TopicFilter("c")).dropped == 2
    assert inbox.read(topic_filter=TopicFilter("never")).dropped == 2
    assert inbox.read().dropped == 4


class Readers(RuleBasedStateMachine):
    """Stores, readers that follow their cursors page by page, and a list that remembers everything."""

    subscriptions = Bundle("subscriptions")
    readers = Bundle("readers")

    @initialize(max_messages=st.integers(1, 8), max_bytes=st.integers(6, 40))
    def start(self, max_messages: int, max_bytes: int) -> None:
        self.inbox = Inbox(max_messages, max_bytes)
        self.everything: list[Message] = []
        self.lost = 0

    @rule(target=subscriptions, text=st.sampled_from(["#", "a", "b/+"]))
    def open(self, text: str) -> Subscription:
        return self.inbox.open(TopicFilter(text), 1)

    @rule(subscription=consumes(subscriptions))
    def close(self, subscription: Subscription) -> None:
        self.inbox.close(subscription)

    @rule(
        target=readers,
        subscription=st.none() | subscriptions,
        text=st.sampled_from([None, "#", "a", "b/+", "never"]),
    )
    def begin_to_read(self, subscription: Subscription | None, text: str | None) -> "Reader":
        return Reader(subscription, TopicFilter(text) if text else None)

    @rule(
        topics=st.lists(st.sampled_from(["a", "b/c", "b/d", "e"]), min_size=1, max_size=5),
        size=st.integers(0, 6) | st.just(50),
        skipped=st.integers(0, 2),
    )
    def store(self, topics: list[str], size: int, skipped: int) -> None:
        for topic in topics:
            audience = [one for one in self.inbox.subscriptions.values() if one.topic_filter.matches(topic)]
            for _ in range(skipped):  # numbers that went to listeners
                self.inbox.next_seq()
            message = put(self.inbox, topic, b"." * size, *audience)
            if message.size > self.inbox.max_bytes:
                self.lost += 1
            else:
                self.everything.append(message)

    @rule(reader=readers, page=st.integers(1, 4), pages=st.integers(1, 3))
    def read(self, reader: "Reader", page: int, pages: int) -> None:
        for _ in range(pages):
            reader.read(self.inbox, page)
        seen_to = reader.shown[-1].seq if reader.shown and not reader.at_the_end else self.inbox.last_seq
        wanted = {message.seq for message in self.everything if reader.wants(message) and message.seq <= seen_to}
        shown = [message.seq for message in reader.shown]
        held = {message.seq for message in self.inbox.read().messages}

        assert len(shown) == len(set(shown))
        assert set(shown) <= wanted
        assert len(wanted) == len(shown) + reader.dropped
        assert not (wanted - set(shown)) & held

    @invariant()
    def the_bounds_hold(self) -> None:
        held = self.inbox.read().messages
        assert len(self.inbox) == len(held) <= self.inbox.max_messages
        assert self.inbox.bytes == sum(message.size for message in held) <= self.inbox.max_bytes
        assert held == self.everything[len(self.everything) - len(held) :]
        assert self.inbox.dropped == len(self.everything) - len(held) + self.lost


class Reader:
    """Somebody who follows `next_cursor` through one selection."""

    def __init__(self, subscription: Subscription | None, topic_filter: TopicFilter | None) -> None:
        self.subscription = subscription
        self.topic_filter = topic_filter
        self.shown: list[Message] = []
        self.dropped = 0
        self.at_the_end = False
        self._cursor: str | None = None

    def wants(self, message: Message) -> bool:
        return (self.subscription is None or self.subscription in message.audience) and (
            self.topic_filter is None or self.topic_filter.matches(message.topic)
        )

    def read(self, inbox: Inbox, page: int) -> None:
        reading = inbox.read(self.subscription, self.topic_filter, self._cursor)
        shown = reading.messages[:page]
        self.shown += shown
        self.dropped += reading.dropped
        self.at_the_end = len(shown) == len(reading.messages)
        self._cursor = reading.cursor(len(shown))


Readers.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
test_every_message_is_shown_exactly_once_or_counted_as_dropped = Readers.TestCase


# Modes

STORED = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([b"1", b"2"]), st.booleans()), max_size=20)


def latest(messages: Sequence[Message]) -> list[Message]:
    return sorted({message.topic: message for message in messages}.values(), key=attrgetter("seq"))


def changes(messages: Sequence[Message]) -> list[Message]:
    found: list[Message] = []
    for position, message in enumerate(messages):
        before = [earlier.payload for earlier in messages[:position] if earlier.topic == message.topic]
        if before[-1:] != [message.payload]:
            found.append(message)
    return found


@given(stored=STORED, page=st.integers(1, 5), mode=st.sampled_from([("latest", latest), ("changes", changes)]))
@settings(deadline=None)
def test_the_pages_of_a_mode_are_together_what_the_mode_means(
    stored: list[tuple[str, bytes, bool]],
    page: int,
    mode: tuple[Mode, Callable[[Sequence[Message]], list[Message]]],
) -> None:
    inbox = Inbox(100, 1000)
    name, meaning = mode
    messages = [put(inbox, topic, payload, retained=retained) for topic, payload, retained in stored]

    readings = read_to_the_end(lambda after: inbox.read(after=after, mode=name), page)

    assert [message for reading in readings for message in reading.messages] == meaning(messages)


def test_the_latest_of_a_topic_is_shown_again_only_when_there_is_a_newer_one() -> None:
    inbox = Inbox(10, 1000)
    for topic, payload in (("a", b"1"), ("b", b"1"), ("a", b"2"), ("c", b"1")):
        put(inbox, topic, payload)
    reading = inbox.read(mode="latest")
    put(inbox, "b", b"2")

    rest = inbox.read(after=reading.cursor(1), mode="latest")

    assert [(message.topic, message.payload) for message in reading.messages] == [("b", b"1"), ("a", b"2"), ("c", b"1")]
    assert [(message.topic, message.payload) for message in rest.messages] == [("a", b"2"), ("c", b"1"), ("b", b"2")]


def test_a_change_is_one_against_what_this_selection_had_before() -> None:
    inbox = Inbox(10, 1000)
    mine, other = inbox.open(EVERYTHING, 1), inbox.open(EVERYTHING, 1)
    put(inbox, "a", b"1", mine)
    put(inbox, "a", b"2", other)
    of_mine, of_all = inbox.read(mine).cursor(1), inbox.read().cursor(2)
    put(inbox, "a", b"3", other)
    put(inbox, "a", b"1", mine)

    assert inbox.read(mine, after=of_mine, mode="changes").messages == []
    assert payloads(inbox.read(after=of_all, mode="changes").messages) == [b"3", b"1"]


@pytest.mark.parametrize(
    ("received", "shown"),
    [
        ([(b"1", True), (b"1", True)], [b"1"]),
        ([(b"1", False), (b"1", True)], [b"1"]),
        ([(b"1", True), (b"1", False)], [b"1", b"1"]),  # published once more: an event
        ([(b"1", False), (b"1", False)], [b"1", b"1"]),
        ([(b"1", True), (b"2", True)], [b"1", b"2"]),
        ([(b"1", True), (b"2", False), (b"1", True)], [b"1", b"2", b"1"]),
    ],
)
def test_a_retained_value_that_comes_again_is_shown_once_in_a_reading(
    received: list[tuple[bytes, bool]], shown: list[bytes]
) -> None:
    inbox = Inbox(10, 1000)
    for payload, retained in received:
        put(inbox, "a", payload, retained=retained)
    put(inbox, "b", received[0][0], retained=True)

    reading = inbox.read(topic_filter=TopicFilter("a"))

    assert payloads(reading.messages) == shown
    assert inbox.read(after=reading.cursor(len(shown)), topic_filter=TopicFilter("a")).messages == []


# Gaps


def told(gaps: Sequence[Gap]) -> list[str]:
    return [gap.cause for gap in gaps]


def test_an_outage_is_told_while_it_lasts_and_once_more_when_it_is_over() -> None:
    inbox = Inbox(10, 1000)
    before = inbox.read().cursor(0)
    gap = inbox.begin_gap("the cable was pulled", start=1000.0)

    during = inbox.read(after=before)
    inbox.end_gap(gap, session_resumed=True)
    afterwards = inbox.read(after=during.cursor(0))

    assert [(gap.cause, gap.start, gap.lost) for gap in during.gaps] == [("the cable was pulled", 1000.0, None)]
    assert not during.connected_throughout
    assert during.gaps == afterwards.gaps == [gap]
    assert gap.end is not None
    assert gap.session_resumed
    assert not afterwards.connected_throughout


def test_an_outage_is_not_told_to_who_has_read_since() -> None:
    inbox = Inbox(10, 1000)
    inbox.end_gap(inbox.begin_gap("outage"))

    reading = inbox.read()
    since = inbox.read(after=reading.cursor(0))

    assert told(reading.gaps) == ["outage"]
    assert (since.gaps, since.connected_throughout) == ([], True)


def test_an_outage_that_is_over_is_not_told_again_because_another_lasts() -> None:
    inbox = Inbox(10, 1000)
    inbox.begin_gap("refused", topic_filter=TopicFilter("a"))
    inbox.end_gap(inbox.begin_gap("outage"))
    since = inbox.read().cursor(0)

    assert told(inbox.read(after=since).gaps) == ["refused"]
    assert told(inbox.read(topic_filter=TopicFilter("b"), after=since).gaps) == []


def test_an_outage_is_told_with_every_page_of_the_window_it_touches() -> None:
    inbox = Inbox(10, 1000)
    for _ in range(3):
        put(inbox)
    inbox.end_gap(inbox.begin_gap("outage"))

    pages = read_to_the_end(lambda after: inbox.read(after=after), 1)
    end = inbox.read(after=pages[-1].cursor(1))

    assert [told(page.gaps) for page in pages] == [["outage"]] * 3
    assert end.gaps == []


def test_a_subscription_is_told_of_the_outages_since_it_was_opened() -> None:
    inbox = Inbox(10, 1000)
    before_all = inbox.read().cursor(0)
    inbox.end_gap(inbox.begin_gap("before"))
    lasting = inbox.begin_gap("while it was opened")
    subscription = inbox.open(EVERYTHING, 1)
    from_now_on = inbox.cursor(subscription)
    inbox.end_gap(lasting)
    inbox.end_gap(inbox.begin_gap("later"))

    assert told(inbox.read(subscription).gaps) == ["while it was opened", "later"]
    assert told(inbox.read(subscription, after=from_now_on).gaps) == ["while it was opened", "later"]
    assert told(inbox.read(subscription, after=before_all).gaps) == ["while it was opened", "later"]


@pytest.mark.parametrize(
    ("text", "concerned"),
    [
        ("plant/+/temp", True),  # the one that was refused
        ("plant/a/temp", True),  # part of it
        ("plant/#", True),  # more than it
        ("plant/a/+", True),  # they share a topic
        ("plant/a", False),
        ("plant/a/humidity", False),
        ("$share/g/plant/a/temp", True),
    ],
)
def test_a_gap_of_one_filter_concerns_readings_of_its_topics(text: str, concerned: bool) -> None:
    inbox = Inbox(10, 1000)
    inbox.begin_gap("refused", topic_filter=TopicFilter("plant/+/temp"))

    reading = inbox.read(topic_filter=TopicFilter(text))

    assert told(reading.gaps) == ["refused"] * concerned
    assert reading.connected_throughout is not concerned


def test_a_gap_of_one_filter_concerns_the_subscriptions_on_it_and_no_others() -> None:
    inbox = Inbox(10, 1000)
    refused, also, other = (inbox.open(TopicFilter(text), 1) for text in ("a/#", "a/#", "a/b"))
    inbox.begin_gap("refused", topic_filter=TopicFilter("a/#"))

    assert [told(inbox.read(one).gaps) for one in (refused, also, other)] == [["refused"], ["refused"], []]
    assert told(inbox.read().gaps) == ["refused"]
    assert told(inbox.read(refused, TopicFilter("a/c")).gaps) == ["refused"]
    assert told(inbox.read(refused, TopicFilter("b")).gaps) == []


def test_gaps_since_a_moment_are_those_that_were_not_over_then() -> None:
    inbox = Inbox(10, 1000)
    inbox.end_gap(inbox.begin_gap("over"))
    lasting = inbox.begin_gap("lasting")
    moment = inbox.next_gap()
    inbox.begin_gap("of another filter", topic_filter=TopicFilter("b"))
    inbox.end_gap(lasting)

    assert told(inbox.gaps_since(moment)) == ["lasting", "of another filter"]
    assert told(inbox.gaps_since(moment, TopicFilter("a"))) == ["lasting"]
    assert told(inbox.gaps_since(inbox.next_gap())) == ["of another filter"]


def test_a_loss_is_told_with_its_number_and_is_no_outage() -> None:
    inbox = Inbox(10, 1000)
    before = inbox.read().cursor(0)

    inbox.lose(7, "they came too fast")
    reading = inbox.read(after=before)

    assert [(gap.lost, gap.cause, gap.end is not None) for gap in reading.gaps] == [(7, "they came too fast", True)]
    assert reading.connected_throughout
    assert (reading.dropped, inbox.dropped) == (0, 7)
    assert inbox.read(after=reading.cursor(0)).gaps == []


def test_outages_long_ago_are_told_as_one_and_never_forgotten() -> None:
    inbox = Inbox(10, 1000)
    at_the_start = inbox.read().cursor(0)
    for number in range(MAX_GAPS):
        inbox.end_gap(inbox.begin_gap(str(number), start=float(number)))
    apart = inbox.read(after=at_the_start)
    for number in range(MAX_GAPS, 3 * MAX_GAPS):
        inbox.end_gap(inbox.begin_gap(str(number), start=float(number)))

    together = inbox.read(after=at_the_start)

    assert told(apart.gaps) == [str(number) for number in range(MAX_GAPS)]
    assert len(together.gaps) == MAX_GAPS
    assert (together.gaps[0].start, told(together.gaps)[-1]) == (0.0, str(3 * MAX_GAPS - 1))
    assert together.gaps[0].end is not None
    assert inbox.read(after=together.cursor(0)).gaps == []


def test_losses_long_ago_are_summed_up() -> None:
    inbox = Inbox(10, 1000)
    for _ in range(3 * MAX_GAPS):
        inbox.lose(2, "too fast")

    reading = inbox.read()

    assert sum(gap.lost or 0 for gap in reading.gaps) == inbox.dropped == 6 * MAX_GAPS
    assert reading.connected_throughout


@pytest.mark.parametrize("session_resumed", [False, True])
def test_many_outages_that_end_at_once_are_told_as_one_too(session_resumed: bool) -> None:
    inbox = Inbox(10, 1000)
    for gap in [inbox.begin_gap("refused", topic_filter=TopicFilter("a")) for _ in range(3 * MAX_GAPS)]:
        inbox.end_gap(gap, session_resumed=session_resumed)

    inbox.begin_gap("outage")

    assert len(inbox.gaps) == MAX_GAPS
    assert inbox.gaps[0].topic_filter == TopicFilter("a")
    assert inbox.gaps[0].session_resumed is session_resumed


@pytest.mark.parametrize("last", [False, True])
def test_many_losses_do_not_cover_up_an_outage(last: bool) -> None:
    inbox = Inbox(10, 1000)
    outage = inbox.begin_gap("outage", topic_filter=TopicFilter("a"))
    if not last:
        inbox.end_gap(outage)
    for _ in range(3 * MAX_GAPS):
        inbox.lose(1, "too fast")

    assert not inbox.read().connected_throughout
    assert not inbox.read(topic_filter=TopicFilter("a")).connected_throughout


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "lose", "read"]), st.integers(0, 2), st.sampled_from([None, "a", "b"])
        ),
        max_size=30,
    )
)
@settings(deadline=None)
def test_a_gap_is_told_exactly_when_it_touches_the_window(steps: list[tuple[str, int, str | None]]) -> None:
    inbox = Inbox(10, 1000)
    lasting: list[Gap] = []
    over_since_last_read: list[Gap] = []
    cursor = inbox.read().cursor(0)
    for step, which, text in steps:
        if step == "begin":
            lasting.append(inbox.begin_gap("outage", topic_filter=TopicFilter(text) if text else None))
        elif step == "end" and which < len(lasting):
            over_since_last_read.append(lasting.pop(which))
            inbox.end_gap(over_since_last_read[-1])
        elif step == "lose":
            inbox.lose(1, "too fast")
            over_since_last_read.append(inbox.gaps[-1])
        elif step == "read":
            reading = inbox.read(after=cursor)
            cursor = reading.cursor(0)

            assert sorted(map(id, reading.gaps)) == sorted(map(id, over_since_last_read + lasting))
            assert reading.connected_throughout == all(gap.lost for gap in over_since_last_read + lasting)
            over_since_last_read = []


def test_a_cursor_is_short_and_plain() -> None:
    inbox = Inbox(2, 1000)
    for _ in range(100):
        put(inbox)

    assert re.fullmatch(r"[0-9a-f-]{10,90}", inbox.read().cursor(1))
