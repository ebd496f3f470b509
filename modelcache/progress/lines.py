"""Progress where there is no terminal: a line now and then, and the sentences that bars tell, too.

Responsible for: showing events as lines on a stream. Runs in the dispatcher's thread.
"""

import time
from collections.abc import Callable
from typing import Any, TextIO
from urllib.parse import urlsplit

from modelcache.progress.gauge import Sizes, Sum
from modelcache.units import as_clock, in_units, part_of

TOLD = (
    "resolving", "newer", "stale", "waiting", "resumed", "source_failed", "piece_failed", "restarted", "repaired",
)  # the end is for whoever asked  # fmt: skip
LINE_EVERY_S = 10.0


class Lines:
    """A line every ten seconds while a download runs and, with `facts`, one when something happens."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        sizes: Sizes | None = None,
        *,
        facts: bool = True,
    ) -> None:
        self._stream = stream
        self._told = (*TOLD, "file_ready") if facts else ("resolving", "newer", "stale", "waiting")
        self._clock = clock
        self._last = clock()
        self._sum = Sum(sizes)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] == "manifest_pulled":
            self._sum.expect(event["total_size"])
        if event["type"] in self._told:
            self._print(sentence(event))
        elif event["type"] == "model_download_progress" and event["file"]:
            self._sum.hear(event)
            if self._clock() - self._last >= LINE_EVERY_S:
                self._last = self._clock()
                self._print(self._state(event))

    def _state(self, event: dict[str, Any]) -> str:
        """How far the file is, or the model if it has several."""
        files, total, speed = event["totalFiles"], self._sum.total, event["downloadSpeed"]
        name = f"{event['modelId']}: {event['completedFiles']} of {files} files" if files > 1 else event["file"]
        share = f" ({100 * self._sum.here // total} %)" if total else ""
        left = f", {as_clock((total - self._sum.here) / speed)} left" if total and speed else ""
        comma = "," if files > 1 else ":"
        return f"{name}{comma} {part_of(self._sum.here, total or 0)}{share}, {in_units(speed)}/s{left}"

    def _print(self, sentence: str) -> None:
        print(sentence, file=self._stream, flush=True)


def sentence(event: dict[str, Any]) -> str:
    where, message = event["file"] or event["modelId"], event["message"]
    if message.startswith(where):
        return str(message)
    source = "" if event["type"] in ("file_ready", "resolving") else host(event["gateway"])
    return ": ".join(part for part in (where, source, message) if part)


def host(gateway: str) -> str:
    """Where a source is, as far as it matters to people: the path is the file's."""
    return urlsplit(gateway).netloc or gateway
