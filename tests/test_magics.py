"""`%modelcache` in IPython, and in a kernel."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from books import client_of
from nbclient.exceptions import CellExecutionError

from modelcache.caching import Cache
from modelcache.testing import Content, CutAt, Hold, Origin

PROGRAM = Path(__file__).resolve().parent / "ipython.py"
WEIGHTS = Content.generated(300_000)
LOAD = "%load_ext modelcache"


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.bin": WEIGHTS, "other.bin": WEIGHTS}) as origin:
        yield origin


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    home.mkdir()


def ran(*cells: str) -> list[dict[str, Any]]:
    """What came of each cell, after the one that loads the extension."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), LOAD, *cells], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()][1:]


def test_a_fetch_gives_the_file_and_lists_show_tables(origin: Origin) -> None:
    fetch, again, listed, found, path = ran(
        f"file = %modelcache fetch {origin.url('model.bin')} --sha256 {WEIGHTS.sha256}\nfile",
        "file.status, open(file, 'rb').read() == b'' ",
        "%modelcache ls",
        "%modelcache verify",
        f"%modelcache path {origin.url('model.bin')}",
    )
    assert "<File 'model.bin'" in fetch["shown"]["text/plain"] and "verified by sha256" in fetch["shown"]["text/html"]
    assert again["shown"]["text/plain"] == "('fetched', False)"
    assert "installed models" in listed["shown"]["text/plain"] and "<table" in listed["shown"]["text/html"]
    assert "whole" in found["shown"]["text/html"] and "1 file is right" in found["printed"] and not found["wrong"]
    assert path["shown"]["text/plain"].endswith("model.bin'")
    assert not any(each["error"] for each in (fetch, again, listed, path))


def test_words_are_quoted_as_in_a_shell_and_variables_are_python_s(origin: Origin, tmp_path: Path) -> None:
    names = f"url, out = '{origin.url()}', '{tmp_path}/my model.bin'"
    (place, several) = ran(
        f"{names}\n%modelcache fetch '{{url}}model.bin' --output \"{{out}}\"",
        f"%modelcache fetch {origin.url('model.bin')} {origin.url('other.bin')}",
    )
    assert "my model.bin" in place["shown"]["text/plain"]
    assert several["shown"]["text/plain"].count("<File ") == 2


def test_help_is_printed_and_nothing_ends_the_process() -> None:
    nothing, of_all, of_one, version = ran(
        "%modelcache", "%modelcache --help", "%modelcache fetch --help", "%modelcache --version"
    )
    assert nothing["printed"] == of_all["printed"] and "usage: %modelcache" in of_all["printed"]
    assert "usage: %modelcache fetch" in of_one["printed"] and "--sha256" in of_one["printed"]
    assert version["printed"].startswith("modelcache 0.")
    assert not any(each["error"] or each["shown"] for each in (nothing, of_all, of_one, version))


@pytest.mark.parametrize(
    ("line", "error", "told"),
    [
        ("fetchh x", "UsageError", "see `%modelcache --help`"),
        ("fetch --size x", "UsageError", "see `%modelcache fetch --help`"),
        ("fetch 'x", "UsageError", "No closing quotation"),
        ("path nothing", "ModelNotAvailableError", "not_installed"),
        ("report --csv -", "UsageError", "name a file"),
        ("jobs start", "UsageError", "modelcache.jobs.start()"),
        ("fetch http://127.0.0.1:9/x", "AllSourcesFailedError", "could not be fetched"),
    ],
)
def test_an_error_is_one_line_and_can_be_caught(line: str, error: str, told: str) -> None:
    (raised, caught) = ran(
        f"%modelcache {line}",
        "import modelcache\ntry:\n    get_ipython().run_line_magic('modelcache', " + repr(line) + ")\n"
        "except modelcache.ModelCacheError as error:\n    kind = type(error).__name__\nkind",
    )
    assert raised["error"] == error and told in raised["printed"]
    assert len(raised["printed"].strip().splitlines()) == 1 and "Traceback" not in raised["printed"] + raised["wrong"]
    assert caught["shown"]["text/plain"] == repr(error)


def test_words_that_cannot_be_read_are_not_told_for_a_url_may_hold_a_secret(home: Path) -> None:
    raised, surplus = ran(
        "url = 'http://127.0.0.1:9/m.bin?token=hunter2'\n%modelcache fetch '{url}",
        "%modelcache ls {url} --token hunter2",
    )
    assert "No closing quotation" in raised["printed"] and "hunter2" not in raised["printed"] + surplus["printed"]
    assert "unrecognized arguments: http://127.0.0.1:9/m.bin --token ...;" in surplus["printed"]


def test_with_debug_an_error_says_where_it_came_from(home: Path) -> None:
    (home / "models").write_text("no folder")
    plain, debugged = ran("%modelcache ls", "%modelcache ls --debug")
    assert len(plain["printed"].strip().splitlines()) == 1
    assert "Traceback" not in plain["printed"] and "modelcache/commands/" in debugged["printed"]
    assert debugged["error"] == plain["error"] == "StoreError"


def test_no_signal_is_caught_here(origin: Origin) -> None:
    read = "import signal; [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]"
    before, _, _, after = ran(read, f"%modelcache fetch {origin.url('model.bin')}", "%modelcache jobs run verify", read)
    assert before["shown"] == after["shown"]


def test_a_download_that_broke_goes_on_when_the_cell_is_run_again(origin: Origin) -> None:
    line = f"%modelcache fetch {origin.url('model.bin')} --sha256 {WEIGHTS.sha256}"
    origin.faults(CutAt(100_000), path="model.bin")
    (broken,) = ran(line)
    assert broken["error"] == "AllSourcesFailedError" and "bytes kept" in broken["printed"]
    origin.heal()
    (whole,) = ran(line)
    assert "the rest fetched" in whole["shown"]["text/plain"]


def test_an_interrupt_pauses_and_is_one_line(origin: Origin) -> None:
    hold = Hold(100_000)
    origin.faults(hold, path="model.bin")
    cells = [LOAD, f"%modelcache fetch {origin.url('model.bin')}"]
    process = subprocess.Popen([sys.executable, str(PROGRAM), *cells], stdout=subprocess.PIPE, text=True)
    assert hold.reached.wait(60)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=100)
    hold.release.set()
    stopped = json.loads(printed.splitlines()[-1])
    assert stopped["error"] == "PausedError" and "run the same command again" in stopped["printed"]
    assert len(stopped["printed"].strip().splitlines()) == 1 and process.returncode == 0


def test_commands_options_and_models_are_completed(cache: Cache, origin: Origin) -> None:
    cache.fetch(origin.url("model.bin"), progress=False)
    commands, options, models = ran(
        "completed('%modelcache ver')", "completed('%modelcache fetch --sh')", "completed('%modelcache info url-')"
    )
    assert "'verify'" in commands["shown"]["text/plain"]
    assert "'--sha256'" in options["shown"]["text/plain"]
    assert "url--model.bin" in models["shown"]["text/plain"]


def test_what_stands_before_a_colon_is_not_completed_twice_and_actions_are_offered(
    cache: Cache, origin: Origin
) -> None:
    cache.fetch(url := origin.url("model.bin"), progress=False)
    rest, actions = ran("completed('%modelcache info http:')", "completed('%modelcache jobs ')")
    assert url.removeprefix("http:") in rest["shown"]["text/plain"] and "http:" not in rest["shown"]["text/plain"]
    assert all(f"'{word}'" in actions["shown"]["text/plain"] for word in ("list", "run", "start", "history"))


def test_a_name_is_completed_in_the_brackets_of_a_cache(cache: Cache, origin: Origin) -> None:
    cache.fetch(origin.url("model.bin"), progress=False)
    _, names = ran("import modelcache as mc", "completed('mc.cache[\"ur')")
    assert "url--model.bin" in names["shown"]["text/plain"]


def test_the_extension_is_unloaded_and_loaded_again() -> None:
    gone, again, once_more = ran(
        "%unload_ext modelcache\n'modelcache' in get_ipython().magics_manager.magics['line']",
        "%load_ext modelcache\n%modelcache ls",
        "%reload_ext modelcache\n%modelcache ls",
    )
    assert gone["shown"]["text/plain"] == "False"
    assert "nothing" in again["shown"]["text/plain"] and "nothing" in once_more["shown"]["text/plain"]


def test_in_a_kernel_results_are_tables_and_an_error_ends_the_run_in_one_line(origin: Origin) -> None:
    fetch = f"%modelcache fetch {origin.url('model.bin')} --sha256 {WEIGHTS.sha256}"
    cells = [LOAD, fetch, "%modelcache clean --dry-run", "%modelcache path nothing"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError):
        client_of(notebook).execute()
    _, fetched, cleaned, failed = (cell.outputs for cell in notebook.cells)
    assert "verified by sha256" in fetched[-1].data["text/html"]
    assert [each.name for each in cleaned if each.output_type == "stream"] == ["stdout"]
    (error,) = failed
    assert error.ename == "ModelNotAvailableError" and len(error.traceback) == 1
