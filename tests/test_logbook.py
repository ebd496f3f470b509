"""The log of each model: whole lines from many processes, bounded, readable whatever is in it, without secrets."""

import json
import multiprocessing
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from caches import manifest_of, run

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError
from modelcache.events import Fact
from modelcache.logbook import MOST_BYTES, Logbook
from modelcache.testing import Content, Origin, Status

FIELDS = ["timestamp", "model_name", "event_type", "message", "details"]
FILE = Content.generated(300_000, seed=3)


def types(cache: Cache, model: str | None = None) -> list[str]:
    return [row["event_type"] for row in cache.logs(model)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_fetch_is_told_in_the_fields_and_types_that_programs_know(cache: Cache) -> None:
    with Origin({"a.bin": FILE, "b.bin": FILE}) as origin:
        cache.fetch(manifest_of(origin, {"a.bin": FILE, "b.bin": FILE}), progress=False)
    rows = lines(Path(cache.root, "logs/m.jsonl"))
    assert rows == list(cache.logs("m"))
    assert [list(row) for row in rows] == [FIELDS] * len(rows)
    assert [row["event_type"] for row in rows] == ["started", "manifest_pulled", "verified", "verified", "completed"]
    assert rows[1]["details"]["layers"] == 2
    assert rows[1]["details"]["total_size"] == 2 * FILE.size
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["timestamp"]) for row in rows)
    assert stat.S_IMODE(Path(cache.root, "logs/m.jsonl").stat().st_mode) == 0o600


def test_a_failure_is_told_and_holds_no_secret(cache: Cache) -> None:
    with Origin({"a.bin": FILE}, faults=[Status(404)]) as origin:
        url = origin.url("a.bin").replace("://", "://user:geheim@") + "?token=geheim2"
        with pytest.raises(ModelCacheError):
            cache.fetch(url, progress=False)
    assert types(cache) == ["started", "manifest_pulled", "source_failed", "error"]
    assert "geheim" not in "".join(path.read_text() for path in Path(cache.root, "logs").iterdir())


def test_urls_in_any_text_lose_their_secrets(tmp_path: Path) -> None:
    book = Logbook(str(tmp_path))
    text = "at https://u:geheim@h/f?sig=geheim and s3://k:geheim@b/x"
    book([Fact("error", "m", text, details={"a": "ftp://h/?geheim"})])
    (row,) = book.read("m")
    assert row["message"] == "at https://h/f and s3://b/x"
    assert row["details"] == {"a": "ftp://h/"}


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), number, 400)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    rows = [row for name in os.listdir(tmp_path) for row in lines(tmp_path / name)]
    assert sorted(row["message"].split("-")[0] for row in rows) == sorted(str(n) for n in range(4) for _ in range(400))


def test_a_log_and_the_one_before_it_stay_bounded(tmp_path: Path) -> None:
    _write_many(str(tmp_path), 0, 1300, 1900)
    before, now = ((tmp_path / name).stat().st_size for name in ("m.jsonl.1", "m.jsonl"))
    assert MOST_BYTES <= before < MOST_BYTES + 3000 and 0 < now < MOST_BYTES + 3000


def test_a_full_log_is_turned_over_by_one_of_many(tmp_path: Path) -> None:
    """By how much it is too long then, who holds it just then decides: nobody waits for that."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), number, 700, 1900)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sorted(os.listdir(tmp_path)) == ["m.jsonl", "m.jsonl.1"]
    assert (tmp_path / "m.jsonl.1").stat().st_size >= MOST_BYTES
    assert len(Logbook(str(tmp_path)).read("m")) == sum(len(lines(tmp_path / name)) for name in os.listdir(tmp_path))


def _write_many(folder: str, number: int, count: int, length: int = 300) -> None:
    book = Logbook(folder)
    for index in range(count):
        book([Fact("started", "m", f"{number}-{index}".ljust(length, "x"))])


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    book = Logbook(str(tmp_path))
    book([Fact("started", "m", "one")])
    with (tmp_path / "m.jsonl").open("ab") as stream:
        stream.write(b'{"timestamp": "2026')
    book([Fact("paused", "m", "two")])
    assert [row["message"] for row in book.read("m")] == ["one", "two"]


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 5000, b"\xff\xfe{}\n[]\n1\n", b"[" * 100_000 + b"\n", b'{"timestamp": 1}\n', b'"' * 3_000_000],
    ids=["zeros", "no rows", "deep", "fields", "huge"],
)
def test_garbage_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "m.jsonl").write_bytes(garbage)
    book = Logbook(str(tmp_path))
    book([Fact("started", "m", "one")])
    assert [row["message"] for row in book.read("m")] == ["one"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling", "logs is a link", "logs is a file"])
def test_whatever_is_in_its_place_a_fetch_goes_on(cache: Cache, tmp_path: Path, kind: str) -> None:
    logs, elsewhere = Path(cache.root, "logs"), tmp_path / "elsewhere"
    logs.parent.mkdir(parents=True)
    elsewhere.mkdir()
    if kind == "logs is a link":
        logs.symlink_to(elsewhere)
    elif kind == "logs is a file":
        logs.write_text("")
    else:
        logs.mkdir()
        _put(logs / "m.jsonl", kind, elsewhere)
    with Origin({"a.bin": FILE}) as origin:
        assert cache.fetch(manifest_of(origin, {"a.bin": FILE}), progress=False)
    assert types(cache) == []
    assert list(elsewhere.iterdir()) == []


def _put(place: Path, kind: str, elsewhere: Path) -> None:
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(elsewhere / "there" if kind == "dangling" else elsewhere)


def test_a_full_disk_stops_no_line_that_comes_later(small_disk: Path) -> None:
    book = Logbook(str(small_disk / "logs"))
    book([Fact("started", "m", "one")])
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass
    for _ in range(20):
        book([Fact("resumed", "m", "x" * 1000)])
    (small_disk / "ballast").unlink()
    book([Fact("completed", "m", "last")])
    rows = book.read("m")
    assert (rows[0]["message"], rows[-1]["message"]) == ("one", "last")
    assert len(rows) < 22


def test_the_command_shows_and_exports_it(cache: Cache, tmp_path: Path) -> None:
    book = Logbook(os.path.join(cache.root, "logs"))
    Path(cache.root).mkdir()
    book([Fact("started", "m", "one\x1b[2J")])
    book([Fact("paused", "n", "two")])
    shown = run("logs", "m").stdout
    assert shown.endswith(" m started: one [2J\n")
    assert [row["message"] for row in json.loads(run("logs", "--json").stdout)] == ["one\x1b[2J", "two"]
    target = tmp_path / "report.jsonl"
    assert run("logs", "--export", str(target)).stdout.strip() == str(target)
    assert [row["model_name"] for row in lines(target)] == ["m", "n"]
    assert run("logs", "--export", "-").stdout.encode() == target.read_bytes()
    nothing = run("logs", "x")
    assert (nothing.returncode, nothing.stdout) == (4, "")
    assert nothing.stderr.startswith("modelcache: Model x is not available: not_installed; ")


def test_what_others_wrote_into_a_log_is_exported_without_secrets(cache: Cache, tmp_path: Path) -> None:
    logs = Path(cache.root, "logs")
    logs.mkdir(parents=True)
    row = dict.fromkeys(FIELDS, "") | {"message": "https://h/?geheim", "details": {"x": ["https://geheim@h/"]}}
    (logs / "m.jsonl").write_text(json.dumps(row) + "\n")
    target = tmp_path / "report.jsonl"
    assert run("logs", "m", "--export", str(target)).returncode == 0
    assert "geheim" not in target.read_text()


def test_a_model_that_cannot_be_one_is_refused(cache: Cache) -> None:
    refused = run("logs", "../etc/passwd")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_a_log_is_exported_into_the_folder_where_one_is(cache: Cache, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("logs", "--export", "report.jsonl").returncode == 0
    assert (tmp_path / "report.jsonl").exists()
