"""A further root of modelcache, which others fill: a tier that is only read.

Responsible for: that its blobs are looked for as those of one's own root are. Leaves to `layout` and `blobs`: how.
"""

from collections.abc import Iterator

from modelcache.foreign.tier import Abandoned, Found, Left, regular_inside
from modelcache.model import ModelFile, Span
from modelcache.store import blobs
from modelcache.store.layout import Layout


class Root:
    """The folder with its `blobs`."""

    def __init__(self, folder: str) -> None:
        self.name, self.kind = folder, "modelcache"
        self._layout = Layout(folder)

    def find(self, file: ModelFile) -> str | None:
        sha256 = blobs.find(self._layout, file)
        return regular_inside(self._layout.blob(sha256), self.name, file.size) if sha256 else None

    def models(self) -> Iterator[Found | Left]:
        yield from ()

    def abandoned(self) -> Iterator[Abandoned]:
        yield from ()  # whoever fills it cleans it

    def begun(self, _file: ModelFile) -> tuple[str, list[Span]] | None:
        return None
