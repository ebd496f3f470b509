"""Rot is found, named by its piece, and mended by that piece alone; nothing is deleted (product A6, B1, I5, I29)."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from caches import Events, check_pace, check_progress, manifest_of, no_handle_left, partials, rot

from modelcache.abreast import processors
from modelcache.audit import Manner, read, sampler_of, verify
from modelcache.caching import Cache
from modelcache.errors import ModelNotAvailableError, PausedError, StoreError
from modelcache.mending import Repairer
from modelcache.model import Digest, PieceDigests
from modelcache.outcome import File
from modelcache.store.blobs import has_pieces, load_pieces, save_pieces
from modelcache.store.installed import Installed, Stamp
from modelcache.store.layout import Layout
from modelcache.testing import Content, Corrupt, Cut, Origin, Slow, Status
from modelcache.transfer.control import Control
from modelcache.transfer.portion import HEDGED
from modelcache.wish import Wish

BIG = Content.generated(14_000_000, seed=1)  # four pieces of 4 MiB
SMALL = Content.generated(50_000, seed=2)
PIECE = 4 << 20
MIB = 1 << 20


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"big.bin": BIG, "same.bin": BIG, "small.json": SMALL}) as origin:
        yield origin


@pytest.fixture
def model(cache: Cache, origin: Origin) -> str:
    """The folder of the model `m`, which was verified once: so all its pieces are known."""
    folder = cache.fetch(manifest_of(origin, {"big.bin": BIG, "small.json": SMALL})).path
    cache.verify("m")
    return folder


def findings(cache: Cache, model: str | None = None) -> dict[str, str]:
    return {row["file"]: row["finding"] for row in cache.verify(model)}


def quarantined(cache: Cache) -> list[bytes]:
    folder = Path(cache.root, "quarantine")
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def asked(origin: Origin, since: int) -> list[tuple[str, str | None]]:
    return [(seen.path, seen.range) for seen in origin.requests[since:]]


def test_what_is_whole_is_whole(cache: Cache, model: str) -> None:
    assert findings(cache) == findings(cache, "m") == {"big.bin": "whole", "small.json": "whole"}
    assert cache.repair().rows == cache.repair(["m"]).rows == ()


def test_rot_is_named_by_its_pieces_whatever_the_date_says(cache: Cache, model: str) -> None:
    rot(Path(model, "big.bin"), 5_000_000, 13_999_999)
    row = next(row for row in cache.verify() if row["file"] == "big.bin")
    assert (row["finding"], row["wrong_bytes"]) == ("corrupt", "4194304-8388607, 12582912-13999999")
    assert row["reason"]


def test_repair_fetches_only_what_is_wrong(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 5_000_000)
    since = len(origin.requests)
    (row,) = cache.repair(["m"])
    assert (row["repaired"], row["bytes_fetched"], row["source"]) == (True, PIECE, "http")
    assert asked(origin, since) == [("/big.bin", f"bytes={PIECE}-{2 * PIECE - 1}")]
    assert Path(model, "big.bin").read_bytes() == BIG.read()
    assert findings(cache) == {"big.bin": "whole", "small.json": "whole"}
    assert cache.path("m") == model
    (kept,) = quarantined(cache)
    assert [at for at in range(0, BIG.size, 1_000_000) if kept[at] != BIG.read()[at]] == [5_000_000]
    assert row["set_aside"] == str(next(Path(cache.root, "quarantine").iterdir()))
    assert not partials(cache)


@pytest.mark.parametrize("wrong", [(1, 2, 3, 4), (1, 5, 9, 13), (3, 14)])
def test_repair_moves_what_is_wrong_and_one_hedge_however_slow_the_source(cache: Cache, wrong: tuple[int, ...]) -> None:
    """What the origin sends is counted there: connections that help each other ask for little twice."""
    large = Content.generated(15 * PIECE, seed=9)
    with Origin({"large.bin": large}) as origin:
        path = Path(cache.fetch(manifest_of(origin, {"large.bin": large})).path, "large.bin")
        rot(path, *[index * PIECE + 100 for index in wrong])
        before = len(origin.requests)
        origin.faults(Slow(2 * MIB))
        (row,) = cache.repair(["m"])
        sent = sum(seen.bytes_sent for seen in origin.requests[before:])
    assert row["repaired"]
    assert len(wrong) * PIECE <= sent < len(wrong) * PIECE + HEDGED + MIB


def test_repair_reaches_every_model_that_shares_the_bytes(cache: Cache, origin: Origin, model: str) -> None:
    other = cache.fetch(origin.url("same.bin"), sha256=BIG.sha256)
    assert isinstance(other, File)
    rot(Path(model, "big.bin"), 1)
    cache.verify("m")
    with pytest.raises(ModelNotAvailableError, match="error"):
        cache.path(origin.url("same.bin"))
    cache.repair(["m"])
    assert Path(other).read_bytes() == Path(model, "big.bin").read_bytes() == BIG.read()
    assert os.path.samefile(other, Path(model, "big.bin"))
    assert cache.path(origin.url("same.bin")) == other.path
    assert cache.fetch(origin.url("same.bin")).status == "hit"
    assert [row["status"] for row in cache.models()] == ["ready", "ready"]


def test_without_a_source_it_is_withheld_and_nothing_is_lost(cache: Cache, origin: Origin, model: str) -> None:
    other = cache.fetch(origin.url("same.bin"), sha256=BIG.sha256)
    rot(Path(model, "big.bin"), 1)
    rotten = Path(model, "big.bin").read_bytes()
    origin.faults(Status(404))
    (row,) = cache.repair(["m"])
    assert (row["repaired"], row["kind"]) == (False, "not_found")
    assert row["reason"]
    assert not Path(model, "big.bin").exists()
    assert not Path(other.path).exists()
    assert quarantined(cache) == [rotten]
    assert Path(model, "small.json").read_bytes() == SMALL.read()
    with pytest.raises(ModelNotAvailableError, match="error"):
        cache.path("m")
    assert [row["status"] for row in cache.models()] == ["error", "error"]
    row = next(row for row in cache.verify("m") if row["file"] == "big.bin")
    assert (row["finding"], row["wrong_bytes"]) == ("corrupt", f"0-{PIECE - 1}")
    origin.heal()
    for folder in ("quarantine", "partials"):  # as after the ages of `clean`
        shutil.rmtree(Path(cache.root, folder))
    assert [(row["repaired"], row["bytes_fetched"]) for row in cache.repair(["m"])] == [(True, PIECE)]
    assert Path(model, "big.bin").read_bytes() == BIG.read()
    assert os.path.samefile(other.path, Path(model, "big.bin"))
    assert cache.path(origin.url("same.bin")) == other.path


def test_a_repair_that_gets_no_byte_leaves_no_unfinished_download(cache: Cache, origin: Origin, model: str) -> None:
    (row,) = (row for row in cache.info("m") if row["file"] == "big.bin")
    for path in [*Path(cache.root, "blobs").rglob(row["sha256"]), Path(row["path"])]:
        path.unlink()
    origin.faults(Status(404))
    for _ in range(2):
        assert [row["repaired"] for row in cache.repair()] == [False]
    assert os.listdir(Path(cache.root, "partials")) == []
    assert not [row for row in cache.doctor() if "unfinished" in row["finding"]]


def test_what_failed_to_be_repaired_is_set_aside_once(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 1)
    rotten = Path(model, "big.bin").read_bytes()
    origin.faults(Status(404))
    for _ in range(3):
        cache.repair(["m"])
    assert quarantined(cache) == [rotten]
    origin.heal()
    (row,) = cache.repair(["m"])
    assert (row["repaired"], Path(row["set_aside"]).read_bytes(), quarantined(cache)) == (True, rotten, [rotten])


def test_rot_is_withheld_though_the_blob_is_gone(cache: Cache, origin: Origin, model: str) -> None:
    place, blob = Path(model, "big.bin"), Path(Layout(cache.root).blob(Digest("sha256", BIG.sha256)))
    blob.unlink()
    rot(place, 1)
    origin.faults(Status(404))
    assert [row["repaired"] for row in cache.repair(["m"])] == [False]
    assert not place.exists()
    origin.heal()
    for folder in ("quarantine", "partials"):
        shutil.rmtree(Path(cache.root, folder))
    assert [(row["repaired"], row["bytes_fetched"]) for row in cache.repair(["m"])] == [(True, PIECE)]
    assert place.read_bytes() == BIG.read()
    assert os.path.samefile(place, blob)


def test_a_repair_that_is_cut_goes_on(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 1, 5_000_000)
    origin.faults(Cut(2_000_000, times=1), Status(404, after=1))
    assert [row["repaired"] for row in cache.repair(["m"])] == [False]
    origin.heal()
    (row,) = cache.repair()
    assert row["repaired"]
    assert row["bytes_fetched"] <= 2 * PIECE - 1_000_000
    assert Path(model, "big.bin").read_bytes() == BIG.read()


def test_a_source_that_lies_repairs_nothing(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 5)
    origin.faults(Corrupt((6,)))
    (row,) = cache.repair(["m"])
    assert (row["repaired"], row["kind"]) == (False, "integrity")
    with Origin({"big.bin": BIG}) as mirror:
        (row,) = cache.repair(["m"], mirrors=[mirror.url()])
    assert row["repaired"]


def test_a_missing_file_comes_from_the_store(cache: Cache, origin: Origin, model: str) -> None:
    os.unlink(Path(model, "big.bin"))
    since = len(origin.requests)
    assert findings(cache)["big.bin"] == "missing"
    (row,) = cache.repair()
    assert (row["repaired"], row["bytes_fetched"], row["source"]) == (True, 0, "cache")
    assert Path(model, "big.bin").read_bytes() == BIG.read()
    assert asked(origin, since) == []


def test_an_edited_model_path_is_set_aside_and_comes_from_the_store(cache: Cache, origin: Origin, model: str) -> None:
    os.unlink(Path(model, "small.json"))
    Path(model, "small.json").write_text("my edit")
    with pytest.raises(ModelNotAvailableError, match="verifying"):
        cache.path("m")
    since = len(origin.requests)
    (row,) = cache.repair()
    assert (row["repaired"], row["bytes_fetched"]) == (True, 0)
    assert Path(model, "small.json").read_bytes() == SMALL.read()
    assert quarantined(cache) == [b"my edit"]
    assert asked(origin, since) == []


def test_an_edit_through_the_link_reaches_nobody_for_long(cache: Cache, origin: Origin, model: str) -> None:
    place = Path(model, "small.json")
    assert place.stat().st_mode & 0o222 == 0  # one has to want it
    place.chmod(0o600)
    place.write_bytes(b"edited in place")
    assert findings(cache)["small.json"] == "corrupt"
    assert [row["repaired"] for row in cache.repair()] == [True]
    assert place.read_bytes() == SMALL.read()
    assert quarantined(cache) == [b"edited in place"]


def test_an_edited_output_never_reaches_the_cache(cache: Cache, origin: Origin, tmp_path: Path) -> None:
    manifest = manifest_of(origin, {"small.json": SMALL})
    cache.fetch(manifest, output=tmp_path / "out")
    (tmp_path / "out" / "small.json").write_bytes(b"mine")
    assert findings(cache) == {"small.json": "whole"}
    assert Path(cache.path("m"), "small.json").read_bytes() == SMALL.read()


def test_verify_refreshes_the_date_of_what_is_right(cache: Cache, model: str) -> None:
    os.utime(Path(model, "small.json"), (1, 1))
    with pytest.raises(ModelNotAvailableError, match="verifying"):
        cache.path("m")
    before = {row["file"]: row["verified_at"] for row in cache.info("m")}
    cache.verify("m")
    assert cache.path("m") == model
    assert all(row["verified_at"] > before[row["file"]] for row in cache.info("m"))


def test_a_hit_does_not_pretend_to_have_verified(cache: Cache, origin: Origin, model: str) -> None:
    before = [row["verified_at"] for row in cache.info("m")]
    os.unlink(Path(model, "small.json"))
    cache.fetch(manifest_of(origin, {"big.bin": BIG, "small.json": SMALL}))
    after = {row["file"]: row["verified_at"] for row in cache.info("m")}
    assert after["big.bin"] == before[0]
    assert after["small.json"] > before[1]


def test_rot_of_a_length_is_found_too(cache: Cache, model: str) -> None:
    place = Path(model, "big.bin")
    place.chmod(0o600)
    os.truncate(place, PIECE + 1)
    row = next(row for row in cache.verify() if row["file"] == "big.bin")
    assert (row["finding"], row["size"]) == ("corrupt", BIG.size)
    (row,) = cache.repair()
    assert (row["repaired"], row["bytes_fetched"]) == (True, BIG.size - PIECE)


def test_without_pieces_all_is_fetched(cache: Cache, origin: Origin, model: str) -> None:
    for path in Path(cache.root, "pieces").rglob("*.pieces"):
        path.write_bytes(b"garbage")
    rot(Path(model, "big.bin"), 5)
    row = next(row for row in cache.verify() if row["file"] == "big.bin")
    assert (row["wrong_bytes"], row["reason"]) == ("", "no piece digests tell where")
    (row,) = cache.repair()
    assert (row["repaired"], row["bytes_fetched"]) == (True, BIG.size)


def test_a_verify_learns_the_pieces_that_are_not_known(cache: Cache, model: str) -> None:
    for path in Path(cache.root, "pieces").rglob("*.pieces"):
        path.unlink()
    cache.verify()
    rot(Path(model, "big.bin"), 5)
    assert next(row for row in cache.verify() if row["file"] == "big.bin")["wrong_bytes"] == f"0-{PIECE - 1}"


def test_a_file_that_was_never_fetched_is_no_finding_but_a_note(cache: Cache, origin: Origin) -> None:
    origin.faults(Status(404), path="small.json")
    manifest = manifest_of(origin, {"big.bin": BIG, "small.json": SMALL})
    with pytest.raises(Exception, match=r"small\.json could not be fetched"):
        cache.fetch(manifest)
    assert findings(cache) == {"big.bin": "whole"}
    (note,) = cache.verify().notes
    assert "is incomplete, it lacks small.json: " in note and "fetch" in note
    assert len(cache.repair()) == 0


def test_what_cannot_be_read_is_not_called_corrupt(cache: Cache, model: str) -> None:
    place = Path(model, "small.json")
    place.unlink()
    place.symlink_to("/etc/hostname")
    row = next(row for row in cache.verify() if row["file"] == "small.json")
    assert row["finding"] == "unreadable"
    assert quarantined(cache) == []
    assert cache.repair().rows[0]["repaired"]
    assert place.read_bytes() == SMALL.read()


def test_subscribers_are_told_of_a_repair(cache: Cache, model: str) -> None:
    told = Events()
    cache.on_event(told)
    rot(Path(model, "big.bin"), 1)
    cache.verify()
    cache.repair()
    (event,) = told.of("repaired")
    assert (event["modelId"], event["version"], event["path"], event["file"]) == ("m", "1", model, "big.bin")
    assert f"{PIECE:,} of {BIG.size:,} bytes" in event["message"]


def test_one_version_alone_can_be_verified(cache: Cache, origin: Origin, model: str) -> None:
    cache.fetch(manifest_of(origin, {"small.json": SMALL}, version="2"))
    assert len(cache.verify("m", "1")) == 2
    assert len(cache.verify("m")) == len(cache.verify("m@2")) == 1
    with pytest.raises(ModelNotAvailableError, match="m@3 is not available: not_installed"):
        cache.verify("m", "3")


# -- side by side, and by what --------------------------------------------------------------------------------------


class Meeting(Control):
    """No thread reads on before two of them read."""

    def __init__(self) -> None:
        super().__init__()
        self._met = threading.Barrier(2)
        self._seen = threading.local()

    def check(self) -> None:
        super().check()
        if not getattr(self._seen, "already", False):
            self._seen.already = True
            self._met.wait(60)


def verified(cache: Cache, folder: str, control: Control, *, strict: bool = False) -> list[tuple[str, str]]:
    record = Installed.read(folder)
    assert record is not None
    return [(audit.path, audit.finding) for audit in verify(cache._runtime.shop, record, control, Manner(strict))]


@pytest.mark.skipif(processors() < 2, reason="one processor reads with one thread")
@pytest.mark.parametrize("strict", [False, True])
def test_two_files_are_read_at_once(cache: Cache, model: str, strict: bool) -> None:
    found = verified(cache, model, Meeting(), strict=strict)
    assert found == [("big.bin", "whole"), ("small.json", "whole")]


@pytest.mark.skipif(processors() < 2, reason="one processor reads with one thread")
def test_one_file_is_read_by_all_threads_where_its_pieces_are_known(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    source.write_bytes(Content.generated(40 << 20).read())
    folder = cache.add(source, "large").path
    assert verified(cache, folder, Meeting()) == [("large.bin", "whole")]
    rot(Path(folder, "large.bin"), 39 << 20)
    assert verified(cache, folder, Control()) == [("large.bin", "corrupt")]


def test_pieces_are_enough_for_all_of_a_large_file(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "large.bin"
    content = Content.generated(40 << 20)
    source.write_bytes(content.read())
    folder = cache.add(source, "large").path
    forge(cache, Path(folder, "large.bin"), content, 39 << 20)
    assert findings(cache) == {"large.bin": "whole"}


def test_what_is_wrong_with_one_file_loses_nothing_of_the_others(cache: Cache, origin: Origin) -> None:
    names = ["corrupt", "gone", "link", "no folder/file", "right"]
    with Origin(dict.fromkeys(names, SMALL)) as served:
        folder = Path(cache.fetch(manifest_of(served, dict.fromkeys(names, SMALL))).path)
    for name in names[:-1]:
        (folder / name).unlink()
    (folder / "corrupt").write_bytes(b"other")
    (folder / "link").symlink_to("/etc/hostname")
    (folder / "no folder").rmdir()
    (folder / "no folder").write_bytes(b"a file")
    found = [row["finding"] for row in cache.verify()]
    assert found == ["corrupt", "missing", "unreadable", "missing", "whole"]


class Stopping(Control):
    """Asked to stop as soon as the small file, at `place`, is found rotten, as its date tells; the large one waits."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self._place = place
        self._before = place.stat().st_mtime_ns
        self._mine = threading.local()

    def check(self) -> None:
        super().check()
        self._mine.checks = getattr(self._mine, "checks", 0) + 1
        pause = threading.Event()
        for _ in range(2000 if self._mine.checks == 4 else 0):  # the small file is read in one, and once more
            if self._place.stat().st_mtime_ns != self._before:
                self.stop(PausedError("enough"))
                break
            pause.wait(0.01)


@pytest.mark.skipif(processors() < 2, reason="one processor reads with one thread")
def test_a_verify_that_is_stopped_keeps_what_it_found(cache: Cache, model: str) -> None:
    rot(Path(model, "small.json"), 5)
    with pytest.raises(PausedError, match="enough"):
        verified(cache, model, Stopping(Path(model, "small.json")))
    assert not [thread for thread in threading.enumerate() if thread.name == "modelcache-reader"]
    with pytest.raises(ModelNotAvailableError, match="error"):
        cache.path("m")


def forge(cache: Cache, place: Path, content: Content, offset: int = 5) -> None:
    """Somebody who may write to the store changes a file, and what is recorded of its pieces."""
    rot(place, offset)
    forged = place.read_bytes()
    flat = b"".join(blake3(forged[at : at + PIECE]).digest() for at in range(0, len(forged), PIECE))
    save_pieces(Layout(cache.root), Digest("sha256", content.sha256), PieceDigests(PIECE, flat))


def test_strict_believes_no_piece(cache: Cache, model: str) -> None:
    forge(cache, Path(model, "big.bin"), BIG)
    assert findings(cache)["big.bin"] == "whole"
    assert {row["file"]: row["finding"] for row in cache.verify(strict=True)}["big.bin"] == "corrupt"


def test_what_was_found_rotten_is_right_again_only_by_its_sha256(cache: Cache, model: str) -> None:
    forge(cache, Path(model, "big.bin"), BIG)
    cache.verify(strict=True)
    assert findings(cache)["big.bin"] == "corrupt"
    assert [row["repaired"] for row in cache.repair()] == [True]
    assert Path(model, "big.bin").read_bytes() == BIG.read()
    assert findings(cache)["big.bin"] == "whole"


def test_pieces_of_another_content_are_not_believed(cache: Cache) -> None:
    layout, one, other = Layout(cache.root), Digest("sha256", "1" * 64), Digest("sha256", "2" * 64)
    save_pieces(layout, one, PieceDigests(PIECE, b"x" * 32))
    os.makedirs(os.path.dirname(layout.pieces(other)))
    os.link(layout.pieces(one), layout.pieces(other))
    assert load_pieces(layout, one, 5) == PieceDigests(PIECE, b"x" * 32)
    assert load_pieces(layout, other, 5) is None


def test_pieces_prove_nothing_of_a_file_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"right")
    stamp, pieces = Stamp.of(str(place)), PieceDigests(PIECE, blake3(b"right").digest())
    assert has_pieces(str(place), stamp, pieces, range(1), lambda: None)
    (tmp_path / "other").write_bytes(b"right")
    os.rename(tmp_path / "other", place)
    assert not has_pieces(str(place), stamp, pieces, range(1), lambda: None)


# -- how far it is --------------------------------------------------------------------------------------------------


class Attended(Control):
    """Reading goes on only while somebody is told of it: after two buffers, it waits for a sample of more than one."""

    def __init__(self, told: Events) -> None:
        super().__init__()
        self._told = told
        self._mine = threading.local()

    def check(self) -> None:
        super().check()
        self._mine.checks = getattr(self._mine, "checks", 0) + 1
        if self._mine.checks == 5:  # the small file is read in one
            self._told.wait_until(lambda told: any(event["bytesDownloaded"] > MIB for event in told.progress))


def test_a_verify_tells_how_far_it_has_read(cache: Cache, model: str) -> None:
    told = Events()
    cache.on_event(told)
    shop = cache._runtime.shop
    record = Installed.read(model)
    assert record is not None
    verify(shop, record, Attended(told))
    shop.dispatcher.drain(10)
    check_progress(told.progress, "m")
    reading = [event for event in told.progress if event["status"] == "downloading"]
    assert {(event["file"], event["source"], event["totalFiles"]) for event in reading} == {("big.bin", "cache", 2)}
    assert reading[0]["downloadSpeed"] > 0
    ends = [(event["file"], event["status"], event["completedFiles"]) for event in told.progress[-3:]]
    assert ends == [("big.bin", "success", 1), ("small.json", "success", 2), ("", "completed", 2)]


def test_a_verify_that_finds_something_ends_with_an_error(cache: Cache, model: str) -> None:
    rot(Path(model, "big.bin"), 5)
    told = Events()
    cache.verify("m", progress=told)
    check_progress(told.progress, "m")
    first, last = told.progress[0], told.progress[-1]
    assert (first["file"], first["status"]) == ("big.bin", "error")
    assert first["error"] == "corrupt: the bytes are not what they were"
    assert (last["status"], last["done"], last["error"]) == ("error", True, "1 of 2 files are not right")


def test_a_repair_tells_how_far_it_is_as_a_fetch_does(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 1, 5_000_000)
    origin.faults(Cut(1_000_000, times=1), Slow(4_000_000))
    told = Events()
    assert cache.repair(["m"], progress=told).rows[0]["repaired"]
    check_progress(told.progress, "m")
    check_pace(told.progress[:-1])
    moving = [event for event in told.progress if event["status"] == "downloading" and event["source"] == "http"]
    assert {event["gateway"] for event in moving} == {origin.url("big.bin")}
    assert moving[-1]["bytesDownloaded"] > moving[0]["bytesDownloaded"]
    assert (moving[-1]["retryCount"], moving[-1]["downloadSpeed"] > 0) == (1, True)
    *_, end, last = told.progress
    assert (end["file"], end["status"], end["completedFiles"], end["progress"]) == ("big.bin", "success", 2, 100.0)
    assert (last["status"], last["totalBytes"]) == ("completed", BIG.size + SMALL.size)


def test_a_repair_that_fails_ends_with_an_error(cache: Cache, origin: Origin, model: str) -> None:
    rot(Path(model, "big.bin"), 1)
    origin.faults(Status(404))
    told = Events()
    (row,) = cache.repair(["m"], progress=told)
    check_progress(told.progress, "m")
    *_, end, last = told.progress
    assert (end["file"], end["status"]) == ("big.bin", "error")
    assert end["error"] in row["reason"]
    assert (last["status"], last["error"]) == ("error", "1 of 2 files are not right")
    assert not told.of("download_complete")


@pytest.mark.parametrize("strict", [False, True])
def test_too_few_handles_to_read_with_say_nothing_of_a_file(cache: Cache, model: str, strict: bool) -> None:
    record = Installed.read(model)
    assert record is not None
    with no_handle_left(), pytest.raises(StoreError, match="too many open files"):
        verify(cache._runtime.shop, record, Control(), Manner(strict))
    assert Installed.read(model) == record
    assert cache.path("m") == model
    assert findings(cache) == {"big.bin": "whole", "small.json": "whole"}


def test_a_failed_repair_withholds_nothing_that_another_repaired(cache: Cache, origin: Origin, model: str) -> None:
    """As when two repair at once, and its source then fails the one who comes second."""
    rot(Path(model, "big.bin"), 1)
    record = Installed.read(model)
    assert record is not None
    shop, control = cache._runtime.shop, Control()
    with sampler_of(shop, record) as sampler:
        (stale,) = [audit for audit in read(shop, record, control, sampler) if audit.finding == "corrupt"]
        cache.repair(["m"])
        origin.faults(Status(404))
        Repairer(shop, record, Wish(), control, sampler).row(stale)
    assert Path(model, "big.bin").read_bytes() == BIG.read()
    assert cache.path("m") == model
