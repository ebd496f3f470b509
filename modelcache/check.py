"""Whether a folder holds what a manifest lists: in an instant where that was proven before.

Responsible for: trusting a stamp, reading what has none, and recording what was read and right.
"""

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from modelcache.errors import ShortageError, StoreError
from modelcache.model import Manifest, ModelFile
from modelcache.names import joined
from modelcache.outcome import UNVERIFIED, Audit
from modelcache.rows import Report
from modelcache.store.installed import RECORD, Installed, InstalledFile
from modelcache.units import in_bytes

if TYPE_CHECKING:
    from collections.abc import Generator

    from modelcache.abreast import Going
    from modelcache.store.blobs import Reading

    _Read = tuple[Audit, InstalledFile | None]


def check(manifest: Manifest, folder: str) -> Report:
    """One row a file: whole, corrupt, missing or unreadable. Nothing is fetched; only the record is written.

    Raises StoreError where this process has no file handle left to look.
    """
    folder = os.path.abspath(folder)
    known = Installed.read(folder) or Installed(manifest.id, manifest.version, manifest.ref, (), folder)
    entries = known.by_path()
    audits: dict[str, Audit] = {}
    unread = []
    for file in manifest.files:
        entry = entries.get(file.path)
        if entry is not None and _is_proven(known, entry, file):
            audits[file.path] = _audit(manifest, file, f"{folder}/{file.path}", entry.size)
        else:
            unread.append(file)
    found = []
    for audit, read in _readings(manifest, unread, folder) if unread else ():
        audits[audit.path] = audit
        found += [read] if read else []
    is_foreign = not known.files and os.path.lexists(os.path.join(folder, RECORD))  # another program's: it stays
    if found and not is_foreign:
        with suppress(StoreError):  # a folder that is not ours to write to is read again next time
            known.with_files(found).write()
    return Report(f"{manifest.id} in {folder}", tuple(audits[file.path].to_row() for file in manifest.files))


def _is_proven(record: Installed, entry: InstalledFile, file: ModelFile) -> bool:
    expected = file.digest()
    agrees = expected.hex == entry.sha256 if expected else not file.digests
    return agrees and file.size in (None, entry.size) and entry.stamp.judge(f"{record.folder}/{entry.path}") == "right"


def _readings(manifest: Manifest, files: list[ModelFile], folder: str) -> "Generator[_Read, None, None]":
    """Reads files side by side, the largest first, so that all threads end at about the same time."""
    from functools import partial as bound

    from modelcache.abreast import abreast

    largest_first = sorted(files, key=lambda file: -(file.size or 0))
    return abreast(bound(_read, manifest, file, joined(folder, file.path)) for file in largest_first)


def _read(manifest: Manifest, file: ModelFile, place: str, going: "Going") -> "_Read":
    from modelcache.store.blobs import read_back, stamp_of, wrong_spans

    blank = _audit(manifest, file, place, file.size or 0)
    if not os.path.isfile(place):
        return _found(blank, "missing", "the file is not there"), None
    try:
        stamp = stamp_of(place)
        reading = read_back(place, file.digests, file.pieces.size if file.pieces else 0, going)
    except ShortageError:
        raise  # this process has no handle left: that says nothing of the file
    except StoreError as error:
        return _found(blank, "unreadable", error.message), None
    if reading.wrong or file.size not in (None, reading.size) or reading.size < file.least_size:
        wrong = wrong_spans(reading, file.pieces, file.size) if file.pieces and file.size else []
        return _found(blank, "corrupt", f"it is not {_expectation(file, reading)}", tuple(wrong)), None
    strongest = file.strongest
    entry = InstalledFile(
        file.path, reading.sha256.hex, "listed" if strongest else "first_use",
        strongest.algorithm if strongest else UNVERIFIED, stamp,
    )  # fmt: skip
    return _found(blank, "whole", "" if strongest else "only its size could be checked"), entry


def _expectation(file: ModelFile, reading: "Reading") -> str:
    if reading.wrong:
        return str(reading.wrong)
    return f"{in_bytes(file.size)}" if file.size is not None else f"at least {in_bytes(file.least_size)}"


def _audit(manifest: Manifest, file: ModelFile, place: str, size: int) -> Audit:
    return Audit(manifest.id, manifest.version, file.path, place, size, "whole")


def _found(audit: Audit, finding: str, reason: str, wrong: tuple[object, ...] = ()) -> Audit:
    from dataclasses import replace

    return replace(audit, finding=finding, reason=reason, wrong=wrong)  # type: ignore[arg-type]
