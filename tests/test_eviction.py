"""What goes when room is made: the least recently used, and never what is wanted (product C7, I30)."""

import json
import mmap
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from caches import manifest_of, nested, rot, run
from crash import begin, check_store

from modelcache.caching import Cache
from modelcache.download import Download
from modelcache.errors import LockedError, ModelNotAvailableError
from modelcache.eviction import Candidate, Evicted, Limits, candidates, chosen, evict, taken
from modelcache.fetching import Request
from modelcache.outcome import Model
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.locks import Patience, Subject, locked
from modelcache.store.marks import Marks
from modelcache.store.registry import Registry
from modelcache.store.removal import remove
from modelcache.store.shelf import Shelf
from modelcache.testing import Content, Hold, Origin, Status
from modelcache.wish import Wish

MIB = 1 << 20
HOUR, DAY = 3600.0, 86_400.0
NOW = 1_000 * DAY
FILES = {name: Content.generated(MIB, seed=seed) for seed, name in enumerate(("a", "b", "c", "shared", "more"))}
A = {name: FILES[name] for name in ("a", "shared")}


# -- the rule ---------------------------------------------------------------------------------------------------------


def candidate(name: str, used_days_ago: float, *contents: str, may_go: bool = True, copies: int = 0) -> Candidate:
    record = Installed(name, "1", name, (), f"/models/{name}/1")
    return Candidate(record, NOW - used_days_ago * DAY, may_go, dict.fromkeys(contents or (name,), 10), copies)


@pytest.mark.parametrize(
    ("candidates", "taken", "limits", "expected"),
    [
        pytest.param([candidate("a", 9)], 99, Limits(), {}, id="without limits nothing goes"),
        pytest.param([candidate("a", 9)], 10, Limits(10), {}, id="a full budget is kept"),
        pytest.param([candidate("a", 1), candidate("b", 9)], 20, Limits(15), {"b": 10}, id="the oldest, no more"),
        pytest.param([candidate("a", 1), candidate("b", 9)], 20, Limits(5), {"b": 10, "a": 10}, id="in order of use"),
        pytest.param([candidate("a", 9, may_go=False), candidate("b", 1)], 20, Limits(15), {"b": 10}, id="wanted"),
        pytest.param([candidate("a", HOUR / DAY / 2)], 20, Limits(1), {}, id="within the hour"),
        pytest.param([candidate("a", -5)], 20, Limits(1), {}, id="from the future: as if now"),
        pytest.param([candidate("a", 9), candidate("b", 2)], 0, Limits(0, 3 * DAY), {"a": 10}, id="unused for long"),
        pytest.param(
            [candidate("a", 9, "x"), candidate("b", 8, "x"), candidate("c", 7)],
            20, Limits(15), {"a": 0, "b": 10}, id="what two share goes with the second",
        ),
        pytest.param(
            [candidate("a", 9, "x"), candidate("b", 8, "x", may_go=False), candidate("c", 7)],
            20, Limits(15), {"c": 10}, id="what one that stays has as well frees nothing",
        ),
        pytest.param(
            [candidate("a", 9, "x", copies=3), candidate("b", 8, "x", may_go=False)],
            13, Limits(10), {"a": 3}, id="a copy is freed all the same",
        ),
        pytest.param(
            [replace(candidate("a", 9), contents={"a": 0}), candidate("b", 8)],
            15, Limits(10), {"b": 10}, id="what is another tool's file as well frees nothing",
        ),
    ],
)  # fmt: skip
def test_what_goes(candidates: list[Candidate], taken: int, limits: Limits, expected: dict[str, int]) -> None:
    found = list(chosen(candidates, NOW, taken, limits))
    assert {one.record.id: one.size for one in found} == expected
    assert [one.record.id for one in found] == list(expected)


def test_what_could_not_be_taken_away_is_not_counted_as_gone_nor_is_what_it_shares() -> None:
    stuck: set[str] = set()
    here = [candidate("a", 9, "x", "y"), candidate("b", 8, "x"), candidate("c", 7)]
    going = chosen(here, NOW, 30, Limits(25), stuck)
    stuck.add(next(going).record.folder)
    assert [(one.record.id, one.size) for one in going] == [("c", 10)]


def test_whatever_is_here_the_rest_fits_or_nothing_more_may_go() -> None:
    numbers = random.Random(7)
    for _ in range(500):
        names = [str(number) for number in range(numbers.randrange(1, 8))]
        here = [
            candidate(name, numbers.random() * 10, *numbers.sample("uvwxyz", numbers.randrange(1, 4)),
                      may_go=numbers.random() < 0.7)
            for name in names
        ]  # fmt: skip
        sizes = {sha256: 10 for one in here for sha256 in one.contents}
        budget = numbers.randrange(1, sum(sizes.values()) + 1)
        gone = list(chosen(here, NOW, sum(sizes.values()), Limits(budget)))
        left = [one for one in here if one.record not in [each.record for each in gone]]
        left_bytes = sum({sha256: 10 for one in left for sha256 in one.contents}.values())
        assert sum(sizes.values()) - left_bytes == sum(each.size for each in gone)
        may_go = [one for one in left if one.may_go and NOW - one.last_used > HOUR]
        staying = {sha256 for one in left if one not in may_go for sha256 in one.contents}
        assert left_bytes <= budget or not any(one.contents.keys() - staying for one in may_go)


# -- a store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin(FILES) as serving:
        yield serving


@pytest.fixture
def models(origin: Origin, cache: Cache) -> Cache:
    """`a` was not asked for longest, then `b`; all are of a MiB, and share another one."""
    for days, name in zip((9, 8, 7), "abc", strict=True):
        cache.fetch(manifest_of(origin, {name: FILES[name], "shared": FILES["shared"]}, model=name))
        idle(cache, name, days)
    return cache


def idle(cache: Cache, name: str, days: float) -> None:
    when = time.time() - days * DAY
    os.utime(Path(cache.root, "used", name, "1"), (when, when))


def with_less(cache: Cache, mib: float, **more: float) -> Cache:
    """The same store, whose budget is so many MiB less than what it takes."""
    return Cache(cache.root, disk_budget=int(taken(Layout(cache.root)) - mib * MIB), **more)


def here(cache: Cache) -> set[str]:
    return {str(row["model"]) for row in cache.models()}


def removed(cache: Cache, **how: bool) -> list[str]:
    return [row["model"] for row in cache.clean(**how) if row["kind"] == "model"]


def test_over_the_budget_the_least_recently_used_goes_and_a_dry_run_lists_just_that(models: Cache) -> None:
    limited = with_less(models, 1.1)
    before = taken(Layout(models.root))
    listed = [row for row in limited.clean(dry_run=True) if row["kind"] in ("model", "budget")]
    assert here(models) == {"a", "b", "c"}
    done = [row for row in limited.clean() if row["kind"] in ("model", "budget")]
    assert [row | {"removed": True} for row in listed] == done
    assert [row["model"] for row in done] == ["a", "b"]
    assert "over the budget; not asked for in 9 days" in done[0]["reason"]
    assert here(models) == {"c"}
    assert sum(row["size"] for row in done) == 2 * MIB <= before - taken(Layout(models.root))
    check_store(Path(models.root))
    with pytest.raises(ModelNotAvailableError):
        models.path("a")
    assert removed(limited) == []


def test_asking_for_it_is_use_by_path_and_by_fetch(origin: Origin, models: Cache) -> None:
    models.path("a")
    assert run("fetch", "b").returncode == 0
    assert removed(with_less(models, 0.9)) == ["c"]


def test_what_is_pinned_stays_until_it_is_not(models: Cache) -> None:
    assert run("pin", "a").returncode == 0
    models.pin("b", "1")
    limited = with_less(models, 3.5)
    rows = limited.clean()
    assert rows.findings == 1
    assert [row["model"] for row in rows if row["kind"] == "model"] == ["c"]
    (over,) = [row for row in rows if row["kind"] == "budget"]
    assert not over["removed"]
    assert "2.5 MiB over the budget: what is left is pinned" in over["reason"]
    done = run("clean", "--dry-run", MODELCACHE_DISK_BUDGET=str(limited.settings.disk_budget))
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("the cache is 2.5 MiB over the budget: what is left is pinned")
    assert {row["model"]: row["pinned"] for row in models.models()} == {"a": True, "b": True}
    again = run("clean", MODELCACHE_DISK_BUDGET=str(limited.settings.disk_budget))
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout)
    assert run("unpin", "a").returncode == 0
    assert "was not pinned" in run("unpin", "a").stderr
    assert removed(limited) == ["a"]
    with pytest.raises(ModelNotAvailableError):
        models.pin("b", "none")
    assert run("pin", "nope").stderr == "nope is not here yet: it is kept when it is fetched\n"


def test_a_folder_in_place_of_a_mark_is_in_nobodys_way(models: Cache) -> None:
    for mark in (Path(models.root, "used", "a", "1"), Path(models.root, "pins", "models", "a")):
        mark.unlink(missing_ok=True)
        (mark / "x").mkdir(parents=True)
    assert models.unpin("a")
    models.remove("a")
    assert here(models) == {"b", "c"}
    assert not Path(models.root, "used", "a").exists()


def test_a_pin_outlives_a_version_and_ends_with_the_one_it_names(origin: Origin, models: Cache) -> None:
    models.pin("a"), models.pin("b", "1")
    models.remove("a"), models.remove("b")
    models.fetch(manifest_of(origin, {"a": FILES["a"]}, model="a"))
    models.fetch(manifest_of(origin, {"b": FILES["b"]}, model="b"))
    assert {row["model"]: row["pinned"] for row in models.models()} == {"a": True, "b": False, "c": False}


def test_what_a_process_has_open_or_mapped_stays(models: Cache) -> None:
    place = Path(models.path("a"), "a")
    idle(models, "a", 9)
    with place.open("rb") as file:
        assert removed(with_less(models, 0.5)) == ["b"]
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert removed(with_less(models, 0.5)) == ["c"]
    assert removed(with_less(models, 0.5)) == []
    mapped.close()
    assert removed(with_less(models, 0.5)) == ["a"]


def test_what_is_being_fetched_stays(origin: Origin, models: Cache, cache_root: Path) -> None:
    hold = Hold(MIB // 2)
    origin.faults(hold)
    listing = Path(models.root).parent / "a.json"
    listing.write_text(json.dumps(manifest_of(origin, {"more": FILES["more"]}, model="a", version="2").to_json()))
    child = begin(cache_root, "fetch", "--manifest", str(listing), "--quiet")
    assert hold.reached.wait(60)
    idle(models, "a", 9)
    limited = Cache(models.root, unused_age=2 * HOUR)
    assert removed(limited, dry_run=True) == removed(limited) == ["b", "c"]
    hold.release.set()
    out, said = child.communicate(timeout=30)
    assert (child.returncode, Path(out.strip(), "more").stat().st_size) == (0, MIB), said


def test_what_cannot_be_taken_away_keeps_nothing_else_from_going(models: Cache, cache_root: Path) -> None:
    there = cache_root / "models" / "a" / "1" / "a"
    there.unlink()
    (there / "folder").mkdir(parents=True)
    rows = with_less(models, 1).clean()
    assert [(row["model"], row["removed"]) for row in rows if row["kind"] == "model"] == [("a", False), ("b", True)]
    assert "budget" not in {row["kind"] for row in rows}


def test_what_was_pinned_since_it_was_chosen_stays(models: Cache) -> None:
    layout = Layout(models.root)
    found = {one.record.id: one.record for one in candidates(layout)}
    models.pin("a")
    with pytest.raises(LockedError):
        evict(layout, Shelf(layout).registry, Evicted(found["a"], 0, ""))
    assert here(models) == {"a", "b", "c"}


def test_what_was_asked_for_before_its_lock_was_held_stays(models: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_for_meanwhile(layout: Layout, registry: Registry, record: Installed, *more: Any) -> int:
        models.path(record.id)
        return remove(layout, registry, record, *more)

    monkeypatch.setattr("modelcache.eviction.remove", asked_for_meanwhile)
    assert removed(with_less(models, 1)) == []
    assert here(models) == {"a", "b", "c"}


@pytest.mark.parametrize("ask", ["path", "fetch"])
def test_what_is_asked_for_before_its_mark_is_taken_stays(
    origin: Origin, models: Cache, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """After the first look at its mark, and before it is taken: the last moment that counts."""
    take, given = Marks.take, list[str]()

    def asked_for_before(marks: Marks, record: Installed) -> float:
        given.append(asked(models, origin, ask) if record.id == "a" else record.id)
        return take(marks, record)

    monkeypatch.setattr(Marks, "take", asked_for_before)
    assert removed(with_less(models, 0.9)) == ["b"]
    assert len(given) == 2 and Path(given[0], "a").is_file()
    monkeypatch.undo()
    assert removed(with_less(models, 0.9)) == ["c"], "it was given out within the hour"


def test_who_asks_once_the_mark_is_taken_gets_no_path_that_goes(
    origin: Origin, models: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record and files are there still when they are looked at."""
    take = Marks.take
    fetched: list[Download] = []

    def asked_for_after(marks: Marks, record: Installed) -> float:
        when = take(marks, record)
        with pytest.raises(ModelNotAvailableError):
            models.path("a")
        marks.forget("a", "1")
        fetched.append(models.fetch(manifest_of(origin, A, model="a"), wait=False))
        return when

    monkeypatch.setattr(Marks, "take", asked_for_after)
    assert removed(with_less(models, 0.9)) == ["a"]
    (download,) = fetched
    assert isinstance(model := download.result(60), Model)
    assert {file.status for file in model.files} == {"fetched", "linked"}
    assert Path(model.path, "a").stat().st_size == MIB


def test_what_turns_out_to_be_here_once_the_lock_is_held_is_used_too(origin: Origin, models: Cache) -> None:
    with locked(str(Path(models.root, "locks", "model-a.lock")), Subject("a"), Patience(0.0)):
        _, found = Request(models._runtime, manifest_of(origin, A, model="a"), Wish()).renewed(None)
    assert isinstance(found, Model)
    assert removed(with_less(models, 0.9)) == ["b"]


def test_a_mark_that_was_lost_costs_no_fetch(origin: Origin, models: Cache) -> None:
    for ask in ("path", "fetch"):
        shutil.rmtree(Path(models.root, "used"))
        before = len(origin.requests)
        assert Path(asked(models, origin, ask)).is_dir()
        assert Path(models.root, "used", "a", "1").exists()
        assert len(origin.requests) == before
    locked_up = Path(models.root, "locks", "model-a.lock")
    with locked(str(locked_up), Subject("a"), Patience(0.0)):  # while another version is fetched
        assert Path(asked(models, origin, "path")).is_dir()


def asked(cache: Cache, origin: Origin, how: str) -> str:
    if how == "path":
        return cache.path("a")
    model = cache.fetch(manifest_of(origin, A, model="a"))
    assert {file.status for file in model.files} == {"hit"}
    return model.path


def test_nothing_is_removed_through_a_link_where_marks_should_be(
    models: Cache, cache_root: Path, tmp_path: Path
) -> None:
    theirs = [tmp_path / "theirs" / name for name in ("1", "models/a")]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (cache_root / "pins").symlink_to(tmp_path / "theirs")
    assert not models.unpin("a")
    (cache_root / "pins").unlink()
    shutil.rmtree(cache_root / "used" / "a")
    (cache_root / "used" / "a").symlink_to(tmp_path / "theirs")
    models.remove("a")
    assert here(models) == {"b", "c"}
    assert all(path.exists() for path in theirs)


def test_folders_within_folders_without_end_in_the_store_are_cleaned_around_and_removed(
    models: Cache, cache_root: Path
) -> None:
    folder = cache_root / "models" / "a" / "1"
    (folder / "deep").mkdir()
    try:
        nested(folder / "deep", 1100)
        with_less(models, 0.5).clean(dry_run=True), models.doctor()
        models.remove("a")
        assert here(models) == {"b", "c"}
        assert not folder.exists()
        cache_root.joinpath("quarantine").mkdir(exist_ok=True)
        nested(cache_root / "quarantine", 1100)
        with_less(models, 0.5).clean()
        assert not os.listdir(cache_root / "quarantine")
    finally:  # pytest would not get to its end either
        subprocess.run(["rm", "-rf", folder / "deep", cache_root / "quarantine"], check=True)


def test_a_root_that_is_a_link_has_a_budget_too(models: Cache, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(models.root)
    assert taken(Layout(str(link))) == taken(Layout(models.root))


def test_a_record_with_numbers_that_no_file_has_is_none(models: Cache, cache_root: Path) -> None:
    path = cache_root / "models" / "a" / "1" / ".manifest.json"
    record = json.loads(path.read_text())
    for name in ("size", "mtime_ns", "verified_at"):
        path.write_text(json.dumps(record | {"files": [file | {name: 10**400} for file in record["files"]]}))
        (cache_root / "used" / "a" / "1").unlink(missing_ok=True)
        with_less(models, 0.5).clean(dry_run=True)
        assert here(models) == {"b", "c"}


def test_what_had_rotted_goes_before_what_is_right(models: Cache) -> None:
    aside = Path(models.root, "quarantine", f"x.{time.time_ns()}")
    aside.parent.mkdir(exist_ok=True)
    aside.write_bytes(b"x" * MIB)
    rows = list(with_less(models, 0.5).clean())
    assert [(row["kind"], Path(row["path"]).name) for row in rows if row["kind"] in ("model", "quarantine")] == [
        ("quarantine", aside.name)
    ]
    assert here(models) == {"a", "b", "c"}


def test_what_is_withheld_keeps_its_name_in_the_quarantine_which_takes_no_room(origin: Origin, models: Cache) -> None:
    rot(Path(models.path("a"), "a"), 7)
    idle(models, "a", 0.5)
    origin.faults(Status(404))
    assert [row["repaired"] for row in models.repair(["a"])] == [False]
    (aside,) = Path(models.root, "quarantine").iterdir()
    assert removed(with_less(models, 0.5)) == ["b"]
    assert aside.exists()


def test_what_is_freed_is_the_same_in_a_dry_run_whatever_the_size_and_what_goes_elsewhere(
    origin: Origin, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another tool's leftovers make no room here."""
    odd = {name: Content.generated(50_001, seed=seed) for seed, name in enumerate(("a", "b"))}
    for days, (name, content) in zip((9, 8), odd.items(), strict=True):
        origin.put(name, content)
        cache.fetch(manifest_of(origin, {name: content}, model=name))
        idle(cache, name, days)
    begun = tmp_path / "hub" / "models--org--name" / "blobs" / ("ab" * 32 + ".incomplete")
    begun.parent.mkdir(parents=True)
    begun.write_bytes(bytes(3 * MIB))
    os.utime(begun, (time.time() - 2 * DAY,) * 2)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    limited = with_less(cache, 0.01)
    listed = [row for row in limited.clean(dry_run=True, foreign=True) if row["kind"] in ("foreign", "model")]
    done = [row for row in limited.clean(foreign=True) if row["kind"] in ("foreign", "model")]
    assert [row | {"removed": True} for row in listed] == done
    assert [row["kind"] for row in done] == ["foreign", "model"]


def test_what_nobody_asked_for_goes_in_time(models: Cache) -> None:
    assert removed(Cache(models.root, unused_age=8.5 * DAY)) == ["a"]
    assert removed(Cache(models.root)) == []


def test_a_mark_from_the_future_is_no_use_for_ever_and_without_one_the_files_tell(models: Cache) -> None:
    idle(models, "a", -900)
    Path(models.root, "used", "b", "1").unlink()
    assert removed(Cache(models.root, unused_age=1.0)) == ["c"]  # the others came just now
    for name in "ab":
        record = Installed.read(models.path(name))
        Path(models.root, "used", name, "1").unlink(missing_ok=True)
        assert record is not None
        aged = [replace(file, stamp=replace(file.stamp, mtime_ns=1)) for file in record.files]
        assert Marks(Layout(models.root)).last_used(record.with_files(aged)) == 1e-9
