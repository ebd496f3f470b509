"""The plots of what the metrics say over time, for the page and for a dashboard; each is SVG, or empty where there is
nothing to draw.

Responsible for: which numbers are drawn. Leaves to others: how a plot looks (`charts`), the numbers (`overview`).
"""

from collections.abc import Mapping

from modelcache.reporting import charts
from modelcache.reporting.charts import Scale
from modelcache.reporting.overview import Overview, Sums
from modelcache.reporting.window import DAY_MS, iso
from modelcache.units import in_units

MOST_LINES = 5  # in a plot; what is beyond them is in the table
MOST_STEPS = 400  # in a plot


def success(overview: Overview, width: int = charts.FULL) -> str:
    """How often the most used gateways gave what was asked of them."""
    sums = overview.groups["gateway"]
    asked = [gateway for gateway in most_used(sums) if sums[gateway].latencies or sums[gateway].error]
    rates = {gateway: _rates(overview, gateway) for gateway in asked[:MOST_LINES]}
    seen = [rate for values in rates.values() for rate in values if rate is not None]
    if len(_steps(overview)) < 2 or not seen:
        return ""
    lowest = min(seen)
    low = next(floor for floor in (0.9, 0.5, 0.0) if floor <= lowest)
    scale = Scale(low, 1.0, (1.0 - low) / 2)
    return charts.lines("Success rate", _labels(overview), rates, lambda rate: f"{100 * rate:.0f} %", scale, width)


def fetched(overview: Overview) -> str:
    """The bytes that came, by layer."""
    layers = most_used(overview.groups["layer"])
    series = {layer: _sums(overview, "bytes", layer) for layer in layers if overview.groups["layer"][layer].bytes}
    return charts.bars("Fetched, by source", _labels(overview), series, in_units, 1024)


def saved(overview: Overview) -> str:
    """The bytes that were here already."""
    series = {"by the cache": _sums(overview, "saved_cache"), "by resuming": _sums(overview, "saved_resume")}
    return charts.bars("Not fetched again", _labels(overview), series, in_units, 1024)


def most_used(groups: Mapping[str, Sums]) -> list[str]:
    return sorted(groups, key=lambda key: (-groups[key].total, key))


def _rates(overview: Overview, gateway: str) -> list[float | None]:
    found = []
    for step in _steps(overview):
        of_step = [sums for (_, name), sums in overview.over_time.get(step, {}).items() if name == gateway]
        total = sum(sums.total for sums in of_step)
        found.append(sum(sums.success for sums in of_step) / total if total else None)
    return found


def _sums(overview: Overview, what: str, layer: str = "") -> list[float | None]:
    return [
        sum(getattr(sums, what) for (name, _), sums in overview.over_time.get(step, {}).items() if layer in ("", name))
        for step in _steps(overview)
    ]


def _steps(overview: Overview) -> list[int]:
    """From the first that brought anything to the last of the window."""
    window = overview.window
    first = min(overview.over_time, default=window.stop_ms)
    return list(range(first, window.stop_ms, window.step_ms))[-MOST_STEPS:]


def _labels(overview: Overview) -> list[str]:
    is_by_day = overview.window.step_ms == DAY_MS
    return [iso(step)[5:10] if is_by_day else iso(step)[11:16] for step in _steps(overview)]
