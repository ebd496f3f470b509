"""The job `refresh`: asks hubs what branches and tags mean by now, so that no fetch has to.

Leaves everything else to `Cache.refresh`; nothing is fetched.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from modelcache.jobs.job import Clock, Config, options_of
from modelcache.rows import Report


@dataclass(frozen=True, slots=True)
class Options:
    pass


def checked(given: Mapping[str, object]) -> Options:
    """UsageError for what means nothing."""
    return options_of(Options, given)


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a branch or tag; one that could not be asked about is a finding."""
    checked(config.options)
    return config.cache.refresh(stop=stop)
