"""What a machine, a disk or a user may do at the worst moment, one test each."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from caches import manifest_of
from crash import eventually

from modelcache.announcing import DRAIN_S
from modelcache.caching import Cache
from modelcache.errors import CancelledError, ModelNotAvailableError, StoreError, UsageError
from modelcache.testing import Content, Origin, Slow

CONTENT = Content.generated(200_000)
NAME = "模" * 80  # 240 bytes


def without_threads(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """No thread of such a name can be started from here on."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name in names:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_cancel_ends_where_partials_can_no_longer_be_listed(cache: Cache) -> None:
    with Origin({"a": Content.generated(50_000_000)}, faults=[Slow(2_000_000)]) as origin:
        download = cache.fetch(origin.url("a"), wait=False, progress=False)
        partials = Path(cache.root, "partials")
        assert eventually(lambda: partials.is_dir() and bool(list(partials.iterdir())))
        partials.rename(Path(cache.root, "moved"))
        partials.write_bytes(b"")
        download.cancel()
        with pytest.raises((CancelledError, StoreError)):
            download.result(timeout=60)


def test_a_download_ends_where_its_thread_cannot_be_started(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with Origin({"a": CONTENT}) as origin:
        with monkeypatch.context() as patch:
            without_threads(patch, "modelcache-download")
            download = cache.fetch(origin.url("a"), wait=False, progress=False)
        with pytest.raises(StoreError, match="thread"):
            download.result(timeout=60)
        assert download.wait_stopped(1)
        download.resume()
        assert download.result(timeout=60).path


def test_a_download_ends_where_no_file_thread_can_be_started(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch, "modelcache-file")
    with Origin({"a": CONTENT}) as origin, pytest.raises(StoreError, match="thread"):
        cache.fetch(origin.url("a"), wait=False, progress=False).result(timeout=60)


def test_a_download_succeeds_where_nobody_can_be_told(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.on_event(lambda event: None)
    without_threads(monkeypatch, "modelcache-dispatcher")
    with Origin({"a": CONTENT}) as origin:
        assert cache.fetch(origin.url("a"), wait=False, progress=False).result(timeout=60).path


@pytest.mark.parametrize("cached", [True, False])
def test_an_output_follows_the_symlinked_folders_of_its_user(cache: Cache, tmp_path: Path, cached: bool) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with Origin({"a": CONTENT}) as origin:
        cache.fetch(origin.url("a"), output=tmp_path / "link" / "x", cache=cached, progress=False)
        cache.fetch(manifest_of(origin, {"a": CONTENT}), output=tmp_path / "link", cache=cached, progress=False)
    assert (tmp_path / "real" / "x").stat().st_size == (tmp_path / "real" / "a").stat().st_size == CONTENT.size


@pytest.mark.parametrize("where", ["sub", "version"])
def test_removal_does_not_reach_through_a_symlinked_folder(cache: Cache, tmp_path: Path, where: str) -> None:
    with Origin({"sub/a": CONTENT}) as origin:
        model = cache.fetch(manifest_of(origin, {"sub/a": CONTENT}), progress=False)
    folder = Path(model.path, "sub") if where == "sub" else Path(model.path)
    outside = tmp_path / "outside"
    shutil.move(folder, outside)
    folder.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    cache.remove("m")
    assert sorted(outside.rglob("*")) == before
    assert not os.path.lexists(model.path)


@pytest.mark.parametrize("cached", [True, False])
def test_a_long_name_is_cut_in_bytes_for_temporary_names(cache: Cache, tmp_path: Path, cached: bool) -> None:
    with Origin({"a": CONTENT}) as origin:
        cache.fetch(origin.url("a"), output=tmp_path / NAME, cache=cached, progress=False)
    assert (tmp_path / NAME).stat().st_size == CONTENT.size


@pytest.mark.parametrize(
    "setting",
    [{"connect_timeout": float("inf")}, {"connect_timeout": 1e300}, {"parallel_files": 2.5}, {"window": True}],
)
def test_a_setting_that_no_machine_can_follow_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        Cache(**setting)


def test_a_header_that_is_no_text_is_refused_by_name(cache: Cache) -> None:
    with pytest.raises(UsageError, match="'X'"):
        cache.fetch("http://127.0.0.1:1/a", headers={"X": 5}, progress=False)  # type: ignore[dict-item]


def test_an_output_inside_the_cache_is_refused_under_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for root, output in [("link", "real"), ("real", "link")]:
        with pytest.raises(UsageError, match="inside the cache"):
            Cache(tmp_path / root).fetch("http://127.0.0.1:1/a", output=tmp_path / output / "x", progress=False)


def test_a_blocked_subscriber_costs_its_time_once(cache: Cache) -> None:
    goes_on = threading.Event()
    end = cache.on_event(lambda event: goes_on.wait(60) and None)
    with Origin({"a": CONTENT}) as origin:
        cache.fetch(origin.url("a"), progress=False)
        began = time.monotonic()
        for _ in range(20):
            cache.fetch(origin.url("a"), progress=False)
    assert time.monotonic() - began < 20 * DRAIN_S / 2
    end()
    goes_on.set()


def test_removal_without_a_version_takes_all_of_them(cache: Cache) -> None:
    files = {"a": CONTENT, "b": Content.generated(300_000)}
    with Origin(files) as origin:
        for version, path in enumerate(files):
            cache.fetch(manifest_of(origin, {path: files[path]}, version=str(version)), progress=False)
            cache.fetch(manifest_of(origin, {path: files[path]}, "n", str(version)), progress=False)
    assert sum(row["size"] for row in cache.remove("n@0")) == 0
    assert cache.path("n", "1")
    cache.remove("n")
    assert sum(row["size"] for row in cache.remove("m")) == 500_000
    assert not cache.models()
    with pytest.raises(ModelNotAvailableError):
        cache.remove("m")
