"""One run of a job: its claim, its end, and what is kept of both."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest
import requests
from caches import run as command
from ownjobs import fill

from modelcache.caching import Cache
from modelcache.errors import LockedError, StoreError, UsageError
from modelcache.jobs import ledger
from modelcache.jobs.failure import MOST_PLACES, what
from modelcache.jobs.ledger import Ledger
from modelcache.jobs.overview import history, listed
from modelcache.jobs.ping import ping
from modelcache.jobs.runner import Runner
from modelcache.jobs.schedule import Schedule
from modelcache.rows import Report
from modelcache.store.layout import Layout
from modelcache.store.owner import Owner

SLOT = "20260110T0200Z"
NOW = 1_768_010_400.0  # that slot


def job(function: str, **options: object) -> Schedule:
    return Schedule("mine", f"ownjobs:{function}", options=options)


def runner(cache: Cache, patience_s: float = 5.0) -> Runner:
    return Runner(cache, lambda: NOW, patience_s)


def record(cache: Cache, slot: str = SLOT) -> Path:
    return Path(cache.root, "jobs", "mine", f"{slot}.json")


def leave(cache: Cache, owner: Owner, silent_s: float = 0.0, attempt: int = 1) -> None:
    """A run that somebody began, and has not touched for so long."""
    place = record(cache)
    place.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "format": 1, "job": "mine", "slot": SLOT, "status": "running", "owner": owner.to_json(), "started_at": 1,
        "finished_at": 0, "attempt": attempt, "error": "", "report": None,
    }  # fmt: skip
    place.write_text(json.dumps(fields))
    os.utime(place, (time.time() - silent_s,) * 2)


def dead() -> Owner:
    """A process of this machine that has ended."""
    program = "from modelcache.store.owner import Owner; import json; print(json.dumps(Owner.mine().to_json()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return Owner.from_json(json.loads(done.stdout))


def elsewhere() -> Owner:
    return Owner("another-host", "b", 1, 77, 1, "m")


def test_a_run_is_kept_with_its_report(cache: Cache) -> None:
    run = runner(cache).run(job("finds"), SLOT, threading.Event())
    assert (run.status, run.findings, run.started_at, run.finished_at) == (
        "findings",
        1,
        int(NOW * 1000),
        int(NOW * 1000),
    )
    (row,) = history(cache, "mine")
    assert (row["job"], row["slot"], row["status"], row["findings"]) == ("mine", SLOT, "findings", 1)
    assert row["host"] == Owner.mine().host
    assert row["report"] == {"title": "found", "rows": [{"what": "rot"}, {"what": "whole"}]}


def test_a_slot_is_run_once(cache: Cache, tmp_path: Path) -> None:
    counted = job("count", file=str(tmp_path / "count"))
    runner(cache).run(counted, SLOT, threading.Event())
    with pytest.raises(LockedError, match="has been run"):
        runner(cache).run(counted, SLOT, threading.Event())
    assert len((tmp_path / "count").read_text().splitlines()) == 1


def test_who_runs_it_now_runs_it_though_another_did_in_the_same_second(cache: Cache) -> None:
    runs = [runner(cache).run(job("finds"), "", threading.Event()) for _ in range(3)]
    assert [run.slot for run in runs] == ["20260110T020000Z", "20260110T020001Z", "20260110T020002Z"]


def test_of_many_who_claim_a_slot_at_once_one_has_it(cache: Cache) -> None:
    begin, claims, others = threading.Barrier(8), [], Ledger(Layout(cache.root))

    def claim() -> None:
        begin.wait(60)
        claims.append(others.claim("mine", SLOT, 1))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(one is not None for one in claims) == 1 and len(claims) == 8


def test_a_job_runs_once_at_a_time_whatever_the_slot(cache: Cache, tmp_path: Path) -> None:
    stop, begun = threading.Event(), tmp_path / "begun"
    runs: list[object] = []
    thread = threading.Thread(target=lambda: runs.append(runner(cache).run(job("works", file=str(begun)), SLOT, stop)))
    thread.start()
    wait_for(begun)
    with pytest.raises(LockedError, match="job mine is in use by this process"):
        runner(cache).run(job("finds"), "20260110T0300Z", threading.Event())
    assert runner(cache).ledger.read("mine", "20260110T0300Z") is None
    stop.set()
    thread.join(60)
    (row,) = history(cache)
    assert (row["status"], row["report"]["title"]) == ("stopped", "worked")  # its partial report is kept


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("raises", "ownjobs:raises raised ValueError: no model at https://host/model"),
        ("leaves", "ownjobs:leaves raised SystemExit: 7"),
        ("absent", "ownjobs:absent raised AttributeError: module 'ownjobs' has no attribute 'absent'"),
        ("refuses", "ownjobs:refuses raised PermissionError: 401 for the token ..."),
        ("mute", "ownjobs:mute raised MuteError"),
    ],
)  # fmt: skip
def test_what_a_job_raises_is_told_without_secrets(
    cache: Cache, function: str, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = runner(cache).run(job(function), SLOT, threading.Event())
    assert (run.status, run.error) == ("failed", error)
    assert "SECRET" not in caplog.text + record(cache).read_text()
    again = runner(cache).run(job("finds"), "20260110T0300Z", threading.Event())
    assert again.status == "findings"


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"rows": 1}, "returned a dict, no Report"), (Report("t", None), "rows are no tuple"),  # type: ignore[arg-type]
        (Report("t", ("a", "b")), "rows are no tuple"), (Report("t", (), findings="1"), "no count"),  # type: ignore
        (Report("t", (), findings=-1), "no count"), (Report("t", (), findings=10**5000), "no count"),
        (Report(None, ()), "title is no text"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_a_job_returns_is_checked_and_what_is_none_of_it_is_a_run_that_failed(
    cache: Cache, report: object, words: str
) -> None:
    run = runner(cache).run(job("returns", report=report), SLOT, threading.Event())
    assert run.status == "failed" and words in run.error
    assert [row["status"] for row in history(cache)] == ["failed"]


def test_numbers_of_numpy_and_rows_in_a_list_are_a_report(cache: Cache) -> None:
    frame = pd.DataFrame({"bad": [1, 0, 1]})
    report = Report("np", frame.to_dict("records"), findings=frame.bad.sum())  # type: ignore[arg-type]
    run = runner(cache).run(job("returns", report=report), SLOT, threading.Event())
    assert (run.status, run.findings) == ("findings", 2)
    assert [row["report"]["rows"] for row in history(cache)] == [[{"bad": 1}, {"bad": 0}, {"bad": 1}]]


def test_a_title_and_an_error_without_end_are_kept_in_part(cache: Cache) -> None:
    report = Report("\U0001f600" * 3_000_000, ())
    runner(cache).run(job("returns", report=report), SLOT, threading.Event())
    claim = runner(cache).ledger.claim("mine", "20260110T0300Z", 1)
    assert claim
    claim.end("failed", 2, error="x" * 3_000_000)
    assert [row["status"] for row in history(cache)] == ["failed", "ok"]


def test_where_a_job_raised_is_told_without_a_line_of_its_source(
    cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    runner(cache).run(job("raises"), SLOT, threading.Event())
    (said,) = [one.getMessage() for one in caplog.records if "raised at" in one.getMessage()]
    first, *places = said.splitlines()
    assert first == "mine: raised at"
    assert [re.sub(r"\S*/(ownjobs.py):\d+", r"\1:N", place) for place in places] == [
        "  ownjobs.py:N in raises",
        "  ownjobs.py:N in _opened",
    ]
    text = caplog.text + record(cache).read_text()
    assert "PASSPHRASE" not in text and "raise ValueError" not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no tokenizer.json for 512 tokens", "no tokenizer.json for 512 tokens"),
        ("Authorization: Bearer SECRET", "Authorization ..."), ("login hf_SECRET", "login hf_ ..."),
        ("API_KEY=SECRET", "API_KEY ..."), ("the credentials SECRET", "the credentials ..."),
        ("at http://u:SECRET@h/a?b=SECRET: 403", "at http://h/a 403"),
        ("with url: /m?sig=SECRET (Caused by x)", "with url: /m (Caused by x)"), ("a\x1b[2J\nb", "a [2J b"),
        ("x" * 999, "x" * 300), ("", ""),
    ],
)  # fmt: skip
def test_the_words_of_an_error_end_where_they_speak_of_a_secret(text: str, told: str) -> None:
    assert what(ValueError(text)) == (f"ValueError: {told}" if told else "ValueError")


def test_a_recursion_without_end_is_told_by_its_last_places(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    run = runner(cache).run(job("recurses"), SLOT, threading.Event())
    assert run.error.startswith("ownjobs:recurses raised RecursionError: maximum recursion depth")
    (said,) = [one.getMessage() for one in caplog.records if "raised at" in one.getMessage()]
    assert len(said.splitlines()) == 1 + MOST_PLACES and "in recurses" in said.splitlines()[-1]


def test_a_module_that_is_not_there_is_a_run_that_failed(cache: Cache) -> None:
    run = runner(cache).run(Schedule("mine", "no.such.module:job"), SLOT, threading.Event())
    assert (run.status, run.error) == ("failed", "no.such.module:job raised ModuleNotFoundError: No module named 'no'")


def test_a_run_that_takes_too_long_is_told_to_stop(cache: Cache, tmp_path: Path) -> None:
    long = Schedule("mine", "ownjobs:works", max_runtime=0.1, options={"file": str(tmp_path / "begun")})
    run = runner(cache).run(long, SLOT, threading.Event())
    assert (run.status, run.error) == ("stopped", "it took longer than 0.1 s")
    assert run.report == Report("worked", ({"steps": "some"},))


def test_a_run_that_hangs_is_given_up_and_nobody_runs_that_job_beside_it(cache: Cache, tmp_path: Path) -> None:
    options = {"file": str(tmp_path / "begun"), "until": str(tmp_path / "until")}
    run = runner(cache, 0.1).run(
        Schedule("mine", "ownjobs:hangs", max_runtime=0.1, options=options), SLOT, threading.Event()
    )
    assert (run.status, run.error) == ("failed", "it took longer than 0.1 s, and it does not stop")
    with pytest.raises(LockedError):
        runner(cache).run(job("finds"), "20260110T0300Z", threading.Event())
    other = runner(cache).run(Schedule("other", "ownjobs:finds"), SLOT, threading.Event())
    assert other.status == "findings"
    (tmp_path / "until").touch()
    for thread in [each for each in threading.enumerate() if each.name == "modelcache-job-mine"]:
        thread.join(60)
    assert runner(cache).run(job("finds"), "20260110T0300Z", threading.Event()).status == "findings"
    assert {row["slot"]: row["status"] for row in history(cache, "mine")}[SLOT] == "failed"


def test_the_slot_of_a_process_that_died_is_taken_over(cache: Cache) -> None:
    leave(cache, dead())
    assert [row["status"] for row in history(cache)] == ["lost"]
    assert runner(cache).ledger.is_open("mine", SLOT)
    run = runner(cache).run(job("finds"), SLOT, threading.Event())
    assert (run.status, run.attempt) == ("findings", 2)


def test_what_killed_its_process_twice_is_left_alone(cache: Cache) -> None:
    leave(cache, dead(), attempt=2)
    assert not runner(cache).ledger.is_open("mine", SLOT)
    with pytest.raises(LockedError):
        runner(cache).run(job("finds"), SLOT, threading.Event())


def test_a_run_on_another_host_is_lost_when_it_falls_silent(cache: Cache) -> None:
    leave(cache, elsewhere(), ledger.SILENT_S - 30)
    assert [row["status"] for row in history(cache)] == ["running"]
    with pytest.raises(LockedError):
        runner(cache).run(job("finds"), SLOT, threading.Event())
    leave(cache, elsewhere(), ledger.SILENT_S + 30)
    assert runner(cache).run(job("finds"), SLOT, threading.Event()).status == "findings"


def test_a_run_that_goes_on_beats(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.jobs.runner.BEAT_S", 0.01)
    stop, begun = threading.Event(), tmp_path / "begun"
    works = threading.Thread(target=runner(cache).run, args=(job("works", file=str(begun)), SLOT, stop))
    works.start()
    wait_for(begun)
    os.utime(record(cache), (1, 1))
    end = time.monotonic() + 20
    while record(cache).stat().st_mtime < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    stop.set()
    works.join(60)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000, b'{"format": 1, "status": "fine"}', b"1" * 5000, b"NaN",
     b'{"format":1,"status":"ok","owner":{"pid":"x"},"started_at":1,"finished_at":1,"attempt":1,"error":"","report":0}',
     b'{"format":1,"status":"ok","owner":null,"started_at":-1,"finished_at":9e99,"attempt":1,"error":"","report":0}'],
)  # fmt: skip
def test_a_record_that_holds_anything_is_a_run_of_which_nothing_is_known(cache: Cache, garbage: bytes) -> None:
    record(cache).parent.mkdir(parents=True)
    record(cache).write_bytes(garbage)
    assert [row["status"] for row in history(cache)] == ["running"]  # somebody may be writing it
    os.utime(record(cache), (1, 1))
    assert [row["status"] for row in history(cache)] == ["lost"]
    assert runner(cache).run(job("finds"), SLOT, threading.Event()).status == "findings"


def test_what_records_hold_moves_no_terminal(cache: Cache) -> None:
    wild = "\x1b[31mred\nline\x07"
    claim = runner(cache).ledger.claim("mine", SLOT, 1)
    assert claim
    claim.end("failed", 2, error=wild, report=Report(wild, ({"file": wild},)))
    shown = command("jobs", "history")
    assert (shown.returncode, len(shown.stdout.splitlines())) == (0, 3)
    assert "\x1b" not in shown.stdout and "\x07" not in shown.stdout


def test_links_fifos_and_folders_in_place_of_records_hold_nobody_up(cache: Cache, tmp_path: Path) -> None:
    folder = record(cache).parent
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("{}")
    os.symlink(tmp_path / "secret", record(cache))
    os.mkfifo(record(cache, "20260110T0300Z"))
    record(cache, "20260110T0400Z").mkdir()
    (folder / "notes.txt").touch()
    (folder.parent / "stray").touch()
    assert len(history(cache, "mine")) == 3
    assert len(history(cache)) == 3
    with pytest.raises(UsageError, match="no job"):
        history(cache, "stray")
    with pytest.raises(LockedError):
        runner(cache).run(job("finds"), "20260110T0300Z", threading.Event())
    assert (tmp_path / "secret").read_text() == "{}"


def test_a_folder_that_is_a_link_is_not_written_through(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path(cache.root, "jobs").mkdir(parents=True)
    os.symlink(tmp_path / "outside", record(cache).parent)
    with pytest.raises(StoreError, match="symbolic link"):
        runner(cache).run(job("finds"), SLOT, threading.Event())
    assert not list((tmp_path / "outside").iterdir())


def test_a_large_report_is_kept_in_part(cache: Cache) -> None:
    rows = tuple({"file": f"{number:06}", "text": "x" * 2000} for number in range(5000))
    claim = runner(cache).ledger.claim("mine", SLOT, 1)
    assert claim
    claim.end("findings", 2, report=Report("large", rows, findings=4000))
    (row,) = history(cache)
    assert row["findings"] == 4000
    assert 0 < len(row["report"]["rows"]) <= ledger.MOST_ROWS
    assert record(cache).stat().st_size < 2 * ledger.MOST_BYTES


def test_rows_of_any_kind_can_be_kept(cache: Cache) -> None:
    loop: dict[str, object] = {}
    loop["self"] = loop
    claim = runner(cache).ledger.claim("mine", SLOT, 1)
    assert claim
    claim.end("ok", 2, report=Report("odd", ({"path": Path("a")}, loop, {"b": b"bytes"}, {("a", "tuple"): 1})))
    (row,) = history(cache)
    assert row["report"]["rows"] == [{"path": "a"}, {"b": "b'bytes'"}]


def dated(cache: Cache, *days: float) -> list[str]:
    """Runs that ended so many days after NOW; their slots."""
    slots = []
    for day in days:
        slots.append(datetime.fromtimestamp(NOW + day * 86_400, UTC).strftime("%Y%m%dT%H%MZ"))
        runner(cache).run(job("finds"), slots[-1], threading.Event())
        os.utime(record(cache, slots[-1]), (NOW + day * 86_400,) * 2)
    return slots


def forget(cache: Cache, slot: str) -> list[str]:
    """What stays when that run has ended."""
    by = runner(cache).ledger
    by.forget("mine", slot, 10 * 86_400.0)
    return [run.slot for run in by.runs("mine")]


def test_runs_are_forgotten_when_metrics_are(cache: Cache) -> None:
    slots = dated(cache, -40, -11.5, -10.5, -1, 0)
    assert forget(cache, slots[-1]) == slots[:1:-1]


def test_a_clock_that_was_ahead_once_forgets_no_run(cache: Cache) -> None:
    slots = dated(cache, -40, -2, -1, 365)
    assert forget(cache, slots[-1]) == slots[:0:-1]
    assert forget(cache, slots[2]) == slots[:0:-1]  # the clock is right again


def test_a_run_forgets_by_the_age_of_records_whatever_its_clock_says(cache_root: Path) -> None:
    cache = Cache(cache_root, metrics_age=86_400.0)
    runner(cache).run(job("finds"), SLOT, threading.Event())
    ahead = Runner(cache, lambda: NOW + 365 * 86_400)
    for slot in ("20270110T0200Z", "20270110T0230Z"):
        ahead.run(job("finds"), slot, threading.Event())
    assert not runner(cache).is_open("mine", SLOT)


def test_of_too_many_runs_the_oldest_go(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_RUNS", 3)
    slots = dated(cache, -5, -4, -3, -2, 1)
    assert forget(cache, slots[-2])[1:] == slots[2:4][::-1]


def test_runs_are_sorted_by_their_time(cache: Cache) -> None:
    slots = ["20260110T0300Z", "20260110T030015Z", "20260110T0301Z"]
    for slot in slots:
        runner(cache).run(job("finds"), slot, threading.Event())
    assert [row["slot"] for row in history(cache)] == slots[::-1]
    assert [run.slot for run in runner(cache).ledger.runs("mine", 1)] == slots[-1:]


def test_a_file_where_the_folder_of_a_job_belongs_hides_no_other(cache: Cache) -> None:
    runner(cache).run(job("finds"), SLOT, threading.Event())
    (record(cache).parent.parent / "verify").touch()
    assert {row["job"] for row in listed(cache)} >= {"verify", "clean"}
    assert (len(history(cache)), len(history(cache, "verify"))) == (1, 0)


def test_a_folder_in_place_of_a_record_is_put_aside(cache: Cache) -> None:
    record(cache).mkdir(parents=True)
    (record(cache) / "mine").touch()
    os.utime(record(cache), (1, 1))
    assert runner(cache).run(job("finds"), SLOT, threading.Event()).status == "findings"
    assert [path.parent.name[: len(SLOT)] for path in record(cache).parent.rglob("mine")] == [SLOT]
    assert len(history(cache)) == 1


def test_what_a_kill_left_beside_a_record_is_cleaned(cache_root: Path) -> None:
    cache = Cache(cache_root, temporary_age=0.0)
    runner(cache).run(job("finds"), SLOT, threading.Event())
    left = record(cache).parent / f".{SLOT}.json.0a1b2c3d.tmp"
    left.touch()
    cache.clean()
    assert not left.exists() and record(cache).exists()


def test_a_slot_is_checked_before_it_becomes_a_name(cache: Cache) -> None:
    with pytest.raises(UsageError, match="no slot"):
        runner(cache).run(job("finds"), "../../evil", threading.Event())
    assert not list(Path(cache.root).rglob("*evil*"))


def test_a_claim_can_be_made_on_a_full_disk_and_clean_runs(small_disk: Path) -> None:
    cache = Cache(small_disk / "root")
    cache.clean()
    Path(cache.root, "jobs", "mine").mkdir(parents=True)
    Path(cache.root, "locks").mkdir(exist_ok=True)
    fill(small_disk)
    by = runner(cache)
    run = by.run(job("finds"), SLOT, threading.Event())
    assert run.status == "findings" and run.report
    os.utime(record(cache), (1, 1))
    assert not by.is_open("mine", SLOT)  # though nothing could be written of its end
    with pytest.raises(LockedError, match="has been run"):
        by.run(job("finds"), SLOT, threading.Event())


def test_a_run_that_finds_a_full_disk_at_its_end_is_over_all_the_same(small_disk: Path) -> None:
    cache = Cache(small_disk / "root")
    run = runner(cache).run(job("fills", folder=str(small_disk)), SLOT, threading.Event())
    assert (run.status, run.report and len(run.report)) == ("findings", 10)
    os.utime(record(cache), (1, 1))
    assert not runner(cache).is_open("mine", SLOT)
    assert [(row["status"], row["error"]) for row in history(cache)] == [("findings", "its report could not be kept")]


def test_in_a_root_of_a_group_records_are_the_groups(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    root.mkdir()
    root.chmod(0o2775)
    cache = Cache(root)
    runner(cache).run(job("finds"), SLOT, threading.Event())
    assert oct(record(cache).stat().st_mode & 0o7777) == "0o664"
    assert oct(record(cache).parent.stat().st_mode & 0o7777) == "0o2775"


class _Watch(BaseHTTPRequestHandler):
    seen: list[str]
    status = 200

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.send_response(self.status)
        self.flush_headers()
        self.wfile.write(b"no colon\r\n")  # of which urllib3 warns, with the whole URL
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def watchman(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A server that is pinged: its URL, and the paths it was asked for."""
    handler = type("Watch", (_Watch,), {"seen": [], "status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/SECRET?status=up&msg=OK", handler.seen
        server.shutdown()
        thread.join(60)


def test_a_run_that_was_well_pings_and_others_do_not(cache: Cache, tmp_path: Path) -> None:
    with watchman() as (url, seen):
        counted = Schedule("mine", "ownjobs:count", ping=url, options={"file": str(tmp_path / "count")})
        runner(cache).run(counted, SLOT, threading.Event())
        assert seen == ["/SECRET?status=up&msg=OK"]
        for hour, function in enumerate(("finds", "raises")):
            runner(cache).run(
                Schedule("mine", f"ownjobs:{function}", ping=url), f"20260111T0{hour}00Z", threading.Event()
            )
        assert len(seen) == 1


@pytest.mark.parametrize("status", [404, 500, None])
def test_a_ping_that_fails_fails_no_job_and_is_told_without_its_url(
    cache: Cache, tmp_path: Path, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"file": str(tmp_path / "count")}
    with watchman(status or 200) as (url, _):
        where = url if status else "http://127.0.0.1:9/SECRET"
        run = runner(cache).run(Schedule("mine", "ownjobs:count", ping=where, options=options), SLOT, threading.Event())
    assert run.status == "ok"
    assert "mine: its ping" in caplog.text
    assert "SECRET" not in caplog.text + record(cache).read_text()


def test_urllib3_tells_nobody_what_was_pinged(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with watchman() as (url, seen):
        ping("mine", url)
        assert seen and "SECRET" not in caplog.text
        requests.get(url, timeout=60)
    assert "SECRET" in caplog.text  # what others ask is heard as before


def test_no_url_of_a_job_reaches_stderr(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    with watchman() as (url, seen):
        Path(cache.root).mkdir(exist_ok=True)
        Path(cache.root, "modelcache.toml").write_text(f'[jobs.mine]\nrun="ownjobs:asks"\nurl="{url}"\nping="{url}"\n')
        done = command("jobs", "run", "mine")
    assert (done.returncode, len(seen)) == (0, 2)
    assert "SECRET" not in done.stdout + done.stderr


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
