"""Topic names and filters: MQTT 5.0, sections 1.5.4, 4.7 and 4.8.2, walked corner by corner."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import InputError
from topics import MAX_BYTES, TopicFilter, check_topic_name, shown

# Strings (1.5.4)

FORBIDDEN = [
    "\x00",  # NUL
    "\x01",  # the first of the control characters
    "\x1f",  # the last of the first block
    "\x7f",  # DEL, the first of the second
    "\x9f",  # the last of the second
    "\ud800",  # a lone surrogate, the first
    "\udfff",  # and the last
    "\ufdd0",  # the first noncharacter in the middle of the plane
    "\ufdef",  # and the last
    "\ufffe",  # the two at its end
    "\uffff",
    "\U0001fffe",  # those of the next plane
    "\U0010ffff",  # the last code point there is
]

ALLOWED = [
    " ",  # after the control characters
    "~",  # before DEL
    "\xa0",  # after the second block
    "\ud7ff",  # before the surrogates
    "\ue000",  # after them
    "\ufdcf",  # before the noncharacters
    "\ufdf0",  # after them
    "\ufeff",  # the byte order mark is a character like any other (MQTT-1.5.4-3)
    "\ufffd",
    "\U00010000",
    "\U0001fffd",
    "\U0010fffd",
    "\u202e",  # ugly, and legal: how it is shown is not the topic's business
    "\\",
    '"',
]


@pytest.mark.parametrize("character", FORBIDDEN, ids=ascii)
@pytest.mark.parametrize("place", ["{}", "a{}", "{}/a", "a/{}/b"])
def test_a_character_mqtt_forbids_is_refused_by_its_number(character: str, place: str) -> None:
    with pytest.raises(InputError, match=f"U\\+{ord(character):04X}") as topic:
        check_topic_name(place.format(character))
    with pytest.raises(InputError, match=f"U\\+{ord(character):04X}") as topic_filter:
        TopicFilter(place.format(character))

    assert str(topic.value).isprintable()
    assert str(topic_filter.value).isprintable()


@pytest.mark.parametrize("character", ALLOWED, ids=ascii)
def test_its_neighbours_are_allowed(character: str) -> None:
    topic = f"a{character}/{character}"

    assert check_topic_name(topic) == topic
    assert TopicFilter(topic).matches(topic)
    assert TopicFilter("+/+").matches(topic)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("a" * MAX_BYTES, MAX_BYTES),
        ("a" * (MAX_BYTES + 1), MAX_BYTES + 1),
        ("é" * 32_767 + "a", MAX_BYTES),  # two bytes each
        ("é" * 32_768, MAX_BYTES + 1),
        ("€" * 21_845, MAX_BYTES),  # three
        ("€" * 21_845 + "a", MAX_BYTES + 1),
        ("😀" * 16_383 + "abc", MAX_BYTES),  # four
        ("😀" * 16_384, MAX_BYTES + 1),
        ("/" * MAX_BYTES, MAX_BYTES),  # all of it empty levels
    ],
)
def test_the_length_is_counted_in_bytes_and_ends_at_65535(text: str, size: int) -> None:
    assert len(text.encode()) == size

    if size == MAX_BYTES:
        assert check_topic_name(text) == text
        assert TopicFilter(text).matches(text)
        return
    for make in (check_topic_name, TopicFilter):
        with pytest.raises(InputError, match=f"{size} bytes long.* at most {MAX_BYTES}") as caught:
            make(text)
        assert len(str(caught.value)) < 300


def test_the_group_of_a_shared_subscription_counts_for_its_length() -> None:
    longest = "$share/g/" + "a" * (MAX_BYTES - 9)

    assert TopicFilter(longest).share_name == "g"
    with pytest.raises(InputError):
        TopicFilter(longest + "a")


# Topic names (4.7)


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "/",  # two empty levels
        "//",
        "/a",
        "a/",
        "a//b",
        " ",
        "a b/c d",
        "$SYS/broker/version",
        "$",
        "$share/group/a",  # only filters know shared subscriptions
        "A/a",
        "plant/Größe/温度",
    ],
)
def test_a_topic_is_returned_as_it_is(topic: str) -> None:
    assert check_topic_name(topic) == topic


@pytest.mark.parametrize("topic", ["#", "+", "a/#", "a/+/b", "a+", "a#b", "+a", "a/b#", "$SYS/#"])
def test_a_topic_with_a_wildcard_is_refused_with_the_way_out(topic: str) -> None:
    with pytest.raises(InputError, match=r"contains a wildcard.*publish to one exact topic"):
        check_topic_name(topic)


def test_an_empty_topic_or_filter_is_refused() -> None:
    with pytest.raises(InputError, match="topic is empty"):
        check_topic_name("")
    with pytest.raises(InputError, match="topic filter is empty"):
        TopicFilter("")


# Filters (4.7.1)


@pytest.mark.parametrize(
    "text",
    [
        "#",
        "+",
        "/",
        "a",
        "a/#",
        "+/#",
        "/#",
        "/+",
        "+/+",
        "+//+",
        "a/+/b/#",
        "$SYS/#",
        "$SYS/+",
        "$/#",
        "//#",
        "$share",
    ],
)
def test_a_well_formed_filter_keeps_its_levels(text: str) -> None:
    topic_filter = TopicFilter(text)

    assert (topic_filter.text, topic_filter.share_name, topic_filter.levels) == (text, None, tuple(text.split("/")))


@pytest.mark.parametrize(
    ("text", "wildcard"),
    [
        ("##", "#"),
        ("#/", "#"),
        ("#/a", "#"),
        ("a/#/", "#"),
        ("a/#/b", "#"),
        ("a#", "#"),
        ("#a", "#"),
        ("a/b#", "#"),
        ("+#", "#"),
        ("a/+#", "#"),
        ("++", "+"),
        ("a+", "+"),
        ("+a", "+"),
        ("a/b+/c", "+"),
        ("a/+b", "+"),
        ("a+/#", "+"),
        ("$share/g/a#", "#"),
        ("$share/g/#/a", "#"),
        ("$share/g/a+", "+"),
    ],
)
def test_a_wildcard_that_does_not_stand_alone_is_refused(text: str, wildcard: str) -> None:
    with pytest.raises(InputError, match=f"malformed: \\{wildcard} stands alone in"):
        TopicFilter(text)


@pytest.mark.parametrize(
    ("text", "share_name", "levels"),
    [
        ("$share/g/a", "g", ("a",)),
        ("$share/g/#", "g", ("#",)),
        ("$share/g/+/b", "g", ("+", "b")),
        ("$share/g//", "g", ("", "")),  # the filter is "/"
        ("$share/g//a", "g", ("", "a")),
        ("$share/g/$SYS/#", "g", ("$SYS", "#")),
        ("$share/g/$share/h/a", "g", ("$share", "h", "a")),  # not nested: an ordinary filter follows
        ("$share/a b/c", "a b", ("c",)),
        ("$shared/g/a", None, ("$shared", "g", "a")),
        ("$SHARE/g/a", None, ("$SHARE", "g", "a")),
        ("/$share/g/a", None, ("", "$share", "g", "a")),
        ("share/g/a", None, ("share", "g", "a")),
    ],
)
def test_a_shared_subscription_is_group_and_filter(text: str, share_name: str | None, levels: tuple[str, ...]) -> None:
    topic_filter = TopicFilter(text)

    assert (topic_filter.share_name, topic_filter.levels) == (share_name, levels)


@pytest.mark.parametrize(
    "text", ["$share/", "$share//", "$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g+/a", "$share/#/a"]
)
def test_a_malformed_shared_subscription_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(InputError, match=r"\$share/GROUP/FILTER"):
        TopicFilter(text)


@pytest.mark.parametrize(
    ("text", "has_wildcard"),
    [
        ("a", False),
        ("a/b", False),
        ("/", False),
        ("+", True),
        ("a/+/b", True),
        ("a/#", True),
        ("$share/g/a", False),
        ("$share/g/+", True),
    ],
)
def test_a_wildcard_is_one_in_what_is_matched(text: str, has_wildcard: bool) -> None:
    assert TopicFilter(text).has_wildcard is has_wildcard


def test_filters_are_values() -> None:
    assert TopicFilter("a/+") == TopicFilter("a/+")
    assert TopicFilter("a/+") != TopicFilter("$share/g/a/+")
    assert len({TopicFilter("a"), TopicFilter("a"), TopicFilter("b")}) == 2


# Matching (4.7.1, 4.7.2)


@pytest.mark.parametrize(
    ("text", "topic", "matches"),
    [
        # the specification's own examples
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/monitor/Clients", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor/Clients", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        # and what stands next to them
        ("sport/#", "sports", False),
        ("sport/#", "sport/", True),
        ("sport", "sport/", False),
        ("sport/", "sport", False),
        ("a/b", "a/B", False),
        ("+", "a", True),
        ("+", "$SYS", False),
        ("+/#", "a", True),
        ("+/#", "$SYS/a", False),
        ("#", "/", True),
        ("#", "/$SYS", True),  # $ only counts at the very beginning
        ("/#", "/", True),
        ("/#", "a", False),
        ("+/+/+", "//", True),
        ("+/+", "//", False),
        ("a//b", "a//b", True),
        ("a/+/b", "a//b", True),
        ("a/+/b", "a/b", False),
        ("a/+", "a/$SYS", True),
        ("$SYS", "$SYS", True),
        ("$SYS/#", "$SYS", True),
        ("$SYS/#", "$SYSTEM", False),
        ("$/+", "$/a", True),
        ("a/#", "a/b/c/d/e", True),
        ("a/+/#", "a", False),
        ("a/+/#", "a/b", True),
        # shared subscriptions match what their filter matches
        ("$share/g/a/#", "a", True),
        ("$share/g/a", "$share/g/a", False),
        ("$share/g/#", "$SYS/a", False),
        ("$share/g/$SYS/#", "$SYS/a", True),
        ("$share/g//a", "/a", True),
        ("$share", "$share", True),
    ],
)
def test_a_topic_belongs_to_a_filter_or_not(text: str, topic: str, matches: bool) -> None:
    assert TopicFilter(text).matches(topic) is matches


def by_the_book(text: str) -> re.Pattern[str]:
    """Write a filter as a regular expression over whole topics: another way to the same answer."""
    guard = r"(?!\$)" if text[0] in "+#" else ""
    head, every_further, _ = text.partition("#")
    pattern = re.escape(head).replace(r"\+", "[^/]*")
    if every_further:
        pattern = pattern.removesuffix("/") + "(?:/.*)?" if head else ".*"
    return re.compile(guard + pattern, re.DOTALL)


NAMES = ("", "a", "$x")
TOPICS = ["/".join(levels) for depth in range(1, 5) for levels in product((*NAMES, "other"), repeat=depth)][1:]
FILTERS = [
    text
    for depth in range(1, 4)
    for levels in product((*NAMES, "+"), repeat=depth)
    for text in ("/".join(levels), "/".join((*levels[:-1], "#")))
    if text
]
MATCHED = {text: frozenset(topic for topic in TOPICS if by_the_book(text).fullmatch(topic)) for text in FILTERS}


@pytest.mark.parametrize("text", MATCHED)
def test_matching_agrees_with_the_book_for_every_small_topic(text: str) -> None:
    topic_filter = TopicFilter(text)

    assert {topic for topic in TOPICS if topic_filter.matches(topic)} == MATCHED[text]


@pytest.mark.parametrize("text", MATCHED)
def test_a_filter_covers_another_exactly_when_it_misses_none_of_its_topics(text: str) -> None:
    topic_filter = TopicFilter(text)

    covered = {other for other in MATCHED if topic_filter.covers(TopicFilter(other))}

    assert covered == {other for other, topics in MATCHED.items() if topics <= MATCHED[text]}


@pytest.mark.parametrize("text", MATCHED)
def test_a_filter_overlaps_another_exactly_when_a_topic_belongs_to_both(text: str) -> None:
    topic_filter = TopicFilter(text)

    overlapping = {other for other in MATCHED if topic_filter.overlaps(TopicFilter(other))}

    assert overlapping == {other for other, topics in MATCHED.items() if topics & MATCHED[text]}


@pytest.mark.parametrize("text", MATCHED)
def test_the_intersection_of_two_filters_matches_what_both_match(text: str) -> None:
    for other, topics in MATCHED.items():
        both = TopicFilter(text).intersection(TopicFilter(other))
        found = {topic for topic in TOPICS if both.matches(topic)} if both else set()
        assert found == topics & MATCHED[text], other


@given(
    levels=st.lists(st.sampled_from(["", "+", "a", "$", "b.c", "ß"]), min_size=1, max_size=9),
    every_further=st.booleans(),
    topic=st.lists(st.sampled_from(["", "a", "$", "b.c", "bxc", "ß", "ss"]), min_size=1, max_size=10).map("/".join),
)
@settings(deadline=None, max_examples=300)
def test_matching_agrees_with_the_book_for_long_topics(levels: list[str], every_further: bool, topic: str) -> None:
    text = "/".join([*levels, "#"] if every_further else levels) or "/"

    assert TopicFilter(text).matches(topic or "/") == bool(by_the_book(text).fullmatch(topic or "/"))


@pytest.mark.parametrize(
    ("text", "other", "covers"),
    [
        ("#", "+/#", True),
        ("+/#", "#", True),  # every topic has a first level
        ("+/+/#", "#", False),
        ("/+/#", "/#", True),  # nor is there a topic before the first /
        ("/+/#", "a/#", False),
        ("a/#", "a", True),
        ("a/#", "a/#", True),
        ("a/+", "a/#", False),  # "a" and "a/b/c" would be missed
        ("#", "$SYS/#", False),
        ("#", "$share/g/a/#", True),  # what it matches counts, not how it is written
        ("$share/g/#", "a", True),
        ("$share/g/#", "$SYS/a", False),
        ("$share/g/a", "$share/h/a", True),
        ("$SYS/#", "$SYS/+/a", True),
        ("+/a", "$SYS/a", False),
    ],
)
def test_a_filter_covers_another_or_not(text: str, other: str, covers: bool) -> None:
    assert TopicFilter(text).covers(TopicFilter(other)) is covers


# Showing


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a/b", "'a/b'"),
        ("", "''"),
        ("it's", '"it\'s"'),
        ("a\nb\x00", r"'a\nb\x00'"),
        ("\u202e\u200b", r"'\u202e\u200b'"),
        ("\ud800", r"'\ud800'"),
        ("a" * 120, f"'{'a' * 120}'"),
        ("a" * 121, f"'{'a' * 120}…'"),
    ],
)
def test_text_is_quoted_printable_and_short(text: str, quoted: str) -> None:
    assert shown(text) == quoted
