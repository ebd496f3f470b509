"""The engine: makes every byte of one file proven, from whichever sources work.

Rules:

1. Each step asks the partial what is absent; no offset is kept here (A2).
2. Sources are mixed only as far as proof allows: with piece digests any mix; with a whole digest one source after
   another; with neither, one source under one strong validator, and a fallback begins anew.
3. A fault that may pass lets the next source go on at once; only when all are waiting is there a pause (A5).
4. Wrong bytes are absent again, and their source is asked only when nobody else is left (A6).
5. Whatever happens, the partial keeps what it has; a stop ends every request within 0.5 s and fences those
   threads that cannot be woken.

Responsible for: workers, deadlines, order, blame. Runs in its caller's thread, which only waits.
Leaves to others: opening and committing the partial, and which sources there are.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence

from modelcache.errors import (
    AllSourcesFailedError,
    FencedError,
    RangeRefusedError,
    SourceError,
    TransientError,
    VerificationError,
)
from modelcache.events import FactType
from modelcache.model import Digest, ModelFile, Span
from modelcache.plan import Scoreboard, Standing
from modelcache.remotes.source import Source
from modelcache.settings import Settings
from modelcache.store.partial import Partial
from modelcache.transfer.control import Control
from modelcache.transfer.worker import Worker

TICK_S = 0.1
GRACE_S = 0.3  # for a worker to report after its request was ended
SMALLEST_SPAN, LARGEST_SPAN = 16 << 20, 64 << 20  # of big files over several connections
SMALL_FILE = 64 << 20  # below it, one connection is enough

Tell = Callable[[FactType, str, str], None]  # (type, message, source)


class Transfer:
    """One run for one file. `run` is called once; `progress` may be read from any thread."""

    def __init__(
        self,
        file: ModelFile,
        partial: Partial,
        sources: Sequence[Source],
        settings: Settings,
        control: Control,
        tell: Tell,
    ) -> None:
        self.file = file
        self.partial = partial
        self.tries = 0
        self.source = ""  # the one asked last, for people
        self.source_kind = ""
        self._settings = settings
        self._control = control
        self._tell = tell
        self._sources = [source for source in sources if source.traits(file) is not None]
        self._board = Scoreboard([source.name for source in self._sources], settings)
        self._workers: set[Worker] = set()
        self._reports: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._received = 0
        self._exclusive: Worker | None = None
        self._loyal = not (file.digests or file.pieces)  # all bytes from one source
        self._wrong_before: set[tuple[str, str]] = set()

    def run(self) -> dict[str, Digest]:
        """Returns the digests of the file, once all expected ones are right; the partial can be committed then.

        Raises AllSourcesFailedError, StoreError, or PausedError when the control was stopped. The partial keeps its
        bytes, except those that were proven wrong.
        """
        self._begin()
        try:
            while not (self.partial.is_written() and not self._workers and self._is_proven()):
                self._control.check()
                self._check_refusals()
                if not self.partial.is_written():
                    self._hire()
                self._attend()
            return self.partial.digests()
        finally:
            self._dismiss()

    @property
    def received(self) -> int:
        """Bytes that came over the network, those thrown away included."""
        with self._guard:
            return self._received + sum(worker.received for worker in self._workers)

    # -- what is asked of whom ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        share = self.partial.resumed_bytes / self.partial.size if self.partial.size else 1.0
        if self.partial.resumed_bytes and share < self._settings.resume_threshold:
            self.partial.restart()
        if self.partial.resumed_bytes:
            self._tell("resumed", f"{self.partial.resumed_bytes:,} bytes are here already", "")

    def _hire(self) -> None:
        """Gives absent spans to sources, as far as connections and rule 2 allow."""
        while len(self._workers) < self._most_workers():
            span = self._next_span()
            standing = self._next_source() if span else None
            if span is None or standing is None:
                return
            if not self._workers and not self._may_continue(standing):
                self._tell("restarted", "bytes of another source or version are dropped", standing.name)
                self.partial.restart()
                continue
            self._start(standing, span)

    def _start(self, standing: Standing, span: Span) -> None:
        source = self._sources[standing.index]
        worker = Worker(self, source, standing, span)
        with self._guard:
            self._workers.add(worker)
        standing.workers += 1
        self.tries += 1
        self.source, self.source_kind = source.name, source.kind
        self._tell("source_tried", f"asking for bytes from {span.start:,}", source.name)
        worker.start(self._reports.put)

    def _most_workers(self) -> int:
        """How many may run now. One, as long as the size or the source's way with ranges says that more cannot help."""
        able = [one for one in self._board.all if one.ranged and not (one.gone or one.blames)]
        if self._exclusive or self.partial.size is None or not able:
            return 1
        if self.file.pieces:
            return max(self._settings.connections, len(able))
        if self._loyal and not self.partial.facts.validators.get(self.source):
            return 1
        return self._settings.connections if self.partial.size >= SMALL_FILE else 1

    def _next_span(self) -> Span | None:
        """The lowest absent bytes that nobody fetches, within a window ahead of the follower."""
        free = self.partial.unclaimed()
        if not free:
            return None
        most = self._most_workers()
        if most == 1:
            return free[0]
        start = free[0].start
        if self._workers and start > self.partial.hashed_bytes + self._settings.window:
            return None
        return Span(start, min(free[0].stop, self._aligned(start + self._span_size(most))))

    def _span_size(self, workers: int) -> int:
        size = self.partial.extent // (4 * workers)
        least = self.file.pieces.size if self.file.pieces else SMALLEST_SPAN
        return max(least, min(size, LARGEST_SPAN))

    def _aligned(self, stop: int) -> int:
        """Spans end where pieces end, so that each piece has one source to blame."""
        length = self.file.pieces.size if self.file.pieces else 1
        return -(-stop // length) * length

    def _next_source(self) -> Standing | None:
        """Without piece digests, a source at work is joined by no other (rule 2)."""
        chosen = self._board.pick(time.monotonic(), ranged_only=bool(self._workers))
        if chosen is None or self.file.pieces or not self._workers:
            return chosen
        active = next(iter(self._workers)).standing
        fit = not (active.gone or active.blames) and active.not_before <= time.monotonic()
        return active if fit and active.workers < active.most_workers else None

    def _may_continue(self, standing: Standing) -> bool:
        """Whether bytes of this source may join those that are here."""
        facts = self.partial.facts
        if not facts.written.size or not self._loyal:
            return True
        same = facts.wrote <= {standing.name}
        return same and (bool(self.file.digests) or standing.name in facts.validators)

    def claim_alone(self, worker: Worker) -> bool:
        """For a worker whose source sends the whole file: nobody else writes while it does."""
        with self._guard:
            if self._workers == {worker}:
                self._exclusive = worker
                return True
        return False

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Waits for the next thing to happen, at most a tick."""
        if not self._workers:
            self._rest()
            return
        try:
            self._settle(self._reports.get(timeout=TICK_S))
        except queue.Empty:
            self._enforce_deadlines()

    def _rest(self) -> None:
        """Nobody works: bytes are being proven, or every source is to be left alone for a while."""
        if self.partial.is_written():
            return
        moment = self._board.next_at()
        if moment is None:
            raise AllSourcesFailedError(self.file.path, self._board.failures(), kept_bytes=self.partial.written_bytes)
        self._control.wait_until(min(moment, time.monotonic() + 1))

    def _settle(self, worker: Worker) -> None:
        """Draws the consequences of how a worker ended."""
        if worker.abandoned:
            return
        self._leave(worker)
        error = worker.error
        if error is None:
            worker.standing.budget.succeeded()
        elif isinstance(error, (TransientError, RangeRefusedError, VerificationError, SourceError)):
            self._blame(worker, error)
        elif not (isinstance(error, FencedError) and self._control.stopped):
            raise error

    def _leave(self, worker: Worker) -> None:
        with self._guard:
            self._workers.discard(worker)
            if self._exclusive is worker:
                self._exclusive = None
            self._received += worker.received
        worker.standing.workers -= 1

    def _blame(self, worker: Worker, error: SourceError | VerificationError) -> None:
        standing = worker.standing
        wait = 0.0
        if isinstance(error, VerificationError):
            self._board.blame(standing, error.message)
        elif isinstance(error, RangeRefusedError):
            self._refused(standing, error)
        elif isinstance(error, TransientError):
            wait = self._board.failed(standing, error, worker.moved, time.monotonic(), random.random())  # noqa: S311
        else:
            standing.give_up(error)
        kind: FactType = "piece_failed" if isinstance(error, VerificationError) else "source_failed"
        again = f"; again in {wait:.1f} s" if wait and len(self._sources) == 1 else ""
        self._tell(kind, error.message + again, standing.name)

    def _refused(self, standing: Standing, error: RangeRefusedError) -> None:
        """An unusable answer to a range: one plain request for the whole, once a source and run (I7)."""
        here = self.partial.written_bytes
        if error.total is not None and self.partial.size is None and here == error.total and not self._loyal:
            self.partial.settle_size(error.total)  # nothing is absent: what is here is to be verified
            return
        standing.ranged = False
        if standing.refused:
            standing.give_up(error)
        if self._workers:
            return  # they go on without it; should they fail, it may still send the whole
        standing.refused = True
        if error.total is not None and error.total != self.partial.size and not self.file.pieces:
            self.partial.restart()  # the content has another length now: it is another version

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            late = self._lateness(worker, now)
            if late:
                worker.end(TransientError(late))
            if worker.ended_at is not None and now - worker.ended_at > GRACE_S:
                self._abandon(worker)

    def _abandon(self, worker: Worker) -> None:
        worker.abandon()
        self._leave(worker)
        if isinstance(worker.abort.cause, TransientError):
            self._blame(worker, worker.abort.cause)

    def _lateness(self, worker: Worker, now: float) -> str:
        """What a worker's source has let pass, in words; empty while all is well (I23)."""
        settings = self._settings
        if worker.headers_at is None:
            if not worker.abort.attached and now - worker.started > settings.connect_timeout:
                return f"the name did not resolve within {settings.connect_timeout:g} s"
            whole = settings.connect_timeout + settings.header_timeout
            return f"no complete answer within {whole:g} s" if now - worker.started > whole else ""
        slow = worker.is_too_slow(now, settings.slow_window, settings.slow_rate)
        return f"less than {settings.slow_rate:,} bytes/s for {settings.slow_window:g} s" if slow else ""

    # -- proof and the end --------------------------------------------------------------------------------------------

    def _is_proven(self) -> bool:
        """Every byte is written: waits for the follower. False if bytes turned out wrong and are absent again."""
        self._tell("verifying", "all bytes are here", "")
        while not self.partial.await_proof(TICK_S):
            self._control.check()
            if not self.partial.is_written():
                return False
        wrong = self.partial.wrong_digest()
        if wrong is None:
            return True
        self._judge_whole(wrong, self.partial.digests()[wrong.algorithm].hex)
        return False

    def _judge_whole(self, wrong: Digest, actual: str) -> None:
        """No piece tells which bytes are wrong: all go. One source is blamed, several are not (A6, I9)."""
        wrote = self.partial.facts.wrote
        resumed = self.partial.resumed_bytes > 0
        message = f"the file is not {wrong.algorithm} {wrong.hex[:12]}… but {actual[:12]}…"
        culprit = next((one for one in self._board.all if {one.name} == wrote), None)
        self._tell("piece_failed", message, culprit.name if culprit else "")
        self.partial.restart()
        self._loyal = True  # the clean retry uses one source alone
        if culprit is None or resumed:
            self._board.wrongs += 1
        else:
            self._board.blame(culprit, message)
            if (culprit.name, actual) in self._wrong_before:
                culprit.gone = True  # the same wrong bytes twice: it has another file
            self._wrong_before.add((culprit.name, actual))
        if self._board.wrongs > self._settings.clean_restarts + len(self._sources):
            raise AllSourcesFailedError(self.file.path, self._board.failures())

    def _check_refusals(self) -> None:
        """A piece that arrives wrong in parts has nobody to blame; it does not go on for ever all the same."""
        if self.partial.refusals() > self._settings.clean_restarts + 1:
            raise AllSourcesFailedError(self.file.path, self._board.failures(), kept_bytes=self.partial.written_bytes)

    def _dismiss(self) -> None:
        """Ends all requests; threads that do not come back in time are fenced."""
        for worker in self._workers:
            worker.end(None)
        end = time.monotonic() + GRACE_S
        while self._workers and time.monotonic() < end:
            try:
                worker = self._reports.get(timeout=max(0.001, end - time.monotonic()))
            except queue.Empty:
                break
            if not worker.abandoned:
                self._leave(worker)
        for worker in list(self._workers):
            worker.abandon()
            self._leave(worker)
