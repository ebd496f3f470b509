"""What a read of one file from end to end says of it: whole, corrupt, missing or unreadable.

Responsible for: telling these apart, and that *corrupt* is proven: read without an error, and the file looked the same
before and after. Leaves to others: what is expected of it, and what follows. Nothing is written here.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from modelcache.errors import ShortageError, StoreError
from modelcache.model import Digest, PieceDigests, Span
from modelcache.outcome import Finding
from modelcache.store import blobs
from modelcache.store.disk import store_error
from modelcache.store.installed import Stamp
from modelcache.store.sharing import is_as_it_was

LOOKS = 3  # at a file that somebody changes meanwhile
GONE = "the file is gone"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file has to be. Without a digest only its size can be checked, if that is known.

    `pieces` tell which bytes are wrong; `measured` is the size of pieces to measure where none are known, 0: none.
    """

    digests: tuple[Digest, ...]
    size: int | None = None
    pieces: PieceDigests | None = None
    measured: int = 0

    def is_met_by(self, reading: blobs.Reading) -> bool:
        if self.digests:
            return reading.wrong is None
        return self.size in (None, reading.size) and not self.wrong_in(reading)

    def wrong_in(self, reading: blobs.Reading) -> tuple[Span, ...]:
        return tuple(blobs.wrong_spans(reading, self.pieces, self.size)) if self.pieces and self.size else ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reading` and `stamp` are those of a file that could be read: the stamp says how it looked before that."""

    finding: Finding
    reason: str = ""
    wrong: tuple[Span, ...] = ()
    reading: blobs.Reading | None = None
    stamp: Stamp | None = None


def judged(place: str, expected: Expected, tick: Callable[[], None]) -> Verdict:
    """Reads all of it; `tick` as in `read_back`. Raises what that does; ShortageError, which says nothing of it."""
    length = expected.pieces.size if expected.pieces else expected.measured
    for _ in range(LOOKS):
        try:
            if not stat.S_ISREG(os.lstat(place).st_mode):
                return Verdict("unreadable", f"{place} is a link, or no file at all")
            stamp = Stamp.of(place)
            reading = blobs.read_back(place, expected.digests, length, tick)
        except (FileNotFoundError, NotADirectoryError):
            return _gone()
        except OSError as error:
            return Verdict("unreadable", store_error(error, place).message)
        except ShortageError:
            raise
        except StoreError as error:
            return Verdict("unreadable", error.message) if os.path.lexists(place) else _gone()
        if expected.is_met_by(reading):
            return Verdict("whole", reading=reading, stamp=stamp)
        if is_as_it_was(place, stamp):
            reason = "the bytes are not what they were" if expected.pieces else "no piece digests tell where"
            return Verdict("corrupt", reason, expected.wrong_in(reading), reading, stamp)
    return Verdict("unreadable", f"{place} changes while it is read") if os.path.lexists(place) else _gone()


def _gone() -> Verdict:
    return Verdict("missing", GONE)
