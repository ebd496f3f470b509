"""Everything that can go wrong, named for what the caller should do next.

Responsible for: the classes, their stable `kind` and exit code, and the one line a person reads.
Leaves to others: translating foreign exceptions, which each edge that owns a library does itself.

| error | what to do next | kind | exit code |
|---|---|---|---|
| UsageError | ask for something else | usage | 2 |
| VerificationError | drop the bytes, blame the source | integrity | 3 |
| NotFoundError | try the next source | not_found | 4 |
| ModelNotAvailableError | fetch it first | not_found | 4 |
| UnknownDownloadError | look at the list of downloads | not_found | 4 |
| TransientError | wait, then the same source again | network | 5 |
| SourceError | try the next source: this one will not do | source | 5 |
| StoreError | stop: no source can help; free the disk, then run again | local | 6 |
| LockedError | wait for the holder | locked | 7 |
| PausedError | nothing is lost; run again to go on | interrupted | 130 |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["not_installed", "downloading", "verifying", "error"]
AGAIN = "run the same command again to go on"


class ModelCacheError(Exception):
    """The base of all errors of this package.

    `message` says in one line what happened; `next_step` what to mend or to ask for instead, and `again` how to try
    again, of what may succeed then (either may be empty): `advice` is both. `kept_bytes` and, of a model, `kept_files`
    count what a later run need not fetch again. None of them ever holds a token, a query string or userinfo.
    """

    kind: str = "error"
    exit_code: int = 1
    again: str = ""

    def __init__(self, message: str, *, next_step: str = "", kept_bytes: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.kept_bytes = kept_bytes
        self.kept_files = 0

    @property
    def advice(self) -> str:
        """What to do: empty if nothing helps that we know of."""
        return ", then ".join(filter(None, (self.next_step, self.again)))

    def __str__(self) -> str:
        return self.message

    def line(self) -> str:
        """What happened, what was kept, what to do: one line for a person."""
        kept = " and ".join(filter(None, (_counted(self.kept_files, "file"), _counted(self.kept_bytes, "byte"))))
        kept = kept and f"{kept} kept"
        return "; ".join(" ".join(clause.split()) for clause in (self.message, kept, self.advice) if clause)

    def _render_traceback_(self) -> list[str]:
        """IPython asks an error how it wants to be shown: below a cell our internals are of no use."""
        from modelcache.traces import told

        return told(self, self.line())


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else ""


def told(error: BaseException | None) -> str:
    """An error in words that may be shown and kept; empty for none.

    Of a foreign one, a bug of ours, only the kind: its text may hold anything, a whole URL for example (I22).
    """
    if isinstance(error, ModelCacheError):
        return error.message
    return f"a bug in modelcache: {type(error).__name__}" if error else ""


def line_of(error: BaseException | None) -> str:
    """The same with what was kept and what to do, where the error says that."""
    return error.line() if isinstance(error, ModelCacheError) else told(error)


class UsageError(ModelCacheError):
    """What was asked for cannot be meant: a malformed digest, an unknown scheme, options that contradict."""

    kind = "usage"
    exit_code = 2


class VerificationError(ModelCacheError):
    """Bytes are not what they were promised to be. `actual` is the digest that was found, if one was computed."""

    kind = "integrity"
    exit_code = 3

    def __init__(self, message: str, *, actual: str = "", next_step: str = "", kept_bytes: int = 0) -> None:
        super().__init__(message, next_step=next_step, kept_bytes=kept_bytes)
        self.actual = actual


class SourceError(ModelCacheError):
    """This source cannot supply the file; another one may. `status` is that of HTTP, 0 where there was no reply."""

    status = 0

    kind = "source"
    exit_code = 5


class RangeRefusedError(SourceError):
    """The source does not serve this range: a plain request for the whole may still work (RFC 9110, 14.2).

    `total` is the size of its whole file in bytes where it said so (416).
    """

    def __init__(self, message: str, *, total: int | None = None) -> None:
        super().__init__(message)
        self.total = total


class NotFoundError(SourceError):
    """The source does not have the file, or does not let us have it (404, 410, 401, 403)."""

    kind = "not_found"
    exit_code = 4


class TransientError(SourceError):
    """The same source may work later. `retry_after_s` is its own wish (Retry-After), if it had one."""

    kind = "network"
    again = AGAIN

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AbortedError(ModelCacheError):
    """The request was ended from another thread; `Abort.cause` says why."""


class StoreError(ModelCacheError):
    """The disk refuses: full, read-only, forbidden, failing. No other source can help."""

    kind = "local"
    exit_code = 6
    again = AGAIN


class ShortageError(StoreError):
    """This machine has no file handle, or no thread, for one more connection. Those that have theirs may go on."""


class FencedError(StoreError):
    """A writer whose partial was committed, discarded or given up meanwhile; it has written nothing since."""


class TakenOverError(StoreError):
    """Another process has the partial now, for the lock could not keep it away; our bytes were proven all the same."""


class LostError(StoreError):
    """Files that were proven were removed, or found rotten, before they had their names; `places` are their paths."""

    def __init__(self, *places: str) -> None:
        super().__init__(f"{places[0]}: its content was removed or changed meanwhile")
        self.places = places


class LockedError(ModelCacheError):
    """Somebody else is fetching this file and made no progress for the set time."""

    kind = "locked"
    exit_code = 7
    again = AGAIN


class PausedError(ModelCacheError):
    """The download was paused; everything written is kept and the next fetch goes on from there."""

    kind = "interrupted"
    exit_code = 130
    again = AGAIN


class CancelledError(PausedError):
    """The download was cancelled and its partials were removed."""

    again = "run the same command again to begin anew"


class UnknownDownloadError(ModelCacheError):
    """There is no record of a download with that id."""

    kind = "not_found"
    exit_code = 4


_ADVICE: dict[Reason, str] = {
    "not_installed": "it has to be fetched by its URL or manifest first; `modelcache ls` tells what is here",
    "downloading": "wait until the download has ended",
    "verifying": "it changed since it was verified: run `modelcache verify {}`",
    "error": "it is corrupt, or files of it are gone: run `modelcache repair {}`, or fetch it once more",
}


class ModelNotAvailableError(ModelCacheError):
    """No network was asked: the model is simply not here, or not whole. `next_step` says what brings it, where that is
    not what the reason says by itself."""

    kind = "not_found"
    exit_code = 4

    def __init__(self, model_id: str, version: str | None, reason: Reason, *, next_step: str = "") -> None:
        named = f"{model_id}@{version}" if version else model_id
        message = f"Model {named} is not available: {reason}"
        usual = _ADVICE[reason].format(named)
        super().__init__(message, next_step=next_step or usual)
        self.model_id = model_id
        self.version = version
        self.reason = reason


_GRAVITY = (StoreError, VerificationError, LockedError, TransientError, SourceError, NotFoundError, PausedError)
_MOST_TOLD = 3


def of_several(errors: Sequence[ModelCacheError], total: int, what: str) -> ModelCacheError:
    """The gravest of these errors, which from here on speaks for all: so many of `total` `what` failed.

    Its `kept_bytes`, and `failures` of sources, are those of all of them.
    """
    ranks = [error.kind for error in _GRAVITY]
    told = sorted(errors, key=lambda error: ranks.index(error.kind) if error.kind in ranks else -1)
    story = [error.message for error in told[:_MOST_TOLD]]
    story += [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
    worst = told[0]
    if isinstance(worst, AllSourcesFailedError):
        every = [failure for error in told if isinstance(error, AllSourcesFailedError) for failure in error.failures]
        worst.failures = tuple(dict.fromkeys(every))
    worst.message = f"{len(told)} of {total} {what} failed: {'; '.join(story)}"
    worst.kept_bytes = sum(error.kept_bytes for error in told)
    worst.again = next(filter(None, (error.again for error in told)), AGAIN)
    return worst


@dataclass(frozen=True, slots=True)
class SourceFailure:
    """Why one source gave up: its name (scheme, host and path, no secrets), the reason and its kind.

    `next_step` is what would help with this one, where that is known. `other_file` is the digest of a whole file that
    it sent twice and that is not the one expected.
    """

    source: str
    reason: str
    kind: str
    other_file: str = ""
    next_step: str = ""


class AllSourcesFailedError(ModelCacheError):
    """Every source was tried; `failures` tells the story, one entry a source.

    The kind is the gravest among them: wrong bytes, a broken network, a reply that will not do, a missing file.
    """

    def __init__(self, file: str, failures: tuple[SourceFailure, ...], *, kept_bytes: int = 0) -> None:
        story = "; ".join(f"{failure.source}: {failure.reason}" for failure in failures) or "no source to ask"
        super().__init__(f"{file} could not be fetched ({story})", kept_bytes=kept_bytes)
        self.failures = failures
        kinds = {failure.kind for failure in failures}
        worst = next((error for error in _GRAVITY if error.kind in kinds), NotFoundError)
        self.kind, self.exit_code = worst.kind, worst.exit_code
        self.again = worst.again
        self.next_step = self._next_step()

    def _next_step(self) -> str:
        """What would help with any of the sources, or other sources instead."""
        wrong = [failure for failure in self.failures if failure.kind == VerificationError.kind]
        if self.kind == VerificationError.kind and all(failure.other_file for failure in wrong):
            return "nothing of it is kept: check the digest that was expected, or name another --mirror"
        if self.kind == VerificationError.kind:
            return "name another --mirror, or check the digest that was expected"
        if not self.failures:
            return "name a --mirror"
        steps = list(dict.fromkeys(failure.next_step for failure in self.failures if failure.next_step))
        usual = "check the network" if self.kind == TransientError.kind else "check the address"
        return ", or ".join([*(steps[:_MOST_TOLD] or [usual]), "name another --mirror"])
