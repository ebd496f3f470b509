"""What can be pressed: buttons whose work goes on in a thread, and lines with buttons beside them.

Responsible for: that one press begins one piece of work, that what cannot be undone is pressed twice, that a button is
disabled while its work goes on, and that what came of it is one line, an error too. Whoever presses only leaves word;
widgets are changed by the thread that paints alone. Only the core of ipywidgets is used, as it is since 7.7.
Leaves to others: what a button does (`deeds`), when all of it is painted (`live`).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelcache.errors import ModelCacheError, told

SURE_S = 5.0  # within which the second press has to come
Target = tuple[str, ...]  # what it is done to
Tell = Callable[[str], None]  # how far it is, for people
Work = Callable[[Tell], str]  # returns what came of it; nothing where there is nothing to say
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deed:
    """What a button does, to what. `words` say so while it goes on; with `sure`, which it says after the first press,
    it takes a second one."""

    target: Target
    label: str
    icon: str
    tip: str
    words: str
    work: Work
    sure: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """The last that is to be said."""

    text: str = ""
    is_error: bool = False


class Works:
    """What goes on, a thread each; never two on the same target. All methods may be called from any thread."""

    def __init__(self, changed: Callable[[], None], clock: Callable[[], float]) -> None:
        self.changed = changed
        self.clock = clock
        self.ended = 0  # how many
        self._guard = threading.Lock()
        self._going: dict[Target, str] = {}
        self._said = Said()

    @property
    def said(self) -> Said:
        """What came of the last, until another one begins, and what goes on."""
        with self._guard:
            texts = filter(None, (self._said.text, *self._going.values()))
            return Said("; ".join(texts), self._said.is_error)

    def is_busy(self, target: Target) -> bool:
        return target in self._going

    def begin(self, deed: Deed) -> None:
        with self._guard:
            if deed.target in self._going:
                return
            self._said = Said()
            self._going[deed.target] = f"{deed.words}…"
        thread = threading.Thread(target=self._run, args=(deed,), name="modelcache-dashboard-work", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._end(deed.target, Said(f"this machine has no thread for it: {error}", is_error=True))
        self.changed()

    def _run(self, deed: Deed) -> None:
        def tell(how_far: str) -> None:
            with self._guard:
                if deed.target in self._going:  # it may come late
                    self._going[deed.target] = f"{deed.words}: {how_far}"

        try:
            said = Said(deed.work(tell))
        except ModelCacheError as error:
            said = Said(error.line(), is_error=True)
        except BaseException as error:  # whatever it is, the button must not stay disabled
            log.exception("%s failed", deed.words)
            said = Said(told(error), is_error=True)
        self._end(deed.target, said)

    def _end(self, target: Target, said: Said) -> None:
        with self._guard:
            del self._going[target]
            self._said = said if said.text else self._said
            self.ended += 1
        self.changed()


class Press:
    """A button. `deed` makes what it does at the moment; None while there is nothing to do it to."""

    def __init__(self, works: Works, deed: Callable[[], Deed | None]) -> None:
        import ipywidgets as widgets

        self._works = works
        self._deed = deed
        self._armed: tuple[Target, float] | None = None  # for what a second press counts, and until when
        self.button = widgets.Button(layout=widgets.Layout(width="auto", flex="0 0 auto"))
        self.button.on_click(lambda _: self._press())
        self.paint()

    def _press(self) -> None:
        deed = self._deed()
        if deed is None or self._works.is_busy(deed.target):
            return
        if deed.sure and not self._is_armed(deed):
            self._armed = (deed.target, self._works.clock() + SURE_S)
            self._works.changed()
        else:
            self._armed = None
            self._works.begin(deed)

    def _is_armed(self, deed: Deed) -> bool:
        return self._armed is not None and self._armed[0] == deed.target and self._works.clock() < self._armed[1]

    def paint(self) -> None:
        deed, button = self._deed(), self.button
        button.disabled = deed is None or self._works.is_busy(deed.target)
        if deed is None:
            return
        is_armed = self._is_armed(deed)
        button.description = deed.sure if is_armed else deed.label
        button.icon = "question" if is_armed else deed.icon
        button.tooltip = deed.tip
        button.button_style = "danger" if is_armed else ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a list: as mark-up, and what can be done to what it is about."""

    id: str
    html: str
    deeds: tuple[Deed, ...]


class Lines:
    """Lines with buttons. What stays in the list keeps its widgets, so that nothing flickers below a finger."""

    def __init__(self, works: Works) -> None:
        import ipywidgets as widgets

        self._widgets: Any = widgets
        self._works = works
        self._shown: dict[tuple[str, ...], tuple[Any, Any, list[Press]]] = {}  # by id and labels
        self.box = widgets.VBox()

    def paint(self, lines: Sequence[Line]) -> None:
        before, self._shown = self._shown, {}
        for line in lines:
            key = (line.id, *(deed.label for deed in line.deeds))
            if key in self._shown:
                continue  # another root has the same
            row, html, presses = self._shown[key] = before.pop(key) if key in before else self._new(line)
            html.value = line.html
            for press in presses:
                press.paint()
        rows = tuple(row for row, _, _ in self._shown.values())
        if rows != self.box.children:
            self.box.children = rows
        for row, html, presses in before.values():
            for widget in (*(press.button for press in presses), html, *row.children, row):
                widget.close()

    def _new(self, line: Line) -> tuple[Any, Any, list[Press]]:
        html = self._widgets.HTML(line.html, layout=self._widgets.Layout(flex="1 1 0%", min_width="0"))
        presses = [Press(self._works, partial(_same, deed)) for deed in line.deeds]
        layout = self._widgets.Layout(flex="0 0 18rem", justify_content="flex-end")
        buttons = self._widgets.HBox([press.button for press in presses], layout=layout)
        row = self._widgets.HBox([html, buttons], layout=self._widgets.Layout(align_items="center"))
        return row, html, presses


def _same(deed: Deed) -> Deed:
    return deed
