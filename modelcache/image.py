"""What the manifest of an OCI image lists, as files of a model: rules on bytes, nobody is asked.

Responsible for: reading manifests and indexes of OCI and of Docker strictly, and what each layer is called here.
Leaves to others: fetching them (`remotes.oci`), whether a digest is right, and what is done with the files.

A layer is called what its title says (OCI image spec, annotations); one of Ollama's by its media type; else by its
digest. The manifest itself and the configuration are files of the model, too.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modelcache.errors import UsageError
from modelcache.model import MAX_MANIFEST_FILES, Digest
from modelcache.names import check_conflicts, checked_path

MOST_BYTES = 4 << 20  # what every registry has to take (OCI distribution spec, 4.4.3)
MANIFEST, CONFIG = "oci-manifest.json", "oci-config.json"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_TITLE = "org.opencontainers.image.title"
_OLLAMA = "application/vnd.ollama.image."
_SUFFIXES = {"model": ".gguf", "projector": ".gguf", "adapter": ".gguf", "params": ".json", "messages": ".json"}
_PLATFORM = re.compile(r"[\w.-]{1,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Content:
    """Something that a manifest names: its path in the model, its SHA-256 and its size in bytes."""

    path: str
    sha256: Digest
    size: int


def digest_of(text: object) -> Digest:
    """Of `sha256:HEX` to the letter: it is about to be part of URLs and paths. UsageError for anything else."""
    if not isinstance(text, str) or not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise UsageError(f"{str(text)[:80]!a} is no SHA-256 digest")
    return Digest("sha256", text.removeprefix("sha256:"))


def contents_of(manifest: bytes) -> tuple[Content, ...]:
    """The layers in their order, then the configuration. UsageError says what is wrong with a manifest."""
    fields = _fields(manifest)
    layers = _objects(fields, "layers")
    config = fields.get("config")
    if not layers or not isinstance(config, dict):
        raise UsageError("it lists no layers, or no configuration")
    names = _Names()
    contents = [_content(layer, names.of(layer)) for layer in layers] + [_content(config, CONFIG)]
    different = tuple(dict.fromkeys(contents))  # a layer may be listed twice
    check_conflicts([*(content.path for content in different), MANIFEST])
    if sum(content.size for content in different) >= 2**63:
        raise UsageError("its layers are larger than any disk")
    return different


def is_index(document: bytes) -> bool:
    """Whether it lists manifests instead of layers. UsageError for what is no JSON object."""
    fields = _fields(document)
    return fields.get("mediaType") in INDEXES or ("manifests" in fields and "layers" not in fields)


def only_manifest_of(index: bytes) -> Digest:
    """The one manifest of an index: which of several is meant, only the user can tell. UsageError names them."""
    entries = [entry for entry in _objects(_fields(index), "manifests") if _is_manifest(entry)]
    found = {digest_of(entry.get("digest")): _platform(entry) for entry in entries}
    if len(found) == 1:
        return next(iter(found))
    told = ", ".join(f"@{digest} for {platform}" for digest, platform in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    if not found:
        raise UsageError("it is an index, and none of its manifests has layers")
    raise UsageError(f"it is an index of {len(found)} manifests", next_step=f"name one by its digest: {told}{more}")


class _Names:
    """Names for layers; a second one of Ollama's of the same kind is `license-2`."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, layer: dict[str, Any]) -> str:
        notes, kind = layer.get("annotations"), str(layer.get("mediaType"))
        title = notes.get(_TITLE) if isinstance(notes, dict) else None
        given = title or (layer.get("name") if kind.startswith(_OLLAMA) else None)  # tensors have names
        if isinstance(given, str) and given:
            return checked_path(given)
        stem = kind.removeprefix(_OLLAMA)
        if stem == kind or not re.fullmatch("[a-z]{1,20}", stem):
            return f"sha256-{digest_of(layer.get('digest')).hex}"
        self._seen[stem] = count = self._seen.get(stem, 0) + 1
        return f"{stem}{f'-{count}' if count > 1 else ''}{_SUFFIXES.get(stem, '')}"


def _content(descriptor: dict[str, Any], path: str) -> Content:
    size = descriptor.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise UsageError(f"the size of {path} is not a number of bytes")
    return Content(path, digest_of(descriptor.get("digest")), size)


def _is_manifest(entry: dict[str, Any]) -> bool:
    """A signature or provenance that is listed along is for no platform (Docker's `unknown`)."""
    return entry.get("mediaType") in (*MANIFESTS, None) and "unknown" not in _platform(entry)


def _platform(entry: dict[str, Any]) -> str:
    platform = entry.get("platform")
    parts: Iterable[object] = (platform.get("os"), platform.get("architecture")) if isinstance(platform, dict) else ()
    return "/".join(part for part in parts if isinstance(part, str) and _PLATFORM.fullmatch(part)) or "any platform"


def _fields(document: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise UsageError("it is not JSON") from error
    if not isinstance(fields, dict) or fields.get("schemaVersion") != 2:
        raise UsageError("it is no manifest of version 2")
    return fields


def _objects(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    listed = fields.get(name)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UsageError(f"its {name} are malformed")
    if len(listed) > MAX_MANIFEST_FILES:
        raise UsageError(f"it lists more than {MAX_MANIFEST_FILES:,} {name}")
    return listed
