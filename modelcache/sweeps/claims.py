"""Other tools' caches, and folders with a manifest: files that are what their names or lists say, or have rotted.

Responsible for: reading them by their own digests, and remembering in our state what was found when. Nothing is written
where they are, but one thing: the record of an output folder, which is ours, no longer calls right what has rotted.
Leaves to others: what a tool's folders mean (`foreign`), telling whole from corrupt (`verdict`).
"""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial as bound

from modelcache.abreast import Going, abreast
from modelcache.audit import Manner
from modelcache.due import Due, Group, looked_at
from modelcache.errors import PausedError, StoreError
from modelcache.foreign.tier import Claim
from modelcache.model import Digest, Span
from modelcache.outcome import Audit
from modelcache.state.looks import Look, Looks
from modelcache.store import records
from modelcache.store.disk import BUFFER
from modelcache.store.installed import NEVER, Installed, Stamp
from modelcache.store.layout import Layout
from modelcache.sweeps.ward import Found, Pace
from modelcache.verdict import GONE, Expected, Verdict, judged

KEEP_EVERY_S = 2.0
LARGE = 16 << 20  # a file whose look is kept at once: the next one may take as long


class ClaimsWard:
    """One cache or folder, as long as one sweep. `key` is what its looks are kept under."""

    def __init__(
        self, name: str, key: str, claims: Callable[[], Iterable[Claim]], looks: Looks, pace: Pace, manner: Manner
    ) -> None:
        self.name = name
        self._key = key
        self._claims = claims
        self._looks = looks
        self._pace = pace
        self._manner = manner
        self._total = 0
        self._due: list[Due[Claim]] = []
        self._known: list[Found] = []

    def begin(self, before_ms: int) -> None:
        looks = self._looks.of(self._key)
        sizes = dict[str, int]()
        for claim in self._claims():
            sizes[claim.place] = size = _size_of(claim.place)
            look = looks.get(claim.place)
            if (at := self._at(claim, look)) < before_ms:
                self._due.append(Due(at, size, (claim.place, claim.digests), claim))
            elif look and look.finding != "whole":
                self._known.append(Found(_audit(claim, look.finding, look.reason, look.wrong), is_known=True))
        self._total = sum(sizes.values())
        self._looks.unlook(self._key, looks.keys() - sizes.keys())

    def groups(self) -> Iterator[Group[Claim]]:
        yield 0, lambda: self._due

    def _at(self, claim: Claim, look: Look | None) -> int:
        """When it was read; 0 if it was not, or looks different by now, or is not there."""
        if look is None or look.stamp.judge(claim.place) != "right":
            return 0
        return looked_at(look.stamp.verified_at, round(1000 * self._manner.clock()))

    def total(self) -> int:
        return self._total

    def known(self) -> Iterator[Found]:
        yield from self._known

    def read(self, files: Sequence[Due[Claim]]) -> Generator[Found, None, None]:
        same: dict[object, list[Claim]] = {}
        for due in files:
            same.setdefault(due.key, []).append(due.file)
        self._looks.keep()
        gone: list[Claim] = []
        try:
            yield from self._read(list(same.values()), gone)
        except PausedError:
            yield from self._missing(gone)
            raise
        yield from self._missing(gone)

    def _read(self, files: Sequence[Sequence[Claim]], gone: list[Claim]) -> Generator[Found, None, None]:
        works = (bound(self._judged, claims) for claims in files if self._pace.may_begin)
        left, keep_at = len(files), time.monotonic() + KEEP_EVERY_S
        with closing(abreast(works)) as done:
            for claims, verdict in done:
                left -= 1
                if verdict.finding == "missing":
                    gone += claims
                else:
                    yield from self._found(claims, verdict)
                if time.monotonic() >= keep_at or _size_of(claims[0].place) >= LARGE:
                    self._looks.keep()
                    keep_at = time.monotonic() + KEEP_EVERY_S
        self._looks.keep()
        if left:
            raise PausedError("the time for reading is over")

    def _missing(self, gone: Sequence[Claim]) -> Iterator[Found]:
        """What is claimed still, when all else was read: listing that may take long."""
        still = {(claim.place, claim.path, claim.version) for claim in self._claims()} if gone else set()
        for claim in gone:
            if (claim.place, claim.path, claim.version) in still:
                yield Found(_audit(claim, "missing", GONE))

    def _judged(self, claims: Sequence[Claim], going: Going) -> tuple[Sequence[Claim], Verdict]:
        claim = claims[0]
        size = _size_of(claim.place)

        def tick() -> None:
            going()
            self._pace.check()
            self._manner.pay(min(BUFFER, size))

        return claims, judged(claim.place, Expected(claim.digests, claim.size, claim.pieces), tick)

    def _found(self, claims: Sequence[Claim], verdict: Verdict) -> Iterator[Found]:
        place = claims[0].place
        stamp = replace(verdict.stamp or _stamp_of(place), verified_at=round(1000 * self._manner.clock()))
        self._looks.look(self._key, place, Look(stamp, verdict.finding, verdict.reason, verdict.wrong))
        for claim in claims:
            yield Found(_audit(claim, verdict.finding, verdict.reason, verdict.wrong))


class FolderWard(ClaimsWard):
    """An output folder with a record of ours."""

    def __init__(self, name: str, folder: str, layout: Layout, looks: Looks, pace: Pace, manner: Manner) -> None:
        super().__init__(name, os.path.realpath(folder), self._recorded, looks, pace, manner)
        self._folder = folder
        self._layout = layout

    def _recorded(self) -> Iterator[Claim]:
        record = Installed.read(self._folder)
        for file in record.files if record else ():
            digest = Digest("sha256", file.sha256)
            yield Claim(
                record.id if record else "",
                record.version if record else "",
                file.path,
                f"{self._folder}/{file.path}",
                (digest,),
            )

    def _found(self, claims: Sequence[Claim], verdict: Verdict) -> Iterator[Found]:
        if verdict.finding == "corrupt":
            with suppress(StoreError), records.changing(self._layout):
                self._distrust({claim.path: claim.digests[0].hex for claim in claims})
        yield from super()._found(claims, verdict)

    def _distrust(self, rotten: dict[str, str]) -> None:
        """So that no fetch takes it for what was put there."""
        now = Installed.read(self._folder)
        wrong = [file for file in now.files if rotten.get(file.path) == file.sha256] if now else []
        if now and wrong:
            now.with_files(file.distrusted() for file in wrong).write()


def _size_of(place: str) -> int:
    try:
        return os.lstat(place).st_size
    except OSError:
        return 0


def _stamp_of(place: str) -> Stamp:
    try:
        return Stamp.of(place)
    except OSError:
        return NEVER


def _audit(claim: Claim, finding: str, reason: str, wrong: tuple[Span, ...] = ()) -> Audit:
    size = claim.size if claim.size is not None else _size_of(claim.place)
    return Audit(claim.model, claim.version, claim.path, claim.place, size, finding, wrong, reason)  # type: ignore[arg-type]
