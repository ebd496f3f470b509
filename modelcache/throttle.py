"""One rate for all connections: what may be received a second.

Responsible for: making workers wait, with an end. Leaves to `worker`: that waiting here is no source's fault.
"""

import threading
import time
from collections.abc import Callable

BURST_S = 0.25  # what may pass at once after a pause, as seconds of the rate
_LOOK_S = 0.1  # how often one that waits looks whether its request was ended


class Throttle:
    """Shared by everything that downloads in one process. All methods may be called from any thread."""

    def __init__(self, rate: int = 0) -> None:
        self._changed = threading.Condition()
        self._rate = rate
        self._paid_until = 0.0  # when everything that has passed is within the rate

    @property
    def rate(self) -> int:
        """Bytes/s for all connections together; 0: as fast as it goes."""
        return self._rate

    @rate.setter
    def rate(self, rate: int) -> None:
        """Counts from now on, also for those that wait at the moment."""
        with self._changed:
            now = time.monotonic()
            debt_s = max(0.0, self._paid_until - now)
            self._paid_until = now + (debt_s * self._rate / rate if rate else 0.0)
            self._rate = rate
            self._changed.notify_all()

    def take(self, count: int, check: Callable[[], None]) -> None:
        """Counts bytes that were received, and waits while there are more than the rate allows, or `check` raises."""
        if not self._rate:
            return
        with self._changed:
            if not self._rate:
                return
            self._paid_until = max(self._paid_until, time.monotonic() - BURST_S) + count / self._rate
            mine = self._paid_until
            while self._rate and (wait_s := min(mine, self._paid_until) - time.monotonic()) > 0:
                check()
                self._changed.wait(min(wait_s, _LOOK_S))
