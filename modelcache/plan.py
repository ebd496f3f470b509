"""Which source is asked next: rules on plain values, no clock and no network of their own.

Responsible for: the standing of each source within one transfer, the order, waiting, blame, and the story that
is told when all have failed. Leaves to `transfer`: doing it. Orders *within* a fetch only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.errors import SourceError, SourceFailure, TransientError, VerificationError
from modelcache.retry import Backoff, Budget
from modelcache.settings import Settings

SAYS_NO = (429, 503)  # statuses that mean: no more of you


@dataclass(slots=True)
class Standing:
    """How one source has done so far in this transfer. Times are of the caller's monotonic clock."""

    index: int
    name: str
    budget: Budget
    allowed: int = 8  # connections, by its own account
    most_workers: int = 8  # the same, as far as it has shown
    says_no: bool = False  # to further connections, for good
    surplus: int = 0  # further connections that failed at once, since several of them worked
    not_before: float = 0.0
    faults: int = 0  # transient ones: the next source comes first (product A5)
    blames: int = 0
    doubted: bool = False  # contradicts what others gave: asked only when they are gone
    ranged: bool = True  # serves ranges, as far as is known
    refused: bool = False  # its one plain request after an unusable answer to a range is spent
    renewed: bool = False  # its one new beginning for a changed validator is spent, where a digest will tell
    gone: bool = False  # is not asked again in this transfer
    workers: int = 0
    rate: float = 0.0  # bytes/s that one of its connections brought lately; 0: nobody knows yet
    reason: str = ""  # of its last failure
    kind: str = ""
    next_step: str = ""  # what would help with it
    other_file: str = ""  # the digest of the wrong file that it sent twice
    _moved: int = 0  # since the last restart
    _furthest: int = 0

    def give_up(self, error: SourceError | VerificationError) -> None:
        self.gone = True
        self.says(error)

    def doubt(self, error: SourceError) -> None:
        """No fault of its own: that would let a liar who speaks first use up the tries of the honest."""
        self.doubted = True
        self.says(error)

    def says(self, error: SourceError | VerificationError) -> None:
        self.reason, self.kind, self.next_step = error.message, error.kind, error.next_step

    def one_too_many(self, status: int) -> None:
        """It serves its other connections. Said by a status, or often enough, that is for good; else it may have been
        an outage that the others will notice as well."""
        self.most_workers = self.workers
        self.surplus += 1
        self.says_no = self.says_no or status in SAYS_NO or self.surplus > self.allowed

    def delivers(self, rate: float, several: bool) -> None:
        """Bytes come: `rate` a second on one connection (0: too early to say), on `several` or on one."""
        self.rate = rate or self.rate
        if several:
            self.surplus = 0
        if not self.says_no:
            self.most_workers = self.allowed

    def gained(self, moved_bytes: int) -> int:
        """Counts bytes that it moved; returns how many of them it had never moved before.

        After a restart it brings the same bytes once more: no progress, or cutting and restarting never ends.
        """
        self._moved += moved_bytes
        gain = max(0, self._moved - self._furthest)
        self._furthest += gain
        return gain

    def restarted(self, *, afresh: bool) -> None:
        """All bytes are absent again; `afresh`: through no fault of any connection, so they count once more."""
        self._moved = 0
        self.doubted = False
        if afresh:
            self._furthest = 0


class Scoreboard:
    """All sources of one transfer, in the order they were given."""

    def __init__(self, names: Sequence[str], settings: Settings) -> None:
        self._settings = settings
        self._backoff = Backoff(settings.backoff, settings.backoff_factor, settings.retry_after_most)
        self.all = [
            Standing(index, name, Budget(settings.attempts_per_source, settings.requests_for_nothing))
            for index, name in enumerate(names)
        ]
        self._wrongs = 0  # how often the whole proved wrong, whoever was to blame
        self._seen: set[tuple[str, str]] = set()  # (source, digest) of whole files that were wrong

    def hopeful(self) -> list[Standing]:
        """Who may still be asked: the good; without any the doubted; without those the blamed, within bounds."""
        alive = [one for one in self.all if not one.gone]
        unblamed = [one for one in alive if not one.blames]
        if unblamed:
            return [one for one in unblamed if not one.doubted] or unblamed
        return alive if self._wrongs <= self._settings.clean_restarts else []

    def pick(self, now: float, among: Sequence[Standing], *, ranged_only: bool = False) -> Standing | None:
        """The best of those that may be asked now: least blamed, idle, least faulty, fastest, first in order."""
        ready = [one for one in among if one.not_before <= now and one.workers < one.most_workers]
        ready = [one for one in ready if one.ranged or not ranged_only]
        return min(
            ready,
            key=lambda one: (one.blames, not one.ranged, one.workers > 0, one.faults, -one.rate, one.index),
            default=None,
        )

    def failed(self, one: Standing, error: TransientError, gained_bytes: int, now: float, jitter: float) -> float:
        """A fault that may pass. Returns for how many seconds this source is left alone (others may go on)."""
        one.says(error)
        wish = error.retry_after_s or 0.0
        if one.workers and not gained_bytes:
            one.one_too_many(error.status)
            one.not_before = max(one.not_before, now + min(wish, self._settings.retry_after_most))
            return 0.0
        one.faults += 1
        may_try = one.budget.failed(gained_bytes)
        if not may_try or wish > self._settings.retry_after_most:
            one.gone = True
            if wish > self._settings.retry_after_most:
                one.reason += f", and asks to wait {wish:.0f} s"
            return 0.0
        wait = max(wish, self._backoff.delay_s(max(1, one.budget.failures), jitter) if not gained_bytes else 0.0)
        one.not_before = now + wait
        return wait

    def blame(self, one: Standing, reason: str) -> None:
        """Its bytes proved wrong: it is asked again only when nobody else is left (product A6)."""
        one.blames += 1
        one.says(VerificationError(reason))

    def judge(self, culprit: Standing | None, reason: str, digest: str) -> bool:
        """The whole proved wrong; None: nobody can be blamed for it. Returns whether to try once more at all."""
        self._wrongs += 1
        if culprit is not None:
            self.blame(culprit, reason)
            if (culprit.name, digest) in self._seen:  # the same wrong bytes twice: it has another file
                culprit.gone, culprit.other_file = True, digest
                culprit.reason += ", twice the same"
            self._seen.add((culprit.name, digest))
        return self._wrongs <= self._settings.clean_restarts + len(self.all)

    def doubt(self) -> None:
        """A piece in several parts is wrong once more. Who is cut leaves parts: whoever failed most comes last now."""
        trusted = [one for one in self.hopeful() if not one.doubted and not one.blames]
        if len(trusted) > 1:
            worst = max(trusted, key=lambda one: one.faults)
            worst.doubted = worst.faults > 0

    def restarted(self, *, afresh: bool = False) -> None:
        for one in self.all:
            one.restarted(afresh=afresh)

    def failures(self) -> tuple[SourceFailure, ...]:
        return tuple(
            SourceFailure(one.name, one.reason or "was not asked", one.kind, one.other_file, one.next_step)
            for one in self.all
        )


def next_at(among: Sequence[Standing]) -> float | None:
    """When one of them may be asked again; None: never."""
    return min((one.not_before for one in among), default=None)
