"""The jobs `refresh` and `mirror`, against a hub whose branches change."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modelcache.caching import Cache
from modelcache.jobs import mirror, refresh
from modelcache.jobs.job import Config
from modelcache.rows import Report
from modelcache.testing import Content, Hold, Hub, Origin, Status

COMMIT, NEXT = "1" * 40, "2" * 40
FILES = {"config.json": Content.of(b"{}"), "a.bin": Content.generated(300_000, seed=1)}
CHANGED = Content.generated(120_000, seed=3)
QUESTION = "api/models/org/name/revision/main"


def publish(hub: Hub, name: str = "org/name", commit: str = COMMIT, **more: Content) -> None:
    hub.publish(name, FILES | {key + ".bin": content for key, content in more.items()}, commit=commit)


def refreshed(cache: Cache, stop: threading.Event | None = None) -> Report:
    return refresh.run(Config(cache, {}), stop=stop or threading.Event(), clock=time.time)


def mirrored(cache: Cache, stop: threading.Event | None = None, **options: object) -> Report:
    return mirror.run(Config(cache, options), stop=stop or threading.Event(), clock=time.time)


def rows(report: Report) -> list[tuple[Any, ...]]:
    return [(row["ref"], row["version"][:1], row["outcome"]) for row in report]


def test_refresh_asks_about_each_branch_and_fetches_nothing(hub: Hub, cache: Cache) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    assert rows(refreshed(cache)) == [("hf:org/name@main", "1", "same")]
    publish(hub, commit=NEXT, a=CHANGED)
    report = refreshed(cache)
    assert rows(report) == [("hf:org/name@main", "2", "newer")] and report.findings == 0
    assert [row["version"] for row in cache.models()] == [COMMIT]
    asked = len(hub.requests)
    fetched = cache.fetch("hf:org/name")  # nobody need be asked: what has changed is brought
    assert fetched.version == NEXT
    assert not [seen for seen in hub.requests[asked:] if "revision" in seen.path]


def test_a_hub_that_does_not_answer_is_a_finding_and_the_others_are_asked(hub: Hub, cache: Cache) -> None:
    for name in ("org/name", "org/other"):
        publish(hub, name)
        cache.fetch(f"hf:{name}")
    hub.faults(Status(404), path=QUESTION)
    report = refreshed(cache)
    assert rows(report) == [("hf:org/name@main", "1", "failed"), ("hf:org/other@main", "1", "same")]
    assert report.findings == 1


def test_refresh_that_is_told_to_stop_gives_up_what_it_asks(hub: Hub, cache: Cache) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    hold, stop = Hold(0), threading.Event()
    hub.faults(hold, path=QUESTION)
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(refreshed(cache, stop)))
    thread.start()
    end = time.monotonic() + 20
    while not any(QUESTION in seen.path for seen in hub.requests[1:]):
        assert time.monotonic() < end
        time.sleep(0.01)
    stop.set()
    thread.join(60)
    hold.release.set()
    assert [list(report) for report in reports] == [[]]


def test_what_a_hub_must_not_be_asked_is_left_out(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert rows(refreshed(cache)) == []


def test_names_of_branches_that_are_none_are_passed_over(hub: Hub, cache: Cache) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    said = Path(cache.root, "catalog", "hf--org--name", "aliases.json")
    known = json.loads(said.read_text())
    known["aliases"] |= {name: {"version": COMMIT, "at": 1} for name in ("../../x", "a b", "", "\n", COMMIT, "x" * 999)}
    said.write_text(json.dumps(known))
    assert rows(refreshed(cache)) == [("hf:org/name@main", "1", "same")]


def test_mirror_keeps_the_most_requested_fresh_and_complete(hub: Hub, cache: Cache) -> None:
    for name, requests in (("org/name", 3), ("org/other", 1)):
        publish(hub, name)
        for _ in range(requests):
            cache.fetch(f"hf:{name}")
    publish(hub, commit=NEXT, b=CHANGED)
    publish(hub, "org/other", commit=NEXT, b=CHANGED)
    report = mirrored(cache, top=1)
    assert rows(report) == [("hf:org/name@main", "2", "fetched")]
    assert [row["bytes_fetched"] for row in report] == [CHANGED.size]  # the rest is here
    assert rows(mirrored(cache, top=1)) == [("hf:org/name@main", "2", "here")]
    assert {row["model"] for row in mirrored(cache)} == {"hf--org--name", "hf--org--other"}
    assert [row["request_count"] for row in cache.usage()] == [3, 1]  # the job itself asks for nothing


def test_mirror_fetches_no_more_of_a_model_than_somebody_wanted(hub: Hub, cache: Cache) -> None:
    publish(hub, b=CHANGED)
    cache.fetch("hf:org/name", files="a.bin")
    publish(hub, commit=NEXT, b=Content.generated(50_000, seed=9))
    assert rows(mirrored(cache)) == [("hf:org/name@main", "2", "here")]
    assert {row["file"] for row in cache.info("hf:org/name")} == {"a.bin"}


def test_mirror_mends_what_is_gone_and_brings_back_nothing_that_was_removed(hub: Hub, cache: Cache) -> None:
    publish(hub)
    publish(hub, "org/other")
    model = cache.fetch("hf:org/name")
    cache.fetch("hf:org/other")
    cache.remove("hf--org--other")
    for blob in [*Path(cache.root, "blobs").rglob("*"), Path(model.path, "a.bin")]:
        if blob.is_file():
            blob.unlink()
    assert rows(mirrored(cache)) == [("hf:org/name@main", "1", "fetched")]
    assert Path(model.path, "a.bin").read_bytes() == FILES["a.bin"].read(0, 300_000)


def test_a_url_is_mirrored_too_and_what_cannot_be_had_is_a_finding(cache: Cache) -> None:
    with Origin({"m.bin": Content.generated(1000, seed=1)}) as origin:
        file = cache.fetch(origin.url("m.bin"))
        assert [row["outcome"] for row in mirrored(cache)] == ["here"]
        Path(file.path).unlink()
        for blob in Path(cache.root, "blobs").rglob("*"):
            if blob.is_file():
                blob.unlink()
    report = mirrored(cache)
    assert [row["outcome"] for row in report] == ["failed"] and report.findings == 1


def test_mirror_that_is_told_to_stop_keeps_what_it_has(hub: Hub, cache: Cache) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    big = Content.generated(3_000_000, seed=5)
    publish(hub, commit=NEXT, big=big)
    hold, stop = Hold(1_000_000), threading.Event()
    hub.faults(hold, path=f"org/name/resolve/{NEXT}/big.bin")
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(mirrored(cache, stop)))
    thread.start()
    assert hold.reached.wait(60)
    stop.set()
    thread.join(60)
    hold.release.set()
    assert rows(reports[0]) == [("hf:org/name@main", "", "stopped")] and reports[0].findings == 0
    (row,) = mirrored(cache)
    assert (row["outcome"], row["bytes_fetched"] < big.size) == ("fetched", True)


def test_what_mirror_could_not_ask_about_is_a_finding_and_stays(hub: Hub, cache: Cache) -> None:
    for name in ("org/name", "org/other"):
        publish(hub, name)
        cache.fetch(f"hf:{name}")
    hub.faults(Status(404), path=QUESTION)
    report = mirrored(cache)
    assert sorted(rows(report)) == [("hf:org/name@main", "1", "unasked"), ("hf:org/other@main", "1", "here")]
    assert report.findings == 1
    (reason,) = [row["reason"] for row in report if row["outcome"] == "unasked"]
    assert reason == next(row["reason"] for row in refreshed(cache) if row["outcome"] == "failed")
    assert len(cache.models()) == 2


def test_a_hub_that_is_gone_is_a_finding_of_mirror(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub)
    cache.fetch("hf:org/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELCACHE_MANIFEST_TTL", "0")
    later = Cache(cache.root)
    report = mirrored(later)
    later.close()
    assert (rows(report), report.findings) == ([("hf:org/name@main", "1", "unasked")], 1)
