"""A JupyterLab on this machine and a real browser in front of it: what the tests of notebooks stand on.

Responsible for: starting and ending both, notebooks as files and as pages, and what every page owes: no error in it, no
request that leaves this machine. Leaves to the tests: what is in the cells, and what is seen.

The fixtures: `lab`, one server for all tests; `chromium`, a browser for each module, because playwright keeps a loop of
asyncio running in the thread for as long as it lives; `page`, empty; `notebook`, which opens one.

Tests wait only by playwright's locators and `expect`, which look again until it is so. Where something must not go on,
the origin is held (`modelcache.testing.Hold`).
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from crash import eventually

from modelcache.testing import Hold, Origin

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Without the first, the browser itself looks up two hosts of its vendor, whatever the page does.
FLAGS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--disable-gpu", "--no-first-run"]
PYTHONS = [python for python in os.environ.get("MODELCACHE_IPYKERNELS", "").split(":") if python] or [sys.executable]
"""Interpreters that run cells, each with an ipykernel of its own: the gate makes some. Else this one."""
every_kernel = pytest.mark.parametrize("python", PYTHONS, ids=lambda python: Path(python).parent.parent.name)
HERE = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "file:")
WAIT_S = 60  # a bound for a machine that is busy with everything else
HELD_S = 600  # longer than any test
KERNEL = "tested"
PROMPT = re.compile(r"\[.+\]:")
NUMBERED = re.compile(r"\[\d+\]:")


def require(*modules: str) -> None:
    """Skips the test where these modules or the browser are missing, and says what would install them."""
    if missing := [name for name in modules if find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install -e '.[dev]')")
    if CHROMIUM is None:
        pytest.skip("not installed: chromium (apt-get install chromium)")


@dataclass(frozen=True, slots=True)
class Lab:
    """The server. It and its kernels write only into `folder`; notebooks are in its `work`."""

    folder: Path
    url: str
    token: str

    def ask(self, path: str, method: str = "GET") -> Any:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(self.url + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
            return json.loads(reply.read() or "null")

    def offer(self, python: str, environment: dict[str, str]) -> None:
        """From now on this interpreter runs the cells of notebooks that are opened."""
        started = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": started, "display_name": "Python 3", "language": "python", "env": environment}
        put(self.folder / "data/kernels" / KERNEL / "kernel.json", spec)

    def prefer(self, extension: str, name: str, **settings: Any) -> None:
        """Settings of pages that are opened from now on."""
        put(self.folder / "settings/@jupyterlab" / extension / f"{name}.jupyterlab-settings", settings)

    def write(self, name: str, *cells: str) -> None:
        import nbformat

        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.folder / "work" / name)

    def end_kernels(self) -> None:
        for session in self.ask("api/sessions"):
            self.ask(f"api/sessions/{session['id']}", "DELETE")


def put(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook in a page. Cells are counted from 0."""

    page: Any
    lab: Lab
    name: str

    def open(self) -> None:
        """Loads the page, anew if need be, until a kernel waits for cells."""
        self.page.goto(f"{self.lab.url}doc/tree/{self.name}?token={self.lab.token}&reset")
        self.page.wait_for_selector(".jp-CodeCell")  # the indicator in the toolbar says idle before there is a kernel
        self.page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus === 'idle'"
        )

    def run(self, index: int) -> Any:
        """Begins a cell; returns its output, which may not be there yet."""
        prompt = self._cell(index).locator(".jp-InputPrompt")
        expect(prompt).to_have_text(PROMPT)  # empty at first
        before = prompt.inner_text()
        self._command("notebook:run-cell", f"notebook.content.activeCellIndex = {index}")
        expect(prompt).not_to_have_text(before)
        return self.output(index)

    def end(self, index: int) -> Any:
        """Waits until a cell that runs has ended; returns its output."""
        expect(self._cell(index).locator(".jp-InputPrompt")).to_have_text(NUMBERED)
        return self.output(index)

    def output(self, index: int) -> Any:
        return self._cell(index).locator(".jp-OutputArea").first

    def interrupt(self) -> None:
        """The button with the square."""
        self.page.locator("[data-command='notebook:interrupt-kernel']").click()

    def save(self) -> Any:
        """Saves it; returns what is in the file then."""
        self._command("docmanager:save")
        self.page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
        return json.loads((self.lab.folder / "work" / self.name).read_text())

    def _cell(self, index: int) -> Any:
        return self.page.locator(".jp-CodeCell").nth(index)

    def _command(self, name: str, first: str = "") -> None:
        """Nobody waits for its promise: it may last as long as a cell, and `evaluate` has no bound."""
        self.page.wait_for_function(f"() => jupyterapp.commands.isEnabled('{name}')")
        notebook = "const notebook = jupyterapp.shell.currentWidget"
        self.page.evaluate(f"() => {{ {notebook}; {first}; jupyterapp.commands.execute('{name}') }}")


def expect(locator: Any) -> Any:
    """Playwright's, which is not imported where it is not needed."""
    from playwright.sync_api import expect

    return expect(locator)


def held(origin: Origin, *offsets: int) -> list[Hold]:
    """The origin stops at each of these offsets, once, until its hold is released."""
    holds = [Hold(offset, times=1, most_s=HELD_S) for offset in offsets]
    origin.faults(*holds)
    return holds


def faint_texts(output: Any) -> list[str]:
    """Texts of ours that stand out too little from their ground, each with its contrast."""
    return list(output.evaluate(FAINT_TEXTS))


FAINT_TEXTS = """
area => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor);
      if ((colour[3] ?? 1) > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of area.querySelectorAll('.modelcache *')) {
    const words = [...node.childNodes].filter(each => each.nodeType === 3).map(each => each.data.trim()).join('');
    if (!words || node.tagName === 'STYLE' || !node.offsetParent) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 3) faint.push(`${words}: ${((a + 0.05) / (b + 0.05)).toFixed(1)}`);
  }
  return faint;
}
"""


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    require("jupyterlab", "playwright", "nbformat")
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    put(folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings", {"fetchNews": "false"})
    (folder / "work").mkdir()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
        f"--ServerApp.root_dir={folder / 'work'}", "--expose-app-in-browser", "--LabApp.extension_manager=readonly",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=surroundings(folder, token), cwd=folder, stdout=log, stderr=log)
    try:
        assert eventually(lambda: address(folder) is not None or server.poll() is not None)
        url = address(folder)
        assert url is not None, (folder / "log").read_text()
        yield Lab(folder, url, token)
    finally:
        server.terminate()  # it ends its kernels; one that outlives it sees that its parent is gone
        try:
            server.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def surroundings(folder: Path, token: str) -> dict[str, str]:
    """The environment of a server that knows and changes nothing of its user's."""
    foreign = ("MODELCACHE_", "HF_", "JUPYTER", "IPYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    places = {
        "HOME": "home", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }  # fmt: skip
    kept |= {name: str(folder / place) for name, place in places.items()}
    return kept | {"JUPYTER_TOKEN": token, "JUPYTER_NO_CONFIG": "1", "PYTHONPATH": str(ROOT)}


def address(folder: Path) -> str | None:
    """Where the server is, as soon as it listens."""
    for note in (folder / "runtime").glob("jpserver-*.json"):
        try:
            return str(json.loads(note.read_text())["url"])
        except ValueError:  # it is being written
            return None
    return None


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One context for all pages of a module: the scripts of JupyterLab are loaded once."""
    require("playwright")
    from playwright.sync_api import expect, sync_playwright

    home = str(tmp_path_factory.mktemp("chromium"))
    expect.set_options(timeout=WAIT_S * 1000)
    with sync_playwright() as play:
        start = partial(play.chromium.launch, executable_path=CHROMIUM, args=FLAGS)
        browser = start(env=os.environ | {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home})
        yield browser.new_context(viewport={"width": 1000, "height": 800}, reduced_motion="reduce")
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page in which nothing went wrong in the end, and that asked nobody outside."""
    page, errors, asked = chromium.new_page(), [], []
    page.set_default_timeout(WAIT_S * 1000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(HERE)] == []


@pytest.fixture
def themed(lab: Lab) -> Iterator[Callable[[str], None]]:
    """Chooses the theme of the notebooks that are opened."""
    choose = partial(lab.prefer, "apputils-extension", "themes")
    yield lambda theme: choose(theme=theme)
    choose()


@pytest.fixture
def python() -> str:
    """Who runs the cells, where a test is not for `every_kernel`."""
    return PYTHONS[-1]


@pytest.fixture
def notebook(lab: Lab, page: Any, python: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Notebook]]:
    """Opens a notebook of these cells; they run in the test's surroundings, and wait for an origin that is held."""
    seen = ("MODELCACHE_", "HF_", "DOCKER_", "OLLAMA_")
    patient = {"MODELCACHE_STALL_TIMEOUT": str(HELD_S), "MODELCACHE_SLOW_RATE": "0"}

    def opened(*cells: str, **environment: str) -> Notebook:
        own = {name: value for name, value in os.environ.items() if name.startswith(seen)}
        lab.offer(python, own | patient | environment)
        book = Notebook(page, lab, f"{re.sub(r'[^a-z0-9]+', '_', request.node.name)}.ipynb")
        lab.write(book.name, *cells)
        book.open()
        return book

    yield opened
    lab.end_kernels()
