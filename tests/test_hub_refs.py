"""What a ref of a hub goes through: asked about once, fetched, found again without a question."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import NotFoundError
from modelcache.testing import Content, Hold, Hub, Origin, Status
from tests.caches import Events, check_progress, run, start

CONFIG = Content.of(b'{"a": 1}')
WEIGHTS = Content.generated(300_000, seed=1)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/model.onnx": Content.generated(50_000, seed=2)}
REF = "hf:org/name"


COMMIT, NEXT = "1" * 40, "2" * 40


def asked(hub: Hub) -> list[str]:
    """What it was asked, in order, without queries."""
    return [seen.path.partition("?")[0] for seen in hub.requests]


def test_a_model_is_pinned_to_the_commit_and_every_file_is_verified(hub: Hub, cache: Cache) -> None:
    model = cache.fetch(REF)
    assert isinstance(model, mc.Model)
    assert (model.ref, model.id, model.version) == (REF, "hf--org--name", COMMIT)
    assert {file.name: file.verified for file in model.files} == {
        "config.json": "git-sha1", "model.safetensors": "sha256", "onnx/model.onnx": "sha256",
    }  # fmt: skip
    assert {file.source for file in model.files} == {"huggingface"}
    for name, content in FILES.items():
        assert Path(model.path, name).read_bytes() == content.read()
    assert cache.path(REF) == cache.path("hf--org--name") == cache.path(f"{REF}@main") == model.path
    assert cache.path(f"{REF}/config.json") == model["config.json"].path


def test_what_was_asked_lately_is_a_hit_without_a_question(hub: Hub, cache: Cache) -> None:
    first = cache.fetch(REF)
    hub.stop()
    again = Cache(cache.root).fetch(REF)
    assert isinstance(again, mc.Model)
    assert again.path == first.path
    assert {file.status for file in again.files} == {"hit"}
    assert {file.name: file.verified for file in again.files}["config.json"] == "git-sha1"


def test_a_hit_loads_neither_the_network_nor_locks(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    slow = {"requests", "filelock", "sqlite3", "tomllib"}
    code = f"import sys, modelcache as mc; mc.fetch({REF!r}); print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_a_branch_is_asked_about_again_when_its_time_is_over(hub: Hub, cache_root: Path, one_connection: None) -> None:
    cache = Cache(cache_root, manifest_ttl=0)
    cache.fetch(REF)
    before = len(hub.requests)
    same = cache.fetch(REF)
    assert isinstance(same, mc.Model) and {file.status for file in same.files} == {"hit"}
    assert len(hub.requests) - before == 2  # the revision and its list, no file
    hub.publish("org/name", FILES | {"config.json": Content.of(b'{"a": 2}')}, commit=NEXT)
    before = len(hub.requests)
    newer = cache.fetch(REF)
    assert isinstance(newer, mc.Model) and newer.version == NEXT
    assert asked(hub)[before + 2 :] == [f"/org/name/resolve/{NEXT}/config.json"]
    assert cache.path(REF) == newer.path
    assert cache.path(f"{REF}@{COMMIT}") != newer.path
    cache.close()


def test_a_commit_is_never_asked_about_twice(hub: Hub, cache_root: Path) -> None:
    cache = Cache(cache_root, manifest_ttl=0)
    cache.fetch(f"{REF}@{COMMIT}")
    before = len(hub.requests)
    cache.fetch(f"{REF}@{COMMIT}")
    assert len(hub.requests) == before
    cache.close()


def test_one_file_of_a_model_is_a_file(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    file = cache.fetch(f"{REF}/config.json", output=tmp_path / "c.json")
    assert isinstance(file, mc.File)
    assert (tmp_path / "c.json").read_bytes() == CONFIG.read()
    assert file.version == COMMIT
    here = cache.fetch(f"{REF}/config.json")
    assert here.path == str(Path(cache.root, "models", "hf--org--name", COMMIT, "config.json"))  # type: ignore[union-attr]
    assert f"/org/name/resolve/{COMMIT}/model.safetensors" not in asked(hub)
    with pytest.raises(NotFoundError, match="hf:org/name has no file gone"):
        cache.fetch(f"{REF}/gone.bin")


def test_a_name_of_the_early_days_is_followed_to_the_full_one(hub: Hub, cache: Cache) -> None:
    hub.publish("openai-community/gpt2", FILES, commit=COMMIT)
    hub.rename("gpt2", "openai-community/gpt2")
    model = cache.fetch("hf:gpt2")
    assert isinstance(model, mc.Model)
    assert (model.ref, model.id, model.version) == ("hf:gpt2", "hf--gpt2", COMMIT)
    assert sorted(file.name for file in model.files) == sorted(FILES)
    (tree,) = [seen.path for seen in hub.requests if "/tree/" in seen.path]  # a redirect would drop the query
    assert tree == f"/api/models/openai-community/gpt2/tree/{COMMIT}?recursive=true&expand=false"
    assert str(cache.fetch(f"hf:gpt2@{COMMIT}/onnx/model.onnx")) == model["onnx/model.onnx"].path


def test_a_digest_may_be_given_for_one_file(hub: Hub, cache: Cache) -> None:
    for path, content in (("config.json", CONFIG), ("model.safetensors", WEIGHTS)):
        for status in ("fetched", "hit"):
            file = cache.fetch(f"{REF}/{path}", sha256=content.sha256, size=content.size)
            assert (file.status, file.sha256) == (status, content.sha256)
        md5 = hashlib.md5(content.read()).hexdigest()
        assert cache.fetch(f"{REF}/{path}", checksum=f"md5:{md5}").sha256 == content.sha256
    for wrong in ({"sha256": "0" * 64}, {"size": 7}, {"checksum": "git-sha1:" + "0" * 40}):
        with pytest.raises(mc.ModelCacheError) as refusal:
            cache.fetch(f"{REF}/model.safetensors", **wrong)
        assert refusal.value.exit_code == 3
    with pytest.raises(mc.UsageError, match="goes with one file"):
        cache.fetch(REF, sha256=WEIGHTS.sha256)


def test_the_hash_of_a_git_blob_goes_with_a_url_and_its_size(hub: Hub, cache: Cache) -> None:
    url = hub.url(f"org/name/resolve/{COMMIT}/config.json")
    checksum = "git-sha1:" + hashlib.sha1(b"blob 8\0" + CONFIG.read()).hexdigest()
    with pytest.raises(mc.UsageError, match="together with the size"):
        cache.fetch(url, checksum=checksum)
    file = cache.fetch(url, checksum=checksum, size=8)
    assert (file.verified, file.sha256) == ("git-sha1", CONFIG.sha256)
    assert cache.fetch(url, checksum=checksum, size=8).status == "hit"


def test_a_selection_is_ready_by_itself_and_grows(hub: Hub, cache: Cache) -> None:
    some = cache.fetch(REF, files=["*.onnx", "config*"])
    assert isinstance(some, mc.Model)
    assert [file.name for file in some.files] == ["config.json", "onnx/model.onnx"]
    assert cache.path(REF) == some.path
    everything = cache.fetch(REF)
    assert isinstance(everything, mc.Model)
    assert {file.name: file.status for file in everything.files} == {
        "config.json": "hit", "model.safetensors": "fetched", "onnx/model.onnx": "hit",
    }  # fmt: skip
    with pytest.raises(NotFoundError, match=r"has no file \*\.gguf"):
        cache.fetch(REF, files="*.gguf")


def test_its_stages_are_told(hub: Hub, cache: Cache) -> None:
    events = Events()
    hold = Hold(0)
    hub.faults(hold, path="api/models/org/name/revision/main")
    download = cache.fetch(REF, wait=False, progress=events)
    assert hold.reached.wait(60)
    assert download.state == "resolving"
    assert download.state_text == f"Pulling manifest from 127.0.0.1:{hub.port}..."
    assert download.to_json()["manifest_pulled"] is False
    hold.release.set()
    download.result(30)
    (pulled,) = events.of("manifest_pulled")
    assert (pulled["layers"], pulled["total_size"]) == (3, sum(file.size for file in FILES.values()))
    check_progress(events.progress, "hf--org--name")
    assert [row["status"] for row in cache.downloads()] == ["success"]


def test_a_pause_ends_the_question_at_once_and_resume_asks_again(hub: Hub, cache: Cache) -> None:
    events, hold = Events(), Hold(0)
    hub.faults(hold, path="api/models/org/name/revision/main")
    download = cache.fetch(REF, wait=False, progress=events)
    assert hold.reached.wait(60)
    download.pause()
    with pytest.raises(mc.PausedError):
        download.result(60)
    hold.release.set()
    hub.heal()
    download.resume()
    assert isinstance(download.result(30), mc.Model)
    (row,) = cache.downloads()
    assert (row["status"], row["attempts"]) == ("success", 2)


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, cache: Cache) -> None:
    hub.faults(Status(503, times=2), path="api/models/org/name/revision/main")
    events = Events()
    cache.fetch(REF, progress=events)
    assert len(events.of("resolving")) == 3
    assert [event["message"] for event in events.of("source_failed")] == ["503: it is overloaded or down"] * 2


def test_a_hub_that_is_down_is_told_in_one_line(hub: Hub, cache: Cache) -> None:
    hub.stop()
    done = run("fetch", REF, "--quiet")
    assert done.returncode == 5
    assert f"hf:org/name could not be fetched (127.0.0.1:{hub.port}: connection refused)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_output_is_written_from_the_store_while_the_hub_is_down(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    cache.fetch(REF)
    hub.stop()
    model = Cache(cache.root, manifest_ttl=0, backoff=0.01).fetch(REF, output=tmp_path / "out")
    assert isinstance(model, mc.Model)
    for name, content in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == content.read()
    assert {file.bytes_fetched for file in model.files} == {0}


def test_what_is_here_will_do_while_the_hub_is_down(hub: Hub, cache_root: Path) -> None:
    cache, events = Cache(cache_root, manifest_ttl=0), Events()
    model = cache.fetch(REF)
    hub.stop()
    again = cache.fetch(REF, progress=events)
    assert again.path == model.path
    (stale,) = events.of("stale")
    assert stale["message"].startswith(f"its hub could not be asked ({hub.endpoint.removeprefix('http://')}: ")
    assert stale["message"].endswith("; this is what it meant 0 s ago")
    with pytest.raises(mc.AllSourcesFailedError):
        cache.fetch(f"{REF}@v2")
    cache.close()


def test_what_is_installed_is_used_offline_and_nothing_else(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cache.fetch(REF)
    before = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MODELCACHE_MANIFEST_TTL", "0")
    assert Cache(cache.root).fetch(REF).path == model.path
    for path in Path(cache.root, "catalog").rglob("*.json"):
        path.write_bytes(b"\0garbage")
    assert Cache(cache.root).fetch(REF).path == model.path
    with pytest.raises(mc.ModelNotAvailableError, match="Model hf--org--other@main is not available: not_installed"):
        cache.fetch("hf:org/other")
    assert len(hub.requests) == before


@pytest.mark.parametrize(
    "garbage", [b"", b"{}", b"[]", b'{"format": 1, "aliases": {"main": 7}}', b'{"format": 1, "aliases": []}', b"\xff"]
)
def test_garbage_about_what_refs_meant_is_as_if_nothing_was_known(hub: Hub, cache: Cache, garbage: bytes) -> None:
    model = cache.fetch(REF)
    for path in Path(cache.root, "catalog").rglob("*.json"):
        path.write_bytes(garbage)
    assert Cache(cache.root).fetch(REF).path == model.path


def test_nothing_of_it_is_kept_beside_an_output_alone(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    model = cache.fetch(REF, cache=False, output=tmp_path / "out")
    assert isinstance(model, mc.Model)
    assert Path(tmp_path, "out", "config.json").read_bytes() == CONFIG.read()
    assert not Path(cache.root, "catalog").exists()


def test_a_download_that_is_gone_on_with_has_the_same_id(hub: Hub, cache: Cache) -> None:
    hub.faults(Status(404, times=1), path=f"org/name/resolve/{COMMIT}/model.safetensors")
    with pytest.raises(mc.ModelCacheError):
        cache.fetch(REF)
    (row,) = cache.downloads()
    record = cache.resume(str(row["id"]))
    assert (record.status, record.version) == ("success", COMMIT)
    assert len(cache.downloads()) == 1


def test_the_command_says_the_commit(hub: Hub, cache: Cache) -> None:
    done = run("fetch", f"{REF}/config.json", "--json", "--quiet")
    (told,) = json.loads(done.stdout)
    assert (told["ref"], told["id"], told["version"]) == (f"{REF}/config.json", "hf--org--name", COMMIT)
    done = run("fetch", REF, "--files", "*.onnx", "--files", "config*", "--json", "--quiet")
    (told,) = json.loads(done.stdout)
    assert [file["path"] for file in told["files"]] == ["config.json", "onnx/model.onnx"]


def test_a_file_that_rots_is_repaired_from_the_hub(hub: Hub, cache: Cache) -> None:
    from tests.caches import rot

    model = cache.fetch(REF)
    assert isinstance(model, mc.Model)
    rot(model["config.json"].path, 3)
    assert [row["finding"] for row in cache.verify(REF)] == ["corrupt", "whole", "whole"]
    (row,) = cache.repair([REF])
    assert (row["repaired"], row["source"]) == (True, "huggingface")


@pytest.mark.parametrize("command", ["rm", "verify", "info", "reset", "repair"])
def test_what_is_done_to_models_is_not_done_to_one_for_one_of_its_files(hub: Hub, cache: Cache, command: str) -> None:
    cache.fetch(REF)
    done = run(command, f"{REF}/config.json")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is one file of a model; name the model: hf:org/name" in done.stderr
    assert cache.path(REF)


def test_a_reset_forgets_what_the_hub_has_said(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    hub.publish("org/name", FILES, "v2", commit=NEXT)
    cache.fetch(f"{REF}@v2")
    cache.reset(f"{REF}@v2")
    assert not os.listdir(Path(cache.root, "models"))
    assert not os.listdir(Path(cache.root, "catalog"))


def test_a_setting_that_is_wrong_does_not_matter_to_a_commit_that_is_here(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fetch(REF)
    monkeypatch.setenv("MODELCACHE_MANIFEST_TTL", "soon")
    fresh = Cache(cache.root)
    assert isinstance(fresh.fetch(f"{REF}@{COMMIT}"), mc.Model)
    with pytest.raises(mc.UsageError, match="MODELCACHE_MANIFEST_TTL"):
        fresh.fetch(REF)


def test_another_revision_is_never_taken_for_the_one_that_is_named(
    hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("org/name", {"config.json": CONFIG}, "v2", commit=NEXT)
    model = cache.fetch(f"{REF}@v2")
    with pytest.raises(mc.ModelNotAvailableError):
        cache.path(REF)
    with pytest.raises(mc.ModelNotAvailableError, match="hf--org--name@v3 is not available"):
        cache.path(f"{REF}@v3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in Path(cache.root, "catalog").rglob("*.json"):
        path.unlink()
    with pytest.raises(mc.ModelNotAvailableError):
        cache.fetch(REF, progress=print)
    assert cache.fetch(f"{REF}@v2").path == cache.path("hf--org--name@v2") == cache.path("hf--org--name") == model.path


def test_offline_a_commit_is_not_taken_for_a_branch(hub: Hub, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cache.fetch(f"{REF}@{COMMIT}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(mc.ModelNotAvailableError, match="hf--org--name@main is not available"):
        cache.fetch(REF)
    assert cache.path(REF) == cache.fetch(f"{REF}@{COMMIT}").path == model.path


def test_a_registry_that_is_lost_forgets_no_model(hub: Hub, cache: Cache) -> None:
    model = cache.fetch(REF)
    Path(cache.root, "registry.json").write_text("garbage")
    assert cache.path(REF) == cache.path(f"{REF}@{COMMIT}") == model.path
    assert Cache(cache.root).fetch(REF).path == model.path


def test_what_is_no_hub_is_told_with_its_name(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with Origin({}) as origin:
        monkeypatch.setenv("HF_ENDPOINT", origin.url())
        with pytest.raises(mc.AllSourcesFailedError, match="404: not found") as missing:
            cache.fetch(REF)
    assert missing.value.exit_code == 4
    assert f"hf:org/name could not be fetched (127.0.0.1:{origin.port}: 404" in missing.value.line()


def test_a_model_of_a_hub_may_wait_in_the_queue(hub: Hub, cache: Cache) -> None:
    queue = mc.Queue(cache)
    queue.add(REF, files=["config*"])
    queue.run()
    assert sorted(os.listdir(cache.path(REF))) == [".manifest.json", "config.json"]


def test_processes_that_want_the_same_ask_once(hub: Hub, cache: Cache, one_connection: None) -> None:
    runs = [start("fetch", REF, "--quiet", "--json") for _ in range(3)]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in runs]
    assert [each[0]["version"] for each in told] == [COMMIT] * 3
    assert sorted(asked(hub)) == sorted(set(asked(hub)))


def test_who_waits_for_another_process_sees_how_far_it_is(hub: Hub, cache: Cache, one_connection: None) -> None:
    hold, events = Hold(250_000), Events()
    hub.faults(hold, path=f"org/name/resolve/{COMMIT}/model.safetensors")
    process = start("fetch", REF, "--quiet")
    try:
        assert hold.reached.wait(30)
        before = len(hub.requests)
        for path in Path(cache.root, "catalog").rglob("*.json"):  # as if the holder had not asked yet
            path.rename(path.with_suffix(".later"))
        download = cache.fetch(REF, wait=False, progress=events)
        events.wait_for("waiting")
        assert download.order.files == ()
        for path in Path(cache.root, "catalog").rglob("*.later"):
            path.rename(path.with_suffix(".json"))
        events.wait_until(lambda told: any(event["bytesDownloaded"] > 0 for event in told.progress))
        assert not download.has_ended
        hold.release.set()
        assert isinstance(download.result(60), mc.Model)
    finally:
        hold.release.set()
        process.communicate(timeout=60)
    assert process.returncode == 0
    check_progress(events.progress, "hf--org--name")
    assert not any("/api/" in seen.path for seen in hub.requests[before:])


def test_removing_a_ref_takes_what_it_means_and_removing_the_id_takes_all(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    hub.publish("org/name", {"config.json": CONFIG}, "v2", commit=NEXT)
    other = cache.fetch(f"{REF}@v2")
    cache.remove(REF)
    with pytest.raises(mc.ModelNotAvailableError):
        cache.path(REF)
    assert cache.path(f"{REF}@v2") == other.path
    cache.fetch(REF)
    cache.remove("hf--org--name")
    assert not os.listdir(Path(cache.root, "models"))


def test_a_ref_without_a_branch_means_main_for_pins_and_removals_and_an_id_means_all(hub: Hub, cache: Cache) -> None:
    assert run("pin", REF).stderr == f"{REF} is not here yet: it is kept when it is fetched\n"
    cache.fetch(REF)
    assert run("unpin", REF).stderr == "unpinned all versions of hf--org--name\n"
    hub.publish("org/name", {"config.json": CONFIG}, "v2", commit=NEXT)
    cache.fetch(f"{REF}@v2")

    def pinned() -> set[str]:
        return {row["version"] for row in cache.models() if row["pinned"]}

    assert run("pin", REF).stderr == f"pinned hf--org--name@{COMMIT[:12]}\n"
    assert pinned() == {COMMIT}
    told = json.loads(run("pin", "hf--org--name", "--json").stdout)
    assert told == {"model": "hf--org--name", "version": "", "here": True, "pinned": True}
    assert pinned() == {COMMIT, NEXT}
    assert run("unpin", f"{REF}@v2").stderr == f"{REF}@v2 was not pinned\n"
    assert json.loads(run("unpin", REF, "--json").stdout)["versions"] == ["", COMMIT]
    assert pinned() == set()

    removed = run("rm", REF, "--json")
    assert json.loads(removed.stdout) | {"bytes_freed": 0} == {
        "model": REF, "bytes_freed": 0, "removed": [COMMIT], "left": [NEXT],
    }  # fmt: skip
    assert re.fullmatch(
        rf"removed hf--org--name@{COMMIT[:12]}, [0-9,]+ bytes freed; 1 other version stays\n", removed.stderr
    )
    assert len(run("rm", "hf--org--name").stderr.splitlines()) == 1


def test_removing_it_takes_all_its_versions(hub: Hub, cache: Cache) -> None:
    cache.fetch(REF)
    hub.publish("org/name", {"config.json": CONFIG}, "v2", commit=NEXT)
    cache.fetch(f"{REF}@v2")
    assert cache.path("hf--org--name@v2") == cache.path(f"{REF}@v2") != cache.path(REF)
    cache.remove(f"{REF}@v2")
    assert cache.path(REF).endswith(COMMIT)
    cache.remove(REF)
    assert not os.listdir(Path(cache.root, "models"))
