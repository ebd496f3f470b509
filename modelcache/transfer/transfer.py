"""The engine: makes every byte of one file proven, from whichever sources work.

Rules:

1. Each step asks the partial what is absent; no offset is kept here (A2).
2. Sources are mixed only as far as proof allows: with piece digests any mix; with a whole digest one source after
   another; with neither, one source under one strong validator, and a fallback begins anew.
3. A fault that may pass lets the next source go on at once; only when all are waiting is there a pause (A5). Where a
   fallback would cost all bytes that are here, their source has its tries first.
4. Wrong bytes are absent again, and their source is asked only when nobody else is left (A6).
5. A size that was only told by a source binds nobody: a source that says otherwise has its turn when those that
   agree have failed.
6. Only bytes further than ever before are progress: whatever sources do, the transfer ends.
7. Where this machine has no handle or thread for one more connection, those that work go on; only without any the
   transfer fails.
8. Whatever happens, the partial keeps what it has; a stop ends every request within 0.5 s and fences those
   threads that cannot be woken.

Responsible for: workers, deadlines, order, blame. Runs in its caller's thread, which only waits.
Leaves to others: opening and committing the partial, and which sources there are.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence

from modelcache.errors import (
    AbortedError,
    AllSourcesFailedError,
    FencedError,
    RangeRefusedError,
    ShortageError,
    SourceError,
    TransientError,
    VerificationError,
)
from modelcache.events import FactType
from modelcache.history import Attempt
from modelcache.model import Digest, ModelFile, Span
from modelcache.plan import Scoreboard, Standing, next_at
from modelcache.remotes.source import Source, Traits
from modelcache.settings import Settings
from modelcache.store.partial import Partial
from modelcache.throttle import Throttle
from modelcache.transfer.attempts import attempt_of, wrong_file_of
from modelcache.transfer.control import Control
from modelcache.transfer.crew import Crew
from modelcache.transfer.hedge import Shadow
from modelcache.transfer.portion import Portions, worth_sharing
from modelcache.transfer.staff import GRACE_S, Staff
from modelcache.transfer.worker import OtherSizeError, Worker

TICK_S = 0.05
MANY = 1 << 30
log = logging.getLogger(__name__)

Tell = Callable[[FactType, str, str], None]  # (type, message, source); called from several threads
Note = Callable[[Attempt], None]


def _nobody(_attempt: Attempt) -> None:
    """Where nobody keeps attempts."""


class Transfer:
    """One run for one file. `run` is called once; `received` may be read from any thread."""

    def __init__(
        self,
        file: ModelFile,
        partial: Partial,
        sources: Sequence[Source],
        settings: Settings,
        control: Control,
        tell: Tell,
        throttle: Throttle,
        note: Note = _nobody,
    ) -> None:
        self.file = file
        self.partial = partial
        self.throttle = throttle
        self.tries = 0
        self.source = ""  # the one asked last, for people
        self.source_kind = ""
        self._settings = settings
        self._control = control
        self._tell = tell
        self._note = note
        able = [(source, traits) for source in sources if (traits := source.traits(file)) is not None]
        self._sources = [source for source, _ in able]
        self._board = _scoreboard(able, settings)
        self._room = MANY  # for connections, as far as this machine has shown
        self._crew = Crew(settings.connections, settings.grow_every)
        self._portions = Portions(file, partial, settings.window, settings.connections)
        self._staff = Staff()
        self._has_proof = bool(file.digests or file.pieces)
        self._is_loyal = not self._has_proof  # all bytes from one source
        self._is_void = False  # the bytes here are wrong for sure, but nobody would notice
        self._refusals = 0
        self._has_told_resumed = False

    def run(self) -> dict[str, Digest]:
        """Returns the digests of the file, once all expected ones are right; the partial can be committed then.

        Raises AllSourcesFailedError, StoreError, PausedError when the control was stopped, or VerificationError when
        the digests expected of the file and of its pieces contradict each other. The partial keeps its bytes, except
        those that were proven wrong.
        """
        self._begin()
        try:
            while not (self.partial.is_written() and not self._staff and self._is_proven()):
                self._control.check()
                self._count_refusals()
                if not self.partial.is_written():
                    self._hire()
                self._attend()
            return self.partial.digests()
        finally:
            self._dismiss()

    @property
    def received(self) -> int:
        """Bytes that came over the network, those thrown away included."""
        return self._staff.received

    def _begin(self) -> None:
        self._weigh_reset("")
        if self.partial.resumed_bytes:
            self._tell("resumed", f"{self.partial.resumed_bytes:,} bytes are here already", "")

    def _restart(self, why: str, source: str, *, afresh: bool = False) -> None:
        self.partial.restart()
        self._board.restarted(afresh=afresh)
        self._is_void = False
        self._tell("restarted", why, source)

    # -- what is asked of whom ----------------------------------------------------------------------------------------

    def _hire(self) -> None:
        """Gives absent spans to sources, as far as connections and rule 2 allow."""
        while len(self._staff) < self._most_workers():
            standing = self._board.pick(time.monotonic(), self._candidates(), ranged_only=bool(self._staff))
            if standing is None:
                return
            span = self._portions.next(standing.rate, alone=not self._staff, crew=self._most_workers())
            if span is None:
                if self._share_slow(standing):
                    continue
                return
            if not self._staff and not self._may_continue(standing):
                self._restart("bytes of another source or version are dropped", standing.name)
                continue
            self._start(standing, span)

    def _start(self, standing: Standing, span: Span, shadow: Shadow | None = None) -> Worker | None:
        source = self._sources[standing.index]
        try:
            worker = Worker(self, source, standing, shadow or self.partial.writer(span, source.name))
        except ShortageError as error:
            self._make_do(error)
            return None
        if not self._staff.admit(worker):
            worker.abandon()
            return None
        standing.workers += 1
        self.tries += 1
        worker.number = self.tries
        self.source, self.source_kind = source.name, source.kind
        self._tell("source_tried", f"asking for bytes from {span.start:,}", source.name)
        self._staff.start(worker)
        return worker

    def _make_do(self, error: ShortageError) -> None:
        """This machine has nothing for one more connection: those at work go on, and are not joined any more."""
        if not self._staff:
            raise error
        self._room = len(self._staff)
        self._crew.settle(self._room)
        log.info("%s: goes on with fewer connections: %s", self.file.path, error.message)

    def _most_workers(self) -> int:
        """How many may run now: what the crew wants, and one for each that has gone to sleep."""
        able = [one for one in self._board.all if one.ranged and not (one.gone or one.blames)]
        if not able or not self._may_be_many():
            return 1
        idle, most = self._staff.idle(time.monotonic()), self._settings.connections
        if idle and most > 1:
            most += 1  # else those that wait for the slowest would keep everybody from helping it
        return min(self._room, max(min(self._crew.wanted + idle, most), len(able) if self.file.pieces else 1))

    def _may_be_many(self) -> bool:
        """Whether bytes of several connections can be joined, and the source serves ranges."""
        if self._staff.is_exclusive or self.partial.size is None:
            return False
        if self.file.pieces:
            return True
        has_bond = self._has_proof or bool(self.partial.facts.validators.get(self.source))
        return has_bond and any(self._traits_of(one).says_ranges for one in self._candidates())

    def _traits_of(self, standing: Standing) -> Traits:
        """What the source has shown by now."""
        return self._sources[standing.index].traits(self.file) or Traits(ranges=False)

    def _adapt(self) -> None:
        """Looks what the connections bring, and makes room for more where more would help."""
        now, size = time.monotonic(), self.partial.size
        working = [worker for worker in self._staff if worker.pace is not None]
        delivering = [worker for worker in working if worker.received]
        for standing in self._board.all:
            if rates := [worker.rate(now) or 0.0 for worker in delivering if worker.standing is standing]:
                standing.delivers(sum(rates) / len(rates), several=len(rates) > 1)
        if size is None or any(worker.is_held for worker in working):
            self._crew.wait()
            return
        absent, reply_s = size - self.partial.written_bytes, max((one.reply_s for one in working), default=0.0)
        if self._crew.look(now, self.received, len(working), absent, reply_s):
            self._make_room(working)

    def _make_room(self, working: list[Worker]) -> None:
        """Who works alone has all that is absent: it keeps what it will bring soon, if its source serves ranges."""
        standing = working[0].standing
        standing.ranged = standing.ranged and self._traits_of(standing).ranges
        if self._most_workers() == 1:
            self._crew.settle(1)
        elif len(working) == 1:
            working[0].shorten(self._portions.cut(working[0].left, standing.rate))

    def _share_slow(self, standing: Standing) -> bool:
        """Nothing is left to give: the slowest span is split, or its end asked for twice. True if bytes are free."""
        now = time.monotonic()
        found = self._staff.slowest(now)
        if found is None or not worth_sharing(found[0].left, found[1], found[0].reply_s, standing.rate):
            return False
        (slow, rate), left = found, found[0].left
        stop = self._portions.halved(left) or (self._portions.overtaken(left) if slow.sleeps(now) else None)
        if stop is not None:
            return slow.shorten(stop)
        is_behind = slow.sleeps(now) or not standing.rate or 2 * rate < standing.rate  # else both would need as long
        if 0 < left.size <= self._portions.hedged and is_behind and not self._staff.has_hedge:
            shadow = Shadow(left)
            if hedge := self._start(standing, left, shadow):
                self._staff.hedge(slow, hedge, shadow)
        return False

    def _candidates(self) -> list[Standing]:
        """Whom rule 2 lets fetch the next bytes. Without piece digests a source at work is joined by no other."""
        if self.file.pieces:
            return self._board.hopeful()
        if self._staff:
            active = next(iter(self._staff)).standing
            return [] if active.gone or active.blames else [active]
        wrote = self.partial.facts.wrote if self._is_loyal else set()
        keeper = [one for one in self._board.hopeful() if {one.name} == wrote and self._may_continue(one)]
        return keeper or self._board.hopeful()

    def _may_continue(self, standing: Standing) -> bool:
        """Whether bytes of this source may join those that are here."""
        facts = self.partial.facts
        if self.file.pieces:
            return True
        if standing.doubted:
            return False
        if not facts.written.size or not self._is_loyal:
            return True
        return facts.wrote <= {standing.name} and (self._has_proof or standing.name in facts.validators)

    def claim_alone(self, worker: Worker) -> bool:
        """For a worker whose source sends the whole file: nobody else writes while it does."""
        return self._staff.claim_alone(worker)

    def renew(self, standing: Standing) -> None:
        """Called by a worker that is alone."""
        standing.renewed = True
        self._restart("it has another version now", standing.name)

    # -- what comes back ----------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Waits for the next thing to happen, at most a tick."""
        if not self._staff:
            self._rest()
            return
        worker = self._staff.next_report(TICK_S)
        if worker is not None and not worker.abandoned:
            self._settle(worker)
        self._enforce_deadlines()
        self._adapt()

    def _rest(self) -> None:
        """Nobody works: bytes are being proven, or every source is to be left alone for a while."""
        if self.partial.is_written():
            return
        moment = next_at(self._candidates())
        if moment is None:
            raise self._all_failed()
        self._control.wait_until(moment)

    def _settle(self, worker: Worker) -> None:
        """Draws the consequences of how a worker ended."""
        hedged = self._staff.pop_hedged(worker)
        self._leave(worker)
        if hedged:
            self._use_hedge(worker, *hedged)
        error = worker.error
        if error is None:
            if worker.standing.gained(worker.moved):  # else it brought once more what a restart had dropped
                worker.standing.budget.succeeded()
        elif isinstance(error, (SourceError, VerificationError)):
            self._weigh(worker, error)
        elif isinstance(error, ShortageError):
            worker.standing.gained(worker.moved)
            self._make_do(error)
        elif isinstance(error, AbortedError) or (isinstance(error, FencedError) and self._control.stopped):
            worker.standing.gained(worker.moved)  # we ended it: nobody's fault
        else:
            raise error

    def _use_hedge(self, worker: Worker, slow: Worker, shadow: Shadow) -> None:
        """What came a second time is written if the slow one has not brought it meanwhile; only that is progress."""
        if worker.error is not None:
            return
        slow.end(None)
        self._abandon(slow)
        slow.standing.gained(slow.moved)
        try:
            worker.moved = shadow.copy_to(self.partial, worker.standing.name)
        except VerificationError as error:
            worker.error = error

    def _leave(self, worker: Worker) -> None:
        self._staff.leave(worker)
        worker.standing.workers -= 1
        if isinstance(worker.error, TransientError) and worker.standing.workers and not worker.received:
            return  # one connection too many: that says nothing about how its source does
        resumed = 0
        if worker.received and not self._has_told_resumed:  # what was here saved something only if a source goes on
            self._has_told_resumed, resumed = True, self.partial.resumed_bytes
        if attempt := attempt_of(worker, self._sources[worker.standing.index], self.file, resumed):
            self._note(attempt)

    def _weigh(self, worker: Worker, error: SourceError | VerificationError) -> None:
        """What an error means for its source."""
        standing, wait = worker.standing, 0.0
        gain = standing.gained(worker.moved)
        if isinstance(error, VerificationError):
            self._blame(worker, error)
        elif isinstance(error, RangeRefusedError):
            self._refused(standing, error)
        elif isinstance(error, TransientError):
            wait = self._board.failed(standing, error, gain, time.monotonic(), random.random())  # noqa: S311
        elif isinstance(error, OtherSizeError):
            standing.doubt(error)
        else:
            standing.give_up(error)
        kind: FactType = "piece_failed" if isinstance(error, VerificationError) else "source_failed"
        again = f"; again in {wait:.1f} s" if wait and len(self._sources) == 1 else ""
        self._tell(kind, error.message + again, standing.name)
        if isinstance(error, TransientError) and worker.pace is not None:
            self._weigh_reset(standing.name)

    def _blame(self, worker: Worker, error: VerificationError) -> None:
        """Its bytes, or what it promised before the first of them, are wrong. Its other connections end too."""
        standing = worker.standing
        if worker.received and self._has_proof:
            self._board.blame(standing, error.message)
        else:
            standing.give_up(error)
            self._is_void = self._is_void or worker.received > 0
        for other in self._staff:
            if other.standing is standing:
                other.end(None)

    def _refused(self, standing: Standing, error: RangeRefusedError) -> None:
        """An unusable answer to a range: one plain request for the whole, once a source and run (I7)."""
        if error.total == self.partial.written_bytes and self.partial.size is None and not self._is_loyal:
            self.partial.settle_size(error.total)  # nothing is absent: what is here is to be verified
            return
        standing.ranged = False
        if standing.refused:
            standing.give_up(error)
        standing.refused = not self._staff  # the others go on; should they fail, it may still send the whole

    def _weigh_reset(self, source: str) -> None:
        """Below the threshold a broken stream begins anew instead of being resumed (product A7)."""
        here, size = self.partial.written_bytes, self.partial.size
        if here and size and not self._staff and here / size < self._settings.resume_threshold:
            self._restart(f"{here:,} of {size:,} bytes are too few to resume", source)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for worker in self._staff:
            late = worker.lateness(now, self._settings)
            if late:
                worker.end(TransientError(late))
            if worker.ended_at is not None and now - worker.ended_at > GRACE_S:
                self._abandon(worker)

    def _abandon(self, worker: Worker) -> None:
        worker.abandon()
        self._leave(worker)
        if isinstance(worker.abort.cause, TransientError):
            self._weigh(worker, worker.abort.cause)

    # -- proof and the end --------------------------------------------------------------------------------------------

    def _is_proven(self) -> bool:
        """Every byte is written: waits for the follower. False if bytes turned out wrong and are absent again."""
        if self._is_void:
            self._restart("a body without its promised end proves nothing", "")
            return False
        self._tell("verifying", "all bytes are here", "")
        while not self.partial.await_proof(TICK_S):
            self._control.check()
            if not self.partial.is_written():
                return False
        wrong = self.partial.wrong_digest()
        if wrong is not None:
            self._judge(wrong, self.partial.digests()[wrong.algorithm].hex)
        return wrong is None

    def _judge(self, wrong: Digest, actual: str) -> None:
        """No piece tells which bytes are wrong: all go. One source is blamed, several are not (A6, I9)."""
        message = f"the file is not {wrong.algorithm} {wrong.hex} but {actual}"
        if self.file.pieces:
            raise VerificationError(f"{message}, though each of its pieces is right: the digests contradict each other")
        wrote = self.partial.facts.wrote or {self.source}
        resumed = self.partial.resumed_bytes > 0
        culprit = next((one for one in self._board.all if {one.name} == wrote and not resumed), None)
        self._tell("piece_failed", message, culprit.name if culprit else "")
        self._is_loyal = True  # the clean retry uses one source alone
        if culprit is not None:
            self._note(wrong_file_of(self._sources[culprit.index], self.file, message))
        may_try = self._board.judge(culprit, message, actual)
        self._restart("one clean download" if may_try else "nothing of it is kept", "", afresh=True)
        if not may_try:
            raise self._all_failed()

    def _count_refusals(self) -> None:
        """A piece that arrives wrong in parts has nobody to blame; it does not go on for ever all the same."""
        refusals = self.partial.refusals()
        if 1 < refusals != self._refusals:
            self._board.doubt()
        self._refusals = refusals
        if refusals >= self._settings.clean_restarts + len(self._sources):
            raise self._all_failed()

    def _all_failed(self) -> AllSourcesFailedError:
        return AllSourcesFailedError(self.file.path, self._board.failures(), kept_bytes=self.partial.written_bytes)

    def _dismiss(self) -> None:
        """Ends all requests; threads that do not come back in time are fenced."""
        for worker in self._staff.dismiss():
            self._leave(worker)


def _scoreboard(able: Sequence[tuple[Source, Traits]], settings: Settings) -> Scoreboard:
    board = Scoreboard([source.name for source, _ in able], settings)
    for standing, (_, traits) in zip(board.all, able, strict=True):
        standing.ranged = traits.ranges
        standing.allowed = standing.most_workers = traits.most_connections
    return board
