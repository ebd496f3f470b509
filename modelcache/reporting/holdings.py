"""What is in the store now, as far as can be told without reading a model: how much, and when it was verified last.

Responsible for: these facts. Leaves to others: verifying (`audit`), what a store is worth (`eviction`).
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from modelcache.reporting.window import DAY_MS, day_of
from modelcache.state.hauls import Size
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf

AGES_DAYS = (1, 7, 30, 90)


@dataclass(frozen=True, slots=True)
class Holdings:
    """`verified` is how many files were verified within so many days, each counted once; None: longer ago.

    `wrong` names the files that were found corrupt or unreadable and are so still, `incomplete` the models that lack
    some; `oldest_ms` is when the file was verified that was not for the longest.
    """

    size: Size
    models: int
    files: int
    verified: dict[int | None, int]
    oldest_ms: int | None
    wrong: tuple[str, ...]
    incomplete: tuple[str, ...]


def holdings(shelf: Shelf, now_ms: int) -> Holdings:
    verified: dict[int | None, int] = {**dict.fromkeys(AGES_DAYS, 0), None: 0}
    models, files, oldest, wrong, incomplete = 0, 0, now_ms, [], []
    for record in shelf.all():
        models += 1
        name = f"{record.id}@{record.version}"
        if record.missing:
            incomplete.append(name)
        for file in record.files:
            files += 1
            if file.is_distrusted:
                wrong.append(f"{name}: {file.path}")
                continue
            at_ms = min(max(0, file.stamp.verified_at), now_ms)
            age = next((days for days in AGES_DAYS if now_ms - at_ms <= days * DAY_MS), None)
            verified[age] += 1
            oldest = min(oldest, at_ms)
    return Holdings(
        size_of(shelf.layout, now_ms), models, files, verified, oldest if files > len(wrong) else None, tuple(wrong),
        tuple(incomplete),
    )  # fmt: skip


def size_of(layout: Layout, now_ms: int) -> Size:
    """What the blobs take: each is there once, however many models have it."""
    sizes = list(_blob_sizes(layout))
    return Size(day_of(now_ms), sum(sizes), len(sizes))


def _blob_sizes(layout: Layout) -> Iterator[int]:
    """What cannot be read, or goes meanwhile, is not there."""
    blobs = os.path.join(layout.root, "blobs", "sha256")
    with suppress(OSError), os.scandir(blobs) as folders:
        for folder in folders:
            if not folder.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        if not entry.name.startswith("."):
                            yield entry.stat(follow_symlinks=False).st_size
