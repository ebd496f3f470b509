"""Works side by side, in as many threads as there are processors: hashing lets go of Python's lock.

Responsible for: handing out works in order, giving results as they come, and leaving no thread behind.
Leaves to others: what a work is. One that goes on for long asks now and then whether it is still wanted.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

MOST = 8  # threads; more do not read faster from one disk, and each holds a buffer

T = TypeVar("T")
Going = Callable[[], None]  # raises once nobody waits for the result any more


def processors() -> int:
    """How many this process may use."""
    with_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if with_affinity else os.cpu_count() or 1


def abreast(works: Iterable[Callable[[Going], T]], threads: int = 0) -> Generator[T, None, None]:
    """Does all works, by default in a thread for each processor, at most `MOST`; yields their results as they come.

    `works` is advanced by one thread at a time, just before its next work is begun. Raises at once what the first
    work raised that failed. When the iterator is closed, or has raised, no thread is at work any more: those that
    were are told through `going`.
    """
    team = _Team(iter(works))
    team.start(threads or min(MOST, processors()))
    try:
        yield from team.results()
    finally:
        team.end()


class _Over(Exception):  # noqa: N818 - not an error
    """Nobody waits for the results any more."""


@dataclass(frozen=True, slots=True)
class _Result(Generic[T]):
    value: T


class _Team(Generic[T]):
    def __init__(self, works: Iterator[Callable[[Going], T]]) -> None:
        self._works = works
        self._guard = threading.Lock()
        self._over = False
        self._told: SimpleQueue[_Result[T] | BaseException | None] = SimpleQueue()  # None: a thread has ended
        self._threads: list[threading.Thread] = []

    def start(self, number: int) -> None:
        """Starts as many as there may be; where no thread can be had, the caller does the works."""
        for _ in range(number):
            thread = threading.Thread(target=self._run, name="modelcache-reader", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                break
            self._threads.append(thread)

    def results(self) -> Iterator[T]:
        if not self._threads:
            yield from (work(self._going) for work in self._works)
        ended = 0
        while ended < len(self._threads):
            outcome = self._told.get()
            if outcome is None:
                ended += 1
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                yield outcome.value

    def end(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()

    def _going(self) -> None:
        if self._over:
            raise _Over

    def _run(self) -> None:
        try:
            while not self._over and (work := self._next()) is not None:
                self._told.put(_Result(work(self._going)))
        except _Over:
            pass
        except BaseException as error:  # noqa: BLE001 - the caller's to judge
            self._told.put(error)
        finally:
            self._told.put(None)

    def _next(self) -> Callable[[Going], T] | None:
        with self._guard:
            return next(self._works, None)
