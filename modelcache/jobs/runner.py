"""One run of a job: its claim, its heartbeat, its end.

Responsible for: one run of each job at a time in a store, and one a slot (I29); that a run is told to stop, by whoever
wants or by its `max_runtime`; that what it raises is known and ends nothing else.

The job works in a thread of its own, which cannot be killed. One that does not stop is given up after a while: its run
has failed, and nobody runs the same job until that thread, or the process, has ended, for the thread keeps the lock.
Leaves to others: which slot is due (`schedule`), what is kept of a run (`ledger`).
"""

import importlib
import logging
import operator
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from modelcache.caching import Cache
from modelcache.configuration import fallback_for
from modelcache.errors import LockedError, ModelCacheError, StoreError, UsageError
from modelcache.jobs.failure import what, where
from modelcache.jobs.job import Clock, Config, Job
from modelcache.jobs.ledger import MOST_RUNS, Claim, Ledger, Run, Status
from modelcache.jobs.ping import ping
from modelcache.jobs.schedule import SLOT_NOW, Schedule, slot_of
from modelcache.rows import Report
from modelcache.store.disk import make_root
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

LOOK_S = 0.1
BEAT_S = 10.0
_LEVELS: dict[Status, int] = {"failed": logging.ERROR, "stopped": logging.WARNING}
PATIENCE_S = 30.0  # with a job that was told to stop


@dataclass(slots=True)
class _Work:
    """A job in its thread. The lock of the job goes with it."""

    schedule: Schedule
    config: Config
    clock: Clock
    lock: ExitStack
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    report: Report | None = None
    error: BaseException | None = None

    def run(self) -> None:
        with self.lock:
            try:
                result = _loaded(self.schedule.target)(self.config, stop=self.stop, clock=self.clock)
                self.report = None if result is None else _checked(self.schedule.target, result)
            except BaseException as error:  # noqa: BLE001 - whatever it raises, the next job runs
                self.error = error
        self.done.set()


class Runner:
    """Runs jobs on one cache. `clock` says what time it is; `patience_s` is how long a job is waited for that was told
    to stop."""

    def __init__(self, cache: Cache, clock: Clock = time.time, patience_s: float = PATIENCE_S) -> None:
        self._cache = cache
        self._clock = clock
        self._patience_s = patience_s
        self._layout = Layout(fallback_for(cache.root) or cache.root)
        self.ledger = Ledger(self._layout)
        self._unrecorded: set[tuple[str, str]] = set()  # whose end no disk took

    def run(self, schedule: Schedule, slot: str, stop: threading.Event) -> Run:
        """To its end, or until it is given up after `stop`; how it was. Without a `slot` it is run now.

        LockedError while this job runs, here or elsewhere, and where somebody has run the slot; StoreError where no run
        can be recorded; UsageError where the root is to be a group's and is not. Then nothing was run.
        """
        name = schedule.name
        if self._cache.settings.shared:
            make_root(self._layout.root)
        lock = self._layout.lock(f"job-{name}")
        with ExitStack() as stack:
            stack.enter_context(locked(lock, Subject(f"job {name}"), Patience(0.0)))
            slot = slot or self._free_slot(name)
            claim = self.ledger.claim(name, slot, self._now_ms()) if (name, slot) not in self._unrecorded else None
            if claim is None:
                over = LockedError(f"job {name} has been run for {slot}", next_step="see `modelcache jobs history`")
                over.again = ""
                raise over
            work = _Work(schedule, Config(self._cache, schedule.options), self._clock, stack.pop_all())
        run = self._ended(claim, work, *self._watched(claim, work, stop))
        if run.status == "ok" and schedule.ping:
            ping(name, schedule.ping)
        with suppress(StoreError):
            self.ledger.forget(name, slot, self._cache.settings.metrics_age)
        return run

    def is_open(self, job: str, slot: str) -> bool:
        """Whether there is something to run. StoreError where nobody can tell."""
        return (job, slot) not in self._unrecorded and self.ledger.is_open(job, slot)

    def _free_slot(self, job: str) -> str:
        """One for somebody who runs the job now, and holds its lock: this second, or the next that nobody has."""
        seconds = (slot_of(self._clock() + later, SLOT_NOW) for later in range(MOST_RUNS))
        return next(slot for slot in seconds if self.ledger.read(job, slot) is None)

    def _watched(self, claim: Claim, work: _Work, stop: threading.Event) -> tuple[Status, str]:
        """Waits for the job; how it ended, and why."""
        schedule, begun, told_at, why = work.schedule, time.monotonic(), 0.0, ""
        try:
            threading.Thread(target=work.run, name=f"modelcache-job-{schedule.name}", daemon=True).start()
        except RuntimeError as error:
            work.lock.close()
            return "failed", f"no thread: {error}"
        next_beat = begun + BEAT_S
        while not work.done.wait(LOOK_S):
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_S
                claim.beat()
            if not told_at and (stop.is_set() or now - begun > schedule.max_runtime):
                told_at, why = now, "" if stop.is_set() else f"it took longer than {schedule.max_runtime:g} s"
                work.stop.set()
            if told_at and now - told_at > self._patience_s:
                return ("failed" if why else "stopped"), f"{why or 'it was told to stop'}, and it does not stop"
        return _outcome(work, bool(told_at), why)

    def _ended(self, claim: Claim, work: _Work, status: Status, error: str) -> Run:
        report = work.report if work.done.is_set() else None
        try:
            run = claim.end(status, self._now_ms(), error=error, report=report)
        except StoreError as refusal:
            log.warning("%s %s: how it ended could not be recorded: %s", claim.run.job, claim.run.slot, refusal.line())
            run = claim.run
            self._unrecorded.add((run.job, run.slot))
        level = _LEVELS.get(status, logging.INFO)
        log.log(level, "%s %s: %s%s", run.job, run.slot, _told(status, run.findings), f": {error}" if error else "")
        return run

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _outcome(work: _Work, was_told: bool, why: str) -> tuple[Status, str]:
    error = work.error
    if isinstance(error, ModelCacheError):
        is_stopped = was_told and error.kind == "interrupted"
        return ("stopped", why or error.line()) if is_stopped else ("failed", error.line())
    if error is not None:
        log.error("%s: raised at\n%s", work.schedule.name, where(error))
        return "failed", f"{work.schedule.target} raised {what(error)}"
    if was_told:
        return "stopped", why
    return ("findings" if work.report is not None and work.report.findings else "ok"), ""


def _told(status: Status, findings: int) -> str:
    """`ok`, `1 finding`, `stopped, 2 findings`."""
    found = f"{findings} finding{'s' * (findings != 1)}" if findings else ""
    return found if status == "findings" else ", ".join(filter(None, (status, found)))


def _checked(target: str, result: object) -> Report:
    """What somebody's job gave, with the types that it has to have. UsageError, which shows no value of it."""
    if not isinstance(result, Report):
        raise UsageError(f"{target} returned a {type(result).__name__}, no Report and not None")
    rows = result.rows
    if not isinstance(rows, tuple | list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{target} returned a Report whose rows are no tuple of dicts")
    try:
        findings = operator.index(result.findings)  # the integers of numpy, too
    except TypeError:
        findings = -1
    if not isinstance(result.title, str) or not 0 <= findings <= sys.maxsize:
        raise UsageError(f"{target} returned a Report whose title is no text, or whose findings are no count")
    named = tuple({str(key): cell for key, cell in row.items()} for row in rows)
    return replace(result, rows=named, findings=findings)


def _loaded(target: str) -> Job:
    """The function that `package.module:function` names. Raises whatever its module does."""
    module, _, name = target.partition(":")
    job: Job = getattr(importlib.import_module(module), name)
    return job
