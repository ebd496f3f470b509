"""How often models were asked for, counted in memory until somebody writes.

Responsible for: costing the caller nothing that could be measured, and never growing without bound.
"""

import os
import threading

from modelcache.history import Use

MOST = 1000  # uses that are kept one by one; of more, only how many


class Uses:
    """Any thread counts, one takes. A child after a fork begins anew: what was here is its parent's to write."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._uses: list[Use] = []
        self._more: dict[str, int] = {}

    def count(self, use: Use) -> None:
        if self._pid != os.getpid():
            self._begin()
        with self._guard:
            if len(self._uses) < MOST:
                self._uses.append(use)
            else:
                self._more[use.model] = self._more.get(use.model, 0) + 1

    def take(self) -> tuple[list[Use], dict[str, int]]:
        """The uses since the last time, and how many more there were of each model."""
        if self._pid != os.getpid():
            self._begin()
        with self._guard:
            uses, more = self._uses, self._more
            self._uses, self._more = [], {}
        return uses, more
