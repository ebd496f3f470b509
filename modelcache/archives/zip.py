"""Reads a zip file into a tree.

Responsible for: refusing links, devices, encrypted and overlapping entries, and a list of contents too long to hold.
Leaves to others: names and bounds (`tree`).
"""

import os
import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

from modelcache.archives.tree import Meter, RefusedError, Tree, pieces_of, shown

MOST_ZIP_ENTRY_BYTES = 256  # of the list of contents, on average
# What zipfile raises for wrong bytes.
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, ValueError, struct.error, zlib.error)
_ZIP_ENTRY = b"PK\1\2"
_ZIP_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # the data, strongly, and the list of contents
_ZIP_LOCAL_HEADER_BYTES = 30


class _ZipContent:
    """What zipfile reads from: it takes the whole list of contents into memory, so that is bounded here."""

    def __init__(self, packed: BinaryIO, most_entries: int) -> None:
        self._packed = packed
        self._size = os.fstat(packed.fileno()).st_size
        self._most_entries = most_entries
        self._most_bytes = max(1 << 20, most_entries * MOST_ZIP_ENTRY_BYTES)
        self.is_listed = False
        self.tell = packed.tell
        self.seekable = packed.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._packed.read(self._most_bytes + 1 if size < 0 else min(size, self._most_bytes + 1))
        if len(data) > self._most_bytes:
            raise RefusedError("its list of contents is too long")
        if not self.is_listed and data.count(_ZIP_ENTRY) > self._most_entries:
            raise RefusedError(f"it has more than {self._most_entries:,} entries, which is the limit")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET and not 0 <= offset <= self._size:  # no fault of the disk: the file says so
            raise zipfile.BadZipFile("an offset in it is wrong")
        return self._packed.seek(offset, whence)


def unpack_zip(packed: BinaryIO, tree: Tree, meter: Meter, most_entries: int) -> None:
    """Writes everything in it; RefusedError for what is damaged or not to be trusted."""
    content = _ZipContent(packed, most_entries)
    try:
        with zipfile.ZipFile(content) as archive:
            content.is_listed = True
            members = archive.infolist()
            _check_overlaps(members, archive.start_dir)
            for member in members:
                _add_member(archive, member, tree, meter)
    except _DAMAGE as error:
        raise RefusedError(f"the zip file is damaged ({error})") from error


def _check_overlaps(members: list[zipfile.ZipInfo], end: int) -> None:
    """Entries that share their bytes are how 10 MB become petabytes (CVE-2024-0450; older Pythons do not look)."""
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + _ZIP_LOCAL_HEADER_BYTES + member.compress_size > end:
            raise RefusedError("its entries overlap")
        end = member.header_offset


def _add_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, tree: Tree, meter: Meter) -> None:
    name = member.orig_filename  # `filename` ends at the first NUL
    mode = member.external_attr >> 16
    if member.flag_bits & _ZIP_ENCRYPTED:
        raise RefusedError(f"{shown(name)} is encrypted")
    if stat.S_IFMT(mode) not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
        raise RefusedError(f"{shown(name)} is a link or a device, not a plain file or folder")
    # bzip2 and lzma can stand for gigabytes in one read of zipfile's.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RefusedError(f"{shown(name)} is packed by method {member.compress_type}; stored and deflated are read")
    if name.endswith("/") and not member.file_size:
        if name != "./":
            tree.add_folder(name[:-1])
        return
    with archive.open(member) as content:
        size = tree.add_file(name, meter.count(pieces_of(content)), executable=bool(mode & stat.S_IXUSR))
    if size != member.file_size:
        raise RefusedError(f"{shown(name)} has {size:,} bytes, not {member.file_size:,}")
