"""Downloads of before: what is shown of them, going on with them, and letting them go."""

import contextlib
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import Events, manifest_of, partials, run, start, written
from crash import eventually

from modelcache.again import parsed, to_text
from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, LockedError, ModelCacheError, UnknownDownloadError, UsageError
from modelcache.model import Digest
from modelcache.testing import Content, Corrupt, Cut, Fault, Origin, Slow, Status
from modelcache.wish import Wish

FILE = Content.generated(3_000_000, seed=3)
HALF = 1_500_000


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "other.bin": FILE, "third.bin": FILE}) as origin:
        yield origin


def cut_at_half(cache: Cache, origin: Origin, query: str = "", status: int = 404) -> str:
    """The id of a download that failed with half of its bytes here."""
    origin.faults(Cut(HALF, times=1), Status(status, after=1))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("m.bin") + query, sha256=FILE.sha256, progress=False)
    origin.heal()
    (row,) = cache.downloads()
    return str(row["id"])


def test_a_failed_download_is_listed_and_goes_on_where_it_was(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin)
    (row,) = cache.downloads("failed")
    assert 0 < row["downloaded_bytes"] <= HALF and row["currentSize"] == row["downloaded_bytes"]
    assert (row["total_bytes"], row["attempts"], row["cidId"]) == (FILE.size, 1, None)
    assert row["error_message"] and row["completed_at"] == 0
    record = cache.resume(download_id)
    assert (record.status, record.attempts, record.hash) == ("success", 2, FILE.sha256)
    assert Path(record.path).read_bytes() == FILE.read(0, FILE.size)
    assert record.completed_at >= record.started_at > 0
    assert origin.requests[-1].range.startswith("bytes=")


def test_resuming_what_is_ready_does_nothing(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin)
    cache.resume(download_id)
    before = len(origin.requests)
    record = cache.resume(download_id)
    assert (record.status, record.attempts) == ("success", 2)
    assert len(origin.requests) == before


def test_the_same_fetched_again_has_the_same_record(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin)
    cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)
    record = cache.download(download_id)
    assert (record.status, record.attempts, len(cache.downloads())) == ("success", 2, 1)


def test_a_query_is_kept_until_the_download_is_over_and_never_shown(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin, "?token=s3cret", status=503)
    assert "s3cret" not in str(cache.downloads()) + str(cache.download(download_id))
    (asked,) = Path(cache.root, "state").glob("*.requests/*")
    assert b"s3cret" in asked.read_bytes() and asked.stat().st_mode & 0o777 == 0o600
    cache.resume(download_id)
    assert origin.requests[-1].path.endswith("?token=s3cret")
    assert not any(b"s3cret" in path.read_bytes() for path in Path(cache.root).rglob("*") if path.is_file())


def asked(cache: Cache) -> list[Path]:
    return list(Path(cache.root, "state").glob("*.requests/*"))


@pytest.mark.parametrize("fault", [Status(401), Status(403), Status(404), Status(410), Corrupt(5)])
def test_a_query_is_not_kept_where_asking_again_would_fail_again(cache: Cache, origin: Origin, fault: Fault) -> None:
    origin.faults(fault)
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("m.bin") + "?token=s3cret", sha256=FILE.sha256, progress=False)
    (row,) = cache.downloads()
    assert (row["status"], row["canResume"], asked(cache)) == ("failed", False, [])


def test_reset_forgets_what_was_asked_of_that_model_alone(cache: Cache, origin: Origin) -> None:
    cut_at_half(cache, origin, "?token=s3cret", status=503)
    cache.fetch(manifest_of(origin, {"m.bin": FILE}), progress=False)
    (failed,) = cache.downloads("failed")
    cache.reset(failed["model"])
    assert [row["status"] for row in cache.downloads()] == ["success"]
    assert asked(cache) == []


@pytest.mark.parametrize("status", ["paused", "failed", "in_progress"])
def test_an_old_record_is_forgotten_once_none_of_its_bytes_are_here(
    cache: Cache, cache_root: Path, origin: Origin, status: str
) -> None:
    """What `in_progress` says is of a process that is gone."""
    download_id = cut_at_half(cache, origin, "?token=s3cret", status=503)
    cache.close()
    (database,) = Path(cache.root, "state").glob("*.db")
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE downloads SET status = ?, last_attempt = 1, owner = ''", (status,))

    def known_after_a_fetch(name: str) -> list[str]:
        with contextlib.closing(Cache(cache_root, metrics_age=3600)) as later:
            later.fetch(origin.url(name), progress=False)
            return [row["id"] for row in later.downloads() if row["id"] == download_id]

    assert known_after_a_fetch("other.bin") == [download_id]
    assert asked(cache)
    for folder in partials(cache):
        shutil.rmtree(folder)
    assert known_after_a_fetch("third.bin") == []
    assert asked(cache) == []


@pytest.mark.parametrize("where", [";token=s3cret/m.bin", "m.bin;jsessionid=s3cret", "m.bin#s3cret", "m.bin?s3cret"])
def test_no_secret_of_a_url_outlives_what_asking_again_would_not_mend(cache: Cache, origin: Origin, where: str) -> None:
    origin.faults(Status(403))
    with pytest.raises(AllSourcesFailedError) as raised:
        cache.fetch(origin.url("m.bin").replace("m.bin", where), progress=False)
    cache.close()
    assert b"s3cret" not in written(cache)
    assert "s3cret" not in raised.value.line()


def test_clean_forgets_what_was_asked_when_it_is_old(cache: Cache, origin: Origin) -> None:
    cut_at_half(cache, origin, "?token=s3cret", status=503)
    assert "request" not in {row["kind"] for row in cache.clean()}
    origin.faults(Slow(300_000))
    running = start("fetch", origin.url("other.bin") + "?other", "--quiet")
    try:
        wait_for_status(cache, "in_progress")
        (kept,) = (row["id"] for row in cache.downloads("in_progress"))
        removed = [row for row in Cache(cache.root, stale_partial_age=0).clean() if row["kind"] == "request"]
        assert len(removed) == 1 and "s3cret" not in str(removed)
        assert [path.stem for path in asked(cache)] == [kept]
    finally:
        running.kill()
        running.communicate(timeout=60)


def test_a_model_of_a_manifest_is_resumed_in_another_process(cache: Cache, origin: Origin) -> None:
    manifest = manifest_of(origin, {"m.bin": FILE})
    origin.faults(Cut(HALF, times=1), Status(404, after=1))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(manifest, progress=False)
    origin.heal()
    (row,) = cache.downloads()
    cache.close()
    ended = run("resume", row["id"], "--quiet")
    assert ended.returncode == 0, ended.stderr
    assert (Path(ended.stdout.strip()) / "m.bin").stat().st_size == FILE.size


def test_what_is_cancelled_is_removed_and_not_resumed(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin)
    for way in (cache, Cache(cache.root)):  # the second knows only the record
        record = way.cancel(download_id)
        assert record.status == "failed" and "cancelled" in record.error_message
        assert partials(cache) == []
    with pytest.raises(UsageError, match="not known any more"):
        Cache(cache.root).resume(download_id)


def test_what_another_process_fetches_is_not_cancelled_and_reads_as_paused_once_it_is_dead(
    cache: Cache, origin: Origin
) -> None:
    origin.faults(Slow(300_000))
    process = start("fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet")
    try:
        rows = wait_for_status(cache, "in_progress")
        with pytest.raises(LockedError):
            cache.cancel(rows[0]["id"])
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    (row,) = cache.downloads("paused")
    assert row["id"] == rows[0]["id"]
    origin.heal()
    assert cache.resume(row["id"]).status == "success"


def wait_for_status(cache: Cache, status: str) -> list[dict[str, object]]:
    assert eventually(lambda: len(cache.downloads(status)) > 0)
    return list(cache.downloads(status))


def test_an_id_or_status_that_there_is_not(cache: Cache) -> None:
    for ask in (cache.download, cache.resume, cache.cancel):
        with pytest.raises(UnknownDownloadError):
            ask("nobody")
    with pytest.raises(UsageError, match="one of pending"):
        cache.downloads("finished")


def test_requests_are_counted_hits_included(cache: Cache, origin: Origin) -> None:
    for _ in range(3):
        cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)
    (row,) = cache.usage()
    assert (row["request_count"], row["rank"]) == (3, 1)
    assert row["model_id"].startswith("url--m.bin--")


@pytest.mark.parametrize("column", ["requests", "last_used"])
@pytest.mark.parametrize("garbage", ["many", None, b"\xff", 0.5])
def test_what_is_no_count_of_requests_is_left_out(
    cache: Cache, cache_root: Path, origin: Origin, column: str, garbage: object
) -> None:
    cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)
    assert len(cache.usage()) == 1
    (place,) = cache_root.glob("state/*.db")
    with contextlib.closing(sqlite3.connect(place, isolation_level=None)) as connection:
        connection.execute(f"UPDATE usage SET {column} = ?", (garbage,))
    assert list(cache.usage()) == []


def test_a_gateway_that_failed_is_asked_last_next_time(cache: Cache, origin: Origin) -> None:
    with Origin({"m.bin": FILE, "n.bin": FILE}) as broken, Origin({"m.bin": FILE, "n.bin": FILE}) as good:
        broken.faults(Status(500))
        cache.fetch(broken.url("m.bin"), sha256=FILE.sha256, mirrors=[good.url("m.bin")])
        cache.remove(broken.url("m.bin"))
        asked = len(broken.requests)
        assert asked
        cache.fetch(broken.url("n.bin"), sha256=FILE.sha256, mirrors=[good.url("n.bin")])
        assert len(broken.requests) == asked
    rates = {row["gateway"]: row["success_rate"] for row in cache.health()}
    assert sorted(rates.values()) == [0.0, 1.0]


def test_the_commands(cache: Cache, origin: Origin) -> None:
    download_id = cut_at_half(cache, origin, "?token=s3cret", status=503)
    cache.close()
    shown = run("status")
    assert shown.returncode == 0 and download_id in shown.stdout and "failed" in shown.stdout
    assert "of 2.9 MiB" in shown.stdout and "s3cret" not in shown.stdout
    (row,) = json.loads(run("status", "--status", "failed", "--json").stdout)
    assert {"id", "cidId", "downloadPath", "status", "downloaded_bytes", "total_bytes", "error_message", "started_at",
            "completed_at", "attempts", "lastAttempt", "currentSize", "hash"} <= set(row)  # fmt: skip
    assert json.loads(run("status", download_id, "--json").stdout)["id"] == download_id
    resumed = run("resume", "--all", "--quiet")
    assert resumed.returncode == 0 and Path(resumed.stdout.strip()).stat().st_size == FILE.size
    assert run("resume", "--all").stderr.strip() == "nothing to resume"
    assert "stays" in run("cancel", download_id).stderr
    assert run("status", "nobody").returncode == 4
    for wrong in (("resume",), ("resume", "x", "--all"), ("status", "x", "--status", "paused"), ("cancel",)):
        ended = run(*wrong)
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"format": 2}', "[" * 99_999, '{"format": 1, "ref": "x"}'])
def test_what_was_asked_may_be_garbage(text: str) -> None:
    with pytest.raises(UsageError):
        parsed(text)


def test_what_was_asked_comes_back_without_passwords_and_headers() -> None:
    wish = Wish((Digest("sha256", "0" * 64),), 5, "/out", ("https://a/m", "https://b/m?key=1"), {"X": "secret"})
    ref, again = parsed(to_text("https://user:pass@host/m?sig=1", wish))
    assert ref == "https://host/m?sig=1"
    assert (again.digests, again.size, again.output, again.mirrors) == (wish.digests, 5, "/out", ("https://a/m",))
    assert not again.headers


def test_events_name_the_record(cache: Cache, origin: Origin) -> None:
    told = Events()
    cache.fetch(origin.url("m.bin"), progress=told)
    (last,) = told.of("download_complete")
    assert cache.download(last["downloadId"]).status == "success"


def test_a_resumed_file_of_unknown_version_has_a_path_at_the_end(cache: Cache, origin: Origin) -> None:
    origin.faults(Cut(HALF, times=1), Status(503, after=1))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("m.bin"), progress=False)
    origin.heal()
    cache.close()
    (row,) = cache.downloads()
    ended = run("resume", row["id"], "--quiet")
    assert (ended.returncode, Path(ended.stdout.strip()).is_file()) == (0, True)
