"""Other hosts, for tests: a name, a network and process ids of their own, over the same disk; each with a server.

Run as a program this is such a host, which does what its stdin says, a line at a time, and answers with JSON.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from modelcache.testing import Content, Hold, Origin

MIB = 1 << 20
FILE = Content.generated(8 * MIB, seed=91)
PORT = 8123  # of a network where nobody else is
URL = f"http://127.0.0.1:{PORT}/m.bin"
SPACE = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
BEGIN = ["sh", "-c", 'ip link set lo up && hostname "$1" && shift && exec "$@"', "sh"]


def can_be_had() -> bool:
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run([*SPACE, *BEGIN, "name", "true"], capture_output=True, check=False).returncode == 0


class Host:
    """Ends with everything that runs on it."""

    def __init__(self, name: str, home: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [*SPACE, *BEGIN, name, sys.executable, __file__],
            env=os.environ | {"MODELCACHE_HOME": str(home)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, *words: object) -> None:
        """To be answered later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, *words: object) -> Any:
        self.begin(*words)
        return self.answer()


class Served:
    """What a host does when it is told to."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._hold = Hold(0)
        self._child: subprocess.Popen[str] | None = None

    def hold(self, offset: int) -> bool:
        """The server stops before this byte, once."""
        self._hold = Hold(offset, times=1)
        self._origin.faults(self._hold)
        return True

    def reached(self) -> bool:
        return self._hold.reached.wait(60)

    def release(self) -> bool:
        self._hold.release.set()
        return True

    def fetch(self, *more: str) -> bool:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "modelcache", "fetch", URL, *more],
            env=os.environ | {"MODELCACHE_PROGRESS": "text"} | {"LD_PRELOAD": os.environ.get("SHIM", "")},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return True

    def says(self) -> str:
        """The next line of the fetch for people."""
        assert self._child is not None and self._child.stderr is not None
        return self._child.stderr.readline()

    def ended(self) -> dict[str, object]:
        assert self._child is not None
        output, errors = self._child.communicate(timeout=60)
        served = sum(seen.bytes_sent for seen in self._origin.requests)
        return {"code": self._child.returncode, "out": output.strip(), "err": errors, "served": served}


def main() -> None:
    with Origin({"m.bin": FILE}, port=PORT) as origin:
        served = Served(origin)
        for line in sys.stdin:
            name, *words = json.loads(line)
            print(json.dumps(getattr(served, name)(*words)), flush=True)


if __name__ == "__main__":
    main()
