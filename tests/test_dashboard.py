"""What a dashboard tells, read from real fetches, interrupts, queues and runs of jobs; and how that looks."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from caches import manifest_of, rot, run, start
from crash import eventually

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError
from modelcache.events import now_ms
from modelcache.history import Attempt
from modelcache.notebook import overview, sections
from modelcache.notebook.dashboard import dashboard
from modelcache.queueing import Queue
from modelcache.rows import Report
from modelcache.state.state import State
from modelcache.state.uses import Uses
from modelcache.testing import Content, Cut, Origin, Stall, Status

FILE, OTHER = Content.generated(3_000_000, seed=3), Content.generated(200_000, seed=4)
HALF = 1_500_000
HOSTILE = "<script>alert(1)</script>\u202e'\"&\x1b[31m"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "other.bin": OTHER}) as origin:
        yield origin


def cut_at_half(cache: Cache, origin: Origin) -> None:
    origin.faults(Cut(HALF, times=1), Status(503, after=1), path="/m.bin")
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, progress=False)
    origin.heal()


# -- downloads --------------------------------------------------------------------------------------------------------


def test_what_runs_here_is_told_by_its_handle(cache: Cache, origin: Origin, one_connection: None) -> None:
    origin.faults(Stall(HALF))
    download = cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, wait=False, progress=False)
    assert eventually(lambda: bool(download.progress.bytes_downloaded))
    now = overview.overview(cache)
    (row,) = now.running.rows
    assert (row.id, row.name, row.total, row.is_ours) == (download.id, "m.bin", FILE.size, True)
    assert 0 < row.here <= HALF and row.stage == "Downloading files..." and "127.0.0.1" in row.gateway
    assert now.lists.running.rows == now.lists.interrupted.rows == ()
    download.pause()
    assert download.wait_stopped(60)
    assert overview.running(cache).rows == ()


def test_what_another_process_fetches_is_told_and_what_it_leaves(cache: Cache, origin: Origin) -> None:
    origin.faults(Stall(HALF))
    with start("fetch", origin.url("m.bin"), "--sha256", FILE.sha256) as other:
        assert eventually(lambda: any(row.here for row in overview.lists(cache).running.rows))
        (row,) = overview.lists(cache).running.rows
        assert (row.name, row.total, row.is_ours) == ("m.bin", FILE.size, False)
        other.kill()
        other.communicate()
    now = overview.lists(cache)
    (left,) = now.interrupted.rows
    assert now.running.rows == () and (left.id, left.status, left.can_resume) == (row.id, "paused", True)


def test_what_failed_half_way_says_how_much_is_here_until_it_is_cancelled(cache: Cache, origin: Origin) -> None:
    cut_at_half(cache, origin)
    began = now_ms()
    (row,) = overview.lists(cache).interrupted.rows
    assert (row.name, row.status, row.total, row.can_resume) == ("m.bin", "failed", FILE.size, True)
    assert 0 < row.here <= HALF and "503" in row.error and abs(row.ended_at - began) < 60_000
    (worry,) = overview.overview(cache).worries
    assert worry.startswith("m.bin failed: ")
    cache.cancel(row.id)
    assert overview.lists(cache).interrupted.rows == () == overview.overview(cache).worries


def test_what_lacks_files_is_one_worry_where_it_failed_and_none_where_it_was_paused(
    cache: Cache, origin: Origin
) -> None:
    now = overview.overview(cache)
    held = overview.Held("m", "1", 9, 2, "incomplete", None, None, "listed", False)
    failed = overview.Interrupted("i", "hf:m", "failed", 3, 9, True, 1, "no route", ("m", "1"))
    store = replace(now.store, installed=overview.Told((held,)))
    cases: tuple[tuple[tuple[overview.Interrupted, ...], str], ...] = (
        ((), "m lacks files: fetch it again"),
        ((failed,), "hf:m failed: no route"),
        ((replace(failed, status="paused"),), ""),
        ((replace(failed, status="paused", of=("m", "2")),), "m lacks files: fetch it again"),
    )
    for left, worry in cases:
        lists = replace(now.lists, interrupted=overview.Told(left))
        assert "".join(replace(now, store=store, lists=lists).worries) == worry
    cut_at_half(cache, origin)
    (row,) = overview.lists(cache).interrupted.rows
    assert row.of[0]


def test_what_never_began_says_so_and_a_long_reason_is_cut_between_words(cache: Cache, origin: Origin) -> None:
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("nowhere.bin"), sha256=FILE.sha256, progress=False)
    (row,) = overview.lists(cache).interrupted.rows
    line = sections.interrupted_line(row)
    assert "nothing of it is here" in line and "progress" not in line and "can resume" not in line
    line = sections.interrupted_line(replace(row, error="reason " * 100))
    assert "reason …</span>" in line


def test_the_queue_is_told_in_its_order(cache: Cache, origin: Origin) -> None:
    queue = Queue(cache)
    queue.add(origin.url("m.bin"))
    queue.add(origin.url("other.bin"), priority=2)
    queue.pause()
    now = overview.lists(cache)
    assert [(row.priority, row.status) for row in now.queued.rows] == [(2, "waiting"), (0, "waiting")]
    assert now.is_queue_paused and now.queued.rows[0].name == "other.bin"
    assert f"Waiting, added just now · 127.0.0.1:{origin.port}" in sections.queued_line(now.queued.rows[0])


# -- what is here -----------------------------------------------------------------------------------------------------


def test_what_is_installed_is_told_with_its_use_its_proof_and_what_is_wrong(cache: Cache, origin: Origin) -> None:
    began = now_ms()
    model = cache.fetch(manifest_of(origin, {"m.bin": FILE, "other.bin": OTHER}), progress=False)
    cache.fetch(origin.url("other.bin"), progress=False)
    cache.pin("m", "1")
    first, second = overview.store(cache).installed.rows
    assert (first.model, first.version, first.size, first.files) == ("m", "1", FILE.size + OTHER.size, 2)
    assert (first.status, first.proof, first.is_pinned) == ("ready", "listed", True)
    assert (second.proof, second.is_pinned) == ("first_use", False)
    assert first.verified_at and began <= first.verified_at <= now_ms() and first.used_at
    assert overview.overview(cache).worries == ()
    rot(model["m.bin"].path, 7)
    cache.verify("m", progress=False)
    now = overview.overview(cache)
    assert now.store.installed.rows[0].status == "error" and now.store.installed.rows[0].verified_at is None
    assert now.worries == ("m is not as it was: repair it",)


def test_requests_sources_and_the_plots_of_the_days_come_from_what_was_fetched(cache: Cache, origin: Origin) -> None:
    for _ in range(3):
        cache.fetch(manifest_of(origin, {"m.bin": FILE}), progress=False)
    now = overview.overview(cache)
    assert [(row.rank, row.model, row.requests) for row in now.lists.requested.rows] == [(1, "m", 3)]
    (source,) = now.lists.sources.rows
    assert (source.layer, source.success_rate, source.is_poor) == ("http", 1.0, False)
    assert source.throughput > 0 and source.last_success > 0
    assert len(now.store.plots.rows) == 2 and all("<svg" in plot for plot in now.store.plots.rows)


def test_a_source_that_mostly_fails_is_worth_a_look(cache: Cache, home: Path) -> None:
    state = State(str(home), Uses(), 90 * 86400.0)
    bad = Attempt("http", "poor.example", "error", error_type="network", error_message="no bytes came")
    state([bad, bad, bad, replace(bad, status="success"), bad, bad])
    state.close()
    (worry,) = overview.overview(cache).worries
    assert worry.startswith("poor.example gave 16.7 %")


def test_jobs_are_told_with_their_last_run_and_their_next(cache: Cache) -> None:
    assert run("jobs", "run", "clean").returncode == 0
    rows = {row.name: row for row in overview.lists(cache).jobs.rows}
    assert set(rows) == {"verify", "clean", "publish-metrics"}  # those that are off and never ran are of no use here
    assert (rows["clean"].status, rows["verify"].status, rows["verify"].last_at) == ("ok", "", None)
    assert rows["clean"].last_at and (rows["verify"].next_at or 0) > now_ms()


def test_a_store_over_its_budget_says_so(cache_root: Path, origin: Origin) -> None:
    with contextlib.closing(Cache(cache_root, disk_budget=1_000_000)) as cache:
        cache.fetch(manifest_of(origin, {"m.bin": FILE}), progress=False)
        now = overview.overview(cache)
    (disk,) = now.store.disk.rows
    assert disk.taken >= FILE.size and disk.budget == 1_000_000 and disk.free > 0
    assert now.worries == ("the store takes more than its budget: clean makes room",)


# -- what is broken ---------------------------------------------------------------------------------------------------


def test_of_a_cache_that_is_nowhere_there_is_nothing_to_tell(cache: Cache, cache_root: Path) -> None:
    now = overview.overview(cache)
    assert not faults_of(now) and now.worries == () and "Nothing is installed yet." in sections.page(now)
    assert not cache_root.exists()


def faults_of(now: overview.Overview) -> dict[str, str]:
    parts = {"running": now.running}
    for whole in (now.lists, now.store):
        parts |= {name: part for name in whole.__slots__ if isinstance(part := getattr(whole, name), overview.Told)}
    return {name: part.fault for name, part in parts.items() if part.fault}


BROKEN: dict[str, tuple[str, bytes, set[str]]] = {  # the file, what is in it, and the sections that cannot be told
    "registry": ("registry.json", b"\xff{[", set()),
    "queue": ("queue.json", b"\x00garbage", set()),
    "newer queue": ("queue.json", b'{"format": 99, "entries": []}', {"queued"}),
    "record": ("models/m/1/.manifest.json", b"[1, 2]", set()),
    "ledger": ("jobs/clean/20260101T0000Z.json", b"\xff" * 99, set()),
    "configuration": ("modelcache.toml", b"[jobs\n= 3", {"jobs"}),
    "database": ("state/*.db", b"SQLite format 3\x00" + b"\xff" * 5000, {"interrupted", "requested", "sources"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_takes_one_line_and_no_other_section(
    cache: Cache, cache_root: Path, origin: Origin, what: str
) -> None:
    cache.fetch(manifest_of(origin, {"m.bin": FILE}), progress=False)
    cache.fetch(origin.url("other.bin"), progress=False)
    Queue(cache).add(origin.url("m.bin"))
    cache.close()
    name, garbage, sections_without = BROKEN[what]
    path = next(cache_root.glob(name), cache_root / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(garbage)
    with contextlib.closing(Cache(cache_root)) as later:
        now = overview.overview(later)
    assert sections_without <= set(faults_of(now)), faults_of(now)
    assert all("\n" not in fault and "bug" not in fault for fault in faults_of(now).values()), faults_of(now)
    assert "url--other.bin" in sections.plain(now)
    assert "<script" not in sections.page(now)


def test_a_registry_that_is_lost_is_rebuilt_once_for_all_models(cache: Cache, origin: Origin, home: Path) -> None:
    for number in range(20):
        cache.fetch(manifest_of(origin, {"other.bin": OTHER}, f"m{number}"), progress=False)
    (home / "registry.json").unlink()
    code = """
import sys, modelcache
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
print(len(modelcache.cache.models()), sum(str(path).endswith(".manifest.json") for path in opened))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert told.split() == ["20", "40"]  # each is read for the list, and for the registry


def test_of_a_root_that_cannot_be_read_each_section_says_so(cache: Cache, cache_root: Path) -> None:
    cache_root.write_text("this is no folder")
    now = overview.overview(cache)
    assert {"installed", "interrupted"} <= set(faults_of(now))
    assert all("\n" not in fault and "bug" not in fault for fault in faults_of(now).values()), faults_of(now)
    assert str(cache_root) in sections.plain(now)


def test_a_section_that_fails_by_a_bug_takes_no_other_with_it(cache_root: Path) -> None:
    class Odd(Cache):
        def usage(self) -> Report:
            raise ValueError("http://host/?token=s3cret")

    with contextlib.closing(Odd(cache_root)) as cache:
        now = overview.overview(cache)
    assert faults_of(now) == {"requested": "a bug in modelcache: ValueError"} and now.lists.jobs.rows


# -- how it looks -----------------------------------------------------------------------------------------------------


class Balance(HTMLParser):
    """That what is opened is closed, and nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "iframe", "link") and not any(name.startswith("on") for name, _ in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_whatever_names_there_are_they_stay_text(cache: Cache, home: Path, origin: Origin) -> None:
    cut_at_half(cache, origin)
    Queue(cache).add(origin.url("m.bin"))
    Queue(cache).add(origin.url("other.bin"))
    cache.close()
    with contextlib.closing(sqlite3.connect(next(home.glob("state/*.db")), isolation_level=None)) as connection:
        connection.execute("UPDATE downloads SET source = ?, model = ?, error_message = ?", (HOSTILE,) * 3)
    waiting = home / "queue.json"
    odd = HOSTILE.replace('"', "").replace("\x1b", "")  # within JSON
    changed = waiting.read_text().replace(origin.url("m.bin"), f"http://[{odd}/").replace(origin.url("other.bin"), odd)
    waiting.write_text(changed)
    state = State(str(home), Uses(), 90 * 86400.0)
    state([Attempt("http", HOSTILE, "error", HOSTILE, HOSTILE, error_type="network", error_message=HOSTILE)])
    state([Attempt(HOSTILE, HOSTILE, "success", HOSTILE, HOSTILE, bytes=5)])
    state.close()
    with contextlib.closing(Cache(home)) as later:
        now = overview.overview(later)
    assert len(now.lists.queued.rows) == 2
    page, plain = sections.page(now), sections.plain(now)
    balance = Balance()
    balance.feed(page)
    assert balance.open == [] and "<script" not in page and "&lt;script&gt;" in page
    assert "\u202e" not in page + plain and "\x1b" not in page + plain


def test_a_name_or_an_error_without_end_is_cut_in_the_line_of_a_download() -> None:
    endless = "m" * 100_000
    line = sections.interrupted_line(overview.Interrupted("id", endless, "failed", 1, 2, True, now_ms(), endless))
    assert 'aria-label="mmm' in line and "Failed just now" in line and len(line) < 6_000


def test_long_lists_are_cut_and_say_by_how_much() -> None:
    held = overview.Held("m", "1", 5, 1, "ready", None, None, "given", False)
    waiting = overview.Queued("0", "n", "", "waiting", 0, 0, "", "")
    rows = overview.Told(tuple(replace(held, version=str(number)) for number in range(1000)))
    lists = overview.Lists(queued=overview.Told((waiting,) * 500))
    now = overview.Overview("/root", "host", overview.Told(), lists, overview.Store(rows))
    page = sections.page(now)
    assert "and 980 more" in page and "the first 8 of 500" in page and len(page) < 20_000
    assert "and 980 more" in sections.plain(now)


def test_a_dashboard_elsewhere_is_text_and_html(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    board = cache.dashboard()
    assert repr(board).startswith(f"Model cache {cache.root}") and board._repr_html_().startswith("<div")
    assert repr(dashboard(cache)) == repr(board)
    board._ipython_display_()
    assert capsys.readouterr().out.startswith("Model cache")
    board.close()


def test_asking_for_a_dashboard_loads_no_widgets_before_it_is_shown() -> None:
    code = "import sys, modelcache; board = modelcache.dashboard(); repr(board); print('ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
