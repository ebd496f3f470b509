"""Tells how far the work on one model is, from a thread of its own, while another does the work.

Responsible for: a progress event four times a second, speeds, and the last event (product H). Leaves to whoever
works: the numbers of each file.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from modelcache.dispatch import Dispatcher
from modelcache.errors import PausedError, told
from modelcache.events import Progress

SAMPLE_S = 0.25
SPEED_OVER_S = 5.0


@contextmanager
def every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Does this work now and then, in a thread of its own, while the block runs; not at all if there is no thread."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            work()

    thread = threading.Thread(target=run, name="modelcache-sampler", daemon=True)
    with suppress(RuntimeError):
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


class Speed:
    """Bytes/s over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def at(self, received: int) -> float:
        """`received` bytes have come by now. Called by one thread, every now and then."""
        now = time.monotonic()
        self._samples.append((now, received))
        while now - self._samples[0][0] > SPEED_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return max(0.0, (received - before) / (now - since)) if now > since else 0.0


class Sampled(Protocol):
    """One file at work. Its numbers are written by one thread and read by another."""

    def measure(self) -> None:
        """Brings its speed up to date."""

    def sample(self, model: str, completed: int, total: int) -> Progress:
        """Its progress event; `completed` of `total` files of the model are right."""
        ...


class Sampler:
    """Used with `with`, by one thread: the event of the file that is followed is told till the next one is."""

    def __init__(self, dispatcher: Dispatcher, model: str, total: int) -> None:
        self._dispatcher = dispatcher
        self._model = model
        self._total = total
        self._guard = threading.Lock()  # no sample of a file comes after its end
        self._followed: Sampled | None = None
        self._ends: dict[str, Progress] = {}
        self._right: set[str] = set()
        self._sampling = every(SAMPLE_S, self._tell)

    def follow(self, file: Sampled) -> None:
        with self._guard:
            self._followed = file

    def end(self, file: Sampled) -> None:
        """Tells how it ended, and follows it no more."""
        with self._guard:
            self._followed = None
            sample = file.sample(self._model, self._completed, self._total)
            self._ends[sample.file] = sample
            self._right.discard(sample.file)
            if sample.status == "success":
                self._right.add(sample.file)
            self._dispatcher.publish(replace(sample, completed_files=self._completed))

    @property
    def _completed(self) -> int:
        return len(self._right)

    def __enter__(self) -> Self:
        self._sampling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampling.__exit__(None, None, None)
        wrong = self._total - self._completed
        is_paused = isinstance(error, (PausedError, KeyboardInterrupt))
        status = "paused" if is_paused else "error" if error or wrong else "completed"
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else told(error)
        text = said or f"{wrong} of {self._total} files are not right"
        ends = self._ends.values()
        self._dispatcher.publish(
            Progress(
                self._model, status, bytes_downloaded=sum(end.bytes_downloaded for end in ends),
                total_bytes=sum(end.total_bytes for end in ends), source=next((end.source for end in ends), ""),
                completed_files=self._completed, total_files=self._total, done=True,
                error="" if status == "completed" else text,
            )
        )  # fmt: skip

    def _tell(self) -> None:
        with self._guard:
            if self._followed is not None:
                self._followed.measure()
                self._dispatcher.publish(self._followed.sample(self._model, self._completed, self._total))
