"""Whatever a record or a bundle says of a hub's model, nobody but its hub is given what the user has for it."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.model import Manifest
from modelcache.refs import Ref
from modelcache.testing import Content, Hub, Origin
from modelcache.wiring import hub_of
from tests.caches import manifest_of, rot
from tests.registries import Registry

FILES = {"a.bin": Content.generated(9_000, seed=1), "b.bin": Content.generated(5_000, seed=2)}
COMMIT = "1" * 40
SECRET = {"Authorization": "Bearer s3cret"}
OF_HUBS = [
    ("hf--org--name", "hf:org/name"), ("hf--org--name", ""), ("hf--org--name", "it: cannot be read"),
    ("ollama--tiny", "ollama:tiny"), ("ollama--tiny", ""), ("oci--reg.example--a", "oci://reg.example/a"),
    ("oci--127.0.0.1-5000--a", ""),
]  # fmt: skip


@pytest.fixture
def elsewhere() -> Iterator[Origin]:
    """A place that is no hub, and has the files."""
    with Origin(FILES) as origin:
        yield origin


def installed(cache: Cache, elsewhere: Origin, model: str, ref: str) -> Manifest:
    """As a modelcache that knew no better left it: a record that names a foreign place; one file is gone since."""
    manifest = replace(manifest_of(elsewhere, FILES, model, COMMIT), ref=ref)
    cache.fetch(manifest)
    shutil.rmtree(Path(cache.root, "blobs"))
    os.unlink(Path(cache.root, "models", model, COMMIT, "a.bin"))
    return manifest


def secrets_seen(origin: Origin) -> list[str]:
    return [seen.headers["authorization"] for seen in origin.requests if "authorization" in seen.headers]


@pytest.mark.parametrize(("model", "ref"), OF_HUBS)
def test_headers_for_a_hubs_model_go_to_no_foreign_place_that_its_record_names(
    cache: Cache, elsewhere: Origin, model: str, ref: str
) -> None:
    manifest = installed(cache, elsewhere, model, ref)
    assert isinstance(cache.fetch(model, headers=SECRET), mc.Model)
    os.unlink(Path(cache.root, "models", model, COMMIT, "b.bin"))
    shutil.rmtree(Path(cache.root, "blobs"))
    cache.repair([model], headers=SECRET)
    cache.remove(model)
    cache.fetch(manifest, headers=SECRET)
    assert len(elsewhere.requests) >= 2 + 1 + 1 + 2
    assert secrets_seen(elsewhere) == []


def test_headers_for_any_other_model_go_to_the_place_of_its_first_file(cache: Cache, elsewhere: Origin) -> None:
    installed(cache, elsewhere, "m", "")
    cache.fetch("m", headers=SECRET)
    assert set(secrets_seen(elsewhere)) == {"Bearer s3cret"}


def test_headers_for_a_hubs_model_find_the_hub_behind_a_foreign_place(
    cache: Cache, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.publish("org/name", FILES, commit=COMMIT)
        hub.gate("org/name", "s3cret")
        manifest = manifest_of(elsewhere, FILES, "hf--org--name", COMMIT)
        files = (replace(each, urls=(*each.urls, f"hf:org/name@{COMMIT}/{each.path}")) for each in manifest.files)
        elsewhere.stop()
        cache.fetch(replace(manifest, ref="hf:org/name", files=tuple(files)), headers=SECRET)
        assert set(secrets_seen(hub)) == {"Bearer s3cret"}


@pytest.mark.parametrize(("model", "ref"), OF_HUBS[:3])
def test_offline_nobody_at_all_is_asked_for_a_model_of_that_hub(
    cache: Cache, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch, model: str, ref: str
) -> None:
    installed(cache, elsewhere, model, ref)
    before = len(elsewhere.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for mirrors in ((), (elsewhere.url(),)):
        with pytest.raises(mc.ModelCacheError, match="HF_HUB_OFFLINE is set"):
            cache.fetch(model, mirrors=mirrors)
    (row,) = cache.repair([model])
    assert not row["repaired"] and "HF_HUB_OFFLINE is set" in row["reason"]
    assert len(elsewhere.requests) == before


def test_offline_for_one_hub_is_not_offline_for_others(
    cache: Cache, elsewhere: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    installed(cache, elsewhere, "m", "")
    assert isinstance(cache.fetch("m"), mc.Model)
    with Registry() as registry:
        registry.push_model("library/tiny", "latest", {"model": FILES["a.bin"]}, Content.of(b"{}"))
        assert isinstance(cache.fetch(registry.ref()), mc.Model)


def test_the_hub_of_a_model_is_told_by_its_ref_or_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_of("hf:datasets/org/name", "hf--datasets--org--name") == "hf:"
    assert hub_of("oci://docker.io/a/b", "oci--docker.io--a--b") == "oci://registry-1.docker.io/"
    assert hub_of("oci://reg.example:5000/a", "x") == "oci://reg.example:5000/"
    assert hub_of("ollama:tiny", "ollama--tiny") == hub_of("", "ollama--tiny") == "oci://registry.ollama.ai/"
    assert hub_of("", "oci--reg.example--a") == ""
    for model in ("m", "hf", "hf-x--y", "url--hf--12345678", "whisper-base"):
        assert hub_of(model, model) is None
    assert hub_of("https://host/hf--x", Ref.parse("https://host/hf--x").id) is None
    monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", "127.0.0.1:5000")
    assert hub_of("ollama:tiny", "ollama--tiny") == "oci://registry.ollama.ai/", "a mirror takes its place when asked"


@pytest.mark.parametrize("urls", ["as they came", "none"])
def test_a_bundle_of_a_model_of_ollama_is_repaired_from_the_mirror_of_whoever_has_it(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, urls: str
) -> None:
    with Registry() as first, Registry() as second:
        for registry in (first, second):
            registry.push_model("library/tiny", "latest", {"model": FILES["a.bin"]}, Content.of(b"{}"))
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", first.host)
        model = cache.fetch("ollama:tiny")
        record = Path(model.path, ".manifest.json")
        assert first.host not in record.read_text()
        if urls == "none":
            record.write_text(re.sub('"oci://[^"]*"', "", record.read_text()))
        cache.export_bundle(["ollama:tiny"], tmp_path / "w.tar")
        asked = len(first.requests)
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", second.host)
        other = Cache(tmp_path / "other")
        (model,) = other.import_bundle(tmp_path / "w.tar")
        rot(model["model.gguf"].path, 100)
        (row,) = other.repair(["ollama:tiny"], headers=SECRET)
        assert row["repaired"], row["reason"]
        assert secrets_seen(second) and len(first.requests) == asked


def test_a_file_of_a_hub_that_nobody_named_a_url_of_comes_from_the_hub(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.publish("org/name", {"a b%.bin": FILES["a.bin"]}, "main")
        model = cache.fetch("hf:org/name")
        record = Path(model.path, ".manifest.json")
        record.write_text(re.sub('"hf:[^"]*@[^"]*"', "", record.read_text()))
        assert cache.models().rows[0]["status"] == "ready"
        rot(model["a b%.bin"].path, 100)
        (row,) = cache.repair(["hf:org/name"])
        assert row["repaired"], row["reason"]


@pytest.mark.parametrize("place", ["registry.ollama.ai", "registry.ollama.ai:443", "REGISTRY.ollama.ai"])
def test_whoever_names_the_registry_of_ollama_in_any_way_is_served_by_its_mirror(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with Registry() as mirror:
        mirror.push_model("library/tiny", "latest", {"model": FILES["a.bin"]}, Content.of(b"{}"))
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", mirror.host)
        assert isinstance(cache.fetch(f"oci://{place}/library/tiny", headers=SECRET), mc.Model)
        assert secrets_seen(mirror)
