"""Other tools' caches and folders with a manifest are verified by their own digests, and never changed (product E1)."""

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from caches import manifest_of, rot, run
from foreign import git_sha1, hub_cache, ollama_store, snapshot
from test_huggingface_hub import PYTHONS
from test_huggingface_hub import snapshot as downloaded

from modelcache.caching import Cache
from modelcache.errors import UsageError
from modelcache.foreign.tier import Claim
from modelcache.manifests import make
from modelcache.model import Digest
from modelcache.outcome import Model
from modelcache.rows import Report
from modelcache.state.looks import Looks
from modelcache.state.place import Place
from modelcache.store.installed import Installed
from modelcache.sweeps.claims import ClaimsWard
from modelcache.sweeps.ward import Pace
from modelcache.testing import Content, Hub, Origin

DAY_S = 86_400
BIG = Content.generated(3_000_000, seed=1)
OTHER = Content.generated(2_000_000, seed=2)
SMALL = Content.of(b'{"a": 1}')
FILES = {"model.safetensors": BIG, "onnx/model.onnx": OTHER, "config.json": SMALL}


def in_days(days: float) -> Callable[[], float]:
    return lambda: time.time() + days * DAY_S


def found(report: Report) -> dict[str, str]:
    return {row["file"]: row["finding"] for row in report}


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The cache of Hugging Face that this process would use, with one repository."""
    return hub_cache(tmp_path / "huggingface" / "hub", FILES)


def blob(repository: Path, content: Content) -> Path:
    (place,) = [each for each in (repository / "blobs").iterdir() if each.name in (content.sha256, git_sha1(content))]
    return place


# -- Hugging Face -----------------------------------------------------------------------------------------------------


def test_a_cache_of_hugging_face_is_verified_by_its_own_names(cache: Cache, hub: Path) -> None:
    before = snapshot(hub)
    report = cache.sweep(also=["hf"], share="full")
    assert found(report) == dict.fromkeys(FILES, "whole")
    assert {(row["where"], row["model"], row["version"]) for row in report} == {("hf", "hf:org/name", "1" * 40)}
    rot(blob(hub, BIG), 5)
    rot(blob(hub, SMALL), 5)
    blob(hub, OTHER).unlink()
    after_rot = snapshot(hub)
    report = cache.sweep(also=["hf"], share="full", clock=in_days(11))
    assert found(report) == {"model.safetensors": "corrupt", "config.json": "corrupt", "onnx/model.onnx": "missing"}
    assert report.findings == 3
    assert snapshot(hub) == after_rot != before


def test_what_was_verified_there_is_remembered_here(cache: Cache, hub: Path) -> None:
    shares = [found(cache.sweep(also=["hf"], share="1/3", clock=in_days(day))) for day in (0, 1, 2)]
    assert sorted(name for share in shares for name in share) == sorted(FILES)
    assert found(cache.sweep(also=["hf"], share="full", clock=in_days(3))) == {}
    blob(hub, BIG).touch()
    assert found(cache.sweep(also=["hf"], share="full", clock=in_days(4))) == {"model.safetensors": "whole"}


def test_rot_there_is_told_until_it_is_gone_and_not_read_each_time(cache: Cache, hub: Path) -> None:
    rot(blob(hub, BIG), 5)
    cache.sweep(also=["hf"], share="full")
    again = cache.sweep(also=["hf"], share="full", repair=True, clock=in_days(1))
    assert (found(again), again.findings, again.title) == ({"model.safetensors": "corrupt"}, 1, "0 files verified, 0 B")
    blob(hub, BIG).write_bytes(BIG.read())
    assert found(cache.sweep(also=["hf"], share="full", clock=in_days(2))) == {"model.safetensors": "whole"}
    assert found(cache.sweep(also=["hf"], share="full", clock=in_days(3))) == {}


def test_a_repository_that_is_deleted_is_nobodys_finding(cache: Cache, hub: Path) -> None:
    rot(blob(hub, BIG), 5)
    cache.sweep(also=["hf"], share="full")
    shutil.rmtree(hub)
    report = cache.sweep(also=["hf"], share="full", clock=in_days(11))
    assert (found(report), report.findings) == ({}, 0)
    with closing(sqlite3.connect(Place.of(cache.root).looks)) as connection, connection:
        assert connection.execute("SELECT count(*) FROM looks").fetchone() == (0,)


def test_a_blob_of_two_commits_is_read_once_and_told_for_both(cache: Cache, hub: Path) -> None:
    hub_cache(hub.parent, FILES, commit="2" * 40, refs=())
    rot(blob(hub, BIG), 5)
    report = cache.sweep(also=["hf"], share="full")
    assert [row["version"][0] for row in report if row["finding"] == "corrupt"] == ["1", "2"]


def test_the_list_of_a_commit_vouches_for_files_that_are_no_links(cache: Cache, tmp_path: Path) -> None:
    repository = hub_cache(tmp_path / "huggingface" / "hub", FILES, tree=True)
    link = repository / "snapshots" / ("1" * 40) / "model.safetensors"
    link.unlink()
    link.write_bytes(b"x" + BIG.read()[1:])
    assert found(cache.sweep(also=["hf"], share="full"))["model.safetensors"] == "corrupt"


@pytest.mark.parametrize("kind", ["loop", "outside", "fifo", "folder", "no cache"])
def test_hostile_caches_do_no_harm(cache: Cache, tmp_path: Path, hub: Path, kind: str) -> None:
    place = blob(hub, BIG)
    place.unlink()
    if kind == "loop":
        place.symlink_to(place.name)
    elif kind == "outside":
        place.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        shutil.rmtree(hub.parent)
        hub.parent.write_text("a file")
    report = cache.sweep(also=["hf"], share="full")
    told = {"no cache": None}.get(kind, "unreadable")
    assert found(report).get("model.safetensors") == told


def test_names_that_are_no_text_are_verified_too(cache: Cache, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/any \xff name"
    repository = hub_cache(Path(os.fsdecode(folder)), {"model.safetensors": BIG, os.fsdecode(b"b\xff.bin"): OTHER})
    rot(blob(repository, OTHER), 5)
    for day in (0, 1, 11):
        report = cache.sweep(also=[os.fsdecode(folder)], share="full", clock=in_days(day))
        assert [row["file"] for row in report if row["finding"] == "corrupt"] == [os.fsdecode(b"b\xff.bin")]
    os.makedirs(os.fsencode(cache.root) + b"/models/\xff")
    assert cache.sweep(also=["hf"], share="full").findings == 0


@pytest.mark.slow
@pytest.mark.skipif(not PYTHONS, reason="MODELCACHE_HF_PYTHONS names no Python with huggingface_hub")
@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: Path(python).parent.parent.name)
def test_rot_in_a_cache_that_hugging_faces_own_client_made_is_found(python: str, cache: Cache, tmp_path: Path) -> None:
    with Hub() as server:
        server.publish("org/name", FILES)
        folder = Path(downloaded(python, server, tmp_path / "huggingface", repo_id="org/name"))
    assert found(cache.sweep(also=["hf"], share="full")) == dict.fromkeys(FILES, "whole")
    rot((folder / "model.safetensors").resolve(), 1_000_000)
    rot((folder / "config.json").resolve(), 3)
    before = snapshot(tmp_path / "huggingface")
    report = cache.sweep(also=["hf"], share="full", clock=in_days(11))
    assert found(report) == {"model.safetensors": "corrupt", "config.json": "corrupt", "onnx/model.onnx": "whole"}
    assert snapshot(tmp_path / "huggingface") == before


# -- Ollama -----------------------------------------------------------------------------------------------------------


def test_a_store_of_ollama_is_verified_and_lacks_what_its_manifests_list(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "ollama"
    ollama_store(folder, {"model": BIG, "license": OTHER, "params": SMALL}, "registry.ollama.ai/library/tiny", "1b")
    assert set(found(cache.sweep(also=["ollama"], share="full")).values()) == {"whole"}
    rot(folder / "blobs" / f"sha256-{BIG.sha256}", 77)
    (folder / "blobs" / f"sha256-{OTHER.sha256}").unlink()
    os.truncate(folder / "blobs" / f"sha256-{SMALL.sha256}", 3)
    before = snapshot(folder)
    report = cache.sweep(also=["ollama"], share="full", clock=in_days(11))
    told = {row["file"]: (row["model"], row["version"], row["finding"]) for row in report if row["finding"] != "whole"}
    assert told == {
        "model.gguf": ("ollama:tiny", "1b", "corrupt"), "license": ("ollama:tiny", "1b", "missing"),
        "params.json": ("ollama:tiny", "1b", "corrupt"),
    }  # fmt: skip
    assert snapshot(folder) == before


def test_rot_in_a_folder_that_we_wrote_for_ollama_is_found(cache: Cache, tmp_path: Path) -> None:
    ollama_store(tmp_path / "ollama", {"model": BIG, "params": SMALL}, "registry.ollama.ai/library/tiny", "1b")
    cache.adopt("ollama")
    theirs = tmp_path / "theirs"
    cache.fetch("ollama:tiny:1b", layout="ollama", output=theirs)
    rot(theirs / "blobs" / f"sha256-{BIG.sha256}", 2_000_000)
    before = snapshot(theirs)
    report = cache.sweep(also=[str(theirs)], share="full")
    assert {row["file"] for row in report if row["finding"] == "corrupt"} == {"model.gguf"}
    assert {row["where"] for row in report} == {str(theirs)}
    assert snapshot(theirs) == before


def test_garbage_in_a_store_of_ollama_is_passed_over(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "ollama"
    ollama_store(folder, {"model": BIG})
    manifests = folder / "manifests" / "registry.ollama.ai" / "library"
    for name, content in {"a": b"garbage", "b": b"[" * 100_000, "c": b'{"schemaVersion": 2}'}.items():
        (manifests / name).mkdir()
        (manifests / name / "latest").write_bytes(content)
    (folder / "manifests" / "lone").write_text("{}")
    assert found(cache.sweep(also=["ollama"], share="full"))["model.gguf"] == "whole"


# -- folders ----------------------------------------------------------------------------------------------------------


def test_rot_in_an_output_folder_is_found_and_a_fetch_mends_it(cache: Cache, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Origin({"big.bin": BIG, "small": SMALL}) as origin:
        manifest = manifest_of(origin, {"big.bin": BIG, "small": SMALL})
        cache.fetch(manifest, output=output)
        rot(output / "big.bin", 5)
        report = cache.sweep(also=[str(output)], share="full", clock=in_days(11))
        told = {row["file"]: row["finding"] for row in report if row["where"] == str(output)}
        assert told == {"big.bin": "corrupt", "small": "whole"}
        assert cache.path("m")  # the store's own copy is right
        record = Installed.read(str(output))
        assert record
        assert [file.path for file in record.files if file.is_distrusted] == ["big.bin"]
        cache.fetch(manifest, output=output)
    assert (output / "big.bin").read_bytes() == BIG.read()


@pytest.mark.parametrize("names", ["the folder", "the manifest"])
def test_a_folder_with_a_manifest_is_verified_by_its_pieces(cache: Cache, tmp_path: Path, names: str) -> None:
    folder = tmp_path / "mirror"
    folder.mkdir()
    (folder / "big.bin").write_bytes(BIG.read())
    (folder / "gone").write_bytes(b"soon gone")
    (folder / "manifest.json").write_text(json.dumps(make(str(folder), "m", piece_size=1 << 20).to_json()))
    rot(folder / "big.bin", 1 << 20)
    (folder / "gone").unlink()
    before = snapshot(folder)
    place = folder if names == "the folder" else folder / "manifest.json"
    report = cache.sweep(also=[str(place)], share="full")
    assert found(report) == {"big.bin": "corrupt", "gone": "missing"}
    assert next(row["wrong_bytes"] for row in report if row["file"] == "big.bin") == "1048576-2097151"
    assert snapshot(folder) == before


def test_a_list_whose_files_are_all_gone_is_read_twice_at_most(tmp_path: Path) -> None:
    listed: list[int] = []

    def claims() -> Iterator[Claim]:
        listed.append(1)
        for number in range(50):
            yield Claim("m", "1", f"f{number}", str(tmp_path / f"f{number}"), (Digest("sha256", f"{number:064x}"),), 9)

    pace = Pace(threading.Event(), 0.0, 0)
    with Looks.opened(str(tmp_path / "looks")) as looks:
        ward = ClaimsWard("mirror", "mirror", claims, looks, pace, pace.manner(time.time, strict=False))
        ward.begin(1)
        (group,) = ward.groups()
        found = list(ward.read(list(group[1]())))
    assert ([one.audit.finding for one in found], len(listed)) == (["missing"] * 50, 2)


def test_a_root_and_a_folder_of_anything_are_no_places(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x")
    assert isinstance(cache.add(tmp_path / "w.bin", "m"), Model)
    for place in (cache.root, tmp_path / "w.bin", tmp_path / "nothing"):
        with pytest.raises(UsageError):
            cache.sweep(also=[str(place)])


def test_the_command_tells_what_has_rotted_elsewhere(cache: Cache, hub: Path) -> None:
    rot(blob(hub, BIG), 5)
    done = run("verify", "--also", "hf", "--also", str(hub.parent), "--quiet")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    wrong = [line for line in lines if " model.safetensors: corrupt: no piece digests tell where" in line]
    assert [line[: line.index(" model.")] for line in wrong] == [
        f"{place}: hf:org/name@{'1' * 40}" for place in ("hf", hub.parent)
    ]
    assert f"{cache.root}: no file was due" in lines


def test_the_command_tells_a_place_that_is_right_in_a_line_of_its_own(cache: Cache, hub: Path) -> None:
    done = run("verify", "--also", "hf", "--quiet")
    assert done.returncode == 0
    assert [f"{cache.root}: no file was due", "hf: 3 files are right"] == done.stderr.splitlines()[:2]
