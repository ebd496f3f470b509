"""Works side by side: results as they come, the first failure at once, and no thread that is left behind."""

import threading
from collections.abc import Callable, Iterator

import pytest

from modelcache.abreast import Going, abreast

WAIT_S = 60


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "modelcache-reader"]


def until_over(begun: threading.Event) -> Callable[[Going], None]:
    """A work that only ends when nobody waits for it."""

    def work(going: Going) -> None:
        begun.set()
        pause = threading.Event()
        for _ in range(WAIT_S * 100):
            going()
            pause.wait(0.01)

    return work


def test_works_are_done_at_once() -> None:
    met = threading.Barrier(3)
    assert sorted(abreast((lambda _: met.wait(WAIT_S) for _ in range(3)), 3)) == [0, 1, 2]


def test_a_result_is_there_before_a_slower_work_has_ended() -> None:
    may_end = threading.Event()
    results = abreast([lambda _: may_end.wait(WAIT_S) and "slow", lambda _: "fast"], 2)
    assert next(results) == "fast"
    may_end.set()
    assert list(results) == ["slow"]
    assert not readers()


def test_works_are_begun_in_order_and_made_when_their_turn_comes() -> None:
    made = []

    def works() -> Iterator[Callable[[Going], list[int]]]:
        for number in range(3):
            made.append(number)
            yield lambda _: list(made)

    assert list(abreast(works(), 1)) == [[0], [0, 1], [0, 1, 2]]


def test_the_first_failure_is_raised_and_ends_all_others() -> None:
    begun = threading.Event()

    def failing(_: Going) -> None:
        assert begun.wait(WAIT_S)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(abreast([until_over(begun), failing, *[until_over(threading.Event())] * 100], 2))
    assert not readers()


def test_what_makes_the_works_may_fail_too() -> None:
    def works() -> Iterator[Callable[[Going], int]]:
        yield lambda _: 1
        raise OSError("no more")

    results = abreast(works(), 2)
    assert next(results) == 1
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_whoever_turns_away_leaves_no_thread_at_work() -> None:
    begun = threading.Event()
    results = abreast([lambda _: None, until_over(begun)], 2)
    next(results)
    assert begun.wait(WAIT_S)
    results.close()
    assert not readers()


def test_where_no_thread_can_be_had_the_caller_does_the_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    here = threading.get_ident()
    assert list(abreast([lambda _: threading.get_ident()] * 2, 2)) == [here, here]
