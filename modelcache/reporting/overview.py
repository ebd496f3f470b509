"""What the attempts of some time come to: by layer, gateway, model and day, over time, and by what went wrong.

Responsible for: adding tallies up as they come, so that memory holds groups and not attempts, and the rows of the
summary (product H). Leaves to others: finding them (`state.tallies`), showing them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelcache.reporting.window import Window, day_of
from modelcache.state.histogram import percentile
from modelcache.state.tallies import Tally

GROUPS = ("layer", "gateway", "model", "day")
SUMMARY = (
    "group", "key", "total", "success", "error", "success_rate", "latency_p50_ms", "latency_p95_ms", "throughput_bps",
    "bytes", "bytes_saved_cache", "bytes_saved_resume",
)  # fmt: skip


@dataclass(slots=True)
class Sums:
    """Of one group. What was here already is a success, too; it has no latency and no throughput, for nobody was asked.

    `bytes` came from sources; `saved_cache` did not have to, for a file was here, `saved_resume`, for a part of it was.
    """

    success: int = 0
    error: int = 0
    bytes: int = 0
    saved_cache: int = 0
    saved_resume: int = 0
    good_bytes: int = 0
    good_ms: int = 0
    latencies: Counter[float] = field(default_factory=Counter)

    def add(self, tally: Tally) -> None:
        if tally.status == "error":
            self.error += tally.total
        else:
            self.success += tally.total
        if tally.status == "hit":
            self.saved_cache += tally.bytes
            return
        self.bytes += tally.bytes
        self.saved_resume += tally.resumed_bytes
        if tally.status == "success":
            self.good_bytes += tally.bytes
            self.good_ms += tally.duration_ms

    @property
    def total(self) -> int:
        return self.success + self.error

    @property
    def success_rate(self) -> float | None:
        return round(self.success / self.total, 4) if self.total else None

    @property
    def throughput(self) -> int | None:
        """Bytes/s of one connection, from being asked to its end."""
        return round(1000 * self.good_bytes / self.good_ms) if self.good_ms and self.good_bytes else None

    def latency(self, percent: int) -> int | None:
        found = percentile(self.latencies, percent)
        return None if found is None else round(found)

    def to_row(self, group: str, key: str) -> dict[str, Any]:
        """Of the summary. None for what nobody could measure."""
        values = (
            group, key, self.total, self.success, self.error, self.success_rate, self.latency(50), self.latency(95),
            self.throughput, self.bytes, self.saved_cache, self.saved_resume,
        )  # fmt: skip
        return dict(zip(SUMMARY, values, strict=True))


@dataclass(slots=True)
class Failure:
    """Errors of one kind at one gateway; `message` is that of the latest that is kept."""

    count: int = 0
    last_ms: int = 0
    message: str = ""

    def add(self, tally: Tally) -> None:
        self.count += tally.total
        if tally.last_ms >= self.last_ms:
            self.last_ms, self.message = tally.last_ms, tally.message or self.message


class Overview:
    """Of a window. `over_time` is by step, then by layer and gateway."""

    def __init__(self, window: Window, tallies: Iterable[Tally]) -> None:
        self.window = window
        self.all = Sums()
        self.groups: dict[str, dict[str, Sums]] = {group: {} for group in GROUPS}
        self.over_time: dict[int, dict[tuple[str, str], Sums]] = defaultdict(dict)
        self.failures: dict[tuple[str, str, str], Failure] = {}  # by error type, layer, gateway
        self.speeds: Counter[float] = Counter()
        for tally in tallies:
            self._add(tally)

    def _add(self, tally: Tally) -> None:
        keys = {
            "layer": tally.layer, "gateway": gateway_of(tally.layer, tally.gateway), "model": tally.model,
            "day": day_of(tally.begins_ms),
        }  # fmt: skip
        for group, key in keys.items():
            sums = self.groups[group].setdefault(key, Sums())
            sums.add(tally)
            sums.latencies.update(tally.latencies)
        self.all.add(tally)
        self.over_time[tally.begins_ms].setdefault((tally.layer, keys["gateway"]), Sums()).add(tally)
        self.speeds.update(tally.speeds)
        if tally.status == "error":
            self.failures.setdefault((tally.error_type, tally.layer, keys["gateway"]), Failure()).add(tally)

    def rows(self, by: str | None = None) -> Iterator[dict[str, Any]]:
        """Of the summary: of one group, or of all; the most used first, days in their order."""
        for group in [by] if by else GROUPS:
            sums = self.groups[group]
            order = sorted(sums, key=lambda key: key if group == "day" else (-sums[key].total, key))
            yield from (sums[key].to_row(group, key) for key in order)


def gateway_of(layer: str, gateway: str) -> str:
    """What a source is called that has no host: the store itself, or a bundle."""
    return gateway or layer
