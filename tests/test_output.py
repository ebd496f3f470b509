"""Outputs: whole or not there, on any file system, and nothing that is done to them reaches the cache (I5, I6, I17)."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import manifest_of, run, start

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, StoreError, UsageError
from modelcache.store.disk import store_error
from modelcache.testing import Content, Corrupt, Cut, Hold, Origin, Status

CONTENT = Content.generated(1_500_000, seed=1)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.gguf": CONTENT}) as origin:
        yield origin


@pytest.fixture(params=["beside", "another file system"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where outputs go: the file system of the cache, or another one."""
    if request.param == "beside":
        (tmp_path / "out").mkdir()
        yield tmp_path / "out"
        return
    yield request.getfixturevalue("small_disk")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("cached", [True, False])
def test_an_output_is_whole_and_alone(cache: Cache, origin: Origin, folder: Path, cached: bool) -> None:
    place = folder / "new" / "m.gguf"
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=cached)
    assert (file.path, place.read_bytes()) == (str(place), CONTENT.read())
    assert os.stat(place).st_nlink == 1
    assert names(place.parent) == ["m.gguf"]
    umask = os.umask(0)
    os.umask(umask)
    assert place.stat().st_mode & 0o777 == 0o666 & ~umask


def test_without_the_cache_nothing_is_left_anywhere_else(
    cache: Cache, cache_root: Path, origin: Origin, tmp_path: Path
) -> None:
    cache.fetch(origin.url("m.gguf"), output=tmp_path / "m.gguf", cache=False)
    assert names(tmp_path) == ["m.gguf"]
    assert not cache_root.exists()


def test_an_edited_output_never_reaches_the_cache(cache: Cache, origin: Origin, folder: Path) -> None:
    url, place = origin.url("m.gguf"), folder / "m.gguf"
    cache.fetch(url, sha256=CONTENT.sha256, output=place)
    with open(place, "r+b") as file:
        file.write(b"edited")
    assert Path(cache.fetch(url, sha256=CONTENT.sha256)).read_bytes() == CONTENT.read()
    cache.fetch(url, sha256=CONTENT.sha256, output=place)
    assert place.read_bytes() == CONTENT.read()
    assert len(origin.requests) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_there_is_replaced_only_by_the_whole(cache: Cache, origin: Origin, folder: Path, cached: bool) -> None:
    place = folder / "m.gguf"
    place.write_bytes(b"old")
    origin.faults(Corrupt((7,)))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=cached)
    assert place.read_bytes() == b"old"
    origin.heal()
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=cached)
    assert place.read_bytes() == CONTENT.read()
    assert names(folder) == ["m.gguf"]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder", "nowhere"])
def test_a_link_is_replaced_and_its_target_untouched(
    cache: Cache, origin: Origin, tmp_path: Path, kind: str, cached: bool
) -> None:
    target, place = tmp_path / "target", tmp_path / "link"
    if kind == "file":
        target.write_bytes(b"mine")
    elif kind == "folder":
        target.mkdir()
    place.symlink_to(target)
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=cached)
    assert not place.is_symlink()
    assert place.read_bytes() == CONTENT.read()
    assert {"file": target.is_file, "folder": target.is_dir, "nowhere": lambda: not target.exists()}[kind]()
    assert kind != "file" or target.read_bytes() == b"mine"


def test_what_is_no_file_is_never_replaced(cache: Cache, origin: Origin, tmp_path: Path, cache_root: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to("/dev/null")
    inside = cache_root / "blobs" / "x"
    for place, complaint in (
        (tmp_path, "is a folder"), (tmp_path / "pipe", "a pipe"), (tmp_path / "stdout", "a device"),
        (inside, "inside the cache"), (cache_root, "inside the cache"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=complaint):
            cache.fetch(origin.url("m.gguf"), output=place)
    assert not origin.requests
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; the output of a model is a folder"):
        cache.fetch(manifest_of(origin, {"m.gguf": CONTENT}), output=tmp_path / "file")


def test_what_cannot_be_written_is_said_before_fetching(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        cache.fetch(origin.url("m.gguf"), output=tmp_path / "file" / "m.gguf")
    assert not origin.requests


def test_a_copy_that_does_not_fit_leaves_nothing_and_keeps_the_bytes(
    cache: Cache, origin: Origin, small_disk: Path
) -> None:
    big = Content.generated(6_000_000, seed=2)
    origin.put("big.gguf", big)
    with pytest.raises(StoreError, match="the disk is full") as failure:
        cache.fetch(origin.url("big.gguf"), sha256=big.sha256, output=small_disk / "big.gguf")
    assert failure.value.exit_code == 6
    assert names(small_disk) == []
    assert cache.fetch(origin.url("big.gguf"), sha256=big.sha256).status == "hit"
    assert len(origin.requests) == 1


def test_without_the_cache_a_full_disk_keeps_what_it_has(cache: Cache, origin: Origin, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(b"\0" * 3_500_000)
    place = small_disk / "m.gguf"
    with pytest.raises(StoreError) as failure:
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    assert "free space" in failure.value.next_step
    (small_disk / "ballast").unlink()
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    assert place.read_bytes() == CONTENT.read()
    assert names(small_disk) == ["m.gguf"]


def test_without_the_cache_it_resumes_beside_the_output(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    origin.faults(Cut(1_000_000, times=1), Status(404, after=1))
    place = tmp_path / "out" / "m.gguf"
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    assert failure.value.kept_bytes > 0
    assert not place.exists()
    origin.heal()
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    assert (file.status, file.bytes_resumed) == ("resumed", failure.value.kept_bytes)
    assert names(place.parent) == ["m.gguf"]


def test_without_the_cache_what_is_here_is_not_fetched(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    place = tmp_path / "out" / "m.gguf"
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    from_store = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    at_output = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place, cache=False)
    assert (from_store.status, at_output.status, len(origin.requests)) == ("linked", "hit", 1)
    assert os.stat(place).st_nlink == 1


def test_two_processes_may_want_the_same_output(origin: Origin, tmp_path: Path) -> None:
    hold = Hold(1_000_000, times=1)
    origin.faults(hold)
    place = tmp_path / "out" / "m.gguf"
    wanted = ["fetch", origin.url("m.gguf"), "--sha256", CONTENT.sha256, "--output", str(place), "--no-cache", "--json"]
    first = start(*wanted)
    assert hold.reached.wait(60)
    second = start(*wanted)
    hold.release.set()
    ends = [process.communicate(timeout=60) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], ends
    assert place.read_bytes() == CONTENT.read()
    assert names(place.parent) == ["m.gguf"]
    assert len(origin.requests) == 1


def test_a_kill_while_copying_leaves_what_a_rerun_replaces(cache: Cache, origin: Origin, folder: Path) -> None:
    place = folder / "m.gguf"
    rest = folder / f".m.gguf.{CONTENT.sha256[:16]}.modelcache"
    rest.write_bytes(b"half")
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, output=place)
    assert names(folder) == ["m.gguf"]


def test_a_model_goes_into_a_folder_and_is_found_there(cache: Cache, origin: Origin, folder: Path) -> None:
    files = {"a.json": Content.generated(10, seed=1), "sub/b.bin": Content.generated(20_000, seed=2)}
    for path, content in files.items():
        origin.put(path, content)
    manifest = manifest_of(origin, files)
    model = cache.fetch(manifest, output=folder / "model")
    assert model.path == str(folder / "model")
    assert {file.name: Path(file).read_bytes() for file in model.files} == {
        path: content.read() for path, content in files.items()
    }
    (folder / "model" / "mine.txt").write_text("stays")
    (folder / "model" / "a.json").write_text("edited")
    again = cache.fetch(manifest, output=folder / "model")
    assert Path(again["a.json"]).read_bytes() == files["a.json"].read()
    assert [file.status for file in cache.fetch(manifest, output=folder / "model").files] == ["hit", "hit"]
    assert names(folder / "model") == [".manifest.json", "a.json", "mine.txt", "sub"]
    assert len(origin.requests) == 2


def test_a_model_without_the_cache(cache: Cache, cache_root: Path, origin: Origin, tmp_path: Path) -> None:
    origin.put("sub/b.bin", CONTENT)
    manifest = manifest_of(origin, {"m.gguf": CONTENT, "sub/b.bin": CONTENT})
    model = cache.fetch(manifest, output=tmp_path / "model", cache=False)
    assert model.is_verified
    assert [file.status for file in cache.fetch(manifest, output=tmp_path / "model", cache=False).files] == [
        "hit",
        "hit",
    ]
    assert not cache_root.exists()
    assert names(tmp_path / "model" / "sub") == ["b.bin"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that is mounted read-only."""
    place = tmp_path / "read-only"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_read_only_place_is_one_line_and_fetches_nothing(origin: Origin, read_only: Path, cache: Cache) -> None:
    url = origin.url("m.gguf")
    for arguments, home in (
        (["--output", str(read_only / "m.gguf")], None),
        (["--output", str(read_only / "m.gguf"), "--no-cache"], None),
        ([], str(read_only)),
        ([], str(read_only / "new")),
    ):
        done = run("fetch", url, "--quiet", *arguments, **({"MODELCACHE_HOME": home} if home else {}))
        assert done.returncode == 6
        assert done.stderr.count("\n") == 1
        assert "read-only" in done.stderr
        assert str(read_only) in done.stderr
    assert not origin.requests
    told = run("fetch", url, MODELCACHE_HOME=str(read_only), MODELCACHE_FALLBACK=cache.root)
    assert Path(told.stdout.strip()).is_relative_to(cache.root)


def test_a_read_only_cache_is_still_read(origin: Origin, cache: Cache, tmp_path: Path) -> None:
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    home = tmp_path / "seen"
    home.mkdir()
    if subprocess.run(["mount", "--bind", cache.root, str(home)], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(home)], check=True)
        seen = Cache(home)
        url = origin.url("m.gguf")
        assert seen.fetch(url, sha256=CONTENT.sha256).status == "hit"
        assert Path(seen.path(url)).samefile(file.path)
        assert [row["finding"] for row in seen.verify()] == ["whole"]
        with pytest.raises(StoreError, match="read-only"):
            seen.remove(url)
        with pytest.raises(StoreError, match="read-only"):
            seen.fetch(origin.url("other.gguf"))
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


FORBIDDEN = """if True:
    import os, sys, tempfile
    from modelcache.cli import main
    url = sys.argv[1]
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        os.environ["MODELCACHE_HOME"] = os.path.join(place, "home")
        code = main(["fetch", url, "--quiet"])
        with tempfile.TemporaryDirectory() as home:
            os.environ["MODELCACHE_HOME"] = home
            code += main(["fetch", url, "--quiet", "--output", os.path.join(place, "m.gguf")])
    sys.exit(code)
"""


def test_a_place_that_is_not_ours_is_one_line(origin: Origin) -> None:
    obedient = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*obedient, sys.executable, "-c", FORBIDDEN, origin.url("m.gguf")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (12, ""), done.stderr
    assert [line.count("permission denied") for line in done.stderr.splitlines()] == [1, 1]


def test_errors_of_the_disk_say_what_to_do() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EMFILE, errno.EIO):
        error = store_error(OSError(code, os.strerror(code)), "/place")
        assert error.message.startswith("/place: ")
        assert error.next_step
