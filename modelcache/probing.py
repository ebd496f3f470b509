"""Asks sources of which nothing is known for one byte, before a large file is fetched from the first of them.

Responsible for: asking all of them at once, for a second at most, and what their answers mean for the order of this
fetch. Leaves to others: when that is worth it and the order (`order`, `health`), keeping what was measured (`state`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from modelcache.errors import ModelCacheError, SourceError
from modelcache.events import now_ms
from modelcache.health import Gateway, Health, gateway_of
from modelcache.history import Attempt
from modelcache.model import ModelFile
from modelcache.remotes.source import Abort, Request, Source

WITHIN_S = 1.0
MOST = 8  # that are asked
LOOK_S = 0.02

Note = Callable[[Attempt], None]
Wait = Callable[[float], None]


def probed(sources: Sequence[Source], file: ModelFile, wait: Wait, note: Note) -> dict[Gateway, Health]:
    """What is to be thought of the gateways for now: one that did not answer is as bad as one that failed.

    `wait` sleeps, and may raise to give up; `note` is told what each answer was. Silence is not noted: a source may be
    slow to begin and fast from then on.
    """
    probes = [_Probe(source, file) for source in sources[:MOST]]
    try:
        end = time.monotonic() + WITHIN_S
        while not all(probe.is_over for probe in probes) and time.monotonic() < end:
            wait(LOOK_S)
    finally:
        for probe in probes:
            probe.abort.fire()
    return _judged(probes, note)


def _judged(probes: Iterable["_Probe"], note: Note) -> dict[Gateway, Health]:
    found: dict[Gateway, Health] = {}
    for probe in probes:
        attempt = probe.attempt
        if attempt:
            note(attempt)
        is_well = attempt is not None and attempt.status == "success"
        known = found.get(probe.gateway, Health(updated_at=now_ms()))
        found[probe.gateway] = replace(
            known, successes=known.successes + is_well, failures=known.failures + (not is_well)
        )
    return found


class _Probe:
    """One question, in a thread of its own. `attempt` is its answer; None while there is none, or none can be had."""

    def __init__(self, source: Source, file: ModelFile) -> None:
        self.gateway = gateway_of(source.kind, source.name)
        self.abort = Abort()
        self.attempt: Attempt | None = None
        self.is_over = False
        self._source = source
        self._request = Request(file, 0, 1, "", self.abort)
        try:
            threading.Thread(target=self._run, name="modelcache-probe", daemon=True).start()
        except RuntimeError:
            self.is_over = True

    def _run(self) -> None:
        began = time.monotonic()
        attempt = Attempt(*self.gateway, "success", file=self._request.file.path)
        try:
            with self._source.open(self._request) as body:
                next(iter(body), None)
        except SourceError as error:
            attempt = replace(
                attempt, status="error", error_type=error.kind, error_message=error.message, http_status=error.status
            )
        except ModelCacheError:
            self.is_over = True  # it was given up, or this machine is short of something
            return
        elapsed_ms = round(1000 * (time.monotonic() - began))
        if not self.abort.fired:
            self.attempt = replace(attempt, latency_ms=elapsed_ms, duration_ms=elapsed_ms)
        self.is_over = True
