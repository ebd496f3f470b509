"""A file on its way: the only place where bytes live that are not verified.

A byte is *absent*, *written* (on the disk, a guess) or *proven*. Rules:

1. `missing()` is what is absent, and nobody keeps an offset of his own: each attempt asks.
2. Proof turns written into proven; a failed piece turns its bytes absent; reopening turns proven into written.
3. Two writers never share bytes, and no writer writes behind the follower: each gets absent bytes only.
4. `commit` needs every byte written, the follower at the end, every expected digest right, the folder still
   ours. Then: nobody else can write, fsync, rename, fsync the directory (I1, I2).
5. After commit, close, discard or restart a writer from before writes nothing, neither bytes nor facts: bytes it
   checks under its own lock, facts under the partial's.
6. A piece is proven by a writer from the bytes that pass by only where a digest of the whole file is expected as
   well, which the follower takes from the disk; else the follower checks each piece itself.

Responsible for: these. Leaves to others: owning the folder (`claim`), who holds the lock of the key (`locks`), where
bytes come from and what is tried next (`transfer`), what the committed file is called (`blobs`).
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from modelcache.errors import FencedError, StoreError, TakenOverError, VerificationError
from modelcache.model import PIECE_SIZE, Digest, ModelFile, PieceDigests, Span
from modelcache.pieces import Checks, Measure, Pieces
from modelcache.spans import END, SpanSet
from modelcache.store.claim import RELEASED, Claim, claim, found
from modelcache.store.disk import BUFFER, chunks_of, disk_errors, remove_tree, store_error, sync_directory
from modelcache.store.follower import Follower
from modelcache.store.installed import Stamp
from modelcache.store.journal import Facts
from modelcache.store.modes import mode_in
from modelcache.store.writeback import WriteBack
from modelcache.store.writer import SpanWriter
from modelcache.units import in_bytes

__all__ = ["END", "Partial", "SpanWriter", "found"]

STRIDE = 4 << 20  # what the follower hashes before it says how far it is


class Partial:
    """One file on its way. All methods may be called from any thread unless they say otherwise."""

    def __init__(self, claim: Claim, file: ModelFile, window: int, piece_size: int | None) -> None:
        facts = claim.journal.facts
        self.folder = claim.folder
        self.path = os.path.join(claim.folder, "data")
        self.size = facts.size if file.size is None else file.size
        self.resumed_bytes = facts.written.size
        self.given = Pieces(file.size, file.pieces.size, file.pieces) if file.pieces and file.size is not None else None
        self._file = file
        self._fd = claim.fd  # -1 after close
        self._journal = claim.journal
        self._window = window
        self._piece_size = piece_size
        self._written = facts.written
        self._proven: set[int] = set()
        self._refusals: dict[int, int] = {}
        self._writers: list[SpanWriter] = []
        self._turning = threading.RLock()  # restart, commit and close: one at a time; taken before `_changed`
        self._changed = threading.Condition()  # guards everything here, the journal and the handle included
        self._sealed = False  # for good: no writer any more, and no fact
        self._stopped = False  # the follower is to end
        self._hashed = 0
        self._error: StoreError | None = None
        self._write_back = WriteBack()
        self._follower = self._new_follower()

    @classmethod
    def open(
        cls,
        base: str,
        key: str,
        file: ModelFile,
        *,
        window: int = END,
        piece_size: int | None = PIECE_SIZE,
        model: str = "",
    ) -> "Partial":
        """Claims what an earlier run left under `base` for this key, or begins anew.

        `window` is how far, in bytes, writers may be ahead of the follower; `piece_size` is that of the pieces
        whose digests the follower takes along (None: of none); `model` is whose file it is. The caller holds the
        key's lock. Raises StoreError. Bytes of a partial that is garbled, or that was begun for another size, are
        thrown away.
        """
        return cls(claim(base, key, file, model), file, window, piece_size)

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
    def reserved_bytes(self) -> int:
        """Room on the disk that is taken for bytes to come: by an earlier run, which may have been killed, or now."""
        with self._changed, disk_errors(self.path):
            self._check_open()
            return max(0, os.fstat(self._fd).st_blocks * 512 - self.written_bytes)

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
            return list(self._free(0, self.extent))

    def is_written(self) -> bool:
        """Whether every byte is on the disk and nobody writes any more."""
        with self._changed:
            return self.size is not None and not self._writers and self._written.covers(0, self.size)

    # -- writing ---------------------------------------------------------------------------------------------------

    def writer(self, span: Span, source: str) -> SpanWriter:
        """A writer for the absent bytes that `span` begins with. It stops where somebody else's begin.

        Raises FencedError after close, StoreError if no file handle can be had.
        """
        with self._changed:
            self._check_open()
            free = next(self._free(span.start, min(span.stop, self.extent)), Span(END, END))
            stop = free.stop if free.start == span.start else span.start
            with disk_errors(self.path):
                writer = SpanWriter(self, os.dup(self._fd), Span(span.start, stop), source)
            self._writers.append(writer)
        if self.given:
            writer.measure(self.given)
        return writer

    def settle_size(self, size: int) -> None:
        """The size of the file is known now. VerificationError if it was known to be another, or more is here."""
        with self._changed:
            self._check_open()
            if self.size == size:
                return
            if self.size is not None:
                raise VerificationError(f"{in_bytes(size)}, {self.size:,} expected")
            if self._written.overlaps(size, END) or any(writer.position > size for writer in self._writers):
                raise VerificationError(f"{in_bytes(size)}, but more are here already")
            with disk_errors(self.path):
                self._journal.sized(size)
            self.size = size
            for writer in self._writers:
                writer.stop = min(writer.stop, size)
            self._changed.notify_all()

    def called(self, source: str, validator: str) -> None:
        """Notes what a source calls the content it serves."""
        with self._changed, disk_errors(self.path):
            self._check_open()
            self._journal.called(source, validator)

    def record(self, writer: SpanWriter) -> None:
        """Puts what the writer wrote into the journal; the follower may hash it now."""
        with self._changed:
            self._check_live(writer)
            if self._error:
                raise self._error
            self._record_until(writer, writer.position)
            writer.recorded_at = time.monotonic()
            self._changed.notify_all()

    def hold_back(self, writer: SpanWriter) -> None:
        """Blocks the writer while it is a window ahead of the follower: memory of the page cache stays flat."""
        with self._changed:
            while self._must_wait(writer):
                writer.held = True
                self._changed.wait()
            writer.held = False

    def release(self, writer: SpanWriter) -> None:
        try:
            writer.fence()
        finally:
            with self._changed:
                if writer in self._writers:
                    self._writers.remove(writer)
                    self._changed.notify_all()
                    self._record_until(writer, writer.position)

    def judge(self, writer: SpanWriter, index: int, digest: bytes) -> None:
        """A writer finished a piece: keep the proof, or take the bytes back and blame."""
        with self._changed:
            self._check_live(writer)
            if self.given is None:
                return
            if self.given.matches(index, digest):
                self._proven.add(index)
                return
            span = self.given.span(index)
            self._record_until(writer, span.start)
            writer.recorded = writer.position  # from the piece on, nothing is kept
            self._take_back(span)
        raise VerificationError(f"piece {index} (bytes {span.shown}) is not what it should be")

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
        with self._turning:
            with self._changed:
                self._check_open()
                writers, self._writers = self._writers, []
            for writer in writers:
                with suppress(StoreError):  # its bytes go anyway
                    writer.fence()
            self._stop_follower()
            with self._changed, disk_errors(self.path):
                os.ftruncate(self._fd, 0)  # first: it makes room for the journal on a full disk
                self._journal.begin_anew()
                self.resumed_bytes = 0
                self.size = self._file.size
                self._hashed = 0
                self._proven.clear()
                self._stopped = False
                self._follower = self._new_follower()

    def seed(self, path: str, spans: list[Span]) -> None:
        """Copies what is absent of these spans from another file, as a guess. Raises StoreError."""
        with disk_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for span in spans:
                with self._changed:
                    absent = list(self._free(span.start, min(span.stop, self.extent)))
                for part in absent:
                    self._copy(fd, path, part)
        finally:
            os.close(fd)

    def _copy(self, fd: int, path: str, span: Span) -> None:
        writer = self.writer(span, "seed")
        writer.measure(None)
        try:
            for chunk in chunks_of(fd, *span):
                writer.write(chunk)
        except OSError as error:
            raise store_error(error, path) from error
        finally:
            writer.close()

    # -- ending ----------------------------------------------------------------------------------------------------

    def commit(self, target: str, mode: int) -> Stamp:
        """Makes the proven file visible as `target` with this mode, replacing what is there, atomically.

        Returns how it looked before anybody could see it.

        Raises VerificationError if it is not what it should be, StoreError if the disk refuses, TakenOverError if the
        partial is no longer ours; then nothing is visible and the bytes stay. After a StoreError it can only be closed.
        """
        with self._turning:
            self._seal_proven()
            with disk_errors(self.path):
                self._make_durable(mode)
                stamp = self._our_stamp()
            with disk_errors(target):
                try:
                    os.rename(self.path, target)
                except FileNotFoundError:
                    self._our_stamp()  # it is the target's folder that is not there, else
                    raise
                try:
                    sync_directory(os.path.dirname(target))
                finally:
                    with suppress(StoreError):  # an empty folder that stays is swept later
                        self.discard()
            return stamp

    def close(self) -> None:
        """Stops everything and keeps the bytes. After it no thread writes here."""
        with self._turning:
            self._end()
            if self._fd >= 0:
                with suppress(OSError):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size)  # room beyond the end, which no hole reaches
                with suppress(OSError, TakenOverError):
                    self._our_stamp()  # whoever has taken it over decides on its mode: it may be a blob by now
                    os.fchmod(self._fd, mode_in(self.folder, RELEASED))
            self._close_files()

    def leave(self) -> None:
        """`close`, for whoever did not get to the end; where no byte is written nothing stays to go on from."""
        kept = self.written_bytes
        self.close()
        if not kept:
            with suppress(OSError):
                remove_tree(self.folder)

    def discard(self) -> None:
        """Stops everything and removes the folder."""
        with self._turning:
            self._end()
            self._close_files()
        with disk_errors(self.folder):
            remove_tree(self.folder)

    # -- for the follower ------------------------------------------------------------------------------------------

    def await_bytes(self, position: int) -> Span | None:
        with self._changed:
            while not self._stopped:
                span = self._ready(position)
                if span is not None:
                    return span
                self._changed.wait()
            return None

    def needs_proof(self, span: Span) -> bytes | None:
        if self.given is None or self.given.digests is None:
            return None
        index = self.given.at(span.start)
        return None if index in self._proven and self._file.digests else self.given.digests[index]

    def refused(self, span: Span) -> None:
        with self._changed:
            self._take_back(span)

    def followed(self, position: int) -> None:
        with self._changed:
            self._hashed = position
            self._changed.notify_all()

    def failed(self, error: OSError | StoreError) -> None:
        if isinstance(error, OSError):
            reason = f"{self.path}: cannot be read back: {error.strerror}"
            error = StoreError(reason, next_step="check the disk")
        with self._changed:
            self._error = error
            self._changed.notify_all()

    # -- inside ----------------------------------------------------------------------------------------------------

    def piece_digests(self) -> PieceDigests | None:
        """The BLAKE3 digests of this file after its proof; None if they were not to be measured."""
        if self.given:
            return self.given.digests
        return self._follower.measure.result() if self._follower.measure else None

    def _new_follower(self) -> Follower:
        measure = Measure(self._piece_size) if self._piece_size and not self.given else None
        return Follower(self, self._fd, Checks(self._file.digests, self._file.size), measure)

    def _check_open(self) -> None:
        if self._sealed:
            raise FencedError("the partial is closed")

    def _check_live(self, writer: SpanWriter) -> None:
        if writer not in self._writers:
            raise FencedError("the partial was closed while this writer was away")

    def _free(self, start: int, stop: int) -> Iterator[Span]:
        taken = SpanSet()
        for writer in self._writers:
            taken.add(writer.recorded, writer.left.stop)
        for gap in self._written.gaps(start, stop):
            yield from taken.gaps(*gap)

    def _record_until(self, writer: SpanWriter, position: int) -> None:
        if position > writer.recorded:
            with disk_errors(self.path):
                self._journal.wrote(writer.recorded, position, writer.source)
                self._write_back.wrote(self._fd, position - writer.recorded)
            writer.recorded = position

    def _take_back(self, span: Span) -> None:
        self._refusals[span.start] = self._refusals.get(span.start, 0) + 1
        with disk_errors(self.path):
            self._journal.dropped(*span)

    def _ready(self, position: int) -> Span | None:
        """What the follower can hash from `position` on: a given piece, or as much as is worth a turn."""
        front = self._written.run_end(position)
        if self.given and position < self.extent:
            piece = self.given.span(self.given.at(position))
            return piece if front >= piece.stop else None
        if front - position >= BUFFER or front == self.size:
            return Span(position, min(front, position + STRIDE))
        return None

    def _must_wait(self, writer: SpanWriter) -> bool:
        """Only for a follower that can go on, now or once another writer is there: bytes that nobody is to write
        would be waited for in vain."""
        if writer.fenced or self._error or writer.position - self._hashed <= self._window:
            return False
        front = self._written.run_end(self._hashed)
        others = (other for other in self._writers if other is not writer)
        return self._ready(self._hashed) is not None or any(one.recorded <= front < one.stop for one in others)

    def _stop_follower(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._follower.stop()

    def _end(self) -> None:
        """Ends all writers and the follower. What was written is in the journal, unless the disk is full."""
        with self._changed:
            self._sealed = True
            writers = list(self._writers)
        for writer in writers:
            with suppress(StoreError):  # what is not in the journal is fetched again
                self.release(writer)
        self._stop_follower()

    def _close_files(self) -> None:
        with self._changed:
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                with suppress(OSError):  # on a network file system: what it lost is fetched again
                    os.close(fd)
                with suppress(OSError):
                    self._journal.close()

    def _seal_proven(self) -> None:
        with self._changed:
            self._check_open()
            if self._error:
                raise self._error
            if self._hashed != self.size or self._writers or not self._written.covers(0, self.size):
                raise StoreError(f"{self.path}: commit before every byte is proven")
            wrong = self.wrong_digest()
            if wrong is not None:
                raise VerificationError(f"the file is not {wrong}")
            self._sealed = True

    def _make_durable(self, mode: int) -> None:
        """After it the file is exactly the proven bytes, on the disk, and read-only or what `mode` says."""
        assert self.size is not None
        here = os.fstat(self._fd).st_size
        if here < self.size:
            raise StoreError(f"{self.path}: somebody made it shorter")
        if here > self.size:
            os.ftruncate(self._fd, self.size)  # a longer file of an earlier run: its rest was never hashed
        os.fchmod(self._fd, mode)
        self._write_back.finish(self._fd)

    def _our_stamp(self) -> Stamp:
        """How the data looks. Raises TakenOverError if another process has taken the folder meanwhile (I12)."""
        try:
            there, stamp, mine = os.lstat(self.path), Stamp.of(self.path), os.fstat(self._fd)
        except FileNotFoundError as error:
            raise self._taken_over() from error
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise self._taken_over()
        return stamp

    def _taken_over(self) -> TakenOverError:
        return TakenOverError(f"{self.path}: another process has taken this download over")
