"""The widgets of a dashboard, in the core of ipywidgets alone (7.7 and later), so that every front end has them.

Responsible for: which widgets there are, in which order, and painting them: what has not changed is not sent. Leaves to
others: how a section looks (`sections`), what buttons are (`controls`) and do (`deeds`), when it is painted, and by
which thread (`live`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from modelcache.markup import framed, table, text
from modelcache.notebook import sections
from modelcache.notebook.controls import Deed, Line, Lines, Press, Works
from modelcache.notebook.deeds import Deeds, found_in
from modelcache.notebook.overview import Held, Interrupted, Overview, Queued, Running, Told
from modelcache.rows import shown
from modelcache.units import short_version

PARTS = ("head", "said", "running", "queued", "interrupted", "installed", "disk", "would go", "rest")
MOST_LISTED = 10  # of what clean would remove
T = TypeVar("T", Running, Queued, Interrupted)

_STYLE = """
.modelcache-dashboard .widget-html { margin: 0; width: 100%; height: auto; }
.modelcache-dashboard .widget-html-content { line-height: 1.5; height: auto; width: 100%; font-size: 13px; }
.modelcache-dashboard .said { min-height: 1.5em; }
""".strip()
STYLE = f"<style>{_STYLE}</style>"


class View:
    """Of one cache; `root` is what is displayed. Painted by one thread; what is pressed comes in any."""

    def __init__(self, deeds: Deeds, works: Works) -> None:
        import ipywidgets as widgets

        self._widgets: Any = widgets
        self._deeds = deeds
        self._works = works
        self.html = {part: widgets.HTML() for part in PARTS}
        self.running, self.queued, self.interrupted = Lines(works), Lines(works), Lines(works)
        self.chosen = widgets.Dropdown(options=(), layout=widgets.Layout(width="22rem"))
        self.chosen.observe(lambda _: works.changed(), "value")
        self._held: dict[Any, Held] = {}  # by what the list to choose from calls them
        self._is_queue_paused = False
        works_of = (deeds.verify, deeds.repair, deeds.pin, deeds.remove)
        self.of_chosen = [Press(works, partial(self._of_chosen, deed)) for deed in works_of]
        self.of_queue = [Press(works, lambda: deeds.of_queue(self._is_queue_paused)), Press(works, lambda: deeds.start)]
        self.look, self.clean = Press(works, lambda: deeds.look), Press(works, lambda: deeds.clean)
        self._queue_row = self._row(*(press.button for press in self.of_queue))
        self._chosen_row = self._row(self.chosen, *(press.button for press in self.of_chosen))
        self.root = widgets.VBox(self._children())
        self.root.add_class("modelcache")
        self.root.add_class("modelcache-dashboard")

    def _of_chosen(self, deed: Callable[[Held], Deed]) -> Deed | None:
        held = self._held.get(self.chosen.value)
        return deed(held) if held else None

    def _children(self) -> list[Any]:
        html = self.html
        cleaning = self._row(self.look.button, self.clean.button)
        return [
            html["head"], html["said"], html["running"], self.running.box, html["queued"], self.queued.box,
            self._queue_row, html["interrupted"], self.interrupted.box, html["installed"], self._chosen_row,
            html["disk"], cleaning, html["would go"], html["rest"],
        ]  # fmt: skip

    def _row(self, *children: Any) -> Any:
        return self._widgets.HBox(children, layout=self._widgets.Layout(flex_flow="row wrap"))

    def close(self) -> None:
        """Else they would stay in the kernel, and in the page, for good."""
        waiting = [self.root]
        while waiting:
            widget = waiting.pop()
            waiting += getattr(widget, "children", ())
            widget.close()

    # -- painting -----------------------------------------------------------------------------------------------------

    def paint(self, now: Overview) -> None:
        self.html["head"].value = framed(sections.STYLE + STYLE + sections.head(now))
        self._paint_said()
        self._paint_downloads(now)
        self._paint_installed(now)
        self.html["disk"].value = sections.disk(now.store.disk)
        self._paint_cleaning()
        self.html["rest"].value = sections.rest(now)

    def _paint_said(self) -> None:
        said = self._works.said
        kind = "bad" if said.is_error else "soft"
        words = f'<p class="said {kind}" role="status" aria-live="polite">{text(said.text)}</p>'
        self.html["said"].value = words

    def _paint_downloads(self, now: Overview) -> None:
        deeds, lists = self._deeds, now.lists
        self.html["running"].value = sections.running_title(now)
        self.running.paint(_lines(sections.all_running(now), sections.running_line, deeds.of_running))
        self.html["queued"].value = sections.queued_title(now)
        self.queued.paint(_lines(lists.queued, sections.queued_line, deeds.of_queued))
        self._is_queue_paused = lists.is_queue_paused
        for press in self.of_queue:
            press.paint()
        _show(self._queue_row, bool(lists.queued.rows))
        self.html["interrupted"].value = sections.interrupted_title(now)
        self.interrupted.paint(_lines(lists.interrupted, sections.interrupted_line, deeds.of_interrupted))

    def _paint_installed(self, now: Overview) -> None:
        told = now.store.installed
        self.html["installed"].value = sections.INSTALLED.html(told)
        self._held = {(one.model, one.version): one for one in told.rows}
        options = tuple((f"{model} @ {short_version(version)}", (model, version)) for model, version in self._held)
        if options != self.chosen.options:
            before = self.chosen.value
            self.chosen.options = options
            self.chosen.value = before if before in self._held else next(iter(self._held), None)
        for press in self.of_chosen:
            press.paint()
        _show(self._chosen_row, bool(self._held))

    def _paint_cleaning(self) -> None:
        found = found_in(self._deeds.would_go)
        self.look.paint()
        self.clean.paint()
        _show(self.clean.button, bool(found))
        self.html["would go"].value = _listed(found) if found else ""


def _lines(told: Told[T], html: Callable[[T], str], deeds: Callable[[T], tuple[Deed, ...]]) -> list[Line]:
    return [Line(row.id, html(row), deeds(row)) for row in told.rows[: sections.MOST_LINES]]


def _listed(found: Sequence[dict[str, Any]]) -> str:
    columns = ("kind", "model", "path", "size", "reason")
    rows = ([row[key] for key in columns] for row in found[:MOST_LISTED])
    return table(columns, rows, shown) + sections.more(len(found), MOST_LISTED)


def _show(widget: Any, is_shown: bool) -> None:
    display = None if is_shown else "none"
    if widget.layout.display != display:
        widget.layout.display = display
