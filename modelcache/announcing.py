"""What is told of a download: to subscribers as events, to the state as its record.

Responsible for: the words, and how often. Leaves to others: the numbers (`tally`), what the record says (`account`),
delivering (`dispatch`).
"""

from dataclasses import replace
from typing import Any

from modelcache.account import Account
from modelcache.dispatch import Subscriber
from modelcache.errors import CancelledError, ModelCacheError, NotFoundError, VerificationError, line_of, told
from modelcache.events import DownloadComplete, Event, Fact, FactType
from modelcache.order import Fetched, Workshop
from modelcache.outcome import UNVERIFIED, File, Model, in_place_text
from modelcache.states import State
from modelcache.store.locks import Pulse
from modelcache.tally import Tally
from modelcache.task import Task

MOST_SAMPLES = 2  # of running files, each time: at most 10 events a second per download (product H)
DRAIN_S = 1.0
FINAL = (VerificationError.kind, NotFoundError.kind)  # errors that asking the same again does not mend


class Announcer:
    """Of one download. `subscriber` hears of this one alone. `request` is what was asked, for the record."""

    def __init__(self, tally: Tally, shop: Workshop, subscriber: Subscriber | None, request: str) -> None:
        self._tally = tally
        self._dispatcher = shop.dispatcher
        self._subscriber = subscriber
        self._account = Account(tally.order, shop.layout, shop.dispatcher, request)
        self._turn = 0  # whose turn it is to be told of, where many files run
        self.id = self._account.id

    # -- what happened ------------------------------------------------------------------------------------------------

    def tell(self, kind: FactType, message: str, file: str = "", source: str = "", **more: Any) -> None:
        order = self._tally.order
        self._publish(Fact(kind, order.id, message, file, source, **{"version": order.version} | more))

    def begins(self) -> None:
        """Under way: one more attempt."""
        self._account.begins(self._tally.order, self._tally.tasks)

    def plan(self) -> None:
        """What it consists of is known."""
        order = self._tally.order
        known = {"layers": len(order.files), "total_size": sum(file.size or 0 for file in order.files)}
        lacking = f"; {', '.join(order.lacking)}: optional, and not there" if order.lacking else ""
        self.tell("manifest_pulled", f"{len(order.files)} files{lacking}", details=known)
        self.record(State.RESOLVING)

    def file(self, task: Task, kind: FactType, message: str, source: str) -> None:
        """Something happened to one file."""
        self.tell(kind, message, task.file.path, source)
        task.hear(kind)
        if kind in ("resumed", "source_failed"):
            self.record(self._tally.state)

    def file_ready(self, task: Task, done: Fetched, source: str) -> None:
        order = self._tally.order
        if done.source == "cache":
            self._account.found(order, done)
        verified = order.vouched(task.file)[1]
        self.file(task, "file_ready", in_place_text(done.status, verified), source)
        if verified == UNVERIFIED:
            message = f"nothing was known to verify it against; sha256 {done.sha256.hex}"
            self.file(task, "unverified", message, "")

    def record(self, state: State, error: BaseException | None = None) -> None:
        """Foreign errors by their kind alone: their texts may hold anything."""
        order, tasks = self._tally.order, self._tally.tasks
        text = error.message if isinstance(error, ModelCacheError) else type(error).__name__ if error else ""
        if isinstance(error, CancelledError):
            self._account.is_cancelled(order, tasks, text)
        else:
            is_final = isinstance(error, ModelCacheError) and error.kind in FINAL
            self._account.stands(order, tasks, state, text, is_final=is_final)

    def end(self, state: State, error: BaseException | None, result: Model | File | None) -> None:
        """The last events. Whoever waits for the result has been told all of it when it comes."""
        self.record(state, error)
        line = line_of(error)
        kind: FactType = "completed" if error is None else "paused" if state is State.PAUSED else "error"
        self.tell(kind, line or f"{self._tally.order.ref} is here")
        self._publish(replace(self._tally.sample(state), done=True, error=told(error)))
        if result is not None and error is None:
            self._publish(DownloadComplete(self.id, result.path))
        self._dispatcher.drain(DRAIN_S)

    # -- how far it is ------------------------------------------------------------------------------------------------

    def first(self) -> None:
        """The first sample, before a byte has come."""
        self._sample(self._tally.tasks[0], self._tally.completed)

    def moved(self) -> None:
        """Somebody else fetches it: what has moved since it was told last."""
        moved = [task for task in self._tally.tasks if task.here != task.shown]
        for task in moved[:MOST_SAMPLES]:
            self._sample(task, self._tally.completed)

    def report(self, pulse: Pulse | None) -> None:
        """How far files have come: each in its turn, where there are many. Who waits for the lock is shown it, too."""
        self.report_ends()
        tasks = self._tally.tasks
        for task in tasks:
            task.measure()
        if pulse:
            pulse.show(sum(task.hashed for task in tasks))
        running = [task for task in tasks if task.is_running]
        completed = self._tally.completed
        for index in range(min(MOST_SAMPLES, len(running))):
            self._sample(running[(self._turn + index) % len(running)], completed)
        self._turn += MOST_SAMPLES

    def report_ends(self) -> None:
        ended = [task for task in self._tally.tasks if task.is_over and not task.told]
        completed = self._tally.completed
        for task in ended:
            task.told = True
            self._sample(task, completed)

    def installing(self) -> None:
        """All bytes are here, and every file was told to its end; what is copied to the output may take its time."""
        self._publish(self._tally.sample(State.INSTALLING))

    def _sample(self, task: Task, completed: int) -> None:
        task.shown = task.here
        self._publish(task.sample(self._tally.order.id, completed, len(self._tally.tasks)))

    def _publish(self, event: Event) -> None:
        self._dispatcher.publish(event, self._subscriber)
