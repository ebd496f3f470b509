"""A fetched model as another program keeps it: Ollama's own folder of models.

    blobs/sha256-HEX                                     each layer and the configuration
    manifests/registry.ollama.ai/library/NAME/TAG        the manifest, to the byte

Responsible for: the names, and that the manifest comes last: what it lists is all there, and right. Ollama believes
whatever is there. Leaves to others: fetching (`fetching`), copying (`store.links`), what a manifest lists (`image`).
"""

import os

from modelcache.errors import UsageError
from modelcache.image import MANIFEST, contents_of
from modelcache.model import Digest
from modelcache.outcome import Model
from modelcache.refs import Ref, repository_of
from modelcache.store import blobs, links
from modelcache.store.disk import disk_errors

LAYOUTS = ("ollama",)


def checked_layout(layout: str, ref: str) -> str:
    """Where the manifest goes, below the folder. UsageError for what Ollama has no name for."""
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r}: one of {', '.join(LAYOUTS)} is expected")
    parsed = Ref.parse(ref)
    host, repository = repository_of(parsed)
    parts = [host, *repository.split("/")] if parsed.scheme in ("ollama", "oci") else []
    if len(parts) != 3 or not parsed.alias:
        raise UsageError(f"{parsed.shown} has no name in Ollama: ollama:name:tag and oci://host/user/name:tag have one")
    return "/".join(("manifests", *parts, parsed.alias))


def write_ollama(model: Model, folder: str, place: str) -> str:
    """Writes a model into a folder as Ollama keeps it, its manifest at `place`; returns the folder.

    A blob that is there is read, and replaced unless it is right. Copies (reflinks where the disk can), so that what is
    done there harms no cache. Raises UsageError for a model without its manifest, StoreError, LockedError,
    VerificationError; then no manifest is written.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    here = {file.sha256: file for file in model.files}
    manifest = next((file for file in model.files if file.name == MANIFEST), None)
    if manifest is None:
        raise UsageError(f"{model.ref} came without its {MANIFEST}", next_step="fetch all of its files")
    with disk_errors(manifest.path), open(manifest.path, "rb") as stream:
        contents = contents_of(stream.read())
    for content in contents:
        if content.sha256.hex not in here:
            raise UsageError(f"{model.ref} is here without {content.path}", next_step="fetch all of its files")
        blob = os.path.join(folder, "blobs", f"sha256-{content.sha256.hex}")
        _put(here[content.sha256.hex].path, blob, content.sha256)
    # The names are those of a checked ref; a host may have a ":", as Ollama itself writes it.
    _put(manifest.path, os.path.join(folder, *place.split("/")), Digest("sha256", manifest.sha256))
    return folder


def _put(source: str, target: str, sha256: Digest) -> None:
    if not _is_right(target, os.stat(source).st_size, sha256):
        links.copy(source, target, sha256)


def _is_right(target: str, size: int, sha256: Digest) -> bool:
    if os.path.islink(target) or not os.path.isfile(target) or os.stat(target).st_size != size:
        return False
    return blobs.read_back(target, (sha256,), 0).wrong is None
