"""The rules of a partial, one by one: what is absent, written, proven, visible, and whose it is."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from modelcache.errors import FencedError, StoreError, VerificationError
from modelcache.model import Digest, ModelFile, PieceDigests, Span
from modelcache.pieces import Checks
from modelcache.spans import END
from modelcache.store import claim as claims
from modelcache.store import journal as journals
from modelcache.store.follower import Follower
from modelcache.store.partial import Partial, SpanWriter, found
from modelcache.store.writeback import SYNC_EVERY, WriteBack

MIB = 1 << 20
KEY = "sha256-key"
DATA = random.Random(1).randbytes(50_000)
BIG = random.Random(2).randbytes(6 * MIB + 12_345)
PATIENCE_S = 60  # for what must happen, and would never if it did not


def wanted(data: bytes = DATA, *, digest: bool = True, size: bool = True, piece: int = 0) -> ModelFile:
    digests = (Digest("sha256", hashlib.sha256(data).hexdigest()),) if digest else ()
    pieces = None
    if piece:
        starts = range(0, len(data), piece)
        pieces = PieceDigests(piece, b"".join(blake3(data[at : at + piece]).digest() for at in starts))
    return ModelFile("m.bin", len(data) if size else None, digests, (), pieces)


FILE = wanted()
UNKNOWN = wanted(digest=False, size=False)
PIECES = wanted(piece=7000)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A folder of partials. No test may leave a file handle open."""
    before = len(os.listdir("/proc/self/fd"))
    yield tmp_path / "partials"
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test left was collected meanwhile


@pytest.fixture
def opened(base: Path) -> Iterator[Callable[..., Partial]]:
    partials = []

    def opener(file: ModelFile = FILE, **settings: int) -> Partial:
        partials.append(Partial.open(str(base), KEY, file, **settings))
        return partials[-1]

    yield opener
    for partial in partials:
        partial.close()


def put(partial: Partial, start: int, data: bytes, source: str = "a") -> None:
    """As a worker does it: chunks, and the span given back at the end whatever happens."""
    writer = partial.writer(Span(start, start + len(data)), source)
    try:
        for at in range(0, len(data), 1 << 18):
            writer.write(data[at : at + (1 << 18)])
    finally:
        writer.close()


def fill(partial: Partial, data: bytes = DATA, source: str = "a") -> None:
    for span in partial.missing():
        stop = min(span.stop, len(data))
        put(partial, span.start, data[span.start : stop], source)


def leave(opened: Callable[..., Partial], file: ModelFile, *runs: tuple[int, bytes]) -> None:
    partial = opened(file)
    for start, data in runs:
        put(partial, start, data)
    partial.close()


def left_data(base: Path) -> Path:
    """The data of the only partial, which nobody has."""
    (name,) = found(str(base), KEY)
    return base / name / "data"


def rot(base: Path, offset: int) -> None:
    """One byte of what a run left changes on the disk."""
    data = left_data(base)
    mode = stat.S_IMODE(data.stat().st_mode)
    data.chmod(0o600)
    with data.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes([DATA[offset] ^ 1]))
    data.chmod(mode)


def commit(partial: Partial, target: Path, mode: int = 0o444) -> None:
    assert partial.await_proof(PATIENCE_S)
    partial.commit(str(target), mode)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        os.sched_yield()


def fill_disk(path: Path) -> None:
    with path.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(4096))


# -- 1: what is absent ------------------------------------------------------------------------------------------------


def test_a_new_partial_lacks_everything(opened) -> None:
    partial = opened()
    assert partial.missing() == [Span(0, len(DATA))]
    assert (partial.resumed_bytes, partial.written_bytes, partial.is_written()) == (0, 0, False)


def test_what_was_written_is_not_missing(opened) -> None:
    partial = opened()
    put(partial, 100, DATA[100:200])
    put(partial, 300, DATA[300:301])
    assert partial.missing() == [Span(0, 100), Span(200, 300), Span(301, len(DATA))]
    assert partial.written_bytes == 101


def test_a_rerun_lacks_what_the_run_before_did_not_write(opened) -> None:
    leave(opened, FILE, (100, DATA[100:200]))
    partial = opened()
    assert partial.missing() == [Span(0, 100), Span(200, len(DATA))]
    assert partial.resumed_bytes == 100


def test_bytes_that_a_writer_is_to_write_are_missing_but_not_unclaimed(opened) -> None:
    partial = opened()
    writer = partial.writer(Span(100, 200), "a")
    writer.write(DATA[100:150])
    assert partial.missing() == [Span(0, len(DATA))]
    assert partial.unclaimed() == [Span(0, 100), Span(200, len(DATA))]
    assert partial.written_bytes == 50
    writer.close()
    assert partial.unclaimed() == partial.missing() == [Span(0, 100), Span(150, len(DATA))]


def test_a_file_of_unknown_size_lacks_bytes_without_end(opened) -> None:
    partial = opened(UNKNOWN)
    put(partial, 0, DATA[:10])
    assert partial.missing() == [Span(10, END)]
    assert not partial.is_written()
    partial.settle_size(10)
    assert partial.is_written()


def test_a_settled_size_is_known_to_the_next_run(opened, tmp_path) -> None:
    partial = opened(UNKNOWN)
    partial.settle_size(len(DATA))
    put(partial, 0, DATA[:10])
    partial.close()
    again = opened(UNKNOWN)
    assert (again.size, again.resumed_bytes) == (len(DATA), 10)
    fill(again)
    commit(again, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_size_is_settled_once(opened) -> None:
    partial = opened(UNKNOWN)
    partial.settle_size(10)
    partial.settle_size(10)
    with pytest.raises(VerificationError, match="11 bytes, 10 expected"):
        partial.settle_size(11)
    with pytest.raises(VerificationError):
        opened(FILE).settle_size(5)


def test_a_size_smaller_than_what_is_here_is_refused(opened) -> None:
    """Else the follower would pass the end and never come to it."""
    partial = opened(UNKNOWN)
    put(partial, 0, DATA[:10])
    with pytest.raises(VerificationError, match="more are here"):
        partial.settle_size(9)
    writer = partial.writer(Span(10, END), "a")
    writer.write(DATA[10:20])
    with pytest.raises(VerificationError, match="more are here"):
        partial.settle_size(19)
    partial.settle_size(20)
    assert (partial.size, writer.left.size) == (20, 0)


def test_a_size_that_comes_late_ends_the_writers_that_would_pass_it(opened, tmp_path) -> None:
    partial = opened(UNKNOWN)
    writer = partial.writer(Span(0, END), "a")
    writer.write(DATA[:100])
    partial.settle_size(len(DATA))
    writer.write(DATA[100:] + b"more than it has")
    writer.close()
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("record", [1, 2])
def test_a_kill_costs_at_most_a_mebibyte_of_each_writer(opened, record) -> None:
    """Nothing is closed here: what the journal says is what a kill leaves (I10)."""
    partial = opened(wanted(BIG))
    writer = partial.writer(Span(0, len(BIG)), "a")
    chunk = 300_000 * record
    for at in range(0, len(BIG), chunk):
        assert writer.position - writer.recorded + len(BIG[at : at + chunk]) <= MIB
        writer.write(BIG[at : at + chunk])


# -- 2: proof ---------------------------------------------------------------------------------------------------------


def test_a_file_is_proven_committed_and_gone_from_the_partials(opened, base, tmp_path) -> None:
    partial = opened()
    fill(partial)
    commit(partial, tmp_path / "out", 0o440)
    assert (tmp_path / "out").read_bytes() == DATA
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o440
    assert os.listdir(base) == []


@pytest.mark.parametrize("file", [FILE, UNKNOWN, PIECES, wanted(piece=7000, digest=False), wanted(piece=1)])
def test_a_run_goes_on_where_another_ended_whatever_is_known(opened, tmp_path, file) -> None:
    leave(opened, file, (0, DATA[:7500]), (20_000, DATA[20_000:20_100]))
    partial = opened(file)
    assert partial.resumed_bytes == 7600
    fill(partial)
    if file.size is None:
        partial.settle_size(len(DATA))
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("piece", [0, 100])
def test_an_empty_file_is_whole_at_once(opened, tmp_path, digest, piece) -> None:
    partial = opened(wanted(b"", digest=digest, piece=piece))
    assert partial.missing() == []
    assert partial.is_written()
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b""


def test_a_file_smaller_than_its_only_piece_is_proven(opened, tmp_path) -> None:
    partial = opened(wanted(piece=1 << 30, digest=False))
    fill(partial)
    commit(partial, tmp_path / "out")


def test_the_proof_says_what_the_file_is(opened) -> None:
    md5, b3 = Digest("md5", hashlib.md5(DATA).hexdigest()), Digest("blake3", blake3(DATA).hexdigest())
    partial = opened(ModelFile("m.bin", None, (md5, b3)))
    fill(partial)
    partial.settle_size(len(DATA))
    assert partial.await_proof(PATIENCE_S)
    assert partial.digests() == {"sha256": FILE.digests[0], "md5": md5, "blake3": b3}
    assert partial.wrong_digest() is None


def test_a_writer_is_told_at_the_end_of_a_wrong_piece_which_is_absent_again(opened) -> None:
    partial = opened(PIECES)
    wrong = DATA[:14_000] + b"?" + DATA[14_001:30_000]
    writer = partial.writer(Span(0, 30_000), "a")
    with pytest.raises(VerificationError, match=r"piece 2 \(bytes 14000-20999\)"):
        for at in range(0, 30_000, 500):
            writer.write(wrong[at : at + 500])
    writer.close()
    assert writer.position == 21_000
    assert partial.missing() == [Span(14_000, len(DATA))]
    assert partial.refusals() == 1


def test_one_write_of_many_pieces_keeps_those_before_the_wrong_one(opened) -> None:
    partial = opened(PIECES)
    writer = partial.writer(Span(0, len(DATA)), "a")
    with pytest.raises(VerificationError, match="piece 1"):
        writer.write(DATA[:7000] + b"?" + DATA[7001:])
    writer.close()
    assert partial.missing() == [Span(7000, len(DATA))]


def test_the_last_piece_may_be_short_and_wrong(opened) -> None:
    partial = opened(PIECES)
    with pytest.raises(VerificationError, match="piece 7"):
        put(partial, 0, DATA[:-1] + b"?")
    assert partial.missing() == [Span(49_000, 50_000)]


@pytest.mark.parametrize("digest", [True, False])
def test_a_piece_that_came_in_two_runs_is_judged_from_the_disk(opened, base, tmp_path, digest) -> None:
    file = wanted(piece=7000, digest=digest)
    leave(opened, file, (0, DATA[:10_000]))
    rot(base, 8000)
    partial = opened(file)
    put(partial, 10_000, DATA[10_000:])
    assert not partial.await_proof(PATIENCE_S)
    assert partial.missing() == [Span(7000, 14_000)]
    assert partial.refusals() == 1
    fill(partial)
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_byte_that_rotted_on_the_disk_costs_its_piece(opened, base, tmp_path) -> None:
    leave(opened, PIECES, (0, DATA))
    rot(base, 30_000)
    partial = opened(PIECES)
    assert not partial.await_proof(PATIENCE_S)
    assert partial.missing() == [Span(28_000, 35_000)]
    fill(partial)
    commit(partial, tmp_path / "out")


def test_pieces_alone_are_proven_on_the_disk_even_if_they_were_right_when_they_passed(opened) -> None:
    partial = opened(wanted(piece=7000, digest=False))
    writer = partial.writer(Span(0, len(DATA)), "a")
    writer.write(DATA)
    spoil(partial, 30_000)
    writer.close()
    assert not partial.await_proof(PATIENCE_S)
    assert partial.missing() == [Span(28_000, 35_000)]


def spoil(partial: Partial, offset: int, data: bytes = b"?!") -> None:
    with open(partial.path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


@pytest.mark.parametrize("file", [FILE, PIECES])
def test_what_is_hashed_is_the_file_and_not_the_bytes_that_passed(opened, tmp_path, file) -> None:
    partial = opened(file)
    writer = partial.writer(Span(0, len(DATA)), "a")
    writer.write(DATA)
    spoil(partial, 30_000)
    writer.close()
    assert partial.await_proof(PATIENCE_S)
    assert partial.wrong_digest() == FILE.digests[0]
    with pytest.raises(VerificationError):
        partial.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()


def test_a_file_that_shrinks_under_the_follower_is_not_proven(opened) -> None:
    partial = opened(UNKNOWN)
    partial.settle_size(len(DATA))
    writer = partial.writer(Span(0, len(DATA)), "a")
    writer.write(DATA)
    os.truncate(partial.path, 100)
    writer.close()
    with pytest.raises(StoreError, match="cannot be read back"):
        partial.await_proof(PATIENCE_S)
    with pytest.raises(StoreError, match="cannot be read back"):
        partial.commit("/nowhere", 0o444)


def test_nobody_writes_on_for_a_disk_that_cannot_be_read(opened) -> None:
    partial = opened(wanted(BIG))
    writer = partial.writer(Span(0, len(BIG)), "a")
    partial.failed(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StoreError, match="cannot be read back: Input/output error"):
        writer.write(BIG[:MIB])
    with pytest.raises(StoreError, match="cannot be read back"):
        partial.await_proof(PATIENCE_S)


def test_a_file_that_shrinks_after_its_proof_is_not_visible(opened, tmp_path) -> None:
    partial = opened(UNKNOWN)
    fill(partial)
    partial.settle_size(len(DATA))
    assert partial.await_proof(PATIENCE_S)
    os.truncate(partial.path, 100)
    with pytest.raises(StoreError, match="shorter"):
        partial.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()


def test_proof_is_waited_for_as_long_as_bytes_are_written(opened) -> None:
    partial = opened()
    assert not partial.await_proof(PATIENCE_S)  # nothing is here: there is nothing to wait for
    put(partial, 1, DATA[1:])
    assert not partial.await_proof(PATIENCE_S)


@pytest.mark.parametrize("file", [wanted(BIG), wanted(BIG, size=False)])
def test_the_proof_takes_the_digests_of_all_pieces_along(opened, file) -> None:
    partial = opened(file, piece_size=MIB)
    put(partial, 0, BIG[:1000])  # as after a kill: what is here was not seen by the writer that goes on
    put(partial, 1000, BIG[1000:])
    if partial.size is None:
        partial.settle_size(len(BIG))
    assert partial.await_proof(PATIENCE_S)
    starts = range(0, len(BIG), MIB)
    assert partial.piece_digests() == PieceDigests(MIB, b"".join(blake3(BIG[at : at + MIB]).digest() for at in starts))


def test_pieces_that_nobody_keeps_are_not_measured(opened) -> None:
    partial = opened(wanted(BIG), piece_size=None)
    put(partial, 0, BIG)
    assert partial.await_proof(PATIENCE_S) and partial.piece_digests() is None


# -- 3: writers -------------------------------------------------------------------------------------------------------


def test_two_writers_never_share_bytes(opened) -> None:
    partial = opened()
    first = partial.writer(Span(1000, 2000), "a")
    assert partial.writer(Span(0, 5000), "b").left == Span(0, 1000)
    assert partial.writer(Span(1500, 5000), "b").left.size == 0
    first.write(DATA[1000:1500])
    assert partial.writer(Span(1200, 5000), "b").left.size == 0
    assert partial.writer(Span(2000, 5000), "b").left == Span(2000, 5000)


def test_nobody_writes_over_what_is_here(opened) -> None:
    partial = opened()
    put(partial, 1000, DATA[1000:2000])
    assert partial.writer(Span(1000, 3000), "b").left.size == 0
    writer = partial.writer(Span(500, 3000), "b")
    assert writer.left == Span(500, 1000)
    writer.write(b"?" * 5000)
    assert Path(partial.path).read_bytes()[1000:] == DATA[1000:2000]


def test_no_writer_passes_the_end_of_the_file(opened) -> None:
    partial = opened()
    assert partial.writer(Span(0, END), "a").left == Span(0, len(DATA))
    assert partial.writer(Span(len(DATA), END), "a").left.size == 0


def test_several_writers_at_once_make_one_file(opened, tmp_path) -> None:
    file = wanted(BIG, piece=MIB)
    partial = opened(file, window=MIB)
    spans = [Span(at, min(at + 2 * MIB, len(BIG))) for at in range(0, len(BIG), 2 * MIB)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda span: put(partial, span.start, BIG[slice(*span)]), reversed(spans)))
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BIG


def held(partial: Partial, start: int, pool: ThreadPoolExecutor) -> tuple[SpanWriter, "object"]:
    """A writer two mebibytes ahead of a follower that lacks the first byte."""
    writer = partial.writer(Span(start, len(BIG)), "b")
    future = pool.submit(writer.write, BIG[start : start + 2 * MIB])
    until(lambda: writer.held)
    return writer, future


def test_a_writer_a_window_ahead_waits_for_the_follower(opened) -> None:
    partial = opened(wanted(BIG), window=MIB)
    low = partial.writer(Span(0, MIB), "a")
    with ThreadPoolExecutor() as pool:
        writer, future = held(partial, MIB, pool)
        assert partial.hashed_bytes == 0
        low.write(BIG[:MIB])
        future.result(PATIENCE_S)
    assert not writer.held
    assert partial.hashed_bytes >= 2 * MIB


def test_a_writer_never_comes_a_window_ahead_of_a_follower_that_can_go_on(opened) -> None:
    partial = opened(wanted(BIG), window=1)
    writer = partial.writer(Span(0, len(BIG)), "a")
    writer.write(BIG)
    assert writer.position - partial.hashed_bytes <= MIB  # less is not worth a turn of the follower


def test_the_follower_takes_steps_so_that_it_can_be_stopped(opened) -> None:
    partial = opened(wanted(BIG))
    fill(partial, BIG)
    assert partial.await_bytes(0) == Span(0, 4 * MIB)
    assert partial.await_bytes(5 * MIB) == Span(5 * MIB, len(BIG))


def test_nobody_waits_for_bytes_that_nobody_fetches(opened) -> None:
    """Where one connection is all there is, it would wait for ever."""
    partial = opened(wanted(BIG), window=MIB)
    low = partial.writer(Span(0, MIB), "a")
    with ThreadPoolExecutor() as pool:
        _, future = held(partial, MIB, pool)
        low.close()
        future.result(PATIENCE_S)


def test_a_piece_that_is_refused_behind_a_writer_lets_it_go_on(opened, base) -> None:
    file = wanted(BIG, piece=MIB)
    leave(opened, file, (0, BIG[: 2 * MIB]))
    rot(base, 5)
    partial = opened(file, window=MIB)
    put(partial, 2 * MIB, BIG[2 * MIB :])
    assert partial.missing() == [Span(0, MIB)]


def test_a_piece_larger_than_the_window_holds_nobody_up(opened, tmp_path) -> None:
    partial = opened(wanted(BIG, piece=5 * MIB), window=MIB)
    fill(partial, BIG)
    commit(partial, tmp_path / "out")


def test_a_window_smaller_than_any_read_holds_nobody_up(opened, tmp_path) -> None:
    partial = opened(wanted(BIG), window=1)
    fill(partial, BIG)
    commit(partial, tmp_path / "out")


@pytest.mark.parametrize("end", ["release", "close", "restart"])
def test_who_is_held_is_set_free_by_the_end(opened, end) -> None:
    partial = opened(wanted(BIG), window=MIB)
    partial.writer(Span(0, MIB), "a")
    with ThreadPoolExecutor() as pool:
        writer, future = held(partial, MIB, pool)
        ends = {"release": writer.close, "close": partial.close, "restart": partial.restart}
        ends[end]()
        future.result(PATIENCE_S)
    with pytest.raises(FencedError):
        writer.write(b"?")


def test_what_is_absent_is_copied_from_another_file(opened, tmp_path) -> None:
    rotten = tmp_path / "rotten"
    rotten.write_bytes(b"?" * 1000 + DATA[1000:])
    partial = opened()
    put(partial, 5000, DATA[5000:6000])
    claimed = partial.writer(Span(8000, 9000), "a")
    before = Path(partial.path).read_bytes()
    partial.seed(str(rotten), [Span(1000, 7000), Span(7500, 10_000), Span(49_000, END)])
    after = Path(partial.path).read_bytes()
    assert partial.unclaimed() == [Span(0, 1000), Span(7000, 7500), Span(10_000, 49_000)]
    assert after[5000:6000] == before[5000:6000]
    assert partial.facts.wrote == {"a", "seed"}
    claimed.write(DATA[8000:9000])
    claimed.close()
    fill(partial)
    commit(partial, tmp_path / "out")


def test_a_file_shorter_than_what_is_to_be_copied_gives_what_it_has(opened, tmp_path) -> None:
    (tmp_path / "short").write_bytes(DATA[:500])
    partial = opened()
    partial.seed(str(tmp_path / "short"), [Span(0, 300), Span(400, 10_000)])
    assert partial.missing() == [Span(300, 400), Span(500, len(DATA))]
    with pytest.raises(StoreError, match="absent"):
        partial.seed(str(tmp_path / "absent"), [Span(300, 400)])
    with pytest.raises(StoreError, match="folder"):
        (tmp_path / "folder").mkdir()
        partial.seed(str(tmp_path / "folder"), [Span(300, 400)])


# -- 4: commit --------------------------------------------------------------------------------------------------------


def test_nothing_is_visible_before_every_byte_is_written_and_proven(opened, tmp_path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    partial = opened()
    with pytest.raises(StoreError, match="before every byte is proven"):
        partial.commit(str(target), 0o444)
    put(partial, 0, DATA[:-1])
    with pytest.raises(StoreError, match="before every byte is proven"):
        partial.commit(str(target), 0o444)
    writer = partial.writer(Span(0, END), "a")  # nothing is left for it, but it is there
    put(partial, len(DATA) - 1, DATA[-1:])
    assert partial.await_proof(PATIENCE_S)
    with pytest.raises(StoreError, match="before every byte is proven"):
        partial.commit(str(target), 0o444)
    assert target.read_bytes() == b"old"
    writer.close()
    partial.commit(str(target), 0o444)
    assert target.read_bytes() == DATA


def test_a_wrong_file_is_not_visible_and_can_begin_anew(opened, tmp_path) -> None:
    partial = opened()
    fill(partial, b"?" + DATA[1:])
    assert partial.await_proof(PATIENCE_S)
    with pytest.raises(VerificationError, match="sha256"):
        partial.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()
    partial.restart()
    assert partial.missing() == [Span(0, len(DATA))]
    fill(partial)
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_every_expected_digest_must_be_right(opened, tmp_path) -> None:
    partial = opened(ModelFile("m.bin", None, (*FILE.digests, Digest("md5", "0" * 32))))
    fill(partial)
    partial.settle_size(len(DATA))
    with pytest.raises(VerificationError, match="md5"):
        commit(partial, tmp_path / "out")


def test_a_link_at_the_target_is_replaced_and_what_it_points_at_left_alone(opened, tmp_path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "out").symlink_to("mine")
    partial = opened()
    fill(partial)
    commit(partial, tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("longer", [1, 5 * MIB])
def test_bytes_beyond_the_end_that_another_run_left_are_cut_off(opened, base, tmp_path, longer) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    os.truncate(left_data(base), len(DATA) + longer)
    partial = opened()
    fill(partial)
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_target_that_cannot_be_had_keeps_the_bytes(opened, tmp_path) -> None:
    partial = opened()
    fill(partial)
    with pytest.raises(StoreError, match="absent"):
        commit(partial, tmp_path / "absent/out")
    partial.close()
    assert opened().resumed_bytes == len(DATA)


@pytest.mark.parametrize("early", [True, False])
def test_a_sync_that_fails_once_publishes_nothing(opened, tmp_path, monkeypatch, early) -> None:
    """The kernel tells an error of write-back to one call only; the next one would succeed."""
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    sync, failures = os.fsync, [OSError(errno.EIO, "Input/output error")]

    def failing(fd: int) -> None:
        if failures:
            raise failures.pop()
        sync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    if early:
        partial._write_back.wrote(partial._fd, SYNC_EVERY)
        until(lambda: not failures)
    with pytest.raises(StoreError, match="the disk failed to read or write"):
        partial.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()


def test_write_back_syncs_behind_and_leaves_no_handle_open(base, tmp_path, monkeypatch) -> None:
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), sync(fd)))
    with (tmp_path / "file").open("wb") as stream:
        behind = WriteBack()
        behind.wrote(stream.fileno(), SYNC_EVERY - 1)
        assert synced == []
        behind.wrote(stream.fileno(), 1)
        behind.finish(stream.fileno())
        assert synced == [os.fstat(stream.fileno()).st_ino] * 2


def test_nobody_writes_on_for_a_disk_that_does_not_take_it(opened, monkeypatch) -> None:
    partial = opened(wanted(BIG))
    writer = partial.writer(Span(0, len(BIG)), "a")

    def failing(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    partial._write_back.wrote(partial._fd, SYNC_EVERY)
    until(lambda: partial._write_back._error is not None)
    with pytest.raises(StoreError, match="the disk is full"):
        writer.write(BIG[:MIB])


def test_nobody_writes_while_a_file_is_committed(opened, tmp_path, monkeypatch) -> None:
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    sync, tried = os.fsync, []

    def intruding(fd: int) -> None:
        with pytest.raises(FencedError):
            partial.writer(Span(0, 10), "a")
        tried.append(fd)
        sync(fd)

    monkeypatch.setattr(os, "fsync", intruding)
    partial.commit(str(tmp_path / "out"), 0o444)
    assert tried


def test_a_close_waits_until_a_file_is_committed(opened, tmp_path, monkeypatch) -> None:
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    sync, closing = os.fsync, threading.Thread(target=partial.close)

    def slow(fd: int) -> None:
        if closing.ident is None:
            closing.start()
            closing.join(0.1)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    partial.commit(str(tmp_path / "out"), 0o444)
    closing.join()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o444


def test_the_target_is_what_was_synced_before_it_was_renamed(opened, tmp_path, monkeypatch) -> None:
    events = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.fstat(fd).st_ino), sync(fd)))
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), rename(old, new)))
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    events.clear()
    partial.commit(str(tmp_path / "out"), 0o444)
    assert events == [(tmp_path / "out").stat().st_ino, "rename", tmp_path.stat().st_ino]


# -- 5: the fence -----------------------------------------------------------------------------------------------------


def ended(partial: Partial, how: str, target: Path) -> None:
    if how == "commit":
        fill(partial)
        commit(partial, target)
    else:
        {"close": partial.close, "discard": partial.discard, "restart": partial.restart}[how]()


@pytest.mark.parametrize("how", ["commit", "close", "discard", "restart"])
def test_a_writer_from_before_writes_neither_bytes_nor_facts(opened, tmp_path, how) -> None:
    partial = opened()
    writer = partial.writer(Span(0, 100), "late")
    writer.write(DATA[:50])
    if how == "commit":
        writer.close()
    data = os.open(partial.path, os.O_RDONLY)
    journal = os.open(os.path.join(partial.folder, "journal"), os.O_RDONLY)
    ended(partial, how, tmp_path / "out")
    size = os.fstat(data).st_size, os.fstat(journal).st_size
    reused = [(tmp_path / str(number)).open("wb") for number in range(8)]  # whoever kept a number writes in here
    for late in (
        lambda: writer.write(b"?" * 50),
        lambda: partial.record(writer),
        lambda: partial.judge(writer, 0, bytes(32)),
    ):
        with pytest.raises(FencedError):
            late()
    writer.close()
    partial.hold_back(writer)
    if how != "restart":
        partial.close()
        partial.discard()
    assert (os.fstat(data).st_size, os.fstat(journal).st_size) == size
    assert os.pread(data, 100, 0) == {"restart": b"", "commit": DATA[:100]}.get(how, DATA[:50])
    for stream in reused:
        status = os.fstat(stream.fileno())
        assert (status.st_size, status.st_mode & 0o200) == (0, 0o200)
        stream.close()
    os.close(data)
    os.close(journal)


@pytest.mark.parametrize("how", ["commit", "close", "discard"])
def test_a_partial_that_is_over_takes_nothing_more(opened, tmp_path, how) -> None:
    partial = opened(UNKNOWN)
    put(partial, 0, DATA)
    partial.settle_size(len(DATA))
    ended(partial, how, tmp_path / "out")
    for late in (
        lambda: partial.writer(Span(0, 10), "a"),
        lambda: partial.called("a", '"v"'),
        lambda: partial.settle_size(5),
        lambda: partial.seed(__file__, [Span(0, 10)]) or partial.writer(Span(0, 1), "a"),
        partial.restart,
        lambda: partial.commit(str(tmp_path / "again"), 0o444),
    ):
        with pytest.raises(FencedError):
            late()
    partial.close()
    partial.discard()
    assert (tmp_path / "out").exists() == (how == "commit")


def test_a_late_judgement_does_not_prove_what_was_dropped(opened, tmp_path) -> None:
    """Its thread wrote, was fenced by a restart, and only then came to judge."""
    file = wanted(piece=7000)
    partial = opened(file)
    writer = partial.writer(Span(0, len(DATA)), "a")
    writer.write(DATA)
    partial.restart()
    with pytest.raises(FencedError):
        partial.judge(writer, 0, file.pieces[0])
    put(partial, 0, b"?" + DATA[1:100])
    put(partial, 100, DATA[100:])
    assert not partial.await_proof(PATIENCE_S)
    assert partial.missing() == [Span(0, 7000)]


@pytest.mark.parametrize("end", ["close", "discard", "restart"])
def test_threads_that_write_on_through_an_end_leave_a_sound_partial(opened, base, tmp_path, end) -> None:
    file = wanted(BIG, piece=MIB)
    partial = opened(file)
    begun = threading.Barrier(5)

    def write(span: Span) -> None:
        writer = partial.writer(span, "a")
        begun.wait()
        with pytest.raises(FencedError):
            while True:
                at = writer.position
                writer.write(BIG[at : at + 1000] or b"?")
                if not writer.left.size:
                    writer.close()

    with ThreadPoolExecutor() as pool:
        spans = [Span(at, at + MIB) for at in range(0, 4 * MIB, MIB)]
        futures = [pool.submit(write, span) for span in spans]
        begun.wait()
        ended(partial, end, tmp_path / "out")
        for future in futures:
            future.result(PATIENCE_S)
    partial.close()
    again = opened(file)
    for gap in again.missing():
        put(again, gap.start, BIG[slice(*gap)])
    commit(again, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BIG


def test_ends_from_several_threads_at_once_are_one_end(opened, tmp_path) -> None:
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    begun = threading.Barrier(6)

    def end(number: int) -> None:
        begun.wait()
        try:
            [partial.close, partial.discard, partial.restart][number % 3]()
        except FencedError:
            assert number % 3 == 2

    with ThreadPoolExecutor() as pool:
        list(pool.map(end, range(6)))


# -- 6: whose it is ---------------------------------------------------------------------------------------------------


def inode_of(partial: Partial) -> int:
    return os.stat(partial.path).st_ino


def test_what_was_closed_is_taken_over_without_a_copy(opened, base) -> None:
    first = opened()
    put(first, 0, DATA[:100])
    inode = inode_of(first)
    first.close()
    assert stat.S_IMODE(os.stat(first.path).st_mode) == 0o400
    second = opened()
    assert inode_of(second) == inode
    assert stat.S_IMODE(os.stat(second.path).st_mode) == 0o600
    assert second.folder != first.folder
    assert len(os.listdir(base)) == 1


def test_whoever_lost_a_partial_leaves_the_mode_of_its_data_to_its_new_owner(opened, base) -> None:
    """Its data may be a blob by then."""
    first = opened()
    os.rename(os.path.dirname(first.path), os.path.join(base, "elsewhere"))
    data = os.path.join(base, "elsewhere", "data")
    os.chmod(data, 0o444)
    first.close()
    assert stat.S_IMODE(os.stat(data).st_mode) == 0o444


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_dead_process_left_is_taken_over_without_a_copy(opened, base, resumed) -> None:
    if resumed:
        leave(opened, FILE, (10_000, DATA[10_000:10_001]))
    script = f"""
import os
from modelcache.model import Digest, ModelFile, Span
from modelcache.store.partial import Partial
file = ModelFile("m.bin", {len(DATA)}, (Digest("sha256", "{FILE.digests[0].hex}"),))
partial = Partial.open("{base}", "{KEY}", file)
writer = partial.writer(Span(100, 5000), "a")
writer.write(b"x" * 4000)
partial.record(writer)
writer.write(b"x" * 900)
print(os.stat(partial.path).st_ino, flush=True)
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    partial = opened()
    assert inode_of(partial) == int(killed.stdout)
    assert partial.missing()[:2] == [Span(0, 100), Span(4100, 10_000 if resumed else len(DATA))]


def test_a_live_owner_loses_the_partial_and_cannot_reach_it(opened, tmp_path) -> None:
    first = opened()
    put(first, 0, DATA[:100])
    writer = first.writer(Span(100, len(DATA)), "a")
    second = opened()
    assert inode_of(second) != os.fstat(first._fd).st_ino
    assert second.missing() == [Span(100, len(DATA))]
    writer.write(b"?" * 20_000)
    first.record(writer)
    first.called("a", '"other"')
    put(second, 200, DATA[200:])
    second.close()
    third = opened()
    assert third.missing() == [Span(100, 200)]
    assert third.facts.validators == {}
    fill(third)
    commit(third, tmp_path / "out")
    writer.write(b"?" * 20_000)
    assert (tmp_path / "out").read_bytes() == DATA


def test_who_lost_the_partial_publishes_nothing_and_removes_nothing(opened, tmp_path) -> None:
    first = opened()
    fill(first)
    assert first.await_proof(PATIENCE_S)
    second = opened()
    with pytest.raises(StoreError, match="another process has taken this download over"):
        first.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()
    first.discard()
    commit(second, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_another_file_in_the_place_of_the_data_is_not_published(opened, tmp_path) -> None:
    partial = opened()
    fill(partial)
    assert partial.await_proof(PATIENCE_S)
    os.rename(partial.path, tmp_path / "moved")
    Path(partial.path).write_bytes(b"other")
    with pytest.raises(StoreError, match="taken this download over"):
        partial.commit(str(tmp_path / "out"), 0o444)
    assert not (tmp_path / "out").exists()


def test_only_what_was_written_is_copied_from_a_live_owner(opened) -> None:
    first = opened(wanted(BIG))
    put(first, 5 * MIB, BIG[5 * MIB :])
    second = opened(wanted(BIG))
    assert os.stat(second.path).st_blocks * 512 <= 2 * MIB
    assert Path(second.path).read_bytes()[5 * MIB :] == BIG[5 * MIB :]


def test_a_kill_in_commit_leaves_a_partial_that_goes_on(opened, base, tmp_path) -> None:
    leave(opened, FILE, (0, DATA))
    left_data(base).chmod(0o444)
    commit(opened(), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_kill_after_the_rename_leaves_nothing_of_use(opened, base) -> None:
    leave(opened, FILE, (0, DATA))
    left_data(base).unlink()
    partial = opened()
    assert partial.resumed_bytes == 0
    assert len(os.listdir(base)) == 1


def test_a_kill_while_copying_leaves_no_copy_behind(opened, base) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    left_data(base).with_name("data.new").write_bytes(DATA)
    left_data(base).with_name("journal.new").write_bytes(b"{")
    partial = opened()
    assert partial.resumed_bytes == 100
    assert sorted(os.listdir(partial.folder)) == ["data", "journal"]


def test_of_several_leftovers_the_one_with_most_bytes_is_taken(opened, base, tmp_path) -> None:
    for number, size in enumerate([100, 300, 200]):
        leave(opened, FILE, (0, DATA[:size]))
        (name,) = found(str(base), KEY)
        shutil.move(base / name, tmp_path / f"{KEY}.{number}")
    for number in range(3):
        shutil.move(tmp_path / f"{KEY}.{number}", base / f"{KEY}.{number}")
    (base / f"{KEY}.garbage").mkdir()
    (base / f"{KEY}.stray").touch()
    (base / f"{KEY}x.other").mkdir()
    assert opened().resumed_bytes == 300
    assert opened().resumed_bytes == 300  # from the one just taken
    assert (base / f"{KEY}x.other").exists()


def test_a_partial_of_another_key_is_left_alone(opened, base) -> None:
    Partial.open(str(base), KEY + "x", FILE).close()
    Partial.open(str(base), KEY + ".x", FILE).close()
    before = set(os.listdir(base))
    opened()
    assert before < set(os.listdir(base))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_data_that_are_not_a_file_make_a_new_beginning(opened, base, make) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    data = left_data(base)
    data.unlink()
    make(data)
    assert opened().resumed_bytes == 0
    assert len(os.listdir(base)) == 1


@pytest.mark.parametrize("other", [wanted(BIG), wanted(DATA[:100])])
def test_what_was_begun_for_another_size_is_thrown_away(opened, base, other) -> None:
    leave(opened, other, (0, DATA[:50]))
    partial = opened()
    assert partial.resumed_bytes == 0
    assert os.listdir(base) == [os.path.basename(partial.folder)]


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_size_that_is_known_only_sometimes_costs_no_byte(opened, tmp_path, first, then) -> None:
    leave(opened, wanted(size=first), (0, DATA[:50]))
    partial = opened(wanted(size=then))
    assert partial.resumed_bytes == 50
    if not then:
        partial.settle_size(len(DATA))
    fill(partial)
    commit(partial, tmp_path / "out")


def test_a_journal_that_says_more_than_there_is_is_believed_as_far_as_there_is(opened, base) -> None:
    leave(opened, FILE, (0, DATA[:30_000]), (40_000, DATA[40_000:]))
    os.truncate(left_data(base), 20_000)
    assert opened().missing() == [Span(20_000, len(DATA))]


def test_zeros_that_a_power_cut_left_are_not_believed(opened, base) -> None:
    """The file has its length, but never had these bytes: there is a hole."""
    leave(opened, FILE, (0, DATA))
    data = left_data(base)
    os.truncate(data, 16_384)
    os.truncate(data, len(DATA))
    with data.open("rb") as stream:
        if os.lseek(stream.fileno(), 0, os.SEEK_HOLE) != 16_384:
            pytest.skip("this file system does not tell holes")
    assert opened().missing() == [Span(16_384, len(DATA))]


def test_bytes_beyond_the_size_a_source_told_are_not_believed(opened, base, tmp_path) -> None:
    partial = opened(UNKNOWN)
    put(partial, 0, DATA)
    partial.close()
    with open(os.path.join(partial.folder, "journal"), "a") as stream:
        stream.write("z 40000\n")
    again = opened(UNKNOWN)
    assert again.is_written()
    commit(again, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA[:40_000]


@pytest.mark.parametrize("inside", ["data", "journal", ""])
def test_links_in_the_place_of_what_is_ours_are_not_followed(opened, base, tmp_path, inside) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    (name,) = found(str(base), KEY)
    aside = tmp_path / "aside"
    os.rename(base / name / inside, aside)
    (base / name / inside).symlink_to(aside)
    content = {path: path.read_bytes() for path in (aside.iterdir() if aside.is_dir() else [aside])}
    partial = opened()
    assert partial.resumed_bytes == 0
    fill(partial)
    assert {path: path.read_bytes() for path in content} == content
    assert len(os.listdir(base)) == 1


@pytest.mark.parametrize("garbage", [b"", b"\0" * 300, b"{}\n", b'{"format": 99}\n'])
def test_a_garbled_journal_makes_a_new_beginning(opened, base, garbage) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    left_data(base).with_name("journal").write_bytes(garbage)
    assert opened().resumed_bytes == 0
    assert len(os.listdir(base)) == 1


def test_an_unreadable_owner_is_not_proven_dead(opened, base) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    data = left_data(base)
    data.chmod(0o600)
    journal = data.with_name("journal")
    lines = [line for line in journal.read_text().splitlines() if not line.startswith("o ")]
    journal.write_text("\n".join(lines) + "\n")
    inode = data.stat().st_ino
    partial = opened()
    assert partial.resumed_bytes == 100
    assert inode_of(partial) != inode


def test_a_folder_of_partials_that_is_a_link_is_refused(base, tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    base.symlink_to("elsewhere")
    with pytest.raises(StoreError):
        Partial.open(str(base), KEY, FILE)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_what_the_journal_is_called_by_tells_people_what_it_is_of(opened) -> None:
    partial = opened(model="the model")
    header = json.loads(Path(partial.folder, "journal").read_text().splitlines()[0])
    assert header == {"format": 1, "key": KEY, "size": len(DATA), "path": "m.bin", "model": "the model"}


# -- restart ----------------------------------------------------------------------------------------------------------


def test_a_restart_leaves_a_partial_as_new(opened, tmp_path) -> None:
    leave(opened, UNKNOWN, (0, DATA[:50]))
    partial = opened(UNKNOWN)
    partial.called("a", '"v1"')
    partial.settle_size(100)
    put(partial, 50, DATA[50:100])
    assert partial.await_proof(PATIENCE_S)
    partial.restart()
    assert partial.resumed_bytes == 0
    assert partial.missing() == [Span(0, END)]
    assert (partial.size, partial.hashed_bytes, os.stat(partial.path).st_size) == (None, 0, 0)
    assert (partial.facts.validators, partial.facts.wrote) == ({}, set())
    fill(partial, source="b")
    partial.settle_size(len(DATA))
    commit(partial, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_run_after_a_restart_knows_nothing_of_what_was_before(opened) -> None:
    partial = opened(UNKNOWN)
    partial.called("a", '"v1"')
    put(partial, 0, DATA[:100])
    partial.settle_size(100)
    partial.restart()
    put(partial, 0, DATA[:10], "b")
    partial.close()
    again = opened(UNKNOWN)
    assert (again.missing(), again.size) == ([Span(10, END)], None)
    assert (again.facts.validators, again.facts.wrote) == ({}, {"b"})


def test_validators_are_kept_by_source(opened) -> None:
    partial = opened()
    partial.called("a", '"v1"')
    partial.called("b", "")
    partial.called("a", '"v2"')
    partial.close()
    assert opened().facts.validators == {"a": '"v2"'}


def test_a_restart_in_a_thread_of_its_own_does_not_disturb_a_close(opened) -> None:
    partial = opened(wanted(BIG))
    put(partial, 0, BIG[: 2 * MIB])
    begun = threading.Barrier(2)

    def restarts() -> None:
        begun.wait()
        with pytest.raises(FencedError):
            while True:
                partial.restart()

    with ThreadPoolExecutor() as pool:
        future = pool.submit(restarts)
        begun.wait()
        until(lambda: partial.resumed_bytes == 0)
        partial.close()
        future.result(PATIENCE_S)


# -- the disk refuses (I25) -------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_bytes_and_a_rerun_goes_on(small_disk, tmp_path) -> None:
    data = BIG[: 3 * MIB]
    file, base = wanted(data), str(small_disk / "partials")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * MIB))
    partial = Partial.open(base, KEY, file)
    with pytest.raises(StoreError) as caught:
        put(partial, 0, data)
    written = partial.written_bytes
    partial.close()
    told = f"{partial.path}: the disk is full; free space, then run the same command again to go on"
    assert caught.value.line() == told
    ballast.unlink()
    again = Partial.open(base, KEY, file)
    assert again.resumed_bytes >= written - MIB > 0
    fill(again, data)
    commit(again, small_disk / "out")
    assert (small_disk / "out").read_bytes() == data
    again.close()


def test_a_disk_without_room_for_a_beginning_is_left_as_it_was(small_disk) -> None:
    fill_disk(small_disk / "ballast")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="the disk is full"):
        Partial.open(str(small_disk), KEY, FILE)
    assert os.listdir(small_disk) == ["ballast"]
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test left was collected meanwhile


def test_a_disk_without_room_for_taking_over_keeps_everything(small_disk) -> None:
    base = small_disk / "partials"
    first = Partial.open(str(base), KEY, wanted(BIG))
    put(first, 0, BIG[: 2 * MIB])
    fill_disk(small_disk / "ballast")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(StoreError, match="the disk is full"):
            Partial.open(str(base), KEY, wanted(BIG))
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test left was collected meanwhile
    (small_disk / "ballast").unlink()
    (small_disk / "ballast").write_bytes(bytes(MIB))  # room for the journal, not for a copy: its owner lives
    with pytest.raises(StoreError, match="the disk is full"):
        Partial.open(str(base), KEY, wanted(BIG))
    assert len(os.listdir("/proc/self/fd")) <= before  # fewer: what an earlier test left was collected meanwhile
    first.close()
    assert sorted(os.listdir(left_data(base).parent)) == ["data", "journal"]
    left_data(base).chmod(0o400)  # now nobody writes there any more, and no copy is needed
    again = Partial.open(str(base), KEY, wanted(BIG))
    assert again.resumed_bytes == 2 * MIB
    again.close()


def test_a_restart_makes_room_on_a_full_disk(small_disk) -> None:
    partial = Partial.open(str(small_disk), KEY, wanted(BIG))
    put(partial, 0, BIG[:MIB])
    fill_disk(small_disk / "ballast")
    partial.restart()
    put(partial, 0, BIG[: MIB // 2])
    partial.close()


@contextmanager
def handles_left(count: int) -> Iterator[None]:
    """So many files can still be opened."""
    free = [os.dup(0) for _ in range(count + 1)]
    for number in free:
        os.close(number)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_many_open_files_throw_nothing_away(opened, base, count) -> None:
    leave(opened, FILE, (0, DATA[:100]))
    with handles_left(count), pytest.raises(StoreError, match="too many open files"):
        opened()
    partial = opened()
    assert partial.resumed_bytes == 100
    with handles_left(0), pytest.raises(StoreError, match="too many open files"):
        partial.writer(Span(100, 200), "a")
    assert partial.unclaimed() == [Span(100, len(DATA))]


class Refusing:
    """A partial whose disk does not take that a piece is wrong."""

    error: Exception | None = None

    def await_bytes(self, position: int) -> Span:
        return Span(0, 100)

    def needs_proof(self, span: Span) -> bytes:
        return bytes(32)

    def refused(self, span: Span) -> None:
        raise StoreError("the disk is full")

    def followed(self, position: int) -> None:
        raise AssertionError("nothing was proven")

    def failed(self, error: OSError | StoreError) -> None:
        self.error = error


def test_a_follower_that_cannot_write_its_verdict_says_so(tmp_path) -> None:
    """Else everybody would wait for it for ever."""
    (tmp_path / "data").write_bytes(DATA)
    refusing = Refusing()
    with (tmp_path / "data").open("rb") as stream:
        Follower(refusing, stream.fileno(), Checks([]), None).join()
    assert isinstance(refusing.error, StoreError)


class Endless(Refusing):
    """A partial of a terabyte that is stopped."""

    def __init__(self) -> None:
        self.begun, self.stopped = threading.Event(), threading.Event()

    def await_bytes(self, position: int) -> Span | None:
        return None if self.stopped.is_set() else Span(0, 1 << 40)

    def needs_proof(self, span: Span) -> None:
        self.begun.set()


def test_a_follower_stops_whatever_is_left_to_hash(tmp_path) -> None:
    endless = Endless()
    with (tmp_path / "data").open("w+b") as stream:
        os.truncate(stream.fileno(), 1 << 40)
        follower = Follower(endless, stream.fileno(), Checks([]), None)
        assert endless.begun.wait(PATIENCE_S)
        endless.stopped.set()
        follower.stop()
    assert endless.error is None


def test_a_partial_in_a_place_that_cannot_be_written_names_the_place(base, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        Partial.open(str(tmp_path / "file/partials"), KEY, FILE)


# -- flat -------------------------------------------------------------------------------------------------------------


def test_a_file_of_100_gigabytes_needs_no_memory_before_its_bytes(opened) -> None:
    size = 100 << 30
    file = ModelFile("m.bin", size, FILE.digests, (), PieceDigests(4 * MIB, bytes(32 * 25_600)))
    tracemalloc.start()
    try:
        partial = opened(file)
        writer = partial.writer(Span(size - 10, size), "a")
        assert partial.unclaimed() == [Span(0, size - 10)]
        writer.write(b"0123456789")
        writer.close()
        assert partial.missing() == [Span(0, size - 10)]
        assert not partial.await_proof(PATIENCE_S)
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
    assert os.stat(partial.path).st_blocks * 512 < MIB


@pytest.mark.parametrize("size", [64 << 20, None])
def test_room_is_reserved_only_for_a_file_whose_size_is_known(opened, size) -> None:
    partial = opened(ModelFile("big.bin", size=size))
    partial.writer(Span(0, END), "a").write(b"x")
    assert (os.stat(partial.path).st_blocks * 512 >= 64 << 20) == (size is not None)


def test_room_for_bytes_that_never_came_is_given_back(opened) -> None:
    partial = opened(ModelFile("big.bin", size=64 * MIB))
    writers = [partial.writer(Span(16 * MIB * at, 16 * MIB * (at + 1)), "a") for at in range(4)]
    for writer in writers:
        writer.write(BIG[:MIB])
    if not partial.reserved_bytes:
        pytest.skip("this file system reserves nothing")
    partial.close()
    assert os.stat(partial.path).st_blocks * 512 < 5 * MIB
    again = opened(ModelFile("big.bin", size=64 * MIB))
    assert again.written_bytes == 4 * MIB
    assert all(os.pread(again._fd, MIB, 16 * MIB * at) == BIG[:MIB] for at in range(4))


def test_room_that_a_killed_run_reserved_is_told(base, opened) -> None:
    file = ModelFile("big.bin", size=64 * MIB)
    if (child := os.fork()) == 0:
        Partial.open(str(base), KEY, file).writer(Span(0, 64 * MIB), "a").write(BIG[:MIB])
        os._exit(0)
    os.waitpid(child, 0)
    partial = opened(file)
    if not os.stat(partial.path).st_blocks * 512 > 2 * MIB:
        pytest.skip("this file system reserves nothing")
    assert partial.reserved_bytes == os.stat(partial.path).st_blocks * 512 - partial.written_bytes > 32 * MIB


def test_who_gives_reserved_room_back_takes_no_byte_of_whom_it_made_room_for(opened) -> None:
    """Room is given back as a hole, and a hole in the wrong place would be zeros."""
    half, size = 32 << 20, 64 << 20
    partial = opened(ModelFile("big.bin", size=size))
    first = partial.writer(Span(0, size), "a")
    first.write(b"x")
    assert first.shorten(half)
    second = partial.writer(Span(half, size), "a")
    second.write(b"y" * 10_000)
    first.close()
    second.close()
    with open(partial.path, "rb") as stream:
        stream.seek(half)
        assert stream.read(10_000) == b"y" * 10_000


@pytest.mark.parametrize("made", ["data", "journal"])
def test_a_folder_that_another_host_takes_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    """Where locks lie: it sees the name, and not yet the lock."""
    create, taken = claims.create, []

    def taken_now(path: str, *more: int) -> int:
        if not taken and path.endswith(made):
            folder = os.path.dirname(path)
            taken.append(folder)
            os.rename(folder, tmp_path / "theirs")
        return create(path, *more)

    for module in (claims, journals):
        monkeypatch.setattr(module, "create", taken_now)
    partial = Partial.open(str(tmp_path / "partials"), KEY, FILE)
    assert taken != [partial.folder]
    partial.close()
