"""Blobs: files that were proven once, called by their SHA-256.

Responsible for: finding, committing and reading them back, what is known of their pieces, and setting rotten ones
aside. Leaves to `links`: giving them names people use.
"""

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelcache.errors import StoreError, UsageError
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.pieces import Checks, Measure, Pieces
from modelcache.store.disk import (
    READ,
    check_no_links,
    chunks_of,
    disk_errors,
    make_directories,
    read_small,
    write_atomic,
)
from modelcache.store.installed import Stamp
from modelcache.store.layout import Layout

if TYPE_CHECKING:
    from modelcache.store.partial import Partial

MODE = 0o444
PORTION = 32 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """What a full read of a file found. `wrong` is the first expected digest it does not have.

    `pieces` are those of no byte where they were not measured.
    """

    size: int
    digests: dict[str, Digest]
    wrong: Digest | None
    pieces: PieceDigests

    @property
    def sha256(self) -> Digest:
        return self.digests["sha256"]


def _nothing() -> None:
    pass


def read_back(path: str, expected: tuple[Digest, ...], piece_size: int, tick: Callable[[], None] = _nothing) -> Reading:
    """Reads all bytes once. StoreError where that is not possible: unreadable is not corrupt (I25).

    Pieces of `piece_size` are measured, none if it is 0: that takes a fifth of the time. `tick` is called for each
    MiB; it may raise to give up.
    """
    with disk_errors(path):
        fd = os.open(path, READ)
        try:
            return read_open(fd, expected, piece_size, tick)
        finally:
            os.close(fd)


def read_open(fd: int, expected: tuple[Digest, ...], piece_size: int, tick: Callable[[], None] = _nothing) -> Reading:
    """The same of a file that is open. OSError."""
    measure = Measure(piece_size) if piece_size else None
    size = os.fstat(fd).st_size
    checks = Checks(expected, size)
    for chunk in chunks_of(fd, 0, size):
        tick()
        checks.update(chunk)
        if measure:
            measure.update(chunk)
    return Reading(size, checks.result(), checks.wrong(), measure.result() if measure else PieceDigests(0, b""))


def portions(pieces: PieceDigests) -> list[range]:
    """Runs of pieces, some `PORTION` bytes each, that several threads may read at once."""
    step = max(1, PORTION // pieces.size)
    return [range(start, min(start + step, len(pieces))) for start in range(0, len(pieces), step)]


def has_pieces(path: str, stamp: Stamp, pieces: PieceDigests, portion: range, tick: Callable[[], None]) -> bool:
    """Whether these pieces of a file are right, and it still looks as it did when `stamp` was taken.

    Raises StoreError, and what `tick` does, as `read_back`.
    """
    measure = Measure(pieces.size)
    with disk_errors(path):
        fd = os.open(path, READ)
        try:
            now = os.fstat(fd)
            if (now.st_size, now.st_mtime_ns, now.st_ino) != (stamp.size, stamp.mtime_ns, stamp.inode):
                return False
            for chunk in chunks_of(fd, portion.start * pieces.size, min(portion.stop * pieces.size, stamp.size)):
                tick()
                measure.update(chunk)
        finally:
            os.close(fd)
    return measure.result().blake3 == pieces.blake3[32 * portion.start : 32 * portion.stop]


def find(layout: Layout, file: ModelFile) -> Digest | None:
    """The SHA-256 of a blob that may be this file, by any digest that is known. It is not read."""
    candidates = [digest for digest in file.digests if digest.algorithm == "sha256"]
    candidates += filter(None, (_alias(layout, digest) for digest in file.digests if digest.algorithm != "sha256"))
    return next((sha256 for sha256 in candidates if exists(layout, sha256)), None)


def agrees(layout: Layout, file: ModelFile, sha256: str, size: int) -> bool:
    """Whether content that was proven to be `sha256` is what `file` expects in every respect, as far as is known."""
    if file.size not in (None, size) or size < file.least_size:
        return False
    for digest in file.digests:
        if digest.algorithm != "sha256":
            known = _alias(layout, digest)
            if known is None or known.hex != sha256:
                return False
        elif digest.hex != sha256:
            return False
    return True


def exists(layout: Layout, sha256: Digest) -> bool:
    try:
        return stat.S_ISREG(os.lstat(layout.blob(sha256)).st_mode)
    except OSError:
        return False


def proven(layout: Layout, sha256: Digest, tick: Callable[[], None] = _nothing) -> Stamp | None:
    """How the blob looked before it was read from end to end and was what its name says; None where it is not.

    `tick` as in `read_back`.
    """
    blob = layout.blob(sha256)
    with suppress(StoreError):
        if exists(layout, sha256):
            stamp = stamp_of(blob)
            return stamp if read_back(blob, (sha256,), 0, tick).wrong is None else None
    return None


def stamp_of(path: str) -> Stamp:
    """To be taken before the file is read: whoever finds it rotten after that changes how it looks. StoreError."""
    with disk_errors(path):
        return Stamp.of(path)


def commit(layout: Layout, partial: "Partial", tick: Callable[[], None] = _nothing) -> Stamp:
    """Makes a proven partial a blob, unless that blob is here, and right: then its links stay what they are.

    Returns how the blob looked when it was proven. Raises as `Partial.commit` does, and what
    `tick` raises while a blob that is here is read: then the partial is as it was.
    """
    digests = partial.digests()
    pieces = partial.piece_digests()
    sha256 = digests["sha256"]
    if here := proven(layout, sha256, tick):
        partial.discard()
        return here
    check_no_links(layout.root, os.path.dirname(layout.blob(sha256)))
    make_directories(os.path.dirname(layout.blob(sha256)))
    stamp = partial.commit(layout.blob(sha256), MODE)
    with suppress(StoreError):  # only knowledge that makes a later repair cheaper
        note(layout, digests, pieces)
    return stamp


def note(layout: Layout, digests: dict[str, Digest], pieces: PieceDigests | None) -> None:
    """Keeps what a full read of a blob proved: its other digests and its pieces."""
    sha256 = digests["sha256"]
    for digest in digests.values():
        if digest != sha256:
            make_directories(os.path.dirname(layout.alias(digest)))
            write_atomic(layout.alias(digest), sha256.hex.encode())
    if pieces is not None:
        save_pieces(layout, sha256, pieces)


def save_pieces(layout: Layout, sha256: Digest, pieces: PieceDigests) -> None:
    """The file: one line of JSON, then 32 bytes a piece, of BLAKE3. It says which content it is about: a copy of it
    under another name is not believed."""
    checksum = hashlib.sha256(pieces.blake3).hexdigest()
    header = {"format": 1, "of": sha256.hex, "piece": pieces.size, "sha256": checksum}
    make_directories(os.path.dirname(layout.pieces(sha256)))
    write_atomic(layout.pieces(sha256), json.dumps(header).encode() + b"\n" + pieces.blake3)


def load_pieces(layout: Layout, sha256: Digest, size: int) -> PieceDigests | None:
    """All piece digests of a blob of `size` bytes; None unless every one is known and the file is sound."""
    with suppress(StoreError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        header, _, flat = (read_small(layout.pieces(sha256)) or b"").partition(b"\n")
        fields = json.loads(header)
        pieces = PieceDigests(int(fields["piece"]), flat)
        is_ours = (fields["format"], fields["of"]) == (1, sha256.hex)
        sound = is_ours and hashlib.sha256(flat).hexdigest() == fields["sha256"]
        whole = len(flat) == 32 * len(Pieces(size, pieces.size)) and pieces.size > 0
        if sound and whole and all(pieces[index] != bytes(32) for index in range(len(pieces))):
            return pieces
    return None


def wrong_spans(reading: Reading, expected: PieceDigests, size: int) -> list[Span]:
    """The pieces in which a file differs from what it was, as spans of the right file of `size` bytes."""
    pieces = Pieces(size, expected.size)
    return [
        pieces.span(index)
        for index in range(len(pieces))
        if index >= len(reading.pieces) or reading.pieces[index] != expected[index]
    ]


def good_spans(wrong: Sequence[Span], pieces: PieceDigests, size: int) -> list[Span]:
    """All pieces but the wrong ones."""
    every = Pieces(size, pieces.size)
    bad = set(wrong)
    return [span for index in range(len(every)) if (span := every.span(index)) not in bad]


def set_aside(layout: Layout, path: str) -> str:
    """Gives a rotten file a second name in the quarantine, for whoever wants to look; returns that name. Done again, it
    is the one that it has."""
    make_directories(layout.quarantine)
    target = os.path.join(layout.quarantine, f"{os.path.basename(path)[:150]}.{time.time_ns()}")
    with disk_errors(path):
        if has := _name_in(layout.quarantine, os.lstat(path)):
            return has
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:
            os.rename(path, target)  # a file system without hard links: it is gone from its place then
    return target


def _name_in(folder: str, status: os.stat_result) -> str:
    """What a file is called there; empty if it is not."""
    with os.scandir(folder) as entries:
        same = (one.path for one in entries if one.inode() == status.st_ino)
        return next((path for path in same if os.path.samestat(os.lstat(path), status)), "")


def _alias(layout: Layout, digest: Digest) -> Digest | None:
    try:
        text = (read_small(layout.alias(digest)) or b"").decode(errors="replace")
        return Digest.parse(text, "sha256")
    except (StoreError, UsageError):
        return None
