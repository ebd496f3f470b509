"""One request for a model under way: the handle a user holds, and the thread that carries it out.

Responsible for: the states, pause and resume in every one of them, several files at once, and the order *fetch,
link, record, registry*: whatever is killed when, what is visible was proven, and the next request does only what
is left. Leaves to others: each file (`filefetch`), names and records (`install`), hits (`cache`).
"""

import enum
import os
import threading
import time
from collections import deque
from dataclasses import dataclass

from modelcache.dispatch import Subscriber
from modelcache.errors import CancelledError, ModelCacheError, PausedError, StoreError, UsageError, VerificationError
from modelcache.events import DownloadComplete, Fact, FactType, Progress
from modelcache.filefetch import FileFetch
from modelcache.install import install
from modelcache.model import ModelFile
from modelcache.order import Fetched, Order, Workshop
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.store.disk import remove_tree
from modelcache.store.layout import key_of
from modelcache.store.partial import found
from modelcache.transfer.control import Control

SAMPLE_S = 0.2
SPEED_OVER_S = 5.0
STOP_WITHIN_S = 2.0


class State(enum.StrEnum):
    """The lifecycle (product A9)."""

    PENDING = "pending"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    RESUMING = "resuming"
    VERIFYING = "verifying"
    INSTALLING = "installing"
    READY = "ready"
    PAUSED = "paused"
    FAILED = "failed"


ENDED = (State.READY, State.PAUSED, State.FAILED)
EVENT_STATUS = {
    State.PENDING: "attempting", State.RESOLVING: "attempting", State.DOWNLOADING: "downloading",
    State.RESUMING: "downloading", State.VERIFYING: "downloading", State.INSTALLING: "downloading",
    State.READY: "completed", State.PAUSED: "paused", State.FAILED: "error",
}  # fmt: skip


@dataclass(slots=True)
class _Task:
    """One file of the order, as far as it has come."""

    file: ModelFile
    fetch: FileFetch | None = None
    done: Fetched | None = None
    error: BaseException | None = None
    told: bool = False  # its last progress event went out

    @property
    def total(self) -> int:
        if self.done:
            return self.done.size
        transfer = self.fetch.transfer if self.fetch else None
        return (transfer.partial.size if transfer else None) or self.file.size or 0

    @property
    def here(self) -> int:
        if self.done:
            return self.done.size
        transfer = self.fetch.transfer if self.fetch else None
        return transfer.partial.written_bytes if transfer else 0


class Download:
    """A request under way. Every method may be called from any thread; only `result` and `wait_stopped` block."""

    def __init__(self, order: Order, workshop: Workshop, subscriber: Subscriber | None = None) -> None:
        self.id = os.urandom(8).hex()
        self.order = order
        self._shop = workshop
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._state = State.PENDING
        self._result: Model | File | None = None
        self._error: BaseException | None = None
        self._control = Control()
        self._tasks = [_Task(file) for file in order.files]
        self._samples: deque[tuple[float, int]] = deque()
        self._subscriber = subscriber
        self._begin()

    # -- for users ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def has_ended(self) -> bool:
        return self._state in ENDED

    @property
    def progress(self) -> Progress:
        """Of the whole model: bytes of all its files."""
        return self._sample(self._tasks, "")

    def result(self, timeout: float | None = None) -> Model | File:
        """Waits for the end. Raises what went wrong, or TimeoutError after `timeout` seconds."""
        self._check_process()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._state not in ENDED:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"{self.order.ref} is still {self._state} after {timeout:g} s")
                self._changed.wait(SAMPLE_S)  # short, so that Ctrl-C is seen at once
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def pause(self) -> None:
        """Ends all requests and keeps every byte. A download that has ended stays as it is."""
        self._check_process()
        self._control.stop(PausedError(f"{self.order.ref} was paused", next_step="run it again to go on"))

    def cancel(self) -> None:
        """Ends all requests and removes what is not complete. Files that are complete stay in the store."""
        self._check_process()
        self._control.stop(CancelledError(f"{self.order.ref} was cancelled"))
        if self._state in (State.PAUSED, State.FAILED):
            self._discard_partials()

    def resume(self) -> None:
        """Goes on after a pause or a failure; a download that runs or is ready is left alone."""
        self._check_process()
        with self._changed:
            if self._state not in (State.PAUSED, State.FAILED):
                return
            self._state, self._error, self._control = State.PENDING, None, Control()
            self._tasks = [_Task(task.file, done=task.done, told=task.told) for task in self._tasks]
        self._begin()

    retry = resume

    def wait_stopped(self, timeout: float) -> bool:
        """After `pause`: waits until this download writes no more; False if that takes longer than `timeout` s."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="modelcache-download", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        dispatcher = self._shop.dispatcher
        unsubscribe = dispatcher.subscribe(self._subscriber) if self._subscriber else None
        state = self._carry_out()
        dispatcher.drain(STOP_WITHIN_S)  # whoever waits for the result has seen all of it
        if unsubscribe:
            unsubscribe()
        self._enter(state)

    def _carry_out(self) -> State:
        """Does everything, and tells how it ended."""
        self._tell("started", f"fetching {self.order.ref}")
        try:
            self._check_digests()
            self._fetch_all()
            result = self._install()
        except (PausedError, StoreError) as error:
            if isinstance(error, CancelledError):
                self._discard_partials()
            return self._end(State.PAUSED, error)  # also when the disk refuses: it goes on when that is mended (A8)
        except BaseException as error:  # noqa: BLE001 - raised by `result` in the thread that asks
            return self._end(State.FAILED, error)
        self._result = result
        return self._end(State.READY, None)

    def _check_digests(self) -> None:
        self._enter(State.RESOLVING)
        for file in self.order.files:
            if self.order.require_digest and not (file.digests or file.pieces):
                raise VerificationError(f"nothing is known to verify {file.path} against", next_step="pass --sha256")

    def _fetch_all(self) -> None:
        """Several files at once. One that fails does not stop the others; a disk that refuses does (A12)."""
        left = iter([task for task in self._tasks if task.done is None])
        guard = threading.Lock()

        def work() -> None:
            while not self._control.stopped:
                with guard:
                    task = next(left, None)
                if task is None:
                    return
                self._fetch_one(task)

        self._enter(State.DOWNLOADING)
        count = min(self._shop.settings.parallel_files, len(self._tasks))
        threads = [threading.Thread(target=work, name="modelcache-file", daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(SAMPLE_S)
                self._report()
        self._report()

    def _fetch_one(self, task: _Task) -> None:
        def tell(kind: FactType, message: str, source: str) -> None:
            self._tell(kind, message, task.file.path, source)
            if kind in ("resumed", "verifying"):
                self._enter(State.RESUMING if kind == "resumed" else State.VERIFYING)
            elif kind == "source_tried" and self._state is not State.RESUMING:
                self._enter(State.DOWNLOADING)

        try:
            task.fetch = FileFetch(self.order, task.file, self._shop, self._control, tell)
            task.done = task.fetch.run()
            tell("file_ready", f"{task.done.status}, {task.done.verified(self.order.proof)}", task.done.source)
            if task.done.verified(self.order.proof) == UNVERIFIED:
                tell("unverified", f"nothing was known to verify it against; sha256 {task.done.sha256.hex}", "")
        except BaseException as error:  # noqa: BLE001 - raised by `_install`, after the other files had their chance
            task.error = error
            if not isinstance(error, ModelCacheError) or isinstance(error, StoreError):
                self._control.stop(PausedError("another file of this model failed"))

    def _install(self) -> Model | File:
        """Names and records what is here, also when other files failed; then raises their error."""
        done = [task.done for task in self._tasks if task.done]
        errors = [task.error for task in self._tasks if task.error]
        errors.sort(key=lambda error: isinstance(error, PausedError))
        if not errors:
            self._control.check()
            self._enter(State.INSTALLING)
            return install(self.order, self._shop, done, self._tell)
        if done and self.order.cached and self.order.version:
            install(self.order, self._shop, done, self._tell)
        worst = errors[0]
        if isinstance(worst, ModelCacheError) and len(errors) > 1:
            worst.message += f" (and {len(errors) - 1} more files failed)"
        raise worst

    def _discard_partials(self) -> None:
        for task in self._tasks:
            if not task.done:
                key = key_of(task.file)
                base = self._shop.layout.partials
                for name in found(base, key):
                    remove_tree(os.path.join(base, name))

    # -- telling ------------------------------------------------------------------------------------------------------

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _end(self, state: State, error: BaseException | None) -> State:
        publish = self._shop.dispatcher.publish
        self._error = error
        text = str(error) if error else ""
        kind: FactType = "completed" if error is None else "paused" if state is State.PAUSED else "error"
        line = error.line() if isinstance(error, ModelCacheError) else text
        self._tell(kind, line or f"{self.order.ref} is here")
        whole = self._sample(self._tasks, "", state)
        publish(Progress(**{name: getattr(whole, name) for name in whole.__slots__} | {"done": True, "error": text}))
        if self._result is not None and error is None:
            publish(DownloadComplete(self.id, self._result.path))
        return state

    def _tell(self, kind: FactType, message: str, file: str = "", source: str = "", path: str = "") -> None:
        order = self.order
        self._shop.dispatcher.publish(Fact(kind, order.id, message, file, source, order.version, path))

    def _report(self) -> None:
        """A sample per file that moved, every 0.2 s."""
        for task in self._tasks:
            if task.fetch and not task.told:
                task.told = task.done is not None
                self._shop.dispatcher.publish(self._sample([task], task.file.path))

    def _sample(self, tasks: list[_Task], file: str, state: State | None = None) -> Progress:
        transfers = [task.fetch.transfer for task in tasks if task.fetch and task.fetch.transfer]
        status = "success" if file and tasks[0].done else EVENT_STATUS[state or self._state]
        return Progress(
            model=self.order.id,
            status=status,
            file=file,
            bytes_downloaded=sum(task.here for task in tasks),
            total_bytes=sum(task.total for task in tasks),
            speed=self._speed(),
            retry_count=sum(max(0, transfer.tries - 1) for transfer in transfers),
            source=transfers[-1].source_kind if transfers else "",
            gateway=transfers[-1].source if transfers else "",
            completed_files=sum(task.done is not None for task in self._tasks),
            total_files=len(self._tasks),
        )

    def _speed(self) -> float:
        """Bytes/s over the last seconds, of all files together."""
        now = time.monotonic()
        received = sum(task.fetch.transfer.received for task in self._tasks if task.fetch and task.fetch.transfer)
        self._samples.append((now, received))
        while now - self._samples[0][0] > SPEED_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return max(0.0, (received - before) / (now - since)) if now > since else 0.0

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError("this download belongs to the process before the fork", next_step="fetch it again here")
