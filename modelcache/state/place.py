"""Where the state of a cache lies: `<root>/state/<host>.db`, one database a host.

Responsible for: these paths, and telling network file systems, where SQLite's WAL does not work: there the platform's
state folder holds it. Leaves to others: creating them.
"""

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from typing import Self

from modelcache.store.modes import name_in

NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|lustre|gpfs|beegfs|gfs2|ocfs2|fuse\.(sshfs|glusterfs|ceph.*)"
)
MOUNTS = "/proc/self/mountinfo"


@dataclass(frozen=True, slots=True)
class Place:
    """`database` is a file; `requests` a folder for what may hold secrets, a file a download."""

    database: str
    requests: str
    host: str

    @classmethod
    def of(cls, root: str, *, shared: bool = False) -> Self:
        """`shared` where a root that is not there yet is to be a group's."""
        host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname()).strip(".")[:100] or "host"
        name = name_in(root, host, shared=shared)
        folder = _platform_folder(root) if is_on_network(root) else os.path.join(root, "state")
        return cls(os.path.join(folder, f"{name}.db"), os.path.join(folder, f"{name}.requests"), host)

    @property
    def name(self) -> str:
        """Of this host, with the account in a root that a group shares."""
        return os.path.basename(self.database).removesuffix(".db")

    def is_in(self, root: str) -> bool:
        """Whether it lies beside those of all other hosts that use the root."""
        return os.path.dirname(self.database) == os.path.join(root, "state")

    @property
    def looks(self) -> str:
        """What sweeps remember."""
        return self.database.removesuffix(".db") + ".looks"

    def request(self, download_id: str) -> str:
        return os.path.join(self.requests, f"{download_id}.json")


def _platform_folder(root: str) -> str:
    import platformdirs

    name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    return os.path.join(platformdirs.user_state_dir("modelcache", appauthor=False), name)


def is_on_network(path: str, mounts: str = MOUNTS) -> bool:
    """Whether the file system that holds `path`, which need not exist yet, is another machine's, as far as is told."""
    try:
        with open(mounts, encoding="utf-8", errors="replace") as stream:
            lines = [line.split(" ") for line in stream]
    except OSError:
        return False
    kinds = {
        fields[4].encode().decode("unicode_escape"): fields[fields.index("-") + 1]  # spaces are written \040 there
        for fields in lines
        if "-" in fields[6:]
    }
    place = os.path.realpath(path)
    while place not in kinds and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    return NETWORK.fullmatch(kinds.get(place, "")) is not None
