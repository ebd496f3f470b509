"""Where pieces lie, and what is hashed as bytes pass by."""

import hashlib
import zlib
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from modelcache.model import GIT, Digest, PieceDigests, Span
from modelcache.pieces import Checks, PieceHasher, Pieces, new_hash

DATA = bytes(zlib.crc32(bytes([index % 251, index // 251])) & 0xFF for index in range(1000))
sizes = st.integers(0, len(DATA))
lengths = st.integers(1, 300)


def digest_of(data: bytes) -> bytes:
    return blake3(data).digest()


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[low:high] for low, high in pairwise(bounds)]


@given(sizes, lengths)
def test_pieces_follow_each_other_and_cover_the_file(size, length) -> None:
    pieces = Pieces(size, length)
    spans = [pieces.span(index) for index in range(len(pieces))]
    assert [byte for span in spans for byte in range(*span)] == list(range(size))
    assert all(span.size == length for span in spans[:-1])


@given(st.integers(1, len(DATA)), lengths, st.data())
def test_a_byte_lies_in_the_piece_that_is_said_to_hold_it(size, length, data) -> None:
    pieces = Pieces(size, length)
    offset = data.draw(st.integers(0, size - 1))
    span = pieces.span(pieces.at(offset))
    assert span.start <= offset < span.stop


def test_a_piece_of_which_nobody_told_is_right() -> None:
    assert Pieces(10, 4).matches(2, b"anything")


def test_a_told_piece_is_right_only_with_its_digest() -> None:
    told = PieceDigests(4, b"".join(digest_of(DATA[start : start + 4]) for start in (0, 4, 8)))
    pieces = Pieces(10, 4, told)
    assert pieces.matches(1, digest_of(DATA[4:8]))
    assert not pieces.matches(1, digest_of(DATA[0:4]))


@given(st.integers(1, len(DATA)), lengths, st.lists(st.integers(0, 999)), st.data())
def test_every_piece_that_passed_from_its_first_byte_is_hashed_once(size, length, cuts, data) -> None:
    pieces = Pieces(size, length)
    start = data.draw(st.integers(0, size))
    hasher = PieceHasher(pieces, start)
    done = [one for chunk in chunked(DATA[start:size], cuts) for one in hasher.feed(memoryview(chunk))]
    whole = [index for index in range(len(pieces)) if pieces.span(index).start >= start]
    assert done == [(index, digest_of(DATA[slice(*pieces.span(index))])) for index in whole]


def test_bytes_beyond_the_end_complete_no_piece() -> None:
    hasher = PieceHasher(Pieces(10, 4), 8)
    assert hasher.feed(memoryview(DATA[8:50])) == [(2, digest_of(DATA[8:10]))]
    assert hasher.feed(memoryview(DATA)) == []


@pytest.mark.parametrize("name", ["sha256", "sha512", "sha1", "md5"])
def test_a_known_algorithm_is_the_one_of_the_library(name) -> None:
    running = new_hash(name)
    running.update(DATA)
    assert running.hexdigest() == hashlib.new(name, DATA).hexdigest()


def test_the_hash_of_a_git_blob_is_gits() -> None:
    checks = Checks(
        [Digest(GIT, "ce013625030ba8dba906f756967f9e9ca394464a")], 6
    )  # echo hello | git hash-object --stdin
    checks.update(memoryview(b"hello\n"))
    assert checks.wrong() is None


def test_checks_tell_the_first_digest_that_is_wrong() -> None:
    right, wrong = Digest("md5", hashlib.md5(DATA).hexdigest()), Digest("blake3", digest_of(b"").hex())
    checks = Checks([right, wrong])
    checks.update(memoryview(DATA))
    assert checks.wrong() == wrong
    assert checks.result()["md5"] == right


def test_checks_always_name_the_blob() -> None:
    assert Checks([]).result() == {"sha256": Digest("sha256", hashlib.sha256().hexdigest())}
    assert Checks([]).wrong() is None


def test_a_stretch_that_was_taken_back_any_number_of_times_leaves_no_trace() -> None:
    checks = Checks([Digest("blake3", digest_of(DATA).hex())])
    checks.update(memoryview(DATA[:100]))
    checks.mark()
    for wrong in (b"one", b"another"):
        checks.update(memoryview(wrong))
        checks.back()
    checks.update(memoryview(DATA[100:]))
    assert checks.wrong() is None


def test_the_pieces_of_100_gigabytes_are_arithmetic() -> None:
    pieces = Pieces(100 << 30, 4 << 20)
    assert len(pieces) == 25_600
    assert pieces.span(25_599) == Span((100 << 30) - (4 << 20), 100 << 30)
