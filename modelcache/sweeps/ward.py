"""What a sweep goes through, one place at a time, and how it reads there.

Responsible for: what every kind of place has in common, when a sweep ends early, and how fast it reads.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from modelcache.audit import Manner
from modelcache.due import Due, Group
from modelcache.errors import PausedError
from modelcache.outcome import Audit
from modelcache.throttle import Throttle
from modelcache.transfer.control import Control


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one file: by a read of this run, or of an earlier one (`is_known`), which is not repeated yet.

    Of a file that was mended: by how many bytes from a source. `reason` says why it was not.
    """

    audit: Audit
    is_known: bool = False
    is_repaired: bool = False
    bytes_fetched: int = 0
    reason: str = ""

    @property
    def is_finding(self) -> bool:
        """Whether somebody has to act upon it."""
        return self.audit.finding != "whole" and not self.is_repaired

    @property
    def in_words(self) -> str:
        audit = self.audit
        return f"{audit.model}/{audit.path}: {audit.finding}: {self.reason or audit.reason}"

    def to_row(self, where: str) -> dict[str, Any]:
        row = {"where": where, **self.audit.to_row(), "repaired": self.is_repaired}
        return row | {"bytes_fetched": self.bytes_fetched, "reason": self.reason or self.audit.reason}


class Ward(Protocol):
    """A store, another tool's cache, a folder. Only one sweep at a time goes through it."""

    @property
    def name(self) -> str:
        """What people call it; empty for the store itself."""

    def begin(self, before_ms: int) -> None:
        """Looks what there is; what was verified last before then is due."""

    def groups(self) -> Iterator[Group[Any]]:
        """What is due, as `due.in_turn` takes it."""

    def total(self) -> int:
        """Bytes of all its files."""

    def read(self, files: Sequence[Due[Any]]) -> Generator[Found, None, None]:
        """Reads them; each as it ends. Raises PausedError where the sweep is to end: what ended by then is kept."""

    def known(self) -> Iterator[Found]:
        """What earlier sweeps found, nobody has mended, and is not read again yet. Asked after everything else."""


class Pace(Control):
    """Ends a sweep when it is told to, within a buffer, or after the file at hand when its time is over."""

    def __init__(self, stop: threading.Event, time_limit_s: float, rate: int) -> None:
        super().__init__()
        self._stop = stop
        self._until = time.monotonic() + time_limit_s if time_limit_s else None
        self._throttle = Throttle(rate)

    def check(self) -> None:
        if self._stop.is_set():
            raise PausedError("stopped")
        super().check()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set() or super().stopped

    def wait(self, seconds: float) -> None:
        self._stop.wait(max(0.0, seconds))
        self.check()

    @property
    def may_begin(self) -> bool:
        """Whether one more file may be begun."""
        in_time = self._until is None or time.monotonic() < self._until
        return in_time and not self._stop.is_set()

    def manner(self, clock: Callable[[], float], *, strict: bool) -> Manner:
        return Manner(strict, lambda size: self._throttle.take(size, self.check), lambda: self.may_begin, clock)
