"""What happens to files while a sweep reads them, and who else is at them (product E1, I25, I29)."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from caches import manifest_of, rot, run
from crash import begin, check_store, compiled, eventually, leftovers

from modelcache.caching import Cache
from modelcache.rows import Report
from modelcache.store.installed import Installed
from modelcache.store.sharing import Rotten
from modelcache.testing import Content, Origin

DAY_S = 86_400
MIB = 1 << 20
PIECE = 4 << 20
READS, FAIL_ON = 2, 2  # of faultshim.c
LATER = "lambda: time.time() + 11 * 86400"

FAILING = f"""
import ctypes, json, os, sys, time
from modelcache.caching import Cache
library, place, n, error, repair = sys.argv[1:]
shim = ctypes.CDLL(library)
shim.shim_reset()
shim.shim_add_root(os.fsencode(place))
cache = Cache()
cache.sweep()
shim.shim_arm({READS}, ctypes.c_long(int(n)), {FAIL_ON}, int(error))
print(json.dumps([row["finding"] for row in cache.sweep(share="full", repair=bool(repair), clock={LATER})]))
"""


def later() -> float:
    return time.time() + 11 * DAY_S


def finding(report: Report, model: str = "m") -> str:
    return next((row["finding"] for row in report if row["model"] == model), "")


def add(cache: Cache, tmp_path: Path, size: int = 6 * MIB, seed: int = 1) -> Path:
    """A model `m` of one file; where that is."""
    source = tmp_path / "w.bin"
    source.write_bytes(Content.generated(size, seed=seed).read())
    return Path(cache.add(source, "m").path, "w.bin")


def record_of(place: Path) -> Installed | None:
    return Installed.read(str(place.parent))


# -- a disk that fails ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("faultshim.c", tmp_path_factory.mktemp("shim"), "-D_LARGEFILE64_SOURCE")


def swept_while_it_fails(library: Path, place: Path, n: int, *, repair: bool = False) -> str:
    words = [str(library), str(place), str(n), str(errno.EIO), "1" if repair else ""]
    preloaded = os.environ | {"LD_PRELOAD": str(library)}
    done = subprocess.run(
        [sys.executable, "-c", FAILING, *words], env=preloaded, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("is_rotten", [False, True])
def test_a_disk_that_fails_to_read_says_nothing_of_the_bytes(
    cache: Cache, tmp_path: Path, library: Path, n: int, is_rotten: bool
) -> None:
    place = add(cache, tmp_path)
    if is_rotten:
        rot(place, 5)
    record, look = record_of(place), place.stat()
    assert swept_while_it_fails(library, place, n, repair=True) == '["unreadable"]'
    assert record_of(place) == record
    assert (place.stat().st_mtime_ns, place.stat().st_ino) == (look.st_mtime_ns, look.st_ino)
    assert cache.path("m")
    assert not Path(cache.root, "quarantine").exists()
    assert finding(cache.sweep(clock=later)) == "unreadable"  # it was looked at a moment ago
    much_later = cache.sweep(share="full", clock=lambda: later() + 11 * DAY_S)
    assert finding(much_later) == ("corrupt" if is_rotten else "whole")


# -- files that change while they are read ----------------------------------------------------------------------------


class Meanwhile(threading.Event):
    """Does something when so many buffers were read."""

    def __init__(self, act: Callable[[], object], after: int = 5) -> None:
        super().__init__()
        self._act = act
        self._left = after
        self._guard = threading.Lock()

    def is_set(self) -> bool:
        with self._guard:
            self._left -= 1
            if self._left == 0:
                self._act()
        return False


@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_is_removed_while_it_is_read_is_missing_or_was_whole(
    cache: Cache, tmp_path: Path, strict: bool
) -> None:
    place = add(cache, tmp_path)
    acted = Meanwhile(place.unlink)
    assert finding(cache.sweep(share="full", strict=strict, stop=acted, clock=later)) in ("whole", "missing")
    assert not place.exists()
    assert finding(cache.sweep(share="full", clock=lambda: later() + 11 * DAY_S)) == "missing"


@pytest.mark.parametrize("strict", [False, True])
def test_a_file_that_is_cut_short_while_it_is_read_is_never_whole(cache: Cache, tmp_path: Path, strict: bool) -> None:
    place = add(cache, tmp_path)
    place.chmod(0o600)
    acted = Meanwhile(lambda: os.truncate(place, 100))
    assert finding(cache.sweep(share="full", strict=strict, stop=acted, clock=later)) == "corrupt"
    assert cache.models().rows[0]["status"] == "error"


def test_a_file_that_is_replaced_by_a_right_one_while_it_is_read_is_not_marked(cache: Cache, tmp_path: Path) -> None:
    place = add(cache, tmp_path)
    rot(place, 5)
    right = tmp_path / "right"
    right.write_bytes(Content.generated(6 * MIB, seed=1).read())
    acted = Meanwhile(lambda: os.rename(right, place), after=9)
    assert finding(cache.sweep(share="full", stop=acted, clock=later)) in ("whole", "corrupt")
    assert finding(cache.sweep(share="full", clock=lambda: later() + 11 * DAY_S)) == "whole"
    assert cache.path("m")


@pytest.mark.parametrize("after", [2, 5])  # before its first byte, and between two of its buffers
def test_a_model_that_is_removed_while_it_is_read_is_nobodys_finding(cache: Cache, tmp_path: Path, after: int) -> None:
    place = add(cache, tmp_path)

    def remove() -> None:
        cache.remove("m")

    report = cache.sweep(share="full", stop=Meanwhile(remove, after), clock=later)
    assert finding(report) in ("whole", "")
    assert report.findings == 0
    assert not place.exists()
    assert cache.sweep(share="full", clock=later).rows == ()


def test_a_file_that_never_stays_as_it_is_is_not_called_corrupt(cache: Cache, tmp_path: Path) -> None:
    place = add(cache, tmp_path)
    rot(place, 5)

    class Restless(threading.Event):
        def is_set(self) -> bool:
            os.utime(place)
            return False

    report = cache.sweep(share="full", stop=Restless(), clock=later)
    assert [(row["finding"], "changes while it is read" in row["reason"]) for row in report] == [("unreadable", True)]


def test_rot_that_others_find_at_the_same_time_is_rot(cache: Cache, tmp_path: Path) -> None:
    place = add(cache, tmp_path)
    rot(place, 5)

    class Others(threading.Event):
        def is_set(self) -> bool:
            Rotten.at(str(place), foreign=False)
            return False

    assert finding(cache.sweep(share="full", stop=Others(), clock=later)) == "corrupt"
    assert cache.models().rows[0]["status"] == "error"


# -- kills ------------------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_killed_goes_on_where_it_was(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    for number in range(8):
        source.write_bytes(Content.generated(2 * MIB, seed=number).read())
        cache.add(source, f"m{number}")
    before = {row["model"]: cache.info(row["model"]).rows[0]["verified_at"] for row in cache.models()}

    def verified() -> list[str]:
        return [model for model, at in before.items() if cache.info(model).rows[0]["verified_at"] > at]

    began = time.time()
    child = begin(Path(cache.root), "verify", "--share", "full", "--older-than", "0", "--rate-limit", "4M", "--quiet")
    try:
        assert eventually(lambda: len(verified()) >= 3)
    finally:
        child.kill()
        child.communicate()
    done = verified()
    assert 3 <= len(done) < 8
    rest = cache.sweep(share="full", older_than=0, clock=lambda: began)
    assert sorted([row["model"] for row in rest] + done) == sorted(before)


def test_sigterm_ends_it_in_the_middle_of_a_file(cache: Cache, tmp_path: Path) -> None:
    place = add(cache, tmp_path, 40 * MIB)
    before = cache.info("m").rows
    child = begin(Path(cache.root), "verify", "--share", "full", "--older-than", "0", "--rate-limit", "4M", "--quiet")
    try:
        assert eventually(lambda: place.stat().st_ino in files_open_in(child.pid))
        child.terminate()
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 143, errors
    assert cache.path("m") == str(place.parent)
    assert cache.info("m").rows == before  # what was not read to its end is not verified


def files_open_in(pid: int) -> set[int]:
    """The inodes of what a process has open."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            inodes.add(handle.stat().st_ino)
    return inodes


# -- a large file, and everybody at once ------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_flipped_bit_in_a_large_file_is_found_and_costs_one_piece(
    cache: Cache, one_connection: None, tmp_path: Path
) -> None:
    large = Content.generated(90_000_000, seed=3)
    with Origin({"large.bin": large}) as origin:
        place = Path(cache.fetch(manifest_of(origin, {"large.bin": large})).path, "large.bin")
        look = place.stat()
        place.chmod(0o600)
        with place.open("r+b") as file:
            file.seek(77_777_777)
            (byte,) = file.read(1)
            file.seek(77_777_777)
            file.write(bytes([byte ^ 1]))
        place.chmod(0o444)
        os.utime(place, ns=(look.st_atime_ns, look.st_mtime_ns))
        assert finding(cache.sweep(share="full", clock=later)) == "corrupt"
        row = next(iter(cache.sweep(clock=later)))
        assert row["finding"] == "corrupt"
        before = len(origin.requests)
        done = run("verify", "--repair", "--quiet")
        sent = sum(seen.bytes_sent for seen in origin.requests[before:])
    assert done.returncode == 0, done.stderr
    assert f"repaired, {PIECE:,} of 90,000,000 bytes fetched" in done.stderr
    assert sent == PIECE
    assert place.read_bytes() == large.read()


@pytest.mark.slow
def test_sweep_verify_repair_fetch_and_clean_of_the_same_files_at_once(cache: Cache, cache_root: Path) -> None:
    content = Content.generated(5 * PIECE, seed=4)
    with Origin({"a.bin": content, "b.bin": content}) as origin:
        for name in ("a.bin", "b.bin"):
            cache.fetch(origin.url(name), sha256=content.sha256)
        models = [row["model"] for row in cache.models()]
        places = [Path(cache.path(origin.url(name))) for name in ("a.bin", "b.bin")]
        for turn in range(4):
            rot(places[turn % 2], turn * PIECE + 1)
            at_once = [
                ("verify", "--repair", "--quiet"), ("verify", "--quiet"), ("repair", models[0], "--quiet"),
                ("fetch", origin.url("b.bin"), "--sha256", content.sha256, "--strict", "--quiet"), ("clean",),
                ("verify", "--share", "1/2", "--older-than", "0", "--quiet"),
            ]  # fmt: skip
            children = [begin(cache_root, *words) for words in at_once]
            ended = [(child.communicate(timeout=100)[1], child.returncode) for child in children]
            assert all(code in (0, 3, 7) for _, code in ended), ended
            assert (ended[2][1], ended[3][1]) == (0, 0), ended
            assert run("repair", "--quiet").returncode == 0
            assert run("verify", "--quiet").returncode == 0
            for place in places:
                assert place.read_bytes() == content.read()
                assert os.path.samefile(place, places[0])
        assert [cache.path(origin.url(name)) for name in ("a.bin", "b.bin")] == [str(place) for place in places]
    shutil.rmtree(cache_root / "quarantine")
    check_store(cache_root)
    assert not leftovers(cache_root)
