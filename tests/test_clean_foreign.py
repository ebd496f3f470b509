"""What other tools began to download and left is removed where that is asked for, and never while one is at it."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from modelcache.caching import Cache

DAY = 86_400
ETAG, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one unfinished download, two days old, and one that is an hour old."""
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HUB_CACHE", str(home))
    blobs = home / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ETAG).write_bytes(b"whole")
    old(blobs / f"{ETAG}.incomplete", 2 * DAY)
    old(blobs / f"{OTHER}.1a2b3c.incomplete", 3600)
    old(blobs / "notes.txt", 900 * DAY)
    (home / ".locks" / "models--org--name").mkdir(parents=True)
    return home


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(home))
    for name in (f"sha256-{ETAG}", f"sha256-{OTHER}-partial", f"sha256-{OTHER}-partial-0", "other-partial"):
        old(home / "blobs" / name, 2 * DAY)
    return home


def old(path: Path, age_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)
    os.utime(path, (time.time() - age_s,) * 2)


def below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def foreign(cache: Cache, *, dry_run: bool = False) -> list[str]:
    return [Path(row["path"]).name for row in cache.clean(dry_run=dry_run, foreign=True) if row["kind"] == "foreign"]


def test_only_where_it_is_asked_for_and_a_dry_run_lists_just_that(cache: Cache, hub: Path, ollama: Path) -> None:
    before = below(hub) | below(ollama)
    assert not [row for row in cache.clean() if row["kind"] == "foreign"]
    listed = foreign(cache, dry_run=True)
    assert below(hub) | below(ollama) == before
    assert foreign(cache) == listed == [f"{ETAG}.incomplete", f"sha256-{OTHER}-partial"]
    gone = before - (below(hub) | below(ollama))
    assert gone == {f"{ETAG}.incomplete", f"sha256-{OTHER}-partial", f"sha256-{OTHER}-partial-0"}
    assert foreign(cache) == []


def test_what_its_tool_has_locked_stays(cache: Cache, hub: Path) -> None:
    lock = hub / ".locks" / "models--org--name" / f"{ETAG}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert foreign(cache) == []
    assert foreign(cache) == [f"{ETAG}.incomplete"]


def test_what_a_process_has_open_stays(cache: Cache, hub: Path) -> None:
    with (hub / "models--org--name" / "blobs" / f"{ETAG}.incomplete").open("rb"):
        assert foreign(cache) == []
    assert foreign(cache) == [f"{ETAG}.incomplete"]


def test_one_fresh_portion_keeps_the_download(cache: Cache, ollama: Path) -> None:
    (ollama / "blobs" / f"sha256-{OTHER}-partial-0").write_text(json.dumps({}))
    assert foreign(cache) == []


def test_nothing_of_ollama_goes_while_a_server_runs(cache: Cache, ollama: Path, tmp_path: Path) -> None:
    server = tmp_path / "ollama-bin" / "ollama"
    server.parent.mkdir()
    shutil.copy2("/bin/cat", server)
    running = subprocess.Popen([server], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin and running.stdout
    running.stdin.write(b"x"), running.stdin.flush()
    assert running.stdout.read(1) == b"x"  # it runs under its name
    try:
        assert foreign(cache) == []
    finally:
        running.communicate()
    assert foreign(cache) == [f"sha256-{OTHER}-partial"]


def test_a_link_leads_nowhere(cache: Cache, hub: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    old(mine, 9 * DAY)
    link = hub / "models--org--name" / "blobs" / f"{OTHER}.incomplete"
    link.symlink_to(mine)
    os.utime(link, (1, 1), follow_symlinks=False)
    aside = tmp_path / "aside"
    (aside / "blobs").mkdir(parents=True)
    old(aside / "blobs" / "x.incomplete", 9 * DAY)
    (hub / "models--org--link").symlink_to(aside)
    assert foreign(cache) == [f"{ETAG}.incomplete"]
    assert mine.exists()
    assert link.is_symlink()
    assert below(aside) == {"x.incomplete"}
