"""What subscribers are told of real fetches, to the letter of product H, and of what is installed (C6)."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import Events, check_pace, check_progress, manifest_of, rot

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, ModelCacheError
from modelcache.testing import Content, Corrupt, CutAt, Hold, Origin, Slow, Status

CONTENT = Content.generated(6_000_000, seed=1)
FILES = {f"part-{index}": Content.generated(600_000 + index, seed=10 + index) for index in range(4)}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.gguf": CONTENT, **FILES}) as origin:
        yield origin


@pytest.fixture
def told() -> Events:
    return Events()


def of_file(told: Events) -> list[dict[str, Any]]:
    return [event for event in told.progress if event["file"]]


# -- the progress event ---------------------------------------------------------------------------------------------


def test_a_single_file_from_its_beginning_to_its_end(cache: Cache, origin: Origin, told: Events) -> None:
    origin.faults(Slow(3_000_000))
    url = origin.url("m.gguf")
    file = cache.fetch(url, sha256=CONTENT.sha256, progress=told)
    check_progress(told.progress, cache.models().rows[0]["model"])
    check_pace(told.progress[:-1])
    assert {event["totalFiles"] for event in told.progress} == {1}
    first, *moving, end, last = told.progress
    assert (first["status"], first["bytesDownloaded"], first["totalBytes"]) == ("attempting", 0, 0)
    assert {event["status"] for event in moving} == {"downloading"}
    assert {(event["file"], event["source"], event["gateway"]) for event in moving} == {("m.gguf", "http", url)}
    assert all(event["totalBytes"] == CONTENT.size and event["retryCount"] == 0 for event in moving)
    here = [event["bytesDownloaded"] for event in moving]
    assert here == sorted(here) and here[-1] > 0
    assert moving[-1]["downloadSpeed"] > 0
    for event in (end, last):
        assert (event["bytesDownloaded"], event["progress"], event["eta"]) == (CONTENT.size, 100.0, 0.0)
        assert (event["completedFiles"], event["source"], event["gateway"]) == (1, "http", url)
    assert (end["status"], end["done"], last["status"]) == ("success", False, "completed")
    assert (last["started"], last["done"], last["downloading"], last["error"]) == (True, True, False, "")
    (complete,) = told.of("download_complete")
    assert told.all[-1] is complete
    assert complete == {"type": "download_complete", "downloadId": complete["downloadId"], "filepath": str(file)}


def test_a_model_of_several_files(cache: Cache, origin: Origin, told: Events) -> None:
    origin.faults(Slow(400_000))
    model = cache.fetch(manifest_of(origin, FILES), progress=told)
    check_progress(told.progress, "m")
    check_pace(told.progress[:-1])
    assert {event["totalFiles"] for event in told.progress} == {4}
    completed = [event["completedFiles"] for event in told.progress]
    assert completed == sorted(completed) and completed[-1] == 4
    for name, content in FILES.items():
        mine = [event for event in told.progress if event["file"] == name]
        here = [event["bytesDownloaded"] for event in mine]
        assert here == sorted(here)
        assert (mine[-1]["status"], mine[-1]["bytesDownloaded"]) == ("success", content.size)
        assert sum(event["status"] == "success" for event in mine) == 1
    assert told.progress[-1]["bytesDownloaded"] == sum(content.size for content in FILES.values())
    assert told.all[-1]["filepath"] == model.path


def test_a_hit_is_complete_at_once(cache: Cache, origin: Origin, told: Events) -> None:
    model = cache.fetch(manifest_of(origin, FILES))
    assert cache.fetch(manifest_of(origin, FILES), progress=told).path == model.path
    check_progress(told.progress, "m")
    (last,) = told.progress
    assert (last["status"], last["source"], last["progress"], last["completedFiles"]) == (
        "completed",
        "cache",
        100.0,
        4,
    )
    assert told.all[-1]["type"] == "download_complete"


@pytest.mark.parametrize("fault", [Status(404), Status(503), Corrupt((7,))], ids=["gone", "broken", "wrong bytes"])
def test_a_failure_says_why_in_its_last_event(cache: Cache, origin: Origin, told: Events, fault: Any) -> None:
    origin.faults(fault, path="part-2")
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(manifest_of(origin, FILES), progress=told)
    check_progress(told.progress, "m")
    (failed,) = [event for event in of_file(told) if event["status"] == "error"]
    assert (failed["file"], failed["done"], bool(failed["error"])) == ("part-2", False, True)
    last = told.progress[-1]
    assert (last["status"], last["error"], last["completedFiles"]) == ("error", failure.value.message, 3)
    assert (last["started"], last["done"], last["downloading"]) == (True, True, False)
    assert not told.of("download_complete")


def test_a_pause_ends_a_run_and_a_resume_begins_where_it_was(cache: Cache, origin: Origin, told: Events) -> None:
    hold = Hold(4_000_000, times=1)
    origin.faults(hold)
    download = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, wait=False, progress=told)
    assert hold.reached.wait(60)
    told.wait_until(lambda told: any(event["bytesDownloaded"] >= 3_000_000 for event in told.progress))
    download.pause()
    assert download.wait_stopped(20)
    paused = told.progress
    check_progress(paused, download.order.id)
    assert (paused[-1]["status"], paused[-1]["done"], paused[-1]["downloading"]) == ("paused", True, False)
    assert not told.of("download_complete")
    hold.release.set()
    origin.faults(Slow(2_000_000))
    download.resume()
    download.result(60)
    resumed = told.progress[len(paused) :]
    check_progress(resumed, download.order.id)
    assert min(event["bytesDownloaded"] for event in resumed if event["status"] == "downloading") >= 3_000_000
    assert resumed[-1]["status"] == "completed"
    assert len(told.of("download_complete")) == 1


def test_the_second_mirror_is_named_once_it_delivers(cache: Cache, origin: Origin, told: Events) -> None:
    with Origin({"m.gguf": CONTENT}) as mirror:
        origin.faults(CutAt(2_000_000))
        mirror.faults(Slow(3_000_000))
        first, second = origin.url("m.gguf"), mirror.url("m.gguf")
        cache.fetch(first, sha256=CONTENT.sha256, mirrors=[second], progress=told)
    check_progress(told.progress, cache.models().rows[0]["model"])
    check_pace(told.progress[:-1])
    moving = [event for event in told.progress if event["status"] == "downloading" and event["gateway"] == second]
    assert len(moving) >= 3
    assert min(event["bytesDownloaded"] for event in moving) > 1_000_000
    assert moving[-1]["retryCount"] >= 1
    assert told.progress[-1]["gateway"] == second


def test_what_is_only_read_is_told_as_often(cache: Cache, origin: Origin, told: Events, tmp_path: Path) -> None:
    """A store that has the content proves it anew, and an output is copied and read back: that takes its time."""
    big = Content.generated(400_000_000, seed=5)
    origin.put("big.bin", big)
    cache.fetch(origin.url("big.bin"), sha256=big.sha256)
    cache.fetch(manifest_of(origin, {"big.bin": big}), output=tmp_path / "out", progress=told)
    check_progress(told.progress, "m")
    check_pace(told.progress)
    reading = [event for event in told.progress if event["status"] == "downloading"]
    ends = [index for index, event in enumerate(told.progress) if event["status"] == "success"]
    assert not any(event["file"] for event in told.progress[ends[-1] + 1 :])  # its file has been told to its end
    assert {event["source"] for event in reading} == {"cache"}
    assert any(0 < event["bytesDownloaded"] <= big.size and event["downloadSpeed"] > 0 for event in reading)


# -- what is installed ----------------------------------------------------------------------------------------------


def names(told: Events) -> list[tuple[str, str, str, str]]:
    kinds = ("installed", "updated", "repaired", "removed")
    return [(event["type"], event["modelId"], event["version"], event["path"]) for event in told.of(*kinds)]


def test_the_life_of_a_model_in_events(cache: Cache, origin: Origin, told: Events) -> None:
    """Each with id, version and path, so that whoever has it loaded can load it again (C6)."""
    cache.on_event(told)
    one, two = (cache.fetch(manifest_of(origin, FILES, version=version)).path for version in ("1", "2"))
    assert cache.path("m") == two
    rot(Path(two, "part-1"), 5)
    cache.verify("m")
    cache.repair(["m"])
    cache.remove("m", "1")
    cache.remove("m")
    cache.close()
    assert names(told) == [
        ("installed", "m", "1", one), ("updated", "m", "2", two), ("repaired", "m", "2", two),
        ("removed", "m", "1", one), ("removed", "m", "2", two),
    ]  # fmt: skip


def test_a_hit_a_failure_and_an_output_alone_install_nothing(
    cache: Cache, origin: Origin, told: Events, tmp_path: Path
) -> None:
    cache.fetch(manifest_of(origin, FILES))
    cache.on_event(told)
    cache.fetch(manifest_of(origin, FILES))
    cache.fetch(manifest_of(origin, FILES, model="n"), output=tmp_path / "out", cache=False)
    origin.faults(Status(404))
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("m.gguf"))
    assert names(told) == []


def test_a_subscriber_that_loads_what_it_is_told_of_finds_it_whole(cache: Cache, origin: Origin) -> None:
    loaded: list[tuple[str, bytes]] = []

    def reload(event: dict[str, Any]) -> None:
        if event["type"] in ("installed", "updated", "repaired"):
            loaded.append((cache.path(event["modelId"]), Path(event["path"], "part-0").read_bytes()))

    cache.on_event(reload)
    folder = cache.fetch(manifest_of(origin, FILES)).path
    rot(Path(folder, "part-0"), 5)
    cache.repair(["m"])
    cache.verify("m")
    assert loaded == [(folder, FILES["part-0"].read())] * 2


# -- subscribers that misbehave -------------------------------------------------------------------------------------


def raises(event: dict[str, Any]) -> None:
    raise ValueError(event["type"])


def leaves(event: dict[str, Any]) -> None:
    raise SystemExit(3)


def interrupts(event: dict[str, Any]) -> None:
    raise KeyboardInterrupt


def spoils(event: dict[str, Any]) -> None:
    event.clear()


@pytest.mark.parametrize("bad", [raises, leaves, interrupts, spoils])
def test_a_subscriber_that_misbehaves_harms_nobody(cache: Cache, origin: Origin, told: Events, bad: Any) -> None:
    cache.on_event(bad)
    cache.on_event(told)
    model = cache.fetch(manifest_of(origin, FILES), progress=bad)
    assert Path(model.path, "part-3").read_bytes() == FILES["part-3"].read()
    check_progress(told.progress, "m")
    assert told.all[-1]["type"] == "download_complete"
    assert [row["finding"] for row in cache.verify("m", progress=bad)] == ["whole"] * 4


def test_a_slow_subscriber_gets_every_fact_in_order(cache: Cache, origin: Origin, told: Events) -> None:
    """The download does not wait for it."""
    origin.faults(Slow(3_000_000))
    goes_on, ended = threading.Event(), threading.Event()

    def slow(event: dict[str, Any]) -> None:
        if event["type"] == "model_download_progress" and event["status"] == "downloading":
            goes_on.wait(60)
        told(event)
        if event["type"] == "download_complete":
            ended.set()

    download = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, wait=False, progress=slow)
    assert Path(download.result(60).path).read_bytes() == CONTENT.read()
    goes_on.set()
    assert ended.wait(60)
    assert told.progress[-1]["done"]
    kinds = [event["type"] for event in told.all]
    assert [kind for kind in kinds if kind in ("started", "file_ready", "installed", "completed")] == [
        "started", "file_ready", "installed", "completed",
    ]  # fmt: skip
    assert told.of("file_ready")[0]["gateway"] == origin.url("m.gguf")  # the source, not its kind


EXITS = """if True:
    import os, sys
    from modelcache.caching import Cache
    cache = Cache()
    def die(event):
        if event["type"] == "installed":
            os._exit(7)
    cache.on_event(die)
    cache.fetch(sys.argv[1])
"""


def test_a_subscriber_that_ends_its_process_leaves_what_was_told(cache: Cache, origin: Origin) -> None:
    ended = subprocess.run([sys.executable, "-c", EXITS, origin.url("m.gguf")], timeout=60, check=False, env=os.environ)
    assert ended.returncode == 7
    assert Path(cache.path(origin.url("m.gguf"))).read_bytes() == CONTENT.read()
