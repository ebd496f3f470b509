"""Models of OCI registries and of Ollama: names, layers, versions, what is said, and Ollama's own folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import ModelCacheError
from modelcache.refs import Ref
from modelcache.testing import Content, CutAt, Fault, Header, Hold, Status
from tests.caches import Events, run
from tests.registries import INDEX, Registry, descriptor, digest_of, manifest_of

MODEL = Content.generated(3_000_000, seed=1)
TEMPLATE, PARAMS, LICENSE, OTHER = (
    Content.of(text) for text in (b"{{ .Prompt }}", b'{"stop": []}', b"MIT", b"Apache-2.0")
)
CONFIG = Content.of(b'{"model_format": "gguf"}')
LAYERS = {"model": MODEL, "template": TEMPLATE, "params": PARAMS, "license": LICENSE}
TITLE = "org.opencontainers.image.title"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry() as registry:
        registry.push_model("library/tiny", "latest", LAYERS, CONFIG)
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", registry.host)
        yield registry


def fetched(cache: Cache, ref: str) -> mc.Model:
    model = cache.fetch(ref)
    assert isinstance(model, mc.Model)
    return model


def failed(cache: Cache, ref: str) -> ModelCacheError:
    """What is said in one line; nothing of it is here."""
    with pytest.raises(ModelCacheError) as error:
        cache.fetch(ref)
    assert len(error.value.line().splitlines()) == 1
    assert not list(Path(cache.root, "models").rglob("*"))
    assert not [path for path in Path(cache.root, "blobs").rglob("*") if path.is_file()]
    return error.value


# ---- what a model of Ollama consists of


def test_the_files_of_a_model_of_ollama_are_called_by_their_kind(registry: Registry, cache: Cache) -> None:
    digest = registry.push_model("library/tiny", "1b", LAYERS, CONFIG)
    model = fetched(cache, "ollama:tiny:1b")
    assert (model.id, model.version) == ("ollama--tiny", digest.removeprefix("sha256:"))
    assert {file.name: file.verified for file in model.files} == dict.fromkeys(
        ["license", "model.gguf", "oci-config.json", "oci-manifest.json", "params.json", "template"], "sha256"
    )
    assert Path(model["model.gguf"].path).read_bytes() == MODEL.read()
    assert digest_of(Path(model["oci-manifest.json"].path).read_bytes()) == digest
    assert cache.path("ollama:tiny:1b") == model.path == cache.path(f"ollama:tiny@{digest}")


def test_the_same_by_the_name_of_its_registry(registry: Registry, cache: Cache) -> None:
    model = fetched(cache, registry.ref())
    assert model.id == f"oci--127.0.0.1-{registry.port}--library--tiny"
    assert model["model.gguf"].sha256 == MODEL.sha256
    again = fetched(cache, "ollama:tiny")
    assert {file.status for file in again.files} == {"linked"}


def test_its_size_is_known_before_the_first_byte(registry: Registry, cache: Cache) -> None:
    events = Events()
    cache.fetch("ollama:tiny", progress=events)
    (pulled,) = events.of("manifest_pulled")
    manifest = Path(cache.path("ollama:tiny"), "oci-manifest.json").stat().st_size
    assert pulled["total_size"] == sum(each.size for each in (*LAYERS.values(), CONFIG)) + manifest
    assert pulled["layers"] == 6
    (resolving,) = events.of("resolving")
    assert resolving["message"] == f"Pulling manifest from {registry.host}..."
    assert {event["source"] for event in events.progress} <= {"", "oci", "cache"}


def test_while_layers_come_it_says_so(registry: Registry, cache: Cache, one_connection: None) -> None:
    hold = Hold(1_000_000)
    registry.faults(hold, path=f"v2/library/tiny/blobs/sha256:{MODEL.sha256}")
    download = cache.fetch("ollama:tiny", wait=False)
    assert hold.reached.wait(60)
    assert download.state_text == "Downloading model layers..."
    assert download.to_json()["manifest_pulled"] is True
    hold.release.set()
    assert download.result(60)


def test_two_licenses_are_two_files(registry: Registry, cache: Cache) -> None:
    kind = "application/vnd.ollama.image.license"
    licenses = [descriptor(LICENSE, kind), descriptor(OTHER, kind)]
    registry.push("me/mine", "latest", manifest_of(licenses, CONFIG), LICENSE, OTHER, CONFIG)
    model = fetched(cache, "ollama:me/mine")
    assert Path(model["license"].path).read_bytes() == LICENSE.read()
    assert Path(model["license-2"].path).read_bytes() == OTHER.read()


def test_two_tags_that_share_a_layer_download_it_once(registry: Registry, cache: Cache) -> None:
    registry.push_model("library/tiny", "new", LAYERS | {"license": OTHER}, CONFIG)
    fetched(cache, "ollama:tiny")
    model = fetched(cache, "ollama:tiny:new")
    assert {file.name for file in model.files if file.status == "fetched"} == {"license", "oci-manifest.json"}
    assert len(registry.asked(MODEL.sha256)) == 1


# ---- what another image consists of


def test_a_layer_is_called_what_its_title_says(registry: Registry, cache: Cache) -> None:
    def titled(content: Content, title: str) -> dict[str, object]:
        return descriptor(content, "application/octet-stream", annotations={TITLE: title})

    listed = [titled(MODEL, "onnx/model.onnx"), titled(PARAMS, "config.json"), descriptor(LICENSE, "text/plain")]
    registry.push("a/b/c", "v1", manifest_of([*listed, listed[0]], CONFIG), MODEL, PARAMS, LICENSE, CONFIG)
    model = fetched(cache, registry.ref("a/b/c:v1"))
    assert {file.name for file in model.files} == {
        "onnx/model.onnx", "config.json", f"sha256-{LICENSE.sha256}", "oci-config.json", "oci-manifest.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "title",
    ["../x", "/etc/passwd", "a/../../b", "oci-manifest.json", "OCI-config.json", "a\nb", ".manifest.json", "C:\\x"],
)
def test_a_title_chooses_no_place_outside_and_none_twice(registry: Registry, cache: Cache, title: str) -> None:
    layer = descriptor(MODEL, "application/octet-stream", annotations={TITLE: title})
    registry.push("a/b", "latest", manifest_of([layer], CONFIG), MODEL, CONFIG)
    error = failed(cache, registry.ref("a/b"))
    assert (error.kind, error.exit_code) == ("source", 5)
    assert "its manifest cannot be used" in error.message
    assert registry.asked("/blobs/") == []


def test_two_layers_of_one_title_are_refused(registry: Registry, cache: Cache) -> None:
    layers = [descriptor(each, "x/y", annotations={TITLE: title})
              for each, title in ((MODEL, "model"), (LICENSE, "Model"))]  # fmt: skip
    registry.push("a/b", "latest", manifest_of(layers, CONFIG), MODEL, LICENSE, CONFIG)
    assert "are one name where case does not count" in failed(cache, registry.ref("a/b")).message


def test_of_an_index_its_one_manifest_is_meant(registry: Registry, cache: Cache) -> None:
    manifest = registry.push_model("library/tiny", "only", LAYERS, CONFIG)
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries = [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": 1},
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "sha256:" + "0" * 64,
            "platform": unknown,
        },
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    version = registry.push("library/tiny", "index", index)
    model = fetched(cache, "ollama:tiny:index")
    assert f"sha256:{model.version}" == version
    assert digest_of(Path(model["oci-manifest.json"].path).read_bytes()) == manifest


def test_of_several_manifests_the_user_has_to_name_one(registry: Registry, cache: Cache) -> None:
    digests = [registry.push_model("library/tiny", tag, {"model": MODEL, "license": text}, CONFIG)
               for tag, text in (("a", LICENSE), ("b", OTHER))]  # fmt: skip
    entries = [{"digest": digest, "platform": {"os": "linux", "architecture": arch}}
               for digest, arch in zip(digests, ("amd64", "arm64"), strict=True)]  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    registry.push("library/tiny", "many", index)
    told = failed(cache, "ollama:tiny:many").line()
    assert f"name one by its digest: @{digests[0]} for linux/amd64, @{digests[1]} for linux/arm64" in told
    assert fetched(cache, f"ollama:tiny@{digests[1]}").version == digests[1].removeprefix("sha256:")


# ---- versions


def test_a_tag_that_moved_is_another_version(registry: Registry, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetched(cache, "ollama:tiny")
    registry.push_model("library/tiny", "latest", {"model": Content.of(b"GGUF new")}, CONFIG)
    assert fetched(cache, "ollama:tiny").version == first.version
    monkeypatch.setenv("MODELCACHE_MANIFEST_TTL", "0")
    second = fetched(Cache(cache.root), "ollama:tiny")
    assert second.version != first.version
    assert Path(second["model.gguf"].path).read_bytes() == b"GGUF new"


def test_a_pinned_ref_is_asked_for_by_its_digest_and_later_not_at_all(registry: Registry, cache: Cache) -> None:
    digest = registry.push_model("library/tiny", "x", LAYERS, CONFIG)
    assert fetched(cache, f"ollama:tiny@{digest}").version == digest.removeprefix("sha256:")
    assert registry.asked("/manifests/") == [f"/v2/library/tiny/manifests/{digest}"]
    before = len(registry.requests)
    fetched(cache, f"ollama:tiny@{digest}")
    assert len(registry.requests) == before


def test_a_manifest_that_is_another_than_its_digest_is_refused(registry: Registry, cache: Cache) -> None:
    digest = registry.push_model("library/tiny", "x", LAYERS, CONFIG)
    registry._manifests["library/tiny", digest] += b" "
    for ref in (f"ollama:tiny@{digest}", "ollama:tiny"):
        error = failed(cache, ref)
        assert (error.kind, error.exit_code) == ("integrity", 3)
        assert f"the manifest that {registry.host} sent has not the digest 'sha256:" in error.message
        registry.faults(Header("Docker-Content-Digest", "sha256:" + "0" * 64), path="v2/library/tiny/manifests/latest")


# ---- what is said when it does not work


def test_a_wrong_tag_and_a_missing_repository_say_so(registry: Registry, cache: Cache) -> None:
    for ref, tag in (("ollama:tiny:9b", "9b"), ("ollama:none", "latest"), ("ollama:me/none:q4", "q4")):
        error = failed(cache, ref)
        base = Ref.parse(ref).base
        assert error.line() == f"{base} has no {tag} at {registry.host}; check the name and the tag"
        assert error.exit_code == 4
    done = run("fetch", "ollama:none", "--quiet")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (4, "", 1)


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (b"", "it sent an empty body"),
        (b"<html>", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it is no manifest of version 2"),
        (b'{"schemaVersion": 1}', "it is no manifest of version 2"),
        (b'{"schemaVersion": 2}', "its layers are malformed"),
        (b'{"schemaVersion": 2, "layers": [], "config": {}}', "it lists no layers, or no configuration"),
        (b'{"schemaVersion": 2, "layers": [1], "config": {}}', "its layers are malformed"),
        (b'{"schemaVersion": 2, "manifests": []}', "it is an index, and none of its manifests has layers"),
        (manifest_of([descriptor(MODEL, "x") | {"size": -1}], CONFIG), "is not a number of bytes"),
        (manifest_of([descriptor(MODEL, "x") | {"size": True}], CONFIG), "is not a number of bytes"),
        (manifest_of([descriptor(MODEL, "x") | {"size": 2**63 - 1}], CONFIG), "larger than any disk"),
        (manifest_of([descriptor(MODEL, "x") | {"digest": "sha256:../../x"}], CONFIG), "is no SHA-256 digest"),
        (manifest_of([descriptor(MODEL, "x") | {"digest": "sha512:" + "a" * 128}], CONFIG), "is no SHA-256 digest"),
        (manifest_of([descriptor(MODEL, "x") | {"digest": "sha256:" + "A" * 64}], CONFIG), "is no SHA-256 digest"),
        (b'{"schemaVersion": 2, "a": "' + b"x" * (4 << 20) + b'"}', "longer than 4,194,304 bytes"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_in_one_line(
    registry: Registry, cache: Cache, manifest: bytes, told: str
) -> None:
    registry.push("a/b", "latest", manifest)
    error = failed(cache, registry.ref("a/b"))
    assert told in error.message
    assert (error.kind, error.exit_code) == ("source", 5)


@pytest.mark.parametrize("fault", [Status(503, times=1), CutAt(100, times=1)])
def test_a_manifest_that_does_not_come_is_asked_for_again(registry: Registry, cache: Cache, fault: Fault) -> None:
    registry.faults(fault, path="v2/library/tiny/manifests/latest")
    assert fetched(cache, "ollama:tiny")


@pytest.mark.parametrize("value", ["http://x", "h/p", "u:p@h", "", "h h"])
def test_a_registry_for_ollama_is_a_host(cache: Cache, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", value or "/")
    with pytest.raises(mc.UsageError, match="MODELCACHE_OLLAMA_REGISTRY is the host of a registry"):
        cache.fetch("ollama:m")


# ---- layers


def test_a_cut_layer_is_gone_on_with(registry: Registry, cache: Cache, one_connection: None) -> None:
    blob = f"v2/library/tiny/blobs/sha256:{MODEL.sha256}"
    registry.faults(CutAt(1_000_000, times=1), path=blob)
    model = fetched(cache, "ollama:tiny")
    assert model["model.gguf"].bytes_fetched == MODEL.size
    ranges = [seen.range for seen in registry.requests if seen.path == "/" + blob]
    assert ranges == [None, "bytes=1000000-"]
    assert not any("if-range" in seen.headers for seen in registry.requests)


def test_a_layer_that_is_shorter_than_its_manifest_says_is_refused(registry: Registry, cache: Cache) -> None:
    layer = descriptor(MODEL, "application/vnd.ollama.image.model") | {"size": MODEL.size + 5}
    registry.push("library/long", "latest", manifest_of([layer], CONFIG), MODEL, CONFIG)
    with pytest.raises(ModelCacheError) as error:
        cache.fetch("ollama:long")
    assert error.value.exit_code == 3
    assert not list(Path(cache.root, "models").rglob("model.gguf"))


def test_what_has_rotted_is_repaired_from_the_registry_and_the_manifest_from_its_record(
    registry: Registry, cache: Cache
) -> None:
    from tests.caches import rot

    model = fetched(cache, "ollama:tiny")
    rot(model["model.gguf"].path, 5)
    rot(model["oci-manifest.json"].path, 5)
    before = len(registry.asked("/manifests/"))
    rows = {row["file"]: row["source"] for row in cache.repair(["ollama:tiny"]) if row["repaired"]}
    assert set(rows) == {"model.gguf", "oci-manifest.json"}
    assert len(registry.asked("/manifests/")) == before
    assert {row["finding"] for row in cache.verify("ollama:tiny")} == {"whole"}


def test_one_layer_can_be_had_alone(registry: Registry, cache: Cache, tmp_path: Path) -> None:
    model = cache.fetch("ollama:tiny", files="*.gguf", cache=False, output=tmp_path / "out")
    assert isinstance(model, mc.Model)
    assert sorted(os.listdir(tmp_path / "out")) == [".manifest.json", "model.gguf"]
    assert len(registry.asked("/blobs/")) == 1


# ---- Ollama's own folder


def test_a_model_is_written_as_ollama_keeps_it(registry: Registry, cache: Cache, tmp_path: Path) -> None:
    digest = registry.push_model("library/tiny", "1b", LAYERS, CONFIG)
    out = tmp_path / "ollama"
    model = cache.fetch("ollama:tiny:1b", layout="ollama", output=out)
    assert os.fspath(model) == str(out)
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    blobs = {f"blobs/sha256-{each.sha256}" for each in (*LAYERS.values(), CONFIG)}
    assert set(files) == blobs | {"manifests/registry.ollama.ai/library/tiny/1b"}
    assert digest_of(files["manifests/registry.ollama.ai/library/tiny/1b"].read_bytes()) == digest
    for name in blobs:
        assert "blobs/sha256-" + digest_of(files[name].read_bytes())[7:] == name
        assert files[name].stat().st_nlink == 1


def test_what_is_wrong_in_ollamas_folder_is_replaced_and_what_is_right_stays(
    registry: Registry, cache: Cache, tmp_path: Path
) -> None:
    cache.fetch("ollama:tiny", layout="ollama", output=tmp_path / "o")
    right, wrong = (tmp_path / "o" / "blobs" / f"sha256-{each.sha256}" for each in (MODEL, LICENSE))
    before = right.stat().st_ino
    wrong.write_bytes(b"M1T")
    cache.fetch("ollama:tiny", layout="ollama", output=tmp_path / "o")
    assert (wrong.read_bytes(), right.stat().st_ino) == (LICENSE.read(), before)


def test_the_manifest_comes_last(registry: Registry, cache: Cache, tmp_path: Path) -> None:
    out = tmp_path / "o"
    (out / "blobs" / f"sha256-{LICENSE.sha256}").mkdir(parents=True)
    with pytest.raises(mc.StoreError):
        cache.fetch("ollama:tiny", layout="ollama", output=out)
    assert not (out / "manifests").exists()


def test_the_layout_by_the_command(registry: Registry, tmp_path: Path) -> None:
    done = run("fetch", "ollama:me/mine:q4", "--layout", "ollama", "--output", str(tmp_path / "o"), "--quiet")
    assert done.returncode == 4
    registry.push_model("me/mine", "q4", LAYERS, CONFIG)
    done = run("fetch", "ollama:me/mine:q4", "--layout", "ollama", "--output", str(tmp_path / "o"), "--quiet")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'o'}\n")
    assert (tmp_path / "o/manifests/registry.ollama.ai/me/mine/q4").is_file()
    done = run("fetch", registry.ref("me/mine:q4"), "--layout", "ollama", "--output", str(tmp_path / "o"), "--quiet")
    assert (tmp_path / f"o/manifests/{registry.host}/me/mine/q4").is_file()


@pytest.mark.parametrize(
    "ref", ["oci://h/a", "oci://h/a/b/c", "hf:org/name", "https://h/x", f"ollama:m@sha256:{'a' * 64}", "whisper"]
)
def test_what_ollama_has_no_name_for_has_no_layout(cache: Cache, tmp_path: Path, ref: str) -> None:
    with pytest.raises(mc.UsageError, match="has no name in Ollama"):
        cache.fetch(ref, layout="ollama", output=tmp_path / "o")
    for more in ({"layout": "docker", "output": "o"}, {"layout": "ollama"}, {"layout": "ollama", "cache": False}):
        with pytest.raises(mc.UsageError):
            cache.fetch("ollama:m", **more)


def test_what_came_in_a_bundle_is_written_as_ollama_keeps_it_without_its_registry(
    registry: Registry, cache: Cache, tmp_path: Path
) -> None:
    cache.fetch("ollama:tiny")
    cache.export_bundle(["ollama:tiny"], tmp_path / "w.tar")
    registry.stop()
    other = Cache(tmp_path / "other")
    other.import_bundle(tmp_path / "w.tar")
    other.fetch("ollama:tiny", layout="ollama", output=tmp_path / "o")
    assert (tmp_path / "o/manifests/registry.ollama.ai/library/tiny/latest").is_file()
    other.close()
