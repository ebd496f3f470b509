"""How many connections: a rule on plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.transfer.crew import Crew

LOOK_S = 0.5
MUCH = 1 << 40


def grown(most: int, rate_of: dict[int, int], absent: int = MUCH) -> list[int]:
    """What the crew wants, look after look, where so many connections together bring that many MiB/s."""
    crew, now, received, wanted = Crew(most, LOOK_S), 0.0, 0.0, [1]
    for _ in range(40):
        crew.look(now, int(received), crew.wanted, absent)
        if crew.wanted != wanted[-1]:
            wanted.append(crew.wanted)
        now += LOOK_S / 2
        received += (rate_of[crew.wanted] << 20) * LOOK_S / 2
    return wanted


@pytest.mark.parametrize(
    ("most", "rates", "wanted"),
    [
        (8, {1: 200, 2: 400, 4: 800, 8: 1600}, [1, 2, 4, 8]),
        (8, {1: 200, 2: 400, 4: 460}, [1, 2, 4, 2]),
        (8, {1: 1000, 2: 1000}, [1, 2, 1]),
        (8, {1: 1000, 2: 200}, [1, 2, 1]),
        (6, {1: 200, 2: 400, 4: 800, 6: 1200}, [1, 2, 4, 6]),
        (2, {1: 200, 2: 400}, [1, 2]),
        (1, {1: 200}, [1]),
    ],
)
def test_connections_grow_while_the_total_rises_and_go_back_when_it_does_not(most, rates, wanted) -> None:
    assert grown(most, rates) == wanted


@pytest.mark.parametrize(
    ("most", "rates", "wanted"),
    [
        (8, {1: 1, 8: 8}, [1, 8]),
        (8, {1: 10, 8: 18}, [1, 8]),
        (8, {1: 10, 2: 16, 4: 16, 8: 16}, [1, 8, 2, 4, 2]),
        (8, {1: 10, 2: 11, 8: 11}, [1, 8, 2, 1]),
        (8, {1: 10, 2: 10, 8: 2}, [1, 8, 2, 1]),
        (8, {1: 70, 2: 100, 8: 300}, [1, 2, 8]),
        (3, {1: 10, 3: 30}, [1, 3]),
        (2, {1: 10, 2: 11}, [1, 2, 1]),
        (1, {1: 10}, [1]),
    ],
)
def test_all_that_may_be_are_tried_where_each_waits_for_the_network(most, rates, wanted) -> None:
    assert grown(most, rates) == wanted


def test_what_is_here_soon_is_not_worth_another_connection() -> None:
    assert grown(8, {1: 10, 8: 80}, absent=25 << 20) == [1]


def test_nothing_is_judged_before_all_connections_deliver() -> None:
    crew = Crew(8, LOOK_S)
    crew.look(0.0, 0, 1, MUCH)
    assert crew.look(1.0, 100, 1, MUCH)
    assert not any(crew.look(second, 100 * second, 7, MUCH) for second in range(2, 20))
    assert crew.wanted == 8


def test_waiting_for_the_disk_is_not_taken_for_a_slow_network() -> None:
    crew = Crew(8, LOOK_S)
    crew.look(0.0, 0, 1, MUCH)
    crew.wait()
    assert not crew.look(10.0, 0, 1, MUCH)


@given(st.integers(1, 64), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**12), st.integers(0, 64))))
def test_never_more_than_allowed_and_never_none(most, looks) -> None:
    crew, now, received = Crew(most, LOOK_S), 0.0, 0
    for seconds, count, delivering in looks:
        now, received = now + seconds, received + count
        crew.look(now, received, delivering, MUCH)
        assert 1 <= crew.wanted <= most
