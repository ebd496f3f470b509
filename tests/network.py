"""A network of the test's own: two hosts with nothing but a link between them, which can be taken down."""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

NEAR, FAR = "10.99.0.1", "10.99.0.2"
WIRE = "wire"
CLONE_NEWNET = 0x40000000
_SLEEPER = ["unshare", "--net", "cat"]  # has a network of its own until its stdin ends


def can_be_had() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    words = ["unshare", "--net", "ip", "link", "add", "x", "type", "veth", "peer", "name", "y"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


class Link:
    """A near host, where commands run, and a far one, where servers listen on FAR."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._near, self._far = (self._ends.enter_context(_sleeper()) for _ in range(2))
        self._ip(self._near, "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", str(self._far))
        for host, address in ((self._near, NEAR), (self._far, FAR)):
            self._ip(host, "address", "add", f"{address}/24", "dev", WIRE)
            self._ip(host, "link", "set", WIRE, "up")

    def __enter__(self) -> "Link":
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def near(self, command: Sequence[str]) -> list[str]:
        """The command as it runs on the near host."""
        return ["nsenter", f"--net=/proc/{self._near}/ns/net", *command]

    @contextmanager
    def at_far(self) -> Iterator[None]:
        """What this thread opens meanwhile is on the far host, and stays there."""
        with open("/proc/thread-self/ns/net", "rb") as home, open(f"/proc/{self._far}/ns/net", "rb") as far:
            _enter(far.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def down(self, end: str) -> None:
        """At its `near` end a host knows that there is no network; at its `far` end bytes get lost without a word."""
        self._ip(self._near if end == "near" else self._far, "link", "set", WIRE, "down")

    def up(self, end: str) -> None:
        self._ip(self._near if end == "near" else self._far, "link", "set", WIRE, "up")

    def received(self) -> int:
        """Bytes that have come to the near host, headers of packets included."""
        told = subprocess.run(
            self.near(["ip", "-json", "-statistics", "link", "show", WIRE]), capture_output=True, check=True
        )
        count: int = json.loads(told.stdout)[0]["stats64"]["rx"]["bytes"]
        return count

    def _ip(self, host: int, *words: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{host}/ns/net", "ip", *words], check=True)


@contextmanager
def _sleeper() -> Iterator[int]:
    """The pid of a process in a network of its own."""
    process = subprocess.Popen(_SLEEPER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"  # it is `cat` by now, and so in its network
        yield process.pid
    finally:
        process.communicate()


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
