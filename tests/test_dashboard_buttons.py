"""The buttons of a dashboard: what each does to a real cache, that what removes takes two presses, and what is left
when it ends. Outside a kernel ipywidgets talks to nobody; all else is as it is in one."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from caches import manifest_of, partials, rot, start
from crash import eventually

from modelcache.caching import Cache
from modelcache.errors import ModelCacheError, UsageError
from modelcache.notebook.controls import SURE_S, Deed, Line, Lines, Press, Works
from modelcache.notebook.live import LISTS_EVERY_S, STORE_EVERY_S, Live, Reader
from modelcache.queueing import Queue
from modelcache.testing import Content, Cut, Origin, Stall, Status

pytest.importorskip("ipywidgets")
FILE, OTHER = Content.generated(3_000_000, seed=3), Content.generated(200_000, seed=4)
HALF = 1_500_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"m.bin": FILE, "other.bin": OTHER}) as origin:
        yield origin


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(cache: Cache, clock: Clock) -> Iterator[Callable[[], "Board"]]:
    """Opens a dashboard; all end with the test."""
    with contextlib.ExitStack() as stack:

        def new() -> Board:
            live = Live(cache, clock)
            stack.callback(live.end)
            return Board(live)

        yield new


class Board:
    """A dashboard, as a person sees and presses it."""

    def __init__(self, live: Live) -> None:
        self.live = live

    @property
    def said(self) -> str:
        return str(self.live.view.html["said"].value)

    def buttons(self) -> dict[str, Any]:
        """By what they say: each that is shown."""
        found, waiting = {}, [self.live.view.root]
        while waiting:
            widget = waiting.pop(0)
            if widget.layout.display == "none":
                continue
            waiting += getattr(widget, "children", ())
            if type(widget).__name__ == "Button":
                found[widget.description] = widget
        return found

    def press(self, label: str) -> None:
        """As soon as it can be."""
        found: list[Any] = []

        def is_there() -> bool:
            found[:] = [button for words, button in self.buttons().items() if words == label and not button.disabled]
            return bool(found)

        assert eventually(is_there), [*self.buttons()]
        found[0].click()

    def says(self, words: str) -> bool:
        return eventually(lambda: words in self.said) or pytest.fail(f"{words!r} is not in {self.said!r}")


def cut_at_half(cache: Cache, origin: Origin) -> None:
    origin.faults(Cut(HALF, times=1), Status(503, after=1), path="/m.bin")
    with pytest.raises(ModelCacheError):
        cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, progress=False)
    origin.heal()


Opened = Callable[[], Board]


# -- downloads --------------------------------------------------------------------------------------------------------


def test_a_download_is_paused_and_goes_on(cache: Cache, origin: Origin, opened: Opened, one_connection: None) -> None:
    board = opened()
    origin.faults(Stall(HALF))
    download = cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, wait=False, progress=False)
    board.press("Pause")
    board.says("Paused: ")
    assert download.state == "paused" and partials(cache)
    origin.heal()
    board.press("Resume")
    board.says("m.bin is here")
    assert download.state == "ready" and "goes on" not in board.said
    assert eventually(lambda: "m.bin" in board.live.view.html["installed"].value)


def test_that_it_goes_on_is_said_no_longer_than_it_does(
    cache: Cache, origin: Origin, opened: Opened, one_connection: None
) -> None:
    cut_at_half(cache, origin)
    board = opened()
    origin.faults(Stall(1_600_000))
    board.press("Resume")
    board.says("m.bin goes on")
    assert eventually(lambda: bool(cache.running and cache.running[0].progress.bytes_downloaded))
    cache.running[0].pause()  # as another cell does
    assert eventually(lambda: "goes on" not in board.said)


def test_what_goes_on_and_fails_says_why(cache: Cache, origin: Origin, opened: Opened) -> None:
    cut_at_half(cache, origin)
    origin.faults(Status(410))
    board = opened()
    board.press("Resume")
    board.says("410")
    assert "goes on" not in board.said and "bad" in board.said


def test_cancelling_takes_two_presses(cache: Cache, origin: Origin, opened: Opened, one_connection: None) -> None:
    board = opened()
    origin.faults(Stall(HALF))
    download = cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, wait=False, progress=False)
    board.press("Cancel")
    board.press("Sure? Cancel")
    board.says("m.bin is cancelled")
    assert eventually(lambda: download.has_ended) and partials(cache) == []
    assert eventually(lambda: "Pause" not in board.buttons() and "Resume" not in board.buttons())


def test_what_was_interrupted_is_resumed_from_where_it_stopped(cache: Cache, origin: Origin, opened: Opened) -> None:
    cut_at_half(cache, origin)
    opened().press("Resume")
    assert eventually(lambda: [row["status"] for row in cache.downloads()] == ["success"])
    assert origin.requests[-1].range not in (None, "bytes=0-")


def test_discarding_takes_two_presses_and_all_that_was_here(cache: Cache, origin: Origin, opened: Opened) -> None:
    cut_at_half(cache, origin)
    board = opened()
    board.press("Discard")
    assert eventually(lambda: "Sure? Discard" in board.buttons()) and partials(cache)
    board.press("Sure? Discard")
    board.says("m.bin is cancelled")
    assert partials(cache) == [] and eventually(lambda: "Discard" not in board.buttons())


def test_what_another_process_is_at_says_so_in_one_line(cache: Cache, origin: Origin, opened: Opened) -> None:
    origin.faults(Stall(HALF))
    with start("fetch", origin.url("m.bin"), "--sha256", FILE.sha256) as other:
        try:
            assert eventually(lambda: bool(cache.downloads("in_progress")))
            board = opened()
            board.press("Pause")
            board.says("is being fetched by another process")
            assert 'class="said bad"' in board.said and "\n" not in board.said
        finally:
            other.kill()
            other.communicate()


# -- the queue --------------------------------------------------------------------------------------------------------


def test_priorities_go_up_and_down(cache: Cache, origin: Origin, opened: Opened) -> None:
    queue = Queue(cache)
    entry = queue.add(origin.url("m.bin"))
    board = opened()
    for label, priority in (("Sooner", 1), ("Sooner", 2), ("Later", 1)):
        board.press(label)
        board.says(f"Its priority is {priority} now")
        assert [(row["id"], row["priority"]) for row in queue.entries()] == [(entry, priority)]


def test_the_queue_is_paused_and_goes_on_and_is_run_here(cache: Cache, origin: Origin, opened: Opened) -> None:
    queue = Queue(cache)
    queue.add(origin.url("other.bin"), sha256=OTHER.sha256)
    board = opened()
    board.press("Pause queue")
    assert eventually(lambda: queue.is_paused and "Queued, paused" in board.live.view.html["queued"].value)
    board.press("Resume queue")
    assert eventually(lambda: not queue.is_paused)
    board.press("Fetch now")
    assert eventually(lambda: len(queue) == 0) and len(cache.models()) == 1


def test_what_came_of_fetching_what_waits_is_said(cache: Cache, origin: Origin, opened: Opened) -> None:
    queue = Queue(cache)
    queue.add(origin.url("other.bin"), sha256=OTHER.sha256)
    queue.add(origin.url("nowhere.bin"))
    board = opened()
    board.press("Fetch now")
    board.says("1 fetched, 1 failed: ")
    assert "nowhere.bin" in board.said and "404" in board.said and "in this kernel" not in board.said
    queue.remove(queue.entries()[0]["id"])
    queue.add(origin.url("m.bin"), sha256=FILE.sha256)
    board.press("Fetch now")
    board.says(">1 fetched<")


def test_what_waits_is_taken_out_with_two_presses(cache: Cache, origin: Origin, opened: Opened) -> None:
    queue = Queue(cache)
    queue.add(origin.url("other.bin"))
    board = opened()
    board.press("Remove")
    board.press("Sure? Remove")
    board.says("It is out of the queue")
    assert len(queue) == 0


def test_what_failed_waits_again(cache: Cache, origin: Origin, opened: Opened) -> None:
    queue = Queue(cache)
    queue.add(origin.url("nowhere.bin"))
    queue.run(progress=False)
    assert [row["status"] for row in queue.entries()] == ["failed"]
    board = opened()
    board.press("Again")
    board.says("It waits again")
    assert [row["status"] for row in queue.entries()] == ["waiting"]


# -- what is installed ------------------------------------------------------------------------------------------------


def test_what_rotted_is_found_and_repaired(cache: Cache, origin: Origin, opened: Opened) -> None:
    model = cache.fetch(manifest_of(origin, {"m.bin": FILE, "other.bin": OTHER}), progress=False)
    board = opened()
    board.press("Verify")
    board.says("m is right: 2 files read from end to end")
    rot(model["m.bin"].path, 7)
    board.press("Verify")
    board.says("m: 1 of 2 files corrupt: press Repair")
    assert eventually(lambda: "m is not as it was" in board.live.view.html["head"].value)
    board.press("Repair")
    board.says("m is repaired: ")
    assert Path(model["m.bin"].path).read_bytes() == FILE.read(0, FILE.size)
    board.press("Repair")
    board.says("Nothing is wrong with m")


def test_a_pin_is_set_and_taken_off(cache: Cache, origin: Origin, opened: Opened) -> None:
    cache.fetch(manifest_of(origin, {"other.bin": OTHER}), progress=False)
    cache.pin("m")  # all its versions
    board = opened()
    for label, is_pinned in (("Unpin", False), ("Pin", True), ("Unpin", False)):
        board.press(label)
        assert eventually(lambda now=is_pinned: [row["pinned"] for row in cache.models()] == [now])  # type: ignore[misc]


def test_removing_takes_two_presses_within_some_seconds_for_the_same_model(
    cache: Cache, origin: Origin, opened: Opened, clock: Clock
) -> None:
    for model in ("a", "b"):
        cache.fetch(manifest_of(origin, {"other.bin": OTHER}, model), progress=False)
    board = opened()
    board.press("Remove")
    assert eventually(lambda: "Sure? Remove" in board.buttons())
    clock.now += SURE_S
    assert eventually(lambda: "Remove" in board.buttons())
    board.press("Remove")  # the first one again
    board.live.view.chosen.value = ("b", "1")
    board.press("Remove")  # of another model: the first one, too
    assert eventually(lambda: "Sure? Remove" in board.buttons()) and len(cache.models()) == 2
    board.press("Sure? Remove")
    board.says("b is removed: ")
    assert [row["model"] for row in cache.models()] == ["a"]
    assert eventually(lambda: board.live.view.chosen.options == (("a @ 1", ("a", "1")),))


def test_clean_shows_what_would_go_before_it_goes(cache: Cache, cache_root: Path, opened: Opened) -> None:
    left = cache_root / "partials" / f"url-{'0' * 64}.{'0' * 16}"
    left.mkdir(parents=True)
    (left / "journal").write_text("garbage")
    board = opened()
    assert not any(label.startswith("Remove these") for label in board.buttons())
    board.press("Clean…")
    board.says("This is what clean would remove")
    assert left.exists() and str(left)[-20:] in board.live.view.html["would go"].value
    board.press(next(label for label in board.buttons() if label.startswith("Remove these 1 (")))
    board.says("1 removed")
    assert not left.exists() and eventually(lambda: not board.live.view.html["would go"].value)
    board.press("Clean…")
    board.says("There is nothing to clean")


def test_clean_asks_again_when_it_would_remove_other_things_by_now(cache: Cache, home: Path, opened: Opened) -> None:
    def old_log(name: str, days: int) -> Path:
        path = home / "logs" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
        os.utime(path, (time.time() - days * 86_400,) * 2)
        return path

    def label(count: int) -> str:
        words = f"Remove these {count} ("
        assert eventually(lambda: any(each.startswith(words) for each in board.buttons()))
        return next(each for each in board.buttons() if each.startswith(words))

    first, board = old_log("first", 200), opened()
    board.press("Clean…")
    board.says("This is what clean would remove")
    second = old_log("second", 200)
    board.press(label(1))
    board.says("has changed")
    assert first.exists() and second.exists()
    assert eventually(lambda: "second.jsonl" in board.live.view.html["would go"].value)
    old_log("first", 300)  # it is the same, only older
    words = label(2)
    board.press(words)
    board.press(f"Sure? {words}")
    board.says("2 removed")
    assert not first.exists() and not second.exists()


# -- what all buttons owe ---------------------------------------------------------------------------------------------


def deed(work: Callable[[Callable[[str], None]], str], sure: str = "") -> Deed:
    return Deed(("it",), "Do", "check", "tip", "Doing it", work, sure)


def test_while_its_work_goes_on_a_button_is_disabled_and_says_how_far_it_is(clock: Clock) -> None:
    begun, goes_on, changed = threading.Event(), threading.Event(), threading.Event()
    times = []

    def work(tell: Callable[[str], None]) -> str:
        times.append(1)
        tell("1 of 2")
        begun.set()
        goes_on.wait(60)
        return "done"

    works = Works(changed.set, clock)
    press = Press(works, lambda: deed(work))
    press.button.click()
    assert begun.wait(60) and changed.is_set()
    press.paint()
    assert press.button.disabled and works.said.text == "Doing it: 1 of 2"
    press.button.click()
    goes_on.set()
    assert eventually(lambda: works.ended == 1)
    press.paint()
    assert not press.button.disabled and works.said.text == "done" and times == [1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("it is held", next_step="end\nthat one"), "it is held; end that one"),
        (ValueError("http://host/?token=s3cret"), "a bug in modelcache: ValueError"),
        (SystemExit(3), "a bug in modelcache: SystemExit"),
    ],
)
def test_an_error_is_one_line_and_the_button_works_again(clock: Clock, error: BaseException, line: str) -> None:
    def work(_: Callable[[str], None]) -> str:
        raise error

    works = Works(lambda: None, clock)
    press = Press(works, lambda: deed(work))
    press.button.click()
    assert eventually(lambda: works.ended == 1)
    press.paint()
    assert works.said.text == line and works.said.is_error and not press.button.disabled


def test_what_is_told_late_disables_nothing(clock: Clock) -> None:
    kept = []
    works = Works(lambda: None, clock)
    works.begin(deed(lambda tell: kept.append(tell) or "done"))
    assert eventually(lambda: works.ended == 1)
    kept[0]("too late")
    assert works.said.text == "done" and not works.is_busy(("it",))


def test_a_line_that_stays_keeps_its_widgets(clock: Clock) -> None:
    lines = Lines(Works(lambda: None, clock))
    stays, goes = Line("1", "one", (deed(str),)), Line("2", "two", ())
    lines.paint([stays, goes])
    first, second = lines.box.children
    lines.paint([replace(stays, html="one, further")])
    assert lines.box.children == (first,) and first.children[0].value == "one, further"
    assert second.comm is None  # it is closed, in the kernel and in the page


# -- when what is read ------------------------------------------------------------------------------------------------


def test_the_store_is_not_looked_through_again_until_it_has_changed(cache: Cache, origin: Origin, clock: Clock) -> None:
    cache.fetch(manifest_of(origin, {"other.bin": OTHER}), progress=False)
    reader = Reader(cache, clock)
    first = reader.now
    for _ in range(10):
        clock.now += 0.5
        reader.read(anew=False)
        assert reader.now.store is first.store and (reader.now.lists is first.lists or clock.now >= 105)
    clock.now += LISTS_EVERY_S
    reader.read(anew=False)
    assert reader.now.store is first.store and reader.now.lists is not first.lists
    before = reader.now
    reader.read(anew=True)
    assert reader.now.store is not before.store and reader.now.lists is not before.lists
    before = reader.now
    clock.now += STORE_EVERY_S
    reader.read(anew=False)
    assert reader.now.store is not before.store


def test_what_another_one_finds_wrong_shows_with_the_next_lists(cache: Cache, origin: Origin, clock: Clock) -> None:
    model = cache.fetch(manifest_of(origin, {"m.bin": FILE}), progress=False)
    reader = Reader(cache, clock)
    rot(model["m.bin"].path, 7)
    with start("verify", "m") as other:
        other.communicate()
    clock.now += LISTS_EVERY_S
    reader.read(anew=False)
    assert [row.status for row in reader.now.store.installed.rows] == ["error"] and reader.now.worries
    cache.repair(progress=False)
    clock.now += LISTS_EVERY_S
    reader.read(anew=False)
    assert [row.status for row in reader.now.store.installed.rows] == ["ready"] and not reader.now.worries


def test_a_store_that_takes_long_to_look_through_is_looked_through_seldom(cache: Cache) -> None:
    """A clock on which each look at it takes ten seconds."""
    clock = Clock()

    def ticking() -> float:
        clock.now += 10.0
        return clock.now

    reader = Reader(cache, ticking)
    for is_changing, share in ((False, 1000), (True, 100)):
        began, stores = clock.now, [reader.now.store]
        while clock.now < began + 10_000:
            reader.read(anew=is_changing)
            stores += [reader.now.store] if reader.now.store is not stores[-1] else []
        assert 5 < len(stores) <= 2 + 10_000 / share


def test_what_begins_and_ends_shows_at_once(cache: Cache, origin: Origin, clock: Clock, one_connection: None) -> None:
    reader = Reader(cache, clock)
    origin.faults(Stall(HALF))
    download = cache.fetch(origin.url("m.bin"), sha256=FILE.sha256, wait=False, progress=False)
    reader.read(anew=False)
    assert [row.name for row in reader.now.running.rows] == ["m.bin"]
    origin.heal()
    download.pause()
    assert download.wait_stopped(60)
    reader.read(anew=False)
    assert [row.name for row in reader.now.lists.interrupted.rows] == ["m.bin"]
    download.resume()
    reader.read(anew=False)
    download.result()
    reader.read(anew=False)
    assert len(reader.now.store.installed.rows) == 1


# -- the end ----------------------------------------------------------------------------------------------------------


def test_when_it_ends_no_thread_and_no_widget_is_left(cache: Cache, origin: Origin) -> None:
    cache.fetch(manifest_of(origin, {"other.bin": OTHER}), progress=False)
    Queue(cache).add(origin.url("m.bin"))
    cut_at_half(cache, origin)
    live = Live(cache)
    widgets = [live.view.root]
    for widget in widgets:
        widgets += getattr(widget, "children", ())
    assert len(widgets) > 30 and all(widget.comm for widget in widgets)
    live.end()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("modelcache-dashboard")]
    assert not any(widget.comm for widget in widgets)


def test_a_round_that_fails_is_not_the_last(cache: Cache, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    board = opened()
    failed = threading.Event()

    def fail(_: object) -> None:
        failed.set()
        raise RuntimeError("no front end")

    with monkeypatch.context() as patch:
        patch.setattr(board.live.view, "paint", fail)
        assert failed.wait(60)
    board.press("Clean…")
    board.says("There is nothing to clean")
