"""What other processes of this machine are doing, as far as we may look (proc(5)).

Responsible for: inodes of open and of mapped files, and whether a program runs. Another account's processes, other
machines and other containers are hidden from us. Where the system does not tell, nothing is in use.
"""

import os
from contextlib import suppress

PROC = "/proc"


def inodes_in_use() -> frozenset[int]:
    """Of files and of whatever else is open. On another disk there may be the same ones: that keeps a file longer."""
    found: set[int] = set()
    for pid in _names(PROC):
        if pid.isdecimal():
            folder = os.path.join(PROC, pid, "fd")
            for handle in _names(folder):
                with suppress(OSError):
                    found.add(os.stat(os.path.join(folder, handle)).st_ino)
            found |= _mapped(os.path.join(PROC, pid, "maps"))
    return frozenset(found)


def is_running(name: str) -> bool:
    """Whether there is a process that is called so."""
    return any(pid.isdecimal() and _name_of(pid) == name.encode() for pid in _names(PROC))


def _name_of(pid: str) -> bytes:
    with suppress(OSError), open(os.path.join(PROC, pid, "comm"), "rb") as file:
        return file.read().rstrip(b"\n")
    return b""


def _mapped(path: str) -> set[int]:
    with suppress(OSError), open(path, "rb") as lines:
        return {int(line.split(maxsplit=5)[4]) for line in lines}
    return set()


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []
