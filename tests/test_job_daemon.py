"""The daemon as a process: killed, stopped, restarted, and beside another one. Its clock stands in a file."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from caches import run as command
from caches import start as started

from modelcache.caching import Cache
from modelcache.jobs.overview import history

TESTS = Path(__file__).parent
NOW = 1_768_010_400.0  # 2026-01-10T02:00Z
SLOT = "20260110T0200Z"
NO_OTHERS = "".join(f"[jobs.{name}]\nenabled = false\n" for name in ("verify", "clean", "publish-metrics"))


def wait_until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


class Lab:
    """A root, its clock, and the daemons that a test starts."""

    def __init__(self, cache: Cache, tmp_path: Path, stack: ExitStack) -> None:
        self.cache, self.folder, self._stack = cache, tmp_path, stack
        self.clock = tmp_path / "clock"
        self.set_clock(NOW - 5)
        Path(cache.root).mkdir(parents=True, exist_ok=True)

    def set_clock(self, moment: float) -> None:
        beside = self.folder / "clock.new"
        beside.write_text(str(moment))
        beside.rename(self.clock)

    def configure(self, *jobs: str) -> None:
        Path(self.cache.root, "modelcache.toml").write_text(NO_OTHERS + "\n".join(jobs))

    def job(self, function: str, cron: str = "0 2 * * *", name: str = "mine", more: str = "") -> str:
        options = f'file = "{self.folder}/{name}"\nuntil = "{self.folder}/until"'
        return f'[jobs.{name}]\nrun = "ownjobs:{function}"\ncron = "{cron}"\n{options}\n{more}\n'

    def start(self, patience_s: float = 60.0, look_every_s: float = 0.1) -> "Process":
        return Process(self, (str(patience_s), str(look_every_s)), self._stack)

    def runs(self, name: str = "mine") -> dict[str, str]:
        return {row["slot"]: row["status"] for row in history(self.cache, name, 100)}

    def wait_for(self, slot: str, status: str, name: str = "mine") -> None:
        wait_until(lambda: self.runs(name).get(slot) == status)

    def pass_slot(self, moment: float, status: str = "ok") -> None:
        """Until what is due at that moment has been run."""
        self.set_clock(moment + 1)
        self.wait_for(time.strftime("%Y%m%dT%H%MZ", time.gmtime(moment)), status)


class Process:
    """A daemon; what it says goes to a file."""

    def __init__(self, lab: Lab, timing: tuple[str, str], stack: ExitStack) -> None:
        self._said = lab.folder / f"said-{time.monotonic_ns()}"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TZ": "UTC"}
        arguments = [sys.executable, str(TESTS / "jobdaemon.py"), str(lab.clock), *timing]
        with open(self._said, "wb") as said:
            self.process = subprocess.Popen(arguments, stderr=said, stdout=said, env=environment)
        stack.callback(self.kill)
        wait_until(lambda: "jobs of " in self.said or self.process.poll() is not None)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def lab(cache: Cache, tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(cache, tmp_path, stack)


def test_two_daemons_run_each_of_twenty_slots_once(lab: Lab) -> None:
    lab.configure(lab.job("count", "0 * * * *"))
    first, second = lab.start(), lab.start()
    lab.wait_for("20260110T0100Z", "ok")  # made up
    for hour in range(19):
        lab.pass_slot(NOW + 3600 * hour)
    assert (first.stop(), second.stop()) == (0, 0)
    counted = (lab.folder / "mine").read_text().splitlines()
    assert len(counted) == len(lab.runs()) == 20
    assert "in use" not in first.said + second.said


def test_a_daemon_that_is_killed_leaves_its_slot_to_the_next(lab: Lab) -> None:
    lab.configure(lab.job("works"))
    killed = lab.start()
    lab.set_clock(NOW + 1)
    wait_until((lab.folder / "mine").exists)
    killed.kill()
    assert lab.runs() == {SLOT: "lost"}
    lab.set_clock(NOW + 600)
    (lab.folder / "mine").unlink()
    again = lab.start()
    wait_until((lab.folder / "mine").exists)
    assert again.stop() == 0
    (row,) = history(lab.cache, "mine")
    assert (row["status"], row["report"]["title"]) == ("stopped", "worked")


def test_a_job_that_kills_its_process_is_tried_twice(lab: Lab) -> None:
    lab.configure(lab.job("dies"), lab.job("count", "1 2 * * *", "other"))
    lab.set_clock(NOW + 1)
    for _ in range(2):
        dying = lab.start()
        assert dying.process.wait(60) == 9
    last = lab.start()
    lab.set_clock(NOW + 120)
    lab.wait_for("20260110T0201Z", "ok", "other")
    assert lab.runs() == {SLOT: "lost"}
    assert last.stop() == 0


def test_a_run_begins_when_it_is_due_though_nobody_looks(lab: Lab) -> None:
    lab.configure(lab.job("count"))
    daemon = lab.start(look_every_s=1000.0)
    lab.pass_slot(NOW)
    assert daemon.stop() == 0


def test_a_clock_that_is_set_back_holds_nothing_up(lab: Lab) -> None:
    lab.configure(lab.job("count"))
    lab.set_clock(NOW + 365 * 86_400 - 5)
    daemon = lab.start()
    lab.pass_slot(NOW + 365 * 86_400)
    lab.set_clock(NOW - 5)
    lab.pass_slot(NOW)
    assert daemon.stop() == 0


def test_a_slot_that_was_missed_is_made_up_once_and_not_after_an_hour(lab: Lab) -> None:
    lab.configure(lab.job("count"))
    lab.set_clock(NOW + 3500)
    late = lab.start()
    lab.wait_for(SLOT, "ok")
    assert late.stop() == 0
    lab.set_clock(NOW + 3550)
    again = lab.start()
    lab.set_clock(NOW + 86_400 + 3700)  # the next day, too late
    lab.pass_slot(NOW + 2 * 86_400)
    assert again.stop() == 0
    assert len((lab.folder / "mine").read_text().splitlines()) == len(lab.runs())
    assert SLOT in lab.runs()


def test_a_restart_does_not_move_the_next_run(lab: Lab) -> None:
    lab.configure(lab.job("count", more="jitter = 1800"))
    lab.set_clock(NOW - 3000)
    plans = []
    for moment in (NOW - 2900, NOW - 100):
        daemon = lab.start()
        plans.append(daemon.said.splitlines()[0])
        assert daemon.stop(signal.SIGINT) == 0
        lab.set_clock(moment)
    assert plans[0] == plans[1] and "mine 2026-01-10 02:" in plans[0]
    assert lab.runs() == {}


def test_whatever_is_wrong_with_one_job_the_others_run_and_it_is_said_once(lab: Lab) -> None:
    lab.configure(
        '[jobs.bad]\nrun = "ownjobs:count"\ncron = "every night"\n',
        lab.job("raises", "0 * * * *", "loud"),
        lab.job("hangs", "0 * * * *", "stuck", "max_runtime = 0.2"),
        lab.job("count", "0 * * * *"),
    )
    state = Path(lab.cache.root, "state")
    state.mkdir(parents=True)
    lab.cache.usage()
    for database in state.glob("*.db"):
        database.write_bytes(b"no database" * 1000)
    daemon = lab.start(0.2)
    wait_until(lambda: "failed" in lab.runs("stuck").values() and "failed" in lab.runs("loud").values())
    for hour in range(5):
        lab.pass_slot(NOW + 3600 * hour)
    lab.set_clock(NOW + 5 * 3600)
    wait_until(lambda: "in use" in daemon.said)
    assert daemon.stop() == 0
    assert daemon.said.count("every night") == 1
    assert daemon.said.count("does not stop") == 1
    assert daemon.said.count("job stuck is in use by this process") == 1
    assert len(lab.runs("stuck")) == 1


def test_a_daemon_that_cannot_claim_says_so_once_and_goes_on_when_it_can(lab: Lab) -> None:
    lab.configure(lab.job("count", "0 * * * *"))
    place = Path(lab.cache.root, "jobs")
    place.write_text("in the way")
    daemon = lab.start()
    for minute in range(3):
        lab.set_clock(NOW + 60 * minute)
        wait_until(lambda: "a file is where a folder should be" in daemon.said)
    place.unlink()
    lab.pass_slot(NOW)
    assert daemon.stop() == 0
    assert daemon.said.count("a file is where a folder should be") == 1


def test_a_daemon_that_is_told_twice_to_stop_ends_at_once(lab: Lab) -> None:
    lab.configure(lab.job("hangs"))
    daemon = lab.start(60.0)
    lab.set_clock(NOW + 1)
    wait_until((lab.folder / "mine").exists)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until((lab.folder / "mine.told").exists)  # a signal that is pending already would be one
    assert daemon.process.poll() is None
    assert daemon.stop() == 143


def test_a_daemon_does_not_wait_for_ever_for_a_job_that_does_not_stop(lab: Lab) -> None:
    lab.configure(lab.job("hangs"))
    daemon = lab.start(0.2)
    lab.set_clock(NOW + 1)
    wait_until((lab.folder / "mine").exists)
    assert daemon.stop() == 0
    assert lab.runs() == {SLOT: "stopped"}


def test_the_command_starts_the_daemon_and_stops_with_0(lab: Lab) -> None:
    lab.configure()
    with started("jobs", "start") as daemon:
        assert daemon.stderr is not None
        said = daemon.stderr.readline()
        assert "none runs by itself; settings count as they are now, until it is started again" in said
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


def test_in_a_notebook_jobs_run_until_they_are_stopped_and_it_is_said_that_they_end_with_it(lab: Lab) -> None:
    lab.configure()
    cell = "import modelcache as mc; jobs = mc.jobs.start(); print(jobs); jobs.stop(); jobs.stop(); print(jobs)"
    done = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True, timeout=60, check=True)
    running, stopped = done.stdout.splitlines()
    assert running == f"jobs of {lab.cache.root}, which end with this process: none runs by itself"
    assert stopped == f"jobs of {lab.cache.root}: stopped"
    assert "which end with this process" in done.stderr


# -- one-shot ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("count", 0, "counted"),
        ("finds", 1, "found"),
        ("raises", 2, "raised ValueError"),
        ("absent", 2, "AttributeError"),
    ],
)
def test_the_exit_code_tells_how_a_run_was(lab: Lab, own_jobs: None, function: str, code: int, words: str) -> None:
    lab.configure(lab.job(function))
    done = command("jobs", "run", "mine")
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True)


@pytest.mark.parametrize(("function", "words"), [("count", ""), ("finds", "rot"), ("raises", "raised ValueError")])
def test_a_quiet_run_prints_only_what_somebody_has_to_know(lab: Lab, own_jobs: None, function: str, words: str) -> None:
    lab.configure(lab.job(function))
    done = command("jobs", "run", "mine", "--quiet")
    printed = done.stdout + done.stderr
    assert (words in printed, bool(printed)) == (True, bool(words))


def test_a_quiet_run_prints_what_was_left_out_and_why_it_was_stopped(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("leaves_out"), lab.job("works", name="long", more="max_runtime = 0.1\n"))
    assert command("jobs", "run", "mine", "--quiet").stdout == "looked: nothing\nleft out: a model\n"
    assert "it took longer than 0.1 s" in command("jobs", "run", "long", "--quiet").stderr


def test_jobs_with_nothing_to_tell_say_so_in_words_that_fit(cache: Cache, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        return command("jobs", *arguments).stdout.strip()

    assert said("history") == "runs of jobs: none yet"
    assert said("run", "verify") == "0 files verified, 0 B: nothing was due"
    (tmp_path / "m.bin").write_bytes(b"weights")
    cache.add(tmp_path / "m.bin", "m")
    everything = ("--set", "share=full", "--set", "older_than=0")
    assert said("run", "verify", *everything) == "1 file verified, 7 B: nothing wrong"
    assert said("run", "refresh") == "what branches and tags mean: no model here has any"
    assert said("run", "mirror") == "mirrored models: none was asked for that is here"
    assert said("run", "clean", "--set", "dry_run=true") == "would be removed: nothing"


def test_rows_of_any_kind_are_printed_after_the_run(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("odd"))
    shown, as_json = command("jobs", "run", "mine"), command("jobs", "run", "mine", "--json")
    assert (shown.returncode, as_json.returncode) == (0, 0)
    assert "12 MB" in shown.stdout and "\x1b" not in shown.stdout
    rows = json.loads(as_json.stdout)["report"]["rows"]
    assert rows == [{"size": "12 MB", "('a',)": "b"}, {"escape": "\x1b[31m"}]


def test_what_could_not_run_ends_with_2(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("count"), '[jobs.bad]\ncron = "x"\nrun = "a:b"\n')
    assert command("jobs", "run", "nope").returncode == 2
    assert command("jobs", "run").returncode == 2
    wrong = command("jobs", "run", "bad", "--json")
    assert wrong.returncode == 2 and "[jobs.bad]" in wrong.stderr and '"kind": "usage"' in wrong.stdout
    assert command("jobs", "run", "mine", "--slot", SLOT).returncode == 0
    again = command("jobs", "run", "mine", "--slot", SLOT)
    assert again.returncode == 2 and "has been run" in again.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_prints_its_partial_report(lab: Lab, own_jobs: None, number: int, code: int) -> None:
    lab.configure(lab.job("works"))
    with started("jobs", "run", "mine") as run:
        wait_until((lab.folder / "mine").exists)
        run.send_signal(number)
        printed, said = run.communicate(timeout=60)
    assert (run.returncode, printed.splitlines()[0]) == (code, "worked")
    assert "stopped" in said and "Traceback" not in said
    assert list(lab.runs().values()) == ["stopped"]


def test_options_come_from_the_file_and_from_the_command(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("count"))
    place = lab.folder / "elsewhere"
    assert command("jobs", "run", "mine", "--set", f'file="{place}"').returncode == 0
    assert command("jobs", "run", "mine", "--set", f"file={place}").returncode == 0
    assert len(place.read_text().splitlines()) == 2 and not (lab.folder / "mine").exists()
    assert command("jobs", "run", "verify", "--set", "shar=1").returncode == 2


def test_list_tells_when_jobs_run_how_they_were_and_what_is_wrong(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("finds"), '[jobs.bad]\ncron = "every night"\nrun = "a:b"\n')
    command("jobs", "run", "mine")
    shown = command("jobs", "list").stdout
    (mine,) = [line for line in shown.splitlines() if line.startswith("mine ")]
    assert "0 2 * * *" in mine and "02:00" in mine and "findings" in mine
    assert "[jobs.bad]: cron = 'every night'" in shown
    (line,) = command("jobs", "history").stdout.splitlines()[2:]
    assert line.split()[0] == "mine" and "findings" in line
    assert command("jobs", "history", "nope").returncode == 2


def test_list_shows_wrong_options_and_the_daemon_says_them_once(lab: Lab, own_jobs: None) -> None:
    lab.configure('[jobs.mirror]\ncron = "0 2 * * *"\ntop = -1\n', lab.job("count"))
    assert "[jobs.mirror]: top = -1" in command("jobs", "list").stdout
    daemon = lab.start()
    lab.pass_slot(NOW)
    assert daemon.stop() == 0
    assert daemon.said.count("top = -1") == 1
    assert lab.runs("mirror") == {}


def test_a_run_that_took_too_long_ends_with_2_and_its_partial_report(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("works", more="max_runtime = 0.2"))
    done = command("jobs", "run", "mine")
    assert (done.returncode, done.stdout.splitlines()[0]) == (2, "worked")
    assert "stopped: it took longer than 0.2 s" in done.stderr
    assert list(lab.runs().values()) == ["stopped"]


@pytest.mark.parametrize(
    "words", [("start", "nope"), ("list", "nope"), ("history", "--last", "0"), ("history", "--last", "-3")]
)
def test_what_means_nothing_is_refused_with_2(lab: Lab, own_jobs: None, words: tuple[str, ...]) -> None:
    lab.configure()
    with started("jobs", *words) as process:
        timer = threading.Timer(20, process.kill)
        timer.start()
        process.communicate()
        timer.cancel()
    assert process.returncode == 2


def test_what_has_not_been_is_null(lab: Lab, own_jobs: None) -> None:
    lab.configure()
    rows = json.loads(command("jobs", "list", "--json").stdout)
    assert {(row["next_at"], row["last_at"]) for row in rows} == {(None, None)}
    assert "1970" not in command("jobs", "list").stdout


def test_findings_are_said_once_in_the_log(lab: Lab, own_jobs: None) -> None:
    lab.configure(lab.job("finds"))
    assert command("jobs", "run", "mine").stderr.strip().endswith("Z: 1 finding")
