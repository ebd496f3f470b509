"""The demo: it tells the truth, leaves nothing behind, and fails when something does not happen as announced."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelcache.demo import play
from modelcache.demostage import CUT, WEIGHTS, Stage, staged
from modelcache.testing import CutAt

ROOT = Path(__file__).resolve().parent.parent
LONGEST_S = 30


def empty(machine: Path) -> Path:
    """A machine with a home and a folder for temporary files."""
    for name in ("home", "tmp"):
        (machine / name).mkdir()
    return machine


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return empty(tmp_path)


def begin(home: Path, **environment: str) -> "subprocess.Popen[str]":
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MODELCACHE_", "XDG_"))}
    folders = {"HOME": str(home / "home"), "TMPDIR": str(home / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "modelcache", "demo"], cwd=ROOT, env=plain | folders | environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def left(home: Path) -> list[Path]:
    return [path for name in ("home", "tmp") for path in (home / name).rglob("*")]


@dataclass(frozen=True)
class Told:
    """One demo from its beginning to its end."""

    code: int
    out: str
    err: str
    seconds: float
    left: list[Path]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """With an environment that must not matter: a proxy that leads nowhere, settings that change everything."""
    home, nobody, began = empty(tmp_path_factory.mktemp("machine")), "http://127.0.0.1:9", time.monotonic()
    child = begin(
        home, http_proxy=nobody, HTTP_PROXY=nobody, MODELCACHE_RESUME_THRESHOLD="1", MODELCACHE_CONNECTIONS="4"
    )
    out, err = child.communicate(timeout=2 * LONGEST_S)
    return Told(child.returncode, out, err, time.monotonic() - began, left(home))


def test_the_whole_story_is_told_in_time(told: Told) -> None:
    assert told.code == 0, told.out + told.err
    assert told.seconds < LONGEST_S
    assert "All of it happened" in told.out.splitlines()[-1]
    for line in ("30,203,309 bytes are here already", "liar: piece", "cutter: the connection was reset"):
        assert line in told.err
    assert "Traceback" not in told.err


def test_nothing_stays_behind(told: Told) -> None:
    assert told.left == []


def test_it_fits_a_hundred_columns(told: Told) -> None:
    assert max(map(len, (told.out + told.err).splitlines())) <= 100


def test_the_table_has_a_row_for_each_thing_that_happened(told: Told) -> None:
    table = told.out.partition("What happened:\n")[2].partition("\n\n")[0].splitlines()
    assert " ".join(table[0].split()) == "# file what happened servers (! lied) fetched was here time"
    assert max(map(len, table)) <= 80
    assert [row.split()[0] for row in table[1:]] == ["1", "1", "1", "1", "2", "2", "3", "4", "5"]
    resumed = next(row for row in table if row.split()[0] == "2")
    for cell in ("resumed", "cutter", "liar!", "slow", "28.8 MiB"):
        assert cell in resumed
    assert "1.0 MiB" in table[-1] and "47.0 MiB" in table[-1]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_it_leaves_nothing(home: Path, stop: signal.Signals, code: int) -> None:
    child = begin(home)
    assert child.stdout is not None and child.stderr is not None
    while "1. Fetch" not in child.stdout.readline():
        assert child.poll() is None
    child.stderr.readline()  # bytes move
    child.send_signal(stop)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert "demo: stopped" in err and "Traceback" not in err
    assert left(home) == []


def no_cut(stage: Stage) -> None:
    stage.servers["cutter"].heal()


def no_lie(stage: Stage) -> None:
    fast_cutter(stage)
    stage.servers["liar"].heal()


def nobody_else(stage: Stage) -> None:
    fast_cutter(stage)
    stage.servers["liar"].stop()
    stage.servers["slow"].stop()


def fast_cutter(stage: Stage) -> None:
    stage.servers["cutter"].heal()
    stage.servers["cutter"].faults(CutAt(CUT), path=WEIGHTS)


@pytest.mark.parametrize(
    ("sabotage", "line"),
    [
        (no_cut, "demo: not as announced: the server cutter did not break the connection"),
        (no_lie, "demo: not as announced: the server liar was not caught"),
        (nobody_else, "demo: it cannot go on: "),
    ],
)
def test_what_does_not_happen_as_announced_is_said(
    sabotage: Callable[[Stage], None], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with staged() as stage:
        sabotage(stage)
        code = play(stage)
    out, err = capsys.readouterr()
    assert code != 0
    assert err.splitlines()[-1].startswith(line)
    assert "What happened:" not in out
