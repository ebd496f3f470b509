"""What other tools have downloaded becomes models of the cache: each byte read once, and nothing of theirs changed."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import modelcache as mc
from modelcache.caching import Cache
from modelcache.errors import ModelNotAvailableError, StoreError, UsageError
from modelcache.model import MAX_MANIFEST_BYTES
from modelcache.rows import Report
from modelcache.store.disk import write_atomic
from modelcache.store.intake import LEAST_LINKED
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf
from modelcache.testing import Content, Hold, Hub
from tests.caches import Events, check_progress, nested, rot, run
from tests.foreign import git_sha1, hub_cache, ollama_store, snapshot

CONFIG = Content.of(b'{"a": 1}')
WEIGHTS = Content.generated(LEAST_LINKED + 300_000, seed=1)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/model.onnx": Content.generated(50_000, seed=2)}
COMMIT, OLDER = "1" * 40, "2" * 40
REF = "hf:org/name"
PYTHONS = [python for python in os.environ.get("MODELCACHE_HF_PYTHONS", "").split(":") if python]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Where huggingface_hub keeps what it has, in these tests."""
    return tmp_path / "huggingface" / "hub"


def outcomes(report: Report) -> dict[str, str]:
    return {row["file"]: row["outcome"] for row in report}


def test_what_a_cache_calls_by_the_name_of_a_commit_is_compared_with_what_the_hub_lists(
    hub: Hub, cache: Cache, theirs: Path
) -> None:
    """Small files have no SHA-256 there, and these are as long as the right ones."""
    hub_cache(theirs, FILES | {"config.json": Content.of(b'{"b": 2}')}, tree=True)
    assert set(outcomes(cache.adopt("hf")).values()) == {"taken"}
    model = Cache(cache.root, manifest_ttl=0).fetch(REF)
    assert {name: Path(model[name].path).read_bytes() for name in FILES} == {
        name: content.read() for name, content in FILES.items()
    }


def test_folders_within_folders_without_end_keep_nothing_from_being_adopted(cache: Cache, theirs: Path) -> None:
    ours = theirs.parent / "ollama"
    hub_cache(theirs, FILES), ollama_store(ours, {"model": WEIGHTS})
    tops = (snapshot_of(theirs), ours / "manifests")
    try:
        for top in tops:
            nested(top, 1100)
        for tier in (theirs, ours):
            assert set(outcomes(cache.adopt(tier)).values()) <= {"taken", "here"}
        assert len(cache.models()) == 2
        Cache(cache.root, tiers=(str(theirs), str(ours))).doctor()
    finally:  # pytest would not get to their end either
        subprocess.run(["rm", "-rf", *tops], check=True)


def test_all_tags_and_branches_that_are_adopted_cost_one_write(
    cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"v{number}" for number in range(20)]
    hub_cache(theirs, FILES, refs=("main", *names), tree=True)
    written: list[str] = []

    def counted(path: str, content: bytes, mode: int | None = None) -> None:
        written.append(path)
        write_atomic(path, content, mode)

    monkeypatch.setattr("modelcache.store.registry.write_atomic", counted)
    cache.adopt("hf")
    assert len(written) == 2, "the version, and all that it is called"
    assert {row["version"] for row in cache.models() if row["called"] == sorted(["main", *names])} == {COMMIT}


def snapshot_of(cache: Path) -> Path:
    return cache / "models--org--name" / "snapshots" / COMMIT


def test_a_commit_means_itself_whatever_calls_itself_so(hub: Hub, cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, refs=("main", OLDER), tree=True)
    cache.adopt("hf")
    with pytest.raises(mc.ModelNotAvailableError):
        cache.path(f"{REF}@{OLDER}")
    with pytest.raises(mc.ModelNotAvailableError):
        cache.remove(f"{REF}@{OLDER}")
    assert cache.path(f"{REF}@{COMMIT}") == cache.path(REF)


def test_what_hugging_faces_cache_has_is_a_hit_from_then_on(hub: Hub, cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, refs=("main", "v1.0"), tree=True)
    before, events = snapshot(theirs), Events()
    cache.on_event(events)
    report = cache.adopt("hf")
    assert outcomes(report) == dict.fromkeys(FILES, "taken")
    assert snapshot(theirs) == before
    assert events.of("installed")[0]["path"] == cache.path(REF) == cache.path("hf--org--name", COMMIT)
    model = cache.fetch(f"{REF}@{COMMIT}")
    assert isinstance(model, mc.Model)
    assert {file.name: (file.status, file.verified) for file in model.files} == {
        "config.json": ("hit", "git-sha1"),
        "model.safetensors": ("hit", "sha256"),
        "onnx/model.onnx": ("hit", "sha256"),
    }
    assert all(Path(model[name].path).read_bytes() == content.read() for name, content in FILES.items())
    assert cache.path(f"{REF}@v1.0") == model.path
    assert hub.requests == []
    assert outcomes(cache.adopt("hf")) == dict.fromkeys(FILES, "here")


@pytest.mark.parametrize("tree", [True, False])
def test_a_branch_is_found_without_network(
    cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch, tree: bool
) -> None:
    hub_cache(theirs, FILES, tree=tree)
    cache.adopt(theirs.parent)  # what HF_HOME names will do
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for ref in (REF, f"{REF}@main", f"{REF}@{COMMIT}"):
        assert {file.status for file in cache.fetch(ref).files} == {"hit"}  # type: ignore[union-attr]


def test_without_the_commits_list_only_the_list_is_asked_for(hub: Hub, cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES)
    cache.adopt("hf")
    cache.fetch(f"{REF}@{COMMIT}")
    assert [seen.path for seen in hub.requests if "/resolve/" in seen.path] == []


def test_an_incomplete_snapshot_is_a_selection_that_grows(hub: Hub, cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES, tree=True)
    (repository / "snapshots" / COMMIT / "onnx" / "model.onnx").unlink()
    (repository / "blobs" / WEIGHTS.sha256).unlink()
    report = cache.adopt("hf")
    assert outcomes(report) == {"config.json": "taken", "model.safetensors": "left", "onnx/model.onnx": "absent"}
    model = cache.fetch(f"{REF}@{COMMIT}")
    assert isinstance(model, mc.Model)
    assert {file.name: file.status for file in model.files}["config.json"] == "hit"
    assert len(model.files) == 3


def test_each_byte_is_read_once_and_a_large_file_is_not_copied(
    cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub_cache(theirs, FILES)
    read: Counter[int] = Counter()
    real = os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = real(fd, buffers, offset)
        read[os.fstat(fd).st_ino] += count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", counted)
        rows = {row["file"]: row for row in cache.adopt("hf")}
    assert not rows["model.safetensors"]["copied"]
    blob = repository / "blobs" / WEIGHTS.sha256
    placed = Path(cache.path("hf--org--name"), "model.safetensors")
    assert (
        read[os.stat(blob).st_ino] + read[os.stat(placed).st_ino] * (not os.path.samefile(blob, placed)) == WEIGHTS.size
    )


def test_two_commits_share_what_they_have_in_common_and_main_is_the_default(cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, tree=True)
    hub_cache(theirs, FILES | {"config.json": Content.of(b"{}")}, commit=OLDER, refs=("v0/old",), tree=True)
    report = cache.adopt("hf")
    assert Counter(row["outcome"] for row in report) == {"taken": 4, "here": 2}
    assert cache.path("hf--org--name").endswith(COMMIT)
    assert cache.path(f"{REF}@v0%2Fold").endswith(OLDER)


def test_what_was_said_later_of_a_branch_stays(hub: Hub, cache: Cache, theirs: Path) -> None:
    newer = cache.fetch(REF)
    repository = hub_cache(theirs, FILES | {"config.json": Content.of(b"{}")}, commit=OLDER, tree=True)
    os.utime(repository / "refs" / "main", (1_700_000_000, 1_700_000_000))
    cache.adopt("hf")
    assert cache.path(REF) == newer.path  # type: ignore[union-attr]
    assert cache.path(f"{REF}@{OLDER}") != newer.path  # type: ignore[union-attr]


def test_a_branch_written_at_a_time_to_come_is_not_the_latest_for_ever(hub: Hub, cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES | {"config.json": Content.of(b"{}")}, commit=OLDER, tree=True)
    os.utime(repository / "refs" / "main", (10**11, 10**11))
    cache.adopt("hf")
    assert cache.path(REF).endswith(OLDER)  # nobody has said anything else
    newer = Cache(cache.root, manifest_ttl=0).fetch(REF)
    assert str(newer.path).endswith(COMMIT)
    cache.adopt("hf")
    assert cache.path(REF) == cache.fetch(REF).path == newer.path  # type: ignore[union-attr]


def test_what_can_be_no_tag_or_branch_is_left_and_told(cache: Cache, theirs: Path) -> None:
    strange = ["2" * 40, "refs/" + "2" * 40, "new\nline\x1b[31m", "a b", os.fsdecode(b"bad\xff")]
    hub_cache(theirs, FILES, refs=("main", "refs/pr/1", *strange), tree=True)
    done = run("adopt", "hf", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    told = {row["file"].split("/name/refs/")[-1].split("--name/refs/")[-1] for row in rows if row["outcome"] == "left"}
    assert {row["reason"] for row in rows if row["outcome"] == "left"} == {"it is no name of a tag or branch"}
    assert told == set(strange)
    assert {row["file"] for row in rows if row["outcome"] == "taken"} == set(FILES)
    assert set(Shelf(Layout(cache.root)).registry.aliases("hf--org--name")) == {"main", "refs/pr/1"}
    assert run("adopt", "hf").returncode == 0


def test_a_name_like_a_commit_that_an_older_modelcache_kept_means_nothing(cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, tree=True)
    cache.adopt("hf")
    kept = Path(cache.root, "registry.json")
    kept.write_text(kept.read_text().replace('"main"', f'"{OLDER}"'))
    with pytest.raises(mc.ModelNotAvailableError):
        cache.path("hf--org--name", OLDER)


def test_a_dataset_and_a_space_keep_their_kind(cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, name="datasets--org--name")
    hub_cache(theirs, FILES, name="spaces--org--name")
    cache.adopt("hf")
    assert {row["ref"] for row in cache.models()} == {"hf:datasets/org/name", "hf:spaces/org/name"}


def test_a_name_of_the_early_days_is_adopted(cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES, name="models--gpt2", tree=True)
    assert outcomes(cache.adopt("hf")) == dict.fromkeys(FILES, "taken")
    assert cache.fetch("hf:gpt2").path == cache.path("hf--gpt2")  # type: ignore[union-attr]


def test_wrong_bytes_are_left_and_told(cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES)
    rot(repository / "blobs" / WEIGHTS.sha256, 5)
    rot(repository / "blobs" / git_sha1(CONFIG), 2)
    before = snapshot(theirs)
    done = run("adopt", "hf")
    assert done.returncode == 3
    assert done.stdout.splitlines() == [str(Path(cache.root, "models", "hf--org--name", COMMIT))]
    wrong = [line for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    assert [line.split(": ")[1] for line in wrong] == [
        "hf--org--name@111111111111 config.json", "hf--org--name@111111111111 model.safetensors",
    ]  # fmt: skip
    assert all("is not what its name says: it is left alone" in line for line in wrong)
    assert "1 file taken (50,000 bytes, " in done.stderr
    assert [row["file"] for row in cache.info("hf--org--name")] == ["onnx/model.onnx"]
    assert snapshot(theirs) == before


def test_what_is_known_to_be_missing_is_told_until_it_is_here(hub: Hub, cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES)
    rot(repository / "blobs" / WEIGHTS.sha256, 5)
    (repository / "snapshots" / COMMIT / "gone.txt").symlink_to("../../blobs/" + "a" * 40)
    (repository / "snapshots" / COMMIT / ".DS_Store").write_bytes(b"of nobody")
    cache.adopt("hf")
    with pytest.raises(ModelNotAvailableError, match="error"):
        cache.path(REF)
    without = "hf--org--name: hf:org/name is here without gone.txt, model.safetensors: fetch it again when its hub can"
    hub.stop()
    for offline in ("1", "0"):
        done = run("fetch", REF, "--json", HF_HUB_OFFLINE=offline)
        (told,) = json.loads(done.stdout)
        assert told["missing"] == ["gone.txt", "model.safetensors"], done.stderr
        assert without in done.stderr
    chosen = run("fetch", REF, "--files", "config.json", "--files", "onnx/", "--json", HF_HUB_OFFLINE="1")
    assert "missing" not in json.loads(chosen.stdout)[0] and chosen.stderr == ""
    part = run("fetch", REF, "--files", "*.json", "--files", "*.safetensors", HF_HUB_OFFLINE="1")
    assert "is here without model.safetensors:" in part.stderr
    alone = run("fetch", f"{REF}/model.safetensors", HF_HUB_OFFLINE="1")
    assert (alone.returncode, alone.stdout) == (4, "")


def test_what_is_known_to_be_missing_comes_when_the_hub_can_be_asked(hub: Hub, cache: Cache, theirs: Path) -> None:
    rot(hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256, 5)
    cache.adopt("hf")
    model = cache.fetch(REF)  # asked about first, though a part of it is here
    assert isinstance(model, mc.Model)
    assert (len(model.files), model.missing) == (len(FILES), ())
    assert cache.path(REF) == model.path


def _rotten(repository: Path) -> None:
    rot(repository / "blobs" / WEIGHTS.sha256, 5)


def _gone(repository: Path) -> None:
    (repository / "blobs" / WEIGHTS.sha256).unlink()


def _other(repository: Path) -> None:
    """A link to a blob that is not the one that the commit lists."""
    link = repository / "snapshots" / COMMIT / "model.safetensors"
    link.unlink()
    link.symlink_to(f"../../blobs/{FILES['onnx/model.onnx'].sha256}")


@pytest.mark.parametrize("spoil", [_rotten, _gone, _other])
def test_what_could_not_be_taken_is_missing_though_all_files_of_the_commit_are_listed(
    hub: Hub, cache: Cache, theirs: Path, spoil: Callable[[Path], None]
) -> None:
    repository = hub_cache(theirs, FILES, tree=True)
    (repository / "snapshots" / COMMIT / "nobody.bin").symlink_to("../../blobs/" + "a" * 40)  # no fetch could bring it
    (repository / "snapshots" / COMMIT / "config.json").unlink()  # as with allow_patterns
    spoil(repository)
    cache.adopt("hf")
    with pytest.raises(ModelNotAvailableError) as refusal:
        cache.path(REF)
    assert f"modelcache fetch {REF}@{COMMIT}" in refusal.value.advice
    assert [row["status"] for row in cache.models()] == ["incomplete"]
    (note,) = [row["finding"] for row in cache.doctor() if row["check"] == "models"]
    assert note.endswith("is incomplete: lacks model.safetensors")
    assert Path(cache.path(f"{REF}/onnx/model.onnx")).exists()
    cache.adopt("hf")
    assert [row["status"] for row in cache.models()] == ["incomplete"]
    cache.fetch(f"{REF}/model.safetensors")
    assert cache.path(REF)
    assert [row["status"] for row in cache.models()] == ["ready"]


def test_hostile_snapshots_cost_themselves_alone(cache: Cache, theirs: Path, tmp_path: Path) -> None:
    repository = hub_cache(theirs, FILES)
    folder = repository / "snapshots" / COMMIT
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder / "outside").symlink_to(secret)
    (folder / "loop").symlink_to("loop")
    (folder / "up").symlink_to("..")
    (folder / "gone").symlink_to("../../blobs/" + "0" * 64)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "plain").write_bytes(b"plain")
    os.mkfifo(folder / "fifo")
    os.mkfifo(repository / "blobs" / ("f" * 64))
    (folder / "pipe").symlink_to("../../blobs/" + "f" * 64)
    (folder / "a\nb").symlink_to(os.readlink(folder / "config.json"))
    (folder / "con").symlink_to(os.readlink(folder / "config.json"))
    (repository / "refs" / "huge").write_bytes(b"1" * 5_000_000)
    (repository / "refs" / "garbage").write_bytes(b"\xff\x00")
    os.mkfifo(repository / "refs" / "fifo")
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_bytes(b"[" * 100_000)
    (theirs / "models--no..body").mkdir()
    (theirs / "models--no..body" / "snapshots" / COMMIT).mkdir(parents=True)
    (theirs / "models--org--link").symlink_to(repository)
    (repository / "snapshots" / "main").mkdir()
    (repository / "snapshots" / OLDER).symlink_to("/etc")
    os.mkfifo(theirs / "models--org--fifo")
    before = snapshot(theirs)
    done = run("adopt", "hf", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["file"] for row in rows if row["outcome"] == "taken"} == set(FILES)
    assert {row["file"] for row in rows if row["outcome"] == "left" and row["model"]} == {
        "outside", "loop", "up", "gone", "device", "plain", "fifo", "pipe", "a\nb", "con",
    }  # fmt: skip
    assert {Path(row["file"]).name for row in rows if not row["model"]} == {COMMIT, "main", OLDER}
    assert "Traceback" not in done.stderr
    assert snapshot(theirs) == before
    assert [row["file"] for row in cache.info("hf--org--name")] == sorted(FILES)


@pytest.mark.parametrize(
    "tree",
    [
        b"", b"[]", b"null", b'{"format_version": 2, "files": {}}', b'{"format_version": 1, "files": []}',
        b'{"format_version": 1, "files": {"../x": {"size": 1, "blob_id": "0"}}}',
        b'{"format_version": 1, "files": {"x": {"size": -1, "blob_id": "' + b"0" * 40 + b'"}}}',
        b'{"format_version": 1, "files": {"x": 5}}', b'{"format_version": 1, "files": null}', b'{"format_version": 1}',
    ],
)  # fmt: skip
def test_a_list_that_is_garbage_is_no_list(cache: Cache, theirs: Path, tree: bytes) -> None:
    repository = hub_cache(theirs, FILES, tree=True)
    (repository / "trees" / f"{COMMIT}.json").write_bytes(tree)
    assert outcomes(cache.adopt("hf")) == dict.fromkeys(FILES, "taken")


def test_a_list_larger_than_any_answer_is_no_list(cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES, tree=True)
    (repository / "snapshots" / COMMIT / "config.json").unlink()
    listed = repository / "trees" / f"{COMMIT}.json"
    listed.write_bytes(listed.read_bytes().ljust(MAX_MANIFEST_BYTES + 1))
    assert outcomes(cache.adopt("hf")) == dict.fromkeys(FILES.keys() - {"config.json"}, "taken")


def test_a_list_that_contradicts_a_blob_is_believed(cache: Cache, theirs: Path) -> None:
    repository = hub_cache(theirs, FILES, tree=True)
    link = repository / "snapshots" / COMMIT / "onnx" / "model.onnx"
    link.unlink()
    link.symlink_to(f"../../../blobs/{WEIGHTS.sha256}")
    report = {row["file"]: (row["outcome"], row["reason"]) for row in cache.adopt("hf") if row["outcome"] != "absent"}
    assert report["onnx/model.onnx"] == ("left", "its blob is not the one that the commit lists")


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub_cache(theirs, FILES)
    blob = repository / "blobs" / WEIGHTS.sha256
    real = os.fsync

    def changed(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(blob)):
            os.utime(blob, (1, 1))  # after it was read, before it has its second name
        real(fd)

    monkeypatch.setattr(os, "fsync", changed)
    report = outcomes(cache.adopt("hf"))
    if os.stat(blob).st_mtime != 1:
        pytest.skip("this disk has reflinks")
    assert report == {"config.json": "taken", "model.safetensors": "wrong", "onnx/model.onnx": "taken"}


def test_a_folder_that_is_not_there_is_one_line(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is no folder"):
        cache.adopt(tmp_path / "nothing")
    done = run("adopt", "ollama")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "there is no cache of Ollama at " in done.stderr and "same command" not in done.stderr
    with pytest.raises(UsageError, match="is a root of modelcache"):
        (tmp_path / "root" / "blobs" / "sha256").mkdir(parents=True)
        cache.adopt(tmp_path / "root")


def test_one_repository_is_adopted_by_its_folder_and_the_others_are_left(
    cache: Cache, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(theirs, FILES)
    hub_cache(theirs, {"config.json": CONFIG}, name="models--org--other")
    monkeypatch.chdir(theirs / "models--org--name")
    assert outcomes(cache.adopt(".")) == dict.fromkeys(FILES, "taken")
    assert [row["model"] for row in cache.models()] == ["hf--org--name"]


@pytest.mark.parametrize("source", ["EMPTY", "hf:org/name", "ollama:tiny"])
def test_what_is_no_cache_of_another_tool_says_what_is(tmp_path: Path, source: str) -> None:
    (tmp_path / "EMPTY").mkdir()
    done = run("adopt", str(tmp_path / "EMPTY") if source == "EMPTY" else source)
    assert (done.returncode, done.stdout) == (2, "")
    assert "; name hf, ollama, a folder with models--org--name in it, one of those, or a store of " in done.stderr


def test_a_full_disk_is_an_error_of_ours_and_not_of_the_file(small_disk: Path, theirs: Path) -> None:
    hub_cache(theirs, {"large.bin": Content.generated(6_000_000, seed=3)})
    done = run("adopt", "hf", MODELCACHE_HOME=str(small_disk / "home"))
    assert done.returncode == 6
    assert "the disk is full; free space, then run the same command again to go on" in done.stderr
    assert [path.name for path in (small_disk / "home" / "blobs" / "sha256").iterdir()] == []


def test_how_far_it_is_is_told(cache: Cache, theirs: Path) -> None:
    hub_cache(theirs, FILES)
    events = Events()
    cache.adopt("hf", progress=events)
    check_progress(events.progress, "hf--org--name")
    assert {event["file"] for event in events.progress if event["status"] == "success"} == set(FILES)


def test_a_model_that_is_being_fetched_is_left_and_the_others_are_taken(hub: Hub, cache: Cache, theirs: Path) -> None:
    hold = Hold(100_000)
    hub.faults(hold)
    download = cache.fetch(REF, wait=False)
    assert hold.reached.wait(60)
    hub_cache(theirs, FILES)
    hub_cache(theirs, {"other.bin": Content.of(b"other")}, name="models--org--other")
    left = [row for row in cache.adopt("hf") if row["outcome"] == "left"]
    assert [row["model"] for row in left] == ["hf--org--name"]
    assert cache.path("hf:org/other")
    hold.release.set()
    download.result(30)


def test_an_interrupt_leaves_nothing_half_and_the_next_run_goes_on(
    cache: Cache, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = hub_cache(theirs, FILES) / "blobs" / WEIGHTS.sha256
    real, before = os.preadv, snapshot(theirs)

    def interrupted(fd: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(fd).st_size == WEIGHTS.size and offset:
            raise KeyboardInterrupt
        return real(fd, buffers, offset)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "preadv", interrupted)
        cache.adopt("hf")
    assert list(Path(cache.root).rglob("*.tmp")) == []
    assert cache.models().rows == ()
    assert os.stat(blob).st_nlink == 1
    assert snapshot(theirs) == before
    assert {row["outcome"] for row in cache.adopt("hf")} == {"here", "taken"}


@pytest.mark.slow
@pytest.mark.skipif(not PYTHONS, reason="MODELCACHE_HF_PYTHONS names no Python with huggingface_hub")
@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: Path(python).parent.parent.name)
def test_what_hugging_faces_own_client_made_is_adopted(hub: Hub, cache: Cache, theirs: Path, python: str) -> None:
    code = "import huggingface_hub as client; print(client.snapshot_download('org/name'))"
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [python, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    made = Path(done.stdout.splitlines()[-1])
    assert theirs in made.parents
    before, asked = snapshot(theirs), len(hub.requests)
    assert outcomes(cache.adopt("hf")) == dict.fromkeys(FILES, "taken")
    assert snapshot(theirs) == before
    model = cache.fetch(f"{REF}@{COMMIT}")
    assert isinstance(model, mc.Model)
    assert {file.status for file in model.files} == {"hit"}
    for name in FILES:
        assert Path(model[name].path).read_bytes() == (made / name).read_bytes()
    if (theirs / "models--org--name" / "trees").exists():
        assert len(hub.requests) == asked


@pytest.mark.parametrize("command", [["add", "--model", "m"], ["manifest", "make"]])
def test_links_that_are_left_out_are_named(cache: Cache, theirs: Path, command: list[str]) -> None:
    folder = hub_cache(theirs, FILES) / "snapshots" / COMMIT
    done = run(*command, str(folder))
    assert done.returncode == 2
    assert done.stderr.endswith(
        "holds no files (links do not count); take in a cache of Hugging Face or Ollama with `modelcache adopt`\n"
    )
    (folder / "notes.txt").write_text("mine")
    (folder / "folder").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    done = run(*command, str(folder))
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "left out, for it is no plain file: config.json, folder, model.safetensors, onnx/model.onnx, pipe;"
    )
    for name in ("a", "b"):
        (folder / name).symlink_to("notes.txt")
    assert "a, b, config.json, folder, model.safetensors and 2 more;" in run(*command, str(folder)).stderr
