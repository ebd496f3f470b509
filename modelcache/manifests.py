"""Manifests from and for folders on this disk.

Responsible for: describing a folder so that others can fetch it verified, with the digests of its pieces.
Leaves to `model`: the format.
"""

import os
from collections.abc import Iterator

from modelcache.errors import UsageError
from modelcache.model import MAX_MANIFEST_BYTES, PIECE_SIZE, Manifest, ModelFile, version_of
from modelcache.names import check_conflicts, checked_path, file_name_of
from modelcache.store.disk import disk_errors
from modelcache.store.installed import RECORD
from modelcache.urls import checked_url

ADOPT = "take in a cache of Hugging Face or Ollama with `modelcache adopt`"


def load(path: str) -> Manifest:
    """Reads a manifest file. UsageError says what is wrong with it; its name stands in for a missing id."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the manifest {path} cannot be read: {error.strerror}") from error
    stem = file_name_of(os.path.basename(path).replace("%", "_")).removesuffix(".json")
    try:
        return Manifest.parse(content, stem)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}") from error


def make(
    folder: str, model_id: str, base_url: str = "", piece_size: int = PIECE_SIZE, *, leave_out: str = ""
) -> Manifest:
    """Reads every file below a folder, links left out. With `base_url` each file gets the URL it will have there.

    `leave_out` is a file that does not belong to it, wherever it is: the manifest itself, of last time.
    """
    checked_path(model_id, parts=1)
    if base_url:
        checked_url(base_url)
    paths = sorted(path for path in paths_below(folder) if os.path.join(folder, path) != leave_out)
    if not paths:
        raise UsageError(f"{folder} holds no files (links do not count)", next_step=ADOPT if left_out(folder) else "")
    check_conflicts(paths)
    files = tuple(_described(folder, path, base_url, piece_size) for path in paths)
    version = version_of({file.path: file.digests[0].hex for file in files})
    return Manifest(model_id, version, "", files)


def paths_below(folder: str) -> Iterator[str]:
    """Relative names of the plain files below a folder, with `/`; our own records and hidden remains left out."""
    yield from (checked_path(name) for name, is_plain in _below(folder) if is_plain)


def left_out(folder: str) -> list[str]:
    """Relative names of what is below a folder and is no plain file: links above all, which may lead anywhere."""
    return sorted(name for name, is_plain in _below(folder) if not is_plain)


def _below(folder: str) -> Iterator[tuple[str, bool]]:
    """Relative names of everything but folders, each with whether it is a plain file."""
    with disk_errors(folder):
        if not os.path.isdir(folder):
            raise UsageError(f"{folder} is not a folder")
        waiting = [""]  # not os.walk, which calls itself: folders may be within folders without end
        while waiting:
            below = waiting.pop()
            with os.scandir(os.path.join(folder, below)) as entries:
                found = [entry for entry in entries if not entry.name.endswith(".modelcache")]
            for entry in found:
                name = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.name != RECORD:
                    yield name.replace(os.sep, "/"), entry.is_file(follow_symlinks=False)


def _described(folder: str, path: str, base_url: str, piece_size: int) -> ModelFile:
    from urllib.parse import quote

    from modelcache.store.blobs import read_back

    reading = read_back(os.path.join(folder, path), (), piece_size)
    urls = (f"{base_url.rstrip('/')}/{quote(path)}",) if base_url else ()
    pieces = reading.pieces if reading.size > piece_size else None
    return ModelFile(path, reading.size, (reading.sha256,), urls, pieces)
