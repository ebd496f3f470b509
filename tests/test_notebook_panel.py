"""The panel of a fetch in JupyterLab: what is seen, what can be pressed, and what stays.

The origin stops where a test wants to look, so that nothing has to be caught in passing.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab, Notebook, every_kernel, expect, faint_texts, held

from modelcache.testing import Content, CutAt, Origin, Status

pytestmark = [
    pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("one_connection"),
]  # fmt: skip
MB = 1_000_000
MODEL = Content.generated(6 * MB, seed=1)
Open = Callable[..., Notebook]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.gguf": MODEL}) as origin:
        yield origin


@pytest.fixture
def blocking(origin: Origin) -> str:
    return f"import modelcache\nmodel = modelcache.fetch('{origin.url('model.gguf')}', sha256='{MODEL.sha256}')"


@pytest.fixture
def handle(blocking: str) -> str:
    return blocking[:-1] + ", wait=False)"


@pytest.fixture
def awaiting(blocking: str) -> str:
    return blocking.replace("modelcache.fetch(", "await modelcache.afetch(")


def bar(output: Any) -> Any:
    return output.get_by_role("progressbar", name="model.gguf")


def state(output: Any, state: str) -> Any:
    """The line that says how it stands, once it does stand so."""
    return output.locator(f"p[data-state={state}], .summary[data-state={state}]")


def button(output: Any, word: str) -> Any:
    return output.get_by_role("button", name=word)


def ranges(origin: Origin) -> list[str | None]:
    return [seen.range for seen in origin.requests]


# -- a cell that waits ------------------------------------------------------------------------------------------------


@every_kernel
def test_while_a_cell_waits_the_bar_moves_and_nothing_pretends_to_be_a_button(
    notebook: Open, origin: Origin, blocking: str
) -> None:
    first, second = held(origin, 2 * MB, 5 * MB)
    book = notebook(blocking)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(2 * MB))
    expect(state(output, "running")).to_have_count(1)
    expect(output.get_by_role("button")).to_have_count(0)
    first.release.set()
    expect(bar(output)).to_have_attribute("value", str(5 * MB))
    second.release.set()
    book.end(0)
    expect(state(output, "done")).to_contain_text("model.gguf")
    expect(bar(output)).to_have_count(0)


@every_kernel
def test_the_button_with_the_square_pauses_and_the_cell_run_again_goes_on(
    notebook: Open, origin: Origin, blocking: str
) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(blocking)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    book.interrupt()
    book.end(0)
    expect(state(output, "paused")).to_contain_text("2.9 of 5.7 MiB kept; run the cell again to go on")
    hold.release.set()
    output = book.run(0)
    book.end(0)
    expect(state(output, "done")).to_be_visible()
    assert ranges(origin) == [None, f"bytes={3 * MB}-"]


def test_a_summary_is_in_the_file_and_in_the_page_that_is_loaded_anew(
    notebook: Open, origin: Origin, lab: Lab, blocking: str
) -> None:
    book = notebook(blocking)
    book.run(0)
    book.end(0)
    (output,) = book.save()["cells"][0]["outputs"]
    assert sorted(output["data"]) == ["text/html", "text/plain"]
    lab.end_kernels()
    book.open()
    expect(state(book.output(0), "done")).to_contain_text("model.gguf")
    assert len(origin.requests) == 1


def test_a_second_run_shows_no_panel(notebook: Open, origin: Origin, blocking: str) -> None:
    book = notebook(blocking, f"{blocking}\nprint('it ' + 'is here')")
    book.run(0)
    book.end(0)
    book.run(1)
    output = book.end(1)
    expect(output).to_have_text(re.compile(r"\s*it is here\s*"))
    assert len(origin.requests) == 1


# -- a cell that goes on ----------------------------------------------------------------------------------------------


@every_kernel
def test_pause_keeps_the_bytes_and_resume_goes_on_behind_them(notebook: Open, origin: Origin, handle: str) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(handle, "d.result().status")
    output = book.run(0)
    book.end(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    button(output, "Pause").click()
    expect(state(output, "paused")).to_contain_text("2.9 of 5.7 MiB kept")
    hold.release.set()
    button(output, "Resume").click()
    expect(state(output, "done")).to_be_visible()
    assert ranges(origin) == [None, f"bytes={3 * MB}-"]


@every_kernel
def test_cancel_removes_what_is_not_complete(notebook: Open, origin: Origin, handle: str, home: Path) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(handle)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    button(output, "Cancel").click()
    expect(state(output, "cancelled")).to_be_visible()
    hold.release.set()
    expect(output.get_by_role("button")).to_have_count(0)
    assert list((home / "partials").glob("*/data")) == []


def test_a_server_that_fails_leaves_a_button_that_goes_on(notebook: Open, origin: Origin, handle: str) -> None:
    origin.faults(CutAt(3 * MB, times=1), Status(503, after=1))
    book = notebook(handle)
    output = book.run(0)
    expect(state(output, "failed")).to_contain_text("503")
    expect(state(output, "failed")).to_contain_text("2.9 of 5.7 MiB kept")
    expect(button(output, "Pause")).to_be_hidden()
    origin.heal()
    button(output, "Retry").click()
    expect(state(output, "done")).to_be_visible()
    assert (origin.requests[-1].range, origin.requests[-1].status) == (f"bytes={3 * MB}-", 206)


def test_what_is_read_aloud_are_bars_with_names_and_one_status(notebook: Open, origin: Origin, handle: str) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(handle)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    told = output.aria_snapshot()
    hold.release.set()
    assert told.count("- status") == told.count("- progressbar") == told.count('- progressbar "model.gguf"') == 1
    assert re.findall("- button .*?([A-Z][a-z]+)", told) == ["Pause", "Cancel"]


# -- a cell that awaits -----------------------------------------------------------------------------------------------


def test_the_buttons_of_a_fetch_that_is_awaited_work_while_it_is(
    notebook: Open, origin: Origin, awaiting: str, page: Any
) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(awaiting)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    button(output, "Pause").click()
    expect(state(output, "paused")).to_contain_text("2.9 of 5.7 MiB kept")
    expect(page.locator(".jp-InputPrompt").first).to_have_text("[*]:")
    hold.release.set()
    button(output, "Resume").click()
    book.end(0)
    expect(state(output, "done")).to_be_visible()
    assert ranges(origin) == [None, f"bytes={3 * MB}-"]


@every_kernel
def test_the_button_with_the_square_pauses_what_is_awaited(notebook: Open, origin: Origin, awaiting: str) -> None:
    (hold,) = held(origin, 3 * MB)
    book = notebook(awaiting)
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    book.interrupt()
    book.end(0)
    expect(state(output, "paused")).to_contain_text("2.9 of 5.7 MiB kept")
    hold.release.set()
    output = book.run(0)
    book.end(0)
    expect(state(output, "done")).to_be_visible()
    assert ranges(origin) == [None, f"bytes={3 * MB}-"]


# -- other ways to show it --------------------------------------------------------------------------------------------


def test_without_widgets_the_page_moves_all_the_same(notebook: Open, origin: Origin, blocking: str) -> None:
    first, second = held(origin, 2 * MB, 5 * MB)
    book = notebook(blocking, MODELCACHE_PROGRESS="html")
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(2 * MB))
    expect(output.locator(".jupyter-widgets")).to_have_count(0)
    first.release.set()
    expect(bar(output)).to_have_attribute("value", str(5 * MB))
    second.release.set()
    book.end(0)
    expect(state(output, "done")).to_be_visible()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_text_stands_out_from_its_ground(
    notebook: Open, origin: Origin, page: Any, themed: Callable[[str], None], handle: str, theme: str
) -> None:
    themed(theme)
    (hold,) = held(origin, 3 * MB)
    book = notebook(handle)
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "JupyterLab Light").lower())
    output = book.run(0)
    expect(bar(output)).to_have_attribute("value", str(3 * MB))
    faint = faint_texts(output)
    button(output, "Pause").click()
    expect(state(output, "paused")).to_be_visible()
    hold.release.set()
    button(output, "Resume").click()
    expect(state(output, "done")).to_be_visible()
    assert faint + faint_texts(output) == []
