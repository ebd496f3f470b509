"""The job `publish-metrics`: what the metrics say, as files that people and programs read.

Leaves everything else to `Cache.publish_metrics`.
"""

import threading
from dataclasses import dataclass

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.rows import Report


@dataclass(frozen=True, slots=True)
class Options:
    since: str = "30d"  # what the page is about
    parquet: bool = False  # the sheets in Parquet, too


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a file; none of them is a finding."""
    options = options_of(Options, config.options)
    return config.cache.publish_metrics(since=options.since, parquet=options.parquet, clock=clock, stop=stop)
