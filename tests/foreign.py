"""Caches of other tools, laid out as those tools do it, and what a tree looked like before somebody read it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from modelcache.testing import Content

Tree = dict[str, tuple[int, int, int, str]]


def git_sha1(content: Content) -> str:
    data = content.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def hub_cache(
    folder: Path,
    files: Mapping[str, Content],
    *,
    name: str = "models--org--name",
    commit: str = "1" * 40,
    refs: tuple[str, ...] = ("main",),
    tree: bool = False,
    lfs_from: int = 10_000,
) -> Path:
    """A repository as huggingface_hub lays it out; `tree`: with the list of all files. Returns its folder."""
    repository, listed = folder / name, {}
    for path, content in files.items():
        is_large = content.size >= lfs_from
        oid = content.sha256 if is_large else git_sha1(content)
        blob = repository / "blobs" / oid
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content.read())
        link = repository / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        lfs = {"lfs_sha256": oid, "lfs_size": content.size} if is_large else {"lfs_sha256": None, "lfs_size": None}
        listed[path] = {"size": content.size, "blob_id": "0" * 40 if is_large else oid, "xet_hash": None, **lfs}
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    if tree:
        (repository / "trees").mkdir(exist_ok=True)
        (repository / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": listed}))
    return repository


def ollama_store(
    folder: Path, layers: Mapping[str, Content], name: str = "registry.ollama.ai/library/tiny", *tags: str
) -> str:
    """A model as Ollama lays it out: layers by the last word of their type. Returns the digest of its manifest."""
    described = []
    for kind, content in {"config": Content.of(b"{}"), **layers}.items():
        media = "vnd.docker.container.image.v1+json" if kind == "config" else f"vnd.ollama.image.{kind}"
        layer = {"mediaType": f"application/{media}", "digest": f"sha256:{content.sha256}", "size": content.size}
        described.append(layer)
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        (folder / "blobs" / f"sha256-{content.sha256}").write_bytes(content.read())
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": described[0], "layers": described[1:],
    }  # fmt: skip
    raw = json.dumps(manifest).encode()
    for tag in tags or ("latest",):
        place = folder / "manifests" / name / tag
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def ollama_partial(folder: Path, content: Content, portions: Mapping[int, tuple[int, int, int]]) -> Path:
    """An interrupted download: offset, size and completed bytes of each portion; what is not completed are zeros."""
    data = folder / "blobs" / f"sha256-{content.sha256}-partial"
    data.parent.mkdir(parents=True, exist_ok=True)
    with data.open("wb") as file:
        file.truncate(content.size)
        for number, (start, size, done) in portions.items():
            file.seek(start)
            file.write(content.read(start, start + done))
            told = {"N": number, "Offset": start, "Size": size, "Completed": done}
            data.with_name(f"{data.name}-{number}").write_text(json.dumps(told))
    return data


def snapshot(folder: Path) -> Tree:
    """Everything in a tree, with mode, size and date, and the bytes or where a link leads."""
    seen: Tree = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names, "."):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content = ""
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            seen[path] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return seen
