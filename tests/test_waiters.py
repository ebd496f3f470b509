"""Who wants what somebody else is fetching waits for it, sees it come, and uses it (I11, I13, A18).

Real processes and signals; the origin counts the requests.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from caches import Events, entry_of, start
from crash import MIB, check_store, eventually, lines, locks_held

from modelcache.caching import Cache
from modelcache.errors import LockedError, PausedError
from modelcache.model import Digest, Manifest, ModelFile, Span
from modelcache.store.journal import Journal, read_facts
from modelcache.store.layout import Layout, key_of
from modelcache.store.locks import Holder
from modelcache.store.owner import Owner
from modelcache.store.partial import Partial
from modelcache.store.watch import Watch
from modelcache.testing import Content, Hold, Origin

FILE = Content.generated(8 * MIB, seed=71)


pytestmark = pytest.mark.usefixtures("one_connection")


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE}) as serving:
        yield serving


@pytest.fixture
def started() -> Iterator["list[subprocess.Popen[str]]"]:
    """Processes that a test adds here do not outlive it."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def holding(cache_root: Path, origin: Origin, started) -> "tuple[subprocess.Popen[str], Hold]":
    """A process that has fetched half of the file."""
    hold = Hold(4 * MIB)
    origin.faults(hold)
    started.append(start("fetch", origin.url("m.bin"), "--quiet", "--connections", "1"))
    assert hold.reached.wait(60)
    assert eventually(lambda: noted(cache_root) >= 3 * MIB)
    return started[0], hold


def noted(cache_root: Path) -> int:
    """What is known to be written, by the journals."""
    found = [read_facts(str(path)) for path in cache_root.glob("partials/*/journal")]
    return sum(facts.written.size for facts in found if facts)


def manifest(version: str, *entries: dict[str, Any], model: str = "m") -> str:
    return json.dumps({"format": 1, "id": model, "version": version, "ref": "", "files": entries})


# -- seeing it --------------------------------------------------------------------------------------------------------


def test_who_waits_says_for_whom_and_shows_how_far_that_is(cache: Cache, origin: Origin, holding) -> None:
    holder, hold = holding
    told = Events()
    download = cache.fetch(origin.url("m.bin"), wait=False, progress=told)
    message = told.wait_for("waiting")["message"]
    assert re.fullmatch(
        rf"waiting for process {holder.pid} on '.*' since \d\d:\d\d:\d\d(?: \([34]\.\d of 8\.0 MiB\))", message
    ), message
    assert eventually(lambda: any(3 * MIB <= sample["bytesDownloaded"] <= 4 * MIB for sample in told.progress))
    assert not download.has_ended
    hold.release.set()
    assert download.result().status == "hit"
    assert holder.wait(60) == 0
    assert len(told.of("waiting")) == 1
    assert len(origin.requests) == 1


@pytest.mark.parametrize("who_knows", ["the waiter", "the holder"])
def test_who_knows_the_digest_sees_how_far_one_is_who_does_not_and_the_other_way_round(
    cache: Cache, cache_root: Path, origin: Origin, started, who_knows: str
) -> None:
    """They call the same partial by different keys."""
    hold = Hold(4 * MIB)
    origin.faults(hold)
    known = ("--sha256", FILE.sha256)
    started.append(start("fetch", origin.url("m.bin"), "--quiet", *(known if who_knows == "the holder" else ())))
    assert hold.reached.wait(60)
    assert eventually(lambda: noted(cache_root) >= 3 * MIB)
    told = Events()
    digest = FILE.sha256 if who_knows == "the waiter" else None
    download = cache.fetch(origin.url("m.bin"), sha256=digest, wait=False, progress=told)
    assert re.search(r"\([34]\.\d of 8\.0 MiB\)", told.wait_for("waiting")["message"])
    assert eventually(lambda: any(3 * MIB <= sample["bytesDownloaded"] <= 4 * MIB for sample in told.progress))
    hold.release.set()
    assert download.result().status == "hit"
    assert len(origin.requests) == 1


def test_status_shows_how_far_another_process_is(cache: Cache, holding) -> None:
    holder, hold = holding
    (row,) = cache.downloads("in_progress")
    assert 3 * MIB <= row["downloaded_bytes"] <= 4 * MIB
    assert row["currentSize"] == row["downloaded_bytes"]
    assert row["total_bytes"] == FILE.size
    assert cache.download(row["id"]).downloaded_bytes >= 3 * MIB
    status = start("status")
    assert " of 8.0 MiB" in status.communicate(timeout=60)[0]
    hold.release.set()
    assert holder.wait(60) == 0
    assert cache.download(row["id"]).downloaded_bytes == FILE.size


def test_the_bytes_of_a_model_move_while_another_process_fetches_it(cache: Cache, origin: Origin, started) -> None:
    model = Manifest.parse(manifest("1", entry_of(origin.url("m.bin"), "m.bin", FILE)).encode())
    first, second = Hold(3 * MIB), Hold(6 * MIB)
    origin.faults(first, second)
    started.append(start("fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet", "--connections", "1"))
    assert first.reached.wait(60)
    told = Events()
    download = cache.fetch(model, wait=False, progress=told)  # another model: it waits for the content
    assert f"process {started[0].pid} " in told.wait_for("waiting")["message"]
    assert told.of("waiting")[0]["file"] == "m.bin"
    first.release.set()
    assert second.reached.wait(60)
    assert eventually(lambda: any(sample["bytesDownloaded"] > 4 * MIB for sample in told.progress))
    second.release.set()
    (file,) = download.result().files
    assert file.status == "linked"
    assert len(origin.requests) == 1


def test_the_command_says_in_one_line_whom_it_waits_for(origin: Origin, holding, started) -> None:
    holder, hold = holding
    waiter = start("fetch", origin.url("m.bin"), MODELCACHE_PROGRESS="text")
    started.append(waiter)
    assert waiter.stderr is not None
    assert f"m.bin: waiting for process {holder.pid} on " in waiter.stderr.readline()
    hold.release.set()
    _, errors = waiter.communicate(timeout=60)
    assert "waiting" not in errors
    assert waiter.returncode == 0
    assert len(origin.requests) == 1


def test_a_process_that_fetches_something_else_of_the_model_makes_progress_too(
    cache_root: Path, origin: Origin, started
) -> None:
    """It has the model, so it is waited for, whatever it fetches."""
    other = Content.generated(8 * MIB, seed=72)
    url = origin.url("m.bin")
    origin.put("other.bin", other)
    holds = [Hold(place * MIB) for place in (2, 4, 6)]
    for hold in holds:
        origin.faults(hold, path="other.bin")
    manifests = cache_root.parent / "other.json"
    manifests.write_text(manifest("2", entry_of(origin.url("other.bin"), "m.bin", other)))
    started.append(start("fetch", "--manifest", str(manifests), "--quiet"))
    assert holds[0].reached.wait(60)
    wanted = Manifest.parse(manifest("1", entry_of(url, "m.bin", FILE)).encode())
    told = Events()
    download = Cache(cache_root, lock_timeout=3.0).fetch(wanted, wait=False, progress=told)
    told.wait_for("waiting")
    for hold in holds:
        assert hold.reached.wait(60)
        hold.release.set()
    assert download.result().files[0].sha256 == FILE.sha256


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose disk gives a megabyte in 0.8 s."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    built = tmp_path_factory.mktemp("shim") / "slowshim.so"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    source = str(Path(__file__).parent / "slowshim.c")
    subprocess.run([compiler, *flags, "-o", str(built), source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(built), "SLOW_READ_MS": "800"}


def test_reading_what_is_here_from_end_to_end_is_progress(
    cache: Cache, cache_root: Path, origin: Origin, started, slow_disk: dict[str, str]
) -> None:
    """It takes longer than anybody would wait for one who makes no progress."""
    cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)
    began = time.monotonic()
    holder = start("fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--strict", "--quiet", **slow_disk)
    started.append(holder)
    assert eventually(lambda: len(list(cache_root.glob("locks/*.json"))) == 2)  # of the model, and of the content
    other = Manifest.parse(manifest("1", entry_of(origin.url("m.bin"), "m.bin", FILE)).encode())
    told = Events()
    waiting = Cache(cache_root, lock_timeout=3.0)
    for_the_content = waiting.fetch(other, wait=False, progress=told)
    for_the_model = waiting.fetch(origin.url("m.bin"), sha256=FILE.sha256, strict=True, wait=False, progress=told)
    assert for_the_content.result().files[0].status == "linked"
    assert for_the_model.result().status == "hit"
    assert holder.wait(60) == 0
    assert time.monotonic() - began > 5
    assert len(told.of("waiting")) >= 2


def test_hashing_what_an_earlier_run_left_is_progress(
    cache_root: Path, origin: Origin, started, slow_disk: dict[str, str]
) -> None:
    file = ModelFile("m.bin", FILE.size, (Digest("sha256", FILE.sha256),))
    partial = Partial.open(str(cache_root / "partials"), key_of(file), file)
    writer = partial.writer(Span(0, FILE.size), "an earlier run")
    writer.write(FILE.read())
    writer.close()
    partial.close()
    url = origin.url("m.bin")
    slow_disk = slow_disk | {"SLOW_READ_MS": "1000"}
    started.append(start("fetch", url, "--sha256", FILE.sha256, "--quiet", **slow_disk))
    assert eventually(lambda: len(list(cache_root.glob("locks/*.json"))) == 2)
    waiting = Cache(cache_root, lock_timeout=6.0)  # four megabytes are hashed at a time
    assert waiting.fetch(url, sha256=FILE.sha256, wait=False, progress=False).result().status == "hit"
    assert sum(seen.bytes_sent for seen in origin.requests) == 0


# -- stopping, giving up, taking over ---------------------------------------------------------------------------------


def test_a_wait_ends_at_once_when_it_is_paused(cache: Cache, origin: Origin, holding) -> None:
    told = Events()
    download = cache.fetch(origin.url("m.bin"), wait=False, progress=told)
    told.wait_for("waiting")
    download.pause()
    assert download.wait_stopped(2.0)
    with pytest.raises(PausedError):
        download.result()
    assert len(origin.requests) == 1


def test_ctrl_c_ends_a_wait(origin: Origin, holding, started) -> None:
    waiter = start("fetch", origin.url("m.bin"), MODELCACHE_PROGRESS="text")
    started.append(waiter)
    assert waiter.stderr is not None
    assert "waiting" in waiter.stderr.readline()
    waiter.send_signal(signal.SIGINT)
    _, errors = waiter.communicate(timeout=30)
    assert waiter.returncode == 130
    assert len(lines(errors)) == 1


def test_a_waiter_takes_over_from_a_killed_holder_and_goes_on_where_it_was(
    cache: Cache, cache_root: Path, origin: Origin, holding
) -> None:
    holder, hold = holding
    told = Events()
    download = cache.fetch(origin.url("m.bin"), wait=False, progress=told)
    told.wait_for("waiting")
    holder.kill()
    hold.release.set()
    result = download.result(60)
    assert result.status == "resumed"
    assert [seen.range is None for seen in origin.requests] == [True, False]
    assert result.bytes_resumed >= 3 * MIB
    check_store(cache_root)


def test_a_frozen_holder_is_waited_for_and_then_named_and_goes_on_when_it_wakes(
    cache: Cache, cache_root: Path, origin: Origin, holding
) -> None:
    holder, hold = holding
    os.kill(holder.pid, signal.SIGSTOP)
    in_use = rf"m\.bin is in use by process {holder.pid} on .*, without progress"
    with pytest.raises(LockedError, match=in_use) as failed:
        Cache(cache_root, lock_timeout=0.5).fetch(origin.url("m.bin"))
    assert re.search(r"\([34]\.\d of 8\.0 MiB\)", failed.value.message)
    assert f"`kill -CONT {holder.pid}`" in failed.value.next_step
    assert len(origin.requests) == 1
    os.kill(holder.pid, signal.SIGCONT)
    hold.release.set()
    assert holder.wait(60) == 0
    assert cache.fetch(origin.url("m.bin")).status == "hit"
    assert len(origin.requests) == 1
    check_store(cache_root)


# -- many at once -----------------------------------------------------------------------------------------------------


def test_eight_processes_that_want_one_file_ask_once(cache_root: Path, origin: Origin, started) -> None:
    many_want_one(8, cache_root, origin, started)


@pytest.mark.slow
def test_sixty_four_processes_that_want_one_file_ask_once(cache_root: Path, origin: Origin, started) -> None:
    many_want_one(64, cache_root, origin, started)


def many_want_one(count: int, cache_root: Path, origin: Origin, started) -> None:
    hold = Hold(4 * MIB)
    origin.faults(hold)
    url = origin.url("m.bin")
    started += [start("fetch", url, MODELCACHE_PROGRESS="text") for _ in range(count)]
    assert hold.reached.wait(60)
    hold.release.set()
    ended = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0] * count, ended
    assert {output.strip() for output, _ in ended} == {ended[0][0].strip()}
    assert len(origin.requests) == 1
    check_store(cache_root)
    assert locks_held(cache_root) == []


def test_eight_processes_that_want_many_files_fetch_each_once(cache_root: Path, started) -> None:
    """Two models that share half of their files."""
    contents = {f"{index}.bin": Content.generated(200_000 + index, seed=index) for index in range(30)}
    with Origin(contents) as origin:
        for model, names in (("a", list(contents)[:20]), ("b", list(contents)[10:])):
            entries = [entry_of(origin.url(name), name, contents[name]) for name in names]
            (cache_root.parent / f"{model}.json").write_text(manifest("1", *entries, model=model))
        started += [
            start("fetch", "--manifest", str(cache_root.parent / f"{'ab'[index % 2]}.json"), "--quiet")
            for index in range(8)
        ]
        ended = [process.communicate(timeout=100) for process in started]
        assert [process.returncode for process in started] == [0] * 8, ended
        assert sorted(seen.path for seen in origin.requests) == sorted(f"/{name}" for name in contents)
    check_store(cache_root)
    assert locks_held(cache_root) == []


def test_all_that_the_holder_writes_is_progress_and_nothing_of_others(tmp_path: Path) -> None:
    mine, base = Owner.mine(), tmp_path / "partials"
    watch = Watch(Layout(str(tmp_path)), str(base), (ModelFile("m.bin"),), lambda message: None)
    holder = Holder(mine.pid, mine.host, mine.start, 1)
    journals = []
    for owner in (mine, replace(mine, pid=mine.pid + 1)):
        folder = base / f"url-{owner.pid}.0"
        folder.mkdir(parents=True)
        journals.append(Journal.create(str(folder / "journal"), {}))
        journals[-1].owned_by(owner)
    before = watch.look(holder)
    journals[1].wrote(0, MIB, "another")
    assert watch.look(holder) == before
    journals[0].wrote(0, MIB, "the holder")
    assert watch.look(holder) != before
    for journal in journals:
        journal.close()
