"""What was asked, as text, so that it can be asked again after the process has ended.

Responsible for: that text, which is JSON, and how much of what it asks for is here. Headers and passwords are never
part of it; a mirror with a query is left out. That of the file's own URL is kept: the text is for its owner alone.
Leaves to others: keeping it (`state`).
"""

import json
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any

from modelcache.errors import StoreError, UsageError
from modelcache.filefetch import base_of
from modelcache.model import Digest, Manifest, ModelFile
from modelcache.order import Order
from modelcache.store import blobs
from modelcache.store.claim import found
from modelcache.store.journal import read_facts
from modelcache.store.layout import Layout, key_of
from modelcache.urls import without_secrets
from modelcache.wish import Wish

FORMAT = 1


def to_text(ref: str | Manifest, wish: Wish) -> str:
    output = None if wish.output is None else os.path.abspath(os.path.expanduser(wish.output))
    what: dict[str, Any] = {"ref": _without_password(ref)} if isinstance(ref, str) else {"manifest": _listed(ref)}
    mirrors = [mirror for mirror in wish.mirrors if without_secrets(mirror) == mirror]
    return json.dumps({
        "format": FORMAT, **what, "digests": [str(digest) for digest in wish.digests], "size": wish.size,
        "output": output, "mirrors": mirrors, "cached": wish.cached, "strict": wish.strict,
        "require_digest": wish.require_digest, **({"prefer": wish.prefer} if wish.prefer else {}),
        **({"chosen": wish.chosen} if wish.chosen else {}),
    })  # fmt: skip


def _listed(manifest: Manifest) -> dict[str, Any]:
    files = [replace(file, urls=tuple(map(_without_password, file.urls))) for file in manifest.files]
    return replace(manifest, files=tuple(files)).to_json()


def _without_password(url: str) -> str:
    """Nor its fragment, which no server is asked with."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path.partition("#")[0] if separator else url


def parsed(text: str) -> tuple[str | Manifest, Wish]:
    """UsageError where it is not what `to_text` writes."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    match fields:
        case {
            "format": 1, "digests": list(digests), "size": int() | None as size, "output": str() | None as output,
            "mirrors": list(mirrors), "cached": bool(cached), "strict": bool(strict), "require_digest": bool(required),
        } if all(isinstance(each, str) for each in (*digests, *mirrors)) and "\0" not in (output or ""):  # fmt: skip
            given = tuple(Digest.parse(digest) for digest in digests)
            prefer, files = str(fields.get("prefer", "")), fields.get("chosen")
            chosen = tuple(map(str, files)) if isinstance(files, list) else ()
            wish = Wish(given, size, output, tuple(mirrors), {}, cached, strict, required, prefer, chosen)
            if isinstance(ref := fields.get("ref"), str):
                return ref, wish
            return Manifest.parse(json.dumps(fields.get("manifest")).encode()), wish
    raise UsageError("what was asked is not known any more", next_step="fetch it by its URL or manifest")


def bytes_here(order: Order, layout: Layout) -> tuple[int, int]:
    """How much of an order is on the disk, and of how much; 0 for that while the size of a file is unknown.

    Blobs and the journals of partials tell, whoever writes them now.
    """
    files = [_file_here(order, file, layout) for file in order.files]
    sizes = [size for _, size in files]
    return sum(here for here, _ in files), sum(size or 0 for size in sizes) if None not in sizes else 0


def _file_here(order: Order, file: ModelFile, layout: Layout) -> tuple[int, int | None]:
    """Its bytes that are here, and its size."""
    digest = file.digest()
    with suppress(StoreError, OSError):
        if digest and order.cached and blobs.exists(layout, digest):
            size = os.lstat(layout.blob(digest)).st_size
            return size, size
        base = base_of(order, file, layout)
        for name in found(base, key_of(file))[:1]:
            if facts := read_facts(f"{base}/{name}/journal"):
                return facts.written.size, facts.size if file.size is None else file.size
    return 0, file.size
