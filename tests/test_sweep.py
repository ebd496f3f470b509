"""A share of what is installed is verified each run, what was verified longest ago first (product E1, I29)."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from caches import Events, manifest_of, rot, run

from modelcache.abreast import processors
from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelNotAvailableError, UsageError
from modelcache.jobs import verify
from modelcache.jobs.job import Config
from modelcache.model import PieceDigests
from modelcache.rows import Report
from modelcache.state.place import Place
from modelcache.store import blobs
from modelcache.store.installed import Stamp
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.testing import Content, Origin, Status

DAY_S = 86_400
PIECE = 4 << 20
MIB = 1 << 20


def in_days(days: float) -> Callable[[], float]:
    return lambda: time.time() + days * DAY_S


def swept(report: Report) -> list[str]:
    """Of which models files were read."""
    return sorted(row["model"] for row in report)


def findings(report: Report) -> dict[str, str]:
    return {f"{row['model']}/{row['file']}": row["finding"] for row in report if row["finding"] != "whole"}


def looks_of(cache: Cache) -> Path:
    return Path(Place.of(cache.root).looks)


@pytest.fixture
def six(cache: Cache, tmp_path: Path) -> dict[str, Path]:
    """Six models of one file each, all of one size; where the files are."""
    places = {}
    for number in range(6):
        source = tmp_path / "w.bin"
        source.write_bytes(Content.generated(100_000, seed=number).read())
        places[f"m{number}"] = Path(cache.add(source, f"m{number}").path, "w.bin")
    return places


# -- whose turn it is -------------------------------------------------------------------------------------------------


def test_nothing_is_due_that_was_verified_lately(cache: Cache, six: Mapping[str, Path]) -> None:
    report = cache.sweep()
    assert (report.rows, report.findings, report.title) == ((), 0, "0 files verified, 0 B")
    assert len(cache.sweep(older_than=0, share="full", clock=in_days(0.01))) == 6


def test_each_run_takes_its_share_and_the_next_goes_on_behind_it(cache: Cache, six: Mapping[str, Path]) -> None:
    runs = [swept(cache.sweep(share="1/3", clock=in_days(day))) for day in (11, 12, 13)]
    assert runs == [["m0", "m1"], ["m2", "m3"], ["m4", "m5"]]
    assert swept(cache.sweep(share="1/3", clock=in_days(14))) == []
    assert swept(cache.sweep(share="1/3", clock=in_days(22))) == ["m0", "m1"]


def test_what_is_missing_takes_no_share_from_what_can_be_read(cache: Cache, six: Mapping[str, Path]) -> None:
    six["m0"].unlink()
    reports = [cache.sweep(share="1/6", clock=in_days(day)) for day in range(11, 16)]
    assert [swept(report) for report in reports] == [["m0", f"m{number}"] for number in range(1, 6)]
    assert {(report.findings, report.title) for report in reports} == {(1, "1 file verified, 97.7 KiB")}


def test_the_stamps_are_dated_by_the_clock_of_the_sweep(cache: Cache, six: Mapping[str, Path]) -> None:
    cache.sweep(share="full", clock=lambda: 2_000_000_000.5)
    assert {row["verified_at"] for model in six for row in cache.info(model)} == {2_000_000_000_500}
    assert cache.path("m3")


def test_what_was_verified_before_by_anybody_is_not_due(cache: Cache, six: Mapping[str, Path]) -> None:
    cache.sweep(clock=in_days(5))  # now it is known how old all are
    for name in ("m0", "m1", "m5"):
        record = Path(six[name]).parent / ".manifest.json"
        data = json.loads(record.read_bytes())
        data["files"][0]["verified_at"] += 20 * DAY_S * 1000
        record.write_text(json.dumps(data))
    assert swept(cache.sweep(share="1/3", clock=in_days(25))) == ["m2", "m3"]


def test_models_that_come_and_go_are_noticed(cache: Cache, six: Mapping[str, Path], tmp_path: Path) -> None:
    cache.sweep()
    cache.remove("m0")
    (tmp_path / "w.bin").write_bytes(b"one more")
    cache.add(tmp_path / "w.bin", "m1", "2")
    (tmp_path / "w.bin").write_bytes(b"and another")
    cache.add(tmp_path / "w.bin", "new")
    report = cache.sweep(share="full", clock=in_days(11))
    assert sorted(f"{row['model']}@{row['version']}" for row in report) == [
        "m1@1", "m1@2", "m2@1", "m3@1", "m4@1", "m5@1", "new@1",
    ]  # fmt: skip


def test_a_date_from_the_future_is_that_of_nobody(cache: Cache, six: Mapping[str, Path]) -> None:
    record = six["m4"].parent / ".manifest.json"
    data = json.loads(record.read_bytes())
    data["files"][0]["verified_at"] += 100 * DAY_S * 1000
    record.write_text(json.dumps(data))
    assert swept(cache.sweep(share="full")) == ["m4"]
    assert swept(cache.sweep(share="full")) == []


def test_what_was_found_before_is_told_with_the_bytes_that_are_wrong(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(Content.generated(3 * PIECE).read())
    rot(Path(cache.add(tmp_path / "w.bin", "m").files[0].path), PIECE + 5)
    found = [cache.sweep(share="full", clock=in_days(day)).rows[0] for day in (11, 12)]
    assert [row["wrong_bytes"] for row in found] == [f"{PIECE}-{2 * PIECE - 1}"] * 2
    with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
        connection.execute("UPDATE wrong SET spans = x'00'")
    assert cache.sweep(clock=in_days(13)).rows[0]["wrong_bytes"] == ""


def test_what_an_older_version_remembers_is_known_still(cache: Cache, six: Mapping[str, Path]) -> None:
    six["m3"].unlink()
    six["m3"].symlink_to("/etc/hostname")
    cache.sweep(share="full", clock=in_days(11))
    with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
        connection.executescript("DROP TABLE wrong; DROP TABLE begun; PRAGMA user_version = 1")
    report = cache.sweep(share="full", clock=in_days(12))
    assert (report.title, findings(report)) == ("0 files verified, 0 B", {"m3/w.bin": "unreadable"})
    with closing(sqlite3.connect(looks_of(cache))) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT count(*) FROM wrong").fetchone() == (0,)


@pytest.mark.parametrize("content", [b"garbage", b"", b"SQLite format 3\0" + bytes(5000), None])
def test_what_sweeps_remember_is_made_anew_when_it_is_garbage(
    cache: Cache, six: Mapping[str, Path], content: bytes | None
) -> None:
    cache.sweep(share="1/3", clock=in_days(11))
    if content is None:
        with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
            connection.executescript("DROP TABLE models; CREATE TABLE models (x)")
    else:
        looks_of(cache).write_bytes(content)
    assert swept(cache.sweep(share="1/3", clock=in_days(12))) == ["m2", "m3"]
    assert looks_of(cache).stat().st_mode & 0o777 == 0o600


def test_a_memory_that_lies_hides_nothing_for_long(cache: Cache, six: Mapping[str, Path]) -> None:
    cache.sweep()
    with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
        connection.execute("UPDATE models SET oldest = 9e15, size = 'x'")
    assert len(swept(cache.sweep(share="full", clock=in_days(11)))) == 6
    with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
        connection.execute("UPDATE models SET oldest = read_at")
        connection.execute("INSERT INTO models VALUES ('../..', x'00', 1, 2, 3, 4, 'y')")
    assert len(swept(cache.sweep(share="full", clock=in_days(22)))) == 6


def test_without_a_place_to_remember_in_it_works_by_the_records(cache: Cache, six: Mapping[str, Path]) -> None:
    looks_of(cache).mkdir(parents=True)
    reports = [cache.sweep(share="1/3", clock=in_days(day)) for day in (11, 12)]
    assert [swept(report) for report in reports] == [["m0", "m1"], ["m2", "m3"]]
    assert [len(report.notes) for report in reports] == [1, 1]
    assert "is not remembered" in reports[0].notes[0]


def test_what_models_share_is_read_once(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    source.write_bytes(Content.generated(100_000).read())
    for model in ("a", "b", "c"):
        cache.add(source, model)
    assert swept(cache.sweep(share="full", clock=in_days(11))) == ["a"]
    ages = {row["verified_at"] for model in "abc" for row in cache.info(model)}
    assert len(ages) == 1
    record = Path(cache.path("b"), ".manifest.json")  # as if it had been fetched long before
    data = json.loads(record.read_bytes())
    data["files"][0]["verified_at"] -= 30 * DAY_S * 1000
    record.write_text(json.dumps(data))
    with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
        connection.execute("UPDATE models SET oldest = 1 WHERE id = 'b'")
    assert swept(cache.sweep(share="full", clock=in_days(12))) == []
    assert ages == {row["verified_at"] for row in cache.info("b")}


def test_what_models_share_is_rotten_in_all_of_them(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    source.write_bytes(Content.generated(100_000).read())
    for model in ("a", "b"):
        cache.add(source, model)
    rot(Path(cache.path("b"), "w.bin"), 7)
    report = cache.sweep(share="full", clock=in_days(11))
    assert findings(report) == {"a/w.bin": "corrupt", "b/w.bin": "corrupt"}
    assert report.findings == 2


# -- what is found ----------------------------------------------------------------------------------------------------


def test_whole_corrupt_and_missing_are_told_apart_and_only_rot_is_marked(cache: Cache, six: Mapping[str, Path]) -> None:
    rot(six["m1"], 5)
    aside = six["m2"].with_name("aside")
    os.rename(six["m2"], aside)
    six["m3"].unlink()
    six["m3"].symlink_to("/etc/hostname")
    report = cache.sweep(share="full", clock=in_days(11))
    assert findings(report) == {"m1/w.bin": "corrupt", "m2/w.bin": "missing", "m3/w.bin": "unreadable"}
    assert report.findings == 3
    rows = {row["model"]: row for row in report}
    assert (rows["m1"]["wrong_bytes"], rows["m1"]["where"]) == ("0-99999", "")
    for model in ("m1", "m2"):
        with pytest.raises(ModelNotAvailableError, match="error"):
            cache.path(model)
    os.rename(aside, six["m2"])  # it was only away
    assert cache.path("m2")
    assert not Path(cache.root, "quarantine").exists()


def test_what_is_wrong_is_told_until_it_is_mended_and_not_read_each_time(cache: Cache, six: Mapping[str, Path]) -> None:
    rot(six["m1"], 5)
    six["m3"].unlink()
    six["m3"].symlink_to("/etc/hostname")
    cache.sweep(share="full", clock=in_days(11))
    again = cache.sweep(share="1/30", clock=in_days(12))
    assert findings(again) == {"m1/w.bin": "corrupt", "m3/w.bin": "unreadable"}
    assert (again.title, again.findings) == ("0 files verified, 0 B", 2)
    assert "found before" in next(row["reason"] for row in again if row["model"] == "m1")
    cache.remove("m1")
    six["m3"].unlink()
    os.link(next(Path(cache.root, "blobs").rglob(cache.info("m3").rows[0]["sha256"])), six["m3"])
    assert findings(cache.sweep(clock=in_days(13))) == {}


def test_by_sha256_forged_pieces_are_not_believed(cache: Cache, six: Mapping[str, Path]) -> None:
    rot(six["m1"], 5)
    with_strict = cache.sweep(share="full", strict=True, clock=in_days(11))
    assert findings(with_strict) == {"m1/w.bin": "corrupt"}


@pytest.mark.skipif(processors() < 2, reason="one processor reads with one thread")
def test_models_of_one_file_each_are_read_side_by_side(cache: Cache, six: Mapping[str, Path]) -> None:
    """No thread reads on before two of them read."""
    met, mine = threading.Barrier(2), threading.local()

    class Meeting(threading.Event):
        def is_set(self) -> bool:
            mine.calls = getattr(mine, "calls", 0) + 1
            if threading.current_thread().name == "modelcache-reader" and mine.calls == 2:  # first, whether to begin
                met.wait(60)
            return False

    assert len(swept(cache.sweep(share="full", strict=True, stop=Meeting(), clock=in_days(11)))) == 6


# -- when it ends -----------------------------------------------------------------------------------------------------


class Signal(threading.Event):
    """Set after so many buffers were asked about."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def is_set(self) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return super().is_set()


def test_a_stop_ends_it_within_a_file_and_the_next_run_goes_on_there(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    for number in range(4):
        source.write_bytes(Content.generated(20 * MIB, seed=number).read())
        cache.add(source, f"m{number}")
    report = cache.sweep(share="full", stop=Signal(50), clock=in_days(11))
    first = swept(report)
    assert 0 < len(first) < 4
    assert "the next run goes on there" in report.title
    assert sorted(first + swept(cache.sweep(share="full", clock=in_days(11.1)))) == ["m0", "m1", "m2", "m3"]


class Ended(threading.Event):
    """Set once so many portions of files were right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        super().__init__()
        self.read: list[int] = []
        has_pieces = blobs.has_pieces

        def counted(path: str, stamp: Stamp, pieces: PieceDigests, portion: range, tick: Callable[[], None]) -> bool:
            is_right = has_pieces(path, stamp, pieces, portion, tick)
            self.read.append(portion.start)
            if len(self.read) == after:
                self.set()
            return is_right

        monkeypatch.setattr(blobs, "PORTION", PIECE)
        monkeypatch.setattr(blobs, "has_pieces", counted)


def test_a_file_that_takes_longer_than_any_run_is_verified_in_several(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(Content.generated(6 * PIECE).read())
    cache.add(tmp_path / "w.bin", "m")
    begun, read = time.time() + 11 * DAY_S, 0
    for hour in range(6):
        with pytest.MonkeyPatch.context() as patch:
            stop = Ended(patch, after=2)
            report = cache.sweep(share="full", stop=stop, clock=lambda late=3600 * hour: begun + late)  # type: ignore[misc]
            read += len(stop.read)
        if swept(report):
            break
    assert (swept(report), findings(report)) == (["m"], {})
    assert read < 6 + 6, "no portion is read again but those that were at hand"
    assert cache.info("m").rows[0]["verified_at"] == round(1000 * begun), "that is when its first portion was read"


@pytest.mark.parametrize("change", ["file", "days", "garbage"])
def test_what_was_read_of_a_file_that_looks_different_or_long_ago_is_read_again(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (tmp_path / "w.bin").write_bytes(Content.generated(6 * PIECE).read())
    place = cache.add(tmp_path / "w.bin", "m").files[0].path
    assert swept(cache.sweep(share="full", stop=Ended(monkeypatch, after=2), clock=in_days(11))) == []
    if change == "file":
        os.utime(place)
    elif change == "garbage":
        with closing(sqlite3.connect(looks_of(cache))) as connection, connection:
            connection.execute("UPDATE begun SET done = 'x', at = 'y'")
    monkeypatch.undo()
    whole = Ended(monkeypatch, after=99)
    assert swept(cache.sweep(share="full", stop=whole, clock=in_days(22 if change == "days" else 12))) == ["m"]
    assert sorted(whole.read) == list(range(6))


def test_a_stop_that_came_before_reads_nothing(cache: Cache, six: Mapping[str, Path]) -> None:
    stop = threading.Event()
    stop.set()
    assert swept(cache.sweep(share="full", stop=stop, clock=in_days(11))) == []


def test_after_the_time_limit_no_file_is_begun(cache: Cache, six: Mapping[str, Path]) -> None:
    report = cache.sweep(share="full", time_limit=1e-9, clock=in_days(11))
    assert (swept(report), report.findings) == ([], 0)
    assert "ended before its time" in report.title
    assert len(swept(cache.sweep(share="full", time_limit="1h", clock=in_days(11)))) == 6


def test_it_reads_no_faster_than_it_may(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(Content.generated(6 * MIB).read())
    cache.add(tmp_path / "w.bin", "m")
    began = time.monotonic()
    assert swept(cache.sweep(share="full", rate_limit="4M", clock=in_days(11))) == ["m"]
    assert time.monotonic() - began > 1.0


def test_one_sweep_at_a_time(cache: Cache, six: Mapping[str, Path]) -> None:
    with locked(Layout(cache.root).lock("verify"), Subject("a sweep"), Patience(0.0)), pytest.raises(LockedError):
        cache.sweep()
    assert len(cache.verify()) == 6


# -- mending ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"big.bin": Content.generated(3 * PIECE, seed=1), "small": Content.generated(500, seed=2)}) as origin:
        yield origin


def fetched(cache: Cache, origin: Origin, *models: str) -> list[Path]:
    files = {"big.bin": Content.generated(3 * PIECE, seed=1), "small": Content.generated(500, seed=2)}
    return [Path(cache.fetch(manifest_of(origin, files, model)).path) for model in models]


def test_a_sweep_may_mend_what_it_finds(cache: Cache, origin: Origin) -> None:
    one, other = fetched(cache, origin, "one", "other")
    rot(one / "big.bin", PIECE + 5)
    before = len(origin.requests)
    report = cache.sweep(share="full", repair=True, clock=in_days(11))
    row = next(row for row in report if row["finding"] != "whole")
    assert (row["repaired"], row["bytes_fetched"], report.findings) == (True, PIECE, 0)
    assert [seen.range for seen in origin.requests[before:]] == [f"bytes={PIECE}-{2 * PIECE - 1}"]
    assert cache.path("one")
    assert cache.path("other")
    assert os.path.samefile(one / "big.bin", other / "big.bin")
    assert findings(cache.sweep(share="full", clock=in_days(30))) == {}


def test_what_an_earlier_sweep_found_is_mended_by_one_that_may(cache: Cache, origin: Origin) -> None:
    (one,) = fetched(cache, origin, "one")
    rot(one / "big.bin", 5)
    cache.sweep(share="full", clock=in_days(11))
    report = cache.sweep(repair=True, clock=in_days(12))
    assert [(row["file"], row["repaired"]) for row in report] == [("big.bin", True)]
    assert cache.path("one")


def test_what_cannot_be_mended_says_why(cache: Cache, origin: Origin) -> None:
    (one,) = fetched(cache, origin, "one")
    rot(one / "big.bin", 5)
    origin.faults(Status(404))
    report = cache.sweep(share="full", repair=True, clock=in_days(11))
    (row,) = (row for row in report if row["finding"] != "whole")
    assert (row["repaired"], report.findings) == (False, 1)
    assert "not repaired" in row["reason"]


# -- the command and the job ------------------------------------------------------------------------------------------


def aged(cache: Cache, days: float = 40) -> None:
    """As if all had been verified so long ago."""
    for record in Path(cache.root, "models").rglob(".manifest.json"):
        data = json.loads(record.read_bytes())
        for file in data["files"]:
            file["verified_at"] -= int(days * DAY_S * 1000)
        record.write_text(json.dumps(data))


def test_the_command_sweeps_a_share(cache: Cache, six: Mapping[str, Path]) -> None:
    aged(cache)
    done = run("verify", "--share", "1/3", "--json", "--quiet")
    assert (done.returncode, {row["model"] for row in json.loads(done.stdout)}) == (0, {"m0", "m1"})
    rot(six["m2"], 5)
    done = run(
        "verify", "--share", "1/3", "--quiet", "--time-limit", "1h", "--rate-limit", "500M", "--older-than", "9d"
    )
    assert done.returncode == 3
    assert "m2@1 w.bin: corrupt (bytes 0-99999): the bytes are not what they were" in done.stderr
    assert "2 files verified" in done.stderr


def test_the_command_repairs(cache: Cache, origin: Origin) -> None:
    (one,) = fetched(cache, origin, "one")
    rot(one / "big.bin", 5)
    done = run("verify", "--repair", "--quiet", "--json")
    assert done.returncode == 0
    assert {row["file"]: row["repaired"] for row in json.loads(done.stdout)} == {"big.bin": True, "small": False}
    assert f"repaired, {PIECE:,} of {3 * PIECE:,} bytes fetched" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--share", "0"], "1/30, 0.1 or full is expected"),
        (["--older-than", "x"], "90s, 15m, 1.5h or 10d is expected"),
        (["--rate-limit", "5X"], "500K, 2.5M or 1G"),
        (["--also", "/nowhere"], "/nowhere is no place to verify"),
        (["m", "--repair"], "a sweep goes through the whole cache"),
    ],
)
def test_the_command_refuses_what_cannot_be_meant(arguments: list[str], words: str) -> None:
    done = run("verify", *arguments)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_the_job_reports_findings_and_how_much_was_read(cache: Cache, six: Mapping[str, Path]) -> None:
    rot(six["m1"], 5)
    config = Config(cache, {"share": "1/3", "older_than": "1d"})
    report = verify.run(config, stop=threading.Event(), clock=in_days(11))
    assert (report.title, report.findings) == ("2 files verified, 195.3 KiB", 1)
    assert findings(report) == {"m1/w.bin": "corrupt"}


def test_subscribers_are_told_of_a_sweep(cache: Cache, six: Mapping[str, Path]) -> None:
    told = Events()
    cache.on_event(told)
    cache.sweep(share="1/3", clock=in_days(11))
    cache._runtime.shop.dispatcher.drain(10)
    ends = [event for event in told.progress if event["done"]]
    assert {(event["modelId"], event["status"]) for event in ends} == {("m0", "completed"), ("m1", "completed")}
    assert len(ends) == 2


@pytest.mark.parametrize("name", ["older_than", "time_limit", "rate_limit"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "999999999999999d", "999999999999999T", 10**30])
def test_numbers_that_cannot_be_meant_are_refused(cache: Cache, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        cache.sweep(**{name: value})


def test_places_that_are_none_are_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "m.gguf").write_bytes(b"of a fetch with --output FILE, which leaves no record")
    for place in ("nothing", "output"):
        with pytest.raises(UsageError, match="is no place to verify"):
            cache.sweep(also=[str(tmp_path / place)])
