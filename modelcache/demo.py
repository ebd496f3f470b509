"""A story on this machine: what modelcache does when servers break, lie and crawl, and when a disk forgets a bit.

Responsible for: the five scenes, and checking that each thing that is announced did happen: else the demo fails and
says which. Everything printed is measured. Leaves to others: servers, folders and notes (`demostage`), the bars
(`progress`), all of the work (`caching`).
"""

import filecmp
import os
import sys
import time

from modelcache.demostage import CUT, MODEL, PIECE, SLOW, WEIGHTS, Stage, staged
from modelcache.errors import AllSourcesFailedError, ModelCacheError
from modelcache.outcome import Model, in_place_text
from modelcache.units import in_units

ROT = 17_000_000  # the byte that loses a bit
INTERRUPTED, TERMINATED = 130, 143


class NotAsToldError(Exception):
    """Something that the demo announces did not happen."""


def demo() -> int:
    """Tells the story; 0 if all of it happened, else there is a line that says what did not."""
    began = time.monotonic()
    try:
        with staged() as stage:
            code = play(stage)
    except KeyboardInterrupt as stop:
        print("\ndemo: stopped; nothing of it stays on this machine", file=sys.stderr)
        return INTERRUPTED if type(stop) is KeyboardInterrupt else TERMINATED
    if not code:
        _say("", f"All of it happened, in {time.monotonic() - began:.1f} s. Nothing of it stays on this machine.")
    return code


def play(stage: Stage) -> int:
    """Plays all scenes. Returns 0; else there is a line that says what did not happen as announced."""
    _say(
        f"A model of {len(stage.manifest.files)} files, {in_units(stage.manifest.total_bytes)}, and three web servers, "
        "all on this machine:",
        f"  cutter  breaks each connection at byte {CUT:,} of {WEIGHTS}",
        "  liar    answers fast, and slips a wrong byte into every piece of 1 MiB",
        f"  slow    honest, but sends {in_units(SLOW)} a second",
    )
    try:
        for scene in (_cut, _resume, _hit, _rot, _repair):
            scene(stage)
    except NotAsToldError as error:
        print(f"demo: not as announced: {error}", file=sys.stderr)
        return 1
    except ModelCacheError as error:
        print(f"demo: it cannot go on: {stage.named(error.line())}", file=sys.stderr)
        return error.exit_code
    _say("", "What happened:", stage.table())
    return 0


def _cut(stage: Stage) -> None:
    """The only known server breaks at the same byte again and again: an error, but nothing is lost."""
    _begin(stage, "Fetch it from the only server we know: cutter")
    try:
        stage.fetch()
    except AllSourcesFailedError as error:
        kept = error.kept_bytes
    else:
        raise NotAsToldError("the server cutter did not break the connection")
    tries = len(stage.told("source_failed", WEIGHTS, "cutter"))
    _check(tries > 1, "the server cutter was not tried again")
    _check(kept == CUT, f"{kept:,} bytes were kept, not {CUT:,}")
    _say(f"-> It failed, after {tries} tries. But {in_units(kept)} of the weights are kept.")
    stage.row([WEIGHTS], f"cut {tries} times", kept, 0)
    for ready in [event for event in stage.events if event["type"] == "file_ready"]:
        file = ready["file"]
        _check(ready["message"] == in_place_text("fetched", "sha256"), f"{file} is {ready['message']}, not verified")
        stage.row([file], "verified", stage.told("model_download_progress", file)[-1]["bytesDownloaded"], 0)


def _resume(stage: Stage) -> None:
    """It goes on at the missing byte, from whoever is left, and believes nobody."""
    _begin(stage, "The same call, with two more servers to choose from: liar and slow")
    before = stage.requests("liar")
    model = stage.fetch("liar", "slow")
    weights, asked = model[WEIGHTS], stage.requests("liar") - before
    _check(asked > 0, "the server liar was never asked")
    _check(bool(stage.told("piece_failed", WEIGHTS, "liar")), "the server liar was not caught")
    _check(weights.bytes_resumed == CUT, f"it went on at byte {weights.bytes_resumed:,}, not at {CUT:,}")
    _check(any(seen.bytes_sent for seen in stage.servers["slow"].requests), "the server slow gave no byte")
    _check(model.is_verified and _is_original(stage, model), "the files are not the originals")
    missing = weights.size - weights.bytes_resumed
    dropped = weights.bytes_fetched - missing
    _check(0 < dropped < 2 * PIECE * asked, f"{dropped:,} bytes were dropped, not those of the first wrong piece")
    _say(
        f"-> {in_units(CUT)} were here, {in_units(missing)} were missing. Of the {in_units(weights.bytes_fetched)} that"
        f" came, {in_units(dropped)} were",
        f"   dropped: the liar was caught at its first wrong piece. All is verified, sha256 {weights.sha256[:12]}...",
    )
    stage.row([WEIGHTS], weights.status, weights.bytes_fetched, weights.bytes_resumed)
    _row_of_hits(stage, model)


def _hit(stage: Stage) -> None:
    _begin(stage, "The same call once more")
    before, began = stage.requests(), time.perf_counter()
    model = stage.fetch("liar", "slow")
    seconds = time.perf_counter() - began
    _check(all(file.status == "hit" for file in model.files), "the third fetch did not find everything here")
    _check(stage.requests() == before, "a server was asked for what is here")
    _say(f"-> All {len(model.files)} files are here: {1000 * seconds:.1f} ms, and no server was asked.")
    _row_of_hits(stage, model, seconds)


def _rot(stage: Stage) -> None:
    """A bit flips, and neither size nor date tells."""
    place = os.path.join(stage.cache.path(MODEL), WEIGHTS)
    before = os.stat(place)
    _flip_a_bit(place)
    after = os.stat(place)
    _check((before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns), "size or date changed")
    _begin(stage, f"The disk forgets a bit of byte {ROT}; size and date stay. Does `modelcache verify` see it?")
    began = time.perf_counter()
    wrong = [row for row in stage.cache.verify(MODEL) if row["finding"] != "whole"]
    seconds = time.perf_counter() - began
    _check([row["file"] for row in wrong] == [WEIGHTS], "verify did not find the one file that is corrupt")
    start, last = (int(number) for number in wrong[0]["wrong_bytes"].split("-"))
    _check(start <= ROT <= last < start + PIECE, f"verify found bytes {start}-{last}, not byte {ROT}")
    _say(f"-> {WEIGHTS} is {wrong[0]['finding']}: bytes {start}-{last}. The other files are right.")
    stage.row([WEIGHTS], wrong[0]["finding"], 0, before.st_size, seconds)


def _repair(stage: Stage) -> None:
    _begin(stage, "`modelcache repair` fetches only what is wrong")
    began = time.perf_counter()
    report = stage.cache.repair([MODEL], progress=stage.progress())
    seconds = time.perf_counter() - began
    _check([row["file"] for row in report] == [WEIGHTS], "repair did not work on the one corrupt file")
    row = report.rows[0]
    _check(row["repaired"], f"{WEIGHTS} was not repaired: {row['reason']}")
    fetched, size = row["bytes_fetched"], row["size"]
    _check(fetched == PIECE, f"{fetched:,} bytes were fetched to repair {PIECE:,}")
    stage.row([WEIGHTS], "repaired", fetched, size - fetched, seconds)
    _check(all(one["finding"] == "whole" for one in stage.cache.verify(MODEL)), "verify still finds something")
    _check(_is_original(stage, stage.fetch()), "the repaired file is not the original")
    _say(f"-> {100 * fetched / size:.1f} % of the file. Read again from end to end, all files are as they were.")


def _begin(stage: Stage, title: str) -> None:
    stage.begin()
    _say("", f"{stage.scene}. {title}")


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _check(happened: bool, otherwise: str) -> None:
    if not happened:
        raise NotAsToldError(otherwise)


def _row_of_hits(stage: Stage, model: Model, seconds: float | None = None) -> None:
    hits = [file for file in model.files if file.status == "hit"]
    stage.row([file.name for file in hits], "here already", 0, sum(file.size for file in hits), seconds)


def _is_original(stage: Stage, model: Model) -> bool:
    return all(filecmp.cmp(file.path, os.path.join(stage.originals, file.name), shallow=False) for file in model.files)


def _flip_a_bit(path: str) -> None:
    before = os.stat(path)
    os.chmod(path, 0o600)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, bytes([os.pread(fd, 1, ROT)[0] ^ 4]), ROT)
    os.close(fd)
    os.chmod(path, before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
