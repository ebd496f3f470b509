"""Bundles: what is exported comes in elsewhere byte for byte, without network, also after a kill or a full disk."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import LARGE, MIB, ONE, SMALL, TWO, add, bundle_of, files_of, sha256_of
from caches import Events, check_progress, rot
from crash import begin, check_store, command, environment, eventually, leftovers, lines, locks_held, partial_bytes, run
from registries import Registry

from modelcache.archives.bundle import Member
from modelcache.caching import Cache
from modelcache.errors import LockedError, ModelNotAvailableError, StoreError, UsageError, VerificationError
from modelcache.model import Digest
from modelcache.testing import Content, Hub, Origin


@pytest.fixture
def full(cache: Cache, tmp_path: Path) -> Cache:
    """A cache with two models that share a file."""
    add(cache, tmp_path / "sources", "one", ONE)
    add(cache, tmp_path / "sources", "two", TWO, "7")
    return cache


@pytest.fixture
def bundle(full: Cache, tmp_path: Path) -> Path:
    full.export_bundle(["one", "two"], tmp_path / "w.tar")
    return tmp_path / "w.tar"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Cache]:
    """A cache on another machine, as far as it knows."""
    cache = Cache(tmp_path / "other")
    yield cache
    cache.close()


def importing(home: Path) -> "subprocess.Popen[bytes]":
    """An import that reads a pipe, which the test fills."""
    return subprocess.Popen(
        command("bundle", "import", "-"), env=environment(home),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def exporting(home: Path, *words: str) -> "subprocess.Popen[bytes]":
    """An export into a pipe, which the test reads when it likes."""
    return subprocess.Popen(
        command("bundle", "export", *words, "-o", "-", "--quiet"), env=environment(home),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def feed(child: "subprocess.Popen[bytes]", content: bytes) -> None:
    assert child.stdin
    child.stdin.write(content)
    child.stdin.flush()


def until_partly_in(home: Path, child: "subprocess.Popen[bytes]", content: bytes) -> None:
    """Feeds so much that a part of the large file is written, and noted."""
    feed(child, content)
    journals = home / "partials"
    assert eventually(lambda: any(b"\nw " in path.read_bytes() for path in journals.glob("*/journal")))


# -- there and back ---------------------------------------------------------------------------------------------------


def test_models_come_in_elsewhere_byte_for_byte(full: Cache, other: Cache, bundle: Path) -> None:
    models = other.import_bundle(bundle)
    assert [(model.id, model.version) for model in models] == [("one", "1"), ("two", "7")]
    assert (files_of(other, "one"), files_of(other, "two")) == (ONE, TWO)
    assert {row["proof"] for row in other.info("one")} == {"listed"}
    assert {row["finding"] for row in other.verify()} == {"whole"}
    assert [row["status"] for row in other.downloads()] == ["success", "success"]
    check_store(Path(other.root))
    assert not leftovers(Path(other.root))


def test_the_same_models_give_the_same_bytes(full: Cache, other: Cache, bundle: Path, tmp_path: Path) -> None:
    other.import_bundle(bundle)
    again = io.BytesIO()
    other.export_bundle(["two", "one@1", "two@7"], again)
    assert again.getvalue() == bundle.read_bytes()


def test_an_output_is_replaced_and_that_is_said_but_no_folder_is_made(
    full: Cache, bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "none" / "w.tar"
    refused = run(Path(full.root), "bundle", "export", "one", "-o", str(place))
    assert (refused.returncode, place.parent.exists()) == (6, False)
    assert f"{place.parent} is no folder; make it" in refused.stderr
    done = run(Path(full.root), "bundle", "export", "one", "-o", str(bundle), "--quiet")
    assert (done.returncode, done.stderr) == (0, f"{bundle}: replaced\n")


def test_a_bundle_is_a_plain_tar_with_each_content_once(bundle: Path) -> None:
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
        assert [member.name.partition("/")[0] for member in members] == ["manifests"] * 2 + ["blobs"] * 4
        assert {(member.type, member.uid, member.uname, member.mtime) for member in members} == {
            (tarfile.REGTYPE, 0, "", members[0].mtime)
        }
        for member in members:
            content = archive.extractfile(member)
            assert content
            assert sha256_of(content.read()) in member.name
        listed = json.load(archive.extractfile(members[0]) or io.BytesIO())
    assert (listed["format"], listed["id"], listed["version"]) == (1, "one", "1")
    pieces = {file["path"]: len(file["pieces"]["blake3"]) for file in listed["files"] if "pieces" in file}
    assert pieces == {"onnx/model.bin": 3}


@pytest.mark.skipif(not shutil.which("tar"), reason="apt install tar")
def test_what_gnu_tar_packs_again_comes_in(bundle: Path, other: Cache, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "open", ignore_errors=True)
    (tmp_path / "open").mkdir()
    subprocess.run(["tar", "xf", bundle, "-C", tmp_path / "open"], check=True, stderr=subprocess.DEVNULL)
    names = subprocess.run(["tar", "tf", bundle], check=True, capture_output=True, text=True).stdout.split()
    for form in ("gnu", "ustar", "v7"):
        again, root = tmp_path / f"{form}.tar", tmp_path / f"home-{form}"
        subprocess.run(["tar", "cf", again, f"--format={form}", "-C", tmp_path / "open", *names], check=True)
        assert [model.id for model in Cache(root).import_bundle(again)] == ["one", "two"]


def test_a_model_of_a_url_is_found_by_it_elsewhere(cache: Cache, other: Cache, tmp_path: Path) -> None:
    content = Content.generated(70_000, seed=43)
    with Origin({"m.gguf": content}) as origin:
        url = origin.url("m.gguf")
        cache.fetch(url)
        cache.export_bundle([url], tmp_path / "w.tar")
        other.import_bundle(tmp_path / "w.tar")
        asked = len(origin.requests)
        assert Path(other.path(url)).read_bytes() == content.read()
        assert other.fetch(url).status == "hit"
        assert len(origin.requests) == asked


def test_what_a_tag_means_is_known_elsewhere(
    cache: Cache, other: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commit = hub.publish("org/name", {"config.json": b"{}", "model.bin": SMALL}, "v1.0", "main")
        for ref in ("hf:org/name@v1.0", "hf:org/name"):
            cache.fetch(ref)
        cache.export_bundle(["hf:org/name@v1.0"], tmp_path / "w.tar")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (model,) = other.import_bundle(tmp_path / "w.tar")
    for ref in ("hf:org/name@v1.0", "hf:org/name", f"hf:org/name@{commit}"):
        assert other.path(ref) == other.fetch(ref).path == model.path
    again = io.BytesIO()
    other.export_bundle(["hf:org/name"], again)
    assert again.getvalue() == (tmp_path / "w.tar").read_bytes()


def test_a_registry_that_cannot_be_asked_is_no_need_elsewhere(
    cache: Cache, other: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry() as registry:
        registry.push_model("library/tiny", "latest", {"model": Content.of(LARGE)}, Content.of(b"{}"))
        monkeypatch.setenv("MODELCACHE_OLLAMA_REGISTRY", registry.host)
        cache.fetch("ollama:tiny")
        cache.export_bundle(["ollama:tiny"], tmp_path / "w.tar")
    (model,) = other.import_bundle(tmp_path / "w.tar")
    assert other.path("ollama:tiny") == other.fetch("ollama:tiny").path == model.path


def test_a_model_of_a_hub_is_found_by_its_ref_and_gets_more_of_its_files(other: Cache) -> None:
    commit, ref = "0123456789" * 4, "hf:org/name"
    for files in ({"a": b"a", "b": SMALL}, {"a": b"a", "c": b"c"}):
        other.import_bundle(io.BytesIO(bundle_of(files, "hf--org--name", version=commit, ref=ref)))
    assert files_of(other, ref) == {"a": b"a", "b": SMALL, "c": b"c"}
    assert other.path(f"{ref}@{commit}") == other.path("hf--org--name")


def test_sizes_beyond_8_gib_are_written_and_read() -> None:
    member = Member("blob", Digest("sha256", "0" * 64), 9 << 30)
    assert Member.of(member.header) == member
    assert tarfile.TarInfo.frombuf(member.header, "ascii", "strict").size == 9 << 30


NO_SOCKETS = """
import os, sys
def refuse(event, _):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
        os.write(2, b"a socket!")
        os._exit(99)
sys.addaudithook(refuse)
from modelcache.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_socket_is_made(bundle: Path, tmp_path: Path) -> None:
    def run_alone(*words: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", NO_SOCKETS, *words], env=environment(tmp_path / "alone"), timeout=60
        )
        return done.returncode

    assert run_alone("bundle", "import", str(bundle)) == 0
    assert run_alone("bundle", "export", "one", "two", "-o", str(tmp_path / "again.tar")) == 0
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    assert run_alone("fetch", "http://127.0.0.1:9/x", "--quiet") == 99, "the hook must be able to see one"


# -- what is here already ---------------------------------------------------------------------------------------------


def test_what_is_here_is_not_taken_again(full: Cache, other: Cache, bundle: Path, tmp_path: Path) -> None:
    add(other, tmp_path / "mine", "mine", {"x.bin": LARGE})
    one, two = other.import_bundle(bundle)
    assert {file.name: file.status for file in one.files} == {
        "config.json": "fetched", "empty": "fetched", "onnx/model.bin": "linked",
    }  # fmt: skip
    assert two["weights/model.bin"].status == "linked"
    again = other.import_bundle(bundle)
    assert {file.status for model in again for file in model.files} == {"hit"}
    assert [row["event_type"] for row in other.logs("one")].count("completed") == 2


def test_a_blob_that_has_rotted_here_is_made_right_for_all_who_share_it(
    other: Cache, bundle: Path, tmp_path: Path
) -> None:
    add(other, tmp_path / "mine", "mine", {"x.bin": LARGE})
    rot(Path(other.path("mine")) / "x.bin", 100)
    other.import_bundle(bundle)
    assert files_of(other, "mine") == {"x.bin": LARGE}
    assert {row["finding"] for row in other.verify()} == {"whole"}
    check_store(Path(other.root))


def test_a_version_with_other_files_is_left_as_it_is(other: Cache, bundle: Path, tmp_path: Path) -> None:
    add(other, tmp_path / "mine", "two", {"config.json": b"mine"}, "7")
    with pytest.raises(UsageError, match="two@7 is here with other files"):
        other.import_bundle(bundle)
    assert files_of(other, "two") == {"config.json": b"mine"}
    assert [row["model"] for row in other.models()] == ["two"]


def test_bytes_of_an_unfinished_download_are_gone_on_with(cache: Cache, tmp_path: Path, other: Cache) -> None:
    add(cache, tmp_path / "sources", "one", ONE)
    cache.export_bundle(["one"], tmp_path / "w.tar")
    whole = (tmp_path / "w.tar").read_bytes()
    with pytest.raises(VerificationError) as caught:
        other.import_bundle(io.BytesIO(whole[: 6 * MIB]))
    assert 5 * MIB < caught.value.kept_bytes < 6 * MIB
    (one,) = other.import_bundle(io.BytesIO(whole))
    assert one["onnx/model.bin"].status == "resumed"
    assert one["onnx/model.bin"].bytes_resumed > 5 * MIB
    assert files_of(other, "one") == ONE


def test_wrong_bytes_of_an_earlier_run_cost_no_second_import_from_a_file(other: Cache, tmp_path: Path) -> None:
    """Without piece digests nothing tells which bytes are wrong: all are taken from the bundle."""
    whole = bundle_of({"x.bin": LARGE})
    with pytest.raises(VerificationError):
        other.import_bundle(io.BytesIO(whole[: 6 * MIB]))
    (data,) = Path(other.root, "partials").glob("*/data")
    rot(data, MIB)
    (model,) = other.import_bundle(io.BytesIO(whole))
    assert (model["x.bin"].status, files_of(other, "m")) == ("fetched", {"x.bin": LARGE})


# -- exporting --------------------------------------------------------------------------------------------------------


def test_rot_ends_an_export_and_leaves_no_file(full: Cache, cache_root: Path, tmp_path: Path) -> None:
    rot(Path(full.path("two")) / "weights/model.bin", 5 * MIB)
    done = run(cache_root, "bundle", "export", "two", "-o", str(tmp_path / "w.tar"), "--quiet")
    assert (done.returncode, done.stdout, len(lines(done.stderr))) == (3, "", 1)
    assert "weights/model.bin has rotted" in done.stderr
    assert "repair two" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["home", "sources"]
    with pytest.raises(ModelNotAvailableError):
        full.path("one")  # which shares it


def test_an_export_that_fails_leaves_the_file_of_before(full: Cache, bundle: Path) -> None:
    before = bundle.read_bytes()
    rot(Path(full.path("two")) / "weights/model.bin", 5 * MIB)
    with pytest.raises(VerificationError):
        full.export_bundle(["two"], bundle)
    assert bundle.read_bytes() == before


def test_only_whole_models_are_exported(full: Cache, tmp_path: Path) -> None:
    with pytest.raises(ModelNotAvailableError, match="not_installed"):
        full.export_bundle(["three"], tmp_path / "w.tar")
    digest = sha256_of(SMALL)
    Path(full.root, "blobs/sha256", digest[:2], digest).unlink()
    full.export_bundle(["one"], tmp_path / "w.tar")  # the model's own link is there
    Path(full.path("one"), "config.json").unlink()
    with pytest.raises(ModelNotAvailableError, match="error"):
        full.export_bundle(["one"], tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def test_a_model_stays_while_it_is_exported(full: Cache, cache_root: Path, tmp_path: Path, other: Cache) -> None:
    """Nobody reads the pipe: the export is in the midst of it."""
    with exporting(cache_root, "one") as child:
        assert child.stdout
        first = child.stdout.read(MIB)
        for words in (["rm", "one"], ["reset", "one"]):
            refused = run(cache_root, *words)
            assert (refused.returncode, f"process {child.pid}" in refused.stderr) == (7, True), refused.stderr
        assert run(cache_root, "rm", "two").returncode == 0
        run(cache_root, "clean")
        whole = first + child.stdout.read()
    assert child.returncode == 0
    (model,) = other.import_bundle(io.BytesIO(whole))
    assert files_of(other, model.id) == ONE
    assert run(cache_root, "rm", "one").returncode == 0


def test_an_export_waits_for_whoever_has_the_model_and_says_so(full: Cache, tmp_path: Path) -> None:
    from modelcache.store.locks import Patience, Subject, locked

    events = Events()
    impatient = Cache(full.root, lock_timeout=0.6)
    with (
        locked(str(Path(full.root, "locks/model-one.lock")), Subject("one"), Patience(0.0)),
        pytest.raises(LockedError, match="in use by"),
    ):
        impatient.export_bundle(["one"], tmp_path / "w.tar", progress=events)
    assert events.of("waiting")
    impatient.close()


def test_an_export_is_waited_for_as_long_as_it_goes_on(full: Cache, cache_root: Path, tmp_path: Path) -> None:
    """It writes nothing into the store, and takes longer than anybody waits for one who does nothing."""
    pace = threading.Event()
    with exporting(cache_root, "one") as child:
        assert child.stdout
        child.stdout.read(1000)
        words = ["bundle", "export", "one", "-o", str(tmp_path / "w.tar")]
        patient = subprocess.Popen(
            command(*words), env=environment(cache_root, MODELCACHE_LOCK_TIMEOUT="2.5"), stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert patient.stderr
        assert f"waiting for process {child.pid}" in patient.stderr.readline()
        while child.stdout.read(MIB):
            pace.wait(0.5)
    _, said = patient.communicate(timeout=30)
    assert (patient.returncode, child.returncode) == (0, 0), said


def test_outputs_that_are_no_files_are_refused(full: Cache, tmp_path: Path) -> None:
    for place in (tmp_path, "/dev/null"):
        with pytest.raises(UsageError, match="is not a file"):
            full.export_bundle(["one"], place)
    with pytest.raises(UsageError, match="name the models"):
        full.export_bundle([], tmp_path / "w.tar")
    assert Path("/dev/null").is_char_device()


def test_a_reader_that_leaves_is_told_in_one_line(full: Cache, cache_root: Path) -> None:
    with exporting(cache_root, "one") as child:
        assert child.stdout
        assert child.stderr
        child.stdout.read(1000)
        child.stdout.close()
        said = child.stderr.read().decode()
    assert (child.returncode, len(lines(said))) == (6, 1), said


def test_who_may_only_read_a_store_can_export_from_it(full: Cache, small_disk: Path, tmp_path: Path) -> None:
    shared = small_disk / "shared"
    add(Cache(shared), tmp_path / "more", "tiny", {"a": SMALL})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    full.export_bundle(["one"], tmp_path / "w.tar")
    report = Cache(shared).export_bundle(["tiny"], tmp_path / "w.tar")
    assert [row["model"] for row in report] == ["tiny"]


# -- interrupts, kills, disks, others ---------------------------------------------------------------------------------


def test_killed_in_the_midst_it_goes_on_where_it_was(bundle: Path, tmp_path: Path) -> None:
    home, whole = tmp_path / "other", bundle.read_bytes()
    child = importing(home)
    until_partly_in(home, child, whole[: 7 * MIB])
    child.kill()
    child.communicate(timeout=30)
    check_store(home)
    assert run(home, "ls").stdout.strip() == "installed models: nothing"
    done = run(home, "bundle", "import", str(bundle), "--json")
    assert done.returncode == 0, done.stderr
    resumed = {file["path"]: file["bytes_resumed"] for model in json.loads(done.stdout) for file in model["files"]}
    assert resumed["onnx/model.bin"] > 0
    check_store(home)
    assert not leftovers(home)
    assert files_of(Cache(home), "one") == ONE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_at_once_and_keeps_what_came(bundle: Path, tmp_path: Path, number: signal.Signals) -> None:
    home, whole = tmp_path / "other", bundle.read_bytes()
    child = importing(home)
    until_partly_in(home, child, whole[: 7 * MIB])
    began = time.monotonic()
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert time.monotonic() - began < 5  # half a second, on a machine that has nothing else to do
    assert child.returncode == 128 + number
    assert re.search(r"^modelcache: interrupted; [\d,]+ bytes kept; run the same", said.decode())
    assert [row["status"] for row in Cache(home).downloads()] == ["paused"]
    assert not locks_held(home)
    assert run(home, "bundle", "import", str(bundle)).returncode == 0
    check_store(home)


def test_an_interrupt_ends_an_export(full: Cache, cache_root: Path) -> None:
    with exporting(cache_root, "one") as child:
        assert child.stdout
        child.stdout.read(1000)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert (child.returncode, b"interrupted" in said) == (130, True)
    assert not locks_held(cache_root)


def test_two_imports_at_once_share_the_work(bundle: Path, tmp_path: Path) -> None:
    home, whole = tmp_path / "other", bundle.read_bytes()
    first = importing(home)
    until_partly_in(home, first, whole[: 7 * MIB])
    second = begin(home, "bundle", "import", str(bundle), "--json")
    assert second.stderr
    assert f"waiting for process {first.pid}" in second.stderr.readline()
    first.communicate(whole[7 * MIB :], timeout=30)
    out, said = second.communicate(timeout=30)
    assert (first.returncode, second.returncode) == (0, 0), said
    assert {file["status"] for model in json.loads(out) for file in model["files"]} == {"hit"}
    check_store(home)


def test_too_small_a_disk_is_told_before_the_first_blob(small_disk: Path, bundle: Path, tmp_path: Path) -> None:
    home = small_disk / "home"
    done = run(home, "bundle", "import", str(bundle), "--quiet")
    assert (done.returncode, done.stdout, len(lines(done.stderr))) == (6, "", 1), done.stderr
    assert f"{len(LARGE) + len(SMALL) + len(b'{}'):,} more are needed" in done.stderr
    assert not partial_bytes(home / "partials")


def test_a_disk_that_fills_keeps_what_came_and_it_goes_on(small_disk: Path, bundle: Path, tmp_path: Path) -> None:
    home = small_disk / "home"
    subprocess.run(["mount", "-o", "remount,size=12m", str(small_disk)], check=True)
    child = importing(home)
    until_partly_in(home, child, bundle.read_bytes()[: 3 * MIB])
    ballast = small_disk / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - MIB)
    _, said = child.communicate(bundle.read_bytes()[3 * MIB :], timeout=60)
    assert (child.returncode, len(lines(said.decode()))) == (6, 1), said
    assert b"the disk is full" in said
    assert re.search(r"0 of 2 models are here; [34],[\d,]+ bytes kept; free space", said.decode())
    ballast.unlink()
    done = run(home, "bundle", "import", str(bundle), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["files"][2]["status"] == "resumed"
    check_store(home)


def test_an_export_to_a_full_disk_leaves_nothing(full: Cache, small_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="more are needed"):
        full.export_bundle(["one"], small_disk / "w.tar")
    assert not os.listdir(small_disk)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_events_are_those_of_a_fetch(bundle: Path, other: Cache) -> None:
    events = Events()
    end = other.on_event(events)
    one, _ = other.import_bundle(bundle)
    end()
    for model in ("one", "two"):
        check_progress([event for event in events.progress if event["modelId"] == model], model)
    assert [event["path"] for event in events.of("installed")][:1] == [one.path]
    assert len(events.of("file_ready")) == 5
    assert {event["filepath"] for event in events.of("download_complete")} == {other.path("one"), other.path("two")}
    assert {event["downloadId"] for event in events.of("download_complete")} == {
        row["id"] for row in other.downloads("success")
    }


def test_an_export_tells_how_far_it_is(full: Cache, tmp_path: Path) -> None:
    events = Events()
    full.export_bundle(["one"], tmp_path / "w.tar", progress=events)
    check_progress(events.progress, "one")
    assert events.progress[-1]["status"] == "completed"


def test_the_command_prints_paths_alone(full: Cache, cache_root: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "w.tar", tmp_path / "other"
    done = run(cache_root, "bundle", "export", "one", "two@7", "-o", str(out), "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{out}\n", "")
    done = run(home, "bundle", "import", str(out), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done.stdout) == [f"{home}/models/one/1", f"{home}/models/two/7"]
    done = run(cache_root, "bundle", "export", "one", "-o", "-", "--json")
    assert done.returncode == 2
