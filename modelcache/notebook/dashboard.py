"""`modelcache.dashboard()`: what a cache has and does, live in a notebook, and as it is elsewhere.

Responsible for: where it is displayed, that there is one live dashboard of a cache at a time, and what stays of it.
Leaves to others: what it tells (`overview`), how that looks (`sections`), keeping it up to date (`live`).
"""

import logging
from contextlib import suppress
from typing import Any

from modelcache.api import cache as default
from modelcache.caching import Cache
from modelcache.notebook.live import Live
from modelcache.notebook.overview import overview
from modelcache.notebook.sections import page, plain
from modelcache.progress import kernel

log = logging.getLogger(__name__)
_VIEW = "application/vnd.jupyter.widget-view+json"


class Dashboard:
    """Of a cache. In a notebook with ipywidgets it is live where it is displayed, until `close`, or until another one
    of the same cache is; without them, and elsewhere, it tells what is so when it is shown."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._live: Live | None = None
        self._handles: list[Any] = []

    def __repr__(self) -> str:
        return plain(overview(self._cache))

    def _repr_html_(self) -> str:
        return page(overview(self._cache))

    def _ipython_display_(self) -> None:
        if not kernel.is_here():
            print(self)
            return
        from IPython.display import display

        live = self._alive() if kernel.has_widgets() else None
        if live is not None:
            self._handles.append(display(live, raw=True, display_id=True))
        else:
            display(self._as_it_is(), raw=True)

    def _alive(self) -> dict[str, Any] | None:
        """None where ipywidgets is there, and broken."""
        try:
            return self._begin()
        except Exception:
            log.warning("a dashboard has no widgets", exc_info=True)
            return None

    def _begin(self) -> dict[str, Any]:
        """What is displayed: the widgets and, for viewers that have none, what is so now."""
        if self._live is None:
            self._cache.shows_live(self.close)
            self._live = Live(self._cache)
        now, model_id = self._live.now, self._live.view.root.model_id
        view = {"version_major": 2, "version_minor": 0, "model_id": model_id}  # 7.7 and 8 have other ways to ask for it
        return {_VIEW: view, "text/html": page(now), "text/plain": plain(now)}

    def _as_it_is(self) -> dict[str, Any]:
        now = overview(self._cache)
        return {"text/html": page(now), "text/plain": plain(now)}

    def close(self) -> None:
        """Ends it: what is displayed becomes what is so now, and stays in the notebook. What was begun goes on."""
        live, self._live = self._live, None
        if live is None:
            return
        live.end()
        handles, self._handles = self._handles, []
        for handle in handles:
            with suppress(Exception):
                handle.update(self._as_it_is(), raw=True)


def dashboard(cache: Cache | None = None) -> Dashboard:
    """What a cache has and does: what runs, waits and was interrupted, with buttons; what is installed, disk use, the
    health of sources, jobs, plots of the last days. `cache`: the default one, unless another is given."""
    return Dashboard(cache or default)
