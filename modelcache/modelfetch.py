"""Fetches the files of one model, several at once, and gives them their names.

Responsible for: which file when, going on with the others when one fails, and which error counts; in the order *fetch,
link, record, registry*. Leaves to others: each file (`filefetch`), names and records (`install`), what is wanted and
who may (`errand`).
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial as bound

from modelcache.announcing import Announcer
from modelcache.errors import (
    AllSourcesFailedError,
    LockedError,
    LostError,
    ModelCacheError,
    PausedError,
    StoreError,
    VerificationError,
    of_several,
)
from modelcache.filefetch import FileFetch, discard
from modelcache.install import install
from modelcache.model import ModelFile
from modelcache.order import Workshop
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.sampling import SAMPLE_S, every
from modelcache.states import State
from modelcache.store.locks import Pulse
from modelcache.tally import Tally
from modelcache.task import Task
from modelcache.transfer.control import Control

LOST_ROUNDS = 3


class ModelFetch:
    """Used once, by one thread. `pulse` is that of the lock that is held meanwhile."""

    def __init__(
        self, tally: Tally, shop: Workshop, control: Control, announcer: Announcer, pulse: Pulse | None
    ) -> None:
        self._tally = tally
        self._shop = shop
        self._control = control
        self._announcer = announcer
        self._pulse = pulse
        self._ticks = 0  # of copying to the output

    def run(self) -> Model | File:
        """What somebody removed, or found rotten, between its proof and its name is fetched again (I30)."""
        for _ in range(LOST_ROUNDS):
            self._fetch_all()
            try:
                return self._install()
            except LostError as lost:
                self._tally.lost(lost.places)
        self._fetch_all()
        return self._install()

    # -- fetching -----------------------------------------------------------------------------------------------------

    def _fetch_all(self) -> None:
        """Several files at once, the largest first, so that all end at about the same time.

        One that fails does not stop the others; a disk that refuses does (A12).
        """
        unfinished = [task for task in self._tally.tasks if task.done is None]
        left = iter(sorted(unfinished, key=lambda task: -(task.file.size or 0)))
        guard = threading.Lock()

        def work() -> None:
            while not self._control.stopped:
                with guard:
                    task = next(left, None)
                if task is None:
                    return
                self._fetch_one(task)

        self._tally.stage = State.DOWNLOADING
        self._announcer.first()
        count = min(self._shop.settings.parallel_files, len(self._tally.tasks))
        self._report_until_ended(started(work, "modelcache-file", count))

    def _report_until_ended(self, threads: list[threading.Thread]) -> None:
        due = time.monotonic() + SAMPLE_S
        for thread in threads:
            while thread.is_alive():
                thread.join(max(0.0, due - time.monotonic()))
                if time.monotonic() >= due:
                    self._announcer.report(self._pulse)
                    due = time.monotonic() + SAMPLE_S
        self._announcer.report_ends()

    def _fetch_one(self, task: Task) -> None:
        try:
            fetch = FileFetch(
                self._tally.order, task.file, self._shop, self._control, bound(self._announcer.file, task)
            )
            task.begin(fetch)
            done = fetch.run()
            came_from = fetch.transfer.source if fetch.transfer and done.source != "cache" else "cache"
            self._announcer.file_ready(task, done, came_from)
            task.end(done)
        except BaseException as error:  # noqa: BLE001 - raised by `_install`, after the other files had their chance
            task.end(None, error)
            if not isinstance(error, ModelCacheError) or isinstance(error, StoreError):
                self._control.stop(PausedError("another file of this model failed"))

    # -- installing ---------------------------------------------------------------------------------------------------

    def _install(self) -> Model | File:
        """Names and records what is here, also when other files failed; then raises their error."""
        order, tell = self._tally.order, self._announcer.tell
        with suppress(StoreError, LockedError):  # what other models share stays unavailable then, until it is fetched
            self._shop.sharing.write()
        done, errors = self._tally.done, self._tally.errors
        if not errors:
            self._control.check()
            self._tally.stage = State.INSTALLING
            with every(SAMPLE_S, self._report_installing):
                return install(order, self._shop, done, tell, self._tick)
        if done and order.cached and order.version:
            with suppress(StoreError):  # the error that is raised below came first
                install(replace(order, output=""), self._shop, done, tell)
        raise self._worst(errors)

    def _tick(self) -> None:
        """One more buffer was copied."""
        self._control.check()
        self._ticks += 1

    def _report_installing(self) -> None:
        if self._pulse:
            self._pulse.show(-self._ticks)
        self._announcer.installing()

    def _worst(self, errors: list[BaseException]) -> BaseException:
        """What is raised when these files failed. One that only stopped because another failed is none of them."""
        tasks = self._tally.tasks
        bugs = [error for error in errors if not isinstance(error, ModelCacheError)]
        failed = [error for error in errors if isinstance(error, ModelCacheError) and error.kind != PausedError.kind]
        if bugs or not failed or len(tasks) == 1:
            return (bugs or failed or errors)[0]
        for task in tasks:
            if isinstance(task.error, ModelCacheError) and task.file.path not in task.error.message:
                task.error.message = f"{task.file.path}: {task.error.message}"
        worst = of_several(failed, len(tasks), "files")
        worst.kept_bytes = self._tally.kept_bytes
        worst.kept_files = sum(one.done is not None and self._is_found_again(one.file) for one in tasks)
        return worst

    def _is_found_again(self, file: ModelFile) -> bool:
        """Whether the next run finds a file that is done, though the model is not: by its digest, or in the record."""
        order = self._tally.order
        return bool(file.digests) or (order.cached and bool(order.version))


def discard_rest(tally: Tally, shop: Workshop) -> None:
    """Removes what is not complete."""
    with suppress(StoreError):
        for task in tally.tasks:
            if not task.done:
                discard(tally.order, task.file, shop)


def explained(error: BaseException, tally: Tally) -> BaseException:
    """Wrong bytes mean something else where only last time said what is right."""
    order = tally.order
    path = next((task.file.path for task in tally.tasks if task.error is error), "")
    only_last_time = any(entry.path == path and entry.verified == UNVERIFIED for entry in order.known)
    if isinstance(error, AllSourcesFailedError) and error.kind == VerificationError.kind and only_last_time:
        digest = "give its --sha256" if order.single else "list its sha256 in the manifest"
        error.next_step = (
            "it has changed since it was first fetched, or is damaged: if you expect the change, "
            f"run `modelcache rm {order.id}` first, or {digest}"
        )
    return error


def started(work: Callable[[], None], name: str, most: int) -> list[threading.Thread]:
    """As many threads as there are to be had. StoreError if there is none."""
    threads: list[threading.Thread] = []
    try:
        while len(threads) < most:
            thread = threading.Thread(target=work, name=name, daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError as error:
        if not threads:
            raise StoreError(f"no thread: {error}", next_step="end some programs") from error
    return threads
