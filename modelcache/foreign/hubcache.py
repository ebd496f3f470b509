"""The cache of huggingface_hub: `models--org--name/{refs,blobs,snapshots}`, and the same for datasets and spaces.

Responsible for: its layout. A blob is called by its SHA-256 (large files) or by what git calls it; from huggingface_hub
2 on it may be a link to a blob that repositories share. Leaves to others: everything else.
"""

import os
import re
from collections.abc import Iterator

from modelcache.errors import UsageError
from modelcache.foreign.tier import regular_inside
from modelcache.model import GIT, ModelFile, Span
from modelcache.refs import Ref

KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
_FOLDER = re.compile(r"(models|datasets|spaces)--([^/]+)")


class HubCache:
    """A folder of repositories."""

    def __init__(self, folder: str) -> None:
        self.name = folder

    def find(self, file: ModelFile) -> str | None:
        digest = file.digest() or file.digest(GIT)
        for repository in self._repositories(file) if digest else ():
            blob = os.path.join(self.name, repository, "blobs", digest.hex if digest else "")
            if place := regular_inside(blob, self.name, file.size):
                return place
        return None

    def begun(self, _file: ModelFile) -> tuple[str, list[Span]] | None:
        return None

    def _repositories(self, file: ModelFile) -> Iterator[str]:
        """The folders of those that the file's urls name: all others would have to be looked for."""
        for url in file.urls:
            if url.startswith("hf:"):
                try:
                    yield folder_of(Ref.parse(url))
                except UsageError:
                    continue


def folder_of(ref: Ref) -> str:
    """What huggingface_hub calls the folder of a repository."""
    name = ref.name if ref.name.startswith(("datasets/", "spaces/")) else f"models/{ref.name}"
    return name.replace("/", "--")
