"""Reads what is installed, and says which bytes are wrong.

Responsible for: telling whole, corrupt, missing and unreadable apart, and recording that. Never deletes.
Leaves to others: mending it (`repair`), scheduling.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from modelcache.errors import StoreError
from modelcache.events import Progress
from modelcache.model import Digest
from modelcache.order import Workshop
from modelcache.outcome import Audit
from modelcache.sampling import Sampler, Speed
from modelcache.states import EVENT_STATUS, State
from modelcache.store import blobs, records
from modelcache.store.disk import BUFFER
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.registry import status_of
from modelcache.store.sharing import Sharing
from modelcache.transfer.control import Control

WRITE_EVERY_S = 2.0


def verify(shop: Workshop, record: Installed, control: Control) -> list[Audit]:
    """Reads every file of a model, and tells how far it is. Raises what `control` does."""
    with sampler_of(shop, record) as sampler:
        return read(shop, record, control, sampler)


def sampler_of(shop: Workshop, record: Installed) -> Sampler:
    return Sampler(shop.dispatcher, record.id, len(record.files) + len(record.missing))


def read(shop: Workshop, record: Installed, control: Control, sampler: Sampler) -> list[Audit]:
    """Refreshes the stamps of what is right; what is not is never a hit again.

    Works where nothing can be written, too: then only the findings tell.
    """
    audits = []
    findings = _Findings(shop, record)
    try:
        for file in record.files:
            control.check()
            reading = _Reading(file.path, max(0, file.size), control)
            sampler.follow(reading)
            reading.audit, stamp = _audit(shop, record, file, reading.tick)
            sampler.end(reading)
            audits.append(reading.audit)
            findings.add(file, stamp)
    finally:
        with suppress(StoreError):
            findings.write()
    for path in record.missing:
        place = os.path.join(record.folder, path)
        audits.append(Audit(record.id, record.version, path, place, 0, "missing", reason="never fetched"))
    return audits


class _Reading:
    """A file that is being read, as far as that has come."""

    def __init__(self, path: str, size: int, control: Control) -> None:
        self.audit: Audit | None = None  # at the end
        self._path = path
        self._size = size
        self._here = 0
        self._control = control
        self._gauge = Speed()
        self._speed = 0.0

    def tick(self) -> None:
        """One more buffer was read."""
        self._control.check()
        self._here = min(self._here + BUFFER, self._size)

    def measure(self) -> None:
        self._speed = self._gauge.at(self._here)

    def sample(self, model: str, completed: int, total: int) -> Progress:
        audit = self.audit
        is_wrong = audit is not None and audit.finding != "whole"
        status = EVENT_STATUS[State.VERIFYING] if audit is None else "error" if is_wrong else "success"
        return Progress(
            model, status, self._path, self._here, self._size, self._speed, source="cache", completed_files=completed,
            total_files=total, error=f"{audit.finding}: {audit.reason}" if audit and is_wrong else "",
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


def _audit(
    shop: Workshop, record: Installed, file: InstalledFile, tick: Callable[[], None]
) -> tuple[Audit, Stamp | None]:
    """The finding, and the stamp of a file that is whole."""
    place = record.place(file)
    sha256 = Digest("sha256", file.sha256)
    blank = Audit(record.id, record.version, file.path, place, max(0, file.size), "whole")
    known = blobs.load_pieces(shop.layout, sha256, file.size)
    try:
        stamp = Stamp.of(place)
        length = known.size if known else shop.settings.piece_size
        reading = blobs.read_back(place, (sha256,), length, tick)
    except FileNotFoundError:
        return replace(blank, finding="missing", reason="the file is gone"), None
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
