"""Runs jobs when they are due, until it is told to stop: as a program, or in the background of a notebook.

Responsible for: waking up, which APScheduler does, and looking once a minute for what was missed: while no daemon ran,
while the machine slept, or by a daemon that was killed. Nothing is kept here: schedules are settings, and what has run
is in the ledger, so that a restart moves nothing and several daemons of one store share the slots.
Leaves to others: which slot is due (`schedule`), running it (`runner`).
"""

import atexit
import logging
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from apscheduler.events import EVENT_SCHEDULER_STARTED  # type: ignore[import-untyped]
from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]
from apscheduler.schedulers.base import BaseScheduler  # type: ignore[import-untyped]
from apscheduler.schedulers.blocking import BlockingScheduler  # type: ignore[import-untyped]
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]

from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelCacheError, StoreError, line_of
from modelcache.jobs.job import Clock
from modelcache.jobs.runner import PATIENCE_S, Runner
from modelcache.jobs.schedule import GRACE_S, Schedule, schedules
from modelcache.jobs.signals import Signals
from modelcache.progress import kernel
from modelcache.units import moment

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Timing:
    """What time it is; how long a job is waited for that was told to stop; how often what was missed is looked for."""

    clock: Clock = time.time
    patience_s: float = PATIENCE_S
    look_every_s: float = 60.0


class Trigger(BaseTrigger):  # type: ignore[misc]
    """When a schedule begins next, by its own clock line and delay."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime | None:
        instant = self._schedule.next(now.timestamp())
        return None if instant is None else datetime.fromtimestamp(instant, UTC)


class Daemon:
    """The schedules of a cache, and a scheduler of APScheduler that begins their runs. UsageError for a configuration
    file that cannot be read; what is wrong with one job is logged, and the others run."""

    def __init__(self, cache: Cache, scheduler: BaseScheduler, timing: Timing) -> None:
        self._root = cache.root
        self._clock = timing.clock
        self._look_every_s = timing.look_every_s
        self._runner = Runner(cache, timing.clock, timing.patience_s)
        self._scheduler = scheduler
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._running: dict[str, threading.Thread] = {}  # by job
        self._started = threading.Event()
        scheduler.add_listener(self._has_started, EVENT_SCHEDULER_STARTED)
        self._said: set[str] = set()
        self.schedules = schedules(cache.root)
        for schedule in self.schedules:
            if schedule.fault:
                self._say_once(schedule.fault)
            elif schedule.runs_by_itself:
                rules: dict[str, Any] = {"coalesce": True, "max_instances": 1, "misfire_grace_time": int(GRACE_S)}
                self._scheduler.add_job(self._fire, Trigger(schedule), args=[schedule], id=schedule.name, **rules)

    def start(self) -> None:
        """Returns when the scheduler does: at its end, or at once."""
        threading.Thread(target=self._look, name="modelcache-jobs-look", daemon=True).start()
        self._scheduler.start()

    def _has_started(self, _event: object) -> None:
        self._started.set()
        plan = _plan(self.schedules, self._clock())
        log.info("jobs of %s: %s; settings count as they are now, until it is started again", self._root, plan)

    def stop(self) -> None:
        """Tells what runs to stop at its next checkpoint, and returns when it has: within its patience."""
        with self._guard:
            self._stop.set()
        self._started.wait()  # what is told to stop before it has started would never stop
        self._scheduler.shutdown(wait=True)
        self.wait()

    def wait(self) -> None:
        """Until nothing runs any more."""
        with self._guard:
            threads = list(self._running.values())
        for thread in threads:
            thread.join()

    def _look(self) -> None:
        """Begins what should have begun by now and has not, or was lost on the way.

        It counts real seconds: a clock that was set back must not keep it from looking.
        """
        while not self._stop.is_set():
            for schedule in self.schedules:
                self._fire(schedule)
            self._stop.wait(self._look_every_s)

    def _fire(self, schedule: Schedule) -> None:
        """Begins the run that is due, if nobody has. In a daemon thread: a job that hangs must not keep the process."""
        try:
            slot = schedule.due(self._clock())
            with self._guard:
                if not slot or self._stop.is_set() or schedule.name in self._running:
                    return
                if self._runner.is_open(schedule.name, slot):
                    thread = threading.Thread(target=self._run, args=(schedule, slot), daemon=True)
                    thread.start()
                    self._running[schedule.name] = thread
        except Exception as error:  # noqa: BLE001 - next time it may be begun
            self._say_once(f"{schedule.name}: {line_of(error)}", f"{schedule.name}: {_cause(error)}")

    def _run(self, schedule: Schedule, slot: str) -> None:
        try:
            self._runner.run(schedule, slot, self._stop)
        except LockedError as error:
            with suppress(StoreError):
                if self._runner.is_open(schedule.name, slot):  # else another daemon runs it, as it should be
                    self._say_once(error.message)
        except Exception as error:  # noqa: BLE001 - the next one runs all the same
            self._say_once(f"{schedule.name}: {line_of(error)}", f"{schedule.name}: {_cause(error)}")
        finally:
            with self._guard:
                self._running.pop(schedule.name, None)

    def _say_once(self, words: str, about: str = "") -> None:
        """`about` is what it comes to, where the words tell more: the file of a slot, for example."""
        if (about or words) not in self._said:
            self._said.add(about or words)
            log.warning("%s", words)


def serve(cache: Cache, timing: Timing = Timing()) -> None:
    """Runs jobs until SIGTERM or SIGINT; then what runs stops at its next checkpoint. A second signal ends at once.

    For the main thread of a program.
    """
    daemon = Daemon(cache, BlockingScheduler(timezone=UTC), timing)
    Signals(threading.Thread(target=daemon.stop, name="modelcache-jobs-end", daemon=True).start)
    daemon.start()
    daemon.wait()
    cache.close()
    log.info("stopped")


class Jobs:
    """Jobs that run in the background of this process, and end with it: with the kernel, in a notebook."""

    def __init__(self, cache: Cache) -> None:
        self._root = cache.root
        self._scheduler = BackgroundScheduler(timezone=UTC, daemon=True)
        self._daemon = Daemon(cache, self._scheduler, Timing())
        self._daemon.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """What runs stops at its next checkpoint. Calling it again does nothing."""
        if self._scheduler.running:
            self._daemon.stop()

    def __repr__(self) -> str:
        if not self._scheduler.running:
            return f"jobs of {self._root}: stopped"
        plan = _plan(self._daemon.schedules, time.time())
        return f"jobs of {self._root}, which end with this process: {plan}"


def start(cache: Cache) -> Jobs:
    """Says on stderr, or below the cell of a notebook, what runs when, and that it ends with this process."""
    jobs = Jobs(cache)
    print(jobs, file=sys.stdout if kernel.is_here() else sys.stderr)
    return jobs


def _cause(error: Exception) -> str:
    """What is to be done about it: of what has one remedy people hear once, whichever file it was."""
    return (isinstance(error, ModelCacheError) and error.next_step) or type(error).__name__


def _plan(schedules: tuple[Schedule, ...], now: float) -> str:
    nexts = {one.name: instant for one in schedules if (instant := one.next(now)) is not None}
    plan = [f"{name} {moment(int(nexts[name] * 1000))}" for name in sorted(nexts, key=nexts.__getitem__)]
    return ", ".join(plan) or "none runs by itself"
