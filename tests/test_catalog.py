"""Short names for models: catalogs are read strictly, and what they name is fetched from its hub (product B12)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import Events, run
from hypothesis import given
from hypothesis import strategies as st

import modelcache as mc
from modelcache.caching import Cache
from modelcache.catalog import BUILT_IN, FIELDS, Entry, find, ids
from modelcache.errors import NotFoundError, UsageError
from modelcache.model import Digest, ModelFile
from modelcache.testing import Content, Hub

COMMIT, NEXT = "1" * 40, "2" * 40
WHISPER, Q4 = "onnx-community/whisper-base", "onnx/decoder_model_merged_q4.onnx"
NAMES = (*BUILT_IN["whisper-base"]["files"], Q4)
FILES = {name: Content.generated(20_000 if ".onnx" in name else 300, seed=seed) for seed, name in enumerate(NAMES)}
MORE = {"README.md": Content.of(b"# Whisper"), "onnx/decoder_model.onnx": Content.generated(20_000, seed=99)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.publish(WHISPER, FILES | MORE, commit=COMMIT)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def put(root: str | Path, name: str, text: str) -> Path:
    """A catalog of the user's."""
    path = Path(root, "catalog", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(model: object) -> list[str]:
    assert isinstance(model, mc.Model)
    return [file.name for file in model.files]


# -- fetching by name -------------------------------------------------------------------------------------------------


def test_a_name_brings_the_files_that_its_catalog_lists(hub: Hub, cache: Cache) -> None:
    model = cache.fetch("whisper-base")
    assert isinstance(model, mc.Model)
    assert (model.id, model.version, model.ref) == ("whisper-base", COMMIT, f"hf:{WHISPER}")
    assert sorted(names(model)) == sorted(NAMES)
    assert model.is_verified and not model.lacking
    assert all(Path(model[name].path).read_bytes() == content.read() for name, content in FILES.items())
    assert cache.path("whisper-base") == cache.path(f"whisper-base@{COMMIT}") == model.path


def test_an_optional_file_that_the_hub_lacks_is_reported_and_no_more(hub: Hub, cache: Cache) -> None:
    hub.publish(WHISPER, {name: content for name, content in FILES.items() if name != Q4}, commit=NEXT)
    events = Events()
    model = cache.fetch("whisper-base", progress=events)
    assert isinstance(model, mc.Model)
    assert (len(model.files), model.lacking) == (8, (Q4,))
    assert events.of("manifest_pulled")[0]["message"] == f"8 files; {Q4}: optional, and not there"
    done = run("fetch", "whisper-base", "--json", "--quiet")
    assert json.loads(done.stdout)[0]["lacking"] == [Q4]
    assert done.stderr == f"whisper-base: hf:{WHISPER} does not have {Q4}, which is optional\n"


def test_a_listed_file_that_the_hub_lacks_is_an_error(hub: Hub, cache: Cache) -> None:
    hub.publish(WHISPER, {name: content for name, content in FILES.items() if name != "vocab.json"})
    with pytest.raises(NotFoundError, match=rf"hf:{WHISPER} has no file vocab\.json"):
        cache.fetch("whisper-base")


def test_a_selection_of_what_is_listed_goes_with_a_name(hub: Hub, cache: Cache) -> None:
    assert names(cache.fetch("whisper-base", files="*.txt")) == ["merges.txt"]
    with pytest.raises(NotFoundError, match="has no file README"):
        cache.fetch("whisper-base", files="README*")


def test_a_name_that_was_fetched_is_a_hit_without_a_question(hub: Hub, cache: Cache) -> None:
    first = cache.fetch("whisper-base")
    hub.stop()
    again = Cache(cache.root).fetch("whisper-base")
    assert again.path == first.path
    assert isinstance(again, mc.Model) and {file.status for file in again.files} == {"hit"}


def test_a_hit_by_name_loads_neither_the_network_nor_a_parser(hub: Hub, cache: Cache) -> None:
    cache.fetch("whisper-base")
    slow = {"requests", "filelock", "sqlite3", "tomllib"}
    code = f"import sys, modelcache as mc; mc.fetch('whisper-base'); print(*({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_a_name_goes_through_the_queue(hub: Hub, cache: Cache) -> None:
    done = run("fetch", "--queue", "whisper-base", "--quiet")
    assert done.returncode == 0, done.stderr
    assert all(Path(cache.path("whisper-base"), name).is_file() for name in NAMES)


def test_what_a_ref_has_brought_is_not_fetched_again_by_name(hub: Hub, cache: Cache) -> None:
    cache.fetch(f"hf:{WHISPER}")
    before = len(hub.requests)
    model = cache.fetch("whisper-base")
    assert isinstance(model, mc.Model) and {file.status for file in model.files} == {"linked"}
    assert len(hub.requests) - before == 2  # the revision and its list
    assert {row["model"] for row in cache.models()} == {"whisper-base", "hf--onnx-community--whisper-base"}


def test_the_other_built_in_name_is_a_folder_of_a_dataset(hub: Hub, cache: Cache) -> None:
    listed = BUILT_IN["tts-models"]["files"]
    files = {name: Content.generated(12_000, seed=seed) for seed, name in enumerate(listed)}
    hub.publish("datasets/AnEntrypoint/sttttsmodels", files | {"other.bin": b"x"})
    model = cache.fetch("tts-models")  # digests are known: nobody asks how large they roughly are
    assert sorted(names(model)) == sorted(listed)


def test_a_digest_does_not_go_with_a_name(hub: Hub, cache: Cache) -> None:
    with pytest.raises(UsageError, match="goes with one file, not with a model"):
        cache.fetch("whisper-base", sha256="0" * 64)


def test_a_name_that_is_nowhere_is_told_with_those_that_are(cache: Cache) -> None:
    done = run("fetch", "whisper-bass", "--quiet")
    assert done.returncode == 4
    assert "not_installed" in done.stderr and "by name there are tts-models, whisper-base" in done.stderr


def test_a_download_by_name_is_gone_on_with(hub: Hub, cache: Cache) -> None:
    hub.close()
    with pytest.raises(mc.AllSourcesFailedError):
        cache.fetch("whisper-base")
    (row,) = cache.downloads()
    with Hub(port=hub.port) as again:
        again.publish(WHISPER, FILES, commit=COMMIT)
        assert cache.resume(str(row["id"])).status == "success"


# -- catalogs of the user ---------------------------------------------------------------------------------------------

MINE = f"""
[mine]
versions = {{"1.0" = "hf:org/name@{COMMIT}", "2.0" = "hf:org/name@v2", "3.0" = "hf:other/name"}}
default_version = "2.0"
task = "text-generation"
languages = ["en", "de"]
"""


@pytest.fixture
def versions(hub: Hub, cache: Cache) -> Cache:
    hub.publish("org/name", {"a": b"one"}, "v1", commit=COMMIT)
    hub.publish("org/name", {"a": b"two"}, "v2", commit=NEXT)
    hub.publish("other/name", {"a": b"three"})
    put(cache.root, "mine.toml", MINE)
    return cache


def test_a_version_is_one_of_the_catalogs_or_of_the_hubs(versions: Cache) -> None:
    for ref, content in (
        ("mine@1.0", b"one"), ("mine@2.0", b"two"), ("mine@3.0", b"three"), ("mine", b"two"), (f"mine@{NEXT}", b"two")
    ):  # fmt: skip
        model = versions.fetch(ref)
        assert Path(str(model), "a").read_bytes() == content, ref
        assert versions.path(ref) == str(model), ref
    assert versions.path("mine", "1.0").endswith(COMMIT)
    with pytest.raises(NotFoundError, match=r"mine has no version 4\.0") as failure:
        versions.fetch("mine@4.0")
    assert failure.value.next_step == "its catalog has 1.0, 2.0, 3.0"


def test_without_a_default_the_newest_that_is_here_is_meant(versions: Cache) -> None:
    put(versions.root, "mine.toml", MINE.replace("default_version", "# "))
    assert Path(str(versions.fetch("mine")), "a").read_bytes() == b"three"  # nothing is here: the last one listed
    versions.fetch("mine@1.0")
    assert Path(str(versions.fetch("mine")), "a").read_bytes() == b"one"
    assert versions.path("mine").endswith(COMMIT)


def test_a_version_that_a_catalog_gives_another_name_is_found_by_it(versions: Cache) -> None:
    first = versions.fetch("mine@1.0")
    put(versions.root, "mine.toml", MINE.replace('"1.0"', '"1.0.1"'))
    assert str(versions.fetch("mine@1.0.1")) == str(first)  # a hit: nothing was written
    assert versions.path("mine@1.0.1") == str(first)


def test_an_entry_of_the_users_replaces_the_built_in_one(hub: Hub, cache: Cache) -> None:
    put(cache.root, "mine.json", json.dumps({"whisper-base": {"ref": f"hf:{WHISPER}/config.json"}}))
    file = cache.fetch("whisper-base")
    assert isinstance(file, mc.File)
    assert (file.name, file.path) == (
        "config.json", str(Path(cache.root, "models", "whisper-base", COMMIT, "config.json"))
    )  # fmt: skip


def test_what_hubs_said_is_kept_beside_the_catalogs_and_goes_with_the_model(versions: Cache) -> None:
    versions.fetch("mine")
    assert sorted(os.listdir(Path(versions.root, "catalog"))) == ["mine", "mine.toml"]
    versions.remove("mine")
    assert os.listdir(Path(versions.root, "catalog")) == ["mine.toml"]


def test_what_is_installed_is_listed_with_what_its_catalog_says(versions: Cache) -> None:
    versions.fetch("mine@1.0")
    versions.fetch(f"hf:{WHISPER}", files="*.txt")
    rows = {row["model"]: row for row in versions.models()}
    assert [rows["mine"][field] for field in ("task", "languages", "default_version")] == [
        "text-generation", ["en", "de"], "2.0",
    ]  # fmt: skip
    other = rows["hf--onnx-community--whisper-base"]
    assert [other[field] for field in ("task", "languages", "default_version")] == ["", [], ""]
    assert versions.info("mine@1.0").title.endswith("; text-generation; en, de")
    put(versions.root, "mine.toml", "garbage")
    assert {row["task"] for row in versions.models()} == {""}


def test_what_came_in_a_bundle_is_found_by_its_name_without_network(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    cache.fetch("whisper-base")
    cache.export_bundle(["whisper-base"], tmp_path / "w.tar")
    hub.close()
    other = Cache(tmp_path / "other")
    other.import_bundle(tmp_path / "w.tar")
    model = other.fetch("whisper-base")
    assert isinstance(model, mc.Model) and {file.status for file in model.files} == {"hit"}
    other.close()


# -- wrong ones -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"ref": "hf:org/name"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "either ref or versions is needed"),
    (GOOD | {"versions": {}}, "either ref or versions is needed"),
    ({"versions": {}}, "no versions"),
    (GOOD | {"color": "red"}, "unknown field 'color'"),
    ({"ref": 7}, "a ref is a text"),
    ({"ref": "hf:org/"}, "'hf:org/' cannot be meant"),
    ({"ref": "ftp:x"}, "unknown scheme"),
    ({"ref": "https://u:secret@host/a?token=secret"}, "is no ref of a hub"),
    ({"ref": "other"}, "'other' is no ref of a hub"),
    (GOOD | {"default_version": "1"}, "default_version '1' is not among its versions"),
    ({"versions": {"a/b": "hf:org/name"}}, "cannot be a path here"),
    ({"versions": ["hf:org/name"]}, "versions is no table"),
    (GOOD | {"files": "*.json"}, "files is no list of texts"),
    (GOOD | {"files": [""]}, "files is no list of texts"),
    (GOOD | {"optional": ["a"]}, "optional files go with files"),
    ({"ref": "hf:org/name/a", "files": ["a"]}, "its ref names one file"),
    (GOOD | {"sizes": {"a": "73 MB"}}, "the size of 'a' is not a number of bytes"),
    (GOOD | {"sizes": {"a": True}}, "the size of 'a' is not a number of bytes"),
    (GOOD | {"task": ["a"]}, "task is no text"),
    (GOOD | {"languages": [1]}, "languages is no list of texts"),
]


@pytest.mark.parametrize(("fields", "complaint"), WRONG, ids=[complaint for _, complaint in WRONG])
def test_an_entry_that_cannot_be_meant_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as failure:
        Entry.parse("m", fields)
    assert complaint in failure.value.message
    assert "secret" not in failure.value.message


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.toml": "[m]\nref = 'hf:o/n'", "b.json": '{"m": {"ref": "hf:o/n"}}'}, "b.json: m is in two catalogs"),
        ({"a.toml": "[m]\nref = 'hf:o/n'\n[M]\nref = 'hf:o/n'"}, "one name where case does not count"),
        ({"a.toml": "[m]\nref = 'hf:o/n'\n[m]\nref = 'hf:o/n'"}, "a.toml: it is not TOML"),
        ({"a.json": '{"m": {"ref": "hf:o/n"}, "m": {"ref": "hf:o/x"}}'}, "a.json: 'm' is there twice"),
        ({"a.json": '{"m": {"ref": "hf:o/n", "ref": "hf:o/x"}}'}, "'ref' is there twice"),
        ({"a.json": "{"}, "a.json: it is not JSON"),
        ({"a.json": "[" * 100_000}, "a.json: it is not JSON"),
        ({"a.json": "[]"}, "it is no table"),
        ({"a.json": '{"../m": {"ref": "hf:o/n"}}'}, "cannot be a path here"),
        ({"a.json": '{"m@1": {"ref": "hf:o/n"}}'}, "'m@1' cannot be an id"),
        ({"a.json": '{"m": []}'}, "m is no table"),
        ({"a.toml": "m = 1"}, "m is no table"),
        ({"a.toml": "#" * 5_000_001}, "larger than 5,000,000 bytes"),
    ],
)
def test_a_catalog_that_is_wrong_is_one_line_and_writes_nothing(
    cache: Cache, files: dict[str, str], complaint: str
) -> None:
    for name, text in files.items():
        put(cache.root, name, text)
    done = run("fetch", "whisper-base", "--quiet")
    assert done.returncode == 2
    assert complaint in done.stderr and len(done.stderr.splitlines()) == 1
    assert str(Path(cache.root, "catalog")) in done.stderr
    assert os.listdir(cache.root) == ["catalog"]


def test_a_catalog_that_is_wrong_takes_nothing_away(hub: Hub, cache: Cache) -> None:
    model = cache.fetch("whisper-base")
    put(cache.root, "mine.toml", "garbage")
    with pytest.warns(UserWarning, match=r"mine\.toml"):
        assert cache.path("whisper-base") == str(model)
    assert cache.fetch(f"hf:{WHISPER}")
    assert cache.fetch(f"hf:{WHISPER}@{COMMIT}")
    (row,) = [row for row in cache.doctor() if row["check"] == "catalogs are sound"]
    assert "mine.toml" in row["finding"]


def test_a_version_that_is_named_is_not_what_the_name_means_from_then_on(versions: Cache) -> None:
    default = versions.fetch("mine")
    versions.fetch("mine@1.0")
    catalog = Path(versions.root, "catalog", "mine.toml")
    catalog.rename(catalog.with_suffix(".away"))
    assert versions.path("mine") == str(default)


def test_a_commit_of_a_short_name_is_not_what_the_name_means_from_then_on(hub: Hub, cache: Cache) -> None:
    hub.publish(WHISPER, FILES, commit=NEXT)
    newest = cache.fetch("whisper-base")
    cache.fetch(f"whisper-base@{COMMIT}")
    assert cache.path("whisper-base") == str(newest) != cache.path(f"whisper-base@{COMMIT}")


def test_the_default_is_what_the_name_means_also_where_it_is_fetched_last(versions: Cache) -> None:
    versions.fetch("mine@1.0")
    default = versions.fetch("mine")
    Path(versions.root, "catalog", "mine.toml").unlink()
    assert versions.path("mine") == str(default)


def test_whoever_uses_a_name_of_a_broken_catalog_is_told_what_it_means_until_then(versions: Cache) -> None:
    default = versions.fetch("mine")
    assert run("path", "mine").stderr == ""
    put(versions.root, "twice.toml", MINE)
    with pytest.warns(UserWarning, match="mine is in two catalogs.*until then mine is 222222222222"):
        assert versions.path("mine") == str(default)
    done = run("path", "mine")
    assert done.stdout.strip() == str(default) and len(done.stderr.splitlines()) == 1
    assert "mine is in two catalogs" in done.stderr
    assert run("path", f"mine@{NEXT}").stderr == "", "who names the version gets no other"


def test_what_is_no_catalog_is_left_alone(cache: Cache, tmp_path: Path) -> None:
    put(cache.root, "notes.txt", "garbage")
    Path(cache.root, "catalog", "folder.toml").mkdir()
    os.mkfifo(Path(cache.root, "catalog", "pipe.json"))
    (tmp_path / "shared.toml").write_text("[m]\nref = 'hf:o/n'")
    Path(cache.root, "catalog", "link.toml").symlink_to(tmp_path / "shared.toml")
    assert ids(str(Path(cache.root, "catalog"))) == ["m", "tts-models", "whisper-base"]


TEXTS = st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.sampled_from(["hf:org/name", "hf:a/b@v1", "hf:a/b/c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=5), TEXTS | st.just("m"))
def test_whatever_an_entry_says_it_is_read_or_refused_in_words(fields: dict[str, object], model_id: str) -> None:
    try:
        entry = Entry.parse(model_id, fields)
    except UsageError as error:
        assert error.message
    else:
        assert entry.ref_of(entry.latest) is not None
        assert all(ref.id == model_id and ref.scheme for ref in entry.versions.values())


@given(st.dictionaries(TEXTS, VALUES, max_size=3))
def test_whatever_is_in_a_file_the_built_in_names_are_found_or_it_is_named(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "a.json").write_text(json.dumps(entries))
    try:
        assert find(str(folder), "whisper-base")
    except UsageError as error:
        assert "a.json" in error.message


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_a_rough_size_is_a_lower_bound_where_no_digest_is_known() -> None:
    entry = Entry.parse("m", GOOD | {"sizes": {"a": 1000}})
    assert entry.hinted(ModelFile("a")).least_size == 800
    assert entry.hinted(ModelFile("a", least_size=900)).least_size == 900
    assert entry.hinted(ModelFile("a", digests=(Digest("sha256", "0" * 64),))).least_size == 0
    assert entry.hinted(ModelFile("b")).least_size == 0


def test_what_was_added_by_that_name_before_is_not_in_the_way(hub: Hub, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "mine.bin").write_bytes(b"mine")
    cache.add(tmp_path / "mine.bin", "whisper-base")
    assert len(names(cache.fetch("whisper-base"))) == 9
    assert Path(cache.path("whisper-base@1"), "mine.bin").read_bytes() == b"mine"
