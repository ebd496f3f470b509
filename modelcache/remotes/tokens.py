"""What servers gave to be let in again, as long as it is good. In memory alone.

Responsible for: nothing but keeping it. Leaves to `access`: getting it, and who may see it.
"""

import math
import threading
import time

Key = tuple[str, ...]  # whose, for what, and who asked


class Tokens:
    """Headers `Authorization` by what they are for. Threads may use it at the same time.

    asking: to be held by whoever gets one, so that the others find it.
    """

    def __init__(self) -> None:
        self.asking = threading.Lock()
        self._guard = threading.Lock()
        self._known: dict[Key, tuple[str, float]] = {}

    def of(self, key: Key) -> str:
        """Empty where none is known, or the one that was has ended."""
        with self._guard:
            header, until = self._known.get(key, ("", 0.0))
            return header if time.monotonic() < until else ""

    def keep(self, key: Key, header: str, until: float = math.inf) -> None:
        """`until` is of the monotonic clock."""
        with self._guard:
            self._known[key] = header, until

    def forget(self, key: Key) -> None:
        with self._guard:
            self._known.pop(key, None)
