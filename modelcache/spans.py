"""A set of bytes of a file, as sorted spans that neither overlap nor touch.

Responsible for: adding, removing, and naming the gaps. Pure arithmetic; `store.partial` gives it meaning.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from modelcache.model import Span

END = 2**63 - 1  # the stop of a file whose size nobody knows yet


class SpanSet:
    """Two flat lists of bounds: cheap for the few dozen spans of a download, correct for any number."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.size = 0

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self._starts, self._stops)

    def add(self, start: int, stop: int) -> None:
        """Puts bytes in; those already in stay in."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)  # the first span that ends at or after start: touching ones merge
        last = bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._replace(first, last, [start], [stop])

    def remove(self, start: int, stop: int) -> None:
        """Takes bytes out; those not in are no matter."""
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if start >= stop or first >= last:
            return
        kept = [(self._starts[first], start), (stop, self._stops[last - 1])]
        kept = [(low, high) for low, high in kept if low < high]
        self._replace(first, last, [low for low, _ in kept], [high for _, high in kept])

    def _replace(self, first: int, last: int, starts: list[int], stops: list[int]) -> None:
        self.size += sum(stops) - sum(starts) - sum(self._stops[first:last]) + sum(self._starts[first:last])
        self._starts[first:last] = starts
        self._stops[first:last] = stops

    def covers(self, start: int, stop: int) -> bool:
        return self.run_end(start) >= stop

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any byte of the span is in."""
        index = bisect_right(self._stops, start)
        return start < stop and index < len(self._starts) and self._starts[index] < stop

    def run_end(self, offset: int) -> int:
        """Where the unbroken run that contains `offset` ends; `offset` itself when that byte is not in."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def gaps(self, start: int, stop: int) -> Iterator[Span]:
        """The maximal spans between `start` and `stop` that are not in, lowest first."""
        index = bisect_right(self._stops, start)
        while start < stop:
            low, high = (self._starts[index], self._stops[index]) if index < len(self._starts) else (stop, stop)
            if start < low:
                yield Span(start, min(low, stop))
            start = max(start, high)
            index += 1
