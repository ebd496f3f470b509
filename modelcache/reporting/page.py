"""The page about a cache: what a person wants to know first at the top, then what it rests on.

Responsible for: what is on it, and in which order. Leaves to others: how a page, a table and a plot look (`markup`,
`charts`), the numbers (`overview`, `holdings`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelcache import __version__
from modelcache.markup import page, table, text
from modelcache.reporting import charts, plots
from modelcache.reporting.charts import Scale, Series
from modelcache.reporting.holdings import Holdings
from modelcache.reporting.overview import Overview, Sums
from modelcache.reporting.window import iso
from modelcache.state.hauls import Size
from modelcache.units import as_percent, in_units

MOST_ROWS = 20
MOST_NAMED = 10
POOR = 0.9  # a gateway that succeeds more seldom is worth a look
ENOUGH = 5  # attempts, before that is said


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page is about. `place` is the root, `sizes` how large the store was, day by day."""

    place: str
    host: str
    overview: Overview
    holdings: Holdings
    sizes: Sequence[Size]
    faults: Sequence[str]
    is_partial: bool = False


def page_of(facts: Facts) -> str:
    parts = (_head, _first, _gateways, _bytes, _speed, _errors, _store, _models, _days, _foot)
    return page(f"modelcache: {facts.place}", "\n".join(line for part in parts for line in part(facts)))


# -- the top ----------------------------------------------------------------------------------------------------------


def _head(facts: Facts) -> Iterator[str]:
    window = facts.overview.window
    yield "<h1>Model cache</h1>"
    yield (
        f'<p class="soft">{text(facts.place)} on {text(facts.host)}<br>'
        f"{_moment(window.start_ms)} to {_moment(window.stop_ms)} UTC</p>"
    )


def _first(facts: Facts) -> Iterator[str]:
    worries = [*_worries(facts)]
    if worries:
        what = "thing needs" if len(worries) == 1 else "things need"
        yield f'<p class="lead bad">{len(worries)} {what} attention</p>'
        yield f"<ul>{''.join(f'<li>{text(worry)}</li>' for worry in worries)}</ul>"
    else:
        yield '<p class="lead good">Nothing needs attention</p>'
    tiles = "".join(
        f'<li>{text(name)}<b>{text(value)}</b><span class="soft">{text(more)}</span></li>'
        for name, value, more in _tiles(facts)
    )
    yield f'<ul class="tiles">{tiles}</ul>'


def _worries(facts: Facts) -> Iterator[str]:
    wrong, incomplete = facts.holdings.wrong, facts.holdings.incomplete
    if wrong:
        yield f"{_count(len(wrong), 'corrupt file')} in the store: {_named(wrong)}: run modelcache repair"
    if incomplete:
        yield f"{_count(len(incomplete), 'incomplete model')}: {_named(incomplete)}: run modelcache fetch"
    for gateway, sums in _sources(facts.overview).items():
        if sums.total >= ENOUGH and sums.success < POOR * sums.total:
            yield f"{gateway} failed {sums.error:,} of {sums.total:,} times"
    yield from facts.faults


def _sources(overview: Overview) -> dict[str, Sums]:
    """Without the store and other caches on this disk: of these an error is a file that had rotted, and which of them
    are so still is in the holdings."""
    asked = {gateway for step in overview.over_time.values() for layer, gateway in step if layer != "cache"}
    return {gateway: sums for gateway, sums in overview.groups["gateway"].items() if gateway in asked}


def _tiles(facts: Facts) -> Iterator[tuple[str, str, str]]:
    sums, holdings = facts.overview.all, facts.holdings
    rate = sums.success_rate
    saved = sums.saved_cache + sums.saved_resume
    all_bytes = sums.bytes + saved
    yield "Succeeded", "\u2013" if rate is None else as_percent(rate), f"{sums.success:,} of {sums.total:,}"
    yield "Fetched", in_units(sums.bytes), f"{_rate(sums.throughput)} a connection" if sums.throughput else ""
    yield (
        "Not fetched again",
        in_units(saved),
        f"{as_percent(saved / all_bytes)} of what was asked for" if all_bytes else "",
    )
    yield (
        "In the store",
        in_units(holdings.size.bytes),
        f"{_count(holdings.models, 'model')}, {_count(holdings.files, 'file')}",
    )
    yield "Found corrupt", f"{len(holdings.wrong):,}", _verified_since(holdings)


def _verified_since(holdings: Holdings) -> str:
    return f"all others verified since {iso(holdings.oldest_ms)[:10]}" if holdings.oldest_ms else "nothing to verify"


# -- sources ----------------------------------------------------------------------------------------------------------


def _gateways(facts: Facts) -> Iterator[str]:
    sums = facts.overview.groups["gateway"]
    yield "<h2>Sources</h2>"
    if not sums:
        yield '<p class="soft">Nothing was asked for in this time.</p>'
        return
    yield plots.success(facts.overview)
    yield _summary(facts.overview, "gateway")


def _summary(overview: Overview, group: str) -> str:
    rows = [*overview.rows(group)]
    columns = (group, "asked", "failed", "succeeded", "latency p50", "p95", "speed", "fetched", "not again")
    cells = (
        (
            row["key"], row["total"], row["error"], row["success_rate"], row["latency_p50_ms"], row["latency_p95_ms"],
            row["throughput_bps"], row["bytes"], row["bytes_saved_cache"] + row["bytes_saved_resume"],
        )
        for row in rows[:MOST_ROWS]
    )  # fmt: skip
    return table(columns, cells, _cell) + _more(len(rows))


def _cell(column: str, value: object) -> str:
    if value is None or not isinstance(value, int | float):
        return "" if value is None else str(value)
    return _SHOWN.get(column, "{:,}".format)(value)


def _more(count: int) -> str:
    return f'<p class="soft">and {count - MOST_ROWS:,} more</p>' if count > MOST_ROWS else ""


# -- bytes and speed --------------------------------------------------------------------------------------------------


def _bytes(facts: Facts) -> Iterator[str]:
    overview = facts.overview
    if not (overview.all.bytes or overview.all.saved_cache or overview.all.saved_resume):
        return
    yield "<h2>Bytes</h2>"
    yield '<div class="pair">'
    yield plots.fetched(overview)
    yield plots.saved(overview)
    yield "</div>"
    yield _summary(overview, "layer")


def _speed(facts: Facts) -> Iterator[str]:
    latencies = _merged(facts.overview.groups["layer"])
    if not latencies:
        return
    yield "<h2>Speed</h2>"
    yield '<div class="pair">'
    yield charts.distribution("Attempts, by the time to the first byte", "up to twice that", latencies, _duration)
    speeds = facts.overview.speeds
    if speeds:
        yield charts.distribution(
            "Attempts, by the speed of a connection",
            "up to twice that",
            speeds,
            lambda speed: f"{in_units(speed)}/s",
        )
    yield "</div>"


def _merged(groups: Mapping[str, Sums]) -> dict[float, int]:
    merged: dict[float, int] = {}
    for sums in groups.values():
        for value, count in sums.latencies.items():
            merged[value] = merged.get(value, 0) + count
    return merged


# -- what went wrong, and what is here --------------------------------------------------------------------------------


def _errors(facts: Facts) -> Iterator[str]:
    failures = facts.overview.failures
    yield "<h2>Errors</h2>"
    if not failures:
        yield '<p class="soft">None.</p>'
        return
    worst = sorted(failures.items(), key=lambda pair: (-pair[1].count, pair[0]))
    rows = [
        (kind, gateway, failure.count, _moment(failure.last_ms), failure.message)
        for (kind, _, gateway), failure in worst[:MOST_ROWS]
    ]
    yield table(("error", "gateway", "times", "last, UTC", "which said"), rows, _cell)
    yield _more(len(worst))


def _store(facts: Facts) -> Iterator[str]:
    holdings = facts.holdings
    sizes = [*(size for size in facts.sizes if size.day < holdings.size.day), holdings.size]
    yield "<h2>Store</h2>"
    yield '<div class="pair">'
    if len(sizes) > 1:
        series: Series = {"size": [size.bytes for size in sizes]}
        labels = [size.day[5:] for size in sizes]
        scale = Scale.up_to(max(size.bytes for size in sizes), 1024)
        yield charts.lines("Size", labels, series, in_units, scale, charts.HALF)
    else:
        yield '<p class="soft">How it grows is shown here once the job publish-metrics has run on another day.</p>'
    yield f"<figure><h3>Integrity</h3>{_integrity(holdings, facts.overview)}</figure>"
    yield "</div>"


def _integrity(holdings: Holdings, overview: Overview) -> str:
    rotted = sum(failure.count for (_, layer, _), failure in overview.failures.items() if layer == "cache")
    names = {days: f"verified within {_count(days, 'day')}" for days in holdings.verified if days} | {
        None: "longer ago"
    }
    rows = [(names[days], count) for days, count in holdings.verified.items()]
    rows += [("corrupt", len(holdings.wrong)), ("found corrupt in this time, mended or not", rotted)]
    return table(("files", "how many"), rows, _cell)


def _models(facts: Facts) -> Iterator[str]:
    if facts.overview.groups["model"]:
        yield "<h2>Models</h2>"
        yield _summary(facts.overview, "model")


def _days(facts: Facts) -> Iterator[str]:
    if facts.overview.groups["day"]:
        yield f"<details><summary>Day by day</summary>{_summary(facts.overview, 'day')}</details>"


def _foot(facts: Facts) -> Iterator[str]:
    others = "Without what other accounts did, whose databases are theirs alone. " if facts.is_partial else ""
    yield (
        f"<footer>modelcache {text(__version__)}. {others}Success counts files that were here already; latency is the"
        " time to the first byte, throughput that of one connection, both of attempts that succeeded. Days are UTC's."
        "</footer>"
    )


# -- words ------------------------------------------------------------------------------------------------------------


def _moment(at_ms: int) -> str:
    return iso(at_ms)[:16].replace("T", " ")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _duration(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.0f} s"


def _rate(speed: float) -> str:
    return f"{in_units(speed)}/s"


_SHOWN: dict[str, Callable[[float], str]] = {  # numbers of tables, by their columns
    "succeeded": as_percent, "latency p50": _duration, "p95": _duration, "speed": _rate, "fetched": in_units,
    "not again": in_units,
}  # fmt: skip
