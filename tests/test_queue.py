"""The queue: what waits survives, the most urgent comes first, and many processes share it."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import run, start
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from modelcache.cache import Cache
from modelcache.errors import ModelNotAvailableError, StoreError, UsageError
from modelcache.queueing import Ended, Queue
from modelcache.store.owner import Owner
from modelcache.store.waitlist import Waitlist
from modelcache.testing import Content, Hold, Origin, Slow, Status

FILES = {f"{name}.bin": Content.generated(300_000 + number, seed=number) for number, name in enumerate("abcdefgh")}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(FILES) as origin:
        yield origin


@pytest.fixture
def cache(cache_root: Path) -> Iterator[Cache]:
    cache = Cache(cache_root, backoff=0.01)
    yield cache
    cache.close()


@pytest.fixture
def waitlist(cache: Cache) -> Waitlist:
    return Waitlist(*cache.queue_paths)


def finished(queue: Queue) -> list[str]:
    """Runs the queue until it is empty; the names in the order in which they ended."""
    told: list[Ended] = []
    queue.run(progress=False, ended=told.append)
    return [entry.ref.rpartition("/")[2].removesuffix(".bin") for entry in told]


def names(queue: Queue) -> str:
    return "".join(row["ref"].rpartition("/")[2][0] for row in queue.entries())


# ---- order


def test_what_is_added_is_fetched_and_leaves_the_queue(cache, origin) -> None:
    queue, told = Queue(cache), []
    queue.add(origin.url("a.bin"), sha256=FILES["a.bin"].sha256)
    queue.run(progress=False, ended=told.append)
    assert (len(queue), told[0].error) == (0, None)
    assert Path(str(told[0].result)).read_bytes() == FILES["a.bin"].read()


def test_the_most_urgent_comes_first_then_whoever_came_first(cache_root, origin) -> None:
    queue = Queue(Cache(cache_root, parallel_models=1))
    for name, priority in [("a", 0), ("b", 0), ("c", 5), ("d", -1), ("e", 5)]:
        queue.add(origin.url(f"{name}.bin"), priority=priority)
    assert names(queue) == "ceabd"
    assert finished(queue) == list("ceabd")


def test_places_can_be_changed(cache, origin) -> None:
    queue = Queue(cache)
    ids = {name: queue.add(origin.url(f"{name}.bin")) for name in "abcd"}
    queue.move(ids["d"], before=ids["b"])
    assert names(queue) == "adbc"
    queue.prioritize(ids["c"], 1)
    assert names(queue) == "cadb"
    queue.move(ids["b"], before=ids["c"])
    assert names(queue) == "bcad"
    queue.remove(ids["a"])
    assert names(queue) == "bcd"
    queue.move(ids["b"], before=ids["b"])
    assert names(queue) == "bcd"


def test_what_is_in_is_not_added_twice_but_may_become_more_urgent(cache, origin) -> None:
    queue = Queue(cache)
    first = queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    assert queue.add(origin.url("a.bin"), priority=-3) == first
    assert names(queue) == "ab"
    assert queue.add(origin.url("b.bin"), priority=3)
    assert names(queue) == "ba"


# ---- running


def test_no_more_than_allowed_are_fetched_at_the_same_time(cache_root, origin) -> None:
    holds = [Hold(100_000) for _ in range(3)]
    for name, hold in zip("abc", holds, strict=True):
        origin.faults(hold, path=f"{name}.bin")
    queue = Queue(Cache(cache_root, parallel_models=2))
    for name in "abc":
        queue.add(origin.url(f"{name}.bin"))
    queue.start()
    assert holds[0].reached.wait(20)
    assert holds[1].reached.wait(20)
    assert [row["status"] for row in queue.entries()] == ["running", "running", "waiting"]
    assert not holds[2].reached.is_set()
    for hold in holds:
        hold.release.set()
    assert holds[2].reached.wait(20)
    queue.run(progress=False)
    queue.stop()
    assert len(queue) == 0


def test_a_pause_holds_everything_and_keeps_the_bytes(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    cache = Cache(cache_root, connections=1)
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    queue.start()
    assert hold.reached.wait(20)
    queue.pause()
    queue.run(progress=False)  # comes back: nothing is fetched while it is paused
    queue.stop()
    assert "a" in names(queue)
    assert queue.is_paused
    hold.release.set()
    queue.resume()
    assert "a" in finished(queue)
    assert origin.requests[-1].range != "bytes=0-"
    assert len(queue) == 0


def test_what_is_taken_out_while_it_is_fetched_ends(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    queue = Queue(Cache(cache_root))
    entry = queue.add(origin.url("a.bin"))
    queue.start()
    assert hold.reached.wait(20)
    queue.remove(entry)
    queue.run(progress=False)
    queue.stop()
    assert len(queue) == 0
    hold.release.set()


def test_one_that_fails_says_why_and_waits_for_another_try(cache, origin) -> None:
    origin.faults(Status(404, times=1), path="a.bin")
    queue = Queue(cache)
    entry = queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    assert sorted(finished(queue)) == ["a", "b"]
    (row,) = queue.entries()
    assert (row["status"], row["id"]) == ("failed", entry)
    assert "404" in row["error"]
    assert finished(queue) == []
    queue.retry(entry)
    assert finished(queue) == ["a"]


def test_many_models_at_once(cache_root, origin) -> None:
    queue = Queue(Cache(cache_root, parallel_models=8))
    for name in "abcdefgh":
        queue.add(origin.url(f"{name}.bin"), sha256=FILES[f"{name}.bin"].sha256)
    assert sorted(finished(queue)) == list("abcdefgh")


# ---- processes


def test_a_killed_process_leaves_its_entry_to_the_next(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    first = start("fetch", "--queue", origin.url("a.bin"), origin.url("b.bin"), "--quiet")
    try:
        assert hold.reached.wait(20)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(10)
        hold.release.set()
        first.communicate()
    done = run("fetch", "--queue", "--quiet")
    assert done.returncode == 0
    assert "a.bin" in done.stdout
    assert len(Queue(Cache(cache_root))) == 0


def test_an_interrupted_run_keeps_what_waits(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    first = start("fetch", "--queue", origin.url("a.bin"), "--quiet")
    assert hold.reached.wait(20)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=20)
    hold.release.set()
    assert first.returncode == 130
    assert "Traceback" not in errors
    assert [row["status"] for row in Queue(Cache(cache_root)).entries()] == ["waiting"]


def test_two_processes_share_one_queue_and_fetch_nothing_twice(cache_root, origin) -> None:
    origin.faults(Slow(2_000_000))
    queue = Queue(Cache(cache_root))
    for name in "abcdefgh":
        queue.add(origin.url(f"{name}.bin"))
    both = [start("queue", "run", "--quiet", "--json") for _ in range(2)]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(row["ref"][-5] for rows in told for row in rows) == list("abcdefgh")
    assert len([seen for seen in origin.requests if seen.range is None]) == len(FILES)


# ---- the command


def test_the_queue_is_seen_and_changed_by_the_command(cache_root, origin) -> None:
    queue = Queue(Cache(cache_root))
    first, second = (queue.add(origin.url(f"{name}.bin")) for name in "ab")
    assert "waiting" in run("queue").stdout
    assert run("queue", "priority", second, "--priority", "3").returncode == 0
    assert names(queue) == "ba"
    assert run("queue", "move", first, "--before", second).returncode == 0
    assert names(queue) == "ab"
    assert run("queue", "pause").returncode == 0
    paused = run("queue", "run")
    assert (paused.returncode, "the queue is paused, 2 wait" in paused.stderr) == (0, True)
    assert run("queue", "resume").returncode == 0
    assert run("queue", "rm", first).returncode == 0
    assert names(queue) == "b"


@pytest.mark.parametrize(
    "words",
    [("rm",), ("rm", "nothing"), ("priority", "x"), ("move", "x"), ("move", "x", "--before", "y"), ("jump",)],
)
def test_what_cannot_be_meant_is_a_usage_error(cache_root, words) -> None:
    done = run("queue", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_headers_are_not_kept(origin, cache_root) -> None:
    done = run("fetch", "--queue", origin.url("a.bin"), "--header", "Authorization: Bearer s3cret")
    assert done.returncode == 2
    assert "s3cret" not in done.stderr
    assert not (cache_root / "queue.json").exists()


# ---- the file


def test_a_query_is_kept_for_its_owner_alone_and_never_shown(cache, cache_root, origin) -> None:
    queue = Queue(cache)
    queue.add(origin.url("a.bin") + "?signature=s3cret")
    assert (cache_root / "queue.json").stat().st_mode & 0o777 == 0o600
    assert "s3cret" not in str(queue.entries()) + str(list(queue.entries()))
    assert finished(queue) == ["a"]
    assert "s3cret" not in (cache_root / "queue.json").read_text()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 100, b"[]", b'{"entries": 3}', b'{"format": 1, "entries": [1, null, {}, "x"]}', b"[" * 100_000,
        b'{"format": 1, "entries": [{"id": 1}], "paused": "yes"}', b'{"format": "x", "entries": []}',
    ],
)  # fmt: skip
def test_a_garbled_file_counts_as_empty(cache, cache_root, origin, content) -> None:
    cache_root.mkdir(exist_ok=True)
    (cache_root / "queue.json").write_bytes(content)
    queue = Queue(cache)
    assert len(queue) == 0
    queue.add(origin.url("a.bin"))
    assert finished(queue) == ["a"]


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_something_else_in_its_place_is_told_or_replaced(cache_root, origin, tmp_path, kind) -> None:
    cache_root.mkdir(exist_ok=True)
    place = cache_root / "queue.json"
    other = tmp_path / "mine"
    other.write_text("mine")
    {"folder": place.mkdir, "link": lambda: place.symlink_to(other), "fifo": lambda: os.mkfifo(place)}[kind]()
    done = run("fetch", "--queue", origin.url("a.bin"), "--quiet")
    assert done.returncode in (0, 6)
    assert "Traceback" not in done.stderr
    assert other.read_text() == "mine"


def test_a_newer_file_is_left_alone(cache, cache_root, origin) -> None:
    cache_root.mkdir(exist_ok=True)
    (cache_root / "queue.json").write_text('{"format": 2, "entries": []}')
    with pytest.raises(StoreError, match="newer modelcache"):
        Queue(cache).add(origin.url("a.bin"))
    assert json.loads((cache_root / "queue.json").read_text())["format"] == 2


def test_a_request_that_is_garbled_fails_alone(cache, waitlist, origin) -> None:
    waitlist.add("https://host/x", "garbage", 9)
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    assert sorted(finished(queue)) == ["a", "x"]
    (row,) = queue.entries()
    assert "not known any more" in row["error"]


@pytest.mark.parametrize("priority", [10**9, -(10**9)])
def test_a_priority_beyond_all_measure_is_refused(cache, origin, priority) -> None:
    with pytest.raises(UsageError, match="priority"):
        Queue(cache).add(origin.url("a.bin"), priority=priority)


def test_what_fetch_would_refuse_is_not_added(cache) -> None:
    for ref in ("ftp://host/x", "no such model", "https://host/a/../b\0"):
        with pytest.raises((UsageError, ModelNotAvailableError)):
            Queue(cache).add(ref)
    assert len(Queue(cache)) == 0


# ---- any sequence of changes


class QueueMachine(RuleBasedStateMachine):
    """The file against a plain list; a restart of the process may come at any time."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.folder = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
        self.count = 0
        self.model: list[tuple[int, str]] = []  # (priority, id), in order
        self.claimed: list[str] = []
        self.restart()

    @rule()
    def restart(self) -> None:
        self.waitlist = Waitlist(f"{self.folder}/queue.json", f"{self.folder}/lock")

    @rule(target=ids, priority=st.integers(-2, 2))
    def add(self, priority: int) -> str:
        self.count += 1
        entry = self.waitlist.add(f"r{self.count}", f"request {self.count}", priority)
        self.model.append((priority, entry.id))
        self._sort()
        return entry.id

    @rule(entry=ids, priority=st.integers(-2, 2))
    def prioritize(self, entry: str, priority: int) -> None:
        self.waitlist.prioritize(entry, priority)
        old = next(pair for pair in self.model if pair[1] == entry)
        if old[0] != priority:
            self.model.remove(old)
            self.model.append((priority, entry))
            self._sort()

    @rule(entry=ids, before=ids)
    def move(self, entry: str, before: str) -> None:
        self.waitlist.move(entry, before)
        if entry != before:
            self.model = [pair for pair in self.model if pair[1] != entry]
            at = next(place for place, pair in enumerate(self.model) if pair[1] == before)
            self.model.insert(at, (self.model[at][0], entry))

    @rule(entry=consumes(ids))
    def remove(self, entry: str) -> None:
        self.waitlist.remove(entry)
        self.model = [pair for pair in self.model if pair[1] != entry]
        self.claimed = [each for each in self.claimed if each != entry]

    @rule(most=st.integers(1, 3))
    def claim(self, most: int) -> None:
        entry = self.waitlist.claim(most)
        waiting = [each for _, each in self.model if each not in self.claimed]
        if entry is None:
            assert not waiting or len(self.claimed) >= most
        else:
            assert entry.id == waiting[0]
            assert entry.owner == Owner.mine()
            self.claimed.append(entry.id)

    @rule(entry=ids)
    def give_back(self, entry: str) -> None:
        self.waitlist.give_back(entry)
        self.claimed = [each for each in self.claimed if each != entry]

    def _sort(self) -> None:
        self.model.sort(key=lambda pair: -pair[0])

    @invariant()
    def the_file_is_the_list(self) -> None:
        entries = self.waitlist.read().entries
        assert [(entry.priority, entry.id) for entry in entries] == self.model
        assert {entry.id for entry in entries if entry.is_running} == set(self.claimed)

    def teardown(self) -> None:
        subprocess.run(["rm", "-rf", self.folder], check=True)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
