"""Reads what is installed, and says which bytes are wrong.

Responsible for: telling whole, corrupt, missing and unreadable apart, and recording that. Never deletes. Only rot is
marked, which a read from end to end has proven: a disk that fails, or a file that is not there, says nothing of bytes.
Leaves to others: mending it (`mending`), whose turn it is (`sweep`).
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial as bound

from modelcache.abreast import Going, abreast
from modelcache.errors import PausedError, StoreError
from modelcache.events import Progress
from modelcache.history import rotten
from modelcache.model import Digest, PieceDigests
from modelcache.order import Workshop
from modelcache.outcome import Audit
from modelcache.sampling import Sampler, Speed
from modelcache.state.looks import Begun
from modelcache.states import EVENT_STATUS, State
from modelcache.store import blobs, records
from modelcache.store.disk import BUFFER
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.registry import status_of
from modelcache.store.sharing import Sharing
from modelcache.transfer.control import Control
from modelcache.verdict import GONE, Expected, Verdict, judged

WRITE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Manner:
    """How files are read.

    strict: by SHA-256, even where pieces are known. pay: told how many bytes come next; it may wait. may_begin: whether
    one more file may be begun. clock: what stamps are dated by, in seconds since 1970. begun: what an earlier run has
    read of a file that it could not end. leave: told of each portion that is read of a file, and when that has ended.
    """

    strict: bool = False
    pay: Callable[[int], None] = lambda _: None
    may_begin: Callable[[], bool] = lambda: True
    clock: Callable[[], float] = time.time
    begun: Callable[[str], Begun | None] = lambda _: None
    leave: Callable[[str, Begun | None], None] = lambda _, __: None


def verify(shop: Workshop, record: Installed, control: Control, manner: Manner | None = None) -> list[Audit]:
    """Reads every file of a model, and tells how far it is. Raises what `control` does."""
    with sampler_of(shop, record) as sampler:
        return read(shop, record, control, sampler, manner)


def sampler_of(shop: Workshop, record: Installed) -> Sampler:
    return Sampler(shop.dispatcher, record.id, len(record.files) + len(record.missing))


def read(
    shop: Workshop, record: Installed, control: Control, sampler: Sampler, manner: Manner | None = None
) -> list[Audit]:
    """All that `reading` finds, in the order of the record. What was never fetched is not wrong."""
    found = {audit.path: audit for audit in reading(shop, [(record, sampler)], control, manner)}
    return [found[file.path] for file in record.files]


def reading(
    shop: Workshop, models: Sequence[tuple[Installed, Sampler]], control: Control, manner: Manner | None = None
) -> Generator[Audit, None, None]:
    """Refreshes the stamps of what is right; what has rotted is never a hit again. Gives each file as it ends.

    Files are read side by side, those of several models too. Works where nothing can be written, too: then only the
    findings tell. Raises what `control` does, and PausedError where no file more may be begun; what was found by then
    is recorded.
    """
    manner = manner or Manner()
    read_by = [_ModelReading(shop, record, sampler, control, manner) for record, sampler in models]
    owners = {file: one for one in read_by for file in one.files}
    files = sorted(owners, key=lambda each: -each.file.size)  # so that all threads end at about the same time
    works = (work for file in files if manner.may_begin() for work in file.works())
    try:
        with closing(abreast(works)) as done:
            for file, has_ended in done:
                file.leave(has_ended=has_ended)
                if has_ended:
                    owners[file].end(file)
                    yield file.found
    finally:
        for one in read_by:
            one.write()
    if any(file.audit is None for file in files):
        raise PausedError("the time for reading is over")


def record_as_proven(shop: Workshop, record: Installed, proven: Sequence[tuple[InstalledFile, Stamp]]) -> None:
    """Gives files of a model the stamps that they have in another one: they are the same on the disk."""
    findings = _Findings(shop, record, proven)
    with suppress(StoreError):
        findings.write()


class _ModelReading:
    """A model that is being read. Events tell of its files in order: of the first one that is not told to its end."""

    def __init__(self, shop: Workshop, record: Installed, sampler: Sampler, control: Control, manner: Manner) -> None:
        largest_first = sorted(record.files, key=lambda file: -file.size)
        self.files = [_Reading(shop, record, file, control, manner) for file in largest_first]
        self._sampler = sampler
        self._told = deque(self.files)
        self._findings = _Findings(shop, record)
        self._left = len(self.files)
        if self._told:
            sampler.follow(self._told[0])

    def end(self, file: "_Reading") -> None:
        self._findings.add(file)
        self._left -= 1
        if not self._left:
            self.write()
        while self._told and self._told[0].audit is not None:
            self._sampler.end(self._told.popleft())
            if self._told:
                self._sampler.follow(self._told[0])

    def write(self) -> None:
        with suppress(StoreError):
            self._findings.write()


class _Reading:
    """A file that is being read, by several threads at once, as far as that has come.

    First a look that can only find it right: that of its pieces, or of its SHA-256. Where that is in doubt,
    or nothing is known of pieces, `_audit` reads the whole, and decides.
    """

    def __init__(
        self, shop: Workshop, record: Installed, file: InstalledFile, control: Control, manner: Manner
    ) -> None:
        self.file = file
        self.audit: Audit | None = None  # at the end
        self.stamp: Stamp | None = None  # how it looked before it was read
        self._shop = shop
        self._record = record
        self._control = control
        self._manner = manner
        self._guard = threading.Lock()
        self._looking = 0  # looks that have not ended
        self._is_doubtful = False
        self._size = max(0, file.size)
        self._here = 0
        self._begun = manner.begun(record.place(file)) if file.size > blobs.PORTION else None
        self._since = 0  # ms since 1970
        self._pieces = b""
        self._done: set[int] = set()  # portions that were right
        self._gauge = Speed()
        self._speed = 0.0

    @property
    def found(self) -> Audit:
        assert self.audit is not None
        return self.audit

    def works(self) -> Iterator[Callable[[Going], "tuple[_Reading, bool]"]]:
        """Each gives this reading, and whether it was the last to end: then there is `audit`."""
        self._gauge = Speed()
        looks = self._looks() or [lambda _: False]
        self._looking = len(looks)
        for look in looks:
            yield bound(self._work, look)

    def _looks(self) -> list[Callable[[Callable[[], None]], bool]]:
        """What together proves that the file is right, in less time than `_audit` needs; empty: nothing does."""
        place, file = self._record.place(self.file), self.file
        sha256 = Digest("sha256", file.sha256)
        pieces = blobs.load_pieces(self._shop.layout, sha256, file.size)
        try:
            self.stamp = stamp = blobs.stamp_of(place)
        except StoreError:
            return []
        if pieces is None or file.is_distrusted or stamp.size != file.size:
            return []
        if self._manner.strict:
            return [lambda tick: blobs.read_back(place, (sha256,), 0, tick).wrong is None]
        return [bound(self._is_right, place, pieces, *each) for each in self._left(stamp, pieces)]

    def _left(self, stamp: Stamp, pieces: PieceDigests) -> list[tuple[int, range]]:
        """The portions that no earlier run has read, by their numbers."""
        portions, begun = dict(enumerate(blobs.portions(pieces))), self._begun
        self._since, self._pieces = round(1000 * self._manner.clock()), hashlib.sha256(pieces.blake3).digest()
        if (
            begun
            and begun.pieces == self._pieces
            and begun.stamp == replace(stamp, verified_at=begun.stamp.verified_at)
        ):
            self._since = begun.stamp.verified_at
            self._done = {number for number in begun.done if number < len(portions) - 1}  # one is left to look at
            self._here = min(self._size, sum(len(portions[number]) for number in self._done) * pieces.size)
        return [(number, portion) for number, portion in portions.items() if number not in self._done]

    def _is_right(
        self, place: str, pieces: PieceDigests, number: int, portion: range, tick: Callable[[], None]
    ) -> bool:
        assert self.stamp is not None
        is_right = blobs.has_pieces(place, self.stamp, pieces, portion, tick)
        if is_right:
            self._done.add(number)
        return is_right

    def leave(self, *, has_ended: bool) -> None:
        """What the next run need not read again, if this one is ended now. By the thread that reads for somebody."""
        if self._done and self.stamp and not (has_ended or self._is_doubtful):
            stamp = replace(self.stamp, verified_at=self._since)
            self._manner.leave(self._place, Begun(stamp, self._pieces, frozenset(self._done)))
        elif self.file.size > blobs.PORTION:
            self._manner.leave(self._place, None)

    def _work(self, look: Callable[[Callable[[], None]], bool], going: Going) -> "tuple[_Reading, bool]":
        tick = bound(self._tick, going)
        try:
            is_right = not self._is_doubtful and look(tick)
        except StoreError:
            is_right = False  # `_audit` says why
        with self._guard:
            self._is_doubtful |= not is_right
            self._looking -= 1
            if self._looking:
                return self, False
        audit = self._audit(tick) if self._is_doubtful else self._blank()
        if self.stamp is not None:
            since = self._since if self._begun and not self._is_doubtful else 0
            self.stamp = replace(self.stamp, verified_at=since or round(1000 * self._manner.clock()))
        self.audit = audit
        return self, True

    def _blank(self) -> Audit:
        record, file = self._record, self.file
        return Audit(record.id, record.version, file.path, self._place, self._size, "whole")

    @property
    def _place(self) -> str:
        """Of a file that is withheld, because nobody could mend it, the blob."""
        place, sha256 = self._record.place(self.file), Digest("sha256", self.file.sha256)
        is_withheld = self.file.is_distrusted and not os.path.lexists(place) and blobs.exists(self._shop.layout, sha256)
        return self._shop.layout.blob(sha256) if is_withheld else place

    def _audit(self, tick: Callable[[], None]) -> Audit:
        """Reads all of it by SHA-256."""
        layout, file = self._shop.layout, self.file
        sha256 = Digest("sha256", file.sha256)
        known = blobs.load_pieces(layout, sha256, file.size)
        expected = Expected((sha256,), file.size, known, self._shop.settings.piece_size)
        place = self._place
        verdict = judged(place, expected, tick)
        if place != self._record.place(file) and verdict.finding == "whole":
            verdict = Verdict("missing", GONE)  # a repair links it
        self.stamp = verdict.stamp
        reading = verdict.reading
        if verdict.finding == "whole" and reading and known != reading.pieces:
            with suppress(StoreError):  # what was recorded of them is wrong, if anything was
                blobs.note(layout, reading.digests, reading.pieces)
        audit = replace(self._blank(), finding=verdict.finding, reason=verdict.reason, wrong=verdict.wrong)
        return replace(audit, place=place)

    def _tick(self, going: Going) -> None:
        """One more buffer was read."""
        going()
        self._control.check()
        self._manner.pay(min(BUFFER, self._size))
        with self._guard:
            self._here = min(self._here + BUFFER, self._size)

    def measure(self) -> None:
        self._speed = self._gauge.at(self._here)

    def sample(self, model: str, completed: int, total: int) -> Progress:
        audit = self.audit
        is_wrong = audit is not None and audit.finding != "whole"
        status = EVENT_STATUS[State.VERIFYING] if audit is None else "error" if is_wrong else "success"
        return Progress(
            model, status, self.file.path, self._here, self._size, self._speed, source="cache",
            completed_files=completed, total_files=total,
            error=f"{audit.finding}: {audit.reason}" if audit and is_wrong else "",
        )  # fmt: skip


class _Findings:
    """What was found and is not recorded yet, by the file as it was recorded before: a kill costs the findings of
    `WRITE_EVERY_S`."""

    def __init__(self, shop: Workshop, record: Installed, proven: Sequence[tuple[InstalledFile, Stamp]] = ()) -> None:
        self._shop = shop
        self._record = record
        self._sharing = Sharing(shop.layout, shop.registry)
        self._stamps: list[tuple[InstalledFile, Stamp | None]] = [*proven]  # None: it has rotted
        self._due = time.monotonic() + WRITE_EVERY_S

    def add(self, ended: _Reading) -> None:
        """What is rotten here is so in every model that has the same file, from now on. Of what is not there, or cannot
        be read, nothing is recorded: it may come back."""
        file, stamp = ended.file, ended.stamp
        if stamp and ended.found.finding == "whole":
            self._stamps.append((file, stamp))
        elif stamp and ended.found.finding == "corrupt":
            self._stamps.append((file, None))
            if not file.is_distrusted:
                self._shop.dispatcher.note(rotten(file.path, self._record.id))
            with suppress(StoreError):
                self._sharing.distrust(file.sha256, ended.found.place, stamp)
        if time.monotonic() >= self._due:
            with suppress(StoreError):
                self.write()

    def write(self) -> None:
        stamps, self._stamps, self._due = self._stamps, [], time.monotonic() + WRITE_EVERY_S
        self._sharing.write()
        if not stamps:
            return
        with records.changing(self._shop.layout):
            now = Installed.read(self._record.folder)
            if now is not None:
                changed = now.with_files(_still_true(now, stamps))
                if changed != now:
                    changed.write()
                self._shop.registry.marked(now.id, now.version, status_of(changed))


def _still_true(now: Installed, stamps: list[tuple[InstalledFile, Stamp | None]]) -> list[InstalledFile]:
    """What somebody else recorded since a file was read stays, unless it is right only there."""
    entries = now.by_path()
    found = []
    for file, stamp in stamps:
        entry = entries.get(file.path)
        if stamp is not None and entry == file:
            found.append(replace(file, stamp=stamp))
        elif stamp is None and entry is not None and entry.sha256 == file.sha256:
            found.append(entry.distrusted())
    return found
