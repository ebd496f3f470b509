"""The queue: many things to fetch, a few at a time, the most urgent first, whatever happens to this process.

Responsible for: fetching what waits, within `parallel_models`, and following what others change meanwhile.
Leaves to others: the list itself (`store.waitlist`), fetching one (`caching`).
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelcache.again import parsed, to_text
from modelcache.api import cache as default
from modelcache.caching import Cache, Path
from modelcache.dispatch import Show
from modelcache.errors import CancelledError, ModelCacheError, NotFoundError, PausedError, UsageError, line_of
from modelcache.markup import framed, text
from modelcache.model import Manifest
from modelcache.outcome import File, Model
from modelcache.rows import Report
from modelcache.store.waitlist import Entry, Waiting, Waitlist
from modelcache.urls import without_secrets
from modelcache.wish import Wish, chosen_of, digests_of

if TYPE_CHECKING:
    from modelcache.download import Download

log = logging.getLogger(__name__)
LOOK_S = 0.2  # how often what others change is looked for
PAUSE_S = 2.0  # after an error, in the background
STOP_WITHIN_S = 1.5


@dataclass(frozen=True, slots=True)
class Ended:
    """One entry that this process fetched, or failed to: either a result or an error."""

    id: str
    ref: str
    result: Model | File | None
    error: BaseException | None


class Queue:
    """What a cache is to fetch. It is a file, so that it survives and every process may change it.

    Nothing is fetched before somebody runs it: `run` until it is empty, or `start` in the background.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def _list(self) -> Waitlist:
        """Looked for each time: a root that a group shares holds one for each account, and may not be there yet."""
        return Waitlist(*self._cache.queue_paths)

    def __repr__(self) -> str:
        return f"Queue({self._cache!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: what waits."""
        try:
            return self.entries()._repr_html_()
        except ModelCacheError as error:
            return framed(f'<p class="bad">{text(error.line())}</p>')

    def __len__(self) -> int:
        return len(self._list.read().entries)

    def add(
        self,
        ref: str | Manifest,
        *,
        priority: int = 0,
        sha256: str | None = None,
        checksum: str | None = None,
        size: int | None = None,
        output: Path | None = None,
        mirrors: Iterable[str] = (),
        cache: bool = True,
        strict: bool = False,
        require_digest: bool = False,
        prefer: str = "",
        files: Iterable[str] | str = (),
    ) -> str:
        """Puts in what `fetch` would get; the id of the entry. What is in already keeps its place.

        Headers are not kept, for they may be secrets: what needs them is fetched without a queue. UsageError for what
        `fetch` would refuse at once.
        """
        place = None if output is None else str(output)
        digests = digests_of(sha256, checksum)
        wish = Wish(
            digests, size, place, tuple(mirrors), {}, cache, strict, require_digest, prefer, chosen_of(files)
        )  # fmt: skip
        self._cache.check_order(ref, wish)
        shown = without_secrets(ref) if isinstance(ref, str) else ref.ref or ref.id
        return self._list.add(shown, to_text(ref, wish), priority).id

    def entries(self) -> Report:
        """In the order in which they are fetched; `by` says which process fetches one."""
        rows = [
            {
                "id": entry.id, "ref": entry.ref, "status": entry.status, "priority": entry.priority,
                "added_at": entry.added_at, "by": str(entry.owner or ""), "error": entry.error,
            }
            for entry in self._list.read().entries
        ]  # fmt: skip
        return Report("queue, paused" if self.is_paused else "queue", tuple(rows))

    def prioritize(self, entry_id: str, priority: int) -> None:
        """Higher comes first; 0 is what `add` gives. UsageError for an entry that is not there."""
        self._list.prioritize(entry_id, priority)

    def move(self, entry_id: str, *, before: str) -> None:
        """Right before another entry, with its priority."""
        self._list.move(entry_id, before)

    def remove(self, entry_id: str) -> None:
        """If it is being fetched, that ends; bytes that are here stay for another fetch."""
        self._list.remove(entry_id)

    def retry(self, entry_id: str) -> None:
        """One that failed waits again."""
        self._list.retry(entry_id)

    @property
    def is_paused(self) -> bool:
        return self._list.read().paused

    def pause(self, entry_id: str | None = None) -> None:
        """Everything that is fetched for the queue pauses, in every process, and nothing begins; or one entry alone."""
        self._pause(entry_id, True)

    def resume(self, entry_id: str | None = None) -> None:
        """Whoever runs the queue goes on. An entry that was paused alone, or whose download was, waits until it is
        named here."""
        self._pause(entry_id, False)

    def _pause(self, entry_id: str | None, paused: bool) -> None:
        if entry_id is None:
            self._list.pause(paused)
        else:
            self._list.pause_one(entry_id, paused)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(
        self,
        progress: Show = None,
        ended: Callable[[Ended], None] | None = None,
        waiting: Callable[[str], None] | None = None,
    ) -> None:
        """Fetches until nothing waits and nothing is fetched any more, also by others, or the queue is paused.

        `ended` is called with each entry that this process brought to an end; `waiting` once, if there is nothing to do
        but to wait for others, with words that say for whom. After KeyboardInterrupt, or whatever else it raises, all
        downloads have paused, and their entries wait again.
        """
        from modelcache.progress.show import gathered

        wrong: list[str] = []

        def told(one: Ended) -> None:
            if one.error is not None and not isinstance(one.error, PausedError):
                wrong.append(_failure(one))
            if ended:
                ended(one)

        with gathered(progress, "Queue", wrong) as show:
            _Run(self._cache, show, told, waiting or _nothing, threading.Event()).until_empty()

    def start(self) -> None:
        """Runs in the background until `stop`, or the end of the process. Returns at once."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._serve, name="modelcache-queue", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 2 * STOP_WITHIN_S) -> None:
        """Pauses what it fetches. What waits stays for the next one who runs the queue."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _serve(self) -> None:
        """Outlives what passes: a full disk, a lock that somebody has. Each kind of error is logged once in a row."""
        logged: set[str] = set()
        while not self._stop.is_set():
            try:
                _Run(self._cache, False, _nothing, _nothing, self._stop).until_empty()
                logged.clear()
                self._stop.wait(LOOK_S)
            except ModelCacheError as error:
                error.again = ""  # nobody has to
                if error.kind not in logged:
                    log.warning("the queue: %s", error.line())
                logged.add(error.kind)
                self._stop.wait(PAUSE_S)


class _Run:
    """The downloads of one process for the queue. What it claims is its own: it has a list of its own."""

    def __init__(
        self,
        cache: Cache,
        progress: Show,
        ended: Callable[[Ended], None],
        waiting: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._cache = cache
        self._list = Waitlist(*cache.queue_paths)
        self._progress = progress
        self._ended = ended
        self._waiting = waiting
        self._has_told = False
        self._stop = stop
        self._pid = os.getpid()
        self._most = cache.settings.parallel_models
        self._running: dict[str, tuple[Entry, Download]] = {}

    def until_empty(self) -> None:
        try:
            while not self._stop.is_set():
                now = self._list.read()
                self._follow(now)
                self._settle()
                self._claim(now)
                if not self._running and self._is_over():
                    return
                self._stop.wait(LOOK_S)
        finally:
            if self._pid == os.getpid():  # a child that was forked meanwhile has nothing to end
                self._end()

    def _is_over(self) -> bool:
        """Whether there is nothing to wait for. Says once for whom it waits."""
        now = self._list.read()
        others = sorted({str(entry.owner) for entry in now.entries if entry.is_running})
        if others and not now.paused and not self._has_told:
            self._has_told = True
            self._waiting(f"waiting for {', '.join(others)}")
        return now.paused or not now.is_alive

    def _follow(self, now: Waiting) -> None:
        """What others took out or paused ends, and so does everything when the queue is paused."""
        wanted = {entry.id for entry in now.entries if not entry.paused}
        for entry, download in self._running.values():
            if now.paused or entry.id not in wanted:
                download.interrupt()

    def _settle(self) -> None:
        for entry, download in list(self._running.values()):
            if not download.has_ended:
                continue
            del self._running[entry.id]
            result, error = _outcome(download)
            if error is None or isinstance(error, CancelledError):
                self._remove(entry)
            elif isinstance(error, PausedError):
                self._let_go(entry, download)
                continue
            else:
                self._list.fail(entry.id, line_of(_advised(error, entry.id)))
            self._ended(Ended(entry.id, entry.ref, result, error))

    def _claim(self, now: Waiting) -> None:
        if now.paused or not any(entry.is_waiting for entry in now.entries):
            return
        while len(self._running) < self._most and (entry := self._list.claim(self._most)):
            try:
                ref, wish = parsed(entry.request)
                self._running[entry.id] = (entry, self._cache.begin(ref, wish, self._progress))
            except Exception as error:  # noqa: BLE001 - told to whoever runs the queue; the others go on
                self._list.fail(entry.id, line_of(_advised(error, entry.id)))
                self._ended(Ended(entry.id, entry.ref, None, error))

    def _let_go(self, entry: Entry, download: "Download") -> None:
        """It waits again, unless somebody paused just this one."""
        if download.is_held:
            self._list.hold(entry.id)
        else:
            self._list.give_back(entry.id)

    def _remove(self, entry: Entry) -> None:
        try:
            self._list.remove(entry.id)
        except UsageError:
            self._list.give_back(entry.id)  # somebody else took it out meanwhile

    def _end(self) -> None:
        """Whatever happened: nothing is fetched any more, and what was not finished waits for the next run.

        It waits before downloads have stopped: another interrupt may come in between.
        """
        try:
            for _, download in self._running.values():
                download.interrupt()
        finally:
            self._list.close()
        for entry, download in self._running.values():
            download.wait_stopped(STOP_WITHIN_S)
            _, error = _outcome(download)
            if error is None:
                self._remove(entry)
            elif isinstance(error, PausedError):
                self._let_go(entry, download)


def _outcome(download: "Download") -> tuple[Any, BaseException | None]:
    try:
        return download.result(0), None
    except BaseException as error:  # noqa: BLE001 - told to whoever runs the queue
        return None, error


def _nothing(_: object) -> None: ...


def _failure(one: Ended) -> str:
    line = line_of(one.error)
    return line if line.startswith(one.ref) else f"{one.ref}: {line}"


def _advised(error: BaseException, entry_id: str) -> BaseException:
    """Where another try may help, it is one of its entry; what is not there today may be there then."""
    if isinstance(error, ModelCacheError) and (error.again or error.kind == NotFoundError.kind):
        error.again = f"run `modelcache queue retry {entry_id}`"
    return error


queue = Queue(default)  # `modelcache.queue`: that of the default cache
