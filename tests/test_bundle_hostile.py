"""Bundles that lie: nothing outside the store is written, nothing wrong becomes visible, one line says why."""

import io
import json
import os
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import (
    LARGE,
    MIB,
    SMALL,
    blob,
    files_of,
    header,
    listing,
    manifest,
    sha256_of,
    tar_of,
)
from caches import Events, entry_of
from crash import check_store, lines, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError, VerificationError
from modelcache.importing import MOST_MODELS
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.store.shelf import Shelf
from modelcache.testing import Content

FILES = {"a.json": b"{}", "sub/b.bin": SMALL}
LISTED = manifest(listing(FILES))
BLOBS = [blob(content) for content in FILES.values()]
GOOD = tar_of(LISTED, *BLOBS)
HEAD = tar_of(LISTED)[:1024]  # the manifest alone, without an end


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with a store in it, and nothing else, before and after."""
    place = tmp_path / "place"
    place.mkdir()
    yield place
    assert set(os.listdir(place)) <= {"store"}
    check_store(place / "store")


def refused(place: Path, content: bytes) -> VerificationError:
    """Why; nothing is installed."""
    cache = Cache(place / "store")
    with pytest.raises(VerificationError) as caught:
        cache.import_bundle(io.BytesIO(content))
    assert not len(cache.models())
    cache.close()
    return caught.value


def name_of(content: bytes) -> str:
    return f"blobs/sha256/{sha256_of(content)}"


KINDS = {
    "symlink": header(name_of(SMALL), tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": header(name_of(SMALL), tarfile.LNKTYPE, linkname=name_of(b"{}")),
    "character device": header(name_of(SMALL), tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block device": header(name_of(SMALL), tarfile.BLKTYPE, devmajor=8),
    "fifo": header(name_of(SMALL), tarfile.FIFOTYPE),
    "folder": header("blobs/sha256", tarfile.DIRTYPE),
    "contiguous": header(name_of(SMALL), tarfile.CONTTYPE),
    "sparse": header(name_of(SMALL), tarfile.GNUTYPE_SPARSE),
    "unknown": header(name_of(SMALL), b"Z"),
    "long name": header(name_of(SMALL), tarfile.GNUTYPE_LONGNAME),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_plain_files_are_members(place: Path, kind: str) -> None:
    assert "is not a plain file" in refused(place, tar_of(LISTED, KINDS[kind])).message
    assert "is not a plain file" in refused(place, tar_of(KINDS[kind], LISTED)).message


NAMES = [
    "../escape", "/tmp/escape", "blobs/sha256/../../../escape", "blobs/sha256/" + "0" * 63, "BLOBS/sha256/" + "0" * 64,
    "blobs/sha256/" + "A" * 64, f"./{name_of(SMALL)}", f"{name_of(SMALL)}.json", f"manifests/sha256/{'0' * 64}",
    f"{name_of(SMALL)}\n", "blobs/md5/" + "0" * 32, "x", "", "models/m/1/x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_a_manifest_or_a_blob(place: Path, name: str) -> None:
    assert "neither a manifest nor a blob" in refused(place, tar_of(LISTED, (name, SMALL))).message


@pytest.mark.parametrize(
    "fields", [{"path": "blobs/x"}, {"size": "3"}, {"linkpath": "/etc"}, {"GNU.sparse.major": "1"}]
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_no_extension_changes_what_a_header_says(place: Path, fields: dict[str, str], kind: bytes) -> None:
    records = tarfile.TarInfo._create_pax_generic_header(fields, kind, "utf-8")  # type: ignore[attr-defined]
    assert "is not a plain file" in refused(place, HEAD + records + tar_of(*BLOBS)).message


def test_a_name_that_needs_a_pax_header_is_refused(place: Path) -> None:
    long = ("é" * 120, SMALL)
    assert "is not a plain file" in refused(place, tar_of(LISTED, long, form=tarfile.PAX_FORMAT)).message
    assert "is not a plain file" in refused(place, tar_of(LISTED, long, form=tarfile.GNU_FORMAT)).message


STREAMS: dict[str, tuple[bytes, str]] = {
    "a blob twice": (tar_of(LISTED, BLOBS[0], BLOBS[0], BLOBS[1]), "is in it twice"),
    "a manifest twice": (tar_of(LISTED, LISTED, *BLOBS), "is in it twice"),
    "a manifest too late": (tar_of(LISTED, BLOBS[0], manifest(listing({"x": b"x"}, "n"))), "after the first blob"),
    "no manifest": (tar_of(*BLOBS), "begins with no manifest"),
    "nothing": (tar_of(), "begins with no manifest"),
    "no bytes": (b"", "ends too early"),
    "a blob that nobody lists": (tar_of(LISTED, blob(b"x"), *BLOBS), "is in none of its manifests"),
    "a blob that is larger": (tar_of(LISTED, (name_of(SMALL), SMALL + b"x")), "with 5,001 bytes is in none"),
    "a blob that is smaller": (tar_of(LISTED, (name_of(SMALL), SMALL[:-1])), "with 4,999 bytes is in none"),
    "a blob with other bytes": (tar_of(LISTED, BLOBS[0], (name_of(SMALL), SMALL[::-1])), "is not what its sha256 says"),
    "a blob is lacking": (tar_of(LISTED, BLOBS[0]), "1 of its files are not in it"),
    "no end": (GOOD[:-10240], "ends too early"),
    "a gap": (HEAD + bytes(512) + tar_of(*BLOBS), "is empty"),
    "something after the end": (GOOD + b"x", "something comes after its end"),
    "two bundles": (GOOD + GOOD, "something comes after its end"),
    "zeros without end": (GOOD + bytes(2 * MIB), "something comes after its end"),
    "compressed": (b"\x1f\x8b" + random.Random(1).randbytes(2000), "no bundle"),
    "a manifest with another name": (tar_of((str(LISTED[0]), b"{}")), "is not what its name says"),  # type: ignore[index]
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_that_is_no_bundle_is_refused(place: Path, case: str) -> None:
    content, why = STREAMS[case]
    cache = Cache(place / "store")
    with pytest.raises(VerificationError) as caught:
        cache.import_bundle(io.BytesIO(content))
    assert why in caught.value.message
    assert not {row["status"] for row in cache.models()} - {"ready"}
    cache.close()


def with_file(**fields: object) -> dict[str, Any]:
    entry = {"path": "b.bin", "size": len(SMALL), "sha256": sha256_of(SMALL), **fields}
    return listing({}) | {"files": [{name: value for name, value in entry.items() if value != "absent"}]}


LISTINGS: dict[str, object] = {
    "a path outside": with_file(path="../x"),
    "an absolute path": with_file(path="/etc/x"),
    "our own record": with_file(path=".manifest.json"),
    "no path": with_file(path=""),
    "a path of another type": with_file(path=7),
    "no size": with_file(size="absent"),
    "a negative size": with_file(size=-1),
    "a size beyond all": with_file(size=1 << 70),
    "no digest": with_file(sha256="absent"),
    "another digest alone": with_file(sha256="absent", md5="0" * 32),
    "a digest that is a path": with_file(sha256="../" * 21 + "x"),
    "an address with control characters": with_file(urls=["http://h/\x1b[2J"]),
    "an address with half a character": with_file(urls=["http://h/\ud800"]),
    "pieces that are too few": with_file(pieces={"size": 10, "blake3": ["0" * 64]}),
    "no files": listing({}),
    "no version": listing(FILES, version=""),
    "a version that is a path": listing(FILES, version="../1"),
    "an id that is a path": listing(FILES, "../m"),
    "an id that is absolute": listing(FILES, "/m"),
    "two names that are one": listing({"a": b"1", "A": b"2"}),
    "a file that is a folder": listing({"a": b"1", "a/b": b"2"}),
    "another format": listing(FILES) | {"format": 2},
    "a list": listing(FILES)["files"],
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "a number": b"1",
    "no text": b"\xff\xfe",
    "a ref of another type": listing(FILES, ref=[1]),
    "aliases of another type": listing(FILES, aliases="main"),
    "aliases that are too many": listing(FILES, aliases=["x"] * 101),
    "an alias that cannot be printed": listing(FILES, aliases=["\x1b"]),
    "a ref that cannot be printed": listing(FILES, ref="a\x1b[2Jb"),
}


@pytest.mark.parametrize("case", LISTINGS)
def test_a_manifest_that_cannot_be_used_is_refused(place: Path, case: str) -> None:
    error = refused(place, tar_of(manifest(LISTINGS[case]), *BLOBS))
    assert "\n" not in error.line()
    assert not (place / "store/blobs").exists()


def test_manifests_that_contradict_each_other_are_refused(place: Path) -> None:
    same = [manifest(listing(FILES)), manifest(listing({"x": b"x"}))]
    assert "are one name" in refused(place, tar_of(*same, *BLOBS)).message
    cases = [manifest(listing(FILES, "m")), manifest(listing({"x": b"x"}, "M"))]
    assert "are one name" in refused(place, tar_of(*cases, *BLOBS)).message
    sizes = [manifest(with_file()), manifest(with_file(size=3) | {"id": "n"})]
    assert "two sizes" in refused(place, tar_of(*sizes, *BLOBS)).message


def test_a_size_that_the_digest_disproves_is_refused(place: Path) -> None:
    """The content is in the store already: its size is known."""
    cache = Cache(place / "store")
    cache.import_bundle(io.BytesIO(GOOD))
    lie = tar_of(manifest(with_file(size=3) | {"id": "n"}), (name_of(SMALL), SMALL[:3]))
    with pytest.raises(VerificationError, match="3 bytes, it has 5,000"):
        cache.import_bundle(io.BytesIO(lie))
    assert [row["model"] for row in cache.models()] == ["m"]
    cache.close()


def endless(content: bytes) -> Any:
    class Endless(io.RawIOBase):
        """These bytes, then as many zeros as anybody asks for, counted."""

        def __init__(self) -> None:
            self.head = io.BytesIO(content)
            self.given = 0

        def readinto(self, buffer: Any) -> int:
            self.given += len(buffer)
            assert self.given < 80 * MIB, "whoever reads this reads on for ever"
            return self.head.readinto(buffer) or len(buffer)

        def seekable(self) -> bool:
            return False

    return Endless()


def huge(name: str) -> bytes:
    return header(name, size=1 << 40).tobuf(tarfile.GNU_FORMAT)


BOMBS = {
    "a manifest of a TiB": huge(f"manifests/sha256/{'0' * 64}.json"),
    "a blob of a TiB": HEAD + huge(name_of(SMALL)),
    "a listed blob of a TiB": tar_of(manifest(with_file(size=1 << 50)))[:1024] + huge(name_of(SMALL)),
    "models": tar_of(*(manifest(listing({"x": b"x"}, f"m{index}")) for index in range(MOST_MODELS + 1))),
    "manifests of 5 MB": b"".join(
        tar_of(manifest(json.dumps(listing({"x": b"x"}, f"m{index}")).encode().ljust(4_999_000)))[: 5_000_192 - 512]
        for index in range(15)
    ),
    "zeros": b"",
    "zeros after the end": GOOD,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_is_read(place: Path, bomb: str) -> None:
    cache, stream = Cache(place / "store"), endless(BOMBS[bomb])
    with pytest.raises(ModelCacheError):
        cache.import_bundle(stream)
    assert sum(path.stat().st_size for path in (place / "store").rglob("*") if path.is_file()) < MIB
    cache.close()


# -- damage -----------------------------------------------------------------------------------------------------------

TWO_MODELS = tar_of(
    manifest(listing(FILES, "m")), manifest(listing({"c": b"c" * 700, "d": SMALL}, "n")),
    *BLOBS, blob(b"c" * 700),
)  # fmt: skip
BLOCKS = range(0, len(TWO_MODELS.rstrip(b"\0")) + 1024, 512)


@pytest.mark.parametrize("can_seek", [True, False])
def test_cut_at_any_block_it_gives_what_came_in_whole(tmp_path: Path, can_seek: bool) -> None:
    seen = set()
    for cut in BLOCKS:
        cache = Cache(tmp_path / str(cut))
        stream = io.BytesIO(TWO_MODELS[:cut])
        stream.seekable = lambda: can_seek  # type: ignore[method-assign]
        with pytest.raises(VerificationError, match="ends too early") as caught:
            cache.import_bundle(stream)
        here = [str(row["model"]) for row in cache.models()]
        seen.add(tuple(here))
        if here:
            assert (
                f"{len(here)} of 2 models are here ({', '.join(f'{model}@1' for model in here)})"
                in caught.value.message
            )
        assert all(row["status"] == "ready" for row in cache.models())
        check_store(Path(cache.root))
        assert len(cache.import_bundle(io.BytesIO(TWO_MODELS))) == 2
        cache.close()
    assert seen == {(), ("m",), ("m", "n")}


def large_bundle() -> bytes:
    entry = entry_of("http://127.0.0.1:9/x.bin", "x.bin", Content.of(LARGE), 4 * MIB)
    return tar_of(manifest(listing(FILES) | {"files": [entry, *listing(FILES)["files"]]}), blob(LARGE), *BLOBS)


def test_a_flipped_bit_costs_its_piece(tmp_path: Path) -> None:
    """With piece digests the rest is kept, and another copy brings that piece alone."""
    good = large_bundle()
    bad, at = bytearray(good), good.index(LARGE[:100]) + 5 * MIB
    bad[at] ^= 1
    bad[at + 4 * MIB] ^= 1
    cache = Cache(tmp_path / "store")
    with pytest.raises(VerificationError, match=r"x\.bin has wrong bytes") as caught:
        cache.import_bundle(io.BytesIO(bad))
    assert caught.value.kept_bytes == 4 * MIB + len(SMALL) + 2  # one piece of three, and the other files
    (model,) = cache.import_bundle(io.BytesIO(good))
    assert (model["x.bin"].bytes_resumed, model["a.json"].status) == (4 * MIB, "linked")
    assert files_of(cache, "m") == {**FILES, "x.bin": LARGE}
    cache.close()


def test_pieces_that_lie_do_not_make_right_bytes_of_wrong_ones(place: Path) -> None:
    wrong = bytearray(LARGE)
    wrong[6 * MIB] ^= 1
    entry = entry_of("", "x.bin", Content.of(bytes(wrong)), 4 * MIB) | {"sha256": sha256_of(LARGE), "urls": []}
    lie = tar_of(manifest(listing({}) | {"files": [entry]}), blob(bytes(wrong), name_of(LARGE)))
    assert "x.bin" in refused(place, lie).message


def test_wrong_bytes_cost_only_the_models_that_have_them(tmp_path: Path) -> None:
    bad = tar_of(
        manifest(listing(FILES, "m")), manifest(listing({"c": b"c" * 700}, "n")),
        BLOBS[0], (name_of(SMALL), SMALL[::-1]), blob(b"c" * 700),
    )  # fmt: skip
    cache = Cache(tmp_path / "store")
    with pytest.raises(VerificationError) as caught:
        cache.import_bundle(io.BytesIO(bad))
    assert "m@1: sub/b.bin is not what its sha256 says; 1 of 2 models are here (n@1)" in caught.value.message
    assert [row["model"] for row in cache.models()] == ["n"]
    assert {row["status"] for row in cache.downloads()} == {"failed", "success"}
    cache.close()


def test_a_damaged_bundle_is_one_line_and_exit_3(tmp_path: Path) -> None:
    (tmp_path / "w.tar").write_bytes(GOOD[:3000])
    done = run(tmp_path / "store", "bundle", "import", str(tmp_path / "w.tar"))
    assert (done.returncode, done.stdout, len(lines(done.stderr))) == (3, "", 1)
    assert f"{tmp_path}/w.tar: it ends too early" in done.stderr
    done = run(tmp_path / "store", "bundle", "import", str(tmp_path / "w.tar"), "--json")
    assert json.loads(done.stdout)["kind"] == "integrity"


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: None, lambda path: path.symlink_to("nowhere")]
)
def test_what_cannot_be_read_is_one_line_and_exit_6(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "w.tar")
    done = run(tmp_path / "store", "bundle", "import", str(tmp_path / "w.tar"))
    assert (done.returncode, done.stdout, len(lines(done.stderr))) == (6, "", 1)


def test_a_link_in_the_store_is_not_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "store").mkdir()
    for folder in ("models", "blobs", "partials"):
        link = tmp_path / "store" / folder
        link.symlink_to(outside)
        with pytest.raises(ModelCacheError):
            Cache(tmp_path / "store").import_bundle(io.BytesIO(GOOD))
        assert not list(outside.iterdir())
        link.unlink()


# -- anything at all --------------------------------------------------------------------------------------------------

START = tar_of(manifest(listing({**FILES, "c": b"c" * 700})), *BLOBS, blob(b"c" * 700)).rstrip(b"\0") + bytes(2048)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A right bundle in which a few bytes, or blocks, are others."""
    content = bytearray(START)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["flip", "bytes", "drop", "double", "zeros"])):
            case "flip":
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "bytes":
                content[at : at + 16] = draw(st.binary(max_size=16))
            case "drop":
                del content[at // 512 * 512 : at // 512 * 512 + 512]
            case "double":
                content[at // 512 * 512 : at // 512 * 512] = content[at // 512 * 512 : at // 512 * 512 + 512]
            case _:
                content[at : at + 600] = bytes(len(content[at : at + 600]))
        content += bytes(1) if not content else b""
    return bytes(content)


@st.composite
def listed(draw: st.DrawFn) -> bytes:
    """A bundle whose manifest holds any JSON where something is expected."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
    fields = listing(FILES)
    target = draw(st.sampled_from([fields, fields["files"][0], fields["files"][1]]))
    name = draw(st.sampled_from([*target, "urls", "url", "pieces", "md5", "model"]))
    target[name] = draw(anything)
    return tar_of(manifest(fields), *BLOBS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=3000) | damaged() | listed())
def test_no_bytes_write_outside_the_store_or_make_a_bug(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder, "place/store"))
        os.mkdir(f"{folder}/place")
        try:
            models = cache.import_bundle(io.BytesIO(content))
        except ModelCacheError as error:
            assert "\n" not in error.line()
        else:
            assert files_of(cache, models[0].id) in (FILES, {**FILES, "c": b"c" * 700}) or content != START
        cache.close()
        assert os.listdir(folder) == ["place"]
        assert set(os.listdir(f"{folder}/place")) <= {"store"}
        check_store(Path(folder, "place/store"))
        for row in cache.models():
            assert row["status"] == "ready"


def test_a_right_one_still_comes_in(place: Path) -> None:
    """What the tests above damage is right to begin with."""
    for content, names in ((GOOD, ["m"]), (START, ["m"]), (TWO_MODELS, ["m", "n"]), (large_bundle(), ["m"])):
        cache = Cache(place / "store")
        assert [model.id for model in cache.import_bundle(io.BytesIO(content))] == names
        cache.remove("m")
        cache.close()


@pytest.mark.parametrize(
    ("ref", "own"),
    [
        ("hf:org/name", "hf:org/name@" + "1" * 40 + "/a"),
        ("ollama:tiny", "oci://registry.ollama.ai/library/tiny@sha256:" + "1" * 64),
        ("oci://h:5000/x", "oci://h:5000/x@sha256:" + "1" * 64),
    ],
)
def test_of_a_hubs_model_only_its_hub_is_asked_later(cache: Cache, ref: str, own: str) -> None:
    """Who fetches it may give a token, which is for the hub: not for a place that a bundle names."""
    fields, foreign = (
        listing({"a": b"1"}, "m", ref=ref),
        ["http://127.0.0.1:9/a", "oci://127.0.0.1:9/x@sha256:" + "1" * 64],
    )
    fields["files"][0]["urls"] = [*foreign, own]
    cache.import_bundle(io.BytesIO(tar_of(manifest(fields), blob(b"1"))))
    record = Installed.read(cache.path("m"))
    assert record is not None
    assert record.files[0].urls == (own,)


def test_only_what_can_be_a_tag_or_branch_of_a_hub_is_an_alias(place: Path) -> None:
    names = ["main", "refs/pr/1", "2" * 40, "refs/" + "2" * 40, "A" * 40, "sha256:" + "2" * 64, "a b", "..", "x" * 300]
    cache, events = Cache(place / "store"), Events()
    said = listing(FILES, "hf--org--name", version="1" * 40, ref="hf:org/name", aliases=names)
    cache.import_bundle(io.BytesIO(tar_of(manifest(said), *BLOBS)), progress=events)
    assert set(Shelf(Layout(cache.root)).registry.aliases("hf--org--name")) == {"main", "refs/pr/1"}
    assert events.of("started")[0]["message"].endswith(
        f"; left out, as no names of its tags or branches: {', '.join(names[2:5])} and 4 more"
    )
    cache.close()


def test_a_version_of_a_model_of_no_hub_is_never_another_one(place: Path) -> None:
    cache = Cache(place / "store")
    listed = [listing({"f": b"one"}, "m", version="1"), listing({"f": b"two"}, "m", version="2", aliases=["1"])]
    cache.import_bundle(io.BytesIO(tar_of(*map(manifest, listed), blob(b"one"), blob(b"two"))))
    cache.remove("m@1")
    with pytest.raises(ModelCacheError):
        cache.path("m@1")
    assert cache.path("m@2")
    cache.close()
