"""The connections of one transfer: who works, who brings the end of whose span as well, and what they have received.

Responsible for: that bookkeeping, from the moment a worker starts to its last report. Leaves to `transfer`: whom to
start, what an end means, and blame.
"""

import queue
import threading
import time
from collections.abc import Iterator

from modelcache.transfer.hedge import Shadow
from modelcache.transfer.worker import Worker

GRACE_S = 0.2  # for a worker to report after its request was ended


class Staff:
    """Changed by the transfer's thread alone; `received` and `claim_alone` are for any thread."""

    def __init__(self) -> None:
        self._workers: set[Worker] = set()
        self._hedges: dict[Worker, tuple[Worker, Shadow]] = {}  # by the slow worker whose end they bring as well
        self._reports: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._received = 0
        self._exclusive: Worker | None = None

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers))

    @property
    def received(self) -> int:
        """Bytes that came over the network, those thrown away included."""
        with self._guard:
            return self._received + sum(worker.received for worker in self._workers)

    @property
    def is_exclusive(self) -> bool:
        """Whether somebody has the file to itself."""
        return self._exclusive is not None

    def claim_alone(self, worker: Worker) -> bool:
        """For a worker whose source sends the whole file: nobody else starts while it runs. False if others do."""
        with self._guard:
            if self._workers == {worker}:
                self._exclusive = worker
                return True
        return False

    def admit(self, worker: Worker) -> bool:
        """It may start; False while somebody has the file to itself."""
        with self._guard:
            if self._exclusive is None:
                self._workers.add(worker)
            return self._exclusive is None

    def start(self, worker: Worker) -> None:
        worker.start(self._reports.put)

    def next_report(self, timeout: float) -> Worker | None:
        """A worker that has ended; it is still one of ours."""
        try:
            return self._reports.get(timeout=max(0.001, timeout))
        except queue.Empty:
            return None

    def leave(self, worker: Worker) -> None:
        """Who brings the end of its span as well ends, too."""
        self.pop_hedged(worker)
        if worker in self._hedges:
            self._hedges.pop(worker)[0].end(None)
        with self._guard:
            self._workers.discard(worker)
            if self._exclusive is worker:
                self._exclusive = None
            self._received += worker.received

    # -- the slow and their hedges ------------------------------------------------------------------------------------

    def slowest(self, now: float) -> tuple[Worker, float] | None:
        """Who needs longest for what is left, with its bytes/s; of those that nobody helps yet."""
        hedges = {hedge for hedge, _ in self._hedges.values()}
        busy = [one for one in self._workers if not (one in hedges or one in self._hedges or one.is_blocked)]
        rates = {one: rate for one in busy if (rate := one.rate(now)) is not None}
        slow = max(rates, key=lambda one: one.left.size / max(1.0, rates[one]), default=None)
        return (slow, rates[slow]) if slow else None

    @property
    def has_hedge(self) -> bool:
        return bool(self._hedges)

    def idle(self, now: float) -> int:
        """How many take a place without bringing anything: asleep, or waiting for bytes that others are to bring."""
        blocked = sum(worker.is_blocked for worker in self._workers)
        asleep = sum(worker.sleeps(now) for worker in self._workers)
        return asleep + (blocked if blocked < len(self._workers) else 0)

    def hedge(self, slow: Worker, worker: Worker, shadow: Shadow) -> None:
        """`worker` brings the end of the slow one's span into memory."""
        self._hedges[slow] = (worker, shadow)

    def pop_hedged(self, worker: Worker) -> tuple[Worker, Shadow] | None:
        """The slow worker that this one was to help, and what it has brought."""
        for slow, (hedge, shadow) in self._hedges.items():
            if hedge is worker:
                del self._hedges[slow]
                return slow, shadow
        return None

    # -- the end ------------------------------------------------------------------------------------------------------

    def dismiss(self) -> Iterator[Worker]:
        """Ends all requests; gives each worker once it writes no more. Threads that do not come back are fenced."""
        for worker in self:
            worker.end(None)
        end = time.monotonic() + GRACE_S
        while self._workers and (ended := self.next_report(end - time.monotonic())):
            if not ended.abandoned:
                yield ended
        for worker in self:
            worker.abandon()
            yield worker
