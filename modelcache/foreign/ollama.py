"""The store of Ollama.

    blobs/sha256-<hex>                                  the layers of models
    manifests/<registry>/<user or library>/<model>/<tag>  the manifest, to the byte

An interrupted download is `blobs/sha256-<hex>-partial`, as long as the whole, with a file for each of its portions that
tells how far that came: `-partial-<n>`, JSON. It says less than is there, after a kill.

Responsible for: its layout. Leaves to others: everything else.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

from modelcache.errors import UsageError
from modelcache.foreign.tier import (
    Abandoned,
    Claim,
    Found,
    Left,
    below,
    entries_of,
    led_to,
    regular_inside,
    small,
    touched_ms,
)
from modelcache.image import MANIFEST, MOST_BYTES, contents_of
from modelcache.model import Digest, Manifest, ModelFile, Span
from modelcache.openfiles import is_running
from modelcache.refs import OLLAMA_REGISTRY, Ref, is_alias
from modelcache.remotes.inline import url_of

SERVER = "ollama"  # what its process is called
MOST_BLOBS = 100_000
_PARTIAL = re.compile("(sha256-[0-9a-f]{64})-partial(-[0-9]+)?")
LEAST_PARTS = 3  # of a manifest's place: registry, repository, tag

MOST = 10_000  # manifests: all of them are read
MOST_PORTIONS = 4096
MOST_PORTION_BYTES = 4096


class OllamaStore:
    """A folder with `blobs` and `manifests`."""

    def __init__(self, folder: str) -> None:
        self.name, self.kind = folder, "ollama"

    def find(self, file: ModelFile) -> str | None:
        sha256 = file.digest()
        return regular_inside(self.blob(sha256.hex), self.name, file.size) if sha256 else None

    def models(self) -> Iterator[Found | Left]:
        tags: dict[tuple[str, str, Digest], dict[str, int]] = {}  # of each manifest, by ref and place in its registry
        places: dict[Digest, str] = {}
        for count, (parts, path) in enumerate(self._manifests()):
            if count == MOST:
                yield Left(os.path.join(self.name, "manifests"), f"only {MOST:,} of its manifests are looked at")
                break
            try:
                digest = _digest_of(small(path, MOST_BYTES) if len(parts) >= LEAST_PARTS else None)
                repository = "/".join(parts[1:-1])
                base = _base(parts[0], repository)
                ref = Ref.parse(f"{base}:{parts[-1]}")
                if not is_alias(ref.alias, ref.scheme):
                    raise UsageError("it is no name of a tag")
            except UsageError as error:
                yield Left(path, error.message)
                continue
            places[digest] = path
            tags.setdefault((base, f"{parts[0]}/{repository}", digest), {})[ref.alias] = touched_ms(path)
        for (base, where, digest), aliases in sorted(tags.items(), key=lambda pair: max(pair[1].values())):
            try:
                yield self._model(base, where, digest, aliases, places[digest])
            except UsageError as error:
                yield Left(places[digest], error.message)

    def claims(self) -> Iterator[Claim]:
        """Every layer that a manifest lists: Ollama needs all of them."""
        for parts, path in self._manifests():
            with suppress(UsageError):
                if len(parts) < LEAST_PARTS or (manifest := small(path, MOST_BYTES)) is None:
                    continue
                base, tag = _base(parts[0], "/".join(parts[1:-1])), parts[-1]
                for each in contents_of(manifest):
                    place = led_to(self.blob(each.sha256.hex), self.name)
                    yield Claim(Ref.parse(base).base, tag, each.path, place, (each.sha256,), each.size)

    def _manifests(self) -> Iterator[tuple[list[str], str]]:
        """Names and path of everything below the manifests that is no folder; one more than are looked at."""
        for name, path in below(os.path.join(self.name, "manifests"), MOST + 1):
            yield name.split("/"), path

    def _model(self, base: str, where: str, digest: Digest, aliases: Mapping[str, int], path: str) -> Found:
        """UsageError where it can be no model of ours, or the manifest is none, or not any more."""
        manifest = small(path, MOST_BYTES) or b""
        if _digest_of(manifest) != digest:
            raise UsageError("it has changed while it was looked at")
        ref = Ref.parse(f"{base}@{digest}")
        layers = [
            ModelFile(each.path, each.size, (each.sha256,), (f"oci://{where}@{each.sha256}",))
            for each in contents_of(manifest)
        ]
        itself = ModelFile(MANIFEST, len(manifest), (digest,), (url_of(manifest),))
        places = {file.path: place for file in layers if (place := self.find(file))}
        whole = Manifest(ref.id, ref.version, ref.base, (*layers, itself))
        files = tuple(file for file in layers if file.path in places)
        gone = tuple(file.path for file in layers if file.path not in places)  # the manifest was written last
        return Found(ref, (*files, itself), {**places, MANIFEST: path}, whole, aliases, gone=gone)

    def abandoned(self) -> Iterator[Abandoned]:
        """None while a server runs: it goes on with what it has begun, and prunes by itself."""
        if is_running(SERVER):
            return
        begun: dict[str, list[str]] = {}
        for entry in entries_of(os.path.join(self.name, "blobs"), MOST_BLOBS):
            if (found := _PARTIAL.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False):
                begun.setdefault(found[1], []).append(entry.path)
        for paths in begun.values():
            yield Abandoned(tuple(paths))

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


def _digest_of(manifest: bytes | None) -> Digest:
    if manifest is None:
        raise UsageError("it is no manifest of a model")
    return Digest("sha256", hashlib.sha256(manifest).hexdigest())


def _base(host: str, repository: str) -> str:
    """What all tags of a model have in common."""
    if host == OLLAMA_REGISTRY:
        return f"ollama:{repository.removeprefix('library/')}"
    return f"oci://{host}/{repository}"


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
