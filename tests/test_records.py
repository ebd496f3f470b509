"""Records are changed one at a time and once per model: no finding is lost, whoever else writes (I3, C1)."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from caches import manifest_of, rot

from modelcache.cache import Cache
from modelcache.errors import ModelNotAvailableError
from modelcache.model import Digest, PieceDigests
from modelcache.store import sharing
from modelcache.store.blobs import save_pieces
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf
from modelcache.testing import Content, Hold, Origin

PIECE = 4 << 20

COUNTED = """
import json, os, sys
from caches import manifest_of
from modelcache.cache import Cache
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
        sharing.distrust(shelf.layout, shelf.registry, record.files[index].sha256, record.place(record.files[index]))

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(distrust, range(16)))

    records = [Installed.read(folder) for folder in folders]
    assert [[file.is_distrusted for file in record.files] for record in records if record] == [[True] * 16] * 2


def test_rot_found_while_other_files_are_fetched_stays_found(cache: Cache) -> None:
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
        assert hold.reached.wait(20)
        rot(folder / "a", 1000)
        cache.verify("m")
        hold.release.set()
        download.result()
    fetching.close()
    with pytest.raises(ModelNotAvailableError):
        cache.path("m")
    assert {row["file"]: row["condition"] for row in cache.info("m")} == {"a": "changed", "b": "right"}


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


def test_piece_digests_that_match_nowhere_do_not_stand_in_the_way_of_a_repair(cache: Cache) -> None:
    content = Content.generated(3 * PIECE)
    with Origin({"f": content}) as origin:
        path = Path(cache.fetch(manifest_of(origin, {"f": content})).path, "f")
        save_pieces(Layout(cache.root), Digest("sha256", content.sha256), PieceDigests(PIECE, bytes(range(96))))
        rot(path, 5)
        (row,) = cache.repair(["m"])
    assert (row["repaired"], row["bytes_fetched"]) == (True, content.size)
