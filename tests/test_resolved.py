"""What refs meant is read whatever state it is in: it is known, or it is not."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelcache.model import MAX_MANIFEST_BYTES, Digest, Manifest, ModelFile
from modelcache.refs import Ref
from modelcache.store.layout import Layout
from modelcache.store.resolved import MOST_ALIASES, Resolved

COMMIT, OTHER = "1" * 40, "2" * 40
MAIN, TAG, PINNED = Ref.parse("hf:org/name"), Ref.parse("hf:org/name@v1"), Ref.parse(f"hf:org/name@{COMMIT}")
FILE = ModelFile("a/b", 3, (Digest("git-sha1", "b" * 40),), (f"hf:org/name@{COMMIT}/a/b",))
MANIFEST = Manifest(MAIN.id, COMMIT, MAIN.base, (FILE,))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(COMMIT),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["format", "aliases", "main", "version", "at", "files"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture
def resolved(tmp_path: Path) -> Resolved:
    return Resolved(Layout(str(tmp_path)))


def place(root: Path, name: str) -> Path:
    return root / "catalog" / MAIN.id / f"{name}.json"


def test_what_was_said_is_known_as_long_as_it_may_be(resolved: Resolved) -> None:
    assert resolved.manifest(MAIN, 3600) is None
    resolved.save(MAIN, MANIFEST)
    assert resolved.manifest(MAIN, 3600) == MANIFEST
    assert resolved.manifest(PINNED, 0) == MANIFEST
    assert resolved.manifest(TAG, 3600) is None
    time.sleep(0.002)
    assert resolved.manifest(MAIN, 0) is None


def test_one_branch_says_nothing_of_another(resolved: Resolved, tmp_path: Path) -> None:
    other = Manifest(MAIN.id, OTHER, MAIN.base, (FILE,))
    resolved.save(MAIN, MANIFEST)
    resolved.save(TAG, other)
    assert (resolved.manifest(MAIN, 3600), resolved.manifest(TAG, 3600)) == (MANIFEST, other)
    resolved.save(PINNED, MANIFEST)
    assert set(json.loads(place(tmp_path, "aliases").read_bytes())["aliases"]) == {"main", "v1"}


def test_a_clock_that_was_ahead_makes_nothing_young_for_ever(resolved: Resolved, tmp_path: Path) -> None:
    resolved.save(MAIN, MANIFEST)
    ahead = {"format": 1, "aliases": {"main": {"version": COMMIT, "at": 10**15}}}
    place(tmp_path, "aliases").write_text(json.dumps(ahead))
    assert resolved.manifest(MAIN, 3600) is None


def test_what_was_said_at_a_time_to_come_is_not_the_latest(resolved: Resolved, tmp_path: Path) -> None:
    resolved.save(MAIN, MANIFEST, 10**15)
    assert resolved.said_at(MAIN) == 0
    resolved.save(MAIN, MANIFEST, 10**12)
    assert resolved.said_at(MAIN) == 10**12
    resolved.save(MAIN, MANIFEST, -(10**400))
    assert resolved.said_at(MAIN) == 0


@pytest.mark.parametrize("name", ["aliases", COMMIT])
def test_what_is_larger_than_any_answer_is_not_read(resolved: Resolved, tmp_path: Path, name: str) -> None:
    resolved.save(MAIN, MANIFEST)
    content = place(tmp_path, name).read_bytes()
    place(tmp_path, name).write_bytes(content.ljust(MAX_MANIFEST_BYTES))
    assert resolved.manifest(MAIN, 3600) == MANIFEST
    place(tmp_path, name).write_bytes(content.ljust(MAX_MANIFEST_BYTES + 1))
    assert resolved.manifest(MAIN, 3600) is None


def test_an_answer_too_large_to_be_read_again_is_not_kept(resolved: Resolved, tmp_path: Path) -> None:
    files = tuple(ModelFile(f"{number:06}" + "x" * 90, 3, FILE.digests, FILE.urls) for number in range(25_000))
    resolved.save(MAIN, Manifest(MAIN.id, COMMIT, MAIN.base, files))
    assert not place(tmp_path, COMMIT).exists()
    assert resolved.manifest(MAIN, 3600) is None


def test_the_list_of_branches_has_a_bound(resolved: Resolved, tmp_path: Path) -> None:
    names = {f"b{number}": {"version": COMMIT, "at": 1} for number in range(MOST_ALIASES)}
    resolved.save(MAIN, MANIFEST)
    place(tmp_path, "aliases").write_text(json.dumps({"format": 1, "aliases": names}))
    resolved.save(MAIN, MANIFEST)
    assert len(json.loads(place(tmp_path, "aliases").read_bytes())["aliases"]) == MOST_ALIASES
    assert resolved.manifest(MAIN, 3600) == MANIFEST


@pytest.mark.parametrize("version", ["../../../x", "a/b", "/etc", "", ".", "x" * 300, "con"])
def test_a_version_chooses_no_path(resolved: Resolved, tmp_path: Path, version: str) -> None:
    resolved.save(MAIN, MANIFEST)
    said = {"format": 1, "aliases": {"main": {"version": version, "at": time.time_ns() // 1_000_000}}}
    place(tmp_path, "aliases").write_text(json.dumps(said))
    assert resolved.manifest(MAIN, 3600) is None


@pytest.mark.parametrize(
    "wrong", [{"id": "m"}, {"version": OTHER}, {"ref": "hf:org/other"}, {"format": 2}, {"files": []}]
)
def test_a_manifest_of_something_else_is_not_believed(
    resolved: Resolved, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    resolved.save(MAIN, MANIFEST)
    place(tmp_path, COMMIT).write_text(json.dumps(MANIFEST.to_json() | wrong))
    assert resolved.manifest(PINNED, 0) is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30), st.sampled_from(["aliases", COMMIT]))
@example(b"[" * 100_000, "aliases")
@example(b"[" * 100_000, COMMIT)
@example(b'{"format": 1, "aliases": {"main": {"version": "' + COMMIT.encode() + b'", "at": true}}}', "aliases")
@example(b'{"format": 1, "aliases": {"main": {"version": ["x"], "at": 1}}}', "aliases")
def test_any_bytes_there_are_no_error(resolved: Resolved, tmp_path: Path, content: bytes, name: str) -> None:
    resolved.save(MAIN, MANIFEST)
    place(tmp_path, name).write_bytes(content)
    assert resolved.manifest(MAIN, 3600) in (None, MANIFEST)
    resolved.save(MAIN, MANIFEST)
    assert resolved.manifest(MAIN, 3600) == MANIFEST


def test_what_is_no_file_is_not_read(resolved: Resolved, tmp_path: Path) -> None:
    resolved.save(MAIN, MANIFEST)
    elsewhere = tmp_path / "elsewhere.json"
    place(tmp_path, COMMIT).rename(elsewhere)
    place(tmp_path, COMMIT).symlink_to(elsewhere)
    assert resolved.manifest(PINNED, 0) is None
    place(tmp_path, COMMIT).unlink()
    os.mkfifo(place(tmp_path, COMMIT))
    assert resolved.manifest(PINNED, 0) is None
