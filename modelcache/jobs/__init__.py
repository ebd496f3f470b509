"""What looks after the cache by itself, at times that the settings name.

import modelcache as mc
jobs = mc.jobs.start()      # in this process, until it ends or jobs.stop()
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelcache.caching import Cache
    from modelcache.jobs.daemon import Jobs


def start(cache: "Cache | None" = None) -> "Jobs":
    """Runs jobs in the background of this process: in a notebook they end with its kernel.

    `modelcache jobs start` is what to run where they are to go on. UsageError for a configuration file that cannot be
    read.
    """
    from modelcache.api import cache as default
    from modelcache.jobs import daemon

    return daemon.start(cache or default)
