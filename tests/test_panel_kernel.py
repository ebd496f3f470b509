"""What a notebook is shown, by real kernels: a panel while something is fetched, and a summary that stays."""

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from kernels import PYTHONS, ROOT, WAIT_S, WIDGET, Kernel, Told, kernel

MOST_MESSAGES = 10  # a second
MOST_CPU_S = 0.2  # for 20,000 changes
SETUP = """
import asyncio, io, os, sys, threading
from caches import manifest_of
from modelcache.caching import Cache
from modelcache.testing import Content, Hold, Origin, Slow, Status

def is_widgets_loaded():
    return "ipywidgets" in sys.modules

def say(event, word):
    "Prints the word as soon as the event is set, in the cell that runs then."
    threading.Thread(target=lambda: (event.wait(60), print(word, flush=True)), daemon=True).start()

files = {f"f{n}.bin": Content.generated(600_000 + n, seed=n) for n in range(3)}
origin = Origin(files).__enter__()
cache = Cache("cache", attempts_per_source=1, backoff=0.01, connections=1)
wanted = manifest_of(origin, files, model="whisper")
"""


@pytest.fixture(scope="module", params=PYTHONS, ids=lambda python: Path(python).parent.parent.name)
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all tests of this module: each begins with an empty cache and a healthy origin."""
    with kernel(tmp_path_factory.mktemp("kernel"), request.param) as started:
        assert started.run(SETUP).error == ""
        yield started


@pytest.fixture(autouse=True)
def _emptied(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cells" in request.fixturenames:
        code = "origin.heal()\ncache.reset('whisper')\nos.environ.pop('MODELCACHE_PROGRESS', None)"
        assert request.getfixturevalue("cells").run(code).error == ""


def shown(told: Told) -> dict[str, str]:
    """The one panel that a cell left."""
    (panel,) = told.panels
    return panel


# -- a cell that waits ------------------------------------------------------------------------------------------------


def test_a_fetch_shows_a_panel_and_leaves_a_summary_that_needs_no_widget(cells: Kernel) -> None:
    told = cells.run("origin.faults(Slow(2_000_000))\nmodel = cache.fetch(wanted)\nprint('after', flush=True)")
    kinds = [each["msg_type"] for each in told.messages]
    assert kinds.index("update_display_data") < kinds.index("stream")  # the end is shown before the cell goes on
    assert buttons(told) == []  # nobody would hear them
    first = next(each["content"]["data"] for each in told.messages if each["msg_type"] == "display_data")
    assert WIDGET in first
    assert "was under way" in first["text/plain"]
    assert WIDGET not in shown(told)
    text = shown(told)["text/plain"]
    assert re.match(r"✓ whisper: 3 files, 1\.7 MiB in \d+\.\d s \(.*/s\) from 127\.0\.0\.1:\d+\n", text), text
    assert "verified by sha256 · " in text
    assert 'data-state="done"' in shown(told)["text/html"]
    assert told.count("comm_open") == told.count("comm_close")  # nothing of it stays in the kernel


def test_a_fetch_of_three_files_sends_fewer_than_ten_messages_a_second(cells: Kernel) -> None:
    told = cells.run("origin.faults(Slow(300_000))\nmodel = cache.fetch(wanted)")
    moves = [each for each in told.messages if each["msg_type"] in ("comm_msg", "update_display_data")]
    times = [datetime.fromisoformat(str(each["header"]["date"])).timestamp() for each in moves]
    assert len(moves) > 2
    assert len(moves) / (max(times) - min(times)) < MOST_MESSAGES


def test_a_hit_shows_nothing(cells: Kernel) -> None:
    cells.run("cache.fetch(wanted, progress=False)")
    told = cells.run("a = cache.fetch(wanted)\nd = cache.fetch(wanted, wait=False)\nprint(d.result().id)")
    assert told.text == "whisper\n"
    assert told.panels == []


def test_neither_the_import_nor_a_hit_loads_ipywidgets(tmp_path: Path) -> None:
    with kernel(tmp_path) as cells:
        cells.run(SETUP + "cache.fetch(wanted, progress=False)")
        told = cells.run("cache.fetch(wanted)\nprint(is_widgets_loaded())")
        assert told.text == "False\n"
        assert cells.run("cache.remove('whisper')\ncache.fetch(wanted)\nprint(is_widgets_loaded())").text == "True\n"


def test_the_stop_button_pauses_and_the_same_cell_goes_on(cells: Kernel) -> None:
    stopped: list[bool] = []

    def stop(told: Told) -> None:
        if "reached" in told.text and told.panels and not stopped:
            stopped.append(True)
            cells.interrupt()

    cells.run("hold = Hold(400_000)\norigin.faults(hold, path='f0.bin')")
    told = cells.run("say(hold.reached, 'reached')\nmodel = cache.fetch(wanted)", stop)
    assert told.error == "KeyboardInterrupt"
    assert re.fullmatch(
        r"‖ whisper: paused; \d\.\d of 1\.7 MiB kept; run the cell again to go on", shown(told)["text/plain"]
    )
    assert WIDGET not in shown(told)
    again = cells.run(
        "hold.release.set()\nbefore = len(origin.requests)\nmodel = cache.fetch(wanted)\n"
        "print([seen.range for seen in origin.requests[before:] if seen.path == '/f0.bin'])"
    )
    assert again.error == ""
    assert re.search(r"'bytes=[1-9]\d*-", again.text), again.text
    assert "✓ whisper" in shown(again)["text/plain"]


def test_a_failed_fetch_says_what_happened_what_is_kept_and_what_to_do(cells: Kernel) -> None:
    told = cells.run("origin.faults(Status(503), path='f1.bin')\nmodel = cache.fetch(wanted)")
    assert told.error == "AllSourcesFailedError"
    sentence, advice = shown(told)["text/plain"].split("\n")
    assert sentence.startswith("✗ whisper: 1 of 3 files failed: f1.bin could not be fetched (http://127.0.0.1:")
    assert sentence.endswith("1.1 of 1.7 MiB kept")
    assert advice.endswith("then run the cell again to go on")
    assert told.count("comm_open") == told.count("comm_close")


# -- a cell that does not wait ----------------------------------------------------------------------------------------

BEGIN = "hold = Hold(400_000)\norigin.faults(hold, path='f0.bin')\nd = cache.fetch(wanted, wait=False)\n"
REACHED = "assert hold.reached.wait(60)\n"


def buttons(told: Told) -> list[str]:
    """Those that can be seen when the panel appears."""
    states = told.widgets
    return [
        state["description"]
        for state in states.values()
        if "description" in state
        and "icon" in state
        and states[state["layout"].removeprefix("IPY_MODEL_")].get("display") != "none"
    ]


def test_buttons_pause_and_go_on_while_the_kernel_is_free(cells: Kernel) -> None:
    told = cells.run(BEGIN + REACHED)
    assert buttons(told) == ["Pause", "Cancel"]
    cells.press(told, "Pause")
    paused = cells.run("assert d.wait_stopped(60)\nhold.release.set()\nprint(d.state, d.files[0].bytes_downloaded > 0)")
    assert paused.text == "paused True\n"
    cells.press(told, "Resume")
    ended = cells.run("print(d.result(60).id, d.error, [seen.range for seen in origin.requests][-1])")
    assert re.fullmatch(r"whisper None bytes=[1-9]\d*-\n", ended.text), ended.text


def test_cancel_removes_what_is_not_complete_and_leaves_words_alone(cells: Kernel) -> None:
    told = cells.run(BEGIN + REACHED)
    cells.press(told, "Cancel")
    ended = cells.run(
        "assert d.wait_stopped(60)\nhold.release.set()\nprint(type(d.error).__name__)\n"
        "print(os.listdir('cache/partials'))"
    )
    assert ended.text == "CancelledError\n[]\n"
    told.messages += ended.messages
    assert told.count("comm_open") == told.count("comm_close")


def test_retry_after_a_failure_asks_for_the_rest_alone(cells: Kernel) -> None:
    told = cells.run(
        "from modelcache.testing import CutAt\norigin.faults(CutAt(300_000, times=1), path='f0.bin')\n"
        "origin.faults(Status(503, after=1), path='f0.bin')\nd = cache.fetch(wanted, wait=False)\n"
        "assert d.wait_stopped(60)\nprint(d.state, len(d.files))"
    )
    assert told.text == "failed 3\n"
    assert WIDGET in shown(told)
    cells.run("origin.heal()")
    cells.press(told, "Retry")
    ended = cells.run("print(d.result(60).id, d.state, origin.requests[-1].range)")
    assert ended.text == "whisper ready bytes=300000-\n"


def test_a_task_that_is_cancelled_pauses_and_the_bytes_are_kept(cells: Kernel) -> None:
    told = cells.run(
        "hold = Hold(400_000)\norigin.faults(hold, path='f0.bin')\ntask = asyncio.create_task(cache.afetch(wanted))\n"
        "await asyncio.to_thread(hold.reached.wait, 60)\ntask.cancel()\nawait asyncio.wait([task])\n"
        "print(task.cancelled())\nhold.release.set()\norigin.heal()\n"
        "print((await cache.afetch(wanted)).id)\nprint(origin.requests[-1].range)"
    )
    assert re.fullmatch(r"True\nwhisper\nbytes=[1-9]\d*-\n", told.text), told.text
    assert buttons(told)[:2] == ["Pause", "Cancel"]


def test_whoever_awaits_waits_through_a_pause(cells: Kernel) -> None:
    told = cells.run(
        BEGIN + "waiter = asyncio.ensure_future(d)\nawait asyncio.to_thread(hold.reached.wait, 60)\nd.pause()\n"
        "await asyncio.to_thread(d.wait_stopped, 60)\nprint(d.state, waiter.done())\nhold.release.set()\nd.resume()\n"
        "print((await waiter).id)"
    )
    assert told.text == "paused False\nwhisper\n"


# -- other levels, other work -----------------------------------------------------------------------------------------


def test_html_is_replaced_where_widgets_are_not_wanted(cells: Kernel) -> None:
    told = cells.run(
        "os.environ['MODELCACHE_PROGRESS'] = 'html'\norigin.faults(Slow(300_000))\nmodel = cache.fetch(wanted)"
    )
    assert told.count("comm_open", "comm_msg") == 0
    pages = [each["content"]["data"]["text/html"] for each in told.messages if "data" in each["content"]]
    assert any('<progress data-state="downloading" aria-label="f0.bin" max="600000"' in each for each in pages)
    assert "✓" in shown(told)["text/html"]


@pytest.mark.parametrize("mode", ["off", "text"])
def test_no_panel_where_none_is_wanted(cells: Kernel, mode: str) -> None:
    told = cells.run(
        f"os.environ['MODELCACHE_PROGRESS'] = {mode!r}\nsys.stderr, kept = io.StringIO(), sys.stderr\n"
        "model = cache.fetch(wanted)\nsys.stderr, lines, pause = kept, sys.stderr, threading.Event()\n"
        "for _ in range(6000 if os.environ['MODELCACHE_PROGRESS'] == 'text' else 0):\n"
        "    if 'fetched, verified by sha256' in lines.getvalue() or pause.wait(0.01):\n        break\n"
        "print('verified by' in lines.getvalue())"
    )
    assert told.panels == []
    assert told.text == f"{mode == 'text'}\n"


def test_all_that_is_verified_has_one_panel_and_no_buttons(cells: Kernel) -> None:
    cells.run("cache.fetch(wanted, progress=False)\ncache.fetch(origin.url('f0.bin'), progress=False)")
    told = cells.run("report = cache.verify()")
    assert re.match(r"✓ Verify 2 models: 4 files, 2\.3 MiB in ", shown(told)["text/plain"])
    assert buttons(told) == []


def test_a_queue_has_one_panel_for_everything(cells: Kernel) -> None:
    told = cells.run(
        "from modelcache.queueing import Queue\nqueue = Queue(cache)\nqueue.add(wanted)\n"
        "queue.add(origin.url('f1.bin'))\nqueue.run()\nprint(len(queue))"
    )
    assert told.text == "0\n"
    assert re.match(r"✓ Queue: \d files, ", shown(told)["text/plain"])


def test_a_queue_whose_entry_failed_says_which_in_one_line(cells: Kernel) -> None:
    told = cells.run(
        "from modelcache.queueing import Queue\nqueue = Queue(cache)\nentry = queue.add(origin.url('none.bin'))\n"
        "queue.run()\nqueue.remove(entry)"
    )
    assert re.match(r"✗ Queue: 0 files, 0 B in .*; 1 not right\n  .*none\.bin.*404", shown(told)["text/plain"])
    assert 'data-state="failed"' in shown(told)["text/html"]


def test_a_sweep_that_finds_something_says_so_as_verify_does(cells: Kernel) -> None:
    cells.run("model = cache.fetch(wanted, progress=False)\nos.remove(model['f1.bin'])")
    told = cells.run("report = cache.sweep(share='full', older_than=0)\nprint(report.findings)")
    assert told.text == "1\n"
    assert re.match(r"✗ Sweep: .*; 1 not right\n  whisper/f1\.bin: missing", shown(told)["text/plain"])


def test_a_child_that_was_forked_has_no_panel(cells: Kernel) -> None:
    told = cells.run(
        "from modelcache.progress import kernel\nread, write = os.pipe()\nchild = os.fork()\n"
        "if child == 0:\n    os.write(write, str(kernel.is_here()).encode())\n    os._exit(0)\n"
        "os.waitpid(child, 0)\nprint(kernel.is_here(), os.read(read, 9))"
    )
    assert told.text == "True b'False'\n"


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_twenty_thousand_changes_cost_the_kernel_little(cells: Kernel) -> None:
    told = cells.run(
        "import time\nfrom modelcache.events import Progress\nfrom modelcache.progress.panel import Panel\n"
        "from modelcache.progress.drawn import Line\n"
        "panel = Panel('m', {f'f{n}': 20_000 for n in range(3)}, 'widget', waits=True)\npanel.appear('m')\n"
        "events = [Progress('m', 'downloading', f'f{n % 3}', n, 20_000, source='http', gateway='http://h/f',\n"
        "          total_files=3).to_wire() for n in range(20_000)]\n"
        "pause, began, start = threading.Event(), time.process_time(), time.monotonic()\n"
        "for n, event in enumerate(events):\n    panel(event)\n    if n % 100 == 99:\n        pause.wait(0.01)\n"
        "print(time.process_time() - began, time.monotonic() - start)\npanel.end(Line('m', '', 'done'))"
    )
    assert told.error == ""
    cpu_s, took_s = map(float, told.text.split())
    assert cpu_s < MOST_CPU_S
    assert told.count("comm_msg") < MOST_MESSAGES * (took_s + 1)


# -- what is saved ----------------------------------------------------------------------------------------------------


def test_a_notebook_is_saved_with_the_summary_and_the_file_of_its_last_cell_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, "model = cache.fetch(wanted)")]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(book, timeout=WAIT_S, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (output,) = book.cells[1].outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/plain"].startswith("✓ whisper: 3 files")
    assert (tmp_path / "cache/models/whisper/1/f2.bin").stat().st_size == 600_002
