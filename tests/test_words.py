"""What is said to people who meant something else: each answer names what helps."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from caches import run

from modelcache.caching import Cache
from modelcache.errors import NotFoundError, UsageError
from modelcache.rows import Report
from modelcache.testing import Content, Hub
from tests.registries import Registry

COMMIT = "e4168eb" + "1" * 33


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        hub.publish("org/name", {"a.json": b"{}", "onnx/model.onnx": b"x"}, "v1", "main", commit=COMMIT)
        hub.publish("onnx-community/whisper-base", {"config.json": b"{}"}, "main")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def test_one_file_of_a_short_name_is_chosen_with_files(cache: Cache) -> None:
    done = run("fetch", "whisper-base/config.json")
    assert done.returncode == 2
    assert "`whisper-base --files config.json`" in done.stderr and "hf:" not in done.stderr
    assert "`hf:org/name`" in run("fetch", "org/name").stderr


def test_a_token_that_cannot_be_one_is_told_with_its_place(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a\nb")
    with pytest.raises(UsageError, match="token of HF_TOKEN holds"):
        cache.fetch("hf:org/name")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("a\nb")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UsageError, match=f"token of {tmp_path}/token holds"):
        cache.fetch("hf:org/name")


def test_logins_that_cannot_be_read_are_told_where_one_is_missing(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Registry(open_to=("Basic bWU6eA==",)) as registry:
        registry.push_model("library/tiny", "latest", {"model": Content.of(b"x")}, Content.of(b"{}"))
        for text, is_told in (('{"auths": [', True), ("[]", True), ('{"credsStore": "x"}', False)):
            (tmp_path / "config.json").write_text(text)
            done = run("fetch", registry.ref(), "--quiet")
            assert done.returncode == 4 and (f"mend {tmp_path}/config.json" in done.stderr) == is_told
            assert any(str(tmp_path) in row["finding"] for row in cache.doctor()) == is_told


def test_a_selection_that_came_out_empty_is_refused(cache: Cache, hub: Hub) -> None:
    with pytest.raises(UsageError, match="no pattern of file names"):
        cache.fetch("hf:org/name", files=[])
    assert run("fetch", "hf:org/name", "--quiet").returncode == 0


def test_all_patterns_that_fit_nothing_are_named(cache: Cache, hub: Hub) -> None:
    with pytest.raises(NotFoundError, match=r"has no file \*\.bin, b\.json$"):
        cache.fetch("hf:org/name", files=["*.bin", "a.json", "b.json"])


def test_a_folder_is_no_file_and_chosen_with_files(cache: Cache, hub: Hub) -> None:
    for ref in ("hf:org/name/onnx", "hf:org/name@v1/onnx"):
        with pytest.raises(NotFoundError) as failure:
            cache.fetch(ref)
        assert failure.value.next_step == f"it is a folder: name {ref.removesuffix('/onnx')} --files 'onnx/*'"


def test_a_name_that_is_misspelt_brings_the_one_that_is_like_it(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x")
    cache.add(tmp_path / "w.bin", "my-weights")
    assert (
        "Model my-wieghts is not available: not_installed; did you mean my-weights?" in run("path", "my-wieghts").stderr
    )
    assert "did you mean whisper-base?" in run("fetch", "whisper-bass").stderr
    assert "did you mean" not in run("path", "nothing-like-it").stderr
    assert "ollama--tiny@latest is not available" in run("path", "ollama:tiny").stderr


def test_a_commit_that_is_cut_short_is_told_in_full(cache: Cache, hub: Hub) -> None:
    cache.fetch("hf:org/name")
    for ref in ("hf:org/name@e4168eb", "hf--org--name@e4168eb"):
        assert f"name the whole version: {ref.partition('@')[0]}@{COMMIT}" in run("path", ref).stderr
    assert "whole version" not in run("path", "hf:org/name@f4168eb").stderr
    catalog = Path(cache.root, "catalog", "mine.toml")
    catalog.write_text('[mine]\nref = "hf:org/name"\n')
    cache.fetch("mine")
    assert f"name the whole version: mine@{COMMIT}" in run("fetch", "mine@e4168eb").stderr


def test_logs_of_what_never_was_are_no_empty_success(cache: Cache, hub: Hub) -> None:
    assert run("logs", "nope").returncode == 4
    assert run("logs").returncode == 0
    cache.fetch("hf:org/name")
    assert run("logs", "hf:org/name").returncode == 0


def test_pins_are_told_as_json(cache: Cache, hub: Hub) -> None:
    told = [json.loads(run(*words, "m", "--json").stdout) for words in (("pin",), ("unpin",), ("unpin",))]
    blank = {"model": "m", "version": ""}
    assert told == [
        blank | {"pinned": True, "here": False}, {"model": "m", "versions": [""], "pinned": False, "was": True},
        {"model": "m", "versions": [], "pinned": False, "was": False},
    ]  # fmt: skip


def test_the_rows_of_info_say_which_model_they_are_of(cache: Cache, hub: Hub) -> None:
    cache.fetch("hf:org/name@v1")
    for row in json.loads(run("info", "hf:org/name@v1", "--json").stdout):
        assert [row[key] for key in ("model", "version", "ref", "status")] == [
            "hf--org--name", COMMIT, "hf:org/name", "ready"
        ]  # fmt: skip


def test_a_table_shows_what_a_version_begins_with_and_is_called(cache: Cache, hub: Hub) -> None:
    cache.fetch("hf:org/name")
    cache.fetch("hf:org/name@v1")
    text = str(cache.models())
    assert COMMIT[:12] in text and COMMIT not in text and "main, v1" in text
    (row,) = json.loads(run("ls", "--json").stdout)
    assert (row["version"], row["called"]) == (COMMIT, ["main", "v1"])
    done = run("ls", COLUMNS="60")
    assert all(len(line) <= 60 for line in done.stdout.splitlines())
    assert "pinned no" in done.stdout.splitlines()[-1], "what stands below its row, without a head, says what it is"
    cache.fetch(f"hf:org/name@{COMMIT}", strict=True)
    assert COMMIT not in run("status").stdout
    assert COMMIT in run("status", "--json").stdout


def test_a_report_is_a_sequence_of_rows() -> None:
    report = Report("numbers", ({"n": 1}, {"n": 2}))
    assert (len(report), report[0], report[-1], list(report)) == (2, {"n": 1}, {"n": 2}, [{"n": 1}, {"n": 2}])
    with pytest.raises(IndexError):
        report[2]


@pytest.mark.parametrize("columns", ["", "20"])  # as one line, and as what does not fit below it
def test_a_table_shows_nothing_that_drives_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    wild = "a\x1b[2J\r\n\u202eb\udcff\x9b1m"
    report = Report(wild, ({"file": wild, wild: wild, "why": [wild], "url": wild},), notes=(wild,))
    assert all(each.isprintable() for each in str(report).split("\n")) and str(report).count("[2J") >= 4
    assert report[0]["file"] == wild
    assert "\x1b" not in str(Report(wild, (), none=wild))


def test_a_file_with_an_escape_in_its_name_is_listed_without_it(cache: Cache, cache_root: Path) -> None:
    wild = cache_root / "logs" / "x\x1b[2J.jsonl"
    wild.parent.mkdir(parents=True, exist_ok=True)
    wild.write_text("{}")
    os.utime(wild, (1, 1))
    found = cache.clean(dry_run=True)
    assert any(row["path"] == str(wild) for row in found) and "\x1b" not in str(found) and "x [2J.jsonl" in str(found)
