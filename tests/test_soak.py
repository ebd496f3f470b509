"""A soak: fetches, faults, kills, stops, rot, repairs and cleans at random, with every invariant looked at each time.

MODELCACHE_SOAK_S is how many seconds it takes (default 60), MODELCACHE_SOAK_SEED what the dice begin with.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from caches import rot
from crash import MIB, begin, catches_signals, check_store, files_below, leftovers, lines, locks_held, run

from modelcache.caching import Cache
from modelcache.testing import (
    Chunked,
    Content,
    Corrupt,
    Cut,
    Delay,
    ETag,
    Fault,
    IgnoreRange,
    NoLength,
    Origin,
    Slow,
    Status,
    WrongLength,
)

SOAK_S = float(os.environ.get("MODELCACHE_SOAK_S", "60"))
SEED = int(os.environ.get("MODELCACHE_SOAK_SEED", "1"))
SIZES = (1, 70_001, MIB, 9 * MIB + 5)
FILES = {f"{index}.bin": Content.generated(size, seed=index) for index, size in enumerate(SIZES)}
FAULTS: list[Fault] = [
    Cut(300_000, times=4), Cut(300_000, reset=False, times=2), Status(503, times=2), Status(404, times=1),
    Status(429, {"Retry-After": "0"}, times=2), Corrupt(5, times=1), Corrupt(700_000), IgnoreRange(), NoLength(),
    Chunked(), ETag(None), WrongLength(-1, times=1), Delay(0.2, times=2), Slow(8 * MIB),
]  # fmt: skip
AGES = {f"MODELCACHE_{name}_AGE": "0" for name in ("STALE_PARTIAL", "QUARANTINE", "LOG")}
EXPECTED = {0, 3, 4, 5, 130}  # what may come of a fetch from a bad server, or one that is stopped


class Soak:
    def __init__(self, home: Path, origin: Origin) -> None:
        self.home = home
        self.origin = origin
        self.dice = random.Random(SEED)
        self.counts: Counter[str] = Counter()

    def fetch_of(self, name: str) -> list[str]:
        return ["fetch", self.origin.url(name), "--sha256", FILES[name].sha256, "--quiet"]

    def fetch(self) -> None:
        """Of one or two at once, from a server that may have a fault, killed or stopped in half of the cases."""
        names = self.dice.sample(list(FILES), self.dice.randint(1, 2))
        fault = self.dice.choice([None, *FAULTS])
        if fault:
            self.origin.faults(fault, path=names[0])
            self.counts[f"fault {type(fault).__name__}"] += 1
        children = [begin(self.home, *self.fetch_of(name)) for name in names]
        number = self.dice.choice([None, None, signal.SIGKILL, signal.SIGINT])
        if number:
            with suppress(subprocess.TimeoutExpired):
                children[0].wait(self.dice.uniform(0.1, 0.8))
            assert catches_signals(children[0])
            children[0].send_signal(number)
        for child in children:
            self.check_ended(child, number)
        self.origin.heal()

    def check_ended(self, child: "subprocess.Popen[str]", number: signal.Signals | None) -> None:
        _, said = child.communicate(timeout=60)
        assert "Traceback" not in said, said
        killed = {-signal.SIGKILL, -signal.SIGINT} if number else set()  # Python's own, if imports were interrupted
        assert child.returncode in EXPECTED | killed, (child.returncode, said)
        assert number or len(lines(said)) == (child.returncode != 0), said
        self.counts[f"fetch ended with {child.returncode}"] += 1

    def command(self, *words: str, codes: tuple[int, ...] = (0,), **more: str) -> None:
        done = run(self.home, *words, **more)
        assert done.returncode in codes, (words, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
        self.counts[f"{words[0]} ended with {done.returncode}"] += 1

    def rot(self) -> None:
        """A byte of a blob turns; the next verification finds it, and a repair or a fetch mends it."""
        blobs = [path for path in files_below(self.home / "blobs") if path.stat().st_size > 1]
        if not blobs:
            return
        blob = self.dice.choice(blobs)
        rot(blob, self.dice.randrange(blob.stat().st_size))
        self.command("verify", codes=(3,) if self.is_installed(blob) else (0,))
        self.command("repair", "--quiet", codes=(0,))
        if blob.exists() and not self.is_installed(blob):
            blob.unlink()  # nobody's: a fetch would find it
        self.counts["rotten bytes"] += 1

    def is_installed(self, blob: Path) -> bool:
        inode = blob.stat().st_ino
        return any(path.stat().st_ino == inode for path in files_below(self.home / "models"))

    def step(self) -> None:
        match self.dice.randrange(10):
            case 0:
                self.command("verify")
            case 1:
                self.command("clean", **AGES)
            case 2:
                self.command("rm", self.origin.url(self.dice.choice(list(FILES))), codes=(0, 4))
            case 3:
                self.rot()
            case _:
                self.fetch()
        self.check()

    def check(self) -> None:
        check_store(self.home)
        assert not locks_held(self.home)
        self.counts["steps"] += 1

    def finish(self) -> None:
        """Whatever was, in the end everything is fetched, whole, and nothing else is left."""
        for name in FILES:
            self.command(*self.fetch_of(name))
        self.check()
        cache = Cache(self.home, stale_partial_age=0, quarantine_age=0, log_age=0, temporary_age=0)
        cache.clean()
        assert all(row["finding"] == "whole" for row in cache.verify(progress=False))
        assert not leftovers(self.home)
        assert {path.name for path in files_below(self.home / "blobs")} == {one.sha256 for one in FILES.values()}
        cache.close()


@pytest.fixture
def soak(cache_root: Path) -> Iterator[Soak]:
    with Origin(FILES) as origin:
        yield Soak(cache_root, origin)


@pytest.mark.nightly
@pytest.mark.timeout(SOAK_S + 300)
def test_whatever_happens_for_long_every_invariant_holds(soak: Soak, capsys: pytest.CaptureFixture[str]) -> None:
    end, handles = time.monotonic() + SOAK_S, len(os.listdir("/proc/self/fd"))
    try:
        while time.monotonic() < end:
            soak.step()
        soak.finish()
    finally:
        with capsys.disabled():
            counts = ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items()))
            print(f"\nsoak of {SOAK_S:g} s, seed {SEED}: {counts}")
    assert len(os.listdir("/proc/self/fd")) <= handles + 8, "of connections that the origin is about to close"
