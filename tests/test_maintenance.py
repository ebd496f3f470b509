"""What earlier runs left: found, told, and taken away only where it is nobody's (product D1, D4, E2; I29, I30)."""

import fcntl
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from caches import manifest_of, partials, rot, run
from crash import begin, check_store, eventually, files_below, partial_bytes, sha256_of

from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelNotAvailableError
from modelcache.rows import Report
from modelcache.store import leftovers
from modelcache.store.disk import write_atomic
from modelcache.store.journal import Journal
from modelcache.store.layout import Layout
from modelcache.testing import Content, Hold, Origin, Slow

MIB = 1 << 20
DAY = 86_400
FILE = Content.generated(6 * MIB + 77, seed=5)
SMALL = Content.generated(50_000, seed=6)
KEY = "sha256-" + "0" * 64
TOKEN = "0123456789abcdef"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "s.bin": SMALL}) as serving:
        yield serving


def killed(origin: Origin, home: Path, *more: str, at: int = 3 * MIB) -> None:
    """A fetch of `m.bin` that was killed at some byte."""
    hold = Hold(at)
    origin.faults(hold)
    child = begin(home, "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet", *more)
    assert hold.reached.wait(60)
    assert eventually(lambda: partial_bytes(home / "partials") > at - MIB)
    child.kill()
    child.communicate(timeout=30)
    origin.heal()


def the_partial(home: Path) -> Path:
    (folder,) = (home / "partials").iterdir()
    return folder


def aged(path: Path, days: float) -> None:
    when = time.time() - days * DAY
    for one in [*path.glob("*"), path] if path.is_dir() and not path.is_symlink() else [path]:
        os.utime(one, (when, when), follow_symlinks=False)


def by_kind(rows: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["kind"], []).append(Path(row["path"]).name)
    return found


# -- at the start -----------------------------------------------------------------------------------------------------


def test_what_a_kill_left_is_told_once_and_gone_on_with(origin: Origin, cache: Cache, cache_root: Path) -> None:
    killed(origin, cache_root)
    done = run("fetch", origin.url("m.bin"), "--sha256", FILE.sha256)
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert told[0] == "Checking for partial model downloads..."
    size = int(told[1].split("Partial size: ")[1].split()[0])
    assert told[1].startswith("Found partial download for model: url--m.bin--")
    assert told[1].endswith(f". Partial size: {size} bytes. Can resume: True")
    assert MIB <= size <= 3 * MIB  # what the journal says, which may be 1 MiB behind
    (found,) = [row for row in cache.logs() if row["event_type"] == "partial_found"]
    assert found["details"]["size"] == size
    assert sha256_of(Path(done.stdout.strip())) == FILE.sha256
    assert run("fetch", origin.url("m.bin"), "--sha256", FILE.sha256).stderr == ""


def test_a_find_is_one_warning_for_whoever_configures_logging(
    origin: Origin, cache: Cache, cache_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed(origin, cache_root)
    (row,) = cache.check_at_start()
    (told,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert told.getMessage() == row["text"]
    assert "Found partial download for model: " in row["text"] and ". Can resume: True" in row["text"]


def test_quiet_is_quiet(origin: Origin, cache_root: Path) -> None:
    killed(origin, cache_root)
    assert run("fetch", origin.url("s.bin"), "--sha256", SMALL.sha256, "--quiet").stderr == ""


def test_a_process_looks_once_and_a_hit_does_not_look(origin: Origin, cache: Cache, cache_root: Path) -> None:
    cache.fetch(origin.url("s.bin"), sha256=SMALL.sha256)
    killed(origin, cache_root)
    again = Cache(cache_root)
    again.fetch(origin.url("s.bin"), sha256=SMALL.sha256)
    assert len(again.check_at_start()) == 1
    assert len(again.check_at_start()) == 0


def test_what_somebody_is_fetching_is_nothing_that_was_left(origin: Origin, cache: Cache, cache_root: Path) -> None:
    hold = Hold(3 * MIB)
    origin.faults(hold)
    child = begin(cache_root, "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet")
    try:
        assert hold.reached.wait(60)
        aged(the_partial(cache_root), 30)
        assert len(cache.check_at_start()) == 0
        assert "partial" not in by_kind(cache.clean())
        assert the_partial(cache_root)
    finally:
        hold.release.set()
        _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (0, "")


def _no_journal(folder: Path) -> None:
    (folder / "data").write_bytes(b"x" * 100)


def _garbled(folder: Path) -> None:
    (folder / "data").write_bytes(b"x" * 100)
    (folder / "journal").write_bytes(b"\0" * 4096)


def _no_bytes(folder: Path) -> None:
    (folder / "data").write_bytes(b"")
    (folder / "journal").write_text(json.dumps({"format": 1, "key": KEY, "size": 5, "path": "f", "model": "m"}) + "\n")


def _no_data(folder: Path) -> None:
    (folder / "journal").write_text('{"format": 1, "model": "m"}\ns "a"\nw 0 5 0\n')


def _journal_is_a_fifo(folder: Path) -> None:
    os.mkfifo(folder / "journal")
    (folder / "data").write_bytes(b"x")


def _journal_is_a_folder(folder: Path) -> None:
    (folder / "journal").mkdir()


def _data_is_a_link(folder: Path) -> None:
    (folder / "journal").write_text('{"format": 1, "model": "m"}\ns "a"\nw 0 5 0\n')
    (folder / "data").symlink_to("/etc/hostname")


def _deep(folder: Path) -> None:
    (folder / "journal").write_bytes(b"[" * 1_000_000)


HOPELESS: list[Callable[[Path], None]] = [
    _no_journal, _garbled, _no_bytes, _no_data, _journal_is_a_fifo, _journal_is_a_folder, _data_is_a_link, _deep,
    lambda folder: None,
]  # fmt: skip


@pytest.mark.parametrize("make", HOPELESS)
def test_what_is_hopeless_is_cleaned_up_at_the_start(
    cache: Cache, cache_root: Path, make: Callable[[Path], None]
) -> None:
    folder = cache_root / "partials" / f"{KEY}.{TOKEN}"
    folder.mkdir(parents=True)
    make(folder)
    (row,) = cache.check_at_start()
    assert (row["can_resume"], row["cleaned"]) == (False, True)
    assert row["text"].endswith(f"Can resume: False. Cleaned up partial download for: {row['model']}")
    assert partials(cache) == []
    assert cache.clean().rows == () or by_kind(cache.clean()).keys() <= {"lock"}


def test_a_hopeless_one_that_somebody_holds_stays(cache: Cache, cache_root: Path) -> None:
    folder = cache_root / "partials" / f"{KEY}.{TOKEN}"
    folder.mkdir(parents=True)
    lock = cache_root / "locks" / f"{KEY}.lock"
    lock.parent.mkdir()
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert len(cache.check_at_start()) == 0
        assert by_kind(cache.clean()) == {}
    assert folder.exists()


def test_a_journal_of_any_size_is_only_begun_to_be_read(cache: Cache, cache_root: Path) -> None:
    folder = cache_root / "partials" / f"{KEY}.{TOKEN}"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * 8192)
    with (folder / "journal").open("wb") as journal:
        journal.write(b'{"format": 1, "model": "m", "path": "f", "size": 9000}\ns "a"\n' + b"w 0 1 0\n" * 5000)
        journal.truncate(1 << 40)
    (row,) = cache.check_at_start()
    assert (row["model"], row["size"], row["total"], row["can_resume"], row["cleaned"]) == (
        "m",
        8192,
        9000,
        True,
        False,
    )


@pytest.mark.parametrize("name", ["模型" * 2000, "\ud800" * 2000])
def test_a_partial_whose_name_alone_fills_the_head_of_its_journal_stays(
    cache: Cache, cache_root: Path, name: str
) -> None:
    journal = cache_root / "partials" / f"{KEY}.{TOKEN}" / "journal"
    journal.parent.mkdir(parents=True)
    (journal.parent / "data").write_bytes(b"x" * 8192)
    writing = Journal.create(str(journal), {"model": "m", "path": name, "size": 9000})
    writing.wrote(0, 8192, "a")
    writing.close()
    assert len(journal.read_bytes()) > leftovers.HEAD
    (row,) = cache.check_at_start()
    assert (row["model"], row["size"], row["can_resume"], row["cleaned"]) == ("m", 8192, True, False)
    assert journal.exists()


def test_an_older_journal_without_a_model_is_called_by_its_file(cache: Cache, cache_root: Path) -> None:
    folder = cache_root / "partials" / f"{KEY}.{TOKEN}"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"x" * 5)
    (folder / "journal").write_text('{"format": 1, "path": "f\\u001b.bin"}\ns "a"\nw 0 5 0\n')
    (row,) = cache.check_at_start()
    assert row["text"] == "Found partial download for model: f?.bin. Partial size: 5 bytes. Can resume: True"


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "folder", "link to partials"])
def test_what_is_no_partial_neither_stops_a_fetch_nor_stays_for_ever(
    origin: Origin, cache: Cache, cache_root: Path, tmp_path: Path, kind: str
) -> None:
    base = cache_root / "partials"
    base.mkdir(parents=True)
    (tmp_path / "precious").write_text("mine")
    place = base / "what is this"
    if kind == "file":
        place.write_bytes(b"x" * 5000)
    elif kind == "link":
        place.symlink_to(tmp_path / "precious")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "deeper").mkdir(parents=True)
    else:
        (base / f"{KEY}.{TOKEN}").symlink_to(tmp_path)
    cache.fetch(origin.url("s.bin"), sha256=SMALL.sha256)
    if place.is_symlink() or place.exists():
        aged(place, 8)
    cache.clean()
    assert partials(cache) == []
    assert (tmp_path / "precious").read_text() == "mine"


# -- clean ------------------------------------------------------------------------------------------------------------


def test_a_database_that_was_set_aside_goes_as_what_had_rotted(cache: Cache, cache_root: Path) -> None:
    state = cache_root / "state"
    state.mkdir(parents=True)
    names = {"host.db.damaged-1700000000000", "host.db.damaged-1700000000000-wal"}
    for name in (*names, "host.db", "host.db.damaged-notes"):
        (state / name).touch()
    assert cache.clean().rows == ()
    assert set(by_kind(Cache(cache_root, quarantine_age=0).clean())["quarantine"]) == names
    assert sorted(path.name for path in state.iterdir()) == ["host.db", "host.db.damaged-notes"]


def test_what_goes_away_meanwhile_does_not_end_a_clean(cache: Cache, cache_root: Path) -> None:
    """Another process's clean, a log that is rotated, a blob that is removed."""
    logs, blobs = cache_root / "logs", cache_root / "blobs" / "sha256" / "aa"
    logs.mkdir(parents=True)
    blobs.mkdir(parents=True)
    ended = threading.Event()

    def come_and_go() -> None:
        names = [logs / f"m{at}.jsonl" for at in range(50)] + [blobs / f"{at:064x}" for at in range(50)]
        while not ended.is_set():
            for name in names:
                name.touch()
            for name in names:
                name.unlink(missing_ok=True)

    churn = threading.Thread(target=come_and_go)
    churn.start()
    try:
        for _ in range(300):
            cache.clean(dry_run=True)
    finally:
        ended.set()
        churn.join()


def test_a_lease_is_as_old_as_the_file_server_says(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = cache_root / "locks" / "m.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    lease = lock.with_name("m.lock.lease")
    lease.touch()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2 * leftovers.SILENCE_S)  # our clock is wrong
    assert list(leftovers.free_locks(Layout(str(cache_root)))) == []
    monkeypatch.setattr(time, "time", lambda: now() - 2 * leftovers.SILENCE_S)
    aged(lease, 0.5)
    assert list(leftovers.free_locks(Layout(str(cache_root)))) == [str(lock)]
    assert sorted(path.name for path in lock.parent.iterdir()) == ["m.lock", "m.lock.lease"]


@pytest.fixture
def littered(origin: Origin, cache: Cache, cache_root: Path) -> Path:
    """A cache with one good model, and one old and one young thing of every kind."""
    cache.fetch(manifest_of(origin, {"s.bin": SMALL}), progress=False)
    killed(origin, cache_root)
    aged(the_partial(cache_root), 8)
    now = time.time_ns()
    (cache_root / "quarantine").mkdir(exist_ok=True)
    for days in (8, 1):
        (cache_root / "quarantine" / f"rotten.{now - days * DAY * 10**9}").write_bytes(b"x" * 5000)
    for name, days in (("old", 31), ("young", 29)):
        (cache_root / "logs" / f"{name}.jsonl").write_text("{}\n")
        aged(cache_root / "logs" / f"{name}.jsonl", days)
    blob = cache_root / "blobs/sha256/00" / ("00" + "f" * 62)
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(b"x" * 7000)
    os.link(next((cache_root / "models").glob("*/*/s.bin")), cache_root / "models/m/1/.0123456789abcdef.tmp")
    (cache_root / ".registry.json.01234567.tmp").write_text("{")
    (cache_root / "models/m/1/.notes.tmp").write_text("a user's own")
    return cache_root


def by_path(report: Report, kind: str) -> dict[str, int]:
    return {row["path"]: row["size"] for row in report if row["kind"] == kind}


def test_a_dry_run_lists_exactly_what_a_run_removes(littered: Path) -> None:
    cache = Cache(littered, temporary_age=0)
    before = {str(path) for path in littered.rglob("*")}
    listed = cache.clean(dry_run=True)
    more = {path for path in littered.rglob("*") if str(path) not in before}
    assert more == set()
    removed = cache.clean()
    there = {row["path"]: row["size"] for row in listed}
    assert {path: size for path, size in by_path(removed, "lock").items() if path in there} == by_path(listed, "lock")
    assert any(by_path(listed, "lock").values()), "what tells of a dead holder takes room"
    assert [row["path"] for row in removed if row["kind"] != "lock"] == [
        row["path"] for row in listed if row["kind"] != "lock"
    ]
    assert [row["size"] for row in removed if row["kind"] != "lock"] == [
        row["size"] for row in listed if row["kind"] != "lock"
    ]
    assert all(row["removed"] for row in removed)
    assert not any(os.path.lexists(row["path"]) for row in removed)
    assert not any(row["kind"] != "lock" for row in cache.clean())


def content_of(home: Path) -> dict[str, tuple[int, int, bytes]]:
    """All there is: mode, inode and bytes of every file and folder."""
    found = {}
    for path in home.rglob("*"):
        now = path.lstat()
        found[str(path)] = (now.st_mode, now.st_ino, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.mark.parametrize("words", [("clean", "--dry-run"), ("doctor",), ("status",), ("queue",), ("ls",)], ids=" ".join)
def test_whoever_only_looks_writes_nothing(littered: Path, words: tuple[str, ...]) -> None:
    Cache(littered).close()
    before = content_of(littered)
    assert any(path.endswith(".db") for path in before)
    ages = {f"MODELCACHE_{name}_AGE": "0" for name in ("STALE_PARTIAL", "QUARANTINE", "LOG", "TEMPORARY")}
    assert run(*words, **ages).returncode in (0, 3)
    assert content_of(littered) == before
    (littered / "state/x").mkdir()
    assert content_of(littered) != before


def test_what_sqlite_left_beside_the_database_of_a_killed_process_stays(littered: Path, cache: Cache) -> None:
    cache.close()
    (database,) = (littered / "state").glob("*.db")
    writing = sqlite3.connect(database, isolation_level=None)
    writing.execute("INSERT INTO usage VALUES ('late', 1, 1)")
    beside = {end: Path(f"{database}-{end}").read_bytes() for end in ("wal", "shm")}
    writing.close()  # takes both away
    for end, content in beside.items():
        Path(f"{database}-{end}").write_bytes(content)
    before = {path: path.read_bytes() for path in (database, Path(f"{database}-wal"))}
    assert run("clean", "--dry-run").returncode == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_temporary_file_stays_as_long_as_somebody_writes_it_whatever_its_age(littered: Path) -> None:
    cache = Cache(littered, temporary_age=0)
    place = littered / ".registry.json.01234567.tmp"
    with place.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert place.name not in by_kind(cache.clean(dry_run=True))["temporary"]
        assert place.name not in by_kind(cache.clean()).get("temporary", [])
        with pytest.raises(LockedError):
            leftovers.remove_temporary(str(place))
    assert by_kind(cache.clean())["temporary"] == [place.name]


def test_a_small_file_is_replaced_though_somebody_cleans_all_the_time(tmp_path: Path) -> None:
    """At each of many moments between making, locking and renaming it."""
    done = threading.Event()

    def clean() -> None:
        while not done.is_set():
            for path in leftovers.temporary(Layout(str(tmp_path)), deep=False):
                with suppress(LockedError):
                    leftovers.remove_temporary(path)

    cleaning = [threading.Thread(target=clean) for _ in range(2)]
    for thread in cleaning:
        thread.start()
    try:
        for number in range(500):
            write_atomic(str(tmp_path / "registry.json"), str(number).encode())
    finally:
        done.set()
        for thread in cleaning:
            thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["registry.json"]
    assert (tmp_path / "registry.json").read_text() == "499"


def test_only_what_is_old_and_nobodys_goes(littered: Path) -> None:
    cache = Cache(littered, temporary_age=0)
    found = by_kind(cache.clean())
    assert len(found["partial"]) == 1
    assert len(found["quarantine"]) == 1
    assert found["log"] == ["old.jsonl"]
    assert found["blob"] == ["00" + "f" * 62]
    assert sorted(found["temporary"]) == [".0123456789abcdef.tmp", ".registry.json.01234567.tmp"]
    assert (littered / "models/m/1/.notes.tmp").exists()
    assert cache.path("m")
    assert all(row["finding"] == "whole" for row in cache.verify())
    assert [row["event_type"] for row in cache.logs() if "partial" in row["event_type"]] == ["partial_cleaned"]


def test_the_settings_say_how_old(littered: Path) -> None:
    kept = Cache(littered, stale_partial_age=9 * DAY, quarantine_age=9 * DAY, log_age=32 * DAY)
    assert by_kind(kept.clean()).keys() <= {"blob", "lock"}
    everything = Cache(littered, stale_partial_age=0, quarantine_age=0, log_age=0, temporary_age=0)
    assert {"partial", "quarantine", "log", "temporary"} <= by_kind(everything.clean()).keys()
    assert everything.path("m")


def test_what_is_from_the_future_ages_from_now_on(littered: Path) -> None:
    partial = the_partial(littered)
    aged(partial, -400)
    cache = Cache(littered)
    assert "partial" not in by_kind(cache.clean(dry_run=True))
    assert partial.stat().st_mtime > time.time() + 300 * DAY
    assert "partial" not in by_kind(cache.clean())
    assert max(path.stat().st_mtime for path in [partial, *partial.iterdir()]) < time.time() + 60


def test_a_blob_waits_for_its_model_while_any_model_is_installed(littered: Path) -> None:
    lock = littered / "locks/model-other.lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "blob" not in by_kind(Cache(littered).clean())
    assert "blob" in by_kind(Cache(littered).clean())


def test_a_fetch_waits_for_a_sweep(littered: Path, origin: Origin) -> None:
    cache = Cache(littered, lock_timeout=0.1)
    with (littered / "locks/sweep.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="sweep"):
            cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)
    assert cache.fetch(origin.url("m.bin"), sha256=FILE.sha256)


def test_no_blob_goes_while_a_record_is_garbage(littered: Path) -> None:
    record = littered / "models/m/1/.manifest.json"
    record.write_bytes(b"garbage")
    assert "blob" not in by_kind(Cache(littered).clean())


def test_no_blob_goes_that_a_model_without_a_record_links_to(littered: Path) -> None:
    """A kill came between the links and the record: the next fetch finds them."""
    (littered / "models/m/1/.manifest.json").unlink()
    assert Path(next(iter(by_kind(Cache(littered).clean())["blob"]))).name == "00" + "f" * 62
    assert len([path for path in files_below(littered / "blobs") if path.name == SMALL.sha256]) == 1


def test_what_was_taken_or_changed_since_it_was_found_stays(littered: Path) -> None:
    layout = Layout(str(littered))
    (found,) = leftovers.unfinished(layout)
    with Path(layout.lock(found.key)).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            leftovers.discard(layout, found)
    aged(the_partial(littered), 7)
    assert leftovers.discard(layout, found) == 0
    assert the_partial(littered)


def test_a_lock_goes_with_the_record_of_who_was_killed_but_not_from_under_its_holder(
    littered: Path,
) -> None:
    dead = littered / "locks/model-dead.lock"
    dead.touch()
    Path(f"{dead}.json").write_text('{"pid": 1}')
    held = littered / "locks/model-held.lock"
    with held.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        removed = by_kind(Cache(littered).clean())["lock"]
        assert "model-dead.lock" in removed
        assert "model-held.lock" not in removed
        assert held.exists()
    assert not dead.exists()
    assert not Path(f"{dead}.json").exists()


def test_locks_that_were_let_go_of_are_no_litter_for_an_hour(origin: Origin, cache: Cache) -> None:
    cache.fetch(origin.url("s.bin"), sha256=SMALL.sha256)
    assert cache.clean().rows == ()
    assert set(by_kind(Cache(cache.root, temporary_age=0).clean())) == {"lock"}
    assert cache.clean().rows == ()


def test_a_lease_goes_when_it_has_been_silent_for_an_hour(littered: Path) -> None:
    for name, silent_days in (("beats", 0.9 / 24), ("silent", 1.1 / 24)):
        (littered / f"locks/model-{name}.lock").touch()
        (littered / f"locks/model-{name}.lock.lease").write_text("{}")
        aged(littered / f"locks/model-{name}.lock.lease", silent_days)
    removed = by_kind(Cache(littered).clean())["lock"]
    assert "model-silent.lock" in removed
    assert (littered / "locks/model-beats.lock").exists()
    assert (littered / "locks/model-beats.lock.lease").exists()
    assert not list((littered / "locks").glob("model-silent*"))


@pytest.mark.parametrize("kind", ["folder", "link", "fifo", "huge", "future"])
def test_garbage_among_the_locks_harms_nobody(littered: Path, origin: Origin, tmp_path: Path, kind: str) -> None:
    place = littered / "locks/model-x.lock"
    (tmp_path / "precious").write_text("mine")
    if kind == "folder":
        (place / "deeper").mkdir(parents=True)
    elif kind == "link":
        place.symlink_to(tmp_path / "precious")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.touch()
        os.truncate(place, 1 << 40 if kind == "huge" else 0)
        aged(place, -1000 if kind == "future" else 0)
    report = Cache(littered, temporary_age=0).clean()
    assert all(row["removed"] for row in report)
    assert not os.path.lexists(place)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_cache_that_is_not_there_is_clean(cache: Cache, cache_root: Path) -> None:
    assert cache.clean().rows == ()
    assert not cache_root.exists()


def test_the_command_says_what_it_freed(littered: Path) -> None:
    dry = run("clean", "--dry-run")
    assert dry.returncode == 0
    assert dry.stderr.endswith("bytes would be freed\n")
    rows = json.loads(run("clean", "--json").stdout)
    assert {"kind", "model", "path", "size", "reason", "removed"} == set(rows[0])
    again = run("clean")
    assert (again.returncode, again.stderr) == (0, "0 bytes freed\n")


# -- reset ------------------------------------------------------------------------------------------------------------


def test_reset_takes_what_is_unfinished_of_one_model_and_nothing_of_others(
    origin: Origin, cache: Cache, cache_root: Path
) -> None:
    cache.fetch(manifest_of(origin, {"s.bin": SMALL}), progress=False)
    killed(origin, cache_root)
    done = run("reset", origin.url("m.bin"))
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stderr.endswith("bytes freed\n")
    assert partials(cache) == []
    assert cache.path("m")
    assert [row["event_type"] for row in cache.logs(origin.url("m.bin"))][-1] == "reset"
    assert "nothing of it was here" in run("reset", origin.url("m.bin")).stderr


def test_reset_takes_a_model_with_its_error_and_leaves_what_others_share(origin: Origin, cache: Cache) -> None:
    cache.fetch(manifest_of(origin, {"s.bin": SMALL}, model="one"), progress=False)
    cache.fetch(manifest_of(origin, {"s.bin": SMALL, "m.bin": FILE}, model="two"), progress=False)
    rot(Path(cache.path("two"), "m.bin"), 5)
    cache.verify("two")
    report = cache.reset("two")
    assert [row["kind"] for row in report] == ["version"]
    with pytest.raises(ModelNotAvailableError, match="not_installed"):
        cache.path("two")
    assert cache.path("one")
    assert not any(path.name == FILE.sha256 for path in files_below(Path(cache.root, "blobs")))
    assert all(row["finding"] == "whole" for row in cache.verify())


def test_a_model_that_is_being_fetched_is_not_reset(origin: Origin, cache: Cache, cache_root: Path) -> None:
    hold = Hold(3 * MIB)
    origin.faults(hold)
    child = begin(cache_root, "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet")
    try:
        assert hold.reached.wait(60)
        refused = run("reset", origin.url("m.bin"))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (7, 1)
    finally:
        hold.release.set()
        child.communicate(timeout=30)
    assert child.returncode == 0


# -- everything at once -----------------------------------------------------------------------------------------------


def test_fetches_verifications_and_cleans_at_once_never_take_what_is_in_use(origin: Origin, cache_root: Path) -> None:
    """All ages are 0: what is nobody's goes at once, whatever anybody begins in the next moment."""
    origin.faults(Slow(40 * MIB))
    ages = {f"MODELCACHE_{name}_AGE": "0" for name in ("STALE_PARTIAL", "QUARANTINE", "LOG", "TEMPORARY")}
    dice = random.Random(7)
    cleaning, stop = [], time.monotonic() + 12
    for round_ in range(6):
        children = [
            begin(cache_root, "fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet"),
            begin(cache_root, "fetch", origin.url("s.bin"), "--sha256", SMALL.sha256, "--quiet"),
            begin(cache_root, "verify"),
        ]
        while any(child.poll() is None for child in children):
            cleaning.append(run("clean", "--json", **ages))
            if round_ % 2 and dice.random() < 0.5:
                children[0].kill()
        for child in children:
            _, said = child.communicate(timeout=30)
            assert child.returncode in ((0, -9) if child is children[0] else (0,)), said
        check_store(cache_root)
        assert run("rm", origin.url("s.bin")).returncode == 0
        if time.monotonic() > stop:
            break
    for done in cleaning:
        assert done.returncode == 0, done.stderr
        assert all(row["removed"] for row in json.loads(done.stdout))
    assert run("fetch", origin.url("m.bin"), "--sha256", FILE.sha256, "--quiet").returncode == 0
    check_store(cache_root)
