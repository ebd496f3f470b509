"""One sweep: what is due is read, and what is wrong is told.

Responsible for: which places it goes through, in which order, how much of each, and one row a file.
Leaves to others: what there is in a place and reading it (`store`, `claims`), the choice (`due`).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial as bound
from typing import Any, Self

from modelcache.audit import Manner
from modelcache.dispatch import Show
from modelcache.due import Due, chosen, in_turn, share_of
from modelcache.errors import PausedError, StoreError, UsageError
from modelcache.findings import incomplete
from modelcache.foreign.hubcache import HubCache
from modelcache.foreign.ollama import OllamaStore
from modelcache.foreign.tier import Claim
from modelcache.manifests import load
from modelcache.names import joined
from modelcache.order import Workshop
from modelcache.progress.show import gathered
from modelcache.rows import Report
from modelcache.settings import HUGGING_FACE, MOST, MOST_S, OLLAMA
from modelcache.state.looks import Looks
from modelcache.state.place import Place
from modelcache.store.disk import is_full
from modelcache.store.installed import RECORD
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.shelf import Shelf
from modelcache.sweeps.claims import ClaimsWard, FolderWard
from modelcache.sweeps.store import StoreWard
from modelcache.sweeps.ward import Found, Pace, Ward
from modelcache.units import DAY_S, bytes_of, in_units, seconds_of
from modelcache.wiring import tier_of

MANIFEST = "manifest.json"
OLDER_THAN_S = 10 * DAY_S
FORGETS = "{} cannot be written: what this run finds beside the records is not remembered"
SUBJECT = Subject("the sweep of what is installed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep does.

    share: of the bytes of each place. older_than_s: what was verified less long ago is left. time_limit_s: after that
    no file is begun; 0: no limit. rate: bytes/s at most; 0: as fast as it goes. strict: by SHA-256. repairs: mends what
    has rotted in the store. also: further places, `hf`, `ollama`, a folder with a manifest, a manifest.
    """

    share: Fraction = Fraction(1, 30)
    older_than_s: float = OLDER_THAN_S
    time_limit_s: float = 0.0
    rate: int = 0
    strict: bool = False
    repairs: bool = False
    also: tuple[str, ...] = ()

    @classmethod
    def parsed(
        cls,
        share: str | float,
        older_than: str | float,
        time_limit: str | float,
        rate_limit: str | int,
        *,
        strict: bool,
        repairs: bool,
        also: Iterable[str],
    ) -> Self:
        """From what people type. UsageError."""
        older_than_s = _bounded("older_than", seconds_of(older_than) if isinstance(older_than, str) else older_than)
        time_limit_s = _bounded("time_limit", seconds_of(time_limit) if isinstance(time_limit, str) else time_limit)
        rate = _bounded("rate_limit", bytes_of(rate_limit) if isinstance(rate_limit, str) else rate_limit, MOST)
        return cls(share_of(share), older_than_s, time_limit_s, int(rate), strict, repairs, tuple(also))


def _bounded(name: str, value: float, most: float = MOST_S) -> float:
    if not 0 <= value <= most:
        raise UsageError(f"{name} = {value!r}: a number from 0 to {most:.0e} is expected")
    return value


@dataclass(slots=True)
class _Tally:
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: int = 0
    size: int = 0
    findings: int = 0
    is_over: bool = False
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # each finding in words

    def add(self, found: Iterable[Found], where: str) -> None:
        for one in found:
            self.rows.append(one.to_row(where))
            self.findings += one.is_finding
            if one.is_finding:
                self.wrong.append(one.in_words)
            is_read = not one.is_known and one.audit.finding != "missing"
            self.files += is_read
            self.size += one.audit.size if is_read else 0

    def report(self) -> Report:
        rest = "" if self.is_over else "; it was ended before its time, and the next run goes on there"
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        title = f"{files} verified, {in_units(self.size)}{rest}"
        none = "nothing was due" if self.is_over and not self.files else "nothing wrong"
        return Report(title, tuple(self.rows), findings=self.findings, none=none, notes=tuple(self.notes))


def sweep(
    shops: Sequence[Workshop],
    plan: Plan,
    progress: Show = None,
    stop: threading.Event | None = None,
    clock: Callable[[], float] | None = None,
) -> Report:
    """Reads what is due in these roots, and in the other places of the plan. One row a file that was read, or that an
    earlier run found wrong and nobody has mended.

    A `stop` ends it within a buffer, with what was found by then; the next run goes on there. Raises LockedError while
    another sweep is at it, UsageError for a place that is none. A root that cannot be written to is left out, with a
    note; StoreError where that is all of them. On a full disk all is read, and a note says that nothing is remembered.
    """
    refused: list[StoreError] = []
    tally, pace = _Tally(), Pace(stop or threading.Event(), plan.time_limit_s, plan.rate)
    manner = pace.manner(clock or time.time, strict=plan.strict)
    wrong: list[str] = []
    with suppress(PausedError), gathered(progress, "Sweep", wrong) as show:
        for shop in shops:
            try:
                _sweep(shop, plan, show, pace, manner, tally)
                plan = replace(plan, also=())  # they belong to no root
            except StoreError as error:
                refused.append(error)
                tally.notes.append(f"left out: {error.message}")
        tally.is_over = True
        wrong += tally.wrong
    if len(refused) == len(shops):
        raise refused[-1]
    return tally.report()


def _sweep(shop: Workshop, plan: Plan, progress: Show, pace: Pace, manner: Manner, tally: _Tally) -> None:
    place = Place.of(shop.layout.root, shared=shop.settings.shared)
    with _alone(shop.layout), Looks.opened(place.looks) as looks:
        if not looks.is_kept:
            tally.notes.append(FORGETS.format(place.looks))
        store = StoreWard(shop, looks, pace, manner, progress, repairs=plan.repairs)
        wards: list[Ward] = [store, *(ward_of(each, shop.layout, looks, pace, manner) for each in plan.also)]
        try:
            _go_through(wards, plan, round(1000 * (manner.clock() - plan.older_than_s)), tally)
        finally:
            for ward in wards:
                tally.add(ward.known(), ward.name)
            tally.notes += incomplete(Shelf(shop.layout), list(store.lacking.values()))


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Where there is no room for a lock, two sweeps at once read twice, and do no harm."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(layout.lock("verify"), SUBJECT, Patience(0.0)))
        except StoreError as error:
            if not is_full(error):
                raise
        yield


def _go_through(wards: Sequence[Ward], plan: Plan, before_ms: int, tally: _Tally) -> None:
    """First the place with the file that was verified longest ago."""
    turns: list[tuple[list[Due[Any]], Ward]] = []
    for ward in wards:
        ward.begin(before_ms)
        turns.append((chosen(in_turn(ward.groups()), plan.share, ward.total()), ward))
    for files, ward in sorted(turns, key=lambda turn: turn[0][0].looked_at if turn[0] else 0):
        if files:
            with closing(ward.read(files)) as found:
                tally.add(found, ward.name)


def ward_of(place: str, layout: Layout, looks: Looks, pace: Pace, manner: Manner) -> ClaimsWard:
    """`hf`, `ollama`, a folder that is such a cache, an output folder, or a manifest: its folder. UsageError."""
    path = os.path.abspath(os.path.expanduser(place))
    if place not in (HUGGING_FACE, OLLAMA):
        if os.path.isfile(path) or os.path.isfile(os.path.join(path, MANIFEST)):
            path = path if os.path.isfile(path) else os.path.join(path, MANIFEST)
            return ClaimsWard(place, os.path.realpath(path), bound(_listed, path), looks, pace, manner)
        if os.path.isfile(os.path.join(path, RECORD)):
            return FolderWard(place, path, layout, looks, pace, manner)
    tier = tier_of(place)
    is_expected = place in (HUGGING_FACE, OLLAMA)  # else nothing there would pass for nothing wrong
    if isinstance(tier, (HubCache, OllamaStore)) and (is_expected or any(True for _ in tier.claims())):
        return ClaimsWard(place, os.path.realpath(tier.name), tier.claims, looks, pace, manner)
    raise UsageError(
        f"{place} is no place to verify",
        next_step="name hf, ollama, a cache of theirs, a manifest, or a folder with one; a root by MODELCACHE_HOME",
    )


def _listed(path: str) -> Iterator[Claim]:
    """The files of a manifest, in the folder that it lies in."""
    manifest, folder = load(path), os.path.dirname(path)
    for file in manifest.files:
        place = joined(folder, file.path)
        yield Claim(manifest.id, manifest.version, file.path, place, file.digests, file.size, file.pieces)
