"""Unpacks a verified file into one new folder, and only when the caller asks for it (I21).

Responsible for: telling the kind by the file's name and checking it against its first bytes; the limits; publishing
the whole folder or nothing.
Leaves to others: reading each kind (`archives`), having verified the file (`store`), and where the folder goes.

The rules:

1. All or nothing: everything is written and synced in a hidden folder beside, which is renamed at the end. After a
   failure or an interrupt nothing is left; a kill leaves the hidden folder.
2. Every name passes `names.checked_path`; no two entries may be one name on any OS; no entry is written twice.
3. Nothing is taken over but names, bytes and whether a file may be executed: no links, devices, owners or other modes.
4. Bounds count what comes out. What a header promises is never believed.
5. An archive that ends early, or is damaged anywhere, is refused as a whole.
"""

import os
import tempfile
from dataclasses import dataclass
from typing import BinaryIO, Self

from modelcache.archives.codings import decoded
from modelcache.archives.tar import unpack_tar
from modelcache.archives.tree import Meter, RefusedError, Tree
from modelcache.archives.zip import unpack_zip
from modelcache.errors import UsageError, VerificationError
from modelcache.store.disk import disk_errors, sync_directory

_KINDS = {  # the longest suffix first
    ".tar.gz": ("tar", "gz"),
    ".tar.xz": ("tar", "xz"),
    ".tar.bz2": ("tar", "bz2"),
    ".tar.zst": ("tar", "zst"),
    ".tgz": ("tar", "gz"),
    ".tar": ("tar", ""),
    ".zip": ("zip", ""),
    ".gz": ("file", "gz"),
    ".xz": ("file", "xz"),
    ".bz2": ("file", "bz2"),
    ".zst": ("file", "zst"),
}
_MAGIC = {
    "zip": (b"PK\3\4", b"PK\5\6"),  # with entries, and without
    "gz": (b"\x1f\x8b",),
    "xz": (b"\xfd7zXZ\0",),
    "bz2": (b"BZh",),
    # a frame, or one of the sixteen kinds of skippable frame that may come before it (RFC 8878, 3.1.2)
    "zst": (b"\x28\xb5\x2f\xfd", *(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))),
}


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How much may come out of one file. The ratio, bytes out for each byte in, counts beyond `ratio_floor` bytes."""

    total_bytes: int = 1 << 40
    ratio: int = 200
    ratio_floor: int = 100 << 20
    entries: int = 100_000
    window_bytes: int = 256 << 20  # the memory that an xz or zstd stream may ask for

    def most_bytes(self, packed_bytes: int) -> int:
        return min(self.total_bytes, max(self.ratio_floor, self.ratio * packed_bytes))


DEFAULT_LIMITS = UnpackLimits()


def unpack(path: str, into: str, *, name: str = "", limits: UnpackLimits = DEFAULT_LIMITS) -> list[str]:
    """Unpacks the file at `path` into the new folder `into`; the files in it, relative, in the archive's order.

    `name` is what the file is called where its own name is a hash: its suffix tells the kind.
    UsageError: not a kind we unpack, or `into` is there already. VerificationError: damaged, dangerous or too big.
    StoreError: the disk refused. After any of them, and after an interrupt, nothing is left.
    """
    kind = _Kind.of(os.path.basename(name or path))
    if os.path.lexists(into):
        raise UsageError(f"{into} is there already", next_step="name a folder that does not exist yet")
    try:
        with disk_errors(into):
            return _unpack(path, os.path.abspath(into), kind, limits)
    except RefusedError as error:
        raise VerificationError(f"{kind.name} cannot be unpacked: {error}") from error


def stem_of(name: str) -> str:
    """The name of an archive without the suffixes of its kind; UsageError if it is not one that we unpack."""
    return _Kind.of(os.path.basename(name)).stem


@dataclass(frozen=True, slots=True)
class _Kind:
    """`name` is called so; `stem` without its suffix. `form` is tar, zip or file; `coding` what that is packed with."""

    name: str
    stem: str
    form: str
    coding: str

    @classmethod
    def of(cls, name: str) -> Self:
        suffix = next((suffix for suffix in _KINDS if name.lower().endswith(suffix)), "")
        if not suffix or len(name) == len(suffix):
            known = " ".join(_KINDS)
            raise UsageError(f"{name} is not a kind of file that can be unpacked", next_step=f"these are: {known}")
        return cls(name, name[: -len(suffix)], *_KINDS[suffix])

    def check(self, packed: BinaryIO) -> None:
        """A tar file has no first bytes of its own: its first header tells."""
        expected = _MAGIC.get(self.coding or self.form, (b"",))
        if not packed.read(8).startswith(expected):
            raise RefusedError(f"it is not a {self.coding or self.form} file")
        packed.seek(0)


def _unpack(path: str, into: str, kind: _Kind, limits: UnpackLimits) -> list[str]:
    folder, base = os.path.split(into)
    with (
        _opened(path) as packed,
        tempfile.TemporaryDirectory(prefix=f".{base[:40]}.", dir=folder, ignore_cleanup_errors=True) as beside,
    ):
        # The hidden folder is 0700. What will be seen is made inside, so that it has the modes that the umask gives.
        tree = Tree(os.path.join(beside, "content"), limits.entries)
        _fill(tree, packed, kind, limits)
        tree.seal()
        os.rename(tree.root, into)  # refused if `into` appeared meanwhile, unless it is an empty folder
        sync_directory(folder)
    return tree.files


def _opened(path: str) -> BinaryIO:
    with disk_errors(path):
        return open(path, "rb")


def _fill(tree: Tree, packed: BinaryIO, kind: _Kind, limits: UnpackLimits) -> None:
    kind.check(packed)
    meter = Meter(limits.most_bytes(os.fstat(packed.fileno()).st_size))
    if kind.form == "zip":
        unpack_zip(packed, tree, meter, limits.entries)
        return
    content = meter.count(decoded(packed, kind.coding, limits.window_bytes))
    if kind.form == "tar":
        unpack_tar(content, tree)
    else:
        tree.add_file(kind.stem, content)
