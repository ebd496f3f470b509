"""Whose turn it is: what was looked at longest ago, until the share is full (product E1)."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.due import SKEW_MS, Due, chosen, in_turn, looked_at, share_of
from modelcache.errors import UsageError


def due(name: str, at: int, size: int = 10, key: str = "") -> Due[str]:
    return Due(at, size, key or name, name)


A, B, C, D = due("a", 1), due("b", 2), due("c", 3), due("d", 4)


@pytest.mark.parametrize(
    ("share", "total", "names"),
    [
        ("full", 40, "abcd"),
        ("full", 0, "abcd"),  # whatever the total says
        ("1/4", 40, "a"),
        ("1/4", 41, "ab"),  # a share is made up, not only begun
        ("1/2", 40, "ab"),
        (0.5, 40, "ab"),
        ("1/30", 40, "a"),  # at least one, however large
        ("1/30", 0, "a"),
    ],
)
def test_a_share_is_the_oldest_files_that_make_it_up(share: str | float, total: int, names: str) -> None:
    assert "".join(one.file for one in chosen([A, B, C, D], share_of(share), total)) == names


def test_files_without_bytes_cost_no_share() -> None:
    empty = [due(name, 1, size=0) for name in "xyz"]
    assert [one.file for one in chosen([*empty, A, B], Fraction(1, 4), 40)] == ["x", "y", "z", "a"]


def test_what_is_one_file_on_the_disk_is_counted_once() -> None:
    twice = [due("a", 1, 10, "blob"), due("b", 2, 10, "blob"), C, D]
    assert [one.file for one in chosen(twice, Fraction(1, 2), 40)] == ["a", "b", "c"]


def test_groups_are_opened_only_when_their_oldest_file_has_its_turn() -> None:
    opened = []

    def group(name: str, *ages: int) -> Iterator[Due[str]]:
        opened.append(name)
        return iter([due(f"{name}{age}", age) for age in ages])

    files = in_turn(
        [(1, lambda: group("x", 1, 7)), (3, lambda: group("y", 5, 4)), (6, lambda: group("z", 6, 9))],
    )
    assert [next(files).file for _ in range(3)] == ["x1", "y4", "y5"]
    assert opened == ["x", "y"]
    assert [file.file for file in files] == ["z6", "x7", "z9"]


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), max_size=8))
def test_in_turn_gives_every_file_and_the_oldest_first(groups: list[list[int]]) -> None:
    ordered = sorted(groups, key=min)
    files = list(in_turn([(min(ages), lambda ages=ages: [due("", age) for age in ages]) for ages in ordered]))
    assert all(one.looked_at <= other.looked_at for one, other in pairwise(files))
    assert sorted(one.looked_at for one in files) == sorted(age for ages in groups for age in ages)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 30))
def test_everything_has_its_turn_within_as_many_runs_as_there_are_shares(sizes: list[int], shares: int) -> None:
    ages = dict.fromkeys(range(len(sizes)), 0)
    for run in range(1, shares + 1):
        waiting = [due(str(one), age, sizes[one]) for one, age in ages.items() if not age]
        for one in chosen(waiting, Fraction(1, shares), sum(sizes)):
            ages[int(one.file)] = run
    assert all(ages.values())


@pytest.mark.parametrize(("at", "counts"), [(0, 0), (-5, 0), (999, 999), (1000 + SKEW_MS, 1000 + SKEW_MS)])
def test_a_time_that_has_come_counts(at: int, counts: int) -> None:
    assert looked_at(at, 1000) == counts


def test_a_time_that_has_not_come_is_none() -> None:
    assert looked_at(1001 + SKEW_MS, 1000) == 0


@pytest.mark.parametrize("share", ["", "0", "1/0", "2", "-1/3", "a/b", "1e999", float("inf"), float("nan"), "3/2"])
def test_a_share_that_is_none_is_refused(share: str | float) -> None:
    with pytest.raises(UsageError, match=r"1/30, 0\.1 or full is expected"):
        share_of(share)
