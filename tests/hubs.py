"""A small hub for tests: an origin that also answers the two questions of the Hugging Face API."""

import hashlib
import json
from collections.abc import Mapping

from modelcache.testing import Content, Origin

COMMIT = hashlib.sha1(b"first", usedforsecurity=False).hexdigest()
NEXT = hashlib.sha1(b"second", usedforsecurity=False).hexdigest()
LARGE = 10_000  # from that size on a file has a SHA-256, else the hash of a git blob


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def entry(path: str, content: Content) -> dict[str, object]:
    """A file as the list of a commit tells it."""
    known: dict[str, object] = {"type": "file", "path": path, "size": content.size, "oid": git_sha1(content.read())}
    if content.size >= LARGE:
        known["lfs"] = {"oid": content.sha256, "size": content.size, "pointerSize": 134}
    return known


def publish(hub: Origin, name: str, files: Mapping[str, Content], commit: str = COMMIT, revision: str = "main") -> None:
    """The hub has these files in a commit, and the revision means it."""
    api = f"api/{'' if name.startswith(('datasets/', 'spaces/')) else 'models/'}{name}"
    hub.put(f"{api}/revision/{revision}", json.dumps({"id": name, "sha": commit}).encode())
    folders = [{"type": "directory", "path": "onnx", "oid": "0" * 40, "size": 0}]
    hub.put(f"{api}/tree/{commit}", json.dumps([*folders, *(entry(*each) for each in files.items())]).encode())
    for path, content in files.items():
        hub.put(f"{name}/resolve/{commit}/{path}", content)


def asked(hub: Origin) -> list[str]:
    """What it was asked, in order, without queries."""
    return [seen.path.partition("?")[0] for seen in hub.requests]
