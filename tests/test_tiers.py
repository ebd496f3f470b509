"""Caches that are on the disk already are looked at before the network is asked, and never changed."""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, UsageError
from modelcache.store.intake import LEAST_LINKED, is_foreign
from modelcache.store.links import FICLONE
from modelcache.testing import Content, Hub, Origin
from tests.caches import Events, rot, run
from tests.foreign import hub_cache, ollama_partial, ollama_store, snapshot

CONFIG = Content.of(b'{"a": 1}')
WEIGHTS = Content.generated(LEAST_LINKED + 300_000, seed=1)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
MD5 = "md5:" + hashlib.md5(WEIGHTS.read(), usedforsecurity=False).hexdigest()
COMMIT = "1" * 40
REF = f"hf:org/name@{COMMIT}"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.gguf": WEIGHTS}) as origin:
        yield origin


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Where huggingface_hub keeps what it has, in these tests."""
    return tmp_path / "huggingface" / "hub"


def fetched_paths(hub: Hub) -> list[str]:
    return [seen.path for seen in hub.requests if "/resolve/" in seen.path]


def test_files_that_hugging_faces_cache_has_are_not_fetched_and_it_stays_as_it_was(
    hub: Hub, cache: Cache, theirs: Path
) -> None:
    hub_cache(theirs, FILES)
    before = snapshot(theirs)
    model = cache.fetch(REF)
    assert isinstance(model, mc.Model)
    assert fetched_paths(hub) == []
    assert {file.name: (file.status, file.source, file.verified) for file in model.files} == {
        "config.json": ("linked", "cache", "git-sha1"), "model.safetensors": ("linked", "cache", "sha256"),
    }  # fmt: skip
    for name, content in FILES.items():
        assert Path(model[name].path).read_bytes() == content.read()
    assert snapshot(theirs) == before
    hub.stop()
    assert {file.status for file in cache.fetch(REF).files} == {"hit"}  # type: ignore[union-attr]


def test_a_large_file_is_a_second_name_and_a_small_one_a_copy(hub: Hub, cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES)
    model = cache.fetch(REF)
    blob = repository / "blobs" / WEIGHTS.sha256
    if not os.path.samefile(model["model.safetensors"].path, blob):  # type: ignore[index]
        pytest.skip("this disk has reflinks")
    assert is_foreign(cache._runtime.shelf.layout, WEIGHTS.sha256, str(blob))
    assert not os.path.samefile(model["config.json"].path, repository / "snapshots" / COMMIT / "config.json")  # type: ignore[index]
    assert [row["check"] for row in cache.doctor() if row["check"] == "modes"] == []
    assert cache.remove("hf:org/name")[0]["size"] == CONFIG.size  # what the other tool has is not freed
    assert blob.read_bytes() == WEIGHTS.read()


def test_where_the_disk_can_it_is_a_reflink_and_nobody_elses(
    hub: Hub, cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    real, cloned = fcntl.ioctl, []

    def ioctl(fd: int, request: int, *arguments: Any) -> Any:
        if request != FICLONE:
            return real(fd, request, *arguments)
        os.pwrite(fd, os.pread(arguments[0], 1 << 30, 0), 0)
        return cloned.append(fd)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    path = cache.fetch(REF)["model.safetensors"].path  # type: ignore[index]
    assert len(cloned) == len(FILES)
    assert Path(path).read_bytes() == WEIGHTS.read()
    assert (os.stat(path).st_mode & 0o777, os.stat(blob).st_nlink) == (0o444, 1)
    assert not is_foreign(cache._runtime.shelf.layout, WEIGHTS.sha256, path)
    assert list(Path(cache.root).rglob("*.tmp")) == []


def test_what_a_group_may_not_read_is_copied_into_its_root(hub: Hub, tmp_path: Path, theirs: Path) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    blob.chmod(0o600)
    with closing(Cache(tmp_path / "ours", shared=True)) as cache:
        path = cache.fetch(REF)["model.safetensors"].path  # type: ignore[index]
    assert not os.path.samefile(path, blob)
    assert (os.stat(path).st_mode & 0o777, os.stat(blob).st_mode & 0o777) == (0o444, 0o600)


def test_a_foreign_file_that_its_owner_changes_is_noticed_and_fetched(hub: Hub, cache: Cache, theirs: Path) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    path = Path(cache.fetch(REF)["model.safetensors"].path)  # type: ignore[index]
    with blob.open("r+b") as file:
        file.write(b"changed")
    before = snapshot(theirs)
    again = cache.fetch(REF)
    assert isinstance(again, mc.Model)
    assert path.read_bytes() == WEIGHTS.read()
    assert again["model.safetensors"].status in ("hit", "repaired")
    assert snapshot(theirs) == before


def test_rot_in_a_foreign_file_is_found_and_repaired_without_touching_it(hub: Hub, cache: Cache, theirs: Path) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    path = Path(cache.fetch(REF)["model.safetensors"].path)  # type: ignore[index]
    rot(blob, 5)
    before = snapshot(theirs)
    findings = {row["file"]: row["finding"] for row in cache.verify("hf:org/name")}
    if os.path.samefile(path, blob):
        assert findings["model.safetensors"] == "corrupt"
        with pytest.raises(mc.ModelNotAvailableError):
            cache.path("hf:org/name")
    assert snapshot(theirs) == before
    cache.repair(["hf:org/name"])
    assert path.read_bytes() == WEIGHTS.read()
    assert snapshot(theirs) == before


def test_a_rotten_file_of_a_tier_is_passed_over_with_one_line(hub: Hub, cache: Cache, theirs: Path) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    rot(blob, 5)
    before, events = snapshot(theirs), Events()
    model = cache.fetch(REF, progress=events)
    assert [event["message"] for event in events.of("source_failed")] == [
        f"{os.path.realpath(blob)} is not what its name says: it is left alone"
    ]
    assert Path(model["model.safetensors"].path).read_bytes() == WEIGHTS.read()  # type: ignore[index]
    assert fetched_paths(hub) == [f"/org/name/resolve/{COMMIT}/model.safetensors"]
    assert snapshot(theirs) == before


def test_a_blob_that_repositories_share_is_found_through_two_links(hub: Hub, cache: Cache, theirs: Path) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    shared = theirs / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    (theirs / "blobs" / ".huggingface-shared-blobs").touch()
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    before = snapshot(theirs)
    cache.fetch(REF)
    assert fetched_paths(hub) == []
    assert snapshot(theirs) == before


def test_what_lies_outside_a_tier_or_is_no_file_is_not_there(hub: Hub, cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES)
    outside = theirs.parent / "outside.bin"
    outside.write_bytes(WEIGHTS.read())
    (repository / "blobs" / WEIGHTS.sha256).unlink()
    (repository / "blobs" / WEIGHTS.sha256).symlink_to(outside)
    small = next(path for path in (repository / "blobs").iterdir() if not path.is_symlink())
    small.unlink()
    os.mkfifo(small)
    cache.fetch(REF)
    assert len(fetched_paths(hub)) == 2
    for place in (repository / "blobs" / WEIGHTS.sha256, small):
        place.unlink()
        place.symlink_to(place.name)  # a link to itself
    cache.remove("hf:org/name")
    cache.fetch(REF)
    assert len(fetched_paths(hub)) == 4


def test_a_blob_of_ollama_serves_any_url_with_its_digest(origin: Origin, cache: Cache, tmp_path: Path) -> None:
    ollama_store(tmp_path / "ollama", {"model": WEIGHTS})
    before = snapshot(tmp_path / "ollama")
    file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256, output=tmp_path / "out.gguf")
    assert (file.status, file.source) == ("linked", "cache")
    assert (tmp_path / "out.gguf").read_bytes() == WEIGHTS.read()
    assert not os.path.samefile(tmp_path / "out.gguf", tmp_path / "ollama" / "blobs" / f"sha256-{WEIGHTS.sha256}")
    alone = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256, output=tmp_path / "alone.gguf", cache=False)
    assert alone.status == "linked"
    assert origin.requests == []
    assert snapshot(tmp_path / "ollama") == before


def test_further_roots_are_looked_at_in_the_order_of_the_setting(origin: Origin, tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "theirs")) as other:
        other.fetch(origin.url("model.gguf"), checksum=MD5)
    before, asked = snapshot(tmp_path / "theirs"), len(origin.requests)
    with closing(Cache(tmp_path / "mine", tiers=[str(tmp_path / "none"), str(tmp_path / "theirs")])) as cache:
        file = cache.fetch(origin.url("model.gguf"), checksum=MD5)
        assert isinstance(file, mc.File)
        assert (file.status, file.verified) == ("linked", "md5")
    assert len(origin.requests) == asked
    assert snapshot(tmp_path / "theirs") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_tier_on_a_file_system_that_is_read_only_is_copied_from(origin: Origin, tmp_path: Path) -> None:
    ollama_store(tmp_path / "theirs", {"model": WEIGHTS})
    place = tmp_path / "mounted"
    place.mkdir()
    for command in (["mount", "--bind", tmp_path / "theirs", place], ["mount", "-o", "remount,ro,bind", place]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        with closing(Cache(tmp_path / "mine", tiers=(str(place),))) as cache:
            file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256)
            assert isinstance(file, mc.File)
            assert file.status == "linked"
            assert os.stat(file.path).st_mode & 0o777 == 0o444
            assert not is_foreign(cache._runtime.shelf.layout, WEIGHTS.sha256, file.path)
        assert origin.requests == []
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_an_interrupted_download_of_ollama_is_gone_on_with(origin: Origin, cache: Cache, tmp_path: Path) -> None:
    half = WEIGHTS.size // 2
    portions = {0: (0, half, half), 1: (half, WEIGHTS.size - half, 100_000)}
    ollama_partial(tmp_path / "ollama", WEIGHTS, portions)
    before = snapshot(tmp_path / "ollama")
    file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256, size=WEIGHTS.size)
    assert isinstance(file, mc.File)
    assert (file.status, file.bytes_resumed) == ("resumed", half + 100_000)
    assert file.bytes_fetched == WEIGHTS.size - half - 100_000
    assert Path(file.path).read_bytes() == WEIGHTS.read()
    assert snapshot(tmp_path / "ollama") == before


def test_an_interrupted_download_that_lies_costs_one_clean_one(origin: Origin, cache: Cache, tmp_path: Path) -> None:
    data = ollama_partial(tmp_path / "ollama", WEIGHTS, {0: (0, WEIGHTS.size, 500_000)})
    rot(data, 7)
    file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256, size=WEIGHTS.size)
    assert Path(file.path).read_bytes() == WEIGHTS.read()


@pytest.mark.parametrize(
    "told",
    [
        "garbage", "[]", '{"N": 1, "Offset": 0, "Size": 9, "Completed": 9}',
        '{"N": 0, "Offset": 5, "Size": 9, "Completed": 9}', '{"N": 0, "Offset": 0, "Size": -1, "Completed": -1}',
        '{"N": 0, "Offset": 0, "Size": 1348576, "Completed": 99999999999}',
        '{"N": 0, "Offset": 0, "Size": 12, "Completed": 12}',
        "[" * 4000,
    ],
)  # fmt: skip
def test_portions_that_do_not_make_the_file_are_not_believed(
    origin: Origin, cache: Cache, tmp_path: Path, told: str
) -> None:
    data = ollama_partial(tmp_path / "ollama", WEIGHTS, {0: (0, WEIGHTS.size, WEIGHTS.size)})
    data.with_name(f"{data.name}-0").write_text(told)
    file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256, size=WEIGHTS.size)
    assert isinstance(file, mc.File)
    assert (file.status, file.bytes_resumed) == ("fetched", 0)


def test_no_tiers_are_looked_at_where_the_setting_names_none(origin: Origin, tmp_path: Path) -> None:
    ollama_store(tmp_path / "ollama", {"model": WEIGHTS})
    with closing(Cache(tmp_path / "mine", tiers=())) as cache:
        file = cache.fetch(origin.url("model.gguf"), sha256=WEIGHTS.sha256)
    assert isinstance(file, mc.File)
    assert file.status == "fetched"


def test_the_setting_is_a_list_in_the_file_and_a_path_in_the_environment(origin: Origin, tmp_path: Path) -> None:
    ollama_store(tmp_path / "theirs", {"model": WEIGHTS})
    url, sha256 = origin.url("model.gguf"), f"--sha256={WEIGHTS.sha256}"
    done = run(
        "fetch", url, sha256, MODELCACHE_TIERS=f"/nowhere:{tmp_path / 'theirs'}", MODELCACHE_HOME=str(tmp_path / "a")
    )
    assert done.returncode == 0, done.stderr
    config = tmp_path / "modelcache.toml"
    config.write_text(f'tiers = ["hf", "{tmp_path / "theirs"}"]')
    done = run("fetch", url, sha256, MODELCACHE_CONFIG=str(config), MODELCACHE_HOME=str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr
    assert origin.requests == []
    for wrong in ("here", 5, [5]):
        with pytest.raises(UsageError, match="tiers"):
            Cache(tmp_path / "c", tiers=wrong if not isinstance(wrong, str) else [wrong])


def test_a_file_that_no_digest_is_known_of_is_looked_for_nowhere(cache: Cache, tmp_path: Path) -> None:
    ollama_store(tmp_path / "ollama", {"model": WEIGHTS})
    with pytest.raises(AllSourcesFailedError):
        cache.fetch("http://127.0.0.1:9/model.gguf")


def test_the_doctor_names_a_tier_that_is_not_there(tmp_path: Path) -> None:
    def told(*tiers: str) -> list[str]:
        with closing(Cache(tmp_path / "mine", tiers=tiers)) as cache:
            return [row["finding"] for row in cache.doctor() if row["check"] == "tiers"]

    place = str(tmp_path / "theirs")
    assert told("hf", "ollama") == []
    assert told(place) == [f"{place} is not there, or no folder"]
    ollama_store(Path(place), {"model": WEIGHTS})
    assert told(place) == []
