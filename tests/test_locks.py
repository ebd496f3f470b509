"""Locks where something is odd: bad files, forks, file systems that cannot lock or lie about it (I12-I15).

What the file system does is done by a preloaded library (flockshim.c), so that the code under test is all real.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crash import MIB, check_store, eventually, lines, run

from modelcache.errors import LockedError, StoreError
from modelcache.store.lease import Lease
from modelcache.store.locks import Holder, Patience, Subject, is_held, locked
from modelcache.store.owner import Owner
from modelcache.testing import Content, Hold, Origin

FILE = Content.generated(8 * MIB, seed=81)
SUBJECT = Subject("m", "1", "m.bin")
AT_ONCE = Patience(0.0)
HERE = Path(__file__).resolve().parent


pytestmark = pytest.mark.usefixtures("one_connection")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE}) as serving:
        yield serving


@pytest.fixture
def lock(tmp_path: Path) -> str:
    return str(tmp_path / "locks" / "m.lock")


@pytest.fixture
def away() -> list[str]:
    """Runs a command as if on another host: another host name, and pids that mean nothing here."""
    space = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces to be had here")
    return space


@pytest.fixture
def begun() -> Iterator["list[subprocess.Popen[str]]"]:
    """Processes that a test adds here do not outlive it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def child(*command: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, env=os.environ | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


HOLD = """
import sys
import threading
from modelcache.store.locks import Patience, Subject, locked
with locked(sys.argv[1], Subject("m", "1", "m.bin"), Patience(0.0)):
    print("held", flush=True)
    sys.stdin.readline()
print("free", flush=True)
"""


def holder_of(lock: str, **more: str) -> "subprocess.Popen[str]":
    process = child(sys.executable, "-c", HOLD, lock, **more)
    assert line(process) == "held"
    return process


# -- what may lie in the place of a lock or of its record -------------------------------------------------------------


def a_giant(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


def from_the_future(path: Path) -> None:
    path.write_text(json.dumps({"pid": 1, "host": "vm", "processStart": 1, "timestamp": 4102488000000}))
    os.utime(path, (4102488000, 4102488000))


def a_link(path: Path) -> None:
    precious = path.parent / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)


ODD: dict[str, Callable[[Path], object]] = {
    "empty": Path.touch,
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 64),
    "nested": lambda path: path.write_text("[" * 100_000),
    "wrong types": lambda path: path.write_text('{"pid": "1", "host": 2, "processStart": [], "timestamp": null}'),
    "huge numbers": lambda path: path.write_text(
        '{"pid": 7, "host": "h", "processStart": 1, "timestamp": 1%s}' % ("0" * 400)
    ),
    "giant": a_giant,
    "future": from_the_future,
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "inside").mkdir(parents=True),
    "link": a_link,
    "dangling": lambda path: path.symlink_to(path.parent / "nowhere"),
    "fifo": lambda path: os.mkfifo(path),
}
IN_THE_WAY = ("folder", "full folder", "link", "dangling")  # of the lock itself: what no lock can be


@pytest.mark.parametrize("odd", ODD)
def test_whatever_lies_in_its_place_the_lock_is_had_or_refused_in_one_line(lock: str, odd: str) -> None:
    place = Path(lock)
    place.parent.mkdir()
    ODD[odd](place)
    if odd in IN_THE_WAY:
        with pytest.raises(StoreError) as refused, locked(lock, SUBJECT, AT_ONCE):
            pass
        assert len(lines(refused.value.line())) == 1
        assert place.name in refused.value.message
    else:
        with locked(lock, SUBJECT, AT_ONCE):
            assert is_held(lock)
    assert not is_held(lock)
    assert not (place.parent / "nowhere").exists()
    if odd == "link":
        assert (place.parent / "precious").read_text() == "precious"


@pytest.mark.parametrize("odd", ODD)
def test_a_free_lock_is_had_whatever_its_record_is(lock: str, odd: str) -> None:
    record = Path(lock + ".json")
    record.parent.mkdir()
    ODD[odd](record)
    with locked(lock, SUBJECT, AT_ONCE):
        if not odd.endswith("folder"):
            assert json.loads(record.read_text())["pid"] == os.getpid()
            assert stat.S_ISREG(record.lstat().st_mode)
    if odd == "link":
        assert (record.parent / "precious").read_text() == "precious"


@pytest.mark.parametrize("odd", ODD)
def test_a_held_lock_stays_held_whatever_its_record_becomes(lock: str, odd: str) -> None:
    record = Path(lock + ".json")
    with locked(lock, SUBJECT, AT_ONCE):
        record.unlink()
        ODD[odd](record)
        with pytest.raises(LockedError) as refused, locked(lock, SUBJECT, AT_ONCE):
            pass
    told = refused.value.line()
    assert len(lines(told)) == 1
    assert told.isprintable()
    assert ("since 2100-01-01" if odd == "future" else "another process") in told


def test_a_fetch_over_bad_lock_files_ends_well_or_with_one_line(home: Path, origin: Origin) -> None:
    url = origin.url("m.bin")
    assert run(home, "fetch", url, "--quiet").returncode == 0
    for place in (home / "locks").iterdir():
        place.unlink()
        place.mkdir()
    shutil.rmtree(home / "models")
    refused = run(home, "fetch", url, "--quiet")
    assert (refused.returncode, len(lines(refused.stderr))) == (6, 1), refused.stderr
    assert "a folder is where a file should be" in refused.stderr


# -- processes --------------------------------------------------------------------------------------------------------


def test_whoever_only_looks_whether_a_lock_is_held_refuses_it_to_nobody(lock: str) -> None:
    Path(lock).parent.mkdir(parents=True, exist_ok=True)
    Path(lock).touch()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.0005):
            is_held(lock)

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    try:
        for _ in range(1000):
            with locked(lock, Subject("m"), Patience(0.0)):
                pass
    finally:
        ended.set()
        for thread in looking:
            thread.join()


def test_a_record_with_a_pid_that_another_process_has_by_now_holds_nothing(lock: str) -> None:
    place = Path(lock)
    place.parent.mkdir()
    mine = Owner.mine()
    fields = {"pid": mine.pid, "host": mine.host, "processStart": mine.start - 1, "timestamp": 1}
    (place.parent / "m.lock.json").write_text(json.dumps(fields))
    assert "process" in str(Holder.of(lock))
    assert "this process" not in str(Holder.of(lock))
    assert f"`kill {mine.pid}`" not in Holder.of(lock).advice()
    with locked(lock, SUBJECT, AT_ONCE):
        assert "this process" in str(Holder.of(lock))


def test_a_killed_holder_holds_nothing(lock: str, begun) -> None:
    begun.append(holder_of(lock))
    with (
        pytest.raises(LockedError, match=rf"m\.bin is in use by process {begun[0].pid} on "),
        locked(lock, SUBJECT, AT_ONCE),
    ):
        pass
    begun[0].kill()
    begun[0].wait()
    with locked(lock, SUBJECT, AT_ONCE):
        pass


FORK = """
import os, sys
from modelcache.store.locks import Patience, Subject, locked
with locked(sys.argv[1], Subject("m", "1", "m.bin"), Patience(0.0)):
    child = os.fork()
    if not child:
        print("forked", flush=True)
        if sys.argv[2] == "stay":
            sys.stdin.readline()
            os._exit(0)
        sys.exit()  # through the end of the block
    os.waitpid(child, 0)
    print("ended", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["", "none"])
def test_a_child_that_was_forked_with_a_lock_held_leaves_it_alone(lock: str, mode: str, shim: Path, begun) -> None:
    begun.append(child(sys.executable, "-c", FORK, lock, "go", LD_PRELOAD=str(shim), FLOCK_SHIM=mode))
    assert [line(begun[0]), line(begun[0])] == ["forked", "ended"]
    assert is_held(lock) or Path(lock + ".lease").exists()
    assert json.loads(Path(lock + ".json").read_text())["pid"] == begun[0].pid


def test_a_child_that_was_forked_with_a_lock_held_does_not_hold_it_when_its_parent_is_killed(lock: str, begun) -> None:
    begun.append(child(sys.executable, "-c", FORK, lock, "stay"))
    assert line(begun[0]) == "forked"
    begun[0].kill()
    begun[0].wait()
    with locked(lock, SUBJECT, AT_ONCE):
        pass


# -- file systems that cannot lock ------------------------------------------------------------------------------------


def test_where_the_kernel_cannot_lock_a_lease_does(home: Path, origin: Origin, shim: Path, begun) -> None:
    hold = Hold(4 * MIB)
    origin.faults(hold)
    command = [sys.executable, "-m", "modelcache", "fetch", origin.url("m.bin")]
    preload = {"MODELCACHE_HOME": str(home), "LD_PRELOAD": str(shim), "FLOCK_SHIM": "none"}
    begun.append(child(*command, **preload))
    assert hold.reached.wait(60)
    assert list((home / "locks").glob("model-*.lock.lease"))
    begun.append(child(*command, MODELCACHE_PROGRESS="text", **preload))
    assert begun[1].stderr is not None
    assert f"waiting for process {begun[0].pid} on " in begun[1].stderr.readline()
    hold.release.set()
    assert [process.wait(60) for process in begun] == [0, 0]
    assert len(origin.requests) == 1
    assert not list((home / "locks").glob("*.lease"))
    check_store(home)


def test_a_lease_of_a_killed_process_of_this_host_is_free_at_once(lock: str, shim: Path, begun) -> None:
    preload = {"LD_PRELOAD": str(shim), "FLOCK_SHIM": "none"}
    begun.append(holder_of(lock, **preload))
    begun[0].kill()
    begun[0].wait()
    began = time.monotonic()
    begun.append(holder_of(lock, **preload))
    assert time.monotonic() - began < 10  # a lease that has to expire takes 18 s


BEAT_S = 0.1


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "m.lock.lease"


def is_had(lease: Lease) -> bool:
    from filelock import Timeout

    try:
        lease.acquire()
    except Timeout:
        return False
    return True


def elsewhere(marker: Path) -> None:
    """The lease of a process of another host, which nobody here can judge."""
    marker.write_text(f"filelock/2\npid=7\nhost=elsewhere\nmode=lease\ntoken=ab\nduration={3 * BEAT_S!r}\n")


@pytest.mark.parametrize("future", [False, True])
def test_a_lease_that_misses_its_beats_is_taken_over_whatever_the_clocks_say(marker: Path, future: bool) -> None:
    elsewhere(marker)
    if future:
        os.utime(marker, (4102488000, 4102488000))
    else:
        os.utime(marker, (0, 0))
    lease = Lease(str(marker), BEAT_S)
    assert not is_had(lease)  # an old date proves nothing, a new one neither
    assert eventually(lambda: is_had(lease))
    lease.release()
    assert not marker.exists()


def test_a_lease_that_beats_is_held(marker: Path) -> None:
    elsewhere(marker)
    lease, end = Lease(str(marker), BEAT_S), time.monotonic() + 10 * BEAT_S
    while time.monotonic() < end:
        os.utime(marker)
        assert not is_had(lease)


def test_the_lease_of_a_live_holder_beats(marker: Path) -> None:
    mine, other = Lease(str(marker), BEAT_S), Lease(str(marker), BEAT_S)
    assert is_had(mine)
    assert not eventually(lambda: is_had(other), 10 * BEAT_S)
    mine.release()
    assert is_had(other)
    other.release()


@pytest.mark.parametrize("odd", ODD)
def test_whatever_lies_in_its_place_a_lease_is_had_in_the_end_or_refused(marker: Path, odd: str) -> None:
    ODD[odd](marker)
    lease = Lease(str(marker), BEAT_S)
    if odd.endswith("folder"):
        with pytest.raises(IsADirectoryError):
            lease.acquire()
    else:
        assert eventually(lambda: is_had(lease))
        lease.release()
    if odd == "link":
        assert (marker.parent / "precious").read_text() == "precious"


NFS = f"""
import sys
import threading
from filelock import Timeout
from modelcache.store.lease import Lease
lease = Lease(sys.argv[1], {BEAT_S})
while True:
    try:
        lease.acquire()
        break
    except Timeout:
        pass
print("had")
"""


def test_a_dead_lease_is_taken_over_where_names_cannot_be_swapped(marker: Path, shim: Path, begun) -> None:
    elsewhere(marker)
    begun.append(child(sys.executable, "-c", NFS, str(marker), LD_PRELOAD=str(shim), FLOCK_SHIM="nfs"))
    output, errors = begun[0].communicate(timeout=60)
    assert output.strip() == "had", errors


# -- file systems that lie, and other hosts ---------------------------------------------------------------------------


def test_where_every_lock_is_granted_bytes_stay_right(home: Path, origin: Origin, shim: Path, begun) -> None:
    command = [sys.executable, "-m", "modelcache", "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet"]
    preload = {"MODELCACHE_HOME": str(home), "LD_PRELOAD": str(shim), "FLOCK_SHIM": "lies"}
    begun += [child(*command, **preload) for _ in range(8)]
    ended = [process.communicate(timeout=60) for process in begun]
    assert [process.returncode for process in begun] == [0] * 8, ended  # who lost the bytes uses the result
    assert [errors for _, errors in ended] == [""] * 8
    check_store(home)
    assert run(home, "fetch", origin.url("m.bin"), "--sha256", FILE.sha256).returncode == 0
    assert run(home, "verify").returncode == 0


def test_who_wakes_up_after_another_has_taken_its_bytes_publishes_nothing_wrong(
    home: Path, origin: Origin, shim: Path, begun
) -> None:
    hold = Hold(4 * MIB)
    origin.faults(hold)
    command = [sys.executable, "-m", "modelcache", "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet"]
    preload = {"MODELCACHE_HOME": str(home), "LD_PRELOAD": str(shim), "FLOCK_SHIM": "lies"}
    begun.append(child(*command, **preload))
    assert hold.reached.wait(60)
    os.kill(begun[0].pid, signal.SIGSTOP)
    hold.release.set()
    origin.heal()
    begun.append(child(*command, **preload))
    assert begun[1].wait(60) == 0
    check_store(home)
    os.kill(begun[0].pid, signal.SIGCONT)
    _, errors = begun[0].communicate(timeout=60)
    assert len(lines(errors)) <= 1, errors
    check_store(home)
    assert not list((home / "partials").iterdir())


def test_two_hosts_without_locks_share_a_folder(home: Path, origin: Origin, shim: Path, away: list[str], begun) -> None:
    hold = Hold(4 * MIB)
    origin.faults(hold)
    fetch = [sys.executable, "-m", "modelcache", "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet"]
    preload = {"MODELCACHE_HOME": str(home), "LD_PRELOAD": str(shim), "FLOCK_SHIM": "lies"}
    begun.append(child(*away, *fetch, **preload))
    assert hold.reached.wait(60)
    origin.heal()
    begun.append(child(*fetch, **preload))
    assert begun[1].wait(60) == 0
    hold.release.set()
    begun[0].communicate(timeout=60)
    check_store(home)
    assert run(home, "verify").returncode == 0


def test_the_holder_on_another_host_is_named(lock: str, away: list[str], begun) -> None:
    begun.append(child(*away, sys.executable, "-c", HOLD, lock))
    assert line(begun[0]) == "held"
    with (
        pytest.raises(LockedError, match=r"in use by process .* on 'elsewhere'") as refused,
        locked(lock, SUBJECT, AT_ONCE),
    ):
        pass
    assert "kill" not in refused.value.next_step
    begun[0].communicate("\n", timeout=60)


WATCH = """
import sys, time
from modelcache.store.locks import Lookout
lookout, end = Lookout(beat_s=0.1), time.monotonic() + 20
print(lookout.is_held(sys.argv[1]), flush=True)
while lookout.is_held(sys.argv[1]) and time.monotonic() < end:
    time.sleep(0.02)
print(lookout.is_held(sys.argv[1]), flush=True)
"""


def test_a_silent_lease_of_nobody_knows_whom_is_held_no_more_once_it_was_watched(lock: str, shim: Path, begun) -> None:
    Path(lock).parent.mkdir()
    Path(lock).touch()
    Path(lock + ".lease").write_text("a marker of a host that is gone")
    begun.append(child(sys.executable, "-c", WATCH, lock, LD_PRELOAD=str(shim), FLOCK_SHIM="none"))
    assert [line(begun[0]), line(begun[0])] == ["True", "False"]
