"""What an examination finds: one line each.

Responsible for: the value, how names stand in it, and the command that completes a model. Leaves to others: finding it
(`doctor`, `surroundings`).
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from modelcache.errors import UsageError
from modelcache.refs import Ref
from modelcache.store.installed import Installed
from modelcache.store.leftovers import shown
from modelcache.store.resolved import Resolved
from modelcache.store.shelf import Shelf
from modelcache.units import short_version

MOST_NAMED = 3
WITH_MANIFEST = "fetch it again, with its manifest"


@dataclass(frozen=True, slots=True)
class Finding:
    """`level` wrong: something does not work, or will not; note: worth knowing. `fix` is a command, or what to do."""

    level: Literal["wrong", "note"]
    check: str
    finding: str
    fix: str


def command(name: str, subject: str) -> str:
    return f"modelcache {name} {quoted(shown(subject))}"


def quoted(path: str) -> str:
    return shlex.quote(path)


def some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - MOST_NAMED:,} more" if len(paths) > MOST_NAMED else ""
    return ", ".join(shown(path) for path in paths[:MOST_NAMED]) + more


def quoted_some(paths: Sequence[str]) -> str:
    return " ".join(quoted(path) for path in paths[:MOST_NAMED])


def fetch_of(shelf: Shelf, record: Installed) -> str:
    """The command that brings what a model lacks. What only a manifest lists is fetched with that."""
    name = _name_in_catalog(shelf, record)
    with suppress(UsageError):
        ref = Ref.parse(record.ref)
        if ref.scheme and not name:
            name = replace(ref, version=record.version, revision=record.version).shown
    return command("fetch", name) if name else WITH_MANIFEST


def completing(shelf: Shelf, record: Installed) -> str:
    """What `fetch_of` says, as the advice of an error."""
    remedy = fetch_of(shelf, record)
    return f"it is incomplete: {remedy if remedy == WITH_MANIFEST else f'run `{remedy}`'}"


def incomplete(shelf: Shelf, records: Sequence[Installed]) -> tuple[str, ...]:
    """A note for each model of which files were never fetched, with what completes it; of many for the first ones."""
    lacking = [record for record in records if record.missing]
    notes = [
        f"{record.id}@{short_version(record.version)} is incomplete, it lacks {some(record.missing)}: "
        f"{remedy if (remedy := fetch_of(shelf, record)) == WITH_MANIFEST else f'run `{remedy}`'}"
        for record in lacking[:MOST_NAMED]
    ]
    left = len(lacking) - MOST_NAMED
    return (*notes, *([f"{left:,} more are incomplete: `modelcache doctor` names them"] if left > 0 else []))


def _name_in_catalog(shelf: Shelf, record: Installed) -> str:
    """By which a catalog gives just that version; empty where it is of none."""
    entry = shelf.entry(Ref(record.id))
    if entry is None:
        return ""
    resolved = Resolved(shelf.layout)
    labels = [label for label, ref in entry.versions.items() if resolved.version(ref) == record.version]
    if entry.latest in labels:
        return entry.id
    return f"{entry.id}@{labels[-1] if labels else record.version}"
