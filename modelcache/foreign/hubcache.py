"""The cache of huggingface_hub: `models--org--name/{refs,blobs,snapshots}`, and the same for datasets and spaces.

    refs/<revision>               the commit that a branch or tag meant
    snapshots/<commit>/<path>     a link to a blob
    blobs/<hex>                   called by its SHA-256 (large files) or by what git calls it
    trees/<commit>.json           all files of the commit (huggingface_hub 1 and later)
    ../blobs/<2 hex>/<hex>        blobs that repositories share (2 and later): then theirs are links to them

Responsible for: its layout. Leaves to others: reading and proving bytes, and what is done with them.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import quote

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
from modelcache.model import GIT, MAX_MANIFEST_BYTES, MAX_MANIFEST_FILES, Digest, Manifest, ModelFile, Span
from modelcache.names import check_conflicts, checked_path
from modelcache.refs import Ref, is_alias

MOST = 10_000  # repositories, commits of one, refs of one
INCOMPLETE = "incomplete"
MOST_REF_BYTES = 100
_COMMIT = re.compile("[0-9a-f]{40}")
_BLOB = re.compile(r"(?:\.\./)+blobs/([0-9a-f]{40}|[0-9a-f]{64})")
REPOSITORY = re.compile(r"(models|datasets|spaces)--(.+)")


class HubCache:
    """A folder of repositories; `only` one of them, if that is named."""

    def __init__(self, folder: str, only: str = "") -> None:
        self.name, self.kind = folder, "hf"
        self._only = only

    @property
    def is_empty(self) -> bool:
        """Whether it has no repository at all: most likely it is another folder."""
        return not any(REPOSITORY.fullmatch(entry.name) for entry in entries_of(self.name, MOST))

    def find(self, file: ModelFile) -> str | None:
        digest = file.digest() or file.digest(GIT)
        for repository in self._repositories(file) if digest else ():
            blob = os.path.join(self.name, repository, "blobs", digest.hex if digest else "")
            if place := regular_inside(blob, self.name, file.size):
                return place
        return None

    def models(self) -> Iterator[Found | Left]:
        if not os.path.isdir(self.name):
            return
        for path, base in self._all():
            yield from self._commits(path, base)

    def _all(self) -> Iterator[tuple[str, str]]:
        """Path of each repository, and what a ref calls it."""
        for entry in entries_of(self.name, MOST):
            repository = REPOSITORY.fullmatch(entry.name)
            if repository and self._only in ("", entry.name) and entry.is_dir(follow_symlinks=False):
                kind = "" if repository[1] == "models" else f"{repository[1]}/"
                yield entry.path, f"hf:{kind}{repository[2].replace('--', '/')}"

    def claims(self) -> Iterator[Claim]:
        """Every file of every snapshot whose digest its blob's name tells, or the list of the commit."""
        for repository, base in self._all():
            for commit in entries_of(os.path.join(repository, "snapshots"), MOST):
                with suppress(UsageError):
                    yield from self._claims_of(repository, _commit_of(base, commit))

    def _claims_of(self, repository: str, ref: Ref) -> Iterator[Claim]:
        listed = {file.path: file for file in _tree(os.path.join(repository, "trees", f"{ref.version}.json"), ref)}
        for name, path in below(os.path.join(repository, "snapshots", ref.version), MAX_MANIFEST_FILES):
            try:
                blob = _BLOB.fullmatch(os.readlink(path))
            except OSError:
                blob = None
            if blob:
                digests: tuple[Digest, ...] = (_digest(blob[1]),)
            elif name in listed:
                digests = listed[name].digests
            else:
                continue  # nothing says what it should be
            yield Claim(ref.base, ref.version, name, led_to(path, self.name), digests)

    def _commits(self, repository: str, base: str) -> Iterator[Found | Left]:
        refs = _refs(os.path.join(repository, "refs"))
        for name in [name for names in refs.values() for name in names if not is_alias(name, "hf")]:
            yield Left(os.path.join(repository, "refs", name), "it is no name of a tag or branch")
        refs = {
            commit: {name: at for name, at in names.items() if is_alias(name, "hf")} for commit, names in refs.items()
        }
        commits = sorted(
            entries_of(os.path.join(repository, "snapshots"), MOST),
            key=lambda entry: ("main" in refs.get(entry.name, ()), touched_ms(entry.path)),
        )
        for commit in commits:
            try:
                ref = _commit_of(base, commit)
                yield self._snapshot(repository, ref, refs.get(commit.name, {}))
            except UsageError as error:
                yield Left(commit.path, error.message)

    def _snapshot(self, repository: str, ref: Ref, aliases: Mapping[str, int]) -> Found:
        listed = _tree(os.path.join(repository, "trees", f"{ref.version}.json"), ref)
        known = {file.path: file for file in listed}
        files: dict[str, ModelFile] = {}
        places: dict[str, str] = {}
        left: list[Left] = []
        gone: list[str] = []
        for name, path in below(os.path.join(repository, "snapshots", ref.version), MAX_MANIFEST_FILES):
            try:
                file, place = self._file(path, name, ref)
                if known.get(file.path, file).digests != file.digests:
                    raise UsageError("its blob is not the one that the commit lists")
                files[file.path], places[file.path] = file, place
            except UsageError as error:
                left.append(Left(name, error.message))
                gone += [name] if _belongs(path, name) else []
        check_conflicts(files)
        whole = Manifest(ref.id, ref.version, ref.base, listed) if listed else None
        return Found(ref, tuple(files.values()), places, whole, aliases, tuple(left), tuple(gone))

    def _file(self, path: str, name: str, ref: Ref) -> tuple[ModelFile, str]:
        """UsageError for what cannot be used: only a link to a blob says what a file is."""
        try:
            target = os.readlink(path)
        except OSError:
            target = ""
        blob = _BLOB.fullmatch(target)
        place = regular_inside(path, self.name)
        if not blob or not place:
            raise UsageError("it is no link to a blob of this cache, or the blob is not there")
        return _described(ref, name, os.lstat(place).st_size, blob[1]), place

    def begun(self, _file: ModelFile) -> tuple[str, list[Span]] | None:
        return None

    def abandoned(self) -> Iterator[Abandoned]:
        for repository, _ in self._all():
            for entry in entries_of(os.path.join(repository, "blobs"), MOST):
                blob, _, end = entry.name.partition(".")
                if end.endswith(INCOMPLETE) and regular_inside(entry.path, self.name) == os.path.realpath(entry.path):
                    yield Abandoned(
                        (entry.path,), os.path.join(self.name, ".locks", os.path.basename(repository), f"{blob}.lock")
                    )

    def _repositories(self, file: ModelFile) -> Iterator[str]:
        """The folders of those that the file's urls name: all others would have to be looked for."""
        for url in file.urls:
            if url.startswith("hf:"):
                with suppress(UsageError):
                    folder = folder_of(Ref.parse(url))
                    if self._only in ("", folder):
                        yield folder


def folder_of(ref: Ref) -> str:
    """What huggingface_hub calls the folder of a repository."""
    name = ref.name if ref.name.startswith(("datasets/", "spaces/")) else f"models/{ref.name}"
    return name.replace("/", "--")


def _commit_of(base: str, folder: "os.DirEntry[str]") -> Ref:
    ref = Ref.parse(f"{base}@{folder.name}")
    if ref.path or not ref.version or not folder.is_dir(follow_symlinks=False):
        raise UsageError("it is no commit of a repository")
    return ref


def _digest(hexes: str) -> Digest:
    return Digest.parse(hexes, "sha256" if len(hexes) == 64 else GIT)


def _belongs(path: str, name: str) -> bool:
    """Whether it is a file of the commit whose blob is gone."""
    with suppress(OSError, UsageError):
        return bool(_BLOB.fullmatch(os.readlink(path)) and checked_path(name))
    return False


def _described(ref: Ref, name: str, size: int, digest: str) -> ModelFile:
    """A file as the hub would list it."""
    path = checked_path(name)
    digests = (_digest(digest),)
    return ModelFile(path, size, digests, (f"hf:{ref.name}@{ref.version}/{quote(path)}",))


def _refs(folder: str) -> dict[str, dict[str, int]]:
    """Branches and tags by the commit that they meant, each with when that was written."""
    refs: dict[str, dict[str, int]] = {}
    for name, path in below(folder, MOST):
        commit = (small(path, MOST_REF_BYTES) or b"").decode(errors="replace").strip()
        if _COMMIT.fullmatch(commit):
            refs.setdefault(commit, {})[name] = touched_ms(path)
    return refs


def _tree(path: str, ref: Ref) -> tuple[ModelFile, ...]:
    """All files of the commit; none where nobody listed them, or the list is not one to be believed."""
    with suppress(UsageError, ValueError, RecursionError):
        match json.loads(small(path, MAX_MANIFEST_BYTES) or b""):
            case {"format_version": 1, "files": dict(said)} if len(said) <= MAX_MANIFEST_FILES:
                files = tuple(_listed(ref, name, entry) for name, entry in said.items())
                check_conflicts(file.path for file in files)
                return files
    return ()


def _listed(ref: Ref, name: str, entry: object) -> ModelFile:
    match entry:
        case {"size": int(size), "lfs_sha256": str(digest)} if 0 <= size < 2**63:
            return _described(ref, name, size, digest)
        case {"size": int(size), "blob_id": str(digest)} if 0 <= size < 2**63:
            return _described(ref, name, size, digest)
        case _:
            raise UsageError("malformed")
