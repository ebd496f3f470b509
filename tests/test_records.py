"""Records are changed one at a time and once per model: no finding is lost, whoever else writes (I3, C1)."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from blake3 import blake3
from caches import manifest_of, no_handle_left, rot

from modelcache.caching import Cache
from modelcache.errors import ModelNotAvailableError, StoreError
from modelcache.model import Digest, PieceDigests
from modelcache.store.blobs import save_pieces
from modelcache.store.disk import read_small
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.sharing import Rotten, Sharing
from modelcache.store.shelf import Shelf
from modelcache.testing import Content, Hold, Origin

PIECE = 4 << 20

COUNTED = """
import json, os, sys, time
from pathlib import Path
from caches import manifest_of, no_handle_left, rot
from modelcache.caching import Cache
from modelcache.store.sharing import WRITE_EVERY_S
from modelcache.testing import Content, Origin

counts = {}
def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith("/.manifest.json"):
        counts["read"] = counts.get("read", 0) + 1
    if event == "os.rename" and str(arguments[1]).endswith("/.manifest.json"):
        counts["written"] = counts.get("written", 0) + 1

def counted(work):
    counts.clear()
    work()
    return dict(counts)

files = {f"{index}.txt": Content.of(b"%d" % index) for index in range(int(sys.argv[1]))}
cache = Cache()
with Origin(files) as origin:
    manifest = manifest_of(origin, files)
    folder = cache.fetch(manifest, progress=False).path
    os.utime(folder + "/.manifest.json", (1, 1))
    os.unlink(folder + "/0.txt")
    sys.addaudithook(count)
    result = {"fetch": counted(lambda: cache.fetch(manifest, progress=False)), "verify": counted(cache.verify)}
    for mend in (lambda: cache.fetch(manifest, strict=True, progress=False), lambda: cache.repair(["m"])):
        for name in files:
            rot(f"{folder}/{name}", 0)
        os.utime(folder + "/.manifest.json", (1, 1))
        began = time.monotonic()
        counts = counted(mend)
        every_s = int((time.monotonic() - began) / WRITE_EVERY_S)  # on a slow machine it is written now and then
        result[str(mend)] = {kind: max(1, count - 2 * every_s) for kind, count in counts.items()}
        assert cache.path("m") == folder
        assert all(Path(folder, name).read_bytes() == content.read() for name, content in files.items())
print(json.dumps(result))
"""


def test_files_found_rotten_at_once_are_all_recorded_in_every_model_that_has_them(cache: Cache, tmp_path: Path) -> None:
    for index in range(16):
        (tmp_path / f"from/{index}").parent.mkdir(exist_ok=True)
        (tmp_path / f"from/{index}").write_bytes(b"%d" % index)
    folders = [cache.add(tmp_path / "from", model).path for model in ("a", "b")]
    shelf = Shelf(Layout(cache.root))
    ready = threading.Barrier(16)

    def distrust(index: int) -> None:
        record = Installed.read(folders[0])
        assert record is not None
        ready.wait()
        sharing = Sharing(shelf.layout, shelf.registry)
        sharing.distrust(record.files[index].sha256, record.place(record.files[index]))
        sharing.write()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(distrust, range(16)))

    records = [Installed.read(folder) for folder in folders]
    assert [[file.is_distrusted for file in record.files] for record in records if record] == [[True] * 16] * 2


def test_what_is_found_rotten_is_available_to_nobody_from_that_moment(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    folders = [Path(cache.add(tmp_path / "file", model).path) for model in ("a", "b")]
    rot(folders[0] / "file", 1)
    shelf = Shelf(Layout(cache.root))
    sharing = Sharing(shelf.layout, shelf.registry)
    sharing.distrust(hashlib.sha256(b"content").hexdigest(), str(folders[0] / "file"))  # and is killed

    for model in ("a", "b"):
        with pytest.raises(ModelNotAvailableError, match="verifying"):
            Cache(cache.root).path(model)

    sharing.write()
    for model in ("a", "b"):
        with pytest.raises(ModelNotAvailableError, match="error"):
            Cache(cache.root).path(model)


def test_new_bytes_are_nobodys_rot_whatever_inode_number_they_get(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    place = Path(cache.add(tmp_path / "file", "m").path, "file")
    entry = cache.info("m").rows[0]
    rotten = Rotten.at(str(place), foreign=False)
    assert rotten is not None
    record = Installed.read(str(place.parent))
    assert record is not None
    assert rotten.is_at(str(place), record.files[0])
    os.utime(place, ns=(0, record.files[0].stamp.mtime_ns))  # another file of that number, which was proven
    assert not rotten.is_at(str(place), record.files[0])
    assert cache.path("m") and entry["condition"] == "right"


def test_rot_found_while_other_files_are_fetched_is_not_installed_but_mended(cache: Cache) -> None:
    files = {"a": Content.generated(100_000, seed=1), "b": Content.generated(100_000, seed=2)}
    fetching = Cache(cache.root, parallel_files=1)
    with Origin(files) as origin:
        manifest = manifest_of(origin, files)
        folder = Path(fetching.fetch(manifest).path)
        (folder / "b").unlink()
        os.unlink(Layout(cache.root).blob(Digest("sha256", files["b"].sha256)))
        hold = Hold(50_000)
        origin.faults(hold)
        download = fetching.fetch(manifest, wait=False)
        assert hold.reached.wait(60)
        rot(folder / "a", 1000)
        cache.verify("m")
        with pytest.raises(ModelNotAvailableError, match="error"):
            cache.path("m")
        hold.release.set()
        download.result()
    fetching.close()
    assert {name: (folder / name).read_bytes() for name in files} == {name: files[name].read() for name in files}
    assert cache.path("m") == str(folder)
    assert {row["finding"] for row in cache.verify()} == {"whole"}


def test_how_often_a_record_is_read_and_written_does_not_grow_with_the_number_of_files() -> None:
    paths = os.pathsep.join(path or os.curdir for path in sys.path)
    child = subprocess.run(
        [sys.executable, "-c", COUNTED, "100"],
        env=os.environ | {"PYTHONPATH": paths},
        check=True,
        capture_output=True,
        timeout=60,
    )
    for counts in json.loads(child.stdout).values():
        assert counts["read"] < 15
        assert 1 <= counts["written"] < 5


@pytest.mark.parametrize("strict", [False, True])
def test_piece_digests_that_a_whole_file_refutes_are_written_anew(cache: Cache, strict: bool) -> None:
    content = Content.generated(3 * PIECE)
    with Origin({"f": content}) as origin:
        manifest = manifest_of(origin, {"f": content})
        path = Path(cache.fetch(manifest).path, "f")
        save_pieces(Layout(cache.root), Digest("sha256", content.sha256), PieceDigests(PIECE, bytes(range(96))))
        if strict:
            cache.fetch(manifest, strict=True)
        else:
            cache.verify("m")
        rot(path, 5)
        (row,) = cache.repair(["m"])
    assert (row["repaired"], row["bytes_fetched"]) == (True, PIECE)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("refuted", [False, True])
def test_piece_digests_that_are_wrong_in_part_do_not_stand_in_the_way_of_a_repair(
    cache: Cache, strict: bool, refuted: bool
) -> None:
    content = Content.generated(3 * PIECE)
    with Origin({"f": content}) as origin:
        manifest = manifest_of(origin, {"f": content})
        path = Path(cache.fetch(manifest).path, "f")
        rot(path, 5, PIECE + 5)
        first = content.read(0, PIECE) if refuted else path.read_bytes()[:PIECE]  # refuted: a whole piece looks wrong
        pieces = [first, content.read(PIECE, 2 * PIECE), b"other" if refuted else content.read(2 * PIECE, 3 * PIECE)]
        flat = b"".join(blake3(piece).digest() for piece in pieces)
        save_pieces(Layout(cache.root), Digest("sha256", content.sha256), PieceDigests(PIECE, flat))
        if strict:
            cache.fetch(manifest, strict=True)
        else:
            assert [row["repaired"] for row in cache.repair(["m"])] == [True]
        assert path.read_bytes() == content.read()
        rot(path, 5)
        (row,) = cache.repair(["m"])
    assert (row["repaired"], row["bytes_fetched"]) == (True, PIECE)


def test_piece_digests_that_match_nowhere_do_not_stand_in_the_way_of_a_repair(cache: Cache) -> None:
    content = Content.generated(3 * PIECE)
    with Origin({"f": content}) as origin:
        path = Path(cache.fetch(manifest_of(origin, {"f": content})).path, "f")
        save_pieces(Layout(cache.root), Digest("sha256", content.sha256), PieceDigests(PIECE, bytes(range(96))))
        rot(path, 5)
        (row,) = cache.repair(["m"])
    assert (row["repaired"], row["bytes_fetched"]) == (True, content.size)


@pytest.mark.parametrize("turn", range(1, 8))
def test_a_record_that_no_handle_is_left_to_read_forgets_no_file(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    files = {"a": Content.of(b"one"), "b": Content.of(b"two")}
    left = turn

    def short(path: str) -> bytes | None:
        nonlocal left
        left -= path.endswith("/.manifest.json")
        with no_handle_left() if left == 0 else nullcontext():
            return read_small(path)

    with Origin(files) as origin:
        manifest = manifest_of(origin, files)
        folder = cache.fetch(manifest, files=["a"], progress=False).path
        monkeypatch.setattr("modelcache.store.installed.read_small", short)
        with suppress(StoreError):
            cache.fetch(manifest, files=["b"], progress=False)
        monkeypatch.undo()
    record = Installed.read(folder)
    assert record is not None
    assert "a" in record.by_path()
