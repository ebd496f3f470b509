"""Reads what is installed, and says which bytes are wrong.

Responsible for: telling whole, corrupt, missing and unreadable apart, and recording that. Never deletes.
Leaves to others: mending it (`mending`), scheduling.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial as bound

from modelcache.abreast import Going, abreast
from modelcache.errors import ShortageError, StoreError
from modelcache.events import Progress
from modelcache.model import Digest
from modelcache.order import Workshop
from modelcache.outcome import Audit
from modelcache.sampling import Sampler, Speed
from modelcache.states import EVENT_STATUS, State
from modelcache.store import blobs, records
from modelcache.store.disk import BUFFER, store_error
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.registry import status_of
from modelcache.store.sharing import Sharing
from modelcache.transfer.control import Control

WRITE_EVERY_S = 2.0


def verify(shop: Workshop, record: Installed, control: Control, *, strict: bool = False) -> list[Audit]:
    """Reads every file of a model, and tells how far it is. Raises what `control` does."""
    with sampler_of(shop, record) as sampler:
        return read(shop, record, control, sampler, strict=strict)


def sampler_of(shop: Workshop, record: Installed) -> Sampler:
    return Sampler(shop.dispatcher, record.id, len(record.files) + len(record.missing))


def read(shop: Workshop, record: Installed, control: Control, sampler: Sampler, *, strict: bool = False) -> list[Audit]:
    """Refreshes the stamps of what is right; what is not is never a hit again. In the order of the record.

    Files are read side by side, and recorded as they end. `strict`: by SHA-256, even where pieces are known.
    Works where nothing can be written, too: then only the findings tell.
    """
    largest_first = sorted(record.files, key=lambda file: -file.size)  # so that all threads end at about the same time
    readings = [_Reading(shop, record, file, control, strict) for file in largest_first]
    findings = _Findings(shop, record)
    try:
        _read(readings, findings, sampler)
    finally:
        with suppress(StoreError):
            findings.write()
    found = {reading.file.path: reading.audit for reading in readings}
    audits = [audit for file in record.files if (audit := found[file.path])]
    for path in record.missing:
        place = os.path.join(record.folder, path)
        audits.append(Audit(record.id, record.version, path, place, 0, "missing", reason="never fetched"))
    return audits


def _read(readings: list["_Reading"], findings: "_Findings", sampler: Sampler) -> None:
    """Events tell of the files in order: of the first one that is not told to its end."""
    told = deque(readings)
    works = (work for reading in readings for work in reading.works())
    with closing(abreast(works)) as done:
        if told:
            sampler.follow(told[0])
        for ended in done:
            if ended is not None:
                findings.add(ended.file, ended.stamp)
            while told and told[0].audit is not None:
                sampler.end(told.popleft())
                if told:
                    sampler.follow(told[0])


class _Reading:
    """A file that is being read, by several threads at once, as far as that has come.

    First a look that can only find it right: that of its pieces, or of its SHA-256. Where that is in doubt,
    or nothing is known of pieces, `_audit` reads the whole, and decides.
    """

    def __init__(self, shop: Workshop, record: Installed, file: InstalledFile, control: Control, strict: bool) -> None:
        self.file = file
        self.audit: Audit | None = None  # at the end; then `stamp` is that of a file that is whole
        self.stamp: Stamp | None = None
        self._shop = shop
        self._record = record
        self._control = control
        self._strict = strict
        self._guard = threading.Lock()
        self._looking = 0  # looks that have not ended
        self._is_doubtful = False
        self._size = max(0, file.size)
        self._here = 0
        self._gauge = Speed()
        self._speed = 0.0

    def works(self) -> Iterator[Callable[[Going], "_Reading | None"]]:
        """The last to end gives this reading, with `audit`; the others nothing."""
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
        if self._strict:
            return [lambda tick: blobs.read_back(place, (sha256,), 0, tick).wrong is None]
        portions = blobs.portions(pieces)
        return [bound(blobs.has_pieces, place, stamp, pieces, portion) for portion in portions]

    def _work(self, look: Callable[[Callable[[], None]], bool], going: Going) -> "_Reading | None":
        tick = bound(self._tick, going)
        try:
            is_right = not self._is_doubtful and look(tick)
        except StoreError:
            is_right = False  # `_audit` says why
        with self._guard:
            self._is_doubtful |= not is_right
            self._looking -= 1
            if self._looking:
                return None
        audit = _blank(self._record, self.file)
        if self._is_doubtful:
            audit, self.stamp = _audit(self._shop, self._record, self.file, tick)
        self.audit = audit
        return self

    def _tick(self, going: Going) -> None:
        """One more buffer was read."""
        going()
        self._control.check()
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
    """What was found and is not recorded yet: a kill costs the findings of `WRITE_EVERY_S`."""

    def __init__(self, shop: Workshop, record: Installed) -> None:
        self._shop = shop
        self._record = record
        self._sharing = Sharing(shop.layout, shop.registry)
        self._stamps: list[tuple[InstalledFile, Stamp | None]] = []
        self._due = time.monotonic() + WRITE_EVERY_S

    def add(self, file: InstalledFile, stamp: Stamp | None) -> None:
        """`file` as it was recorded before it was read; None for the stamp of one that is not right.

        What is rotten here is so in every model that has the same file, from now on.
        """
        self._stamps.append((file, stamp))
        if stamp is None:
            with suppress(StoreError):
                self._sharing.distrust(file.sha256, self._record.place(file))
        if time.monotonic() >= self._due:
            with suppress(StoreError):
                self.write()

    def write(self) -> None:
        stamps, self._stamps, self._due = self._stamps, [], time.monotonic() + WRITE_EVERY_S
        self._sharing.write()
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


def _blank(record: Installed, file: InstalledFile) -> Audit:
    return Audit(record.id, record.version, file.path, record.place(file), max(0, file.size), "whole")


def _audit(
    shop: Workshop, record: Installed, file: InstalledFile, tick: Callable[[], None]
) -> tuple[Audit, Stamp | None]:
    """The finding, and the stamp of a file that is whole."""
    place = record.place(file)
    sha256 = Digest("sha256", file.sha256)
    blank = _blank(record, file)
    known = blobs.load_pieces(shop.layout, sha256, file.size)
    try:
        stamp = Stamp.of(place)
        length = known.size if known else shop.settings.piece_size
        reading = blobs.read_back(place, (sha256,), length, tick)
    except (FileNotFoundError, NotADirectoryError):
        return replace(blank, finding="missing", reason="the file is gone"), None
    except OSError as error:
        return replace(blank, finding="unreadable", reason=store_error(error, place).message), None
    except ShortageError:
        raise  # this process has no handle left: that says nothing of the file
    except StoreError as error:
        return replace(blank, finding="unreadable", reason=error.message), None
    if reading.wrong is None:
        if known != reading.pieces:  # what was recorded of them is wrong, if anything was
            with suppress(StoreError):
                blobs.note(shop.layout, reading.digests, reading.pieces)
        return blank, stamp
    wrong = blobs.wrong_spans(reading, known, file.size) if known else []
    reason = "the bytes are not what they were" if known else "no piece digests tell where"
    return replace(blank, finding="corrupt", wrong=tuple(wrong), reason=reason), None
