"""Hundreds of starts and stops, ten models at once: nothing is fetched twice, and nothing leaks (A13, A19)."""

import json
import os
import random
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from crash import MIB, begin, check_store, environment, eventually, leftovers, locks_held, run

from modelcache.caching import Cache
from modelcache.store.journal import read_facts
from modelcache.testing import Content, Origin, Slow

FILE = Content.generated(64 * MIB, seed=61)
BIG, MOST_MEMORY = 200 * MIB, 200 * MIB


def served(origin: Origin) -> int:
    return sum(seen.bytes_sent for seen in origin.requests)


def recorded(home: Path) -> int:
    """What the journals say is written."""
    found = [read_facts(str(path)) for path in home.glob("partials/*/journal")]
    return sum(facts.written.size for facts in found if facts)


def asked_from(origin: Origin, earlier: int) -> int | None:
    """Where the first request after so many earlier ones begins."""
    later = origin.requests[earlier:]
    return int((later[0].range or "bytes=0-")[6:].partition("-")[0]) if later else None


@pytest.mark.parametrize("cycles", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_pausing_and_resuming_again_and_again_costs_no_byte_and_leaks_nothing(cache_root: Path, cycles: int) -> None:
    with Origin({"m.bin": FILE}, faults=[Slow(40 * MIB)]) as origin, closing(Cache(cache_root, connections=1)) as cache:
        handles: list[int] = []
        threads: list[int] = []
        download = cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, wait=False, progress=False)
        for _ in range(cycles):
            before = download.progress.bytes_downloaded
            assert eventually(lambda before=before: download.progress.bytes_downloaded > before or download.has_ended)
            download.pause()
            assert download.wait_stopped(10)
            kept, earlier = recorded(cache_root), len(origin.requests)
            handles.append(len([fd for fd in os.listdir("/proc/self/fd") if is_of(fd, cache_root)]))
            threads.append(len([thread for thread in threading.enumerate() if "modelcache-" in thread.name]))
            assert len(list(cache_root.glob("partials/*"))) <= 1
            download.resume()
            assert eventually(lambda earlier=earlier: len(origin.requests) > earlier or download.has_ended)
            if (begins := asked_from(origin, earlier)) is not None:
                assert begins >= kept - MIB
        origin.heal()
        assert download.result(60).sha256 == FILE.sha256
    assert max(handles[1:]) <= handles[0], handles
    assert max(threads[1:]) <= threads[0], threads
    check_store(cache_root)
    assert not leftovers(cache_root)


def is_of(fd: str, home: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(home / "partials"))
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("cycles", [3, pytest.param(50, marks=pytest.mark.nightly)])
def test_killing_and_running_again_costs_at_most_one_mib_each_time(cache_root: Path, cycles: int) -> None:
    dice = random.Random(5)
    with Origin({"m.bin": FILE}, faults=[Slow(16 * MIB)]) as origin:
        words = ("fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet", "--connections", "1")
        for _ in range(cycles):
            kept, earlier = recorded(cache_root), len(origin.requests)
            child = begin(cache_root, *words)
            more = served(origin) + dice.randint(1, 64 * MIB // (cycles + 1))
            assert eventually(lambda child=child, more=more: served(origin) > more or child.poll() is not None)
            child.kill()
            child.communicate()
            if (begins := asked_from(origin, earlier)) is not None:
                assert begins >= kept - MIB
            assert len(list(cache_root.glob("partials/*"))) <= 1
            assert not locks_held(cache_root)
        origin.heal()
        assert run(cache_root, *words).returncode == 0
    check_store(cache_root)
    assert not leftovers(cache_root)


MANY = """
import json, sys
from contextlib import closing
from modelcache.caching import Cache
from modelcache.queueing import Queue
urls, how = json.loads(sys.argv[1]), sys.argv[2]
with closing(Cache(parallel_models=10, connections=1)) as cache:
    if how == "queue":
        queue, ended = Queue(cache), []
        for url in urls:
            queue.add(url)
        queue.run(progress=False, ended=ended.append)
        got = [str(one.result) for one in ended]
    else:
        got = [one.result().path for one in [cache.fetch(url, wait=False, progress=False) for url in urls]]
# Not ru_maxrss: that also counts the process that this one was forked from.
(most,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(json.dumps([got, int(most.split()[1]) * 1024]))
"""


@pytest.mark.parametrize("size", [300_000, pytest.param(BIG, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("how", ["queue", "threads"])
def test_ten_models_at_once_need_little_memory(cache_root: Path, size: int, how: str) -> None:
    files = {f"{index}.bin": Content.generated(size + index, seed=index) for index in range(10)}
    with Origin(files) as origin:
        urls = json.dumps([origin.url(name) for name in files])
        done = subprocess.run(
            [sys.executable, "-c", MANY, urls, how],
            env=environment(cache_root), capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        got, memory = json.loads(done.stdout)
        assert served(origin) == sum(one.size for one in files.values())
    assert len(got) == 10
    assert memory < MOST_MEMORY
    check_store(cache_root)
    assert not leftovers(cache_root)
