"""How far, and how fast: sums and speeds from samples.

Responsible for: numbers that all who show progress share. Rules without I/O. Leaves to `bars`, `lines`: showing them.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from modelcache.units import as_clock, in_units, part_of

Sizes = Mapping[str, int | None]  # of each file of the model, None while unknown

SPEED_OVER_MS = 5000


class Sum:
    """The bytes of a whole model, from the samples of its files."""

    def __init__(self, sizes: Sizes | None) -> None:
        self._sizes = dict(sizes or {})
        self._expected = 0
        self._here: dict[str, int] = {}
        self.here = 0

    @property
    def total(self) -> int | None:
        """None while the size of a file is unknown."""
        known = [size for size in self._sizes.values() if size is not None]
        return self._expected or sum(known) if len(known) == len(self._sizes) else None

    def expect(self, total: int) -> None:
        """Its files are known only now: so many bytes in all."""
        self._expected = 0 if self._sizes else total

    def add(self, file: str, here: int, total: int, resumed: bool = False) -> int:
        """Takes a sample of a file; returns how many of its bytes did not come, but were here."""
        before = here - self._here.get(file, 0) if resumed or file not in self._here else 0
        self.here += here - self._here.get(file, 0)
        self._here[file] = here
        self._sizes[file] = total or self._sizes.get(file)
        return before

    def hear(self, event: dict[str, Any], resumed: bool = False) -> int:
        """The same, of a progress event."""
        return self.add(event["file"], event["bytesDownloaded"], event["totalBytes"], resumed)


class Gauge:
    """How far, and how fast in the last seconds, a stall included; at the end, in all the time."""

    def __init__(self, here: int = 0) -> None:
        self.here = self._before = here
        self._samples: deque[tuple[int, int]] = deque()  # (ms, bytes that came since the beginning)
        self._began_ms = 0

    def move(self, here: int, at_ms: int, before: int = 0) -> None:
        """`before` of these bytes did not come, they were here."""
        self._before += before
        if here < self.here:  # bytes proved wrong: what they took is no speed
            self._samples.clear()
            self._before = min(self._before, here)
        self.here = here
        self._began_ms = self._began_ms or at_ms
        self._samples.append((at_ms, here - self._before))
        while at_ms - self._samples[0][0] > SPEED_OVER_MS:
            self._samples.popleft()

    def columns(self, total: int, *, ended: bool = False) -> tuple[str, str, str]:
        """How much, how fast, how long still; each may be empty."""
        if not self._samples:
            return "", "", ""
        (since, before), (now, came) = self._samples[0], self._samples[-1]
        if ended:
            since, before = self._began_ms, 0
        speed = 1000 * (came - before) / (now - since) if now > since else 0.0
        rate = f"{in_units(speed)}/s" if speed else ""
        left = f"{as_clock((total - self.here) / speed)} left" if speed and total and not ended else ""
        return part_of(self.here, total), rate, left
