"""What was here stays usable when more of it could not be had; what was never fetched is incomplete, and not wrong."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from caches import rot, run, start

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import ModelCacheError, ModelNotAvailableError
from modelcache.testing import Content, Hold, Hub, Status

COMMIT, NEXT = "1" * 40, "2" * 40
FILES = {
    "config.json": Content.of(b'{"a": 1}'), "tokenizer.json": Content.of(b"{}"),
    "a.bin": Content.generated(300_000, seed=1), "big.bin": Content.generated(3_000_000, seed=2),
}  # fmt: skip
Fails = Callable[[Hub, Cache], None]
REF, ID = "hf:org/name", "hf--org--name"
BIG = f"org/name/resolve/{COMMIT}/big.bin"
LACKS = f"models: {ID}@{COMMIT} is incomplete: lacks big.bin; modelcache fetch {REF}@{COMMIT}"


def interrupted(hub: Hub, cache: Cache) -> None:
    """A fetch of all of it, when all but the big file are here and that is not."""
    hold = Hold(1_000_000, times=1)
    hub.faults(hold, path=BIG)
    process = start("fetch", REF, "--quiet")
    assert hold.reached.wait(60)
    blobs = [Path(cache.root, "blobs", "sha256", each.sha256[:2], each.sha256) for each in FILES.values()]
    end = time.monotonic() + 20
    while sum(blob.exists() for blob in blobs) < len(FILES) - 1:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def refused(hub: Hub, _cache: Cache) -> None:
    hub.faults(Status(404), path=BIG)
    assert run("fetch", REF, "--quiet").returncode == 4


def offline(_hub: Hub, _cache: Cache) -> None:
    assert run("fetch", REF, "--quiet", HF_HUB_OFFLINE="1").returncode == 4


def doctor(cache: Cache) -> list[str]:
    return [f"{row['check']}: {row['finding']}; {row['fix']}" for row in cache.doctor() if row["check"] == "models"]


def unavailable(cache: Cache, ref: str) -> ModelNotAvailableError:
    with pytest.raises(ModelNotAvailableError) as refusal:
        cache.path(ref)
    return refusal.value


@pytest.mark.parametrize("fails", [interrupted, refused, offline])
def test_a_wider_fetch_that_fails_takes_nothing_away(hub: Hub, cache: Cache, fails: Fails) -> None:
    some = cache.fetch(REF, files="*.json", progress=False)
    fails(hub, cache)
    cache = Cache(cache.root)
    assert cache.path(REF) == some.path
    assert cache.path(f"{REF}/config.json") == f"{some.path}/config.json"
    assert [row["status"] for row in cache.models()] == ["ready"]
    assert doctor(cache) == []


def test_what_came_before_a_wider_fetch_failed_is_here(hub: Hub, cache: Cache) -> None:
    some = cache.fetch(REF, files="*.json", progress=False)
    refused(hub, cache)
    assert Path(Cache(cache.root).path(f"{REF}/a.bin")).read_bytes() == FILES["a.bin"].read()
    assert json.loads(Path(some.path, ".manifest.json").read_bytes()).get("missing") is None


@pytest.mark.parametrize("fails", [interrupted, refused])
def test_a_first_fetch_that_fails_leaves_files_that_are_usable_and_says_what_completes_it(
    hub: Hub, cache: Cache, fails: Fails
) -> None:
    fails(hub, cache)
    cache = Cache(cache.root)
    assert cache.path(f"{REF}/config.json").endswith("/config.json")
    assert [row["status"] for row in cache.models()] == ["incomplete"]
    assert json.loads(run("ls", "--json").stdout)[0]["status"] == "incomplete"
    examined = run("doctor")
    assert (examined.returncode, [line for line in doctor(cache) if "incomplete" in line]) == (0, [LACKS])
    for ref in (REF, f"{REF}/big.bin"):
        error = unavailable(cache, ref)
        assert (error.reason, error.advice) == ("error", f"it is incomplete: run `modelcache fetch {REF}@{COMMIT}`")
    hub.heal()
    assert run("fetch", f"{REF}@{COMMIT}", "--quiet").returncode == 0
    assert [row["status"] for row in Cache(cache.root).models()] == ["ready"]
    assert Cache(cache.root).path(REF) and not doctor(cache)


def test_one_file_of_a_model_answers_by_itself(hub: Hub, cache: Cache) -> None:
    model = cache.fetch(REF, progress=False)
    assert isinstance(model, mc.Model)
    rot(model["a.bin"].path, 5)
    cache.verify(REF)
    os.unlink(model["tokenizer.json"].path)
    assert cache.path(f"{REF}/config.json") == model["config.json"].path
    for name in ("a.bin", "tokenizer.json"):
        error = unavailable(cache, f"{REF}/{name}")
        assert (error.reason, f"modelcache repair {ID}@{COMMIT}" in error.advice) == ("error", True)
    os.utime(model["big.bin"].path)
    assert unavailable(cache, f"{REF}/big.bin").reason == "verifying"
    assert unavailable(cache, f"{REF}/no.bin").reason == "not_installed"


def test_what_is_incomplete_and_rotten_is_wrong(hub: Hub, cache: Cache) -> None:
    refused(hub, cache)
    rot(cache.path(f"{REF}/a.bin"), 5)
    cache.verify(REF)
    assert [row["status"] for row in cache.models()] == ["error"]
    assert run("doctor").returncode == 3
    assert "modelcache repair" in unavailable(cache, REF).advice


def test_reading_what_is_incomplete_finds_nothing_and_says_which_fetch_completes_it(hub: Hub, cache: Cache) -> None:
    refused(hub, cache)
    note = f"{ID}@{COMMIT[:12]} is incomplete, it lacks big.bin: run `modelcache fetch {REF}@{COMMIT}`"
    for report in (cache.verify(), cache.sweep(share="full", older_than=0), cache.sweep(), cache.repair([REF])):
        assert (report.findings, report.notes) == (0, (note,))
        assert all(row["finding"] == "whole" for row in report if "finding" in row)
    for command in (("verify",), ("verify", REF), ("verify", "--share", "full"), ("repair", REF), ("repair",)):
        done = run(*command)
        assert (done.returncode, "never fetched" in done.stderr) == (0, False), done.stderr
        assert note in done.stderr or command == ("repair",)
    job = run("jobs", "run", "verify")
    assert job.returncode == 0 and "modelcache repair" not in job.stdout + job.stderr
    assert f"modelcache fetch {REF}@{COMMIT}" in job.stdout + job.stderr


def test_what_was_incomplete_before_is_so_after_one_more_failure(hub: Hub, cache: Cache) -> None:
    refused(hub, cache)
    refused(hub, cache)
    assert [row["status"] for row in Cache(cache.root).models()] == ["incomplete"]
    with pytest.raises(ModelCacheError) as refusal:
        cache.export_bundle([REF], Path(cache.root).parent / "b.tar")
    assert f"modelcache fetch {REF}@{COMMIT}" in refusal.value.advice


def test_an_error_of_several_files_names_those_that_failed(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF, files=["*.json", "a.bin"], progress=False)
    done = run("fetch", REF, "--quiet", "--json", HF_HUB_OFFLINE="1")
    assert done.stderr == (
        "modelcache: 1 of 4 files failed: big.bin could not be fetched "
        "(Hugging Face: it is not asked, for HF_HUB_OFFLINE is set); 3 files kept; "
        "unset it to fetch, then run the same command again to go on\n"
    )
    told = json.loads(done.stdout)
    assert told["sources"] == [{"source": "Hugging Face", "reason": "it is not asked, for HF_HUB_OFFLINE is set"}]
    assert (told["kept_files"], told["kept_bytes"]) == (3, 0)


def test_an_error_of_several_files_tells_the_sources_of_all(hub: Hub, cache: Cache) -> None:
    for name, status in (("a.bin", 404), ("big.bin", 403)):
        hub.faults(Status(status), path=f"org/name/resolve/{COMMIT}/{name}")
    told = json.loads(run("fetch", REF, "--quiet", "--json").stdout)
    assert told["error"].startswith("2 of 4 files failed: ")
    assert {source["reason"][:3] for source in told["sources"]} == {"404", "403"}


def test_a_pause_tells_what_is_kept_of_all_files(hub: Hub, cache: Cache) -> None:
    holds = [Hold(1_000_000, times=1), Hold(200_000, times=1)]
    for hold, name in zip(holds, ("big.bin", "a.bin"), strict=True):
        hub.faults(hold, path=f"org/name/resolve/{COMMIT}/{name}")
    process = start("fetch", REF, "--quiet")
    for hold in holds:
        assert hold.reached.wait(60)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    kept = said.split("; ")[1]
    assert 1_000_000 < int(kept.split()[0].replace(",", "")) <= 1_200_000 and kept.endswith(" bytes kept")
    log = Path(cache.root, "logs", f"{ID}.jsonl").read_text().splitlines()
    (paused,) = [line["message"] for line in map(json.loads, log) if line["event_type"] == "paused"]
    assert kept in paused.split("; ")


CATALOG = f"""
[mine]
ref = "{REF}"
files = ["*.json", "big.bin"]

[dated]
versions = {{ v1 = "{REF}@{COMMIT}", v2 = "{REF}@{NEXT}" }}
default_version = "v2"
"""


@pytest.mark.parametrize(
    ("asked", "command"),
    [("mine", "mine"), ("dated", "dated"), ("dated@v1", "dated@v1"), (f"mine@{NEXT}", f"mine@{NEXT}")],
)
def test_what_a_model_of_a_catalog_lacks_is_fetched_by_its_name(
    hub: Hub, cache: Cache, asked: str, command: str
) -> None:
    hub.publish("org/name", FILES, "next", commit=NEXT)
    path = Path(cache.root, "catalog", "own.toml")
    path.parent.mkdir(parents=True)
    path.write_text(CATALOG)
    for commit in (COMMIT, NEXT):
        hub.faults(Status(404), path=f"org/name/resolve/{commit}/big.bin")
    assert run("fetch", asked, "--quiet").returncode == 4
    (found,) = doctor(cache)
    assert found.endswith(f"; modelcache fetch {command}")
    hub.heal()
    assert run(*found.rpartition("; ")[2].split()[1:], "--quiet").returncode == 0
    assert doctor(cache) == []
