"""The job `publish-metrics`: what the metrics say, as files that people and programs read.

Leaves everything else to `Cache.publish_metrics`.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.reporting.window import Window
from modelcache.rows import Report


@dataclass(frozen=True, slots=True)
class Options:
    since: str = "30d"  # what the page is about
    parquet: bool = False  # the sheets in Parquet, too


def checked(given: Mapping[str, object], clock: Clock = time.time) -> Options:
    """UsageError for what means nothing."""
    options = options_of(Options, given)
    Window.since(options.since, round(1000 * clock()))
    return options


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a file; a day's sheet that knows more than the databases is left, and is a finding."""
    options = checked(config.options, clock)
    return config.cache.publish_metrics(since=options.since, parquet=options.parquet, clock=clock, stop=stop)
