"""Any sequence of changes to a queue while real processes work it off, are interrupted and killed: nothing is lost."""

import json
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from crash import begin, catches_signals, check_store, eventually, locks_held, run
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcache.caching import Cache
from modelcache.errors import LockedError, UsageError
from modelcache.queueing import Queue
from modelcache.testing import Content, Origin, Slow, Status

FILES = {f"{name}.bin": Content.generated(150_000 + number, seed=number) for number, name in enumerate("abcdef")}
MOST_RUNNERS = 2
PACE = 600_000  # bytes/s, so that there is something to interrupt
PLACES = st.integers(0, len(FILES) - 1)


class QueueRuns(RuleBasedStateMachine):
    """`wanted` is what was put in and not taken out: it is in the queue, or its file is here."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.origin = Origin(FILES, faults=[Slow(PACE)])
        self.cache = Cache(self.home)
        self.queue = Queue(self.cache)
        self.wanted: dict[str, str] = {}
        self.runners: list[subprocess.Popen[str]] = []

    @initialize()
    def fill(self) -> None:
        for name in FILES:
            self.add(name, 0)
        self.start(1)

    # -- what people do -----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(sorted(FILES)), priority=st.integers(-1, 1))
    def add(self, name: str, priority: int) -> None:
        self.wanted[self.queue.add(self.origin.url(name), sha256=FILES[name].sha256, priority=priority)] = name

    @precondition(lambda self: self.wanted)
    @rule(place=PLACES)
    def remove(self, place: int) -> None:
        entry = self.some(place)
        with suppress(UsageError):  # it has been fetched
            self.queue.remove(entry)
        self.wanted.pop(entry)

    @precondition(lambda self: self.wanted)
    @rule(place=PLACES, before=PLACES, priority=st.integers(-1, 1))
    def reorder(self, place: int, before: int, priority: int) -> None:
        with suppress(UsageError):
            self.queue.move(self.some(place), before=self.some(before))
            self.queue.prioritize(self.some(place), priority)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.queue.pause() if paused else self.queue.resume()

    @precondition(lambda self: self.wanted)
    @rule(place=PLACES)
    def cancel(self, place: int) -> None:
        """What somebody fetches just now stays."""
        name = self.wanted[self.some(place)]
        for row in self.cache.downloads():
            if row["source"] == self.origin.url(name) and row["status"] != "success":
                with suppress(LockedError):
                    if self.cache.cancel(row["id"]).status != "success":
                        self.wanted = {entry: other for entry, other in self.wanted.items() if other != name}

    @rule(name=st.sampled_from(sorted(FILES)))
    def fail_once(self, name: str) -> None:
        self.origin.faults(Status(404, times=1), path=name)

    @rule()
    def retry(self) -> None:
        for row in self.queue.entries():
            if row["status"] == "failed":
                self.queue.retry(row["id"])

    # -- who works it off ---------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.runners) < MOST_RUNNERS)
    @rule(more=st.integers(1, 200_000))
    def start(self, more: int) -> None:
        self.runners.append(begin(self.home, "queue", "run", "--quiet", "--json"))
        self.let_them_work(more)

    @precondition(lambda self: self.runners)
    @rule(more=st.integers(1, 200_000))
    def let_them_work(self, more: int) -> None:
        """Until so many bytes more have been served, or nobody works any more."""
        enough = self.served() + more
        assert eventually(lambda: self.served() >= enough or all(one.poll() is not None for one in self.runners))

    @precondition(lambda self: self.runners)
    @rule(number=st.sampled_from([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
    def end(self, number: signal.Signals) -> None:
        runner = self.runners.pop(0)
        assert catches_signals(runner)
        runner.send_signal(number)
        _, errors = runner.communicate(timeout=30)
        assert "Traceback" not in errors, errors

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        rows = list(self.queue.entries())
        waiting = {row["id"] for row in rows}
        assert waiting <= set(self.wanted)
        for entry, name in self.wanted.items():
            assert entry in waiting or self.is_here(name), f"{name} is neither in the queue nor here"
        assert sum(row["status"] == "running" for row in rows) <= self.cache.settings.parallel_models

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            for runner in self.runners:
                runner.kill()
                runner.communicate()
            self.cache.close()
            self.origin.close()
            shutil.rmtree(self.home)

    def finish(self) -> None:
        """However it was left: one more run fetches all that is wanted."""
        while self.runners:
            self.end(signal.SIGINT)
        self.origin.heal()
        self.queue.resume()
        self.retry()
        done = run(self.home, "queue", "run", "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), list)
        assert len(self.queue) == 0
        assert all(self.is_here(name) for name in self.wanted.values())
        check_store(self.home)
        assert not locks_held(self.home)

    # -- looking ------------------------------------------------------------------------------------------------------

    def some(self, place: int) -> str:
        return list(self.wanted)[place % len(self.wanted)]

    def served(self) -> int:
        return sum(seen.bytes_sent for seen in self.origin.requests)

    def is_here(self, name: str) -> bool:
        sha256 = FILES[name].sha256
        return (self.home / "blobs/sha256" / sha256[:2] / sha256).exists()


def settings_for(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


class TestAFewRuns(QueueRuns.TestCase):  # type: ignore[misc, name-defined]
    settings = settings_for(6, 20)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
class TestManyRuns(QueueRuns.TestCase):  # type: ignore[misc, name-defined]
    settings = settings_for(60, 25)
