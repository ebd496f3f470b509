"""A root that a group shares: two accounts, whatever their umask, use what the other one made."""

import json
import os
import pkgutil
import shutil
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from threading import Event
from typing import Any

import ownjobs  # noqa: F401 - nothing can be imported after the fork
import pytest
from caches import manifest_of, rot, run
from crash import eventually, partial_bytes

import modelcache
from modelcache.caching import Cache
from modelcache.errors import StoreError, UsageError
from modelcache.jobs.overview import history
from modelcache.jobs.runner import Runner
from modelcache.jobs.schedule import Schedule
from modelcache.model import Digest
from modelcache.queueing import Queue
from modelcache.rows import Report
from modelcache.state.downloads import request_of
from modelcache.state.place import Place
from modelcache.store import links
from modelcache.store.disk import make_root
from modelcache.testing import Content, Hold, Origin

MIB = 1 << 20
FILE = Content.generated(9 * MIB + 5, seed=31)
GROUP, ANNA, BERT = 61_000, 61_001, 61_002
UMASKS = {ANNA: 0o077, BERT: 0o022}


@pytest.fixture
def home() -> Iterator[Path]:
    """Where the group may make its root: not below what pytest keeps for one account."""
    place = Path(tempfile.mkdtemp())
    os.chmod(place, 0o777)
    yield place / "home"
    shutil.rmtree(place)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "n.bin": FILE}) as origin:
        yield origin


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An account without rights to this interpreter's folder imports nothing after the fork."""
    for module in pkgutil.walk_packages(modelcache.__path__, "modelcache."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    with Origin({"w.bin": Content.generated(1000)}) as origin:
        cache = Cache(tmp_path_factory.mktemp("warm"))
        cache.fetch(origin.url("w.bin"), progress=False)
        cache.verify()
        cache.clean()
        cache.downloads()
        cache.doctor()
        cache.report().to_html(tmp_path_factory.mktemp("warm") / "page.html")
        cache.publish_metrics()
        cache.close()


def begun(account: int, work: Callable[[], Any]) -> tuple[int, int]:
    """A process of an account that does this: its id, and where its answer can be read."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(account)
        os.umask(UMASKS[account])
        answer = {"is": work()}
    except BaseException:  # noqa: BLE001 - told to the test
        answer = {"error": traceback.format_exc()}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)


def done_by(account: int, work: Callable[[], Any]) -> Any:
    pid, reading = begun(account, work)
    with open(reading, "rb") as stream:
        answer = json.loads(stream.read())
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["is"]


def with_cache(home: Path, work: Callable[[Cache], Any]) -> Callable[[], Any]:
    def worked() -> Any:
        cache = Cache(home, shared=True, connections=1)
        try:
            return work(cache)
        finally:
            cache.close()

    return worked


def fetching(home: Path, origin: Origin, name: str = "m.bin", digest: bool = True) -> Callable[[], Any]:
    def fetch(cache: Cache) -> Any:
        file = cache.fetch(origin.url(name), sha256=FILE.sha256 if digest else None, progress=False)
        return [file.status, Path(file.path).read_bytes() == FILE.read(0, FILE.size)]

    return with_cache(home, fetch)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act for two accounts")


def modes(home: Path) -> set[tuple[str, int]]:
    """Kinds and modes of all that is not one account's own."""
    found = set()
    for path in [home, *home.rglob("*")]:
        mode = path.lstat().st_mode
        if not any(part.startswith(("queue", f"{os.uname().nodename}-")) for part in path.relative_to(home).parts):
            found.add(("folder" if stat.S_ISDIR(mode) else "file", stat.S_IMODE(mode)))
    return found


@needs_root
def test_what_one_account_fetched_is_a_hit_for_the_other(home: Path, origin: Origin) -> None:
    assert done_by(ANNA, fetching(home, origin)) == ["fetched", True]
    assert modes(home) == {("folder", 0o2775), ("file", 0o664), ("file", 0o444)}
    asked = len(origin.requests)
    assert done_by(BERT, fetching(home, origin)) == ["hit", True]
    assert len(origin.requests) == asked
    assert done_by(BERT, fetching(home, origin, "n.bin")) == ["linked", True]  # another model with that content
    assert len(origin.requests) == asked
    assert modes(home) == {("folder", 0o2775), ("file", 0o664), ("file", 0o444)}
    assert {path.lstat().st_gid for path in home.rglob("*")} == {GROUP}
    assert done_by(BERT, with_cache(home, lambda cache: [row["finding"] for row in cache.verify()])) == ["whole"] * 2
    checks = done_by(BERT, with_cache(home, lambda cache: [row["check"] for row in cache.doctor()]))
    assert checks == ["network"]  # there is no hub here


@needs_root
def test_one_account_resumes_what_was_killed_of_the_other(home: Path, origin: Origin) -> None:
    hold = Hold(6 * MIB, times=1)
    origin.faults(hold, path="m.bin")
    pid, reading = begun(ANNA, fetching(home, origin))
    assert hold.reached.wait(60)
    assert eventually(lambda: partial_bytes(home / "partials") > 4 * MIB)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(reading)
    hold.release.set()
    before = len(origin.requests)
    assert done_by(BERT, fetching(home, origin)) == ["resumed", True]
    assert sum(seen.bytes_sent for seen in origin.requests[before:]) < FILE.size - 3 * MIB
    assert list((home / "partials").iterdir()) == []


@needs_root
def test_one_account_repairs_removes_and_cleans_what_the_other_installed(home: Path, origin: Origin) -> None:
    manifest = manifest_of(origin, {"m.bin": FILE}, piece=MIB)

    def fetch(cache: Cache) -> str:
        return str(cache.fetch(manifest, progress=False).files[0].path)

    def mend(cache: Cache) -> Any:
        findings = [row["finding"] for row in cache.verify()]
        return [findings, [row["repaired"] for row in cache.repair()], [row["finding"] for row in cache.verify()]]

    place = Path(done_by(ANNA, with_cache(home, fetch)))
    rot(place, 5 * MIB)
    before = len(origin.requests)
    assert done_by(BERT, with_cache(home, mend)) == [["corrupt"], [True], ["whole"]]
    assert sum(seen.bytes_sent for seen in origin.requests[before:]) <= 2 * MIB
    assert place.read_bytes() == FILE.read(0, FILE.size)
    rot(place, 7 * MIB)
    assert done_by(ANNA, with_cache(home, mend)) == [["corrupt"], [True], ["whole"]]

    def clean(cache: Cache) -> Any:
        return [row for row in cache.clean() if not row["removed"]]

    os.chown(home / "quarantine", ANNA, GROUP)
    assert done_by(BERT, lambda: clean(Cache(home, quarantine_age=0, temporary_age=0, log_age=0))) == []
    assert list((home / "quarantine").iterdir()) == []
    assert done_by(BERT, with_cache(home, lambda cache: cache.remove("m")[0]["size"])) > 0
    assert done_by(ANNA, with_cache(home, lambda cache: len(cache.models()))) == 0


@needs_root
def test_a_job_that_was_killed_of_one_account_is_taken_over_by_the_other(home: Path) -> None:
    def killed(cache: Cache) -> None:
        Runner(cache).run(Schedule("mine", "ownjobs:dies"), "20260110T0200Z", Event())

    def over(cache: Cache) -> Any:
        run = Runner(cache).run(Schedule("mine", "ownjobs:finds"), "20260110T0200Z", Event())
        return [run.status, run.attempt, [row["status"] for row in history(cache)]]

    pid, reading = begun(ANNA, with_cache(home, killed))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(reading)
    assert done_by(BERT, with_cache(home, over)) == ["findings", 2, ["findings"]]
    assert modes(home) == {("folder", 0o2775), ("file", 0o664)}


@needs_root
def test_a_copy_that_was_killed_of_one_account_is_made_anew_by_the_other(home: Path, origin: Origin) -> None:
    blob, output, sha256 = home / "blob", home / "out", Digest("sha256", FILE.sha256)

    def begin(cache: Cache) -> None:
        cache.fetch(origin.url("m.bin"), progress=False)
        blob.write_bytes(FILE.read(0, FILE.size))
        blob.chmod(0o444)
        links._own(f"{home}/.out.{sha256.hex[:16]}.modelcache", str(output))  # the end of its process is the kill

    def copy(_: Cache) -> str:
        links.copy(str(blob), str(output), sha256, 0o444)
        return str(output.stat().st_uid)

    done_by(ANNA, with_cache(home, begin))
    assert [path.name for path in home.glob(".*.modelcache")] != []
    assert done_by(BERT, with_cache(home, copy)) == str(BERT)
    assert output.read_bytes() == FILE.read(0, FILE.size)
    assert list(home.glob(".*.modelcache")) == []


@needs_root
@pytest.mark.parametrize("which", range(6))
def test_a_kill_while_a_folder_is_made_keeps_nobody_out(home: Path, origin: Origin, which: int) -> None:
    def killed() -> None:
        change, left = os.chmod, which

        def chmod(path: str, mode: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            change(path, mode)

        os.chmod = chmod  # type: ignore[assignment]
        fetching(home, origin)()

    pid, reading = begun(ANNA, killed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(reading)
    status, is_right = done_by(BERT, fetching(home, origin))
    assert is_right and status in ("fetched", "resumed", "linked"), "which folder is the last one threads decide"
    assert done_by(ANNA, fetching(home, origin)) == ["hit", True]


@needs_root
def test_history_and_queue_stay_the_account_s_own(home: Path, origin: Origin) -> None:
    def asked(cache: Cache) -> Any:
        Queue(cache).add(origin.url("n.bin") + "?token=s3cret")
        cache.fetch(origin.url("m.bin"), progress=False)
        return [len(cache.downloads()), len(Queue(cache))]

    assert done_by(ANNA, with_cache(home, asked)) == [1, 1]
    assert done_by(BERT, with_cache(home, lambda cache: [len(cache.downloads()), len(Queue(cache))])) == [0, 0]
    assert done_by(BERT, with_cache(home, asked)) == [0, 1]  # a hit is no download
    holding = [path for path in home.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert sorted(path.name for path in holding) == [f"queue-{ANNA}.json", f"queue-{BERT}.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}


@needs_root
def test_what_one_account_asked_for_in_the_other_s_name_is_not_done(home: Path, origin: Origin) -> None:
    private = home.parent / "private"
    done_by(ANNA, lambda: private.mkdir(mode=0o700))
    done_by(ANNA, with_cache(home, lambda cache: Queue(cache).add(origin.url("m.bin")) and None))

    def forge(cache: Cache) -> None:
        Queue(cache).add(origin.url("n.bin"), output=private / "n.bin", cache=False)
        (home / f"queue-{BERT}.json").chmod(0o644)
        (home / f"queue-{BERT}.json").rename(home / f"queue-{ANNA}.json")

    def refusal(cache: Cache) -> str:
        with pytest.raises(StoreError) as caught:
            Queue(cache).run(progress=False)
        return caught.value.line()

    done_by(BERT, with_cache(home, forge))
    assert "another account" in done_by(ANNA, with_cache(home, refusal))
    assert list(private.iterdir()) == []


@needs_root
def test_another_account_s_request_is_not_gone_on_with(home: Path) -> None:
    def put() -> None:
        (home / "a.requests").mkdir()
        (home / "a.requests").chmod(0o2775)
        (home / "a.requests" / "1.json").write_text("{}")
        (home / "a.requests" / "1.json").chmod(0o644)

    place = Place(str(home / "a.db"), str(home / "a.requests"), "host")
    done_by(ANNA, lambda: make_root(str(home)))
    done_by(ANNA, put)
    assert done_by(ANNA, lambda: request_of(place, "1")) == "{}"
    assert done_by(BERT, lambda: request_of(place, "1")) == ""


def test_a_root_that_is_one_account_s_is_not_shared_by_saying_so(tmp_path: Path, origin: Origin) -> None:
    root = tmp_path / "home"
    Cache(root).fetch(origin.url("m.bin"), progress=False)
    with pytest.raises(UsageError, match="shared = true, but"):
        Cache(root, shared=True).fetch(origin.url("n.bin"), progress=False)
    done = run("doctor", MODELCACHE_HOME=str(root), MODELCACHE_SHARED="true")
    assert (done.returncode, "is not a group's" in done.stdout) == (3, True)
    fix = next(row["fix"] for row in Cache(root, shared=True).doctor() if row["check"] == "modes")
    assert os.system(fix) == 0
    assert not [row for row in Cache(root, shared=True).doctor() if row["check"] == "modes"]


def test_without_the_setting_everything_is_its_owner_s(tmp_path: Path, origin: Origin) -> None:
    root = tmp_path / "home"
    Cache(root).fetch(origin.url("m.bin"), progress=False)
    assert modes(root) <= {("folder", 0o700), ("file", 0o600), ("file", 0o444), ("file", 0o644)}


@pytest.mark.parametrize("value", ["yes", "2", "TRUE"])
def test_a_truth_is_true_or_false(value: str) -> None:
    assert run("doctor", MODELCACHE_SHARED=value).stdout.count("true or false is expected") == 1


@needs_root
def test_each_account_publishes_what_it_did_into_a_folder_of_its_own(home: Path, origin: Origin) -> None:
    def publishing(cache: Cache) -> list[Any]:
        cache.fetch(origin.url("m.bin"), progress=False)
        cache.publish_metrics()
        found = cache.report(by="layer")
        found.to_html(home.parent / f"{os.geteuid()}.html")
        return [[row["key"] for row in found], list(found.notes)]

    assert done_by(ANNA, with_cache(home, publishing)) == [["http"], []]
    assert done_by(BERT, with_cache(home, publishing)) == [["cache"], []]
    assert "Without what other accounts did" in (home.parent / f"{BERT}.html").read_text()
    folders = [home / "reports" / str(account) for account in (ANNA, BERT)]
    assert sorted((home / "reports").iterdir()) == sorted(folders)
    assert {stat.S_IMODE(path.stat().st_mode) for folder in folders for path in folder.iterdir()} == {0o664}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (home / "reports", *folders)} == {0o2775}
    sheets = [next(folder.glob("downloads-*.csv")).read_text() for folder in folders]
    assert [sheet.count(",hit,") for sheet in sheets] == [0, 1] and ",success," in sheets[0]


@needs_root
@pytest.mark.parametrize("is_rotten", [False, True])
def test_a_record_that_cannot_be_written_takes_no_turn_from_other_models(home: Path, is_rotten: bool) -> None:
    def add(cache: Cache) -> str:
        source, places = home.parent / "w.bin", []
        for name in ("a", "b", "c"):
            source.write_bytes(Content.generated(1000, seed=ord(name)).read())
            places.append(cache.add(source, name).path)
        return places[0]

    def sweep(cache: Cache) -> list[dict[str, str]]:
        days = (time.time() + days * 86_400 for days in (11, 12, 13, 14, 22))
        reports = [cache.sweep(share="1/3", clock=lambda day=day: day) for day in days]  # type: ignore[misc]
        return [{row["model"]: row["finding"] for row in report} for report in reports]

    def mended(cache: Cache) -> Report:
        return cache.sweep(repair=True, clock=lambda: time.time() + 23 * 86_400)

    os.chmod(home.parent, 0o777)
    place = Path(done_by(ANNA, with_cache(home, add)))
    if is_rotten:
        rot(place / "w.bin", 5)
    for path in (place, *place.iterdir()):
        os.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() else 0o644)
    found = done_by(BERT, with_cache(home, sweep))
    known = {"a": "corrupt"} if is_rotten else {}
    a = known or {"a": "whole"}
    assert found == [a, {"b": "whole"} | known, {"c": "whole"} | known, known, a]
    for path in (place, *place.iterdir()):  # as if what kept the record from being written had been a full disk
        os.chown(path, BERT, GROUP)
    again = done_by(
        BERT, with_cache(home, lambda cache: [row["reason"] for row in mended(cache) if row["finding"] != "whole"])
    )
    assert [("not repaired" in reason) for reason in again] == [True] * is_rotten
