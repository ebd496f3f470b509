"""Who is asked next, who waits and who is never asked again: the rules, without clock or network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import NotFoundError, TransientError, VerificationError
from modelcache.plan import Scoreboard, Standing, next_at
from modelcache.settings import Settings

CUT = TransientError("cut")
MIB = 1 << 20


def board_of(count: int = 3, **settings: float) -> Scoreboard:
    return Scoreboard([f"s{index}" for index in range(count)], Settings(**settings))  # type: ignore[arg-type]


def pick(board: Scoreboard, now: float = 0.0, *, ranged_only: bool = False) -> Standing | None:
    return board.pick(now, board.hopeful(), ranged_only=ranged_only)


def fail(board: Scoreboard, one: Standing, gained: int = 0, now: float = 0.0) -> float:
    return board.failed(one, CUT, gained, now, 0.5)


# ---- order


def test_sources_are_asked_in_the_order_they_were_given() -> None:
    assert pick(board_of()).name == "s0"


def test_after_a_fault_the_next_source_comes_first_and_the_faulty_one_last() -> None:
    board = board_of()
    fail(board, board.all[0], gained=5)
    assert pick(board).name == "s1"
    fail(board, board.all[1])
    fail(board, board.all[2])
    assert pick(board).name == "s0"


def test_the_least_busy_comes_first_and_a_full_one_not_at_all() -> None:
    board = board_of(2)
    board.all[0].workers = 1
    assert pick(board).name == "s1"
    board.all[1].gone, board.all[0].most_workers = True, 1
    assert pick(board) is None


def test_beside_others_only_sources_with_ranges_work() -> None:
    board = board_of(2)
    board.all[0].ranged = False
    assert pick(board, ranged_only=True).name == "s1"
    assert pick(board).name == "s1"
    board.all[1].gone = True
    assert (pick(board, ranged_only=True), pick(board).name) == (None, "s0")


def test_the_doubted_have_their_turn_after_the_good_and_before_the_blamed() -> None:
    board = board_of()
    board.all[0].doubted = True
    board.blame(board.all[1], "lies")
    assert [one.name for one in board.hopeful()] == ["s2"]
    board.all[2].gone = True
    assert [one.name for one in board.hopeful()] == ["s0"]
    board.all[0].gone = True
    assert [one.name for one in board.hopeful()] == ["s1"]


def test_a_restart_clears_doubts() -> None:
    board = board_of()
    board.all[0].doubted = True
    board.restarted()
    assert len(board.hopeful()) == 3


@pytest.mark.parametrize(("faults", "doubted"), [((1, 2, 0), "s1"), ((0, 0, 0), None), ((0, 0, 9), "s2")])
def test_the_most_faulty_is_doubted_if_anybody_is(faults, doubted) -> None:
    board = board_of()
    for one, count in zip(board.all, faults, strict=True):
        one.faults = count
    board.doubt()
    assert [one.name for one in board.all if one.doubted] == [doubted] * bool(doubted)


def test_the_only_source_is_not_doubted() -> None:
    board = board_of(1)
    board.all[0].faults = 3
    board.doubt()
    assert not board.all[0].doubted


# ---- waiting


def test_a_fault_without_progress_waits_longer_each_time_and_one_with_progress_not_at_all() -> None:
    board = board_of(1, attempts_per_source=9)
    one = board.all[0]
    assert [fail(board, one) for _ in range(3)] == [0.75, 1.5, 3.0]
    assert fail(board, one, gained=1) == 0.0
    assert fail(board, one) == 0.75


def test_who_waits_is_not_picked_before_its_time() -> None:
    board = board_of(1)
    wait = fail(board, board.all[0], now=100.0)
    assert next_at(board.hopeful()) == 100.0 + wait
    assert pick(board, 100.0) is None
    assert pick(board, 100.0 + wait).name == "s0"


def test_others_do_not_wait_with_it() -> None:
    board = board_of(2)
    fail(board, board.all[0], now=100.0)
    assert next_at(board.hopeful()) == 0.0
    assert pick(board, 100.0).name == "s1"


def test_retry_after_lengthens_the_wait_and_too_long_a_one_ends_the_source() -> None:
    board = board_of(2)
    assert board.failed(board.all[0], TransientError("busy", retry_after_s=40), 0, 0.0, 0.0) == 40
    board.failed(board.all[1], TransientError("busy", retry_after_s=61), 0, 0.0, 0.0)
    assert board.all[1].gone
    assert "asks to wait 61 s" in board.failures()[1].reason


def test_a_fault_of_one_connection_too_many_is_no_fault_of_the_source() -> None:
    board = board_of(1)
    one = board.all[0]
    one.workers = 2
    assert [fail(board, one) for _ in range(9)] == [0.0] * 9
    assert (one.most_workers, one.gone, one.faults) == (2, False, 0)


def refuse(board, one, status: int = 0, retry_after_s: float | None = None) -> None:
    error = TransientError("refused", retry_after_s=retry_after_s)
    error.status = status
    board.failed(one, error, 0, 100.0, 0.0)


def test_an_outage_under_several_connections_does_not_leave_one_for_good() -> None:
    board = board_of(1)
    one = board.all[0]
    for left in (3, 2, 1):
        one.workers = left
        refuse(board, one)
    assert one.most_workers == 1
    one.delivers(1e6, several=False)
    assert one.most_workers == one.allowed


@pytest.mark.parametrize("status", [429, 503])
def test_who_says_no_to_further_connections_is_taken_at_its_word(status) -> None:
    board = board_of(1)
    one = board.all[0]
    one.workers = 2
    refuse(board, one, status, retry_after_s=30)
    one.delivers(1e6, several=True)
    assert (one.most_workers, one.not_before, one.faults) == (2, 130.0, 0)


def test_who_refuses_further_connections_again_and_again_is_not_asked_for_ever() -> None:
    board = board_of(1)
    one = board.all[0]
    one.workers = 1
    for _ in range(one.allowed + 1):
        refuse(board, one)
        one.delivers(1e6, several=False)
    assert one.most_workers == 1


# ---- the end


def test_three_faults_without_progress_end_a_source_and_the_last_one_ends_all() -> None:
    board = board_of(2)
    for one in board.all:
        for _ in range(3):
            fail(board, one)
    assert (board.hopeful(), next_at(board.hopeful()), pick(board)) == ([], None, None)


def test_bytes_that_come_again_after_a_restart_are_no_progress() -> None:
    one = board_of(1).all[0]
    assert one.gained(50) == 50
    one.restarted(afresh=False)
    assert [one.gained(30), one.gained(30)] == [0, 10]
    one.restarted(afresh=True)
    assert one.gained(5) == 5


def test_wrong_bytes_make_a_source_the_last_choice_and_only_as_often_as_restarts_are_allowed() -> None:
    board = board_of(2)
    assert board.judge(board.all[0], "wrong", "aa")
    assert pick(board).name == "s1"
    assert board.judge(board.all[1], "wrong", "bb")
    assert pick(board).name == "s0"
    assert board.judge(board.all[0], "wrong", "cc")
    assert board.hopeful() == []


def test_the_same_wrong_bytes_twice_are_another_file() -> None:
    board = board_of(1)
    board.judge(board.all[0], "wrong", "aa")
    assert pick(board) is not None
    board.judge(board.all[0], "wrong", "aa")
    assert pick(board) is None


def test_wrong_bytes_of_nobody_in_particular_end_too() -> None:
    board = board_of(2)
    assert [board.judge(None, "wrong", "aa") for _ in range(5)] == [True] * 4 + [False]


def test_the_story_has_a_line_for_each_source() -> None:
    board = board_of()
    board.all[0].give_up(NotFoundError("404"))
    board.all[1].give_up(VerificationError("too long"))
    assert [(one.source, one.reason, one.kind) for one in board.failures()] == [
        ("s0", "404", "not_found"),
        ("s1", "too long", "integrity"),
        ("s2", "was not asked", ""),
    ]


MOVES = st.sampled_from([0, 0, 1, 100, MIB // 30, MIB // 2, 2 * MIB])
STEPS = st.tuples(
    st.sampled_from(["fail", "late", "restart", "blame", "judge", "nobody", "refuse", "doubt"]),
    MOVES,
    st.integers(0, 4),
)


def carry_out(board: Scoreboard, one: Standing, step: tuple[str, int, int], now: float) -> int:
    """One request to a source, and how it ends. Returns what it moved further than ever."""
    what, moved, number = step
    gain = one.gained(moved)
    if what == "late":
        board.failed(one, TransientError("busy", retry_after_s=number * 20), gain, now, 0.0)
    elif what == "judge":
        board.judge(one, "wrong", str(number))
        board.restarted(afresh=True)
    elif what == "nobody":
        board.judge(None, "wrong", str(number))
        board.restarted(afresh=True)
    elif what == "refuse":
        one.give_up(NotFoundError("404"))
    else:
        board.failed(one, CUT, gain, now, 0.0)
        one.doubted = one.doubted or what == "doubt"
        if what == "restart":
            board.restarted()
    return gain


@given(st.integers(1, 4), st.lists(STEPS, max_size=400))
def test_whatever_happens_only_so_many_requests_are_made_for_nothing(count: int, steps) -> None:
    board = board_of(count)
    now, gained, asked, wrongs = 0.0, 0, 0, 0
    for step in steps:
        moment = next_at(board.hopeful())
        if moment is None:
            break
        now = max(now, moment)
        one = pick(board, now)
        assert one is not None, "somebody may be asked, and yet nobody is: a loop without an end"
        asked += 1
        wrongs += step[0] in ("judge", "nobody")
        gained += carry_out(board, one, step, now)
    assert asked <= 20 * count * (gained // MIB + wrongs + 1)


@given(st.integers(1, 4), st.lists(st.integers(0, MIB), min_size=1))
def test_a_source_that_is_always_cut_at_the_same_place_and_begins_anew_ends(count: int, cuts: list[int]) -> None:
    """Whatever the sequence of cuts: once no cut is further than the furthest, three more tries are the end."""
    board = board_of(count)
    now, asked = 0.0, 0
    while (moment := next_at(board.hopeful())) is not None:
        now = max(now, moment)
        one = pick(board, now)
        assert one is not None
        fail(board, one, one.gained(cuts[min(asked, len(cuts) - 1)]), now)
        board.restarted()
        asked += 1
    assert asked <= count * (3 * len(cuts) + 4)
