"""Which topics are open, and what the table of tools says."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Rules
from errors import PolicyRefusedError
from policy import TOOLS, Policy, exists_in
from tests.test_topics import FILTERS, MATCHED, TOPICS
from topics import TopicFilter


def policy(**lists: str) -> Policy:
    return Policy(
        Rules(**{name: tuple(TopicFilter(each) for each in text.split(",") if each) for name, text in lists.items()})  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("allow", "deny", "topic", "allowed", "says"),
    [
        ("", "", "a/b", True, "everything"),
        ("a/#", "", "a/b", True, "a/#"),
        ("a/#", "", "b", False, "PUBLISH_ALLOW, which has a/#"),
        ("a/#,b", "", "b", True, "b"),
        ("a/#", "a/secret", "a/secret", False, "PUBLISH_DENY has a/secret"),
        ("a/secret", "a/#", "a/secret", False, "PUBLISH_DENY has a/#"),  # deny beats allow, however narrow
        ("", "+/secret", "x/secret", False, "PUBLISH_DENY"),
        ("#", "", "$SYS/x", False, "PUBLISH_ALLOW"),  # # does not reach topics that begin with $
        ("", "#", "$SYS/x", True, "everything"),
    ],
)
def test_a_topic_is_open_to_publish_or_not(allow: str, deny: str, topic: str, allowed: bool, says: str) -> None:
    verdict = policy(publish_allow=allow, publish_deny=deny).publish(topic)

    assert verdict.allowed is allowed
    assert says in verdict.reason


@pytest.mark.parametrize("lists", [{}, {"publish_allow": "#,$SYS/#"}])
@pytest.mark.parametrize(
    ("topic", "retain"),
    [
        ("$SYS/Coreflux/Command", False),
        ("$sys/coreflux/COMMAND", False),
        ("$SYS/Coreflux/Command/Output", False),
        ("$sys/COREFLUX/Config/New", False),
        ("$SYS/x", True),
    ],
)
def test_commands_and_what_is_retained_below_sys_are_closed_whatever_the_lists_say(
    lists: dict[str, str], topic: str, retain: bool
) -> None:
    rules = policy(**lists)

    assert not rules.publish(topic, retain=retain).allowed
    with pytest.raises(PolicyRefusedError, match="Nothing was sent"):
        rules.check_publish(topic, retain=retain)


@pytest.mark.parametrize(
    ("allow", "deny", "wanted", "allowed"),
    [
        ("", "", "#", True),
        ("s/+", "", "s/+", True),
        ("s/+", "", "s/#", False),
        ("s/#", "", "s/+/x", True),
        ("s/#", "", "s", True),
        ("s/#", "", "#", False),
        ("s/#", "s/private/#", "s/#", False),
        ("s/#", "s/private/#", "s/open/#", True),
        ("s/#", "s/+/key", "s/x/#", False),
        ("s/#", "", "$share/g/s/+", True),
        ("s/#", "", "$share/g/#", False),
        ("#", "", "$SYS/#", False),
        ("#,$SYS/#", "", "$SYS/broker/#", True),
        ("", "$SYS/#", "#", True),  # which does not reach it
        ("", "$SYS/#", "$SYS/broker/version", False),
    ],
)
def test_a_filter_is_open_only_if_all_its_topics_are(allow: str, deny: str, wanted: str, allowed: bool) -> None:
    assert policy(subscribe_allow=allow, subscribe_deny=deny).subscribe(TopicFilter(wanted)).allowed is allowed


LISTS = st.lists(st.sampled_from(FILTERS), max_size=3)


def is_open(topic: str, allow: list[str], deny: list[str]) -> bool:
    """Say it with the topics themselves."""
    return (not allow or any(topic in MATCHED[each] for each in allow)) and not any(
        topic in MATCHED[each] for each in deny
    )


@settings(max_examples=500, deadline=None)
@given(LISTS, LISTS, st.sampled_from(FILTERS))
def test_nothing_that_is_closed_is_reached_and_no_more_is_left_out_than_must_be(
    allow: list[str], deny: list[str], wanted: str
) -> None:
    rules = policy(subscribe_allow=",".join(allow), subscribe_deny=",".join(deny))
    reached = MATCHED[wanted]
    all_open = all(is_open(topic, allow, deny) for topic in reached)

    if rules.subscribe(TopicFilter(wanted)).allowed:
        assert all_open
    elif all_open and reached:
        assert len(allow) > 1  # that two rules together open a filter is not seen; that is the safe side
    try:
        look = rules.look(TopicFilter(wanted))
        seen = {topic for topic in reached for each in look.filters if each.matches(topic) and rules.open(topic)}
    except PolicyRefusedError:
        seen = set()
    assert seen == {topic for topic in reached if is_open(topic, allow, deny)}
    if seen != reached:
        assert not reached or not seen or look.left_out


@settings(max_examples=300, deadline=None)
@given(LISTS, LISTS)
def test_publishing_agrees_with_the_topics_themselves(allow: list[str], deny: list[str]) -> None:
    rules = policy(publish_allow=",".join(allow), publish_deny=",".join(deny))

    for topic in TOPICS:
        assert rules.publish(topic).allowed == is_open(topic, allow, deny)


@pytest.mark.parametrize(
    ("allow", "deny", "topic", "readable"),
    [
        ("", "", "a", True),
        ("", "", "", True),  # no topic, and no rule that it could break
        ("", "b", "", False),
        ("", "b", "a", True),
        ("", "b", "b", False),
        ("a/#", "", "a/b", True),
        ("a/#", "", "c", False),
    ],
)
def test_a_topic_is_readable_or_not(allow: str, deny: str, topic: str, readable: bool) -> None:
    assert policy(subscribe_allow=allow, subscribe_deny=deny).readable(topic) is readable


def test_a_broader_look_says_what_was_left_out() -> None:
    look = policy(subscribe_allow="plant/#,office/+", subscribe_deny="plant/secret/#").look(TopicFilter("#"))

    assert [each.text for each in look.filters] == ["plant/#", "office/+"]
    assert "plant/#, office/+" in look.left_out[0]
    assert "plant/secret/#" in look.left_out[1]
    assert policy(subscribe_allow="plant/#").look(TopicFilter("plant/a/#")).left_out == ()
    with pytest.raises(PolicyRefusedError, match=r"plant/#"):
        policy(subscribe_allow="plant/#").look(TopicFilter("office/#"))


def test_the_answers_of_requests_are_heard_on_their_own_topic_only() -> None:
    rules = policy(subscribe_allow="plant/#")

    rules.check_subscribe(TopicFilter("coreflux-mcp/response/me/0123"), own="me")
    for wanted in ("coreflux-mcp/response/other/0123", "coreflux-mcp/response/me/+", "coreflux-mcp/response/#"):
        with pytest.raises(PolicyRefusedError):
            rules.check_subscribe(TopicFilter(wanted), own="me")


def test_a_mode_has_the_tools_of_the_modes_below_it() -> None:
    modes = {mode: {tool for tool in TOOLS if exists_in(tool, mode)} for mode in ("read", "write", "admin")}

    assert modes["read"] < modes["write"] < modes["admin"] == set(TOOLS)
    assert all(TOOLS[tool].effect in ("looks", "handles") for tool in modes["read"])
    assert all(rule.asks != "never" for rule in TOOLS.values() if rule.effect == "deletes")
