"""Disks that refuse, for real: full, read-only, forbidden, limited (A8, I25). One line, bytes kept, then it goes on.

A small tmpfs is mounted where that is permitted. A quota is no case of its own: a tmpfs has none without more tools,
and EDQUOT takes the same way as ENOSPC (test_faults.py fails operations with any error).
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import (
    MIB,
    begin,
    check_store,
    command,
    environment,
    eventually,
    files_below,
    leftovers,
    lines,
    locks_held,
    partial_bytes,
    run,
    sha256_of,
)

from modelcache.testing import Content, Hold, Origin

FILE = Content.generated(12 * MIB + 99, seed=31)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE}) as serving:
        yield serving


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip() or 'mount failed'}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.getuid():
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m,mode=700", "modelcache-test", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def enlarge(disk: Path) -> None:
    mount("-o", "remount,size=64m", str(disk))


def fetch(origin: Origin, *more: str) -> list[str]:
    return ["fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet", *more]


def served(origin: Origin) -> int:
    return sum(seen.bytes_sent for seen in origin.requests)


def check_refused(ended: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Local, in one line that has these words."""
    assert (ended.returncode, ended.stdout, len(lines(ended.stderr))) == (6, "", 1), ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr


def check_goes_on(origin: Origin, home: Path, *more: str, kept: int) -> None:
    """The same command succeeds now, and fetches what is missing alone."""
    before = served(origin)
    done = run(home, *fetch(origin, *more))
    assert (done.returncode, done.stderr) == (0, "")
    assert sha256_of(Path(done.stdout.strip())) == FILE.sha256
    assert served(origin) - before <= FILE.size - kept + MIB
    check_store(home)
    assert not leftovers(home)
    assert not locks_held(home)


# -- full -------------------------------------------------------------------------------------------------------------


def test_room_that_a_killed_run_reserved_counts_for_the_next(disk: Path) -> None:
    """A disk that has room for the file and a little more: what is reserved is neither used nor missing."""
    mount("-o", "remount,size=48m", str(disk))
    content, hold = Content.generated(40 * MIB, seed=32), Hold(3 * MIB)
    with Origin({"m.bin": content}) as origin:
        words = ["fetch", origin.url("m.bin"), "--sha256", content.sha256, "--quiet"]
        origin.faults(hold)
        child = begin(disk, *words)
        assert hold.reached.wait(60)
        assert eventually(lambda: partial_bytes(disk / "partials") > 2 * MIB)
        child.kill()
        child.communicate(timeout=30)
        origin.heal()
        if os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 30 * MIB:
            pytest.skip("this file system reserves nothing")
        done = run(disk, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert sha256_of(Path(done.stdout.strip())) == content.sha256


def test_a_full_disk_keeps_the_bytes_and_the_next_run_goes_on(origin: Origin, disk: Path) -> None:
    home = disk / "home"
    check_refused(run(home, *fetch(origin)), str(home / "partials"), "bytes kept", "free space")
    check_store(home)
    kept = partial_bytes(home / "partials")
    assert kept > 7 * MIB
    assert len(origin.requests) == 1, "a full disk is no reason to ask again"
    check_refused(run(home, *fetch(origin)), "free space")  # still full: nothing is lost by trying
    assert partial_bytes(home / "partials") >= kept - MIB
    enlarge(disk)
    check_goes_on(origin, home, kept=kept)


def test_too_small_a_disk_is_told_before_the_first_byte(origin: Origin, disk: Path) -> None:
    home = disk / "home"
    refused = run(home, *fetch(origin, "--size", str(FILE.size)))
    check_refused(refused, str(home / "partials"), f"{FILE.size:,}", "free space")
    assert not origin.requests
    enlarge(disk)
    check_goes_on(origin, home, "--size", str(FILE.size), kept=0)


def test_room_is_needed_for_what_is_missing_alone(origin: Origin, disk: Path) -> None:
    """A partial of 7 MiB needs 5 MiB more, not 12."""
    home = disk / "home"
    check_refused(run(home, *fetch(origin)), "free space")
    kept = partial_bytes(home / "partials")
    mount("-o", "remount,size=14m", str(disk))
    check_goes_on(origin, home, "--size", str(FILE.size), kept=kept)


def test_another_who_fills_the_disk_and_leaves(origin: Origin, disk: Path) -> None:
    home = disk / "home"
    enlarge(disk)
    ballast = disk / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 58 * MIB)
    check_refused(run(home, *fetch(origin)), "free space")
    kept = partial_bytes(home / "partials")
    ballast.unlink()
    check_goes_on(origin, home, kept=kept)


def test_a_full_disk_at_the_output(origin: Origin, disk: Path, tmp_path: Path) -> None:
    home, output = tmp_path / "home", disk / "m.bin"
    check_refused(run(home, *fetch(origin, "--output", str(output))), str(output), "free space")
    assert not os.listdir(disk), "half a copy is never left"
    assert files_below(home / "blobs")
    enlarge(disk)
    check_goes_on(origin, home, "--output", str(output), kept=FILE.size)


def test_a_full_disk_without_the_cache(origin: Origin, disk: Path, tmp_path: Path) -> None:
    output, more = disk / "m.bin", ("--output", str(disk / "m.bin"), "--no-cache")
    check_refused(run(tmp_path / "home", *fetch(origin, *more)), str(disk), "bytes kept", "free space")
    assert not output.exists()
    kept = partial_bytes(disk / ".m.bin.modelcache")
    assert kept > 7 * MIB
    enlarge(disk)
    check_goes_on(origin, tmp_path / "home", *more, kept=kept)
    assert os.listdir(disk) == ["m.bin"]


def test_adding_to_a_full_disk(disk: Path, tmp_path: Path) -> None:
    source, home = tmp_path / "m.bin", disk / "home"
    source.write_bytes(FILE.read())
    check_refused(run(home, "add", str(source), "--model", "mine"), str(home), "free space")
    check_store(home)
    assert not leftovers(home)
    enlarge(disk)
    assert run(home, "add", str(source), "--model", "mine").returncode == 0
    check_store(home)


def test_repairing_on_a_full_disk_loses_nothing(origin: Origin, disk: Path) -> None:
    """A repair needs room for a second copy: without it the first stays, marked."""
    home = disk / "home"
    enlarge(disk)
    assert run(home, *fetch(origin)).returncode == 0
    assert run(home, "verify").returncode == 0
    (blob,) = files_below(home / "blobs")
    blob.chmod(0o644)
    with blob.open("r+b") as stream:
        stream.write(b"rotten")
    blob.chmod(0o444)
    rotten = sha256_of(blob)
    ballast = disk / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 48 * MIB)
    check_refused(run(home, "repair", "--quiet"), str(home), "free space")
    check_store(home, tolerated=[rotten])
    assert run(home, "path", origin.url("m.bin")).returncode == 4, "what is rotten is not given out"
    ballast.unlink()
    assert run(home, "repair", "--quiet").returncode == 0
    check_store(home)
    assert run(home, "path", origin.url("m.bin")).returncode == 0


# -- read-only --------------------------------------------------------------------------------------------------------


def test_a_read_only_store_still_gives_what_it_has(origin: Origin, disk: Path) -> None:
    home = disk / "home"
    enlarge(disk)
    path = run(home, *fetch(origin)).stdout
    mount("-o", "remount,ro", str(disk))
    for words in (fetch(origin), ["path", origin.url("m.bin")]):
        hit = run(home, *words)
        assert (hit.returncode, hit.stdout, hit.stderr) == (0, path, "")
    assert run(home, "ls").returncode == 0


def test_a_read_only_disk_is_told_in_one_line(origin: Origin, disk: Path) -> None:
    home = disk / "home"
    check_refused(run(home, *fetch(origin)), "free space")
    kept = partial_bytes(home / "partials")
    mount("-o", "remount,ro", str(disk))
    asked = len(origin.requests)
    check_refused(run(home, *fetch(origin)), str(home), "read-only")
    assert len(origin.requests) == asked
    assert partial_bytes(home / "partials") == kept
    mount("-o", "remount,rw,size=64m", str(disk))
    check_goes_on(origin, home, kept=kept)


def test_a_read_only_output(origin: Origin, disk: Path, tmp_path: Path) -> None:
    mount("-o", "remount,ro", str(disk))
    output = disk / "m.bin"
    check_refused(run(tmp_path / "home", *fetch(origin, "--output", str(output))), str(disk), "read-only")
    check_refused(run(tmp_path / "home", *fetch(origin, "--output", str(output), "--no-cache")), str(disk), "read-only")


def test_jobs_look_after_the_fallback_where_nothing_can_be_written_to_the_root(
    origin: Origin, disk: Path, tmp_path: Path
) -> None:
    home, fallback = disk / "home", tmp_path / "fallback"
    enlarge(disk)
    assert run(home, *fetch(origin)).returncode == 0
    mount("-o", "remount,ro", str(disk))
    source = tmp_path / "w.bin"
    source.write_bytes(b"weights")
    assert run(home, "add", str(source), "--model", "mine", MODELCACHE_FALLBACK=str(fallback)).returncode == 0
    everything = ("--set", 'share="full"', "--set", "older_than=0")
    verified = run(home, "jobs", "run", "verify", *everything, MODELCACHE_FALLBACK=str(fallback))
    assert (verified.returncode, "1 file verified" in verified.stdout) == (0, True)
    assert f"left out: {home}" in verified.stdout
    cleaned = run(home, "jobs", "run", "clean", MODELCACHE_FALLBACK=str(fallback))
    assert (cleaned.returncode, f"left out: {home}" in cleaned.stdout) == (0, True)
    assert run(home, "jobs", "run", "publish-metrics", MODELCACHE_FALLBACK=str(fallback)).returncode == 0
    assert (fallback / "reports" / "report.html").exists()
    check_refused(run(home, "clean"), "read-only")


# -- forbidden --------------------------------------------------------------------------------------------------------

# Root without the right to pass permissions by: another user could not even read an interpreter below root's home.
OBEDIENT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


def run_unprivileged(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """As a user to whom permissions mean something."""
    return subprocess.run(
        [*(OBEDIENT if os.geteuid() == 0 else ()), sys.executable, "-m", "modelcache", *arguments],
        env=environment(home), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that anybody may reach."""
    place = Path(tempfile.mkdtemp(prefix="modelcache-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def test_a_store_of_somebody_else(origin: Origin, open_place: Path) -> None:
    home = open_place / "home"
    home.mkdir(mode=0o555)
    home.chmod(0o555)
    check_refused(run_unprivileged(home, *fetch(origin)), str(home), "permission denied")
    assert not origin.requests
    home.chmod(0o777)
    done = run_unprivileged(home, *fetch(origin))
    assert (done.returncode, done.stderr) == (0, "")
    check_store(home)


def test_a_store_that_may_be_read_alone_gives_what_it_has(origin: Origin, open_place: Path) -> None:
    home = open_place / "home"
    path = run(home, *fetch(origin)).stdout
    for folder in (home, *home.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    hit = run_unprivileged(home, *fetch(origin))
    assert (hit.returncode, hit.stdout, hit.stderr) == (0, path, "")
    for folder in (home, *home.rglob("*")):
        folder.chmod(0o700)


def test_an_output_where_nothing_may_be_written(origin: Origin, open_place: Path) -> None:
    home, closed = open_place / "home", open_place / "closed"
    home.mkdir()
    home.chmod(0o777)
    closed.mkdir(mode=0o555)
    output = closed / "m.bin"
    check_refused(run_unprivileged(home, *fetch(origin, "--output", str(output))), str(closed), "permission denied")
    more = ("--output", str(output), "--no-cache")
    check_refused(run_unprivileged(home, *fetch(origin, *more)), str(closed), "permission denied")
    assert not os.listdir(closed)


# -- limited ----------------------------------------------------------------------------------------------------------


def run_limited(home: Path, limit: int, most: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), env=environment(home), capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(limit, (most, most)),
    )  # fmt: skip


def test_a_limit_of_the_file_size(origin: Origin, tmp_path: Path) -> None:
    home = tmp_path / "home"
    refused = run_limited(home, resource.RLIMIT_FSIZE, 5 * MIB, *fetch(origin))
    check_refused(refused, str(home / "partials"), "too large", "bytes kept")
    assert len(origin.requests) == 1
    kept = partial_bytes(home / "partials")
    assert 4 * MIB <= kept <= 5 * MIB
    check_goes_on(origin, home, kept=kept)


def test_too_few_open_files(origin: Origin, tmp_path: Path) -> None:
    """Whichever of them is one too many: local, one line, no retry, and no remains of the attempt."""
    codes = []
    for most in range(5, 32):
        home = tmp_path / str(most)
        ended = run_limited(home, resource.RLIMIT_NOFILE, most, *fetch(origin))
        codes.append(ended.returncode)
        if ended.returncode == 0:
            break
        check_refused(ended, "too many open files", "ulimit -n")
        check_store(home)
        assert run(home, *fetch(origin)).returncode == 0
    assert codes.count(6) > 2
    assert codes[-1] == 0


@pytest.mark.parametrize("lack", ["bytes", "files"])
def test_on_a_full_disk_everything_is_verified_and_a_note_says_that_nothing_is_remembered(
    tmp_path: Path, disk: Path, lack: str
) -> None:
    home = disk / "home"
    (tmp_path / "w.bin").write_bytes(FILE.read(0, MIB))
    assert run(home, "add", str(tmp_path / "w.bin"), "--model", "m").returncode == 0
    shutil.rmtree(home / "state", ignore_errors=True)
    for lock in (home / "locks").iterdir():
        lock.unlink()
    fill(disk, lack)
    ended = run(home, "verify", "--share", "full", "--older-than", "0")
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert "1 file verified" in ended.stderr
    assert "is not remembered" in ended.stderr


def fill(disk: Path, lack: str) -> None:
    if lack == "files":
        mount("-o", "remount,nr_inodes=100", str(disk))
    with pytest.raises(OSError, match="No space"):
        for number in range(1000):
            (disk / f"full{number}").write_bytes(bytes(MIB if lack == "bytes" else 0))
