"""Which way progress is shown.

Responsible for: choosing by what the caller said, by MODELCACHE_PROGRESS, by whether a notebook listens and by where
stderr goes. Leaves to `events`: what is told; to `panel`, `bars` and `lines`: showing it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelcache.dispatch import Dispatcher, Prompt, Show, Subscriber
from modelcache.errors import UsageError
from modelcache.progress import kernel
from modelcache.progress.bars import Bars
from modelcache.progress.endings import broken, read
from modelcache.progress.gauge import Sizes
from modelcache.progress.lines import Lines
from modelcache.progress.panel import Level, Panel

if TYPE_CHECKING:
    from modelcache.download import Download

DRAIN_S = 1.5
MODES = ("auto", "widget", "html", "text", "off")


def subscriber_for(
    progress: Show, model: str, sizes: Sizes | None = None, *, facts: bool = False, waits: bool = False
) -> Subscriber | None:
    """What shows the events of one model (of all, where `model` is empty), or None for silence.

    `progress` None: a panel in a notebook, bars if stderr is a terminal. True: a line now and then where there is
    neither; with `facts` or MODELCACHE_PROGRESS=text also one for all that happens. A function: that function.
    `sizes` are those of the files, for the sum of a model of several. `waits`: whoever called waits for the end. A
    panel is silent until it is told to `appear`.
    UsageError for a MODELCACHE_PROGRESS that is none.
    """
    if callable(progress):
        only = _only(model, progress)
        return Prompt(only) if isinstance(progress, Panel) else only  # what it says at the end has to be all of it
    mode = _mode()
    if (level := _level(progress)) is not None:
        return Panel(model, sizes, level, waits=waits)
    terminal = sys.stderr is not None and sys.stderr.isatty()
    is_wanted = progress or (progress is None and (terminal or (mode == "text" and kernel.is_here())))
    if sys.stderr is None or mode == "off" or not is_wanted:
        return None
    bars = terminal and mode != "text" and os.environ.get("TERM") != "dumb"
    return _only(model, Bars(sizes) if bars else Lines(sys.stderr, sizes=sizes, facts=facts or mode == "text"))


def _mode() -> str:
    mode = os.environ.get("MODELCACHE_PROGRESS") or "auto"
    if mode not in MODES:
        raise UsageError(f"MODELCACHE_PROGRESS = {mode!r}: one of {', '.join(MODES)}")
    return mode


def _level(progress: Show) -> Level | None:
    """How a notebook shows it; None where there is none, or nothing of it is wanted."""
    if callable(progress) or progress is False or not kernel.is_here() or (mode := _mode()) in ("text", "off"):
        return None
    return "widget" if mode != "html" and kernel.has_widgets() else "html"


def appear(show: Subscriber | None, title: str, download: "Download") -> None:
    """A panel follows the download from here on, in the cell that calls; all else shows itself."""
    if isinstance(show, Panel):
        show.follow(title, download)


@contextmanager
def gathered(progress: Show, title: str, wrong: Sequence[str] = ()) -> Iterator[Show]:
    """In a notebook one panel for all models that are worked on while the block runs; it is what they show.

    Elsewhere what was given. The panel has no buttons, for whoever called waits. `wrong` is asked at the end: what the
    caller found to have failed, one line each, whatever events told of it.
    """
    level = _level(progress)
    if level is None:
        yield progress
        return
    panel = Panel("", None, level, waits=True)
    panel.appear(title)
    try:
        yield panel
    except BaseException as error:
        panel.end(broken(title, error))
        raise
    panel.end(read(title, panel.view, panel.ran_s, wrong))


def _only(model: str, show: Subscriber) -> Subscriber:
    def filtered(event: dict[str, Any]) -> None:
        if not model or event.get("modelId", model) == model:
            show(event)

    return filtered


@contextmanager
def shown(progress: Show, dispatcher: Dispatcher, model: str, sizes: Sizes) -> Iterator[None]:
    """While the block runs, what happens to one model is shown, to the last event of it. `progress` as above."""
    show = subscriber_for(progress, model, sizes)
    unsubscribe = dispatcher.subscribe(show) if show else lambda: None
    try:
        yield
    finally:
        dispatcher.drain(DRAIN_S)
        unsubscribe()
