"""The store of Ollama: `blobs/sha256-<hex>`, and a manifest for each tag below `manifests`.

An interrupted download is `blobs/sha256-<hex>-partial`, as long as the whole, with a file for each of its portions that
tells how far that came: `-partial-<n>`, JSON. It says less than is there, after a kill.

Responsible for: its layout. Leaves to others: everything else.
"""

import json
import os
from collections.abc import Iterator

from modelcache.foreign.tier import Found, Left, regular_inside, small
from modelcache.model import ModelFile, Span

MOST_PORTIONS = 4096
MOST_PORTION_BYTES = 4096


class OllamaStore:
    """A folder with `blobs` and `manifests`."""

    def __init__(self, folder: str) -> None:
        self.name = folder

    def find(self, file: ModelFile) -> str | None:
        sha256 = file.digest()
        return regular_inside(self.blob(sha256.hex), self.name, file.size) if sha256 else None

    def models(self) -> Iterator[Found | Left]:
        yield from ()

    def begun(self, file: ModelFile, /) -> tuple[str, list[Span]] | None:
        sha256 = file.digest()
        data = sha256 and regular_inside(self.blob(sha256.hex) + "-partial", self.name, file.size)
        if not data or not file.size:
            return None
        portions = sorted(_portions(data))
        starts, stops = [start for start, _, _ in portions], [stop for _, stop, _ in portions]
        if [*starts, file.size] != [0, *stops]:
            return None  # they are not portions of this file
        spans = [Span(start, start + done) for start, _, done in portions if done]
        return (data, spans) if spans else None

    def blob(self, sha256: str) -> str:
        return os.path.join(self.name, "blobs", f"sha256-{sha256}")


def _portions(data: str) -> Iterator[tuple[int, int, int]]:
    """Start, stop and how many bytes are here, of each portion that is told of."""
    for number in range(MOST_PORTIONS):
        content = small(f"{data}-{number}", MOST_PORTION_BYTES)
        if content is None:
            return
        try:
            told = json.loads(content)
        except (ValueError, RecursionError):
            return
        match told:
            case {"N": int(n), "Offset": int(start), "Size": int(size), "Completed": int(done)} if (
                n == number and start >= 0 and 0 <= done <= size < 2**63 and size > 0
            ):
                yield start, start + size, done
            case _:
                return
