"""Which bytes a connection is given.

Responsible for: sizes that suit the source's speed, the ends of pieces, and the window ahead of the proof.
Leaves to `transfer`: to whom they go.
"""

from modelcache.model import ModelFile, Span
from modelcache.store.partial import Partial

LEAST, MOST = 1 << 20, 64 << 20  # bytes of one request where several connections work
UNKNOWN = 16 << 20  # the same for a source that has shown nothing yet
PORTION_S, SHORTEST_S = 2.0, 0.5  # what a connection should be busy with, and at least
HEDGED, MOST_HEDGED = 4 << 20, 16 << 20  # what is asked for twice at the very end; a longer piece as a whole
SLOW_S = 0.3  # a span that needs longer, and some replies, is shared once nothing else is left
_REPLIES = 4


def worth_sharing(left: Span, rate: float, reply_s: float, other_rate: float) -> bool:
    """Whether somebody who brings `other_rate` (0: who knows) should help one who brings `rate` bytes/s."""
    return left.size > rate * max(SLOW_S, _REPLIES * reply_s) and (not other_rate or other_rate * 2 > rate)


class Portions:
    """Of one file and its partial; `window` bytes ahead of the proof are for up to `most` connections."""

    def __init__(self, file: ModelFile, partial: Partial, window: int, most: int) -> None:
        self._partial = partial
        self._piece = file.pieces.size if file.pieces else 1
        self._window = window
        self.hedged = max(HEDGED, min(self._piece, MOST_HEDGED))  # bytes asked for twice, at most
        self._most = max(LEAST, min(MOST, window // most))  # so that all connections find room in the window

    def next(self, rate: float, *, alone: bool, crew: int) -> Span | None:
        """The lowest absent bytes that nobody fetches, for a connection that brings `rate` bytes/s (0: who knows).

        One that works alone gets all that is absent there. None where others work and the rest is too far ahead of
        the proof.
        """
        free = self._partial.unclaimed()
        if not free:
            return None
        gap = free[0]
        if alone and crew == 1:
            return gap
        if not alone and gap.start > self._partial.hashed_bytes + self._window:
            return None
        size = self._size(rate, sum(each.size for each in free) // (2 * crew))
        return Span(gap.start, min(gap.stop, self.aligned(gap.start + size)))

    def aligned(self, stop: int) -> int:
        """Spans end where pieces end, so that each piece has one source to blame."""
        return -(-stop // self._piece) * self._piece

    def cut(self, left: Span, rate: float) -> int:
        """Where a span that one connection has to itself ends once others join it."""
        return self.aligned(left.start + max(LEAST, min(self._most, int(rate * PORTION_S))))

    def halved(self, left: Span) -> int | None:
        """Where to split a slow span so that two may bring it; None: too small for that."""
        middle = self.aligned(left.start + left.size // 2)
        return middle if left.size > HEDGED and left.start < middle < left.stop else None

    def overtaken(self, left: Span) -> int | None:
        """Where to cut a span within its last piece, for a connection that sleeps there and has too much to hedge.

        That piece then has two sources, and nobody to blame, as after a resume. None: the span can be hedged.
        """
        return left.start + HEDGED if left.size > self.hedged else None

    def _size(self, rate: float, fair: int) -> int:
        """`fair` lets portions shrink towards the end, so that all connections end at about the same time."""
        most, least = (int(rate * PORTION_S), int(rate * SHORTEST_S)) if rate else (UNKNOWN, LEAST)
        return max(LEAST, self._piece, min(most, self._most, max(fair, least)))
