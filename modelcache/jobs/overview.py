"""Which jobs there are, and what ran: reports for people and programs.

Leaves to others: schedules (`schedule`), runs (`ledger`).
"""

import time

from modelcache.caching import Cache
from modelcache.configuration import fallback_for
from modelcache.errors import UsageError
from modelcache.jobs.job import Clock
from modelcache.jobs.ledger import Ledger, Run, in_order
from modelcache.jobs.schedule import Schedule, schedules
from modelcache.rows import Report
from modelcache.store.layout import Layout


def listed(cache: Cache, clock: Clock = time.time) -> Report:
    """One row a job: job, cron, next_at, last_at (ms since 1970, None for never), status of the last run, and what
    is wrong with its table. UsageError for a configuration file that cannot be read."""
    ledger, now = _ledger(cache), clock()
    rows = tuple(_row(one, ledger.runs(one.name, 1), now) for one in schedules(cache.root))
    return Report("jobs", rows, findings=sum(bool(row["wrong"]) for row in rows))


def _row(schedule: Schedule, runs: list[Run], now: float) -> dict[str, object]:
    instant = schedule.next(now)
    last = runs[0] if runs else None
    return {
        "job": schedule.name, "cron": schedule.cron.line if schedule.cron and schedule.enabled else "off",
        "next_at": None if instant is None else int(instant * 1000),
        "last_at": _known(last.started_at) if last else None,
        "status": last.status if last else "", "wrong": schedule.fault,
    }  # fmt: skip


def history(cache: Cache, job: str | None = None, most: int = 20) -> Report:
    """One row a run, the latest first: of one job or of all, so many of each. UsageError for a job that never ran and
    that there is not."""
    ledger = _ledger(cache)
    ran = ledger.jobs()
    if job is not None and job not in (*ran, *(one.name for one in schedules(cache.root))):
        raise UsageError(f"no job {job!r}", next_step="see `modelcache jobs list`")
    runs = [run for name in ([job] if job else ran) for run in ledger.runs(name, max(0, most))]
    rows = tuple(run_row(run) for run in sorted(runs, key=lambda run: (in_order(run.slot), run.job), reverse=True))
    return Report("runs of jobs", rows, hidden=("report",), none="none yet")


def run_row(run: Run) -> dict[str, object]:
    """Of a report, the rows that it has: those that the ledger keeps or, right after the run, all of them."""
    return {
        "job": run.job, "slot": run.slot, "host": run.owner.host if run.owner else "",
        "started_at": _known(run.started_at), "finished_at": _known(run.finished_at),
        "status": run.status, "findings": run.findings, "error": run.error,
        "report": None if run.report is None else {"title": run.report.title, "rows": list(run.report)},
    }  # fmt: skip


def _known(at_ms: int) -> int | None:
    """A moment; None for what has not been."""
    return at_ms or None


def _ledger(cache: Cache) -> Ledger:
    return Ledger(Layout(fallback_for(cache.root) or cache.root))
