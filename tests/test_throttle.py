"""One rate for all connections."""

import threading
import time

import pytest

from modelcache.errors import AbortedError
from modelcache.remotes.source import Abort
from modelcache.throttle import Throttle


def nothing() -> None:
    pass


def seconds_of(throttle: Throttle, count: int, times: int) -> float:
    began = time.monotonic()
    for _ in range(times):
        throttle.take(count, nothing)
    return time.monotonic() - began


def test_without_a_rate_nobody_waits() -> None:
    assert seconds_of(Throttle(), 1 << 40, 1000) < 1


def test_bytes_pass_at_the_rate() -> None:
    """Not sooner; how much later is the machine's doing."""
    assert seconds_of(Throttle(1000), 50, 20) >= (1000 - 250) / 1000 - 0.01


def test_several_share_one_rate() -> None:
    throttle, began = Throttle(1000), time.monotonic()
    threads = [threading.Thread(target=seconds_of, args=(throttle, 50, 5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - began >= (1000 - 250) / 1000 - 0.01


@pytest.mark.parametrize("rate", [0, 10**9])
def test_a_new_rate_counts_at_once_for_those_that_wait(rate) -> None:
    throttle = Throttle(1)
    waiting = threading.Thread(target=throttle.take, args=(10_000, nothing))
    waiting.start()
    throttle.rate = rate
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_lower_rate_counts_at_once_too() -> None:
    throttle = Throttle(10**9)
    throttle.take(10**8, nothing)
    throttle.rate = 1000
    assert seconds_of(throttle, 500, 1) >= 0.2


def test_who_is_ended_does_not_wait() -> None:
    abort = Abort()
    abort.fire()
    with pytest.raises(AbortedError):
        Throttle(1).take(10_000, abort.check)
