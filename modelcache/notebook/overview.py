"""What a dashboard tells, as values.

It is read in three parts, by what they cost: what runs in this process (no look at the disk), the lists (some small
files and the database), and the store (a look at every file, and all that the metrics hold).

Responsible for: asking the cache, and saying in one line where an answer cannot be had, so that the other sections are
there all the same. Leaves to others: when each part is read (`live`), how it looks (`sections`).
"""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from modelcache.caching import Cache
from modelcache.configuration import fallback_for
from modelcache.download import Download
from modelcache.errors import ModelCacheError, told
from modelcache.events import now_ms
from modelcache.eviction import taken
from modelcache.history import UNFINISHED
from modelcache.jobs.overview import history, listed
from modelcache.queueing import Queue
from modelcache.reporting import plots
from modelcache.reporting.overview import Overview as Sums
from modelcache.reporting.window import Window
from modelcache.state.hauls import Hauls
from modelcache.state.place import Place
from modelcache.store.layout import Layout
from modelcache.units import as_percent

PLOTTED = "7d"
OPEN = (*UNFINISHED, "paused", "failed")  # of downloads that are not ready
POOR = 0.9  # a source that succeeds more seldom is worth a look
ENOUGH = 5  # attempts, before that is said
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Told(Generic[T]):
    """The rows of a section or, in one line, why there are none."""

    rows: tuple[T, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A download under way; where it is not in this process, `speed` and `gateway` are not known. Times are in ms since
    1970 here and below, None for what has not been; sizes in bytes, `total` 0 while it is not known."""

    id: str
    name: str
    stage: str
    here: int
    total: int
    speed: float = 0.0
    eta_s: float = 0.0
    gateway: str = ""
    files_done: int = 0
    files: int = 0
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class Queued:
    """What waits, or has failed or was paused; `by` is who fetches it now, `gateway` where a URL leads."""

    id: str
    name: str
    gateway: str
    status: str
    priority: int
    added_at: int
    by: str
    error: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A download that was paused, failed, or whose process is gone."""

    id: str
    name: str
    status: str
    here: int
    total: int
    can_resume: bool
    ended_at: int
    error: str
    of: tuple[str, str] = ("", "")  # which model, and version


@dataclass(frozen=True, slots=True)
class Held:
    """A version that is installed."""

    model: str
    version: str
    size: int
    files: int
    status: str
    used_at: int | None
    verified_at: int | None
    proof: str
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class Requested:
    rank: int
    model: str
    requests: int
    last_at: int


@dataclass(frozen=True, slots=True)
class Source:
    """How a gateway has done lately; what is long ago counts less."""

    layer: str
    gateway: str
    attempts: float
    success_rate: float
    throughput: int
    last_success: int
    last_error: str

    @property
    def is_poor(self) -> bool:
        return self.attempts >= ENOUGH and self.success_rate < POOR


@dataclass(frozen=True, slots=True)
class Job:
    """`status` and `error` are those of its last run; `wrong` is what is wrong with its table."""

    name: str
    cron: str
    next_at: int | None
    last_at: int | None
    status: str
    findings: int
    error: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Disk:
    """How much the store takes, of how much it may (0: no budget), and what is free on its disk."""

    taken: int
    budget: int
    free: int


@dataclass(frozen=True, slots=True)
class Lists:
    """What small files and the database tell."""

    running: Told[Running] = field(default_factory=Told)  # by other processes
    queued: Told[Queued] = field(default_factory=Told)
    is_queue_paused: bool = False
    interrupted: Told[Interrupted] = field(default_factory=Told)
    requested: Told[Requested] = field(default_factory=Told)
    sources: Told[Source] = field(default_factory=Told)
    jobs: Told[Job] = field(default_factory=Told)


@dataclass(frozen=True, slots=True)
class Store:
    """What is installed, and what all of it comes to. `plots` are SVG."""

    installed: Told[Held] = field(default_factory=Told)
    disk: Told[Disk] = field(default_factory=Told)
    plots: Told[str] = field(default_factory=Told)


@dataclass(frozen=True, slots=True)
class Overview:
    place: str
    host: str
    running: Told[Running]
    lists: Lists
    store: Store

    @property
    def worries(self) -> tuple[str, ...]:
        """What somebody has to act upon, a line each."""
        return tuple(_worries(self))


def overview(cache: Cache) -> Overview:
    """All of it, now. Raises nothing."""
    return Overview(cache.root, socket.gethostname(), running(cache), lists(cache), store(cache))


def running(cache: Cache) -> Told[Running]:
    """Downloads of this process."""
    return _told(lambda: [_running(download) for download in cache.running])


def lists(cache: Cache) -> Lists:
    queue, ours = Queue(cache), {download.id for download in cache.running}
    is_paused = _told(lambda: [queue.is_paused])
    records = _told(lambda: [row for row in cache.downloads(*OPEN) if row["id"] not in ours])
    return Lists(
        Told(tuple(_elsewhere(row) for row in records.rows if row["status"] in UNFINISHED)),
        _told(lambda: _queued(queue)), is_paused.rows == (True,),
        Told(tuple(filter(_matters, map(_interrupted, records.rows))), records.fault),
        _told(lambda: _requested(cache)), _told(lambda: _sources(cache)), _told(lambda: _jobs(cache)),
    )  # fmt: skip


def store(cache: Cache) -> Store:
    """Looks at every file of the store, and reads none."""
    return Store(
        _told(lambda: _installed(cache)), _told(lambda: [_disk(cache)]), _told(lambda: _plots(cache)),
    )  # fmt: skip


def mark(cache: Cache) -> tuple[object, ...]:
    """Another one after any process has installed, removed, or found right or wrong what is here. A stat a root."""
    return tuple(_stamp(Layout(root).registry) for root in dict.fromkeys((cache.root, _root(cache))))


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _told(ask: Callable[[], Iterable[T]]) -> Told[T]:
    try:
        return Told(tuple(ask()))
    except ModelCacheError as error:
        return Told(fault=error.line())
    except Exception as error:  # a section that fails takes no other with it
        log.exception("a section of the dashboard failed")
        return Told(fault=told(error))


# -- downloads --------------------------------------------------------------------------------------------------------


def _running(download: Download) -> Running:
    now, order = download.progress, download.order
    return Running(
        download.id, order.name or order.ref or order.id, download.state_text, now.bytes_downloaded, now.total_bytes,
        now.speed, now.eta_s, now.gateway, now.completed_files, now.total_files,
    )  # fmt: skip


def _elsewhere(row: dict[str, Any]) -> Running:
    here, total = row["downloaded_bytes"], row["total_bytes"]
    return Running(row["id"], _named(row), "In another process", here, total, is_ours=False)


def _interrupted(row: dict[str, Any]) -> Interrupted:
    return Interrupted(
        row["id"], _named(row), row["status"], row["downloaded_bytes"], row["total_bytes"], row["canResume"],
        row["lastAttempt"], row["error_message"], (str(row["model"]), str(row["version"])),
    )  # fmt: skip


def _matters(one: Interrupted) -> bool:
    """Of what somebody cancelled there is nothing left, neither bytes nor what was asked."""
    is_left = one.can_resume or bool(one.here) or not one.error.endswith(" was cancelled")
    return is_left and one.status not in UNFINISHED


def _named(row: dict[str, Any]) -> str:
    return _called(str(row["source"])) or str(row["model"])


def _called(ref: str) -> str:
    """As people called it: of a URL its file."""
    return ref.rpartition("/")[2] if "://" in ref else ref


def _queued(queue: Queue) -> Iterator[Queued]:
    for row in queue.entries():
        ref = row["ref"]
        gateway = ref.partition("://")[2].partition("/")[0].rpartition("@")[2]  # it may be no URL at all
        yield Queued(
            row["id"], _called(ref) or ref, gateway, row["status"], row["priority"], row["added_at"], row["by"],
            row["error"],
        )  # fmt: skip


# -- what is here, and how it has done --------------------------------------------------------------------------------


def _installed(cache: Cache) -> list[Held]:
    held = [
        Held(
            row["model"], row["version"], row["size"], row["files"], row["status"], row["used_at"],
            row["verified_at"], row["proof"], row["pinned"],
        )
        for row in cache.models()
    ]  # fmt: skip
    return sorted(held, key=lambda one: (one.model, one.version))


def _requested(cache: Cache) -> Iterator[Requested]:
    for row in cache.usage():
        if type(row["request_count"]) is int and type(row["last_used"]) is int:  # SQLite keeps anything anywhere
            yield Requested(row["rank"], str(row["model_id"]), row["request_count"], row["last_used"])


def _sources(cache: Cache) -> list[Source]:
    found = [
        Source(
            row["layer"], row["gateway"], row["attempts"], row["success_rate"], row["throughput_bps"],
            row["last_success"], row["last_error"],
        )
        for row in cache.health()
    ]  # fmt: skip
    return sorted(found, key=lambda one: (-one.attempts, one.layer, one.gateway))


def _jobs(cache: Cache) -> Iterator[Job]:
    last = {row["job"]: row for row in history(cache, most=1)}
    for row in listed(cache):
        ran = last.get(row["job"], {})
        if row["cron"] == "off" and not ran and not row["wrong"]:
            continue  # nobody has a use for it
        yield Job(
            row["job"], row["cron"], row["next_at"], row["last_at"], row["status"], ran.get("findings", 0),
            ran.get("error", ""), row["wrong"],
        )  # fmt: skip


def _root(cache: Cache) -> str:
    """The one that is written to."""
    return fallback_for(cache.root) or cache.root


def _disk(cache: Cache) -> Disk:
    root = place = _root(cache)
    while not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return Disk(taken(Layout(root)), cache.settings.disk_budget, shutil.disk_usage(place).free)


def _plots(cache: Cache) -> list[str]:
    window = Window.since(PLOTTED, now_ms())
    hauls = Hauls(Place.of(_root(cache), shared=cache.settings.shared), window.stop_ms)
    sums = Sums(window, hauls.between(window.start_ms, window.stop_ms, window.step_ms))
    if not (sums.all.bytes or sums.all.saved_cache or sums.all.saved_resume):
        return []
    return [plots.fetched(sums), plots.saved(sums)]


# -- what is wrong ----------------------------------------------------------------------------------------------------


def _worries(now: Overview) -> Iterator[str]:
    told = {one.of for one in now.lists.interrupted.rows}  # what was paused is nobody's worry, what failed has its own
    for held in now.store.installed.rows:
        is_told = held.status == "incomplete" and (held.model, held.version) in told
        if held.status != "ready" and not is_told:
            what = "lacks files: fetch it again" if held.status == "incomplete" else "is not as it was: repair it"
            yield f"{held.model} {what}"
    for one in now.lists.interrupted.rows:
        if one.status == "failed":
            yield f"{one.name} failed: {one.error}"
    for source in now.lists.sources.rows:
        if source.is_poor:
            yield f"{source.gateway} gave {as_percent(source.success_rate)} of what it was asked for"
    for job in now.lists.jobs.rows:
        if job.wrong or job.status in ("failed", "lost"):
            yield f"job {job.name}: {job.wrong or job.error or job.status}"
    disk = next(iter(now.store.disk.rows), None)
    if disk and disk.budget and disk.taken > disk.budget:
        yield "the store takes more than its budget: clean makes room"
