"""Whose turn it is to be verified: what was looked at longest ago, a share of all bytes a run.

Responsible for: the choice, on plain values. Leaves to others: what there is, and reading it (`sweep`).
"""

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

from modelcache.errors import UsageError

SKEW_MS = 3_600_000  # by how much another host's clock may be ahead of ours

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Due(Generic[T]):
    """A file: when it was looked at, in ms since 1970, and its size in bytes.

    Files with the same `key` are one on the disk, which is read once.
    """

    looked_at: int
    size: int
    key: Hashable
    file: T


Group = tuple[int, Callable[[], Iterable[Due[T]]]]  # when the oldest of its files was looked at, at the latest; they


def share_of(text: str | int | float) -> Fraction:
    """How much of all bytes a run reads: `1/30`, `0.1` or `full`. UsageError for what is not above 0 and at most 1."""
    try:
        share = Fraction(1) if text == "full" else Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        share = Fraction(0)
    if not 0 < share <= 1:
        raise UsageError(f"share = {text!r}: 1/30, 0.1 or full is expected")
    return share


def looked_at(at_ms: int, now_ms: int) -> int:
    """0 for a time that has not come: nobody can have looked then."""
    return at_ms if 0 < at_ms <= now_ms + SKEW_MS else 0


def in_turn(groups: Iterable[Group[T]]) -> Iterator[Due[T]]:
    """The files of all groups, the one that was looked at longest ago first.

    `groups` come in that order, too; no group is opened before it is the turn of its oldest file.
    """
    waiting: list[tuple[int, int, Due[T]]] = []
    number = 0
    for oldest, files in groups:
        while waiting and waiting[0][0] < oldest:
            yield heapq.heappop(waiting)[2]
        for file in files():
            number += 1  # of the same moment, the first that came
            heapq.heappush(waiting, (file.looked_at, number, file))
    while waiting:
        yield heapq.heappop(waiting)[2]


def chosen(files: Iterable[Due[T]], share: Fraction, total: int) -> list[Due[T]]:
    """The first of them, until they make up their share of `total` bytes: the last may be more than was left.

    So every file has its turn within 1/share runs, however large it is.
    """
    most = math.inf if share == 1 else max(1, math.ceil(share * total))
    taken = 0
    keys: set[Hashable] = set()
    found: list[Due[T]] = []
    for file in files:
        if file.key in keys:
            found.append(file)
            continue
        if taken >= most:
            break
        keys.add(file.key)
        taken += file.size
        found.append(file)
    return found
