"""When the same source is asked again (A3, A4, I24)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.retry import Backoff, Budget, is_transient, rate_limit_s, retry_after_s

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
DATE_S = 784111777.0


@pytest.mark.parametrize(("failures", "whole_s"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (10**6, 60)])
def test_waits_double_up_to_a_minute_and_jitter_spreads_their_second_half(failures: int, whole_s: float) -> None:
    assert Backoff().delay_s(failures, 0.0) == whole_s / 2
    assert whole_s * 0.99 < Backoff().delay_s(failures, 0.999) < whole_s


def test_no_base_is_no_wait() -> None:
    assert Backoff(base_s=0).delay_s(10**6, 0.5) == 0


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0.01, 100), st.floats(1, 1000))
def test_a_wait_is_never_longer_than_its_bound(failures: int, jitter: float, base_s: float, factor: float) -> None:
    backoff = Backoff(base_s, factor, most_s=30)
    assert 0 < backoff.delay_s(failures, jitter) <= 30
    assert backoff.delay_s(failures, jitter) <= backoff.delay_s(failures + 1, jitter)


@pytest.mark.parametrize(
    ("value", "date", "wait_s"),
    [
        ("120", None, 120),
        (" 0 ", None, 0),
        ("9" * 10_000, None, 1e9),
        (DATE, None, 10),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None, 10),
        ("Sun Nov  6 08:49:37 1994", None, 10),
        (DATE, "Sun, 06 Nov 1994 08:49:07 GMT", 30),
        (DATE, "Sun, 06 Nov 1994 08:50:37 GMT", 0),
        (DATE, "garbage", 10),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None, 1e9),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(value: str, date: str | None, wait_s: float) -> None:
    assert retry_after_s(value, date, now_s=DATE_S - 10) == wait_s


@pytest.mark.parametrize(
    "value", [None, "", "-5", "1.5", "1e3", "٣", "soon", "Sun", "Sun, 99 Foo 1994", "5, 5", "\0", DATE * 100]
)
def test_a_retry_after_that_says_nothing_is_none(value: str | None) -> None:
    assert retry_after_s(value, None, now_s=0) is None


@given(st.text(), st.text(), st.floats(0, 1e10))
def test_any_retry_after_is_a_bounded_wait_or_none(value: str, date: str, now_s: float) -> None:
    for wish in (value, "Sun, " + value, "06 Nov 1994 08:49:37 " + value):
        wait_s = retry_after_s(wish, date, now_s)
        assert wait_s is None or 0 <= wait_s <= 1e9


def test_three_attempts_without_a_byte_are_the_end() -> None:
    budget = Budget()
    assert [budget.failed(0) for _ in range(3)] == [True, True, False]
    assert budget.failures == 3


def test_an_attempt_that_moved_bytes_gives_the_others_back() -> None:
    budget = Budget()
    assert all(budget.failed(moved) for moved in (0, 0, 5, 0, 0))
    assert budget.failures == 2
    assert not budget.failed(0)


def test_a_source_that_gives_one_byte_a_request_ends() -> None:
    budget = Budget()
    assert [budget.failed(1) for _ in range(20)] == [True] * 19 + [False]
    assert budget.failures == 0


def test_a_source_that_gains_may_fail_for_ever() -> None:
    budget = Budget(requests=4, gain=100)
    assert all(budget.failed(30) for _ in range(1000))
    assert [budget.failed(30) for _ in range(3)] == [True] * 3
    assert not budget.failed(0)


def test_success_gives_everything_back() -> None:
    budget = Budget(attempts=2, requests=3)
    assert [budget.failed(1), budget.failed(0)] == [True, True]
    budget.succeeded()
    assert budget.failures == 0
    assert [budget.failed(1), budget.failed(1), budget.failed(1)] == [True, True, False]


@given(st.lists(st.integers(0, 1 << 19), max_size=200))
def test_no_source_costs_more_than_twenty_requests_a_mebibyte(moves: list[int]) -> None:
    budget = Budget()
    tries = 0
    for moved in moves:
        tries += 1
        if not budget.failed(moved):
            break
    assert tries <= 20 * (sum(moves[:tries]) // (1 << 20) + 1)


def test_only_faults_that_pass_are_transient() -> None:
    assert [status for status in range(100, 700) if is_transient(status) and status < 500] == [408, 425, 429]
    assert all(is_transient(status) for status in (500, 502, 503, 504, 507, 520, 599))
    assert not any(is_transient(status) for status in (501, 505, 600, 0, 200, 206, 301, 416))


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ('"api";r=0;t=42', 42), ('"api"; r=0; t=42', 42), ('"a";r=0;t=1, "b";r=0;t=7, "c";r=9;t=99', 7),
        ('"api";r=5;t=42', None), ('"api";r=0', None), ("r=0;t=4", None), ('"api";t=42', None), ("", None),
        ('"api";r=0;t=-1', None), ('"api";r=0;t=1234567890', None), ('"api";r=00;t=5', None),
    ],
)  # fmt: skip
def test_a_rate_limit_that_is_used_up_says_when_there_is_quota_again(value: str, wait_s: float | None) -> None:
    assert rate_limit_s(value) == wait_s


@given(st.text(max_size=60))
def test_any_rate_limit_is_a_wait_or_nothing(value: str) -> None:
    assert (rate_limit_s(value) or 0) >= 0
