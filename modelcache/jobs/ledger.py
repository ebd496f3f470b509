"""What ran when, and how it ended: a file for each run, which is also the claim of its slot.

    jobs/<name>/<slot>.json     made by whoever is the first, exclusively; touched while it runs; replaced at its end

Responsible for: one run a slot, in whatever process and on whatever host (the file system decides, also while the
database of the state is damaged); telling a run that goes on from one that was lost; reading files that hold anything.
Leaves to `runner`: the lock of the job, which whoever claims has to hold.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from modelcache.errors import StoreError, UsageError
from modelcache.rows import Report
from modelcache.store.disk import (
    NO_ROOM,
    WRITE,
    check_no_links,
    create,
    disk_errors,
    make_directories,
    random_name,
    read_small,
    write_all,
    write_atomic,
)
from modelcache.store.layout import Layout
from modelcache.store.owner import Owner

FORMAT = 1
SILENT_S = 120.0  # without a beat: lost
MOST_ATTEMPTS = 2  # of a slot: what kills its process is not begun for ever
MOST_RUNS = 1000  # of a job, that are kept
MOST_ROWS = 1000  # of a report, that are kept
MOST_BYTES = 1 << 20
MOST_WORDS = 1000  # characters of a title, or of an error
FEW_WORDS = 200  # of an error, on a full disk: it has to fit where the claim stands
LATEST_MS = 1 << 47
NOTHING = (FileNotFoundError, NotADirectoryError)

Status = Literal["running", "ok", "findings", "failed", "stopped", "lost"]
_SLOT = re.compile("[0-9]{8}T[0-9]{4}(?:[0-9]{2})?Z")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job. Times are ms since 1970, 0 for what has not been. `error` says why it failed, or was stopped.

    `attempt` is 2 for one that took over a slot whose run was lost.
    """

    job: str
    slot: str
    status: Status
    owner: Owner | None = None
    started_at: int = 0
    finished_at: int = 0
    attempt: int = 1
    error: str = ""
    report: Report | None = None

    @property
    def findings(self) -> int:
        return 0 if self.report is None else self.report.findings

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "job": self.job, "slot": self.slot, "status": self.status,
            "owner": self.owner.to_json() if self.owner else None, "started_at": self.started_at,
            "finished_at": self.finished_at, "attempt": self.attempt, "error": self.error,
            "report": None if self.report is None else _told(self.report),
        }  # fmt: skip

    @classmethod
    def from_json(cls, job: str, slot: str, fields: object) -> Self:
        """ValueError where it is not a run."""
        match fields:
            case {
                "format": 1, "status": status, "owner": owner, "started_at": int(started), "finished_at": int(finished),
                "attempt": int(attempt), "error": str(error), "report": report,
            } if status in get_args(Status) and all(0 <= at < LATEST_MS for at in (started, finished)):  # fmt: skip
                parsed = Owner.from_json(owner) if owner is not None else None
                return cls(job, slot, status, parsed, started, finished, attempt, error, _report(report))
        raise ValueError("not a run")


class Ledger:
    """The runs of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def runs(self, job: str, most: int = MOST_RUNS) -> list[Run]:
        """The latest first. StoreError where they cannot be listed."""
        return [run for slot in self._slots(job)[:most] if (run := self.read(job, slot))]

    def jobs(self) -> list[str]:
        """Those that have ever run here."""
        with disk_errors(self._layout.jobs), suppress(*NOTHING), os.scandir(self._layout.jobs) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return []

    def read(self, job: str, slot: str) -> Run | None:
        """None where the slot is free. What cannot be read is a run, too: it counts as lost when it falls silent.

        StoreError where nobody can tell whether there is one.
        """
        path = self._path(job, slot)
        run = Run(job, slot, "running")
        try:
            content = read_small(path, 2 * MOST_BYTES)
            if content is None:
                return None
            run = Run.from_json(job, slot, json.loads(content))
        except (ValueError, RecursionError):
            pass
        except StoreError:
            if not os.path.lexists(path):
                raise
        if run.status == "running" and _is_lost(run, path):
            return replace(run, status="lost")
        return run

    def is_open(self, job: str, slot: str) -> bool:
        """Whether there is something to run: nobody has, or whoever did was lost on the way."""
        run = self.read(job, slot)
        return run is None or (run.status == "lost" and run.attempt < MOST_ATTEMPTS)

    def claim(self, job: str, slot: str, started_at: int) -> "Claim | None":
        """For whoever holds the lock of the job; None where the slot is somebody else's, or has been run.

        The file itself is the claim: that a full disk has no room for what it says makes no difference. StoreError
        where no file can be made.
        """
        if not _SLOT.fullmatch(slot):
            raise UsageError(f"{slot[:40]!r} is no slot", next_step="it is called as in 20261123T0300Z, in UTC")
        path, folder = self._path(job, slot), os.path.dirname(self._path(job, slot))
        run = Run(job, slot, "running", Owner.mine(), started_at)
        check_no_links(self._layout.root, folder)
        make_directories(folder)
        with disk_errors(path):
            try:
                fd = create(path)
            except FileExistsError:
                return self._taken_over(path, run)
            try:
                write_all(fd, memoryview(json.dumps(run.to_json()).encode()), 0)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
            finally:
                os.close(fd)
        return Claim(path, run)

    def _taken_over(self, path: str, run: Run) -> "Claim | None":
        before = self.read(run.job, run.slot)
        if before is None or before.status != "lost" or before.attempt >= MOST_ATTEMPTS:
            return None
        run = replace(run, attempt=before.attempt + 1)
        if os.path.isdir(path) and not os.path.islink(path):  # nobody's record: no file could take its place
            with disk_errors(path):
                os.rename(path, f"{path}.{random_name(4)}")
        write_atomic(path, json.dumps(run.to_json()).encode())
        return Claim(path, run)

    def forget(self, job: str, slot: str, age_s: float) -> None:
        """After the run of a slot: removes what ended so long before the last run but this, and the oldest of too many.

        So a clock that was ahead for one run (I14) makes it forget nothing that is not that old, for a slot whose run
        was forgotten would run again. What seems to be yet to come stays. What cannot be removed stays, too.
        """
        now = self._ended_at(job, slot)
        dated = ((self._ended_at(job, one), one) for one in self._slots(job) if one != slot)
        past = sorted(((at, one) for at, one in dated if at <= now), reverse=True)
        for index, (at, one) in enumerate(past):
            if at < past[0][0] - age_s or index >= MOST_RUNS - 1:
                with suppress(OSError):
                    os.unlink(self._path(job, one))

    def _ended_at(self, job: str, slot: str) -> float:
        """By the clock of the disk, seconds since 1970; 0 where nobody can tell."""
        try:
            return os.lstat(self._path(job, slot)).st_mtime
        except OSError:
            return 0.0

    def _slots(self, job: str) -> list[str]:
        folder = os.path.join(self._layout.jobs, job)
        with disk_errors(folder), suppress(*NOTHING):
            names = (name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json"))
            return sorted((name for name in names if _SLOT.fullmatch(name)), key=in_order, reverse=True)
        return []

    def _path(self, job: str, slot: str) -> str:
        return os.path.join(self._layout.jobs, job, slot + ".json")


def in_order(slot: str) -> str:
    """What slots are sorted by: 0300Z is before 030015Z."""
    return slot.removesuffix("Z")


class Claim:
    """A slot that is ours."""

    def __init__(self, path: str, run: Run) -> None:
        self._path = path
        self.run = run

    def beat(self) -> None:
        """Shows that it goes on. Never raises."""
        with suppress(OSError):
            os.utime(self._path)

    def end(self, status: Status, finished_at: int, *, error: str = "", report: Report | None = None) -> Run:
        """How it was, which is returned also where it cannot be recorded: StoreError then has it as `run`."""
        error = error[:MOST_WORDS]
        self.run = replace(self.run, status=status, finished_at=finished_at, error=error, report=report)
        try:
            write_atomic(self._path, json.dumps(self.run.to_json()).encode())
        except StoreError:
            self.run = replace(self.run, error=error or "its report could not be kept")
            _write_over(self._path, replace(self.run, error=self.run.error[:FEW_WORDS], report=None))
        return self.run


def _write_over(path: str, run: Run) -> None:
    """In place, which needs no room: that it has ended counts for more than that a reader sees all or nothing."""
    with disk_errors(path):
        fd = os.open(path, WRITE)
        try:
            content = json.dumps(run.to_json()).encode()
            write_all(fd, memoryview(content), 0)
            os.ftruncate(fd, len(content))
            os.fsync(fd)
        finally:
            os.close(fd)


def _is_lost(run: Run, path: str) -> bool:
    if run.owner is not None and run.owner.is_proven_dead():
        return True
    try:
        return abs(time.time() - os.lstat(path).st_mtime) > SILENT_S
    except OSError:
        return False


def _told(report: Report) -> dict[str, Any]:
    """What is kept of it: the first rows, as far as there is room."""
    rows: list[Any] = []
    size = 0
    for row in plain(report.rows[:MOST_ROWS]):
        size += len(json.dumps(row))
        if size > MOST_BYTES:
            break
        rows.append(row)
    return {"title": report.title[:MOST_WORDS], "findings": report.findings, "total": len(report.rows), "rows": rows}


def plain(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As JSON has them. Without those that it cannot have: a cell may be an object of the job's own."""
    for row in rows:
        with suppress(Exception):
            yield json.loads(json.dumps(row, default=str))


def _report(fields: object) -> Report | None:
    match fields:
        case {"title": str(title), "findings": int(findings), "rows": list(rows)} if findings >= 0:
            return Report(title, tuple(row for row in rows if isinstance(row, dict)), findings=findings)
    return None
