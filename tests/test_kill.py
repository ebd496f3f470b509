"""Killed at any moment: nothing unverified is visible, and the next run goes on from what is here (I1, I10, I16).

Real processes, real signals, a real server. The moments are drawn from a seed: by what the origin has sent, or by time.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from crash import (
    MIB,
    begin,
    check_store,
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

from modelcache.testing import Content, Hold, Origin, Slow

FILE = Content.generated(24 * MIB + 4321, seed=21)
RATE = 32 * MIB  # bytes/s: a second or so for the whole file
KILLS = 6  # of each campaign
GATHERED = 256 << 10  # what a reader holds before it writes


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE}) as serving:
        yield serving


def fetch(origin: Origin, *more: str) -> list[str]:
    return ["fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet", *more]


def served(origin: Origin) -> int:
    return sum(seen.bytes_sent for seen in origin.requests)


def first_offset(origin: Origin, earlier: int) -> int | None:
    """Where the first request after so many earlier ones begins."""
    later = origin.requests[earlier:]
    if not later:
        return None
    asked = later[0].range
    return int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0


# -- at random moments ------------------------------------------------------------------------------------------------


class Campaign:
    """Kills the same command again and again, and looks each time."""

    def __init__(self, origin: Origin, folder: Path, seed: int, duration_s: float) -> None:
        self.origin = origin
        self.home = folder / "home"
        self.output = folder / "out/m.bin"
        self.dice = random.Random(seed)
        self.duration_s = duration_s
        more = [[], ["--output", str(self.output)], ["--output", str(self.output), "--no-cache"]][seed % 3]
        self.arguments = fetch(origin, *more)
        self.base = self.output.parent / ".m.bin.modelcache" if seed % 3 == 2 else self.home / "partials"
        self.kills = 0

    def kill_once(self) -> None:
        earlier, kept, whole = len(self.origin.requests), partial_bytes(self.base), self.is_whole()
        child = begin(self.home, *self.arguments)
        self._await_moment(child)
        child.kill()
        _, said = child.communicate(timeout=30)
        assert child.returncode in (0, -signal.SIGKILL), said
        self.kills += child.returncode != 0
        self.check()
        self.check_resumed(earlier, kept, whole)

    def _await_moment(self, child: "subprocess.Popen[str]") -> None:
        """Half of the moments by bytes, up to the last of them; half by time, up to the end of a whole run."""
        if self.dice.random() < 0.5:
            left = FILE.size - partial_bytes(self.base)
            enough = served(self.origin) + self.dice.randint(1, min(left, 2 * FILE.size // KILLS) if left else 1)
            eventually(lambda: served(self.origin) >= enough or child.poll() is not None)
            return
        with suppress(subprocess.TimeoutExpired):
            child.wait(self.dice.uniform(0, self.duration_s))

    def is_whole(self) -> bool:
        """Whether all bytes are proven and in place: nothing is to be fetched any more."""
        return self.output.exists() or any(path.name == FILE.sha256 for path in files_below(self.home / "blobs"))

    def check(self) -> None:
        check_store(self.home)
        if self.output.exists():
            assert sha256_of(self.output) == FILE.sha256

    def check_resumed(self, earlier: int, kept: int, whole: bool) -> None:
        """Of what was on the disk at the kill, at most 1 MiB was asked for again (I10)."""
        offset = first_offset(self.origin, earlier)
        if offset is not None:
            assert not whole, "it was here already"
            assert offset >= kept - MIB

    def finish(self) -> None:
        earlier, kept, whole = len(self.origin.requests), partial_bytes(self.base), self.is_whole()
        done = run(self.home, *self.arguments)
        assert (done.returncode, done.stderr) == (0, "")
        self.check()
        self.check_resumed(earlier, kept, whole)
        assert sha256_of(Path(done.stdout.strip())) == FILE.sha256
        assert not leftovers(self.home, self.output.parent)

    def begin_anew(self) -> None:
        """The run was faster than the kill."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.output.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def duration_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Of a run that nobody disturbs."""
    with Origin({"m.bin": FILE}, faults=[Slow(RATE)]) as origin:
        began = time.monotonic()
        assert run(tmp_path_factory.mktemp("undisturbed"), *fetch(origin)).returncode == 0
        return time.monotonic() - began


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (0, 1, 3, 4))])
def test_killed_at_random_moments_it_goes_on_each_time(
    origin: Origin, tmp_path: Path, duration_s: float, seed: int
) -> None:
    origin.faults(Slow(RATE))
    campaign = Campaign(origin, tmp_path, seed, duration_s)
    runs, budget = 0, FILE.size
    while campaign.kills < KILLS and runs < 5 * KILLS:
        runs += 1
        if campaign.is_whole():
            campaign.begin_anew()
            budget += FILE.size
        campaign.kill_once()
    campaign.finish()
    assert campaign.kills == KILLS
    assert served(origin) <= budget + (runs + 1) * 2 * MIB, "1 MiB a kill, and what was in the sockets"


@pytest.mark.parametrize("offset", [1, MIB - 1, 7 * MIB + 700_001, 16 * MIB + 1_048_575, FILE.size - 1])
def test_a_kill_costs_at_most_one_mib_of_what_has_arrived(origin: Origin, home: Path, offset: int) -> None:
    hold = Hold(offset)
    origin.faults(hold)
    child = begin(home, *fetch(origin))
    assert hold.reached.wait(60)
    assert eventually(lambda: partial_bytes(home / "partials") > offset - GATHERED)
    child.kill()
    child.communicate(timeout=30)
    check_store(home)

    origin.heal()
    earlier, before = len(origin.requests), served(origin)
    assert run(home, *fetch(origin)).returncode == 0
    resumed_at = first_offset(origin, earlier)
    assert resumed_at is not None and offset - MIB <= resumed_at <= offset
    assert served(origin) - before <= FILE.size - offset + MIB


@pytest.mark.parametrize("times", range(3))
def test_a_kill_after_the_last_byte_costs_nothing(origin: Origin, home: Path, times: int) -> None:
    """While the follower hashes, or the blob gets its name: whichever the kill meets."""
    child = begin(home, *fetch(origin))
    assert eventually(lambda: partial_bytes(home / "partials") == FILE.size or child.poll() is not None)
    child.kill()
    child.communicate(timeout=30)
    check_store(home)
    before = served(origin)
    assert run(home, *fetch(origin)).returncode == 0
    assert served(origin) - before <= MIB


# -- repair -----------------------------------------------------------------------------------------------------------


def rot(path: Path, offset: int) -> str:
    """Changes some bytes in place, as a disk does. Returns the digest of what it is now."""
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"rotten")
    path.chmod(0o444)
    return sha256_of(path)


def fetched_and_rotten(origin: Origin, home: Path) -> tuple[Path, str]:
    """A blob with a wrong piece, known to be wrong, and what it is now."""
    assert run(home, *fetch(origin)).returncode == 0
    assert run(home, "verify").returncode == 0, "notes the digests of its pieces"
    (blob,) = files_below(home / "blobs")
    rotten = rot(blob, 10 * MIB)
    assert run(home, "verify").returncode == 3
    return blob, rotten


def recorded(home: Path, start: int) -> int:
    """How far the journals say that bytes of the piece from `start` on were fetched."""
    written = [line.split() for path in (home / "partials").glob("*/journal") for line in path.read_text().splitlines()]
    stops = [int(line[2]) for line in written if line[:1] == ["w"] and start <= int(line[1]) < start + 4 * MIB]
    return max(stops, default=start)


def test_a_repair_that_is_killed_loses_nothing_and_goes_on(origin: Origin, home: Path) -> None:
    blob, rotten = fetched_and_rotten(origin, home)
    before = served(origin)
    for offset in (9 * MIB, 10 * MIB, 11 * MIB):
        hold = Hold(offset, times=1)
        origin.faults(hold)
        child = begin(home, "repair", "--quiet")
        assert hold.reached.wait(60)
        assert eventually(lambda offset=offset: recorded(home, 8 * MIB) >= offset - MIB)  # type: ignore[misc]
        child.kill()
        child.communicate(timeout=30)
        check_store(home, tolerated=[rotten])
    origin.heal()
    again = run(home, "repair", "--quiet")
    assert again.returncode == 0, again.stderr
    check_store(home)
    (model,) = (home / "models").rglob("m.bin")
    assert sha256_of(model) == FILE.sha256
    assert model.samefile(blob)
    assert served(origin) - before <= 4 * MIB + 4 * MIB, "a piece, and 1 MiB for each kill"


# -- signals ----------------------------------------------------------------------------------------------------------

HELD_AT = 11 * MIB + 99_999
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def begin_held(origin: Origin, home: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A fetch that has written all it will get."""
    hold = Hold(HELD_AT)
    origin.faults(hold)
    child = begin(home, *(arguments or fetch(origin)))
    assert hold.reached.wait(60)
    assert eventually(lambda: partial_bytes(home / "partials") > HELD_AT - GATHERED)
    return child


def check_next_run_resumes(origin: Origin, home: Path, at_least: int) -> None:
    check_store(home)
    assert not locks_held(home)
    origin.heal()
    earlier = len(origin.requests)
    again = run(home, *fetch(origin))
    assert (again.returncode, again.stderr) == (0, "")
    resumed_at = first_offset(origin, earlier)
    assert resumed_at is not None and at_least <= resumed_at <= HELD_AT
    assert sha256_of(Path(again.stdout.strip())) == FILE.sha256
    assert not leftovers(home)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_stops_at_once_and_keeps_everything(
    origin: Origin, home: Path, number: signal.Signals, code: int
) -> None:
    child = begin_held(origin, home)
    began = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - began < 4, "2 s are promised"
    assert (child.returncode, out, len(lines(err))) == (code, "", 1), err
    assert "run" in err
    check_next_run_resumes(origin, home, HELD_AT - GATHERED)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_before_the_first_byte(origin: Origin, home: Path, number: signal.Signals, code: int) -> None:
    hold = Hold(0)
    origin.faults(hold)
    child = begin(home, *fetch(origin))
    assert hold.reached.wait(60)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, len(lines(err))) == (code, 1), err
    check_next_run_resumes(origin, home, 0)


@pytest.mark.parametrize("pause_s", [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
def test_a_second_ctrl_c_while_it_cleans_up_leaves_a_valid_state(origin: Origin, home: Path, pause_s: float) -> None:
    child = begin_held(origin, home)
    child.send_signal(signal.SIGINT)
    try:
        child.wait(pause_s)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode in (130, -signal.SIGINT)
    assert len(lines(err)) <= 1, err
    check_next_run_resumes(origin, home, HELD_AT - MIB)


def test_ctrl_c_in_a_repair_is_one_line_and_keeps_everything(origin: Origin, home: Path) -> None:
    blob, rotten = fetched_and_rotten(origin, home)
    hold = Hold(10 * MIB)
    origin.faults(hold)
    child = begin(home, "repair", "--quiet")
    assert hold.reached.wait(60)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert time.monotonic() - began < 4
    assert (child.returncode, len(lines(err))) == (130, 1), err
    check_store(home, tolerated=[rotten])
    assert not locks_held(home)
    origin.heal()
    assert run(home, "repair", "--quiet").returncode == 0
    assert sha256_of(blob) == FILE.sha256


SCRIPT = """
import sys
import modelcache

url, sha256, what = sys.argv[1:]
download = modelcache.Cache().fetch(url, sha256=sha256, wait=False)
if what == "leave":
    sys.stdin.readline()
    sys.exit()
download.result()
"""


def begin_script(origin: Origin, home: Path, what: str) -> "subprocess.Popen[str]":
    hold = Hold(HELD_AT)
    origin.faults(hold)
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, origin.url("m.bin"), FILE.sha256, what],
        env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert hold.reached.wait(60)
    assert eventually(lambda: partial_bytes(home / "partials") > HELD_AT - GATHERED)
    return child


def test_sigterm_of_a_script_with_a_running_download(origin: Origin, home: Path) -> None:
    child = begin_script(origin, home, "wait")
    child.terminate()
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGTERM
    check_next_run_resumes(origin, home, HELD_AT - MIB)


def test_a_script_that_ends_while_its_download_runs_pauses_it(origin: Origin, home: Path) -> None:
    child = begin_script(origin, home, "leave")
    began = time.monotonic()
    _, err = child.communicate("\n", timeout=30)
    assert time.monotonic() - began < 4, "2 s are promised"
    assert (child.returncode, err) == (0, "")
    check_next_run_resumes(origin, home, HELD_AT - GATHERED)


def test_a_stopped_process_does_not_block_the_next_for_ever(origin: Origin, home: Path) -> None:
    """SIGSTOP is no death: the next one waits, says for whom, and gives up when it is told to (I13)."""
    child = begin_held(origin, home)
    os.kill(child.pid, signal.SIGSTOP)
    waiting = run(home, *fetch(origin), MODELCACHE_LOCK_TIMEOUT="0.5")
    assert waiting.returncode == 7
    assert str(child.pid) in waiting.stderr
    assert len(lines(waiting.stderr)) == 1
    child.kill()
    child.communicate(timeout=30)
    check_next_run_resumes(origin, home, HELD_AT - MIB)
