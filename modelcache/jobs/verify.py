"""The job `verify`: reads what is installed, and says what has rotted.

Leaves everything else to `Cache.verify`; nothing is deleted.
"""

import threading
from dataclasses import dataclass
from typing import Any

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.rows import Report


@dataclass(frozen=True, slots=True)
class Options:
    strict: bool = False  # by the SHA-256 of whole files


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a file; what is not whole is a finding."""
    options = options_of(Options, config.options)
    rows: list[dict[str, Any]] = []
    for model in config.cache.models():
        if stop.is_set():
            break
        rows += config.cache.verify(model["model"], model["version"], strict=options.strict, progress=False)
    return Report("verified files", tuple(rows), findings=sum(row["finding"] != "whole" for row in rows))
