"""What runs wild is refused and told when to come back, and nothing else notices that there are limits."""

import asyncio
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Rules
from errors import LimitError
from limits import MAX_TOPICS, MESSAGES_PER_MINUTE, Limits


class Clock:
    """Stands still until it is set forward."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def limited(clock: Clock, *, calls_per_s: int = 1, burst: int = 1, concurrent: int = 100) -> Limits:
    return Limits(Rules(calls_per_s=calls_per_s, burst=burst, concurrent=concurrent), clock)


def call(limits: Limits) -> None:
    """Make a quick call that ends at once."""
    with limits.enter(waits=False):
        pass


def begun(limits: Limits, *, waits: bool) -> ExitStack:
    """Begin a call, which ends when what is returned is closed."""
    slot = ExitStack()
    slot.enter_context(limits.enter(waits=waits))
    return slot


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(LimitError) as refused:
        act()
    return str(refused.value)


def told_s(text: str) -> float:
    found = re.search(r"come back in (\d+\.\d) s\b", text)
    assert found, text
    return float(found[1])


# How fast


@pytest.mark.parametrize(
    ("calls_per_s", "told", "too_early_s", "in_time_s"),
    [
        (1, 1.0, 0.999, 1.0),
        (2, 0.5, 0.499, 0.5),
        (3, 0.4, 0.333, 0.334),  # rounded up
        (4, 0.3, 0.249, 0.25),
        (10, 0.1, 0.099, 0.1),
        (2_000, 0.1, 0.0004, 0.0005),
        (100_000, 0.1, 0.000009, 0.00001),  # never 0.0
    ],
)
def test_a_call_too_many_is_told_when_to_come_back(
    calls_per_s: int, told: float, too_early_s: float, in_time_s: float
) -> None:
    clock = Clock()
    limits = limited(clock, calls_per_s=calls_per_s, burst=2)
    call(limits)
    call(limits)

    assert told_s(refusal(lambda: call(limits))) == told
    clock.now = too_early_s
    refusal(lambda: call(limits))
    clock.now = in_time_s
    call(limits)


@settings(deadline=None)
@given(
    start=st.floats(0, 1e7),
    calls_per_s=st.integers(1, 20),
    burst=st.integers(1, 5),
    passed_s=st.floats(0, 0.99),
)
def test_the_time_that_is_told_is_enough_and_a_tenth_less_is_not(
    start: float, calls_per_s: int, burst: int, passed_s: float
) -> None:
    clock = Clock(start)
    limits = limited(clock, calls_per_s=calls_per_s, burst=burst)
    for _ in range(burst):
        call(limits)
    refused_at = clock.now = start + passed_s / calls_per_s

    told = told_s(refusal(lambda: call(limits)))

    clock.now = refused_at + max(told - 0.1001, 0)
    refusal(lambda: call(limits))
    clock.now = refused_at + told
    call(limits)


def test_what_a_float_has_too_much_is_not_told() -> None:
    clock = Clock()
    limits = limited(clock)
    call(limits)
    clock.now = 0.7  # 1 - 0.7 is 0.30000000000000004

    assert told_s(refusal(lambda: call(limits))) == 0.3


def test_the_burst_is_there_again_after_a_rest_and_no_more_than_it() -> None:
    clock = Clock()
    limits = limited(clock, calls_per_s=10, burst=5)

    for clock.now in (0.0, 0.5, 1_000.0):
        for _ in range(5):
            call(limits)
        refusal(lambda: call(limits))


def test_the_usual_limits_let_a_burst_of_ten_thousand_through() -> None:
    limits = Limits(Rules(), Clock())

    for _ in range(10_000):
        call(limits)

    assert refusal(lambda: call(limits)) == (
        "Calls come too fast: the limit is 2000 a second and 10000 at once; come back in 0.1 s, "
        "or have the operator raise RATE_LIMIT_PER_S or RATE_LIMIT_BURST."
    )


# How many at once


def test_calls_that_wait_take_half_and_quick_ones_still_find_room() -> None:
    limits = limited(Clock(), burst=100, concurrent=5)
    first, _ = begun(limits, waits=True), begun(limits, waits=True)

    assert refusal(lambda: limits.enter(waits=True)) == (
        "2 calls that wait are under way, and no more than half of 5 calls may wait: "
        "come back when one of them has ended, or have the operator raise MAX_CONCURRENT_CALLS."
    )
    for _ in range(3):
        begun(limits, waits=False)
    assert refusal(lambda: limits.enter(waits=False)) == (
        "5 calls are under way, which is the limit: come back when one of them has ended, "
        "or have the operator raise MAX_CONCURRENT_CALLS."
    )

    first.close()
    begun(limits, waits=True)
    refusal(lambda: limits.enter(waits=True))


def test_the_lowest_setting_leaves_a_place_for_each_kind() -> None:
    limits = limited(Clock(), burst=10, concurrent=2)

    with limits.enter(waits=True), limits.enter(waits=False):
        assert limits.facts()["under_way"] == 2


def test_quick_calls_may_take_every_place() -> None:
    limits = limited(Clock(), burst=10, concurrent=4)
    for _ in range(4):
        begun(limits, waits=False)

    refusal(lambda: limits.enter(waits=True))


def test_a_refused_call_takes_no_place_and_none_of_the_burst() -> None:
    limits = limited(Clock(), burst=3, concurrent=2)

    with limits.enter(waits=True):
        for _ in range(10):
            refusal(lambda: limits.enter(waits=True))  # no place
    call(limits)
    call(limits)
    for _ in range(10):
        refusal(lambda: call(limits))  # too fast

    assert limits.facts() == {"calls_per_s": 1, "burst": 3, "concurrent": 2, "under_way": 0, "refused": 20}


@pytest.mark.parametrize("waits", [True, False])
def test_a_call_that_fails_gives_its_place_back(waits: bool) -> None:
    limits = limited(Clock(), burst=10, concurrent=2)

    with pytest.raises(ZeroDivisionError), limits.enter(waits=waits):
        raise ZeroDivisionError

    assert limits.facts()["under_way"] == 0


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_gives_its_place_back() -> None:
    limits = limited(Clock(), burst=10, concurrent=2)
    begun = asyncio.Event()

    async def wait_for_long() -> None:
        with limits.enter(waits=True):
            begun.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        task = asyncio.create_task(wait_for_long())
        await begun.wait()
        assert limits.facts()["under_way"] == 1
        task.cancel()
        await asyncio.wait([task])

    assert task.cancelled()
    assert limits.facts()["under_way"] == 0


# Both, whatever happens

STEPS = st.one_of(
    st.integers(1, 2_048).map(lambda ticks: ("advance", ticks)),
    st.booleans().map(lambda waits: ("enter", int(waits))),
    st.booleans().map(lambda waits: ("leave", int(waits))),
)


@settings(deadline=None)
@given(
    calls_per_s=st.integers(1, 20),
    burst=st.integers(1, 6),
    concurrent=st.integers(2, 7),
    steps=st.lists(STEPS, max_size=60),
)
def test_a_call_is_refused_if_and_only_if_it_would_break_a_limit(
    calls_per_s: int, burst: int, concurrent: int, steps: list[tuple[str, int]]
) -> None:
    clock = Clock()
    limits = limited(clock, calls_per_s=calls_per_s, burst=burst, concurrent=concurrent)
    admitted: list[float] = []
    under_way: tuple[list[ExitStack], ...] = ([], [])

    def fits() -> bool:
        """Say whether no window that ends now has more than it may have, with one call more."""
        windows = enumerate(reversed(admitted), 2)
        return all(calls <= burst + calls_per_s * (clock.now - begin) for calls, begin in windows)

    for step, number in steps:
        if step == "advance":
            clock.now += number / 1_024  # such numbers lose nothing as floats
        elif step == "leave" and under_way[number]:
            under_way[number].pop().close()
        elif step == "enter":
            room = sum(map(len, under_way)) < concurrent and not (number and len(under_way[1]) >= concurrent // 2)
            if room and fits():
                under_way[number].append(begun(limits, waits=bool(number)))
                admitted.append(clock.now)
            else:
                refusal(partial(limits.enter, waits=bool(number)))
        assert limits.facts()["under_way"] == sum(map(len, under_way))

    for each in [*under_way[0], *under_way[1]]:
        each.close()
    clock.now += 1 / calls_per_s
    call(limits)


# Messages to one topic


def fill(limits: Limits, topic: str, messages: int = MESSAGES_PER_MINUTE) -> None:
    for _ in range(messages):
        limits.message(topic)


def test_a_topic_has_its_messages_a_minute_and_no_other_topic_pays_for_it() -> None:
    clock = Clock(1e6 + 0.1)
    limits = limited(clock)
    fill(limits, "plant/a")

    text = refusal(lambda: limits.message("plant/a"))
    limits.message("plant/b")

    assert text == (
        "Messages to 'plant/a' come too fast: the limit is 60000 a minute to one topic, and no setting raises it; "
        "come back in 0.1 s."
    )
    assert limits.facts()["refused"] == 1
    clock.now += 0.0009
    refusal(lambda: limits.message("plant/a"))
    clock.now += 0.0991
    fill(limits, "plant/a", 100)  # of which a thousand come back each second
    refusal(lambda: limits.message("plant/a"))
    clock.now += 60
    fill(limits, "plant/a")
    refusal(lambda: limits.message("plant/a"))


def test_a_topic_that_runs_wild_is_remembered_among_a_hundred_thousand_others() -> None:
    limits = limited(Clock())
    fill(limits, "wild")

    for number in range(100_000):
        limits.message(f"t/{number}")

    refusal(lambda: limits.message("wild"))
    fill(limits, "t/0", 10_000)  # forgotten or not, it has its allowance


def test_topics_at_rest_are_forgotten_first() -> None:
    clock = Clock()
    limits = limited(clock)
    for number in range(MAX_TOPICS - 1_000):
        fill(limits, f"at rest/{number}", 3)
    clock.now += 1
    fill(limits, "in use", 2)

    for number in range(1_000):
        limits.message(f"new/{number}")

    fill(limits, "at rest/0")
    fill(limits, "in use", MESSAGES_PER_MINUTE - 2)
    refusal(lambda: limits.message("in use"))


def test_a_hundred_thousand_topics_of_any_length_take_no_more_memory_than_a_few_thousand() -> None:
    limits = limited(Clock())
    counted = limits._topics  # noqa: SLF001 - it shows nowhere else
    most = 0

    for number in range(100_000):
        limits.message(f"{number}/".ljust(1_000, "x"))
        most = max(most, len(counted))

    assert most == MAX_TOPICS
    assert sys.getsizeof(counted) + sum(sys.getsizeof(key) + sys.getsizeof(counted[key]) for key in counted) < 2**20
