"""The values that pass between modules: what is wanted (`Manifest`) and how it is known (`Digest`).

Responsible for: parsing each value strictly from foreign text, and writing it back.
Leaves to others: whether a name may be a path (`names`), where a file comes from (`remotes`),
and what is here already (`store`). Everything here is frozen; nothing here does I/O.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from modelcache.errors import UsageError
from modelcache.names import check_conflicts, checked_path
from modelcache.urls import without_secrets

GIT = "git-sha1"  # of a git blob: SHA-1 over `blob <size>`, a zero byte and the bytes
HEX_LENGTHS = {"sha256": 64, "sha512": 128, "sha1": 40, "md5": 32, "blake3": 64, GIT: 40}
STRENGTH = ("sha256", "sha512", "blake3", "sha1", GIT, "md5")  # sha256 first: it is also the name of the blob
PIECE_SIZE = 4 << 20  # of the digests we record ourselves: small enough to repair by, large enough to list
MAX_MANIFEST_BYTES = 5_000_000
MAX_MANIFEST_FILES = 100_000
MAX_ALIASES = 100
LEAST_SIZE_SHARE = 0.8  # of a listed size, where nothing better is known (product B10)


class Span(NamedTuple):
    """Bytes `start` up to, not including, `stop` of a file."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def shown(self) -> str:
        """For people, with the last byte as HTTP counts it: `0-4194303`."""
        return f"{self.start}-{self.stop - 1}"


@dataclass(frozen=True, slots=True)
class Digest:
    """A hash value by algorithm and lower-case hex, safe to be part of a path."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str, algorithm: str | None = None) -> Self:
        """Reads `sha256:HEX`, or bare hex where `algorithm` says what it is; UsageError for anything else."""
        prefix, colon, rest = text.strip().rpartition(":")
        name = (prefix if colon else algorithm or "sha256").lower()
        name = name if name in HEX_LENGTHS else name.replace("-", "")
        value = rest.lower()
        if name not in HEX_LENGTHS:
            raise UsageError(f"unknown checksum algorithm {name[:20]!r}: one of {', '.join(HEX_LENGTHS)}")
        if algorithm is not None and name != algorithm:
            raise UsageError(f"a {algorithm} digest is expected, not {name}")
        if not re.fullmatch(f"[0-9a-f]{{{HEX_LENGTHS[name]}}}", value):
            raise UsageError(f"malformed {name} digest: {HEX_LENGTHS[name]} hex digits are expected")
        return cls(name, value)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class PieceDigests:
    """BLAKE3 of each `size` bytes of a file (the last piece may be shorter), 32 bytes each, in one flat string."""

    size: int
    blake3: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.blake3) // 32

    def __getitem__(self, index: int) -> bytes:
        return self.blake3[32 * index : 32 * index + 32]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: its path inside the model, and what is known of its bytes.

    `size` is exact or None; `least_size` is a lower bound where only a rough size is known.
    `digests` are all expected (UsageError for a git-sha1 without a size, which is part of what it hashes); `pieces`
    covers the whole file when present.
    """

    path: str
    size: int | None = None
    digests: tuple[Digest, ...] = ()
    urls: tuple[str, ...] = ()
    pieces: PieceDigests | None = None
    least_size: int = 0

    def __post_init__(self) -> None:
        if self.size is None and self.digest(GIT):
            raise UsageError(f"{self.path}: a {GIT} digest is checked together with the size, which is not given")

    def digest(self, algorithm: str = "sha256") -> Digest | None:
        return next((digest for digest in self.digests if digest.algorithm == algorithm), None)

    @property
    def strongest(self) -> Digest | None:
        return min(self.digests, key=lambda digest: STRENGTH.index(digest.algorithm), default=None)

    @classmethod
    def from_json(cls, entry: object) -> Self:
        """Reads an entry of a manifest (product H): `{path|name, size, sha256, urls|url, pieces}`."""
        fields = _mapping(entry, "a file entry")
        path = checked_path(_text(fields, "path", _text(fields, "name", "")))
        digests = tuple(
            Digest.parse(_text(fields, name), name) for name in HEX_LENGTHS if fields.get(name) not in (None, "")
        )
        size = _size(fields, path)
        pieces = _pieces(fields.get("pieces"), size, path)
        if digests or pieces or size is None:
            return cls(path, size, digests, _urls(fields), pieces)
        return cls(path, None, (), _urls(fields), None, least_size=int(LEAST_SIZE_SHARE * size))

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"path": self.path, "size": self.size}
        entry |= {digest.algorithm: digest.hex for digest in self.digests}
        entry["urls"] = list(self.urls)
        if self.pieces:
            hexes = [self.pieces[index].hex() for index in range(len(self.pieces))]
            entry["pieces"] = {"size": self.pieces.size, "blake3": hexes}
        return entry


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model consists of. `version` is immutable, or empty while only the bytes can tell it.

    `aliases` are tags and branches that mean this version.
    """

    id: str
    version: str
    ref: str
    files: tuple[ModelFile, ...]
    aliases: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """The sum of the sizes known, in bytes."""
        return sum(file.size or 0 for file in self.files)

    @classmethod
    def parse(cls, content: bytes, default_id: str = "manifest") -> Self:
        """Reads the three forms of product H. UsageError says what is wrong with a corrupt one."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise UsageError(f"the manifest is larger than {MAX_MANIFEST_BYTES:,} bytes")
        try:
            data = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the manifest is not JSON: {error}") from error
        if isinstance(data, list):
            return cls._of(default_id, "", "", data)
        if "model" in _mapping(data, "the manifest"):
            listed = _mapping(_mapping(data["model"], "model").get("files"), "model.files")
            entries = [{**_mapping(entry, f"the entry {path[:80]!r}"), "path": path} for path, entry in listed.items()]
            return cls._of(default_id, "", "", entries)
        if (found := data.get("format")) != 1:
            shown = found if isinstance(found, int) else "unknown"
            raise UsageError(f"the manifest has format {shown}; this version reads format 1")
        model_id, version = _text(data, "id", default_id), _text(data, "version")
        # Both become folders of the store: foreign text chooses no path (I18).
        checked = checked_path(model_id, parts=1), version and checked_path(version, parts=1)
        return replace(cls._of(*checked, _text(data, "ref"), data.get("files")), aliases=_aliases(data))

    @classmethod
    def _of(cls, model_id: str, version: str, ref: str, entries: object) -> Self:
        if not isinstance(entries, list) or len(entries) > MAX_MANIFEST_FILES:
            raise UsageError(f"the manifest's files are not a list of at most {MAX_MANIFEST_FILES:,}")
        files = tuple(ModelFile.from_json(entry) for entry in entries)
        if not files:
            raise UsageError("the manifest lists no files")
        check_conflicts(file.path for file in files)
        return cls(model_id, version, without_secrets(ref), files)

    def to_json(self) -> dict[str, Any]:
        files = [file.to_json() for file in self.files]
        aliases = {"aliases": list(self.aliases)} if self.aliases else {}
        return {"format": 1, "id": self.id, "version": self.version, "ref": self.ref, **aliases, "files": files}


def _mapping(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"the manifest is corrupt: {what} is not an object")
    return value


def _text(fields: dict[str, Any], name: str, default: str = "") -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"the manifest is corrupt: {name} is not a text")
    return value


def _aliases(fields: dict[str, Any]) -> tuple[str, ...]:
    names = fields.get("aliases", [])
    is_right = isinstance(names, list) and len(names) <= MAX_ALIASES
    if not is_right or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UsageError("the manifest is corrupt: aliases are not a list of names")
    return tuple(names)


def _size(fields: dict[str, Any], path: str) -> int | None:
    size = fields.get("size")
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise UsageError(f"the manifest is corrupt: the size of {path} is not a number of bytes")
    return size


def _urls(fields: dict[str, Any]) -> tuple[str, ...]:
    urls = fields.get("urls") or ([fields["url"]] if fields.get("url") else [])
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise UsageError("the manifest is corrupt: urls is not a list of texts")
    return tuple(urls)


def _pieces(value: object, size: int | None, path: str) -> PieceDigests | None:
    if value is None or not size:  # an empty file has no piece
        return None
    fields = _mapping(value, f"pieces of {path}")
    length, hexes = fields.get("size"), fields.get("blake3")
    if not isinstance(length, int) or not 1 <= length < 2**40 or not isinstance(hexes, list):
        raise UsageError(f"the manifest is corrupt: pieces of {path} need a size and a list blake3")
    flat = b"".join(bytes.fromhex(Digest.parse(text, "blake3").hex) for text in hexes if isinstance(text, str))
    if len(flat) != 32 * -(-size // length):
        raise UsageError(f"the manifest is corrupt: {path} does not have {-(-size // length)} piece digests")
    return PieceDigests(length, flat)


def version_of(digests: Mapping[str, str]) -> str:
    """The version that only the bytes can tell, from SHA-256 by path: the start of their checksum."""
    return checksum_of(digests)[:12]


def checksum_of(digests: Mapping[str, str]) -> str:
    """The SHA-256 of one file, of several that of their list (product H, `checksum_sha256`)."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    import hashlib  # not where everything is here already

    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
