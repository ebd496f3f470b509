"""The queue: what waits survives, the most urgent comes first, and many processes share it."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from caches import run, start
from crash import eventually
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelNotAvailableError, StoreError, UsageError
from modelcache.fetching import begun
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
    assert holds[0].reached.wait(60)
    assert holds[1].reached.wait(60)
    assert [row["status"] for row in queue.entries()] == ["running", "running", "waiting"]
    assert not holds[2].reached.is_set()
    for hold in holds:
        hold.release.set()
    assert holds[2].reached.wait(60)
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
    assert hold.reached.wait(60)
    queue.pause()
    assert eventually(lambda: [row["status"] for row in queue.entries() if row["ref"].endswith("a.bin")] == ["waiting"])
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
    assert hold.reached.wait(60)
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
        assert hold.reached.wait(60)
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
    assert hold.reached.wait(60)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=60)
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


def test_all_processes_together_claim_no_more_than_allowed_and_none_what_another_has(cache, waitlist) -> None:
    for name in "abcd":
        waitlist.add(name, name, 0)
    other = Waitlist(*cache.queue_paths)  # has locks of its own, as another process would
    claimed = [waitlist.claim(3), other.claim(3), waitlist.claim(3)]
    assert [entry.ref for entry in claimed if entry] == ["a", "b", "c"]
    assert [other.claim(3), waitlist.claim(3)] == [None, None]
    waitlist.pause(True)
    assert other.claim(9) is None
    waitlist.close()
    other.close()


def test_what_failed_here_can_be_tried_by_another_process(cache, waitlist) -> None:
    waitlist.add("a", "a", 0)
    entry, other = waitlist.claim(1), Waitlist(*cache.queue_paths)
    waitlist.fail(entry.id, "why")
    other.retry(entry.id)
    assert other.claim(1).ref == "a"
    other.hold(entry.id)
    waitlist.pause_one(entry.id, False)
    assert waitlist.claim(1).ref == "a"
    waitlist.remove(entry.id)
    waitlist.fail(entry.id, "too late")
    assert len(waitlist.read().entries) == 0


def test_asking_again_for_what_failed_lets_it_wait_again(waitlist) -> None:
    entry = waitlist.add("a", "a", 0)
    waitlist.fail(entry.id, "why")
    assert waitlist.add("a", "a", 0).id == entry.id
    assert waitlist.read().find(entry.id).status == "waiting"


def test_the_queue_has_a_bound(cache, cache_root, waitlist) -> None:
    waitlist.add("a", "a", 0)
    data = json.loads((cache_root / "queue.json").read_text())
    data["entries"] = [data["entries"][0] | {"id": f"{number:08x}"} for number in range(10_000)]
    (cache_root / "queue.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="10,000 entries"):
        waitlist.add("b", "b", 0)
    assert len(waitlist.read().entries) == 10_000


def test_no_change_is_lost_where_many_change_at_once(cache) -> None:
    def add(number: int) -> None:
        for each in range(10):
            Waitlist(*cache.queue_paths).add(f"{number} {each}", f"{number} {each}", 0)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Queue(cache)) == 60


CONTAINER = {"host": "pod-7f9c", "boot": "other", "space": 1, "pid": 7, "start": 5, "machine": ""}


def edit(cache_root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes every entry of the file, as no modelcache would."""
    data = json.loads((cache_root / "queue.json").read_text())
    for fields in data["entries"]:
        change(fields)
    (cache_root / "queue.json").write_text(json.dumps(data))


def test_what_a_container_that_is_gone_was_fetching_waits_again(cache, cache_root, origin) -> None:
    queue = Queue(cache)
    for name in "abc":
        queue.add(origin.url(f"{name}.bin"))
    edit(cache_root, lambda fields: fields.update(owner=CONTAINER))
    assert [(row["status"], row["by"]) for row in queue.entries()] == [("waiting", "")] * 3
    running = threading.Thread(target=queue.run, kwargs={"progress": False}, daemon=True)
    running.start()
    running.join(60)
    assert not running.is_alive()
    assert len(queue) == 0


def test_whoever_only_waits_says_for_whom_and_others_see_it(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    first = start("fetch", "--queue", origin.url("a.bin"), "--quiet")
    assert hold.reached.wait(60)
    who = f"process {first.pid} on "
    (row,) = Queue(Cache(cache_root)).entries()
    assert (row["status"], row["by"].startswith(who)) == ("running", True)
    second = start("queue", "run", "--quiet")
    assert second.stderr is not None
    assert second.stderr.readline().startswith(f"waiting for {who}")
    hold.release.set()
    assert second.communicate(timeout=60)[1] == ""
    assert (first.communicate(timeout=60)[1], first.returncode, second.returncode) == ("", 0, 0)


def test_a_try_more_for_what_is_being_fetched_changes_nothing(cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    queue = Queue(Cache(cache_root))
    entry = queue.add(origin.url("a.bin"))
    queue.start()
    assert hold.reached.wait(60)
    queue.retry(entry)
    assert [row["status"] for row in queue.entries()] == ["running"]
    hold.release.set()
    queue.run(progress=False)
    queue.stop()
    assert len(queue) == 0


def test_locks_of_entries_do_not_pile_up(cache, cache_root, origin) -> None:
    queue = Queue(cache)
    for name in "abc":
        queue.add(origin.url(f"{name}.bin"))
    finished(queue)
    assert list(cache_root.glob("locks/queue-*")) == []


FORK = """if True:
    import os, sys
    from modelcache.caching import Cache
    from modelcache.store.waitlist import Waitlist
    paths = Cache().queue_paths
    mine = Waitlist(*paths)
    entry = mine.claim(2)
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    print(Waitlist(*paths).read().find(entry.id).status)
    sleeping = os.fork()
    if sleeping == 0:
        sys.stdin.read()
        os._exit(0)
    mine.close()
    print(Waitlist(*paths).read().find(entry.id).status)
    os.close(0)
"""


def test_a_forked_child_neither_ends_nor_keeps_what_its_parent_runs(cache, origin) -> None:
    Queue(cache).add(origin.url("a.bin"))
    done = subprocess.run(
        [sys.executable, "-c", FORK], input="", capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["running", "waiting"]


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


def test_what_is_garbled_is_set_aside_once_before_it_is_overwritten(cache, cache_root, origin) -> None:
    cache_root.mkdir(exist_ok=True)
    place, aside = cache_root / "queue.json", cache_root / "queue.json.garbled"
    place.write_bytes(b'{"format": 1, "entries": [{"id": "precious"}]}')
    assert len(Queue(cache)) == 0
    assert not aside.exists()
    Queue(cache).add(origin.url("a.bin"))
    assert b"precious" in aside.read_bytes()
    place.write_bytes(b"garbage")
    Queue(cache).add(origin.url("a.bin"))
    assert b"precious" in aside.read_bytes()
    assert aside.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_read_for_a_moment_loses_nothing(cache_root, origin) -> None:
    queue = Queue(Cache(cache_root))
    for name in "abc":
        queue.add(origin.url(f"{name}.bin"))
    place = cache_root / "queue.json"
    os.rename(place, cache_root / "aside")
    place.symlink_to("aside")  # refused with ELOOP; root may read what others may not
    done = run("fetch", "--queue", origin.url("d.bin"), "--quiet")
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (6, 1, False)
    assert run("queue").returncode == 6
    os.replace(cache_root / "aside", place)
    assert names(queue) == "abc"


@pytest.mark.parametrize(
    "change",
    [{"id": "../../x"}, {"id": ""}, {"added_at": 10**30}, {"added_at": -(10**30)}, {"priority": 10**30}, {"owner": 3}],
)
def test_an_entry_that_is_garbled_is_none(cache, cache_root, origin, change) -> None:
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    edit(cache_root, lambda fields: fields.update(change))
    assert run("queue").stdout == "queue: nothing\n"
    queue.add(origin.url("b.bin"))
    assert finished(queue) == ["b"]


def test_the_same_id_twice_is_one_entry(cache, cache_root, origin) -> None:
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    edit(cache_root, lambda fields: fields.update(id="0123abcd"))
    assert finished(queue) == ["a"]


def test_an_output_with_a_null_byte_fails_alone(cache, cache_root, origin) -> None:
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    edit(cache_root, lambda each: each.update(request=json.dumps(json.loads(each["request"]) | {"output": "/a\0b"})))
    queue.add(origin.url("b.bin"))
    assert sorted(finished(queue)) == ["a", "b"]
    (row,) = queue.entries()
    assert (row["status"], row["error"].partition(";")[0]) == ("failed", "what was asked is not known any more")


class Broken(Cache):
    """Has a bug."""

    def begin(self, *_: object) -> Any:
        raise ZeroDivisionError("secret")


def test_a_bug_fails_its_entry_alone(cache_root, origin) -> None:
    queue = Queue(Broken(cache_root))
    queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    assert sorted(finished(queue)) == ["a", "b"]
    assert [(row["status"], row["error"]) for row in queue.entries()] == [
        ("failed", "a bug in modelcache: ZeroDivisionError")
    ] * 2


def test_after_two_interrupts_nothing_is_stuck(cache_root, origin) -> None:
    """The second comes while the first one's downloads are stopping."""
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")

    class Interrupted(Cache):
        def begin(self, *arguments: Any) -> Any:
            download = super().begin(*arguments)

            stops = download.wait_stopped

            def wait_stopped(_: float) -> bool:
                download.wait_stopped = stops
                raise KeyboardInterrupt

            download.wait_stopped = wait_stopped
            assert hold.reached.wait(60)
            return download

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    cache = Interrupted(cache_root)
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    Waitlist(*cache.queue_paths).add("https://host/x", "garbage", -1)
    with suppress(KeyboardInterrupt):
        queue.run(progress=False, ended=interrupt)
    hold.release.set()
    assert [row["status"] for row in queue.entries()] == ["waiting", "failed"]


def test_in_the_background_an_error_is_logged_once_and_outlived(cache, cache_root, origin, caplog) -> None:
    cache_root.mkdir(exist_ok=True)
    place = cache_root / "queue.json"
    place.write_text('{"format": 9, "entries": []}')
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    queue, logged = Queue(cache), threading.Event()
    handler = logging.Handler()
    handler.emit = lambda _: logged.set()  # type: ignore[method-assign]
    log = logging.getLogger("modelcache.queueing")
    log.addHandler(handler)
    try:
        queue.start()
        assert logged.wait(60)
        place.unlink()
        queue.add(origin.url("a.bin"))
        assert hold.reached.wait(60)
    finally:
        log.removeHandler(handler)
        hold.release.set()
        queue.stop()
    assert [record.message for record in caplog.records if "newer" in record.message] == [
        f"the queue: {place} was written by a newer modelcache; update modelcache"
    ]


# ---- cancelling


def test_what_is_cancelled_leaves_the_queue(cache, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    queue.start()
    assert hold.reached.wait(60)
    (download,) = cache.downloads()
    cache.cancel(download["id"])
    hold.release.set()
    queue.run(progress=False)
    queue.stop()
    assert len(queue) == 0
    assert cache.download(download["id"]).status == "failed"


def test_what_is_cancelled_while_it_waits_leaves_the_queue(cache, cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    first = start("fetch", "--queue", origin.url("a.bin"), "--quiet")
    assert hold.reached.wait(60)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    hold.release.set()
    (download,) = cache.downloads()
    assert run("cancel", download["id"]).returncode == 0
    assert len(Queue(cache)) == 0


def test_what_failed_for_good_leaves_the_queue_when_it_is_cancelled(cache, cache_root, origin) -> None:
    """What its record was asked is forgotten by then, for it may hold a secret; other entries stay."""
    origin.faults(Status(403), path="a.bin")
    queue = Queue(cache)
    queue.add(origin.url("a.bin") + "?token=s3cret")
    queue.run(progress=False)
    Waitlist(*cache.queue_paths).add("https://host/x", "garbage", -1)
    queue.add(origin.url("b.bin") + "?token=s3cret")
    (download,) = cache.downloads()
    assert (download["status"], download["canResume"]) == ("failed", False)
    cache.cancel(download["id"])
    assert names(queue) == "bx"


# ---- pausing one


@pytest.fixture
def held(cache_root, origin) -> Iterator[tuple[Cache, Queue, Hold]]:
    """A queue that runs in the background: a.bin is held at its middle, and b.bin is here already."""
    hold = Hold(200_000, times=1)
    origin.faults(hold, path="a.bin")
    cache = Cache(cache_root, connections=1)
    queue = Queue(cache)
    queue.add(origin.url("a.bin"), sha256=FILES["a.bin"].sha256)
    queue.start()
    assert hold.reached.wait(60)
    yield cache, queue, hold
    hold.release.set()
    queue.stop()
    cache.close()


def has_ended(queue: Queue) -> None:
    assert eventually(lambda: [row["status"] for row in queue.entries()] == ["paused"])


def test_a_download_that_somebody_pauses_stays_paused_and_holds_up_no_other(held, origin) -> None:
    cache, queue, hold = held
    (download,) = cache.downloads()
    assert cache.pause(download["id"]).status == "paused"
    hold.release.set()
    has_ended(queue)
    asked = len(origin.requests)
    queue.add(origin.url("b.bin"))
    queue.run(progress=False)
    assert [seen.path for seen in origin.requests[asked:]] == ["/b.bin"]
    assert [row["status"] for row in queue.entries()] == ["paused"]


@pytest.mark.parametrize("how", ["cache", "queue", "command"])
def test_what_was_paused_alone_goes_on_when_somebody_says_so(held, origin, how) -> None:
    cache, queue, hold = held
    (download,) = cache.downloads()
    cache.pause(download["id"])
    hold.release.set()
    has_ended(queue)
    (entry,) = queue.entries()
    if how == "cache":
        cache.resume(download["id"])
    elif how == "queue":
        queue.resume()  # of the whole, which was not paused
        assert [row["status"] for row in queue.entries()] == ["paused"]
        queue.resume(entry["id"])
    else:
        assert run("queue", "resume", entry["id"]).returncode == 0
    queue.run(progress=False)
    assert len(queue) == 0
    assert cache.download(download["id"]).status == "success"
    assert origin.requests[-1].range not in (None, "bytes=0-")


def test_a_pause_from_another_process_reaches_whoever_fetches(held) -> None:
    _, queue, hold = held
    (entry,) = queue.entries()
    assert run("queue", "pause", entry["id"]).returncode == 0
    has_ended(queue)
    hold.release.set()
    done = run("queue", "run")
    assert (done.returncode, done.stderr) == (0, f"1 paused; `modelcache queue resume {entry['id']}` lets it go on\n")


def test_a_handle_that_is_paused_keeps_the_queue_away(held) -> None:
    cache, queue, _ = held
    cache._runtime.running[-1].pause()
    has_ended(queue)


def test_the_end_of_a_cache_pauses_no_entry(held, origin) -> None:
    cache, queue, _ = held
    again = Hold(250_000, times=1)
    origin.faults(again, path="a.bin")
    cache.close()
    assert again.reached.wait(60)  # whoever runs the queue goes on
    queue.stop()
    again.release.set()
    assert [row["status"] for row in queue.entries()] == ["waiting"]


def test_an_entry_that_waits_can_be_paused_and_asking_for_it_again_lets_it_go_on(cache, origin) -> None:
    queue = Queue(cache)
    first = queue.add(origin.url("a.bin"))
    queue.add(origin.url("b.bin"))
    queue.pause(first)
    assert finished(queue) == ["b"]
    assert queue.add(origin.url("a.bin")) == first
    assert finished(queue) == ["a"]
    with pytest.raises(UsageError, match="no 'x' in the queue"):
        queue.pause("x")


def test_what_another_process_fetches_without_the_queue_is_not_paused_from_here(cache, cache_root, origin) -> None:
    hold = Hold(200_000)
    origin.faults(hold, path="a.bin")
    other = start("fetch", origin.url("a.bin"), "--quiet")
    assert hold.reached.wait(60)
    assert eventually(lambda: [row["status"] for row in cache.downloads()] == ["in_progress"])
    (download,) = cache.downloads()
    with pytest.raises(LockedError, match="by another process"):
        cache.pause(download["id"])
    hold.release.set()
    other.communicate(timeout=60)
    assert cache.pause(download["id"]).status == "success"


# ---- what is kept of the wish, and what helps


def test_the_kind_to_prefer_is_kept(cache, cache_root, origin, monkeypatch) -> None:
    asked: list[Any] = []

    def watched(roots: Any, ref: Any, wish: Any, progress: Any) -> Any:
        asked.append(wish.prefer)
        return begun(roots, ref, wish, progress)

    for module in ("caching", "steering"):
        monkeypatch.setattr(f"modelcache.{module}.begun", watched)
    origin.faults(Status(500), path="a.bin")
    cache = Cache(cache_root, backoff=0.01)
    queue = Queue(cache)
    queue.add(origin.url("a.bin"), prefer="http")
    with pytest.raises(UsageError, match="prefer = 'tape'"):
        queue.add(origin.url("a.bin"), prefer="tape")
    queue.run(progress=False)
    origin.heal()
    (download,) = cache.downloads("failed")
    Cache(cache_root).resume(download["id"])  # as another process would
    assert asked == ["http", "http"]


def test_the_command_keeps_the_kind_to_prefer(cache_root, origin) -> None:
    origin.faults(Status(404))
    run("fetch", "--queue", "--quiet", origin.url("a.bin"), "--prefer", "http")
    assert json.loads(json.loads((cache_root / "queue.json").read_text())["entries"][0]["request"])["prefer"] == "http"


@pytest.mark.parametrize("prefer", [3, None, ["http"], "tape"])
def test_a_kind_to_prefer_that_is_garbled_fails_its_entry_alone(cache, cache_root, origin, prefer) -> None:
    queue = Queue(cache)
    queue.add(origin.url("a.bin"))
    edit(cache_root, lambda each: each.update(request=json.dumps(json.loads(each["request"]) | {"prefer": prefer})))
    queue.run(progress=False)
    assert [row["status"] for row in queue.entries()] == ["failed"]


@pytest.mark.parametrize("status", [404, 500])
def test_the_advice_of_an_entry_that_failed_is_the_command_that_tries_it_again(cache_root, origin, status) -> None:
    origin.faults(Status(status), path="a.bin")
    done = run("fetch", "--queue", "--quiet", origin.url("a.bin"), MODELCACHE_BACKOFF="0.01")
    (row,) = Queue(Cache(cache_root)).entries()
    advice = f"run `modelcache queue retry {row['id']}`"
    assert advice in row["error"]
    assert advice in done.stderr
    assert "run again" not in row["error"] + done.stderr
    assert "same command" not in row["error"] + done.stderr
    origin.heal()
    assert run("queue", "retry", row["id"]).returncode == 0
    assert run("queue", "run", "--quiet").returncode == 0


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
        self.held: set[str] = set()
        self.failed: set[str] = set()
        self.paused = False
        self.restart()

    @rule()
    def restart(self) -> None:
        """As after a kill: the locks are gone, and what was fetched waits again."""
        self.waitlist = Waitlist(f"{self.folder}/queue.json", f"{self.folder}/queue.lock")
        self.claimed.clear()

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
            self._put(entry, priority)

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
        self._forget(entry)

    @rule(entry=ids, priority=st.integers(-2, 2))
    def add_again(self, entry: str, priority: int) -> None:
        """It may become more urgent, and waits again if it had failed or was paused."""
        same = self.waitlist.read().find(entry)
        assert self.waitlist.add(same.ref, same.request, priority).id == entry
        self.failed.discard(entry)
        self.held.discard(entry)
        if priority > same.priority:
            self._put(entry, priority)

    @rule(entry=ids)
    def fail(self, entry: str) -> None:
        self.waitlist.fail(entry, "why")
        self.failed.add(entry)
        self.claimed = [each for each in self.claimed if each != entry]

    @rule(entry=ids)
    def retry(self, entry: str) -> None:
        self.waitlist.retry(entry)
        self.failed.discard(entry)

    @rule(most=st.integers(1, 3))
    def claim(self, most: int) -> None:
        entry = self.waitlist.claim(most)
        waiting = [each for _, each in self.model if each not in {*self.claimed, *self.held, *self.failed}]
        if entry is None:
            assert not waiting or len(self.claimed) >= most or self.paused
        else:
            assert len(self.claimed) < most and not self.paused
            assert entry.id == waiting[0]
            assert entry.owner == Owner.mine()
            self.claimed.append(entry.id)

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        self.waitlist.pause(paused)
        self.paused = paused

    @rule(entry=ids, paused=st.booleans())
    def pause_one(self, entry: str, paused: bool) -> None:
        self.waitlist.pause_one(entry, paused)
        (self.held.add if paused else self.held.discard)(entry)

    @rule(entry=ids)
    def give_back(self, entry: str) -> None:
        self.waitlist.give_back(entry)
        self.claimed = [each for each in self.claimed if each != entry]

    def _put(self, entry: str, priority: int) -> None:
        """Behind all of this priority."""
        self.model = [*(pair for pair in self.model if pair[1] != entry), (priority, entry)]
        self._sort()

    def _forget(self, entry: str) -> None:
        self.model = [pair for pair in self.model if pair[1] != entry]
        self.claimed = [each for each in self.claimed if each != entry]

    def _sort(self) -> None:
        self.model.sort(key=lambda pair: -pair[0])

    @invariant()
    def the_file_is_the_list(self) -> None:
        entries = self.waitlist.read().entries
        assert [(entry.priority, entry.id) for entry in entries] == self.model
        assert {entry.id for entry in entries if entry.is_running} == set(self.claimed)
        here = {entry.id for entry in entries}
        assert {entry.id for entry in entries if entry.error} == self.failed & here
        assert {entry.id for entry in entries if entry.paused} == self.held & here

    def teardown(self) -> None:
        subprocess.run(["rm", "-rf", self.folder], check=True)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
