"""The daemon of `modelcache jobs start`, with the time that stands in a file: python jobdaemon.py CLOCK PATIENCE LOOK.

Whoever writes another time there moves its clock; nobody waits for real minutes.
"""

import logging
import sys
import threading
import time
from datetime import datetime, tzinfo
from pathlib import Path

import apscheduler.executors.base
import apscheduler.schedulers.base
import apscheduler.schedulers.blocking


def clock() -> float:
    return float(Path(sys.argv[1]).read_text())


class Moved(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime.fromtimestamp(clock(), tz)


class Awake(apscheduler.schedulers.blocking.BlockingScheduler):
    """It sleeps in real seconds: somebody has to wake it where the clock jumps."""

    def start(self) -> None:
        threading.Thread(target=self._wake, daemon=True).start()
        super().start()

    def _wake(self) -> None:
        while True:
            time.sleep(0.02)
            if self.running:
                self.wakeup()


apscheduler.schedulers.base.datetime = Moved
apscheduler.executors.base.datetime = Moved
apscheduler.schedulers.blocking.BlockingScheduler = Awake

if __name__ == "__main__":
    from modelcache.caching import Cache
    from modelcache.jobs.daemon import Timing, serve

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("modelcache.jobs").setLevel(logging.INFO)
    serve(Cache(), Timing(clock, patience_s=float(sys.argv[2]), look_every_s=float(sys.argv[3])))
