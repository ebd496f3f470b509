"""The folder that an archive is written to.

Responsible for: which names an archive may use, counting bytes and entries, syncing every file and folder.
Leaves to others: reading archives (`tar`, `zip`, `codings`); removing the folder, or publishing it (`unpack`).
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

from modelcache.errors import UsageError
from modelcache.names import check_conflicts, checked_path
from modelcache.store.disk import CREATE, sync_directory

CHUNK = 1 << 16


class RefusedError(Exception):
    """What is wrong with an archive. It never leaves `unpack`, which says whose archive it is."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def pieces_of(content: Readable) -> Iterator[bytes]:
    return iter(lambda: content.read(CHUNK), b"")


class Meter:
    """Counts the bytes that come out of one file, and ends it when they are more than they may be."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._counted = 0

    def count(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._counted += len(piece)
            if self._counted > self._most:
                raise RefusedError(f"more than {self._most:,} bytes come out of it, which is the limit")
            yield piece


class Tree:
    """The folder being filled. Nobody else can reach it, so there are no links in it to follow."""

    def __init__(self, root: str, most_entries: int) -> None:
        self.root = root
        self.files: list[str] = []
        self._folders: set[str] = set()
        self._left = self._most = most_entries
        os.mkdir(root)

    def add_folder(self, name: str) -> None:
        self._count()
        self._make_folders(_checked(name))

    def add_file(self, name: str, pieces: Iterable[bytes], *, executable: bool = False) -> int:
        """Writes and syncs it; how many bytes it has."""
        self._count()
        path = _checked(name)
        self._make_folders(path.rpartition("/")[0])
        size = 0
        with open(self._create(path, 0o777 if executable else 0o666), "wb") as file:
            for piece in pieces:
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        self.files.append(path)
        return size

    def seal(self) -> None:
        """Checks the names against each other and syncs the folders: after that the tree may be published."""
        parents = {path.rpartition("/")[0] for path in (*self.files, *self._folders)}
        levels = defaultdict(list)
        for folder in self._folders:
            levels[folder.count("/")].append(folder)
        try:
            for paths in ([*self.files, *(self._folders - parents)], *levels.values()):
                check_conflicts(paths)
        except UsageError as error:
            raise RefusedError(error.message) from error
        for folder in ("", *self._folders):
            sync_directory(os.path.join(self.root, folder))

    def _create(self, path: str, mode: int) -> int:
        try:
            return os.open(os.path.join(self.root, path), CREATE, mode)
        except FileExistsError:
            raise RefusedError(f"two entries are called {shown(path)}") from None

    def _make_folders(self, path: str) -> None:
        names = path.split("/") if path else []
        for depth in range(1, len(names) + 1):
            folder = "/".join(names[:depth])
            if folder in self._folders:
                continue
            self._count()  # one entry with a long path makes many folders
            try:
                os.mkdir(os.path.join(self.root, folder))
            except FileExistsError:
                raise RefusedError(f"two entries are called {shown(folder)}") from None
            self._folders.add(folder)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"it has more than {self._most:,} entries, which is the limit")


def _checked(name: str) -> str:
    """`./name`, as `tar -C folder .` writes it, is taken as `name`; anything else must be right as it is."""
    while name.startswith("./"):
        name = name[2:]
    try:
        return checked_path(name)
    except UsageError as error:
        raise RefusedError(error.message) from error


def shown(name: str) -> str:
    return ascii(name[:80])
