"""A download under way: its states, its ends, and what subscribers are told of it (product A9, A12, A13, H, I15)."""

import asyncio
import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from caches import Events, manifest_of, partials

from modelcache.caching import Cache
from modelcache.dispatch import Show
from modelcache.errors import AllSourcesFailedError, CancelledError, PausedError, UsageError
from modelcache.fetching import Request
from modelcache.filefetch import FileFetch
from modelcache.order import Order
from modelcache.outcome import File, Model
from modelcache.runtime import Runtime
from modelcache.states import EVENT_STATUS, RECORD_STATUS, REST_STATUS, STAGE, State, stage_text
from modelcache.testing import Content, Corrupt, Cut, Hold, Origin, Slow, Status
from modelcache.transfer.transfer import Transfer

CONTENT = Content.generated(3_000_000, seed=1)
FIELDS = {
    "type", "modelId", "bytesDownloaded", "bytesRemaining", "totalBytes", "downloadSpeed", "eta", "retryCount",
    "currentGateway", "status", "percentComplete", "completedFiles", "totalFiles", "timestamp", "file", "source",
    "gateway", "progress", "started", "done", "downloading", "error",
}  # fmt: skip


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.gguf": CONTENT}) as origin:
        yield origin


@pytest.fixture
def hold(origin: Origin) -> Hold:
    """The origin stops after 2 MB, once."""
    hold = Hold(2_000_000, times=1)
    origin.faults(hold)
    return hold


# -- pause, resume, cancel, retry -----------------------------------------------------------------------------------


def test_a_download_goes_through_its_states(cache: Cache, origin: Origin, hold: Hold) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert hold.reached.wait(60)
    assert download.state is State.DOWNLOADING
    assert download.state_text == "Downloading files..."
    with pytest.raises(TimeoutError, match="is still downloading after 0 s"):
        download.result(timeout=0)
    hold.release.set()
    file = download.result()
    assert (download.state, download.has_ended, download.state_text) == (State.READY, True, "Completed")
    assert download.to_json() == {
        "status": "completed", "total_bytes": 3_000_000, "downloaded_bytes": 3_000_000, "progress_percent": 100.0,
        "manifest_pulled": True, "resume_supported": True,
    }  # fmt: skip
    assert Path(file).read_bytes() == CONTENT.read()


def test_pause_keeps_every_byte_and_resume_fetches_the_rest(cache: Cache, origin: Origin, hold: Hold) -> None:
    download = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, wait=False)
    assert hold.reached.wait(60)
    download.pause()
    with pytest.raises(PausedError, match="was paused") as stop:
        download.result(60)
    assert (download.state, stop.value.exit_code) == (State.PAUSED, 130)
    kept = stop.value.kept_bytes
    assert 1_000_000 <= kept <= 2_000_000
    assert download.kept_bytes == kept
    download.resume()
    file = download.result(60)
    assert isinstance(file, File)
    assert (file.status, file.bytes_resumed, file.bytes_fetched) == ("resumed", kept, CONTENT.size - kept)
    assert [seen.range for seen in origin.requests] == [None, f"bytes={kept}-"]


def test_resume_while_a_pause_takes_effect_goes_on(cache: Cache, origin: Origin, hold: Hold) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert hold.reached.wait(60)
    download.pause()
    download.resume()
    assert Path(download.result(60)).read_bytes() == CONTENT.read()


def test_pause_after_that_resume_counts(cache: Cache, origin: Origin, hold: Hold) -> None:
    origin.heal()
    endless = Hold(1_000_000)
    origin.faults(endless)
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert endless.reached.wait(60)
    download.pause()
    download.resume()
    download.pause()
    with pytest.raises(PausedError):
        download.result(60)


def test_a_ready_download_is_left_alone(cache: Cache, origin: Origin) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    file = download.result(60)
    for act in (download.pause, download.resume, download.retry, download.cancel):
        act()
        assert (download.state, download.result()) == (State.READY, file)
    assert len(origin.requests) == 1


def test_cancel_removes_what_is_not_complete(cache: Cache, origin: Origin, hold: Hold) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert hold.reached.wait(60)
    assert partials(cache)
    download.cancel()
    with pytest.raises(CancelledError):
        download.result(60)
    assert not partials(cache)
    assert repr(download).endswith(" cancelled>") and download.state_text == "Cancelled"
    told, page = str(download.error.line()), download._repr_html_().rpartition("</style>")[2]  # type: ignore[union-attr]
    assert "kept" not in told + page and 'data-state="cancelled"' in page and "aused" not in page
    download.retry()
    assert download.result(60).status == "fetched"  # type: ignore[union-attr]


@pytest.mark.parametrize("paused_for_long", [True, False])
def test_cancel_counts_after_a_pause_too(cache: Cache, origin: Origin, hold: Hold, paused_for_long: bool) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert hold.reached.wait(60)
    download.pause()
    if paused_for_long:
        assert download.wait_stopped(20)
        assert partials(cache)
    download.cancel()
    with pytest.raises(CancelledError):
        download.result(60)
    assert not partials(cache)


def test_cancel_leaves_nothing_beside_an_output(cache: Cache, origin: Origin, hold: Hold, tmp_path: Path) -> None:
    place = tmp_path / "out" / "m.gguf"
    download = cache.fetch(origin.url("m.gguf"), wait=False, cache=False, output=place)
    assert hold.reached.wait(60)
    download.cancel()
    assert download.wait_stopped(20)
    assert list(place.parent.iterdir()) == []


def test_cancel_takes_nothing_away_from_another_download(cache: Cache, origin: Origin, cache_root: Path) -> None:
    """The partial of the same content, held by a model of another id."""
    origin.put("same.gguf", CONTENT)
    first, second = Hold(1_000_000, times=1), Hold(2_000_000, times=1)
    origin.faults(first, path="m.gguf")
    origin.faults(second, path="same.gguf")
    stopped = cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, wait=False)
    assert first.reached.wait(60)
    stopped.pause()
    assert stopped.wait_stopped(20)
    other = Cache(cache_root)
    going = other.fetch(origin.url("same.gguf"), sha256=CONTENT.sha256, wait=False)
    assert second.reached.wait(60)
    stopped.cancel()
    second.release.set()
    file = going.result(60)
    assert isinstance(file, File)
    assert file.bytes_resumed >= 900_000


def test_retry_after_a_failure(cache: Cache, origin: Origin) -> None:
    origin.faults(Status(404))
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    with pytest.raises(AllSourcesFailedError):
        download.result(60)
    assert (download.state, download.to_json()["status"]) == (State.FAILED, "failed")
    origin.heal()
    download.retry()
    assert Path(download.result(60)).read_bytes() == CONTENT.read()


def test_what_a_file_needed_on_its_way_goes_when_it_is_here(cache: Cache, origin: Origin) -> None:
    files = {f"{number}.bin": Content.generated(1000, seed=number) for number in range(20)}
    for path, content in files.items():
        origin.put(path, content)
    download = cache.fetch(manifest_of(origin, files), wait=False)
    download.result(60)
    gc.collect()
    left = sum(isinstance(one, Transfer) and one.file.path in files for one in gc.get_objects())
    assert left == 0
    assert (download.progress.completed_files, download.progress.bytes_downloaded) == (20, 20_000)


def test_a_download_that_finds_everything_is_ready_at_once(cache: Cache, origin: Origin) -> None:
    file = cache.fetch(origin.url("m.gguf"))
    told = Events()
    download = cache.fetch(origin.url("m.gguf"), wait=False, progress=told)
    assert download.state is State.READY
    assert download.result().path == file.path
    assert download.wait_stopped(0)
    assert [event["type"] for event in told.all] == ["completed", "model_download_progress", "download_complete"]
    assert (told.progress[0]["percentComplete"], told.progress[0]["source"]) == (100.0, "cache")
    cache.fetch(origin.url("m.gguf"), progress=told)
    assert len(told.of("download_complete")) == 2


def test_closing_a_cache_pauses_what_runs(cache: Cache, origin: Origin, hold: Hold) -> None:
    download = cache.fetch(origin.url("m.gguf"), wait=False)
    assert hold.reached.wait(60)
    cache.close()
    assert download.state is State.PAUSED


# -- awaited ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A disk that answers when the second is set; the first is, when it is asked."""
    asked, answers = threading.Event(), threading.Event()
    at_hand = Request.at_hand

    def slow(request: Request, progress: Show) -> tuple[Order, Model | File | None]:
        asked.set()
        assert answers.wait(30)
        return at_hand(request, progress)

    monkeypatch.setattr(Request, "at_hand", slow)
    yield asked, answers
    answers.set()


@pytest.mark.parametrize("is_here", [False, True])
def test_an_event_loop_waits_for_no_disk_while_a_fetch_begins(
    cache: Cache, origin: Origin, request: pytest.FixtureRequest, is_here: bool
) -> None:
    if is_here:
        cache.fetch(origin.url("m.gguf"))
    asked, answers = request.getfixturevalue("looking")

    async def begins() -> File:
        task = asyncio.create_task(cache.afetch(origin.url("m.gguf")))
        assert await asyncio.to_thread(asked.wait, 60)
        answers.set()  # nobody would, if the loop waited
        file = await task
        assert isinstance(file, File)
        return file

    assert asyncio.run(begins()).status == ("hit" if is_here else "fetched")


def test_a_task_that_is_cancelled_while_its_fetch_begins_leaves_nothing_under_way(
    cache: Cache, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()
    monkeypatch.setattr(Runtime, "make_root", lambda _: (asked.set(), answers.wait(30)))

    async def cancelled() -> None:
        task = asyncio.create_task(cache.afetch(origin.url("m.gguf")))
        assert await asyncio.to_thread(asked.wait, 60)
        task.cancel()
        await asyncio.wait([task])
        answers.set()

    asyncio.run(cancelled())  # its threads have ended then
    assert (cache._roots.running(), origin.requests) == ([], [])


def test_what_is_here_is_given_to_a_task_without_a_download_or_a_database(cache: Cache, origin: Origin) -> None:
    url = origin.url("m.gguf")
    cache.fetch(url)
    child = f"import asyncio, modelcache, sys; print(asyncio.run(modelcache.afetch({url!r})).status, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.split()
    assert done[0] == "hit"
    assert set(done).isdisjoint({"requests", "filelock", "sqlite3", "modelcache.download"})


def test_who_awaits_again_goes_on_with_what_a_cancelled_await_paused(cache: Cache, origin: Origin, hold: Hold) -> None:
    async def twice() -> File:
        download = cache.fetch(origin.url("m.gguf"), wait=False)
        assert await asyncio.to_thread(hold.reached.wait, 60)
        waiter = asyncio.ensure_future(download)
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.wait([waiter])
        assert (await asyncio.to_thread(download.wait_stopped, 60), download.state) == (True, State.PAUSED)
        hold.release.set()
        return await asyncio.wait_for(download, 60)

    assert asyncio.run(twice()).size == CONTENT.size
    assert origin.requests[-1].range is not None


def test_only_the_last_task_that_is_cancelled_pauses(cache: Cache, origin: Origin, hold: Hold) -> None:
    async def two() -> tuple[State, File]:
        download = cache.fetch(origin.url("m.gguf"), wait=False)
        first, second = asyncio.ensure_future(download), asyncio.ensure_future(download)
        assert await asyncio.to_thread(hold.reached.wait, 60)
        first.cancel()
        await asyncio.wait([first])
        state = download.state
        hold.release.set()
        return state, await asyncio.wait_for(second, 60)

    state, file = asyncio.run(two())
    assert (state, file.size, len(origin.requests)) == (State.DOWNLOADING, CONTENT.size, 1)


def test_what_a_person_paused_waits_for_resume_though_it_is_awaited_again(
    cache: Cache, origin: Origin, hold: Hold
) -> None:
    async def again() -> tuple[bool, State, File]:
        download = cache.fetch(origin.url("m.gguf"), wait=False)
        assert await asyncio.to_thread(hold.reached.wait, 60)
        download.pause()
        assert await asyncio.to_thread(download.wait_stopped, 60)
        hold.release.set()
        waiter = asyncio.ensure_future(download)
        await asyncio.sleep(0)
        was = waiter.done(), download.state
        download.resume()
        return *was, await asyncio.wait_for(waiter, 60)

    done, state, file = asyncio.run(again())
    assert (done, state, file.size) == (False, State.PAUSED, CONTENT.size)


# -- events ---------------------------------------------------------------------------------------------------------


def test_every_progress_event_has_every_field(cache: Cache, origin: Origin) -> None:
    origin.faults(Cut(1_000_000, times=1), Slow(2_000_000))
    told = Events()
    url = origin.url("m.gguf")
    cache.fetch(url, sha256=CONTENT.sha256, progress=told)
    model = cache.models().rows[0]["model"]
    for event in told.progress:
        assert set(event) == FIELDS
        assert event["modelId"] == model
        assert event["bytesRemaining"] == event["totalBytes"] - event["bytesDownloaded"]
        assert event["progress"] == event["percentComplete"]
        assert event["downloading"] == (event["status"] == "downloading")
        assert event["started"] is True
    running = [event for event in told.progress if event["status"] == "downloading"]
    assert running[-1]["file"] == "m.gguf"
    assert running[-1]["gateway"] == running[-1]["currentGateway"] == url
    assert running[-1]["source"] == "http"
    assert running[-1]["retryCount"] == 1
    assert all(event["downloadSpeed"] > 0 for event in running)
    assert all(event["eta"] > 0 for event in running if event["bytesRemaining"] > 1_000_000)
    assert told.progress[0]["status"] == "attempting"
    assert [event["status"] for event in told.progress][-2:] == ["success", "completed"]


def test_the_last_words_of_a_download(cache: Cache, origin: Origin) -> None:
    told = Events()
    file = cache.fetch(origin.url("m.gguf"), progress=told)
    last, complete = told.all[-2:]
    assert (last["started"], last["done"], last["downloading"], last["status"]) == (True, True, False, "completed")
    assert (last["error"], last["percentComplete"], last["bytesRemaining"]) == ("", 100.0, 0)
    assert (last["completedFiles"], last["totalFiles"]) == (1, 1)
    assert set(complete) == {"type", "downloadId", "filepath"}
    assert (complete["type"], complete["filepath"]) == ("download_complete", str(file))
    assert not any(event["done"] for event in told.progress[:-1])


def test_the_last_words_of_a_failure(cache: Cache, origin: Origin) -> None:
    origin.faults(Corrupt((7,)))
    told = Events()
    with pytest.raises(AllSourcesFailedError) as failure:
        cache.fetch(origin.url("m.gguf"), sha256=CONTENT.sha256, progress=told)
    last = told.all[-1]
    assert (last["done"], last["status"], last["error"]) == (True, "error", str(failure.value))
    assert (last["started"], last["downloading"]) == (True, False)
    assert not told.of("download_complete")
    assert told.of("error")[0]["message"] == failure.value.line()


def test_the_last_words_of_a_pause(cache: Cache, origin: Origin, hold: Hold) -> None:
    told = Events()
    download = cache.fetch(origin.url("m.gguf"), wait=False, progress=told)
    assert hold.reached.wait(60)
    download.pause()
    assert download.wait_stopped(20)
    assert (told.all[-1]["status"], told.all[-1]["done"]) == ("paused", True)
    hold.release.set()
    download.resume()
    download.result(60)
    assert told.all[-1]["type"] == "download_complete"


def test_an_empty_file_is_complete_at_100_percent(cache: Cache, origin: Origin) -> None:
    origin.put("empty", b"")
    told = Events()
    assert cache.fetch(origin.url("empty"), progress=told, sha256=hashlib.sha256().hexdigest()).size == 0
    assert [event["percentComplete"] for event in told.progress][-2:] == [100.0, 100.0]


def test_bytes_are_of_the_file_and_counts_of_the_model(cache: Cache, origin: Origin) -> None:
    files = {f"part-{index}": Content.generated(100_000 + index, seed=index) for index in range(5)}
    for path, content in files.items():
        origin.put(path, content)
    told = Events()
    cache.fetch(manifest_of(origin, files), progress=told)
    ends = [event for event in told.progress if event["status"] == "success"]
    assert {event["file"]: event["totalBytes"] for event in ends} == {path: file.size for path, file in files.items()}
    assert all(event["bytesDownloaded"] == event["totalBytes"] for event in ends)
    assert {event["totalFiles"] for event in told.progress} == {5}
    assert ends[-1]["completedFiles"] == 5
    assert told.progress[-1]["totalBytes"] == sum(file.size for file in files.values())


def test_progress_comes_often_enough_and_not_too_often(cache: Cache, origin: Origin) -> None:
    """Between two events while bytes move at most 0.5 s, and at most 10 in a second; by their own clock."""
    files = {f"part-{index}": Content.generated(400_000, seed=index) for index in range(6)}
    for path, content in files.items():
        origin.put(path, content)
    origin.faults(Slow(250_000))
    told = Events()
    Cache(cache.root, parallel_files=6).fetch(manifest_of(origin, files), progress=told)
    times = [event["timestamp"] for event in told.progress if event["status"] in ("attempting", "downloading")]
    assert max(later - earlier for earlier, later in pairwise(times)) <= 500
    assert all(sum(start <= moment < start + 1000 for moment in times) <= 10 for start in times)
    assert {event["file"] for event in told.progress if event["status"] == "downloading"} == set(files)


def test_subscribers_are_told_of_their_own_download_alone(cache: Cache, origin: Origin) -> None:
    origin.put("other.gguf", Content.generated(500_000, seed=9))
    mine, others, all_told = Events(), Events(), Events()
    unsubscribe = cache.on_event(all_told)
    one = cache.fetch(origin.url("m.gguf"), wait=False, progress=mine)
    two = cache.fetch(origin.url("other.gguf"), wait=False, progress=others)
    paths = {one.result(60).path, two.result(60).path}
    assert [event["filepath"] for event in mine.of("download_complete")] == [one.result().path]
    assert {event["modelId"] for event in others.all if "modelId" in event} == {two.order.id}
    assert {event["filepath"] for event in all_told.of("download_complete")} == paths
    unsubscribe()
    count = len(all_told.all)
    cache.remove(origin.url("m.gguf"))
    assert len(all_told.all) == count


def test_a_failing_subscriber_harms_nobody(cache: Cache, origin: Origin, caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: dict[str, object]) -> None:
        raise SystemExit(event["type"])

    told = Events()
    cache.on_event(fails)
    cache.on_event(told)
    cache.fetch(origin.url("m.gguf"))
    assert told.all[-1]["type"] == "download_complete"
    assert "a subscriber failed" in caplog.text


def test_a_stuck_subscriber_stops_no_download(cache: Cache, origin: Origin) -> None:
    stuck = threading.Event()
    cache.on_event(lambda _: stuck.wait(30) and None)
    try:
        assert Path(cache.fetch(origin.url("m.gguf"))).read_bytes() == CONTENT.read()
    finally:
        stuck.set()


def test_a_subscriber_may_ask_the_download(cache: Cache, origin: Origin) -> None:
    seen: list[str] = []

    def ask(event: dict[str, object]) -> None:
        if event["type"] == "installed":
            seen.append(cache.path(origin.url("m.gguf")))

    assert seen == [] or seen
    file = cache.fetch(origin.url("m.gguf"), progress=ask)
    assert seen == [str(file)]


# -- fork and interrupts --------------------------------------------------------------------------------------------

FORK = """if True:
    import os, sys
    from modelcache.caching import Cache
    url, release = sys.argv[1:]
    cache = Cache()
    cache.on_event(lambda event: None)
    download = cache.fetch(url, wait=False)
    while download.progress.bytes_downloaded < 1_000_000:
        download.wait_stopped(0.01)
    child = os.fork()
    if child == 0:
        from modelcache.errors import UsageError, ModelNotAvailableError
        for act in (download.result, download.pause, lambda: download.progress):
            try:
                act()
            except UsageError:
                continue
            os._exit(11)
        try:
            cache.path(url)
        except ModelNotAvailableError as error:
            print("child", error.reason, flush=True)
        import urllib.request
        urllib.request.urlopen(release).read()
        file = cache.fetch(url)  # waits for the parent's download, and uses it
        print("child", file.status, cache.path(url) == file.path, flush=True)
        sys.exit(7)
    status = os.waitpid(child, 0)[1]
    print("parent", os.waitstatus_to_exitcode(status), download.result().status)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork_the_child_starts_anew(cache: Cache, origin: Origin, hold: Hold) -> None:
    with Origin({"go": b"go"}) as signals:
        released = Hold(0)
        signals.faults(released)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", FORK, origin.url("m.gguf"), signals.url("go")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert released.reached.wait(30)
        released.release.set()
        hold.release.set()
        output, errors = process.communicate(timeout=30)
    assert output.split("\n")[:-1] == ["child downloading", "child hit True", "parent 7 fetched"], errors
    assert len(origin.requests) == 1


INTERRUPT = """if True:
    import signal, sys
    from modelcache.caching import Cache
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a kernel; these tests may run in the background
    cache = Cache()
    try:
        cache.fetch(sys.argv[1], sha256=sys.argv[2])
    except KeyboardInterrupt as interrupt:
        print(interrupt.__notes__[0], flush=True)
    file = cache.fetch(sys.argv[1], sha256=sys.argv[2])
    print(file.status, file.bytes_resumed, flush=True)
"""


def test_after_an_interrupt_the_same_kernel_can_go_on(origin: Origin, hold: Hold) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPT, origin.url("m.gguf"), CONTENT.sha256], stdout=subprocess.PIPE, text=True
    )
    assert hold.reached.wait(60)
    os.kill(process.pid, signal.SIGINT)
    first, second = process.communicate(timeout=60)[0].splitlines()
    kept = int(first.split(" bytes kept")[0].replace(",", ""))
    assert second == f"resumed {kept}"
    assert 1_000_000 <= kept <= 2_000_000


# -- words ----------------------------------------------------------------------------------------------------------


def test_every_state_has_its_word_in_every_interface() -> None:
    table = {
        "pending": ("pending", "downloading", "starting", "attempting"),
        "resolving": ("in_progress", "downloading", "pulling_manifest", "attempting"),
        "downloading": ("in_progress", "downloading", "downloading", "downloading"),
        "resuming": ("resuming", "downloading", "downloading", "downloading"),
        "verifying": ("in_progress", "downloading", "verifying", "downloading"),
        "installing": ("in_progress", "downloading", "writing_manifest", "downloading"),
        "ready": ("success", "completed", "completed", "completed"),
        "paused": ("paused", "failed", "error", "paused"),
        "failed": ("failed", "failed", "error", "error"),
    }
    assert table == {
        state.value: (RECORD_STATUS[state], REST_STATUS[state], STAGE[state], EVENT_STATUS[state]) for state in State
    }
    assert [stage_text(state, "ghcr.io") for state in list(State)[:6]] == [
        "Waiting for manifest...", "Pulling manifest from ghcr.io...", "Downloading model layers...",
        "Downloading model layers...", "Verifying download integrity...", "Writing model manifest...",
    ]  # fmt: skip


def test_wait_needs_no_unpacking(cache: Cache, origin: Origin) -> None:
    with pytest.raises(UsageError, match="unpacking waits"):
        cache.fetch(origin.url("m.gguf"), wait=False, unpack=True)  # type: ignore[call-overload]


def test_a_bug_of_ours_is_told_by_its_kind_alone(tmp_path, monkeypatch) -> None:
    """The text of a foreign error may hold a whole URL, with its secrets (I22)."""
    events: list[dict] = []
    cache = Cache(tmp_path)
    cache.on_event(events.append)
    url = "http://127.0.0.1:9/m.bin?token=s3cret"

    def broken(_: FileFetch) -> None:
        raise LookupError(url)

    monkeypatch.setattr(FileFetch, "run", broken)
    with pytest.raises(LookupError):
        cache.fetch(url, progress=False)
    last = [event for event in events if event.get("done")][-1]
    assert (last["status"], last["error"]) == ("error", "a bug in modelcache: LookupError")
    assert "s3cret" not in str(events)


def test_a_fetch_that_got_no_byte_leaves_no_partial(cache: Cache, origin: Origin) -> None:
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("nowhere"))
    assert not list(Path(cache.root, "partials").iterdir())
