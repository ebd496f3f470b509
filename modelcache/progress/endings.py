"""How something ended, in the words that stay in a notebook.

Responsible for: one short block: what came, from where, how fast, verified by what; or what went wrong, what is kept
and what to do. Leaves to `drawn`: its mark-up.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelcache.errors import CancelledError, ModelCacheError, PausedError, told
from modelcache.events import Progress
from modelcache.outcome import UNVERIFIED, File, Model
from modelcache.progress.board import View
from modelcache.progress.drawn import Line
from modelcache.units import as_clock, in_units, part_of, short

if TYPE_CHECKING:
    from modelcache.download import End


MOST_WRONG = 240  # characters of what went wrong


def ending(title: str, end: "End", far: Progress, hosts: Sequence[str], ran_s: float, how_on: str) -> Line:
    """Of a download. `how_on` is what to do to go on with it; empty where a button says so."""
    if end.result is not None and end.error is None:
        return _arrived(title, end.result, hosts, ran_s)
    kept = f"{part_of(far.bytes_downloaded, far.total_bytes).replace('/', ' of ')} kept" if far.bytes_downloaded else ""
    on = f"{how_on} to go on" if how_on else ""
    if isinstance(end.error, CancelledError):
        return Line(title, "cancelled; what was not complete is removed", "cancelled")
    if isinstance(end.error, PausedError):
        return Line(title, _clauses("paused", kept, on), "paused")
    words, advice = _failed(end.error, on)
    return Line(title, _clauses(words.removeprefix(f"{title} "), kept), "failed", advice)


def _arrived(title: str, result: Model | File, hosts: Sequence[str], ran_s: float) -> Line:
    files = result.files if isinstance(result, Model) else (result,)
    fetched = sum(file.bytes_fetched for file in files)
    words = took(len(files), sum(file.size for file in files), ran_s, fetched)
    if hosts:
        words += f" from {', '.join(hosts)}"
    return Line(title, words, "done", (f"{_vouched(files)} · {result}",))


def _vouched(files: Sequence[File]) -> str:
    bare = sum(file.verified == UNVERIFIED for file in files)
    if bare:
        return f"nothing vouched for {'it' if bare == len(files) else f'{bare:,} of {len(files):,} files'}"
    return f"verified by {', '.join(sorted({file.verified for file in files}))}"


def took(files: int, size: int, ran_s: float, fetched: int) -> str:
    """`3 files, 6.0 MiB in 4.2 s (1.4 MiB/s)`; the speed is that of what was fetched, and where that is not all of it,
    `3 files, 1.0 of 6.0 MiB fetched in 4.2 s (0.2 MiB/s)`."""
    count = "1 file" if files == 1 else f"{files:,} files"
    time = f"{ran_s:.1f} s" if ran_s < 60 else as_clock(ran_s)
    speed = f" ({in_units(fetched / ran_s)}/s)" if fetched and ran_s > 0 else ""
    amount = f"{part_of(fetched, size).replace('/', ' of ')} fetched" if 0 < fetched < size else in_units(size)
    return f"{count}, {amount} in {time}{speed}"


def read(title: str, view: View, ran_s: float, wrong: Sequence[str] = ()) -> Line:
    """Of something that read files, of any number of models. `wrong` names what failed, as far as that is known."""
    words, failed = took(view.done, view.whole.here, ran_s, 0), max(view.failed, len(wrong))
    if not failed:
        return Line(title, words, "done")
    rest = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
    return Line(
        title, f"{words}; {failed:,} not right", "failed", (f"{short(wrong[0], MOST_WRONG)}{rest}",) if wrong else ()
    )


def broken(title: str, error: BaseException) -> Line:
    """Of something that an error ended, or the kernel's stop button."""
    if isinstance(error, KeyboardInterrupt):
        return Line(title, "stopped; run the cell again to go on", "paused")
    words, advice = _failed(error, "")
    return Line(title, words, "failed", advice)


def _failed(error: BaseException | None, on: str) -> tuple[str, tuple[str, ...]]:
    """One sentence, and what to do. An option of the command is an argument of the same name here."""
    if not isinstance(error, ModelCacheError):
        return told(error), ()
    advice = ", then ".join(filter(None, (error.next_step.replace(" --", " "), on if error.again else "")))
    return error.message, (advice,) if advice else ()


def _clauses(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)
