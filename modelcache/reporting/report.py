"""The report about a cache: the rows of the summary, and the page that goes with them.

Responsible for: putting them together. Leaves to others: each of them.
"""

from functools import partial

from modelcache.errors import UsageError
from modelcache.events import now_ms
from modelcache.reporting.holdings import holdings
from modelcache.reporting.overview import GROUPS, SUMMARY, Overview
from modelcache.reporting.page import Facts, page_of
from modelcache.reporting.window import Window
from modelcache.rows import Report
from modelcache.state.hauls import Hauls
from modelcache.state.place import Place
from modelcache.store.shelf import Shelf


def report(place: Place, shelf: Shelf, since: str, by: str | None) -> Report:
    """UsageError for what `since` or `by` cannot mean."""
    now = now_ms()
    if by not in (None, "all", *GROUPS):
        raise UsageError(f"by {by!r}: one of {', '.join(GROUPS)} is expected, or all")
    group = None if by == "all" else by
    window = Window.since(since, now)
    hauls = Hauls(place, now)
    overview = Overview(window, hauls.between(window.start_ms, window.stop_ms, window.step_ms))
    return Report(
        f"metrics of the last {since}" if since[-1:] in "mhdw" else f"metrics since {since}",
        tuple(overview.rows(group)),
        hidden=("group",) if group else (),
        columns=SUMMARY,
        notes=hauls.faults,
        page=partial(_page, place, shelf, overview, hauls),
    )


def _page(place: Place, shelf: Shelf, overview: Overview, hauls: Hauls) -> str:
    held = holdings(shelf, overview.window.stop_ms)
    return page_of(Facts(shelf.layout.root, place.host, overview, held, hauls.sizes(), hauls.faults, hauls.is_partial))
