"""The files that reports become: each cell what happened, each file whole, whatever the folder does."""

import contextlib
import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from caches import rot, run
from foreign import hub_cache
from hosts import can_be_had
from prometheus_client.parser import text_string_to_metric_families

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, ModelCacheError, StoreError, UsageError
from modelcache.events import now_ms
from modelcache.history import Attempt
from modelcache.jobs.job import Config
from modelcache.jobs.publish_metrics import run as publish_job
from modelcache.reporting.overview import SUMMARY
from modelcache.reporting.publishing import DOWNLOADS
from modelcache.reporting.window import DAY_MS, day_of
from modelcache.rows import Report
from modelcache.state.place import Place
from modelcache.state.state import State
from modelcache.state.uses import Uses
from modelcache.testing import Content, CutAt, Hub, Origin, Status

MIB = 1 << 20
FILE = Content.generated(3 * MIB, seed=5)
TODAY = day_of(now_ms())
GOOD = Attempt("http", "a.example", "success", "f", "m", latency_ms=10, duration_ms=110, bytes=1000)


@pytest.fixture(autouse=True)
def _one_day() -> None:
    """A test that begins before midnight of UTC and ends after it would look into the wrong file."""
    if day_of(now_ms()) != TODAY:
        pytest.skip("a new day has begun")


@pytest.fixture
def origin(one_connection: None) -> Iterator[Origin]:
    with Origin({f"{n}.bin": FILE for n in range(9)}) as origin:
        yield origin


def keep(root: Path, *attempts: Attempt) -> None:
    state = State(str(root), Uses(), 90 * 86400.0)
    state(attempts)
    state.close()


def sheet(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode(), newline="")))


def downloads(root: Path, day: str = TODAY) -> list[dict[str, str]]:
    return sheet(root / "reports" / f"downloads-{day}.csv")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what happened, cell by cell --------------------------------------------------------------------------------------


def test_every_cell_of_the_downloads_is_what_the_sources_did(
    cache: Cache, origin: Origin, home: Path, tmp_path: Path
) -> None:
    began = now_ms()
    host, sha = f"127.0.0.1:{origin.port}", FILE.sha256

    def row(n: int, status: str, **cells: object) -> dict[str, object]:
        """Of file n."""
        blank = {
            "host": Place.of(str(home)).host, "model": "", "file": f"{n}.bin", "layer": "http", "gateway": host,
            "status": status, "bytes": 0, "resumed_bytes": 0, "attempt": 1, "error_type": "", "error_message": "",
            "http_status": 200,
        }  # fmt: skip
        return blank | cells

    cache.fetch(origin.url("0.bin"), sha256=sha)
    expected = [row(0, "success", bytes=FILE.size)]

    origin.faults(Status(503, times=1), path="1.bin")
    cache.fetch(origin.url("1.bin"), checksum=f"sha256:{sha}", output=tmp_path / "one")  # its content is here
    expected += [row(1, "hit", layer="cache", gateway="cache", bytes=FILE.size, http_status="")]
    cache.remove(origin.url("0.bin"))
    cache.remove(origin.url("1.bin"))

    cache.fetch(origin.url("1.bin"), sha256=sha)
    expected += [
        row(1, "error", error_type="network", error_message="503: …", http_status=503),
        row(1, "success", bytes=FILE.size, attempt=2),
    ]
    cache.remove(origin.url("1.bin"))

    origin.faults(CutAt(MIB), path="2.bin")
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("2.bin"), sha256=sha)
    origin.heal()
    cut = [seen for seen in origin.requests if seen.path.endswith("2.bin")]
    origin.faults(Status(503, times=1), path="2.bin")
    cache.fetch(origin.url("2.bin"), sha256=sha)

    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("nothing.bin"))

    other = Content.generated(3 * MIB, seed=6)
    origin.put("wrong.bin", other)
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("wrong.bin"), sha256="0" * 64)

    cache.publish_metrics()
    rows = downloads(home)
    assert [*rows[0]] == list(DOWNLOADS)
    for found in rows:
        assert began <= datetime.fromisoformat(found["timestamp"]).timestamp() * 1000 <= now_ms()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["timestamp"])
        if found["status"] == "hit":
            assert (found["gateway"], found["latency_ms"], found["http_status"]) == ("cache", "", "")
        elif found["http_status"]:
            assert 0 <= int(found["latency_ms"]) < 60_000
    first = rows[: len(expected)]
    for found, wanted in zip(first, expected, strict=True):
        url = origin.url(str(wanted["file"]))
        assert found["model"].startswith(f"url--{wanted['file']}--") and url
        assert {name: found[name] for name in wanted if name not in ("model", "error_message")} == {
            name: str(cell) for name, cell in wanted.items() if name not in ("model", "error_message")
        }
        assert bool(found["error_message"]) == bool(wanted["error_message"])

    of_two = [found for found in rows if found["file"] == "2.bin"]
    (resumed,) = [found for found in of_two if found["status"] == "success"]
    brought = sum(int(found["bytes"]) for found in of_two)
    assert brought == FILE.size and int(resumed["resumed_bytes"]) == FILE.size - int(resumed["bytes"])
    assert resumed["http_status"] == "206"
    assert len([found for found in of_two if found["status"] == "error"]) == len(cut) + 1
    assert [found["resumed_bytes"] for found in of_two if found["http_status"] == "503"] == ["0"]  # it saved nothing
    assert {found["error_type"] for found in of_two if found["status"] == "error"} == {"network"}

    (gone,) = [found for found in rows if found["file"] == "nothing.bin"]
    assert (gone["status"], gone["error_type"], gone["http_status"], gone["bytes"]) == (
        "error",
        "not_found",
        "404",
        "0",
    )
    assert "404" in gone["error_message"]

    wrong = [found for found in rows if found["file"] == "wrong.bin"]
    assert "integrity" in {found["error_type"] for found in wrong}
    seen = sum(seen.bytes_sent for seen in origin.requests if seen.path.endswith("wrong.bin"))
    assert sum(int(found["bytes"]) for found in wrong) == seen


def test_the_summary_is_what_the_downloads_come_to(cache: Cache, origin: Origin, home: Path) -> None:
    origin.faults(Status(503, times=1), path="0.bin")
    for n in range(3):
        cache.fetch(origin.url(f"{n}.bin"), sha256=FILE.sha256)
    cache.close()
    again = Cache(home)
    again.fetch(origin.url("0.bin"))
    again.publish_metrics()
    again.close()
    rows, summary = downloads(home), sheet(home / "reports" / f"summary-{TODAY}.csv")
    assert [*summary[0]] == list(SUMMARY)
    assert Counter(row["status"] for row in rows) == {"error": 1, "success": 1, "hit": 3}
    keys = {"layer": "layer", "model": "model"}
    for line in summary:
        if line["group"] in keys:
            mine = [row for row in rows if row[keys[line["group"]]] == line["key"]]
            assert int(line["total"]) == len(mine)
            assert int(line["error"]) == sum(row["status"] == "error" for row in mine)
            assert int(line["success"]) == len(mine) - int(line["error"])
            assert float(line["success_rate"]) == round(int(line["success"]) / len(mine), 4)
            assert int(line["bytes"]) == sum(int(row["bytes"]) for row in mine if row["status"] != "hit")
            assert int(line["bytes_saved_cache"]) == sum(int(row["bytes"]) for row in mine if row["status"] == "hit")
            assert int(line["bytes_saved_resume"]) == sum(int(row["resumed_bytes"]) for row in mine)
    assert [line["key"] for line in summary if line["group"] == "gateway"] == ["cache", f"127.0.0.1:{origin.port}"]
    (day,) = [line for line in summary if line["group"] == "day"]
    assert (day["key"], day["total"]) == (TODAY, "5")


def test_what_a_tier_has_is_a_hit_of_its_kind(cache: Cache, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with Hub() as hub:
        hub.publish("org/name", {"model.safetensors": FILE}, commit="1" * 40)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub_cache(tmp_path / "huggingface" / "hub", {"model.safetensors": FILE})
        cache.fetch(f"hf:org/name@{'1' * 40}")
    (row,) = [row for row in cache.report(by="gateway") if row["key"] == "hf"]
    assert (row["total"], row["success"], row["bytes"], row["bytes_saved_cache"]) == (1, 1, 0, FILE.size)


def test_a_file_that_has_rotted_is_counted_once(cache: Cache, origin: Origin, home: Path) -> None:
    cache.fetch(origin.url("0.bin"), sha256=FILE.sha256)
    model = next(iter(cache.models()))["model"]
    place = cache.path(origin.url("0.bin"))
    rot(place, 10)
    for _ in range(2):
        assert [row["finding"] for row in cache.verify()] == ["corrupt"]
    cache.fetch(origin.url("0.bin"), sha256=FILE.sha256)
    cache.publish_metrics()
    wrong = [row for row in downloads(home) if row["layer"] == "cache" and row["status"] == "error"]
    assert [(row["model"], row["file"], row["error_type"]) for row in wrong] == [(model, "0.bin", "integrity")]
    assert samples(home)["modelcache_corrupt_files_total"] == {(): 1}


# -- Prometheus -------------------------------------------------------------------------------------------------------


def samples(root: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the values of the labels, as Prometheus's own parser reads them."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    text = (root / "reports" / "modelcache.prom").read_bytes().decode()
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_prometheus_reads_its_text_whatever_labels_hold(cache: Cache, home: Path) -> None:
    hostile = 'a"b\\c\nd{e="f"} 1\r\u2028ü'
    keep(
        home, GOOD, replace(GOOD, duration_ms=7_000), replace(GOOD, duration_ms=4_000_000),
        replace(GOOD, gateway=hostile), Attempt("cache", "", "hit", bytes=70),
        replace(GOOD, status="error", error_type="network", bytes=3),
    )  # fmt: skip
    (home / "blobs" / "sha256" / "ab").mkdir(parents=True)
    (home / "blobs" / "sha256" / "ab" / ("ab" * 32)).write_bytes(bytes(1234))
    cache.publish_metrics()
    found = samples(home)
    assert found["modelcache_downloads_total"] == {
        ("http", "a.example", "success"): 3, ("http", hostile, "success"): 1, ("cache", "cache", "hit"): 1,
        ("http", "a.example", "error"): 1,
    }  # fmt: skip
    assert found["modelcache_bytes_total"] == {
        ("http", "a.example"): 3003,
        ("http", hostile): 1000,
        ("cache", "cache"): 70,
    }
    within = {key[0]: value for key, value in found["modelcache_download_seconds_bucket"].items()}
    assert (within["0.1"], within["0.5"], within["5.0"], within["10.0"], within["3600.0"]) == (0, 2, 2, 3, 3)
    assert within["+Inf"] == found["modelcache_download_seconds_count"][()] == 4
    assert found["modelcache_download_seconds_sum"][()] == pytest.approx(4007.22)
    assert found["modelcache_cache_bytes"][()] == 1234 and found["modelcache_corrupt_files_total"][()] == 0


def test_counters_do_not_fall_when_attempts_become_days(home: Path) -> None:
    keep(home, *(replace(GOOD, timestamp=now_ms() - 5 * DAY_MS, duration_ms=2**n) for n in range(12)))
    Cache(home).publish_metrics()
    before = samples(home)
    state = State(str(home), Uses(), 3600.0)
    state([replace(GOOD, bytes=0)])
    state.close()
    Cache(home).publish_metrics()
    after = samples(home)
    assert after["modelcache_downloads_total"] == {("http", "a.example", "success"): 13}
    assert after["modelcache_bytes_total"] == before["modelcache_bytes_total"]
    buckets = after["modelcache_download_seconds_bucket"]
    assert list(buckets.values()) == sorted(buckets.values()) and buckets["+Inf",] == 13
    with contextlib.closing(sqlite3.connect(Place.of(str(home)).database)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM days").fetchone()[0] == 1


# -- the folder -------------------------------------------------------------------------------------------------------


def test_publishing_twice_changes_nothing_and_missed_days_are_caught_up_on(home: Path) -> None:
    now = now_ms()
    keep(home, *(replace(GOOD, timestamp=now - back * DAY_MS) for back in (0, 1, 4)))
    cache = Cache(home)
    days = [day_of(now - back * DAY_MS) for back in (4, 1, 0)]
    wanted = sorted(
        [*(f"{name}-{day}.csv" for name in ("downloads", "summary") for day in days), "report.html", "modelcache.prom"]
    )
    first = cache.publish_metrics()
    assert names(home / "reports") == wanted and len(first) == len(wanted)
    before = {path.name: path.read_bytes() for path in (home / "reports").glob("*.csv")}
    second = cache.publish_metrics()
    assert {path.name: path.read_bytes() for path in (home / "reports").glob("*.csv")} == before
    assert {Path(row["file"]).name for row in second} >= {f"downloads-{days[-1]}.csv", "report.html"}
    assert f"downloads-{days[0]}.csv" not in {Path(row["file"]).name for row in second}  # that day is over
    assert [len(downloads(home, day)) for day in days] == [1, 1, 1]


def test_a_day_that_was_not_over_is_written_again(home: Path) -> None:
    keep(home, replace(GOOD, timestamp=now_ms() - 3 * DAY_MS))
    cache, day = Cache(home), day_of(now_ms() - 3 * DAY_MS)
    cache.publish_metrics()
    path = home / "reports" / f"downloads-{day}.csv"
    path.write_text("of noon")
    cache.publish_metrics()
    assert path.read_text() == "of noon"
    noon = (now_ms() - 3 * DAY_MS) / 1000
    os.utime(path, (noon, noon))
    cache.publish_metrics()
    assert len(downloads(home, day)) == 1


@pytest.mark.parametrize("lost", ["all", "one of two"])
def test_a_sheet_is_not_replaced_by_one_that_lacks_rows_it_had(home: Path, lost: str) -> None:
    keep(home, *[GOOD] * 20, replace(GOOD, model="=x", bytes=7))
    Cache(home).publish_metrics()
    before = {path: path.read_bytes() for path in (home / "reports").glob("*.csv")}
    database = Path(Place.of(str(home)).database)
    if lost == "all":
        database.write_bytes(b"garbage")
        keep(home, *[replace(GOOD, bytes=3)] * 30)  # more than there were, and others
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DELETE FROM attempts WHERE rowid = 1")
    found = Cache(home).publish_metrics()
    (left,) = [row for row in found if row["reason"]]
    assert (found.findings, Path(left["file"]).name) == (1, f"downloads-{TODAY}.csv")
    assert f"{21 if lost == 'all' else 1} of its rows" in left["reason"]
    assert {path: path.read_bytes() for path in (home / "reports").glob("*.csv")} == before
    os.rename(left["file"], left["file"] + ".kept")
    assert Cache(home).publish_metrics().findings == 0
    assert len(downloads(home)) == (30 if lost == "all" else 20)


def test_a_damaged_database_leaves_the_sheet_and_the_job_says_so(home: Path) -> None:
    keep(home, *[GOOD] * 20)
    assert run("jobs", "run", "publish-metrics").returncode == 0
    Path(Place.of(str(home)).database).write_bytes(b"garbage")
    done = run("jobs", "run", "publish-metrics")
    assert done.returncode == 1 and "20 of its rows are in no database any more" in " ".join(done.stdout.split())
    assert len(downloads(home)) == 20


@pytest.mark.parametrize("garbage", [b"", b"\xff\0" * 999, b"timestamp,bytes\n1", b"x" * 300_000])
def test_a_sheet_that_is_garbage_is_written_anew(home: Path, garbage: bytes) -> None:
    keep(home, GOOD)
    (home / "reports").mkdir()
    (home / "reports" / f"downloads-{TODAY}.csv").write_bytes(garbage)
    assert Cache(home).publish_metrics().findings == 0
    assert len(downloads(home)) == 1


def test_a_day_that_a_clock_ahead_has_written_is_written_again(home: Path) -> None:
    cache = Cache(home)
    for count in (1, 2):
        keep(home, replace(GOOD, timestamp=now_ms()))
        cache.publish_metrics()
        assert len(downloads(home)) == count
        for path in (home / "reports").glob("*.csv"):
            os.utime(path, (now_ms() / 1000 + 2 * 86_400,) * 2)


def test_old_reports_go_and_nothing_else(home: Path) -> None:
    folder = home / "reports"
    folder.mkdir(parents=True)
    old = ["downloads-2020-01-01.csv", "summary-2020-01-01.csv", "downloads-2020-01-01.parquet"]
    mine = ["notes.txt", "downloads-2020-01-01.csv.bak", "downloads.csv", "summary-2020-1-1.csv", ".x.1234abcd.tmp"]
    for name in [*old, *mine, ".downloads-2020-01-01.csv.1234abcd.tmp"]:
        (folder / name).write_text("x")
    (folder / "summary-2020-01-02.csv").mkdir()
    found = Cache(home).publish_metrics()
    assert [Path(row["file"]).name for row in found if row["removed"]] == sorted(old)
    left = {*names(folder)} - {f"downloads-{TODAY}.csv", f"summary-{TODAY}.csv", "report.html", "modelcache.prom"}
    assert left == {*mine, "summary-2020-01-02.csv"}


def test_the_store_grows_a_row_a_day(home: Path) -> None:
    blob = home / "blobs" / "sha256" / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    cache = Cache(home)
    for day, size in enumerate((100, 300, 300)):
        blob.write_bytes(bytes(size))
        cache.publish_metrics(clock=lambda day=day: now_ms() / 1000 + (day - 2) * 86400)  # type: ignore[misc]
    cache.publish_metrics()
    with contextlib.closing(sqlite3.connect(Place.of(str(home)).database)) as connection:
        rows = connection.execute("SELECT day, bytes, files FROM sizes ORDER BY day").fetchall()
    assert [row[1:] for row in rows] == [(100, 1), (300, 1), (300, 1)] and rows[-1][0] == TODAY
    assert "300 B" in (home / "reports" / "report.html").read_text()


def test_what_was_mended_needs_no_attention_and_stays_in_the_history(home: Path, origin: Origin) -> None:
    cache = Cache(home)
    paths = [cache.fetch(origin.url(f"{n}.bin"), progress=False).path for n in range(5)]

    def lead() -> str:
        cache.publish_metrics()
        return re.findall('class="lead [a-z]+">(.*?)<', (home / "reports" / "report.html").read_text())[0]

    for path in paths:
        rot(path, 5)
    cache.verify(progress=False)
    assert lead() == "1 thing needs attention"
    cache.repair(progress=False)
    assert lead() == "Nothing needs attention"
    assert {row["key"]: row["error"] for row in cache.report(by="gateway")}["cache"] == 5


def test_a_full_folder_leaves_what_was_there_and_says_so_in_a_line(home: Path, small_disk: Path) -> None:
    keep(home, *[GOOD] * 50)
    cache = Cache(home, reports_dir=str(small_disk / "reports"))
    cache.publish_metrics()
    before = {path: path.read_bytes() for path in (small_disk / "reports").iterdir()}
    with contextlib.suppress(OSError), (small_disk / "full").open("wb", 0) as full:
        while full.write(bytes(4096)):
            pass
    keep(home, *[GOOD] * 5000)
    with pytest.raises(StoreError, match="disk is full") as failure:
        cache.publish_metrics()
    assert "\n" not in failure.value.line() and "; free space, or choose another reports_dir" in failure.value.line()
    assert {path: path.read_bytes() for path in (small_disk / "reports").iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_named(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shut"
    folder.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="shut"):
        Cache(home, reports_dir=str(folder)).publish_metrics()


def test_a_folder_that_is_a_file_or_a_link_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file") as failure:
        Cache(home, reports_dir=str(tmp_path / "file")).publish_metrics()
    assert failure.value.next_step == "move it away, or choose another reports_dir"
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (home / "reports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="reports"):
        Cache(home).publish_metrics()
    assert names(tmp_path / "elsewhere") == []
    with pytest.raises(UsageError, match="reports_dir"):
        Cache(home, reports_dir="relative")


def test_parquet_has_the_same_rows(home: Path) -> None:
    pandas = pytest.importorskip("pandas")
    keep(home, GOOD, replace(GOOD, model="=x"))
    Cache(home).publish_metrics(parquet=True)
    frame = pandas.read_parquet(home / "reports" / f"downloads-{TODAY}.parquet")
    assert list(frame.columns) == list(DOWNLOADS) and sorted(frame["model"]) == ["=x", "m"]
    assert pandas.read_parquet(home / "reports" / f"summary-{TODAY}.parquet")["total"].sum() == 8


@pytest.mark.parametrize("measured", [True, False])
def test_what_nobody_measured_is_null_in_parquet_and_each_day_has_the_same_types(home: Path, measured: bool) -> None:
    pandas, parquet = pytest.importorskip("pandas"), pytest.importorskip("pyarrow.parquet")
    refused = replace(GOOD, status="error", latency_ms=0, duration_ms=0, bytes=0, error_type="network")
    keep(home, refused, *[replace(GOOD, latency_ms=5, http_status=206)] * measured)
    Cache(home).publish_metrics(parquet=True)
    sheets = {name: home / "reports" / f"{name}-{TODAY}.parquet" for name in ("downloads", "summary")}
    types = {name: [str(field.type) for field in parquet.read_schema(path)] for name, path in sheets.items()}
    whole, text = "int64", "string"
    assert [kind.removeprefix("large_") for kind in types["downloads"]] == [
        text, text, text, text, text, text, text, whole, whole, whole, whole, text, text, whole,
    ]  # fmt: skip
    assert [kind.removeprefix("large_") for kind in types["summary"]] == [
        text, text, whole, whole, whole, "double", whole, whole, whole, whole, whole, whole,
    ]  # fmt: skip
    frame = pandas.read_parquet(sheets["downloads"])
    assert frame["latency_ms"].isna().tolist() == [True, False][: 1 + measured]
    assert frame["latency_ms"].dropna().tolist() == [5] * measured
    assert frame["http_status"].dropna().tolist() == [206] * measured
    summary = pandas.read_parquet(sheets["summary"])
    for name, unknown in (("latency_p50_ms", not measured), ("throughput_bps", not measured), ("total", False)):
        assert summary[name].isna().all() == unknown, name
    assert summary["success_rate"].tolist() == [0.5 if measured else 0.0] * len(summary)


def test_a_report_in_parquet_reads_back_as_its_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = ({"n": 1, "f": 1.5, "t": "a\udc80", "b": True, "none": None}, {"n": None, "f": None, "t": None, "b": None})
    Report("some", rows).to_parquet(tmp_path / "r.parquet")
    frame = pandas.read_parquet(tmp_path / "r.parquet")
    assert [str(dtype) for dtype in frame.dtypes[:4]] == ["Int64", "Float64", "string", "boolean"]
    assert frame.iloc[0, :4].tolist() == [1, 1.5, "a?", True]
    assert frame.iloc[1].isna().all() and frame["none"].isna().all()


def test_without_the_extra_parquet_is_refused_in_a_sentence(home: Path, tmp_path: Path) -> None:
    (tmp_path / "without" / "pyarrow").mkdir(parents=True)
    (tmp_path / "without" / "pyarrow" / "__init__.py").write_text("raise ImportError('not here')")
    keep(home, GOOD)
    home.joinpath("modelcache.toml").write_text("[jobs.publish-metrics]\nparquet = true\n")
    path = os.pathsep.join([str(tmp_path / "without"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("jobs", "run", "publish-metrics", PYTHONPATH=path)
    assert done.returncode == 2 and "pip install 'modelcache[parquet]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [name for name in names(home / "reports") if "parquet" in name]


# -- the job ----------------------------------------------------------------------------------------------------------


def test_the_job_publishes_and_a_stop_ends_it_after_a_file(home: Path) -> None:
    keep(home, GOOD)
    stop = threading.Event()
    config = Config(Cache(home), {"since": "7d"})
    found = publish_job(config, stop=stop, clock=lambda: now_ms() / 1000)
    assert found is not None and found.findings == 0
    assert {Path(row["file"]).name for row in found} == {*names(home / "reports")}
    stop.set()
    assert len(publish_job(config, stop=stop, clock=lambda: now_ms() / 1000) or ()) == 0
    with pytest.raises(UsageError, match="colour"):
        publish_job(Config(config.cache, {"colour": 1}), stop=threading.Event(), clock=lambda: 0.0)


def test_the_job_runs_from_the_command_line_and_its_settings(home: Path, tmp_path: Path) -> None:
    keep(home, GOOD)
    home.joinpath("modelcache.toml").write_text(
        f"reports_dir = {json.dumps(str(tmp_path / 'out'))}\n[jobs.publish-metrics]\nsince = '2d'\n"
    )
    done = run("jobs", "run", "publish-metrics")
    assert done.returncode == 0, done.stderr
    assert f"downloads-{TODAY}.csv" in names(tmp_path / "out") and not (home / "reports").exists()
    mode = (tmp_path / "out" / "modelcache.prom").stat().st_mode & 0o777
    assert mode == 0o666 & ~_umask()  # node_exporter is another user


def _umask() -> int:
    return int(re.search(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[1], 8)  # type: ignore[index]


def test_a_damaged_state_does_not_keep_the_job_from_publishing(home: Path) -> None:
    keep(home, GOOD)
    Path(Place.of(str(home)).database).with_name("other.db").write_bytes(b"no database" * 999)
    found = publish_job(Config(Cache(home), {}), stop=threading.Event(), clock=lambda: now_ms() / 1000)
    assert found is not None and len(found.notes) == 1 and "other.db" in found.notes[0]
    assert "other.db" in (home / "reports" / "report.html").read_text()
    assert len(downloads(home)) == 1


# Reads the file in place of the mounts that this machine has, and has another name.
ELSEWHERE = 'hostname "$1" && mount --bind "$2" /proc/$$/mountinfo && shift 2 && exec "$@"'


@pytest.mark.skipif(not can_be_had(), reason="needs names and mounts of its own")
def test_on_a_network_disk_each_host_publishes_what_it_did_for_itself(
    home: Path, origin: Origin, tmp_path: Path
) -> None:
    home.mkdir()
    (tmp_path / "mounts").write_text(f"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / {home} rw - nfs4 b:/ rw\n")

    def on(host: str, *words: str) -> None:
        command = ["unshare", "--mount", "--uts", "sh", "-c", ELSEWHERE, "sh", host, str(tmp_path / "mounts")]
        environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / host), "MODELCACHE_HOME": str(home)}
        python = [sys.executable, "-m", "modelcache", *words]
        done = subprocess.run([*command, *python], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    for turn, host in enumerate(("alpha", "beta", "alpha")):
        on(host, "fetch", origin.url(f"{turn}.bin"))
        on(host, "jobs", "run", "publish-metrics")
    found = {folder.name: sheet(folder / f"downloads-{TODAY}.csv") for folder in (home / "reports").iterdir()}
    assert {host: [row["host"] for row in rows] for host, rows in found.items()} == {
        "alpha": ["alpha", "alpha"], "beta": ["beta"]
    }  # fmt: skip
