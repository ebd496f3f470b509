"""What is wrong is named with the command that helps, and looking changes nothing (product G9)."""

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from caches import manifest_of, rot, run
from crash import begin, eventually

from modelcache.caching import Cache
from modelcache.testing import Content, Hold, Hub, Origin, Status

FILE = Content.generated(50_000, seed=8)
BIG = Content.generated(3 << 20, seed=9)
KEY = "sha256-" + "0" * 64
DAY = 86_400


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"a.bin": FILE, "big.bin": BIG}) as serving:
        yield serving


@pytest.fixture(autouse=True)
def _hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that answers: then there is nothing to tell of it."""
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield


@pytest.fixture
def home(origin: Origin, cache: Cache, cache_root: Path) -> Path:
    """A cache with one model, `m`."""
    cache.fetch(manifest_of(origin, {"a.bin": FILE}), progress=False)
    cache.close()
    return cache_root


def wrong(home: Path) -> list[str]:
    return [
        f"{row['check']}: {row['finding']}; {row['fix']}" for row in Cache(home).doctor() if row["level"] == "wrong"
    ]


def notes(home: Path) -> list[str]:
    return [f"{row['check']}: {row['finding']}; {row['fix']}" for row in Cache(home).doctor() if row["level"] == "note"]


def snapshot(home: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_ino) for path in home.rglob("*"))


def test_a_sound_cache_has_nothing_wrong_and_looking_changes_nothing(home: Path) -> None:
    before = snapshot(home)
    done = run("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing is wrong\n")
    assert snapshot(home) == before


def test_what_ls_calls_an_error_is_wrong_what_is_incomplete_is_not_and_remedies_name_the_version(
    origin: Origin, home: Path
) -> None:
    origin.faults(Status(404), path="big.bin")
    assert run("fetch", "--manifest", manifest_file(home, origin)).returncode != 0
    cache = Cache(home)
    ((name, status),) = {(f"{row['model']}@{row['version']}", row["status"]) for row in cache.models()} - {
        ("m@1", "ready")
    }
    assert (name, status, wrong(home)) == ("half@2", "incomplete", [])
    assert "models: half@2 is incomplete: lacks big.bin; fetch it again, with its manifest" in notes(home)
    assert run("path", "half").stderr.endswith("; it is incomplete: fetch it again, with its manifest\n")
    rot(Path(cache.path("m"), "a.bin"), 5)
    cache.verify("m")
    assert any(line.endswith("; modelcache repair m@1") for line in wrong(home))
    assert run("path", "m").stderr.endswith("`modelcache repair m@1`, or fetch it once more\n")


def test_what_a_hubs_model_lacks_is_fetched_by_its_ref(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commit = hub.publish("org/name", {"a.bin": FILE, "big.bin": BIG})
        hub.faults(Status(404), path=f"org/name/resolve/{commit}/big.bin")
        assert run("fetch", "hf:org/name", "--quiet").returncode == 4
    remedy = f"modelcache fetch hf:org/name@{commit}"
    assert f"models: hf--org--name@{commit} is incomplete: lacks big.bin; {remedy}" in notes(Path(cache.root))


def manifest_file(home: Path, origin: Origin) -> str:
    path = home.parent / "half.json"
    manifest = manifest_of(origin, {"a.bin": FILE, "big.bin": BIG}, model="half", version="2")
    path.write_text(json.dumps(manifest.to_json()))
    return str(path)


def test_a_cache_that_is_not_there_yet_has_nothing_wrong(cache_root: Path) -> None:
    assert run("doctor").returncode == 0
    assert not cache_root.exists()


def _corrupt(home: Path) -> None:
    rot(next((home / "models").glob("*/*/a.bin")), 5)
    Cache(home).verify()


def _missing(home: Path) -> None:
    next((home / "models").glob("*/*/a.bin")).unlink()


def _touched(home: Path) -> None:
    os.utime(next((home / "models").glob("*/*/a.bin")), (1, 1))


def _record(home: Path) -> None:
    (home / "models/m/1/.manifest.json").write_bytes(b"\0" * 100)


def _registry(home: Path) -> None:
    (home / "registry.json").write_bytes(b"[" * 10_000)


def _registered(home: Path) -> None:
    data = json.loads((home / "registry.json").read_bytes())
    data["models"]["ghost"] = {"versions": {"1": "ready"}, "default": "1"}
    (home / "registry.json").write_text(json.dumps(data))


def _link(home: Path) -> None:
    (home / "pieces").rename(home / "elsewhere") if (home / "pieces").exists() else (home / "elsewhere").mkdir()
    (home / "pieces").symlink_to(home / "elsewhere")


def _file_for_folder(home: Path) -> None:
    (home / "quarantine").write_text("")


def _open_to_all(home: Path) -> None:
    (home / "models").chmod(0o777)


def _blob_open(home: Path) -> None:
    for blob in (home / "blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o644)


def _stale(home: Path) -> None:
    folder = home / "partials" / f"{KEY}.0123456789abcdef"
    folder.mkdir()
    (folder / "data").write_bytes(b"x" * 5)
    (folder / "journal").write_text('{"format": 1, "model": "m"}\ns "a"\nw 0 5 0\n')
    for path in (folder / "data", folder / "journal", folder):
        os.utime(path, (time.time() - 8 * DAY,) * 2)


def _hopeless(home: Path) -> None:
    (home / "partials" / f"{KEY}.0123456789abcdef").mkdir()


def _lock_folder(home: Path) -> None:
    (home / "locks/model-x.lock").mkdir()


def _settings(home: Path) -> None:
    (home / "modelcache.toml").write_text("connections = 'many'")


FAULTS: list[tuple[Callable[[Path], None], str, str]] = [
    (_corrupt, "models: m@1: a.bin corrupt", "modelcache repair m"),
    (_missing, "models: m@1: a.bin missing", "modelcache repair m"),
    (_touched, "models: m@1 changed since it was verified", "modelcache verify m"),
    (_record, "records: the record of m@1 is garbage", "modelcache rm m@1"),
    (_registry, "registry: ", "rm -r "),
    (_registered, "registry: ghost@1 is registered, but has no record", "modelcache reset ghost"),
    (_link, "links: ", "rm "),
    (_file_for_folder, "folders: ", "rm "),
    (_open_to_all, "modes: everybody may write", "chmod o-w "),
    (_blob_open, "modes: ", "chmod a-w "),
    (_stale, "partials: unfinished download of m (5 bytes), not touched for 8 days", "modelcache clean"),
    (_hopeless, "partials: ", "modelcache clean"),
    (_lock_folder, "locks: ", "modelcache clean"),
    (_settings, "settings are right: /", "modelcache.toml: connections = 'many'"),
]


@pytest.mark.parametrize(("spoil", "finding", "fix"), FAULTS, ids=[fault.__name__.strip("_") for fault, _, _ in FAULTS])
def test_each_fault_is_one_line_with_the_command_that_helps(
    home: Path, origin: Origin, spoil: Callable[[Path], None], finding: str, fix: str
) -> None:
    spoil(home)
    found = wrong(home)
    assert any(line.startswith(finding) and fix in line for line in found), found
    done = run("doctor")
    assert (done.returncode, done.stderr) == (3, "")
    assert all(len(line) < 400 for line in done.stdout.splitlines())
    _take_the_advice(home, origin, [line.rpartition("; ")[2] for line in found])
    assert wrong(home) == []


def _take_the_advice(home: Path, origin: Origin, fixes: list[str]) -> None:
    """Runs the commands that were named; where words are, does what they say."""
    for fix in fixes:
        words = shlex.split(fix.rpartition(", or ")[2])
        if words[:1] == ["modelcache"]:
            run(*words[1:])
        elif words[:1] in (["rm"], ["chmod"]):
            assert os.spawnvp(os.P_WAIT, words[0], words) == 0
        else:
            (home / "modelcache.toml").unlink()


def test_what_is_worth_knowing_is_a_note_and_no_fault(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:geheim@proxy:3128/?x=geheim")
    monkeypatch.setenv("http_proxy", "user:geheim@proxy:3128")
    monkeypatch.setenv("all_proxy", "user:ge/heim@proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,::1,.corp")
    monkeypatch.setenv("MODELCACHE_CONECTIONS", "3")
    (home / "locks/model-dead.lock").touch()
    (home / "locks/model-dead.lock.json").write_text("{}")
    (home / "logs" / "x.jsonl").touch()
    os.utime(home / "logs" / "x.jsonl", (time.time() + 1000 * DAY,) * 2)
    told = "\n".join(notes(home))
    for text in ("HTTPS_PROXY is set: http://proxy:3128/", "http_proxy is set: proxy:3128",
                 "no_proxy is set: localhost,::1,.corp", "MODELCACHE_CONECTIONS is no setting", "holder was killed",
                 "x.jsonl: from the future"):  # fmt: skip
        assert text in told
    assert "heim" not in told
    assert run("doctor").returncode == 0


def test_who_holds_a_lock_is_named_and_a_suspended_one_is_wrong(home: Path, origin: Origin) -> None:
    hold = Hold(1 << 20)
    origin.faults(hold)
    child = begin(home, "fetch", origin.url("big.bin"), "--sha256", BIG.sha256, "--quiet")
    try:
        assert hold.reached.wait(60)
        assert eventually(lambda: any(f"is held by process {child.pid} on" in line for line in notes(home)))
        assert wrong(home) == []
        child.send_signal(signal.SIGSTOP)
        assert eventually(lambda: any(f"kill -CONT {child.pid}" in line for line in wrong(home)))
    finally:
        child.send_signal(signal.SIGCONT)
        hold.release.set()
        child.communicate(timeout=30)
    assert child.returncode == 0


def test_a_disk_without_room_is_wrong(small_disk: Path) -> None:
    (line,) = [line for line in wrong(small_disk) if line.startswith("space")]
    assert line.endswith("modelcache clean")


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads and writes everything")
def test_a_root_that_is_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert any("is no folder" in line for line in wrong(tmp_path / "file"))


@pytest.mark.parametrize("where", ["registry.json", "modelcache.toml", "locks", "logs", "models/m/1/.manifest.json"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "huge", "noise"])
def test_whatever_lies_anywhere_there_is_no_traceback(home: Path, tmp_path: Path, where: str, kind: str) -> None:
    place = home / where
    if place.is_dir():
        place.rename(tmp_path / "before")
    place.unlink(missing_ok=True)
    if kind == "folder":
        (place / "x").mkdir(parents=True)
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        place.symlink_to(tmp_path)
    else:
        place.write_bytes(os.urandom(1000))
        os.truncate(place, 1 << 36 if kind == "huge" else 1000)
    done = run("doctor", "--json")
    assert done.returncode in (0, 3), done.stderr
    assert "Traceback" not in done.stderr
    assert isinstance(json.loads(done.stdout), list)
