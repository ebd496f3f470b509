"""SIGTERM and SIGINT: the first begins the end, the second is the end.

Leaves to others: what has to happen in between.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

BY_SIGNAL = 128  # an exit code is this and the number of the signal


class Signals:
    """Catches both from here on; for the main thread. `code` is the exit code that the first one asks for, 0 before."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin
        self.code = 0
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._told)

    def _told(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            os._exit(BY_SIGNAL + number)
        self.code = BY_SIGNAL + number
        self._begin()
