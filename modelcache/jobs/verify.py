"""The job `verify`: a sweep, which reads a share of what is installed and says what has rotted.

Leaves everything else to `Cache.sweep`; nothing is deleted.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.rows import Report
from modelcache.sweeps.sweep import Plan

MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Options:
    share: str | float = "1/30"
    older_than: str | float = "10d"
    time_limit: str | float = 0
    rate_limit: str | int = 0
    strict: bool = False  # by the SHA-256 of whole files
    repair: bool = False
    also: tuple[str, ...] = ()  # hf, ollama, folders


def checked(given: Mapping[str, object]) -> Options:
    """UsageError for what means nothing. Whether the other places are there is seen when it runs."""
    options = options_of(Options, given)
    Plan.parsed(
        options.share, options.older_than, options.time_limit, options.rate_limit,
        strict=options.strict, repairs=options.repair, also=options.also,
    )  # fmt: skip
    return options


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a file that is not whole; the title says how much was read, a note what mends our own. Told to stop, it
    gives what it has."""
    options = checked(config.options)
    report = config.cache.sweep(
        share=options.share,
        older_than=options.older_than,
        time_limit=options.time_limit,
        rate_limit=options.rate_limit,
        strict=options.strict,
        repair=options.repair,
        also=options.also,
        progress=False,
        stop=stop,
        clock=clock,
    )
    rows = tuple(row for row in report if row["finding"] != "whole")
    return replace(report, rows=rows, notes=(*report.notes, *_notes(rows)))


def _notes(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if repaired := sum(row["repaired"] for row in rows):
        yield f"{repaired:,} of what was wrong {'is' if repaired == 1 else 'are'} mended: look after the disk"
    models = dict.fromkeys(row["model"] for row in rows if not row["where"] and not row["repaired"])
    if models:
        yield f"to mend it: modelcache repair {' '.join(models) if len(models) <= MOST_NAMED else ''}".rstrip()
