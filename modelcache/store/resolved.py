"""What refs of hubs meant when they were last asked about, so that nobody need be asked each time.

    catalog/<id>/<version>.json    the whole manifest of an immutable version: it never grows old
    catalog/<id>/aliases.json      which version a tag or branch meant, and when that was said

Responsible for: reading both whatever state they are in: what is not right is not known. Leaves to others: asking, and
how old an answer may be. Whoever writes holds the lock of the model.
"""

import json
import math
import os
from contextlib import suppress
from typing import Any

from modelcache.errors import StoreError, UsageError
from modelcache.events import now_ms
from modelcache.model import MAX_MANIFEST_BYTES, Manifest
from modelcache.names import checked_path
from modelcache.refs import Ref
from modelcache.store.disk import check_no_links, make_directories, read_small, write_atomic
from modelcache.store.layout import Layout

FORMAT = 1
MOST_ALIASES = 1000


class Resolved:
    """Of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def manifest(self, ref: Ref, within_s: float) -> Manifest | None:
        """What the ref means, if that is known; of a tag or branch only what was said within so many seconds."""
        version = ref.version or self._meant(ref, within_s)
        if not version:
            return None
        with suppress(StoreError, UsageError):
            content = read_small(self._place(ref, version), MAX_MANIFEST_BYTES)
            if content is not None:
                manifest = Manifest.parse(content)
                if (manifest.id, manifest.version, manifest.ref) == (ref.id, version, ref.base):
                    return manifest
        return None

    def version(self, ref: Ref) -> str:
        """The one that is named, or that a tag or branch meant, whenever that was said; empty if it never was."""
        return ref.version or self._meant(ref, math.inf)

    def aliases(self, model_id: str) -> list[str]:
        """The tags and branches that were ever asked about, as they stand in the file."""
        return list(self._aliases(model_id))

    def said_at(self, ref: Ref) -> int:
        """When it was said last what a tag or branch means, in ms since 1970; 0 if it never was, or nobody can tell."""
        match self._aliases(ref.id).get(ref.alias):
            case {"at": int(at)} if 0 <= at <= now_ms():  # a time to come is none that was (I14)
                return at
        return 0

    def save(self, ref: Ref, manifest: Manifest, at: int | None = None) -> None:
        """`at` is when that was said, in ms since 1970, if not now. StoreError where the disk refuses."""
        folder = self._layout.catalog(ref.id)
        check_no_links(self._layout.root, folder)
        make_directories(folder)
        content = json.dumps(manifest.to_json()).encode()
        if len(content) <= MAX_MANIFEST_BYTES:  # more is not read again: its hub is asked each time
            write_atomic(self._place(ref, manifest.version), content)
        if ref.alias:
            known = {name: said for name, said in self._aliases(ref.id).items() if name != ref.alias}
            while len(known) >= MOST_ALIASES:
                known.pop(next(iter(known)))
            known[ref.alias] = {"version": manifest.version, "at": now_ms() if at is None else at}
            write_atomic(self._list(ref.id), json.dumps({"format": FORMAT, "aliases": known}).encode())

    def _meant(self, ref: Ref, within_s: float) -> str:
        match self._aliases(ref.id).get(ref.alias):
            case {"version": str(version), "at": int(at)} if 0 <= now_ms() - at <= 1000 * within_s:
                return version
        return ""

    def _aliases(self, model_id: str) -> dict[str, Any]:
        with suppress(StoreError, ValueError, RecursionError):
            match json.loads(read_small(self._list(model_id), MAX_MANIFEST_BYTES) or b""):
                case {"format": 1, "aliases": dict(aliases)}:
                    return aliases
        return {}

    def _list(self, model_id: str) -> str:
        return os.path.join(self._layout.catalog(model_id), "aliases.json")

    def _place(self, ref: Ref, version: str) -> str:
        return os.path.join(self._layout.catalog(ref.id), checked_path(version, parts=1) + ".json")
