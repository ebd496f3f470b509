"""A cache on this disk that is looked at before the network is asked.

Responsible for: what every kind has in common, and telling the kinds apart by their folders.
Leaves to others: reading, proving and using what is there (`intake`), where the folders are (`wiring`).

What lies there is somebody else's, and hostile until its bytes are proven: a place is a regular file inside the tier's
folder once all links are followed, or it is none.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from modelcache.events import now_ms
from modelcache.model import Digest, Manifest, ModelFile, PieceDigests, Span
from modelcache.refs import Ref


class Tier(Protocol):
    """`name` is its folder, `kind` what the metrics call it.

    Nothing here raises for what may be wrong there: what cannot be used is not there.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def find(self, file: ModelFile) -> str | None:
        """Where the file is, if the tier has one under the name of its digest. A handful of stats; nothing is read."""

    def models(self) -> Iterator["Found | Left"]:
        """What it has, version by version, oldest first. Nothing but names and lists is read."""

    def abandoned(self) -> Iterator["Abandoned"]:
        """Downloads that were begun there, whoever may still be at them."""

    def begun(self, file: ModelFile, /) -> tuple[str, list[Span]] | None:
        """A file that has some of its bytes, if a download was interrupted there, and which."""


@dataclass(frozen=True, slots=True)
class Left:
    """Something in a tier that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The files of a download that has not ended, and the lock that its tool holds meanwhile, if it has one."""

    paths: tuple[str, ...]
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A version of a model as a tier has it.

    places: where each file of it is, by its path. whole: all that belongs to it, as the hub listed it, where that is
    known. aliases: what tags and branches meant it, and since when at the latest, in ms since 1970. gone: paths of
    files that were had there, and cannot be used any more.
    """

    ref: Ref
    files: tuple[ModelFile, ...]
    places: Mapping[str, str]
    whole: Manifest | None = None
    aliases: Mapping[str, int] = field(default_factory=dict)
    left: tuple[Left, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """That a file is what its name, or a list, says: something to verify, which need not even be there.

    model, version, path: what it is, for people. place: the file, without links; where they lead out of the cache, or
    nowhere, the link itself or where the file should be. Without a digest only the size can be checked.
    """

    model: str
    version: str
    path: str
    place: str
    digests: tuple[Digest, ...]
    size: int | None = None
    pieces: PieceDigests | None = None


def led_to(path: str, folder: str) -> str:
    """Where a path leads once all links are followed, if that is inside the folder; else the path itself."""
    try:
        real, within = os.path.realpath(path), os.path.realpath(folder)
        return real if os.path.commonpath((real, within)) == within else path
    except (OSError, ValueError):
        return path


def regular_inside(path: str, folder: str, size: int | None = None) -> str | None:
    """The path without links; None unless it leads to a regular file inside the folder, of that size if it is known."""
    try:
        real, within = os.path.realpath(path, strict=True), os.path.realpath(folder)
        status = os.lstat(real)
    except (OSError, ValueError):
        return None
    is_inside = os.path.commonpath((real, within)) == within
    return real if is_inside and stat.S_ISREG(status.st_mode) and size in (None, status.st_size) else None


def entries_of(folder: str, most: int) -> Iterator["os.DirEntry[str]"]:
    """What is in a folder, by name, at most so many; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            yield from sorted((entry for entry, _ in zip(found, range(most), strict=False)), key=lambda one: one.name)
    except OSError:
        return


def below(folder: str, most: int) -> Iterator[tuple[str, str]]:
    """Name and path of everything below a folder that is none, at most so many; links are not followed."""
    waiting = [folder]
    while waiting:
        there = list(entries_of(waiting.pop(), most))
        for entry in there:
            if not entry.is_dir(follow_symlinks=False):
                yield os.path.relpath(entry.path, folder).replace(os.sep, "/"), entry.path
                if not (most := most - 1):
                    return
        waiting += [entry.path for entry in reversed(there) if entry.is_dir(follow_symlinks=False)]


def touched_ms(path: str) -> int:
    """When it was written last; 0 where nobody can tell: a time to come is none that was (I14)."""
    try:
        at = os.lstat(path).st_mtime_ns // 1_000_000
    except (OSError, ValueError):
        return 0
    return at if at <= now_ms() else 0


def small(path: str, most: int) -> bytes | None:
    """The content of a regular file of at most so many bytes; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with os.fdopen(os.dup(fd), "rb") as stream:
            content = stream.read(most + 1)
        return content if len(content) <= most else None
    except OSError:
        return None
    finally:
        os.close(fd)
