"""Unpacking: what comes out is right, and what must not come out does not, whatever the archive says."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import stat
import struct
import sys
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.errors import ModelCacheError, StoreError, UsageError, VerificationError
from modelcache.names import checked_path
from modelcache.unpack import UnpackLimits, stem_of, unpack

LOW_FLOOR = UnpackLimits(ratio_floor=1 << 20)
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstandard.compress,
}
TARS = [".tar", ".tgz", *(f".tar.{coding}" for coding in CODINGS)]


def tar_of(*members: tarfile.TarInfo | tuple[str, bytes], **options: object) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", **options) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return written.getvalue()


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def zip_of(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content, compress_type=method)
    return written.getvalue()


def zip_entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def packed_as(suffix: str, members: dict[str, bytes]) -> bytes:
    if suffix == ".zip":
        return zip_of(*members.items())
    content, coding = tar_of(*members.items()), suffix.rpartition(".")[2]
    return CODINGS.get({"tgz": "gz"}.get(coding, coding), bytes)(content)


def unpacked(folder: Path, content: bytes, name: str, limits: UnpackLimits = LOW_FLOOR) -> dict[str, bytes]:
    """What comes out, by path. The archive's own name is a hash, as a blob's is."""
    blob = folder / ("0" * 64)
    blob.write_bytes(content)
    paths = unpack(str(blob), str(folder / "out"), name=name, limits=limits)
    found = {str(path.relative_to(folder / "out")): path for path in (folder / "out").rglob("*") if path.is_file()}
    assert sorted(found) == sorted(paths)
    return {path: found[path].read_bytes() for path in paths}


def refusal(folder: Path, content: bytes, name: str, limits: UnpackLimits = LOW_FLOOR) -> str:
    """The error's line; nothing is left beside the archive."""
    with pytest.raises(VerificationError, match="cannot be unpacked: ") as caught:
        unpacked(folder, content, name, limits)
    assert os.listdir(folder) == ["0" * 64]
    return caught.value.line()


# What comes out


@pytest.mark.parametrize("suffix", [".zip", *TARS])
def test_an_archive_comes_out_as_it_went_in(suffix: str, tmp_path: Path) -> None:
    members = {"config.json": b"{}", "sub/folder/weights.bin": os.urandom(300_000), "sub/empty": b""}
    assert unpacked(tmp_path, packed_as(suffix, members), "model" + suffix) == members


@pytest.mark.parametrize("coding", CODINGS)
def test_a_single_file_loses_its_suffix(coding: str, tmp_path: Path) -> None:
    content = os.urandom(200_000) + bytes(5_000_000)
    assert unpacked(tmp_path, CODINGS[coding](content), f"a/model.onnx.{coding.upper()}") == {"model.onnx": content}


@pytest.mark.parametrize("coding", CODINGS)
def test_streams_may_follow_one_another(coding: str, tmp_path: Path) -> None:
    pack = CODINGS[coding]
    assert unpacked(tmp_path, pack(b"one ") + pack(b"") + pack(b"two") + bytes(8), f"x.{coding}") == {"x": b"one two"}


def test_skippable_zstd_frames_are_skipped(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"note"
    content = skipped + zstandard.compress(b"content") + skipped
    assert unpacked(tmp_path, content, "x.zst") == {"x": b"content"}


def test_a_leading_dot_folder_is_the_folder_itself(tmp_path: Path) -> None:
    content = tar_of(header("./", tarfile.DIRTYPE), ("./a", b"1"), header("./b/", tarfile.DIRTYPE))
    assert unpacked(tmp_path, content, "x.tar") == {"a": b"1"}
    assert (tmp_path / "out/b").is_dir()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_form_come_out(form: int, tmp_path: Path) -> None:
    name = "/".join(["folder" * 10] * 3 + ["ä" * 40 if form == tarfile.PAX_FORMAT else "file"])
    assert unpacked(tmp_path, tar_of((name, b"content"), format=form), "x.tar") == {name: b"content"}


def test_an_archive_without_entries_is_an_empty_folder(tmp_path: Path) -> None:
    for number, (name, content) in enumerate([("x.zip", zip_of()), ("x.tar", tar_of())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert unpacked(folder, content, name) == {}
        assert os.listdir(folder / "out") == []


def test_modes_are_the_umasks_and_nothing_of_the_archives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        unpacked(tmp_path, tar_of(header("run", mode=0o6755), header("plain", mode=0o2777 & ~0o111)), "x.tar")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).lstat().st_mode) for name in ("run", "plain", "")}
    assert modes == {"run": 0o750, "plain": 0o640, "": 0o750}


def is_name(text: str) -> bool:
    try:
        return bool(checked_path(text, parts=1))
    except UsageError:
        return False


names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12).filter(is_name)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@settings(max_examples=60, deadline=None)
@given(entries=st.lists(st.tuples(paths, st.binary(max_size=400)), max_size=8), suffix=st.sampled_from([".zip", *TARS]))
def test_any_names_and_contents_that_may_be_paths_round_trip(entries: list[tuple[str, bytes]], suffix: str) -> None:
    members = {checked_path(f"{number}-{path}"): content for number, (path, content) in enumerate(entries)}
    with tempfile.TemporaryDirectory() as folder:
        assert unpacked(Path(folder), packed_as(suffix, members), "m" + suffix) == members


# What must not come out


@pytest.mark.parametrize(
    "name",
    ["../up", "a/../../up", "/absolute", "a\\..\\up", "C:evil", "CON", "a//b", "tab\t", "x\u202egpj.exe", "a./b"],
)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_names_that_lead_elsewhere_are_refused(name: str, suffix: str, tmp_path: Path) -> None:
    assert "cannot be a path" in refusal(tmp_path, packed_as(suffix, {"fine": b"", name: b"evil"}), "m" + suffix)


def test_a_name_cut_by_a_nul_is_refused(tmp_path: Path) -> None:
    content = zip_of(("good.txt_../evil", b"")).replace(b"good.txt_", b"good.txt\0")
    assert "cannot be a path" in refusal(tmp_path, content, "x.zip")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "cannot be a path" in refusal(tmp_path, tar_of(("näme", b"")).replace("ä".encode(), b"\xff\xfe"), "x.tar")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"S"]
)
def test_tar_entries_that_are_no_plain_files_are_refused(kind: bytes, tmp_path: Path) -> None:
    expected = "'odd' is a link" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "'odd' is neither"
    assert expected in refusal(tmp_path, tar_of(("a", b""), header("odd", kind, linkname="a")), "x.tar")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_zip_entries_that_are_no_plain_files_are_refused(kind: int, tmp_path: Path) -> None:
    assert "'odd' is a link or" in refusal(tmp_path, zip_of((zip_entry("odd", kind | 0o777), b"/etc")), "x.zip")


def test_a_folder_that_is_a_link_in_truth_is_refused(tmp_path: Path) -> None:
    assert "'odd/' is a link" in refusal(tmp_path, zip_of((zip_entry("odd/", stat.S_IFLNK), b"")), "x.zip")


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    assert "cannot be a path" in refusal(tmp_path, zip_of(("odd/", b"content")), "x.zip")


def test_sparse_files_of_the_pax_form_are_refused(tmp_path: Path) -> None:
    holes = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1", "GNU.sparse.size": "99999"}
    content = tar_of(header("odd", pax_headers=holes), format=tarfile.PAX_FORMAT)
    assert "'odd' is neither" in refusal(tmp_path, content, "x.tar")


@pytest.mark.parametrize("content", [b"9\n", b"no number", b"9" * 512])
def test_a_list_of_holes_without_an_end_is_refused(content: bytes, tmp_path: Path) -> None:
    sparse = header("odd", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, size=len(content))
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(sparse, io.BytesIO(content))
    refusal(tmp_path, written.getvalue(), "x.tar")


@pytest.mark.parametrize(
    "pair",
    [
        ("same", "same"),
        ("Case", "case"),
        ("Folder/a", "folder/b"),
        ("file", "file/below"),
        ("file/below", "file"),
        ("é", unicodedata.normalize("NFD", "é")),
        ("a/File/x", "a/file"),
    ],
)
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_that_could_be_one_file_are_refused(pair: tuple[str, str], suffix: str, tmp_path: Path) -> None:
    members = [(name, b"") for name in pair]
    refusal(tmp_path, zip_of(*members) if suffix == ".zip" else tar_of(*members), "x" + suffix)


def test_an_empty_folder_and_a_file_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path, tar_of(header("A", tarfile.DIRTYPE), ("a", b"")), "x.tar")


def test_encrypted_entries_are_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(("secret", b"content")))
    content[content.index(b"PK\1\2") + 8] |= 1
    assert "'secret' is encrypted" in refusal(tmp_path, bytes(content), "x.zip")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_need_much_memory_are_refused(method: int, tmp_path: Path) -> None:
    assert f"method {method}" in refusal(tmp_path, zip_of(("x", bytes(1000)), method=method), "x.zip")


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = zip_of(("a", bytes(10_000)), ("b", bytes(10_000)))
    start = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", start + 4)
    shared = content[: second + 42] + bytes(4) + content[second + 46 :]  # b's content now starts where a's does
    assert "overlap" in refusal(tmp_path, shared, "x.zip")


# Bombs


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".gz", ".xz", ".bz2", ".zst"])
def test_what_grows_beyond_the_ratio_is_refused(suffix: str, tmp_path: Path) -> None:
    zeros = bytes(4 << 20)
    content = CODINGS[suffix[1:]](zeros) if suffix[1:] in CODINGS else packed_as(suffix, {"zeros": zeros})
    assert "which is the limit" in refusal(tmp_path, content, "x" + suffix, LOW_FLOOR)


def test_a_high_ratio_below_the_floor_is_fine(tmp_path: Path) -> None:
    assert unpacked(tmp_path, gzip.compress(bytes(1 << 20)), "x.gz", LOW_FLOOR)


def test_the_ratio_counts_where_it_allows_more_than_the_floor(tmp_path: Path) -> None:
    content = os.urandom(10_000)
    assert unpacked(tmp_path, gzip.compress(content), "x.gz", UnpackLimits(ratio_floor=1, ratio=2)) == {"x": content}


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_more_bytes_than_the_limit_are_refused(suffix: str, tmp_path: Path) -> None:
    content = packed_as(suffix, {"a": os.urandom(600), "b": os.urandom(600)})
    refusal(tmp_path, content, "x" + suffix, UnpackLimits(total_bytes=1_000))


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_more_entries_than_the_limit_are_refused(suffix: str, tmp_path: Path) -> None:
    content = packed_as(suffix, {str(number): b"" for number in range(11)})
    assert "more than 10 entries" in refusal(tmp_path, content, "x" + suffix, UnpackLimits(entries=10))


def test_folders_count_as_entries(tmp_path: Path) -> None:
    content = tar_of(("/".join("abcdefghijkl"), b""))
    assert "more than 10 entries" in refusal(tmp_path, content, "x.tar", UnpackLimits(entries=10))


def test_a_folder_named_again_and_again_counts_each_time(tmp_path: Path) -> None:
    content = tar_of(*[header("same", tarfile.DIRTYPE)] * 11)
    assert "more than 10 entries" in refusal(tmp_path, content, "x.tar", UnpackLimits(entries=10))


def test_a_list_of_contents_too_long_to_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    many = zip_of(*[(f"{number:040}", b"") for number in range(5_000)])
    assert "more than 100 entries" in refusal(tmp_path, many, "x.zip", UnpackLimits(entries=100))
    for contents, reason in ((b"PK\1\2" * 101, "more than 100 entries"), (bytes(3 << 20), "contents is too long")):
        claim = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(contents), 4, 0)
        assert reason in refusal(tmp_path, b"PK\3\4" + contents + claim, "x.zip", UnpackLimits(entries=100))


def test_a_tar_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    content = tar_of(header("x", pax_headers={"comment": "x" * 500_000}), format=tarfile.PAX_FORMAT)
    assert "a tar header is too long" in refusal(tmp_path, content, "x.tar")


def test_a_chain_of_tar_headers_is_refused(tmp_path: Path) -> None:
    link = header("././@LongLink", tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)  # empty, before another
    assert "too long" in refusal(tmp_path, link * 5_000 + tar_of(("x", b"")), "x.tar")


def test_a_chain_that_python_cannot_follow_is_refused(tmp_path: Path) -> None:
    link = header("././@LongLink", tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        assert "recursion" in refusal(tmp_path, link * 200 + tar_of(("x", b"")), "x.tar")
    finally:
        sys.setrecursionlimit(before)


def test_tar_headers_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    folder = header("same", tarfile.DIRTYPE)
    every = tarfile.TarInfo.create_pax_global_header
    (tmp_path / "x.tar").write_bytes(
        folder.tobuf() * 10_000
        + b"".join(every({f"key{number}": "x" * 50_000}) + folder.tobuf() for number in range(200))
        + bytes(1024)
    )
    tracemalloc.start()
    try:
        assert unpack(str(tmp_path / "x.tar"), str(tmp_path / "out")) == []
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_a_zip_inside_a_zip_counts_as_one_entry(tmp_path: Path) -> None:
    inner = zip_of(*[(str(number), b"") for number in range(20)])
    content = zip_of(("inner.zip", inner), method=zipfile.ZIP_STORED)
    assert unpacked(tmp_path, content, "x.zip", UnpackLimits(entries=10)) == {"inner.zip": inner}


def test_a_window_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    limits = UnpackLimits(window_bytes=1 << 20)
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=24, enable_ldm=True)
    ).compressobj()
    wide = packer.compress(os.urandom(100_000)) + packer.flush()
    assert "damaged" in refusal(tmp_path, wide, "x.zst", limits)
    assert "Memory usage limit" in refusal(tmp_path, lzma.compress(b"x", preset=9), "x.xz", limits)


@pytest.mark.parametrize("suffix", [".zip", ".tar.bz2", ".gz", ".xz", ".bz2", ".zst"])
def test_memory_stays_flat_whatever_the_bytes_stand_for(suffix: str, tmp_path: Path) -> None:
    zeros = bytes(90 << 20)
    content = CODINGS[suffix[1:]](zeros) if suffix[1:] in CODINGS else packed_as(suffix, {"zeros": zeros})
    (tmp_path / "blob").write_bytes(content)
    tracemalloc.start()
    try:
        unpack(str(tmp_path / "blob"), str(tmp_path / "out"), name="x" + suffix, limits=UnpackLimits())
        assert tracemalloc.get_traced_memory()[1] < 70 << 20
    finally:
        tracemalloc.stop()


# Damage


@pytest.mark.parametrize("suffix", [".zip", *TARS, *(f".{coding}" for coding in CODINGS)])
def test_a_file_cut_anywhere_is_refused(suffix: str, tmp_path: Path) -> None:
    single = CODINGS.get(suffix[1:])
    content = single(os.urandom(5_000)) if single else packed_as(suffix, {"a": os.urandom(3_000), "b": b"12"})
    end = len(content) - (2 * 512 + 9_000 if suffix == ".tar" else 0)  # plain tar: up to its end mark
    for kept in {0, 1, 5, end // 3, end // 2, end - 1_000, end - 1} & set(range(end)):
        refusal(tmp_path, content[:kept], "x" + suffix)


def test_a_damaged_header_in_mid_archive_is_not_its_end(tmp_path: Path) -> None:
    content = bytearray(tar_of(("a", b"1"), ("b", b"2")))
    content[1024 + 10] ^= 1  # in b's name, so its checksum is wrong
    assert "damaged" in refusal(tmp_path, bytes(content), "x.tar")


def test_damage_behind_the_last_entry_is_found(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(tar_of(("a", b"1"))))
    content[-8] ^= 1  # in the CRC of the stream
    assert "damaged" in refusal(tmp_path, bytes(content), "x.tgz")


@pytest.mark.parametrize("coding", CODINGS)
def test_bytes_behind_the_last_stream_are_refused(coding: str, tmp_path: Path) -> None:
    assert "damaged" in refusal(tmp_path, CODINGS[coding](b"x") + b"something else", f"x.{coding}")


@pytest.mark.parametrize("suffix", [".zip", *TARS, *(f".{coding}" for coding in CODINGS)])
def test_a_file_of_another_kind_is_refused(suffix: str, tmp_path: Path) -> None:
    refusal(tmp_path, b"<html>Not found</html>" * 100, "x" + suffix)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_file_that_is_no_tar_is_refused(coding: str, tmp_path: Path) -> None:
    refusal(tmp_path, CODINGS[coding](b"no tar" * 1_000), f"x.tar.{coding}")


@pytest.mark.parametrize("suffix", [".zip", *TARS, ".gz", ".xz", ".bz2", ".zst"])
def test_random_damage_never_shows_a_foreign_error(suffix: str, tmp_path: Path) -> None:
    luck = random.Random(suffix)
    members = {"a/b": bytes(3_000), "c" * 120: luck.randbytes(700), "ä": b"123"}
    single = CODINGS.get(suffix[1:])
    whole = single(luck.randbytes(2_000)) if single else packed_as(suffix, members)
    for number in range(300):
        damaged, folder = bytearray(whole), tmp_path / str(number)
        for _ in range(luck.randint(1, 3)):
            # most tries hit where zip and tar keep what they say about themselves
            at = luck.choice([luck.randrange(len(whole)), luck.randrange(min(512, len(whole))), -luck.randint(1, 200)])
            damaged[at % len(whole)] = luck.choice([0, 255, luck.randrange(256)])
        folder.mkdir()
        try:
            unpacked(folder, bytes(damaged), "x" + suffix)
        except VerificationError:
            assert os.listdir(folder) == ["0" * 64]


def test_a_zip_entry_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(("a", b"1234567")))
    content[content.index(b"PK\1\2") + 24] += 1
    assert "'a' has 7 bytes, not 8" in refusal(tmp_path, bytes(content), "x.zip")


def test_a_zip_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, zip_of(("ä", b"")).replace("ä".encode(), b"\xff\xfe"), "x.zip")


# All or nothing


def test_only_known_suffixes_are_unpacked(tmp_path: Path) -> None:
    for name in ("model.bin", "model", ".gz", ".tar.gz", "gz"):
        with pytest.raises(UsageError, match="kind of file"):
            unpacked(tmp_path, gzip.compress(b""), name)


def test_the_stem_is_the_name_without_what_tells_the_kind() -> None:
    names = ["a/model.v1.TAR.gz", "x.tgz", "model.onnx.zst", "a.zip"]
    assert [stem_of(name) for name in names] == ["model.v1", "x", "model.onnx", "a"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_is_there_already_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out").lstat()
    with pytest.raises(UsageError, match="there already"):
        unpacked(tmp_path, zip_of(("a", b"")), "x.zip")
    assert (tmp_path / "out").lstat() == before


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_fd: int) -> None:
        hidden = next(path for path in tmp_path.iterdir() if path.name.startswith(".out."))
        assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
        assert not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpacked(tmp_path, zip_of(("a", b"content")), "x.zip")
    assert os.listdir(tmp_path) == ["0" * 64]


def test_every_file_and_folder_is_synced_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append((os.fstat(fd).st_ino, (tmp_path / "out").exists())), real(fd))[1]
    )
    unpacked(tmp_path, zip_of(("a", b"1"), ("b/c", b"2")), "x.zip")
    early = {inode for inode, is_seen in synced if not is_seen}
    assert early == {(tmp_path / "out" / path).stat().st_ino for path in ("", "a", "b", "b/c")}
    assert synced[-1] == (tmp_path.stat().st_ino, True)


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="full") as caught:
        unpacked(tmp_path, bz2.compress(b"content"), "x.bz2")
    assert str(tmp_path / "out") in caught.value.message and caught.value.next_step
    assert os.listdir(tmp_path) == ["0" * 64]


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone\.zip"):
        unpack(str(tmp_path / "gone.zip"), str(tmp_path / "out"))


def test_without_zstandard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ModelCacheError, match=r"modelcache\[zstd\]") as caught:
        unpacked(tmp_path, CODINGS["zst"](b""), "x.zst")
    assert isinstance(caught.value, UsageError)
    assert os.listdir(tmp_path) == ["0" * 64]
