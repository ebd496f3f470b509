"""Which process owns something on the disk, and whether that process is proven dead (I13).

Responsible for: naming this process so that a reused pid cannot be mistaken for it.
Leaves to others: what to do with a thing whose owner is dead, alive, or cannot be judged.
"""

import os
import socket
from dataclasses import asdict, dataclass
from typing import Any, Self

UNKNOWN = 0  # the start time of a process whose start this system does not tell


@dataclass(frozen=True, slots=True)
class Owner:
    """A process by host, boot, pid namespace, pid and start time (clock ticks since boot).

    `machine` tells hosts of one name apart; empty where this system does not tell, as in most containers.
    """

    host: str
    boot: str
    space: int
    pid: int
    start: int
    machine: str = ""

    @classmethod
    def mine(cls) -> Self:
        return cls._of(os.getpid(), _start_of(os.getpid()) or UNKNOWN)

    @classmethod
    def here(cls, pid: int) -> Self | None:
        """The process that has this pid now, as it is seen from here; None where there is none."""
        start = _start_of(pid)
        return None if start is None else cls._of(pid, start)

    @classmethod
    def _of(cls, pid: int, start: int) -> Self:
        return cls(socket.gethostname(), _boot(), _space(), pid, start, _machine())

    @classmethod
    def from_json(cls, fields: object) -> Self:
        """ValueError where it is not an owner."""
        machine = fields.get("machine") if isinstance(fields, dict) else None
        match fields:
            case {"host": str(host), "boot": str(boot), "space": int(space), "pid": int(pid), "start": int(start)}:
                if space >= 0 and 0 < pid < 2**31 and start >= 0:
                    return cls(host, boot, space, pid, start, machine if isinstance(machine, str) else "")
        raise ValueError("not an owner")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host[:64]!r}"

    def is_proven_dead(self) -> bool:
        """True only where this process can judge: same host, boot and pid namespace, and that process is gone."""
        mine = Owner.mine()
        is_same_machine = self.machine and (self.host, self.machine) == (mine.host, mine.machine)
        if is_same_machine and "" not in (self.boot, mine.boot) and self.boot != mine.boot:
            return True  # the machine was started anew since
        if (self.host, self.boot, self.space) != (mine.host, mine.boot, mine.space):
            return False
        start = _start_of(self.pid)
        return start is None or (UNKNOWN not in (start, self.start) and start != self.start)


def is_suspended(pid: int) -> bool:
    """Whether somebody stopped it (SIGSTOP, Ctrl-Z): it lives, but does nothing, not even end on SIGTERM."""
    return _stat(pid)[:1] in (["T"], ["t"])


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _machine() -> str:
    """A hash of the machine's id, which is not for others to see (machine-id(5))."""
    import hashlib

    text = _read("/etc/machine-id").strip()
    return hashlib.sha256(b"modelcache " + text.encode()).hexdigest()[:16] if text else ""


def _space() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _start_of(pid: int) -> int | None:
    """None where there is no such process."""
    if fields := _stat(pid):
        return int(fields[19])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return UNKNOWN  # alive, on a system without /proc, or hidden from us there


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process, from its state on; empty where it tells nothing."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
