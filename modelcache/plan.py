"""Which source is asked next: rules on plain values, no clock and no network of their own.

Responsible for: the standing of each source within one transfer, the order, waiting, blame, and the story that
is told when all have failed. Leaves to `transfer`: doing it. Orders *within* a fetch only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.errors import SourceError, SourceFailure, TransientError
from modelcache.retry import Backoff, Budget
from modelcache.settings import Settings


@dataclass(slots=True)
class Standing:
    """How one source has done so far in this transfer. Times are of the caller's monotonic clock."""

    index: int
    name: str
    budget: Budget
    most_workers: int = 8
    not_before: float = 0.0
    faults: int = 0  # transient ones: the next source comes first (product A5)
    blames: int = 0
    ranged: bool = True  # serves ranges, as far as is known
    refused: bool = False  # its one restart after an unusable answer to a range is spent
    gone: bool = False  # is not asked again in this transfer
    workers: int = 0
    reason: str = ""  # of its last failure
    kind: str = ""

    def give_up(self, error: SourceError) -> None:
        self.gone = True
        self.reason, self.kind = error.message, error.kind


class Scoreboard:
    """All sources of one transfer, in the order they were given."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        self._settings = settings
        self._backoff = Backoff(settings.backoff, settings.backoff_factor, settings.retry_after_most)
        self.all = [
            Standing(index, name, Budget(settings.attempts_per_source, settings.requests_for_nothing))
            for index, name in enumerate(names)
        ]
        self.wrongs = 0  # how often bytes proved wrong, whoever was to blame

    def pick(self, now: float, *, ranged_only: bool = False) -> Standing | None:
        """The best source that may be asked now: least blamed, least busy, least faulty, first in order."""
        ready = [one for one in self._hopeful() if one.not_before <= now and one.workers < one.most_workers]
        ready = [one for one in ready if one.ranged or not ranged_only]
        return min(
            ready, key=lambda one: (one.blames, not one.ranged, one.workers, one.faults, one.index), default=None
        )

    def next_at(self) -> float | None:
        """When somebody may be asked again; None: never, all have failed."""
        return min((one.not_before for one in self._hopeful()), default=None)

    def failed(self, one: Standing, error: TransientError, moved_bytes: int, now: float, jitter: float) -> float:
        """A fault that may pass. Returns for how many seconds this source is left alone (others may go on)."""
        one.faults += 1
        one.reason, one.kind = error.message, error.kind
        may_try = one.budget.failed(moved_bytes)
        wish = error.retry_after_s or 0.0
        if not may_try or wish > self._settings.retry_after_most:
            one.gone = True
            if wish > self._settings.retry_after_most:
                one.reason += f", and asks to wait {wish:.0f} s"
            return 0.0
        wait = max(wish, self._backoff.delay_s(max(1, one.budget.failures), jitter) if not moved_bytes else 0.0)
        one.not_before = now + wait
        return wait

    def blame(self, one: Standing, reason: str) -> None:
        """Its bytes proved wrong: it is asked again only when nobody else is left (product A6)."""
        one.blames += 1
        self.wrongs += 1
        one.reason, one.kind = reason, "integrity"

    def failures(self) -> tuple[SourceFailure, ...]:
        return tuple(SourceFailure(one.name, one.reason or "was not asked", one.kind) for one in self.all)

    def _hopeful(self) -> list[Standing]:
        alive = [one for one in self.all if not one.gone]
        unblamed = [one for one in alive if not one.blames]
        return unblamed or (alive if self.wrongs <= self._settings.clean_restarts else [])
