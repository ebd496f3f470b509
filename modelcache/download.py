"""One request for a model under way: the handle a user holds, and the thread that carries it out.

Responsible for: the states, pause and resume in every one of them, several files at once, and the order *fetch,
link, record, registry*: whatever is killed when, what is visible was proven, and the next request does only what
is left. Leaves to others: each file (`filefetch`), names and records (`install`), hits (`cache`).
"""

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from modelcache.account import Account
from modelcache.dispatch import Subscriber
from modelcache.errors import (
    AllSourcesFailedError,
    CancelledError,
    LockedError,
    LostError,
    ModelCacheError,
    NotFoundError,
    PausedError,
    StoreError,
    UsageError,
    VerificationError,
    of_several,
    told,
)
from modelcache.events import DownloadComplete, Fact, FactType, Progress
from modelcache.filefetch import FileFetch, discard
from modelcache.install import install
from modelcache.model import Digest, Manifest, ModelFile
from modelcache.order import Fetched, Order, Workshop
from modelcache.ordering import known_meaning
from modelcache.outcome import UNVERIFIED, File, Model, in_place_text
from modelcache.resolving import resolved
from modelcache.sampling import SAMPLE_S, every
from modelcache.states import ENDED, EVENT_STATUS, REST_STATUS, State, stage_text
from modelcache.store.blobs import find
from modelcache.store.disk import store_error
from modelcache.store.gate import await_sweep
from modelcache.store.locks import Holder, Patience, Pulse, Subject, locked
from modelcache.store.shelf import Shelf
from modelcache.store.watch import Far, Watch
from modelcache.task import Task, overall
from modelcache.transfer.control import Control

MOST_SAMPLES = 2  # of running files, each time: at most 10 events a second per download (product H)
WAIT_S = 0.2
LOST_ROUNDS = 3
DRAIN_S = 1.0
FINAL = (VerificationError.kind, NotFoundError.kind)  # errors that asking the same again does not mend

Result = Model | File
Renew = Callable[[Manifest | None], tuple[Order, Result | None]]


class Download:
    """A request under way. Every method may be called from any thread; only `result` and `wait_stopped` block.

    `renew` tells what is wanted, and what is here by now, when nobody else has the model any more, or its hub has said
    what it consists of. `request` is what
    was asked, for the record. The `id` is the same each time the same is fetched to the same place.
    """

    def __init__(
        self,
        order: Order,
        workshop: Workshop,
        renew: Renew,
        subscriber: Subscriber | None = None,
        request: str = "",
    ) -> None:
        self._account = Account(order, workshop.layout, workshop.dispatcher, request)
        self.id = self._account.id
        self.order = order
        self._shop = workshop
        self._renew = renew
        self._subscriber = subscriber
        self._pid = os.getpid()
        self._changed = threading.Condition()  # guards what follows
        self._state = State.PENDING
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._control = Control()
        self._tasks = [Task(file) for file in order.files]
        self._where = ""  # who is asked what the model consists of
        self._goes_on = False  # `resume` was called while a pause was still taking effect
        self._cancelled = False
        self._is_held = False
        self._thread: threading.Thread | None = None
        self._pulse: Pulse | None = None
        self._ticks = 0  # of copying to the output

    def __repr__(self) -> str:
        return f"<Download {self.order.ref} {self._state}>"

    # -- for users ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state if self._state in ENDED else overall(self._tasks, self._state)

    @property
    def has_ended(self) -> bool:
        return self._state in ENDED

    @property
    def state_text(self) -> str:
        """The stage in words for people (product D3)."""
        is_image = self.order.ref.startswith(("ollama:", "oci:"))
        return stage_text(self.state, self._where, "model layers" if is_image else "files")

    @property
    def progress(self) -> Progress:
        """Of the whole model: bytes of all its files."""
        self._check_process()
        return self._sample(self.state)

    @property
    def kept_bytes(self) -> int:
        """What of the unfinished files a later run need not fetch again."""
        return sum(task.kept for task in self._tasks if not task.done)

    def to_json(self) -> dict[str, Any]:
        """The state of the model (product D3)."""
        now = self.progress
        return {
            "status": REST_STATUS[self.state], "total_bytes": now.total_bytes, "downloaded_bytes": now.bytes_downloaded,
            "progress_percent": now.percent, "manifest_pulled": self.state not in (State.PENDING, State.RESOLVING),
            "resume_supported": True,
        }  # fmt: skip

    def result(self, timeout: float | None = None) -> Result:
        """Waits for the end. Raises what went wrong, or TimeoutError after `timeout` seconds."""
        self._check_process()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._state not in ENDED:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"{self.order.ref} is still {self.state} after {timeout:g} s")
                if self._thread is not None and not self._thread.is_alive():
                    self._end(State.FAILED, RuntimeError("the thread of this download died"))
                self._changed.wait(WAIT_S)  # short, so that Ctrl-C is seen at once
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    @property
    def is_held(self) -> bool:
        """Whether somebody paused it: it goes on when he says so, and a queue leaves it alone."""
        return self._is_held

    def pause(self) -> None:
        """Ends all requests and keeps every byte, until `resume`. A download that has ended stays as it is."""
        with self._changed:
            self._is_held = True
        self.interrupt()

    def interrupt(self) -> None:
        """The same, but whoever carries out downloads may go on with it: the process ends, or the queue pauses."""
        self._check_process()
        with self._changed:
            self._goes_on = False
            self._control.stop(PausedError(f"{self.order.ref} was paused", next_step="run it again to go on"))

    def cancel(self) -> None:
        """Ends all requests and removes what is not complete. Files that are complete stay in the store."""
        self._check_process()
        with self._changed:
            if self._state is State.READY:
                return
            self._goes_on, self._cancelled = False, True
            self._control.stop(self._cancellation())
            was_over = self._state in ENDED
        if was_over:
            self._discard()
            self._error = self._cancellation()
            self._record(State.PAUSED, self._error)

    def resume(self) -> None:
        """Goes on after a pause or a failure; a download that runs or is ready is left alone."""
        self._check_process()
        with self._changed:
            self._is_held = False
            if self._state in ENDED and self._state is not State.READY:
                self._reset()
                self.begin()
            else:
                self._goes_on = self._control.stopped

    retry = resume

    def wait_stopped(self, timeout: float) -> bool:
        """After `pause`: waits until this download writes no more; False if that takes longer than `timeout` s."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    # -- for the cache ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Returns at once; also where there is no thread to be had: then `result` says so."""
        with self._changed:
            try:
                (self._thread,) = _started(self._run, "modelcache-download", 1)
            except StoreError as error:
                self._end(State.PAUSED, error)

    def be_ready(self, result: Result) -> None:
        """Everything is here already: ends before it began."""
        self._found(result)
        self._announce(State.READY, None)
        self._state = State.READY

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Whatever happens, the download ends in a state that says so: somebody waits for it."""
        is_over = False
        while not is_over:
            error: BaseException | None = None
            try:
                state, error = self._carry_out()
                self._announce(state, error)
                is_over = self._settle(state, error)
            except BaseException as unexpected:  # noqa: BLE001 - raised by `result` in the thread that asks
                self._record(State.FAILED, error or unexpected)
                self._end(State.FAILED, error or unexpected)
                is_over = True

    def _settle(self, state: State, error: BaseException | None) -> bool:
        """Ends in this state; False if it is to go on after all. A cancel that came late counts, too."""
        with self._changed:
            if self._goes_on and state is State.PAUSED:
                self._reset()
                return False
            late = self._cancelled and state is not State.READY and not isinstance(error, CancelledError)
        if late:
            self._discard()
            state, error = State.PAUSED, self._cancellation()
            self._record(state, error)
        self._end(state, error)
        return True

    def _end(self, state: State, error: BaseException | None) -> None:
        with self._changed:
            self._state, self._error = state, error
            self._changed.notify_all()

    def _reset(self) -> None:
        self._state, self._error, self._control = State.PENDING, None, Control()
        self._goes_on = self._cancelled = False
        self._tasks = [Task(task.file, task.done) for task in self._tasks]

    def _carry_out(self) -> tuple[State, BaseException | None]:
        """Does everything; how it ended."""
        self._tell("started", f"fetching {self.order.ref}")
        self._record(State.PENDING)
        try:
            with self._alone():
                if not self._is_here_by_now():
                    self._obtain()
                self._name_version()
        except (PausedError, StoreError) as error:
            if isinstance(error, CancelledError):
                self._discard()
            return State.PAUSED, error  # also when the disk refuses: it goes on when that is mended (A8)
        except BaseException as error:  # noqa: BLE001 - raised by `result` in the thread that asks
            return State.FAILED, self._explained(error)
        return State.READY, None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the lock of the model. What needs no store needs none."""
        order, shop = self.order, self._shop
        if not order.cached:
            yield
            return

        name = order.name
        watch = Watch(
            shop.layout, shop.layout.partials, order.files, lambda message: self._tell("waiting", message, name),
            order.id,
        )  # fmt: skip
        patience = Patience(shop.settings.lock_timeout, lambda holder: self._look(watch, holder), self._control.wait)
        lock = shop.layout.model_lock(order.id)
        with locked(lock, Subject(order.id, order.version, name=name), patience):
            self._pulse = Pulse(lock)
            await_sweep(shop.layout, Patience(shop.settings.lock_timeout, wait=self._control.wait))
            yield

    def _look(self, watch: Watch, holder: Holder) -> Far:
        """Shows how far the process is that has the model: bars move while we wait."""
        if self.order.asks:
            self._learn(watch)
        for task in self._tasks:
            task.watch = watch
        far = watch.look(holder)
        moved = [task for task in self._tasks if task.here != task.shown]
        for task in moved[:MOST_SAMPLES]:
            self._publish(task, self._completed())
        return far

    def _learn(self, watch: Watch) -> None:
        """What it is about is known once the holder has asked the hub: then it can be shown."""
        order, _ = self._renew(None)
        if order.files:
            self.order, self._tasks = order, [Task(file) for file in order.files]
            watch.follow(order.files)

    def _is_here_by_now(self) -> bool:
        """Whether somebody else has fetched it since we looked: he may have ended before we came to the lock."""
        if not self.order.cached:
            return False
        return self._is_renewed(None)

    def _obtain(self) -> None:
        self._enter(State.RESOLVING)
        self._account.begins(self.order, self._tasks)
        if self.order.asks and self._is_known_and_here():
            return
        self._check_order()
        self._result = self._fetched_and_installed()

    def _is_known_and_here(self) -> bool:
        """Asks what is wanted; whether all of it is here. Where nobody can be asked, what was here last will do."""
        asks = self.order.asks
        assert asks is not None
        try:
            return self._is_renewed(self._meaning())
        except AllSourcesFailedError:
            known = known_meaning(Shelf(self._shop.layout), asks, math.inf) if self.order.cached else None
            if known is None:
                raise
            is_done = self._is_renewed(known)
            if not is_done and not self._is_in_store():
                raise
        self._tell("resolving", f"{self._where} cannot be asked: {asks.shown} is here as it was last")
        return is_done

    def _is_in_store(self) -> bool:
        """Whether no byte has to be fetched: only an output, or a name, is missing."""
        layout = self._shop.layout
        return all(find(layout, file) for file in self.order.files)

    def _meaning(self) -> Manifest:
        """Asks the hub what is wanted."""

        def tell(kind: FactType, message: str, source: str) -> None:
            self._where = source
            self._tell(kind, message, source=source)

        return resolved(self.order, self._shop, self._control, tell)

    def _is_renewed(self, meaning: Manifest | None) -> bool:
        """What is wanted may be known better now; True if all of it is here."""
        order, result = self._renew(meaning)
        if order.files != self.order.files:
            self._tasks = [Task(file) for file in order.files]
        self.order = order
        if result is not None:
            self._found(result)
        return result is not None

    def _name_version(self) -> None:
        """From here on the tag or branch means the version that is here."""
        if self.order.cached and self.order.alias:
            self._shop.registry.aliased(self.order.id, self.order.alias, self.order.version)

    def _found(self, result: Result) -> None:
        self._result = result
        here = {file.name: file for file in (result.files if isinstance(result, Model) else (result,))}
        for task in self._tasks:
            file = here[task.file.path]
            task.done = Fetched(task.file, Digest("sha256", file.sha256), file.size, "hit", "cache")

    def _check_order(self) -> None:
        """What would be in vain is refused before anything is fetched."""
        order = self.order
        known = {"layers": len(order.files), "total_size": sum(file.size or 0 for file in order.files)}
        lacking = f"; {', '.join(order.lacking)}: optional, and not there" if order.lacking else ""
        self._tell("manifest_pulled", f"{len(order.files)} files{lacking}", details=known)
        self._record(State.RESOLVING)
        if order.require_digest and (unvouched := order.unvouched()):
            raise VerificationError(
                f"nothing is known to verify {unvouched[0]} against",
                next_step="pass --sha256 or --checksum, or a manifest with digests",
            )
        if order.output:
            _check_writable(os.path.dirname(order.output) if order.single else order.output)

    def _fetch_all(self) -> None:
        """Several files at once, the largest first, so that all end at about the same time.

        One that fails does not stop the others; a disk that refuses does (A12).
        """
        left = iter(
            sorted((task for task in self._tasks if task.done is None), key=lambda task: -(task.file.size or 0))
        )
        guard = threading.Lock()

        def work() -> None:
            while not self._control.stopped:
                with guard:
                    task = next(left, None)
                if task is None:
                    return
                self._fetch_one(task)

        self._enter(State.DOWNLOADING)
        self._publish(self._tasks[0], self._completed())
        count = min(self._shop.settings.parallel_files, len(self._tasks))
        threads = _started(work, "modelcache-file", count)
        turn, due = 0, time.monotonic() + SAMPLE_S
        for thread in threads:
            while thread.is_alive():
                thread.join(max(0.0, due - time.monotonic()))
                if time.monotonic() >= due:
                    turn, due = self._report(turn), time.monotonic() + SAMPLE_S
        self._report_ends()

    def _fetch_one(self, task: Task) -> None:
        def tell(kind: FactType, message: str, source: str) -> None:
            self._tell(kind, message, task.file.path, source)
            task.hear(kind)
            if kind in ("resumed", "source_failed"):
                self._record(self.state)

        try:
            fetch = FileFetch(self.order, task.file, self._shop, self._control, tell)
            task.begin(fetch)
            done = fetch.run()
            if done.source == "cache":
                self._account.found(self.order, done)
            verified = self.order.vouched(task.file)[1]
            came_from = fetch.transfer.source if fetch.transfer and done.source != "cache" else "cache"
            tell("file_ready", in_place_text(done.status, verified), came_from)
            if verified == UNVERIFIED:
                tell("unverified", f"nothing was known to verify it against; sha256 {done.sha256.hex}", "")
            task.end(done)
        except BaseException as error:  # noqa: BLE001 - raised by `_install`, after the other files had their chance
            task.end(None, error)
            if not isinstance(error, ModelCacheError) or isinstance(error, StoreError):
                self._control.stop(PausedError("another file of this model failed"))

    def _fetched_and_installed(self) -> Result:
        """What somebody removed, or found rotten, between its proof and its name is fetched again (I30)."""
        for _ in range(LOST_ROUNDS):
            self._fetch_all()
            try:
                return self._install()
            except LostError as lost:
                self._tasks = [Task(task.file) if task.file.path in lost.places else task for task in self._tasks]
        self._fetch_all()
        return self._install()

    def _install(self) -> Result:
        """Names and records what is here, also when other files failed; then raises their error."""
        with suppress(StoreError, LockedError):  # what other models share stays unavailable then, until it is fetched
            self._shop.sharing.write()
        done = [task.done for task in self._tasks if task.done]
        errors = [task.error for task in self._tasks if task.error]
        if not errors:
            self._control.check()
            self._enter(State.INSTALLING)
            with every(SAMPLE_S, self._report_installing):
                return install(self.order, self._shop, done, self._tell, self._tick)
        if done and self.order.cached and self.order.version:
            with suppress(StoreError):  # the error that is raised below came first
                install(replace(self.order, output=""), self._shop, done, self._tell)
        raise self._worst(errors)

    def _tick(self) -> None:
        """One more buffer was copied."""
        self._control.check()
        self._ticks += 1

    def _worst(self, errors: list[BaseException]) -> BaseException:
        """What is raised when these files failed. One that only stopped because another failed is none of them."""
        bugs = [error for error in errors if not isinstance(error, ModelCacheError)]
        failed = [error for error in errors if isinstance(error, ModelCacheError) and error.kind != PausedError.kind]
        if bugs or not failed or len(self._tasks) == 1:
            return (bugs or failed or errors)[0]
        worst = of_several(failed, len(self._tasks), "files")
        worst.kept_bytes = self.kept_bytes
        worst.kept_files = sum(one.done is not None and self._is_found_again(one.file) for one in self._tasks)
        return worst

    def _is_found_again(self, file: ModelFile) -> bool:
        """Whether the next run finds a file that is done, though the model is not: by its digest, or in the record."""
        return bool(file.digests) or (self.order.cached and bool(self.order.version))

    def _discard(self) -> None:
        with suppress(StoreError):
            for task in self._tasks:
                if not task.done:
                    discard(self.order, task.file, self._shop)

    def _cancellation(self) -> CancelledError:
        return CancelledError(f"{self.order.ref} was cancelled", next_step="fetch it again to begin anew")

    def _explained(self, error: BaseException) -> BaseException:
        """Wrong bytes mean something else where only last time said what is right."""
        path = next((task.file.path for task in self._tasks if task.error is error), "")
        only_last_time = any(entry.path == path and entry.verified == UNVERIFIED for entry in self.order.known)
        if isinstance(error, AllSourcesFailedError) and error.kind == VerificationError.kind and only_last_time:
            digest = "give its --sha256" if self.order.single else "list its sha256 in the manifest"
            error.next_step = (
                "it has changed since it was first fetched, or is damaged: if you expect the change, "
                f"run `modelcache rm {self.order.id}` first, or {digest}"
            )
        return error

    # -- telling ------------------------------------------------------------------------------------------------------

    def _record(self, state: State, error: BaseException | None = None) -> None:
        """Foreign errors by their kind alone: their texts may hold anything."""
        text = error.message if isinstance(error, ModelCacheError) else type(error).__name__ if error else ""
        if isinstance(error, CancelledError):
            self._account.is_cancelled(self.order, self._tasks, text)
        else:
            is_final = isinstance(error, ModelCacheError) and error.kind in FINAL
            self._account.stands(self.order, self._tasks, state, text, is_final=is_final)

    def _enter(self, state: State) -> None:
        with self._changed:
            self._state = state

    def _announce(self, state: State, error: BaseException | None) -> None:
        """The last events. Whoever waits for the result has been told all of it when it comes."""
        self._record(state, error)
        line = error.line() if isinstance(error, ModelCacheError) else told(error)
        kind: FactType = "completed" if error is None else "paused" if state is State.PAUSED else "error"
        self._tell(kind, line or f"{self.order.ref} is here")
        last = replace(self._sample(state), done=True, error=told(error))
        self._shop.dispatcher.publish(last, self._subscriber)
        if self._result is not None and error is None:
            self._shop.dispatcher.publish(DownloadComplete(self.id, self._result.path), self._subscriber)
        self._shop.dispatcher.drain(DRAIN_S)

    def _tell(self, kind: FactType, message: str, file: str = "", source: str = "", **more: Any) -> None:
        fact = Fact(kind, self.order.id, message, file, source, **{"version": self.order.version} | more)
        self._shop.dispatcher.publish(fact, self._subscriber)

    def _report(self, turn: int) -> int:
        """Tells how far files have come: each in its turn, where there are many."""
        self._report_ends()
        for task in self._tasks:
            task.measure()
        if self._pulse:
            self._pulse.show(sum(task.hashed for task in self._tasks))
        running = [task for task in self._tasks if task.is_running]
        completed = self._completed()
        for index in range(min(MOST_SAMPLES, len(running))):
            self._publish(running[(turn + index) % len(running)], completed)
        return turn + MOST_SAMPLES

    def _report_installing(self) -> None:
        """All bytes are here; what is copied to the output may take its time."""
        if self._pulse:
            self._pulse.show(-self._ticks)
        sample = self._tasks[-1].sample(self.order.id, self._completed(), len(self._tasks))
        self._shop.dispatcher.publish(replace(sample, status=EVENT_STATUS[State.INSTALLING]), self._subscriber)

    def _report_ends(self) -> None:
        ended = [task for task in self._tasks if task.is_over and not task.told]
        completed = self._completed()
        for task in ended:
            task.told = True
            self._publish(task, completed)

    def _publish(self, task: Task, completed: int) -> None:
        task.shown = task.here
        sample = task.sample(self.order.id, completed, len(self._tasks))
        self._shop.dispatcher.publish(sample, self._subscriber)

    def _completed(self) -> int:
        """Looks at every file: for a round of reports, not for each."""
        return sum(task.done is not None for task in self._tasks)

    def _sample(self, state: State) -> Progress:
        tasks = self._tasks
        return Progress(
            model=self.order.id,
            status=EVENT_STATUS[state],
            bytes_downloaded=sum(task.here for task in tasks),
            total_bytes=sum(task.total for task in tasks),
            speed=sum(task.speed for task in tasks),
            retry_count=sum(task.retries for task in tasks),
            source=next((task.source for task in reversed(tasks) if task.source), ""),
            gateway=next((task.gateway for task in reversed(tasks) if task.gateway), ""),
            completed_files=self._completed(),
            total_files=len(tasks),
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError("this download belongs to the process before the fork", next_step="fetch it again here")


def _started(work: Callable[[], None], name: str, most: int) -> list[threading.Thread]:
    """As many threads as there are to be had. StoreError if there is none."""
    threads: list[threading.Thread] = []
    try:
        while len(threads) < most:
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        if not threads:
            raise StoreError(f"no thread: {error}", next_step="end some programs, then run again") from error
    return threads


def _check_writable(folder: str) -> None:
    """StoreError if nothing can be written below `folder`, whatever of it is there already."""
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise store_error(NotADirectoryError(errno.ENOTDIR, "not a directory"), folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
        raise store_error(OSError(errno.EROFS if is_read_only else errno.EACCES, "not writable"), folder)
