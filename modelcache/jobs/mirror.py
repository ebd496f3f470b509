"""The job `mirror`: keeps the models that are asked for most complete and fresh in this cache.

Responsible for: which, and what of them: all that a version lists, where all of it is here; else the files that are.
What was removed is not brought back. Leaves to others: counting (`Cache.usage`), asking (`Cache.refresh`), fetching.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError, UsageError
from modelcache.jobs.job import Clock, Config, options_of
from modelcache.outcome import File
from modelcache.rows import Report
from modelcache.wish import Wish

LOOK_S = 0.2
STOP_WITHIN_S = 2.0
FINDINGS = ("failed", "unasked")


@dataclass(frozen=True, slots=True)
class Options:
    top: int = 10  # how many models


def checked(given: Mapping[str, object]) -> Options:
    """UsageError for what means nothing."""
    options = options_of(Options, given)
    if options.top < 0:
        raise UsageError(f"top = {options.top}: a whole number from 0 is expected")
    return options


def run(config: Config, *, stop: threading.Event, clock: Clock) -> Report:
    """One row a branch or tag, and one for a model of which none is known; what could not be had is a finding.

    `outcome` is here, fetched, failed or unasked: it is here, but what it means by now could not be asked, for the
    `reason`, which is a finding, too. Told to stop, it pauses what it fetches; the next run goes on there.
    """
    options = checked(config.options)
    ranking = [row["model_id"] for row in config.cache.usage()][: options.top]
    rows = tuple(row for model in ranking for row in _mirrored(config.cache, model, stop))
    findings = sum(row["outcome"] in FINDINGS for row in rows)
    return Report("mirrored models", rows, findings=findings, none="none was asked for that is here")


def _mirrored(cache: Cache, model: str, stop: threading.Event) -> Iterator[dict[str, Any]]:
    here = {row["ref"] or model for row in cache.models() if row["model"] == model}
    if stop.is_set() or not here:
        return
    renewed = list(cache.refresh([model], stop=stop))
    failed = {row["ref"]: row["reason"] for row in renewed if row["outcome"] == "failed"}
    wanted = [(row["ref"], () if row["whole"] else _files(cache, model)) for row in renewed if row["outcome"] != "busy"]
    for ref, files in wanted or [(ref, ()) for ref in sorted(here)]:
        if stop.is_set():
            return
        row = _fetched(cache, model, ref, files, stop)
        is_unasked = ref in failed and row["outcome"] in ("here", "fetched")
        yield row | {"outcome": "unasked", "reason": failed[ref]} if is_unasked else row


def _files(cache: Cache, model: str) -> tuple[str, ...]:
    return tuple(row["file"] for row in cache.info(model))


def _fetched(cache: Cache, model: str, ref: str, files: tuple[str, ...], stop: threading.Event) -> dict[str, Any]:
    row = {"model": model, "ref": ref, "version": "", "outcome": "here", "bytes_fetched": 0, "reason": ""}
    try:
        download = cache.begin(ref, Wish(chosen=files, counted=False), False)
        while not download.wait_stopped(LOOK_S):
            if stop.is_set():
                download.pause()
                download.wait_stopped(STOP_WITHIN_S)
                break
        result = download.result(STOP_WITHIN_S)
    except ModelCacheError as error:
        return row | {"outcome": "stopped" if stop.is_set() else "failed", "reason": error.message}
    got = sum(file.bytes_fetched for file in ((result,) if isinstance(result, File) else result.files))
    return row | {"version": result.version, "outcome": "fetched" if got else "here", "bytes_fetched": got}
