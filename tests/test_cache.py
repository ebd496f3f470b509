"""What a user asks of the cache: one call gives a verified path, and nothing is fetched twice (product A, B, C)."""

import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from caches import Events, entry_of, manifest_of, partials, rot, run, start, written

import modelcache
from modelcache.caching import Cache
from modelcache.errors import (
    AllSourcesFailedError,
    LockedError,
    ModelCacheError,
    ModelNotAvailableError,
    PausedError,
    StoreError,
    UsageError,
    VerificationError,
)
from modelcache.events import now_ms
from modelcache.install import install
from modelcache.model import Digest, Manifest
from modelcache.order import Fetched, Order
from modelcache.outcome import File, Model
from modelcache.store.installed import Stamp
from modelcache.store.layout import Layout
from modelcache.testing import Content, Corrupt, Cut, Hold, NeedsHeader, Origin, Status

SMALL = Content.generated(300_000, seed=1)
OTHER = Content.generated(200_000, seed=2)
BIG = Content.generated(9_000_000, seed=3)  # three pieces
PIECE = 4 << 20


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"small.gguf": SMALL, "other.gguf": OTHER, "big.gguf": BIG}) as origin:
        yield origin


def data(file: File | Model) -> bytes:
    return Path(file).read_bytes()


# -- fetching, and finding ------------------------------------------------------------------------------------------


def test_a_fetched_file_is_a_path_to_verified_bytes(cache: Cache, origin: Origin) -> None:
    file = cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256)
    assert isinstance(file, File)
    assert data(file) == SMALL.read()
    assert (file.status, file.verified, file.source, file.bytes_fetched) == ("fetched", "sha256", "http", SMALL.size)
    assert (file.size, file.sha256, file.name, str(file)) == (SMALL.size, SMALL.sha256, "small.gguf", file.path)


def test_what_is_here_is_not_fetched_again(cache: Cache, cache_root: Path, origin: Origin) -> None:
    url = origin.url("small.gguf")
    first = cache.fetch(url, sha256=SMALL.sha256)
    for again in (cache.fetch(url, sha256=SMALL.sha256), Cache(cache_root).fetch(url), cache.fetch(url, strict=True)):
        assert (again.path, again.status, again.bytes_fetched) == (first.path, "hit", 0)
    assert len(origin.requests) == 1


def test_making_a_cache_does_nothing(cache_root: Path) -> None:
    Cache(cache_root).models()
    with pytest.raises(ModelNotAvailableError):
        Cache(cache_root).path("m")
    assert not cache_root.exists()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "md5", "blake3"])
def test_any_digest_verifies_and_is_enough_for_a_hit(cache: Cache, origin: Origin, algorithm: str) -> None:
    value = blake3(SMALL.read()) if algorithm == "blake3" else hashlib.new(algorithm, SMALL.read())
    checksum = f"{algorithm}:{value.hexdigest()}"
    assert cache.fetch(origin.url("small.gguf"), checksum=checksum).verified == algorithm
    again = cache.fetch(origin.url("small.gguf"), checksum=checksum)
    assert (again.status, again.verified, len(origin.requests)) == ("hit", algorithm, 1)
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("small.gguf"), checksum=f"{algorithm}:{value.hexdigest()[:-4]}0000")
    assert failure.value.exit_code == 3


def test_digests_that_contradict_are_nobodys_rot(cache: Cache, cache_root: Path, origin: Origin) -> None:
    url = origin.url("small.gguf")
    cache.fetch(url, sha256=SMALL.sha256)
    with pytest.raises(VerificationError, match="with that sha256 is not md5"):
        cache.fetch(url, sha256=SMALL.sha256, checksum="md5:" + "0" * 32)
    with pytest.raises(VerificationError, match="300,000 bytes, not 5"):
        cache.fetch(url, sha256=SMALL.sha256, size=5)
    with pytest.raises(UsageError, match="contradict"):
        cache.fetch(url, sha256=SMALL.sha256, checksum="sha256:" + "0" * 64)
    assert not (cache_root / "quarantine").exists()
    assert cache.fetch(url).status == "hit"
    assert len(origin.requests) == 1


def test_the_size_is_checked_before_the_bytes(cache: Cache, origin: Origin) -> None:
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("small.gguf"), sha256=OTHER.sha256, size=7)
    assert "300000 bytes promised, 7 expected" in failure.value.message
    assert failure.value.exit_code != 0
    assert not list(Path(cache.root, "models").rglob("*.gguf"))


def test_two_models_share_the_blob_of_a_file(cache: Cache, origin: Origin) -> None:
    origin.put("same.gguf", SMALL)
    one = cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256)
    two = cache.fetch(origin.url("same.gguf"), sha256=SMALL.sha256)
    assert two.status == "linked"
    assert os.path.samefile(one, two)
    assert len(origin.requests) == 1


def test_they_share_it_also_if_that_is_found_out_late(cache: Cache, origin: Origin) -> None:
    origin.put("same.gguf", SMALL)
    one, two = (cache.fetch(origin.url(name)) for name in ("small.gguf", "same.gguf"))
    assert os.path.samefile(one, two)
    assert os.stat(one).st_nlink == 3
    assert not partials(cache)


def test_a_signed_url_is_the_same_file_as_before(cache: Cache, origin: Origin) -> None:
    first = cache.fetch(origin.url("small.gguf") + "?X-Amz-Signature=one&v=1")
    assert cache.fetch(origin.url("small.gguf") + "?X-Amz-Signature=two&v=1").path == first.path
    assert cache.fetch(origin.url("small.gguf") + "?v=2").path != first.path


def test_a_resume_fetches_only_the_rest(cache: Cache, origin: Origin) -> None:
    origin.faults(Cut(6_000_000, times=1), Status(404, after=1))
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    kept = failure.value.kept_bytes
    origin.heal()
    file = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    assert kept > 0
    assert (file.status, file.bytes_resumed, file.bytes_fetched) == ("resumed", kept, BIG.size - kept)
    assert data(file) == BIG.read()


def test_when_all_fail_one_error_tells_of_each(cache: Cache, origin: Origin) -> None:
    origin.faults(Status(404), path="small.gguf")
    origin.faults(Corrupt((5,)), path="wrong.gguf")
    origin.put("wrong.gguf", SMALL)
    with Origin({}) as dead:
        gone = dead.url("x")
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256, mirrors=[gone, origin.url("wrong.gguf")])
    assert [one.source for one in failure.value.failures] == [origin.url("small.gguf"), gone, origin.url("wrong.gguf")]
    assert [one.kind for one in failure.value.failures] == ["not_found", "network", "integrity"]
    assert failure.value.exit_code == 3  # the gravest
    assert failure.value.next_step
    assert all(one.source in failure.value.line() for one in failure.value.failures)


def test_what_is_not_there_is_told_once_what_to_do_about(cache: Cache, origin: Origin) -> None:
    for status, advice in ((404, "check the address"), (401, "pass --header")):
        origin.heal()
        origin.faults(Status(status))
        with pytest.raises(AllSourcesFailedError) as failure:
            cache.fetch(origin.url("small.gguf"))
        line = failure.value.line()
        assert (line.count(advice), line.count("check the address")) == (1, 1 if status == 404 else 0)
        assert line.endswith(", or name another --mirror")


def test_a_wrong_digest_given_is_told_with_the_one_that_came_twice(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(url, sha256=OTHER.sha256)
    (one,) = failure.value.failures
    assert (one.source, one.other_file) == (url, SMALL.sha256)
    assert failure.value.line().endswith(
        f"is not sha256 {OTHER.sha256} but {SMALL.sha256}, twice the same); nothing of it is kept: "
        "check the digest that was expected, or name another --mirror"
    )
    assert len(origin.requests) == 2
    origin.put("small.gguf", OTHER)
    assert cache.fetch(url, sha256=OTHER.sha256).status == "fetched"


def test_archives_are_unpacked_beside_the_model_or_where_wanted(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    origin.put("a.bin.gz", gzip.compress(b"inside"))
    file = cache.fetch(origin.url("a.bin.gz"), unpack=True)
    assert isinstance(file, File)
    assert os.fspath(file) == file.unpacked == str(Path(file.path).parent / "a.bin")
    assert Path(file, "a.bin").read_bytes() == b"inside"
    assert cache.fetch(origin.url("a.bin.gz"), unpack=True).unpacked == file.unpacked  # type: ignore[union-attr]
    assert Path(cache.fetch(origin.url("a.bin.gz"), unpack=True, output=tmp_path / "new"), "a.bin").exists()
    with pytest.raises(UsageError, match="there already"):
        cache.fetch(origin.url("a.bin.gz"), unpack=True, output=tmp_path / "new")
    with pytest.raises(UsageError, match="kind of file"):
        cache.fetch(origin.url("small.gguf"), unpack=True)


# -- nothing to verify against --------------------------------------------------------------------------------------


def test_without_a_digest_the_first_one_is_recorded_and_must_match(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    first = cache.fetch(url)
    assert first.verified == "unverified"
    assert (cache.fetch(url).verified, cache.fetch(url, strict=True).verified) == ("unverified", "unverified")
    origin.put("small.gguf", OTHER)
    rot(first.path, 7)
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(url, strict=True)
    assert failure.value.exit_code == 3
    assert "changed since it was first fetched" in failure.value.next_step
    cache.remove(url)
    assert data(cache.fetch(url)) == OTHER.read()


def test_the_recorded_digest_outlives_the_record_of_the_model(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    file = cache.fetch(url)
    Path(file.path).with_name(".manifest.json").write_text("garbage")
    assert cache.fetch(url).verified == "unverified"
    assert len(origin.requests) == 1


def test_a_digest_given_once_vouches_for_the_url_from_then_on(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    assert cache.fetch(url).verified == "unverified"
    assert cache.fetch(url, sha256=SMALL.sha256).verified == "sha256"
    assert cache.fetch(url).verified == "sha256"
    assert cache.info(url).rows[0]["proof"] == "given"
    assert len(origin.requests) == 1


def test_a_refetch_by_id_vouches_for_nothing_new(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    cache.fetch(url)
    model = cache.models().rows[0]["model"]
    again = cache.fetch(model, strict=True)
    assert isinstance(again, Model)
    assert not again.is_verified
    assert cache.info(url).rows[0]["proof"] == "first_use"


def test_require_digest_refuses_what_only_last_time_vouches_for(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    with pytest.raises(VerificationError, match="nothing is known"):
        cache.fetch(url, require_digest=True)
    assert not origin.requests
    cache.fetch(url)
    with pytest.raises(VerificationError, match="nothing is known"):
        cache.fetch(url, require_digest=True)
    assert cache.fetch(url, require_digest=True, sha256=SMALL.sha256).status == "hit"


# -- models of several files ----------------------------------------------------------------------------------------

FILES = {"config.json": OTHER, "onnx/model.bin": SMALL}


@pytest.fixture
def model(origin: Origin) -> Manifest:
    for path, content in FILES.items():
        origin.put(path, content)
    return manifest_of(origin, FILES)


def test_a_manifest_gives_a_folder_with_its_files(cache: Cache, model: Manifest) -> None:
    found = cache.fetch(model)
    assert {file.name: data(file) for file in found.files} == {path: file.read() for path, file in FILES.items()}
    assert (found.id, found.version, os.fspath(found)) == ("m", "1", cache.path("m"))
    assert found["onnx/model.bin"].path == os.path.join(found.path, "onnx", "model.bin")
    with pytest.raises(KeyError):
        found["absent"]
    assert [file.status for file in cache.fetch("m").files] == ["hit", "hit"]  # type: ignore[union-attr]


def test_one_failed_file_costs_only_itself(cache: Cache, origin: Origin, model: Manifest) -> None:
    origin.faults(Status(404), path="config.json")
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(model)
    with pytest.raises(ModelNotAvailableError, match="error"):
        cache.path("m")
    with pytest.raises(ModelNotAvailableError, match="m@1 is not available: error"):
        cache.fetch("m")  # its record does not know where the rest is
    origin.heal()
    asked = len(origin.requests)
    assert {file.name: file.status for file in cache.fetch(model).files} == {
        "config.json": "fetched", "onnx/model.bin": "hit",
    }  # fmt: skip
    assert [seen.path for seen in origin.requests[asked:]] == ["/config.json"]
    assert cache.path("m")


def test_when_files_fail_one_line_tells_how_many_and_what_is_kept(cache: Cache, origin: Origin) -> None:
    files = {f"{number}.bin": Content.generated(1000, seed=number) for number in range(6)}
    for path, content in files.items():
        origin.put(path, content)
    origin.faults(Status(404), path="0.bin")
    origin.faults(Corrupt((7,)), path="3.bin")
    manifest = manifest_of(origin, files)
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(manifest)
    error = failure.value
    assert (error.exit_code, error.kept_files, error.kept_bytes) == (3, 4, 0)  # wrong bytes are graver than none
    assert re.fullmatch(
        r"2 of 6 files failed: 3\.bin could not be fetched \(.*\); 0\.bin could not be fetched \(.*\); "
        "4 files kept; .*, then run the same command again to go on",
        error.line(),
    )
    assert str(error) == error.message
    origin.heal()
    before = len(origin.requests)
    cache.fetch(manifest)
    assert {seen.path for seen in origin.requests[before:]} == {"/0.bin", "/3.bin"}


def test_only_what_the_next_run_finds_counts_as_kept(cache: Cache, origin: Origin) -> None:
    origin.faults(Status(404), path="other.gguf")
    with pytest.raises(AllSourcesFailedError, match="1 of 2 files failed") as failure:
        cache.fetch(bare(origin, "small.gguf", "other.gguf"))
    assert failure.value.kept_files == 0
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(bare(origin, "small.gguf", "other.gguf", version="1"))
    assert failure.value.kept_files == 1


def test_naming_many_small_files_can_be_given_up(cache: Cache, model: Manifest) -> None:
    cache.fetch(model)
    order = Order("n", "n", "1", model.files, single=False)
    blobs = {file.path: Layout(cache.root).blob(file.digests[0]) for file in model.files}
    here = [
        Fetched(file, file.digests[0], FILES[file.path].size, "linked", stamp=Stamp.of(blobs[file.path]))
        for file in model.files
    ]
    after_one = iter([None])

    def give_up() -> None:
        if next(after_one, "all") == "all":
            raise PausedError("enough")

    with pytest.raises(PausedError):
        install(order, cache._runtime.shop, here, lambda *_, **__: None, give_up)
    with pytest.raises(ModelNotAvailableError):
        cache.path("n")
    install(order, cache._runtime.shop, here, lambda *_, **__: None)
    assert cache.path("n")


def test_an_incomplete_version_does_not_hide_the_complete_one(cache: Cache, origin: Origin, model: Manifest) -> None:
    whole = cache.fetch(model)
    origin.put("config.json", BIG)
    origin.faults(Status(404), path="config.json")
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(manifest_of(origin, FILES | {"config.json": BIG}, version="2"))
    assert cache.path("m") == whole.path


def test_a_new_version_fetches_only_what_changed(cache: Cache, origin: Origin, model: Manifest) -> None:
    cache.fetch(model)
    origin.put("config.json", BIG)
    told = Events()
    cache.on_event(told)
    found = cache.fetch(manifest_of(origin, FILES | {"config.json": BIG}, version="2"))
    assert {file.name: file.status for file in found.files} == {"config.json": "fetched", "onnx/model.bin": "linked"}
    assert [(event["version"], event["path"]) for event in told.of("updated")] == [("2", found.path)]


def test_the_kind_to_prefer_is_one_of_those_there_are(cache: Cache, origin: Origin, cache_root: Path) -> None:
    assert cache.fetch(origin.url("small.gguf"), prefer="http").path
    for preferring in (lambda: cache.fetch(origin.url("small.gguf"), prefer="tape"), lambda: Cache(prefer="tape")):
        with pytest.raises(UsageError, match="prefer = 'tape': one of cache, ipfs"):
            preferring()


def test_mirrors_of_a_model_are_folders(cache: Cache, origin: Origin, model: Manifest) -> None:
    origin.faults(Status(404))
    with Origin({f"copy/{path}": content for path, content in FILES.items()}) as mirror:
        assert cache.fetch(model, mirrors=[mirror.url("copy/")]).is_verified


def test_an_id_stands_for_one_ref(cache: Cache, model: Manifest) -> None:
    fields = model.to_json()
    cache.fetch(Manifest.parse(json.dumps(fields | {"ref": "hf:org/one"}).encode()))
    other = Manifest.parse(json.dumps(fields | {"ref": "hf:org/two", "version": "2"}).encode())
    with pytest.raises(UsageError, match="from hf:org/one: one id cannot stand for hf:org/two"):
        cache.fetch(other)
    cache.remove("m")
    cache.fetch(other)


def test_urls_that_nothing_serves_are_passed_over(cache: Cache, origin: Origin) -> None:
    entry = entry_of(origin.url("small.gguf"), "small.gguf", SMALL)
    fields = {"format": 1, "id": "m", "version": "1", "ref": ""}
    both = fields | {"files": [entry | {"urls": ["s3://bucket/x", *entry["urls"]]}]}
    assert cache.fetch(Manifest.parse(json.dumps(both).encode())).is_verified
    none = fields | {"id": "n", "files": [entry | {"urls": ["s3://b/x"], "sha256": OTHER.sha256, "size": OTHER.size}]}
    with pytest.raises(UsageError, match="s3://b/x"):
        cache.fetch(Manifest.parse(json.dumps(none).encode()))


def bare(origin: Origin, *paths: str, version: str = "") -> Manifest:
    """A manifest that lists nothing but where the files are."""
    entries = [{"path": path, "urls": [origin.url(path)]} for path in paths]
    return Manifest.parse(
        json.dumps({"format": 1, "id": "m", "version": version, "ref": "", "files": entries}).encode()
    )


@pytest.mark.parametrize("version", ["1", ""])
def test_files_of_unknown_digest_are_hits_the_second_time(cache: Cache, origin: Origin, version: str) -> None:
    manifest = bare(origin, "small.gguf", "big.gguf", version=version)
    assert not cache.fetch(manifest).is_verified
    again = cache.fetch(manifest)
    assert [(file.status, file.verified) for file in again.files] == [("hit", "unverified")] * 2
    assert len(origin.requests) == 2
    with pytest.raises(VerificationError, match="nothing is known"):
        cache.fetch(manifest, require_digest=True)


@pytest.mark.parametrize("version", ["1", ""])
def test_of_files_of_unknown_digest_other_bytes_are_refused(cache: Cache, origin: Origin, version: str) -> None:
    manifest = bare(origin, "small.gguf", "big.gguf", version=version)
    first = cache.fetch(manifest)
    origin.put("small.gguf", OTHER)
    rot(first["small.gguf"].path, 7)
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(manifest, strict=True)
    assert failure.value.exit_code == 3
    assert "changed since it was first fetched" in failure.value.next_step
    cache.remove("m")
    assert data(cache.fetch(manifest)["small.gguf"]) == OTHER.read()


def test_what_one_version_had_binds_no_other(cache: Cache, origin: Origin) -> None:
    cache.fetch(bare(origin, "small.gguf", version="1"))
    origin.put("small.gguf", OTHER)
    assert data(cache.fetch(bare(origin, "small.gguf", version="2"))["small.gguf"]) == OTHER.read()


def test_a_listed_digest_comes_before_what_a_file_was_last_time(cache: Cache, origin: Origin) -> None:
    cache.fetch(bare(origin, "small.gguf"))
    origin.put("small.gguf", OTHER)
    found = cache.fetch(manifest_of(origin, {"small.gguf": OTHER}, version=""))
    assert (data(found["small.gguf"]), found.is_verified) == (OTHER.read(), True)


def test_any_listed_digest_tells_the_version_of_what_is_here(cache: Cache, origin: Origin) -> None:
    entry = entry_of(origin.url("small.gguf"), "small.gguf", SMALL)
    entry["md5"], entry["sha256"] = hashlib.md5(SMALL.read()).hexdigest(), ""
    manifest = Manifest.parse(json.dumps({"format": 1, "id": "m", "files": [entry]}).encode())
    assert [cache.fetch(manifest).files[0].status for _ in range(2)] == ["fetched", "hit"]
    assert len(origin.requests) == 1


# -- what rots is mended by the next fetch --------------------------------------------------------------------------


def test_a_fetch_mends_a_rotten_file_by_its_piece(cache: Cache, cache_root: Path, origin: Origin) -> None:
    origin.put("same.gguf", BIG)
    file = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    shared = cache.fetch(origin.url("same.gguf"), sha256=BIG.sha256)
    cache.verify()  # learns the pieces that were not measured on the way
    rot(file.path, PIECE + 5)
    mended = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256, strict=True)
    assert (mended.status, mended.bytes_fetched) == ("repaired", PIECE)
    assert data(mended) == data(shared) == BIG.read()
    assert os.path.samefile(mended, shared)
    (kept,) = (cache_root / "quarantine").iterdir()
    assert kept.read_bytes()[PIECE + 5] == BIG.read()[PIECE + 5] ^ 0xFF


def test_what_is_copied_out_is_right_whatever_the_stamp_says(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    file = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    rot(file.path, 1)
    out = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256, output=tmp_path / "out.gguf")
    assert data(out) == BIG.read()
    assert data(cache.fetch(origin.url("big.gguf"))) == BIG.read()


def test_rot_that_cannot_be_mended_is_available_to_nobody(cache: Cache, origin: Origin) -> None:
    origin.put("same.gguf", SMALL)
    file, shared = (cache.fetch(origin.url(name), sha256=SMALL.sha256) for name in ("small.gguf", "same.gguf"))
    rot(file.path, 9)
    origin.stop()
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256, strict=True)
    for url in (origin.url("small.gguf"), origin.url("same.gguf")):
        with pytest.raises(ModelNotAvailableError, match="error"):
            cache.path(url)
    assert Path(shared).exists()


def test_an_edited_model_path_is_set_aside_and_right_again(cache: Cache, cache_root: Path, origin: Origin) -> None:
    file = cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256)
    os.unlink(file.path)
    Path(file.path).write_bytes(b"my notes")
    assert data(cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256)) == SMALL.read()
    assert [kept.read_bytes() for kept in (cache_root / "quarantine").iterdir()] == [b"my notes"]
    assert len(origin.requests) == 1


# -- path, ls, info, rm, add ----------------------------------------------------------------------------------------


def reason_of(cache: Cache, ref: str) -> str:
    with pytest.raises(ModelNotAvailableError) as failure:
        cache.path(ref)
    named = "@".join(filter(None, (failure.value.model_id, failure.value.version)))
    assert str(failure.value) == f"Model {named} is not available: {failure.value.reason}"
    return failure.value.reason


def test_path_says_why_a_model_is_not_available(cache: Cache, cache_root: Path, origin: Origin) -> None:
    url = origin.url("small.gguf")
    assert reason_of(cache, url) == "not_installed"
    hold = Hold(100_000)
    origin.faults(hold)
    download = cache.fetch(url, wait=False)
    assert hold.reached.wait(60)
    assert reason_of(cache, url) == "downloading"
    assert reason_of(Cache(cache_root), url) == "downloading"  # as another process sees it
    download.pause()
    assert download.wait_stopped(10)
    assert reason_of(cache, url) == "error"
    hold.release.set()
    origin.heal()
    file = cache.fetch(url, sha256=SMALL.sha256)
    assert cache.path(url) == file.path
    os.utime(file.path, (1, 1))
    assert reason_of(cache, url) == "verifying"
    cache.fetch(url)
    assert cache.path(url)
    rot(file.path, 3)
    cache.verify(url)
    assert reason_of(cache, url) == "error"


def test_a_kill_between_record_and_registry_loses_no_model(cache: Cache, cache_root: Path, model: Manifest) -> None:
    found = cache.fetch(model)
    (cache_root / "registry.json").write_text('{"format": 1, "models": {}}')
    assert cache.path("m") == found.path
    (cache_root / "registry.json").write_text(
        '{"format": 1, "models": {"m": {"versions": {"9": "ready"}, "default": "9"}}}'
    )
    assert cache.path("m") == found.path


def test_removing_keeps_what_others_share(cache: Cache, cache_root: Path, origin: Origin) -> None:
    origin.put("same.gguf", SMALL)
    one, two = (cache.fetch(origin.url(name), sha256=SMALL.sha256) for name in ("small.gguf", "same.gguf"))
    told = Events()
    cache.on_event(told)
    assert sum(row["size"] for row in cache.remove(origin.url("small.gguf"))) == 0
    assert data(two) == SMALL.read()
    assert not Path(one.path).exists()
    assert sum(row["size"] for row in cache.remove(origin.url("same.gguf"))) == SMALL.size
    assert not [path for path in (cache_root / "blobs").rglob("*") if path.is_file()]
    assert [event["path"] for event in told.of("removed")] == [os.path.dirname(one.path), os.path.dirname(two.path)]
    with pytest.raises(ModelNotAvailableError):
        cache.remove(origin.url("same.gguf"))


def test_removing_keeps_what_others_have_a_copy_of(cache: Cache, cache_root: Path, origin: Origin) -> None:
    """As on file systems without hard links: the record tells, not the inode."""
    origin.put("same.gguf", SMALL)
    one, two = (cache.fetch(origin.url(name), sha256=SMALL.sha256) for name in ("small.gguf", "same.gguf"))
    content = Path(two.path).read_bytes()
    os.unlink(two.path)
    Path(two.path).write_bytes(content)
    assert sum(row["size"] for row in cache.remove(origin.url("small.gguf"))) == 0
    assert not Path(one.path).exists()
    assert [path.name for path in (cache_root / "blobs").rglob("*") if path.is_file()] == [SMALL.sha256]


@pytest.mark.parametrize("shared", ["onnx/model.bin", "config.json"])
def test_a_model_that_is_removed_takes_nothing_from_one_that_is_being_installed(
    cache: Cache, origin: Origin, model: Manifest, shared: str
) -> None:
    cache.fetch(manifest_of(origin, {shared: FILES[shared]}, "a"))
    hold = Hold(0)
    (other,) = set(FILES) - {shared}
    origin.faults(hold, path=other)
    download = cache.fetch(model, wait=False)
    assert hold.reached.wait(60)
    deadline = time.monotonic() + 20
    while download.progress.completed_files < 1 and time.monotonic() < deadline:
        download.wait_stopped(0.02)
    cache.remove("a")
    hold.release.set()
    found = download.result(60)
    assert {file.name: data(file) for file in found.files} == {path: each.read() for path, each in FILES.items()}
    assert cache.path(model.id) == found.path
    assert {row["finding"] for row in cache.verify()} == {"whole"}


@pytest.mark.parametrize("output", [False, True])
def test_a_blob_that_is_gone_comes_back_from_the_link_of_its_model(
    cache: Cache, origin: Origin, tmp_path: Path, output: bool
) -> None:
    file = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    blob = Layout(cache.root).blob(Digest("sha256", BIG.sha256))
    os.unlink(blob)
    since = len(origin.requests)
    place = tmp_path / "out" if output else None
    again = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256, strict=not output, output=place)
    assert (again.status, len(origin.requests), data(again)) == ("hit", since, BIG.read())
    assert os.path.samefile(blob, file)


def test_a_link_that_has_rotted_is_no_blob(cache: Cache, origin: Origin) -> None:
    file = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256)
    os.unlink(Layout(cache.root).blob(Digest("sha256", BIG.sha256)))
    rot(file.path, 7)
    again = cache.fetch(origin.url("big.gguf"), sha256=BIG.sha256, strict=True)
    assert data(again) == data(file) == BIG.read()
    assert cache.path(origin.url("big.gguf")) == file.path


def test_a_model_is_not_removed_while_it_is_fetched(cache: Cache, origin: Origin, model: Manifest) -> None:
    cache.fetch(model)
    hold = Hold(1000)
    origin.faults(hold, path="big.gguf")
    download = cache.fetch(manifest_of(origin, {"big.gguf": BIG}, version="2"), wait=False)
    assert hold.reached.wait(60)
    with pytest.raises(LockedError, match="in use by this process"):
        cache.remove("m", "1")
    hold.release.set()
    download.result()
    assert sum(row["size"] for row in cache.remove("m", "1")) > 0


def test_the_remains_of_a_model_can_be_removed(cache: Cache, cache_root: Path, model: Manifest) -> None:
    found = cache.fetch(model)
    Path(found.path, ".manifest.json").write_text("{")
    cache.remove("m")
    assert not Path(found.path).exists()


def test_a_folder_of_this_disk_becomes_a_model(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(SMALL.read())
    (folder / "b.bin").write_bytes(OTHER.read())
    told = Events()
    cache.on_event(told)
    found = cache.add(folder, "mine")
    assert {file.name: data(file) for file in found.files} == {"b.bin": OTHER.read(), "sub/a.bin": SMALL.read()}
    assert not os.path.samefile(found["b.bin"], folder / "b.bin")
    assert told.of("installed")[0]["path"] == found.path == cache.path("mine", "1")
    assert cache.add(folder, "mine").path == found.path
    (folder / "b.bin").rename(folder / "c.bin")
    with pytest.raises(UsageError, match="mine@1 is here with other files"):
        cache.add(folder, "mine")
    assert [file.name for file in cache.add(folder, "mine", replace=True).files] == ["c.bin", "sub/a.bin"]
    assert [row["file"] for row in cache.info("mine")] == ["c.bin", "sub/a.bin"]


def test_adding_a_file_mends_the_rotten_blob_of_its_content(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    file = cache.fetch(origin.url("small.gguf"), sha256=SMALL.sha256)
    rot(file.path, 4)
    (tmp_path / "copy.bin").write_bytes(SMALL.read())
    added = cache.add(tmp_path / "copy.bin", "mine", "v2")
    assert data(added["copy.bin"]) == data(file) == SMALL.read()


# -- who waits for whom ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_threads_that_want_the_same_share_one_download(cache: Cache, origin: Origin, known: bool) -> None:
    url, sha256 = origin.url("small.gguf"), SMALL.sha256 if known else None
    hold = Hold(100_000)
    origin.faults(hold)
    first = cache.fetch(url, sha256=sha256, wait=False)
    assert hold.reached.wait(60)
    told = Events()
    second = cache.fetch(url, sha256=sha256, wait=False, progress=told)
    told.wait_for("started")
    hold.release.set()
    assert (first.result().status, second.result().status) == ("fetched", "hit")  # type: ignore[union-attr]
    assert len(origin.requests) == 1


def test_processes_that_want_the_same_share_one_download(cache: Cache, origin: Origin) -> None:
    url = origin.url("small.gguf")
    hold = Hold(100_000)
    origin.faults(hold)
    process = start("fetch", url)
    assert hold.reached.wait(60)
    told = Events()
    download = cache.fetch(url, wait=False, progress=told)
    told.wait_for("started")
    hold.release.set()
    output, _ = process.communicate(timeout=60)
    assert download.result().path == output.strip()
    assert len(origin.requests) == 1


def test_who_waits_gives_up_in_time_and_names_the_holder(cache_root: Path, origin: Origin) -> None:
    hold = Hold(100_000)
    origin.faults(hold)
    holder = start("fetch", origin.url("small.gguf"))
    assert hold.reached.wait(60)
    with pytest.raises(LockedError, match=f"process {holder.pid} on .* without progress for 0.1 s") as failure:
        Cache(cache_root, lock_timeout=0.1).fetch(origin.url("small.gguf"))
    assert failure.value.exit_code == 7
    record = json.loads(next((cache_root / "locks").glob("model-*.json")).read_text())
    assert set(record) >= {"pid", "host", "processStart", "timestamp", "modelId", "version", "timeout"}
    assert (record["pid"], record["timeout"]) == (holder.pid, 1_800_000)
    holder.kill()
    holder.communicate()
    origin.heal()
    assert data(Cache(cache_root).fetch(origin.url("small.gguf"))) == SMALL.read()  # a dead holder holds nothing


# -- a hit costs nothing --------------------------------------------------------------------------------------------


def test_a_hit_imports_no_network_and_reads_one_record(cache: Cache, model: Manifest, tmp_path: Path) -> None:
    found = cache.fetch(model)
    (tmp_path / "m.json").write_text(json.dumps(model.to_json()))
    child = f"""if True:
        import sys
        from modelcache.caching import Cache
        from modelcache.manifests import load
        manifest, opened = load({str(tmp_path / "m.json")!r}), []
        cache = Cache()
        sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == "open" else None)
        model = cache.fetch(manifest)
        slow = {{"requests", "urllib3", "filelock", "sqlite3", "pandas", "tqdm", "platformdirs", "blake3", "ssl"}}
        print([file.status for file in model.files], opened, sorted(slow & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"['hit', 'hit'] ['{found.path}/.manifest.json'] []"


def test_a_hit_of_a_url_imports_no_network_either(origin: Origin, cache: Cache) -> None:
    url = origin.url("small.gguf")
    cache.fetch(url)
    child = f"import modelcache, sys; print(modelcache.fetch({url!r}).status, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.split()
    assert done[0] == "hit"
    assert set(done).isdisjoint({"requests", "urllib3", "filelock", "sqlite3", "pandas", "tqdm", "ssl"})


# -- settings, places, secrets --------------------------------------------------------------------------------------


def test_wrong_settings_are_refused_before_anything_is_done(cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"connections": 0}, {"connections": -1}, {"no_such": 1}, {"stall_timeout": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Cache(cache_root, **wrong)
    monkeypatch.setenv("MODELCACHE_CONNECTIONS", "many")
    with pytest.raises(UsageError, match=r"MODELCACHE_CONNECTIONS: .*'many': a number is expected"):
        Cache(cache_root).fetch("http://127.0.0.1:9/x")
    monkeypatch.delenv("MODELCACHE_CONNECTIONS")
    cache_root.mkdir()
    for text, complaint in (("connections = ", "is not TOML"), ("conections = 2", "unknown setting 'conections'")):
        (cache_root / "modelcache.toml").write_text(text)
        with pytest.raises(UsageError, match=complaint):
            Cache(cache_root).fetch("http://127.0.0.1:9/x")


def test_a_fallback_is_used_where_nothing_can_be_written(
    tmp_path: Path, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    broken = Cache(tmp_path / "file" / "home")
    url = origin.url("small.gguf")
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        broken.fetch(url)
    monkeypatch.setenv("MODELCACHE_FALLBACK", str(tmp_path / "fallback"))
    assert Path(broken.fetch(url)).is_relative_to(tmp_path / "fallback")
    again = Cache(tmp_path / "file" / "home")
    assert again.fetch(url).status == "hit"  # type: ignore[union-attr]
    assert again.path(url)
    (done,) = again.downloads()
    assert again.download(done["id"]).status == again.resume(done["id"]).status == "success"
    assert [row["request_count"] for row in again.usage()] == [2]
    assert [row["attempts"] for row in again.health()] == [1]
    assert len(again.models()) == len(again.verify()) == 1
    again.remove(url)
    assert len(origin.requests) == 1


def test_headers_go_to_the_first_origin_alone(cache: Cache, origin: Origin) -> None:
    origin.faults(NeedsHeader("Authorization", "Bearer s3cret"))
    with Origin({"config.json": OTHER}) as elsewhere:
        entries = [
            entry_of(origin.url("small.gguf"), "small.gguf", SMALL),
            entry_of(elsewhere.url("config.json"), "config.json", OTHER),
        ]
        fields = {"format": 1, "id": "m", "version": "1", "ref": "", "files": entries}
        headers = {"Authorization": "Bearer s3cret"}
        assert cache.fetch(Manifest.parse(json.dumps(fields).encode()), headers=headers).is_verified
        assert not any("s3cret" in str(seen.raw_headers) for seen in elsewhere.requests)
    with pytest.raises(UsageError, match="one model: name it"):
        cache.repair(headers=headers)


def test_no_secret_is_written_or_told(cache: Cache, origin: Origin) -> None:
    told = Events()
    cache.on_event(told)
    where = origin.url("small.gguf").replace("://", "://user:pa55word@") + "?token=t0ken&sig=s1gned"
    headers = {"X-Key": "h3ader"}
    origin.faults(Cut(100_000, times=1), Status(503, after=1))
    with pytest.raises(ModelCacheError) as failure:
        cache.fetch(where, headers=headers, progress=told, mirrors=[where])
    (asked,) = Path(cache.root, "state").glob("*.requests/*")  # to be asked again, until it is here
    assert b"t0ken" in asked.read_bytes() and asked.stat().st_mode & 0o777 == 0o600
    while_failed = written(cache).replace(b"?token=t0ken&sig=s1gned", b"", 1)
    origin.heal()
    file = cache.fetch(where, headers=headers, sha256=SMALL.sha256)
    said = json.dumps(told.all) + failure.value.line() + str(failure.value.failures) + repr(file)
    said += str(cache.models()) + str(cache.info(where)) + str(cache.verify())
    for secret in ("pa55word", "t0ken", "s1gned", "h3ader"):
        assert secret not in said
        assert secret.encode() not in while_failed + written(cache)
    assert origin.requests[-1].path.endswith("?token=t0ken&sig=s1gned")  # they do reach the server


def test_the_package_root_serves_the_default_cache(cache_root: Path, origin: Origin) -> None:
    code = f"import modelcache as mc; print(mc.fetch({origin.url('small.gguf')!r}, progress=False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(cache_root)
    assert set(modelcache.__all__) <= set(dir(modelcache))
    with pytest.raises(AttributeError):
        modelcache.no_such_name  # noqa: B018


def test_many_threads_may_use_one_cache(cache: Cache, origin: Origin) -> None:
    names = ["small.gguf", "other.gguf", "big.gguf"] * 3
    results: list[File | Model] = []
    threads = [
        threading.Thread(target=lambda name=name: results.append(cache.fetch(origin.url(name)))) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == len(names)
    assert len(origin.requests) == 3


def test_ls_tells_what_is_here(cache: Cache, model: Manifest) -> None:
    began = now_ms()
    cache.fetch(model)
    (row,) = cache.models()
    assert began <= row.pop("verified_at") <= now_ms() and began <= row.pop("used_at") + 1 <= now_ms() + 1
    assert row == {
        "model": "m", "version": "1", "files": 2, "size": SMALL.size + OTHER.size, "status": "ready",
        "called": [], "pinned": False, "task": "", "ref": "m", "languages": [], "default_version": "",
        "proof": "listed",
    }  # fmt: skip
    assert run("ls").stdout.splitlines()[0] == "installed models"
