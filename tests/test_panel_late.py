"""A panel that has ended stays as it is, whatever is told late; one that goes on says so. In real kernels."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kernels import Kernel, Told, kernel

SETUP = """
import gc, threading
from caches import manifest_of
from crash import eventually
from modelcache.caching import Cache
from modelcache.queueing import Queue
from modelcache.testing import Content, Hold, Origin

def say(event, word):
    "Prints the word as soon as the event is set, in the cell that runs then."
    threading.Thread(target=lambda: (event.wait(60), print(word, flush=True)), daemon=True).start()

def painters():
    return [each.name for each in threading.enumerate() if each.name == "modelcache-panel"]

files = {"a.bin": Content.generated(600_000)}
origin = Origin(files).__enter__()
cache = Cache("cache", attempts_per_source=1, backoff=0.01, connections=1)
wanted = manifest_of(origin, files, model="whisper")
"""
HOLD = "hold = Hold({0})\norigin.heal()\norigin.faults(hold, path='a.bin')\n"


@pytest.fixture
def cells(tmp_path: Path) -> Iterator[Kernel]:
    with kernel(tmp_path) as started:
        assert started.run(SETUP).error == ""
        yield started


def interrupts(cells: Kernel) -> Callable[[Told], None]:
    """Once, when the cell has said where it is."""
    stopped: list[bool] = []

    def stop(told: Told) -> None:
        if "reached" in told.text and told.panels and not stopped:
            stopped.append(True)
            cells.interrupt()

    return stop


def test_what_is_told_late_brings_no_panel_back_that_has_ended(cells: Kernel) -> None:
    told = cells.run(
        "gate, heard = threading.Event(), threading.Event()\n"
        "ways = {'started': lambda: gate.wait(60), 'completed': heard.set}\n"
        "forget = cache.on_event(lambda event: ways.get(event['type'], str)())\nmodel = cache.fetch(wanted)"
    )
    (panel,) = told.panels
    assert "✓ whisper" in panel["text/plain"]
    late = cells.run("gate.set()\nassert heard.wait(60)\nforget()\nprint(painters())")
    assert (late.error, late.text, late.panels) == ("", "[]\n", [])


def test_a_panel_of_several_that_has_ended_stays_so_when_one_of_them_goes_on(cells: Kernel) -> None:
    cells.run("Queue(cache).add(wanted)\n" + HOLD.format(400_000))
    told = cells.run("say(hold.reached, 'reached')\nQueue(cache).run()", interrupts(cells))
    assert told.error == "KeyboardInterrupt"
    ended = cells.run(
        "hold.release.set()\n(row,) = cache.downloads('paused')\n"
        "print(cache.resume(row['id'], progress=False).status, painters())"
    )
    assert (ended.error, ended.text, ended.panels) == ("", "success []\n", [])


def test_what_was_pressed_is_not_told_any_more_once_it_goes_on(cells: Kernel) -> None:
    told = cells.run(HOLD.format(300_000) + "d = cache.fetch(wanted, wait=False)\nassert hold.reached.wait(60)")
    cells.press(told, "Pause")
    cells.run("assert d.wait_stopped(60)")
    cells.press(told, "Pause")  # twice, before the button has gone
    ended = cells.run(
        "hold.release.set()\n" + HOLD.format(500_000) + "d.resume()\n"
        "from ipywidgets import HTML\n"
        "lines = [each for each in gc.get_objects() if isinstance(each, HTML) and 'role=\"status\"' in each.value]\n"
        "print(len(lines), eventually(lambda: any('ownloading' in line.value for line in lines)))\n"
        "hold.release.set()\nprint(d.result(60).id)"
    )
    assert (ended.error, ended.text) == ("", "1 True\nwhisper\n")


def test_a_panel_of_several_says_what_is_so_while_a_subscriber_is_stuck(cells: Kernel) -> None:
    cells.run("cache.fetch(wanted, progress=False)\ngate = threading.Event()\n")
    told = cells.run("forget = cache.on_event(lambda event: gate.wait(60))\nreport = cache.verify('whisper')")
    cells.run("gate.set()\nforget()")
    (panel,) = told.panels
    assert panel["text/plain"].startswith("✓ Verify whisper: 1 file, 585.9 KiB in "), panel["text/plain"]


def test_where_no_thread_is_to_be_had_a_fetch_goes_on_and_its_summary_comes_at_the_end(cells: Kernel) -> None:
    told = cells.run(
        "start = threading.Thread.start\n"
        "def refused(thread):\n    if thread.name == 'modelcache-panel':\n"
        '        raise RuntimeError("can\'t start new thread")\n    start(thread)\n'
        "threading.Thread.start = refused\nmodel = cache.fetch(wanted)\nthreading.Thread.start = start"
    )
    assert told.error == ""
    (panel,) = told.panels
    assert "✓ whisper: 1 file" in panel["text/plain"]


def test_widgets_that_are_there_and_broken_leave_a_panel_and_a_dashboard_of_html(cells: Kernel) -> None:
    told = cells.run("import sys\nsys.modules['ipywidgets'] = None\nmodel = cache.fetch(wanted)")
    assert (told.error, told.count("comm_open")) == ("", 0)
    first = next(each["content"]["data"] for each in told.messages if each["msg_type"] == "display_data")
    assert "<progress" in first["text/html"]
    (panel,) = told.panels
    assert "✓ whisper: 1 file" in panel["text/plain"]
    told = cells.run("import modelcache\nmodelcache.dashboard(cache)")
    (board,) = (each["content"]["data"] for each in told.messages if each["msg_type"] == "display_data")
    assert (told.error, sorted(board)) == ("", ["text/html", "text/plain"])
