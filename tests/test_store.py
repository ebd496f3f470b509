"""The store through any sequence of uses, damages and repairs (I1, I3, I4, I30), and what its parts promise."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from caches import manifest_of, no_handle_left, rot
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError, ModelCacheError, ModelNotAvailableError, PausedError, StoreError
from modelcache.model import Digest, Manifest, ModelFile, Span
from modelcache.store import blobs, links
from modelcache.store.disk import read_small
from modelcache.store.installed import NEVER, Installed, InstalledFile, Stamp
from modelcache.store.layout import Layout, key_of
from modelcache.store.partial import Partial
from modelcache.store.registry import Registry
from modelcache.store.shelf import Shelf
from modelcache.testing import Content, Cut, Origin, Status

CONTENTS = [Content.of(b""), *(Content.generated(size, seed=size) for size in (1, 4096, 10_000, 30_000))]
PATHS = ["a.bin", "sub/b.bin", "c.json"]
MODELS = st.sampled_from([("m", "1"), ("m", "2"), ("n", "1")])
FILES = st.dictionaries(st.sampled_from(PATHS), st.sampled_from(range(len(CONTENTS))), min_size=1)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # each step syncs a dozen times
STATE_FILES = ["registry.json", "models/*/*/.manifest.json", "pieces/sha256/*/*", "aliases/*/*"]


class StoreMachine(RuleBasedStateMachine):
    """What a user and the world do to a store. `have` is what is installed; `silent` rot nobody has looked for yet."""

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="store-", dir=MEMORY)) / "home"
        self.origin = Origin({f"content-{index}": content for index, content in enumerate(CONTENTS)})
        self.cache = self.opened()
        self.have: dict[tuple[str, str], dict[str, int]] = {}
        self.silent: set[str] = set()
        self.is_online = True

    def teardown(self) -> None:
        self.cache.close()
        self.origin.close()
        shutil.rmtree(self.home.parent)

    def opened(self) -> Cache:
        return Cache(self.home, piece_size=4096, backoff=0.0, attempts_per_source=1)

    def manifest(self, model: tuple[str, str], files: dict[str, int]) -> Manifest:
        manifest = manifest_of(self.origin, {path: CONTENTS[index] for path, index in files.items()}, *model)
        fields = manifest.to_json()
        for entry in fields["files"]:
            entry["urls"] = [self.origin.url(f"content-{files[entry['path']]}")]
        return Manifest.parse(json.dumps(fields).encode())

    def folder(self, model: tuple[str, str]) -> Path:
        return self.home / "models" / model[0] / model[1]

    # -- uses ---------------------------------------------------------------------------------------------------------

    @rule(model=MODELS, files=FILES, strict=st.booleans())
    def fetch(self, model: tuple[str, str], files: dict[str, int], strict: bool) -> None:
        files = self.have.get(model, files)  # a version is immutable
        try:
            found = self.cache.fetch(self.manifest(model, files), strict=strict)
        except AllSourcesFailedError:
            assert not self.is_online
            if Installed.read(str(self.folder(model))):  # what could be had without a network is kept
                self.have[model] = files
            return
        self.have[model] = files
        if strict:
            self.silent -= {CONTENTS[index].sha256 for index in files.values()}
        assert {file.name for file in found.files} == set(files)

    @precondition(lambda self: self.have)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.have)))
        self.cache.remove(*model)
        del self.have[model]
        assert not self.folder(model).exists()

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = self.opened()

    @rule()
    def go_offline(self) -> None:
        if self.is_online:
            self.origin.faults(Status(404))
        else:
            self.origin.heal()
        self.is_online = not self.is_online

    @rule()
    def be_cut_off(self) -> None:
        """A download that ends in the middle leaves a partial, and nothing else."""
        self.origin.faults(Cut(7000, times=1), Status(404, after=1))
        before = sorted((self.home / "models").rglob("*"))
        manifest = self.manifest(("cut", "1"), {"a.bin": 4})
        try:
            self.cache.fetch(manifest, output=self.home.with_suffix(".out"), cache=False)
        except ModelCacheError:
            assert sorted((self.home / "models").rglob("*")) == before
        shutil.rmtree(self.home.with_suffix(".out"), ignore_errors=True)
        self.origin.heal()
        self.is_online = True

    @rule()
    def verify(self) -> None:
        report = self.cache.verify()
        wrong = {(row["model"], row["version"], row["file"]) for row in report if row["finding"] != "whole"}
        for model, files in self.have.items():
            for path, index in files.items():
                place = self.folder(model) / path
                is_right = place.is_file() and place.read_bytes() == CONTENTS[index].read()
                known = Installed.read(str(self.folder(model))) is not None
                assert not known or ((*model, path) in wrong) is not is_right
        self.silent.clear()

    @rule()
    def repair(self) -> None:
        for model, files in self.have.items() if self.is_online else ():
            record = Installed.read(str(self.folder(model)))
            if record is None or record.missing:  # only a manifest knows where its files are
                self.cache.fetch(self.manifest(model, files))
        self.verify()
        rows = self.cache.repair()
        assert not self.is_online or all(row["repaired"] for row in rows), list(rows)
        if self.is_online:
            assert {row["finding"] for row in self.cache.verify()} <= {"whole"}

    # -- damages ------------------------------------------------------------------------------------------------------

    @rule(index=st.sampled_from(range(1, len(CONTENTS))), data=st.data())
    def rot(self, index: int, data: st.DataObject) -> None:
        digest = CONTENTS[index].sha256
        blob = self.home / "blobs" / "sha256" / digest[:2] / digest
        if blob.exists() and blob.read_bytes() == CONTENTS[index].read():
            rot(blob, data.draw(st.integers(0, CONTENTS[index].size - 1)))
            self.silent.add(digest)

    @precondition(lambda self: self.have)
    @rule(data=st.data(), edit=st.booleans())
    def edit(self, data: st.DataObject, edit: bool) -> None:
        model = data.draw(st.sampled_from(sorted(self.have)))
        path = data.draw(st.sampled_from(sorted(self.have[model])))
        place = self.folder(model) / path
        place.unlink(missing_ok=True)
        if edit and place.parent.exists():
            place.write_bytes(b"edited by somebody")

    @rule(pattern=st.sampled_from(STATE_FILES), garbage=st.none() | st.binary(max_size=30))
    def spoil(self, pattern: str, garbage: bytes | None) -> None:
        for path in self.home.glob(pattern):
            path.unlink()
            if garbage is not None:
                path.write_bytes(garbage)

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_available_is_right(self) -> None:
        for model, files in self.have.items():
            try:
                folder = self.cache.path(*model)
            except ModelNotAvailableError:
                continue
            for path, index in files.items():
                if CONTENTS[index].sha256 not in self.silent:
                    assert Path(folder, path).read_bytes() == CONTENTS[index].read()

    @invariant()
    def every_command_works(self) -> None:
        assert {(row["model"], row["version"]) for row in self.cache.models()} <= set(self.have)

    @invariant()
    def a_blob_that_a_model_needs_is_never_lost(self) -> None:
        blobs = {path.name for path in (self.home / "blobs").rglob("*") if path.is_file()}
        recorded = {file.sha256 for record in Shelf(Layout(str(self.home))).all() for file in record.files}
        assert recorded <= blobs

    @invariant()
    def nothing_half_done_is_visible(self) -> None:
        for path in (self.home / "models").rglob("*"):
            assert not path.name.endswith((".tmp", ".modelcache")), path


StoreMachine.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestStore = StoreMachine.TestCase


# -- parts ----------------------------------------------------------------------------------------------------------


def record(folder: Path, *paths: str, missing: tuple[str, ...] = ()) -> Installed:
    files = []
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())
        sha256 = hashlib.sha256(path.encode()).hexdigest()
        files.append(InstalledFile(path, sha256, "given", "sha256", Stamp.of(str(folder / path))))
    return Installed(folder.parent.name, folder.name, "ref", tuple(files), str(folder), missing)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(tmp_path / "m" / "1", "a", "b/c", missing=("d",))
    written.write()
    assert Installed.read(written.folder) == written
    assert Installed.read(str(tmp_path)) is None


@pytest.mark.parametrize("change", ["size", "date", "inode"])
def test_a_stamp_notices_every_change_that_leaves_a_trace(tmp_path: Path, change: str) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"1234")
    stamp = Stamp.of(str(place))
    assert stamp.judge(str(place)) == "right"
    if change == "size":
        place.write_bytes(b"12345")
        os.utime(place, ns=(0, stamp.mtime_ns))
    elif change == "date":
        os.utime(place, ns=(0, stamp.mtime_ns + 1))
    else:
        place.rename(tmp_path / "b")
        place.write_bytes(b"1234")
        os.utime(place, ns=(0, stamp.mtime_ns))
    assert stamp.judge(str(place)) == "changed"
    place.unlink()
    assert stamp.judge(str(place)) == "missing"


def test_concurrent_changes_of_the_registry_are_not_lost(tmp_path: Path) -> None:
    import threading

    layout = Layout(str(tmp_path))
    registry = Registry(layout.registry, layout.models, layout.lock("registry"))
    records = [record(tmp_path / "models" / f"m{index}" / "1", "a") for index in range(8)]
    threads = [threading.Thread(target=registry.installed, args=(each, None)) for each in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert registry.ids() == [f"m{index}" for index in range(8)]


def test_a_registry_that_no_handle_is_left_to_read_is_not_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    registry = Registry(layout.registry, layout.models, layout.lock("registry"))
    registry.installed(Installed("m", "1", "m", (), str(tmp_path / "m")), None)
    registry.aliased("m", ["main"], "1")
    before = registry.aliases("m")

    def short(path: str) -> bytes | None:
        with no_handle_left():
            return read_small(path)

    monkeypatch.setattr("modelcache.store.registry.read_small", short)
    with pytest.raises(StoreError, match="too many open files"):
        registry.installed(Installed("n", "1", "n", (), str(tmp_path / "n")), None)
    monkeypatch.undo()
    assert (registry.ids(), registry.aliases("m")) == (["m"], before) == (["m"], {"main": "1"})


def test_the_default_version_is_the_newest_that_is_whole(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    registry = Registry(layout.registry, layout.models, layout.lock("registry"))
    one, two = (record(tmp_path / "models" / "m" / version, "a") for version in "12")
    torn = record(tmp_path / "models" / "m" / "3", "a", missing=("b",))
    for each in (one, two, torn):
        registry.installed(each, None)
    assert registry.default("m") == "2"
    assert registry.versions("m") == {"1": "ready", "2": "ready", "3": "error"}
    registry.removed("m", "2")
    assert registry.default("m") in ("1", "3")
    registry.removed("m", "1"), registry.removed("m", "3")
    assert registry.default("m") is None


def test_a_copy_shares_no_bytes_that_can_be_written(tmp_path: Path) -> None:
    source, target = tmp_path / "blob", tmp_path / "out"
    source.write_bytes(b"x" * 3_000_000)
    sha256 = Digest("sha256", hashlib.sha256(source.read_bytes()).hexdigest())
    links.copy(str(source), str(target), sha256)
    with open(target, "r+b") as file:
        file.write(b"edited")
    assert source.read_bytes() == b"x" * 3_000_000


def test_a_copy_of_what_has_rotted_is_never_seen(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"rotten")
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(ModelCacheError, match="is not what it was"):
        links.copy(str(tmp_path / "blob"), str(tmp_path / "out"), Digest("sha256", "0" * 64))
    assert sorted(os.listdir(tmp_path)) == ["blob", "out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_link_on_a_file_system_of_its_own_is_a_copy(tmp_path: Path, small_disk: Path) -> None:
    sha256 = hashlib.sha256(b"content").hexdigest()
    blob = tmp_path / sha256
    blob.write_bytes(b"content")
    stamp = links.link(str(blob), str(small_disk / "a" / "b"), Digest("sha256", sha256), Stamp.of(str(blob)))
    assert stamp.judge(str(small_disk / "a" / "b")) == "right"
    assert (small_disk / "a" / "b").read_bytes() == b"content"
    assert (small_disk / "a" / "b").stat().st_mode & 0o222 == 0


def test_a_blob_that_another_process_links_at_the_same_moment_has_no_third_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rename(2) leaves both names where they are one file already."""
    blob, target = tmp_path / "blob", tmp_path / "model/m.bin"
    blob.write_bytes(b"m")
    target.parent.mkdir()

    def linked_now(one: str, other: str, **more: bool) -> None:
        link(blob, target)
        link(one, other, **more)

    link = os.link
    monkeypatch.setattr(os, "link", linked_now)
    links.link(str(blob), str(target), Digest.parse(hashlib.sha256(b"m").hexdigest(), "sha256"), Stamp.of(str(blob)))
    assert [path.name for path in target.parent.iterdir()] == ["m.bin"]
    assert target.samefile(blob)


def test_linking_what_was_removed_meanwhile_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="its content was removed or changed meanwhile"):
        links.link(str(tmp_path / "blob"), str(tmp_path / "m" / "a"), Digest("sha256", "0" * 64), NEVER)


def test_a_blob_that_is_here_already_is_read_until_somebody_pauses(tmp_path: Path) -> None:
    layout, data = Layout(str(tmp_path)), os.urandom(3 << 20)
    sha256 = Digest("sha256", hashlib.sha256(data).hexdigest())
    file = ModelFile("m.bin", len(data), (sha256,))

    def pause() -> None:
        raise PausedError("paused")

    for tick in (None, pause):
        partial = Partial.open(layout.partials, key_of(file), file)
        writer = partial.writer(Span(0, len(data)), "a")
        writer.write(data)
        writer.close()
        assert partial.await_proof(20)
        if tick is None:
            blobs.commit(layout, partial)
            continue
        with pytest.raises(PausedError):
            blobs.commit(layout, partial, tick)
        assert partial.is_written()
        partial.close()
