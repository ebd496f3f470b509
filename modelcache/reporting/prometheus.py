"""The metrics as Prometheus reads them (product H): for a text file that node_exporter collects, and for a server.

Responsible for: the text format, version 0.0.4, and counters that never fall: they count all that is kept, attempts and
the days that older ones have become. Leaves to others: where the text goes.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modelcache.errors import VerificationError
from modelcache.reporting.overview import gateway_of
from modelcache.state.hauls import Haul, Hauls

BOUNDS_S = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0)


def exposition(hauls: Hauls, now_ms: int, cache_bytes: int) -> str:
    """All metrics. `cache_bytes` is what the store takes now."""
    counts = _Counts()
    for haul in hauls.between(0, now_ms):
        counts.add(haul)
    return "".join(f"{line}\n" for line in _lines(counts, cache_bytes))


@dataclass(slots=True)
class _Counts:
    """`downloads` by layer, gateway and status, `bytes` by layer and gateway, `within` by the index of the bound."""

    downloads: Counter[tuple[str, ...]] = field(default_factory=Counter)
    bytes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    within: Counter[int] = field(default_factory=Counter)
    took: int = 0
    took_ms: int = 0
    corrupt: int = 0

    def add(self, haul: Haul) -> None:
        gateway = gateway_of(haul.layer, haul.gateway)
        self.downloads[haul.layer, gateway, haul.status] += haul.total
        self.bytes[haul.layer, gateway] += haul.bytes
        if (haul.layer, haul.status, haul.error_type) == ("cache", "error", VerificationError.kind):
            self.corrupt += haul.total
        if haul.status != "success":
            return
        self.took += haul.total
        self.took_ms += haul.duration_ms
        for duration_ms, count in Counter(haul.durations).items():
            self.within[bisect_left(BOUNDS_S, duration_ms / 1000)] += count


def _lines(counts: _Counts, cache_bytes: int) -> Iterator[str]:
    yield from _head("modelcache_downloads_total", "counter", "Attempts to use a source, and files that were here.")
    yield from _samples("modelcache_downloads_total", ("layer", "gateway", "status"), counts.downloads)
    yield from _head("modelcache_bytes_total", "counter", "Bytes by where they came from; of the cache, were here.")
    yield from _samples("modelcache_bytes_total", ("layer", "gateway"), counts.bytes)
    yield from _head("modelcache_download_seconds", "histogram", "How long attempts took that succeeded.")
    below = 0
    for index, bound in enumerate(BOUNDS_S):
        below = min(below + counts.within[index], counts.took)
        yield f'modelcache_download_seconds_bucket{{le="{bound}"}} {below}'
    yield f'modelcache_download_seconds_bucket{{le="+Inf"}} {counts.took}'
    yield f"modelcache_download_seconds_sum {counts.took_ms / 1000}"
    yield f"modelcache_download_seconds_count {counts.took}"
    yield from _head("modelcache_cache_bytes", "gauge", "Bytes of the files in the store, each counted once.")
    yield f"modelcache_cache_bytes {cache_bytes}"
    yield from _head("modelcache_corrupt_files_total", "counter", "Files of the store that were found to have rotted.")
    yield f"modelcache_corrupt_files_total {counts.corrupt}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _samples(name: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], int]) -> Iterator[str]:
    for key in sorted(values):
        pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in zip(labels, key, strict=True))
        yield f"{name}{{{pairs}}} {values[key]}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
