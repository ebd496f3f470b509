"""The store: whose turn it is there, by the stamps in the records; reading, and mending what has rotted.

Responsible for: opening only the records of models whose turn it may be, and reading once what several models share.
The stamps are the cursor: what was verified is dated in its record, and the next run goes on behind it.
Leaves to others: reading a model (`audit`), mending it (`mending`), what is remembered beside the records (`looks`).
"""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial as bound

from modelcache.abreast import processors
from modelcache.audit import Manner, reading, record_as_proven, sampler_of
from modelcache.dispatch import Show
from modelcache.due import Due, Group, looked_at
from modelcache.errors import LockedError, PausedError, StoreError, UsageError
from modelcache.mending import Repairer
from modelcache.model import Digest, Span
from modelcache.order import Workshop
from modelcache.outcome import Audit, Finding
from modelcache.progress.show import shown
from modelcache.sampling import Sampler
from modelcache.state.looks import Begun, Look, Looks
from modelcache.store.installed import NEVER, Installed, InstalledFile, Stamp
from modelcache.store.sharing import LINKS_OF_ONE
from modelcache.sweeps.ward import Found, Pace
from modelcache.wish import Wish

KEEP_EVERY_S = 2.0
BATCH = 512 << 20  # bytes that are read before what was found is told
KNOWN = "found before; `modelcache repair` mends it"

_Model = tuple[str, str]  # id and version
_File = tuple[_Model, InstalledFile]


class StoreWard:
    """The models of one root, as long as one sweep."""

    name = ""

    def __init__(
        self, shop: Workshop, looks: Looks, pace: Pace, manner: Manner, progress: Show, *, repairs: bool
    ) -> None:
        self._shop = shop
        self._looks = looks
        self._pace = pace
        self._manner = replace(manner, begun=self._begun, leave=self._leave)
        self._progress = progress
        self._repairs = repairs
        self._before = 0
        self._keep_at = 0.0
        self._looked = looks.of("")
        self._known: dict[str, Found] = {}
        self.lacking: dict[_Model, Installed] = {}  # of which files were never fetched: no finding

    @property
    def _now_ms(self) -> int:
        return round(1000 * self._manner.clock())

    def begin(self, before_ms: int) -> None:
        self._before = before_ms
        self._looks.unlook("", [place for place in self._looked if not self._look(place)])
        self._looks.follow(self._shop.layout, self._now_ms)

    def groups(self) -> Iterator[Group[_File]]:
        for oldest, model_id, version in self._looks.oldest_models(self._before, self._now_ms):
            yield oldest, bound(self._due, (model_id, version))

    def total(self) -> int:
        return self._looks.total()

    def known(self) -> Iterator[Found]:
        yield from self._known.values()

    def _record(self, model: _Model) -> Installed | None:
        """None where there is none any more, or it is garbage."""
        with suppress(UsageError):
            record = Installed.read(self._shop.layout.model(*model))
            if record and (record.id, record.version) == model:
                return record
        return None

    def _note(self, model: _Model) -> Installed | None:
        record = self._record(model)
        if record:
            self._looks.note(record, self._now_ms)
        else:
            self._looks.forget(*model)
        return record

    def _due(self, model: _Model) -> Iterator[Due[_File]]:
        record = self._note(model)
        if record is None:
            return
        if record.missing:
            self.lacking[model] = record
        for file in record.files:
            if (due := self._due_file(record, file)) is not None:
                yield due

    def _due_file(self, record: Installed, file: InstalledFile) -> Due[_File] | None:
        """None of what is read again later; what is known to be wrong with it is told."""
        model, place = (record.id, record.version), record.place(file)
        look = self._look(place) or self._look(self._shop.layout.blob(Digest("sha256", file.sha256)))
        if self._repairs and (file.is_distrusted or (look and look.finding == "corrupt")):
            return Due(0, 0, (file.sha256, place), (model, file))
        if file.is_distrusted:
            self._know(_audit(record, file.path, file.size, "corrupt", KNOWN, look.wrong if look else ()))
            return None
        at = looked_at(file.stamp.verified_at, self._now_ms)
        if at < self._before and look:
            at = max(at, looked_at(look.stamp.verified_at, self._now_ms))
            if at >= self._before and look.finding != "whole":
                self._know(_audit(record, file.path, file.size, look.finding, look.reason, look.wrong))
        if at >= self._before:
            return None
        cost = max(0, file.size) if os.path.lexists(place) else 0  # nothing is read of it
        return Due(at, cost, (file.sha256, file.stamp.inode), (model, file))

    def _look(self, place: str) -> Look | None:
        """What an earlier run found there that its record does not say; None where it looks different by now."""
        look = self._looked.get(place)
        return look if look and look.stamp.judge(place) == "right" else None

    def _begun(self, place: str) -> Begun | None:
        begun = self._looks.begun(place)
        return begun if begun and looked_at(begun.stamp.verified_at, self._now_ms) >= self._before else None

    def _leave(self, place: str, begun: Begun | None) -> None:
        if begun is None:
            self._looks.end(place)
        else:
            self._looks.begin(place, begun)
        if time.monotonic() >= self._keep_at:
            self._looks.keep()
            self._keep_at = time.monotonic() + KEEP_EVERY_S

    def _know(self, audit: Audit) -> None:
        self._known[audit.place] = Found(audit, is_known=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, files: Sequence[Due[_File]]) -> Generator[Found, None, None]:
        self._looks.keep()
        by_model: dict[_Model, list[InstalledFile]] = {}
        for due in files:
            model, file = due.file
            by_model.setdefault(model, []).append(file)
        for batch in _batches(by_model):
            if not self._pace.may_begin:
                raise PausedError("the time for reading is over")
            unread = [self._unread(model, by_model[model]) for model in batch]
            yield from self._audited([record for record in unread if record])
            for model in batch:
                self._note(model)
            self._looks.keep()

    def _unread(self, model: _Model, planned: Sequence[InstalledFile]) -> Installed | None:
        """The record with those files alone that are still to be read."""
        record = self._record(model)
        if record is None:
            return None
        entries, proven, unread = record.by_path(), [], []
        for file in planned:
            now = entries.get(file.path)
            if now is not None and now.is_distrusted and not file.is_distrusted:  # by what it shares with another
                self._know(_audit(record, file.path, file.size, "corrupt", KNOWN))
                unread += [now] if self._repairs else []
            elif now == file and (stamp := self._proven_elsewhere(record, file)):
                proven.append((file, stamp))
            elif now == file:
                unread.append(file)
        if proven:
            record_as_proven(self._shop, record, proven)
        return replace(record, files=tuple(unread), missing=()) if unread else None

    def _proven_elsewhere(self, record: Installed, file: InstalledFile) -> Stamp | None:
        """Its stamp as another model has it by now, which shares it. That model's record vouches for it, as its own."""
        place = record.place(file)
        with suppress(OSError):
            where = self._looks.proven(file.sha256) if os.lstat(place).st_nlink > LINKS_OF_ONE else None
            other = self._record((where[0], where[1])) if where else None
            entry = other.file(where[2]) if where and other else None
            if entry and entry.sha256 == file.sha256 and entry.stamp.judge(place) == "right":
                at = looked_at(entry.stamp.verified_at, self._now_ms)
                return entry.stamp if at >= self._before else None
        return None

    def _audited(self, unread: Sequence[Installed]) -> Iterator[Found]:
        """What is mended comes after what was read."""
        wrong: dict[_Model, list[Audit]] = {}
        ended: list[Audit] = []
        with ExitStack() as stack:
            models = [(record, self._told(record, stack)) for record in unread]
            try:
                with closing(reading(self._shop, models, self._pace, self._manner)) as audits:
                    for audit in audits:
                        if audit.finding == "missing" and not self._is_wanted(audit):
                            continue  # the model was removed meanwhile
                        ended.append(audit)
                        if self._repairs and audit.finding in ("corrupt", "missing"):
                            wrong.setdefault((audit.model, audit.version), []).append(audit)
                        else:
                            yield Found(audit)
            except PausedError:
                yield from (Found(audit) for found in wrong.values() for audit in found)
                raise
            finally:  # by now the records are written, or could not be
                self._remember(ended)
            for record, sampler in models:
                yield from self._mended(record, wrong.get((record.id, record.version), ()), sampler)

    def _told(self, record: Installed, stack: ExitStack) -> Sampler:
        sizes = {file.path: file.size for file in record.files}
        stack.enter_context(shown(self._progress, self._shop.dispatcher, record.id, sizes))
        return stack.enter_context(sampler_of(self._shop, record))

    def _mended(self, record: Installed, wrong: Sequence[Audit], sampler: Sampler) -> Iterator[Found]:
        if not wrong:
            return
        repairer = Repairer(self._shop, record, Wish(), self._pace, sampler)
        try:
            for audit in wrong:
                yield self._mend(repairer, audit)
        finally:
            with suppress(StoreError, LockedError):
                repairer.write()

    def _mend(self, repairer: Repairer, audit: Audit) -> Found:
        self._known.pop(audit.place, None)
        try:
            row = repairer.row(audit)
        except StoreError as error:
            return Found(audit, reason=error.line())
        reason = f"{audit.reason}; not repaired: {row['reason']}" if not row["repaired"] else "repaired"
        fetched = row["bytes_fetched"]
        return Found(audit, False, bool(row["repaired"]), fetched if isinstance(fetched, int) else 0, reason)

    def _is_wanted(self, audit: Audit) -> bool:
        now = self._record((audit.model, audit.version))
        return now is not None and now.file(audit.path) is not None

    def _remember(self, ended: Sequence[Audit]) -> None:
        """What no record says: what could not be read, or not be recorded, and which models share a file."""
        by_model = {model: self._record(model) for model in {(audit.model, audit.version) for audit in ended}}
        for audit in ended:
            record = by_model[audit.model, audit.version]
            entry = record.file(audit.path) if record else None
            if record is None or entry is None:
                continue
            if not self._is_recorded(entry, audit):
                stamp = _stamp_at(audit.place, self._now_ms)
                self._looks.look("", audit.place, Look(stamp, audit.finding, audit.reason, audit.wrong))
            elif audit.place in self._looked:
                self._looks.unlook("", [audit.place])
            if audit.finding == "whole":
                with suppress(OSError):
                    if os.lstat(audit.place).st_nlink > LINKS_OF_ONE:
                        self._looks.prove(entry.sha256, record.id, record.version, entry.path)

    def _is_recorded(self, entry: InstalledFile, audit: Audit) -> bool:
        """Whether the next run knows all of it by the record. Another account may own that, what is not there has none,
        and none says which bytes are wrong."""
        if audit.finding == "whole":
            return looked_at(entry.stamp.verified_at, self._now_ms) >= self._before
        return audit.finding == "missing"


def _batches(files: Mapping[_Model, Sequence[InstalledFile]]) -> Iterator[list[_Model]]:
    """Models that are read side by side: enough for all processors, and none that shares a file with another."""
    batch: list[_Model] = []
    keys: set[tuple[str, int]] = set()
    size = 0
    for model, planned in files.items():
        mine = {(file.sha256, file.stamp.inode) for file in planned}
        if batch and (len(keys) >= 4 * processors() or size >= BATCH or keys & mine):
            yield batch
            batch, keys, size = [], set(), 0
        batch.append(model)
        keys |= mine
        size += sum(max(0, file.size) for file in planned)
    if batch:
        yield batch


def _stamp_at(place: str, now_ms: int) -> Stamp:
    try:
        return replace(Stamp.of(place), verified_at=now_ms)
    except OSError:
        return replace(NEVER, verified_at=now_ms)


def _audit(
    record: Installed, path: str, size: int, finding: Finding, reason: str, wrong: tuple[Span, ...] = ()
) -> Audit:
    place = os.path.join(record.folder, path)
    return Audit(record.id, record.version, path, place, max(0, size), finding, wrong, reason)
