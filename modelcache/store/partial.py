"""A file on its way: the only place where bytes live that are not verified.

A byte is *absent*, *written* (on the disk, a guess) or *proven*. Rules:

1. `missing()` is what is absent, and nobody keeps an offset of his own: each attempt asks.
2. Proof turns written into proven; a failed piece turns its bytes absent; reopening turns proven into written.
3. Two writers never share bytes, and no writer writes behind the follower.
4. `commit` needs every byte written, the follower at the end, every expected digest right, the folder still
   ours. Then: fence the writers, fsync, rename, fsync the directory (I1, I2).
5. After commit, close or discard no writer can write: each checks its fence under its own lock.
6. Having the folder is owning the partial: it is claimed by renaming it to the owner's token (I12). Bytes of an
   owner that is not proven dead are copied to a new inode, where that owner cannot reach them.

Responsible for: these. Leaves to others: who holds the lock of the key (`locks`), where bytes come from and
what is tried next (`transfer`), what the committed file is called (`store`).
"""

import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from modelcache.errors import FencedError, StoreError, VerificationError
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.pieces import PIECE_SIZE, Checks, PieceHasher, Pieces
from modelcache.store.disk import (
    BUFFER,
    CREATE,
    WRITE,
    chunks_of,
    disk_errors,
    make_directories,
    remove_tree,
    store_error,
    sync_directory,
    write_all,
)
from modelcache.store.follower import Follower
from modelcache.store.journal import Facts, Journal, read_facts
from modelcache.store.owner import Owner

END = 2**63 - 1  # the stop of a file whose size nobody knows yet
RECORD_EVERY = 1 << 20  # bytes; a kill costs at most that much per connection (I10)
RECORD_EVERY_S = 1.0
SYNC_EVERY = 256 << 20  # bytes after which write-back is started, so that the last fsync is short
NEAR = 8 << 20  # a writer measures pieces only while the follower is that close: then the CPU has time


class SpanWriter:
    """Writes consecutive bytes of one span, from one thread, through a file handle of its own.

    `position` may be read by anyone without a lock. `stop` may be lowered by the transfer while it runs.
    """

    def __init__(self, partial: "Partial", fd: int, span: Span, source: str) -> None:
        self._partial = partial
        self._fd = fd
        self._busy = threading.Lock()
        self._hasher: PieceHasher | None = None
        self.fenced = False
        self.held = False  # waits for the follower: not the source's fault
        self.source = source
        self.position = span.start
        self.recorded = span.start  # everything before is in the journal
        self.recorded_at = time.monotonic()
        self.stop = span.stop

    @property
    def left(self) -> Span:
        return Span(self.position, max(self.position, self.stop))

    def write(self, data: bytes | memoryview) -> None:
        """Puts bytes at `position`; what lies beyond `stop` is ignored.

        Raises FencedError once the partial is closed, StoreError if the disk refuses, and VerificationError at the
        end of a piece that is not what it should be: its bytes are absent again.
        """
        view = memoryview(data)[: max(0, self.stop - self.position)]
        with self._busy:
            if self.fenced:
                raise FencedError("the partial was closed while this writer was away")
            with disk_errors(self._partial.path):
                write_all(self._fd, view, self.position)
            self.position += len(view)
        self._judge(view)
        if self.position - self.recorded >= RECORD_EVERY or time.monotonic() - self.recorded_at >= RECORD_EVERY_S:
            self._partial.record(self)
            self._partial.hold_back(self)

    def measure(self, pieces: Pieces | None) -> None:
        """Begins (or, with None, ends) hashing pieces along the way."""
        if pieces is None:
            self._hasher = None
        elif self._hasher is None:
            self._hasher = PieceHasher(pieces, self.position)

    def close(self) -> None:
        """Gives the rest of the span back. What was written stays."""
        self._partial.release(self)

    def fence(self) -> None:
        """After this returns, this writer has written its last byte."""
        with self._busy:
            if not self.fenced:
                self.fenced = True
                os.close(self._fd)

    def _judge(self, view: memoryview) -> None:
        for index, digest in self._hasher.feed(view) if self._hasher else ():
            self._partial.judge(self, index, digest)


class Partial:
    """One file on its way. All methods may be called from any thread unless they say otherwise."""

    def __init__(self, folder: str, fd: int, journal: Journal, file: ModelFile, window: int, piece_size: int) -> None:
        self.folder = folder
        self.path = os.path.join(folder, "data")
        self.size = journal.facts.size if file.size is None else file.size
        self.resumed_bytes = journal.facts.written.size
        self.given = Pieces(file.size, file.pieces.size, file.pieces) if file.pieces and file.size is not None else None
        self.measured: dict[int, bytes] = {}
        self._file = file
        self._fd = fd
        self._journal = journal
        # The follower takes whole pieces: a smaller window would hold a writer back for ever.
        self._window = max(window, 2 * (self.given.length if self.given else BUFFER))
        self._piece_size = piece_size
        self._written = journal.facts.written
        self._proven: set[int] = set()
        self._refusals: dict[int, int] = {}
        self._writers: list[SpanWriter] = []
        self._changed = threading.Condition()
        self._stopped = False
        self._hashed = 0
        self._error: StoreError | None = None
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        self._follower = Follower(self, fd, Checks(file.digests))

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls, base: str, key: str, file: ModelFile, *, window: int = SYNC_EVERY, piece_size: int = PIECE_SIZE
    ) -> "Partial":
        """Claims what an earlier run left under `base` for this key, or begins anew.

        `window` is how far, in bytes, writers may be ahead of the follower; `piece_size` is that of the pieces
        measured along the way. The caller holds the key's lock. Raises StoreError. Bytes of a partial that cannot
        be read, or that was begun for another size, are thrown away.
        """
        make_directories(base)
        with disk_errors(base):
            folder, journal = _claimed(base, key, file) or _begun(base, key, file)
            try:
                os.chmod(os.path.join(folder, "data"), 0o600)  # a kill in `commit` leaves it read-only
                fd = os.open(os.path.join(folder, "data"), WRITE)
                _clip(fd, journal, file.size)
                journal.owned_by(Owner.mine())
            except BaseException:
                journal.close()
                raise
        return cls(folder, fd, journal, file, window, piece_size)

    # -- what is here ----------------------------------------------------------------------------------------------

    @property
    def extent(self) -> int:
        return END if self.size is None else self.size

    @property
    def written_bytes(self) -> int:
        """Bytes on the disk, those a writer has not recorded yet included."""
        with self._changed:
            return self._written.size + sum(writer.position - writer.recorded for writer in self._writers)

    @property
    def hashed_bytes(self) -> int:
        return self._hashed

    @property
    def facts(self) -> Facts:
        """What the journal says: sources and validators."""
        return self._journal.facts

    def missing(self) -> list[Span]:
        """All spans that are absent, lowest first, whether somebody is fetching them or not."""
        with self._changed:
            return list(self._written.gaps(0, self.extent))

    def unclaimed(self) -> list[Span]:
        """All spans that are absent and that no writer is to write, lowest first."""
        with self._changed:
            taken = sorted(Span(writer.recorded, writer.left.stop) for writer in self._writers)
            return [part for gap in self._written.gaps(0, self.extent) for part in _without(gap, taken)]

    def is_written(self) -> bool:
        """Whether every byte is on the disk and nobody writes any more."""
        with self._changed:
            return self.size is not None and not self._writers and self._written.covers(0, self.size)

    # -- writing ---------------------------------------------------------------------------------------------------

    def writer(self, span: Span, source: str) -> SpanWriter:
        """A writer for absent bytes. Raises FencedError after close, StoreError if no file handle can be had."""
        with self._changed:
            if self._stopped:
                raise FencedError("the partial is closed")
            with disk_errors(self.path):
                writer = SpanWriter(self, os.dup(self._fd), span, source)
            self._writers.append(writer)
        if self.given:
            writer.measure(self.given)
        return writer

    def settle_size(self, size: int) -> None:
        """The size of the file is known now. Raises VerificationError if it was known to be another."""
        with self._changed:
            if self.size == size:
                return
            if self.size is not None:
                raise VerificationError(f"{size:,} bytes, {self.size:,} expected")
            self.size = size
            with disk_errors(self.path):
                self._journal.sized(size)
            for writer in self._writers:
                writer.stop = min(writer.stop, size)
            self._changed.notify_all()

    def called(self, source: str, validator: str) -> None:
        """Notes what a source calls the content it serves."""
        with self._changed, disk_errors(self.path):
            self._journal.called(source, validator)

    def record(self, writer: SpanWriter) -> None:
        """Puts what the writer wrote into the journal; the follower may hash it now."""
        with self._changed:
            if self._error:
                raise self._error
            self._record_until(writer, writer.position)
            writer.recorded_at = time.monotonic()
            lag = writer.position - self._hashed
            self._changed.notify_all()
        if self.given is None and self.size is not None:
            writer.measure(Pieces(self.size, self._piece_size) if lag < NEAR else None)
        self._start_write_back()

    def hold_back(self, writer: SpanWriter) -> None:
        """Blocks the writer while it is a window ahead of the follower: memory of the page cache stays flat."""
        with self._changed:
            writer.held = True
            while writer.position - self._hashed > self._window and not (self._stopped or self._error or writer.fenced):
                self._changed.wait()
            writer.held = False

    def release(self, writer: SpanWriter) -> None:
        writer.fence()
        with self._changed:
            if writer in self._writers:
                self._writers.remove(writer)
                if not self._stopped:
                    self._record_until(writer, writer.position)
            self._changed.notify_all()

    def judge(self, writer: SpanWriter, index: int, digest: bytes) -> None:
        """A writer finished a piece: keep the proof, or take the bytes back and blame."""
        if self.given is None:
            self.measured[index] = digest
            return
        if self.given.matches(index, digest):
            with self._changed:
                self._proven.add(index)
            return
        span = self.given.span(index)
        with self._changed:
            self._record_until(writer, span.start)
            writer.recorded = writer.position
            self._take_back(span)
        raise VerificationError(f"piece {index} (bytes {span.start:,} to {span.stop:,}) is not what it should be")

    # -- proof -----------------------------------------------------------------------------------------------------

    def await_proof(self, timeout: float) -> bool:
        """Waits until the follower has hashed everything; False if bytes are absent again or the time is over.

        Raises StoreError if the file cannot be read back.
        """
        end = time.monotonic() + timeout
        with self._changed:
            while not self._error and self._hashed != self.size and time.monotonic() < end:
                if self.size is None or not self._written.covers(0, self.size):
                    return False
                self._changed.wait(end - time.monotonic())
            if self._error:
                raise self._error
        if self._hashed == self.size:
            self._follower.join()
            return True
        return False

    def refusals(self) -> int:
        """How often one and the same piece proved wrong, whoever noticed: the most of all pieces."""
        with self._changed:
            return max(self._refusals.values(), default=0)

    def wrong_digest(self) -> Digest | None:
        """After `await_proof`: the first expected digest that the file does not have."""
        return self._follower.checks.wrong()

    def digests(self) -> dict[str, Digest]:
        """After `await_proof`: what the file is."""
        return self._follower.checks.result()

    def restart(self) -> None:
        """Everything here proved wrong, or is of another version: all bytes are absent, as in a new partial."""
        self._stop_follower()
        for writer in list(self._writers):
            self.release(writer)
        with self._changed, disk_errors(self.path):
            self._journal.begin_anew()
            os.ftruncate(self._fd, 0)
            self.resumed_bytes = 0
            self.size = self._file.size
            self._hashed = 0
            self._stopped = False
            self._proven.clear()
            self.measured.clear()
        self._follower = Follower(self, self._fd, Checks(self._file.digests))

    def seed(self, path: str, spans: list[Span]) -> None:
        """Copies spans from another file, as a guess. Raises StoreError."""
        with disk_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for span in spans:
                writer = self.writer(span, "seed")
                writer.measure(None)
                try:
                    for chunk in chunks_of(fd, *span):
                        writer.write(chunk)
                except OSError as error:
                    raise store_error(error, path) from error
                finally:
                    writer.close()
        finally:
            os.close(fd)

    # -- ending ----------------------------------------------------------------------------------------------------

    def commit(self, target: str, mode: int) -> None:
        """Makes the proven file visible as `target` with this mode, replacing what is there, atomically.

        Raises VerificationError if it is not what it should be, StoreError if the disk refuses or the partial is no
        longer ours; then nothing is visible and the partial stays.
        """
        if self._hashed != self.size or not self.is_written():
            raise StoreError(f"{self.path}: commit before every byte is proven")
        wrong = self.wrong_digest()
        if wrong is not None:
            raise VerificationError(f"the file is not {wrong}")
        with disk_errors(self.path):
            if os.fstat(self._fd).st_size != self.size:
                os.ftruncate(self._fd, self.size)  # a longer file of an earlier run: its rest was never hashed
            os.fchmod(self._fd, mode)
            os.fsync(self._fd)
            self._check_ours()
        with disk_errors(target):
            os.rename(self.path, target)
            sync_directory(os.path.dirname(target))
        with suppress(StoreError):  # the file is in place; an empty folder that stays is swept later
            self.discard()

    def close(self) -> None:
        """Stops everything and keeps the bytes. After it no thread writes here."""
        for writer in list(self._writers):
            with suppress(StoreError, OSError):  # a full disk: what is not in the journal is fetched again
                self.release(writer)
        self._stop_follower()
        if self._syncing:
            self._syncing.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._journal.close()
            self._fd = -1

    def discard(self) -> None:
        """Stops everything and removes the folder."""
        self.close()
        with disk_errors(self.folder):
            remove_tree(self.folder)

    # -- for the follower ------------------------------------------------------------------------------------------

    def await_bytes(self, position: int) -> Span | None:
        with self._changed:
            while not self._stopped:
                front = self._written.run_end(position)
                if self.given and position < self.extent:
                    piece = self.given.span(self.given.at(position))
                    if front >= piece.stop:
                        return piece
                elif front - position >= BUFFER or front == self.size:
                    return Span(position, front)
                self._changed.wait()
            return None

    def needs_proof(self, span: Span) -> bytes | None:
        if self.given is None or self.given.digests is None:
            return None
        index = self.given.at(span.start)
        return None if index in self._proven else self.given.digests[index]

    def refused(self, span: Span) -> None:
        with self._changed:
            self._take_back(span)

    def followed(self, position: int, error: OSError | None) -> None:
        with self._changed:
            self._hashed = position
            if error is not None:
                self._error = StoreError(
                    f"{self.path}: cannot be read back: {error.strerror}", next_step="check the disk, then run again"
                )
            self._changed.notify_all()

    # -- inside ----------------------------------------------------------------------------------------------------

    def piece_digests(self) -> PieceDigests | None:
        """The BLAKE3 digests known for this file after its proof; 32 zero bytes where one was not measured."""
        if self.given:
            return self.given.digests
        if not self.measured or self.size is None:
            return None
        pieces = Pieces(self.size, self._piece_size)
        return PieceDigests(
            pieces.length, b"".join(self.measured.get(index, bytes(32)) for index in range(len(pieces)))
        )

    def _record_until(self, writer: SpanWriter, position: int) -> None:
        if position > writer.recorded:
            with disk_errors(self.path):
                self._journal.wrote(writer.recorded, position, writer.source)
            self._unsynced += position - writer.recorded
            writer.recorded = position

    def _take_back(self, span: Span) -> None:
        self._refusals[span.start] = self._refusals.get(span.start, 0) + 1
        with disk_errors(self.path):
            self._journal.dropped(*span)
        self._changed.notify_all()

    def _stop_follower(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._follower.join()

    def _check_ours(self) -> None:
        """Raises StoreError if another process has taken the folder meanwhile (I12)."""
        try:
            there, mine = os.lstat(self.path), os.fstat(self._fd)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise StoreError(
                f"{self.path}: another process has taken this download over", next_step="run again to use its result"
            )

    def _start_write_back(self) -> None:
        """Lets the kernel write behind the download. One helper at a time; its errors show in the last fsync."""
        with self._changed:
            if self._unsynced < SYNC_EVERY or (self._syncing and self._syncing.is_alive()):
                return
            self._unsynced = 0
            self._syncing = threading.Thread(target=_write_back, args=(os.dup(self._fd),), daemon=True)
        self._syncing.start()


def _write_back(fd: int) -> None:
    try:
        with suppress(OSError):
            os.fdatasync(fd)
    finally:
        os.close(fd)


def _without(gap: Span, taken: list[Span]) -> Iterator[Span]:
    """The parts of a gap that lie outside sorted spans."""
    start = gap.start
    for span in taken:
        if span.start > start:
            yield Span(start, min(span.start, gap.stop))
        start = max(start, span.stop)
        if start >= gap.stop:
            return
    if start < gap.stop:
        yield Span(start, gap.stop)


def _begun(base: str, key: str, file: ModelFile) -> tuple[str, Journal]:
    folder = os.path.join(base, f"{key}.{secrets.token_hex(8)}")
    os.mkdir(folder, 0o700)
    os.close(os.open(os.path.join(folder, "data"), CREATE, 0o600))
    return folder, Journal.create(os.path.join(folder, "journal"), {"key": key, "size": file.size, "path": file.path})


def _claimed(base: str, key: str, file: ModelFile) -> tuple[str, Journal] | None:
    """Renames what an earlier owner left to a token of ours; what is of no use is removed."""
    for name in found(base, key):
        folder = os.path.join(base, f"{key}.{secrets.token_hex(8)}")
        try:
            os.rename(os.path.join(base, name), folder)
        except FileNotFoundError:
            continue  # somebody else was faster
        journal = Journal.open(os.path.join(folder, "journal"))
        if journal and journal.facts.header.get("size") in (None, file.size) and _has_data(folder):
            if journal.facts.owner is None or not journal.facts.owner.is_proven_dead():
                _move_to_new_inode(os.path.join(folder, "data"))
            return folder, journal
        if journal:
            journal.close()
        remove_tree(folder)
    return None


def found(base: str, key: str) -> list[str]:
    """Names of the partials of a key, the one with most bytes first."""
    try:
        names = [name for name in os.listdir(base) if name.rpartition(".")[0] == key]
    except FileNotFoundError:
        return []
    if len(names) < 2:
        return names

    def size(name: str) -> int:
        facts = read_facts(os.path.join(base, name, "journal"))
        return facts.written.size if facts else -1

    return sorted(names, key=size, reverse=True)


def _has_data(folder: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(os.path.join(folder, "data")).st_mode)
    except FileNotFoundError:
        return False


def _clip(fd: int, journal: Journal, size: int | None) -> None:
    """The journal may say more than the file holds (power cut) or than it should."""
    here = os.fstat(fd).st_size
    end = here if size is None else min(here, size)
    if any(span.stop > end for span in journal.facts.written):
        journal.dropped(end, END)


def _move_to_new_inode(path: str) -> None:
    """The former owner may still write: into the old inode, which nobody sees any more."""
    beside = path + ".new"
    with suppress(FileNotFoundError):
        os.unlink(beside)
    old, new = os.open(path, WRITE), os.open(beside, CREATE, 0o600)
    try:
        position = 0
        for chunk in chunks_of(old, 0, os.fstat(old).st_size):
            write_all(new, chunk, position)
            position += len(chunk)
        os.rename(beside, path)
    finally:
        os.close(old)
        os.close(new)
