"""Where a panel is painted: widgets with buttons, or HTML that is replaced.

Responsible for: IPython's display and the widgets, in the core of ipywidgets alone (7.7 and later), so that every
front end has them. Leaves to others: what is painted (`drawn`), when, and by which thread (`panel`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from modelcache.markup import framed

Bundle = dict[str, Any]  # what Jupyter displays, by media type


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel as it is now: the line of what is going on, its rows, all of it as text, and which buttons there are.

    `still` is what says something true for good, where no widget is shown.
    """

    status: str
    files: str
    text: str
    still: Bundle
    buttons: tuple[str, ...] = ()

    @property
    def bundle(self) -> Bundle:
        return {"text/html": framed(self.status + self.files), "text/plain": self.text}


class Output:
    """The place below the cell that called: displayed there once, by its own thread, then replaced by any."""

    def __init__(self) -> None:
        self._handle: Any = None

    def put(self, bundle: Bundle) -> None:
        if self._handle is None:
            from IPython.display import display

            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


class Surface(Protocol):
    hz: float  # how often it may be painted

    def paint(self, picture: Picture) -> None: ...
    def close(self) -> None:
        """What is displayed is replaced by now."""
        ...


class Html:
    """Each picture replaces the one before."""

    hz = 2.0

    def __init__(self, output: Output) -> None:
        self._output = output

    def paint(self, picture: Picture) -> None:
        self._output.put(picture.bundle)

    def close(self) -> None:
        pass


ICONS = {"Pause": "pause", "Resume": "play", "Retry": "refresh", "Cancel": "stop"}
TIPS = {
    "Pause": "Stop for now; every byte is kept", "Resume": "Go on from where it stopped",
    "Retry": "Try again from where it stopped", "Cancel": "Stop and remove what is not complete",
}  # fmt: skip


class Widgets:
    """Sends what has changed alone: one message a repaint, and one more when the line or the buttons change.

    Displays the picture. Raises whatever an ipywidgets does that cannot be imported or used here.
    """

    hz = 5.0

    def __init__(self, output: Output, press: Mapping[str, Callable[[], None]], picture: Picture) -> None:
        self._output = output
        self._press = press  # what each button does
        self._make(picture)

    def paint(self, picture: Picture) -> None:
        self._status.value = framed(picture.status)
        self._files.value = f'<div class="modelcache">{picture.files}</div>'
        for word, button in self._buttons.items():
            shown = None if word in picture.buttons else "none"
            if button.layout.display != shown:
                button.layout.display = shown

    def _make(self, picture: Picture) -> None:
        import ipywidgets as widgets

        self._status = widgets.HTML(framed(picture.status))
        self._files = widgets.HTML(f'<div class="modelcache">{picture.files}</div>')
        self._buttons = {word: self._button(widgets, word, word in picture.buttons) for word in self._press}
        parts = [self._status, self._files]
        if self._buttons:
            parts.append(widgets.HBox(list(self._buttons.values())))
        self._root = widgets.VBox(parts, _dom_classes=("modelcache-panel",))
        view = {"version_major": 2, "version_minor": 0, "model_id": self._root.model_id}
        self._output.put({**picture.still, "application/vnd.jupyter.widget-view+json": view})

    def _button(self, widgets: Any, word: str, is_shown: bool) -> Any:
        layout = widgets.Layout(width="auto", display=None if is_shown else "none")
        button = widgets.Button(description=word, icon=ICONS[word], tooltip=TIPS[word], layout=layout)
        button.on_click(lambda _: self._press[word]())
        return button

    def close(self) -> None:
        """Else they would stay in the kernel, and in the page, for good."""
        for widget in (*self._buttons.values(), self._status, self._files, *self._root.children[2:], self._root):
            for part in (getattr(widget, "style", None), widget.layout, widget):
                if part is not None:
                    part.close()
