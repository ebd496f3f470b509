"""What the buttons of a dashboard do, each in words of its own.

Responsible for: calling the cache, and saying in one line what came of it. Runs in threads of `controls`, and raises
what the cache raises. Leaves to others: that a press is meant (`controls`), all of the work (`caching`, `queueing`).
"""

from collections.abc import Callable
from typing import Any

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError, PausedError, UsageError, line_of
from modelcache.notebook.controls import Deed, Target, Tell
from modelcache.notebook.overview import Held, Interrupted, Queued, Running
from modelcache.progress.gauge import Sum
from modelcache.queueing import Ended, Queue
from modelcache.rows import Report
from modelcache.store.waitlist import HIGHEST
from modelcache.units import in_units, part_of

CLEAN: Target = ("clean",)
QUEUE: Target = ("queue",)


class Deeds:
    """Of one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._queue = Queue(cache)
        self.would_go: Report | None = None  # what the last dry run found
        self._is_new = False  # it is not what somebody was about to remove

    # -- downloads ----------------------------------------------------------------------------------------------------

    def of_running(self, one: Running) -> tuple[Deed, ...]:
        return (
            Deed((one.id,), "Pause", "pause", "Stop for now; every byte is kept", f"Pausing {one.name}",
                 lambda _: self._pause(one.id)),
            Deed((one.id,), "Cancel", "stop", "Stop and remove what is not complete", f"Cancelling {one.name}",
                 lambda _: self._cancel(one.id, one.name), "Sure? Cancel"),
        )  # fmt: skip

    def of_interrupted(self, one: Interrupted) -> tuple[Deed, ...]:
        label, icon, tip = ("Resume", "play", "Go on from where it stopped") if one.here else (
            "Try again", "refresh", "Ask for it once more")  # fmt: skip
        resume = Deed(("resume", one.id), label, icon, tip, f"{one.name} goes on",
                      lambda _: self._resume(one.id, one.name))  # fmt: skip
        discard = Deed((one.id,), "Discard", "trash", "Remove what is here of it", f"Discarding {one.name}",
                       lambda _: self._cancel(one.id, one.name), "Sure? Discard")  # fmt: skip
        return (resume, discard) if one.can_resume else (discard,)

    def _pause(self, download_id: str) -> str:
        return f"Paused: {in_units(self._cache.pause(download_id).downloaded_bytes)} are kept"

    def _resume(self, download_id: str, name: str) -> str:
        """Until it ends. Whoever pauses or cancels it says so himself."""
        try:
            self._cache.resume(download_id, progress=False)
        except PausedError:
            return ""
        return f"{name} is here"

    def _cancel(self, download_id: str, name: str) -> str:
        self._cache.cancel(download_id)
        return f"{name} is cancelled: what was not complete is removed"

    # -- the queue ----------------------------------------------------------------------------------------------------

    def of_queued(self, one: Queued) -> tuple[Deed, ...]:
        remove = Deed((one.id,), "Remove", "trash", "Take it out; bytes that are here stay", f"Removing {one.name}",
                      lambda _: self._take_out(one.id), "Sure? Remove")  # fmt: skip
        if one.status in ("failed", "paused"):
            again = Deed((one.id,), "Again", "refresh", "Let it wait again", f"Queueing {one.name}",
                         lambda _: self._again(one.id))  # fmt: skip
            return (again, remove)
        return (
            Deed((one.id,), "Sooner", "arrow-up", "Raise its priority by one", f"Raising {one.name}",
                 lambda _: self._moved(one.id, 1)),
            Deed((one.id,), "Later", "arrow-down", "Lower its priority by one", f"Lowering {one.name}",
                 lambda _: self._moved(one.id, -1)),
            remove,
        )  # fmt: skip

    def of_queue(self, is_paused: bool) -> Deed:
        if is_paused:
            return Deed(QUEUE, "Resume queue", "play", "Whoever runs it goes on", "Resuming the queue", self._go_on)
        return Deed(QUEUE, "Pause queue", "pause", "All of it, in every process", "Pausing the queue", self._hold)

    @property
    def start(self) -> Deed:
        tip = "Fetch what waits, in this kernel"
        return Deed(("fetch",), "Fetch now", "download", tip, "What waits is fetched in this kernel", self._fetch)

    def _moved(self, entry_id: str, by: int) -> str:
        for row in self._queue.entries():
            if row["id"] == entry_id:
                priority = max(-HIGHEST, min(HIGHEST, row["priority"] + by))
                self._queue.prioritize(entry_id, priority)
                return f"Its priority is {priority:,} now"
        raise UsageError("it is not in the queue any more")

    def _take_out(self, entry_id: str) -> str:
        self._queue.remove(entry_id)
        return "It is out of the queue; bytes that are here stay"

    def _again(self, entry_id: str) -> str:
        self._queue.retry(entry_id)
        self._queue.resume(entry_id)
        return "It waits again"

    def _hold(self, _: Tell) -> str:
        self._queue.pause()
        return "The queue is paused"

    def _go_on(self, _: Tell) -> str:
        self._queue.resume()
        return "The queue goes on where somebody runs it"

    def _fetch(self, _: Tell) -> str:
        """Until nothing waits, or the queue is paused."""
        ended: list[Ended] = []
        self._queue.run(progress=False, ended=ended.append)
        failed = [one for one in ended if one.error is not None]
        fetched = f"{len(ended) - len(failed):,} fetched"
        if failed:
            message = f"{fetched}, {len(failed):,} failed: {failed[-1].ref}: {line_of(failed[-1].error)}"
            raise ModelCacheError(message)
        return fetched if ended else ""

    # -- what is installed --------------------------------------------------------------------------------------------

    def verify(self, one: Held) -> Deed:
        return Deed(_target(one), "Verify", "check", "Read every byte of it", f"Verifying {one.model}",
                    lambda tell: self._verify(one, tell))  # fmt: skip

    def repair(self, one: Held) -> Deed:
        return Deed(_target(one), "Repair", "wrench", "Fetch what is wrong in it, and only that",
                    f"Repairing {one.model}", lambda tell: self._repair(one, tell))  # fmt: skip

    def pin(self, one: Held) -> Deed:
        if one.is_pinned:
            return Deed(_target(one), "Unpin", "unlock", "Let clean take it when it needs room",
                        f"Unpinning {one.model}", lambda _: self._unpin(one))  # fmt: skip
        return Deed(_target(one), "Pin", "lock", "Keep it when clean makes room", f"Pinning {one.model}",
                    lambda _: self._pin(one))  # fmt: skip

    def remove(self, one: Held) -> Deed:
        return Deed(_target(one), "Remove", "trash", "Take this version away", f"Removing {one.model}",
                    lambda _: self._remove(one), "Sure? Remove")  # fmt: skip

    def _verify(self, one: Held, tell: Tell) -> str:
        audits = self._cache.verify(one.model, one.version, progress=_how_far(one.size, tell))
        wrong = [row for row in audits if row["finding"] != "whole"]
        if wrong:
            return f"{one.model}: {len(wrong):,} of {_files(len(audits))} {wrong[0]['finding']}: press Repair"
        return "; ".join((f"{one.model} is right: {_files(len(audits))} read from end to end", *audits.notes))

    def _repair(self, one: Held, tell: Tell) -> str:
        rows = self._cache.repair([f"{one.model}@{one.version}"], progress=_how_far(one.size, tell))
        left = [row for row in rows if not row["repaired"]]
        if left:
            return f"{one.model}: {left[0]['file']} is not repaired: {left[0]['reason']}"
        if not rows:
            return "; ".join((f"Nothing is wrong with {one.model}", *rows.notes))
        return f"{one.model} is repaired: {in_units(sum(row['bytes_fetched'] for row in rows))} fetched"

    def _pin(self, one: Held) -> str:
        self._cache.pin(one.model, one.version)
        return f"{one.model} stays when clean makes room"

    def _unpin(self, one: Held) -> str:
        """Also where all versions of the model are pinned at once."""
        if not self._cache.unpin(one.model, one.version):
            self._cache.unpin(one.model)
        return f"{one.model} may go when clean makes room"

    def _remove(self, one: Held) -> str:
        freed = sum(row["size"] for row in self._cache.remove(one.model, one.version))
        return f"{one.model} is removed: {in_units(freed)} freed"

    # -- clean --------------------------------------------------------------------------------------------------------

    @property
    def look(self) -> Deed:
        return Deed(
            CLEAN, "Clean…", "search", "Show what would be removed", "Looking for what is of no use", self._look
        )

    @property
    def clean(self) -> Deed:
        found = found_in(self.would_go)
        size = in_units(sum(row["size"] for row in found))
        label = f"Remove these {len(found):,} ({size})"
        sure = f"Sure? {label}" if self._is_new else ""  # the second click of a double one is not meant for it
        return Deed(CLEAN, label, "trash", "Remove them now", "Cleaning", self._clean, sure)

    def _look(self, _: Tell) -> str:
        self.would_go, self._is_new = self._cache.clean(dry_run=True), False
        return "This is what clean would remove" if found_in(self.would_go) else "There is nothing to clean"

    def _clean(self, _: Tell) -> str:
        """Only what was shown: what else is found by now is shown first."""
        now = self._cache.clean(dry_run=True)
        if _things(now) != _things(self.would_go):
            self.would_go, self._is_new = now, True
            return "What clean would remove has changed: look at it, and press again"
        removed = self._cache.clean()
        self.would_go = None
        gone = [row for row in removed if row["removed"]]
        kept = f"; {removed.findings:,} stayed" if removed.findings else ""
        return f"{len(gone):,} removed, {in_units(sum(row['size'] for row in gone))} freed{kept}"


def found_in(report: Report | None) -> list[dict[str, Any]]:
    """What would go; a row of the budget says only what is over it."""
    return [row for row in report or () if row["kind"] != "budget"]


def _things(report: Report | None) -> list[tuple[object, ...]]:
    """What they are; a reason tells an age, which grows while it is read."""
    return sorted((row["kind"], row["model"], row["path"], row["size"]) for row in found_in(report))


def _target(one: Held) -> Target:
    return one.model, one.version


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _how_far(size: int, tell: Tell) -> Callable[[dict[str, Any]], None]:
    """Tells bytes from events."""
    sums = Sum(None)

    def hear(event: dict[str, Any]) -> None:
        if event["type"] == "model_download_progress" and event["file"]:
            sums.hear(event)
            tell(part_of(min(sums.here, size), size))

    return hear
