"""File operations: whole or not at all, through no link, and refusals in words."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import StoreError
from modelcache.store.disk import (
    BUFFER,
    chosen_by,
    chunks_of,
    disk_errors,
    make_directories,
    output_mode,
    read_small,
    remove_tree,
    reserve,
    store_error,
    sync_directory,
    write_all,
    write_atomic,
)

REFUSALS = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG", "EMFILE", "ENFILE", "EIO", "ENAMETOOLONG", "ELOOP"]


@pytest.mark.parametrize("name", [*REFUSALS, "ESTALE", "ENOENT"])
def test_a_refusal_is_one_line_that_names_the_path_and_what_to_do(name) -> None:
    number = getattr(errno, name)
    error = store_error(OSError(number, os.strerror(number)), "/some/where")
    assert error.message.startswith("/some/where: ")
    assert error.next_step
    assert "\n" not in error.line()
    assert "Errno" not in error.line()


def test_only_errors_of_the_disk_are_translated() -> None:
    with pytest.raises(KeyError), disk_errors("/x"):
        raise KeyError
    with pytest.raises(StoreError, match="/x: the disk is full") as caught, disk_errors("/x"):
        raise OSError(errno.ENOSPC, "")
    assert isinstance(caught.value.__cause__, OSError)


def test_folders_are_made_with_all_above_them_for_their_owner_only(tmp_path) -> None:
    make_directories(str(tmp_path / "a/b/c"))
    for path in ("a", "a/b", "a/b/c"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700
    make_directories(str(tmp_path / "a/b/c"))


def test_a_link_to_a_folder_is_not_taken_for_one_of_ours(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        make_directories(str(tmp_path / "link"))


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_way_of_a_folder_is_told(tmp_path, path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        make_directories(str(tmp_path / path))


def test_a_folder_without_a_name_cannot_be_made() -> None:
    with pytest.raises(StoreError):
        make_directories("")


def test_a_small_file_is_replaced_as_a_whole(tmp_path) -> None:
    path = tmp_path / "file"
    write_atomic(str(path), b"old")
    before = path.stat().st_ino
    write_atomic(str(path), b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("target")
    write_atomic(str(tmp_path / "link"), b"new")
    assert (tmp_path / "target").read_bytes() == b"mine"
    assert not (tmp_path / "link").is_symlink()


def test_a_file_that_cannot_be_replaced_stays_and_nothing_lies_beside_it(small_disk) -> None:
    path = small_disk / "file"
    write_atomic(str(path), b"old")
    with pytest.raises(StoreError, match="the disk is full"):
        write_atomic(str(path), bytes(5 << 20))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["file"]


@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 17])
def test_a_small_file_is_read_as_it_is(tmp_path, size) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert read_small(str(tmp_path / "file")) == content


def test_a_file_that_is_absent_is_none(tmp_path) -> None:
    assert read_small(str(tmp_path / "file")) is None


def test_what_is_not_a_small_file_of_ours_is_refused(tmp_path) -> None:
    (tmp_path / "large").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("large")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("large", "link", "folder", "fifo"):
        with pytest.raises(StoreError, match=name):
            read_small(str(tmp_path / name), most=4)


@given(st.binary(max_size=100), st.integers(0, 120), st.integers(0, 120), st.integers(1, 30))
def test_chunks_are_the_bytes_of_a_span_as_far_as_there_are_any(tmp_path_factory, content, start, stop, buffer) -> None:
    path = tmp_path_factory.getbasetemp() / "chunks"
    path.write_bytes(content)
    with path.open("rb") as stream:
        chunks = [bytes(chunk) for chunk in chunks_of(stream.fileno(), start, stop, memoryview(bytearray(buffer)))]
        assert b"".join(map(bytes, chunks_of(stream.fileno(), start, stop))) == content[start:stop]
    assert b"".join(chunks) == content[start:stop]
    assert all(len(chunk) <= buffer for chunk in chunks)


def test_what_fits_onto_a_full_disk_is_written_before_it_refuses(small_disk) -> None:
    with (small_disk / "file").open("w+b", buffering=0) as stream:
        with pytest.raises(OSError, match="No space"):
            write_all(stream.fileno(), memoryview(b"x" * (5 << 20)), 0)
        assert set(stream.read()) == {ord("x")}


def test_a_tree_goes_and_what_its_links_point_at_stays(tmp_path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").touch()
    (tree / "below/link").symlink_to(outside)
    os.mkfifo(tree / "fifo")
    remove_tree(str(tree))
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(outside) == ["mine"]


def test_a_link_in_the_place_of_a_tree_goes_alone(tmp_path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/mine").touch()
    (tmp_path / "link").symlink_to("outside")
    (tmp_path / "file").touch()
    for name in ("link", "file", "absent"):
        remove_tree(str(tmp_path / name))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["outside", "outside/mine"]


def test_syncing_a_folder_leaves_no_handle_open(tmp_path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    sync_directory(str(tmp_path))
    with pytest.raises(OSError, match="Not a directory"):
        sync_directory(str(Path(__file__)))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_mode_of_an_output_follows_the_umask() -> None:
    before = os.umask(0o027)
    try:
        assert output_mode() == 0o640
    finally:
        os.umask(before)


def test_room_is_reserved_without_changing_what_a_file_is(tmp_path) -> None:
    path = tmp_path / "data"
    with open(path, "wb", buffering=0) as stream:
        stream.write(b"abc")
        if not reserve(stream.fileno(), 3, 1 << 20):
            pytest.skip("this file system reserves nothing")
        assert os.fstat(stream.fileno()).st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == b"abc"


def test_where_no_room_can_be_reserved_nothing_is_raised(tmp_path, small_disk) -> None:
    with open(small_disk / "data", "wb") as stream:
        assert not reserve(stream.fileno(), 0, 1 << 40)
    read_fd, write_fd = os.pipe()
    assert not reserve(write_fd, 0, 1 << 20)
    os.close(read_fd)
    os.close(write_fd)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "choose another reports_dir, or mend its permissions"),
        (errno.EROFS, "choose another reports_dir"),
        (errno.ENOTDIR, "move it away, or choose another reports_dir"),
        (errno.EMFILE, "raise `ulimit -n`"),
    ],
)
def test_advice_about_a_place_names_what_the_user_chose_it_by(number: int, advice: str) -> None:
    with pytest.raises(StoreError) as failure, chosen_by("reports_dir"), disk_errors("/srv/x"):
        raise OSError(number, os.strerror(number))
    assert failure.value.next_step == advice
