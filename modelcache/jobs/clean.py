"""The job `clean`: removes what is nobody's and too old.

Leaves everything else to `Cache.clean`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.rows import Report


@dataclass(frozen=True, slots=True)
class Options:
    dry_run: bool = False  # only tells what would be removed
    foreign: bool = False  # also what other tools began, and left for a day


def checked(given: Mapping[str, object]) -> Options:
    """UsageError for what means nothing."""
    return options_of(Options, given)


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a find; what should go and could not be removed is a finding. Told to stop, it gives what it has."""
    options = checked(config.options)
    return config.cache.clean(dry_run=options.dry_run, foreign=options.foreign, stop=stop)
