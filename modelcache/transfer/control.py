"""How a running transfer is told to stop, from any thread.

Responsible for: one flag with a reason, and waits that end when it is raised.
"""

import threading
import time

from modelcache.errors import PausedError


class Control:
    """Shared by everything that works for one download."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._reason: PausedError | None = None

    @property
    def stopped(self) -> bool:
        return self._reason is not None

    def stop(self, reason: PausedError) -> None:
        """The first reason counts. Returns at once; whoever works notices within 0.1 s."""
        self._reason = self._reason or reason
        self._changed.set()

    def check(self) -> None:
        """Raises the reason once stopped."""
        if self._reason is not None:
            raise self._reason

    def wait(self, seconds: float) -> None:
        """Sleeps, but not beyond a stop."""
        self._changed.wait(max(0.0, seconds))
        self.check()

    def wait_until(self, moment: float) -> None:
        """Like `wait`, up to a moment of the monotonic clock."""
        self.wait(moment - time.monotonic())
