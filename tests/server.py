"""An origin that is a process of its own, so that it can be killed: for test_network.py.

    python server.py PORT HOLD      (PORT 0: a free one; HOLD: the byte before which it stops, -1: none)

Prints its port; then, for each line on stdin, the ranges that it was asked for, as JSON.
"""

import json
import subprocess
import sys

from modelcache.testing import Content, Hold, Origin

MIB = 1 << 20
FILE = Content.generated(8 * MIB, seed=71)


class Server:
    """Killed at the end of a `with`, if not before."""

    def __init__(self, port: int = 0, hold: int = -1) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(hold)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/m.bin"

    def ranges(self) -> list[str | None]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("ranges\n")
        self._process.stdin.flush()
        asked: list[str | None] = json.loads(self._process.stdout.readline())
        return asked

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def main(port: int, hold: int) -> None:
    with Origin({"m.bin": FILE}, faults=[Hold(hold)] if hold >= 0 else [], port=port) as origin:
        print(origin.port, flush=True)
        for _ in sys.stdin:
            print(json.dumps([seen.range for seen in origin.requests]), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
