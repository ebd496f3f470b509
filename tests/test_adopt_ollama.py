"""What Ollama has downloaded becomes models of the cache, and its store stays as it was."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.foreign.ollama import MOST
from modelcache.image import MANIFEST
from modelcache.rows import Report
from modelcache.store.intake import LEAST_LINKED
from modelcache.testing import Content
from tests.caches import rot, run
from tests.foreign import ollama_store, snapshot

WEIGHTS = Content.generated(LEAST_LINKED + 300_000, seed=1)
LAYERS = {"model": WEIGHTS, "template": Content.of(b"{{ .Prompt }}"), "params": Content.of(b'{"stop": []}')}
NAMES = {"model.gguf", "template", "params.json", "oci-config.json", MANIFEST}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ollama keeps its models, in these tests; no registry is there to be asked."""
    monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", "127.0.0.1:9")
    return tmp_path / "ollama"


def outcomes(report: Report) -> dict[str, str]:
    return {row["file"]: row["outcome"] for row in report}


def test_what_ollama_has_is_a_hit_from_then_on(cache: Cache, store: Path) -> None:
    digest = ollama_store(store, LAYERS, "registry.ollama.ai/library/tiny", "latest", "1b")
    before = snapshot(store)
    report = cache.adopt("ollama")
    assert outcomes(report) == dict.fromkeys(NAMES, "taken")
    assert not next(row["copied"] for row in report if row["file"] == "model.gguf")
    assert snapshot(store) == before
    for ref in ("ollama:tiny", "ollama:tiny:1b", f"ollama:tiny@sha256:{digest}", "ollama--tiny"):
        assert cache.path(ref) == cache.path("ollama--tiny", digest)
    model = cache.fetch(f"ollama:tiny@sha256:{digest}")
    assert isinstance(model, mc.Model)
    assert {file.status for file in model.files} == {"hit"}
    assert Path(model["model.gguf"].path).read_bytes() == WEIGHTS.read()
    assert cache.fetch("ollama:tiny:1b").path == model.path  # type: ignore[union-attr]
    assert outcomes(cache.adopt(store)) == dict.fromkeys(NAMES, "here")


def test_models_of_users_and_of_other_registries_have_their_names(cache: Cache, store: Path) -> None:
    ollama_store(store, LAYERS, "registry.ollama.ai/me/mine", "v1")
    ollama_store(store, {"model": WEIGHTS}, "hf.co/org/Name-GGUF", "Q4_K_M")
    ollama_store(store, {"params": LAYERS["params"]}, "127.0.0.1:5000/library/other")
    cache.adopt("ollama")
    assert {row["ref"] for row in cache.models()} == {
        "ollama:me/mine", "oci://hf.co/org/Name-GGUF", "oci://127.0.0.1:5000/library/other",
    }  # fmt: skip
    assert cache.path("ollama:me/mine:v1") == cache.path("ollama--me--mine")
    assert cache.path("oci://hf.co/org/Name-GGUF:Q4_K_M")


def test_a_blob_that_is_wrong_or_not_there_is_told_and_the_rest_is_taken(cache: Cache, store: Path) -> None:
    ollama_store(store, LAYERS)
    rot(store / "blobs" / f"sha256-{WEIGHTS.sha256}", 9)
    (store / "blobs" / f"sha256-{LAYERS['params'].sha256}").unlink()
    before = snapshot(store)
    done = run("adopt", "ollama", "--json")
    assert done.returncode == 3
    told = {row["file"]: row["outcome"] for row in json.loads(done.stdout)}
    assert told == dict.fromkeys(NAMES, "taken") | {"model.gguf": "wrong", "params.json": "absent"}
    assert snapshot(store) == before
    with pytest.raises(mc.ModelCacheError):
        cache.fetch("ollama:tiny")  # what is missing has to be fetched, and nobody is there
    assert [row["file"] for row in cache.info("ollama--tiny")] == sorted(NAMES - {"model.gguf", "params.json"})
    assert [row["finding"].partition(": ")[2] for row in cache.doctor() if row["check"] == "models"] == [
        "lacks model.gguf, params.json"
    ]


def test_hostile_manifests_cost_themselves_alone(cache: Cache, store: Path, tmp_path: Path) -> None:
    ollama_store(store, LAYERS)
    manifests = store / "manifests" / "registry.ollama.ai" / "library"
    good = (manifests / "tiny" / "latest").read_bytes()
    described = json.loads(good)
    outside = tmp_path / "outside"
    outside.write_bytes(good)
    layer = {"mediaType": "application/vnd.ollama.image.tensor", "digest": f"sha256:{WEIGHTS.sha256}", "size": 5}
    hostile = {
        "garbage": b"\xff\x00", "empty": b"", "list": b"[]", "deep": b"[" * 100_000, "huge": b" " * 5_000_000,
        "index": b'{"schemaVersion": 2, "manifests": []}',
        "up": json.dumps(described | {"layers": [layer | {"name": "../../up"}]}).encode(),
        "digest": json.dumps(described | {"layers": [layer | {"digest": "sha256:../../../etc/passwd"}]}).encode(),
        "size": json.dumps(described | {"layers": [layer | {"size": -1}]}).encode(),
    }  # fmt: skip
    for name, content in hostile.items():
        (manifests / name).mkdir()
        (manifests / name / "latest").write_bytes(content)
    (manifests / "link").mkdir()
    (manifests / "link" / "latest").symlink_to(outside)
    (manifests / "loop").symlink_to("loop")
    (manifests / "tiny" / "a tag").write_bytes(good)
    (manifests / "tiny" / ("2" * 64)).write_bytes(good)
    (manifests / "pipe").mkdir()
    os.mkfifo(manifests / "pipe" / "latest")
    (store / "manifests" / "short").write_bytes(good)
    before = snapshot(store)
    done = run("adopt", "ollama", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {Path(row["file"]).parent.name for row in rows if row["outcome"] == "left"} == {
        *hostile, "link", "library", "pipe", "tiny", "manifests",
    }  # fmt: skip
    assert [Path(row["file"]).name for row in rows if row["reason"] == "it is no name of a tag"] == ["2" * 64]
    assert {row["model"] for row in rows if row["outcome"] == "taken"} == {"ollama--tiny"}
    assert "Traceback" not in done.stderr
    assert snapshot(store) == before
    assert [row["model"] for row in cache.models()] == ["ollama--tiny"]


def test_a_store_with_more_manifests_than_anybody_has_is_read_to_a_bound(cache: Cache, store: Path) -> None:
    ollama_store(store, {"params": LAYERS["params"]})
    latest, last = store / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest", store / "manifests" / "z"
    last.mkdir()
    for number in range(MOST):
        os.link(latest, last / f"{number}")
    report = cache.adopt("ollama")
    assert Counter(row["outcome"] for row in report) == {"taken": 3, "left": MOST - 1 + 1}
    (told,) = [row for row in report if row["reason"] == f"only {MOST:,} of its manifests are looked at"]
    assert (told["file"], told["outcome"]) == (str(store / "manifests"), "left")


def test_what_modelcache_writes_for_ollama_is_adopted(cache: Cache, store: Path, tmp_path: Path) -> None:
    ollama_store(store, LAYERS)
    cache.adopt("ollama")
    cache.fetch("ollama:tiny", layout="ollama", output=tmp_path / "again")
    other = Cache(tmp_path / "other", tiers=())
    assert outcomes(other.adopt(tmp_path / "again")) == dict.fromkeys(NAMES, "taken")
    assert other.path("ollama:tiny")
    other.close()
