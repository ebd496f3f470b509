"""Progress for people: bars in a terminal, lines where there is none.

Responsible for: showing events on stderr. Runs in the dispatcher's thread, so a slow terminal slows no download.
Leaves to `events`: what is told. tqdm is imported when the first bar is drawn.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from modelcache.dispatch import Subscriber
from modelcache.errors import UsageError

TOLD = ("resumed", "source_failed", "piece_failed", "restarted", "unverified", "repaired", "paused")
STAGES = {"attempting": "connecting", "downloading": "", "success": "done", "completed": "done"}
LINE_EVERY_S = 10.0
MODES = ("auto", "text", "off")


def subscriber_for(progress: bool | Subscriber | None, model: str) -> Subscriber | None:
    """What shows the events of one model (of all, where `model` is empty), or None for silence.

    `progress` None: bars if stderr is a terminal. True: bars, or lines where it is none. A function: that function.
    MODELCACHE_PROGRESS is auto, text (lines) or off; UsageError for anything else.
    """
    if callable(progress):
        return _only(model, progress)
    mode = os.environ.get("MODELCACHE_PROGRESS", "auto")
    if mode not in MODES:
        raise UsageError(f"MODELCACHE_PROGRESS = {mode!r}: one of {', '.join(MODES)}")
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if progress is False or mode == "off" or (progress is None and not terminal):
        return None
    return _only(model, Bars() if terminal and mode == "auto" else Lines(sys.stderr))


def _only(model: str, show: Subscriber) -> Subscriber:
    def filtered(event: dict[str, Any]) -> None:
        if not model or event.get("modelId", model) == model:
            show(event)

    return filtered


class Bars:
    """A bar per file, and one for the whole when a model has several. Facts are written above them."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] in TOLD:
            self._write(_sentence(event))
        elif event["type"] == "model_download_progress":
            self._draw(event)

    def _draw(self, event: dict[str, Any]) -> None:
        if event["done"] and not event["file"]:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
            return
        bar = self._bars.get(event["file"]) or self._begin(event)
        if event["totalBytes"]:
            bar.total = event["totalBytes"]
        stage = STAGES.get(event["status"], event["status"])
        bar.set_postfix_str(stage or event["source"], refresh=False)
        bar.n = event["bytesDownloaded"]
        bar.refresh()

    def _begin(self, event: dict[str, Any]) -> Any:
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # its thread would outlive the download
        bar = tqdm(
            total=event["totalBytes"] or None, initial=event["bytesDownloaded"], desc=_short(event["file"]), unit="B",
            unit_scale=True, unit_divisor=1024, dynamic_ncols=True, file=sys.stderr, mininterval=0, smoothing=0.2,
        )  # fmt: skip
        self._bars[event["file"]] = bar
        return bar

    def _write(self, sentence: str) -> None:
        from tqdm import tqdm

        tqdm.write(sentence, file=sys.stderr)


class Lines:
    """A line when something happens, and one every ten seconds while bytes move."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = clock()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] in (*TOLD, "file_ready"):
            self._print(_sentence(event))
        elif event["type"] == "model_download_progress" and self._clock() - self._last >= LINE_EVERY_S:
            self._last = self._clock()
            here, total, speed = (f"{event[key]:,}" for key in ("bytesDownloaded", "totalBytes", "downloadSpeed"))
            self._print(f"{event['file']}: {here} of {total} bytes, {speed} bytes/s, {event['eta']:.0f} s left")

    def _print(self, sentence: str) -> None:
        print(sentence, file=self._stream, flush=True)


def _sentence(event: dict[str, Any]) -> str:
    where = event["file"] or event["modelId"]
    return f"{where}: {event['gateway'] + ': ' if event['gateway'] else ''}{event['message']}"


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else "…" + name[-most + 1 :]
