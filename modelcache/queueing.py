"""The queue: many things to fetch, a few at a time, the most urgent first, whatever happens to this process.

Responsible for: fetching what waits, within `parallel_models`, and following what others change meanwhile.
Leaves to others: the list itself (`store.waitlist`), fetching one (`cache`).
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelcache.again import parsed, to_text
from modelcache.api import default
from modelcache.cache import Cache, Path, Show
from modelcache.errors import ModelCacheError, PausedError, UsageError, told
from modelcache.model import Manifest
from modelcache.ordering import Wish, digests_of
from modelcache.outcome import File, Model
from modelcache.report import Report
from modelcache.store.waitlist import Entry, Waiting, Waitlist
from modelcache.urls import without_secrets

if TYPE_CHECKING:
    from modelcache.download import Download

LOOK_S = 0.2  # how often what others change is looked for
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
        self._list = Waitlist(*cache.queue_paths)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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
    ) -> str:
        """Puts in what `fetch` would get; the id of the entry. What is in already keeps its place.

        Headers are not kept, for they may be secrets: what needs them is fetched without a queue. UsageError for what
        `fetch` would refuse at once.
        """
        place = None if output is None else str(output)
        digests = digests_of(sha256, checksum)
        wish = Wish(digests, size, place, tuple(mirrors), {}, cache, strict, require_digest)
        self._cache.check_order(ref, wish)
        shown = without_secrets(ref) if isinstance(ref, str) else ref.ref or ref.id
        return self._list.add(shown, to_text(ref, wish), priority).id

    def entries(self) -> Report:
        """In the order in which they are fetched."""
        rows = [
            {
                "id": entry.id, "ref": entry.ref, "status": entry.status, "priority": entry.priority,
                "added_at": entry.added_at, "error": entry.error,
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
        self._list.give_back(self._list.read().find(entry_id).id)

    @property
    def is_paused(self) -> bool:
        return self._list.read().paused

    def pause(self) -> None:
        """Everything that is fetched for the queue pauses, in every process, and nothing begins."""
        self._list.pause(True)

    def resume(self) -> None:
        """What was paused waits again; whoever runs the queue goes on."""
        self._list.pause(False)

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, progress: Show = None, ended: Callable[[Ended], None] | None = None) -> None:
        """Fetches until nothing waits and nothing is fetched any more, also by others, or the queue is paused.

        `ended` is called with each entry that this process brought to an end. After KeyboardInterrupt, or whatever
        else it raises, all downloads have paused, and their entries wait again.
        """
        _Run(self._cache, self._list, progress, ended or (lambda _: None), threading.Event()).until_empty()

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
        while not self._stop.is_set():
            _Run(self._cache, self._list, False, lambda _: None, self._stop).until_empty()
            self._stop.wait(LOOK_S)


class _Run:
    """The downloads of one process for the queue."""

    def __init__(
        self, cache: Cache, waitlist: Waitlist, progress: Show, ended: Callable[[Ended], None], stop: threading.Event
    ) -> None:
        self._cache = cache
        self._list = waitlist
        self._progress = progress
        self._ended = ended
        self._stop = stop
        self._most = cache.settings.parallel_models
        self._running: dict[str, tuple[Entry, Download]] = {}

    def until_empty(self) -> None:
        try:
            while not self._stop.is_set():
                now = self._list.read()
                self._follow(now)
                self._settle()
                self._claim(now)
                if not self._running and (now.paused or not self._list.read().is_alive):
                    return
                self._stop.wait(LOOK_S)
        finally:
            self._end()

    def _follow(self, now: Waiting) -> None:
        """What others took out ends, and so does everything when the queue is paused."""
        here = {entry.id for entry in now.entries}
        for entry, download in self._running.values():
            if now.paused or entry.id not in here:
                download.pause()

    def _settle(self) -> None:
        for entry, download in list(self._running.values()):
            if not download.has_ended:
                continue
            del self._running[entry.id]
            result, error = _outcome(download)
            if error is None:
                self._remove(entry)
            elif isinstance(error, PausedError):
                self._list.give_back(entry.id)
                continue
            else:
                self._list.give_back(entry.id, _line(error))
            self._ended(Ended(entry.id, entry.ref, result, error))

    def _claim(self, now: Waiting) -> None:
        if now.paused or not any(entry.is_waiting for entry in now.entries):
            return
        while len(self._running) < self._most and (entry := self._list.claim(self._most)):
            try:
                ref, wish = parsed(entry.request)
                self._running[entry.id] = (entry, self._cache.begin(ref, wish, self._progress))
            except ModelCacheError as error:
                self._list.give_back(entry.id, error.line())
                self._ended(Ended(entry.id, entry.ref, None, error))

    def _remove(self, entry: Entry) -> None:
        try:
            self._list.remove(entry.id)
        except UsageError:
            return  # somebody else took it out meanwhile

    def _end(self) -> None:
        """Whatever happened: nothing is fetched any more, and what was not finished waits for the next run."""
        for _, download in self._running.values():
            download.pause()
        for entry, download in self._running.values():
            download.wait_stopped(STOP_WITHIN_S)
            _, error = _outcome(download)
            if error is None:
                self._remove(entry)
            else:
                self._list.give_back(entry.id)


def _outcome(download: "Download") -> tuple[Any, BaseException | None]:
    try:
        return download.result(0), None
    except BaseException as error:  # noqa: BLE001 - told to whoever runs the queue
        return None, error


def _line(error: BaseException) -> str:
    return error.line() if isinstance(error, ModelCacheError) else told(error)


queue = Queue(default)  # `modelcache.queue`: that of the default cache
