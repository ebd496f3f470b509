"""Content that several models have: rot in it is rot in all of them, and so is its repair.

Rot is marked where all who share it look: a file that was found rotten gets another date, and from that moment no
record calls it right, in any process, whatever is killed. Records and links follow, all at once: each record is read
and written once for all files that were found rotten or repaired meanwhile.

Responsible for: marking and re-linking every model path of a content (C1, I5, I30).
Leaves to others: finding rot, and fetching what is wrong (`filefetch`, `audit`).
"""

import os
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from modelcache.errors import LockedError, StoreError
from modelcache.model import Digest
from modelcache.store import blobs, links, records
from modelcache.store.disk import READ, check_no_links, disk_errors, make_directories
from modelcache.store.installed import Installed, InstalledFile, Stamp
from modelcache.store.intake import is_foreign
from modelcache.store.layout import Layout
from modelcache.store.registry import Registry, installed_under, status_of

WRITE_EVERY_S = 2.0
LINKS_OF_ONE = 2  # a blob and the file of one model; more, and several models share it
LATER_NS = 2_000_000_000  # every file system can tell such dates apart


def sharing(layout: Layout, sha256: str) -> list[Installed]:
    """Every model that has this content."""
    return [one for one in installed_under(layout.models) if any(file.sha256 == sha256 for file in one.files)]


@dataclass(frozen=True, slots=True)
class Rotten:
    """A file that was found rotten, whatever it is called; `is_marked` is whether its date says so."""

    device: int
    inode: int
    is_marked: bool

    @classmethod
    def at(cls, place: str, *, foreign: bool, seen: Stamp | None = None) -> "Rotten | None":
        """Marks the file, durably, unless it is foreign. None where there is no file that anything could share, or
        another one than was `seen`."""
        try:
            now = os.lstat(place)
        except OSError:
            return None
        if not stat.S_ISREG(now.st_mode) or (seen and seen.inode != now.st_ino):
            return None
        return cls(now.st_dev, now.st_ino, not foreign and _mark(place, now.st_ino))

    def is_at(self, place: str, entry: InstalledFile) -> bool:
        """Whether this is the file that a record calls `entry`, not one that was proven since under its number."""
        with suppress(OSError):
            now = os.lstat(place)
            is_same = (now.st_dev, now.st_ino) == (self.device, self.inode)
            return is_same and not (self.is_marked and entry.stamp.judge(place) == "right")
        return False


def is_as_it_was(place: str, seen: Stamp) -> bool:
    """Whether a file looks as it did, but for marks that others have given it since: they found the same."""
    with suppress(OSError):
        now = os.lstat(place)
        later_ns = now.st_mtime_ns - seen.mtime_ns
        return (now.st_size, now.st_ino) == (seen.size, seen.inode) and later_ns >= 0 and later_ns % LATER_NS == 0
    return False


def _mark(place: str, inode: int) -> bool:
    """Gives the file a later date. False where the disk refuses, or another file is there by now."""
    with suppress(OSError, OverflowError):
        fd = os.open(place, READ | os.O_NONBLOCK)
        try:
            now = os.fstat(fd)
            if now.st_ino != inode:
                return False
            os.utime(fd, ns=(now.st_atime_ns, now.st_mtime_ns + LATER_NS))
            os.fsync(fd)
            return os.fstat(fd).st_mtime_ns != now.st_mtime_ns
        finally:
            os.close(fd)
    return False


class Sharing:
    """What was found rotten, and what was repaired, that records do not say yet. Any thread may call it.

    A kill costs words alone: what is marked is no hit and not available, and what is repaired is in the store.
    """

    def __init__(self, layout: Layout, registry: Registry) -> None:
        self._layout = layout
        self._registry = registry
        self._guard = threading.Lock()
        self._findings = _Findings({}, {})
        self._due = time.monotonic() + WRITE_EVERY_S

    def distrust(self, sha256: str, place: str, seen: Stamp | None = None) -> None:
        """The file at `place` has rotted: nothing that is the same file is a hit, or available, from here on.

        `seen` is how it looked when it was read: what has taken its place since then is another file.
        """
        rotten = Rotten.at(place, foreign=is_foreign(self._layout, sha256, place), seen=seen)
        if rotten is None:
            return
        with self._guard:
            self._findings.rotten.setdefault(sha256, []).append(rotten)
        if not rotten.is_marked:
            self.write()

    def repaired(self, sha256: Digest, proven: Stamp) -> None:
        """The blob is right again, and looked like that when it was proven: every model path is to be it again."""
        with self._guard:
            self._findings.proven[sha256.hex] = proven

    @property
    def is_due(self) -> bool:
        """Whether it is time to write: others wait for what is repaired."""
        return time.monotonic() >= self._due

    def write(self) -> None:
        """Records what was found, and makes model paths of what was repaired the blob again.

        Raises StoreError or LockedError, of one model, when all others are done; what could not be written is not
        available until it is fetched or repaired.
        """
        with self._guard:
            findings, self._findings = self._findings, _Findings({}, {})
            self._due = time.monotonic() + WRITE_EVERY_S
        failure: StoreError | LockedError | None = None
        for record in installed_under(self._layout.models) if findings.rotten or findings.proven else ():
            try:
                self._write(record, findings)
            except (StoreError, LockedError) as error:
                failure = failure or error
        if failure:
            raise failure

    def _write(self, record: Installed, findings: "_Findings") -> None:
        if not any(findings.concern(file) for file in record.files):
            return
        linked: dict[str, InstalledFile] = {}
        try:
            self._relink(record, findings, linked)
        finally:
            self._record(record, findings, linked)

    def _record(self, record: Installed, findings: "_Findings", linked: Mapping[str, InstalledFile]) -> None:
        with records.changing(self._layout):
            now = Installed.read(record.folder)
            if now is None:
                return
            changed = now.with_files(_judged(now, file, linked, findings) for file in now.files)
            if changed != now:
                changed.write()
            self._registry.marked(now.id, now.version, status_of(changed))

    def _relink(self, record: Installed, findings: "_Findings", linked: dict[str, InstalledFile]) -> None:
        """Makes the paths of this model the blob again: a model path is what users open.

        What somebody changed there is set aside first, for him to look at.
        """
        for file in record.files:
            proven, place = findings.proven.get(file.sha256), record.place(file)
            if proven is None or proven.judge(place) == file.stamp.judge(place) == "right":
                continue
            sha256 = Digest("sha256", file.sha256)
            blob = self._layout.blob(sha256)
            is_known = file.is_distrusted or is_same_file(place, blob) or findings.is_rotten(file, place)
            if not is_known and file.stamp.judge(place) == "changed":
                blobs.set_aside(self._layout, place)
            linked[file.path] = replace(file, stamp=links.link(blob, place, sha256, proven))


@dataclass(frozen=True, slots=True)
class _Findings:
    """By SHA-256."""

    rotten: dict[str, list[Rotten]]
    proven: dict[str, Stamp]

    def concern(self, file: InstalledFile) -> bool:
        return file.sha256 in self.rotten or file.sha256 in self.proven

    def is_rotten(self, file: InstalledFile, place: str) -> bool:
        return any(rotten.is_at(place, file) for rotten in self.rotten.get(file.sha256, ()))


def _judged(
    now: Installed, file: InstalledFile, linked: Mapping[str, InstalledFile], findings: _Findings
) -> InstalledFile:
    """What is known of a file by now; what somebody else recorded of it meanwhile stays."""
    place, mine = now.place(file), linked.get(file.path)
    if mine and mine.sha256 == file.sha256 and mine.stamp.judge(place) == "right":
        return mine
    return file.distrusted() if findings.is_rotten(file, place) else file


def keep_as_blob(layout: Layout, place: str, sha256: Digest) -> None:
    """A rotten file of a model whose blob is gone becomes that blob, so that it can be withheld. StoreError."""
    blob = layout.blob(sha256)
    if os.path.lexists(blob):
        return
    check_no_links(layout.root, os.path.dirname(blob))
    make_directories(os.path.dirname(blob))
    with disk_errors(place):
        try:
            os.link(place, blob, follow_symlinks=False)
        except FileNotFoundError:
            pass  # it was removed meanwhile
        except OSError:
            os.rename(place, blob)  # a file system without hard links


def withhold(layout: Layout, record: Installed, sha256: Digest) -> None:
    """Takes rotten bytes from under every name that people use, this model's and those of all who share them.

    Nothing is lost: they stay as the marked blob, whose right pieces a later repair takes, and in the quarantine for
    whoever wants to look. Copies, where the disk has no hard links, stay where they are. The caller holds the lock of
    the content.
    """
    blob = layout.blob(sha256)
    with suppress(OSError):
        is_shared = os.lstat(blob).st_nlink > LINKS_OF_ONE
        blobs.set_aside(layout, blob)
        for one in sharing(layout, sha256.hex) if is_shared else [record]:
            for file in one.files:
                if file.sha256 == sha256.hex and is_same_file(one.place(file), blob):
                    os.unlink(one.place(file))


def is_same_file(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.lstat(one), os.lstat(other))
    return False
