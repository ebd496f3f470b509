"""Reports of what was fetched: exact, bounded, and alive whatever is in the database."""

import contextlib
import csv
import io
import json
import math
import random
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from caches import run

import modelcache
from modelcache.caching import Cache
from modelcache.errors import StoreError, UsageError
from modelcache.events import now_ms
from modelcache.history import Attempt
from modelcache.reporting.overview import GROUPS, SUMMARY
from modelcache.reporting.window import DAY_MS, HOUR_MS, Window, iso
from modelcache.rows import Report
from modelcache.sheets import write_csv
from modelcache.state.database import VERSION
from modelcache.state.place import Place
from modelcache.state.state import State
from modelcache.state.uses import Uses

NOW = now_ms()
GOOD = Attempt("http", "a.example", "success", "f", "m", latency_ms=10, duration_ms=110, bytes=1000, timestamp=NOW - 1)


def keep(root: Path, attempts: Iterable[Attempt], age_s: float = 90 * 86400.0) -> None:
    state = State(str(root), Uses(), age_s)
    state(list(attempts))
    state.close()


def report(root: Path, since: str = "24h", by: str | None = None) -> Report:
    cache = Cache(root)
    try:
        return cache.report(since, by)
    finally:
        cache.close()


def database(root: Path) -> str:
    return Place.of(str(root)).database


def change(root: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database(root), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def made_up(count: int, seed: int) -> list[Attempt]:
    """Of three days, some of each kind."""
    chance = random.Random(seed)

    def one() -> Attempt:
        when = NOW - chance.randrange(3 * DAY_MS)
        model = f"m{chance.randrange(4)}"
        if chance.random() < 0.3:
            return Attempt("cache", "", "hit", "f", model, bytes=chance.randrange(10**10), timestamp=when)
        layer, gateway = chance.choice([("http", "a.example"), ("http", "b.example:8080"), ("oci", "c.example")])
        took = chance.randrange(1, 5000)
        base = Attempt(
            layer, gateway, "success", "f", model, latency_ms=chance.randrange(took), duration_ms=took, timestamp=when
        )
        if chance.random() < 0.2:
            return replace(base, status="error", error_type="transient", error_message="503: busy", http_status=503)
        return replace(base, bytes=chance.randrange(10**9), resumed_bytes=chance.choice([0, 10**6]))

    return [one() for _ in range(count)]


def key_of(attempt: Attempt, group: str) -> str:
    day = datetime.fromtimestamp(attempt.timestamp / 1000, UTC).strftime("%Y-%m-%d")
    return {"layer": attempt.layer, "gateway": attempt.gateway or attempt.layer, "model": attempt.model, "day": day}[
        group
    ]


def summed_by_hand(attempts: list[Attempt], group: str, key: str) -> dict[str, Any]:
    mine = [one for one in attempts if key_of(one, group) == key]
    good = [one for one in mine if one.status == "success"]
    asked = [one for one in mine if one.status != "hit"]
    latencies, busy = sorted(one.latency_ms for one in good), sum(one.duration_ms for one in good)
    errors = sum(one.status == "error" for one in mine)
    return {
        "group": group, "key": key, "total": len(mine), "success": len(mine) - errors, "error": errors,
        "success_rate": round((len(mine) - errors) / len(mine), 4),
        "latency_p50_ms": latencies[math.ceil(0.5 * len(good)) - 1] if good else None,
        "latency_p95_ms": latencies[math.ceil(0.95 * len(good)) - 1] if good else None,
        "throughput_bps": round(1000 * sum(one.bytes for one in good) / busy) if good else None,
        "bytes": sum(one.bytes for one in asked),
        "bytes_saved_cache": sum(one.bytes for one in mine if one.status == "hit"),
        "bytes_saved_resume": sum(one.resumed_bytes for one in asked),
    }  # fmt: skip


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_every_cell_of_the_summary_is_what_its_attempts_come_to(tmp_path: Path, seed: int) -> None:
    attempts = made_up(400, seed)
    keep(tmp_path, attempts)
    found = report(tmp_path, "4d")
    assert found.columns == SUMMARY and {row["group"] for row in found} == set(GROUPS)
    for row in found:
        assert row == summed_by_hand(attempts, row["group"], row["key"])
    for group in GROUPS:
        assert {row["key"] for row in found if row["group"] == group} == {key_of(one, group) for one in attempts}


def test_one_group_alone_and_the_window(tmp_path: Path) -> None:
    attempts = made_up(300, 7)
    keep(tmp_path, attempts)
    late = [one for one in attempts if one.timestamp >= NOW - DAY_MS + 60_000]
    rows = list(report(tmp_path, iso(NOW - DAY_MS + 60_000), "gateway"))
    assert rows == [summed_by_hand(late, "gateway", row["key"]) for row in rows] and len(rows) == 4
    assert [row["total"] for row in rows] == sorted((row["total"] for row in rows), reverse=True)
    assert not len(report(tmp_path / "nothing")) and report(tmp_path / "nothing").notes == ()


def test_days_count_like_the_attempts_that_they_were(tmp_path: Path) -> None:
    attempts = made_up(400, 3)
    keep(tmp_path, attempts)
    exact = {(row["group"], row["key"]): row for row in report(tmp_path, "4d")}
    keep(tmp_path, [replace(GOOD, timestamp=NOW - 10 * DAY_MS)], age_s=3600.0)  # all that is older is rolled up
    with contextlib.closing(sqlite3.connect(database(tmp_path))) as connection:
        kept, days = (connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("attempts", "days"))
    assert kept < 60 and days > 20
    about = ("latency_p50_ms", "latency_p95_ms")
    for row in report(tmp_path, "4d"):
        was = exact[row["group"], row["key"]]
        assert {name: row[name] for name in SUMMARY if name not in about} == {
            name: was[name] for name in SUMMARY if name not in about
        }
        for name in about:
            assert row[name] == was[name] or abs(row[name] - was[name]) <= 0.2 * was[name] + 1


@pytest.mark.parametrize(
    ("text", "back_ms"), [("90m", 90 * 60_000), ("24h", 24 * HOUR_MS), ("7d", 7 * DAY_MS), ("4w", 28 * DAY_MS)]
)
def test_since_is_a_while(text: str, back_ms: int) -> None:
    assert Window.since(text, NOW) == Window(NOW - back_ms, NOW)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("2026-05-04", "2026-05-04T00:00:00.000Z"), ("2026-05-04T12:30", "2026-05-04T12:30:00.000Z"),
        ("2026-05-04T12:30+02:00", "2026-05-04T10:30:00.000Z"), ("2026-05-04T12:30Z", "2026-05-04T12:30:00.000Z"),
        ("999999w", "1970-01-01T00:00:00.000Z"), ("1066-10-14", "1970-01-01T00:00:00.000Z"),
    ],
)  # fmt: skip
def test_since_is_a_date_of_utc(text: str, start: str) -> None:
    later = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000)
    assert iso(Window.since(text, later).start_ms) == start


@pytest.mark.parametrize(
    "text",
    ["", "7", "d", "-7d", "7.5d", "1y", "soon", "2026-13-01", "9" * 400, "٣d", "2999-01-01", "0h", "00d", 5, None],
)
def test_since_that_cannot_be_meant_is_a_wrong_use(tmp_path: Path, text: Any) -> None:
    with pytest.raises(UsageError, match="since"):
        report(tmp_path, text)
    with pytest.raises(UsageError, match="layer, gateway, model, day"):
        report(tmp_path, "24h", "colour")


# -- what is in the database ------------------------------------------------------------------------------------------


def test_damaged_rows_and_rows_from_the_future_are_left_out_and_told_once(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD] * 3)
    whole = list(report(tmp_path))
    keep(tmp_path, [replace(GOOD, timestamp=NOW + 400 * DAY_MS)] * 2)
    odd = [
        ("timestamp", "'now'"), ("timestamp", "NULL"), ("timestamp", "-1"), ("bytes", "-1"), ("resumed_bytes", "'x'"),
        ("latency_ms", "NULL"), ("duration_ms", "x'00'"), ("status", "'well'"), ("model", "x'37'"), ("layer", "NULL"),
        ("error_type", "x'ff'"), ("bytes", str(2**63 - 1)),
    ]  # fmt: skip
    last = "WHERE rowid = (SELECT MAX(rowid) FROM attempts)"
    for column, value in odd:
        change(tmp_path, "INSERT INTO attempts SELECT * FROM attempts WHERE rowid = 1")
        change(tmp_path, f"UPDATE attempts SET {column} = {value} {last}")
    rest = "'h', 'm', 'http', 'g', 'success', ''"
    change(tmp_path, f"INSERT INTO days VALUES ('{iso(NOW)[:10]}', {rest}, 'x', 1, 1, 1, '', '')")
    change(tmp_path, f"INSERT INTO days VALUES ('someday', {rest}, 1, 1, 1, 1, '', '')")
    found = report(tmp_path)
    assert list(found) == whole
    damaged, future = found.notes
    assert damaged == f"left out of the metrics: {len(odd) + 1} that are damaged"
    assert future == "left out of the metrics: 2 that are from the future: a clock was wrong"


def test_text_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD])
    change(tmp_path, "UPDATE attempts SET model = CAST(x'6dff' AS TEXT)")
    (row,) = report(tmp_path, by="model")
    assert row["key"] == "m\ufffd"


def test_a_database_that_is_garbage_costs_its_rows_and_one_sentence(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD])
    beside = Path(database(tmp_path)).with_name("other.db")
    beside.write_bytes(b"no database " * 1000)
    found = report(tmp_path)
    assert len(found) == len(GROUPS)
    (note,) = found.notes
    assert str(beside) in note and "\n" not in note


def test_a_database_with_broken_pages_does_not_end_a_report(tmp_path: Path) -> None:
    keep(tmp_path, made_up(3000, 1))
    path = Path(database(tmp_path))
    content = bytearray(path.read_bytes())
    content[8192:-8192] = b"\xa5" * (len(content) - 16384)
    path.write_bytes(content)
    found = report(tmp_path)
    assert any(str(path) in note for note in found.notes) or list(path.parent.glob("*.damaged-*"))
    found.to_html(tmp_path / "page.html")


def test_a_database_of_a_newer_version_is_named(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD])
    change(tmp_path, f"PRAGMA user_version = {VERSION + 1}")
    found = report(tmp_path)
    assert not len(found) and "update modelcache" in found.notes[0]


def test_a_database_of_an_older_version_is_read(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD])
    day = f"('{iso(NOW - DAY_MS)[:10]}', 'h', 'm', 'http', 'g', 'success', '', 4, 10, 0, 400, '{{\"1\": 4}}')"
    change(tmp_path, "ALTER TABLE days DROP COLUMN durations", "DROP TABLE sizes", "PRAGMA user_version = 2")
    change(tmp_path, f"INSERT INTO days VALUES {day}")
    Path(database(tmp_path)).rename(tmp_path / "state" / "another.db")  # of a host that has not been updated
    found = report(tmp_path, "3d", "layer")
    assert [(row["total"], row["bytes"]) for row in found] == [(5, 1010)] and found.notes == ()


def test_several_hosts_of_a_root_are_one_report(tmp_path: Path) -> None:
    keep(tmp_path, [GOOD])
    Path(database(tmp_path)).rename(tmp_path / "state" / "another.db")
    keep(tmp_path, [GOOD, replace(GOOD, status="error", error_type="transient", bytes=0)])
    (row,) = report(tmp_path, by="layer")
    assert (row["total"], row["error"], row["bytes"]) == (3, 1, 2000)


# -- as files ---------------------------------------------------------------------------------------------------------


def test_csv_is_as_rfc_4180_wants_it_and_carries_nothing_out(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", 'a "b", c', "two\nlines", "ünï", "\ud800", "", "a=b"]
    stream = io.BytesIO()
    write_csv(stream, ("name", "number", "nothing"), [{"name": name, "number": -3, "nothing": None} for name in names])
    content = stream.getvalue()
    assert content.startswith(b"name,number,nothing\r\n") and content.endswith(b"a=b,-3,\r\n")
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    quoted = [f"'{name}" if name[:1] in set("=+-@\t\r\n") else name.replace("\ud800", "?") for name in names]
    assert [row["name"] for row in rows] == quoted
    assert {(row["number"], row["nothing"]) for row in rows} == {("-3", "")}


def test_a_report_becomes_csv_a_frame_a_page_and_a_table_of_a_notebook(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    keep(tmp_path, [GOOD, replace(GOOD, model=hostile)])
    found = report(tmp_path, by="model")
    found.to_csv(tmp_path / "a.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_bytes().decode(), newline="")))
    assert tuple(rows[0]) == SUMMARY
    assert [row["key"] for row in rows] == [hostile, "m"] and rows[0]["bytes"] == "1000"
    assert list(found.df.columns) == list(SUMMARY) and len(found.df) == 2
    assert list(report(tmp_path / "nothing").df.columns) == list(SUMMARY)
    assert hostile not in found._repr_html_() and "&lt;script&gt;" in found._repr_html_()
    assert "m" in str(found) and "success rate" in str(found)


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, small_disk: Path) -> None:
    keep(tmp_path, [GOOD])
    found = report(tmp_path)
    (small_disk / "a.csv").write_text("before")
    (small_disk / "full").write_bytes(bytes(4_190_000))
    with contextlib.suppress(OSError), (small_disk / "rest").open("wb", 0) as rest:
        while rest.write(bytes(100)):
            pass
    large = replace(found, rows=found.rows * 100)
    with pytest.raises(StoreError, match="disk is full"):
        large.to_csv(small_disk / "a.csv")
    with pytest.raises(StoreError, match="disk is full"):
        large.to_html(small_disk / "a.html")
    assert (small_disk / "a.csv").read_text() == "before"
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.csv", "full", "rest"]
    with pytest.raises(StoreError):
        found.to_csv(tmp_path / "no" / "such" / "folder.csv")


def test_the_dash_is_stdout(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report", "--csv", "-").stdout.splitlines() == [",".join(SUMMARY)]
    page = run("report", "--html", "-", "--csv", "a.csv").stdout
    assert page.startswith("<!doctype html>") and "a.csv" not in page.splitlines()[-1]
    assert run("logs", "--export", "-").stdout == ""
    for twice in (("--csv", "-", "--html", "-"), ("--csv", "-", "--json")):
        assert run("report", *twice).returncode == 2
    assert run("logs", "--export", "-", "--json").returncode == 2
    assert run("fetch", "http://127.0.0.1:1/m", "--output", "-").returncode == 2
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "f").write_text("x")
    assert json.loads(run("manifest", "make", "folder", "--output", "-").stdout)["id"] == "folder"
    assert sorted(path.name for path in tmp_path.iterdir() if path != home) == ["a.csv", "folder"]


def test_a_file_that_cannot_be_written_is_told_with_its_option(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("report", "--csv", str(tmp_path / "file" / "week.csv"))
    assert (done.returncode, ", or choose another --csv" in done.stderr) == (6, True), done.stderr


def test_the_package_reports_on_the_default_cache(home: Path) -> None:
    keep(home, [GOOD])
    code = "import modelcache as mc; print([row['total'] for row in mc.report(since='7d', by='layer')])"
    assert modelcache.report is not None and run_python(code) == "[1]"


def run_python(code: str) -> str:
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_json_or_where_the_files_are(home: Path, tmp_path: Path) -> None:
    keep(home, [GOOD])
    done = run("report", "--since", "7d", "--by", "gateway")
    assert done.returncode == 0 and "a.example" in done.stdout and done.stderr == ""
    assert '"total": 1' in run("report", "--json").stdout
    sheet, page = tmp_path / "a.csv", tmp_path / "a.html"
    done = run("report", "--csv", str(sheet), "--html", str(page))
    assert done.stdout.split() == [str(sheet), str(page)]
    assert sheet.read_text().startswith("group,key,") and page.read_text().startswith("<!doctype html>")
    done = run("report", "--since", "tomorrow")
    assert done.returncode == 2 and "24h" in done.stderr and "Traceback" not in done.stderr
    assert run("report", "--by", "x").returncode == 2


def test_the_command_says_on_stderr_what_was_left_out(home: Path) -> None:
    keep(home, [GOOD])
    change(home, "UPDATE attempts SET bytes = 'many'")
    done = run("report", "--json")
    assert done.stdout.strip() == "[]" and done.stderr == "left out of the metrics: 1 that is damaged\n"


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_report_over_a_million_attempts_takes_little_memory(home: Path) -> None:
    keep(home, [GOOD])
    row = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) INSERT INTO attempts SELECT"
        f" {NOW} - (1000000 - i) * 7776, 'host', 'model-' || (i * 7919 % 60), 'f', 'http', 'host-' || (i * 104729 % 9),"
        " CASE i % 14 WHEN 0 THEN 'error' WHEN 1 THEN 'hit' ELSE 'success' END, abs(random() % 2000),"
        " abs(random() % 1000000000), 0, 1, CASE i % 14 WHEN 0 THEN 'network' ELSE '' END, '', 200,"
        " abs(random() % 90000) FROM n"
    )
    change(home, row)
    code = (  # not ru_maxrss: that also counts the process that this one was forked from
        "import resource, modelcache as mc; report = mc.report('91d');"
        "usage = resource.getrusage(resource.RUSAGE_SELF);"
        "print(sum(row['total'] for row in report if row['group'] == 'layer'), usage.ru_utime + usage.ru_stime,"
        " int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]) // 1024)"
    )
    total, seconds, mib = run_python(code).split()
    print(f"{total} attempts: {float(seconds):.1f} s of CPU, {mib} MiB")
    assert int(total) == 1_000_001
    assert int(mib) < 150
