"""What tests of the transfer share: a file to want, what an earlier run left, and one run against real servers."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from modelcache.errors import ModelCacheError
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.remotes.connection import Timeouts
from modelcache.remotes.http import HttpSource
from modelcache.remotes.source import Source
from modelcache.settings import Settings
from modelcache.store.partial import Partial
from modelcache.testing import Content
from modelcache.throttle import Throttle
from modelcache.transfer.control import Control
from modelcache.transfer.transfer import Transfer

KEY = "key"
QUICK = {"connections": 1, "backoff": 0.01, "connect_timeout": 5.0, "header_timeout": 5.0}


def wanted(content: Content, *, digest: bool = True, size: bool = True, piece: int = 0) -> ModelFile:
    """A file as a manifest may know it: by digest, by size, by the digests of its pieces, or not at all."""
    digests = (Digest("sha256", content.sha256),) if digest else ()
    pieces = None
    if piece:
        starts = range(0, content.size, piece)
        pieces = PieceDigests(piece, b"".join(blake3(content.read(at, at + piece)).digest() for at in starts))
    return ModelFile("m.bin", content.size if size else None, digests, (), pieces)


def leave(folder: Path, file: ModelFile, source: str, *runs: tuple[int, bytes], validator: str = "") -> None:
    """What an earlier run left behind: bytes at offsets, from this source."""
    partial = Partial.open(str(folder), KEY, file)
    try:
        partial.called(source, validator)
        for start, data in runs:
            writer = partial.writer(Span(start, start + len(data)), source)
            writer.measure(None)  # whatever it was, that run believed it
            writer.write(data)
            writer.close()
    finally:
        partial.close()


@dataclass
class Outcome:
    """How a run ended. `content` is the committed file, `left` what the partial still had where it failed."""

    told: list[tuple[str, str, str]]
    tries: int = 0
    received: int = 0
    content: bytes | None = None
    digests: dict[str, Digest] | None = None
    error: ModelCacheError | None = None
    left: int = 0

    def facts(self, kind: str) -> list[tuple[str, str]]:
        """(message, source) of all facts of this type."""
        return [(message, source) for type_, message, source in self.told if type_ == kind]

    @property
    def asked(self) -> list[str]:
        """Names of the sources in the order they were asked, by the last segment of their URL."""
        return [source.rpartition("/")[2] for _, source in self.facts("source_tried")]

    @property
    def blamed(self) -> list[str]:
        return [source.rpartition("/")[2] for _, source in self.facts("piece_failed") if source]


def run(
    folder: Path,
    file: ModelFile,
    sources: Iterable[str | Source],
    *,
    control: Control | None = None,
    throttle: Throttle | None = None,
    window: int = 256 << 20,
    told: list[tuple[str, str, str]] | None = None,
    **settings: float,
) -> Outcome:
    """One transfer through real sources into a real partial, and its commit. Errors of ours are part of the outcome."""
    outcome = Outcome([] if told is None else told)
    with ExitStack() as stack:
        partial = Partial.open(str(folder), KEY, file, window=window)
        stack.callback(partial.close)
        transfer = Transfer(
            file,
            partial,
            _sources(sources, stack),
            Settings(**{**QUICK, **settings}),  # type: ignore[arg-type]
            control or Control(),
            lambda *fact: outcome.told.append(fact),
            throttle or Throttle(),
        )
        try:
            outcome.digests = transfer.run()
            partial.commit(str(folder / "out"), 0o444)
            outcome.content = (folder / "out").read_bytes()
        except ModelCacheError as error:
            outcome.error, outcome.left = error, partial.written_bytes
        outcome.tries, outcome.received = transfer.tries, transfer.received
    return outcome


def _sources(given: Iterable[str | Source], stack: ExitStack) -> Sequence[Source]:
    sources: list[Source] = []
    for one in given:
        source = HttpSource(one, timeouts=Timeouts(connect_s=5, stall_s=5)) if isinstance(one, str) else one
        stack.callback(source.close)
        sources.append(source)
    return sources
