"""Which way progress is shown.

Responsible for: choosing by what the caller said, by MODELCACHE_PROGRESS and by where stderr goes. Leaves to `events`:
what is told; to `bars` and `lines`: showing it.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelcache.dispatch import Dispatcher, Show, Subscriber
from modelcache.errors import UsageError
from modelcache.progress.bars import Bars
from modelcache.progress.gauge import Sizes
from modelcache.progress.lines import Lines

DRAIN_S = 1.5
MODES = ("auto", "text", "off")


def subscriber_for(progress: Show, model: str, sizes: Sizes | None = None, *, facts: bool = False) -> Subscriber | None:
    """What shows the events of one model (of all, where `model` is empty), or None for silence.

    `progress` None: bars if stderr is a terminal. True: bars, or a line now and then where it is none; with
    `facts` or MODELCACHE_PROGRESS=text also one for all that happens. A function: that function.
    `sizes` are those of the files, for the sum of a model of several.
    MODELCACHE_PROGRESS is auto, text (lines) or off; UsageError for anything else.
    """
    if callable(progress):
        return _only(model, progress)
    mode = os.environ.get("MODELCACHE_PROGRESS", "auto")
    if mode not in MODES:
        raise UsageError(f"MODELCACHE_PROGRESS = {mode!r}: one of {', '.join(MODES)}")
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if sys.stderr is None or progress is False or mode == "off" or (progress is None and not terminal):
        return None
    bars = terminal and mode == "auto" and os.environ.get("TERM") != "dumb"
    return _only(model, Bars(sizes) if bars else Lines(sys.stderr, sizes=sizes, facts=facts or mode == "text"))


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
