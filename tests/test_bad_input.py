"""Whatever comes in or lies on the disk: one clear line, nothing lost, nothing unverified visible, and it goes on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from caches import entry_of, manifest_of, partials, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, ModelCacheError, StoreError, UsageError
from modelcache.model import Digest, Manifest
from modelcache.store.blobs import load_pieces
from modelcache.store.installed import Installed
from modelcache.store.layout import Layout
from modelcache.testing import (
    Content,
    ContentType,
    Corrupt,
    Cut,
    ExtraBytes,
    Fault,
    Header,
    NoLength,
    Origin,
    Redirect,
    Status,
)

CONTENT = Content.generated(1_500_000, seed=1)
GARBAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 20,
    "no object": b"[1, 2]",
    "null": b"null",
    "torn": b'{"format": 1, "models": {"m": {"ver',
    "wrong types": b'{"format": 1, "models": {"m": [], "n": {"versions": 3}}, "files": 7, "id": 5}',
    "deep": b"[" * 100_000,
    "a number": b"1e999",
    "huge int": b'{"format": ' + b"9" * 5000 + b"}",
}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.gguf": CONTENT}) as origin:
        yield origin


def visible(cache: Cache) -> list[bytes]:
    """The content of every file that a user can see in the cache."""
    files = (path for path in Path(cache.root, "models").rglob("*") if path.is_file())
    return [path.read_bytes() for path in files if not path.name.startswith(".")]


# -- a store that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "models"])
@pytest.mark.parametrize("command", ["ls", "verify", "repair", "status", "clean --dry-run", "clean"])
def test_a_store_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, place: str, command: str) -> None:
    path = tmp_path / "home" / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    ended = run(*command.split(), MODELCACHE_HOME=str(tmp_path / "home"))
    assert (ended.returncode, ended.stdout) == (6, "")
    assert f"{tmp_path / 'home' / 'models'}: a file is where a folder should be" in ended.stderr


def test_a_store_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert run("ls", MODELCACHE_HOME=str(tmp_path / "none")).returncode == 0


@pytest.mark.parametrize("line", ['connections = "many"', "limit_rate = true", "prefer = 3", "resume_threshold = 2"])
def test_a_wrong_value_in_the_settings_file_names_the_file(tmp_path: Path, line: str) -> None:
    file = tmp_path / "modelcache.toml"
    file.write_text(line + "\n")
    ended = run("fetch", "http://127.0.0.1:1/m.bin", MODELCACHE_HOME=str(tmp_path))
    assert ended.returncode == 2
    assert f"{file}: {line.split()[0]}" in ended.stderr


# -- what servers send ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Corrupt((5,))], id="wrong byte"),
        pytest.param([Status(200, {}, b"<html>Please log in</html>"), ContentType("text/html")], id="html with 200"),
        pytest.param([Status(200, {}, b"")], id="empty body"),
        pytest.param([Status(200, {}, CONTENT.read(0, 1000))], id="shorter"),
        pytest.param([Header("Content-Encoding", "gzip")], id="coded"),
        pytest.param([Redirect("ftp://127.0.0.1/x")], id="redirect to another scheme"),
        pytest.param([Redirect("/m.gguf")], id="redirect to itself"),
        pytest.param([Redirect("file:///etc/passwd")], id="redirect to a file"),
        pytest.param([Status(500)], id="500"),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
def test_nothing_wrong_is_ever_visible(cache: Cache, origin: Origin, faults: list[Fault], sized: bool) -> None:
    origin.faults(*faults)
    size = CONTENT.size if sized else None
    with pytest.raises(ModelCacheError) as failure:
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, size=size)
    assert failure.value.exit_code in (3, 4, 5)
    assert "\n" not in failure.value.line()
    assert visible(cache) == []
    origin.heal()
    assert Path(cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, size=size)).read_bytes() == CONTENT.read()


def test_what_comes_after_the_end_of_a_file_is_never_written(cache: Cache, origin: Origin) -> None:
    origin.faults(ExtraBytes(5_000_000), NoLength())
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, size=CONTENT.size)
    assert Path(file).read_bytes() == CONTENT.read()
    assert file.bytes_fetched < CONTENT.size + 1_500_000


def test_a_page_instead_of_a_model_is_refused_also_where_nothing_is_known(cache: Cache, origin: Origin) -> None:
    origin.faults(Status(200, {}, b"<html>Please log in</html>"), ContentType("text/html"))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("m.gguf"))
    assert visible(cache) == []


def test_names_that_servers_send_choose_no_path(cache: Cache, origin: Origin, cache_root: Path) -> None:
    origin.faults(Header("Content-Disposition", 'attachment; filename="../../evil"'))
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert Path(file).name == "m.gguf"


@pytest.mark.parametrize(
    "path",
    ["%2e%2e%2f%2e%2e%2fevil", "..%5Cevil", "a%00b", "CON", "x%E2%80%AEgpj.exe", "%FF%FE", ".manifest.json", "%0A"],
)
def test_names_in_urls_stay_in_their_folder(cache: Cache, origin: Origin, cache_root: Path, path: str) -> None:
    origin.put(path, CONTENT)
    file = cache.fetch(f"http://127.0.0.1:{origin.port}/{path}", sha256=CONTENT.sha256, mirrors=[origin.url("m.gguf")])
    folder = Path(file.path).parent
    assert folder.parent.parent == cache_root / "models"
    assert Path(file).read_bytes() == CONTENT.read()
    assert Path(file).name.isprintable()


@pytest.mark.parametrize(
    "path", ["../evil", "/evil", "a/../../evil", "a\\b", "C:evil", "nul", "a\0", ".manifest.json", ""]
)
def test_names_in_manifests_are_refused_before_anything_is_done(
    origin: Origin, tmp_path: Path, cache_root: Path, path: str
) -> None:
    entry = entry_of(origin.url("m.gguf"), path, CONTENT)
    (tmp_path / "m.json").write_text(json.dumps({"format": 1, "id": "m", "version": "1", "ref": "", "files": [entry]}))
    done = run("fetch", "--manifest", str(tmp_path / "m.json"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not cache_root.exists()
    assert not origin.requests


@pytest.mark.parametrize("field", ["id", "version"])
def test_ids_in_manifests_choose_no_path(field: str) -> None:
    fields = {"format": 1, "id": "m", "version": "1", "ref": "", "files": [{"path": "a"}]} | {field: "../evil"}
    with pytest.raises(UsageError):
        Manifest.parse(json.dumps(fields).encode())


@given(st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists).map(
    lambda value: json.dumps({"format": 1, "files": value}).encode()
))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_whatever_a_manifest_holds_it_is_read_or_refused(content: bytes) -> None:
    try:
        Manifest.parse(content)
    except UsageError as error:
        assert "\n" not in error.line()


# -- what lies on the disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_registry_of_garbage_is_rebuilt(cache: Cache, cache_root: Path, origin: Origin, garbage: bytes) -> None:
    url = origin.url("m.gguf")
    file = cache.fetch(url)
    before = list(cache.models())
    (cache_root / "registry.json").write_bytes(garbage)
    assert list(cache.models()) == before
    assert cache.path(url) == file.path
    assert cache.fetch(url).verified == "unverified"
    origin.put("n.gguf", CONTENT)
    cache.fetch(origin.url("n.gguf"), sha256=CONTENT.sha256)
    assert len(json.loads((cache_root / "registry.json").read_bytes())["models"]) == 2
    assert len(origin.requests) == 1
    assert sum(row["size"] for row in cache.remove(url)) == 0


def test_what_is_no_file_in_place_of_the_registry_is_rebuilt_around(
    cache: Cache, cache_root: Path, origin: Origin
) -> None:
    file = cache.fetch(origin.url("m.gguf"))
    os.unlink(cache_root / "registry.json")
    os.mkfifo(cache_root / "registry.json")
    assert cache.path(origin.url("m.gguf")) == file.path
    origin.put("n.gguf", CONTENT)
    cache.fetch(origin.url("n.gguf"))
    assert (cache_root / "registry.json").is_file()


def test_a_registry_of_a_newer_version_is_left_alone(cache: Cache, cache_root: Path, origin: Origin) -> None:
    cache.fetch(origin.url("m.gguf"))
    (cache_root / "registry.json").write_text('{"format": 2, "shelves": []}')
    done = run("path", origin.url("m.gguf"))
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "update modelcache" in done.stderr
    assert (cache_root / "registry.json").read_text() == '{"format": 2, "shelves": []}'


def test_unknown_fields_of_the_registry_are_kept(cache: Cache, cache_root: Path, origin: Origin) -> None:
    cache.fetch(origin.url("m.gguf"))
    registry = json.loads((cache_root / "registry.json").read_text())
    registry["later"] = {"a": 1}
    next(iter(registry["models"].values()))["tags"] = ["x"]
    (cache_root / "registry.json").write_text(json.dumps(registry))
    origin.put("n.gguf", CONTENT)
    cache.fetch(origin.url("n.gguf"))
    now = json.loads((cache_root / "registry.json").read_text())
    assert now["later"] == {"a": 1}
    assert ["x"] in [model.get("tags") for model in now["models"].values()]


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_record_of_garbage_costs_a_look_and_no_download(cache: Cache, origin: Origin, garbage: bytes) -> None:
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    Path(file.path).with_name(".manifest.json").write_bytes(garbage)
    for command in (["ls"], ["verify"], ["repair"], ["path", origin.url("m.gguf")]):
        assert "Traceback" not in run(*command).stderr if garbage == GARBAGE["wrong types"] else True
    assert cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256).status in ("hit", "linked")
    assert cache.path(origin.url("m.gguf")) == file.path
    assert len(origin.requests) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "../../../evil"), ("path", "/etc/passwd"), ("path", 5), ("sha256", "../../evil"), ("sha256", "0" * 63),
        ("sha256", None), ("size", "1"), ("inode", True), ("mtime_ns", 1.5), ("proof", "trust me"), ("verified", None),
        ("urls", 7), ("urls", None),
    ],
)  # fmt: skip
def test_a_record_that_could_not_be_ours_is_not_believed(
    cache: Cache, origin: Origin, field: str, value: object
) -> None:
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    record = Path(file.path).with_name(".manifest.json")
    data = json.loads(record.read_text())
    data["files"][0][field] = value
    record.write_text(json.dumps(data))
    assert Installed.read(str(record.parent)) is None
    assert cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256).path == file.path
    assert len(origin.requests) == 1


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_an_alias_of_garbage_is_not_believed(cache: Cache, cache_root: Path, origin: Origin, garbage: bytes) -> None:
    md5 = hashlib.md5(CONTENT.read()).hexdigest()
    cache.fetch(origin.url("m.gguf"), checksum=f"md5:{md5}")
    (cache_root / "aliases" / "md5" / md5).write_bytes(garbage)
    assert Path(cache.fetch(origin.url("m.gguf"), checksum=f"md5:{md5}")).read_bytes() == CONTENT.read()


def test_an_alias_that_lies_names_no_other_content(cache: Cache, cache_root: Path, origin: Origin) -> None:
    other = Content.generated(1000, seed=8)
    origin.put("other", other)
    cache.fetch(origin.url("other"), sha256=other.sha256)
    md5 = hashlib.md5(CONTENT.read()).hexdigest()
    (cache_root / "aliases" / "md5").mkdir(parents=True)
    (cache_root / "aliases" / "md5" / md5).write_text(other.sha256)
    file = cache.fetch(origin.url("m.gguf"), checksum=f"md5:{md5}")
    assert Path(file).read_bytes() == CONTENT.read()
    assert cache.fetch(origin.url("m.gguf"), checksum=f"md5:{md5}").status == "hit"
    assert not (cache_root / "quarantine").exists()


@pytest.mark.parametrize(
    "content",
    [
        *GARBAGE.values(),
        *(json.dumps({"format": 1, "piece": piece, "sha256": ""}).encode() for piece in (0, -1, "x", 1e308)),
    ],
)
def test_pieces_of_garbage_are_not_believed(tmp_path: Path, content: bytes) -> None:
    layout, digest = Layout(str(tmp_path)), Digest("sha256", "0" * 64)
    path = Path(layout.pieces(digest))
    path.parent.mkdir(parents=True)
    path.write_bytes(content.replace(b"1e+308", b"1e999"))
    assert load_pieces(layout, digest, 100) is None


def cut_off(cache: Cache, origin: Origin) -> Path:
    """Leaves a partial behind; its folder."""
    origin.faults(Cut(1_200_000, times=1), Status(404, after=1))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    origin.heal()
    (folder,) = partials(cache)
    return folder


def flipped(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))


SPOIL: dict[str, Callable[[Path], object]] = {
    "data of zeros": lambda folder: ((folder / "data").chmod(0o600), (folder / "data").write_bytes(bytes(1_200_000))),
    "data flipped": lambda folder: flipped(folder / "data"),
    "no data": lambda folder: (folder / "data").unlink(),
    "data longer": lambda folder: ((folder / "data").chmod(0o600), os.truncate(folder / "data", 9_000_000)),
    "data is a folder": lambda folder: ((folder / "data").unlink(), (folder / "data").mkdir()),
    "data is a link": lambda folder: ((folder / "data").unlink(), (folder / "data").symlink_to("/etc/hostname")),
    "no journal": lambda folder: (folder / "journal").unlink(),
    "journal empty": lambda folder: (folder / "journal").write_bytes(b""),
    "journal garbage": lambda folder: (folder / "journal").write_bytes(GARBAGE["binary"]),
    "journal lies": lambda folder: (folder / "journal").write_text(
        '{"format": 1, "size": null}\ns 0 x\nw 0 1500000 0\n'
    ),
    "journal is a fifo": lambda folder: ((folder / "journal").unlink(), os.mkfifo(folder / "journal")),
    "folder is a file": lambda folder: (os.rename(folder, f"{folder}.away"), folder.write_bytes(b"x")),
    "folder is empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_a_partial_of_garbage_is_a_guess_and_no_more(
    cache: Cache, origin: Origin, spoil: Callable[[Path], object]
) -> None:
    spoil(cut_off(cache, origin))
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert Path(file).read_bytes() == CONTENT.read()
    assert Path("/etc/hostname").stat().st_size < 1000


@pytest.mark.parametrize("garbage", [*GARBAGE.values(), None], ids=[*GARBAGE, "a folder"])
def test_locks_of_garbage_stop_nobody(cache: Cache, cache_root: Path, origin: Origin, garbage: bytes | None) -> None:
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    for path in list((cache_root / "locks").iterdir()):
        for place in (path, path.with_name(path.name + ".json")):
            place.unlink(missing_ok=True)
            if garbage is None and place.suffix == ".json":
                place.mkdir()
            else:
                place.write_bytes(garbage or b"")
    origin.put("n.gguf", CONTENT)
    assert cache.fetch(origin.url("n.gguf"), sha256=CONTENT.sha256).status == "linked"
    assert cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, strict=True).status == "hit"


def test_a_blob_that_is_no_file_is_not_taken_for_one(cache: Cache, cache_root: Path, origin: Origin) -> None:
    blob = cache_root / "blobs" / "sha256" / CONTENT.sha256[:2] / CONTENT.sha256
    blob.parent.mkdir(parents=True)
    blob.symlink_to("/etc/hostname")
    file = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert Path(file).read_bytes() == CONTENT.read()
    assert not blob.is_symlink()


@pytest.mark.parametrize("folder", ["blobs", "models", "partials", "locks"])
def test_a_folder_that_is_a_link_is_not_followed(
    cache: Cache, cache_root: Path, origin: Origin, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache_root.mkdir()
    (cache_root / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (cache_root / folder).unlink()
    cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256)


@given(garbage=st.binary(max_size=200))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_state_may_be_garbage_at_once(cache: Cache, cache_root: Path, origin: Origin, garbage: bytes) -> None:
    url = origin.url("m.gguf")
    cache.fetch(manifest_of(origin, {"m.gguf": CONTENT}))
    cache.fetch(url, sha256=CONTENT.sha256)
    for path in cache_root.rglob("*"):
        if path.is_file() and path.name != CONTENT.sha256 and path.name != "m.gguf":
            path.write_bytes(garbage)
    cache.models(), cache.verify(), cache.repair()
    assert Path(cache.fetch(url, sha256=CONTENT.sha256)).read_bytes() == CONTENT.read()
    assert cache.fetch(manifest_of(origin, {"m.gguf": CONTENT})).is_verified
    assert [row["finding"] for row in cache.verify()] == ["whole", "whole"]
    assert len(origin.requests) == 1
