"""Manifests: made from a folder, read in all their forms, and a folder checked against one (product B10, H)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3
from caches import entry_of, manifest_of, nested, no_handle_left, rot, run

from modelcache.caching import Cache
from modelcache.errors import StoreError, UsageError
from modelcache.manifests import load, make
from modelcache.model import Manifest
from modelcache.testing import Content, Origin

FILES = {"a.json": b"{}", "sub/b.bin": bytes(range(256)) * 40_000, "empty": b""}  # b: 10,240,000 bytes, three pieces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        place = tmp_path / "mine" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return tmp_path / "mine"


def findings(cache: Cache, manifest: Manifest, folder: Path) -> dict[str, str]:
    return {row["file"]: row["finding"] for row in cache.check(manifest, folder)}


def test_folders_within_folders_without_end_make_no_traceback(folder: Path) -> None:
    nested(folder, 1100)
    try:
        assert [file.path for file in make(str(folder), "mine").files] == ["a.json", "empty", "sub/b.bin"]
    finally:  # pytest would not get to their end either
        subprocess.run(["rm", "-rf", folder], check=True)


def test_a_manifest_describes_every_file_by_its_pieces(folder: Path) -> None:
    manifest = make(str(folder), "mine", "https://host/x/")
    assert [file.path for file in manifest.files] == ["a.json", "empty", "sub/b.bin"]
    fields = json.loads(json.dumps(manifest.to_json()))
    assert set(fields) == {"format", "id", "version", "ref", "files"}
    big = fields["files"][2]
    content = FILES["sub/b.bin"]
    assert big["urls"] == ["https://host/x/sub/b.bin"]
    assert big["size"] == len(content)
    assert big["pieces"]["blake3"] == [
        blake3(content[at : at + (4 << 20)]).hexdigest() for at in range(0, len(content), 4 << 20)
    ]
    assert "pieces" not in fields["files"][0]
    assert Manifest.parse(json.dumps(fields).encode()) == manifest


def test_the_version_says_what_is_in_the_folder(folder: Path) -> None:
    first = make(str(folder), "mine").version
    assert make(str(folder), "other").version == first
    (folder / "a.json").write_text("[]")
    assert make(str(folder), "mine").version != first


def test_what_is_made_can_be_fetched(folder: Path, cache: Cache) -> None:
    with Origin({f"x/{path}": content for path, content in FILES.items()}) as origin:
        manifest = make(str(folder), "mine", origin.url("x"))
        model = cache.fetch(manifest)
    assert {file.name: Path(file).read_bytes() for file in model.files} == FILES
    assert model.version == manifest.version


def test_names_with_odd_characters_survive_the_url(tmp_path: Path, cache: Cache) -> None:
    name = "ä b#c%20+.bin"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / name).write_bytes(b"odd")
    with Origin({"%C3%A4%20b%23c%2520%2B.bin": b"odd"}) as origin:
        model = cache.fetch(make(str(tmp_path / "m"), "m", origin.url()))
        assert Path(model[name]).read_bytes() == b"odd"


def test_our_own_files_and_links_are_left_out(folder: Path) -> None:
    (folder / ".manifest.json").write_text("{}")
    (folder / ".x.modelcache").mkdir()
    (folder / ".x.modelcache" / "data").touch()
    (folder / "link").symlink_to(folder / "a.json")
    (folder / "m.json").touch()
    made = make(str(folder), "mine", leave_out=str(folder / "m.json"))
    assert [file.path for file in made.files] == ["a.json", "empty", "sub/b.bin"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(["A", "a"], "one name where case does not count"), (["x:y"], "cannot be a path here"), ([], "holds no files")],
)
def test_a_folder_that_others_could_not_have_is_refused(tmp_path: Path, names: list[str], complaint: str) -> None:
    (tmp_path / "m").mkdir()
    for name in names:
        (tmp_path / "m" / name).touch()
    with pytest.raises(UsageError, match=complaint):
        make(str(tmp_path / "m"), "m")


def test_a_wrong_base_url_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="not a usable URL"):
        make(str(folder), "mine", "host/x")


# -- reading --------------------------------------------------------------------------------------------------------


def test_all_three_forms_are_read(tmp_path: Path) -> None:
    sha256 = "ab" * 32
    forms = [
        {"format": 1, "id": "m", "version": "1", "ref": "", "files": [{"path": "a", "size": 5, "sha256": sha256}]},
        [{"name": "a", "url": "https://h/a", "sha256": sha256, "size": 5}],
        {"model": {"files": {"a": {"size": 5, "sha256": sha256}}, "ipfsHash": "Qm", "publishedAt": 1}},
    ]
    for form in forms:
        (tmp_path / "name.json").write_text(json.dumps(form))
        manifest = load(str(tmp_path / "name.json"))
        (file,) = manifest.files
        assert (file.path, file.size, file.digests[0].hex) == ("a", 5, sha256)
        assert manifest.id == ("m" if form is forms[0] else "name")


def test_a_manifest_that_cannot_be_read_says_so_and_where(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for text, complaint in (
        ("", "not JSON"), ("{}", "format unknown"), ('{"format": 2}', "format 2"), ("[]", "lists no files"),
        ('{"format": 1, "id": "m", "files": [{"path": "a", "sha256": "x"}]}', "malformed sha256"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UsageError, match=complaint) as failure:
            load(str(path))
        assert str(path) in failure.value.message
    with pytest.raises(UsageError, match="Is a directory"):
        load(str(tmp_path))


def test_a_name_that_could_not_be_an_id_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "CON.json"
    path.write_text('[{"name": "a"}]')
    assert load(str(path)).id


SERVED = Content.generated(50_000, seed=1)


def forms(url: str) -> dict[str, object]:
    """The three forms of product H, of one file."""
    sha256, size = SERVED.sha256, SERVED.size
    own = {"path": "a.bin", "size": size, "sha256": sha256, "urls": [url]}
    return {
        "own": {"format": 1, "id": "m", "version": "1", "ref": "", "files": [own]},
        "list": [{"name": "a.bin", "url": url, "sha256": sha256, "size": size}],
        "by_path": {
            "model": {"files": {"a.bin": {"size": size, "sha256": sha256}}, "ipfsHash": "Qm", "publishedAt": 1}
        },
    }


@pytest.mark.parametrize("form", ["own", "list", "by_path"])
def test_what_a_manifest_lists_is_fetched_whatever_its_form(cache: Cache, tmp_path: Path, form: str) -> None:
    with Origin({"a.bin": SERVED}) as origin:
        (tmp_path / "m.json").write_text(json.dumps(forms(origin.url("a.bin"))[form]))
        mirror = ["--mirror", origin.url()] if form == "by_path" else []  # it has no place for addresses
        done = run("fetch", "--manifest", str(tmp_path / "m.json"), *mirror, "--json", "--quiet")
    (told,) = json.loads(done.stdout)
    assert (done.returncode, told["id"], told["version"]) == (0, "m", "1" if form == "own" else SERVED.sha256[:12])
    assert [(file["path"], file["verified"]) for file in told["files"]] == [("a.bin", "sha256")]
    assert Path(told["path"], "a.bin").read_bytes() == SERVED.read()


@pytest.mark.parametrize("form", ["own", "list", "by_path"])
@pytest.mark.parametrize("path", ["../a.bin", "/a.bin", "a/../../b", "C:\\a", "a\0b", ".manifest.json", ""])
def test_a_path_that_leads_outside_is_refused_and_nothing_is_written(
    cache_root: Path, tmp_path: Path, form: str, path: str
) -> None:
    text = json.dumps(forms("http://127.0.0.1:9/a")[form]).replace('"a.bin"', json.dumps(path))
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be a path here"):
        load(str(tmp_path / "m.json"))
    assert not cache_root.exists()


@pytest.mark.parametrize("form", ["own", "list", "by_path"])
def test_a_manifest_that_was_cut_short_is_one_line_and_exit_2(cache_root: Path, tmp_path: Path, form: str) -> None:
    text = json.dumps(forms("http://127.0.0.1:9/a")[form])
    (tmp_path / "m.json").write_text(text[: len(text) // 2])
    done = run("fetch", "--manifest", str(tmp_path / "m.json"), "--quiet")
    assert done.returncode == 2
    assert "not JSON" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not cache_root.exists()


def test_a_manifest_without_digests_is_checked_by_size_and_says_so(cache: Cache, tmp_path: Path) -> None:
    """0.8 of a listed size is the least that counts (product B10)."""
    with Origin({"a.bin": SERVED}) as origin:
        for size, code in ((SERVED.size, 0), (SERVED.size * 5 // 4, 0), (SERVED.size * 2, 3)):
            (tmp_path / f"m{size}.json").write_text(
                json.dumps([{"name": "a.bin", "url": origin.url("a.bin"), "size": size}])
            )
            done = run("fetch", "--manifest", str(tmp_path / f"m{size}.json"), "--quiet")
            assert done.returncode == code, done.stderr
            assert ("unverified" in done.stderr) == (code == 0)


# -- checking a folder ----------------------------------------------------------------------------------------------


def test_a_folder_is_checked_in_full_once(folder: Path, cache: Cache) -> None:
    manifest = make(str(folder), "mine")
    assert set(findings(cache, manifest, folder).values()) == {"whole"}
    assert json.loads((folder / ".manifest.json").read_text())["files"][0]["proof"] == "listed"
    rot(folder / "sub" / "b.bin", 5_000_000)
    assert findings(cache, manifest, folder)["sub/b.bin"] == "whole"  # its stamp is right: it is not read
    os.utime(folder / "sub" / "b.bin", (1, 1))
    (row,) = [row for row in cache.check(manifest, folder) if row["finding"] != "whole"]
    assert (row["file"], row["finding"], row["wrong_bytes"]) == ("sub/b.bin", "corrupt", "4194304-8388607")


def test_too_few_handles_to_read_with_say_nothing_of_a_file(folder: Path, cache: Cache) -> None:
    manifest = make(str(folder), "mine")
    assert set(findings(cache, manifest, folder).values()) == {"whole"}
    with no_handle_left(), pytest.raises(StoreError, match="too many open files"):
        cache.check(manifest, folder)
    assert set(findings(cache, manifest, folder).values()) == {"whole"}


def test_what_is_not_there_is_missing_and_what_has_another_size_corrupt(folder: Path, cache: Cache) -> None:
    manifest = make(str(folder), "mine")
    (folder / "empty").unlink()
    (folder / "a.json").write_text("{  }")
    (folder / "sub" / "b.bin").unlink()
    (folder / "sub" / "b.bin").symlink_to("/nowhere")
    assert findings(cache, manifest, folder) == {"a.json": "corrupt", "empty": "missing", "sub/b.bin": "missing"}
    assert set(findings(cache, manifest, folder / "absent").values()) == {"missing"}
    assert not (folder / "absent").exists()


def test_what_only_a_size_tells_of_is_checked_by_it_and_said(folder: Path, cache: Cache) -> None:
    manifest = Manifest.parse(json.dumps([{"name": "a.json", "size": 2}, {"name": "empty", "size": 100}]).encode())
    rows = {row["file"]: row for row in cache.check(manifest, folder)}
    assert (rows["a.json"]["finding"], rows["a.json"]["reason"]) == ("whole", "only its size could be checked")
    assert rows["empty"]["finding"] == "corrupt"  # less than 0.8 of it


def test_a_record_of_another_program_is_not_overwritten(folder: Path, cache: Cache) -> None:
    (folder / ".manifest.json").write_text("theirs")
    assert set(findings(cache, make(str(folder), "mine"), folder).values()) == {"whole"}
    assert (folder / ".manifest.json").read_text() == "theirs"


def test_a_record_serves_no_other_digest(folder: Path, cache: Cache) -> None:
    manifest = make(str(folder), "mine")
    findings(cache, manifest, folder)
    fields = manifest.to_json()
    fields["files"][0]["sha256"] = "0" * 64
    assert findings(cache, Manifest.parse(json.dumps(fields).encode()), folder)["a.json"] == "corrupt"


def test_what_a_fetch_put_there_is_known_to_a_check(tmp_path: Path, cache: Cache) -> None:
    content = Content.generated(100_000, seed=1)
    with Origin({"a": content}) as origin:
        manifest = manifest_of(origin, {"a": content})
        cache.fetch(manifest, output=tmp_path / "out")
    before = (tmp_path / "out" / ".manifest.json").stat().st_mtime_ns
    assert findings(cache, manifest, tmp_path / "out") == {"a": "whole"}
    assert (tmp_path / "out" / ".manifest.json").stat().st_mtime_ns == before


def test_a_folder_is_not_a_file(folder: Path, cache: Cache) -> None:
    entry = entry_of("http://h/sub", "sub", Content.of(b""))
    manifest = Manifest.parse(json.dumps({"format": 1, "id": "m", "files": [entry]}).encode())
    assert findings(cache, manifest, folder) == {"sub": "missing"}
    with pytest.raises((StoreError, UsageError)):
        make(str(folder / "a.json"), "m")
