"""The dashboard in JupyterLab: what it tells of a cache while that changes, and what its buttons do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caches import rot
from crash import eventually
from lab import Lab, Notebook, every_kernel, expect, faint_texts, held

from modelcache.caching import Cache
from modelcache.errors import AllSourcesFailedError
from modelcache.notebook import overview, sections
from modelcache.queueing import Queue
from modelcache.testing import Content, CutAt, Origin, Status

pytestmark = [
    pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("one_connection"),
]  # fmt: skip
MB = 1_000_000
MODEL = Content.generated(6 * MB, seed=1)
SHOW = "modelcache.dashboard()"
Open = Callable[..., Notebook]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin({"model.gguf": MODEL}) as origin:
        yield origin


@pytest.fixture
def begin(origin: Origin) -> str:
    url = origin.url("model.gguf")
    return f"import modelcache\nd = modelcache.fetch('{url}', sha256='{MODEL.sha256}', wait=False, progress=False)"


@pytest.fixture
def installed(cache: Cache, origin: Origin) -> Path:
    return Path(cache.fetch(origin.url("model.gguf"), sha256=MODEL.sha256, progress=False).path)


def shown(book: Notebook, *cells: int) -> Any:
    """What the last of these cells displays."""
    for index in cells:
        output = book.run(index)
        book.end(index)
    return output


def button(output: Any, word: str) -> Any:
    return output.get_by_role("button", name=word)


def said(output: Any, words: str) -> None:
    expect(output.get_by_role("status")).to_contain_text(words)


@every_kernel
def test_what_runs_is_paused_and_goes_on_from_the_dashboard(notebook: Open, origin: Origin, begin: str) -> None:
    (hold,) = held(origin, 3 * MB)
    output = shown(notebook(begin, SHOW), 0, 1)
    expect(output.get_by_role("progressbar", name="model.gguf")).to_have_attribute("value", str(3 * MB))
    button(output, "Pause").click()
    said(output, "Paused: 2.9 MiB are kept")
    expect(output.get_by_role("heading", name="Interrupted")).to_be_visible()
    hold.release.set()
    expect(output.get_by_text("Nothing is installed yet")).to_be_visible()
    button(output, "Resume").click()
    expect(output.get_by_role("cell", name="model.gguf").first).to_be_visible()  # it is installed
    expect(output.get_by_role("heading", name="Interrupted")).to_have_count(0)
    assert [seen.range for seen in origin.requests] == [None, f"bytes={3 * MB}-"]


def test_what_is_left_is_discarded_by_a_second_press(notebook: Open, origin: Origin, begin: str, home: Path) -> None:
    (hold,) = held(origin, 3 * MB)
    output = shown(notebook(begin, SHOW), 0, 1)
    expect(output.get_by_role("progressbar", name="model.gguf")).to_have_attribute("value", str(3 * MB))
    button(output, "Pause").click()
    button(output, "Discard").click()
    hold.release.set()
    expect(button(output, "Sure? Discard")).to_be_visible()
    assert len(list(home.glob("partials/*/data"))) == 1
    button(output, "Discard").dblclick()  # one of the two comes within the time that the question stands
    said(output, "model.gguf is cancelled")
    assert eventually(lambda: not list(home.glob("partials/*/data")))


def test_what_has_rotted_is_found_by_verify_and_mended_by_repair(
    notebook: Open, origin: Origin, installed: Path
) -> None:
    rot(installed, 2 * MB)
    before = len(origin.requests)
    output = shown(notebook("import modelcache", SHOW), 0, 1)
    button(output, "Verify").click()
    said(output, "press Repair")
    button(output, "Repair").click()
    said(output, "is repaired")
    button(output, "Verify").click()
    said(output, "is right: 1 file read from end to end")
    assert installed.read_bytes() == MODEL.read() and len(origin.requests) > before


def test_what_clean_would_remove_is_shown_before_it_is_removed(
    notebook: Open, origin: Origin, cache: Cache, home: Path
) -> None:
    origin.faults(CutAt(3 * MB, times=1), Status(503, after=1))
    with pytest.raises(AllSourcesFailedError):
        cache.fetch(origin.url("model.gguf"), sha256=MODEL.sha256, progress=False)
    output = shown(notebook("import modelcache", SHOW, MODELCACHE_STALE_PARTIAL_AGE="0"), 0, 1)
    button(output, "Clean…").click()
    expect(output.get_by_role("row", name="partial")).to_contain_text("2.9 MiB")
    assert len(list(home.glob("partials/*/data"))) == 1
    button(output, "Remove these").click()
    said(output, "removed, 2.9 MiB freed")
    assert eventually(lambda: not list(home.glob("partials/*/data")))


def test_a_model_is_pinned_and_removed_by_a_second_press(notebook: Open, installed: Path) -> None:
    output = shown(notebook("import modelcache", SHOW), 0, 1)
    button(output, "Pin").click()
    expect(button(output, "Unpin")).to_be_visible()
    expect(output.get_by_role("cell", name="pinned")).to_be_visible()
    button(output, "Unpin").click()
    expect(output.get_by_role("cell", name="pinned")).to_have_count(0)
    button(output, "Remove").click()
    expect(button(output, "Sure? Remove")).to_be_visible()
    assert installed.exists()
    button(output, "Remove").dblclick()
    expect(output.get_by_text("Nothing is installed yet")).to_be_visible()
    assert not installed.exists()


def test_what_runs_is_cancelled_by_a_second_press(notebook: Open, origin: Origin, begin: str, home: Path) -> None:
    (hold,) = held(origin, 3 * MB)
    output = shown(notebook(begin, SHOW), 0, 1)
    expect(output.get_by_role("progressbar", name="model.gguf")).to_have_attribute("value", str(3 * MB))
    button(output, "Cancel").click()
    expect(button(output, "Sure? Cancel")).to_be_visible()
    assert len(list(home.glob("partials/*/data"))) == 1
    button(output, "Cancel").dblclick()
    said(output, "model.gguf is cancelled")
    assert eventually(lambda: not list(home.glob("partials/*/data")))
    hold.release.set()
    expect(output.get_by_text("Nothing is being fetched.")).to_be_visible()


def test_what_waits_comes_sooner_or_later_and_is_fetched_in_this_kernel(
    notebook: Open, origin: Origin, cache: Cache
) -> None:
    queue = Queue(cache)
    queue.add(origin.url("model.gguf"), sha256=MODEL.sha256)
    output = shown(notebook("import modelcache", SHOW), 0, 1)
    button(output, "Sooner").click()
    expect(output.get_by_text("priority 1", exact=True)).to_be_visible()
    button(output, "Later").click()
    expect(output.get_by_text("priority 0", exact=True)).to_be_visible()
    button(output, "Pause queue").click()
    expect(output.get_by_role("heading", name="Queued, paused")).to_be_visible()
    assert queue.is_paused
    button(output, "Resume queue").click()
    said(output, "The queue goes on")
    button(output, "Fetch now").click()
    expect(output.get_by_role("cell", name="model.gguf").first).to_be_visible()  # it is installed
    expect(output.get_by_role("heading", name="Queued")).to_have_count(0)
    assert len(queue) == 0


def test_one_dashboard_is_live_and_what_stays_of_the_others_is_read_after_a_reload(
    notebook: Open, lab: Lab, installed: Path
) -> None:
    book = notebook("import modelcache", SHOW, f"last = {SHOW}\nlast", "last.close()")
    first = shown(book, 0, 1)
    expect(button(first, "Verify")).to_be_visible()
    second = shown(book, 2)
    expect(button(second, "Verify")).to_be_visible()
    for ended in (first, shown(book, 3) and second):
        expect(ended.get_by_role("button")).to_have_count(0)
        expect(ended.get_by_role("cell", name="model.gguf").first).to_be_visible()
    book.save()
    lab.end_kernels()
    book.open()
    for index in (1, 2):
        expect(book.output(index).get_by_role("cell", name="model.gguf").first).to_be_visible()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_every_text_of_a_dashboard_stands_out_from_its_ground(
    notebook: Open, page: Any, themed: Callable[[str], None], installed: Path, theme: str
) -> None:
    themed(theme)
    output = shown(notebook("import modelcache", SHOW), 0, 1)
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", str(theme == "JupyterLab Light").lower())
    expect(output.get_by_role("cell", name="model.gguf").first).to_be_visible()
    assert faint_texts(output) == []


def test_where_it_is_narrow_what_matters_least_is_left_out(chromium: Any, cache: Cache, installed: Path) -> None:
    page = chromium.new_page()
    page.set_content(sections.page(overview.overview(cache)))
    for width, is_wide in ((1100, True), (700, False)):
        page.set_viewport_size({"width": width, "height": 700})
        for column in ("model", "size", "status", "pin"):
            expect(page.get_by_role("columnheader", name=column, exact=True).first).to_be_in_viewport()
        for column in ("version", "proof", "last used"):
            expect(page.get_by_role("columnheader", name=column)).to_be_visible(visible=is_wide)
    page.close()
