"""What other caches on this disk have of one file: whole, or as far as a download of theirs came.

Responsible for: asking each tier in its order, and saying what is used and what is passed over. What is wrong with a
tier is one line, and never an error: the network is asked then.
Leaves to others: the layouts of tiers (`foreign`), proving (`store.intake`, `store.partial`).
"""

from collections.abc import Callable, Iterator

from modelcache.errors import SourceError, StoreError
from modelcache.events import FactType
from modelcache.model import ModelFile, Span
from modelcache.order import Workshop
from modelcache.store.intake import Taken, take
from modelcache.store.partial import Partial

STEP = 64 << 20  # bytes that are copied between two looks at whether to stop

Tell = Callable[[FactType, str, str], None]  # (type, message, source)


class Tiers:
    """For one file; nothing without a digest is looked for."""

    def __init__(self, shop: Workshop, file: ModelFile, tell: Tell) -> None:
        self._shop = shop
        self._file = file
        self._tell = tell

    def places(self) -> Iterator[str]:
        """Files that should be this one, by their names."""
        return (place for _, place in self._found())

    def _found(self) -> Iterator[tuple[str, str]]:
        """(the kind of the tier, the place)."""
        for tier in self._shop.tiers if self._file.digests else ():
            if place := tier.find(self._file):
                self._tell("verifying", f"{place} should be it", "cache")
                yield tier.kind, place

    def take(self, tick: Callable[[], None]) -> tuple[str, Taken] | None:
        """Makes the first right one a blob; also the kind of its tier. `tick` is called for each MiB; it may raise to
        give up. StoreError."""
        for kind, place in self._found():
            try:
                taken = take(self._shop.layout, place, self._file.digests, self._shop.settings.piece_size, tick)
            except SourceError as error:
                self._tell("source_failed", error.message, "cache")
                continue
            if taken and self._file.size in (None, taken.reading.size):
                return kind, taken
            self._tell("source_failed", f"{place} is not what its name says: it is left alone", "cache")
        return None

    def go_on(self, partial: Partial, check: Callable[[], None]) -> None:
        """Copies what another tool has begun to download. Nothing of it is believed. `check` may raise to give up."""
        for tier in self._shop.tiers if partial.missing() else ():
            if begun := tier.begun(self._file):
                gained = self._copied(partial, *begun, check)
                self._tell("partial_found", f"{gained:,} bytes are in {begun[0]}", "cache")

    def _copied(self, partial: Partial, path: str, spans: list[Span], check: Callable[[], None]) -> int:
        before = partial.written_bytes
        try:
            for span in spans:
                for start in range(span.start, span.stop, STEP):
                    check()
                    partial.seed(path, [Span(start, min(start + STEP, span.stop))])
        except StoreError as error:
            self._tell("source_failed", error.message, "cache")
        gained = partial.written_bytes - before
        partial.resumed_bytes += gained
        return gained
