"""What the attempts of some time come to: by layer, gateway, model and day, over time, and by what went wrong.

Responsible for: adding hauls up as they come, so that memory holds groups and not attempts, and the rows of the
summary (product H). Leaves to others: finding them (`state.hauls`), showing them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelcache.reporting.window import Window, day_of
from modelcache.state.hauls import Haul
from modelcache.state.histogram import percentile

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

    def add(self, haul: Haul) -> None:
        if haul.status == "error":
            self.error += haul.total
        else:
            self.success += haul.total
        if haul.status == "hit":
            self.saved_cache += haul.bytes
            return
        self.bytes += haul.bytes
        self.saved_resume += haul.resumed_bytes
        if haul.status == "success":
            self.good_bytes += haul.bytes
            self.good_ms += haul.duration_ms

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

    def add(self, haul: Haul) -> None:
        self.count += haul.total
        if haul.last_ms >= self.last_ms:
            self.last_ms, self.message = haul.last_ms, haul.message or self.message


class Overview:
    """Of a window. `over_time` is by step, then by layer and gateway; `speeds` are rounded down to powers of two."""

    def __init__(self, window: Window, hauls: Iterable[Haul]) -> None:
        self.window = window
        self.all = Sums()
        self.groups: dict[str, dict[str, Sums]] = {group: {} for group in GROUPS}
        self.over_time: dict[int, dict[tuple[str, str], Sums]] = defaultdict(dict)
        self.failures: dict[tuple[str, str, str], Failure] = {}  # by error type, layer, gateway
        self.speeds: Counter[float] = Counter()
        for haul in hauls:
            self._add(haul)

    def _add(self, haul: Haul) -> None:
        keys = {
            "layer": haul.layer, "gateway": gateway_of(haul.layer, haul.gateway), "model": haul.model,
            "day": day_of(haul.begins_ms),
        }  # fmt: skip
        for group, key in keys.items():
            sums = self.groups[group].setdefault(key, Sums())
            sums.add(haul)
            if haul.latencies:
                sums.latencies.update(haul.latencies)
        self.all.add(haul)
        self.over_time[haul.begins_ms].setdefault((haul.layer, keys["gateway"]), Sums()).add(haul)
        self.speeds.update(2 ** int(speed).bit_length() // 2 for speed in haul.speeds)
        if haul.status == "error":
            self.failures.setdefault((haul.error_type, haul.layer, keys["gateway"]), Failure()).add(haul)

    def rows(self, by: str | None = None) -> Iterator[dict[str, Any]]:
        """Of the summary: of one group, or of all; the most used first, days in their order."""
        for group in [by] if by else GROUPS:
            sums = self.groups[group]
            order = sorted(sums, key=lambda key: key if group == "day" else (-sums[key].total, key))
            yield from (sums[key].to_row(group, key) for key in order)


def gateway_of(layer: str, gateway: str) -> str:
    """What a source is called that has no host: the store itself, or a bundle."""
    return gateway or layer
