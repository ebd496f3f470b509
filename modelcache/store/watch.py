"""How far somebody else is with files that we wait for.

Responsible for: reading it from the journals of partials, cheaply enough to look five times a second, and telling for
whom we wait. Leaves to `locks`: the waiting; to others: showing it.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from modelcache.errors import StoreError
from modelcache.model import ModelFile
from modelcache.store import blobs
from modelcache.store.journal import Facts, read_facts
from modelcache.store.layout import Layout, key_of
from modelcache.store.locks import Holder

_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_Mark = tuple[int, int, int]  # inode, size and mtime of a journal


@dataclass(frozen=True, slots=True)
class Far:
    """`here` of `total` bytes, 0 where the total is unknown; `moves` changes with any progress of the holder."""

    here: int = 0
    total: int = 0
    moves: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        if not self.here:
            return ""
        unit, factor = next(
            ((unit, factor) for unit, factor in _UNITS if max(self.here, self.total) >= factor), ("B", 1)
        )
        decimals = 1 if factor > 1 else 0
        of_total = f" of {self.total / factor:.{decimals}f}" if self.total else ""
        return f"{self.here / factor:.{decimals}f}{of_total} {unit}"


class Watch:
    """Of `files` whose partials are in `base`; `tell` gets one sentence for each process that is waited for.

    `model` is whose files they are, where the holder has the lock of that model. One thread calls `look`; `of` may be
    called by others.
    """

    def __init__(
        self, layout: Layout, base: str, files: Sequence[ModelFile], tell: Callable[[str], None], model: str = ""
    ) -> None:
        self._layout = layout
        self._base = base
        self.follow(files)
        self._tell = tell
        self._model = model
        self._told = self._last = Holder()
        self._journals: dict[str, tuple[_Mark, Facts | None]] = {}  # as they were read last
        self._far: dict[str, Far] = {}  # by key; what was seen once stays, for a partial that goes is a blob soon

    def follow(self, files: Sequence[ModelFile]) -> None:
        """These files from now on; for the thread that looks."""
        self._files = {key_of(file): file for file in files}

    def look(self, holder: Holder) -> Far:
        """How far all the files are."""
        self._read()
        moves = []
        for name, (_, facts) in sorted(self._journals.items()):
            if facts is None:
                continue
            key = self._key_of(name.rpartition(".")[0], facts, holder)
            if key or holder.owns(facts.owner):
                moves.append((name, facts.written.size))
            if key:
                self._far[key] = Far(facts.written.size, self._files[key].size or facts.size or 0)
        for key, file in self._files.items():
            self._note_blob(key, file)
        seen = self._far.values()
        far = Far(sum(each.here for each in seen), self._total(), tuple(moves))
        self._announce(holder, far)
        return far

    def of(self, file: ModelFile) -> Far:
        return self._far.get(key_of(file), Far(0, file.size or 0))

    def _key_of(self, key: str, facts: Facts, holder: Holder) -> str:
        """Which of our files a partial is; empty: none. The holder may know more or less of it than we do, and call it
        by another key, or by none of its digests."""
        if key in self._files:
            return key
        if not self._model or facts.header.get("model") != self._model or not holder.owns(facts.owner):
            return ""
        return next((ours for ours, file in self._files.items() if file.path == facts.header.get("path")), "")

    def _announce(self, holder: Holder, far: Far) -> None:
        """Once for each holder, at the second look: who has the lock for a moment is not worth a line."""
        if holder == self._last != self._told:
            self._told = holder
            self._tell(f"waiting for {holder}" + (f" ({far})" if str(far) else ""))
        self._last = holder

    def _total(self) -> int:
        """0 while the size of one file is unknown."""
        totals = [self.of(file).total for file in self._files.values()]
        return sum(totals) if all(totals) else 0

    def _note_blob(self, key: str, file: ModelFile) -> None:
        far = self._far.get(key)
        if file.digests and file.size and (far is None or far.here < file.size):
            with suppress(StoreError):
                if blobs.find(self._layout, file):
                    self._far[key] = Far(file.size, file.size)

    def _read(self) -> None:
        """Reads the journals that have changed."""
        found: dict[str, tuple[_Mark, Facts | None]] = {}
        with suppress(OSError):
            for name in os.listdir(self._base):
                path = os.path.join(self._base, name, "journal")
                with suppress(OSError):
                    status = os.lstat(path)
                    mark = (status.st_ino, status.st_size, status.st_mtime_ns)
                    known = self._journals.get(name)
                    found[name] = known if known and known[0] == mark else (mark, read_facts(path))
        self._journals = found
